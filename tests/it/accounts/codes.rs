//! One-time login codes: given, counted, exported, run out, required, taken away; by calls and by commands.

use std::time::Duration;

use serde_json::json;

use super::process::Site;
use crate::support::{Options, PASSWORD, TestApp, http};

fn enter(app: &TestApp, email: &str, code: Option<&str>) -> (u16, String) {
    let body = json!({"email": email, "password": PASSWORD, "unique_code": code});
    let answer = http::call(app.public, "POST", "/v1/users/login", &[], Some(&body));
    (answer.status, answer.json()["error_code"].as_str().unwrap_or_default().to_owned())
}

fn codes_of(app: &TestApp, root: &str, id: u64) -> Vec<String> {
    let path = format!("/v1/admin-panel/users/{id}/codes/export?format=json");
    let all = app.admin_call(root, "GET", &path, None).json();
    all.as_array().unwrap().iter().map(|item| item["code"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn codes_are_given_counted_and_exported() {
    let app = TestApp::with(Options { manual_clock: Some("2026-01-15T12:00:00Z"), ..Options::default() });
    let (alice, root) = (app.register("alice"), app.admin_token());
    let path = format!("/v1/admin-panel/users/{}/codes", alice.id);
    let give = |body| app.admin_call(&root, "POST", &path, Some(&body));
    for (bad, field) in [
        (json!({}), "count"),
        (json!({"count": 0}), "count"),
        (json!({"count": 10_000_001}), "count"),
        (json!({"count": "x"}), "count"),
        (json!({"count": 1, "expires_at": "2026-01-15T12:00:00Z"}), "expires_at"),
        (json!({"count": 1, "category": ""}), "category"),
    ] {
        let answer = give(bad.clone());
        assert_eq!(answer.status, 400, "{bad}: {}", answer.text());
        assert!(answer.json()["errors"][0].as_str().unwrap().starts_with(field), "{}", answer.text());
    }
    assert_eq!(app.admin_call(&root, "POST", "/v1/admin-panel/users/99/codes", Some(&json!({"count": 1}))).status, 404);
    let made = give(json!({"count": 3, "category": "=cmd|' /C calc'!A0", "expires_at": "2026-01-16T00:00:00Z"}));
    assert_eq!((made.status, made.json()["list"]["count"].as_u64()), (200, Some(3)), "{}", made.text());
    assert_eq!(give(json!({"count": 1_000_000})).status, 200);
    let stats = app.admin_call(&root, "GET", &format!("{path}/stats"), None).json();
    assert_eq!(
        stats,
        json!({"success": true, "total": 1_000_003, "available": 1_000_003, "used": 0, "expired": 0, "percent_used": 0.0})
    );
    let csv = app.admin_call(&root, "GET", &format!("{path}/export?format=csv"), None);
    assert_eq!(csv.header("content-type"), Some("text/csv; charset=utf-8"));
    let text = csv.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines[0], lines.len()), ("code,generated_at,used,expires_at,category", 1_000_004));
    // Attack 22: what a spreadsheet would run is text.
    assert!(lines[1].ends_with(",2026-01-15T12:00:00Z,0,2026-01-16T00:00:00Z,\"'=cmd|' /C calc'!A0\""), "{}", lines[1]);
    let code = lines[1].split(',').next().unwrap();
    assert!(code.len() == 16 && code.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F')), "{code}");
    assert_eq!(enter(&app, &alice.email, Some(code)).0, 200);
    assert_eq!(enter(&app, &alice.email, Some(lines[1_000_003].split(',').next().unwrap())).0, 200);
    let own = app.call("POST", "/v1/users/login", "", Some(&json!({"email": alice.email, "password": PASSWORD})));
    let session = own.json()["session"]["session_token"].as_str().unwrap().to_owned();
    let mine = app.call("GET", "/v1/users/codes", &session, None).json();
    assert_eq!((mine["used"].as_u64(), mine["available"].as_u64()), (Some(2), Some(1_000_001)), "{mine}");
    // Two of the first list are left when it runs out.
    let late = lines[2].split(',').next().unwrap();
    app.hands.as_ref().unwrap().advance(Duration::from_secs(13 * 3600));
    assert_eq!(enter(&app, &alice.email, Some(late)), (401, "WRONG_CODE".into()));
    let root = app.admin_token();
    let stats = app.admin_call(&root, "GET", "/v1/admin-panel/codes/stats", None).json();
    assert_eq!(
        (stats["expired"].as_u64(), stats["users"].as_u64(), stats["used"].as_u64()),
        (Some(2), Some(1), Some(2))
    );
    // Both marks are in the export; the far one is in another page of marks.
    let json = app.admin_call(&root, "GET", &format!("{path}/export?format=json"), None).json();
    let used: Vec<usize> =
        json.as_array().unwrap().iter().enumerate().filter(|(_, i)| i["used"] == true).map(|(n, _)| n).collect();
    assert_eq!(used, [0, 1_000_002]);
}

#[test]
fn lists_are_taken_away_one_by_one_or_with_the_user() {
    let app = TestApp::start("[accounts.codes]\nlength = 12\nmax_per_user = 100\n");
    let (alice, bobby, root) = (app.register("alice"), app.register("bobby"), app.admin_token());
    let path = format!("/v1/admin-panel/users/{}/codes", alice.username);
    for _ in 0..2 {
        assert_eq!(app.admin_call(&root, "POST", &path, Some(&json!({"count": 50}))).status, 200);
    }
    let full = app.admin_call(&root, "POST", &path, Some(&json!({"count": 1})));
    assert_eq!(full.status, 409, "{}", full.text());
    let codes = codes_of(&app, &root, alice.id);
    assert!(codes.len() == 100 && codes.iter().all(|code| code.len() == 12));
    let lists = app.admin_call(&root, "GET", &path, None).json();
    let first = lists["lists"][0]["id"].as_u64().unwrap();
    assert_eq!(app.admin_call(&root, "DELETE", &format!("{path}/{first}"), None).json()["revoked"], 50);
    assert_eq!(app.admin_call(&root, "DELETE", &format!("{path}/{first}"), None).status, 404);
    assert_eq!(
        (enter(&app, &alice.email, Some(&codes[0])).0, enter(&app, &alice.email, Some(&codes[50])).0),
        (401, 200)
    );
    // To everybody: the numbers go on, so no code comes twice.
    let made = app.admin_call(&root, "POST", "/v1/admin-panel/codes", Some(&json!({"count": 20})));
    assert_eq!(made.json()["users"], 2, "{}", made.text());
    let theirs = codes_of(&app, &root, bobby.id);
    assert!(theirs.len() == 20 && theirs.iter().all(|code| !codes.contains(code)));
    assert_eq!(app.admin_call(&root, "DELETE", &format!("/v1/admin-panel/users/{}", alice.id), None).status, 200);
    let stats = app.admin_call(&root, "GET", "/v1/admin-panel/codes/stats", None).json();
    assert_eq!((stats["total"].as_u64(), stats["users"].as_u64()), (Some(20), Some(1)), "{stats}");
}

#[test]
fn who_has_codes_can_be_made_to_use_them() {
    let mut app = TestApp::start("");
    let (alice, bobby, root) = (app.register("alice"), app.register("bobby"), app.admin_token());
    let path = format!("/v1/admin-panel/users/{}/codes", alice.id);
    assert_eq!(app.admin_call(&root, "POST", &path, Some(&json!({"count": 2}))).status, 200);
    assert_eq!(enter(&app, &alice.email, None).0, 200, "until it is required");
    app.reload("[accounts.codes]\nrequired = true\n");
    assert_eq!(enter(&app, &alice.email, None), (401, "UNIQUE_CODE_REQUIRED".into()));
    assert_eq!(enter(&app, &alice.email, Some("")), (401, "UNIQUE_CODE_REQUIRED".into()));
    assert_eq!(enter(&app, &alice.email, Some(&codes_of(&app, &root, alice.id)[1])).0, 200);
    assert_eq!(enter(&app, &bobby.email, None).0, 200, "who has none needs none");
}

#[test]
fn commands_give_and_show_codes_with_the_server_stopped_and_running() {
    let mock = TestApp::start("");
    let site = Site::new(mock.upstream.addr());
    let server = site.serve(&[]);
    let body = json!({"username": "alice", "name": "Alice", "email": "alice@example.com", "password": PASSWORD});
    assert_eq!(http::call(site.public, "POST", "/v1/users/register", &[], Some(&body)).status, 200);
    let generate = |words: &[&str]| {
        let ended = site.run(&[&["codes", "generate"], words].concat(), &[]);
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        ended.out
    };
    assert!(generate(&["alice", "10", "--category", "running"]).starts_with("10 codes for alice"));
    assert_eq!(server.terminate(), Some(0));
    generate(&["alice@example.com", "5", "--expires-at", "2099-12-31T23:59:59Z"]);
    assert_eq!(generate(&["--all", "--each", "7"]), "7 codes for each of 1 users\n");
    let unknown = site.run(&["codes", "generate", "nobody", "5"], &[]);
    assert_eq!((unknown.code, unknown.err.contains("there is no user \"nobody\"")), (Some(1), true), "{unknown:?}");
    let stopped = site.run(&["codes", "export", "1"], &[]);
    assert_eq!((stopped.code, stopped.out.lines().count()), (Some(0), 23), "{}", stopped.err);
    let server = site.serve(&[]);
    let running = site.run(&["codes", "export", "alice"], &[]);
    assert_eq!(running.out, stopped.out);
    let file = site.dir.path().join("codes.json");
    let ended = site.run(&["codes", "export", "alice", "json", "--output", file.to_str().unwrap()], &[]);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let items: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(items.as_array().unwrap().len(), 22);
    let body = json!({"email": "alice@example.com", "password": PASSWORD, "unique_code": items[3]["code"]});
    assert_eq!(http::call(site.public, "POST", "/v1/users/login", &[], Some(&body)).status, 200);
    let stats = site.run(&["codes", "stats"], &[]);
    assert_eq!(
        stats.out,
        "users with codes: 1\ntotal: 22\navailable: 21\nused: 1\nexpired: 0\npercent used: 4.545454545454546\n"
    );
    let both = [site.run(&["codes", "stats", "alice"], &[]).out];
    assert_eq!(server.terminate(), Some(0));
    assert_eq!(both, [site.run(&["codes", "stats", "alice"], &[]).out]);
}
