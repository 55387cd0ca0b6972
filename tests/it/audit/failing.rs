//! While the trail cannot be written, nothing that needs a record is done; calls go on.

use serde_json::{Value, json};
use tollgate::actors::audit::{ActionFilter, Query, find_in_files};

use super::{logs, panel};
use crate::support::http::{Conn, request};
use crate::support::stores::SteeredStore;
use crate::support::{Options, PASSWORD, TestApp, http, wait_until};

#[test]
fn acts_are_refused_while_the_trail_cannot_be_written_and_recorded_once_it_can() {
    let app = TestApp::with(Options { toml: "[audit]\nsegment_bytes = 65536\n".into(), ..Options::default() });
    let (token, user) = (app.admin_token(), app.register("alice"));
    // The next segment cannot be made: its directory is not where it was.
    let (there, away) = (app.dir.path().join("audit"), app.dir.path().join("elsewhere"));
    std::fs::rename(&there, &away).unwrap();
    let long = json!({"reason": "x".repeat(500)});
    let mut acknowledged = 0;
    let refused = loop {
        let answer = panel(&app, &token, "POST", "users/1/suspend", Some(long.clone()));
        if answer.status != 200 {
            break answer;
        }
        acknowledged += 1;
        assert!(acknowledged < 200, "the segment is full at some time");
    };
    let all = Query { action: ActionFilter::parse("user.suspended"), ..Query::default() };
    let on_disk = find_in_files(&away, &all, 1, 1000).unwrap().items.len();
    assert_eq!(acknowledged, on_disk, "what was acknowledged has its record");
    assert_eq!((refused.status, refused.error_code().as_str()), (503, "STORE_UNAVAILABLE"), "{}", refused.text());
    assert_eq!(refused.header("retry-after"), Some("5"));
    let ready = http::call(app.admin, "GET", "/ready", &[], None);
    assert_eq!((ready.status, ready.json()["reason"].as_str()), (503, Some("the audit trail cannot be written")));

    // From now on nothing is even begun.
    let activate = panel(&app, &token, "POST", "users/1/activate", None);
    assert_eq!(activate.status, 503);
    let status = || panel(&app, &token, "GET", "users/1", None).json()["user"]["status"].clone();
    assert_eq!(status(), "suspended");
    let body = json!({"username": "bob", "name": "Bob B", "email": "bob@example.com", "password": PASSWORD});
    assert_eq!(http::call(app.public, "POST", "/v1/users/register", &[], Some(&body)).status, 503);
    let login = json!({"username": "alice", "password": PASSWORD});
    assert_eq!(http::call(app.public, "POST", "/v1/users/login", &[], Some(&login)).status, 503);

    std::fs::rename(&away, &there).unwrap();
    wait_until("the trail is written again", || http::call(app.admin, "GET", "/ready", &[], None).status == 200);
    assert_eq!(panel(&app, &token, "POST", "users/1/activate", None).status, 200);
    assert_eq!((status(), app.chat(&user.key, json!({})).status), (Value::from("active"), 200));
    // The act that had happened has its record; those that were refused before they began have none.
    let suspended = panel(&app, &token, "GET", "security-logs?action=user.suspended&page_size=1", None).json();
    assert_eq!(suspended["items"][0]["result"], "ok");
    assert_eq!(logs(&app, &token, "action=user.activated").len(), 1);
    assert!(app.metric("tollgate_audit_write_errors_total") >= 1.0);
    assert_eq!(app.metric("tollgate_audit_records_total{state=\"dropped\"}"), 0.0);
}

#[test]
fn calls_are_served_while_the_trail_cannot_be_written() {
    let app = TestApp::with(Options { toml: "[audit]\nsegment_bytes = 65536\n".into(), ..Options::default() });
    let (token, user) = (app.admin_token(), app.register("alice"));
    std::fs::rename(app.dir.path().join("audit"), app.dir.path().join("elsewhere")).unwrap();
    let long = json!({"description": "x".repeat(500), "kind": "deny", "network": "198.51.100.0/24"});
    let refused = (0..200).any(|_| panel(&app, &token, "POST", "ip-rules", Some(long.clone())).status == 503);
    assert!(refused, "the segment is full at some time");
    assert_eq!(app.chat(&user.key, json!({})).status, 200);
}

#[test]
fn no_server_starts_without_its_trail() {
    use tollgate::app::{App, Core};
    use tollgate::clock::Clock;
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "data_dir = {:?}\n[listen]\npublic = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n[store]\nbackend = \"memory\"\n",
        dir.path()
    );
    let config = tollgate::config::Config::parse("test", &text, std::iter::empty()).unwrap();
    let core = Core::open(&config, Clock::system(), 1).unwrap();
    std::fs::remove_dir_all(dir.path().join("audit")).unwrap();
    let error = App::start_on(core, config, None).err().expect("it must not start");
    assert!(error.to_string().contains("audit trail"), "{error}");
}

#[test]
fn an_act_whose_caller_leaves_in_the_middle_has_its_record() {
    let store = SteeredStore::new();
    let app = TestApp::with(Options { store: Some(store.clone()), ..Options::default() });
    let (token, user) = (app.admin_token(), app.register("alice"));
    let held = store.hold_commits();
    let mut conn = Conn::open(app.admin);
    let bearer = format!("Bearer {token}");
    conn.send(request("POST", "/v1/admin-panel/users/1/ban", &[("authorization", bearer.as_str())], None));
    wait_until("the ban is under way", || store.has_commit_waiting());
    drop(conn);
    // Whoever asks next is served by the same threads that notice it.
    assert_eq!(http::call(app.admin, "GET", "/health", &[], None).status, 200);
    drop(held);
    wait_until("the user is banned", || app.chat(&user.key, json!({})).status == 403);
    wait_until("the record is there", || logs(&app, &token, "action=user.banned").len() == 1);
}
