//! Input that a careful server refuses: what could be read in two ways, what never ends, and what is not HTTP at all.
//! The caller is always one whose well-formed call would be served, so that only the form decides.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use crate::fake_upstream::FakeUpstream;
use crate::passing_time::advance;
use crate::server_process::Site;
use crate::support::http::request;
use crate::support::{Conn, Options, TestApp, wait_until};

const PLENTY: &str = "[plans.free.meters]\nconversations = { grant = 1000000 }\n";
const BODY: &str = r#"{"model":"gpt-4o","messages":[{"role":"user","content":"Hi"}]}"#;

/// A request line and fields as given, with a good key and `host`; then a body.
fn raw(line: &str, key: &str, fields: &str, body: &str) -> String {
    format!("{line}\r\nhost: gateway.test\r\nauthorization: Bearer {key}\r\n{fields}\r\n{body}")
}

fn post(key: &str, fields: &str, body: &str) -> String {
    raw("POST /v1/chat/completions HTTP/1.1", key, fields, body)
}

fn get(key: &str, line: &str) -> String {
    raw(line, key, "", "")
}

/// Fields after which two servers could disagree where the request ends.
fn ambiguous_framing(key: &str) -> Vec<(&'static str, String)> {
    let te = "0\r\n\r\n";
    let mut cases = Vec::new();
    for (name, fields) in [
        ("length and coding", "content-length: 5\r\ntransfer-encoding: chunked\r\n"),
        ("coding and length", "transfer-encoding: chunked\r\ncontent-length: 5\r\n"),
        ("coding and length 0", "transfer-encoding: chunked\r\ncontent-length: 0\r\n"),
        ("two equal lengths", "content-length: 5\r\ncontent-length: 5\r\n"),
        ("two different lengths", "content-length: 5\r\ncontent-length: 6\r\n"),
        ("two lengths in two cases", "Content-Length: 5\r\ncontent-LENGTH: 6\r\n"),
        ("a list of equal lengths", "content-length: 5, 5\r\n"),
        ("a list of lengths", "content-length: 5,6\r\n"),
        ("a plus sign", "content-length: +5\r\n"),
        ("a minus sign", "content-length: -5\r\n"),
        ("minus zero", "content-length: -0\r\n"),
        ("a hexadecimal length", "content-length: 0x5\r\n"),
        ("a length with a unit", "content-length: 5b\r\n"),
        ("a length with a blank inside", "content-length: 5 5\r\n"),
        ("a length with an underscore", "content-length: 1_0\r\n"),
        ("a decimal fraction", "content-length: 5.0\r\n"),
        ("an exponent", "content-length: 5e0\r\n"),
        ("an empty length", "content-length: \r\n"),
        ("a length over 64 bits", "content-length: 18446744073709551621\r\n"),
        ("a length of many digits", "content-length: 0000000000000000000000000000005\r\n"),
        ("a quoted length", "content-length: \"5\"\r\n"),
        ("a length in Arabic digits", "content-length: \u{665}\r\n"),
        ("a blank before the colon", "content-length : 5\r\n"),
        ("a tab before the colon", "content-length\t: 5\r\n"),
        ("a folded length", "content-length:\r\n 5\r\n"),
        ("xchunked", "transfer-encoding: xchunked\r\n"),
        ("chunked twice in one field", "transfer-encoding: chunked, chunked\r\n"),
        ("chunked in two fields", "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n"),
        ("identity and chunked in two fields", "transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n"),
        ("identity", "transfer-encoding: identity\r\n"),
        ("gzip", "transfer-encoding: gzip\r\n"),
        ("gzip, chunked", "transfer-encoding: gzip, chunked\r\n"),
        ("chunked, identity", "transfer-encoding: chunked, identity\r\n"),
        ("chunked with a parameter", "transfer-encoding: chunked;q=1\r\n"),
        ("chunked and a comma", "transfer-encoding: chunked,\r\n"),
        ("a quoted coding", "transfer-encoding: \"chunked\"\r\n"),
        ("an empty coding", "transfer-encoding:\r\n"),
        ("a vertical tab before chunked", "transfer-encoding: \u{b}chunked\r\n"),
        ("a NUL after chunked", "transfer-encoding: chunked\0\r\n"),
        ("a blank before the coding's colon", "transfer-encoding : chunked\r\n"),
        ("a tab before the coding's colon", "transfer-encoding\t: chunked\r\n"),
        ("a folded coding", "transfer-encoding:\r\n chunked\r\n"),
        ("a coding on a folded line", "x-a: 1\r\n transfer-encoding: chunked\r\n"),
    ] {
        cases.push((name, post(key, fields, te)));
    }
    let one_zero = format!("POST /v1/chat/completions HTTP/1.0\r\nauthorization: Bearer {key}\r\n");
    cases.push(("a coding in HTTP/1.0", format!("{one_zero}transfer-encoding: chunked\r\n\r\n{te}")));
    cases
}

