//! `/v1/users/keys` and `/v1/users/api-key/reveal`: a user's named keys, and his keys' texts once more.
//!
//! Owns these paths and the fields of a key. A key's text is in the answer to the call that makes it, and in that of a
//! reveal, which asks for the password.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use ipnet::IpNet;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::public::Api;
use super::shapes::{Done, Time};
use super::step_up::StepUp;
use crate::accounts::Accounts;
use crate::accounts::keys::{KeyUpdate, KeyView, NewKey};
use crate::actors::audit::{Action, Record};
use crate::clock::UnixMillis;
use crate::domain::addresses::parse_network;
use crate::domain::ids::CredentialId;
use crate::domain::key::KeyLimits;
use crate::error::Reject;
use crate::handler::acts::own_act;
use crate::handler::extract::{Call, Fields};
use crate::handler::render::{self, Answer};

pub(super) fn paths() -> OpenApiRouter<Arc<Accounts>> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(one, update, revoke))
        .routes(routes!(rotate))
        .routes(routes!(reveal))
        .routes(routes!(reveal_default))
}

/// A key without its text. Empty lists narrow nothing.
#[derive(Serialize, ToSchema)]
pub(super) struct KeyShape {
    id: u64,
    name: String,
    #[schema(example = "pe-rqrF…")]
    masked: String,
    scopes: Vec<String>,
    /// Names of models, exact or ending in `*`.
    models: Vec<String>,
    /// Networks from which the key may be used.
    #[schema(value_type = Vec<String>)]
    cidrs: Vec<IpNet>,
    per_minute: Option<u32>,
    created_at: Time,
    expires_at: Option<Time>,
    /// To the minute; null: never.
    last_used: Option<Time>,
    /// The key that takes this one's place.
    rotated_to: Option<u64>,
}

impl From<&KeyView> for KeyShape {
    fn from(view: &KeyView) -> Self {
        Self {
            id: view.id.0,
            name: view.name.clone(),
            masked: view.masked.clone(),
            scopes: view.limits.scopes.clone(),
            models: view.limits.models.clone(),
            cidrs: view.limits.cidrs.clone(),
            per_minute: view.limits.per_minute,
            created_at: view.created_at.into(),
            expires_at: view.expires_at.map(Time::from),
            last_used: view.last_used.map(Time::from),
            rotated_to: view.rotated_to.map(|id| id.0),
        }
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct Keys {
    #[schema(example = true)]
    pub(super) success: bool,
    pub(super) keys: Vec<KeyShape>,
}

impl Keys {
    pub(super) fn of(views: &[KeyView]) -> Self {
        Self { success: true, keys: views.iter().map(KeyShape::from).collect() }
    }
}

#[derive(Serialize, ToSchema)]
struct OneKey {
    #[schema(example = true)]
    success: bool,
    key: KeyShape,
}

#[derive(Serialize, ToSchema)]
struct KeyMade {
    #[schema(example = true)]
    success: bool,
    message: &'static str,
    /// The key itself.
    #[schema(example = "pe-rqrFLve5ZM63ZL1XtREaiLrlrNreu20Y")]
    api_key: String,
    key: KeyShape,
}

/// What a key may do, and how long.
#[derive(ToSchema)]
struct KeyRequest {
    /// 1 to 64 characters; needed for a new key, and unique among the user's.
    #[schema(example = "laptop")]
    name: Option<String>,
    /// At most 16, as `models` and `cidrs`; empty: all.
    scopes: Option<Vec<String>>,
    /// Each exact or ending in `*`.
    #[schema(example = json!(["gpt-4*"]))]
    models: Option<Vec<String>>,
    #[schema(value_type = Option<Vec<String>>, example = json!(["10.0.0.0/8"]))]
    cidrs: Option<Vec<IpNet>>,
    /// Calls a minute; null: no limit of its own.
    #[schema(value_type = Option<u32>, minimum = 1)]
    per_minute: Option<Option<u32>>,
    /// Null: never.
    #[schema(value_type = Option<Time>)]
    expires_at: Option<Option<UnixMillis>>,
}

const NETWORKS: &str = "must be a list of addresses or networks such as 10.0.0.0/8";

impl KeyRequest {
    fn read(fields: &mut Fields) -> Result<Self, Reject> {
        let (no_limit, no_end) = (fields.is_null("per_minute"), fields.is_null("expires_at"));
        let networks = fields
            .optional_texts("cidrs")
            .map(|texts| texts.iter().map(|text| parse_network(text)).collect::<Option<Vec<IpNet>>>());
        let per_minute = match fields.optional_number("per_minute").map(u32::try_from) {
            Some(Err(_)) => return Err(Reject::Invalid(vec!["per_minute: must be below 4294967296".into()])),
            Some(Ok(number)) => Some(number),
            None => None,
        };
        let cidrs = match networks {
            Some(None) => return Err(Reject::Invalid(vec![format!("cidrs: {NETWORKS}")])),
            Some(Some(networks)) => Some(networks),
            None => None,
        };
        let ends = fields.optional_time("expires_at");
        Ok(Self {
            name: fields.optional_text("name"),
            scopes: fields.optional_texts("scopes"),
            models: fields.optional_texts("models"),
            cidrs,
            per_minute: if no_limit { Some(None) } else { per_minute.map(Some) },
            expires_at: if no_end { Some(None) } else { ends.map(Some) },
        })
    }
}

fn key_in_path(call: &Call) -> Result<CredentialId, Reject> {
    call.number("id").map(CredentialId)
}

fn told(view: &KeyView, record: Record) -> Record {
    record.with("key", view.id.0).with("name", view.name.as_str())
}

/// The caller's keys, oldest first.
#[utoipa::path(get, path = "/v1/users/keys", tag = "keys", security(("session" = [])),
    responses((status = 200, body = Keys)))]
