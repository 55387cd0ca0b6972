//! Actors, holds and the store thread together, with a process that dies at any moment.
//!
//! The disk lets one commit through when the test says so, and at the crash the one that was on its way arrives or does not.
//! What the next process finds must be the state after some turn of the last one, not before any turn whose answer was
//! acknowledged, with every call that was open in it charged or given back once.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use fastrand::Rng;
use parking_lot::{Condvar, Mutex};

use super::actor::{Surroundings, UserActor};
use super::hold::Hold;
use super::ledger::{Account, Amounts, Command, Recovery, Reply};
use super::once::{Ended, KeptBytes, OnceLimits};
use super::registry::Registry;
use crate::clock::{Clock, UnixMillis};
use crate::domain::ids::UserId;
use crate::domain::meters::{MeterName, Micro, ResetHour};
use crate::domain::user::{Status, User};
use crate::store::committer::{CommitPace, Committer, Epoch};
use crate::store::memory::MemoryStore;
use crate::store::{Batch, Order, Row, Store, StoreError, tables};
use crate::telemetry::metrics::Metrics;

const USER: UserId = UserId(1);
const PROCESSES: usize = 60;
const ACTIONS: usize = 40;

/// A disk that writes when it is told to.
struct SteppedStore {
    rows: Arc<MemoryStore>,
    state: Mutex<Disk>,
    changed: Condvar,
}

#[derive(Default)]
struct Disk {
    allowed: usize,
    done: usize,
    /// The process is dead; `Some(true)`: the commit that is on its way still arrives.
    crashed: Option<bool>,
}

impl Store for SteppedStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.rows.get(key)
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize, order: Order) -> Result<Vec<Row>, StoreError> {
        self.rows.range(from, to, limit, order)
    }

    fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
        let mut disk = self.state.lock();
        while disk.allowed == 0 && disk.crashed.is_none() {
            self.changed.wait(&mut disk);
        }
        match disk.crashed {
            Some(arrives) => {
                if arrives {
                    self.rows.commit(batch)?;
                }
                return Err(StoreError::Failed("the process is dead".into()));
            }
            None => self.rows.commit(batch)?,
        }
        disk.allowed -= 1;
        disk.done += 1;
        self.changed.notify_all();
        Ok(())
    }
}

/// One life of the program.
struct Process {
    store: Arc<SteppedStore>,
    committer: Committer,
    users: Registry,
    actor: Arc<UserActor>,
}

impl Process {
    fn start(rows: &Arc<MemoryStore>, recovery: Recovery) -> Self {
        let store = Arc::new(SteppedStore { rows: rows.clone(), state: Mutex::default(), changed: Condvar::default() });
        let metrics = Arc::new(Metrics::new(0));
        let pace = CommitPace { gap: Duration::ZERO, row_gap: Duration::ZERO, max_pending: 1000 };
        let committer = Committer::start(store.clone(), pace, metrics.clone()).unwrap();
        let (clock, _) = Clock::manual(UnixMillis(1_766_188_800_000));
        let around = Surroundings {
            clock,
            committer: committer.clone(),
            metrics,
            reset_hour: ResetHour::default(),
            recovery,
            once: OnceLimits { window: Duration::from_secs(60), answer_bytes: 0, total_bytes: 0 },
            kept: KeptBytes::default(),
            holds_open: AtomicI64::new(0),
            generations: AtomicU64::new(0),
            resets: AtomicU64::new(0),
            plans: arc_swap::ArcSwap::default(),
        };
        let users = Registry::new(Arc::new(around), 10, 1000);
        let actor = users.actor(USER).unwrap().unwrap();
        Self { store, committer, users, actor }
    }

    /// Lets one commit through and waits until everybody knows.
    fn write_one(&self) {
        let done = {
            let mut disk = self.store.state.lock();
            let done = disk.done + 1;
            disk.allowed += 1;
            self.store.changed.notify_all();
            while disk.done < done {
                self.store.changed.wait(&mut disk);
            }
            done
        };
        while !self.committer.is_durable(Epoch(done as u64)) {
            std::thread::yield_now();
        }
    }

