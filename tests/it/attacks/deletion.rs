//! Attack 28: who registers with a deleted user's address inherits nothing, and what is kept of the deleted is sealed.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Answer, Options, PASSWORD, TestApp, http, wait_until};

const DAY: Duration = Duration::from_secs(86_400);
const SECRET: &str = "Secretive-Profile-Text";

fn login(app: &TestApp, email: &str) -> Answer {
    let body = json!({"email": email, "password": PASSWORD});
    http::call(app.public, "POST", "/v1/users/login", &[], Some(&body))
}

fn session(app: &TestApp, email: &str) -> String {
    login(app, email).json()["session"]["session_token"].as_str().unwrap().to_owned()
}

fn admin(app: &TestApp, token: &str, method: &str, path: &str) -> Answer {
    app.admin_call(token, method, &format!("/v1/admin-panel/users/{path}"), None)
}

fn runs(app: &TestApp, task: &str) -> f64 {
    app.metric(&format!("tollgate_task_runs_total{{task=\"{task}\",result=\"ok\"}}"))
}

fn start(dir: &Arc<tempfile::TempDir>, backend: &'static str) -> TestApp {
    TestApp::with(Options {
        manual_clock: Some("2026-01-15T12:10:00Z"),
        dir: Some(dir.clone()),
        backend,
        toml: "[accounts]\nadmin_session_hours = 10000\n".into(),
        ..Options::default()
    })
}

#[test]
fn a_deleted_user_s_address_can_register_again_and_inherits_nothing() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let app = start(&dir, "memory");
    let (user, root) = (app.register("alice"), app.admin_token());
    let token = session(&app, &user.email);
    let profile = json!({"about_me": SECRET, "company": "Secretive Ltd"});
    assert_eq!(app.call("PUT", "/v1/users/profile", &token, Some(&profile)).status, 200);
    for _ in 0..4 {
        assert_eq!(app.chat(&user.key, json!({})).status, 200);
    }
    let gone = app.call("DELETE", "/v1/users/account", &token, Some(&json!({"password": PASSWORD})));
    assert_eq!(gone.status, 200, "{}", gone.text());
    // Dead at once.
    assert_eq!(app.chat(&user.key, json!({})).status, 401);
    assert_eq!(app.call("GET", "/v1/users/profile", &token, None).status, 401);
    assert_eq!(login(&app, &user.email).status, 401);
    // What staff sees has nothing personal in it.
    let seen = admin(&app, &root, "GET", &user.id.to_string()).text();
    assert!(seen.contains("\"deleted\"") && !seen.contains(SECRET) && !seen.contains(&user.email), "{seen}");

    let again = app.register("alice");
    assert_ne!(again.id, user.id);
    assert_eq!(app.balance(&root, again.id, "conversations"), 6.0, "but what its address has used today is used");
    let seen = app.call("GET", "/v1/users/profile", &session(&app, &again.email), None).text();
    assert!(!seen.contains("Secretive"), "{seen}");
    assert_eq!(app.chat(&user.key, json!({})).status, 401);
    // The name is taken now: the old account does not come back over it.
    let refused = admin(&app, &root, "POST", &format!("{}/restore", user.id));
    assert_eq!((refused.status, refused.error_code().as_str()), (409, "CONFLICT"), "{}", refused.text());
    assert_eq!(app.chat(&again.key, json!({})).status, 200);
}

