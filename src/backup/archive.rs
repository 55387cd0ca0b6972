//! The format of a backup: one stream, written and read from front to back.
//!
//! Owns bytes and checksums; never knows what a row or a file is about. Nothing that is read is handed on before its own
//! checksum has matched, and a stream without its end is no backup.
//!
//! A magic number and a version, then chunks until the one that ends it. All numbers are little-endian.
//!
//! | chunk | bytes |
//! |---|--:|
//! | kind | 1 |
//! | length of the payload | 4 |
//! | payload | … |
//! | CRC-32 of the chunk's number, kind, length and payload | 4 |
//!
//! The last chunk holds the SHA-256 of everything before it, and how much there was.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::store::{Op, Row};

const MAGIC: &[u8; 8] = b"TGBACKUP";
const VERSION: u32 = 1;
/// Longest payload that is written or believed.
pub const MAX_PAYLOAD: usize = 8 << 20;
/// A file's bytes in one chunk.
pub const FILE_CHUNK: usize = 256 << 10;

/// What a backup says about itself, first of all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The store's format, by which its rows are to be read.
    pub format: u32,
    /// The version of the program that wrote it.
    pub written_by: String,
    /// RFC 3339.
    pub written_at: String,
    pub with_secrets: bool,
}

/// What was in it, last of all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub rows: u64,
    pub changes: u64,
    pub files: u64,
    pub file_bytes: u64,
}

/// One part of a backup, in the order in which parts come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Manifest(Manifest),
    /// Rows in the order of their keys.
    Rows(Vec<Row>),
    /// Changes newer than all rows and changes before them.
    Changes(Vec<Op>),
    /// A file begins; its path is relative to the data directory, with `/` between its parts.
    File(String),
    /// More of the file that has begun.
    Data(Vec<u8>),
    FileEnd,
    End(Totals),
}

#[derive(Serialize, Deserialize)]
struct End {
    #[serde(flatten)]
    totals: Totals,
    sha256: String,
}

mod kind {
    pub(super) const MANIFEST: u8 = 1;
    pub(super) const ROWS: u8 = 2;
    pub(super) const CHANGES: u8 = 3;
    pub(super) const FILE: u8 = 4;
    pub(super) const DATA: u8 = 5;
    pub(super) const FILE_END: u8 = 6;
    pub(super) const END: u8 = 7;
}

