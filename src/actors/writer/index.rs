//! Which records of a segment belong to which user and model, and when they were made.
//!
//! Owns the question ([`Wanted`]) and the index of the segment being written ([`MemoryIndex`]); the file of a sealed one is
//! [`sidecar`](super::sidecar)'s. An index holds nothing that its segment does not: it can always be built again, and is
//! never repaired. It knows models by a fingerprint and times in whole seconds, as records show them.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use sha2::{Digest, Sha256};

use super::keys::JournalKeys;
use super::segment::{Found, RecordHead};
use super::source::Walk;

const NONE: u32 = u32::MAX;
/// Models whose fingerprints are remembered; more begin anew.
const MAX_KNOWN_MODELS: usize = 256;

/// What is known of a segment without opening it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct SegmentFacts {
    pub first_seq: u64,
    /// Of the newest record; below `first_seq` when there is none.
    pub last_seq: u64,
    /// The oldest timestamp in it; 0 when there is none.
    pub oldest_ms: u64,
    /// The newest timestamp in it; retention goes by this.
    pub newest_ms: u64,
    /// Where the records end, as the index counts places: the length of the file that was appended to.
    pub len: u64,
}

impl SegmentFacts {
    pub(super) fn empty(first_seq: u64, len: u64) -> Self {
        Self { first_seq, last_seq: first_seq.saturating_sub(1), oldest_ms: 0, newest_ms: 0, len }
    }

    /// Takes a record's time in.
    pub(super) fn note_time(&mut self, timestamp_ms: u64, is_first: bool) {
        self.oldest_ms = if is_first { timestamp_ms } else { self.oldest_ms.min(timestamp_ms) };
        self.newest_ms = self.newest_ms.max(timestamp_ms);
    }
}

/// A model's fingerprint: the first eight bytes of its name's SHA-256. Clients choose names, and must not be able to
/// choose two that look alike.
pub(super) fn model_tag(model: &str) -> u64 {
    super::segment::u64_at(&Sha256::digest(model.as_bytes()), 0)
}

/// Fingerprints of the models seen of late: most calls are for a handful.
#[derive(Default)]
pub(super) struct ModelTags {
    known: HashMap<Box<str>, u64>,
}

impl ModelTags {
    pub(super) fn of(&mut self, model: &str) -> u64 {
        if let Some(tag) = self.known.get(model) {
            return *tag;
        }
        if self.known.len() >= MAX_KNOWN_MODELS {
            self.known.clear();
        }
        let tag = model_tag(model);
        self.known.insert(model.into(), tag);
        tag
    }

    /// The fingerprint of a record's `model`; of the empty name when it has none.
    pub(super) fn of_json(&mut self, json: &[u8]) -> u64 {
        let mut found = None;
        // The visitor stops at the member it looks for, which the parser takes for an error.
        serde_json::Deserializer::from_slice(json).deserialize_map(ModelOf(&mut found)).ok();
        self.of(found.as_deref().unwrap_or_default())
    }
}

struct ModelOf<'a>(&'a mut Option<String>);

impl<'de> Visitor<'de> for ModelOf<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a record")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        while let Some(name) = members.next_key::<std::borrow::Cow<'_, str>>()? {
            if name == "model" {
                *self.0 = members.next_value()?;
                return Ok(());
            }
            members.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

/// Which records are asked for. What is left out does not narrow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub user_id: Option<u64>,
    pub model: Option<u64>,
    /// From this second on.
    pub from: Option<u64>,
    /// Before this second.
    pub to: Option<u64>,
}

/// How a stretch of time lies to what is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overlap {
    None,
    Part,
    Whole,
}

impl Wanted {
    pub(super) fn has_time(&self, second: u32) -> bool {
        let second = u64::from(second);
        self.from.is_none_or(|from| second >= from) && self.to.is_none_or(|to| second < to)
    }

    pub(super) fn overlap(&self, facts: &SegmentFacts) -> Overlap {
        let (oldest, newest) = (u64::from(seconds(facts.oldest_ms)), u64::from(seconds(facts.newest_ms)));
        let (from, to) = (self.from.unwrap_or(0), self.to.unwrap_or(u64::MAX));
        if newest < from || oldest >= to {
            Overlap::None
        } else if oldest >= from && newest < to {
            Overlap::Whole
        } else {
            Overlap::Part
        }
    }
}

/// Whole seconds, as the index keeps them.
pub(super) fn seconds(timestamp_ms: u64) -> u32 {
    u32::try_from(timestamp_ms / 1000).unwrap_or(u32::MAX)
}

/// Where a record is: its number in the segment, its place, and its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub number: u32,
    pub offset: u32,
    pub seconds: u32,
}

/// What an index answers: how many there are, and those asked for, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub count: u64,
    pub places: Vec<Place>,
}

/// The index of the segment being written. Each record points at the previous one of its user and of its model, so that
/// newest-first is a walk and a record costs 20 bytes whatever the spread.
#[derive(Debug, Default)]
pub(super) struct MemoryIndex {
    users: HashMap<u64, Chain>,
    models: HashMap<u64, Chain>,
    /// Fingerprints by their numbers here.
    tags: Vec<u64>,
    records: Vec<Entry>,
}

