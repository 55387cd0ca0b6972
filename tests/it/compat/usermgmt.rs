//! The user management backend, by its README.

use serde_json::{Value, json};

use super::transcript::{To, Transcript, fits};
use crate::support::{ADMIN, Options, PASSWORD, TestApp, http};

const HOST: &str = "http://localhost:8000";

fn table() -> Value {
    json!({"id": 1, "username": "", "name": "", "email": "", "about_me": "", "hobbies": "", "type": "Personal",
        "time_created": "", "subscription_plan": "free", "credits": {"main": 5, "reset": 5},
        "limits": {"conversation_limit": 10, "reset": 10}, "access_rtype": ["bpe"], "level": "basic", "is_active": true,
        "last_limit_reset": ""})
}

#[test]
fn every_call_of_its_document_is_answered() {
    let app = TestApp::start("");
    let mut t = Transcript::new(&app);
    let registered = t.curl(
        To::Public,
        HOST,
        r#"curl -X POST "http://localhost:8000/api/v1/auth/register" \
  -H "Content-Type: application/json" \
  -d '{
    "username": "testuser",
    "name": "Test User",
    "email": "test@example.com", 
    "password": "password123",
    "confirm_password": "password123",
    "type": "Personal"
  }'"#,
    );
    assert_eq!(registered.status, 200, "{}", registered.text());
    let key = registered.json()["api_key"].as_str().unwrap().to_owned();
    let login = t.curl(
        To::Public,
        HOST,
        r#"curl -X POST "http://localhost:8000/api/v1/auth/login" \
  -H "Content-Type: application/json" \
  -d '{
    "email": "test@example.com",
    "password": "password123"
  }'"#,
    );
    fits(&login, &json!({"access_token": "eyJ...", "token_type": "bearer"}));
    let token = login.json()["access_token"].as_str().unwrap().to_owned();
    assert!(token.starts_with("eyJ") && login.json()["token_type"] == "bearer");
    assert!((1790..=1800).contains(&login.json()["expires_in"].as_u64().unwrap()), "thirty minutes");
    t.set("eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9...", &token);
    t.set("Bearer eyJ...", &format!("Bearer {token}"));
    t.set("your-jwt-token", &token);
    t.set("pe-your-api-key-here", &key);
    t.set("pe-your-actual-api-key-here", &key);
    t.set("pe-your-api-key", &key);
    let profile = t.curl(
        To::Public,
        HOST,
        "curl -X GET \"http://localhost:8000/api/v1/auth/profile\" \\\n  -H \"Authorization: Bearer \
         eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9...\"",
    );
    fits(&profile, &table());
    let sealed = t.curl(
        To::Public,
        HOST,
        "curl -X GET \"http://localhost:8000/api/v1/auth/api-key\" \\\n  -H \"Authorization: Bearer your-jwt-token\"",
    );
    fits(&sealed, &json!({"key": "encrypted-key", "created_at": "2024-..."}));
    assert!(!sealed.text().contains(&key));
    let verified = t.curl(
        To::Public,
        HOST,
        "curl -X POST \"http://localhost:8000/api/v1/auth/verify-key\" \\\n  -H \"Authorization: Bearer \
         pe-your-actual-api-key-here\"",
    );
    assert_eq!(verified.json(), json!({"valid": true, "username": "testuser", "remaining_conversations": 9}));
    let change = json!({"name": "John Smith", "about_me": "Updated about me"});
    let updated = t.call(To::Public, "PUT /api/v1/auth/profile", Some(&token), Some(&change));
    assert_eq!(updated.json()["user"]["name"], "John Smith");
    let renewed = t.call(To::Public, "POST /api/v1/auth/regenerate-key", Some(&token), None);
    let renewed = renewed.json()["api_key"].as_str().unwrap().to_owned();
    assert!(renewed.starts_with("pe-") && renewed.len() == 35);
    let old = t.call(To::Public, "POST /api/v1/auth/verify-key", Some(&key), None);
    assert_eq!((old.status, &old.json()["valid"], &old.json()["detail"]), (401, &json!(false), &old.json()["message"]));
    t.set("pe-your-api-key", &renewed);
    let logged = t.curl(
        To::Public,
        HOST,
        r#"curl -X POST "http://localhost:8000/api/v1/auth/log-message" \
  -H "Authorization: Bearer pe-your-api-key" \
  -H "Content-Type: application/json" \
  -d '{
    "model": "gpt-3.5-turbo",
    "messages": [
      {"role": "user", "content": "Hello"},
      {"role": "assistant", "content": "Hi there!"}
    ],
    "research_model": false
  }'"#,
    );
    assert_eq!(logged.status, 200, "{}", logged.text());
    let health = t.curl(To::Public, HOST, "curl -X GET \"http://localhost:8000/health\"");
    let document = json!({"status": "healthy", "timestamp": "2024-01-01T12:00:00", "database": "healthy",
        "memory": {"used_percent": 45.2, "used_mb": 512.3, "available_mb": 1024.7},
        "disk": {"used_percent": 67.8, "free_gb": 15.2}, "message_buffer_size": 25, "scheduler_running": true});
    fits(&health, &document);
    let health = health.json();
    assert_eq!((&health["status"], &health["database"]), (&json!("healthy"), &json!("healthy")));
    assert!(
        health["memory"]["available_mb"].as_f64().unwrap() > 1.0 && health["disk"]["free_gb"].as_f64().unwrap() > 0.0
    );
    assert_eq!(health["timestamp"].as_str().unwrap().len(), "2024-01-01T12:00:00".len());
    admin(&mut t);
    insta::assert_snapshot!("usermgmt", t.text());
}

