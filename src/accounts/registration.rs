//! Registration: how users come to be.
//!
//! Owns what a new user's first commit holds. Username and email are unique without case, by preconditions and not by looking
//! first.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use unicode_normalization::UnicodeNormalization;

use super::fields::{email_fault, name_fault, normalized, profile_fault, text_fault, username_fault};
use super::keys::NewKey;
use super::mail::{Letter, LetterKind};
use super::passwords::{Password, Rule};
use super::secrets::Minted;
use super::sessions::SessionView;
use super::{Accounts, Forget, MAX_TRIES, too_busy};
use crate::actors::user::ledger::{self, Account};
use crate::config::Plan;
use crate::domain::ids::UserId;
use crate::domain::key::KeyLook;
use crate::domain::meters::ResetHour;
use crate::domain::session::SessionStyle;
use crate::domain::user::{Profile, Status, User, UserType};
use crate::error::Reject;
use crate::store::{Batch, StoreError, tables};

/// What a client is told of an address that has an account.
pub const EMAIL_TAKEN: &str = "This email is already registered";

/// What a new user says of himself.
#[derive(Debug)]
pub struct Registration {
    pub username: String,
    pub name: String,
    pub email: String,
    pub password: Password,
    pub user_type: UserType,
    pub about_me: String,
    pub hobbies: String,
    pub profile: Profile,
    /// What the password must meet, as the surface documents it.
    pub rule: Rule,
    pub key_look: KeyLook,
}

/// A user who has just come to be.
#[derive(Debug)]
pub struct Registered {
    pub user: User,
    pub api_key: Minted,
    pub verification_required: bool,
    /// Where registering is also a login.
    pub session: Option<SessionView>,
}

/// From where, and how, a session is opened.
#[derive(Clone, Debug)]
pub struct Entrance {
    pub address: IpAddr,
    pub user_agent: Option<String>,
    pub style: SessionStyle,
}

impl Accounts {
    /// Makes a user with the default plan's meters and one API key, all in one commit. With `entrance`, in the same commit
    /// also a session, unless logins are judged by more than a password.
    ///
    /// # Errors
    /// [`Reject::Invalid`] with one line per field, [`Reject::Conflict`] for a name or email that is taken,
    /// [`Reject::Forbidden`] while registration is closed.
    pub async fn register(&self, mut new: Registration, entrance: Option<Entrance>) -> Result<Registered, Reject> {
        let settings = self.settings();
        if !settings.accounts.registration {
            return Err(Reject::Forbidden("Registration is closed"));
        }
        new.name = new.name.trim().nfc().collect();
        new.email = normalized(&new.email);
        new.username = normalized(&new.username);
        let faults = [
            username_fault(&new.username),
            name_fault(&new.name),
            email_fault("email", &new.email),
            text_fault("about_me", &new.about_me),
            text_fault("hobbies", &new.hobbies),
        ];
        let mut fields = new.profile.clone();
        let profile = Profile::FIELDS.iter().filter_map(|name| {
            let value = fields.field_mut(name)?.take()?;
            profile_fault(name, &value)
        });
        let faults: Vec<String> = faults
            .into_iter()
            .flatten()
            .chain(profile)
            .chain(self.password_faults(&new.password, new.rule, "password", &[&new.username, &new.email]))
            .collect();
        if !faults.is_empty() {
            return Err(Reject::Invalid(faults));
        }
        let plan = settings.plan(&settings.accounts.default_plan).ok_or(Reject::Internal)?;
        let verification_required = settings.accounts.email_verification;
        let mut user = User {
            user_type: new.user_type,
            about_me: new.about_me,
            hobbies: new.hobbies,
            profile: new.profile,
            status: if verification_required { Status::Pending } else { Status::Active },
            ..User::new(Arc::from(new.username), new.name, Arc::from(new.email), plan.name.clone(), self.clock.now())
        };
        // Both before the hash: what is refused anyway should not cost one.
        super::encode_bounded(&user)?;
        if let Err(taken) = self.refuse_taken(&user) {
            return Err(self.hide_taken(&user, new.password, taken).await?);
        }
        user.password_hash = Some(self.passwords.enter()?.hash(new.password).await?);
        let meters = self.fresh_account(plan);
        let entrance = entrance.filter(|_| self.opens_at_registration());
        let mut session = None;
        let more = |user: &User, batch: &mut Batch| {
            if let Some(Entrance { address, user_agent, style }) = &entrance {
                session = Some(self.open_session(user.id, *address, user_agent.as_deref(), *style, batch)?);
            }
            self.ask_to_verify(user, batch)
        };
        if entrance.is_some() {
            user.last_login = Some(user.created_at);
        }
        let (user, api_key) = self.insert_user(user, &meters, new.key_look, more).await?;
        Ok(Registered { user, api_key, verification_required, session })
    }

