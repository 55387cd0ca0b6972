//! What staff does to meters: gives, takes, sets back.
//!
//! Owns the way from an admin's call to the user's actor and to the disk: nothing here is answered before it is durable.
//! Never changes a number itself. A reset of all users is one number on disk, which each account catches up with when it is
//! next touched ([`ledger::catch_up`]): it costs the same for one user as for a million.

use std::sync::atomic::Ordering;

use super::plans::unlimited_fault;
use super::users::{self, MAX_REASON, MeterView, refuse_deleted};
use super::{Accounts, MAX_TRIES, too_busy};
use crate::actors::user::ledger::{Command, Reply};
use crate::domain::ids::UserId;
use crate::domain::meters::{MeterName, Micro};
use crate::error::Reject;
use crate::store::{Batch, Store, StoreError, tables};

/// The counter of resets of all users.
const RESETS: &str = "reset_all";

/// What staff gives or takes.
#[derive(Clone, Debug)]
pub struct Adjustment {
    pub meter: MeterName,
    /// Below zero: taken.
    pub amount: Micro,
    pub reason: Option<String>,
}

/// Whose meters are set back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    One(UserId),
    Everybodys,
}

/// The number of the last reset of all users that is on disk; 0 before the first.
///
/// # Errors
/// As [`tables::read`].
pub fn last_reset_of_all(store: &dyn Store) -> Result<u64, StoreError> {
    Ok(tables::read::<u64>(store, &tables::counter(RESETS))?.unwrap_or(0))
}

impl Accounts {
    /// Gives a user an amount on one meter, or takes it: all of it or nothing, and never more than the balance. What calls
    /// in flight hold is neither counted nor touched. Answers the meters after it, once it is on disk. `by` is the name of
    /// whoever does it.
    ///
    /// # Errors
    /// [`Reject::Invalid`] naming the field: a meter that neither the user nor the config has, an amount of nothing, more
    /// than is there, or beyond what a meter can hold. [`Reject::NotFound`] also for deleted users.
    pub async fn adjust(&self, id: UserId, adjustment: Adjustment, by: &str) -> Result<Vec<MeterView>, Reject> {
        let Adjustment { meter, amount, reason } = adjustment;
        refuse_deleted(&self.user(id)?)?;
        let actor = self.actor(id)?;
        let mut faults = Vec::new();
        let account = actor.account().map_err(|_| Reject::Internal)?;
        match account.meter(&meter) {
            Some(present) if present.reset.is_unlimited() => faults.push(unlimited_fault("meter", &meter)),
            // A meter that is no longer in the config may still be in the account.
            None if !self.settings().meters.contains(&meter) => {
                let known: Vec<String> = self.settings().meters.iter().map(ToString::to_string).collect();
                faults.push(format!("meter: there is no such meter; the config has {}", known.join(", ")));
            }
            _ => {}
        }
        if amount == Micro::ZERO {
            faults.push("amount: must not be 0".into());
        }
        faults.extend(reason.as_deref().and_then(reason_fault));
        if !faults.is_empty() {
            return Err(Reject::Invalid(faults));
        }
        let answer = actor.ask(Command::Adjust { meter: &meter, delta: amount }).map_err(|_| Reject::Internal)?;
        let refused = |why: String| Err(Reject::Invalid(vec![format!("amount: {why}")]));
        match answer.reply {
            Reply::Done(_) => {}
            Reply::Short(shortage) => return refused(format!("no more than {} can be taken", shortage.left)),
            _ => return refused("the meter cannot hold that much".into()),
        }
        self.committer.wait(answer.epoch).await.map_err(|error| self.failed(&error))?;
        // The one place that knows who gave whom how much and why: what keeps such records for good belongs here.
        tracing::info!(user = %id, %meter, %amount, ?reason, by, "credits adjusted");
        self.meters(id)
    }

