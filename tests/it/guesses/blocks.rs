//! What a blocked address may and may not do, and how administrators see and lift blocks.

use std::sync::Barrier;

use serde_json::{Value, json};

use super::{Gate, HERE, NOON, THERE, UNKNOWN, WRONG, assert_blocked, bare};
use crate::support::{ADMIN, Options, PASSWORD, TestApp, http};

/// Method, path, headers and body.
type Knock<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], Value);

#[test]
fn right_and_wrong_passwords_are_refused_alike_and_cost_no_hash() {
    let gate = Gate::open("");
    gate.block(HERE);
    let before = gate.hashes();
    let right = gate.login(HERE, &gate.alice.email, PASSWORD);
    assert_blocked(&right);
    for (email, password) in [(gate.alice.email.as_str(), WRONG), ("nobody@example.com", WRONG)] {
        assert_eq!(bare(&gate.login(HERE, email, password)), bare(&right), "{email}");
    }
    assert_eq!(gate.hashes(), before, "nothing was computed");
    assert!(gate.app.metric("tollgate_logins_total{result=\"blocked\"}") >= 3.0);
    assert_eq!(gate.login(THERE, &gate.alice.email, PASSWORD).status, 200, "another address");
    gate.advance(900);
    assert_eq!(gate.login(HERE, &gate.alice.email, PASSWORD).status, 200, "it is over");
}

#[test]
fn good_keys_and_sessions_go_on() {
    let gate = Gate::open("");
    let session = gate.session();
    let (token, refresh) = (session["session_token"].as_str().unwrap(), &session["refresh_token"]);
    gate.block(HERE);
    for _ in 0..5 {
        assert_eq!(gate.with_key(HERE, &gate.alice.key).status, 200);
    }
    assert_eq!(gate.with_key(HERE, token).status, 200);
    assert_eq!(gate.own(HERE, token, "GET", "profile", None).status, 200);
    let renewed = gate.call(HERE, "POST", "/v1/users/refresh", &[], Some(&json!({"refresh_token": refresh})));
    assert_eq!(renewed.status, 200, "{}", renewed.text());
    let new = json!({"username": "bobby", "name": "Bob B", "email": "bobby@example.com", "password": PASSWORD});
    assert_eq!(gate.call(HERE, "POST", "/v1/users/register", &[], Some(&new)).status, 200, "nothing is guessed by it");
    assert_eq!(
        gate.call(HERE, "POST", "/v1/chat/completions", &[], Some(&json!({}))).status,
        401,
        "nor by no credential"
    );
}

