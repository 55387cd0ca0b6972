//! `/v1/users/{sessions,password,email,account}`: what could cost a user his account.
//!
//! Owns these paths. Each asks for the password again; a token alone does none of it but end sessions.

use std::sync::Arc;

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::public::Api;
use super::shapes::{Done, Time};
use super::step_up::StepUp;
use crate::accounts::Accounts;
use crate::accounts::own::{Proof, SessionListed};
use crate::accounts::passwords::Password;
use crate::actors::audit::Action;
use crate::domain::ids::CredentialId;
use crate::error::Reject;
use crate::handler::acts::own_act;
use crate::handler::extract::Call;
use crate::handler::render::{self, Answer};

pub(super) fn paths() -> OpenApiRouter<Arc<Accounts>> {
    OpenApiRouter::new()
        .routes(routes!(sessions, revoke_sessions))
        .routes(routes!(revoke_session))
        .routes(routes!(change_password))
        .routes(routes!(change_email))
        .routes(routes!(delete_account))
}

/// An open session.
#[derive(Serialize, ToSchema)]
pub(super) struct SessionShape {
    id: u64,
    created_at: Time,
    /// When its present tokens were given.
    refreshed_at: Time,
    expires_at: Time,
    refresh_expires_at: Option<Time>,
    /// From where it was opened.
    ip_address: Option<String>,
    user_agent: Option<String>,
    /// `mobile`, `tablet`, `desktop`, `program` or `unknown`.
    device_type: &'static str,
    /// It is the one that asks.
    current: bool,
}

impl From<SessionListed> for SessionShape {
    fn from(listed: SessionListed) -> Self {
        Self {
            id: listed.id.0,
            created_at: listed.created_at.into(),
            refreshed_at: listed.refreshed_at.into(),
            expires_at: listed.expires_at.into(),
            refresh_expires_at: listed.refresh_expires_at.map(Time::from),
            ip_address: listed.address.map(|address| address.to_string()),
            user_agent: listed.user_agent,
            device_type: listed.device.as_str(),
            current: listed.current,
        }
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct Sessions {
    #[schema(example = true)]
    pub(super) success: bool,
    pub(super) sessions: Vec<SessionShape>,
}

/// The caller's open sessions, newest first.
#[utoipa::path(get, path = "/v1/users/sessions", tag = "sessions", security(("session" = [])),
    responses((status = 200, body = Sessions)))]
async fn sessions(State(accounts): Api, call: Call) -> Answer {
    let token = call.token()?;
    let user = accounts.user_of_session(token)?;
    let sessions = accounts.sessions(user.id, Some(token.text))?;
    render::ok(Sessions { success: true, sessions: sessions.into_iter().map(SessionShape::from).collect() })
}

#[derive(Serialize, ToSchema)]
pub(super) struct SessionsEnded {
    #[schema(example = true)]
    pub(super) success: bool,
    pub(super) message: &'static str,
    pub(super) ended: usize,
}

/// Ends all of the caller's sessions but the one that asks.
#[utoipa::path(delete, path = "/v1/users/sessions", tag = "sessions", security(("session" = [])),
    responses((status = 200, body = SessionsEnded)))]
async fn revoke_sessions(State(accounts): Api, call: Call) -> Answer {
    let token = call.token()?;
    let user = accounts.user_of_session(token)?;
    let token = token.text.to_owned();
    let record = own_act(&call, Action::SessionsRevoked, &user);
    let act = move |accounts: Arc<Accounts>| async move { accounts.revoke_sessions(user.id, Some(&token)).await };
    let ended = accounts.audited(record, act, |ended, record| record.with("sessions", *ended)).await?;
    render::ok(SessionsEnded { success: true, message: "Other sessions ended", ended })
}

/// Ends one of the caller's sessions.
#[utoipa::path(delete, path = "/v1/users/sessions/{id}", tag = "sessions", security(("session" = [])),
    responses((status = 200, body = Done)))]
async fn revoke_session(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let id = CredentialId(call.number("id")?);
    let record = own_act(&call, Action::SessionsRevoked, &user).with("session", id.0);
    let act = move |accounts: Arc<Accounts>| async move { accounts.revoke_session(user.id, id).await };
    accounts.audited(record, act, |(), record| record).await?;
    render::ok(Done::new("Session ended"))
}

