//! A long random run of the ledger: many users, every command, and books kept on the side.
//!
//! Faster than the model tests by far, so that it can go on for very long: a million operations with the other tests,
//! `TOLLGATE_LEDGER_OPS` of them on request (`make fuzz` asks for 10⁸). After each operation every meter of the user must add
//! up and agree with the books. `TOLLGATE_LEDGER_SEED` repeats a run.

use std::time::Instant;

use fastrand::Rng;

use super::ledger::{self, Account, Amounts, Command, Records, Recovery, Reply};
use crate::clock::UnixMillis;
use crate::domain::meters::{MeterName, Micro, ResetHour, ResetPeriod};

const USERS: usize = 256;
const METERS: usize = 3;
/// Only the first is set back each day.
const NAMES: [&str; METERS] = ["conversations", "credits", "images"];
const RESET: i64 = 25_000_000;
const HOUR: u8 = 6;
const DAY: i64 = 86_400;
/// More calls at once are refused.
const MAX_OPEN: u32 = 12;

/// What the driver itself knows of one meter.
#[derive(Clone, Copy, Default)]
struct Book {
    balance: i128,
    held: i128,
    spent: i128,
    /// All that was ever given, less what was taken.
    granted: i128,
}

impl Book {
    /// Sets the balance, unless that leaves the range.
    fn set(&mut self, to: i128) -> bool {
        let fits = to >= 0 && to + self.held + self.spent <= i128::from(i64::MAX);
        if fits {
            self.granted += to - self.balance;
            self.balance = to;
        }
        fits
    }
}

#[derive(Clone)]
struct User {
    account: Account,
    books: [Book; METERS],
    /// Amounts of the calls under way.
    calls: Vec<[i64; METERS]>,
    last_day: i64,
    resets: u64,
}

/// How often what was answered: a run that never refuses anything shows little.
#[derive(Debug, Default)]
struct Tally {
    reserved: u64,
    extended: u64,
    settled: u64,
    short: u64,
    too_many: u64,
    adjusted: u64,
    out_of_range: u64,
    daily_resets: u64,
    resets_of_all: u64,
    crashes: u64,
}

struct Run {
    rng: Rng,
    names: [MeterName; METERS],
    users: Vec<User>,
    now: i64,
    resets: u64,
    tally: Tally,
}

fn is_daily(meter: usize) -> bool {
    meter == 0
}

fn day(now: i64) -> i64 {
    (now - i64::from(HOUR) * 3600).div_euclid(DAY)
}

impl Run {
    fn new(seed: u64) -> Self {
        let names = NAMES.map(|name| MeterName::parse(name).unwrap());
        let mut run = Self {
            rng: Rng::with_seed(seed),
            names,
            users: Vec::new(),
            now: 1_766_188_800,
            resets: 0,
            tally: Tally::default(),
        };
        for _ in 0..USERS {
            let last_day = day(run.now);
            let account = Account::default();
            let books = [Book::default(); METERS];
            run.users.push(User { account, books, calls: Vec::new(), last_day, resets: 0 });
            let at = run.users.len() - 1;
            for meter in 0..METERS {
                let period = if is_daily(meter) { ResetPeriod::Daily } else { ResetPeriod::Never };
                let name = run.names[meter].clone();
                let amount = Some(Micro(RESET));
                let set = Command::Set { meter: &name, balance: amount, reset: amount, period: Some(period) };
                run.turn(at, set);
                assert!(run.users[at].books[meter].set(RESET.into()));
            }
        }
        run
    }

    fn turn(&mut self, user: usize, command: Command<'_>) -> (Reply, Records) {
        let (hour, now) = (ResetHour::try_from(HOUR).unwrap(), UnixMillis(self.now as u64 * 1000));
        let account = &mut self.users[user].account;
        ledger::catch_up(account, self.resets);
        ledger::step(account, now, hour, Recovery::Charge, command)
    }

    /// What any touch of the account does to the books.
    fn touch(&mut self, user: usize) {
        let User { books, last_day, resets, .. } = &mut self.users[user];
        if *resets < self.resets {
            *resets = self.resets;
            books[0].set(RESET.into());
        }
        if day(self.now) > *last_day && books[0].set(RESET.into()) {
            *last_day = day(self.now);
            self.tally.daily_resets += 1;
        }
    }

