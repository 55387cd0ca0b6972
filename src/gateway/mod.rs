//! The data plane: from an accepted connection to a settled, logged and counted call.
//!
//! [`pipeline`] is the request path and reads top to bottom; each step has its own file. Owns everything a call passes on
//! its way to an upstream (invariant 6: there is no second way). Never answers local calls itself: those are handed to
//! [`LocalApi`].

pub mod accept;
pub mod authenticate;
pub mod authorize;
pub mod body;
pub mod buffers;
pub mod checks;
pub mod client_ip;
pub mod connections;
pub mod cost;
pub mod deadline;
pub mod forward;
pub mod http1;
pub mod ip_rules;
pub mod naming;
pub mod pipeline;
pub mod places;
pub mod policy;
pub mod rate;
pub mod record;
pub mod refusal;
pub mod replay;
pub mod spelling;
pub mod upstream;
pub mod usage;

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;

/// The calls this process answers itself, served on the control runtime. The gateway knows no more of them than this.
pub trait LocalApi: Send + Sync + 'static {
    fn call(&self, request: http::Request<Bytes>) -> Pin<Box<dyn Future<Output = http::Response<Bytes>> + Send>>;
}
