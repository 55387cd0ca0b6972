//! What AIezzy's pages and programs send.

use utoipa::ToSchema;

use crate::accounts::passwords::{Password, Rule};
use crate::accounts::registration::Registration;
use crate::accounts::{Accounts, sessions};
use crate::domain::key::KeyLook;
use crate::domain::session::SessionStyle;
use crate::domain::user::{Profile, UserType};
use crate::error::Reject;
use crate::handler::entry;
use crate::handler::extract::Call;

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
#[schema(as = aiezzy::RegisterRequest)]
pub(super) struct RegisterRequest {
    #[schema(example = "user@example.com")]
    email: String,
    /// At least 8 characters.
    #[schema(value_type = String, format = Password, example = "secure_password")]
    password: Password,
    #[schema(example = "John Doe")]
    full_name: Option<String>,
    /// Made of the address if left out.
    username: Option<String>,
}

impl RegisterRequest {
    pub(super) fn read(call: &Call, accounts: &Accounts) -> Result<Registration, Reject> {
        let mut fields = call.fields()?;
        let (email, password) = (fields.text("email"), fields.password("password")?);
        let (full_name, username) = (fields.optional_text("full_name"), fields.optional_text("username"));
        fields.done()?;
        let username = match username.filter(|name| !name.trim().is_empty()) {
            Some(username) => username,
            None => accounts.username_like(&email)?,
        };
        let name = full_name.filter(|name| !name.trim().is_empty()).unwrap_or_else(|| username.clone());
        Ok(Registration {
            username,
            name,
            email,
            password,
            user_type: UserType::default(),
            about_me: String::new(),
            hobbies: String::new(),
            profile: Profile::default(),
            rule: Rule::Length,
            key_look: KeyLook::Canonical,
        })
    }
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
#[schema(as = aiezzy::LoginRequest)]
pub(super) struct LoginRequest {
    /// The email, or the username.
    #[schema(example = "user@example.com")]
    username: Option<String>,
    /// Instead of `username`.
    email: Option<String>,
    #[schema(value_type = String, format = Password, example = "secure_password")]
    password: Password,
    /// Of the second factor, for those who have one.
    code: Option<String>,
}

impl LoginRequest {
    pub(super) fn read(call: &Call, style: SessionStyle) -> Result<sessions::LoginRequest, Reject> {
        let mut fields = call.fields()?;
        let email = fields.optional_text("email");
        let identifier = if let Some(email) = email { email } else { fields.text("username") };
        let (password, code) = (fields.password("password")?, fields.optional_text("code"));
        fields.done()?;
        Ok(sessions::LoginRequest { code, ..entry::login_request(call, identifier, password, style) })
    }
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
#[schema(as = aiezzy::ForgotRequest)]
pub(super) struct ForgotRequest {
    #[schema(example = "user@example.com")]
    email: String,
}

impl ForgotRequest {
    pub(super) fn read(call: &Call) -> Result<String, Reject> {
        let mut fields = call.fields()?;
        let email = fields.text("email");
        fields.done()?;
        Ok(email)
    }
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
#[schema(as = aiezzy::ResetRequest)]
pub(super) struct ResetRequest {
    /// From the mailed link.
    token: String,
    /// At least 8 characters.
    #[schema(value_type = String, format = Password)]
    password: Password,
}

impl ResetRequest {
    pub(super) fn read(call: &Call) -> Result<(String, Password), Reject> {
        let mut fields = call.fields()?;
        let (token, password) = (fields.text("token"), fields.password("password")?);
        fields.done()?;
        Ok((token, password))
    }
}
