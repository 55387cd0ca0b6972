//! Users from elsewhere, and for elsewhere: import and export, a JSON object a line.
//!
//! Owns how a line becomes a user and the other way round. A user comes with his password's hash (argon2id, bcrypt,
//! `sha256$salt$hex`) and with his API key in clear, of which a MAC is kept; the hash is replaced at his first login. Lines
//! stand for themselves: one that does not fit is told and the others go on, and a file can be imported again, because who
//! is there already is left alone. Never makes staff, never brings sessions or second factors.

pub mod line;

use std::collections::HashSet;
use std::io::{self, Write};
use std::sync::Arc;

use serde_json::{Value, json};

use super::fields::{email_fault, normalized, username_fault};
use super::keys::{DEFAULT_KEY, NewKey};
use super::plans::canonical_plan;
use super::secrets::Minted;
use super::sessions::close_session;
use super::users::{AdminUpdate, MeterUpdate, apply_update};
use super::{Accounts, ExportTrouble, Forget, MAX_TRIES, legacy, too_busy};
use crate::actors::user::ledger::{self, Account, AccountRow, Command, Recovery, Reply};
use crate::clock::UnixMillis;
use crate::config::Plan;
use crate::domain::csv;
use crate::domain::ids::{StaffId, UserId};
use crate::domain::meters::MeterName;
use crate::domain::user::{Profile, Status, User};
use crate::error::Reject;
use crate::store::{Batch, Order, StoreError, prefix_end, tables};
use line::{Incoming, MAX_LINE_BYTES};

/// Users in one commit, and the most lines of one call.
pub const LINES_AT_ONCE: usize = 250;
/// Rows read at once by an export.
const CHUNK: usize = 500;

/// How an import goes about it.
#[derive(Clone, Copy, Debug, Default)]
pub struct ImportHow {
    /// Says what would be done.
    pub dry_run: bool,
    /// Changes who is there already, instead of leaving him alone.
    pub update: bool,
    /// Who of the staff imports; without a number, the operator.
    pub by: Option<StaffId>,
}

/// What came of an import.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportReport {
    pub imported: u64,
    pub updated: u64,
    /// There already, by name and address.
    pub skipped: u64,
    pub failed: u64,
    /// By the line's number, from 1, what does not fit.
    pub errors: Vec<(u64, Vec<String>)>,
    /// By the line's number, what is not taken over.
    pub notes: Vec<(u64, String)>,
}

impl ImportReport {
    fn fail(&mut self, line: u64, why: Vec<String>) {
        self.failed += 1;
        self.errors.push((line, why));
    }
}

/// The form of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsersFormat {
    JsonLines,
    Csv,
}

impl UsersFormat {
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "jsonl" => Some(Self::JsonLines),
            "csv" => Some(Self::Csv),
            _ => None,
        }
    }
}

/// A line that fits, with what it asks for.
struct Ready {
    line: u64,
    incoming: Incoming,
}

/// Where a line's user stands.
enum Place {
    Free,
    There(UserId),
    Taken(String),
}

impl Accounts {
    /// Imports at most [`LINES_AT_ONCE`] users; `lines` with their numbers in the file. The new ones are in one commit.
    ///
    /// # Errors
    /// [`Reject::Invalid`] for too many lines; [`Reject::StoreUnavailable`]. What does not fit is in the report.
    pub async fn import_users(&self, lines: &[(u64, String)], how: ImportHow) -> Result<ImportReport, Reject> {
        if lines.len() > LINES_AT_ONCE {
            return Err(Reject::Invalid(vec![format!("lines: at most {LINES_AT_ONCE} at once")]));
        }
        let mut report = ImportReport::default();
        let mut ready = Vec::new();
        for (number, text) in lines.iter().filter(|(_, text)| !text.trim().is_empty()) {
            match self.read_line(text) {
                Ok(incoming) => ready.push(Ready { line: *number, incoming }),
                Err(faults) => report.fail(*number, faults),
            }
        }
        for one in &ready {
            report.notes.extend(one.incoming.notes.iter().map(|note| (one.line, (*note).to_owned())));
        }
        let there = self.import_new(&ready, how, &mut report).await?;
        for (id, at) in there {
            if !how.update {
                report.skipped += 1;
                continue;
            }
            let one = &ready[at];
            match if how.dry_run { Ok(()) } else { self.update_from(id, &one.incoming, how.by).await } {
                Ok(()) => report.updated += 1,
                Err(Reject::Invalid(faults)) => report.fail(one.line, faults),
                Err(Reject::Conflict(why)) => report.fail(one.line, vec![why]),
                Err(reject) => return Err(reject),
            }
        }
        report.errors.sort_by_key(|(line, _)| *line);
        Ok(report)
    }

