//! Usage by day: what each user has spent, and all together.
//!
//! Owns the rows `ud/` user, day and `du/` day. The ledger counts what was ever spent on a meter; once a day, after midnight
//! UTC, that count is read for every user, and what has come since the last reading is the day's. So days always add up to
//! what the ledger says, and no call pays for the counting. What was spent in the moments until the reading counts to the day
//! before, and after a stop over midnight all since the last reading counts to the last day. Never changes a meter.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::Accounts;
use crate::actors::user::ledger::{Account, AccountRow};
use crate::actors::user::registry::Registry;
use crate::clock::UnixMillis;
use crate::domain::ids::UserId;
use crate::domain::meters::Micro;
use crate::error::Reject;
use crate::store::{Batch, Order, Store, StoreError, prefix_end, tables};

const DAY_MS: u64 = 86_400_000;
/// Days that are kept of a user.
pub const KEPT_DAYS: u32 = 400;
/// Days beyond those that are removed at once.
const MAX_OLD_DAYS: usize = 8;
/// Accounts read in one turn.
const AT_ONCE: usize = 500;

/// Days since 1970, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Day(pub u32);

impl Day {
    pub fn of(at: UnixMillis) -> Self {
        Self(u32::try_from(at.0 / DAY_MS).unwrap_or(u32::MAX))
    }

    /// As `2026-01-15`.
    pub fn date(self) -> String {
        UnixMillis(u64::from(self.0) * DAY_MS).rfc3339().chars().take(10).collect()
    }

    /// The first of its month.
    fn month(self) -> String {
        self.date().chars().take(7).collect()
    }
}

/// Amounts by their meters' names.
pub type ByMeter = BTreeMap<String, Micro>;

/// A user's day as it is kept.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct DayRow {
    /// What the ledger had counted at the end of it.
    total: ByMeter,
    used: ByMeter,
}

/// All users' day.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DayTotals {
    /// Users who spent something.
    pub active_users: u64,
    pub users: u64,
    pub used: ByMeter,
}

/// What a user has spent of each meter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Used {
    pub today: ByMeter,
    pub month: ByMeter,
    pub total: ByMeter,
}

fn spent_of(account: &Account) -> ByMeter {
    account.meters().map(|(name, meter)| (name.to_string(), meter.spent)).collect()
}

/// What an account has spent since its last day was closed, and ever.
pub(super) fn spent_since(
    store: &dyn Store,
    user: UserId,
    account: &Account,
) -> Result<(ByMeter, ByMeter), StoreError> {
    let total = spent_of(account);
    let last = days_of(store, user, Day(0), 1)?;
    let today = since(&total, &last.first().map(|(_, row)| row.total.clone()).unwrap_or_default());
    Ok((today, total))
}

/// What has come since; only what is not nothing.
fn since(total: &ByMeter, before: &ByMeter) -> ByMeter {
    let more = |(name, now): (&String, &Micro)| {
        let before = before.get(name).copied().unwrap_or(Micro::ZERO);
        let used = Micro(now.0.saturating_sub(before.0).max(0));
        (used != Micro::ZERO).then(|| (name.clone(), used))
    };
    total.iter().filter_map(more).collect()
}

pub(super) fn add(to: &mut ByMeter, more: &ByMeter) {
    for (name, amount) in more {
        let sum = to.entry(name.clone()).or_default();
        *sum = sum.saturating_add(*amount);
    }
}

fn days_of(store: &dyn Store, user: UserId, from: Day, limit: usize) -> Result<Vec<(Day, DayRow)>, StoreError> {
    let (from, end) = (tables::usage_day(user, from.0), prefix_end(&tables::usage_of_user(user)));
    let rows = store.range(&from, &end, limit, Order::Descending)?;
    rows.into_iter().map(|(key, raw)| Ok((Day(tables::parse_usage_day(&key)), tables::decode(&raw)?))).collect()
}

impl Accounts {
    /// What a user has spent today, this month and ever; of the meters he has.
    ///
    /// # Errors
    /// [`Reject::NotFound`].
    pub fn used(&self, user: UserId) -> Result<Used, Reject> {
        let total: ByMeter =
            self.meters(user)?.into_iter().map(|view| (view.name.to_string(), view.meter.spent)).collect();
        let days = days_of(self.store(), user, Day(0), 32).map_err(|error| self.failed(&error))?;
        let today = Day::of(self.clock.now());
        let last = days.first().map(|(_, row)| row.total.clone()).unwrap_or_default();
        let used_today = since(&total, &last);
        let mut month = used_today.clone();
        for (_, row) in days.iter().filter(|(day, _)| day.month() == today.month()) {
            add(&mut month, &row.used);
        }
        let with_zeros = |used: ByMeter| {
            total.keys().map(|name| (name.clone(), used.get(name).copied().unwrap_or(Micro::ZERO))).collect()
        };
        Ok(Used { today: with_zeros(used_today), month: with_zeros(month), total: total.clone() })
    }

