//! A hold: credits set aside for one call, which must be used up.
//!
//! Owns the promise that every hold ends exactly once: settled by whoever ends the call, or by its own drop (a panic, a
//! shutdown, a client that left). Never waits, so that it can end anywhere.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::actor::{Answer, OnceAnswer, UserActor, Wanted};
use super::admission::Admission;
use super::ledger::{Amounts, Command, Reply};
use super::once::{Ended, Fingerprint, KeptAnswer, OnceKey};
use crate::clock::UnixMillis;
use crate::domain::meters::{MeterName, Micro};
use crate::error::Reject;
use crate::failpoint;
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
    once: Option<Box<Once>>,
    extended: bool,
}

/// The idempotency key under which a call runs, and what was paid under it before.
struct Once {
    key: OnceKey,
    paid: Amounts,
}

/// What a call with an idempotency key gets.
pub enum Reserved {
    Hold(Hold),
    /// It was carried out before: its answer, and the balances on its meters.
    Answered {
        kept: KeptAnswer,
        /// What its whole body was, where the key knows only its beginning.
        whole: Option<Fingerprint>,
        left: Amounts,
    },
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
    /// Asks the user's actor for `amounts` on `meters`, all or none: instead of what the call was `admitted` with, if it was.
    ///
    /// # Errors
    /// [`Reject::CreditsExhausted`], [`Reject::TooManyInFlight`]; [`Reject::Internal`] after a panic.
    pub fn reserve(
        actor: Arc<UserActor>,
        meters: Arc<[MeterName]>,
        amounts: Amounts,
        max_open: u32,
        now: UnixMillis,
        admitted: Option<Admission>,
    ) -> Result<Self, Reject> {
        let command = match &admitted {
            None => Command::Reserve { meters: &meters, amounts: &amounts, max_open },
            Some(admitted) => Command::Confirm { admitted: admitted.held(), meters: &meters, amounts: &amounts },
        };
        let answer = actor.ask_at(now, command).map_err(|_| Reject::Internal)?;
        let hold = Self::of(actor, meters, amounts, answer, None)?;
        admitted.into_iter().for_each(Admission::replace);
        Ok(hold)
    }

    /// As [`Hold::reserve`], for a call with an idempotency key: what was paid under the key before is not held again.
    ///
    /// # Errors
    /// As [`Hold::reserve`] and [`UserActor::reserve_once`].
    pub fn reserve_once(
        actor: Arc<UserActor>,
        key: OnceKey,
        meters: Arc<[MeterName]>,
        amounts: &[Micro],
        max_open: u32,
        now: UnixMillis,
        admitted: Option<Admission>,
    ) -> Result<Reserved, Reject> {
        let wanted = Wanted { meters: &meters, amounts, max_open, admitted: admitted.as_ref().map(Admission::held) };
        let reserved = match actor.reserve_once(now, &key, wanted)? {
            OnceAnswer::Answered { kept, whole, left } => Reserved::Answered { kept, whole, left },
            OnceAnswer::Go { answer, held, paid } => {
                let once = Some(Box::new(Once { key, paid }));
                Self::of(actor, meters, held, answer, once).map(Reserved::Hold)?
            }
        };
        admitted.into_iter().for_each(Admission::replace);
        Ok(reserved)
    }

