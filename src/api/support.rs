//! `/v1/support/*`: what support staff does, on the side port.
//!
//! Owns these paths. Each asks the one table of permissions ([`Permission`]); a field that a level may not change is refused
//! with its name, and what a level may not see is not in the answer.

use std::sync::Arc;

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::admin::{Side, SideState, act_of, act_on, log_filter, staff, update_fields, user_in_path};
use super::keys::Keys;
use super::shapes::{Done, Listed, StaffShape, Time, Tokens, UserDetails};
use super::side_shapes::{CreditsUpdate, LimitsUpdate, LogParams, PageParams, StaffLogin, UserParams, UserUpdate};
use crate::accounts::Accounts;
use crate::accounts::directory::Sort;
use crate::accounts::passwords::{Password, Rule};
use crate::accounts::proof::Word;
use crate::accounts::staff::{NewStaff, StaffIdentity};
use crate::accounts::users::AdminUpdate;
use crate::actors::audit::Action;
use crate::domain::ids::{CredentialId, UserId};
use crate::domain::permissions::Permission;
use crate::domain::session::StaffRole;
use crate::domain::user::User;
use crate::error::Reject;
use crate::handler::extract::Call;
use crate::handler::render::{self, Answer};
use crate::handler::{entry, staff_acts};

pub(super) fn paths() -> OpenApiRouter<SideState> {
    OpenApiRouter::new()
        .routes(routes!(login))
        .routes(routes!(logout))
        .routes(routes!(create))
        .routes(routes!(profile))
        .routes(routes!(permissions))
        .routes(routes!(list_users))
        .routes(routes!(get_user, put_user))
        .routes(routes!(reset_password))
        .routes(routes!(put_credits))
        .routes(routes!(put_plan))
        .routes(routes!(list_keys))
        .routes(routes!(regenerate_key))
        .routes(routes!(revoke_key))
        .routes(routes!(lift_proof_wait))
        .routes(routes!(message_logs))
}

/// Who calls, if his level has the permission.
fn allowed(side: &SideState, call: &Call, permission: Permission) -> Result<StaffIdentity, Reject> {
    staff(side, call, permission.least())
}

#[derive(Serialize, ToSchema)]
struct SupportLoggedIn {
    #[schema(example = true)]
    success: bool,
    message: &'static str,
    staff: StaffShape,
    session: Tokens,
}

/// Opens a session of the staff.
#[utoipa::path(post, path = "/v1/support/login", tag = "support", request_body = StaffLogin, security(()),
    responses((status = 200, body = SupportLoggedIn)))]
async fn login(State(side): Side, call: Call) -> Answer {
    let mut fields = call.fields()?;
    let (username, password) = (fields.text("username"), fields.password("password")?);
    let code = fields.optional_text("code");
    fields.done()?;
    let (staff, session) = entry::staff_log_in(&side.accounts, &call, username, password, code).await?;
    render::ok(SupportLoggedIn {
        success: true,
        message: "Login successful",
        staff: (&staff).into(),
        session: (&session).into(),
    })
}

/// Ends the session whose token the call carries.
#[utoipa::path(post, path = "/v1/support/logout", tag = "support", security(("staff" = ["new"])),
    responses((status = 200, body = Done)))]
async fn logout(State(side): Side, call: Call) -> Answer {
    let (who, _) = side.accounts.staff_in_setup(call.token()?, StaffRole::New)?;
    let token = call.token()?.text.to_owned();
    let record = act_of(&who, &call, Action::SessionEnded);
    let act = move |accounts: Arc<Accounts>| async move { accounts.staff_logout(&token).await };
    side.accounts.audited(record, act, |(), record| record).await?;
    render::ok(Done::new("Logged out"))
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "the handler reads its fields itself; this is their description")]
struct NewSupport {
    #[schema(example = "support1")]
    username: String,
    name: String,
    email: String,
    #[schema(value_type = String, format = Password)]
    password: Password,
    /// `new`, `support` or `advanced`.
    #[schema(example = "support")]
    staff_level: String,
}

#[derive(Serialize, ToSchema)]
struct SupportMade {
    #[schema(example = true)]
    success: bool,
    message: &'static str,
    staff: StaffShape,
}

/// Makes a member of the support staff.
#[utoipa::path(post, path = "/v1/support/create", tag = "support", request_body = NewSupport,
    security(("staff" = ["admin"])), responses((status = 200, body = SupportMade)))]
