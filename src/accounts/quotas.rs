//! What is left of a period's meters for an address whose account has gone.
//!
//! Owns the rows `qa/`: under a MAC of the address, how much each meter had left and when it is next set. Whoever deletes an
//! account, or moves it to another address, and registers again with the same address begins with that and not with a full
//! grant; other spellings of an address are the same one, and a tag behind a `+` makes another. A row holds no address and
//! nothing else of a person, and goes when its last meter has been set. Rows are bounded by the accounts that were deleted
//! or moved in that time, each of which leaves a larger row of its own. Never gives anything: it only takes from a grant.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::fields::normalized;
use super::{Accounts, Loaded};
use crate::actors::user::ledger::{self, Account, Command, Recovery};
use crate::clock::UnixMillis;
use crate::domain::ids::UserId;
use crate::domain::meters::{MeterName, Micro};
use crate::error::Reject;
use crate::store::{Batch, prefix_end, tables};

/// How long a meter counts that is never set again. A grant that is given once is what accounts are made anew for; to keep it
/// for ever would be to know for ever that an address had an account. As long as the longest period.
const NEVER_COUNTS: Duration = Duration::from_secs(31 * 86_400);

/// A row.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    /// How many resets of all users there had been: after a further one, nothing of this counts.
    resets: u64,
    meters: Vec<Left>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Left {
    #[serde(rename = "m")]
    name: MeterName,
    #[serde(rename = "b")]
    balance: Micro,
    /// When it is next set, and this is over.
    #[serde(rename = "u")]
    until: UnixMillis,
}

impl Accounts {
    fn quota_row(&self, email: &str) -> Vec<u8> {
        let address = tables::user_by_email(&normalized(email));
        tables::quota_of_address(&self.pepper.mac_in("quota of an address", &address))
    }

    fn resets_of_all(&self) -> u64 {
        self.users.around().resets.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// What counts of a row now.
    fn counting(&self, row: Option<&Loaded<Remembered>>) -> Vec<Left> {
        let (now, resets) = (self.clock.now(), self.resets_of_all());
        let row = row.filter(|row| row.value.resets >= resets);
        row.iter().flat_map(|row| &row.value.meters).filter(|left| now < left.until).cloned().collect()
    }

    /// Puts into a batch what a user has left, for the address that is free by the same batch.
    pub(super) fn remember_quota(&self, user: UserId, email: &str, batch: &mut Batch) -> Result<(), Reject> {
        let key = self.quota_row(email);
        let never = self.clock.now().plus(NEVER_COUNTS);
        let mut lefts = self.counting(self.load::<Remembered>(key.clone())?.as_ref());
        for view in self.meters(user)? {
            let meter = &view.meter;
            let is_full = meter.spent == Micro::ZERO && meter.held == Micro::ZERO && meter.balance >= meter.reset;
            if meter.reset.is_unlimited() || is_full {
                continue;
            }
            let (balance, until) = (meter.balance, view.resets_at.unwrap_or(never));
            match lefts.iter_mut().find(|left| left.name == view.name) {
                Some(left) => (left.balance, left.until) = (left.balance.min(balance), left.until.max(until)),
                None => lefts.push(Left { name: view.name, balance, until }),
            }
        }
        if !lefts.is_empty() {
            let row = Remembered { resets: self.resets_of_all(), meters: lefts };
            batch.put(key, super::encode_bounded(&row)?);
        }
        Ok(())
    }

    /// A new account's meters, less what its address has used up. `batch` holds only while that is as it was read.
    pub(super) fn less_what_was_used(
        &self,
        fresh: &Account,
        email: &str,
        batch: &mut Batch,
    ) -> Result<Account, Reject> {
        let key = self.quota_row(email);
        let row = self.load::<Remembered>(key.clone())?;
        match &row {
            Some(row) => batch.require_equal(key, row.raw.clone()),
            None => batch.require_absent(key),
        };
        let mut account = fresh.clone();
        for left in self.counting(row.as_ref()) {
            if account.meter(&left.name).is_some_and(|meter| meter.balance > left.balance) {
                // As in `fresh_account`: nobody has an actor yet.
                let (now, hour) = (self.clock.now(), self.reset_hour());
                ledger::step(&mut account, now, hour, Recovery::Charge, lower(&left));
            }
        }
        Ok(account)
    }

    /// Takes from an account that came back what others have used of its address meanwhile.
    pub(super) async fn lower_to_remembered(&self, user: UserId, email: &str) -> Result<(), Reject> {
        let row = self.load::<Remembered>(self.quota_row(email))?;
        for left in self.counting(row.as_ref()) {
            let present = self.meters(user)?.into_iter().find(|view| view.name == left.name);
            if present.is_some_and(|view| !view.meter.reset.is_unlimited() && view.meter.balance > left.balance) {
                let answer = self.actor(user)?.ask(lower(&left)).map_err(|_| Reject::Internal)?;
                self.committer.wait(answer.epoch).await.map_err(|error| self.failed(&error))?;
            }
        }
        Ok(())
    }

    /// Removes rows of which nothing counts any more; says how many.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`].
    pub async fn purge_quotas(&self) -> Result<u64, Reject> {
        let (mut from, end) = (tables::ADDRESS_QUOTAS.to_vec(), prefix_end(tables::ADDRESS_QUOTAS));
        let mut purged = 0;
        loop {
            let rows = self.next_rows(&mut from, &end).await?;
            if rows.is_empty() {
                return Ok(purged);
            }
            for (key, raw) in rows {
                let value: Remembered = tables::decode(&raw).map_err(|error| self.failed(&error))?;
                let row = Loaded { key, raw, value };
                if self.counting(Some(&row)).is_empty() {
                    let mut batch = row.unchanged();
                    batch.delete(row.key);
                    // Written anew at this moment: it counts again.
                    purged += u64::from(self.committer.commit(batch).await.is_ok());
                }
            }
        }
    }
}

fn lower(left: &Left) -> Command<'_> {
    Command::Set { meter: &left.name, balance: Some(left.balance), reset: None, period: None }
}
