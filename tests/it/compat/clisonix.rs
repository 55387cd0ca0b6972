//! Clisonix, by its README.

use serde_json::{Value, json};

use super::transcript::{To, Transcript, fits};
use crate::support::{ADMIN, Options, PASSWORD, TestApp, http};

const HOST: &str = "http://localhost:8070";

/// The fields of the document's data classes, but for the hash, which no answer has.
fn account() -> Value {
    json!({"user_id": 1, "email": "", "username": "", "role": "user", "status": "active", "verification": "unverified",
        "plan": "free", "mfa_enabled": false, "last_login": null, "first_name": null, "last_name": null,
        "display_name": null, "avatar_url": null, "phone": null, "country": null, "city": null, "timezone": null,
        "language": null, "organization": null, "job_title": null, "specialization": null, "license_number": null})
}

#[test]
fn every_call_of_its_document_is_answered() {
    let app = TestApp::start("");
    let mut t = Transcript::new(&app);
    let registered = t.curl(
        To::Public,
        HOST,
        r#"curl -X POST http://localhost:8070/api/users/register \
  -H "Content-Type: application/json" \
  -d '{
    "email": "user@example.com",
    "username": "myuser",
    "password": "SecurePass123!",
    "first_name": "John",
    "last_name": "Doe"
  }'"#,
    );
    fits(&registered, &account());
    let key = registered.json()["api_key"].as_str().unwrap().to_owned();
    assert!(key.starts_with("clx_") && key.len() == 36, "{key}");
    let login = t.curl(
        To::Public,
        HOST,
        r#"curl -X POST http://localhost:8070/api/users/login \
  -H "Content-Type: application/json" \
  -d '{
    "email_or_username": "user@example.com",
    "password": "SecurePass123!"
  }'"#,
    );
    fits(&login, &json!({"session_id": 1, "user_id": 1, "access_token": "", "refresh_token": "", "expires_at": ""}));
    let token = login.json()["access_token"].as_str().unwrap().to_owned();
    assert!(token.starts_with("at_"), "{token}");
    t.set("<access_token>", &token);
    t.set("at_abc123...", &token);
    t.set("clx_abc123...", &key);
    let by_name = json!({"email_or_username": "MyUser", "password": "SecurePass123!"});
    assert_eq!(t.call(To::Public, "POST /api/users/login", None, Some(&by_name)).status, 200);
    for line in [
        "curl -X GET http://localhost:8070/api/users/me \\\n  -H \"Authorization: Bearer at_abc123...\"",
        "curl -X GET http://localhost:8070/api/users/me \\\n  -H \"X-API-Key: clx_abc123...\"",
        "curl -X GET http://localhost:8070/api/users/me \\\n  -H \"Authorization: Bearer <access_token>\"",
    ] {
        let me = t.curl(To::Public, HOST, line);
        fits(&me, &account());
        assert_eq!((me.status, me.json()["first_name"].as_str()), (200, Some("John")));
    }
    let valid = t.call(To::Public, "POST /api/users/validate-token", Some(&token), None);
    fits(&valid, &json!({"valid": true, "user_id": 1}));
    assert_eq!(valid.json()["valid"], true);
    let by_body = t.call(To::Public, "POST /api/users/validate-api-key", None, Some(&json!({"api_key": key})));
    let by_header = t.call(To::Public, "POST /api/users/validate-api-key", Some(&key), None);
    assert_eq!((by_body.json(), by_body.json()["valid"].as_bool()), (by_header.json(), Some(true)));
    let wrong = t.call(To::Public, "POST /api/users/validate-api-key", None, Some(&json!({"api_key": "clx_no"})));
    assert_eq!(
        (wrong.status, &wrong.json()["valid"], &wrong.json()["detail"]),
        (401, &json!(false), &wrong.json()["message"])
    );
    let change = json!({"display_name": "Johnny", "city": "Tirana", "phone": "+355 4 123", "language": "sq"});
    t.call(To::Public, "PUT /api/users/me/profile", Some(&token), Some(&change));
    let profile = t.call(To::Public, "GET /api/users/me/profile", Some(&token), None);
    assert_eq!((profile.json()["city"].as_str(), profile.json()["last_name"].as_str()), (Some("Tirana"), Some("Doe")));
    let usage = t.call(To::Public, "GET /api/users/me/usage", Some(&token), None);
    let counts = json!({"credits_balance": 5, "credits_used_today": 0, "credits_used_month": 0, "api_calls_today": 0,
        "api_calls_month": 0, "storage_used_mb": 0, "storage_limit_mb": 100, "ocean_sessions_today": 1,
        "ocean_messages_today": 0});
    fits(&usage, &counts);
    let shown = t.call(To::Public, "GET /api/users/me/api-key", Some(&token), None);
    assert_eq!(shown.json()["api_key"], key.as_str(), "a key that works");
    for (path, free) in [
        ("check-email/user@example.com", false),
        ("check-email/free@example.com", true),
        ("check-username/myuser", false),
        ("check-username/somebody", true),
    ] {
        let answer = t.call(To::Public, &format!("GET /api/users/{path}"), None, None);
        assert_eq!(answer.json()["available"], free, "{path}");
    }
    admin(&mut t);
    assert_eq!(t.call(To::Public, "POST /api/users/logout", Some(&token), None).status, 200);
    let over = t.call(To::Public, "POST /api/users/validate-token", Some(&token), None);
    assert_eq!((over.status, &over.json()["valid"]), (401, &json!(false)));
    insta::assert_snapshot!("clisonix", t.text());
}

