//! The directory: all users in memory, as far as lists and counts need them.
//!
//! Owns an index that is read from the store in the background at the start and kept by every commit of a user's row, at the
//! one place where rows are put in force. About 130 bytes a user. A sort picks its page instead of ordering everything. Until it
//! is whole, lists come from the store. Never the truth: pages are numbers, and the rows themselves are read from the store.

mod texts;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use memchr::memmem;
use parking_lot::RwLock;

use self::texts::{Texts, make_room};
use crate::clock::UnixMillis;
use crate::domain::ids::UserId;
use crate::domain::user::{Role, Status, User, UserType, Verification};

/// Between the fields of a user's text; no field has it.
const FIELD_END: u8 = 0;

/// One user, without his text.
#[derive(Clone, Copy)]
struct Entry {
    /// Where his text begins: username, name and email in lower case.
    start: u32,
    name_at: u16,
    email_at: u16,
    len: u16,
    plan: u16,
    status: Status,
    role: Role,
    verification: Verification,
    user_type: UserType,
    has_mfa: bool,
    created_at: UnixMillis,
    last_login: UnixMillis,
}

#[derive(Default)]
struct State {
    /// By user number, from 1.
    entries: Vec<Option<Entry>>,
    texts: Texts,
    plans: Vec<String>,
    plan_numbers: HashMap<String, u16>,
    dead_bytes: usize,
    users: u64,
    /// While the store is being read: who has been put in force since, and is newer than what was read.
    newer: HashSet<u64>,
}

/// What a list of users is asked for.
#[derive(Clone, Debug, Default)]
pub struct UserQuery {
    /// Part of a username, name or email, without case.
    pub search: Option<String>,
    /// The search looks at usernames and names alone: for who may not see addresses, and must not find them out by asking.
    pub names_only: bool,
    pub status: Option<Status>,
    pub plan: Option<String>,
    pub role: Option<Role>,
    pub verified: Option<bool>,
    pub user_type: Option<UserType>,
    pub has_mfa: Option<bool>,
    pub created_after: Option<UnixMillis>,
    pub created_before: Option<UnixMillis>,
    pub sort: Sort,
    pub descending: bool,
}

impl UserQuery {
    /// Whether the store itself could answer it.
    pub fn is_plain(&self) -> bool {
        let Self {
            search: _,
            names_only: _,
            status,
            plan,
            role,
            verified,
            user_type,
            has_mfa,
            created_after,
            created_before,
            sort,
            descending,
        } = self;
        status.is_none()
            && plan.is_none()
            && role.is_none()
            && verified.is_none()
            && user_type.is_none()
            && has_mfa.is_none()
            && created_after.is_none()
            && created_before.is_none()
            && *sort == Sort::Id
            && !descending
    }
}

/// What a list is ordered by; equals by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    #[default]
    Id,
    Username,
    Name,
    Email,
    CreatedAt,
    LastLogin,
}

impl Sort {
    pub const NAMES: &str =
        "id, username, name, email, created_at, last_login; with - before it from the last to the first";

    /// With `-` before it: from the last to the first.
    pub fn parse(text: &str) -> Option<(Self, bool)> {
        let (name, descending) = text.strip_prefix('-').map_or((text, false), |name| (name, true));
        let sort = match name {
            "id" => Self::Id,
            "username" => Self::Username,
            "name" => Self::Name,
            "email" => Self::Email,
            "created_at" => Self::CreatedAt,
            "last_login" => Self::LastLogin,
            _ => return None,
        };
        Some((sort, descending))
    }
}

/// Counts over all users.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub by_status: BTreeMap<&'static str, u64>,
    pub by_plan: BTreeMap<String, u64>,
    pub by_verification: BTreeMap<&'static str, u64>,
    pub total: u64,
    pub verified: u64,
    /// Registered in the last day, 7 and 30 days; those deleted since included.
    pub registered: [u64; 3],
}

#[derive(Default)]
pub struct Directory {
    state: RwLock<State>,
    is_whole: AtomicBool,
    build_ms: AtomicU64,
}

