//! What the newest records say, kept in memory so that a page of them needs no search through the files.
//!
//! Owns the summary of the newest [`MAX_ENTRIES`] records and the reading of pages. Never writes a file. Older records are
//! still in the files; [`find_in_files`] walks them from the newest back.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::Path;

use serde::Deserialize;

use super::record::{Action, Severity};
use super::trail::Scanned;
use crate::actors::writer::segment::{list_segments, read_record, segment_path};
use crate::clock::UnixMillis;

/// Records that are found without a search: at most some 5 MB.
pub const MAX_ENTRIES: usize = 65_536;

/// What a page asks for. Everything left out matches.
#[derive(Clone, Debug, Default)]
pub struct Query {
    pub severity: Option<Severity>,
    pub action: Option<ActionFilter>,
    pub user: Option<UserFilter>,
    /// Not before.
    pub from: Option<UnixMillis>,
    /// Before.
    pub to: Option<UnixMillis>,
}

/// One act, or all of a kind (`login` for `login.failed` and the like).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ActionFilter {
    One(Action),
    Family(&'static str),
}

impl ActionFilter {
    pub fn parse(text: &str) -> Option<Self> {
        let family = || Action::ALL.iter().map(|action| action.family()).find(|family| *family == text);
        Action::parse(text).map(Self::One).or_else(|| family().map(Self::Family))
    }
}

/// Whoever acted or was acted upon: a user's number, or the name of a user or of staff.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserFilter {
    Id(u64),
    Name(u64),
}

impl UserFilter {
    pub fn parse(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Name(fold(text)), Self::Id)
    }
}

/// A name's fingerprint, without case. Two names that share one would both be shown; nothing depends on more.
fn fold(name: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    name.to_lowercase().hash(&mut hasher);
    // 0 stands for no name.
    hasher.finish().max(1)
}

/// One record in short, and where it stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub seq: u64,
    segment: u64,
    offset: u64,
    at_ms: u64,
    severity: Severity,
    action: Option<Action>,
    /// Of actor and target; 0 for none.
    users: [u64; 2],
    names: [u64; 2],
}

impl Entry {
    /// Reads a record's JSON; `None` when it is none.
    pub(super) fn read(segment: u64, offset: u64, seq: u64, at_ms: u64, payload: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Party<'a> {
            kind: &'a str,
            id: Option<u64>,
            name: Option<std::borrow::Cow<'a, str>>,
        }
        #[derive(Deserialize)]
        struct Form<'a> {
            severity: &'a str,
            action: &'a str,
            #[serde(borrow)]
            actor: Party<'a>,
            #[serde(borrow)]
            target: Option<Party<'a>>,
        }
        let form: Form<'_> = serde_json::from_slice(payload).ok()?;
        let parties = [Some(&form.actor), form.target.as_ref()];
        let user = |party: Option<&Party<'_>>| party.filter(|p| p.kind == "user").and_then(|p| p.id).unwrap_or(0);
        let name = |party: Option<&Party<'_>>| party.and_then(|p| p.name.as_deref()).map_or(0, fold);
        Some(Self {
            seq,
            segment,
            offset,
            at_ms,
            severity: Severity::parse(form.severity)?,
            // An act that a newer version knows is shown all the same.
            action: Action::parse(form.action),
            users: parties.map(user),
            names: parties.map(name),
        })
    }

    pub(super) fn action(&self) -> Option<Action> {
        self.action
    }

    fn matches(&self, query: &Query) -> bool {
        let action = |wanted: &ActionFilter| match wanted {
            ActionFilter::One(one) => self.action == Some(*one),
            ActionFilter::Family(family) => self.action.is_some_and(|action| action.family() == *family),
        };
        let user = |wanted: &UserFilter| match wanted {
            UserFilter::Id(id) => self.users.contains(id) && *id != 0,
            UserFilter::Name(name) => self.names.contains(name),
        };
        query.severity.is_none_or(|severity| severity == self.severity)
            && query.action.as_ref().is_none_or(action)
            && query.user.as_ref().is_none_or(user)
            && query.from.is_none_or(|from| from.0 <= self.at_ms)
            && query.to.is_none_or(|to| self.at_ms < to.0)
    }

    fn load(&self, dir: &Path) -> io::Result<String> {
        let file = File::open(segment_path(dir, self.segment))?;
        let (_, payload) = read_record(&file, self.offset)?;
        String::from_utf8(payload).map_err(io::Error::other)
    }
}

