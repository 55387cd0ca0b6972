//! Each audited act, done once: its record says who, from where, what, on whom, and how it ended.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tollgate::actors::user::ledger::{self, Account, AccountRow, Command, Recovery};
use tollgate::clock::UnixMillis;
use tollgate::domain::ids::UserId;
use tollgate::domain::meters::{MeterName, Micro, ResetHour};
use tollgate::store::memory::MemoryStore;
use tollgate::store::{Batch, Store, tables};

use super::{logs, panel};
use crate::support::{ADMIN, Answer, Options, PASSWORD, TestApp, http};

const NOON: &str = "2026-01-15T12:00:00Z";
const WRONG: &str = "Wrong-Passw0rd";
const OTHER: &str = "Another-Passw0rd-9";

/// What a record must say: actor, action, target, result and reason.
type Said<'a> = (&'a str, &'a str, &'a str, &'a str, Option<&'a str>);

/// `staff 1 root` and the like.
fn party(value: &Value) -> String {
    if value.is_null() {
        return "nobody".into();
    }
    let part = |name: &str| match &value[name] {
        Value::Null => String::new(),
        Value::String(text) => format!(" {text}"),
        other => format!(" {other}"),
    };
    format!("{}{}{}", value["kind"].as_str().unwrap(), part("id"), part("name"))
}

#[track_caller]
fn assert_says(record: &Value, (actor, action, target, result, reason): Said<'_>) {
    assert_eq!(record["action"], action, "{record}");
    assert_eq!((party(&record["actor"]).as_str(), party(&record["target"]).as_str()), (actor, target), "{record}");
    assert_eq!((&record["result"], record["reason"].as_str()), (&json!(result), reason), "{record}");
}

