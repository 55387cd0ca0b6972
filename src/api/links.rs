//! `/v1/users/{verify-email,forgot-password,reset-password,confirm-email,check-…}`: what mailed links lead to, and questions
//! of people who have no account yet.
//!
//! Owns these paths and their small pages. A page never does anything by being opened: programs that look into mails open
//! every link. It asks for a click, which posts. Programs that are not browsers may use `GET` at once, as the older systems
//! had it; `HEAD` never uses a token.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::public::Api;
use super::shapes::Done;
use crate::accounts::Accounts;
use crate::accounts::passwords::{Password, Rule};
use crate::actors::audit::Action;
use crate::error::Reject;
use crate::handler::acts::{own_act, stranger};
use crate::handler::extract::{Call, Fields};
use crate::handler::pages::no_foreign;
use crate::handler::render::{self, Answer};

pub(super) fn paths() -> OpenApiRouter<Arc<Accounts>> {
    OpenApiRouter::new()
        .routes(routes!(open_verification, verify_email))
        .routes(routes!(resend))
        .routes(routes!(forgot_password))
        .routes(routes!(reset_page, reset_password))
        .routes(routes!(open_confirmation, confirm_email))
        .routes(routes!(check_email))
        .routes(routes!(check_username))
}

/// No script, no style, nothing from elsewhere; forms go to this origin.
const POLICY: &str = "default-src 'none'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// A page of ours.
fn page(status: StatusCode, title: &str, body: &str) -> Response {
    let html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{title}</title></head>\n<body><h1>{title}</h1>\n{body}\n</body></html>\n"
    );
    let mut response = (status, html).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // The token is in the page's address. Its own form must say where it comes from all the same.
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    response
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// A form that posts the token, with `fields` in it.
fn form(call: &Call, title: &str, action: &str, fields: &str, button: &str) -> Answer {
    let token = escaped(call.query("token").unwrap_or_default());
    let body = format!(
        "<form method=\"post\" action=\"{action}\"><input type=\"hidden\" name=\"token\" value=\"{token}\">\n{fields}\
         <button type=\"submit\">{button}</button></form>"
    );
    Ok(page(StatusCode::OK, title, &body))
}

/// For a browser a page, for everybody else what the handler answers.
fn in_its_form(call: &Call, answer: Answer, title: &str, done: &str) -> Answer {
    if !call.wants_html {
        return answer;
    }
    match answer {
        Ok(_) => Ok(page(StatusCode::OK, title, &format!("<p>{}</p>", escaped(done)))),
        Err(refused) => {
            let status = StatusCode::from_u16(refused.0.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Ok(page(status, "That did not work", &format!("<p>{}</p>", escaped(&refused.0.message()))))
        }
    }
}

/// The token of a body, or of the query.
fn token(call: &Call, fields: &mut Fields) -> String {
    let in_query = call.query("token").map(str::to_owned);
    in_query.unwrap_or_else(|| fields.text("token"))
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
struct TokenRequest {
    /// From the mailed link; may be in the query instead.
    token: Option<String>,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
struct ResetRequest {
    /// From the mailed link; may be in the query instead.
    token: Option<String>,
    #[schema(value_type = String, format = Password)]
    password: Password,
}

#[derive(Serialize, ToSchema)]
struct Verified {
    #[schema(example = true)]
    success: bool,
    message: &'static str,
    email: String,
}

async fn verified(accounts: Arc<Accounts>, call: &Call, token: String) -> Answer {
    no_foreign(&accounts, call)?;
    let (record, from) = (stranger(call, Action::EmailVerified), call.address);
    let act = move |accounts: Arc<Accounts>| async move { accounts.verify_email(&token, from).await };
    let user = accounts.audited(record, act, |user, record| record.by(user).on(user)).await?;
    render::ok(Verified { success: true, message: "Email verified", email: user.email.to_string() })
}

/// Proves an address with a mailed token. A browser gets a page with a button instead.
#[utoipa::path(get, path = "/v1/users/verify-email", tag = "account", security(()),
    params(("token" = String, Query, description = "From the mailed link")),
    responses((status = 200, body = Verified)))]
async fn open_verification(State(accounts): Api, call: Call) -> Answer {
    if call.wants_html || call.is_head() {
        return form(&call, "Confirm your email address", "/v1/users/verify-email", "", "Confirm");
    }
    let token = call.query("token").ok_or_else(missing)?.to_owned();
    verified(accounts, &call, token).await
}

fn missing() -> Reject {
    Reject::Invalid(vec!["token: is required".into()])
}

/// Proves an address with a mailed token.
#[utoipa::path(post, path = "/v1/users/verify-email", tag = "account", security(()), request_body = TokenRequest,
    responses((status = 200, body = Verified)))]
async fn verify_email(State(accounts): Api, call: Call) -> Answer {
    let mut fields = call.fields_or_form()?;
    let token = token(&call, &mut fields);
    fields.done()?;
    let answer = verified(accounts, &call, token).await;
    in_its_form(&call, answer, "Thank you", "Your email address is confirmed. You can close this page.")
}

/// Sends the letter that proves the caller's address again.
#[utoipa::path(post, path = "/v1/users/verify-email/resend", tag = "account", security(("session" = [])),
    responses((status = 200, body = Done)))]
