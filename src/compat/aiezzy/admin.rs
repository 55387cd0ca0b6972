//! `/api/admin` of AIezzy, and the login of its administrators, on the side port.

use std::sync::Arc;

use axum::extract::State;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::response::{Analytics, Changed, Dashboard, DayUsage, StaffLoggedIn, TopUser, Totals};
use crate::accounts::Accounts;
use crate::accounts::directory::{Sort, UserQuery};
use crate::accounts::passwords::Password;
use crate::accounts::usage::{ByMeter, Day};
use crate::accounts::users::AdminUpdate;
use crate::clock::UnixMillis;
use crate::domain::meters::Micro;
use crate::domain::session::StaffRole;
use crate::domain::user::Status;
use crate::error::Reject;
use crate::handler::extract::Call;
use crate::handler::render::{self, Answer};
use crate::handler::values::Amount;
use crate::handler::{acts, entry, staff_acts};

type Api = State<Arc<Accounts>>;

const METERS: &[&str] = &["images", "videos", "messages"];
const DAY_MS: u64 = 86_400_000;
/// Days of usage that are answered at most, and when none are named.
const MAX_DAYS: u32 = 366;
const USUAL_DAYS: u32 = 30;
const RECENT: usize = 10;

pub fn side_paths() -> OpenApiRouter<Arc<Accounts>> {
    OpenApiRouter::new()
        .routes(routes!(login))
        .routes(routes!(dashboard))
        .routes(routes!(change_tier))
        .routes(routes!(deactivate))
        .routes(routes!(user_usage))
        .routes(routes!(all_usage))
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
#[schema(as = aiezzy::AdminLogin)]
struct AdminLogin {
    /// The administrator's email, or his username.
    username: Option<String>,
    /// Instead of `username`.
    email: Option<String>,
    #[schema(value_type = String, format = Password)]
    password: Password,
    /// Of the second factor, for those who have one.
    code: Option<String>,
}

/// Opens a session of an administrator. It serves in all dialects.
#[utoipa::path(post, path = "/api/v2/login", tag = "aiezzy", request_body = AdminLogin, security(()),
    responses((status = 200, body = StaffLoggedIn)))]
async fn login(State(accounts): Api, call: Call) -> Answer {
    let mut fields = call.fields()?;
    let email = fields.optional_text("email");
    let name = if let Some(email) = email { email } else { fields.text("username") };
    let (password, code) = (fields.password("password")?, fields.optional_text("code"));
    fields.done()?;
    let (staff, session) = entry::staff_log_in(&accounts, &call, name, password, code).await?;
    render::ok(StaffLoggedIn::new(&staff, &session))
}

fn totals(used: &ByMeter) -> Totals {
    let of = |name: &str| Amount(used.get(name).copied().unwrap_or(Micro::ZERO));
    Totals { images: of("images"), videos: of("videos"), messages: of("messages") }
}

/// What the administrators' page shows.
#[utoipa::path(get, path = "/api/admin/dashboard", tag = "aiezzy", security(("staff" = ["admin"])),
    responses((status = 200, body = Dashboard)))]
async fn dashboard(State(accounts): Api, call: Call) -> Answer {
    acts::staff(&accounts, &call, StaffRole::Admin)?;
    let now = accounts.clock().now();
    let midnight = UnixMillis(now.0 - now.0 % DAY_MS);
    let since_midnight = UserQuery { created_after: Some(midnight), ..UserQuery::default() };
    let newest = UserQuery { sort: Sort::CreatedAt, descending: true, ..UserQuery::default() };
    let new_users_today = accounts.find_users(1, 1, since_midnight).await?.total;
    let recent = accounts.find_users(1, RECENT, newest).await?;
    let overview = accounts.overview(METERS).await?;
    let today = totals(&overview.today);
    let mut top_users = Vec::with_capacity(overview.top.len());
    for (id, spent) in &overview.top {
        // Deleted since.
        let Ok(user) = accounts.user(*id) else { continue };
        if user.status != Status::Deleted {
            top_users.push(TopUser { user: (&user).into(), total_usage: Amount(*spent) });
        }
    }
    render::ok(Dashboard {
        success: true,
        total_users: recent.total,
        new_users_today,
        active_sessions: overview.active_sessions,
        images_today: today.images,
        videos_today: today.videos,
        messages_today: today.messages,
        recent_users: recent.items.iter().map(Into::into).collect(),
        top_users,
        counted_at: overview.at.into(),
    })
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
#[schema(as = aiezzy::TierRequest)]
struct TierRequest {
    /// `free`, `pro`, `enterprise`, or another plan of the service.
    #[schema(example = "pro")]
    tier: String,
}

/// Gives a user another tier.
#[utoipa::path(post, path = "/api/admin/users/{user_id}/tier", tag = "aiezzy", security(("staff" = ["admin"])),
    request_body = TierRequest, responses((status = 200, body = Changed)))]
