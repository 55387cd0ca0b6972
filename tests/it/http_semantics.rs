//! What a client and an upstream may expect of an HTTP/1.1 intermediary (RFC 9110, RFC 9112), and what the contract adds.

use std::io::Read;
use std::net::TcpListener;
use std::time::Duration;

use serde_json::{Value, json};
use tollgate::mock_upstream::filler_byte;

use crate::fake_upstream::FakeUpstream;
use crate::passing_time::advance;
use crate::support::http::{call, request};
use crate::support::{Answer, Conn, Options, TestApp, chat_body, wait_until};

const PLENTY: &str = "[plans.free.meters]\nconversations = { grant = 1000000 }\n";
const MIB: usize = 1 << 20;

/// With credits for as many calls as anybody likes, and one worker: upstream connections belong to a worker.
fn app(toml: &str) -> TestApp {
    TestApp::with(Options { toml: format!("{PLENTY}{toml}"), workers: 1, ..Options::default() })
}

fn app_and_key(toml: &str) -> (TestApp, String) {
    let app = app(toml);
    let key = app.register("alice").key;
    (app, key)
}

fn with_key<'a>(bearer: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    std::iter::once(("authorization", bearer)).chain(more.iter().copied()).collect()
}

/// A call with the key and these headers.
fn send(app: &TestApp, key: &str, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&Value>) -> Answer {
    let bearer = format!("Bearer {key}");
    call(app.public, method, path, &with_key(&bearer, headers), body)
}

/// The bytes of such a request.
fn bytes(key: &str, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&Value>) -> Vec<u8> {
    let bearer = format!("Bearer {key}");
    request(method, path, &with_key(&bearer, headers), body)
}

fn filler(len: usize) -> Vec<u8> {
    (0..len as u64).map(filler_byte).collect()
}

// ---- connections ---------------------------------------------------------------------------------------------------

#[test]
fn requests_in_a_row_share_both_connections() {
    let (app, key) = app_and_key("");
    let bearer = format!("Bearer {key}");
    let mut conn = Conn::open(app.public);
    for _ in 0..20 {
        let answer =
            conn.call("POST", "/v1/chat/completions", &[("authorization", &bearer)], Some(&chat_body(json!({}))));
        assert_eq!(answer.status, 200);
    }
    let stats = app.upstream.stats();
    assert_eq!((stats.total, stats.connections), (20, 1));
    assert_eq!(app.metric("tollgate_connections_total"), 2.0, "this one, and the one that registered");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let (app, key) = app_and_key("");
    let mut conn = Conn::open(app.public);
    let mut all = Vec::new();
    for nth in 0..10 {
        // The first ones take longest, one is refused, and some have no body.
        let delay = (90 - nth * 10).to_string();
        let path = format!("/v1/echo/{nth}");
        all.extend(match nth {
            4 => bytes("pe-nobody", "POST", &path, &[], Some(&json!({}))),
            7 => bytes(&key, "GET", &path, &[], None),
            _ => bytes(&key, "POST", &path, &[("x-mock-delay-ms", &delay)], Some(&json!({"nth": nth}))),
        });
    }
    conn.send(&all);
    for nth in 0..10 {
        let answer = conn.read_answer();
        assert_eq!(answer.status, if nth == 4 { 401 } else { 200 }, "{nth}");
        assert!(nth == 4 || answer.text().contains(&format!("/v1/echo/{nth}")), "{nth}: {}", answer.text());
    }
    assert_eq!(app.upstream.stats().connections, 1);
}

#[test]
fn pipelined_requests_may_come_in_any_pieces() {
    let (app, key) = app_and_key("");
    let mut conn = Conn::open(app.public);
    let one = bytes(&key, "POST", "/v1/echo", &[], Some(&json!({"text": "x".repeat(50)})));
    let all = one.repeat(5);
    for piece in all.chunks(7) {
        conn.send(piece);
    }
    for _ in 0..5 {
        assert_eq!(conn.read_answer().status, 200);
    }
    assert_eq!(app.upstream.stats().total, 5);
}

#[test]
fn a_connection_that_is_asked_to_close_closes_after_the_answer() {
    let (app, key) = app_and_key("");
    let mut conn = Conn::open(app.public);
    conn.send(bytes(&key, "GET", "/v1/models", &[("connection", "close")], None));
    let answer = conn.read_answer();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert!(conn.is_closed());
    assert!(app.upstream.last_request().unwrap().header("connection").is_none(), "that was for this hop alone");
}

