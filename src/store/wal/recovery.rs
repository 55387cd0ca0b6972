//! Reading a folder of log files after a stop or a crash.
//!
//! Owns the difference between a tail that was never acknowledged, which is cut, and a record that was and cannot be read,
//! which is said. Never guesses: what cannot be told apart is refused.
//!
//! A file is known by its name and by its header, and both must say the same generation. Where they do not, a power cut came
//! between a change of one and a change of the other. Such a file goes, when all that it ever held is in the backend or was
//! read from other files. It is never used again: it may still have a second name.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::super::{StoreError, folder, sync_folder};
use super::view::Changes;
use super::{HEADER_BYTES, LogOwner, MAGIC, MAGIC_FORMAT_1, RECORD_HEADER, checksum, failed, spare_path};
use crate::failpoint;

/// How many sequence numbers after a broken record count as later ones. A file holds fewer.
const NEARBY: u64 = 1 << 24;
const BLOCK: usize = 4096;

pub(super) struct Recovered {
    pub(super) changes: Changes,
    /// Oldest first.
    pub(super) files: Vec<PathBuf>,
    pub(super) last_generation: u64,
    /// Of the first record of all files, when there is a file.
    pub(super) first_sequence: Option<u64>,
    pub(super) next_sequence: u64,
    strays: Vec<Stray>,
}

/// A file whose name and header do not belong together.
struct Stray {
    path: PathBuf,
    /// By its name.
    generation: u64,
    /// None that can be read: the file was never begun.
    header: Option<Header>,
}

/// Reads all files in the order of their generations. Records up to `applied` are in the backend already.
pub(super) fn recover(folder: &Path, owner: &LogOwner, applied: u64) -> Result<Recovered, StoreError> {
    let mut recovered = Recovered {
        changes: Changes::new(),
        files: Vec::new(),
        last_generation: 0,
        first_sequence: None,
        next_sequence: applied + 1,
        strays: Vec::new(),
    };
    let mut newest = None;
    for (generation, path) in log_files(folder)? {
        let bytes = fs::read(&path).map_err(|e| failed("cannot read", &path, &e))?;
        let header = match read_header(&bytes) {
            Some(header) if header.generation == generation => header,
            other => {
                recovered.strays.push(Stray::of(path, generation, other, &bytes, owner.store)?);
                continue;
            }
        };
        if header.store != owner.store && !(header.store == FORMAT_1 && owner.accepts_format_1) {
            return Err(of_another_store(&path));
        }
        if recovered.first_sequence.is_some() && header.first != recovered.next_sequence {
            return Err(damaged(
                &path,
                &format!("records {} to {} are missing before it", recovered.next_sequence, header.first),
            ));
        }
        recovered.first_sequence.get_or_insert(header.first);
        let read = read_records(&bytes, generation, header.first, applied, &mut recovered.changes);
        if let Some(sequence) = read.unreadable {
            return Err(damaged(&path, &format!("record {sequence} was acknowledged and cannot be read")));
        }
        recovered.next_sequence = read.next_sequence;
        recovered.last_generation = recovered.last_generation.max(generation);
        recovered.files.push(path.clone());
        newest = Some((path, bytes, read.last_record));
    }
    // Nor is a number used again that a file was begun under.
    let strays = recovered.strays.iter().filter_map(|stray| stray.header.as_ref());
    recovered.last_generation = strays.map(|header| header.generation).fold(recovered.last_generation, u64::max);
    if let Some((path, bytes, last)) = newest {
        write_again(&path, &bytes, last).map_err(|e| failed("cannot write again the last record of", &path, &e))?;
    }
    Ok(recovered)
}