async fn list(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    render::ok(Keys::of(&accounts.keys(user.id)?))
}

/// Makes a named key.
#[utoipa::path(post, path = "/v1/users/keys", tag = "keys", request_body = KeyRequest, security(("session" = [])),
    responses((status = 200, body = KeyMade)))]
async fn create(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let mut fields = call.fields()?;
    let request = KeyRequest::read(&mut fields)?;
    if request.name.is_none() {
        fields.missing("name");
    }
    fields.done_strictly()?;
    let limits = KeyLimits {
        scopes: request.scopes.unwrap_or_default(),
        models: request.models.unwrap_or_default(),
        cidrs: request.cidrs.unwrap_or_default(),
        per_minute: request.per_minute.flatten(),
    };
    let new = NewKey {
        name: request.name.unwrap_or_default(),
        limits,
        expires_at: request.expires_at.flatten(),
        ..NewKey::default()
    };
    let record = own_act(&call, Action::KeyCreated, &user);
    let act = move |accounts: Arc<Accounts>| async move { accounts.create_key(user.id, new).await };
    let (key, text) = accounts.audited(record, act, |(key, _), record| told(key, record)).await?;
    made("Key created", &key, text.expose())
}

fn made(message: &'static str, key: &KeyView, text: &str) -> Answer {
    render::ok(KeyMade { success: true, message, api_key: text.to_owned(), key: key.into() })
}

/// One of the caller's keys.
#[utoipa::path(get, path = "/v1/users/keys/{id}", tag = "keys", security(("session" = [])),
    responses((status = 200, body = OneKey)))]
async fn one(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let key = accounts.key(user.id, key_in_path(&call)?)?;
    render::ok(OneKey { success: true, key: (&key).into() })
}

/// Changes a named key; what is left out stays as it is.
#[utoipa::path(put, path = "/v1/users/keys/{id}", tag = "keys", request_body = KeyRequest, security(("session" = [])),
    responses((status = 200, body = OneKey)))]
async fn update(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let id = key_in_path(&call)?;
    let mut fields = call.fields()?;
    let KeyRequest { name, scopes, models, cidrs, per_minute, expires_at } = KeyRequest::read(&mut fields)?;
    fields.done_strictly()?;
    let update = KeyUpdate { name, scopes, models, cidrs, per_minute, expires_at };
    let record = own_act(&call, Action::KeyUpdated, &user);
    let act = move |accounts: Arc<Accounts>| async move { accounts.update_key(user.id, id, update).await };
    let key = accounts.audited(record, act, told).await?;
    render::ok(OneKey { success: true, key: (&key).into() })
}

/// Removes a named key, which opens nothing any more.
#[utoipa::path(delete, path = "/v1/users/keys/{id}", tag = "keys", security(("session" = [])),
    responses((status = 200, body = Done)))]
async fn revoke(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let id = key_in_path(&call)?;
    let record = own_act(&call, Action::KeyRevoked, &user);
    let act = move |accounts: Arc<Accounts>| async move { accounts.revoke_key(user.id, id).await };
    accounts.audited(record, act, told).await?;
    render::ok(Done::new("Key removed"))
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "the handler reads its one field itself; this is its description")]
struct RotateRequest {
    /// How long the old key goes on beside the new one; 0: it is dead at once.
    #[schema(minimum = 0, example = 3600)]
    grace_seconds: Option<u64>,
}

/// Gives a key a successor with the same name and limits.
#[utoipa::path(post, path = "/v1/users/keys/{id}/rotate", tag = "keys", request_body = Option<RotateRequest>,
    security(("session" = [])), responses((status = 200, body = KeyMade)))]
async fn rotate(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let id = key_in_path(&call)?;
    let mut fields = call.optional_fields()?;
    let grace = Duration::from_secs(fields.optional_number("grace_seconds").unwrap_or(0));
    fields.done_strictly()?;
    let record = own_act(&call, Action::KeyRotated, &user).with("old_key", id.0).with("grace_seconds", grace.as_secs());
    let act = move |accounts: Arc<Accounts>| async move { accounts.rotate_key(user.id, id, grace).await };
    let (key, text) = accounts.audited(record, act, |(key, _), record| told(key, record)).await?;
    made("Key rotated", &key, text.expose())
}

/// Shows a key's text once more.
#[utoipa::path(post, path = "/v1/users/keys/{id}/reveal", tag = "keys", request_body = StepUp,
    security(("session" = [])), responses((status = 200, body = KeyMade)))]
async fn reveal(State(accounts): Api, call: Call) -> Answer {
    let id = key_in_path(&call)?;
    revealed(accounts, call, Some(id)).await
}

/// Shows the text of the caller's default key once more.
#[utoipa::path(post, path = "/v1/users/api-key/reveal", tag = "keys", request_body = StepUp,
    security(("session" = [])), responses((status = 200, body = KeyMade)))]
async fn reveal_default(State(accounts): Api, call: Call) -> Answer {
    revealed(accounts, call, None).await
}

async fn revealed(accounts: Arc<Accounts>, call: Call, id: Option<CredentialId>) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let proof = StepUp::read(&call)?;
    let (record, address) = (own_act(&call, Action::KeyRevealed, &user), call.address);
    let act = move |accounts: Arc<Accounts>| async move {
        accounts.step_up(user.id, proof, address).await?;
        accounts.reveal_key(user.id, id)
    };
    let (key, text) = accounts.audited(record, act, |(key, _), record| told(key, record)).await?;
    made("This is the key", &key, text.expose())
}
