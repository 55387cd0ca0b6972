//! `serve`, `create-admin`, `logs` and `check-config`, as processes.

use serde_json::{Value, json};

use super::process::{Site, admin_login};
use crate::support::{PASSWORD, TestApp, chat_body, http, wait_until};

/// Something to call.
fn upstream() -> TestApp {
    TestApp::start("")
}

#[test]
fn the_first_superadmin_comes_from_the_environment_once() {
    let mock = upstream();
    let site = Site::new(mock.upstream.addr());
    let named = |name| [("TOLLGATE_ADMIN_USERNAME", name), ("TOLLGATE_ADMIN_PASSWORD", PASSWORD)];
    let server = site.serve(&named("first"));
    assert_eq!(admin_login(&site, "first", PASSWORD).unwrap().0, "superadmin");
    assert_eq!(server.terminate(), Some(0));
    let server = site.serve(&named("second"));
    assert_eq!(admin_login(&site, "second", PASSWORD).unwrap_err(), 401, "there is staff already");
    assert_eq!(admin_login(&site, "first", PASSWORD).unwrap().0, "superadmin", "who is still there");
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn without_them_there_is_no_admin_and_no_default_password() {
    let mock = upstream();
    let site = Site::new(mock.upstream.addr());
    let _server = site.serve(&[]);
    for (name, password) in [("admin", "admin"), ("admin", "password"), ("root", ""), ("admin", PASSWORD)] {
        assert!(matches!(admin_login(&site, name, password), Err(400 | 401)), "{name}");
    }
}

#[test]
fn a_first_password_that_breaks_the_rule_stops_the_start() {
    let mock = upstream();
    let site = Site::new(mock.upstream.addr());
    let ended = site.run(&["serve"], &[("TOLLGATE_ADMIN_USERNAME", "first"), ("TOLLGATE_ADMIN_PASSWORD", "weak")]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.err.contains("TOLLGATE_ADMIN_PASSWORD") && !ended.err.contains("weak"), "{}", ended.err);
}

const CREATE: [&str; 5] = ["create-admin", "--username", "boss", "--email", "boss@example.com"];

#[test]
fn create_admin_on_a_stopped_server() {
    let mock = upstream();
    let site = Site::new(mock.upstream.addr());
    let ended = site.run(&CREATE, &[("TOLLGATE_ADMIN_PASSWORD", PASSWORD)]);
    assert_eq!((ended.code, ended.out.as_str()), (Some(0), "boss is now superadmin\n"), "{}", ended.err);
    let again = site.run(&CREATE, &[("TOLLGATE_ADMIN_PASSWORD", PASSWORD)]);
    assert_eq!(again.code, Some(1), "the name is taken: {again:?}");
    let _server = site.serve(&[]);
    assert_eq!(admin_login(&site, "boss", PASSWORD).unwrap().0, "superadmin");
}

#[test]
fn create_admin_on_a_running_server() {
    let mock = upstream();
    let site = Site::new(mock.upstream.addr());
    let server = site.serve(&[]);
    let first = site.run(&CREATE, &[("TOLLGATE_ADMIN_PASSWORD", PASSWORD)]);
    assert_eq!(first.code, Some(0), "{}", first.err);
    assert_eq!(admin_login(&site, "boss", PASSWORD).unwrap().0, "superadmin", "the first is a superadmin");
    assert_eq!(first.out, "boss is now superadmin\n", "and the command says so");
    let words = ["create-admin", "--username", "helper", "--email", "helper@example.com"];
    let second = site.run(&words, &[("TOLLGATE_ADMIN_PASSWORD", PASSWORD)]);
    assert_eq!((second.code, second.out.as_str()), (Some(0), "helper is now admin\n"), "{}", second.err);
    assert_eq!(admin_login(&site, "helper", PASSWORD).unwrap().0, "admin");
    let again = site.run(&words, &[("TOLLGATE_ADMIN_PASSWORD", PASSWORD)]);
    assert_eq!(again.code, Some(1), "{again:?}");
    assert_eq!(server.terminate(), Some(0));
    assert!(!site.dir.path().join("data/run/operator.json").exists(), "the way in goes with the server");
}

#[test]
fn create_admin_needs_a_password_that_fits() {
    let mock = upstream();
    let site = Site::new(mock.upstream.addr());
    let none = site.run(&CREATE, &[]);
    assert_eq!(none.code, Some(2), "{none:?}");
    assert!(none.err.contains("TOLLGATE_ADMIN_PASSWORD"), "{}", none.err);
    let weak = site.run(&CREATE, &[("TOLLGATE_ADMIN_PASSWORD", "weak")]);
    assert!(weak.code != Some(0) && weak.err.contains("at least 8 characters"), "{weak:?}");
    assert!(!weak.err.contains("weak"), "{}", weak.err);
}

/// Registers a user on a running site and lets him say so much.
fn talk(site: &Site, said: &[&str]) -> u64 {
    let user = json!({"username": "johndoe", "name": "John", "email": "john@example.com", "password": PASSWORD});
    let made = http::call(site.public, "POST", "/v1/users/register", &[], Some(&user)).json();
    let bearer = format!("Bearer {}", made["api_key"].as_str().unwrap());
    for text in said {
        let body = chat_body(json!({"messages": [{"role": "user", "content": text}]}));
        let headers = [("authorization", bearer.as_str())];
        let answer = http::call(site.public, "POST", "/v1/chat/completions", &headers, Some(&body));
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    made["user_id"].as_u64().unwrap()
}

fn lines(out: &str) -> Vec<Value> {
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn logs_show_and_verify_with_the_server_running_and_stopped() {
    let mock = upstream();
    let site = Site::new(mock.upstream.addr());
    let server = site.serve(&[]);
    let id = talk(&site, &["one", "two", "three"]).to_string();
    // The journal writes in batches; what is acknowledged is found a moment later.
    wait_until("all three are written", || lines(&site.run(&["logs", "show", "--user", &id], &[]).out).len() == 3);
    for user in [id.as_str(), "johndoe", "JohnDoe"] {
        let shown = site.run(&["logs", "show", "--user", user], &[]);
        assert_eq!(shown.code, Some(0), "{user}: {}", shown.err);
        let said: Vec<Value> =
            lines(&shown.out).iter().map(|r| r["messages"]["request"][0]["content"].clone()).collect();
        assert_eq!(said, ["three", "two", "one"], "{user}");
    }
    let page = site.run(&["logs", "show", "--user", &id, "--page", "2", "--page-size", "2"], &[]);
    assert_eq!(lines(&page.out).len(), 1);
    assert_eq!(site.run(&["logs", "show", "--user", "nobody"], &[]).code, Some(1));
    assert_eq!(site.run(&["logs", "verify"], &[]).code, Some(0));
    assert_eq!(server.terminate(), Some(0));

    for user in [id.as_str(), "johndoe"] {
        let shown = site.run(&["logs", "show", "--user", user], &[]);
        assert_eq!((shown.code, lines(&shown.out).len()), (Some(0), 3), "{user}: {}", shown.err);
    }
    let verified = site.run(&["logs", "verify"], &[]);
    assert_eq!(verified.code, Some(0), "{}", verified.err);
    assert!(verified.out.starts_with("3 records in 1 segment"), "{}", verified.out);
}

#[test]
fn logs_verify_finds_a_changed_byte() {
    let mock = upstream();
    let site = Site::new(mock.upstream.addr());
    let server = site.serve(&[]);
    talk(&site, &["a word to be changed", "another"]);
    assert_eq!(server.terminate(), Some(0));
    let folder = site.dir.path().join("data/journal");
    let holds = |bytes: &[u8]| bytes.windows(9).position(|w| w == b"a word to");
    let (file, mut bytes, at) = std::fs::read_dir(folder)
        .unwrap()
        .filter_map(|entry| {
            let file = entry.unwrap().path();
            let bytes = std::fs::read(&file).ok()?;
            holds(&bytes).map(|at| (file, bytes, at))
        })
        .next()
        .unwrap();
    bytes[at] = b'A';
    std::fs::write(file, bytes).unwrap();
    let verified = site.run(&["logs", "verify"], &[]);
    assert_eq!(verified.code, Some(1), "{verified:?}");
}

#[test]
fn an_encrypted_journal_is_read_with_its_key_only() {
    let mock = upstream();
    let site = Site::new(mock.upstream.addr());
    let plain = std::fs::read_to_string(site.config()).unwrap();
    let key = "8c".repeat(32);
    let with = |line: &str| site.write(&format!("{plain}\n[journal]\n{line}\n"));
    with("encryption_key = { env = \"TEST_JOURNAL_KEY\" }");
    let server = site.serve(&[("TEST_JOURNAL_KEY", &key)]);
    let id = talk(&site, &["a word to be kept", "another"]).to_string();
    let vars = [("TEST_JOURNAL_KEY", key.as_str())];
    wait_until("both are written", || lines(&site.run(&["logs", "show", "--user", &id], &vars).out).len() == 2);
    assert_eq!(server.terminate(), Some(0));

    for entry in std::fs::read_dir(site.dir.path().join("data/journal")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(9).any(|w| w == b"a word to"));
    }
    let verified = site.run(&["logs", "verify"], &vars);
    assert_eq!(verified.code, Some(0), "{}", verified.err);
    assert!(verified.out.contains(" (journal.encryption_key): 1 segments"), "{}", verified.out);

    with("");
    for command in [&["logs", "show", "--user", &id][..], &["serve"]] {
        let refused = site.run(command, &[]);
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.err.contains("journal.encryption_key or journal.old_encryption_keys"), "{}", refused.err);
    }
    with(&format!("old_encryption_keys = [\"{key}\"]"));
    assert_eq!(lines(&site.run(&["logs", "show", "--user", &id], &[]).out).len(), 2);
    let printed = site.run(&["check-config"], &[]);
    assert!(printed.code == Some(0) && !printed.out.contains(&key), "{printed:?}");

    for bad in ["correct horse battery staple", &key[1..]] {
        with(&format!("encryption_key = \"{bad}\""));
        for command in ["serve", "check-config"] {
            let refused = site.run(&[command], &[]);
            assert_eq!(refused.code, Some(2), "{refused:?}");
            assert!(refused.err.contains("journal.encryption_key: not 32 bytes"), "{}", refused.err);
            assert!(refused.err.contains("openssl rand -hex 32") && !refused.err.contains(bad), "{}", refused.err);
        }
    }
}

#[test]
fn check_config_prints_what_is_in_force_with_secrets_masked() {
    let mock = upstream();
    let site = Site::new(mock.upstream.addr());
    let text = std::fs::read_to_string(site.config()).unwrap();
    let secret = "[[upstreams]]\ncredential = { header = \"authorization\", value = \"Bearer sk-very-secret\" }";
    site.write(&text.replace("[[upstreams]]", secret));
    let ended = site.run(&["check-config"], &[("TOLLGATE__LIMITS__PER_IP_PER_MINUTE", "77")]);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(!ended.out.contains("sk-very-secret") && ended.out.contains("********"), "{}", ended.out);
    assert!(ended.out.contains("per_ip_per_minute = 77"), "{}", ended.out);
    site.write(&ended.out);
    assert_eq!(site.run(&["check-config"], &[]).code, Some(0), "what it prints is itself a config");
    assert!(!site.dir.path().join("data").exists(), "it touches nothing");
}

#[test]
fn check_config_refuses_with_file_line_and_reason() {
    let mock = upstream();
    let site = Site::new(mock.upstream.addr());
    let good = std::fs::read_to_string(site.config()).unwrap();
    let file = site.config().display().to_string();
    // Appended or put in as the given line; the line and a word that must be in the reason.
    for (from, to, line, reason) in [
        ("workers = 1", "wokers = 1", 5, "workers"),
        ("workers = 1", "workers = \"many\"", 5, "a text"),
        ("workers = 1", "workers = = 1", 5, ""),
        ("conversations = 1", "conversations = -1", 15, "conversations"),
        ("upstream = \"ai\"", "upstream = \"io\"", 14, "io"),
    ] {
        assert!(good.contains(from));
        site.write(&good.replace(from, to));
        let ended = site.run(&["check-config"], &[]);
        assert_eq!(ended.code, Some(2), "{to}: {ended:?}");
        assert!(ended.err.contains(&format!("{file}:{line}")), "{to}: {}", ended.err);
        assert!(ended.err.contains(reason), "{to}: {}", ended.err);
        assert!(ended.out.is_empty());
    }
    std::fs::remove_file(site.config()).unwrap();
    let ended = site.run(&["check-config"], &[]);
    assert_eq!(ended.code, Some(2), "no such file: {ended:?}");
    assert_eq!(site.run(&["no-such-command"], &[]).code, Some(2));
}

#[test]
fn a_reader_who_has_seen_enough_ends_a_command_quietly() {
    let mock = upstream();
    let site = Site::new(mock.upstream.addr());
    let server = site.serve(&[]);
    assert_eq!(server.terminate(), Some(0));
    let ended = |command: &mut std::process::Command, what: &str| {
        // Nobody reads it from the beginning: the first line that is printed finds that out.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command.stdout(writer).stderr(std::process::Stdio::piped()).output().unwrap();
        assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""), "{what}");
    };
    for words in [
        vec!["check-config"],
        vec!["codes", "stats"],
        vec!["users", "export"],
        vec!["audit", "show"],
        vec!["audit", "verify"],
        vec!["ledger", "verify"],
        vec!["logs", "verify"],
        vec!["logs", "export"],
    ] {
        ended(&mut site.command(&words), &words.join(" "));
    }
    for port in ["public", "admin"] {
        ended(std::process::Command::new(env!("CARGO_BIN_EXE_tollgate")).args(["openapi", port]), port);
    }
    // A backup that nobody has read to its end is none.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = site.command(&["backup", "-"]).stdout(writer).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn codes_for_nobody_say_that_there_is_no_such_user() {
    let mock = upstream();
    let site = Site::new(mock.upstream.addr());
    let server = site.serve(&[]);
    let all_say_so = |how: &str| {
        for words in [["codes", "generate", "NOBODY"], ["codes", "stats", "NOBODY"], ["codes", "export", "NOBODY"]] {
            let ended = site.run(&words, &[]);
            assert_eq!(ended.code, Some(1), "{words:?} {how}: {ended:?}");
            assert!(ended.err.contains("there is no user \"NOBODY\""), "{words:?} {how}: {ended:?}");
        }
    };
    all_say_so("through the server");
    assert_eq!(server.terminate(), Some(0));
    all_say_so("on the files");
}