impl Recovered {
    /// Removes for good what is no log file any more. To be called when the log and the backend are known to be whole
    /// together.
    pub(super) fn clear(&self, place: &Path) -> Result<(), StoreError> {
        for stray in &self.strays {
            stray.check(self.next_sequence)?;
        }
        let mut gone: Vec<&Path> = self.strays.iter().map(|stray| stray.path.as_path()).collect();
        let spare = spare_path(place);
        // The spare under a second name is not to spare.
        if gone
            .iter()
            .copied()
            .chain(self.files.iter().map(PathBuf::as_path))
            .any(|own| folder::is_same_file(own, &spare))
        {
            gone.push(&spare);
        }
        if gone.is_empty() {
            return Ok(());
        }
        for path in gone {
            tracing::warn!(file = %path.display(), "removing a log file that a power cut left without a use");
            fs::remove_file(path).map_err(|e| failed("cannot remove", path, &e))?;
            failpoint::hit("wal.after_remove");
        }
        sync_folder(place).map_err(|e| failed("cannot sync", place, &e))
    }
}

impl Stray {
    fn of(
        path: PathBuf,
        generation: u64,
        header: Option<Header>,
        bytes: &[u8],
        own: [u8; 16],
    ) -> Result<Self, StoreError> {
        match &header {
            // Format 1 names no store; it was this one's that was brought up to date.
            Some(header) if ![own, FORMAT_1].contains(&header.store) => Err(of_another_store(&path)),
            None if record_at(bytes, HEADER_BYTES as usize, generation).is_some() => {
                Err(damaged(&path, "its header cannot be read, but records follow it"))
            }
            _ => Ok(Self { path, generation, header }),
        }
    }

    /// Refuses to lose a record. All before `next` are in the backend or were read from other files.
    fn check(&self, next: u64) -> Result<(), StoreError> {
        let Self { path, generation, header } = self;
        let bytes = fs::read(path).map_err(|e| failed("cannot read", path, &e))?;
        let begun_as = header.as_ref().map(|header| header.generation);
        let has_more = |used: u64| later_record(&bytes, HEADER_BYTES as usize, used, next.saturating_sub(1));
        if has_more(*generation) || begun_as.is_some_and(has_more) {
            return Err(damaged(
                path,
                &format!("records from {next} on are in it, and its header is not that of its name"),
            ));
        }
        match header {
            // When it was begun, all records before its first were there.
            Some(Header { first, .. }) if *first > next => Err(damaged(
                path,
                &format!("it was begun after record {}, and records from {next} on are missing", first - 1),
            )),
            _ => Ok(()),
        }
    }
}

fn of_another_store(path: &Path) -> StoreError {
    StoreError::Refused(format!(
        "{} belongs to another store; move the folder it is in to the store it came with, or restore a backup",
        path.display()
    ))
}

fn damaged(path: &Path, what: &str) -> StoreError {
    StoreError::Corrupt(format!("{}: {what}; restore a backup", path.display()))
}

/// The files by their generation, oldest first.
fn log_files(folder: &Path) -> Result<Vec<(u64, PathBuf)>, StoreError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| failed("cannot read", folder, &e))? {
        let path = entry.map_err(|e| failed("cannot read", folder, &e))?.path();
        if path.extension().is_none_or(|e| e != "wal") {
            continue;
        }
        let generation = path.file_stem().and_then(|name| name.to_str()).and_then(|name| name.parse::<u64>().ok());
        let Some(generation) = generation else {
            return Err(StoreError::Refused(format!("{}: not a log file's name; move it away", path.display())));
        };
        files.push((generation, path));
    }
    files.sort();
    Ok(files)
}

/// A sync that failed leaves a record that can be read but is in memory alone, and the next sync does not know of it. The
/// last record is the only one that this can concern; written once more, it is synced for good or the disk says no.
fn write_again(path: &Path, bytes: &[u8], last: Option<(usize, usize)>) -> std::io::Result<()> {
    let Some((from, to)) = last else { return Ok(()) };
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(bytes.get(from..to).unwrap_or_default(), from as u64)?;
    file.sync_all()
}

/// Stands for a store's id in files of format 1, which have none.
const FORMAT_1: [u8; 16] = [0; 16];

#[derive(Debug)]
pub(super) struct Header {
    pub(super) generation: u64,
    pub(super) first: u64,
    store: [u8; 16],
}

