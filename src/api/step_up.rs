//! What the owner of an account sends along with what only he may do: his password, and a code of his second factor.

use utoipa::ToSchema;

use crate::accounts::own::Proof;
use crate::error::Reject;
use crate::handler::extract::Call;

#[derive(ToSchema)]
pub struct StepUp {
    /// Of accounts that have one.
    #[schema(value_type = Option<String>, format = Password)]
    password: Proof,
    /// Of the second factor, or a recovery code; where one is on.
    #[schema(example = "123456")]
    code: Option<String>,
}

impl StepUp {
    /// # Errors
    /// [`Reject::Unauthenticated`] without a session, and those of a body that cannot be read.
    pub fn read(call: &Call) -> Result<Proof, Reject> {
        let mut fields = call.optional_fields()?;
        let request = Self { password: fields.proof("password", call)?, code: fields.optional_text("code") };
        fields.done()?;
        Ok(request.password.with_code(request.code))
    }
}
