//! `[[upstreams]]`, `[[routes]]` and what is asked of calls: prices, access, limits.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{SecretSource, Span};
use crate::config::masked;
use crate::domain::user::Role;

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawUpstream {
    pub name: String,
    /// `http://host:port`, several: balanced.
    #[serde(serialize_with = "masked::several")]
    pub endpoints: Vec<String>,
    /// Put into each call instead of the client's own credential.
    #[serde(default, deserialize_with = "credential")]
    pub credential: Option<RawCredential>,
    #[serde(default = "defaults::connect_timeout")]
    pub connect_timeout: Span,
    /// From the request's last byte (or the connection, when no body follows) to the answer's first.
    #[serde(default = "defaults::first_byte_timeout")]
    pub first_byte_timeout: Span,
    /// Between two reads of the answer.
    #[serde(default = "defaults::upstream_idle_timeout")]
    pub idle_timeout: Span,
    /// For the whole call.
    #[serde(default = "defaults::total_timeout")]
    pub total_timeout: Span,
    /// Calls in flight over all workers; more get 503.
    #[serde(default = "defaults::max_in_flight")]
    pub max_in_flight: usize,
    /// Idle connections kept per endpoint and worker.
    #[serde(default = "defaults::pool_idle")]
    pub pool_idle: usize,
    #[serde(default = "defaults::pool_idle_timeout")]
    pub pool_idle_timeout: Span,
    /// Further attempts after the first, before the first byte and only where safe.
    #[serde(default = "defaults::retries")]
    pub retries: u32,
    /// Failures in a row that take an endpoint out; 0: never.
    #[serde(default = "defaults::eject_after")]
    pub eject_after: u32,
    #[serde(default = "defaults::eject_time")]
    pub eject_time: Span,
    /// A path to `GET` regularly; without it, endpoints are judged by their calls alone.
    #[serde(default)]
    pub health_path: Option<String>,
    #[serde(default = "defaults::health_interval")]
    pub health_interval: Span,
    /// What else than its plain reading a path may mean to this upstream.
    #[serde(default)]
    pub paths: PathReading,
    /// Whether its calls and answers say in `Via` that they came through here.
    #[serde(default = "defaults::yes")]
    pub via: bool,
}

/// How an upstream reads paths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PathReading {
    /// Nobody knows: a path whose other spelling is another route's is refused.
    #[default]
    Any,
    /// As it stands: `/v1/Secret` and `/v1/secret/` are not `/v1/secret`.
    Exact,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawCredential {
    pub header: String,
    pub value: SecretSource,
}

/// Whoever writes the secret alone is told the whole form, and not their secret.
fn credential<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<RawCredential>, D::Error> {
    struct Visit;
    impl<'de> serde::de::Visitor<'de> for Visit {
        type Value = Option<RawCredential>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("the header and the secret: credential = { header = \"authorization\", value = \"Bearer …\" }")
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            RawCredential::deserialize(serde::de::value::MapAccessDeserializer::new(map)).map(Some)
        }
    }
    deserializer.deserialize_any(Visit)
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawRoute {
    /// Exact, or a prefix ending in `/*`. The longest match wins.
    pub path: String,
    pub upstream: String,
    /// Empty: all.
    #[serde(default)]
    pub methods: Vec<String>,
    #[serde(default)]
    pub cost: BTreeMap<String, RawPrice>,
    /// Whether `[prices]` of models count here, besides `cost`.
    #[serde(default = "defaults::yes")]
    pub prices: bool,
    /// A key with scopes must have this one.
    #[serde(default)]
    pub scope: Option<String>,
    /// Models this route lets through, each exact or ending in `*`; empty: all.
    #[serde(default)]
    pub models: Vec<String>,
    /// Only users whose email is verified.
    #[serde(default)]
    pub verified: bool,
    /// Users of which roles may call; guests only where it says so.
    #[serde(default = "defaults::roles")]
    pub roles: Vec<Role>,
    /// Whether the conversation goes into the journal.
    #[serde(default = "defaults::yes")]
    pub log: bool,
    /// Adds `stream_options.include_usage` to streaming requests that lack `stream_options`.
    #[serde(default)]
    pub include_usage: bool,
    /// Lets the client's `Accept-Encoding` through; compressed answers can be neither metered nor logged.
    #[serde(default)]
    pub compression: bool,
    /// Sends the client's `Host` instead of the endpoint's.
    #[serde(default)]
    pub preserve_host: bool,
    /// Output tokens to hold credits for when a metered request names no limit of its own.
    #[serde(default = "defaults::assumed_output_tokens")]
    pub assumed_output_tokens: u64,
    /// Users who may be on this route at once; left out: any number.
    #[serde(default)]
    pub max_users: Option<u32>,
    /// How long a user keeps his place after his last call has ended.
    #[serde(default)]
    pub place_kept: Span,
    /// Routes with the same name here have one set of places together.
    #[serde(default)]
    pub places: Option<String>,
}

