//! Clisonix: `/api/users` for users, `/api/admin` for administrators on the side port.
//!
//! Owns these paths. Tokens that its login answers begin with `at_`, keys that its registration answers with `clx_`; those of
//! every other dialect work here too, and these work there.

mod admin;
mod request;
mod response;

use std::sync::Arc;

use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::accounts::Accounts;
use crate::accounts::guesses::Shown;
use crate::domain::session::{SessionStyle, TokenLook};
use crate::handler::entry::{self, Welcome};
use crate::handler::extract::Call;
use crate::handler::own_acts;
use crate::handler::render::{self, Answer};
use request::{KeyRequest, LoginRequest, ProfileRequest, RegisterRequest};
use response::{Account, Available, Done, LoggedIn, OwnKey, Profile, Registered, Usage, ValidKey, ValidToken};

pub use admin::side_paths;

type Api = State<Arc<Accounts>>;

const STYLE: SessionStyle = SessionStyle { look: Some(TokenLook::Clisonix), lasts: None };

pub fn public_paths() -> OpenApiRouter<Arc<Accounts>> {
    OpenApiRouter::new()
        .routes(routes!(register))
        .routes(routes!(login))
        .routes(routes!(logout))
        .routes(routes!(validate_token))
        .routes(routes!(validate_api_key))
        .routes(routes!(me))
        .routes(routes!(profile, update_profile))
        .routes(routes!(usage))
        .routes(routes!(api_key))
        .routes(routes!(check_email))
        .routes(routes!(check_username))
}

/// Makes an account and its API key.
#[utoipa::path(post, path = "/api/users/register", tag = "clisonix", request_body = RegisterRequest, security(()),
    responses((status = 200, body = Registered)))]
async fn register(State(accounts): Api, call: Call) -> Answer {
    let new = RegisterRequest::read(&call)?;
    let warnings = accounts.password_warnings(&new.password, "password", &[&new.username, &new.email]);
    render::ok(match entry::register(&accounts, &call, new, None).await? {
        Welcome::SeeYourMail => Registered::unsaid(warnings),
        Welcome::In(made) => Registered::new(&made, warnings),
    })
}

/// Opens a session, by email or username.
#[utoipa::path(post, path = "/api/users/login", tag = "clisonix", request_body = LoginRequest, security(()),
    responses((status = 200, body = LoggedIn)))]
async fn login(State(accounts): Api, call: Call) -> Answer {
    let request = LoginRequest::read(&call)?;
    let (user, session) = entry::log_in(&accounts, &call, request).await?;
    let answer = render::ok(LoggedIn::new(&user, &session))?;
    Ok(crate::handler::device::remember(answer, session.device.as_ref(), accounts.clock().now()))
}

/// Ends the session whose token the call carries.
#[utoipa::path(post, path = "/api/users/logout", tag = "clisonix", security(("session" = [])),
    responses((status = 200, body = Done)))]
async fn logout(State(accounts): Api, call: Call) -> Answer {
    entry::log_out(&accounts, &call, call.token()?).await?;
    render::ok(Done::new("Logged out"))
}

/// Whose session token the call carries.
#[utoipa::path(post, path = "/api/users/validate-token", tag = "clisonix", security(("session" = [])),
    responses((status = 200, body = ValidToken)))]
async fn validate_token(State(accounts): Api, call: Call) -> Answer {
    let token = call.token()?;
    let user = accounts.user_of_session(token)?;
    let session = accounts.sessions(user.id, Some(token.text))?.into_iter().find(|session| session.current);
    render::ok(ValidToken::new(&user, session.map(|session| session.expires_at)))
}

/// Whose API key this is, in a header or in the body. Costs nothing.
#[utoipa::path(post, path = "/api/users/validate-api-key", tag = "clisonix", security(("key" = []), ()),
    request_body = Option<KeyRequest>, responses((status = 200, body = ValidKey)))]
async fn validate_api_key(State(accounts): Api, call: Call) -> Answer {
    let key = KeyRequest::read(&call)?;
    let user = accounts.user_of_key(Shown::new(&key, call.address))?;
    render::ok(ValidKey::from(&user))
}

/// The caller's account.
#[utoipa::path(get, path = "/api/users/me", tag = "clisonix", security(("session" = []), ("key" = [])),
    responses((status = 200, body = Account)))]
async fn me(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_either(call.token()?)?;
    let key = accounts.default_key(user.id)?;
    render::ok(Account::of(&user).with_key(key.masked))
}

/// What the caller tells of himself.
#[utoipa::path(get, path = "/api/users/me/profile", tag = "clisonix", security(("session" = [])),
    responses((status = 200, body = Profile)))]
async fn profile(State(accounts): Api, call: Call) -> Answer {
    render::ok(Profile::of(&accounts.user_of_session(call.token()?)?))
}

/// Changes what the caller tells of himself; what is left out stays.
#[utoipa::path(put, path = "/api/users/me/profile", tag = "clisonix", security(("session" = [])),
    request_body = ProfileRequest, responses((status = 200, body = Profile)))]
async fn update_profile(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let update = ProfileRequest::read(&call)?;
    let user = own_acts::update_profile(&accounts, &call, &user, update).await?;
    render::ok(Profile::of(&user))
}

/// What the caller has, and has used.
#[utoipa::path(get, path = "/api/users/me/usage", tag = "clisonix", security(("session" = [])),
    responses((status = 200, body = Usage)))]
async fn usage(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let (meters, used) = (accounts.meters(user.id)?, accounts.used(user.id)?);
    let sessions = accounts.sessions(user.id, None)?;
    let storage = accounts.settings().plan(&user.plan).and_then(|plan| plan.storage_mb);
    render::ok(Usage::new(user.id, &meters, &used, &sessions, storage, accounts.clock().now()))
}

/// The caller's default key. It is read from the vault, and that is recorded.
#[utoipa::path(get, path = "/api/users/me/api-key", tag = "clisonix", security(("session" = [])),
    responses((status = 200, body = OwnKey)))]
async fn api_key(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let (key, text) = own_acts::show_key(&accounts, &call, &user).await?;
    render::ok(OwnKey::new(&key, &text))
}

/// Whether an address has no account yet.
#[utoipa::path(get, path = "/api/users/check-email/{email}", tag = "clisonix", security(()),
    responses((status = 200, body = Available)))]
async fn check_email(State(accounts): Api, call: Call) -> Answer {
    let email = call.part("email").to_owned();
    let available = accounts.email_is_free(&email, call.address)?;
    render::ok(Available { success: true, available, email: Some(email), username: None })
}

/// Whether a username is free.
#[utoipa::path(get, path = "/api/users/check-username/{username}", tag = "clisonix", security(()),
    responses((status = 200, body = Available)))]
async fn check_username(State(accounts): Api, call: Call) -> Answer {
    let username = call.part("username").to_owned();
    let available = accounts.username_is_free(&username, call.address)?;
    render::ok(Available { success: true, available, email: None, username: Some(username) })
}
