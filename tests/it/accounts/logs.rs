//! What was said, as the staff reads it.

use serde_json::{Value, json};

use super::{assert_time, members};
use crate::support::{Options, TestApp, TestUser};

fn logs(app: &TestApp, user: &TestUser, query: &str) -> Value {
    let path = format!("/v1/admin-panel/message-logs/{}{query}", user.id);
    let answer = app.admin_call(&app.admin_token(), "GET", &path, None);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let body = answer.json();
    assert_eq!(members(&body), ["items", "page", "page_size", "total"]);
    body
}

const ANSWER: &str = "You said: Hello and so the simulated service answers with words and";
/// The members of the guide's example.
const DOCUMENTED: [&str; 12] = [
    "id",
    "user_id",
    "username",
    "email",
    "model",
    "messages",
    "research_enabled",
    "r_type",
    "tokens_used",
    "processing_time_ms",
    "ip_address",
    "timestamp",
];

#[test]
fn a_plain_and_a_streaming_call_are_logged_alike() {
    let app = TestApp::with(Options { manual_clock: Some("2024-01-15T12:00:00Z"), ..Options::default() });
    let user = app.register("johndoe");
    let plain = app.chat(&user.key, json!({}));
    let stream = app.chat(&user.key, json!({"stream": true, "stream_options": {"include_usage": true}}));
    assert_eq!((plain.status, stream.status), (200, 200));
    let body = logs(&app, &user, "?page=1");
    assert_eq!(body["total"], 2);
    for (record, answer) in body["items"].as_array().unwrap().iter().zip([&stream, &plain]) {
        for member in DOCUMENTED {
            assert!(record.get(member).is_some(), "{member} in {record}");
        }
        assert_eq!(
            record["messages"],
            json!({
                "request": [{"role": "user", "content": "Hello"}],
                "response": {"role": "assistant", "content": ANSWER},
            })
        );
        assert_eq!((&record["user_id"], &record["username"]), (&json!(user.id), &json!("johndoe")));
        assert_eq!((&record["email"], &record["model"]), (&json!(user.email), &json!("gpt-4o")));
        let usage = plain.json()["usage"]["total_tokens"].clone();
        assert_eq!((&record["tokens_used"], &record["ip_address"]), (&usage, &json!("127.0.0.1")));
        assert_eq!((&record["research_enabled"], &record["r_type"]), (&json!(false), &Value::Null));
        assert_eq!(record["timestamp"], "2024-01-15T12:00:00Z");
        assert!(record["id"].is_u64() && record["processing_time_ms"].is_u64());
        assert_eq!(record["request_id"], answer.header("x-request-id").unwrap());
    }
    let ids: Vec<u64> = body["items"].as_array().unwrap().iter().map(|r| r["id"].as_u64().unwrap()).collect();
    assert!(ids[0] > ids[1], "newest first: {ids:?}");
}

#[test]
fn pages_are_newest_first_and_of_one_user_only() {
    let app = TestApp::start("");
    let (alice, bob) = (app.register("alice"), app.register("bob"));
    for n in 0..5 {
        for user in [&alice, &bob] {
            let said = json!([{"role": "user", "content": format!("{} {n}", user.username)}]);
            assert_eq!(app.chat(&user.key, json!({"messages": said})).status, 200);
        }
    }
    let page = logs(&app, &alice, "?page=2&page_size=2");
    let said: Vec<&Value> =
        page["items"].as_array().unwrap().iter().map(|r| &r["messages"]["request"][0]["content"]).collect();
    assert_eq!((said, &page["total"]), (vec![&json!("alice 2"), &json!("alice 1")], &json!(5)));
    assert_time(&page["items"][0]["timestamp"]);
}

