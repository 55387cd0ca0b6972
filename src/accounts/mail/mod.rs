//! Mail to users: letters, the outbox, and its way out.
//!
//! Owns the outbox. A letter is a row in the same commit as the act it speaks of: if the act is on disk, so is the letter,
//! and it is sent however often the process is killed in between (those about locks and stolen tokens have commits of their own). Rows are sealed, because some letters carry tokens. Links
//! are made of `public_base_url` and of nothing a client sends. Trouble with mail never fails or slows a request.

pub mod outbox;
pub mod templates;
pub mod transport;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use moka::sync::Cache;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::Accounts;
use super::fields::same_address;
use crate::config::MailTransport;
use crate::domain::ids::SecretMac;
use crate::domain::user::User;
use crate::error::Reject;
use crate::store::{Batch, StoreError};

pub use outbox::Posted;

/// What a letter says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LetterKind {
    VerifyEmail,
    ProveOwner,
    ResetPassword,
    ConfirmEmail,
    EmailChanging,
    EmailChanged,
    PasswordChanged,
    PasswordSet,
    NewSignIn,
    AccountLocked,
    SessionReplayed,
    KeyCreated,
    KeyChanged,
    FactorEnabled,
    FactorDisabled,
    RecoveryCodeUsed,
    LoginLinked,
    LoginUnlinked,
    AccountDeleted,
    AlreadyRegistered,
}

impl LetterKind {
    pub const ALL: &[Self] = &[
        Self::VerifyEmail,
        Self::ProveOwner,
        Self::ResetPassword,
        Self::ConfirmEmail,
        Self::EmailChanging,
        Self::EmailChanged,
        Self::PasswordChanged,
        Self::PasswordSet,
        Self::NewSignIn,
        Self::AccountLocked,
        Self::SessionReplayed,
        Self::KeyCreated,
        Self::KeyChanged,
        Self::FactorEnabled,
        Self::FactorDisabled,
        Self::RecoveryCodeUsed,
        Self::LoginLinked,
        Self::LoginUnlinked,
        Self::AccountDeleted,
        Self::AlreadyRegistered,
    ];

    /// Whether somebody who is not the user can have it sent, as often as he likes: such letters are counted apart, so that
    /// they cannot crowd out those that warn him.
    fn is_for_the_asking(self) -> bool {
        matches!(
            self,
            Self::VerifyEmail
                | Self::ProveOwner
                | Self::ResetPassword
                | Self::ConfirmEmail
                | Self::AccountLocked
                | Self::AlreadyRegistered
        )
    }

    /// Its name, which is also its template's.
    pub fn as_str(self) -> &'static str {
        self.parts().0
    }

    pub(crate) fn template(self) -> &'static str {
        self.parts().1
    }

    fn parts(self) -> (&'static str, &'static str) {
        match self {
            Self::VerifyEmail => ("verify_email", include_str!("letters/verify_email.txt")),
            Self::ProveOwner => ("prove_owner", include_str!("letters/prove_owner.txt")),
            Self::ResetPassword => ("reset_password", include_str!("letters/reset_password.txt")),
            Self::ConfirmEmail => ("confirm_email", include_str!("letters/confirm_email.txt")),
            Self::EmailChanging => ("email_changing", include_str!("letters/email_changing.txt")),
            Self::EmailChanged => ("email_changed", include_str!("letters/email_changed.txt")),
            Self::PasswordChanged => ("password_changed", include_str!("letters/password_changed.txt")),
            Self::PasswordSet => ("password_set", include_str!("letters/password_set.txt")),
            Self::NewSignIn => ("new_sign_in", include_str!("letters/new_sign_in.txt")),
            Self::AccountLocked => ("account_locked", include_str!("letters/account_locked.txt")),
            Self::SessionReplayed => ("session_replayed", include_str!("letters/session_replayed.txt")),
            Self::KeyCreated => ("key_created", include_str!("letters/key_created.txt")),
            Self::KeyChanged => ("key_changed", include_str!("letters/key_changed.txt")),
            Self::FactorEnabled => ("factor_enabled", include_str!("letters/factor_enabled.txt")),
            Self::FactorDisabled => ("factor_disabled", include_str!("letters/factor_disabled.txt")),
            Self::RecoveryCodeUsed => ("recovery_code_used", include_str!("letters/recovery_code_used.txt")),
            Self::LoginLinked => ("login_linked", include_str!("letters/login_linked.txt")),
            Self::LoginUnlinked => ("login_unlinked", include_str!("letters/login_unlinked.txt")),
            Self::AccountDeleted => ("account_deleted", include_str!("letters/account_deleted.txt")),
            Self::AlreadyRegistered => ("already_registered", include_str!("letters/already_registered.txt")),
        }
    }
}

/// A letter and the facts its template may use, besides the user's own name and address.
#[derive(Clone, Debug)]
pub struct Letter {
    kind: LetterKind,
    facts: Vec<(&'static str, String)>,
}

impl Letter {
    pub fn new(kind: LetterKind) -> Self {
        Self { kind, facts: Vec::new() }
    }

    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.facts.push((name, value.to_string()));
        self
    }
}

/// Facts whose words a user chooses. They are left out of letters to an address that is not proved to be theirs: a name can be
/// a sentence, and any word with a dot in it is a link to a mail program.
const WRITTEN_BY_USERS: [&str; 5] = ["name", "username", "agent", "key", "new_email"];

/// How long letters to one address count against its bound.
const BOUND_WINDOW: Duration = Duration::from_secs(3600);
const MAX_TRACKED_ADDRESSES: u64 = 100_000;

