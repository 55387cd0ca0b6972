//! The config: read, overridden from the environment, checked, and turned into what the rest can use without checking.
//!
//! Owns the path from text to [`Config`] and every message about what is wrong with it. Never opens a socket or a store.

mod compat;
mod cors;
mod diff;
mod env;
mod journal;
mod listen;
mod login_check;
mod masked;
mod oauth;
mod places;
pub mod raw;
mod sessions;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use raw::{
    Access, Accounts, Audit, Backend, Block, Compression, Durability, Journal, KeyMode, Ledger, Limits, Listen,
    LogFormat, Mail, MailTls, MailTransport, MfaRequired, MissingUsage, OauthKind, OutgrownHold, Overflow, PathReading,
    RawConfig, RecoverOpenHolds, Redact, RedactField, SecretSource, Store, Telemetry, TextPattern, UnknownModel,
};

pub use compat::Compat;
pub use cors::Cors;
pub use env::{foreign_names, idle_names};
pub use login_check::{LoginCheck, SocialLogins, is_factor_name};
pub use oauth::OauthProvider;
pub use sessions::{CommonPasswords, Passwords, TokenAlgorithm, TokenForm, Tokens};

use crate::domain::cookies::CookieRule;
use crate::domain::meters::{MeterName, Micro, ResetPeriod};
use crate::domain::nearest;
use crate::domain::price::{Price, Rates, Tier, TokenRate};
use crate::domain::user::Role;

/// The defaults, as a file an operator can read.
pub const DEFAULT_TOML: &str = include_str!("../../config/default.toml");

/// A config that has been checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// As it was written, with defaults filled in and secrets masked.
    pub effective: Arc<serde_json::Value>,
    pub data_dir: PathBuf,
    /// The number of the one group that may read what is in it.
    pub data_dir_group: Option<u32>,
    pub public_base_url: Option<String>,
    pub listen: Listen,
    pub upstreams: Vec<UpstreamConfig>,
    pub routes: Vec<RouteConfig>,
    pub verify_key_cost: Vec<(MeterName, Price)>,
    pub forward: Vec<ForwardConfig>,
    pub access: Access,
    pub limits: Limits,
    pub cors: Cors,
    pub plans: Vec<Plan>,
    pub prices: PriceList,
    pub accounts: Accounts,
    pub mail: Mail,
    pub oauth: BTreeMap<String, OauthProvider>,
    pub ledger: Ledger,
    pub journal: Journal,
    pub audit: Audit,
    pub store: Store,
    pub telemetry: Telemetry,
    pub compat: Compat,
}

/// One upstream application and how to reach it.
#[derive(Clone)]
pub struct UpstreamConfig {
    pub name: Arc<str>,
    pub endpoints: Vec<EndpointAddress>,
    /// Header name (lower case) and value.
    pub credential: Option<(String, String)>,
    pub connect_timeout: Duration,
    pub first_byte_timeout: Duration,
    pub idle_timeout: Duration,
    pub total_timeout: Duration,
    pub max_in_flight: usize,
    pub pool_idle: usize,
    pub pool_idle_timeout: Duration,
    pub retries: u32,
    pub eject_after: u32,
    pub eject_time: Duration,
    pub health_path: Option<String>,
    pub health_interval: Duration,
    pub paths: PathReading,
    pub via: bool,
}

impl std::fmt::Debug for UpstreamConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpstreamConfig")
            .field("name", &self.name)
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}

/// `http://host:port` in its parts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointAddress {
    /// Host and port as the `Host` header names them.
    pub authority: Arc<str>,
    pub host: Arc<str>,
    pub port: u16,
}

/// One line of the route table.
#[derive(Clone, Debug)]
pub struct RouteConfig {
    /// As in the file; the label in metrics and logs.
    pub pattern: Arc<str>,
    pub path: PathPattern,
    pub upstream: Arc<str>,
    pub methods: Vec<String>,
    pub cost: Vec<(MeterName, Price)>,
    /// Whether the price list counts here.
    pub prices: bool,
    pub scope: Option<String>,
    pub models: Vec<String>,
    pub verified: bool,
    pub roles: Vec<Role>,
    pub log: bool,
    pub include_usage: bool,
    pub compression: bool,
    pub preserve_host: bool,
    pub assumed_output_tokens: u64,
    /// `None`: any number of users at once.
    pub places: Option<PlacesConfig>,
}

/// How many users may be on a route at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacesConfig {
    pub max_users: u32,
    /// How long a place is a user's after his last call.
    pub kept: Duration,
    /// Under which name other routes have the same places.
    pub shared: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathPattern {
    Exact(String),
    /// All paths that begin so; ends in `/`.
    Prefix(String),
}

impl PathPattern {
    /// `path`: without the query.
    pub fn matches(&self, path: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => exact.as_bytes() == path,
            Self::Prefix(prefix) => path.starts_with(prefix.as_bytes()),
        }
    }

    /// Of two that match, the heavier counts.
    pub fn weight(&self) -> (bool, usize) {
        match self {
            Self::Exact(exact) => (true, exact.len()),
            Self::Prefix(prefix) => (false, prefix.len()),
        }
    }
}

