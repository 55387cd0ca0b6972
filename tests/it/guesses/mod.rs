//! Guesses over sockets: what counts as one, what a blocked address may still do, who may lift a block, and what pages of
//! other origins and refused calls can do to others.

mod blocks;
mod counting;
mod pages;
mod refused;

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Answer, Options, PASSWORD, TestApp, TestUser, http};

const NOON: &str = "2026-01-15T12:00:00Z";
/// Addresses of strangers, which the tests' proxy reports.
const HERE: &str = "203.0.113.7";
const THERE: &str = "198.51.100.9";
const UNKNOWN: &str = "pe-00000000000000000000000000000000";
const WRONG: &str = "Wrong-Pass-0";

/// A gateway that believes this machine's `X-Forwarded-For`, blocks after three wrong attempts, and locks no account.
struct Gate {
    app: TestApp,
    alice: TestUser,
    root: String,
}

impl Gate {
    fn open(more: &str) -> Self {
        Self::with("[accounts]\nmax_failed_logins = 0\n", more)
    }

    fn with(accounts: &str, more: &str) -> Self {
        let access = "[access]\ntrusted_proxies = [\"127.0.0.1/32\"]\nblock_after_failures = 3\n";
        // Of two tables of one name, the later one's keys count.
        let toml = merged(&[access, accounts, more]);
        let app = TestApp::with(Options { toml, manual_clock: Some(NOON), ..Options::default() });
        let alice = app.register("alice");
        let root = app.admin_token();
        Self { app, alice, root }
    }

    /// A call from an address, with more headers.
    fn call(&self, from: &str, method: &str, path: &str, more: &[(&str, &str)], body: Option<&Value>) -> Answer {
        let headers = [&[("x-forwarded-for", from)], more].concat();
        http::call(self.app.public, method, path, &headers, body)
    }

    fn with_key(&self, from: &str, key: &str) -> Answer {
        let bearer = format!("Bearer {key}");
        let body = crate::support::chat_body(json!({}));
        self.call(from, "POST", "/v1/chat/completions", &[("authorization", &bearer)], Some(&body))
    }

    fn login(&self, from: &str, email: &str, password: &str) -> Answer {
        self.call(from, "POST", "/v1/users/login", &[], Some(&json!({"email": email, "password": password})))
    }

    fn own(&self, from: &str, token: &str, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let bearer = format!("Bearer {token}");
        self.call(from, method, &format!("/v1/users/{path}"), &[("authorization", &bearer)], body)
    }

    /// Alice's session, opened from elsewhere.
    fn session(&self) -> Value {
        let answer = self.login(THERE, &self.alice.email, PASSWORD);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["session"].clone()
    }

    /// Blocks an address by three keys that nobody has.
    fn block(&self, from: &str) {
        for _ in 0..3 {
            assert_eq!(self.with_key(from, UNKNOWN).status, 401);
        }
        assert_blocked(&self.with_key(from, UNKNOWN));
    }

    fn panel(&self, method: &str, path: &str) -> Answer {
        self.app.admin_call(&self.root, method, &format!("/v1/admin-panel/{path}"), None)
    }

    /// The blocks in force: address and port.
    fn blocks(&self) -> Vec<(String, String)> {
        let listed = self.panel("GET", "blocks").json();
        let text = |item: &Value, name: &str| item[name].as_str().unwrap().to_owned();
        listed["items"].as_array().unwrap().iter().map(|item| (text(item, "address"), text(item, "port"))).collect()
    }

    fn advance(&self, seconds: u64) {
        self.app.hands.as_ref().unwrap().advance(Duration::from_secs(seconds));
    }

    fn hashes(&self) -> f64 {
        self.app.metric("tollgate_password_hashes_total{kind=\"argon2id\"}")
    }
}

fn merged(texts: &[&str]) -> String {
    let mut all = toml::Table::new();
    for text in texts {
        for (name, value) in toml::from_str::<toml::Table>(text).unwrap() {
            match (all.get_mut(&name).and_then(toml::Value::as_table_mut), value) {
                (Some(known), toml::Value::Table(more)) => known.extend(more),
                (_, value) => drop(all.insert(name, value)),
            }
        }
    }
    toml::to_string(&all).unwrap()
}

#[track_caller]
fn assert_blocked(answer: &Answer) {
    let text = answer.text();
    assert_eq!((answer.status, text.contains("ADDRESS_BLOCKED")), (403, true), "{text}");
    let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=900).contains(&seconds), "{seconds}");
}

/// An answer without what differs from one request to the next.
fn bare(answer: &Answer) -> (u16, Vec<(String, String)>, Value) {
    let mut body = answer.json();
    body["details"] = Value::Null;
    let headers = answer.headers.iter().filter(|(name, _)| !matches!(name.as_str(), "x-request-id" | "date"));
    (answer.status, headers.cloned().collect(), body)
}
