//! `/metrics`, `/health`, `/ready`: what machines ask the side port.
//!
//! Owns these three answers. They need no credential: the side port itself is the fence.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::admin::SideState;
use super::shapes::Time;
use crate::actors::scheduler::TaskState;
use crate::clock::UnixMillis;

/// Says whether calls can be served, or why not.
pub type Readiness = Arc<dyn Fn() -> Result<(), &'static str> + Send + Sync>;

#[derive(Serialize, ToSchema)]
struct Alive {
    #[schema(example = "ok")]
    status: &'static str,
    version: &'static str,
    /// Timed work since the start.
    tasks: Vec<TaskHealth>,
    /// Letters that wait to be sent.
    mail_queue: u64,
}

#[derive(Serialize, ToSchema)]
struct TaskHealth {
    name: &'static str,
    runs: u64,
    failures: u64,
    last_success: Option<Time>,
}

impl From<&TaskState> for TaskHealth {
    fn from(task: &TaskState) -> Self {
        let (ok, failures) = (task.ok.load(Ordering::Relaxed), task.failed.load(Ordering::Relaxed));
        let last = Some(task.last_success.load(Ordering::Relaxed)).filter(|at| *at > 0);
        Self { name: task.name, runs: ok + failures, failures, last_success: last.map(|at| UnixMillis(at).into()) }
    }
}

#[derive(Serialize, ToSchema)]
struct Ready {
    /// `ready` or `not ready`.
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

/// The process lives, whatever else is wrong.
#[utoipa::path(get, path = "/health", tag = "machines", security(()), responses((status = 200, body = Alive)))]
pub async fn health(State(side): State<SideState>) -> Response {
    axum::Json(Alive {
        status: "ok",
        version: env!("CARGO_PKG_VERSION"),
        tasks: side.tasks.iter().map(|task| (&**task).into()).collect(),
        mail_queue: side.accounts.letters_waiting(),
    })
    .into_response()
}

/// Whether calls can be served.
#[utoipa::path(get, path = "/ready", tag = "machines", security(()),
    responses((status = 200, body = Ready), (status = 503, description = "Not now.", body = Ready)))]
pub async fn ready(State(side): State<SideState>) -> Response {
    match (side.readiness)() {
        Ok(()) => axum::Json(Ready { status: "ready", reason: None }).into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, axum::Json(Ready { status: "not ready", reason: Some(why) }))
            .into_response(),
    }
}

/// Every metric, as Prometheus reads them.
#[utoipa::path(get, path = "/metrics", tag = "machines", security(()),
    responses((status = 200, body = String, content_type = "text/plain")))]
pub async fn metrics(State(side): State<SideState>) -> Response {
    let text = side.accounts.metrics().render();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}
