//! One-time login codes: lists that staff gives to users, of which each code opens one login together with the password.
//!
//! Owns the lists (`cb/`), which are two numbers each, and the marks of codes that were used (`cu/`), a bit each. Codes are
//! computed from their numbers under a key made of the pepper ([`crate::domain::codes`]): no code is ever stored, a million
//! of them take one row until they are used, and 125 KB when all are. The price is that whoever has the pepper and the
//! store can compute all of them. A code is marked in the commit that opens its session: it opens one or none.

use std::collections::BTreeMap;
use std::io::Write;

use serde::{Deserialize, Serialize};
use tokio::sync::MutexGuard;

use super::blocks::Guess;
use super::guesses::Door;
use super::secrets::Prf;
use super::users::refuse_deleted;
use super::{Accounts, ExportTrouble, Forget, LOGIN_TURNS, Loaded, MAX_TRIES, too_busy};
use crate::clock::UnixMillis;
use crate::domain::codes::{CodeLength, UniqueCode};
use crate::domain::csv;
use crate::domain::ids::{SecretMac, UserId};
use crate::domain::user::{Status, User};
use crate::error::Reject;
use crate::store::{Batch, Order, Store, StoreError, prefix_end, tables};
use crate::telemetry::metrics::Login;

/// Lists that one user may have.
pub const MAX_LISTS: usize = 1000;
pub const MAX_CATEGORY_CHARS: usize = 100;
/// Marks in one row: 2 KiB.
const PAGE_CODES: u64 = 2048 * 8;
/// Rows read at once.
const CHUNK: usize = 1000;
/// Users given a list in one commit.
const USERS_AT_ONCE: usize = 200;
/// The sequence of the lists' numbers.
const LIST_COUNTER: &str = "code-list";

/// A list of codes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CodeList {
    pub id: u64,
    /// The number of its first code; those of the others follow.
    first: u64,
    pub count: u64,
    pub length: CodeLength,
    pub created_at: UnixMillis,
    pub expires_at: Option<UnixMillis>,
    pub category: Option<String>,
    pub used: u64,
}

impl CodeList {
    fn is_over(&self, now: UnixMillis) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// Where in the list a number is.
    fn place_of(&self, number: u128) -> Option<u64> {
        let place = u64::try_from(number).ok()?.checked_sub(self.first)?;
        (place < self.count).then_some(place)
    }
}

/// What a list is to be.
#[derive(Clone, Debug, Default)]
pub struct NewCodes {
    pub count: u64,
    pub expires_at: Option<UnixMillis>,
    pub category: Option<String>,
}

/// Counts of codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CodeStats {
    pub total: u64,
    pub used: u64,
    /// Not used, and too old.
    pub expired: u64,
}

impl CodeStats {
    pub fn available(self) -> u64 {
        self.total - self.used - self.expired
    }

    pub fn percent_used(self) -> f64 {
        if self.total == 0 { 0.0 } else { self.used as f64 * 100.0 / self.total as f64 }
    }

    fn add(&mut self, list: &CodeList, now: UnixMillis) {
        self.total += list.count;
        self.used += list.used;
        self.expired += if list.is_over(now) { list.count - list.used } else { 0 };
    }
}

/// Counts over all users.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllCodeStats {
    pub codes: CodeStats,
    /// Users who have any.
    pub users: u64,
}

/// Which code a login has used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsedCode {
    pub list: u64,
    /// From 1.
    pub place: u64,
}

/// The form of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodesFormat {
    Csv,
    Json,
}

impl CodesFormat {
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "csv" => Some(Self::Csv),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

impl Accounts {
    fn code_prf(&self, length: CodeLength) -> Prf {
        self.pepper.prf_in("login codes", &[length.digits()])
    }

    fn judge_codes(&self, new: &NewCodes) -> Result<(), Reject> {
        let most = self.settings().accounts.codes.max_per_user;
        let category = |text: &String| {
            (1..=MAX_CATEGORY_CHARS).contains(&text.chars().count()) && !text.chars().any(char::is_control)
        };
        let faults = [
            (!(1..=most).contains(&new.count)).then(|| format!("count: 1 to {most} (accounts.codes.max_per_user)")),
            new.expires_at.is_some_and(|at| at <= self.clock.now()).then(|| "expires_at: must be in the future".into()),
            (!new.category.as_ref().is_none_or(category))
                .then(|| format!("category: 1 to {MAX_CATEGORY_CHARS} printable characters")),
        ];
        let faults: Vec<String> = faults.into_iter().flatten().collect();
        if faults.is_empty() { Ok(()) } else { Err(Reject::Invalid(faults)) }
    }

