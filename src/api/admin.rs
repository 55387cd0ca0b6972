//! `/v1/admin-panel/*`: what admins do, on the side port.
//!
//! Owns these paths and the role each of them asks for. The operator's token counts as a superadmin's.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::{delete, get, post};
use serde_json::json;

use super::credits;
use super::extract::{Call, Fields};
use super::health::{self, Readiness};
use super::operations;
use super::public::profile_fields;
use super::render::{self, Answer};
use crate::accounts::Accounts;
use crate::accounts::addresses::{NewRule, StoredRule};
use crate::accounts::audit::changes;
use crate::accounts::staff::{NewStaff, StaffIdentity};
use crate::accounts::users::{AdminUpdate, MeterUpdate, Page};
use crate::actors::audit::{Action, ActionFilter, Actor, Query, Record, Severity, Target, UserFilter};
use crate::actors::writer::Filter;
use crate::backup::source::Source;
use crate::clock::UnixMillis;
use crate::domain::addresses::{RuleKind, parse_network};
use crate::domain::ids::UserId;
use crate::domain::session::StaffRole;
use crate::domain::user::User;
use crate::error::Reject;

/// What the side port serves from.
#[derive(Clone)]
pub struct SideState {
    pub accounts: Arc<Accounts>,
    pub readiness: Readiness,
    /// What backups are taken of; without it there are none.
    pub backups: Option<Arc<Source>>,
}

pub(super) type Side = State<SideState>;

const PANEL: &str = "/v1/admin-panel";
/// As long as the journal keeps a model's name.
const MAX_MODEL_BYTES: usize = 1024;

/// The router of the side port.
pub fn side_router(state: SideState) -> Router {
    let clock = state.accounts.clock().clone();
    let panel = Router::new()
        .route("/login", post(login))
        .route("/create-admin", post(create_admin))
        .route("/users", get(list_users))
        .route("/users/{id}", get(get_user).put(put_user).delete(delete_user))
        .route("/users/{id}/suspend", post(suspend))
        .route("/users/{id}/activate", post(activate))
        .route("/users/{id}/ban", post(ban))
        .route("/users/{id}/keys/regenerate", post(regenerate_key))
        .route("/users/{id}/credits", post(credits::adjust))
        .route("/statistics", get(statistics))
        .route("/message-logs/{user_id}", get(message_logs))
        .route("/ip-whitelist", get(list_whitelist).post(add_to_whitelist))
        .route("/ip-whitelist/{id}", delete(remove_from_whitelist))
        .route("/ip-rules", get(list_rules).post(add_rule))
        .route("/ip-rules/{id}", delete(remove_rule))
        .route("/reset-limits", post(credits::reset_limits))
        .route("/ledger/verify", get(operations::verify_ledger))
        .route("/backup", get(operations::backup))
        .route("/security-logs", get(security_logs))
        .route("/security-logs/head", get(security_logs_head))
        .route("/health", get(panel_health));
    let router = Router::new()
        .nest(PANEL, panel)
        .route("/metrics", get(health::metrics))
        .route("/health", get(health::health))
        .route("/ready", get(health::ready));
    super::finish(router, state, clock)
}

/// Who calls, if his role reaches `least`. Who does not get in is recorded.
pub(super) fn staff(side: &SideState, call: &Call, least: StaffRole) -> Result<StaffIdentity, Reject> {
    let denied = Record::of(Action::AccessDenied).from(call.origin()).with("call", call.line.as_str());
    let anyone = side.accounts.staff_of_token(call.token()?, StaffRole::New);
    let who = anyone.inspect_err(|reject| side.accounts.note_refusal(denied.clone().by(Actor::anonymous()), reject))?;
    if who.role < least {
        let reject = Reject::Forbidden("Your role does not allow this");
        side.accounts.note_denial(denied.by(&who), &reject);
        return Err(reject);
    }
    Ok(who)
}

