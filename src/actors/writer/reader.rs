//! Reading the journal: one user's conversations page by page, and the check of every record.
//!
//! Owns no file and writes none, so it works beside a running server as well as without one. Every record is checked
//! against its checksum each time it is read; one that fails becomes an entry that says so, and is counted.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::index::{FileIndex, MemoryIndex, SegmentFacts, scan_segment};
use super::segment::{Found, RecordHead, Scanner, SegmentHead, list_segments, read_record};

/// Most records on one page.
pub const MAX_PAGE_SIZE: usize = 200;

/// Most bytes of records on one page; what is past it is replaced by an entry that says so.
pub const MAX_PAGE_BYTES: usize = 64 << 20;

/// One page of a user's conversations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Records as JSON text, newest first. An unreadable one is `{"error":"unreadable_record",…}`, one past
    /// [`MAX_PAGE_BYTES`] is `{"error":"page_too_large",…}`.
    pub items: Vec<String>,
    /// Records of this user in the whole journal.
    pub total: u64,
    /// How many of `items` could not be read.
    pub unreadable: u64,
}

/// What a check of the whole journal found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Segment files read.
    pub segments: u64,
    /// Records whose checksum holds.
    pub records: u64,
    /// Bytes of all segment files.
    pub bytes: u64,
    /// Bytes after the last whole record of the newest segment: a write that is under way, or one a crash cut off.
    /// No problem: the next start cuts them, and nothing in them was ever acknowledged.
    pub torn_bytes: u64,
    /// What is wrong, one line each, oldest segment first. Empty means sound.
    pub problems: Vec<String>,
}

/// One segment and the index that answers for it.
#[derive(Debug)]
pub(super) struct Segment {
    pub path: PathBuf,
    pub facts: SegmentFacts,
    pub index: Index,
    /// Set when a read found the sidecar unusable; the journal's thread then builds it anew.
    pub index_damaged: AtomicBool,
}

#[derive(Debug)]
pub(super) enum Index {
    Memory(MemoryIndex),
    File(FileIndex),
}

impl Segment {
    /// A sealed segment by its sidecar.
    pub(super) fn sealed(path: PathBuf, index: FileIndex) -> Self {
        let facts = index.facts();
        Self { path, facts, index: Index::File(index), index_damaged: AtomicBool::new(false) }
    }

    /// A segment whose index is in memory.
    pub(super) fn in_memory(path: PathBuf, facts: SegmentFacts, index: MemoryIndex) -> Self {
        Self { path, facts, index: Index::Memory(index), index_damaged: AtomicBool::new(false) }
    }

    /// Bytes on disk, the sidecar's included.
    pub(super) fn bytes(&self) -> u64 {
        match &self.index {
            Index::Memory(_) => self.facts.len,
            Index::File(index) => self.facts.len + index.bytes(),
        }
    }

    fn newest(&self, user_id: u64, skip: u64, take: usize) -> io::Result<(u64, Vec<u32>)> {
        let index = match &self.index {
            Index::Memory(index) => return Ok((index.count(user_id), index.newest(user_id, skip, take))),
            Index::File(index) => index,
        };
        match index.newest(user_id, skip, take) {
            Ok(answer) => Ok(answer),
            Err(_) if !self.path.exists() => Ok((0, Vec::new())), // retention was faster
            Err(_) => {
                self.index_damaged.store(true, Ordering::Relaxed);
                let scanned = scan_segment(&self.path, self.facts.first_seq)?.index;
                Ok((scanned.count(user_id), scanned.newest(user_id, skip, take)))
            }
        }
    }
}

/// Collects one page over segments that are shown newest first.
pub(super) struct PageQuery {
    user_id: u64,
    skip: u64,
    left: usize,
    total: u64,
    picks: Vec<(PathBuf, Vec<u32>)>,
}

impl PageQuery {
    /// `page` counts from 1 (0 is taken as 1); `page_size` is clamped to 1..=[`MAX_PAGE_SIZE`].
    pub(super) fn new(user_id: u64, page: u64, page_size: usize) -> Self {
        let size = page_size.clamp(1, MAX_PAGE_SIZE);
        let skip = page.saturating_sub(1).saturating_mul(size as u64);
        Self { user_id, skip, left: size, total: 0, picks: Vec::new() }
    }

    /// Takes what the page needs of one segment. Touches its index only.
    pub(super) fn visit(&mut self, segment: &Segment) -> io::Result<()> {
        let (count, offsets) = segment.newest(self.user_id, self.skip, self.left)?;
        self.total += count;
        self.skip = self.skip.saturating_sub(count);
        self.left -= offsets.len().min(self.left);
        if !offsets.is_empty() {
            self.picks.push((segment.path.clone(), offsets));
        }
        Ok(())
    }

    /// Reads the records chosen.
    pub(super) fn read(self) -> io::Result<Page> {
        let mut page = Page { total: self.total, ..Page::default() };
        let mut room = MAX_PAGE_BYTES;
        for (path, offsets) in &self.picks {
            let file = match File::open(path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue, // retention was faster
                Err(error) => return Err(error),
            };
            for offset in offsets {
                let item = read_item(&file, path, *offset, self.user_id, &mut page.unreadable);
                page.items.push(fit(item, &mut room));
            }
        }
        Ok(page)
    }
}

