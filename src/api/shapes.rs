//! The shapes of answers: what a client reads, as types.
//!
//! Owns the fields of everything that is answered more than once, and their names; the OpenAPI documents are made of them. A
//! hash, a MAC or a key is in none of them, but for [`Tokens`] and keys in the answer to the call that made them.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::accounts::addresses::StoredRule;
use crate::accounts::sessions::SessionView;
use crate::accounts::usage::{ByMeter, Day};
use crate::accounts::users::{self, MeterView};
use crate::domain::meters::{Micro, ResetPeriod};
use crate::domain::session;
use crate::domain::user::{Status, User};
pub use crate::handler::values::{Amount, Time};

/// That something was done.
#[derive(Debug, Serialize, ToSchema)]
pub struct Done {
    #[schema(example = true)]
    pub success: bool,
    pub message: &'static str,
    /// What speaks against a new password that was taken all the same.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl Done {
    pub fn new(message: &'static str) -> Self {
        Self { success: true, message, warnings: Vec::new() }
    }

    #[must_use]
    pub fn warning(self, warnings: Vec<String>) -> Self {
        Self { warnings, ..self }
    }
}

/// One page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct Listed<T> {
    pub items: Vec<T>,
    pub page: usize,
    pub page_size: usize,
    pub total: u64,
}

impl<T> Listed<T> {
    pub fn of<U>(page: users::Page<U>, shape: impl FnMut(U) -> T) -> Self {
        let users::Page { items, page, page_size, total } = page;
        Self { items: items.into_iter().map(shape).collect(), page, page_size, total }
    }
}

/// The few fields of a user that a login answers.
#[derive(Debug, Serialize, ToSchema)]
pub struct UserBrief {
    pub id: u64,
    #[schema(example = "johndoe")]
    pub username: String,
    pub name: String,
    #[schema(example = "john@example.com")]
    pub email: String,
    /// `Personal` or `Business`.
    pub user_type: &'static str,
    #[schema(example = "free")]
    pub subscription_plan: String,
    pub is_verified: bool,
}

impl From<&User> for UserBrief {
    fn from(user: &User) -> Self {
        Self {
            id: user.id.0,
            username: user.username.to_string(),
            name: user.name.clone(),
            email: user.email.to_string(),
            user_type: user.user_type.as_str(),
            subscription_plan: user.plan.to_string(),
            is_verified: user.email_verified,
        }
    }
}

/// What a user tells of himself.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct ProfileShape {
    pub first_name: Option<String>,
    pub last_name: Option<String>,
    pub display_name: Option<String>,
    pub avatar_url: Option<String>,
    pub phone: Option<String>,
    pub country: Option<String>,
    pub city: Option<String>,
    pub timezone: Option<String>,
    pub language: Option<String>,
    pub organization: Option<String>,
    pub job_title: Option<String>,
    pub specialization: Option<String>,
    pub license_number: Option<String>,
    /// The client's own settings.
    #[schema(value_type = Option<Object>)]
    pub preferences: Option<Value>,
}

impl From<&crate::domain::user::Profile> for ProfileShape {
    fn from(profile: &crate::domain::user::Profile) -> Self {
        let p = profile.clone();
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
            preferences: p.preferences.and_then(|text| serde_json::from_str(&text).ok()),
        }
    }
}

/// A user as lists show him.
#[derive(Debug, Serialize, ToSchema)]
pub struct UserFull {
    #[serde(flatten)]
    pub brief: UserBrief,
    /// `pending`, `active`, `suspended`, `banned` or `deleted`.
    pub status: &'static str,
    pub is_active: bool,
    pub suspended_reason: Option<String>,
    pub about_me: String,
    pub hobbies: String,
    pub log_conversations: bool,
    /// `guest`, `user` or `pro`.
    pub role: &'static str,
    /// `unverified`, `email_verified`, `fully_verified` or `professional_verified`.
    pub verification: &'static str,
    pub mfa_enabled: bool,
    /// Since when the account waits for its owner's proof; left out while it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proof_wait_since: Option<Time>,
    pub access_rtype: Vec<String>,
    pub level: String,
    pub created_at: Time,
    pub last_login: Option<Time>,
    #[serde(flatten)]
    pub profile: ProfileShape,
}

