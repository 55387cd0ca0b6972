//! The index of a sealed segment: a file beside it that answers without being read whole.
//!
//! Owns the file's format, its reading, and the bound on what is kept of it in memory. It never opens the segment.
//!
//! A sidecar is a head of 96 bytes, then pages of 4 KiB (the last one shorter), each ending in its CRC-32, so that whatever
//! is read is checked and nothing has to be read for its checksum's sake. In the pages, one after another: every 128th user
//! and model row's key, a Bloom filter of the users, the user rows, their record numbers, the model rows, their record
//! numbers, and each record's offset and second. All numbers are little-endian.
//!
//! | part | bytes each | holds |
//! |---|--:|---|
//! | user row | 24 | user, model's fingerprint, where its numbers begin (u32), how many (u32) |
//! | model row | 16 | model's fingerprint, where its numbers begin (u32), how many (u32) |
//! | record | 8 | offset (u32), second (u32) |
//!
//! The keys and the filter are kept in memory as long as there is room ([`SUMMARY_BYTES`] for all segments): with them, a
//! user who is not in the segment costs nothing, and one who is costs one page.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::index::{Answer, MemoryIndex, Overlap, Place, SegmentFacts, Wanted};
use super::segment::{Disk, invalid, u32_at, u64_at};
use crate::failpoint;

const MAGIC: &[u8; 8] = b"tgjindx2";
const OLD_MAGIC: &[u8; 8] = b"tgjindx1";
const HEAD_BYTES: usize = 96;
const PAGE_BYTES: u64 = 4096;
const PAGE_ROOM: u64 = PAGE_BYTES - 4;
const USER_ROW: u64 = 24;
const MODEL_ROW: u64 = 16;
const RECORD: u64 = 8;
const NUMBER: u64 = 4;
/// Rows for each key that is kept in memory.
const ROWS_PER_KEY: u64 = 128;
/// Bits per user in the filter: one in a hundred who are not there is looked for in vain.
const FILTER_BITS: u64 = 10;
const FILTER_HASHES: u64 = 7;
const MAX_FILTER_BYTES: u64 = 64 << 10;
/// Fewer records than this are asked for their times one by one.
const FEW: usize = 64;
/// What all summaries of a journal may take together. A segment that finds no room is searched in its file.
pub(super) const SUMMARY_BYTES: u64 = 64 << 20;

/// How much memory the summaries take.
#[derive(Debug, Default)]
pub(super) struct Budget {
    used: AtomicU64,
}

/// A part of the budget, given back when it is dropped.
#[derive(Debug)]
struct Share {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Budget {
    fn take(self: &Arc<Self>, bytes: u64) -> Option<Share> {
        let share = Share { budget: Arc::clone(self), bytes };
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        (before + bytes <= SUMMARY_BYTES).then_some(share)
    }
}

/// The sidecar of a segment.
pub(super) fn index_path(segment: &Path) -> PathBuf {
    segment.with_extension("idx")
}

/// Writes the sidecar so that a crash leaves either none or a whole one.
pub(super) fn write_index(disk: &dyn Disk, segment: &Path, index: &MemoryIndex, facts: SegmentFacts) -> io::Result<()> {
    let path = index_path(segment);
    let unfinished = path.with_extension("idx.tmp");
    remove_if_there(disk, &unfinished)?;
    let mut file = disk.create(&unfinished)?;
    file.write_all_at(&encode(index, facts), 0)?;
    file.sync_data()?;
    failpoint::hit("journal.before_index_rename");
    disk.rename(&unfinished, &path)?;
    failpoint::hit("journal.after_index_rename");
    path.parent().map_or(Ok(()), |dir| disk.sync_dir(dir))
}

/// Deletes a file that may be gone already.
pub(super) fn remove_if_there(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    match disk.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// How many there are of everything; where each part begins follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    facts: SegmentFacts,
    records: u32,
    user_rows: u32,
    model_rows: u32,
    filter_bytes: u32,
}

impl Head {
    fn encode(&self) -> [u8; HEAD_BYTES] {
        let mut out = [0; HEAD_BYTES];
        out[..8].copy_from_slice(MAGIC);
        let facts = &self.facts;
        let long = [facts.first_seq, facts.last_seq, facts.oldest_ms, facts.newest_ms, facts.len];
        for (place, number) in out[8..48].as_chunks_mut::<8>().0.iter_mut().zip(long) {
            *place = number.to_le_bytes();
        }
        let short = [self.records, self.user_rows, self.model_rows, self.filter_bytes];
        for (place, number) in out[48..64].as_chunks_mut::<4>().0.iter_mut().zip(short) {
            *place = number.to_le_bytes();
        }
        let crc = crc32fast::hash(&out[..HEAD_BYTES - 4]);
        out[HEAD_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; HEAD_BYTES]) -> io::Result<Self> {
        let sound =
            bytes.starts_with(MAGIC) && crc32fast::hash(&bytes[..HEAD_BYTES - 4]) == u32_at(bytes, HEAD_BYTES - 4);
        if !sound {
            return Err(invalid("index head is damaged"));
        }
        let facts = SegmentFacts {
            first_seq: u64_at(bytes, 8),
            last_seq: u64_at(bytes, 16),
            oldest_ms: u64_at(bytes, 24),
            newest_ms: u64_at(bytes, 32),
            len: u64_at(bytes, 40),
        };
        let short = |at| u32_at(bytes, at);
        Ok(Self { facts, records: short(48), user_rows: short(52), model_rows: short(56), filter_bytes: short(60) })
    }

