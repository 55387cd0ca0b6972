//! What staff takes away as a file, the same for every API. Each export is recorded before its first byte: it is the act of
//! taking that counts, not whether all was taken.

use std::sync::Arc;

use crate::accounts::Accounts;
use crate::accounts::codes::CodesFormat;
use crate::accounts::staff::StaffIdentity;
use crate::actors::audit::Action;
use crate::domain::ids::UserId;
use crate::handler::acts::act_on;
use crate::handler::extract::Call;
use crate::handler::render::Answer;
use crate::handler::stream;

/// A user's one-time codes.
///
/// # Errors
/// [`crate::error::Reject::NotFound`]; those of the trail and of the store.
pub async fn codes(
    accounts: &Arc<Accounts>,
    by: &StaffIdentity,
    call: &Call,
    user: UserId,
    format: CodesFormat,
) -> Answer {
    accounts.user(user)?;
    let record = act_on(accounts, by, call, Action::CodesExported, user);
    accounts.audited(record, |_| async { Ok(()) }, |(), record| record).await?;
    let (content_type, ending) = match format {
        CodesFormat::Csv => ("text/csv; charset=utf-8", "csv"),
        CodesFormat::Json => ("application/json", "json"),
    };
    let accounts = accounts.clone();
    let write = move |out: &mut stream::Pipe| {
        accounts.write_codes(user, format, out).map(drop).map_err(|trouble| stream::refusal(&trouble))
    };
    stream::answer(content_type, Some(format!("codes-{}.{ending}", user.0)), write).await
}
