//! What a user does to his own account, each act with its record, the same for every API.

use std::sync::Arc;

use crate::accounts::Accounts;
use crate::accounts::audit::{Change, changes};
use crate::accounts::keys::KeyView;
use crate::accounts::proof::Word;
use crate::accounts::secrets::Minted;
use crate::accounts::users::ProfileUpdate;
use crate::actors::audit::{Action, Record};
use crate::domain::user::User;
use crate::error::Reject;
use crate::handler::acts::own_act;
use crate::handler::extract::Call;

/// Changes what a user tells of himself.
///
/// # Errors
/// Those of [`Accounts::update_profile`].
pub async fn update_profile(
    accounts: &Arc<Accounts>,
    call: &Call,
    user: &User,
    update: ProfileUpdate,
) -> Result<User, Reject> {
    let (record, id) = (own_act(call, Action::ProfileUpdated, user), user.id);
    let act = move |accounts: Arc<Accounts>| async move { accounts.update_profile(id, update).await };
    let tell = |(_, list): &(User, Vec<Change>), record: Record| record.with("changes", changes(list));
    Ok(accounts.audited(record, act, tell).await?.0)
}

/// Replaces a user's default key.
///
/// # Errors
/// Those of [`Accounts::regenerate_key`].
pub async fn regenerate_key(accounts: &Arc<Accounts>, call: &Call, user: &User) -> Result<Minted, Reject> {
    let (record, id) = (own_act(call, Action::KeyRegenerated, user), user.id);
    let act = move |accounts: Arc<Accounts>| async move { accounts.regenerate_key(id, Word::Owner).await };
    accounts.audited(record, act, |_, record| record).await
}

/// Shows a user his default key once more, on the word of his session alone.
///
/// # Errors
/// [`Reject::Conflict`] where keys are kept as hashes; [`Reject::Forbidden`] for who has a second factor, which there is no
/// field for.
pub async fn show_key(accounts: &Arc<Accounts>, call: &Call, user: &User) -> Result<(KeyView, Minted), Reject> {
    let (record, id, has_factor) = (own_act(call, Action::KeyRevealed, user), user.id, user.mfa_enabled);
    let act = move |accounts: Arc<Accounts>| async move {
        if has_factor {
            return Err(Reject::Forbidden(
                "This account has a second factor: POST /v1/users/api-key/reveal shows the key for password and code",
            ));
        }
        accounts.reveal_key(id, None)
    };
    let shown = accounts.audited(record, act, |_, record| record).await;
    shown.map_err(|reject| match reject {
        Reject::NotFound => Reject::Conflict(
            "Keys are kept as hashes here and cannot be shown again; POST /v1/users/api-key/regenerate makes a new one"
                .into(),
        ),
        other => other,
    })
}
