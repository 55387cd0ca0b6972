//! Guessing, telling accounts apart, locking out, flooding, and hashes from elsewhere.

use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::common::{at_once, give_hash, login, on_store, opens, token, try_login, try_login_from, user_row};
use crate::support::{Conn, Options, PASSWORD, TestApp, TestUser, http};

const FREE: &str = "[access]\nblock_after_failures = 0\n[accounts]\nhash_queue = 200\n";
const OTHER: &str = "OtherPass456";
const WRONG: &str = "Wrong-Pass-0";

/// Hashes computed so far: argon2id and bcrypt.
fn computed(app: &TestApp) -> (f64, f64) {
    let of = |kind: &str| app.metric(&format!("tollgate_password_hashes_total{{kind=\"{kind}\"}}"));
    (of("argon2id"), of("bcrypt"))
}

/// Attack 4.
#[test]
fn a_hundred_guesses_at_once_cost_five_hashes_and_right_ones_all_pass() {
    let app = TestApp::start(FREE);
    let (alice, bobby) = (app.register("alice"), app.register("bobby"));
    let before = computed(&app).0;
    let statuses = at_once(100, |n| try_login(&app, &alice.email, &format!("Guess-{n}-Xx")).status);
    let count = |wanted: u16| statuses.iter().filter(|status| **status == wanted).count();
    assert_eq!((count(401), count(423)), (5, 95), "{statuses:?}");
    assert!(computed(&app).0 - before <= 5.0, "{} hashes", computed(&app).0 - before);
    let statuses = at_once(50, |_| try_login(&app, &bobby.email, PASSWORD).status);
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
}

/// The first of them replaces the hash; the others must not take that for a changed password.
#[test]
fn right_passwords_at_once_all_pass_while_an_old_hash_is_replaced() {
    let (app, store) = on_store(FREE);
    let alice = app.register("alice");
    for hash in [bcrypt::hash(PASSWORD, 4).unwrap(), format!("sha256$salt${}", hex(&format!("salt{PASSWORD}")))] {
        give_hash(&store, alice.id, Some(&hash));
        let statuses = at_once(20, |_| try_login(&app, &alice.email, PASSWORD).status);
        assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    }
}

/// SHA-256 in hex.
fn hex(text: &str) -> String {
    Sha256::digest(text).iter().map(|b| format!("{b:02x}")).collect()
}

/// Attack 5, the half of login and register: what is told, and what is computed.
#[test]
fn nothing_tells_a_name_that_exists_from_one_that_does_not() {
    let (app, store) = on_store(FREE);
    let users = ["argon", "bcrypt", "salted", "linked", "barred"].map(|name| app.register(name));
    give_hash(&store, users[1].id, Some(&bcrypt::hash(PASSWORD, 4).unwrap()));
    give_hash(&store, users[2].id, Some(&format!("sha256$salt${}", "0".repeat(64))));
    give_hash(&store, users[3].id, None);
    let path = format!("/v1/admin-panel/users/{}/suspend", users[4].id);
    assert_eq!(app.admin_call(&app.admin_token(), "POST", &path, Some(&json!({}))).status, 200);
    // Once, so that the pool knows that there is bcrypt.
    assert_eq!(try_login(&app, &users[1].email, WRONG).status, 401);
    let seen = |name: &str| -> (u16, Value, (f64, f64)) {
        let before = computed(&app);
        let answer = try_login(&app, name, WRONG);
        let after = computed(&app);
        let mut body = answer.json();
        body["details"] = Value::Null;
        (answer.status, body, (after.0 - before.0, after.1 - before.1))
    };
    let unknown = seen("nobody@example.com");
    assert_eq!((unknown.0, unknown.2), (401, (1.0, 1.0)));
    for user in &users {
        assert_eq!(seen(&user.email), unknown, "{}", user.username);
    }
    // Locked ones too: an unknown name locks like a known one, and costs nothing from then on either.
    for _ in 0..4 {
        try_login(&app, "nobody@example.com", WRONG);
        try_login(&app, &users[0].email, WRONG);
    }
    let without_time = |(status, body, cost): (u16, Value, (f64, f64))| (status, body["error_code"].clone(), cost);
    let locked = without_time(seen("nobody@example.com"));
    assert_eq!(locked, (423, json!("LOCKED"), (0.0, 0.0)));
    assert_eq!(without_time(seen(&users[0].email)), locked);
}

#[test]
fn that_there_is_bcrypt_is_known_after_a_start_too() {
    let (mut app, store) = on_store(FREE);
    let alice = app.register("alice");
    give_hash(&store, alice.id, Some(&bcrypt::hash(PASSWORD, 4).unwrap()));
    assert_eq!(try_login(&app, &alice.email, WRONG).status, 401);
    app.stop();
    let again = Options {
        toml: FREE.to_owned(),
        store: Some(store),
        dir: Some(app.dir.clone()),
        manual_clock: Some("2026-01-15T13:00:00Z"),
        ..Options::default()
    };
    let app = TestApp::with(again);
    let before = computed(&app);
    assert_eq!(try_login(&app, "nobody@example.com", WRONG).status, 401);
    let after = computed(&app);
    assert_eq!((after.0 - before.0, after.1 - before.1), (1.0, 1.0));
}

