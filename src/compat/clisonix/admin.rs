//! `/api/admin` of Clisonix, and the login of its administrators, on the side port.

use std::sync::Arc;

use axum::extract::State;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::response::{Account, Changed, Seen, StaffLoggedIn, Stats, UserList};
use crate::accounts::Accounts;
use crate::accounts::credits::Adjustment;
use crate::accounts::directory::UserQuery;
use crate::accounts::passwords::Password;
use crate::accounts::users::AdminUpdate;
use crate::domain::ids::UserId;
use crate::domain::meters::MeterName;
use crate::domain::session::StaffRole;
use crate::domain::user::{Status, User};
use crate::error::Reject;
use crate::handler::extract::Call;
use crate::handler::render::{self, Answer};
use crate::handler::{acts, entry, staff_acts};

type Api = State<Arc<Accounts>>;

pub fn side_paths() -> OpenApiRouter<Arc<Accounts>> {
    OpenApiRouter::new()
        .routes(routes!(login))
        .routes(routes!(list_users))
        .routes(routes!(get_user))
        .routes(routes!(activate))
        .routes(routes!(suspend))
        .routes(routes!(change_plan))
        .routes(routes!(add_credits))
        .routes(routes!(stats))
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
#[schema(as = clisonix::AdminLogin)]
struct AdminLogin {
    /// The administrator's username.
    email_or_username: String,
    #[schema(value_type = String, format = Password)]
    password: Password,
    /// Of the second factor, for those who have one.
    code: Option<String>,
}

/// Opens a session of an administrator. It serves in all dialects.
#[utoipa::path(post, path = "/api/users/login", tag = "clisonix", request_body = AdminLogin, security(()),
    responses((status = 200, body = StaffLoggedIn)))]
async fn login(State(accounts): Api, call: Call) -> Answer {
    let mut fields = call.fields()?;
    let name = fields.text("email_or_username");
    let (password, code) = (fields.password("password")?, fields.optional_text("code"));
    fields.done()?;
    let (staff, session) = entry::staff_log_in(&accounts, &call, name, password, code).await?;
    render::ok(StaffLoggedIn::new(&staff, &session))
}

/// All users, by number.
#[utoipa::path(get, path = "/api/admin/users", tag = "clisonix", security(("staff" = ["admin"])),
    params(("page" = Option<u64>, Query), ("page_size" = Option<u64>, Query, description = "At most 200")),
    responses((status = 200, body = UserList)))]
async fn list_users(State(accounts): Api, call: Call) -> Answer {
    acts::staff(&accounts, &call, StaffRole::Admin)?;
    let (page, page_size) = call.page()?;
    let found = accounts.find_users(page, page_size, UserQuery::default()).await?;
    render::ok(UserList {
        users: found.items.iter().map(Account::of).collect(),
        page: found.page,
        page_size: found.page_size,
        total: found.total,
    })
}

fn seen(accounts: &Accounts, user: &User) -> Result<Seen, Reject> {
    Ok(Seen::new(user, &accounts.meters(user.id)?))
}

fn changed(accounts: &Accounts, message: &'static str, user: &User) -> Answer {
    render::ok(Changed { success: true, message, user: seen(accounts, user)? })
}

fn user_in_path(accounts: &Accounts, call: &Call) -> Result<UserId, Reject> {
    acts::user_in_path(accounts, call, "user_id")
}

/// A user.
#[utoipa::path(get, path = "/api/admin/users/{user_id}", tag = "clisonix", security(("staff" = ["admin"])),
    responses((status = 200, body = Seen)))]
async fn get_user(State(accounts): Api, call: Call) -> Answer {
    acts::staff(&accounts, &call, StaffRole::Admin)?;
    let user = accounts.user(user_in_path(&accounts, &call)?)?;
    render::ok(seen(&accounts, &user)?)
}

/// Lets a user call again, or for the first time.
#[utoipa::path(post, path = "/api/admin/users/{user_id}/activate", tag = "clisonix", security(("staff" = ["admin"])),
    responses((status = 200, body = Changed)))]
