//! Sealed segments rewritten: records in blocks, each compressed and encrypted by itself, with a directory at the end.
//!
//! Owns the format and both directions of it. It never decides which segment is rewritten or when
//! ([`upkeep`](super::upkeep) does) and never touches the file that it is made from.
//!
//! After the [head](super::head) come the blocks, the directory, and the footer. A block holds whole records in the clear
//! form of [`segment`](super::segment), about 64 KiB of them, or one that is larger. All numbers are little-endian.
//!
//! | block | bytes | | footer | bytes |
//! |---|--:|---|---|--:|
//! | stored length | 4 | | directory's offset | 4 |
//! | length of its records | 4 | | blocks | 4 |
//! | records | 4 | | records | 4 |
//! | first sequence | 8 | | first sequence | 8 |
//! | zero | 8 | | oldest, newest, Unix ms | 16 |
//! | CRC-32 of the above and what is stored | 4 | | end of the records as the index counts them | 8 |
//! | stored | … | | proof, when encrypted | 16 |
//! | | | | CRC-32 of directory and footer | 4 |
//!
//! The directory has 8 bytes per block: its offset, and how many records come before it. Sequences follow each other without
//! a gap, so a record's number in the segment is its sequence less the first.
//!
//! Every file has a data key of its own and is written once, from beginning to end, so a block's first sequence makes its
//! nonce. What stands beside the ciphertext is bound with it: blocks cannot be moved, and the directory has a proof too.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::head::{Form, Head};
use super::keys::{Cipher, NONCE_PREFIX_BYTES, Nonce, TAG_BYTES};
use super::segment::{
    MAX_PAYLOAD_BYTES, RECORD_HEAD_BYTES, RecordHead, SegmentFile, append_record, invalid, record_crc, u32_at, u64_at,
};

/// A block is closed when its records reach this. Small, because a page of one user reads a block for each of its records.
const BLOCK_BYTES: usize = 64 << 10;
const BLOCK_HEAD_BYTES: usize = 32;
const ENTRY_BYTES: usize = 8;
const FOOTER_BYTES: usize = 64;
const FOOTER_PROOF: usize = 44;
/// A block's records, at the most.
const MAX_CLEAR_BYTES: usize = BLOCK_BYTES + MAX_PAYLOAD_BYTES as usize + RECORD_HEAD_BYTES;

/// The directory's nonce; a block's has zeros here.
const DIRECTORY: Nonce = Nonce([0xFF; NONCE_PREFIX_BYTES], 0);

fn block_nonce(first_seq: u64) -> Nonce {
    Nonce([0; NONCE_PREFIX_BYTES], first_seq)
}

/// What a rewritten segment is known to hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Contents {
    pub first_seq: u64,
    pub records: u32,
    pub oldest_ms: u64,
    pub newest_ms: u64,
    /// Where the last record ends, as the index counts places.
    pub image_len: u64,
}

/// Writes a segment in blocks.
pub(super) struct BlockWriter<'a> {
    file: &'a mut dyn SegmentFile,
    cipher: Option<Cipher>,
    compressor: Option<zstd::bulk::Compressor<'static>>,
    at: u64,
    clear: Vec<u8>,
    clear_records: u32,
    directory: Vec<u8>,
    contents: Contents,
    last_seq: u64,
}

impl<'a> BlockWriter<'a> {
    /// Begins `file` with `head`. `level` is zstd's; none leaves blocks as they are.
    pub(super) fn new(
        file: &'a mut dyn SegmentFile,
        head: &Head,
        level: Option<i32>,
        cipher: Option<Cipher>,
    ) -> io::Result<Self> {
        file.write_all_at(&head.encode(), 0)?;
        let contents = Contents { first_seq: head.first_seq, oldest_ms: u64::MAX, ..Contents::default() };
        Ok(Self {
            file,
            cipher,
            compressor: level.map(zstd::bulk::Compressor::new).transpose()?,
            at: head.bytes(),
            clear: Vec::with_capacity(BLOCK_BYTES + (BLOCK_BYTES >> 2)),
            clear_records: 0,
            directory: Vec::new(),
            contents,
            last_seq: head.first_seq.saturating_sub(1),
        })
    }

