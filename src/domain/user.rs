//! A user: who he is and whether he may call.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::ids::{StaffId, UserId};
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
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Pending, Self::Active, Self::Suspended, Self::Banned, Self::Deleted]
            .into_iter()
            .find(|s| s.as_str() == text)
    }

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

/// What a user's account is for. Staff are not users: admins and superadmins are [`StaffRole`](super::session::StaffRole)s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// May look at his own account; calls only the routes that name the role.
    Guest,
    #[default]
    User,
    /// A user's rights, under the name that some clients know.
    Pro,
}

impl Role {
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "guest" => Some(Self::Guest),
            "user" => Some(Self::User),
            "pro" => Some(Self::Pro),
            _ => None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::User => "user",
            Self::Pro => "pro",
        }
    }
}

/// What staff has checked about the person, beyond the email.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vetting {
    #[default]
    None,
    Full,
    Professional,
}

/// How far a user is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verification {
    Unverified,
    EmailVerified,
    FullyVerified,
    ProfessionalVerified,
}

impl Verification {
    pub fn parse(text: &str) -> Option<Self> {
        let all = [Self::Unverified, Self::EmailVerified, Self::FullyVerified, Self::ProfessionalVerified];
        all.into_iter().find(|level| level.as_str() == text)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unverified => "unverified",
            Self::EmailVerified => "email_verified",
            Self::FullyVerified => "fully_verified",
            Self::ProfessionalVerified => "professional_verified",
        }
    }
}

/// What a user tells of himself, all of it optional and none of it relied upon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Profile {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    /// Shown by clients and never fetched by us.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub avatar_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phone: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub country: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub city: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub organization: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_title: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub specialization: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub license_number: Option<String>,
    /// The client's own settings, as JSON text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preferences: Option<String>,
}

impl Profile {
    /// The names of its fields, but for `preferences`.
    pub const FIELDS: [&str; 13] = [
        "first_name",
        "last_name",
        "display_name",
        "avatar_url",
        "phone",
        "country",
        "city",
        "timezone",
        "language",
        "organization",
        "job_title",
        "specialization",
        "license_number",
    ];

    /// A field by its name; `None` for a name that is none.
    pub fn field_mut(&mut self, name: &str) -> Option<&mut Option<String>> {
        Some(match name {
            "first_name" => &mut self.first_name,
            "last_name" => &mut self.last_name,
            "display_name" => &mut self.display_name,
            "avatar_url" => &mut self.avatar_url,
            "phone" => &mut self.phone,
            "country" => &mut self.country,
            "city" => &mut self.city,
            "timezone" => &mut self.timezone,
            "language" => &mut self.language,
            "organization" => &mut self.organization,
            "job_title" => &mut self.job_title,
            "specialization" => &mut self.specialization,
            "license_number" => &mut self.license_number,
            "preferences" => &mut self.preferences,
            _ => return None,
        })
    }
}

/// Staff has changed a way into an account: until its owner shows again that it is theirs, it shows and makes no keys, and its
/// second factor stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofWait {
    pub since: UnixMillis,
    /// Who made such changes; without a number, the operator.
    pub by: Vec<Option<StaffId>>,
    /// The address that the owner had proved before the first of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

impl ProofWait {
    /// As many as are told apart, because a row has a bound.
    const MAX_BY: usize = 8;

    /// Whether somebody of the staff may end the wait: nobody may whose own change caused it. With more of those than are
    /// told apart, nobody may.
    pub fn may_be_lifted_by(&self, who: Option<StaffId>) -> bool {
        self.by.len() < Self::MAX_BY && !self.by.contains(&who)
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
    /// It was staff who said that the address is the user's, not a link that was mailed there.
    #[serde(default, skip_serializing_if = "is_false")]
    pub email_vouched: bool,
    /// argon2id in PHC form; absent for accounts without a password.
    pub password_hash: Option<String>,
    pub created_at: UnixMillis,
    #[serde(default)]
    pub last_login: Option<UnixMillis>,
    /// False: what the user says is not written into the conversation journal.
    #[serde(default = "yes")]
    pub log_conversations: bool,
    #[serde(default)]
    pub role: Role,
    #[serde(default)]
    pub vetting: Vetting,
    #[serde(default)]
    pub profile: Profile,
    /// The kinds of answers the user's client may ask for.
    #[serde(default = "default_access_rtype")]
    pub access_rtype: Vec<String>,
    #[serde(default = "default_level")]
    pub level: String,
    /// Staff's notes about the user, which he does not see.
    #[serde(default)]
    pub additional_notes: String,
    /// A password that staff has chosen opens nothing but the page on which it is changed.
    #[serde(default)]
    pub must_change_password: bool,
    /// Whether a second factor is asked for; its secret is in a row of its own.
    #[serde(default)]
    pub mfa_enabled: bool,
    #[serde(default)]
    pub deleted_at: Option<UnixMillis>,
    /// Counts changes of the user's keys, so that two at once notice each other.
    #[serde(default)]
    pub keys_changed: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof_wait: Option<ProofWait>,
}

impl User {
    /// A user as he is after registration, without number and password.
    pub fn new(username: Arc<str>, name: String, email: Arc<str>, plan: Arc<str>, created_at: UnixMillis) -> Self {
        Self {
            id: UserId(0),
            username,
            name,
            email,
            user_type: UserType::default(),
            about_me: String::new(),
            hobbies: String::new(),
            plan,
            status: Status::Active,
            suspended_reason: None,
            email_verified: false,
            email_vouched: false,
            password_hash: None,
            created_at,
            last_login: None,
            log_conversations: true,
            role: Role::default(),
            vetting: Vetting::default(),
            profile: Profile::default(),
            access_rtype: default_access_rtype(),
            level: default_level(),
            additional_notes: String::new(),
            must_change_password: false,
            mfa_enabled: false,
            deleted_at: None,
            keys_changed: 0,
            proof_wait: None,
        }
    }

    /// The address, if its owner has shown that it is theirs.
    pub fn proved_address(&self) -> Option<&str> {
        (self.email_verified && !self.email_vouched).then_some(&*self.email)
    }

    /// Notes that the owner of the account has answered from its address.
    pub fn prove_email(&mut self) {
        self.email_verified = true;
        self.email_vouched = false;
    }

    /// Notes that staff has changed a way into the account. `proved`: the address that was proved before the change.
    pub fn wait_for_proof(&mut self, by: Option<StaffId>, proved: Option<String>, now: UnixMillis) {
        let wait = self.proof_wait.get_or_insert(ProofWait { since: now, by: Vec::new(), address: proved });
        if wait.may_be_lifted_by(by) {
            wait.by.push(by);
        }
    }

    /// How far the user is verified. Who changes his email begins anew, and has the rest back with the new one.
    pub fn verification(&self) -> Verification {
        match (self.email_verified, self.vetting) {
            (false, _) => Verification::Unverified,
            (true, Vetting::None) => Verification::EmailVerified,
            (true, Vetting::Full) => Verification::FullyVerified,
            (true, Vetting::Professional) => Verification::ProfessionalVerified,
        }
    }
}

fn default_access_rtype() -> Vec<String> {
    vec!["bpe".into(), "tot".into()]
}

fn default_level() -> String {
    "basic".into()
}

fn yes() -> bool {
    true
}

fn is_false(flag: &bool) -> bool {
    !flag
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
    pub role: Role,
    pub must_change_password: bool,
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
            role: user.role,
            must_change_password: user.must_change_password,
        }
    }
}