    /// Gives a user a list of codes: all of them or none. They are shown by [`Accounts::write_codes`].
    ///
    /// # Errors
    /// [`Reject::Invalid`]; [`Reject::Conflict`] when he would have too many; [`Reject::NotFound`].
    pub async fn generate_codes(&self, user: UserId, new: NewCodes) -> Result<CodeList, Reject> {
        self.judge_codes(&new)?;
        for _ in 0..MAX_TRIES {
            let row = self.live_user(Some(user))?.ok_or(Reject::NotFound)?;
            let mut batch = row.unchanged();
            self.while_no_list_is_made(&mut batch)?;
            let lists = self.code_lists(user)?;
            let most = self.settings().accounts.codes.max_per_user;
            let present: u64 = lists.iter().map(|list| list.value.count).sum();
            if present.saturating_add(new.count) > most || lists.len() >= MAX_LISTS {
                return Err(Reject::Conflict(format!(
                    "There are {present} codes in {} lists already; at most {most} in {MAX_LISTS}: revoke some first",
                    lists.len()
                )));
            }
            let list = self.add_codes(&[user], &new, &mut batch)?.pop().ok_or(Reject::Internal)?;
            match self.commit_for_user(user, batch, Forget::Nothing).await {
                Ok(()) => return Ok(list),
                Err(error) => self.judge_conflict(&error)?,
            }
        }
        Err(too_busy())
    }

    /// Gives every active user who has room for it a list of his own; says to how many. Each user's list is all or
    /// nothing; when it breaks off, those who have theirs keep it.
    ///
    /// # Errors
    /// As [`Accounts::generate_codes`].
    pub async fn generate_codes_for_all(&self, new: NewCodes) -> Result<u64, Reject> {
        self.judge_codes(&new)?;
        let most = self.settings().accounts.codes.max_per_user;
        let (mut next, mut done) = (1, 0);
        loop {
            let (committer, from) = (self.committer.clone(), tables::user(UserId(next)));
            let read =
                move || committer.store().range(&from, &prefix_end(tables::USERS), USERS_AT_ONCE, Order::Ascending);
            let rows = self.reading(read).await?;
            let Some(last) = rows.last().and_then(|(key, _)| tables::trailing_id(key)) else { return Ok(done) };
            next = last + 1;
            let keys = rows.into_iter().map(|(key, _)| key).collect();
            done += self.generate_codes_for(keys, &new, most).await?;
        }
    }

    /// A list for each of those users whose rows these are, as far as they have room for it; says for how many.
    async fn generate_codes_for(&self, keys: Vec<Vec<u8>>, new: &NewCodes, most: u64) -> Result<u64, Reject> {
        for _ in 0..MAX_TRIES {
            let mut batch = Batch::default();
            self.while_no_list_is_made(&mut batch)?;
            let (committer, keys, count) = (self.committer.clone(), keys.clone(), new.count);
            let read = move || {
                let mut fitting = Vec::new();
                for key in keys {
                    // As he is in this try: somebody who has just been deleted gets no list.
                    let Some(row) = committer.store().get(&key)? else { continue };
                    let user: User = tables::decode(&row)?;
                    let lists = code_lists(committer.store(), user.id)?;
                    let present: u64 = lists.iter().map(|list| list.value.count).sum();
                    if user.status == Status::Active && present + count <= most && lists.len() < MAX_LISTS {
                        fitting.push((user.id, key, row));
                    }
                }
                Ok(fitting)
            };
            let fitting = self.reading(read).await?;
            if fitting.is_empty() {
                return Ok(0);
            }
            let users: Vec<UserId> = fitting.iter().map(|(id, _, _)| *id).collect();
            for (_, key, row) in fitting {
                batch.require_equal(key, row);
            }
            self.add_codes(&users, new, &mut batch)?;
            match self.committer.commit(batch).await {
                Ok(_) => return Ok(users.len() as u64),
                Err(error) => self.judge_conflict(&error)?,
            }
        }
        Err(too_busy())
    }