impl From<&User> for UserFull {
    fn from(user: &User) -> Self {
        Self {
            brief: user.into(),
            status: user.status.as_str(),
            is_active: user.status == Status::Active,
            suspended_reason: user.suspended_reason.clone(),
            about_me: user.about_me.clone(),
            hobbies: user.hobbies.clone(),
            log_conversations: user.log_conversations,
            role: user.role.as_str(),
            verification: user.verification().as_str(),
            mfa_enabled: user.mfa_enabled,
            proof_wait_since: user.proof_wait.as_ref().map(|wait| wait.since.into()),
            access_rtype: user.access_rtype.clone(),
            level: user.level.clone(),
            created_at: user.created_at.into(),
            last_login: user.last_login.map(Time::from),
            profile: (&user.profile).into(),
        }
    }
}

/// The meter `credits`, as older clients know it.
#[derive(Debug, Serialize, ToSchema)]
pub struct Credits {
    pub main: Amount,
    pub reset: Amount,
}

/// The meter `conversations`, as older clients know it.
#[derive(Debug, Serialize, ToSchema)]
pub struct Limits {
    pub conversation_limit: Amount,
    pub reset: Amount,
}

/// A user with his meters, and the two old views of them.
#[derive(Debug, Serialize, ToSchema)]
pub struct UserDetails {
    #[serde(flatten)]
    pub user: UserFull,
    pub credits: Credits,
    pub limits: Limits,
    /// By the meter's name.
    pub meters: BTreeMap<String, MeterShape>,
}

impl From<&users::UserDetails> for UserDetails {
    fn from(details: &users::UserDetails) -> Self {
        let amounts = |name: &str| {
            let view = details.meters.iter().find(|m| m.name.as_str() == name);
            view.map_or((Amount(Micro::ZERO), Amount(Micro::ZERO)), |m| {
                (Amount(m.shown_balance()), Amount(m.shown_reset()))
            })
        };
        let ((main, reset), (conversation_limit, conversation_reset)) = (amounts("credits"), amounts("conversations"));
        Self {
            user: (&details.user).into(),
            credits: Credits { main, reset },
            limits: Limits { conversation_limit, reset: conversation_reset },
            meters: meters(&details.meters),
        }
    }
}

fn period(period: ResetPeriod) -> &'static str {
    match period {
        ResetPeriod::Never => "never",
        ResetPeriod::Daily => "daily",
        ResetPeriod::Weekly => "weekly",
        ResetPeriod::Monthly => "monthly",
    }
}

/// One meter as it stands: `granted` is always `balance + held + spent`.
#[derive(Debug, Serialize, ToSchema)]
pub struct MeterShape {
    pub balance: Amount,
    /// For calls in flight.
    pub held: Amount,
    pub spent: Amount,
    pub granted: Amount,
    /// What the balance is set to at each reset.
    pub reset: Amount,
    /// It is never used up; what it shows as left stands for that.
    pub unlimited: bool,
    /// `never`, `daily`, `weekly` or `monthly`.
    pub period: &'static str,
    pub resets_at: Option<Time>,
}

/// Meters by their names.
pub fn meters(views: &[MeterView]) -> BTreeMap<String, MeterShape> {
    let shape = |view: &MeterView| {
        let meter = &view.meter;
        let balance = view.shown_balance();
        let shape = MeterShape {
            balance: Amount(balance),
            held: Amount(meter.held),
            spent: Amount(meter.spent),
            // Of what is shown: what there really is of a meter without a limit says nothing.
            granted: Amount(balance.saturating_add(meter.held).saturating_add(meter.spent)),
            reset: Amount(view.shown_reset()),
            unlimited: meter.reset.is_unlimited(),
            period: period(meter.period),
            resets_at: view.resets_at.map(Time::from),
        };
        (view.name.to_string(), shape)
    };
    views.iter().map(shape).collect()
}

/// What may still be used, and of how much.
#[derive(Debug, Serialize, ToSchema)]
pub struct QuotaShape {
    /// It is never used up: `limit` and `remaining` are 2147483647 then.
    pub unlimited: bool,
    pub limit: Amount,
    pub used: Amount,
    pub remaining: Amount,
    /// `never`, `daily`, `weekly` or `monthly`.
    pub period: &'static str,
    pub resets_at: Option<Time>,
}

/// Amounts by their meters' names.
pub fn amounts(by_meter: &ByMeter) -> BTreeMap<String, Amount> {
    by_meter.iter().map(|(name, amount)| (name.clone(), Amount(*amount))).collect()
}

