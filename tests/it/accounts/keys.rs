//! Named keys over sockets: what narrows them, rotation, and the vault.

use serde_json::{Value, json};

use crate::support::{Options, PASSWORD, TestApp, http, wait_until};

fn login(app: &TestApp, email: &str) -> String {
    let answer = app.call("POST", "/v1/users/login", "", Some(&json!({"email": email, "password": PASSWORD})));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["session"]["session_token"].as_str().unwrap().to_owned()
}

fn make(app: &TestApp, token: &str, body: Value) -> (u64, String) {
    let answer = app.call("POST", "/v1/users/keys", token, Some(&body));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer = answer.json();
    (answer["key"]["id"].as_u64().unwrap(), answer["api_key"].as_str().unwrap().to_owned())
}

fn calls(app: &TestApp, key: &str, model: &str) -> u16 {
    app.chat(key, json!({"model": model})).status
}

#[test]
fn a_named_key_opens_at_once_and_no_further_than_it_says() {
    let app = TestApp::with(Options {
        route: "[[routes]]\npath = \"/v1/*\"\nupstream = \"ai\"\nscope = \"chat\"\ncost = { conversations = 1 }\n",
        ..Options::default()
    });
    let user = app.register("alice");
    let token = login(&app, &user.email);
    let (_, open) = make(&app, &token, json!({"name": "open"}));
    assert!(open.starts_with("pe-") && open.len() == 35);
    assert_eq!(calls(&app, &open, "gpt-4o"), 200);
    let (_, scoped) = make(&app, &token, json!({"name": "images", "scopes": ["images"]}));
    assert_eq!(calls(&app, &scoped, "gpt-4o"), 403);
    let (_, chat) = make(&app, &token, json!({"name": "chat", "scopes": ["chat"], "models": ["gpt-4*"]}));
    assert_eq!((calls(&app, &chat, "gpt-4o"), calls(&app, &chat, "o1")), (200, 403));
    let (_, elsewhere) = make(&app, &token, json!({"name": "office", "cidrs": ["10.0.0.0/8"]}));
    assert_eq!(calls(&app, &elsewhere, "gpt-4o"), 403);
    let (_, slow) = make(&app, &token, json!({"name": "slow", "per_minute": 1}));
    assert_eq!((calls(&app, &slow, "gpt-4o"), calls(&app, &slow, "gpt-4o")), (200, 429));
    // What is taken away from a key is taken away at once.
    let (id, narrowed) = make(&app, &token, json!({"name": "narrowed"}));
    assert_eq!(calls(&app, &narrowed, "gpt-4o"), 200);
    let path = format!("/v1/users/keys/{id}");
    assert_eq!(app.call("PUT", &path, &token, Some(&json!({"models": ["o1"]}))).status, 200);
    assert_eq!(calls(&app, &narrowed, "gpt-4o"), 403);
    assert_eq!(app.call("DELETE", &path, &token, None).status, 200);
    assert_eq!(calls(&app, &narrowed, "o1"), 401);
}