#[derive(ToSchema)]
struct PasswordRequest {
    /// Of accounts that have one.
    #[schema(value_type = Option<String>, format = Password)]
    current_password: Proof,
    /// Of the second factor, or a recovery code; where one is on.
    #[schema(example = "123456")]
    code: Option<String>,
    /// At least 8 characters with a number, an uppercase and a lowercase letter.
    #[schema(value_type = String, format = Password)]
    new_password: Password,
}

impl PasswordRequest {
    fn read(call: &Call) -> Result<Self, Reject> {
        let mut fields = call.fields()?;
        let request = Self {
            current_password: fields.proof("current_password", call)?,
            code: fields.optional_text("code"),
            new_password: fields.password("new_password")?,
        };
        fields.done()?;
        Ok(request)
    }
}

/// Changes the caller's password; all his other sessions end.
#[utoipa::path(put, path = "/v1/users/password", tag = "account", request_body = PasswordRequest,
    security(("session" = [])), responses((status = 200, body = Done)))]
async fn change_password(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_to_change_password(call.token()?)?;
    let PasswordRequest { current_password, code, new_password } = PasswordRequest::read(&call)?;
    let warnings = accounts.password_warnings(&new_password, "new_password", &[&user.username, &user.email]);
    let (record, address) = (own_act(&call, Action::PasswordChanged, &user), call.address);
    let act = move |accounts: Arc<Accounts>| async move {
        accounts.change_password(user.id, current_password.with_code(code), new_password, address).await
    };
    accounts.audited(record, act, |_, record| record).await?;
    render::ok(Done::new("Password changed; other sessions have ended").warning(warnings))
}

#[derive(ToSchema)]
struct EmailRequest {
    #[schema(example = "john@example.org")]
    new_email: String,
    /// Of accounts that have one.
    #[schema(value_type = Option<String>, format = Password)]
    password: Proof,
    /// Of the second factor, or a recovery code; where one is on.
    #[schema(example = "123456")]
    code: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct EmailChanged {
    #[schema(example = true)]
    success: bool,
    message: &'static str,
    /// The one in force.
    email: String,
    is_verified: bool,
    /// The new address has been asked; until it answers the old one stays.
    pending: bool,
}

/// Changes the caller's email. Where mail is sent, the new address must confirm it first.
#[utoipa::path(put, path = "/v1/users/email", tag = "account", request_body = EmailRequest, security(("session" = [])),
    responses((status = 200, body = EmailChanged)))]
async fn change_email(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let mut fields = call.fields()?;
    let EmailRequest { new_email, password, code } = EmailRequest {
        new_email: fields.text("new_email"),
        password: fields.proof("password", &call)?,
        code: fields.optional_text("code"),
    };
    fields.done()?;
    let pending = accounts.confirms_addresses();
    let action = if pending { Action::LinkRequested } else { Action::EmailChanged };
    let (record, address) = (own_act(&call, action, &user), call.address);
    let act = move |accounts: Arc<Accounts>| async move {
        accounts.change_email(user.id, &new_email, password.with_code(code), address).await
    };
    let (user, _) = accounts
        .audited(record, act, |(user, old), record| record.with("from", old.as_str()).with("to", &*user.email))
        .await?;
    render::ok(EmailChanged {
        success: true,
        message: if pending { "Please confirm the new address by the link sent to it" } else { "Email changed" },
        email: user.email.to_string(),
        is_verified: user.email_verified,
        pending,
    })
}

/// Deletes the caller's account: sessions and keys are dead at once, and name and email are free.
#[utoipa::path(delete, path = "/v1/users/account", tag = "account", request_body = StepUp,
    security(("session" = [])), responses((status = 200, body = Done)))]
async fn delete_account(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let proof = StepUp::read(&call)?;
    let (record, address) = (own_act(&call, Action::UserDeleted, &user), call.address);
    let act = move |accounts: Arc<Accounts>| async move { accounts.delete_own(user.id, proof, address).await };
    accounts.audited(record, act, |_, record| record).await?;
    render::ok(Done::new("Account deleted"))
}
