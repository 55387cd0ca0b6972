//! The ledger against a naive model of it.
//!
//! Several calls of one user are under way at once, staff sets, gives, takes and resets, the clock jumps over hours, weeks and
//! months in both directions, amounts come close to the ends of their range, turns panic, and the process dies with a disk
//! that is behind. The model knows nothing of the ledger's code: it keeps the calls instead of a sum of what they hold, counts
//! in a wider type, and finds the beginning of a period by walking back day by day. One of its meters begins without a limit.
//!
//! A few seconds as it stands; `PROPTEST_CASES` makes it longer.

use std::collections::BTreeMap;

use jiff::civil::{Date, Weekday};
use proptest::prelude::*;

use super::ledger::{self, Account, AccountRow, Admitted, Amounts, Command, Records, Recovery, Reply};
use crate::clock::UnixMillis;
use crate::domain::meters::{MeterName, Micro, ResetHour, ResetPeriod};

const NAMES: [&str; 3] = ["conversations", "credits", "images"];
/// 2025-12-20T00:00:00Z, shortly before the end of a week, a month and a year.
const START: i64 = 1_766_188_800;
const EARLIEST: i64 = 1_735_689_600;
const LATEST: i64 = 1_893_456_000;
const DAY: i64 = 86_400;

fn names() -> Vec<MeterName> {
    NAMES.iter().map(|name| MeterName::parse(name).unwrap()).collect()
}

#[derive(Clone, Debug)]
enum Act {
    /// A call begins: amounts on some of the meters.
    Reserve {
        amounts: [Option<i64>; 3],
        max_open: u32,
    },
    /// A call is let in before its body is there.
    Admit {
        amounts: [Option<i64>; 3],
        max_open: u32,
    },
    /// The body of one of those is there.
    Confirm {
        nth: usize,
        amounts: [Option<i64>; 3],
    },
    /// The body of one of those does not come.
    Dismiss {
        nth: usize,
    },
    /// One of the calls under way needs more.
    Extend {
        nth: usize,
        more: [Option<i64>; 3],
    },
    /// One of the calls under way ends; `None` is a meter nobody says anything about.
    Settle {
        nth: usize,
        paid: [Option<i64>; 3],
    },
    Set {
        meter: usize,
        balance: Option<i64>,
        reset: Option<i64>,
        period: Option<ResetPeriod>,
    },
    Adjust {
        meter: usize,
        delta: i64,
    },
    ResetOne,
    ResetEverybody,
    Look,
    /// The wall clock moves by so many seconds.
    Clock(i64),
    /// A turn that does not come to its end.
    Panic {
        meter: usize,
        delta: i64,
    },
    /// What is marked for the disk reaches it.
    Write,
    /// The process dies and starts again.
    Crash,
}

fn ordinary() -> std::ops::Range<i64> {
    0..6_000_000
}

/// Amounts as they come, and those at which sums break.
fn any_amount() -> impl Strategy<Value = i64> {
    let no_limit = Micro::UNLIMITED.0;
    let edge = prop::sample::select(vec![
        i64::MAX,
        i64::MAX - 1,
        i64::MAX / 2,
        i64::MAX / 2 + 1,
        i64::MIN,
        -1,
        0,
        1,
        no_limit,
        no_limit - 1,
        no_limit + 1,
    ]);
    prop_oneof![8 => -30_000_000..60_000_000i64, 1 => edge]
}

fn some_meters(amount: impl Strategy<Value = i64> + 'static) -> impl Strategy<Value = [Option<i64>; 3]> {
    let one = prop::option::weighted(0.6, amount).boxed();
    [one.clone(), one.clone(), one]
}

fn clock_jump() -> impl Strategy<Value = i64> {
    prop_oneof![
        4 => -7200..7200i64,
        2 => prop::sample::select(vec![DAY, -DAY, 3600, -3600, 7 * DAY, 31 * DAY, -31 * DAY, 1, -1]),
        1 => -40 * DAY..40 * DAY,
    ]
}

