//! `/v1/admin-panel/*`: what admins do, on the side port.
//!
//! Owns these paths and the role each of them asks for. The operator's token counts as a superadmin's.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::blocks;
use super::codes;
use super::credits;
use super::docs;
use super::document::{self, Document};
use super::health::{self, Readiness};
use super::hosts::KnownHosts;
use super::mfa;
use super::operations;
use super::public::{NewKey, days, profile_fields};
use super::shapes::{self, Amount, Listed, RuleShape, UsageDay, UserFull};
use super::side_shapes::{
    AdminMade, LogParams, NewAddressRule, NewAdmin, OneUser, PageParams, PanelHealth, Reason, RuleDone, StaffLoggedIn,
    StaffLogin, StatisticsShape, TrailHead, TrailParams, UserCounts, UserGone, UserParams, UserUpdate, WhitelistEntry,
};
use super::{staff, support, transfer};
use crate::accounts::Accounts;
use crate::accounts::addresses::{NewRule, StoredRule};
use crate::accounts::directory::{Sort, UserQuery};
use crate::accounts::passwords::Rule;
use crate::accounts::proof::Word;
use crate::accounts::staff::{NewStaff, StaffIdentity};
use crate::accounts::users::{AdminUpdate, MeterUpdate, Page};
use crate::actors::audit::{Action, ActionFilter, Query, Record, Severity, Target, UserFilter};
use crate::actors::scheduler::TaskState;
use crate::actors::writer::Filter;
use crate::backup::source::Source;
use crate::clock::UnixMillis;
use crate::domain::addresses::{RuleKind, parse_network};
use crate::domain::ids::UserId;
use crate::domain::session::StaffRole;
use crate::domain::user::{Role, Status, User, UserType, Verification};
use crate::error::Reject;
pub(super) use crate::handler::acts::act_of;
use crate::handler::extract::{Call, Fields};
use crate::handler::render::{self, Answer};
use crate::handler::{acts, entry, staff_acts};

/// What the side port serves from.
#[derive(Clone)]
pub struct SideState {
    pub accounts: Arc<Accounts>,
    /// How timed work is doing.
    pub tasks: Vec<Arc<TaskState>>,
    pub readiness: Readiness,
    /// What backups are taken of; without it there are none.
    pub backups: Option<Arc<Source>>,
    pub documents: Arc<Documents>,
}

/// The OpenAPI documents that the side port shows.
#[derive(Clone, Debug, Default)]
pub struct Documents {
    pub public: Document,
    pub side: Document,
}

pub(super) type Side = State<SideState>;

/// As long as the journal keeps a model's name.
const MAX_MODEL_BYTES: usize = 1024;

/// Every path of the side port, with its description: what is not in it does not exist.
fn paths() -> OpenApiRouter<SideState> {
    OpenApiRouter::new()
        .routes(routes!(login))
        .routes(routes!(create_admin))
        .routes(routes!(list_users))
        .routes(routes!(get_user, put_user, delete_user))
        .routes(routes!(restore_user))
        .routes(routes!(change_plan))
        .routes(routes!(verify_user))
        .routes(routes!(change_status))
        .routes(routes!(show_config))
        .routes(routes!(user_usage))
        .routes(routes!(daily_usage))
        .routes(routes!(suspend))
        .routes(routes!(activate))
        .routes(routes!(ban))
        .routes(routes!(regenerate_key))
        .routes(routes!(credits::adjust))
        .routes(routes!(statistics))
        .routes(routes!(message_logs))
        .routes(routes!(list_whitelist, add_to_whitelist))
        .routes(routes!(remove_from_whitelist))
        .routes(routes!(list_rules, add_rule))
        .routes(routes!(remove_rule))
        .routes(routes!(credits::reset_limits))
        .routes(routes!(operations::verify_ledger))
        .routes(routes!(operations::backup))
        .routes(routes!(security_logs))
        .routes(routes!(security_logs_head))
        .routes(routes!(panel_health))
        .routes(routes!(health::metrics))
        .routes(routes!(health::health))
        .routes(routes!(health::ready))
        .merge(staff::paths())
        .merge(support::paths())
        .merge(mfa::side_paths())
        .merge(codes::side_paths())
        .merge(blocks::paths())
        .merge(transfer::paths())
        .merge(docs::paths())
}

