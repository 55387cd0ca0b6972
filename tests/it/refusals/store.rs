//! 503 when the store fails: nothing that could not be written is acknowledged.

use serde_json::json;

use super::{CHAT, Desk, OVERLOADED, Row, assert_refused, row};
use crate::support::http::{Conn, request};
use crate::support::stores::SteeredStore;
use crate::support::{Options, chat_body, http, wait_until};

const UNAVAILABLE: Row = row(503, "STORE_UNAVAILABLE", "server_error").retry_after(5);

#[test]
fn a_store_that_cannot_write() {
    let store = SteeredStore::new();
    let desk = Desk::with(Options { store: Some(store.clone()), ..Options::default() });
    let left = desk.conversations();
    store.fail_commits();
    // The first one finds out, on the way back from the upstream.
    let first = desk.chat();
    assert_refused(&first, &UNAVAILABLE);
    assert!(!first.text().contains("You said"), "no byte of the answer leaves unpaid");
    let served = desk.app.upstream.stats().total;
    for _ in 0..3 {
        assert_refused(&desk.chat(), &UNAVAILABLE);
    }
    assert_eq!(desk.app.upstream.stats().total, served, "no call goes out that could not be paid for");
    let bob = json!({"username": "bob", "name": "Bob B", "email": "bob@example.com", "password": "SecurePass123"});
    let answer = http::call(desk.app.public, "POST", "/v1/users/register", &[], Some(&bob));
    assert_refused(&answer, &UNAVAILABLE);
    let ready = http::call(desk.app.admin, "GET", "/ready", &[], None);
    assert_eq!((ready.status, ready.json()["status"].as_str()), (503, Some("not ready")));
    assert_eq!(http::call(desk.app.admin, "GET", "/health", &[], None).status, 200);
    assert_eq!(desk.conversations(), left);
    crate::support::wait_until("all is given back", || desk.app.metric("tollgate_holds_open") == 0.0);
}

#[test]
fn a_store_that_cannot_be_read() {
    let store = SteeredStore::new();
    let desk = Desk::with(Options { store: Some(store.clone()), ..Options::default() });
    let answer = desk.costs_nothing(|desk| {
        store.fail_reads(true);
        let answer = desk.chat_with(&[("x-api-key", "pe-11111111111111111111111111111111")]);
        store.fail_reads(false);
        answer
    });
    assert_refused(&answer, &UNAVAILABLE);
    store.fail_reads(true);
    assert_eq!(desk.chat().status, 200, "whoever is in memory is served");
}

#[test]
fn a_store_that_is_behind() {
    let store = SteeredStore::new();
    let toml = "[ledger]\nmax_pending = 0\n".to_owned();
    let desk = Desk::with(Options { store: Some(store.clone()), toml, ..Options::default() });
    let others = [desk.app.register("second"), desk.app.register("third")];
    let held = store.hold_commits();
    // The first debit is being written, the second waits for its turn; that is one more than may.
    let calls: Vec<Conn> = [&desk.user, &others[0]]
        .map(|user| {
            let mut conn = Conn::open(desk.app.public);
            let bearer = format!("Bearer {}", user.key);
            conn.send(request("POST", CHAT, &[("authorization", bearer.as_str())], Some(&chat_body(json!({})))));
            wait_until("the debit is under way", || {
                store.has_commit_waiting() && desk.app.metric("tollgate_holds_open") > 0.0
            });
            conn
        })
        .into();
    wait_until("the second debit waits", || desk.app.metric("tollgate_mailbox_depth") == 1.0);
    let refused = desk.app.chat(&others[1].key, json!({}));
    assert_refused(&refused, &OVERLOADED);
    drop(held);
    for mut conn in calls {
        assert_eq!(conn.read_answer().status, 200);
    }
    assert_eq!(desk.app.chat(&others[1].key, json!({})).status, 200);
}