    fn user_keys(&self) -> u64 {
        u64::from(self.user_rows).div_ceil(ROWS_PER_KEY)
    }

    fn model_keys(&self) -> u64 {
        u64::from(self.model_rows).div_ceil(ROWS_PER_KEY)
    }

    /// What is kept in memory.
    fn summary_bytes(&self) -> u64 {
        (self.user_keys() + self.model_keys()) * 8 + u64::from(self.filter_bytes)
    }

    fn user_rows_at(&self) -> u64 {
        self.summary_bytes()
    }

    fn by_user_at(&self) -> u64 {
        self.user_rows_at() + u64::from(self.user_rows) * USER_ROW
    }

    fn model_rows_at(&self) -> u64 {
        self.by_user_at() + u64::from(self.records) * NUMBER
    }

    fn by_model_at(&self) -> u64 {
        self.model_rows_at() + u64::from(self.model_rows) * MODEL_ROW
    }

    fn records_at(&self) -> u64 {
        self.by_model_at() + u64::from(self.records) * NUMBER
    }

    fn body_bytes(&self) -> u64 {
        self.records_at() + u64::from(self.records) * RECORD
    }

    fn file_bytes(&self) -> u64 {
        HEAD_BYTES as u64 + self.body_bytes() + self.body_bytes().div_ceil(PAGE_ROOM) * 4
    }

