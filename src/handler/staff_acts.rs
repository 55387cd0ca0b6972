//! What staff does to users, each act with its record, the same for every API.
//!
//! Owns which record an act leaves. Whether the caller may is asked before, by [`super::acts::staff`].

use std::sync::Arc;

use crate::accounts::Accounts;
use crate::accounts::audit::changes;
use crate::accounts::codes::{CodeList, NewCodes};
use crate::accounts::credits::{Adjustment, Whose};
use crate::accounts::staff::StaffIdentity;
use crate::accounts::users::{AdminUpdate, MeterView};
use crate::actors::audit::{Action, Record};
use crate::domain::ids::UserId;
use crate::domain::user::{Status, User};
use crate::error::Reject;
use crate::handler::acts::{act_of, act_on};
use crate::handler::extract::Call;

/// Under which name an update is found in the trail: a change of credits under its own, whatever else it changes.
pub fn action_of(update: &AdminUpdate) -> Action {
    match (&update.credits, &update.conversations, &update.plan) {
        (None, None, None) => Action::UserUpdated,
        (None, None, Some(_)) => Action::PlanChanged,
        _ => Action::CreditsAdjusted,
    }
}

/// Changes a user.
///
/// # Errors
/// Those of [`Accounts::update_user_telling`].
pub async fn update(
    accounts: &Arc<Accounts>,
    by: &StaffIdentity,
    call: &Call,
    id: UserId,
    update: AdminUpdate,
    reason: Option<String>,
) -> Result<User, Reject> {
    let record = act_on(accounts, by, call, action_of(&update), id).with("reason", reason);
    let by = by.id;
    let act = move |accounts: Arc<Accounts>| async move { accounts.update_user_telling(id, update, by).await };
    let tell = |(user, list): &(User, Vec<_>), record: Record| record.on(user).with("changes", changes(list));
    Ok(accounts.audited(record, act, tell).await?.0)
}

/// Stops a user's calls, or lets him call again.
///
/// # Errors
/// [`Reject::NotFound`].
pub async fn set_status(
    accounts: &Arc<Accounts>,
    by: &StaffIdentity,
    call: &Call,
    id: UserId,
    status: Status,
    reason: Option<String>,
) -> Result<User, Reject> {
    let action = match status {
        Status::Suspended => Action::UserSuspended,
        Status::Banned => Action::UserBanned,
        _ => Action::UserActivated,
    };
    let record = act_on(accounts, by, call, action, id).with("reason", reason.clone());
    let act = move |accounts: Arc<Accounts>| async move {
        match status {
            Status::Suspended => accounts.suspend(id, reason).await,
            Status::Banned => accounts.ban(id, reason).await,
            _ => accounts.activate(id).await,
        }
    };
    let user = accounts.audited(record, act, |user: &User, record| record.on(user)).await?;
    tracing::info!(user = %user.id, by = %by.username, status = user.status.as_str(), "a user's status was changed");
    Ok(user)
}

/// Gives credits on one meter, or takes them.
///
/// # Errors
/// Those of [`Accounts::adjust`].
pub async fn adjust(
    accounts: &Arc<Accounts>,
    by: &StaffIdentity,
    call: &Call,
    id: UserId,
    adjustment: Adjustment,
) -> Result<Vec<MeterView>, Reject> {
    let record = act_on(accounts, by, call, Action::CreditsAdjusted, id)
        .with("meter", adjustment.meter.as_str())
        .with("amount", adjustment.amount.to_json())
        .with("reason", adjustment.reason.clone());
    let (name, by) = (adjustment.meter.clone(), by.username.clone());
    let act = move |accounts: Arc<Accounts>| async move { accounts.adjust(id, adjustment, &by).await };
    let tell = move |meters: &Vec<MeterView>, record: Record| {
        let after = meters.iter().find(|view| view.name == name).map(|view| view.meter.balance.to_json());
        record.with("balance_after", after)
    };
    accounts.audited(record, act, tell).await
}

/// Gives a user one-time codes, all of them or none.
///
/// # Errors
/// Those of [`Accounts::generate_codes`].
pub async fn generate_codes(
    accounts: &Arc<Accounts>,
    by: &StaffIdentity,
    call: &Call,
    id: UserId,
    new: NewCodes,
) -> Result<CodeList, Reject> {
    let record = act_on(accounts, by, call, Action::CodesGenerated, id).with("count", new.count);
    let record = record.with("category", new.category.clone());
    let act = move |accounts: Arc<Accounts>| async move { accounts.generate_codes(id, new).await };
    accounts.audited(record, act, |list, record| record.with("list", list.id)).await
}

/// Gives every active user a list of one-time codes of his own; says how many users.
///
/// # Errors
/// Those of [`Accounts::generate_codes_for_all`].
pub async fn generate_codes_for_all(
    accounts: &Arc<Accounts>,
    by: &StaffIdentity,
    call: &Call,
    new: NewCodes,
) -> Result<u64, Reject> {
    let record = act_of(by, call, Action::CodesGenerated).with("count", new.count);
    let record = record.with("category", new.category.clone());
    let act = move |accounts: Arc<Accounts>| async move { accounts.generate_codes_for_all(new).await };
    accounts.audited(record, act, |users, record| record.with("users", *users)).await
}

/// Sets meters to their reset amounts; answers of how many users.
///
/// # Errors
/// Those of [`Accounts::reset_limits`].
pub async fn reset_limits(
    accounts: &Arc<Accounts>,
    by: &StaffIdentity,
    call: &Call,
    whose: Whose,
) -> Result<u64, Reject> {
    let record = match whose {
        Whose::One(id) => act_on(accounts, by, call, Action::LimitsReset, id),
        Whose::Everybodys => act_of(by, call, Action::LimitsReset),
    };
    let by = by.username.clone();
    let act = move |accounts: Arc<Accounts>| async move { accounts.reset_limits(whose, &by).await };
    accounts.audited(record, act, |users, record| record.with("users", *users)).await
}
