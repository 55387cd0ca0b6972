//! The HTTP layer, one call at a time, without a socket.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;
use utoipa_axum::router::OpenApiRouter;

use super::{Documents, SideState, public_router, side_router};
use crate::accounts::passwords::{Password, Rule};
use crate::accounts::tests::{HERE, PASSWORD, World, holds, world};
use crate::domain::addresses::ClientAddress;
use crate::domain::ids::RequestId;

struct Api {
    world: World,
    public: Router,
    side: Router,
}

fn api(toml: &str) -> Api {
    let world = world(toml);
    let side = SideState {
        accounts: world.accounts.clone(),
        tasks: Vec::new(),
        readiness: Arc::new(|| Ok(())),
        backups: None,
        documents: Arc::new(Documents::default()),
    };
    Api {
        public: public_router(world.accounts.clone(), OpenApiRouter::new()),
        side: side_router(side, OpenApiRouter::new(), Arc::default()),
        world,
    }
}

async fn call(router: &Router, method: &str, path: &str, token: Option<&str>, body: Option<Value>) -> Response<Body> {
    let mut request = Request::builder().method(method).uri(path).extension(ClientAddress(HERE));
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let body = body.map_or(Body::empty(), |json| Body::from(json.to_string()));
    router.clone().oneshot(request.body(body).unwrap()).await.unwrap()
}

