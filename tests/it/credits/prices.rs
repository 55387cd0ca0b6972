//! Prices of models: which one a call has, and what becomes of a stream that outgrows its hold.

use std::io::Read;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};

use super::Bank;
use crate::fake_upstream::FakeUpstream;
use crate::support::http::Conn;
use crate::support::stores::SteeredStore;
use crate::support::{Options, wait_until};

const PRICES: &str = r#"
routes = [{ path = "/v1/*", upstream = "ai", cost = { conversations = 1 }, include_usage = true }]
[prices.models."gpt-4o"]
credits = { per_input_token = 1e-3, per_cached_token = 5e-4, per_output_token = 0.01 }
[prices.models."gpt-4o-*"]
credits = { per_call = 0.25 }
[prices.models."gpt-image*"]
images = { per_image = 1 }
[prices.models.long]
credits = { per_input_token = 0.001, tiers = [{ above_input_tokens = 1000, per_input_token = 0.002 }] }
"#;

fn priced(more: &str) -> Bank {
    let bank = Bank::open(Options { toml: format!("{PRICES}{more}"), ..Options::default() });
    bank.set_conversations(100);
    bank.set_credits(100);
    bank
}

fn spent(bank: &Bank, more: Value, steering: &[(&str, &str)]) -> f64 {
    let before = bank.credits();
    let answer = bank.chat(more, steering);
    assert_eq!(answer.status, 200, "{}", answer.text());
    bank.settled();
    ((before - bank.credits()) * 1e6).round() / 1e6
}

fn usage(text: &str) -> [(&str, &str); 1] {
    [("x-mock-usage", text)]
}

