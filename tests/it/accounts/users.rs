//! `/v1/users/*`.

use std::time::Duration;

use serde_json::{Value, json};

use super::{assert_time, members};
use crate::support::{Answer, Options, PASSWORD, TestApp, http};

fn send(app: &TestApp, method: &str, path: &str, token: Option<&str>, body: Option<Value>) -> Answer {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<(&str, &str)> = bearer.iter().map(|value| ("authorization", value.as_str())).collect();
    http::call(app.public, method, &format!("/v1/users/{path}"), &headers, body.as_ref())
}

#[track_caller]
fn ok(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let body = answer.json();
    assert_eq!(body["success"], true);
    body
}

/// The registration of the first system's guide.
fn john() -> Value {
    json!({
        "username": "johndoe", "name": "John Doe", "email": "john@example.com", "password": PASSWORD,
        "user_type": "Personal", "about_me": "AI enthusiast and developer", "hobbies": "Programming, reading, hiking",
    })
}

/// John, registered and logged in: his key and his session.
fn john_in(app: &TestApp) -> (String, Value) {
    let key = ok(&send(app, "POST", "register", None, Some(john())))["api_key"].as_str().unwrap().to_owned();
    (key, login(app)["session"].clone())
}

fn login(app: &TestApp) -> Value {
    ok(&send(app, "POST", "login", None, Some(json!({"email": "john@example.com", "password": PASSWORD}))))
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("{name} in {value}"))
}

#[test]
fn registration_answers_as_documented() {
    let app = TestApp::start("");
    let body = ok(&send(&app, "POST", "register", None, Some(john())));
    let documented =
        ["api_key", "email", "message", "success", "user_id", "username", "verification_required"].to_vec();
    assert_eq!(members(&body), documented);
    assert_eq!(body["message"], "User registered successfully");
    assert_eq!((&body["user_id"], &body["username"]), (&json!(1), &json!("johndoe")));
    assert_eq!((&body["email"], &body["verification_required"]), (&json!("john@example.com"), &json!(false)));
    let key = text(&body, "api_key");
    assert!(key.len() == 35 && key.starts_with("pe-"), "{key}");
    assert!(key[3..].bytes().all(|b| b.is_ascii_alphanumeric()), "{key}");
    assert_eq!(app.chat(key, json!({})).status, 200, "and the key works");
}

#[test]
fn registration_says_what_does_not_fit_all_at_once() {
    let app = TestApp::start("");
    let bad = json!({"username": "j d", "name": "J", "email": "nowhere", "password": "short", "user_type": "Robot"});
    let answer = send(&app, "POST", "register", None, Some(bad));
    assert_eq!((answer.status, answer.error_code().as_str()), (400, "BAD_REQUEST"));
    assert_eq!(answer.json()["errors"], json!(["user_type: must be \"Personal\" or \"Business\""]));
    // Words that are none of those to choose from come first; then the rules of the rest, all at once.
    let bad = json!({"username": "j d", "name": "J", "email": "nowhere", "password": "short"});
    let errors = send(&app, "POST", "register", None, Some(bad)).json()["errors"].to_string();
    for field in ["username:", "name:", "email:", "password: needs at least 8", "uppercase", "number"] {
        assert!(errors.contains(field), "{field} in {errors}");
    }
    assert!(!errors.contains("short") && !errors.contains("nowhere"), "values are not repeated: {errors}");
    let missing = send(&app, "POST", "register", None, Some(json!({}))).json()["errors"].to_string();
    for field in ["username", "name", "email", "password"] {
        assert!(missing.contains(&format!("{field}: is required")), "{missing}");
    }
}

#[test]
fn names_and_emails_are_taken_once_whatever_their_case() {
    let app = TestApp::start("");
    ok(&send(&app, "POST", "register", None, Some(john())));
    for (field, other) in [("username", "JohnDoe"), ("email", "JOHN@example.com")] {
        let mut again = json!({"username": "jane", "name": "Jane", "email": "jane@example.com", "password": PASSWORD});
        again[field] = other.into();
        let answer = send(&app, "POST", "register", None, Some(again));
        assert_eq!((answer.status, answer.error_code().as_str()), (409, "CONFLICT"), "{field}");
    }
}

#[test]
fn registration_can_be_closed() {
    let app = TestApp::start("[accounts]\nregistration = false\n");
    let answer = send(&app, "POST", "register", None, Some(john()));
    assert_eq!((answer.status, answer.error_code().as_str()), (403, "FORBIDDEN"));
}

