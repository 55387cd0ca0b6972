//! Pay by use: what the upstream reports, within what was set aside, whatever it reports.

use serde_json::{Value, json};

use super::Bank;
use crate::support::http::Conn;
use crate::support::{Options, wait_until};

const ROUTE: &str = "routes = [{ path = \"/v1/*\", upstream = \"ai\", \
    cost = { credits = { per_call = 0.5, per_output_token = 0.01 } }, include_usage = true }]\n";
/// What a request with `max_tokens` 100 sets aside: the call and a hundred tokens.
const HELD: f64 = 1.5;

fn metered(more: &str) -> Bank {
    let bank = Bank::open(Options { toml: format!("{ROUTE}{more}"), ..Options::default() });
    bank.set_credits(100);
    bank
}

/// What one call costs, rounded to millionths.
fn price(bank: &Bank, more: Value, steering: &[(&str, &str)]) -> f64 {
    let before = bank.credits();
    let answer = bank.chat(more, steering);
    assert_eq!(answer.status, 200, "{}", answer.text());
    bank.settled();
    ((before - bank.credits()) * 1e6).round() / 1e6
}

#[test]
fn usage_is_charged_as_it_is_reported() {
    let bank = metered("");
    for stream in [false, true] {
        for (tokens, expected) in [("1", 0.51), ("25", 0.75), ("100", 1.5)] {
            let body = json!({"max_tokens": 100, "stream": stream});
            assert_eq!(price(&bank, body, &[("x-mock-tokens", tokens)]), expected, "{tokens}, stream: {stream}");
        }
    }
}

#[test]
fn more_than_was_set_aside_is_never_charged() {
    let bank = metered("[ledger]\noutgrown_hold = \"finish\"\n");
    for stream in [false, true] {
        let body = json!({"max_tokens": 100, "stream": stream});
        assert_eq!(price(&bank, body, &[("x-mock-tokens", "5000")]), HELD);
    }
    for count in ["101", "1e9", "9223372036854775808", "18446744073709551616", "1e300", "99999999999999999999999999"] {
        let usage = format!("{{\"prompt_tokens\":1,\"completion_tokens\":{count},\"total_tokens\":1}}");
        assert_eq!(price(&bank, json!({"max_tokens": 100}), &[("x-mock-usage", &usage)]), HELD, "{count}");
    }
}

#[test]
fn a_lie_about_tokens_does_not_turn_the_counters_back() {
    let bank = metered("");
    let usage = [("x-mock-usage", "{\"prompt_tokens\":1,\"completion_tokens\":18446744073709551615}")];
    let sample = "tollgate_tokens_total{direction=\"output\",model=\"gpt-4o\"}";
    let mut last = 0.0;
    // Each on a connection of its own, so that both workers get some.
    for _ in 0..12 {
        price(&bank, json!({"max_tokens": 100}), &usage);
        let count = bank.app.metric(sample);
        assert!(count >= last, "{count} after {last}");
        last = count;
    }
}

#[test]
fn no_report_means_all_that_was_set_aside() {
    let bank = metered("");
    for stream in [false, true] {
        let body = json!({"max_tokens": 100, "stream": stream});
        assert_eq!(price(&bank, body, &[("x-mock-usage", "none")]), HELD);
    }
    assert_eq!(price(&bank, json!({"max_tokens": 100}), &[("x-mock-usage", "null")]), HELD);
}

#[test]
fn an_operator_may_have_it_estimated_instead() {
    let bank = metered("[ledger]\nmissing_usage = \"estimate\"\n");
    let paid = price(&bank, json!({"max_tokens": 100}), &[("x-mock-usage", "none"), ("x-mock-tokens", "20")]);
    assert!(paid > 0.5 && paid < HELD, "{paid}");
}

