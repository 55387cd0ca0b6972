//! Second factors over sockets: every code once, wrong ones counted apart, nothing taken away by a token alone.

use std::sync::Barrier;
use std::time::Duration;

use serde_json::{Value, json};
use totp_rs::{Algorithm, Builder, Secret};

use crate::support::{ADMIN, Options, PASSWORD, TestApp, http};

/// A moment at the beginning of a step.
const NOON: &str = "2026-01-15T12:00:00Z";
const NOON_SECONDS: u64 = 1_768_478_400;

fn start(more: &str) -> TestApp {
    let toml = format!("[access]\nblock_after_failures = 0\n{more}");
    TestApp::with(Options { manual_clock: Some(NOON), toml, ..Options::default() })
}

pub fn code(secret: &str, steps_on: u64) -> String {
    code_at(secret, NOON_SECONDS + 30 * steps_on)
}

/// The bytes of a secret that is told in base32.
pub fn seed_bytes(secret: &str) -> Vec<u8> {
    Secret::try_from_base32(secret).unwrap().as_bytes().to_vec()
}

/// The code of a moment, in Unix seconds.
pub fn code_at(secret: &str, seconds: u64) -> String {
    let totp = Builder::new()
        .with_algorithm(Algorithm::SHA1)
        .with_digits(6)
        .with_step_duration(30)
        .with_secret(Secret::try_from_base32(secret).unwrap())
        .with_account_name("x")
        .build()
        .unwrap();
    totp.generate(seconds).to_string()
}

fn login(app: &TestApp, email: &str, more: Value) -> (u16, Value) {
    let mut body = json!({"email": email, "password": PASSWORD});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    let answer = app.call("POST", "/v1/users/login", "", Some(&body));
    (answer.status, answer.json())
}

fn token(session: &Value) -> &str {
    session["session"]["session_token"].as_str().unwrap()
}

/// Gives the owner of a session a second factor, and answers its secret; the clock must stand at noon.
pub fn switch_on(app: &TestApp, session: &str) -> String {
    switch_on_with(app, session, json!({"password": PASSWORD}))
}

/// As [`switch_on`], with another proof than the usual password.
pub fn switch_on_with(app: &TestApp, session: &str, proof: Value) -> String {
    let call = |path: &str, body: Value| app.call("POST", &format!("/v1/users/mfa/{path}"), session, Some(&body));
    let made = call("setup", proof);
    assert_eq!(made.status, 200, "{}", made.text());
    let secret = made.json()["secret"].as_str().unwrap().to_owned();
    assert_eq!(call("enable", json!({"code": code(&secret, 0)})).status, 200);
    secret
}

/// A user with a second factor: his session, its secret and the recovery codes.
fn enrolled(app: &TestApp) -> (String, String, Vec<String>) {
    let user = app.register("alice");
    let (_, session) = login(app, &user.email, json!({}));
    let call =
        |path: &str, body: Value| app.call("POST", &format!("/v1/users/mfa/{path}"), token(&session), Some(&body));
    let made = call("setup", json!({"password": PASSWORD})).json();
    assert!(made["uri"].as_str().unwrap().starts_with("otpauth://totp/") && made["qr"].as_str().unwrap().len() > 200);
    let secret = made["secret"].as_str().unwrap().to_owned();
    assert_eq!(login(app, &user.email, json!({})).0, 200, "nothing is asked for before it is on");
    assert_eq!(call("enable", json!({"code": "000000"})).status, 401);
    let codes = call("enable", json!({"code": code(&secret, 0)})).json()["recovery_codes"].clone();
    let codes: Vec<String> = serde_json::from_value(codes).unwrap();
    assert_eq!(codes.len(), 10);
    assert_eq!(call("setup", json!({"password": PASSWORD})).status, 409);
    (token(&session).to_owned(), secret, codes)
}