    fn page_crc(&self, page: u64, bytes: &[u8]) -> u32 {
        let mut crc = crc32fast::Hasher::new();
        // A page of another place or another segment must not pass for this one.
        crc.update(&page.to_le_bytes());
        crc.update(&self.facts.first_seq.to_le_bytes());
        crc.update(bytes);
        crc.finalize()
    }
}

/// The sidecar's bytes.
pub(super) fn encode(index: &MemoryIndex, facts: SegmentFacts) -> Vec<u8> {
    let sorted = index.sorted();
    let users = sorted.user_rows.chunk_by(|one, next| one.user_id == next.user_id).count() as u64;
    let filter_bytes = (users * FILTER_BITS).div_ceil(8).min(MAX_FILTER_BYTES);
    let head = Head {
        facts,
        records: sorted.records.len() as u32,
        user_rows: sorted.user_rows.len() as u32,
        model_rows: sorted.model_rows.len() as u32,
        filter_bytes: filter_bytes as u32,
    };
    let mut body = Vec::with_capacity(head.body_bytes() as usize);
    for row in sorted.user_rows.iter().step_by(ROWS_PER_KEY as usize) {
        body.extend_from_slice(&row.user_id.to_le_bytes());
    }
    for (model, _) in sorted.model_rows.iter().step_by(ROWS_PER_KEY as usize) {
        body.extend_from_slice(&model.to_le_bytes());
    }
    let mut filter = vec![0_u8; filter_bytes as usize];
    for row in &sorted.user_rows {
        filter_places(row.user_id, filter_bytes).for_each(|(byte, bit)| filter[byte] |= bit);
    }
    body.extend_from_slice(&filter);
    let mut first = 0_u32;
    for row in &sorted.user_rows {
        body.extend_from_slice(&row.user_id.to_le_bytes());
        body.extend_from_slice(&row.model.to_le_bytes());
        body.extend_from_slice(&first.to_le_bytes());
        body.extend_from_slice(&row.count.to_le_bytes());
        first += row.count;
    }
    sorted.by_user.iter().for_each(|number| body.extend_from_slice(&number.to_le_bytes()));
    first = 0;
    for (model, count) in &sorted.model_rows {
        body.extend_from_slice(&model.to_le_bytes());
        body.extend_from_slice(&first.to_le_bytes());
        body.extend_from_slice(&count.to_le_bytes());
        first += count;
    }
    sorted.by_model.iter().for_each(|number| body.extend_from_slice(&number.to_le_bytes()));
    for (offset, second) in &sorted.records {
        body.extend_from_slice(&offset.to_le_bytes());
        body.extend_from_slice(&second.to_le_bytes());
    }

    let mut out = Vec::with_capacity(head.file_bytes() as usize);
    out.extend_from_slice(&head.encode());
    for (page, bytes) in (0..).zip(body.chunks(PAGE_ROOM as usize)) {
        out.extend_from_slice(bytes);
        out.extend_from_slice(&head.page_crc(page, bytes).to_le_bytes());
    }
    out
}

/// The bits of a user in a filter of so many bytes.
fn filter_places(user_id: u64, filter_bytes: u64) -> impl Iterator<Item = (usize, u8)> {
    // Two halves of one well-mixed number make as many hashes as are needed.
    let mut mixed = user_id.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^= mixed >> 31;
    let (start, step) = (mixed >> 32, (mixed & 0xFFFF_FFFF) | 1);
    let bits = filter_bytes * 8;
    let hashes = if bits == 0 { 0 } else { FILTER_HASHES };
    (0..hashes).map(move |hash| {
        let bit = (start + hash * step) % bits;
        ((bit / 8) as usize, 1 << (bit % 8))
    })
}

/// What is kept in memory of a sidecar.
#[derive(Debug)]
struct Summary {
    user_keys: Vec<u64>,
    model_keys: Vec<u64>,
    filter: Vec<u8>,
    _share: Share,
}

/// The sidecar of a sealed segment. Holds no file open.
#[derive(Debug)]
pub(super) struct FileIndex {
    path: PathBuf,
    head: Head,
    summary: Option<Summary>,
}

impl FileIndex {
    /// Fails when the file is missing, damaged in its head or summary, or not the index of the segment with this first
    /// sequence and, if that is known, this length.
    pub(super) fn open(segment: &Path, first_seq: u64, len: Option<u64>, budget: &Arc<Budget>) -> io::Result<Self> {
        let path = index_path(segment);
        let file = File::open(&path)?;
        let head = Head::decode(&read_head(&file)?)?;
        let matches = head.facts.first_seq == first_seq
            && len.is_none_or(|len| head.facts.len == len)
            && file.metadata()?.len() == head.file_bytes();
        if !matches {
            return Err(invalid("index does not belong to its segment"));
        }
        let mut index = Self { path, head, summary: None };
        if let Some(share) = budget.take(head.summary_bytes()) {
            let bytes = index.read(&file, 0, head.summary_bytes())?;
            let (users, rest) = bytes.split_at(head.user_keys() as usize * 8);
            let (models, filter) = rest.split_at(head.model_keys() as usize * 8);
            let keys = |bytes: &[u8]| bytes.chunks_exact(8).map(|key| u64_at(key, 0)).collect();
            let (user_keys, model_keys) = (keys(users), keys(models));
            index.summary = Some(Summary { user_keys, model_keys, filter: filter.to_vec(), _share: share });
        }
        Ok(index)
    }