/// Lines that do not end as lines end, and bytes that no field may have.
fn broken_lines(key: &str) -> Vec<(&'static str, String)> {
    let good = post(key, "content-length: 2\r\n", "{}");
    let replaced = |from: &str, to: &str| good.replacen(from, to, 1);
    vec![
        ("a bare line feed after the request line", replaced("HTTP/1.1\r\n", "HTTP/1.1\n")),
        ("a bare line feed after the host", replaced("gateway.test\r\n", "gateway.test\n")),
        ("a bare line feed after the last field", replaced("2\r\n\r\n", "2\n\r\n")),
        ("a bare line feed as the empty line", replaced("2\r\n\r\n", "2\r\n\n")),
        ("bare line feeds throughout", good.replace("\r\n", "\n")),
        ("a bare line feed before the request line", format!("\n{good}")),
        ("a bare carriage return after the request line", replaced("HTTP/1.1\r\n", "HTTP/1.1\r")),
        ("a bare carriage return in a value", replaced("gateway.test", "gateway.test\rx-a: 1")),
        ("two carriage returns at a line's end", replaced("gateway.test\r\n", "gateway.test\r\r\n")),
        ("two carriage returns in the empty line", format!("{}\r\n\r\n", replaced("2\r\n\r\n", "2\r\n\r\r\n"))),
        ("a NUL in a value", replaced("gateway", "gate\0way")),
        ("a NUL in a name", replaced("content-length", "content\0-length")),
        ("a NUL in the path", replaced("/chat", "/ch\0at")),
        ("a NUL in the method", replaced("POST", "PO\0ST")),
        ("a NUL before everything", format!("\0{good}")),
        ("a bell in a value", replaced("gateway", "gate\u{7}way")),
        ("a delete in a value", replaced("gateway", "gate\u{7f}way")),
        ("a delete in the path", replaced("/chat", "/ch\u{7f}at")),
        ("a tab in the path", replaced("/chat", "/ch\tat")),
        ("a fragment in the target", replaced("completions", "completions#top")),
        ("a field without a colon", replaced("host:", "x-nothing\r\nhost:")),
        ("a field without a name", replaced("host:", ": nothing\r\nhost:")),
        ("a blank in a name", replaced("host:", "x a: 1\r\nhost:")),
        ("a blank before a name", replaced("host:", " x-a: 1\r\nhost:")),
        ("a first line that is folded", replaced("host:", "\tx-a: 1\r\nhost:")),
        ("a folded value", replaced("gateway.test", "gateway.test\r\n\tmore")),
        ("a bracket in a name", replaced("host:", "x[a]: 1\r\nhost:")),
        ("a name beyond ASCII", replaced("host:", "x-\u{e9}: 1\r\nhost:")),
        ("two leading empty lines", format!("\r\n\r\n{good}")),
        ("a byte order mark", format!("\u{feff}{good}")),
        ("a blank before the method", format!(" {good}")),
    ]
}

