//! How the segments are kept: what a start takes over from the run before, when a segment is sealed and the next begun,
//! and what retention deletes.
//!
//! Owns the directory and the file being written. It never looks into a batch beyond its length and never gives a
//! record up: whatever fails here is tried again by the [thread](super::thread). What is done to sealed segments
//! afterwards is [`upkeep`](super::upkeep)'s.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::envelope::{ENVELOPE_BYTES, seal_records};
use super::head::{Form, Head};
use super::index::{MemoryIndex, ModelTags, Scanned, SegmentFacts, scan_segment};
use super::keys::Cipher;
use super::query::{Index, Segment};
use super::queue::Pending;
use super::replay::Replay;
use super::segment::{Disk, SegmentFile, list_segments, segment_path};
use super::sidecar::{FileIndex, index_path, old_facts, remove_if_there, write_index};
use super::source::{Shape, named};
use super::thread::{Batch, Writer};
use super::upkeep::index_segment;
use super::{Clock, JournalConfig, Shared};
use crate::failpoint;

/// Offsets in an index are 32 bits wide; a batch over this still fits.
const MAX_SEGMENT_BYTES: u64 = 1 << 30;
/// Memory for encrypted batches that is kept between them.
const MAX_IDLE_BYTES: usize = 8 << 20;

/// The file being written. `len` is what is acknowledged; bytes past it are an attempt that failed.
pub(super) struct ActiveFile {
    file: Box<dyn SegmentFile>,
    pub(super) created_ms: u64,
    pub(super) len: u64,
    /// Bytes before the first record.
    head_bytes: u64,
    cipher: Option<Cipher>,
    has_failed_attempt: bool,
    /// The encrypted form of the batch that is being written.
    encrypted: Vec<u8>,
}

impl ActiveFile {
    /// A file to go on with after its first `len` bytes.
    fn new(file: Box<dyn SegmentFile>, head: &Head, cipher: Option<Cipher>, len: u64) -> Self {
        let (created_ms, head_bytes) = (head.created_ms, head.bytes());
        Self { file, created_ms, len, head_bytes, cipher, has_failed_attempt: false, encrypted: Vec::new() }
    }

    fn is_empty(&self) -> bool {
        self.len <= self.head_bytes
    }

    /// Bytes that each record takes here beyond its clear form.
    pub(super) fn extra_per_record(&self) -> u64 {
        if self.cipher.is_some() { ENVELOPE_BYTES } else { 0 }
    }

    /// Puts these clear records after the acknowledged ones, or leaves nothing of them.
    pub(super) fn append(&mut self, records: &[u8], sync: bool) -> io::Result<()> {
        self.cut_back()?;
        self.encrypted.clear();
        let bytes = match &self.cipher {
            Some(cipher) => {
                // Anew for every attempt, with a nonce of its own.
                seal_records(cipher, records, &mut self.encrypted)?;
                self.encrypted.as_slice()
            }
            None => records,
        };
        self.has_failed_attempt = true;
        let result = failpoint::io("journal.before_write").and_then(|()| self.file.write_all_at(bytes, self.len));
        let result = result.and_then(|()| sync_unless_off(&mut *self.file, sync));
        if let Err(error) = result {
            // After a failed sync the kernel may call the pages clean though the disk never got them. Cutting them
            // off and writing them anew makes the next sync mean something again.
            self.cut_back().ok();
            return Err(error);
        }
        self.has_failed_attempt = false;
        self.len += bytes.len() as u64;
        // A batch is 4 MiB, give or take a record; one large record must not hold its memory for ever.
        self.encrypted.shrink_to(MAX_IDLE_BYTES);
        Ok(())
    }

    pub(super) fn cut_back(&mut self) -> io::Result<()> {
        if self.has_failed_attempt {
            self.file.set_len(self.len)?;
            self.has_failed_attempt = false;
        }
        Ok(())
    }

