//! A transcript: the calls of a seed's text in its order, by its own `curl` lines, and what came back.
//!
//! Hosts and placeholders are replaced; everything else is sent as the text has it. The whole is compared with a snapshot in
//! which what differs from run to run is a word.

use std::fmt::Write;
use std::net::SocketAddr;
use std::process::Command;

use serde_json::Value;

use crate::support::{Answer, TestApp};

pub struct Transcript<'a> {
    app: &'a TestApp,
    replaced: Vec<(String, String)>,
    log: String,
}

/// Where a call goes: the seeds have one port for both.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum To {
    Public,
    Side,
}

impl<'a> Transcript<'a> {
    pub fn new(app: &'a TestApp) -> Self {
        Self { app, replaced: Vec::new(), log: String::new() }
    }

    fn address(&self, to: To) -> SocketAddr {
        if to == To::Public { self.app.public } else { self.app.admin }
    }

    /// From now on `placeholder` stands for `value`.
    pub fn set(&mut self, placeholder: &str, value: &str) {
        self.replaced.retain(|(known, _)| known != placeholder);
        self.replaced.push((placeholder.to_owned(), value.to_owned()));
    }

    /// Runs a line as it stands in the text. `host` is what the text has for the service.
    pub fn curl(&mut self, to: To, host: &str, line: &str) -> Answer {
        let mut line = line.replace(host, &format!("http://{}", self.address(to)));
        for (placeholder, value) in &self.replaced {
            line = line.replace(placeholder.as_str(), value);
        }
        let done =
            Command::new("sh").arg("-c").arg(format!("{line} --silent --include --noproxy '*'")).output().unwrap();
        assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
        let answer = parse(&done.stdout);
        // As curl itself decides it.
        let usual = if line.contains(" -d ") { "POST" } else { "GET" };
        let method = line.split("-X ").nth(1).map_or(usual, |rest| rest.split_whitespace().next().unwrap());
        let address = self.address(to).to_string();
        let path = line.split(&address).nth(1).unwrap().split(['"', ' ', '\n']).next().unwrap();
        self.note(to, &format!("{method} {path}"), &answer);
        answer
    }

    /// A call that the text gives without a line: method and path, credential, body.
    pub fn call(&mut self, to: To, what: &str, bearer: Option<&str>, body: Option<&Value>) -> Answer {
        let (method, path) = what.split_once(' ').unwrap();
        let bearer = bearer.map(|token| format!("Bearer {token}"));
        let headers: Vec<(&str, &str)> = bearer.iter().map(|value| ("authorization", value.as_str())).collect();
        let answer = crate::support::http::call(self.address(to), method, path, &headers, body);
        self.note(to, what, &answer);
        answer
    }

    fn note(&mut self, to: To, what: &str, answer: &Answer) {
        let port = if to == To::Public { "public" } else { "side port" };
        writeln!(self.log, "## {what} ({port})\n{}", answer.status).unwrap();
        let body = match serde_json::from_slice::<Value>(&answer.body) {
            Ok(value) => serde_json::to_string_pretty(&redacted("", &value)).unwrap(),
            Err(_) => answer.text(),
        };
        writeln!(self.log, "{body}\n").unwrap();
    }

    /// All that was said.
    pub fn text(self) -> String {
        self.log
    }
}

fn parse(output: &[u8]) -> Answer {
    let at = output.windows(4).position(|w| w == b"\r\n\r\n").expect("an answer with a head");
    let head = String::from_utf8_lossy(&output[..at]).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers =
        lines.filter_map(|line| line.split_once(": ")).map(|(n, v)| (n.to_lowercase(), v.to_owned())).collect();
    Answer { status, headers, body: output[at + 4..].to_vec(), chunks: Vec::new() }
}

/// Words for what is another in every run.
fn redacted(name: &str, value: &Value) -> Value {
    match value {
        Value::Object(map) => map.iter().map(|(key, inner)| (key.clone(), redacted(key, inner))).collect(),
        Value::Array(list) => list.iter().map(|inner| redacted(name, inner)).collect(),
        Value::String(text) => Value::String(word(name, text)),
        Value::Number(_) if matches!(name, "session_id" | "processing_time_ms" | "expires_in" | "sequence") => {
            Value::from(format!("[{name}]"))
        }
        Value::Number(_) if matches!(name, "used_percent" | "used_mb" | "available_mb" | "free_gb" | "memory") => {
            Value::from(format!("[{name}]"))
        }
        other => other.clone(),
    }
}

fn word(name: &str, text: &str) -> String {
    for prefix in ["enc:v1:", "pe-", "clx_", "at_", "rt_", "eyJ", "req_", "chatcmpl-"] {
        if text.starts_with(prefix) {
            let cut = if text.ends_with('…') { "…masked" } else { "…" };
            return format!("[{prefix}{cut}]");
        }
    }
    let digits = |at: std::ops::Range<usize>| text.get(at).is_some_and(|part| part.bytes().all(|b| b.is_ascii_digit()));
    match name {
        "date" if text.len() == 10 => "[date]".into(),
        _ if text.len() >= 19 && digits(0..4) && digits(11..13) && text.as_bytes()[10] == b'T' => {
            if text.ends_with('Z') { "[time]".into() } else { "[time without a zone]".into() }
        }
        "mac" | "prev" | "id" | "version" | "host" | "user-agent" | "x-forwarded-host" => format!("[{name}]"),
        _ => text.to_owned(),
    }
}

/// Asserts that an answer has every field of the document's example, with a value of the same kind. More fields may be there.
pub fn fits(answer: &Answer, document: &Value) {
    let got = answer.json();
    if let Err(why) = compare("", document, &got) {
        panic!("{why}\nthe document has {document}\nthe answer is {got}");
    }
}

fn compare(path: &str, document: &Value, got: &Value) -> Result<(), String> {
    match (document, got) {
        (Value::Object(wanted), Value::Object(map)) => wanted.iter().try_for_each(|(key, inner)| {
            let found = map.get(key).ok_or_else(|| format!("{path}/{key} is not there"))?;
            compare(&format!("{path}/{key}"), inner, found)
        }),
        (Value::Array(wanted), Value::Array(list)) => match wanted.first() {
            Some(example) => list.iter().try_for_each(|inner| compare(&format!("{path}[]"), example, inner)),
            None => Ok(()),
        },
        (Value::String(_), Value::String(_))
        | (Value::Number(_), Value::Number(_))
        | (Value::Bool(_), Value::Bool(_))
        | (Value::Null, _) => Ok(()),
        _ => Err(format!("{path} is of another kind: {got}")),
    }
}

#[test]
fn what_does_not_fit_a_document_is_seen() {
    use serde_json::json;
    let document = json!({"a": 1, "b": {"c": "x"}, "d": [{"e": true}]});
    let fitting = json!({"a": 2, "b": {"c": "y", "more": 1}, "d": [], "f": 1});
    assert_eq!(compare("", &document, &fitting), Ok(()));
    for (bad, why) in [
        (json!({"b": {"c": "y"}, "d": []}), "/a is not there"),
        (json!({"a": "2", "b": {"c": "y"}, "d": []}), "/a is of another kind"),
        (json!({"a": 2, "b": {}, "d": []}), "/b/c is not there"),
        (json!({"a": 2, "b": {"c": "y"}, "d": [{"e": 1}]}), "/d[]/e is of another kind"),
    ] {
        assert!(compare("", &document, &bad).unwrap_err().starts_with(why), "{bad}");
    }
}