    /// Adds a record. True when a block was written with it.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] when its sequence does not follow the last one's; what writing gives otherwise.
    pub(super) fn push(&mut self, head: RecordHead, payload: &[u8]) -> io::Result<bool> {
        if head.seq != self.last_seq + 1 {
            return Err(invalid(format!("sequence {} after {}", head.seq, self.last_seq)));
        }
        let key = (head.seq, head.user_id, head.timestamp_ms);
        if !append_record(&mut self.clear, key, |out| out.extend_from_slice(payload)) {
            return Err(invalid("a record is too large"));
        }
        self.last_seq = head.seq;
        self.clear_records += 1;
        self.contents.oldest_ms = self.contents.oldest_ms.min(head.timestamp_ms);
        self.contents.newest_ms = self.contents.newest_ms.max(head.timestamp_ms);
        let full = self.clear.len() >= BLOCK_BYTES;
        if full {
            self.write_block()?;
        }
        Ok(full)
    }

    /// Bytes written so far.
    pub(super) fn written(&self) -> u64 {
        self.at
    }

    /// Returns once everything written so far is on the disk.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write_block(&mut self) -> io::Result<()> {
        if self.clear_records == 0 {
            return Ok(());
        }
        let offset = u32::try_from(self.at).map_err(|_| invalid("the segment is too large"))?;
        let mut stored = match &mut self.compressor {
            Some(compressor) => compressor.compress(&self.clear)?,
            None => self.clear.clone(),
        };
        let first_seq = self.contents.first_seq + u64::from(self.contents.records);
        let proof_bytes = if self.cipher.is_some() { TAG_BYTES } else { 0 };
        let mut head = [0; BLOCK_HEAD_BYTES];
        head[..4].copy_from_slice(&((stored.len() + proof_bytes) as u32).to_le_bytes());
        head[4..8].copy_from_slice(&(self.clear.len() as u32).to_le_bytes());
        head[8..12].copy_from_slice(&self.clear_records.to_le_bytes());
        head[12..20].copy_from_slice(&first_seq.to_le_bytes());
        if let Some(cipher) = &self.cipher {
            let proof = cipher.seal(block_nonce(first_seq), &head[..28], &mut stored)?;
            stored.extend_from_slice(&proof);
        }
        let crc = block_crc(&head, &stored);
        head[28..].copy_from_slice(&crc.to_le_bytes());
        stored.splice(0..0, head);
        self.file.write_all_at(&stored, self.at)?;
        self.at += stored.len() as u64;

        self.directory.extend_from_slice(&offset.to_le_bytes());
        self.directory.extend_from_slice(&self.contents.records.to_le_bytes());
        self.contents.records += self.clear_records;
        self.clear.clear();
        self.clear_records = 0;
        Ok(())
    }

    /// Writes what is left, the directory and the footer, and syncs the file. `image_len` is where the index says that the
    /// records end. Gives the file's length.
    pub(super) fn finish(mut self, image_len: u64) -> io::Result<u64> {
        self.write_block()?;
        let contents = Contents { image_len, ..self.contents };
        let mut footer = [0; FOOTER_BYTES];
        let offset = u32::try_from(self.at).map_err(|_| invalid("the segment is too large"))?;
        footer[..4].copy_from_slice(&offset.to_le_bytes());
        footer[4..8].copy_from_slice(&((self.directory.len() / ENTRY_BYTES) as u32).to_le_bytes());
        footer[8..12].copy_from_slice(&contents.records.to_le_bytes());
        footer[12..20].copy_from_slice(&contents.first_seq.to_le_bytes());
        footer[20..28].copy_from_slice(&contents.oldest_ms.to_le_bytes());
        footer[28..36].copy_from_slice(&contents.newest_ms.to_le_bytes());
        footer[36..44].copy_from_slice(&contents.image_len.to_le_bytes());
        let mut end = self.directory;
        end.extend_from_slice(&footer[..FOOTER_PROOF]);
        let proof = match &self.cipher {
            Some(cipher) => cipher.seal(DIRECTORY, &end, &mut [])?,
            None => [0; TAG_BYTES],
        };
        end.extend_from_slice(&proof);
        let crc = crc32fast::hash(&end);
        end.extend_from_slice(&crc.to_le_bytes());
        self.file.write_all_at(&end, self.at)?;
        self.file.sync_data()?;
        Ok(self.at + end.len() as u64)
    }
}

fn block_crc(head: &[u8; BLOCK_HEAD_BYTES], stored: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&head[..28]);
    crc.update(stored);
    crc.finalize()
}

