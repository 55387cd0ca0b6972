//! What Clisonix's clients read.

use serde::Serialize;
use utoipa::ToSchema;

use crate::accounts::keys::KeyView;
use crate::accounts::own::SessionListed;
use crate::accounts::registration;
use crate::accounts::secrets::Minted;
use crate::accounts::sessions::SessionView;
use crate::accounts::usage::{ByMeter, Used};
use crate::accounts::users::MeterView;
use crate::clock::UnixMillis;
use crate::domain::ids::UserId;
use crate::domain::meters::Micro;
use crate::domain::user::{self, User};
use crate::handler::values::{Amount, Time};

#[derive(Serialize, ToSchema)]
#[schema(as = clisonix::Done)]
pub(super) struct Done {
    #[schema(example = true)]
    success: bool,
    message: &'static str,
}

impl Done {
    pub(super) fn new(message: &'static str) -> Self {
        Self { success: true, message }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = clisonix::Registered)]
pub(super) struct Registered {
    #[schema(example = true)]
    success: bool,
    message: &'static str,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    account: Option<Account>,
    verification_required: bool,
    /// What speaks against the password, which was taken all the same.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

impl Registered {
    /// Shows the key, this once.
    pub(super) fn new(made: &registration::Registered, warnings: Vec<String>) -> Self {
        let account = Account::of(&made.user).with_key(made.api_key.expose().to_owned());
        let verification_required = made.verification_required;
        Self { success: true, message: "User registered", account: Some(account), verification_required, warnings }
    }

    /// What a strict service says to everybody.
    pub(super) fn unsaid(warnings: Vec<String>) -> Self {
        let message = "Thank you. Please look into your mail";
        Self { success: true, message, account: None, verification_required: true, warnings }
    }
}

/// What a user tells of himself.
#[derive(Serialize, ToSchema)]
#[schema(as = clisonix::Profile)]
pub(super) struct Profile {
    user_id: u64,
    #[schema(example = "user@example.com")]
    email: String,
    #[schema(example = "myuser")]
    username: String,
    #[serde(flatten)]
    fields: ProfileFields,
}

#[derive(Serialize, ToSchema)]
#[schema(as = clisonix::ProfileFields)]
struct ProfileFields {
    first_name: Option<String>,
    last_name: Option<String>,
    display_name: Option<String>,
    avatar_url: Option<String>,
    phone: Option<String>,
    country: Option<String>,
    city: Option<String>,
    timezone: Option<String>,
    language: Option<String>,
    organization: Option<String>,
    job_title: Option<String>,
    specialization: Option<String>,
    license_number: Option<String>,
}

impl From<user::Profile> for ProfileFields {
    fn from(p: user::Profile) -> Self {
        Self {
            first_name: p.first_name,
            last_name: p.last_name,
            display_name: p.display_name,
            avatar_url: p.avatar_url,
            phone: p.phone,
            country: p.country,
            city: p.city,
            timezone: p.timezone,
            language: p.language,
            organization: p.organization,
            job_title: p.job_title,
            specialization: p.specialization,
            license_number: p.license_number,
        }
    }
}

impl Profile {
    pub(super) fn of(user: &User) -> Self {
        Self {
            user_id: user.id.0,
            email: user.email.to_string(),
            username: user.username.to_string(),
            fields: user.profile.clone().into(),
        }
    }
}

/// A user's account and profile.
#[derive(Serialize, ToSchema)]
#[schema(as = clisonix::Account)]
pub(super) struct Account {
    #[serde(flatten)]
    profile: Profile,
    /// `guest`, `user` or `pro`.
    role: &'static str,
    /// `pending`, `active`, `suspended`, `banned` or `deleted`.
    status: &'static str,
    /// `unverified`, `email_verified`, `fully_verified` or `professional_verified`.
    verification: &'static str,
    #[schema(example = "free")]
    plan: String,
    mfa_enabled: bool,
    /// Masked, but for the answer to the registration.
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key: Option<String>,
    created_at: Time,
    last_login: Option<Time>,
}

impl Account {
    pub(super) fn of(user: &User) -> Self {
        Self {
            profile: Profile::of(user),
            role: user.role.as_str(),
            status: user.status.as_str(),
            verification: user.verification().as_str(),
            plan: user.plan.to_string(),
            mfa_enabled: user.mfa_enabled,
            api_key: None,
            created_at: user.created_at.into(),
            last_login: user.last_login.map(Time::from),
        }
    }

