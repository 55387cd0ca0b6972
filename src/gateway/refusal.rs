//! Answers that do not come from an upstream: refusals, and those of the local API.
//!
//! Owns their bytes on the wire. Never decides why a call is refused.

use std::cell::RefCell;
use std::io::Write;

use bytes::Bytes;

use super::http1::head::{RequestHead, Version};
use super::rate;
use crate::clock::UnixMillis;
use crate::domain::dialect::Dialect;
use crate::domain::ids::RequestId;
use crate::error::Reject;

fn status_line(status: u16, out: &mut Vec<u8>) {
    let reason = http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("Status");
    // Writing into memory cannot fail.
    let _ = write!(out, "HTTP/1.1 {status} {reason}\r\n");
}

thread_local! {
    /// The second whose date was written last, and that date.
    static DATE: RefCell<(i64, String)> = const { RefCell::new((i64::MIN, String::new())) };
}

/// The field `date` (RFC 9110, 5.6.7 and 6.6.1).
pub fn write_date(now: UnixMillis, out: &mut Vec<u8>) {
    DATE.with_borrow_mut(|(second, date)| {
        if *second != now.seconds() {
            let stamp = jiff::Timestamp::from_second(now.seconds()).unwrap_or_default();
            let stamp = stamp.to_zoned(jiff::tz::TimeZone::UTC);
            *date = stamp.strftime("date: %a, %d %b %Y %H:%M:%S GMT\r\n").to_string();
            *second = now.seconds();
        }
        out.extend_from_slice(date.as_bytes());
    });
}

pub fn connection_field(close: bool, version: Version, out: &mut Vec<u8>) {
    if close {
        out.extend_from_slice(b"connection: close\r\n");
    } else if version == Version::Http10 {
        out.extend_from_slice(b"connection: keep-alive\r\n");
    }
}

/// The beginning of an answer without a body.
pub fn begin_empty(status: u16, now: UnixMillis, out: &mut Vec<u8>) {
    status_line(status, out);
    write_date(now, out);
    out.extend_from_slice(b"content-length: 0\r\n");
}

/// A refusal, whole. `head` is missing when the request never had a readable one.
pub fn encode(
    reject: &Reject,
    head: Option<&RequestHead>,
    request: RequestId,
    now: UnixMillis,
    close: bool,
) -> Vec<u8> {
    encode_as(reject.status(), &reject.body(request, now), reject, head, request, now, close)
}

/// As [`encode`], for a call in a dialect.
pub fn encode_in(
    dialect: Dialect,
    reject: &Reject,
    head: &RequestHead,
    request: RequestId,
    now: UnixMillis,
    close: bool,
) -> Vec<u8> {
    let body = reject.body_for(Some(dialect), request, now);
    encode_as(reject.status(), &body, reject, Some(head), request, now, close)
}

/// A refusal for an nginx that asks: it takes 401 and 403 from its `auth_request`, and makes 500 of everything else. The
/// real status goes into a header, from which an `error_page` can take it.
pub fn encode_for_nginx(
    reject: &Reject,
    head: &RequestHead,
    request: RequestId,
    now: UnixMillis,
    close: bool,
) -> Vec<u8> {
    let status = if reject.status() == 401 { 401 } else { 403 };
    encode_as(status, &reject.body(request, now), reject, Some(head), request, now, close)
}

fn encode_as(
    status: u16,
    body: &[u8],
    reject: &Reject,
    head: Option<&RequestHead>,
    request: RequestId,
    now: UnixMillis,
    close: bool,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(512 + body.len());
    status_line(status, &mut out);
    if status != reject.status() {
        let _ = write!(out, "x-tollgate-status: {}\r\nx-tollgate-reason: {}\r\n", reject.status(), reject.code());
    }
    write_date(now, &mut out);
    let _ = write!(
        out,
        "content-type: application/json\r\ncontent-length: {}\r\nx-request-id: {}\r\n",
        body.len(),
        request.as_str()
    );
    for (name, value) in reject.headers() {
        let _ = write!(out, "{name}: {value}\r\n");
    }
    if let Reject::RateLimited { limit, retry_after, .. } = reject {
        let _ = write!(out, "x-ratelimit-limit-requests: {limit}\r\nx-ratelimit-remaining-requests: 0\r\n");
        out.extend_from_slice(b"x-ratelimit-reset-requests: ");
        rate::write_reset(*retry_after, &mut out);
        out.extend_from_slice(b"\r\n");
    }
    connection_field(close, head.map_or(Version::Http11, |h| h.version), &mut out);
    out.extend_from_slice(b"\r\n");
    if head.is_none_or(|h| h.method() != "HEAD") {
        out.extend_from_slice(body);
    }
    out
}

/// An answer of the local API, whole. Its own `x-request-id` and framing are replaced.
pub fn encode_local(
    response: &http::Response<Bytes>,
    head: &RequestHead,
    request: RequestId,
    now: UnixMillis,
    close: bool,
) -> Vec<u8> {
    let body = response.body();
    let mut out = Vec::with_capacity(512 + body.len());
    status_line(response.status().as_u16(), &mut out);
    write_date(now, &mut out);
    let _ = write!(out, "x-request-id: {}\r\n", request.as_str());
    for (name, value) in response.headers() {
        if matches!(name.as_str(), "content-length" | "transfer-encoding" | "connection" | "x-request-id" | "date") {
            continue;
        }
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    if response.status() != http::StatusCode::NO_CONTENT {
        // The router drops the body that a GET would have had, and says how long it was.
        let told = response.headers().get(http::header::CONTENT_LENGTH).filter(|_| head.method() == "HEAD");
        let told = told.and_then(|length| length.to_str().ok()?.parse().ok());
        let _ = write!(out, "content-length: {}\r\n", told.unwrap_or(body.len()));
    }
    connection_field(close, head.version, &mut out);
    out.extend_from_slice(b"\r\n");
    if head.method() != "HEAD" {
        out.extend_from_slice(body);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_the_contract_s_headers() {
        let id = RequestId::from_parts(1, 2);
        let now = UnixMillis(1_705_320_000_000);
        let text = String::from_utf8(encode(&Reject::Unauthenticated, None, id, now, true)).unwrap();
        assert!(text.starts_with("HTTP/1.1 401 Unauthorized\r\ndate: Mon, 15 Jan 2024 12:00:00 GMT\r\n"), "{text}");
        assert!(text.contains("www-authenticate: Bearer") && text.contains("connection: close\r\n"), "{text}");
        assert!(text.contains("x-request-id: req_000000010000000000000002\r\n"), "{text}");
    }
}
