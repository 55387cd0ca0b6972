//! `/metrics`, `/health`, `/ready`: what machines ask the side port.
//!
//! Owns these three answers. They need no credential: the side port itself is the fence.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::admin::SideState;

/// Says whether calls can be served, or why not.
pub type Readiness = Arc<dyn Fn() -> Result<(), &'static str> + Send + Sync>;

/// The process lives, whatever else is wrong.
pub async fn health() -> Response {
    axum::Json(json!({"status": "ok", "version": env!("CARGO_PKG_VERSION")})).into_response()
}

pub async fn ready(State(side): State<SideState>) -> Response {
    match (side.readiness)() {
        Ok(()) => axum::Json(json!({"status": "ready"})).into_response(),
        Err(why) => {
            (StatusCode::SERVICE_UNAVAILABLE, axum::Json(json!({"status": "not ready", "reason": why}))).into_response()
        }
    }
}

pub async fn metrics(State(side): State<SideState>) -> Response {
    let text = side.accounts.metrics().render();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}