    pub(super) fn with_key(self, key: String) -> Self {
        Self { api_key: Some(key), ..self }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = clisonix::LoggedIn)]
pub(super) struct LoggedIn {
    #[schema(example = true)]
    success: bool,
    message: &'static str,
    session_id: u64,
    user_id: u64,
    #[schema(example = "at_…")]
    access_token: String,
    #[schema(example = "rt_…")]
    refresh_token: Option<String>,
    #[schema(example = "bearer")]
    token_type: &'static str,
    expires_at: Time,
    user: Account,
}

impl LoggedIn {
    pub(super) fn new(user: &User, session: &SessionView) -> Self {
        Self {
            success: true,
            message: "Login successful",
            session_id: session.id.0,
            user_id: user.id.0,
            access_token: session.session_token.expose().to_owned(),
            refresh_token: session.refresh_token.as_ref().map(|token| token.expose().to_owned()),
            token_type: "bearer",
            expires_at: session.expires_at.into(),
            user: Account::of(user),
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = clisonix::ValidToken)]
pub(super) struct ValidToken {
    #[schema(example = true)]
    valid: bool,
    #[serde(flatten)]
    account: Account,
    expires_at: Option<Time>,
}

impl ValidToken {
    pub(super) fn new(user: &User, expires_at: Option<UnixMillis>) -> Self {
        Self { valid: true, account: Account::of(user), expires_at: expires_at.map(Time::from) }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = clisonix::ValidKey)]
pub(super) struct ValidKey {
    #[schema(example = true)]
    valid: bool,
    #[serde(flatten)]
    account: Account,
}

impl From<&User> for ValidKey {
    fn from(user: &User) -> Self {
        Self { valid: true, account: Account::of(user) }
    }
}

/// Counts of what a user has and has used. A call of the AI service is one of the meter `conversations`, a message of Ocean
/// one of the meter `messages`, and a session of Ocean one that was opened today.
#[derive(Serialize, ToSchema)]
#[schema(as = clisonix::Usage)]
pub(super) struct Usage {
    user_id: u64,
    credits_balance: Amount,
    credits_used_today: Amount,
    credits_used_month: Amount,
    api_calls_today: Amount,
    api_calls_month: Amount,
    /// Nothing is stored here for users.
    storage_used_mb: u64,
    storage_limit_mb: Option<u64>,
    ocean_sessions_today: usize,
    ocean_messages_today: Amount,
}

impl Usage {
    pub(super) fn new(
        user: UserId,
        meters: &[MeterView],
        used: &Used,
        sessions: &[SessionListed],
        storage_limit_mb: Option<u64>,
        now: UnixMillis,
    ) -> Self {
        let of = |all: &ByMeter, name: &str| Amount(all.get(name).copied().unwrap_or(Micro::ZERO));
        let balance = meters.iter().find(|view| view.name.as_str() == "credits").map(MeterView::shown_balance);
        let day = |at: UnixMillis| at.0 / 86_400_000;
        Self {
            user_id: user.0,
            credits_balance: Amount(balance.unwrap_or(Micro::ZERO)),
            credits_used_today: of(&used.today, "credits"),
            credits_used_month: of(&used.month, "credits"),
            api_calls_today: of(&used.today, "conversations"),
            api_calls_month: of(&used.month, "conversations"),
            storage_used_mb: 0,
            storage_limit_mb,
            ocean_sessions_today: sessions.iter().filter(|s| day(s.created_at) == day(now)).count(),
            ocean_messages_today: of(&used.today, "messages"),
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = clisonix::OwnKey)]
pub(super) struct OwnKey {
    #[schema(example = "clx_…")]
    api_key: String,
    #[schema(example = "default")]
    name: String,
    masked: String,
    created_at: Time,
}

impl OwnKey {
    pub(super) fn new(key: &KeyView, text: &Minted) -> Self {
        Self {
            api_key: text.expose().to_owned(),
            name: key.name.clone(),
            masked: key.masked.clone(),
            created_at: key.created_at.into(),
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = clisonix::Available)]
pub(super) struct Available {
    #[schema(example = true)]
    pub(super) success: bool,
    pub(super) available: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) email: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) username: Option<String>,
}

/// A user as administrators see him.
#[derive(Serialize, ToSchema)]
#[schema(as = clisonix::Seen)]
pub(super) struct Seen {
    #[serde(flatten)]
    pub(super) account: Account,
    pub(super) credits_balance: Amount,
    pub(super) suspended_reason: Option<String>,
}

impl Seen {
    pub(super) fn new(user: &User, meters: &[MeterView]) -> Self {
        let credits = meters.iter().find(|view| view.name.as_str() == "credits");
        Self {
            account: Account::of(user),
            credits_balance: Amount(credits.map_or(Micro::ZERO, MeterView::shown_balance)),
            suspended_reason: user.suspended_reason.clone(),
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = clisonix::Changed)]
pub(super) struct Changed {
    #[schema(example = true)]
    pub(super) success: bool,
    pub(super) message: &'static str,
    #[serde(flatten)]
    pub(super) user: Seen,
}

/// A page of users, under the name that this system has for it and the one that all lists here have.
#[derive(Serialize, ToSchema)]
#[schema(as = clisonix::UserList)]
pub(super) struct UserList {
    pub(super) users: Vec<Account>,
    pub(super) page: usize,
    pub(super) page_size: usize,
    pub(super) total: u64,
}

#[derive(Serialize, ToSchema)]
#[schema(as = clisonix::StaffLoggedIn)]
pub(super) struct StaffLoggedIn {
    #[schema(example = true)]
    success: bool,
    message: &'static str,
    access_token: String,
    #[schema(example = "bearer")]
    token_type: &'static str,
    expires_at: Time,
    /// `new`, `support`, `advanced`, `admin` or `superadmin`.
    role: &'static str,
    username: String,
}

impl StaffLoggedIn {
    pub(super) fn new(staff: &crate::domain::session::Staff, session: &SessionView) -> Self {
        Self {
            success: true,
            message: "Login successful",
            access_token: session.session_token.expose().to_owned(),
            token_type: "bearer",
            expires_at: session.expires_at.into(),
            role: staff.role.as_str(),
            username: staff.username.clone(),
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = clisonix::Stats)]
pub(super) struct Stats {
    pub(super) total_users: u64,
    pub(super) active_users: u64,
    pub(super) pending_users: u64,
    pub(super) suspended_users: u64,
    pub(super) banned_users: u64,
    pub(super) deleted_users: u64,
    pub(super) verified_users: u64,
    /// Not there while the users are being read after a start.
    pub(super) users_by_plan: Option<std::collections::BTreeMap<String, u64>>,
    pub(super) new_users_today: Option<u64>,
    pub(super) calls_in_flight: u64,
}