/// All bytes of all files of the trail.
fn raw(dir: &Path) -> Vec<u8> {
    let files = std::fs::read_dir(dir.join("audit")).unwrap().map(|item| item.unwrap().path());
    files.flat_map(|path| std::fs::read(path).unwrap()).collect()
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// A gateway, and everything secret that was ever said to it or by it.
struct Scene {
    app: TestApp,
    root: String,
    secrets: Vec<String>,
}

impl Scene {
    fn open(toml: &str) -> Self {
        let app = TestApp::with(Options { manual_clock: Some(NOON), toml: toml.to_owned(), ..Options::default() });
        let root = app.admin_token();
        let secrets = vec![PASSWORD.to_owned(), WRONG.to_owned(), OTHER.to_owned(), root.clone()];
        Self { app, root, secrets }
    }

    fn public(&mut self, method: &str, path: &str, token: Option<&str>, body: Value) -> Answer {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let headers: Vec<(&str, &str)> = bearer.iter().map(|value| ("authorization", value.as_str())).collect();
        let path = format!("/v1/users/{path}");
        let answer = http::call(self.app.public, method, &path, &headers, (!body.is_null()).then_some(&body));
        self.learn(&answer);
        answer
    }

    fn side(&mut self, token: &str, method: &str, path: &str, body: Value) -> Answer {
        let answer = panel(&self.app, token, method, path, (!body.is_null()).then_some(body));
        self.learn(&answer);
        answer
    }

    /// Keeps whatever an answer holds that nobody else should see.
    fn learn(&mut self, answer: &Answer) {
        let Ok(body) = serde_json::from_slice::<Value>(&answer.body) else { return };
        let texts = [&body["api_key"], &body["session"]["session_token"], &body["session"]["refresh_token"]];
        self.secrets.extend(texts.iter().filter_map(|text| text.as_str()).map(str::to_owned));
    }

    /// The newest record of an act must say this, and come from this address and the request that was just answered.
    #[track_caller]
    fn left(&self, answer: &Answer, said: Said<'_>) -> Value {
        let records = logs(&self.app, &self.root, &format!("action={}&page_size=1", said.1));
        let record = records.first().unwrap_or_else(|| panic!("no record of {}", said.1)).clone();
        assert_says(&record, said);
        assert_eq!(record["ip_address"], "127.0.0.1", "{record}");
        assert_eq!(record["request_id"].as_str(), answer.header("x-request-id"), "{record}");
        assert_eq!(record["timestamp"], NOON);
        record
    }
}

fn token_of(answer: &Answer) -> String {
    answer.json()["session"]["session_token"].as_str().unwrap_or_else(|| panic!("{}", answer.text())).to_owned()
}

#[test]
fn every_act_leaves_its_record_and_no_secret() {
    let mut scene = Scene::open("");
    let root = scene.root.clone();
    let null = || Value::Null;

    // What users do.
    let john = json!({"username": "johndoe", "name": "John", "email": "john@example.com", "password": PASSWORD});
    let made = scene.public("POST", "register", None, john.clone());
    scene.left(&made, ("user 1 johndoe", "user.registered", "user 1 johndoe", "ok", None));
    let again = scene.public("POST", "register", None, john);
    scene.left(&again, ("anonymous", "user.registered", "nobody", "failed", Some("CONFLICT")));
    let key = made.json()["api_key"].as_str().unwrap().to_owned();
    let failed = scene.public("POST", "login", None, json!({"email": "john@example.com", "password": WRONG}));
    let record =
        scene.left(&failed, ("anonymous", "login.failed", "user 1 johndoe", "denied", Some("UNAUTHENTICATED")));
    assert_eq!(record["severity"], "warning");
    // A password in the field of the name: nobody has that name, and it is not written down.
    let slip = scene.public("POST", "login", None, json!({"username": WRONG, "password": "x"}));
    scene.left(&slip, ("anonymous", "login.failed", "nobody", "denied", Some("UNAUTHENTICATED")));
    let login = scene.public("POST", "login", None, json!({"email": "john@example.com", "password": PASSWORD}));
    scene.left(&login, ("user 1 johndoe", "login.succeeded", "user 1 johndoe", "ok", None));
    let body = json!({"refresh_token": login.json()["session"]["refresh_token"]});
    let login = scene.public("POST", "refresh", None, body.clone());
    scene.left(&login, ("user 1 johndoe", "session.refreshed", "user 1 johndoe", "ok", None));
    let used = scene.public("POST", "refresh", None, body);
    // Within the grace, for whom the first answer did not reach.
    scene.left(&used, ("user 1 johndoe", "session.refreshed", "user 1 johndoe", "ok", None));
    let unknown = scene.public("POST", "refresh", None, json!({"refresh_token": "tr-unknown"}));
    scene.left(&unknown, ("anonymous", "session.refreshed", "nobody", "denied", Some("UNAUTHENTICATED")));
    let session = token_of(&login);
    let update = json!({"name": "John Smith", "about_me": "a private matter"});
    let updated = scene.public("PUT", "profile", Some(&session), update);
    let record = scene.left(&updated, ("user 1 johndoe", "profile.updated", "user 1 johndoe", "ok", None));
    assert_eq!(record["details"]["changes"]["name"], json!({"from": "John", "to": "John Smith"}));
    assert_eq!(record["details"]["changes"]["about_me"], json!({"from": "…", "to": "…"}));
    let fresh = scene.public("POST", "api-key/regenerate", Some(&session), null());
    scene.left(&fresh, ("user 1 johndoe", "key.regenerated", "user 1 johndoe", "ok", None));
    let out = scene.public("POST", "logout", Some(&session), null());
    scene.left(&out, ("user 1 johndoe", "session.ended", "user 1 johndoe", "ok", None));

    // What staff does.
    let wrong = http::call(
        scene.app.admin,
        "POST",
        "/v1/admin-panel/login",
        &[],
        Some(&json!({"username": ADMIN, "password": WRONG})),
    );
    let target = format!("staff 1 {ADMIN}");
    scene.left(&wrong, ("anonymous", "login.failed", &target, "denied", Some("UNAUTHENTICATED")));
    let by = target.as_str();
    let new = json!({"username": "second", "name": "Second", "email": "second@example.com", "password": OTHER});
    let created = scene.side(&root, "POST", "create-admin", new.clone());
    let record = scene.left(&created, (by, "staff.created", "staff 2 second", "ok", None));
    assert_eq!(record["details"]["role"], "admin");
    let second = scene.side("", "POST", "login", json!({"username": "second", "password": OTHER}));
    scene.left(&second, ("staff 2 second", "login.succeeded", "staff 2 second", "ok", None));
    let second = token_of(&second);
    let denied = scene.side(&second, "DELETE", "users/1", null());
    let record = scene.left(&denied, ("staff 2 second", "access.denied", "nobody", "denied", Some("FORBIDDEN")));
    assert_eq!(record["details"]["call"], "DELETE /v1/admin-panel/users/1");
    let denied = scene.side(&key, "GET", "users", null());
    scene.left(&denied, ("anonymous", "access.denied", "nobody", "denied", Some("UNAUTHENTICATED")));

    for (action, act) in [("suspend", "user.suspended"), ("ban", "user.banned"), ("activate", "user.activated")] {
        let done = scene.side(&second, "POST", &format!("users/1/{action}"), json!({"reason": "Policy\nviolation"}));
        let record = scene.left(&done, ("staff 2 second", act, "user 1 johndoe", "ok", None));
        let reason = (action != "activate").then_some("Policy violation");
        assert_eq!(record["details"]["reason"].as_str(), reason, "on one line");
        let none = scene.side(&second, "POST", &format!("users/99/{action}"), null());
        scene.left(&none, ("staff 2 second", act, "user 99", "failed", Some("NOT_FOUND")));
    }
    let update = json!({
        "subscription_plan": "premium", "credits": {"main": 100, "reset": 70},
        "limits": {"conversation_limit": 90}, "reason": "a gift",
    });
    let done = scene.side(&root, "PUT", "users/johndoe", update);
    let record = scene.left(&done, (by, "credits.adjusted", "user 1 johndoe", "ok", None));
    let changes = &record["details"]["changes"];
    assert_eq!(record["details"]["reason"], "a gift");
    assert_eq!(changes["subscription_plan"], json!({"from": "free", "to": "professional"}));
    assert_eq!(changes["credits.balance"], json!({"from": 5, "to": 100}));
    assert_eq!(changes["credits.reset"], json!({"from": 5, "to": 70}));
    assert_eq!(changes["conversations.balance"], json!({"from": 10, "to": 90}));
    let done = scene.side(&root, "PUT", "users/1", json!({"subscription_plan": "free"}));
    scene.left(&done, (by, "plan.changed", "user 1 johndoe", "ok", None));
    let done = scene.side(
        &root,
        "PUT",
        "users/1",
        json!({"email": "new@example.com", "is_verified": true, "log_conversations": false}),
    );
    let record = scene.left(&done, (by, "user.updated", "user 1 johndoe", "ok", None));
    assert_eq!(record["details"]["changes"]["email"], json!({"from": "john@example.com", "to": "new@example.com"}));
    assert_eq!(record["details"]["changes"]["email_verified"], json!({"from": false, "to": true}));
    assert_eq!(record["details"]["changes"]["log_conversations"], json!({"from": true, "to": false}));
    let bad = scene.side(&root, "PUT", "users/1", json!({"subscription_plan": "no-such-plan"}));
    scene.left(&bad, (by, "plan.changed", "user 1 johndoe", "failed", Some("BAD_REQUEST")));
    let done = scene.side(&root, "POST", "users/1/keys/regenerate", null());
    scene.left(&done, (by, "key.regenerated", "user 1 johndoe", "ok", None));
    let done = scene.side(&root, "POST", "reset-limits", json!({"user_id": 1}));
    scene.left(&done, (by, "limits.reset", "user 1 johndoe", "ok", None));
    let done = scene.side(&root, "POST", "reset-limits", null());
    let record = scene.left(&done, (by, "limits.reset", "nobody", "ok", None));
    assert_eq!(record["details"]["users"], 1);
    let done = scene.side(&root, "GET", "message-logs/1", null());
    scene.left(&done, (by, "conversations.read", "user 1 johndoe", "ok", None));
    let done = scene.side(&root, "POST", "users/1/credits", json!({"amount": -2.5, "reason": "a mistake"}));
    let record = scene.left(&done, (by, "credits.adjusted", "user 1 johndoe", "ok", None));
    assert_eq!((&record["details"]["meter"], &record["details"]["amount"]), (&json!("credits"), &json!(-2.5)));
    assert_eq!((&record["details"]["balance_after"], &record["details"]["reason"]), (&json!(2.5), &json!("a mistake")));
    let done = scene.side(&root, "POST", "users/1/credits", json!({"amount": -1e6}));
    scene.left(&done, (by, "credits.adjusted", "user 1 johndoe", "failed", Some("BAD_REQUEST")));
    let done = scene.side(&root, "GET", "backup?secrets=false", null());
    let record = scene.left(&done, (by, "backup.created", "nobody", "ok", None));
    assert_eq!(record["details"]["with_secrets"], false);
    let denied = scene.side(&second, "GET", "backup", null());
    scene.left(&denied, ("staff 2 second", "access.denied", "nobody", "denied", Some("FORBIDDEN")));
    let rule = json!({"kind": "deny", "network": "198.51.100.0/24", "description": "a nuisance"});
    let done = scene.side(&root, "POST", "ip-rules", rule);
    let record = scene.left(&done, (by, "ip_rule.created", "ip_rule 1 198.51.100.0/24", "ok", None));
    assert_eq!((&record["details"]["kind"], &record["details"]["description"]), (&json!("deny"), &json!("a nuisance")));
    let done = scene.side(&root, "DELETE", "ip-rules/1", null());
    scene.left(&done, (by, "ip_rule.removed", "ip_rule 1 198.51.100.0/24", "ok", None));
    let done = scene.side(&root, "POST", "ip-whitelist", json!({"ip_address": "192.0.2.1"}));
    scene.left(&done, (by, "ip_rule.created", "ip_rule 2 192.0.2.1/32", "ok", None));
    let done = scene.side(&root, "DELETE", "ip-whitelist/2", null());
    scene.left(&done, (by, "ip_rule.removed", "ip_rule 2 192.0.2.1/32", "ok", None));
    let done = scene.side(&root, "DELETE", "users/1?reason=Policy%20violation", null());
    let record = scene.left(&done, (by, "user.deleted", "user 1 johndoe", "ok", None));
    assert_eq!(record["details"]["reason"], "Policy violation");

    no_secret_is_in_the_files(scene);
}

fn no_secret_is_in_the_files(mut scene: Scene) {
    let dir = scene.app.dir.clone();
    scene.secrets.push(std::fs::read_to_string(dir.path().join("secrets/pepper")).unwrap());
    let operator: Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("run/operator.json")).unwrap()).unwrap();
    scene.secrets.push(operator["token"].as_str().unwrap().to_owned());
    scene.app.stop();
    let raw = raw(dir.path());
    assert!(holds(&raw, "johndoe") && scene.secrets.len() > 12, "{}", scene.secrets.len());
    for secret in &scene.secrets {
        assert!(!holds(&raw, secret), "{secret}");
    }
    for part in ["argon2", "a private matter", "pe-"] {
        assert!(!holds(&raw, part), "{part}");
    }
}

