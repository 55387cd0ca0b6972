//! Bodies that take their time: what can be refused without them is refused before they are there.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use super::{CHAT, Desk, Row, assert_refused, row};
use crate::fake_upstream::FakeUpstream;
use crate::passing_time::advance;
use crate::support::http::{self, Conn};
use crate::support::{Answer, chat_body, wait_until};

const EXHAUSTED: Row = row(429, "CREDITS_EXHAUSTED", "insufficient_quota");
const IN_FLIGHT: Row = row(429, "TOO_MANY_IN_FLIGHT", "rate_limit_error").retry_after(1);

/// The body decides whether such a call may go.
const BY_MODEL: &str =
    "routes = [{ path = \"/v1/*\", upstream = \"ai\", cost = { conversations = 1 }, models = [\"*\"] }]\n";
/// Nothing but the model has a price.
const PRICED: &str = "routes = [{ path = \"/v1/*\", upstream = \"ai\" }]\n\
    [prices.models.cheap]\nconversations = { per_input_token = 0.001 }\n[prices.models.dear]\nconversations = 5\n";

/// A call of which all but the last bytes of the body has been sent.
struct SlowCall {
    conn: Conn,
    rest: String,
}

impl SlowCall {
    fn begin(desk: &Desk, key: &str, lines: &str, body: &Value) -> Self {
        let body = body.to_string();
        let (first, rest) = body.split_at(1);
        let mut conn = Conn::open(desk.app.public);
        conn.send(format!(
            "POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n{lines}\r\n{first}",
            body.len()
        ));
        Self { conn, rest: rest.to_owned() }
    }

    fn finish(mut self) -> Answer {
        self.conn.send(&self.rest);
        self.conn.read_answer()
    }
}

fn waiting(desk: &Desk, calls: usize) {
    wait_until("the bodies are waited for", || desk.app.metric("tollgate_holds_open") == calls as f64);
}

/// Runs `provoke` for a user without credits, and gives them back afterwards.
fn without_credits(desk: &Desk, provoke: impl FnOnce(&Desk) -> Answer) -> Answer {
    let left = desk.conversations();
    desk.set_conversations(0);
    let answer = provoke(desk);
    desk.set_conversations(left as u32);
    answer
}

#[test]
fn who_has_no_credits_is_told_before_the_body_is_waited_for() {
    for (config, needed) in [(BY_MODEL, "1 needed"), (PRICED, "0.001 needed")] {
        let desk = Desk::open(config);
        let chunked = format!(
            "POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{{\r\n",
            desk.user.key
        );
        let answer = without_credits(&desk, |desk| {
            let mut conn = Conn::open(desk.app.public);
            conn.send(&chunked);
            assert_refused(&conn.read_answer(), &EXHAUSTED);
            SlowCall::begin(desk, &desk.user.key, "", &chat_body(json!({"model": "cheap"}))).conn.read_answer()
        });
        assert_refused(&answer, &EXHAUSTED);
        assert!(answer.text().contains(needed), "{}", answer.text());
        assert_eq!(desk.app.upstream.stats().total, 0);
    }
}

#[test]
fn nor_is_the_body_asked_for() {
    let desk = Desk::open(BY_MODEL);
    let answer = desk.costs_nothing(|desk| {
        without_credits(desk, |desk| {
            let mut conn = Conn::open(desk.app.public);
            let key = &desk.user.key;
            conn.send(format!(
                "POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nexpect: 100-continue\r\n\
                 content-length: 100\r\n\r\n"
            ));
            // The first answer is the last one: not 100.
            conn.read_answer()
        })
    });
    assert_refused(&answer, &EXHAUSTED);
}

#[test]
fn what_the_body_costs_besides_is_asked_for_when_it_is_there() {
    let desk = Desk::open(PRICED);
    desk.set_conversations(2);
    let call = SlowCall::begin(&desk, &desk.user.key, "", &chat_body(json!({"model": "dear"})));
    waiting(&desk, 1);
    assert_eq!(desk.conversations(), 1.999, "what any call costs is set aside");
    let answer = call.finish();
    assert_refused(&answer, &EXHAUSTED);
    assert!(answer.text().contains("2 left, 5 needed"), "{}", answer.text());
    waiting(&desk, 0);
    assert_eq!((desk.conversations(), desk.app.upstream.stats().total), (2.0, 0));
    desk.set_conversations(7);
    let answer = SlowCall::begin(&desk, &desk.user.key, "", &chat_body(json!({"model": "dear"}))).finish();
    assert_eq!((answer.status, answer.header("x-tollgate-remaining-conversations")), (200, Some("2")));
    waiting(&desk, 0);
    assert_eq!(desk.conversations(), 2.0, "paid once");
}