/// The router of the side port; `more` are other APIs'.
pub fn side_router(state: SideState, more: OpenApiRouter<SideState>, hosts: Arc<KnownHosts>) -> Router {
    let accounts = state.accounts.clone();
    super::finish(paths().merge(more).split_for_parts().0, state, accounts, Some(hosts))
}

/// The OpenAPI document of the side port; `more` are other APIs'.
pub fn side_document(more: OpenApi) -> Document {
    let mut all = paths().into_openapi();
    all.merge(more);
    document::side(all)
}

/// Who calls, if his role reaches `least`.
pub(super) fn staff(side: &SideState, call: &Call, least: StaffRole) -> Result<StaffIdentity, Reject> {
    acts::staff(&side.accounts, call, least)
}

/// The record of what staff does to a user.
pub(super) fn act_on(side: &SideState, who: &StaffIdentity, call: &Call, action: Action, user: UserId) -> Record {
    acts::act_on(&side.accounts, who, call, action, user)
}

/// The user as he is after an act on him.
fn on_user(user: &User, record: Record) -> Record {
    record.on(user)
}

pub(super) fn admin(side: &SideState, call: &Call) -> Result<StaffIdentity, Reject> {
    staff(side, call, StaffRole::Admin)
}

/// Opens a session of an admin.
#[utoipa::path(post, path = "/v1/admin-panel/login", tag = "staff", request_body = StaffLogin, security(()),
    responses((status = 200, body = StaffLoggedIn)))]
async fn login(State(side): Side, call: Call) -> Answer {
    let mut fields = call.fields()?;
    let (username, password) = (fields.text("username"), fields.password("password")?);
    let code = fields.optional_text("code");
    fields.done()?;
    let (staff, session) = entry::staff_log_in(&side.accounts, &call, username, password, code).await?;
    render::ok(StaffLoggedIn {
        success: true,
        message: "Login successful",
        admin: (&staff).into(),
        session: (&session).into(),
    })
}

/// Makes an admin; the very first member of the staff is a superadmin.
#[utoipa::path(post, path = "/v1/admin-panel/create-admin", tag = "staff", request_body = NewAdmin,
    security(("staff" = ["superadmin"])), responses((status = 200, body = AdminMade)))]
async fn create_admin(State(side): Side, call: Call) -> Answer {
    let by = staff(&side, &call, StaffRole::Superadmin)?;
    let mut fields = call.fields()?;
    let new = NewStaff {
        username: fields.text("username"),
        name: fields.text("name"),
        email: fields.text("email"),
        password: fields.password("password")?,
        // Before there is any staff, only the operator gets here, and makes the first superadmin.
        role: if side.accounts.has_staff()? { StaffRole::Admin } else { StaffRole::Superadmin },
        rule: Rule::Composition,
    };
    fields.done()?;
    let record = act_of(&by, &call, Action::StaffCreated).with("role", new.role.as_str());
    let act = move |accounts: Arc<Accounts>| async move { accounts.create_staff(new).await };
    let made = side.accounts.audited(record, act, |made, record| record.on(made)).await?;
    render::ok(AdminMade { success: true, message: "Admin created", admin: (&made).into() })
}

/// Users, as far as all conditions let them through.
#[utoipa::path(get, path = "/v1/admin-panel/users", tag = "users", params(PageParams, UserParams),
    security(("staff" = ["admin"])), responses((status = 200, body = Listed<UserFull>)))]
async fn list_users(State(side): Side, call: Call) -> Answer {
    admin(&side, &call)?;
    let (page, page_size) = call.page()?;
    let found = side.accounts.find_users(page, page_size, user_query(&call)?).await?;
    render::ok(Listed::of(found, |user| UserFull::from(&user)))
}

