//! The HTTP faces of the accounts: the public API of users and the side port of admins.
//!
//! Owns paths, and the way from a request to a call of one service and back. A handler decodes, calls and encodes; what is
//! refused goes through the one error body. Never decides anything about accounts, never reads the store, and knows
//! nothing of the gateway: who serves these routers puts the request's id and the client's address into the extensions.

pub mod admin;
mod blocks;
mod checks;
mod codes;
pub mod credits;
mod docs;
pub mod document;
pub mod health;
pub mod hosts;
mod jwks;
mod keys;
mod links;
mod mfa;
mod oauth;
pub mod operations;
mod own;
pub mod public;
pub mod serve;
pub mod shapes;
pub mod side_shapes;
mod staff;
mod step_up;
mod support;
mod swagger;
#[cfg(test)]
mod tests;
mod transfer;

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;

use self::hosts::KnownHosts;
use crate::accounts::Accounts;
use crate::error::Reject;
use crate::handler::pages;
use crate::handler::render::{self, Form, Refusals, Refused};

pub use admin::{Documents, SideState, side_document, side_router};
pub use health::Readiness;
pub use public::{public_document, public_router};

/// What both faces have in common: unknown paths, wrong methods, and the body of every refusal. `hosts`: by which names it must
/// be called.
fn finish<S: Clone + Send + Sync + 'static>(
    router: Router<S>,
    state: S,
    accounts: Arc<Accounts>,
    hosts: Option<Arc<KnownHosts>>,
) -> Router {
    let clock = accounts.clock().clone();
    let refusals = Refusals { clock: clock.clone(), form: Form::OfPath(accounts.clone()) };
    let router = router
        .fallback(|| async { Refused(Reject::NotFound) })
        .method_not_allowed_fallback(|| async { Refused(Reject::MethodNotAllowed(String::new())) })
        .with_state(state);
    // Around the router and not in it: which methods there are is only known outside.
    let mut outer = Router::new().fallback_service(router).layer(from_fn_with_state(accounts, pages::refuse_foreign));
    if let Some(hosts) = hosts {
        outer = outer.layer(from_fn_with_state((hosts, clock), hosts::check));
    }
    outer.layer(from_fn_with_state(refusals, render::refusals))
}
