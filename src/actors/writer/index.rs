//! Which records of a segment belong to which user.
//!
//! Owns the two forms of that answer: [`MemoryIndex`] for the segment being written, and the sidecar file
//! ([`FileIndex`]) of a sealed one. An index holds nothing that its segment does not: it can always be built again,
//! and is never repaired.
//!
//! A sidecar is a 64-byte head (magic `tgjindx1`, version u32, users u32, records u64, first and last sequence u64,
//! newest timestamp u64, segment length u64, CRC-32 of the body, CRC-32 of the head), then one row per user in
//! ascending order (user u64, first offset's position u32, count u32), then the offsets (u32), each user's together,
//! oldest first. All numbers are little-endian.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::segment::{Disk, Found, Scanner, invalid, u32_at, u64_at};

const MAGIC: &[u8; 8] = b"tgjindx1";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 64;
const ROW_BYTES: u64 = 16;
/// A binary search ends by reading this many rows at once: one page of the disk.
const ROWS_PER_READ: u64 = 256;
const NONE: u32 = u32::MAX;

/// What is known of a segment without opening it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct SegmentFacts {
    pub first_seq: u64,
    /// Of the newest record; below `first_seq` when there is none.
    pub last_seq: u64,
    /// The newest timestamp in it; retention goes by this.
    pub newest_ms: u64,
    /// Bytes of the segment file that the index covers.
    pub len: u64,
}

/// The index of the segment being written. Each record points at its user's previous one, so that newest-first is a
/// walk and a record costs 8 bytes (a user about 30 more) whatever the spread.
#[derive(Debug, Default)]
pub(super) struct MemoryIndex {
    users: HashMap<u64, Chain>,
    links: Vec<Link>,
}

#[derive(Debug, Clone, Copy)]
struct Chain {
    newest: u32,
    count: u32,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    offset: u32,
    older: u32,
}

impl MemoryIndex {
    /// Adds a record; offsets ascend. Segments end far below 4 GiB, so an offset that does not fit is a foreign
    /// file's and is left out.
    pub(super) fn push(&mut self, user_id: u64, offset: u64) {
        let (Ok(offset), Ok(position)) = (u32::try_from(offset), u32::try_from(self.links.len())) else {
            return;
        };
        let chain = self.users.entry(user_id).or_insert(Chain { newest: NONE, count: 0 });
        self.links.push(Link { offset, older: chain.newest });
        *chain = Chain { newest: position, count: chain.count + 1 };
    }

    pub(super) fn records(&self) -> u64 {
        self.links.len() as u64
    }

    pub(super) fn count(&self, user_id: u64) -> u64 {
        self.users.get(&user_id).map_or(0, |chain| u64::from(chain.count))
    }

    /// Offsets of the user's records, newest first, after the newest `skip`.
    pub(super) fn newest(&self, user_id: u64, skip: u64, take: usize) -> Vec<u32> {
        self.walk(user_id).skip(usize::try_from(skip).unwrap_or(usize::MAX)).take(take).collect()
    }

    fn walk(&self, user_id: u64) -> impl Iterator<Item = u32> + '_ {
        let newest = self.users.get(&user_id).map_or(NONE, |chain| chain.newest);
        let link = |position: u32| self.links.get(position as usize);
        std::iter::successors(link(newest), move |current| link(current.older)).map(|current| current.offset)
    }

    /// The sidecar's bytes.
    pub(super) fn encode(&self, facts: SegmentFacts) -> Vec<u8> {
        let mut users: Vec<(u64, Chain)> = self.users.iter().map(|(user, chain)| (*user, *chain)).collect();
        users.sort_unstable_by_key(|(user, _)| *user);

        let body_bytes = users.len() * ROW_BYTES as usize + self.links.len() * 4;
        let mut out = Vec::with_capacity(HEAD_BYTES + body_bytes);
        out.resize(HEAD_BYTES, 0);
        let mut position = 0_u32;
        for (user, chain) in &users {
            out.extend_from_slice(&user.to_le_bytes());
            out.extend_from_slice(&position.to_le_bytes());
            out.extend_from_slice(&chain.count.to_le_bytes());
            position += chain.count;
        }
        for (user, _) in &users {
            let mut offsets: Vec<u32> = self.walk(*user).collect();
            offsets.reverse();
            offsets.iter().for_each(|offset| out.extend_from_slice(&offset.to_le_bytes()));
        }
        let head =
            Head { users: users.len() as u32, records: self.records(), facts, body_crc: crc(&out[HEAD_BYTES..]) };
        out[..HEAD_BYTES].copy_from_slice(&head.encode());
        out
    }
}

fn crc(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
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
}

