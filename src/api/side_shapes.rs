//! What the side port is told and what it answers, as types. As [`super::shapes`], for the calls of admins alone.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use super::shapes::{RuleShape, StaffShape, Time, Tokens, UserDetails};
use crate::accounts::passwords::Password;
use crate::actors::audit::Link;

/// Which page of a list.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "read by Call::page; this is its description")]
pub struct PageParams {
    /// From 1; what is less or more is cut to what makes sense.
    #[param(example = 1)]
    page: Option<i64>,
    /// 1 to 200.
    #[param(example = 50)]
    page_size: Option<i64>,
}

/// Which users.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "read by user_query; this is its description")]
pub struct UserParams {
    /// Part of a username, name or email, without case.
    search: Option<String>,
    /// `pending`, `active`, `suspended`, `banned` or `deleted`.
    status: Option<String>,
    plan: Option<String>,
    /// `guest`, `user` or `pro`.
    role: Option<String>,
    verified: Option<bool>,
    /// `Personal` or `Business`.
    user_type: Option<String>,
    has_mfa: Option<bool>,
    /// RFC 3339.
    created_after: Option<String>,
    created_before: Option<String>,
    /// `id`, `username`, `name`, `email`, `created_at` or `last_login`; with `-` before it from the last to the first.
    sort: Option<String>,
}

/// Which conversations.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "read by the handler; this is its description")]
pub struct LogParams {
    #[param(min_length = 1, max_length = 1024)]
    model: Option<String>,
    /// The first moment.
    from: Option<Time>,
    /// The first moment no more.
    to: Option<Time>,
}

/// Which records of the audit trail.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "read by the handler; this is its description")]
pub struct TrailParams {
    /// `info`, `warning`, `error` or `critical`: this one and worse.
    severity: Option<String>,
    /// An act such as `login.failed`, or a kind of acts such as `login`.
    action: Option<String>,
    /// A number or a name.
    user: Option<String>,
    from: Option<Time>,
    to: Option<Time>,
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "the handler reads its fields itself; this is their description")]
pub struct StaffLogin {
    #[schema(example = "admin")]
    username: String,
    #[schema(value_type = String, format = Password)]
    password: Password,
    /// Of the second factor, or a recovery code.
    code: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub struct StaffLoggedIn {
    #[schema(example = true)]
    pub success: bool,
    pub message: &'static str,
    pub admin: StaffShape,
    pub session: Tokens,
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "as StaffLogin")]
pub struct NewAdmin {
    /// 3 to 50 letters, digits, dots, hyphens or underscores; unique without case.
    username: String,
    name: String,
    email: String,
    #[schema(value_type = String, format = Password)]
    password: Password,
}

#[derive(Serialize, ToSchema)]
pub struct AdminMade {
    #[schema(example = true)]
    pub success: bool,
    pub message: &'static str,
    pub admin: StaffShape,
}

#[derive(Serialize, ToSchema)]
pub struct OneUser {
    #[schema(example = true)]
    pub success: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<&'static str>,
    pub user: UserDetails,
}

#[derive(Serialize, ToSchema)]
pub struct UserGone {
    #[schema(example = true)]
    pub success: bool,
    pub message: &'static str,
    pub user_id: u64,
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "as StaffLogin")]
pub struct Reason {
    #[schema(max_length = 500)]
    reason: Option<String>,
}

/// The meter `credits`; what is left out stays as it is.
#[derive(ToSchema)]
#[allow(dead_code, reason = "as StaffLogin")]
pub struct CreditsUpdate {
    #[schema(minimum = 0)]
    main: Option<f64>,
    #[schema(minimum = 0)]
    reset: Option<f64>,
}

/// The meter `conversations`; what is left out stays as it is.
#[derive(ToSchema)]
#[allow(dead_code, reason = "as StaffLogin")]
pub struct LimitsUpdate {
    #[schema(minimum = 0)]
    conversation_limit: Option<f64>,
    #[schema(minimum = 0)]
    reset: Option<f64>,
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "as StaffLogin")]
pub struct UserUpdate {
    name: Option<String>,
    about_me: Option<String>,
    hobbies: Option<String>,
    /// `Personal` or `Business`.
    user_type: Option<String>,
    email: Option<String>,
    email_verified: Option<bool>,
    /// The same as `email_verified`, which counts first.
    is_verified: Option<bool>,
    log_conversations: Option<bool>,
    /// `guest`, `user` or `pro`.
    role: Option<String>,
    /// `unverified`, `email_verified`, `fully_verified` or `professional_verified`.
    verification: Option<String>,
    level: Option<String>,
    access_rtype: Option<Vec<String>>,
    /// What staff keeps about the user, which he does not see.
    additional_notes: Option<String>,
    #[schema(example = "premium")]
    subscription_plan: Option<String>,
    credits: Option<CreditsUpdate>,
    limits: Option<LimitsUpdate>,
    /// For the audit trail.
    reason: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub struct StatisticsShape {
    #[schema(example = true)]
    pub success: bool,
    pub users: UserCounts,
    /// Users in memory.
    pub live_users: u64,
    pub holds_open: i64,
    pub requests_in_flight: u64,
}

#[derive(Serialize, ToSchema)]
pub struct UserCounts {
    pub total: u64,
    pub active: u64,
    pub pending: u64,
    pub suspended: u64,
    pub banned: u64,
    pub deleted: u64,
    pub verified: u64,
    /// Left out, as what follows, while the users are being read after a start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by_plan: Option<BTreeMap<String, u64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by_verification: Option<BTreeMap<&'static str, u64>>,
    /// Registered in the last day, 7 days and 30 days.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registered_1d: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registered_7d: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registered_30d: Option<u64>,
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "as StaffLogin")]
pub struct WhitelistEntry {
    /// An address or a network.
    #[schema(example = "192.168.1.100")]
    ip_address: String,
    #[schema(example = "Office network")]
    description: Option<String>,
    expires_at: Option<Time>,
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "as StaffLogin")]
pub struct NewAddressRule {
    /// `allow` or `deny`.
    #[schema(example = "deny")]
    kind: String,
    #[schema(example = "192.168.1.0/24")]
    network: String,
    description: Option<String>,
    expires_at: Option<Time>,
}

#[derive(Serialize, ToSchema)]
pub struct RuleDone {
    #[schema(example = true)]
    pub success: bool,
    pub message: &'static str,
    pub entry: RuleShape,
}

#[derive(Serialize, ToSchema)]
pub struct TrailHead {
    #[schema(example = true)]
    pub success: bool,
    pub sequence: u64,
    #[schema(value_type = String)]
    pub mac: Link,
}

#[derive(Serialize, ToSchema)]
pub struct PanelHealth {
    #[schema(example = true)]
    pub success: bool,
    /// `healthy` or `degraded`.
    pub status: &'static str,
    pub reason: Option<&'static str>,
    pub version: &'static str,
    pub requests_in_flight: u64,
    pub addresses_blocked: usize,
}
