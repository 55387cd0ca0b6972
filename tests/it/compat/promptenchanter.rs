//! PromptEnchanter, whose calls are the canonical API, by its guide.

use serde_json::{Value, json};

use super::transcript::{To, Transcript, fits};
use crate::support::{Options, TestApp, wait_until};

const HOST: &str = "https://api.promptenchanter.net";
const ROUTES: &str = "[[routes]]\npath = \"/v1/prompt/*\"\nupstream = \"ai\"\ncost = { conversations = 1 }\n\
    [[routes]]\npath = \"/v1/batch/*\"\nupstream = \"ai\"\ncost = { conversations = 1 }\n";

fn text(answer: &Value, path: &str) -> String {
    answer.pointer(path).and_then(Value::as_str).unwrap_or_else(|| panic!("{path}: {answer}")).to_owned()
}

#[test]
fn every_call_of_its_document_is_answered() {
    let app = TestApp::with(Options { route: ROUTES, ..Options::default() });
    let mut t = Transcript::new(&app);
    let registered = t.curl(
        To::Public,
        HOST,
        r#"curl -X POST "https://api.promptenchanter.net/v1/users/register" \
  -H "Content-Type: application/json" \
  -d '{
    "username": "johndoe",
    "name": "John Doe",
    "email": "john@example.com",
    "password": "SecurePass123",
    "user_type": "Personal",
    "about_me": "AI enthusiast and developer",
    "hobbies": "Programming, reading, hiking"
  }'"#,
    );
    let document = json!({"success": true, "message": "User registered successfully", "user_id": 1,
        "username": "johndoe", "email": "john@example.com", "api_key": "pe-", "verification_required": true});
    fits(&registered, &document);
    let login = t.curl(
        To::Public,
        HOST,
        r#"curl -X POST "https://api.promptenchanter.net/v1/users/login" \
  -H "Content-Type: application/json" \
  -d '{
    "email": "john@example.com",
    "password": "SecurePass123"
  }'"#,
    );
    let document = json!({"success": true, "message": "Login successful", "user": {"id": 1, "username": "johndoe",
        "name": "John Doe", "email": "john@example.com", "user_type": "Personal", "subscription_plan": "free",
        "is_verified": false}, "session": {"session_token": "eyJ", "refresh_token": "eyJ", "expires_at": "",
        "refresh_expires_at": ""}});
    fits(&login, &document);
    t.set("<session_token>", &text(&login.json(), "/session/session_token"));
    let profile = t.curl(
        To::Public,
        HOST,
        "curl \"https://api.promptenchanter.net/v1/users/profile\" \\\n  -H \"Authorization: Bearer <session_token>\"",
    );
    assert_eq!(profile.json()["user"]["name"], "John Doe");
    let updated = t.curl(
        To::Public,
        HOST,
        r#"curl -X PUT "https://api.promptenchanter.net/v1/users/profile" \
  -H "Authorization: Bearer <session_token>" \
  -H "Content-Type: application/json" \
  -d '{
    "name": "John Smith",
    "about_me": "Updated bio",
    "hobbies": "AI, Machine Learning"
  }'"#,
    );
    assert_eq!(updated.json()["user"]["name"], "John Smith");
    t.curl(
        To::Public,
        HOST,
        "curl \"https://api.promptenchanter.net/v1/users/api-key\" \\\n  -H \"Authorization: Bearer <session_token>\"",
    );
    let regenerated = t.curl(
        To::Public,
        HOST,
        "curl -X POST \"https://api.promptenchanter.net/v1/users/api-key/regenerate\" \\\n  -H \"Authorization: Bearer \
         <session_token>\"",
    );
    t.set("pe-rqrFLve5ZM63ZL1XtREaiLrlrNreu20Y", &text(&regenerated.json(), "/api_key"));
    let completion = r#"curl "https://api.promptenchanter.net/v1/prompt/completions" \
  -H "Authorization: Bearer pe-rqrFLve5ZM63ZL1XtREaiLrlrNreu20Y" \
  -H "Content-Type: application/json" \
  -d '{
    "level": "medium",
    "messages": [{"role": "user", "content": "Hello"}],
    "r_type": "bpe"
  }'"#;
    let completed = t.curl(To::Public, HOST, completion);
    assert_eq!(completed.header("x-tollgate-remaining-conversations"), Some("9"), "{}", completed.text());
    admin_panel(&app, &mut t);
    support(&mut t);
    others(&mut t);
    insta::assert_snapshot!("promptenchanter", t.text());
}

