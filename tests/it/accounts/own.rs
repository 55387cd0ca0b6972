//! What a user does with his own account over sockets: sessions, refresh tokens, password, email, deletion.

use std::sync::Barrier;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Options, PASSWORD, TestApp};

const OTHER: &str = "OtherPass456";

fn login(app: &TestApp, email: &str, password: &str) -> Value {
    let answer = app.call("POST", "/v1/users/login", "", Some(&json!({"email": email, "password": password})));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["session"].clone()
}

fn token(session: &Value) -> &str {
    session["session_token"].as_str().unwrap()
}

fn refresh(app: &TestApp, token: &Value) -> (u16, Value) {
    let answer = app.call("POST", "/v1/users/refresh", "", Some(&json!({"refresh_token": token})));
    (answer.status, answer.json()["session"].clone())
}

fn opens(app: &TestApp, token: &str) -> u16 {
    app.call("GET", "/v1/users/profile", token, None).status
}

fn manual() -> TestApp {
    let toml = "[access]\nblock_after_failures = 0\n".to_owned();
    TestApp::with(Options { manual_clock: Some("2026-01-15T12:00:00Z"), toml, ..Options::default() })
}

#[test]
fn a_used_refresh_token_answers_the_same_for_a_moment_and_then_ends_the_session() {
    let app = manual();
    let user = app.register("alice");
    let (first, elsewhere) = (login(&app, &user.email, PASSWORD), login(&app, &user.email, PASSWORD));
    let (status, second) = refresh(&app, &first["refresh_token"]);
    assert_eq!(status, 200);
    assert_eq!((opens(&app, token(&first)), opens(&app, token(&second))), (401, 200));
    app.hands.as_ref().unwrap().advance(Duration::from_secs(9));
    let (status, again) = refresh(&app, &first["refresh_token"]);
    assert_eq!((status, &again), (200, &second), "the same successor");
    app.hands.as_ref().unwrap().advance(Duration::from_secs(2));
    assert_eq!(refresh(&app, &first["refresh_token"]).0, 401);
    assert_eq!(opens(&app, token(&second)), 401, "the thief's or the robbed one's: both are out");
    assert_eq!(app.chat(token(&second), json!({})).status, 401);
    assert_eq!(refresh(&app, &second["refresh_token"]).0, 401);
    assert_eq!(opens(&app, token(&elsewhere)), 200, "another session is no part of it");
    let log = app.admin_call(&app.admin_token(), "GET", "/v1/admin-panel/security-logs?action=session.replayed", None);
    assert_eq!(log.json()["total"], 1, "{}", log.text());
}

#[test]
fn a_long_chain_of_refreshes_keeps_its_beginning_in_mind() {
    let app = manual();
    let user = app.register("alice");
    let first = login(&app, &user.email, PASSWORD);
    let mut session = first.clone();
    for _ in 0..25 {
        app.hands.as_ref().unwrap().advance(Duration::from_secs(3600));
        let (status, next) = refresh(&app, &session["refresh_token"]);
        assert_eq!(status, 200);
        assert_eq!(next["refresh_expires_at"], first["refresh_expires_at"], "refreshing prolongs nothing for ever");
        session = next;
    }
    assert_eq!(refresh(&app, &first["refresh_token"]).0, 401);
    assert_eq!(opens(&app, token(&session)), 401);
}

