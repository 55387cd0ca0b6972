//! Users: profile, standing, lists of them, and what staff does to them.
//!
//! Owns changes of the users' rows. Meters belong to the user's actor and are only ever changed by asking it.

use std::sync::Arc;

use serde::Deserialize;

use super::audit::Change;
use super::directory::{Counts, Directory, UserQuery};
use super::fields::{email_fault, name_fault, normalized, profile_fault, text_fault, word_fault};
use super::mail::{Letter, LetterKind};
use super::passwords::Rule;
use super::plans::{MeterChange, canonical_plan};
use super::{Accounts, Forget, Settings, sessions};
use crate::actors::user::actor::UserActor;
use crate::actors::user::ledger::Meter;
use crate::actors::writer::{Filter, Page as JournalPage};
use crate::clock::UnixMillis;
use crate::config::Plan;
use crate::domain::ids::{StaffId, UserId};
use crate::domain::meters::{MeterName, Micro};
use crate::domain::user::{Role, Status, User, UserType, Verification, Vetting};
use crate::error::Reject;
use crate::store::{Batch, Order, Row, Store, StoreError, prefix_end, tables};

/// The most a page of any list holds.
pub const MAX_PAGE_SIZE: usize = 200;
pub(super) const MAX_REASON: usize = 500;
/// Rows looked at in one turn of a sweep.
const SWEPT_AT_ONCE: usize = 500;
/// Rows read at once by a search.
const CHUNK: usize = 1000;
/// How long a reader of the journal waits for what has just been said.
const JOURNAL_PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);

/// What a user may change of himself.
#[derive(Clone, Debug, Default)]
pub struct ProfileUpdate {
    pub name: Option<String>,
    pub about_me: Option<String>,
    pub hobbies: Option<String>,
    pub user_type: Option<UserType>,
    /// Fields of the profile by name; without a value, the field is emptied.
    pub fields: Vec<(&'static str, Option<String>)>,
}

/// What staff may change of a user.
#[derive(Clone, Debug, Default)]
pub struct AdminUpdate {
    pub profile: ProfileUpdate,
    pub email: Option<String>,
    pub email_verified: Option<bool>,
    /// Whether the user's conversations are kept.
    pub log_conversations: Option<bool>,
    pub role: Option<Role>,
    pub verification: Option<Verification>,
    pub level: Option<String>,
    pub access_rtype: Option<Vec<String>>,
    pub additional_notes: Option<String>,
    pub plan: Option<String>,
    /// The meter `credits`.
    pub credits: Option<MeterUpdate>,
    /// The meter `conversations`.
    pub conversations: Option<MeterUpdate>,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct MeterUpdate {
    pub balance: Option<Micro>,
    pub reset: Option<Micro>,
}

/// A user and his meters as they stand.
pub struct UserDetails {
    pub user: User,
    pub meters: Vec<MeterView>,
}

/// One meter as it stands, with the resets that are due.
#[derive(Clone, Debug)]
pub struct MeterView {
    pub name: MeterName,
    pub meter: Meter,
    /// When the period began.
    pub reset_at: Option<UnixMillis>,
    pub resets_at: Option<UnixMillis>,
}

impl MeterView {
    /// What is told of an amount on it: what has no limit shows as plenty.
    fn shown(&self, amount: Micro) -> Micro {
        if self.meter.reset.is_unlimited() { Micro::UNLIMITED_SHOWN } else { amount }
    }

    pub fn shown_balance(&self) -> Micro {
        self.shown(self.meter.balance)
    }

    /// What the balance is set to at each reset, as it is told.
    pub fn shown_reset(&self) -> Micro {
        self.shown(self.meter.reset)
    }

