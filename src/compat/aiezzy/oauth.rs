//! `/api/oauth` of AIezzy: a login at an identity provider, and the browser's way back.

use std::sync::Arc;

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::response::LoggedIn;
use super::{set_cookie, style};
use crate::accounts::Accounts;
use crate::accounts::oauth::{CallbackPath, Landing};
use crate::handler::extract::Call;
use crate::handler::provider::{self, with_query};
use crate::handler::render::{self, Answer};

type Api = State<Arc<Accounts>>;

/// Where a browser goes on with its cookie: the pages behind the gateway.
const HOME: &str = "/";

pub(super) fn paths() -> OpenApiRouter<Arc<Accounts>> {
    OpenApiRouter::new().routes(routes!(login)).routes(routes!(callback))
}

/// Sends a browser to a provider. The callback address to register there is `/api/oauth/callback/{provider}` below
/// `public_base_url`.
#[utoipa::path(get, path = "/api/oauth/login/{provider}", tag = "aiezzy", security(()),
    params(("redirect" = Option<String>, Query, description = "One of `accounts.redirects`")),
    responses((status = 302, description = "To the provider")))]
async fn login(State(accounts): Api, call: Call) -> Answer {
    Ok(provider::depart(&accounts, &call, CallbackPath::Aiezzy).await?)
}

/// A login that needs a code of the second factor.
#[derive(Serialize, ToSchema)]
#[schema(as = aiezzy::FactorNeeded)]
struct FactorNeeded {
    #[schema(example = true)]
    success: bool,
    message: &'static str,
    /// For `POST /v1/oauth/exchange`, with a code of the second factor.
    exchange_code: String,
    mfa_required: bool,
}

/// Where a provider sends the browser back to. A browser goes on to `/` with a session in its cookie; a program gets the
/// session as an answer.
#[utoipa::path(get, path = "/api/oauth/callback/{provider}", tag = "aiezzy", security(()),
    params(("state" = String, Query), ("code" = Option<String>, Query), ("iss" = Option<String>, Query),
        ("error" = Option<String>, Query)),
    responses((status = 200, body = LoggedIn), (status = 302, description = "Back to the pages")))]
async fn callback(State(accounts): Api, call: Call) -> Answer {
    let answer = match provider::land(&accounts, &call, style(&accounts)).await? {
        Landing::Session(both) => {
            let (user, session) = *both;
            let answer =
                if call.wants_html { render::sent_to(HOME)? } else { render::ok(LoggedIn::new(&user, &session))? };
            set_cookie(&accounts, answer, Some(&session))?
        }
        Landing::Code { code, redirect: Some(to), .. } => render::sent_to(&with_query(&to, "code", &code))?,
        Landing::Code { code, second_factor, .. } => render::ok(FactorNeeded {
            success: true,
            message: "A code of the second factor is needed: send it with this exchange code to /v1/oauth/exchange",
            exchange_code: code,
            mfa_required: second_factor,
        })?,
        Landing::Linked { redirect, .. } => render::sent_to(redirect.as_deref().unwrap_or(HOME))?,
    };
    Ok(provider::release(&accounts, answer)?)
}
