//! The config file as it is written: one struct per section, unknown keys refused, every default here and nowhere else.
//!
//! Owns names, defaults and units. Never judges whether values fit together; that is [`super::Config::from_raw`].

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::compat::Compat;
use super::login_check::LoginCheck;
use super::sessions::{Passwords, Tokens};
use crate::domain::codes::CodeLength;
use crate::domain::meters::{ResetHour, ResetPeriod};
use crate::domain::user::Role;

/// A length of time: `"250ms"`, `"10s"`, `"1h 30m"`, or a bare number of seconds.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Span(pub Duration);

impl Span {
    const fn secs(s: u64) -> Self {
        Self(Duration::from_secs(s))
    }

    const fn millis(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl serde::de::Visitor<'_> for Visit {
            type Value = Span;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time such as \"10s\", \"250ms\" or a number of seconds")
            }

            fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<Span, E> {
                u64::try_from(v).map(Span::secs).map_err(|_| E::custom(format!("a time cannot be negative: {v}")))
            }

            fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<Span, E> {
                Ok(Span::secs(v))
            }

            fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<Span, E> {
                humantime::parse_duration(v).map(Span).map_err(|e| E::custom(format!("\"{v}\" is not a time: {e}")))
            }
        }
        deserializer.deserialize_any(Visit)
    }
}

impl Serialize for Span {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(self.0))
    }
}

/// A secret in the config: the text itself, `{ env = "NAME" }` or `{ file = "path" }`. Never printed.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum SecretSource {
    Plain(String),
    Env { env: String },
    File { file: PathBuf },
}

impl SecretSource {
    /// The secret itself.
    ///
    /// # Errors
    /// The variable is not set or the file cannot be read; the text names which, never the value.
    pub fn read(&self) -> Result<String, String> {
        match self {
            Self::Plain(text) => Ok(text.clone()),
            Self::Env { env } => std::env::var(env).map_err(|_| format!("the environment variable {env} is not set")),
            Self::File { file } => std::fs::read_to_string(file)
                .map(|text| text.trim_end_matches(['\r', '\n']).to_owned())
                .map_err(|e| format!("cannot read {}: {e}", file.display())),
        }
    }
}

impl fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"********\"")
    }
}

impl Serialize for SecretSource {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Plain(_) => serializer.serialize_str("********"),
            Self::Env { env } => BTreeMap::from([("env", env.as_str())]).serialize(serializer),
            Self::File { file } => BTreeMap::from([("file", file)]).serialize(serializer),
        }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawConfig {
    pub data_dir: PathBuf,
    /// Where users reach this service; links in mails are built from it and from nothing else.
    pub public_base_url: Option<String>,
    pub listen: Listen,
    pub upstreams: Vec<RawUpstream>,
    pub routes: Vec<RawRoute>,
    pub verify_key: VerifyKey,
    pub forward: Vec<RawForward>,
    pub access: Access,
    pub limits: Limits,
    pub plans: BTreeMap<String, RawPlan>,
    pub prices: RawPrices,
    pub accounts: Accounts,
    pub mail: Mail,
    pub oauth: BTreeMap<String, RawOauth>,
    pub ledger: Ledger,
    pub journal: Journal,
    pub audit: Audit,
    pub store: Store,
    pub telemetry: Telemetry,
    pub compat: Compat,
}