async fn create(State(side): Side, call: Call) -> Answer {
    let by = staff(&side, &call, StaffRole::Admin)?;
    let mut fields = call.fields()?;
    let levels = "must be \"new\", \"support\" or \"advanced\"";
    let level = fields.parsed("staff_level", levels, StaffRole::parse_level);
    let new = NewStaff {
        username: fields.text("username"),
        name: fields.text("name"),
        email: fields.text("email"),
        password: fields.password("password")?,
        role: level.unwrap_or(StaffRole::New),
        rule: Rule::Composition,
    };
    fields.done()?;
    let record = act_of(&by, &call, Action::StaffCreated).with("role", new.role.as_str());
    let act = move |accounts: Arc<Accounts>| async move { accounts.create_staff(new).await };
    let made = side.accounts.audited(record, act, |made, record| record.on(made)).await?;
    render::ok(SupportMade { success: true, message: "Support staff created", staff: (&made).into() })
}

#[derive(Serialize, ToSchema)]
struct OwnStaff {
    #[schema(example = true)]
    success: bool,
    staff: StaffShape,
}

/// The caller himself.
#[utoipa::path(get, path = "/v1/support/profile", tag = "support", security(("staff" = ["new"])),
    responses((status = 200, body = OwnStaff)))]
async fn profile(State(side): Side, call: Call) -> Answer {
    let who = staff(&side, &call, StaffRole::New)?;
    let member = side.accounts.staff(who.id.ok_or(Reject::NotFound)?)?;
    render::ok(OwnStaff { success: true, staff: (&member).into() })
}

#[derive(Serialize, ToSchema)]
struct Permissions {
    #[schema(example = true)]
    success: bool,
    #[schema(example = "support")]
    staff_level: &'static str,
    permissions: Vec<PermissionShape>,
}

#[derive(Serialize, ToSchema)]
struct PermissionShape {
    #[schema(example = "update_credits")]
    name: &'static str,
    allowed: bool,
}

/// What the caller may do: the table that every call asks.
#[utoipa::path(get, path = "/v1/support/permissions", tag = "support", security(("staff" = ["new"])),
    responses((status = 200, body = Permissions)))]
async fn permissions(State(side): Side, call: Call) -> Answer {
    let who = staff(&side, &call, StaffRole::New)?;
    let shape = |p: Permission| PermissionShape { name: p.as_str(), allowed: who.role.may(p) };
    let permissions = Permission::ALL.into_iter().map(shape).collect();
    render::ok(Permissions { success: true, staff_level: who.role.as_str(), permissions })
}

/// A user as support staff sees him.
#[derive(Serialize, ToSchema)]
struct SupportUser {
    id: u64,
    username: String,
    name: String,
    /// Masked below the level `support`.
    #[schema(example = "j***@example.com")]
    email: String,
    user_type: &'static str,
    subscription_plan: String,
    status: &'static str,
    is_verified: bool,
    verification: &'static str,
    role: &'static str,
    mfa_enabled: bool,
    /// Since when the account waits for its owner's proof; left out while it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    proof_wait_since: Option<Time>,
    created_at: Time,
    last_login: Option<Time>,
}

impl SupportUser {
    fn of(user: &User, role: StaffRole) -> Self {
        Self {
            id: user.id.0,
            username: user.username.to_string(),
            name: user.name.clone(),
            email: if role.may(Permission::ViewContact) { user.email.to_string() } else { masked(&user.email) },
            user_type: user.user_type.as_str(),
            subscription_plan: user.plan.to_string(),
            status: user.status.as_str(),
            is_verified: user.email_verified,
            verification: user.verification().as_str(),
            role: user.role.as_str(),
            mfa_enabled: user.mfa_enabled,
            proof_wait_since: user.proof_wait.as_ref().map(|wait| wait.since.into()),
            created_at: user.created_at.into(),
            last_login: user.last_login.map(Time::from),
        }
    }
}

fn masked(email: &str) -> String {
    match email.split_once('@') {
        Some((local, host)) => format!("{}***@{host}", local.chars().next().map_or(String::new(), String::from)),
        None => "***".into(),
    }
}

/// Users, as far as all conditions let them through.
#[utoipa::path(get, path = "/v1/support/users", tag = "support",
    params(PageParams, UserParams), security(("staff" = ["new"])),
    responses((status = 200, body = Listed<SupportUser>)))]