#[test]
fn a_call_costs_what_its_model_costs() {
    let bank = priced("");
    let report = usage(r#"{"prompt_tokens":100,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":40}}"#);
    for stream in [false, true] {
        let body = |model: &str| {
            json!({"model": model, "stream": stream, "max_tokens": 200,
            "messages": [{"role": "user", "content": "x".repeat(300)}]})
        };
        assert_eq!(spent(&bank, body("gpt-4o"), &report), 0.15);
        assert_eq!(spent(&bank, body("gpt-4o-mini"), &report), 0.25);
    }
    let answer = bank.chat(json!({"model": "gpt-4o-mini"}), &[]);
    assert_eq!(answer.header("x-tollgate-remaining-conversations"), Some("95"));
    assert_eq!(answer.header("x-tollgate-remaining-credits"), Some("98.95"));
}

#[test]
fn a_long_context_has_its_own_price() {
    let bank = priced("");
    let body = json!({"model": "long", "messages": [{"role": "user", "content": "x".repeat(6000)}]});
    assert_eq!(spent(&bank, body.clone(), &usage(r#"{"prompt_tokens":1000,"completion_tokens":1}"#)), 1.0);
    assert_eq!(spent(&bank, body, &usage(r#"{"prompt_tokens":1001,"completion_tokens":1}"#)), 2.002);
}

#[test]
fn a_model_without_a_price_is_judged_by_the_stated_policy() {
    let refusing = priced("");
    let refused = refusing.chat(json!({"model": "claude-4"}), &[]);
    assert_eq!((refused.status, refused.error_code().as_str()), (403, "FORBIDDEN"));
    assert!(refused.text().contains("no price"), "{}", refused.text());
    assert_eq!(refusing.conversations(), 100.0);
    let free = priced("[prices]\nunknown_model = \"free\"\n");
    assert_eq!(spent(&free, json!({"model": "claude-4"}), &[]), 0.0);
    let default = priced("[prices]\nunknown_model = \"default\"\ndefault = { credits = 2 }\n");
    assert_eq!(spent(&default, json!({"model": "claude-4"}), &[]), 2.0);
    // A call without a body names no model and needs none.
    assert_eq!(refusing.app.call("GET", "/v1/models", &refusing.user.key, None).status, 200);
}

const STREAM: &str = r#"
routes = [{ path = "/v1/*", upstream = "ai", cost = { credits = { per_output_token = 0.01 } }, include_usage = true }]
"#;

fn streaming(more: &str, credits: u32) -> Bank {
    let bank = Bank::open(Options { toml: format!("{STREAM}{more}"), ..Options::default() });
    bank.set_credits(credits);
    bank
}

#[test]
fn a_stream_beyond_its_hold_is_paid_while_there_are_credits() {
    let bank = streaming("", 100);
    // Ten tokens were asked for and held; the upstream does not care.
    assert_eq!(spent(&bank, json!({"stream": true, "max_tokens": 10}), &[("x-mock-tokens", "3000")]), 30.0);
}

#[test]
fn without_credits_the_stream_ends_with_an_error() {
    let bank = streaming("", 1);
    let mut conn = Conn::open(bank.app.public);
    let steering = [("x-mock-tokens", "1000"), ("x-mock-chunk-delay-ms", "1")];
    conn.send(bank.request(json!({"stream": true, "max_tokens": 10}), &steering));
    let answer = conn.read_answer();
    assert_eq!(answer.status, 200);
    let text = answer.text();
    let last = text.trim_end().rsplit("\n\n").next().unwrap();
    let error: Value = serde_json::from_str(last.split_once("data: ").unwrap().1).unwrap();
    assert!(last.starts_with("event: error\n"), "{last}");
    assert_eq!(error["error"]["code"], "CREDITS_EXHAUSTED");
    let tokens = text.matches("\"content\":").count();
    // A word of more than four bytes counts as more than a token.
    assert!((60..=101).contains(&tokens), "one credit pays a hundred tokens: {tokens}");
    assert!(!text.contains("[DONE]"));
    bank.settled();
    assert!(bank.credits() < 0.05, "less than the next piece would cost: {}", bank.credits());
    wait_until("the upstream's call is cancelled", || bank.app.upstream.stats().open == 0);
    let outcome = "tollgate_requests_total{route=\"/v1/*\",outcome=\"credits_exhausted\"}";
    assert_eq!(bank.app.metric(outcome), 1.0);
}

#[test]
fn an_operator_may_bear_the_rest() {
    let bank = streaming("[ledger]\noutgrown_hold = \"finish\"\n", 1);
    let body = json!({"stream": true, "max_tokens": 10});
    assert_eq!(spent(&bank, body, &[("x-mock-tokens", "1000")]), 0.1);
    assert_eq!(bank.app.metric("tollgate_credits_unpaid_total{meter=\"credits\"}"), 9.9);
}

#[test]
fn what_is_held_in_addition_is_on_disk_before_what_it_pays_for_leaves() {
    let store = SteeredStore::new();
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let upstream = FakeUpstream::start(move |wire| {
        wire.read_request();
        wire.send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n");
        for text in ["first".to_owned(), "x".repeat(4000)] {
            let event = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n");
            wire.send(format!("{:x}\r\n{event}\r\n", event.len()));
            // Until the test says so, or is over.
            let _ = gone.lock().unwrap().recv();
        }
        wire.send("0\r\n\r\n");
    });
    let toml = format!("{STREAM}{}", upstream.config(""));
    let bank = Bank::open(Options { toml, store: Some(store.clone()), ..Options::default() });
    bank.set_credits(100);
    let mut conn = Conn::open(bank.app.public);
    conn.send(bank.request(json!({"stream": true, "max_tokens": 10}), &[]));
    assert_eq!(conn.read_head().unwrap().status, 200);
    assert!(String::from_utf8(conn.read_chunk().unwrap()).unwrap().contains("first"));
    let held = store.hold_commits();
    go.send(()).unwrap();
    wait_until("the larger hold waits for the disk", || store.has_commit_waiting());
    // As long as anybody would take to send what is there.
    conn.stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(conn.stream.read(&mut [0u8; 1]).is_err(), "unpaid tokens left");
    drop(held);
    conn.stream.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    assert!(String::from_utf8(conn.read_chunk().unwrap()).unwrap().contains("xxxx"));
    go.send(()).unwrap();
    assert_eq!(conn.read_chunk().unwrap(), b"");
    bank.settled();
    assert_eq!(bank.credits(), 100.0 - 10.02, "no usage came: 4,005 bytes of text are 1,002 tokens");
}
