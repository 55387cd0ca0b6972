//! How the file says what sessions' tokens look like, and which passwords are taken.
//!
//! Owns these sections' keys and defaults; they are checked with the rest in [`super::Config::from_raw`].

use serde::{Deserialize, Serialize};

use super::raw::SecretSource;

/// What the tokens of sessions look like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenForm {
    /// Signed (RFC 7519), so that others can read them too.
    #[default]
    Jwt,
    /// Random texts.
    Opaque,
}

/// How JWTs are signed; no other way is accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum TokenAlgorithm {
    /// With a key of our own, whose public half is at `/.well-known/jwks.json`.
    #[default]
    EdDSA,
    /// With `hs256_key`.
    HS256,
}

/// Tokens of sessions. What changes here holds from the next start on.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tokens {
    pub session: TokenForm,
    pub algorithm: TokenAlgorithm,
    /// For HS256: at least 32 bytes.
    pub hs256_key: Option<SecretSource>,
    /// The claim `iss`, at most 64 characters.
    pub issuer: String,
    /// The claim `aud` of users' tokens, at most 32 characters; the staff's have `-staff` behind it.
    pub audience: String,
}

impl Default for Tokens {
    fn default() -> Self {
        Self {
            session: TokenForm::default(),
            algorithm: TokenAlgorithm::default(),
            hs256_key: None,
            issuer: "tollgate".to_owned(),
            audience: "tollgate".to_owned(),
        }
    }
}

/// What becomes of a new password that many people use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CommonPasswords {
    Off,
    /// It is taken, and the answer has `warnings`.
    #[default]
    Warn,
    /// It is refused.
    Enforce,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Passwords {
    /// Also concerns passwords that contain the account's own name or email.
    pub common: CommonPasswords,
}