#[test]
fn who_leaves_before_the_body_is_whole_has_lost_nothing() {
    let desk = Desk::open(BY_MODEL);
    let before = desk.conversations();
    let call = SlowCall::begin(&desk, &desk.user.key, "", &chat_body(json!({})));
    waiting(&desk, 1);
    assert_eq!(desk.conversations(), before - 1.0);
    drop(call);
    waiting(&desk, 0);
    assert_eq!(desk.conversations(), before);
}

#[test]
fn calls_whose_bodies_are_waited_for_are_in_flight() {
    let desk = Desk::open(&format!("{BY_MODEL}[limits]\nin_flight_per_user = 2\n"));
    let begin = |lines: &str| SlowCall::begin(&desk, &desk.user.key, lines, &chat_body(json!({})));
    let calls = [begin(""), begin("idempotency-key: new\r\n")];
    waiting(&desk, 2);
    assert_refused(&desk.chat(), &IN_FLIGHT);
    assert_refused(&begin("").conn.read_answer(), &IN_FLIGHT);
    let bob = desk.app.register("bob");
    assert_eq!(desk.app.chat(&bob.key, json!({})).status, 200);
    // The place that each has had is the one it goes on with.
    for call in calls {
        assert_eq!(call.finish().status, 200);
    }
    waiting(&desk, 0);
    let answers = [begin(""), begin("")].map(SlowCall::finish);
    assert_eq!(answers.map(|answer| answer.status), [200, 200], "all places are free again");
}

#[test]
fn a_repeat_is_judged_by_its_body_and_a_new_key_is_not() {
    let desk = Desk::open(&format!("{BY_MODEL}[limits]\nin_flight_per_user = 1\n"));
    let body = chat_body(json!({}));
    let bearer = format!("Bearer {}", desk.user.key);
    let first =
        http::call(desk.app.public, "POST", CHAT, &[("authorization", &bearer), ("idempotency-key", "k")], Some(&body));
    assert_eq!(first.status, 200, "{}", first.text());
    waiting(&desk, 0);
    let left = desk.conversations();
    desk.set_conversations(0);
    let begin =
        |key: &str, body: &Value| SlowCall::begin(&desk, &desk.user.key, &format!("idempotency-key: {key}\r\n"), body);
    let call = begin("k", &body);
    waiting(&desk, 1);
    assert_refused(&desk.chat(), &IN_FLIGHT);
    let again = call.finish();
    assert_eq!((again.status, again.header("idempotent-replayed")), (200, Some("true")), "{}", again.text());
    assert_eq!(again.header("x-tollgate-remaining-conversations"), Some("0"));
    waiting(&desk, 0);
    let other = begin("k", &chat_body(json!({"model": "other"}))).finish();
    assert_eq!((other.status, other.error_code().as_str()), (422, "IDEMPOTENCY_MISMATCH"));
    assert_refused(&begin("new", &body).conn.read_answer(), &EXHAUSTED);
    waiting(&desk, 0);
    desk.set_conversations(left as u32);
    assert_eq!(desk.chat().status, 200);
    waiting(&desk, 0);
    assert_eq!(desk.conversations(), left - 1.0);
    assert_eq!(desk.app.upstream.stats().total, 2);
}

#[test]
fn a_repeat_that_was_answered_meanwhile_gives_back_what_was_set_aside() {
    let desk = Desk::open(BY_MODEL);
    let body = chat_body(json!({}));
    let before = desk.conversations();
    let slow = SlowCall::begin(&desk, &desk.user.key, "idempotency-key: k\r\n", &body);
    waiting(&desk, 1);
    let quick = SlowCall::begin(&desk, &desk.user.key, "idempotency-key: k\r\n", &body).finish();
    assert_eq!((quick.status, quick.header("idempotent-replayed")), (200, None), "{}", quick.text());
    waiting(&desk, 1);
    let again = slow.finish();
    assert_eq!((again.status, again.header("idempotent-replayed")), (200, Some("true")), "{}", again.text());
    let left = format!("{}", before - 1.0);
    assert_eq!(again.header("x-tollgate-remaining-conversations"), Some(left.as_str()));
    waiting(&desk, 0);
    assert_eq!(desk.conversations(), before - 1.0);
}

const SLOW: Row = row(408, "REQUEST_TIMEOUT", "invalid_request_error");

