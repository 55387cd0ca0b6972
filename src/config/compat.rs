//! `[compat]`: which of the older systems' calls are answered, and what of their ways is kept.

use serde::{Deserialize, Serialize};

use crate::domain::dialect::{Dialect, Dialects};

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Compat {
    /// Its calls are the canonical API and always there; this is about what its requests say besides: `r_type` and
    /// `research_model` go into the conversation's record.
    pub promptenchanter: bool,
    /// `/api/users`; on the side port `/api/admin`.
    pub clisonix: bool,
    /// `/api/v2`, `/api/oauth`; on the side port `/api/admin`.
    pub aiezzy: bool,
    /// `/api/v1/auth` and, where no route takes it, `/health`; on the side port `/api/v1/admin`.
    pub usermgmt: bool,
    /// `/noteria/login.php`; on the side port `/noteria`.
    pub noteria: bool,
    /// How long a session lasts that was opened by aiezzy's login.
    pub aiezzy_session_days: u64,
    /// How long the token lasts that usermgmt's login answers.
    pub usermgmt_token_minutes: u64,
}

impl Default for Compat {
    fn default() -> Self {
        Self {
            promptenchanter: true,
            clisonix: true,
            aiezzy: true,
            usermgmt: true,
            noteria: true,
            aiezzy_session_days: 30,
            usermgmt_token_minutes: 30,
        }
    }
}

impl Compat {
    pub fn dialects(&self) -> Dialects {
        let on = |dialect: &Dialect| match dialect {
            Dialect::Clisonix => self.clisonix,
            Dialect::Aiezzy => self.aiezzy,
            Dialect::Usermgmt => self.usermgmt,
            Dialect::Noteria => self.noteria,
        };
        Dialects::of(Dialect::ALL.into_iter().filter(on))
    }

    /// # Errors
    /// A sentence that begins with the key it is about.
    pub(super) fn check(&self) -> Result<(), String> {
        if !(1..=366).contains(&self.aiezzy_session_days) {
            return Err(format!("compat.aiezzy_session_days: {} is not between 1 and 366", self.aiezzy_session_days));
        }
        if !(1..=60 * 24 * 30).contains(&self.usermgmt_token_minutes) {
            let minutes = self.usermgmt_token_minutes;
            return Err(format!("compat.usermgmt_token_minutes: {minutes} is not between 1 and 43200 (30 days)"));
        }
        Ok(())
    }
}