fn invalid(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn crc(number: u64, kind: u8, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&number.to_le_bytes());
    hasher.update(&[kind]);
    hasher.update(&(payload.len() as u64).to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

/// Writes a backup.
pub struct Writer<W> {
    out: W,
    sum: Sha256,
    chunks: u64,
    totals: Totals,
}

impl<W: Write> Writer<W> {
    /// # Errors
    /// As `out`'s.
    pub fn new(out: W, manifest: &Manifest) -> io::Result<Self> {
        let mut writer = Self { out, sum: Sha256::new(), chunks: 0, totals: Totals::default() };
        writer.put(MAGIC)?;
        writer.put(&VERSION.to_le_bytes())?;
        writer.chunk(kind::MANIFEST, &serde_json::to_vec(manifest)?)?;
        Ok(writer)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.update(bytes);
        self.out.write_all(bytes)
    }

    fn chunk(&mut self, kind: u8, payload: &[u8]) -> io::Result<()> {
        if payload.len() > MAX_PAYLOAD {
            return Err(invalid(format!("a chunk of {} bytes", payload.len())));
        }
        self.put(&[kind])?;
        self.put(&(payload.len() as u32).to_le_bytes())?;
        self.put(payload)?;
        self.put(&crc(self.chunks, kind, payload).to_le_bytes())?;
        self.chunks += 1;
        Ok(())
    }

    /// # Errors
    /// As `out`'s, here and in the other methods.
    pub fn rows(&mut self, rows: &[Row]) -> io::Result<()> {
        self.totals.rows += rows.len() as u64;
        self.batched(kind::ROWS, rows, |row, out| encode(1, &row.0, &row.1, out))
    }

    pub fn changes(&mut self, ops: &[Op]) -> io::Result<()> {
        self.totals.changes += ops.len() as u64;
        self.batched(kind::CHANGES, ops, |op, out| match op {
            Op::Put { key, value } => encode(1, key, value, out),
            Op::Delete { key } => encode(0, key, &[], out),
        })
    }

    /// As many chunks as it takes.
    fn batched<T>(&mut self, kind: u8, items: &[T], encode: impl Fn(&T, &mut Vec<u8>)) -> io::Result<()> {
        let mut payload = Vec::new();
        for item in items {
            encode(item, &mut payload);
            if payload.len() >= MAX_PAYLOAD / 4 {
                self.chunk(kind, &std::mem::take(&mut payload))?;
            }
        }
        if payload.is_empty() { Ok(()) } else { self.chunk(kind, &payload) }
    }

    /// A file's bytes, up to `length` of them; fewer if the file ends before.
    pub fn file(&mut self, path: &str, from: &mut dyn Read, length: u64) -> io::Result<()> {
        self.totals.files += 1;
        self.chunk(kind::FILE, path.as_bytes())?;
        let mut buffer = vec![0u8; FILE_CHUNK];
        let mut left = length;
        while left > 0 {
            let want = FILE_CHUNK.min(usize::try_from(left).unwrap_or(FILE_CHUNK));
            let n = from.read(&mut buffer[..want])?;
            if n == 0 {
                break;
            }
            self.chunk(kind::DATA, &buffer[..n])?;
            left -= n as u64;
            self.totals.file_bytes += n as u64;
        }
        self.chunk(kind::FILE_END, &[])
    }

    /// Ends the backup: without this it is none.
    pub fn finish(mut self) -> io::Result<(W, Totals)> {
        let sha256 = hex(&self.sum.clone().finalize());
        self.chunk(kind::END, &serde_json::to_vec(&End { totals: self.totals.clone(), sha256 })?)?;
        self.out.flush()?;
        Ok((self.out, self.totals))
    }
}

fn encode(put: u8, key: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.push(put);
    out.extend_from_slice(&(key.len() as u32).to_le_bytes());
    out.extend_from_slice(&(value.len() as u32).to_le_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(value);
}

fn decode(mut payload: &[u8]) -> Option<Vec<Op>> {
    let mut ops = Vec::new();
    while let Some((&put, rest)) = payload.split_first() {
        let (key_len, rest) = rest.split_first_chunk::<4>()?;
        let (value_len, rest) = rest.split_first_chunk::<4>()?;
        let (key, rest) = rest.split_at_checked(u32::from_le_bytes(*key_len) as usize)?;
        let (value, rest) = rest.split_at_checked(u32::from_le_bytes(*value_len) as usize)?;
        ops.push(match put {
            1 => Op::Put { key: key.to_vec(), value: value.to_vec() },
            0 => Op::Delete { key: key.to_vec() },
            _ => return None,
        });
        payload = rest;
    }
    Some(ops)
}

/// Reads a backup.
pub struct Reader<R> {
    from: R,
    sum: Sha256,
    chunks: u64,
    /// Counted along, to be compared with what the end says.
    totals: Totals,
    in_file: bool,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// # Errors
    /// It is no backup, or one of a newer version.
    pub fn new(from: R) -> io::Result<Self> {
        let totals = Totals::default();
        let mut reader = Self { from, sum: Sha256::new(), chunks: 0, totals, in_file: false, ended: false };
        let mut magic = [0u8; 8];
        reader.take(&mut magic)?;
        if &magic != MAGIC {
            return Err(invalid("this is no backup of tollgate"));
        }
        let mut version = [0u8; 4];
        reader.take(&mut version)?;
        match u32::from_le_bytes(version) {
            VERSION => Ok(reader),
            other => Err(invalid(format!("the backup is of version {other}; this program reads version {VERSION}"))),
        }
    }

    fn take(&mut self, into: &mut [u8]) -> io::Result<()> {
        self.from.read_exact(into).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => invalid("the backup is cut short"),
            _ => error,
        })?;
        self.sum.update(into);
        Ok(())
    }

    /// The next part; `None` after the end.
    ///
    /// # Errors
    /// The backup is damaged, cut short or goes on after its end.
    pub fn next_part(&mut self) -> io::Result<Option<Part>> {
        if self.ended {
            return Ok(None);
        }
        let before = self.sum.clone();
        let (kind, payload) = self.read_chunk()?;
        let part = self.part(kind, payload, before)?;
        if self.chunks == 1 && !matches!(part, Part::Manifest(_)) {
            return Err(invalid("the backup does not begin with its manifest"));
        }
        Ok(Some(part))
    }

    fn read_chunk(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut head = [0u8; 5];
        self.take(&mut head)?;
        let [kind, length @ ..] = head;
        let length = u32::from_le_bytes(length) as usize;
        let damaged =
            |number: u64| invalid(format!("the backup is damaged: chunk {number} does not match its checksum"));
        if length > MAX_PAYLOAD {
            return Err(damaged(self.chunks));
        }
        let mut payload = vec![0u8; length];
        self.take(&mut payload)?;
        let mut sum = [0u8; 4];
        self.take(&mut sum)?;
        if crc(self.chunks, kind, &payload) != u32::from_le_bytes(sum) {
            return Err(damaged(self.chunks));
        }
        self.chunks += 1;
        Ok((kind, payload))
    }

    fn part(&mut self, kind: u8, payload: Vec<u8>, before: Sha256) -> io::Result<Part> {
        let unreadable = || invalid("the backup holds a chunk that cannot be read");
        if self.in_file != matches!(kind, kind::DATA | kind::FILE_END) {
            return Err(invalid("the backup's parts are not in order"));
        }
        Ok(match kind {
            kind::MANIFEST if self.chunks == 1 => Part::Manifest(serde_json::from_slice(&payload)?),
            kind::ROWS => {
                let row = |op| match op {
                    Op::Put { key, value } => Some((key, value)),
                    Op::Delete { .. } => None,
                };
                let rows: Option<Vec<Row>> = decode(&payload).and_then(|ops| ops.into_iter().map(row).collect());
                let rows = rows.ok_or_else(unreadable)?;
                self.totals.rows += rows.len() as u64;
                Part::Rows(rows)
            }
            kind::CHANGES => {
                let ops = decode(&payload).ok_or_else(unreadable)?;
                self.totals.changes += ops.len() as u64;
                Part::Changes(ops)
            }
            kind::FILE => {
                self.in_file = true;
                self.totals.files += 1;
                Part::File(String::from_utf8(payload).map_err(|_| unreadable())?)
            }
            kind::DATA => {
                self.totals.file_bytes += payload.len() as u64;
                Part::Data(payload)
            }
            kind::FILE_END => {
                self.in_file = false;
                Part::FileEnd
            }
            kind::END => {
                self.check_end(&payload, before)?;
                Part::End(self.totals.clone())
            }
            _ => return Err(unreadable()),
        })
    }

    fn check_end(&mut self, payload: &[u8], before: Sha256) -> io::Result<()> {
        let end: End = serde_json::from_slice(payload)?;
        if end.sha256 != hex(&before.finalize()) || end.totals != self.totals {
            return Err(invalid("the backup is damaged: it is not what its end says"));
        }
        if self.from.read(&mut [0u8; 1])? != 0 {
            return Err(invalid("the backup goes on after its end"));
        }
        self.ended = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            format: 2,
            written_by: "0.0.1".into(),
            written_at: "2026-01-15T12:00:00Z".into(),
            with_secrets: true,
        }
    }

    fn sample() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), &manifest()).unwrap();
        writer.rows(&[(b"a".to_vec(), b"1".to_vec()), (b"b".to_vec(), vec![])]).unwrap();
        writer
            .changes(&[Op::Delete { key: b"a".to_vec() }, Op::Put { key: b"c".to_vec(), value: vec![0, 255] }])
            .unwrap();
        writer.file("journal/1.seg", &mut &b"some bytes of a file"[..], 10).unwrap();
        writer.file("journal/short", &mut &b"ab"[..], 10).unwrap();
        let (bytes, totals) = writer.finish().unwrap();
        assert_eq!(totals, Totals { rows: 2, changes: 2, files: 2, file_bytes: 12 });
        bytes
    }

    fn read(bytes: &[u8]) -> io::Result<Vec<Part>> {
        let mut reader = Reader::new(bytes)?;
        let mut parts = Vec::new();
        while let Some(part) = reader.next_part()? {
            parts.push(part);
        }
        Ok(parts)
    }

    #[test]
    fn what_is_written_is_read() {
        let parts = read(&sample()).unwrap();
        assert_eq!(parts[0], Part::Manifest(manifest()));
        assert_eq!(parts[1], Part::Rows(vec![(b"a".to_vec(), b"1".to_vec()), (b"b".to_vec(), vec![])]));
        assert_eq!(parts[3], Part::File("journal/1.seg".into()));
        assert_eq!(parts[4], Part::Data(b"some bytes".to_vec()));
        assert!(matches!(parts.last(), Some(Part::End(totals)) if totals.file_bytes == 12));
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_noticed() {
        let whole = sample();
        for at in 0..whole.len() {
            for bit in [1, 0x80] {
                let mut damaged = whole.clone();
                damaged[at] ^= bit;
                assert!(read(&damaged).is_err(), "byte {at}");
            }
            assert!(read(&whole[..at]).is_err(), "cut at {at}");
        }
        assert!(read(&[whole.as_slice(), b"x"].concat()).is_err(), "something after the end");
    }

    #[test]
    fn parts_that_changed_places_or_are_gone_are_noticed() {
        let mut ends = vec![12];
        let whole = sample();
        while *ends.last().unwrap() < whole.len() {
            let at = *ends.last().unwrap();
            let length = u32::from_le_bytes(whole[at + 1..at + 5].try_into().unwrap()) as usize;
            ends.push(at + 9 + length);
        }
        let chunks: Vec<&[u8]> = ends.windows(2).map(|w| &whole[w[0]..w[1]]).collect();
        for gone in 0..chunks.len() {
            let rest = chunks.iter().enumerate().filter(|(n, _)| *n != gone).flat_map(|(_, chunk)| chunk.to_vec());
            let bytes: Vec<u8> = whole[..12].iter().copied().chain(rest).collect();
            assert!(read(&bytes).is_err(), "without chunk {gone}");
        }
    }

    #[test]
    fn many_rows_take_many_chunks() {
        let rows: Vec<Row> = (0..3_000u32).map(|n| (n.to_be_bytes().to_vec(), vec![7; 4096])).collect();
        let mut writer = Writer::new(Vec::new(), &manifest()).unwrap();
        writer.rows(&rows).unwrap();
        let (bytes, _) = writer.finish().unwrap();
        let parts = read(&bytes).unwrap();
        let read: Vec<Row> = parts
            .into_iter()
            .flat_map(|part| match part {
                Part::Rows(rows) => rows,
                _ => Vec::new(),
            })
            .collect();
        assert_eq!(read, rows);
    }
}
