//! `/v1/admin-panel/staff`: the roster, for admins and superadmins; and a user's sessions and keys as admins see them.
//!
//! Owns these paths. Who may do what to whom is decided in [`crate::accounts::roster`].

use std::sync::Arc;

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::admin::{Side, SideState, act_of, act_on, admin, user_in_path};
use super::keys::Keys;
use super::own::{Sessions, SessionsEnded};
use super::shapes::{Done, Listed, StaffShape};
use super::side_shapes::PageParams;
use crate::accounts::Accounts;
use crate::accounts::own::Proof;
use crate::accounts::passwords::Password;
use crate::accounts::roster::StaffUpdate;
use crate::actors::audit::{Action, Record, Target};
use crate::domain::ids::{CredentialId, StaffId};
use crate::domain::session::{Staff, StaffRole};
use crate::error::Reject;
use crate::handler::extract::Call;
use crate::handler::render::{self, Answer};

pub(super) fn paths() -> OpenApiRouter<SideState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(one, update))
        .routes(routes!(reset_password))
        .routes(routes!(logout))
        .routes(routes!(user_sessions, end_user_sessions))
        .routes(routes!(user_keys))
        .routes(routes!(revoke_user_key))
}

#[derive(Serialize, ToSchema)]
struct OneStaff {
    #[schema(example = true)]
    success: bool,
    staff: StaffShape,
}

/// The staff, by number.
#[utoipa::path(get, path = "/v1/admin-panel/staff", tag = "staff", params(PageParams), security(("staff" = ["admin"])),
    responses((status = 200, body = Listed<StaffShape>)))]
async fn list(State(side): Side, call: Call) -> Answer {
    admin(&side, &call)?;
    let (page, page_size) = call.page()?;
    render::ok(Listed::of(side.accounts.list_staff(page, page_size)?, |member| StaffShape::from(&member)))
}

fn staff_in_path(call: &Call) -> Result<StaffId, Reject> {
    call.number("id").map(StaffId)
}

/// A member of the staff.
#[utoipa::path(get, path = "/v1/admin-panel/staff/{id}", tag = "staff", security(("staff" = ["admin"])),
    responses((status = 200, body = OneStaff)))]
async fn one(State(side): Side, call: Call) -> Answer {
    admin(&side, &call)?;
    let member = side.accounts.staff(staff_in_path(&call)?)?;
    render::ok(OneStaff { success: true, staff: (&member).into() })
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "the handler reads its fields itself; this is their description")]
struct StaffChange {
    name: Option<String>,
    email: Option<String>,
    /// `new`, `support`, `advanced`, `admin` or `superadmin`.
    role: Option<String>,
    /// False: let go. His sessions end.
    is_active: Option<bool>,
}

fn told(member: &Staff, record: Record) -> Record {
    record.on(member).with("role", member.role.as_str()).with("is_active", member.active)
}

/// Changes a member of the staff; in force at his next call.
#[utoipa::path(put, path = "/v1/admin-panel/staff/{id}", tag = "staff", request_body = StaffChange,
    security(("staff" = ["admin"])), responses((status = 200, body = OneStaff)))]
async fn update(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    let id = staff_in_path(&call)?;
    let mut fields = call.fields()?;
    let roles = "must be \"new\", \"support\", \"advanced\", \"admin\" or \"superadmin\"";
    let update = StaffUpdate {
        name: fields.optional_text("name"),
        email: fields.optional_text("email"),
        role: fields.optional_parsed("role", roles, StaffRole::parse),
        active: fields.optional_flag("is_active"),
    };
    fields.done()?;
    let record = act_of(&by, &call, Action::StaffChanged).on(Target::new("staff", Some(id.0), None));
    let act = move |accounts: Arc<Accounts>| async move { accounts.update_staff(&by, id, update).await };
    let member = side.accounts.audited(record, act, told).await?;
    render::ok(OneStaff { success: true, staff: (&member).into() })
}

#[derive(ToSchema)]
#[allow(dead_code, reason = "as StaffChange")]
struct StaffPassword {
    /// Of who changes his own.
    #[schema(value_type = Option<String>, format = Password)]
    current_password: Option<Proof>,
    /// Of the second factor, or a recovery code, of who changes his own; where one is on.
    #[schema(example = "123456")]
    code: Option<String>,
    #[schema(value_type = String, format = Password)]
    new_password: Password,
}

