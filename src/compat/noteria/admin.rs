//! The pages by which Noteria's administrators give codes, on the side port.

use std::sync::Arc;

use axum::extract::State;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::response::{Generated, StaffLoggedIn, Stats};
use crate::accounts::Accounts;
use crate::accounts::codes::{CodesFormat, NewCodes};
use crate::accounts::passwords::Password;
use crate::domain::ids::UserId;
use crate::domain::session::StaffRole;
use crate::error::Reject;
use crate::handler::extract::{Call, Fields};
use crate::handler::render::{self, Answer};
use crate::handler::{acts, entry, exports, staff_acts};

type Api = State<Arc<Accounts>>;

/// As many as the script makes when it is not told how many.
const USUAL_COUNT: u64 = 1_000_000;
const GENERATED: &str = "Kodet u gjeneruan";

pub fn side_paths() -> OpenApiRouter<Arc<Accounts>> {
    OpenApiRouter::new()
        .routes(routes!(login))
        .routes(routes!(generate))
        .routes(routes!(stats, act))
        .routes(routes!(export))
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
#[schema(as = noteria::AdminLogin)]
struct AdminLogin {
    /// The administrator's email, or his username.
    email: String,
    #[schema(value_type = String, format = Password)]
    password: Password,
    /// Of the second factor, for those who have one.
    code: Option<String>,
}

/// Opens a session of an administrator. It serves in all dialects.
#[utoipa::path(post, path = "/noteria/login.php", tag = "noteria", request_body = AdminLogin, security(()),
    responses((status = 200, body = StaffLoggedIn)))]
async fn login(State(accounts): Api, call: Call) -> Answer {
    let mut fields = call.form().await?;
    let (name, password) = (fields.text("email"), fields.password("password")?);
    let code = fields.optional_text("code").filter(|text| !text.is_empty());
    fields.done()?;
    let (staff, session) = entry::staff_log_in(&accounts, &call, name, password, code).await?;
    render::ok(StaffLoggedIn::new(&staff, &session))
}

/// The user whom a number or a name stands for.
fn user_named(accounts: &Accounts, text: &str) -> Result<UserId, Reject> {
    let id = match text.parse() {
        Ok(number) => UserId(number),
        Err(_) => accounts.find_user(text)?.ok_or(Reject::NotFound)?,
    };
    accounts.user(id).map(|user| user.id)
}

/// A field of the body, or else of the query.
fn field(call: &Call, fields: &mut Fields, name: &str) -> Option<String> {
    fields.optional_word(name).or_else(|| call.query(name).map(str::to_owned)).filter(|text| !text.is_empty())
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
#[schema(as = noteria::GenerateRequest)]
struct GenerateRequest {
    /// A number or a username; may be in the query instead.
    #[schema(example = "1")]
    user_id: Option<String>,
    /// A million if left out; may be in the query instead.
    #[schema(example = 1000)]
    count: Option<u64>,
}

fn wanted(call: &Call, fields: &mut Fields) -> Result<NewCodes, Reject> {
    let count = match field(call, fields, "count").map(|text| text.parse::<u64>()) {
        None => USUAL_COUNT,
        Some(Ok(count)) => count,
        Some(Err(_)) => return Err(Reject::Invalid(vec!["count: must be a whole number".into()])),
    };
    Ok(NewCodes { count, expires_at: fields.optional_time("expires_at"), category: fields.optional_text("category") })
}

async fn generate_for(accounts: &Arc<Accounts>, call: &Call, user: &str, new: NewCodes) -> Answer {
    let by = acts::staff(accounts, call, StaffRole::Admin)?;
    let id = user_named(accounts, user)?;
    let list = staff_acts::generate_codes(accounts, &by, call, id, new).await?;
    render::ok(Generated { success: true, message: GENERATED, user_id: Some(id.0), users: 1, generated: list.count })
}

/// Gives a user one-time codes, all of them or none.
#[utoipa::path(post, path = "/noteria/generate_user_codes.php", tag = "noteria", security(("staff" = ["admin"])),
    params(("user_id" = Option<String>, Query), ("count" = Option<u64>, Query)),
    request_body = Option<GenerateRequest>, responses((status = 200, body = Generated)))]
