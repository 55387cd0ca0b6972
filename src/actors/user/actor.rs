//! One user's actor: a cell whose turns the caller runs, one at a time.
//!
//! Owns the user's account and what the request path needs to know of him. A turn is short, holds a lock and never waits;
//! it works on numbers that are put back when it panics, so a bug costs one call a 500 and no user his credits. What must
//! reach the disk is marked for the store thread, which reads the newest state when it commits.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use governor::state::InMemoryState;
use parking_lot::Mutex;

use super::ledger::{self, Account, Admitted, Amounts, Command, Records, Recovery, Reply};
use super::once::{Attempt, Ended, Fingerprint, KeptAnswer, KeptBytes, OnceBook, OnceKey, OnceLimits};
use crate::clock::{Clock, UnixMillis};
use crate::config::Plan;
use crate::domain::ids::UserId;
use crate::domain::meters::{MeterName, Micro, ResetHour, ResetPeriod};
use crate::domain::user::{Standing, Status};
use crate::error::Reject;
use crate::store::committer::{Committer, DirtyRow, Epoch};
use crate::store::{Op, StoreError, tables};
use crate::telemetry::metrics::Metrics;

/// What all actors share.
pub struct Surroundings {
    pub clock: Clock,
    pub committer: Committer,
    pub metrics: Arc<Metrics>,
    pub reset_hour: ResetHour,
    pub recovery: Recovery,
    pub once: OnceLimits,
    /// Answers kept for calls that may be repeated.
    pub kept: KeptBytes,
    /// Holds of all users that are not settled yet.
    pub holds_open: AtomicI64,
    /// Numbers for [`UserActor::generation`]; never given twice in a process.
    pub generations: AtomicU64,
    /// The number of the last reset of all users' meters, which is on disk. Accounts [catch up](ledger::catch_up) lazily.
    pub resets: AtomicU64,
    /// What plans give. Users get what is new in theirs when they are loaded, or at the change if they are in use.
    pub plans: ArcSwap<Vec<Plan>>,
}

/// One meter as it is to be set; what is `None` stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeterSetting {
    pub meter: MeterName,
    pub balance: Option<Micro>,
    pub reset: Option<Micro>,
    pub period: Option<ResetPeriod>,
}

impl Surroundings {
    pub fn next_generation(&self) -> u64 {
        self.generations.fetch_add(1, Ordering::SeqCst) + 1
    }
}

pub struct UserActor {
    pub id: UserId,
    around: Arc<Surroundings>,
    state: Mutex<State>,
    /// A credential that was read under an older generation must be read again. Changed after every change to the user's
    /// keys and sessions is on disk and before it is acknowledged.
    generation: AtomicU64,
    /// The user's own rate, over all his keys.
    pub rate: InMemoryState,
}

struct State {
    account: Account,
    standing: Arc<Standing>,
    /// Queued at the store thread, which has not read it yet.
    queued: bool,
    /// Changed in a way that may wait; written when there is time.
    unwritten: bool,
    /// The commit that will hold, or holds, the newest state that was marked.
    epoch: Epoch,
    last_turn: UnixMillis,
    /// Idempotency keys in use; most users never bring one.
    once: Option<Box<OnceBook>>,
}

/// A turn that did not come to an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnPanicked;

/// An answer, and the commit it depends on.
#[derive(Debug)]
pub struct Answer {
    pub reply: Reply,
    pub epoch: Epoch,
}

/// What a call with an idempotency key asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub meters: &'a [MeterName],
    pub amounts: &'a [Micro],
    pub max_open: u32,
    /// What the call was let in with, before its body was there.
    pub admitted: Option<Admitted<'a>>,
}

/// What such a call is told.
#[derive(Debug)]
pub enum OnceAnswer {
    /// To be carried out, if the reply says that it could be held; `paid` was paid before, `held` is set aside now.
    Go { answer: Answer, held: Amounts, paid: Amounts },
    /// It was carried out before.
    Answered { kept: KeptAnswer, whole: Option<Fingerprint>, left: Amounts },
}

