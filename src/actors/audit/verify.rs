//! Checking a trail: every record, its MAC, its place, and that both ends are where they should be.
//!
//! Reads files and never changes them; works while a server writes. Owns the words for what is wrong, each with the record
//! it is about. The order of a trail is its sequence, so the first problem names the first record that was changed, removed
//! or moved.

use std::fmt;
use std::io;
use std::path::Path;

use serde::Deserialize;

use super::chain::{ChainKey, Head, Link, Links, Place, links_of};
use super::trail::SegmentHead;
use crate::actors::writer::segment::{Found, RecordHead, Scanner, list_segments};

/// Problems that are told; a trail that was rewritten would have one for every record.
const MAX_PROBLEMS: usize = 100;

/// A segment file's name and a byte in it.
pub type FilePlace = (String, u64);

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The record it is about.
    pub sequence: u64,
    pub place: Option<FilePlace>,
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record {}", self.sequence)?;
        if let Some((file, offset)) = &self.place {
            write!(f, " ({file}, byte {offset})")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    pub records: u64,
    pub segments: u64,
    pub bytes: u64,
    /// The newest whole record.
    pub head: Option<Head>,
    /// The last record that retention removed, as the trail itself says.
    pub pruned_through: Option<u64>,
    /// Bytes at the end that were never finished. A running server may just be writing them.
    pub torn_bytes: u64,
    /// In order; the first one is about the first bad record.
    pub problems: Vec<Problem>,
    /// There were more problems than are told.
    pub more: bool,
}

/// Checks the trail in `dir`. `known` are heads that it must have reached: what the store recorded, what was noted
/// elsewhere. Without any, records that were cut off at the end cannot be missed.
///
/// # Errors
/// The files cannot be read. A directory that is not there is an empty trail.
pub fn verify(dir: &Path, key: &ChainKey, known: &[Head]) -> io::Result<VerifyReport> {
    let segments = match list_segments(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other?,
    };
    let mut check = Check { key, known, last: None, first: None, pruned: Vec::new(), report: VerifyReport::default() };
    let count = segments.len();
    for (at, (first_seq, path)) in segments.iter().enumerate() {
        check.segment(path, *first_seq, at + 1 == count)?;
    }
    check.ends();
    Ok(check.report)
}

struct Check<'a> {
    key: &'a ChainKey,
    known: &'a [Head],
    /// The record before the next one, as it says of itself.
    last: Option<Head>,
    /// The first record there is, and what it says it follows.
    first: Option<(u64, Link, Option<FilePlace>)>,
    /// What the trail says was removed by retention.
    pruned: Vec<Head>,
    report: VerifyReport,
}

