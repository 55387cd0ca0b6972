//! Old refresh tokens, ended sessions, fixation, and sessions of staff.

use std::time::Duration;

use serde_json::{Value, json};
use tollgate::domain::session::Session;
use tollgate::store::{Order, Store, tables};

use super::common::{at_once, login, on_store, opens, refresh, token, try_login_from};
use crate::passing_time::advance;
use crate::support::{ADMIN, PASSWORD, TestApp, http, wait_until};

const FREE: &str = "[access]\nblock_after_failures = 0\n[accounts]\nhash_queue = 200\n";

fn decoded(part: &str) -> Value {
    use base64::Engine;
    serde_json::from_slice(&base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

/// Attack 7: in JWT form, where the successor must come out the same to the byte. More of it in `accounts::own`.
#[test]
fn an_old_refresh_token_has_one_successor_for_ten_seconds_and_then_ends_the_family() {
    for form in ["jwt", "opaque"] {
        let (app, _) = on_store(&format!("{FREE}[accounts.tokens]\nsession = \"{form}\"\n"));
        let alice = app.register("alice");
        let first = login(&app, &alice.email, PASSWORD);
        assert_eq!(token(&first).starts_with("eyJ"), form == "jwt");
        app.hands.as_ref().unwrap().advance(Duration::from_millis(1500));
        let answers = at_once(20, |_| refresh(&app, &first["refresh_token"]));
        assert!(answers.iter().all(|answer| *answer == answers[0] && answer.0 == 200), "{form}: {answers:?}");
        let second = answers[0].1.clone();
        app.hands.as_ref().unwrap().advance(Duration::from_millis(9_900));
        assert_eq!(refresh(&app, &first["refresh_token"]), (200, second.clone()), "{form}");
        let (_, third) = refresh(&app, &second["refresh_token"]);
        assert_eq!(refresh(&app, &first["refresh_token"]).0, 401, "{form}: two generations back");
        assert_eq!(opens(&app, token(&third)), 200, "{form}");
        app.hands.as_ref().unwrap().advance(Duration::from_secs(11));
        assert_eq!(refresh(&app, &second["refresh_token"]).0, 401, "{form}");
        assert_eq!((opens(&app, token(&third)), refresh(&app, &third["refresh_token"]).0), (401, 401), "{form}");
        let path = "/v1/admin-panel/security-logs?action=session.replayed";
        assert!(app.admin_call(&app.admin_token(), "GET", path, None).json()["total"].as_u64().unwrap() > 0);
    }
}

/// Attack 8.
#[test]
fn what_ends_a_session_ends_it_with_the_next_request() {
    let app = TestApp::start(FREE);
    let root = app.admin_token();
    let admin = |id: u64, act: &str| {
        let (method, path) = match act {
            "delete" => ("DELETE", format!("/v1/admin-panel/users/{id}")),
            act => ("POST", format!("/v1/admin-panel/users/{id}/{act}")),
        };
        assert_eq!(app.admin_call(&root, method, &path, Some(&json!({}))).status, 200, "{act}");
    };
    let dead = |session: &Value| {
        assert_eq!(app.chat(token(session), json!({})).status, 401);
        assert_eq!((opens(&app, token(session)), refresh(&app, &session["refresh_token"]).0), (401, 401));
    };
    let alice = app.register("alice");
    let (one, two, three) =
        (login(&app, &alice.email, PASSWORD), login(&app, &alice.email, PASSWORD), login(&app, &alice.email, PASSWORD));
    for session in [&one, &two, &three] {
        assert_eq!(app.chat(token(session), json!({})).status, 200, "in the workers' memory");
    }
    assert_eq!(app.call("POST", "/v1/users/logout", token(&one), None).status, 200);
    dead(&one);
    assert_eq!(app.chat(token(&two), json!({})).status, 200);
    let body = json!({"current_password": PASSWORD, "new_password": "OtherPass456"});
    assert_eq!(app.call("PUT", "/v1/users/password", token(&two), Some(&body)).status, 200);
    dead(&three);
    assert_eq!((opens(&app, token(&two)), app.chat(&alice.key, json!({})).status), (200, 200));
    admin(alice.id, "suspend");
    for credential in [token(&two), &alice.key] {
        assert_eq!(app.chat(credential, json!({})).status, 403, "keys too");
    }
    assert_eq!((opens(&app, token(&two)), refresh(&app, &two["refresh_token"]).0), (403, 403));
    admin(alice.id, "activate");
    assert_eq!(app.chat(&alice.key, json!({})).status, 200);
    admin(alice.id, "delete");
    assert_eq!(app.chat(&alice.key, json!({})).status, 401);
    dead(&two);
}

/// Attack 10: what a client brings to a login is never what it has afterwards.
#[test]
fn nothing_that_was_there_before_a_login_is_its_session() {
    let app = TestApp::start(FREE);
    let (alice, mallory) = (app.register("alice"), app.register("mallory"));
    let planted = login(&app, &mallory.email, PASSWORD);
    let before = try_login_from(&app, &mallory.email, PASSWORD, None).header("x-tollgate-device").unwrap().to_owned();
    let cookie = format!("session={0}; session_token={0}; __Host-tollgate-device={before}", token(&planted));
    let bearer = format!("Bearer {}", token(&planted));
    let headers = [("cookie", cookie.as_str()), ("authorization", &bearer), ("x-tollgate-device", &before)];
    let body = json!({
        "email": alice.email, "password": PASSWORD, "session_token": token(&planted), "session": planted,
        "refresh_token": planted["refresh_token"],
    });
    let answer = http::call(app.public, "POST", "/v1/users/login", &headers, Some(&body));
    assert_eq!(answer.status, 200);
    let hers = answer.json()["session"].clone();
    assert_ne!(hers["session_token"], planted["session_token"]);
    assert_ne!(hers["refresh_token"], planted["refresh_token"]);
    assert_ne!(answer.header("x-tollgate-device").unwrap(), before);
    assert!(!answer.header("set-cookie").unwrap().contains(&before));
    // The planted one is still its maker's, and no cookie is a credential.
    let profile = app.call("GET", "/v1/users/profile", token(&planted), None).json();
    assert_eq!(profile["user"]["username"], "mallory");
    let by_cookie = http::call(app.public, "GET", "/v1/users/profile", &[("cookie", cookie.as_str())], None);
    assert_eq!(by_cookie.status, 401);
}

#[test]
fn a_session_of_the_staff_ends_when_nobody_uses_it() {
    let (app, store) = on_store("[accounts]\nstaff_idle_minutes = 30\n");
    let root = app.admin_token();
    let works = |token: &str| app.admin_call(token, "GET", "/v1/admin-panel/staff", None).status;
    let parts: Vec<&str> = root.split('.').collect();
    assert_eq!(
        (decoded(parts[0])["typ"].clone(), decoded(parts[1])["aud"].clone()),
        (json!("at+jwt"), json!("tollgate-staff"))
    );
    // In use, it goes on past its idle time.
    for _ in 0..4 {
        advance(&app, Duration::from_secs(20 * 60));
        assert_eq!(works(&root), 200);
        // The use is written down behind the answer.
        let now = app.app().core().clock.now();
        let noted = || {
            let rows = store.range(b"s/", b"s0", 100, Order::Ascending).unwrap();
            rows.iter().any(|(_, row)| tables::decode::<Session>(row).unwrap().used_at == Some(now))
        };
        wait_until("it is noted", noted);
    }
    advance(&app, Duration::from_secs(31 * 60));
    assert_eq!(works(&root), 401);
    assert_eq!(works(&app.admin_token()), 200);
}

#[test]
fn a_member_of_the_staff_has_so_many_sessions_and_no_more() {
    let (app, _) = on_store("[accounts]\nstaff_sessions = 3\n");
    let works = |token: &String| app.admin_call(token, "GET", "/v1/admin-panel/staff", None).status;
    let mut tokens = Vec::new();
    for _ in 0..5 {
        tokens.push(app.admin_token());
        app.hands.as_ref().unwrap().advance(Duration::from_secs(1));
    }
    let statuses: Vec<u16> = tokens.iter().map(works).collect();
    assert_eq!(statuses, [401, 401, 200, 200, 200], "{ADMIN}");
    assert_eq!(app.admin_call(&tokens[4], "POST", "/v1/admin-panel/logout", None).status, 200);
    tokens.push(app.admin_token());
    assert_eq!(tokens.iter().map(works).collect::<Vec<_>>(), [401, 401, 200, 200, 401, 200]);
}
