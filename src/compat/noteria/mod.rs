//! Noteria: the login with a one-time code in place of a captcha, and on the side port the pages by which codes are given.
//!
//! Owns these paths. Requests are what a page's form sends, or JSON. A page that changed something by being opened is not
//! kept: such calls are posted.

mod admin;
mod request;
mod response;

use std::sync::Arc;

use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::accounts::Accounts;
use crate::handler::entry;
use crate::handler::extract::Call;
use crate::handler::render::{self, Answer};
use request::LoginRequest;
use response::LoggedIn;

pub use admin::side_paths;

type Api = State<Arc<Accounts>>;

pub fn public_paths() -> OpenApiRouter<Arc<Accounts>> {
    OpenApiRouter::new().routes(routes!(login))
}

/// Opens a session with email, password and a one-time code. There are no captchas here: without a code nobody gets in by
/// this page.
#[utoipa::path(post, path = "/noteria/login.php", tag = "noteria", request_body = LoginRequest, security(()),
    responses((status = 200, body = LoggedIn)))]
async fn login(State(accounts): Api, call: Call) -> Answer {
    let request = LoginRequest::read(&call).await?;
    let (user, session) = entry::log_in(&accounts, &call, request).await?;
    let left = accounts.code_stats(user.id)?.available();
    let answer = render::ok(LoggedIn::new(&user, &session, left))?;
    Ok(crate::handler::device::remember(answer, session.device.as_ref(), accounts.clock().now()))
}
