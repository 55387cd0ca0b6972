//! AIezzy: `/api/v2` and `/api/oauth` for users, `/api/admin` for administrators on the side port.
//!
//! Owns these paths. Its pages call some of them with nothing but a cookie, so its logins leave one; see
//! [`crate::domain::cookies`] for when it counts. Its sessions last `compat.aiezzy_session_days`.

mod admin;
mod oauth;
mod request;
mod response;

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::accounts::Accounts;
use crate::accounts::passwords::Rule;
use crate::accounts::sessions::SessionView;
use crate::actors::audit::Action;
use crate::domain::session::SessionStyle;
use crate::error::Reject;
use crate::handler::acts::stranger;
use crate::handler::entry::{self, Welcome};
use crate::handler::extract::Call;
use crate::handler::pages::no_foreign;
use crate::handler::render::{self, Answer};
use request::{ForgotRequest, LoginRequest, RegisterRequest, ResetRequest};
use response::{Done, LoggedIn, Quota, Registered, Verified};

pub use admin::side_paths;

type Api = State<Arc<Accounts>>;

const DAY_SECONDS: u64 = 86_400;

pub fn public_paths() -> OpenApiRouter<Arc<Accounts>> {
    OpenApiRouter::new()
        .routes(routes!(register))
        .routes(routes!(login))
        .routes(routes!(logout))
        .routes(routes!(verify_email))
        .routes(routes!(forgot_password))
        .routes(routes!(reset_password))
        .routes(routes!(quota))
        .merge(oauth::paths())
}

fn style(accounts: &Accounts) -> SessionStyle {
    let days = accounts.settings().compat.aiezzy_session_days;
    SessionStyle { look: None, lasts: Some(days.saturating_mul(DAY_SECONDS)) }
}

/// Leaves a session with the browser, or, without one, takes it away.
fn set_cookie(accounts: &Accounts, mut answer: Response, session: Option<&SessionView>) -> Answer {
    let settings = accounts.settings();
    let Some(rule) = &settings.cookies else { return Ok(answer) };
    let now = accounts.clock().now();
    let value = session.map_or("", |session| session.session_token.expose());
    let lasts = session.map_or(0, |session| session.expires_at.0.saturating_sub(now.0) / 1000);
    let secure = if rule.is_secure() { "; Secure" } else { "" };
    let text = format!("{}={value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={lasts}{secure}", rule.name);
    let cookie = HeaderValue::from_str(&text).map_err(|_| Reject::Internal)?;
    answer.headers_mut().append(header::SET_COOKIE, cookie);
    Ok(answer)
}

/// Leaves a session that was just opened with the browser, unless another site's page has opened it: that page may have signed
/// its reader in as somebody else.
fn leave_cookie(accounts: &Accounts, call: &Call, answer: Response, session: Option<&SessionView>) -> Answer {
    match &accounts.settings().cookies {
        Some(rule) if rule.is_foreign(&call.provenance()) => Ok(answer),
        _ => set_cookie(accounts, answer, session),
    }
}

/// Makes an account and opens a session.
#[utoipa::path(post, path = "/api/v2/register", tag = "aiezzy", request_body = RegisterRequest, security(()),
    responses((status = 200, body = Registered)))]
async fn register(State(accounts): Api, call: Call) -> Answer {
    let new = RegisterRequest::read(&call, &accounts)?;
    let warnings = accounts.password_warnings(&new.password, "password", &[&new.email]);
    let entrance = entry::entrance(&call, style(&accounts));
    match entry::register(&accounts, &call, new, Some(entrance)).await? {
        Welcome::SeeYourMail => render::ok(Registered::unsaid(warnings)),
        Welcome::In(made) => {
            let answer = render::ok(Registered::new(&made, warnings))?;
            leave_cookie(&accounts, &call, answer, made.session.as_ref())
        }
    }
}

