//! `[plans]`, `[accounts]` and how people are written to and come in.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{SecretSource, Span};
use crate::config::login_check::LoginCheck;
use crate::config::masked;
use crate::config::sessions::{Passwords, Tokens};
use crate::domain::codes::CodeLength;
use crate::domain::meters::ResetPeriod;

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

pub(in crate::config) fn default_plans() -> BTreeMap<String, RawPlan> {
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
    #[serde(default = "yes")]
    pub allow_registration: bool,
    /// It runs in the operator's own network, perhaps without TLS.
    #[serde(default)]
    pub private_network: bool,
    #[serde(default, serialize_with = "masked::one")]
    pub authorize_url: Option<String>,
    #[serde(default, serialize_with = "masked::one")]
    pub token_url: Option<String>,
    #[serde(default, serialize_with = "masked::one")]
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

fn yes() -> bool {
    true
}