#[test]
fn a_key_expires_and_a_rotated_one_goes_on_for_its_grace() {
    let app = TestApp::with(Options { manual_clock: Some("2026-01-15T12:00:00Z"), ..Options::default() });
    let user = app.register("alice");
    let token = login(&app, &user.email);
    let hands = app.hands.as_ref().unwrap();
    let (short_id, short) = make(&app, &token, json!({"name": "short", "expires_at": "2026-01-15T12:10:00Z"}));
    let (id, old) = make(&app, &token, json!({"name": "laptop", "models": ["gpt-4*"]}));
    let rotate = |id: u64, body: Value| app.call("POST", &format!("/v1/users/keys/{id}/rotate"), &token, Some(&body));
    let answer = rotate(id, json!({"grace_seconds": 300})).json();
    let new = answer["api_key"].as_str().unwrap();
    assert_eq!(answer["key"]["models"], json!(["gpt-4*"]));
    assert_eq!((calls(&app, &old, "gpt-4o"), calls(&app, new, "gpt-4o")), (200, 200));
    assert_eq!(rotate(id, json!({})).status, 409, "once is enough");
    hands.advance(std::time::Duration::from_secs(301));
    assert_eq!((calls(&app, &old, "gpt-4o"), calls(&app, new, "gpt-4o")), (401, 200));
    assert_eq!(calls(&app, &short, "gpt-4o"), 200);
    hands.advance(std::time::Duration::from_secs(300));
    assert_eq!(calls(&app, &short, "gpt-4o"), 401);
    // Prolonged, it opens again at once.
    let path = format!("/v1/users/keys/{short_id}");
    assert_eq!(app.call("PUT", &path, &token, Some(&json!({"expires_at": null}))).status, 200);
    assert_eq!(calls(&app, &short, "gpt-4o"), 200);
    // Without a grace the old one is dead before the answer.
    let answer = rotate(short_id, json!({})).json();
    assert_eq!((calls(&app, &short, "o1"), calls(&app, answer["api_key"].as_str().unwrap(), "o1")), (401, 200));
    assert_eq!(rotate(id, json!({"grace_seconds": 99_999_999})).status, 400);
}

#[test]
fn rotation_is_no_way_to_more_keys() {
    let app = TestApp::start("[accounts.keys]\nmax_per_user = 2\n");
    let user = app.register("alice");
    let token = login(&app, &user.email);
    let (id, _) = make(&app, &token, json!({"name": "laptop"}));
    let rotate = |id: u64, grace: u64| {
        let body = json!({"grace_seconds": grace});
        app.call("POST", &format!("/v1/users/keys/{id}/rotate"), &token, Some(&body))
    };
    // At the bound a key can still be rotated, and what is on its way out cannot be kept.
    let first = rotate(id, 300);
    assert_eq!(first.status, 200, "{}", first.text());
    let stay = json!({"expires_at": null});
    assert_eq!(app.call("PUT", &format!("/v1/users/keys/{id}"), &token, Some(&stay)).status, 409);
    let second = rotate(first.json()["key"]["id"].as_u64().unwrap(), 300);
    assert_eq!(second.status, 200, "{}", second.text());
    let last = second.json()["key"]["id"].as_u64().unwrap();
    assert_eq!(rotate(last, 300).status, 409, "two are on their way out");
    assert_eq!(rotate(last, 0).status, 200);
}

#[test]
fn what_does_not_fit_is_named_and_strangers_keys_are_not_there() {
    let app = TestApp::start("[accounts.keys]\nmax_per_user = 3\n");
    let (alice, bobby) = (app.register("alice"), app.register("bobby"));
    let (mine, theirs) = (login(&app, &alice.email), login(&app, &bobby.email));
    for (body, field) in [
        (json!({}), "name: is required"),
        (json!({"name": "default"}), "name: "),
        (json!({"name": " x"}), "name: "),
        (json!({"name": "x", "scopes": "chat"}), "scopes: must be a list of strings"),
        (json!({"name": "x", "cidrs": ["nonsense"]}), "cidrs: "),
        (json!({"name": "x", "models": ["a*b"]}), "models: "),
        (json!({"name": "x", "per_minute": 0}), "per_minute: "),
        (json!({"name": "x", "per_minute": 4_294_967_296u64}), "per_minute: "),
        (json!({"name": "x", "expires_at": "2020-01-01T00:00:00Z"}), "expires_at: "),
        (json!({"name": "x", "scopes": vec!["a"; 17]}), "scopes: "),
    ] {
        let answer = app.call("POST", "/v1/users/keys", &mine, Some(&body));
        assert_eq!(answer.status, 400, "{body}");
        let error = answer.json()["errors"][0].as_str().unwrap().to_owned();
        assert!(error.starts_with(field), "{body}: {error}");
    }
    let more = json!({"name": "one", "user_id": bobby.id, "id": 7, "created_at": "x"});
    assert_eq!(
        app.call("POST", "/v1/users/keys", &mine, Some(&more)).status,
        400,
        "nothing is taken that is not known"
    );
    let (id, _) = make(&app, &mine, json!({"name": "one"}));
    assert_eq!(app.call("POST", "/v1/users/keys", &mine, Some(&json!({"name": "one"}))).status, 409);
    make(&app, &mine, json!({"name": "two"}));
    assert_eq!(
        app.call("POST", "/v1/users/keys", &mine, Some(&json!({"name": "three"}))).status,
        409,
        "three is the most"
    );
    assert_eq!(app.call("GET", "/v1/users/keys", &theirs, None).json()["keys"].as_array().unwrap().len(), 1);
    for (method, path, body) in [
        ("GET", format!("/v1/users/keys/{id}"), None),
        ("PUT", format!("/v1/users/keys/{id}"), Some(json!({"name": "stolen"}))),
        ("DELETE", format!("/v1/users/keys/{id}"), None),
        ("POST", format!("/v1/users/keys/{id}/rotate"), Some(json!({}))),
        ("POST", format!("/v1/users/keys/{id}/reveal"), Some(json!({"password": PASSWORD}))),
    ] {
        assert_eq!(app.call(method, &path, &theirs, body.as_ref()).status, 404, "{method} {path}");
        assert_eq!(app.call(method, &path, &alice.key, body.as_ref()).status, 401, "a key manages no account");
    }
    let keys = app.call("GET", "/v1/users/keys", &mine, None).json();
    let default = keys["keys"].as_array().unwrap().iter().find(|key| key["name"] == "default").unwrap().clone();
    let path = format!("/v1/users/keys/{}", default["id"]);
    assert_eq!(app.call("DELETE", &path, &mine, None).status, 409);
}