    fn crash(self, arrives: bool) {
        self.store.state.lock().crashed = Some(arrives);
        self.store.changed.notify_all();
        self.committer.stop();
    }
}

/// The two meters' numbers: balance and spent.
type Books = [(i64, i64); 2];

/// What one turn did, as the test understands it.
#[derive(Clone, Copy, Debug)]
enum Turn {
    Reserve { call: usize, amounts: [i64; 2] },
    Extend { call: usize, more: [i64; 2] },
    Settle { call: usize, paid: [i64; 2] },
    Give { meter: usize, delta: i64 },
}

/// The numbers after these turns and a crash, every open call ended once.
fn recovered(mut books: Books, turns: &[Turn], how: Recovery) -> Books {
    let mut open: Vec<(usize, [i64; 2])> = Vec::new();
    for turn in turns {
        match turn {
            Turn::Reserve { call, amounts } => {
                (0..2).for_each(|at| books[at].0 -= amounts[at]);
                open.push((*call, *amounts));
            }
            Turn::Extend { call, more } => {
                let (_, held) = open.iter_mut().find(|(id, _)| id == call).unwrap();
                (0..2).for_each(|at| {
                    books[at].0 -= more[at];
                    held[at] += more[at];
                });
            }
            Turn::Settle { call, paid } => {
                let at = open.iter().position(|(id, _)| id == call).unwrap();
                let (_, held) = open.swap_remove(at);
                (0..2).for_each(|at| {
                    books[at].0 += held[at] - paid[at];
                    books[at].1 += paid[at];
                });
            }
            Turn::Give { meter, delta } => books[*meter].0 += delta,
        }
    }
    for (_, held) in open {
        for at in 0..2 {
            match how {
                Recovery::Charge => books[at].1 += held[at],
                Recovery::Refund => books[at].0 += held[at],
            }
        }
    }
    books
}

struct Call {
    id: usize,
    hold: Hold,
    amounts: [i64; 2],
    answered: bool,
}

/// A process's life as the test has seen it.
struct Life {
    process: Process,
    turns: Vec<Turn>,
    /// The commit each turn's answer waits for.
    epochs: Vec<Epoch>,
    calls: Vec<Call>,
    next_call: usize,
    names: Arc<[MeterName]>,
}

impl Life {
    fn note(&mut self, turn: Turn, epoch: Epoch) {
        self.turns.push(turn);
        self.epochs.push(epoch);
    }

    /// Whether a commit is due that nobody has let through.
    fn disk_is_behind(&self) -> bool {
        self.epochs.iter().max().is_some_and(|newest| !self.process.committer.is_durable(*newest))
    }

    fn act(&mut self, rng: &mut Rng) {
        match rng.u32(..10) {
            0..3 => self.begin(rng),
            3 => self.answer(rng),
            4 => self.extend(rng),
            5..8 => self.end(rng),
            8 => self.give(rng),
            _ if rng.bool() => self.process.users.sweep(),
            _ => {
                if self.disk_is_behind() {
                    self.process.write_one();
                }
            }
        }
    }

    fn begin(&mut self, rng: &mut Rng) {
        let amounts = [rng.i64(0..3), rng.i64(0..5)];
        let micros = Amounts::from_slice(&amounts.map(Micro));
        let now = UnixMillis(1_766_188_800_000);
        let Ok(hold) = Hold::reserve(self.process.actor.clone(), self.names.clone(), micros, 1000, now, None) else {
            return;
        };
        let id = self.next_call;
        self.next_call += 1;
        self.note(Turn::Reserve { call: id, amounts }, hold.epoch());
        self.calls.push(Call { id, hold, amounts, answered: false });
    }

    /// As the gateway: no byte of an answer leaves before its debit is on disk.
    fn answer(&mut self, rng: &mut Rng) {
        let Some(call) = self.calls.len().checked_sub(1).map(|last| &mut self.calls[rng.usize(..=last)]) else {
            return;
        };
        if !call.answered && self.process.committer.is_durable(call.hold.epoch()) {
            call.hold.answer_begins();
            call.answered = true;
        }
    }

