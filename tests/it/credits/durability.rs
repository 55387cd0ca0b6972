//! On disk before on the wire: an answer that a client has seen was paid for, and stays paid for.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::Bank;
use crate::support::http::Conn;
use crate::support::stores::SteeredStore;
use crate::support::{Options, TestApp, wait_until};

#[test]
fn balances_survive_a_stop_and_a_start_on_sled() {
    balances_survive_on("sled");
}

#[test]
fn balances_survive_a_stop_and_a_start_on_redb() {
    balances_survive_on("redb");
}

fn balances_survive_on(backend: &'static str) {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let options = || Options { backend, dir: Some(dir.clone()), ..Options::default() };
    let mut bank = Bank::open(options());
    for _ in 0..3 {
        assert_eq!(bank.chat(json!({}), &[]).status, 200);
    }
    assert_eq!(bank.chat(json!({}), &[("x-mock-status", "500")]).status, 500);
    bank.app.stop();
    let Bank { app: stopped, user, .. } = bank;
    drop(stopped);

    let app = TestApp::with(options());
    let bank = Bank { admin: app.admin_token(), app, user };
    assert_eq!(bank.conversations(), 7.0);
    let answer = bank.chat(json!({}), &[]);
    assert_eq!(answer.header("x-tollgate-remaining-conversations"), Some("6"), "{}", answer.text());
    bank.settled();
}

#[test]
fn no_byte_of_an_answer_leaves_before_its_debit_is_on_disk() {
    let store = SteeredStore::new();
    let bank = Bank::open(Options { store: Some(store.clone()), ..Options::default() });
    for stream in [false, true] {
        let held = store.hold_commits();
        let called = bank.app.upstream.stats().total;
        let mut conn = Conn::open(bank.app.public);
        conn.send(bank.request(json!({"stream": stream}), &[]));
        wait_until("the debit waits for the disk", || store.has_commit_waiting());
        wait_until("the upstream has answered", || {
            let stats = bank.app.upstream.stats();
            stats.total == called + 1 && stats.open == 0
        });
        // As long as anybody would take to send what is there.
        conn.stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let early = conn.stream.read(&mut [0u8; 1]);
        assert!(early.is_err(), "stream: {stream}: an unpaid answer left");
        assert_eq!(bank.app.metric("tollgate_holds_open"), 1.0);
        drop(held);
        conn.stream.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
        let answer = conn.read_answer();
        assert_eq!(answer.status, 200, "{}", answer.text());
        bank.settled();
    }
    assert_eq!(bank.conversations(), 8.0);
}

#[test]
fn a_client_that_leaves_while_its_debit_waits_pays_for_the_answer_the_upstream_gave() {
    let store = SteeredStore::new();
    let bank = Bank::open(Options { store: Some(store.clone()), ..Options::default() });
    let held = store.hold_commits();
    let mut conn = Conn::open(bank.app.public);
    conn.send(bank.request(json!({}), &[]));
    wait_until("the debit waits for the disk, and the upstream has answered", || {
        let stats = bank.app.upstream.stats();
        store.has_commit_waiting() && stats.total == 1 && stats.open == 0
    });
    drop(conn);
    wait_until("the call is over", || bank.app.metric("tollgate_holds_open") == 0.0);
    drop(held);
    bank.settled();
    assert_eq!(bank.conversations(), 9.0);
}

#[test]
fn a_call_that_a_stop_cuts_off_is_paid_once_its_answer_has_begun() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let store = SteeredStore::new();
    let options = || Options {
        store: Some(store.clone()),
        dir: Some(dir.clone()),
        toml: "[listen]\ndrain_grace = \"0s\"\n".into(),
        ..Options::default()
    };
    let mut bank = Bank::open(options());
    let mut begun = Conn::open(bank.app.public);
    begun.send(bank.request(json!({"stream": true}), &[("x-mock-tokens", "1000"), ("x-mock-chunk-delay-ms", "100")]));
    assert_eq!(begun.read_head().unwrap().status, 200);
    let mut waiting = Conn::open(bank.app.public);
    waiting.send(bank.request(json!({}), &[("x-mock-delay-ms", "3600000")]));
    wait_until("both are under way", || bank.app.upstream.stats().open == 2);
    bank.app.stop();
    let Bank { app: stopped, user, .. } = bank;
    drop(stopped);

    let app = TestApp::with(options());
    let bank = Bank { admin: app.admin_token(), app, user };
    assert_eq!(bank.conversations(), 9.0, "the one that had begun is paid, the other is not");
    bank.settled();
}

#[test]
fn an_operator_may_give_that_up_for_speed() {
    let store = SteeredStore::new();
    let toml = "[ledger]\ndurability = \"interval\"\n".to_owned();
    let bank = Bank::open(Options { store: Some(store.clone()), toml, ..Options::default() });
    let held = store.hold_commits();
    assert_eq!(bank.chat(json!({}), &[]).status, 200);
    drop(held);
    bank.settled();
}