impl Check<'_> {
    fn problem(&mut self, sequence: u64, place: Option<FilePlace>, what: impl Into<String>) {
        if self.report.problems.len() < MAX_PROBLEMS {
            self.report.problems.push(Problem { sequence, place, what: what.into() });
        } else {
            self.report.more = true;
        }
    }

    /// The sequence that has to come next.
    fn expected(&self, first_seq: u64) -> u64 {
        self.last.map_or(first_seq, |head| head.sequence + 1)
    }

    fn segment(&mut self, path: &Path, first_seq: u64, is_newest: bool) -> io::Result<()> {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let mut scanner = match Scanner::open(path, first_seq) {
            // Retention has just removed it; if it was somebody else, the gap will show.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        self.report.segments += 1;
        self.report.bytes += scanner.file_len();
        let mut begins = None;
        match SegmentHead::read(path) {
            Ok(head) if head.first_seq == first_seq => begins = Some(head.created_ms),
            Ok(head) => {
                let what =
                    format!("the segment says that it begins with record {}; it was renamed or moved", head.first_seq);
                self.problem(self.expected(first_seq).min(first_seq), Some((name.clone(), 0)), what);
            }
            // A creation that a crash cut off.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && is_newest => {}
            Err(error) => {
                let what = format!("the segment's head cannot be trusted: {error}");
                self.problem(self.expected(first_seq).min(first_seq), Some((name.clone(), 0)), what);
            }
        }
        loop {
            match scanner.step()? {
                Found::Record { offset, head } => {
                    let place = Some((name.clone(), offset));
                    if let Some(created_ms) = begins.take()
                        && created_ms != head.timestamp_ms
                    {
                        self.problem(
                            head.seq,
                            place.clone(),
                            "the segment's head names another time than its first record",
                        );
                    }
                    self.record(head, scanner.payload(), place);
                }
                Found::Damaged { offset, bytes } => {
                    let expected = self.expected(first_seq);
                    self.problem(
                        expected,
                        Some((name.clone(), offset)),
                        format!("{bytes} bytes here are no record that may follow"),
                    );
                }
                Found::Torn { bytes, .. } if is_newest => self.report.torn_bytes = bytes,
                Found::Torn { offset, bytes } => {
                    let expected = self.expected(first_seq);
                    // A torn tail that a restart left behind as evidence: it only counts if records are missing.
                    self.report.torn_bytes += bytes;
                    tracing::debug!(expected, offset, "an older segment has a torn tail");
                }
                Found::End => return Ok(()),
            }
        }
    }

    fn record(&mut self, head: RecordHead, payload: &[u8], place: Option<FilePlace>) {
        self.report.records += 1;
        let Some(links) = links_of(payload) else {
            let expected = self.expected(head.seq);
            self.last = Some(Head { sequence: head.seq, mac: Link::GENESIS });
            return self.problem(expected.min(head.seq), place, "it does not carry the chain's fields");
        };
        self.place(head.seq, links, &place);
        let covered = Place { seq: head.seq, user: head.user_id, at_ms: head.timestamp_ms };
        if !self.key.is_whole(covered, payload, links) {
            self.problem(head.seq, place, "its content was changed, or it was not written under this key");
        } else if let Some(pruned) = pruned_by(payload) {
            self.pruned.push(pruned);
        }
        self.last = Some(Head { sequence: head.seq, mac: links.mac });
        if let Some(known) = self.known.iter().find(|known| known.sequence == head.seq && known.mac != links.mac) {
            let what = format!("it is not the record that was known under this number ({})", known.mac);
            self.problem(head.seq, None, what);
        }
    }

    /// Whether a record stands where it should.
    fn place(&mut self, seq: u64, links: Links, place: &Option<FilePlace>) {
        match self.last {
            None => self.first = Some((seq, links.prev, place.clone())),
            Some(last) if seq == last.sequence + 1 => {
                if links.prev != last.mac {
                    self.problem(
                        seq,
                        place.clone(),
                        format!("it does not follow the record {} that stands before it", last.sequence),
                    );
                }
            }
            Some(last) if seq <= last.sequence => {
                self.problem(seq, place.clone(), format!("it stands behind record {}", last.sequence));
            }
            Some(last) => {
                let missing = last.sequence + 1;
                let what = match seq - missing {
                    1 => format!("it is missing; record {seq} stands in its place"),
                    more => format!("it and {} after it are missing; record {seq} stands in their place", more - 1),
                };
                self.problem(missing, place.clone(), what);
            }
        }
    }

    /// Both ends of the trail: nothing may be missing before the first record or after the last.
    fn ends(&mut self) {
        if let Some((seq, prev, place)) = self.first.take() {
            let begins = Head { sequence: seq - 1, mac: prev };
            let is_beginning = begins == Head::EMPTY;
            // A deletion that a crash cut off has removed less than the trail says.
            let is_told = |told: &Head| *told == begins || told.sequence > begins.sequence;
            if !is_beginning && self.pruned.iter().any(is_told) {
                self.report.pruned_through = Some(begins.sequence);
            } else if !is_beginning {
                let missing = self.pruned.iter().map(|head| head.sequence + 1).filter(|from| *from < seq).max();
                let missing = missing.unwrap_or(1);
                let what = format!("it is missing: the trail begins with record {seq}, and nothing says why");
                let problem = Problem { sequence: missing, place, what };
                // It comes before everything else.
                self.report.problems.insert(0, problem);
            }
        }
        self.report.head = self.last;
        let reached = self.last.map_or(0, |head| head.sequence);
        let newest = self.known.iter().max_by_key(|head| head.sequence).filter(|head| head.sequence > reached);
        if let Some(known) = newest {
            let what = match known.sequence - reached {
                1 => "it is missing at the end".to_owned(),
                n => format!("it and {} after it are missing at the end", n - 1),
            };
            self.problem(reached + 1, None, what);
        }
    }
}

/// What a record of retention says it removed.
fn pruned_by(payload: &[u8]) -> Option<Head> {
    #[derive(Deserialize)]
    struct Form<'a> {
        action: &'a str,
        details: Details,
    }
    #[derive(Deserialize)]
    struct Details {
        last: Option<u64>,
        mac: Option<Link>,
    }
    let form: Form<'_> = serde_json::from_slice(payload).ok()?;
    let is_pruned = form.action == super::Action::AuditPruned.as_str();
    is_pruned.then_some(Head { sequence: form.details.last?, mac: form.details.mac? })
}
