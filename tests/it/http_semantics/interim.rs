//! Interim answers: `100 Continue` to the client when its body is wanted, and none of the upstream's.

use serde_json::json;

use super::{app_and_key, bytes};
use crate::fake_upstream::FakeUpstream;
use crate::support::{Conn, chat_body};

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
fn interim_answers_of_an_upstream_stay_between_the_two() {
    let fake = FakeUpstream::always(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    );
    let (app, key) = app_and_key(&fake.config(""));
    let mut conn = Conn::open(app.public);
    for _ in 0..3 {
        conn.send(bytes(&key, "POST", "/v1/x", &[], Some(&json!({}))));
        let answer = conn.read_answer();
        assert_eq!((answer.status, answer.text().as_str(), answer.header("link")), (200, "ok", None));
    }
    assert_eq!(fake.connections(), 1);
}