#[test]
fn pages_can_be_narrowed_by_model_and_time() {
    let app = TestApp::with(Options { manual_clock: Some("2024-01-15T12:00:00Z"), ..Options::default() });
    let user = app.register("alice");
    let admin = app.admin_token();
    for (n, model) in ["gpt-4o", "o3", "gpt-4o", "o3", "gpt-4o"].into_iter().enumerate() {
        let said = json!([{"role": "user", "content": format!("{n}")}]);
        assert_eq!(app.chat(&user.key, json!({"model": model, "messages": said})).status, 200);
        // Each is written with its own second.
        assert_eq!(logs(&app, &user, "")["total"], n + 1);
        app.hands.as_ref().unwrap().advance(std::time::Duration::from_secs(60));
    }
    let said = |query: &str| {
        let page = logs(&app, &user, query);
        let items = page["items"].as_array().unwrap();
        let said: Vec<String> =
            items.iter().map(|r| r["messages"]["request"][0]["content"].as_str().unwrap().to_owned()).collect();
        (said.join(" "), page["total"].as_u64().unwrap())
    };
    assert_eq!(said("?model=gpt-4o"), ("4 2 0".into(), 3));
    assert_eq!(said("?model=gpt-4o&page=2&page_size=2"), ("0".into(), 3));
    assert_eq!(said("?model=gpt"), (String::new(), 0));
    assert_eq!(said("?from=2024-01-15T12:02:00Z"), ("4 3 2".into(), 3));
    assert_eq!(said("?to=2024-01-15T12:02:00Z"), ("1 0".into(), 2));
    assert_eq!(said("?from=2024-01-15T13:01:00%2B01:00&to=2024-01-15T13:04:00+01:00&model=o3"), ("3 1".into(), 2));

    for (query, field) in [
        ("?from=yesterday", "from: "),
        ("?to=2024-13-01T00:00:00Z", "to: "),
        ("?from=2024-01-15T12:00:00Z&to=2024-01-15T12:00:00Z", "from: "),
        ("?model=", "model: "),
        (&format!("?model={}", "x".repeat(1025)), "model: "),
    ] {
        let path = format!("/v1/admin-panel/message-logs/{}{query}", user.id);
        let answer = app.admin_call(&admin, "GET", &path, None);
        assert_eq!((answer.status / 100, answer.status == 404), (4, false), "{query}: {}", answer.text());
        let errors = answer.json()["errors"].to_string();
        assert!(errors.contains(field), "{query}: {errors}");
    }
}

#[test]
fn the_address_is_the_client_s_and_not_the_proxy_s() {
    let app = TestApp::start("[access]\ntrusted_proxies = [\"127.0.0.1/32\"]\n");
    let user = app.register("alice");
    let headers = [("x-api-key", user.key.as_str()), ("x-forwarded-for", "6.6.6.6, 203.0.113.9")];
    let body = crate::support::chat_body(json!({}));
    let answer = crate::support::http::call(app.public, "POST", "/v1/chat/completions", &headers, Some(&body));
    assert_eq!(answer.status, 200);
    assert_eq!(logs(&app, &user, "")["items"][0]["ip_address"], "203.0.113.9");
}

#[test]
fn refused_calls_and_credentials_are_not_in_it() {
    let app = TestApp::start("");
    let user = app.register("alice");
    assert_eq!(app.chat("pe-00000000000000000000000000000000", json!({})).status, 401);
    assert_eq!(app.chat(&user.key, json!({})).status, 200);
    let body = logs(&app, &user, "");
    assert_eq!(body["total"], 1);
    assert!(!body.to_string().contains(&user.key));
}

#[test]
fn a_route_or_an_operator_may_keep_no_log() {
    let quiet = "routes = [{ path = \"/v1/*\", upstream = \"ai\", log = false }]\n";
    for toml in [quiet, "[journal]\nenabled = false\n"] {
        let app = TestApp::start(toml);
        let user = app.register("alice");
        assert_eq!(app.chat(&user.key, json!({})).status, 200);
        assert_eq!(logs(&app, &user, "")["total"], 0, "{toml}");
    }
}

#[test]
fn a_user_who_never_was_has_no_log() {
    let app = TestApp::start("");
    let answer = app.admin_call(&app.admin_token(), "GET", "/v1/admin-panel/message-logs/99", None);
    assert_eq!((answer.status, answer.error_code().as_str()), (404, "NOT_FOUND"));
}
