//! The wait for an owner's proof: what an account does not do after staff has changed a way into it.
//!
//! Owns when such a wait begins and ends. It begins with a password or an email that staff writes, in the same commit. Until
//! it ends, every call that shows, makes or rotates a key, adds a login at a provider or changes a second factor asks
//! [`refuse_waiting`]: so staff who can reset passwords cannot read keys by it. The owner ends it with a code of the second
//! factor, or with a link that was mailed to an address that they had proved before the change; other staff than those who
//! caused it may end it too, on record. Never asks who calls; permissions are the caller's.

use std::time::Duration;

use super::fields::same_address;
use super::mail::{Letter, LetterKind};
use super::staff::StaffIdentity;
use super::tokens::TokenKind;
use super::users::refuse_deleted;
use super::{Accounts, Forget};
use crate::domain::ids::UserId;
use crate::domain::session::Principal;
use crate::domain::user::User;
use crate::error::Reject;
use crate::store::Batch;

/// On whose word keys are changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    Owner,
    Staff,
}

/// # Errors
/// [`Reject::OwnerProofRequired`] while the account waits for its owner's proof.
pub(super) fn refuse_waiting(user: &User) -> Result<(), Reject> {
    if user.proof_wait.is_some() { Err(Reject::OwnerProofRequired) } else { Ok(()) }
}

/// Takes an answer from `address` for what it proves of a wait; says whether the wait is over by it.
pub(super) fn answered_from(address: &str, user: &mut User) -> bool {
    let asked = user.proof_wait.as_ref().and_then(|wait| wait.address.as_deref());
    let is_proof = asked.is_some_and(|asked| same_address(asked, address));
    if is_proof {
        user.proof_wait = None;
    }
    is_proof
}

impl Accounts {
    /// As [`refuse_waiting`], for a caller with a second factor. Staff waits for nothing.
    pub(super) fn refuse_waiting_principal(&self, whose: Principal) -> Result<(), Reject> {
        let Principal::User(id) = whose else { return Ok(()) };
        self.live_user(Some(id))?.map_or(Ok(()), |row| refuse_waiting(&row.value))
    }

    /// Puts the end of a wait into the batch that uses up a code of the second factor: nobody could change that factor since
    /// the wait began, so it is the owner's.
    pub(super) fn end_wait_by_factor(&self, whose: Principal, batch: &mut Batch) -> Result<(), Reject> {
        let Principal::User(id) = whose else { return Ok(()) };
        let Some(row) = self.live_user(Some(id))?.filter(|row| row.value.proof_wait.is_some()) else { return Ok(()) };
        let user = User { proof_wait: None, ..row.value };
        batch.require_equal(row.key.clone(), row.raw).put(row.key, super::encode_bounded(&user)?);
        Ok(())
    }

    /// Puts the letter with which an owner ends a wait into a batch; says whether there is an address to write to.
    pub(super) fn ask_for_proof(&self, user: &User, lasts: (u64, Duration), batch: &mut Batch) -> Result<bool, Reject> {
        let Some(address) = user.proof_wait.as_ref().and_then(|wait| wait.address.as_deref()) else { return Ok(false) };
        let mut asking = Batch::default();
        let token = self.mint_one_time(user.id, TokenKind::VerifyEmail, lasts.1, address, &mut asking)?;
        let link = self.link("/v1/users/verify-email", token.expose());
        let letter = Letter::new(LetterKind::ProveOwner).with("link", link).with("hours", lasts.0);
        // One too many: the last link that was sent stays good.
        if self.try_post(address, user, letter, &mut asking)? {
            batch.ops.append(&mut asking.ops);
        }
        Ok(true)
    }

    /// Ends a wait on the word of staff.
    ///
    /// # Errors
    /// [`Reject::Forbidden`] for a member who made one of the changes that caused it; [`Reject::Conflict`] when the account waits
    /// for nothing; [`Reject::NotFound`].
    pub async fn lift_proof_wait(&self, id: UserId, by: &StaffIdentity) -> Result<User, Reject> {
        let who = by.id;
        let edit = |user: &mut User, batch: &mut Batch| {
            refuse_deleted(user)?;
            let wait = user.proof_wait.take();
            let wait =
                wait.ok_or_else(|| Reject::Conflict("This account does not wait for its owner's proof".into()))?;
            if !wait.may_be_lifted_by(who) {
                return Err(Reject::Forbidden(
                    "You made one of the changes for which this account waits; somebody else must lift the wait",
                ));
            }
            // A link that was mailed for it has nothing to end any more.
            self.drop_link(id, TokenKind::VerifyEmail, batch)?;
            Ok(())
        };
        self.change_user(id, Forget::Nothing, edit).await
    }
}