    /// As a stream that outgrows what was set aside for it.
    fn extend(&mut self, rng: &mut Rng) {
        let Some(call) = self.calls.len().checked_sub(1).map(|last| &mut self.calls[rng.usize(..=last)]) else {
            return;
        };
        let more = [rng.i64(0..2), rng.i64(0..3)];
        let cost: [i64; 2] = std::array::from_fn(|at| call.amounts[at] + more[at]);
        if more == [0, 0] || !call.hold.cover(&cost.map(Micro), &[Micro::ZERO; 2]) {
            return;
        }
        call.amounts = cost;
        let (turn, epoch) = (Turn::Extend { call: call.id, more }, call.hold.epoch());
        self.note(turn, epoch);
    }

    fn end(&mut self, rng: &mut Rng) {
        if self.calls.is_empty() {
            return;
        }
        let mut call = self.calls.swap_remove(rng.usize(..self.calls.len()));
        let paid = match (call.answered, rng.u32(..4)) {
            // The upstream said something, however wrong.
            (true, 0..3) => {
                let claimed = [rng.i64(-2..5), rng.i64(-2..8)];
                call.hold.settle(&claimed.map(Micro), Ended::Cut);
                [claimed[0].clamp(0, call.amounts[0]), claimed[1].clamp(0, call.amounts[1])]
            }
            (false, 0..2) => {
                call.hold.refund();
                [0, 0]
            }
            // Dropped: a panic, a stop.
            (answered, _) => {
                drop(call.hold);
                if answered { call.amounts } else { [0, 0] }
            }
        };
        let epoch = self.process.actor.ask(Command::Look).unwrap().epoch;
        self.note(Turn::Settle { call: call.id, paid }, epoch);
    }

    fn give(&mut self, rng: &mut Rng) {
        let (meter, delta) = (rng.usize(..2), rng.i64(-3..12));
        let command = Command::Adjust { meter: &self.names[meter], delta: Micro(delta) };
        let answer = self.process.actor.ask(command).unwrap();
        if matches!(answer.reply, Reply::Done(_)) {
            self.note(Turn::Give { meter, delta }, answer.epoch);
        }
    }

    /// How many turns must have survived: all up to the last one that was acknowledged.
    fn acknowledged(&self) -> usize {
        let durable = |epoch: &Epoch| self.process.committer.is_durable(*epoch);
        self.epochs.iter().rposition(durable).map_or(0, |last| last + 1)
    }
}

fn books(account: &Account, names: &[MeterName]) -> Books {
    assert!(account.conserves());
    std::array::from_fn(|at| {
        let meter = account.meter(&names[at]).unwrap();
        assert_eq!(meter.held, Micro::ZERO, "nothing is held after a start");
        (meter.balance.0, meter.spent.0)
    })
}

fn first_rows(names: &[MeterName]) -> Arc<MemoryStore> {
    let rows = Arc::new(MemoryStore::default());
    let mut account = Account::default();
    for meter in names {
        let give = Command::Adjust { meter, delta: Micro(200) };
        super::ledger::step(&mut account, UnixMillis(1), ResetHour::default(), Recovery::Charge, give);
    }
    let born = User::new("alice".into(), "Alice".into(), "alice@example.com".into(), "free".into(), UnixMillis(1));
    let user = User { id: USER, email_verified: true, ..born };
    let mut batch = Batch::default();
    batch.put(tables::user(USER), tables::encode(&user).unwrap());
    batch.put(tables::meters(USER), tables::encode(&account.to_row()).unwrap());
    rows.commit(&batch).unwrap();
    rows
}

