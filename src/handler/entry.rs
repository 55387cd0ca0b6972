//! Coming and going, each act with its record: registration, login, refresh, logout, and the login of staff.
//!
//! Owns nothing but the way from a read request through the service to what the handler encodes, the same for every API.

use std::sync::Arc;

use crate::accounts::Accounts;
use crate::accounts::guesses::Shown;
use crate::accounts::login_check::Factors;
use crate::accounts::passwords::Password;
use crate::accounts::registration::{EMAIL_TAKEN, Entrance, Registered, Registration};
use crate::accounts::sessions::{LoginRequest, SessionView};
use crate::actors::audit::{Action, Actor, Record, Target};
use crate::domain::session::{Principal, SessionStyle, Staff};
use crate::domain::user::User;
use crate::error::Reject;
use crate::handler::acts::stranger;
use crate::handler::extract::Call;

/// What whoever registers is told.
#[derive(Debug)]
pub enum Welcome {
    In(Box<Registered>),
    /// By a strict service, whether the address had an account or not: the mail says the rest.
    SeeYourMail,
}

/// Makes an account, and with `entrance` a session.
///
/// # Errors
/// Those of [`Accounts::register`]; a strict service keeps to itself that an address is taken.
pub async fn register(
    accounts: &Arc<Accounts>,
    call: &Call,
    new: Registration,
    entrance: Option<Entrance>,
) -> Result<Welcome, Reject> {
    let strict = accounts.settings().accounts.strict;
    // A session would tell that there was no account.
    let entrance = entrance.filter(|_| !strict);
    let record = stranger(call, Action::UserRegistered);
    let act = move |accounts: Arc<Accounts>| async move { accounts.register(new, entrance).await };
    match accounts.audited(record, act, |made, record| record.by(&made.user).on(&made.user)).await {
        Ok(_) if strict => Ok(Welcome::SeeYourMail),
        Err(Reject::Conflict(why)) if strict && why == EMAIL_TAKEN => Ok(Welcome::SeeYourMail),
        Ok(made) => Ok(Welcome::In(Box::new(made))),
        Err(reject) => Err(reject),
    }
}

/// Where a call would open a session from.
pub fn entrance(call: &Call, style: SessionStyle) -> Entrance {
    Entrance { address: call.address, user_agent: call.user_agent.clone(), style }
}

/// What a call without more than a name and a password asks for.
pub fn login_request(call: &Call, identifier: String, password: Password, style: SessionStyle) -> LoginRequest {
    LoginRequest {
        identifier,
        password,
        code: None,
        unique_code: None,
        factors: Factors::default(),
        address: call.address,
        request: call.request,
        user_agent: call.user_agent.clone(),
        device: call.device.clone(),
        style,
    }
}

/// Opens a session.
///
/// # Errors
/// Those of [`Accounts::login`].
pub async fn log_in(
    accounts: &Arc<Accounts>,
    call: &Call,
    request: LoginRequest,
) -> Result<(User, SessionView), Reject> {
    let record = stranger(call, Action::LoginSucceeded).or(Action::LoginFailed);
    let record = record.on_any(accounts.login_target(&request.identifier)?);
    let act = move |accounts: Arc<Accounts>| async move { accounts.login(request).await };
    accounts.audited(record, act, told_login).await
}

/// Who has come in, and with which one-time code.
fn told_login((user, session): &(User, SessionView), record: Record) -> Record {
    let code = session.used_code.map(|code| format!("list {}, code {}", code.list, code.place));
    record.by(user).on(user).with("unique_code", code)
}

/// Exchanges a refresh token for new tokens.
///
/// # Errors
/// Those of [`Accounts::refresh`].
pub async fn refresh(accounts: &Arc<Accounts>, call: &Call, refresh_token: String) -> Result<SessionView, Reject> {
    let (record, from) = (stranger(call, Action::SessionRefreshed), call.address);
    let act = move |accounts: Arc<Accounts>| async move {
        let session = accounts.refresh(Shown::new(&refresh_token, from)).await?;
        let Principal::User(id) = session.principal else { return Err(Reject::Unauthenticated) };
        Ok((accounts.user(id)?, session))
    };
    let done = accounts.audited(record, act, |(user, _), record| record.by(user).on(user)).await;
    if let Err(reject @ Reject::Replayed { user }) = &done {
        let replayed = Record::of(Action::SessionReplayed).by(Actor::anonymous()).from(call.origin());
        accounts.note_denial(replayed.on(Target::user_id(user.0)), reject);
    }
    Ok(done?.1)
}

/// Ends the session whose token this is.
///
/// # Errors
/// Those of [`Accounts::logout`].
pub async fn log_out(accounts: &Arc<Accounts>, call: &Call, token: Shown<'_>) -> Result<User, Reject> {
    let record = stranger(call, Action::SessionEnded);
    let (text, from, counts) = (token.text.to_owned(), token.from, token.counts);
    let act = move |accounts: Arc<Accounts>| async move {
        accounts.user(accounts.logout(Shown { text: &text, from, counts }).await?)
    };
    accounts.audited(record, act, |user, record| record.by(user).on(user)).await
}

/// Opens a session on the side port.
///
/// # Errors
/// Those of [`Accounts::staff_login`].
pub async fn staff_log_in(
    accounts: &Arc<Accounts>,
    call: &Call,
    username: String,
    password: Password,
    code: Option<String>,
) -> Result<(Staff, SessionView), Reject> {
    let record = stranger(call, Action::LoginSucceeded).or(Action::LoginFailed);
    let record = record.on_any(accounts.staff_login_target(&username)?);
    let address = call.address;
    let act = move |accounts: Arc<Accounts>| async move {
        accounts.staff_login(&username, password, code.as_deref(), address).await
    };
    accounts.audited(record, act, |(staff, _), record| record.by(staff).on(staff)).await
}
