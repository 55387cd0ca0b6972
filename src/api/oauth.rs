//! `/v1/oauth` and `/v1/users/oauth`: login at identity providers, and the list of one's own.
//!
//! Owns these paths.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::public::Api;
use super::shapes::{Done, Time, Tokens, UserBrief};
use super::step_up::StepUp;
use crate::accounts::Accounts;
use crate::accounts::oauth::{CallbackPath, Landing};
use crate::actors::audit::Action;
use crate::domain::session::SessionStyle;
use crate::handler::acts::{own_act, stranger};
use crate::handler::extract::Call;
use crate::handler::provider::{self, with_query};
use crate::handler::render::{self, Answer};
use crate::handler::{device, entry};

pub(super) fn paths() -> OpenApiRouter<Arc<Accounts>> {
    OpenApiRouter::new()
        .routes(routes!(providers))
        .routes(routes!(login))
        .routes(routes!(callback))
        .routes(routes!(exchange))
        .routes(routes!(list))
        .routes(routes!(link))
        .routes(routes!(unlink))
}

#[derive(Serialize, ToSchema)]
struct Provider {
    /// As the paths have it.
    name: String,
    /// For people.
    label: String,
}

#[derive(Serialize, ToSchema)]
struct Providers {
    #[schema(example = true)]
    success: bool,
    providers: Vec<Provider>,
}

/// The identity providers there are.
#[utoipa::path(get, path = "/v1/oauth/providers", tag = "social login", security(()),
    responses((status = 200, body = Providers)))]
async fn providers(State(accounts): Api) -> Answer {
    let providers = accounts.login_providers().into_iter().map(|(name, label)| Provider { name, label }).collect();
    render::ok(Providers { success: true, providers })
}

/// Sends a browser to a provider. `redirect`: where it is to be sent afterwards, one of `accounts.redirects`, with a `code`
/// for `POST /v1/oauth/exchange`; without it the callback answers the session itself.
#[utoipa::path(get, path = "/v1/oauth/login/{provider}", tag = "social login", security(()),
    params(("redirect" = Option<String>, Query)), responses((status = 302, description = "To the provider")))]
async fn login(State(accounts): Api, call: Call) -> Answer {
    Ok(provider::depart(&accounts, &call, CallbackPath::Canonical).await?)
}

#[derive(Serialize, ToSchema)]
struct SignedIn {
    #[schema(example = true)]
    success: bool,
    message: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<UserBrief>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<Tokens>,
    /// With a second factor: to be exchanged together with a code of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    exchange_code: Option<String>,
    mfa_required: bool,
}

/// Where a provider sends the browser back to.
#[utoipa::path(get, path = "/v1/oauth/callback/{provider}", tag = "social login", security(()),
    params(("state" = String, Query), ("code" = Option<String>, Query), ("iss" = Option<String>, Query),
        ("error" = Option<String>, Query)),
    responses((status = 200, body = SignedIn), (status = 302, description = "To the redirect, with a `code`")))]
async fn callback(State(accounts): Api, call: Call) -> Answer {
    let landing = provider::land(&accounts, &call, SessionStyle::default()).await?;
    Ok(provider::release(&accounts, landed(&accounts, landing)?)?)
}

fn landed(accounts: &Accounts, landing: Landing) -> Result<Response, render::Refused> {
    match landing {
        Landing::Session(both) => {
            let (user, session) = *both;
            let answer = render::ok(SignedIn {
                success: true,
                message: "Login successful",
                user: Some((&user).into()),
                session: Some((&session).into()),
                exchange_code: None,
                mfa_required: false,
            })?;
            Ok(device::remember(answer, session.device.as_ref(), accounts.clock().now()))
        }
        Landing::Code { code, redirect: Some(to), .. } => Ok(render::sent_to(&with_query(&to, "code", &code))?),
        Landing::Code { code, second_factor, .. } => render::ok(SignedIn {
            success: true,
            message: "A code of the second factor is needed: send it with this exchange code to /v1/oauth/exchange",
            user: None,
            session: None,
            exchange_code: Some(code),
            mfa_required: second_factor,
        }),
        Landing::Linked { redirect: Some(to), provider, .. } => {
            Ok(render::sent_to(&with_query(&to, "linked", &provider))?)
        }
        Landing::Linked { .. } => render::ok(Done::new("Login linked")),
    }
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
struct ExchangeRequest {
    /// From the redirect, or from `exchange_code`. Good once, for a minute.
    code: String,
    /// Of the second factor, for those who have one.
    mfa_code: Option<String>,
}

/// Exchanges the code of a login at a provider for a session.
#[utoipa::path(post, path = "/v1/oauth/exchange", tag = "social login", security(()), request_body = ExchangeRequest,
    responses((status = 200, body = SignedIn)))]
