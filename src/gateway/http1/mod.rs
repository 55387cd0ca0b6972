//! HTTP/1.1 on both sides, as the request path needs it (RFC 9112).
//!
//! Owns message heads ([`head`], and their fields' names, [`name`]), the chunked coding ([`chunked`]) and a client's connection ([`conn`]). It is stricter than
//! the RFC must be: what two servers could read in two ways is refused, never repaired. A head stays the bytes it came as,
//! with spans into them, so that passing it on is copying lines. Never decides whether a call may go.

pub mod chunked;
pub mod conn;
pub mod head;
pub mod name;