fn period() -> impl Strategy<Value = ResetPeriod> {
    use ResetPeriod::{Daily, Monthly, Never, Weekly};
    prop::sample::select(vec![Never, Daily, Weekly, Monthly])
}

fn act() -> impl Strategy<Value = Act> {
    let open = prop_oneof![9 => Just(1000u32), 1 => 0..4u32];
    let set = (0..3usize, prop::option::of(any_amount()), prop::option::of(any_amount()), prop::option::of(period()));
    prop_oneof![
        8 => (some_meters(ordinary()), open.clone()).prop_map(|(amounts, max_open)| Act::Reserve { amounts, max_open }),
        4 => (some_meters(ordinary()), open).prop_map(|(amounts, max_open)| Act::Admit { amounts, max_open }),
        3 => (any::<usize>(), some_meters(ordinary())).prop_map(|(nth, amounts)| Act::Confirm { nth, amounts }),
        1 => (any::<usize>()).prop_map(|nth| Act::Dismiss { nth }),
        3 => (any::<usize>(), some_meters(ordinary())).prop_map(|(nth, more)| Act::Extend { nth, more }),
        8 => (any::<usize>(), some_meters(any_amount())).prop_map(|(nth, paid)| Act::Settle { nth, paid }),
        2 => (any::<usize>()).prop_map(|nth| Act::Settle { nth, paid: [None; 3] }),
        2 => set.prop_map(|(meter, balance, reset, period)| Act::Set { meter, balance, reset, period }),
        3 => (0..3usize, any_amount()).prop_map(|(meter, delta)| Act::Adjust { meter, delta }),
        1 => Just(Act::ResetOne),
        1 => Just(Act::ResetEverybody),
        1 => Just(Act::Look),
        3 => clock_jump().prop_map(Act::Clock),
        1 => (0..3usize, any_amount()).prop_map(|(meter, delta)| Act::Panic { meter, delta }),
        3 => Just(Act::Write),
        1 => Just(Act::Crash),
    ]
}

/// One meter as anybody would write it down: what calls hold is with the calls.
#[derive(Clone, Debug, PartialEq)]
struct Naive {
    balance: i128,
    spent: i128,
    reset: i128,
    period: ResetPeriod,
    /// When the period of the last reset began.
    began: i64,
}

/// A call under way: what it holds on which meter.
type Held = BTreeMap<usize, i128>;

#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    meters: BTreeMap<usize, Naive>,
    calls: Vec<Held>,
    /// Calls that were let in before their bodies.
    early: Vec<Held>,
    /// Resets of everybody that this user has had.
    resets: u64,
}

/// The second at which the period began, found with a calendar and patience.
fn period_began(period: ResetPeriod, now: i64, hour: u8) -> Option<i64> {
    let begins = |date: Date| date.at(hour as i8, 0, 0, 0).to_zoned(jiff::tz::TimeZone::UTC).unwrap().timestamp();
    let mut day = jiff::Timestamp::from_second(now).unwrap().to_zoned(jiff::tz::TimeZone::UTC).date();
    loop {
        let fits = match period {
            ResetPeriod::Never => return None,
            ResetPeriod::Daily => true,
            ResetPeriod::Weekly => day.weekday() == Weekday::Monday,
            ResetPeriod::Monthly => day.day() == 1,
        };
        if fits && begins(day).as_second() <= now {
            return Some(begins(day).as_second());
        }
        day = day.yesterday().unwrap();
    }
}

const MOST: i128 = i64::MAX as i128;

impl Model {
    fn held(&self, meter: usize) -> i128 {
        self.calls.iter().chain(&self.early).filter_map(|call| call.get(&meter)).sum()
    }

    /// Whether a balance leaves everything within range.
    fn fits(&self, meter: usize, balance: i128, spent: i128) -> bool {
        balance + self.held(meter) + spent <= MOST
    }