    /// Lets a batch through only if no list is made meanwhile: whoever makes one takes a number for it. To be called before
    /// the lists that there are are looked at, so that two at once do not both fit.
    fn while_no_list_is_made(&self, batch: &mut Batch) -> Result<(), Reject> {
        let key = tables::counter(LIST_COUNTER);
        match self.store().get(&key).map_err(|error| self.failed(&error))? {
            Some(value) => batch.require_equal(key, value),
            None => batch.require_absent(key),
        };
        Ok(())
    }

    /// Takes numbers for a list each, which nobody else has or will have.
    fn add_codes(&self, users: &[UserId], new: &NewCodes, batch: &mut Batch) -> Result<Vec<CodeList>, Reject> {
        let length = self.settings().accounts.codes.length;
        let each = (users.len() as u64).checked_mul(new.count).ok_or(Reject::Internal)?;
        let numbers = self.take_numbers(&format!("codes-{}", length.digits()), each, batch)?;
        let ids = self.take_numbers(LIST_COUNTER, users.len() as u64, batch)?;
        let list = |(at, user): (usize, &UserId)| {
            let list = CodeList {
                id: ids + at as u64,
                first: numbers + at as u64 * new.count,
                count: new.count,
                length,
                created_at: self.clock.now(),
                expires_at: new.expires_at,
                category: new.category.clone(),
                used: 0,
            };
            batch.put(tables::code_list(*user, list.id), super::encode_bounded(&list)?);
            Ok(list)
        };
        users.iter().enumerate().map(list).collect()
    }

    fn code_lists(&self, user: UserId) -> Result<Vec<Loaded<CodeList>>, Reject> {
        code_lists(self.store(), user).map_err(|error| self.failed(&error))
    }

    /// A user's lists, oldest first.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`].
    pub fn codes_of(&self, user: UserId) -> Result<Vec<CodeList>, Reject> {
        Ok(self.code_lists(user)?.into_iter().map(|row| row.value).collect())
    }

    /// Counts of a user's codes.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`].
    pub fn code_stats(&self, user: UserId) -> Result<CodeStats, Reject> {
        let (mut stats, now) = (CodeStats::default(), self.clock.now());
        self.code_lists(user)?.iter().for_each(|list| stats.add(&list.value, now));
        Ok(stats)
    }

    /// Counts over all users.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`].
    pub async fn all_code_stats(&self) -> Result<AllCodeStats, Reject> {
        let (committer, now) = (self.committer.clone(), self.clock.now());
        let read = move || {
            let (mut all, mut before) = (AllCodeStats::default(), None);
            let (mut from, end) = (tables::CODE_LISTS.to_vec(), prefix_end(tables::CODE_LISTS));
            loop {
                let rows = committer.store().range(&from, &end, CHUNK, Order::Ascending)?;
                let Some((last, _)) = rows.last() else { return Ok(all) };
                from = [last.as_slice(), &[0]].concat();
                for (key, row) in &rows {
                    let user = tables::parse_code_list(key);
                    all.users += u64::from(user != before);
                    before = user;
                    all.codes.add(&tables::decode(row)?, now);
                }
            }
        };
        self.reading(read).await
    }

    /// Takes lists away, all or one; none of their codes opens anything when this returns. Says how many codes went.
    ///
    /// # Errors
    /// [`Reject::NotFound`] for a list that is not there.
    pub async fn revoke_codes(&self, user: UserId, list: Option<u64>) -> Result<u64, Reject> {
        for _ in 0..MAX_TRIES {
            let row = self.load::<User>(tables::user(user))?.ok_or(Reject::NotFound)?;
            refuse_deleted(&row.value)?;
            let mut batch = Batch::default();
            let mut gone = 0;
            for found in self.code_lists(user)?.into_iter().filter(|row| list.is_none_or(|id| row.value.id == id)) {
                gone += found.value.count;
                batch.require_equal(found.key.clone(), found.raw).delete(found.key);
                self.drop_marks(&tables::used_codes_of(user, found.value.id), &mut batch)?;
            }
            if list.is_some() && gone == 0 {
                return Err(Reject::NotFound);
            }
            match self.committer.commit(batch).await {
                Ok(_) => return Ok(gone),
                Err(error) => self.judge_conflict(&error)?,
            }
        }
        Err(too_busy())
    }

