//! `Idempotency-Key`: a repeated call is charged once, and answered with what the first one got.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tollgate::app::Core;
use tollgate::clock::Clock;
use tollgate::config::Config;
use tollgate::store::{Order, Store};

use super::Bank;
use crate::fake_upstream::FakeUpstream;
use crate::server_process::{MockProcess, Site};
use crate::support::http::Conn;
use crate::support::stores::SteeredStore;
use crate::support::{Answer, Options, wait_until};

const METERED: &str = "routes = [{ path = \"/v1/*\", upstream = \"ai\", \
    cost = { credits = { per_call = 0.5, per_output_token = 0.01 } }, include_usage = true }]\n";

fn repeat(bank: &Bank, key: &str, more: Value) -> Answer {
    bank.chat(more, &[("idempotency-key", key)])
}

#[test]
fn a_repeat_gets_the_first_answer_and_costs_nothing() {
    let bank = Bank::open(Options::default());
    for (n, stream) in [(1, false), (2, true)] {
        let (key, body) = (format!("key-{stream}"), json!({"stream": stream}));
        let first = repeat(&bank, &key, body.clone());
        assert_eq!((first.status, first.header("idempotent-replayed")), (200, None));
        for _ in 0..3 {
            let again = repeat(&bank, &key, body.clone());
            assert_eq!((again.status, again.header("idempotent-replayed")), (200, Some("true")), "{}", again.text());
            assert_eq!(again.body, first.body);
            assert_eq!(again.header("content-type"), first.header("content-type"));
            assert_ne!(again.header("x-request-id"), first.header("x-request-id"));
            let left = format!("{}", 10 - n);
            assert_eq!(again.header("x-tollgate-remaining-conversations"), Some(left.as_str()));
        }
        assert_eq!(bank.app.upstream.stats().total, n);
        assert_eq!(bank.conversations(), 10.0 - n as f64);
    }
    bank.settled();
    assert_eq!(bank.app.metric("tollgate_requests_total{route=\"/v1/*\",outcome=\"replayed\"}"), 6.0);
}

#[test]
fn a_key_stands_for_one_request_of_one_user() {
    let bank = Bank::open(Options::default());
    let other = bank.app.register("bob");
    assert_eq!(repeat(&bank, "k", json!({})).status, 200);
    let changed = repeat(&bank, "k", json!({"model": "gpt-4o-mini"}));
    assert_eq!((changed.status, changed.error_code().as_str()), (422, "IDEMPOTENCY_MISMATCH"));
    let bearer = format!("Bearer {}", other.key);
    let mut conn = Conn::open(bank.app.public);
    let headers = [("authorization", bearer.as_str()), ("idempotency-key", "k")];
    let answer = conn.call("POST", "/v1/chat/completions", &headers, Some(&crate::support::chat_body(json!({}))));
    assert_eq!((answer.status, answer.header("idempotent-replayed")), (200, None));
    assert_eq!(bank.app.upstream.stats().total, 2);
    assert_eq!(bank.conversations(), 9.0);
    for bad in ["", "\u{7f}", &"x".repeat(256)] {
        let answer = repeat(&bank, bad, json!({}));
        assert_eq!((answer.status, answer.error_code().as_str()), (400, "BAD_REQUEST"), "{bad:?}");
    }
    bank.settled();
}

#[test]
fn while_the_first_call_runs_a_repeat_is_refused() {
    let bank = Bank::open(Options::default());
    let mut first = Conn::open(bank.app.public);
    first.send(bank.request(json!({}), &[("idempotency-key", "k"), ("x-mock-delay-ms", "3600000")]));
    wait_until("the upstream has the call", || bank.app.upstream.stats().open == 1);
    let second = repeat(&bank, "k", json!({}));
    assert_eq!((second.status, second.error_code().as_str()), (409, "IDEMPOTENCY_CONFLICT"));
    assert_eq!(second.header("retry-after"), Some("1"));
    // Nothing was paid for the first, so the key is free again.
    drop(first);
    bank.settled();
    assert_eq!(bank.conversations(), 10.0);
    let third = repeat(&bank, "k", json!({}));
    assert_eq!((third.status, third.header("idempotent-replayed")), (200, None));
    assert_eq!(bank.conversations(), 9.0);
}

