//! What a mailed link is for: proving an address, setting a password that was forgotten, moving to another address.
//!
//! Owns the rules of each: what a link proves, how long it lasts, what ends when it is used. Never tells a stranger whether
//! an address has an account.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use moka::sync::Cache;
use tokio::sync::Semaphore;

use super::fields::{email_fault, normalized, username_fault};
use super::guesses::Door;
use super::mail::{Letter, LetterKind};
use super::passwords::{Password, Rule};
use super::proof::answered_from;
use super::registration::EMAIL_TAKEN;
use super::sessions::close_session;
use super::tokens::{TokenKind, use_up};
use super::users::{refuse_deleted, set_email};
use super::{Accounts, Forget};
use crate::actors::audit::Record;
use crate::domain::ids::UserId;
use crate::domain::user::{Status, User};
use crate::error::{RateScope, Reject};
use crate::store::{Batch, tables};

/// Forgotten passwords looked after at once; more get 503.
const MAX_RESETS_AT_ONCE: usize = 64;
const MINUTE: Duration = Duration::from_secs(60);
const MAX_ASKERS: u64 = 100_000;

/// What is kept of those who ask without being known.
pub(super) struct Strangers {
    resets: Arc<Semaphore>,
    /// Questions about names in the last minute, by address.
    questions: Cache<IpAddr, Arc<AtomicU32>>,
}

impl Strangers {
    pub(super) fn new() -> Self {
        Self {
            resets: Arc::new(Semaphore::new(MAX_RESETS_AT_ONCE)),
            questions: Cache::builder().max_capacity(MAX_ASKERS).time_to_live(MINUTE).build(),
        }
    }
}

impl Accounts {
    fn verification_lasts(&self) -> (u64, Duration) {
        let hours = self.settings().accounts.verification_hours;
        (hours, Duration::from_secs(hours * 3600))
    }

    /// Puts the letter with which a user proves his address into a batch. Without the letter there is no new link either: the
    /// last one that was sent stays good.
    pub(super) fn ask_to_verify(&self, user: &User, batch: &mut Batch) -> Result<(), Reject> {
        if !self.sends_mail() {
            return Ok(());
        }
        let (hours, lasts) = self.verification_lasts();
        let mut asking = Batch::default();
        let token = self.mint_one_time(user.id, TokenKind::VerifyEmail, lasts, &user.email, &mut asking)?;
        let link = self.link("/v1/users/verify-email", token.expose());
        let letter = Letter::new(LetterKind::VerifyEmail).with("link", link).with("hours", hours);
        if self.try_post(&user.email, user, letter, &mut asking)? {
            batch.ops.append(&mut asking.ops);
        }
        Ok(())
    }

    /// Sends the letter again; the link in the one before is dead then. For an account that waits for its owner's proof, it
    /// goes to the address that was verified before.
    ///
    /// # Errors
    /// [`Reject::Conflict`] for an address that is verified, or when no mail is sent here.
    pub async fn resend_verification(&self, user: UserId) -> Result<(), Reject> {
        if !self.sends_mail() {
            return Err(Reject::Conflict("This service sends no mail; ask its staff".into()));
        }
        let edit = |row: &mut User, batch: &mut Batch| {
            refuse_deleted(row)?;
            if self.ask_for_proof(row, self.verification_lasts(), batch)? {
                return Ok(());
            }
            if row.proved_address().is_some() {
                return Err(Reject::Conflict("This email is verified already".into()));
            }
            self.ask_to_verify(row, batch)
        };
        self.change_user(user, Forget::Nothing, edit).await.map(|_| ())
    }

    /// Takes the proof that an address is the user's. A pending account becomes active by it, and one that waited for an
    /// answer from there waits no longer.
    ///
    /// # Errors
    /// [`Reject::BadRequest`] for a token that is wrong, used or expired, or was sent to another address than the present one.
    pub async fn verify_email(&self, token: &str, from: IpAddr) -> Result<User, Reject> {
        let (user, row) = self.find_one_time(TokenKind::VerifyEmail, token, from)?;
        let edit = |user: &mut User, batch: &mut Batch| {
            refuse_deleted(user)?;
            let ended_wait = answered_from(&row.value.email, user);
            if *user.email == *row.value.email {
                user.prove_email();
                if user.status == Status::Pending {
                    user.status = Status::Active;
                }
            } else if !ended_wait {
                return Err(Reject::BadRequest("This link was sent to another address".into()));
            }
            use_up(&row, batch);
            Ok(())
        };
        self.change_user(user, Forget::Nothing, edit).await
    }