/// `1`, or `{ per_call = 1, per_input_token = 0.001, … }`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub enum RawPrice {
    PerCall(f64),
    Parts(RawPriceParts),
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawPriceParts {
    pub per_call: f64,
    pub per_input_token: f64,
    /// Of input that the upstream had in its cache; as `per_input_token` when left out.
    pub per_cached_token: Option<f64>,
    pub per_output_token: f64,
    pub per_image: f64,
    /// Other prices of tokens for calls with a long input.
    pub tiers: Vec<RawTier>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawTier {
    /// For calls with more input tokens than this.
    pub above_input_tokens: u64,
    pub per_input_token: f64,
    pub per_cached_token: Option<f64>,
    pub per_output_token: f64,
}

/// What happens to a call whose model has no price.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownModel {
    /// It gets 403.
    #[default]
    Refuse,
    /// It costs what its route costs.
    Free,
    /// It costs `prices.default`.
    Default,
}

/// `POST /v1/auth/verify-key`: what an app behind another proxy pays for looking at a user's key.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct VerifyKey {
    pub cost: BTreeMap<String, RawPrice>,
}

impl Default for VerifyKey {
    fn default() -> Self {
        Self { cost: BTreeMap::from([("conversations".to_owned(), RawPrice::PerCall(1.0))]) }
    }
}

/// A request that another proxy may let through when it asks `/v1/auth/forward`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawForward {
    /// Exact, or a prefix ending in `/*`. The longest match wins.
    pub path: String,
    /// Without ports; empty: all.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Empty: all.
    #[serde(default)]
    pub methods: Vec<String>,
    #[serde(default)]
    pub cost: BTreeMap<String, RawPrice>,
    /// A key with scopes must have this one.
    #[serde(default)]
    pub scope: Option<String>,
    /// Only users whose email is verified.
    #[serde(default)]
    pub verified: bool,
}

/// What models cost, besides the routes' own costs. In force when `models` or `default` names a price.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawPrices {
    pub unknown_model: UnknownModel,
    /// By meter.
    pub default: BTreeMap<String, RawPrice>,
    /// By model, exact or ending in `*`; then by meter. The longest match wins.
    pub models: BTreeMap<String, BTreeMap<String, RawPrice>>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Access {
    pub allow: Vec<IpNet>,
    pub deny: Vec<IpNet>,
    /// Addresses whose `X-Forwarded-For` and `Forwarded` we believe.
    pub trusted_proxies: Vec<IpNet>,
    /// Only allowed addresses come in.
    pub whitelist: bool,
    /// What a blocked address is refused.
    pub block: Block,
    /// Failed credentials from one address before it is blocked; 0: never.
    pub block_after_failures: u32,
    pub block_minutes: u64,
    /// Addresses whose failures are remembered at once.
    pub max_tracked_addresses: usize,
}

impl Default for Access {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            deny: Vec::new(),
            trusted_proxies: Vec::new(),
            whitelist: false,
            block: Block::Guesses,
            block_after_failures: 5,
            block_minutes: 15,
            max_tracked_addresses: 65_536,
        }
    }
}

