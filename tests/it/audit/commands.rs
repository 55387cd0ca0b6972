//! `audit show` and `audit verify`, beside a running server and on a stopped one's files.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::accounts::process::Site;
use crate::support::{PASSWORD, TestApp, http};

const NAMED: [(&str, &str); 2] = [("TOLLGATE_ADMIN_USERNAME", "root"), ("TOLLGATE_ADMIN_PASSWORD", PASSWORD)];

fn lines(out: &str) -> Vec<Value> {
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn shown(site: &Site, words: &[&str]) -> Vec<Value> {
    let ended = site.run(&[&["audit", "show"], words].concat(), &[]);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    lines(&ended.out)
}

fn segment(site: &Site) -> PathBuf {
    let items = std::fs::read_dir(site.dir.path().join("data/audit")).unwrap().map(|item| item.unwrap().path());
    items.filter(|path| path.extension().is_some_and(|e| e == "seg")).max().unwrap()
}

fn register(site: &Site, name: &str) {
    let body =
        json!({"username": name, "name": "Some One", "email": format!("{name}@example.com"), "password": PASSWORD});
    assert_eq!(http::call(site.public, "POST", "/v1/users/register", &[], Some(&body)).status, 200);
}

#[test]
fn show_and_verify_with_the_server_running_and_stopped() {
    let mock = TestApp::start("");
    let site = Site::new(mock.upstream.addr());
    assert!(shown(&site, &[]).is_empty(), "nothing was ever written");
    let create = ["create-admin", "--username", "boss", "--email", "boss@example.com"];
    assert_eq!(site.run(&create, &[("TOLLGATE_ADMIN_PASSWORD", PASSWORD)]).code, Some(0));
    let made = shown(&site, &["--action", "staff.created"]);
    assert_eq!((&made[0]["actor"]["kind"], &made[0]["target"]["name"]), (&json!("operator"), &json!("boss")));
    assert_eq!((&made[0]["ip_address"], &made[0]["details"]["role"]), (&Value::Null, &json!("superadmin")));

    let server = site.serve(&[]);
    let create = ["create-admin", "--username", "deputy", "--email", "deputy@example.com"];
    assert_eq!(site.run(&create, &[("TOLLGATE_ADMIN_PASSWORD", PASSWORD)]).code, Some(0));
    (0..3).for_each(|n| register(&site, &format!("user-{n}")));
    let made = shown(&site, &["--user", "deputy"]);
    assert_eq!((&made[0]["actor"]["kind"], &made[0]["ip_address"]), (&json!("operator"), &json!("127.0.0.1")));
    assert_eq!(shown(&site, &["--user", "user-1"]).len(), 1);
    assert_eq!(shown(&site, &["--action", "user.registered", "--page", "2", "--page-size", "2"]).len(), 1);
    assert_eq!(shown(&site, &["--severity", "critical"]).len(), 0);
    let verified = site.run(&["audit", "verify"], &[]);
    assert_eq!(verified.code, Some(0), "{}{}", verified.out, verified.err);
    assert!(verified.out.starts_with("6 records in 1 segments"), "{}", verified.out);
    assert_eq!(server.terminate(), Some(0));

    let all = shown(&site, &[]);
    assert_eq!((all.len(), &all[0]["action"]), (7, &json!("server.stopped")));
    let verified = site.run(&["audit", "verify"], &[]);
    assert_eq!(verified.code, Some(0), "{}{}", verified.out, verified.err);
    let head = verified.out.lines().find_map(|line| line.strip_prefix("head ")).unwrap();
    assert_eq!(site.run(&["audit", "verify", "--head", head], &[]).code, Some(0));
    let further = head.replacen("7:", "8:", 1);
    assert_eq!(site.run(&["audit", "verify", "--head", &further], &[]).code, Some(1));
    assert_eq!(site.run(&["audit", "verify", "--head", "nonsense"], &[]).code, Some(2));
    for words in [["--severity", "loud"], ["--action", "nonsense"], ["--from", "yesterday"]] {
        assert_eq!(site.run(&[["audit", "show"], words].concat(), &[]).code, Some(2), "{words:?}");
    }
}

#[test]
fn verify_names_the_first_bad_record_running_or_stopped() {
    let mock = TestApp::start("");
    let site = Site::new(mock.upstream.addr());
    let server = site.serve(&NAMED);
    (0..3).for_each(|n| register(&site, &format!("user-{n}")));
    let whole = std::fs::read(segment(&site)).unwrap();
    let mut changed = whole.clone();
    let at = changed.windows(6).position(|w| w == b"user-1").unwrap();
    changed[at + 5] = b'7';
    std::fs::write(segment(&site), &changed).unwrap();
    // First superadmin, start, then the three.
    let wrong = |ended: crate::accounts::process::Ended, number: u64| {
        assert_eq!(ended.code, Some(1), "{ended:?}");
        let first = ended.out.lines().find(|line| line.starts_with("record ")).unwrap_or_default().to_owned();
        assert!(first.starts_with(&format!("record {number}")), "{ended:?}");
        assert!(ended.err.contains(&format!("the first bad record is {number}")), "{ended:?}");
    };
    wrong(site.run(&["audit", "verify"], &[]), 4);
    std::fs::write(segment(&site), &whole).unwrap();
    assert_eq!(site.run(&["audit", "verify"], &[]).code, Some(0));
    assert_eq!(server.terminate(), Some(0));

    let path = segment(&site);
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    wrong(site.run(&["audit", "verify"], &[]), 6);
    assert_eq!(std::fs::read(&path).unwrap().len(), whole.len() - 1, "a check leaves the evidence as it is");
    std::fs::remove_file(&path).unwrap();
    wrong(site.run(&["audit", "verify"], &[]), 1);
    // A server starts all the same, and says what is missing.
    let server = site.serve(&NAMED);
    let gap = shown(&site, &["--severity", "critical"]);
    assert_eq!((&gap[0]["action"], &gap[0]["details"]["first_missing"]), (&json!("audit.gap"), &json!(1)));
    assert_eq!((&gap[0]["id"], &gap[0]["details"]["last_missing"]), (&json!(7), &json!(6)));
    wrong(site.run(&["audit", "verify"], &[]), 1);
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn a_crash_is_recorded_at_the_next_start_and_loses_no_record() {
    let mock = TestApp::start("");
    let site = Site::new(mock.upstream.addr());
    for run in 0..3 {
        let server = site.serve(&NAMED);
        register(&site, &format!("user-{run}"));
        drop(server); // killed
    }
    assert_eq!(shown(&site, &["--action", "user.registered"]).len(), 3, "what was acknowledged is there");
    let starts = shown(&site, &["--action", "server.started"]);
    let after: Vec<&Value> = starts.iter().map(|record| &record["details"]["after_a_crash"]).collect();
    assert_eq!(after, [&json!(true), &json!(true), &json!(false)]);
    let verified = site.run(&["audit", "verify"], &[]);
    assert_eq!(verified.code, Some(0), "{}{}", verified.out, verified.err);
}

#[test]
fn without_its_secrets_a_trail_cannot_be_checked() {
    let mock = TestApp::start("");
    let site = Site::new(mock.upstream.addr());
    assert_eq!(site.serve(&NAMED).terminate(), Some(0));
    std::fs::remove_dir_all(site.dir.path().join("data/secrets")).unwrap();
    let ended = site.run(&["audit", "verify"], &[]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("there is no pepper"), "{}", ended.err);
    assert!(!site.dir.path().join("data/secrets").exists(), "none is made");
}
