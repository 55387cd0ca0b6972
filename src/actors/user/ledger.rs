//! The ledger's pure core: `step(account, now, command) -> (reply, records)`.
//!
//! Owns the arithmetic of one user's meters. For every meter and at every moment `granted = balance + held + spent`, no
//! part of which is negative but `granted` itself may shrink when a reset takes away. Never reads a clock, never writes.

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::clock::UnixMillis;
use crate::config::PlanMeter;
use crate::domain::meters::{MeterName, Micro, ResetHour, ResetPeriod};
use crate::error::Shortage;

/// Meters most users have; more spill to the heap.
const USUAL_METERS: usize = 5;

/// Amounts in the order of the meters a command names.
pub type Amounts = SmallVec<[Micro; USUAL_METERS]>;

/// The numbers of one meter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meter {
    #[serde(rename = "b")]
    pub balance: Micro,
    /// Set aside for calls in flight.
    #[serde(rename = "h", default, skip_serializing_if = "is_nothing")]
    pub held: Micro,
    #[serde(rename = "s", default, skip_serializing_if = "is_nothing")]
    pub spent: Micro,
    /// All that was ever given, less what resets took away.
    #[serde(rename = "g")]
    pub granted: Micro,
    /// What a reset sets the balance to.
    #[serde(rename = "r")]
    pub reset: Micro,
    #[serde(rename = "p")]
    pub period: ResetPeriod,
    /// The Unix second at which the period of the last reset began; it only grows.
    #[serde(rename = "l")]
    pub period_began: i64,
    /// The part of `held` that belongs to calls whose bodies are still to come. The disk never hears of it: a crash ends
    /// such a call before anything was sent for it.
    #[serde(skip)]
    early: Micro,
}

fn is_nothing(amount: &Micro) -> bool {
    *amount == Micro::ZERO
}

impl Meter {
    fn conserves(&self) -> bool {
        let parts = self.balance.0.checked_add(self.held.0).and_then(|n| n.checked_add(self.spent.0));
        let early_is_held = self.early.0 >= 0 && self.early.0 <= self.held.0;
        parts == Some(self.granted.0) && self.balance.0 >= 0 && early_is_held && self.spent.0 >= 0
    }

    /// As the disk is to have it.
    fn without_early(mut self) -> Self {
        self.balance.0 += self.early.0;
        self.held.0 -= self.early.0;
        self.early = Micro::ZERO;
        self
    }

    /// Sets the balance, granting or taking the difference. `None`, and no change, when a sum leaves the range.
    fn set_balance(&mut self, to: Micro) -> Option<()> {
        let granted = to.checked_add(self.held)?.checked_add(self.spent)?;
        self.balance = to;
        self.granted = granted;
        Some(())
    }

    /// The meter with `amount` at its disposal. One without a limit is set back when it is short, whatever brought it there:
    /// it refuses nobody.
    fn with(&self, amount: Micro) -> Option<Self> {
        let mut meter = *self;
        let may_refill = meter.reset.is_unlimited() && amount <= meter.reset;
        if amount > meter.balance && !(may_refill && meter.set_balance(meter.reset).is_some()) {
            return None;
        }
        Some(meter)
    }
}

/// All meters of a user. Names are apart from numbers, so that a turn can keep a copy of the numbers for the price of a
/// few cache lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    names: SmallVec<[MeterName; USUAL_METERS]>,
    meters: SmallVec<[Meter; USUAL_METERS]>,
    /// Calls in flight. Not written to disk: after a restart there are none.
    pub open: u32,
    /// The number of the last reset of all users that this account has had. See [`catch_up`].
    resets: u64,
}

/// An account as its row holds it.
#[derive(Serialize, Deserialize)]
pub struct AccountRow {
    meters: Vec<(MeterName, Meter)>,
    #[serde(default, skip_serializing_if = "is_zero")]
    resets: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What became of holds that were found open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    Charge,
    Refund,
}

impl Account {
    /// An account of somebody who comes after the reset of all users with this number.
    pub fn born_after(resets: u64) -> Self {
        Self { resets, ..Self::default() }
    }

    pub fn from_row(row: AccountRow) -> Self {
        let mut account = Self::born_after(row.resets);
        for (name, meter) in row.meters {
            account.names.push(name);
            account.meters.push(meter);
        }
        account
    }