    /// What is gone of the amount that the last reset gave.
    pub fn used(&self) -> Micro {
        Micro(self.meter.reset.0.saturating_sub(self.meter.balance.0).max(0))
    }
}

/// One page of a list.
#[derive(Debug)]
pub struct Page<T> {
    pub items: Vec<T>,
    pub page: usize,
    pub page_size: usize,
    pub total: u64,
}

/// Counts over all users.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Not there while the directory is being read.
    pub more: Option<Counts>,
    pub total: u64,
    pub active: u64,
    pub pending: u64,
    pub suspended: u64,
    pub banned: u64,
    pub deleted: u64,
    pub verified: u64,
    pub live: u64,
    pub holds_open: i64,
}

impl From<Counts> for Statistics {
    fn from(counts: Counts) -> Self {
        let of = |status: Status| counts.by_status.get(status.as_str()).copied().unwrap_or(0);
        Self {
            total: counts.total,
            active: of(Status::Active),
            pending: of(Status::Pending),
            suspended: of(Status::Suspended),
            banned: of(Status::Banned),
            deleted: of(Status::Deleted),
            verified: counts.verified,
            live: 0,
            holds_open: 0,
            more: Some(counts),
        }
    }
}

fn fold_changed(old: &str, new: &str) -> bool {
    tables::user_by_email(old) != tables::user_by_email(new)
}

impl AdminUpdate {
    /// What does not fit, a line for each field.
    pub(super) fn faults(&self, settings: &Settings) -> Vec<String> {
        let (update, profile) = (self, &self.profile);
        let unknown = |word: &String| settings.plan(canonical_plan(word)).is_none();
        let faults = [
            profile.name.as_deref().map(str::trim).and_then(name_fault),
            update.email.as_deref().and_then(|text| email_fault("email", text)),
            profile.about_me.as_deref().and_then(|text| text_fault("about_me", text)),
            profile.hobbies.as_deref().and_then(|text| text_fault("hobbies", text)),
            update.level.as_deref().and_then(|text| word_fault("level", text)),
            update.access_rtype.as_ref().filter(|list| list.len() > 16).map(|_| "access_rtype: at most 16".into()),
            update.access_rtype.iter().flatten().find_map(|text| word_fault("access_rtype", text)),
            update.additional_notes.as_deref().and_then(|text| text_fault("additional_notes", text)),
            update.plan.as_ref().is_some_and(unknown).then(|| "subscription_plan: there is no such plan".into()),
        ];
        let profile_faults = profile.fields.iter().filter_map(|(name, value)| profile_fault(name, value.as_deref()?));
        faults.into_iter().flatten().chain(profile_faults).collect()
    }
}

impl Accounts {
    /// A user by number, deleted ones included.
    ///
    /// # Errors
    /// [`Reject::NotFound`].
    pub fn user(&self, id: UserId) -> Result<User, Reject> {
        Ok(self.load::<User>(tables::user(id))?.ok_or(Reject::NotFound)?.value)
    }

    /// A user with his meters.
    ///
    /// # Errors
    /// [`Reject::NotFound`].
    pub fn user_details(&self, id: UserId) -> Result<UserDetails, Reject> {
        self.details(self.user(id)?)
    }

    /// Adds the meters to a user's row.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`].
    pub fn details(&self, user: User) -> Result<UserDetails, Reject> {
        Ok(UserDetails { meters: self.meters(user.id)?, user })
    }

    /// A user's meters as they stand.
    ///
    /// # Errors
    /// [`Reject::NotFound`].
    pub fn meters(&self, id: UserId) -> Result<Vec<MeterView>, Reject> {
        let account = self.actor(id)?.account().map_err(|_| Reject::Internal)?;
        let (now, hour) = (self.clock.now(), self.reset_hour());
        let moment = |second: i64| UnixMillis(second.max(0) as u64 * 1000);
        let view = |(name, meter): (&MeterName, &Meter)| MeterView {
            name: name.clone(),
            meter: *meter,
            reset_at: meter.period.began(now, hour).map(moment),
            resets_at: meter.period.next(now, hour).map(moment),
        };
        Ok(account.meters().map(view).collect())
    }

    pub(super) fn actor(&self, id: UserId) -> Result<Arc<UserActor>, Reject> {
        self.users.actor(id)?.ok_or(Reject::NotFound)
    }

    /// All users in memory, for lists and counts.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Reads the users into the directory; to be called once, in the background.
    ///
    /// # Errors
    /// [`StoreError`]; lists come from the store then.
    pub fn fill_directory(&self) -> Result<(), StoreError> {
        let began = self.clock.monotonic();
        let (mut from, end) = (tables::USERS.to_vec(), prefix_end(tables::USERS));
        loop {
            let rows = self.store().range(&from, &end, CHUNK, Order::Ascending)?;
            let Some((last, _)) = rows.last() else { break };
            from = [last.as_slice(), &[0]].concat();
            let users = rows.iter().map(|(_, row)| tables::decode(row)).collect::<Result<Vec<User>, _>>()?;
            self.directory.put_read(&users);
        }
        self.directory.finish(self.clock.monotonic().since(began).as_millis() as u64);
        Ok(())
    }