impl UserActor {
    pub fn new(standing: Standing, account: Account, around: Arc<Surroundings>) -> Self {
        let last_turn = around.clock.now();
        Self {
            id: standing.id,
            generation: AtomicU64::new(around.next_generation()),
            around,
            rate: InMemoryState::default(),
            state: Mutex::new(State {
                account,
                standing: Arc::new(standing),
                queued: false,
                unwritten: false,
                epoch: Epoch::default(),
                last_turn,
                once: None,
            }),
        }
    }

    /// Runs one turn.
    ///
    /// # Errors
    /// [`TurnPanicked`]; the account is as it was before.
    pub fn ask(self: &Arc<Self>, command: Command<'_>) -> Result<Answer, TurnPanicked> {
        self.ask_at(self.around.clock.now(), command)
    }

    /// As [`UserActor::ask`], for a caller that has just looked at the clock.
    ///
    /// # Errors
    /// As [`UserActor::ask`].
    pub fn ask_at(self: &Arc<Self>, now: UnixMillis, command: Command<'_>) -> Result<Answer, TurnPanicked> {
        let mut state = self.state.lock();
        let reply = self.turn(&mut state, now, command)?;
        Ok(Answer { reply, epoch: state.epoch })
    }

    fn turn(self: &Arc<Self>, state: &mut State, now: UnixMillis, command: Command<'_>) -> Result<Reply, TurnPanicked> {
        let before = state.account.numbers();
        let around = &self.around;
        let account = &mut state.account;
        let resets = around.resets.load(Ordering::SeqCst);
        let turn = AssertUnwindSafe(|| {
            let was_behind = ledger::catch_up(account, resets);
            let (reply, records) = ledger::step(account, now, around.reset_hour, around.recovery, command);
            (reply, if was_behind { Records::Now } else { records })
        });
        let Ok((reply, records)) = catch_unwind(turn) else {
            state.account.put_back(before);
            self.around.metrics.actor_panicked();
            tracing::error!(user = %self.id, "a turn panicked and was undone");
            return Err(TurnPanicked);
        };
        state.last_turn = now;
        match records {
            Records::None => {}
            Records::Later => state.unwritten = true,
            Records::Now => self.mark(state),
        }
        Ok(reply)
    }

    /// Reserves for a call with an idempotency key, less what was paid under the key before. Key and debit are written in
    /// one batch.
    ///
    /// # Errors
    /// [`Reject::Repeated`]; [`Reject::StoreUnavailable`] when the key's row cannot be read; [`Reject::Internal`] after a
    /// panic.
    pub fn reserve_once(
        self: &Arc<Self>,
        now: UnixMillis,
        key: &OnceKey,
        wanted: Wanted<'_>,
    ) -> Result<OnceAnswer, Reject> {
        let around = &self.around;
        let (meters, window) = (wanted.meters, around.once.window);
        let mut state = self.state.lock();
        let all_durable = !state.queued && around.committer.is_durable(state.epoch);
        let book = state.once.get_or_insert_default();
        book.forget_written(all_durable);
        let load = || around.committer.store().get(&key.row(self.id));
        let paid = match book.judge(key, meters, now, window, around.recovery, load)? {
            Attempt::Go(paid) => paid,
            Attempt::Answered(kept, whole) => {
                let command = wanted.admitted.map_or(Command::Look, Command::Dismiss);
                self.turn(&mut state, now, command).map_err(|_| Reject::Internal)?;
                let left = |name| state.account.meter(name).map_or(Micro::ZERO, |meter| meter.balance);
                return Ok(OnceAnswer::Answered { kept, whole, left: meters.iter().map(left).collect() });
            }
        };
        let due = |(amount, paid): (&Micro, &Micro)| Micro(amount.0.saturating_sub(paid.0).max(0));
        let held: Amounts = wanted.amounts.iter().zip(&paid).map(due).collect();
        let command = match wanted.admitted {
            None => Command::Reserve { meters, amounts: &held, max_open: wanted.max_open },
            Some(admitted) => Command::Confirm { admitted, meters, amounts: &held },
        };
        let reply = self.turn(&mut state, now, command).map_err(|_| Reject::Internal)?;
        if matches!(reply, Reply::Done(_)) {
            if let Some(book) = &mut state.once {
                book.begin(key, now, window, meters, &held);
            }
            self.mark(&mut state);
        }
        Ok(OnceAnswer::Go { answer: Answer { reply, epoch: state.epoch }, held, paid })
    }

