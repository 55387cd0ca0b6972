//! `/v1/users/*`: what users do for themselves, on the public listener.
//!
//! Owns these paths. Knows a caller by his session token alone: an API key calls upstreams, it does not manage accounts.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};
use serde_json::json;

use super::extract::{Call, Fields};
use super::render::{self, Answer};
use crate::accounts::Accounts;
use crate::accounts::audit::changes;
use crate::accounts::keys::DEFAULT_KEY;
use crate::accounts::sessions::LoginRequest;
use crate::accounts::users::{ProfileUpdate, Registration};
use crate::actors::audit::{Action, Actor, Record};
use crate::domain::session::Principal;
use crate::domain::user::{User, UserType};
use crate::error::Reject;

type Api = State<Arc<Accounts>>;

/// The router of the public listener's local paths.
pub fn public_router(accounts: Arc<Accounts>) -> Router {
    let clock = accounts.clock().clone();
    let router = Router::new()
        .route("/v1/users/register", post(register))
        .route("/v1/users/login", post(login))
        .route("/v1/users/refresh", post(refresh))
        .route("/v1/users/logout", post(logout))
        .route("/v1/users/profile", get(profile).put(update_profile))
        .route("/v1/users/api-key", get(api_key))
        .route("/v1/users/api-key/regenerate", post(regenerate_key))
        .route("/v1/users/usage", get(usage))
        .route("/v1/users/quota", get(quota));
    super::finish(router, accounts, clock)
}

/// The record of what somebody does before we know him.
fn stranger(call: &Call, action: Action) -> Record {
    Record::of(action).by(Actor::anonymous()).from(call.origin())
}

/// The record of what a user does to himself.
fn own_act(call: &Call, action: Action, user: &User) -> Record {
    Record::of(action).by(user).from(call.origin()).on(user)
}

const USER_TYPES: &str = "must be \"Personal\" or \"Business\"";

async fn register(State(accounts): Api, call: Call) -> Answer {
    let mut fields = call.fields()?;
    let new = Registration {
        username: fields.text("username"),
        name: fields.text("name"),
        email: fields.text("email"),
        password: fields.password("password")?,
        user_type: fields.optional_parsed("user_type", USER_TYPES, UserType::parse).unwrap_or_default(),
        about_me: fields.optional_text("about_me").unwrap_or_default(),
        hobbies: fields.optional_text("hobbies").unwrap_or_default(),
    };
    fields.done()?;
    let record = stranger(&call, Action::UserRegistered);
    let act = move |accounts: Arc<Accounts>| async move { accounts.register(new).await };
    let made = accounts.audited(record, act, |made, record| record.by(&made.user).on(&made.user)).await?;
    render::ok(json!({
        "success": true,
        "message": "User registered successfully",
        "user_id": made.user.id,
        "username": &*made.user.username,
        "email": &*made.user.email,
        "api_key": made.api_key.expose(),
        "verification_required": made.verification_required,
    }))
}

async fn login(State(accounts): Api, call: Call) -> Answer {
    let mut fields = call.fields()?;
    let request = LoginRequest {
        identifier: match fields.optional_text("username") {
            Some(username) => username,
            None => fields.text("email"),
        },
        password: fields.password("password")?,
        address: call.address,
        user_agent: call.user_agent.clone(),
    };
    fields.done()?;
    let record = stranger(&call, Action::LoginSucceeded).or(Action::LoginFailed);
    let record = record.on_any(accounts.login_target(&request.identifier)?);
    let act = move |accounts: Arc<Accounts>| async move { accounts.login(request).await };
    let (user, session) = accounts.audited(record, act, |(user, _), record| record.by(user).on(user)).await?;
    render::ok(json!({
        "success": true,
        "message": "Login successful",
        "user": render::user_brief(&user),
        "session": render::session(&session),
    }))
}

async fn refresh(State(accounts): Api, call: Call) -> Answer {
    let mut fields = call.fields()?;
    let token = fields.text("refresh_token");
    fields.done()?;
    let record = stranger(&call, Action::SessionRefreshed);
    let act = move |accounts: Arc<Accounts>| async move {
        let session = accounts.refresh(&token).await?;
        let Principal::User(id) = session.principal else { return Err(Reject::Unauthenticated) };
        Ok((accounts.user(id)?, session))
    };
    let (_, session) = accounts.audited(record, act, |(user, _), record| record.by(user).on(user)).await?;
    render::ok(json!({
        "success": true,
        "message": "Session refreshed",
        "session": render::session(&session),
    }))
}

async fn logout(State(accounts): Api, call: Call) -> Answer {
    let (record, token) = (stranger(&call, Action::SessionEnded), call.token()?.to_owned());
    let act = move |accounts: Arc<Accounts>| async move { accounts.user(accounts.logout(&token).await?) };
    accounts.audited(record, act, |user, record| record.by(user).on(user)).await?;
    render::ok(json!({"success": true, "message": "Logged out"}))
}

async fn profile(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let details = accounts.details(user)?;
    render::ok(json!({"success": true, "user": render::user_details(&details)}))
}

/// The fields that a user and staff may change alike.
pub(super) fn profile_fields(fields: &mut Fields) -> ProfileUpdate {
    ProfileUpdate {
        name: fields.optional_text("name"),
        about_me: fields.optional_text("about_me"),
        hobbies: fields.optional_text("hobbies"),
        user_type: fields.optional_parsed("user_type", USER_TYPES, UserType::parse),
    }
}

async fn update_profile(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let mut fields = call.fields()?;
    let update = profile_fields(&mut fields);
    fields.done()?;
    let record = own_act(&call, Action::ProfileUpdated, &user);
    let act = move |accounts: Arc<Accounts>| async move { accounts.update_profile(user.id, update).await };
    let (user, _) = accounts.audited(record, act, |(_, list), record| record.with("changes", changes(list))).await?;
    let details = accounts.details(user)?;
    render::ok(json!({"success": true, "message": "Profile updated", "user": render::user_details(&details)}))
}

async fn api_key(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let keys = accounts.keys(user.id)?;
    let key = keys.iter().find(|key| key.name == DEFAULT_KEY).ok_or(Reject::NotFound)?;
    // Only a MAC of it is kept, so there is nothing to show but this.
    render::ok(json!({
        "success": true,
        "key": null,
        "masked": key.masked,
        "created_at": key.created_at.rfc3339(),
    }))
}

async fn regenerate_key(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let record = own_act(&call, Action::KeyRegenerated, &user);
    let act = move |accounts: Arc<Accounts>| async move { accounts.regenerate_key(user.id).await };
    let key = accounts.audited(record, act, |_, record| record).await?;
    render::ok(json!({"success": true, "message": "API key regenerated", "api_key": key.expose()}))
}

async fn usage(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let meters = accounts.meters(user.id)?;
    render::ok(json!({"success": true, "subscription_plan": &*user.plan, "meters": render::meters(&meters)}))
}

async fn quota(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let meters = accounts.meters(user.id)?;
    render::ok(json!({"success": true, "subscription_plan": &*user.plan, "quota": render::quotas(&meters)}))
}