#[test]
fn guessing_is_counted_and_its_consequences_are_recorded() {
    let toml = "[access]\nblock_after_failures = 7\n[accounts]\nmax_failed_logins = 5\n";
    let mut scene = Scene::open(toml);
    let root = scene.root.clone();
    scene.app.register("alice");
    for _ in 0..5 {
        let answer = scene.public("POST", "login", None, json!({"username": "alice", "password": WRONG}));
        assert_eq!(answer.status, 401);
    }
    let locked = scene.public("POST", "login", None, json!({"username": "alice", "password": PASSWORD}));
    assert_eq!(locked.status, 423);
    for _ in 0..2 {
        scene.app.chat("pe-11111111111111111111111111111111", json!({}));
    }
    assert_eq!(scene.app.chat("pe-11111111111111111111111111111111", json!({})).status, 403, "the address is blocked");
    let locks = logs(&scene.app, &root, "action=account.locked");
    assert_says(&locks[0], ("system", "account.locked", "user 1", "ok", None));
    let blocks = logs(&scene.app, &root, "action=address.blocked");
    assert_says(&blocks[0], ("system", "address.blocked", "address 127.0.0.1", "ok", None));
    assert_eq!((locks.len(), blocks.len()), (1, 1));
    assert!(locks.iter().chain(&blocks).all(|record| record["ip_address"] == "127.0.0.1"));
    let failed = logs(&scene.app, &root, "action=login.failed");
    assert_eq!((failed.len(), &failed[0]["count"]), (1, &json!(1)), "the first one at once");

    // The minute ends with one record of all the others.
    scene.app.hands.as_ref().unwrap().advance(Duration::from_secs(60));
    let failed = logs(&scene.app, &root, "action=login.failed");
    assert_eq!(failed.iter().map(|record| record["count"].as_u64().unwrap()).sum::<u64>(), 6);
    assert_eq!(failed.len(), 2);
    assert!(scene.app.metric("tollgate_audit_folded_total") >= 5.0);
    let count = |state: &str| scene.app.metric(&format!("tollgate_audit_records_total{{state=\"{state}\"}}"));
    assert_eq!((count("emitted"), count("dropped")), (count("written"), 0.0));
    assert_eq!(scene.app.metric("tollgate_audit_sequence"), count("written"));
}

