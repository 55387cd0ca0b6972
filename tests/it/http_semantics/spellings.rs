//! Spellings of a path: none reaches through a wider route what a narrower one guards.

use serde_json::json;

use super::{PLENTY, send};
use crate::support::{Answer, Options, PASSWORD, TestApp};

/// Every way in which some software reads `/v1/secret`, and the folder below it.
const SPELLINGS: [&str; 28] = [
    "/v1/Secret",
    "/V1/secret",
    "/v1/SECRET",
    "/v1/secret/",
    "/v1/secret//",
    "/v1/secret.",
    "/v1/secret..",
    "/v1/secret%20",
    "/v1/secret%20.",
    "/v1/%20secret",
    "/v1/secret+",
    "/v1/secret;",
    "/v1/secret;a=b",
    "/v1;a/secret",
    "/v1/secret%3Ba",
    "/v1%2Fsecret",
    "/v1%2fsecret",
    "/v1%5csecret",
    "/v1\\secret",
    "/v1/secret\\",
    "/v1/secret%2F",
    "/v1/%2573ecret",
    "/v1/secret%2500",
    "/v1/secret%3Fx",
    "/v1/secret%23x",
    "/v1/%C5%BFecret",
    "/v1%C0%AFsecret",
    "/v1/%EF%BC%B3ecret",
];

fn app(routes: &'static str, more: &str) -> TestApp {
    TestApp::with(Options { toml: format!("{PLENTY}{more}"), route: routes, ..Options::default() })
}

/// A key whose scope is for something else.
fn scoped_key(app: &TestApp) -> String {
    let user = app.register("alice");
    let login = app.call("POST", "/v1/users/login", "", Some(&json!({"email": user.email, "password": PASSWORD})));
    let session = login.json()["session"]["session_token"].as_str().unwrap().to_owned();
    let made = app.call("POST", "/v1/users/keys", &session, Some(&json!({"name": "chat", "scopes": ["chat"]})));
    made.json()["api_key"].as_str().unwrap().to_owned()
}

fn get(app: &TestApp, key: &str, path: &str) -> Answer {
    send(app, key, "GET", path, &[], None)
}

const SCOPED: &str = "[[routes]]\npath = \"/*\"\nupstream = \"ai\"\n\
    [[routes]]\npath = \"/v1/secret\"\nupstream = \"ai\"\nscope = \"secret\"\n\
    [[routes]]\npath = \"/v1/secret/*\"\nupstream = \"ai\"\nscope = \"secret\"\n\
    [[routes]]\npath = \"/v1/Images/*\"\nupstream = \"ai\"\ncost = { conversations = 1 }\n";

#[test]
fn what_a_narrower_route_guards_no_spelling_reaches() {
    let app = app(SCOPED, "");
    let key = scoped_key(&app);
    assert_eq!(get(&app, &key, "/v1/secret").status, 403);
    assert_eq!(get(&app, &key, "/v1/secret/x").status, 403);
    for path in SPELLINGS {
        let answer = get(&app, &key, path);
        assert!(matches!(answer.status, 400 | 403), "{path}: {}", answer.status);
    }
    for path in ["/v1/Secret", "/v1/secret.", "/v1/secret%20", "/v1/secret;", "/v1%2Fsecret", "/v1\\secret"] {
        assert_eq!(get(&app, &key, path).error_code(), "BAD_REQUEST", "{path}");
    }
    // A prefix without its slash, in the operator's letter case or another.
    for path in ["/v1/Images", "/v1/images", "/v1/images/x", "/v1/IMAGES/", "/v1/images.", "/v1/images%2Fx"] {
        assert_eq!(get(&app, &key, path).error_code(), "BAD_REQUEST", "{path}");
    }
    assert_eq!(app.upstream.stats().total, 0);
    assert_eq!(get(&app, &key, "/v1/Images/x").status, 200);
    // What is one route's in every reading goes on as it is.
    for path in ["/v1/Models/", "/v1/Ab12;c", "/A/B%2FC", "/v1/%E4%BD%A0.", "/", "/v1/models/gpt-4.1:generateContent"] {
        assert_eq!(get(&app, &key, path).status, 200, "{path}");
        assert_eq!(app.upstream.last_request().unwrap().target, path);
    }
}

