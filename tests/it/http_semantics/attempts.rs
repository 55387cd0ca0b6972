//! Attempts: which endpoint, how often, how long, and what may be repeated.

use std::net::TcpListener;
use std::time::Duration;

use serde_json::json;

use super::{PLENTY, app, app_and_key, bytes, filler, send};
use crate::fake_upstream::FakeUpstream;
use crate::passing_time::advance;
use crate::support::{Conn, Options, TestApp, wait_until};

/// An address on which nobody listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[test]
fn an_upstream_that_cannot_be_reached_is_502_and_costs_nothing() {
    let app = app(&format!("[[upstreams]]\nname = \"ai\"\nendpoints = [\"{}\"]\n", nobody()));
    let user = app.register("alice");
    for method in ["GET", "POST"] {
        let mut conn = Conn::open(app.public);
        conn.send(bytes(&user.key, method, "/v1/x", &[], Some(&json!({}))));
        let answer = conn.read_answer_to(false).expect("an answer within a bounded number of attempts");
        assert_eq!((answer.status, answer.error_code().as_str()), (502, "UPSTREAM_UNREACHABLE"));
    }
    let token = app.admin_token();
    assert_eq!(app.balance(&token, user.id, "conversations"), 1_000_000.0);
    assert!(app.metric("tollgate_upstream_retries_total") <= 4.0, "two further attempts a call by default");
}

#[test]
fn when_one_endpoint_refuses_connections_another_serves() {
    let good = FakeUpstream::always("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let endpoints = format!("\"{}\", \"http://{}\"", nobody(), good.addr);
    let app = app(&format!("[[upstreams]]\nname = \"ai\"\nendpoints = [{endpoints}]\neject_after = 0\n"));
    let key = app.register("alice").key;
    for _ in 0..20 {
        assert_eq!(app.call("POST", "/v1/x", &key, Some(&json!({}))).status, 200);
    }
    assert!(app.metric("tollgate_upstream_retries_total") > 0.0);
    // Also with a body that has not been read to its end: nothing of it has been sent anywhere.
    for nth in 0..10 {
        let mut conn = Conn::open(app.public);
        conn.send(format!(
            "POST /v1/x HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: 100000\r\n\r\n"
        ));
        conn.send(filler(50_000));
        wait_until("the call has reached an endpoint or was refused", || {
            good.requests() > 20 + nth || has_input(&conn)
        });
        let _ = conn.try_send(filler(50_000));
        assert_eq!(conn.read_answer().status, 200, "upload {nth}");
    }
}

fn has_input(conn: &Conn) -> bool {
    conn.stream.set_nonblocking(true).unwrap();
    let peeked = conn.stream.peek(&mut [0; 1]);
    conn.stream.set_nonblocking(false).unwrap();
    peeked.is_ok()
}

/// Answers the first request of each connection and leaves at the second without a word: a pooled connection that turns
/// out to be stale only when it is used.
fn stale_at_second_use() -> FakeUpstream {
    FakeUpstream::start(|wire| {
        if wire.read_request().is_some() {
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
            wire.read_request();
        }
    })
}

#[test]
fn a_call_that_may_be_repeated_survives_a_stale_connection() {
    let fake = stale_at_second_use();
    let (app, key) = app_and_key(&fake.config(""));
    for (method, headers) in [("GET", &[][..]), ("GET", &[]), ("PUT", &[]), ("POST", &[("idempotency-key", "k1")][..])]
    {
        assert_eq!(send(&app, &key, method, "/v1/x", headers, Some(&json!({}))).status, 200, "{method}");
    }
    assert!(app.metric("tollgate_upstream_retries_total") >= 2.0);
}

#[test]
fn a_call_that_was_sent_and_may_have_effects_is_not_repeated() {
    let fake = stale_at_second_use();
    let app = app(&fake.config(""));
    let user = app.register("alice");
    assert_eq!(send(&app, &user.key, "GET", "/v1/x", &[], None).status, 200);
    assert_eq!(app.call("POST", "/v1/x", &user.key, Some(&json!({"once": true}))).status, 502);
    assert_eq!(fake.requests(), 2, "the POST was sent once");
    assert_eq!(app.metric("tollgate_upstream_retries_total"), 0.0);
    let token = app.admin_token();
    assert_eq!(app.balance(&token, user.id, "conversations"), 999_999.0, "only the GET is paid");
}

