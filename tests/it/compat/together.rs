//! One identity, seen through all dialects.

use serde_json::{Value, json};

use crate::support::{ADMIN, Options, PASSWORD, TestApp, http};

const ROUTES: &str = "[[routes]]\npath = \"/v1/*\"\nupstream = \"ai\"\ncost = { conversations = 1 }\n\
    [[routes]]\npath = \"/api/chat\"\nupstream = \"ai\"\ncost = { conversations = 1, images = 1 }\n";
const NAME: &str = "maria";
const EMAIL: &str = "maria@example.com";

fn post(to: std::net::SocketAddr, path: &str, body: &Value) -> Value {
    let answer = http::call(to, "POST", path, &[], Some(body));
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    answer.json()
}

/// Registers by one dialect; answers the key, where it is shown.
fn register(app: &TestApp, dialect: &str) -> Option<String> {
    let (path, body) = match dialect {
        "promptenchanter" => {
            ("/v1/users/register", json!({"username": NAME, "name": "Maria", "email": EMAIL, "password": PASSWORD}))
        }
        "clisonix" => ("/api/users/register", json!({"username": NAME, "email": EMAIL, "password": PASSWORD})),
        "aiezzy" => ("/api/v2/register", json!({"full_name": "Maria", "email": EMAIL, "password": PASSWORD})),
        "usermgmt" => (
            "/api/v1/auth/register",
            json!({"username": NAME, "name": "Maria", "email": EMAIL, "password": PASSWORD,
                "confirm_password": PASSWORD}),
        ),
        other => panic!("{other}"),
    };
    post(app.public, path, &body)["api_key"].as_str().map(str::to_owned)
}

fn logins(app: &TestApp) -> Vec<(&'static str, u16, Option<String>)> {
    let attempts = [
        ("promptenchanter", "/v1/users/login", json!({"email": EMAIL, "password": PASSWORD}), "/session/session_token"),
        ("clisonix", "/api/users/login", json!({"email_or_username": NAME, "password": PASSWORD}), "/access_token"),
        ("aiezzy", "/api/v2/login", json!({"username": EMAIL, "password": PASSWORD}), "/session_token"),
        ("usermgmt", "/api/v1/auth/login", json!({"email": EMAIL, "password": PASSWORD}), "/access_token"),
    ];
    let login = |(dialect, path, body, token): (&'static str, &str, Value, &str)| {
        let answer = http::call(app.public, "POST", path, &[], Some(&body));
        let token = answer.json().pointer(token).and_then(Value::as_str).map(str::to_owned);
        (dialect, answer.status, token)
    };
    attempts.into_iter().map(login).collect()
}

/// The conversations left, as each dialect tells it.
fn balances(app: &TestApp, token: &str, root: &str) -> Vec<(&'static str, f64)> {
    let read = |path: &str, pointer: &str| {
        let answer = app.call("GET", path, token, None);
        answer.json().pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path}: {}", answer.text()))
    };
    let staff = |path: &str, pointer: &str| {
        let answer = app.admin_call(root, "GET", path, None);
        answer.json().pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path}: {}", answer.text()))
    };
    vec![
        ("promptenchanter", read("/v1/users/profile", "/user/limits/conversation_limit")),
        ("quota", read("/v1/users/quota", "/quota/conversations/remaining")),
        ("usermgmt", read("/api/v1/auth/profile", "/limits/conversation_limit")),
        ("clisonix", 10.0 - read("/api/users/me/usage", "/api_calls_today")),
        ("usermgmt's administrators", staff("/api/v1/admin/users/maria", "/limits/conversation_limit")),
        ("support", staff("/v1/support/users/1", "/user/limits/conversation_limit")),
    ]
}

#[test]
fn who_registers_in_one_is_known_in_all_and_has_one_balance() {
    for dialect in ["promptenchanter", "clisonix", "aiezzy", "usermgmt"] {
        let app = TestApp::with(Options { route: ROUTES, ..Options::default() });
        let (shown, root) = (register(&app, dialect), app.admin_token());
        let mut spent = 0.0;
        for (by, status, token) in logins(&app) {
            if dialect == "aiezzy" {
                // Its username is made of the address, which here is the same.
                assert_eq!(status, 200, "{by}");
            }
            assert_eq!(status, 200, "registered by {dialect}, logs in by {by}");
            let token = token.unwrap();
            let key =
                app.call("GET", "/api/users/me/api-key", &token, None).json()["api_key"].as_str().unwrap().to_owned();
            assert!(shown.as_ref().is_none_or(|shown| *shown == key), "the one key there is");
            // A session and a key, on every route; a check costs one too.
            assert_eq!(app.chat(&token, json!({})).status, 200);
            assert_eq!(app.call("POST", "/api/chat", &key, Some(&json!({"message": "x"}))).status, 200);
            spent += 2.0;
            for (where_, left) in balances(&app, &token, &root) {
                assert_eq!(left, 10.0 - spent, "registered by {dialect}, logged in by {by}, told by {where_}");
            }
            let images = app.call("GET", "/api/v2/quota/status", &token, None).json();
            assert_eq!(images["usage"]["image"], spent / 2.0, "{images}");
        }
    }
}