/// The conditions of a list of users, from a query string.
pub(super) fn user_query(call: &Call) -> Result<UserQuery, Reject> {
    let (sort, descending) =
        call.query_parsed("sort", &format!("must be one of {}", Sort::NAMES), Sort::parse)?.unwrap_or_default();
    Ok(UserQuery {
        search: call.query_text("search", 200)?.map(str::to_owned),
        names_only: false,
        status: call.query_parsed("status", "must be pending, active, suspended, banned or deleted", Status::parse)?,
        plan: call.query_text("plan", 64)?.map(str::to_owned),
        role: call.query_parsed("role", "must be guest, user or pro", Role::parse)?,
        verified: call.query_flag("verified")?,
        user_type: call.query_parsed("user_type", "must be Personal or Business", UserType::parse)?,
        has_mfa: call.query_flag("has_mfa")?,
        created_after: call.query_time("created_after")?,
        created_before: call.query_time("created_before")?,
        sort,
        descending,
    })
}

/// The user a path names, by number or by username.
pub(super) fn user_in_path(side: &SideState, call: &Call) -> Result<UserId, Reject> {
    acts::user_in_path(&side.accounts, call, "id")
}

/// A user with his meters, by number or by username.
#[utoipa::path(get, path = "/v1/admin-panel/users/{id}", tag = "users", security(("staff" = ["admin"])),
    responses((status = 200, body = OneUser)))]
async fn get_user(State(side): Side, call: Call) -> Answer {
    admin(&side, &call)?;
    let details = side.accounts.user_details(user_in_path(&side, &call)?)?;
    render::ok(OneUser { success: true, message: None, user: (&details).into() })
}

/// A user after a change.
fn changed(side: &SideState, message: &'static str, user: User) -> Answer {
    let details = side.accounts.details(user)?;
    render::ok(OneUser { success: true, message: Some(message), user: (&details).into() })
}

const VERIFICATIONS: &str =
    "must be \"unverified\", \"email_verified\", \"fully_verified\" or \"professional_verified\"";

pub(super) fn update_fields(fields: &mut Fields) -> AdminUpdate {
    let profile = profile_fields(fields);
    let verified = [fields.optional_flag("email_verified"), fields.optional_flag("is_verified")];
    let meter = |balance: &'static str| {
        move |inner: &mut Fields| MeterUpdate {
            balance: inner.optional_amount(balance),
            reset: inner.optional_amount("reset"),
        }
    };
    AdminUpdate {
        profile,
        email: fields.optional_text("email"),
        email_verified: verified.into_iter().flatten().next(),
        log_conversations: fields.optional_flag("log_conversations"),
        role: fields.optional_parsed("role", "must be \"guest\", \"user\" or \"pro\"", Role::parse),
        verification: fields.optional_parsed("verification", VERIFICATIONS, Verification::parse),
        level: fields.optional_text("level"),
        access_rtype: fields.optional_texts("access_rtype"),
        additional_notes: fields.optional_text("additional_notes"),
        plan: fields.optional_text("subscription_plan"),
        credits: fields.optional_object("credits", meter("main")),
        conversations: fields.optional_object("limits", meter("conversation_limit")),
    }
}

/// Changes a user; what is left out stays as it is.
#[utoipa::path(put, path = "/v1/admin-panel/users/{id}", tag = "users", request_body = UserUpdate, security(("staff" = ["admin"])),
    responses((status = 200, body = OneUser)))]
async fn put_user(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    let mut fields = call.fields()?;
    let (update, reason) = (update_fields(&mut fields), fields.optional_text("reason"));
    fields.done()?;
    let id = user_in_path(&side, &call)?;
    let user = staff_acts::update(&side.accounts, &by, &call, id, update, reason).await?;
    changed(&side, "User updated", user)
}

/// Deletes a user; his credentials are dead at once.
#[utoipa::path(delete, path = "/v1/admin-panel/users/{id}", tag = "users", params(("reason" = Option<String>, Query)),
    security(("staff" = ["superadmin"])), responses((status = 200, body = UserGone)))]