#[test]
fn a_pooled_connection_that_the_upstream_closed_is_not_used() {
    let fake = FakeUpstream::once_each("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let (app, key) = app_and_key(&fake.config(""));
    for nth in 0..10 {
        assert_eq!(app.call("POST", "/v1/x", &key, Some(&json!({}))).status, 200, "{nth}");
        fake.wait_until_all_ended();
        wait_until("the gateway is done with it as well", || app.metric("tollgate_in_flight") == 0.0);
    }
}

#[test]
fn a_slow_upstream_gets_504_and_nothing_is_due() {
    let fake = FakeUpstream::start(|wire| wire.drain());
    let app = TestApp::with(Options {
        toml: format!("{PLENTY}{}", fake.config("first_byte_timeout = \"30s\"")),
        manual_clock: Some("2026-01-15T12:00:00Z"),
        ..Options::default()
    });
    let user = app.register("alice");
    let mut conn = Conn::open(app.public);
    conn.send(bytes(&user.key, "POST", "/v1/x", &[], Some(&json!({"wait": 1}))));
    wait_until("the upstream has the call", || fake.heard(0).contains("wait"));
    advance(&app, Duration::from_secs(29));
    assert_eq!(app.metric("tollgate_in_flight"), 1.0);
    advance(&app, Duration::from_secs(2));
    let answer = conn.read_answer();
    assert_eq!((answer.status, answer.error_code().as_str()), (504, "UPSTREAM_TIMEOUT"));
    fake.wait_until_all_ended();
    let token = app.admin_token();
    assert_eq!(app.balance(&token, user.id, "conversations"), 1_000_000.0);
}

#[test]
fn an_answer_that_falls_silent_or_never_ends_is_cut() {
    for (more, steps) in [("idle_timeout = \"30s\"", 1), ("idle_timeout = \"1h\"\ntotal_timeout = \"50s\"", 2)] {
        let fake = FakeUpstream::start(|wire| {
            wire.read_request();
            wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n");
            wire.drain();
        });
        let app = TestApp::with(Options {
            toml: format!("{PLENTY}{}", fake.config(more)),
            manual_clock: Some("2026-01-15T12:00:00Z"),
            ..Options::default()
        });
        let key = app.register("alice").key;
        let mut conn = Conn::open(app.public);
        conn.send(bytes(&key, "GET", "/v1/x", &[], None));
        assert_eq!(conn.read_head().unwrap().status, 200);
        assert_eq!(conn.read_chunk().unwrap(), b"hello");
        wait_until("the call is cut", || {
            advance(&app, Duration::from_secs(31));
            app.metric("tollgate_in_flight") == 0.0
        });
        assert!(conn.read_chunk().is_err(), "{more}, {steps}: no clean end");
        fake.wait_until_all_ended();
        assert_eq!(app.metric("tollgate_holds_open"), 0.0);
    }
}

fn healthy(app: &TestApp, endpoint: &str) -> f64 {
    let endpoint = endpoint.trim_start_matches("http://");
    app.metric(&format!("tollgate_upstream_healthy{{upstream=\"ai\",endpoint=\"{endpoint}\"}}"))
}

#[test]
fn an_endpoint_that_keeps_failing_is_left_alone_for_a_while() {
    let good = FakeUpstream::always("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let bad = FakeUpstream::always("HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n");
    let app = TestApp::with(Options {
        toml: format!(
            "{PLENTY}[[upstreams]]\nname = \"ai\"\nendpoints = [\"http://{}\", \"http://{}\"]\neject_after = 3\neject_time = \"10s\"\n",
            bad.addr, good.addr
        ),
        manual_clock: Some("2026-01-15T12:00:00Z"),
        ..Options::default()
    });
    let key = app.register("alice").key;
    let call = || app.call("POST", "/v1/x", &key, Some(&json!({}))).status;
    wait_until("the bad one is ejected", || {
        call();
        healthy(&app, &bad.addr.to_string()) == 0.0
    });
    assert_eq!(bad.requests(), 3);
    for _ in 0..50 {
        assert_eq!(call(), 200);
    }
    assert_eq!(bad.requests(), 3);
    advance(&app, Duration::from_secs(11));
    assert_eq!(healthy(&app, &bad.addr.to_string()), 1.0);
    wait_until("it gets another chance", || {
        call();
        bad.requests() > 3
    });
}

#[test]
fn an_endpoint_that_fails_its_health_check_gets_no_calls_until_the_check_passes_or_is_dropped() {
    let well = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let says = well.clone();
    let checked = FakeUpstream::start(move |wire| {
        while let Some(head) = wire.read_request() {
            let ok = says.load(std::sync::atomic::Ordering::Acquire) || !head.starts_with("GET /healthz ");
            wire.send(if ok {
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
            } else {
                "HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"
            });
        }
    });
    let other = FakeUpstream::start(|wire| {
        while wire.read_request().is_some() {
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nother");
        }
    });
    let config = |health: &str| {
        format!(
            "[[upstreams]]\nname = \"ai\"\nendpoints = [\"http://{}\", \"http://{}\"]\n{health}",
            checked.addr, other.addr
        )
    };
    let mut app = app(&config("health_path = \"/healthz\"\nhealth_interval = \"20ms\"\n"));
    let key = app.register("alice").key;
    let address = checked.addr.to_string();
    wait_until("the check has failed", || healthy(&app, &address) == 0.0);
    for _ in 0..20 {
        assert_eq!(app.call("POST", "/v1/x", &key, Some(&json!({}))).text(), "other");
    }
    well.store(true, std::sync::atomic::Ordering::Release);
    wait_until("the check has passed", || healthy(&app, &address) == 1.0);
    wait_until("it gets calls", || app.call("POST", "/v1/x", &key, Some(&json!({}))).text() == "ok");
    well.store(false, std::sync::atomic::Ordering::Release);
    wait_until("the check has failed again", || healthy(&app, &address) == 0.0);
    app.reload(&format!("{PLENTY}{}", config("")));
    wait_until("without a check, calls alone decide", || healthy(&app, &address) == 1.0);
}