#[test]
fn who_is_suspended_in_one_is_refused_in_all() {
    let stops: [(&str, &str, Option<Value>); 4] = [
        ("clisonix", "POST /api/admin/users/1/suspend", None),
        ("aiezzy", "POST /api/admin/users/1/deactivate", None),
        ("usermgmt", "PUT /api/v1/admin/users/maria", Some(json!({"is_active": false}))),
        ("promptenchanter", "POST /v1/admin-panel/users/1/suspend", None),
    ];
    for (dialect, stop, body) in stops {
        let app = TestApp::with(Options { route: ROUTES, ..Options::default() });
        let key = register(&app, "clisonix").unwrap();
        let tokens: Vec<String> = logins(&app).into_iter().map(|(_, _, token)| token.unwrap()).collect();
        let (method, path) = stop.split_once(' ').unwrap();
        assert_eq!(app.admin_call(&app.admin_token(), method, path, body.as_ref()).status, 200, "{dialect}");
        for token in &tokens {
            for path in ["/v1/users/profile", "/api/users/me", "/api/v2/quota/status", "/api/v1/auth/profile"] {
                assert_eq!(app.call("GET", path, token, None).status, 403, "stopped by {dialect}: {path}");
            }
            assert_eq!(app.chat(token, json!({})).status, 403, "stopped by {dialect}");
        }
        assert_eq!(app.chat(&key, json!({})).status, 403, "stopped by {dialect}");
        assert_eq!(app.call("POST", "/api/v1/auth/verify-key", &key, None).status, 403, "stopped by {dialect}");
        assert_eq!(app.call("POST", "/api/users/validate-api-key", &key, None).status, 403, "stopped by {dialect}");
        for (by, status, _) in logins(&app) {
            assert_eq!(status, 403, "stopped by {dialect}, logs in by {by}");
        }
        assert_eq!(app.upstream.stats().total, 0, "stopped by {dialect}");
    }
}

#[test]
fn a_logout_by_one_is_a_logout() {
    let app = TestApp::with(Options { route: ROUTES, ..Options::default() });
    register(&app, "usermgmt");
    for (path, nth) in [("/v1/users/logout", 0), ("/api/users/logout", 1), ("/api/v2/logout", 2)] {
        let token = logins(&app).swap_remove(nth).2.unwrap();
        assert_eq!(app.call("POST", path, &token, None).status, 200, "{path}");
        assert_eq!(app.call("GET", "/api/users/me", &token, None).status, 401, "{path}");
    }
}

#[test]
fn an_administrator_of_one_is_one_in_all() {
    let app = TestApp::start("");
    register(&app, "clisonix");
    let by = |path: &str, body: Value, token: &str| {
        let answer = post(app.admin, path, &body);
        answer.pointer(token).and_then(Value::as_str).unwrap_or_else(|| panic!("{path}: {answer}")).to_owned()
    };
    let tokens = [
        by("/v1/admin-panel/login", json!({"username": ADMIN, "password": PASSWORD}), "/session/session_token"),
        by("/api/users/login", json!({"email_or_username": ADMIN, "password": PASSWORD}), "/access_token"),
        by("/api/v2/login", json!({"username": ADMIN, "password": PASSWORD}), "/session_token"),
        by("/api/v1/admin/login", json!({"username": ADMIN, "password": PASSWORD}), "/access_token"),
        by("/noteria/login.php", json!({"email": ADMIN, "password": PASSWORD}), "/session_token"),
    ];
    for token in &tokens {
        for path in [
            "/v1/admin-panel/users",
            "/api/admin/users",
            "/api/admin/stats",
            "/api/admin/dashboard",
            "/api/v1/admin/users",
            "/noteria/admin_unique_codes.php",
        ] {
            assert_eq!(app.admin_call(token, "GET", path, None).status, 200, "{path}");
        }
        // An administrator's session opens no user's page, and calls no upstream.
        assert_eq!(app.call("GET", "/api/users/me", token, None).status, 401);
        assert_eq!(app.chat(token, json!({})).status, 401);
    }
    // Nor does a user's open theirs.
    let user = logins(&app).swap_remove(1).2.unwrap();
    assert_eq!(app.admin_call(&user, "GET", "/api/admin/users", None).status, 401);
}

