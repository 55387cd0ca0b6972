//! Names of models: no way to write one, or to hide it, gets around its price or a list.

use serde_json::json;

use super::Bank;
use crate::support::http::call_raw;
use crate::support::{Answer, Options};

const PRICES: &str = r#"
routes = [{ path = "/v1/*", upstream = "ai", cost = { conversations = 1 } }]
[prices]
unknown_model = "free"
[prices.models."gpt-4o"]
credits = 2
[prices.models."Claude-*"]
credits = 3
"#;

fn priced(more: &str) -> Bank {
    let bank = Bank::open(Options { toml: format!("{PRICES}{more}"), ..Options::default() });
    bank.set_conversations(1000);
    bank.set_credits(1000);
    bank
}

fn post(bank: &Bank, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let bearer = format!("Bearer {}", bank.user.key);
    let headers = [&[("authorization", bearer.as_str())], headers].concat();
    call_raw(bank.app.public, "POST", path, &headers, body)
}

/// The credits that a call left, which says what it cost; `None` where nothing was taken.
fn cost(bank: &Bank, path: &str, headers: &[(&str, &str)], body: &[u8]) -> (u16, f64) {
    let before = bank.credits();
    let status = post(bank, path, headers, body).status;
    bank.settled();
    (status, before - bank.credits())
}

const JSON: (&str, &str) = ("content-type", "application/json");
const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");
const PARTS: (&str, &str) = ("content-type", "multipart/form-data; boundary=b0");

fn parts(name: &str, model: &str) -> Vec<u8> {
    format!(
        "--b0\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.mp3\"\r\nContent-Type: audio/mpeg\r\n\r\n\
         sound\r\n--b0\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{model}\r\n--b0--\r\n"
    )
    .into_bytes()
}

#[test]
fn a_model_has_its_price_however_it_is_written() {
    let bank = priced("");
    for (model, credits) in [
        ("gpt-4o", 2.0),
        ("GPT-4o", 2.0),
        (" gpt-4o", 2.0),
        ("Gpt-4O\t\n", 2.0),
        ("\u{A0}gpt-4o", 2.0),
        ("claude-4", 3.0),
        (" CLAUDE-4", 3.0),
        ("gpt-4o-mini", 0.0),
    ] {
        let body = json!({"model": model, "messages": []}).to_string();
        assert_eq!(cost(&bank, "/v1/chat/completions", &[JSON], body.as_bytes()), (200, credits), "{model:?}");
    }
    let escaped = br#"{"mod\u0065l":"gpt\u002D4o"}"#;
    assert_eq!(cost(&bank, "/v1/x", &[JSON], escaped), (200, 2.0));
}

#[test]
fn a_model_has_its_price_wherever_it_stands() {
    let bank = priced("");
    let json = br#" {"model":"gpt-4o"}"#;
    for headers in [
        &[JSON][..],
        &[],
        &[("content-type", "text/plain")],
        &[("content-type", "application/octet-stream")],
        &[("content-type", "application/json, text/plain")],
        &[FORM],
        &[PARTS],
        &[("content-type", "text/plain"), ("connection", "content-type")],
        &[("content-type", "application/json; charset=utf-8")],
    ] {
        assert_eq!(cost(&bank, "/v1/x", headers, json), (200, 2.0), "{headers:?}");
    }
    assert_eq!(cost(&bank, "/v1/x", &[FORM], b"a=b&mod%65l=GPT-4o"), (200, 2.0));
    assert_eq!(cost(&bank, "/v1/audio/transcriptions", &[PARTS], &parts("model", "gpt-4o")), (200, 2.0));
    assert_eq!(cost(&bank, "/v1/listen?a&model=gpt-4o", &[("content-type", "audio/wav")], b"RIFF"), (200, 2.0));
    // What names none, or one without a price, is free as the config says.
    for (path, headers, body) in [
        ("/v1/x", FORM, &b"a=b&model=other"[..]),
        ("/v1/x", PARTS, &parts("model", "other")[..]),
        ("/v1/x", PARTS, &parts("prompt", "gpt-4o")[..]),
        ("/v1/x", ("content-type", "audio/mpeg"), b"ID3{"),
        ("/v1/x", ("content-type", "text/plain"), b"gpt-4o"),
    ] {
        assert_eq!(cost(&bank, path, &[headers], body), (200, 0.0), "{headers:?}");
    }
}

