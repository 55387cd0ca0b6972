//! What a client and an upstream may expect of an HTTP/1.1 intermediary (RFC 9110, RFC 9112), and what the contract adds.

mod attempts;
mod bodies;
mod closing;
mod connections;
mod headers;
mod interim;
mod leaving;
mod methods;
mod misbehaving;
mod spellings;
mod surfaces;

use serde_json::Value;
use tollgate::mock_upstream::filler_byte;

use crate::support::http::{call, request};
use crate::support::{Answer, Options, TestApp};

const PLENTY: &str = "[plans.free.meters]\nconversations = { grant = 1000000 }\n";
const MIB: usize = 1 << 20;

/// With credits for as many calls as anybody likes, and one worker: upstream connections belong to a worker.
fn app(toml: &str) -> TestApp {
    TestApp::with(Options { toml: format!("{PLENTY}{toml}"), workers: 1, ..Options::default() })
}

fn app_and_key(toml: &str) -> (TestApp, String) {
    let app = app(toml);
    let key = app.register("alice").key;
    (app, key)
}

fn with_key<'a>(bearer: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    std::iter::once(("authorization", bearer)).chain(more.iter().copied()).collect()
}

/// A call with the key and these headers.
fn send(app: &TestApp, key: &str, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&Value>) -> Answer {
    let bearer = format!("Bearer {key}");
    call(app.public, method, path, &with_key(&bearer, headers), body)
}

/// The bytes of such a request.
fn bytes(key: &str, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&Value>) -> Vec<u8> {
    let bearer = format!("Bearer {key}");
    request(method, path, &with_key(&bearer, headers), body)
}

fn filler(len: usize) -> Vec<u8> {
    (0..len as u64).map(filler_byte).collect()
}
