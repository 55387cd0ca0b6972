//! The simulated service over a real socket: framing, every endpoint, every way of steering.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{MockUpstream, filler_byte};

const CHAT: &str = "/v1/chat/completions";

struct Client {
    stream: TcpStream,
    read: Vec<u8>,
}

#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: Vec<u8>,
    trailers: String,
}

impl Client {
    async fn new(mock: &MockUpstream) -> Self {
        Self { stream: TcpStream::connect(mock.addr()).await.unwrap(), read: Vec::new() }
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    async fn get(&mut self, target: &str, headers: &str) -> Reply {
        self.send(format!("GET {target} HTTP/1.1\r\nhost: mock\r\n{headers}\r\n")).await;
        self.reply().await
    }

    async fn post(&mut self, target: &str, headers: &str, body: &Value) -> Reply {
        self.send(post(target, headers, &body.to_string())).await;
        self.reply().await
    }

    /// Reads until `wanted` bytes are there; fewer when the service closes first.
    async fn need(&mut self, wanted: usize) {
        while self.read.len() < wanted && self.stream.read_buf(&mut self.read).await.unwrap() > 0 {}
    }

    /// Takes everything up to and with `end`.
    async fn until(&mut self, end: &str) -> String {
        loop {
            if let Some(at) = memchr::memmem::find(&self.read, end.as_bytes()) {
                return String::from_utf8(self.take(at + end.len())).unwrap();
            }
            let before = self.read.len();
            self.need(before + 1).await;
            assert!(self.read.len() > before, "closed before {end:?}: {:?}", self.rest());
        }
    }

    fn take(&mut self, bytes: usize) -> Vec<u8> {
        self.read.drain(..bytes).collect()
    }

    fn rest(&self) -> String {
        String::from_utf8_lossy(&self.read).into_owned()
    }

    async fn into_end(mut self) -> String {
        self.need(usize::MAX).await;
        self.rest()
    }

    async fn reply(&mut self) -> Reply {
        let head = self.until("\r\n\r\n").await;
        let mut reply = Reply { status: head[9..12].parse().unwrap(), head, body: Vec::new(), trailers: String::new() };
        if reply.header("transfer-encoding") == Some("chunked") {
            self.chunks(&mut reply).await;
        } else if let Some(length) = reply.header("content-length") {
            let length = length.parse().unwrap();
            self.need(length).await;
            reply.body = self.take(length);
        } else if reply.status != 204 {
            self.need(usize::MAX).await;
            reply.body = std::mem::take(&mut self.read);
        }
        reply
    }

    async fn chunks(&mut self, reply: &mut Reply) {
        loop {
            let line = self.until("\r\n").await;
            let size = usize::from_str_radix(line.trim_end(), 16).unwrap();
            if size == 0 {
                break;
            }
            self.need(size + 2).await;
            reply.body.extend(self.take(size));
            assert_eq!(self.take(2), b"\r\n");
        }
        while reply.trailers != "\r\n" && !reply.trailers.ends_with("\r\n\r\n") {
            reply.trailers += &self.until("\r\n").await;
        }
    }
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The data of each event.
    fn events(&self) -> Vec<&str> {
        assert_eq!(self.header("content-type"), Some("text/event-stream; charset=utf-8"));
        self.text().lines().filter_map(|line| line.strip_prefix("data: ")).collect()
    }

    fn json_events(&self) -> Vec<Value> {
        let events = self.events().into_iter().filter(|data| *data != "[DONE]");
        events.map(|data| serde_json::from_str(data).unwrap()).collect()
    }
}

fn post(target: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {target} HTTP/1.1\r\nhost: mock\r\ncontent-length: {length}\r\n{headers}\r\n{body}")
}

fn chat(text: &str) -> Value {
    json!({"model": "gpt-4o", "messages": [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": text},
    ]})
}

fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

async fn start() -> (MockUpstream, Client) {
    let mock = MockUpstream::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let client = Client::new(&mock).await;
    (mock, client)
}

/// Gives the service's tasks turns until `done`; a test that never gets there is ended by the round limit.
async fn until(mock: &MockUpstream, done: impl Fn(&super::MockStats) -> bool) {
    for _ in 0..1_000_000 {
        if done(&mock.stats()) {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("never happened: {:?}", mock.stats());
}

// ---- endpoints -----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn chat_answers_with_the_last_user_message_and_usage_that_adds_up() {
    let (_mock, mut client) = start().await;
    let body = json!({"model": "m\"1", "messages": [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": [{"type": "text", "text": "say \"hi\"\nö"}, {"type": "image_url"}]},
    ]});
    let reply = client.post(CHAT, "", &body).await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
    let answer = reply.json();
    let choice = &answer["choices"][0];
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "m\"1");
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["finish_reason"], "stop");
    let text = choice["message"]["content"].as_str().unwrap();
    assert!(text.starts_with("You said: say \"hi\" ö "), "{text}");
    assert_eq!(text.split(' ').count(), 12);
    let usage = |name: &str| answer["usage"][name].as_u64().unwrap();
    assert_eq!(usage("completion_tokens"), 12);
    assert_eq!(usage("total_tokens"), usage("prompt_tokens") + 12);
}