/// Reads a whole segment. `facts.len` ends at the last whole record.
pub(super) fn scan_segment(path: &Path, first_seq: u64) -> io::Result<Scanned> {
    let mut scanner = Scanner::open(path, first_seq)?;
    let mut scanned = Scanned {
        facts: SegmentFacts { first_seq, last_seq: first_seq.saturating_sub(1), newest_ms: 0, len: scanner.file_len() },
        ..Scanned::default()
    };
    loop {
        match scanner.step()? {
            Found::Record { offset, head } => {
                scanned.index.push(head.user_id, offset);
                scanned.facts.last_seq = head.seq;
                scanned.facts.newest_ms = scanned.facts.newest_ms.max(head.timestamp_ms);
            }
            Found::Damaged { .. } => scanned.damaged += 1,
            Found::Torn { offset, bytes } => {
                scanned.torn_bytes = bytes;
                scanned.facts.len = offset;
            }
            Found::End => return Ok(scanned),
        }
    }
}

/// The sidecar of a segment.
pub(super) fn index_path(segment: &Path) -> PathBuf {
    segment.with_extension("idx")
}

/// Writes the sidecar so that a crash leaves either none or a whole one.
pub(super) fn write_index(disk: &dyn Disk, segment: &Path, index: &MemoryIndex, facts: SegmentFacts) -> io::Result<()> {
    let path = index_path(segment);
    let unfinished = path.with_extension("tmp");
    remove_if_there(&unfinished)?;
    let mut file = disk.create(&unfinished)?;
    file.write_all_at(&index.encode(facts), 0)?;
    file.sync_data()?;
    crate::failpoint::hit("journal.before_index_rename");
    std::fs::rename(&unfinished, &path)?;
    path.parent().map_or(Ok(()), |dir| disk.sync_dir(dir))
}

/// Deletes a file that may be gone already.
pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[derive(Debug, Clone, Copy)]
struct Head {
    users: u32,
    records: u64,
    facts: SegmentFacts,
    body_crc: u32,
}

impl Head {
    fn encode(self) -> [u8; HEAD_BYTES] {
        let mut out = [0; HEAD_BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&self.users.to_le_bytes());
        out[16..24].copy_from_slice(&self.records.to_le_bytes());
        out[24..32].copy_from_slice(&self.facts.first_seq.to_le_bytes());
        out[32..40].copy_from_slice(&self.facts.last_seq.to_le_bytes());
        out[40..48].copy_from_slice(&self.facts.newest_ms.to_le_bytes());
        out[48..56].copy_from_slice(&self.facts.len.to_le_bytes());
        out[56..60].copy_from_slice(&self.body_crc.to_le_bytes());
        let head_crc = crc(&out[..60]);
        out[60..].copy_from_slice(&head_crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; HEAD_BYTES]) -> io::Result<Self> {
        let sound = bytes.starts_with(MAGIC) && u32_at(bytes, 8) == VERSION && crc(&bytes[..60]) == u32_at(bytes, 60);
        if !sound {
            return Err(invalid("index head is damaged"));
        }
        let facts = SegmentFacts {
            first_seq: u64_at(bytes, 24),
            last_seq: u64_at(bytes, 32),
            newest_ms: u64_at(bytes, 40),
            len: u64_at(bytes, 48),
        };
        Ok(Self { users: u32_at(bytes, 12), records: u64_at(bytes, 16), facts, body_crc: u32_at(bytes, 56) })
    }

    fn body_bytes(self) -> u64 {
        u64::from(self.users) * ROW_BYTES + self.records * 4
    }
}

/// The sidecar of a sealed segment. Holds no file open and nothing of its body in memory. The body's checksum is
/// checked once, at the first question, so that opening a journal of any size costs one small read per segment.
#[derive(Debug)]
pub(super) struct FileIndex {
    path: PathBuf,
    head: Head,
    checked: AtomicBool,
}

impl FileIndex {
    /// Fails when the file is missing, damaged in its head, or not the index of this segment at this length.
    pub(super) fn open(segment: &Path, first_seq: u64) -> io::Result<Self> {
        let path = index_path(segment);
        let file = File::open(&path)?;
        let mut bytes = [0; HEAD_BYTES];
        file.read_exact_at(&mut bytes, 0)?;
        let head = Head::decode(&bytes)?;
        let matches = head.facts.first_seq == first_seq
            && head.facts.len == std::fs::metadata(segment)?.len()
            && file.metadata()?.len() == HEAD_BYTES as u64 + head.body_bytes();
        if !matches {
            return Err(invalid("index does not belong to its segment"));
        }
        Ok(Self { path, head, checked: AtomicBool::new(false) })
    }

    pub(super) fn facts(&self) -> SegmentFacts {
        self.head.facts
    }

    /// Bytes of the sidecar file.
    pub(super) fn bytes(&self) -> u64 {
        HEAD_BYTES as u64 + self.head.body_bytes()
    }

    /// Reads the whole body against its checksum, whether or not that was done before.
    pub(super) fn check(&self) -> io::Result<()> {
        self.check_body(&File::open(&self.path)?)
    }

