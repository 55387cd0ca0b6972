//! The segment file: its bytes on disk, how it is scanned after a crash, and the seam through which it is written.
//!
//! Owns the format. It never decides when to rotate, sync or delete (the journal's thread does) and never looks
//! inside a record's JSON.
//!
//! A segment is a 32-byte header followed by records. All numbers are little-endian.
//!
//! This is the form in which records are appended, and version 1 of the format. Encrypted records are the same with another
//! head ([`head`](super::head)) and another payload ([`envelope`](super::envelope)); most sealed segments are rewritten in
//! blocks ([`blocks`](super::blocks)).
//!
//! | header | bytes | | record | bytes |
//! |---|--:|---|---|--:|
//! | magic `tgjourn1` | 8 | | payload length | 4 |
//! | format version | 4 | | sequence | 8 |
//! | first sequence | 8 | | user id | 8 |
//! | created, Unix ms | 8 | | timestamp, Unix ms | 8 |
//! | CRC-32 of the above | 4 | | CRC-32 of the above and the payload | 4 |
//! | | | | payload (JSON) | … |
//!
//! A JSON payload holds no NUL byte and a record's head always does (no sequence reaches 2^56), so a search for
//! the next whole record after damage can never mistake what a user wrote for a record.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::head::Head;

/// Bytes before the first record.
pub(in crate::actors) const SEGMENT_HEAD_BYTES: u64 = 32;
/// Bytes before a record's payload.
pub(in crate::actors) const RECORD_HEAD_BYTES: usize = 32;
/// Largest payload a reader believes, in bytes: both texts at their limit with every byte escaped, and room.
pub(super) const MAX_PAYLOAD_BYTES: u32 = 64 << 20;
/// The same as it may stand in a file: with room for what encryption adds.
const MAX_STORED_BYTES: u32 = MAX_PAYLOAD_BYTES + 64;

pub(super) const MAGIC: &[u8; 8] = b"tgjourn1";
pub(super) const VERSION: u32 = 1;
/// How much a scan reads at a time.
const WINDOW_BYTES: usize = 256 << 10;
/// How far a sequence may jump over damage and still be believed.
const MAX_SEQUENCE_JUMP: u64 = 1 << 32;

/// A file that the journal writes. The seam where tests stand between journal and disk.
pub trait SegmentFile: Send {
    /// Writes all of `bytes` at `offset`; after an error any part of them may be there.
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Returns once everything written before is on the disk.
    fn sync_data(&mut self) -> io::Result<()>;
    /// Cuts the file to `len` bytes.
    fn set_len(&mut self, len: u64) -> io::Result<()>;
}

/// Where segment files come from.
pub trait Disk: Send + Sync {
    /// Creates a file that must not exist yet.
    fn create(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>>;
    /// Opens a file to go on writing.
    fn open(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>>;
    /// Returns once the directory's entries are on the disk.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Gives a file another name, in place of whatever has it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }
    /// Deletes a file.
    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }
}

/// The real disk.
#[derive(Debug, Default)]
pub struct LocalDisk;

impl Disk for LocalDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        Ok(Box::new(OpenOptions::new().write(true).create_new(true).open(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        Ok(Box::new(OpenOptions::new().write(true).open(path)?))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}

impl SegmentFile for File {
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn sync_data(&mut self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }
}

/// The segment's path: its first sequence in 20 digits, so that names sort as sequences do.
pub(in crate::actors) fn segment_path(dir: &Path, first_seq: u64) -> PathBuf {
    dir.join(format!("{first_seq:020}.seg"))
}

/// Every segment of a directory as (first sequence, path), oldest first. Other files are left alone.
pub(in crate::actors) fn list_segments(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut segments = Vec::new();
    for item in std::fs::read_dir(dir)? {
        let path = item?.path();
        if let Some(first_seq) = first_seq_of(&path) {
            segments.push((first_seq, path));
        }
    }
    segments.sort_unstable();
    Ok(segments)
}

fn first_seq_of(path: &Path) -> Option<u64> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".seg")?;
    if stem.len() == 20 { stem.parse().ok() } else { None }
}

/// What a segment says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHead {
    pub first_seq: u64,
    pub created_ms: u64,
}