/// A request that a proxy may let through when it asks `/v1/auth/forward`.
#[derive(Clone, Debug)]
pub struct ForwardConfig {
    pub path: PathPattern,
    /// Empty: all.
    pub hosts: Vec<String>,
    /// Empty: all.
    pub methods: Vec<String>,
    pub cost: Vec<(MeterName, Price)>,
    pub scope: Option<String>,
    pub verified: bool,
}

/// What models cost.
#[derive(Clone, Debug, Default)]
pub struct PriceList {
    pub unknown_model: UnknownModel,
    pub default: Vec<(MeterName, Price)>,
    /// Model, exact or ending in `*`, with its prices.
    pub models: Vec<(String, Vec<(MeterName, Price)>)>,
}

impl PriceList {
    /// Whether there is a price at all.
    pub fn is_in_force(&self) -> bool {
        !self.models.is_empty() || !self.default.is_empty()
    }
}

/// What a plan gives its users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub name: Arc<str>,
    pub meters: Vec<PlanMeter>,
    pub storage_mb: Option<u64>,
    pub price: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanMeter {
    pub name: MeterName,
    pub grant: Micro,
    pub reset: Micro,
    pub period: ResetPeriod,
}

/// Why a config is refused: where, what, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    pub file: String,
    pub line: Option<usize>,
    pub reason: String,
}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.reason),
            None => write!(f, "{}: {}", self.file, self.reason),
        }
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads `file`, or the embedded defaults, with the overrides of `variables` (name and value pairs).
    ///
    /// # Errors
    /// The file cannot be read, is not TOML, has an unknown key or a value that does not fit.
    pub fn load(file: Option<&Path>, variables: impl Iterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let (label, text) = match file {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|e| ConfigError {
                    file: path.display().to_string(),
                    line: None,
                    reason: format!("cannot be read: {e}"),
                })?;
                (path.display().to_string(), text)
            }
            None => ("(embedded defaults)".to_owned(), DEFAULT_TOML.to_owned()),
        };
        Self::parse(&label, &text, variables)
    }

    /// As [`Config::load`], from text.
    pub fn parse(
        label: &str,
        text: &str,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let refuse = |line, reason| ConfigError { file: label.to_owned(), line, reason };
        // Once from the text, so that an error can name its line; again with the overrides, which have no lines.
        let located = |e: toml::de::Error| {
            let line = e.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            refuse(line, with_nearest_name(e.message()))
        };
        let mut raw: RawConfig = toml::from_str(text).map_err(located)?;
        let mut table: toml::Table = toml::from_str(text).map_err(located)?;
        if env::apply(&mut table, variables).map_err(|reason| refuse(None, reason))? {
            raw = table.try_into().map_err(|e: toml::de::Error| {
                refuse(None, format!("after the overrides from the environment: {}", with_nearest_name(e.message())))
            })?;
        }
        Self::from_raw(raw).map_err(|reason| {
            let line = line_of_key(text, &reason);
            refuse(line, reason)
        })
    }

    /// Checks what the types cannot: that names refer to something, and that values make sense together.
    ///
    /// # Errors
    /// A sentence that begins with the key it is about.
    pub fn from_raw(raw: RawConfig) -> Result<Self, String> {
        let effective = Arc::new(serde_json::to_value(&raw).map_err(|error| error.to_string())?);
        let upstreams = raw.upstreams.into_iter().map(check_upstream).collect::<Result<Vec<_>, _>>()?;
        let mut names = HashSet::new();
        if let Some(twice) = upstreams.iter().find(|u| !names.insert(u.name.clone())) {
            return Err(format!("upstreams.name: \"{}\" is there twice; give each upstream its own name", twice.name));
        }
        let routes = raw.routes.into_iter().map(|route| check_route(route, &names)).collect::<Result<Vec<_>, _>>()?;
        places::check_shared(&routes)?;
        // A file that describes one plan does not take the others away from the users who have them.
        let mut described = raw::default_plans();
        described.extend(raw.plans);
        let mut plans =
            described.into_iter().map(|(name, plan)| check_plan(&name, plan)).collect::<Result<Vec<_>, _>>()?;
        if !raw.ledger.auto_reset {
            plans.iter_mut().flat_map(|plan| &mut plan.meters).for_each(|meter| meter.period = ResetPeriod::Never);
        }
        let config = Self {
            effective,
            data_dir_group: check_data_dir(&raw.data_dir, raw.data_dir_group.as_deref())?,
            data_dir: raw.data_dir,
            public_base_url: raw.public_base_url,
            listen: raw.listen,
            upstreams,
            routes,
            verify_key_cost: check_fixed_cost(&raw.verify_key.cost).map_err(|why| format!("verify_key.cost: {why}"))?,
            forward: raw.forward.into_iter().map(check_forward).collect::<Result<Vec<_>, _>>()?,
            access: raw.access,
            limits: raw.limits,
            cors: raw.cors.checked()?,
            plans,
            prices: check_prices(raw.prices)?,
            accounts: raw.accounts,
            mail: raw.mail,
            oauth: oauth::check(raw.oauth)?,
            ledger: raw.ledger,
            journal: raw.journal,
            audit: raw.audit,
            store: raw.store,
            telemetry: raw.telemetry,
            compat: raw.compat,
        };
        config.check_sections()?;
        Ok(config)
    }

    /// Where sessions in cookies count; nowhere without the dialect whose pages rely on them.
    pub fn cookie_rule(&self) -> Option<CookieRule> {
        self.compat.aiezzy.then(|| CookieRule::new(self.public_base_url.as_deref()))
    }

    fn check_sections(&self) -> Result<(), String> {
        listen::check(&self.listen)?;
        if self.plan(&self.accounts.default_plan).is_none() {
            return Err(format!(
                "accounts.default_plan: there is no plan \"{}\"; add [plans.{0}] or name one that exists",
                self.accounts.default_plan
            ));
        }
        let at_least = |key: &str, value: u64, least: u64| {
            if value < least { Err(format!("{key}: {value} is too small; at least {least}")) } else { Ok(()) }
        };
        at_least("limits.max_head_bytes", self.limits.max_head_bytes as u64, 1024)?;
        if self.limits.max_head_bytes > 1 << 20 {
            return Err(format!("limits.max_head_bytes: {} is over 1 MiB", self.limits.max_head_bytes));
        }
        at_least("limits.in_flight_bytes", self.limits.in_flight_bytes as u64, 1 << 20)?;
        at_least("limits.local_in_flight_bytes", self.limits.local_in_flight_bytes as u64, 1 << 20)?;
        for (key, bytes) in [
            ("limits.in_flight_bytes_per_user", self.limits.in_flight_bytes_per_user),
            ("limits.in_flight_bytes_per_address", self.limits.in_flight_bytes_per_address),
        ] {
            if bytes != 0 {
                at_least(key, bytes as u64, 64 << 10)?;
            }
        }
        at_least("limits.max_connections", self.limits.max_connections as u64, 1)?;
        at_least("limits.max_admin_connections", self.limits.max_admin_connections as u64, 8)?;
        at_least("limits.max_live_users", self.limits.max_live_users as u64, 1)?;
        at_least("limits.max_requests_per_connection", self.limits.max_requests_per_connection, 1)?;
        at_least("journal.segment_bytes", self.journal.segment_bytes, 64 << 10)?;
        at_least("store.log_file_bytes", self.store.log_file_bytes, 1 << 20)?;
        if self.store.log_file_bytes > 1 << 30 {
            return Err(format!("store.log_file_bytes: {} is over 1 GiB; use less", self.store.log_file_bytes));
        }
        journal::check(&self.journal)?;
        self.compat.check()?;
        at_least("audit.segment_bytes", self.audit.segment_bytes, 64 << 10)?;
        at_least("audit.retention_days", self.audit.retention_days.unwrap_or(1), 1)?;
        at_least("audit.queue_records", self.audit.queue_records, 16)?;
        let issuer = &self.accounts.mfa.issuer;
        if issuer.is_empty() || issuer.len() > 64 || issuer.contains(':') || issuer.chars().any(char::is_control) {
            return Err("accounts.mfa.issuer: 1 to 64 characters without a colon".into());
        }
        if self.accounts.deletion.keep_days > 3650 {
            return Err("accounts.deletion.keep_days: at most 3650".into());
        }
        self.check_mail()?;
        at_least("accounts.keys.max_per_user", self.accounts.keys.max_per_user as u64, 1)?;
        if self.accounts.keys.max_per_user > 1000 {
            return Err("accounts.keys.max_per_user: at most 1000".into());
        }
        if self.accounts.refresh_grace.0.as_secs() > 300 {
            return Err(
                "accounts.refresh_grace: at most 5 minutes: so long a stolen refresh token goes unnoticed".into()
            );
        }
        check_tokens(&self.accounts.tokens)?;
        login_check::check(&self.accounts.login_check)?;
        at_least("accounts.staff_idle_minutes", self.accounts.staff_idle_minutes, 1)?;
        at_least("accounts.staff_sessions", self.accounts.staff_sessions as u64, 1)?;
        if self.accounts.staff_sessions > 1000 {
            return Err("accounts.staff_sessions: at most 1000".into());
        }
        if self.accounts.known_device_days > 3650 {
            return Err("accounts.known_device_days: at most 3650; 0 knows no devices".into());
        }
        at_least("accounts.hash_concurrency", self.accounts.hash_concurrency as u64, 1)?;
        for (key, span) in [
            ("limits.header_timeout", self.limits.header_timeout),
            ("limits.body_timeout", self.limits.body_timeout),
            ("limits.idle_timeout", self.limits.idle_timeout),
            ("limits.write_timeout", self.limits.write_timeout),
        ] {
            at_least(key, span.0.as_millis() as u64, 1)?;
        }
        if !(0.0..=1.0).contains(&self.telemetry.access_log_sample) {
            return Err(format!(
                "telemetry.access_log_sample: {} is not a share between 0 and 1",
                self.telemetry.access_log_sample
            ));
        }
        if !(0.0..=8760.0).contains(&self.accounts.lockout_hours) {
            return Err(format!("accounts.lockout_hours: {} is not between 0 and 8760", self.accounts.lockout_hours));
        }
        Ok(())
    }

    fn check_mail(&self) -> Result<(), String> {
        let (mail, accounts) = (&self.mail, &self.accounts);
        if !(1..=24 * 365).contains(&accounts.verification_hours) {
            return Err(format!(
                "accounts.verification_hours: {} is not between 1 and 8760",
                accounts.verification_hours
            ));
        }
        if !(1..=24 * 60).contains(&accounts.reset_minutes) {
            return Err(format!("accounts.reset_minutes: {} is not between 1 and 1440", accounts.reset_minutes));
        }
        oauth::check_around(&self.oauth, self.public_base_url.as_deref(), &accounts.redirects)?;
        if mail.transport == MailTransport::None {
            return match accounts.strict {
                true => {
                    Err("accounts.strict: needs mail, which tells people what the answer does not; set mail.transport"
                        .into())
                }
                false => Ok(()),
            };
        }
        let base = self.public_base_url.as_deref().unwrap_or_default();
        if !(base.starts_with("https://") || base.starts_with("http://")) {
            return Err(
                "public_base_url: is needed for the links in mails, which [mail] (or SMTP_HOST or SENDGRID_API_KEY in \
                        the environment) has sent; such as \"https://ai.example.com\""
                    .into(),
            );
        }
        if mail.from.is_none() {
            return Err("mail.from: is needed to send mail, such as \"noreply@example.com\"".into());
        }
        let missing = match mail.transport {
            MailTransport::Smtp if mail.host.is_none() && mail.sendgrid_api_key.is_none() => Some("host"),
            MailTransport::File if mail.folder.is_none() => Some("folder"),
            _ => None,
        };
        if let Some(key) = missing {
            return Err(format!("mail.{key}: is needed with this mail.transport"));
        }
        for (key, secret) in [("password", &mail.password), ("sendgrid_api_key", &mail.sendgrid_api_key)] {
            secret
                .as_ref()
                .map_or(Ok(String::new()), SecretSource::read)
                .map_err(|why| format!("mail.{key}: {why}"))?;
        }
        Ok(())
    }

    pub fn plan(&self, name: &str) -> Option<&Plan> {
        self.plans.iter().find(|plan| &*plan.name == name)
    }

    pub fn worker_count(&self) -> usize {
        match self.listen.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        }
    }
}