async fn list_users(State(side): Side, call: Call) -> Answer {
    let who = allowed(&side, &call, Permission::ViewUsers)?;
    let (page, page_size) = call.page()?;
    let mut query = super::admin::user_query(&call)?;
    query.names_only = !who.role.may(Permission::ViewContact);
    if query.names_only && query.sort == Sort::Email {
        return Err(Reject::Forbidden("Your level does not see email addresses, and cannot sort by them").into());
    }
    let found = side.accounts.find_users(page, page_size, query).await?;
    render::ok(Listed::of(found, |user| SupportUser::of(&user, who.role)))
}

#[derive(Serialize, ToSchema)]
struct SupportDetails {
    #[schema(example = true)]
    success: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'static str>,
    /// With meters, profile and texts from the level `support` on.
    user: SeenUser,
    /// What staff keeps about the user; from the level `advanced` on.
    #[serde(skip_serializing_if = "Option::is_none")]
    additional_notes: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum SeenUser {
    Limited(Box<SupportUser>),
    Whole(Box<UserDetails>),
}

fn seen(side: &SideState, role: StaffRole, user: User, message: Option<&'static str>) -> Answer {
    let notes = role.may(Permission::UpdateNotes).then(|| user.additional_notes.clone());
    let user = if role.may(Permission::ViewContact) {
        SeenUser::Whole(Box::new((&side.accounts.details(user)?).into()))
    } else {
        SeenUser::Limited(Box::new(SupportUser::of(&user, role)))
    };
    render::ok(SupportDetails { success: true, message, user, additional_notes: notes })
}

/// A user, by number or by username, as far as the caller's level sees him.
#[utoipa::path(get, path = "/v1/support/users/{id}", tag = "support", security(("staff" = ["new"])),
    responses((status = 200, body = SupportDetails)))]
async fn get_user(State(side): Side, call: Call) -> Answer {
    let who = allowed(&side, &call, Permission::ViewUsers)?;
    // Asking by address would say whose it is.
    if call.part("id").contains('@') && !who.role.may(Permission::ViewContact) {
        return Err(Reject::NotFound.into());
    }
    let user = side.accounts.user(user_in_path(&side, &call)?)?;
    seen(&side, who.role, user, None)
}

/// What an update touches, each with the permission it needs.
fn needed(update: &AdminUpdate) -> Vec<(&'static str, Permission)> {
    let profile = &update.profile;
    let touched = [
        ("email", update.email.is_some(), Permission::UpdateEmail),
        ("subscription_plan", update.plan.is_some(), Permission::UpdatePlan),
        ("credits", update.credits.is_some(), Permission::UpdateCredits),
        ("limits", update.conversations.is_some(), Permission::UpdateCredits),
        ("name", profile.name.is_some(), Permission::UpdateProfile),
        ("about_me", profile.about_me.is_some(), Permission::UpdateProfile),
        ("hobbies", profile.hobbies.is_some(), Permission::UpdateProfile),
        ("user_type", profile.user_type.is_some(), Permission::UpdateProfile),
        ("log_conversations", update.log_conversations.is_some(), Permission::UpdateProfile),
        ("level", update.level.is_some(), Permission::UpdateNotes),
        ("access_rtype", update.access_rtype.is_some(), Permission::UpdateNotes),
        ("additional_notes", update.additional_notes.is_some(), Permission::UpdateNotes),
        ("role", update.role.is_some(), Permission::UpdateStatus),
        ("verification", update.verification.is_some(), Permission::UpdateStatus),
        ("email_verified", update.email_verified.is_some(), Permission::UpdateStatus),
    ];
    let fields = profile.fields.iter().map(|(name, _)| (*name, Permission::UpdateProfile));
    touched.into_iter().filter(|(_, is, _)| *is).map(|(name, _, needs)| (name, needs)).chain(fields).collect()
}

async fn updated(
    side: SideState,
    call: Call,
    who: StaffIdentity,
    update: AdminUpdate,
    reason: Option<String>,
) -> Answer {
    let id = user_in_path(&side, &call)?;
    let user = staff_acts::update(&side.accounts, &who, &call, id, update, reason).await?;
    seen(&side, who.role, user, Some("User updated"))
}

