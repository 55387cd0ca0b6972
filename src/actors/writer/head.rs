//! What stands at the beginning of a segment file, in every version of the format.
//!
//! Owns the reading and writing of heads. It never looks at what follows one.
//!
//! Version 1 is the 32 bytes that [`segment`](super::segment) describes: records in the clear. Version 2 is for everything
//! else, and stands twice, so that no single damaged byte makes a file unreadable:
//!
//! | head, version 2 | bytes |
//! |---|--:|
//! | magic `tgjourn1` | 8 |
//! | format version | 4 |
//! | first sequence | 8 |
//! | created, Unix ms | 8 |
//! | form: 0 records, 1 blocks | 1 |
//! | of blocks: 0 as they are, 1 zstd | 1 |
//! | encryption: 0 none, 1 XChaCha20-Poly1305 | 1 |
//! | of blocks: 1 when the records were encrypted one by one before | 1 |
//! | key id | 8 |
//! | salt | 32 |
//! | zero | 4 |
//! | CRC-32 of the above | 4 |

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::keys::{KeyId, SALT_BYTES, Seal};
use super::segment::{MAGIC, SEGMENT_HEAD_BYTES, SegmentHead, VERSION, invalid, u32_at, u64_at};

const VERSION_2: u32 = 2;
const COPY_BYTES: usize = 80;
/// Both copies.
pub(super) const HEAD_2_BYTES: u64 = 2 * COPY_BYTES as u64;

const FORM: usize = 28;
const CODEC: usize = 29;
const CIPHER: usize = 30;
const ORIGIN: usize = 31;
const KEY_ID: usize = 32;
const SALT: usize = 40;
const CRC: usize = COPY_BYTES - 4;

/// In which form a segment's records lie in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// One after another, as they were appended.
    Records,
    /// In blocks, as a sealed segment is rewritten.
    Blocks {
        compressed: bool,
        /// The records were encrypted one by one when the index was made: it counts their places so.
        was_sealed: bool,
    },
}

/// A segment's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub first_seq: u64,
    pub created_ms: u64,
    pub form: Form,
    pub seal: Option<Seal>,
}

impl Head {
    /// Bytes before the first record or block.
    pub(super) fn bytes(&self) -> u64 {
        if self.is_version_1() { SEGMENT_HEAD_BYTES } else { HEAD_2_BYTES }
    }

    fn is_version_1(&self) -> bool {
        self.form == Form::Records && self.seal.is_none()
    }

    pub(super) fn is_blocks(&self) -> bool {
        self.form != Form::Records
    }

    pub(super) fn key_id(&self) -> Option<KeyId> {
        self.seal.map(|seal| seal.key_id)
    }

