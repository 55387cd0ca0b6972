//! From what a handler answers to HTTP.
//!
//! Owns the way of every answer and the one body of refusals. What the answers look like is in [`crate::api::shapes`].

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::accounts::Accounts;
use crate::accounts::users::Page;
use crate::clock::Clock;
use crate::domain::dialect::Dialect;
use crate::domain::ids::RequestId;
use crate::error::{CountsAsRefusal, Reject};

/// What handlers answer.
pub type Answer = Result<Response, Refused>;

/// A refusal on its way to [`refusals`], which knows the request's id and the time.
#[derive(Clone, Debug)]
pub struct Refused(pub Reject);

impl From<Reject> for Refused {
    fn from(reject: Reject) -> Self {
        Self(reject)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Whose refusals are written, and when.
#[derive(Clone)]
pub struct Refusals {
    pub clock: Clock,
    pub form: Form,
}

/// In whose form refusals are.
#[derive(Clone)]
pub enum Form {
    Of(Dialect),
    /// As the dialect does to which the path belongs, among those that are on; else as the canonical API does.
    OfPath(Arc<Accounts>),
}

impl Form {
    fn dialect(&self, path: &str) -> Option<Dialect> {
        match self {
            Self::Of(dialect) => Some(*dialect),
            Self::OfPath(accounts) => {
                let claim = accounts.settings().compat.dialects().claim(path.as_bytes());
                claim.map(|claim| claim.dialect)
            }
        }
    }
}

/// What `Allow` lists for `TRACE` where no path is.
const NOT_TRACE: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// Gives every refusal its body, and every answer its request id. The innermost of several decides.
pub async fn refusals(State(how): State<Refusals>, mut request: Request, next: Next) -> Response {
    let known = request.extensions().get::<RequestId>().copied();
    let id = known.unwrap_or_else(|| RequestId::from_parts(fastrand::u32(..), fastrand::u64(..)));
    request.extensions_mut().insert(id);
    let dialect = how.form.dialect(request.uri().path());
    let is_trace = request.method() == axum::http::Method::TRACE;
    let mut response = next.run(request).await;
    if is_trace && response.status() != StatusCode::METHOD_NOT_ALLOWED {
        // On no path (RFC 9110, 9.3.8: an answer would be the request, credentials and all).
        response = Refused(Reject::MethodNotAllowed(NOT_TRACE.into())).into_response();
    }
    if let Some(Refused(reject)) = response.extensions_mut().remove::<Refused>() {
        let allowed = response.headers().get(header::ALLOW).and_then(|allow| allow.to_str().ok());
        let reject = match (reject, allowed, &how.form) {
            (Reject::MethodNotAllowed(_), Some(allowed), _) => Reject::MethodNotAllowed(allowed.replace(',', ", ")),
            // The router has yet to say which methods there are; the outermost of these knows the form by the path.
            (reject @ Reject::MethodNotAllowed(_), None, Form::Of(_)) => {
                response.extensions_mut().insert(Refused(reject));
                return response;
            }
            (reject, ..) => reject,
        };
        let headers = reject.headers();
        if reject.counts_as_refusal() {
            response.extensions_mut().insert(CountsAsRefusal);
        }
        *response.body_mut() = axum::body::Body::from(reject.body_for(dialect, id, how.clock.now()));
        response.headers_mut().remove(header::CONTENT_LENGTH);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        for (name, value) in headers {
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(name, value);
            }
        }
    }
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        response.headers_mut().entry("x-request-id").or_insert(value);
    }
    // Answers here speak of accounts, some carry a key: nothing in between may keep them.
    response.headers_mut().entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Sends a browser elsewhere.
///
/// # Errors
/// [`Reject::Internal`] for what is no address.
pub fn sent_to(url: &str) -> Result<Response, Reject> {
    let mut response = StatusCode::FOUND.into_response();
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, HeaderValue::from_str(url).map_err(|_| Reject::Internal)?);
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    Ok(response)
}

/// A value for a query: everything but letters, digits and `-._~` escaped (RFC 3986, 2.3).
pub fn escaped_query(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// A JSON answer.
pub fn ok<T: Serialize>(body: T) -> Answer {
    Ok(axum::Json(body).into_response())
}

/// A list whose items are JSON text already.
pub fn raw_list(page: Page<String>) -> Answer {
    let body = format!(
        "{{\"items\":[{}],\"page\":{},\"page_size\":{},\"total\":{}}}",
        page.items.join(","),
        page.page,
        page.page_size,
        page.total
    );
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}