/// Each way in, in each dialect, with what would be right there.
#[test]
fn no_door_takes_anything_from_a_blocked_address() {
    let gate = Gate::open("");
    let session = gate.session();
    let bearer = format!("Bearer {}", session["session_token"].as_str().unwrap());
    let unknown = format!("Bearer {UNKNOWN}");
    gate.block(HERE);
    let email = gate.alice.email.as_str();
    let (own, bad) = ([("authorization", bearer.as_str())], [("authorization", unknown.as_str())]);
    let none: &[(&str, &str)] = &[];
    let doors: Vec<Knock<'_>> = vec![
        ("POST", "/v1/users/login", none, json!({"username": "alice", "password": PASSWORD})),
        ("POST", "/api/users/login", none, json!({"email_or_username": email, "password": PASSWORD})),
        ("POST", "/api/v2/login", none, json!({"username": email, "password": PASSWORD})),
        ("POST", "/api/v1/auth/login", none, json!({"email": email, "password": PASSWORD})),
        (
            "POST",
            "/noteria/login.php",
            none,
            json!({"email": email, "password": PASSWORD, "unique_code": "0123456789ABCDEF"}),
        ),
        ("POST", "/v1/users/reset-password", none, json!({"token": "1-x", "password": "OtherPass456"})),
        ("POST", "/api/v2/reset-password", none, json!({"token": "1-x", "password": "OtherPass456"})),
        ("POST", "/v1/users/verify-email", none, json!({"token": "1-x"})),
        ("GET", "/v1/users/verify-email?token=1-x", none, Value::Null),
        ("GET", "/api/v2/verify-email?token=1-x", none, Value::Null),
        ("POST", "/v1/users/confirm-email", none, json!({"token": "1-x"})),
        ("POST", "/v1/oauth/exchange", none, json!({"code": "x"})),
        ("POST", "/v1/users/refresh", none, json!({"refresh_token": "tr-x"})),
        ("PUT", "/v1/users/password", &own, json!({"current_password": PASSWORD, "new_password": "OtherPass456"})),
        ("PUT", "/v1/users/email", &own, json!({"new_email": "a@example.org", "password": PASSWORD})),
        ("DELETE", "/v1/users/account", &own, json!({"password": PASSWORD})),
        ("POST", "/v1/users/api-key/reveal", &own, json!({"password": PASSWORD})),
        ("POST", "/v1/users/mfa/setup", &own, json!({"password": PASSWORD})),
        ("POST", "/v1/users/mfa/disable", &own, json!({"password": PASSWORD, "code": "123456"})),
        ("POST", "/v1/users/oauth/link/nobody", &own, json!({"password": PASSWORD})),
        ("GET", "/v1/users/profile", &bad, Value::Null),
        ("POST", "/v1/users/logout", &bad, Value::Null),
        ("GET", "/api/users/me", &bad, Value::Null),
        ("POST", "/api/users/validate-api-key", none, json!({"api_key": UNKNOWN})),
        ("GET", "/api/v2/quota/status", &bad, Value::Null),
        ("GET", "/api/v1/auth/profile", &bad, Value::Null),
        ("POST", "/v1/auth/verify-key", &bad, Value::Null),
        ("POST", "/api/v1/auth/verify-key", &bad, Value::Null),
        ("POST", "/v1/auth/log-message", &bad, json!({})),
        ("GET", "/v1/auth/forward", &bad, Value::Null),
        ("GET", "/v1/models", &bad, Value::Null),
    ];
    for (method, path, headers, body) in &doors {
        let answer = gate.call(HERE, method, path, headers, Some(body).filter(|body| !body.is_null()));
        assert_eq!(answer.status, 403, "{method} {path}: {}", answer.text());
        assert_blocked(&answer);
    }
    let nginx = gate.call(HERE, "GET", "/v1/auth/forward?mode=nginx", &bad, None);
    assert_eq!((nginx.status, nginx.error_code().as_str()), (403, "ADDRESS_BLOCKED"));
    // In each dialect's own shape.
    let fastapi =
        gate.call(HERE, "POST", "/api/v1/auth/login", none, Some(&json!({"email": email, "password": PASSWORD})));
    assert!(fastapi.json()["detail"].as_str().unwrap().contains("blocked"), "{}", fastapi.text());
    let flask = gate.call(HERE, "POST", "/api/v2/login", none, Some(&json!({"username": email, "password": PASSWORD})));
    assert!(flask.json()["error"].as_str().unwrap().contains("blocked"), "{}", flask.text());
    assert_eq!(gate.login(THERE, email, PASSWORD).status, 200, "and nothing happened to her");
}

#[test]
fn a_known_device_of_the_account_gets_in() {
    let gate = Gate::open("");
    let bob = gate.app.register("bobby");
    let device_of = |email: &str| gate.login(THERE, email, PASSWORD).header("x-tollgate-device").unwrap().to_owned();
    let (hers, his) = (device_of(&gate.alice.email), device_of(&bob.email));
    gate.block(HERE);
    let with = |device: &str, password: &str| {
        let body = json!({"email": gate.alice.email, "password": password});
        gate.call(HERE, "POST", "/v1/users/login", &[("x-tollgate-device", device)], Some(&body))
    };
    assert_blocked(&with(&his, PASSWORD));
    assert_eq!(with(&hers, PASSWORD).status, 200);
    assert_eq!(with(&hers, WRONG).status, 401);
    assert_blocked(&gate.login(HERE, &gate.alice.email, PASSWORD));
}

