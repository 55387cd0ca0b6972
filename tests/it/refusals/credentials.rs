//! 401: whatever is wrong with a credential, the answer is the same. 400: two of them.

use serde_json::Value;
use tollgate::clock::UnixMillis;

use super::{BAD_REQUEST, Desk, UNAUTHENTICATED, assert_refused};
use crate::support::Answer;

const UNKNOWN: &str = "pe-00000000000000000000000000000000";

fn bearer(secret: &str) -> String {
    format!("Bearer {secret}")
}

/// An answer without what differs from one request to the next.
fn bare(answer: &Answer) -> (u16, Vec<(String, String)>, Value) {
    let mut body = answer.json();
    body["details"]["request_id"] = Value::Null;
    let headers = answer.headers.iter().filter(|(name, _)| !matches!(name.as_str(), "x-request-id" | "date"));
    (answer.status, headers.cloned().collect(), body)
}

#[test]
fn no_credential() {
    let desk = Desk::open("");
    assert_refused(&desk.costs_nothing(|desk| desk.chat_with(&[])), &UNAUTHENTICATED);
}

#[test]
fn a_malformed_credential() {
    let desk = Desk::open("");
    let long = bearer(&"a".repeat(600));
    let headers =
        [("authorization", "Basic YWxpY2U6eA=="), ("authorization", "Bearer "), ("authorization", "Bearer two words")];
    for header in headers.into_iter().chain([("x-api-key", "  "), ("authorization", long.as_str())]) {
        assert_refused(&desk.costs_nothing(|desk| desk.chat_with(&[header])), &UNAUTHENTICATED);
    }
}

#[test]
fn a_credential_in_the_query_string_is_not_read() {
    let desk = Desk::open("");
    let path = format!("/v1/chat/completions?api_key={0}&key={0}&access_token={0}", desk.user.key);
    let answer = desk.costs_nothing(|desk| crate::support::http::call(desk.app.public, "POST", &path, &[], None));
    assert_refused(&answer, &UNAUTHENTICATED);
}

#[test]
fn unknown_revoked_and_expired_credentials_get_one_and_the_same_answer() {
    let desk = Desk::open("");
    let others = [desk.app.register("revoked"), desk.app.register("expired")];
    desk.refill();
    desk.panel("POST", &format!("users/{}/keys/regenerate", others[0].id), None);
    // To the second: a key that ends now has ended.
    desk.edit_key(&others[1], |key| key.expires_at = UnixMillis::parse_rfc3339("2026-01-15T12:02:00Z"));
    let unknown = desk.costs_nothing(|desk| desk.chat_with(&[("authorization", &bearer(UNKNOWN))]));
    assert_refused(&unknown, &UNAUTHENTICATED);
    for user in &others {
        let answer = desk.costs_nothing(|desk| desk.app.chat(&user.key, serde_json::json!({})));
        assert_eq!(bare(&answer), bare(&unknown), "{}", user.username);
    }
}

#[test]
fn an_expired_session() {
    let desk = Desk::open("[accounts]\nsession_hours = 1\n");
    let session = desk.session();
    assert_eq!(desk.app.chat(&session, serde_json::json!({})).status, 200);
    desk.clock().advance(std::time::Duration::from_secs(3599));
    assert_eq!(desk.app.chat(&session, serde_json::json!({})).status, 200);
    desk.clock().advance(std::time::Duration::from_secs(1));
    let answer = desk.costs_nothing(|desk| desk.chat_with(&[("authorization", &bearer(&session))]));
    assert_refused(&answer, &UNAUTHENTICATED);
}

#[test]
fn a_session_of_the_staff_calls_no_upstream() {
    let desk = Desk::open("");
    let admin = bearer(&desk.admin);
    assert_refused(&desk.costs_nothing(|desk| desk.chat_with(&[("authorization", &admin)])), &UNAUTHENTICATED);
}

#[test]
fn two_credentials() {
    let desk = Desk::open("");
    let key = desk.user.key.clone();
    let good = bearer(&key);
    let pairs: [[(&str, &str); 2]; 4] = [
        [("authorization", &good), ("x-api-key", UNKNOWN)],
        [("authorization", &good), ("authorization", &good)],
        [("x-api-key", &key), ("x-api-key", UNKNOWN)],
        [("authorization", "Basic YWxpY2U6eA=="), ("x-api-key", &key)],
    ];
    for pair in &pairs {
        assert_refused(&desk.costs_nothing(|desk| desk.chat_with(pair)), &BAD_REQUEST);
    }
    assert_eq!(
        desk.chat_with(&[("authorization", &good), ("x-api-key", &key)]).status,
        200,
        "the same one twice is one"
    );
}
