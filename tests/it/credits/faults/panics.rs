//! Panics in the middle of a call: one call fails, nobody loses a credit that he did not use, everybody else goes on.
//!
//! The program has no place where a test could ask for a panic, but it logs, and a subscriber may do what it likes: the one
//! here panics at an event that names an endpoint or an upstream of the test's. And the store is the test's own.

use std::collections::HashSet;
use std::fmt::Debug;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, OnceLock};

use parking_lot::Mutex as QuietMutex;
use tollgate::store::memory::MemoryStore;
use tollgate::store::{Batch, Order, Row, Store, StoreError};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use super::{Bank, Cost, Form, Lab, NOTHING, ONE, PER_CALL};
use crate::fake_upstream::FakeUpstream;
use crate::support::http::Conn;
use crate::support::{Options, chat_body, wait_until};

/// Hears what the gateway's request path logs, and panics when it is about somebody on the list.
struct Trap;

fn list() -> &'static Mutex<HashSet<String>> {
    static LIST: OnceLock<Mutex<HashSet<String>>> = OnceLock::new();
    LIST.get_or_init(Mutex::default)
}

/// From now on the first event about this endpoint or upstream panics.
pub fn set_trap(name: &str) {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| tracing::subscriber::set_global_default(Trap).unwrap());
    list().lock().unwrap().insert(name.to_owned());
}

fn is_sprung(name: &str) -> bool {
    !list().lock().unwrap().contains(name)
}

impl Subscriber for Trap {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("tollgate::gateway")
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut named = Named(false);
        event.record(&mut named);
        assert!(!named.0, "the test wanted this panic");
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Whether an event is about somebody on the list, who is taken off it.
struct Named(bool);

impl Visit for Named {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if matches!(field.name(), "endpoint" | "upstream") {
            self.0 |= list().lock().unwrap().remove(&format!("{value:?}"));
        }
    }
}

/// The call got a 500 or broke off; the process counted one panic and went on.
fn wait_until_over(lab: &Lab, panics: f64) {
    lab.wait_until_over("after a panic");
    assert_eq!(lab.bank.app.metric("tollgate_panics_total"), panics);
}

#[test]
fn a_panic_before_anything_was_sent_gives_the_hold_back() {
    let mut lab = Lab::open(|wire| wire.drain());
    for (nth, cost) in Cost::ALL.into_iter().enumerate() {
        // Another one each time: the log, where the trap is, names an endpoint once in ten seconds.
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        lab.bank.app.reload(&format!(
            "{}\n[[upstreams]]\nname = \"ai\"\nendpoints = [\"http://{nobody}\"]\nretries = 0\n",
            super::ROUTES
        ));
        lab.charges("panic while connecting", cost, NOTHING, |lab| {
            set_trap(&nobody.to_string());
            let answer = lab.post(cost, "x", Form::Plain).read_answer();
            assert_eq!((answer.status, answer.error_code().as_str()), (500, "INTERNAL"));
            assert!(is_sprung(&nobody.to_string()));
            wait_until_over(lab, nth as f64 + 1.0);
        });
        // The same connection attempt without a trap is an ordinary failure.
        assert_eq!(lab.post(cost, "x", Form::Plain).read_answer().status, 502);
    }
}

#[test]
fn a_panic_over_a_failure_s_head_gives_the_hold_back() {
    let lab = Lab::with("", "eject_after = 1\neject_time = \"1ms\"", |wire| {
        while wire.read_request().is_some() {
            wire.send("HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n");
        }
    });
    let address = lab.fake.addr.to_string();
    for (nth, cost) in Cost::ALL.into_iter().enumerate() {
        lab.charges("panic over a 500", cost, NOTHING, |lab| {
            set_trap(&address);
            assert_eq!(lab.post(cost, "x", Form::Plain).read_answer().error_code(), "INTERNAL");
            assert!(is_sprung(&address));
            wait_until_over(lab, nth as f64 + 1.0);
        });
    }
}