#[test]
fn a_known_device_brings_its_second_factor_and_code_too() {
    let gate = Gate::open("");
    let first = gate.login(THERE, &gate.alice.email, PASSWORD);
    let session = first.json()["session"]["session_token"].as_str().unwrap().to_owned();
    let device = first.header("x-tollgate-device").unwrap().to_owned();
    let secret = crate::accounts::mfa::switch_on(&gate.app, &session);
    gate.block(HERE);
    let body = json!({"email": gate.alice.email, "password": PASSWORD, "code": crate::accounts::mfa::code(&secret, 1)});
    assert_blocked(&gate.call(HERE, "POST", "/v1/users/login", &[], Some(&body)));
    let answer = gate.call(HERE, "POST", "/v1/users/login", &[("x-tollgate-device", &device)], Some(&body));
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[test]
fn of_many_guesses_at_once_no_more_are_told_anything() {
    let gate = Gate::open("[accounts]\nhash_queue = 100\n");
    let barrier = Barrier::new(30);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let (gate, barrier) = (&gate, &barrier);
        let one = |n: usize| {
            scope.spawn(move || {
                barrier.wait();
                gate.login(HERE, &format!("nobody{n}@example.com"), WRONG).status
            })
        };
        let threads: Vec<_> = (0..30).map(one).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let count = |wanted: u16| statuses.iter().filter(|status| **status == wanted).count();
    assert_eq!((count(401), count(403)), (3, 27), "{statuses:?}");
}

/// Wrong passwords for as many accounts as there are lock one at most: the address is blocked before.
#[test]
fn one_address_cannot_lock_one_account_after_the_other() {
    let gate = Gate::with("[accounts]\nmax_failed_logins = 2\n", "");
    let bob = gate.app.register("bobby");
    for (email, status) in
        [(&gate.alice.email, 401), (&gate.alice.email, 401), (&gate.alice.email, 423), (&bob.email, 401)]
    {
        assert_eq!(gate.login(HERE, email, WRONG).status, status, "{email}");
    }
    for email in [&gate.alice.email, &bob.email] {
        assert_blocked(&gate.login(HERE, email, WRONG));
    }
    assert_eq!(gate.login(THERE, &gate.alice.email, PASSWORD).status, 423, "locked before");
    assert_eq!(gate.login(THERE, &bob.email, PASSWORD).status, 200, "not locked by an address that is blocked");
}

#[test]
fn the_ports_count_apart() {
    let toml = "[access]\nblock_after_failures = 3\n[accounts]\nmax_failed_logins = 0\n".to_owned();
    let app = TestApp::with(Options { toml, manual_clock: Some(NOON), ..Options::default() });
    let alice = app.register("alice");
    let root = app.admin_token();
    let enter = |password: &str| {
        let body = json!({"username": ADMIN, "password": password});
        http::call(app.admin, "POST", "/v1/admin-panel/login", &[], Some(&body))
    };
    for _ in 0..4 {
        app.chat(UNKNOWN, json!({}));
    }
    assert_blocked(&app.chat(UNKNOWN, json!({})));
    assert_eq!(enter(PASSWORD).status, 200, "administrators still get in");
    assert_eq!(app.admin_call(&root, "DELETE", "/v1/admin-panel/blocks/127.0.0.1", None).status, 200);
    for (path, body) in [
        ("/v1/admin-panel/login", json!({"username": ADMIN, "password": WRONG})),
        ("/v1/support/login", json!({"username": "nobody", "password": WRONG})),
        ("/api/v2/login", json!({"username": ADMIN, "email": ADMIN, "password": WRONG})),
    ] {
        assert_eq!(http::call(app.admin, "POST", path, &[], Some(&body)).status, 401, "{path}");
    }
    let noteria = json!({"email": ADMIN, "password": PASSWORD});
    for (path, body) in [
        ("/v1/admin-panel/login", json!({"username": ADMIN, "password": PASSWORD})),
        ("/v1/support/login", json!({"username": ADMIN, "password": PASSWORD})),
        ("/api/v2/login", json!({"username": ADMIN, "email": ADMIN, "password": PASSWORD})),
        ("/api/users/login", json!({"email_or_username": ADMIN, "password": PASSWORD})),
        ("/api/v1/admin/login", json!({"username": ADMIN, "password": PASSWORD})),
        ("/noteria/login.php", noteria),
    ] {
        assert_blocked(&http::call(app.admin, "POST", path, &[], Some(&body)));
    }
    assert_blocked(&app.admin_call("ts-nobody", "GET", "/v1/admin-panel/users", None));
    assert_eq!(app.admin_call(&root, "GET", "/v1/admin-panel/users", None).status, 200, "sessions go on");
    assert_eq!(app.chat(&alice.key, json!({})).status, 200);
    let body = json!({"email": alice.email, "password": PASSWORD});
    assert_eq!(app.call("POST", "/v1/users/login", "", Some(&body)).status, 200, "and so do users");
    let listed = app.admin_call(&root, "GET", "/v1/admin-panel/blocks", None).json();
    assert_eq!((&listed["total"], &listed["items"][0]["port"]), (&json!(1), &json!("side")), "{listed}");
}

#[test]
fn tokens_that_nobody_has_count_on_the_side_port() {
    let gate = Gate::open("");
    for _ in 0..3 {
        assert_eq!(gate.app.admin_call("ts-nobody", "GET", "/v1/admin-panel/users", None).status, 401);
    }
    assert_blocked(&gate.app.admin_call("ts-nobody", "GET", "/v1/admin-panel/users", None));
    assert_eq!(gate.blocks(), [("127.0.0.1".to_owned(), "side".to_owned())]);
}

#[test]
fn administrators_see_blocks_and_lift_them() {
    let gate = Gate::open("");
    gate.block(HERE);
    gate.advance(60);
    for _ in 0..2 {
        gate.login("2001:db8::7", &gate.alice.email, WRONG);
    }
    gate.with_key("2001:db8::8", UNKNOWN);
    assert_blocked(&gate.with_key("2001:db8::9", UNKNOWN));
    let listed = gate.panel("GET", "blocks").json();
    assert_eq!(
        listed,
        json!({"page": 1, "page_size": 50, "total": 2, "items": [
            {"address": "2001:db8::/64", "port": "public", "failures": 3, "guesses": ["credentials", "passwords"],
                "until": "2026-01-15T12:16:00Z"},
            {"address": HERE, "port": "public", "failures": 3, "guesses": ["credentials"],
                "until": "2026-01-15T12:15:00Z"},
        ]})
    );
    let second = gate.panel("GET", "blocks?page=2&page_size=1").json();
    assert_eq!((&second["items"][0]["address"], &second["total"]), (&json!(HERE), &json!(2)));
    for (path, status) in [
        (format!("blocks/{HERE}?port=side"), 404),
        (format!("blocks/{THERE}"), 404),
        ("blocks/nonsense".to_owned(), 400),
        (format!("blocks/{HERE}?port=nonsense"), 400),
    ] {
        assert_eq!(gate.panel("DELETE", &path).status, status, "{path}");
    }
    let lifted = gate.panel("DELETE", &format!("blocks/{HERE}?port=public"));
    assert_eq!((lifted.status, &lifted.json()["entries"][0]["address"]), (200, &json!(HERE)), "{}", lifted.text());
    assert_eq!(gate.login(HERE, &gate.alice.email, PASSWORD).status, 200);
    // As the list shows it, and as a program may write it.
    assert_eq!(gate.panel("DELETE", "blocks/2001:db8::%2F64").status, 200);
    assert_eq!(gate.login("2001:db8::1", &gate.alice.email, PASSWORD).status, 200);
    assert!(gate.blocks().is_empty());
    let trail = gate.panel("GET", "security-logs?action=address.unblocked").json();
    let done = trail["items"].as_array().unwrap().iter().filter(|record| record["result"] == "ok");
    let who: Vec<_> = done.map(|record| (&record["actor"]["name"], &record["target"]["name"])).collect();
    assert_eq!(who, [(&json!(ADMIN), &json!("2001:db8::/64")), (&json!(ADMIN), &json!(HERE))], "{trail}");
}