/// The effective config as TOML with secrets masked: what `check-config` prints.
///
/// # Errors
/// As [`Config::load`].
pub fn effective_toml(
    file: Option<&Path>,
    variables: impl Iterator<Item = (String, String)>,
) -> Result<String, ConfigError> {
    let (label, text) = match file {
        Some(path) => (path.display().to_string(), std::fs::read_to_string(path).unwrap_or_default()),
        None => ("(embedded defaults)".to_owned(), DEFAULT_TOML.to_owned()),
    };
    let fail = |reason: String| ConfigError { file: label.clone(), line: None, reason };
    let mut table: toml::Table = toml::from_str(&text).map_err(|e| fail(e.message().to_owned()))?;
    env::apply(&mut table, variables).map_err(&fail)?;
    let raw: RawConfig = table.try_into().map_err(|e: toml::de::Error| fail(e.message().to_owned()))?;
    toml::to_string_pretty(&raw).map_err(|e| fail(e.to_string()))
}

/// Everything in `data_dir` is made unreadable for others at the start, which must not be done to a folder of the system's.
fn check_data_dir(folder: &Path, group: Option<&str>) -> Result<Option<u32>, String> {
    const SYSTEMS: [&str; 14] = [
        "/", "/bin", "/boot", "/dev", "/etc", "/home", "/opt", "/proc", "/root", "/srv", "/tmp", "/usr", "/var",
        "/var/lib",
    ];
    if SYSTEMS.iter().any(|known| folder == Path::new(known)) {
        return Err(format!("data_dir: {} is a folder of the system's; name one below it", folder.display()));
    }
    let number = |name| group_number(name).map_err(|why| format!("data_dir_group: {why}"));
    group.map(number).transpose()
}

