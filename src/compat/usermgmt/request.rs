//! What the user management backend's clients send.

use serde_json::Value;
use utoipa::ToSchema;

use crate::accounts::checks::Conversation;
use crate::accounts::passwords::{Password, Rule};
use crate::accounts::registration::Registration;
use crate::accounts::sessions;
use crate::accounts::users::{MeterUpdate, ProfileUpdate};
use crate::domain::key::KeyLook;
use crate::domain::session::SessionStyle;
use crate::domain::user::{Profile, UserType};
use crate::error::Reject;
use crate::handler::entry;
use crate::handler::extract::{Call, Fields};

const USER_TYPES: &str = "must be \"Personal\" or \"Business\"";

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
#[schema(as = usermgmt::RegisterRequest)]
pub(super) struct RegisterRequest {
    #[schema(example = "testuser")]
    username: String,
    #[schema(example = "Test User")]
    name: String,
    #[schema(example = "test@example.com")]
    email: String,
    /// At least 8 characters.
    #[schema(value_type = String, format = Password, example = "password123")]
    password: Password,
    /// The same once more.
    #[schema(value_type = Option<String>, format = Password, example = "password123")]
    confirm_password: Option<Password>,
    /// `Personal` or `Business`.
    #[schema(value_type = Option<String>, example = "Personal")]
    r#type: Option<UserType>,
    about_me: Option<String>,
    hobbies: Option<String>,
}

impl RegisterRequest {
    pub(super) fn read(call: &Call) -> Result<Registration, Reject> {
        let mut fields = call.fields()?;
        let (username, name, email) = (fields.text("username"), fields.text("name"), fields.text("email"));
        let password = fields.password("password")?;
        if fields.has("confirm_password") && !fields.password("confirm_password")?.is_same(&password) {
            fields.fault("confirm_password", "is not the same as password");
        }
        let new = Registration {
            username,
            name,
            email,
            password,
            user_type: fields.optional_parsed("type", USER_TYPES, UserType::parse).unwrap_or_default(),
            about_me: fields.optional_text("about_me").unwrap_or_default(),
            hobbies: fields.optional_text("hobbies").unwrap_or_default(),
            profile: Profile::default(),
            rule: Rule::Length,
            key_look: KeyLook::Canonical,
        };
        fields.done()?;
        Ok(new)
    }
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
#[schema(as = usermgmt::LoginRequest)]
pub(super) struct LoginRequest {
    #[schema(example = "test@example.com")]
    email: Option<String>,
    /// Instead of `email`.
    username: Option<String>,
    #[schema(value_type = String, format = Password, example = "password123")]
    password: Password,
    /// Of the second factor, for those who have one.
    code: Option<String>,
}

impl LoginRequest {
    pub(super) fn read(call: &Call, style: SessionStyle) -> Result<sessions::LoginRequest, Reject> {
        let mut fields = call.fields()?;
        let username = fields.optional_text("username");
        let identifier = if let Some(username) = username { username } else { fields.text("email") };
        let (password, code) = (fields.password("password")?, fields.optional_text("code"));
        fields.done()?;
        Ok(sessions::LoginRequest { code, ..entry::login_request(call, identifier, password, style) })
    }
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
#[schema(as = usermgmt::ProfileRequest)]
pub(super) struct ProfileRequest {
    name: Option<String>,
    /// At most 1000 characters, as `hobbies`.
    about_me: Option<String>,
    hobbies: Option<String>,
    /// `Personal` or `Business`.
    r#type: Option<String>,
}

impl ProfileRequest {
    pub(super) fn read(call: &Call) -> Result<ProfileUpdate, Reject> {
        let mut fields = call.fields()?;
        let update = profile_update(&mut fields);
        fields.done()?;
        Ok(update)
    }
}

pub(super) fn profile_update(fields: &mut Fields) -> ProfileUpdate {
    ProfileUpdate {
        name: fields.optional_text("name"),
        about_me: fields.optional_text("about_me"),
        hobbies: fields.optional_text("hobbies"),
        user_type: fields.optional_parsed("type", USER_TYPES, UserType::parse),
        fields: Vec::new(),
    }
}

/// `{main, reset}` or `{conversation_limit, reset}`.
pub(super) fn meter_update(fields: &mut Fields, name: &str, balance: &str) -> Option<MeterUpdate> {
    fields.optional_object(name, |inner| MeterUpdate {
        balance: inner.optional_amount(balance),
        reset: inner.optional_amount("reset"),
    })
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
#[schema(as = usermgmt::LogRequest)]
pub(super) struct LogRequest {
    #[schema(example = "gpt-3.5-turbo")]
    model: String,
    /// As the AI service had them: a list of `{role, content}`.
    messages: Vec<Value>,
    research_model: Option<bool>,
}

impl LogRequest {
    pub(super) fn read(call: &Call) -> Result<Conversation, Reject> {
        let mut fields = call.fields()?;
        let conversation = Conversation {
            model: fields.text("model"),
            messages: fields.json_list("messages"),
            response: fields.optional_text("response").unwrap_or_default(),
            research: fields.optional_flag("research_model").unwrap_or(false),
            r_type: fields.optional_text("r_type"),
            input_tokens: 0,
            output_tokens: 0,
            processing_time_ms: 0,
        };
        fields.done()?;
        Ok(conversation)
    }
}