/// The record of what staff does.
pub(super) fn act_of(who: &StaffIdentity, call: &Call, action: Action) -> Record {
    Record::of(action).by(who).from(call.origin())
}

/// The record of what staff does to a user.
pub(super) fn act_on(side: &SideState, who: &StaffIdentity, call: &Call, action: Action, user: UserId) -> Record {
    // Whom nobody finds is refused by the act itself; his number is recorded all the same.
    let target = side.accounts.user(user).map_or_else(|_| Target::user_id(user.0), |user| Target::from(&user));
    act_of(who, call, action).on(target)
}

/// The user as he is after an act on him.
fn on_user(user: &User, record: Record) -> Record {
    record.on(user)
}

pub(super) fn admin(side: &SideState, call: &Call) -> Result<StaffIdentity, Reject> {
    staff(side, call, StaffRole::Admin)
}

async fn login(State(side): Side, call: Call) -> Answer {
    let mut fields = call.fields()?;
    let (username, password) = (fields.text("username"), fields.password("password")?);
    fields.done()?;
    let record = Record::of(Action::LoginSucceeded).or(Action::LoginFailed).by(Actor::anonymous()).from(call.origin());
    let record = record.on_any(side.accounts.staff_login_target(&username)?);
    let address = call.address;
    let act = move |accounts: Arc<Accounts>| async move { accounts.staff_login(&username, password, address).await };
    let (staff, session) = side.accounts.audited(record, act, |(staff, _), record| record.by(staff).on(staff)).await?;
    render::ok(json!({
        "success": true,
        "message": "Login successful",
        "admin": render::staff(&staff),
        "session": render::session(&session),
    }))
}

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
    };
    fields.done()?;
    let record = act_of(&by, &call, Action::StaffCreated).with("role", new.role.as_str());
    let act = move |accounts: Arc<Accounts>| async move { accounts.create_staff(new).await };
    let made = side.accounts.audited(record, act, |made, record| record.on(made)).await?;
    render::ok(json!({"success": true, "message": "Admin created", "admin": render::staff(&made)}))
}

async fn list_users(State(side): Side, call: Call) -> Answer {
    admin(&side, &call)?;
    let (page, page_size) = call.page()?;
    let found = side.accounts.list_users(page, page_size, call.query("search")).await?;
    render::list(found, render::user_full)
}

/// The user a path names, by number or by username.
pub(super) fn user_in_path(side: &SideState, call: &Call) -> Result<UserId, Reject> {
    match call.number("id") {
        Ok(number) => Ok(UserId(number)),
        Err(_) => side.accounts.find_user(call.part("id"))?.ok_or(Reject::NotFound),
    }
}

async fn get_user(State(side): Side, call: Call) -> Answer {
    admin(&side, &call)?;
    let details = side.accounts.user_details(user_in_path(&side, &call)?)?;
    render::ok(json!({"success": true, "user": render::user_details(&details)}))
}

/// A user after a change.
fn changed(side: &SideState, message: &str, user: User) -> Answer {
    let details = side.accounts.details(user)?;
    render::ok(json!({"success": true, "message": message, "user": render::user_details(&details)}))
}

fn update_fields(fields: &mut Fields) -> AdminUpdate {
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
        plan: fields.optional_text("subscription_plan"),
        credits: fields.optional_object("credits", meter("main")),
        conversations: fields.optional_object("limits", meter("conversation_limit")),
    }
}

async fn put_user(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    let mut fields = call.fields()?;
    let (update, reason) = (update_fields(&mut fields), fields.optional_text("reason"));
    fields.done()?;
    let id = user_in_path(&side, &call)?;
    // A change of credits is found under its own name, whatever else the call changes.
    let action = match (&update.credits, &update.conversations, &update.plan) {
        (None, None, None) => Action::UserUpdated,
        (None, None, Some(_)) => Action::PlanChanged,
        _ => Action::CreditsAdjusted,
    };
    let record = act_on(&side, &by, &call, action, id).with("reason", reason);
    let act = move |accounts: Arc<Accounts>| async move { accounts.update_user_telling(id, update).await };
    let tell = |(user, list): &(User, Vec<_>), record| on_user(user, record).with("changes", changes(list));
    let (user, _) = side.accounts.audited(record, act, tell).await?;
    changed(&side, "User updated", user)
}

