//! 502 and 504: nobody answered, so nothing is charged.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use socket2::{Domain, Socket, Type};

use super::{CHAT, Desk, Row, assert_refused, row};
use crate::support::http::{Conn, request};
use crate::support::{Options, wait_until};

const UNREACHABLE: Row = row(502, "UPSTREAM_UNREACHABLE", "server_error");
const TIMEOUT: Row = row(504, "UPSTREAM_TIMEOUT", "server_error");

/// A port that is taken and where nobody listens.
fn nobody() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

#[test]
fn an_upstream_that_nobody_can_reach() {
    let (_socket, address) = nobody();
    let routes = "routes = [\
        { path = \"/v1/gone/*\", upstream = \"gone\", cost = { conversations = 1 } },\
        { path = \"/v1/*\", upstream = \"ai\", cost = { conversations = 1 } }]\n";
    let mut desk = Desk::open("");
    let limits = "[limits]\nper_ip_per_minute = 30\nper_key_per_minute = 30\nper_user_per_minute = 30\n";
    let ai = desk.app.upstream.addr();
    let upstreams = format!(
        "upstreams = [{{ name = \"ai\", endpoints = [\"http://{ai}\"] }}, \
         {{ name = \"gone\", endpoints = [\"http://{address}\"] }}]\n"
    );
    desk.app.reload(&format!("{upstreams}{routes}{limits}"));
    // More often than it takes to eject an endpoint: an ejected one is unreachable just the same.
    for _ in 0..8 {
        let answer = desk.costs_nothing(|desk| desk.app.call("POST", "/v1/gone/x", &desk.user.key, Some(&json!({}))));
        assert_refused(&answer, &UNREACHABLE);
    }
    assert!(!desk.app.call("POST", "/v1/gone/x", &desk.user.key, None).text().contains(&address.to_string()));
}

#[test]
fn an_upstream_that_hangs_up_without_a_word() {
    let desk = Desk::open("");
    let before = desk.conversations();
    let bearer = format!("Bearer {}", desk.user.key);
    let answer = desk.chat_with(&[("authorization", &bearer), ("x-mock-abort-after-bytes", "0")]);
    assert_refused(&answer, &UNREACHABLE);
    assert_eq!(desk.app.upstream.stats().total, 1, "what may have been carried out is not tried twice");
    assert_eq!(desk.conversations(), before);
    crate::support::wait_until("all is given back", || desk.app.metric("tollgate_holds_open") == 0.0);
}

#[test]
fn an_upstream_that_takes_too_long() {
    let desk = Desk::with(Options {
        route: "first_byte_timeout = \"5s\"\nretries = 0\n[[routes]]\npath = \"/v1/*\"\nupstream = \"ai\"\ncost = { conversations = 1 }\n",
        ..Options::default()
    });
    let before = desk.conversations();
    let bearer = format!("Bearer {}", desk.user.key);
    let mut conn = Conn::open(desk.app.public);
    let headers = [("authorization", bearer.as_str()), ("x-mock-delay-ms", "3600000")];
    conn.send(request("POST", CHAT, &headers, Some(&crate::support::chat_body(json!({})))));
    let waiting = std::thread::spawn(move || conn.read_answer());
    wait_until("the upstream has the call", || desk.app.upstream.stats().open == 1);
    wait_until("the gateway gives up", || {
        // Again and again: the limit is counted from when the gateway has sent the last byte, which may be just now.
        desk.clock().advance(Duration::from_secs(5));
        waiting.is_finished()
    });
    assert_refused(&waiting.join().unwrap(), &TIMEOUT);
    wait_until("the upstream's call is broken off", || desk.app.upstream.stats().open == 0);
    assert_eq!(desk.conversations(), before);
    crate::support::wait_until("all is given back", || desk.app.metric("tollgate_holds_open") == 0.0);
}
