//! Bodies in both directions: whole, byte for byte, as they come, and at the same time.

use std::time::Duration;

use serde_json::json;

use super::{MIB, PLENTY, app_and_key, bytes, filler, send};
use crate::fake_upstream::FakeUpstream;
use crate::passing_time::advance;
use crate::support::{Conn, Options, TestApp, chat_body, wait_until};

#[test]
fn head_204_and_304_have_no_body_and_the_connection_goes_on() {
    let (app, key) = app_and_key("");
    let mut conn = Conn::open(app.public);
    conn.send(bytes(&key, "HEAD", "/v1/models", &[], None));
    let head = conn.read_answer_to(true).unwrap();
    assert_eq!(head.status, 200);
    let length: usize = head.header("content-length").expect("what GET would send").parse().unwrap();
    conn.send(bytes(&key, "GET", "/v1/models", &[], None));
    assert_eq!(conn.read_answer().body.len(), length);
    for status in ["204", "304"] {
        conn.send(bytes(&key, "GET", "/v1/echo", &[("x-mock-status", status)], None));
        let answer = conn.read_answer();
        assert_eq!((answer.status.to_string().as_str(), answer.header("transfer-encoding")), (status, None));
    }
    conn.send(bytes(&key, "HEAD", "/nothing", &[], None));
    assert_eq!(conn.read_answer_to(true).unwrap().status, 404);
    conn.send(bytes(&key, "GET", "/v1/models", &[], None));
    assert_eq!(conn.read_answer().status, 200);
    assert_eq!(app.upstream.stats().connections, 1);
}

#[test]
fn large_answers_arrive_byte_for_byte() {
    let (app, key) = app_and_key("");
    let size = (8 * MIB).to_string();
    let expected = filler(8 * MIB);
    for headers in [
        &[("x-mock-body-bytes", size.as_str())][..],
        &[("x-mock-body-bytes", size.as_str()), ("x-mock-chunked", "1")],
        &[("x-mock-body-bytes", size.as_str()), ("x-mock-trailers", "1")],
        &[("x-mock-body-bytes", size.as_str()), ("x-mock-close", "1")],
    ] {
        let answer = send(&app, &key, "GET", "/v1/big", headers, None);
        assert!(answer.body == expected, "{headers:?}: {} bytes", answer.body.len());
    }
}

#[test]
fn large_uploads_arrive_byte_for_byte() {
    let fake = FakeUpstream::start(|wire| {
        while wire.read_until("END-OF-UPLOAD") {
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        }
    });
    let (app, key) = app_and_key(&fake.config(""));
    let body = [filler(8 * MIB), b"END-OF-UPLOAD".to_vec()].concat();
    let head =
        |framing: &str| format!("POST /v1/up HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n{framing}\r\n\r\n");

    let mut conn = Conn::open(app.public);
    conn.send(head(&format!("content-length: {}", body.len())));
    conn.send(&body);
    assert_eq!(conn.read_answer().text(), "ok");
    let heard = fake.heard(0);
    assert!(heard.contains(&format!("\r\ncontent-length: {}\r\n", body.len())));
    assert!(heard.as_bytes().ends_with(&body), "{} bytes", heard.len());

    conn.send(head("transfer-encoding: chunked"));
    for piece in body.chunks(70_001) {
        conn.send(format!("{:x};some=extension\r\n", piece.len()));
        conn.send(piece);
        conn.send("\r\n");
    }
    conn.send("0\r\nx-trailer: dropped\r\n\r\n");
    assert_eq!(conn.read_answer().text(), "ok");
    let all = || (0..fake.connections()).map(|n| fake.heard(n)).collect::<String>();
    wait_until("the end was passed on", || all().ends_with("\r\n0\r\n\r\n"));
    let heard = all();
    let chunked = heard.rfind("POST /v1/up").map(|at| &heard[at..]).unwrap();
    assert!(chunked.contains("\r\ntransfer-encoding: chunked\r\n") && !chunked.contains("x-trailer"));
    assert!(dechunk(chunked.split_once("\r\n\r\n").unwrap().1) == body);
}

fn dechunk(mut text: &str) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let (size, rest) = text.split_once("\r\n").unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&rest.as_bytes()[..size]);
        text = rest[size..].strip_prefix("\r\n").unwrap();
    }
}

#[test]
fn an_upload_streams_instead_of_being_gathered() {
    let fake = FakeUpstream::start(|wire| {
        while wire.read_until("?") {
            if wire.number > 0 {
                return;
            }
        }
    });
    let (app, key) = app_and_key(&fake.config(""));
    let mut conn = Conn::open(app.public);
    conn.send(format!(
        "POST /v1/up HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ntransfer-encoding: chunked\r\n\r\n"
    ));
    for nth in 0..5 {
        conn.send(format!("7\r\npiece-{nth}\r\n"));
        wait_until("the piece has arrived", || fake.heard(0).contains(&format!("piece-{nth}")));
    }
}

