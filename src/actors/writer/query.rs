//! Questions to the journal: which records are asked for, and the pages they are shown in.
//!
//! Owns what is known of each segment while it is read ([`Segment`]) and the collecting of a page over all of them. It
//! writes no file. Every record is checked each time it is read; one that fails becomes an entry that says so, and is
//! counted.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::index::{Answer, MemoryIndex, Place, SegmentFacts, Wanted, model_tag, scan_segment, seconds};
use super::keys::JournalKeys;
use super::sidecar::FileIndex;
use super::source::{Shape, Source};

/// Most records on one page.
pub const MAX_PAGE_SIZE: usize = 200;

/// Most bytes of records on one page; what is past it is replaced by an entry that says so.
pub const MAX_PAGE_BYTES: usize = 64 << 20;

/// Which records are asked for. What is left out does not narrow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Whose conversations.
    pub user_id: Option<u64>,
    /// The AI model, exactly as the record shows it.
    pub model: Option<String>,
    /// Not before this, in Unix milliseconds. Times are compared as records show them, in whole seconds.
    pub from_ms: Option<u64>,
    /// Before this, in Unix milliseconds.
    pub to_ms: Option<u64>,
}

impl Filter {
    /// All of one user's.
    #[must_use]
    pub fn user(user_id: u64) -> Self {
        Self { user_id: Some(user_id), ..Self::default() }
    }

    fn wanted(&self) -> Wanted {
        Wanted {
            user_id: self.user_id,
            model: self.model.as_deref().map(model_tag),
            // A second is wanted when its beginning is.
            from: self.from_ms.map(|ms| ms.div_ceil(1000)),
            to: self.to_ms.map(|ms| ms.div_ceil(1000)),
        }
    }
}

/// One page of conversations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Records as JSON text, newest first. An unreadable one is `{"error":"unreadable_record",…}`, one past
    /// [`MAX_PAGE_BYTES`] is `{"error":"page_too_large",…}`.
    pub items: Vec<String>,
    /// Records in the whole journal that the filter lets through.
    pub total: u64,
    /// How many of `items` could not be read.
    pub unreadable: u64,
}

/// One segment and the index that answers for it.
#[derive(Debug)]
pub(super) struct Segment {
    pub path: PathBuf,
    pub facts: SegmentFacts,
    pub shape: Shape,
    pub index: Index,
    /// Set when a read found the sidecar unusable; it is then built anew.
    pub index_damaged: AtomicBool,
    /// Set when the file cannot be rewritten, for being damaged: it stays as it is.
    pub keep_as_is: AtomicBool,
}

#[derive(Debug)]
pub(super) enum Index {
    Memory(MemoryIndex),
    File(FileIndex),
    /// None yet: the file is read through for every question.
    Missing,
}

impl Segment {
    pub(super) fn new(path: PathBuf, facts: SegmentFacts, shape: Shape, index: Index) -> Self {
        let (index_damaged, keep_as_is) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { path, facts, shape, index, index_damaged, keep_as_is }
    }

    /// A sealed segment by its sidecar.
    pub(super) fn sealed(path: PathBuf, shape: Shape, index: FileIndex) -> Self {
        Self::new(path, index.facts(), shape, Index::File(index))
    }

    /// Bytes on disk, the sidecar's included.
    pub(super) fn bytes(&self) -> u64 {
        match &self.index {
            Index::Memory(_) => self.facts.len,
            Index::File(index) => self.shape.file_len + index.bytes(),
            Index::Missing => self.shape.file_len,
        }
    }

    pub(super) fn needs_index(&self) -> bool {
        matches!(self.index, Index::Missing) || self.index_damaged.load(Ordering::Relaxed)
    }

    fn select(&self, wanted: &Wanted, skip: u64, take: usize, keys: &JournalKeys) -> io::Result<Answer> {
        match &self.index {
            Index::Memory(index) => return Ok(index.select(wanted, wanted.overlap(&self.facts), skip, take)),
            Index::File(index) => {
                if let Ok(answer) = index.select(wanted, wanted.overlap(&self.facts), skip, take) {
                    return Ok(answer);
                }
                if self.path.exists() {
                    self.index_damaged.store(true, Ordering::Relaxed);
                }
            }
            Index::Missing => {}
        }
        match scan_segment(&self.path, self.facts.first_seq, keys) {
            Ok(scanned) => Ok(scanned.index.select(wanted, wanted.overlap(&scanned.facts), skip, take)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Answer::default()), // retention was faster
            Err(error) => Err(error),
        }
    }
}

/// Collects one page over segments that are shown newest first.
pub(super) struct PageQuery<'a> {
    wanted: Wanted,
    keys: &'a JournalKeys,
    skip: u64,
    left: usize,
    total: u64,
    picks: Vec<(PathBuf, Vec<Place>)>,
}

impl<'a> PageQuery<'a> {
    /// `page` counts from 1 (0 is taken as 1); `page_size` is clamped to 1..=[`MAX_PAGE_SIZE`].
    pub(super) fn new(filter: &Filter, page: u64, page_size: usize, keys: &'a JournalKeys) -> Self {
        let size = page_size.clamp(1, MAX_PAGE_SIZE);
        let skip = page.saturating_sub(1).saturating_mul(size as u64);
        Self { wanted: filter.wanted(), keys, skip, left: size, total: 0, picks: Vec::new() }
    }