async fn delete_user(State(side): Side, call: Call) -> Answer {
    let by = staff(&side, &call, StaffRole::Superadmin)?;
    let reason = call.query("reason").map(str::to_owned);
    let id = user_in_path(&side, &call)?;
    let record = act_on(&side, &by, &call, Action::UserDeleted, id).with("reason", reason.clone());
    let act = move |accounts: Arc<Accounts>| async move { accounts.delete_user(id, reason).await };
    let user = side.accounts.audited(record, act, on_user).await?;
    tracing::info!(user = %user.id, by = %by.username, "user deleted");
    render::ok(UserGone { success: true, message: "User deleted", user_id: user.id.0 })
}

/// Makes one change of a user.
async fn change_one(side: SideState, call: Call, message: &'static str, update: AdminUpdate) -> Answer {
    let by = admin(&side, &call)?;
    let id = user_in_path(&side, &call)?;
    let user = staff_acts::update(&side.accounts, &by, &call, id, update, None).await?;
    changed(&side, message, user)
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
struct PlanChange {
    /// Or `subscription_plan`.
    #[schema(example = "professional")]
    plan: String,
}

/// Gives a user another plan.
#[utoipa::path(put, path = "/v1/admin-panel/users/{id}/plan", tag = "users", request_body = PlanChange,
    security(("staff" = ["admin"])), responses((status = 200, body = OneUser)))]
async fn change_plan(State(side): Side, call: Call) -> Answer {
    admin(&side, &call)?;
    let mut fields = call.fields()?;
    let other = fields.optional_text("subscription_plan");
    let plan = if let Some(plan) = other { plan } else { fields.text("plan") };
    fields.done()?;
    let update = AdminUpdate { plan: Some(plan), ..AdminUpdate::default() };
    change_one(side, call, "Plan changed", update).await
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
struct VerificationChange {
    /// `unverified`, `email_verified`, `fully_verified` or `professional_verified`; `email_verified` if left out.
    verification: Option<String>,
}

/// Says how far a user is verified.
#[utoipa::path(put, path = "/v1/admin-panel/users/{id}/verify", tag = "users", request_body = Option<VerificationChange>,
    security(("staff" = ["admin"])), responses((status = 200, body = OneUser)))]
async fn verify_user(State(side): Side, call: Call) -> Answer {
    admin(&side, &call)?;
    let mut fields = call.optional_fields()?;
    let level = fields.optional_parsed("verification", VERIFICATIONS, Verification::parse);
    fields.done()?;
    let update = AdminUpdate { verification: level.or(Some(Verification::EmailVerified)), ..AdminUpdate::default() };
    change_one(side, call, "Verification changed", update).await
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
struct StatusChange {
    /// `active`, `suspended` or `banned`.
    #[schema(example = "suspended")]
    status: String,
    reason: Option<String>,
}

/// Stops a user's calls, or lets him call again.
#[utoipa::path(put, path = "/v1/admin-panel/users/{id}/status", tag = "users", request_body = StatusChange,
    security(("staff" = ["admin"])), responses((status = 200, body = OneUser)))]
async fn change_status(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    let mut fields = call.fields()?;
    let settable =
        |text: &str| Status::parse(text).filter(|s| matches!(s, Status::Active | Status::Suspended | Status::Banned));
    let status = fields.parsed("status", "must be active, suspended or banned", settable);
    let reason = fields.optional_text("reason");
    fields.done()?;
    let id = user_in_path(&side, &call)?;
    let status = status.unwrap_or(Status::Active);
    let user = staff_acts::set_status(&side.accounts, &by, &call, id, status, reason).await?;
    changed(&side, "Status changed", user)
}

#[derive(Serialize, ToSchema)]
struct ConfigShown {
    #[schema(example = true)]
    success: bool,
    /// As the file has it, with defaults filled in. Secrets are masked.
    #[schema(value_type = Object)]
    config: Arc<serde_json::Value>,
}