    pub fn to_row(&self) -> AccountRow {
        let meters = self.names.iter().cloned().zip(self.meters.iter().map(|meter| meter.without_early())).collect();
        AccountRow { meters, resets: self.resets }
    }

    pub fn meters(&self) -> impl Iterator<Item = (&MeterName, &Meter)> {
        self.names.iter().zip(&self.meters)
    }

    pub fn meter(&self, name: &MeterName) -> Option<&Meter> {
        self.position(name).and_then(|at| self.meters.get(at))
    }

    /// Whether every meter adds up.
    pub fn conserves(&self) -> bool {
        self.meters.iter().all(Meter::conserves)
    }

    /// Replaces a meter, or adds it.
    fn put(&mut self, name: &MeterName, meter: Meter) {
        match self.position(name).and_then(|at| self.meters.get_mut(at)) {
            Some(present) => *present = meter,
            None => {
                self.names.push(name.clone());
                self.meters.push(meter);
            }
        }
    }

    fn position(&self, name: &MeterName) -> Option<usize> {
        self.names.iter().position(|n| n == name)
    }

    /// The numbers alone, to put back when a turn must be undone.
    pub fn numbers(&self) -> Numbers {
        Numbers { meters: self.meters.clone(), open: self.open, resets: self.resets }
    }

    /// Undoes a turn: also forgets meters it added.
    pub fn put_back(&mut self, numbers: Numbers) {
        self.names.truncate(numbers.meters.len());
        self.meters = numbers.meters;
        self.open = numbers.open;
        self.resets = numbers.resets;
    }

    /// Ends all holds: what a fresh actor does with those a crash left behind. Says how much there was.
    pub fn recover_holds(&mut self, how: Recovery) -> Vec<(MeterName, Micro)> {
        let mut found = Vec::new();
        for (name, meter) in self.names.iter().zip(&mut self.meters) {
            if meter.held == Micro::ZERO {
                continue;
            }
            found.push((name.clone(), meter.held));
            match how {
                Recovery::Charge => meter.spent.0 += meter.held.0,
                Recovery::Refund => meter.balance.0 += meter.held.0,
            }
            meter.held = Micro::ZERO;
        }
        found
    }
}

/// A copy of an account's numbers.
#[derive(Clone)]
pub struct Numbers {
    meters: SmallVec<[Meter; USUAL_METERS]>,
    open: u32,
    resets: u64,
}