    pub(super) fn facts(&self) -> SegmentFacts {
        self.head.facts
    }

    /// Bytes of the sidecar file.
    pub(super) fn bytes(&self) -> u64 {
        self.head.file_bytes()
    }

    /// Compares the file with the index that the segment's records make.
    pub(super) fn check(&self, made: &MemoryIndex, facts: SegmentFacts) -> io::Result<()> {
        let bytes = std::fs::read(&self.path)?;
        let body = bytes.get(HEAD_BYTES..).unwrap_or_default();
        for (page, bytes) in (0..).zip(body.chunks(PAGE_BYTES as usize)) {
            let (bytes, crc) = bytes.split_at(bytes.len().saturating_sub(4));
            if self.head.page_crc(page, bytes) != u32_at(crc, 0) {
                let at = HEAD_BYTES as u64 + page * PAGE_BYTES;
                return Err(invalid(format!("the page at {at} fails its checksum")));
            }
        }
        if bytes == encode(made, facts) { Ok(()) } else { Err(invalid("it does not say what the segment holds")) }
    }

    /// How many records are wanted, and `take` of them after the newest `skip`.
    pub(super) fn select(&self, wanted: &Wanted, overlap: Overlap, skip: u64, take: usize) -> io::Result<Answer> {
        if overlap == Overlap::None || wanted.user_id.is_some_and(|user| !self.may_have(user)) {
            return Ok(Answer::default());
        }
        let file = File::open(&self.path)?;
        let lists = match (wanted.user_id, wanted.model) {
            (Some(user), model) => self.user_rows(&file, user, model)?,
            (None, Some(model)) => self.model_row(&file, model)?,
            (None, None) => vec![List { part: Part::All, first: 0, count: u64::from(self.head.records) }],
        };
        let count = lists.iter().map(|list| list.count).sum::<u64>();
        if overlap == Overlap::Part {
            return self.select_by_time(&file, wanted, &lists, skip, take);
        }
        let end = count.saturating_sub(skip);
        let start = end.saturating_sub(take as u64);
        let numbers = match lists.as_slice() {
            _ if start == end => Vec::new(),
            [list] => self.numbers(&file, list, start..end)?,
            _ => {
                let mut all = self.all_numbers(&file, &lists)?;
                all.drain(end as usize..);
                all.drain(..start as usize);
                all
            }
        };
        Ok(Answer { count, places: self.places(&file, numbers.into_iter().rev())? })
    }

    fn select_by_time(
        &self,
        file: &File,
        wanted: &Wanted,
        lists: &[List],
        skip: u64,
        take: usize,
    ) -> io::Result<Answer> {
        let numbers = self.all_numbers(file, lists)?;
        let mut places = if numbers.len() < FEW {
            self.places(file, numbers.into_iter())?
        } else {
            let records = self.read(file, self.head.records_at(), u64::from(self.head.records) * RECORD)?;
            let place = |number: u32| {
                let at = number as usize * RECORD as usize;
                Place { number, offset: u32_at(&records, at), seconds: u32_at(&records, at + 4) }
            };
            numbers.into_iter().map(place).collect()
        };
        places.retain(|place| wanted.has_time(place.seconds));
        let count = places.len() as u64;
        let places = places.into_iter().rev().skip(usize::try_from(skip).unwrap_or(usize::MAX)).take(take).collect();
        Ok(Answer { count, places })
    }

    /// False when the user is certainly not in this segment.
    fn may_have(&self, user_id: u64) -> bool {
        let Some(summary) = &self.summary else {
            return true;
        };
        let filter = &summary.filter;
        filter_places(user_id, filter.len() as u64).all(|(byte, bit)| filter.get(byte).is_some_and(|b| b & bit != 0))
    }