#[test]
fn racing_makers_do_not_pass_the_bound() {
    let app = TestApp::start("[accounts.keys]\nmax_per_user = 5\n");
    let user = app.register("alice");
    let token = login(&app, &user.email);
    let made: usize = std::thread::scope(|scope| {
        let (app, token) = (&app, &token);
        let one = |n: usize| {
            let body = json!({"name": format!("key {n}")});
            usize::from(app.call("POST", "/v1/users/keys", token, Some(&body)).status == 200)
        };
        let threads: Vec<_> = (0..16).map(|n| scope.spawn(move || one(n))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(made, 4, "with the default key, five");
}

#[test]
fn the_vault_gives_a_key_back_for_the_password_alone() {
    let app = TestApp::start("");
    let user = app.register("alice");
    let token = login(&app, &user.email);
    let shown = app.call("GET", "/v1/users/api-key", &token, None).json();
    assert!(shown["key"].as_str().unwrap().starts_with("enc:v1:") && !shown.to_string().contains(&user.key));
    let reveal = |body: Value| app.call("POST", "/v1/users/api-key/reveal", &token, Some(&body));
    assert_eq!(reveal(json!({})).status, 400);
    let wrong = reveal(json!({"password": "WrongPass123"}));
    assert_eq!((wrong.status, wrong.json()["error_code"].as_str().unwrap()), (403, "WRONG_PASSWORD"));
    assert_eq!(reveal(json!({"password": PASSWORD})).json()["api_key"], user.key.as_str());
    let fresh = app.call("POST", "/v1/users/api-key/regenerate", &token, None).json();
    assert_eq!(reveal(json!({"password": PASSWORD})).json()["api_key"], fresh["api_key"]);

    let hashes = TestApp::start("[accounts.keys]\nmode = \"hash_only\"\n");
    let user = hashes.register("alice");
    let token = login(&hashes, &user.email);
    assert_eq!(hashes.call("GET", "/v1/users/api-key", &token, None).json()["key"], Value::Null);
    let body = json!({"password": PASSWORD});
    assert_eq!(hashes.call("POST", "/v1/users/api-key/reveal", &token, Some(&body)).status, 404);
}

#[test]
fn no_key_is_in_what_is_kept() {
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let mut app = TestApp::with(Options { backend: "redb", dir: Some(dir.clone()), ..Options::default() });
    let user = app.register("alice");
    let token = login(&app, &user.email);
    let (id, named) = make(&app, &token, json!({"name": "laptop"}));
    let body = json!({"grace_seconds": 60});
    let rotated = app.call("POST", &format!("/v1/users/keys/{id}/rotate"), &token, Some(&body)).json();
    let metrics = http::call(app.admin, "GET", "/metrics", &[], None).text();
    app.stop();
    let secrets = [user.key.as_str(), &named, rotated["api_key"].as_str().unwrap(), &token, PASSWORD];
    let mut files = vec![dir.path().to_path_buf()];
    let mut looked_at = 0;
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        looked_at += bytes.len();
        for secret in secrets {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{} holds a secret", path.display());
        }
    }
    assert!(looked_at > 10_000 && secrets.iter().all(|secret| !metrics.contains(secret)));
}

#[test]
fn lists_say_when_a_key_was_last_used_also_after_a_restart() {
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let from =
        |moment| Options { backend: "sled", dir: Some(dir.clone()), manual_clock: Some(moment), ..Options::default() };
    let mut app = TestApp::with(from("2026-01-15T12:00:00Z"));
    let user = app.register("alice");
    let token = login(&app, &user.email);
    let (id, key) = make(&app, &token, json!({"name": "laptop", "models": ["gpt-4*"]}));
    let hands = app.hands.clone().unwrap();
    let admin = app.admin_token();
    // Of the named key and of the default one, the same in every list.
    let shown = |app: &TestApp, token: &str, admin: &str| -> (Value, Value) {
        let own = app.call("GET", "/v1/users/keys", token, None).json();
        for side in ["admin-panel", "support"] {
            let staffs = app.admin_call(admin, "GET", &format!("/v1/{side}/users/{}/keys", user.id), None).json();
            assert_eq!(staffs["keys"], own["keys"], "{side}");
        }
        let of = |name: &str| {
            let keys = own["keys"].as_array().unwrap();
            keys.iter().find(|key| key["name"] == name).unwrap()["last_used"].clone()
        };
        let one = app.call("GET", &format!("/v1/users/keys/{id}"), token, None).json();
        assert_eq!(one["key"]["last_used"], of("laptop"));
        let default = app.call("GET", "/v1/users/api-key", token, None).json();
        assert_eq!(default["last_used"], of("default"));
        (of("laptop"), of("default"))
    };
    assert_eq!(shown(&app, &token, &admin), (Value::Null, Value::Null));
    assert_eq!(calls(&app, &key, "gpt-4o"), 200);
    assert_eq!(calls(&app, &token, "gpt-4o"), 200);
    assert_eq!(shown(&app, &token, &admin), (json!("2026-01-15T12:00:00Z"), Value::Null), "a session is no key");
    hands.advance(std::time::Duration::from_secs(30));
    assert_eq!(calls(&app, &key, "gpt-4o"), 200);
    assert_eq!(shown(&app, &token, &admin).0, json!("2026-01-15T12:00:00Z"), "to the minute");
    hands.advance(std::time::Duration::from_secs(40));
    // Also one that is refused what it asks for; not one that nobody has.
    assert_eq!((calls(&app, &key, "o1"), calls(&app, &format!("{key}x"), "gpt-4o")), (403, 401));
    assert_eq!(shown(&app, &token, &admin).0, json!("2026-01-15T12:01:10Z"));
    wait_until("the uses are on disk", || {
        hands.advance(std::time::Duration::from_secs(1));
        app.metric("tollgate_key_uses_total{result=\"written\"}") > 0.0
            && app.metric("tollgate_key_uses_waiting") == 0.0
    });
    assert_eq!(app.metric("tollgate_key_uses_total{result=\"dropped\"}"), 0.0);
    // The default key's use waits when the process ends in good order.
    assert_eq!(calls(&app, &user.key, "gpt-4o"), 200);
    let (laptop, default) = shown(&app, &token, &admin);
    app.stop();
    let app = TestApp::with(from("2026-01-15T18:00:00Z"));
    let token = login(&app, &user.email);
    let admin = app.admin_token();
    assert_eq!(shown(&app, &token, &admin), (laptop, default));
}