#[derive(Debug, Clone, Copy)]
struct Chain {
    newest: u32,
    count: u32,
    /// Of a model: its number here.
    number: u32,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    offset: u32,
    seconds: u32,
    model: u32,
    older_of_user: u32,
    older_of_model: u32,
}

/// A run of equal keys: of which user and model, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UserRow {
    pub user_id: u64,
    pub model: u64,
    pub count: u32,
}

/// What a sidecar is written from.
pub(super) struct Sorted {
    /// By user, then model.
    pub user_rows: Vec<UserRow>,
    /// Record numbers, row after row, each ascending.
    pub by_user: Vec<u32>,
    /// By model, with their counts.
    pub model_rows: Vec<(u64, u32)>,
    pub by_model: Vec<u32>,
    /// Offset and second of each record.
    pub records: Vec<(u32, u32)>,
}

impl MemoryIndex {
    /// Adds a record; offsets ascend. Segments end far below 4 GiB, so an offset that does not fit is a foreign file's
    /// and is left out.
    pub(super) fn push(&mut self, user_id: u64, model: u64, timestamp_ms: u64, offset: u64) {
        let (Ok(offset), Ok(number)) = (u32::try_from(offset), u32::try_from(self.records.len())) else {
            return;
        };
        let next_model = self.tags.len() as u32;
        let of_model = self.models.entry(model).or_insert_with(|| {
            self.tags.push(model);
            Chain { newest: NONE, count: 0, number: next_model }
        });
        let of_user = self.users.entry(user_id).or_insert(Chain { newest: NONE, count: 0, number: 0 });
        self.records.push(Entry {
            offset,
            seconds: seconds(timestamp_ms),
            model: of_model.number,
            older_of_user: of_user.newest,
            older_of_model: of_model.newest,
        });
        for chain in [of_model, of_user] {
            chain.newest = number;
            chain.count += 1;
        }
    }

    pub(super) fn records(&self) -> u64 {
        self.records.len() as u64
    }

    /// How many records are wanted, and `take` of them after the newest `skip`. `overlap` is that of the whole segment.
    pub(super) fn select(&self, wanted: &Wanted, overlap: Overlap, skip: u64, take: usize) -> Answer {
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let page = |numbers: &mut dyn Iterator<Item = u32>| -> Vec<Place> {
            numbers.skip(skip).take(take).filter_map(|number| self.place(number)).collect()
        };
        if overlap == Overlap::None {
            return Answer::default();
        }
        let model = wanted.model.map(|tag| self.models.get(&tag));
        if matches!(model, Some(None)) {
            return Answer::default();
        }
        let model = model.flatten();
        let mut candidates: Box<dyn Iterator<Item = u32>> = match (wanted.user_id, model) {
            (Some(user), _) => Box::new(self.walk(self.users.get(&user), |entry| entry.older_of_user)),
            (None, Some(model)) => Box::new(self.walk(Some(model), |entry| entry.older_of_model)),
            (None, None) => Box::new((0..self.records.len() as u32).rev()),
        };
        let count = match (wanted.user_id, model) {
            _ if overlap == Overlap::Part => None,
            (Some(user), None) => Some(self.users.get(&user).map_or(0, |chain| chain.count)),
            (None, Some(model)) => Some(model.count),
            (None, None) => Some(self.records.len() as u32),
            (Some(_), Some(_)) => None,
        };
        if let Some(count) = count {
            return Answer { count: u64::from(count), places: page(&mut candidates) };
        }
        let is_wanted = |number: &u32| {
            self.records.get(*number as usize).is_some_and(|entry| {
                model.is_none_or(|model| entry.model == model.number) && wanted.has_time(entry.seconds)
            })
        };
        let all: Vec<u32> = candidates.filter(is_wanted).collect();
        Answer { count: all.len() as u64, places: page(&mut all.iter().copied()) }
    }