#[test]
fn what_the_program_does_by_itself_is_recorded() {
    let mut scene = Scene::open("");
    let root = scene.root.clone();
    let first = logs(&scene.app, &root, "action=staff");
    assert_says(&first[0], ("system", "staff.created", &format!("staff 1 {ADMIN}"), "ok", None));
    let started = logs(&scene.app, &root, "action=server.started");
    assert_says(&started[0], ("system", "server.started", "nobody", "ok", None));
    assert_eq!(started[0]["details"]["after_a_crash"], false);
    let rule = json!({"kind": "deny", "network": "198.51.100.0/24", "expires_at": "2026-01-15T12:00:30Z"});
    assert_eq!(scene.side(&root, "POST", "ip-rules", rule).status, 200);
    scene.app.hands.as_ref().unwrap().advance(Duration::from_secs(40));
    let accounts = scene.app.app().core().accounts.clone();
    scene.app.app().block_on(async move { accounts.sweep().await }).unwrap();
    let expired = logs(&scene.app, &root, "action=ip_rule.expired");
    assert_says(&expired[0], ("system", "ip_rule.expired", "nobody", "ok", None));
    scene.app.reload("[limits]\nper_key_per_minute = 7\n[accounts]\nregistration = false\n");
    let reloaded = logs(&scene.app, &root, "action=config");
    assert_says(&reloaded[0], ("operator", "config.reloaded", "nobody", "ok", None));
    assert_eq!(reloaded[0]["details"]["changed"], json!(["limits.per_key_per_minute", "accounts.registration"]));
    let closed = scene.public(
        "POST",
        "register",
        None,
        json!({"username": "late", "name": "Late Comer", "email": "l@example.com", "password": PASSWORD}),
    );
    assert_eq!(closed.status, 403);
    scene.app.app().reload_refused("limits.per_key_per_minute: \"sk-secret\" is no number");
    let refused = logs(&scene.app, &root, "action=config.reloaded&severity=warning");
    assert_says(&refused[0], ("operator", "config.reloaded", "nobody", "failed", Some("INVALID_CONFIG")));
    let dir = scene.app.dir.clone();
    scene.app.stop();
    let raw = raw(dir.path());
    assert!(holds(&raw, "server.stopped") && !holds(&raw, "sk-secret"));
}

