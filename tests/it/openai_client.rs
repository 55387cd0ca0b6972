//! The official OpenAI Python client, unchanged: whoever uses it need only change its base URL and key.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::{TestApp, TestUser};

pub const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The interpreter that has the client, as `make test` says or where it puts it.
pub fn python() -> PathBuf {
    if let Some(path) = std::env::var_os("TOLLGATE_TEST_PYTHON") {
        return path.into();
    }
    let path = PathBuf::from(ROOT).join("target/venv/bin/python");
    assert!(path.exists(), "no OpenAI client in {}: `make test` installs it there", path.display());
    path
}

fn client_sees(app: &TestApp, key: &str, scenario: &str) -> Value {
    let done = Command::new(python())
        .arg(format!("{ROOT}/tests/it/openai_client.py"))
        .args([&format!("http://{}/v1", app.public), scenario])
        .env("OPENAI_API_KEY", key)
        // Whatever the machine is set up to: the gateway is on this one.
        .env("NO_PROXY", "*")
        .env_remove("OPENAI_BASE_URL")
        .env_remove("OPENAI_ORG_ID")
        .env_remove("OPENAI_PROJECT_ID")
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{scenario}: {err}");
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}"))
}

fn start() -> (TestApp, TestUser) {
    let app = TestApp::start("");
    let user = app.register("alice");
    (app, user)
}

const ANSWER: &str = "You said: Hello from Python and so the simulated service answers with";

#[test]
fn a_plain_answer() {
    let (app, user) = start();
    let seen = client_sees(&app, &user.key, "plain");
    assert_eq!(seen["text"], ANSWER);
    assert_eq!((&seen["model"], &seen["finish_reason"]), (&json!("gpt-4o"), &json!("stop")));
    assert_eq!((&seen["completion_tokens"], &seen["left"]), (&json!(12), &json!("9")));
    let request_id = seen["request_id"].as_str().unwrap();
    assert_eq!(app.upstream.served(request_id), 1, "the id the client reports is the upstream's too");
    let sent = app.upstream.last_request().unwrap();
    assert_eq!(sent.header("authorization"), None, "the user's key stays here");
    assert_eq!(sent.header("x-tollgate-username"), Some(b"alice".as_slice()));
}

#[test]
fn a_stream() {
    let (app, user) = start();
    let seen = client_sees(&app, &user.key, "stream");
    assert_eq!(seen, json!({"text": ANSWER, "events": 14, "usage": null}));
}

#[test]
fn a_stream_with_usage() {
    let (app, user) = start();
    let seen = client_sees(&app, &user.key, "stream_with_usage");
    assert_eq!(seen, json!({"text": ANSWER, "events": 15, "usage": 12}));
    assert_eq!(app.metric("tollgate_tokens_total{direction=\"output\",model=\"gpt-4o\"}"), 12.0);
}

#[test]
fn models_embeddings_and_responses() {
    let (app, user) = start();
    let models = client_sees(&app, &user.key, "models");
    assert!(models["models"].as_array().unwrap().contains(&json!("gpt-4o")), "{models}");
    assert_eq!(models["one"], "gpt-4o");
    let embeddings = client_sees(&app, &user.key, "embeddings");
    assert_eq!((&embeddings["count"], &embeddings["length"]), (&json!(2), &json!(8)));
    assert_eq!(client_sees(&app, &user.key, "responses")["text"], ANSWER);
}

fn failure(app: &TestApp, key: &str) -> Value {
    let mut seen = client_sees(app, key, "failure");
    let request_id = seen.as_object_mut().unwrap().remove("request_id").unwrap();
    assert!(request_id.as_str().unwrap().starts_with("req_"), "{request_id}");
    seen
}

#[test]
fn a_wrong_key_is_an_authentication_error() {
    let (app, _) = start();
    let expected = json!({
        "class": "AuthenticationError", "status": 401, "code": "UNAUTHENTICATED", "type": "authentication_error",
        "param": null, "message": "Invalid or missing credential",
    });
    assert_eq!(failure(&app, "pe-00000000000000000000000000000000"), expected);
    assert_eq!(app.upstream.stats().total, 0);
}

#[test]
fn no_credits_is_a_rate_limit_error_of_the_kind_insufficient_quota() {
    let (app, user) = start();
    let path = format!("/v1/admin-panel/users/{}", user.id);
    app.admin_call(&app.admin_token(), "PUT", &path, Some(&json!({"limits": {"conversation_limit": 0}})));
    let expected = json!({
        "class": "RateLimitError", "status": 429, "code": "CREDITS_EXHAUSTED", "type": "insufficient_quota",
        "param": null, "message": "Insufficient conversation credits",
    });
    assert_eq!(failure(&app, &user.key), expected);
}

#[test]
fn too_many_calls_is_a_rate_limit_error_too() {
    let app = TestApp::start("[limits]\nper_key_per_minute = 1\n");
    let user = app.register("alice");
    assert_eq!(app.chat(&user.key, json!({})).status, 200);
    let seen = failure(&app, &user.key);
    assert_eq!((&seen["class"], &seen["code"]), (&json!("RateLimitError"), &json!("RATE_LIMITED")));
}

#[test]
fn a_suspended_user_gets_a_permission_denied_error() {
    let (app, user) = start();
    app.admin_call(&app.admin_token(), "POST", &format!("/v1/admin-panel/users/{}/suspend", user.id), None);
    let seen = failure(&app, &user.key);
    assert_eq!((&seen["class"], &seen["status"]), (&json!("PermissionDeniedError"), &json!(403)));
}

#[test]
fn an_upstream_that_is_down_is_an_internal_server_error() {
    let app = TestApp::start("upstreams = [{ name = \"ai\", endpoints = [\"http://127.0.0.1:1\"] }]\n");
    let user = app.register("alice");
    let seen = failure(&app, &user.key);
    let expected = json!({
        "class": "InternalServerError", "status": 502, "code": "UPSTREAM_UNREACHABLE", "type": "server_error",
        "param": null, "message": "The upstream service cannot be reached",
    });
    assert_eq!(seen, expected);
}
