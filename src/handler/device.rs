//! How a known device is told and shown again: a cookie for browsers, a header for other clients.
//!
//! Owns the names of both. Never decides whether a device is known; see [`crate::accounts::devices`].

use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;

use crate::accounts::devices::{DeviceView, TEXT_BYTES};
use crate::clock::UnixMillis;

/// `__Host-`: a browser takes it over TLS alone, for this host alone, and shows it to no other.
const COOKIE: &str = "__Host-tollgate-device";
const HEADER: &str = "x-tollgate-device";

/// What a client shows of itself, if it could be ours.
pub fn shown(headers: &HeaderMap) -> Option<String> {
    let fits = |text: &&str| text.len() <= TEXT_BYTES;
    let named = headers.get(HEADER).and_then(|value| value.to_str().ok()).map(str::trim);
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pairs = cookies.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let cookie = pairs.filter(|(name, _)| *name == COOKIE).map(|(_, value)| value.trim()).next();
    named.or(cookie).filter(fits).map(str::to_owned)
}

/// Adds what the client is to keep to an answer.
pub fn remember(mut answer: Response, device: Option<&DeviceView>, now: UnixMillis) -> Response {
    let Some(device) = device else { return answer };
    let text = device.token.expose();
    let seconds = device.expires_at.0.saturating_sub(now.0).div_ceil(1000);
    let cookie = format!("{COOKIE}={text}; Path=/; Max-Age={seconds}; Secure; HttpOnly; SameSite=Lax");
    if let (Ok(cookie), Ok(text)) = (HeaderValue::from_str(&cookie), HeaderValue::from_str(text)) {
        answer.headers_mut().append(header::SET_COOKIE, cookie);
        answer.headers_mut().insert(HEADER, text);
    }
    answer
}