impl SegmentHead {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SEGMENT_HEAD_BYTES as usize);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.first_seq.to_le_bytes());
        out.extend_from_slice(&self.created_ms.to_le_bytes());
        out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
        out
    }

    /// Reads the head; the error says what is wrong with it.
    pub(super) fn read(file: &File) -> io::Result<Self> {
        let mut bytes = [0; SEGMENT_HEAD_BYTES as usize];
        file.read_exact_at(&mut bytes, 0)?;
        if !bytes.starts_with(MAGIC) {
            return Err(invalid("not a journal segment"));
        }
        if u32_at(&bytes, 8) != VERSION {
            return Err(invalid("written by another version of the journal's format"));
        }
        if crc32fast::hash(&bytes[..28]) != u32_at(&bytes, 28) {
            return Err(invalid("segment head fails its checksum"));
        }
        Ok(Self { first_seq: u64_at(&bytes, 12), created_ms: u64_at(&bytes, 20) })
    }
}

/// A record's head, without its checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::actors) struct RecordHead {
    pub len: u32,
    pub seq: u64,
    pub user_id: u64,
    pub timestamp_ms: u64,
}

impl RecordHead {
    pub(super) fn decode(bytes: &[u8]) -> Self {
        Self {
            len: u32_at(bytes, 0),
            seq: u64_at(bytes, 4),
            user_id: u64_at(bytes, 12),
            timestamp_ms: u64_at(bytes, 20),
        }
    }

    /// Bytes of the whole record.
    pub(super) fn size(self) -> u64 {
        RECORD_HEAD_BYTES as u64 + u64::from(self.len)
    }
}

/// Appends one record whose payload `fill` writes. Returns false, with `out` as it was, when the payload is larger
/// than a reader would believe.
pub(in crate::actors) fn append_record(
    out: &mut Vec<u8>,
    (seq, user_id, timestamp_ms): (u64, u64, u64),
    fill: impl FnOnce(&mut Vec<u8>),
) -> bool {
    let start = out.len();
    out.resize(start + RECORD_HEAD_BYTES, 0);
    fill(out);
    let len = (out.len() - start - RECORD_HEAD_BYTES) as u64;
    if len > u64::from(MAX_PAYLOAD_BYTES) {
        out.truncate(start);
        return false;
    }
    let record = &mut out[start..];
    record[..4].copy_from_slice(&(len as u32).to_le_bytes());
    record[4..12].copy_from_slice(&seq.to_le_bytes());
    record[12..20].copy_from_slice(&user_id.to_le_bytes());
    record[20..28].copy_from_slice(&timestamp_ms.to_le_bytes());
    let crc = record_crc(record);
    record[28..32].copy_from_slice(&crc.to_le_bytes());
    true
}

/// Over the head without its checksum, and the payload.
pub(super) fn record_crc(record: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&record[..28]);
    crc.update(&record[RECORD_HEAD_BYTES..]);
    crc.finalize()
}

/// Reads and checks the record at `offset`.
pub(in crate::actors) fn read_record(file: &File, offset: u64) -> io::Result<(RecordHead, Vec<u8>)> {
    let mut bytes = vec![0; RECORD_HEAD_BYTES];
    file.read_exact_at(&mut bytes, offset)?;
    let head = RecordHead::decode(&bytes);
    if head.len > MAX_STORED_BYTES {
        return Err(invalid("record length is out of range"));
    }
    bytes.resize(RECORD_HEAD_BYTES + head.len as usize, 0);
    file.read_exact_at(&mut bytes[RECORD_HEAD_BYTES..], offset + RECORD_HEAD_BYTES as u64)?;
    if record_crc(&bytes) != u32_at(&bytes, 28) {
        return Err(invalid("record fails its checksum"));
    }
    bytes.drain(..RECORD_HEAD_BYTES);
    Ok((head, bytes))
}