/// What a user's actor can be asked.
#[derive(Clone, Copy, Debug)]
pub enum Command<'a> {
    /// Sets `amounts` aside on all `meters`, or on none.
    Reserve { meters: &'a [MeterName], amounts: &'a [Micro], max_open: u32 },
    /// Lets a call in whose body is still to come, and sets aside what it costs at the least: on all `meters` or on none,
    /// in memory alone.
    Admit { meters: &'a [MeterName], amounts: &'a [Micro], max_open: u32 },
    /// The body is there: sets `amounts` aside instead of what was when the call was let in. All or none; if none, that stays.
    Confirm { admitted: Admitted<'a>, meters: &'a [MeterName], amounts: &'a [Micro] },
    /// Ends a call that was let in and goes no further.
    Dismiss(Admitted<'a>),
    /// Sets `more` aside for a call that runs already, on all meters or on none.
    Extend { meters: &'a [MeterName], more: &'a [Micro] },
    /// Ends a hold of `held`: of each amount, `paid` is spent and the rest goes back. Paying more than was held is cut.
    Settle { meters: &'a [MeterName], held: &'a [Micro], paid: &'a [Micro] },
    /// Staff sets a balance or a reset rule; a meter that is not there is made.
    Set { meter: &'a MeterName, balance: Option<Micro>, reset: Option<Micro>, period: Option<ResetPeriod> },
    /// Staff gives (or, below zero, takes) an amount. Never takes more than is there; what calls in flight hold is not. A
    /// meter that is not there is made when something is given.
    Adjust { meter: &'a MeterName, delta: Micro },
    /// Sets every balance that has a period to its reset amount now.
    ResetAll,
    /// Nothing but the resets that are due.
    Look,
}

/// What was set aside when a call was let in before its body was there.
#[derive(Clone, Copy, Debug)]
pub struct Admitted<'a> {
    pub meters: &'a [MeterName],
    pub amounts: &'a [Micro],
}

/// What an actor answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The balances left on the meters that were named.
    Done(Amounts),
    Short(Box<Shortage>),
    TooManyOpen {
        limit: u32,
    },
    /// A sum would leave the range of [`Micro`]; nothing was changed.
    OutOfRange,
}

/// What must reach the disk because of a turn. An account is one row, so this is all there is to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Records {
    None,
    /// The row changed, but only in a way that recovery would find by itself: it may be written later.
    Later,
    Now,
}

/// One turn.
pub fn step(
    account: &mut Account,
    now: UnixMillis,
    hour: ResetHour,
    recovery: Recovery,
    command: Command<'_>,
) -> (Reply, Records) {
    let reset = apply_due_resets(account, now, hour);
    let (reply, records) = match command {
        Command::Reserve { meters, amounts, max_open } => reserve(account, now, hour, meters, amounts, max_open),
        Command::Admit { meters, amounts, max_open } => {
            admit(account, now, hour, Admitted { meters, amounts }, max_open)
        }
        Command::Confirm { admitted, meters, amounts } => {
            release(account, admitted);
            let (reply, records) = hold(account, now, hour, meters, amounts);
            if !matches!(reply, Reply::Done(_)) {
                // Was there a moment ago, so it is there now.
                keep_early(account, admitted);
            }
            (reply, records)
        }
        Command::Dismiss(admitted) => {
            account.open = account.open.saturating_sub(1);
            release(account, admitted);
            (Reply::Done(Amounts::new()), Records::None)
        }
        Command::Extend { meters, more } => hold(account, now, hour, meters, more),
        Command::Settle { meters, held, paid } => settle(account, recovery, meters, held, paid),
        Command::Set { meter, balance, reset, period } => set(account, now, hour, meter, balance, reset, period),
        Command::Adjust { meter, delta } => adjust(account, meter, delta),
        Command::ResetAll => reset_all(account),
        Command::Look => (Reply::Done(Amounts::new()), Records::None),
    };
    debug_assert!(account.conserves(), "a turn broke conservation: {command:?} on {account:?}");
    (reply, if reset { Records::Now } else { records })
}

/// Sets balances whose period has begun since their last reset. A clock that went back finds nothing due.
fn apply_due_resets(account: &mut Account, now: UnixMillis, hour: ResetHour) -> bool {
    let mut any = false;
    for meter in &mut account.meters {
        // The common case, a period still running, is one comparison.
        let Some(began) = due(meter, now, hour) else { continue };
        if meter.set_balance(meter.reset).is_some() {
            meter.period_began = began;
            any = true;
        }
    }
    any
}

fn due(meter: &Meter, now: UnixMillis, hour: ResetHour) -> Option<i64> {
    // No period is shorter than a day.
    if now.seconds() < meter.period_began.saturating_add(86_400) {
        return None;
    }
    meter.period.began(now, hour).filter(|began| *began > meter.period_began)
}

fn reserve(
    account: &mut Account,
    now: UnixMillis,
    hour: ResetHour,
    meters: &[MeterName],
    amounts: &[Micro],
    max_open: u32,
) -> (Reply, Records) {
    if account.open >= max_open {
        return (Reply::TooManyOpen { limit: max_open }, Records::None);
    }
    let (reply, records) = hold(account, now, hour, meters, amounts);
    account.open += u32::from(matches!(reply, Reply::Done(_)));
    (reply, records)
}

fn admit(
    account: &mut Account,
    now: UnixMillis,
    hour: ResetHour,
    admitted: Admitted<'_>,
    max_open: u32,
) -> (Reply, Records) {
    let Admitted { meters, amounts } = admitted;
    let granted = |account: &Account| -> i128 { account.meters.iter().map(|meter| i128::from(meter.granted.0)).sum() };
    let before = granted(account);
    let (reply, _) = reserve(account, now, hour, meters, amounts, max_open);
    if !matches!(reply, Reply::Done(_)) {
        return (reply, Records::None);
    }
    for (name, amount) in meters.iter().zip(amounts) {
        if let Some(meter) = account.position(name).and_then(|at| account.meters.get_mut(at)) {
            meter.early.0 += amount.0;
        }
    }
    // What is set aside leaves no trace in the row; that a meter without a limit was set back does.
    let changed = granted(account) != before;
    (reply, if changed { Records::Now } else { Records::None })
}

/// Gives back what was set aside early.
fn release(account: &mut Account, admitted: Admitted<'_>) {
    for (name, amount) in admitted.meters.iter().zip(admitted.amounts) {
        if let Some(meter) = account.position(name).and_then(|at| account.meters.get_mut(at)) {
            let amount = (*amount).clamp(Micro::ZERO, meter.early);
            (meter.early.0, meter.held.0) = (meter.early.0 - amount.0, meter.held.0 - amount.0);
            meter.balance.0 += amount.0;
        }
    }
}

/// Undoes [`release`].
fn keep_early(account: &mut Account, admitted: Admitted<'_>) {
    for (name, amount) in admitted.meters.iter().zip(admitted.amounts) {
        if let Some(meter) = account.position(name).and_then(|at| account.meters.get_mut(at)) {
            let amount = (*amount).clamp(Micro::ZERO, meter.balance);
            meter.balance.0 -= amount.0;
            (meter.early.0, meter.held.0) = (meter.early.0 + amount.0, meter.held.0 + amount.0);
        }
    }
}

/// Moves `amounts` from balance to held.
fn hold(
    account: &mut Account,
    now: UnixMillis,
    hour: ResetHour,
    meters: &[MeterName],
    amounts: &[Micro],
) -> (Reply, Records) {
    // Prices are never negative; if one were, holding it would be a gift.
    if amounts.iter().any(|amount| *amount < Micro::ZERO) {
        return (Reply::OutOfRange, Records::None);
    }
    // First all questions, then all changes: a call takes from every meter or from none.
    for (name, amount) in meters.iter().zip(amounts) {
        let at = account.position(name).and_then(|at| account.meters.get(at));
        if at.copied().unwrap_or_default().with(*amount).is_none() {
            let shortage = Shortage {
                meter: name.clone(),
                left: at.map_or(Micro::ZERO, |m| m.balance),
                needed: *amount,
                reset: at.filter(|m| m.period != ResetPeriod::Never).map(|m| m.reset),
                resets_at: at.and_then(|m| m.period.next(now, hour)).map(|s| UnixMillis(s.max(0) as u64 * 1000)),
            };
            return (Reply::Short(Box::new(shortage)), Records::None);
        }
    }
    let mut left = Amounts::new();
    let mut changed = false;
    for (name, amount) in meters.iter().zip(amounts) {
        let Some(meter) = account.position(name).and_then(|at| account.meters.get_mut(at)) else {
            // Only a cost of nothing gets here without a meter.
            left.push(Micro::ZERO);
            continue;
        };
        *meter = meter.with(*amount).unwrap_or(*meter);
        meter.balance.0 -= amount.0;
        meter.held.0 += amount.0;
        changed |= amount.0 != 0;
        left.push(meter.balance);
    }
    (Reply::Done(left), if changed { Records::Now } else { Records::None })
}

fn settle(
    account: &mut Account,
    recovery: Recovery,
    meters: &[MeterName],
    held: &[Micro],
    paid: &[Micro],
) -> (Reply, Records) {
    account.open = account.open.saturating_sub(1);
    let mut left = Amounts::new();
    let mut records = Records::None;
    for (at, (name, held)) in meters.iter().zip(held).enumerate() {
        let Some(meter) = account.position(name).and_then(|at| account.meters.get_mut(at)) else {
            left.push(Micro::ZERO);
            continue;
        };
        // Whatever an upstream reports: at least nothing, at most what was set aside.
        let paid = paid.get(at).copied().unwrap_or(*held).clamp(Micro::ZERO, *held);
        meter.held.0 -= held.0;
        meter.spent.0 += paid.0;
        meter.balance.0 += held.0 - paid.0;
        left.push(meter.balance);
        let written = if paid == *held && recovery == Recovery::Charge { Records::Later } else { Records::Now };
        if held.0 != 0 && records != Records::Now {
            records = written;
        }
    }
    (Reply::Done(left), records)
}

fn set(
    account: &mut Account,
    now: UnixMillis,
    hour: ResetHour,
    name: &MeterName,
    balance: Option<Micro>,
    reset: Option<Micro>,
    period: Option<ResetPeriod>,
) -> (Reply, Records) {
    // On a copy first: what is refused changes nothing.
    let mut meter = account.meter(name).copied().unwrap_or_default();
    if let Some(period) = period {
        meter.period = period;
        // The present period counts as begun: the new rule first acts when the next one does.
        meter.period_began = period.began(now, hour).unwrap_or(0).max(meter.period_began);
    }
    if let Some(reset) = reset {
        meter.reset = reset.max(Micro::ZERO);
    }
    if let Some(balance) = balance
        && meter.set_balance(balance.max(Micro::ZERO)).is_none()
    {
        return (Reply::OutOfRange, Records::None);
    }
    account.put(name, meter);
    (Reply::Done(Amounts::from_slice(&[meter.balance])), Records::Now)
}

fn adjust(account: &mut Account, name: &MeterName, delta: Micro) -> (Reply, Records) {
    let mut meter = account.meter(name).copied().unwrap_or_default();
    let Some(balance) = meter.balance.checked_add(delta) else { return (Reply::OutOfRange, Records::None) };
    if balance < Micro::ZERO {
        let needed = Micro(delta.0.saturating_neg());
        let shortage = Shortage { meter: name.clone(), left: meter.balance, needed, reset: None, resets_at: None };
        return (Reply::Short(Box::new(shortage)), Records::None);
    }
    if meter.set_balance(balance).is_none() {
        return (Reply::OutOfRange, Records::None);
    }
    account.put(name, meter);
    (Reply::Done(Amounts::from_slice(&[balance])), Records::Now)
}

fn reset_all(account: &mut Account) -> (Reply, Records) {
    let mut meters = account.meters.clone();
    for meter in meters.iter_mut().filter(|m| m.period != ResetPeriod::Never) {
        if meter.set_balance(meter.reset).is_none() {
            return (Reply::OutOfRange, Records::None);
        }
    }
    account.meters = meters;
    (Reply::Done(account.meters.iter().map(|m| m.balance).collect()), Records::Now)
}

/// Does what is still missing of the resets of all users, of which `latest` is the newest. Says whether anything was.
///
/// Such a reset is one number on disk and in memory; an account has it when it is next touched, before whatever touches
/// it, and writes down that it had it. So a million users cost one write, a crash in the middle leaves nothing half done,
/// and what staff gives after a reset is not taken by it. Several resets that were missed are one: each sets to the same.
pub fn catch_up(account: &mut Account, latest: u64) -> bool {
    if account.resets >= latest {
        return false;
    }
    account.resets = latest;
    for meter in account.meters.iter_mut().filter(|m| m.period != ResetPeriod::Never) {
        // A balance that cannot be set without leaving the range stays as it is: nobody is there to be told.
        let _ = meter.set_balance(meter.reset);
    }
    true
}

/// Gives an account the meters of its plan that it does not have, as somebody new to the plan gets them. Says whether any
/// were missing. Those it has stay as they are.
pub fn give_missing(account: &mut Account, plan: &[PlanMeter], now: UnixMillis, hour: ResetHour) -> bool {
    let mut any = false;
    for given in plan {
        if account.position(&given.name).is_some() {
            continue;
        }
        let (balance, reset, period) = (Some(given.grant), Some(given.reset), Some(given.period));
        // An amount that no meter can hold gives none.
        any |= matches!(set(account, now, hour, &given.name, balance, reset, period).0, Reply::Done(_));
    }
    any
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> MeterName {
        MeterName::parse(text).unwrap()
    }

    fn turn(account: &mut Account, now: u64, command: Command<'_>) -> Reply {
        step(account, UnixMillis(now), ResetHour::default(), Recovery::Charge, command).0
    }

    fn with_balance(units: i64, period: ResetPeriod) -> (Account, MeterName) {
        let (mut account, meter) = (Account::default(), name("conversations"));
        let amount = Some(Micro::units(units).unwrap());
        turn(&mut account, DAY, Command::Set { meter: &meter, balance: amount, reset: amount, period: Some(period) });
        (account, meter)
    }

    const DAY: u64 = 86_400_000;
    const ONE: Micro = Micro(Micro::UNIT);

    fn reserve_one(account: &mut Account, now: u64, meter: &MeterName) -> Reply {
        turn(account, now, Command::Reserve { meters: std::slice::from_ref(meter), amounts: &[ONE], max_open: 1000 })
    }

    fn settle_one(account: &mut Account, now: u64, meter: &MeterName, paid: Micro) {
        turn(account, now, Command::Settle { meters: std::slice::from_ref(meter), held: &[ONE], paid: &[paid] });
    }

    #[test]
    fn ten_credits_are_ten_calls() {
        let (mut account, meter) = with_balance(10, ResetPeriod::Daily);
        let served = (0..200).filter(|_| matches!(reserve_one(&mut account, DAY, &meter), Reply::Done(_))).count();
        assert_eq!(served, 10);
        let Reply::Short(short) = reserve_one(&mut account, DAY, &meter) else { panic!("not short") };
        assert_eq!((short.left, short.needed, short.reset), (Micro(0), ONE, Micro::units(10)));
        assert_eq!(short.resets_at, Some(UnixMillis(2 * DAY)));
    }

    #[test]
    fn all_meters_or_none() {
        let (mut account, conversations) = with_balance(5, ResetPeriod::Never);
        let meters = [conversations.clone(), name("credits")];
        let reply = turn(&mut account, DAY, Command::Reserve { meters: &meters, amounts: &[ONE, ONE], max_open: 9 });
        assert!(matches!(reply, Reply::Short(s) if s.meter.as_str() == "credits"));
        assert_eq!(account.meter(&conversations).unwrap().held, Micro::ZERO);
        assert_eq!(account.open, 0);
    }

    #[test]
    fn usage_is_clamped_to_the_hold() {
        for (claimed, left) in [(Micro(-5_000_000), 10), (Micro(i64::MAX), 9), (Micro(0), 10), (ONE, 9)] {
            let (mut account, meter) = with_balance(10, ResetPeriod::Never);
            reserve_one(&mut account, DAY, &meter);
            settle_one(&mut account, DAY, &meter, claimed);
            assert_eq!(account.meter(&meter).unwrap().balance.whole_units(), left, "{claimed:?}");
        }
    }

    #[test]
    fn a_reset_sets_to_and_happens_once_whatever_the_clock_does() {
        let (mut account, meter) = with_balance(10, ResetPeriod::Daily);
        for _ in 0..10 {
            reserve_one(&mut account, DAY, &meter);
        }
        // Held over midnight: the new day begins with ten, and settling changes nothing of that.
        assert!(
            matches!(reserve_one(&mut account, 2 * DAY, &meter), Reply::Done(left) if left[0] == Micro::units(9).unwrap())
        );
        settle_one(&mut account, 2 * DAY, &meter, ONE);
        // The clock jumps back over midnight and forward again.
        for now in [DAY + 5, 2 * DAY + 7, DAY * 2 - 1, 2 * DAY + 9] {
            reserve_one(&mut account, now, &meter);
        }
        assert_eq!(account.meter(&meter).unwrap().balance, Micro::units(5).unwrap());
    }

    #[test]
    fn too_many_in_flight_is_said_before_credits_are_taken() {
        let (mut account, meter) = with_balance(10, ResetPeriod::Never);
        let command = Command::Reserve { meters: std::slice::from_ref(&meter), amounts: &[ONE], max_open: 1 };
        assert!(matches!(turn(&mut account, DAY, command), Reply::Done(_)));
        assert_eq!(turn(&mut account, DAY, command), Reply::TooManyOpen { limit: 1 });
        assert_eq!(account.meter(&meter).unwrap().held, ONE);
    }

    #[test]
    fn sums_out_of_range_are_refused() {
        let (mut account, meter) = with_balance(10, ResetPeriod::Never);
        reserve_one(&mut account, DAY, &meter);
        let command = Command::Set { meter: &meter, balance: Some(Micro(i64::MAX)), reset: None, period: None };
        assert_eq!(turn(&mut account, DAY, command), Reply::OutOfRange);
        assert!(account.conserves());
    }

    #[test]
    fn a_hold_below_zero_is_no_gift() {
        let (mut account, meter) = with_balance(10, ResetPeriod::Never);
        let command =
            Command::Reserve { meters: std::slice::from_ref(&meter), amounts: &[Micro(-1)], max_open: u32::MAX };
        assert_eq!(turn(&mut account, DAY, command), Reply::OutOfRange);
        assert_eq!((account.meter(&meter).unwrap().balance, account.open), (Micro::units(10).unwrap(), 0));
    }

    #[test]
    fn what_is_refused_changes_nothing() {
        let (mut account, meter) = with_balance(10, ResetPeriod::Daily);
        reserve_one(&mut account, DAY, &meter);
        let other = name("other");
        let before = account.clone();
        for name in [&meter, &other] {
            let (balance, reset) = (Some(Micro(i64::MAX)), Some(ONE));
            let set = Command::Set { meter: name, balance, reset, period: Some(ResetPeriod::Monthly) };
            let reply = turn(&mut account, DAY, set);
            if *name == meter {
                assert_eq!(reply, Reply::OutOfRange);
                assert_eq!(account, before);
            }
        }
        assert_eq!(turn(&mut account, DAY, Command::Adjust { meter: &other, delta: ONE }), Reply::OutOfRange);
        let taken = turn(&mut account, DAY, Command::Adjust { meter: &name("third"), delta: Micro(-1) });
        assert!(matches!(taken, Reply::Short(_)) && account.meter(&name("third")).is_none());
        // One meter that cannot be set back keeps all of them as they are.
        turn(
            &mut account,
            DAY,
            Command::Set { meter: &meter, balance: None, reset: Some(Micro(i64::MAX)), period: None },
        );
        let before = account.clone();
        assert_eq!(turn(&mut account, DAY, Command::ResetAll), Reply::OutOfRange);
        assert_eq!(account, before);
    }

    #[test]
    fn a_meter_without_a_limit_refuses_nobody() {
        let (mut account, meter) = with_balance(10, ResetPeriod::Daily);
        let both = [meter.clone(), name("credits")];
        let free = Command::Set { meter: &meter, balance: Some(Micro(5)), reset: Some(Micro::UNLIMITED), period: None };
        turn(&mut account, DAY, free);
        // Short of another meter, a call changes nothing of this one.
        let before = account.clone();
        let call = Command::Reserve { meters: &both, amounts: &[ONE, ONE], max_open: 9 };
        assert!(matches!(turn(&mut account, DAY, call), Reply::Short(s) if s.meter == both[1]));
        assert_eq!(account, before);
        assert!(
            matches!(reserve_one(&mut account, DAY, &meter), Reply::Done(left) if left[0] == Micro(Micro::UNLIMITED.0 - Micro::UNIT))
        );
        settle_one(&mut account, DAY, &meter, ONE);
        let after = *account.meter(&meter).unwrap();
        assert_eq!(
            (after.balance.0, after.spent, after.granted),
            (Micro::UNLIMITED.0 - Micro::UNIT, ONE, Micro::UNLIMITED)
        );
        // More than there is at all.
        let call = Command::Reserve { meters: &both[..1], amounts: &[Micro(Micro::UNLIMITED.0 + 1)], max_open: 9 };
        assert!(matches!(turn(&mut account, DAY, call), Reply::Short(_)));
        // And so that it stays one: a limit that staff sets holds at once.
        let limited = Command::Set { meter: &meter, balance: Some(Micro::ZERO), reset: Some(ONE), period: None };
        turn(&mut account, DAY, limited);
        assert!(matches!(reserve_one(&mut account, DAY, &meter), Reply::Short(_)));
    }

    #[test]
    fn meters_that_a_plan_gives_later_are_given_and_the_others_left_alone() {
        let (mut account, meter) = with_balance(10, ResetPeriod::Daily);
        reserve_one(&mut account, DAY, &meter);
        let given = |meter: &str, units| PlanMeter {
            name: name(meter),
            grant: Micro::units(units).unwrap(),
            reset: Micro::units(units + 1).unwrap(),
            period: ResetPeriod::Daily,
        };
        let plan = [given("conversations", 50), given("images", 20)];
        let before = *account.meter(&meter).unwrap();
        assert!(give_missing(&mut account, &plan, UnixMillis(DAY + 5), ResetHour::default()));
        assert_eq!(*account.meter(&meter).unwrap(), before);
        let images = account.meter(&name("images")).unwrap();
        assert_eq!((images.balance, images.reset, images.period_began), (plan[1].grant, plan[1].reset, 86_400));
        assert!(account.conserves() && !give_missing(&mut account, &plan, UnixMillis(DAY), ResetHour::default()));
    }

    #[test]
    fn recovery_ends_holds() {
        let (mut account, meter) = with_balance(10, ResetPeriod::Never);
        reserve_one(&mut account, DAY, &meter);
        let mut other = account.clone();
        assert_eq!(account.recover_holds(Recovery::Charge), [(meter.clone(), ONE)]);
        assert_eq!(account.meter(&meter).unwrap().spent, ONE);
        other.recover_holds(Recovery::Refund);
        assert_eq!(other.meter(&meter).unwrap().balance, Micro::units(10).unwrap());
        assert!(account.conserves() && other.conserves());
    }

    /// A random command, in terms that a naive model understands.
    #[derive(Clone, Debug)]
    enum Act {
        Reserve(i64),
        Settle { nth: usize, paid: i64 },
        SetBalance(i64),
        Clock(i64),
        ResetAll,
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            4 => (0..5_000_000i64).prop_map(Act::Reserve),
            4 => (any::<usize>(), -9_000_000..9_000_000i64).prop_map(|(nth, paid)| Act::Settle { nth, paid }),
            1 => (0..50_000_000i64).prop_map(Act::SetBalance),
            1 => (-200_000_000..200_000_000i64).prop_map(Act::Clock),
            1 => Just(Act::ResetAll),
        ];
        proptest::collection::vec(act, 1..200)
    }

    proptest! {
        #[test]
        fn agrees_with_a_naive_model(acts in acts()) {
            let (mut account, meter) = with_balance(20, ResetPeriod::Daily);
            let (mut balance, mut spent, mut now, mut last_day) = (20_000_000i64, 0i64, DAY as i64, 1i64);
            let mut holds: Vec<i64> = Vec::new();
            for act in acts {
                if let Act::Clock(by) = act {
                    now = (now + by).max(0);
                }
                if now / DAY as i64 > last_day {
                    last_day = now / DAY as i64;
                    balance = 20_000_000;
                }
                match act {
                    Act::Reserve(amount) => {
                        let command = Command::Reserve { meters: std::slice::from_ref(&meter), amounts: &[Micro(amount)], max_open: u32::MAX };
                        let reply = turn(&mut account, now as u64, command);
                        prop_assert_eq!(matches!(reply, Reply::Done(_)), amount <= balance);
                        if amount <= balance {
                            balance -= amount;
                            holds.push(amount);
                        }
                    }
                    Act::Settle { nth, paid } => {
                        if holds.is_empty() { continue }
                        let at = nth % holds.len();
                        let held = holds.swap_remove(at);
                        let counted = paid.clamp(0, held);
                        spent += counted;
                        balance += held - counted;
                        turn(&mut account, now as u64, Command::Settle { meters: std::slice::from_ref(&meter), held: &[Micro(held)], paid: &[Micro(paid)] });
                    }
                    Act::SetBalance(to) => {
                        balance = to;
                        turn(&mut account, now as u64, Command::Set { meter: &meter, balance: Some(Micro(to)), reset: None, period: None });
                    }
                    Act::ResetAll => {
                        balance = 20_000_000;
                        turn(&mut account, now as u64, Command::ResetAll);
                    }
                    Act::Clock(_) => { turn(&mut account, now as u64, Command::Look); }
                }
                let meter = account.meter(&meter).unwrap();
                prop_assert_eq!(meter.balance.0, balance);
                prop_assert_eq!(meter.spent.0, spent);
                prop_assert_eq!(meter.held.0, holds.iter().sum::<i64>());
                prop_assert_eq!(account.open as usize, holds.len());
                prop_assert!(account.conserves());
            }
        }
    }
}