#[tokio::test]
async fn a_body_that_is_not_json_is_answered_all_the_same() {
    let (_mock, mut client) = start().await;
    for body in ["", "{", "[]", "{\"messages\":[{\"role\":\"user\"", "\"", "{\"a\":}", "nonsense", "{\"model\":\"\\"] {
        client.send(post(CHAT, "", body)).await;
        assert_eq!(client.reply().await.json()["model"], "gpt-4o-mini", "{body}");
    }
}

#[tokio::test]
async fn the_callers_limit_cuts_the_answer_and_steering_overrides_it() {
    let (_mock, mut client) = start().await;
    let body = with(chat("a b c d e"), json!({"max_tokens": 3}));
    let answer = client.post(CHAT, "", &body).await.json();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    let answer = client.post(CHAT, "x-mock-tokens: 40\r\n", &body).await.json();
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["usage"]["completion_tokens"], 40);
}

#[tokio::test]
async fn a_stream_has_one_event_per_token_and_ends_with_usage_and_done() {
    let (_mock, mut client) = start().await;
    let body = with(chat("hello"), json!({"stream": true, "stream_options": {"include_usage": true}}));
    let reply = client.post(CHAT, "x-mock-tokens: 3\r\n", &body).await;
    assert_eq!(reply.events().last(), Some(&"[DONE]"));
    let events = reply.json_events();
    let text: String = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, "You said: hello");
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(events[4]["choices"][0]["finish_reason"], "stop");
    assert_eq!(events[4]["usage"], Value::Null);
    assert_eq!(events[5]["choices"], json!([]));
    assert_eq!(events[5]["usage"]["completion_tokens"], 3);
    assert_eq!(events.len(), 6);
}

#[tokio::test]
async fn a_stream_has_no_usage_unless_asked() {
    let (_mock, mut client) = start().await;
    let reply = client.post(CHAT, "", &with(chat("x"), json!({"stream": true}))).await;
    assert!(!reply.text().contains("usage"));
    assert_eq!(reply.events().len(), 1 + 12 + 1 + 1);
}