#[test]
fn a_login_asks_for_a_code_and_takes_each_once() {
    let app = start("");
    let (_, secret, codes) = enrolled(&app);
    let email = "alice@example.com";
    let (status, body) = login(&app, email, json!({}));
    assert_eq!((status, &body["error_code"]), (401, &json!("MFA_REQUIRED")));
    let wrong = app.call(
        "POST",
        "/v1/users/login",
        "",
        Some(&json!({"email": email, "password": "WrongPass123", "code": code(&secret, 1)})),
    );
    assert_eq!(
        (wrong.status, wrong.json()["error_code"].as_str().unwrap()),
        (401, "UNAUTHENTICATED"),
        "no word of the factor"
    );
    // The step of enabling is used; the next one is taken early, for clocks differ, and once.
    assert_eq!(login(&app, email, json!({"code": code(&secret, 0)})).0, 401);
    assert_eq!(login(&app, email, json!({"code": code(&secret, 1)})).0, 200);
    assert_eq!(login(&app, email, json!({"code": code(&secret, 1)})).0, 401);
    assert_eq!(login(&app, email, json!({"code": code(&secret, 7)})).0, 401, "not yet");
    app.hands.as_ref().unwrap().advance(Duration::from_secs(120));
    assert_eq!(login(&app, email, json!({"code": code(&secret, 4)})).0, 200);
    assert_eq!(login(&app, email, json!({"code": codes[0]})).0, 200);
    assert_eq!(login(&app, email, json!({"code": codes[0]})).0, 401, "once");
    assert_eq!(login(&app, email, json!({"code": codes[1].replace('-', " ")})).0, 200);
}

