//! What AIezzy's pages and programs read.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::accounts::registration;
use crate::accounts::sessions::SessionView;
use crate::accounts::users::MeterView;
use crate::domain::meters::Micro;
use crate::domain::user::{Status, User};
use crate::handler::values::{Amount, Time};

/// The plan in this system's words.
pub(super) fn tier(plan: &str) -> &str {
    match plan {
        "professional" => "pro",
        other => other,
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = aiezzy::Done)]
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

/// A user, as this system's table has him.
#[derive(Serialize, ToSchema)]
#[schema(as = aiezzy::Person)]
pub(super) struct Person {
    id: u64,
    username: String,
    #[schema(example = "user@example.com")]
    email: String,
    full_name: String,
    is_active: bool,
    /// Administrators are staff here, and no users.
    is_admin: bool,
    email_verified: bool,
    /// `free`, `pro`, `enterprise`, or another plan of the service.
    #[schema(example = "free")]
    tier: String,
    profile_image: Option<String>,
    bio: String,
    #[schema(value_type = Option<Object>)]
    preferences: Option<Value>,
    created_at: Time,
    last_login: Option<Time>,
}

impl From<&User> for Person {
    fn from(user: &User) -> Self {
        Self {
            id: user.id.0,
            username: user.username.to_string(),
            email: user.email.to_string(),
            full_name: user.name.clone(),
            is_active: matches!(user.status, Status::Active | Status::Pending),
            is_admin: false,
            email_verified: user.email_verified,
            tier: tier(&user.plan).to_owned(),
            profile_image: user.profile.avatar_url.clone(),
            bio: user.about_me.clone(),
            preferences: user.profile.preferences.as_deref().and_then(|text| serde_json::from_str(text).ok()),
            created_at: user.created_at.into(),
            last_login: user.last_login.map(Time::from),
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = aiezzy::Registered)]
pub(super) struct Registered {
    #[schema(example = true)]
    success: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<Person>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_token: Option<String>,
    message: &'static str,
    /// What speaks against the password, which was taken all the same.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

impl Registered {
    pub(super) fn new(made: &registration::Registered, warnings: Vec<String>) -> Self {
        Self {
            success: true,
            user: Some((&made.user).into()),
            session_token: made.session.as_ref().map(|session| session.session_token.expose().to_owned()),
            message: "Registration successful",
            warnings,
        }
    }

    /// What a strict service says to everybody.
    pub(super) fn unsaid(warnings: Vec<String>) -> Self {
        let message = "Thank you. Please look into your mail";
        Self { success: true, user: None, session_token: None, message, warnings }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = aiezzy::LoggedIn)]
pub(super) struct LoggedIn {
    #[schema(example = true)]
    success: bool,
    user: Person,
    session_token: String,
}

impl LoggedIn {
    pub(super) fn new(user: &User, session: &SessionView) -> Self {
        Self { success: true, user: user.into(), session_token: session.session_token.expose().to_owned() }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = aiezzy::Verified)]
pub(super) struct Verified {
    #[schema(example = true)]
    success: bool,
    message: &'static str,
    email: String,
}

impl Verified {
    pub(super) fn of(user: &User) -> Self {
        Self { success: true, message: "Email verified successfully", email: user.email.to_string() }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = aiezzy::Limits)]
struct Limits {
    images: Amount,
    videos: Amount,
    messages: Amount,
}

#[derive(Serialize, ToSchema)]
#[schema(as = aiezzy::Counts)]
struct Counts {
    image: Amount,
    video: Amount,
    message: Amount,
}

/// Today's quotas. What has no limit is `unlimited`, and shows 2147483647, so that pages that compare see plenty.
#[derive(Serialize, ToSchema)]
#[schema(as = aiezzy::Quota)]
pub(super) struct Quota {
    #[schema(example = "free")]
    tier: String,
    limits: Limits,
    usage: Counts,
    remaining: Counts,
    unlimited: bool,
}

impl Quota {
    pub(super) fn new(user: &User, meters: &[MeterView]) -> Self {
        let all = ["images", "videos", "messages"].map(|name| meters.iter().find(|view| view.name.as_str() == name));
        let each = |of: fn(&MeterView) -> Micro| all.map(|view| Amount(view.map_or(Micro::ZERO, of)));
        let [images, videos, messages] = each(MeterView::shown_reset);
        let counts = |[image, video, message]: [Amount; 3]| Counts { image, video, message };
        Self {
            tier: tier(&user.plan).to_owned(),
            limits: Limits { images, videos, messages },
            usage: counts(each(MeterView::used)),
            remaining: counts(each(MeterView::shown_balance)),
            unlimited: all.iter().flatten().any(|view| view.meter.reset.is_unlimited()),
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = aiezzy::Changed)]
pub(super) struct Changed {
    #[schema(example = true)]
    pub(super) success: bool,
    pub(super) message: &'static str,
    pub(super) user: Person,
}

#[derive(Serialize, ToSchema)]
#[schema(as = aiezzy::StaffLoggedIn)]
pub(super) struct StaffLoggedIn {
    #[schema(example = true)]
    success: bool,
    user: StaffPerson,
    session_token: String,
}

#[derive(Serialize, ToSchema)]
#[schema(as = aiezzy::StaffPerson)]
struct StaffPerson {
    id: u64,
    username: String,
    email: String,
    full_name: String,
    /// Whether he may use the administrators' calls.
    is_admin: bool,
    /// `new`, `support`, `advanced`, `admin` or `superadmin`.
    role: &'static str,
}

impl StaffLoggedIn {
    pub(super) fn new(staff: &crate::domain::session::Staff, session: &SessionView) -> Self {
        let person = StaffPerson {
            id: staff.id.0,
            username: staff.username.clone(),
            email: staff.email.clone(),
            full_name: staff.name.clone(),
            is_admin: staff.role >= crate::domain::session::StaffRole::Admin,
            role: staff.role.as_str(),
        };
        Self { success: true, user: person, session_token: session.session_token.expose().to_owned() }
    }
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[schema(as = aiezzy::Totals)]
pub(super) struct Totals {
    pub(super) images: Amount,
    pub(super) videos: Amount,
    pub(super) messages: Amount,
}

#[derive(Serialize, ToSchema)]
#[schema(as = aiezzy::DayUsage)]
pub(super) struct DayUsage {
    #[schema(example = "2026-01-15")]
    pub(super) date: String,
    #[serde(flatten)]
    pub(super) used: Totals,
}

/// Usage over some days.
#[derive(Serialize, ToSchema)]
#[schema(as = aiezzy::Analytics)]
pub(super) struct Analytics {
    pub(super) period_days: u32,
    pub(super) totals: Totals,
    /// Each day of the period, oldest first.
    pub(super) daily: Vec<DayUsage>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = aiezzy::TopUser)]
pub(super) struct TopUser {
    #[serde(flatten)]
    pub(super) user: Person,
    /// Images, videos and messages, ever.
    pub(super) total_usage: Amount,
}

#[derive(Serialize, ToSchema)]
#[schema(as = aiezzy::Dashboard)]
pub(super) struct Dashboard {
    #[schema(example = true)]
    pub(super) success: bool,
    pub(super) total_users: u64,
    /// Since midnight UTC.
    pub(super) new_users_today: u64,
    pub(super) active_sessions: u64,
    pub(super) images_today: Amount,
    pub(super) videos_today: Amount,
    pub(super) messages_today: Amount,
    /// The newest ten.
    pub(super) recent_users: Vec<Person>,
    pub(super) top_users: Vec<TopUser>,
    /// When sessions and today's usage were counted; at most a minute ago.
    pub(super) counted_at: Time,
}