/// The config in force.
#[utoipa::path(get, path = "/v1/admin-panel/config", tag = "operations", security(("staff" = ["admin"])),
    responses((status = 200, body = ConfigShown)))]
async fn show_config(State(side): Side, call: Call) -> Answer {
    admin(&side, &call)?;
    render::ok(ConfigShown { success: true, config: side.accounts.settings().effective.clone() })
}

/// Brings a deleted user back, as long as his data is kept. His keys and sessions stay dead.
#[utoipa::path(post, path = "/v1/admin-panel/users/{id}/restore", tag = "users", security(("staff" = ["superadmin"])),
    responses((status = 200, body = OneUser)))]
async fn restore_user(State(side): Side, call: Call) -> Answer {
    let by = staff(&side, &call, StaffRole::Superadmin)?;
    let id = user_in_path(&side, &call)?;
    let record = act_on(&side, &by, &call, Action::UserRestored, id);
    let act = move |accounts: Arc<Accounts>| async move { accounts.restore_user(id).await };
    let user = side.accounts.audited(record, act, on_user).await?;
    changed(&side, "User restored; a new API key has to be made", user)
}

#[derive(Serialize, ToSchema)]
struct UserUsage {
    #[schema(example = true)]
    success: bool,
    user_id: u64,
    today: BTreeMap<String, Amount>,
    month: BTreeMap<String, Amount>,
    total: BTreeMap<String, Amount>,
    /// Newest first.
    days: Vec<UsageDay>,
}

/// What a user has spent.
#[utoipa::path(get, path = "/v1/admin-panel/users/{id}/usage", tag = "users", security(("staff" = ["admin"])),
    params(("days" = Option<u32>, Query, description = "1 to 366, today included; 30 if left out")),
    responses((status = 200, body = UserUsage)))]
async fn user_usage(State(side): Side, call: Call) -> Answer {
    admin(&side, &call)?;
    let id = user_in_path(&side, &call)?;
    let used = side.accounts.used(id)?;
    let days = side.accounts.usage_history(id, days(&call)?)?;
    render::ok(UserUsage {
        success: true,
        user_id: id.0,
        today: shapes::amounts(&used.today),
        month: shapes::amounts(&used.month),
        total: shapes::amounts(&used.total),
        days: days.iter().map(UsageDay::from).collect(),
    })
}

#[derive(Serialize, ToSchema)]
struct DayReport {
    #[schema(example = "2026-01-15")]
    date: String,
    users: u64,
    /// Users who spent something.
    active_users: u64,
    used: BTreeMap<String, Amount>,
}

#[derive(Serialize, ToSchema)]
struct DailyUsage {
    #[schema(example = true)]
    success: bool,
    /// Whole days, newest first.
    days: Vec<DayReport>,
}

/// What all users together spent by the day.
#[utoipa::path(get, path = "/v1/admin-panel/usage", tag = "statistics", security(("staff" = ["admin"])),
    params(("days" = Option<u32>, Query, description = "1 to 366; 30 if left out")),
    responses((status = 200, body = DailyUsage)))]
async fn daily_usage(State(side): Side, call: Call) -> Answer {
    admin(&side, &call)?;
    let report = |(day, totals): (crate::accounts::usage::Day, crate::accounts::usage::DayTotals)| DayReport {
        date: day.date(),
        users: totals.users,
        active_users: totals.active_users,
        used: shapes::amounts(&totals.used),
    };
    let days = side.accounts.daily_totals(days(&call)?)?.into_iter().map(report).collect();
    render::ok(DailyUsage { success: true, days })
}

fn reason(call: &Call) -> Result<Option<String>, Reject> {
    let mut fields = call.optional_fields()?;
    let reason = fields.optional_text("reason");
    fields.done()?;
    Ok(reason)
}

/// Stops a user's calls until he is activated.
#[utoipa::path(post, path = "/v1/admin-panel/users/{id}/suspend", tag = "users", request_body = Option<Reason>, security(("staff" = ["admin"])),
    responses((status = 200, body = OneUser)))]