    /// As [`ActiveFile::cut_back`], for records that are about to go elsewhere: should the power fail, they must not be here
    /// as well. A disk that refuses this too may show them twice; to drop them would lose them for certain.
    pub(super) fn hand_over(&mut self) -> io::Result<()> {
        self.cut_back()?;
        self.file.sync_data().ok();
        Ok(())
    }
}

fn sync_unless_off(file: &mut dyn SegmentFile, sync: bool) -> io::Result<()> {
    failpoint::io("journal.before_sync")?;
    if sync && !failpoint::is_on("journal.skip_sync") { file.sync_data() } else { Ok(()) }
}

impl Writer {
    pub(super) fn open(
        shared: Arc<Shared>,
        mut config: JournalConfig,
        clock: Clock,
        disk: Arc<dyn Disk>,
    ) -> io::Result<Self> {
        config.segment_bytes = config.segment_bytes.clamp(4096, MAX_SEGMENT_BYTES);
        let lock = Arc::new(lock_dir(&config.dir, &*disk)?);
        let mut writer = Self {
            shared,
            config,
            clock,
            disk,
            active: None,
            next_seq: 1,
            pending: Pending::default(),
            batch: Batch::default(),
            replay: Replay::default(),
            tags: ModelTags::default(),
            lock,
        };
        writer.recover()?;
        if writer.active.is_none() {
            writer.create_segment()?;
        }
        writer.retain();
        Ok(writer)
    }

    /// Takes over what an earlier run left.
    fn recover(&mut self) -> io::Result<()> {
        failpoint::hit("journal.before_recovery");
        remove_leftovers(&self.config.dir, &*self.disk)?;
        failpoint::hit("journal.after_leftovers");
        let mut segments = list_segments(&self.config.dir)?;
        let newest = segments.pop();
        for (first_seq, path) in segments {
            self.take_over(path, first_seq)?;
        }
        if let Some((first_seq, path)) = newest {
            self.open_newest(path, first_seq)?;
        }
        self.shared.count_segments();
        self.shared.count_waiting();
        Ok(())
    }

    /// What a file is, if this version and these keys can read it. A journal that cannot be read as a whole is not begun
    /// anew beside what is there: that needs an operator's word.
    fn shape_of(&self, path: &Path) -> io::Result<Shape> {
        let shape = Shape::read(path)?;
        if let Some(seal) = shape.head.as_ref().and_then(|head| head.seal.as_ref()) {
            self.config.keys.of_file(seal).map_err(|error| named(path, &error))?;
        }
        Ok(shape)
    }

    fn take_over(&mut self, path: PathBuf, first_seq: u64) -> io::Result<()> {
        let segment = self.open_sealed(path, first_seq)?;
        self.next_seq = self.next_seq.max(segment.facts.last_seq + 1);
        self.shared.catalog.write().sealed.push(Arc::new(segment));
        Ok(())
    }

    fn open_sealed(&self, path: PathBuf, first_seq: u64) -> io::Result<Segment> {
        let shape = self.shape_of(&path)?;
        if let Ok(index) = FileIndex::open(&path, first_seq, shape.image_len, &self.shared.budget) {
            return Ok(Segment::sealed(path, shape, index));
        }
        // Journals of earlier versions have sidecars that answer less: a start does not wait for new ones.
        if let Some(facts) = old_facts(&path, first_seq, shape.file_len) {
            return Ok(Segment::new(path, facts, shape, Index::Missing));
        }
        self.rebuild_index(path, first_seq)
    }

    fn rebuild_index(&self, path: PathBuf, first_seq: u64) -> io::Result<Segment> {
        let scanned = scan_segment(&path, first_seq, &self.config.keys)?;
        index_segment(&*self.disk, &self.shared, path, &scanned)
    }