    fn walk(&self, chain: Option<&Chain>, older: fn(&Entry) -> u32) -> impl Iterator<Item = u32> + '_ {
        let known = |number: u32| ((number as usize) < self.records.len()).then_some(number);
        let newest = chain.and_then(|chain| known(chain.newest));
        std::iter::successors(newest, move |number| self.records.get(*number as usize).and_then(|e| known(older(e))))
    }

    fn place(&self, number: u32) -> Option<Place> {
        let entry = self.records.get(number as usize)?;
        Some(Place { number, offset: entry.offset, seconds: entry.seconds })
    }

    /// Everything in the order of a sidecar.
    pub(super) fn sorted(&self) -> Sorted {
        let tag_of = |model: u32| self.tags.get(model as usize).copied().unwrap_or_default();
        let mut users: Vec<(u64, Chain)> = self.users.iter().map(|(user, chain)| (*user, *chain)).collect();
        users.sort_unstable_by_key(|(user, _)| *user);
        let (mut user_rows, mut by_user) = (Vec::with_capacity(users.len()), Vec::with_capacity(self.records.len()));
        let mut of_user: Vec<(u64, u32)> = Vec::new();
        for (user_id, chain) in &users {
            of_user.clear();
            let numbers = self.walk(Some(chain), |entry| entry.older_of_user);
            of_user.extend(
                numbers.map(|number| (self.records.get(number as usize).map_or(0, |e| tag_of(e.model)), number)),
            );
            of_user.sort_unstable();
            for run in of_user.chunk_by(|one, next| one.0 == next.0) {
                let model = run.first().map_or(0, |(model, _)| *model);
                user_rows.push(UserRow { user_id: *user_id, model, count: run.len() as u32 });
                by_user.extend(run.iter().map(|(_, number)| *number));
            }
        }
        let mut models: Vec<(u64, Chain)> = self.models.iter().map(|(tag, chain)| (*tag, *chain)).collect();
        models.sort_unstable_by_key(|(tag, _)| *tag);
        let mut by_model = Vec::with_capacity(self.records.len());
        for (_, chain) in &models {
            let start = by_model.len();
            by_model.extend(self.walk(Some(chain), |entry| entry.older_of_model));
            by_model[start..].reverse();
        }
        Sorted {
            user_rows,
            by_user,
            model_rows: models.iter().map(|(tag, chain)| (*tag, chain.count)).collect(),
            by_model,
            records: self.records.iter().map(|entry| (entry.offset, entry.seconds)).collect(),
        }
    }
}

/// What reading a whole segment told.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    pub index: MemoryIndex,
    pub facts: SegmentFacts,
    /// Stretches in the middle that are no records.
    pub damaged: u64,
    /// Bytes after the last whole record.
    pub torn_bytes: u64,
    /// Whether the file is in blocks.
    pub is_blocks: bool,
}

impl Scanned {
    /// The facts of a segment that is never cut: its index covers the file to its end, torn bytes and all.
    pub(super) fn sealed_facts(&self) -> SegmentFacts {
        SegmentFacts { len: self.facts.len + self.torn_bytes, ..self.facts }
    }
}

/// Builds an index from records in their order.
pub(super) struct Indexing {
    pub scanned: Scanned,
    tags: ModelTags,
}

impl Indexing {
    pub(super) fn new(first_seq: u64) -> Self {
        let facts = SegmentFacts::empty(first_seq, 0);
        Self { scanned: Scanned { facts, ..Scanned::default() }, tags: ModelTags::default() }
    }

    pub(super) fn push(&mut self, head: RecordHead, offset: u64, json: &[u8]) {
        let scanned = &mut self.scanned;
        scanned.facts.note_time(head.timestamp_ms, scanned.index.records() == 0);
        scanned.index.push(head.user_id, self.tags.of_json(json), head.timestamp_ms, offset);
        scanned.facts.last_seq = head.seq;
    }
}

/// Reads a whole segment. `facts.len` ends at the last whole record.
pub(super) fn scan_segment(path: &Path, first_seq: u64, keys: &JournalKeys) -> io::Result<Scanned> {
    let mut walk = Walk::open(path, first_seq, keys)?;
    let mut indexing = Indexing::new(first_seq);
    loop {
        match walk.step()? {
            Found::Record { offset, head } => indexing.push(head, offset, walk.payload()),
            Found::Damaged { .. } => indexing.scanned.damaged += 1,
            Found::Torn { bytes, .. } => indexing.scanned.torn_bytes = bytes,
            Found::End => break,
        }
    }
    let mut scanned = indexing.scanned;
    scanned.facts.len = walk.image_end() - scanned.torn_bytes;
    scanned.is_blocks = walk.head().is_some_and(super::head::Head::is_blocks);
    Ok(scanned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn a_record_s_model_is_found_wherever_it_stands() {
        let mut tags = ModelTags::default();
        for (json, model) in [
            (r#"{"id":1,"username":"\"model\":\"x\"","model":"gpt-4o","messages":{}}"#, "gpt-4o"),
            (r#"{"messages":{"model":"inner","x":[1,{"model":2}]},"model":"a\u0062\"","z":1}"#, "ab\""),
            (r#"{"id":1}"#, ""),
            (r#"{"model":null}"#, ""),
            ("no JSON", ""),
        ] {
            assert_eq!(tags.of_json(json.as_bytes()), model_tag(model), "{json}");
        }
        for number in 0..3 * MAX_KNOWN_MODELS {
            tags.of(&number.to_string());
        }
        assert!(tags.known.len() <= MAX_KNOWN_MODELS);
    }

    #[test]
    fn times_are_told_apart_by_whole_seconds() {
        let facts = SegmentFacts { oldest_ms: 10_999, newest_ms: 20_001, ..SegmentFacts::default() };
        let of = |from, to| Wanted { from, to, ..Wanted::default() }.overlap(&facts);
        assert_eq!(of(None, None), Overlap::Whole);
        assert_eq!(
            [of(Some(10), Some(21)), of(Some(11), None), of(None, Some(20))],
            [Overlap::Whole, Overlap::Part, Overlap::Part]
        );
        assert_eq!([of(Some(21), None), of(None, Some(10))], [Overlap::None; 2]);
    }
}