    /// The user's rows, one for each of his models, or that of one model. They are next to each other.
    fn user_rows(&self, file: &File, user_id: u64, model: Option<u64>) -> io::Result<Vec<List>> {
        let keys = self.summary.as_ref().map(|summary| summary.user_keys.as_slice());
        let mut at = self.group_before(file, keys, (0, USER_ROW), u64::from(self.head.user_rows), user_id)?;
        let mut lists = Vec::new();
        while at < u64::from(self.head.user_rows) {
            let count = ROWS_PER_KEY.min(u64::from(self.head.user_rows) - at);
            let rows = self.read(file, self.head.user_rows_at() + at * USER_ROW, count * USER_ROW)?;
            for row in rows.chunks_exact(USER_ROW as usize) {
                if u64_at(row, 0) == user_id && model.is_none_or(|model| u64_at(row, 8) == model) {
                    lists.push(self.list(Part::ByUser, u32_at(row, 16), u32_at(row, 20))?);
                }
                if u64_at(row, 0) > user_id {
                    return Ok(lists);
                }
            }
            at += count;
        }
        Ok(lists)
    }

    fn model_row(&self, file: &File, model: u64) -> io::Result<Vec<List>> {
        let keys = self.summary.as_ref().map(|summary| summary.model_keys.as_slice());
        let rows = u64::from(self.head.model_rows);
        let at = self.group_before(file, keys, (self.head.user_keys(), MODEL_ROW), rows, model)?;
        let count = (2 * ROWS_PER_KEY).min(rows - at);
        let rows = self.read(file, self.head.model_rows_at() + at * MODEL_ROW, count * MODEL_ROW)?;
        let row = rows.chunks_exact(MODEL_ROW as usize).find(|row| u64_at(row, 0) == model);
        row.map(|row| self.list(Part::ByModel, u32_at(row, 8), u32_at(row, 12))).into_iter().collect()
    }

    fn list(&self, part: Part, first: u32, count: u32) -> io::Result<List> {
        let list = List { part, first: u64::from(first), count: u64::from(count) };
        if list.first + list.count > u64::from(self.head.records) {
            return Err(invalid("an index row reaches too far"));
        }
        Ok(list)
    }

    /// The first row of the last group that begins before this key: its rows are there or in the groups after it. Keys
    /// come from memory, or one by one from the file, where they begin after `first_key` others.
    fn group_before(
        &self,
        file: &File,
        keys: Option<&[u64]>,
        (first_key, _): (u64, u64),
        rows: u64,
        key: u64,
    ) -> io::Result<u64> {
        if let Some(keys) = keys {
            let group = keys.partition_point(|begins| *begins < key).saturating_sub(1);
            return Ok((group as u64 * ROWS_PER_KEY).min(rows));
        }
        let (mut low, mut high) = (0, rows.div_ceil(ROWS_PER_KEY));
        while low < high {
            let middle = low + (high - low) / 2;
            let begins = u64_at(&self.read(file, (first_key + middle) * 8, 8)?, 0);
            if begins < key { low = middle + 1 } else { high = middle }
        }
        Ok((low.saturating_sub(1) * ROWS_PER_KEY).min(rows))
    }

    /// All record numbers of some lists, ascending.
    fn all_numbers(&self, file: &File, lists: &[List]) -> io::Result<Vec<u32>> {
        let mut all = Vec::new();
        for list in lists {
            all.extend(self.numbers(file, list, 0..list.count)?);
        }
        if lists.len() > 1 {
            all.sort_unstable();
        }
        Ok(all)
    }

    fn numbers(&self, file: &File, list: &List, wanted: std::ops::Range<u64>) -> io::Result<Vec<u32>> {
        let begins = match list.part {
            Part::All => return Ok((wanted.start as u32..wanted.end as u32).collect()),
            Part::ByUser => self.head.by_user_at(),
            Part::ByModel => self.head.by_model_at(),
        };
        let at = begins + (list.first + wanted.start) * NUMBER;
        let bytes = self.read(file, at, (wanted.end - wanted.start) * NUMBER)?;
        Ok(bytes.chunks_exact(NUMBER as usize).map(|number| u32_at(number, 0)).collect())
    }

