//! Requests that pages in browsers make of the local APIs, on either port.
//!
//! Owns where a request comes from, as its fields say, and the refusal of what a page of another origin tries: before
//! anything is counted, looked up or hashed. Which pages may is told by [`crate::domain::pages`].

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::accounts::Accounts;
use crate::domain::cookies::Provenance;
use crate::domain::pages::FOREIGN_PAGE;
use crate::error::Reject;
use crate::handler::extract::Call;
use crate::handler::render::Refused;

pub(super) fn provenance<'a>(method: &'a Method, headers: &'a HeaderMap) -> Provenance<'a> {
    let field = |name: &str| headers.get(name).map(HeaderValue::as_bytes);
    Provenance {
        method: method.as_str(),
        fetch_site: field("sec-fetch-site"),
        navigates: field("sec-fetch-mode") == Some(b"navigate") && field("sec-fetch-dest") == Some(b"document"),
        origin: field("origin"),
        host: field("host"),
    }
}

/// Lets no page of another origin do anything; looking is left to the handlers, for a link may lead here from anywhere.
pub async fn refuse_foreign(State(accounts): State<Arc<Accounts>>, request: Request, next: Next) -> Response {
    let looks = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if !looks && accounts.settings().pages.refuse(&provenance(request.method(), request.headers())) {
        return Refused(Reject::Forbidden(FOREIGN_PAGE)).into_response();
    }
    next.run(request).await
}

/// For the calls that do something by being opened.
///
/// # Errors
/// [`Reject::Forbidden`] for what a page of another origin asks for.
pub fn no_foreign(accounts: &Accounts, call: &Call) -> Result<(), Reject> {
    match accounts.settings().pages.refuse(&call.provenance()) {
        true => Err(Reject::Forbidden(FOREIGN_PAGE)),
        false => Ok(()),
    }
}
