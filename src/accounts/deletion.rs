//! Deletion: dead at once, sealed for a while, then gone.
//!
//! Owns what of a deleted user is kept, where and how long. The user's row keeps his number, dates and standing; everything
//! personal goes into sealed pieces (`bk/`) for `accounts.deletion.keep_days`, out of which an admin can bring the account
//! back, and is then removed. The username stays readable until then, for staff to find whom they are asked for. Meters and
//! their numbers stay for the books. Never brings credentials back: those were dead the moment the user was deleted.

use std::time::Duration;

use super::keys::drop_key;
use super::mail::{Letter, LetterKind};
use super::seal::Purpose;
use super::tokens::TokenKind;
use super::users::{MAX_REASON, refuse_deleted};
use super::{Accounts, Forget, Loaded, MAX_TRIES, sessions, too_busy};
use crate::clock::UnixMillis;
use crate::domain::ids::UserId;
use crate::domain::session::{Principal, Session};
use crate::domain::user::{Status, User};
use crate::error::Reject;
use crate::store::{Batch, Order, StoreError, prefix_end, tables};

/// Bytes of a sealed piece before it is sealed; a value of the store holds 4 KiB.
const PIECE_BYTES: usize = 2048;
/// More than the days of usage that are kept of a user.
const MAX_DAYS: usize = 1000;
/// Rows looked at in one turn.
const AT_ONCE: usize = 500;

/// What is sealed of a deleted user.
#[derive(serde::Serialize, serde::Deserialize)]
struct Kept {
    user: User,
    /// The row of his second factor, whose secret is sealed in it once more.
    factor: Option<serde_json::Value>,
    /// Under which time his purge is noted: the config may say another one by the time he is brought back. Not in what
    /// was sealed before there was this field.
    #[serde(default)]
    purge_at: Option<UnixMillis>,
}

impl Accounts {
    fn keeps_deleted(&self) -> Duration {
        Duration::from_secs(self.settings().accounts.deletion.keep_days * 86_400)
    }

    /// Deletes a user: his credentials are dead and his names free before this returns. What is personal goes into sealed
    /// pieces, in the same commit. Answers the user as he was.
    ///
    /// # Errors
    /// [`Reject::NotFound`], also for one who is deleted already.
    pub async fn delete_user(&self, id: UserId, reason: Option<String>) -> Result<User, Reject> {
        if reason.as_ref().is_some_and(|text| text.chars().count() > MAX_REASON) {
            return Err(Reject::Invalid(vec![format!("reason: at most {MAX_REASON} characters")]));
        }
        let lasts = self.keeps_deleted();
        let mut before = None;
        let edit = |user: &mut User, batch: &mut Batch| {
            refuse_deleted(user)?;
            let now = self.clock.now();
            let days = self.settings().accounts.deletion.keep_days;
            let days = if days == 0 { String::new() } else { days.to_string() };
            self.post(user, Letter::new(LetterKind::AccountDeleted).with("days", days), batch)?;
            batch.delete(tables::user_by_name(&user.username)).delete(tables::user_by_email(&user.email));
            for kind in TokenKind::ALL {
                self.drop_link(id, kind, batch)?;
            }
            if !lasts.is_zero() {
                let purge_at = now.plus(lasts);
                self.seal_user(user, purge_at, batch)?;
                batch.put(tables::purge_due(purge_at, id), Vec::new());
            }
            self.remember_quota(id, &user.email, batch)?;
            self.close_credentials(id, batch)?;
            before = Some(user.clone());
            *user = remains_of(user, now, reason.clone(), !lasts.is_zero());
            Ok(())
        };
        self.change_user(id, Forget::Credentials, edit).await?;
        // Once more: calls went on until the deletion was in force.
        if let Some(user) = &before {
            let mut used_since = Batch::default();
            self.remember_quota(id, &user.email, &mut used_since)?;
            self.committer.commit(used_since).await.map_err(|error| self.failed(&error))?;
        }
        // What was made while the deletion was on its way. Nothing can be made any more: it would need a live user's row.
        for _ in 0..MAX_TRIES {
            let mut leftover = Batch::default();
            self.close_credentials(id, &mut leftover)?;
            if leftover.is_empty() {
                return before.ok_or(Reject::Internal);
            }
            match self.commit_for_user(id, leftover, Forget::Credentials).await {
                Ok(()) => return before.ok_or(Reject::Internal),
                Err(error) => self.judge_conflict(&error)?,
            }
        }
        Err(too_busy())
    }