/// Attack 6.
#[test]
fn a_locked_account_stays_shut_but_for_a_device_of_its_owner() {
    let (app, _) = on_store(FREE);
    let (alice, mallory) = (app.register("alice"), app.register("mallory"));
    let device_of = |user: &TestUser| {
        let answer = try_login(&app, &user.email, PASSWORD);
        let cookie = answer.header("set-cookie").unwrap().to_owned();
        let device = answer.header("x-tollgate-device").unwrap().to_owned();
        assert!(cookie.starts_with(&format!("__Host-tollgate-device={device}; Path=/; Max-Age=7776000")), "{cookie}");
        for part in ["; Secure", "; HttpOnly", "; SameSite=Lax"] {
            assert!(cookie.contains(part) && !cookie.contains("Domain"), "{cookie}");
        }
        device
    };
    let (hers, not_hers) = (device_of(&alice), device_of(&mallory));
    for name in [alice.email.as_str(), "nobody@example.com"] {
        for _ in 0..5 {
            assert_eq!(try_login(&app, name, WRONG).status, 401);
        }
        let shut = try_login(&app, name, PASSWORD);
        assert_eq!((shut.status, shut.error_code().as_str()), (423, "LOCKED"), "{name}");
        assert!(shut.header("retry-after").is_some());
    }
    let with = |device: &str, password: &str| try_login_from(&app, &alice.email, password, Some(device)).status;
    let other = if hers.ends_with('A') { "B" } else { "A" };
    let tampered = format!("{}{other}", &hers[..hers.len() - 1]);
    for device in [not_hers.as_str(), &tampered, "td-", ""] {
        assert_eq!(with(device, PASSWORD), 423, "{device}");
    }
    assert_eq!(with(&hers, PASSWORD), 200);
    assert_eq!(try_login(&app, &alice.email, PASSWORD).status, 423, "others stay out");
    // As a cookie, among others.
    let cookies = format!("a=b; __Host-tollgate-device={hers}; c=d");
    let body = json!({"email": alice.email, "password": PASSWORD});
    let answer = http::call(app.public, "POST", "/v1/users/login", &[("cookie", cookies.as_str())], Some(&body));
    assert_eq!(answer.status, 200);
    // Its own tries are counted, and lock it alone.
    for _ in 0..5 {
        assert_eq!(with(&hers, WRONG), 401);
    }
    assert_eq!(with(&hers, PASSWORD), 423);
    assert_eq!(with(answer.header("x-tollgate-device").unwrap(), PASSWORD), 200);
}

#[test]
fn a_device_is_forgotten_with_the_password_and_after_its_time() {
    let (app, _) = on_store(FREE);
    let alice = app.register("alice");
    let lock = || (0..6).map(|_| try_login(&app, &alice.email, WRONG).status).last().unwrap();
    let first = try_login(&app, &alice.email, PASSWORD);
    let old = first.header("x-tollgate-device").unwrap().to_owned();
    let body = json!({"current_password": PASSWORD, "new_password": OTHER});
    assert_eq!(app.call("PUT", "/v1/users/password", token(&first.json()["session"]), Some(&body)).status, 200);
    let new = try_login(&app, &alice.email, OTHER).header("x-tollgate-device").unwrap().to_owned();
    assert_eq!(lock(), 423);
    let with = |device: &str| try_login_from(&app, &alice.email, OTHER, Some(device)).status;
    assert_eq!((with(&old), with(&new)), (423, 200));
    app.hands.as_ref().unwrap().advance(Duration::from_secs(90 * 86_400));
    assert_eq!(lock(), 423);
    assert_eq!(with(&new), 423, "90 days are over");
}