/// Reports that lie, in every way at hand: no balance rises, none falls by more than was set aside, no hold stays open.
#[test]
fn a_report_that_makes_no_sense_never_pays_anybody() {
    let bank = metered("");
    let counts =
        ["-1", "-9223372036854775808", "-1e300", "0", "\"7\"", "null", "true", "[]", "{}", "0.5", "-0.0", "1e-9"];
    let mut reports: Vec<String> = counts
        .iter()
        .flat_map(|count| {
            [
                format!("{{\"prompt_tokens\":{count},\"completion_tokens\":{count},\"total_tokens\":{count}}}"),
                format!("{{\"completion_tokens\":3,\"completion_tokens\":{count}}}"),
                format!("{{\"prompt_tokens\":5,\"completion_tokens\":{count}}}"),
            ]
        })
        .collect();
    reports.extend(["[]", "\"none\"", "-5", "{}", "{", "}}", "{\"completion_tokens\":"].map(str::to_owned));
    for report in &reports {
        for stream in [false, true] {
            let body = json!({"max_tokens": 100, "stream": stream});
            let paid = price(&bank, body, &[("x-mock-usage", report), ("x-mock-tokens", "3")]);
            assert!((0.5..=HELD).contains(&paid), "{report}, stream: {stream}: {paid}");
        }
        bank.set_credits(100);
    }
}

#[test]
fn the_call_is_refused_when_what_it_may_cost_is_not_there() {
    let bank = metered("");
    bank.set_credits(1);
    let answer = bank.chat(json!({"max_tokens": 100}), &[]);
    assert_eq!((answer.status, answer.error_code().as_str()), (429, "CREDITS_EXHAUSTED"));
    assert_eq!(answer.json()["errors"], json!(["credits: 1 left, 1.5 needed"]));
    assert_eq!(price(&bank, json!({"max_tokens": 50}), &[("x-mock-tokens", "50")]), 1.0, "to the last credit");
    assert_eq!(bank.credits(), 0.0);
}

#[test]
fn no_request_can_talk_its_hold_down() {
    let bank = metered("");
    bank.set_credits(1);
    for more in [
        json!({"max_tokens": -1}),
        json!({"max_tokens": "1"}),
        json!({"max_tokens": null}),
        json!({"max_tokens": 1e300}),
        json!({"max_tokens": 1, "max_completion_tokens": 100_000}),
        json!({"max_tokens": 1, "n": 200}),
        json!({}),
    ] {
        let answer = bank.chat(more.clone(), &[]);
        assert_ne!(answer.status, 200, "{more}");
        assert_eq!(bank.credits(), 1.0, "{more}");
    }
    assert_eq!(bank.app.upstream.stats().total, 0);
}

#[test]
fn a_client_that_leaves_pays_for_what_was_said_until_then() {
    let bank = metered("");
    let mut conn = Conn::open(bank.app.public);
    let slow = [("x-mock-tokens", "90"), ("x-mock-chunk-delay-ms", "50")];
    conn.send(bank.request(json!({"max_tokens": 100, "stream": true}), &slow));
    assert_eq!(conn.read_head().unwrap().status, 200);
    for _ in 0..5 {
        assert!(!conn.read_chunk().unwrap().is_empty());
    }
    drop(conn);
    wait_until("the upstream's call is cancelled", || bank.app.upstream.stats().open == 0);
    bank.settled();
    let paid = 100.0 - bank.credits();
    assert!(paid > 0.5 && paid < HELD, "the call and some tokens, not all that was set aside: {paid}");
}

#[test]
fn a_failure_of_the_upstream_gives_all_of_it_back() {
    let bank = metered("");
    assert_eq!(bank.chat(json!({"max_tokens": 100}), &[("x-mock-status", "500")]).status, 500);
    bank.settled();
    assert_eq!(bank.credits(), 100.0);
    assert_eq!(bank.chat(json!({"max_tokens": 100}), &[("x-mock-status", "400")]).status, 400);
    bank.settled();
    assert_eq!(bank.credits(), 99.5, "an error of the client's costs what a call costs");
}
