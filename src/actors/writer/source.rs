//! A segment file as it is read, whatever its form: one record by its number, or all of them in their order.
//!
//! Owns nothing on the disk. What it returns has passed every checksum there is, and the proof of encryption if there is
//! one. It never looks inside a record's JSON.

use std::fs::File;
use std::io;
use std::path::Path;

use super::blocks::{BlockReader, read_contents};
use super::envelope::{ENVELOPE_BYTES, open_payload};
use super::head::{Form, HEAD_2_BYTES, Head, is_newer};
use super::keys::{Cipher, JournalKeys};
use super::segment::{Found, RecordHead, SEGMENT_HEAD_BYTES, Scanner, invalid, read_record};

/// What a segment's file is, by its head and footer alone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// None when it is damaged; the records can then still be read if they are clear and lie one after another.
    pub head: Option<Head>,
    pub file_len: u64,
    /// Where its last record ends, as the index counts places; none when the footer is damaged.
    pub image_len: Option<u64>,
}

impl Shape {
    /// # Errors
    /// The file cannot be read, or is of a later version; the text names it.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let file_len = file.metadata()?.len();
        let head = match Head::read(&file) {
            Ok(head) => Some(head),
            Err(error) if is_newer(&error) => return Err(named(path, &error)),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => None,
            Err(error) => return Err(error),
        };
        let image_len = match head {
            Some(head) if head.is_blocks() => read_contents(&file).ok().map(|contents| contents.image_len),
            _ => Some(file_len),
        };
        Ok(Self { head, file_len, image_len })
    }
}

/// The error with the file's name in front.
pub(super) fn named(path: &Path, error: &io::Error) -> io::Error {
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    io::Error::new(error.kind(), format!("{name}: {error}"))
}

fn cipher_of(path: &Path, head: &Head, keys: &JournalKeys) -> io::Result<Option<Cipher>> {
    head.seal.as_ref().map(|seal| keys.of_file(seal).map_err(|error| named(path, &error))).transpose()
}

/// Reads records by their places in the index.
pub(super) struct Source {
    file: File,
    blocks: Option<BlockReader>,
    cipher: Option<Cipher>,
}

impl Source {
    pub(super) fn open(path: &Path, keys: &JournalKeys) -> io::Result<Self> {
        let file = File::open(path)?;
        let head = match Head::read(&file) {
            Ok(head) => head,
            // Clear records vouch for themselves.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Ok(Self { file, blocks: None, cipher: None });
            }
            Err(error) => return Err(named(path, &error)),
        };
        let cipher = cipher_of(path, &head, keys)?;
        if head.is_blocks() {
            let blocks = BlockReader::open(&file, &head, cipher)?;
            return Ok(Self { file, blocks: Some(blocks), cipher: None });
        }
        Ok(Self { file, blocks: None, cipher })
    }

    /// The record of this number, which lies at `offset` if records lie one after another.
    pub(super) fn read(&mut self, number: u32, offset: u32) -> io::Result<(RecordHead, Vec<u8>)> {
        if let Some(blocks) = &mut self.blocks {
            let (head, payload) = blocks.find(&self.file, number)?;
            return Ok((head, blocks.bytes().get(payload).unwrap_or_default().to_vec()));
        }
        let (head, mut payload) = read_record(&self.file, u64::from(offset))?;
        let Some(cipher) = &self.cipher else {
            return Ok((head, payload));
        };
        let head =
            open_payload(cipher, head, &mut payload).ok_or_else(|| invalid("record is not what was encrypted"))?;
        Ok((head, payload))
    }
}

/// Walks all records of a segment, past damage. Holds one block, or what a [`Scanner`] holds.
pub(super) struct Walk {
    inner: Inner,
    head: Option<Head>,
    file_len: u64,
}

enum Inner {
    Records { scanner: Box<Scanner>, cipher: Option<Cipher>, opened: Vec<u8> },
    Blocks(Box<BlockWalk>),
}

struct BlockWalk {
    file: File,
    reader: BlockReader,
    /// The block being shown, and where in it.
    block: usize,
    at: usize,
    loaded: bool,
    payload: std::ops::Range<usize>,
    /// Where the next record lies, as the index counts places.
    image_at: u64,
    /// Bytes by which a record is longer there.
    image_extra: u64,
}

impl Walk {
    /// `first_seq` comes from the file's name, so that a damaged head does not hide clear records.
    ///
    /// # Errors
    /// The file cannot be read, is of a later version, or is encrypted under a key that is not among `keys`.
    pub(super) fn open(path: &Path, first_seq: u64, keys: &JournalKeys) -> io::Result<Self> {
        let scanner = Scanner::open(path, first_seq)?;
        let file_len = scanner.file_len();
        let head = match Head::read(scanner.file()) {
            Ok(head) => Some(head),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => None,
            Err(error) => return Err(named(path, &error)),
        };
        let cipher = head.as_ref().map(|head| cipher_of(path, head, keys)).transpose()?.flatten();
        let inner = match &head {
            Some(head) if head.is_blocks() => {
                let file = scanner.file().try_clone()?;
                Inner::Blocks(Box::new(BlockWalk::new(file, head, cipher)?))
            }
            _ => Inner::Records { scanner: Box::new(scanner), cipher, opened: Vec::new() },
        };
        Ok(Self { inner, head, file_len })
    }

