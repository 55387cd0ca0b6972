//! Room for bodies: no user, no address and no kind of call can take it from the others.

use serde_json::json;

use super::{CHAT, Desk, OVERLOADED, assert_refused};
use crate::support::http::{self, Conn, request};
use crate::support::{Answer, PASSWORD, chat_body, wait_until};

/// The body decides whether such a call may go.
const BY_MODEL: &str =
    "routes = [{ path = \"/v1/*\", upstream = \"ai\", cost = { conversations = 1 }, models = [\"*\"] }]\n";
const PROXY: &str = "[access]\ntrusted_proxies = [\"127.0.0.1/32\"]\n";

/// A call with 200,000 bytes of body, of which the last does not come.
fn waiting(desk: &Desk, key: &str, address: &str) -> Conn {
    let body = chat_body(json!({"messages": [{"role": "user", "content": "a".repeat(200_000)}]}));
    let bearer = format!("Bearer {key}");
    let bytes = request("POST", CHAT, &[("authorization", &bearer), ("x-forwarded-for", address)], Some(&body));
    let mut conn = Conn::open(desk.app.public);
    let _ = conn.try_send(&bytes[..bytes.len() - 1]);
    conn
}

fn finish(mut conn: Conn) -> Answer {
    conn.send("}");
    conn.read_answer()
}

fn holds(desk: &Desk, calls: usize) {
    wait_until("the bodies are waited for", || desk.app.metric("tollgate_holds_open") == calls as f64);
}

fn nothing_is_left(desk: &Desk) {
    wait_until("all is given back", || {
        let left = ["tollgate_in_flight_bytes", "tollgate_local_in_flight_bytes", "tollgate_in_flight_owners"];
        left.into_iter().all(|name| desk.app.metric(name) == 0.0)
    });
}

#[test]
fn a_user_s_waiting_bytes_have_a_share() {
    let desk = Desk::open(&format!("{BY_MODEL}[limits]\nin_flight_bytes_per_user = 300000\n"));
    let bob = desk.app.register("bob");
    let first = waiting(&desk, &desk.user.key, "");
    holds(&desk, 1);
    // Some of it is in the buffers that every call has.
    wait_until("most of it has come", || desk.app.metric("tollgate_in_flight_bytes") > 200_000.0);
    let refused = waiting(&desk, &desk.user.key, "").read_answer();
    assert_refused(&refused, &OVERLOADED);
    assert!(refused.text().contains("this user's"), "{}", refused.text());
    assert_eq!(desk.app.metric("tollgate_bytes_refused_total{share=\"user\"}"), 1.0);
    holds(&desk, 1);
    assert_eq!(desk.chat().status, 200, "what is short and here at once is not held up");
    holds(&desk, 1);
    let other = waiting(&desk, &bob.key, "");
    holds(&desk, 2);
    for conn in [first, other] {
        assert_eq!(finish(conn).status, 200);
    }
    holds(&desk, 0);
    nothing_is_left(&desk);
    let after = waiting(&desk, &desk.user.key, "");
    assert_eq!(finish(after).status, 200, "the share is free again");
}

#[test]
fn and_those_of_an_address() {
    let desk = Desk::open(&format!("{BY_MODEL}{PROXY}[limits]\nin_flight_bytes_per_address = 300000\n"));
    let bob = desk.app.register("bob");
    for (here, elsewhere) in [("203.0.113.9", "203.0.113.10"), ("2001:db8::1", "2001:db8:0:1::1")] {
        let first = waiting(&desk, &desk.user.key, here);
        holds(&desk, 1);
        wait_until("most of it has come", || desk.app.metric("tollgate_in_flight_bytes") > 200_000.0);
        let neighbour = if here.contains(':') { "2001:db8::2" } else { here };
        let refused = waiting(&desk, &bob.key, neighbour).read_answer();
        assert_refused(&refused, &OVERLOADED);
        assert!(refused.text().contains("this address"), "{}", refused.text());
        holds(&desk, 1);
        let other = waiting(&desk, &bob.key, elsewhere);
        holds(&desk, 2);
        for conn in [first, other] {
            assert_eq!(finish(conn).status, 200);
        }
        holds(&desk, 0);
        nothing_is_left(&desk);
    }
}

fn login(desk: &Desk, address: &str) -> Answer {
    let body = json!({"email": desk.user.email, "password": PASSWORD});
    http::call(desk.app.public, "POST", "/v1/users/login", &[("x-forwarded-for", address)], Some(&body))
}

#[test]
fn bodies_that_are_passed_on_take_no_room_from_logins() {
    let desk = Desk::open(&format!("{BY_MODEL}[limits]\nin_flight_bytes = 1048576\n"));
    let bearer = format!("Bearer {}", desk.user.key);
    let running: Vec<Conn> = (1..=21)
        .map(|nth| {
            let mut conn = Conn::open(desk.app.public);
            let headers = [("authorization", bearer.as_str()), ("x-mock-delay-ms", "3600000")];
            conn.send(request("POST", CHAT, &headers, Some(&chat_body(json!({})))));
            wait_until("the upstream has the call", || desk.app.upstream.stats().open == nth);
            conn
        })
        .collect();
    assert_refused(&desk.chat(), &OVERLOADED);
    let answer = login(&desk, "");
    assert_eq!(answer.status, 200, "{}", answer.text());
    drop(running);
    holds(&desk, 0);
    nothing_is_left(&desk);
}

#[test]
fn nor_do_strangers_bodies_from_calls_or_from_logins_elsewhere() {
    let desk = Desk::open(&format!("{PROXY}[limits]\nlocal_in_flight_bytes = 1048576\n"));
    let begin = |address: &str| {
        let mut conn = Conn::open(desk.app.public);
        conn.send(format!(
            "POST /v1/users/login HTTP/1.1\r\nhost: x\r\nx-forwarded-for: {address}\r\ncontent-length: 100\r\n\r\n{{"
        ));
        conn
    };
    let counted = |bytes: usize| {
        wait_until("the body is waited for", || desk.app.metric("tollgate_local_in_flight_bytes") == bytes as f64);
    };
    let one = 48 << 10;
    // One address has a quarter.
    let mut waiting = Vec::new();
    for nth in 1..=5 {
        waiting.push(begin("203.0.113.9"));
        counted(nth * one);
    }
    let refused = begin("203.0.113.9").read_answer();
    assert_refused(&refused, &OVERLOADED);
    assert!(refused.text().contains("this address"), "{}", refused.text());
    assert_eq!(login(&desk, "203.0.113.10").status, 200);
    // Many addresses have all of it, and calls go on.
    for nth in 6..=21 {
        waiting.push(begin(&format!("198.51.100.{}", nth / 4)));
        counted(nth * one);
    }
    assert_refused(&login(&desk, "203.0.113.10"), &OVERLOADED);
    assert_eq!(desk.chat().status, 200);
    let bearer = format!("Bearer {}", desk.user.key);
    let checked = http::call(desk.app.public, "POST", "/v1/auth/verify-key", &[("authorization", &bearer)], None);
    assert_eq!(checked.status, 200, "{}", checked.text());
    drop(waiting);
    nothing_is_left(&desk);
    assert_eq!(login(&desk, "203.0.113.9").status, 200);
}