    pub(super) fn close_credentials(&self, id: UserId, batch: &mut Batch) -> Result<(), Reject> {
        self.close_ways_in(id, batch)?;
        self.drop_codes(id, batch)?;
        if self.load::<serde_json::Value>(tables::factor(Principal::User(id)))?.is_some() {
            batch.delete(tables::factor(Principal::User(id)));
        }
        Ok(())
    }

    /// Puts the end of whatever opens an account by itself into a batch: logins at providers, keys, sessions.
    pub(super) fn close_ways_in(&self, id: UserId, batch: &mut Batch) -> Result<(), Reject> {
        self.drop_identities(id, batch)?;
        for key in self.load_keys(id)? {
            drop_key(&key, batch);
        }
        for (mac, session) in self.load_sessions(id)? {
            sessions::close_session(&mac, &session, batch);
        }
        Ok(())
    }

    fn seal_user(&self, user: &User, purge_at: UnixMillis, batch: &mut Batch) -> Result<(), Reject> {
        let factor = self.load::<serde_json::Value>(tables::factor(Principal::User(user.id)))?.map(|row| row.value);
        let kept = Kept { user: user.clone(), factor, purge_at: Some(purge_at) };
        let text = serde_json::to_vec(&kept).map_err(|_| Reject::Internal)?;
        for (piece, bytes) in text.chunks(PIECE_BYTES).enumerate() {
            let sealed = self.sealer.seal(purpose(user.id, piece), bytes)?;
            let row = tables::encode(&sealed).map_err(|error| self.failed(&error))?;
            batch.put(tables::kept_user(user.id, piece as u8), row);
        }
        Ok(())
    }

    fn open_user(&self, id: UserId) -> Result<Kept, Reject> {
        let from = tables::kept_users(id);
        let rows = self.store().range(&from, &prefix_end(&from), usize::from(u8::MAX), Order::Ascending);
        let rows = rows.map_err(|error| self.failed(&error))?;
        if rows.is_empty() {
            return Err(Reject::NotFound);
        }
        let mut text = Vec::new();
        for (piece, (_, raw)) in rows.iter().enumerate() {
            let sealed: String = tables::decode(raw).map_err(|error| self.failed(&error))?;
            let Some(bytes) = self.sealer.open(purpose(id, piece), &sealed) else {
                tracing::error!(user = %id, "a deleted user's data does not open: is the vault's key another one?");
                return Err(Reject::Internal);
            };
            text.extend(bytes);
        }
        serde_json::from_slice(&text).map_err(|error| {
            tracing::error!(user = %id, %error, "a deleted user's data cannot be read");
            Reject::Internal
        })
    }

    /// Brings a deleted user back as he was: names, profile, plan, password and second factor; not sessions and keys, so a
    /// new default key has to be made.
    ///
    /// # Errors
    /// [`Reject::NotFound`] for who is not deleted, or whose time is over; [`Reject::Conflict`] when his name or address has
    /// been taken meanwhile, and which.
    pub async fn restore_user(&self, id: UserId) -> Result<User, Reject> {
        for _ in 0..MAX_TRIES {
            let row = self.load::<User>(tables::user(id))?.filter(|row| row.value.status == Status::Deleted);
            let row = row.ok_or(Reject::NotFound)?;
            let Kept { mut user, factor, purge_at } = self.open_user(id)?;
            let mut batch = row.unchanged();
            let (by_name, by_email) = (tables::user_by_name(&user.username), tables::user_by_email(&user.email));
            batch.require_absent(by_name.clone()).require_absent(by_email.clone());
            let number = tables::encode(&id).map_err(|error| self.failed(&error))?;
            batch.put(by_name, number.clone()).put(by_email, number);
            if let Some(factor) = factor {
                batch.put(tables::factor(Principal::User(id)), super::encode_bounded(&factor)?);
            }
            user.deleted_at = None;
            batch.put(row.key, super::encode_bounded(&user)?);
            self.drop_kept(id, &mut batch)?;
            let noted = || row.value.deleted_at.map(|at| at.plus(self.keeps_deleted()));
            if let Some(at) = purge_at.or_else(noted) {
                batch.delete(tables::purge_due(at, id));
            }
            match self.commit_for_user(id, batch, Forget::Credentials).await {
                Ok(()) => {
                    self.lower_to_remembered(id, &user.email).await?;
                    return Ok(user);
                }
                Err(error) => self.judge_conflict(&error)?,
            }
        }
        Err(too_busy())
    }