#[test]
fn a_deleted_user_comes_back_in_time_without_his_old_credentials() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let app = start(&dir, "memory");
    let (user, root) = (app.register("alice"), app.admin_token());
    let token = session(&app, &user.email);
    assert_eq!(app.call("PUT", "/v1/users/profile", &token, Some(&json!({"about_me": SECRET}))).status, 200);
    assert_eq!(app.chat(&user.key, json!({})).status, 200);
    assert_eq!(admin(&app, &root, "POST", &format!("{}/restore", user.id)).status, 404, "he is not deleted");
    assert_eq!(admin(&app, &root, "DELETE", &user.id.to_string()).status, 200);
    app.hands.as_ref().unwrap().advance(29 * DAY);
    let restored = admin(&app, &root, "POST", &format!("{}/restore", user.id));
    assert_eq!(restored.status, 200, "{}", restored.text());
    assert_eq!(
        (app.chat(&user.key, json!({})).status, app.call("GET", "/v1/users/profile", &token, None).status),
        (401, 401)
    );
    let token = session(&app, &user.email);
    assert!(app.call("GET", "/v1/users/profile", &token, None).text().contains(SECRET));
    let key = app.call("POST", "/v1/users/api-key/regenerate", &token, None).json();
    assert_eq!(app.chat(key["api_key"].as_str().unwrap(), json!({})).status, 200);
    // Restored is restored: the purge of the deletion does not reach him any more.
    let before = runs(&app, "deleted_users");
    app.hands.as_ref().unwrap().advance(2 * DAY);
    wait_until("the purge has run", || runs(&app, "deleted_users") > before);
    assert_eq!(login(&app, &user.email).status, 200);
}

#[test]
fn after_its_time_nothing_personal_is_left() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let app = start(&dir, "sled");
    let (user, root) = (app.register("alice"), app.admin_token());
    let token = session(&app, &user.email);
    assert_eq!(app.call("PUT", "/v1/users/profile", &token, Some(&json!({"about_me": SECRET}))).status, 200);
    assert_eq!(admin(&app, &root, "DELETE", &user.id.to_string()).status, 200);
    let rows = |app: &TestApp| {
        let store = app.app().core().committer.store();
        let rows = store.range(b"", b"\xff", 100_000, tollgate::store::Order::Ascending).unwrap();
        rows.into_iter().map(|(key, value)| [key, value].concat()).collect::<Vec<_>>()
    };
    let names = |rows: &[Vec<u8>], what: &str| {
        rows.iter().any(|row| row.windows(what.len()).any(|window| window == what.as_bytes()))
    };
    // Kept, and sealed.
    let kept = rows(&app);
    assert!(!names(&kept, SECRET) && !names(&kept, &user.email));
    assert!(kept.iter().any(|row| row.starts_with(b"bk/")));
    app.hands.as_ref().unwrap().advance(31 * DAY);
    wait_until("the purge has run", || runs(&app, "deleted_users") >= 1.0);
    let left = rows(&app);
    assert!(!left.iter().any(|row| row.starts_with(b"bk/") || row.starts_with(b"dp/")));
    assert!(!names(&left, "alice"));
    assert_eq!(admin(&app, &root, "POST", &format!("{}/restore", user.id)).status, 404);
    let seen: Value = admin(&app, &root, "GET", &user.id.to_string()).json();
    assert_eq!(
        (&seen["user"]["status"], &seen["user"]["username"]),
        (&json!("deleted"), &json!(format!("deleted-{}", user.id)))
    );
    let health = http::call(app.admin, "GET", "/health", &[], None).json();
    assert!(
        health["tasks"].as_array().unwrap().iter().any(|t| t["name"] == "deleted_users" && t["failures"] == 0),
        "{health}"
    );
}

#[test]
fn expired_sessions_and_links_are_removed() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let app = start(&dir, "memory");
    let user = app.register("alice");
    for _ in 0..3 {
        session(&app, &user.email);
    }
    let sessions = || {
        let store = app.app().core().committer.store();
        let count = |prefix: &[u8]| {
            let end = tollgate::store::prefix_end(prefix);
            store.range(prefix, &end, 1000, tollgate::store::Order::Ascending).unwrap().len()
        };
        (count(b"s/"), count(b"us/"), count(b"sr/"))
    };
    assert_eq!(sessions(), (3, 3, 3));
    app.hands.as_ref().unwrap().advance(29 * DAY);
    wait_until("a turn", || runs(&app, "sessions") >= 1.0);
    assert_eq!(sessions(), (3, 3, 3), "they can still be refreshed");
    app.hands.as_ref().unwrap().advance(2 * DAY);
    wait_until("they are gone", || sessions() == (0, 0, 0));
}