    fn set_back(&mut self, meter: usize) -> bool {
        let present = &self.meters[&meter];
        let fits = self.fits(meter, present.reset, present.spent);
        if fits {
            let naive = self.meters.get_mut(&meter).unwrap();
            naive.balance = naive.reset;
        }
        fits
    }

    /// What every touch of the account does first.
    fn touch(&mut self, now: i64, hour: u8, resets: u64) {
        let with_period = |model: &Self| -> Vec<usize> {
            let periodic = model.meters.iter().filter(|(_, naive)| naive.period != ResetPeriod::Never);
            periodic.map(|(at, _)| *at).collect()
        };
        if self.resets < resets {
            self.resets = resets;
            for meter in with_period(self) {
                self.set_back(meter);
            }
        }
        for meter in with_period(self) {
            let began = period_began(self.meters[&meter].period, now, hour).unwrap();
            if began > self.meters[&meter].began && self.set_back(meter) {
                self.meters.get_mut(&meter).unwrap().began = began;
            }
        }
    }

    fn open(&self) -> usize {
        self.calls.len() + self.early.len()
    }

    fn give_back(&mut self, held: &Held) {
        for (meter, amount) in held {
            self.meters.get_mut(meter).unwrap().balance += amount;
        }
    }

    /// Ends what a crash left open.
    fn recover(&mut self, how: Recovery) {
        for early in std::mem::take(&mut self.early) {
            self.give_back(&early);
        }
        for (meter, amount) in std::mem::take(&mut self.calls).into_iter().flatten() {
            let naive = self.meters.get_mut(&meter).unwrap();
            match how {
                Recovery::Charge => naive.spent += amount,
                Recovery::Refund => naive.balance += amount,
            }
        }
    }

    fn fresh() -> Naive {
        Naive { balance: 0, spent: 0, reset: 0, period: ResetPeriod::Never, began: 0 }
    }
}

/// Both sides of the comparison, and the disk as it was last written.
struct World {
    names: Vec<MeterName>,
    account: Account,
    model: Model,
    disk: (AccountRow, Model),
    /// A turn since the last write said that it must reach the disk.
    must_write: bool,
    now: i64,
    hour: u8,
    recovery: Recovery,
    /// Resets of everybody so far.
    resets: u64,
}

fn copy(row: &AccountRow) -> AccountRow {
    crate::store::tables::decode(&crate::store::tables::encode(row).unwrap()).unwrap()
}

/// What a start makes of a row.
fn restarted(row: &AccountRow, how: Recovery) -> Account {
    let mut account = Account::from_row(copy(row));
    account.recover_holds(how);
    account
}

impl World {
    fn new(hour: u8, recovery: Recovery) -> Self {
        let mut world = Self {
            names: names(),
            account: Account::default(),
            model: Model::default(),
            disk: (Account::default().to_row(), Model::default()),
            must_write: false,
            now: START,
            hour,
            recovery,
            resets: 0,
        };
        let no_limit = Micro::UNLIMITED.0;
        let first = [
            (0, 20_000_000, ResetPeriod::Daily),
            (1, 50_000_000, ResetPeriod::Monthly),
            (2, no_limit, ResetPeriod::Weekly),
        ];
        for (meter, amount, period) in first {
            world.run(&Act::Set { meter, balance: Some(amount), reset: Some(amount), period: Some(period) }).unwrap();
        }
        world.run(&Act::Write).unwrap();
        world
    }

    /// One turn as the actor runs it. Also checks what it says about the disk: only what recovery comes to by itself may be
    /// left unwritten.
    fn turn(&mut self, command: Command<'_>) -> Result<Reply, TestCaseError> {
        let before = self.account.to_row();
        let behind = ledger::catch_up(&mut self.account, self.resets);
        let hour = ResetHour::try_from(self.hour).unwrap();
        let now = UnixMillis(self.now as u64 * 1000);
        let (reply, records) = ledger::step(&mut self.account, now, hour, self.recovery, command);
        if behind || records == Records::Now {
            self.must_write = true;
        } else {
            let (old, new) = (restarted(&before, self.recovery), restarted(&self.account.to_row(), self.recovery));
            prop_assert_eq!(old, new, "{:?} is not to be written after {:?}", records, command);
        }
        Ok(reply)
    }

