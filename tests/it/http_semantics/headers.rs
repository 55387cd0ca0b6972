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
    ];
    let headers: Vec<(&str, &str)> = forged.iter().map(|name| (*name, "forged")).collect();
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
    assert_eq!(all("x-forwarded-host"), ["gateway.test"]);
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
        let method = ["GET", "DELETE", "PUT", "PATCH", "PROPFIND", "get", "M-SEARCH", "X!#$%&'*+-.^_`|~9"][nth % 8];
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
         x-ratelimit-limit-requests: 7\r\nx-ratelimit-limit-tokens: 8\r\nx-request-id: theirs\r\ncontent-length: 2\r\n\r\nok",
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
    assert_ne!(answer.header("x-ratelimit-limit-requests"), Some("7"), "that one is ours");
    let ids: Vec<_> = answer.headers.iter().filter(|(n, _)| n == "x-request-id").collect();
    assert!(ids.len() == 1 && ids[0].1.starts_with("req_"));
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
