//! One-time login codes: `/v1/admin-panel/users/{id}/codes…` for those who give them, `/v1/users/codes` for those who have
//! them.
//!
//! Owns these paths. Codes themselves are in exports alone; each export is recorded before its first byte.

use std::sync::Arc;

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::admin::{Side, SideState, act_on, staff, user_in_path};
use super::public::Api;
use super::shapes::Time;
use crate::accounts::Accounts;
use crate::accounts::codes::{CodeList, CodeStats, CodesFormat, NewCodes};
use crate::actors::audit::Action;
use crate::domain::session::StaffRole;
use crate::error::Reject;
use crate::handler::extract::Call;
use crate::handler::render::{self, Answer};
use crate::handler::{exports, staff_acts};

pub(super) fn paths() -> OpenApiRouter<Arc<Accounts>> {
    OpenApiRouter::new().routes(routes!(own_codes))
}

pub(super) fn side_paths() -> OpenApiRouter<SideState> {
    OpenApiRouter::new()
        .routes(routes!(list_codes, generate_codes, revoke_codes))
        .routes(routes!(user_stats))
        .routes(routes!(export_codes))
        .routes(routes!(revoke_list))
        .routes(routes!(generate_for_all))
        .routes(routes!(all_stats))
}

/// Counts of codes.
#[derive(Serialize, ToSchema)]
pub struct CodeCounts {
    pub total: u64,
    pub available: u64,
    pub used: u64,
    /// Not used, and too old.
    pub expired: u64,
    pub percent_used: f64,
}

impl From<CodeStats> for CodeCounts {
    fn from(stats: CodeStats) -> Self {
        Self {
            total: stats.total,
            available: stats.available(),
            used: stats.used,
            expired: stats.expired,
            percent_used: stats.percent_used(),
        }
    }
}

#[derive(Serialize, ToSchema)]
struct CodeCountsShown {
    #[schema(example = true)]
    success: bool,
    #[serde(flatten)]
    counts: CodeCounts,
}

#[derive(Serialize, ToSchema)]
struct AllCodeCounts {
    #[schema(example = true)]
    success: bool,
    #[serde(flatten)]
    counts: CodeCounts,
    /// Users who have any.
    users: u64,
}

/// A list of codes, without the codes.
#[derive(Serialize, ToSchema)]
struct CodeListShape {
    id: u64,
    count: u64,
    used: u64,
    /// Hexadecimal digits of its codes.
    length: u8,
    created_at: Time,
    expires_at: Option<Time>,
    category: Option<String>,
}

impl From<&CodeList> for CodeListShape {
    fn from(list: &CodeList) -> Self {
        Self {
            id: list.id,
            count: list.count,
            used: list.used,
            length: list.length.digits(),
            created_at: list.created_at.into(),
            expires_at: list.expires_at.map(Time::from),
            category: list.category.clone(),
        }
    }
}

#[derive(Serialize, ToSchema)]
struct CodeLists {
    #[schema(example = true)]
    success: bool,
    lists: Vec<CodeListShape>,
}

#[derive(Serialize, ToSchema)]
struct CodesMade {
    #[schema(example = true)]
    success: bool,
    message: &'static str,
    user_id: u64,
    list: CodeListShape,
}

#[derive(Serialize, ToSchema)]
struct CodesMadeForAll {
    #[schema(example = true)]
    success: bool,
    message: &'static str,
    users: u64,
    /// Of each.
    count: u64,
}

#[derive(Serialize, ToSchema)]
struct CodesGone {
    #[schema(example = true)]
    success: bool,
    message: &'static str,
    revoked: u64,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
struct CodesWanted {
    #[schema(example = 1000, minimum = 1)]
    count: u64,
    expires_at: Option<Time>,
    /// A word for what they are for, at most 100 characters.
    #[schema(example = "spring")]
    category: Option<String>,
}

fn wanted(call: &Call) -> Result<NewCodes, Reject> {
    let mut fields = call.fields()?;
    if !fields.has("count") {
        fields.missing("count");
    }
    let new = NewCodes {
        count: fields.optional_number("count").unwrap_or_default(),
        expires_at: fields.optional_time("expires_at"),
        category: fields.optional_text("category"),
    };
    fields.done_strictly()?;
    Ok(new)
}

/// How many one-time codes the caller has left.
#[utoipa::path(get, path = "/v1/users/codes", tag = "sessions", security(("session" = [])),
    responses((status = 200, body = CodeCountsShown)))]
async fn own_codes(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    render::ok(CodeCountsShown { success: true, counts: accounts.code_stats(user.id)?.into() })
}

/// A user's lists of one-time codes.
#[utoipa::path(get, path = "/v1/admin-panel/users/{id}/codes", tag = "codes", security(("staff" = ["admin"])),
    responses((status = 200, body = CodeLists)))]