    fn run(&mut self, act: &Act) -> Result<(), TestCaseError> {
        match act {
            Act::Clock(by) => self.now = (self.now + by).clamp(EARLIEST, LATEST),
            Act::ResetEverybody => self.resets += 1,
            Act::Write => {
                self.disk = (self.account.to_row(), self.model.clone());
                self.must_write = false;
            }
            Act::Crash => self.crash()?,
            Act::Panic { meter, delta } => {
                let (before, numbers) = (self.account.clone(), self.account.numbers());
                let must_write = self.must_write;
                self.turn(Command::Adjust { meter: &self.names[*meter].clone(), delta: Micro(*delta) })?;
                self.account.put_back(numbers);
                self.must_write = must_write;
                prop_assert_eq!(&self.account, &before);
            }
            command => {
                self.model.touch(self.now, self.hour, self.resets);
                self.command(command)?;
            }
        }
        self.compare()
    }

    fn command(&mut self, act: &Act) -> Result<(), TestCaseError> {
        match act {
            Act::Reserve { amounts, max_open } => self.reserve(amounts, *max_open),
            Act::Admit { amounts, max_open } => self.admit(amounts, *max_open),
            Act::Confirm { nth, amounts } => self.confirm(*nth, amounts),
            Act::Dismiss { nth } => self.dismiss(*nth),
            Act::Extend { nth, more } => self.extend(*nth, more),
            Act::Settle { nth, paid } => self.settle(*nth, paid),
            Act::Set { meter, balance, reset, period } => self.set(*meter, *balance, *reset, *period),
            Act::Adjust { meter, delta } => self.adjust(*meter, *delta),
            Act::ResetOne => self.reset_one(),
            _ => self.turn(Command::Look).map(|_| ()),
        }
    }

    fn reserve(&mut self, amounts: &[Option<i64>; 3], max_open: u32) -> Result<(), TestCaseError> {
        let wanted: Vec<(usize, i64)> = amounts.iter().enumerate().filter_map(|(at, n)| n.map(|n| (at, n))).collect();
        let meters: Vec<MeterName> = wanted.iter().map(|(at, _)| self.names[*at].clone()).collect();
        let micros: Vec<Micro> = wanted.iter().map(|(_, amount)| Micro(*amount)).collect();
        let reply = self.turn(Command::Reserve { meters: &meters, amounts: &micros, max_open })?;
        if self.model.open() >= max_open as usize {
            prop_assert_eq!(reply, Reply::TooManyOpen { limit: max_open });
            return Ok(());
        }
        if let Some(held) = self.take(&wanted, &reply)? {
            self.model.calls.push(held);
        }
        Ok(())
    }

    fn admit(&mut self, amounts: &[Option<i64>; 3], max_open: u32) -> Result<(), TestCaseError> {
        let wanted: Vec<(usize, i64)> = amounts.iter().enumerate().filter_map(|(at, n)| n.map(|n| (at, n))).collect();
        let meters: Vec<MeterName> = wanted.iter().map(|(at, _)| self.names[*at].clone()).collect();
        let micros: Vec<Micro> = wanted.iter().map(|(_, amount)| Micro(*amount)).collect();
        let reply = self.turn(Command::Admit { meters: &meters, amounts: &micros, max_open })?;
        if self.model.open() >= max_open as usize {
            prop_assert_eq!(reply, Reply::TooManyOpen { limit: max_open });
            return Ok(());
        }
        if let Some(held) = self.take(&wanted, &reply)? {
            self.model.early.push(held);
        }
        Ok(())
    }