    /// Sets the meters of one user, or of all, to their reset amounts now; those that are never reset stay. Answers how many
    /// users that concerns, once it is on disk and in force.
    ///
    /// # Errors
    /// [`Reject::NotFound`] for one that is not there.
    pub async fn reset_limits(&self, whose: Whose, by: &str) -> Result<u64, Reject> {
        let users = match whose {
            Whose::One(id) => self.reset_one(id).await?,
            Whose::Everybodys => self.reset_all().await?,
        };
        tracing::info!(?whose, users, by, "limits reset");
        Ok(users)
    }

    async fn reset_one(&self, id: UserId) -> Result<u64, Reject> {
        let answer = self.actor(id)?.ask(Command::ResetAll).map_err(|_| Reject::Internal)?;
        if answer.reply == Reply::OutOfRange {
            return Err(Reject::Invalid(vec!["user_id: a meter cannot hold its reset amount".into()]));
        }
        self.committer.wait(answer.epoch).await.map_err(|error| self.failed(&error))?;
        Ok(1)
    }

    async fn reset_all(&self) -> Result<u64, Reject> {
        for _ in 0..MAX_TRIES {
            let mut batch = Batch::default();
            let number = self.next_number(RESETS, &mut batch)?;
            let (committer, around) = (self.committer.clone(), self.users.around().clone());
            // A task of its own: an admin who leaves in between must not leave memory behind the disk.
            let task = tokio::spawn(async move {
                committer.commit(batch).await?;
                // First on disk, then in force: a crash between the two forgets nothing that was answered. Of two resets at
                // once the later one counts, whichever gets here first.
                around.resets.fetch_max(number, Ordering::SeqCst);
                Ok(())
            });
            match task.await.unwrap_or_else(|_| Err(StoreError::Failed("a commit was given up".into()))) {
                Ok(()) => return users::last_user(self.store()).map_err(|error| self.failed(&error)),
                Err(error) => self.judge_conflict(&error)?,
            }
        }
        Err(too_busy())
    }
}