fn admin(t: &mut Transcript<'_>) {
    let body = json!({"username": ADMIN, "password": PASSWORD});
    let login = t.call(To::Side, "POST /api/v1/admin/login", None, Some(&body));
    fits(&login, &json!({"access_token": "", "token_type": "bearer"}));
    let admin = login.json()["access_token"].as_str().unwrap().to_owned();
    let list = t.call(To::Side, "GET /api/v1/admin/users?limit=100&offset=0", Some(&admin), None);
    fits(&list, &json!({"users": [table()], "total": 1, "limit": 100, "offset": 0}));
    let change = json!({"subscription_plan": "premium", "limits": {"conversation_limit": 100, "reset": 100}});
    let changed = t.call(To::Side, "PUT /api/v1/admin/users/testuser", Some(&admin), Some(&change));
    assert_eq!(changed.json()["user"]["subscription_plan"], "professional");
    assert_eq!(changed.json()["user"]["limits"], json!({"conversation_limit": 100, "reset": 100}));
    let staff = json!({"name": "Support User", "username": "support1", "email": "support@example.com",
        "password": "support123", "staff_level": "support"});
    assert_eq!(t.call(To::Side, "POST /api/v1/admin/staff", Some(&admin), Some(&staff)).status, 200);
    t.set("admin-jwt-token", &admin);
    let reset = t.curl(
        To::Side,
        HOST,
        "curl -X POST \"http://localhost:8000/api/v1/admin/reset-limits\" \\\n  -H \"Authorization: Bearer \
         admin-jwt-token\"",
    );
    assert_eq!(reset.json()["users"], 1);
    // He logs in by this dialect, and works in the canonical API.
    let body = json!({"username": "support1", "password": "support123"});
    let support = t.call(To::Side, "POST /api/v1/admin/login", None, Some(&body));
    let support = support.json()["access_token"].as_str().unwrap().to_owned();
    assert_eq!(t.call(To::Side, "GET /v1/support/users", Some(&support), None).status, 200);
}

#[test]
fn passwords_that_differ_are_refused_by_their_field() {
    let app = TestApp::start("");
    let body = json!({"username": "testuser", "name": "Test User", "email": "test@example.com",
        "password": "password123", "confirm_password": "password124", "type": "Personal"});
    let refused = http::call(app.public, "POST", "/api/v1/auth/register", &[], Some(&body));
    assert_eq!(
        (refused.status, &refused.json()["errors"]),
        (400, &json!(["confirm_password: is not the same as password"]))
    );
    assert!(!refused.text().contains("password124"));
}

#[test]
fn a_check_is_one_conversation_and_never_more_than_there_are() {
    let app = TestApp::start("[plans.free.meters.conversations]\ngrant = 2\nperiod = \"daily\"\n");
    let user = app.register("ana");
    let left = |status: u16| {
        let answer = app.call("POST", "/api/v1/auth/verify-key", &user.key, None);
        assert_eq!(answer.status, status, "{}", answer.text());
        answer.json()
    };
    assert_eq!((&left(200)["remaining_conversations"], &left(200)["remaining_conversations"]), (&json!(1), &json!(0)));
    let short = left(429);
    assert_eq!(short["error_code"], "CREDITS_EXHAUSTED");
    assert_eq!((&short["limits"]["conversation_limit"], &short["detail"]), (&json!(0), &short["message"]));
    assert_eq!(app.call("GET", "/api/v1/auth/verify-key", &user.key, None).status, 405);
}

#[test]
fn tokens_last_as_long_as_the_config_says() {
    let app = TestApp::with(Options {
        toml: "[compat]\nusermgmt_token_minutes = 10\n".into(),
        manual_clock: Some("2026-01-15T12:00:00Z"),
        ..Options::default()
    });
    let user = app.register("ana");
    let body = json!({"email": user.email, "password": PASSWORD});
    let login = http::call(app.public, "POST", "/api/v1/auth/login", &[], Some(&body)).json();
    let token = login["access_token"].as_str().unwrap();
    assert_eq!(login["expires_in"], 600);
    let hands = app.hands.as_ref().unwrap();
    hands.advance(std::time::Duration::from_secs(599));
    assert_eq!(app.call("GET", "/api/v1/auth/profile", token, None).status, 200);
    hands.advance(std::time::Duration::from_secs(1));
    assert_eq!(app.call("GET", "/api/v1/auth/profile", token, None).status, 401);
    let renewed = json!({"refresh_token": login["refresh_token"]});
    let renewed = http::call(app.public, "POST", "/v1/users/refresh", &[], Some(&renewed)).json();
    let next = renewed["session"]["session_token"].as_str().unwrap().to_owned();
    hands.advance(std::time::Duration::from_secs(599));
    assert_eq!(app.call("GET", "/api/v1/auth/profile", &next, None).status, 200);
    hands.advance(std::time::Duration::from_secs(1));
    assert_eq!(
        app.call("GET", "/api/v1/auth/profile", &next, None).status,
        401,
        "a renewed one as long, and no longer"
    );
}