    /// In strict mode the owner of an address that is taken is told, and nobody else: the work is the same as for one that
    /// is free, and so is what the client is told of [`EMAIL_TAKEN`].
    async fn hide_taken(
        &self,
        user: &User,
        password: super::passwords::Password,
        taken: Reject,
    ) -> Result<Reject, Reject> {
        if self.settings().accounts.strict && taken == Reject::Conflict(EMAIL_TAKEN.into()) {
            self.passwords.enter()?.hash(password).await?;
            if let Some(owner) = self.live_user(self.find_user(&user.email)?)? {
                self.post_alone(&owner.value, Letter::new(LetterKind::AlreadyRegistered)).await;
            }
        }
        Ok(taken)
    }

    fn refuse_taken(&self, user: &User) -> Result<(), Reject> {
        for key in [tables::user_by_name(&user.username), tables::user_by_email(&user.email)] {
            if self.store().get(&key).map_err(|error| self.failed(&error))?.is_some() {
                self.judge_conflict(&StoreError::Conflict { key })?;
            }
        }
        Ok(())
    }

    /// `more` puts what belongs to the user into the same batch.
    pub(super) async fn insert_user(
        &self,
        mut user: User,
        meters: &Account,
        look: KeyLook,
        mut more: impl FnMut(&User, &mut Batch) -> Result<(), Reject> + Send,
    ) -> Result<(User, Minted), Reject> {
        for _ in 0..MAX_TRIES {
            let mut batch = Batch::default();
            let (by_name, by_email) = (tables::user_by_name(&user.username), tables::user_by_email(&user.email));
            // Names first, so that a name that is taken is not mistaken for a race for the number.
            batch.require_absent(by_name.clone()).require_absent(by_email.clone());
            user.id = UserId(self.next_number("user", &mut batch)?);
            let row = super::encode_bounded(&user)?;
            let meters = self.less_what_was_used(meters, &user.email, &mut batch)?;
            let encoded = (|| Ok((tables::encode(&user.id)?, tables::encode(&meters.to_row())?)))();
            let (id, account) = encoded.map_err(|error: StoreError| self.failed(&error))?;
            batch.put(tables::user(user.id), row).put(by_name, id.clone()).put(by_email, id);
            batch.put(tables::meters(user.id), account);
            let default = NewKey { name: super::keys::DEFAULT_KEY.into(), look, ..NewKey::default() };
            let (_, api_key) = self.add_key(user.id, &default, &mut batch)?;
            more(&user, &mut batch)?;
            match self.commit_for_user(user.id, batch, Forget::Nothing).await {
                Ok(()) => return Ok((user, api_key)),
                Err(error) => self.judge_conflict(&error)?,
            }
        }
        Err(too_busy())
    }

    pub(super) fn fresh_account(&self, plan: &Plan) -> Account {
        let mut account = Account::born_after(self.users.around().resets.load(Ordering::SeqCst));
        // Nobody has an actor yet, so the pure turn is run here.
        ledger::give_missing(&mut account, &plan.meters, self.clock.now(), self.reset_hour());
        account
    }

    pub(super) fn reset_hour(&self) -> ResetHour {
        self.users.around().reset_hour
    }
}