/// The number of a group, by its name in `/etc/group` or by itself.
fn group_number(name: &str) -> Result<u32, String> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let text = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let number = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    number.ok_or_else(|| format!("there is no group \"{name}\" in /etc/group; name one that is, or give its number"))
}

fn check_tokens(tokens: &Tokens) -> Result<(), String> {
    // Short enough that a whole token stays within what is looked at as a credential.
    let fits = |text: &str, most: usize| (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    if !fits(&tokens.issuer, 64) {
        return Err("accounts.tokens.issuer: 1 to 64 characters without spaces".into());
    }
    if !fits(&tokens.audience, 32) {
        return Err("accounts.tokens.audience: 1 to 32 characters without spaces".into());
    }
    if tokens.algorithm == TokenAlgorithm::HS256 && tokens.hs256_key.is_none() {
        return Err("accounts.tokens.algorithm: HS256 needs accounts.tokens.hs256_key with at least 32 bytes".into());
    }
    // What a file or a variable holds is seen at the start only.
    if let Some(SecretSource::Plain(key)) = &tokens.hs256_key
        && tokens.algorithm == TokenAlgorithm::HS256
        && key.len() < 32
    {
        return Err(format!("accounts.tokens.hs256_key: {} bytes are too few; at least 32", key.len()));
    }
    Ok(())
}

fn check_upstream(raw: raw::RawUpstream) -> Result<UpstreamConfig, String> {
    let named = |key: &str, why: String| format!("upstreams.{key}: {why} (in upstream \"{}\")", raw.name);
    if raw.name.is_empty() || raw.name.len() > 64 {
        return Err(named("name", "must have 1 to 64 characters".into()));
    }
    if raw.endpoints.is_empty() {
        return Err(named("endpoints", "is empty; name at least one, such as \"http://127.0.0.1:9100\"".into()));
    }
    let endpoints = raw
        .endpoints
        .iter()
        .map(|text| parse_endpoint(text).map_err(|why| named("endpoints", why)))
        .collect::<Result<Vec<_>, _>>()?;
    let credential = match &raw.credential {
        None => None,
        Some(c) => {
            let value = c.value.read().map_err(|why| named("credential.value", why))?;
            let header = http::HeaderName::from_bytes(c.header.as_bytes())
                .map_err(|_| named("credential.header", format!("\"{}\" is not a header name", c.header)))?;
            http::HeaderValue::from_str(&value)
                .map_err(|_| named("credential.value", "has characters no header may carry".into()))?;
            Some((header.as_str().to_owned(), value))
        }
    };
    if let Some(path) = raw.health_path.as_deref().filter(|p| !p.starts_with('/')) {
        return Err(named("health_path", format!("\"{path}\" must begin with /")));
    }
    Ok(UpstreamConfig {
        name: Arc::from(raw.name.as_str()),
        endpoints,
        credential,
        connect_timeout: raw.connect_timeout.0,
        first_byte_timeout: raw.first_byte_timeout.0,
        idle_timeout: raw.idle_timeout.0,
        total_timeout: raw.total_timeout.0,
        max_in_flight: raw.max_in_flight,
        pool_idle: raw.pool_idle,
        pool_idle_timeout: raw.pool_idle_timeout.0,
        retries: raw.retries.min(10),
        eject_after: raw.eject_after,
        eject_time: raw.eject_time.0,
        health_path: raw.health_path,
        health_interval: raw.health_interval.0.max(Duration::from_millis(100)),
        paths: raw.paths,
        via: raw.via,
    })
}

fn parse_endpoint(text: &str) -> Result<EndpointAddress, String> {
    let example = "write it as http://host:port";
    let shown = masked::refused(text);
    let uri: http::Uri = text.parse().map_err(|_| format!("\"{shown}\" is not a URL; {example}"))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => {
            return Err(format!(
                "\"{shown}\": TLS to upstreams is not built yet; put a local TLS proxy in between or use http://"
            ));
        }
        _ => return Err(format!("\"{shown}\" has no scheme; {example}")),
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(format!("\"{shown}\" has a path; the client's path is passed on as it is; {example}"));
    }
    let host = uri.host().filter(|h| !h.is_empty()).ok_or_else(|| format!("\"{shown}\" has no host; {example}"))?;
    if !masked::has_a_port_if_any(&uri) {
        return Err(format!("\"{shown}\" has a port that is not a number up to 65535; {example}"));
    }
    let port = uri.port_u16().unwrap_or(80);
    let authority = if port == 80 { host.to_owned() } else { format!("{host}:{port}") };
    Ok(EndpointAddress {
        authority: Arc::from(authority),
        host: Arc::from(host.trim_start_matches('[').trim_end_matches(']')),
        port,
    })
}

