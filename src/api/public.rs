//! `/v1/users/*`: what users do for themselves, on the public listener.
//!
//! Owns these paths. Knows a caller by his session token alone: an API key calls upstreams, it does not manage accounts.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::document::{self, Document};
use super::shapes::{self, Amount, Done, MeterShape, QuotaShape, Time, Tokens, UsageDay, UserBrief, UserDetails};
use super::{checks, codes, jwks, keys, links, mfa, oauth, own};
use crate::accounts::Accounts;
use crate::accounts::passwords::{Password, Rule};
use crate::accounts::registration::Registration;
use crate::accounts::sessions::LoginRequest;
use crate::accounts::users::ProfileUpdate;
use crate::domain::ids::UserId;
use crate::domain::key::KeyLook;
use crate::domain::session::SessionStyle;
use crate::domain::user::{Profile, UserType};
use crate::error::Reject;
use crate::handler::entry::{self, Welcome};
use crate::handler::extract::{Call, Fields};
use crate::handler::render::{self, Answer};
use crate::handler::{device, own_acts};

pub(super) type Api = State<Arc<Accounts>>;

/// Every path of the public listener that is answered here, with its description: what is not in it does not exist.
fn paths() -> OpenApiRouter<Arc<Accounts>> {
    OpenApiRouter::new()
        .routes(routes!(register))
        .routes(routes!(login))
        .routes(routes!(refresh))
        .routes(routes!(logout))
        .routes(routes!(profile, update_profile))
        .routes(routes!(api_key))
        .routes(routes!(regenerate_key))
        .routes(routes!(usage))
        .routes(routes!(usage_history))
        .routes(routes!(quota))
        .merge(own::paths())
        .merge(keys::paths())
        .merge(mfa::paths())
        .merge(codes::paths())
        .merge(checks::paths())
        .merge(links::paths())
        .merge(oauth::paths())
        .merge(jwks::paths())
}

/// The router of the public listener's local paths; `more` are other APIs'.
pub fn public_router(accounts: Arc<Accounts>, more: OpenApiRouter<Arc<Accounts>>) -> Router {
    super::finish(paths().merge(more).split_for_parts().0, accounts.clone(), accounts, None)
}

/// The OpenAPI document of the public listener's local paths; `more` are other APIs'.
pub fn public_document(more: OpenApi) -> Document {
    let mut all = paths().into_openapi();
    all.merge(more);
    document::public(all)
}

const USER_TYPES: &str = "must be \"Personal\" or \"Business\"";

#[derive(ToSchema)]
struct RegisterRequest {
    /// 3 to 50 letters, digits, hyphens or underscores, and not a number; unique without case.
    #[schema(example = "johndoe")]
    username: String,
    /// 2 to 100 characters.
    #[schema(example = "John Doe")]
    name: String,
    #[schema(example = "john@example.com")]
    email: String,
    #[schema(value_type = String, format = Password, example = "SecurePass123")]
    password: Password,
    /// `Personal` or `Business`.
    #[schema(value_type = Option<String>, example = "Personal")]
    user_type: Option<UserType>,
    /// At most 1000 characters, as `hobbies`.
    about_me: Option<String>,
    hobbies: Option<String>,
}

impl RegisterRequest {
    fn read(call: &Call) -> Result<Self, Reject> {
        let mut fields = call.fields()?;
        let request = Self {
            username: fields.text("username"),
            name: fields.text("name"),
            email: fields.text("email"),
            password: fields.password("password")?,
            user_type: fields.optional_parsed("user_type", USER_TYPES, UserType::parse),
            about_me: fields.optional_text("about_me"),
            hobbies: fields.optional_text("hobbies"),
        };
        fields.done()?;
        Ok(request)
    }
}

impl From<RegisterRequest> for Registration {
    fn from(request: RegisterRequest) -> Self {
        Self {
            username: request.username,
            name: request.name,
            email: request.email,
            password: request.password,
            user_type: request.user_type.unwrap_or_default(),
            about_me: request.about_me.unwrap_or_default(),
            hobbies: request.hobbies.unwrap_or_default(),
            profile: Profile::default(),
            rule: Rule::Composition,
            key_look: KeyLook::Canonical,
        }
    }
}

