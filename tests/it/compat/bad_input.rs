//! What clients send that they should not: each dialect refuses it in its own form.

use serde_json::{Value, json};

use crate::support::{Answer, PASSWORD, TestApp, http};

/// Calls with a body, and a body that is right.
fn calls() -> Vec<(&'static str, &'static str, Value)> {
    vec![
        ("clisonix", "/api/users/register", json!({"email": "a@example.com", "username": "aaa", "password": PASSWORD})),
        ("clisonix", "/api/users/login", json!({"email_or_username": "ana", "password": PASSWORD})),
        ("aiezzy", "/api/v2/register", json!({"email": "b@example.com", "password": PASSWORD, "full_name": "B C"})),
        ("aiezzy", "/api/v2/login", json!({"username": "ana@example.com", "password": PASSWORD})),
        ("aiezzy", "/api/v2/reset-password", json!({"token": "x", "password": PASSWORD})),
        (
            "usermgmt",
            "/api/v1/auth/register",
            json!({"username": "ccc", "name": "C D", "email": "c@example.com", "password": PASSWORD,
                "confirm_password": PASSWORD, "type": "Personal"}),
        ),
        ("usermgmt", "/api/v1/auth/login", json!({"email": "ana@example.com", "password": PASSWORD})),
        (
            "noteria",
            "/noteria/login.php",
            json!({"email": "ana@example.com", "password": PASSWORD, "unique_code": "x"}),
        ),
    ]
}

/// The refusal is of the client's making, and has the members that this dialect's clients look for.
fn is_in_form(dialect: &str, answer: &Answer) {
    let body = answer.json();
    assert!((400..500).contains(&answer.status), "{dialect}: {} {body}", answer.status);
    assert_eq!((&body["success"], body["message"].is_string()), (&json!(false), true), "{dialect}: {body}");
    assert!(body["errors"].is_array() && body["details"]["request_id"].is_string(), "{dialect}: {body}");
    let own = if matches!(dialect, "clisonix" | "usermgmt") { &body["detail"] } else { &body["error"] };
    assert_eq!(own, &body["message"], "{dialect}: {body}");
}