    /// Removes everything about a user's codes; his deletion's.
    pub(super) fn drop_codes(&self, user: UserId, batch: &mut Batch) -> Result<(), Reject> {
        for list in self.code_lists(user)? {
            batch.delete(list.key);
        }
        self.drop_marks(&tables::used_codes(user), batch)
    }

    fn drop_marks(&self, prefix: &[u8], batch: &mut Batch) -> Result<(), Reject> {
        let (mut from, end) = (prefix.to_vec(), prefix_end(prefix));
        loop {
            let rows = self.store().range(&from, &end, CHUNK, Order::Ascending).map_err(|error| self.failed(&error))?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            from = [last.as_slice(), &[0]].concat();
            for (key, _) in rows {
                batch.delete(key);
            }
        }
    }

    /// Whether a user whose password was right must bring a code.
    pub(super) fn wants_code(&self, user: UserId) -> Result<bool, Reject> {
        Ok(self.settings().accounts.codes.required && !self.code_lists(user)?.is_empty())
    }

    /// The turn in which somebody tries a code: one person's codes are tried one after the other, so that parallel guesses
    /// cannot outrun their count. `None` for a login without a code, where that is allowed.
    ///
    /// # Errors
    /// [`Reject::UniqueCodeRequired`], [`Reject::Locked`] after too many wrong ones, [`Reject::AddressBlocked`].
    pub(super) async fn code_turn(
        &self,
        user: UserId,
        text: Option<&str>,
        door: Door,
    ) -> Result<Option<CodeTurn<'_>>, Reject> {
        let Some(text) = text.map(str::trim).filter(|text| !text.is_empty()) else {
            return if self.wants_code(user)? { Err(Reject::UniqueCodeRequired) } else { Ok(None) };
        };
        let subject = self.pepper.mac_in("login code of", &user.0.to_be_bytes());
        let turn = self.factor_turns[usize::from(subject.0[0]) % LOGIN_TURNS].lock().await;
        self.refuse_blocked(door)?;
        if let Some(retry_after) = self.factor_failures.blocked_for(&subject, self.clock.monotonic()) {
            self.metrics.login(Login::Locked);
            return Err(Reject::Locked { retry_after });
        }
        Ok(Some(CodeTurn { code: UniqueCode::parse(text), subject, door, _turn: turn }))
    }

    /// Marks a code as used in the batch that opens a session.
    ///
    /// # Errors
    /// [`Reject::WrongCode`] for one that is not this user's, too old, or used.
    pub(super) fn use_unique_code(
        &self,
        user: UserId,
        turn: &CodeTurn<'_>,
        batch: &mut Batch,
    ) -> Result<UsedCode, Reject> {
        let lists = self.code_lists(user)?;
        let found = turn.code.and_then(|code| {
            let prf = self.code_prf(code.length());
            let number = code.number(|round, half| prf.bits(round, half));
            let mut fitting = lists.iter().filter(|list| list.value.length == code.length());
            fitting.find_map(|list| Some((list, list.value.place_of(number)?)))
        });
        let Some((list, place)) = found else {
            self.factor_failures.failed(turn.subject, self.clock.monotonic());
            self.count_guess(turn.door, Guess::Code)?;
            self.metrics.login(Login::Failed);
            return Err(Reject::WrongCode);
        };
        let page = tables::used_page(user, list.value.id, (place / PAGE_CODES) as u32);
        let (byte, bit) = ((place % PAGE_CODES / 8) as usize, 1u8 << (place % 8));
        let raw = self.store().get(&page).map_err(|error| self.failed(&error))?;
        let mut marks = match &raw {
            Some(raw) => tables::decode_bytes(raw).map_err(|error| self.failed(&error))?.to_vec(),
            None => Vec::new(),
        };
        // Only as long as it must be: a page with one code used at its beginning is a few bytes.
        if marks.len() <= byte {
            marks.resize(byte + 1, 0);
        }
        // Whoever brings one that was good once does not guess: he locks nobody out.
        if marks[byte] & bit != 0 || list.value.is_over(self.clock.now()) {
            self.metrics.login(Login::Failed);
            return Err(Reject::WrongCode);
        }
        marks[byte] |= bit;
        match raw {
            Some(raw) => batch.require_equal(page.clone(), raw),
            None => batch.require_absent(page.clone()),
        };
        batch.put(page, tables::encode_bytes(&marks));
        let counted = CodeList { used: list.value.used + 1, ..list.value.clone() };
        batch.require_equal(list.key.clone(), list.raw.clone());
        batch.put(list.key.clone(), super::encode_bounded(&counted)?);
        Ok(UsedCode { list: list.value.id, place: place + 1 })
    }

