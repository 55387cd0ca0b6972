//! A thousand calls at once while staff gives, takes, resets, suspends and lets go: whatever the order was, the sums are
//! exact.

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::Bank;
use crate::support::Options;
use crate::support::http::Conn;

const THREADS: usize = 25;
const CALLS: usize = 40;
const GRANT: i64 = 100;

/// Conversations are set back by every reset; credits never are, so that their sum can be told.
const CONFIG: &str = r#"
routes = [{ path = "/v1/*", upstream = "ai", cost = { conversations = 1, credits = 1 } }]
[limits]
in_flight_per_user = 1000
[plans.free.meters]
conversations = { grant = 100, period = "daily" }
credits = { grant = 100, period = "never" }
"#;

#[derive(Default)]
struct Served {
    served: AtomicUsize,
    exhausted: AtomicUsize,
    forbidden: AtomicUsize,
    failed: AtomicUsize,
}

impl Served {
    fn call(&self, bank: &Bank, conn: &mut Conn, nth: usize) {
        // One in eight fails at the upstream, which costs nothing.
        let status = if nth.is_multiple_of(8) { "503" } else { "200" };
        conn.send(bank.request(json!({}), &[("x-mock-status", status)]));
        let answer = conn.read_answer();
        let count = match (answer.status, status) {
            (200, "200") => &self.served,
            (503, "503") if answer.json()["error"]["code"] == "mock_error" => &self.failed,
            (429, _) if answer.error_code() == "CREDITS_EXHAUSTED" => &self.exhausted,
            (403, _) => &self.forbidden,
            other => panic!("{other:?}: {}", answer.text()),
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// What staff does meanwhile, one thing after the other. Says by how much credits were changed.
fn staff(bank: &Bank, rounds: usize, given: &AtomicI64) {
    let post = |path: &str, body: Value| {
        let path = format!("/v1/admin-panel/{path}");
        bank.app.admin_call(&bank.admin, "POST", &path, Some(&body))
    };
    let user = format!("users/{}", bank.user.id);
    for round in 0..rounds {
        for amount in [7, -3] {
            let answer = post(&format!("{user}/credits"), json!({"amount": amount, "reason": "a race"}));
            match answer.status {
                200 => given.fetch_add(amount, Ordering::Relaxed),
                // Nothing there to take.
                400 if amount < 0 => 0,
                other => panic!("{other}: {}", answer.text()),
            };
        }
        let whose = if round % 2 == 0 { json!({}) } else { json!({"user_id": bank.user.id}) };
        assert_eq!(post("reset-limits", whose).status, 200);
        if round % 3 == 0 {
            assert_eq!(post(&format!("{user}/suspend"), json!({"reason": "a race"})).status, 200);
            assert_eq!(post(&format!("{user}/activate"), json!({})).status, 200);
        }
    }
}

fn meter(bank: &Bank, name: &str) -> [i64; 4] {
    let path = format!("/v1/admin-panel/users/{}", bank.user.id);
    let user = bank.app.admin_call(&bank.admin, "GET", &path, None).json();
    ["balance", "held", "spent", "granted"].map(|part| {
        let number = user["user"]["meters"][name][part].as_f64().unwrap();
        assert!(number.fract() == 0.0 && number >= 0.0, "{name} {part}: {number}");
        number as i64
    })
}

fn race(backend: &'static str, workers: usize) {
    let bank = Bank::open(Options { backend, workers, toml: CONFIG.into(), ..Options::default() });
    let (counts, given) = (Served::default(), AtomicI64::new(0));
    let start = std::sync::Barrier::new(THREADS + 2);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (bank, counts, start) = (&bank, &counts, &start);
            scope.spawn(move || {
                let mut conn = Conn::open(bank.app.public);
                start.wait();
                (0..CALLS).for_each(|nth| counts.call(bank, &mut conn, thread + nth));
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                start.wait();
                staff(&bank, 20, &given);
            });
        }
    });
    bank.settled();
    let Served { served, exhausted, forbidden, failed } = counts;
    let (served, failed) = (served.into_inner() as i64, failed.into_inner() as i64);
    let refused = (exhausted.into_inner() + forbidden.into_inner()) as i64;
    let given = given.into_inner();
    assert_eq!(served + failed + refused, (THREADS * CALLS) as i64);
    assert_eq!(bank.app.upstream.stats().total as i64, served + failed, "a refused call reaches nobody");
    assert_eq!(meter(&bank, "credits"), [GRANT + given - served, 0, served, GRANT + given]);
    let [balance, held, spent, granted] = meter(&bank, "conversations");
    assert_eq!((held, spent, granted), (0, served, balance + served));
    // A reset sets to a hundred; only a call that failed after it, held before it, can have brought it above.
    assert!(balance <= 100 + failed, "{balance}");
    assert!(served >= GRANT.min(30), "most calls were refused: {served}");
    // Whatever there is left can be used, to the last one and no further.
    let left = balance.min(GRANT + given - served);
    let mut conn = Conn::open(bank.app.public);
    for nth in 0..=left {
        conn.send(bank.request(json!({}), &[]));
        assert_eq!(conn.read_answer().status, if nth < left { 200 } else { 429 }, "{nth} of {left}");
    }
    bank.settled();
}

#[test]
fn one_worker_with_staff() {
    race("memory", 1);
}

#[test]
fn two_workers_with_staff() {
    race("memory", 2);
}

#[test]
fn on_the_embedded_database_with_staff() {
    race("sled", 2);
}