/// One page, newest first, as JSON objects.
#[derive(Debug, Default)]
pub struct LogPage {
    pub items: Vec<String>,
    /// Matching records among those that are kept in memory.
    pub total: u64,
    /// Records of the page that could not be read.
    pub unreadable: u64,
}

/// The newest records, oldest first.
#[derive(Default)]
pub(super) struct Summary {
    entries: VecDeque<Entry>,
}

impl Summary {
    pub(super) fn is_full(&self) -> bool {
        self.entries.len() >= MAX_ENTRIES
    }

    pub(super) fn push(&mut self, entry: Entry) {
        if self.is_full() {
            self.entries.pop_front();
        }
        self.entries.push_back(entry);
    }

    /// Puts a segment's records before those that are there, as far as there is room.
    pub(super) fn put_older(&mut self, entries: Vec<Entry>) {
        let room = MAX_ENTRIES.saturating_sub(self.entries.len());
        for entry in entries.into_iter().rev().take(room) {
            self.entries.push_front(entry);
        }
    }

    pub(super) fn forget_through(&mut self, last: u64) {
        while self.entries.front().is_some_and(|entry| entry.seq <= last) {
            self.entries.pop_front();
        }
    }

    /// The newest entry that `wanted` likes.
    pub(super) fn newest(&self, wanted: impl Fn(&Entry) -> bool) -> Option<&Entry> {
        self.entries.iter().rev().find(|entry| wanted(entry))
    }

    /// The entries of a page, and how many match in all. `page` counts from 1.
    pub(super) fn find(&self, query: &Query, page: u64, page_size: usize) -> (Vec<Entry>, u64) {
        let skip = page.saturating_sub(1).saturating_mul(page_size as u64);
        let (mut found, mut total) = (Vec::new(), 0);
        for entry in self.entries.iter().rev().filter(|entry| entry.matches(query)) {
            if total >= skip && found.len() < page_size {
                found.push(*entry);
            }
            total += 1;
        }
        (found, total)
    }
}

/// Reads the records of a page.
pub(super) fn load(dir: &Path, entries: &[Entry], total: u64) -> LogPage {
    let mut page = LogPage { total, ..LogPage::default() };
    for entry in entries {
        match entry.load(dir) {
            Ok(text) => page.items.push(text),
            Err(_) => page.unreadable += 1,
        }
    }
    page
}

/// A page straight from the files of a trail, running or not: all records there are, newest first, one segment in memory at
/// a time. `total` counts what was passed until the page was full, not more.
///
/// # Errors
/// The directory or a segment cannot be read. A trail that was never written is empty.
pub fn find_in_files(dir: &Path, query: &Query, page: u64, page_size: usize) -> io::Result<LogPage> {
    let segments = match list_segments(dir) {
        Ok(segments) => segments,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(LogPage::default()),
        Err(error) => return Err(error),
    };
    let skip = page.saturating_sub(1).saturating_mul(page_size as u64);
    let (mut found, mut passed) = (Vec::new(), 0);
    for (first_seq, path) in segments.iter().rev() {
        let scanned = match Scanned::of(path, *first_seq) {
            Ok(scanned) => scanned,
            // Retention has just removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in scanned.entries.iter().rev().filter(|entry| entry.matches(query)) {
            if passed >= skip && found.len() < page_size {
                found.push(*entry);
            }
            passed += 1;
        }
        if found.len() >= page_size {
            break;
        }
    }
    Ok(load(dir, &found, passed))
}
