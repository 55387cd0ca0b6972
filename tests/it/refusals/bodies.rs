//! 400 for what cannot be read in one way only, 413 for what is too much.

use serde_json::json;

use super::{BAD_REQUEST, CHAT, Desk, Row, assert_refused, row};
use crate::support::http::{self, Conn, request};
use crate::support::{Answer, wait_until};

const TOO_LARGE: Row = row(413, "BODY_TOO_LARGE", "invalid_request_error");
const MODELS: &str =
    "routes = [{ path = \"/v1/*\", upstream = \"ai\", cost = { conversations = 1 }, models = [\"gpt-4*\"] }]\n";

/// Sends a request with these header lines and this body as they are.
fn raw(desk: &Desk, lines: &str, body: &str) -> (Conn, Answer) {
    let mut conn = Conn::open(desk.app.public);
    let key = &desk.user.key;
    conn.send(format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n{lines}\r\n{body}"));
    let answer = conn.read_answer();
    (conn, answer)
}

#[test]
fn ambiguous_framing() {
    let desk = Desk::open("");
    for lines in [
        "content-length: 2\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 2\r\n",
        "content-length: 2\r\ncontent-length: 3\r\n",
        "content-length: 2\r\ncontent-length: 2\r\n",
        "content-length: 2, 2\r\n",
        "content-length: +2\r\n",
        "transfer-encoding: chunked, chunked\r\n",
        "transfer-encoding: identity\r\n",
        "transfer-encoding : chunked\r\n",
        "content-length: 2\nx: y\r\n",
    ] {
        let answer = desk.costs_nothing(|desk| {
            let (mut conn, answer) = raw(desk, lines, "{}GET /v1/smuggled HTTP/1.1\r\nhost: x\r\n\r\n");
            assert_eq!(answer.header("connection"), Some("close"), "{lines}");
            assert!(conn.is_closed(), "nothing after it is read: {lines}");
            answer
        });
        assert_refused(&answer, &BAD_REQUEST);
    }
}

#[test]
fn json_that_a_route_must_read_and_cannot() {
    let desk = Desk::open(MODELS);
    for body in ["{\"model\": \"gpt-4o\"", "not json", "[\"gpt-4o\"]", "{\"model\": \"gpt-4o\", \"model\": \"o9\"}"] {
        let lines = format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
        assert_refused(&desk.costs_nothing(|desk| raw(desk, &lines, body).1), &BAD_REQUEST);
    }
}

#[test]
fn broken_chunks() {
    let desk = Desk::open(MODELS);
    for body in ["zz\r\n{}\r\n0\r\n\r\n", "2\r\n{}garbage", "-2\r\n{}\r\n0\r\n\r\n"] {
        let answer = desk.costs_nothing(|desk| raw(desk, "transfer-encoding: chunked\r\n", body).1);
        assert_refused(&answer, &BAD_REQUEST);
    }
}

#[test]
fn a_path_that_climbs() {
    let desk = Desk::open("");
    let bearer = format!("Bearer {}", desk.user.key);
    for path in ["/v1/../v1/admin-panel/users", "/v1/%2e%2e/x", "/v1/x/..%2fy"] {
        let call = |desk: &Desk| http::call(desk.app.public, "GET", path, &[("authorization", &bearer)], None);
        assert_refused(&desk.costs_nothing(call), &BAD_REQUEST);
    }
}

#[test]
fn a_body_over_the_limit_by_its_content_length() {
    let desk = Desk::open("[limits]\nmax_body_bytes = 1000\n");
    let mut conn_closed = false;
    let answer = desk.costs_nothing(|desk| {
        // The body never comes: its length is enough.
        let (mut conn, answer) = raw(desk, "content-length: 1001\r\n", "");
        conn_closed = answer.header("connection") == Some("close");
        drop(conn.try_send("x"));
        answer
    });
    assert_refused(&answer, &TOO_LARGE);
    assert!(conn_closed, "what would follow is the body that nobody wants");
}

#[test]
fn a_chunked_body_over_the_limit_that_is_there_at_once() {
    let desk = Desk::open("[limits]\nmax_body_bytes = 1000\n");
    let chunk = format!("258\r\n{}\r\n", "a".repeat(600));
    let body = format!("{chunk}{chunk}0\r\n\r\n");
    let answer = desk.costs_nothing(|desk| raw(desk, "transfer-encoding: chunked\r\n", &body).1);
    assert_refused(&answer, &TOO_LARGE);
}

#[test]
fn a_chunked_body_that_grows_over_the_limit_on_its_way() {
    let desk = Desk::open("[limits]\nmax_body_bytes = 1000\n");
    let before = desk.conversations();
    let chunk = format!("258\r\n{}\r\n", "a".repeat(600));
    let mut conn = Conn::open(desk.app.public);
    let key = &desk.user.key;
    conn.send(format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ntransfer-encoding: chunked\r\n\r\n{chunk}"
    ));
    wait_until("the first chunk is on its way", || desk.app.upstream.stats().open == 1);
    conn.send(&chunk);
    assert_refused(&conn.read_answer(), &TOO_LARGE);
    wait_until("the upstream's call is broken off", || desk.app.upstream.stats().open == 0);
    assert_eq!(desk.app.upstream.stats().aborted, 1, "the upstream never saw a whole request");
    assert_eq!(desk.conversations(), before);
}

#[test]
fn a_body_that_must_be_read_ahead_and_is_over_that_limit() {
    let desk = Desk::open(&format!("{MODELS}[limits]\nmax_inspect_bytes = 1000\n"));
    let body = json!({"model": "gpt-4o", "messages": [{"role": "user", "content": "a".repeat(40_000)}]});
    let bearer = format!("Bearer {}", desk.user.key);
    let answer = desk.costs_nothing(|desk| {
        let mut conn = Conn::open(desk.app.public);
        conn.send(request("POST", CHAT, &[("authorization", &bearer)], Some(&body)));
        conn.read_answer()
    });
    assert_refused(&answer, &TOO_LARGE);
}