fn check_route(raw: raw::RawRoute, upstreams: &HashSet<Arc<str>>) -> Result<RouteConfig, String> {
    let named = |key: &str, why: String| format!("routes.{key}: {why} (in route \"{}\")", raw.path);
    let path = match raw.path.strip_suffix('*') {
        Some(prefix) if prefix.ends_with('/') && !prefix.contains('*') => PathPattern::Prefix(prefix.to_owned()),
        None if raw.path.starts_with('/') => PathPattern::Exact(raw.path.clone()),
        _ => return Err(named("path", "must begin with / and may end in /*".into())),
    };
    if !raw.path.starts_with('/') {
        return Err(named("path", "must begin with /".into()));
    }
    let Some(upstream) = upstreams.get(raw.upstream.as_str()) else {
        return Err(named(
            "upstream",
            format!("there is no upstream \"{}\"; define it under [[upstreams]]", raw.upstream),
        ));
    };
    let cost = check_cost(&raw.cost).map_err(|why| named("cost", why))?;
    let places = places::check(&raw).map_err(|(key, why)| named(key, why))?;
    Ok(RouteConfig {
        pattern: Arc::from(raw.path.as_str()),
        path,
        upstream: upstream.clone(),
        methods: raw.methods.iter().map(|m| m.to_ascii_uppercase()).collect(),
        cost,
        prices: raw.prices,
        scope: raw.scope,
        models: raw.models,
        verified: raw.verified,
        roles: raw.roles,
        log: raw.log,
        include_usage: raw.include_usage,
        compression: raw.compression,
        preserve_host: raw.preserve_host,
        assumed_output_tokens: raw.assumed_output_tokens,
        places,
    })
}