/// Opens a session.
#[utoipa::path(post, path = "/api/v2/login", tag = "aiezzy", request_body = LoginRequest, security(()),
    responses((status = 200, body = LoggedIn)))]
async fn login(State(accounts): Api, call: Call) -> Answer {
    let request = LoginRequest::read(&call, style(&accounts))?;
    let (user, session) = entry::log_in(&accounts, &call, request).await?;
    let answer = render::ok(LoggedIn::new(&user, &session))?;
    let answer = crate::handler::device::remember(answer, session.device.as_ref(), accounts.clock().now());
    leave_cookie(&accounts, &call, answer, Some(&session))
}

/// Ends the session of the call, and takes its cookie away.
#[utoipa::path(post, path = "/api/v2/logout", tag = "aiezzy", security(("session" = [])),
    responses((status = 200, body = Done)))]
async fn logout(State(accounts): Api, call: Call) -> Answer {
    let token = call.session(accounts.settings().cookies.as_ref())?;
    entry::log_out(&accounts, &call, token).await?;
    set_cookie(&accounts, render::ok(Done::new("Logged out"))?, None)
}

/// Proves an address with a mailed token. A browser is sent to the page with the button instead.
#[utoipa::path(get, path = "/api/v2/verify-email", tag = "aiezzy", security(()),
    params(("token" = String, Query, description = "From the mailed link")),
    responses((status = 200, body = Verified), (status = 302, description = "To the page that asks for a click")))]
async fn verify_email(State(accounts): Api, call: Call) -> Answer {
    let token = call.query("token").ok_or_else(|| Reject::Invalid(vec!["token: is required".into()]))?.to_owned();
    if call.wants_html || call.is_head() {
        return Ok(render::sent_to(&format!("/v1/users/verify-email?token={}", render::escaped_query(&token)))?);
    }
    no_foreign(&accounts, &call)?;
    let (record, from) = (stranger(&call, Action::EmailVerified), call.address);
    let act = move |accounts: Arc<Accounts>| async move { accounts.verify_email(&token, from).await };
    let user = accounts.audited(record, act, |user, record| record.by(user).on(user)).await?;
    render::ok(Verified::of(&user))
}

/// Sends a link for a new password, if the address has an account. The answer is the same if it has none.
#[utoipa::path(post, path = "/api/v2/forgot-password", tag = "aiezzy", security(()), request_body = ForgotRequest,
    responses((status = 200, body = Done)))]
async fn forgot_password(State(accounts): Api, call: Call) -> Answer {
    let email = ForgotRequest::read(&call)?;
    accounts.forgot_password(&email, stranger(&call, Action::ResetLinkSent))?;
    render::ok(Done::new("If this address has an account, a link is on its way"))
}

/// Sets a password with a mailed token; all sessions end.
#[utoipa::path(post, path = "/api/v2/reset-password", tag = "aiezzy", security(()), request_body = ResetRequest,
    responses((status = 200, body = Done)))]
async fn reset_password(State(accounts): Api, call: Call) -> Answer {
    let (token, password) = ResetRequest::read(&call)?;
    let (record, from) = (stranger(&call, Action::PasswordChanged).with("by", "mailed link"), call.address);
    let act = move |accounts: Arc<Accounts>| async move {
        accounts.reset_password(&token, password, Rule::Length, from).await
    };
    accounts.audited(record, act, |user, record| record.by(user).on(user)).await?;
    render::ok(Done::new("Password reset successful; all sessions have ended"))
}

/// What may be used today, and what has been.
#[utoipa::path(get, path = "/api/v2/quota/status", tag = "aiezzy", security(("session" = [])),
    responses((status = 200, body = Quota)))]
async fn quota(State(accounts): Api, call: Call) -> Answer {
    let token = call.session(accounts.settings().cookies.as_ref())?;
    let user = accounts.user_of_session(token)?;
    render::ok(Quota::new(&user, &accounts.meters(user.id)?))
}
