//! What the process tells of itself: metrics, the access log, and the program's own log.
//!
//! Owns every metric family. Never holds a label that a client can choose without a bound, and never a secret.

pub mod access_log;
pub mod machine;
pub mod metrics;
pub mod seldom;
pub mod tracing;