#[tokio::test]
async fn completions_answer_plain_and_streaming() {
    let (_mock, mut client) = start().await;
    let body = json!({"model": "m", "prompt": ["one", "two"]});
    let answer = client.post("/v1/completions", "x-mock-tokens: 3\r\n", &body).await.json();
    assert_eq!(
        (&answer["object"], &answer["choices"][0]["text"]),
        (&json!("text_completion"), &json!("You said: two"))
    );
    let stream = with(body, json!({"stream": true}));
    let events = client.post("/v1/completions", "x-mock-tokens: 3\r\n", &stream).await.json_events();
    let text: String = events.iter().map(|event| event["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(text, "You said: two");
}

#[tokio::test]
async fn responses_answer_plain_and_streaming() {
    let (_mock, mut client) = start().await;
    let body = json!({"model": "m", "input": "hey"});
    let answer = client.post("/v1/responses", "x-mock-tokens: 3\r\n", &body).await.json();
    assert_eq!(answer["output"][0]["content"][0]["text"], "You said: hey");
    assert_eq!(answer["usage"]["output_tokens"], 3);
    let input = json!([{"role": "user", "content": [{"type": "input_text", "text": "yo"}]}]);
    let stream = json!({"model": "m", "input": input, "stream": true});
    let reply = client.post("/v1/responses", "x-mock-tokens: 3\r\n", &stream).await;
    let events = reply.json_events();
    let kinds: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds.first(), Some(&"response.created"));
    assert_eq!(kinds.iter().filter(|kind| **kind == "response.output_text.delta").count(), 3);
    assert_eq!(kinds.last(), Some(&"response.completed"));
    let last = events.last().unwrap();
    assert_eq!(last["response"]["output"][0]["content"][0]["text"], "You said: yo");
    let usage = &last["response"]["usage"];
    assert_eq!(usage["total_tokens"], json!(usage["input_tokens"].as_u64().unwrap() + 3));
    assert_eq!(last["sequence_number"], json!(events.len() - 1));
}

#[tokio::test]
async fn embeddings_come_as_numbers_or_base64_one_per_input() {
    let (_mock, mut client) = start().await;
    let body = json!({"model": "m", "input": ["a", "b", "c"], "dimensions": 4});
    let answer = client.post("/v1/embeddings", "", &body).await.json();
    assert_eq!(answer["data"].as_array().unwrap().len(), 3);
    assert_eq!(answer["data"][2]["index"], 2);
    assert_eq!(answer["data"][0]["embedding"], json!([0.5, 0.5, 0.5, 0.5]));
    assert_eq!(answer["usage"]["prompt_tokens"], answer["usage"]["total_tokens"]);
    let coded = with(body, json!({"encoding_format": "base64", "input": "just one"}));
    let answer = client.post("/v1/embeddings", "", &coded).await.json();
    assert_eq!(answer["data"][0]["embedding"], "AAAAPwAAAD8AAAA/AAAAPw==");
    assert_eq!(answer["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn images_come_as_links_or_inline() {
    let (_mock, mut client) = start().await;
    let path = "/v1/images/generations";
    let answer = client.post(path, "", &json!({"prompt": "a cat", "n": 2})).await.json();
    assert_eq!(answer["data"].as_array().unwrap().len(), 2);
    assert!(answer["data"][0]["url"].is_string());
    let inline = json!({"prompt": "a cat", "response_format": "b64_json"});
    assert!(client.post(path, "", &inline).await.json()["data"][0]["b64_json"].is_string());
}

#[tokio::test]
async fn models_are_listed_and_shown() {
    let (_mock, mut client) = start().await;
    let list = client.get("/v1/models", "").await.json();
    assert_eq!(list["data"][0]["object"], "model");
    assert_eq!(client.get("/v1/models/any%2Fone?x=1", "").await.json()["id"], "any%2Fone");
}

#[tokio::test]
async fn anything_else_is_echoed() {
    let (_mock, mut client) = start().await;
    client
        .send("PATCH /a/../b?c=%20 HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nx-a: 2\r\ncontent-length: 3\r\n\r\n\u{f6}!")
        .await;
    let echoed = client.reply().await.json();
    let headers = json!({"host": "h", "x-a": ["1", "2"], "content-length": "3"});
    assert_eq!(echoed, json!({"method": "PATCH", "path": "/a/../b?c=%20", "headers": headers, "body": "ö!"}));
    assert_eq!(client.get(CHAT, "").await.json()["method"], "GET");
}

#[tokio::test]
async fn stats_count_calls_by_path_and_request_id_but_not_themselves() {
    let (mock, mut client) = start().await;
    for _ in 0..2 {
        client.post(CHAT, "X-Request-Id: req_1\r\n", &chat("x")).await;
    }
    client.get("/other?q=1", "x-request-id: req_2\r\n").await;
    let stats = client.get("/__mock/stats", "x-request-id: req_2\r\n").await.json();
    assert_eq!((&stats["total"], &stats["open"], &stats["aborted"]), (&json!(3), &json!(0), &json!(0)));
    assert_eq!(stats["by_path"], json!({CHAT: 2, "/other": 1}));
    assert_eq!(stats["by_request_id"], json!({"req_1": 2, "req_2": 1}));
    let one = client.get("/__mock/stats?request_id=req_1", "").await.json();
    assert_eq!(one["by_request_id"], json!({"req_1": 2}));
    assert_eq!((mock.served("req_1"), mock.served("never")), (2, 0));
    assert_eq!((mock.stats().connections, mock.stats().connections_open), (1, 1));
}

#[tokio::test]
async fn requests_are_recorded_as_they_came_once_switched_on() {
    let (mock, mut client) = start().await;
    client.get("/before", "").await;
    assert_eq!(mock.last_request(), None);
    mock.record(true);
    client
        .send("PUT /x?y HTTP/1.1\r\nHOST: h\r\nX-Raw: \u{e9}\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n")
        .await;
    client.reply().await;
    let request = mock.last_request().unwrap();
    assert_eq!((request.method.as_str(), request.target.as_str()), ("PUT", "/x?y"));
    assert_eq!(request.headers[0], ("HOST".to_owned(), b"h".to_vec()));
    assert_eq!(request.header("x-raw"), Some("é".as_bytes()));
    assert_eq!(request.body, b"ab");
    for _ in 0..300 {
        client.get("/many", "").await;
    }
    assert_eq!(mock.requests().len(), 256);
}

// ---- framing -------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (mock, mut client) = start().await;
    let calls: String = (0..20).map(|n| post(&format!("/{n}"), "", &"x".repeat(n * 100))).collect();
    client.send(calls).await;
    for n in 0..20 {
        assert_eq!(client.reply().await.json()["path"], format!("/{n}"));
    }
    assert_eq!(mock.stats().connections, 1);
}

#[tokio::test]
async fn a_request_that_comes_byte_by_byte_is_read() {
    let (_mock, mut client) = start().await;
    client.stream.set_nodelay(true).unwrap();
    for byte in post("/slow", "", "body").into_bytes() {
        client.send([byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(client.reply().await.json()["body"], "body");
}

#[tokio::test]
async fn chunked_bodies_are_joined() {
    let (_mock, mut client) = start().await;
    let body = chat("chunky").to_string();
    let (one, two) = body.split_at(10);
    let chunks = format!("a;ext=1\r\n{one}\r\n{:X}\r\n{two}\r\n0\r\nTrailer: 1\r\n\r\n", two.len());
    client.send(format!("POST {CHAT} HTTP/1.1\r\ntransfer-encoding: Chunked\r\n\r\n{chunks}")).await;
    assert!(client.reply().await.text().contains("You said: chunky"));
    assert_eq!(client.get("/next", "").await.status, 200);
}

#[tokio::test]
async fn a_body_over_the_kept_size_is_still_read_to_its_end() {
    let (mock, mut client) = start().await;
    mock.record(true);
    let body = "z".repeat((16 << 20) + 5);
    client.send(post("/big", "", &body)).await;
    assert_eq!(client.reply().await.json()["body"].as_str().unwrap().len(), 16 << 20);
    assert_eq!(mock.last_request().unwrap().body.len(), 1 << 20);
    assert_eq!(client.get("/next", "").await.status, 200);
}

#[tokio::test]
async fn a_client_that_asks_first_is_told_to_continue() {
    let (_mock, mut client) = start().await;
    client.send("POST /x HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n").await;
    assert_eq!(client.until("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("ok").await;
    assert_eq!(client.reply().await.json()["body"], "ok");
}

#[tokio::test]
async fn head_gets_the_head_alone() {
    let (_mock, mut client) = start().await;
    client.send("HEAD /v1/models HTTP/1.1\r\n\r\nGET /v1/models HTTP/1.1\r\n\r\n").await;
    let head = client.until("\r\n\r\n").await;
    let reply = client.reply().await;
    assert_eq!(head, reply.head);
    assert!(!reply.body.is_empty());
}

#[tokio::test]
async fn connections_end_when_the_client_says_so() {
    for head in ["GET /x HTTP/1.1\r\nConnection: foo, Close\r\n\r\n", "GET /x HTTP/1.0\r\n\r\n"] {
        let (_mock, mut client) = start().await;
        client.send(head).await;
        assert!(client.into_end().await.contains("connection: close"), "{head}");
    }
    let (_mock, mut client) = start().await;
    client.send("GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
    assert_eq!(client.reply().await.header("connection"), Some("keep-alive"));
    assert_eq!(client.get("/next", "").await.status, 200);
}

#[tokio::test]
async fn framing_that_could_be_read_two_ways_is_refused() {
    let refused = [
        "POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n",
        "POST / HTTP/1.1\r\ncontent-length: +1\r\n\r\n",
        "POST / HTTP/1.1\r\ncontent-length:\r\n\r\n",
        "POST / HTTP/1.1\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0x1\r\na\r\n",
        "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\na\r\n",
        "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n",
        "nonsense\r\n\r\n",
    ];
    for request in refused {
        let (mock, mut client) = start().await;
        client.send(request).await;
        let answer = client.into_end().await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{request:?}: {answer}");
        assert_eq!(mock.stats().malformed, 1);
    }
}

// ---- steering ------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_status_is_answered_with_a_fitting_body() {
    let (_mock, mut client) = start().await;
    let reply = client.post(CHAT, "x-mock-status: 429\r\n", &chat("x")).await;
    assert_eq!((reply.status, &reply.json()["error"]["type"]), (429, &json!("rate_limit_error")));
    let reply = client.post(CHAT, "x-mock-status: 201\r\n", &chat("x")).await;
    assert_eq!((reply.status, &reply.json()["object"]), (201, &json!("chat.completion")));
    let reply = client.get("/x", "x-mock-status: 204\r\n").await;
    assert_eq!((reply.status, reply.body.len(), reply.header("content-length")), (204, 0, None));
    assert_eq!(client.get("/x", "x-mock-status: 100\r\n").await.status, 200);
}

#[tokio::test]
async fn usage_is_sent_as_given_however_wrong() {
    let (_mock, mut client) = start().await;
    let bodies = [
        ("/v1/chat/completions", chat("x")),
        ("/v1/responses", json!({"input": "x"})),
        ("/v1/embeddings", json!({"input": "x"})),
        ("/v1/images/generations", json!({"prompt": "x"})),
    ];
    for (path, body) in bodies {
        let reply = client.post(path, "x-mock-usage: {\"total_tokens\":-1e99\r\n", &body).await;
        assert!(reply.text().ends_with(",\"usage\":{\"total_tokens\":-1e99}"), "{path}");
        for word in ["none", "omit"] {
            let reply = client.post(path, &format!("x-mock-usage: {word}\r\n"), &body).await;
            assert!(!reply.text().contains("usage") && reply.json().is_object(), "{path}");
        }
    }
    let body = with(chat("x"), json!({"stream": true, "stream_options": {"include_usage": true}}));
    let reply = client.post(CHAT, "x-mock-usage: [1]\r\n", &body).await;
    assert!(reply.events().iter().any(|event| event.ends_with("\"choices\":[],\"usage\":[1]}")));
    let reply = client.post(CHAT, "x-mock-usage: none\r\n", &body).await;
    assert!(reply.events().iter().all(|event| !event.contains("\"choices\":[]")));
}

#[tokio::test]
async fn an_answer_breaks_off_after_the_bytes_asked_for() {
    let whole = {
        let (_mock, mut client) = start().await;
        client.send(post(CHAT, "connection: close\r\n", &chat("x").to_string())).await;
        client.into_end().await
    };
    for bytes in [0, 1, 30, whole.len() - 1] {
        let (mock, mut client) = start().await;
        let steer = format!("connection: close\r\nx-mock-abort-after-bytes: {bytes}\r\n");
        client.send(post(CHAT, &steer, &chat("x").to_string())).await;
        assert_eq!(client.into_end().await, whole[..bytes]);
        assert_eq!((mock.stats().cut, mock.stats().aborted, mock.stats().bytes_out), (1, 0, bytes as u64));
    }
    let (_mock, mut client) = start().await;
    let reply = client.get("/x", "x-mock-abort-after-bytes: 100000\r\n").await;
    assert_eq!(reply.status, 200);
}

#[tokio::test]
async fn an_early_answer_does_not_wait_for_the_body() {
    let (_mock, mut client) = start().await;
    client.send("POST /x HTTP/1.1\r\nx-mock-early: 1\r\ncontent-length: 4\r\n\r\n").await;
    assert_eq!(client.reply().await.json()["body"], "");
    client.send("body").await;
    assert_eq!(client.get("/next", "").await.json()["path"], "/next");
}

#[tokio::test]
async fn opaque_answers_have_exactly_the_bytes_asked_for_in_any_framing() {
    let (_mock, mut client) = start().await;
    for framing in ["", "x-mock-chunked: 1\r\n", "x-mock-trailers: 1\r\n"] {
        for bytes in [0u64, 1, 300, 65_536, 65_537, 1_000_000] {
            let reply = client.get("/x", &format!("{framing}x-mock-body-bytes: {bytes}\r\n")).await;
            assert_eq!(reply.header("content-type"), Some("application/octet-stream"));
            assert_eq!(reply.body.len() as u64, bytes, "{framing}");
            assert!(reply.body.iter().zip(0..).all(|(byte, at)| *byte == filler_byte(at)));
        }
    }
    let reply = client.get("/x", "x-mock-close: 1\r\nx-mock-body-bytes: 100000\r\n").await;
    assert_eq!((reply.body.len(), reply.header("content-length")), (100_000, None));
}

#[tokio::test]
async fn plain_answers_can_be_chunked_have_trailers_or_end_with_the_connection() {
    let (_mock, mut client) = start().await;
    let reply = client.get("/x", "x-mock-chunked: 1\r\n").await;
    assert_eq!((reply.header("content-length"), &reply.json()["path"]), (None, &json!("/x")));
    assert_eq!(reply.trailers, "\r\n");
    let reply = client.get("/x", "x-mock-trailers: 1\r\n").await;
    assert_eq!(reply.header("trailer"), Some("x-mock-trailer"));
    assert_eq!(reply.trailers, "x-mock-trailer: done\r\n\r\n");
    let reply = client.get("/x", "x-mock-close: 1\r\n").await;
    assert_eq!((reply.header("transfer-encoding"), &reply.json()["path"]), (None, &json!("/x")));
}

#[tokio::test]
async fn hop_by_hop_headers_are_added_when_asked() {
    let (_mock, mut client) = start().await;
    let reply = client.get("/x", "x-mock-hop: 1\r\n").await;
    assert_eq!(reply.header("connection"), Some("x-secret-hop"));
    assert_eq!(reply.header("x-secret-hop"), Some("1"));
    assert!(reply.header("keep-alive").is_some());
}

#[tokio::test]
async fn delays_pass_before_the_first_byte_and_between_events() {
    let (mock, mut client) = start().await;
    let started = Instant::now();
    let steer = "x-mock-delay-ms: 20\r\nx-mock-chunk-delay-ms: 10\r\nx-mock-tokens: 2\r\n";
    let body = with(chat("x"), json!({"stream": true})).to_string();
    client.send(post(CHAT, steer, &body)).await;
    client.until("\n\n").await;
    assert!(started.elapsed() >= Duration::from_millis(20));
    client.until("[DONE]").await;
    assert!(started.elapsed() >= Duration::from_millis(20 + 4 * 10));

    let mut client = Client::new(&mock).await;
    let reply = client.get("/next", "x-mock-delay-ms: 20\r\n").await;
    assert!((20_000..).contains(&reply.header("x-mock-took-us").unwrap().parse::<u64>().unwrap()));
}

#[tokio::test]
async fn a_client_that_leaves_while_it_waits_is_noticed_at_once() {
    let steps = ["x-mock-delay-ms: 3600000\r\n", "x-mock-chunk-delay-ms: 3600000\r\n"];
    for steer in steps {
        let (mock, mut client) = start().await;
        client.send(post(CHAT, steer, &with(chat("x"), json!({"stream": true})).to_string())).await;
        until(&mock, |stats| stats.open == 1).await;
        drop(client);
        until(&mock, |stats| (stats.aborted, stats.open, stats.connections_open) == (1, 0, 0)).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_during_its_body_or_a_long_answer_is_counted() {
    let (mock, mut client) = start().await;
    client.send("POST /x HTTP/1.1\r\ncontent-length: 9\r\n\r\nhalf").await;
    until(&mock, |stats| stats.open == 1).await;
    drop(client);
    until(&mock, |stats| (stats.aborted, stats.open) == (1, 0)).await;

    let mut client = Client::new(&mock).await;
    client.send("GET /x HTTP/1.1\r\nx-mock-body-bytes: 99000000000\r\n\r\n").await;
    client.until("\r\n\r\n").await;
    drop(client);
    until(&mock, |stats| (stats.aborted, stats.open) == (2, 0)).await;
}

#[tokio::test]
async fn dropping_the_service_closes_its_connections() {
    let (mock, mut client) = start().await;
    client.get("/x", "").await;
    let addr = mock.addr();
    drop(mock);
    assert_eq!(client.into_end().await, "");
    assert!(TcpStream::connect(addr).await.is_err());
}