/// Puts a hold on a user's account, as a crash leaves one.
fn leave_a_hold_open(store: &MemoryStore, user: u64) {
    let key = tables::meters(UserId(user));
    let mut account = Account::from_row(tables::read::<AccountRow>(store, &key).unwrap().unwrap());
    let (meters, amounts) = ([MeterName::parse("conversations").unwrap()], [Micro::units(3).unwrap()]);
    let reserve = Command::Reserve { meters: &meters, amounts: &amounts, max_open: 1 };
    let now = UnixMillis::parse_rfc3339(NOON).unwrap();
    ledger::step(&mut account, now, ResetHour::default(), Recovery::Charge, reserve);
    let mut batch = Batch::default();
    batch.put(key, tables::encode(&account.to_row()).unwrap());
    store.commit(&batch).unwrap();
}

#[test]
fn holds_found_open_are_recorded_with_what_became_of_them() {
    for (setting, how, left) in [("charge", "charged", 7.0), ("refund", "refunded", 10.0)] {
        let (store, dir) = (Arc::new(MemoryStore::default()), Arc::new(tempfile::tempdir().unwrap()));
        let options = || Options {
            store: Some(store.clone()),
            dir: Some(dir.clone()),
            toml: format!("[ledger]\nrecover_open_holds = \"{setting}\"\n"),
            manual_clock: Some(NOON),
            ..Options::default()
        };
        let mut app = TestApp::with(options());
        let user = app.register("alice");
        app.stop();
        leave_a_hold_open(&store, user.id);
        let app = TestApp::with(options());
        let token = app.admin_token();
        assert_eq!(app.balance(&token, user.id, "conversations"), left);
        let records = logs(&app, &token, "action=hold.recovered&user=alice");
        assert_eq!(records.len(), 1);
        assert_says(&records[0], ("system", "hold.recovered", "user 1 alice", "ok", None));
        assert_eq!(records[0]["details"], json!({"holds": how, "amounts": {"conversations": 3}}));
        assert_eq!(records[0]["severity"], "warning");
    }
}

