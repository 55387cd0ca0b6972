//! What counts as a guess, and what does not.

use serde_json::json;

use super::{Gate, HERE, THERE, UNKNOWN, WRONG, assert_blocked};
use crate::support::smtp::MailServer;
use crate::support::{PASSWORD, TestApp};

/// Does the same wrong thing three times, and looks whether the address is blocked by it.
#[track_caller]
fn blocks(gate: &Gate, what: &str, wrong: impl Fn(usize)) {
    (0..3).for_each(wrong);
    let listed = gate.panel("GET", "blocks").json();
    assert_eq!(listed["total"], 1, "{what}: {listed}");
    assert_blocked(&gate.login(HERE, &gate.alice.email, PASSWORD));
    let lifted = gate.panel("DELETE", &format!("blocks/{HERE}"));
    assert_eq!((lifted.status, &lifted.json()["entries"][0]["guesses"]), (200, &json!([what])), "{}", lifted.text());
}

#[test]
fn every_kind_of_guess_counts() {
    let gate = Gate::open("");
    let session = gate.session()["session_token"].as_str().unwrap().to_owned();
    let secret = crate::accounts::mfa::switch_on(&gate.app, &session);
    let post = |path: &str, body: serde_json::Value| gate.call(HERE, "POST", path, &[], Some(&body)).status;
    blocks(&gate, "credentials", |_| assert_eq!(gate.with_key(HERE, UNKNOWN).status, 401));
    blocks(&gate, "credentials", |n| {
        assert_eq!(gate.own(HERE, &format!("ts-{n}"), "GET", "profile", None).status, 401)
    });
    blocks(&gate, "credentials", |n| {
        assert_eq!(post("/v1/users/refresh", json!({"refresh_token": format!("tr-{n}")})), 401);
    });
    blocks(&gate, "credentials", |n| {
        assert_eq!(post("/api/users/validate-api-key", json!({"api_key": format!("clx_{n}")})), 401);
    });
    blocks(&gate, "credentials", |n| {
        let bearer = format!("Bearer pe-{n}");
        assert_eq!(gate.call(HERE, "GET", "/api/users/me", &[("authorization", &bearer)], None).status, 401);
    });
    blocks(&gate, "passwords", |_| assert_eq!(gate.login(HERE, &gate.alice.email, WRONG).status, 401));
    blocks(&gate, "passwords", |_| {
        let body = json!({"password": WRONG, "code": crate::accounts::mfa::code(&secret, 1)});
        assert_eq!(gate.own(HERE, &session, "DELETE", "account", Some(&body)).status, 403);
    });
    blocks(&gate, "codes", |_| {
        let body = json!({"email": gate.alice.email, "password": PASSWORD, "code": "000000"});
        assert_eq!(post("/v1/users/login", body), 401);
    });
    blocks(&gate, "codes", |n| assert_eq!(post("/v1/oauth/exchange", json!({"code": format!("x{n}")})), 400));
    blocks(&gate, "mailed links", |n| {
        assert_eq!(post("/v1/users/verify-email", json!({"token": format!("1-{n}")})), 400)
    });
    blocks(&gate, "mailed links", |n| {
        let body = json!({"token": format!("1-{n}"), "password": "OtherPass456"});
        assert_eq!(post("/v1/users/reset-password", body), 400);
    });
    let bob = gate.app.register("bobby");
    blocks(&gate, "codes", |_| {
        let body = json!({"email": bob.email, "password": PASSWORD, "unique_code": "0123456789ABCDEF"});
        assert_eq!(post("/v1/users/login", body), 401);
    });
}

