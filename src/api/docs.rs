//! `/openapi.json` and `/docs` on the side port: the documents of both ports, and a page that shows them.
//!
//! Owns these paths. The page comes with the program: it loads nothing from anywhere else, and its policy forbids it to.

use axum::extract::{Path, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Redirect};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::admin::{Side, SideState};
use super::{document, swagger};
use crate::error::Reject;
use crate::handler::render::{self, Answer};

/// What the page may do: load its own files, and call the port it came from.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
                      connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

pub(super) fn paths() -> OpenApiRouter<SideState> {
    OpenApiRouter::new()
        .routes(routes!(side_json))
        .routes(routes!(public_json))
        .routes(routes!(front))
        .routes(routes!(page))
        .routes(routes!(file))
}

/// The OpenAPI document of the side port.
#[utoipa::path(get, path = "/openapi.json", tag = "documents", security(()), responses((status = 200, body = Object)))]
async fn side_json(State(side): Side) -> Answer {
    render::ok(document::while_on(&side.documents.side, side.accounts.settings().compat.dialects()))
}

/// The OpenAPI document of what the public port answers itself.
#[utoipa::path(get, path = "/openapi/public.json", tag = "documents", security(()),
    responses((status = 200, body = Object)))]
async fn public_json(State(side): Side) -> Answer {
    render::ok(document::while_on(&side.documents.public, side.accounts.settings().compat.dialects()))
}

/// Leads to the page.
#[utoipa::path(get, path = "/docs", tag = "documents", security(()),
    responses((status = 308, description = "To `/docs/`.")))]
async fn front() -> Redirect {
    Redirect::permanent("/docs/")
}

/// Both documents, to read and to try.
#[utoipa::path(get, path = "/docs/", tag = "documents", security(()),
    responses((status = 200, body = String, content_type = "text/html")))]
async fn page() -> Answer {
    asset("index.html")
}

/// What the page is made of.
#[utoipa::path(get, path = "/docs/{file}", tag = "documents", security(()),
    responses((status = 200, body = Vec<u8>, content_type = "*/*")))]
async fn file(Path(name): Path<String>) -> Answer {
    asset(&name)
}

fn asset(name: &str) -> Answer {
    let (bytes, kind) = swagger::file(name).ok_or(Reject::NotFound)?;
    let mut response = bytes.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}
