//! Users from elsewhere: what they bring, what does not fit, and the way back out.

use serde_json::{Value, json};

use super::process::Site;
use crate::support::{Answer, PASSWORD, TestApp, http};

/// bcrypt of `password123`, cost 4, as `$2b$`.
fn bcrypted() -> String {
    bcrypt::hash("password123", 4).unwrap()
}

/// SHA-256 of `secure_password` with the salt `a1b2`.
fn salted() -> String {
    use sha2::Digest;
    let digest: [u8; 32] = sha2::Sha256::digest(b"a1b2secure_password").into();
    format!("sha256$a1b2${}", digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

fn dump() -> Vec<Value> {
    vec![
        json!({"id": 41, "username": "johndoe", "name": "John Doe", "email": "john@example.com", "type": "Business",
            "password_hash": bcrypted(), "key": "pe-rqrFLve5ZM63ZL1XtREaiLrlrNreu20Y", "is_active": 1,
            "time_created": "2024-01-15 12:00:00", "subscription_plan": "premium",
            "credits": "{\"main\":50, \"reset\":60}", "limits": "{\"conversation_limit\":7, \"reset\":8}"}),
        json!({"username": "jane", "email": "jane@example.com", "full_name": "Jane Roe", "password_hash": salted(),
            "tier": "free", "email_verified": true, "is_admin": true, "preferences": {"theme": "dark"}}),
        json!({"username": "ana", "email": "ana@example.com", "first_name": "Ana", "last_name": "Hoxha",
            "plan": "starter", "status": "suspended", "api_key": "clx_abc123abc123abc123", "credits_balance": 12.5}),
    ]
}

fn import(app: &TestApp, root: &str, query: &str, lines: &[Value]) -> Value {
    let text: Vec<String> = lines.iter().map(Value::to_string).collect();
    let answer = import_text(app, root, query, &text.join("\n"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

fn import_text(app: &TestApp, root: &str, query: &str, text: &str) -> Answer {
    let path = format!("/v1/admin-panel/users/import{query}");
    let bearer = format!("Bearer {root}");
    http::call_raw(app.admin, "POST", &path, &[("authorization", &bearer)], text.as_bytes())
}

fn counts(report: &Value) -> [u64; 4] {
    ["imported", "updated", "skipped", "failed"].map(|name| report[name].as_u64().unwrap_or_else(|| panic!("{report}")))
}

fn login(app: &TestApp, name: &str, password: &str) -> u16 {
    let body = json!({"username": name, "password": password});
    http::call(app.public, "POST", "/v1/users/login", &[], Some(&body)).status
}

fn user(app: &TestApp, root: &str, name: &str) -> Value {
    app.admin_call(root, "GET", &format!("/v1/admin-panel/users/{name}"), None).json()["user"].clone()
}

#[test]
fn users_of_older_systems_come_with_passwords_keys_and_credits() {
    let app = TestApp::start("");
    let root = app.admin_token();
    assert_eq!(counts(&import(&app, &root, "?dry_run=true", &dump())), [3, 0, 0, 0]);
    assert_eq!(app.admin_call(&root, "GET", "/v1/admin-panel/users", None).json()["total"], 0, "nothing was done");
    let report = import(&app, &root, "", &dump());
    assert_eq!(counts(&report), [3, 0, 0, 0], "{report}");
    assert_eq!(report["notes"][0]["line"], 2, "an admin there is none here: {report}");
    assert_eq!((login(&app, "johndoe", "password123"), login(&app, "johndoe", "password124")), (200, 401));
    assert_eq!((login(&app, "jane", "secure_password"), login(&app, "ana", "anything1A")), (200, 401));
    // His old key opens, and pays from what he had.
    let paid = app.chat("pe-rqrFLve5ZM63ZL1XtREaiLrlrNreu20Y", json!({}));
    assert_eq!((paid.status, paid.header("x-tollgate-remaining-conversations")), (200, Some("6")), "{}", paid.text());
    assert_eq!(app.chat("clx_abc123abc123abc123", json!({})).status, 403, "suspended there, suspended here");
    let john = user(&app, &root, "johndoe");
    assert_eq!(
        (john["subscription_plan"].as_str(), john["user_type"].as_str()),
        (Some("professional"), Some("Business"))
    );
    assert_eq!(
        (john["credits"]["main"].as_f64(), john["credits"]["reset"].as_f64()),
        (Some(50.0), Some(60.0)),
        "{john}"
    );
    assert_eq!(john["created_at"], "2024-01-15T12:00:00Z");
    let ana = user(&app, &root, "ana");
    assert_eq!((ana["name"].as_str(), ana["credits"]["main"].as_f64()), (Some("Ana Hoxha"), Some(12.5)), "{ana}");
    assert_eq!(counts(&import(&app, &root, "", &dump())), [0, 0, 3, 0], "again: who is there is left alone");
    assert_eq!(user(&app, &root, "johndoe")["limits"]["conversation_limit"], 6);
    let listed = app.admin_call(&root, "GET", "/v1/admin-panel/users?search=hoxha", None).json();
    assert_eq!(listed["total"], 1, "in the index: {listed}");
    let verified = app.admin_call(&root, "GET", "/v1/admin-panel/ledger/verify", None).json();
    assert_eq!(verified["problems"], 0, "{verified}");
}

#[test]
fn an_import_can_change_who_is_there() {
    let app = TestApp::start("");
    let root = app.admin_token();
    import(&app, &root, "", &dump());
    assert_eq!(login(&app, "johndoe", "password123"), 200);
    let body = json!({"email": "john@example.com", "password": "password123"});
    let session = app.call("POST", "/v1/users/login", "", Some(&body)).json()["session"]["session_token"].clone();
    let session = session.as_str().unwrap();
    assert_eq!(app.call("GET", "/v1/users/profile", session, None).status, 200);
    let changed = json!({"username": "johndoe", "email": "john@example.com", "name": "John Smith", "status": "suspended",
        "password_hash": salted(), "limits": {"conversation_limit": 99}, "plan": "starter"});
    assert_eq!(counts(&import(&app, &root, "?update=true&dry_run=true", std::slice::from_ref(&changed))), [0, 1, 0, 0]);
    assert_eq!(user(&app, &root, "johndoe")["name"], "John Doe");
    assert_eq!(counts(&import(&app, &root, "?update=true", &[changed])), [0, 1, 0, 0]);
    // The old password opens nothing any more, nor does what it opened.
    assert_eq!(app.call("GET", "/v1/users/profile", session, None).status, 401);
    let john = user(&app, &root, "johndoe");
    assert_eq!((john["name"].as_str(), john["limits"]["conversation_limit"].as_u64()), (Some("John Smith"), Some(99)));
    assert_eq!((john["subscription_plan"].as_str(), john["status"].as_str()), (Some("starter"), Some("suspended")));
    assert_eq!((login(&app, "johndoe", "password123"), login(&app, "johndoe", "secure_password")), (401, 403));
}

#[test]
fn lines_that_do_not_fit_are_named_and_the_others_go_on() {
    let app = TestApp::start("");
    let root = app.admin_token();
    app.register("taken");
    let key = "pe-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    let lines = [
        json!({"username": "good", "email": "good@example.com", "api_key": key}),
        json!({"username": "x", "email": "not an address", "plan": "platinum", "password_hash": "$2b$31$short"}),
        json!({"username": "taken", "email": "else@example.com"}),
        json!({"username": "else", "email": "taken@example.com"}),
        json!({"username": "GOOD", "email": "twin@example.com"}),
        json!({"username": "thief", "email": "thief@example.com", "api_key": key}),
        json!({"username": "plain", "email": "plain@example.com", "password": "SecretPass77"}),
        json!({"username": "late", "email": "late@example.com"}),
    ];
    let report = import(&app, &root, "", &lines);
    assert_eq!(counts(&report), [2, 0, 0, 6], "{report}");
    let of = |line: u64| {
        let found = report["errors"].as_array().unwrap().iter().find(|error| error["line"] == line);
        found.unwrap_or_else(|| panic!("{line}: {report}"))["errors"].clone()
    };
    let fields: Vec<String> =
        of(2).as_array().unwrap().iter().map(|text| text.as_str().unwrap().split(':').next().unwrap().into()).collect();
    assert_eq!(fields, ["username", "email", "subscription_plan", "password_hash"]);
    assert_eq!(of(3)[0], "username: is taken, with another email");
    assert_eq!(of(4)[0], "email: is registered already, with another username");
    assert_eq!(
        (of(5)[0].as_str(), of(6)[0].as_str()),
        (Some("username or email: stands in an earlier line too"), Some("api_key: stands in an earlier line too"))
    );
    assert!(!report.to_string().contains("SecretPass77"));
    let again = import(&app, &root, "", &[json!({"username": "thief", "email": "thief@example.com", "api_key": key})]);
    assert_eq!(again["errors"][0]["errors"][0], "api_key: is another user's already");
    assert_eq!(import_text(&app, &root, "", &"{}\n".repeat(251)).status, 400);
    assert_eq!(import_text(&app, &root, "?update=maybe", "{}").status, 400);
}

#[test]
fn what_is_exported_is_imported_elsewhere_as_it_was() {
    let pepper = "[accounts]\npepper = \"0123456789012345678901234567890123456789\"\n";
    let (here, there) = (TestApp::start(pepper), TestApp::start(pepper));
    let (root, other) = (here.admin_token(), there.admin_token());
    import(&here, &root, "", &dump());
    here.register("native");
    assert_eq!(here.admin_call(&root, "DELETE", "/v1/admin-panel/users/ana", None).status, 200);
    let export = |app: &TestApp, root: &str, query: &str| {
        let answer = app.admin_call(root, "GET", &format!("/v1/admin-panel/users/export{query}"), None);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.text()
    };
    let text = export(&here, &root, "?hashes=true");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3, "deleted ones are not in it");
    assert!(!text.contains("pe-rqrF"), "nor are keys");
    assert!(!export(&here, &root, "").contains("password_hash"));
    assert_eq!(counts(&import(&there, &other, "", &lines)), [3, 0, 0, 0]);
    let without_number = |text: &str| -> Vec<Value> {
        let line = |line: &str| {
            let mut value: Value = serde_json::from_str(line).unwrap();
            value["id"] = Value::Null;
            value
        };
        text.lines().map(line).collect()
    };
    assert_eq!(without_number(&export(&there, &other, "?hashes=true")), without_number(&text));
    assert_eq!((login(&there, "native", PASSWORD), login(&there, "johndoe", "password123")), (200, 200));
    // Under another pepper the hash would open nothing, and that is said before it is too late.
    let stranger = TestApp::start("");
    let report = import(&stranger, &stranger.admin_token(), "", &lines);
    assert_eq!(counts(&report), [2, 0, 0, 1], "{report}");
    assert!(report["errors"][0]["errors"][0].as_str().unwrap().contains("another pepper"), "{report}");
    // Attack 22: a name that a spreadsheet would run.
    let evil = json!({"username": "evil", "email": "evil@example.com", "name": "=HYPERLINK(\"http://x\")"});
    import(&here, &root, "", &[evil]);
    let csv = export(&here, &root, "?format=csv");
    assert!(csv.contains(",\"'=HYPERLINK(\"\"http://x\"\")\","), "{csv}");
    assert_eq!(csv.lines().count(), 5);
}

#[test]
fn commands_import_and_export_with_the_server_stopped_and_running() {
    let mock = TestApp::start("");
    let site = Site::new(mock.upstream.addr());
    let file = site.dir.path().join("users.jsonl");
    let many = (0..600).map(|n| json!({"username": format!("user-{n}"), "email": format!("user-{n}@example.com")}));
    let lines: Vec<String> =
        many.chain([json!({"username": "1", "email": "x"})]).map(|line| line.to_string()).collect();
    std::fs::write(&file, lines.join("\n") + "\n\n").unwrap();
    let words = ["users", "import", file.to_str().unwrap()];
    let none = site.run(&words, &[]);
    assert_eq!(none.code, Some(1), "there is no store yet: {none:?}");
    let server = site.serve(&[]);
    assert_eq!(server.terminate(), Some(0));
    let dry = site.run(&[&words[..], &["--dry-run"]].concat(), &[]);
    assert_eq!(dry.out, "would be imported: 600\nwould be updated: 0\nthere already: 0\nfailed: 1\n", "{}", dry.err);
    let stopped = site.run(&words, &[]);
    assert_eq!(
        (stopped.code, stopped.out.as_str()),
        (Some(1), "imported: 600\nupdated: 0\nthere already: 0\nfailed: 1\n")
    );
    assert!(stopped.err.contains("line 601: username: "), "{}", stopped.err);
    std::fs::write(&file, lines[..600].join("\n").replace("user-", "more-")).unwrap();
    let server = site.serve(&[]);
    let running = site.run(&words, &[]);
    assert_eq!(
        (running.code, running.out.as_str()),
        (Some(0), "imported: 600\nupdated: 0\nthere already: 0\nfailed: 0\n"),
        "{}",
        running.err
    );
    let through = site.run(&["users", "export"], &[]).out;
    assert_eq!(through.lines().count(), 1200);
    assert_eq!(server.terminate(), Some(0));
    let out = site.dir.path().join("out.csv");
    let ended = site.run(&["users", "export", "csv", "--output", out.to_str().unwrap()], &[]);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert_eq!(std::fs::read_to_string(out).unwrap().lines().count(), 1201);
    assert_eq!(site.run(&["users", "export"], &[]).out, through);
    assert_eq!(site.run(&["ledger", "verify"], &[]).code, Some(0));
    assert_eq!(site.run(&["audit", "verify"], &[]).code, Some(0));
}