    /// The newest segment may end in an unfinished batch. If it is sound otherwise, writing goes on in it; a damaged
    /// one is sealed as it is, so that nothing new is put at risk and the evidence stays.
    fn open_newest(&mut self, path: PathBuf, first_seq: u64) -> io::Result<()> {
        let file = File::open(&path)?;
        let file_len = file.metadata()?.len();
        self.next_seq = self.next_seq.max(first_seq);
        if Head::is_unfinished(&file, file_len)? {
            // Its creation was cut off: nothing can be in it.
            self.shared.counters.torn_bytes.fetch_add(file_len, Ordering::Relaxed);
            return remove_if_there(&*self.disk, &path);
        }
        let shape = self.shape_of(&path)?;
        if shape.head.is_some_and(|head| head.is_blocks()) {
            return self.take_over(path, first_seq);
        }
        let scanned = scan_segment(&path, first_seq, &self.config.keys)?;
        self.next_seq = self.next_seq.max(scanned.facts.last_seq + 1);
        self.shared.counters.damaged.fetch_add(scanned.damaged, Ordering::Relaxed);
        match shape.head {
            Some(head) if scanned.damaged == 0 && head.first_seq == first_seq => self.go_on_in(path, head, scanned),
            _ => {
                self.next_seq = self.next_seq.max(first_seq + 1); // its name is taken
                let segment = index_segment(&*self.disk, &self.shared, path, &scanned)?;
                self.shared.catalog.write().sealed.push(Arc::new(segment));
                Ok(())
            }
        }
    }

    /// Cuts the torn tail and goes on after it, or seals the segment when the next records get another key.
    fn go_on_in(&mut self, path: PathBuf, head: Head, mut scanned: Scanned) -> io::Result<()> {
        let mut file = self.disk.open(&path)?;
        failpoint::hit("journal.before_cut");
        if scanned.torn_bytes > 0 {
            file.set_len(scanned.facts.len)?;
            self.shared.counters.torn_bytes.fetch_add(scanned.torn_bytes, Ordering::Relaxed);
            scanned.torn_bytes = 0;
        }
        // A process that was killed may have left its last batch in the system's memory alone; from here on it can be read.
        file.sync_data()?;
        let has_this_key = head.key_id() == self.config.keys.current_id();
        if !has_this_key && scanned.index.records() > 0 {
            let segment = index_segment(&*self.disk, &self.shared, path, &scanned)?;
            self.shared.catalog.write().sealed.push(Arc::new(segment));
            return Ok(());
        }
        remove_if_there(&*self.disk, &index_path(&path))?; // of a sealing that a crash undid
        if !has_this_key {
            return remove_if_there(&*self.disk, &path);
        }
        let cipher = head.seal.as_ref().map(|seal| self.config.keys.of_file(seal)).transpose()?;
        let len = scanned.facts.len;
        self.active = Some(ActiveFile::new(file, &head, cipher, len));
        let shape = Shape { head: Some(head), file_len: len, image_len: Some(len) };
        let segment = Segment::new(path, scanned.facts, shape, Index::Memory(scanned.index));
        self.shared.catalog.write().active = Some(segment);
        Ok(())
    }

    /// A segment to write the batch into, with room for it.
    pub(super) fn make_room(&mut self) -> io::Result<()> {
        let (bytes, records) = (self.batch.bytes.len() as u64, self.batch.marks.len() as u64);
        let is_full = |active: &ActiveFile| {
            let wanted = bytes + records * active.extra_per_record();
            !active.is_empty() && active.len + wanted > self.config.segment_bytes
        };
        if self.active.as_ref().is_some_and(is_full) {
            self.seal()?;
        }
        if self.active.is_none() {
            self.create_segment()?;
        }
        Ok(())
    }

