//! What a user does with his own account: password, email, sessions, deletion.
//!
//! Owns the rule that each of these asks for the password again, counted like a login's, and what each of them ends. Never
//! believes a token alone where somebody could lose his account by it.

use std::net::IpAddr;

use super::mail::{Letter, LetterKind};
use super::passwords::{Password, Rule};
use super::sessions::close_session;
use super::{Accounts, Forget, MAX_TRIES, too_busy};
use crate::clock::UnixMillis;
use crate::domain::ids::{CredentialId, UserId};
use crate::domain::session::{Principal, Session};
use crate::domain::user::User;
use crate::error::Reject;
use crate::store::Batch;

/// A session as its owner sees it.
#[derive(Clone, Debug)]
pub struct SessionListed {
    pub id: CredentialId,
    pub created_at: UnixMillis,
    pub refreshed_at: UnixMillis,
    pub expires_at: UnixMillis,
    pub refresh_expires_at: Option<UnixMillis>,
    pub address: Option<IpAddr>,
    pub user_agent: Option<String>,
    pub device: Device,
    /// It is the one that asks.
    pub current: bool,
}

/// How long after its login a session counts as its owner himself, where there is no password to ask for.
const FRESH: std::time::Duration = std::time::Duration::from_secs(600);

/// What somebody who is logged in shows for being the owner.
pub struct Proof {
    pub password: Option<Password>,
    /// The request's field that had it.
    pub field: String,
    /// Of the second factor, or a recovery code; for those who have one.
    pub code: Option<String>,
    /// Of his session.
    pub token: String,
}

impl Proof {
    pub fn with_code(self, code: Option<String>) -> Self {
        Self { code, ..self }
    }
}

/// What kind of thing a session was opened from, as far as its `User-Agent` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    Mobile,
    Tablet,
    Desktop,
    /// A program, not a browser.
    Program,
    Unknown,
}

impl Device {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mobile => "mobile",
            Self::Tablet => "tablet",
            Self::Desktop => "desktop",
            Self::Program => "program",
            Self::Unknown => "unknown",
        }
    }

    pub fn of_agent(agent: Option<&str>) -> Self {
        let Some(agent) = agent else { return Self::Unknown };
        let has = |word: &str| agent.contains(word);
        if has("iPad") || has("Tablet") || (has("Android") && !has("Mobile")) {
            Self::Tablet
        } else if has("Mobi") || has("iPhone") {
            Self::Mobile
        } else if agent.starts_with("Mozilla/") || agent.starts_with("Opera/") {
            Self::Desktop
        } else {
            Self::Program
        }
    }
}

impl Accounts {
    /// A user's open sessions, newest first. `token` is the one that asks.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`].
    pub fn sessions(&self, user: UserId, token: Option<&str>) -> Result<Vec<SessionListed>, Reject> {
        let own = token.map(|token| self.credential_mac(token)).transpose()?;
        let now = self.clock.now();
        let open = |s: &Session| s.expires_at > now || s.refresh_expires_at.is_some_and(|at| at > now);
        let listed = |s: Session, current| SessionListed {
            id: s.id,
            created_at: s.created_at,
            refreshed_at: s.refreshed_at.unwrap_or(s.created_at),
            expires_at: s.expires_at,
            refresh_expires_at: s.refresh_expires_at,
            address: s.address,
            device: Device::of_agent(s.user_agent.as_deref()),
            user_agent: s.user_agent,
            current,
        };
        let rows = self.load_sessions(user)?.into_iter().filter(|(_, row)| open(&row.value));
        let mut sessions: Vec<_> = rows.map(|(mac, row)| listed(row.value, own == Some(mac))).collect();
        sessions.sort_by_key(|session| std::cmp::Reverse(session.created_at));
        Ok(sessions)
    }

    /// Ends one of a user's sessions.
    ///
    /// # Errors
    /// [`Reject::NotFound`], also for another user's.
    pub async fn revoke_session(&self, user: UserId, id: CredentialId) -> Result<(), Reject> {
        match self.end_sessions(user, |session, _| session.id == id).await? {
            0 => Err(Reject::NotFound),
            _ => Ok(()),
        }
    }

