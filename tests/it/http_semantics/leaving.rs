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
        // Whether the sound part still arrives depends on how the bytes were cut; a clean end must not.
        assert!(conn.read_answer_to(false).is_err(), "{bad:?}");
    }
}