fn reason_fault(reason: &str) -> Option<String> {
    let fits = reason.chars().count() <= MAX_REASON && !reason.chars().any(char::is_control);
    (!fits).then(|| format!("reason: at most {MAX_REASON} printable characters"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{World, world};
    use super::*;
    use crate::domain::ids::UserId;
    use crate::store::{Order, Row};

    fn meter(world: &World, id: UserId, name: &str) -> (i64, i64) {
        let meters = world.accounts.meters(id).unwrap();
        let found = meters.iter().find(|view| view.name.as_str() == name).unwrap();
        (found.meter.balance.0, found.meter.granted.0)
    }

    async fn adjust(world: &World, id: UserId, meter: &str, amount: i64) -> Result<Vec<MeterView>, Reject> {
        let meter = MeterName::parse(meter).unwrap();
        world.accounts.adjust(id, Adjustment { meter, amount: Micro(amount), reason: None }, "root").await
    }

    fn rows(world: &World) -> Vec<Row> {
        world.store.range(&[], &[0xff], usize::MAX, Order::Ascending).unwrap()
    }

    #[tokio::test]
    async fn staff_gives_and_takes_and_no_balance_goes_below_zero() {
        let world = world("");
        let id = world.register("alice").await.user.id;
        assert_eq!(meter(&world, id, "credits"), (5_000_000, 5_000_000));
        adjust(&world, id, "credits", 2_500_000).await.unwrap();
        assert_eq!(meter(&world, id, "credits"), (7_500_000, 7_500_000));
        adjust(&world, id, "credits", -7_500_000).await.unwrap();
        assert_eq!(meter(&world, id, "credits"), (0, 0));
        for (name, amount, says) in [
            ("credits", -1, "amount: no more than 0 can be taken"),
            ("credits", 0, "amount: must not be 0"),
            (
                "credit",
                1,
                "meter: there is no such meter; the config has conversations, credits, images, messages, videos",
            ),
        ] {
            let refused = adjust(&world, id, name, amount).await.unwrap_err();
            assert_eq!(refused, Reject::Invalid(vec![says.to_owned()]));
        }
        adjust(&world, id, "credits", i64::MAX).await.unwrap();
        let refused = adjust(&world, id, "credits", 1).await.unwrap_err();
        assert_eq!(refused, Reject::Invalid(vec!["amount: the meter cannot hold that much".to_owned()]));
        assert_eq!(meter(&world, id, "credits"), (i64::MAX, i64::MAX));
        assert_eq!(adjust(&world, UserId(99), "credits", 1).await.unwrap_err(), Reject::NotFound);
        world.accounts.delete_user(id, None).await.unwrap();
        assert_eq!(adjust(&world, id, "credits", -1).await.unwrap_err(), Reject::NotFound);
    }

    #[tokio::test]
    async fn an_adjustment_is_on_disk_when_it_is_answered() {
        let world = world("");
        let id = world.register("alice").await.user.id;
        adjust(&world, id, "credits", 1_000_000).await.unwrap();
        let row: crate::actors::user::ledger::AccountRow =
            tables::read(&*world.store, &tables::meters(id)).unwrap().unwrap();
        let account = crate::actors::user::ledger::Account::from_row(row);
        assert_eq!(account.meter(&MeterName::parse("credits").unwrap()).unwrap().balance, Micro(6_000_000));
    }

    #[tokio::test]
    async fn a_reset_of_all_writes_one_row_and_each_account_has_it_once() {
        let world = world("");
        let mut ids = Vec::new();
        for name in ["alice", "bob", "carol"] {
            let id = world.register(name).await.user.id;
            adjust(&world, id, "conversations", -4_000_000).await.unwrap();
            ids.push(id);
        }
        let before = rows(&world);
        assert_eq!(world.accounts.reset_limits(Whose::Everybodys, "root").await.unwrap(), 3);
        let changed: Vec<Row> = rows(&world).into_iter().filter(|row| !before.contains(row)).collect();
        assert_eq!(changed.len(), 1, "{changed:?}");
        assert_eq!(changed[0].0, tables::counter(RESETS));
        assert_eq!(last_reset_of_all(&*world.store).unwrap(), 1);

        // What comes after the reset stays, also for one whose account has not been touched since.
        adjust(&world, ids[0], "conversations", 7_000_000).await.unwrap();
        assert_eq!(meter(&world, ids[0], "conversations").0, 17_000_000);
        adjust(&world, ids[0], "conversations", -1_000_000).await.unwrap();
        assert_eq!(meter(&world, ids[0], "conversations").0, 16_000_000, "reset once, not at each touch");
        assert_eq!(meter(&world, ids[1], "conversations").0, 10_000_000);
        // Whoever comes later has nothing to catch up with.
        let late = world.register("late").await.user.id;
        adjust(&world, late, "conversations", 90_000_000).await.unwrap();
        assert_eq!(meter(&world, late, "conversations").0, 100_000_000);
        // Several that were missed are one.
        for _ in 0..3 {
            world.accounts.reset_limits(Whose::Everybodys, "root").await.unwrap();
        }
        for id in [ids[0], ids[1], ids[2], late] {
            assert_eq!(meter(&world, id, "conversations").0, 10_000_000);
        }
    }

    #[tokio::test]
    async fn two_resets_of_all_at_once_are_two() {
        let world = world("");
        let id = world.register("alice").await.user.id;
        let reset = || world.accounts.reset_limits(Whose::Everybodys, "root");
        let (a, b, c) = tokio::join!(reset(), reset(), reset());
        assert_eq!((a.unwrap(), b.unwrap(), c.unwrap()), (1, 1, 1));
        assert_eq!(last_reset_of_all(&*world.store).unwrap(), 3);
        assert_eq!(world.users.around().resets.load(Ordering::SeqCst), 3);
        assert_eq!(meter(&world, id, "conversations").0, 10_000_000);
    }
}
