//! Revoked means revoked: once the admin (or the user) has his 200, no call that begins afterwards reaches the upstream,
//! though 64 connections hammer on both workers.
//!
//! Each client looks at the flag before it sends. The flag is raised after the 200 has been read, so a call sent after the
//! flag was seen began after the 200, and must be refused. Calls that began before may end either way. Once each client
//! has seen the flag, the upstream's count must stand still.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tollgate::clock::UnixMillis;
use tollgate::domain::ids::UserId;
use tollgate::domain::key::ApiKey;
use tollgate::store::{Batch, tables};

use crate::support::http::{self, Conn, request};
use crate::support::stores::SteeredStore;
use crate::support::{Options, PASSWORD, TestApp, TestUser, chat_body, wait_until};

const CLIENTS: usize = 64;
/// Calls each client makes after it has seen the flag.
const CALLS_AFTER: usize = 3;
const BALANCE: u32 = 1_000_000;

/// Rounds of the cheap races; the others do a part of them.
fn rounds() -> usize {
    std::env::var("TOLLGATE_RACE_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(50)
}

struct Race {
    app: TestApp,
    user: TestUser,
    admin: String,
}

impl Race {
    fn open(options: Options) -> Self {
        let toml = format!("[limits]\nin_flight_per_user = 1000\n{}", options.toml);
        let app = TestApp::with(Options { toml, ..options });
        let user = app.register("alice");
        let race = Self { admin: app.admin_token(), app, user };
        race.enrich(race.user.id);
        race
    }

    fn enrich(&self, user: u64) {
        self.panel("PUT", &format!("users/{user}"), Some(json!({"limits": {"conversation_limit": BALANCE}})));
    }

    fn panel(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let answer = self.app.admin_call(&self.admin, method, &format!("/v1/admin-panel/{path}"), body.as_ref());
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    fn login(&self) -> String {
        let login = json!({"email": self.user.email, "password": PASSWORD});
        let answer = http::call(self.app.public, "POST", "/v1/users/login", &[], Some(&login)).json();
        answer["session"]["session_token"].as_str().unwrap().to_owned()
    }

    /// One round: everybody hammers with `credential`, `revoke` happens in the midst of it, and from its end on every
    /// call is refused with `status`.
    fn round<T>(&self, credential: &str, status: u16, revoke: impl FnOnce() -> T) -> T {
        let revoked = AtomicBool::new(false);
        let (served, seen) = (AtomicU64::new(0), AtomicU64::new(0));
        let begun = self.app.upstream.stats().total;
        let mut count_at_the_flag = 0;
        let outcome = std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                let (revoked, served, seen) = (&revoked, &served, &seen);
                scope.spawn(move || self.hammer(credential, status, revoked, served, seen));
            }
            wait_until("the hammering has begun", || served.load(Ordering::Relaxed) >= CLIENTS as u64);
            let outcome = revoke();
            revoked.store(true, Ordering::SeqCst);
            // A client that has seen the flag has no earlier call left under way.
            wait_until("all have seen it", || seen.load(Ordering::SeqCst) == CLIENTS as u64);
            count_at_the_flag = self.app.upstream.stats().total;
            outcome
        });
        let total = self.app.upstream.stats().total;
        assert_eq!(total, count_at_the_flag, "calls reached the upstream after the revocation");
        assert_eq!(total - begun, served.into_inner(), "what reached the upstream is what was served");
        outcome
    }

    fn hammer(&self, credential: &str, status: u16, revoked: &AtomicBool, served: &AtomicU64, seen: &AtomicU64) {
        let mut conn = Conn::open(self.app.public);
        let bearer = format!("Bearer {credential}");
        let body = chat_body(json!({}));
        let call = request("POST", "/v1/chat/completions", &[("authorization", &bearer)], Some(&body));
        let mut after = 0;
        while after < CALLS_AFTER {
            let must_be_refused = revoked.load(Ordering::SeqCst);
            if must_be_refused {
                if after == 0 {
                    seen.fetch_add(1, Ordering::SeqCst);
                }
                after += 1;
            }
            conn.send(&call);
            let answer = conn.read_answer();
            if answer.status == 200 {
                assert!(!must_be_refused, "a call that began after the revocation was served");
                served.fetch_add(1, Ordering::SeqCst);
            } else {
                assert_eq!(answer.status, status, "{}", answer.text());
            }
        }
    }
}

#[test]
fn a_user_suspended() {
    let race = Race::open(Options::default());
    let path = format!("users/{}", race.user.id);
    for _ in 0..rounds() {
        race.round(&race.user.key, 403, || race.panel("POST", &format!("{path}/suspend"), None));
        race.panel("POST", &format!("{path}/activate"), None);
    }
}

#[test]
fn a_key_regenerated_by_an_admin() {
    let race = Race::open(Options::default());
    let path = format!("users/{}/keys/regenerate", race.user.id);
    let mut key = race.user.key.clone();
    for _ in 0..rounds() {
        let answer = race.round(&key, 401, || race.panel("POST", &path, None));
        key = answer["api_key"].as_str().unwrap().to_owned();
    }
}

/// Nothing is kept in memory, so that each call reads the store while the key goes.
#[test]
fn a_key_regenerated_while_every_call_looks_it_up() {
    let toml = "max_cached_credentials = 0\n".into();
    let race = Race::open(Options { toml, ..Options::default() });
    let path = format!("users/{}/keys/regenerate", race.user.id);
    let mut key = race.user.key.clone();
    for _ in 0..rounds().div_ceil(2) {
        let answer = race.round(&key, 401, || race.panel("POST", &path, None));
        key = answer["api_key"].as_str().unwrap().to_owned();
    }
}

