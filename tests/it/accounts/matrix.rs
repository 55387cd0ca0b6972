//! Who may call what: every route of both documents against every kind of caller. A route without a row fails.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tollgate::api::document::listed_routes;
use tollgate::app::documents;

use crate::support::{Answer, PASSWORD, TestApp, http};

/// The least that is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Least {
    Anybody,
    /// A user's session.
    User,
    /// A user's API key, and no session.
    Key,
    /// Either.
    KeyOrUser,
    New,
    Support,
    Advanced,
    Admin,
    Superadmin,
}

use Least::{Admin, Advanced, Anybody, Key, KeyOrUser, New, Superadmin, Support, User};

const PUBLIC: &[(Least, &str)] = &[
    (Anybody, "POST /v1/users/register"),
    (Anybody, "POST /v1/users/login"),
    (Anybody, "POST /v1/users/refresh"),
    (User, "POST /v1/users/logout"),
    (User, "GET /v1/users/profile"),
    (User, "PUT /v1/users/profile"),
    (User, "GET /v1/users/api-key"),
    (User, "POST /v1/users/api-key/regenerate"),
    (User, "POST /v1/users/api-key/reveal"),
    (User, "GET /v1/users/usage"),
    (User, "GET /v1/users/usage/history"),
    (User, "GET /v1/users/quota"),
    (User, "GET /v1/users/codes"),
    (User, "GET /v1/users/sessions"),
    (User, "DELETE /v1/users/sessions"),
    (User, "DELETE /v1/users/sessions/{id}"),
    (User, "PUT /v1/users/password"),
    (User, "PUT /v1/users/email"),
    (User, "DELETE /v1/users/account"),
    (User, "GET /v1/users/keys"),
    (User, "POST /v1/users/keys"),
    (User, "GET /v1/users/keys/{id}"),
    (User, "PUT /v1/users/keys/{id}"),
    (User, "DELETE /v1/users/keys/{id}"),
    (User, "POST /v1/users/keys/{id}/rotate"),
    (User, "POST /v1/users/keys/{id}/reveal"),
    (User, "GET /v1/users/mfa"),
    (User, "POST /v1/users/mfa/setup"),
    (User, "POST /v1/users/mfa/enable"),
    (User, "POST /v1/users/mfa/disable"),
    (User, "POST /v1/users/mfa/recovery-codes"),
    (Anybody, "GET /v1/oauth/providers"),
    (Anybody, "GET /v1/oauth/login/{provider}"),
    (Anybody, "GET /v1/oauth/callback/{provider}"),
    (Anybody, "POST /v1/oauth/exchange"),
    (User, "GET /v1/users/oauth"),
    (User, "POST /v1/users/oauth/link/{provider}"),
    (User, "DELETE /v1/users/oauth/{provider}"),
    (Anybody, "GET /v1/users/verify-email"),
    (Anybody, "POST /v1/users/verify-email"),
    (User, "POST /v1/users/verify-email/resend"),
    (Anybody, "POST /v1/users/forgot-password"),
    (Anybody, "GET /v1/users/reset-password"),
    (Anybody, "POST /v1/users/reset-password"),
    (Anybody, "GET /v1/users/confirm-email"),
    (Anybody, "POST /v1/users/confirm-email"),
    (Anybody, "GET /v1/users/check-email/{email}"),
    (Anybody, "GET /v1/users/check-username/{username}"),
    (Anybody, "GET /.well-known/jwks.json"),
    (KeyOrUser, "GET /v1/usage"),
    (KeyOrUser, "GET /v1/auth/forward"),
    (Key, "POST /v1/auth/verify-key"),
    (Key, "POST /v1/auth/log-message"),
    (Anybody, "POST /api/users/register"),
    (Anybody, "POST /api/users/login"),
    (User, "POST /api/users/logout"),
    (User, "POST /api/users/validate-token"),
    (Key, "POST /api/users/validate-api-key"),
    (KeyOrUser, "GET /api/users/me"),
    (User, "GET /api/users/me/profile"),
    (User, "PUT /api/users/me/profile"),
    (User, "GET /api/users/me/usage"),
    (User, "GET /api/users/me/api-key"),
    (Anybody, "GET /api/users/check-email/{email}"),
    (Anybody, "GET /api/users/check-username/{username}"),
    (Anybody, "POST /api/v2/register"),
    (Anybody, "POST /api/v2/login"),
    (User, "POST /api/v2/logout"),
    (Anybody, "GET /api/v2/verify-email"),
    (Anybody, "POST /api/v2/forgot-password"),
    (Anybody, "POST /api/v2/reset-password"),
    (User, "GET /api/v2/quota/status"),
    (Anybody, "GET /api/oauth/login/{provider}"),
    (Anybody, "GET /api/oauth/callback/{provider}"),
    (Anybody, "POST /api/v1/auth/register"),
    (Anybody, "POST /api/v1/auth/login"),
    (User, "GET /api/v1/auth/profile"),
    (User, "PUT /api/v1/auth/profile"),
    (User, "GET /api/v1/auth/api-key"),
    (User, "POST /api/v1/auth/regenerate-key"),
    (Key, "POST /api/v1/auth/verify-key"),
    (Key, "POST /api/v1/auth/log-message"),
    (Anybody, "GET /health"),
    (Anybody, "POST /noteria/login.php"),
];

