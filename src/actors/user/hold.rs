//! A hold: credits set aside for one call, which must be used up.
//!
//! Owns the promise that every hold ends exactly once: settled by whoever ends the call, or by its own drop (a panic, a
//! shutdown, a client that left). Never waits, so that it can end anywhere.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::actor::UserActor;
use super::ledger::{Amounts, Command, Reply};
use crate::clock::UnixMillis;
use crate::domain::meters::{MeterName, Micro};
use crate::error::Reject;
use crate::store::committer::Epoch;

#[must_use = "a hold that is dropped at once settles at once"]
pub struct Hold {
    /// Taken when settled.
    actor: Option<Arc<UserActor>>,
    meters: Arc<[MeterName]>,
    amounts: Amounts,
    /// Balances after the hold, or after it was settled.
    left: Amounts,
    epoch: Epoch,
    if_dropped: IfDropped,
}

/// What a hold does when nobody settles it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IfDropped {
    /// No byte of an answer has left.
    Refund,
    /// The client has had something.
    Charge,
}

impl Hold {
    /// Asks the user's actor for `amounts` on `meters`, all or none.
    ///
    /// # Errors
    /// [`Reject::CreditsExhausted`], [`Reject::TooManyInFlight`]; [`Reject::Internal`] after a panic.
    pub fn reserve(
        actor: Arc<UserActor>,
        meters: Arc<[MeterName]>,
        amounts: Amounts,
        max_open: u32,
        now: UnixMillis,
    ) -> Result<Self, Reject> {
        let answer = actor
            .ask_at(now, Command::Reserve { meters: &meters, amounts: &amounts, max_open })
            .map_err(|_| Reject::Internal)?;
        match answer.reply {
            Reply::Done(left) => {
                actor.around().holds_open.fetch_add(1, Ordering::Relaxed);
                Ok(Self {
                    actor: Some(actor),
                    meters,
                    amounts,
                    left,
                    epoch: answer.epoch,
                    if_dropped: IfDropped::Refund,
                })
            }
            Reply::Short(shortage) => Err(Reject::CreditsExhausted(shortage)),
            Reply::TooManyOpen { limit } => Err(Reject::TooManyInFlight { limit }),
            Reply::OutOfRange => Err(Reject::Internal),
        }
    }

    /// The commit that holds the debit. An answer may leave when it is durable.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub fn meters(&self) -> &[MeterName] {
        &self.meters
    }

    pub fn amounts(&self) -> &[Micro] {
        &self.amounts
    }

    /// The balance left on each meter.
    pub fn left(&self) -> &[Micro] {
        &self.left
    }

    /// From here on the call is not free any more, even if nobody comes to settle it.
    pub fn answer_begins(&mut self) {
        self.if_dropped = IfDropped::Charge;
    }

    /// Pays `paid`, each cut to what was held, and gives the rest back. Says what was really paid.
    pub fn settle(&mut self, paid: &[Micro]) -> Amounts {
        let paid: Amounts = self
            .amounts
            .iter()
            .enumerate()
            .map(|(at, held)| paid.get(at).copied().unwrap_or(*held).clamp(Micro::ZERO, *held))
            .collect();
        self.end(&paid);
        paid
    }

    /// Gives everything back.
    pub fn refund(&mut self) {
        let nothing: Amounts = self.amounts.iter().map(|_| Micro::ZERO).collect();
        self.end(&nothing);
    }

    pub fn is_settled(&self) -> bool {
        self.actor.is_none()
    }

    fn end(&mut self, paid: &[Micro]) {
        let Some(actor) = self.actor.take() else { return };
        let command = Command::Settle { meters: &self.meters, held: &self.amounts, paid };
        if let Ok(answer) = actor.ask(command)
            && let Reply::Done(left) = answer.reply
        {
            self.left = left;
        }
        actor.around().holds_open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        match self.if_dropped {
            IfDropped::Refund => self.refund(),
            IfDropped::Charge => {
                let all = self.amounts.clone();
                self.end(&all);
            }
        }
    }
}