/// Changes what the caller's level may change of a user; anything else in the call refuses all of it.
#[utoipa::path(put, path = "/v1/support/users/{id}", tag = "support", request_body = UserUpdate,
    security(("staff" = ["support"])), responses((status = 200, body = SupportDetails)))]
async fn put_user(State(side): Side, call: Call) -> Answer {
    let who = staff(&side, &call, StaffRole::Support)?;
    let mut fields = call.fields()?;
    let (update, reason) = (update_fields(&mut fields), fields.optional_text("reason"));
    let status = fields.optional_text("status");
    fields.done()?;
    let denied = needed(&update).into_iter().any(|(_, needs)| !who.role.may(needs));
    if denied || status.is_some() {
        let record = act_of(&who, &call, Action::AccessDenied).with("call", call.line.as_str());
        let reject = Reject::Forbidden("Your level does not allow you to change one of these fields");
        side.accounts.note_denial(record, &reject);
        return Err(reject.into());
    }
    updated(side, call, who, update, reason).await
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "as NewSupport")]
struct NewPassword {
    #[schema(value_type = String, format = Password)]
    new_password: Password,
}

/// Gives a user a password that they must change at their next login. All their sessions end, and the account waits for its
/// owner's proof before it shows or makes a key.
#[utoipa::path(post, path = "/v1/support/users/{id}/reset-password", tag = "support", request_body = NewPassword,
    security(("staff" = ["support"])), responses((status = 200, body = Done)))]
async fn reset_password(State(side): Side, call: Call) -> Answer {
    let who = allowed(&side, &call, Permission::ResetPassword)?;
    let id = user_in_path(&side, &call)?;
    let mut fields = call.fields()?;
    let password = fields.password("new_password")?;
    fields.done()?;
    let (record, by) = (act_on(&side, &who, &call, Action::PasswordChanged, id), who.id);
    let act = move |accounts: Arc<Accounts>| async move { accounts.set_password(id, password, by).await };
    side.accounts.audited(record, act, |user, record| record.on(user)).await?;
    render::ok(Done::new("Password reset; it must be changed at the next login"))
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "as NewSupport")]
struct CreditsRequest {
    credits: Option<CreditsUpdate>,
    limits: Option<LimitsUpdate>,
    reason: Option<String>,
}

/// Sets a user's credits and limits.
#[utoipa::path(put, path = "/v1/support/users/{id}/credits", tag = "support", request_body = CreditsRequest,
    security(("staff" = ["support"])), responses((status = 200, body = SupportDetails)))]
async fn put_credits(State(side): Side, call: Call) -> Answer {
    let who = allowed(&side, &call, Permission::UpdateCredits)?;
    let mut fields = call.fields()?;
    let (all, reason) = (update_fields(&mut fields), fields.optional_text("reason"));
    fields.done()?;
    if all.credits.is_none() && all.conversations.is_none() {
        return Err(Reject::Invalid(vec!["credits: is required, or limits".into()]).into());
    }
    let update = AdminUpdate { credits: all.credits, conversations: all.conversations, ..AdminUpdate::default() };
    updated(side, call, who, update, reason).await
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "as NewSupport")]
struct PlanRequest {
    /// Or `subscription_plan`.
    #[schema(example = "premium")]
    plan: Option<String>,
    subscription_plan: Option<String>,
    reason: Option<String>,
}

/// Puts a user on another plan.
#[utoipa::path(put, path = "/v1/support/users/{id}/plan", tag = "support", request_body = PlanRequest,
    security(("staff" = ["support"])), responses((status = 200, body = SupportDetails)))]
async fn put_plan(State(side): Side, call: Call) -> Answer {
    let who = allowed(&side, &call, Permission::UpdatePlan)?;
    let mut fields = call.fields()?;
    let plan = match fields.optional_text("plan") {
        Some(plan) => plan,
        None => fields.text("subscription_plan"),
    };
    let reason = fields.optional_text("reason");
    fields.done()?;
    updated(side, call, who, AdminUpdate { plan: Some(plan), ..AdminUpdate::default() }, reason).await
}

/// A user's keys, without their texts.
#[utoipa::path(get, path = "/v1/support/users/{id}/keys", tag = "support", security(("staff" = ["advanced"])),
    responses((status = 200, body = Keys)))]
async fn list_keys(State(side): Side, call: Call) -> Answer {
    allowed(&side, &call, Permission::ManageKeys)?;
    let id = user_in_path(&side, &call)?;
    side.accounts.user(id)?;
    render::ok(Keys::of(&side.accounts.keys(id)?))
}

