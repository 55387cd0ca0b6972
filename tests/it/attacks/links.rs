//! Attacks on mailed links.

use serde_json::json;

use crate::support::smtp::MailServer;
use crate::support::{Answer, Options, PASSWORD, TestApp, TestUser, http, wait_until};

const RESET: &str = "Set a new password";
const NEW: &str = "BrandNewPass1";

fn forgot(app: &TestApp, email: &str, headers: &[(&str, &str)]) -> Answer {
    http::call(app.public, "POST", "/v1/users/forgot-password", headers, Some(&json!({"email": email})))
}

fn reset(app: &TestApp, token: &str) -> Answer {
    let body = json!({"token": token, "password": NEW});
    http::call(app.public, "POST", "/v1/users/reset-password", &[], Some(&body))
}

fn login(app: &TestApp, user: &TestUser, password: &str) -> Answer {
    let body = json!({"email": user.email, "password": password});
    http::call(app.public, "POST", "/v1/users/login", &[], Some(&body))
}

/// Attack 17.
#[test]
fn a_link_is_never_built_from_what_the_client_sends() {
    let mail = MailServer::start();
    let app = TestApp::start(&mail.config());
    let user = app.register("alice");
    let mut conn = crate::support::Conn::open(app.public);
    let body = json!({"email": user.email}).to_string();
    conn.send(format!(
        "POST /v1/users/forgot-password HTTP/1.1\r\nhost: evil.example\r\nx-forwarded-host: evil.example\r\nforwarded: \
         host=evil.example\r\nx-forwarded-proto: http\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ));
    assert_eq!(conn.read_answer().status, 200);
    let letter = mail.letter(&user.email, RESET);
    assert!(letter.link().starts_with("https://ai.example.com/v1/users/reset-password?token="), "{}", letter.link());
    assert!(!letter.raw.contains("evil"), "{}", letter.raw);
}

/// Attack 20: reuse, expired, two issued, another user's.
#[test]
fn a_reset_token_is_good_once_for_one_user_and_not_for_long() {
    let mail = MailServer::start();
    let app = TestApp::with(Options {
        toml: mail.config(),
        manual_clock: Some("2026-01-15T12:00:00Z"),
        ..Options::default()
    });
    let (alice, bobby) = (app.register("alice"), app.register("bobby"));
    let session = login(&app, &alice, PASSWORD).json()["session"]["session_token"].as_str().unwrap().to_owned();

    forgot(&app, &alice.email, &[]);
    let first = mail.letter(&alice.email, RESET).token();
    forgot(&app, &alice.email, &[]);
    wait_until("the second letter", || mail.count(&alice.email, RESET) == 2);
    let second = mail.letter(&alice.email, RESET).token();
    assert_eq!(reset(&app, &first).status, 400, "the older of two");
    // Another user's name before the same secret.
    let (_, random) = second.split_once('-').unwrap();
    assert_eq!(reset(&app, &format!("{:x}-{random}", bobby.id)).status, 400);
    // A password that is refused does not burn the link.
    let weak = json!({"token": second, "password": "short"});
    assert_eq!(http::call(app.public, "POST", "/v1/users/reset-password", &[], Some(&weak)).status, 400);
    // However many use it at once, one does.
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let trying: Vec<_> = (0..8).map(|_| scope.spawn(|| reset(&app, &second).status)).collect();
        trying.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    assert!(statuses.iter().all(|status| matches!(status, 200 | 400)), "{statuses:?}");
    assert_eq!(reset(&app, &second).status, 400, "used");
    assert_eq!(login(&app, &alice, PASSWORD).status, 401);
    assert_eq!(login(&app, &alice, NEW).status, 200);
    assert_eq!(app.call("GET", "/v1/users/profile", &session, None).status, 401, "sessions end");
    assert_eq!(login(&app, &bobby, PASSWORD).status, 200);

    forgot(&app, &bobby.email, &[]);
    let late = mail.letter(&bobby.email, RESET).token();
    app.hands.as_ref().unwrap().advance(std::time::Duration::from_secs(3600));
    assert_eq!(reset(&app, &late).status, 400, "expired");
    // A token of one kind is none of another.
    forgot(&app, &bobby.email, &[]);
    wait_until("another letter", || mail.count(&bobby.email, RESET) == 2);
    let token = mail.letter(&bobby.email, RESET).token();
    let verify = http::call(app.public, "GET", &format!("/v1/users/verify-email?token={token}"), &[], None);
    assert_eq!(verify.status, 400);
}

/// Attack 20: the second factor is still asked for.
#[test]
fn a_reset_password_does_not_get_by_the_second_factor() {
    let mail = MailServer::start();
    let app = TestApp::with(Options {
        toml: mail.config(),
        manual_clock: Some("2026-01-15T12:00:00Z"),
        ..Options::default()
    });
    let user = app.register("alice");
    let session = login(&app, &user, PASSWORD).json()["session"]["session_token"].as_str().unwrap().to_owned();
    crate::accounts::mfa::switch_on(&app, &session);
    forgot(&app, &user.email, &[]);
    assert_eq!(reset(&app, &mail.letter(&user.email, RESET).token()).status, 200);
    let refused = login(&app, &user, NEW);
    assert_eq!((refused.status, refused.error_code().as_str()), (401, "MFA_REQUIRED"));
}

/// Attack 5, for forgotten passwords: the answers are the same, and no work is done before them.
#[test]
fn a_forgotten_password_tells_nothing_of_the_address() {
    let mail = MailServer::start();
    let store = crate::support::stores::SteeredStore::new();
    let app = TestApp::with(Options { toml: mail.config(), store: Some(store.clone()), ..Options::default() });
    let user = app.register("alice");
    let shape = |answer: &Answer| {
        let mut body = answer.json();
        body.as_object_mut().unwrap().remove("details");
        (answer.status, body)
    };
    let (known, unknown) = (forgot(&app, &user.email, &[]), forgot(&app, "nobody@example.com", &[]));
    assert_eq!(shape(&known), shape(&unknown));
    // The answer does not wait for what only an address with an account needs.
    let held = store.hold_commits();
    assert_eq!(forgot(&app, &user.email, &[]).status, 200);
    drop(held);
    wait_until("both letters", || mail.count(&user.email, RESET) == 2);
}
