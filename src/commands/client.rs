//! A small HTTP client for our own side port and demo: one request, one connection, the whole answer.

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// An answer, whole.
pub struct Answer {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The message of an error body, or its status.
    pub fn message(&self) -> String {
        match self.json()["message"].as_str() {
            Some(message) => message.to_owned(),
            None => format!("status {}", self.status),
        }
    }
}

/// # Errors
/// Nobody answers, or not in HTTP.
pub async fn call(
    to: SocketAddr,
    method: &str,
    path: &str,
    bearer: Option<&str>,
    body: Option<Value>,
) -> io::Result<Answer> {
    let body = body.map(|value| ("application/json", value.to_string()));
    whole(send(to, method, path, bearer, body).await?).await
}

/// Posts text, a JSON object a line.
///
/// # Errors
/// As [`call`].
pub async fn send_text(to: SocketAddr, path: &str, bearer: &str, text: String) -> io::Result<Answer> {
    whole(send(to, "POST", path, Some(bearer), Some(("application/x-ndjson", text))).await?).await
}

async fn whole(response: http::Response<hyper::body::Incoming>) -> io::Result<Answer> {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
}

/// Gets something large: a good answer goes to `sink` piece by piece, and what is returned has no body.
///
/// # Errors
/// As [`call`]'s; the answer broke off; or `sink`'s.
pub async fn download(
    to: SocketAddr,
    path: &str,
    bearer: &str,
    mut sink: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<Answer> {
    let response = send(to, "GET", path, Some(bearer), None).await?;
    let (parts, mut body) = response.into_parts();
    let good = parts.status.is_success();
    let mut rest = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(io::Error::other)?;
        match frame.data_ref() {
            Some(bytes) if good => sink(bytes)?,
            Some(bytes) => rest.extend_from_slice(bytes),
            None => {}
        }
    }
    Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body: rest.into() })
}

async fn send(
    to: SocketAddr,
    method: &str,
    path: &str,
    bearer: Option<&str>,
    body: Option<(&str, String)>,
) -> io::Result<http::Response<hyper::body::Incoming>> {
    let stream = TcpStream::connect(to).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // It ends with the answer's body.
    tokio::spawn(connection);
    let mut request = http::Request::builder().method(method).uri(path).header("host", to.to_string());
    if let Some(token) = bearer {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let mut text = String::new();
    if let Some((content_type, body)) = body {
        request = request.header("content-type", content_type);
        text = body;
    }
    let request = request.body(Full::new(Bytes::from(text))).map_err(io::Error::other)?;
    sender.send_request(request).await.map_err(io::Error::other)
}
