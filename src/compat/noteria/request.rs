//! What Noteria's pages send.

use std::collections::BTreeMap;

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
    /// Or `foto`: of an ID or passport, a file or base64. It and the next two go to the operator's verifier, where there is one.
    photo: Option<String>,
    /// Or `numri_personal`: ten digits.
    personal_number: Option<String>,
    /// Or `roli`.
    role: Option<String>,
}

/// What a verifier of logins may want, under our names and the pages'.
const FACTORS: [(&str, &str); 3] = [("photo", "foto"), ("personal_number", "numri_personal"), ("role", "roli")];

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
        let factor = |(name, theirs): (&str, &str)| Some((name.to_owned(), either(&mut fields, name, theirs)?));
        let factors: BTreeMap<String, String> = FACTORS.into_iter().filter_map(factor).collect();
        fields.done()?;
        if unique_code.is_none() {
            return Err(Reject::UniqueCodeRequired);
        }
        let usual = entry::login_request(call, email, password, SessionStyle::default());
        Ok(sessions::LoginRequest { code, unique_code, factors: factors.into(), ..usual })
    }
}