    /// Whether the records' places are counted as if each were encrypted by itself.
    pub(super) fn was_sealed(&self) -> bool {
        match self.form {
            Form::Records => self.seal.is_some(),
            Form::Blocks { was_sealed, .. } => was_sealed,
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        if self.is_version_1() {
            return SegmentHead { first_seq: self.first_seq, created_ms: self.created_ms }.encode();
        }
        let mut copy = [0; COPY_BYTES];
        copy[..8].copy_from_slice(MAGIC);
        copy[8..12].copy_from_slice(&VERSION_2.to_le_bytes());
        copy[12..20].copy_from_slice(&self.first_seq.to_le_bytes());
        copy[20..28].copy_from_slice(&self.created_ms.to_le_bytes());
        if let Form::Blocks { compressed, was_sealed } = self.form {
            copy[FORM] = 1;
            copy[CODEC] = u8::from(compressed);
            copy[ORIGIN] = u8::from(was_sealed);
        }
        if let Some(seal) = &self.seal {
            copy[CIPHER] = 1;
            copy[KEY_ID..SALT].copy_from_slice(&seal.key_id.0);
            copy[SALT..SALT + SALT_BYTES].copy_from_slice(&seal.salt);
        }
        let crc = crc32fast::hash(&copy[..CRC]);
        copy[CRC..].copy_from_slice(&crc.to_le_bytes());
        [copy, copy].concat()
    }

    /// Reads the head, by whichever copy is sound.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] for a format of a later version, [`io::ErrorKind::InvalidData`] for what is no head
    /// or a damaged one; the text says which.
    pub(super) fn read(file: &File) -> io::Result<Self> {
        if let Ok(SegmentHead { first_seq, created_ms }) = SegmentHead::read(file) {
            return Ok(Self { first_seq, created_ms, form: Form::Records, seal: None });
        }
        let bytes = beginning(file)?;
        let copies = [bytes.get(..COPY_BYTES), bytes.get(COPY_BYTES..)];
        if let Some(copy) = copies.into_iter().flatten().find(|copy| is_sound_copy(copy)) {
            return decode_2(copy);
        }
        if !bytes.starts_with(MAGIC) {
            return Err(invalid("not a journal segment"));
        }
        match u32_at(&bytes, 8) {
            VERSION | VERSION_2 => Err(invalid("segment head fails its checksum")),
            _ if is_damaged_version_1(&bytes) => Err(invalid("segment head fails its checksum")),
            version => Err(newer(&format!("format version {version}"))),
        }
    }

    /// Whether the head and, if there is one, its copy are both sound.
    pub(super) fn check(file: &File) -> io::Result<()> {
        let head = Self::read(file)?;
        let bytes = beginning(file)?;
        if bytes.get(..head.bytes() as usize) == Some(&head.encode()) {
            Ok(())
        } else {
            Err(invalid("one of the two copies of the segment head is damaged"))
        }
    }

    /// Whether a file of this length can only be one whose creation was cut off.
    pub(super) fn is_unfinished(file: &File, len: u64) -> io::Result<bool> {
        let bytes = beginning(file)?;
        let is_version_2 = bytes.starts_with(MAGIC) && u32_at(&bytes, 8) == VERSION_2;
        Ok(len < SEGMENT_HEAD_BYTES || (is_version_2 && len < HEAD_2_BYTES))
    }
}

fn beginning(file: &File) -> io::Result<Vec<u8>> {
    let len = file.metadata()?.len().min(HEAD_2_BYTES) as usize;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// A flipped bit in the version must not make a damaged file look like a newer one.
fn is_damaged_version_1(bytes: &[u8]) -> bool {
    let Some(mut head) = bytes.first_chunk::<28>().copied() else {
        return true;
    };
    head[8..12].copy_from_slice(&VERSION.to_le_bytes());
    crc32fast::hash(&head) == u32_at(bytes, 28)
}

fn is_sound_copy(copy: &[u8]) -> bool {
    copy.len() == COPY_BYTES
        && copy.starts_with(MAGIC)
        && u32_at(copy, 8) == VERSION_2
        && crc32fast::hash(&copy[..CRC]) == u32_at(copy, CRC)
}

fn decode_2(copy: &[u8]) -> io::Result<Head> {
    let byte = |at: usize| copy.get(at).copied().unwrap_or(u8::MAX);
    let form = match (byte(FORM), byte(CODEC), byte(ORIGIN)) {
        (0, 0, 0) => Form::Records,
        (1, codec @ 0..=1, origin @ 0..=1) => Form::Blocks { compressed: codec == 1, was_sealed: origin == 1 },
        _ => return Err(newer("form of file")),
    };
    let seal = match byte(CIPHER) {
        0 => None,
        1 => {
            let mut seal = Seal { key_id: KeyId::default(), salt: [0; SALT_BYTES] };
            seal.key_id.0.copy_from_slice(&copy[KEY_ID..SALT]);
            seal.salt.copy_from_slice(&copy[SALT..SALT + SALT_BYTES]);
            Some(seal)
        }
        _ => return Err(newer("encryption")),
    };
    Ok(Head { first_seq: u64_at(copy, 12), created_ms: u64_at(copy, 20), form, seal })
}

fn newer(what: &str) -> io::Error {
    let text = format!(
        "{what} is unknown to this version of tollgate; start the version that wrote it, or move the file out of the \
         journal's directory"
    );
    io::Error::new(io::ErrorKind::Unsupported, text)
}

/// Whether a file was refused for being of a later version.
pub(super) fn is_newer(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    fn read(bytes: &[u8]) -> io::Result<Head> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        Head::read(file.as_file())
    }

    fn heads() -> Vec<Head> {
        let seal = Some(Seal { key_id: KeyId([3; 8]), salt: [9; 32] });
        let blocks = |compressed, was_sealed| Form::Blocks { compressed, was_sealed };
        let forms = [Form::Records, blocks(false, false), blocks(true, false), blocks(true, true)];
        forms
            .iter()
            .flat_map(|form| [None, seal].map(|seal| Head { first_seq: 7, created_ms: 8, form: *form, seal }))
            .collect()
    }

    #[test]
    fn every_head_comes_back_and_a_damaged_byte_is_found() {
        for head in heads() {
            let bytes = head.encode();
            assert_eq!((bytes.len() as u64, read(&bytes).unwrap()), (head.bytes(), head));
            for at in 0..bytes.len() {
                for bit in 0..8 {
                    let mut damaged = bytes.clone();
                    damaged[at] ^= 1 << bit;
                    match read(&damaged) {
                        // Either copy will do.
                        Ok(found) => assert_eq!((found, head.is_version_1()), (head, false)),
                        Err(error) => assert!(head.is_version_1() && !is_newer(&error), "byte {at}: {error}"),
                    }
                    let file = tempfile::NamedTempFile::new().unwrap();
                    std::fs::write(file.path(), damaged).unwrap();
                    assert!(Head::check(file.as_file()).is_err(), "byte {at} bit {bit} of {head:?}");
                }
            }
        }
    }

    #[test]
    fn a_later_version_is_refused_by_name() {
        for head in heads() {
            let mut bytes = head.encode();
            let both = if head.is_version_1() { vec![0] } else { vec![0, COPY_BYTES] };
            for start in both {
                bytes[start + 8..start + 12].copy_from_slice(&77_u32.to_le_bytes());
                let crc_at = if head.is_version_1() { 28 } else { CRC };
                let crc = crc32fast::hash(&bytes[start..start + crc_at]);
                bytes[start + crc_at..start + crc_at + 4].copy_from_slice(&crc.to_le_bytes());
            }
            let error = read(&bytes).unwrap_err();
            assert!(is_newer(&error) && error.to_string().contains("version 77"), "{error}");
        }
    }
}