/// The race that a thousand rounds may miss: a call has read the key's row, and before it goes on, the key is revoked.
/// That call began before; but what it has read must not serve another one.
#[test]
fn a_lookup_that_is_under_way_while_the_key_goes_leaves_nothing_behind() {
    // A lookup reads the row twice. Whichever of the two is overtaken, the outcome is the same.
    for pass in [0, 1] {
        let store = SteeredStore::new();
        let race = Race::open(Options { store: Some(store.clone()), ..Options::default() });
        let key = &race.user.key;
        let row = tables::api_key(&race.app.app().core().pepper.mac(key.as_bytes()));
        let held = store.hold_read(row, pass);
        let bearer = format!("Bearer {key}");
        let mut early = Conn::open(race.app.public);
        let call = request("POST", "/v1/chat/completions", &[("authorization", &bearer)], Some(&chat_body(json!({}))));
        early.send(&call);
        wait_until("the lookup has read the row", || store.has_read_waiting());
        race.panel("POST", &format!("users/{}/suspend", race.user.id), None);
        race.panel("POST", &format!("users/{}/activate", race.user.id), None);
        race.panel("POST", &format!("users/{}/keys/regenerate", race.user.id), None);
        drop(held);
        let status = early.read_answer().status;
        assert!(matches!(status, 200 | 401), "{status}");
        for _ in 0..3 {
            assert_eq!(race.app.chat(key, json!({})).status, 401, "the {pass}. reading was overtaken");
        }
    }
}

#[test]
fn a_key_regenerated_by_its_owner() {
    let race = Race::open(Options::default());
    let session = format!("Bearer {}", race.login());
    let mut key = race.user.key.clone();
    for _ in 0..rounds().div_ceil(2) {
        let headers = [("authorization", session.as_str())];
        let regenerate = || http::call(race.app.public, "POST", "/v1/users/api-key/regenerate", &headers, None);
        let answer = race.round(&key, 401, regenerate);
        assert_eq!(answer.status, 200, "{}", answer.text());
        key = answer.json()["api_key"].as_str().unwrap().to_owned();
    }
}

#[test]
fn a_session_logged_out() {
    let race = Race::open(Options::default());
    for _ in 0..rounds().div_ceil(5) {
        let session = race.login();
        let bearer = format!("Bearer {session}");
        let headers = [("authorization", bearer.as_str())];
        let logout = || http::call(race.app.public, "POST", "/v1/users/logout", &headers, None);
        let answer = race.round(&session, 401, logout);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(race.app.chat(&race.user.key, json!({})).status, 200, "the key is another credential");
    }
}

#[test]
fn a_user_deleted() {
    let race = Race::open(Options::default());
    for n in 0..rounds().div_ceil(5) {
        let victim = race.app.register(&format!("victim-{n}"));
        race.enrich(victim.id);
        race.round(&victim.key, 401, || race.panel("DELETE", &format!("users/{}?reason=test", victim.id), None));
    }
}

#[test]
fn an_address_denied() {
    let race = Race::open(Options::default());
    let deny = json!({"kind": "deny", "network": "127.0.0.0/8"});
    for _ in 0..rounds().div_ceil(2) {
        let rule = race.round(&race.user.key, 403, || race.panel("POST", "ip-rules", Some(deny.clone())));
        race.panel("DELETE", &format!("ip-rules/{}", rule["entry"]["id"]), None);
    }
}

#[test]
fn a_key_that_expires() {
    let race = Race::open(Options { manual_clock: Some("2026-01-15T12:00:00Z"), ..Options::default() });
    let core = race.app.app().core();
    let clock = race.app.hands.as_ref().unwrap();
    for n in 0..rounds().div_ceil(5) {
        let victim = race.app.register(&format!("victim-{n}"));
        race.enrich(victim.id);
        // There is no way yet to ask for a key that expires.
        let at = tables::api_key(&core.pepper.mac(victim.key.as_bytes()));
        let mut key: ApiKey = tables::read(core.committer.store(), &at).unwrap().unwrap();
        key.expires_at = Some(UnixMillis(core.clock.now().0 + 1000));
        let mut batch = Batch::default();
        batch.put(at, tables::encode(&key).unwrap());
        core.committer.commit_blocking(batch).unwrap();
        core.users.forget_credentials(UserId(victim.id));
        race.round(&victim.key, 401, || clock.advance(Duration::from_millis(1000)));
    }
}

/// Where the decision needs the body, the call has been let in before the body is there: the last word is at its end.
#[test]
fn who_is_suspended_while_his_body_comes_does_not_go() {
    let route =
        "[[routes]]\npath = \"/v1/*\"\nupstream = \"ai\"\nmodels = [\"gpt-4o\"]\ncost = { conversations = 1 }\n";
    let race = Race::open(Options { route, ..Options::default() });
    let body = chat_body(json!({})).to_string();
    let mut slow = Conn::open(race.app.public);
    slow.send(format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{}",
        race.user.key,
        body.len(),
        &body[..10]
    ));
    wait_until("the call is under way", || race.app.metric("tollgate_in_flight") == 1.0);
    race.panel("POST", &format!("users/{}/suspend", race.user.id), Some(json!({})));
    slow.send(&body[10..]);
    assert_eq!(slow.read_answer().status, 403);
    assert_eq!(race.app.upstream.stats().total, 0);
}