fn check_forward(raw: raw::RawForward) -> Result<ForwardConfig, String> {
    let named = |key: &str, why: String| format!("forward.{key}: {why} (in the rule for \"{}\")", raw.path);
    let path = match raw.path.strip_suffix('*') {
        Some(prefix) if prefix.starts_with('/') && prefix.ends_with('/') => PathPattern::Prefix(prefix.to_owned()),
        None if raw.path.starts_with('/') => PathPattern::Exact(raw.path.clone()),
        _ => return Err(named("path", "must begin with / and may end in /*".into())),
    };
    if let Some(host) = raw.hosts.iter().find(|host| host.is_empty() || host.contains(['/', ':'])) {
        return Err(named("hosts", format!("\"{host}\" is not a bare host name; write app.example.com")));
    }
    Ok(ForwardConfig {
        path,
        cost: check_fixed_cost(&raw.cost).map_err(|why| named("cost", why))?,
        hosts: raw.hosts,
        methods: raw.methods.iter().map(|m| m.to_ascii_uppercase()).collect(),
        scope: raw.scope,
        verified: raw.verified,
    })
}

/// As [`check_cost`], where nothing is known of what will be used.
fn check_fixed_cost(raw: &BTreeMap<String, raw::RawPrice>) -> Result<Vec<(MeterName, Price)>, String> {
    let cost = check_cost(raw)?;
    match cost.iter().find(|(_, price)| price.is_metered()) {
        Some((meter, _)) => Err(format!("{meter}: tokens and images are not seen here; give a price per call")),
        None => Ok(cost),
    }
}

/// Prices on at most 8 meters.
fn check_cost(raw: &BTreeMap<String, raw::RawPrice>) -> Result<Vec<(MeterName, Price)>, String> {
    if raw.len() > 8 {
        return Err("more than 8 meters".into());
    }
    let priced = raw.iter().map(|(meter, price)| {
        let name = MeterName::parse(meter)
            .ok_or_else(|| format!("\"{meter}\" is no meter name: lower-case letters, digits and _"))?;
        Ok((name, check_price(price).map_err(|why| format!("{meter}: {why}"))?))
    });
    priced.collect()
}

fn check_price(raw: &raw::RawPrice) -> Result<Price, String> {
    let amount = |key: &str, value: f64| {
        Micro::from_decimal(value).ok_or_else(|| format!("{key} = {value}: a price cannot be negative or beyond 9e12"))
    };
    let parts = match raw {
        raw::RawPrice::PerCall(value) => return amount("per_call", *value).map(Price::fixed),
        raw::RawPrice::Parts(parts) => parts,
    };
    let mut tiers = Vec::new();
    for tier in &parts.tiers {
        let rates = check_rates(tier.per_input_token, tier.per_cached_token, tier.per_output_token)
            .map_err(|why| format!("tiers: {why}"))?;
        tiers.push(Tier { above: tier.above_input_tokens, rates });
    }
    if tiers.len() > 8 || !tiers.is_sorted_by(|a, b| a.above < b.above) {
        return Err("tiers: at most 8, each with a larger above_input_tokens than the one before".into());
    }
    Ok(Price {
        per_call: amount("per_call", parts.per_call)?,
        per_image: amount("per_image", parts.per_image)?,
        rates: check_rates(parts.per_input_token, parts.per_cached_token, parts.per_output_token)?,
        tiers,
    })
}

fn check_rates(input: f64, cached: Option<f64>, output: f64) -> Result<Rates, String> {
    let rate = |key: &str, value: f64| {
        TokenRate::from_decimal(value)
            .ok_or_else(|| format!("{key} = {value}: a price cannot be negative or beyond 1e6"))
    };
    Ok(Rates {
        input: rate("per_input_token", input)?,
        cached: rate("per_cached_token", cached.unwrap_or(input))?,
        output: rate("per_output_token", output)?,
    })
}

fn check_prices(raw: raw::RawPrices) -> Result<PriceList, String> {
    let default = check_cost(&raw.default).map_err(|why| format!("prices.default: {why}"))?;
    if raw.unknown_model == UnknownModel::Default && default.is_empty() {
        return Err("prices.unknown_model: \"default\" needs a price under [prices.default]".into());
    }
    if raw.models.len() > 4096 {
        return Err("prices.models: more than 4096".into());
    }
    let models = raw.models.iter().map(|(model, prices)| {
        if model.is_empty() || model.trim_end_matches('*').contains('*') || model.ends_with("**") {
            return Err(format!("prices.models: \"{model}\" is no model: a name, or its beginning and a * at the end"));
        }
        let prices = check_cost(prices).map_err(|why| format!("prices.models.\"{model}\": {why}"))?;
        Ok((model.clone(), prices))
    });
    Ok(PriceList { unknown_model: raw.unknown_model, default, models: models.collect::<Result<_, _>>()? })
}

