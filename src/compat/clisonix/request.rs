//! What Clisonix's clients send.

use utoipa::ToSchema;

use super::STYLE;
use crate::accounts::passwords::{Password, Rule};
use crate::accounts::registration::Registration;
use crate::accounts::sessions;
use crate::accounts::users::ProfileUpdate;
use crate::domain::key::KeyLook;
use crate::domain::user::{self, UserType};
use crate::error::Reject;
use crate::handler::entry;
use crate::handler::extract::{Call, Fields};

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
#[schema(as = clisonix::RegisterRequest)]
pub(super) struct RegisterRequest {
    #[schema(example = "user@example.com")]
    email: String,
    /// 3 to 50 letters, digits, hyphens or underscores.
    #[schema(example = "myuser")]
    username: String,
    /// At least 8 characters.
    #[schema(value_type = String, format = Password, example = "SecurePass123!")]
    password: Password,
    #[schema(example = "John")]
    first_name: Option<String>,
    #[schema(example = "Doe")]
    last_name: Option<String>,
}

impl RegisterRequest {
    pub(super) fn read(call: &Call) -> Result<Registration, Reject> {
        let mut fields = call.fields()?;
        let (email, username) = (fields.text("email"), fields.text("username"));
        let password = fields.password("password")?;
        let mut profile = user::Profile::default();
        for name in user::Profile::FIELDS {
            if let (Some(field), Some(text)) = (profile.field_mut(name), fields.optional_text(name)) {
                *field = Some(text).filter(|text| !text.is_empty());
            }
        }
        fields.done()?;
        let whole: Vec<&str> =
            [&profile.first_name, &profile.last_name].into_iter().flatten().map(|name| name.trim()).collect();
        // Names of a single letter are names; the canonical one has two.
        let name = Some(whole.join(" ")).filter(|name| name.chars().count() >= 2).unwrap_or_else(|| username.clone());
        Ok(Registration {
            username,
            name,
            email,
            password,
            user_type: UserType::default(),
            about_me: String::new(),
            hobbies: String::new(),
            profile,
            rule: Rule::Length,
            key_look: KeyLook::Clisonix,
        })
    }
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
#[schema(as = clisonix::LoginRequest)]
pub(super) struct LoginRequest {
    #[schema(example = "user@example.com")]
    email_or_username: String,
    #[schema(value_type = String, format = Password, example = "SecurePass123!")]
    password: Password,
    /// Of the second factor, for those who have one.
    code: Option<String>,
}

impl LoginRequest {
    pub(super) fn read(call: &Call) -> Result<sessions::LoginRequest, Reject> {
        let mut fields = call.fields()?;
        let identifier = fields.text("email_or_username");
        let (password, code) = (fields.password("password")?, fields.optional_text("code"));
        fields.done()?;
        Ok(sessions::LoginRequest { code, ..entry::login_request(call, identifier, password, STYLE) })
    }
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
#[schema(as = clisonix::KeyRequest)]
pub(super) struct KeyRequest {
    /// Unless it is in a header.
    #[schema(example = "clx_abc123…")]
    api_key: Option<String>,
}

impl KeyRequest {
    pub(super) fn read(call: &Call) -> Result<String, Reject> {
        let mut fields = call.optional_fields()?;
        let in_body = fields.optional_text("api_key");
        fields.done()?;
        match (call.token(), in_body) {
            (Ok(token), Some(key)) if token.text != key => {
                Err(Reject::BadRequest("Two different credentials in one request".into()))
            }
            (Ok(key), _) => Ok(key.text.to_owned()),
            (Err(Reject::Unauthenticated), Some(key)) => Ok(key),
            (Err(reject), _) => Err(reject),
        }
    }
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
#[schema(as = clisonix::ProfileRequest)]
pub(super) struct ProfileRequest {
    first_name: Option<String>,
    last_name: Option<String>,
    display_name: Option<String>,
    /// An address with `https://`.
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
}

impl ProfileRequest {
    pub(super) fn read(call: &Call) -> Result<ProfileUpdate, Reject> {
        let mut fields = call.fields()?;
        let update = ProfileUpdate { fields: profile_fields(&mut fields), ..ProfileUpdate::default() };
        fields.done()?;
        Ok(update)
    }
}

fn profile_fields(fields: &mut Fields) -> Vec<(&'static str, Option<String>)> {
    let read = |name: &'static str| {
        if fields.is_null(name) {
            return Some((name, None));
        }
        fields.optional_text(name).map(|text| (name, Some(text).filter(|text| !text.is_empty())))
    };
    user::Profile::FIELDS.into_iter().filter_map(read).collect()
}