    fn read_line(&self, text: &str) -> Result<Incoming, Vec<String>> {
        if text.len() > MAX_LINE_BYTES {
            return Err(vec![format!("is longer than {MAX_LINE_BYTES} bytes")]);
        }
        let mut incoming = Incoming::read(text)?;
        incoming.username = normalized(&incoming.username);
        incoming.email = normalized(&incoming.email);
        let settings = self.settings();
        let mut faults: Vec<String> =
            [username_fault(&incoming.username), email_fault("email", &incoming.email)].into_iter().flatten().collect();
        faults.extend(incoming.update.faults(&settings));
        if let Some(hash) = &incoming.password_hash {
            faults.extend(self.passwords.judge_hash(hash).err().map(|why| format!("password_hash: {why}")));
        }
        if faults.is_empty()
            && let Err(Reject::Invalid(more)) = self.row_of(&incoming).and_then(|(user, plan)| {
                self.account_from(self.fresh_account(&plan), &incoming)?;
                super::encode_bounded(&user)
            })
        {
            faults.extend(more);
        }
        if faults.is_empty() { Ok(incoming) } else { Err(faults) }
    }

    /// Writes those who are new; answers those who are there, with their place in `ready`.
    async fn import_new(
        &self,
        ready: &[Ready],
        how: ImportHow,
        report: &mut ImportReport,
    ) -> Result<Vec<(UserId, usize)>, Reject> {
        for _ in 0..MAX_TRIES {
            let (mut there, mut new, mut failed) = (Vec::new(), Vec::new(), Vec::new());
            let mut seen = HashSet::new();
            for (at, one) in ready.iter().enumerate() {
                let incoming = &one.incoming;
                let keys = [tables::user_by_name(&incoming.username), tables::user_by_email(&incoming.email)];
                match self.place_of(incoming)? {
                    Place::There(id) => there.push((id, at)),
                    Place::Taken(why) => failed.push((one.line, why)),
                    Place::Free if keys.iter().any(|key| seen.contains(key)) => {
                        failed.push((one.line, "username or email: stands in an earlier line too".into()));
                    }
                    Place::Free => {
                        let mac = incoming.api_key.as_ref().map(|key| self.pepper.mac(key.0.as_bytes()).0.to_vec());
                        if mac.is_some_and(|mac| !seen.insert(mac)) {
                            failed.push((one.line, "api_key: stands in an earlier line too".into()));
                            continue;
                        }
                        seen.extend(keys);
                        new.push(at);
                    }
                }
            }
            if how.dry_run || new.is_empty() || self.write_new(ready, &new).await? {
                report.imported += new.len() as u64;
                failed.into_iter().for_each(|(line, why)| report.fail(line, vec![why]));
                return Ok(there);
            }
        }
        Err(too_busy())
    }

