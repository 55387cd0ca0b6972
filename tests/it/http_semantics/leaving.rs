//! Clients that leave and answers that break off: neither is taken for an end.

use serde_json::json;

use super::{app, app_and_key, bytes};
use crate::fake_upstream::FakeUpstream;
use crate::support::{Conn, chat_body, wait_until};

#[test]
fn a_client_that_leaves_before_the_answer_cancels_the_upstream_call() {
    let app = app("");
    let user = app.register("alice");
    let mut conn = Conn::open(app.public);
    conn.send(bytes(
        &user.key,
        "POST",
        "/v1/chat/completions",
        &[("x-mock-delay-ms", "60000")],
        Some(&chat_body(json!({}))),
    ));
    wait_until("the upstream has the call", || app.upstream.stats().open == 1);
    drop(conn);
    wait_until("the upstream call is cancelled", || app.upstream.stats().aborted == 1);
    wait_until("the hold is settled", || app.metric("tollgate_holds_open") == 0.0);
    assert_eq!(app.metric("tollgate_in_flight"), 0.0);
    let token = app.admin_token();
    assert_eq!(app.balance(&token, user.id, "conversations"), 1_000_000.0, "nothing came, nothing is due");
}

#[test]
fn a_client_that_leaves_in_mid_stream_cancels_the_rest() {
    let app = app("");
    let user = app.register("alice");
    let mut conn = Conn::open(app.public);
    let headers = [("x-mock-chunk-delay-ms", "50"), ("x-mock-tokens", "2000")];
    conn.send(bytes(&user.key, "POST", "/v1/chat/completions", &headers, Some(&chat_body(json!({"stream": true})))));
    assert_eq!(conn.read_head().unwrap().status, 200);
    assert!(!conn.read_chunk().unwrap().is_empty());
    drop(conn);
    wait_until("the upstream call is cancelled", || app.upstream.stats().aborted == 1);
    wait_until("the hold is settled", || app.metric("tollgate_holds_open") == 0.0);
    let token = app.admin_token();
    assert_eq!(app.balance(&token, user.id, "conversations"), 999_999.0, "what was produced is paid");
}

#[test]
fn an_answer_that_breaks_off_does_not_look_whole() {
    let (app, key) = app_and_key("");
    for headers in [
        &[("x-mock-body-bytes", "1000000"), ("x-mock-abort-after-bytes", "500000")][..],
        &[("x-mock-body-bytes", "1000000"), ("x-mock-abort-after-bytes", "500000"), ("x-mock-chunked", "1")],
    ] {
        let mut conn = Conn::open(app.public);
        conn.send(bytes(&key, "GET", "/v1/big", headers, None));
        let whole = conn.read_answer_to(false);
        assert!(whole.is_err(), "{headers:?}: {} bytes looked whole", whole.unwrap().body.len());
    }
    let mut conn = Conn::open(app.public);
    let headers = [("x-mock-abort-after-bytes", "900"), ("x-mock-chunk-delay-ms", "1"), ("x-mock-tokens", "100")];
    conn.send(bytes(&key, "POST", "/v1/chat/completions", &headers, Some(&chat_body(json!({"stream": true})))));
    assert!(conn.read_answer_to(false).is_err(), "a stream that breaks off does not end as streams do");
    assert_eq!(app.metric("tollgate_requests_total{route=\"/v1/*\",outcome=\"upstream_cut\"}"), 3.0);
    assert_eq!(app.metric("tollgate_holds_open"), 0.0);
}

#[test]
fn a_chunked_answer_that_turns_bad_is_cut() {
    for bad in ["zz\r\nhello\r\n", "5\nhello", "3\r\nhello\r\n0\r\n\r\n"] {
        let fake = FakeUpstream::once_each(format!(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nsound\r\n{bad}"
        ));
        let (app, key) = app_and_key(&fake.config(""));
        let mut conn = Conn::open(app.public);
        conn.send(bytes(&key, "GET", "/v1/x", &[], None));
        // The sound part still arrives; a clean end must not.
        assert_eq!(conn.read_head().unwrap().status, 200);
        assert_eq!(conn.read_chunk().unwrap(), b"sound");
        while conn.read_chunk().is_ok_and(|chunk| {
            assert!(!chunk.is_empty(), "{bad:?} ends well");
            true
        }) {}
    }
}

/// More than is kept of what a client sends ahead of its time, and more than one read brings.
fn sent_ahead() -> Vec<u8> {
    [b"GET /v1/next HTTP/1.1\r\nhost: x\r\nx-filler: ".as_slice(), &[b'a'; 100 << 10]].concat()
}

#[test]
fn a_client_that_sent_much_ahead_and_left_is_noticed() {
    let app = app("");
    let user = app.register("alice");
    let mut conn = Conn::open(app.public);
    conn.send(bytes(&user.key, "GET", "/v1/x", &[("x-mock-delay-ms", "3600000")], None));
    wait_until("the upstream has the call", || app.upstream.stats().open == 1);
    conn.send(sent_ahead());
    drop(conn);
    wait_until("the upstream call is cancelled", || app.upstream.stats().aborted == 1);
    wait_until("the hold is settled", || app.metric("tollgate_holds_open") == 0.0);
    // Nor does it matter when they leave.
    let mut conn = Conn::open(app.public);
    conn.send([bytes(&user.key, "GET", "/v1/x", &[("x-mock-delay-ms", "3600000")], None), sent_ahead()].concat());
    wait_until("the upstream has the call", || app.upstream.stats().open == 1);
    conn.close_write();
    wait_until("the upstream call is cancelled", || app.upstream.stats().aborted == 2);
}

#[test]
fn what_was_sent_ahead_is_answered_when_its_turn_comes() {
    let (go, told) = std::sync::mpsc::channel::<()>();
    let told = std::sync::Mutex::new(told);
    let fake = FakeUpstream::start(move |wire| {
        let mut first = wire.number == 0;
        while wire.read_request().is_some() {
            if std::mem::take(&mut first) {
                told.lock().unwrap().recv().unwrap();
            }
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        }
    });
    let (app, key) = app_and_key(&fake.config(""));
    let call = bytes(&key, "GET", "/v1/x", &[("x-filler", &"a".repeat(1000))], None);
    let calls = 100;
    let mut conn = Conn::open(app.public);
    conn.send(&call);
    wait_until("the upstream has the first", || fake.requests() == 1);
    conn.send(call.repeat(calls));
    go.send(()).unwrap();
    for nth in 0..=calls {
        assert_eq!(conn.read_answer().text(), "ok", "{nth}");
    }
}