#[test]
fn login_answers_as_documented() {
    let app = TestApp::with(Options { manual_clock: Some("2024-01-14T12:00:00Z"), ..Options::default() });
    ok(&send(&app, "POST", "register", None, Some(john())));
    let body = login(&app);
    assert_eq!(members(&body), ["message", "session", "success", "user"]);
    assert_eq!(body["message"], "Login successful");
    let user = json!({
        "id": 1, "username": "johndoe", "name": "John Doe", "email": "john@example.com", "user_type": "Personal",
        "subscription_plan": "free", "is_verified": false,
    });
    assert_eq!(body["user"], user);
    let session = &body["session"];
    assert_eq!(members(session), ["expires_at", "refresh_expires_at", "refresh_token", "session_token"]);
    // A day and thirty, as in the guide.
    assert_eq!(session["expires_at"], "2024-01-15T12:00:00Z");
    assert_eq!(session["refresh_expires_at"], "2024-02-13T12:00:00Z");
    assert_eq!(app.chat(text(session, "session_token"), json!({})).status, 200);
}

#[test]
fn a_wrong_password_and_an_unknown_name_get_the_same_answer() {
    let app = TestApp::start("");
    ok(&send(&app, "POST", "register", None, Some(john())));
    let refused = [("john@example.com", "Wrong1234"), ("nobody@example.com", PASSWORD)].map(|(email, password)| {
        let answer = send(&app, "POST", "login", None, Some(json!({"email": email, "password": password})));
        let mut body = answer.json();
        body["details"] = Value::Null;
        (answer.status, answer.header("www-authenticate").is_some(), body)
    });
    assert_eq!(refused[0], refused[1]);
    assert_eq!((refused[0].0, refused[0].1), (401, true));
}

#[test]
fn refresh_gives_new_tokens_and_ends_the_old_ones() {
    let app = TestApp::with(Options { manual_clock: Some("2026-01-15T12:00:00Z"), ..Options::default() });
    let (_, session) = john_in(&app);
    app.hands.as_ref().unwrap().advance(Duration::from_secs(25 * 3600));
    let old = (text(&session, "session_token"), text(&session, "refresh_token"));
    assert_eq!(send(&app, "GET", "profile", Some(old.0), None).status, 401, "a day is over");
    let body = ok(&send(&app, "POST", "refresh", None, Some(json!({"refresh_token": old.1}))));
    assert_eq!(members(&body), ["message", "session", "success"]);
    let new = &body["session"];
    assert_eq!(members(new), members(&session));
    assert_eq!(new["refresh_expires_at"], session["refresh_expires_at"], "a session is not prolonged for ever");
    ok(&send(&app, "GET", "profile", Some(text(new, "session_token")), None));
    app.hands.as_ref().unwrap().advance(Duration::from_secs(11));
    let again = send(&app, "POST", "refresh", None, Some(json!({"refresh_token": old.1})));
    assert_eq!((again.status, again.error_code().as_str()), (401, "UNAUTHENTICATED"), "once");
    app.hands.as_ref().unwrap().advance(Duration::from_secs(30 * 86_400));
    let late = send(&app, "POST", "refresh", None, Some(json!({"refresh_token": text(new, "refresh_token")})));
    assert_eq!(late.status, 401);
}

#[test]
fn logout_ends_the_session_at_once_and_only_that() {
    let app = TestApp::start("");
    let (key, session) = john_in(&app);
    let token = text(&session, "session_token");
    let other = login(&app);
    assert_eq!(app.chat(token, json!({})).status, 200);
    ok(&send(&app, "POST", "logout", Some(token), None));
    assert_eq!(app.chat(token, json!({})).status, 401);
    assert_eq!(send(&app, "GET", "profile", Some(token), None).status, 401);
    let refresh = json!({"refresh_token": text(&session, "refresh_token")});
    assert_eq!(send(&app, "POST", "refresh", None, Some(refresh)).status, 401);
    assert_eq!(app.chat(text(&other["session"], "session_token"), json!({})).status, 200);
    assert_eq!(app.chat(&key, json!({})).status, 200);
}

#[test]
fn a_profile_is_read_and_changed() {
    let app = TestApp::start("");
    let (key, session) = john_in(&app);
    let token = Some(text(&session, "session_token"));
    let user = ok(&send(&app, "GET", "profile", token, None))["user"].clone();
    for (field, value) in [
        ("id", json!(1)),
        ("username", json!("johndoe")),
        ("name", json!("John Doe")),
        ("about_me", json!("AI enthusiast and developer")),
        ("hobbies", json!("Programming, reading, hiking")),
        ("subscription_plan", json!("free")),
        ("status", json!("active")),
        ("credits", json!({"main": 5, "reset": 5})),
        ("limits", json!({"conversation_limit": 10, "reset": 10})),
    ] {
        assert_eq!(user[field], value, "{field}");
    }
    assert_time(&user["created_at"]);
    assert!(!user.to_string().contains("argon2") && !user.to_string().contains(&key), "no secrets: {user}");

    // The update of the guide; what a user may not change is ignored.
    let change = json!({
        "name": "John Smith", "about_me": "Updated bio", "hobbies": "AI, Machine Learning",
        "subscription_plan": "enterprise", "credits": {"main": 1000}, "is_verified": true, "status": "active", "id": 7,
    });
    let changed = ok(&send(&app, "PUT", "profile", token, Some(change)))["user"].clone();
    let fields = |user: &Value| ["name", "about_me", "hobbies"].map(|field| user[field].clone());
    assert_eq!(fields(&changed), [json!("John Smith"), json!("Updated bio"), json!("AI, Machine Learning")]);
    assert_eq!(fields(&changed), fields(&ok(&send(&app, "GET", "profile", token, None))["user"]));
    for field in ["id", "subscription_plan", "credits", "is_verified", "status"] {
        assert_eq!(changed[field], user[field], "{field}");
    }
    assert_eq!(send(&app, "GET", "profile", Some(&key), None).status, 401, "a key calls upstreams, nothing else");
}

