//! Methods: which ones go on, which are answered here, and that no spelling of one gets around a route.

use serde_json::{Value, json};

use super::{PLENTY, app_and_key, send};
use crate::fake_upstream::FakeUpstream;
use crate::support::http::call;
use crate::support::{Conn, Options, TestApp};

const ROUTES: &str = "[[routes]]\npath = \"/*\"\nupstream = \"ai\"\n\
    [[routes]]\npath = \"/v1/*\"\nupstream = \"ai\"\nmethods = [\"POST\", \"PURGE\"]\ncost = { conversations = 1 }\n\
    [[routes]]\npath = \"/v1/files\"\nupstream = \"ai\"\nmethods = [\"GET\"]\ncost = { conversations = 1 }\n";

fn guarded() -> (TestApp, String) {
    let app = TestApp::with(Options { toml: PLENTY.into(), route: ROUTES, ..Options::default() });
    let key = app.register("alice").key;
    (app, key)
}

#[test]
fn trace_reaches_nobody() {
    let (app, key) = guarded();
    let any = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
    for (path, allowed) in [
        ("/x", any),
        ("/v1/chat", any),
        ("/v1/users/login", any),
        ("/v1/admin-panel/users", any),
        ("/v1/auth/forward", any),
        ("/v1/auth/verify-key", "POST"),
    ] {
        for more in [&[][..], &[("max-forwards", "0")], &[("max-forwards", "3")]] {
            let answer = send(&app, &key, "TRACE", path, more, None);
            assert_eq!((answer.status, answer.error_code().as_str()), (405, "METHOD_NOT_ALLOWED"), "{path}");
            assert_eq!(answer.header("allow"), Some(allowed), "{path}");
            assert!(!answer.text().contains(&key));
        }
    }
    for path in ["/health", "/nothing", "/v1/admin-panel/login", "/metrics", "/docs", "/"] {
        let answer = call(app.admin, "TRACE", path, &[("authorization", &key)], None);
        assert_eq!(answer.status, 405, "{path}: {}", answer.text());
        assert!(answer.header("allow").is_some_and(|allow| !allow.contains("TRACE")), "{path}");
        assert!(!answer.text().contains(&key));
    }
    // A route for this method alone is for none.
    let only = "[[routes]]\npath = \"/v1/*\"\nupstream = \"ai\"\nmethods = [\"TRACE\", \"GET\"]\n";
    let other = TestApp::with(Options { toml: PLENTY.into(), route: only, ..Options::default() });
    let key = other.register("bob").key;
    assert_eq!(send(&other, &key, "TRACE", "/v1/x", &[], None).status, 405);
    assert_eq!(send(&other, &key, "POST", "/v1/x", &[], None).header("allow"), Some("GET, HEAD"));
    // Nor may a proxy let one through.
    let asking = TestApp::start("[access]\ntrusted_proxies = [\"127.0.0.1/32\"]\n[[forward]]\npath = \"/app/*\"\n");
    let key = asking.register("carol").key;
    let asked = |method: &str, query: &str| {
        let described = [("x-original-uri", "/app/x"), ("x-original-method", method)];
        send(&asking, &key, "GET", &format!("/v1/auth/forward{query}"), &described, None)
    };
    assert_eq!((asked("GET", "").status, asked("TRACE", "").status, asked("trace", "").status), (200, 405, 400));
    let nginx = asked("TRACE", "?mode=nginx");
    assert_eq!((nginx.status, nginx.header("x-tollgate-status")), (403, Some("405")));
    assert_eq!(send(&asking, &key, "TRACE", "/v1/auth/forward/app/x", &[], None).status, 405);
    for app in [&app, &other, &asking] {
        assert_eq!(app.upstream.stats().total, 0);
    }
}

