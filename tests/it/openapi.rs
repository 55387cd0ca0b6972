//! The OpenAPI documents: served, complete, and true. Schemathesis reads them and calls the gateway as they say.

use std::process::{Command, Output};

use serde_json::{Value, json};
use tollgate::api::document::listed_routes;
use tollgate::app::documents;

use crate::openai_client::python;
use crate::support::{PASSWORD, TestApp, http};

/// Calls per operation and phase; fuzzing goes on until [`MAX_SECONDS`] are over, and ends then.
const EXAMPLES: &str = "12";
const MAX_SECONDS: &str = "20";

/// What would end the session the run needs, or is a stream without end; each has tests of its own.
const LEFT_OUT: &[&str] = &["/v1/users/logout", "/v1/users/account", "/v1/users/password", "/v1/admin-panel/backup"];

#[test]
fn both_documents_are_served_and_the_page_needs_nothing_from_elsewhere() {
    let app = TestApp::start("");
    let served = |path: &str| {
        let answer = http::call(app.admin, "GET", path, &[], None);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer
    };
    assert_eq!(served("/openapi.json").json(), documents().side);
    assert_eq!(served("/openapi/public.json").json(), documents().public);
    let page = served("/docs/");
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && policy.contains("connect-src 'self'"), "{policy}");
    let text = page.text();
    assert!(!text.contains("//cdn") && !text.contains("https://"), "{text}");
    for part in text.split(['"', '\'']).filter(|part| part.starts_with("./") && part.contains('.')) {
        served(&format!("/docs/{}", &part[2..]));
    }
    assert_eq!(http::call(app.public, "GET", "/openapi.json", &[], None).status, 404);
    assert_eq!(http::call(app.public, "GET", "/docs/", &[], None).status, 404);
}

#[test]
fn every_listed_route_is_served_and_says_so() {
    let app = TestApp::start("[limits]\nper_ip_per_minute = 0\n[access]\nblock_after_failures = 0\n");
    for (document, port) in [(documents().public, app.public), (documents().side, app.admin)] {
        let routes = listed_routes(&document);
        assert!(routes.len() > 8);
        for route in routes {
            let path = route.path.replace("{id}", "999999").replace(['{', '}'], "");
            let answer = http::call(port, &route.method, &path, &[], Some(&json!({})));
            let missing = answer.status == 404 && route.credentials.is_empty() && !path.contains("docs");
            assert!(answer.status != 405 && !missing, "{} {}: {}", route.method, path, answer.status);
            if !route.credentials.is_empty() {
                assert_eq!(answer.status, 401, "{} {} without a credential: {}", route.method, path, answer.text());
            }
        }
    }
}

fn schemathesis(url: &str, document: &Value, token: &str, dir: &std::path::Path) -> Output {
    let file = dir.join("openapi.json");
    std::fs::write(&file, document.to_string()).unwrap();
    let mut command = Command::new(python().with_file_name("schemathesis"));
    command.args(["run", file.to_str().unwrap(), "--url", url]);
    command.args(["--header", &format!("Authorization: Bearer {token}")]);
    command.args([
        "--checks",
        "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
    ]);
    command.args(["--phases", "examples,coverage,fuzzing", "--seed", "7", "--max-examples", EXAMPLES]);
    command.args(["--max-time", MAX_SECONDS, "--warnings", "off", "--no-shrink", "--suppress-health-check", "all"]);
    for path in LEFT_OUT {
        command.args(["--exclude-path", path]);
    }
    command.current_dir(dir).env("NO_PROXY", "*").output().unwrap()
}

#[track_caller]
fn assert_found_nothing(done: &Output) {
    let text = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{text}{}", String::from_utf8_lossy(&done.stderr));
    assert!(text.contains("No issues found"), "nothing was checked: {text}");
}

const OPEN: &str =
    "[limits]\nper_ip_per_minute = 0\n[access]\nblock_after_failures = 0\n[accounts]\nmax_failed_logins = 0\n";

#[test]
fn schemathesis_finds_no_fault_in_what_users_call() {
    let app = TestApp::start(OPEN);
    let user = app.register("alice");
    let body = json!({"email": user.email, "password": PASSWORD});
    let answer = app.call("POST", "/v1/users/login", "", Some(&body)).json();
    let token = answer["session"]["session_token"].as_str().unwrap();
    let dir = tempfile::tempdir().unwrap();
    assert_found_nothing(&schemathesis(&format!("http://{}", app.public), &documents().public, token, dir.path()));
}

#[test]
fn schemathesis_finds_no_fault_in_what_staff_calls() {
    let app = TestApp::start(OPEN);
    for name in ["alice", "bobby", "carol"] {
        app.register(name);
    }
    let token = app.admin_token();
    let dir = tempfile::tempdir().unwrap();
    assert_found_nothing(&schemathesis(&format!("http://{}", app.admin), &documents().side, &token, dir.path()));
}