#[test]
fn missing_fields_wrong_types_and_nonsense_are_refused_by_name() {
    let app = TestApp::start("");
    app.register("ana");
    for (dialect, path, good) in calls() {
        let send = |body: &[u8], kind: &str| {
            let answer = http::call_raw(app.public, "POST", path, &[("content-type", kind)], body);
            is_in_form(dialect, &answer);
            answer
        };
        for name in good.as_object().unwrap().keys() {
            for wrong in [json!(7), json!(true), json!([1]), json!({"a": 1})] {
                let mut bad = good.clone();
                bad[name] = wrong;
                let answer = send(bad.to_string().as_bytes(), "application/json");
                let errors = answer.json()["errors"].to_string();
                assert!(answer.status == 400 && errors.contains(name.as_str()), "{path}: {bad} → {errors}");
            }
        }
        for name in ["password", "email", "username", "email_or_username", "token"] {
            if good.get(name).is_some() && !(path.ends_with("v2/register") && name == "username") {
                let mut bad = good.clone();
                bad.as_object_mut().unwrap().remove(name);
                let errors = send(bad.to_string().as_bytes(), "application/json").json()["errors"].to_string();
                assert!(errors.contains(name), "{path} without {name}: {errors}");
            }
        }
        for nonsense in ["", "{", "[]", "\"x\"", "null", "{\"a\":}", "\u{0}", "email=x&password=y"] {
            send(nonsense.as_bytes(), "application/json");
        }
        send(b"\xff\xfe{}", "application/json");
        send(good.to_string().repeat(2).as_bytes(), "text/plain");
        send("a".repeat(300 << 10).as_bytes(), "application/json");
        let deep = format!("{{\"email\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
        send(deep.as_bytes(), "application/json");
    }
}

#[test]
fn unknown_fields_are_ignored_and_set_nothing() {
    let app = TestApp::start("");
    let root = app.admin_token();
    let attack = json!({"role": "admin", "is_admin": true, "credits": {"main": 9999}, "credits_balance": 9999,
        "status": "banned", "email_verified": true, "user_id": 77, "id": 77, "plan": "enterprise", "tier": "enterprise",
        "is_active": false, "verification": "fully_verified"});
    for (number, (path, mut body)) in [
        ("/api/users/register", json!({"email": "a@example.com", "username": "anna", "password": PASSWORD})),
        ("/api/v2/register", json!({"email": "berta@example.com", "password": PASSWORD, "full_name": "Berta"})),
        (
            "/api/v1/auth/register",
            json!({"username": "carla", "name": "Carla", "email": "c@example.com",
            "password": PASSWORD, "confirm_password": PASSWORD}),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        for (name, value) in attack.as_object().unwrap() {
            body[name] = value.clone();
        }
        let made = http::call(app.public, "POST", path, &[], Some(&body));
        assert_eq!(made.status, 200, "{path}: {}", made.text());
        let user = app.admin_call(&root, "GET", &format!("/v1/admin-panel/users/{}", number + 1), None).json();
        let user = &user["user"];
        assert_eq!((&user["role"], &user["status"]), (&json!("user"), &json!("active")), "{path}: {user}");
        assert_eq!((&user["subscription_plan"], &user["is_verified"]), (&json!("free"), &json!(false)), "{path}");
        assert_eq!(user["credits"]["main"], 5, "{path}");
    }
}

#[test]
fn credentials_are_refused_in_form_too() {
    let app = TestApp::start("");
    let user = app.register("ana");
    for (dialect, method, path) in [
        ("clisonix", "GET", "/api/users/me"),
        ("clisonix", "POST", "/api/users/validate-token"),
        ("aiezzy", "GET", "/api/v2/quota/status"),
        ("usermgmt", "GET", "/api/v1/auth/profile"),
        ("usermgmt", "POST", "/api/v1/auth/verify-key"),
        ("usermgmt", "POST", "/api/v1/auth/log-message"),
    ] {
        for headers in [
            &[][..],
            &[("authorization", "Bearer nonsense")],
            &[("authorization", "Basic YTpi")],
            &[("x-api-key", "nonsense")],
            &[("authorization", "Bearer a"), ("x-api-key", "b")],
        ] {
            let answer = http::call(app.public, method, path, headers, None);
            is_in_form(dialect, &answer);
            let two = headers.len() == 2;
            assert_eq!(answer.status, if two { 400 } else { 401 }, "{path} {headers:?}");
        }
    }
    // A session is nobody's to hand to an app, and a key manages no account.
    let body = json!({"email": user.email, "password": PASSWORD});
    let token = http::call(app.public, "POST", "/api/v1/auth/login", &[], Some(&body)).json();
    let token = token["access_token"].as_str().unwrap();
    assert_eq!(app.call("POST", "/api/v1/auth/verify-key", token, None).status, 401);
    assert_eq!(app.call("GET", "/api/v1/auth/profile", &user.key, None).status, 401);
    assert_eq!(app.call("POST", "/api/v1/auth/regenerate-key", &user.key, None).status, 401);
}

#[test]
fn absurd_pages_are_cut_or_refused() {
    let app = TestApp::start("");
    app.register("ana");
    let root = app.admin_token();
    for (path, status) in [
        ("/api/admin/users?page_size=1000000000", 200),
        ("/api/admin/users?page=-1", 200),
        ("/api/admin/users?page=x", 400),
        ("/api/v1/admin/users?limit=1000000000", 200),
        ("/api/v1/admin/users?limit=-1", 400),
        ("/api/v1/admin/users?limit=0&offset=18446744073709551615", 200),
        ("/api/v1/admin/users?offset=x", 400),
        ("/api/admin/usage?days=0", 400),
        ("/api/admin/usage?days=367", 400),
        ("/api/admin/users/1/usage?days=x", 400),
        ("/api/admin/users/99", 404),
        ("/api/v1/admin/users/nobody", 404),
        ("/noteria/export_user_codes.php", 400),
        ("/noteria/export_user_codes.php?user_id=1&format=exe", 400),
        ("/noteria/admin_unique_codes.php?user_id=99", 404),
    ] {
        let answer = app.admin_call(&root, "GET", path, None);
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
    }
    let cut = app.admin_call(&root, "GET", "/api/v1/admin/users?limit=1000000000", None).json();
    assert_eq!(cut["limit"], 200);
    let misspelt = json!({"usrname": "ana"});
    assert_eq!(app.admin_call(&root, "POST", "/api/v1/admin/reset-limits", Some(&misspelt)).status, 400);
}

#[test]
fn unknown_paths_and_wrong_methods_are_refused_in_form_and_say_what_would_be_right() {
    let app = TestApp::start("");
    let root = app.admin_token();
    let public = |method: &str, path: &str| http::call(app.public, method, path, &[], None);
    for (dialect, method, path, right) in [
        ("clisonix", "GET", "/api/users/validate-token", "POST"),
        ("aiezzy", "GET", "/api/v2/logout", "POST"),
        ("usermgmt", "DELETE", "/api/v1/auth/register", "POST"),
        ("usermgmt", "GET", "/api/v1/auth/verify-key", "POST"),
        ("noteria", "GET", "/noteria/login.php", "POST"),
    ] {
        let answer = public(method, path);
        is_in_form(dialect, &answer);
        assert_eq!((answer.status, answer.header("allow")), (405, Some(right)), "{path}");
        assert!(answer.json()["message"].as_str().unwrap().contains(right), "{}", answer.text());
    }
    for (dialect, path) in [
        ("clisonix", "/api/users/me/profile/x"),
        ("aiezzy", "/api/v2/nothing"),
        ("usermgmt", "/api/v1/auth/nothing"),
        ("noteria", "/noteria/login.php/x"),
    ] {
        let answer = public("GET", path);
        is_in_form(dialect, &answer);
        assert_eq!(answer.status, 404, "{path}");
    }
    // An administrator who asks at the wrong port is told which is the right one.
    for path in ["/api/admin/stats", "/api/admin/dashboard", "/api/v1/admin/login", "/v1/admin-panel/login"] {
        let answer = public("POST", path);
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.json()["message"].as_str().unwrap().contains("side port"), "{}", answer.text());
    }
    for (dialect, method, path, status) in [
        ("clisonix", "PATCH", "/api/admin/stats", 405),
        ("usermgmt", "GET", "/api/v1/admin/reset-limits", 405),
        ("noteria", "GET", "/noteria/generate_user_codes.php?user_id=6&count=1000", 405),
        ("usermgmt", "GET", "/api/v1/admin/nothing", 404),
    ] {
        let answer = app.admin_call(&root, method, path, None);
        is_in_form(dialect, &answer);
        assert_eq!(answer.status, status, "{path}");
    }
}
