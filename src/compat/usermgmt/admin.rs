//! `/api/v1/admin` of the user management backend, on the side port.

use std::sync::Arc;

use axum::extract::State;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::request::{meter_update, profile_update};
use super::response::{LimitsReset, People, Person, StaffMade, Token, Updated};
use crate::accounts::Accounts;
use crate::accounts::credits::Whose;
use crate::accounts::passwords::{Password, Rule};
use crate::accounts::staff::NewStaff;
use crate::accounts::users::{AdminUpdate, MAX_PAGE_SIZE};
use crate::actors::audit::Action;
use crate::domain::session::StaffRole;
use crate::domain::user::Status;
use crate::error::Reject;
use crate::handler::extract::Call;
use crate::handler::render::{self, Answer};
use crate::handler::{acts, entry, staff_acts};

type Api = State<Arc<Accounts>>;

const USUAL_LIMIT: usize = 100;

pub fn side_paths() -> OpenApiRouter<Arc<Accounts>> {
    OpenApiRouter::new()
        .routes(routes!(login))
        .routes(routes!(list_users))
        .routes(routes!(get_user, put_user))
        .routes(routes!(create_staff))
        .routes(routes!(reset_limits))
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
#[schema(as = usermgmt::AdminLogin)]
struct AdminLogin {
    #[schema(example = "admin")]
    username: String,
    #[schema(value_type = String, format = Password)]
    password: Password,
    /// Of the second factor, for those who have one.
    code: Option<String>,
}

/// Opens a session of an administrator or of support staff. It serves in all dialects.
#[utoipa::path(post, path = "/api/v1/admin/login", tag = "usermgmt", request_body = AdminLogin, security(()),
    responses((status = 200, body = Token)))]
async fn login(State(accounts): Api, call: Call) -> Answer {
    let mut fields = call.fields()?;
    let (name, password) = (fields.text("username"), fields.password("password")?);
    let code = fields.optional_text("code");
    fields.done()?;
    let (_, session) = entry::staff_log_in(&accounts, &call, name, password, code).await?;
    render::ok(Token::new(&session, accounts.clock().now()))
}

/// `limit` and `offset`, cut to what makes sense.
fn window(call: &Call) -> Result<(usize, usize), Reject> {
    let whole =
        |name: &str| call.query_parsed(name, "must be a whole number from 0", |text| text.parse::<usize>().ok());
    let limit = whole("limit")?.unwrap_or(USUAL_LIMIT).clamp(1, MAX_PAGE_SIZE);
    Ok((limit, whole("offset")?.unwrap_or(0)))
}

/// Users by number, from `offset` on.
#[utoipa::path(get, path = "/api/v1/admin/users", tag = "usermgmt", security(("staff" = ["admin"])),
    params(("limit" = Option<u64>, Query, description = "At most 200; 100 if left out"),
        ("offset" = Option<u64>, Query)),
    responses((status = 200, body = People)))]
async fn list_users(State(accounts): Api, call: Call) -> Answer {
    acts::staff(&accounts, &call, StaffRole::Admin)?;
    let (limit, offset) = window(&call)?;
    let (found, total) = accounts.users_from(offset, limit).await?;
    let users = found.iter().map(|user| Ok(Person::for_staff(user, &accounts.meters(user.id)?)));
    render::ok(People { users: users.collect::<Result<_, Reject>>()?, total, limit, offset })
}

/// A user, by username or by number.
#[utoipa::path(get, path = "/api/v1/admin/users/{username}", tag = "usermgmt", security(("staff" = ["admin"])),
    responses((status = 200, body = Person)))]