async fn activate(State(accounts): Api, call: Call) -> Answer {
    let by = acts::staff(&accounts, &call, StaffRole::Admin)?;
    let id = user_in_path(&accounts, &call)?;
    let user = staff_acts::set_status(&accounts, &by, &call, id, Status::Active, None).await?;
    changed(&accounts, "User activated", &user)
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
#[schema(as = clisonix::SuspendRequest)]
struct SuspendRequest {
    reason: Option<String>,
}

/// Stops a user's calls until he is activated.
#[utoipa::path(post, path = "/api/admin/users/{user_id}/suspend", tag = "clisonix", security(("staff" = ["admin"])),
    request_body = Option<SuspendRequest>, responses((status = 200, body = Changed)))]
async fn suspend(State(accounts): Api, call: Call) -> Answer {
    let by = acts::staff(&accounts, &call, StaffRole::Admin)?;
    let mut fields = call.optional_fields()?;
    let reason = fields.optional_text("reason");
    fields.done()?;
    let id = user_in_path(&accounts, &call)?;
    let user = staff_acts::set_status(&accounts, &by, &call, id, Status::Suspended, reason).await?;
    changed(&accounts, "User suspended", &user)
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
#[schema(as = clisonix::PlanRequest)]
struct PlanRequest {
    #[schema(example = "professional")]
    plan: String,
}

/// Gives a user another plan.
#[utoipa::path(post, path = "/api/admin/users/{user_id}/change-plan", tag = "clisonix",
    security(("staff" = ["admin"])), request_body = PlanRequest, responses((status = 200, body = Changed)))]
async fn change_plan(State(accounts): Api, call: Call) -> Answer {
    let by = acts::staff(&accounts, &call, StaffRole::Admin)?;
    let mut fields = call.fields()?;
    let update = AdminUpdate { plan: Some(fields.text("plan")), ..AdminUpdate::default() };
    fields.done()?;
    let id = user_in_path(&accounts, &call)?;
    let user = staff_acts::update(&accounts, &by, &call, id, update, None).await?;
    changed(&accounts, "Plan changed", &user)
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
#[schema(as = clisonix::CreditsRequest)]
struct CreditsRequest {
    #[schema(example = 100)]
    amount: f64,
    reason: Option<String>,
}

/// Gives a user credits.
#[utoipa::path(post, path = "/api/admin/users/{user_id}/add-credits", tag = "clisonix",
    security(("staff" = ["admin"])), request_body = CreditsRequest, responses((status = 200, body = Changed)))]
async fn add_credits(State(accounts): Api, call: Call) -> Answer {
    let by = acts::staff(&accounts, &call, StaffRole::Admin)?;
    let mut fields = call.fields()?;
    let (amount, reason) = (fields.signed_amount("amount"), fields.optional_text("reason"));
    fields.done()?;
    let (Some(amount), Some(meter)) = (amount, MeterName::parse("credits")) else {
        return Err(Reject::Internal.into());
    };
    let id = user_in_path(&accounts, &call)?;
    staff_acts::adjust(&accounts, &by, &call, id, Adjustment { meter, amount, reason }).await?;
    changed(&accounts, "Credits added", &accounts.user(id)?)
}

/// Counts over all users.
#[utoipa::path(get, path = "/api/admin/stats", tag = "clisonix", security(("staff" = ["admin"])),
    responses((status = 200, body = Stats)))]
async fn stats(State(accounts): Api, call: Call) -> Answer {
    acts::staff(&accounts, &call, StaffRole::Admin)?;
    let counts = accounts.statistics().await?;
    render::ok(Stats {
        total_users: counts.total,
        active_users: counts.active,
        pending_users: counts.pending,
        suspended_users: counts.suspended,
        banned_users: counts.banned,
        deleted_users: counts.deleted,
        verified_users: counts.verified,
        users_by_plan: counts.more.as_ref().map(|more| more.by_plan.clone()),
        new_users_today: counts.more.as_ref().map(|more| more.registered[0]),
        calls_in_flight: accounts.metrics().in_flight(),
    })
}