#[test]
fn a_panic_over_an_answer_that_broke_off_costs_what_was_produced_and_no_more() {
    let lab = Lab::with("", "eject_after = 1\neject_time = \"1ms\"", |wire| {
        if wire.read_request().is_some() {
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbroken off");
        }
    });
    let address = lab.fake.addr.to_string();
    for (nth, cost) in Cost::ALL.into_iter().enumerate() {
        lab.charges("panic in the middle", cost, cost.of(ONE, PER_CALL), |lab| {
            set_trap(&address);
            let mut conn = lab.post(cost, "x", Form::Plain);
            assert_eq!(conn.read_head().unwrap().status, 200);
            assert_eq!(conn.rest(), b"broken off", "no second answer follows the first");
            assert!(is_sprung(&address));
            wait_until_over(lab, nth as f64 + 1.0);
        });
    }
}

/// A store that panics when it reads one row.
#[derive(Default)]
struct BrittleStore {
    rows: MemoryStore,
    poisoned: QuietMutex<Option<Vec<u8>>>,
}

impl Store for BrittleStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        assert!(self.poisoned.lock().as_deref() != Some(key), "the test wanted this panic");
        self.rows.get(key)
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize, order: Order) -> Result<Vec<Row>, StoreError> {
        self.rows.range(from, to, limit, order)
    }

    fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
        self.rows.commit(batch)
    }
}

#[test]
fn a_panic_while_a_user_is_loaded_locks_nobody_out() {
    let store = Arc::new(BrittleStore::default());
    let toml = "[limits]\nuser_idle = \"1ms\"\n".to_owned();
    let bank = Bank::open(Options { store: Some(store.clone()), toml, ..Options::default() });
    let other = bank.app.register("bob");
    let row = tollgate::store::tables::meters(tollgate::domain::ids::UserId(bank.user.id));
    let sleeping = || {
        bank.app.app().core().users.sweep();
        bank.app.app().core().users.live() == 0
    };
    wait_until("everybody sleeps", sleeping);
    *store.poisoned.lock() = Some(row);
    for _ in 0..3 {
        assert_eq!(bank.chat(serde_json::json!({}), &[]).status, 500);
        assert_eq!(bank.app.chat(&other.key, serde_json::json!({})).status, 200, "others go on");
    }
    assert_eq!(bank.app.metric("tollgate_panics_total"), 3.0);
    *store.poisoned.lock() = None;
    assert_eq!(bank.chat(serde_json::json!({}), &[]).status, 200);
    wait_until("all holds are settled", || bank.app.metric("tollgate_holds_open") == 0.0);
    assert_eq!(bank.conversations(), 9.0, "only the call that was served is paid");
}

#[test]
fn a_panic_costs_no_other_call_its_place() {
    let fake = FakeUpstream::start(|wire| {
        while let Some(request) = wire.read_request() {
            if request.contains("\"slow\"") {
                wire.drain();
                return;
            }
            wire.send("HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n");
        }
    });
    let toml = fake.config("eject_after = 1\neject_time = \"1ms\"");
    let bank = Bank::open(Options { toml, workers: 1, ..Options::default() });
    let mut slow = Conn::open(bank.app.public);
    slow.send(bank.request(serde_json::json!({"user": "slow"}), &[]));
    wait_until("the slow one is under way", || fake.requests() == 1);
    set_trap(&fake.addr.to_string());
    assert_eq!(bank.app.chat(&bank.user.key, chat_body(serde_json::json!({}))).status, 500);
    wait_until("only the other one holds", || bank.app.metric("tollgate_holds_open") == 1.0);
    assert_eq!(bank.conversations(), 9.0);
    drop(slow);
    wait_until("nobody holds", || bank.app.metric("tollgate_holds_open") == 0.0);
    assert_eq!(bank.conversations(), 10.0);
}