    /// Ends all of a user's sessions but the one of `keep`; says how many.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`].
    pub async fn revoke_sessions(&self, user: UserId, keep: Option<&str>) -> Result<usize, Reject> {
        let keep = keep.map(|token| self.credential_mac(token)).transpose()?;
        self.end_sessions(user, |_, mac| Some(*mac) != keep).await
    }

    async fn end_sessions(
        &self,
        user: UserId,
        which: impl Fn(&Session, &crate::domain::ids::SecretMac) -> bool,
    ) -> Result<usize, Reject> {
        let mut ended = 0;
        // A refresh in between gives a session another row, and a login adds one: both are ended in the next round.
        for _ in 0..MAX_TRIES {
            let mut batch = Batch::default();
            let mut found = 0;
            for (mac, row) in self.load_sessions(user)?.iter().filter(|(mac, row)| which(&row.value, mac)) {
                close_session(mac, row, &mut batch);
                found += 1;
            }
            if found == 0 {
                return Ok(ended);
            }
            match self.commit_for_user(user, batch, Forget::Credentials).await {
                Ok(()) => ended += found,
                Err(error) => self.judge_conflict(&error)?,
            }
        }
        Err(too_busy())
    }

    /// The owner of an account who is logged in, once more: by his password, of which wrong ones count as at a login, or,
    /// where there is none, by having come in moments ago. Answers the hash that the password matched.
    ///
    /// # Errors
    /// [`Reject::WrongPassword`], [`Reject::Locked`], [`Reject::Overloaded`]; [`Reject::Invalid`] without a password;
    /// [`Reject::Forbidden`] for an account that has none and a session that is not fresh.
    pub async fn prove_password(&self, user: UserId, proof: Proof, address: IpAddr) -> Result<Option<String>, Reject> {
        let row = self.live_user(Some(user))?.ok_or(Reject::Unauthenticated)?;
        if row.value.password_hash.is_none() {
            let (session, _) = self.session_of_token(&proof.token)?;
            let is_fresh = self.clock.now() < session.value.created_at.plus(FRESH);
            let why = "This account has no password to ask for: sign in again, and come within ten minutes";
            return if is_fresh { Ok(None) } else { Err(Reject::Forbidden(why)) };
        }
        let Proof { password, field, .. } = proof;
        let password = password.ok_or_else(|| Reject::Invalid(vec![format!("{field}: is required")]))?;
        let hash = || Ok(self.live_user(Some(user))?.and_then(|row| row.value.password_hash));
        let verified = self.check_password("user", &row.value.username, Some(user.0), address, password, hash).await;
        verified.map(|proven| proven.hash).map_err(|reject| match reject {
            Reject::Unauthenticated => Reject::WrongPassword,
            other => other,
        })
    }

    /// The owner of an account who is about to do what only he may, once more: by his password and, where one is on, by his
    /// second factor. Answers the hash that the password matched.
    ///
    /// # Errors
    /// Those of [`Accounts::prove_password`], then [`Reject::CodeRequired`] and [`Reject::WrongCode`].
    pub async fn step_up(&self, user: UserId, proof: Proof, address: IpAddr) -> Result<Option<String>, Reject> {
        let code = proof.code.clone();
        let hash = self.prove_password(user, proof, address).await?;
        self.second_factor(Principal::User(user), code.as_deref(), address).await?;
        Ok(hash)
    }