fn read_item(file: &File, path: &Path, offset: u32, user_id: u64, unreadable: &mut u64) -> String {
    let record = read_record(file, u64::from(offset)).ok().filter(|(head, _)| head.user_id == user_id);
    match record.and_then(|(_, payload)| String::from_utf8(payload).ok()) {
        Some(json) => json,
        None => {
            *unreadable += 1;
            let segment = file_name(path);
            format!(r#"{{"error":"unreadable_record","segment":"{segment}","offset":{offset}}}"#)
        }
    }
}

/// Large records must not add up to more memory than a page may have.
fn fit(item: String, room: &mut usize) -> String {
    match room.checked_sub(item.len()) {
        Some(left) => {
            *room = left;
            item
        }
        None => format!(r#"{{"error":"page_too_large","bytes":{}}}"#, item.len()),
    }
}

fn file_name(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default()
}

/// The journal as its files stood when it was opened. Takes no lock; the server may run or not.
#[derive(Debug)]
pub struct JournalReader {
    dir: PathBuf,
    segments: Vec<Arc<Segment>>,
}

impl JournalReader {
    /// Opens the journal in `dir` (`<data_dir>/journal`). Segments without a sound sidecar, as the newest always is,
    /// are read through once.
    pub fn open(dir: impl Into<PathBuf>) -> io::Result<Self> {
        let dir = dir.into();
        let mut segments = Vec::new();
        for (first_seq, path) in list_segments(&dir)? {
            match open_segment(path, first_seq) {
                Ok(segment) => segments.push(Arc::new(segment)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {} // deleted by retention meanwhile
                Err(error) => return Err(error),
            }
        }
        Ok(Self { dir, segments })
    }

    /// One user's conversations, newest first. `page` counts from 1; `page_size` is clamped to 1..=200.
    pub fn page(&self, user_id: u64, page: u64, page_size: usize) -> io::Result<Page> {
        let mut query = PageQuery::new(user_id, page, page_size);
        for segment in self.segments.iter().rev() {
            query.visit(segment)?;
        }
        query.read()
    }

    /// Shows every whole record's JSON to `visit`, oldest first, reading the files as they are now.
    pub fn for_each(&self, mut visit: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        for (first_seq, path) in list_segments(&self.dir)? {
            let mut scanner = Scanner::open(&path, first_seq)?;
            loop {
                match scanner.step()? {
                    Found::Record { .. } => visit(scanner.payload())?,
                    Found::Damaged { .. } | Found::Torn { .. } => {}
                    Found::End => break,
                }
            }
        }
        Ok(())
    }

    /// Checks every record's checksum, the order of sequences, and every sidecar, reading the files as they are now.
    pub fn verify(&self) -> io::Result<VerifyReport> {
        let segments = list_segments(&self.dir)?;
        let mut check = Check::default();
        for (position, (first_seq, path)) in segments.iter().enumerate() {
            let newest = position + 1 == segments.len();
            match check.segment(path, *first_seq, newest) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => check.expected = None, // retention was faster
                Err(error) => check.problem(path, &error.to_string()),
            }
        }
        Ok(check.report)
    }
}

fn open_segment(path: PathBuf, first_seq: u64) -> io::Result<Segment> {
    if let Ok(index) = FileIndex::open(&path, first_seq) {
        return Ok(Segment::sealed(path, index));
    }
    let scanned = scan_segment(&path, first_seq)?;
    Ok(Segment::in_memory(path, scanned.facts, scanned.index))
}

/// A verification under way.
#[derive(Default)]
struct Check {
    report: VerifyReport,
    /// The sequence that has to come next; none before the first segment, whose predecessors retention deleted.
    expected: Option<u64>,
}

impl Check {
    fn segment(&mut self, path: &Path, first_seq: u64, newest: bool) -> io::Result<()> {
        let mut scanner = Scanner::open(path, first_seq)?;
        self.report.segments += 1;
        self.report.bytes += scanner.file_len();
        self.head(path, first_seq, newest && scanner.file_len() == 0);
        self.sequence(path, first_seq);
        loop {
            match scanner.step()? {
                Found::Record { head, .. } => self.record(path, head),
                Found::Damaged { offset, bytes } => self.damage(path, offset, bytes),
                Found::Torn { bytes, .. } if newest => self.report.torn_bytes += bytes,
                Found::Torn { offset, bytes } => self.damage(path, offset, bytes),
                Found::End => break,
            }
        }
        self.sidecar(path, first_seq, newest);
        Ok(())
    }

    /// An empty newest file is one that a crash kept from getting its head; it holds nothing.
    fn head(&mut self, path: &Path, first_seq: u64, unborn: bool) {
        match File::open(path).and_then(|file| SegmentHead::read(&file)) {
            Ok(head) if head.first_seq != first_seq => self.problem(path, "name and head disagree on the sequence"),
            Err(error) if !unborn => self.problem(path, &error.to_string()),
            _ => {}
        }
    }

    fn record(&mut self, path: &Path, head: RecordHead) {
        self.report.records += 1;
        self.sequence(path, head.seq);
        self.expected = Some(head.seq + 1);
    }

    fn sequence(&mut self, path: &Path, found: u64) {
        let expected = self.expected.replace(found).unwrap_or(found);
        if found != expected {
            self.problem(path, &format!("sequence {found} where {expected} was expected"));
        }
    }

    fn damage(&mut self, path: &Path, offset: u64, bytes: u64) {
        self.problem(path, &format!("{bytes} bytes at {offset} are no whole record"));
    }

    fn sidecar(&mut self, path: &Path, first_seq: u64, newest: bool) {
        match FileIndex::open(path, first_seq).and_then(|index| index.check()) {
            Err(error) if !newest => self.problem(path, &format!("index: {error}")),
            _ => {}
        }
    }

    fn problem(&mut self, path: &Path, what: &str) {
        self.report.problems.push(format!("{}: {what}", file_name(path)));
    }
}
