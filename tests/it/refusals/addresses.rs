//! 403 for where a call comes from.

use std::time::Duration;

use serde_json::json;
use tollgate::domain::key::KeyLimits;

use super::{ADDRESS_DENIED, Desk, Row, UNAUTHENTICATED, assert_refused, row};

#[test]
fn denied_by_the_config() {
    let mut desk = Desk::open("");
    // A reload, because nobody could have registered from an address that was never let in.
    let limits = "[limits]\nper_ip_per_minute = 30\nper_key_per_minute = 30\nper_user_per_minute = 30\n";
    desk.app.reload(&format!("{limits}[access]\ndeny = [\"127.0.0.0/8\"]\n"));
    let served = desk.app.upstream.stats().total;
    assert_refused(&desk.chat(), &ADDRESS_DENIED);
    assert_eq!(desk.app.upstream.stats().total, served);
    desk.app.reload(limits);
    desk.costs_nothing(|desk| desk.chat_with(&[]));
}

#[test]
fn denied_by_an_admin_s_rule() {
    let desk = Desk::open("");
    let answer = desk.costs_nothing(|desk| {
        let rule = desk.panel("POST", "ip-rules", Some(json!({"kind": "deny", "network": "127.0.0.1"})));
        let answer = desk.chat();
        desk.panel("DELETE", &format!("ip-rules/{}", rule.json()["entry"]["id"]), None);
        answer
    });
    assert_refused(&answer, &ADDRESS_DENIED);
}

#[test]
fn an_admin_s_rule_ends_when_it_says() {
    let desk = Desk::open("");
    let rule = json!({"kind": "deny", "network": "127.0.0.0/8", "expires_at": "2026-01-15T12:05:00Z"});
    desk.panel("POST", "ip-rules", Some(rule));
    desk.clock().advance(Duration::from_secs(4 * 60 - 1));
    assert_refused(&desk.chat(), &ADDRESS_DENIED);
    desk.clock().advance(Duration::from_secs(1));
    assert_eq!(desk.chat().status, 200);
}

#[test]
fn not_on_the_whitelist() {
    let desk =
        Desk::open("[access]\nwhitelist = true\nallow = [\"127.0.0.1/32\"]\ntrusted_proxies = [\"127.0.0.1/32\"]\n");
    let bearer = format!("Bearer {}", desk.user.key);
    let from = |desk: &Desk, address: &str| desk.chat_with(&[("authorization", &bearer), ("x-forwarded-for", address)]);
    assert_refused(&desk.costs_nothing(|desk| from(desk, "203.0.113.9")), &ADDRESS_DENIED);
    desk.panel("POST", "ip-whitelist", Some(json!({"ip_address": "203.0.113.9"})));
    assert_eq!(from(&desk, "203.0.113.9").status, 200);
}

#[test]
fn outside_the_networks_of_the_key() {
    let desk = Desk::open("");
    let answer = desk.costs_nothing(|desk| {
        desk.narrow_key(KeyLimits { cidrs: vec!["10.0.0.0/8".parse().unwrap()], ..KeyLimits::default() });
        let answer = desk.chat();
        desk.narrow_key(KeyLimits::default());
        answer
    });
    assert_refused(&answer, &ADDRESS_DENIED);
}

const BLOCKED: Row = row(403, "ADDRESS_BLOCKED", "permission_error");
const WRONG: [(&str, &str); 1] = [("authorization", "Bearer pe-00000000000000000000000000000000")];

#[test]
fn blocked_for_fifteen_minutes_after_five_failures() {
    let desk = Desk::open("[access]\nblock_after_failures = 5\nblock_minutes = 15\n");
    for _ in 0..5 {
        assert_refused(&desk.chat_with(&WRONG), &UNAUTHENTICATED);
    }
    let blocked = desk.costs_nothing(|desk| desk.chat_with(&WRONG));
    assert_refused(&blocked, &BLOCKED.retry_after(900));
    assert!(blocked.json()["message"].as_str().unwrap().contains("blocked for guessing"), "{}", blocked.text());
    desk.clock().advance(Duration::from_secs(15 * 60 - 1));
    assert_refused(&desk.chat_with(&WRONG), &BLOCKED.retry_after(1));
    desk.clock().advance(Duration::from_secs(1));
    assert_refused(&desk.chat_with(&WRONG), &UNAUTHENTICATED);
}

#[test]
fn blocked_whole_by_the_old_rule() {
    let desk = Desk::open("[access]\nblock = \"all\"\nblock_after_failures = 5\nblock_minutes = 15\n");
    let left = desk.conversations();
    for _ in 0..5 {
        assert_refused(&desk.chat_with(&WRONG), &UNAUTHENTICATED);
    }
    assert_refused(&desk.chat(), &BLOCKED.retry_after(900));
    assert_refused(&desk.chat_with(&WRONG), &BLOCKED.retry_after(900));
    desk.clock().advance(Duration::from_secs(15 * 60 - 1));
    assert_refused(&desk.chat(), &BLOCKED.retry_after(1));
    assert_eq!((desk.app.upstream.stats().total, desk.conversations()), (0, left));
    desk.clock().advance(Duration::from_secs(1));
    let free = desk.chat();
    assert_eq!((free.status, free.header("x-ratelimit-remaining-requests")), (200, Some("29")), "{}", free.text());
}

#[test]
fn a_missing_credential_is_no_guess_and_blocks_nobody() {
    let desk = Desk::open("[access]\nblock_after_failures = 5\n");
    for _ in 0..10 {
        assert_refused(&desk.chat_with(&[]), &UNAUTHENTICATED);
    }
    assert_eq!(desk.chat().status, 200);
}
