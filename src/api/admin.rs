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
use crate::accounts::addresses::NewRule;
use crate::accounts::staff::{NewStaff, StaffIdentity};
use crate::accounts::users::{AdminUpdate, MeterUpdate, Page};
use crate::backup::source::Source;
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
        .route("/health", get(panel_health));
    let router = Router::new()
        .nest(PANEL, panel)
        .route("/metrics", get(health::metrics))
        .route("/health", get(health::health))
        .route("/ready", get(health::ready));
    super::finish(router, state, clock)
}

/// Who calls, if his role reaches `least`.
fn staff(side: &SideState, call: &Call, least: StaffRole) -> Result<StaffIdentity, Reject> {
    side.accounts.staff_of_token(call.token()?, least)
}

pub(super) fn admin(side: &SideState, call: &Call) -> Result<StaffIdentity, Reject> {
    staff(side, call, StaffRole::Admin)
}

async fn login(State(side): Side, call: Call) -> Answer {
    let mut fields = call.fields()?;
    let (username, password) = (fields.text("username"), fields.password("password")?);
    fields.done()?;
    let (staff, session) = side.accounts.staff_login(&username, password, call.address).await?;
    render::ok(json!({
        "success": true,
        "message": "Login successful",
        "admin": render::staff(&staff),
        "session": render::session(&session),
    }))
}

async fn create_admin(State(side): Side, call: Call) -> Answer {
    staff(&side, &call, StaffRole::Superadmin)?;
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
    let made = side.accounts.create_staff(new).await?;
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
    admin(&side, &call)?;
    let mut fields = call.fields()?;
    let update = update_fields(&mut fields);
    fields.done()?;
    let user = side.accounts.update_user(user_in_path(&side, &call)?, update).await?;
    changed(&side, "User updated", user)
}

async fn delete_user(State(side): Side, call: Call) -> Answer {
    let by = staff(&side, &call, StaffRole::Superadmin)?;
    let reason = call.query("reason").map(str::to_owned);
    let user = side.accounts.delete_user(user_in_path(&side, &call)?, reason).await?;
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
    let user = side.accounts.suspend(user_in_path(&side, &call)?, reason(&call)?).await?;
    tracing::info!(user = %user.id, by = %by.username, "user suspended");
    changed(&side, "User suspended", user)
}

async fn activate(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    let user = side.accounts.activate(user_in_path(&side, &call)?).await?;
    tracing::info!(user = %user.id, by = %by.username, "user activated");
    changed(&side, "User activated", user)
}

async fn ban(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    let user = side.accounts.ban(user_in_path(&side, &call)?, reason(&call)?).await?;
    tracing::info!(user = %user.id, by = %by.username, "user banned");
    changed(&side, "User banned", user)
}

async fn regenerate_key(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    let user = user_in_path(&side, &call)?;
    let key = side.accounts.regenerate_key(user).await?;
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
    admin(&side, &call)?;
    let (page, page_size) = call.page()?;
    let found = side.accounts.message_log(UserId(call.number("user_id")?), page, page_size).await?;
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
    let rule = NewRule { kind, network, description, expires_at, created_by: by.username };
    let made = side.accounts.addresses().add(rule, side.accounts.clock().now()).await?;
    tracing::info!(rule = made.id, network = %made.network, kind = made.kind.as_str(), by = %made.created_by, "address rule made");
    render::ok(json!({"success": true, "message": "Address rule added", "entry": render::address_rule(&made)}))
}

async fn add_to_whitelist(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    make_rule(&side, by, call.fields()?, "ip_address", Some(RuleKind::Allow)).await
}

async fn add_rule(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    let mut fields = call.fields()?;
    let kind = fields.parsed("kind", "must be \"allow\" or \"deny\"", RuleKind::parse);
    make_rule(&side, by, fields, "network", kind).await
}

async fn drop_rule(side: &SideState, call: &Call, by: StaffIdentity, kind: Option<RuleKind>) -> Answer {
    let gone = side.accounts.addresses().remove(call.number("id")?, kind).await?;
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