    /// Whether a call came with this key before, so that a repeat of it may be free.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`] when the key's row cannot be read.
    pub fn knows_key(&self, key: &OnceKey, now: UnixMillis) -> Result<bool, Reject> {
        let around = &self.around;
        let load = || around.committer.store().get(&key.row(self.id));
        let state = self.state.lock();
        let nothing = OnceBook::default();
        state.once.as_deref().unwrap_or(&nothing).knows(key, now, around.once.window, load)
    }

    /// Sets more aside for a call that runs; `key` is the one it was reserved with.
    ///
    /// # Errors
    /// As [`UserActor::ask`].
    pub fn extend(
        self: &Arc<Self>,
        key: Option<&OnceKey>,
        meters: &[MeterName],
        more: &[Micro],
    ) -> Result<Answer, TurnPanicked> {
        let mut state = self.state.lock();
        let reply = self.turn(&mut state, self.around.clock.now(), Command::Extend { meters, more })?;
        if let (Some(key), Some(book), Reply::Done(_)) = (key, &mut state.once, &reply) {
            book.hold_more(key, meters, more);
        }
        Ok(Answer { reply, epoch: state.epoch })
    }

    /// Settles a hold of [`UserActor::reserve_once`].
    ///
    /// # Errors
    /// As [`UserActor::ask`].
    pub fn settle_once(
        self: &Arc<Self>,
        key: &OnceKey,
        meters: &[MeterName],
        held: &[Micro],
        paid: &[Micro],
        ended: Ended,
    ) -> Result<Answer, TurnPanicked> {
        let around = &self.around;
        let ended = match ended {
            Ended::Whole(Some(answer)) if !around.kept.take(answer.len() as u64, around.once.total_bytes) => {
                Ended::Whole(None)
            }
            other => other,
        };
        let mut state = self.state.lock();
        let reply = self.turn(&mut state, around.clock.now(), Command::Settle { meters, held, paid })?;
        if let Some(book) = &mut state.once {
            book.end(key, meters, paid, ended);
        }
        self.mark(&mut state);
        Ok(Answer { reply, epoch: state.epoch })
    }