impl State {
    fn put(&mut self, user: &User) {
        let Ok(number) = u32::try_from(user.id.0) else { return };
        let at = number as usize - usize::from(number > 0);
        if self.entries.len() <= at {
            let more = at + 1 - self.entries.len();
            make_room(&mut self.entries, more);
            self.entries.resize(at + 1, None);
        }
        let plan = match self.plan_numbers.get(&*user.plan) {
            Some(plan) => *plan,
            None => {
                let plan = u16::try_from(self.plans.len()).unwrap_or(u16::MAX);
                self.plans.push(user.plan.to_string());
                self.plan_numbers.insert(user.plan.to_string(), plan);
                plan
            }
        };
        let fields = [user.username.to_lowercase(), user.name.to_lowercase(), user.email.to_lowercase()];
        let text = joined(&fields);
        let old = self.entries[at];
        // Most changes leave the text as it is.
        let start = match old.filter(|old| self.text(old) == text) {
            Some(old) => old.start,
            None => {
                let Some(start) = self.texts.add(number, &text) else { return };
                self.dead_bytes += old.map_or(0, |old| usize::from(old.len));
                start
            }
        };
        let name_at = (fields[0].len() + 1) as u16;
        self.users += u64::from(old.is_none());
        self.entries[at] = Some(Entry {
            start,
            name_at,
            email_at: name_at + fields[1].len() as u16 + 1,
            len: text.len() as u16,
            plan,
            status: user.status,
            role: user.role,
            verification: user.verification(),
            user_type: user.user_type,
            has_mfa: user.mfa_enabled,
            created_at: user.created_at,
            last_login: user.last_login.unwrap_or_default(),
        });
        if self.dead_bytes > 1 << 20 && self.dead_bytes * 2 > self.texts.len() {
            self.compact();
        }
    }

    /// Leaves out the texts that were replaced.
    fn compact(&mut self) {
        let old = std::mem::take(&mut self.texts);
        self.dead_bytes = 0;
        for (at, entry) in self.entries.iter_mut().enumerate() {
            let Some(entry) = entry else { continue };
            let text = old.get(entry.start, entry.len);
            // There is room: they are fewer than they were.
            entry.start = self.texts.add(at as u32 + 1, text).unwrap_or_default();
        }
    }

    fn text(&self, entry: &Entry) -> &[u8] {
        self.texts.get(entry.start, entry.len)
    }

    fn entry(&self, number: u32) -> Option<&Entry> {
        self.entries.get((number as usize).checked_sub(1)?)?.as_ref()
    }

    /// The numbers of those whose text has it, ascending.
    fn search(&self, text: &str) -> Vec<u32> {
        let is_current = |start, number| self.entry(number).is_some_and(|entry| entry.start == start);
        let mut found = self.texts.search(text.to_lowercase().as_bytes(), is_current);
        found.sort_unstable();
        found
    }

    fn lets_through(&self, query: &UserQuery, plan: Option<u16>, entry: &Entry) -> bool {
        query.status.is_none_or(|status| entry.status == status)
            && (query.plan.is_none() || plan == Some(entry.plan))
            && query.role.is_none_or(|role| entry.role == role)
            && query.verified.is_none_or(|verified| (entry.verification >= Verification::EmailVerified) == verified)
            && query.user_type.is_none_or(|kind| entry.user_type == kind)
            && query.has_mfa.is_none_or(|has| entry.has_mfa == has)
            && query.created_after.is_none_or(|at| entry.created_at >= at)
            && query.created_before.is_none_or(|at| entry.created_at < at)
    }

    fn field(&self, entry: &Entry, sort: Sort) -> &[u8] {
        let text = self.text(entry);
        let (from, to) = match sort {
            Sort::Name => (entry.name_at, entry.email_at),
            Sort::Email => (entry.email_at, entry.len),
            _ => (0, entry.name_at),
        };
        &text[usize::from(from)..usize::from(to)]
    }

    /// What orders an entry almost always by itself.
    fn key(&self, number: u32, sort: Sort) -> u128 {
        let Some(entry) = self.entry(number) else { return 0 };
        match sort {
            Sort::Id => u128::from(number),
            Sort::CreatedAt => u128::from(entry.created_at.0),
            Sort::LastLogin => u128::from(entry.last_login.0),
            Sort::Username | Sort::Name | Sort::Email => {
                let field = self.field(entry, sort);
                let mut head = [0; 16];
                let length = field.len().min(16);
                head[..length].copy_from_slice(&field[..length]);
                u128::from_be_bytes(head)
            }
        }
    }
}

fn joined(fields: &[String]) -> Vec<u8> {
    fields.iter().flat_map(|field| field.bytes().chain([FIELD_END])).collect()
}