#[test]
fn of_many_at_once_one_is_forwarded() {
    let bank = Bank::open(Options::default());
    let request = bank.request(json!({}), &[("idempotency-key", "k"), ("x-mock-delay-ms", "50")]);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..40)
            .map(|_| {
                scope.spawn(|| {
                    let mut conn = Conn::open(bank.app.public);
                    conn.send(&request);
                    conn.read_answer().status
                })
            })
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert!(statuses.contains(&200) && statuses.iter().all(|s| matches!(s, 200 | 409)), "{statuses:?}");
    assert_eq!(bank.app.upstream.stats().total, 1);
    bank.settled();
    assert_eq!(bank.conversations(), 9.0);
}

#[test]
fn a_call_that_failed_for_free_may_be_repeated() {
    let bank = Bank::open(Options::default());
    for _ in 0..2 {
        let failed = bank.chat(json!({}), &[("idempotency-key", "k"), ("x-mock-status", "503")]);
        assert_eq!((failed.status, failed.header("idempotent-replayed")), (503, None));
    }
    assert_eq!(bank.conversations(), 10.0);
    assert_eq!(repeat(&bank, "k", json!({})).status, 200);
    assert_eq!(bank.conversations(), 9.0);
    let refused = bank.chat(json!({}), &[("idempotency-key", "r"), ("x-mock-status", "404")]);
    let again = bank.chat(json!({}), &[("idempotency-key", "r"), ("x-mock-status", "404")]);
    assert_eq!((refused.status, again.status, again.header("idempotent-replayed")), (404, 404, Some("true")));
    assert_eq!(again.body, refused.body);
    assert_eq!(bank.conversations(), 8.0);
    bank.settled();
}

#[test]
fn who_left_early_pays_the_rest_with_the_repeat() {
    let bank = Bank::open(Options { toml: METERED.into(), ..Options::default() });
    bank.set_credits(100);
    let (key, body) = ([("idempotency-key", "k"), ("x-mock-tokens", "50")], json!({"stream": true, "max_tokens": 100}));
    let mut conn = Conn::open(bank.app.public);
    conn.send(bank.request(body.clone(), &[key[0], key[1], ("x-mock-chunk-delay-ms", "50")]));
    assert_eq!(conn.read_head().unwrap().status, 200);
    for _ in 0..5 {
        assert!(!conn.read_chunk().unwrap().is_empty());
    }
    drop(conn);
    bank.settled();
    let partly = 100.0 - bank.credits();
    assert!(partly > 0.5 && partly < 1.0, "{partly}");
    let again = bank.chat(body.clone(), &key);
    assert_eq!((again.status, again.header("idempotent-replayed")), (200, None));
    bank.settled();
    assert_eq!(bank.credits(), 99.0, "half a credit and fifty tokens, in both attempts together");
    assert_eq!(bank.chat(body, &key).header("idempotent-replayed"), Some("true"));
    assert_eq!(bank.credits(), 99.0);
}

#[test]
fn a_long_answer_is_not_kept_and_not_charged_again() {
    let toml = "[ledger]\nidempotency_answer_bytes = 600\n".to_owned();
    let bank = Bank::open(Options { toml, ..Options::default() });
    assert_eq!(bank.chat(json!({}), &[("idempotency-key", "k"), ("x-mock-tokens", "500")]).status, 200);
    let again = bank.chat(json!({}), &[("idempotency-key", "k"), ("x-mock-tokens", "500")]);
    assert_eq!((again.status, again.error_code().as_str()), (422, "IDEMPOTENCY_ANSWERED"));
    assert_eq!((bank.app.upstream.stats().total, bank.conversations()), (1, 9.0));
    bank.settled();
}

#[test]
fn all_kept_answers_together_are_bounded() {
    let toml = "[ledger]\nidempotency_total_bytes = 1500\n".to_owned();
    let bank = Bank::open(Options { toml, ..Options::default() });
    for n in 0..5 {
        assert_eq!(repeat(&bank, &format!("k{n}"), json!({})).status, 200);
    }
    let again: Vec<u16> = (0..5).map(|n| repeat(&bank, &format!("k{n}"), json!({})).status).collect();
    assert_eq!((again[0], again[4]), (200, 422));
    let kept = bank.app.metric("tollgate_idempotent_answer_bytes");
    assert!(kept > 0.0 && kept <= 1500.0, "{kept}");
    bank.settled();
}

