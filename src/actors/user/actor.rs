//! One user's actor: a cell whose turns the caller runs, one at a time.
//!
//! Owns the user's account and what the request path needs to know of him. A turn is short, holds a lock and never waits;
//! it works on numbers that are put back when it panics, so a bug costs one call a 500 and no user his credits. What must
//! reach the disk is marked for the store thread, which reads the newest state when it commits.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use governor::state::InMemoryState;
use parking_lot::Mutex;

use super::ledger::{self, Account, Command, Records, Recovery, Reply};
use crate::clock::{Clock, UnixMillis};
use crate::domain::ids::UserId;
use crate::domain::meters::ResetHour;
use crate::domain::user::Standing;
use crate::store::committer::{Committer, DirtyRow, Epoch};
use crate::store::{Op, tables};
use crate::telemetry::metrics::Metrics;

/// What all actors share.
pub struct Surroundings {
    pub clock: Clock,
    pub committer: Committer,
    pub metrics: Arc<Metrics>,
    pub reset_hour: ResetHour,
    pub recovery: Recovery,
    /// Holds of all users that are not settled yet.
    pub holds_open: AtomicI64,
    /// Numbers for [`UserActor::generation`]; never given twice in a process.
    pub generations: AtomicU64,
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
        let before = state.account.numbers();
        let around = &self.around;
        let account = &mut state.account;
        let turn = AssertUnwindSafe(|| ledger::step(account, now, around.reset_hour, around.recovery, command));
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
            Records::Now => self.mark(&mut state),
        }
        Ok(Answer { reply, epoch: state.epoch })
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
        let row = {
            let mut state = self.state.lock();
            state.queued = false;
            state.unwritten = false;
            state.account.to_row()
        };
        match tables::encode(&row) {
            Ok(value) => ops.push(Op::Put { key: tables::meters(self.id), value }),
            Err(error) => tracing::error!(user = %self.id, %error, "an account could not be encoded"),
        }
    }
}