async fn suspend(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    let (id, reason) = (user_in_path(&side, &call)?, reason(&call)?);
    let user = staff_acts::set_status(&side.accounts, &by, &call, id, Status::Suspended, reason).await?;
    changed(&side, "User suspended", user)
}

/// Lets a user call again, or for the first time.
#[utoipa::path(post, path = "/v1/admin-panel/users/{id}/activate", tag = "users", security(("staff" = ["admin"])),
    responses((status = 200, body = OneUser)))]
async fn activate(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    let id = user_in_path(&side, &call)?;
    let user = staff_acts::set_status(&side.accounts, &by, &call, id, Status::Active, None).await?;
    changed(&side, "User activated", user)
}

/// As suspending, in another word: for good.
#[utoipa::path(post, path = "/v1/admin-panel/users/{id}/ban", tag = "users", request_body = Option<Reason>, security(("staff" = ["admin"])),
    responses((status = 200, body = OneUser)))]
async fn ban(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    let (id, reason) = (user_in_path(&side, &call)?, reason(&call)?);
    let user = staff_acts::set_status(&side.accounts, &by, &call, id, Status::Banned, reason).await?;
    changed(&side, "User banned", user)
}

/// Replaces a user's default key.
#[utoipa::path(post, path = "/v1/admin-panel/users/{id}/keys/regenerate", tag = "users", security(("staff" = ["admin"])),
    responses((status = 200, body = NewKey)))]
async fn regenerate_key(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    call.refuse_fields()?;
    let user = user_in_path(&side, &call)?;
    let record = act_on(&side, &by, &call, Action::KeyRegenerated, user);
    let act = move |accounts: Arc<Accounts>| async move { accounts.regenerate_key(user, Word::Staff).await };
    let key = side.accounts.audited(record, act, |_, record| record).await?;
    tracing::info!(%user, by = %by.username, "key regenerated");
    render::ok(NewKey { success: true, message: "API key regenerated", api_key: key.expose().to_owned() })
}

/// Counts over all users.
#[utoipa::path(get, path = "/v1/admin-panel/statistics", tag = "system", security(("staff" = ["admin"])),
    responses((status = 200, body = StatisticsShape)))]
async fn statistics(State(side): Side, call: Call) -> Answer {
    admin(&side, &call)?;
    let counts = side.accounts.statistics().await?;
    render::ok(StatisticsShape {
        success: true,
        users: UserCounts {
            total: counts.total,
            active: counts.active,
            pending: counts.pending,
            suspended: counts.suspended,
            banned: counts.banned,
            deleted: counts.deleted,
            verified: counts.verified,
            by_plan: counts.more.as_ref().map(|more| more.by_plan.clone()),
            by_verification: counts.more.as_ref().map(|more| more.by_verification.clone()),
            registered_1d: counts.more.as_ref().map(|more| more.registered[0]),
            registered_7d: counts.more.as_ref().map(|more| more.registered[1]),
            registered_30d: counts.more.as_ref().map(|more| more.registered[2]),
        },
        live_users: counts.live,
        holds_open: counts.holds_open,
        requests_in_flight: side.accounts.metrics().in_flight(),
    })
}

/// Which of a user's conversations are asked for.
pub(super) fn log_filter(call: &Call, id: UserId) -> Result<Filter, Reject> {
    let (from, to) = (call.query_time("from")?, call.query_time("to")?);
    if let (Some(from), Some(to)) = (from, to)
        && from >= to
    {
        return Err(Reject::Invalid(vec!["from: must be before to".into()]));
    }
    let model = call.query_text("model", MAX_MODEL_BYTES)?.map(str::to_owned);
    Ok(Filter { user_id: Some(id.0), model, from_ms: from.map(|time| time.0), to_ms: to.map(|time| time.0) })
}

/// A user's conversations, newest first.
#[utoipa::path(get, path = "/v1/admin-panel/message-logs/{user_id}", tag = "logs", params(PageParams, LogParams), security(("staff" = ["admin"])),
    responses((status = 200, body = Listed<serde_json::Value>)))]