impl Default for RawConfig {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("data"),
            public_base_url: None,
            listen: Listen::default(),
            upstreams: Vec::new(),
            routes: Vec::new(),
            verify_key: VerifyKey::default(),
            forward: Vec::new(),
            access: Access::default(),
            limits: Limits::default(),
            plans: default_plans(),
            prices: RawPrices::default(),
            accounts: Accounts::default(),
            mail: Mail::default(),
            oauth: BTreeMap::new(),
            ledger: Ledger::default(),
            journal: Journal::default(),
            audit: Audit::default(),
            store: Store::default(),
            telemetry: Telemetry::default(),
            compat: Compat::default(),
        }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    pub public: SocketAddr,
    pub admin: SocketAddr,
    /// Worker threads; 0: one per core.
    pub workers: usize,
    /// Lets the side port listen off loopback without TLS.
    pub admin_insecure: bool,
    /// Pending connections the kernel keeps per worker.
    pub backlog: u32,
    /// How long `SIGTERM` waits for running calls.
    pub drain_grace: Span,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            public: SocketAddr::from(([127, 0, 0, 1], 8080)),
            admin: SocketAddr::from(([127, 0, 0, 1], 9090)),
            workers: 0,
            admin_insecure: false,
            backlog: 1024,
            drain_grace: Span::secs(30),
        }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawUpstream {
    pub name: String,
    /// `http://host:port`, several: balanced.
    pub endpoints: Vec<String>,
    /// Put into each call instead of the client's own credential.
    #[serde(default)]
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
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawCredential {
    pub header: String,
    pub value: SecretSource,
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

mod defaults {
    pub fn roles() -> Vec<crate::domain::user::Role> {
        vec![crate::domain::user::Role::User, crate::domain::user::Role::Pro]
    }

    use super::Span;

    pub(super) fn connect_timeout() -> Span {
        Span::secs(5)
    }
    pub(super) fn first_byte_timeout() -> Span {
        Span::secs(120)
    }
    pub(super) fn upstream_idle_timeout() -> Span {
        Span::secs(120)
    }
    pub(super) fn total_timeout() -> Span {
        Span::secs(1800)
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

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Access {
    pub allow: Vec<IpNet>,
    pub deny: Vec<IpNet>,
    /// Addresses whose `X-Forwarded-For` and `Forwarded` we believe.
    pub trusted_proxies: Vec<IpNet>,
    /// Only allowed addresses come in.
    pub whitelist: bool,
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
            block_after_failures: 5,
            block_minutes: 15,
            max_tracked_addresses: 65_536,
        }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// 0 switches this limit off, here and in the next two.
    pub per_ip_per_minute: u32,
    pub per_key_per_minute: u32,
    pub per_user_per_minute: u32,
    /// Addresses, and keys, whose rate is remembered one by one; past it they share buckets by hash.
    pub max_tracked_rates: usize,
    pub in_flight_per_user: u32,
    pub max_body_bytes: u64,
    /// Bytes held for calls in flight over all workers; past it: 503.
    pub in_flight_bytes: usize,
    pub max_connections: usize,
    /// Request line and header fields.
    pub max_head_bytes: usize,
    /// How much of a request's body is read ahead when its model or size decides whether the call may go.
    pub max_inspect_bytes: usize,
    /// From a request's first byte to the end of its head.
    pub header_timeout: Span,
    /// Between two reads of a request's body.
    pub body_timeout: Span,
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

impl Default for Limits {
    fn default() -> Self {
        Self {
            per_ip_per_minute: 60,
            per_key_per_minute: 0,
            per_user_per_minute: 0,
            max_tracked_rates: 262_144,
            in_flight_per_user: 100,
            max_body_bytes: 32 << 20,
            in_flight_bytes: 512 << 20,
            max_connections: 20_000,
            max_head_bytes: 32 << 10,
            max_inspect_bytes: 1 << 20,
            header_timeout: Span::secs(10),
            body_timeout: Span::secs(30),
            idle_timeout: Span::secs(75),
            write_timeout: Span::secs(60),
            max_requests_per_connection: 1_000_000,
            max_live_users: 500_000,
            user_idle: Span::secs(300),
            max_cached_credentials: 200_000,
        }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawPlan {
    #[serde(default)]
    pub meters: BTreeMap<String, RawMeter>,
    #[serde(default)]
    pub storage_mb: Option<u64>,
    #[serde(default)]
    pub price: Option<String>,
}

/// An amount, or no limit.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum RawGrant {
    Amount(f64),
    Word(String),
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawMeter {
    /// What a new user gets: a number, or `"unlimited"`.
    pub grant: RawGrant,
    /// What the balance is set to at each reset; the grant when left out.
    #[serde(default)]
    pub reset: Option<f64>,
    #[serde(default)]
    pub period: ResetPeriod,
}

pub(super) fn default_plans() -> BTreeMap<String, RawPlan> {
    let meter = |grant: f64, period| RawMeter { grant: RawGrant::Amount(grant), reset: None, period };
    let quota = |grant: f64| match grant.is_finite() {
        true => meter(grant, ResetPeriod::Daily),
        false => RawMeter { grant: RawGrant::Word("unlimited".into()), reset: None, period: ResetPeriod::Daily },
    };
    let plan = |credits: f64, storage_mb, price: &str, [images, videos, messages]: [f64; 3]| RawPlan {
        meters: BTreeMap::from([
            ("images".to_owned(), quota(images)),
            ("videos".to_owned(), quota(videos)),
            ("messages".to_owned(), quota(messages)),
            ("conversations".to_owned(), meter(10.0, ResetPeriod::Daily)),
            (
                "credits".to_owned(),
                meter(credits, if credits > 5.0 { ResetPeriod::Monthly } else { ResetPeriod::Daily }),
            ),
        ]),
        storage_mb: Some(storage_mb),
        price: Some(price.to_owned()),
    };
    BTreeMap::from([
        ("free".to_owned(), plan(5.0, 100, "€0", [20.0, 5.0, 100.0])),
        ("starter".to_owned(), plan(1_000.0, 1_024, "€19", [50.0, 10.0, 300.0])),
        ("standard".to_owned(), plan(5_000.0, 5_120, "€49", [100.0, 25.0, 500.0])),
        ("professional".to_owned(), plan(20_000.0, 20_480, "€99", [200.0, 50.0, 1000.0])),
        ("enterprise".to_owned(), plan(100_000.0, 102_400, "custom", [f64::INFINITY; 3])),
    ])
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Accounts {
    pub registration: bool,
    /// Whether a user must verify his email before his first call.
    pub email_verification: bool,
    pub default_plan: String,
    pub session_hours: u64,
    pub refresh_days: u64,
    pub admin_session_hours: u64,
    pub support_session_hours: u64,
    /// Wrong passwords before an account is locked; 0: never.
    pub max_failed_logins: u32,
    pub lockout_hours: f64,
    /// Password hashes computed at once; each takes 19 MiB.
    pub hash_concurrency: usize,
    /// Logins and registrations waiting for a hash; more get 503.
    pub hash_queue: usize,
    /// The key under which credentials are stored as MACs; made on first start in `data_dir/secrets` when left out.
    pub pepper: Option<SecretSource>,
    /// How long a refresh token that was used answers the same new tokens again; after that it ends its session.
    pub refresh_grace: Span,
    /// How long a link that proves an address is good.
    pub verification_hours: u64,
    /// How long a link that sets a forgotten password is good.
    pub reset_minutes: u64,
    /// Says nothing of which addresses have accounts, also when somebody registers.
    pub strict: bool,
    /// Questions of one address whether a name is free.
    pub availability_per_minute: u32,
    /// Where a browser may be sent after a login at a provider, each exact or ending in `/*`.
    pub redirects: Vec<String>,
    /// A session of the staff that is not used for so long is over.
    pub staff_idle_minutes: u64,
    /// Sessions that a member of the staff may have; a further login ends the oldest.
    pub staff_sessions: usize,
    /// How long a device that somebody has logged in from is known as his.
    pub known_device_days: u64,
    pub tokens: Tokens,
    pub passwords: Passwords,
    pub keys: Keys,
    pub mfa: Mfa,
    pub codes: Codes,
    pub login_check: LoginCheck,
    pub deletion: Deletion,
}

/// How mail goes out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MailTransport {
    /// It does not.
    #[default]
    None,
    /// Into the log, links and all: for development.
    Log,
    /// As files in `mail.folder`: for development.
    File,
    Smtp,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MailTls {
    /// Begun in clear and required (RFC 3207), usually on port 587.
    #[default]
    Starttls,
    /// From the first byte (RFC 8314), usually on port 465.
    Tls,
    /// None: for a relay on this machine.
    None,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mail {
    pub transport: MailTransport,
    pub host: Option<String>,
    pub port: u16,
    pub tls: MailTls,
    pub username: Option<String>,
    pub password: Option<SecretSource>,
    /// Means `smtp.sendgrid.net` and its user.
    pub sendgrid_api_key: Option<SecretSource>,
    pub from: Option<String>,
    pub from_name: Option<String>,
    pub folder: Option<PathBuf>,
    /// An operator's own templates: `NAME.txt`, `NAME.html`, `layout.html`.
    pub templates: Option<PathBuf>,
    /// Letters waiting at most; more are not sent.
    pub queue: usize,
    /// How long a letter that does not go is tried again.
    pub retry_for: Span,
    pub timeout: Span,
    /// Letters to one address in an hour; more are not sent.
    pub per_address_per_hour: u32,
}

impl Default for Mail {
    fn default() -> Self {
        Self {
            transport: MailTransport::default(),
            host: None,
            port: 587,
            tls: MailTls::default(),
            username: None,
            password: None,
            sendgrid_api_key: None,
            from: None,
            from_name: None,
            folder: None,
            templates: None,
            queue: 10_000,
            retry_for: Span::secs(2 * 86_400),
            timeout: Span::secs(30),
            per_address_per_hour: 20,
        }
    }
}

/// How an identity provider speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OauthKind {
    /// OpenID Connect, by discovery.
    #[default]
    Oidc,
    /// GitHub's own way.
    Github,
}

/// An identity provider; `google` and `github` need no more than id and secret.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawOauth {
    #[serde(default)]
    pub kind: Option<OauthKind>,
    /// Of OpenID Connect: the address below which `/.well-known/openid-configuration` is.
    #[serde(default)]
    pub issuer: Option<String>,
    pub client_id: String,
    pub client_secret: SecretSource,
    #[serde(default)]
    pub scopes: Option<Vec<String>>,
    /// What people call it.
    #[serde(default)]
    pub label: Option<String>,
    /// Whether somebody without an account gets one.
    #[serde(default = "defaults::yes")]
    pub allow_registration: bool,
    /// It runs in the operator's own network, perhaps without TLS.
    #[serde(default)]
    pub private_network: bool,
    #[serde(default)]
    pub authorize_url: Option<String>,
    #[serde(default)]
    pub token_url: Option<String>,
    #[serde(default)]
    pub api_url: Option<String>,
}

/// Who must have a second factor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MfaRequired {
    #[default]
    None,
    /// Admins and superadmins.
    Admins,
    /// All who log in on the side port.
    Staff,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mfa {
    pub required: MfaRequired,
    /// What authenticators show beside the account's name.
    pub issuer: String,
}

impl Default for Mfa {
    fn default() -> Self {
        Self { required: MfaRequired::default(), issuer: "tollgate".to_owned() }
    }
}

/// One-time codes that staff gives to users, each good for one login with the password.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Codes {
    /// Hexadecimal digits of those made from now on.
    pub length: CodeLength,
    pub max_per_user: u64,
    /// Users who have been given codes get in with one only.
    pub required: bool,
}

impl Default for Codes {
    fn default() -> Self {
        Self { length: CodeLength::default(), max_per_user: 10_000_000, required: false }
    }
}

/// What becomes of deleted users.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Deletion {
    /// How long an admin can bring a deleted user back; 0: never, and his data is gone at once.
    pub keep_days: u64,
}

impl Default for Deletion {
    fn default() -> Self {
        Self { keep_days: 30 }
    }
}

/// How API keys are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyMode {
    /// Also sealed, so that their owners can see them again.
    #[default]
    Vault,
    /// As MACs alone.
    HashOnly,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Keys {
    pub mode: KeyMode,
    /// The key under which keys and second factors are sealed; made on first start in `data_dir/secrets` when left out.
    pub vault_key: Option<SecretSource>,
    /// Of one user, the default key included.
    pub max_per_user: usize,
    /// The longest that a rotated key may go on beside its successor.
    pub max_grace: Span,
}

impl Default for Keys {
    fn default() -> Self {
        Self { mode: KeyMode::default(), vault_key: None, max_per_user: 100, max_grace: Span::secs(7 * 86_400) }
    }
}

impl Default for Accounts {
    fn default() -> Self {
        Self {
            registration: true,
            email_verification: false,
            default_plan: "free".to_owned(),
            session_hours: 24,
            refresh_days: 30,
            admin_session_hours: 24,
            support_session_hours: 12,
            max_failed_logins: 5,
            lockout_hours: 1.0,
            hash_concurrency: 2,
            hash_queue: 64,
            pepper: None,
            refresh_grace: Span::secs(10),
            verification_hours: 24,
            reset_minutes: 60,
            strict: false,
            availability_per_minute: 20,
            redirects: Vec::new(),
            staff_idle_minutes: 60,
            staff_sessions: 10,
            known_device_days: 90,
            tokens: Tokens::default(),
            passwords: Passwords::default(),
            keys: Keys::default(),
            mfa: Mfa::default(),
            codes: Codes::default(),
            login_check: LoginCheck::default(),
            deletion: Deletion::default(),
        }
    }
}

/// When an answer may leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// After the debit that pays for it is on disk.
    #[default]
    BeforeResponse,
    /// At once; a crash may forget the debits of the last `ledger.interval`.
    Interval,
}

/// What becomes of the holds that a crash left open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RecoverOpenHolds {
    #[default]
    Charge,
    Refund,
}

/// What a finished call pays that should have reported its usage and did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MissingUsage {
    /// All that was held for it.
    #[default]
    Hold,
    /// What the text that passed by suggests: four bytes a token, or a token an event.
    Estimate,
}

/// What happens when a stream has brought more than was held for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OutgrownHold {
    /// More is held while there are credits; then the stream ends with an error event.
    #[default]
    Extend,
    /// The stream goes on; what exceeds the hold is the operator's loss.
    Finish,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ledger {
    pub durability: Durability,
    pub interval: Span,
    /// Least time between two commits.
    pub min_commit_gap: Span,
    pub recover_open_holds: RecoverOpenHolds,
    pub missing_usage: MissingUsage,
    pub outgrown_hold: OutgrownHold,
    /// How long an `Idempotency-Key` stands for its first call.
    pub idempotency_window: Span,
    /// An answer up to this size is kept for repeats of its call; 0: none is.
    pub idempotency_answer_bytes: usize,
    /// Of all kept answers together.
    pub idempotency_total_bytes: u64,
    /// The UTC hour at which days, weeks and months begin.
    pub reset_hour: ResetHour,
    /// Whether meters are set back by themselves; if not, whoever gets a plan from then on keeps what he has until staff
    /// sets it.
    pub auto_reset: bool,
    /// Writes waiting for the store; more get 503.
    pub max_pending: usize,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            durability: Durability::default(),
            interval: Span::millis(1000),
            min_commit_gap: Span::millis(1),
            recover_open_holds: RecoverOpenHolds::default(),
            missing_usage: MissingUsage::default(),
            outgrown_hold: OutgrownHold::default(),
            idempotency_window: Span::secs(24 * 3600),
            idempotency_answer_bytes: 64 << 10,
            idempotency_total_bytes: 256 << 20,
            reset_hour: ResetHour::default(),
            auto_reset: true,
            max_pending: 100_000,
        }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Journal {
    pub enabled: bool,
    pub batch_size: usize,
    pub flush_interval: Span,
    pub queue_bytes: usize,
    /// Records that may wait; 0: only their bytes count.
    pub queue_records: usize,
    /// What happens to a new record when the queue is full.
    pub overflow: Overflow,
    /// With `overflow = "wait"`: the longest that a call's end waits for room.
    pub max_wait: Span,
    /// Waiting bytes above which the journal writes at once and, with `overflow = "spill"`, new records go to files in
    /// `spill_dir`.
    pub spill_above_bytes: u64,
    /// Without it: `data_dir/journal/spill`.
    pub spill_dir: Option<PathBuf>,
    /// All spill files together; past it, records are dropped.
    pub spill_bytes: u64,
    /// Of the request's messages, and again of the answer's text, per call; what is longer is cut and marked.
    pub max_message_bytes: usize,
    pub segment_bytes: u64,
    pub segment_age: Span,
    pub retention_days: Option<u64>,
    pub retention_bytes: Option<u64>,
    /// Users, by name, whose conversations are not kept.
    pub exclude_users: Vec<String>,
    /// What becomes of segments that are full.
    pub compression: Compression,
    /// zstd's, 1 (fast) to 19 (small).
    pub compression_level: i32,
    /// 32 bytes in hex or base64; without one, conversations lie in the clear.
    pub encryption_key: Option<SecretSource>,
    /// Keys of before, as long as segments under them are there.
    pub old_encryption_keys: Vec<SecretSource>,
    pub redact: Redact,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    #[default]
    Zstd,
    None,
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            enabled: true,
            batch_size: 50,
            flush_interval: Span::secs(1),
            queue_bytes: 64 << 20,
            queue_records: 0,
            overflow: Overflow::default(),
            max_wait: Span::millis(50),
            spill_above_bytes: 32 << 20,
            spill_dir: None,
            spill_bytes: 1 << 30,
            max_message_bytes: 256 << 10,
            segment_bytes: 64 << 20,
            segment_age: Span::secs(24 * 3600),
            retention_days: Some(90),
            retention_bytes: None,
            exclude_users: Vec::new(),
            compression: Compression::default(),
            compression_level: 3,
            encryption_key: None,
            old_encryption_keys: Vec::new(),
            redact: Redact::default(),
        }
    }
}