async fn delete_user(State(side): Side, call: Call) -> Answer {
    let by = staff(&side, &call, StaffRole::Superadmin)?;
    let reason = call.query("reason").map(str::to_owned);
    let id = user_in_path(&side, &call)?;
    let record = act_on(&side, &by, &call, Action::UserDeleted, id).with("reason", reason.clone());
    let act = move |accounts: Arc<Accounts>| async move { accounts.delete_user(id, reason).await };
    let user = side.accounts.audited(record, act, on_user).await?;
    tracing::info!(user = %user.id, by = %by.username, "user deleted");
    render::ok(json!({"success": true, "message": "User deleted", "user_id": user.id}))
}

fn reason(call: &Call) -> Result<Option<String>, Reject> {
    let mut fields = call.optional_fields()?;
    let reason = fields.optional_text("reason");
    fields.done()?;
    Ok(reason)
}

async fn suspend(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    let (id, reason) = (user_in_path(&side, &call)?, reason(&call)?);
    let record = act_on(&side, &by, &call, Action::UserSuspended, id).with("reason", reason.clone());
    let act = move |accounts: Arc<Accounts>| async move { accounts.suspend(id, reason).await };
    let user = side.accounts.audited(record, act, on_user).await?;
    tracing::info!(user = %user.id, by = %by.username, "user suspended");
    changed(&side, "User suspended", user)
}

async fn activate(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    let id = user_in_path(&side, &call)?;
    let record = act_on(&side, &by, &call, Action::UserActivated, id);
    let act = move |accounts: Arc<Accounts>| async move { accounts.activate(id).await };
    let user = side.accounts.audited(record, act, on_user).await?;
    tracing::info!(user = %user.id, by = %by.username, "user activated");
    changed(&side, "User activated", user)
}

async fn ban(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    let (id, reason) = (user_in_path(&side, &call)?, reason(&call)?);
    let record = act_on(&side, &by, &call, Action::UserBanned, id).with("reason", reason.clone());
    let act = move |accounts: Arc<Accounts>| async move { accounts.ban(id, reason).await };
    let user = side.accounts.audited(record, act, on_user).await?;
    tracing::info!(user = %user.id, by = %by.username, "user banned");
    changed(&side, "User banned", user)
}

async fn regenerate_key(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    let user = user_in_path(&side, &call)?;
    let record = act_on(&side, &by, &call, Action::KeyRegenerated, user);
    let act = move |accounts: Arc<Accounts>| async move { accounts.regenerate_key(user).await };
    let key = side.accounts.audited(record, act, |_, record| record).await?;
    tracing::info!(%user, by = %by.username, "key regenerated");
    render::ok(json!({"success": true, "message": "API key regenerated", "api_key": key.expose()}))
}

async fn statistics(State(side): Side, call: Call) -> Answer {
    admin(&side, &call)?;
    let counts = side.accounts.statistics().await?;
    render::ok(json!({
        "success": true,
        "users": {
            "total": counts.total,
            "active": counts.active,
            "pending": counts.pending,
            "suspended": counts.suspended,
            "banned": counts.banned,
            "deleted": counts.deleted,
            "verified": counts.verified,
        },
        "live_users": counts.live,
        "holds_open": counts.holds_open,
        "requests_in_flight": side.accounts.metrics().in_flight(),
    }))
}

