//! Lists and counts over all users, from the directory, and what admins change with one call.

use serde_json::{Value, json};

use crate::support::{Options, TestApp, wait_until};

fn start(toml: &str) -> (TestApp, String) {
    let app = TestApp::with(Options {
        toml: toml.to_owned(),
        route: "[[routes]]\npath = \"/v1/*\"\nupstream = \"ai\"\n[[routes]]\npath = \"/v1/models\"\nupstream = \"ai\"\nroles = [\"guest\"]\n",
        ..Options::default()
    });
    let root = app.admin_token();
    wait_until("the directory is read", || app.metric("tollgate_directory_users") >= 0.0);
    (app, root)
}

fn side(app: &TestApp, root: &str, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
    let answer = app.admin_call(root, method, &format!("/v1/admin-panel/{path}"), body.as_ref());
    (answer.status, answer.json())
}

fn names(app: &TestApp, root: &str, query: &str) -> Vec<String> {
    let (status, page) = side(app, root, "GET", &format!("users?{query}"), None);
    assert_eq!(status, 200, "{page}");
    page["items"].as_array().unwrap().iter().map(|user| user["username"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn users_are_found_filtered_and_sorted_as_they_are_now() {
    let (app, root) = start("");
    let ids: Vec<u64> = ["carol", "alice", "bobby"].iter().map(|name| app.register(name).id).collect();
    assert_eq!(names(&app, &root, "sort=username"), ["alice", "bobby", "carol"]);
    assert_eq!(names(&app, &root, "sort=-username&page_size=2"), ["carol", "bobby"]);
    assert_eq!(names(&app, &root, "sort=-id&page=2&page_size=2"), ["carol"]);
    assert_eq!(names(&app, &root, "search=ALI"), ["alice"]);
    let change = |id: u64, path: &str, body: Value| {
        let (status, answer) = side(&app, &root, "PUT", &format!("users/{id}/{path}"), Some(body));
        assert_eq!(status, 200, "{answer}");
    };
    change(ids[0], "plan", json!({"plan": "premium"}));
    change(ids[1], "verify", json!({}));
    change(ids[2], "status", json!({"status": "banned", "reason": "spam"}));
    assert_eq!(names(&app, &root, "plan=professional"), ["carol"]);
    assert_eq!(names(&app, &root, "plan=pro"), ["carol"]);
    assert_eq!(names(&app, &root, "verified=true"), ["alice"]);
    assert_eq!(names(&app, &root, "status=banned&search=example.com"), ["bobby"]);
    assert_eq!(names(&app, &root, "status=active&sort=created_at"), ["carol", "alice"]);
    assert_eq!(
        names(&app, &root, "created_after=2000-01-01T00:00:00Z&has_mfa=false&user_type=Personal&role=user").len(),
        3
    );
    assert_eq!(names(&app, &root, "created_before=2000-01-01T00:00:00Z"), [] as [&str; 0]);
    for bad in [
        "sort=password_hash",
        "sort=id%3Bdrop",
        "status=nice",
        "verified=maybe",
        "created_after=yesterday",
        "role=admin",
    ] {
        assert_eq!(side(&app, &root, "GET", &format!("users?{bad}"), None).0, 400, "{bad}");
    }
    let (_, counts) = side(&app, &root, "GET", "statistics", None);
    let users = &counts["users"];
    assert_eq!((&users["total"], &users["banned"], &users["verified"]), (&json!(3), &json!(1), &json!(1)), "{users}");
    assert_eq!((&users["by_plan"]["professional"], &users["registered_7d"]), (&json!(1), &json!(3)), "{users}");
    // A new name in place of the old.
    let (status, _) = side(&app, &root, "PUT", &format!("users/{}", ids[1]), Some(json!({"email": "new@example.org"})));
    assert_eq!(status, 200);
    assert_eq!(names(&app, &root, "search=example.org"), ["alice"]);
    assert_eq!(names(&app, &root, "search=alice%40example.com"), [] as [&str; 0]);
}

#[test]
fn the_directory_is_there_again_after_a_start() {
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let options = || Options { dir: Some(dir.clone()), backend: "sled", ..Options::default() };
    let mut app = TestApp::with(options());
    for name in ["carol", "alice", "bobby"] {
        app.register(name);
    }
    app.stop();
    drop(app);
    let app = TestApp::with(options());
    wait_until("it is read", || app.metric("tollgate_directory_users") == 3.0);
    let root = app.admin_token();
    wait_until("lists come from it", || side(&app, &root, "GET", "users?sort=username", None).0 == 200);
    assert_eq!(names(&app, &root, "sort=username"), ["alice", "bobby", "carol"]);
}

#[test]
fn a_guest_calls_only_what_names_him() {
    let (app, root) = start("");
    let user = app.register("alice");
    assert_eq!(app.chat(&user.key, json!({})).status, 200);
    assert_eq!(app.call("GET", "/v1/models", &user.key, None).status, 403, "for guests alone");
    let (status, _) = side(&app, &root, "PUT", &format!("users/{}", user.id), Some(json!({"role": "guest"})));
    assert_eq!(status, 200);
    let refused = app.chat(&user.key, json!({}));
    assert_eq!((refused.status, refused.error_code().as_str()), (403, "FORBIDDEN"));
    assert_eq!(app.call("GET", "/v1/models", &user.key, None).status, 200);
}

#[test]
fn a_misspelt_user_does_not_reset_everybody() {
    let (app, root) = start("");
    app.register("alice");
    let (status, answer) = side(&app, &root, "POST", "reset-limits", Some(json!({"user": "alice"})));
    assert_eq!(status, 400, "{answer}");
    assert_eq!(side(&app, &root, "POST", "reset-limits", Some(json!({"username": "alice"}))).1["users"], 1);
    assert_eq!(side(&app, &root, "POST", "reset-limits", None).0, 200);
}

#[test]
fn the_config_is_shown_without_its_secrets() {
    let (app, root) = start("[accounts]\npepper = \"a-pepper-that-nobody-should-ever-read-here\"\n");
    let (status, shown) = side(&app, &root, "GET", "config", None);
    assert_eq!((status, &shown["config"]["accounts"]["registration"]), (200, &json!(true)), "{shown}");
    assert_eq!(shown["config"]["accounts"]["pepper"], "********");
    assert!(!shown.to_string().contains("nobody-should-ever"));
}
