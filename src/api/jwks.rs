//! `/.well-known/jwks.json`: the keys that others verify session tokens with (RFC 7517, RFC 8037).
//!
//! Owns this path. Public keys only: whoever verifies a token by them knows that we signed it, and not that its session
//! still goes on; for that, ask `/v1/auth/forward`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::IntoResponse;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::public::Api;
use crate::accounts::Accounts;
use crate::handler::render::Answer;

pub(super) fn paths() -> OpenApiRouter<Arc<Accounts>> {
    OpenApiRouter::new().routes(routes!(jwks))
}

/// One public key.
#[derive(Serialize, ToSchema)]
struct SigningKey {
    #[schema(example = "OKP")]
    kty: &'static str,
    #[schema(example = "Ed25519")]
    crv: &'static str,
    #[serde(rename = "use")]
    #[schema(example = "sig")]
    purpose: &'static str,
    #[schema(example = "EdDSA")]
    alg: &'static str,
    kid: String,
    /// 32 bytes in base64url.
    x: String,
}

#[derive(Serialize, ToSchema)]
struct SigningKeys {
    /// The one that signs first. Empty when tokens are not signed with a key pair.
    keys: Vec<SigningKey>,
}

/// The keys that session tokens are signed with.
#[utoipa::path(get, path = "/.well-known/jwks.json", tag = "sessions", security(()),
    responses((status = 200, body = SigningKeys)))]
async fn jwks(State(accounts): Api) -> Answer {
    let shape = |key: &crate::accounts::jwt::PublicKey| SigningKey {
        kty: "OKP",
        crv: "Ed25519",
        purpose: "sig",
        alg: "EdDSA",
        kid: key.kid.clone(),
        x: key.x.clone(),
    };
    let keys = accounts.tokens().public_keys().iter().map(shape).collect();
    // A new key is put into the file and the server started again: verifiers must look now and then.
    let cache = (header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"));
    Ok(([cache], axum::Json(SigningKeys { keys })).into_response())
}
