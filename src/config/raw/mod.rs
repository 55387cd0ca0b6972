//! The config file as it is written: one struct per section, unknown keys refused, every default here and nowhere else.
//!
//! Owns names, defaults and units. Never judges whether values fit together; that is [`super::Config::from_raw`].

mod accounts;
mod records;
mod traffic;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::compat::Compat;
use super::cors::Cors;
use super::masked;

pub use accounts::*;
pub use records::*;
pub use traffic::*;

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
#[derive(Clone, PartialEq, Eq)]
pub enum SecretSource {
    Plain(String),
    Env { env: String },
    File { file: PathBuf },
}

impl<'de> Deserialize<'de> for SecretSource {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> serde::de::Visitor<'de> for Visit {
            type Value = SecretSource;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a secret: its text, { env = \"NAME\" } or { file = \"path\" }")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<SecretSource, E> {
                Ok(SecretSource::Plain(text.to_owned()))
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<SecretSource, A::Error> {
                use serde::de::Error;
                let mut found = None;
                while let Some(key) = map.next_key::<String>()? {
                    let source = match key.as_str() {
                        "env" => SecretSource::Env { env: map.next_value()? },
                        "file" => SecretSource::File { file: map.next_value()? },
                        other => return Err(A::Error::unknown_field(other, &["env", "file"])),
                    };
                    if found.replace(source).is_some() {
                        return Err(A::Error::custom("a secret is { env = … } or { file = … }, not both"));
                    }
                }
                found.ok_or_else(|| A::Error::custom("a secret is { env = \"NAME\" } or { file = \"path\" }"))
            }
        }
        deserializer.deserialize_any(Visit)
    }
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
    /// A group, by name or number, that may read what is in `data_dir`; left out: nobody but the process's own user.
    pub data_dir_group: Option<String>,
    /// Where users reach this service; links in mails are built from it and from nothing else.
    #[serde(serialize_with = "masked::one")]
    pub public_base_url: Option<String>,
    pub listen: Listen,
    pub upstreams: Vec<RawUpstream>,
    pub routes: Vec<RawRoute>,
    pub verify_key: VerifyKey,
    pub forward: Vec<RawForward>,
    pub access: Access,
    pub limits: Limits,
    pub cors: Cors,
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
            data_dir_group: None,
            public_base_url: None,
            listen: Listen::default(),
            upstreams: Vec::new(),
            routes: Vec::new(),
            verify_key: VerifyKey::default(),
            forward: Vec::new(),
            access: Access::default(),
            limits: Limits::default(),
            cors: Cors::default(),
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
    /// Names under which the side port is called, besides those of this machine itself and addresses.
    pub admin_hosts: Vec<String>,
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
            admin_hosts: Vec::new(),
            backlog: 1024,
            drain_grace: Span::secs(30),
        }
    }
}