#[test]
fn no_spelling_of_a_method_gets_around_a_route() {
    let (app, key) = guarded();
    for method in ["post", "Post", "pOST", "get", "Head", "delete", "Options", "patch", "put", "purge", "Purge"] {
        let answer = send(&app, &key, method, "/v1/chat", &[], None);
        assert_eq!((answer.status, answer.error_code().as_str()), (400, "BAD_REQUEST"), "{method}");
    }
    for method in ["trace", "connect"] {
        assert_eq!(send(&app, &key, method, "/x", &[], None).status, 400, "{method}");
    }
    assert_eq!(app.upstream.stats().total, 0);
    // What is no other method's name is an upstream's to judge.
    assert_eq!(send(&app, &key, "PURGE", "/v1/chat", &[], None).status, 200);
    assert_eq!(send(&app, &key, "Search", "/x", &[], None).status, 200);
    let mut conn = Conn::open(app.public);
    conn.send("CONNECT other.example:443 HTTP/1.1\r\nhost: other.example:443\r\n\r\n");
    assert_eq!(conn.read_answer().status, 400);
    assert!(conn.is_closed());
}

#[test]
fn who_asks_for_the_head_alone_takes_the_route_of_who_asks_for_all() {
    let (app, key) = guarded();
    let left = |method: &str, path: &str| {
        let mut conn = Conn::open(app.public);
        conn.send(super::bytes(&key, method, path, &[], None));
        let answer = conn.read_answer_to(method == "HEAD").unwrap();
        assert_eq!(answer.status, 200, "{method} {path}");
        answer.header("x-tollgate-remaining-conversations").map(str::to_owned)
    };
    assert_eq!(left("GET", "/v1/files").as_deref(), Some("999999"));
    assert_eq!(left("HEAD", "/v1/files").as_deref(), Some("999998"), "not the free route's");
    assert_eq!(left("HEAD", "/x"), None);
    // A route of its own for HEAD stands.
    let own = "[[routes]]\npath = \"/v1/x\"\nupstream = \"ai\"\nmethods = [\"GET\"]\ncost = { conversations = 1 }\n\
        [[routes]]\npath = \"/v1/x\"\nupstream = \"ai\"\nmethods = [\"HEAD\"]\n";
    let other = TestApp::with(Options { toml: PLENTY.into(), route: own, ..Options::default() });
    let key = other.register("bob").key;
    let answer = send(&other, &key, "HEAD", "/v1/x", &[], None);
    assert_eq!((answer.status, answer.header("x-tollgate-remaining-conversations")), (200, None));
}

#[test]
fn options_goes_as_far_as_it_may() {
    let fake = FakeUpstream::always("HTTP/1.1 200 OK\r\nallow: theirs\r\ncontent-length: 0\r\n\r\n");
    let (app, key) = app_and_key(&fake.config(""));
    let options =
        |count: &str, body: Option<&Value>| send(&app, &key, "OPTIONS", "/v1/x", &[("Max-Forwards", count)], body);
    for count in ["0", "000"] {
        let here = options(count, Some(&json!({"model": "m"})));
        assert_eq!((here.status, here.header("content-length")), (200, Some("0")), "{}", here.text());
        assert_eq!(here.header("allow"), Some("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
        assert_eq!(here.header("x-tollgate-remaining-conversations"), None, "and costs nothing");
    }
    assert_eq!(call(app.public, "OPTIONS", "/v1/x", &[("max-forwards", "0")], None).status, 401);
    assert_eq!(fake.requests(), 0);
    for (count, left) in [("1", "0"), ("7", "6"), ("007", "6")] {
        assert_eq!(options(count, None).header("allow"), Some("theirs"));
        let heard = fake.heard(fake.connections() - 1);
        let last = heard.rsplit("OPTIONS /v1/x").next().unwrap();
        assert!(last.to_ascii_lowercase().contains(&format!("max-forwards: {left}\r\n")), "{last}");
    }
    for count in ["-1", "x", "", "99999999999999999999999", "1, 2"] {
        assert_eq!(options(count, None).status, 400, "{count}");
    }
    // Other methods are not counted.
    assert_eq!(send(&app, &key, "GET", "/v1/x", &[("Max-Forwards", "0")], None).header("allow"), Some("theirs"));
}