    /// Sends a link for a new password, if the address has an account. The caller learns nothing of it, not even by the time
    /// it takes: the looking is done after the answer. `record` is written when a link is sent.
    ///
    /// # Errors
    /// [`Reject::Invalid`] for what is no address, [`Reject::Overloaded`] in a flood.
    pub fn forgot_password(self: &Arc<Self>, email: &str, record: Record) -> Result<(), Reject> {
        let email = normalized(email);
        if let Some(fault) = email_fault("email", &email) {
            return Err(Reject::Invalid(vec![fault]));
        }
        let place = Arc::clone(&self.strangers.resets).try_acquire_owned();
        let place = place.map_err(|_| Reject::Overloaded("Too many passwords are being reset"))?;
        if !self.sends_mail() {
            tracing::warn!("a password was forgotten, but mail.transport is \"none\": nothing is sent");
            return Ok(());
        }
        let accounts = Arc::clone(self);
        tokio::spawn(async move {
            let _place = place;
            if let Err(reject) = accounts.send_reset(&email, record).await {
                tracing::warn!(?reject, "a link for a new password could not be sent");
            }
        });
        Ok(())
    }

    async fn send_reset(&self, email: &str, record: Record) -> Result<(), Reject> {
        let Some(row) = self.live_user(self.find_user(email)?)? else { return Ok(()) };
        let user = &row.value;
        let minutes = self.settings().accounts.reset_minutes;
        let mut batch = Batch::default();
        let lasts = Duration::from_secs(minutes * 60);
        let token = self.mint_one_time(user.id, TokenKind::ResetPassword, lasts, &user.email, &mut batch)?;
        let link = self.link("/v1/users/reset-password", token.expose());
        let letter = Letter::new(LetterKind::ResetPassword).with("link", link).with("minutes", minutes);
        // One too many: the last link that was sent stays good.
        if !self.try_post(&user.email, user, letter, &mut batch)? {
            return Ok(());
        }
        self.committer.commit(batch).await.map_err(|error| self.failed(&error))?;
        self.mail_posted();
        self.audit.note(record.on(user));
        Ok(())
    }

    /// Sets a password with a mailed token: all sessions end, API keys go on, a second factor is still asked for at the next
    /// login. Who reads the user's mail has proved the address with it; if nobody had before, keys and logins at providers may
    /// be a stranger's, and end too.
    ///
    /// # Errors
    /// [`Reject::BadRequest`] for a token that is wrong, used or expired, [`Reject::Invalid`] for a password that does not
    /// meet the rule; the token stays good then.
    pub async fn reset_password(
        &self,
        token: &str,
        password: Password,
        rule: Rule,
        from: IpAddr,
    ) -> Result<User, Reject> {
        self.refuse_blocked(Door::public(from))?;
        let faults = password.faults_in(rule, "password");
        if !faults.is_empty() {
            return Err(Reject::Invalid(faults));
        }
        // Before the hash: a wrong token must not cost one.
        let (id, row) = self.find_one_time(TokenKind::ResetPassword, token, from)?;
        let owner = self.user(id)?;
        let faults = self.password_faults(&password, rule, "password", &[&owner.username, &owner.email]);
        if !faults.is_empty() {
            return Err(Reject::Invalid(faults));
        }
        let hash = self.passwords.enter()?.hash(password).await?;
        let edit = |user: &mut User, batch: &mut Batch| {
            refuse_deleted(user)?;
            if *user.email != *row.value.email {
                return Err(Reject::BadRequest("This link was sent to another address".into()));
            }
            answered_from(&row.value.email, user);
            // Whoever made this account has never shown that the address is his; its owner, who now has, must not share it.
            // A second factor stays even so: mail alone is no way around one. An address that staff wrote says nothing of
            // who made the account.
            if user.email_verified || user.proof_wait.is_some() {
                for (mac, session) in self.load_sessions(id)? {
                    close_session(&mac, &session, batch);
                }
            } else {
                self.close_ways_in(id, batch)?;
                self.make_his_own(user, batch)?;
            }
            user.password_hash = Some(hash.clone());
            user.must_change_password = false;
            user.prove_email();
            if user.status == Status::Pending {
                user.status = Status::Active;
            }
            use_up(&row, batch);
            self.forget_links(id, batch)?;
            self.post(user, Letter::new(LetterKind::PasswordChanged), batch)
        };
        let user = self.change_user(id, Forget::Credentials, edit).await?;
        // Opened by the old password between the reading and the commit.
        self.revoke_sessions(id, None).await?;
        // Whoever locked it, its owner has come by his mail.
        self.lockouts.forgive(&self.pepper.mac_in("user", &id.0.to_be_bytes()));
        Ok(user)
    }

