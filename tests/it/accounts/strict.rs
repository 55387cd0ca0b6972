//! Restrictions that must not vanish by a typo, and the paths of older systems, which ignore what they do not know.

use serde_json::{Value, json};

use crate::support::{PASSWORD, TestApp, http};

fn session(app: &TestApp, email: &str) -> String {
    let body = json!({"email": email, "password": PASSWORD});
    let answer = http::call(app.public, "POST", "/v1/users/login", &[], Some(&body));
    answer.json()["session"]["session_token"].as_str().unwrap().to_owned()
}

#[test]
fn a_misspelt_restriction_refuses_the_call_and_names_the_right_one() {
    let app = TestApp::start("");
    let (root, user) = (app.admin_token(), app.register("alice"));
    let token = session(&app, &user.email);
    let keys = || app.call("GET", "/v1/users/keys", &token, None).json();
    let before = keys();
    let key = before["keys"][0]["id"].as_u64().unwrap();
    let (public, side) = (true, false);
    let cases = [
        (public, "POST", "/v1/users/keys".to_owned(), json!({"name": "a", "cidr": ["10.0.0.0/8"]}), "cidr", "cidrs"),
        (public, "POST", "/v1/users/keys".to_owned(), json!({"name": "a", "Scopes": ["chat"]}), "Scopes", "scopes"),
        (public, "POST", "/v1/users/keys".to_owned(), json!({"name": "a", "expires": null}), "expires", "expires_at"),
        (public, "PUT", format!("/v1/users/keys/{key}"), json!({"model": ["gpt-4*"]}), "model", "models"),
        (public, "POST", format!("/v1/users/keys/{key}/rotate"), json!({"grace": 60}), "grace", "grace_seconds"),
        (
            side,
            "POST",
            "/v1/admin-panel/ip-rules".to_owned(),
            json!({"kind": "allow", "network": "10.0.0.0/8", "expire_at": "2036-01-01T00:00:00Z"}),
            "expire_at",
            "expires_at",
        ),
        (
            side,
            "POST",
            "/v1/admin-panel/users/1/codes".to_owned(),
            json!({"count": 1, "expiresAt": "2036-01-01T00:00:00Z"}),
            "expiresAt",
            "expires_at",
        ),
        (
            side,
            "POST",
            "/v1/admin-panel/codes".to_owned(),
            json!({"count": 1, "categories": "x"}),
            "categories",
            "category",
        ),
    ];
    for (is_public, method, path, body, wrong, right) in cases {
        let answer = match is_public {
            true => app.call(method, &path, &token, Some(&body)),
            false => app.admin_call(&root, method, &path, Some(&body)),
        };
        let told = answer.json()["errors"].to_string();
        assert_eq!((answer.status, answer.error_code().as_str()), (400, "BAD_REQUEST"), "{path}: {}", answer.text());
        assert!(told.contains(wrong) && told.contains(&format!("did you mean `{right}`?")), "{path}: {told}");
    }
    for path in ["/v1/admin-panel/users/1/keys/regenerate", "/v1/support/users/1/keys/regenerate"] {
        let answer = app.admin_call(&root, "POST", path, Some(&json!({"cidrs": ["10.0.0.0/8"]})));
        assert_eq!(answer.status, 400, "{path}: a key is made without restrictions here: {}", answer.text());
        assert!(answer.text().contains("cidrs"), "{}", answer.text());
    }
    assert_eq!(keys()["keys"], before["keys"], "nothing was done");
    assert_eq!(app.admin_call(&root, "GET", "/v1/admin-panel/ip-rules", None).json()["total"], 0);
    assert_eq!(app.admin_call(&root, "GET", "/v1/admin-panel/users/1/codes", None).json()["lists"], json!([]));
    // A name is not repeated without an end, and never as control characters.
    let long = json!({"name": "a", "x\u{1b}[2J".to_owned() + &"y".repeat(10_000): 1});
    let answer = app.call("POST", "/v1/users/keys", &token, Some(&long));
    assert!(answer.status == 400 && answer.body.len() < 4096 && !answer.text().contains("u001b"), "{}", answer.text());
}

