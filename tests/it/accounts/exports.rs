//! `logs export`: the same conversations as JSON Lines and as Parquet, as other programs read them.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::process::Site;
use crate::openai_client::{ROOT, python};
use crate::support::{PASSWORD, TestApp, chat_body, http, wait_until};

/// What DuckDB finds in a Parquet file, after it has compared it with the lines of the other export.
fn duckdb_sees(parquet: &Path, lines: &Path) -> Value {
    let script = format!("{ROOT}/tests/it/parquet_reader.py");
    let done = Command::new(python()).arg(script).args([parquet, lines]).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{err}");
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}"))
}

/// Registers a user on a running site and lets him say so much to a model.
fn talk(site: &Site, name: &str, model: &str, said: &[&str]) -> u64 {
    let email = format!("{name}@example.com");
    let user = json!({"username": name, "name": "A Name", "email": email, "password": PASSWORD});
    let made = http::call(site.public, "POST", "/v1/users/register", &[], Some(&user)).json();
    let bearer = format!("Bearer {}", made["api_key"].as_str().unwrap());
    for text in said {
        let body = chat_body(json!({"model": model, "messages": [{"role": "user", "content": text}]}));
        let answer =
            http::call(site.public, "POST", "/v1/chat/completions", &[("authorization", &bearer)], Some(&body));
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    made["user_id"].as_u64().unwrap()
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn exports_say_the_same_in_both_formats_with_the_server_running_and_stopped() {
    let mock = TestApp::start("");
    let site = Site::new(mock.upstream.addr());
    let text = std::fs::read_to_string(site.config()).unwrap();
    site.write(&format!("{text}[journal.redact]\ndrop = [\"request_id\"]\n"));
    let server = site.serve(&[]);
    let alice = talk(&site, "alice", "gpt-4o", &["one", "zwölf \"quoted\"\nlines", "😀"]);
    talk(&site, "bob", "gpt-4o-mini", &["four", "five"]);
    let export = |more: &[&str]| site.run(&[&["logs", "export"], more].concat(), &[]);
    wait_until("all are written", || lines(&export(&[]).out).len() == 5);

    let file = |name: &str| site.dir.path().join(name);
    let check = |when: &str| {
        let (parquet, jsonl) = (file(&format!("{when}.parquet")), file(&format!("{when}.jsonl")));
        let done = export(&["--format", "parquet", "--output", parquet.to_str().unwrap()]);
        assert_eq!(done.code, Some(0), "{}", done.err);
        assert_eq!((done.out, done.err.as_str()), (format!("5 records in {}\n", parquet.display()), ""));
        assert_eq!(export(&["--output", jsonl.to_str().unwrap()]).code, Some(0));
        let seen = duckdb_sees(&parquet, &jsonl);
        assert_eq!(seen["rows"], 5);
        assert_eq!(seen["types"]["timestamp"], "TIMESTAMP WITH TIME ZONE");
        assert_eq!((&seen["types"]["id"], &seen["types"]["request"]), (&json!("BIGINT"), &json!("VARCHAR")));
        assert_eq!(seen["types"]["truncated"], "BOOLEAN");
        let all = lines(&std::fs::read_to_string(&jsonl).unwrap());
        let said: Vec<&Value> = all.iter().map(|record| &record["messages"]["request"][0]["content"]).collect();
        assert_eq!(said, ["one", "zwölf \"quoted\"\nlines", "😀", "four", "five"], "oldest first");
        assert!(!file(&format!("{when}.parquet.partial")).exists());
    };
    check("running");
    for (filters, expected) in [
        (vec!["--user", "alice"], 3),
        (vec!["--user", &alice.to_string(), "--model", "gpt-4o-mini"], 0),
        (vec!["--model", "gpt-4o-mini"], 2),
        (vec!["--from", "2026-01-01"], 5),
        (vec!["--to", "2026-01-01T00:00:00Z"], 0),
        (vec!["--from", "2020-01-01", "--to", "2999-12-31"], 5),
    ] {
        let found = export(&filters);
        assert_eq!((found.code, lines(&found.out).len()), (Some(0), expected), "{filters:?}: {}", found.err);
    }
    assert_eq!(server.terminate(), Some(0));
    check("stopped");
    assert_eq!(lines(&export(&["--user", "BOB"]).out).len(), 2);
}

#[test]
fn what_cannot_be_exported_is_named_and_leaves_nothing() {
    let mock = TestApp::start("");
    let site = Site::new(mock.upstream.addr());
    let server = site.serve(&[]);
    talk(&site, "alice", "gpt-4o", &["one"]);
    assert_eq!(server.terminate(), Some(0));
    let target = site.dir.path().join("out.parquet");
    let target = target.to_str().unwrap();
    for (words, code, reason) in [
        (vec!["--format", "parquet"], 2, "--output"),
        (vec!["--format", "csv"], 2, "csv"),
        (vec!["--from", "yesterday"], 2, "--from: \"yesterday\""),
        (vec!["--user", "nobody", "--output", target], 1, "nobody"),
        (vec!["--output", "/no/such/folder/x"], 1, "/no/such/folder/x.partial"),
    ] {
        let ended = site.run(&[&["logs", "export"], &words[..]].concat(), &[]);
        assert_eq!(ended.code, Some(code), "{words:?}: {ended:?}");
        assert!(ended.err.contains(reason), "{words:?}: {}", ended.err);
        assert!(ended.out.is_empty());
    }
    let left = std::fs::read_dir(site.dir.path()).unwrap();
    assert!(left.map(|entry| entry.unwrap().path()).all(|path| !path.to_string_lossy().contains("out.parquet")));
}