    /// One of the calls that were let in, taken out of the model, with what it holds.
    fn one_admitted(&mut self, nth: usize) -> Option<(Held, Vec<MeterName>, Vec<Micro>)> {
        let nth = nth.checked_rem(self.model.early.len())?;
        let held = self.model.early.remove(nth);
        let meters = held.keys().map(|at| self.names[*at].clone()).collect();
        let amounts = held.values().map(|amount| Micro(*amount as i64)).collect();
        Some((held, meters, amounts))
    }

    fn confirm(&mut self, nth: usize, amounts: &[Option<i64>; 3]) -> Result<(), TestCaseError> {
        let Some((held, early_meters, early)) = self.one_admitted(nth) else {
            return self.turn(Command::Look).map(|_| ());
        };
        let wanted: Vec<(usize, i64)> = amounts.iter().enumerate().filter_map(|(at, n)| n.map(|n| (at, n))).collect();
        let meters: Vec<MeterName> = wanted.iter().map(|(at, _)| self.names[*at].clone()).collect();
        let micros: Vec<Micro> = wanted.iter().map(|(_, amount)| Micro(*amount)).collect();
        let admitted = Admitted { meters: &early_meters, amounts: &early };
        let reply = self.turn(Command::Confirm { admitted, meters: &meters, amounts: &micros })?;
        let before = self.model.clone();
        self.model.give_back(&held);
        match self.take(&wanted, &reply)? {
            Some(held) => self.model.calls.push(held),
            None => {
                self.model = before;
                self.model.early.push(held);
            }
        }
        Ok(())
    }

    fn dismiss(&mut self, nth: usize) -> Result<(), TestCaseError> {
        let Some((held, meters, amounts)) = self.one_admitted(nth) else {
            return self.turn(Command::Look).map(|_| ());
        };
        self.turn(Command::Dismiss(Admitted { meters: &meters, amounts: &amounts }))?;
        self.model.give_back(&held);
        Ok(())
    }

    fn extend(&mut self, nth: usize, more: &[Option<i64>; 3]) -> Result<(), TestCaseError> {
        if self.model.calls.is_empty() {
            return self.turn(Command::Look).map(|_| ());
        }
        let nth = nth % self.model.calls.len();
        let wanted: Vec<(usize, i64)> =
            self.model.calls[nth].keys().map(|at| (*at, more[*at].unwrap_or_default())).collect();
        let meters: Vec<MeterName> = wanted.iter().map(|(at, _)| self.names[*at].clone()).collect();
        let micros: Vec<Micro> = wanted.iter().map(|(_, amount)| Micro(*amount)).collect();
        let reply = self.turn(Command::Extend { meters: &meters, more: &micros })?;
        if let Some(held) = self.take(&wanted, &reply)? {
            for (at, amount) in held {
                *self.model.calls[nth].entry(at).or_default() += amount;
            }
        }
        Ok(())
    }

    /// Takes the amounts from the model's balances, all or none, and compares what the ledger said.
    fn take(&mut self, wanted: &[(usize, i64)], reply: &Reply) -> Result<Option<Held>, TestCaseError> {
        let balance = |model: &Model, at: usize| model.meters.get(&at).map_or(0, |naive| naive.balance);
        // A meter without a limit that is short is set back first, if it can be; unless another one is short.
        let mut model = self.model.clone();
        for (at, amount) in wanted {
            let reset = model.meters.get(at).map_or(0, |naive| naive.reset);
            let is_short = i128::from(*amount) > balance(&model, *at);
            if is_short && reset >= i128::from(Micro::UNLIMITED.0) && i128::from(*amount) <= reset {
                model.set_back(*at);
            }
        }
        let short = wanted.iter().find(|(at, amount)| i128::from(*amount) > balance(&model, *at));
        if let Some((at, amount)) = short {
            let Reply::Short(shortage) = reply else { return Err(TestCaseError::fail(format!("{reply:?}"))) };
            prop_assert_eq!(&shortage.meter, &self.names[*at]);
            prop_assert_eq!(i128::from(shortage.left.0), balance(&self.model, *at));
            prop_assert_eq!(shortage.needed, Micro(*amount));
            return Ok(None);
        }
        self.model = model;
        let (mut held, mut left) = (Held::new(), Amounts::new());
        for (at, amount) in wanted {
            if let Some(naive) = self.model.meters.get_mut(at) {
                naive.balance -= i128::from(*amount);
                held.insert(*at, i128::from(*amount));
            }
            left.push(Micro(balance(&self.model, *at) as i64));
        }
        prop_assert_eq!(reply, &Reply::Done(left));
        Ok(Some(held))
    }