async fn message_logs(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    let (page, page_size) = call.page()?;
    let id = UserId(call.number("user_id")?);
    let filter = log_filter(&call, id)?;
    let record =
        act_on(&side, &by, &call, Action::ConversationsRead, id).with("page", page).with("page_size", page_size);
    let record = ["model", "from", "to"].into_iter().fold(record, |record, name| record.with(name, call.query(name)));
    let act = move |accounts: Arc<Accounts>| async move { accounts.message_log(id, filter, page, page_size).await };
    let found = side.accounts.audited(record, act, |_, record| record).await?;
    render::raw_list(found)
}

fn rules(side: &SideState, call: &Call, kind: Option<RuleKind>) -> Answer {
    let (page, page_size) = call.page()?;
    let (items, total) = side.accounts.addresses().list(kind, page, page_size);
    render::ok(Listed::of(Page { items, page, page_size, total: total as u64 }, |rule| RuleShape::from(&rule)))
}

/// The addresses that are let in.
#[utoipa::path(get, path = "/v1/admin-panel/ip-whitelist", tag = "addresses", params(PageParams), security(("staff" = ["admin"])),
    responses((status = 200, body = Listed<RuleShape>)))]
async fn list_whitelist(State(side): Side, call: Call) -> Answer {
    admin(&side, &call)?;
    rules(&side, &call, Some(RuleKind::Allow))
}

/// All address rules.
#[utoipa::path(get, path = "/v1/admin-panel/ip-rules", tag = "addresses", params(PageParams), security(("staff" = ["admin"])),
    responses((status = 200, body = Listed<RuleShape>)))]
async fn list_rules(State(side): Side, call: Call) -> Answer {
    admin(&side, &call)?;
    rules(&side, &call, None)
}

const NETWORKS: &str = "must be an address or a network such as 192.168.1.0/24";

async fn make_rule(
    side: &SideState,
    call: &Call,
    by: StaffIdentity,
    mut fields: Fields,
    (network, is_documented): (&str, bool),
    kind: Option<RuleKind>,
) -> Answer {
    let network = fields.parsed(network, NETWORKS, parse_network);
    let description = fields.optional_text("description");
    let expires_at = fields.optional_time("expires_at");
    // The whitelist's call is an older system's, which ignores what it does not know.
    if is_documented {
        fields.done()?
    } else {
        fields.done_strictly()?
    }
    let (Some(network), Some(kind)) = (network, kind) else { return Err(Reject::Internal.into()) };
    let record = act_of(&by, call, Action::IpRuleCreated)
        .with("kind", kind.as_str())
        .with("network", network.to_string())
        .with("description", description.clone())
        .with("expires_at", expires_at.map(UnixMillis::rfc3339));
    let rule = NewRule { kind, network, description, expires_at, created_by: by.username };
    let act =
        move |accounts: Arc<Accounts>| async move { accounts.addresses().add(rule, accounts.clock().now()).await };
    let made = side.accounts.audited(record, act, |made, record| record.on(made)).await?;
    tracing::info!(rule = made.id, network = %made.network, kind = made.kind.as_str(), by = %made.created_by, "address rule made");
    render::ok(RuleDone { success: true, message: "Address rule added", entry: (&made).into() })
}

/// Lets an address or a network in.
#[utoipa::path(post, path = "/v1/admin-panel/ip-whitelist", tag = "addresses", request_body = WhitelistEntry, security(("staff" = ["admin"])),
    responses((status = 200, body = RuleDone)))]
async fn add_to_whitelist(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    make_rule(&side, &call, by, call.fields()?, ("ip_address", true), Some(RuleKind::Allow)).await
}

/// Lets an address or a network in, or keeps it out.
#[utoipa::path(post, path = "/v1/admin-panel/ip-rules", tag = "addresses", request_body = NewAddressRule, security(("staff" = ["admin"])),
    responses((status = 200, body = RuleDone)))]
