//! An admission: a call is let in before its body is there, and what it costs at the least is set aside.
//!
//! Owns the promise that a caller who may not go is told so at once, whatever their body does: too many calls under way, or too
//! few credits for any call of this route. Lives in memory alone, because nothing is sent for such a call. A hold takes its
//! place when the body is there; else its own drop ends it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::actor::UserActor;
use super::ledger::{Admitted, Amounts, Command, Reply};
use crate::clock::UnixMillis;
use crate::domain::meters::MeterName;
use crate::error::Reject;

#[must_use = "an admission that is dropped ends at once"]
pub struct Admission {
    actor: Arc<UserActor>,
    meters: Arc<[MeterName]>,
    amounts: Amounts,
    /// A hold has taken its place.
    replaced: bool,
}

impl Admission {
    /// Asks the user's actor to let a call in that costs at least `amounts` on `meters`.
    ///
    /// # Errors
    /// [`Reject::CreditsExhausted`], [`Reject::TooManyInFlight`]; [`Reject::Internal`] after a panic.
    pub fn ask(
        actor: Arc<UserActor>,
        meters: Arc<[MeterName]>,
        amounts: Amounts,
        max_open: u32,
        now: UnixMillis,
    ) -> Result<Self, Reject> {
        let command = Command::Admit { meters: &meters, amounts: &amounts, max_open };
        match actor.ask_at(now, command).map_err(|_| Reject::Internal)?.reply {
            Reply::Done(_) => {}
            Reply::Short(shortage) => return Err(Reject::CreditsExhausted(shortage)),
            Reply::TooManyOpen { limit } => return Err(Reject::TooManyInFlight { limit }),
            Reply::OutOfRange => return Err(Reject::Internal),
        }
        actor.around().holds_open.fetch_add(1, Ordering::Relaxed);
        Ok(Self { actor, meters, amounts, replaced: false })
    }

    pub(super) fn held(&self) -> Admitted<'_> {
        Admitted { meters: &self.meters, amounts: &self.amounts }
    }

    /// What it held is another's now, or given back already.
    pub(super) fn replace(mut self) {
        self.replaced = true;
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if !self.replaced {
            // A turn that panics changes nothing and has been logged; there is nobody to tell.
            let _ = self.actor.ask(Command::Dismiss(self.held()));
        }
        self.actor.around().holds_open.fetch_sub(1, Ordering::Relaxed);
    }
}
