//! An answer after which the connection ends says so (RFC 9112, 9.6), and one that does not say so leaves it open.

use serde_json::json;

use super::{MIB, app_and_key, bytes};
use crate::fake_upstream::FakeUpstream;
use crate::support::http::request;
use crate::support::{Answer, Conn, TestApp, chat_body};

/// Holds the connection to what its last answer said.
#[track_caller]
fn assert_kept_word(conn: &mut Conn, answer: &Answer, closes: bool) {
    assert_eq!(answer.header("connection"), closes.then_some("close"), "{} {}", answer.status, answer.text());
    if closes {
        assert!(conn.is_closed());
    } else {
        assert_eq!(conn.call("GET", "/nothing", &[], None).status, 404, "the connection goes on");
    }
}

#[test]
fn the_last_answer_that_a_connection_may_have() {
    let (app, key) = app_and_key("[limits]\nmax_requests_per_connection = 3\n");
    let bearer = format!("Bearer {key}");
    let auth = [("authorization", bearer.as_str())];
    let login = json!({"email": "alice@example.com", "password": "wrong"});
    let lasts = [
        request("GET", "/v1/models", &auth, None),
        request("POST", "/v1/chat/completions", &auth, Some(&chat_body(json!({"stream": true})))),
        request("GET", "/nothing", &[], None),
        request("POST", "/v1/users/login", &[], Some(&login)),
        request("POST", "/v1/auth/verify-key", &auth, None),
        request("GET", "/v1/auth/forward", &auth, None),
    ];
    for last in lasts {
        let mut conn = Conn::open(app.public);
        for _ in 0..2 {
            assert_eq!(conn.call("GET", "/nothing", &[], None).header("connection"), None);
        }
        conn.send(&last);
        let answer = conn.read_answer();
        assert_kept_word(&mut conn, &answer, true);
    }
}

#[test]
fn refusals_of_what_cannot_be_received_and_of_what_can() {
    let app = TestApp::start("");
    let small = "POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello".to_owned();
    let large = format!("POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\nhello", MIB);
    let endless = "POST /v1/x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n".to_owned();
    let broken = "POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: x\r\n\r\n".to_owned();
    let old = "GET /nothing HTTP/1.0\r\n\r\n".to_owned();
    for (sent, closes) in [(small, false), (large, true), (endless, true), (broken, true), (old, true)] {
        let mut conn = Conn::open(app.public);
        conn.send(&sent);
        let answer = conn.read_answer();
        assert_kept_word(&mut conn, &answer, closes);
    }
}

#[test]
fn a_check_with_more_of_a_body_than_anybody_reads() {
    let (app, key) = app_and_key("");
    for (framing, closes) in [("content-length: 5", false), ("content-length: 1000000", true)] {
        let mut conn = Conn::open(app.public);
        conn.send(format!(
            "GET /v1/auth/forward HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n{framing}\r\n\r\nhello"
        ));
        let answer = conn.read_answer();
        assert_eq!(answer.status, 200);
        assert_kept_word(&mut conn, &answer, closes);
    }
}

/// The upstream has heard enough before the client has said everything.
#[test]
fn an_answer_before_the_request_is_whole() {
    let fake = FakeUpstream::start(|wire| {
        if wire.read_until("first") {
            wire.send("HTTP/1.1 413 Enough\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno");
        }
    });
    let (app, key) = app_and_key(&fake.config(""));
    let mut conn = Conn::open(app.public);
    conn.send(format!(
        "POST /v1/x HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {MIB}\r\n\r\nfirst"
    ));
    let answer = conn.read_answer();
    assert_eq!((answer.status, answer.text().as_str()), (413, "no"));
    assert_kept_word(&mut conn, &answer, true);
}

/// A stream whose credits ran out ends as chunks do: nothing is wrong with the connection.
#[test]
fn a_stream_that_ends_short() {
    let fake = FakeUpstream::start(|wire| {
        wire.read_request();
        wire.send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n");
        let event = "data: {\"choices\":[{\"delta\":{\"content\":\"word\"}}]}\n\n";
        for _ in 0..2000 {
            wire.send(format!("{:x}\r\n{event}\r\n", event.len()));
        }
        wire.drain();
    });
    let toml = format!(
        "[plans.free.meters]\ncredits = {{ grant = 40 }}\n{}\
         [[routes]]\npath = \"/v1/*\"\nupstream = \"ai\"\ncost = {{ credits = {{ per_output_token = 1 }} }}\nassumed_output_tokens = 10\n",
        fake.config("")
    );
    let app = TestApp::start(&toml);
    let key = app.register("alice").key;
    let mut conn = Conn::open(app.public);
    conn.send(bytes(&key, "POST", "/v1/chat/completions", &[], Some(&chat_body(json!({"stream": true})))));
    let answer = conn.read_answer();
    assert!(answer.status == 200 && answer.text().contains("CREDITS_EXHAUSTED"), "{}", answer.text());
    assert_kept_word(&mut conn, &answer, false);
}