fn admin(t: &mut Transcript<'_>) {
    let body = json!({"email_or_username": ADMIN, "password": PASSWORD});
    let login = t.call(To::Side, "POST /api/users/login", None, Some(&body));
    let admin = login.json()["access_token"].as_str().unwrap().to_owned();
    let list = t.call(To::Side, "GET /api/admin/users", Some(&admin), None);
    fits(&list, &json!({"users": [account()], "total": 1}));
    fits(&t.call(To::Side, "GET /api/admin/users/1", Some(&admin), None), &account());
    let act = |t: &mut Transcript<'_>, what: &str, body: Option<Value>| {
        let answer = t.call(To::Side, &format!("POST /api/admin/users/1/{what}"), Some(&admin), body.as_ref());
        assert_eq!(answer.status, 200, "{what}: {}", answer.text());
        answer.json()
    };
    assert_eq!(act(t, "suspend", Some(json!({"reason": "test"})))["status"], "suspended");
    assert_eq!(act(t, "activate", None)["status"], "active");
    let plan = act(t, "change-plan", Some(json!({"plan": "starter"})));
    assert_eq!((plan["plan"].as_str(), plan["credits_balance"].as_f64()), (Some("starter"), Some(1000.0)));
    assert_eq!(act(t, "add-credits", Some(json!({"amount": 50, "reason": "gift"})))["credits_balance"], 1050);
    fits(&t.call(To::Side, "GET /api/admin/stats", Some(&admin), None), &json!({"total_users": 1, "active_users": 1}));
}

/// The plans of the document, with their credits, storage and prices.
#[test]
fn its_plans_are_the_plans() {
    let app = TestApp::start("");
    let root = app.admin_token();
    let plans = app.admin_call(&root, "GET", "/v1/admin-panel/config", None).json()["config"]["plans"].clone();
    for (plan, credits, storage_mb, price) in [
        ("starter", 1_000.0, 1_024, "€19"),
        ("standard", 5_000.0, 5_120, "€49"),
        ("professional", 20_000.0, 20_480, "€99"),
        ("enterprise", 100_000.0, 102_400, "custom"),
    ] {
        let shown = &plans[plan];
        assert_eq!(shown["meters"]["credits"]["grant"].as_f64(), Some(credits), "{plan}");
        assert_eq!((shown["storage_mb"].as_u64(), shown["price"].as_str()), (Some(storage_mb), Some(price)), "{plan}");
    }
    assert_eq!(plans["free"]["storage_mb"], 100);
}

/// Tokens that begin as its clients expect go on doing so, and are known everywhere.
#[test]
fn its_tokens_keep_their_look_and_open_every_door() {
    let app = TestApp::start("");
    let user = app.register("ana");
    let body = json!({"email_or_username": "ana", "password": PASSWORD});
    let login = crate::support::http::call(app.public, "POST", "/api/users/login", &[], Some(&body)).json();
    let (token, refresh) = (login["access_token"].as_str().unwrap(), login["refresh_token"].as_str().unwrap());
    assert_eq!(app.call("GET", "/v1/users/profile", token, None).json()["user"]["id"], user.id);
    assert_eq!(app.chat(token, json!({})).status, 200);
    let renewed = json!({"refresh_token": refresh});
    let renewed = crate::support::http::call(app.public, "POST", "/v1/users/refresh", &[], Some(&renewed)).json();
    let next = renewed["session"]["session_token"].as_str().unwrap();
    assert!(next.starts_with("at_") && renewed["session"]["refresh_token"].as_str().unwrap().starts_with("rt_"));
    assert_eq!(app.call("GET", "/api/users/me", token, None).status, 401, "the old one is over");
    assert_eq!(app.call("GET", "/api/users/me", next, None).status, 200);
    // A key of another dialect's registration is a key here.
    assert_eq!(app.call("GET", "/api/users/me", &user.key, None).json()["username"], "ana");
    assert_eq!(app.call("PUT", "/api/users/me/profile", &user.key, Some(&json!({"city": "x"}))).status, 401);
}

#[test]
fn a_session_alone_shows_no_key_of_who_has_a_second_factor() {
    let app = TestApp::with(Options { manual_clock: Some("2026-01-15T12:00:00Z"), ..Options::default() });
    let user = app.register("ana");
    let body = json!({"email_or_username": "ana", "password": PASSWORD});
    let opened = http::call(app.public, "POST", "/api/users/login", &[], Some(&body)).json();
    let session = opened["access_token"].as_str().unwrap();
    let shown = || app.call("GET", "/api/users/me/api-key", session, None);
    assert_eq!(shown().json()["api_key"], user.key.as_str());
    crate::accounts::mfa::switch_on_with(&app, session, json!({"password": PASSWORD}));
    let refused = shown();
    assert_eq!((refused.status, refused.error_code().as_str()), (403, "FORBIDDEN"));
    assert!(!refused.text().contains(&user.key) && refused.json()["detail"].is_string(), "{}", refused.text());
}