const SIDE: &[(Least, &str)] = &[
    (Anybody, "GET /health"),
    (Anybody, "GET /ready"),
    (Anybody, "GET /metrics"),
    (Anybody, "GET /openapi.json"),
    (Anybody, "GET /openapi/public.json"),
    (Anybody, "GET /docs"),
    (Anybody, "GET /docs/"),
    (Anybody, "GET /docs/{file}"),
    (Anybody, "POST /v1/admin-panel/login"),
    (New, "POST /v1/admin-panel/logout"),
    (New, "GET /v1/admin-panel/mfa"),
    (New, "POST /v1/admin-panel/mfa/setup"),
    (New, "POST /v1/admin-panel/mfa/enable"),
    (New, "POST /v1/admin-panel/mfa/disable"),
    (New, "POST /v1/admin-panel/mfa/recovery-codes"),
    (Superadmin, "POST /v1/admin-panel/create-admin"),
    (Admin, "GET /v1/admin-panel/staff"),
    (Admin, "GET /v1/admin-panel/staff/{id}"),
    (Admin, "PUT /v1/admin-panel/staff/{id}"),
    (Admin, "POST /v1/admin-panel/staff/{id}/reset-password"),
    (Admin, "GET /v1/admin-panel/users"),
    (Admin, "GET /v1/admin-panel/users/{id}"),
    (Admin, "PUT /v1/admin-panel/users/{id}"),
    (Superadmin, "DELETE /v1/admin-panel/users/{id}"),
    (Superadmin, "POST /v1/admin-panel/users/{id}/restore"),
    (Admin, "GET /v1/admin-panel/users/{id}/usage"),
    (Admin, "GET /v1/admin-panel/usage"),
    (Admin, "GET /v1/admin-panel/config"),
    (Admin, "PUT /v1/admin-panel/users/{id}/plan"),
    (Admin, "PUT /v1/admin-panel/users/{id}/verify"),
    (Admin, "PUT /v1/admin-panel/users/{id}/status"),
    (Admin, "POST /v1/admin-panel/users/{id}/suspend"),
    (Admin, "POST /v1/admin-panel/users/{id}/activate"),
    (Admin, "POST /v1/admin-panel/users/{id}/ban"),
    (Admin, "POST /v1/admin-panel/users/{id}/credits"),
    (Admin, "POST /v1/admin-panel/users/{id}/keys/regenerate"),
    (Admin, "GET /v1/admin-panel/users/{id}/keys"),
    (Admin, "DELETE /v1/admin-panel/users/{id}/keys/{key}"),
    (Admin, "GET /v1/admin-panel/users/{id}/sessions"),
    (Admin, "DELETE /v1/admin-panel/users/{id}/sessions"),
    (Superadmin, "POST /v1/admin-panel/users/import"),
    (Superadmin, "GET /v1/admin-panel/users/export"),
    (Admin, "GET /v1/admin-panel/users/{id}/codes"),
    (Admin, "POST /v1/admin-panel/users/{id}/codes"),
    (Admin, "DELETE /v1/admin-panel/users/{id}/codes"),
    (Admin, "DELETE /v1/admin-panel/users/{id}/codes/{list}"),
    (Admin, "GET /v1/admin-panel/users/{id}/codes/stats"),
    (Admin, "GET /v1/admin-panel/users/{id}/codes/export"),
    (Admin, "POST /v1/admin-panel/codes"),
    (Admin, "GET /v1/admin-panel/codes/stats"),
    (Admin, "GET /v1/admin-panel/statistics"),
    (Admin, "GET /v1/admin-panel/message-logs/{user_id}"),
    (Admin, "GET /v1/admin-panel/security-logs"),
    (Admin, "GET /v1/admin-panel/security-logs/head"),
    (Anybody, "POST /api/users/login"),
    (Admin, "GET /api/admin/users"),
    (Admin, "GET /api/admin/users/{user_id}"),
    (Admin, "POST /api/admin/users/{user_id}/activate"),
    (Admin, "POST /api/admin/users/{user_id}/suspend"),
    (Admin, "POST /api/admin/users/{user_id}/change-plan"),
    (Admin, "POST /api/admin/users/{user_id}/add-credits"),
    (Admin, "GET /api/admin/stats"),
    (Anybody, "POST /api/v2/login"),
    (Admin, "GET /api/admin/dashboard"),
    (Admin, "GET /api/admin/usage"),
    (Admin, "GET /api/admin/users/{user_id}/usage"),
    (Admin, "POST /api/admin/users/{user_id}/tier"),
    (Admin, "POST /api/admin/users/{user_id}/deactivate"),
    (Anybody, "POST /api/v1/admin/login"),
    (Admin, "GET /api/v1/admin/users"),
    (Admin, "GET /api/v1/admin/users/{username}"),
    (Admin, "PUT /api/v1/admin/users/{username}"),
    (Admin, "POST /api/v1/admin/staff"),
    (Admin, "POST /api/v1/admin/reset-limits"),
    (Anybody, "POST /noteria/login.php"),
    (Admin, "POST /noteria/generate_user_codes.php"),
    (Admin, "GET /noteria/admin_unique_codes.php"),
    (Admin, "POST /noteria/admin_unique_codes.php"),
    (Admin, "GET /noteria/export_user_codes.php"),
    (Admin, "GET /v1/admin-panel/ip-whitelist"),
    (Admin, "POST /v1/admin-panel/ip-whitelist"),
    (Admin, "DELETE /v1/admin-panel/ip-whitelist/{id}"),
    (Admin, "GET /v1/admin-panel/ip-rules"),
    (Admin, "POST /v1/admin-panel/ip-rules"),
    (Admin, "DELETE /v1/admin-panel/ip-rules/{id}"),
    (Admin, "GET /v1/admin-panel/blocks"),
    (Admin, "DELETE /v1/admin-panel/blocks/{address}"),
    (Admin, "POST /v1/admin-panel/reset-limits"),
    (Admin, "GET /v1/admin-panel/ledger/verify"),
    (Superadmin, "GET /v1/admin-panel/backup"),
    (Admin, "GET /v1/admin-panel/health"),
    (Anybody, "POST /v1/support/login"),
    (New, "POST /v1/support/logout"),
    (Admin, "POST /v1/support/create"),
    (New, "GET /v1/support/profile"),
    (New, "GET /v1/support/permissions"),
    (New, "GET /v1/support/users"),
    (New, "GET /v1/support/users/{id}"),
    (Support, "PUT /v1/support/users/{id}"),
    (Support, "POST /v1/support/users/{id}/reset-password"),
    (Support, "PUT /v1/support/users/{id}/credits"),
    (Support, "PUT /v1/support/users/{id}/plan"),
    (Advanced, "GET /v1/support/users/{id}/keys"),
    (Advanced, "POST /v1/support/users/{id}/keys/regenerate"),
    (Advanced, "DELETE /v1/support/users/{id}/keys/{key}"),
    (Advanced, "POST /v1/support/users/{id}/lift-proof-wait"),
    (Advanced, "GET /v1/support/message-logs/{user_id}"),
];