async fn generate(State(accounts): Api, call: Call) -> Answer {
    acts::staff(&accounts, &call, StaffRole::Admin)?;
    let mut fields = call.form().await?;
    let (user, new) = (field(&call, &mut fields, "user_id"), wanted(&call, &mut fields)?);
    if user.is_none() {
        fields.missing("user_id");
    }
    fields.done()?;
    generate_for(&accounts, &call, &user.unwrap_or_default(), new).await
}

/// Counts of one user's codes, or of everybody's.
#[utoipa::path(get, path = "/noteria/admin_unique_codes.php", tag = "noteria", security(("staff" = ["admin"])),
    params(("user_id" = Option<String>, Query, description = "A number or a username")),
    responses((status = 200, body = Stats)))]
async fn stats(State(accounts): Api, call: Call) -> Answer {
    acts::staff(&accounts, &call, StaffRole::Admin)?;
    match call.query("user_id").filter(|text| !text.is_empty()) {
        Some(user) => {
            let id = user_named(&accounts, user)?;
            render::ok(Stats::new(Some(id.0), 1, accounts.code_stats(id)?))
        }
        None => {
            let all = accounts.all_code_stats().await?;
            render::ok(Stats::new(None, all.users, all.codes))
        }
    }
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
#[schema(as = noteria::ActRequest)]
struct ActRequest {
    /// `generate` for one user, `generate_all` for every active one.
    #[schema(example = "generate")]
    action: String,
    /// For `generate`: a number or a username.
    user_id: Option<String>,
    #[schema(example = 1000)]
    count: Option<u64>,
}

/// Gives codes to a user, or a list of his own to every active one.
#[utoipa::path(post, path = "/noteria/admin_unique_codes.php", tag = "noteria", security(("staff" = ["admin"])),
    request_body = ActRequest, responses((status = 200, body = Generated)))]
async fn act(State(accounts): Api, call: Call) -> Answer {
    let by = acts::staff(&accounts, &call, StaffRole::Admin)?;
    let mut fields = call.form().await?;
    let known = |text: &str| match text {
        "generate" => Some(false),
        "generate_all" => Some(true),
        _ => None,
    };
    let for_all = fields.parsed("action", "must be generate or generate_all", known).unwrap_or(false);
    let (user, new) = (field(&call, &mut fields, "user_id"), wanted(&call, &mut fields)?);
    if user.is_none() && !for_all {
        fields.missing("user_id");
    }
    fields.done()?;
    if !for_all {
        return generate_for(&accounts, &call, &user.unwrap_or_default(), new).await;
    }
    let generated = new.count;
    let users = staff_acts::generate_codes_for_all(&accounts, &by, &call, new).await?;
    render::ok(Generated { success: true, message: GENERATED, user_id: None, users, generated })
}

/// A user's codes. Whoever reads them can use them with the password.
#[utoipa::path(get, path = "/noteria/export_user_codes.php", tag = "noteria", security(("staff" = ["admin"])),
    params(("user_id" = String, Query, description = "A number or a username"),
        ("format" = Option<String>, Query, description = "`csv` or `json`; csv if left out")),
    responses((status = 200, description = "Lines of `code,generated_at,used,expires_at,category`, or a JSON list of the same.",
        content((String = "text/csv"), (Vec<Object> = "application/json")))))]
async fn export(State(accounts): Api, call: Call) -> Answer {
    let by = acts::staff(&accounts, &call, StaffRole::Admin)?;
    let format = call.query_parsed("format", "must be csv or json", CodesFormat::parse)?.unwrap_or(CodesFormat::Csv);
    let user = call.query("user_id").filter(|text| !text.is_empty());
    let user = user.ok_or_else(|| Reject::Invalid(vec!["user_id: is required".into()]))?;
    let id = user_named(&accounts, user)?;
    exports::codes(&accounts, &by, &call, id, format).await
}