#[test]
fn what_was_good_once_is_no_guess() {
    let gate = Gate::open("[accounts]\nsession_hours = 1\nrefresh_grace = \"0s\"\n");
    let (first, second) = (gate.session(), gate.session());
    let text = |session: &serde_json::Value, name: &str| session[name].as_str().unwrap().to_owned();
    let token = text(&first, "session_token");
    // A key that was replaced, one that was removed, one that expired, and one that was rotated.
    let mut dead = vec![gate.alice.key.clone()];
    assert_eq!(gate.own(THERE, &token, "POST", "api-key/regenerate", None).status, 200);
    let make = |name: &str, more: serde_json::Value| {
        let mut body = json!({"name": name});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let made = gate.own(THERE, &token, "POST", "keys", Some(&body));
        assert_eq!(made.status, 200, "{}", made.text());
        made.json()["api_key"].as_str().unwrap().to_owned()
    };
    let id_of = |name: &str| {
        let keys = gate.own(THERE, &token, "GET", "keys", None).json();
        let found = keys["keys"].as_array().unwrap().iter().find(|key| key["name"] == name).unwrap();
        found["id"].as_u64().unwrap()
    };
    dead.push(make("removed", json!({})));
    assert_eq!(gate.own(THERE, &token, "DELETE", &format!("keys/{}", id_of("removed")), None).status, 200);
    dead.push(make("expires", json!({"expires_at": "2026-01-15T12:30:00Z"})));
    dead.push(make("rotated", json!({})));
    let rotate = format!("keys/{}/rotate", id_of("rotated"));
    assert_eq!(gate.own(THERE, &token, "POST", &rotate, Some(&json!({"grace_seconds": 0}))).status, 200);
    // A session that ended, one that was refreshed, and one that expires.
    let (ended, refreshed) = (text(&second, "session_token"), text(&gate.session(), "session_token"));
    assert_eq!(gate.own(THERE, &ended, "POST", "logout", None).status, 200);
    let renewed = gate.session();
    let old_refresh = text(&renewed, "refresh_token");
    let refresh =
        |from: &str| gate.call(from, "POST", "/v1/users/refresh", &[], Some(&json!({"refresh_token": old_refresh})));
    assert_eq!(refresh(THERE).status, 200);
    gate.advance(3600);
    dead.extend([ended, refreshed, text(&renewed, "session_token"), token]);
    for (nth, secret) in dead.iter().enumerate() {
        for _ in 0..4 {
            let called = gate.with_key(HERE, secret);
            assert_eq!(
                (called.status, called.error_code().as_str()),
                (401, "UNAUTHENTICATED"),
                "{nth}: {}",
                called.text()
            );
            assert_eq!(gate.own(HERE, secret, "GET", "profile", None).status, 401, "{nth}");
        }
    }
    // A refresh token that was used: the second time ends its session, and it stays known.
    for _ in 0..4 {
        assert_eq!(refresh(HERE).status, 401);
    }
    // A staff session, where users are.
    for _ in 0..4 {
        assert_eq!(gate.with_key(HERE, &gate.root).status, 401);
    }
    assert!(gate.blocks().is_empty());
    // From a blocked address nobody can tell them from what never was.
    gate.block(HERE);
    for secret in &dead {
        assert_blocked(&gate.with_key(HERE, secret));
    }
}

#[test]
fn random_tokens_that_were_good_once_are_no_guesses_either() {
    let gate = Gate::open("[accounts]\nrefresh_grace = \"0s\"\n[accounts.tokens]\nsession = \"opaque\"\n");
    let session = gate.session();
    let text = |name: &str| session[name].as_str().unwrap().to_owned();
    let refresh = |from: &str| {
        gate.call(from, "POST", "/v1/users/refresh", &[], Some(&json!({"refresh_token": text("refresh_token")}))).status
    };
    assert!(text("session_token").starts_with("ts-"));
    assert_eq!(refresh(THERE), 200);
    for _ in 0..4 {
        assert_eq!(gate.with_key(HERE, &text("session_token")).status, 401);
        assert_eq!(gate.own(HERE, &text("session_token"), "GET", "profile", None).status, 401);
        assert_eq!(refresh(HERE), 401);
    }
    assert!(gate.blocks().is_empty());
}

