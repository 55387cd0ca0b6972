//! The way back: spilled records into the journal, each exactly once.
//!
//! Owns the reading of spill files, their end, and what a start finds of them. A file goes back record by record, in
//! order, and every record says in the journal which of the spill's it was (`spilled`). Before the first of them the file
//! is renamed to say from which of the journal's sequences on they may stand; it is deleted when the last one is synced. So
//! a start after a crash in between need only look at the journal from there on to know where to go on.
//!
//! It never decides when: the journal's [thread](super::thread) calls it when nothing else waits.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use serde::Deserialize;

use super::index::ModelTags;
use super::keys::JournalKeys;
use super::segment::{Disk, Found, RecordHead, SEGMENT_HEAD_BYTES, Scanner, list_segments};
use super::source::{Shape, Walk, named};
use super::spill::SpillFile;
use super::thread::Batch;
use super::{JournalCounters, Shared};
use crate::failpoint;
use crate::store::folder;

/// The file on its way back.
struct Current {
    file: SpillFile,
    walk: Walk,
    /// Records up to this sequence are in the journal already.
    done: u64,
    /// Records of it that have gone into a batch.
    taken: u64,
    is_read: bool,
}

/// What the journal's thread knows of the way back.
#[derive(Default)]
pub(super) struct Replay {
    current: Option<Current>,
    /// Files that a crash left half way, oldest first, and how far they had come.
    half_way: Vec<(SpillFile, u64)>,
    /// Held, not read: while it is locked no other server takes these files.
    pub(super) lock: Option<File>,
}

/// What a start found in the spill's directory.
#[derive(Default)]
pub(super) struct Leftover {
    pub(super) replay: Replay,
    /// Whole files, oldest first.
    pub(super) files: Vec<SpillFile>,
    /// The sequence after the last one found.
    pub(super) next: u64,
    pub(super) records: u64,
    pub(super) bytes: u64,
}

impl Replay {
    pub(super) fn has_work(&self, shared: &Shared) -> bool {
        self.current.is_some() || !self.half_way.is_empty() || !shared.spill.files.lock().is_empty()
    }

    /// Fills an empty batch from the oldest file, up to `limit` bytes; `next_seq` is the journal's. Call it again when the
    /// batch is on disk; a file that has nothing left is deleted then.
    pub(super) fn fill(
        &mut self,
        shared: &Shared,
        disk: &dyn Disk,
        (batch, next_seq, tags, limit): (&mut Batch, &mut u64, &mut ModelTags, usize),
    ) -> io::Result<()> {
        if self.current.is_none() {
            self.current = self.begin(shared, disk, *next_seq)?;
        }
        let Some(current) = &mut self.current else { return Ok(()) };
        while batch.bytes.len() < limit && !current.is_read {
            match current.walk.step()? {
                Found::End => current.is_read = true,
                Found::Record { offset, .. } if offset >= current.file.len => current.is_read = true,
                Found::Record { head, .. } if head.seq > current.done => {
                    let spilled = Spilled { head, members: current.walk.payload() };
                    if batch.push_spilled(*next_seq, &spilled, tags) {
                        *next_seq += 1;
                        current.taken += 1;
                    }
                    current.done = head.seq;
                }
                Found::Record { .. } | Found::Damaged { .. } | Found::Torn { .. } => {}
            }
        }
        if batch.bytes.is_empty() && current.is_read {
            self.finish(shared, disk)?;
        }
        Ok(())
    }

    /// The next file, renamed so that a crash from here on does no harm.
    fn begin(&mut self, shared: &Shared, disk: &dyn Disk, next_seq: u64) -> io::Result<Option<Current>> {
        let open = |file: SpillFile, done| -> io::Result<_> {
            let walk = Walk::open(&file.path, file.first, &shared.keys)?;
            Ok(Some(Current { file, walk, done, taken: 0, is_read: false }))
        };
        if let Some((file, done)) = self.half_way.first().cloned() {
            let current = open(file, done)?;
            self.half_way.remove(0);
            return Ok(current);
        }
        let mut files = shared.spill.files.lock();
        let Some(file) = files.front_mut() else { return Ok(None) };
        if Name::of(&file.path).is_some_and(|name| name.journal_seq.is_none()) {
            let path = half_way_path(file, next_seq);
            fs::rename(&file.path, &path)?;
            failpoint::hit("spill.after_rename");
            file.path = path;
        }
        if let Some(dir) = file.path.parent() {
            disk.sync_dir(dir)?;
        }
        let current = open(file.clone(), 0)?;
        files.pop_front();
        Ok(current)
    }

    /// Everything of the file is in the journal, and synced.
    fn finish(&mut self, shared: &Shared, disk: &dyn Disk) -> io::Result<()> {
        let Some(Current { file, taken, .. }) = &self.current else { return Ok(()) };
        match fs::remove_file(&file.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        failpoint::hit("spill.after_remove");
        if let Some(dir) = file.path.parent() {
            disk.sync_dir(dir)?;
        }
        let counters = &shared.counters;
        counters.spill_bytes.fetch_sub(file.len, Ordering::Relaxed);
        // What was written to the file and could not be read back.
        let lost = file.records.saturating_sub(*taken);
        counters.dropped.fetch_add(lost, Ordering::SeqCst);
        counters.spilled.fetch_sub(lost, Ordering::SeqCst);
        counters.read_errors.fetch_add(lost, Ordering::Relaxed);
        self.current = None;
        Ok(())
    }
}

/// A record of a spill file.
pub(super) struct Spilled<'a> {
    pub(super) head: RecordHead,
    /// Its JSON without braces and id.
    pub(super) members: &'a [u8],
}