    /// Takes in what a crash left of calls with idempotency keys; see [`OnceBook::recover`].
    ///
    /// # Errors
    /// As [`OnceBook::recover`].
    pub fn recover_keys(&self) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        let book = state.once.get_or_insert_default();
        book.recover(self.id, self.around.recovery, self.around.committer.store())
    }

    /// Sets meters in one turn, whose rows go into a batch that is just being committed: with it on disk, or without it
    /// nowhere. `settings` are made of the account as it stands. Answers the account before and after.
    ///
    /// # Errors
    /// The meter that cannot hold what it should; `None` after a panic or when a row has no form. Nothing is changed then.
    pub fn set_within(
        self: &Arc<Self>,
        ops: &mut Vec<Op>,
        settings: impl FnOnce(&Account) -> Vec<MeterSetting>,
    ) -> Result<(Account, Account), Option<MeterName>> {
        let now = self.around.clock.now();
        let mut state = self.state.lock();
        self.turn(&mut state, now, Command::Look).map_err(|_| None)?;
        let before = state.account.clone();
        for MeterSetting { meter, balance, reset, period } in settings(&before) {
            match self.turn(&mut state, now, Command::Set { meter: &meter, balance, reset, period }) {
                Ok(Reply::OutOfRange) => {
                    state.account.put_back(before.numbers());
                    return Err(Some(meter));
                }
                Ok(_) => {}
                Err(TurnPanicked) => {
                    state.account.put_back(before.numbers());
                    return Err(None);
                }
            }
        }
        // Written once more with the next commit, which the turns have asked for: the epoch of this one is not known here.
        self.mark(&mut state);
        let after = state.account.clone();
        self.append_rows(&mut state, ops).map_err(|_| None)?;
        Ok((before, after))
    }

    /// Gives what is new in the user's plan.
    pub fn give_missing(self: &Arc<Self>) {
        let plans = self.around.plans.load();
        let mut state = self.state.lock();
        let Some(plan) = plans.iter().find(|plan| plan.name == state.standing.plan) else { return };
        if state.standing.status != Status::Deleted
            && ledger::give_missing(&mut state.account, &plan.meters, self.around.clock.now(), self.around.reset_hour)
        {
            // Until it is written, a start comes to the same.
            state.unwritten = true;
        }
    }

    /// The account's row as it is, and with it what the disk does not have of idempotency keys.
    fn append_rows(&self, state: &mut State, ops: &mut Vec<Op>) -> Result<(), StoreError> {
        if let Some(book) = &mut state.once {
            book.write_to(self.id, ops)?;
        }
        let value = tables::encode(&state.account.to_row())?;
        ops.push(Op::Put { key: tables::meters(self.id), value });
        Ok(())
    }

    fn mark(self: &Arc<Self>, state: &mut State) {
        if !state.queued {
            state.queued = true;
            state.epoch = self.around.committer.mark(self.clone());
        }
    }

    /// Has the row written if a change still waits for an occasion.
    pub fn write_back(self: &Arc<Self>) {
        let mut state = self.state.lock();
        let all_durable = !state.queued && self.around.committer.is_durable(state.epoch);
        if let Some(book) = &mut state.once {
            book.forget_written(all_durable);
            if book.is_empty() {
                state.once = None;
            }
        }
        if state.unwritten {
            self.mark(&mut state);
        }
    }

    /// Marks the row whatever its state: after recovery.
    pub fn write_now(self: &Arc<Self>) {
        let mut state = self.state.lock();
        self.mark(&mut state);
    }

    pub fn standing(&self) -> Arc<Standing> {
        self.state.lock().standing.clone()
    }

    /// In force for every call that asks from now on.
    pub fn set_standing(&self, standing: Standing) {
        self.state.lock().standing = Arc::new(standing);
    }

    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// From now on, credentials read earlier are read again before they are believed.
    pub fn forget_credentials(&self) {
        self.generation.store(self.around.next_generation(), Ordering::SeqCst);
    }

    /// The account as it stands, with the resets that are due.
    ///
    /// # Errors
    /// As [`UserActor::ask`].
    pub fn account(self: &Arc<Self>) -> Result<Account, TurnPanicked> {
        self.ask(Command::Look)?;
        Ok(self.state.lock().account.clone())
    }

    /// The account as the last turn left it: nothing that is due is done for looking, and it does not count as a turn.
    pub fn account_as_it_is(&self) -> Account {
        self.state.lock().account.clone()
    }

    /// Whether nobody would miss this actor: no open hold, nothing unwritten, no turn for `idle_ms`.
    pub fn is_idle(&self, now: UnixMillis, idle_ms: u64) -> bool {
        let state = self.state.lock();
        let quiet = now.0.saturating_sub(state.last_turn.0) >= idle_ms;
        let settled = state.account.open == 0 && !state.queued && !state.unwritten;
        quiet && settled && self.around.committer.is_durable(state.epoch)
    }

    pub fn around(&self) -> &Arc<Surroundings> {
        &self.around
    }
}

impl DirtyRow for UserActor {
    fn write_to(&self, ops: &mut Vec<Op>) {
        let mut state = self.state.lock();
        state.queued = false;
        state.unwritten = false;
        if let Err(error) = self.append_rows(&mut state, ops) {
            tracing::error!(user = %self.id, %error, "an account or an idempotency key could not be encoded");
        }
    }
}
