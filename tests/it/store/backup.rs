//! `backup` and `restore`: from a running and a stopped server, from one backend to the other, and with things gone wrong.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{BACKENDS, Person, lines, site_on, use_backend};
use crate::accounts::process::Site;
use crate::support::{TestApp, http, wait_until};

/// Rates and balances out of the way.
const GENEROUS: [(&str, &str); 2] =
    [("TOLLGATE__LIMITS__PER_IP_PER_MINUTE", "0"), ("TOLLGATE__PLANS__FREE__METERS__CONVERSATIONS__GRANT", "1000000")];

fn file_in(site: &Site, name: &str) -> String {
    site.dir.path().join(name).display().to_string()
}

/// Every file of the state with its content; what belongs to a running process alone is left out.
fn state(data: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(data).unwrap().to_owned(), std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

fn all_is_well(site: &Site) {
    for words in [&["ledger", "verify"][..], &["logs", "verify"]] {
        let ended = site.run(words, &[]);
        assert_eq!(ended.code, Some(0), "{words:?}: {ended:?}");
    }
}

fn said(site: &Site, person: &Person) -> usize {
    let shown = site.run(&["logs", "show", "--user", &person.id.to_string(), "--page-size", "200"], &[]);
    assert_eq!(shown.code, Some(0), "{}", shown.err);
    lines(&shown.out).len()
}

#[test]
fn a_backup_of_a_busy_server_is_one_moment_of_it_and_serves_on_the_other_backend() {
    let mock = TestApp::start("");
    for (from, to) in [("sled", "redb"), ("redb", "sled")] {
        let site = site_on(from, mock.upstream.addr());
        let server = site.serve(&GENEROUS);
        let people: Vec<Person> = (0..4).map(|n| Person::new(&site, &format!("user{n}"))).collect();
        let (stop, calls) = (AtomicBool::new(false), AtomicU64::new(0));
        let file = file_in(&site, "backup");
        std::thread::scope(|scope| {
            for person in &people {
                scope.spawn(|| {
                    while !stop.load(Ordering::SeqCst) {
                        assert_eq!(person.says(&site, "something to keep").status, 200);
                        calls.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
            wait_until("they are talking", || calls.load(Ordering::SeqCst) > 20);
            wait_until("and it is written down", || people.iter().all(|person| said(&site, person) > 0));
            let before = calls.load(Ordering::SeqCst);
            let made = site.run(&["backup", &file], &[]);
            stop.store(true, Ordering::SeqCst);
            assert_eq!(made.code, Some(0), "{made:?}");
            assert_eq!(made.err, "", "no progress in a pipe");
            assert!(calls.load(Ordering::SeqCst) > before, "nobody had to stop for it");
        });
        let mode = std::fs::metadata(&file).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "it holds what opens every account");
        assert!(!Path::new(&format!("{file}.partial")).exists());
        let left_over = std::fs::read_dir(site.dir.path().join("data/run")).unwrap();
        let left_over: Vec<_> = left_over.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left_over, ["operator.json"], "no second names stay behind");
        let busy = site.run(&["restore", &file, "--force"], &[]);
        assert_eq!(busy.code, Some(1), "{busy:?}");
        assert!(busy.err.contains("stop it first"), "{}", busy.err);
        // Two calls that the backup does not have, against one after it was put back.
        people[0].left_after_a_call(&site);
        let last = people[0].left_after_a_call(&site);
        assert_eq!(server.terminate(), Some(0));

        use_backend(&site, to);
        let not_empty = site.run(&["restore", &file], &[]);
        assert_eq!(not_empty.code, Some(2), "{not_empty:?}");
        assert!(not_empty.err.contains("--force"), "{}", not_empty.err);
        let restored = site.run(&["restore", &file, "--force"], &[]);
        assert_eq!(restored.code, Some(0), "{restored:?}");
        assert!(restored.out.contains("before-restore-"), "{}", restored.out);
        all_is_well(&site);
        let server = site.serve(&GENEROUS);
        assert!(people[0].left_after_a_call(&site) > last, "the balance is that of the backup's moment");
        for person in &people {
            assert_eq!(person.says(&site, "the same key").status, 200);
            // Each of the people had talked before.
            assert!(said(&site, person) > 0);
        }
        assert_eq!(server.terminate(), Some(0));
        all_is_well(&site);
    }
}

#[test]
fn a_backup_of_a_stopped_server_holds_all_of_it() {
    let mock = TestApp::start("");
    for backend in BACKENDS {
        let site = site_on(backend, mock.upstream.addr());
        let nothing = site.run(&["backup", &file_in(&site, "backup")], &[]);
        assert_eq!(nothing.code, Some(1), "there is nothing yet: {nothing:?}");
        let server = site.serve(&[]);
        let person = Person::new(&site, "johndoe");
        assert_eq!(person.left_after_a_call(&site), 9);
        assert_eq!(server.terminate(), Some(0));
        let file = file_in(&site, "backup");
        let made = site.run(&["backup", &file], &[]);
        assert_eq!(made.code, Some(0), "{made:?}");

        let other = site_on(backend, mock.upstream.addr());
        let restored = other.run(&["restore", &file], &[]);
        assert_eq!(restored.code, Some(0), "{restored:?}");
        all_is_well(&other);
        assert_eq!(said(&other, &person), 1);
        let _server = other.serve(&[]);
        assert_eq!(person.left_after_a_call(&other), 8);
    }
}

#[test]
fn a_damaged_backup_leaves_everything_as_it_was() {
    let mock = TestApp::start("");
    let site = site_on("sled", mock.upstream.addr());
    let server = site.serve(&[]);
    Person::new(&site, "johndoe");
    assert_eq!(server.terminate(), Some(0));
    let file = file_in(&site, "backup");
    assert_eq!(site.run(&["backup", &file], &[]).code, Some(0));
    let whole = std::fs::read(&file).unwrap();
    let data = site.dir.path().join("data");
    let before = state(&data);
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 4;
    let cases: [(&str, &[u8]); 4] = [
        ("cut short", &whole[..whole.len() - 1]),
        ("cut in the middle", &whole[..whole.len() / 2]),
        ("a bit changed", &flipped),
        ("of something else", b"-- PostgreSQL database dump"),
    ];
    for (what, bytes) in cases {
        std::fs::write(&file, bytes).unwrap();
        let ended = site.run(&["restore", &file, "--force"], &[]);
        assert_eq!(ended.code, Some(1), "{what}: {ended:?}");
        assert!(ended.err.contains("nothing was changed"), "{what}: {}", ended.err);
        assert!(state(&data) == before, "{what}: something was changed");
    }
}

#[test]
fn a_backup_goes_through_a_pipe() {
    let mock = TestApp::start("");
    let site = site_on("redb", mock.upstream.addr());
    let server = site.serve(&[]);
    let person = Person::new(&site, "johndoe");
    let taken = site.command(&["backup", "-"]).output().unwrap();
    assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
    assert_eq!(server.terminate(), Some(0));
    let other = site_on("redb", mock.upstream.addr());
    let mut restoring = other.command(&["restore", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    restoring.stdin.take().unwrap().write_all(&taken.stdout).unwrap();
    assert!(restoring.wait().unwrap().success());
    let _server = other.serve(&[]);
    assert_eq!(person.left_after_a_call(&other), 9);
}

#[test]
fn secrets_are_in_it_unless_the_operator_keeps_them_elsewhere() {
    let mock = TestApp::start("");
    let site = site_on("sled", mock.upstream.addr());
    let server = site.serve(&[]);
    let person = Person::new(&site, "johndoe");
    let pepper = std::fs::read(site.dir.path().join("data/secrets/pepper")).unwrap();
    let holds = |file: &str| std::fs::read(file).unwrap().windows(pepper.len()).any(|window| window == pepper);
    let (with, without) = (file_in(&site, "with"), file_in(&site, "without"));
    let told = site.run(&["backup", &with], &[]);
    assert!(told.out.contains("with secrets") && holds(&with), "{told:?}");
    let told = site.run(&["backup", &without, "--without-secrets"], &[]);
    assert!(told.out.contains("without secrets") && !holds(&without), "{told:?}");
    assert_eq!(server.terminate(), Some(0));

    let other = site_on("sled", mock.upstream.addr());
    std::fs::create_dir_all(other.dir.path().join("data/secrets")).unwrap();
    std::fs::write(other.dir.path().join("data/secrets/pepper"), &pepper).unwrap();
    let restored = other.run(&["restore", &without], &[]);
    assert_eq!(restored.code, Some(0), "what was put there by hand is no obstacle: {restored:?}");
    let _server = other.serve(&[]);
    assert_eq!(person.left_after_a_call(&other), 9, "and the keys work with it");
}

#[test]
fn one_backup_at_a_time_and_none_for_those_who_leave() {
    let mock = TestApp::start("");
    let site = site_on("sled", mock.upstream.addr());
    let _server = site.serve(&[]);
    Person::new(&site, "johndoe");
    let way = std::fs::read(site.dir.path().join("data/run/operator.json")).unwrap();
    let way: serde_json::Value = serde_json::from_slice(&way).unwrap();
    let bearer = format!("Bearer {}", way["token"].as_str().unwrap());
    let get = || http::call(site.admin, "GET", "/v1/admin-panel/backup", &[("authorization", &bearer)], None);
    let whole = get();
    assert_eq!(whole.status, 200);
    assert!(whole.body.starts_with(b"TGBACKUP"));
    for _ in 0..5 {
        let mut conn = http::Conn::open(site.admin);
        conn.send(http::request("GET", "/v1/admin-panel/backup", &[("authorization", &bearer)], None));
        drop(conn);
    }
    wait_until("whoever left is forgotten", || get().status == 200);
    let odd = "/v1/admin-panel/backup?secrets=perhaps";
    assert_eq!(http::call(site.admin, "GET", odd, &[("authorization", &bearer)], None).status, 400);
}
