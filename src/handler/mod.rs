//! What the handlers of local calls are made of, whichever API they belong to: reading a request, naming who acts, writing
//! an answer.
//!
//! Owns the way from HTTP to what a service wants to know, and back. Never owns a path, and decides nothing about accounts.

pub mod acts;
pub mod device;
pub mod entry;
pub mod exports;
pub mod extract;
pub mod own_acts;
pub mod pages;
pub mod provider;
pub mod render;
pub mod staff_acts;
pub mod stream;
pub mod values;