/// Request lines and hosts.
fn broken_request_lines(key: &str) -> Vec<(&'static str, String)> {
    let host = |host: &str| format!("GET /v1/models HTTP/1.1\r\n{host}authorization: Bearer {key}\r\n\r\n");
    vec![
        ("HTTP/0.9", "GET /v1/models\r\n\r\n".to_owned()),
        ("HTTP/1.2", get(key, "GET /v1/models HTTP/1.2")),
        ("HTTP/1.10", get(key, "GET /v1/models HTTP/1.10")),
        ("HTTP/1", get(key, "GET /v1/models HTTP/1")),
        ("HTTP/2.0", get(key, "GET /v1/models HTTP/2.0")),
        ("HTTP/3.1", get(key, "GET /v1/models HTTP/3.1")),
        ("http/1.1 in small letters", get(key, "GET /v1/models http/1.1")),
        ("another protocol", get(key, "GET /v1/models ICAP/1.0")),
        ("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned()),
        ("no version but a blank", get(key, "GET /v1/models ")),
        ("something after the version", get(key, "GET /v1/models HTTP/1.1 x")),
        ("two blanks after the method", get(key, "GET  /v1/models HTTP/1.1")),
        ("two blanks after the target", get(key, "GET /v1/models  HTTP/1.1")),
        ("a tab after the method", get(key, "GET\t/v1/models HTTP/1.1")),
        ("a blank in the target", get(key, "GET /v1/mo dels HTTP/1.1")),
        ("no method", get(key, "/v1/models HTTP/1.1")),
        ("no target", get(key, "GET HTTP/1.1")),
        ("a method with a slash", get(key, "G/T /v1/models HTTP/1.1")),
        ("a method with a colon", get(key, "GET: /v1/models HTTP/1.1")),
        ("a method beyond ASCII", get(key, "G\u{cb}T /v1/models HTTP/1.1")),
        ("CONNECT", get(key, "CONNECT gateway.test:443 HTTP/1.1")),
        ("CONNECT with a path", get(key, "CONNECT /v1/models HTTP/1.1")),
        ("authority form for GET", get(key, "GET gateway.test:80 HTTP/1.1")),
        ("a relative target", get(key, "GET v1/models HTTP/1.1")),
        ("another scheme", get(key, "GET ftp://gateway.test/v1/models HTTP/1.1")),
        ("absolute form without a path", get(key, "GET http://gateway.test HTTP/1.1")),
        ("absolute form without an authority", get(key, "GET http:///v1/models HTTP/1.1")),
        ("a slash in an absolute form's query", get(key, "GET http://gateway.test?a=/v1/models HTTP/1.1")),
        ("a user in an absolute form", get(key, "GET http://me@gateway.test/v1/models HTTP/1.1")),
        ("no host", host("")),
        ("two equal hosts", host("host: a\r\nhost: a\r\n")),
        ("two different hosts", host("host: a\r\nHOST: b\r\n")),
        ("a list of hosts", host("host: a, b\r\n")),
        ("a host with a user", host("host: me@a\r\n")),
        ("a host with a path", host("host: a/v1\r\n")),
        ("a host with a query", host("host: a?b\r\n")),
        ("a host with a fragment", host("host: a#b\r\n")),
        ("a host with a backslash", host("host: a\\b\r\n")),
        ("a host with a blank", host("host: a b\r\n")),
        ("a host with a tab", host("host: a\tb\r\n")),
        ("a host with a quotation mark", host("host: a\"b\r\n")),
        ("a host with an angle bracket", host("host: <a>\r\n")),
        ("a host whose port is a word", host("host: a:http\r\n")),
        ("a host with two ports", host("host: a:1:2\r\n")),
    ]
}

/// Chunked bodies that arrive together with their head.
fn broken_chunks(key: &str) -> Vec<(&'static str, String)> {
    let chunked = |body: &str| post(key, "transfer-encoding: chunked\r\n", body);
    let long_extension = format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(5000));
    let long_trailer = format!("5\r\nhello\r\n0\r\nx-a: {}\r\n\r\n", "a".repeat(5000));
    vec![
        ("a chunk without a size", chunked("\r\nhello\r\n0\r\n\r\n")),
        ("a size that is no number", chunked("g\r\nhello\r\n0\r\n\r\n")),
        ("a size with 0x", chunked("0x5\r\nhello\r\n0\r\n\r\n")),
        ("a size with a plus", chunked("+5\r\nhello\r\n0\r\n\r\n")),
        ("a size with a minus", chunked("-5\r\nhello\r\n0\r\n\r\n")),
        ("a blank before the size", chunked(" 5\r\nhello\r\n0\r\n\r\n")),
        ("a blank after the size", chunked("5 \r\nhello\r\n0\r\n\r\n")),
        ("a size of 16 digits", chunked("0000000000000005\r\nhello\r\n0\r\n\r\n")),
        ("a size that overflows", chunked("ffffffffffffffffff\r\nhello\r\n0\r\n\r\n")),
        ("a bare line feed after the size", chunked("5\nhello\r\n0\r\n\r\n")),
        ("a bare carriage return after the size", chunked("5\rhello\r\n0\r\n\r\n")),
        ("a line feed inside an extension", chunked("5;a\nb\r\nhello\r\n0\r\n\r\n")),
        ("a NUL inside an extension", chunked("5;a\0b\r\nhello\r\n0\r\n\r\n")),
        ("an endless extension", chunked(&long_extension)),
        ("a chunk longer than its size", chunked("4\r\nhello\r\n0\r\n\r\n")),
        ("a chunk shorter than its size", chunked("6\r\nhello\r\n0\r\n\r\n")),
        ("a chunk that ends in a bare line feed", chunked("5\r\nhello\n0\r\n\r\n")),
        ("a chunk without an end", chunked("5\r\nhello0\r\n\r\n")),
        ("a last chunk that ends in a bare line feed", chunked("5\r\nhello\r\n0\n\n")),
        ("an end that is a bare line feed", chunked("5\r\nhello\r\n0\r\n\n")),
        ("a trailer with a NUL", chunked("5\r\nhello\r\n0\r\nx-a: \0\r\n\r\n")),
        ("a trailer that ends in a bare line feed", chunked("5\r\nhello\r\n0\r\nx-a: 1\n\r\n")),
        ("endless trailers", chunked(&long_trailer)),
    ]
}

/// Sends one request and says how it was received: the answer's status, and whether the connection was closed.
fn verdict(app: &TestApp, payload: &[u8]) -> (u16, bool) {
    let mut conn = Conn::open(app.public);
    // One that is served keeps its connection; there is no need to wait long to see it.
    conn.stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    // The answer may come, and the connection end, before all is sent.
    let _ = conn.try_send(payload);
    let answer = conn.read_answer_to(payload.starts_with(b"HEAD"));
    let status = answer.map_or(0, |answer| answer.status);
    let end = conn.stream.read(&mut [0; 1]);
    let closed = match end {
        Ok(len) => len == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    };
    (status, closed)
}

