//! `/v1/admin-panel/*` on the side port.

use serde_json::{Value, json};

use super::{assert_time, members};
use crate::support::{ADMIN, Answer, Options, PASSWORD, TestApp, http};

fn panel(app: &TestApp, token: &str, method: &str, path: &str, body: Option<Value>) -> Answer {
    app.admin_call(token, method, &format!("/v1/admin-panel/{path}"), body.as_ref())
}

#[track_caller]
fn ok(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

#[test]
fn login_opens_a_session_of_a_day() {
    let app = TestApp::with(Options { manual_clock: Some("2026-01-15T12:00:00Z"), ..Options::default() });
    let login = json!({"username": ADMIN, "password": PASSWORD});
    let body = ok(&http::call(app.admin, "POST", "/v1/admin-panel/login", &[], Some(&login)));
    assert_eq!(body["success"], true);
    assert_eq!((&body["admin"]["username"], &body["admin"]["role"]), (&json!(ADMIN), &json!("superadmin")));
    assert_eq!(body["session"]["expires_at"], "2026-01-16T12:00:00Z");
    let token = body["session"]["session_token"].as_str().unwrap().to_owned();
    ok(&panel(&app, &token, "GET", "users", None));
    app.hands.as_ref().unwrap().advance(std::time::Duration::from_secs(86_400));
    assert_eq!(panel(&app, &token, "GET", "users", None).status, 401);
}

#[test]
fn nobody_else_gets_in() {
    let app = TestApp::start("");
    let user = app.register("alice");
    let login = json!({"email": user.email, "password": PASSWORD});
    let session = ok(&http::call(app.public, "POST", "/v1/users/login", &[], Some(&login)));
    let session = session["session"]["session_token"].as_str().unwrap();
    for token in ["", "nonsense", user.key.as_str(), session] {
        for (method, path) in [("GET", "users"), ("POST", "users/1/suspend"), ("DELETE", "users/1"), ("GET", "health")]
        {
            let answer = panel(&app, token, method, path, None);
            assert_eq!((answer.status, answer.error_code().as_str()), (401, "UNAUTHENTICATED"), "{method} {path}");
        }
    }
    assert_eq!(app.chat(&user.key, json!({})).status, 200, "and nothing happened to anybody");
}

#[test]
fn an_admin_who_is_no_superadmin_deletes_nobody_and_makes_no_admins() {
    let app = TestApp::start("");
    let user = app.register("alice");
    let root = app.admin_token();
    let new = json!({"username": "second", "name": "Second", "email": "second@example.com", "password": PASSWORD});
    let made = ok(&panel(&app, &root, "POST", "create-admin", Some(new.clone())));
    assert_eq!((&made["admin"]["username"], &made["admin"]["role"]), (&json!("second"), &json!("admin")));
    let login = json!({"username": "second", "password": PASSWORD});
    let second = ok(&http::call(app.admin, "POST", "/v1/admin-panel/login", &[], Some(&login)));
    let second = second["session"]["session_token"].as_str().unwrap();
    ok(&panel(&app, second, "GET", "users", None));
    let path = format!("users/{}", user.id);
    for (method, path, body) in [("DELETE", path.as_str(), None), ("POST", "create-admin", Some(new))] {
        let answer = panel(&app, second, method, path, body);
        assert_eq!((answer.status, answer.error_code().as_str()), (403, "FORBIDDEN"), "{path}");
    }
    ok(&panel(&app, &root, "GET", &path, None));
}

#[test]
fn users_are_listed_in_pages_and_found() {
    let app = TestApp::start("");
    let token = app.admin_token();
    for name in ["alice", "bob", "carol"] {
        app.register(name);
    }
    let page = ok(&panel(&app, &token, "GET", "users?page=1&page_size=2", None));
    assert_eq!(members(&page), ["items", "page", "page_size", "total"]);
    let names = |page: &Value| -> Vec<String> {
        page["items"].as_array().unwrap().iter().map(|user| user["username"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!((names(&page), &page["total"]), (vec!["alice".to_owned(), "bob".to_owned()], &json!(3)));
    let second = ok(&panel(&app, &token, "GET", "users?page=2&page_size=2", None));
    assert_eq!((names(&second), &second["page"]), (vec!["carol".to_owned()], &json!(2)));
    let found = ok(&panel(&app, &token, "GET", "users?search=BOB@", None));
    assert_eq!((names(&found), &found["total"]), (vec!["bob".to_owned()], &json!(1)));
    let huge = ok(&panel(&app, &token, "GET", "users?page_size=100000", None));
    assert_eq!(huge["page_size"], 200);
    let bad = panel(&app, &token, "GET", "users?page=x", None);
    assert_eq!((bad.status, bad.error_code().as_str()), (400, "BAD_REQUEST"));
    assert!(!page.to_string().contains("argon2"), "no hashes");
}

#[test]
fn a_user_is_read_and_updated_as_documented() {
    let app = TestApp::start("");
    let (token, user) = (app.admin_token(), app.register("alice"));
    let path = format!("users/{}", user.id);
    let read = ok(&panel(&app, &token, "GET", &path, None))["user"].clone();
    assert_eq!(
        (&read["credits"], &read["limits"]),
        (&json!({"main": 5, "reset": 5}), &json!({"conversation_limit": 10, "reset": 10}),)
    );
    assert_time(&read["created_at"]);
    let update = json!({
        "subscription_plan": "premium",
        "credits": {"main": 100, "reset": 100},
        "limits": {"conversation_limit": 100, "reset": 100},
    });
    let updated = ok(&panel(&app, &token, "PUT", &path, Some(update)))["user"].clone();
    assert_eq!(updated["credits"], json!({"main": 100, "reset": 100}));
    assert_eq!(updated["limits"], json!({"conversation_limit": 100, "reset": 100}));
    assert_ne!(updated["subscription_plan"], "free");
    assert_eq!(ok(&panel(&app, &token, "GET", &path, None))["user"], updated);
    let answer = app.chat(&user.key, json!({}));
    assert_eq!(answer.header("x-tollgate-remaining-conversations"), Some("99"));
    let sent = app.upstream.last_request().unwrap();
    assert_eq!(sent.header("x-tollgate-plan"), updated["subscription_plan"].as_str().map(str::as_bytes));
}

#[test]
fn an_update_that_does_not_fit_changes_nothing() {
    let app = TestApp::start("");
    let (token, user) = (app.admin_token(), app.register("alice"));
    let path = format!("users/{}", user.id);
    let before = ok(&panel(&app, &token, "GET", &path, None));
    for bad in [
        json!({"credits": {"main": -1}}),
        json!({"credits": {"main": "many"}}),
        json!({"credits": 7}),
        json!({"credits": {"main": 1e18}}),
        json!({"subscription_plan": "no-such-plan", "limits": {"conversation_limit": 7}}),
        json!({"email": "nowhere", "limits": {"conversation_limit": 7}}),
    ] {
        let answer = panel(&app, &token, "PUT", &path, Some(bad.clone()));
        assert_eq!((answer.status, answer.error_code().as_str()), (400, "BAD_REQUEST"), "{bad}");
    }
    assert_eq!(ok(&panel(&app, &token, "GET", &path, None)), before);
    assert_eq!(panel(&app, &token, "PUT", "users/99", Some(json!({}))).status, 404);
}

#[test]
fn suspend_ban_and_activate_take_effect_at_once() {
    let app = TestApp::start("");
    let (token, user) = (app.admin_token(), app.register("alice"));
    for (action, status) in [("suspend", "suspended"), ("ban", "banned")] {
        let path = format!("users/{}/{action}", user.id);
        let body = ok(&panel(&app, &token, "POST", &path, Some(json!({"reason": "because"}))));
        let shown = &body["user"];
        assert_eq!((&shown["status"], &shown["suspended_reason"]), (&json!(status), &json!("because")));
        assert_eq!(shown["is_active"], false);
        assert_eq!(app.chat(&user.key, json!({})).status, 403);
        let body = ok(&panel(&app, &token, "POST", &format!("users/{}/activate", user.id), None));
        assert_eq!((&body["user"]["status"], &body["user"]["suspended_reason"]), (&json!("active"), &Value::Null));
        assert_eq!(app.chat(&user.key, json!({})).status, 200);
    }
    assert_eq!(panel(&app, &token, "POST", "users/99/suspend", None).status, 404);
}

#[test]
fn a_deleted_user_s_names_are_free_again_and_his_key_is_dead() {
    let app = TestApp::start("");
    let (token, user) = (app.admin_token(), app.register("alice"));
    let path = format!("users/{}?reason=Policy%20violation", user.id);
    ok(&panel(&app, &token, "DELETE", &path, None));
    assert_eq!(app.chat(&user.key, json!({})).status, 401);
    let again = app.register("alice");
    assert_ne!(again.id, user.id, "a number is never used twice");
    assert_eq!(app.chat(&again.key, json!({})).header("x-tollgate-remaining-conversations"), Some("9"));
    assert_eq!(panel(&app, &token, "DELETE", &path, None).status, 404);
}

#[test]
fn limits_are_reset_and_statistics_count() {
    let app = TestApp::start("");
    let (token, user) = (app.admin_token(), app.register("alice"));
    assert_eq!(app.chat(&user.key, json!({})).status, 200);
    assert_eq!(app.balance(&token, user.id, "conversations"), 9.0);
    assert_eq!(ok(&panel(&app, &token, "POST", "reset-limits", None))["users"], 1);
    assert_eq!(app.balance(&token, user.id, "conversations"), 10.0);
    let bob = app.register("bob");
    ok(&panel(&app, &token, "POST", &format!("users/{}/suspend", bob.id), None));
    let users = ok(&panel(&app, &token, "GET", "statistics", None))["users"].clone();
    assert_eq!((&users["total"], &users["active"], &users["suspended"]), (&json!(2), &json!(1), &json!(1)));
}

#[test]
fn the_config_in_force_is_shown_without_its_secrets() {
    let secrets = ["sk-upstream-77", "smtp-password-77", "client-secret-77", "hmac-secret-77-hmac-secret-77-hmac"];
    let app = TestApp::with(Options {
        toml: format!(
            "public_base_url = \"https://ai.example.com\"\n[mail]\ntransport = \"smtp\"\nhost = \"127.0.0.1\"\nport = 1\n\
             tls = \"none\"\nusername = \"gateway\"\npassword = \"{}\"\nfrom = \"a@example.com\"\n\
             [oauth.github]\nclient_id = \"our-client\"\nclient_secret = \"{}\"\n\
             [accounts.tokens]\nalgorithm = \"HS256\"\nhs256_key = \"{}\"\n",
            secrets[1], secrets[2], secrets[3]
        ),
        route: "[[routes]]\npath = \"/v1/*\"\nupstream = \"ai\"\n[[upstreams]]\nname = \"other\"\n\
                endpoints = [\"http://127.0.0.1:9\"]\ncredential = { header = \"x-key\", value = \"sk-upstream-77\" }\n",
        ..Options::default()
    });
    let answer = panel(&app, &app.admin_token(), "GET", "config", None);
    let shown = ok(&answer)["config"].clone();
    for secret in secrets {
        assert!(!answer.text().contains(secret), "{secret}");
    }
    // What is no secret is there, and where one is, it says so.
    assert_eq!(
        (&shown["oauth"]["github"]["client_id"], &shown["mail"]["username"]),
        (&json!("our-client"), &json!("gateway"))
    );
    for at in
        ["/oauth/github/client_secret", "/mail/password", "/accounts/tokens/hs256_key", "/upstreams/1/credential/value"]
    {
        assert_eq!(shown.pointer(at), Some(&json!("********")), "{at}: {shown}");
    }
}
