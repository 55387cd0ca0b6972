//! Plans: what a change of a user's plan, or of what staff lets him use, does to his meters.
//!
//! Owns the rule of such changes and their being one commit: the user's row says which plan he has, and his meters are on disk
//! as that plan makes them, at every moment. What a plan gives that its users do not have yet is given by the users' registry,
//! when they are loaded or the config is reloaded. Never changes a number itself; that is the actor's.

use std::sync::Arc;

use parking_lot::Mutex;

use super::audit::Change;
use super::users::{AdminUpdate, MeterUpdate};
use super::{Accounts, Forget, MAX_TRIES, too_busy};
use crate::actors::user::actor::MeterSetting;
use crate::actors::user::ledger::Account;
use crate::config::Plan;
use crate::domain::ids::UserId;
use crate::domain::meters::{MeterName, Micro};
use crate::domain::user::User;
use crate::error::Reject;
use crate::store::committer::Rider;
use crate::store::{Batch, StoreError, tables};

/// What is to become of a user's meters.
#[derive(Clone, Debug, Default)]
pub(super) struct MeterChange {
    /// The plan he has from now on.
    pub new_plan: Option<Plan>,
    /// What staff says of single meters; it comes after what the plan does.
    pub staff: Vec<(MeterName, MeterUpdate)>,
}

/// Plans that other systems call by another word.
pub(super) fn canonical_plan(word: &str) -> &str {
    match word {
        "premium" | "pro" => "professional",
        other => other,
    }
}

impl MeterChange {
    pub(super) fn of(update: &AdminUpdate, new_plan: Option<&Plan>) -> Self {
        let named = [("credits", update.credits), ("conversations", update.conversations)];
        let staff = named.into_iter().filter_map(|(name, change)| Some((MeterName::parse(name)?, change?)));
        Self { new_plan: new_plan.cloned(), staff: staff.collect() }
    }

    pub(super) fn is_nothing(&self) -> bool {
        self.new_plan.is_none() && self.staff.is_empty()
    }

    /// Balances that would mean nothing: a meter without a limit is never used up, whatever is set. A line for each.
    pub(super) fn faults(&self, account: &Account) -> Vec<String> {
        let planned = |name: &MeterName| {
            let given = self.new_plan.iter().flat_map(|plan| &plan.meters).find(|meter| meter.name == *name);
            given.map(|meter| meter.reset).or_else(|| account.meter(name).map(|meter| meter.reset))
        };
        let has_no_limit = |(name, update): &&(MeterName, MeterUpdate)| {
            update.balance.is_some() && update.reset.or_else(|| planned(name)).is_some_and(Micro::is_unlimited)
        };
        self.staff.iter().filter(has_no_limit).map(|(name, _)| unlimited_fault(name.as_str(), name)).collect()
    }

    /// A new plan brings its reset amounts and periods and raises balances to its grants; it lowers none, but what had no limit
    /// has one from then on, and a meter without a limit goes with the plan that gave it.
    fn settings(&self, account: &Account) -> Vec<MeterSetting> {
        let mut settings = Vec::new();
        if let Some(plan) = &self.new_plan {
            for meter in &plan.meters {
                let present = account.meter(&meter.name).copied().unwrap_or_default();
                let was_unlimited = present.reset.is_unlimited() && !meter.reset.is_unlimited();
                settings.push(MeterSetting {
                    meter: meter.name.clone(),
                    balance: (present.balance < meter.grant || was_unlimited).then_some(meter.grant),
                    reset: Some(meter.reset),
                    period: Some(meter.period),
                });
            }
            let is_given = |name: &MeterName| plan.meters.iter().any(|given| given.name == *name);
            let lost = account.meters().filter(|(name, meter)| meter.reset.is_unlimited() && !is_given(name));
            settings.extend(lost.map(|(name, _)| MeterSetting {
                meter: name.clone(),
                balance: Some(Micro::ZERO),
                reset: Some(Micro::ZERO),
                period: None,
            }));
        }
        settings.extend(self.staff.iter().map(|(meter, update)| MeterSetting {
            meter: meter.clone(),
            balance: update.balance,
            reset: update.reset,
            period: None,
        }));
        settings
    }
}