    fn places(&self, file: &File, numbers: impl Iterator<Item = u32>) -> io::Result<Vec<Place>> {
        let place = |number: u32| {
            if number >= self.head.records {
                return Err(invalid("an index names a record that is not there"));
            }
            let bytes = self.read(file, self.head.records_at() + u64::from(number) * RECORD, RECORD)?;
            Ok(Place { number, offset: u32_at(&bytes, 0), seconds: u32_at(&bytes, 4) })
        };
        numbers.map(place).collect()
    }

    /// So many bytes of the body, by the pages that hold them, each checked.
    fn read(&self, file: &File, at: u64, count: u64) -> io::Result<Vec<u8>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let (first, last) = (at / PAGE_ROOM, (at + count - 1) / PAGE_ROOM);
        let start = HEAD_BYTES as u64 + first * PAGE_BYTES;
        let end = (HEAD_BYTES as u64 + (last + 1) * PAGE_BYTES).min(self.head.file_bytes());
        let len = end.checked_sub(start).ok_or_else(|| invalid("index is too short"))?;
        let mut pages = vec![0; len as usize];
        file.read_exact_at(&mut pages, start)?;
        let mut out = Vec::with_capacity(pages.len());
        for (page, bytes) in (first..).zip(pages.chunks(PAGE_BYTES as usize)) {
            let (bytes, crc) = bytes.split_at(bytes.len().saturating_sub(4));
            if self.head.page_crc(page, bytes) != u32_at(crc, 0) {
                return Err(invalid("index page fails its checksum"));
            }
            out.extend_from_slice(bytes);
        }
        let skip = (at - first * PAGE_ROOM) as usize;
        let wanted = out.get(skip..skip + count as usize).ok_or_else(|| invalid("index is too short"))?;
        Ok(wanted.to_vec())
    }
}

/// Record numbers that stand together.
struct List {
    part: Part,
    first: u64,
    count: u64,
}

#[derive(Clone, Copy)]
enum Part {
    All,
    ByUser,
    ByModel,
}