    pub(super) fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    /// Bytes of the file when the walk began.
    pub(super) fn file_len(&self) -> u64 {
        self.file_len
    }

    /// Where the records end, as the index counts places, once all have been shown: the file's end, or what follows from
    /// the records of a file in blocks.
    pub(super) fn image_end(&self) -> u64 {
        match &self.inner {
            Inner::Records { .. } => self.file_len,
            Inner::Blocks(walk) => walk.image_at,
        }
    }

    /// What is wrong with the file apart from its records.
    pub(super) fn damage(&self) -> Option<String> {
        match &self.inner {
            Inner::Records { scanner, .. } => Head::check(scanner.file()).err().map(|error| error.to_string()),
            Inner::Blocks(walk) => {
                Head::check(&walk.file).err().map(|error| error.to_string()).or(walk.reader.directory.damage.clone())
            }
        }
    }

    /// The JSON of the record that [`Walk::step`] returned last.
    pub(super) fn payload(&self) -> &[u8] {
        match &self.inner {
            Inner::Records { scanner, cipher: None, .. } => scanner.payload(),
            Inner::Records { opened, .. } => opened,
            Inner::Blocks(walk) => walk.reader.bytes().get(walk.payload.clone()).unwrap_or_default(),
        }
    }

    /// The next thing in the file. A record's offset is its place as the index counts it; that of damage is the file's.
    pub(super) fn step(&mut self) -> io::Result<Found> {
        match &mut self.inner {
            Inner::Records { scanner, cipher: None, .. } => {
                let found = scanner.step()?;
                match found {
                    // Without a head nothing says whether the records are encrypted. A whole one that is no text is.
                    Found::Record { offset, head: record } if self.head.is_none() && !is_text(scanner.payload()) => {
                        Ok(Found::Damaged { offset, bytes: record.size() })
                    }
                    found => Ok(found),
                }
            }
            Inner::Records { scanner, cipher: Some(cipher), opened } => {
                let found = scanner.step()?;
                let Found::Record { offset, head } = found else {
                    return Ok(found);
                };
                opened.clear();
                opened.extend_from_slice(scanner.payload());
                Ok(match open_payload(cipher, head, opened) {
                    Some(head) => Found::Record { offset, head },
                    None => Found::Damaged { offset, bytes: head.size() },
                })
            }
            Inner::Blocks(walk) => walk.step(self.file_len),
        }
    }
}

impl BlockWalk {
    fn new(file: File, head: &Head, cipher: Option<Cipher>) -> io::Result<Self> {
        let reader = BlockReader::open(&file, head, cipher)?;
        let (image_at, image_extra) =
            if head.was_sealed() { (HEAD_2_BYTES, ENVELOPE_BYTES) } else { (SEGMENT_HEAD_BYTES, 0) };
        Ok(Self { file, reader, block: 0, at: 0, loaded: false, payload: 0..0, image_at, image_extra })
    }

    fn step(&mut self, file_len: u64) -> io::Result<Found> {
        loop {
            if self.block >= self.reader.directory.blocks() {
                return Ok(Found::End);
            }
            if !self.loaded {
                match self.reader.load(&self.file, self.block) {
                    Ok(()) => self.loaded = true,
                    Err(error) if is_damage(&error) => return Ok(self.pass_by(file_len)),
                    Err(error) => return Err(error),
                }
            }
            match self.reader.record_at(self.at) {
                Ok(Some((head, payload))) => {
                    let offset = self.image_at;
                    self.at = payload.end;
                    self.payload = payload;
                    self.image_at += head.size() + self.image_extra;
                    return Ok(Found::Record { offset, head });
                }
                Ok(None) => self.next_block(),
                Err(_) => return Ok(self.pass_by(file_len)),
            }
        }
    }

    fn next_block(&mut self) {
        self.block += 1;
        self.at = 0;
        self.loaded = false;
    }

    fn pass_by(&mut self, file_len: u64) -> Found {
        let offset = self.reader.directory.offset(self.block);
        let bytes = self.reader.directory.end(self.block, file_len).saturating_sub(offset);
        self.next_block();
        Found::Damaged { offset, bytes }
    }
}

fn is_text(payload: &[u8]) -> bool {
    payload.starts_with(b"{") && std::str::from_utf8(payload).is_ok()
}

/// Bytes that are not what was written, apart from a disk that cannot be read.
fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::Other)
}

/// The form that a segment's records have when its file is rewritten.
pub(super) fn rewritten_form(head: &Head, compressed: bool) -> Form {
    Form::Blocks { compressed, was_sealed: head.was_sealed() }
}
