//! The contract's table of refusals, row by row, through a real socket.
//!
//! Each test provokes one refusal and looks at all of it: status, code, headers, body, and what it cost. What it cost is
//! seen from outside: a good call before and one after, with three rate limits of the same size and a clock that stands
//! still, so that a token or a credit taken by the refused call in between would be missing in the second one's headers.

mod addresses;
mod bodies;
mod credentials;
mod credits;
mod load;
mod rates;
mod shares;
mod slow_bodies;
mod standing;
mod store;
mod upstreams;

use std::time::Duration;

use serde_json::{Value, json};
use tollgate::clock::{ManualClock, UnixMillis};
use tollgate::domain::ids::UserId;
use tollgate::domain::key::{ApiKey, KeyLimits};
use tollgate::store::{Batch, tables};

use crate::support::{Answer, Options, TestApp, TestUser, http};

/// The moment at which the clock of these tests stands.
pub const NOON: &str = "2026-01-15T12:00:00Z";

const CHAT: &str = "/v1/chat/completions";

/// A gateway whose clock stands still and whose three rate limits are alike, with one user.
pub struct Desk {
    pub app: TestApp,
    pub user: TestUser,
    pub admin: String,
}

/// What a good call says is left.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    requests: i64,
    conversations: i64,
}

impl Desk {
    pub fn open(toml: &str) -> Self {
        Self::with(Options { toml: toml.to_owned(), ..Options::default() })
    }

    pub fn with(mut options: Options) -> Self {
        let mut table: toml::Table = toml::from_str(&options.toml).unwrap();
        let limits = table.entry("limits").or_insert_with(|| toml::Table::new().into()).as_table_mut().unwrap();
        for limit in ["per_ip_per_minute", "per_key_per_minute", "per_user_per_minute"] {
            limits.entry(limit).or_insert(30.into());
        }
        options.toml = toml::to_string(&table).unwrap();
        options.manual_clock.get_or_insert(NOON);
        let app = TestApp::with(options);
        let user = app.register("alice");
        let desk = Self { admin: app.admin_token(), app, user };
        desk.set_conversations(1000);
        desk.refill();
        desk
    }

    pub fn clock(&self) -> &ManualClock {
        self.app.hands.as_ref().unwrap()
    }

    /// Lets every rate limit fill up again.
    pub fn refill(&self) {
        self.clock().advance(Duration::from_secs(60));
    }

    /// A usual call with these headers instead of the usual credential.
    pub fn chat_with(&self, headers: &[(&str, &str)]) -> Answer {
        http::call(self.app.public, "POST", CHAT, headers, Some(&crate::support::chat_body(json!({}))))
    }

    pub fn set_conversations(&self, left: u32) {
        let body = json!({"limits": {"conversation_limit": left}});
        self.panel("PUT", &format!("users/{}", self.user.id), Some(body));
    }

    pub fn conversations(&self) -> f64 {
        self.app.balance(&self.admin, self.user.id, "conversations")
    }

    pub fn chat(&self) -> Answer {
        self.app.chat(&self.user.key, json!({}))
    }

    /// Posts to the side port's pages about this user.
    pub fn panel(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let answer = self.app.admin_call(&self.admin, method, &format!("/v1/admin-panel/{path}"), body.as_ref());
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer
    }

    pub fn session(&self) -> String {
        let body = json!({"email": self.user.email, "password": crate::support::PASSWORD});
        let answer = http::call(self.app.public, "POST", "/v1/users/login", &[], Some(&body));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["session"]["session_token"].as_str().unwrap().to_owned()
    }

    /// Changes the row of a user's key behind the API.
    pub fn edit_key(&self, user: &TestUser, edit: impl FnOnce(&mut ApiKey)) {
        let core = self.app.app().core();
        let at = tables::api_key(&core.pepper.mac(user.key.as_bytes()));
        let mut key: ApiKey = tables::read(core.committer.store(), &at).unwrap().unwrap();
        edit(&mut key);
        let mut batch = Batch::default();
        batch.put(at, tables::encode(&key).unwrap());
        core.committer.commit_blocking(batch).unwrap();
        core.users.forget_credentials(UserId(user.id));
    }