fn assert_all_refused(cases: Vec<(&'static str, String)>, app: &TestApp, statuses: &[u16]) {
    let mut wrong = Vec::new();
    for (name, payload) in &cases {
        let (status, closed) = verdict(app, payload.as_bytes());
        if !statuses.contains(&status) || !closed {
            wrong.push(format!("{name}: {status}, closed: {closed}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} were not refused as they should be:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
    assert_eq!(app.upstream.stats().total, 0, "none of them reached the upstream");
}

#[test]
fn framing_that_can_be_read_in_two_ways_is_refused() {
    let app = TestApp::start(PLENTY);
    let key = app.register("mallory").key;
    assert_all_refused(ambiguous_framing(&key), &app, &[400]);
}

#[test]
fn lines_that_do_not_end_as_lines_end_are_refused() {
    let app = TestApp::start(PLENTY);
    let key = app.register("mallory").key;
    assert_all_refused(broken_lines(&key), &app, &[400]);
}

#[test]
fn malformed_request_lines_and_hosts_are_refused() {
    let app = TestApp::start(PLENTY);
    let key = app.register("mallory").key;
    assert_all_refused(broken_request_lines(&key), &app, &[400, 505]);
}

#[test]
fn malformed_chunks_are_refused() {
    let app = TestApp::start(PLENTY);
    let key = app.register("mallory").key;
    assert_all_refused(broken_chunks(&key), &app, &[400]);
}

/// Unusual, but only one reading is possible: such requests are served.
#[test]
fn what_is_odd_but_clear_is_served() {
    let app = TestApp::start(PLENTY);
    let key = app.register("oscar").key;
    let length = format!("content-length: {}\r\n", BODY.len());
    let chunked = format!("{:X};name=\"value\"\r\n{BODY}\r\n0\r\nx-trailer: 1\r\n\r\n", BODY.len());
    let cases = [
        ("an empty line before the request", format!("\r\n{}", post(&key, &length, BODY))),
        ("leading zeros in the length", post(&key, &format!("content-length: 000{}\r\n", BODY.len()), BODY)),
        ("Chunked with a capital", post(&key, "transfer-encoding: Chunked\r\n", &chunked)),
        ("CHUNKED", post(&key, "TRANSFER-ENCODING: CHUNKED\r\n", &chunked)),
        ("a tab before chunked", post(&key, "transfer-encoding:\tchunked\r\n", &chunked)),
        ("no blank before chunked", post(&key, "transfer-encoding:chunked\r\n", &chunked)),
        ("blanks after chunked", post(&key, "transfer-encoding: chunked \t \r\n", &chunked)),
        ("a field with an empty value", post(&key, &format!("x-empty:\r\n{length}"), BODY)),
        ("a value beyond ASCII", post(&key, &format!("x-name: \u{e9}\r\n{length}"), BODY)),
        ("a field that looks like a length", post(&key, &format!("x-content-length: 999\r\n{length}"), BODY)),
        ("absolute form", raw("POST http://gateway.test/v1/chat/completions HTTP/1.1", &key, &length, BODY)),
        ("absolute form with a port", raw("POST HTTP://a:80/v1/chat/completions HTTP/1.1", &key, &length, BODY)),
        ("a host that is an IPv6 address", post(&key, &length, BODY).replacen("gateway.test", "[::1]:8080", 1)),
        ("an empty host", post(&key, &length, BODY).replacen("gateway.test", "", 1)),
        ("100 fields", post(&key, &format!("{}{length}", "x-a: 1\r\n".repeat(97)), BODY)),
    ];
    let count = cases.len();
    for (name, payload) in cases {
        let mut conn = Conn::open(app.public);
        conn.send(payload);
        let answer = conn.read_answer();
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        assert_eq!(app.upstream.last_request().unwrap().body, BODY.as_bytes(), "{name}");
    }
    assert_eq!(app.upstream.stats().total, count as u64);
    assert_eq!(app.upstream.stats().malformed, 0);
}

#[test]
fn heads_over_the_limits_get_431() {
    let app = TestApp::start(&format!("{PLENTY}[limits]\nmax_head_bytes = 8192\n"));
    let key = app.register("mallory").key;
    let many: String = (0..101).map(|n| format!("x-{n}: 1\r\n")).collect();
    let cases = [
        post(&key, &format!("x-long: {}\r\ncontent-length: 2\r\n", "a".repeat(8192)), "{}"),
        post(&key, &format!("{}: 1\r\ncontent-length: 2\r\n", "n".repeat(8192)), "{}"),
        get(&key, &format!("GET /v1/{} HTTP/1.1", "p".repeat(8192))),
        // Without an end of the line, too.
        format!("GET /{}", "p".repeat(9000)),
        format!("{} / HTTP/1.1\r\n", "M".repeat(9000)),
        post(&key, &many, ""),
        post(&key, &format!("{}content-length: 2\r\n", "x-a: 1\r\n".repeat(1000)), "{}"),
    ];
    for payload in cases {
        assert_eq!(verdict(&app, payload.as_bytes()), (431, true), "{} ...", &payload[..60]);
    }
    assert_eq!(app.upstream.stats().total, 0);
}

#[test]
fn bodies_over_the_limit_get_413_announced_or_not() {
    let app = TestApp::start(&format!("{PLENTY}[limits]\nmax_body_bytes = 1000\n"));
    let key = app.register("mallory").key;
    let announced = post(&key, "content-length: 1001\r\n", "");
    assert_eq!(verdict(&app, announced.as_bytes()), (413, true), "before a byte of it is sent");
    let whole = post(&key, "transfer-encoding: chunked\r\n", &format!("3e9\r\n{}\r\n0\r\n\r\n", "a".repeat(1001)));
    assert_eq!(verdict(&app, whole.as_bytes()), (413, true));
    assert_eq!(app.upstream.stats().total, 0);

    let exact = post(&key, "content-length: 1000\r\nconnection: close\r\n", &"a".repeat(1000));
    assert_eq!(verdict(&app, exact.as_bytes()), (200, true));
}

/// The upstream hears the beginning, for that was sound; it must never take it for the whole.
#[test]
fn a_chunked_body_that_turns_bad_on_the_way_never_ends_for_the_upstream() {
    let fake = FakeUpstream::start(|wire| wire.drain());
    let app = TestApp::start(&format!("{PLENTY}{}", fake.config("")));
    let user = app.register("mallory");
    for (nth, bad) in ["zz\r\n", "5\nhello", "-1\r\n", "5\r\nhello!!", "0\r\nx: \0\r\n\r\n"].iter().enumerate() {
        let mut conn = Conn::open(app.public);
        conn.send(post(&user.key, "transfer-encoding: chunked\r\n", "7\r\n{\"sound\r\n"));
        wait_until("the upstream has heard the beginning", || fake.heard(nth).contains("7\r\n{\"sound\r\n"));
        conn.send(bad);
        assert_eq!(conn.read_answer().status, 400, "{bad:?}");
        assert!(conn.is_closed(), "{bad:?}");
        fake.wait_until_all_ended();
        assert!(!fake.heard(nth).contains("\r\n0\r\n"), "{bad:?}: {}", fake.heard(nth));
    }
    let token = app.admin_token();
    assert_eq!(app.balance(&token, user.id, "conversations"), 1_000_000.0, "and it costs nothing");
    assert_eq!(app.metric("tollgate_holds_open"), 0.0);
}

#[test]
fn a_body_that_grows_over_the_limit_on_the_way_is_cut_off() {
    let fake = FakeUpstream::start(|wire| wire.drain());
    let app = TestApp::start(&format!("{PLENTY}{}[limits]\nmax_body_bytes = 1000\n", fake.config("")));
    let key = app.register("mallory").key;
    let mut conn = Conn::open(app.public);
    conn.send(post(&key, "transfer-encoding: chunked\r\n", &format!("1f4\r\n{}\r\n", "a".repeat(500))));
    wait_until("the upstream has heard the beginning", || fake.heard(0).contains("aaaa"));
    conn.send(format!("1f5\r\n{}\r\n0\r\n\r\n", "b".repeat(501)));
    assert_eq!(conn.read_answer().status, 413);
    assert!(conn.is_closed());
    fake.wait_until_all_ended();
    assert!(!fake.heard(0).contains("\r\n0\r\n"));
}

#[test]
fn a_body_that_is_cut_off_is_never_taken_for_whole() {
    let fake = FakeUpstream::start(|wire| wire.drain());
    let app = TestApp::start(&format!("{PLENTY}{}", fake.config("")));
    let user = app.register("mallory");
    let bodies = [
        ("content-length: 100\r\n", "{\"sound"),
        ("transfer-encoding: chunked\r\n", "64\r\n{\"sound"),
        ("transfer-encoding: chunked\r\n", "7\r\n{\"sound\r\n"),
    ];
    for (nth, (fields, body)) in bodies.into_iter().enumerate() {
        let mut conn = Conn::open(app.public);
        conn.send(post(&user.key, fields, body));
        wait_until("the upstream has heard the beginning", || fake.heard(nth).contains("sound"));
        conn.close_write();
        assert!(conn.is_closed(), "nobody waits for an answer any more");
        fake.wait_until_all_ended();
        assert!(!fake.heard(nth).contains("\r\n0\r\n"), "{}", fake.heard(nth));
    }
    let token = app.admin_token();
    wait_until("all holds are settled", || app.metric("tollgate_holds_open") == 0.0);
    assert_eq!(app.balance(&token, user.id, "conversations"), 1_000_000.0);
}

#[test]
fn a_head_that_is_cut_off_is_refused() {
    let app = TestApp::start(PLENTY);
    let key = app.register("mallory").key;
    let good = post(&key, "content-length: 0\r\n", "");
    for len in [1, 4, 10, 36, 60, good.len() - 2, good.len() - 1] {
        let mut conn = Conn::open(app.public);
        conn.send(&good[..len]);
        conn.close_write();
        assert_eq!(conn.read_answer().status, 400, "{len} of {} bytes", good.len());
        assert!(conn.is_closed());
    }
    assert_eq!(app.upstream.stats().total, 0);
}

#[test]
fn garbage_after_a_good_request_does_not_harm_it_and_ends_the_connection() {
    let app = TestApp::start(PLENTY);
    let key = app.register("mallory").key;
    let good = post(&key, &format!("content-length: {}\r\n", BODY.len()), BODY);
    for garbage in ["GARBAGE\r\n\r\n", "\0\0\0\0\r\n\r\n", "GET /v1/models\r\n\r\n", "{\"a\":1}\n"] {
        let mut conn = Conn::open(app.public);
        conn.send(format!("{good}{garbage}"));
        assert_eq!(conn.read_answer().status, 200, "{garbage:?}");
        assert_eq!(conn.read_answer().status, 400, "{garbage:?}");
        assert!(conn.is_closed(), "{garbage:?}");
    }
    assert_eq!(app.upstream.stats().total, 4, "the good ones and nothing else");
    assert_eq!(app.upstream.stats().malformed, 0);
}

/// A refused request's body must not be taken for the next request.
#[test]
fn a_refused_request_s_body_is_not_the_next_request() {
    let app = TestApp::start(PLENTY);
    let key = app.register("mallory").key;
    let smuggled = get(&key, "GET /v1/models HTTP/1.1");
    let mut conn = Conn::open(app.public);
    conn.send(post("pe-wrong", &format!("content-length: {}\r\n", smuggled.len()), &smuggled));
    assert_eq!(conn.read_answer().status, 401);
    conn.send(request("GET", "/nothing-here", &[], None));
    assert_eq!(conn.read_answer().status, 404, "this is the answer to the second request");
    let chunked = format!("{:x}\r\n{smuggled}\r\n0\r\n\r\n", smuggled.len());
    conn.send(post("pe-wrong", "transfer-encoding: chunked\r\n", &chunked));
    assert_eq!(conn.read_answer().status, 401);
    assert!(conn.is_closed());
    assert_eq!(app.upstream.stats().total, 0);
}

/// What a body holds must never be a request of its own for the upstream, however the request around it is bent. Without a
/// credential, the gateway would refuse it; so if the upstream sees it, the two disagreed where a request ends.
#[test]
fn no_bent_request_smuggles_another_past_the_gateway() {
    const TRIES: usize = 1_000;
    let app = TestApp::start(PLENTY);
    let key = app.register("mallory").key;
    let inner = "GET /v1/smuggled HTTP/1.1\r\nhost: x\r\n\r\n";
    let chunk = format!("{:x}\r\n{inner}\r\n0\r\n\r\n", inner.len());
    let sound = [
        post(&key, &format!("content-length: {}\r\n", inner.len()), inner),
        post(&key, "transfer-encoding: chunked\r\n", &chunk),
        post(&key, &format!("content-length: {}\r\nx-a: b\r\nexpect: 100-continue\r\n", chunk.len()), &chunk),
    ];
    let pieces: [&[u8]; 22] = [
        b"\r",
        b"\n",
        b"\r\n",
        b" ",
        b"\t",
        b"\0",
        b":",
        b",",
        b";",
        b"0",
        b"9",
        b"a",
        b"\x0b",
        b"\xa0",
        b"\r\n\r\n",
        b"content-length: 0\r\n",
        b"content-length: 5\r\n",
        b"transfer-encoding: chunked\r\n",
        b"Transfer-Encoding : x\r\n",
        b"HTTP/1.0",
        b"0\r\n\r\n",
        b"GET /v1/smuggled HTTP/1.1\r\n",
    ];
    std::thread::scope(|scope| {
        for part in 0..4 {
            let (app, sound, pieces) = (&app, &sound, &pieces);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(part);
                for _ in 0..TRIES / 4 {
                    let mut bent = sound[random.usize(0..sound.len())].clone().into_bytes();
                    // The fields that matter stand behind the credential.
                    let from = bent.windows(15).position(|w| w == b"authorization: ").unwrap();
                    for _ in 0..random.usize(1..4) {
                        let at = random.usize(from..bent.len());
                        let gone = random.usize(0..2).min(bent.len() - at);
                        bent.splice(at..at + gone, pieces[random.usize(0..pieces.len())].iter().copied());
                    }
                    let mut conn = Conn::open(app.public);
                    let _ = conn.try_send(&bent);
                    // It stays, so that what follows its request is judged as well; an answer comes at once or never.
                    conn.stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
                    let _ = conn.stream.read_to_end(&mut Vec::new());
                }
            });
        }
    });
    let stats = app.upstream.stats();
    assert!(!stats.by_path.contains_key("/v1/smuggled"), "{:?}", stats.by_path);
    assert!(stats.total > 50, "many were harmless and reached it: {}", stats.total);
    assert_eq!(stats.malformed, 0, "whatever reached the upstream was well-formed");
    wait_until("all is settled", || app.metric("tollgate_holds_open") == 0.0);
}

#[test]
fn bytes_of_other_protocols_are_refused() {
    let app = TestApp::start(PLENTY);
    let mut hello = vec![0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03];
    hello.extend((0..505u32).map(|n| (n * 37 % 251) as u8));
    for payload in
        [&hello[..], b"SSH-2.0-OpenSSH_9.2\r\n", b"\x80\x2e\x01\x00\x02", b"\x03\x00\x00\x13\x0e\xe0", b"QUIT\n"]
    {
        let mut conn = Conn::open(app.public);
        conn.send(payload);
        conn.close_write();
        assert_eq!(conn.read_answer().status, 400, "{payload:?}");
        assert!(conn.is_closed());
    }
    assert_eq!(app.upstream.stats().total, 0);
}

#[test]
fn an_expectation_we_do_not_know_gets_417() {
    let app = TestApp::start(PLENTY);
    let key = app.register("mallory").key;
    for value in ["200-ok", "100-continue, 200-ok", "100-continued", ""] {
        let payload = post(&key, &format!("expect: {value}\r\ncontent-length: {}\r\n", BODY.len()), BODY);
        assert_eq!(verdict(&app, payload.as_bytes()), (417, true), "{value}");
    }
    assert_eq!(app.upstream.stats().total, 0);
}

fn with_a_still_clock(toml: &str) -> TestApp {
    TestApp::with(Options {
        toml: format!("{PLENTY}{toml}"),
        manual_clock: Some("2026-01-15T12:00:00Z"),
        ..Options::default()
    })
}

/// Waits until the gateway has taken up this many connections, so that a limit counts from before the clock moves.
fn wait_for_connections(app: &TestApp, count: f64) {
    wait_until("the connections are there", || app.metric("tollgate_connections") == count);
}

#[test]
fn a_head_that_comes_too_slowly_gets_408() {
    let app = with_a_still_clock("[limits]\nheader_timeout = \"10s\"\nidle_timeout = \"75s\"\n");
    let mut starts: Vec<Conn> = ["G", "GET /v1/models HTTP/1.1\r\n", "GET /v1/models HTTP/1.1\r\nhost: x\r\n", "\r\n"]
        .into_iter()
        .map(|start| {
            let mut conn = Conn::open(app.public);
            conn.send(start);
            conn
        })
        .collect();
    wait_for_connections(&app, 4.0);
    for _ in 0..3 {
        // A byte now and then buys no time.
        advance(&app, Duration::from_secs(3));
        for conn in &mut starts {
            conn.send("x");
        }
    }
    advance(&app, Duration::from_secs(2));
    for mut conn in starts {
        let answer = conn.read_answer();
        assert_eq!((answer.status, answer.error_code().as_str()), (408, "REQUEST_TIMEOUT"));
        assert!(conn.is_closed());
    }
    assert_eq!(app.upstream.stats().total, 0);
}

#[test]
fn a_body_for_us_that_only_drips_gets_408() {
    let app = with_a_still_clock("[limits]\nbody_timeout = \"30s\"\n");
    let mut conn = Conn::open(app.public);
    conn.send("POST /v1/users/login HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{");
    wait_for_connections(&app, 1.0);
    // Strangers can send these, and they wait in memory: a byte now and then buys no time.
    for _ in 0..4 {
        advance(&app, Duration::from_secs(10));
        let _ = conn.try_send("x");
    }
    assert_eq!(conn.read_answer().status, 408);
}

#[test]
fn a_body_that_stops_coming_gets_408_and_never_ends_for_the_upstream() {
    let fake = FakeUpstream::start(|wire| wire.drain());
    let limits = "[limits]\nbody_timeout = \"30s\"\nslowest_body_bytes_per_second = 0\n";
    let app = with_a_still_clock(&format!("{}{limits}", fake.config("")));
    let user = app.register("sloth");
    let mut conn = Conn::open(app.public);
    conn.send(post(&user.key, "content-length: 1000\r\n", "{\"sound"));
    wait_until("the upstream has heard the beginning", || fake.heard(0).contains("sound"));
    // Each piece renews the time.
    for nth in 0..5 {
        advance(&app, Duration::from_secs(20));
        conn.send(format!("piece-{nth}"));
        wait_until("the piece has arrived", || fake.heard(0).contains(&format!("piece-{nth}")));
    }
    // The last piece renews it a moment after the upstream has heard it, which may be after the clock was moved.
    conn.stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    wait_until("its time is over", || {
        advance(&app, Duration::from_secs(31));
        conn.stream.peek(&mut [0; 1]).is_ok()
    });
    conn.stream.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    assert_eq!(conn.read_answer().status, 408);
    assert!(conn.is_closed());
    fake.wait_until_all_ended();
    assert!(fake.heard(0).ends_with("piece-4"));
    assert_eq!(app.metric("tollgate_holds_open"), 0.0);
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let app = with_a_still_clock("[limits]\nidle_timeout = \"75s\"\n");
    let key = app.register("dora").key;
    let mut fresh = Conn::open(app.public);
    let mut used = Conn::open(app.public);
    used.send(post(&key, &format!("content-length: {}\r\n", BODY.len()), BODY));
    assert_eq!(used.read_answer().status, 200);
    wait_for_connections(&app, 2.0);
    advance(&app, Duration::from_secs(74));
    assert_eq!(used.call("GET", "/nothing", &[], None).status, 404, "it is still open");
    advance(&app, Duration::from_secs(74));
    let said = fresh.read_answer_to(false).map(|answer| answer.status);
    assert!(said.is_err(), "a client that asked nothing is told nothing, and not {said:?}");
    assert_eq!(used.call("GET", "/nothing", &[], None).status, 404, "its time began anew");
    wait_until("it is closed as well", || {
        advance(&app, Duration::from_secs(76));
        app.metric("tollgate_connections") == 0.0
    });
    assert!(used.is_closed());
}

#[test]
fn a_client_that_does_not_read_its_answer_is_let_go() {
    let app = with_a_still_clock("[limits]\nwrite_timeout = \"60s\"\n");
    let key = app.register("dora").key;
    let mut conn = Conn::open(app.public);
    let bytes = (64u64 << 20).to_string();
    let headers = [("authorization", format!("Bearer {key}")), ("x-mock-body-bytes", bytes)];
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    conn.send(request("GET", "/v1/big", &headers, None));
    assert_eq!(conn.read_head().unwrap().status, 200);
    let sent = || app.upstream.stats().bytes_out;
    let mut before = 0;
    wait_until("nothing moves any more", || {
        let now = sent();
        let quiet = now == before && now > 1 << 20;
        before = now;
        std::thread::park_timeout(Duration::from_millis(100));
        quiet
    });
    wait_until("the client is let go", || {
        advance(&app, Duration::from_secs(61));
        app.metric("tollgate_in_flight") == 0.0
    });
    assert_eq!(app.metric("tollgate_holds_open"), 0.0);
    wait_until("the upstream is let go as well", || app.upstream.stats().open == 0);
    assert!(sent() < 64 << 20);
}

#[test]
fn bad_requests_by_the_thousand_leave_memory_where_it_was() {
    const REQUESTS: usize = 20_000;
    const GROWTH_KIB: u64 = 12 << 10;
    let site = Site::new(
        "[listen]\npublic = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\nworkers = 2\n\
         [store]\nbackend = \"memory\"\n[limits]\nper_ip_per_minute = 0\n[access]\nblock_after_failures = 0\n\
         [telemetry]\naccess_log = \"off\"\n\
         [[upstreams]]\nname = \"ai\"\nendpoints = [\"http://127.0.0.1:1\"]\n\
         [[routes]]\npath = \"/v1/*\"\nupstream = \"ai\"\n",
    );
    let mut server = site.serve();
    let key = "pe-00000000000000000000000000000000";
    let mut payloads: Vec<String> = Vec::new();
    for cases in [ambiguous_framing(key), broken_lines(key), broken_request_lines(key), broken_chunks(key)] {
        payloads.extend(cases.into_iter().map(|(_, payload)| payload));
    }
    payloads.push(format!("GET /{}", "p".repeat(40_000)));
    payloads.push(post(key, &"x-a: 1\r\n".repeat(1000), ""));
    assert!(payloads.len() >= 80);
    let storm = |count: usize| {
        std::thread::scope(|scope| {
            for part in 0..4 {
                let (payloads, public) = (&payloads, server.public);
                scope.spawn(move || {
                    for nth in 0..count / 4 {
                        let payload = &payloads[(nth * 4 + part) % payloads.len()];
                        let mut conn = Conn::open(public);
                        conn.stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
                        // Refused early, it may be closed before all is written.
                        let _ = conn.stream.write_all(payload.as_bytes());
                        let status = conn.read_answer_to(false).map_or(0, |answer| answer.status);
                        assert!(matches!(status, 0 | 400..=599), "{status}: {payload}");
                    }
                });
            }
        });
    };
    storm(REQUESTS / 10);
    wait_until("all connections are closed", || server.metric("tollgate_connections") == 0.0);
    let (warm, descriptors) = (server.rss_kib(), server.descriptors());
    storm(REQUESTS);
    wait_until("all connections are closed", || server.metric("tollgate_connections") == 0.0);
    let after = server.rss_kib();
    assert!(after < warm + GROWTH_KIB, "resident memory went from {warm} to {after} KiB");
    // The side port's own connections come and go.
    wait_until("the descriptors are given back", || server.descriptors() <= descriptors + 2);
    assert!(server.is_running());
    assert_eq!(server.metric("tollgate_panics_total"), 0.0);
}