/// Each ends the session that calls it; who is let in is tested where they are.
fn ends_the_caller(path: &str) -> bool {
    path.ends_with("/logout")
}

fn table(document: &Value, rows: &[(Least, &'static str)]) -> Vec<(Least, String, String)> {
    let mut expected: BTreeMap<&str, Least> = rows.iter().map(|(least, route)| (*route, *least)).collect();
    assert_eq!(expected.len(), rows.len(), "a row twice");
    let listed = listed_routes(document).into_iter().map(|route| {
        let name = format!("{} {}", route.method, route.path);
        let least = expected.remove(name.as_str()).unwrap_or_else(|| panic!("{name} has no row in the matrix"));
        (least, route.method, route.path)
    });
    let listed = listed.collect();
    assert!(expected.is_empty(), "rows without a route: {expected:?}");
    listed
}

fn staff_token(app: &TestApp, root: &str, level: &str) -> String {
    let name = format!("{level}-1");
    let email = format!("{name}@example.com");
    let mut body = json!({"username": name, "name": "Staff", "email": email, "password": PASSWORD});
    let path = if level == "admin" {
        "/v1/admin-panel/create-admin"
    } else {
        body["staff_level"] = level.into();
        "/v1/support/create"
    };
    let made = app.admin_call(root, "POST", path, Some(&body));
    assert_eq!(made.status, 200, "{}", made.text());
    let login = json!({"username": name, "password": PASSWORD});
    let answer = http::call(app.admin, "POST", "/v1/support/login", &[], Some(&login));
    answer.json()["session"]["session_token"].as_str().unwrap().to_owned()
}

#[test]
fn every_route_lets_in_whom_it_should_and_nobody_else() {
    let app = TestApp::start(
        "[limits]\nper_ip_per_minute = 0\n[access]\nblock_after_failures = 0\n[accounts]\nmax_failed_logins = 0\n",
    );
    let (alice, bobby) = (app.register("alice"), app.register("bobby"));
    let login = |email: &str| {
        let answer = app.call("POST", "/v1/users/login", "", Some(&json!({"email": email, "password": PASSWORD})));
        answer.json()["session"]["session_token"].as_str().unwrap().to_owned()
    };
    let (session, theirs) = (login(&alice.email), login(&bobby.email));
    let root = app.admin_token();
    let staff: Vec<(Least, String)> = [(New, "new"), (Support, "support"), (Advanced, "advanced"), (Admin, "admin")]
        .into_iter()
        .map(|(least, level)| (least, staff_token(&app, &root, level)))
        .chain([(Superadmin, root.clone())])
        .collect();
    let not_there = |path: &str| {
        path.replace("{id}", "999999")
            .replace("{user_id}", "999999")
            .replace("{key}", "1")
            .replace("{email}", "no.one")
            .replace("{username}", "x")
            .replace("{provider}", "nobody")
            .replace("{file}", "index.css")
            .replace("{list}", "1")
            .replace("{address}", "192.0.2.1")
    };
    let body = json!({});
    let shut = |who: &str, route: &str, answer: &Answer, status: u16| {
        assert_eq!(answer.status, status, "{who} on {route}: {}", answer.text());
    };
    let open = |who: &str, route: &str, answer: &Answer| {
        let refused = matches!(answer.status, 401 | 403 | 405 | 500..);
        assert!(!refused || answer.json()["error_code"] == "WRONG_PASSWORD", "{who} on {route}: {}", answer.text());
    };

    for (least, method, path) in table(&documents().public, PUBLIC) {
        let route = format!("{method} {path}");
        let call = |token: &str| match token {
            "" => http::call(app.public, &method, &not_there(&path), &[], Some(&body)),
            token => app.call(&method, &not_there(&path), token, Some(&body)),
        };
        if least == Anybody {
            // The body is empty, so what they answer is that, and nothing about who asks.
            let answer = call("");
            assert!(matches!(answer.status, 200 | 400 | 404), "anybody on {route}: {}", answer.text());
            continue;
        }
        shut("anonymous", &route, &call(""), 401);
        match least {
            // Not of her whose session replaces her key on the way.
            Key | KeyOrUser => open("a key", &route, &call(&bobby.key)),
            _ => shut("a key", &route, &call(&alice.key), 401),
        }
        for (level, token) in &staff {
            shut(&format!("{level:?}"), &route, &call(token), 401);
        }
        if least == Key {
            shut("a user", &route, &call(&session), 401);
        } else if !ends_the_caller(&path) {
            open("a user", &route, &call(&session));
        }
    }

    for (least, method, path) in table(&documents().side, SIDE) {
        let route = format!("{method} {path}");
        let call = |token: &str| match token {
            "" => http::call(app.admin, &method, &not_there(&path), &[], Some(&body)),
            token => app.admin_call(token, &method, &not_there(&path), Some(&body)),
        };
        if least == Anybody {
            assert!(matches!(call("").status, 200 | 308 | 400), "{route}");
            continue;
        }
        for (who, token) in [("anonymous", ""), ("a user", session.as_str()), ("a key", &alice.key)] {
            shut(who, &route, &call(token), 401);
        }
        for (level, token) in &staff {
            let who = format!("{level:?}");
            if *level < least {
                shut(&who, &route, &call(token), 403);
            } else if !ends_the_caller(&path) {
                open(&who, &route, &call(token));
            }
        }
    }

    // What belongs to somebody else is not there.
    let first = |token: &str, what: &str| {
        app.call("GET", &format!("/v1/users/{what}"), token, None).json()[what][0]["id"].as_u64().unwrap()
    };
    let (key, open_session) = (first(&theirs, "keys"), first(&theirs, "sessions"));
    for (_, method, path) in table(&documents().public, PUBLIC).into_iter().filter(|(_, _, path)| path.contains("{id}"))
    {
        let id = if path.contains("sessions") { open_session } else { key };
        let body = match (method.as_str(), path.ends_with("/reveal")) {
            (_, true) => json!({"password": PASSWORD}),
            ("PUT", _) => json!({"name": "mine"}),
            _ => json!({}),
        };
        let answer = app.call(&method, &path.replace("{id}", &id.to_string()), &session, Some(&body));
        assert_eq!(answer.status, 404, "{method} {path}: {}", answer.text());
    }
    assert_eq!(first(&theirs, "keys"), key);
    assert_eq!(app.chat(&bobby.key, json!({})).status, 200);
}
