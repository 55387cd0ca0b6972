//! What earlier commits wrote opens: their data folders, their backups and their configs, kept in `tests/fixtures`.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::{BACKENDS, lines, site_on};
use crate::accounts::process::{Site, admin_login};
use crate::support::{TestApp, chat_body, http};

/// A folder for each commit whose files are kept; its name is the commit's.
fn commits() -> Vec<PathBuf> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let found: Vec<PathBuf> = std::fs::read_dir(fixtures)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("sled.tar.gz").exists())
        .collect();
    assert!(!found.is_empty());
    found
}

fn unpack(archive: &Path, into: &Path) {
    let done = Command::new("tar").arg("xzf").arg(archive).arg("-C").arg(into).status().unwrap();
    assert!(done.success(), "{}", archive.display());
}

fn keys(site: &Site) -> Value {
    serde_json::from_str(&std::fs::read_to_string(site.dir.path().join("keys.json")).unwrap()).unwrap()
}

fn call(site: &Site, key: &Value) -> u16 {
    let bearer = format!("Bearer {}", key.as_str().unwrap());
    let body = chat_body(json!({"messages": [{"role": "user", "content": "Is it still here?"}]}));
    http::call(site.public, "POST", "/v1/chat/completions", &[("authorization", &bearer)], Some(&body)).status
}

/// What of each meter was ever spent.
fn spent(site: &Site, token: &str, user: u64, meter: &str) -> f64 {
    let bearer = format!("Bearer {token}");
    let shown =
        http::call(site.admin, "GET", &format!("/v1/admin-panel/users/{user}"), &[("authorization", &bearer)], None);
    assert_eq!(shown.status, 200, "{}", shown.text());
    shown.json()["user"]["meters"][meter]["spent"].as_f64().unwrap()
}

/// Everything that the fixture's gateway was told is there and counts. `with_open`: it was killed with a call open, which is
/// charged.
fn all_is_there(site: &Site, with_open: bool) {
    let keys = keys(site);
    let server = site.serve(&[]);
    let (role, token) = admin_login(site, "root", "Fixture-Admin-1").unwrap();
    assert_eq!(role, "superadmin");
    // User 1 made three calls of 0.02 credits; user 2 one, and one that nobody answered.
    assert_eq!(spent(site, &token, 1, "conversations"), 3.0);
    assert_eq!(spent(site, &token, 1, "credits"), 0.06);
    assert_eq!(spent(site, &token, 2, "conversations"), if with_open { 2.0 } else { 1.0 });
    assert_eq!(call(site, &keys["john"]), 200);
    assert_eq!(call(site, &keys["jane"]), 200);
    assert_eq!(call(site, &keys["mallory"]), 403, "suspended then, suspended now");
    assert_eq!(spent(site, &token, 1, "conversations"), 4.0);
    let login = json!({"email": "johndoe@example.com", "password": "Fixture-Pass-1"});
    let login = http::call(site.public, "POST", "/v1/users/login", &[], Some(&login));
    assert_eq!(login.status, 200, "{}", login.text());
    let bearer = format!("Bearer {token}");
    let rules = http::call(site.admin, "GET", "/v1/admin-panel/ip-rules", &[("authorization", &bearer)], None);
    assert!(rules.text().contains("203.0.113.0/24"), "{}", rules.text());
    let path = "/v1/admin-panel/users/1/codes/stats";
    let codes = http::call(site.admin, "GET", path, &[("authorization", &bearer)], None);
    assert_eq!(codes.json()["total"], 5, "{}", codes.text());
    assert_eq!(server.terminate(), Some(0));
    let logs = site.run(&["logs", "show", "--user", "1", "--page-size", "200"], &[]);
    let said = lines(&logs.out);
    assert_eq!(said.len(), 4, "three from then, one from now: {}", logs.out);
    assert!(logs.out.contains("What did we keep?"), "{}", logs.out);
    for words in [&["ledger", "verify"][..], &["logs", "verify"], &["audit", "verify"]] {
        let ended = site.run(words, &[]);
        assert_eq!(ended.code, Some(0), "{words:?}: {ended:?}");
    }
}

#[test]
fn data_folders_of_earlier_commits_open_with_everything_in_them() {
    let mock = TestApp::start("");
    for commit in commits() {
        for backend in BACKENDS {
            let site = site_on(backend, mock.upstream.addr());
            unpack(&commit.join(format!("{backend}.tar.gz")), site.dir.path());
            all_is_there(&site, true);
        }
    }
}

#[test]
fn backups_of_earlier_commits_are_restored_on_either_backend() {
    let mock = TestApp::start("");
    for commit in commits() {
        for (from, to) in [("sled", "redb"), ("redb", "sled")] {
            let site = site_on(to, mock.upstream.addr());
            unpack(&commit.join(format!("{from}.tar.gz")), site.dir.path());
            std::fs::remove_dir_all(site.dir.path().join("data")).unwrap();
            let file = commit.join(format!("{from}.backup"));
            let restored = site.run(&["restore", file.to_str().unwrap()], &[]);
            assert_eq!(restored.code, Some(0), "{restored:?}");
            all_is_there(&site, false);
        }
    }
}

#[test]
fn configs_of_earlier_commits_are_good() {
    let mut seen = 0;
    for commit in commits() {
        for entry in std::fs::read_dir(commit.join("config")).unwrap() {
            let file = entry.unwrap().path();
            let checked = Command::new(env!("CARGO_BIN_EXE_tollgate"))
                .args(["check-config", "--config"])
                .arg(&file)
                .env_clear()
                .output()
                .unwrap();
            assert!(checked.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&checked.stderr));
            seen += 1;
        }
    }
    assert!(seen >= 8, "{seen}");
}