#[test]
fn security_logs_are_paged_filtered_and_for_admins_alone() {
    let mut scene = Scene::open("");
    let root = scene.root.clone();
    let user = scene.app.register("alice");
    for _ in 0..3 {
        assert_eq!(scene.side(&root, "POST", "users/1/suspend", json!({"reason": "why"})).status, 200);
    }
    for token in ["", "nonsense", user.key.as_str()] {
        assert_eq!(scene.side(token, "GET", "security-logs", Value::Null).status, 401);
        assert_eq!(scene.side(token, "GET", "security-logs/head", Value::Null).status, 401);
    }
    let page = scene.side(&root, "GET", "security-logs?page=1&severity=warning&page_size=2", Value::Null).json();
    assert_eq!((&page["page"], &page["page_size"], page["items"].as_array().unwrap().len()), (&json!(1), &json!(2), 2));
    assert!(page["total"].as_u64().unwrap() >= 5, "{}", page["total"]);
    assert!(page["items"].as_array().unwrap().iter().all(|item| item["severity"] == "warning"));
    let all = scene.side(&root, "GET", "security-logs?page_size=100000", Value::Null).json();
    assert_eq!(all["page_size"], 200);
    let ids: Vec<u64> = all["items"].as_array().unwrap().iter().map(|item| item["id"].as_u64().unwrap()).collect();
    assert!(ids.is_sorted_by(|a, b| a > b), "newest first: {ids:?}");
    let of = |query: &str| logs(&scene.app, &root, query).len();
    assert_eq!((of("user=alice&action=user.suspended"), of("user=1&action=user.suspended")), (3, 3));
    assert_eq!(
        (of("user=nobody"), of("to=2026-01-15T12:00:00Z"), of("action=user.suspended&from=2026-01-15T12:00:01Z")),
        (0, 0, 0)
    );
    assert_eq!(of("action=user.suspended&from=2026-01-15T12:00:00Z&to=2026-01-15T12:00:01Z"), 3);
    for (query, named) in [
        ("severity=loud", "severity"),
        ("action=nonsense", "action"),
        ("from=yesterday", "from"),
        ("to=tomorrow", "to"),
        ("page=x", "page"),
    ] {
        let answer = scene.side(&root, "GET", &format!("security-logs?{query}"), Value::Null);
        assert_eq!((answer.status, answer.error_code().as_str()), (400, "BAD_REQUEST"), "{query}");
        assert!(answer.json()["errors"][0].as_str().unwrap().starts_with(&format!("{named}: ")), "{}", answer.text());
    }
    let head = scene.side(&root, "GET", "security-logs/head", Value::Null).json();
    assert!(head["sequence"].as_u64() >= Some(ids[0]) && head["mac"].as_str().unwrap().len() == 64, "{head}");
}