#[test]
fn what_is_right_is_taken_and_documented_paths_ignore_the_rest() {
    let app = TestApp::start("");
    let (root, user) = (app.admin_token(), app.register("alice"));
    let token = session(&app, &user.email);
    let whole = json!({"name": "laptop", "scopes": ["chat"], "models": ["gpt-4*"], "cidrs": ["127.0.0.0/8"],
        "per_minute": null, "expires_at": null});
    assert_eq!(app.call("POST", "/v1/users/keys", &token, Some(&whole)).status, 200);
    let more = json!({"ip_address": "192.168.1.100", "description": "Office", "nonsense": 1});
    assert_eq!(app.admin_call(&root, "POST", "/v1/admin-panel/ip-whitelist", Some(&more)).status, 200);
    let more = json!({"credits": {"main": 50, "nonsense": 1}, "nonsense": 1});
    assert_eq!(app.admin_call(&root, "PUT", "/v1/admin-panel/users/1", Some(&more)).status, 200);
    assert_eq!(app.admin_call(&root, "PUT", "/v1/support/users/1/credits", Some(&more)).status, 200);
    let more = json!({"nonsense": 1});
    assert_eq!(app.call("POST", "/v1/users/api-key/regenerate", &token, Some(&more)).status, 200);
    let more = json!({"user_id": 1, "count": 1, "nonsense": 1});
    assert_eq!(app.admin_call(&root, "POST", "/noteria/generate_user_codes.php", Some(&more)).status, 200);
}

#[test]
fn a_key_on_an_account_page_is_told_what_the_page_takes() {
    let app = TestApp::start("");
    let user = app.register("alice");
    let made_up = "pe-00000000000000000000000000000000";
    for path in
        ["/v1/users/profile", "/v1/users/keys", "/v1/users/usage", "/api/v1/auth/profile", "/api/users/me/usage"]
    {
        let (real, not) = (app.call("GET", path, &user.key, None), app.call("GET", path, made_up, None));
        assert_eq!((real.status, real.error_code().as_str()), (401, "UNAUTHENTICATED"), "{path}: {}", real.text());
        let told = |value: Value| value["message"].as_str().unwrap().to_owned();
        assert!(told(real.json()).contains("session token"), "{path}: {}", real.text());
        assert_eq!(told(real.json()), told(not.json()), "{path}: whether a key is good is not told");
    }
    assert_eq!(app.call("GET", "/api/users/me", &user.key, None).status, 200, "here a key will do");
}

#[test]
fn usage_answers_a_key_for_free() {
    let app = TestApp::start("");
    let user = app.register("alice");
    assert_eq!(app.chat(&user.key, json!({})).status, 200);
    let token = session(&app, &user.email);
    for credential in [&user.key, &token] {
        let answer = app.call("GET", "/v1/usage", credential, None);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let body = answer.json();
        let meter = &body["meters"]["conversations"];
        assert_eq!((&meter["balance"], &meter["reset"]), (&json!(9), &json!(10)), "{body}");
        assert!(meter["resets_at"].as_str().is_some_and(|text| text.ends_with("T00:00:00Z")), "{body}");
        assert_eq!(
            (&body["today"]["conversations"], &body["subscription_plan"]),
            (&json!(1), &json!("free")),
            "{body}"
        );
    }
    let by_header = http::call(app.public, "GET", "/v1/usage", &[("x-api-key", &user.key)], None);
    assert_eq!(by_header.json()["meters"]["conversations"]["balance"], 9, "still");
    for wrong in ["", "pe-00000000000000000000000000000000"] {
        assert_eq!(app.call("GET", "/v1/usage", wrong, None).status, 401);
    }
    assert_eq!(app.upstream.requests().len(), 1, "the upstream is not asked");
}

#[test]
fn an_imported_key_is_good_at_once() {
    let app = TestApp::start("");
    let root = app.admin_token();
    let key = "clx_abc123abc123abc123";
    assert_eq!(
        (app.chat(key, json!({})).status, app.chat(key, json!({})).status),
        (401, 401),
        "kept in mind as unknown"
    );
    let line = json!({"username": "ana", "email": "ana@example.com", "api_key": key}).to_string();
    let bearer = format!("Bearer {root}");
    let path = "/v1/admin-panel/users/import";
    let done = http::call_raw(app.admin, "POST", path, &[("authorization", &bearer)], line.as_bytes());
    assert_eq!(done.json()["imported"], 1, "{}", done.text());
    assert_eq!(app.chat(key, json!({})).status, 200);
}
