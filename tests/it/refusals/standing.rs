//! 403 for who the caller is, and what he may ask for.

use serde_json::json;
use tollgate::domain::key::KeyLimits;

use super::{BAD_REQUEST, Desk, FORBIDDEN, assert_refused};

/// Puts the user into a state, tries a call, and puts him back.
fn while_in(desk: &Desk, state: &str) -> crate::support::Answer {
    desk.panel("POST", &format!("users/{}/{state}", desk.user.id), Some(json!({"reason": "for the test"})));
    let answer = desk.chat();
    desk.panel("POST", &format!("users/{}/activate", desk.user.id), None);
    answer
}

#[test]
fn a_suspended_account() {
    let desk = Desk::open("");
    let answer = desk.costs_nothing(|desk| while_in(desk, "suspend"));
    assert_refused(&answer, &FORBIDDEN);
    assert_eq!(answer.json()["message"], "This account is suspended");
    assert!(!answer.text().contains("for the test"), "the reason is the staff's");
}

#[test]
fn a_banned_account() {
    let desk = Desk::open("");
    let answer = desk.costs_nothing(|desk| while_in(desk, "ban"));
    assert_refused(&answer, &FORBIDDEN);
    assert_eq!(answer.json()["message"], "This account is banned");
}

#[test]
fn an_account_whose_email_is_not_verified() {
    let desk = Desk::open("[accounts]\nemail_verification = true\n");
    assert_refused(&desk.chat(), &FORBIDDEN);
    assert_eq!(desk.app.upstream.stats().total, 0);
    let path = format!("users/{}", desk.user.id);
    desk.panel("POST", &format!("{path}/activate"), None);
    assert_refused(&desk.chat(), &FORBIDDEN);
    desk.panel("PUT", &path, Some(json!({"email_verified": true})));
    desk.costs_nothing(|desk| {
        desk.panel("PUT", &path, Some(json!({"email_verified": false})));
        let answer = desk.chat();
        desk.panel("PUT", &path, Some(json!({"email_verified": true})));
        answer
    });
}

#[test]
fn a_route_for_verified_users_only() {
    let routes = "routes = [\
        { path = \"/v1/images/*\", upstream = \"ai\", cost = { conversations = 1 }, verified = true },\
        { path = \"/v1/*\", upstream = \"ai\", cost = { conversations = 1 } }]\n";
    let desk = Desk::open(routes);
    let images = |desk: &Desk| {
        desk.app.call("POST", "/v1/images/generations", &desk.user.key, Some(&json!({"prompt": "a cat"})))
    };
    assert_refused(&desk.costs_nothing(images), &FORBIDDEN);
    desk.panel("PUT", &format!("users/{}", desk.user.id), Some(json!({"email_verified": true})));
    assert_eq!(images(&desk).status, 200);
}

#[test]
fn a_scope_that_the_key_lacks() {
    let desk = Desk::open(
        "routes = [{ path = \"/v1/*\", upstream = \"ai\", cost = { conversations = 1 }, scope = \"chat\" }]\n",
    );
    let with_scope =
        |desk: &Desk, scope: &str| desk.narrow_key(KeyLimits { scopes: vec![scope.into()], ..KeyLimits::default() });
    let answer = desk.costs_nothing(|desk| {
        with_scope(desk, "images");
        let answer = desk.chat();
        with_scope(desk, "chat");
        answer
    });
    assert_refused(&answer, &FORBIDDEN);
}

#[test]
fn a_model_that_the_route_does_not_let_through() {
    let desk = Desk::open(
        "routes = [{ path = \"/v1/*\", upstream = \"ai\", cost = { conversations = 1 }, models = [\"gpt-4*\", \"o1\"] }]\n",
    );
    for (model, row) in [
        (json!("o1-mini"), FORBIDDEN),
        (json!(""), FORBIDDEN),
        (json!(null), BAD_REQUEST),
        (json!(["o1"]), BAD_REQUEST),
    ] {
        let answer = desk.costs_nothing(|desk| desk.app.chat(&desk.user.key, json!({"model": model})));
        assert_refused(&answer, &row);
    }
    assert_eq!(desk.app.chat(&desk.user.key, json!({"model": "o1"})).status, 200);
}

#[test]
fn a_model_that_the_key_does_not_open() {
    let desk = Desk::open("");
    desk.narrow_key(KeyLimits { models: vec!["gpt-4o".into()], ..KeyLimits::default() });
    let answer = desk.costs_nothing(|desk| desk.app.chat(&desk.user.key, json!({"model": "gpt-4o-mini"})));
    assert_refused(&answer, &FORBIDDEN);
    // Not to be talked around: no model named, one hidden in an escape, or named again where another reader looks.
    for (body, row) in [
        ("{}", FORBIDDEN),
        ("{\"mod\\u0065l\":\"gpt-4o-mini\"}", FORBIDDEN),
        ("{\"model\":\"gpt-4o\",\"mod\\u0065l\":\"o1\"}", BAD_REQUEST),
        ("{\"model\":\"gpt-4o\",\"Model\":\"o1\"}", BAD_REQUEST),
    ] {
        let answer = desk.costs_nothing(|desk| {
            let mut conn = crate::support::Conn::open(desk.app.public);
            let (key, len) = (&desk.user.key, body.len());
            conn.send(format!(
                "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: {key}\r\ncontent-length: {len}\r\n\r\n{body}"
            ));
            conn.read_answer()
        });
        assert_refused(&answer, &row);
    }
}