    /// Asks the new address whether it is the user's, and tells the old one. In strict mode the owner of an address that is
    /// taken is told, and nobody else.
    pub(super) async fn ask_to_confirm(&self, id: UserId, new_email: &str) -> Result<User, Reject> {
        // His own, in another spelling, is nobody else's.
        let owner = self.live_user(self.find_user(new_email)?)?.filter(|row| row.value.id != id);
        if owner.is_some() && !self.settings().accounts.strict {
            return Err(Reject::Conflict(EMAIL_TAKEN.into()));
        }
        let (hours, lasts) = self.verification_lasts();
        let edit = |user: &mut User, batch: &mut Batch| {
            refuse_deleted(user)?;
            if let Some(owner) = &owner {
                self.post(&owner.value, Letter::new(LetterKind::AlreadyRegistered), batch)?;
                return self.post(user, Letter::new(LetterKind::EmailChanging).with("new_email", new_email), batch);
            }
            let token = self.mint_one_time(id, TokenKind::ConfirmEmail, lasts, new_email, batch)?;
            let link = self.link("/v1/users/confirm-email", token.expose());
            let letter = Letter::new(LetterKind::ConfirmEmail).with("link", link).with("hours", hours);
            self.post_to(new_email, user, letter, batch)?;
            self.post(user, Letter::new(LetterKind::EmailChanging).with("new_email", new_email), batch)
        };
        self.change_user(id, Forget::Nothing, edit).await
    }

    /// Moves a user to the address that a token was sent to. Links sent to the old one are dead then.
    ///
    /// # Errors
    /// [`Reject::BadRequest`] for a token that is wrong, used or expired, [`Reject::Conflict`] for an address that somebody
    /// else has taken meanwhile.
    pub async fn confirm_email(&self, token: &str, from: IpAddr) -> Result<(User, String), Reject> {
        let (id, row) = self.find_one_time(TokenKind::ConfirmEmail, token, from)?;
        let mut old = String::new();
        let edit = |user: &mut User, batch: &mut Batch| {
            refuse_deleted(user)?;
            user.email.as_ref().clone_into(&mut old);
            if !set_email(user, &row.value.email, batch)? {
                self.remember_quota(id, &old, batch)?;
            }
            answered_from(&row.value.email, user);
            user.prove_email();
            if user.status == Status::Pending {
                user.status = Status::Active;
            }
            use_up(&row, batch);
            for kind in [TokenKind::VerifyEmail, TokenKind::ResetPassword] {
                self.drop_link(id, kind, batch)?;
            }
            let letter = Letter::new(LetterKind::EmailChanged).with("new_email", &row.value.email);
            self.post_to(&old, user, letter, batch)
        };
        let user = self.change_user(id, Forget::Nothing, edit).await?;
        Ok((user, old))
    }

    /// Whether a name is free, for whoever is about to register.
    ///
    /// # Errors
    /// [`Reject::RateLimited`] for who asks too often, [`Reject::Invalid`] for what no account could have.
    pub fn username_is_free(&self, username: &str, asks: IpAddr) -> Result<bool, Reject> {
        self.count_question(asks)?;
        let username = normalized(username);
        match username_fault(&username) {
            Some(fault) => Err(Reject::Invalid(vec![fault])),
            None => self.is_free(tables::user_by_name(&username)),
        }
    }

    /// As [`Accounts::username_is_free`], for an address.
    ///
    /// # Errors
    /// As [`Accounts::username_is_free`]; [`Reject::Forbidden`] where accounts are nobody's business (`accounts.strict`).
    pub fn email_is_free(&self, email: &str, asks: IpAddr) -> Result<bool, Reject> {
        if self.settings().accounts.strict {
            return Err(Reject::Forbidden("This service does not say which addresses have accounts"));
        }
        self.count_question(asks)?;
        let email = normalized(email);
        match email_fault("email", &email) {
            Some(fault) => Err(Reject::Invalid(vec![fault])),
            None => self.is_free(tables::user_by_email(&email)),
        }
    }

    fn is_free(&self, key: Vec<u8>) -> Result<bool, Reject> {
        Ok(self.store().get(&key).map_err(|error| self.failed(&error))?.is_none())
    }

    fn count_question(&self, asks: IpAddr) -> Result<(), Reject> {
        let limit = self.settings().accounts.availability_per_minute;
        let asked = self.strangers.questions.get_with(asks, Arc::default);
        if asked.fetch_add(1, Ordering::Relaxed) < limit {
            return Ok(());
        }
        Err(Reject::RateLimited { scope: RateScope::Address, retry_after: MINUTE, limit })
    }
}