fn admin_panel(app: &TestApp, t: &mut Transcript<'_>) {
    let root = app.admin_token();
    // `scripts/create_admin.py` is `tollgate create-admin`; a further admin is made by a superadmin's call.
    let admin = json!({"username": "admin", "name": "Admin", "email": "admin@example.com", "password": "AdminPass123"});
    assert_eq!(t.call(To::Side, "POST /v1/admin-panel/create-admin", Some(&root), Some(&admin)).status, 200);
    let login = t.curl(
        To::Side,
        HOST,
        r#"curl -X POST "https://api.promptenchanter.net/v1/admin-panel/login" \
  -H "Content-Type: application/json" \
  -d '{
    "username": "admin",
    "password": "AdminPass123"
  }'"#,
    );
    t.set("<admin_session_token>", &text(&login.json(), "/session/session_token"));
    let list = t.curl(
        To::Side,
        HOST,
        "curl \"https://api.promptenchanter.net/v1/admin-panel/users?page=1&page_size=50\" \\\n  -H \"Authorization: \
         Bearer <admin_session_token>\"",
    );
    fits(&list, &json!({"items": [{"id": 1, "username": "johndoe"}], "page": 1, "page_size": 50, "total": 1}));
    t.curl(
        To::Side,
        HOST,
        "curl \"https://api.promptenchanter.net/v1/admin-panel/users/1\" \\\n  -H \"Authorization: Bearer \
         <admin_session_token>\"",
    );
    let updated = t.curl(
        To::Side,
        HOST,
        r#"curl -X PUT "https://api.promptenchanter.net/v1/admin-panel/users/1" \
  -H "Authorization: Bearer <admin_session_token>" \
  -H "Content-Type: application/json" \
  -d '{
    "subscription_plan": "premium",
    "credits": {"main": 100, "reset": 100},
    "limits": {"conversation_limit": 100, "reset": 100}
  }'"#,
    );
    assert_eq!(updated.json()["user"]["credits"], json!({"main": 100, "reset": 100}), "{}", updated.text());
    let delete = r#"curl -X DELETE "https://api.promptenchanter.net/v1/admin-panel/users/1?reason=Policy violation" \
  -H "Authorization: Bearer <admin_session_token>""#;
    // curl itself refuses the blank of the text in an address.
    let delete = delete.replace("Policy violation", "Policy%20violation");
    assert_eq!(t.curl(To::Side, HOST, &delete).status, 403, "an admin is no superadmin");
    let other = app.register("other");
    let as_root = delete.replace("<admin_session_token>", &root).replace("users/1", &format!("users/{}", other.id));
    assert_eq!(t.curl(To::Side, HOST, &as_root).status, 200);
    t.curl(
        To::Side,
        HOST,
        "curl \"https://api.promptenchanter.net/v1/admin-panel/statistics\" \\\n  -H \"Authorization: Bearer \
         <admin_session_token>\"",
    );
    let logs = t.curl(
        To::Side,
        HOST,
        "curl \"https://api.promptenchanter.net/v1/admin-panel/security-logs?page=1&severity=warning\" \\\n  -H \
         \"Authorization: Bearer <admin_session_token>\"",
    );
    fits(&logs, &json!({"items": [{"action": "user.deleted"}], "total": 1}));
}

