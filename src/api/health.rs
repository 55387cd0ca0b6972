//! `/metrics`, `/health`, `/ready`: what machines ask the side port.
//!
//! Owns these three answers. They need no credential: the side port itself is the fence.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::admin::SideState;

/// Says whether calls can be served, or why not.
pub type Readiness = Arc<dyn Fn() -> Result<(), &'static str> + Send + Sync>;

#[derive(Serialize, ToSchema)]
struct Alive {
    #[schema(example = "ok")]
    status: &'static str,
    version: &'static str,
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
pub async fn health() -> Response {
    axum::Json(Alive { status: "ok", version: env!("CARGO_PKG_VERSION") }).into_response()
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
