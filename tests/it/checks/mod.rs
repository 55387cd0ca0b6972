//! Checks: apps and proxies that ask about a call instead of passing it on.

mod nginx;

use serde_json::json;

use crate::support::{Answer, Options, PASSWORD, TestApp, TestUser, http};

const TRUSTED: &str = "[access]\ntrusted_proxies = [\"127.0.0.1/32\"]\n";

fn ask(app: &TestApp, target: &str, key: &str, headers: &[(&str, &str)]) -> Answer {
    ask_with(app, "GET", target, key, headers)
}

fn ask_with(app: &TestApp, method: &str, target: &str, key: &str, headers: &[(&str, &str)]) -> Answer {
    let bearer = format!("Bearer {key}");
    let mut all = vec![("authorization", bearer.as_str())];
    all.extend_from_slice(headers);
    http::call(app.public, method, target, &all, None)
}

fn verify(app: &TestApp, user: &TestUser) -> Answer {
    app.call("POST", "/v1/auth/verify-key", &user.key, None)
}

#[test]
fn a_key_is_verified_and_pays_for_it() {
    let app = TestApp::start("");
    let (user, admin) = (app.register("alice"), app.admin_token());
    let answer = verify(&app, &user);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let told = answer.json();
    assert_eq!((told["valid"].as_bool(), told["username"].as_str()), (Some(true), Some("alice")));
    assert_eq!(
        (told["remaining_conversations"].as_f64(), told["remaining"]["credits"].as_f64()),
        (Some(9.0), Some(5.0))
    );
    assert_eq!(told["user_id"].as_u64(), Some(user.id));
    assert_eq!(app.balance(&admin, user.id, "conversations"), 9.0);
    // Ten a day, and not one more, however many ask at once.
    let key = &user.key;
    let answers: Vec<u16> = std::thread::scope(|scope| {
        let app = &app;
        let asking: Vec<_> =
            (0..30).map(|_| scope.spawn(move || app.call("POST", "/v1/auth/verify-key", key, None).status)).collect();
        asking.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(answers.iter().filter(|status| **status == 200).count(), 9);
    assert!(answers.iter().all(|status| [200, 429].contains(status)), "{answers:?}");
    assert_eq!(verify(&app, &user).error_code(), "CREDITS_EXHAUSTED");
    assert_eq!(app.balance(&admin, user.id, "conversations"), 0.0);
}

#[test]
fn only_a_key_that_works_is_valid() {
    let app = TestApp::start("");
    let (user, admin) = (app.register("alice"), app.admin_token());
    for key in ["", "pe-00000000000000000000000000000000"] {
        assert_eq!(app.call("POST", "/v1/auth/verify-key", key, None).status, 401);
    }
    // A session is nobody's to hand to an app.
    let login = app.call("POST", "/v1/users/login", "", Some(&json!({"email": user.email, "password": PASSWORD})));
    let session = login.json()["session"]["session_token"].as_str().unwrap().to_owned();
    assert_eq!(app.call("POST", "/v1/auth/verify-key", &session, None).status, 401);
    assert_eq!(app.call("GET", "/v1/auth/verify-key", &user.key, None).status, 405);
    assert_eq!(verify(&app, &user).status, 200);
    let suspend = format!("/v1/admin-panel/users/{}/suspend", user.id);
    assert_eq!(app.admin_call(&admin, "POST", &suspend, Some(&json!({}))).status, 200);
    assert_eq!(verify(&app, &user).status, 403);
    assert_eq!(ask(&app, "/v1/auth/forward", &user.key, &[]).status, 403);
    assert_eq!(app.balance(&admin, user.id, "conversations"), 9.0);
}

#[test]
fn a_conversation_held_elsewhere_is_kept_like_any_other() {
    let app = TestApp::start("");
    let (user, admin) = (app.register("alice"), app.admin_token());
    let body = json!({
        "model": "gpt-3.5-turbo",
        "messages": [{"role": "user", "content": "Hello there"}, {"role": "assistant", "content": "Hi"}],
        "research_model": true, "input_tokens": 3, "output_tokens": 1,
    });
    let answer = app.call("POST", "/v1/auth/log-message", &user.key, Some(&body));
    assert_eq!((answer.status, answer.json()["logged"].as_bool()), (200, Some(true)), "{}", answer.text());
    let logs = app.admin_call(&admin, "GET", &format!("/v1/admin-panel/message-logs/{}", user.id), None);
    assert!(logs.text().contains("Hello there") && logs.text().contains("gpt-3.5-turbo"), "{}", logs.text());
    assert_eq!(app.balance(&admin, user.id, "conversations"), 10.0);
    // Longer than other local bodies may be.
    let long = json!({"model": "m", "messages": [{"role": "user", "content": "x".repeat(600 << 10)}]});
    assert_eq!(app.call("POST", "/v1/auth/log-message", &user.key, Some(&long)).status, 200);
    for (body, field) in [
        (json!({"messages": []}), "model"),
        (json!({"model": "m"}), "messages"),
        (json!({"model": "m", "messages": "hello"}), "messages"),
    ] {
        let refused = app.call("POST", "/v1/auth/log-message", &user.key, Some(&body));
        assert!(refused.status == 400 && refused.text().contains(field), "{}", refused.text());
    }
    assert_eq!(app.call("POST", "/v1/auth/log-message", "pe-wrong", Some(&body)).status, 401);
}

#[test]
fn a_proxy_learns_who_calls_and_nothing_the_client_made_up() {
    let app = TestApp::start(TRUSTED);
    let user = app.register("alice");
    let forged = [("x-tollgate-user", "1"), ("x-tollgate-username", "root"), ("x-tollgate-plan", "enterprise")];
    let answer = ask(&app, "/v1/auth/forward", &user.key, &forged);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let told = |name: &str| answer.header(name).unwrap_or("-").to_owned();
    assert_eq!((told("x-tollgate-user"), told("x-tollgate-username")), (user.id.to_string(), "alice".into()));
    assert_eq!(told("x-tollgate-plan"), "free");
    assert!(answer.header("x-request-id").is_some_and(|id| id.starts_with("req_")));
    assert_eq!(ask(&app, "/v1/auth/forward", "pe-wrong", &forged).status, 401);
    assert!(ask(&app, "/v1/auth/forward", "pe-wrong", &forged).header("www-authenticate").is_some());
    assert_eq!(app.upstream.stats().total, 0);
}

#[test]
fn rules_say_what_a_proxy_may_let_through_and_what_it_costs() {
    let toml = format!(
        "{TRUSTED}\n[[forward]]\npath = \"/app/*\"\nhosts = [\"app.example.com\"]\ncost = {{ conversations = 2 }}\n
         [[forward]]\npath = \"/app/free\"\nmethods = [\"get\"]\n
         [[forward]]\npath = \"/admin/*\"\nscope = \"admin\"\n"
    );
    let app = TestApp::start(&toml);
    let (user, admin) = (app.register("alice"), app.admin_token());
    let host = ("x-forwarded-host", "app.example.com:443");
    let asked = |uri: &str, method: &str| {
        ask(&app, "/v1/auth/forward", &user.key, &[("x-original-uri", uri), ("x-original-method", method), host])
    };
    let paid = asked("/app/chat?x=/app/free", "POST");
    assert_eq!((paid.status, paid.header("x-tollgate-remaining-conversations")), (200, Some("8")));
    assert_eq!(asked("/app/free", "GET").header("x-tollgate-remaining-conversations"), None);
    // Not GET: the rule for all of /app/.
    assert_eq!(asked("/app/free", "POST").header("x-tollgate-remaining-conversations"), Some("6"));
    assert_eq!(asked("//app/%66ree", "GET").status, 200);
    assert_eq!(asked("/other", "GET").status, 403);
    assert_eq!(asked("/app/../other", "GET").status, 400);
    // What the app behind the proxy may take for a path under another rule.
    for uri in ["/app%2Ffree", "/app/free;x", "/admin%2fx", "/app/%5Cfree", "/app/;/free"] {
        assert_eq!(asked(uri, "GET").status, 400, "{uri}");
    }
    let elsewhere = [("x-original-uri", "/app/chat"), ("x-forwarded-host", "other.example.com")];
    assert_eq!(ask(&app, "/v1/auth/forward", &user.key, &elsewhere).status, 403);
    assert_eq!(ask(&app, "/v1/auth/forward", &user.key, &[]).status, 403);
    // The default key has no scopes, so it may; one that has others may not.
    assert_eq!(asked("/admin/x", "GET").status, 200);
    let login = app.call("POST", "/v1/users/login", "", Some(&json!({"email": user.email, "password": PASSWORD})));
    let session = login.json()["session"]["session_token"].as_str().unwrap().to_owned();
    let made = app.call("POST", "/v1/users/keys", &session, Some(&json!({"name": "chat", "scopes": ["chat"]})));
    let scoped = made.json()["api_key"].as_str().unwrap().to_owned();
    assert_eq!(ask(&app, "/v1/auth/forward", &scoped, &[("x-original-uri", "/admin/x")]).status, 403);
    assert_eq!(app.balance(&admin, user.id, "conversations"), 6.0);
    for _ in 0..3 {
        assert_eq!(asked("/app/chat", "POST").status, 200);
    }
    let refused = asked("/app/chat", "POST");
    assert_eq!((refused.status, refused.error_code().as_str()), (429, "CREDITS_EXHAUSTED"));
}

#[test]
fn a_question_that_contradicts_itself_is_refused() {
    let toml = format!("{TRUSTED}\n[[forward]]\npath = \"/public/*\"\n");
    let app = TestApp::start(&toml);
    let user = app.register("alice");
    let status = |target: &str, headers: &[(&str, &str)]| ask(&app, target, &user.key, headers).status;
    assert_eq!(status("/v1/auth/forward", &[("x-forwarded-uri", "/public/a"), ("x-forwarded-method", "GET")]), 200);
    for (target, headers) in [
        ("/v1/auth/forward", [("x-original-uri", "/secret"), ("x-forwarded-uri", "/public/a")]),
        ("/v1/auth/forward", [("x-forwarded-uri", "/secret"), ("x-forwarded-uri", "/public/a")]),
        ("/v1/auth/forward", [("x-forwarded-uri", "/secret"), ("x_forwarded_uri", "/public/a")]),
        ("/v1/auth/forward/public/a", [("x-forwarded-method", "POST"), ("x-forwarded-uri", "/public/a")]),
        ("/v1/auth/forward/public/a", [("x-forwarded-host", "other.example"), ("x-forwarded-uri", "/public/a")]),
        ("/v1/auth/forward/secret", [("x-forwarded-uri", "/public/a"), ("x-forwarded-method", "GET")]),
    ] {
        assert_eq!(status(target, &headers), 403, "{target} {headers:?}");
    }
}

#[test]
fn a_stranger_cannot_describe_a_request() {
    let app = TestApp::start("[[forward]]\npath = \"/public/*\"\n");
    let user = app.register("alice");
    let answer = ask(&app, "/v1/auth/forward", &user.key, &[("x-original-uri", "/public/a")]);
    assert_eq!(answer.status, 403);
    assert!(answer.text().contains("trusted_proxies"), "{}", answer.text());
}

#[test]
fn an_envoy_sends_the_request_s_own_head() {
    let toml =
        format!("{TRUSTED}\n[[forward]]\npath = \"/app/*\"\nmethods = [\"POST\"]\ncost = {{ conversations = 1 }}\n");
    let app = TestApp::start(&toml);
    let user = app.register("alice");
    let allowed = ask_with(&app, "POST", "/v1/auth/forward/app/chat?a=b", &user.key, &[]);
    assert_eq!((allowed.status, allowed.header("x-tollgate-username")), (200, Some("alice")), "{}", allowed.text());
    assert_eq!(ask_with(&app, "GET", "/v1/auth/forward/app/chat", &user.key, &[]).status, 403);
    // With the beginning of the body, if Envoy is set to send it; the connection goes on.
    let mut conn = crate::support::Conn::open(app.public);
    for _ in 0..2 {
        let body = json!({"model": "m"});
        let bearer = format!("Bearer {}", user.key);
        let answer = conn.call("POST", "/v1/auth/forward/app/chat", &[("authorization", &bearer)], Some(&body));
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

#[test]
fn what_a_check_costs_is_on_disk_before_the_answer() {
    let store = crate::support::stores::SteeredStore::new();
    let app = TestApp::with(Options { store: Some(store.clone()), ..Options::default() });
    let user = app.register("alice");
    let held = store.hold_commits();
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| verify(&app, &user).status);
        crate::support::wait_until("the debit is being written", || store.has_commit_waiting());
        // A look at something else takes longer than an answer that did not wait.
        assert_eq!(http::call(app.public, "GET", "/v1/users/profile", &[], None).status, 401);
        assert!(!asking.is_finished());
        drop(held);
        assert_eq!(asking.join().unwrap(), 200);
    });
}