async fn message_logs(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    let (page, page_size) = call.page()?;
    let (from, to) = (call.query_time("from")?, call.query_time("to")?);
    if let (Some(from), Some(to)) = (from, to)
        && from >= to
    {
        return Err(Reject::Invalid(vec!["from: must be before to".into()]).into());
    }
    let model = call.query_text("model", MAX_MODEL_BYTES)?.map(str::to_owned);
    let id = UserId(call.number("user_id")?);
    let record =
        act_on(&side, &by, &call, Action::ConversationsRead, id).with("page", page).with("page_size", page_size);
    let record = ["model", "from", "to"].into_iter().fold(record, |record, name| record.with(name, call.query(name)));
    let filter = Filter { user_id: Some(id.0), model, from_ms: from.map(|time| time.0), to_ms: to.map(|time| time.0) };
    let act = move |accounts: Arc<Accounts>| async move { accounts.message_log(id, filter, page, page_size).await };
    let found = side.accounts.audited(record, act, |_, record| record).await?;
    render::raw_list(found)
}

fn rules(side: &SideState, call: &Call, kind: Option<RuleKind>) -> Answer {
    let (page, page_size) = call.page()?;
    let (items, total) = side.accounts.addresses().list(kind, page, page_size);
    render::list(Page { items, page, page_size, total: total as u64 }, render::address_rule)
}

async fn list_whitelist(State(side): Side, call: Call) -> Answer {
    admin(&side, &call)?;
    rules(&side, &call, Some(RuleKind::Allow))
}

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
    network: &str,
    kind: Option<RuleKind>,
) -> Answer {
    let network = fields.parsed(network, NETWORKS, parse_network);
    let description = fields.optional_text("description");
    let expires_at = fields.optional_time("expires_at");
    fields.done()?;
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
    render::ok(json!({"success": true, "message": "Address rule added", "entry": render::address_rule(&made)}))
}

async fn add_to_whitelist(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    make_rule(&side, &call, by, call.fields()?, "ip_address", Some(RuleKind::Allow)).await
}

async fn add_rule(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    let mut fields = call.fields()?;
    let kind = fields.parsed("kind", "must be \"allow\" or \"deny\"", RuleKind::parse);
    make_rule(&side, &call, by, fields, "network", kind).await
}

async fn drop_rule(side: &SideState, call: &Call, by: StaffIdentity, kind: Option<RuleKind>) -> Answer {
    let id = call.number("id")?;
    let record = act_of(&by, call, Action::IpRuleRemoved).on(Target::new("ip_rule", Some(id), None));
    let act = move |accounts: Arc<Accounts>| async move { accounts.addresses().remove(id, kind).await };
    let tell = |gone: &StoredRule, record: Record| record.on(gone).with("kind", gone.kind.as_str());
    let gone = side.accounts.audited(record, act, tell).await?;
    tracing::info!(rule = gone.id, network = %gone.network, by = %by.username, "address rule removed");
    render::ok(json!({"success": true, "message": "Address rule removed", "entry": render::address_rule(&gone)}))
}

async fn remove_from_whitelist(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    drop_rule(&side, &call, by, Some(RuleKind::Allow)).await
}

async fn remove_rule(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    drop_rule(&side, &call, by, None).await
}

const TIME: &str = "must be a time such as 2026-12-31T23:59:59Z";

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

/// How far the trail has come: for `audit verify` beside a running server, and to be noted elsewhere.
async fn security_logs_head(State(side): Side, call: Call) -> Answer {
    admin(&side, &call)?;
    let head = side.accounts.audit().head();
    render::ok(json!({"success": true, "sequence": head.sequence, "mac": head.mac}))
}

async fn panel_health(State(side): Side, call: Call) -> Answer {
    admin(&side, &call)?;
    let ready = (side.readiness)();
    render::ok(json!({
        "success": true,
        "status": if ready.is_ok() { "healthy" } else { "degraded" },
        "reason": ready.err(),
        "version": env!("CARGO_PKG_VERSION"),
        "requests_in_flight": side.accounts.metrics().in_flight(),
        "addresses_blocked": side.accounts.blocks().blocked(),
    }))
}