/// What is said of an amount for a meter that is never used up.
pub(super) fn unlimited_fault(field: &str, meter: &MeterName) -> String {
    format!(
        "{field}: {meter} has no limit in this plan, so there is nothing to give or take; a reset amount gives it one"
    )
}

impl Accounts {
    /// Changes a user's row and his meters in one commit, trying again when somebody else changed the row in between. `edit`
    /// says what becomes of the meters. Answers the user, and what has changed of his meters: calls go on meanwhile, so that
    /// a balance's two values are those of the moment of the commit.
    pub(super) async fn change_user_and_meters(
        &self,
        id: UserId,
        mut edit: impl FnMut(&mut User, &mut Batch) -> Result<MeterChange, Reject> + Send,
    ) -> Result<(User, Vec<Change>), Reject> {
        for _ in 0..MAX_TRIES {
            let row = self.load::<User>(tables::user(id))?.ok_or(Reject::NotFound)?;
            let (mut user, mut batch) = (row.value.clone(), row.unchanged());
            let change = edit(&mut user, &mut batch)?;
            batch.put(row.key, super::encode_bounded(&user)?);
            if change.is_nothing() {
                match self.commit_for_user(id, batch, Forget::Nothing).await {
                    Ok(()) => return Ok((user, Vec::new())),
                    Err(error) => self.judge_conflict(&error)?,
                }
                continue;
            }
            let outcome = Arc::new(Mutex::new(None));
            let (actor, told) = (self.actor(id)?, outcome.clone());
            let rider: Rider = Box::new(move |ops| {
                let done = actor.set_within(ops, |account| change.settings(account));
                let verdict = done.is_ok();
                *told.lock() = Some(done);
                if verdict { Ok(()) } else { Err(StoreError::Refused("a meter cannot be set so".into())) }
            });
            let done = self.commit_with_meters(id, batch, rider, Forget::Nothing).await;
            let outcome = outcome.lock().take();
            match (done, outcome) {
                (Ok(()), Some(Ok((before, after)))) => return Ok((user, changes_of_meters(&before, &after))),
                (Err(StoreError::Refused(_)), Some(Err(Some(meter)))) => {
                    return Err(Reject::Invalid(vec![format!("{meter}: the amount is too large")]));
                }
                (Ok(()) | Err(StoreError::Refused(_)), _) => return Err(Reject::Internal),
                (Err(error), _) => self.judge_conflict(&error)?,
            }
        }
        Err(too_busy())
    }
}

