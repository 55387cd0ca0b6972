//! The check of a whole journal: every record in every form, what vouches for it, and every index against its segment.
//!
//! Owns nothing and changes nothing; it reports.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::index::Indexing;
use super::keys::{JournalKeys, KeyId};
use super::query::file_name;
use super::segment::{Found, RecordHead, list_segments};
use super::sidecar::{Budget, FileIndex, old_facts};
use super::source::{Shape, Walk};

/// What a check of the whole journal found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Segment files read.
    pub segments: u64,
    /// Of these, how many are rewritten in blocks: compressed, unless that is switched off.
    pub segments_in_blocks: u64,
    /// Records whose checksum holds, and if they are encrypted, whose proof does.
    pub records: u64,
    /// Bytes of all segment files.
    pub bytes: u64,
    /// Bytes after the last whole record of the newest segment: a write that is under way, or one a crash cut off.
    /// No problem: the next start cuts them, and nothing in them was ever acknowledged.
    pub torn_bytes: u64,
    /// The keys that are still in use, with the segments under each. What is not here may be thrown away.
    pub keys: Vec<KeyUse>,
    /// What is wrong, one line each, oldest segment first. Empty means sound.
    pub problems: Vec<String>,
}

/// A key and what still needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyUse {
    /// Its name; none for segments that are not encrypted.
    pub id: Option<KeyId>,
    /// Segments under it.
    pub segments: u64,
    /// The config key that holds it; none when it is not configured.
    pub role: Option<&'static str>,
}

pub(super) fn verify(dir: &Path, keys: &JournalKeys) -> io::Result<VerifyReport> {
    let segments = list_segments(dir)?;
    let mut check = Check { keys, report: VerifyReport::default(), expected: None, in_use: BTreeMap::new() };
    for (position, (first_seq, path)) in segments.iter().enumerate() {
        let newest = position + 1 == segments.len();
        match check.segment(path, *first_seq, newest) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => check.expected = None, // retention was faster
            Err(error) => {
                check.expected = None;
                check.problem(path, &without_name(path, &error.to_string()));
            }
        }
    }
    let uses = check.in_use.iter().map(|(id, segments)| {
        let role = id.and_then(|id| keys.role(id));
        KeyUse { id: *id, segments: *segments, role }
    });
    check.report.keys = uses.collect();
    Ok(check.report)
}

fn without_name(path: &Path, text: &str) -> String {
    text.strip_prefix(&format!("{}: ", file_name(path))).unwrap_or(text).to_owned()
}

/// A verification under way.
struct Check<'a> {
    keys: &'a JournalKeys,
    report: VerifyReport,
    /// The sequence that has to come next; none before the first segment, whose predecessors retention deleted.
    expected: Option<u64>,
    in_use: BTreeMap<Option<KeyId>, u64>,
}

impl Check<'_> {
    fn segment(&mut self, path: &Path, first_seq: u64, newest: bool) -> io::Result<()> {
        let shape = Shape::read(path)?;
        self.report.segments += 1;
        self.report.bytes += shape.file_len;
        if let Some(head) = &shape.head {
            *self.in_use.entry(head.key_id()).or_default() += 1;
            self.report.segments_in_blocks += u64::from(head.is_blocks());
            if head.first_seq != first_seq {
                self.problem(path, "name and head disagree on the sequence");
            }
        }
        let mut walk = Walk::open(path, first_seq, self.keys)?;
        let before = self.report.problems.len();
        // An empty newest file is one that a crash kept from getting its head; it holds nothing.
        if let Some(damage) = walk.damage().filter(|_| !(newest && walk.file_len() == 0)) {
            self.problem(path, &damage);
        }
        self.sequence(path, first_seq);
        let mut indexing = Indexing::new(first_seq);
        let mut torn = 0;
        loop {
            match walk.step()? {
                Found::Record { offset, head } => {
                    self.record(path, head);
                    indexing.push(head, offset, walk.payload());
                }
                Found::Damaged { offset, bytes } => self.damage(path, offset, bytes),
                Found::Torn { bytes, .. } if newest => {
                    torn = bytes;
                    self.report.torn_bytes += bytes;
                }
                Found::Torn { offset, bytes } => self.damage(path, offset, bytes),
                Found::End => break,
            }
        }
        let image_end = walk.image_end() - torn;
        let is_sound = self.report.problems.len() == before;
        if is_sound && shape.image_len.is_none_or(|len| len != image_end + torn) {
            self.problem(path, "the footer does not say where the records end");
        }
        let mut scanned = indexing.scanned;
        scanned.facts.len = image_end;
        self.sidecar(path, &shape, newest, |index| {
            // Of a damaged segment the index may know more than is left.
            if is_sound { index.check(&scanned.index, scanned.facts) } else { Ok(()) }
        });
        Ok(())
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

    fn sidecar(
        &mut self,
        path: &Path,
        shape: &Shape,
        newest: bool,
        compare: impl FnOnce(&FileIndex) -> io::Result<()>,
    ) {
        let first_seq = shape.head.map_or(0, |head| head.first_seq);
        // The newest one has none while it is written; one of the first format is made anew by the server.
        if (newest && !shape.head.is_some_and(|head| head.is_blocks()))
            || old_facts(path, first_seq, shape.file_len).is_some()
        {
            return;
        }
        let budget: Arc<Budget> = Arc::default();
        let first_seq = first_seq_of_name(path).unwrap_or(first_seq);
        let result = FileIndex::open(path, first_seq, shape.image_len, &budget).and_then(|index| compare(&index));
        if let Err(error) = result {
            self.problem(path, &format!("index: {error}"));
        }
    }

    fn problem(&mut self, path: &Path, what: &str) {
        self.report.problems.push(format!("{}: {what}", file_name(path)));
    }
}

fn first_seq_of_name(path: &Path) -> Option<u64> {
    path.file_stem()?.to_str()?.parse().ok()
}