async fn add_rule(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    let mut fields = call.fields()?;
    let kind = fields.parsed("kind", "must be \"allow\" or \"deny\"", RuleKind::parse);
    make_rule(&side, &call, by, fields, ("network", false), kind).await
}

async fn drop_rule(side: &SideState, call: &Call, by: StaffIdentity, kind: Option<RuleKind>) -> Answer {
    let id = call.number("id")?;
    let record = act_of(&by, call, Action::IpRuleRemoved).on(Target::new("ip_rule", Some(id), None));
    let act = move |accounts: Arc<Accounts>| async move { accounts.addresses().remove(id, kind).await };
    let tell = |gone: &StoredRule, record: Record| record.on(gone).with("kind", gone.kind.as_str());
    let gone = side.accounts.audited(record, act, tell).await?;
    tracing::info!(rule = gone.id, network = %gone.network, by = %by.username, "address rule removed");
    render::ok(RuleDone { success: true, message: "Address rule removed", entry: (&gone).into() })
}

/// Takes an address from the whitelist.
#[utoipa::path(delete, path = "/v1/admin-panel/ip-whitelist/{id}", tag = "addresses", security(("staff" = ["admin"])),
    responses((status = 200, body = RuleDone)))]
async fn remove_from_whitelist(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    drop_rule(&side, &call, by, Some(RuleKind::Allow)).await
}

/// Removes an address rule.
#[utoipa::path(delete, path = "/v1/admin-panel/ip-rules/{id}", tag = "addresses", security(("staff" = ["admin"])),
    responses((status = 200, body = RuleDone)))]
async fn remove_rule(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    drop_rule(&side, &call, by, None).await
}

const TIME: &str = "must be a time such as 2026-12-31T23:59:59Z";

/// The newest records of the audit trail, newest first.
#[utoipa::path(get, path = "/v1/admin-panel/security-logs", tag = "logs", params(PageParams, TrailParams), security(("staff" = ["admin"])),
    responses((status = 200, body = Listed<serde_json::Value>)))]
async fn security_logs(State(side): Side, call: Call) -> Answer {
    admin(&side, &call)?;
    let (page, page_size) = call.page()?;
    let query = Query {
        severity: call.query_parsed("severity", "must be info, warning, error or critical", Severity::parse)?,
        action: call.query_parsed(
            "action",
            "must be an act such as login.failed, or a kind of acts such as login",
            ActionFilter::parse,
        )?,
        user: call.query_parsed("user", "must be a number or a name", |text| Some(UserFilter::parse(text)))?,
        from: call.query_parsed("from", TIME, UnixMillis::parse_rfc3339)?,
        to: call.query_parsed("to", TIME, UnixMillis::parse_rfc3339)?,
    };
    let found = side.accounts.security_log(query, page, page_size).await?;
    render::raw_list(found)
}

/// How far the audit trail has come: for `audit verify` beside a running server, and to be noted elsewhere.
#[utoipa::path(get, path = "/v1/admin-panel/security-logs/head", tag = "logs", security(("staff" = ["admin"])),
    responses((status = 200, body = TrailHead)))]
async fn security_logs_head(State(side): Side, call: Call) -> Answer {
    admin(&side, &call)?;
    let head = side.accounts.audit().head();
    render::ok(TrailHead { success: true, sequence: head.sequence, mac: head.mac })
}

/// How the service is, for people.
#[utoipa::path(get, path = "/v1/admin-panel/health", tag = "system", security(("staff" = ["admin"])),
    responses((status = 200, body = PanelHealth)))]
async fn panel_health(State(side): Side, call: Call) -> Answer {
    admin(&side, &call)?;
    let ready = (side.readiness)();
    render::ok(PanelHealth {
        success: true,
        status: if ready.is_ok() { "healthy" } else { "degraded" },
        reason: ready.err(),
        version: env!("CARGO_PKG_VERSION"),
        requests_in_flight: side.accounts.metrics().in_flight(),
        addresses_blocked: side.accounts.blocks().blocked(),
    })
}
