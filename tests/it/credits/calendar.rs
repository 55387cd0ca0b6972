//! Resets by the calendar and by staff: each period once, at its hour, whatever the clock does and however often the
//! process starts; and nobody who does not call costs anything.

use std::sync::Arc;

use serde_json::{Value, json};
use tollgate::clock::UnixMillis;
use tollgate::store::{Order, Row, Store, tables};

use super::Bank;
use crate::fake_upstream::FakeUpstream;
use crate::support::http::{Conn, request};
use crate::support::stores::SteeredStore;
use crate::support::{Options, TestApp, chat_body, wait_until};

/// The admin who looks on stays logged in over all those days.
const PATIENT: &str = "[accounts]\nadmin_session_hours = 87600\n";

fn options(moment: &'static str, period: &str) -> Options {
    let meters = format!(
        "[plans.free.meters]\nconversations = {{ grant = 10, period = \"{period}\" }}\ncredits = {{ grant = 5, period = \"{period}\" }}\n"
    );
    let toml = format!("{PATIENT}[ledger]\nreset_hour = 6\n{meters}");
    Options { manual_clock: Some(moment), toml, ..Options::default() }
}

fn set_clock(bank: &Bank, moment: &str) {
    bank.app.hands.as_ref().unwrap().set_wall(UnixMillis::parse_rfc3339(moment).unwrap());
}