/// What a blocked address is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Block {
    /// Every attempt with a password, a code or a mailed token, and credentials that nobody has. Good ones go on.
    #[default]
    Guesses,
    /// Everything on the public listener.
    All,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// 0 switches this limit off, here and in the next three.
    pub per_ip_per_minute: u32,
    /// Refusals for a credential, a path or a method (401, 404, 405); left out: as many as `per_ip_per_minute`.
    pub refusals_per_ip_per_minute: Option<u32>,
    pub per_key_per_minute: u32,
    pub per_user_per_minute: u32,
    /// Addresses, and keys, whose rate is remembered one by one; past it they share buckets by hash.
    pub max_tracked_rates: usize,
    pub in_flight_per_user: u32,
    pub max_body_bytes: u64,
    /// Bytes held for calls in flight over all workers; past it: 503.
    pub in_flight_bytes: usize,
    /// What of them the calls of one user may hold whose bodies are waited for or long; 0: a quarter.
    pub in_flight_bytes_per_user: usize,
    /// As the one before, for the calls from one address; 0: half.
    pub in_flight_bytes_per_address: usize,
    /// Bytes held for logins and whatever else is answered here, apart from the calls that are passed on.
    pub local_in_flight_bytes: usize,
    /// Client connections; fewer where the process's descriptors do not suffice.
    pub max_connections: usize,
    /// Connections of one address (an IPv6 /64), and calls that trusted proxies bring for it; 0: any number.
    pub connections_per_address: usize,
    /// Connections of the side port.
    pub max_admin_connections: usize,
    /// Request line and header fields.
    pub max_head_bytes: usize,
    /// How much of a request's body is read ahead when its model or size decides whether the call may go.
    pub max_inspect_bytes: usize,
    /// From a request's first byte to the end of its head.
    pub header_timeout: Span,
    /// Between two reads of a request's body.
    pub body_timeout: Span,
    /// The pace of a body that is waited for longer than `body_timeout` in all; a slower one gets 408. 0: any.
    pub slowest_body_bytes_per_second: u64,
    /// Between two requests on one connection.
    pub idle_timeout: Span,
    /// For a client that does not read its answer.
    pub write_timeout: Span,
    pub max_requests_per_connection: u64,
    /// Users held in memory at once.
    pub max_live_users: usize,
    pub user_idle: Span,
    /// Credentials held in memory at once; others are read from the store.
    pub max_cached_credentials: u64,
}

impl Limits {
    /// Refusals a minute; who takes the limit of an address away takes this one away with it.
    pub fn refusals(&self) -> u32 {
        self.refusals_per_ip_per_minute.unwrap_or(self.per_ip_per_minute)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            per_ip_per_minute: 60,
            refusals_per_ip_per_minute: None,
            per_key_per_minute: 0,
            per_user_per_minute: 0,
            max_tracked_rates: 262_144,
            in_flight_per_user: 100,
            max_body_bytes: 32 << 20,
            in_flight_bytes: 512 << 20,
            in_flight_bytes_per_user: 0,
            in_flight_bytes_per_address: 0,
            local_in_flight_bytes: 64 << 20,
            max_connections: 20_000,
            connections_per_address: 10_000,
            max_admin_connections: 512,
            max_head_bytes: 32 << 10,
            max_inspect_bytes: 1 << 20,
            header_timeout: Span::secs(10),
            body_timeout: Span::secs(30),
            slowest_body_bytes_per_second: 8 << 10,
            idle_timeout: Span::secs(75),
            write_timeout: Span::secs(60),
            max_requests_per_connection: 1_000_000,
            max_live_users: 500_000,
            user_idle: Span::secs(300),
            max_cached_credentials: 200_000,
        }
    }
}

mod defaults {
    use super::{Role, Span};

    pub(super) fn roles() -> Vec<Role> {
        vec![Role::User, Role::Pro]
    }

    pub(super) fn connect_timeout() -> Span {
        Span::secs(10)
    }
    /// A model may think for minutes before it says a word, and between two.
    pub(super) fn first_byte_timeout() -> Span {
        Span::secs(600)
    }
    pub(super) fn upstream_idle_timeout() -> Span {
        Span::secs(600)
    }
    pub(super) fn total_timeout() -> Span {
        Span::secs(86_400)
    }
    pub(super) fn max_in_flight() -> usize {
        10_000
    }
    pub(super) fn pool_idle() -> usize {
        256
    }
    pub(super) fn pool_idle_timeout() -> Span {
        Span::secs(60)
    }
    pub(super) fn retries() -> u32 {
        2
    }
    pub(super) fn eject_after() -> u32 {
        5
    }
    pub(super) fn eject_time() -> Span {
        Span::secs(10)
    }
    pub(super) fn health_interval() -> Span {
        Span::secs(5)
    }
    pub(super) fn yes() -> bool {
        true
    }
    pub(super) fn assumed_output_tokens() -> u64 {
        1024
    }
}