    fn drop_kept(&self, id: UserId, batch: &mut Batch) -> Result<(), Reject> {
        let from = tables::kept_users(id);
        let rows = self.store().range(&from, &prefix_end(&from), usize::from(u8::MAX), Order::Ascending);
        for (key, _) in rows.map_err(|error| self.failed(&error))? {
            batch.delete(key);
        }
        Ok(())
    }

    /// Removes what is personal of users whose time is over; says how many.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`].
    pub async fn purge_deleted(&self) -> Result<u64, Reject> {
        let mut purged = 0;
        loop {
            let (committer, to) = (self.committer.clone(), tables::purges_until(self.clock.now()));
            let read = move || committer.store().range(tables::PURGES, &to, AT_ONCE, Order::Ascending);
            let due = self.reading(read).await?;
            if due.is_empty() {
                return Ok(purged);
            }
            for (key, _) in due {
                purged += u64::from(self.purge_one(key).await?);
            }
        }
    }

    async fn purge_one(&self, due: Vec<u8>) -> Result<bool, Reject> {
        let Some(id) = tables::parse_purge(&due) else { return Ok(false) };
        let mut batch = Batch::default();
        batch.delete(due);
        let row = self.load::<User>(tables::user(id))?.filter(|row| row.value.status == Status::Deleted);
        let is_deleted = row.is_some();
        if let Some(row) = row {
            batch.require_equal(row.key.clone(), row.raw.clone());
            let rest = remains_of(&row.value, row.value.deleted_at.unwrap_or_default(), None, false);
            batch.put(row.key, super::encode_bounded(&rest)?);
            self.drop_kept(id, &mut batch)?;
            let days = tables::usage_of_user(id);
            let rows = self.store().range(&days, &prefix_end(&days), MAX_DAYS, Order::Ascending);
            for (key, _) in rows.map_err(|error| self.failed(&error))? {
                batch.delete(key);
            }
        }
        match self.commit_for_user(id, batch, Forget::Credentials).await {
            Ok(()) => Ok(is_deleted),
            // Brought back at this moment.
            Err(StoreError::Conflict { .. }) => Ok(false),
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// Removes sessions that nobody can use any more; says how many.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`].
    pub async fn purge_sessions(&self) -> Result<u64, Reject> {
        let (mut from, end) = (tables::SESSIONS.to_vec(), prefix_end(tables::SESSIONS));
        let mut purged = 0;
        loop {
            let rows = self.next_rows(&mut from, &end).await?;
            if rows.is_empty() {
                return Ok(purged);
            }
            let now = self.clock.now();
            for (key, raw) in rows {
                let session: Session = tables::decode(&raw).map_err(|error| self.failed(&error))?;
                let over = session.expires_at <= now && session.refresh_expires_at.is_none_or(|at| at <= now);
                let (Some(mac), true) = (tables::parse_session(&key), over) else { continue };
                let mut batch = Batch::default();
                sessions::close_session(&mac, &Loaded { key, raw, value: session }, &mut batch);
                // Changed at this moment: the next turn looks again.
                purged += u64::from(self.committer.commit(batch).await.is_ok());
            }
        }
    }
}

fn purpose(id: UserId, piece: usize) -> Purpose<'static> {
    Purpose { what: "deleted user", whose: id.0, which: piece as u64 }
}

/// A deleted user's row: nothing personal but, while he can be brought back, his name.
fn remains_of(user: &User, at: UnixMillis, reason: Option<String>, named: bool) -> User {
    let name = if named { user.username.to_string() } else { format!("deleted-{}", user.id.0) };
    User {
        id: user.id,
        status: Status::Deleted,
        suspended_reason: reason,
        deleted_at: Some(at),
        last_login: user.last_login,
        keys_changed: user.keys_changed,
        ..User::new(name.into(), String::new(), "".into(), user.plan.clone(), user.created_at)
    }
}