async fn resend(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let record = own_act(&call, Action::LinkRequested, &user).with("for", "verify-email");
    let act = move |accounts: Arc<Accounts>| async move { accounts.resend_verification(user.id).await };
    accounts.audited(record, act, |(), record| record).await?;
    render::ok(Done::new("A new link is on its way"))
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
struct ForgotRequest {
    #[schema(example = "john@example.com")]
    email: String,
}

/// Sends a link for a new password, if the address has an account. The answer is the same if it has none.
#[utoipa::path(post, path = "/v1/users/forgot-password", tag = "account", security(()), request_body = ForgotRequest,
    responses((status = 200, body = Done)))]
async fn forgot_password(State(accounts): Api, call: Call) -> Answer {
    let mut fields = call.fields_or_form()?;
    let email = fields.text("email");
    fields.done()?;
    accounts.forgot_password(&email, stranger(&call, Action::ResetLinkSent))?;
    render::ok(Done::new("If this address has an account, a link is on its way"))
}

/// The page that a mailed link for a new password opens.
#[utoipa::path(get, path = "/v1/users/reset-password", tag = "account", security(()),
    params(("token" = Option<String>, Query, description = "From the mailed link")),
    responses((status = 200, body = String, content_type = "text/html")))]
async fn reset_page(call: Call) -> Answer {
    let field = "<p><label>New password <input type=\"password\" name=\"password\" minlength=\"8\" required \
                 autocomplete=\"new-password\"></label></p>\n";
    form(&call, "Set a new password", "/v1/users/reset-password", field, "Set password")
}

/// Sets a password with a mailed token. All sessions end; a second factor is still asked for at the next login.
#[utoipa::path(post, path = "/v1/users/reset-password", tag = "account", security(()), request_body = ResetRequest,
    responses((status = 200, body = Done)))]
async fn reset_password(State(accounts): Api, call: Call) -> Answer {
    let mut fields = call.fields_or_form()?;
    let token = token(&call, &mut fields);
    let password = match fields.has("new_password") {
        true => fields.password("new_password")?,
        false => fields.password("password")?,
    };
    fields.done()?;
    let warnings = accounts.password_warnings(&password, "password", &[]);
    let (record, from) = (stranger(&call, Action::PasswordChanged).with("by", "mailed link"), call.address);
    let act = move |accounts: Arc<Accounts>| async move {
        accounts.reset_password(&token, password, Rule::Composition, from).await
    };
    let done = accounts.audited(record, act, |user, record| record.by(user).on(user)).await;
    let answer = done
        .map_err(Into::into)
        .and_then(|_| render::ok(Done::new("Password set; all sessions have ended").warning(warnings)));
    in_its_form(&call, answer, "Your password is set", "You can sign in with it now. All sessions have ended.")
}

async fn confirmed(accounts: Arc<Accounts>, call: &Call, token: String) -> Answer {
    no_foreign(&accounts, call)?;
    let (record, from) = (stranger(call, Action::EmailChanged), call.address);
    let act = move |accounts: Arc<Accounts>| async move { accounts.confirm_email(&token, from).await };
    let tell = |(user, old): &(crate::domain::user::User, String), record: crate::actors::audit::Record| {
        record.by(user).on(user).with("from", old.as_str())
    };
    let (user, _) = accounts.audited(record, act, tell).await?;
    render::ok(Verified { success: true, message: "Email changed", email: user.email.to_string() })
}

/// Moves an account to the address that the token was mailed to. A browser gets a page with a button instead.
#[utoipa::path(get, path = "/v1/users/confirm-email", tag = "account", security(()),
    params(("token" = String, Query, description = "From the mailed link")),
    responses((status = 200, body = Verified)))]
async fn open_confirmation(State(accounts): Api, call: Call) -> Answer {
    if call.wants_html || call.is_head() {
        return form(&call, "Confirm your new email address", "/v1/users/confirm-email", "", "Confirm");
    }
    let token = call.query("token").ok_or_else(missing)?.to_owned();
    confirmed(accounts, &call, token).await
}

/// Moves an account to the address that the token was mailed to.
#[utoipa::path(post, path = "/v1/users/confirm-email", tag = "account", security(()), request_body = TokenRequest,
    responses((status = 200, body = Verified)))]
async fn confirm_email(State(accounts): Api, call: Call) -> Answer {
    let mut fields = call.fields_or_form()?;
    let token = token(&call, &mut fields);
    fields.done()?;
    let answer = confirmed(accounts, &call, token).await;
    in_its_form(&call, answer, "Thank you", "Your new email address is in force. You can close this page.")
}

#[derive(Serialize, ToSchema)]
struct Availability {
    #[schema(example = true)]
    success: bool,
    available: bool,
}

/// Whether an address has no account yet.
#[utoipa::path(get, path = "/v1/users/check-email/{email}", tag = "account", security(()),
    responses((status = 200, body = Availability)))]
async fn check_email(State(accounts): Api, call: Call) -> Answer {
    let available = accounts.email_is_free(call.part("email"), call.address)?;
    render::ok(Availability { success: true, available })
}

/// Whether a username is free.
#[utoipa::path(get, path = "/v1/users/check-username/{username}", tag = "account", security(()),
    responses((status = 200, body = Availability)))]
async fn check_username(State(accounts): Api, call: Call) -> Answer {
    let available = accounts.username_is_free(call.part("username"), call.address)?;
    render::ok(Availability { success: true, available })
}
