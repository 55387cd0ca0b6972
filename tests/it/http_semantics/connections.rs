//! How connections live: reused, pipelined, closed when asked, and silent until spoken to.

use std::io::Read;
use std::time::Duration;

use serde_json::json;

use super::{app, app_and_key, bytes, filler};
use crate::passing_time::advance;
use crate::support::{Conn, Options, TestApp, chat_body, wait_until};

#[test]
fn requests_in_a_row_share_both_connections() {
    let (app, key) = app_and_key("");
    let bearer = format!("Bearer {key}");
    let mut conn = Conn::open(app.public);
    for _ in 0..20 {
        let answer =
            conn.call("POST", "/v1/chat/completions", &[("authorization", &bearer)], Some(&chat_body(json!({}))));
        assert_eq!(answer.status, 200);
    }
    let stats = app.upstream.stats();
    assert_eq!((stats.total, stats.connections), (20, 1));
    assert_eq!(app.metric("tollgate_connections_total"), 2.0, "this one, and the one that registered");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let (app, key) = app_and_key("");
    let mut conn = Conn::open(app.public);
    let mut all = Vec::new();
    for nth in 0..10 {
        // The first ones take longest, one is refused, and some have no body.
        let delay = (90 - nth * 10).to_string();
        let path = format!("/v1/echo/{nth}");
        all.extend(match nth {
            4 => bytes("pe-nobody", "POST", &path, &[], Some(&json!({}))),
            7 => bytes(&key, "GET", &path, &[], None),
            _ => bytes(&key, "POST", &path, &[("x-mock-delay-ms", &delay)], Some(&json!({"nth": nth}))),
        });
    }
    conn.send(&all);
    for nth in 0..10 {
        let answer = conn.read_answer();
        assert_eq!(answer.status, if nth == 4 { 401 } else { 200 }, "{nth}");
        assert!(nth == 4 || answer.text().contains(&format!("/v1/echo/{nth}")), "{nth}: {}", answer.text());
    }
    assert_eq!(app.upstream.stats().connections, 1);
}

#[test]
fn pipelined_requests_may_come_in_any_pieces() {
    let (app, key) = app_and_key("");
    let mut conn = Conn::open(app.public);
    let one = bytes(&key, "POST", "/v1/echo", &[], Some(&json!({"text": "x".repeat(50)})));
    let all = one.repeat(5);
    for piece in all.chunks(7) {
        conn.send(piece);
    }
    for _ in 0..5 {
        assert_eq!(conn.read_answer().status, 200);
    }
    assert_eq!(app.upstream.stats().total, 5);
}

#[test]
fn a_connection_that_is_asked_to_close_closes_after_the_answer() {
    let (app, key) = app_and_key("");
    let mut conn = Conn::open(app.public);
    conn.send(bytes(&key, "GET", "/v1/models", &[("connection", "close")], None));
    let answer = conn.read_answer();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert!(conn.is_closed());
    assert!(app.upstream.last_request().unwrap().header("connection").is_none(), "that was for this hop alone");
}

/// A client that connects early and asks late is idle, not slow.
#[test]
fn a_connection_may_be_silent_before_its_first_request() {
    let app = TestApp::with(Options {
        toml: "[limits]\nheader_timeout = \"10s\"\nidle_timeout = \"75s\"\n".into(),
        manual_clock: Some("2026-01-15T12:00:00Z"),
        ..Options::default()
    });
    let mut conn = Conn::open(app.public);
    wait_until("it is accepted", || app.metric("tollgate_connections") == 1.0);
    advance(&app, Duration::from_secs(60));
    assert_eq!(conn.call("GET", "/nothing", &[], None).status, 404);
}

#[test]
fn clients_of_http_1_0_are_served_as_they_expect() {
    let (app, key) = app_and_key("");
    let line = |extra: &str| format!("GET /v1/echo HTTP/1.0\r\nauthorization: Bearer {key}\r\n{extra}\r\n");
    let mut conn = Conn::open(app.public);
    conn.send(line(""));
    let answer = conn.read_answer();
    assert!(answer.status == 200 && answer.header("content-length").is_some());
    assert!(conn.is_closed());

    let mut conn = Conn::open(app.public);
    for _ in 0..3 {
        conn.send(line("connection: keep-alive\r\n"));
        let answer = conn.read_answer();
        assert_eq!((answer.status, answer.header("connection")), (200, Some("keep-alive")));
    }
    // A body of unknown length ends with the connection: they know no chunks.
    conn.send(line("connection: keep-alive\r\nx-mock-body-bytes: 100000\r\nx-mock-chunked: 1\r\n"));
    let answer = conn.read_answer();
    assert_eq!((answer.header("transfer-encoding"), answer.header("content-length")), (None, None));
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(answer.body, filler(100_000));
}

#[test]
fn the_gateway_says_nothing_until_it_is_asked() {
    let app = app("");
    let conn = Conn::open(app.public);
    wait_until("it is accepted", || app.metric("tollgate_connections") == 1.0);
    conn.stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut stream = &conn.stream;
    let read = stream.read(&mut [0; 1]);
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}