fn check_plan(name: &str, raw: raw::RawPlan) -> Result<Plan, String> {
    // It goes into a header of every call.
    let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if name.is_empty() || name.len() > 64 || !name.bytes().all(fits) {
        return Err(format!("plans: \"{name}\" is no plan name: letters, digits, - and _, at most 64"));
    }
    let mut meters = Vec::new();
    for (meter, amounts) in &raw.meters {
        let key = format!("plans.{name}.meters.{meter}");
        let parsed = MeterName::parse(meter)
            .ok_or_else(|| format!("{key}: not a meter name: lower-case letters, digits and _, at most 32"))?;
        let amount = |value: f64| Micro::from_decimal(value).ok_or_else(|| format!("{key}: {value} is not an amount"));
        let grant = match &amounts.grant {
            raw::RawGrant::Amount(value) => amount(*value)?,
            raw::RawGrant::Word(word) if word == "unlimited" => Micro::UNLIMITED,
            raw::RawGrant::Word(word) => {
                return Err(format!("{key}.grant: \"{word}\" is neither a number nor \"unlimited\""));
            }
        };
        if grant.is_unlimited() && amounts.reset.is_some() {
            return Err(format!("{key}.reset: a meter without a limit has none; leave it out"));
        }
        let reset = amounts.reset.map_or(Ok(grant), amount)?;
        meters.push(PlanMeter { name: parsed, grant, reset, period: amounts.period });
    }
    if meters.len() > 16 {
        return Err(format!("plans.{name}.meters: more than 16"));
    }
    Ok(Plan { name: Arc::from(name), meters, storage_mb: raw.storage_mb, price: raw.price })
}

/// serde names what it expected; an operator wants to know what he probably meant.
fn with_nearest_name(message: &str) -> String {
    let message = &*masked::message(message);
    let Some(rest) = message.strip_prefix("unknown field `") else { return message.to_owned() };
    let Some((unknown, expected)) = rest.split_once('`') else { return message.to_owned() };
    match nearest::of(unknown, expected.split('`').skip(1).step_by(2)) {
        Some(known) => format!("unknown key `{unknown}`; did you mean `{known}`?"),
        None => format!("unknown key `{unknown}`"),
    }
}

