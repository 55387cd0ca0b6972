//! The user management backend: `/api/v1/auth` and `/health` for users and their apps, `/api/v1/admin` for administrators on
//! the side port.
//!
//! Owns these paths. Tokens that its login answers last `compat.usermgmt_token_minutes`. `verify-key` and `log-message` are
//! judged, and charged, by the gateway before they get here.

mod admin;
pub mod health;
mod request;
mod response;

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::accounts::Accounts;
use crate::accounts::checks::Checked;
use crate::domain::session::SessionStyle;
use crate::error::Reject;
use crate::handler::entry::{self, Welcome};
use crate::handler::extract::Call;
use crate::handler::own_acts;
use crate::handler::render::{self, Answer};
use health::Vitals;
use request::{LogRequest, LoginRequest, ProfileRequest, RegisterRequest};
use response::{Logged, NewKey, OwnKey, Person, Registered, Token, Updated, ValidKey};

pub use admin::side_paths;

type Api = State<Arc<Accounts>>;

pub fn public_paths(vitals: Vitals) -> OpenApiRouter<Arc<Accounts>> {
    OpenApiRouter::new()
        .routes(routes!(register))
        .routes(routes!(login))
        .routes(routes!(profile, update_profile))
        .routes(routes!(api_key))
        .routes(routes!(regenerate_key))
        .routes(routes!(verify_key))
        .routes(routes!(log_message))
        .merge(health::paths(vitals))
}

fn style(accounts: &Accounts) -> SessionStyle {
    let minutes = accounts.settings().compat.usermgmt_token_minutes;
    SessionStyle { look: None, lasts: Some(minutes.saturating_mul(60)) }
}

/// Makes an account and its API key.
#[utoipa::path(post, path = "/api/v1/auth/register", tag = "usermgmt", request_body = RegisterRequest, security(()),
    responses((status = 200, body = Registered)))]
async fn register(State(accounts): Api, call: Call) -> Answer {
    let new = RegisterRequest::read(&call)?;
    let warnings = accounts.password_warnings(&new.password, "password", &[&new.username, &new.email]);
    render::ok(match entry::register(&accounts, &call, new, None).await? {
        Welcome::SeeYourMail => Registered::unsaid(warnings),
        Welcome::In(made) => Registered::new(&made, warnings),
    })
}

/// Opens a session.
#[utoipa::path(post, path = "/api/v1/auth/login", tag = "usermgmt", request_body = LoginRequest, security(()),
    responses((status = 200, body = Token)))]
async fn login(State(accounts): Api, call: Call) -> Answer {
    let request = LoginRequest::read(&call, style(&accounts))?;
    let (_, session) = entry::log_in(&accounts, &call, request).await?;
    let answer = render::ok(Token::new(&session, accounts.clock().now()))?;
    Ok(crate::handler::device::remember(answer, session.device.as_ref(), accounts.clock().now()))
}

/// The caller's account.
#[utoipa::path(get, path = "/api/v1/auth/profile", tag = "usermgmt", security(("session" = [])),
    responses((status = 200, body = Person)))]
async fn profile(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    render::ok(Person::new(&user, &accounts.meters(user.id)?))
}

/// Changes the caller's account; what is left out stays.
#[utoipa::path(put, path = "/api/v1/auth/profile", tag = "usermgmt", request_body = ProfileRequest,
    security(("session" = [])), responses((status = 200, body = Updated)))]
async fn update_profile(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let update = ProfileRequest::read(&call)?;
    let user = own_acts::update_profile(&accounts, &call, &user, update).await?;
    render::ok(Updated::new("Profile updated successfully", Person::new(&user, &accounts.meters(user.id)?)))
}

/// The caller's default key, sealed.
#[utoipa::path(get, path = "/api/v1/auth/api-key", tag = "usermgmt", security(("session" = [])),
    responses((status = 200, body = OwnKey)))]
async fn api_key(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    render::ok(OwnKey::from(accounts.default_key(user.id)?))
}

/// Replaces the caller's default key; the old one is dead at once.
#[utoipa::path(post, path = "/api/v1/auth/regenerate-key", tag = "usermgmt", security(("session" = [])),
    responses((status = 200, body = NewKey)))]
async fn regenerate_key(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let key = own_acts::regenerate_key(&accounts, &call, &user).await?;
    render::ok(NewKey::new(&key))
}

/// Looks at the user's API key that the request carries, and deducts one conversation (`verify_key.cost`).
#[utoipa::path(post, path = "/api/v1/auth/verify-key", tag = "usermgmt", security(("key" = [])),
    responses((status = 200, body = ValidKey)))]
async fn verify_key(State(accounts): Api, checked: Option<Extension<Checked>>, _: Call) -> Answer {
    let Extension(checked) = checked.ok_or(Reject::Unauthenticated)?;
    render::ok(ValidKey::new(&checked, &accounts.meters(checked.standing.id)?))
}

/// Hands in a conversation that an app held itself. Costs nothing.
#[utoipa::path(post, path = "/api/v1/auth/log-message", tag = "usermgmt", security(("key" = [])),
    request_body = LogRequest, responses((status = 200, body = Logged)))]
async fn log_message(State(accounts): Api, checked: Option<Extension<Checked>>, call: Call) -> Answer {
    let Extension(checked) = checked.ok_or(Reject::Unauthenticated)?;
    let conversation = LogRequest::read(&call)?;
    let kept = accounts.log_conversation(&checked, &conversation, call.address, call.request).await;
    render::ok(Logged::new(kept))
}