#[test]
fn links_that_were_good_once_are_no_guesses() {
    let mail = MailServer::start();
    let toml = format!("{}[access]\nblock_after_failures = 3\n", mail.config());
    let app = TestApp::start(&toml);
    let user = app.register("alice");
    let verify = |token: &str| app.call("POST", "/v1/users/verify-email", "", Some(&json!({"token": token}))).status;
    let token = mail.letter(&user.email, "Please confirm your email address").token();
    assert_eq!(verify(&token), 200);
    for _ in 0..5 {
        assert_eq!(verify(&token), 400);
    }
    let body = json!({"email": user.email, "password": PASSWORD});
    assert_eq!(app.call("POST", "/v1/users/login", "", Some(&body)).status, 200);
    let root = app.admin_token();
    assert_eq!(app.admin_call(&root, "GET", "/v1/admin-panel/blocks", None).json()["total"], 0);
}

#[test]
fn the_same_right_code_twice_is_refused_and_not_counted() {
    let gate = Gate::open("");
    let session = gate.session()["session_token"].as_str().unwrap().to_owned();
    let secret = crate::accounts::mfa::switch_on(&gate.app, &session);
    gate.advance(30);
    let login = |code: &str| {
        let body = json!({"email": gate.alice.email, "password": PASSWORD, "code": code});
        gate.call(HERE, "POST", "/v1/users/login", &[], Some(&body))
    };
    let code = |steps: u64| crate::accounts::mfa::code(&secret, steps);
    assert_eq!(login(&code(1)).status, 200);
    // Neither against the address (three), nor against the factor (five).
    for _ in 0..6 {
        let again = login(&code(1));
        assert_eq!((again.status, again.error_code().as_str()), (401, "WRONG_CODE"));
        assert_eq!(login(&code(0)).status, 401, "the one of the step before, which was used at the set-up");
    }
    assert_eq!(login(&code(2)).status, 200);
    // A recovery code likewise, and the ones that new ones have replaced.
    let body = json!({"password": PASSWORD, "code": code(2)});
    gate.advance(30);
    assert_eq!(gate.own(THERE, &session, "POST", "mfa/recovery-codes", Some(&body)).status, 401, "used");
    gate.advance(30);
    let body = json!({"password": PASSWORD, "code": code(3)});
    let made = gate.own(THERE, &session, "POST", "mfa/recovery-codes", Some(&body)).json();
    let (used, replaced) = (made["recovery_codes"][0].as_str().unwrap(), made["recovery_codes"][1].as_str().unwrap());
    assert_eq!(login(used).status, 200);
    let body = json!({"password": PASSWORD, "code": code(4)});
    assert_eq!(gate.own(THERE, &session, "POST", "mfa/recovery-codes", Some(&body)).status, 200);
    for _ in 0..6 {
        assert_eq!((login(used).status, login(replaced).status), (401, 401));
    }
    assert!(gate.blocks().is_empty());
    // What never was a code of hers counts, against both.
    for _ in 0..3 {
        assert_eq!(login("AAAA-BBBB-CCCC").status, 401);
    }
    assert_blocked(&login(&code(4)));
}

#[test]
fn a_success_does_not_reset_the_count() {
    let gate = Gate::open("");
    for _ in 0..2 {
        assert_eq!(gate.login(HERE, &gate.alice.email, WRONG).status, 401);
        assert_eq!(gate.login(HERE, &gate.alice.email, PASSWORD).status, 200);
        assert_eq!(gate.with_key(HERE, &gate.alice.key).status, 200);
    }
    assert_eq!(gate.login(HERE, &gate.alice.email, WRONG).status, 401);
    assert_blocked(&gate.login(HERE, &gate.alice.email, PASSWORD));
}

#[test]
fn zero_blocks_nobody() {
    let gate = Gate::open("[access]\nblock_after_failures = 0\n");
    for _ in 0..10 {
        assert_eq!(gate.with_key(HERE, UNKNOWN).status, 401);
        assert_eq!(gate.login(HERE, &gate.alice.email, WRONG).status, 401);
    }
    assert_eq!(gate.login(HERE, &gate.alice.email, PASSWORD).status, 200);
    assert!(gate.blocks().is_empty());
}
