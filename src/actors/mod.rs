//! What has a life of its own: the users' actors, which own the meters, and the writer, which owns the conversation journal.
//!
//! Owns state and its serial turns. Never speaks HTTP and never decides who may call.

pub mod user;
pub mod writer;