/// What happens to a new conversation record when too many wait for the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Overflow {
    /// It is dropped and counted.
    #[default]
    Drop,
    /// The call, answered and settled, waits for room for a bounded time; then the record is dropped and counted.
    Wait,
    /// It goes to files on a second path until the disk has recovered.
    Spill,
}

/// What is taken out of conversation records before they reach any disk. A field may stand in one list only.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Redact {
    /// Become null.
    pub drop: Vec<RedactField>,
    /// Become a keyed hash: the same value gives the same hash.
    pub hash: Vec<RedactField>,
    /// Become what tells people apart no more: `j***@example.com`, a network instead of an address.
    pub mask: Vec<RedactField>,
    /// Found in what was said and replaced by a word.
    pub patterns: Vec<TextPattern>,
    /// For `hash`; without it, one is derived from the pepper.
    pub key: Option<SecretSource>,
}

/// A part of a conversation record that can be redacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RedactField {
    Username,
    Email,
    IpAddress,
    RequestId,
    /// All that was asked.
    Request,
    /// All that was answered.
    Response,
}

/// What can be found in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TextPattern {
    Email,
    CreditCard,
    ApiKey,
    Phone,
}

/// The audit trail. It is always on.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    pub segment_bytes: u64,
    /// Without it, the trail is kept for ever.
    pub retention_days: Option<u64>,
    /// Records that nobody waits for, such as failed logins.
    pub queue_records: u64,
}

impl Default for Audit {
    fn default() -> Self {
        Self { segment_bytes: 16 << 20, retention_days: None, queue_records: 4096 }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    #[default]
    Sled,
    Redb,
    /// Nothing survives the process: for tests and trials.
    Memory,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    pub backend: Backend,
    /// Pages the embedded store keeps in memory.
    pub cache_bytes: u64,
    /// A file of the write-ahead log, as it is made; there are two or three of them.
    pub log_file_bytes: u64,
}

impl Default for Store {
    fn default() -> Self {
        Self { backend: Backend::default(), cache_bytes: 64 << 20, log_file_bytes: 16 << 20 }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Off,
    #[default]
    Text,
    Json,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// One line per call on standard output.
    pub access_log: LogFormat,
    /// The share of calls that get a line, 0 to 1; refusals and failures always do.
    pub access_log_sample: f64,
    /// The program's own log on standard error, as for `RUST_LOG`.
    pub log: String,
    pub log_format: LogFormat,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            access_log: LogFormat::Text,
            access_log_sample: 1.0,
            log: "info".to_owned(),
            log_format: LogFormat::Text,
        }
    }
}
