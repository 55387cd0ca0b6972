//! Dialects: the calls of the systems whose users we have taken over, in their own words.
//!
//! A folder a dialect: its routes and handlers, its requests, its answers, and a README with its calls. Each decodes, calls
//! one service, encodes. None touches the store, and none knows another or the canonical API. PromptEnchanter's calls are
//! the canonical API itself; its folder has its README alone. Whether a path is a dialect's is told by
//! [`crate::domain::dialect`].

pub mod aiezzy;
pub mod clisonix;
pub mod noteria;
pub mod usermgmt;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::accounts::Accounts;
use crate::domain::dialect::Dialect;
use crate::error::Reject;
use crate::handler::render::{self, Form, Refusals, Refused};

pub use usermgmt::health::{VitalSigns, Vitals};

type Paths = OpenApiRouter<Arc<Accounts>>;

/// What the public listener answers in dialects.
pub fn public_paths(accounts: &Arc<Accounts>, vitals: Vitals) -> Paths {
    OpenApiRouter::new()
        .merge(spoken(Dialect::Clisonix, clisonix::public_paths(), accounts))
        .merge(spoken(Dialect::Aiezzy, aiezzy::public_paths(), accounts))
        .merge(spoken(Dialect::Usermgmt, usermgmt::public_paths(vitals), accounts))
        .merge(spoken(Dialect::Noteria, noteria::public_paths(), accounts))
}

/// What the side port answers in dialects.
pub fn side_paths(accounts: &Arc<Accounts>) -> Paths {
    OpenApiRouter::new()
        .merge(spoken(Dialect::Clisonix, clisonix::side_paths(), accounts))
        .merge(spoken(Dialect::Aiezzy, aiezzy::side_paths(), accounts))
        .merge(spoken(Dialect::Usermgmt, usermgmt::side_paths(), accounts))
        .merge(spoken(Dialect::Noteria, noteria::side_paths(), accounts))
}

/// The descriptions of all calls, public and on the side port.
pub fn documents() -> (OpenApi, OpenApi) {
    let public = OpenApiRouter::new()
        .merge(clisonix::public_paths())
        .merge(aiezzy::public_paths())
        .merge(usermgmt::public_paths(VitalSigns::unknown()))
        .merge(noteria::public_paths());
    let side = OpenApiRouter::new()
        .merge(clisonix::side_paths())
        .merge(aiezzy::side_paths())
        .merge(usermgmt::side_paths())
        .merge(noteria::side_paths());
    (public.into_openapi(), side.into_openapi())
}

/// Paths whose refusals are in the dialect's form, and which are there while it is on.
fn spoken(dialect: Dialect, paths: Paths, accounts: &Arc<Accounts>) -> Paths {
    let refusals = Refusals { clock: accounts.clock().clone(), form: Form::Of(dialect) };
    paths
        .layer(from_fn_with_state(refusals, render::refusals))
        .layer(from_fn_with_state((dialect, accounts.clone()), only_while_on))
}

async fn only_while_on(
    State((dialect, accounts)): State<(Dialect, Arc<Accounts>)>,
    request: Request,
    next: Next,
) -> Response {
    if accounts.settings().compat.dialects().has(dialect) {
        return next.run(request).await;
    }
    Refused(Reject::NotFound).into_response()
}