    /// Gives the active segment its sidecar. After a failure it is as active as before.
    fn seal(&mut self) -> io::Result<()> {
        if let Some(active) = &mut self.active {
            active.cut_back()?;
            active.file.sync_data()?;
        }
        let sealed = {
            let catalog = self.shared.catalog.read();
            let Some(Segment { path, facts, shape, index: Index::Memory(index), .. }) = &catalog.active else {
                return Ok(());
            };
            failpoint::hit("journal.before_seal");
            write_index(&*self.disk, path, index, *facts)?;
            let index = FileIndex::open(path, facts.first_seq, Some(facts.len), &self.shared.budget)?;
            failpoint::hit("journal.after_seal");
            Segment::sealed(path.clone(), Shape { file_len: facts.len, image_len: Some(facts.len), ..*shape }, index)
        };
        let mut catalog = self.shared.catalog.write();
        catalog.sealed.push(Arc::new(sealed));
        catalog.active = None;
        drop(catalog);
        self.active = None;
        self.shared.count_waiting();
        Ok(())
    }

    fn create_segment(&mut self) -> io::Result<()> {
        // A batch that waits for a retry has its sequences already.
        let first_seq = self.next_seq - self.batch.marks.len() as u64;
        let path = segment_path(&self.config.dir, first_seq);
        let (seal, cipher) = self.config.keys.for_new_file()?.unzip();
        let head = Head { first_seq, created_ms: (self.clock)(), form: Form::Records, seal };
        let file = self.create_file(&path, &head);
        let file = file.inspect_err(|_| {
            // Without its head the file is of no use; the next start removes it if this cannot.
            remove_if_there(&*self.disk, &path).ok();
        })?;
        let len = head.bytes();
        self.active = Some(ActiveFile::new(file, &head, cipher, len));
        let shape = Shape { head: Some(head), file_len: len, image_len: Some(len) };
        let index = Index::Memory(MemoryIndex::default());
        let segment = Segment::new(path, SegmentFacts::empty(first_seq, len), shape, index);
        self.shared.catalog.write().active = Some(segment);
        self.shared.count_segments();
        Ok(())
    }

    fn create_file(&self, path: &Path, head: &Head) -> io::Result<Box<dyn SegmentFile>> {
        let mut file = self.disk.create(path)?;
        failpoint::hit("journal.before_head");
        file.write_all_at(&head.encode(), 0)?;
        file.sync_data()?;
        failpoint::hit("journal.after_head");
        self.disk.sync_dir(&self.config.dir)?;
        Ok(file)
    }

    /// What is done between batches. Its failures are counted; records do not depend on it.
    pub(super) fn keep_house(&mut self) {
        if self.active_is_old() {
            let result = self.seal().and_then(|()| self.create_segment());
            self.count_if_failed(&result);
        }
        self.retain();
        self.shared.wake_upkeep();
    }

    fn active_is_old(&self) -> bool {
        let Some(active) = &self.active else {
            return false;
        };
        let age_ms = (self.clock)().saturating_sub(active.created_ms);
        !active.is_empty() && u128::from(age_ms) >= self.config.segment_age.as_millis()
    }

    /// Deletes the oldest sealed segments as far as the settings say. The newest file carries the sequence over a
    /// restart, so without an active one nothing is deleted.
    fn retain(&mut self) {
        while let Some(oldest) = self.expired() {
            // While a file is being replaced it is not deleted; the next round comes within a second.
            let Some(files) = self.shared.files.try_lock() else {
                return;
            };
            let result = self.delete(&oldest);
            drop(files);
            self.count_if_failed(&result);
            if result.is_err() {
                return;
            }
        }
    }

    fn expired(&self) -> Option<Arc<Segment>> {
        let catalog = self.shared.catalog.read();
        let active_bytes = catalog.active.as_ref()?.bytes();
        let oldest = catalog.sealed.first()?;
        let age_ms = u128::from((self.clock)().saturating_sub(oldest.facts.newest_ms));
        let too_old = self.config.retention.is_some_and(|limit| age_ms > limit.as_millis());
        let too_large = self.config.retention_bytes.is_some_and(|limit| {
            active_bytes + catalog.sealed.iter().map(|segment| segment.bytes()).sum::<u64>() > limit
        });
        (too_old || too_large).then(|| Arc::clone(oldest))
    }

