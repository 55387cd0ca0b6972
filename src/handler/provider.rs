//! A login at an identity provider, as HTTP has it: sending the browser there, and taking it when it comes back.
//!
//! Owns the cookie that binds a login to the browser it began in. A token is never in an address.

use std::sync::Arc;

use axum::http::{HeaderValue, header};
use axum::response::Response;

use crate::accounts::Accounts;
use crate::accounts::oauth::{Arrival, CallbackPath, Departure, Landing};
use crate::actors::audit::{Action, Record};
use crate::domain::session::SessionStyle;
use crate::domain::user::User;
use crate::error::Reject;
use crate::handler::acts::stranger;
use crate::handler::extract::Call;
use crate::handler::render;

/// `__Host-` binds a cookie to this very host, and needs TLS (RFC 6265bis).
fn cookie_name(accounts: &Accounts) -> &'static str {
    if accounts.is_reached_by_tls() { "__Host-tollgate-oauth" } else { "tollgate-oauth" }
}

fn cookie(accounts: &Accounts, value: &str, lasts: u32) -> Result<HeaderValue, Reject> {
    let secure = if accounts.is_reached_by_tls() { "; Secure" } else { "" };
    let text = format!("{}={value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={lasts}{secure}", cookie_name(accounts));
    HeaderValue::from_str(&text).map_err(|_| Reject::Internal)
}

/// Leaves the cookie that the browser must bring back.
///
/// # Errors
/// [`Reject::Internal`].
pub fn bind(accounts: &Accounts, mut answer: Response, departure: &Departure) -> Result<Response, Reject> {
    answer.headers_mut().append(header::SET_COOKIE, cookie(accounts, &departure.cookie, 600)?);
    Ok(answer)
}

/// Sends a browser to the provider that the path names.
///
/// # Errors
/// Those of [`Accounts::begin_login`].
pub async fn depart(accounts: &Accounts, call: &Call, back_by: CallbackPath) -> Result<Response, Reject> {
    let departure = accounts.begin_login(call.part("provider"), call.query("redirect"), None, back_by).await?;
    bind(accounts, render::sent_to(&departure.url)?, &departure)
}

/// Takes a browser that comes back.
///
/// # Errors
/// Those of [`Accounts::land`].
pub async fn land(accounts: &Arc<Accounts>, call: &Call, style: SessionStyle) -> Result<Landing, Reject> {
    let text = |name: &str| call.query(name).map(str::to_owned);
    let arrival = Arrival {
        provider: call.part("provider").to_owned(),
        state: text("state").unwrap_or_default(),
        code: text("code"),
        iss: text("iss"),
        error: text("error"),
        cookie: call.cookie(cookie_name(accounts)).map(str::to_owned),
        address: Some(call.address),
        user_agent: call.user_agent.clone(),
        style,
    };
    let record =
        stranger(call, Action::LoginSucceeded).or(Action::LoginFailed).with("provider", arrival.provider.as_str());
    let act = move |accounts: Arc<Accounts>| async move { accounts.land(arrival).await };
    let tell = |landing: &Landing, record: Record| {
        let user = user_of(landing);
        let record = match landing {
            Landing::Session(_) => record,
            Landing::Code { .. } => record.as_act(Action::LoginConfirmed),
            Landing::Linked { .. } => record.as_act(Action::LoginLinked),
        };
        record.by(user).on(user)
    };
    accounts.audited(record, act, tell).await
}

fn user_of(landing: &Landing) -> &User {
    match landing {
        Landing::Session(both) => &both.0,
        Landing::Code { user, .. } | Landing::Linked { user, .. } => user,
    }
}

/// The login is through: its cookie has done its work.
///
/// # Errors
/// [`Reject::Internal`].
pub fn release(accounts: &Accounts, mut answer: Response) -> Result<Response, Reject> {
    answer.headers_mut().append(header::SET_COOKIE, cookie(accounts, "", 0)?);
    Ok(answer)
}

/// An address with one more parameter.
pub fn with_query(url: &str, name: &str, value: &str) -> String {
    let mark = if url.contains('?') { '&' } else { '?' };
    format!("{url}{mark}{name}={value}")
}