#[derive(Serialize, ToSchema)]
struct Registered {
    #[schema(example = true)]
    success: bool,
    message: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<u64>,
    username: String,
    email: String,
    /// The user's default key. Not there in strict mode, nor is the number: after the login it can be seen.
    #[schema(example = "pe-rqrFLve5ZM63ZL1XtREaiLrlrNreu20Y")]
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key: Option<String>,
    verification_required: bool,
    /// What speaks against the password, which was taken all the same.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// Makes an account and its API key.
#[utoipa::path(post, path = "/v1/users/register", tag = "account", request_body = RegisterRequest, security(()),
    responses((status = 200, body = Registered)))]
async fn register(State(accounts): Api, call: Call) -> Answer {
    let new: Registration = RegisterRequest::read(&call)?.into();
    let warnings = accounts.password_warnings(&new.password, "password", &[&new.username, &new.email]);
    let (username, email) = (new.username.trim().to_owned(), new.email.trim().to_owned());
    let verification_required = accounts.settings().accounts.email_verification;
    render::ok(match entry::register(&accounts, &call, new, None).await? {
        Welcome::SeeYourMail => Registered {
            success: true,
            message: "Thank you. Please look into your mail",
            user_id: None,
            username,
            email,
            api_key: None,
            verification_required,
            warnings,
        },
        Welcome::In(made) => Registered {
            success: true,
            message: "User registered successfully",
            user_id: Some(made.user.id.0),
            username: made.user.username.to_string(),
            email: made.user.email.to_string(),
            api_key: Some(made.api_key.expose().to_owned()),
            verification_required: made.verification_required,
            warnings,
        },
    })
}

/// `username` counts before `email`; either may be in either.
#[derive(ToSchema)]
struct LoginBody {
    #[schema(example = "john@example.com")]
    email: Option<String>,
    username: Option<String>,
    #[schema(value_type = String, format = Password, example = "SecurePass123")]
    password: Password,
    /// Of the second factor, or a recovery code; asked for with `MFA_REQUIRED`.
    code: Option<String>,
    /// One of the codes that staff has given the user; each opens one login.
    #[schema(example = "A7F3B2E9D4C1F6A8")]
    unique_code: Option<String>,
    /// What else this service asks for (`FACTORS_REQUIRED` names it), such as `personal_number` (ten digits) and `photo` (base64).
    factors: Option<BTreeMap<String, String>>,
}

impl LoginBody {
    fn read(call: &Call) -> Result<Self, Reject> {
        let mut fields = call.fields()?;
        let username = fields.optional_text("username");
        let email = if username.is_some() { None } else { Some(fields.text("email")) };
        let body = Self {
            email,
            username,
            password: fields.password("password")?,
            code: fields.optional_text("code"),
            unique_code: fields.optional_text("unique_code"),
            factors: fields.optional_text_map("factors"),
        };
        fields.done()?;
        Ok(body)
    }
}

#[derive(Serialize, ToSchema)]
struct LoggedIn {
    #[schema(example = true)]
    success: bool,
    message: &'static str,
    user: UserBrief,
    session: Tokens,
}

/// Opens a session. The answer's header `X-Tollgate-Device` (for browsers: a cookie) is for the device to keep: sent along
/// at later logins, it lets its owner try while others have locked the account.
#[utoipa::path(post, path = "/v1/users/login", tag = "sessions", request_body = LoginBody, security(()),
    params(("X-Tollgate-Device" = Option<String>, Header, description = "What an earlier login has left here")),
    responses((status = 200, body = LoggedIn, headers(("X-Tollgate-Device" = String)))))]
async fn login(State(accounts): Api, call: Call) -> Answer {
    let LoginBody { email, username, password, code, unique_code, factors } = LoginBody::read(&call)?;
    let identifier = username.or(email).unwrap_or_default();
    let usual = entry::login_request(&call, identifier, password, SessionStyle::default());
    let request = LoginRequest { code, unique_code, factors: factors.unwrap_or_default().into(), ..usual };
    let (user, session) = entry::log_in(&accounts, &call, request).await?;
    let answer = render::ok(LoggedIn {
        success: true,
        message: "Login successful",
        user: (&user).into(),
        session: (&session).into(),
    })?;
    Ok(device::remember(answer, session.device.as_ref(), accounts.clock().now()))
}

#[derive(ToSchema)]
struct RefreshRequest {
    refresh_token: String,
}

impl RefreshRequest {
    fn read(call: &Call) -> Result<Self, Reject> {
        let mut fields = call.fields()?;
        let request = Self { refresh_token: fields.text("refresh_token") };
        fields.done()?;
        Ok(request)
    }
}

