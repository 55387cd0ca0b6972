//! Days: a balance is set to its reset amount once a day, whatever the clock does.

use std::time::Duration;

use serde_json::json;
use tollgate::clock::UnixMillis;

use super::Bank;
use crate::support::http::Conn;
use crate::support::{Options, wait_until};

fn bank_at(moment: &'static str, toml: &str) -> Bank {
    // The admin who looks on stays logged in over all those days.
    let toml = format!("[accounts]\nadmin_session_hours = 87600\n{toml}");
    Bank::open(Options { manual_clock: Some(moment), toml, ..Options::default() })
}

fn advance(bank: &Bank, seconds: u64) {
    bank.app.hands.as_ref().unwrap().advance(Duration::from_secs(seconds));
}

fn status(bank: &Bank) -> u16 {
    bank.chat(json!({}), &[]).status
}

#[test]
fn a_new_day_begins_with_ten() {
    let bank = bank_at("2026-01-15T23:59:00Z", "");
    for _ in 0..10 {
        assert_eq!(status(&bank), 200);
    }
    let refused = bank.chat(json!({}), &[]);
    assert_eq!((refused.status, &refused.json()["limits"]["resets_at"]), (429, &json!("2026-01-16T00:00:00Z")));
    advance(&bank, 59);
    assert_eq!(status(&bank), 429);
    advance(&bank, 1);
    let answer = bank.chat(json!({}), &[]);
    assert_eq!(answer.header("x-tollgate-remaining-conversations"), Some("9"), "{}", answer.text());
    advance(&bank, 86_399);
    assert_eq!(bank.conversations(), 9.0);
    advance(&bank, 1);
    assert_eq!(bank.conversations(), 10.0, "set to ten, not ten more");
    bank.settled();
}

#[test]
fn a_clock_set_back_and_forth_gives_nothing_twice() {
    let bank = bank_at("2026-01-15T23:59:00Z", "");
    let hands = bank.app.hands.as_ref().unwrap();
    advance(&bank, 60);
    for _ in 0..10 {
        assert_eq!(status(&bank), 200);
    }
    for moment in ["2026-01-15T23:59:00Z", "2026-01-16T00:00:00Z", "2020-01-01T00:00:00Z", "2026-01-16T23:59:59Z"] {
        hands.set_wall(UnixMillis::parse_rfc3339(moment).unwrap());
        assert_eq!(status(&bank), 429, "{moment}");
    }
    hands.set_wall(UnixMillis::parse_rfc3339("2026-01-17T00:00:00Z").unwrap());
    assert_eq!(status(&bank), 200);
    bank.settled();
}

#[test]
fn the_day_begins_at_the_configured_hour() {
    let bank = bank_at("2026-01-15T05:59:59Z", "[ledger]\nreset_hour = 6\n");
    assert_eq!(status(&bank), 200);
    assert_eq!(bank.conversations(), 9.0);
    advance(&bank, 1);
    assert_eq!(bank.conversations(), 10.0);
}

#[test]
fn a_call_over_midnight_resets_once_and_is_paid_from_the_old_day() {
    let bank = bank_at("2026-01-15T23:59:59Z", "");
    for end in ["answered", "left"] {
        let mut conn = Conn::open(bank.app.public);
        let slow = [("x-mock-tokens", "1000"), ("x-mock-chunk-delay-ms", "50")];
        conn.send(bank.request(json!({"stream": true}), &slow));
        assert_eq!(conn.read_head().unwrap().status, 200);
        advance(&bank, 86_400);
        assert_eq!(bank.conversations(), 10.0, "{end}: the new day");
        drop(conn);
        wait_until("the call is over", || bank.app.upstream.stats().open == 0);
        bank.settled();
        assert_eq!(bank.conversations(), 10.0, "{end}: settling the old day's call changes nothing of it");
    }
}

#[test]
fn a_balance_set_by_the_staff_above_the_reset_falls_back_to_it() {
    let bank = bank_at("2026-01-15T12:00:00Z", "");
    bank.set(&json!({"limits": {"conversation_limit": 500, "reset": 3}}));
    assert_eq!(status(&bank), 200);
    assert_eq!(bank.conversations(), 499.0);
    advance(&bank, 43_200);
    assert_eq!(bank.conversations(), 3.0);
    bank.settled();
}