#[test]
fn an_answer_may_come_whole_before_the_request_is_sent() {
    let (app, key) = app_and_key("");
    let mut conn = Conn::open(app.public);
    let bytes = (MIB).to_string();
    conn.send(format!(
        "POST /v1/echo HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nx-mock-early: 1\r\n\
         x-mock-body-bytes: {bytes}\r\ncontent-length: 1000\r\n\r\n"
    ));
    // Nothing of the body has been sent, and yet:
    let answer = conn.read_answer();
    assert!(answer.status == 200 && answer.body == filler(MIB));
}

#[test]
fn a_client_that_sends_all_before_it_reads_gets_an_early_answer_whole() {
    let (app, key) = app_and_key("");
    let mut conn = Conn::open(app.public);
    conn.send(format!(
        "POST /v1/echo HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nx-mock-early: 1\r\n\
         x-mock-body-bytes: 50000\r\ncontent-length: {}\r\n\r\n",
        8 * MIB
    ));
    let sent = conn.try_send(filler(8 * MIB));
    assert!(sent.is_ok(), "the connection was reset in the middle of the upload: {sent:?}");
    assert!(conn.read_answer().body == filler(50_000));
}

#[test]
fn an_answer_that_streams_while_the_request_does_is_not_cut_for_idleness() {
    let fake = FakeUpstream::start(|wire| {
        wire.read_until("\r\n\r\n");
        wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nearly\r\n");
        wire.read_until("last");
        wire.send("4\r\nlate\r\n0\r\n\r\n");
        wire.drain();
    });
    let app = TestApp::with(Options {
        toml: format!("{PLENTY}{}", fake.config("idle_timeout = \"60s\"")),
        manual_clock: Some("2026-01-15T12:00:00Z"),
        ..Options::default()
    });
    let key = app.register("alice").key;
    let mut conn = Conn::open(app.public);
    conn.send(format!("POST /v1/up HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: 25\r\n\r\n"));
    assert_eq!(conn.read_head().unwrap().status, 200);
    assert_eq!(conn.read_chunk().unwrap(), b"early");
    for nth in 0..3 {
        advance(&app, Duration::from_secs(40));
        conn.send(format!("piece-{nth}"));
        wait_until("the piece has arrived", || fake.heard(0).contains(&format!("piece-{nth}")));
    }
    conn.send("last");
    assert_eq!(conn.read_chunk().unwrap(), b"late");
    assert_eq!(conn.read_chunk().unwrap(), b"");
}

#[test]
fn each_event_arrives_on_its_own_before_the_next_is_sent() {
    let (proceed, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let fake = FakeUpstream::start(move |wire| {
        wire.read_request();
        wire.send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n");
        let wait = wait.lock().unwrap();
        for nth in 0..5 {
            let event = format!("data: {{\"nth\":{nth}}}\n\n");
            wire.send(format!("{:x}\r\n{event}\r\n", event.len()));
            // The next one is not sent before the client has seen this one.
            if wait.recv().is_err() {
                return;
            }
        }
        wire.send("0\r\n\r\n");
    });
    let (app, key) = app_and_key(&fake.config(""));
    let mut conn = Conn::open(app.public);
    conn.send(bytes(&key, "POST", "/v1/chat/completions", &[], Some(&chat_body(json!({"stream": true})))));
    assert_eq!(conn.read_head().unwrap().header("content-type"), Some("text/event-stream"));
    for nth in 0..5 {
        assert_eq!(conn.read_chunk().unwrap(), format!("data: {{\"nth\":{nth}}}\n\n").into_bytes());
        proceed.send(()).unwrap();
    }
    assert_eq!(conn.read_chunk().unwrap(), b"");
}

#[test]
fn a_stream_ends_as_the_upstream_ended_it() {
    let (app, key) = app_and_key("");
    let headers = [("x-mock-chunk-delay-ms", "3"), ("x-mock-tokens", "6")];
    let answer = send(&app, &key, "POST", "/v1/chat/completions", &headers, Some(&chat_body(json!({"stream": true}))));
    assert!(answer.text().ends_with("data: [DONE]\n\n"), "{}", answer.text());
    assert!(answer.chunks.len() >= 6, "{} chunks", answer.chunks.len());
    assert!(answer.chunks.iter().all(|chunk| chunk.ends_with(b"\n\n")), "no event is torn apart");
}

#[test]
fn an_answer_that_ends_with_its_connection_is_chunked_for_the_client() {
    let fake = FakeUpstream::once_each("HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\nuntil the end");
    let (app, key) = app_and_key(&fake.config(""));
    let mut conn = Conn::open(app.public);
    for _ in 0..2 {
        conn.send(bytes(&key, "GET", "/v1/x", &[], None));
        let answer = conn.read_answer();
        assert_eq!((answer.text().as_str(), answer.header("transfer-encoding")), ("until the end", Some("chunked")));
    }
    assert_eq!(fake.connections(), 2);
}
