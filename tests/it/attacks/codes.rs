//! One-time login codes: each opens one login, of its owner, together with his password.

use serde_json::{Value, json};

use super::common::{at_once, login, on_store, opens, token};
use crate::support::{Answer, PASSWORD, TestApp, TestUser, http};

const FREE: &str = "[access]\nblock_after_failures = 0\n[accounts]\nhash_queue = 200\n";

fn give(app: &TestApp, root: &str, user: &TestUser, count: u64) -> Vec<String> {
    let path = format!("/v1/admin-panel/users/{}/codes", user.id);
    let made = app.admin_call(root, "POST", &path, Some(&json!({"count": count})));
    assert_eq!(made.status, 200, "{}", made.text());
    let all = app.admin_call(root, "GET", &format!("{path}/export?format=json"), None).json();
    all.as_array().unwrap().iter().map(|item| item["code"].as_str().unwrap().to_owned()).collect()
}

fn stats(app: &TestApp, root: &str, user: &TestUser) -> (u64, u64, u64) {
    let path = format!("/v1/admin-panel/users/{}/codes/stats", user.id);
    let stats = app.admin_call(root, "GET", &path, None).json();
    let of = |name: &str| stats[name].as_u64().unwrap_or_else(|| panic!("{stats}"));
    (of("total"), of("available"), of("used"))
}

fn enter(app: &TestApp, email: &str, password: &str, code: &str) -> Answer {
    let body = json!({"email": email, "password": password, "unique_code": code});
    http::call(app.public, "POST", "/v1/users/login", &[], Some(&body))
}

/// Attack 1.
#[test]
fn of_a_hundred_logins_with_one_code_one_succeeds_and_nobody_locks_the_winner() {
    let app = TestApp::start(FREE);
    let (alice, root) = (app.register("alice"), app.admin_token());
    let codes = give(&app, &root, &alice, 2);
    let answers = at_once(100, |_| enter(&app, &alice.email, PASSWORD, &codes[0]));
    let won: Vec<&Answer> = answers.iter().filter(|answer| answer.status == 200).collect();
    assert_eq!(won.len(), 1, "{:?}", answers.iter().map(|a| a.status).collect::<Vec<_>>());
    assert!(answers.iter().all(|answer| matches!(answer.status, 200 | 401)));
    assert_eq!(stats(&app, &root, &alice), (2, 1, 1));
    let session = won[0].json()["session"].clone();
    let open = app.call("GET", "/v1/users/sessions", token(&session), None).json();
    assert_eq!(open["sessions"].as_array().unwrap().len(), 1, "{open}");
    assert_eq!(enter(&app, &alice.email, PASSWORD, &codes[1]).status, 200, "the losers lock nobody out");
}

/// Attack 2.
#[test]
fn a_code_is_of_its_owner_and_a_wrong_password_burns_none() {
    let (mut app, store) = on_store(FREE);
    let (alice, bobby, root) = (app.register("alice"), app.register("bobby"), app.admin_token());
    let codes = give(&app, &root, &alice, 3);
    let others = give(&app, &root, &bobby, 3);
    assert!(codes.iter().all(|code| !others.contains(code)), "unique over all users");
    let stolen = enter(&app, &bobby.email, PASSWORD, &codes[0]);
    assert_eq!((stolen.status, stolen.json()["error_code"].as_str()), (401, Some("WRONG_CODE")), "{}", stolen.text());
    assert_eq!(enter(&app, &alice.email, "WrongPass999", &codes[0]).status, 401);
    assert_eq!(stats(&app, &root, &alice), (3, 3, 0));
    // In any case and grouping, as people type.
    let typed = format!("{} {}", codes[0][..8].to_lowercase(), &codes[0][8..]);
    let session = enter(&app, &alice.email, PASSWORD, &typed);
    assert_eq!(session.status, 200, "{}", session.text());
    assert_eq!(opens(&app, token(&session.json()["session"])), 200);
    assert_eq!(enter(&app, &alice.email, PASSWORD, &codes[0]).status, 401, "it is spent");
    let path = "/v1/admin-panel/security-logs?action=login.succeeded";
    let record = app.admin_call(&root, "GET", path, None).json()["items"][0].clone();
    assert_eq!(record["details"]["unique_code"], "list 1, code 1", "{record}");
    app.stop();
    let options = crate::support::Options {
        toml: FREE.into(),
        store: Some(store),
        dir: Some(app.dir.clone()),
        manual_clock: Some("2026-01-15T12:00:00Z"),
        ..Default::default()
    };
    let app = TestApp::with(options);
    assert_eq!(enter(&app, &alice.email, PASSWORD, &codes[0]).status, 401, "after a restart too");
    assert_eq!(enter(&app, &alice.email, PASSWORD, &codes[1]).status, 200);
}

#[test]
fn guesses_lock_and_codes_that_were_good_once_do_not() {
    let app = TestApp::start(FREE);
    let (alice, root) = (app.register("alice"), app.admin_token());
    let codes = give(&app, &root, &alice, 2);
    assert_eq!(enter(&app, &alice.email, PASSWORD, &codes[0]).status, 200);
    for _ in 0..8 {
        assert_eq!(enter(&app, &alice.email, PASSWORD, &codes[0]).status, 401);
    }
    let guesses = at_once(50, |n| enter(&app, &alice.email, PASSWORD, &format!("{n:016X}")).status);
    assert_eq!(guesses.iter().filter(|status| **status == 401).count(), 5, "{guesses:?}");
    assert!(guesses.iter().all(|status| matches!(status, 401 | 423)));
    assert_eq!(enter(&app, &alice.email, PASSWORD, &codes[1]).status, 423);
    login(&app, &alice.email, PASSWORD);
}

/// Attack 25, for codes.
#[test]
fn the_store_does_not_reveal_a_code() {
    use tollgate::store::{Order, Store};
    let (app, store) = on_store(FREE);
    let (alice, root) = (app.register("alice"), app.admin_token());
    let codes = give(&app, &root, &alice, 50);
    assert_eq!(enter(&app, &alice.email, PASSWORD, &codes[7]).status, 200);
    let rows = store.range(&[], &[0xff; 4], usize::MAX, Order::Ascending).unwrap();
    let bytes: Vec<u8> = rows.into_iter().flat_map(|(key, value)| [key, value].concat()).collect();
    for code in &codes {
        let raw: Vec<u8> = (0..8).map(|at| u8::from_str_radix(&code[2 * at..2 * at + 2], 16).unwrap()).collect();
        for form in [code.as_bytes(), code.to_lowercase().as_bytes(), &raw] {
            assert!(memchr::memmem::find(&bytes, form).is_none());
        }
    }
    let trail = app.admin_call(&root, "GET", "/v1/admin-panel/security-logs?page_size=200", None).text();
    assert!(codes.iter().all(|code| !trail.contains(code.as_str())));
    let _: Value = serde_json::from_str(&trail).unwrap();
}
