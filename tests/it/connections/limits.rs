//! Limits of one address, and who is closed at once.

use serde_json::json;

use super::open_from;
use crate::support::http::request;
use crate::support::{Answer, Conn, Options, TestApp, TestUser, chat_body, wait_until};

const CHAT: &str = "/v1/chat/completions";

fn chat_bytes(user: &TestUser, headers: &[(&str, &str)]) -> Vec<u8> {
    let bearer = format!("Bearer {}", user.key);
    let all: Vec<_> = std::iter::once(("authorization", bearer.as_str())).chain(headers.iter().copied()).collect();
    request("POST", CHAT, &all, Some(&chat_body(json!({}))))
}

/// A call that stays with the upstream until the connection is dropped.
fn long_call(app: &TestApp, user: &TestUser, mut conn: Conn, headers: &[(&str, &str)]) -> Conn {
    let open = app.upstream.stats().open;
    conn.send(chat_bytes(user, &[&[("x-mock-delay-ms", "3600000")], headers].concat()));
    wait_until("the upstream has the call", || app.upstream.stats().open == open + 1);
    conn
}

fn assert_no_room(conn: &mut Conn, why: &str) {
    let answer = conn.read_answer();
    assert_eq!((answer.status, answer.error_code().as_str()), (503, "OVERLOADED"), "{}", answer.text());
    assert_eq!((answer.header("connection"), answer.header("retry-after")), (Some("close"), Some("1")));
    assert!(answer.text().contains(why), "{}", answer.text());
    assert!(conn.is_closed());
}

fn refused(app: &TestApp, reason: &str) -> f64 {
    app.metric(&format!("tollgate_connections_refused_total{{reason=\"{reason}\"}}"))
}

#[test]
fn one_address_has_its_share_and_its_own_idle_connections_go_first() {
    let app = TestApp::start("[limits]\nconnections_per_address = 3\n");
    let user = app.register("alice");
    wait_until("that connection is gone", || app.metric("tollgate_connections") == 0.0);
    let mut neighbour = open_from([127, 0, 0, 2], app.public);
    let mut idle = Conn::open(app.public);
    wait_until("both are in", || app.metric("tollgate_connections") == 2.0);
    let busy = [(); 2].map(|()| long_call(&app, &user, Conn::open(app.public), &[]));
    // The third is idle, and makes room.
    let third = long_call(&app, &user, Conn::open(app.public), &[]);
    assert!(idle.is_closed());
    assert_no_room(&mut Conn::open(app.public), "from this address");
    assert_eq!((refused(&app, "address"), refused(&app, "full")), (1.0, 0.0));
    assert_eq!(neighbour.call("GET", "/nothing", &[], None).status, 404, "others are not touched");
    assert_eq!(open_from([127, 0, 0, 3], app.public).call("GET", "/nothing", &[], None).status, 404);
    drop((busy, third));
    wait_until("they are gone", || app.metric("tollgate_connection_addresses") == 1.0);
    assert_eq!(app.chat(&user.key, json!({})).status, 200);
}

#[test]
fn what_a_trusted_proxy_brings_counts_for_whom_it_is_for() {
    let app = TestApp::with(Options {
        toml: "[limits]\nconnections_per_address = 2\n[access]\ntrusted_proxies = [\"127.0.0.1/32\"]\n".into(),
        ..Options::default()
    });
    let user = app.register("alice");
    let from = |address: &str| -> Answer {
        let mut conn = Conn::open(app.public);
        conn.send(chat_bytes(&user, &[("x-forwarded-for", address)]));
        conn.read_answer()
    };
    let busy = ["2001:db8::1", "2001:db8::2"]
        .map(|address| long_call(&app, &user, Conn::open(app.public), &[("x-forwarded-for", address)]));
    let over = from("2001:db8::3");
    assert_eq!((over.status, over.error_code().as_str()), (429, "TOO_MANY_IN_FLIGHT"), "{}", over.text());
    assert_eq!(over.header("retry-after"), Some("1"));
    assert_eq!(from("2001:db8:0:1::1").status, 200);
    // The proxy itself has no such limit.
    let many: Vec<Conn> = (0..20).map(|_| Conn::open(app.public)).collect();
    assert_eq!(from("203.0.113.9").status, 200);
    drop((busy, many));
    wait_until("the calls are over", || app.metric("tollgate_connection_addresses") == 0.0);
    assert_eq!(from("2001:db8::3").status, 200);
}

#[test]
fn a_denied_address_is_answered_while_there_is_room_and_closed_when_it_is_scarce() {
    let app = TestApp::start("[limits]\nmax_connections = 5\n[access]\ndeny = [\"127.0.0.9/32\"]\n");
    wait_until("nobody is in", || app.metric("tollgate_connections") == 0.0);
    let get = "GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut denied = open_from([127, 0, 0, 9], app.public);
    denied.send(get);
    assert_eq!(denied.read_answer().error_code(), "ADDRESS_DENIED");
    drop(denied);
    wait_until("nobody is in", || app.metric("tollgate_connections") == 0.0);
    let mut inside: Vec<Conn> =
        [1, 1, 1, 2, 2].into_iter().map(|last| open_from([127, 0, 0, last], app.public)).collect();
    wait_until("all are in", || app.metric("tollgate_connections") == 5.0);
    let mut denied = open_from([127, 0, 0, 9], app.public);
    assert!(denied.is_closed(), "without a word");
    assert_eq!(refused(&app, "denied"), 1.0);
    assert_eq!(inside[0].call("GET", "/nothing", &[], None).status, 404, "and nobody had to leave for it");
    assert_eq!(app.metric("tollgate_connections_evicted_total"), 0.0);
}

#[test]
fn at_the_cap_who_waits_leaves_and_who_works_stays() {
    let app = TestApp::start("[limits]\nmax_connections = 3\nconnections_per_address = 0\n");
    let user = app.register("alice");
    wait_until("nobody is in", || app.metric("tollgate_connections") == 0.0);
    let busy = long_call(&app, &user, Conn::open(app.public), &[]);
    let mut first = Conn::open(app.public);
    wait_until("it is in", || app.metric("tollgate_connections") == 2.0);
    let second = long_call(&app, &user, Conn::open(app.public), &[]);
    let third = long_call(&app, &user, Conn::open(app.public), &[]);
    assert!(first.is_closed());
    assert_no_room(&mut Conn::open(app.public), "Too many connections");
    assert_eq!((refused(&app, "full"), app.metric("tollgate_connections_evicted_total")), (1.0, 1.0));
    drop((busy, second, third));
    wait_until("nobody is in", || app.metric("tollgate_connections") == 0.0);
    assert_eq!(app.chat(&user.key, json!({})).status, 200);
}