#[test]
fn a_body_that_only_drips_gets_408() {
    for route in [BY_MODEL, ""] {
        let desk = Desk::open(&format!("{route}[limits]\nbody_timeout = \"30s\"\n"));
        let before = desk.conversations();
        let mut call = SlowCall::begin(&desk, &desk.user.key, "", &chat_body(json!({})));
        waiting(&desk, 1);
        // Each piece is in time for the next, and all together they are too slow.
        for byte in call.rest.clone().chars().take(4) {
            advance(&desk.app, Duration::from_secs(10));
            let _ = call.conn.try_send(byte.to_string());
        }
        assert_refused(&call.conn.read_answer(), &SLOW);
        waiting(&desk, 0);
        assert_eq!(desk.conversations(), before);
        wait_until("the upstream's call is broken off", || desk.app.upstream.stats().open == 0);
    }
}

/// An upstream that reads as much of a body as it is told to, answers when it has all of it, and says how much it has read.
fn reading_as_told(body: usize) -> (FakeUpstream, Sender<usize>, Arc<AtomicUsize>) {
    let (go, told) = std::sync::mpsc::channel::<usize>();
    let (told, read) = (Mutex::new(told), Arc::new(AtomicUsize::new(0)));
    let counted = read.clone();
    let fake = FakeUpstream::start(move |wire| {
        let told = told.lock().unwrap();
        while counted.load(Ordering::Acquire) < body {
            let until = counted.load(Ordering::Acquire) + told.recv().unwrap();
            while counted.load(Ordering::Acquire) < until.min(body) {
                counted.fetch_add(wire.read_some().len(), Ordering::AcqRel);
            }
        }
        wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        wire.drain();
    });
    (fake, go, read)
}

fn head_of(desk: &Desk, length: usize) -> String {
    format!(
        "POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: text/plain\r\n\
         content-length: {length}\r\n\r\n",
        desk.user.key
    )
}

#[test]
fn a_body_that_keeps_its_pace_may_take_long() {
    let (piece, pieces) = ("a".repeat(200_000), 5);
    let (fake, go, read) = reading_as_told(piece.len() * pieces);
    go.send(piece.len() * pieces).unwrap();
    let desk = Desk::open(&format!("{}[limits]\nbody_timeout = \"30s\"\n", fake.config("")));
    // The desk has moved the clock: the wait for the body is to begin at what the ticker has seen.
    advance(&desk.app, Duration::ZERO);
    let mut conn = Conn::open(desk.app.public);
    conn.send(head_of(&desk, piece.len() * pieces));
    for nth in 1..=pieces {
        conn.send(&piece);
        wait_until("the piece has gone on", || read.load(Ordering::Acquire) >= nth * piece.len());
        if nth < pieces {
            advance(&desk.app, Duration::from_secs(24));
        }
    }
    assert_eq!(conn.read_answer().status, 200, "a minute and a half, a megabyte");
}

#[test]
fn the_time_that_an_upstream_takes_is_not_the_client_s() {
    // More than all buffers of the kernel between the two take.
    const BODY: usize = 96 << 20;
    let (fake, go, read) = reading_as_told(BODY);
    // A pace that the client keeps only if the upstream's time does not count.
    let limits =
        "[limits]\nbody_timeout = \"30s\"\nslowest_body_bytes_per_second = 10485760\nmax_body_bytes = 134217728\n";
    let desk = Desk::open(&format!("{}{limits}", fake.config("")));
    // The desk has moved the clock: the wait for the body is to begin at what the ticker has seen.
    advance(&desk.app, Duration::ZERO);
    let mut conn = Conn::open(desk.app.public);
    conn.send(head_of(&desk, BODY));
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    let client = std::thread::spawn(move || {
        for piece in vec![b'a'; BODY].chunks(16 << 10) {
            conn.send(piece);
            counted.fetch_add(piece.len(), Ordering::AcqRel);
        }
        conn.read_answer()
    });
    // All that is between the two is full, so that everybody waits for the upstream.
    let is_stuck = || {
        let mut before = (usize::MAX, 0);
        wait_until("nothing moves", || {
            let now = (sent.load(Ordering::Acquire), read.load(Ordering::Acquire));
            let quiet = now == std::mem::replace(&mut before, now);
            std::thread::park_timeout(Duration::from_millis(500));
            quiet && now == (sent.load(Ordering::Acquire), read.load(Ordering::Acquire))
        });
        assert!(sent.load(Ordering::Acquire) < BODY, "the client has more to send");
    };
    for _ in 0..3 {
        // So much that the kernel lets the gateway write again: it waits until a third of its buffer is free.
        go.send(8 << 20).unwrap();
        is_stuck();
        advance(&desk.app, Duration::from_secs(20));
    }
    go.send(BODY).unwrap();
    let answer = client.join().unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
}