/// Where each block is.
#[derive(Debug, Default)]
pub(super) struct Directory {
    /// Offset, and records before.
    blocks: Vec<(u32, u32)>,
    pub contents: Contents,
    /// What is wrong with the one in the file; this one was then made from the blocks.
    pub damage: Option<String>,
}

/// What the footer says, without its directory being read.
pub(super) fn read_contents(file: &File) -> io::Result<Contents> {
    let (footer, _) = read_footer(file)?;
    Ok(contents_of(&footer))
}

fn read_footer(file: &File) -> io::Result<([u8; FOOTER_BYTES], u64)> {
    let at = file.metadata()?.len().checked_sub(FOOTER_BYTES as u64).ok_or_else(|| invalid("there is no footer"))?;
    let mut footer = [0; FOOTER_BYTES];
    file.read_exact_at(&mut footer, at)?;
    let (start, blocks) = (u64::from(u32_at(&footer, 0)), u64::from(u32_at(&footer, 4)));
    if start + blocks * ENTRY_BYTES as u64 != at {
        return Err(invalid("the footer is damaged"));
    }
    Ok((footer, start))
}

fn contents_of(footer: &[u8; FOOTER_BYTES]) -> Contents {
    Contents {
        first_seq: u64_at(footer, 12),
        records: u32_at(footer, 8),
        oldest_ms: u64_at(footer, 20),
        newest_ms: u64_at(footer, 28),
        image_len: u64_at(footer, 36),
    }
}

impl Directory {
    /// Reads the directory, or makes one from the blocks when it is damaged.
    pub(super) fn read(file: &File, head: &Head, cipher: Option<&Cipher>) -> io::Result<Self> {
        match Self::read_sound(file, cipher) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Self::rebuild(file, head, error.to_string()),
            result => result,
        }
    }

    fn read_sound(file: &File, cipher: Option<&Cipher>) -> io::Result<Self> {
        let (footer, start) = read_footer(file)?;
        let mut end = vec![0; (file.metadata()?.len() - start) as usize];
        file.read_exact_at(&mut end, start)?;
        let (body, crc) = end.split_at(end.len() - 4);
        if crc32fast::hash(body) != u32_at(crc, 0) {
            return Err(invalid("the directory fails its checksum"));
        }
        let (beside, proof) = body.split_at(body.len() - TAG_BYTES);
        if cipher.is_some_and(|cipher| !cipher.open(DIRECTORY, beside, &mut [], proof)) {
            return Err(invalid("the directory is not what was written"));
        }
        let entries = &beside[..beside.len() - FOOTER_PROOF];
        let blocks = entries.chunks_exact(ENTRY_BYTES).map(|entry| (u32_at(entry, 0), u32_at(entry, 4))).collect();
        Ok(Self { blocks, contents: contents_of(&footer), damage: None })
    }

    /// Follows the blocks from the first on. One that is damaged is passed by if its length still leads to another.
    fn rebuild(file: &File, head: &Head, damage: String) -> io::Result<Self> {
        let len = file.metadata()?.len();
        let mut made = Self { damage: Some(damage), ..Self::default() };
        made.contents.first_seq = head.first_seq;
        let mut at = head.bytes();
        while at + BLOCK_HEAD_BYTES as u64 <= len {
            let mut bytes = [0; BLOCK_HEAD_BYTES];
            file.read_exact_at(&mut bytes, at)?;
            let (stored, records, first_seq) = (u32_at(&bytes, 0), u32_at(&bytes, 8), u64_at(&bytes, 12));
            let end = at + BLOCK_HEAD_BYTES as u64 + u64::from(stored);
            let before = first_seq.checked_sub(head.first_seq).and_then(|before| u32::try_from(before).ok());
            let (Some(before), true) = (before, end <= len && stored > 0 && records > 0) else {
                break; // the directory begins here
            };
            if before < made.contents.records || u64_at(&bytes, 20) != 0 {
                break;
            }
            made.blocks.push((at as u32, before));
            made.contents.records = before.saturating_add(records);
            at = end;
        }
        Ok(made)
    }

    pub(super) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// The block that holds the record of this number.
    pub(super) fn block_of(&self, number: u32) -> Option<usize> {
        self.blocks.partition_point(|(_, before)| *before <= number).checked_sub(1)
    }

    /// Where a block begins.
    pub(super) fn offset(&self, block: usize) -> u64 {
        self.blocks.get(block).map_or(0, |(offset, _)| u64::from(*offset))
    }

    /// Where a block is to end: where the next one begins, or the directory.
    pub(super) fn end(&self, block: usize, file_len: u64) -> u64 {
        let rest = (self.blocks.len() * ENTRY_BYTES + FOOTER_BYTES) as u64;
        self.blocks.get(block + 1).map_or(file_len.saturating_sub(rest), |(offset, _)| u64::from(*offset))
    }

    fn first_seq(&self, block: usize) -> u64 {
        self.blocks.get(block).map_or(0, |(_, before)| self.contents.first_seq + u64::from(*before))
    }
}

