//! What Noteria's pages read.

use serde::Serialize;
use utoipa::ToSchema;

use crate::accounts::codes::CodeStats;
use crate::accounts::sessions::SessionView;
use crate::domain::session::Staff;
use crate::domain::user::User;
use crate::handler::values::Time;

#[derive(Serialize, ToSchema)]
#[schema(as = noteria::Person)]
struct Person {
    id: u64,
    email: String,
    username: String,
    name: String,
}

#[derive(Serialize, ToSchema)]
#[schema(as = noteria::LoggedIn)]
pub(super) struct LoggedIn {
    #[schema(example = true)]
    success: bool,
    #[schema(example = "Kyçja u krye me sukses")]
    message: &'static str,
    user: Person,
    session_token: String,
    expires_at: Time,
    codes_left: u64,
}

impl LoggedIn {
    pub(super) fn new(user: &User, session: &SessionView, codes_left: u64) -> Self {
        Self {
            success: true,
            message: "Kyçja u krye me sukses",
            user: Person {
                id: user.id.0,
                email: user.email.to_string(),
                username: user.username.to_string(),
                name: user.name.clone(),
            },
            session_token: session.session_token.expose().to_owned(),
            expires_at: session.expires_at.into(),
            codes_left,
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = noteria::StaffLoggedIn)]
pub(super) struct StaffLoggedIn {
    #[schema(example = true)]
    success: bool,
    message: &'static str,
    username: String,
    session_token: String,
    expires_at: Time,
}

impl StaffLoggedIn {
    pub(super) fn new(staff: &Staff, session: &SessionView) -> Self {
        Self {
            success: true,
            message: "Kyçja u krye me sukses",
            username: staff.username.clone(),
            session_token: session.session_token.expose().to_owned(),
            expires_at: session.expires_at.into(),
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = noteria::Generated)]
pub(super) struct Generated {
    #[schema(example = true)]
    pub(super) success: bool,
    #[schema(example = "Kodet u gjeneruan")]
    pub(super) message: &'static str,
    /// Without one: of how many users.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user_id: Option<u64>,
    pub(super) users: u64,
    /// Of each user.
    pub(super) generated: u64,
}

#[derive(Serialize, ToSchema)]
#[schema(as = noteria::Stats)]
pub(super) struct Stats {
    #[schema(example = true)]
    success: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<u64>,
    /// Who have codes.
    users: u64,
    total_codes: u64,
    available: u64,
    used: u64,
    percent_used: f64,
}

impl Stats {
    pub(super) fn new(user_id: Option<u64>, users: u64, codes: CodeStats) -> Self {
        Self {
            success: true,
            user_id,
            users,
            total_codes: codes.total,
            available: codes.available(),
            used: codes.used,
            percent_used: codes.percent_used(),
        }
    }
}