    fn operate(&mut self) {
        let user = self.rng.usize(..USERS);
        match self.rng.u32(..1000) {
            0..430 => self.reserve(user),
            430..500 => self.extend(user),
            500..860 => self.settle(user),
            860..930 => self.adjust(user),
            930..960 => self.set(user),
            960..970 => self.reset(user),
            970..971 => {
                self.resets += 1;
                self.tally.resets_of_all += 1;
            }
            971..975 => self.crash(user),
            _ => self.now = (self.now + self.rng.i64(-1800..2400)).max(DAY),
        }
        self.touch(user);
        self.turn(user, Command::Look);
        self.check(user);
    }

    fn reserve(&mut self, user: usize) {
        self.touch(user);
        let amounts: [i64; METERS] = std::array::from_fn(|_| self.rng.i64(0..4_000_000) * i64::from(self.rng.bool()));
        let names = self.names.clone();
        let command = Command::Reserve { meters: &names, amounts: &amounts.map(Micro), max_open: MAX_OPEN };
        let (reply, _) = self.turn(user, command);
        let User { books, calls, .. } = &mut self.users[user];
        let expected_short = books.iter().zip(amounts).position(|(book, amount)| i128::from(amount) > book.balance);
        match (reply, expected_short) {
            (Reply::TooManyOpen { .. }, _) if calls.len() == MAX_OPEN as usize => self.tally.too_many += 1,
            (Reply::Short(shortage), Some(at)) if shortage.meter == names[at] => self.tally.short += 1,
            (Reply::Done(_), None) if calls.len() < MAX_OPEN as usize => {
                for (book, amount) in books.iter_mut().zip(amounts) {
                    book.balance -= i128::from(amount);
                    book.held += i128::from(amount);
                }
                calls.push(amounts);
                self.tally.reserved += 1;
            }
            other => panic!("reserving {amounts:?} with {} calls open: {other:?}", calls.len()),
        }
    }

    fn extend(&mut self, user: usize) {
        self.touch(user);
        let User { books, calls, .. } = &self.users[user];
        if calls.is_empty() {
            return;
        }
        let call = self.rng.usize(..calls.len());
        let more: [i64; METERS] = std::array::from_fn(|_| self.rng.i64(0..1_000_000));
        let is_short = books.iter().zip(more).any(|(book, amount)| i128::from(amount) > book.balance);
        let names = self.names.clone();
        let (reply, _) = self.turn(user, Command::Extend { meters: &names, more: &more.map(Micro) });
        assert_eq!(matches!(reply, Reply::Short(_)), is_short, "{reply:?}");
        if is_short {
            self.tally.short += 1;
            return;
        }
        let User { books, calls, .. } = &mut self.users[user];
        for ((book, held), more) in books.iter_mut().zip(&mut calls[call]).zip(more) {
            book.balance -= i128::from(more);
            book.held += i128::from(more);
            *held += more;
        }
        self.tally.extended += 1;
    }

    fn settle(&mut self, user: usize) {
        self.touch(user);
        let calls = &mut self.users[user].calls;
        if calls.is_empty() {
            return;
        }
        let held = calls.swap_remove(self.rng.usize(..calls.len()));
        // What is claimed knows no bounds; what is paid does.
        let claimed: [i64; METERS] = std::array::from_fn(|at| match self.rng.u32(..8) {
            0 => i64::MAX,
            1 => i64::MIN,
            2 | 3 => held[at],
            _ => self.rng.i64(-1_000_000..5_000_000),
        });
        let names = self.names.clone();
        let (held_micros, paid) = (held.map(Micro), claimed.map(Micro));
        let command = Command::Settle { meters: &names, held: &held_micros, paid: &paid };
        let (reply, _) = self.turn(user, command);
        let books = &mut self.users[user].books;
        for ((book, held), claimed) in books.iter_mut().zip(held).zip(claimed) {
            let paid = claimed.clamp(0, held);
            book.held -= i128::from(held);
            book.spent += i128::from(paid);
            book.balance += i128::from(held - paid);
        }
        let left: Amounts = books.iter().map(|book| Micro(book.balance as i64)).collect();
        assert_eq!(reply, Reply::Done(left));
        self.tally.settled += 1;
    }

