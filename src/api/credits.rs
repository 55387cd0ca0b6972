//! Staff and meters on the side port: giving, taking, setting back.
//!
//! Owns the fields of these calls. Both ask for an admin.

use axum::extract::State;
use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;

use super::admin::{Side, admin, user_in_path};
use super::shapes::{self, MeterShape};
use crate::accounts::credits::{Adjustment, Whose};
use crate::domain::ids::UserId;
use crate::domain::meters::MeterName;
use crate::error::Reject;
use crate::handler::extract::Call;
use crate::handler::render::{self, Answer};
use crate::handler::staff_acts;

/// The meter that is meant when none is named.
const USUAL_METER: &str = "credits";

#[derive(ToSchema)]
#[allow(dead_code, reason = "the handler reads its fields itself; this is their description")]
pub(super) struct Adjust {
    #[schema(example = "credits")]
    meter: Option<String>,
    /// What is given, or, below zero, taken; never below a balance of zero.
    #[schema(example = 100)]
    amount: f64,
    reason: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Adjusted {
    #[schema(example = true)]
    success: bool,
    message: &'static str,
    user_id: u64,
    /// By the meter's name, as they stand now.
    meters: BTreeMap<String, MeterShape>,
}

/// Gives credits to a user on any of his meters, or takes them.
#[utoipa::path(post, path = "/v1/admin-panel/users/{id}/credits", tag = "credits", request_body = Adjust,
    security(("staff" = ["admin"])), responses((status = 200, body = Adjusted)))]
pub async fn adjust(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    let id = user_in_path(&side, &call)?;
    let mut fields = call.fields()?;
    let name = "must be a meter's name, such as credits";
    let meter = fields.optional_parsed("meter", name, MeterName::parse).or_else(|| MeterName::parse(USUAL_METER));
    let amount = fields.signed_amount("amount");
    let reason = fields.optional_text("reason");
    fields.done()?;
    let (Some(meter), Some(amount)) = (meter, amount) else { return Err(Reject::Internal.into()) };
    let meters = staff_acts::adjust(&side.accounts, &by, &call, id, Adjustment { meter, amount, reason }).await?;
    render::ok(Adjusted { success: true, message: "Credits adjusted", user_id: id.0, meters: shapes::meters(&meters) })
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "as Adjust")]
pub(super) struct ResetLimits {
    user_id: Option<u64>,
    username: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct LimitsSetBack {
    #[schema(example = true)]
    success: bool,
    message: &'static str,
    users: u64,
}

/// Sets a user's meters to their reset amounts; without a user, everybody's.
#[utoipa::path(post, path = "/v1/admin-panel/reset-limits", tag = "credits", request_body = Option<ResetLimits>,
    security(("staff" = ["admin"])), responses((status = 200, body = LimitsSetBack)))]
pub async fn reset_limits(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    let mut fields = call.optional_fields()?;
    let id = fields.optional_number("user_id").map(UserId);
    let name = fields.optional_text("username");
    if id.is_none()
        && name.is_none()
        && let Some(other) = fields.any_left()
    {
        // A misspelt name of one user must not reset all of them.
        let why =
            format!("{other}: is not known here; name a user by user_id or username, or send nothing to reset all");
        return Err(Reject::Invalid(vec![why]).into());
    }
    fields.done()?;
    let named = match name {
        Some(name) => Some(side.accounts.find_user(&name)?.ok_or(Reject::NotFound)?),
        None => None,
    };
    let whose = match (id, named) {
        (Some(id), Some(other)) if id != other => {
            return Err(Reject::Invalid(vec!["username: is not the user that user_id names".into()]).into());
        }
        (Some(id), _) | (None, Some(id)) => Whose::One(id),
        (None, None) => Whose::Everybodys,
    };
    let users = staff_acts::reset_limits(&side.accounts, &by, &call, whose).await?;
    render::ok(LimitsSetBack { success: true, message: "Limits reset", users })
}