impl Directory {
    /// Takes a user as he is now.
    pub fn put(&self, user: &User) {
        let mut state = self.state.write();
        if !self.is_whole.load(Ordering::Acquire) {
            state.newer.insert(user.id.0);
        }
        state.put(user);
    }

    /// Takes users as they were read from the store, which may be older than what [`Directory::put`] has brought since.
    pub fn put_read(&self, users: &[User]) {
        let mut state = self.state.write();
        for user in users {
            if !state.newer.contains(&user.id.0) {
                state.put(user);
            }
        }
    }

    /// All of the store has been read.
    pub fn finish(&self, took_ms: u64) {
        self.state.write().newer = HashSet::new();
        self.build_ms.store(took_ms, Ordering::Relaxed);
        self.is_whole.store(true, Ordering::Release);
    }

    pub fn is_whole(&self) -> bool {
        self.is_whole.load(Ordering::Acquire)
    }

    /// Users, bytes and the milliseconds that the reading took.
    pub fn size(&self) -> (u64, u64, u64) {
        let state = self.state.read();
        let bytes = state.texts.size() + state.entries.capacity() * size_of::<Option<Entry>>();
        (state.users, bytes as u64, self.build_ms.load(Ordering::Relaxed))
    }

    /// The numbers of one page of those that a query lets through, and how many there are.
    pub fn find(&self, query: &UserQuery, skip: usize, limit: usize) -> (Vec<UserId>, u64) {
        let state = self.state.read();
        let plan = query.plan.as_ref().and_then(|plan| state.plan_numbers.get(plan)).copied();
        let fits = |number: &u32| state.entry(*number).is_some_and(|entry| state.lets_through(query, plan, entry));
        let numbers: Vec<u32> = match &query.search {
            Some(text) if query.names_only => {
                let needle = text.to_lowercase();
                let finder = memmem::Finder::new(needle.as_bytes());
                let named = |entry: &Entry| finder.find(&state.text(entry)[..usize::from(entry.email_at)]).is_some();
                let is_named = |number: &u32| state.entry(*number).is_some_and(named);
                state.search(text).into_iter().filter(is_named).filter(fits).collect()
            }
            Some(text) => state.search(text).into_iter().filter(fits).collect(),
            None => (1..=u32::try_from(state.entries.len()).unwrap_or(u32::MAX)).filter(fits).collect(),
        };
        let total = numbers.len();
        let (from, to) = (skip.min(total), skip.saturating_add(limit).min(total));
        if query.sort == Sort::Id {
            let page = |at: usize| UserId(u64::from(numbers[if query.descending { total - 1 - at } else { at }]));
            return ((from..to).map(page).collect(), total as u64);
        }
        let mut keyed: Vec<(u128, u32)> = numbers.iter().map(|n| (state.key(*n, query.sort), *n)).collect();
        let is_text = matches!(query.sort, Sort::Username | Sort::Name | Sort::Email);
        let order = |a: &(u128, u32), b: &(u128, u32)| {
            let whole = || match (state.entry(a.1), state.entry(b.1)) {
                // Shorter ones are in the key whole.
                (Some(x), Some(y)) if is_text && a.0 as u8 != 0 => {
                    state.field(x, query.sort).cmp(state.field(y, query.sort))
                }
                _ => std::cmp::Ordering::Equal,
            };
            let by_value = a.0.cmp(&b.0).then_with(whole);
            // Equals stay in the order of their numbers, whichever way the list goes.
            if query.descending { by_value.reverse() } else { by_value }.then(a.1.cmp(&b.1))
        };
        if from == to {
            return (Vec::new(), total as u64);
        }
        // Only the page is put in order, not a million.
        if to < total {
            keyed.select_nth_unstable_by(to, order);
        }
        let mut head = &mut keyed[..to];
        if from > 0 {
            head.select_nth_unstable_by(from, order);
            head = &mut head[from..];
        }
        head.sort_unstable_by(order);
        (head.iter().map(|(_, number)| UserId(u64::from(*number))).collect(), total as u64)
    }