    /// An amount that is mostly sensible and sometimes at an end of the range.
    fn amount(&mut self) -> i64 {
        match self.rng.u32(..50) {
            0 => i64::MAX,
            1 => i64::MIN,
            2 => i64::MAX / 2,
            _ => self.rng.i64(-20_000_000..20_000_000),
        }
    }

    fn adjust(&mut self, user: usize) {
        self.touch(user);
        let (meter, delta) = (self.rng.usize(..METERS), self.amount());
        let name = self.names[meter].clone();
        let (reply, _) = self.turn(user, Command::Adjust { meter: &name, delta: Micro(delta) });
        let book = &mut self.users[user].books[meter];
        let to = book.balance + i128::from(delta);
        match reply {
            Reply::Done(_) => {
                assert!(book.set(to), "{delta} was given on {to}");
                self.tally.adjusted += 1;
            }
            Reply::Short(_) => {
                assert!(to < 0);
                self.tally.short += 1;
            }
            Reply::OutOfRange => {
                assert!(to >= 0 && !book.set(to));
                self.tally.out_of_range += 1;
            }
            other => panic!("{other:?}"),
        }
    }

    fn set(&mut self, user: usize) {
        self.touch(user);
        let (meter, to) = (self.rng.usize(..METERS), self.amount());
        let name = self.names[meter].clone();
        let command = Command::Set { meter: &name, balance: Some(Micro(to)), reset: None, period: None };
        let (reply, _) = self.turn(user, command);
        let fits = self.users[user].books[meter].set(to.max(0).into());
        assert_eq!(matches!(reply, Reply::Done(_)), fits);
        self.tally.out_of_range += u64::from(!fits);
    }

    fn reset(&mut self, user: usize) {
        self.touch(user);
        let (reply, _) = self.turn(user, Command::ResetAll);
        let fits = self.users[user].books[0].set(RESET.into());
        assert_eq!(matches!(reply, Reply::Done(_)), fits);
    }

    /// The process dies with everything on disk; the calls under way are charged.
    fn crash(&mut self, user: usize) {
        let User { account, books, calls, .. } = &mut self.users[user];
        *account = Account::from_row(account.to_row());
        account.recover_holds(Recovery::Charge);
        calls.clear();
        for book in books {
            book.spent += book.held;
            book.held = 0;
        }
        self.tally.crashes += 1;
    }

    fn check(&self, user: usize) {
        let User { account, books, calls, .. } = &self.users[user];
        assert!(account.conserves());
        assert_eq!(account.open as usize, calls.len());
        for ((name, book), (own, meter)) in self.names.iter().zip(books).zip(account.meters()) {
            let ledger = [meter.balance, meter.held, meter.spent, meter.granted].map(|micro| i128::from(micro.0));
            assert_eq!(ledger, [book.balance, book.held, book.spent, book.granted], "{name}");
            assert_eq!(book.granted, book.balance + book.held + book.spent, "{name}");
            assert!(own == name && book.balance >= 0 && book.held >= 0 && book.spent >= 0, "{name}");
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.replace('_', "").parse().unwrap_or_else(|_| panic!("{variable}: not a whole number: {text}")))
}

#[test]
fn every_operation_of_a_long_run_conserves() {
    let ops = number("TOLLGATE_LEDGER_OPS").unwrap_or(1_000_000);
    let seed = number("TOLLGATE_LEDGER_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("ledger run: seed {seed}, {ops} operations");
    let mut run = Run::new(seed);
    let began = Instant::now();
    for _ in 0..ops {
        run.operate();
    }
    let took = began.elapsed();
    // Whoever is still under way ends, and then nothing is held anywhere.
    for user in 0..USERS {
        while !run.users[user].calls.is_empty() {
            run.settle(user);
        }
        run.check(user);
        assert!(run.users[user].account.meters().all(|(_, meter)| meter.held == Micro::ZERO));
    }
    println!("ledger run: {took:.1?}, {:.0} ns an operation, {:?}", took.as_nanos() as f64 / ops as f64, run.tally);
    let tally = &run.tally;
    if ops >= 1_000_000 {
        let seen = [
            tally.reserved,
            tally.extended,
            tally.settled,
            tally.short,
            tally.too_many,
            tally.adjusted,
            tally.out_of_range,
            tally.daily_resets,
            tally.resets_of_all,
            tally.crashes,
        ];
        assert!(seen.iter().all(|count| *count > 0), "{tally:?}");
    }
}