    fn delete(&self, segment: &Segment) -> io::Result<()> {
        remove_if_there(&*self.disk, &segment.path)?;
        failpoint::hit("journal.half_deleted");
        remove_if_there(&*self.disk, &index_path(&segment.path))?;
        failpoint::hit("journal.after_delete");
        self.disk.sync_dir(&self.config.dir)?;
        self.shared.catalog.write().sealed.retain(|kept| kept.path != segment.path);
        self.shared.counters.segments_deleted.fetch_add(1, Ordering::Relaxed);
        self.shared.count_segments();
        self.shared.count_waiting();
        Ok(())
    }

    pub(super) fn count_error(&self) {
        self.shared.counters.write_errors.fetch_add(1, Ordering::Relaxed);
    }

    fn count_if_failed(&self, result: &io::Result<()>) {
        if result.is_err() {
            self.count_error();
        }
    }
}

/// Makes the directory and takes it for this process. The names in it are on disk then, also those that an earlier process
/// changed and died before it could sync them.
pub(super) fn lock_dir(dir: &Path, disk: &dyn Disk) -> io::Result<File> {
    fs::create_dir_all(dir)?;
    failpoint::hit("journal.after_create");
    let lock = File::options().create(true).truncate(false).write(true).open(dir.join("LOCK"))?;
    if let Err(error) = lock.try_lock() {
        return Err(match error {
            fs::TryLockError::WouldBlock => {
                io::Error::new(io::ErrorKind::WouldBlock, "another server writes this journal")
            }
            fs::TryLockError::Error(error) => error,
        });
    }
    disk.sync_dir(dir)?;
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        disk.sync_dir(parent)?;
    }
    Ok(lock)
}

