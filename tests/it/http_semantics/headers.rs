//! Header fields: what passes, what stays on its hop, what is ours to set.

use serde_json::{Value, json};

use super::{PLENTY, app, app_and_key, bytes, send};
use crate::fake_upstream::FakeUpstream;
use crate::support::http::call;
use crate::support::{Conn, Options, TestApp, chat_body};

#[test]
fn what_concerns_one_hop_goes_no_further_in_either_direction() {
    let (app, key) = app_and_key("");
    let body = chat_body(json!({}));
    let answer = send(
        &app,
        &key,
        "POST",
        "/v1/chat/completions",
        &[
            ("connection", "x-mine, keep-alive ,X-Other"),
            ("x-mine", "1"),
            ("X-OTHER", "2"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic abc"),
            ("te", "trailers"),
            ("trailer", "x-t"),
            ("upgrade", "websocket"),
            ("x-mock-hop", "1"),
            ("x-mock-trailers", "1"),
            ("x-kept", "kept"),
        ],
        Some(&body),
    );
    assert_eq!(answer.status, 200);
    let seen = app.upstream.last_request().unwrap();
    let gone = "connection x-mine x-other keep-alive proxy-connection proxy-authorization te trailer upgrade expect";
    for name in gone.split(' ') {
        assert!(seen.header(name).is_none(), "{name} reached the upstream");
    }
    assert_eq!(seen.header("x-kept"), Some(&b"kept"[..]));
    for name in ["x-secret-hop", "keep-alive", "trailer", "x-mock-trailer"] {
        assert!(answer.header(name).is_none(), "{name} reached the client");
    }
    assert_ne!(answer.header("connection"), Some("x-secret-hop"));
}

#[test]
fn the_caller_s_identity_is_ours_to_tell() {
    let (app, key) = app_and_key("");
    let forged = [
        "X-Tollgate-User",
        "x-tollgate-username",
        "X-TOLLGATE-PLAN",
        "x-tollgate-anything",
        "X_Tollgate_User",
        "x_tollgate-plan",
        "X-Forwarded-For",
        "X_Forwarded_For",
        "x-forwarded-proto",
        "X-Forwarded_Proto",
        "x-forwarded-host",
        "X_FORWARDED_HOST",
        "x-request-id",
        "X_Request_Id",
        "forwarded",
        "X-Original-URL",
        "x-rewrite-url",
        "X_Rewrite_URL",
        // What CGI-like interfaces take for one of these.
        "X.Tollgate.User",
        "X~Tollgate~Plan",
        "X.Forwarded.For",
        "x!forwarded#proto",
        "X.Request.Id",
        "Accept_Encoding",
        "Transfer_Encoding",
        "Content.Length",
        // What other proxies say of who calls, from where, and for what.
        "X-Real-IP",
        "x_real_ip",
        "True-Client-IP",
        "CF-Connecting-IP",
        "X-Client-IP",
        "Client-IP",
        "X-Forwarded-User",
        "X.Forwarded.User",
        "X-Forwarded-Email",
        "X-Forwarded-Groups",
        "X-Forwarded-Port",
        "X-Forwarded-Prefix",
        "Remote-User",
        "REMOTE_USER",
        "X-Remote-User",
        "X-Auth-Request-User",
        "X-HTTP-Method-Override",
        "X_HTTP_METHOD_OVERRIDE",
        "X-HTTP-Method",
        "X-Method-Override",
        "X-Original-Method",
        "Proxy",
        // Named for this hop, and still not passed on.
        "x-secret-hop",
    ];
    let headers = forged.iter().map(|name| (*name, "forged")).chain([("connection", "x-secret-hop")]);
    let headers: Vec<(&str, &str)> = headers.collect();
    let answer = send(&app, &key, "POST", "/v1/chat/completions", &headers, Some(&chat_body(json!({}))));
    assert_eq!(answer.status, 200);
    let seen = app.upstream.last_request().unwrap();
    let forged: Vec<_> = seen.headers.iter().filter(|(_, value)| value == b"forged").collect();
    assert!(forged.is_empty(), "{forged:?}");
    let all = |name: &str| {
        let dashed = |n: &str| n.to_ascii_lowercase().replace('_', "-");
        let found: Vec<String> = seen
            .headers
            .iter()
            .filter(|(n, _)| dashed(n) == name)
            .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
            .collect();
        found
    };
    assert_eq!(all("x-tollgate-username"), ["alice"]);
    assert_eq!(all("x-tollgate-plan"), ["free"]);
    assert_eq!(all("x-tollgate-user").len(), 1);
    assert_eq!(all("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(all("x-forwarded-proto"), ["http"]);
    assert_eq!(all("x-forwarded-host"), ["gateway.localhost"]);
    assert_eq!(all("x-request-id"), [answer.header("x-request-id").unwrap()]);
    assert_eq!(all("host"), [app.upstream.addr().to_string()]);
}

#[test]
fn the_client_s_credential_is_replaced_by_the_upstream_s() {
    let (app, key) = app_and_key("");
    let with_credential = |header: &str| {
        format!(
            "[[upstreams]]\nname = \"ai\"\nendpoints = [\"http://{}\"]\n\
             credential = {{ header = \"{header}\", value = \"sk-upstream\" }}\n",
            app.upstream.addr()
        )
    };
    assert_eq!(send(&app, &key, "GET", "/v1/models", &[], None).status, 200);
    let seen = app.upstream.last_request().unwrap();
    assert!(seen.header("authorization").is_none(), "without one of its own, the upstream gets none");

    let second = app_and_key(&with_credential("authorization")).0;
    let key = second.register("bob").key;
    for headers in [&[("authorization", format!("Bearer {key}"))], &[("x-api-key", key.clone())]] {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
        assert_eq!(call(second.public, "GET", "/v1/models", &headers, None).status, 200);
        let seen = app.upstream.last_request().unwrap();
        let values: Vec<_> =
            seen.headers.iter().filter(|(n, _)| n == "authorization").map(|(_, v)| v.clone()).collect();
        assert_eq!(values, [b"sk-upstream".to_vec()]);
        assert!(!seen.headers.iter().any(|(_, value)| String::from_utf8_lossy(value).contains(&key)));
    }

    let third = app_and_key(&with_credential("x-goog-api-key")).0;
    let key = third.register("carol").key;
    let own = [("x-goog-api-key", "mine"), ("X-GOOG-API-KEY", "mine"), ("X_Goog_Api_Key", "mine")];
    assert_eq!(send(&third, &key, "GET", "/v1/models", &own, None).status, 200);
    let seen = app.upstream.last_request().unwrap();
    assert_eq!(seen.header("x-goog-api-key"), Some(&b"sk-upstream"[..]));
    assert!(!seen.headers.iter().any(|(_, value)| value == b"mine"), "{:?}", seen.headers);
}

#[test]
fn method_target_and_body_pass_byte_for_byte() {
    let fake = FakeUpstream::always("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let (app, key) = app_and_key(&fake.config(""));
    let targets = [
        "/v1/a?b=c&b=d&&=",
        "/v1/?",
        "/v1/%E4%BD%A0%20%2f?q=%00%zz+'\"",
        "/v1/caf\u{e9}",
        "/v1/a;b=c/d,e:f@g!$&'()*+=~",
        "/v1//double///slashes/",
        "/v1/..file/...",
        "/v1/[x]{y}|z^`",
        "/v1/a?http://other/../..?#".trim_end_matches('#'),
        "/v1/-_.~%7e",
    ];
    let mut conn = Conn::open(app.public);
    for (nth, target) in targets.iter().enumerate() {
        let method = ["GET", "DELETE", "PUT", "PATCH", "PROPFIND", "Query", "M-SEARCH", "X!#$%&'*+-.^_`|~9"][nth % 8];
        conn.send(bytes(&key, method, target, &[], None));
        let answer = conn.read_answer();
        assert_eq!(answer.status, 200, "{method} {target}: {}", answer.text());
        let heard = fake.heard(0);
        let last = heard.rsplit("\r\n\r\n").find(|head| head.contains("HTTP/1.1")).unwrap();
        assert!(last.starts_with(&format!("{method} {target} HTTP/1.1\r\n")), "{last}");
    }
    let odd = b"{ \"model\" :\"gpt-4o\" ,\n\t\"messages\":[ ]}  \n";
    conn.send(format!(
        "POST /v1/x HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {}\r\n\r\n",
        odd.len()
    ));
    conn.send(odd);
    assert_eq!(conn.read_answer().status, 200);
    assert!(fake.heard(0).as_bytes().ends_with(odd));
}

#[test]
fn other_headers_pass_in_both_directions_unchanged_and_in_order() {
    let fake = FakeUpstream::always(
        "HTTP/1.1 207 Own Words\r\nSet-Cookie: a=1\r\nset-cookie: b=2\r\nX-Odd:  \t padded \r\nx-empty:\r\n\
         x-ratelimit-limit-tokens: 8\r\ncontent-length: 2\r\n\r\nok",
    );
    let (app, key) = app_and_key(&fake.config(""));
    let own = [("X-Twice", "1"), ("x-twice", "2"), ("Accept", "a/b;q=0.5, */*"), ("x-empty", ""), ("cookie", "c=d")];
    let answer = send(&app, &key, "GET", "/v1/x", &own, None);
    let heard = fake.heard(0);
    let at = |text: &str| heard.find(text).unwrap_or_else(|| panic!("{text} is missing in {heard}"));
    assert!(at("X-Twice: 1\r\n") < at("x-twice: 2\r\n"));
    assert!(at("Accept: a/b;q=0.5, */*\r\n") < at("cookie: c=d\r\n"));
    assert!(heard.contains("x-empty: \r\n") || heard.contains("x-empty:\r\n"));
    assert_eq!(answer.status, 207);
    let cookies: Vec<_> = answer.headers.iter().filter(|(n, _)| n == "set-cookie").map(|(_, v)| v.as_str()).collect();
    assert_eq!(cookies, ["a=1", "b=2"]);
    assert_eq!((answer.header("x-odd"), answer.header("x-empty")), (Some("padded"), Some("")));
    assert_eq!(answer.header("x-ratelimit-limit-tokens"), Some("8"));
}

#[test]
fn what_is_ours_to_tell_an_upstream_cannot_tell() {
    let theirs = [
        "x-ratelimit-limit-requests",
        "X-RateLimit-Limit-Requests",
        "X-RATELIMIT-REMAINING-REQUESTS",
        "X-RateLimit-Reset-Requests",
        "X_RateLimit_Reset_Requests",
        "X.RateLimit.Limit.Requests",
        "X-Request-Id",
        "x_request_id",
        "X-Tollgate-Remaining-Credits",
        "x-tollgate-remaining-conversations",
        "X_Tollgate_Remaining_Conversations",
        "X~Tollgate~User",
    ];
    let fields: String = theirs.iter().map(|name| format!("{name}: theirs\r\n")).collect();
    let fake = FakeUpstream::always(format!("HTTP/1.1 200 OK\r\n{fields}content-length: 2\r\n\r\nok"));
    let (app, key) = app_and_key(&format!("{}[limits]\nper_key_per_minute = 600\n", fake.config("")));
    let answer = send(&app, &key, "GET", "/v1/x", &[], None);
    let passed: Vec<_> = answer.headers.iter().filter(|(_, value)| value == "theirs").collect();
    assert!(answer.status == 200 && passed.is_empty(), "{passed:?}");
    for name in
        ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests", "x-request-id"]
    {
        assert_eq!(answer.headers.iter().filter(|(n, _)| n == name).count(), 1, "{name}");
    }
    assert!(answer.header("x-request-id").unwrap().starts_with("req_"));
    assert!(answer.header("x-tollgate-remaining-conversations").is_some());
}

#[test]
fn no_copy_of_the_credential_goes_on() {
    let fake = FakeUpstream::always("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let (app, key) = app_and_key(&fake.config(""));
    let copies = [
        ("api-key", key.clone()),
        ("x-goog-api-key", key.clone()),
        ("X-My-Header", format!("Bearer {key}")),
        ("cookie", format!("a=b; token={key}; c=d")),
        ("referer", format!("http://x/?key={key}")),
        ("x-other", "kept".to_owned()),
        ("api-key", "of-the-user-s-own".to_owned()),
    ];
    let copies: Vec<(&str, &str)> = copies.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let escaped: String = key.bytes().map(|byte| format!("%{byte:02x}")).collect();
    for (query, left) in [
        (format!("?key={key}"), ""),
        (format!("?a=b&key={key}&c=d"), "?a=b&c=d"),
        (format!("?a=b&key={escaped}&&c"), "?a=b&&c"),
        (format!("?key={key}&a"), "?a"),
        ("?a=b&&=&key=other".to_owned(), "?a=b&&=&key=other"),
    ] {
        let before = fake.heard(0).len();
        let mut conn = Conn::open(app.public);
        conn.send(bytes(&key, "GET", &format!("/v1/x{query}"), &copies, None));
        assert_eq!(conn.read_answer().status, 200);
        let heard = fake.heard(0)[before..].to_owned();
        assert!(heard.starts_with(&format!("GET /v1/x{left} HTTP/1.1\r\n")), "{heard}");
        assert!(!heard.contains(&key) && !heard.contains(&escaped), "{heard}");
        for kept in ["x-other: kept\r\n", "api-key: of-the-user-s-own\r\n", "cookie: a=b; c=d\r\n"] {
            assert!(heard.contains(kept), "{kept}: {heard}");
        }
    }
    // Also where it is named as this hop's, or in another spelling.
    let twice = [("x_api_key", key.as_str())];
    let before = fake.heard(0).len();
    assert_eq!(send(&app, &key, "GET", "/v1/x", &twice, None).status, 200);
    assert!(!fake.heard(0)[before..].contains(&key));
}

#[test]
fn what_a_trusted_proxy_says_of_itself_is_kept() {
    let told = [
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "public.example"),
        ("X-Forwarded-Port", "443"),
        ("X-Forwarded-Prefix", "/ai"),
        ("Forwarded", "for=7.7.7.7;proto=https"),
    ];
    let forged = [("X_Forwarded_Proto", "forged"), ("X.Forwarded.For", "6.6.6.6"), ("X-Forwarded-User", "forged")];
    let seen = |app: &TestApp, key: &str| {
        let headers: Vec<(&str, &str)> = told.into_iter().chain(forged).collect();
        assert_eq!(send(app, key, "GET", "/v1/models", &headers, None).status, 200);
        let seen = app.upstream.last_request().unwrap();
        assert!(!seen.headers.iter().any(|(_, value)| value == b"forged" || value == b"6.6.6.6"), "{:?}", seen.headers);
        let all = |name: &str| {
            let values = seen.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
            values.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect::<Vec<_>>().join("|")
        };
        told.map(|(name, _)| all(name)).into_iter().chain([all("x-forwarded-for")]).collect::<Vec<_>>()
    };
    let trusting = app("[access]\ntrusted_proxies = [\"127.0.0.0/8\"]\n");
    let key = trusting.register("alice").key;
    assert_eq!(seen(&trusting, &key), ["https", "public.example", "443", "/ai", "for=7.7.7.7;proto=https", "7.7.7.7"]);
    let (trustless, key) = app_and_key("");
    assert_eq!(seen(&trustless, &key), ["http", "gateway.localhost", "", "", "", "127.0.0.1"]);
}

#[test]
fn via_is_told_in_both_directions_unless_it_is_off() {
    let answer = "HTTP/1.0 200 OK\r\nvia: 1.1 other\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok";
    for (more, ours) in [("", true), ("via = false", false)] {
        let fake = FakeUpstream::always(answer);
        let (app, key) = app_and_key(&fake.config(more));
        let answer = send(&app, &key, "GET", "/v1/x", &[("Via", "1.0 first")], None);
        let told: Vec<_> = answer.headers.iter().filter(|(n, _)| n == "via").map(|(_, v)| v.as_str()).collect();
        assert_eq!(told, if ours { vec!["1.1 other", "1.0 tollgate"] } else { vec!["1.1 other"] });
        let heard = fake.heard(0).to_ascii_lowercase();
        let told: Vec<_> = heard.lines().filter_map(|line| line.strip_prefix("via: ")).collect();
        assert_eq!(told, if ours { vec!["1.0 first", "1.1 tollgate"] } else { vec!["1.0 first"] });
    }
}

#[test]
fn the_target_s_host_outdoes_the_field() {
    let route = "[[routes]]\npath = \"/v1/*\"\nupstream = \"ai\"\npreserve_host = true\n";
    let app = TestApp::with(Options { toml: PLENTY.into(), route, ..Options::default() });
    let key = app.register("alice").key;
    for (target, host, right) in [
        ("http://other.example:81/v1/models?a", "gateway.test", "other.example:81"),
        ("HTTP://other.example/v1/models", "", "other.example"),
        ("/v1/models", "gateway.test", "gateway.test"),
    ] {
        let mut conn = Conn::open(app.public);
        conn.send(format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n\r\n"));
        assert_eq!(conn.read_answer().status, 200, "{target}");
        let seen = app.upstream.last_request().unwrap();
        assert_eq!(seen.header("host"), Some(right.as_bytes()), "{target}");
        assert_eq!(seen.header("x-forwarded-host"), Some(right.as_bytes()), "{target}");
    }
}

#[test]
fn heads_of_answers_are_mended() {
    let date = |answer: &crate::support::Answer| answer.header("date").unwrap_or_default().to_owned();
    for (head, status_line) in [
        ("HTTP/1.1 200\r\ncontent-length: 2", "HTTP/1.1 200 \r\n"),
        ("HTTP/1.0 299\r\nconnection: keep-alive\r\ncontent-length: 2", "HTTP/1.1 299 \r\n"),
        ("HTTP/1.1 200 \r\ncontent-length: 2", "HTTP/1.1 200 \r\n"),
        ("HTTP/1.1 200 Fine\r\ncontent-length: 2", "HTTP/1.1 200 Fine\r\n"),
    ] {
        let fake = FakeUpstream::always(format!("{head}\r\n\r\nok"));
        let (app, key) = app_and_key(&fake.config(""));
        let mut conn = Conn::open(app.public);
        conn.send(bytes(&key, "GET", "/v1/x", &[("connection", "close")], None));
        let text = String::from_utf8(conn.rest()).unwrap();
        assert!(text.starts_with(status_line), "{text}");
        assert!(text.ends_with("\r\n\r\nok"), "{text}");
    }
    // One that says no date gets one, and one that does keeps it.
    let fake = FakeUpstream::always("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let toml = format!("{PLENTY}{}", fake.config(""));
    let standing = Options { toml, manual_clock: Some("2026-01-15T12:00:00Z"), ..Options::default() };
    let app = TestApp::with(standing);
    let key = app.register("alice").key;
    assert_eq!(date(&send(&app, &key, "GET", "/v1/x", &[], None)), "Thu, 15 Jan 2026 12:00:00 GMT");
    let dated = "HTTP/1.1 200 OK\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\ncontent-length: 2\r\n\r\nok";
    let fake = FakeUpstream::always(dated);
    let (app, key) = app_and_key(&fake.config(""));
    let answer = send(&app, &key, "GET", "/v1/x", &[], None);
    let dates: Vec<_> = answer.headers.iter().filter(|(n, _)| n == "date").map(|(_, v)| v.as_str()).collect();
    assert_eq!(dates, ["Mon, 01 Jan 2024 00:00:00 GMT"]);
}

#[test]
fn lengths_are_told_where_there_are_any() {
    let fake = FakeUpstream::start(|wire| {
        while let Some(request) = wire.read_request() {
            let status = if request.contains("/v1/none") { "204 No" } else { "200 OK" };
            wire.send(format!("HTTP/1.1 {status}\r\ncontent-length: 5\r\n\r\n"));
        }
    });
    let (app, key) = app_and_key(&fake.config(""));
    assert_eq!(send(&app, &key, "HEAD", "/v1/x", &[], None).header("content-length"), Some("5"));
    let mut conn = Conn::open(app.public);
    for _ in 0..2 {
        conn.send(bytes(&key, "GET", "/v1/none", &[], None));
        let answer = conn.read_answer();
        assert_eq!((answer.status, answer.header("content-length")), (204, None));
    }
    // A page of our own, on both ports.
    for (to, path) in [(app.public, "/.well-known/jwks.json"), (app.admin, "/health"), (app.admin, "/openapi.json")] {
        let whole = call(to, "GET", path, &[], None);
        let head = call(to, "HEAD", path, &[], None);
        assert_eq!((whole.status, head.status), (200, 200), "{path}");
        assert_eq!(head.header("content-length"), Some(whole.body.len().to_string().as_str()), "{path}");
    }
}

#[test]
fn a_version_1_0_answer_in_chunks_ends_its_connection() {
    for (version, connections) in [("1.0", 2), ("1.1", 1)] {
        let head = format!("HTTP/{version} 200 OK\r\nconnection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n");
        let fake = FakeUpstream::always(format!("{head}2\r\nok\r\n0\r\n\r\n"));
        let (app, key) = app_and_key(&fake.config(""));
        let mut conn = Conn::open(app.public);
        for _ in 0..2 {
            conn.send(bytes(&key, "GET", "/v1/x", &[], None));
            assert_eq!(conn.read_answer().text(), "ok");
        }
        assert_eq!(fake.connections(), connections, "{version}");
    }
}

#[test]
fn a_trusted_proxy_says_who_the_client_is_and_nobody_else() {
    let trusting = app("[access]\ntrusted_proxies = [\"127.0.0.0/8\", \"10.0.0.0/8\"]\n");
    let key = trusting.register("alice").key;
    let seen_by = |app: &TestApp, key: &str, headers: &[(&str, &str)]| {
        assert_eq!(send(app, key, "GET", "/v1/models", headers, None).status, 200);
        String::from_utf8(app.upstream.last_request().unwrap().header("x-forwarded-for").unwrap().to_vec()).unwrap()
    };
    assert_eq!(seen_by(&trusting, &key, &[("x-forwarded-for", "6.6.6.6, 7.7.7.7, 10.1.1.1")]), "7.7.7.7");
    assert_eq!(seen_by(&trusting, &key, &[("x-forwarded-for", "::ffff:7.7.7.7")]), "7.7.7.7");
    assert_eq!(seen_by(&trusting, &key, &[("x-forwarded-for", "7.7.7.7, nonsense")]), "127.0.0.1");
    assert_eq!(seen_by(&trusting, &key, &[("forwarded", "for=\"[2001:db8::1]:9\"")]), "2001:db8::1");
    assert_eq!(seen_by(&trusting, &key, &[]), "127.0.0.1");

    let (trustless, key) = app_and_key("");
    assert_eq!(seen_by(&trustless, &key, &[("x-forwarded-for", "7.7.7.7")]), "127.0.0.1");
}

#[test]
fn a_route_may_ask_streams_for_their_usage() {
    let route = "[[routes]]\npath = \"/v1/*\"\nupstream = \"ai\"\ncost = { conversations = 1 }\ninclude_usage = true\n";
    let app = TestApp::with(Options { toml: PLENTY.into(), route, ..Options::default() });
    let key = app.register("alice").key;
    let last = || String::from_utf8(app.upstream.last_request().unwrap().body).unwrap();
    let answer = app.chat(&key, json!({"stream": true}));
    assert!(answer.text().contains("\"usage\":{"), "{}", answer.text());
    let sent: Value = serde_json::from_str(&last()).unwrap();
    assert_eq!(sent["stream_options"], json!({"include_usage": true}));
    assert_eq!(sent["messages"], chat_body(json!({}))["messages"], "the rest is untouched");

    for body in [
        chat_body(json!({})),
        chat_body(json!({"stream": false})),
        chat_body(json!({"stream": true, "stream_options": {"include_usage": false}})),
        chat_body(json!({"stream": true, "stream_options": null})),
    ] {
        assert_eq!(app.call("POST", "/v1/chat/completions", &key, Some(&body)).status, 200);
        assert_eq!(last(), body.to_string(), "what the client said itself stands");
    }
}
