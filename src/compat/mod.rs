//! Dialects.
use std::sync::Arc;

use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::accounts::Accounts;

pub fn public_paths() -> OpenApiRouter<Arc<Accounts>> {
    OpenApiRouter::new()
}

pub fn side_paths() -> OpenApiRouter<Arc<Accounts>> {
    OpenApiRouter::new()
}

pub fn documents() -> (OpenApi, OpenApi) {
    (public_paths().into_openapi(), side_paths().into_openapi())
}
