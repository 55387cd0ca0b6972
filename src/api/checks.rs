//! `/v1/auth`: calls by which an app that is not behind the gateway asks about its users; and `/v1/usage`.
//!
//! Owns these paths' requests and answers. The caller was judged, and charged, by the gateway before: the handlers only see
//! who he is.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use serde::Serialize;
use utoipa::{OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::public::{Api, OwnUsage};
use super::shapes::Amount;
use crate::accounts::Accounts;
use crate::accounts::checks::{Checked, Conversation};
use crate::accounts::users::MeterView;
use crate::domain::meters::Micro;
use crate::error::Reject;
use crate::handler::extract::Call;
use crate::handler::render::{self, Answer};

pub(super) fn paths() -> OpenApiRouter<Arc<Accounts>> {
    OpenApiRouter::with_openapi(Forward::openapi())
        .routes(routes!(verify_key))
        .routes(routes!(log_message))
        .routes(routes!(usage))
}

/// What the caller has left, when it is next set, and what was used today and this month; with a key or a session. Costs
/// nothing. A route of the operator's that names this path takes its place.
#[utoipa::path(get, path = "/v1/usage", tag = "usage", security(("api_key" = []), ("session" = [])),
    responses((status = 200, body = OwnUsage)))]
async fn usage(State(accounts): Api, checked: Option<Extension<Checked>>, _: Call) -> Answer {
    let Extension(checked) = checked.ok_or(Reject::Unauthenticated)?;
    render::ok(OwnUsage::of(&accounts, checked.standing.id, &checked.standing.plan)?)
}

/// What the gateway answers by itself.
#[derive(OpenApi)]
#[openapi(paths(forward))]
struct Forward;

/// Whether a request that another proxy has may go on: nginx `auth_request`, Traefik `forwardAuth`, Envoy `ext_authz`.
///
/// The request is described by `X-Original-URI`, `X-Original-Method`, `X-Forwarded-Uri`, `X-Forwarded-Method`,
/// `X-Forwarded-Host`, or a path below this one; descriptions that disagree are refused. The answer names the user in
/// `x-tollgate-user`, `x-tollgate-username` and `x-tollgate-plan`.
#[utoipa::path(get, path = "/v1/auth/forward", tag = "apps", security(("api_key" = []), ("session" = [])),
    params(("mode" = Option<String>, Query, description = "`nginx`: refusals other than 401 come as 403, with the real \
status in `x-tollgate-status` and the code in `x-tollgate-reason`")),
    responses((status = 200, description = "It may go on")))]
#[expect(dead_code, reason = "the gateway answers it; this is its documentation")]
fn forward() {}

#[derive(Serialize, ToSchema)]
struct Verified {
    #[schema(example = true)]
    success: bool,
    #[schema(example = true)]
    valid: bool,
    user_id: u64,
    username: String,
    email: String,
    plan: String,
    /// Whole conversations left, after this one.
    remaining_conversations: Amount,
    /// Of each meter.
    remaining: BTreeMap<String, Amount>,
}

/// Looks at the user's API key that the request carries, and charges one call (`verify_key.cost`).
#[utoipa::path(post, path = "/v1/auth/verify-key", tag = "apps", security(("api_key" = [])),
    responses((status = 200, body = Verified)))]
async fn verify_key(State(accounts): Api, checked: Option<Extension<Checked>>, _: Call) -> Answer {
    let Extension(checked) = checked.ok_or(Reject::Unauthenticated)?;
    let standing = &checked.standing;
    let meters = accounts.meters(standing.id)?;
    let balance = |view: &MeterView| {
        let charged = checked.left.iter().find(|(meter, _)| *meter == view.name).map(|(_, left)| *left);
        // What is never used up shows the same before and after.
        let charged = charged.filter(|_| !view.meter.reset.is_unlimited());
        Amount(charged.unwrap_or(view.shown_balance()))
    };
    let remaining: BTreeMap<String, Amount> =
        meters.iter().map(|view| (view.name.to_string(), balance(view))).collect();
    render::ok(Verified {
        success: true,
        valid: true,
        user_id: standing.id.0,
        username: standing.username.to_string(),
        email: standing.email.to_string(),
        plan: standing.plan.to_string(),
        remaining_conversations: remaining.get("conversations").copied().unwrap_or(Amount(Micro::ZERO)),
        remaining,
    })
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
struct LogRequest {
    #[schema(example = "gpt-4o")]
    model: String,
    /// As the AI service had them: a list of `{role, content}`.
    messages: Vec<serde_json::Value>,
    /// The answer's text, if it is not among the messages.
    response: Option<String>,
    research_model: Option<bool>,
    r_type: Option<String>,
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    processing_time_ms: Option<u64>,
}

#[derive(Serialize, ToSchema)]
struct Logged {
    #[schema(example = true)]
    success: bool,
    message: &'static str,
    /// False when conversations of this user are not kept.
    logged: bool,
}

/// Hands in a conversation that an app held itself; it goes where those of passed-on calls go. Costs nothing.
#[utoipa::path(post, path = "/v1/auth/log-message", tag = "apps", security(("api_key" = [])),
    request_body = LogRequest, responses((status = 200, body = Logged)))]
async fn log_message(State(accounts): Api, checked: Option<Extension<Checked>>, call: Call) -> Answer {
    let Extension(checked) = checked.ok_or(Reject::Unauthenticated)?;
    let mut fields = call.fields()?;
    let conversation = Conversation {
        model: fields.text("model"),
        messages: fields.json_list("messages"),
        response: fields.optional_text("response").unwrap_or_default(),
        research: fields.optional_flag("research_model").unwrap_or(false),
        r_type: fields.optional_text("r_type"),
        input_tokens: fields.optional_number("input_tokens").unwrap_or(0),
        output_tokens: fields.optional_number("output_tokens").unwrap_or(0),
        processing_time_ms: fields.optional_number("processing_time_ms").unwrap_or(0),
    };
    fields.done()?;
    let logged = accounts.log_conversation(&checked, &conversation, call.address, call.request).await;
    let message = if logged { "Conversation logged" } else { "Conversations of this user are not kept" };
    render::ok(Logged { success: true, message, logged })
}