fn call(bank: &Bank) {
    let answer = bank.chat(json!({}), &[]);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// A period, a moment to start from, and the seconds before it begins anew and when it does.
struct Period {
    name: &'static str,
    start: &'static str,
    turns: [Turn; 3],
}

struct Turn {
    before: &'static str,
    at: &'static str,
}

const fn turn(before: &'static str, at: &'static str) -> Turn {
    Turn { before, at }
}

const PERIODS: [Period; 3] = [
    Period {
        name: "daily",
        start: "2026-02-27T12:00:00Z",
        turns: [
            turn("2026-02-28T05:59:59Z", "2026-02-28T06:00:00Z"),
            turn("2026-03-01T05:59:59Z", "2026-03-01T06:00:00Z"),
            turn("2026-03-02T05:59:59Z", "2026-03-02T06:00:00Z"),
        ],
    },
    Period {
        name: "weekly",
        // A Sunday.
        start: "2026-01-18T12:00:00Z",
        turns: [
            turn("2026-01-19T05:59:59Z", "2026-01-19T06:00:00Z"),
            turn("2026-01-26T05:59:59Z", "2026-01-26T06:00:00Z"),
            turn("2026-02-02T05:59:59Z", "2026-02-02T06:00:00Z"),
        ],
    },
    Period {
        name: "monthly",
        start: "2026-01-31T12:00:00Z",
        turns: [
            turn("2026-02-01T05:59:59Z", "2026-02-01T06:00:00Z"),
            turn("2026-03-01T05:59:59Z", "2026-03-01T06:00:00Z"),
            turn("2026-04-01T05:59:59Z", "2026-04-01T06:00:00Z"),
        ],
    },
];

#[test]
fn each_period_begins_at_its_hour_and_once() {
    for Period { name: period, start, turns } in PERIODS {
        let bank = Bank::open(options(start, period));
        (0..3).for_each(|_| call(&bank));
        assert_eq!(bank.conversations(), 7.0);
        let mut left = 7.0;
        for Turn { before, at } in turns {
            set_clock(&bank, before);
            assert_eq!(bank.conversations(), left, "{period} {before}");
            set_clock(&bank, at);
            assert_eq!(bank.conversations(), 10.0, "{period} {at}");
            call(&bank);
            call(&bank);
            left = 8.0;
            // Back over the hour, far back, and forward again: nothing is given twice.
            for moment in [before, "2020-02-29T00:00:00Z", start, at] {
                set_clock(&bank, moment);
                assert_eq!(bank.conversations(), left, "{period} {at}, back at {moment}");
            }
        }
        bank.settled();
    }
}

#[test]
fn a_call_over_the_hour_is_paid_from_before_it_and_resets_once() {
    let answer = "{\"usage\":{\"completion_tokens\":20}}";
    for Period { name: period, start, turns } in PERIODS {
        let go = Arc::new(std::sync::Barrier::new(2));
        let fake = FakeUpstream::start({
            let go = go.clone();
            move |wire| {
                while wire.read_request().is_some() {
                    go.wait();
                    wire.send(format!(
                        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{answer}",
                        answer.len()
                    ));
                }
            }
        });
        let mut options = options(start, period);
        let route = "routes = [{ path = \"/v1/*\", upstream = \"ai\", \
            cost = { conversations = 1, credits = { per_output_token = 0.01 } } }]\n";
        options.toml = format!("{route}{}\n{}", options.toml, fake.config(""));
        let bank = Bank::open(options);
        let mut conn = Conn::open(bank.app.public);
        conn.send(bank.request(json!({"max_tokens": 100}), &[]));
        wait_until("it is held", || bank.app.metric("tollgate_holds_open") == 1.0);
        assert_eq!((bank.conversations(), bank.credits()), (9.0, 4.0), "{period}");
        // Over the hour while it is under way.
        set_clock(&bank, turns[0].at);
        assert_eq!((bank.conversations(), bank.credits()), (10.0, 5.0), "{period}");
        go.wait();
        assert_eq!(conn.read_answer().status, 200);
        bank.settled();
        // One conversation and 0.2 credits are spent. What was held beyond comes back: it was never used.
        assert_eq!((bank.conversations(), bank.credits()), (10.0, 5.8), "{period}");
        assert_eq!((spent(&bank, "conversations"), spent(&bank, "credits")), (1.0, 0.2), "{period}");
        // And the reset is not made good for a second time.
        set_clock(&bank, turns[1].before);
        assert_eq!((bank.conversations(), bank.credits()), (10.0, 5.8), "{period}");
        set_clock(&bank, turns[1].at);
        assert_eq!((bank.conversations(), bank.credits()), (10.0, 5.0), "{period}");
    }
}

fn spent(bank: &Bank, meter: &str) -> f64 {
    let path = format!("/v1/admin-panel/users/{}", bank.user.id);
    let user = bank.app.admin_call(&bank.admin, "GET", &path, None).json();
    user["user"]["meters"][meter]["spent"].as_f64().unwrap()
}

/// Everybody's meters as they are on disk.
fn rows(store: &SteeredStore) -> Vec<Row> {
    store.range(tables::METERS, &tollgate::store::prefix_end(tables::METERS), 1000, Order::Ascending).unwrap()
}

/// Has everything written that waits, and waits until it is.
fn rest(bank: &Bank) {
    let core = bank.app.app().core();
    core.users.sweep();
    // An empty change of the store is behind everything that was marked before. What comes after it is timed work, such as
    // the keys' last uses.
    core.committer.commit_blocking(tollgate::store::Batch::default()).unwrap();
    wait_until("nothing waits", || core.committer.pending() == 0);
}

#[test]
fn who_does_not_call_costs_nothing_when_a_period_begins() {
    let store = SteeredStore::new();
    let mut options = options("2026-01-15T12:00:00Z", "daily");
    options.store = Some(store.clone());
    options.toml.push_str("[limits]\nuser_idle = \"12h\"\n");
    let bank = Bank::open(options);
    let others: Vec<_> = (0..20).map(|n| bank.app.register(&format!("user-{n}"))).collect();
    for user in &others {
        assert_eq!(bank.app.chat(&user.key, json!({})).status, 200);
    }
    bank.settled();
    rest(&bank);
    let core = bank.app.app().core();
    let before = rows(&store);
    assert_eq!((before.len(), core.users.live()), (21, 21));
    for moment in ["2026-01-16T06:00:00Z", "2026-01-17T06:00:00Z", "2026-02-01T06:00:00Z"] {
        set_clock(&bank, moment);
        core.users.sweep();
        wait_until("they went to sleep", || core.users.live() == 0);
        // The nightly reading of usage writes rows of its own, for those who spent something.
        assert_eq!(rows(&store), before, "{moment}: no account was written");
    }
    // The one who calls has the new day, and he alone.
    let answer = bank.app.chat(&others[7].key, json!({}));
    assert_eq!(answer.header("x-tollgate-remaining-conversations"), Some("9"));
    bank.settled();
    rest(&bank);
    let after = rows(&store);
    let changed = before.iter().zip(&after).filter(|(old, new)| old != new).count();
    // The admin has looked at one more.
    assert!((1..=2).contains(&changed), "{changed} rows were written");
}

/// Starts a gateway on what another left behind.
fn restart(bank: Bank, store: &Arc<SteeredStore>, moment: &'static str) -> Bank {
    let Bank { mut app, user, .. } = bank;
    app.stop();
    let mut options = options(moment, "daily");
    options.store = Some(store.clone());
    // The keys' secret is in the folder.
    options.dir = Some(app.dir.clone());
    drop(app);
    let app = TestApp::with(options);
    Bank { admin: app.admin_token(), app, user }
}

#[test]
fn a_period_resets_once_over_any_number_of_starts() {
    let store = SteeredStore::new();
    let mut first = options("2026-01-15T12:00:00Z", "daily");
    first.store = Some(store.clone());
    let mut bank = Bank::open(first);
    call(&bank);
    for (moment, at_start) in [
        ("2026-01-15T13:00:00Z", 9.0),
        // The hour struck while nobody was there.
        ("2026-01-16T06:00:00Z", 10.0),
        ("2026-01-16T06:00:01Z", 9.0),
        // The clock of the new machine is behind.
        ("2026-01-15T12:00:00Z", 8.0),
        ("2026-01-16T23:00:00Z", 7.0),
        ("2026-01-18T05:00:00Z", 10.0),
    ] {
        bank = restart(bank, &store, moment);
        assert_eq!(bank.conversations(), at_start, "{moment}");
        call(&bank);
        assert_eq!(bank.conversations(), at_start - 1.0, "{moment}");
    }
    bank.settled();
}

fn reset(bank: &Bank, whose: &Value) -> Value {
    let answer = bank.app.admin_call(&bank.admin, "POST", "/v1/admin-panel/reset-limits", Some(whose));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["users"].clone()
}

#[test]
fn an_admin_s_reset_of_all_is_one_write_and_survives_a_start() {
    let store = SteeredStore::new();
    let mut first = options("2026-01-15T12:00:00Z", "daily");
    first.store = Some(store.clone());
    let bank = Bank::open(first);
    let others: Vec<_> = (0..5).map(|n| bank.app.register(&format!("user-{n}"))).collect();
    for user in &others {
        assert_eq!(bank.app.chat(&user.key, json!({})).status, 200);
    }
    (0..4).for_each(|_| call(&bank));
    bank.settled();
    rest(&bank);
    let (commits, before) = (store.commits(), rows(&store));
    assert_eq!(reset(&bank, &json!({})), 6);
    assert_eq!(store.commits(), commits + 2, "the reset, and how far the audit trail has come with it");
    assert_eq!(rows(&store), before, "no account is touched before somebody asks for it");
    // Given after the reset, and stopped before most accounts had it.
    let path = format!("/v1/admin-panel/users/{}/credits", bank.user.id);
    let gift = json!({"meter": "conversations", "amount": 2.5, "reason": "for waiting"});
    let answer = bank.app.admin_call(&bank.admin, "POST", &path, Some(&gift)).json();
    assert_eq!(answer["meters"]["conversations"]["balance"], 12.5);

    let mut bank = restart(bank, &store, "2026-01-15T12:00:01Z");
    assert_eq!(bank.conversations(), 12.5);
    for user in &others {
        let balance = |bank: &Bank| bank.app.balance(&bank.admin, user.id, "conversations");
        assert_eq!(balance(&bank), 10.0);
        assert_eq!(bank.app.chat(&user.key, json!({})).status, 200);
        assert_eq!(balance(&bank), 9.0, "it is not done twice");
    }
    bank = restart(bank, &store, "2026-01-15T12:00:02Z");
    assert_eq!(bank.conversations(), 12.5);
    assert_eq!(bank.app.balance(&bank.admin, others[0].id, "conversations"), 9.0, "nor after a start");
    assert_eq!(reset(&bank, &json!({"username": "user-0"})), 1);
    assert_eq!(bank.app.balance(&bank.admin, others[0].id, "conversations"), 10.0);
    assert_eq!(bank.app.balance(&bank.admin, others[1].id, "conversations"), 9.0, "one is one");
}

#[test]
fn a_reset_that_cannot_be_written_is_not_answered() {
    let store = SteeredStore::new();
    let mut first = options("2026-01-15T12:00:00Z", "daily");
    first.store = Some(store.clone());
    let bank = Bank::open(first);
    call(&bank);
    let path = format!("/v1/admin-panel/users/{}/credits", bank.user.id);
    let held = store.hold_commits();
    let bearer = format!("Bearer {}", bank.admin);
    let send = |path: &str, body: &Value| {
        let mut conn = Conn::open(bank.app.admin);
        conn.send(request("POST", path, &[("authorization", &bearer)], Some(body)));
        conn
    };
    let mut waiting = [
        send("/v1/admin-panel/reset-limits", &json!({})),
        send("/v1/admin-panel/reset-limits", &json!({"user_id": bank.user.id})),
        send(&path, &json!({"amount": 1})),
    ];
    wait_until("a commit waits", || store.has_commit_waiting());
    for conn in &mut waiting {
        conn.stream.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
        assert!(std::io::Read::read(&mut conn.stream, &mut [0; 1]).is_err(), "answered before it was on disk");
        conn.stream.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    }
    store.fail_commits();
    drop(held);
    for conn in &mut waiting {
        assert_eq!(conn.read_answer().error_code(), "STORE_UNAVAILABLE");
    }
    let refused = bank.app.chat(&bank.user.key, chat_body(json!({})));
    assert_eq!(refused.error_code(), "STORE_UNAVAILABLE");
}
