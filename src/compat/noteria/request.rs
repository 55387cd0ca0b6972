//! What Noteria's pages send.

use utoipa::ToSchema;

use crate::accounts::passwords::Password;
use crate::accounts::sessions;
use crate::domain::session::SessionStyle;
use crate::error::Reject;
use crate::handler::entry;
use crate::handler::extract::{Call, Fields};

#[derive(ToSchema)]
#[expect(dead_code, reason = "the document's view of the request")]
#[schema(as = noteria::LoginRequest)]
pub(super) struct LoginRequest {
    #[schema(example = "user@example.com")]
    email: String,
    #[schema(value_type = String, format = Password)]
    password: Password,
    /// Or `kodi_unik`.
    #[schema(example = "A7F3B2E9D4C1F6A8")]
    unique_code: String,
    /// Of the second factor, for those who have one.
    code: Option<String>,
}

/// A field under its name, or under the one that the pages have for it.
pub(super) fn either(fields: &mut Fields, name: &str, theirs: &str) -> Option<String> {
    let own = fields.optional_text(name);
    let other = fields.optional_text(theirs);
    own.or(other).filter(|text| !text.is_empty())
}

impl LoginRequest {
    pub(super) async fn read(call: &Call) -> Result<sessions::LoginRequest, Reject> {
        let mut fields = call.form().await?;
        let (email, password) = (fields.text("email"), fields.password("password")?);
        let unique_code = either(&mut fields, "unique_code", "kodi_unik");
        let code = fields.optional_text("code").filter(|text| !text.is_empty());
        fields.done()?;
        if unique_code.is_none() {
            return Err(Reject::UniqueCodeRequired);
        }
        let usual = entry::login_request(call, email, password, SessionStyle::default());
        Ok(sessions::LoginRequest { code, unique_code, ..usual })
    }
}