/// Attack 24: what is absurd is refused, and a flood of logins starves nobody else.
#[test]
fn a_flood_of_logins_is_turned_away_and_everything_else_goes_on() {
    let toml = "[accounts]\nmax_failed_logins = 0\nhash_queue = 16\n".to_owned();
    let route = "[[routes]]\npath = \"/v1/*\"\nupstream = \"ai\"\n";
    let app = TestApp::with(Options { toml, route, ..Options::default() });
    let alice = app.register("alice");
    let body = json!({"email": alice.email, "password": "x".repeat(1 << 20)});
    let long = http::call(app.public, "POST", "/v1/users/login", &[], Some(&body)).status;
    assert!(matches!(long, 400 | 413), "{long}");
    assert_eq!(try_login(&app, &alice.email, &"x".repeat(1025)).status, 400);
    let deep = format!("{}{}", "{\"a\":".repeat(10_000), "}".repeat(10_000));
    let mut conn = Conn::open(app.public);
    conn.send(format!(
        "POST /v1/users/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{deep}",
        deep.len()
    ));
    assert_eq!(conn.read_answer().status, 400);
    let done = std::sync::atomic::AtomicUsize::new(0);
    let answers = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let (mut rounds, mut most) = (0, 0.0f64);
            while done.load(std::sync::atomic::Ordering::SeqCst) < 500 {
                assert_eq!(http::call(app.admin, "GET", "/health", &[], None).status, 200);
                assert_eq!(app.chat(&alice.key, json!({})).status, 200);
                most = most.max(app.metric("tollgate_password_hashes_waiting"));
                rounds += 1;
            }
            (rounds, most)
        });
        let answers = at_once(500, |_| {
            let answer = try_login(&app, &alice.email, WRONG);
            done.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            answer
        });
        let (rounds, most) = watch.join().unwrap();
        assert!(rounds > 0 && most <= 18.0, "{rounds} rounds, {most} inside");
        answers
    });
    let turned_away: Vec<_> = answers.iter().filter(|answer| answer.status == 503).collect();
    assert!(!turned_away.is_empty(), "500 fit into 18 places?");
    assert!(turned_away.iter().all(|answer| answer.header("retry-after").is_some()));
    assert!(answers.iter().all(|answer| matches!(answer.status, 401 | 503)));
    assert_eq!(try_login(&app, &alice.email, PASSWORD).status, 200, "and it is over");
}

/// Attack 26.
#[test]
fn a_hash_from_elsewhere_becomes_ours_and_counts_every_byte() {
    let (app, store) = on_store(FREE);
    let users = [app.register("alice"), app.register("bobby")];
    let long = format!("Aa1{}", "x".repeat(69));
    assert_eq!(long.len(), 72);
    let (with_b, with_c) = (format!("{long}b"), format!("{long}c"));
    give_hash(&store, users[0].id, Some(&bcrypt::hash(&long, 4).unwrap()));
    let digest = hex(&format!("salt{PASSWORD}"));
    give_hash(&store, users[1].id, Some(&format!("sha256$salt${digest}")));
    login(&app, &users[1].email, PASSWORD);
    assert!(user_row(&store, users[1].id).password_hash.unwrap().starts_with("$argon2id$"));
    login(&app, &users[1].email, PASSWORD);
    // bcrypt never looked at the 73rd byte, so whichever comes first is the password from then on.
    login(&app, &users[0].email, &with_b);
    assert!(user_row(&store, users[0].id).password_hash.unwrap().starts_with("$argon2id$"));
    assert_eq!(try_login(&app, &users[0].email, &with_c).status, 401);
    assert_eq!(try_login(&app, &users[0].email, &long).status, 401);
    let session = login(&app, &users[0].email, &with_b);
    assert_eq!(opens(&app, token(&session)), 200);
}

#[test]
fn a_common_password_is_warned_of_or_refused() {
    let register = |app: &TestApp, name: &str, password: &str| {
        let body = json!({"username": name, "name": "Test User", "email": format!("{name}@example.com"), "password": password});
        http::call(app.public, "POST", "/v1/users/register", &[], Some(&body))
    };
    let warns = TestApp::start(FREE);
    let answer = register(&warns, "alice", "Password123");
    assert_eq!(answer.status, 200);
    assert!(answer.json()["warnings"][0].as_str().unwrap().starts_with("password: many people"), "{}", answer.text());
    assert!(register(&warns, "bobby", "kV9-rmT2qx").json().get("warnings").is_none());
    let named = register(&warns, "charlotte-b", "xCharlotte-B99").json();
    assert!(named["warnings"][0].as_str().unwrap().contains("username"), "{named}");
    let session = login(&warns, "bobby@example.com", "kV9-rmT2qx");
    let body = json!({"current_password": "kV9-rmT2qx", "new_password": "Welcome1"});
    let changed = warns.call("PUT", "/v1/users/password", token(&session), Some(&body)).json();
    assert!(changed["warnings"][0].as_str().unwrap().starts_with("new_password: many people"), "{changed}");

    let strict = TestApp::start("[accounts.passwords]\ncommon = \"enforce\"\n");
    let refused = register(&strict, "alice", "Password123");
    assert_eq!((refused.status, refused.error_code().as_str()), (400, "BAD_REQUEST"));
    assert!(refused.json()["errors"][0].as_str().unwrap().starts_with("password: many people"), "{}", refused.text());
    assert!(!refused.text().contains("Password123"));
    assert_eq!(register(&strict, "bobby", "xBobby-99").status, 400, "his own name");
    assert_eq!(register(&strict, "alice", "kV9-rmT2qx").status, 200);
    let off = TestApp::start("[accounts.passwords]\ncommon = \"off\"\n");
    assert!(register(&off, "alice", "Password123").json().get("warnings").is_none());
}