async fn exchange(State(accounts): Api, call: Call) -> Answer {
    let mut fields = call.fields()?;
    let (code, factor) = (fields.text("code"), fields.optional_text("mfa_code"));
    fields.done()?;
    let entrance = entry::entrance(&call, SessionStyle::default());
    let record = stranger(&call, Action::LoginSucceeded).or(Action::LoginFailed);
    let act =
        move |accounts: Arc<Accounts>| async move { accounts.exchange_login(&code, factor.as_deref(), entrance).await };
    let (user, session) = accounts.audited(record, act, |(user, _), record| record.by(user).on(user)).await?;
    landed(&accounts, Landing::Session(Box::new((user, session))))
}

#[derive(Serialize, ToSchema)]
struct Login {
    provider: String,
    /// As the provider says.
    email: Option<String>,
    linked_at: Time,
}

#[derive(Serialize, ToSchema)]
struct Logins {
    #[schema(example = true)]
    success: bool,
    logins: Vec<Login>,
    has_password: bool,
}

/// The caller's logins at providers.
#[utoipa::path(get, path = "/v1/users/oauth", tag = "social login", security(("session" = [])),
    responses((status = 200, body = Logins)))]
async fn list(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let login = |identity: crate::accounts::oauth::Identity| Login {
        provider: identity.provider,
        email: identity.email,
        linked_at: identity.linked_at.into(),
    };
    let logins = accounts.identities(user.id)?.into_iter().map(login).collect();
    render::ok(Logins { success: true, logins, has_password: user.password_hash.is_some() })
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
struct LinkRequest {
    /// Of accounts that have one.
    password: Option<String>,
    /// Of the second factor, or a recovery code; where one is on.
    code: Option<String>,
    /// Where the browser is to be sent afterwards: one of `accounts.redirects`.
    redirect: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct Begun {
    #[schema(example = true)]
    success: bool,
    /// Where the same browser is to go next; it has got a cookie.
    url: String,
}

/// Begins to add a login at a provider to the caller's account.
#[utoipa::path(post, path = "/v1/users/oauth/link/{provider}", tag = "social login", security(("session" = [])),
    request_body = LinkRequest, responses((status = 200, body = Begun)))]
async fn link(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let mut fields = call.optional_fields()?;
    let proof = fields.proof("password", &call)?.with_code(fields.optional_text("code"));
    let redirect = fields.optional_text("redirect");
    fields.done()?;
    let (provider, address) = (call.part("provider").to_owned(), call.address);
    let record = own_act(&call, Action::LoginLinking, &user).with("provider", provider.as_str());
    let act = move |accounts: Arc<Accounts>| async move {
        accounts.begin_link(&user, &provider, proof, redirect.as_deref(), address).await
    };
    let departure = accounts.audited(record, act, |_, record| record).await?;
    let answer = render::ok(Begun { success: true, url: departure.url.clone() })?;
    Ok(provider::bind(&accounts, answer, &departure)?)
}

/// Removes a login at a provider; not the last way into the account.
#[utoipa::path(delete, path = "/v1/users/oauth/{provider}", tag = "social login", security(("session" = [])),
    request_body = StepUp, responses((status = 200, body = Done)))]
async fn unlink(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let (provider, proof, address) = (call.part("provider").to_owned(), StepUp::read(&call)?, call.address);
    let record = own_act(&call, Action::LoginUnlinked, &user).with("provider", provider.as_str());
    let act = move |accounts: Arc<Accounts>| async move { accounts.unlink(user.id, &provider, proof, address).await };
    accounts.audited(record, act, |_, record| record).await?;
    render::ok(Done::new("Login removed"))
}