#[test]
fn after_its_time_a_key_is_new_and_its_rows_go() {
    let store = SteeredStore::new();
    let toml = "[accounts]\nadmin_session_hours = 87600\n".to_owned();
    let start = Some("2026-01-15T12:00:00Z");
    let bank = Bank::open(Options { manual_clock: start, toml, store: Some(store.clone()), ..Options::default() });
    let hands = bank.app.hands.clone().unwrap();
    assert_eq!(bank.chat(json!({}), &[("idempotency-key", "k"), ("x-mock-tokens", "2000")]).status, 200);
    hands.advance(Duration::from_secs(86_399));
    let steering = [("idempotency-key", "k"), ("x-mock-tokens", "2000")];
    assert_eq!(bank.chat(json!({}), &steering).header("idempotent-replayed"), Some("true"));
    let rows =
        |prefix: &[u8]| store.range(prefix, &tollgate::store::prefix_end(prefix), 100, Order::Ascending).unwrap();
    wait_until("the answer is on disk", || rows(b"oa/").len() > 1);
    hands.advance(Duration::from_secs(1));
    let second = bank.chat(json!({}), &[("idempotency-key", "k"), ("x-mock-tokens", "3")]);
    assert_eq!((second.status, second.header("idempotent-replayed")), (200, None));
    bank.settled();
    let sweep = || {
        let users = bank.app.app().core().users.clone();
        bank.app.app().block_on(async move { users.forget_old_keys().await }).unwrap();
    };
    sweep();
    assert_eq!((rows(b"o/").len(), rows(b"oa/").len(), rows(b"oe/").len()), (1, 1, 1), "what the new use needs");
    let again = bank.chat(json!({}), &[("idempotency-key", "k"), ("x-mock-tokens", "3")]);
    assert_eq!((again.header("idempotent-replayed"), &again.body), (Some("true"), &second.body));
    hands.advance(Duration::from_secs(86_400));
    sweep();
    assert_eq!((rows(b"o/").len(), rows(b"oa/").len(), rows(b"oe/").len()), (0, 0, 0));
    assert_eq!(bank.app.metric("tollgate_idempotent_answer_bytes"), 0.0);
}

/// A gateway that is killed while a call runs, and what the same call costs after the restart.
fn killed_in_the_middle(recover: &str) -> (f64, f64, u64) {
    let upstream = MockProcess::start();
    let site = Site::new(&format!(
        "upstreams = [{{ name = \"ai\", endpoints = [\"http://{}\"] }}]\n\
         routes = [{{ path = \"/v1/*\", upstream = \"ai\", cost = {{ conversations = 1 }} }}]\n\
         [listen]\npublic = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n[ledger]\nrecover_open_holds = \"{recover}\"\n\
         [telemetry]\naccess_log = \"off\"\n",
        upstream.addr
    ));
    let mut server = site.serve();
    let user = server.register("alice");
    let left = |server: &crate::server_process::Server| {
        let token = server.admin_token();
        let shown = server.admin_get(&token, &format!("/v1/admin-panel/users/{}", user.id));
        shown["user"]["meters"]["conversations"]["balance"].as_f64().unwrap()
    };
    let bearer = format!("Bearer {}", user.key);
    let slow = [
        ("authorization", bearer.as_str()),
        ("idempotency-key", "k"),
        ("x-mock-tokens", "1000"),
        ("x-mock-chunk-delay-ms", "200"),
    ];
    let body = crate::support::chat_body(json!({"stream": true}));
    let mut conn = Conn::open(server.public);
    conn.send(crate::support::http::request("POST", "/v1/chat/completions", &slow, Some(&body)));
    assert_eq!(conn.read_head().unwrap().status, 200);
    server.signal("KILL");
    server.wait();

    let server = site.serve();
    let after_crash = left(&server);
    let quick = [("idempotency-key", "k"), ("x-mock-tokens", "5")];
    let again = server.chat(&user.key, &quick, json!({"stream": true}));
    assert_eq!((again.status, again.header("idempotent-replayed")), (200, None), "{}", again.text());
    let replayed = server.chat(&user.key, &quick, json!({"stream": true}));
    assert_eq!(replayed.header("idempotent-replayed"), Some("true"), "{}", replayed.text());
    wait_until("holds are settled", || server.metric("tollgate_holds_open") == 0.0);
    (after_crash, left(&server), upstream.served("/v1/chat/completions"))
}

#[test]
fn a_crash_in_between_charges_nothing_twice() {
    assert_eq!(killed_in_the_middle("charge"), (9.0, 9.0, 2));
    assert_eq!(killed_in_the_middle("refund"), (10.0, 9.0, 2));
}

