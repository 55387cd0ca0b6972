//! `/v1/admin-panel/users/import` and `…/export`: users from elsewhere, and for elsewhere.
//!
//! Owns these paths.

use std::sync::Arc;

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::admin::{Side, SideState, act_of, staff};
use crate::accounts::Accounts;
use crate::accounts::transfer::{ImportHow, ImportReport, UsersFormat};
use crate::actors::audit::Action;
use crate::domain::session::StaffRole;
use crate::handler::extract::Call;
use crate::handler::render::{self, Answer};
use crate::handler::stream;

pub(super) fn paths() -> OpenApiRouter<SideState> {
    OpenApiRouter::new().routes(routes!(import_users)).routes(routes!(export_users))
}

#[derive(Serialize, ToSchema)]
struct LineErrors {
    /// From 1.
    line: u64,
    errors: Vec<String>,
}

#[derive(Serialize, ToSchema)]
struct LineNote {
    line: u64,
    note: String,
}

#[derive(Serialize, ToSchema)]
struct Imported {
    #[schema(example = true)]
    success: bool,
    dry_run: bool,
    imported: u64,
    updated: u64,
    /// There already.
    skipped: u64,
    failed: u64,
    errors: Vec<LineErrors>,
    /// What was read and is not taken over.
    notes: Vec<LineNote>,
}

impl Imported {
    fn of(report: ImportReport, dry_run: bool) -> Self {
        Self {
            success: report.failed == 0,
            dry_run,
            imported: report.imported,
            updated: report.updated,
            skipped: report.skipped,
            failed: report.failed,
            errors: report.errors.into_iter().map(|(line, errors)| LineErrors { line, errors }).collect(),
            notes: report.notes.into_iter().map(|(line, note)| LineNote { line, note }).collect(),
        }
    }
}

/// Imports users: at most 250 lines with a JSON object each. Lines that do not fit are told, and the others imported.
#[utoipa::path(post, path = "/v1/admin-panel/users/import", tag = "users",
    request_body(content = String, content_type = "text/plain", description = "A JSON object a line."),
    params(("dry_run" = Option<bool>, Query, description = "Say what would be done, and do nothing."),
        ("update" = Option<bool>, Query, description = "Change users who are there already.")),
    security(("staff" = ["superadmin"])), responses((status = 200, body = Imported)))]
async fn import_users(State(side): Side, call: Call) -> Answer {
    let by = staff(&side, &call, StaffRole::Superadmin)?;
    let how = ImportHow {
        dry_run: call.query_flag("dry_run")?.unwrap_or(false),
        update: call.query_flag("update")?.unwrap_or(false),
        by: by.id,
    };
    let lines: Vec<(u64, String)> = (1..).zip(call.text()?.lines().map(str::to_owned)).collect();
    let record = act_of(&by, &call, Action::UsersImported).with("dry_run", how.dry_run).with("update", how.update);
    let act = move |accounts: Arc<Accounts>| async move { accounts.import_users(&lines, how).await };
    let tell = |report: &ImportReport, record: crate::actors::audit::Record| {
        record.with("imported", report.imported).with("updated", report.updated).with("failed", report.failed)
    };
    let report = side.accounts.audited(record, act, tell).await?;
    render::ok(Imported::of(report, how.dry_run))
}

/// All users who are not deleted.
#[utoipa::path(get, path = "/v1/admin-panel/users/export", tag = "users",
    params(("format" = Option<String>, Query, description = "`jsonl` or `csv`; jsonl if left out"),
        ("hashes" = Option<bool>, Query, description = "Password hashes too; not in a table.")),
    security(("staff" = ["superadmin"])),
    responses((status = 200, description = "Lines that can be imported, or a table.",
        content((String = "application/x-ndjson"), (String = "text/csv")))))]
async fn export_users(State(side): Side, call: Call) -> Answer {
    let by = staff(&side, &call, StaffRole::Superadmin)?;
    let format = call.query_parsed("format", "must be jsonl or csv", UsersFormat::parse)?;
    let format = format.unwrap_or(UsersFormat::JsonLines);
    let hashes = call.query_flag("hashes")?.unwrap_or(false);
    // Before the first byte: it is the act of taking them that counts, not whether all were taken.
    let record = act_of(&by, &call, Action::UsersExported).with("with_hashes", hashes);
    side.accounts.audited(record, |_| async { Ok(()) }, |(), record| record).await?;
    let (content_type, ending) = match format {
        UsersFormat::JsonLines => ("application/x-ndjson", "jsonl"),
        UsersFormat::Csv => ("text/csv; charset=utf-8", "csv"),
    };
    let accounts = side.accounts.clone();
    let write = move |out: &mut stream::Pipe| {
        accounts.export_users(format, hashes, out).map(drop).map_err(|trouble| stream::refusal(&trouble))
    };
    stream::answer(content_type, Some(format!("users.{ending}")), write).await
}