    /// Whether they are on disk; if not, somebody else came first, and it has to be looked at anew.
    async fn write_new(&self, ready: &[Ready], new: &[usize]) -> Result<bool, Reject> {
        let mut batch = Batch::default();
        let first = self.take_numbers("user", new.len() as u64, &mut batch)?;
        let mut ids = Vec::with_capacity(new.len());
        let mut bcrypt = 0;
        for (number, at) in (first..).zip(new) {
            let incoming = &ready[*at].incoming;
            let (mut user, plan) = self.row_of(incoming)?;
            user.id = UserId(number);
            let (by_name, by_email) = (tables::user_by_name(&user.username), tables::user_by_email(&user.email));
            batch.require_absent(by_name.clone()).require_absent(by_email.clone());
            let begun = self.less_what_was_used(&self.fresh_account(&plan), &user.email, &mut batch)?;
            let meters = self.account_from(begun, incoming)?.to_row();
            let encoded = (|| Ok((tables::encode(&user.id)?, tables::encode(&meters)?)))();
            let (id, account) = encoded.map_err(|error: StoreError| self.failed(&error))?;
            batch.put(tables::user(user.id), super::encode_bounded(&user)?).put(by_name, id.clone()).put(by_email, id);
            batch.put(tables::meters(user.id), account);
            let default = NewKey { name: DEFAULT_KEY.into(), ..NewKey::default() };
            match &incoming.api_key {
                Some(given) => self.insert_key(user.id, &default, Minted::again(given.0.clone()), &mut batch)?,
                None => self.add_key(user.id, &default, &mut batch)?,
            };
            bcrypt = bcrypt.max(incoming.password_hash.as_deref().and_then(legacy::bcrypt_cost).unwrap_or(0));
            ids.push(user.id);
        }
        // Before anybody can tell by the time of an answer that there is such a hash.
        self.passwords.expect_bcrypt(bcrypt);
        self.remember_bcrypt().await;
        let (committer, in_force, users) = (self.committer.clone(), self.in_force.clone(), self.users.clone());
        // Goes on to the end when the caller is dropped.
        let task = tokio::spawn(async move {
            committer.commit(batch).await?;
            // Their clients may have shown these keys while they were unknown here.
            users.credentials_came();
            ids.into_iter().try_for_each(|id| in_force.apply(id, Forget::Nothing))
        });
        match task.await.unwrap_or_else(|_| Err(StoreError::Failed("a commit was given up".into()))) {
            Ok(()) => Ok(true),
            Err(StoreError::Conflict { .. }) => Ok(false),
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn place_of(&self, incoming: &Incoming) -> Result<Place, Reject> {
        let by_name = self.load::<UserId>(tables::user_by_name(&incoming.username))?.map(|row| row.value);
        let by_email = self.load::<UserId>(tables::user_by_email(&incoming.email))?.map(|row| row.value);
        let key_taken = || match &incoming.api_key {
            Some(key) => {
                let row = tables::api_key(&self.pepper.mac(key.0.as_bytes()));
                self.store().get(&row).map(|row| row.is_some()).map_err(|error| self.failed(&error))
            }
            None => Ok(false),
        };
        Ok(match (by_name, by_email) {
            (None, None) if key_taken()? => Place::Taken("api_key: is another user's already".into()),
            (None, None) => Place::Free,
            (Some(name), Some(email)) if name == email => Place::There(name),
            (Some(_), _) => Place::Taken("username: is taken, with another email".into()),
            (None, Some(_)) => Place::Taken("email: is registered already, with another username".into()),
        })
    }

    /// The user whom a line makes, without a number.
    fn row_of(&self, incoming: &Incoming) -> Result<(User, Plan), Reject> {
        let settings = self.settings();
        let word = incoming.update.plan.as_deref().unwrap_or(&settings.accounts.default_plan);
        let plan = settings.plan(canonical_plan(word)).ok_or(Reject::Internal)?.clone();
        let name = incoming.update.profile.name.clone().unwrap_or_else(|| incoming.username.clone());
        let created_at = incoming.created_at.unwrap_or_else(|| self.clock.now());
        let names = (Arc::from(incoming.username.as_str()), Arc::from(incoming.email.as_str()));
        let mut user = User {
            status: incoming.status.unwrap_or(Status::Active),
            password_hash: incoming.password_hash.clone(),
            last_login: incoming.last_login,
            must_change_password: incoming.must_change_password.unwrap_or(false),
            ..User::new(names.0, name, names.1, plan.name.clone(), created_at)
        };
        apply_update(&mut user, &incoming.update, None, &mut Batch::default())?;
        // The other system has asked the address.
        user.email_vouched = false;
        Ok((user, plan))
    }

    /// An account with the amounts that a line names.
    fn account_from(&self, mut account: Account, incoming: &Incoming) -> Result<Account, Reject> {
        for (meter, update) in meters_of(incoming) {
            let set = Command::Set { meter: &meter, balance: update.balance, reset: update.reset, period: None };
            // As in `fresh_account`: nobody has an actor yet.
            let hour = self.users.around().reset_hour;
            let (reply, _) = ledger::step(&mut account, self.clock.now(), hour, Recovery::Charge, set);
            if reply == Reply::OutOfRange {
                return Err(Reject::Invalid(vec![format!("{meter}: the amount is too large")]));
            }
        }
        Ok(account)
    }

    async fn update_from(&self, id: UserId, incoming: &Incoming, by: Option<StaffId>) -> Result<(), Reject> {
        let update = AdminUpdate { credits: None, conversations: None, ..incoming.update.clone() };
        self.update_user_telling(id, update, by).await?;
        let edit = |user: &mut User, batch: &mut Batch| {
            super::users::refuse_deleted(user)?;
            user.status = incoming.status.unwrap_or(user.status);
            user.created_at = incoming.created_at.unwrap_or(user.created_at);
            user.last_login = user.last_login.max(incoming.last_login);
            user.must_change_password = incoming.must_change_password.unwrap_or(user.must_change_password);
            if let Some(hash) = &incoming.password_hash {
                if user.password_hash.as_ref() != Some(hash) {
                    user.wait_for_proof(by, user.proved_address().map(str::to_owned), self.clock.now());
                }
                user.password_hash = Some(hash.clone());
                self.forget_links(id, batch)?;
                for (mac, session) in self.load_sessions(id)? {
                    close_session(&mac, &session, batch);
                }
            }
            Ok(())
        };
        self.change_user(id, Forget::Credentials, edit).await?;
        let actor = self.actor(id)?;
        for (meter, update) in meters_of(incoming) {
            let set = Command::Set { meter: &meter, balance: update.balance, reset: update.reset, period: None };
            let answer = actor.ask(set).map_err(|_| Reject::Internal)?;
            self.committer.wait(answer.epoch).await.map_err(|error| self.failed(&error))?;
        }
        Ok(())
    }

    /// Writes all users who are not deleted, in the order of their numbers, as lines that can be imported elsewhere, or as a
    /// table. Password hashes are left out unless `hashes`; keys are never in it. Blocks.
    ///
    /// # Errors
    /// The store's or the writer's.
    pub fn export_users(&self, format: UsersFormat, hashes: bool, out: &mut impl Write) -> Result<u64, ExportTrouble> {
        if format == UsersFormat::Csv {
            let columns = COLUMNS.iter().copied().chain(Profile::FIELDS).chain(["credits", "conversations"]);
            out.write_all(csv::line(columns).as_bytes())?;
        }
        let (mut from, end) = (tables::USERS.to_vec(), prefix_end(tables::USERS));
        let mut written = 0;
        loop {
            let rows = self.store().range(&from, &end, CHUNK, Order::Ascending)?;
            let Some((last, _)) = rows.last() else { return Ok(written) };
            from = [last.as_slice(), &[0]].concat();
            for (_, raw) in &rows {
                let user: User = tables::decode(raw)?;
                if user.status == Status::Deleted {
                    continue;
                }
                let account = self.account_as_it_is(user.id)?;
                match format {
                    UsersFormat::JsonLines => write_line(&user, &account, hashes, out)?,
                    UsersFormat::Csv => write_row(&user, &account, out)?,
                }
                written += 1;
            }
        }
    }

    /// A user's account without waking his actor.
    fn account_as_it_is(&self, id: UserId) -> Result<Account, StoreError> {
        if let Some(actor) = self.users.live_actor(id) {
            return Ok(actor.account_as_it_is());
        }
        let row = tables::read::<AccountRow>(self.store(), &tables::meters(id))?;
        Ok(row.map(Account::from_row).unwrap_or_default())
    }
}

fn meters_of(incoming: &Incoming) -> Vec<(MeterName, MeterUpdate)> {
    let named = [("credits", incoming.update.credits), ("conversations", incoming.update.conversations)];
    let named = named.into_iter().filter_map(|(name, update)| Some((MeterName::parse(name)?, update?)));
    named.chain(incoming.meters.iter().cloned()).collect()
}

const COLUMNS: [&str; 11] = [
    "id",
    "username",
    "email",
    "name",
    "user_type",
    "role",
    "status",
    "verification",
    "plan",
    "created_at",
    "last_login",
];

fn write_line(user: &User, account: &Account, hashes: bool, out: &mut impl Write) -> io::Result<()> {
    let meters: serde_json::Map<String, Value> = account
        .meters()
        .map(|(name, meter)| {
            (name.to_string(), json!({"balance": meter.balance.to_json(), "reset": meter.reset.to_json()}))
        })
        .collect();
    let mut profile = serde_json::to_value(&user.profile).unwrap_or_default();
    if let Some(preferences) = user.profile.preferences.as_deref().and_then(|text| serde_json::from_str(text).ok()) {
        profile["preferences"] = preferences;
    }
    let mut line = json!({
        "id": user.id.0, "username": user.username, "email": user.email, "name": user.name,
        "user_type": user.user_type.as_str(), "role": user.role.as_str(), "status": user.status.as_str(),
        "verification": user.verification().as_str(), "plan": user.plan, "created_at": user.created_at.rfc3339(),
        "last_login": user.last_login.map(UnixMillis::rfc3339), "about_me": user.about_me, "hobbies": user.hobbies,
        "level": user.level, "access_rtype": user.access_rtype, "additional_notes": user.additional_notes,
        "log_conversations": user.log_conversations, "must_change_password": user.must_change_password,
        "profile": profile, "meters": meters,
    });
    if hashes && let Some(hash) = &user.password_hash {
        line["password_hash"] = hash.as_str().into();
    }
    writeln!(out, "{line}")
}

fn write_row(user: &User, account: &Account, out: &mut impl Write) -> io::Result<()> {
    let balance = |name: &str| {
        let meter = account.meters().find(|(meter, _)| meter.as_str() == name);
        meter.map_or(String::new(), |(_, meter)| meter.balance.to_string())
    };
    let (id, made) = (user.id.to_string(), user.created_at.rfc3339());
    let seen = user.last_login.map_or(String::new(), UnixMillis::rfc3339);
    let (credits, conversations) = (balance("credits"), balance("conversations"));
    let mut profile = user.profile.clone();
    let fields: Vec<String> = Profile::FIELDS
        .iter()
        .map(|name| profile.field_mut(name).and_then(|field| field.take()).unwrap_or_default())
        .collect();
    let cells = [
        id.as_str(),
        &user.username,
        &user.email,
        &user.name,
        user.user_type.as_str(),
        user.role.as_str(),
        user.status.as_str(),
        user.verification().as_str(),
        &user.plan,
        &made,
        &seen,
    ];
    let cells = cells.into_iter().chain(fields.iter().map(String::as_str)).chain([credits.as_str(), &conversations]);
    out.write_all(csv::line(cells).as_bytes())
}