    fn settle(&mut self, nth: usize, paid: &[Option<i64>; 3]) -> Result<(), TestCaseError> {
        if self.model.calls.is_empty() {
            return self.turn(Command::Look).map(|_| ());
        }
        let call = self.model.calls.remove(nth % self.model.calls.len());
        let meters: Vec<MeterName> = call.keys().map(|at| self.names[*at].clone()).collect();
        let held: Vec<Micro> = call.values().map(|amount| Micro(*amount as i64)).collect();
        // Whoever settles may say less than there is to say: what is left out is paid in full.
        let mut said: Vec<Option<i64>> = call.keys().map(|at| paid[*at]).collect();
        let known = said.iter().position(Option::is_none).unwrap_or(said.len());
        said.truncate(known);
        let said: Vec<Micro> = said.into_iter().flatten().map(Micro).collect();
        self.turn(Command::Settle { meters: &meters, held: &held, paid: &said })?;
        for (nth, (at, held)) in call.iter().enumerate() {
            let naive = self.model.meters.get_mut(at).unwrap();
            let counted = said.get(nth).map_or(*held, |paid| i128::from(paid.0).max(0).min(*held));
            naive.spent += counted;
            naive.balance += held - counted;
        }
        Ok(())
    }

    fn set(
        &mut self,
        meter: usize,
        balance: Option<i64>,
        reset: Option<i64>,
        period: Option<ResetPeriod>,
    ) -> Result<(), TestCaseError> {
        let name = self.names[meter].clone();
        let (asked, back) = (balance.map(Micro), reset.map(Micro));
        let reply = self.turn(Command::Set { meter: &name, balance: asked, reset: back, period })?;
        let mut naive = self.model.meters.get(&meter).cloned().unwrap_or_else(Model::fresh);
        if let Some(period) = period {
            naive.period = period;
            naive.began = naive.began.max(period_began(period, self.now, self.hour).unwrap_or(0));
        }
        naive.reset = reset.map_or(naive.reset, |reset| i128::from(reset).max(0));
        if let Some(balance) = balance {
            naive.balance = i128::from(balance).max(0);
            if !self.model.fits(meter, naive.balance, naive.spent) {
                prop_assert_eq!(reply, Reply::OutOfRange);
                return Ok(());
            }
        }
        prop_assert_eq!(reply, Reply::Done(Amounts::from_slice(&[Micro(naive.balance as i64)])));
        self.model.meters.insert(meter, naive);
        Ok(())
    }

    fn adjust(&mut self, meter: usize, delta: i64) -> Result<(), TestCaseError> {
        let name = self.names[meter].clone();
        let reply = self.turn(Command::Adjust { meter: &name, delta: Micro(delta) })?;
        let mut naive = self.model.meters.get(&meter).cloned().unwrap_or_else(Model::fresh);
        let left = naive.balance;
        naive.balance += i128::from(delta);
        if naive.balance < 0 {
            prop_assert!(matches!(&reply, Reply::Short(short) if i128::from(short.left.0) == left), "{:?}", reply);
        } else if !self.model.fits(meter, naive.balance, naive.spent) {
            prop_assert_eq!(reply, Reply::OutOfRange);
        } else {
            prop_assert_eq!(reply, Reply::Done(Amounts::from_slice(&[Micro(naive.balance as i64)])));
            self.model.meters.insert(meter, naive);
        }
        Ok(())
    }