#[test]
fn routes_that_differ_in_anything_differ() {
    for guard in [
        "cost = { conversations = 1 }",
        "models = [\"small\"]",
        "prices = false",
        "verified = true",
        "roles = [\"pro\"]",
        "max_users = 5",
        "log = false",
        "methods = [\"GET\"]",
        "preserve_host = true",
    ] {
        let routes = format!(
            "[[routes]]\npath = \"/v1/*\"\nupstream = \"ai\"\n[[routes]]\npath = \"/v1/x\"\nupstream = \"ai\"\n{guard}\n"
        );
        let app = app(Box::leak(routes.into_boxed_str()), "");
        let key = app.register("alice").key;
        for path in ["/v1/X", "/v1/x/", "/v1/x%20"] {
            assert_eq!(get(&app, &key, path).status, 400, "{guard} {path}");
        }
        assert_eq!(app.upstream.stats().total, 0, "{guard}");
    }
    // Routes that differ in nothing are one, and a spelling that a route names is its own.
    let same = "[[routes]]\npath = \"/v1/*\"\nupstream = \"ai\"\n[[routes]]\npath = \"/v1/x\"\nupstream = \"ai\"\n\
        [[routes]]\npath = \"/v1/y\"\nupstream = \"ai\"\ncost = { conversations = 1 }\n\
        [[routes]]\npath = \"/v1/y/\"\nupstream = \"ai\"\n";
    let app = app(same, "");
    let key = app.register("alice").key;
    for path in ["/v1/X", "/v1/x/", "/v1/x%20", "/v1/y", "/v1/y/"] {
        assert_eq!(get(&app, &key, path).status, 200, "{path}");
    }
}

#[test]
fn an_upstream_may_tell_spellings_apart() {
    let loose = app(SCOPED, "");
    let upstream = loose.upstream.addr();
    let exact = format!("[[upstreams]]\nname = \"ai\"\nendpoints = [\"http://{upstream}\"]\npaths = \"exact\"\n");
    let exact = app(SCOPED, &exact);
    let key = scoped_key(&exact);
    for path in ["/v1/Secret", "/v1/secret.", "/v1/secret;a", "/v1/images", "/v1%2Fsecret"] {
        assert_eq!(get(&exact, &key, path).status, 200, "{path}");
        assert_eq!(loose.upstream.last_request().unwrap().target, path);
    }
    assert_eq!(get(&exact, &key, "/v1/secret").status, 403);
    assert_eq!(get(&exact, &key, "/v1//secret").status, 403);
}

#[test]
fn local_pages_are_not_reached_by_another_spelling_either() {
    let app = app("[[routes]]\npath = \"/*\"\nupstream = \"ai\"\n", "");
    let key = app.register("alice").key;
    for path in ["/v1/users.", "/v1/users%20/profile", "/v1/admin-panel.", "/v1/%2575sers/login", "/v1/support;/users"]
    {
        assert_eq!(get(&app, &key, path).status, 400, "{path}");
    }
    assert_eq!(app.upstream.stats().total, 0);
}

#[test]
fn what_a_proxy_asks_about_is_read_in_all_ways_too() {
    let toml = "[access]\ntrusted_proxies = [\"127.0.0.1/32\"]\n[[forward]]\npath = \"/*\"\n\
        [[forward]]\npath = \"/v1/secret\"\nscope = \"secret\"\n[[forward]]\npath = \"/v1/secret/*\"\nscope = \"secret\"\n\
        [[forward]]\npath = \"/Paid/*\"\nmethods = [\"GET\"]\ncost = { conversations = 1 }\n";
    let app = TestApp::start(&format!("{PLENTY}{toml}"));
    let key = scoped_key(&app);
    let asked = |path: &str, method: &str| {
        let described = [("x-original-uri", path), ("x-original-method", method)];
        send(&app, &key, "GET", "/v1/auth/forward", &described, None)
    };
    for path in SPELLINGS {
        let answer = asked(path, "GET");
        assert!(matches!(answer.status, 400 | 403), "{path}: {}", answer.status);
    }
    for path in ["/paid", "/Paid", "/paid/x", "/PAID%2Fx"] {
        assert_eq!(asked(path, "GET").status, 400, "{path}");
    }
    assert_eq!(asked("/Paid/x", "get").status, 400);
    for path in ["/Paid/x", "/paying", "/X/", "/v1/Other;a"] {
        assert_eq!(asked(path, "GET").status, 200, "{path}");
    }
    assert!(asked("/Paid/x", "HEAD").header("x-tollgate-remaining-conversations").is_some());
}
