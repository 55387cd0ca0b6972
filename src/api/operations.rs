//! `/v1/admin-panel/backup` and `/v1/admin-panel/ledger/verify`: what the commands of a running server ask.
//!
//! Owns these paths. A backup goes piece by piece ([`crate::handler::stream`]).

use std::io::Write;

use axum::extract::State;
use axum::response::IntoResponse;

use super::admin::{SideState, act_of, staff};
use crate::actors::audit::Action;
use crate::backup::source::Trouble;
use crate::domain::session::StaffRole;
use crate::error::Reject;
use crate::handler::extract::Call;
use crate::handler::render::Answer;
use crate::handler::stream::{self, Pipe};

/// Every account's arithmetic, and who is off.
#[utoipa::path(get, path = "/v1/admin-panel/ledger/verify", tag = "system", security(("staff" = ["admin"])),
    responses((status = 200, description = "The report of `tollgate ledger verify`.", body = Object)))]
pub async fn verify_ledger(State(side): State<SideState>, call: Call) -> Answer {
    staff(&side, &call, StaffRole::Admin)?;
    let report = side.accounts.verify_ledger().await?;
    Ok(axum::Json(report).into_response())
}

/// The whole state as a stream. Whoever has it has everything, so it is for superadmins.
#[utoipa::path(get, path = "/v1/admin-panel/backup", tag = "system",
    params(("secrets" = Option<bool>, Query, description = "Whether what opens the state is in it; it is unless false.")),
    security(("staff" = ["superadmin"])),
    responses((status = 200, description = "A file for `tollgate restore`.", body = Vec<u8>, content_type = "application/octet-stream")))]
pub async fn backup(State(side): State<SideState>, call: Call) -> Answer {
    let by = staff(&side, &call, StaffRole::Superadmin)?;
    let source = side.backups.clone().ok_or(Reject::NotFound)?;
    let with_secrets = match call.query("secrets") {
        None | Some("true") => true,
        Some("false") => false,
        Some(_) => return Err(Reject::BadRequest("secrets must be \"true\" or \"false\"".into()).into()),
    };
    // Before the first byte: it is the act of taking everything that counts, not whether it was taken to its end.
    let record = act_of(&by, &call, Action::BackupCreated).with("with_secrets", with_secrets);
    side.accounts.audited(record, |_| async { Ok(()) }, |(), record| record).await?;
    tracing::info!(by = %by.username, with_secrets, "a backup begins");
    let take = move |out: &mut Pipe| {
        let taken = source.write(&mut *out, with_secrets).and_then(|totals| Ok((totals, out.flush()?)));
        match taken {
            Ok((totals, ())) => {
                tracing::info!(rows = totals.rows, files = totals.files, "the backup is done");
                Ok(())
            }
            Err(trouble) => {
                tracing::warn!(%trouble, "a backup was given up");
                Err(refusal(&trouble))
            }
        }
    };
    stream::answer("application/octet-stream", None, take).await
}

fn refusal(trouble: &Trouble) -> Reject {
    match trouble {
        Trouble::Busy => Reject::Conflict(trouble.to_string()),
        Trouble::Store(_) => Reject::StoreUnavailable,
        Trouble::Io(_) => Reject::Internal,
    }
}