fn read_head(file: &File) -> io::Result<[u8; HEAD_BYTES]> {
    let mut bytes = [0; HEAD_BYTES];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// The facts that a sidecar of the first format states, when it belongs to a segment of this length. It knows no models
/// and is made anew at leisure, but a start need not wait for that.
pub(super) fn old_facts(segment: &Path, first_seq: u64, len: u64) -> Option<SegmentFacts> {
    let file = File::open(index_path(segment)).ok()?;
    let mut bytes = [0; 64];
    file.read_exact_at(&mut bytes, 0).ok()?;
    let sound = bytes.starts_with(OLD_MAGIC) && crc32fast::hash(&bytes[..60]) == u32_at(&bytes, 60);
    let facts = SegmentFacts {
        first_seq: u64_at(&bytes, 24),
        last_seq: u64_at(&bytes, 32),
        oldest_ms: 0,
        newest_ms: u64_at(&bytes, 40),
        len: u64_at(&bytes, 48),
    };
    (sound && facts.first_seq == first_seq && facts.len == len).then_some(facts)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::super::segment::{LocalDisk, segment_path};
    use super::*;

    const MODELS: u64 = 3;

    /// 6,000 records of 1,000 users; each user has records of each model, one a second.
    fn filled() -> (MemoryIndex, SegmentFacts) {
        let mut index = MemoryIndex::default();
        let mut facts = SegmentFacts::empty(1, 100);
        for record in 0..6000_u64 {
            facts.note_time(record * 1000, record == 0);
            index.push(record % 1000, (record / 1000) % MODELS, record * 1000, 32 + record * 8);
        }
        facts.last_seq = 6000;
        (index, facts)
    }

    fn sidecar(dir: &Path, budget: &Arc<Budget>) -> FileIndex {
        let segment = segment_path(dir, 1);
        let (index, facts) = filled();
        write_index(&LocalDisk, &segment, &index, facts).unwrap();
        FileIndex::open(&segment, 1, Some(100), budget).unwrap()
    }

    #[test]
    fn file_and_memory_answer_alike_with_and_without_a_summary() {
        let dir = tempfile::tempdir().unwrap();
        let (memory, facts) = filled();
        let full = Arc::new(Budget { used: AtomicU64::new(SUMMARY_BYTES) });
        for (budget, has_summary) in [(Arc::default(), true), (full, false)] {
            let file = sidecar(dir.path(), &budget);
            assert_eq!(file.summary.is_some(), has_summary);
            for user_id in
                [None, Some(0), Some(1), Some(255), Some(256), Some(500), Some(999), Some(1000), Some(u64::MAX)]
            {
                for model in [None, Some(0), Some(2), Some(3)] {
                    for (from, to) in [(None, None), (Some(10), Some(5990)), (Some(7000), None), (None, Some(2000))] {
                        let wanted = Wanted { user_id, model, from, to };
                        let overlap = wanted.overlap(&facts);
                        for (skip, take) in [(0, 10), (1, 1), (3, 2), (2990, 20), (6000, 9), (0, 0)] {
                            let expected = memory.select(&wanted, overlap, skip, take);
                            let found = file.select(&wanted, overlap, skip, take).unwrap();
                            assert_eq!(found, expected, "{wanted:?} skip {skip} take {take}");
                        }
                    }
                }
            }
        }
        let wanted = Wanted { user_id: Some(7), ..Wanted::default() };
        let newest = memory.select(&wanted, Overlap::Whole, 0, 2);
        assert_eq!((newest.count, newest.places[0].number, newest.places[1].offset), (6, 5007, 32 + 8 * 4007));
    }

    #[test]
    fn the_filter_has_everybody_and_few_others() {
        let dir = tempfile::tempdir().unwrap();
        let file = sidecar(dir.path(), &Arc::default());
        assert!((0..1000).all(|user| file.may_have(user)));
        let others = (1000..101_000).filter(|user| file.may_have(*user)).count();
        assert!(others < 3000, "{others} of 100,000");
    }

    #[test]
    fn a_changed_byte_is_never_believed() {
        let dir = tempfile::tempdir().unwrap();
        drop(sidecar(dir.path(), &Arc::default()));
        let segment = segment_path(dir.path(), 1);
        let good = std::fs::read(index_path(&segment)).unwrap();
        let (memory, facts) = filled();
        let everything = [
            Wanted::default(),
            Wanted { user_id: Some(1), ..Wanted::default() },
            Wanted { model: Some(1), ..Wanted::default() },
            Wanted { from: Some(9), ..Wanted::default() },
        ];
        for at in (0..HEAD_BYTES).chain((HEAD_BYTES..good.len()).step_by(501)) {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(index_path(&segment), bad).unwrap();
            let Ok(index) = FileIndex::open(&segment, 1, Some(100), &Arc::default()) else {
                continue;
            };
            assert!(index.check(&memory, facts).is_err(), "byte {at}");
            for wanted in &everything {
                let overlap = wanted.overlap(&facts);
                if let Ok(answer) = index.select(wanted, overlap, 0, 6000) {
                    assert_eq!(answer, memory.select(wanted, overlap, 0, 6000), "byte {at}");
                }
            }
        }
    }

    #[test]
    fn an_index_of_another_segment_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(sidecar(dir.path(), &Arc::default()));
        let segment = segment_path(dir.path(), 1);
        for (first_seq, len) in [(1, Some(101)), (2, Some(100)), (2, None)] {
            assert!(FileIndex::open(&segment, first_seq, len, &Arc::default()).is_err());
        }
        FileIndex::open(&segment, 1, None, &Arc::default()).unwrap();
    }

    #[test]
    fn memory_for_summaries_is_bounded_and_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let budget: Arc<Budget> = Arc::default();
        let one = sidecar(dir.path(), &budget);
        let used = budget.used.load(Ordering::Relaxed);
        assert_eq!(used, one.head.summary_bytes());
        assert!(used > 1000);
        budget.used.store(SUMMARY_BYTES - used + 1, Ordering::Relaxed);
        let two = sidecar(dir.path(), &budget);
        assert!(two.summary.is_none());
        assert_eq!(budget.used.load(Ordering::Relaxed), SUMMARY_BYTES - used + 1);
        drop(one);
        assert!(sidecar(dir.path(), &budget).summary.is_some());
    }
}