#[derive(Serialize, ToSchema)]
struct Refreshed {
    #[schema(example = true)]
    success: bool,
    message: &'static str,
    session: Tokens,
}

/// Exchanges a refresh token for new tokens.
#[utoipa::path(post, path = "/v1/users/refresh", tag = "sessions", request_body = RefreshRequest, security(()),
    responses((status = 200, body = Refreshed)))]
async fn refresh(State(accounts): Api, call: Call) -> Answer {
    let RefreshRequest { refresh_token } = RefreshRequest::read(&call)?;
    let session = entry::refresh(&accounts, &call, refresh_token).await?;
    render::ok(Refreshed { success: true, message: "Session refreshed", session: (&session).into() })
}

/// Ends the session whose token the call carries.
#[utoipa::path(post, path = "/v1/users/logout", tag = "sessions", security(("session" = [])),
    responses((status = 200, body = Done)))]
async fn logout(State(accounts): Api, call: Call) -> Answer {
    entry::log_out(&accounts, &call, call.token()?).await?;
    render::ok(Done::new("Logged out"))
}

#[derive(Serialize, ToSchema)]
struct OwnProfile {
    #[schema(example = true)]
    success: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'static str>,
    user: UserDetails,
}

/// The caller's account.
#[utoipa::path(get, path = "/v1/users/profile", tag = "account", security(("session" = [])),
    responses((status = 200, body = OwnProfile)))]
async fn profile(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let details = accounts.details(user)?;
    render::ok(OwnProfile { success: true, message: None, user: (&details).into() })
}

/// The fields that a user and staff may change alike.
pub(super) fn profile_fields(fields: &mut Fields) -> ProfileUpdate {
    let mut details = Vec::new();
    for name in Profile::FIELDS {
        if fields.is_null(name) {
            details.push((name, None));
        } else if let Some(text) = fields.optional_text(name) {
            details.push((name, Some(text)));
        }
    }
    if fields.is_null("preferences") {
        details.push(("preferences", None));
    } else if let Some(json) = fields.optional_json("preferences") {
        details.push(("preferences", Some(json)));
    }
    let bio = fields.optional_text("bio");
    ProfileUpdate {
        fields: details,
        name: fields.optional_text("name"),
        about_me: fields.optional_text("about_me").or(bio),
        hobbies: fields.optional_text("hobbies"),
        user_type: fields.optional_parsed("user_type", USER_TYPES, UserType::parse),
    }
}

/// What is left out stays as it is.
#[derive(ToSchema)]
#[allow(dead_code, reason = "read by profile_fields; this is its description")]
struct ProfileRequest {
    name: Option<String>,
    about_me: Option<String>,
    hobbies: Option<String>,
    /// `Personal` or `Business`.
    user_type: Option<String>,
    /// The same as `about_me`, which counts first.
    bio: Option<String>,
    /// At most 100 characters, as the others here; null empties a field.
    first_name: Option<String>,
    last_name: Option<String>,
    display_name: Option<String>,
    /// `https://…`, at most 500 characters.
    avatar_url: Option<String>,
    phone: Option<String>,
    country: Option<String>,
    city: Option<String>,
    timezone: Option<String>,
    language: Option<String>,
    organization: Option<String>,
    job_title: Option<String>,
    specialization: Option<String>,
    license_number: Option<String>,
    /// The client's own settings, at most 1000 bytes.
    #[schema(value_type = Option<Object>)]
    preferences: Option<serde_json::Value>,
}

/// Changes the caller's account.
#[utoipa::path(put, path = "/v1/users/profile", tag = "account", request_body = ProfileRequest,
    security(("session" = [])), responses((status = 200, body = OwnProfile)))]
async fn update_profile(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let mut fields = call.fields()?;
    let update = profile_fields(&mut fields);
    fields.done()?;
    let user = own_acts::update_profile(&accounts, &call, &user, update).await?;
    let details = accounts.details(user)?;
    render::ok(OwnProfile { success: true, message: Some("Profile updated"), user: (&details).into() })
}

#[derive(Serialize, ToSchema)]
struct OwnKey {
    #[schema(example = true)]
    success: bool,
    /// The key, sealed: `api-key/reveal` opens it. Null where only a MAC of it is kept.
    #[schema(example = "enc:v1:…")]
    key: Option<String>,
    #[schema(example = "pe-rqrF…")]
    masked: String,
    created_at: Time,
    /// To the minute; null: never.
    last_used: Option<Time>,
}

