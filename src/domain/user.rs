//! A user: who he is and whether he may call.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::ids::UserId;
use crate::clock::UnixMillis;

/// Where an account stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Registered, waiting for what the operator demands before the first call.
    Pending,
    Active,
    Suspended,
    Banned,
    Deleted,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Banned => "banned",
            Self::Deleted => "deleted",
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UserType {
    #[default]
    Personal,
    Business,
}

impl UserType {
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "Personal" => Some(Self::Personal),
            "Business" => Some(Self::Business),
            _ => None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Personal => "Personal",
            Self::Business => "Business",
        }
    }
}

/// A user's row. Meters are not in here: they belong to the user's actor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct User {
    pub id: UserId,
    /// As the user wrote it; unique without case.
    pub username: Arc<str>,
    pub name: String,
    pub email: Arc<str>,
    pub user_type: UserType,
    #[serde(default)]
    pub about_me: String,
    #[serde(default)]
    pub hobbies: String,
    /// The plan's name in the config.
    pub plan: Arc<str>,
    pub status: Status,
    #[serde(default)]
    pub suspended_reason: Option<String>,
    pub email_verified: bool,
    /// argon2id in PHC form; absent for accounts without a password.
    pub password_hash: Option<String>,
    pub created_at: UnixMillis,
    #[serde(default)]
    pub last_login: Option<UnixMillis>,
    /// False: what the user says is not written into the conversation journal.
    #[serde(default = "yes")]
    pub log_conversations: bool,
}

fn yes() -> bool {
    true
}

/// What the request path needs to know of a user, shared by all calls in flight.
#[derive(Debug)]
pub struct Standing {
    pub id: UserId,
    pub username: Arc<str>,
    pub email: Arc<str>,
    pub plan: Arc<str>,
    pub status: Status,
    pub email_verified: bool,
    pub log_conversations: bool,
}

impl From<&User> for Standing {
    fn from(user: &User) -> Self {
        Self {
            id: user.id,
            username: user.username.clone(),
            email: user.email.clone(),
            plan: user.plan.clone(),
            status: user.status,
            email_verified: user.email_verified,
            log_conversations: user.log_conversations,
        }
    }
}