impl Spilled<'_> {
    /// Appends the journal's record.
    pub(super) fn encode(&self, id: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"id\":");
        out.extend_from_slice(itoa::Buffer::new().format(id).as_bytes());
        out.push(b',');
        out.extend_from_slice(self.members);
        out.extend_from_slice(b",\"spilled\":");
        out.extend_from_slice(itoa::Buffer::new().format(self.head.seq).as_bytes());
        out.push(b'}');
    }
}

/// The file's name while it goes back: its first sequence, and the journal's from which on its records may stand.
fn half_way_path(file: &SpillFile, journal_seq: u64) -> PathBuf {
    file.path.with_file_name(format!("{:020}-{journal_seq:020}.replay", file.first))
}

/// Takes stock of a spill directory; one that is not there holds nothing. Empty and unfinished files are removed.
///
/// # Errors
/// The directory or a file cannot be read, or a file is of a later version or under a key that is not among `keys`.
pub(super) fn take_stock(dir: &Path, journal_dir: &Path, keys: &JournalKeys) -> io::Result<Leftover> {
    let mut found = Leftover { next: 1, ..Leftover::default() };
    let items = match fs::read_dir(dir) {
        Ok(items) => items,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(error),
    };
    let mut paths = Vec::new();
    for item in items {
        let path = item?.path();
        if let Some(name) = Name::of(&path) {
            paths.push((name, path));
        }
    }
    paths.sort();
    remove_second_names(&mut paths)?;
    for (name, path) in paths {
        let done = match name.journal_seq {
            Some(from) => last_replayed(journal_dir, from, keys)?,
            None => 0,
        };
        if let Some(seal) = Shape::read(&path)?.head.and_then(|head| head.seal) {
            keys.of_file(&seal).map_err(|error| named(&path, &error))?;
        }
        let mut file = SpillFile { path, first: name.first, len: SEGMENT_HEAD_BYTES, records: 0 };
        found.next = found.next.max(name.first);
        let mut scanner = Scanner::open(&file.path, file.first)?;
        loop {
            match scanner.step()? {
                Found::Record { offset, head } => {
                    file.len = offset + head.size();
                    file.records += u64::from(head.seq > done);
                    found.next = found.next.max(head.seq + 1);
                }
                Found::Damaged { .. } | Found::Torn { .. } => {}
                Found::End => break,
            }
        }
        if file.records == 0 {
            fs::remove_file(&file.path)?;
            continue;
        }
        found.records += file.records;
        found.bytes += file.len;
        match name.journal_seq {
            Some(_) => found.replay.half_way.push((file, done)),
            None => found.files.push(file),
        }
    }
    Ok(found)
}

/// A power cut may keep both names of a file that was renamed to go back. It goes back once, by the name that says from
/// where on it did.
fn remove_second_names(paths: &mut Vec<(Name, PathBuf)>) -> io::Result<()> {
    let half_way: Vec<PathBuf> =
        paths.iter().filter(|(name, _)| name.journal_seq.is_some()).map(|(_, path)| path.clone()).collect();
    let is_second = |name: &Name, path: &Path| {
        name.journal_seq.is_none() && half_way.iter().any(|other| folder::is_same_file(path, other))
    };
    for (_, path) in paths.extract_if(.., |(name, path)| is_second(name, path)) {
        fs::remove_file(path)?;
    }
    Ok(())
}

/// What a spill file's name says. Those half way sort among the others by their age.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    first: u64,
    journal_seq: Option<u64>,
}

impl Name {
    fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        if let Some(first) = name.strip_suffix(".spill") {
            return Some(Self { first: first.parse().ok()?, journal_seq: None });
        }
        let (first, journal_seq) = name.strip_suffix(".replay")?.split_once('-')?;
        Some(Self { first: first.parse().ok()?, journal_seq: Some(journal_seq.parse().ok()?) })
    }
}

/// The newest of the spill's sequences that stands in the journal from `from` on; 0 for none.
fn last_replayed(journal_dir: &Path, from: u64, keys: &JournalKeys) -> io::Result<u64> {
    #[derive(Deserialize)]
    struct Marked {
        #[serde(default)]
        spilled: Option<u64>,
    }
    let segments = list_segments(journal_dir)?;
    let mut last = 0;
    for (nth, (first_seq, path)) in segments.iter().enumerate() {
        let ends_before = segments.get(nth + 1).is_some_and(|(next, _)| *next <= from);
        if ends_before {
            continue;
        }
        let mut walk = Walk::open(path, *first_seq, keys)?;
        loop {
            match walk.step()? {
                Found::Record { head, .. } if head.seq >= from => {
                    let marked = serde_json::from_slice::<Marked>(walk.payload());
                    last = last.max(marked.ok().and_then(|marked| marked.spilled).unwrap_or(0));
                }
                Found::Record { .. } | Found::Damaged { .. } | Found::Torn { .. } => {}
                Found::End => break,
            }
        }
    }
    Ok(last)
}

/// Puts what a start found where the running journal looks for it. These records count as handed over and spilled.
pub(super) fn take_over(shared: &Shared, leftover: Leftover) -> Replay {
    let counters: &JournalCounters = &shared.counters;
    counters.spilled.fetch_add(leftover.records, Ordering::SeqCst);
    counters.emitted.fetch_add(leftover.records, Ordering::SeqCst);
    counters.spill_bytes.fetch_add(leftover.bytes, Ordering::SeqCst);
    shared.spill.files.lock().extend(leftover.files);
    leftover.replay
}