#[test]
fn of_many_who_bring_the_same_code_one_gets_in() {
    let app = start("[accounts]\nhash_queue = 100\n");
    let (_, secret, codes) = enrolled(&app);
    app.hands.as_ref().unwrap().advance(Duration::from_secs(60));
    for code in [code(&secret, 2), codes[0].clone()] {
        let barrier = Barrier::new(8);
        let statuses: Vec<u16> = std::thread::scope(|scope| {
            let one = || {
                barrier.wait();
                login(&app, "alice@example.com", json!({"code": code})).0
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(one)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
        assert!(statuses.iter().all(|status| matches!(status, 200 | 401 | 423)), "{statuses:?}");
        app.hands.as_ref().unwrap().advance(Duration::from_secs(1800));
    }
}

#[test]
fn wrong_codes_lock_the_factor_and_not_the_password() {
    let app = start("");
    let (session, secret, _) = enrolled(&app);
    let email = "alice@example.com";
    // One was wrong while it was switched on.
    for _ in 0..4 {
        assert_eq!(login(&app, email, json!({"code": "000000"})).0, 401);
    }
    app.hands.as_ref().unwrap().advance(Duration::from_secs(60));
    assert_eq!(login(&app, email, json!({"code": code(&secret, 2)})).0, 423, "the sixth, though it is right");
    assert_eq!(login(&app, email, json!({})).1["error_code"], "MFA_REQUIRED", "the password is not locked");
    let change = |step: u64| {
        let body = json!({"current_password": PASSWORD, "new_password": "OtherPass456", "code": code(&secret, step)});
        app.call("PUT", "/v1/users/password", &session, Some(&body)).status
    };
    assert_eq!(change(2), 423, "the same count, wherever the code is asked for");
    app.hands.as_ref().unwrap().advance(Duration::from_secs(15 * 60));
    assert_eq!(change(32), 200);
    let body = json!({"email": email, "password": "OtherPass456", "code": code(&secret, 33)});
    assert_eq!(app.call("POST", "/v1/users/login", "", Some(&body)).status, 200);
}

#[test]
fn a_token_alone_takes_no_factor_away() {
    let app = start("");
    let (session, secret, codes) = enrolled(&app);
    let call = |path: &str, body: Value| app.call("POST", &format!("/v1/users/mfa/{path}"), &session, Some(&body));
    for path in ["disable", "recovery-codes"] {
        assert_eq!(call(path, json!({})).status, 400);
        assert_eq!(call(path, json!({"password": PASSWORD, "code": "000000"})).status, 401);
        assert_eq!(call(path, json!({"password": "WrongPass123", "code": codes[9]})).status, 403);
    }
    let fresh = call("recovery-codes", json!({"password": PASSWORD, "code": code(&secret, 1)})).json();
    assert_eq!(login(&app, "alice@example.com", json!({"code": codes[0]})).0, 401, "the old ones are gone");
    assert_eq!(login(&app, "alice@example.com", json!({"code": fresh["recovery_codes"][0]})).0, 200);
    let status = app.call("GET", "/v1/users/mfa", &session, None).json();
    assert_eq!((&status["enabled"], &status["recovery_codes_left"]), (&json!(true), &json!(9)));
    assert_eq!(call("disable", json!({"password": PASSWORD, "code": fresh["recovery_codes"][1]})).status, 200);
    assert_eq!(login(&app, "alice@example.com", json!({})).0, 200);
}

/// Whoever has somebody's session and password has not got his authenticator.
#[test]
fn what_only_the_owner_may_do_asks_for_his_second_factor_too() {
    let app = start("[accounts.keys]\nmode = \"vault\"\n");
    let (session, _, codes) = enrolled(&app);
    let acts = [
        ("POST", "/v1/users/api-key/reveal", json!({"password": PASSWORD})),
        ("PUT", "/v1/users/email", json!({"password": PASSWORD, "new_email": "alice@example.org"})),
        ("PUT", "/v1/users/password", json!({"current_password": PASSWORD, "new_password": "OtherPass456"})),
        ("DELETE", "/v1/users/account", json!({"password": "OtherPass456"})),
    ];
    for (at, (method, path, body)) in acts.into_iter().enumerate() {
        let with = |more: Value| {
            let mut body = body.clone();
            body["code"] = more;
            let answer = app.call(method, path, &session, Some(&body));
            (answer.status, answer.json()["error_code"].as_str().unwrap_or_default().to_owned())
        };
        assert_eq!(with(Value::Null), (401, "MFA_REQUIRED".into()), "{path}");
        assert_eq!(with(json!("000000")), (401, "WRONG_CODE".into()), "{path}");
        assert_eq!(with(json!(codes[at])).0, 200, "{path}");
    }
}

#[test]
fn staff_that_must_have_one_can_only_set_one_up() {
    let app = start("[accounts.mfa]\nrequired = \"admins\"\n");
    let token = app.admin_token();
    let side = |method: &str, path: &str, body: Option<Value>| {
        app.admin_call(&token, method, &format!("/v1/admin-panel/{path}"), body.as_ref())
    };
    let refused = side("GET", "users", None);
    assert_eq!((refused.status, refused.json()["error_code"].as_str().unwrap()), (403, "MFA_SETUP_REQUIRED"));
    let made = side("POST", "mfa/setup", Some(json!({"password": PASSWORD}))).json();
    let secret = made["secret"].as_str().unwrap();
    assert_eq!(side("POST", "mfa/enable", Some(json!({"code": code(secret, 0)}))).status, 200);
    assert_eq!(side("GET", "users", None).status, 200);
    let login = |more: Value| {
        let mut body = json!({"username": ADMIN, "password": PASSWORD});
        body["code"] = more;
        http::call(app.admin, "POST", "/v1/admin-panel/login", &[], Some(&body))
    };
    assert_eq!(login(Value::Null).status, 401);
    let opened = login(json!(code(secret, 1)));
    assert_eq!(opened.status, 200);
    // Without it again, a session that was opened with it can only set one up.
    let body = opened.json();
    let token = body["session"]["session_token"].as_str().unwrap();
    let side = |method: &str, path: &str, body: Option<Value>| {
        app.admin_call(token, method, &format!("/v1/admin-panel/{path}"), body.as_ref())
    };
    assert_eq!(side("GET", "users", None).status, 200);
    app.hands.as_ref().unwrap().advance(Duration::from_secs(60));
    let off = json!({"password": PASSWORD, "code": code(secret, 2)});
    assert_eq!(side("POST", "mfa/disable", Some(off)).status, 200);
    assert_eq!(side("GET", "users", None).error_code(), "MFA_SETUP_REQUIRED");
    assert_eq!(side("POST", "mfa/setup", Some(json!({"password": PASSWORD}))).status, 200);
}
