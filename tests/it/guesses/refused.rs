//! What an address is refused for its credential, path or method has a limit of its own, which good calls never pay from.

use serde_json::json;

use super::{Gate, HERE, THERE, UNKNOWN, WRONG};
use crate::support::{Answer, PASSWORD};

const LIMITS: &str =
    "[access]\nblock_after_failures = 0\n[limits]\nper_ip_per_minute = 20\nrefusals_per_ip_per_minute = 4\n";

#[track_caller]
fn assert_limited(answer: &Answer) {
    assert_eq!((answer.status, answer.error_code().as_str()), (429, "RATE_LIMITED"), "{}", answer.text());
    assert_eq!((answer.header("retry-after"), answer.header("x-should-retry")), (Some("15"), Some("false")));
    assert_eq!(answer.header("x-ratelimit-limit-requests"), Some("4"));
}

/// What is left to the address of its usual limit.
fn left(gate: &Gate) -> i64 {
    let answer = gate.with_key(HERE, &gate.alice.key);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.header("x-ratelimit-remaining-requests").unwrap().parse().unwrap()
}

#[test]
fn bad_calls_run_out_and_good_ones_do_not_notice() {
    let gate = Gate::open(LIMITS);
    let session = gate.session()["session_token"].as_str().unwrap().to_owned();
    let before = left(&gate);
    let anonymous = |method: &str, path: &str| gate.call(HERE, method, path, &[], None);
    // One of each kind: a key that nobody has, a path, a method, and a page of ours that is not there.
    assert_eq!(gate.with_key(HERE, UNKNOWN).status, 401);
    assert_eq!(anonymous("GET", "/nowhere").status, 404);
    assert_eq!(anonymous("DELETE", "/v1/users/login").status, 405);
    assert_eq!(anonymous("GET", "/v1/users/nowhere").status, 404);
    assert_limited(&gate.with_key(HERE, UNKNOWN));
    assert_limited(&anonymous("GET", "/nowhere"));
    assert_limited(&anonymous("DELETE", "/v1/users/login"));
    assert_limited(&anonymous("GET", "/v1/users/nowhere"));
    assert_limited(&anonymous("POST", "/v1/chat/completions"));
    assert_limited(&gate.login(HERE, &gate.alice.email, WRONG));
    assert_eq!(left(&gate), before - 1, "none of them took from what good calls have");
    // Good credentials are answered as ever, also where there is nothing.
    let bearer = format!("Bearer {session}");
    let own = [("authorization", bearer.as_str())];
    assert_eq!(gate.call(HERE, "GET", "/nowhere", &own, None).status, 404);
    assert_eq!(gate.own(HERE, &session, "GET", "keys/999", None).status, 404);
    assert_eq!(gate.own(HERE, &session, "GET", "profile", None).status, 200);
    assert_eq!(gate.login(HERE, &gate.alice.email, PASSWORD).status, 200);
    assert_eq!(gate.with_key(THERE, UNKNOWN).status, 401, "another address has its own");
    let counted = gate.app.metric("tollgate_rate_limited_total{scope=\"refusals\"}");
    assert_eq!(counted, 6.0);
    gate.advance(15);
    assert_eq!(gate.with_key(HERE, UNKNOWN).status, 401, "one has come back");
    assert_limited(&gate.with_key(HERE, UNKNOWN));
}

#[test]
fn dialects_are_told_in_their_own_shape() {
    let gate = Gate::open(LIMITS);
    for _ in 0..4 {
        assert_eq!(gate.with_key(HERE, UNKNOWN).status, 401);
    }
    let body = json!({"username": gate.alice.email, "password": WRONG});
    let flask = gate.call(HERE, "POST", "/api/v2/login", &[], Some(&body));
    assert_limited(&flask);
    assert!(flask.json()["error"].is_string(), "{}", flask.text());
}

#[test]
fn the_limit_is_the_address_s_own_unless_it_is_set() {
    let follows = Gate::open("[access]\nblock_after_failures = 0\n[limits]\nper_ip_per_minute = 3\n");
    let refused = |gate: &Gate| gate.with_key(HERE, UNKNOWN).status;
    assert_eq!([0; 5].map(|_| refused(&follows)), [401, 401, 401, 429, 429]);
    let off = Gate::open("[access]\nblock_after_failures = 0\n[limits]\nper_ip_per_minute = 0\n");
    assert!((0..100).all(|_| refused(&off) == 401));
}

#[test]
fn the_limits_are_forgotten_when_they_are_full_again() {
    let gate = Gate::open(LIMITS);
    assert_eq!(gate.with_key(HERE, UNKNOWN).status, 401);
    let tracked = || gate.app.metric("tollgate_rates_tracked");
    assert!(tracked() > 0.0);
    gate.advance(120);
    crate::support::wait_until("the states are swept", || tracked() == 0.0);
}
