//! What a call costs that did not end well.

use serde_json::json;

use super::Bank;
use crate::support::http::Conn;
use crate::support::{Options, wait_until};

#[test]
fn an_upstream_s_5xx_is_free() {
    let bank = Bank::open(Options::default());
    for status in ["500", "502", "503", "529", "599"] {
        let answer = bank.chat(json!({}), &[("x-mock-status", status)]);
        assert_eq!(answer.status.to_string(), status);
        assert_eq!(answer.header("x-tollgate-remaining-conversations"), Some("10"), "{status}");
        assert_eq!(answer.json()["error"]["code"], "mock_error", "the upstream's own words");
        assert_eq!(bank.conversations(), 10.0, "{status}");
    }
    bank.settled();
}

#[test]
fn an_upstream_s_4xx_costs_what_it_says() {
    let bank = Bank::open(Options::default());
    for (n, status) in ["400", "401", "404", "422", "429"].into_iter().enumerate() {
        let answer = bank.chat(json!({}), &[("x-mock-status", status)]);
        assert_eq!(answer.status.to_string(), status);
        assert_eq!(bank.conversations(), 9.0 - n as f64, "{status}");
    }
    bank.settled();
}

#[test]
fn a_client_that_leaves_before_the_answer_pays_nothing() {
    let bank = Bank::open(Options::default());
    for stream in [false, true] {
        let mut conn = Conn::open(bank.app.public);
        conn.send(bank.request(json!({"stream": stream}), &[("x-mock-delay-ms", "3600000")]));
        wait_until("the upstream has the call", || bank.app.upstream.stats().open == 1);
        assert_eq!(bank.app.metric("tollgate_holds_open"), 1.0);
        drop(conn);
        wait_until("the upstream's call is cancelled", || bank.app.upstream.stats().open == 0);
        bank.settled();
        assert_eq!(bank.conversations(), 10.0);
    }
}

#[test]
fn a_client_that_leaves_in_the_middle_pays() {
    let bank = Bank::open(Options::default());
    let mut conn = Conn::open(bank.app.public);
    let slow = [("x-mock-tokens", "1000"), ("x-mock-chunk-delay-ms", "100")];
    conn.send(bank.request(json!({"stream": true}), &slow));
    assert_eq!(conn.read_head().unwrap().status, 200);
    assert!(!conn.read_chunk().unwrap().is_empty());
    drop(conn);
    wait_until("the upstream's call is cancelled", || bank.app.upstream.stats().open == 0);
    bank.settled();
    assert_eq!(bank.conversations(), 9.0);
}

#[test]
fn an_upstream_that_breaks_off_in_the_middle_is_paid() {
    let bank = Bank::open(Options::default());
    let mut conn = Conn::open(bank.app.public);
    let cut = [("x-mock-tokens", "100"), ("x-mock-abort-after-bytes", "2000")];
    conn.send(bank.request(json!({"stream": true}), &cut));
    let head = conn.read_head().unwrap();
    assert_eq!((head.status, head.header("x-tollgate-remaining-conversations")), (200, Some("9")));
    while conn.read_chunk().is_ok_and(|chunk| !chunk.is_empty()) {}
    assert!(conn.is_closed(), "the client sees that the answer is not whole");
    bank.settled();
    assert_eq!(bank.conversations(), 9.0);
}

#[test]
fn two_meters_are_taken_together_or_not_at_all() {
    let routes = "routes = [{ path = \"/v1/*\", upstream = \"ai\", cost = { conversations = 1, credits = 2 } }]\n";
    let bank = Bank::open(Options { toml: routes.into(), ..Options::default() });
    let both = |bank: &Bank| (bank.conversations(), bank.credits());
    assert_eq!(both(&bank), (10.0, 5.0));
    let answer = bank.chat(json!({}), &[]);
    assert_eq!(answer.header("x-tollgate-remaining-conversations"), Some("9"));
    assert_eq!(answer.header("x-tollgate-remaining-credits"), Some("3"));
    assert_eq!(bank.chat(json!({}), &[("x-mock-status", "500")]).status, 500);
    assert_eq!(both(&bank), (9.0, 3.0), "given back on both");
    assert_eq!(bank.chat(json!({}), &[]).status, 200);
    for _ in 0..3 {
        assert_eq!(bank.chat(json!({}), &[]).json()["limits"]["meter"], "credits");
        assert_eq!(both(&bank), (8.0, 1.0));
    }
    bank.set_credits(100);
    bank.set_conversations(0);
    assert_eq!(bank.chat(json!({}), &[]).json()["limits"]["meter"], "conversations");
    assert_eq!(both(&bank), (0.0, 100.0));
    bank.settled();
}