#[test]
fn what_could_hide_a_model_is_refused() {
    let bank = priced("");
    let text: (&str, &str) = ("content-type", "text/plain");
    let utf16: Vec<u8> = r#"{"model":"gpt-4o"}"#.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let json = &br#"{"model":"gpt-4o"}"#[..];
    for (status, path, headers, body) in [
        (400, "/v1/x", &[JSON][..], &br#"{"model":["gpt-4o"]}"#[..]),
        (400, "/v1/x", &[JSON], br#"{"model":null}"#),
        (400, "/v1/x", &[JSON], br#"{"model":{"id":"gpt-4o"}}"#),
        (400, "/v1/x", &[JSON], br#"{"model":"a","model":"gpt-4o"}"#),
        (400, "/v1/x", &[JSON], br#"{"model":"a","Model":"gpt-4o"}"#),
        (400, "/v1/x", &[JSON], br#"{"model":"gpt-4o\u0000"}"#),
        (400, "/v1/x", &[JSON], br#"[{"model":"gpt-4o"}]"#),
        (400, "/v1/x", &[text], br#"[{"model":"gpt-4o"}]"#),
        (400, "/v1/x", &[JSON], b"\xEF\xBB\xBF{\"model\":\"gpt-4o\"}"),
        (400, "/v1/x", &[text], b"\xEF\xBB\xBF{\"model\":\"gpt-4o\"}"),
        (400, "/v1/x", &[JSON], &utf16),
        (400, "/v1/x", &[text], &utf16),
        (415, "/v1/x", &[("content-type", "application/json; charset=utf-16")], json),
        (415, "/v1/x", &[("content-type", "text/plain; charset=ibm037")], b"x"),
        (415, "/v1/x", &[JSON, ("content-encoding", "gzip")], b"\x1F\x8B\x08"),
        (415, "/v1/x", &[text, ("content-encoding", "deflate")], b"x"),
        (400, "/v1/x", &[JSON, text], json),
        (400, "/v1/x", &[FORM], b"model=a&model=gpt-4o"),
        (400, "/v1/x", &[FORM], b"model=a&Model=gpt-4o"),
        (400, "/v1/x", &[FORM], b"model=a;model=gpt-4o"),
        (400, "/v1/x", &[PARTS], &parts("MODEL", "gpt-4o")),
        (400, "/v1/x", &[PARTS], b"--b1\r\n"),
        (400, "/v1/x", &[PARTS, ("connection", "content-type")], &parts("model", "gpt-4o")),
        (400, "/v1/x", &[("content-type", "multipart/form-data")], &parts("model", "gpt-4o")),
        (400, "/v1/x?model=gpt-4o", &[JSON], br#"{"model":"other"}"#),
        (400, "/v1/x?model=a&model=gpt-4o", &[text], b"x"),
    ] {
        let refused = post(&bank, path, headers, body);
        assert_eq!(refused.status, status, "{path} {headers:?} {}", String::from_utf8_lossy(body));
    }
    assert_eq!((bank.app.upstream.stats().total, bank.credits(), bank.conversations()), (0, 1000.0, 1000.0));
    let long = json!({"model": format!("gpt-4o{}", " ".repeat(300))}).to_string();
    assert_eq!(post(&bank, "/v1/x", &[JSON], long.as_bytes()).status, 400);
}

#[test]
fn lists_of_models_take_a_name_in_any_case() {
    let toml = "routes = [{ path = \"/v1/*\", upstream = \"ai\", models = [\"GPT-4*\", \"o1\"] }]\n";
    let bank = Bank::open(Options { toml: toml.into(), ..Options::default() });
    let chat = |model: &str| {
        let body = json!({"model": model}).to_string();
        post(&bank, "/v1/x", &[JSON], body.as_bytes()).status
    };
    assert_eq!((chat("gpt-4o"), chat(" O1 "), chat("o1-mini"), chat("claude")), (200, 200, 403, 403));
    assert_eq!(post(&bank, "/v1/x", &[PARTS], &parts("model", "o1")).status, 200);
    assert_eq!(post(&bank, "/v1/x", &[PARTS], &parts("model", "claude")).status, 403);
    assert_eq!(post(&bank, "/v1/x", &[("content-type", "text/plain")], br#"{"model":"claude"}"#).status, 403);
}

#[test]
fn where_models_decide_nothing_any_body_goes_on() {
    let toml = "routes = [{ path = \"/v1/*\", upstream = \"ai\" }]\n";
    let bank = Bank::open(Options { toml: toml.into(), ..Options::default() });
    for (headers, body) in [
        (&[JSON][..], &br#"{"model":["a"]}"#[..]),
        (&[JSON, ("content-encoding", "gzip")], b"\x1F\x8B\x08"),
        (&[PARTS], b"anything"),
        (&[("content-type", "text/plain; charset=utf-16")], b"x"),
    ] {
        assert_eq!(post(&bank, "/v1/x", headers, body).status, 200, "{headers:?}");
    }
}
