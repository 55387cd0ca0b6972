//! Upstreams that misbehave: malformed, oversized, in pieces, too much.

use serde_json::json;

use super::{app, app_and_key, bytes, send};
use crate::fake_upstream::FakeUpstream;
use crate::support::Conn;

#[test]
fn malformed_answers_become_502_and_cost_nothing() {
    let long_head = format!("HTTP/1.1 200 OK\r\nx-long: {}\r\n\r\n", "a".repeat(70_000));
    let many_interim =
        format!("{}HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n".repeat(100));
    for answer in [
        "",
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        "HTTP/2 200 OK\r\ncontent-length: 2\r\n\r\nok",
        "SSH-2.0-OpenSSH\r\n\r\n",
        "200 OK\r\n\r\n",
        "\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 OK\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 20 OK\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 099 OK\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 000 OK\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok!",
        "HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: xchunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx-a: 1\r\n folded\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx-a: a\0b\r\ncontent-length: 0\r\n\r\n",
        // The first of the body is part of what shows that this is an answer.
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\nhello",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-1\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n<html>",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n",
        "HTTP/1.1 404 Not Found\r\ntransfer-encoding: chunked\r\n\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
        &many_interim,
        &long_head,
    ] {
        let fake = FakeUpstream::once_each(answer);
        let app = app(&fake.config("retries = 0"));
        let user = app.register("alice");
        let refused = app.call("POST", "/v1/x", &user.key, Some(&json!({})));
        let shown = &answer[..answer.len().min(80)];
        assert_eq!((refused.status, refused.error_code().as_str()), (502, "UPSTREAM_UNREACHABLE"), "{shown:?}");
        let token = app.admin_token();
        assert_eq!(app.balance(&token, user.id, "conversations"), 1_000_000.0, "{shown:?}");
        assert_eq!(app.metric("tollgate_holds_open"), 0.0);
    }
}

/// The head of an answer whose body takes its time is not kept back for as long as that.
#[test]
fn a_head_does_not_wait_for_its_body_for_ever() {
    let (go, told) = std::sync::mpsc::channel::<()>();
    let told = std::sync::Mutex::new(told);
    let fake = FakeUpstream::start(move |wire| {
        wire.read_request();
        wire.send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n");
        told.lock().unwrap().recv().unwrap();
        wire.send("3\r\nyes\r\n0\r\n\r\n");
        wire.drain();
    });
    let (app, key) = app_and_key(&fake.config(""));
    let mut conn = Conn::open(app.public);
    conn.send(bytes(&key, "GET", "/v1/x", &[], None));
    assert_eq!(conn.read_head().unwrap().status, 200);
    go.send(()).unwrap();
    assert_eq!(conn.read_chunk().unwrap(), b"yes");
    assert!(conn.read_chunk().unwrap().is_empty());
}

/// The largest head we take, with its body right behind it in the same packets.
#[test]
fn a_body_right_behind_a_very_large_head_is_passed_on() {
    let field = format!("x-large: {}\r\n", "a".repeat(8000));
    for spare in [1usize, 20, 50, 80, 300, 4000] {
        let mut head = format!("HTTP/1.1 200 OK\r\n{}", field.repeat(7));
        let fill = (64 << 10) - spare - head.len() - "x-fill: \r\ncontent-length: 5\r\n\r\n".len();
        head.push_str(&format!("x-fill: {}\r\ncontent-length: 5\r\n\r\n", "b".repeat(fill)));
        let fake = FakeUpstream::always(format!("{head}hello"));
        let (app, key) = app_and_key(&fake.config(""));
        let mut conn = Conn::open(app.public);
        for _ in 0..2 {
            conn.send(bytes(&key, "GET", "/v1/x", &[], None));
            let answer = conn.read_answer_to(false);
            assert_eq!(answer.unwrap_or_else(|e| panic!("{spare} bytes below the limit: {e}")).text(), "hello");
        }
    }
}

#[test]
fn answers_may_come_in_any_pieces() {
    let whole = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n7;x=y\r\n, world\r\n0\r\nt: 1\r\n\r\n";
    for piece in [1, 2, 3, 5, 17, 60] {
        let fake = FakeUpstream::start(move |wire| {
            while wire.read_request().is_some() {
                whole.as_bytes().chunks(piece).for_each(|piece| wire.send(piece));
            }
        });
        let (app, key) = app_and_key(&fake.config(""));
        let mut conn = Conn::open(app.public);
        for _ in 0..3 {
            conn.send(bytes(&key, "GET", "/v1/x", &[], None));
            assert_eq!(conn.read_answer().text(), "hello, world", "pieces of {piece}");
        }
        assert_eq!(fake.connections(), 1);
    }
}

#[test]
fn bytes_nobody_asked_for_are_never_the_next_answer() {
    let fake = FakeUpstream::always(
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged",
    );
    let (app, key) = app_and_key(&fake.config(""));
    for nth in 0..5 {
        assert_eq!(send(&app, &key, "GET", "/v1/x", &[], None).text(), "ok", "{nth}");
    }
    assert_eq!(fake.connections(), 5, "such a connection is used no more");
}