async fn change_tier(State(accounts): Api, call: Call) -> Answer {
    let by = acts::staff(&accounts, &call, StaffRole::Admin)?;
    let mut fields = call.fields()?;
    let tier = fields.text("tier");
    fields.done()?;
    let id = acts::user_in_path(&accounts, &call, "user_id")?;
    let update = AdminUpdate { plan: Some(tier), ..AdminUpdate::default() };
    let user = staff_acts::update(&accounts, &by, &call, id, update, None).await.map_err(|reject| match reject {
        // The field has another name here.
        Reject::Invalid(_) => Reject::Invalid(vec!["tier: there is no such plan".into()]),
        other => other,
    })?;
    render::ok(Changed { success: true, message: "Tier updated", user: (&user).into() })
}

/// Stops a user's calls.
#[utoipa::path(post, path = "/api/admin/users/{user_id}/deactivate", tag = "aiezzy", security(("staff" = ["admin"])),
    responses((status = 200, body = Changed)))]
async fn deactivate(State(accounts): Api, call: Call) -> Answer {
    let by = acts::staff(&accounts, &call, StaffRole::Admin)?;
    let id = acts::user_in_path(&accounts, &call, "user_id")?;
    let user = staff_acts::set_status(&accounts, &by, &call, id, Status::Suspended, None).await?;
    render::ok(Changed { success: true, message: "User deactivated", user: (&user).into() })
}

fn period(call: &Call) -> Result<u32, Reject> {
    let what = format!("must be a whole number from 1 to {MAX_DAYS}");
    let fits = |text: &str| text.parse::<u32>().ok().filter(|days| (1..=MAX_DAYS).contains(days));
    Ok(call.query_parsed("days", &what, fits)?.unwrap_or(USUAL_DAYS))
}

/// Every day of the period has its line, also one on which nothing was used.
fn analytics(now: UnixMillis, period_days: u32, days: &[(Day, ByMeter)]) -> Analytics {
    let today = Day::of(now);
    let mut sum = ByMeter::new();
    let mut daily = Vec::new();
    for back in (0..period_days).rev() {
        let day = Day(today.0.saturating_sub(back));
        let empty = ByMeter::new();
        let used = days.iter().find(|(known, _)| *known == day).map_or(&empty, |(_, used)| used);
        for (name, amount) in used {
            let total = sum.entry(name.clone()).or_insert(Micro::ZERO);
            *total = total.saturating_add(*amount);
        }
        daily.push(DayUsage { date: day.date(), used: totals(used) });
    }
    Analytics { period_days, totals: totals(&sum), daily }
}

/// What a user has used over some days, today included.
#[utoipa::path(get, path = "/api/admin/users/{user_id}/usage", tag = "aiezzy", security(("staff" = ["admin"])),
    params(("days" = Option<u32>, Query, description = "1 to 366; 30 if left out")),
    responses((status = 200, body = Analytics)))]
async fn user_usage(State(accounts): Api, call: Call) -> Answer {
    acts::staff(&accounts, &call, StaffRole::Admin)?;
    let days = period(&call)?;
    let id = acts::user_in_path(&accounts, &call, "user_id")?;
    let history = accounts.usage_history(id, days)?;
    render::ok(analytics(accounts.clock().now(), days, &history))
}

/// What all users together have used over some days, today included.
#[utoipa::path(get, path = "/api/admin/usage", tag = "aiezzy", security(("staff" = ["admin"])),
    params(("days" = Option<u32>, Query, description = "1 to 366; 30 if left out")),
    responses((status = 200, body = Analytics)))]
async fn all_usage(State(accounts): Api, call: Call) -> Answer {
    acts::staff(&accounts, &call, StaffRole::Admin)?;
    let days = period(&call)?;
    let now = accounts.clock().now();
    let today = (Day::of(now), accounts.overview(METERS).await?.today.clone());
    let whole = accounts.daily_totals(days)?.into_iter().map(|(day, totals)| (day, totals.used));
    let history: Vec<(Day, ByMeter)> = std::iter::once(today).chain(whole).collect();
    render::ok(analytics(now, days, &history))
}