    /// Takes what the page needs of one segment. Touches its index only.
    pub(super) fn visit(&mut self, segment: &Segment) -> io::Result<()> {
        let answer = segment.select(&self.wanted, self.skip, self.left, self.keys)?;
        self.total += answer.count;
        self.skip = self.skip.saturating_sub(answer.count);
        self.left -= answer.places.len().min(self.left);
        if !answer.places.is_empty() {
            self.picks.push((segment.path.clone(), answer.places));
        }
        Ok(())
    }

    /// Reads the records chosen.
    pub(super) fn read(self) -> io::Result<Page> {
        let mut page = Page { total: self.total, ..Page::default() };
        let mut room = MAX_PAGE_BYTES;
        for (path, places) in &self.picks {
            let mut source = match Source::open(path, self.keys) {
                Ok(source) => Some(source),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue, // retention was faster
                Err(error) if error.kind() == io::ErrorKind::InvalidData => None,
                Err(error) => return Err(error),
            };
            for place in places {
                let item = read_item(source.as_mut(), *place, self.wanted.user_id);
                page.unreadable += u64::from(item.is_none());
                page.items.push(fit(item.unwrap_or_else(|| unreadable(path, *place)), &mut room));
            }
        }
        Ok(page)
    }
}

/// The record at a place, if it is one and the one that the index means.
fn read_item(source: Option<&mut Source>, place: Place, user_id: Option<u64>) -> Option<String> {
    let (head, payload) = source?.read(place.number, place.offset).ok()?;
    let is_meant = user_id.is_none_or(|user| head.user_id == user) && seconds(head.timestamp_ms) == place.seconds;
    if is_meant { String::from_utf8(payload).ok() } else { None }
}

fn unreadable(path: &Path, place: Place) -> String {
    let segment = file_name(path);
    format!(
        r#"{{"error":"unreadable_record","segment":"{segment}","record":{},"offset":{}}}"#,
        place.number, place.offset
    )
}

/// Large records must not add up to more memory than a page may have.
fn fit(item: String, room: &mut usize) -> String {
    match room.checked_sub(item.len()) {
        Some(left) => {
            *room = left;
            item
        }
        None => format!(r#"{{"error":"page_too_large","bytes":{}}}"#, item.len()),
    }
}

pub(super) fn file_name(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use proptest::prelude::*;

    use super::super::record::tests::{NOON, entry};
    use super::super::testing::*;
    use super::super::{ConversationEntry, JournalConfig};
    use super::*;

    /// What is written: user, model, milliseconds after noon.
    type Said = (u64, usize, u64);

    const MODELS: [&str; 3] = ["gpt-4o", "claude", "o3"];

    fn said() -> impl Strategy<Value = Vec<Said>> {
        proptest::collection::vec((0..4_u64, 0..3_usize, 0..20_000_u64), 1..80)
    }

    fn filter() -> impl Strategy<Value = Filter> {
        let model = proptest::option::of((0..4_usize).prop_map(|m| MODELS.get(m).unwrap_or(&"none").to_string()));
        let time = || proptest::option::of((0..22_000_u64).prop_map(|ms| NOON + ms));
        (proptest::option::of(0..5_u64), model, time(), time()).prop_map(|(user_id, model, from_ms, to_ms)| Filter {
            user_id,
            model,
            from_ms,
            to_ms,
        })
    }

    fn lets_through(filter: &Filter, (user, model, after): Said) -> bool {
        let shown = (NOON + after) / 1000 * 1000;
        filter.user_id.is_none_or(|wanted| wanted == user)
            && filter.model.as_deref().is_none_or(|wanted| wanted == MODELS[model])
            && filter.from_ms.is_none_or(|from| shown >= from)
            && filter.to_ms.is_none_or(|to| shown < to)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Whatever is asked, in whatever form the segments are: the answer is that of looking at every record.
        #[test]
        fn every_filter_and_page_answers_as_a_look_at_everything_does(
            all in said(),
            filters in proptest::collection::vec((filter(), 1..4_u64, 1..12_usize), 12),
            way in 0..4_u8,
        ) {
            let bench = Bench::new();
            let key = keys((way & 1 == 1).then_some(1), &[]);
            let compression = (way & 2 == 2).then_some(1);
            let settings =
                JournalConfig { segment_bytes: 12 << 10, compression, keys: key.clone(), ..bench.config() };
            let journal = bench.start(settings);
            for (number, (user, model, after)) in all.iter().enumerate() {
                let text = number.to_string();
                journal.emit(&ConversationEntry {
                    model: MODELS[*model],
                    timestamp_ms: NOON + after,
                    ..entry(*user, &text)
                });
                journal.flush().unwrap(); // one by one: a batch is sorted by time
            }
            let check = |search: &dyn Fn(&Filter, u64, usize) -> io::Result<Page>| {
                for (filter, page, size) in &filters {
                    let wanted: Vec<String> = (0..all.len())
                        .rev()
                        .filter(|number| lets_through(filter, all[*number]))
                        .map(|number| number.to_string())
                        .collect();
                    let found = search(filter, *page, *size).unwrap();
                    let skip = (*page as usize - 1) * size;
                    let shown: Vec<String> = wanted.iter().skip(skip).take(*size).cloned().collect();
                    assert_eq!((contents(&found), found.total), (shown, wanted.len() as u64), "{filter:?}");
                }
            };
            check(&|filter, page, size| journal.search(filter, page, size));
            settle(&journal);
            check(&|filter, page, size| journal.search(filter, page, size));
            check(&|filter, page, size| bench.reader_with(&key).search(filter, page, size));
        }
    }
}
