//! Pure data and rules: what a user, a key, a meter and a session are.
//!
//! Owns the words of the product. Never does input or output, never reads a clock, never knows of tokio or the store.

pub mod addresses;
pub mod bodies;
pub mod codes;
pub mod cookies;
pub mod csv;
pub mod dialect;
pub mod ids;
pub mod key;
pub mod meters;
pub mod model;
pub mod nearest;
pub mod pages;
pub mod permissions;
pub mod price;
pub mod session;
pub mod user;