async fn list_codes(State(side): Side, call: Call) -> Answer {
    staff(&side, &call, StaffRole::Admin)?;
    let id = user_in_path(&side, &call)?;
    side.accounts.user(id)?;
    let lists = side.accounts.codes_of(id)?.iter().map(CodeListShape::from).collect();
    render::ok(CodeLists { success: true, lists })
}

/// Gives a user one-time codes, all of them or none. They are in the export.
#[utoipa::path(post, path = "/v1/admin-panel/users/{id}/codes", tag = "codes", request_body = CodesWanted,
    security(("staff" = ["admin"])), responses((status = 200, body = CodesMade)))]
async fn generate_codes(State(side): Side, call: Call) -> Answer {
    let by = staff(&side, &call, StaffRole::Admin)?;
    let new = wanted(&call)?;
    let id = user_in_path(&side, &call)?;
    let list = staff_acts::generate_codes(&side.accounts, &by, &call, id, new).await?;
    render::ok(CodesMade { success: true, message: "Codes generated", user_id: id.0, list: (&list).into() })
}

/// Takes all one-time codes of a user away.
#[utoipa::path(delete, path = "/v1/admin-panel/users/{id}/codes", tag = "codes", security(("staff" = ["admin"])),
    responses((status = 200, body = CodesGone)))]
async fn revoke_codes(State(side): Side, call: Call) -> Answer {
    revoke(side, call, None).await
}

/// Takes one list of codes away.
#[utoipa::path(delete, path = "/v1/admin-panel/users/{id}/codes/{list}", tag = "codes", security(("staff" = ["admin"])),
    responses((status = 200, body = CodesGone)))]
async fn revoke_list(State(side): Side, call: Call) -> Answer {
    staff(&side, &call, StaffRole::Admin)?;
    let list = call.number("list")?;
    revoke(side, call, Some(list)).await
}

async fn revoke(side: SideState, call: Call, list: Option<u64>) -> Answer {
    let by = staff(&side, &call, StaffRole::Admin)?;
    let id = user_in_path(&side, &call)?;
    let record = act_on(&side, &by, &call, Action::CodesRevoked, id).with("list", list);
    let act = move |accounts: Arc<Accounts>| async move { accounts.revoke_codes(id, list).await };
    let revoked = side.accounts.audited(record, act, |count, record| record.with("count", *count)).await?;
    render::ok(CodesGone { success: true, message: "Codes revoked", revoked })
}

/// Counts of a user's one-time codes.
#[utoipa::path(get, path = "/v1/admin-panel/users/{id}/codes/stats", tag = "codes", security(("staff" = ["admin"])),
    responses((status = 200, body = CodeCountsShown)))]
async fn user_stats(State(side): Side, call: Call) -> Answer {
    staff(&side, &call, StaffRole::Admin)?;
    let id = user_in_path(&side, &call)?;
    side.accounts.user(id)?;
    render::ok(CodeCountsShown { success: true, counts: side.accounts.code_stats(id)?.into() })
}

/// A user's one-time codes. Whoever reads them can use them with the password.
#[utoipa::path(get, path = "/v1/admin-panel/users/{id}/codes/export", tag = "codes", security(("staff" = ["admin"])),
    params(("format" = Option<String>, Query, description = "`csv` or `json`; csv if left out")),
    responses((status = 200, description = "Lines of `code,generated_at,used,expires_at,category`, or a JSON list of the same.",
        content((String = "text/csv"), (Vec<Object> = "application/json")))))]
async fn export_codes(State(side): Side, call: Call) -> Answer {
    let by = staff(&side, &call, StaffRole::Admin)?;
    let format = call.query_parsed("format", "must be csv or json", CodesFormat::parse)?.unwrap_or(CodesFormat::Csv);
    let id = user_in_path(&side, &call)?;
    exports::codes(&side.accounts, &by, &call, id, format).await
}

/// Gives every active user a list of one-time codes of his own.
#[utoipa::path(post, path = "/v1/admin-panel/codes", tag = "codes", request_body = CodesWanted,
    security(("staff" = ["admin"])), responses((status = 200, body = CodesMadeForAll)))]
async fn generate_for_all(State(side): Side, call: Call) -> Answer {
    let by = staff(&side, &call, StaffRole::Admin)?;
    let new = wanted(&call)?;
    let count = new.count;
    let users = staff_acts::generate_codes_for_all(&side.accounts, &by, &call, new).await?;
    render::ok(CodesMadeForAll { success: true, message: "Codes generated", users, count })
}

/// Counts of everybody's one-time codes.
#[utoipa::path(get, path = "/v1/admin-panel/codes/stats", tag = "codes", security(("staff" = ["admin"])),
    responses((status = 200, body = AllCodeCounts)))]
async fn all_stats(State(side): Side, call: Call) -> Answer {
    staff(&side, &call, StaffRole::Admin)?;
    let all = side.accounts.all_code_stats().await?;
    render::ok(AllCodeCounts { success: true, counts: all.codes.into(), users: all.users })
}