    /// Counts over all users at `now`.
    pub fn count(&self, now: UnixMillis) -> Counts {
        const DAY: u64 = 86_400_000;
        let state = self.state.read();
        let mut counts = Counts::default();
        let mut plans = vec![0u64; state.plans.len()];
        for entry in state.entries.iter().flatten() {
            counts.total += 1;
            *counts.by_status.entry(entry.status.as_str()).or_default() += 1;
            *counts.by_verification.entry(entry.verification.as_str()).or_default() += 1;
            counts.verified += u64::from(entry.verification >= Verification::EmailVerified);
            if let Some(plan) = plans.get_mut(usize::from(entry.plan)) {
                *plan += 1;
            }
            let age = now.0.saturating_sub(entry.created_at.0);
            for (count, days) in counts.registered.iter_mut().zip([1, 7, 30]) {
                *count += u64::from(age < days * DAY);
            }
        }
        counts.by_plan = state.plans.iter().cloned().zip(plans).collect();
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(id: u64, name: &str) -> User {
        let email = format!("{name}@example.com");
        User {
            id: UserId(id),
            ..User::new(name.into(), format!("The {name}"), email.as_str().into(), "free".into(), UnixMillis(id * 1000))
        }
    }

    fn directory(names: &[&str]) -> Directory {
        let directory = Directory::default();
        let users: Vec<User> = names.iter().enumerate().map(|(at, name)| user(at as u64 + 1, name)).collect();
        directory.put_read(&users);
        directory.finish(0);
        directory
    }

    fn found(directory: &Directory, query: &UserQuery) -> Vec<u64> {
        directory.find(query, 0, 100).0.iter().map(|id| id.0).collect()
    }

    fn searching(text: &str) -> UserQuery {
        UserQuery { search: Some(text.into()), ..UserQuery::default() }
    }

    #[test]
    fn a_search_finds_each_once_and_only_what_he_is_now() {
        let directory = directory(&["Anna", "Bob", "annabel", "Carl"]);
        assert_eq!(found(&directory, &searching("ANNA")), [1, 3]);
        assert_eq!(found(&directory, &searching("example.com")), [1, 2, 3, 4]);
        assert_eq!(found(&directory, &searching("nobody")), [] as [u64; 0]);
        // Not over the end of a field.
        assert_eq!(found(&directory, &searching("bobthe")), [] as [u64; 0]);
        directory.put(&User { id: UserId(1), ..user(1, "Zoe") });
        assert_eq!(found(&directory, &searching("anna")), [3]);
        assert_eq!(found(&directory, &searching("zoe")), [1]);
        for round in 0..40_000 {
            directory.put(&user(2, &format!("bob{round}")));
        }
        assert_eq!(found(&directory, &searching("bob39999")), [2]);
        assert_eq!(found(&directory, &searching("bob")), [2]);
        assert!(directory.state.read().texts.len() < 3 << 20, "what was replaced is left out in time");
    }

    #[test]
    fn pages_of_any_order_are_those_of_the_whole_order() {
        let names: Vec<String> =
            (0..500u32).map(|n| format!("user-with-a-long-name-{:03}", (n * 7919) % 500)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let directory = directory(&names);
        for sort in [Sort::Id, Sort::Username, Sort::Name, Sort::Email, Sort::CreatedAt, Sort::LastLogin] {
            for descending in [false, true] {
                let query = UserQuery { sort, descending, ..UserQuery::default() };
                let (whole, total) = directory.find(&query, 0, 1000);
                assert_eq!((whole.len(), total), (500, 500));
                let pages: Vec<UserId> = (0..17).flat_map(|page| directory.find(&query, page * 31, 31).0).collect();
                assert_eq!(pages, whole, "{sort:?} {descending}");
            }
        }
        let by_name = UserQuery { sort: Sort::Username, ..UserQuery::default() };
        let (first, _) = directory.find(&by_name, 0, 3);
        assert_eq!(first.iter().map(|id| names[id.0 as usize - 1]).collect::<Vec<_>>(), {
            let mut sorted = names.clone();
            sorted.sort_unstable();
            sorted[..3].to_vec()
        });
        assert_eq!(directory.find(&by_name, usize::MAX, usize::MAX), (Vec::new(), 500));
    }

    #[test]
    fn what_was_put_in_force_is_not_undone_by_what_was_read_before() {
        let directory = Directory::default();
        directory.put(&User { status: Status::Banned, ..user(1, "anna") });
        directory.put_read(&[user(1, "anna"), user(2, "bob")]);
        directory.finish(1);
        let banned = UserQuery { status: Some(Status::Banned), ..UserQuery::default() };
        assert_eq!(found(&directory, &banned), [1]);
        let counts = directory.count(UnixMillis(5000));
        assert_eq!(
            (counts.total, counts.by_status["banned"], counts.by_plan["free"], counts.registered),
            (2, 1, 2, [2, 2, 2])
        );
    }
}