/// What a scan met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::actors) enum Found {
    /// A whole record at `offset`; its payload is [`Scanner::payload`] until the next step.
    Record { offset: u64, head: RecordHead },
    /// Bytes that are no record, with a whole record after them: damage, since a crash tears only the end.
    Damaged { offset: u64, bytes: u64 },
    /// Bytes that are no record, up to the end: what a crash leaves of an unfinished write.
    Torn { offset: u64, bytes: u64 },
    /// Nothing more.
    End,
}

/// Walks the records of a segment in which they lie one after another, from the first to the last, past damage. Encrypted
/// ones are shown as they are. Holds one window (256 KiB, or the largest
/// record) of the file in memory.
pub(in crate::actors) struct Scanner {
    file: File,
    len: u64,
    at: u64,
    last_seq: u64,
    window: Vec<u8>,
    window_start: u64,
    payload: std::ops::Range<usize>,
}

impl Scanner {
    /// `first_seq` comes from the file's name, so that a damaged head does not hide the records.
    pub(in crate::actors) fn open(path: &Path, first_seq: u64) -> io::Result<Self> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        let at = Head::read(&file).map_or(SEGMENT_HEAD_BYTES, |head| head.bytes()).min(len);
        let last_seq = first_seq.saturating_sub(1);
        Ok(Self { file, len, at, last_seq, window: Vec::new(), window_start: 0, payload: 0..0 })
    }

    /// The file that is read.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Bytes of the file when the scan began.
    pub(in crate::actors) fn file_len(&self) -> u64 {
        self.len
    }

    /// The JSON of the record that [`Scanner::step`] returned last.
    pub(in crate::actors) fn payload(&self) -> &[u8] {
        self.window.get(self.payload.clone()).unwrap_or_default()
    }

    /// The next thing in the file.
    pub(in crate::actors) fn step(&mut self) -> io::Result<Found> {
        let offset = self.at;
        if offset >= self.len {
            return Ok(Found::End);
        }
        if let Some(head) = self.record_at(offset)? {
            self.at = offset + head.size();
            self.last_seq = head.seq;
            return Ok(Found::Record { offset, head });
        }
        let next = self.next_whole_record(offset + 1)?;
        self.at = next.unwrap_or(self.len);
        let bytes = self.at - offset;
        Ok(if next.is_some() { Found::Damaged { offset, bytes } } else { Found::Torn { offset, bytes } })
    }

    /// The record at `offset`, if a whole one that follows the last one in sequence stands there.
    fn record_at(&mut self, offset: u64) -> io::Result<Option<RecordHead>> {
        let last_seq = self.last_seq;
        let head = RecordHead::decode(self.bytes_at(offset, RECORD_HEAD_BYTES)?);
        let believable = head.len <= MAX_STORED_BYTES
            && head.seq > last_seq
            && head.seq - last_seq <= MAX_SEQUENCE_JUMP
            && offset + head.size() <= self.len;
        if !believable {
            return Ok(None);
        }
        let size = head.size() as usize;
        let record = self.bytes_at(offset, size)?;
        if record.len() < size || record_crc(record) != u32_at(record, 28) {
            return Ok(None);
        }
        let start = (offset - self.window_start) as usize;
        self.payload = start + RECORD_HEAD_BYTES..start + size;
        Ok(Some(head))
    }

    /// Searches byte by byte: after damage the lengths that would lead to the next record cannot be trusted.
    fn next_whole_record(&mut self, from: u64) -> io::Result<Option<u64>> {
        let last_start = self.len.saturating_sub(RECORD_HEAD_BYTES as u64);
        for offset in from..=last_start {
            if self.record_at(offset)?.is_some() {
                return Ok(Some(offset));
            }
        }
        Ok(None)
    }

    /// `count` bytes at `offset`, fewer at the file's end.
    fn bytes_at(&mut self, offset: u64, count: usize) -> io::Result<&[u8]> {
        let held = self.window_start..self.window_start + self.window.len() as u64;
        let wanted_end = (offset + count as u64).min(self.len);
        if offset < held.start || wanted_end > held.end {
            self.load(offset, count.max(WINDOW_BYTES))?;
        }
        let start = (offset - self.window_start) as usize;
        let end = (start + count).min(self.window.len());
        Ok(self.window.get(start..end).unwrap_or_default())
    }

    fn load(&mut self, offset: u64, count: usize) -> io::Result<()> {
        let count = (self.len.saturating_sub(offset)).min(count as u64) as usize;
        self.window.resize(count, 0);
        self.window_start = offset;
        self.file.read_exact_at(&mut self.window, offset)
    }
}