    /// Forgets wrong codes of somebody who has brought a right one.
    pub(super) fn code_succeeded(&self, turn: &CodeTurn<'_>) {
        self.factor_failures.succeeded(&turn.subject);
    }

    /// Writes a user's codes, oldest first, used ones included. Blocks: it computes some hundred thousand a second.
    ///
    /// # Errors
    /// The store's or the writer's.
    pub fn write_codes(&self, user: UserId, format: CodesFormat, out: &mut impl Write) -> Result<u64, ExportTrouble> {
        let from = tables::code_lists(user);
        let rows = self.store().range(&from, &prefix_end(&from), 2 * MAX_LISTS, Order::Ascending)?;
        match format {
            CodesFormat::Csv => {
                out.write_all(csv::line(["code", "generated_at", "used", "expires_at", "category"]).as_bytes())?;
            }
            CodesFormat::Json => out.write_all(b"[")?,
        }
        let mut written = 0u64;
        for (_, raw) in rows {
            let list: CodeList = tables::decode(&raw)?;
            let prf = self.code_prf(list.length);
            let (made, ends) = (list.created_at.rfc3339(), list.expires_at.map(UnixMillis::rfc3339));
            let marks = self.marks_of(user, list.id)?;
            for place in 0..list.count {
                let (page, byte) = (place / PAGE_CODES, (place % PAGE_CODES / 8) as usize);
                let bits = marks.get(&(page as u32)).and_then(|page| page.get(byte)).copied().unwrap_or(0);
                let used = bits & (1 << (place % 8)) != 0;
                let code = UniqueCode::of_number(list.first + place, list.length, |round, half| prf.bits(round, half));
                match format {
                    CodesFormat::Csv => {
                        let (ends, category) = (ends.as_deref().unwrap_or(""), list.category.as_deref().unwrap_or(""));
                        let used = if used { "1" } else { "0" };
                        out.write_all(csv::line([code.text().as_str(), &made, used, ends, category]).as_bytes())?;
                    }
                    CodesFormat::Json => {
                        let item = serde_json::json!({
                            "code": code.text(), "generated_at": made, "used": used, "expires_at": ends,
                            "category": list.category,
                        });
                        write!(out, "{}{item}", if written == 0 { "\n" } else { ",\n" })?;
                    }
                }
                written += 1;
            }
        }
        if format == CodesFormat::Json {
            out.write_all(b"\n]\n")?;
        }
        Ok(written)
    }

    fn marks_of(&self, user: UserId, list: u64) -> Result<BTreeMap<u32, Vec<u8>>, StoreError> {
        let prefix = tables::used_codes_of(user, list);
        let (mut from, end) = (prefix.clone(), prefix_end(&prefix));
        let mut marks = BTreeMap::new();
        loop {
            let rows = self.store().range(&from, &end, CHUNK, Order::Ascending)?;
            let Some((last, _)) = rows.last() else { return Ok(marks) };
            from = [last.as_slice(), &[0]].concat();
            for (key, raw) in &rows {
                let page = key.last_chunk::<4>().map_or(0, |page| u32::from_be_bytes(*page));
                marks.insert(page, tables::decode_bytes(raw)?.to_vec());
            }
        }
    }
}

/// Somebody's turn to try a code.
pub(super) struct CodeTurn<'a> {
    /// `None` when what was sent cannot be a code.
    code: Option<UniqueCode>,
    subject: SecretMac,
    door: Door,
    _turn: MutexGuard<'a, ()>,
}

fn code_lists(store: &dyn Store, user: UserId) -> Result<Vec<Loaded<CodeList>>, StoreError> {
    let from = tables::code_lists(user);
    // More than the most: two lists at once may go over it together in a restored store.
    let rows = store.range(&from, &prefix_end(&from), 2 * MAX_LISTS, Order::Ascending)?;
    rows.into_iter().map(|(key, raw)| tables::decode(&raw).map(|value| Loaded { key, raw, value })).collect()
}