/// What the outbox knows without reading the store.
pub(super) struct MailState {
    /// Rows in the outbox, for its bound and its metric alone: counted anew now and then, so that a commit that failed
    /// leaves no trace for long.
    waiting: AtomicI64,
    wake: Notify,
    /// Letters of the last hour, by the MAC of their address, those that anybody can have sent apart.
    recent: Cache<SecretMac, Arc<AtomicU32>>,
    counts: MailCounts,
}

/// How letters ended.
#[derive(Debug, Default)]
pub struct MailCounts {
    pub posted: AtomicU64,
    pub sent: AtomicU64,
    pub retried: AtomicU64,
    /// The receiving side, or a template, will never take it.
    pub refused: AtomicU64,
    /// Given up after `mail.retry_for`.
    pub expired: AtomicU64,
    /// Not posted: the outbox was full.
    pub overflowed: AtomicU64,
    /// Not posted: too many to one address.
    pub limited: AtomicU64,
}

impl MailState {
    pub(super) fn new() -> Self {
        Self {
            waiting: AtomicI64::new(0),
            wake: Notify::new(),
            recent: Cache::builder().max_capacity(MAX_TRACKED_ADDRESSES).time_to_live(BOUND_WINDOW).build(),
            counts: MailCounts::default(),
        }
    }
}

impl Accounts {
    /// Letters waiting to be sent.
    pub fn letters_waiting(&self) -> u64 {
        self.mail.waiting.load(Ordering::Relaxed).max(0) as u64
    }

    pub fn mail_counts(&self) -> &MailCounts {
        &self.mail.counts
    }

    /// Whether a new address is asked before it is taken for the user's.
    pub fn confirms_addresses(&self) -> bool {
        self.sends_mail()
    }

    pub(super) fn sends_mail(&self) -> bool {
        self.settings().mail.transport != MailTransport::None
    }

    /// Puts a letter to a user into the batch of the act it speaks of.
    ///
    /// # Errors
    /// [`Reject::Internal`] without randomness.
    pub(super) fn post(&self, user: &User, letter: Letter, batch: &mut Batch) -> Result<(), Reject> {
        self.post_to(&user.email, user, letter, batch)
    }

    /// As [`Accounts::post`], to an address that is not the user's, or is not any more.
    ///
    /// # Errors
    /// As [`Accounts::post`].
    pub(super) fn post_to(&self, to: &str, user: &User, letter: Letter, batch: &mut Batch) -> Result<(), Reject> {
        self.try_post(to, user, letter, batch).map(|_| ())
    }

    /// As [`Accounts::post_to`]; says whether it was posted, or is one too many.
    ///
    /// # Errors
    /// As [`Accounts::post`].
    pub(super) fn try_post(&self, to: &str, user: &User, letter: Letter, batch: &mut Batch) -> Result<bool, Reject> {
        let settings = self.settings();
        let (config, counts) = (&settings.mail, &self.mail.counts);
        if config.transport == MailTransport::None {
            return Ok(false);
        }
        if self.letters_waiting() >= config.queue as u64 {
            counts.overflowed.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(letter = letter.kind.as_str(), "the outbox is full (mail.queue); a letter is not sent");
            return Ok(false);
        }
        let space = if letter.kind.is_for_the_asking() { "mail asked for, to" } else { "mail to" };
        let address = self.pepper.mac_in(space, to.trim().to_lowercase().as_bytes());
        let sent = self.mail.recent.get_with(address, Arc::default);
        if sent.fetch_add(1, Ordering::Relaxed) >= config.per_address_per_hour {
            counts.limited.fetch_add(1, Ordering::Relaxed);
            return Ok(false);
        }
        let mut facts: BTreeMap<String, String> = letter.facts.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        facts.insert("name".into(), user.name.clone());
        facts.insert("username".into(), user.username.to_string());
        // Where nobody has shown that the address is the user's, it may be a stranger's, to whom somebody else speaks by us.
        if !user.proved_address().is_some_and(|proved| same_address(proved, to)) {
            facts
                .iter_mut()
                .filter(|(fact, _)| WRITTEN_BY_USERS.contains(&fact.as_str()))
                .for_each(|(_, text)| text.clear());
        }
        facts.insert("email".into(), to.to_owned());
        let posted = Posted { to: to.to_owned(), kind: letter.kind, facts, at: self.clock.now(), tries: 0 };
        self.put_letter(&posted, batch)?;
        self.mail.waiting.fetch_add(1, Ordering::Relaxed);
        counts.posted.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    }

    /// Has the outbox looked at, after a commit that may have put something into it.
    pub(super) fn mail_posted(&self) {
        if self.sends_mail() {
            self.mail.wake.notify_one();
        }
    }

    /// Posts a letter about something that has no commit of its own. Only counted when it fails.
    pub(super) async fn post_alone(&self, user: &User, letter: Letter) {
        let mut batch = Batch::default();
        if self.post(user, letter, &mut batch).is_err() || batch.is_empty() {
            return;
        }
        let done: Result<(), StoreError> = self.committer.commit(batch).await;
        if let Err(error) = done {
            tracing::warn!(%error, "a letter could not be posted");
        }
        self.mail_posted();
    }

    /// A link to a page of ours, with a token.
    pub(super) fn link(&self, path: &str, token: &str) -> String {
        let settings = self.settings();
        let base = settings.base_url.as_deref().unwrap_or_default().trim_end_matches('/');
        format!("{base}{path}?token={token}")
    }
}