#[test]
fn an_administrator_may_come_by_his_email() {
    let app = TestApp::start("");
    let root = app.admin_token();
    for (name, email, status) in [("anna", "anna@example.com", 200), ("bert", "Anna@example.com", 409)] {
        let new = json!({"username": name, "name": name, "email": email, "password": PASSWORD});
        assert_eq!(app.admin_call(&root, "POST", "/v1/admin-panel/create-admin", Some(&new)).status, status, "{name}");
    }
    let login = |email: &str| {
        let body = json!({"username": email, "password": PASSWORD});
        http::call(app.admin, "POST", "/api/v2/login", &[], Some(&body)).status
    };
    assert_eq!(login("Anna@Example.com"), 200);
    assert_eq!(login("nobody@example.com"), 401);
}

/// A login of each dialect: its path, and its body.
fn attempts(password: &str, code: Option<&str>) -> Vec<(&'static str, Value)> {
    let with = |name: &str, who: &str| json!({name: who, "password": password, "code": code});
    vec![
        ("/v1/users/login", with("email", EMAIL)),
        ("/api/users/login", with("email_or_username", NAME)),
        ("/api/v2/login", with("username", EMAIL)),
        ("/api/v1/auth/login", with("email", EMAIL)),
        (
            "/noteria/login.php",
            json!({"email": EMAIL, "password": password, "code": code, "unique_code": "A7F3B2E9D4C1F6A8"}),
        ),
    ]
}

/// One count, whichever door is tried: otherwise five doors are five times as many guesses.
#[test]
fn wrong_passwords_count_together() {
    let app = TestApp::start("");
    register(&app, "clisonix");
    for (path, body) in attempts("WrongPass1", None) {
        assert_eq!(http::call(app.public, "POST", path, &[], Some(&body)).status, 401, "{path}");
    }
    for (path, body) in attempts(PASSWORD, None) {
        let locked = http::call(app.public, "POST", path, &[], Some(&body));
        assert_eq!((locked.status, locked.error_code()), (423, "LOCKED".into()), "{path}");
        assert!(locked.header("retry-after").is_some(), "{path}");
    }
}

#[test]
fn a_second_factor_is_asked_for_at_every_door() {
    let app = TestApp::with(Options { manual_clock: Some("2026-01-15T12:00:00Z"), ..Options::default() });
    register(&app, "usermgmt");
    let token = logins(&app).swap_remove(0).2.unwrap();
    let secret = crate::accounts::mfa::switch_on(&app, &token);
    let enter = |path: &str, code: Option<&str>| {
        let (_, body) = attempts(PASSWORD, code).into_iter().find(|(known, _)| *known == path).unwrap();
        http::call(app.public, "POST", path, &[], Some(&body))
    };
    for (steps, path) in (1..).zip(["/v1/users/login", "/api/users/login", "/api/v2/login", "/api/v1/auth/login"]) {
        let asked = enter(path, None);
        assert_eq!((asked.status, asked.error_code()), (401, "MFA_REQUIRED".into()), "{path}");
        app.hands.as_ref().unwrap().advance(std::time::Duration::from_secs(30));
        let code = crate::accounts::mfa::code(&secret, steps);
        assert_eq!(enter(path, Some(&code)).status, 200, "{path}");
        assert_eq!(enter(path, Some(&code)).error_code(), "WRONG_CODE", "{path}: each opens once");
    }
    let asked = enter("/noteria/login.php", None);
    assert_eq!((asked.status, asked.error_code()), (401, "MFA_REQUIRED".into()), "{}", asked.text());
}

/// What a strict service says of an address that is taken is what it says of one that is free.
#[test]
fn a_strict_service_is_strict_in_every_dialect() {
    let mail = crate::support::smtp::MailServer::start();
    let app = TestApp::start(&format!("{}[accounts]\nstrict = true\n", mail.config()));
    register(&app, "promptenchanter");
    for (path, mut body) in [
        ("/api/users/register", json!({"email": EMAIL, "username": "other", "password": PASSWORD})),
        ("/api/v2/register", json!({"email": EMAIL, "password": PASSWORD, "full_name": "Other"})),
        (
            "/api/v1/auth/register",
            json!({"username": "another", "name": "Other", "email": EMAIL, "password": PASSWORD}),
        ),
    ] {
        let taken = http::call(app.public, "POST", path, &[], Some(&body));
        body["email"] = json!(format!("{}@example.org", path.replace('/', "-")));
        let free = http::call(app.public, "POST", path, &[], Some(&body));
        assert_eq!((taken.status, taken.text()), (free.status, free.text()), "{path}");
        assert!(taken.status == 200 && taken.header("set-cookie").is_none(), "{path}");
        assert!(free.header("set-cookie").is_none() && !free.text().contains("pe-"), "{path}: {}", free.text());
    }
    assert_eq!(http::call(app.public, "GET", &format!("/api/users/check-email/{EMAIL}"), &[], None).status, 403);
}