fn support(t: &mut Transcript<'_>) {
    let made = t.curl(
        To::Side,
        HOST,
        r#"curl -X POST "https://api.promptenchanter.net/v1/support/create" \
  -H "Authorization: Bearer <admin_session_token>" \
  -H "Content-Type: application/json" \
  -d '{
    "username": "support1",
    "name": "Support Staff 1",
    "email": "support1@company.com",
    "password": "SupportPass123",
    "staff_level": "support"
  }'"#,
    );
    assert_eq!(made.status, 200, "{}", made.text());
    let login = t.curl(
        To::Side,
        HOST,
        r#"curl -X POST "https://api.promptenchanter.net/v1/support/login" \
  -H "Content-Type: application/json" \
  -d '{
    "username": "support1",
    "password": "SupportPass123"
  }'"#,
    );
    t.set("<support_session_token>", &text(&login.json(), "/session/session_token"));
    t.curl(
        To::Side,
        HOST,
        "curl \"https://api.promptenchanter.net/v1/support/users\" \\\n  -H \"Authorization: Bearer \
         <support_session_token>\"",
    );
    let credits = t.curl(
        To::Side,
        HOST,
        r#"curl -X PUT "https://api.promptenchanter.net/v1/support/users/1/credits" \
  -H "Authorization: Bearer <support_session_token>" \
  -H "Content-Type: application/json" \
  -d '{
    "credits": {"main": 50, "reset": 50},
    "limits": {"conversation_limit": 50, "reset": 50}
  }'"#,
    );
    assert_eq!(credits.json()["user"]["limits"], json!({"conversation_limit": 50, "reset": 50}), "{}", credits.text());
    let reset = t.curl(
        To::Side,
        HOST,
        r#"curl -X POST "https://api.promptenchanter.net/v1/support/users/1/reset-password" \
  -H "Authorization: Bearer <support_session_token>" \
  -H "Content-Type: application/json" \
  -d '{
    "new_password": "NewSecurePass123"
  }'"#,
    );
    assert_eq!(reset.status, 200, "{}", reset.text());
    let rule = t.curl(
        To::Side,
        HOST,
        r#"curl -X POST "https://api.promptenchanter.net/v1/admin-panel/ip-whitelist" \
  -H "Authorization: Bearer <admin_session_token>" \
  -H "Content-Type: application/json" \
  -d '{
    "ip_address": "192.168.1.100",
    "description": "Office network",
    "expires_at": "2036-12-31T23:59:59Z"
  }'"#,
    );
    assert_eq!(rule.status, 200, "{}", rule.text());
    let logs = t.curl(
        To::Side,
        HOST,
        "curl \"https://api.promptenchanter.net/v1/admin-panel/message-logs/1?page=1\" \\\n  -H \"Authorization: Bearer \
         <admin_session_token>\"",
    );
    let structure = json!({"id": 1, "user_id": 1, "username": "johndoe", "email": "john@example.com", "model": "gpt-4o",
        "messages": {"request": [{"role": "user", "content": "Hello"}], "response": {"role": "assistant",
        "content": ""}}, "research_enabled": false, "r_type": "bpe", "tokens_used": 25, "processing_time_ms": 1500,
        "ip_address": "192.168.1.100", "timestamp": ""});
    fits(&logs, &json!({"items": [structure], "total": 1}));
    let said = &logs.json()["items"][0];
    assert_eq!(
        (&said["r_type"], &said["messages"]["request"][0]["content"]),
        (&json!("bpe"), &json!("Hello")),
        "{said}"
    );
}