    /// Users by number: how many of them at most, after how many others; and how many there are.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`].
    pub async fn users_from(&self, skip: usize, limit: usize) -> Result<(Vec<User>, u64), Reject> {
        let committer = self.committer.clone();
        self.reading(move || users_from(committer.store(), skip, limit)).await
    }

    /// One page of the users that a query lets through.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`]; [`Reject::Overloaded`] for anything but a search while the directory is being read.
    pub async fn find_users(&self, page: usize, page_size: usize, mut query: UserQuery) -> Result<Page<User>, Reject> {
        query.search = query.search.map(|text| normalized(&text)).filter(|text| !text.is_empty());
        query.plan = query.plan.map(|plan| canonical_plan(&plan).to_owned());
        if !self.directory.is_whole() {
            if !query.is_plain() {
                return Err(Reject::Overloaded("The list of users is being read; try again in a moment"));
            }
            return self.list_users(page, page_size, query).await;
        }
        let (page, page_size) = (page.max(1), page_size.clamp(1, MAX_PAGE_SIZE));
        let (directory, committer) = (self.directory.clone(), self.committer.clone());
        let read = move || {
            let (ids, total) = directory.find(&query, (page - 1).saturating_mul(page_size), page_size);
            let mut items = Vec::with_capacity(ids.len());
            for id in ids {
                items.extend(tables::read::<User>(committer.store(), &tables::user(id))?);
            }
            Ok((items, total))
        };
        let (items, total) = self.reading(read).await?;
        Ok(Page { items, page, page_size, total })
    }

    /// One page of users by number, from the store, as far as a plain query lets them through.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`].
    async fn list_users(&self, page: usize, page_size: usize, query: UserQuery) -> Result<Page<User>, Reject> {
        let page = page.max(1);
        let page_size = page_size.clamp(1, MAX_PAGE_SIZE);
        let search = query.search.map(|text| text.trim().to_lowercase()).filter(|text| !text.is_empty());
        let committer = self.committer.clone();
        let read = move || match search {
            None => users_from(committer.store(), (page - 1).saturating_mul(page_size), page_size),
            Some(text) => search_users(committer.store(), page, page_size, &text, query.names_only),
        };
        let (items, total) = self.reading(read).await?;
        Ok(Page { items, page, page_size, total })
    }

    /// Runs a long read where blocking is allowed.
    pub(super) async fn reading<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Reject> {
        let result = tokio::task::spawn_blocking(read).await.map_err(|_| Reject::Internal)?;
        result.map_err(|error| self.failed(&error))
    }

    /// The next rows of a sweep over a table: those from `from` on, which is moved behind them. Empty at the end.
    pub(super) async fn next_rows(&self, from: &mut Vec<u8>, end: &[u8]) -> Result<Vec<Row>, Reject> {
        let (committer, start, end) = (self.committer.clone(), from.clone(), end.to_vec());
        let read = move || committer.store().range(&start, &end, SWEPT_AT_ONCE, Order::Ascending);
        let rows = self.reading(read).await?;
        if let Some((last, _)) = rows.last() {
            *from = [last.as_slice(), &[0]].concat();
        }
        Ok(rows)
    }

    /// Changes what a user may change of himself, and says what has changed.
    ///
    /// # Errors
    /// [`Reject::Invalid`], [`Reject::NotFound`].
    pub async fn update_profile(&self, id: UserId, update: ProfileUpdate) -> Result<(User, Vec<Change>), Reject> {
        let update = AdminUpdate { profile: update, ..AdminUpdate::default() };
        self.update_user_telling(id, update, None).await
    }

    /// Changes a user as staff, his row and his meters in one commit; what a new plan does to meters is said in
    /// [`super::plans`]. Balances that the update names come after that.
    ///
    /// # Errors
    /// [`Reject::Invalid`], [`Reject::Conflict`] for an email that is taken, [`Reject::NotFound`] also for deleted users.
    pub async fn update_user(&self, id: UserId, update: AdminUpdate) -> Result<User, Reject> {
        Ok(self.update_user_telling(id, update, None).await?.0)
    }

