//! Who acts, and the record of what he does.
//!
//! Owns the recognition of staff by the token a call carries, with the record of who did not get in. Never writes a record of
//! an act: [`Accounts::audited`] does, around the act.

use crate::accounts::Accounts;
use crate::accounts::staff::StaffIdentity;
use crate::actors::audit::{Action, Actor, Record, Target};
use crate::domain::ids::UserId;
use crate::domain::session::StaffRole;
use crate::domain::user::User;
use crate::error::Reject;
use crate::handler::extract::Call;

/// The record of what somebody does before we know him.
pub fn stranger(call: &Call, action: Action) -> Record {
    Record::of(action).by(Actor::anonymous()).from(call.origin())
}

/// The record of what a user does to himself.
pub fn own_act(call: &Call, action: Action, user: &User) -> Record {
    Record::of(action).by(user).from(call.origin()).on(user)
}

/// Who calls, if his role reaches `least`. Who does not get in is recorded.
///
/// # Errors
/// [`Reject::Unauthenticated`], [`Reject::Forbidden`].
pub fn staff(accounts: &Accounts, call: &Call, least: StaffRole) -> Result<StaffIdentity, Reject> {
    let denied = Record::of(Action::AccessDenied).from(call.origin()).with("call", call.line.as_str());
    let anyone = accounts.staff_of_token(call.token()?, StaffRole::New);
    let who = anyone.inspect_err(|reject| accounts.note_refusal(denied.clone().by(Actor::anonymous()), reject))?;
    if who.role < least {
        let reject = Reject::Forbidden("Your role does not allow this");
        accounts.note_denial(denied.by(&who), &reject);
        return Err(reject);
    }
    Ok(who)
}

/// The record of what staff does.
pub fn act_of(who: &StaffIdentity, call: &Call, action: Action) -> Record {
    Record::of(action).by(who).from(call.origin())
}

/// The record of what staff does to a user.
pub fn act_on(accounts: &Accounts, who: &StaffIdentity, call: &Call, action: Action, user: UserId) -> Record {
    // Whom nobody finds is refused by the act itself; his number is recorded all the same.
    let target = accounts.user(user).map_or_else(|_| Target::user_id(user.0), |user| Target::from(&user));
    act_of(who, call, action).on(target)
}

/// The user that a part of a path names, by number or by username.
///
/// # Errors
/// [`Reject::NotFound`].
pub fn user_in_path(accounts: &Accounts, call: &Call, part: &str) -> Result<UserId, Reject> {
    match call.number(part) {
        Ok(number) => Ok(UserId(number)),
        Err(_) => accounts.find_user(call.part(part))?.ok_or(Reject::NotFound),
    }
}