/// The line on which the key that a reason begins with is set, as far as the text shows it.
fn line_of_key(text: &str, reason: &str) -> Option<usize> {
    let key = reason.split(':').next()?.rsplit('.').next()?;
    text.lines()
        .position(|line| line.trim_start().strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('=')))
        .map(|at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse("test.toml", text, std::iter::empty())
    }

    fn with_env(text: &str, pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::parse("test.toml", text, pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
    }

    const MINIMUM: &str = r#"
data_dir = "data"
[listen]
public = "127.0.0.1:8080"
admin = "127.0.0.1:9090"
workers = 0
[[upstreams]]
name = "ai"
endpoints = ["http://127.0.0.1:9100"]
credential = { header = "Authorization", value = "Bearer sk-secret" }
[[routes]]
path = "/v1/*"
upstream = "ai"
cost = { conversations = 1 }
"#;

    #[test]
    fn the_minimum_of_the_contract_is_enough() {
        let config = parse(MINIMUM).unwrap();
        assert_eq!(config.limits.per_ip_per_minute, 60);
        assert_eq!(config.routes[0].cost[0].1.per_call, Micro(1_000_000));
        assert_eq!(config.upstreams[0].credential, Some(("authorization".into(), "Bearer sk-secret".into())));
        assert!(!format!("{config:?}").contains("sk-secret"));
    }

    /// A model may think for ten minutes before it says a word, and between two; a long stream is not cut for being long.
    #[test]
    fn an_upstream_has_time_to_think() {
        let upstream = &parse(MINIMUM).unwrap().upstreams[0];
        let minutes = |n: u64| Duration::from_secs(n * 60);
        assert_eq!(upstream.connect_timeout, Duration::from_secs(10));
        assert_eq!((upstream.first_byte_timeout, upstream.idle_timeout), (minutes(10), minutes(10)));
        assert_eq!(upstream.total_timeout, minutes(24 * 60));
    }

    #[test]
    fn the_embedded_defaults_parse_and_say_what_the_code_says() {
        let from_file = toml::to_string(&toml::from_str::<RawConfig>(DEFAULT_TOML).unwrap()).unwrap();
        assert_eq!(from_file, toml::to_string(&RawConfig::default()).unwrap());
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_the_nearest_name() {
        let error = parse("[limits]\nper_ip_per_minutes = 3\n").unwrap_err();
        assert_eq!(error.line, Some(2));
        assert!(error.reason.contains("did you mean `per_ip_per_minute`"), "{error}");
    }

    #[test]
    fn what_does_not_fit_together_is_named() {
        let bad = MINIMUM.replace("upstream = \"ai\"", "upstream = \"no\"");
        assert!(parse(&bad).unwrap_err().reason.contains("there is no upstream \"no\""));
        let bad = MINIMUM.replace("127.0.0.1:9090", "0.0.0.0:9090");
        let error = parse(&bad).unwrap_err();
        assert!(error.reason.contains("listen.admin_insecure") && error.line == Some(5), "{error}");
        let bad = MINIMUM.replace("http://127", "https://127");
        assert!(parse(&bad).unwrap_err().reason.contains("TLS"));
        assert!(parse(&MINIMUM.replace("conversations = 1", "conversations = -1")).is_err());
        assert!(parse("[listen]\ndrain_grace = \"soon\"").unwrap_err().reason.contains("is not a time"));
    }

    #[test]
    fn every_key_can_be_overridden_from_the_environment() {
        let config = with_env(
            MINIMUM,
            &[
                ("TOLLGATE__LIMITS__PER_IP_PER_MINUTE", "7"),
                ("TOLLGATE__UPSTREAMS__0__ENDPOINTS", "[\"http://10.0.0.1:1\", \"http://10.0.0.2\"]"),
                ("TOLLGATE__ROUTES__0__COST__CREDITS", "0.5"),
                ("TOLLGATE__DATA_DIR", "/srv/t"),
            ],
        )
        .unwrap();
        assert_eq!(config.limits.per_ip_per_minute, 7);
        assert_eq!(config.upstreams[0].endpoints[1].port, 80);
        assert_eq!(config.routes[0].cost.len(), 2);
        assert_eq!(config.data_dir, PathBuf::from("/srv/t"));
        assert!(with_env(MINIMUM, &[("TOLLGATE__LIMITS__NONSENSE", "7")]).is_err());
    }

    #[test]
    fn a_credential_without_its_header_is_refused_with_the_right_form_and_not_repeated() {
        for wrong in
            ["\"Bearer sk-secret\"", "5", "[\"Bearer sk-secret\"]", "{ header = \"x\", value = [\"sk-secret\"] }"]
        {
            let text = MINIMUM.replace("{ header = \"Authorization\", value = \"Bearer sk-secret\" }", wrong);
            assert_ne!(text, MINIMUM);
            let error = parse(&text).unwrap_err();
            assert!(error.reason.contains("{ ") && !error.reason.contains("sk-secret"), "{wrong}: {error}");
            assert_eq!(error.line, Some(10), "{wrong}: {error}");
        }
        let error =
            parse(&MINIMUM.replace("{ header = \"Authorization\", value = \"Bearer sk-secret\" }", "\"sk-secret\""));
        let right = "credential = { header = \"authorization\", value = \"Bearer …\" }";
        assert!(error.unwrap_err().reason.contains(right));
        let said = with_env(MINIMUM, &[("TOLLGATE__UPSTREAMS__0__CREDENTIAL", "Bearer sk-other")]).unwrap_err();
        assert!(said.reason.contains(right) && !said.reason.contains("sk-other"), "{said}");
        let typo = parse(&MINIMUM.replace("value =", "valeu =")).unwrap_err();
        assert!(typo.reason.contains("did you mean `value`"), "{typo}");
    }

    #[test]
    fn who_is_named_in_an_endpoint_is_masked_wherever_it_is_shown() {
        let text = MINIMUM.replace("http://127.0.0.1:9100", "http://ann:geheim@127.0.0.1:9100");
        let config = parse(&text).unwrap();
        assert_eq!(&*config.upstreams[0].endpoints[0].authority, "127.0.0.1:9100");
        assert!(!format!("{config:?}").contains("geheim") && !config.effective.to_string().contains("geheim"));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t.toml");
        std::fs::write(&file, &text).unwrap();
        let printed = effective_toml(Some(&file), std::iter::empty()).unwrap();
        assert!(printed.contains("http://********@127.0.0.1:9100") && !printed.contains("geheim"), "{printed}");
        assert!(parse(&printed).is_ok());
        for bad in [
            "ftp://ann:geheim@host",
            "ann:geheim@host:1",
            "http://ann:geheim@host/path",
            "http://ann:ge/geheim@host",
            "https://ann:geheim@",
            "http://ann:geheim@host:99999999",
        ] {
            let said = parse(&MINIMUM.replace("http://127.0.0.1:9100", bad)).unwrap_err();
            assert!(!said.reason.contains("geheim"), "{bad}: {said}");
        }
        let misplaced = MINIMUM.replace("[\"http://127.0.0.1:9100\"]", "\"http://ann:geheim@127.0.0.1:9100\"");
        let said = parse(&misplaced).unwrap_err();
        assert!(!said.reason.contains("geheim"), "{said}");
        let url = "[accounts.login_check]\nurl = \"https://ann:geheim@verifier.example.com/\"\n";
        let said = parse(url).unwrap_err();
        assert!(!said.reason.contains("geheim"), "{said}");
    }

    #[test]
    fn data_dir_is_a_folder_of_its_own_and_its_group_is_known() {
        assert!(parse("data_dir = \"/var/lib\"").unwrap_err().reason.contains("folder of the system's"));
        assert_eq!(parse("data_dir_group = \"root\"").unwrap().data_dir_group, Some(0));
        assert_eq!(parse("data_dir_group = \"1234\"").unwrap().data_dir_group, Some(1234));
        let said = parse("data_dir_group = \"no-such-group\"").unwrap_err();
        assert!(said.reason.contains("data_dir_group") && said.reason.contains("/etc/group"), "{said}");
    }

    #[test]
    fn secrets_come_from_files_and_are_masked_in_print() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("key");
        std::fs::write(&secret, "Bearer from-file\n").unwrap();
        let text = MINIMUM.replace("\"Bearer sk-secret\"", &format!("{{ file = {secret:?} }}"));
        assert_eq!(parse(&text).unwrap().upstreams[0].credential.as_ref().unwrap().1, "Bearer from-file");
        let file = dir.path().join("t.toml");
        std::fs::write(&file, MINIMUM).unwrap();
        let printed = effective_toml(Some(&file), std::iter::empty()).unwrap();
        assert!(printed.contains("********") && !printed.contains("sk-secret"));
        assert!(parse(&printed).is_ok(), "what is printed can be read again");
    }
}