/// The calls of the lists at the end, for which the text has no lines.
fn others(t: &mut Transcript<'_>) {
    let body = json!({"email": "john@example.com", "password": "NewSecurePass123"});
    let login = t.call(To::Public, "POST /v1/users/login", None, Some(&body)).json();
    let token = text(&login, "/session/session_token");
    let change = json!({"current_password": "NewSecurePass123", "new_password": "AnotherPass123"});
    assert_eq!(t.call(To::Public, "PUT /v1/users/password", Some(&token), Some(&change)).status, 200);
    let renew = json!({"refresh_token": text(&login, "/session/refresh_token")});
    let renewed = t.call(To::Public, "POST /v1/users/refresh", None, Some(&renew)).json();
    let token = text(&renewed, "/session/session_token");
    let change = json!({"new_email": "john@example.org", "password": "AnotherPass123"});
    assert_eq!(t.call(To::Public, "PUT /v1/users/email", Some(&token), Some(&change)).status, 200);
    let batch = json!({"requests": [{"messages": [{"role": "user", "content": "Hello"}]}]});
    assert_eq!(t.call(To::Public, "POST /v1/batch/process", Some(&token), Some(&batch)).status, 200);
    for (what, who) in [
        ("GET /v1/admin-panel/health", "<admin_session_token>"),
        ("GET /v1/support/profile", "<support_session_token>"),
        ("GET /v1/support/permissions", "<support_session_token>"),
        ("GET /v1/support/users/1", "<support_session_token>"),
    ] {
        let line = format!("curl \"{HOST}{}\" -H \"Authorization: Bearer {who}\"", what.split_once(' ').unwrap().1);
        assert_eq!(t.curl(To::Side, HOST, &line).status, 200, "{what}");
    }
    for (path, body) in
        [("users/1", r#"{"email": "john@example.net"}"#), ("users/1/plan", r#"{"subscription_plan": "free"}"#)]
    {
        let line = format!(
            "curl -X PUT \"{HOST}/v1/support/{path}\" -H \"Authorization: Bearer <support_session_token>\" -d '{body}'"
        );
        let done = t.curl(To::Side, HOST, &line);
        assert_eq!(done.status, 200, "{path}: {}", done.text());
    }
    assert_eq!(t.call(To::Public, "POST /v1/users/logout", Some(&token), None).status, 200);
    let body = json!({"email": "john@example.net", "password": "AnotherPass123"});
    let token = text(&t.call(To::Public, "POST /v1/users/login", None, Some(&body)).json(), "/session/session_token");
    let gone = json!({"password": "AnotherPass123"});
    assert_eq!(t.call(To::Public, "DELETE /v1/users/account", Some(&token), Some(&gone)).status, 200);
}

#[test]
fn who_has_no_credits_left_reads_the_documented_refusal() {
    let app = TestApp::start("[plans.free.meters.conversations]\ngrant = 0\nreset = 10\nperiod = \"daily\"\n");
    let user = app.register("ana");
    let refused = app.chat(&user.key, json!({}));
    assert_eq!(refused.status, 429);
    let document = json!({"message": "Insufficient conversation credits", "error_code": "CREDITS_EXHAUSTED",
        "limits": {"conversation_limit": 0, "reset": 10}});
    fits(&refused, &document);
    let got = refused.json();
    for field in ["message", "error_code"] {
        assert_eq!(got[field], document[field]);
    }
    assert_eq!((&got["limits"]["conversation_limit"], &got["limits"]["reset"]), (&json!(0), &json!(10)));
    fits(
        &refused,
        &json!({"success": false, "errors": [""], "details": {"request_id": "req_123456", "timestamp": ""}}),
    );
}

/// What the requests of this system say besides, for the conversation's record.
#[test]
fn what_a_request_says_of_its_kind_is_recorded_while_the_dialect_is_on() {
    for (toml, r_type, research) in
        [("", json!("tot"), true), ("[compat]\npromptenchanter = false\n", json!(null), false)]
    {
        let app = TestApp::with(Options { route: ROUTES, toml: toml.into(), ..Options::default() });
        let (user, root) = (app.register("ana"), app.admin_token());
        let body = json!({"level": "high", "messages": [{"role": "user", "content": "Hi"}], "r_type": "tot",
            "research_model": true});
        assert_eq!(app.call("POST", "/v1/prompt/completions", &user.key, Some(&body)).status, 200);
        let path = format!("/v1/admin-panel/message-logs/{}", user.id);
        let logs = || app.admin_call(&root, "GET", &path, None).json();
        wait_until("the call is recorded", || logs()["items"][0].is_object());
        let said = &logs()["items"][0];
        assert_eq!((&said["r_type"], &said["research_enabled"]), (&r_type, &json!(research)), "{said}");
    }
}