    pub fn narrow_key(&self, limits: KeyLimits) {
        self.edit_key(&self.user, |key| key.limits = limits);
    }

    fn good_call(&self) -> Left {
        let answer = self.chat();
        assert_eq!(answer.status, 200, "a good call is served: {}", answer.text());
        let number = |name: &str| answer.header(name).unwrap_or_else(|| panic!("no {name}")).parse().unwrap();
        Left {
            requests: number("x-ratelimit-remaining-requests"),
            conversations: number("x-tollgate-remaining-conversations"),
        }
    }

    /// Runs `provoke`, which must leave things so that a good call passes, and holds it to its promise: nothing was
    /// taken from any meter or rate limit and nothing reached the upstream.
    #[track_caller]
    pub fn costs_nothing(&self, provoke: impl FnOnce(&Self) -> Answer) -> Answer {
        let before = self.good_call();
        let served = self.app.upstream.stats().total;
        let answer = provoke(self);
        assert_eq!(self.app.upstream.stats().total, served, "the refused call reached the upstream");
        let expected = Left { requests: before.requests - 1, conversations: before.conversations - 1 };
        assert_eq!(self.good_call(), expected, "the refused call took something");
        crate::support::wait_until("all is given back", || self.app.metric("tollgate_holds_open") == 0.0);
        answer
    }
}

/// One row of the table.
pub struct Row {
    pub status: u16,
    pub code: &'static str,
    /// The `error.type` that OpenAI's clients look at.
    pub kind: &'static str,
    pub retry_after: Option<u64>,
}

pub const fn row(status: u16, code: &'static str, kind: &'static str) -> Row {
    Row { status, code, kind, retry_after: None }
}

impl Row {
    pub const fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }
}

pub const UNAUTHENTICATED: Row = row(401, "UNAUTHENTICATED", "authentication_error");
pub const BAD_REQUEST: Row = row(400, "BAD_REQUEST", "invalid_request_error");
pub const ADDRESS_DENIED: Row = row(403, "ADDRESS_DENIED", "permission_error");
pub const FORBIDDEN: Row = row(403, "FORBIDDEN", "permission_error");
pub const OVERLOADED: Row = row(503, "OVERLOADED", "server_error").retry_after(1);

/// Holds a refusal to the contract: the status, the headers, and each member of the body.
#[track_caller]
pub fn assert_refused(answer: &Answer, row: &Row) {
    let text = answer.text();
    assert_eq!((answer.status, answer.error_code().as_str()), (row.status, row.code), "{text}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("content-length"), Some(answer.body.len().to_string().as_str()));
    assert_eq!(answer.header("www-authenticate").is_some(), row.status == 401, "{:?}", answer.headers);
    let retry_after = answer.header("retry-after").map(|seconds| seconds.parse().unwrap());
    assert_eq!(retry_after, row.retry_after, "{text}");

    let body = answer.json();
    let mut members = vec!["details", "error", "error_code", "errors", "message", "success"];
    if row.code == "CREDITS_EXHAUSTED" {
        members.insert(4, "limits");
    }
    let mut found: Vec<&String> = body.as_object().unwrap().keys().collect();
    found.sort();
    assert_eq!(found, members, "{text}");
    assert_eq!(body["success"], false);
    let message = body["message"].as_str().unwrap();
    assert!(!message.is_empty());
    let errors = body["errors"].as_array().unwrap();
    assert!(!errors.is_empty() && errors.iter().all(Value::is_string), "{text}");
    assert_eq!(body["error"], json!({"message": message, "type": row.kind, "code": row.code, "param": null}));
    let request_id = answer.header("x-request-id").unwrap();
    assert!(request_id.starts_with("req_"), "{request_id}");
    assert_eq!(body["details"]["request_id"], request_id);
    let timestamp = body["details"]["timestamp"].as_str().unwrap();
    assert!(UnixMillis::parse_rfc3339(timestamp).is_some() && timestamp.ends_with('Z'), "{timestamp}");
    assert_eq!(body["details"].as_object().unwrap().len(), 2);
}