async fn json_of(response: Response<Body>) -> (StatusCode, Value) {
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

impl Api {
    async fn public(&self, method: &str, path: &str, token: Option<&str>, body: Option<Value>) -> (u16, Value) {
        let (status, json) = json_of(call(&self.public, method, &format!("/v1/users{path}"), token, body).await).await;
        (status.as_u16(), json)
    }

    async fn side(&self, method: &str, path: &str, token: Option<&str>, body: Option<Value>) -> (u16, Value) {
        let (status, json) =
            json_of(call(&self.side, method, &format!("/v1/admin-panel{path}"), token, body).await).await;
        (status.as_u16(), json)
    }

    async fn register(&self) -> (u64, String) {
        let (status, made) = self.public("POST", "/register", None, Some(john())).await;
        assert_eq!(status, 200, "{made}");
        (made["user_id"].as_u64().unwrap(), made["api_key"].as_str().unwrap().to_owned())
    }

    async fn login(&self) -> Value {
        let body = json!({"email": "john@example.com", "password": PASSWORD});
        let (status, answer) = self.public("POST", "/login", None, Some(body)).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    async fn superadmin(&self) -> String {
        self.world
            .accounts
            .first_superadmin("root", Password::new(PASSWORD).unwrap(), None, Rule::Composition)
            .await
            .unwrap();
        self.staff_token("root").await
    }

    async fn staff_token(&self, username: &str) -> String {
        let body = json!({"username": username, "password": PASSWORD});
        let (status, answer) = self.side("POST", "/login", None, Some(body)).await;
        assert_eq!(status, 200, "{answer}");
        answer["session"]["session_token"].as_str().unwrap().to_owned()
    }

    async fn admin(&self, superadmin: &str) -> String {
        let body = json!({"username": "admin", "name": "Admin", "email": "a@example.com", "password": PASSWORD});
        let (status, answer) = self.side("POST", "/create-admin", Some(superadmin), Some(body)).await;
        assert_eq!((status, &answer["admin"]["role"]), (200, &json!("admin")), "{answer}");
        self.staff_token("admin").await
    }
}

fn john() -> Value {
    json!({
        "username": "johndoe", "name": "John Doe", "email": "john@example.com", "password": PASSWORD,
        "user_type": "Personal", "about_me": "AI enthusiast", "hobbies": "hiking",
        // Not ours to take from a client.
        "role": "admin", "is_admin": true, "credits": 1_000_000, "status": "banned", "email_verified": true, "user_id": 77
    })
}

fn token_of(login: &Value) -> String {
    login["session"]["session_token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_user_registers_logs_in_and_looks_after_himself() {
    let api = api("");
    let (status, made) = api.public("POST", "/register", None, Some(john())).await;
    assert_eq!(status, 200);
    let key = made["api_key"].as_str().unwrap();
    assert!(key.starts_with("pe-") && key.len() == 35);
    let expected = json!({
        "success": true, "message": "User registered successfully", "user_id": 1, "username": "johndoe",
        "email": "john@example.com", "api_key": key, "verification_required": false
    });
    assert_eq!(made, expected);

    let login = api.login().await;
    let expected = json!({
        "id": 1, "username": "johndoe", "name": "John Doe", "email": "john@example.com", "user_type": "Personal",
        "subscription_plan": "free", "is_verified": false
    });
    assert_eq!(
        (&login["success"], &login["message"], &login["user"]),
        (&json!(true), &json!("Login successful"), &expected)
    );
    assert_eq!(login["session"]["expires_at"], "2026-01-16T12:00:00Z");
    assert_eq!(login["session"]["refresh_expires_at"], "2026-02-14T12:00:00Z");
    let token = token_of(&login);

    let (_, profile) = api.public("GET", "/profile", Some(&token), None).await;
    assert_eq!(profile["user"]["about_me"], "AI enthusiast");
    assert_eq!(
        (&profile["user"]["credits"], &profile["user"]["limits"]["conversation_limit"]),
        (&json!({"main": 5, "reset": 5}), &json!(10))
    );
    let update = json!({"name": "John Smith", "about_me": null, "hobbies": "ML", "status": "banned", "unknown": [1]});
    let (status, profile) = api.public("PUT", "/profile", Some(&token), Some(update)).await;
    assert_eq!(
        (status, &profile["user"]["name"], &profile["user"]["about_me"]),
        (200, &json!("John Smith"), &json!("AI enthusiast"))
    );
    assert_eq!(profile["user"]["status"], "active");

    let (_, shown) = api.public("GET", "/api-key", Some(&token), None).await;
    assert_eq!(shown["masked"], json!(format!("{}…", &key[..7])));
    assert!(shown["key"].as_str().is_some_and(|sealed| sealed.starts_with("enc:v1:")));
    let (_, fresh) = api.public("POST", "/api-key/regenerate", Some(&token), None).await;
    assert!(fresh["api_key"].as_str().is_some_and(|k| k.starts_with("pe-") && k != key));

    let (_, usage) = api.public("GET", "/usage", Some(&token), None).await;
    let expected = json!({"balance": 10, "held": 0, "spent": 0, "granted": 10, "reset": 10, "unlimited": false, "period": "daily", "resets_at": "2026-01-16T00:00:00Z"});
    assert_eq!(usage["meters"]["conversations"], expected);
    let (_, quota) = api.public("GET", "/quota", Some(&token), None).await;
    assert_eq!((&quota["quota"]["credits"]["remaining"], &quota["quota"]["credits"]["used"]), (&json!(5), &json!(0)));

    let refresh = json!({"refresh_token": login["session"]["refresh_token"]});
    let (status, renewed) = api.public("POST", "/refresh", None, Some(refresh.clone())).await;
    assert_eq!((status, renewed["session"]["session_token"] != json!(token)), (200, true));
    assert_eq!(api.public("GET", "/profile", Some(&token), None).await.0, 401);
    assert_eq!(api.public("POST", "/refresh", None, Some(refresh)).await.1["session"], renewed["session"]);
    let token = token_of(&renewed);
    assert_eq!(api.public("POST", "/logout", Some(&token), None).await.0, 200);
    assert_eq!(api.public("POST", "/logout", Some(&token), None).await.0, 401);
}

#[tokio::test]
async fn what_does_not_fit_is_named_field_by_field() {
    let api = api("");
    let errors = |body: Value| {
        let api = &api;
        async move {
            let (status, answer) = api.public("POST", "/register", None, Some(body)).await;
            assert_eq!((status, &answer["error_code"]), (400, &json!("BAD_REQUEST")), "{answer}");
            answer["errors"].to_string()
        }
    };
    let told = errors(json!({"username": 5, "email": null, "password": PASSWORD})).await;
    assert!(
        told.contains("username: must be a string")
            && told.contains("name: is required")
            && told.contains("email: is required")
    );
    assert!(!told.contains(PASSWORD));
    let mut bad = john();
    (bad["username"], bad["password"], bad["user_type"]) = (json!("12345"), json!("weak"), json!("Alien"));
    assert!(errors(bad.clone()).await.contains("user_type"));
    bad["user_type"] = json!("Business");
    let told = errors(bad).await;
    assert!(told.contains("must not be a number") && told.contains("at least 1 uppercase"), "{told}");
    let mut bad = john();
    bad["password"] = json!(format!("Aa1{}", "x".repeat(1100)));
    assert!(errors(bad).await.contains("password: at most 1024 bytes"));
    assert!(errors(json!([1, 2])).await.contains("must be a JSON object"));

    for (body, status) in
        [("{\"username\": ", 400), ("", 400), (&"[".repeat(10_000), 400), (&" ".repeat(300 << 10), 413)]
    {
        let request = Request::post("/v1/users/login").body(Body::from(body.to_owned())).unwrap();
        let (got, answer) = json_of(api.public.clone().oneshot(request).await.unwrap()).await;
        assert_eq!(got.as_u16(), status, "{answer}");
        assert_eq!(answer["success"], false);
    }
}

#[tokio::test]
async fn refusals_have_their_status_headers_and_body() {
    let api = api("");
    let request = Request::get("/v1/users/profile").extension(RequestId::from_parts(1, 2)).body(Body::empty()).unwrap();
    let response = api.public.clone().oneshot(request).await.unwrap();
    assert_eq!(response.headers()["www-authenticate"], "Bearer realm=\"tollgate\"");
    assert_eq!(response.headers()["x-request-id"], "req_000000010000000000000002");
    assert_eq!(response.headers()["content-type"], "application/json");
    let (status, body) = json_of(response).await;
    assert_eq!((status.as_u16(), &body["error_code"]), (401, &json!("UNAUTHENTICATED")));
    assert_eq!(
        body["details"],
        json!({"request_id": "req_000000010000000000000002", "timestamp": "2026-01-15T12:00:00Z"})
    );

    let response = call(&api.public, "DELETE", "/v1/users/profile", None, None).await;
    let allow = response.headers()["allow"].to_str().unwrap().to_owned();
    assert!(allow.contains("GET") && allow.contains("PUT"), "{allow}");
    let (status, body) = json_of(response).await;
    assert_eq!((status.as_u16(), &body["error_code"]), (405, &json!("METHOD_NOT_ALLOWED")));
    let (status, body) = api.public("GET", "/nothing", None, None).await;
    assert_eq!((status, &body["error_code"]), (404, &json!("NOT_FOUND")));

    let request = Request::get("/v1/users/profile").header("authorization", "Bearer a").header("x-api-key", "b");
    let (status, _) = json_of(api.public.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()).await;
    assert_eq!(status, 400);
    // The public listener has none of the side port's paths.
    for path in ["/metrics", "/health", "/v1/admin-panel/users", "/v1/admin-panel/login"] {
        assert_eq!(call(&api.public, "GET", path, None, None).await.status(), 404, "{path}");
    }
}

#[tokio::test]
async fn conflicts_locks_and_closed_doors() {
    let api = api("[access]\nblock_after_failures = 0");
    api.register().await;
    let mut other = john();
    other["email"] = json!("JOHN@example.com");
    other["username"] = json!("other");
    let (status, body) = api.public("POST", "/register", None, Some(other)).await;
    assert_eq!((status, &body["error_code"]), (409, &json!("CONFLICT")));
    let wrong = || Some(json!({"email": "john@example.com", "password": "Wrong"}));
    let (_, first) = api.public("POST", "/login", None, wrong()).await;
    let (status, unknown) =
        api.public("POST", "/login", None, Some(json!({"email": "no@example.com", "password": "Wrong"}))).await;
    assert_eq!((status, &unknown["message"]), (401, &first["message"]));
    for _ in 0..4 {
        assert_eq!(api.public("POST", "/login", None, wrong()).await.0, 401);
    }
    let right = json!({"email": "john@example.com", "password": PASSWORD});
    let response = call(&api.public, "POST", "/v1/users/login", None, Some(right)).await;
    assert_eq!(response.headers()["retry-after"], "3600");
    let (status, body) = json_of(response).await;
    assert_eq!((status.as_u16(), &body["error_code"]), (423, &json!("LOCKED")));

    let mut settings = (*api.world.accounts.settings()).clone();
    settings.accounts.registration = false;
    api.world.accounts.reconfigure(settings);
    assert_eq!(api.public("POST", "/register", None, Some(john())).await.0, 403);
}

#[tokio::test]
async fn admins_manage_users() {
    let api = api("");
    let (id, key) = api.register().await;
    let login = api.login().await;
    let root = api.superadmin().await;
    let admin = api.admin(&root).await;
    let (status, list) = api.side("GET", "/users?page=1&page_size=50", Some(&admin), None).await;
    assert_eq!(
        (status, &list["total"], &list["page_size"], &list["items"][0]["username"]),
        (200, &json!(1), &json!(50), &json!("johndoe"))
    );
    let (_, list) = api.side("GET", "/users?page=-3&page_size=1000000000&search=JOHN@", Some(&admin), None).await;
    assert_eq!((&list["total"], &list["page"], &list["page_size"]), (&json!(1), &json!(1), &json!(200)));
    assert_eq!(api.side("GET", "/users?page=x", Some(&admin), None).await.0, 400);

    let body = json!({"subscription_plan": "premium", "credits": {"main": 100, "reset": 100}, "limits": {"conversation_limit": 100, "reset": 100}});
    let (status, put) = api.side("PUT", "/users/1", Some(&admin), Some(body)).await;
    let (_, got) = api.side("GET", "/users/johndoe", Some(&admin), None).await;
    assert_eq!((status, &put["user"]), (200, &got["user"]));
    assert_eq!(got["user"]["subscription_plan"], "professional");
    assert_eq!(got["user"]["credits"], json!({"main": 100, "reset": 100}));
    assert_eq!(got["user"]["meters"]["credits"]["granted"], 100);
    for bad in [
        json!({"credits": {"main": -1}}),
        json!({"credits": 5}),
        json!({"subscription_plan": "gold"}),
        json!({"email": "x"}),
    ] {
        let (status, body) = api.side("PUT", "/users/1", Some(&admin), Some(bad)).await;
        assert_eq!(status, 400, "{body}");
    }

    let (status, body) = api.side("POST", "/users/1/suspend", Some(&admin), Some(json!({"reason": "late"}))).await;
    assert_eq!(
        (status, &body["user"]["status"], &body["user"]["suspended_reason"]),
        (200, &json!("suspended"), &json!("late"))
    );
    let (status, body) = api.public("GET", "/profile", Some(&token_of(&login)), None).await;
    assert_eq!((status, &body["error_code"]), (403, &json!("FORBIDDEN")));
    let (_, body) = api.side("POST", "/users/1/activate", Some(&admin), None).await;
    assert_eq!((&body["message"], &body["user"]["is_active"]), (&json!("User activated"), &json!(true)));
    assert_eq!(api.side("POST", "/users/1/ban", Some(&admin), None).await.0, 200);
    let (_, fresh) = api.side("POST", "/users/1/keys/regenerate", Some(&admin), None).await;
    assert!(fresh["api_key"].as_str().is_some_and(|k| k != key));
    assert_eq!(api.side("POST", "/reset-limits", Some(&admin), Some(json!({"user_id": id}))).await.1["users"], 1);
    assert_eq!(api.side("POST", "/reset-limits", Some(&admin), None).await.0, 200);
    let (_, counts) = api.side("GET", "/statistics", Some(&admin), None).await;
    assert_eq!((&counts["users"]["total"], &counts["users"]["banned"]), (&json!(1), &json!(1)));
    let (status, log) = api.side("GET", "/message-logs/1?page=1", Some(&admin), None).await;
    assert_eq!((status, log), (200, json!({"items": [], "page": 1, "page_size": 50, "total": 0})));
    assert_eq!(api.side("GET", "/message-logs/9", Some(&admin), None).await.0, 404);
    assert_eq!(api.side("GET", "/users/9", Some(&admin), None).await.0, 404);

    assert_eq!(api.side("DELETE", "/users/1?reason=Policy%20violation", Some(&admin), None).await.0, 403);
    assert_eq!(api.side("DELETE", "/users/1?reason=Policy%20violation", Some(&root), None).await.0, 200);
    assert_eq!(api.side("DELETE", "/users/1", Some(&root), None).await.0, 404);
    let (_, gone) = api.side("GET", "/users/1", Some(&admin), None).await;
    assert_eq!(gone["user"]["status"], "deleted");
}

#[tokio::test]
async fn admins_give_take_and_reset() {
    let api = api("");
    let (id, _) = api.register().await;
    let admin = api.admin(&api.superadmin().await).await;
    let credits = |path: &'static str, body: Value| api.side("POST", path, Some(&admin), Some(body));
    let (status, body) = credits("/users/1/credits", json!({"amount": 12.5, "reason": "a gift"})).await;
    assert_eq!((status, &body["success"], &body["user_id"]), (200, &json!(true), &json!(id)), "{body}");
    assert_eq!(body["meters"]["credits"]["balance"], 17.5);
    let (_, body) = credits("/users/johndoe/credits", json!({"meter": "conversations", "amount": -3})).await;
    assert_eq!(
        (&body["meters"]["conversations"]["balance"], &body["meters"]["conversations"]["granted"]),
        (&json!(7), &json!(7))
    );
    let range = "amount: must be a number between -9 and 9 million million";
    let reason = "reason: at most 500 printable characters";
    for (bad, says) in [
        (json!({}), "amount: is required"),
        (json!({"amount": null}), "amount: is required"),
        (json!({"amount": "5"}), range),
        (json!({"amount": 1e13}), range),
        (json!({"amount": -9_223_372_036_855i64}), range),
        (json!({"amount": 18_446_744_073_709_551_615u64}), range),
        (json!({"amount": 0}), "amount: must not be 0"),
        (json!({"amount": 9_223_372_036_854i64}), "amount: the meter cannot hold that much"),
        (json!({"amount": -17.500001}), "amount: no more than 17.5 can be taken"),
        (json!({"amount": 1, "meter": "Credits"}), "meter: must be a meter's name, such as credits"),
        (
            json!({"amount": 1, "meter": "credit"}),
            "meter: there is no such meter; the config has conversations, credits, images, messages, videos",
        ),
        (json!({"amount": 1, "reason": 5}), "reason: must be a string"),
        (json!({"amount": 1, "reason": "x".repeat(501)}), reason),
        (json!({"amount": 1, "reason": "a\nb"}), reason),
    ] {
        let (status, body) = credits("/users/1/credits", bad.clone()).await;
        assert_eq!((status, &body["errors"]), (400, &json!([says])), "{bad}");
    }
    assert_eq!(credits("/users/9/credits", json!({"amount": 1})).await.0, 404);
    let (_, body) = api.side("GET", "/users/1", Some(&admin), None).await;
    assert_eq!(
        (&body["user"]["credits"]["main"], &body["user"]["limits"]["conversation_limit"]),
        (&json!(17.5), &json!(7))
    );

    for whose in [
        json!({"username": "JohnDoe"}),
        json!({"user_id": id}),
        json!({"user_id": id, "username": "johndoe"}),
        json!({}),
    ] {
        credits("/users/1/credits", json!({"amount": 1})).await;
        let (status, body) = credits("/reset-limits", whose.clone()).await;
        assert_eq!((status, &body["users"]), (200, &json!(1)), "{whose}");
        let (_, body) = api.side("GET", "/users/1", Some(&admin), None).await;
        assert_eq!(
            (&body["user"]["credits"]["main"], &body["user"]["limits"]["conversation_limit"]),
            (&json!(5), &json!(10))
        );
    }
    assert_eq!(credits("/reset-limits", json!({"username": "nobody"})).await.0, 404);
    assert_eq!(credits("/reset-limits", json!({"user_id": 9})).await.0, 404);
    assert_eq!(credits("/reset-limits", json!({"user_id": 9, "username": "johndoe"})).await.0, 400);
    assert_eq!(credits("/reset-limits", json!({"user_id": "1"})).await.0, 400);
}

#[tokio::test]
async fn every_panel_path_asks_who_calls() {
    let api = api("[access]\nblock_after_failures = 0");
    let (_, key) = api.register().await;
    let user = token_of(&api.login().await);
    let root = api.superadmin().await;
    let admin = api.admin(&root).await;
    let paths = [
        ("GET", "/users"),
        ("GET", "/users/1"),
        ("PUT", "/users/1"),
        ("DELETE", "/users/1"),
        ("POST", "/users/1/suspend"),
        ("POST", "/users/1/activate"),
        ("POST", "/users/1/ban"),
        ("POST", "/users/1/keys/regenerate"),
        ("POST", "/users/1/credits"),
        ("GET", "/statistics"),
        ("GET", "/message-logs/1"),
        ("GET", "/ip-whitelist"),
        ("POST", "/ip-whitelist"),
        ("DELETE", "/ip-whitelist/1"),
        ("GET", "/ip-rules"),
        ("POST", "/ip-rules"),
        ("DELETE", "/ip-rules/1"),
        ("POST", "/reset-limits"),
        ("GET", "/health"),
        ("POST", "/create-admin"),
    ];
    for (method, path) in paths {
        for token in [None, Some("nonsense"), Some(user.as_str()), Some(key.as_str())] {
            let (status, _) = api.side(method, path, token, Some(json!({}))).await;
            assert_eq!(status, 401, "{method} {path}");
        }
    }
    for (method, path) in [("DELETE", "/users/1"), ("POST", "/create-admin")] {
        assert_eq!(api.side(method, path, Some(&admin), Some(json!({}))).await.0, 403, "{method} {path}");
    }
    // And the other way round: the staff's token is no user's.
    assert_eq!(api.public("GET", "/profile", Some(&root), None).await.0, 401);
}

#[tokio::test]
async fn admins_manage_address_rules() {
    let api = api("");
    let root = api.superadmin().await;
    let body =
        json!({"ip_address": "192.168.1.100", "description": "Office network", "expires_at": "2026-12-31T23:59:59Z"});
    let (status, made) = api.side("POST", "/ip-whitelist", Some(&root), Some(body)).await;
    assert_eq!(status, 200, "{made}");
    let entry = &made["entry"];
    assert_eq!(
        (&entry["ip_address"], &entry["kind"], &entry["created_by"]),
        (&json!("192.168.1.100"), &json!("allow"), &json!("root"))
    );
    assert_eq!(entry["expires_at"], "2026-12-31T23:59:59Z");
    let (_, made) =
        api.side("POST", "/ip-rules", Some(&root), Some(json!({"kind": "deny", "network": "10.0.0.0/8"}))).await;
    assert_eq!((&made["entry"]["network"], &made["entry"]["id"]), (&json!("10.0.0.0/8"), &json!(2)));
    assert!(!api.world.accounts.addresses().admits("10.1.1.1".parse().unwrap(), api.world.accounts.clock().now()));
    assert_eq!(api.side("GET", "/ip-whitelist", Some(&root), None).await.1["total"], 1);
    assert_eq!(api.side("GET", "/ip-rules", Some(&root), None).await.1["total"], 2);
    let bad = [
        json!({"kind": "deny", "network": "10.0.0.0/99"}),
        json!({"kind": "maybe", "network": "10.0.0.0/8"}),
        json!({"network": "10.0.0.1"}),
        json!({"kind": "deny", "network": "10.0.0.1", "expires_at": "2020-01-01T00:00:00Z"}),
        json!({"kind": "deny", "network": "10.0.0.1", "expires_at": 5}),
    ];
    for body in bad {
        assert_eq!(api.side("POST", "/ip-rules", Some(&root), Some(body.clone())).await.0, 400, "{body}");
    }
    assert_eq!(api.side("DELETE", "/ip-whitelist/2", Some(&root), None).await.0, 404);
    assert_eq!(api.side("DELETE", "/ip-rules/2", Some(&root), None).await.0, 200);
    assert_eq!(api.side("DELETE", "/ip-rules/x", Some(&root), None).await.0, 404);
}

#[tokio::test]
async fn the_operator_acts_as_superadmin_and_machines_need_no_token() {
    let api = api("");
    api.register().await;
    let dir = api.world.dir.path();
    api.world.accounts.open_operator(dir, "127.0.0.1:9090".parse().unwrap()).unwrap();
    let token = crate::accounts::operator::read(dir).unwrap().unwrap().token;
    assert_eq!(api.side("DELETE", "/users/1", Some(&token), None).await.0, 200);
    let body = json!({"username": "root", "name": "Root", "email": "r@example.com", "password": PASSWORD});
    let (_, made) = api.side("POST", "/create-admin", Some(&token), Some(body)).await;
    assert_eq!(made["admin"]["role"], "superadmin", "the first of the staff");
    api.world.accounts.close_operator();
    assert_eq!(api.side("GET", "/users", Some(&token), None).await.0, 401);
    assert!(crate::accounts::operator::read(dir).unwrap().is_none());

    let response = call(&api.side, "GET", "/metrics", None, None).await;
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
    let text = response.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&text).contains("tollgate_build_info"));
    assert_eq!(call(&api.side, "GET", "/health", None, None).await.status(), 200);
    assert_eq!(call(&api.side, "GET", "/ready", None, None).await.status(), 200);
    let unready = SideState {
        accounts: api.world.accounts.clone(),
        tasks: Vec::new(),
        readiness: Arc::new(|| Err("the store has failed")),
        backups: None,
        documents: Arc::new(Documents::default()),
    };
    let (status, body) =
        json_of(call(&side_router(unready, OpenApiRouter::new(), Arc::default()), "GET", "/ready", None, None).await)
            .await;
    assert_eq!((status.as_u16(), &body["reason"]), (503, &json!("the store has failed")));
}

#[tokio::test]
async fn no_secret_is_in_the_store() {
    let api = api("");
    let (_, key) = api.register().await;
    let login = api.login().await;
    let root = api.superadmin().await;
    let (_, fresh) = api.public("POST", "/api-key/regenerate", Some(&token_of(&login)), None).await;
    let refresh = json!({"refresh_token": login["session"]["refresh_token"]});
    let (_, renewed) = api.public("POST", "/refresh", None, Some(refresh)).await;
    api.world.hands.advance(Duration::from_secs(1));
    let bytes = api.world.dump();
    assert!(holds(&bytes, "johndoe"), "the dump is not empty");
    let secrets = [
        PASSWORD,
        &key,
        fresh["api_key"].as_str().unwrap(),
        &token_of(&login),
        &token_of(&renewed),
        &root,
        login["session"]["refresh_token"].as_str().unwrap(),
        renewed["session"]["refresh_token"].as_str().unwrap(),
    ];
    for secret in secrets {
        // Nor the part that is random.
        assert!(!holds(&bytes, secret) && !holds(&bytes, &secret[3..]), "{secret}");
    }
}