    /// What a user spent on each of the last `days` days, today included, newest first; days without anything are left out.
    ///
    /// # Errors
    /// [`Reject::NotFound`].
    pub fn usage_history(&self, user: UserId, days: u32) -> Result<Vec<(Day, ByMeter)>, Reject> {
        let today = Day::of(self.clock.now());
        let from = Day(today.0.saturating_sub(days.saturating_sub(1)));
        let rows = days_of(self.store(), user, from, KEPT_DAYS as usize).map_err(|error| self.failed(&error))?;
        let now = self.used(user)?.today;
        let now: ByMeter = now.into_iter().filter(|(_, used)| *used != Micro::ZERO).collect();
        let today = (!now.is_empty()).then_some((today, now));
        Ok(today.into_iter().chain(rows.into_iter().map(|(day, row)| (day, row.used))).collect())
    }

    /// What all users spent on each of the last `days` whole days, newest first.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`].
    pub fn daily_totals(&self, days: u32) -> Result<Vec<(Day, DayTotals)>, Reject> {
        let today = Day::of(self.clock.now());
        let (from, end) = (tables::day_totals(today.0.saturating_sub(days)), prefix_end(tables::DAY_TOTALS));
        let rows = self.store().range(&from, &end, days as usize, Order::Descending);
        let rows = rows.map_err(|error| self.failed(&error))?;
        let read = |(key, raw): (Vec<u8>, Vec<u8>)| Ok((Day(tables::parse_day_totals(&key)), tables::decode(&raw)?));
        rows.into_iter().map(read).collect::<Result<_, StoreError>>().map_err(|error| self.failed(&error))
    }

    /// Reads every user's count for the day that has ended, unless that was done. Says what the day came to.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`]; what was read until then stays, and the next try goes on from there.
    pub async fn close_day(&self) -> Result<Option<(Day, DayTotals)>, Reject> {
        let today = Day::of(self.clock.now());
        let ended = Day(today.0.saturating_sub(1));
        if self.store().get(&tables::day_totals(ended.0)).map_err(|error| self.failed(&error))?.is_some() {
            return Ok(None);
        }
        let mut totals = DayTotals::default();
        let (mut from, end) = (tables::METERS.to_vec(), prefix_end(tables::METERS));
        loop {
            let (committer, start, to) = (self.committer.clone(), from.clone(), end.clone());
            let users = self.users.clone();
            let turn = move || close_some(committer.store(), &users, (&start, &to), ended);
            let (next, batch, part) = self.reading(turn).await?;
            if !batch.is_empty() {
                self.committer.commit(batch).await.map_err(|error| self.failed(&error))?;
            }
            totals.users += part.users;
            totals.active_users += part.active_users;
            add(&mut totals.used, &part.used);
            let Some(next) = next else { break };
            from = next;
        }
        let mut batch = Batch::default();
        let row = tables::encode(&totals).map_err(|error| self.failed(&error))?;
        batch.put(tables::day_totals(ended.0), row);
        self.committer.commit(batch).await.map_err(|error| self.failed(&error))?;
        Ok(Some((ended, totals)))
    }
}

type Turn = (Option<Vec<u8>>, Batch, DayTotals);

/// Reads some accounts: where to go on, what to write, and what they come to.
fn close_some(store: &dyn Store, users: &Registry, (from, to): (&[u8], &[u8]), ended: Day) -> Result<Turn, StoreError> {
    let rows = store.range(from, to, AT_ONCE, Order::Ascending)?;
    let next = (rows.len() == AT_ONCE).then(|| [rows[AT_ONCE - 1].0.as_slice(), &[0]].concat());
    let (mut batch, mut part) = (Batch::default(), DayTotals::default());
    for (key, raw) in rows {
        let Some(user) = tables::parse_meters(&key) else { continue };
        part.users += 1;
        // Who is in memory knows of calls that ended after his row was last written.
        let total = match users.live_actor(user) {
            Some(actor) => spent_of(&actor.account_as_it_is()),
            None => spent_of(&Account::from_row(tables::decode::<AccountRow>(&raw)?)),
        };
        let last = days_of(store, user, Day(0), 2)?;
        let used = match last.first() {
            // Read before the try that failed: it counts to the sum, and is not written again.
            Some((day, row)) if *day >= ended => row.used.clone(),
            other => {
                let before = other.map(|(_, row)| row.total.clone()).unwrap_or_default();
                let used = since(&total, &before);
                if !used.is_empty() {
                    let row = DayRow { total, used: used.clone() };
                    batch.put(tables::usage_day(user, ended.0), tables::encode(&row)?);
                    let (first, old) =
                        (tables::usage_day(user, 0), tables::usage_day(user, ended.0.saturating_sub(KEPT_DAYS)));
                    for (key, _) in store.range(&first, &old, MAX_OLD_DAYS, Order::Ascending)? {
                        batch.delete(key);
                    }
                }
                used
            }
        };
        part.active_users += u64::from(!used.is_empty());
        add(&mut part.used, &used);
    }
    Ok((next, batch, part))
}

/// For the log.
pub fn told((day, totals): &(Day, DayTotals)) -> String {
    let used: HashMap<&str, String> =
        totals.used.iter().map(|(name, used)| (name.as_str(), used.to_string())).collect();
    format!("usage of {}: {} of {} users active, spent {used:?}", day.date(), totals.active_users, totals.users)
}