/// Removes unfinished files, and sidecars whose segment retention deleted before a crash.
fn remove_leftovers(dir: &Path, disk: &dyn Disk) -> io::Result<()> {
    for item in fs::read_dir(dir)? {
        let path = item?.path();
        let is_leftover = match path.extension().and_then(|extension| extension.to_str()) {
            Some("tmp") => true,
            Some("idx") => !path.with_extension("seg").exists(),
            _ => false,
        };
        if is_leftover {
            remove_if_there(disk, &path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use serde_json::Value;

    use super::super::record::tests::NOON;
    use super::super::testing::*;
    use super::super::{Journal, Page};
    use super::*;

    #[test]
    fn the_sequence_goes_on_after_a_restart() {
        let bench = Bench::new();
        for round in 0..3 {
            let journal = bench.journal();
            emit_numbered(&journal, 1, round * 2..round * 2 + 2);
            journal.stop().unwrap();
            journal.stop().unwrap();
        }
        let page = bench.journal().page(1, 1, 10).unwrap();
        assert_eq!(ids(&page), [6, 5, 4, 3, 2, 1]);
        assert_eq!(contents(&page), ["5", "4", "3", "2", "1", "0"]);
        assert_eq!(bench.files("seg").len(), 1);
    }

    #[test]
    fn a_tail_torn_at_any_byte_is_cut_and_nothing_else() {
        let bench = Bench::new();
        let journal = bench.journal();
        emit_numbered(&journal, 1, 0..2);
        journal.flush().unwrap();
        let file = bench.files("seg").remove(0);
        let whole = fs::metadata(&file).unwrap().len() as usize;
        emit_numbered(&journal, 1, 2..3);
        journal.stop().unwrap();
        let bytes = fs::read(&file).unwrap();

        for len in whole..bytes.len() {
            fs::write(&file, &bytes[..len]).unwrap();
            let journal = bench.journal();
            assert_eq!(journal.counters().torn_bytes.load(Ordering::SeqCst) as usize, len - whole);
            assert_eq!(fs::metadata(&file).unwrap().len() as usize, whole);
            emit_numbered(&journal, 1, 7..8);
            journal.stop().unwrap();
            assert_eq!(contents(&journal.page(1, 1, 9).unwrap()), ["7", "1", "0"], "cut at {len}");
            assert_sound(&bench, 3);
        }
    }

    #[test]
    fn a_head_torn_at_any_byte_costs_nothing() {
        let bench = Bench::new();
        bench.journal().stop().unwrap();
        let file = bench.files("seg").remove(0);
        let bytes = fs::read(&file).unwrap();
        for len in 0..=bytes.len() {
            fs::write(&file, &bytes[..len]).unwrap();
            let journal = bench.journal();
            emit_numbered(&journal, 1, 0..1);
            journal.stop().unwrap();
            assert_sound(&bench, 1);
        }
    }

    #[test]
    fn a_damaged_byte_is_found_and_costs_one_record() {
        let bench = Bench::new();
        let journal = bench.journal();
        emit_numbered(&journal, 1, 0..3);
        journal.flush().unwrap();
        let file = bench.files("seg").remove(0);
        let mut bytes = fs::read(&file).unwrap();
        let second = (bytes.len() - 32) / 3 + 32 + 100;
        bytes[second] ^= 1;
        fs::write(&file, &bytes).unwrap();

        let page = journal.page(1, 1, 9).unwrap();
        assert_eq!((page.items.len(), page.total, page.unreadable), (3, 3, 1));
        assert!(page.items[1].starts_with(r#"{"error":"unreadable_record","segment":"#), "{}", page.items[1]);
        assert_eq!(journal.counters().read_errors.load(Ordering::SeqCst), 1);
        assert_eq!(bench.reader().verify().unwrap().problems.len(), 2, "the bytes and the sequence");

        // A restart serves the others, leaves the damaged segment alone and goes on in a new one.
        drop(journal);
        let journal = bench.journal();
        assert_eq!(journal.counters().damaged.load(Ordering::SeqCst), 1);
        emit_numbered(&journal, 1, 3..4);
        journal.flush().unwrap();
        assert_eq!(ids(&journal.page(1, 1, 9).unwrap()), [4, 3, 1]);
        assert_eq!(fs::read(&file).unwrap(), bytes);
    }

    #[test]
    fn a_segment_with_nothing_readable_keeps_its_name_and_the_server_goes_on() {
        let bench = Bench::new();
        bench.journal().stop().unwrap();
        fs::write(&bench.files("seg")[0], [0xAB; 500]).unwrap();
        let journal = bench.journal();
        emit_numbered(&journal, 1, 0..1);
        journal.flush().unwrap();
        assert_eq!(ids(&journal.page(1, 1, 9).unwrap()), [2]);
        assert_eq!(bench.files("seg").len(), 2);
    }

    #[test]
    fn a_missing_or_damaged_sidecar_is_built_anew() {
        let bench = Bench::new();
        let mut config = bench.config();
        config.segment_bytes = 4096;
        let journal = bench.start(config.clone());
        emit_numbered(&journal, 1, 0..40);
        journal.stop().unwrap();
        let files = bench.files("idx");
        let good: Vec<_> = files.iter().map(|file| fs::read(file).unwrap()).collect();
        fs::remove_file(&files[0]).unwrap();
        fs::write(&files[1], &good[1][..good[1].len() - 1]).unwrap();
        fs::write(&files[2], [&good[2][..good[2].len() - 1], &[0xEE]].concat()).unwrap();

        let journal = bench.start(config);
        assert_eq!(journal.counters().index_rebuilds.load(Ordering::SeqCst), 3);
        assert_eq!(contents(&journal.page(1, 1, 50).unwrap()).len(), 40);
        let read = |files: &[PathBuf]| -> Vec<_> { files.iter().map(|file| fs::read(file).unwrap()).collect() };
        assert_eq!(read(&files), good);

        // Damage while the server runs: the segment is read through for this page, and its sidecar mended at leisure.
        fs::write(&files[1], [&good[1][..good[1].len() - 1], &[0xEE]].concat()).unwrap();
        assert_eq!(contents(&journal.page(1, 1, 50).unwrap()).len(), 40);
        settle(&journal);
        assert_eq!(journal.counters().index_rebuilds.load(Ordering::SeqCst), 4);
        assert_eq!(read(&files), good);
    }

    #[test]
    fn a_rotation_that_fails_at_any_step_is_tried_again() {
        for (writes, syncs) in [(1, 0), (0, 1), (0, 2), (0, 3), (2, 0)] {
            let bench = Bench::new();
            let mut config = bench.config();
            config.segment_bytes = 4096;
            let journal = bench.start(config);
            emit_numbered(&journal, 1, 0..5);
            journal.flush().unwrap();
            *bench.faults.lock() = Faults { writes, syncs, written_before_failing: 10, ..Faults::default() };
            emit_numbered(&journal, 1, 5..30);
            while journal.flush().is_err() {}
            assert!(journal.counters().write_errors.load(Ordering::SeqCst) > 0);
            assert_eq!(journal.page(1, 1, 50).unwrap().total, 30);
            assert_sound(&bench, 30);
        }
    }

    #[test]
    fn a_segment_is_sealed_at_its_age_but_not_when_empty() {
        let bench = Bench::new();
        let journal = bench.journal();
        bench.now.fetch_add(25 * 3_600_000, Ordering::SeqCst);
        journal.flush().unwrap();
        assert_eq!(journal.counters().segments.load(Ordering::SeqCst), 1);
        emit_numbered(&journal, 1, 0..1);
        journal.flush().unwrap();
        assert_eq!(journal.counters().segments.load(Ordering::SeqCst), 2);
        assert_eq!(contents(&journal.page(1, 1, 9).unwrap()), ["0"]);
        assert_sound(&bench, 1);
    }

    #[test]
    fn retention_by_age_deletes_whole_segments_and_keeps_the_sequence() {
        let bench = Bench::new();
        let mut config = bench.config();
        config.segment_age = HOUR;
        config.retention = Some(24 * HOUR);
        let journal = bench.start(config.clone());
        emit_numbered(&journal, 1, 0..3);
        journal.flush().unwrap();
        bench.now.fetch_add(26 * 3_600_000, Ordering::SeqCst);
        journal.flush().unwrap();
        assert_eq!(journal.page(1, 1, 9).unwrap(), Page::default());
        assert_eq!((bench.files("seg").len(), bench.files("idx").len()), (1, 0));
        assert_eq!(journal.counters().segments_deleted.load(Ordering::SeqCst), 1);
        journal.stop().unwrap();

        let journal = bench.start(config);
        emit_numbered(&journal, 1, 3..4);
        journal.flush().unwrap();
        assert_eq!(journal.counters().written.load(Ordering::SeqCst), 1);
        let mut all = Vec::new();
        bench
            .reader()
            .for_each(|json| {
                all.push(serde_json::from_slice::<Value>(json).unwrap()["id"].clone());
                Ok(())
            })
            .unwrap();
        assert_eq!(all, [4]);
    }

    #[test]
    fn retention_by_size_deletes_the_oldest() {
        let bench = Bench::new();
        let mut config = bench.config();
        config.segment_bytes = 4096;
        config.retention_bytes = Some(20_000);
        let journal = bench.start(config);
        emit_numbered(&journal, 1, 0..200);
        journal.flush().unwrap();
        let bytes: u64 =
            ["seg", "idx"].iter().flat_map(|e| bench.files(e)).map(|file| fs::metadata(file).unwrap().len()).sum();
        assert!((10_000..=20_000).contains(&bytes), "{bytes}");
        let page = journal.page(1, 1, 200).unwrap();
        assert_eq!(page.items.len() as u64, page.total);
        assert_eq!(contents(&page)[0], "199");
        assert_eq!(bench.reader().verify().unwrap().problems, Vec::<String>::new());
    }

    #[test]
    fn one_server_at_a_time() {
        let bench = Bench::new();
        let journal = bench.journal();
        let second = Journal::start(bench.config(), Arc::new(|| NOON));
        assert_eq!(second.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(journal);
        Journal::start(bench.config(), Arc::new(|| NOON)).unwrap();
    }
}