#[test]
fn an_answer_kept_before_a_crash_is_given_after_it() {
    let upstream = MockProcess::start();
    let site = Site::new(&format!(
        "upstreams = [{{ name = \"ai\", endpoints = [\"http://{}\"] }}]\n\
         routes = [{{ path = \"/v1/*\", upstream = \"ai\", cost = {{ conversations = 1 }} }}]\n\
         [listen]\npublic = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n[telemetry]\naccess_log = \"off\"\n",
        upstream.addr
    ));
    let mut server = site.serve();
    let user = server.register("alice");
    let key = [("idempotency-key", "k")];
    let first = server.chat(&user.key, &key, json!({}));
    // The next commit holds the end of this call too.
    server.register("bob");
    server.signal("KILL");
    server.wait();
    let server = site.serve();
    let again = server.chat(&user.key, &key, json!({}));
    assert_eq!((again.status, again.header("idempotent-replayed")), (200, Some("true")));
    assert_eq!(again.body, first.body);
    assert_eq!(upstream.served("/v1/chat/completions"), 1);
}

#[test]
fn a_body_too_long_to_be_read_ahead_still_has_its_key() {
    let upstream = FakeUpstream::always("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let toml = format!("{}[limits]\nmax_inspect_bytes = 2000\n", upstream.config(""));
    let bank = Bank::open(Options { toml, ..Options::default() });
    let long = json!({"messages": [{"role": "user", "content": "x".repeat(100_000)}]});
    assert_eq!(repeat(&bank, "k", long.clone()).status, 200);
    let again = repeat(&bank, "k", long);
    assert_eq!((again.status, again.text().as_str(), again.header("idempotent-replayed")), (200, "ok", Some("true")));
    assert_eq!((upstream.requests(), bank.conversations()), (1, 9.0));
    bank.settled();
}

#[test]
fn a_long_body_is_the_same_however_it_comes() {
    let upstream = FakeUpstream::start(|wire| {
        while wire.read_until("the end") {
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        }
    });
    let toml = format!("{}[limits]\nmax_inspect_bytes = 2000\n", upstream.config(""));
    let bank = Bank::open(Options { toml, ..Options::default() });
    let body = format!("{}the end", "x".repeat(100_000));
    let head = |length: usize| {
        format!(
            "POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: text/plain\r\n\
             idempotency-key: k\r\ncontent-length: {length}\r\n\r\n",
            bank.user.key
        )
    };
    // What has come when the call is judged: little, more, or all of it.
    for (nth, first) in [2001, 9000, 100_007, 2500, 40_000].into_iter().enumerate() {
        let mut conn = Conn::open(bank.app.public);
        conn.send(format!("{}{}", head(body.len()), &body[..first]));
        if nth == 0 {
            wait_until("the call is on its way", || upstream.connections() == 1);
        }
        let _ = conn.try_send(&body[first..]);
        let answer = conn.read_answer();
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{first}");
        assert_eq!(answer.header("idempotent-replayed"), (nth > 0).then_some("true"), "{first}");
        bank.settled();
    }
    // One that differs is another, wherever it does.
    for at in [0, 1999, 50_000, 99_999] {
        let mut other = body.clone();
        other.replace_range(at..=at, "y");
        let mut conn = Conn::open(bank.app.public);
        conn.send(head(body.len()));
        let _ = conn.try_send(&other);
        assert_eq!(conn.read_answer().error_code(), "IDEMPOTENCY_MISMATCH", "at {at}");
    }
    assert_eq!((upstream.requests(), bank.conversations()), (1, 9.0));
}

#[test]
fn a_store_of_keys_can_be_opened_by_commands() {
    // What the server left is read by whoever opens the store next, keys included.
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let mut bank = Bank::open(Options { backend: "sled", dir: Some(dir.clone()), ..Options::default() });
    assert_eq!(repeat(&bank, "k", json!({})).status, 200);
    bank.app.stop();
    let text = format!("data_dir = {:?}\n", dir.path());
    let config = Config::parse("test", &text, std::iter::empty()).unwrap();
    let core = Core::open(&config, Clock::system(), 0).unwrap();
    let rows = core.committer.store().range(b"o/", b"o0", 10, Order::Ascending).unwrap();
    assert_eq!(rows.len(), 1);
    core.close();
}