fn many_lives(how: Recovery) {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = Rng::with_seed(seed);
    let names: Arc<[MeterName]> = ["conversations", "credits"].map(|name| MeterName::parse(name).unwrap()).into();
    let rows = first_rows(&names);
    let mut at_start: Books = [(200, 0); 2];
    let mut behind = 0;
    for life in 0..PROCESSES {
        let process = Process::start(&rows, how);
        assert_eq!(books(&process.actor.account().unwrap(), &names), at_start, "seed {seed}, start {life}");
        let (turns, epochs, calls) = (Vec::new(), Vec::new(), Vec::new());
        let mut seen = Life { process, turns, epochs, calls, next_call: 0, names: names.clone() };
        for _ in 0..rng.usize(1..ACTIONS) {
            seen.act(&mut rng);
        }
        assert_eq!(seen.process.users.holds_open(), seen.calls.len() as i64);
        let acknowledged = seen.acknowledged();
        let Life { process, turns, calls, .. } = seen;
        behind += usize::from(acknowledged < turns.len());
        process.crash(rng.bool());
        // The dead process's calls end in its memory, which is gone.
        drop(calls);

        let next = Process::start(&rows, how);
        let found = books(&next.actor.account().unwrap(), &names);
        let possible: Vec<Books> =
            (acknowledged..=turns.len()).map(|count| recovered(at_start, &turns[..count], how)).collect();
        assert!(
            possible.contains(&found),
            "seed {seed}, life {life}: found {found:?}; {acknowledged} turns were acknowledged of {turns:?}"
        );
        // Dying at once, before anything was written, changes nothing.
        next.crash(rng.bool());
        at_start = found;
        // So that no meter runs dry and only refuses.
        at_start = refill(&rows, &names, at_start);
    }
    assert!(behind > PROCESSES / 10, "most processes died with nothing to lose: {behind}");
}

/// Gives back what was spent, by way of the disk and while nobody runs.
fn refill(rows: &Arc<MemoryStore>, names: &[MeterName], mut books: Books) -> Books {
    let row = tables::read(&**rows, &tables::meters(USER)).unwrap().unwrap();
    let mut account = Account::from_row(row);
    for (at, meter) in names.iter().enumerate() {
        let give = Command::Adjust { meter, delta: Micro(100) };
        super::ledger::step(&mut account, UnixMillis(1), ResetHour::default(), Recovery::Charge, give);
        books[at].0 += 100;
    }
    let mut batch = Batch::default();
    batch.put(tables::meters(USER), tables::encode(&account.to_row()).unwrap());
    rows.commit(&batch).unwrap();
    books
}

#[test]
fn no_crash_loses_or_repeats_what_was_acknowledged_when_holds_are_charged() {
    many_lives(Recovery::Charge);
}

#[test]
fn no_crash_loses_or_repeats_what_was_acknowledged_when_holds_are_given_back() {
    many_lives(Recovery::Refund);
}

/// The ledger checks its sums after each turn in builds with debug assertions; an account that never added up makes any
/// turn panic.
#[cfg(debug_assertions)]
#[test]
fn a_turn_that_panics_is_undone_and_the_next_call_is_told() {
    use crate::domain::user::Standing;
    use crate::error::Reject;
    use crate::store::committer::DirtyRow;

    let names: Arc<[MeterName]> = ["conversations", "credits"].map(|name| MeterName::parse(name).unwrap()).into();
    let process = Process::start(&first_rows(&names), Recovery::Charge);
    let meter = |granted, period| format!(r#"{{"b":7,"h":0,"s":0,"g":{granted},"r":9,"p":"{period}","l":0}}"#);
    let row = format!(r#"{{"meters":[["conversations",{}],["credits",{}]]}}"#, meter(7, "daily"), meter(99, "never"));
    let account = Account::from_row(serde_json::from_str(&row).unwrap());
    let actor = Arc::new(UserActor::new(
        Standing {
            id: USER,
            username: "alice".into(),
            email: "alice@example.com".into(),
            plan: "free".into(),
            status: Status::Active,
            email_verified: true,
            log_conversations: true,
            role: crate::domain::user::Role::User,
            must_change_password: false,
        },
        account,
        process.users.around().clone(),
    ));
    let written = || {
        let mut ops = Vec::new();
        actor.write_to(&mut ops);
        ops
    };
    let before = written();
    for _ in 0..3 {
        let amounts = Amounts::from_slice(&[Micro(1), Micro(0)]);
        let refused = Hold::reserve(actor.clone(), names.clone(), amounts, 10, UnixMillis(1_766_188_800_000), None);
        assert!(matches!(refused, Err(Reject::Internal)));
    }
    assert_eq!(written(), before, "neither the hold nor the reset that was due is left");
    assert_eq!(process.users.holds_open(), 0);
    process.crash(false);
}
