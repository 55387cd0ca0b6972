//! 429 for too many calls a minute: per address, per key, per user, each with its own exact refill.

use std::time::Duration;

use serde_json::json;
use tollgate::domain::key::KeyLimits;

use super::{Desk, Row, assert_refused, row};
use crate::support::Answer;

const LIMITED: Row = row(429, "RATE_LIMITED", "rate_limit_error");

#[track_caller]
fn assert_limit(answer: &Answer, limit: &str, remaining: &str, reset: &str) {
    let found = ["limit", "remaining", "reset"].map(|part| answer.header(&format!("x-ratelimit-{part}-requests")));
    assert_eq!(found, [Some(limit), Some(remaining), Some(reset)], "{}", answer.text());
}

/// Two calls pass, the third is refused for half a minute to the millisecond. `call` is bound by a limit of 2 a minute.
fn two_a_minute(desk: &Desk, scope: &str, call: impl Fn() -> Answer) {
    let served = desk.app.upstream.stats().total;
    assert_limit(&call(), "2", "1", "30s");
    assert_limit(&call(), "2", "0", "1m0s");
    let refused = call();
    assert_refused(&refused, &LIMITED.retry_after(30));
    assert_limit(&refused, "2", "0", "30s");
    assert_eq!(refused.json()["errors"], json!([format!("limit per {scope}: try again in 30 s")]));
    desk.clock().advance(Duration::from_millis(29_750));
    let refused = call();
    assert_refused(&refused, &LIMITED.retry_after(1));
    assert_limit(&refused, "2", "0", "250ms");
    desk.clock().advance(Duration::from_millis(250));
    assert_limit(&call(), "2", "0", "1m0s");
    assert_eq!(desk.app.upstream.stats().total, served + 3, "refused calls stay here");
    assert_eq!(desk.conversations(), 1000.0 - 3.0, "and cost nothing");
    let counted = desk.app.metric(&format!("tollgate_rate_limited_total{{scope=\"{scope}\"}}"));
    assert_eq!(counted, 2.0);
}

/// What is left of the address's limit of 10, seen through a call that nothing else limits.
fn left_to_the_address(desk: &Desk, key: &str) -> i64 {
    let answer = desk.app.chat(key, json!({}));
    assert_eq!(answer.header("x-ratelimit-limit-requests"), Some("10"), "{}", answer.text());
    answer.header("x-ratelimit-remaining-requests").unwrap().parse().unwrap()
}

#[test]
fn per_address() {
    let desk = Desk::open("[limits]\nper_ip_per_minute = 2\n[access]\ntrusted_proxies = [\"127.0.0.1/32\"]\n");
    let bearer = format!("Bearer {}", desk.user.key);
    let from = |address: &str| desk.chat_with(&[("authorization", &bearer), ("x-forwarded-for", address)]);
    two_a_minute(&desk, "address", || from("203.0.113.1"));
    assert_eq!(from("203.0.113.2").status, 200, "another address has its own");
    assert_eq!(from("2001:db8::1").status, 200);
    assert_eq!(from("2001:db8::2").status, 200);
    assert_refused(&from("2001:db8::3"), &LIMITED.retry_after(30));
    assert_eq!(from("2001:db8:0:1::3").status, 200, "a /64 is one address");
}

#[test]
fn per_address_before_any_credential_is_looked_at() {
    let desk = Desk::open("[limits]\nper_ip_per_minute = 2\n");
    assert_eq!(desk.chat().status, 200);
    assert_eq!(desk.chat().status, 200);
    assert_refused(&desk.chat_with(&[]), &LIMITED.retry_after(30));
}

#[test]
fn per_key() {
    let desk = Desk::open("[limits]\nper_key_per_minute = 2\n");
    two_a_minute(&desk, "key", || desk.chat());
    let session = desk.session();
    assert_eq!(desk.app.chat(&session, json!({})).status, 200, "another credential of the same user has its own");
}

#[test]
fn per_user_over_all_his_credentials() {
    let desk = Desk::open("[limits]\nper_user_per_minute = 2\n");
    let session = desk.session();
    let turn = std::cell::Cell::new(0);
    two_a_minute(&desk, "user", || {
        turn.set(turn.get() + 1);
        desk.app.chat(if turn.get() % 2 == 0 { &session } else { &desk.user.key }, json!({}))
    });
    let bob = desk.app.register("bob");
    assert_eq!(desk.app.chat(&bob.key, json!({})).status, 200, "another user has his own");
}

#[test]
fn a_call_that_its_key_s_limit_refuses_takes_nothing_from_the_address() {
    let desk = Desk::open("[limits]\nper_ip_per_minute = 10\nper_key_per_minute = 0\nper_user_per_minute = 0\n");
    let bob = desk.app.register("bob");
    desk.narrow_key(KeyLimits { per_minute: Some(1), ..KeyLimits::default() });
    desk.refill();
    assert_eq!(left_to_the_address(&desk, &bob.key), 9);
    assert_eq!(desk.chat().status, 200);
    for _ in 0..20 {
        assert_refused(&desk.chat(), &LIMITED.retry_after(60));
    }
    assert_eq!(left_to_the_address(&desk, &bob.key), 7);
}

#[test]
fn a_call_that_the_user_s_limit_refuses_takes_nothing_from_address_and_key() {
    // Of both users, two calls a minute; the address and each key would stand for three.
    let desk = Desk::open("[limits]\nper_ip_per_minute = 3\nper_key_per_minute = 3\nper_user_per_minute = 2\n");
    let bob = desk.app.register("bob");
    desk.refill();
    assert_eq!(desk.chat().status, 200);
    assert_eq!(desk.chat().status, 200);
    for _ in 0..20 {
        assert_refused(&desk.chat(), &LIMITED.retry_after(30));
    }
    let answer = desk.app.chat(&bob.key, json!({}));
    assert_limit(&answer, "3", "0", "1m0s");
    desk.clock().advance(Duration::from_secs(30));
    // Alice's key: three, less two, plus one and a half that came back: one and a half are left to take one of.
    assert_eq!(desk.chat().status, 200);
}