fn changes_of_meters(before: &Account, after: &Account) -> Vec<Change> {
    let mut changes = Vec::new();
    for (name, now) in after.meters() {
        let (balance, reset) = before.meter(name).map_or((Micro::ZERO, Micro::ZERO), |was| (was.balance, was.reset));
        for (part, from, to) in [("balance", balance, now.balance), ("reset", reset, now.reset)] {
            if from != to {
                changes.push(Change::new(format!("{name}.{part}"), from.to_json(), to.to_json()));
            }
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::tests::{World, world, world_on};
    use super::*;
    use crate::accounts::Settings;
    use crate::accounts::credits::Adjustment;
    use crate::accounts::users::AdminUpdate;
    use crate::actors::user::ledger::{AccountRow, Command, Reply};
    use crate::config::Config;
    use crate::store::memory::MemoryStore;
    use crate::store::{Order, Row, Store};

    /// A disk on which is looked at after each commit: at which a crash would find it so.
    #[derive(Default)]
    struct Witness {
        rows: Arc<MemoryStore>,
        /// The first user's plan, and the reset amount of his meter `images`.
        seen: Mutex<BTreeSet<(String, i64)>>,
        commits: Mutex<u64>,
    }

    impl Store for Witness {
        fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
            self.rows.get(key)
        }

        fn range(&self, from: &[u8], to: &[u8], limit: usize, order: Order) -> Result<Vec<Row>, StoreError> {
            self.rows.range(from, to, limit, order)
        }

        fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
            self.rows.commit(batch)?;
            *self.commits.lock() += 1;
            let user: Option<User> = tables::read(&*self.rows, &tables::user(UserId(1)))?;
            let account: Option<AccountRow> = tables::read(&*self.rows, &tables::meters(UserId(1)))?;
            if let (Some(user), Some(row)) = (user, account) {
                let images = Account::from_row(row).meter(&meter("images")).map_or(0, |m| m.reset.whole_units());
                self.seen.lock().insert((user.plan.to_string(), images));
            }
            Ok(())
        }
    }

    fn meter(name: &str) -> MeterName {
        MeterName::parse(name).unwrap()
    }

    fn to_plan(plan: &str) -> AdminUpdate {
        AdminUpdate { plan: Some(plan.into()), ..AdminUpdate::default() }
    }

    fn stands(world: &World, id: UserId, name: &str) -> Option<(i64, i64)> {
        let account = world.accounts.actor(id).unwrap().account().unwrap();
        account.meter(&meter(name)).map(|m| (m.balance.whole_units(), m.reset.whole_units()))
    }

    fn reconfigure(world: &World, toml: &str) {
        let config = Config::parse("test.toml", toml, std::iter::empty()).unwrap();
        world.accounts.reconfigure(Settings::from(&config));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn whenever_the_process_dies_plan_and_meters_fit() {
        let disk = Arc::new(Witness::default());
        let world = world_on("", disk.clone(), disk.rows.clone());
        let id = world.register("anna").await.user.id;
        let actor = world.accounts.actor(id).unwrap();
        // Calls go on meanwhile and have the same row written all the time.
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (calls, ended) = (actor.clone(), stop.clone());
        let caller = std::thread::spawn(move || {
            let (meters, one) = ([meter("images")], [Micro(1)]);
            while !ended.load(std::sync::atomic::Ordering::SeqCst) {
                let command = Command::Reserve { meters: &meters, amounts: &one, max_open: 10 };
                if matches!(calls.ask(command).unwrap().reply, Reply::Done(_)) {
                    calls.ask(Command::Settle { meters: &meters, held: &one, paid: &one }).unwrap();
                }
            }
        });
        for _ in 0..50 {
            for plan in ["professional", "enterprise", "free"] {
                world.accounts.update_user(id, to_plan(plan)).await.unwrap();
            }
        }
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
        caller.join().unwrap();
        let no_limit = Micro::UNLIMITED.whole_units();
        let fitting = [("enterprise", no_limit), ("free", 20), ("professional", 200)];
        let fitting: BTreeSet<(String, i64)> = fitting.map(|(plan, images)| (plan.to_owned(), images)).into();
        assert_eq!(*disk.seen.lock(), fitting);
        assert!(*disk.commits.lock() > 150 && actor.account().unwrap().conserves());
    }

    #[tokio::test]
    async fn a_change_that_a_meter_refuses_changes_nothing() {
        let world = world("");
        let id = world.register("anna").await.user.id;
        let spend = Command::Adjust { meter: &meter("credits"), delta: Micro(7) };
        world.accounts.actor(id).unwrap().ask(spend).unwrap();
        let (meters, one) = ([meter("credits")], [Micro(1)]);
        let actor = world.accounts.actor(id).unwrap();
        actor.ask(Command::Reserve { meters: &meters, amounts: &one, max_open: 10 }).unwrap();
        let before = actor.account().unwrap();
        let most = MeterUpdate { balance: Some(Micro(i64::MAX)), reset: None };
        let update = AdminUpdate { credits: Some(most), ..to_plan("professional") };
        let refused = world.accounts.update_user(id, update).await.unwrap_err();
        assert_eq!(refused, Reject::Invalid(vec!["credits: the amount is too large".into()]));
        assert_eq!(&*world.accounts.user(id).unwrap().plan, "free");
        assert_eq!(actor.account().unwrap(), before);
    }

    #[tokio::test]
    async fn what_a_plan_gives_later_reaches_who_has_it_already() {
        let world = world("");
        let (here, away) = (world.register("here").await.user.id, world.register("away").await.user.id);
        assert_eq!((stands(&world, here, "audio"), stands(&world, here, "images")), (None, Some((20, 20))));
        world.accounts.delete_user(away, None).await.unwrap();
        let (pro, restored) = (world.register("pro").await.user.id, away);
        world.accounts.update_user(pro, to_plan("professional")).await.unwrap();
        // In use at the reload; and those who are loaded after it.
        world.users.sweep();
        let more =
            "[plans.free.meters]\naudio = { grant = 3, reset = 4, period = \"daily\" }\nimages = { grant = 99 }\n";
        reconfigure(&world, more);
        assert_eq!(stands(&world, here, "audio"), Some((3, 4)));
        assert_eq!(stands(&world, here, "images"), Some((20, 20)), "what somebody has stays as it is");
        assert_eq!(stands(&world, pro, "audio"), None, "another plan's");
        assert_eq!(stands(&world, restored, "audio"), None, "who is deleted gets nothing");
        let fresh = world.register("fresh").await.user.id;
        assert_eq!((stands(&world, fresh, "audio"), stands(&world, fresh, "images")), (Some((3, 4)), Some((99, 99))));
        world.accounts.restore_user(away).await.unwrap();
        // As a start finds them: rows without the meter.
        world.hands.advance(std::time::Duration::from_secs(3600));
        while world.users.live() > 0 {
            world.users.sweep();
            world.accounts.committer.commit(Batch::default()).await.unwrap();
        }
        let row = || tables::read::<AccountRow>(&*world.store, &tables::meters(away)).unwrap().unwrap();
        assert!(Account::from_row(row()).meter(&meter("audio")).is_none());
        assert_eq!(stands(&world, away, "audio"), Some((3, 4)));
        world.users.sweep();
        world.accounts.committer.commit(Batch::default()).await.unwrap();
        assert!(Account::from_row(row()).meter(&meter("audio")).is_some(), "it is written without a call");
    }

    #[tokio::test]
    async fn what_has_no_limit_is_neither_given_nor_taken() {
        let world = world("[plans.big.meters]\ncredits = { grant = \"unlimited\", period = \"daily\" }\n");
        let id = world.register("anna").await.user.id;
        world.accounts.update_user(id, to_plan("big")).await.unwrap();
        let credits = |balance: Option<i64>, reset: Option<i64>| AdminUpdate {
            credits: Some(MeterUpdate { balance: balance.map(Micro), reset: reset.map(Micro) }),
            ..AdminUpdate::default()
        };
        let refused =
            |done: Result<_, Reject>| matches!(done, Err(Reject::Invalid(why)) if why[0].contains("no limit"));
        for balance in [0, 5_000_000] {
            assert!(refused(world.accounts.update_user(id, credits(Some(balance), None)).await.map(|_| ())));
        }
        // Together with the plan as well as without.
        let both = AdminUpdate { plan: Some("big".into()), ..credits(Some(0), None) };
        assert!(refused(world.accounts.update_user(id, both.clone()).await.map(|_| ())));
        for amount in [Micro(1), Micro(-1), Micro(-Micro::UNLIMITED.0)] {
            let take = Adjustment { meter: meter("credits"), amount, reason: None };
            assert!(refused(world.accounts.adjust(id, take, "root").await.map(|_| ())));
        }
        // A reset amount gives it a limit; a plan with one too.
        world.accounts.update_user(id, credits(Some(0), Some(3_000_000))).await.unwrap();
        assert_eq!(stands(&world, id, "credits"), Some((0, 3)));
        world.accounts.update_user(id, to_plan("free")).await.unwrap();
        assert!(refused(world.accounts.update_user(id, both).await.map(|_| ())), "it would have none then");
        assert_eq!(&*world.accounts.user(id).unwrap().plan, "free");
    }
}