#[derive(Serialize, ToSchema)]
struct KeyReplaced {
    #[schema(example = true)]
    success: bool,
    message: &'static str,
    /// The new key, for admins alone, and here alone. Its owner reads it with `POST /v1/users/api-key/reveal`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "pe-rqrFLve5ZM63ZL1XtREaiLrlrNreu20Y")]
    api_key: Option<String>,
}

/// Replaces a user's default key. Support staff does not see the new one.
#[utoipa::path(post, path = "/v1/support/users/{id}/keys/regenerate", tag = "support",
    security(("staff" = ["advanced"])), responses((status = 200, body = KeyReplaced)))]
async fn regenerate_key(State(side): Side, call: Call) -> Answer {
    let who = allowed(&side, &call, Permission::ManageKeys)?;
    call.refuse_fields()?;
    let id = user_in_path(&side, &call)?;
    let record = act_on(&side, &who, &call, Action::KeyRegenerated, id);
    let act = move |accounts: Arc<Accounts>| async move { accounts.regenerate_key(id, Word::Staff).await };
    let key = side.accounts.audited(record, act, |_, record| record).await?;
    let api_key = who.role.may(Permission::SeeNewKeys).then(|| key.expose().to_owned());
    render::ok(KeyReplaced { success: true, message: "API key regenerated", api_key })
}

/// Removes one of a user's named keys.
#[utoipa::path(delete, path = "/v1/support/users/{id}/keys/{key}", tag = "support",
    security(("staff" = ["advanced"])), responses((status = 200, body = Done)))]
async fn revoke_key(State(side): Side, call: Call) -> Answer {
    let who = allowed(&side, &call, Permission::ManageKeys)?;
    let (id, key) = (user_in_path(&side, &call)?, CredentialId(call.number("key")?));
    let record = act_on(&side, &who, &call, Action::KeyRevoked, id).with("key", key.0);
    let act = move |accounts: Arc<Accounts>| async move { accounts.revoke_key(id, key).await };
    side.accounts.audited(record, act, |_, record| record).await?;
    render::ok(Done::new("Key removed"))
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "as NewSupport")]
struct LiftRequest {
    /// Why it is known whose the account is.
    #[schema(example = "called back on the number in the contract")]
    reason: Option<String>,
}

/// Lets an account go on that waits for its owner's proof, since staff changed its password or email. Not for whoever made
/// one of these changes.
#[utoipa::path(post, path = "/v1/support/users/{id}/lift-proof-wait", tag = "support", request_body = Option<LiftRequest>,
    security(("staff" = ["advanced"])), responses((status = 200, body = Done)))]
async fn lift_proof_wait(State(side): Side, call: Call) -> Answer {
    let who = allowed(&side, &call, Permission::LiftProofWait)?;
    let id = user_in_path(&side, &call)?;
    let mut fields = call.optional_fields()?;
    let reason = fields.optional_text("reason");
    fields.done_strictly()?;
    let record = act_on(&side, &who, &call, Action::ProofWaitLifted, id).with("reason", reason);
    let act = move |accounts: Arc<Accounts>| async move { accounts.lift_proof_wait(id, &who).await };
    side.accounts.audited(record, act, |user, record| record.on(user)).await?;
    render::ok(Done::new("The account waits for no proof any more"))
}

/// A user's conversations, newest first.
#[utoipa::path(get, path = "/v1/support/message-logs/{user_id}", tag = "support", params(PageParams, LogParams),
    security(("staff" = ["advanced"])), responses((status = 200, body = Listed<serde_json::Value>)))]
async fn message_logs(State(side): Side, call: Call) -> Answer {
    let who = allowed(&side, &call, Permission::ViewMessages)?;
    let (page, page_size) = call.page()?;
    let id = UserId(call.number("user_id")?);
    let filter = log_filter(&call, id)?;
    let record =
        act_on(&side, &who, &call, Action::ConversationsRead, id).with("page", page).with("page_size", page_size);
    let record = ["model", "from", "to"].into_iter().fold(record, |record, name| record.with(name, call.query(name)));
    let act = move |accounts: Arc<Accounts>| async move { accounts.message_log(id, filter, page, page_size).await };
    render::raw_list(side.accounts.audited(record, act, |_, record| record).await?)
}
