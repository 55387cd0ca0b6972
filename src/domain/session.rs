//! Sessions of users and staff, and the roles of staff.

use serde::{Deserialize, Serialize};

use super::ids::{CredentialId, StaffId, UserId};
use crate::clock::UnixMillis;

/// Whose session it is. A user's never opens the side port; a member of the staff's never calls an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Principal {
    User(UserId),
    Staff(StaffId),
}

/// A session's row, found by the MAC of its session token; the store's row is the truth about it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Session {
    pub id: CredentialId,
    pub principal: Principal,
    pub created_at: UnixMillis,
    pub expires_at: UnixMillis,
    pub refresh_expires_at: Option<UnixMillis>,
    /// Hex of the refresh token's MAC, so that both rows go together.
    #[serde(default)]
    pub refresh_mac: Option<String>,
    #[serde(default)]
    pub address: Option<std::net::IpAddr>,
    #[serde(default)]
    pub user_agent: Option<String>,
    /// Of staff: what [`Staff::session_epoch`] was when it was opened.
    #[serde(default)]
    pub epoch: u32,
    /// When the present tokens were given.
    #[serde(default)]
    pub refreshed_at: Option<UnixMillis>,
    /// Hex of the MACs of refresh tokens that were used, newest last: whoever shows one of them again ends the session.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spent: Vec<String>,
    /// Of staff: when it was last used, roughly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_at: Option<UnixMillis>,
    #[serde(flatten)]
    pub style: SessionStyle,
}

/// What a session has of the system whose client opened it; by default nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStyle {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub look: Option<TokenLook>,
    /// How long each of its session tokens lasts, in seconds, instead of `accounts.session_hours`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<u64>,
}

/// Tokens that are random whatever the config says, for clients that know them by their beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenLook {
    Clisonix,
}

impl TokenLook {
    /// Of session tokens and of refresh tokens.
    pub fn prefixes(self) -> (&'static str, &'static str) {
        match self {
            Self::Clisonix => ("at_", "rt_"),
        }
    }
}

/// That a refresh token was used: found by its MAC.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spent {
    pub user: UserId,
    pub session: CredentialId,
    pub at: UnixMillis,
}

/// What a member of the staff may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StaffRole {
    /// Support, read only.
    New,
    Support,
    Advanced,
    Admin,
    Superadmin,
}

impl StaffRole {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Support => "support",
            Self::Advanced => "advanced",
            Self::Admin => "admin",
            Self::Superadmin => "superadmin",
        }
    }
}

/// A member of the staff.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Staff {
    pub id: StaffId,
    pub username: String,
    pub name: String,
    pub email: String,
    pub role: StaffRole,
    pub password_hash: String,
    pub active: bool,
    pub created_at: UnixMillis,
    #[serde(default)]
    pub last_login: Option<UnixMillis>,
    /// Sessions of an earlier one are over.
    #[serde(default)]
    pub session_epoch: u32,
}