    /// As [`Accounts::update_user`], by whom of the staff (without a number, the operator); says what has changed. Another
    /// email makes the account wait for its owner's proof.
    ///
    /// # Errors
    /// As [`Accounts::update_user`].
    pub async fn update_user_telling(
        &self,
        id: UserId,
        mut update: AdminUpdate,
        by: Option<StaffId>,
    ) -> Result<(User, Vec<Change>), Reject> {
        let settings = self.settings();
        update.profile.name = update.profile.name.map(|name| name.trim().to_owned());
        update.email = update.email.map(|email| normalized(&email));
        let faults = update.faults(&settings);
        if !faults.is_empty() {
            return Err(Reject::Invalid(faults));
        }
        let plan = update.plan.as_deref().and_then(|word| settings.plan(canonical_plan(word)));
        let actor = self.actor(id)?;
        let mut changes = Vec::new();
        let edit = |user: &mut User, batch: &mut Batch| {
            refuse_deleted(user)?;
            let meters = MeterChange::of(&update, plan.filter(|plan| plan.name != user.plan));
            let faults = meters.faults(&actor.account().map_err(|_| Reject::Internal)?);
            if !faults.is_empty() {
                return Err(Reject::Invalid(faults));
            }
            let before = user.clone();
            apply_update(user, &update, plan, batch)?;
            changes = changes_of_user(&before, user);
            if fold_changed(&before.email, &user.email) {
                // What was sent to the old address opens nothing any more, and its owner hears of it.
                self.forget_links(id, batch)?;
                self.remember_quota(id, &before.email, batch)?;
                user.wait_for_proof(by, before.proved_address().map(str::to_owned), self.clock.now());
                let letter = Letter::new(LetterKind::EmailChanged).with("new_email", &user.email);
                self.post_to(&before.email, user, letter, batch)?;
            }
            Ok(meters)
        };
        let (user, of_meters) = self.change_user_and_meters(id, edit).await?;
        changes.extend(of_meters);
        Ok((user, changes))
    }

    /// Stops a user's calls until [`Accounts::activate`].
    ///
    /// # Errors
    /// [`Reject::NotFound`].
    pub async fn suspend(&self, id: UserId, reason: Option<String>) -> Result<User, Reject> {
        self.set_status(id, Status::Suspended, reason).await
    }

    /// As [`Accounts::suspend`], in another word: for good.
    ///
    /// # Errors
    /// [`Reject::NotFound`].
    pub async fn ban(&self, id: UserId, reason: Option<String>) -> Result<User, Reject> {
        self.set_status(id, Status::Banned, reason).await
    }

    /// Lets a user call again, or for the first time.
    ///
    /// # Errors
    /// [`Reject::NotFound`].
    pub async fn activate(&self, id: UserId) -> Result<User, Reject> {
        self.set_status(id, Status::Active, None).await
    }

    /// Gives a user a password that staff has chosen: it opens nothing but the call that changes it, all sessions end, and the
    /// account waits for its owner's proof. `by`: without a number, the operator.
    ///
    /// # Errors
    /// [`Reject::Invalid`], [`Reject::NotFound`].
    pub async fn set_password(
        &self,
        id: UserId,
        password: super::passwords::Password,
        by: Option<StaffId>,
    ) -> Result<User, Reject> {
        let user = self.user(id)?;
        refuse_deleted(&user)?;
        let faults = self.password_faults(&password, Rule::Composition, "new_password", &[&user.username, &user.email]);
        if !faults.is_empty() {
            return Err(Reject::Invalid(faults));
        }
        let hash = self.passwords.enter()?.hash(password).await?;
        let edit = |user: &mut User, batch: &mut Batch| {
            refuse_deleted(user)?;
            user.wait_for_proof(by, user.proved_address().map(str::to_owned), self.clock.now());
            user.password_hash = Some(hash.clone());
            user.must_change_password = true;
            self.forget_links(id, batch)?;
            self.post(user, Letter::new(LetterKind::PasswordSet), batch)?;
            for (mac, session) in self.load_sessions(id)? {
                sessions::close_session(&mac, &session, batch);
            }
            Ok(())
        };
        let user = self.change_user(id, Forget::Credentials, edit).await?;
        self.revoke_sessions(id, None).await?;
        Ok(user)
    }

    async fn set_status(&self, id: UserId, status: Status, reason: Option<String>) -> Result<User, Reject> {
        if reason.as_ref().is_some_and(|text| text.chars().count() > MAX_REASON) {
            return Err(Reject::Invalid(vec![format!("reason: at most {MAX_REASON} characters")]));
        }
        let edit = |user: &mut User, _: &mut Batch| {
            refuse_deleted(user)?;
            user.status = status;
            user.suspended_reason.clone_from(&reason);
            Ok(())
        };
        self.change_user(id, Forget::Nothing, edit).await
    }