    fn of(
        actor: Arc<UserActor>,
        meters: Arc<[MeterName]>,
        amounts: Amounts,
        answer: Answer,
        once: Option<Box<Once>>,
    ) -> Result<Self, Reject> {
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
                    once,
                    extended: false,
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

    /// How many bytes of the answer are to be kept for a repeat of this call; `None` when it says nothing of repeats.
    pub fn keeps_answer(&self) -> Option<usize> {
        let around = self.actor.as_ref()?.around();
        self.once.as_ref().map(|_| around.once.answer_bytes)
    }

    /// Whether repeats of this call are to be told from others.
    pub fn has_key(&self) -> bool {
        self.once.is_some()
    }

    /// The whole body has passed, of which the idempotency key knows the beginning.
    pub fn body_was(&mut self, whole: Fingerprint) {
        if let Some(once) = &mut self.once {
            once.key.whole = Some(whole);
        }
    }

    /// Holds as much as a call needs that turns out to cost `cost`, and `headroom` on top if there is that much. Says
    /// whether the credits were enough; [`Hold::epoch`] may be a later one then.
    pub fn cover(&mut self, cost: &[Micro], headroom: &[Micro]) -> bool {
        let missing = self.beyond(cost);
        if missing.iter().all(|amount| *amount == Micro::ZERO) {
            return true;
        }
        // Only on meters that ran out: the others have what they need.
        let more = |(missing, room): (&Micro, &Micro)| match *missing {
            Micro::ZERO => Micro::ZERO,
            missing => missing.saturating_add(*room),
        };
        let generous: Amounts = missing.iter().zip(headroom).map(more).collect();
        self.hold_more(&generous) || self.hold_more(&missing)
    }

    fn hold_more(&mut self, more: &[Micro]) -> bool {
        let Some(actor) = &self.actor else { return false };
        let key = self.once.as_ref().map(|once| &once.key);
        let Ok(Answer { reply: Reply::Done(left), epoch }) = actor.extend(key, &self.meters, more) else {
            return false;
        };
        for (held, more) in self.amounts.iter_mut().zip(more) {
            held.0 += more.0;
        }
        (self.left, self.epoch, self.extended) = (left, epoch, true);
        true
    }

    /// Whether more is held than was at first.
    pub fn was_extended(&self) -> bool {
        self.extended
    }

    fn paid_before(&self, at: usize) -> Micro {
        self.once.as_ref().and_then(|once| once.paid.get(at)).copied().unwrap_or_default()
    }

    /// What of `cost` is beyond the hold: nobody pays it.
    pub fn beyond(&self, cost: &[Micro]) -> Amounts {
        let beyond = |(at, (cost, held)): (usize, (&Micro, &Micro))| {
            Micro(cost.0.saturating_sub(self.paid_before(at).0).saturating_sub(held.0).max(0))
        };
        cost.iter().zip(&self.amounts).enumerate().map(beyond).collect()
    }

    /// Ends the hold of a call that costs `cost` in all: pays it, cut to what was held, and gives the rest back. Says what
    /// was really paid.
    pub fn settle(&mut self, cost: &[Micro], ended: Ended) -> Amounts {
        let part = |(at, held): (usize, &Micro)| match cost.get(at) {
            Some(cost) => Micro(cost.0.saturating_sub(self.paid_before(at).0)).clamp(Micro::ZERO, *held),
            None => *held,
        };
        let paid: Amounts = self.amounts.iter().enumerate().map(part).collect();
        self.end(&paid, ended);
        paid
    }

    /// Gives everything back.
    pub fn refund(&mut self) {
        let nothing: Amounts = self.amounts.iter().map(|_| Micro::ZERO).collect();
        self.end(&nothing, Ended::Free);
    }

    pub fn is_settled(&self) -> bool {
        self.actor.is_none()
    }

    fn end(&mut self, paid: &[Micro], ended: Ended) {
        let Some(actor) = self.actor.take() else { return };
        failpoint::hit("settle.before");
        let answer = match &self.once {
            Some(once) => actor.settle_once(&once.key, &self.meters, &self.amounts, paid, ended),
            None => actor.ask(Command::Settle { meters: &self.meters, held: &self.amounts, paid }),
        };
        if let Ok(answer) = answer
            && let Reply::Done(left) = answer.reply
        {
            self.left = left;
        }
        failpoint::hit("settle.after");
        actor.around().holds_open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        match self.if_dropped {
            IfDropped::Refund => self.refund(),
            IfDropped::Charge => {
                let all = self.amounts.clone();
                self.end(&all, Ended::Cut);
            }
        }
    }
}