pub(in crate::actors) fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// The number at `at`, or zero past the end: a checksum or range check follows every use.
pub(in crate::actors) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

/// As [`u32_at`], eight bytes wide.
pub(in crate::actors) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |chunk| u64::from_le_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    fn segment(payloads: &[&str]) -> (Vec<u8>, Vec<u64>) {
        let mut bytes = SegmentHead { first_seq: 7, created_ms: 5 }.encode();
        let mut offsets = Vec::new();
        for (seq, payload) in (7..).zip(payloads) {
            offsets.push(bytes.len() as u64);
            assert!(append_record(&mut bytes, (seq, 1, 2), |out| out.extend_from_slice(payload.as_bytes())));
        }
        (bytes, offsets)
    }

    fn scan(bytes: &[u8]) -> Vec<Found> {
        let dir = tempfile::tempdir().unwrap();
        let path = segment_path(dir.path(), 7);
        std::fs::write(&path, bytes).unwrap();
        let mut scanner = Scanner::open(&path, 7).unwrap();
        std::iter::repeat_with(|| scanner.step().unwrap()).take_while(|found| *found != Found::End).collect()
    }

    #[test]
    fn a_tail_torn_at_any_byte_is_told_from_whole_records() {
        let (bytes, offsets) = segment(&["{\"a\":1}", "{\"b\":2}", "{\"c\":3}"]);
        for len in offsets[2] as usize..bytes.len() {
            let found = scan(&bytes[..len]);
            let torn = (len as u64 - offsets[2] > 0)
                .then_some(Found::Torn { offset: offsets[2], bytes: len as u64 - offsets[2] });
            assert_eq!(found.get(2).copied(), torn, "cut at {len}");
            assert!(matches!(found[1], Found::Record { .. }));
        }
    }

    #[test]
    fn damage_at_any_byte_costs_one_record() {
        let (bytes, offsets) = segment(&["{\"a\":1}", "{\"b\":2}", "{\"c\":3}"]);
        for at in offsets[1]..offsets[2] {
            let mut damaged = bytes.clone();
            damaged[at as usize] ^= 0x40;
            let found = scan(&damaged);
            assert_eq!(found[1], Found::Damaged { offset: offsets[1], bytes: offsets[2] - offsets[1] }, "at {at}");
            assert!(matches!(found[2], Found::Record { head, .. } if head.seq == 9));
        }
    }

    #[test]
    fn records_larger_than_the_window_are_read() {
        let large = "x".repeat(3 * WINDOW_BYTES);
        let (bytes, _) = segment(&[&large, "{}", &large]);
        let heads = scan(&bytes).into_iter().filter(|found| matches!(found, Found::Record { .. })).count();
        assert_eq!(heads, 3);
    }

    #[test]
    fn an_oversized_payload_is_refused_whole() {
        let mut out = vec![1, 2, 3];
        assert!(!append_record(&mut out, (1, 1, 1), |out| out.resize(out.len() + (65 << 20), b'x')));
        assert_eq!(out, [1, 2, 3]);
    }
}