/// The caller's default key.
#[utoipa::path(get, path = "/v1/users/api-key", tag = "keys", security(("session" = [])),
    responses((status = 200, body = OwnKey)))]
async fn api_key(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let key = accounts.default_key(user.id)?;
    render::ok(OwnKey {
        success: true,
        key: key.sealed,
        masked: key.masked,
        created_at: key.created_at.into(),
        last_used: key.last_used.map(Time::from),
    })
}

/// A new key, shown here and never again.
#[derive(Serialize, ToSchema)]
pub(super) struct NewKey {
    #[schema(example = true)]
    pub(super) success: bool,
    pub(super) message: &'static str,
    #[schema(example = "pe-rqrFLve5ZM63ZL1XtREaiLrlrNreu20Y")]
    pub(super) api_key: String,
}

/// Replaces the caller's default key; the old one is dead at once.
#[utoipa::path(post, path = "/v1/users/api-key/regenerate", tag = "keys", security(("session" = [])),
    responses((status = 200, body = NewKey)))]
async fn regenerate_key(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let key = own_acts::regenerate_key(&accounts, &call, &user).await?;
    render::ok(NewKey { success: true, message: "API key regenerated", api_key: key.expose().to_owned() })
}

#[derive(Serialize, ToSchema)]
pub(super) struct OwnUsage {
    #[schema(example = true)]
    success: bool,
    subscription_plan: String,
    /// The plan's.
    storage_mb: Option<u64>,
    /// The plan's, as people read it.
    price: Option<String>,
    /// By the meter's name.
    meters: BTreeMap<String, MeterShape>,
    /// Spent since midnight UTC, by the meter's name.
    today: BTreeMap<String, Amount>,
    /// Spent this month (UTC).
    month: BTreeMap<String, Amount>,
}

impl OwnUsage {
    pub(super) fn of(accounts: &Accounts, id: UserId, plan: &str) -> Result<Self, Reject> {
        let meters = shapes::meters(&accounts.meters(id)?);
        let used = accounts.used(id)?;
        let settings = accounts.settings();
        let details = settings.plans.iter().find(|known| &*known.name == plan);
        Ok(Self {
            success: true,
            subscription_plan: plan.to_owned(),
            storage_mb: details.and_then(|plan| plan.storage_mb),
            price: details.and_then(|plan| plan.price.clone()),
            meters,
            today: shapes::amounts(&used.today),
            month: shapes::amounts(&used.month),
        })
    }
}

/// What the caller has used.
#[utoipa::path(get, path = "/v1/users/usage", tag = "usage", security(("session" = [])),
    responses((status = 200, body = OwnUsage)))]
async fn usage(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    render::ok(OwnUsage::of(&accounts, user.id, &user.plan)?)
}

#[derive(Serialize, ToSchema)]
struct OwnHistory {
    #[schema(example = true)]
    success: bool,
    /// Newest first; days without anything are left out.
    days: Vec<UsageDay>,
}

/// What the caller has spent by the day.
#[utoipa::path(get, path = "/v1/users/usage/history", tag = "usage", security(("session" = [])),
    params(("days" = Option<u32>, Query, description = "1 to 366, today included; 30 if left out")),
    responses((status = 200, body = OwnHistory)))]
async fn usage_history(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let days = accounts.usage_history(user.id, days(&call)?)?;
    render::ok(OwnHistory { success: true, days: days.iter().map(UsageDay::from).collect() })
}

/// How many days a question is about.
pub(super) fn days(call: &Call) -> Result<u32, Reject> {
    let fits = |text: &str| text.parse().ok().filter(|days| (1..=366).contains(days));
    Ok(call.query_parsed("days", "must be 1 to 366", fits)?.unwrap_or(30))
}

#[derive(Serialize, ToSchema)]
struct OwnQuota {
    #[schema(example = true)]
    success: bool,
    subscription_plan: String,
    /// By the meter's name.
    quota: BTreeMap<String, QuotaShape>,
}

/// What the caller may still use.
#[utoipa::path(get, path = "/v1/users/quota", tag = "usage", security(("session" = [])),
    responses((status = 200, body = OwnQuota)))]
async fn quota(State(accounts): Api, call: Call) -> Answer {
    let user = accounts.user_of_session(call.token()?)?;
    let quota = shapes::quotas(&accounts.meters(user.id)?);
    render::ok(OwnQuota { success: true, subscription_plan: user.plan.to_string(), quota })
}