    fn reset_one(&mut self) -> Result<(), TestCaseError> {
        let reply = self.turn(Command::ResetAll)?;
        let mut after = self.model.clone();
        let periodic: Vec<usize> = self.model.meters.keys().copied().collect();
        let mut wanted = periodic.iter().filter(|at| self.model.meters[at].period != ResetPeriod::Never);
        if wanted.all(|at| after.set_back(*at)) {
            self.model = after;
            prop_assert!(matches!(reply, Reply::Done(_)), "{:?}", reply);
        } else {
            prop_assert_eq!(reply, Reply::OutOfRange);
        }
        Ok(())
    }

    /// Only what was written comes back, and every call that was open in it is ended once.
    fn crash(&mut self) -> Result<(), TestCaseError> {
        let (row, mut model) = (copy(&self.disk.0), self.disk.1.clone());
        let fresh = restarted(&row, self.recovery);
        if !self.must_write {
            // Everything was acknowledged, so nothing may be missing and nothing may count twice.
            prop_assert_eq!(&fresh, &restarted(&self.account.to_row(), self.recovery));
        }
        self.account = fresh;
        prop_assert!(self.account.recover_holds(self.recovery).is_empty(), "a second start finds nothing to do");
        model.recover(self.recovery);
        self.model = model;
        self.disk = (self.account.to_row(), self.model.clone());
        self.must_write = false;
        Ok(())
    }

    fn compare(&self) -> Result<(), TestCaseError> {
        prop_assert_eq!(self.account.meters().count(), self.model.meters.len());
        prop_assert_eq!(self.account.open as usize, self.model.open());
        for (at, naive) in &self.model.meters {
            let meter = self.account.meter(&self.names[*at]).unwrap();
            let (balance, held) = (i128::from(meter.balance.0), i128::from(meter.held.0));
            let (spent, granted) = (i128::from(meter.spent.0), i128::from(meter.granted.0));
            prop_assert_eq!(
                (balance, held, spent),
                (naive.balance, self.model.held(*at), naive.spent),
                "{}",
                NAMES[*at]
            );
            prop_assert_eq!((i128::from(meter.reset.0), meter.period), (naive.reset, naive.period), "{}", NAMES[*at]);
            prop_assert_eq!(meter.period_began, naive.began, "{}", NAMES[*at]);
            prop_assert_eq!(granted, balance + held + spent);
            prop_assert!(balance >= 0 && held >= 0 && spent >= 0);
        }
        prop_assert!(self.account.conserves());
        Ok(())
    }
}

proptest! {
    #[test]
    fn the_ledger_does_what_a_naive_one_does(
        hour in 0..24u8,
        charge in any::<bool>(),
        acts in prop::collection::vec(act(), 1..150),
    ) {
        let mut world = World::new(hour, if charge { Recovery::Charge } else { Recovery::Refund });
        for act in &acts {
            world.run(act)?;
        }
    }

    /// Whatever else happens in between: within one period a balance is set back once, and only forward in time.
    #[test]
    fn a_period_resets_once(
        hour in 0..24u8,
        period in period(),
        jumps in prop::collection::vec(clock_jump(), 1..60),
    ) {
        let mut world = World::new(hour, Recovery::Charge);
        let set = Act::Set { meter: 2, balance: Some(5), reset: Some(7_000_000), period: Some(period) };
        world.run(&set)?;
        let began = |now: i64| period_began(period, now, hour);
        let mut newest = began(world.now);
        for by in jumps {
            world.run(&Act::Set { meter: 2, balance: Some(5), reset: None, period: None })?;
            world.run(&Act::Clock(by))?;
            world.run(&Act::Look)?;
            let was_reset = world.model.meters[&2].balance == 7_000_000;
            prop_assert_eq!(was_reset, began(world.now) > newest, "at {}", world.now);
            newest = newest.max(began(world.now));
        }
    }
}