/// What was spent on a day.
#[derive(Debug, Serialize, ToSchema)]
pub struct UsageDay {
    /// UTC.
    #[schema(example = "2026-01-15")]
    pub date: String,
    /// By the meter's name.
    pub used: BTreeMap<String, Amount>,
}

impl From<&(Day, ByMeter)> for UsageDay {
    fn from((day, used): &(Day, ByMeter)) -> Self {
        Self { date: day.date(), used: amounts(used) }
    }
}

/// Quotas by their meters' names.
pub fn quotas(views: &[MeterView]) -> BTreeMap<String, QuotaShape> {
    let shape = |view: &MeterView| {
        let shape = QuotaShape {
            unlimited: view.meter.reset.is_unlimited(),
            limit: Amount(view.shown_reset()),
            used: Amount(view.used()),
            remaining: Amount(view.shown_balance()),
            period: period(view.meter.period),
            resets_at: view.resets_at.map(Time::from),
        };
        (view.name.to_string(), shape)
    };
    views.iter().map(shape).collect()
}

/// New tokens: shown here and never again.
#[derive(Serialize, ToSchema)]
pub struct Tokens {
    pub session_token: String,
    pub expires_at: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh_expires_at: Option<Time>,
}

impl From<&SessionView> for Tokens {
    fn from(view: &SessionView) -> Self {
        let refresh = view.refresh_token.as_ref();
        Self {
            session_token: view.session_token.expose().to_owned(),
            expires_at: view.expires_at.into(),
            refresh_token: refresh.map(|token| token.expose().to_owned()),
            refresh_expires_at: refresh.and(view.refresh_expires_at).map(Time::from),
        }
    }
}

/// A member of the staff.
#[derive(Debug, Serialize, ToSchema)]
pub struct StaffShape {
    pub id: u64,
    pub username: String,
    pub name: String,
    pub email: String,
    /// `new`, `support`, `advanced`, `admin` or `superadmin`.
    pub role: &'static str,
    pub is_active: bool,
    pub created_at: Time,
    pub last_login: Option<Time>,
}

impl From<&session::Staff> for StaffShape {
    fn from(staff: &session::Staff) -> Self {
        Self {
            id: staff.id.0,
            username: staff.username.clone(),
            name: staff.name.clone(),
            email: staff.email.clone(),
            role: staff.role.as_str(),
            is_active: staff.active,
            created_at: staff.created_at.into(),
            last_login: staff.last_login.map(Time::from),
        }
    }
}

/// An address rule that staff has made.
#[derive(Debug, Serialize, ToSchema)]
pub struct RuleShape {
    pub id: u64,
    /// `allow` or `deny`.
    pub kind: &'static str,
    #[schema(example = "192.168.1.0/24")]
    pub network: String,
    /// The same, a single address without its length: older clients know nothing else.
    pub ip_address: String,
    pub description: Option<String>,
    pub expires_at: Option<Time>,
    pub created_by: String,
    pub created_at: Time,
}

impl From<&StoredRule> for RuleShape {
    fn from(rule: &StoredRule) -> Self {
        let network = rule.network;
        let single = network.prefix_len() == network.max_prefix_len();
        Self {
            id: rule.id,
            kind: rule.kind.as_str(),
            network: network.to_string(),
            ip_address: if single { network.addr().to_string() } else { network.to_string() },
            description: rule.description.clone(),
            expires_at: rule.expires_at.map(Time::from),
            created_by: rule.created_by.clone(),
            created_at: rule.created_at.into(),
        }
    }
}

/// The one body of every refusal.
#[derive(ToSchema)]
#[schema(as = Refusal)]
#[allow(dead_code, reason = "written by error.rs; this is its description")]
pub struct RefusalShape {
    #[schema(example = false)]
    success: bool,
    message: String,
    /// One of the words of the table of refusals, such as `UNAUTHENTICATED`.
    error_code: String,
    /// One line per field or meter that did not fit.
    errors: Vec<String>,
    /// Of a meter that was short.
    #[schema(required = false)]
    limits: Option<Value>,
    details: RefusalDetails,
    /// The same in the form that clients of the OpenAI API read; in the dialects of AIezzy and Noteria, the message.
    error: Value,
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "as RefusalShape")]
struct RefusalDetails {
    #[schema(example = "req_0123456789abcdef01234567")]
    request_id: String,
    timestamp: Time,
}
