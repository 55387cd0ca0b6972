//! What has a life of its own: the users' actors, which own the meters, the writer, which owns the conversation journal, and
//! the audit trail.
//!
//! Owns state and its serial turns. Never speaks HTTP and never decides who may call.

pub mod audit;
pub mod scheduler;
pub mod user;
pub mod writer;