/// Gives a member of the staff a new password; his sessions end. Who changes his own shows that he is himself.
#[utoipa::path(post, path = "/v1/admin-panel/staff/{id}/reset-password", tag = "staff", request_body = StaffPassword,
    security(("staff" = ["admin"])), responses((status = 200, body = OneStaff)))]
async fn reset_password(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    let id = staff_in_path(&call)?;
    let mut fields = call.fields()?;
    let request = StaffPassword {
        current_password: (by.id == Some(id)).then(|| fields.proof("current_password", &call)).transpose()?,
        code: fields.optional_text("code"),
        new_password: fields.password("new_password")?,
    };
    fields.done()?;
    let StaffPassword { current_password, code, new_password } = request;
    let (proof, address) = (current_password.map(|proof| proof.with_code(code)), call.address);
    let record = act_of(&by, &call, Action::StaffChanged).on(Target::new("staff", Some(id.0), None));
    let record = record.with("password", "reset");
    let act = move |accounts: Arc<Accounts>| async move {
        if let Some(proof) = proof {
            accounts.step_up_staff(id, proof, address).await?;
        }
        accounts.reset_staff_password(&by, id, new_password).await
    };
    let member = side.accounts.audited(record, act, told).await?;
    render::ok(OneStaff { success: true, staff: (&member).into() })
}

/// Ends the session whose token the call carries.
#[utoipa::path(post, path = "/v1/admin-panel/logout", tag = "staff", security(("staff" = ["new"])),
    responses((status = 200, body = Done)))]
async fn logout(State(side): Side, call: Call) -> Answer {
    let (who, _) = side.accounts.staff_in_setup(call.token()?, StaffRole::New)?;
    let token = call.token()?.text.to_owned();
    let record = act_of(&who, &call, Action::SessionEnded);
    let act = move |accounts: Arc<Accounts>| async move { accounts.staff_logout(&token).await };
    side.accounts.audited(record, act, |(), record| record).await?;
    render::ok(Done::new("Logged out"))
}

/// A user's open sessions, newest first.
#[utoipa::path(get, path = "/v1/admin-panel/users/{id}/sessions", tag = "users", security(("staff" = ["admin"])),
    responses((status = 200, body = Sessions)))]
async fn user_sessions(State(side): Side, call: Call) -> Answer {
    admin(&side, &call)?;
    let id = user_in_path(&side, &call)?;
    side.accounts.user(id)?;
    let sessions = side.accounts.sessions(id, None)?.into_iter().map(Into::into).collect();
    render::ok(Sessions { success: true, sessions })
}

/// Ends all of a user's sessions.
#[utoipa::path(delete, path = "/v1/admin-panel/users/{id}/sessions", tag = "users", security(("staff" = ["admin"])),
    responses((status = 200, body = SessionsEnded)))]
async fn end_user_sessions(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    let id = user_in_path(&side, &call)?;
    side.accounts.user(id)?;
    let record = act_on(&side, &by, &call, Action::SessionsRevoked, id);
    let act = move |accounts: Arc<Accounts>| async move { accounts.revoke_sessions(id, None).await };
    let ended = side.accounts.audited(record, act, |ended, record| record.with("sessions", *ended)).await?;
    render::ok(SessionsEnded { success: true, message: "Sessions ended", ended })
}

/// A user's keys, without their texts.
#[utoipa::path(get, path = "/v1/admin-panel/users/{id}/keys", tag = "users", security(("staff" = ["admin"])),
    responses((status = 200, body = Keys)))]
async fn user_keys(State(side): Side, call: Call) -> Answer {
    admin(&side, &call)?;
    let id = user_in_path(&side, &call)?;
    side.accounts.user(id)?;
    render::ok(Keys::of(&side.accounts.keys(id)?))
}

/// Removes one of a user's named keys.
#[utoipa::path(delete, path = "/v1/admin-panel/users/{id}/keys/{key}", tag = "users", security(("staff" = ["admin"])),
    responses((status = 200, body = Done)))]
async fn revoke_user_key(State(side): Side, call: Call) -> Answer {
    let by = admin(&side, &call)?;
    let (id, key) = (user_in_path(&side, &call)?, CredentialId(call.number("key")?));
    let record = act_on(&side, &by, &call, Action::KeyRevoked, id).with("key", key.0);
    let act = move |accounts: Arc<Accounts>| async move { accounts.revoke_key(id, key).await };
    side.accounts.audited(record, act, |_, record| record).await?;
    render::ok(Done::new("Key removed"))
}