async fn get_user(State(accounts): Api, call: Call) -> Answer {
    acts::staff(&accounts, &call, StaffRole::Admin)?;
    let user = accounts.user(acts::user_in_path(&accounts, &call, "username")?)?;
    render::ok(Person::for_staff(&user, &accounts.meters(user.id)?))
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
#[schema(as = usermgmt::CreditsChange)]
struct CreditsChange {
    main: Option<f64>,
    reset: Option<f64>,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
#[schema(as = usermgmt::LimitsChange)]
struct LimitsChange {
    conversation_limit: Option<f64>,
    reset: Option<f64>,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
#[schema(as = usermgmt::UserChange)]
struct UserChange {
    name: Option<String>,
    email: Option<String>,
    about_me: Option<String>,
    hobbies: Option<String>,
    /// `Personal` or `Business`.
    r#type: Option<String>,
    #[schema(example = "premium")]
    subscription_plan: Option<String>,
    credits: Option<CreditsChange>,
    limits: Option<LimitsChange>,
    access_rtype: Option<Vec<String>>,
    level: Option<String>,
    additional_notes: Option<String>,
    is_active: Option<bool>,
}

/// Changes a user, by username or by number; what is left out stays.
#[utoipa::path(put, path = "/api/v1/admin/users/{username}", tag = "usermgmt", security(("staff" = ["admin"])),
    request_body = UserChange, responses((status = 200, body = Updated)))]
async fn put_user(State(accounts): Api, call: Call) -> Answer {
    let by = acts::staff(&accounts, &call, StaffRole::Admin)?;
    let mut fields = call.fields()?;
    let update = AdminUpdate {
        profile: profile_update(&mut fields),
        email: fields.optional_text("email"),
        plan: fields.optional_text("subscription_plan"),
        credits: meter_update(&mut fields, "credits", "main"),
        conversations: meter_update(&mut fields, "limits", "conversation_limit"),
        access_rtype: fields.optional_texts("access_rtype"),
        level: fields.optional_text("level"),
        additional_notes: fields.optional_text("additional_notes"),
        ..AdminUpdate::default()
    };
    let active = fields.optional_flag("is_active");
    fields.done()?;
    let id = acts::user_in_path(&accounts, &call, "username")?;
    let mut user = staff_acts::update(&accounts, &by, &call, id, update, None).await?;
    if let Some(active) = active {
        let status = if active { Status::Active } else { Status::Suspended };
        user = staff_acts::set_status(&accounts, &by, &call, id, status, None).await?;
    }
    render::ok(Updated::new("User updated successfully", Person::for_staff(&user, &accounts.meters(id)?)))
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
#[schema(as = usermgmt::StaffRequest)]
struct StaffRequest {
    #[schema(example = "Support User")]
    name: String,
    #[schema(example = "support1")]
    username: String,
    #[schema(example = "support@example.com")]
    email: String,
    /// At least 8 characters.
    #[schema(value_type = String, format = Password, example = "support123")]
    password: Password,
    /// `new`, `support` or `advanced`.
    #[schema(example = "support")]
    staff_level: String,
}

/// Makes a member of the support staff.
#[utoipa::path(post, path = "/api/v1/admin/staff", tag = "usermgmt", security(("staff" = ["admin"])),
    request_body = StaffRequest, responses((status = 200, body = StaffMade)))]
async fn create_staff(State(accounts): Api, call: Call) -> Answer {
    let by = acts::staff(&accounts, &call, StaffRole::Admin)?;
    let mut fields = call.fields()?;
    let levels = "must be \"new\", \"support\" or \"advanced\"";
    let level = fields.parsed("staff_level", levels, StaffRole::parse_level);
    let new = NewStaff {
        username: fields.text("username"),
        name: fields.text("name"),
        email: fields.text("email"),
        password: fields.password("password")?,
        role: level.unwrap_or(StaffRole::New),
        rule: Rule::Length,
    };
    fields.done()?;
    let record = acts::act_of(&by, &call, Action::StaffCreated).with("role", new.role.as_str());
    let act = move |accounts: Arc<Accounts>| async move { accounts.create_staff(new).await };
    let made = accounts.audited(record, act, |made, record| record.on(made)).await?;
    render::ok(StaffMade::from(&made))
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
#[schema(as = usermgmt::ResetRequest)]
struct ResetRequest {
    /// Without one: everybody's.
    username: Option<String>,
}

/// Sets a user's limits to their reset amounts; without a user, everybody's.
#[utoipa::path(post, path = "/api/v1/admin/reset-limits", tag = "usermgmt", security(("staff" = ["admin"])),
    request_body = Option<ResetRequest>, responses((status = 200, body = LimitsReset)))]
async fn reset_limits(State(accounts): Api, call: Call) -> Answer {
    let by = acts::staff(&accounts, &call, StaffRole::Admin)?;
    let mut fields = call.optional_fields()?;
    let name = fields.optional_text("username");
    if name.is_none()
        && let Some(other) = fields.any_left()
    {
        // A misspelt name of one user must not reset all of them.
        let why = format!("{other}: is not known here; name a user by username, or send nothing to reset all");
        return Err(Reject::Invalid(vec![why]).into());
    }
    fields.done()?;
    let whose = match name {
        Some(name) => Whose::One(accounts.find_user(&name)?.ok_or(Reject::NotFound)?),
        None => Whose::Everybodys,
    };
    let users = staff_acts::reset_limits(&accounts, &by, &call, whose).await?;
    render::ok(LimitsReset { success: true, message: "Limits reset successfully", users })
}