    /// Counts over all users.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`].
    pub async fn statistics(&self) -> Result<Statistics, Reject> {
        let committer = self.committer.clone();
        let mut counts = if self.directory.is_whole() {
            let (directory, now) = (self.directory.clone(), self.clock.now());
            self.reading(move || Ok(Statistics::from(directory.count(now)))).await?
        } else {
            self.reading(move || count_users(committer.store())).await?
        };
        counts.live = self.users.live() as u64;
        counts.holds_open = self.users.holds_open();
        Ok(counts)
    }

    /// One page of a user's conversations that `filter` lets through, newest first, with those that have just ended if
    /// the disk is not behind. The total counts what the filter lets through.
    ///
    /// # Errors
    /// [`Reject::NotFound`] for a user who never was, [`Reject::StoreUnavailable`] when the journal cannot be read.
    pub async fn message_log(
        &self,
        id: UserId,
        filter: Filter,
        page: usize,
        page_size: usize,
    ) -> Result<Page<String>, Reject> {
        self.user(id)?;
        let filter = Filter { user_id: Some(id.0), ..filter };
        let page = page.max(1);
        let page_size = page_size.clamp(1, MAX_PAGE_SIZE);
        let journal = self.journal.clone();
        let read = move || {
            if let Err(error) = journal.flush_within(JOURNAL_PATIENCE) {
                tracing::warn!(%error, "message logs are shown without those that wait for the disk");
            }
            journal.search(&filter, page as u64, page_size)
        };
        let found = tokio::task::spawn_blocking(read).await.map_err(|_| Reject::Internal)?;
        let JournalPage { items, total, .. } = found.map_err(|error| {
            tracing::error!(%error, "the journal cannot be read");
            Reject::StoreUnavailable
        })?;
        Ok(Page { items, page, page_size, total })
    }
}

pub(super) fn refuse_deleted(user: &User) -> Result<(), Reject> {
    if user.status == Status::Deleted { Err(Reject::NotFound) } else { Ok(()) }
}

pub(super) fn apply_update(
    user: &mut User,
    update: &AdminUpdate,
    plan: Option<&Plan>,
    batch: &mut Batch,
) -> Result<(), Reject> {
    let profile = &update.profile;
    let (was_proved, mut same) = (user.proved_address().is_some(), true);
    if let Some(name) = &profile.name {
        user.name.clone_from(name);
    }
    if let Some(text) = &profile.about_me {
        user.about_me.clone_from(text);
    }
    if let Some(text) = &profile.hobbies {
        user.hobbies.clone_from(text);
    }
    if let Some(kind) = profile.user_type {
        user.user_type = kind;
    }
    for (name, value) in &profile.fields {
        if let Some(field) = user.profile.field_mut(name) {
            field.clone_from(value);
        }
    }
    if let Some(role) = update.role {
        user.role = role;
    }
    if let Some(level) = update.verification {
        user.email_verified = level >= Verification::EmailVerified;
        user.vetting = match level {
            Verification::Unverified | Verification::EmailVerified => Vetting::None,
            Verification::FullyVerified => Vetting::Full,
            Verification::ProfessionalVerified => Vetting::Professional,
        };
    }
    if let Some(level) = &update.level {
        user.level.clone_from(level);
    }
    if let Some(kinds) = &update.access_rtype {
        user.access_rtype.clone_from(kinds);
    }
    if let Some(notes) = &update.additional_notes {
        user.additional_notes.clone_from(notes);
    }
    if let Some(verified) = update.email_verified {
        user.email_verified = verified;
    }
    if let Some(kept) = update.log_conversations {
        user.log_conversations = kept;
    }
    if let Some(plan) = plan {
        user.plan = plan.name.clone();
    }
    if let Some(email) = &update.email {
        same = set_email(user, email, batch)?;
        // Nobody has shown that the new one is his, unless whoever changes it says so.
        let is_said = update.email_verified.is_some() || update.verification.is_some();
        user.email_verified &= same || is_said;
    }
    user.email_vouched = user.email_verified && !(was_proved && same);
    Ok(())
}

/// Says whether it is the same address, perhaps in another spelling.
pub(super) fn set_email(user: &mut User, email: &str, batch: &mut Batch) -> Result<bool, Reject> {
    let same = !fold_changed(&user.email, email);
    if !same {
        let (old, new) = (tables::user_by_email(&user.email), tables::user_by_email(email));
        batch.require_absent(new.clone()).delete(old);
        batch.put(new, tables::encode(&user.id).map_err(|_| Reject::Internal)?);
    }
    user.email = Arc::from(email);
    Ok(same)
}

fn changes_of_user(before: &User, after: &User) -> Vec<Change> {
    let fields = [
        ("name", &*before.name, &*after.name),
        ("email", &before.email, &after.email),
        ("user_type", before.user_type.as_str(), after.user_type.as_str()),
        ("subscription_plan", &before.plan, &after.plan),
        ("role", before.role.as_str(), after.role.as_str()),
        ("verification", before.verification().as_str(), after.verification().as_str()),
        ("level", &before.level, &after.level),
    ];
    let mut changes: Vec<Change> = fields
        .iter()
        .filter(|(_, from, to)| from != to)
        .map(|(name, from, to)| Change::new(*name, *from, *to))
        .collect();
    let flags = [
        ("email_verified", before.email_verified, after.email_verified),
        ("log_conversations", before.log_conversations, after.log_conversations),
    ];
    let changed = flags.into_iter().filter(|(_, from, to)| from != to);
    changes.extend(changed.map(|(name, from, to)| Change::new(name, from, to)));
    if before.access_rtype != after.access_rtype {
        changes.push(Change::new("access_rtype", before.access_rtype.clone(), after.access_rtype.clone()));
    }
    if before.profile != after.profile {
        changes.push(Change::new("profile", "…", "…"));
    }
    for (name, from, to) in [
        ("additional_notes", &before.additional_notes, &after.additional_notes),
        ("about_me", &before.about_me, &after.about_me),
        ("hobbies", &before.hobbies, &after.hobbies),
    ] {
        if from != to {
            changes.push(Change::new(name, "…", "…"));
        }
    }
    changes
}

/// The number of the user who came last. Numbers are given in the commit that makes the user, so none is left out.
pub(super) fn last_user(store: &dyn Store) -> Result<u64, StoreError> {
    Ok(tables::read::<u64>(store, &tables::counter("user"))?.unwrap_or(0))
}

fn users_from(store: &dyn Store, skip: usize, limit: usize) -> Result<(Vec<User>, u64), StoreError> {
    // Numbers have no gaps, so where to begin need not be searched.
    let first = (skip as u64).saturating_add(1);
    let rows = store.range(&tables::user(UserId(first)), &prefix_end(tables::USERS), limit, Order::Ascending)?;
    let users = rows.iter().map(|(_, row)| tables::decode(row)).collect::<Result<_, _>>()?;
    Ok((users, last_user(store)?))
}

fn search_users(
    store: &dyn Store,
    page: usize,
    page_size: usize,
    text: &str,
    names_only: bool,
) -> Result<(Vec<User>, u64), StoreError> {
    let skip = ((page - 1) as u64).saturating_mul(page_size as u64);
    let (mut items, mut total) = (Vec::new(), 0u64);
    each_user(store, |user: User| {
        let fields = [&*user.username, &user.name, &*user.email];
        let fields = if names_only { &fields[..2] } else { &fields };
        if fields.iter().any(|field| field.to_lowercase().contains(text)) {
            if total >= skip && items.len() < page_size {
                items.push(user);
            }
            total += 1;
        }
    })?;
    Ok((items, total))
}

fn count_users(store: &dyn Store) -> Result<Statistics, StoreError> {
    /// Only what is counted.
    #[derive(Deserialize)]
    struct Row {
        status: Status,
        email_verified: bool,
    }
    let mut counts = Statistics::default();
    each_user(store, |row: Row| {
        counts.total += 1;
        counts.verified += u64::from(row.email_verified);
        *match row.status {
            Status::Active => &mut counts.active,
            Status::Pending => &mut counts.pending,
            Status::Suspended => &mut counts.suspended,
            Status::Banned => &mut counts.banned,
            Status::Deleted => &mut counts.deleted,
        } += 1;
    })?;
    Ok(counts)
}

fn each_user<T: serde::de::DeserializeOwned>(store: &dyn Store, mut visit: impl FnMut(T)) -> Result<(), StoreError> {
    let (mut from, end) = (tables::USERS.to_vec(), prefix_end(tables::USERS));
    loop {
        let rows = store.range(&from, &end, CHUNK, Order::Ascending)?;
        let Some((last, _)) = rows.last() else { return Ok(()) };
        from = [last.as_slice(), &[0]].concat();
        for (_, row) in &rows {
            visit(tables::decode(row)?);
        }
    }
}