    /// How many records the user has here, and the offsets of those wanted, newest first.
    pub(super) fn newest(&self, user_id: u64, skip: u64, take: usize) -> io::Result<(u64, Vec<u32>)> {
        let file = File::open(&self.path)?;
        if !self.checked.load(Ordering::Relaxed) {
            self.check_body(&file)?;
            self.checked.store(true, Ordering::Relaxed);
        }
        let Some((first, count)) = self.find(&file, user_id)? else {
            return Ok((0, Vec::new()));
        };
        let end = count.saturating_sub(skip);
        let start = end.saturating_sub(take as u64);
        let mut bytes = vec![0; (end - start) as usize * 4];
        let offsets_at = HEAD_BYTES as u64 + u64::from(self.head.users) * ROW_BYTES;
        file.read_exact_at(&mut bytes, offsets_at + (first + start) * 4)?;
        Ok((count, bytes.chunks_exact(4).rev().map(|chunk| u32_at(chunk, 0)).collect()))
    }

    /// The user's row: where its offsets begin and how many they are.
    fn find(&self, file: &File, user_id: u64) -> io::Result<Option<(u64, u64)>> {
        let (mut low, mut high) = (0, u64::from(self.head.users));
        while high - low > ROWS_PER_READ {
            let middle = low + (high - low) / 2;
            let row = self.rows(file, middle, 1)?;
            if u64_at(&row, 0) <= user_id { low = middle } else { high = middle }
        }
        let rows = self.rows(file, low, high - low)?;
        let row = rows.chunks_exact(ROW_BYTES as usize).find(|row| u64_at(row, 0) == user_id);
        Ok(row.map(|row| (u64::from(u32_at(row, 8)), u64::from(u32_at(row, 12)))))
    }

    fn rows(&self, file: &File, first: u64, count: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; (count * ROW_BYTES) as usize];
        file.read_exact_at(&mut bytes, HEAD_BYTES as u64 + first * ROW_BYTES)?;
        Ok(bytes)
    }

    fn check_body(&self, file: &File) -> io::Result<()> {
        let mut hasher = crc32fast::Hasher::new();
        let mut piece = vec![0; 64 << 10];
        let (mut at, end) = (HEAD_BYTES as u64, self.bytes());
        while at < end {
            let count = (end - at).min(piece.len() as u64) as usize;
            file.read_exact_at(&mut piece[..count], at)?;
            hasher.update(&piece[..count]);
            at += count as u64;
        }
        if hasher.finalize() == self.head.body_crc { Ok(()) } else { Err(invalid("index body fails its checksum")) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::super::segment::{LocalDisk, segment_path};
    use super::*;

    /// 3,000 records of 1,000 users; user `u` has records at offsets 32 + 8 * (u + 1000 * k).
    fn filled() -> MemoryIndex {
        let mut index = MemoryIndex::default();
        for record in 0..3000_u64 {
            index.push(record % 1000, 32 + record * 8);
        }
        index
    }

    fn sidecar(dir: &Path) -> FileIndex {
        let segment = segment_path(dir, 1);
        std::fs::write(&segment, [0; 100]).unwrap();
        let facts = SegmentFacts { first_seq: 1, last_seq: 3000, newest_ms: 9, len: 100 };
        write_index(&LocalDisk, &segment, &filled(), facts).unwrap();
        FileIndex::open(&segment, 1).unwrap()
    }

    #[test]
    fn file_and_memory_answer_alike() {
        let dir = tempfile::tempdir().unwrap();
        let (memory, file) = (filled(), sidecar(dir.path()));
        for user in [0, 1, 255, 256, 257, 500, 511, 998, 999, 1000, u64::MAX] {
            for (skip, take) in [(0, 10), (1, 1), (2, 5), (3, 1), (9, 9), (0, 0)] {
                let expected = (memory.count(user), memory.newest(user, skip, take));
                assert_eq!(file.newest(user, skip, take).unwrap(), expected, "user {user} skip {skip} take {take}");
            }
        }
        assert_eq!(memory.newest(7, 0, 9), [32 + 8 * 2007, 32 + 8 * 1007, 32 + 8 * 7]);
    }

    #[test]
    fn a_changed_byte_is_never_believed() {
        let dir = tempfile::tempdir().unwrap();
        drop(sidecar(dir.path()));
        let segment = segment_path(dir.path(), 1);
        let good = std::fs::read(index_path(&segment)).unwrap();
        for at in (0..HEAD_BYTES).chain((HEAD_BYTES..good.len()).step_by(997)) {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(index_path(&segment), bad).unwrap();
            let answer = FileIndex::open(&segment, 1).and_then(|index| index.newest(1, 0, 1));
            assert!(answer.is_err(), "byte {at}");
        }
    }

    #[test]
    fn an_index_of_another_length_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(sidecar(dir.path()));
        let segment = segment_path(dir.path(), 1);
        std::fs::write(&segment, [0; 101]).unwrap();
        assert!(FileIndex::open(&segment, 1).is_err());
        assert!(FileIndex::open(&segment, 2).is_err());
    }
}