    /// Gives a user a new password. All his sessions but the one of the proof end; his API keys go on.
    ///
    /// # Errors
    /// [`Reject::Invalid`] for a password that does not meet the rule, and those of [`Accounts::step_up`].
    pub async fn change_password(
        &self,
        user: UserId,
        current: Proof,
        new: Password,
        address: IpAddr,
    ) -> Result<User, Reject> {
        let row = self.user(user)?;
        let faults = self.password_faults(&new, Rule::Composition, "new_password", &[&row.username, &row.email]);
        if !faults.is_empty() {
            return Err(Reject::Invalid(faults));
        }
        if current.password.as_ref().is_some_and(|old| new.is_same(old)) {
            return Err(Reject::Invalid(vec!["new_password: is the old one".into()]));
        }
        let keep = self.credential_mac(&current.token)?;
        let verified = self.step_up(user, current, address).await?;
        let hash = self.passwords.enter()?.hash(new).await?;
        let edit = |row: &mut User, batch: &mut Batch| {
            super::users::refuse_deleted(row)?;
            // Changed by somebody else since: the password that was proven is not this account's any more.
            if row.password_hash != verified {
                return Err(Reject::WrongPassword);
            }
            row.password_hash = Some(hash.clone());
            row.must_change_password = false;
            self.forget_links(user, batch)?;
            self.post(row, Letter::new(LetterKind::PasswordChanged).with("address", address), batch)?;
            for (mac, session) in self.load_sessions(user)?.iter().filter(|(mac, _)| *mac != keep) {
                close_session(mac, session, batch);
            }
            Ok(())
        };
        let changed = self.change_user(user, Forget::Credentials, edit).await?;
        // Opened by the old password between the reading above and the commit.
        self.end_sessions(user, |_, mac| *mac != keep).await?;
        Ok(changed)
    }

    /// Gives a user another email. Where mail is sent, the new address is asked first and nothing changes until it answers;
    /// else the address is not verified then. Answers the user as he is now, and the old address.
    ///
    /// # Errors
    /// [`Reject::Invalid`], [`Reject::Conflict`] for an address that is taken, and those of [`Accounts::step_up`].
    pub async fn change_email(
        &self,
        user: UserId,
        new_email: &str,
        proof: Proof,
        address: IpAddr,
    ) -> Result<(User, String), Reject> {
        let new_email = &*super::fields::normalized(new_email);
        if let Some(fault) = super::fields::email_fault("new_email", new_email) {
            return Err(Reject::Invalid(vec![fault]));
        }
        self.step_up(user, proof, address).await?;
        if self.sends_mail() {
            let row = self.ask_to_confirm(user, new_email).await?;
            let email = row.email.to_string();
            return Ok((row, email));
        }
        let mut old = String::new();
        let edit = |row: &mut User, batch: &mut Batch| {
            super::users::refuse_deleted(row)?;
            row.email.as_ref().clone_into(&mut old);
            let same = super::users::set_email(row, new_email, batch)?;
            if !same {
                self.remember_quota(user, &old, batch)?;
            }
            // Another spelling of the address is the same address.
            row.email_verified &= same;
            Ok(())
        };
        let user = self.change_user(user, Forget::Nothing, edit).await?;
        Ok((user, old))
    }

    /// Deletes a user's own account.
    ///
    /// # Errors
    /// Those of [`Accounts::step_up`].
    pub async fn delete_own(&self, user: UserId, proof: Proof, address: IpAddr) -> Result<User, Reject> {
        self.step_up(user, proof, address).await?;
        self.delete_user(user, Some("deleted by its owner".into())).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_tell_devices() {
        let of = |agent| Device::of_agent(Some(agent));
        assert_eq!(of("Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) Mobile/15E148"), Device::Mobile);
        assert_eq!(of("Mozilla/5.0 (iPad; CPU OS 17_0 like Mac OS X)"), Device::Tablet);
        assert_eq!(of("Mozilla/5.0 (Linux; Android 14; SM-X710)"), Device::Tablet);
        assert_eq!(of("Mozilla/5.0 (Linux; Android 14; Pixel 8) Mobile Safari"), Device::Mobile);
        assert_eq!(of("Mozilla/5.0 (X11; Linux x86_64; rv:130.0)"), Device::Desktop);
        assert_eq!((of("curl/8.5.0"), Device::of_agent(None)), (Device::Program, Device::Unknown));
    }
}