/// Reads blocks of one file, keeping the one read last.
pub(super) struct BlockReader {
    pub directory: Directory,
    compressed: bool,
    cipher: Option<Cipher>,
    held: Option<usize>,
    clear: Vec<u8>,
}

impl BlockReader {
    pub(super) fn open(file: &File, head: &Head, cipher: Option<Cipher>) -> io::Result<Self> {
        let directory = Directory::read(file, head, cipher.as_ref())?;
        let compressed = matches!(head.form, Form::Blocks { compressed: true, .. });
        Ok(Self { directory, compressed, cipher, held: None, clear: Vec::new() })
    }

    /// The record of this number; its payload is in [`BlockReader::bytes`].
    pub(super) fn find(&mut self, file: &File, number: u32) -> io::Result<(RecordHead, std::ops::Range<usize>)> {
        let block = self.directory.block_of(number).ok_or_else(|| invalid("no block has this record"))?;
        self.load(file, block)?;
        let seq = self.directory.contents.first_seq + u64::from(number);
        let mut at = 0;
        while let Some((head, payload)) = self.record_at(at)? {
            if head.seq == seq {
                return Ok((head, payload));
            }
            at = payload.end;
        }
        Err(invalid("its block does not have this record"))
    }

    /// The records of the block read last.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.clear
    }

    /// Reads a block and all that vouches for it.
    pub(super) fn load(&mut self, file: &File, block: usize) -> io::Result<()> {
        if self.held == Some(block) {
            return Ok(());
        }
        self.held = None;
        let at = self.directory.offset(block);
        let mut head = [0; BLOCK_HEAD_BYTES];
        file.read_exact_at(&mut head, at)?;
        let (stored_len, clear_len) = (u32_at(&head, 0) as usize, u32_at(&head, 4) as usize);
        if clear_len > MAX_CLEAR_BYTES || stored_len as u64 > file.metadata()?.len() {
            return Err(invalid("block length is out of range"));
        }
        let mut stored = vec![0; stored_len];
        file.read_exact_at(&mut stored, at + BLOCK_HEAD_BYTES as u64)?;
        if block_crc(&head, &stored) != u32_at(&head, 28) {
            return Err(invalid("block fails its checksum"));
        }
        if u64_at(&head, 12) != self.directory.first_seq(block) {
            return Err(invalid("block is not the one that the directory names"));
        }
        if let Some(cipher) = &self.cipher {
            let text_len = stored_len.checked_sub(TAG_BYTES).ok_or_else(|| invalid("block is too short"))?;
            let (text, proof) = stored.split_at_mut(text_len);
            if !cipher.open(block_nonce(u64_at(&head, 12)), &head[..28], text, proof) {
                return Err(invalid("block is not what was encrypted"));
            }
            stored.truncate(text_len);
        }
        self.clear = if self.compressed { zstd::bulk::decompress(&stored, clear_len)? } else { stored };
        if self.clear.len() != clear_len {
            return Err(invalid("block has another length than it says"));
        }
        self.held = Some(block);
        Ok(())
    }

    /// The record at `at` of the block read last; none at its end.
    pub(super) fn record_at(&self, at: usize) -> io::Result<Option<(RecordHead, std::ops::Range<usize>)>> {
        let rest = self.clear.get(at..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(None);
        }
        let head = RecordHead::decode(rest);
        let record = rest.get(..head.size() as usize).ok_or_else(|| invalid("a record reaches past its block"))?;
        if rest.len() < RECORD_HEAD_BYTES || record_crc(record) != u32_at(record, 28) {
            return Err(invalid("record fails its checksum"));
        }
        Ok(Some((head, at + RECORD_HEAD_BYTES..at + record.len())))
    }
}
