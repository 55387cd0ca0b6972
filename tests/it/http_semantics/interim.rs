//! Interim answers: `100 Continue` to the client when its body is wanted, and what the upstream sends besides that.

use serde_json::json;

use super::{app_and_key, bytes};
use crate::fake_upstream::FakeUpstream;
use crate::support::stores::SteeredStore;
use crate::support::{Conn, Options, TestApp, chat_body, wait_until};

#[test]
fn a_client_that_asks_is_told_to_continue_only_when_its_body_is_wanted() {
    let (app, key) = app_and_key("");
    let body = chat_body(json!({})).to_string();
    let head = |key: &str, path: &str, expect: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n{expect}content-length: {}\r\n\r\n",
            body.len()
        )
    };
    let path = "/v1/chat/completions";
    let mut conn = Conn::open(app.public);
    for expect in ["expect: 100-continue\r\n", "Expect: 100-Continue\r\n"] {
        conn.send(head(&key, path, expect));
        assert_eq!(conn.read_answer().status, 100);
        conn.send(&body);
        assert_eq!(conn.read_answer().status, 200, "exactly one interim answer");
        assert!(app.upstream.last_request().unwrap().header("expect").is_none(), "answered here, not there");
    }
    // Who sends without waiting needs no invitation.
    conn.send(format!("{}{body}", head(&key, path, "expect: 100-continue\r\n")));
    assert_eq!(conn.read_answer().status, 200);
    conn.send(head(&key, path, ""));
    conn.send(&body);
    assert_eq!(conn.read_answer().status, 200);
    // A local call wants its body as well.
    conn.send(head(&key, "/v1/users/login", "expect: 100-continue\r\n"));
    assert_eq!(conn.read_answer().status, 100);
    conn.send(&body);
    assert!(conn.read_answer().status >= 400);

    for (key, path, status) in [("pe-nobody", path, 401), (&key, "/nothing", 404)] {
        let mut conn = Conn::open(app.public);
        conn.send(head(key, path, "expect: 100-continue\r\n"));
        assert_eq!(conn.read_answer().status, status, "refused at once");
        assert!(conn.is_closed(), "nobody can tell whether the body comes");
    }
    // HTTP/1.0 knows nothing of it.
    let mut conn = Conn::open(app.public);
    conn.send(head(&key, path, "expect: 100-continue\r\n").replace("HTTP/1.1", "HTTP/1.0"));
    conn.send(&body);
    assert_eq!(conn.read_answer().status, 200);
}

#[test]
fn interim_answers_of_an_upstream_are_passed_on_and_100_is_not() {
    let fake = FakeUpstream::start(|wire| {
        while wire.read_request().is_some() {
            wire.send("HTTP/1.1 100 Continue\r\n\r\n");
            wire.send(
                "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\nLink: </b>\r\ncontent-length: 5\r\n\
                 connection: x-hop\r\nx-hop: 1\r\nx-request-id: theirs\r\n\r\nHTTP/1.1 102\r\n\r\n",
            );
            wire.send("HTTP/1.1 199 Whatever\r\nx-new: 1\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        }
    });
    let (app, key) = app_and_key(&fake.config(""));
    let mut conn = Conn::open(app.public);
    for _ in 0..3 {
        conn.send(bytes(&key, "POST", "/v1/x", &[], Some(&json!({}))));
        let fields = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let via = ("via", "1.1 tollgate");
        for (status, expected) in [
            (103, fields(&[("link", "</a>"), ("link", "</b>"), via])),
            (102, fields(&[via])),
            (199, fields(&[("x-new", "1"), via])),
        ] {
            let interim = conn.read_head().unwrap();
            assert_eq!((interim.status, interim.headers), (status, expected));
        }
        let answer = conn.read_answer();
        assert_eq!((answer.status, answer.text().as_str(), answer.header("link")), (200, "ok", None));
        assert!(answer.header("x-request-id").unwrap().starts_with("req_"));
    }
    assert_eq!(fake.connections(), 1);
    // HTTP/1.0 knows none of them (RFC 9110, 15.2).
    let mut old = Conn::open(app.public);
    old.send(format!("GET /v1/x HTTP/1.0\r\nauthorization: Bearer {key}\r\n\r\n"));
    assert_eq!(old.read_answer().status, 200);
}

/// A sign of life every now and then, and the client has it at once.
#[test]
fn an_interim_answer_does_not_wait_for_the_answer() {
    let (go_on, waits) = std::sync::mpsc::channel::<()>();
    let waits = std::sync::Mutex::new(waits);
    let fake = FakeUpstream::start(move |wire| {
        wire.read_request();
        for _ in 0..20 {
            wire.send("HTTP/1.1 102 Processing\r\n\r\n");
            waits.lock().unwrap().recv().unwrap();
        }
        wire.send("HTTP/1.1 500 Sorry\r\ncontent-length: 0\r\n\r\n");
        wire.drain();
    });
    let app = super::app(&fake.config("retries = 0"));
    let user = app.register("alice");
    let mut conn = Conn::open(app.public);
    conn.send(bytes(&user.key, "POST", "/v1/x", &[], Some(&json!({}))));
    for _ in 0..20 {
        assert_eq!(conn.read_head().unwrap().status, 102);
        go_on.send(()).unwrap();
    }
    assert_eq!(conn.read_answer().status, 500);
    // They were no part of the answer, which costs nothing.
    let token = app.admin_token();
    assert_eq!(app.balance(&token, user.id, "conversations"), 1_000_000.0);
}

#[test]
fn a_refusal_after_an_interim_answer_is_a_refusal() {
    let fake = FakeUpstream::once_each("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n");
    let app = super::app(&fake.config("retries = 0"));
    let user = app.register("alice");
    let mut conn = Conn::open(app.public);
    conn.send(bytes(&user.key, "POST", "/v1/x", &[], Some(&json!({}))));
    let mut answer = conn.read_answer();
    if answer.status == 103 {
        answer = conn.read_answer();
    }
    assert_eq!((answer.status, answer.error_code().as_str()), (502, "UPSTREAM_UNREACHABLE"));
    assert_eq!(conn.call("GET", "/nothing", &[], None).status, 404, "and the connection is in order");
    let token = app.admin_token();
    assert_eq!(app.balance(&token, user.id, "conversations"), 1_000_000.0);
}

#[test]
fn no_interim_answer_leaves_before_the_debit_is_on_disk() {
    let fake = FakeUpstream::start(|wire| {
        while wire.read_request().is_some() {
            wire.send("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n");
            if !wire.read_until("more") {
                return;
            }
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        }
    });
    let store = SteeredStore::new();
    let app =
        TestApp::with(Options { toml: fake.config("retries = 0"), store: Some(store.clone()), ..Options::default() });
    let key = app.register("alice").key;
    let held = store.hold_commits();
    let mut conn = Conn::open(app.public);
    conn.send(format!(
        "POST /v1/x HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n"
    ));
    wait_until("the upstream has the call", || fake.heard(0).contains("body"));
    wait_until("the debit waits for the disk", || store.has_commit_waiting());
    conn.stream.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
    let early = std::io::Read::read(&mut &conn.stream, &mut [0; 1]);
    assert_eq!(early.unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "nothing has left");
    conn.stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    drop(held);
    let hints = conn.read_head().unwrap();
    assert_eq!((hints.status, hints.header("link")), (103, Some("</a>")));
    conn.send("4\r\nmore\r\n0\r\n\r\n");
    assert_eq!(conn.read_answer().text(), "ok");
}