/// A client that connects early and asks late is idle, not slow.
#[test]
fn a_connection_may_be_silent_before_its_first_request() {
    let app = TestApp::with(Options {
        toml: "[limits]\nheader_timeout = \"10s\"\nidle_timeout = \"75s\"\n".into(),
        manual_clock: Some("2026-01-15T12:00:00Z"),
        ..Options::default()
    });
    let mut conn = Conn::open(app.public);
    wait_until("it is accepted", || app.metric("tollgate_connections") == 1.0);
    advance(&app, Duration::from_secs(60));
    assert_eq!(conn.call("GET", "/nothing", &[], None).status, 404);
}

#[test]
fn clients_of_http_1_0_are_served_as_they_expect() {
    let (app, key) = app_and_key("");
    let line = |extra: &str| format!("GET /v1/echo HTTP/1.0\r\nauthorization: Bearer {key}\r\n{extra}\r\n");
    let mut conn = Conn::open(app.public);
    conn.send(line(""));
    let answer = conn.read_answer();
    assert!(answer.status == 200 && answer.header("content-length").is_some());
    assert!(conn.is_closed());

    let mut conn = Conn::open(app.public);
    for _ in 0..3 {
        conn.send(line("connection: keep-alive\r\n"));
        let answer = conn.read_answer();
        assert_eq!((answer.status, answer.header("connection")), (200, Some("keep-alive")));
    }
    // A body of unknown length ends with the connection: they know no chunks.
    conn.send(line("connection: keep-alive\r\nx-mock-body-bytes: 100000\r\nx-mock-chunked: 1\r\n"));
    let answer = conn.read_answer();
    assert_eq!((answer.header("transfer-encoding"), answer.header("content-length")), (None, None));
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(answer.body, filler(100_000));
}

// ---- bodies --------------------------------------------------------------------------------------------------------

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

// ---- 100 continue --------------------------------------------------------------------------------------------------

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

// ---- headers -------------------------------------------------------------------------------------------------------

