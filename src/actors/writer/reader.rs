//! Reading the journal's files without writing them: pages, every record in order, and the check of all.
//!
//! Owns no file and writes none, so it works beside a running server as well as without one.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::index::{SegmentFacts, scan_segment};
use super::keys::{JournalKeys, is_missing_key};
use super::query::{Filter, Index, Page, PageQuery, Segment};
use super::segment::{Found, list_segments};
use super::sidecar::{Budget, FileIndex};
use super::source::{Shape, Walk};
use super::verify::{VerifyReport, verify};

/// The journal as its files stood when it was opened. Takes no lock; the server may run or not.
#[derive(Debug)]
pub struct JournalReader {
    dir: PathBuf,
    keys: JournalKeys,
    segments: Vec<Arc<Segment>>,
}

impl JournalReader {
    /// Opens the journal in `dir` (`<data_dir>/journal`), as far as it is not encrypted.
    ///
    /// # Errors
    /// As [`JournalReader::open_with`].
    pub fn open(dir: impl Into<PathBuf>) -> io::Result<Self> {
        Self::open_with(dir, JournalKeys::default())
    }

    /// Opens the journal in `dir` (`<data_dir>/journal`). Segments without a sound sidecar, as the newest always is, are
    /// read through once.
    ///
    /// # Errors
    /// The directory or a file cannot be read, or a file is of a later version.
    pub fn open_with(dir: impl Into<PathBuf>, keys: JournalKeys) -> io::Result<Self> {
        let dir = dir.into();
        let budget = Arc::default();
        let mut segments = Vec::new();
        for (first_seq, path) in list_segments(&dir)? {
            match open_segment(path, first_seq, &keys, &budget) {
                Ok(segment) => segments.push(Arc::new(segment)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {} // deleted by retention meanwhile
                Err(error) => return Err(error),
            }
        }
        Ok(Self { dir, keys, segments })
    }

    /// One user's conversations, newest first. `page` counts from 1; `page_size` is clamped to 1..=200.
    ///
    /// # Errors
    /// As [`JournalReader::search`].
    pub fn page(&self, user_id: u64, page: u64, page_size: usize) -> io::Result<Page> {
        self.search(&Filter::user(user_id), page, page_size)
    }

    /// The conversations that `filter` lets through, newest first. `page` counts from 1; `page_size` is clamped to
    /// 1..=200.
    ///
    /// # Errors
    /// A file cannot be read, or is encrypted under a key that was not given; the text names it.
    pub fn search(&self, filter: &Filter, page: u64, page_size: usize) -> io::Result<Page> {
        let mut query = PageQuery::new(filter, page, page_size, &self.keys);
        for segment in self.segments.iter().rev() {
            query.visit(segment)?;
        }
        query.read()
    }

    /// Shows every whole record's JSON to `visit`, oldest first, reading the files as they are now.
    ///
    /// # Errors
    /// What `visit` returns; a file that cannot be read, or is encrypted under a key that was not given.
    pub fn for_each(&self, mut visit: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        for (first_seq, path) in list_segments(&self.dir)? {
            let mut walk = match Walk::open(&path, first_seq, &self.keys) {
                Ok(walk) => walk,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue, // deleted by retention meanwhile
                Err(error) => return Err(error),
            };
            loop {
                match walk.step()? {
                    Found::Record { .. } => visit(walk.payload())?,
                    Found::Damaged { .. } | Found::Torn { .. } => {}
                    Found::End => break,
                }
            }
        }
        Ok(())
    }

    /// Checks every record, the order of sequences, and every sidecar against its segment, reading the files as they are
    /// now.
    ///
    /// # Errors
    /// The directory cannot be read. What is wrong with a file is in the report.
    pub fn verify(&self) -> io::Result<VerifyReport> {
        verify(&self.dir, &self.keys)
    }
}

fn open_segment(path: PathBuf, first_seq: u64, keys: &JournalKeys, budget: &Arc<Budget>) -> io::Result<Segment> {
    let shape = Shape::read(&path)?;
    if let Ok(index) = FileIndex::open(&path, first_seq, shape.image_len, budget) {
        return Ok(Segment::sealed(path, shape, index));
    }
    match scan_segment(&path, first_seq, keys) {
        Ok(scanned) => Ok(Segment::new(path, scanned.facts, shape, Index::Memory(scanned.index))),
        // Said when somebody asks for what is in it.
        Err(error) if is_missing_key(&error) => {
            let facts = SegmentFacts::empty(first_seq, shape.file_len);
            Ok(Segment::new(path, facts, shape, Index::Missing))
        }
        Err(error) => Err(error),
    }
}