pub(super) fn read_header(bytes: &[u8]) -> Option<Header> {
    let magic = bytes.first_chunk::<8>()?;
    let length = if magic == MAGIC_FORMAT_1 { 24 } else { 40 };
    if magic != MAGIC_FORMAT_1 && magic != MAGIC {
        return None;
    }
    let header = bytes.get(..length)?;
    let sum = bytes.get(length..)?.first_chunk::<4>()?;
    if crc32fast::hash(header) != u32::from_le_bytes(*sum) {
        return None;
    }
    let word = |at: usize| header.get(at..)?.first_chunk::<8>().map(|word| u64::from_le_bytes(*word));
    let store = header.get(24..)?.first_chunk::<16>().copied().unwrap_or(FORMAT_1);
    Some(Header { generation: word(8)?, first: word(16)?, store })
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Read {
    /// The sequence that would come next.
    pub(super) next_sequence: u64,
    /// Where the last whole record begins and ends.
    pub(super) last_record: Option<(usize, usize)>,
    /// A record that is not whole though a later one is: it was on disk before the later one was written.
    pub(super) unreadable: Option<u64>,
}

/// Reads records up to the first that is not whole.
pub(super) fn read_records(bytes: &[u8], generation: u64, first: u64, applied: u64, changes: &mut Changes) -> Read {
    let mut at = HEADER_BYTES as usize;
    let mut read = Read { next_sequence: first, last_record: None, unreadable: None };
    while let Some((sequence, payload)) = record_at(bytes, at, generation)
        && sequence == read.next_sequence
    {
        let mut own = Changes::new();
        if decode(payload, &mut own).is_none() {
            read.unreadable = Some(sequence);
            return read;
        }
        if sequence > applied {
            changes.append(&mut own);
        }
        let end = at + RECORD_HEADER + payload.len();
        (read.last_record, read.next_sequence, at) = (Some((at, end)), sequence + 1, end);
    }
    if later_record(bytes, at, generation, read.next_sequence) {
        read.unreadable = Some(read.next_sequence);
    }
    read
}

/// The whole record that begins at `at`.
fn record_at(bytes: &[u8], at: usize, generation: u64) -> Option<(u64, &[u8])> {
    let (length, rest) = bytes.get(at..)?.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let (sequence, rest) = rest.split_first_chunk::<8>()?;
    let payload = rest.get(..u32::from_le_bytes(*length) as usize).filter(|payload| !payload.is_empty())?;
    let sequence = u64::from_le_bytes(*sequence);
    (checksum(generation, sequence, payload) == u32::from_le_bytes(*sum)).then_some((sequence, payload))
}

/// Looks for a record after the first broken one. What an earlier use of the file left has lower sequences.
fn later_record(bytes: &[u8], from: usize, generation: u64, broken: u64) -> bool {
    let mut at = from;
    while at < bytes.len() {
        let block_end = (at / BLOCK + 1) * BLOCK;
        let block = bytes.get(at..block_end.min(bytes.len())).unwrap_or_default();
        // Most of a file is as it was made.
        if is_zero(block) {
            at = block_end;
            continue;
        }
        for at in at..at + block.len() {
            let Some(sequence) = bytes.get(at + 8..).and_then(|rest| rest.first_chunk::<8>()) else { return false };
            let ahead = u64::from_le_bytes(*sequence).wrapping_sub(broken);
            if (1..NEARBY).contains(&ahead) && record_at(bytes, at, generation).is_some() {
                return true;
            }
        }
        at = block_end;
    }
    false
}

fn is_zero(block: &[u8]) -> bool {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    ZEROS.get(..block.len()) == Some(block)
}

/// Puts a record's changes into `changes`; `None` when it does not read as one.
fn decode(mut payload: &[u8], changes: &mut Changes) -> Option<()> {
    while let Some((&kind, rest)) = payload.split_first() {
        let (key_len, rest) = rest.split_first_chunk::<4>()?;
        let (value_len, rest) = rest.split_first_chunk::<4>()?;
        let (key, rest) = rest.split_at_checked(u32::from_le_bytes(*key_len) as usize)?;
        let (value, rest) = rest.split_at_checked(u32::from_le_bytes(*value_len) as usize)?;
        changes.insert(key.to_vec(), (kind == 1).then(|| value.to_vec()));
        payload = rest;
    }
    Some(())
}
