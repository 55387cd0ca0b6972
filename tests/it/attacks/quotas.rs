//! Attacks on quotas: an account made anew has no more than the one before it had left.

use std::time::Duration;

use serde_json::{Value, json};

use crate::oauth::{person, sign_in};
use crate::support::idp::IdentityProvider;
use crate::support::{Answer, Options, PASSWORD, TestApp, http, wait_until};

const NOON: &str = "2026-01-15T12:00:00Z";
const DAY: Duration = Duration::from_secs(86_400);
const PLANS: &str = "[plans.free.meters.conversations]\ngrant = 3\nperiod = \"daily\"\n\
    [plans.free.meters.trial]\ngrant = 7\nperiod = \"never\"\n";

fn start(more: &str) -> TestApp {
    let toml = format!("{more}[accounts]\nadmin_session_hours = 10000\n{PLANS}");
    TestApp::with(Options { toml, manual_clock: Some(NOON), ..Options::default() })
}

fn register(app: &TestApp, name: &str, email: &str) -> Value {
    let body = json!({"username": name, "name": "Test User", "email": email, "password": PASSWORD});
    let answer = http::call(app.public, "POST", "/v1/users/register", &[], Some(&body));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

fn session(app: &TestApp, email: &str) -> String {
    let body = json!({"email": email, "password": PASSWORD});
    let answer = http::call(app.public, "POST", "/v1/users/login", &[], Some(&body));
    answer.json()["session"]["session_token"].as_str().unwrap().to_owned()
}

fn delete(app: &TestApp, email: &str) {
    let body = json!({"password": PASSWORD});
    let gone = app.call("DELETE", "/v1/users/account", &session(app, email), Some(&body));
    assert_eq!(gone.status, 200, "{}", gone.text());
}

fn left(app: &TestApp, key: &Value) -> (u16, f64) {
    let answer = app.chat(key.as_str().unwrap(), json!({}));
    let left = answer.header("x-tollgate-remaining-conversations").and_then(|text| text.parse().ok());
    (answer.status, left.unwrap_or(-1.0))
}

fn rows(app: &TestApp) -> usize {
    let store = app.app().core().committer.store();
    let end = tollgate::store::prefix_end(b"qa/");
    store.range(b"qa/", &end, 1000, tollgate::store::Order::Ascending).unwrap().len()
}

#[test]
fn deleting_and_registering_again_does_not_refill() {
    let app = start("");
    let root = app.admin_token();
    let first = register(&app, "alice", "alice@example.com");
    assert_eq!((left(&app, &first["api_key"]), left(&app, &first["api_key"])), ((200, 2.0), (200, 1.0)));
    delete(&app, "alice@example.com");
    // Another name, and the address in other spellings.
    let again = register(&app, "alice-2", "ALICE@Example.com");
    assert_eq!(left(&app, &again["api_key"]), (200, 0.0));
    assert_eq!(left(&app, &again["api_key"]).0, 429);
    delete(&app, "alice@example.com");
    let third = register(&app, "alice-3", "ａlice@example.com");
    assert_eq!(left(&app, &third["api_key"]).0, 429, "compatible characters are the same ones");
    let id = third["user_id"].as_u64().unwrap();
    assert_eq!(app.admin_call(&root, "DELETE", &format!("/v1/admin-panel/users/{id}"), None).status, 200);
    let fourth = register(&app, "alice-4", "alice@example.com");
    assert_eq!(left(&app, &fourth["api_key"]).0, 429, "nor does a deletion by staff");
    // Somebody else, and another address of theirs.
    let other = register(&app, "bobby", "alice+tag@example.com");
    assert_eq!(left(&app, &other["api_key"]), (200, 2.0));
    // The period ends, for the new account as for any.
    app.hands.as_ref().unwrap().advance(DAY);
    assert_eq!(left(&app, &fourth["api_key"]), (200, 2.0));
    delete(&app, "alice@example.com");
    let later = register(&app, "alice-5", "alice@example.com");
    assert_eq!(left(&app, &later["api_key"]), (200, 1.0));
}

#[test]
fn what_is_remembered_names_nobody_and_goes_with_the_last_reset() {
    let app = start("");
    let first = register(&app, "alice", "alice@example.com");
    let root = app.admin_token();
    assert_eq!(left(&app, &first["api_key"]), (200, 2.0));
    let fresh = register(&app, "bobby", "bobby@example.com");
    assert_eq!(fresh["success"], true);
    delete(&app, "bobby@example.com");
    assert_eq!(rows(&app), 0, "nothing was used");
    let id = first["user_id"].as_u64().unwrap();
    let take = json!({"meter": "trial", "amount": -5});
    assert_eq!(app.admin_call(&root, "POST", &format!("/v1/admin-panel/users/{id}/credits"), Some(&take)).status, 200);
    delete(&app, "alice@example.com");
    assert_eq!(rows(&app), 1);
    let store = app.app().core().committer.store();
    let row = store.range(b"qa/", b"qa0", 10, tollgate::store::Order::Ascending).unwrap().remove(0);
    let text = [row.0, row.1].concat();
    assert!(!text.windows(5).any(|piece| piece == b"alice") && !text.windows(7).any(|piece| piece == b"example"));
    let runs = || app.metric("tollgate_task_runs_total{task=\"address_quotas\",result=\"ok\"}");
    let hands = app.hands.as_ref().unwrap();
    hands.advance(2 * DAY);
    wait_until("a turn", || runs() >= 1.0);
    assert_eq!(rows(&app), 1, "a grant that is given once counts for longer");
    let again = register(&app, "alice-2", "alice@example.com");
    let balance = |id: u64| app.balance(&root, id, "trial");
    assert_eq!(balance(again["user_id"].as_u64().unwrap()), 2.0, "nor is what staff took given back");
    hands.advance(31 * DAY);
    wait_until("it is forgotten", || rows(&app) == 0);
}

#[test]
fn an_address_that_an_account_left_has_not_more_than_it_had() {
    let app = start("");
    let root = app.admin_token();
    let first = register(&app, "alice", "one@example.com");
    for _ in 0..3 {
        assert_eq!(left(&app, &first["api_key"]).0, 200);
    }
    let change = json!({"new_email": "two@example.com", "password": PASSWORD});
    assert_eq!(app.call("PUT", "/v1/users/email", &session(&app, "one@example.com"), Some(&change)).status, 200);
    let second = register(&app, "bobby", "one@example.com");
    assert_eq!(left(&app, &second["api_key"]).0, 429);
    // Staff moves it.
    let path = format!("/v1/admin-panel/users/{}", second["user_id"]);
    assert_eq!(app.admin_call(&root, "PUT", &path, Some(&json!({"email": "three@example.com"}))).status, 200);
    let third = register(&app, "carol", "one@example.com");
    assert_eq!(left(&app, &third["api_key"]).0, 429);
    // A reset of all users is one for who comes after it, too.
    delete(&app, "one@example.com");
    assert_eq!(app.admin_call(&root, "POST", "/v1/admin-panel/reset-limits", None).status, 200);
    let fourth = register(&app, "daisy", "one@example.com");
    assert_eq!(left(&app, &fourth["api_key"]), (200, 2.0));
}

#[test]
fn a_restored_account_does_not_get_back_what_its_successor_used() {
    let app = start("");
    let root = app.admin_token();
    let first = register(&app, "alice", "alice@example.com");
    assert_eq!(left(&app, &first["api_key"]), (200, 2.0));
    delete(&app, "alice@example.com");
    let second = register(&app, "bobby", "alice@example.com");
    assert_eq!(left(&app, &second["api_key"]), (200, 1.0));
    assert_eq!(left(&app, &second["api_key"]), (200, 0.0));
    delete(&app, "alice@example.com");
    let id = first["user_id"].as_u64().unwrap();
    let restored = app.admin_call(&root, "POST", &format!("/v1/admin-panel/users/{id}/restore"), None);
    assert_eq!(restored.status, 200, "{}", restored.text());
    assert_eq!(app.balance(&root, id, "conversations"), 0.0);
}

#[test]
fn every_way_to_register_goes_by_it() {
    let idp = IdentityProvider::start();
    let app = start(&idp.config());
    idp.at(NOON);
    let root = app.admin_token();
    let spend = |email: &str, name: &str| {
        let made = register(&app, name, email);
        for _ in 0..3 {
            assert_eq!(left(&app, &made["api_key"]).0, 200);
        }
        delete(&app, email);
    };
    let made = |answer: Answer, email: &str| {
        assert_eq!(answer.status, 200, "{}", answer.text());
        let found = app.admin_call(&root, "GET", &format!("/v1/admin-panel/users?search={email}"), None).json();
        let id = found["items"][0]["id"].as_u64().unwrap_or_else(|| panic!("{found}"));
        assert_eq!(app.balance(&root, id, "conversations"), 0.0, "{email}");
    };
    let post = |path: &str, body: Value| http::call(app.public, "POST", path, &[], Some(&body));
    spend("ann@example.com", "ann");
    let body = json!({"email": "ann@example.com", "username": "ann-2", "password": PASSWORD, "full_name": "Ann"});
    made(post("/api/users/register", body), "ann@example.com");
    spend("ben@example.com", "ben");
    made(post("/api/v2/register", json!({"email": "ben@example.com", "password": PASSWORD})), "ben@example.com");
    spend("cid@example.com", "cid");
    let body = json!({"username": "cid-2", "name": "Cid C", "email": "cid@example.com", "password": PASSWORD});
    made(post("/api/v1/auth/register", body), "cid@example.com");
    spend("dan@example.com", "dan");
    made(sign_in(&app, &idp, "company", &person("s-1", "dan@example.com", true)), "dan@example.com");
    spend("eli@example.com", "eli");
    let line = json!({"username": "eli-2", "email": "eli@example.com"}).to_string();
    let bearer = format!("Bearer {root}");
    let import = |line: &str| {
        let path = "/v1/admin-panel/users/import";
        http::call_raw(app.admin, "POST", path, &[("authorization", &bearer)], line.as_bytes())
    };
    made(import(&line), "eli@example.com");
    // What the line itself names is what staff gives.
    spend("fay@example.com", "fay");
    let line =
        json!({"username": "fay-2", "email": "fay@example.com", "limits": {"conversation_limit": 5, "reset": 5}});
    assert_eq!(import(&line.to_string()).json()["imported"], 1);
    let found = app.admin_call(&root, "GET", "/v1/admin-panel/users/fay-2", None).json();
    assert_eq!(found["user"]["limits"]["conversation_limit"], 5, "{found}");
}