#[test]
fn a_key_is_shown_masked_and_replaced_at_once() {
    let app = TestApp::start("");
    let (key, session) = john_in(&app);
    let token = Some(text(&session, "session_token"));
    let shown = ok(&send(&app, "GET", "api-key", token, None));
    assert_eq!(shown["masked"], format!("{}…", &key[..7]));
    assert!(!shown.to_string().contains(&key));
    assert_eq!(app.chat(&key, json!({})).status, 200);
    let new = ok(&send(&app, "POST", "api-key/regenerate", token, None));
    let new = text(&new, "api_key");
    assert!(new.starts_with("pe-") && new != key);
    assert_eq!(app.chat(&key, json!({})).status, 401);
    assert_eq!(app.chat(new, json!({})).status, 200);
}

#[test]
fn usage_and_quota_follow_the_calls() {
    let app = TestApp::start("");
    let (key, session) = john_in(&app);
    let token = Some(text(&session, "session_token"));
    assert_eq!(app.chat(&key, json!({})).status, 200);
    // The hold is settled right after the answer's last byte, so a client can be faster than that.
    let usage = || ok(&send(&app, "GET", "usage", token, None))["meters"]["conversations"].clone();
    crate::support::wait_until("the hold is settled", || usage()["held"] == 0);
    let usage = usage();
    assert_eq!((&usage["balance"], &usage["spent"], &usage["granted"]), (&json!(9), &json!(1), &json!(10)));
    let quota = ok(&send(&app, "GET", "quota", token, None))["quota"]["conversations"].clone();
    assert_eq!((&quota["limit"], &quota["used"], &quota["remaining"]), (&json!(10), &json!(1), &json!(9)));
    assert_time(&quota["resets_at"]);
}

#[test]
fn the_public_side_has_no_admin_pages() {
    let app = TestApp::start("");
    let token = app.admin_token();
    let (served, bearer) = (app.upstream.stats().total, format!("Bearer {token}"));
    for path in [
        "/v1/admin-panel/users",
        "/v1/admin-panel/login",
        "/v1/Admin-Panel/users",
        "//v1//admin-panel/users",
        "/v1/%61dmin-panel/users",
        "/v1/support/login",
        "/metrics",
        // `/health` is one of usermgmt's calls, and tells no more there than that somebody answers.
        "/health/x",
        "/ready",
    ] {
        for host in ["gateway.test", "127.0.0.1:9090"] {
            let mut conn = crate::support::Conn::open(app.public);
            conn.send(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: {bearer}\r\n\r\n"));
            assert_eq!(conn.read_answer().status, 404, "{path} on {host}");
        }
    }
    assert_eq!(app.upstream.stats().total, served);
}

#[test]
fn a_picture_is_an_address_that_cannot_be_script() {
    let app = TestApp::start("");
    let user = app.register("alice");
    let login = json!({"email": user.email, "password": PASSWORD});
    let answer = app.call("POST", "/v1/users/login", "", Some(&login)).json();
    let token = answer["session"]["session_token"].as_str().unwrap().to_owned();
    let set = |url: &str| app.call("PUT", "/v1/users/profile", &token, Some(&json!({"avatar_url": url}))).status;
    let long = format!("https://example.com/{}", "a".repeat(481));
    for bad in [
        "javascript:alert(1)",
        "data:text/html,<script>alert(1)</script>",
        "http://example.com/a.png",
        "//example.com/a.png",
        "https://example.com/\"onerror=\"alert(1)",
        "https://example.com/'><script>",
        "https://example.com/a b.png",
        "https://example.com/\u{e4}.png",
        &long,
    ] {
        assert_eq!(set(bad), 400, "{bad}");
    }
    assert_eq!(set("https://example.com/u/1.png?s=80&d=%22#top"), 200);
    let shown = app.call("GET", "/v1/users/profile", &token, None).json();
    assert!(shown.to_string().contains("https://example.com/u/1.png?s=80&d=%22#top"), "{shown}");
}
