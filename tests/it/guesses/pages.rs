//! Pages of other origins, which can send JSON as text without asking first.

use serde_json::{Value, json};

use super::{Gate, HERE, WRONG};
use crate::support::{ADMIN, Answer, PASSWORD, http};

const EVIL: &str = "https://evil.example";

#[track_caller]
fn assert_foreign(answer: &Answer) {
    let text = answer.text();
    assert!(answer.status == 403 && text.contains("FORBIDDEN") && text.contains("cors.origins"), "{text}");
}

#[test]
fn they_try_no_passwords_and_make_no_accounts() {
    let gate = Gate::open("[cors]\norigins = [\"https://app.example.com\"]\n");
    let email = gate.alice.email.as_str();
    let new = |name: &str| {
        json!({"username": name, "name": "New User", "full_name": "New User", "email": format!("{name}@example.com"),
            "password": PASSWORD, "first_name": "New", "last_name": "User"})
    };
    let doors: Vec<(&str, Value)> = vec![
        ("/v1/users/login", json!({"email": email, "password": WRONG})),
        ("/api/users/login", json!({"email_or_username": email, "password": WRONG})),
        ("/api/v2/login", json!({"username": email, "password": WRONG})),
        ("/api/v1/auth/login", json!({"email": email, "password": WRONG})),
        ("/noteria/login.php", json!({"email": email, "password": WRONG, "unique_code": "0123456789ABCDEF"})),
        ("/v1/users/register", new("one")),
        ("/api/users/register", new("two")),
        ("/api/v2/register", new("three")),
        ("/api/v1/auth/register", new("four")),
        ("/v1/users/reset-password", json!({"token": "1-x", "password": PASSWORD})),
        ("/v1/users/verify-email", json!({"token": "1-x"})),
        ("/v1/users/confirm-email", json!({"token": "1-x"})),
        ("/v1/users/refresh", json!({"refresh_token": "tr-x"})),
        ("/v1/oauth/exchange", json!({"code": "x"})),
    ];
    let before = gate.hashes();
    for from in [
        &[("origin", EVIL)][..],
        &[("origin", "null")],
        &[("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "cross-site"), ("origin", EVIL)],
        &[("sec-fetch-site", "same-site"), ("origin", "https://other.example.com")],
    ] {
        for (path, body) in &doors {
            let headers = [&[("content-type", "text/plain"), ("x-forwarded-for", HERE)], from].concat();
            let text = body.to_string();
            assert_foreign(&http::call_raw(gate.app.public, "POST", path, &headers, text.as_bytes()));
        }
    }
    assert_eq!(gate.hashes(), before, "nothing was hashed");
    assert!(gate.blocks().is_empty(), "nothing was counted");
    let users = gate.panel("GET", "users").json();
    assert_eq!(users["total"], 1, "nobody was made: {users}");
    // In the dialect's own shape.
    let flask = gate.call(HERE, "POST", "/api/v2/login", &[("origin", EVIL)], Some(&doors[2].1));
    assert!(flask.json()["error"].is_string(), "{}", flask.text());
    // Programs, our own pages and allowed ones.
    for from in [
        &[][..],
        &[("origin", "http://gateway.localhost")],
        &[("sec-fetch-site", "same-origin")],
        &[("sec-fetch-site", "none")],
        &[("origin", "https://app.example.com"), ("sec-fetch-site", "cross-site")],
    ] {
        let body = json!({"email": email, "password": PASSWORD});
        let answer = gate.call(HERE, "POST", "/v1/users/login", from, Some(&body));
        assert_eq!(answer.status, 200, "{from:?}: {}", answer.text());
    }
}

#[test]
fn nor_do_they_open_links_that_do_something() {
    let gate = Gate::open("");
    let cross = ("sec-fetch-site", "cross-site");
    for path in
        ["/v1/users/verify-email?token=1-x", "/v1/users/confirm-email?token=1-x", "/api/v2/verify-email?token=1-x"]
    {
        for _ in 0..4 {
            assert_foreign(&gate.call(HERE, "GET", path, &[cross, ("accept", "image/png")], None));
        }
        // Its reader who follows the link in a mail sees the page.
        let page =
            gate.call(HERE, "GET", path, &[cross, ("sec-fetch-mode", "navigate"), ("accept", "text/html")], None);
        assert!(matches!(page.status, 200 | 302), "{path}: {}", page.text());
    }
    assert!(gate.blocks().is_empty());
    // The page's own form says where it comes from, also to browsers that send nothing else.
    let page = gate.call(HERE, "GET", "/v1/users/reset-password?token=1-x", &[("accept", "text/html")], None);
    assert_eq!(page.header("referrer-policy"), Some("same-origin"));
}

#[test]
fn nor_do_they_reach_the_side_port() {
    let gate = Gate::open("");
    let text = json!({"username": ADMIN, "password": WRONG, "email": ADMIN, "email_or_username": ADMIN}).to_string();
    for path in [
        "/v1/admin-panel/login",
        "/v1/support/login",
        "/api/users/login",
        "/api/v2/login",
        "/api/v1/admin/login",
        "/noteria/login.php",
    ] {
        for from in [("origin", EVIL), ("sec-fetch-site", "cross-site")] {
            let headers = [("content-type", "text/plain"), from];
            assert_foreign(&http::call_raw(gate.app.admin, "POST", path, &headers, text.as_bytes()));
        }
    }
    assert!(gate.blocks().is_empty(), "ten wrong passwords, and none counted");
    assert!(!gate.app.admin_token().is_empty());
}
