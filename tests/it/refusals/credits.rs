//! 429 when a meter is short, naming it.

use serde_json::json;

use super::{Desk, Row, assert_refused, row};

const SHORT: Row = row(429, "CREDITS_EXHAUSTED", "insufficient_quota");

#[test]
fn no_conversations_left() {
    let desk = Desk::open("");
    let answer = desk.costs_nothing(|desk| {
        let left = desk.conversations() as u32;
        desk.set_conversations(0);
        let answer = desk.chat();
        desk.set_conversations(left);
        answer
    });
    assert_refused(&answer, &SHORT);
    // SDKs send a 429 again and again unless they are told not to.
    assert_eq!(answer.header("x-should-retry"), Some("false"));
    let body = answer.json();
    assert_eq!(body["message"], "Insufficient conversation credits");
    assert_eq!(body["errors"], json!(["conversations: 0 left, 1 needed"]));
    let limits = json!({
        "conversation_limit": 0, "reset": 10, "meter": "conversations", "balance": 0, "needed": 1,
        "resets_at": "2026-01-16T00:00:00Z",
    });
    assert_eq!(body["limits"], limits);
    assert_eq!(body["details"]["timestamp"], "2026-01-15T12:01:00Z");
}

#[test]
fn the_second_of_two_meters_is_short_and_the_first_is_not_touched() {
    let routes = "routes = [{ path = \"/v1/*\", upstream = \"ai\", cost = { conversations = 1, credits = 2.5 } }]\n";
    let desk = Desk::open(routes);
    let set_credits = |desk: &Desk, left: u32| {
        desk.panel("PUT", &format!("users/{}", desk.user.id), Some(json!({"credits": {"main": left}})))
    };
    let answer = desk.costs_nothing(|desk| {
        set_credits(desk, 2);
        let answer = desk.chat();
        set_credits(desk, 5);
        answer
    });
    assert_refused(&answer, &SHORT);
    let body = answer.json();
    assert_eq!(body["message"], "Insufficient credits");
    assert_eq!(body["errors"], json!(["credits: 2 left, 2.5 needed"]));
    assert_eq!(body["limits"]["meter"], "credits");
    assert_eq!(body["limits"]["balance"], 2);
    assert_eq!(body["limits"]["needed"], 2.5);
}

#[test]
fn a_meter_that_the_user_does_not_have() {
    let routes = "routes = [\
        { path = \"/v1/videos/*\", upstream = \"ai\", cost = { conversations = 1, widgets = 1 } },\
        { path = \"/v1/*\", upstream = \"ai\", cost = { conversations = 1 } }]\n";
    let desk = Desk::open(routes);
    let answer = desk.costs_nothing(|desk| desk.app.call("POST", "/v1/videos/make", &desk.user.key, Some(&json!({}))));
    assert_refused(&answer, &SHORT);
    let limits = answer.json()["limits"].clone();
    assert_eq!((&limits["meter"], &limits["balance"]), (&json!("widgets"), &json!(0)));
    assert!(limits["reset"].is_null() && limits["resets_at"].is_null(), "it never comes back by itself: {limits}");
}