#[test]
fn what_concerns_one_hop_goes_no_further_in_either_direction() {
    let (app, key) = app_and_key("");
    let body = chat_body(json!({}));
    let answer = send(
        &app,
        &key,
        "POST",
        "/v1/chat/completions",
        &[
            ("connection", "x-mine, keep-alive ,X-Other"),
            ("x-mine", "1"),
            ("X-OTHER", "2"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic abc"),
            ("te", "trailers"),
            ("trailer", "x-t"),
            ("upgrade", "websocket"),
            ("x-mock-hop", "1"),
            ("x-mock-trailers", "1"),
            ("x-kept", "kept"),
        ],
        Some(&body),
    );
    assert_eq!(answer.status, 200);
    let seen = app.upstream.last_request().unwrap();
    let gone = "connection x-mine x-other keep-alive proxy-connection proxy-authorization te trailer upgrade expect";
    for name in gone.split(' ') {
        assert!(seen.header(name).is_none(), "{name} reached the upstream");
    }
    assert_eq!(seen.header("x-kept"), Some(&b"kept"[..]));
    for name in ["x-secret-hop", "keep-alive", "trailer", "x-mock-trailer"] {
        assert!(answer.header(name).is_none(), "{name} reached the client");
    }
    assert_ne!(answer.header("connection"), Some("x-secret-hop"));
}

#[test]
fn the_caller_s_identity_is_ours_to_tell() {
    let (app, key) = app_and_key("");
    let forged = [
        "X-Tollgate-User",
        "x-tollgate-username",
        "X-TOLLGATE-PLAN",
        "x-tollgate-anything",
        "X_Tollgate_User",
        "x_tollgate-plan",
        "X-Forwarded-For",
        "X_Forwarded_For",
        "x-forwarded-proto",
        "X-Forwarded_Proto",
        "x-forwarded-host",
        "X_FORWARDED_HOST",
        "x-request-id",
        "X_Request_Id",
        "forwarded",
    ];
    let headers: Vec<(&str, &str)> = forged.iter().map(|name| (*name, "forged")).collect();
    let answer = send(&app, &key, "POST", "/v1/chat/completions", &headers, Some(&chat_body(json!({}))));
    assert_eq!(answer.status, 200);
    let seen = app.upstream.last_request().unwrap();
    let forged: Vec<_> = seen.headers.iter().filter(|(_, value)| value == b"forged").collect();
    assert!(forged.is_empty(), "{forged:?}");
    let all = |name: &str| {
        let dashed = |n: &str| n.to_ascii_lowercase().replace('_', "-");
        let found: Vec<String> = seen
            .headers
            .iter()
            .filter(|(n, _)| dashed(n) == name)
            .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
            .collect();
        found
    };
    assert_eq!(all("x-tollgate-username"), ["alice"]);
    assert_eq!(all("x-tollgate-plan"), ["free"]);
    assert_eq!(all("x-tollgate-user").len(), 1);
    assert_eq!(all("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(all("x-forwarded-proto"), ["http"]);
    assert_eq!(all("x-forwarded-host"), ["gateway.test"]);
    assert_eq!(all("x-request-id"), [answer.header("x-request-id").unwrap()]);
    assert_eq!(all("host"), [app.upstream.addr().to_string()]);
}

#[test]
fn the_client_s_credential_is_replaced_by_the_upstream_s() {
    let (app, key) = app_and_key("");
    let with_credential = |header: &str| {
        format!(
            "[[upstreams]]\nname = \"ai\"\nendpoints = [\"http://{}\"]\n\
             credential = {{ header = \"{header}\", value = \"sk-upstream\" }}\n",
            app.upstream.addr()
        )
    };
    assert_eq!(send(&app, &key, "GET", "/v1/models", &[], None).status, 200);
    let seen = app.upstream.last_request().unwrap();
    assert!(seen.header("authorization").is_none(), "without one of its own, the upstream gets none");

    let second = app_and_key(&with_credential("authorization")).0;
    let key = second.register("bob").key;
    for headers in [&[("authorization", format!("Bearer {key}"))], &[("x-api-key", key.clone())]] {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
        assert_eq!(call(second.public, "GET", "/v1/models", &headers, None).status, 200);
        let seen = app.upstream.last_request().unwrap();
        let values: Vec<_> =
            seen.headers.iter().filter(|(n, _)| n == "authorization").map(|(_, v)| v.clone()).collect();
        assert_eq!(values, [b"sk-upstream".to_vec()]);
        assert!(!seen.headers.iter().any(|(_, value)| String::from_utf8_lossy(value).contains(&key)));
    }

    let third = app_and_key(&with_credential("x-goog-api-key")).0;
    let key = third.register("carol").key;
    let own = [("x-goog-api-key", "mine"), ("X-GOOG-API-KEY", "mine"), ("X_Goog_Api_Key", "mine")];
    assert_eq!(send(&third, &key, "GET", "/v1/models", &own, None).status, 200);
    let seen = app.upstream.last_request().unwrap();
    assert_eq!(seen.header("x-goog-api-key"), Some(&b"sk-upstream"[..]));
    assert!(!seen.headers.iter().any(|(_, value)| value == b"mine"), "{:?}", seen.headers);
}

#[test]
fn method_target_and_body_pass_byte_for_byte() {
    let fake = FakeUpstream::always("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let (app, key) = app_and_key(&fake.config(""));
    let targets = [
        "/v1/a?b=c&b=d&&=",
        "/v1/?",
        "/v1/%E4%BD%A0%20%2f?q=%00%zz+'\"",
        "/v1/caf\u{e9}",
        "/v1/a;b=c/d,e:f@g!$&'()*+=~",
        "/v1//double///slashes/",
        "/v1/..file/...",
        "/v1/[x]{y}|z^`",
        "/v1/a?http://other/../..?#".trim_end_matches('#'),
        "/v1/-_.~%7e",
    ];
    let mut conn = Conn::open(app.public);
    for (nth, target) in targets.iter().enumerate() {
        let method = ["GET", "DELETE", "PUT", "PATCH", "PROPFIND", "get", "M-SEARCH", "X!#$%&'*+-.^_`|~9"][nth % 8];
        conn.send(bytes(&key, method, target, &[], None));
        let answer = conn.read_answer();
        assert_eq!(answer.status, 200, "{method} {target}: {}", answer.text());
        let heard = fake.heard(0);
        let last = heard.rsplit("\r\n\r\n").find(|head| head.contains("HTTP/1.1")).unwrap();
        assert!(last.starts_with(&format!("{method} {target} HTTP/1.1\r\n")), "{last}");
    }
    let odd = b"{ \"model\" :\"gpt-4o\" ,\n\t\"messages\":[ ]}  \n";
    conn.send(format!(
        "POST /v1/x HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {}\r\n\r\n",
        odd.len()
    ));
    conn.send(odd);
    assert_eq!(conn.read_answer().status, 200);
    assert!(fake.heard(0).as_bytes().ends_with(odd));
}

#[test]
fn other_headers_pass_in_both_directions_unchanged_and_in_order() {
    let fake = FakeUpstream::always(
        "HTTP/1.1 207 Own Words\r\nSet-Cookie: a=1\r\nset-cookie: b=2\r\nX-Odd:  \t padded \r\nx-empty:\r\n\
         x-ratelimit-limit-requests: 7\r\nx-ratelimit-limit-tokens: 8\r\nx-request-id: theirs\r\ncontent-length: 2\r\n\r\nok",
    );
    let (app, key) = app_and_key(&fake.config(""));
    let own = [("X-Twice", "1"), ("x-twice", "2"), ("Accept", "a/b;q=0.5, */*"), ("x-empty", ""), ("cookie", "c=d")];
    let answer = send(&app, &key, "GET", "/v1/x", &own, None);
    let heard = fake.heard(0);
    let at = |text: &str| heard.find(text).unwrap_or_else(|| panic!("{text} is missing in {heard}"));
    assert!(at("X-Twice: 1\r\n") < at("x-twice: 2\r\n"));
    assert!(at("Accept: a/b;q=0.5, */*\r\n") < at("cookie: c=d\r\n"));
    assert!(heard.contains("x-empty: \r\n") || heard.contains("x-empty:\r\n"));
    assert_eq!(answer.status, 207);
    let cookies: Vec<_> = answer.headers.iter().filter(|(n, _)| n == "set-cookie").map(|(_, v)| v.as_str()).collect();
    assert_eq!(cookies, ["a=1", "b=2"]);
    assert_eq!((answer.header("x-odd"), answer.header("x-empty")), (Some("padded"), Some("")));
    assert_eq!(answer.header("x-ratelimit-limit-tokens"), Some("8"));
    assert_ne!(answer.header("x-ratelimit-limit-requests"), Some("7"), "that one is ours");
    let ids: Vec<_> = answer.headers.iter().filter(|(n, _)| n == "x-request-id").collect();
    assert!(ids.len() == 1 && ids[0].1.starts_with("req_"));
}

#[test]
fn a_trusted_proxy_says_who_the_client_is_and_nobody_else() {
    let trusting = app("[access]\ntrusted_proxies = [\"127.0.0.0/8\", \"10.0.0.0/8\"]\n");
    let key = trusting.register("alice").key;
    let seen_by = |app: &TestApp, key: &str, headers: &[(&str, &str)]| {
        assert_eq!(send(app, key, "GET", "/v1/models", headers, None).status, 200);
        String::from_utf8(app.upstream.last_request().unwrap().header("x-forwarded-for").unwrap().to_vec()).unwrap()
    };
    assert_eq!(seen_by(&trusting, &key, &[("x-forwarded-for", "6.6.6.6, 7.7.7.7, 10.1.1.1")]), "7.7.7.7");
    assert_eq!(seen_by(&trusting, &key, &[("x-forwarded-for", "::ffff:7.7.7.7")]), "7.7.7.7");
    assert_eq!(seen_by(&trusting, &key, &[("x-forwarded-for", "7.7.7.7, nonsense")]), "127.0.0.1");
    assert_eq!(seen_by(&trusting, &key, &[("forwarded", "for=\"[2001:db8::1]:9\"")]), "2001:db8::1");
    assert_eq!(seen_by(&trusting, &key, &[]), "127.0.0.1");

    let (trustless, key) = app_and_key("");
    assert_eq!(seen_by(&trustless, &key, &[("x-forwarded-for", "7.7.7.7")]), "127.0.0.1");
}

#[test]
fn a_route_may_ask_streams_for_their_usage() {
    let route = "[[routes]]\npath = \"/v1/*\"\nupstream = \"ai\"\ncost = { conversations = 1 }\ninclude_usage = true\n";
    let app = TestApp::with(Options { toml: PLENTY.into(), route, ..Options::default() });
    let key = app.register("alice").key;
    let last = || String::from_utf8(app.upstream.last_request().unwrap().body).unwrap();
    let answer = app.chat(&key, json!({"stream": true}));
    assert!(answer.text().contains("\"usage\":{"), "{}", answer.text());
    let sent: Value = serde_json::from_str(&last()).unwrap();
    assert_eq!(sent["stream_options"], json!({"include_usage": true}));
    assert_eq!(sent["messages"], chat_body(json!({}))["messages"], "the rest is untouched");

    for body in [
        chat_body(json!({})),
        chat_body(json!({"stream": false})),
        chat_body(json!({"stream": true, "stream_options": {"include_usage": false}})),
        chat_body(json!({"stream": true, "stream_options": null})),
    ] {
        assert_eq!(app.call("POST", "/v1/chat/completions", &key, Some(&body)).status, 200);
        assert_eq!(last(), body.to_string(), "what the client said itself stands");
    }
}

// ---- when somebody leaves ------------------------------------------------------------------------------------------

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

// ---- upstreams that misbehave --------------------------------------------------------------------------------------

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

/// The largest head we take, with its body right behind it in the same packets.
#[test]
fn a_body_right_behind_a_very_large_head_is_passed_on() {
    let field = format!("x-large: {}\r\n", "a".repeat(8000));
    for spare in [1usize, 300, 4000] {
        let mut head = format!("HTTP/1.1 200 OK\r\n{}", field.repeat(7));
        let fill = (64 << 10) - spare - head.len() - "x-fill: \r\ncontent-length: 5\r\n\r\n".len();
        head.push_str(&format!("x-fill: {}\r\ncontent-length: 5\r\n\r\n", "b".repeat(fill)));
        let fake = FakeUpstream::always(format!("{head}hello"));
        let (app, key) = app_and_key(&fake.config(""));
        let mut conn = Conn::open(app.public);
        conn.stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
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

// ---- attempts ------------------------------------------------------------------------------------------------------

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
        conn.stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
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

// ---- surfaces ------------------------------------------------------------------------------------------------------

#[test]
fn no_trick_with_paths_or_hosts_reaches_the_side_port_s_surfaces() {
    let route = "[[routes]]\npath = \"/*\"\nupstream = \"ai\"\n";
    let app = TestApp::with(Options { toml: PLENTY.into(), route, ..Options::default() });
    let key = app.register("alice").key;
    let token = app.admin_token();
    let admin = app.admin;
    let paths = [
        "/v1/admin-panel/users",
        "/v1/admin-panel",
        "/v1/admin-panel/",
        "//v1/admin-panel/users",
        "/v1//admin-panel/users",
        "/V1/ADMIN-PANEL/users",
        "/v1/%61dmin-panel/users",
        "/%76%31/admin-panel/users",
        "/v1/admin%2Dpanel/users",
        "/v1/admin-panel?x=/v1/models",
        "/v1/admin-panel/users?",
        "/v1/support/users",
        "/v1/support",
        "/v1/Support/profile",
    ];
    let hosts = [format!("{admin}"), "localhost:9090".to_owned(), "gateway.test".to_owned()];
    for path in paths {
        for host in &hosts {
            let absolute = format!("http://{admin}{path}");
            for target in [path, &absolute] {
                for credential in [&token, &key] {
                    let mut conn = Conn::open(app.public);
                    conn.send(format!(
                        "GET {target} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {credential}\r\n\
                         x-forwarded-host: {admin}\r\nx-original-url: /v1/admin-panel/users\r\n\r\n"
                    ));
                    let answer = conn.read_answer();
                    assert_eq!(answer.status, 404, "{target}: {}", answer.text());
                }
            }
        }
    }
    for path in [
        "/v1/models/../admin-panel/users",
        "/v1/%2e%2e/v1/admin-panel/users",
        "/v1/x/..%2Fadmin-panel",
        "/./v1/admin-panel",
        "/v1/x/..;/admin-panel/users",
        "/v1/\\..\\admin-panel",
    ] {
        assert_eq!(send(&app, &key, "GET", path, &[], None).status, 400, "{path}");
    }
    assert_eq!(app.upstream.stats().total, 0, "and no upstream saw any of them");
    // Where everything is routed, these are the upstream's and not ours.
    for path in ["/metrics", "/health", "/ready", "/docs", "/openapi.json", "/admin"] {
        assert_eq!(call(app.public, "GET", path, &[], None).status, 401, "{path}");
        let echoed = send(&app, &key, "GET", path, &[], None);
        assert!(echoed.status == 200 && !echoed.text().contains("tollgate_requests_total"), "{path}");
    }
    assert_eq!(app.upstream.stats().total, 6);
}

#[test]
fn the_gateway_says_nothing_until_it_is_asked() {
    let app = app("");
    let conn = Conn::open(app.public);
    wait_until("it is accepted", || app.metric("tollgate_connections") == 1.0);
    conn.stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut stream = &conn.stream;
    let read = stream.read(&mut [0; 1]);
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}
