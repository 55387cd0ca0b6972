//! Which stores are opened, which are brought up, and which are refused.

use std::path::Path;

use tollgate::store::sled::SledStore;
use tollgate::store::{Batch, Order, Store, tables};

use super::{BACKENDS, Person, site_on, use_backend};
use crate::accounts::process::Site;
use crate::support::{TestApp, http, wait_until};

/// Makes of a store what the first format's program would have left: no description, no row about the log, and log files
/// that name no store.
fn back_to_format_1(data: &Path) {
    std::fs::remove_file(data.join("store.json")).unwrap();
    let sled = SledStore::open(&data.join("store"), 1 << 20).unwrap();
    let mut batch = Batch::default();
    for (key, _) in sled.range(tables::OWN, b"\x01", 100, Order::Ascending).unwrap() {
        batch.delete(key);
    }
    sled.commit(&batch).unwrap();
    drop(sled);
    for entry in std::fs::read_dir(data.join("wal")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[..8].copy_from_slice(b"TGWAL001");
        let sum = crc32fast::hash(&bytes[..24]);
        bytes[24..28].copy_from_slice(&sum.to_le_bytes());
        bytes[28..44].fill(0);
        std::fs::write(path, bytes).unwrap();
    }
}

fn description(site: &Site) -> serde_json::Value {
    let file = site.dir.path().join("data/store.json");
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

#[test]
fn a_store_of_the_first_format_is_brought_up_and_serves() {
    let mock = TestApp::start("");
    let site = site_on("sled", mock.upstream.addr());
    let server = site.serve(&[]);
    let person = Person::new(&site, "johndoe");
    assert_eq!(person.left_after_a_call(&site), 9);
    assert_eq!(server.terminate(), Some(0));
    back_to_format_1(&site.dir.path().join("data"));

    for left in [8, 7] {
        let server = site.serve(&[]);
        assert_eq!(description(&site)["format"], tollgate::store::home::FORMAT);
        assert_eq!(person.left_after_a_call(&site), left);
        assert_eq!(server.terminate(), Some(0));
    }
    assert_eq!(site.run(&["ledger", "verify"], &[]).code, Some(0));
}

#[test]
fn a_newer_format_is_refused_and_nothing_of_it_is_touched() {
    let mock = TestApp::start("");
    for backend in BACKENDS {
        let site = site_on(backend, mock.upstream.addr());
        assert_eq!(site.serve(&[]).terminate(), Some(0));
        let file = site.dir.path().join("data/store.json");
        let mut newer = description(&site);
        newer["format"] = 99.into();
        newer["written_by"] = "7.7.7".into();
        std::fs::write(&file, newer.to_string()).unwrap();
        let logs = || {
            let wal = site.dir.path().join("data/wal");
            let mut names: Vec<_> = std::fs::read_dir(wal).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let before = logs();
        for words in [&["serve"][..], &["ledger", "verify"], &["backup", "x"]] {
            let ended = site.run(words, &[]);
            assert_eq!(ended.code, Some(2), "{words:?}: {ended:?}");
            assert!(ended.err.contains("format 99") && ended.err.contains("7.7.7"), "{}", ended.err);
        }
        assert_eq!(logs(), before);
        assert_eq!(description(&site), newer);
    }
}

#[test]
fn another_backends_store_is_refused_with_the_key_and_the_way_over() {
    let mock = TestApp::start("");
    for (has, wants) in [("sled", "redb"), ("redb", "sled"), ("sled", "memory")] {
        let site = site_on(has, mock.upstream.addr());
        assert_eq!(site.serve(&[]).terminate(), Some(0));
        use_backend(&site, wants);
        let ended = site.run(&["serve"], &[]);
        assert_eq!(ended.code, Some(2), "{has} as {wants}: {ended:?}");
        for word in ["store.backend", has, wants, "tollgate backup", "tollgate restore"] {
            assert!(ended.err.contains(word), "{word} is not in: {}", ended.err);
        }
        use_backend(&site, has);
        assert_eq!(site.serve(&[]).terminate(), Some(0), "and it is as it was");
    }
}

#[test]
fn two_servers_on_one_data_dir_are_one_too_many() {
    let mock = TestApp::start("");
    for backend in BACKENDS {
        let site = site_on(backend, mock.upstream.addr());
        let server = site.serve(&[]);
        let ended = site.run(&["serve"], &[]);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.err.contains("in use by another process"), "{}", ended.err);
        wait_until("the first one serves on", || http::call(site.admin, "GET", "/ready", &[], None).status == 200);
        assert_eq!(server.terminate(), Some(0));
    }
}