#[test]
fn twenty_refreshes_at_once_have_one_successor() {
    let app = TestApp::start("");
    let user = app.register("alice");
    let session = login(&app, &user.email, PASSWORD);
    let barrier = Barrier::new(20);
    let answers: Vec<(u16, Value)> = std::thread::scope(|scope| {
        let one = || {
            barrier.wait();
            refresh(&app, &session["refresh_token"])
        };
        let threads: Vec<_> = (0..20).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
    assert!(answers.iter().all(|(_, session)| *session == answers[0].1));
    assert_eq!(opens(&app, token(&answers[0].1)), 200);
    let listed = app.call("GET", "/v1/users/sessions", token(&answers[0].1), None).json();
    assert_eq!(listed["sessions"].as_array().unwrap().len(), 1);
}

#[test]
fn sessions_are_listed_and_ended() {
    let app = TestApp::start("");
    let user = app.register("alice");
    let stranger = app.register("bobby");
    let sessions: Vec<Value> = (0..3).map(|_| login(&app, &user.email, PASSWORD)).collect();
    let mine = token(&sessions[0]);
    let listed = app.call("GET", "/v1/users/sessions", mine, None).json()["sessions"].clone();
    let listed = listed.as_array().unwrap();
    assert_eq!(listed.len(), 3);
    assert_eq!(listed.iter().filter(|session| session["current"] == true).count(), 1);
    assert!(listed.iter().all(|session| session["ip_address"] == "127.0.0.1"), "{listed:?}");
    let other = listed.iter().find(|session| session["current"] == false).unwrap()["id"].as_u64().unwrap();
    let path = format!("/v1/users/sessions/{other}");
    let theirs = login(&app, &stranger.email, PASSWORD);
    assert_eq!(app.call("DELETE", &path, token(&theirs), None).status, 404);
    assert_eq!(app.call("DELETE", &path, mine, None).status, 200);
    assert_eq!(app.call("DELETE", &path, mine, None).status, 404);
    let open = |session: &Value| opens(&app, token(session)) == 200;
    assert_eq!(sessions.iter().filter(|session| open(session)).count(), 2);
    let ended = app.call("DELETE", "/v1/users/sessions", mine, None).json();
    assert_eq!(ended["ended"], 1);
    assert_eq!(sessions.iter().map(open).collect::<Vec<_>>(), [true, false, false]);
    assert!(open(&theirs));
    for session in &sessions[1..] {
        assert_eq!(refresh(&app, &session["refresh_token"]).0, 401);
    }
}

#[test]
fn a_new_password_ends_the_other_sessions_and_the_old_one_opens_nothing() {
    let app = TestApp::start("[access]\nblock_after_failures = 0\n");
    let user = app.register("alice");
    let (mine, other) = (login(&app, &user.email, PASSWORD), login(&app, &user.email, PASSWORD));
    let change = |current: &str, new: &str| {
        let body = json!({"current_password": current, "new_password": new});
        app.call("PUT", "/v1/users/password", token(&mine), Some(&body))
    };
    assert_eq!(change("WrongPass123", OTHER).status, 403);
    let weak = change(PASSWORD, "weak");
    assert_eq!(weak.status, 400);
    assert!(weak.json()["errors"][0].as_str().unwrap().starts_with("new_password: needs"), "{}", weak.text());
    assert_eq!(change(PASSWORD, PASSWORD).status, 400);
    assert_eq!(opens(&app, token(&other)), 200, "nothing has happened so far");
    assert_eq!(change(PASSWORD, OTHER).status, 200);
    assert_eq!((opens(&app, token(&mine)), opens(&app, token(&other))), (200, 401));
    assert_eq!(app.chat(token(&other), json!({})).status, 401);
    assert_eq!(app.chat(&user.key, json!({})).status, 200, "keys go on");
    let old = app.call("POST", "/v1/users/login", "", Some(&json!({"email": user.email, "password": PASSWORD})));
    assert_eq!(old.status, 401);
    login(&app, &user.email, OTHER);
}

#[test]
fn asking_for_the_password_again_counts_as_a_login() {
    let app = TestApp::start("[access]\nblock_after_failures = 0\n");
    let user = app.register("alice");
    let session = login(&app, &user.email, PASSWORD);
    for _ in 0..5 {
        let body = json!({"password": "WrongPass123"});
        assert_eq!(app.call("DELETE", "/v1/users/account", token(&session), Some(&body)).status, 403);
    }
    let right = json!({"password": PASSWORD});
    assert_eq!(app.call("DELETE", "/v1/users/account", token(&session), Some(&right)).status, 423);
    assert_eq!(opens(&app, token(&session)), 200, "who is in stays in");
}

#[test]
fn an_email_is_changed_with_the_password_and_taken_ones_are_refused() {
    let app = TestApp::start("");
    let (alice, bobby) = (app.register("alice"), app.register("bobby"));
    let session = login(&app, &alice.email, PASSWORD);
    let change = |email: &str, password: &str| {
        let body = json!({"new_email": email, "password": password, "email_verified": true});
        app.call("PUT", "/v1/users/email", token(&session), Some(&body))
    };
    assert_eq!(change("new@example.org", "WrongPass123").status, 403);
    assert_eq!(change("nonsense", PASSWORD).status, 400);
    assert_eq!(change(&bobby.email.to_uppercase(), PASSWORD).status, 409);
    let changed = change("new@example.org", PASSWORD).json();
    assert_eq!((&changed["email"], &changed["is_verified"]), (&json!("new@example.org"), &json!(false)));
    login(&app, "NEW@example.org", PASSWORD);
    let old = app.call("POST", "/v1/users/login", "", Some(&json!({"email": alice.email, "password": PASSWORD})));
    assert_eq!(old.status, 401);
    let body = json!({"username": "carol", "name": "Carol", "email": alice.email, "password": PASSWORD});
    assert_eq!(app.call("POST", "/v1/users/register", "", Some(&body)).status, 200, "the old address is free");
}

#[test]
fn a_deleted_account_opens_nothing_and_leaves_nothing_to_its_successor() {
    let app = TestApp::start("");
    let user = app.register("alice");
    let session = login(&app, &user.email, PASSWORD);
    app.chat(&user.key, json!({}));
    assert_eq!(
        app.call("DELETE", "/v1/users/account", token(&session), Some(&json!({"password": PASSWORD}))).status,
        200
    );
    assert_eq!(opens(&app, token(&session)), 401);
    assert_eq!(app.chat(&user.key, json!({})).status, 401);
    assert_eq!(refresh(&app, &session["refresh_token"]).0, 401);
    let successor = app.register("alice");
    assert_ne!((successor.id, &successor.key), (user.id, &user.key));
    let fresh = login(&app, &successor.email, PASSWORD);
    let profile = app.call("GET", "/v1/users/profile", token(&fresh), None).json();
    assert_eq!(profile["user"]["meters"]["conversations"]["spent"], 0);
    let keys = app.call("GET", "/v1/users/keys", token(&fresh), None).json();
    assert_eq!(keys["keys"].as_array().unwrap().len(), 1);
    assert_eq!(app.chat(&user.key, json!({})).status, 401);
}
