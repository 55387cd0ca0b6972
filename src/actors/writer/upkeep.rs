//! What is done to sealed segments at leisure: indexes are built anew, files are compressed and encrypted.
//!
//! Owns a thread of its own, `tollgate-journal-seal`, so that no batch and no flush ever waits for it. It works in pieces
//! with pauses in between and takes at most about half a processor. It never touches the segment being written, and never a
//! record: a file is replaced by another form of itself, or stays.
//!
//! A file is rewritten under a temporary name, synced, read back and compared record by record, and then renamed over the
//! old one, in one step for whoever looks and for whatever crash: there is always one file of that name and it is whole.
//! What a crash leaves under the temporary name is deleted by the next start.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use super::Shared;
use super::blocks::BlockWriter;
use super::head::Head;
use super::index::scan_segment;
use super::query::{Index, Segment};
use super::segment::{Disk, Found, RecordHead, SegmentFile, invalid};
use super::sidecar::{FileIndex, remove_if_there, write_index};
use super::source::{Shape, Walk, rewritten_form};
use crate::failpoint;

/// After this much of records a pause is made; compressing so much takes some 5 ms.
const PIECE_BYTES: u64 = 1 << 20;
/// Nothing hurries: a burst of calls should not pay for the compression of what it says while it lasts. So some 6 MiB a second
/// are rewritten, for a thirtieth of a core.
const PAUSE: Duration = Duration::from_millis(150);
/// When more than [`BACKLOG`] segments wait, the disk is what runs short.
const SHORT_PAUSE: Duration = Duration::from_millis(5);
const BACKLOG: u64 = 16;
/// A long sync would hold up those of the journal and the ledger; several short ones do not.
const SYNC_BYTES: u64 = 4 << 20;
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_LONGEST: Duration = Duration::from_secs(5);

/// How sealed segments are to be.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wants {
    /// zstd's level; none leaves what is there uncompressed.
    pub level: Option<i32>,
    /// The key that all are to be encrypted with; none leaves what is encrypted as it is.
    pub key_id: Option<super::KeyId>,
}

impl Wants {
    /// Whether this sealed segment is to be rewritten.
    pub(super) fn rewrite(&self, segment: &Segment) -> bool {
        let Some(head) = segment.shape.head.filter(|_| !segment.keep_as_is.load(Ordering::Relaxed)) else {
            return false;
        };
        let is_compressed = matches!(head.form, super::head::Form::Blocks { compressed: true, .. });
        (self.level.is_some() && !is_compressed) || (self.key_id.is_some() && head.key_id() != self.key_id)
    }

    fn work(&self, segment: &Segment) -> bool {
        segment.needs_index() || self.rewrite(segment)
    }
}

/// How many segments wait for something to be done to them.
pub(super) fn waiting(shared: &Shared) -> u64 {
    let catalog = shared.catalog.read();
    catalog.sealed.iter().filter(|segment| shared.wants.work(segment)).count() as u64
}

/// The thread's own part.
pub(super) struct Upkeep {
    pub(super) shared: Arc<Shared>,
    pub(super) disk: Arc<dyn Disk>,
    /// Held, not read: no other server may take the directory while this one still works in it.
    pub(super) _lock: Arc<File>,
}

/// How the rewriting of one file ended, when nothing failed.
enum Ended {
    Rewritten,
    /// It is damaged: the file stays as it is.
    KeptAsItIs,
    /// The journal stops, or the segment is not there any more.
    GivenUp,
}

impl Upkeep {
    pub(super) fn run(self) {
        let mut backoff = BACKOFF_FIRST;
        while !self.is_stopping() {
            let result = self.step();
            self.shared.count_waiting();
            match result {
                Ok(true) => backoff = BACKOFF_FIRST,
                Ok(false) => self.rest(),
                Err(error) => {
                    tracing::warn!(%error, "a journal segment could not be rewritten or indexed; trying again");
                    self.shared.counters.write_errors.fetch_add(1, Ordering::Relaxed);
                    thread::park_timeout(backoff);
                    backoff = (backoff * 2).min(BACKOFF_LONGEST);
                }
            }
        }
    }

    /// Until the journal's thread says that there is work.
    fn rest(&self) {
        self.shared.upkeep_rests.store(true, Ordering::SeqCst);
        while waiting(&self.shared) == 0 && !self.is_stopping() {
            thread::park();
        }
        self.shared.upkeep_rests.store(false, Ordering::SeqCst);
    }

    fn is_stopping(&self) -> bool {
        self.shared.stopping.load(Ordering::SeqCst)
    }

    /// Does one thing. False when there was none to do.
    fn step(&self) -> io::Result<bool> {
        let sealed = self.shared.catalog.read().sealed.clone();
        // Without its index a segment is read through for every page: those first, and the newest of them.
        if let Some(segment) = sealed.iter().rev().find(|segment| segment.needs_index()) {
            self.rebuild_index(segment)?;
            return Ok(true);
        }
        let Some(segment) = sealed.iter().find(|segment| self.shared.wants.rewrite(segment)) else {
            return Ok(false);
        };
        match self.rewrite(segment)? {
            Ended::Rewritten | Ended::GivenUp => {}
            Ended::KeptAsItIs => segment.keep_as_is.store(true, Ordering::Relaxed),
        }
        Ok(true)
    }

    fn rebuild_index(&self, segment: &Arc<Segment>) -> io::Result<()> {
        let scanned = match scan_segment(&segment.path, segment.facts.first_seq, &self.shared.keys) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.shared.forget_sealed(segment); // retention was faster, or somebody deleted the file by hand
                return Ok(());
            }
            scanned => scanned?,
        };
        let _files = self.shared.files.lock();
        if !self.shared.is_in_catalog(segment) {
            return Ok(());
        }
        let made = index_segment(&*self.disk, &self.shared, segment.path.clone(), &scanned)?;
        made.keep_as_is.store(segment.keep_as_is.load(Ordering::Relaxed), Ordering::Relaxed);
        self.shared.replace_sealed(segment, made);
        Ok(())
    }

    fn rewrite(&self, old: &Arc<Segment>) -> io::Result<Ended> {
        let unfinished = old.path.with_extension("seg.tmp");
        let ended = self.rewrite_by(old, &unfinished);
        if !matches!(ended, Ok(Ended::Rewritten)) {
            remove_if_there(&*self.disk, &unfinished).ok(); // or the next start does it
        }
        match ended {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !old.path.exists() => {
                self.shared.forget_sealed(old);
                Ok(Ended::GivenUp)
            }
            ended => ended,
        }
    }

    fn rewrite_by(&self, old: &Arc<Segment>, unfinished: &Path) -> io::Result<Ended> {
        remove_if_there(&*self.disk, unfinished)?;
        let mut walk = Walk::open(&old.path, old.facts.first_seq, &self.shared.keys)?;
        let Some(old_head) = walk.head().copied().filter(|_| walk.damage().is_none()) else {
            return Ok(Ended::KeptAsItIs);
        };
        let mut file = self.disk.create(unfinished)?;
        let Some(copied) = self.copy(&mut walk, &old_head, &mut *file)? else {
            return Ok(if self.is_stopping() { Ended::GivenUp } else { Ended::KeptAsItIs });
        };
        drop(file);
        if self.digest_of(unfinished, old.facts.first_seq)? != Some(copied) {
            return Err(invalid("what was written does not read back as what it was made from"));
        }

        let _files = self.shared.files.lock();
        if !self.shared.is_in_catalog(old) {
            return Ok(Ended::GivenUp);
        }
        let before = Shape::read(&old.path)?.file_len;
        failpoint::hit("journal.before_rewrite_rename");
        self.disk.rename(unfinished, &old.path)?;
        failpoint::hit("journal.after_rewrite_rename");
        let synced = old.path.parent().map_or(Ok(()), |dir| self.disk.sync_dir(dir));
        let shape = Shape::read(&old.path)?;
        let index = FileIndex::open(&old.path, old.facts.first_seq, shape.image_len, &self.shared.budget);
        let new = match index {
            Ok(index) => Segment::sealed(old.path.clone(), shape, index),
            Err(_) => Segment::new(old.path.clone(), old.facts, shape, Index::Missing),
        };
        self.shared.replace_sealed(old, new);
        let counters = &self.shared.counters;
        counters.rewritten.fetch_add(1, Ordering::Relaxed);
        counters.rewritten_from_bytes.fetch_add(before, Ordering::Relaxed);
        counters.rewritten_to_bytes.fetch_add(shape.file_len, Ordering::Relaxed);
        // Until the directory is synced a crash may bring the old file back, which is as good.
        synced.map(|()| Ended::Rewritten)
    }

    /// Writes the records of `walk` in blocks. None when they are not whole, or the journal stops.
    fn copy(&self, walk: &mut Walk, old: &Head, file: &mut dyn SegmentFile) -> io::Result<Option<Digest>> {
        // What was encrypted before stays encrypted, also when no key is set for new segments.
        let keys = &self.shared.keys;
        let (seal, cipher) = match (keys.for_new_file()?, &old.seal) {
            (Some((seal, cipher)), _) => (Some(seal), Some(cipher)),
            (None, None) => (None, None),
            (None, Some(seal)) => {
                let (seal, cipher) = keys.again_under(seal.key_id)?;
                (Some(seal), Some(cipher))
            }
        };
        let level = self.shared.wants.level;
        let head = Head { form: rewritten_form(old, level.is_some()), seal, ..*old };
        let mut writer = BlockWriter::new(file, &head, level, cipher)?;
        let mut digest = Digest::default();
        let (mut piece, mut synced) = (0, 0);
        loop {
            match walk.step()? {
                Found::Record { head, .. } => {
                    digest.add(head, walk.payload());
                    match writer.push(head, walk.payload()) {
                        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(None),
                        wrote => wrote?,
                    };
                    piece += head.size();
                }
                Found::Damaged { .. } | Found::Torn { .. } => return Ok(None),
                Found::End => break,
            }
            if piece >= PIECE_BYTES {
                piece = 0;
                if writer.written() - synced >= SYNC_BYTES {
                    synced = writer.written();
                    writer.sync()?;
                }
                thread::park_timeout(if waiting(&self.shared) > BACKLOG { SHORT_PAUSE } else { PAUSE });
                if self.is_stopping() {
                    return Ok(None);
                }
            }
        }
        writer.finish(walk.image_end())?;
        Ok(Some(digest))
    }

    /// What a file in blocks holds; none when it is not whole.
    fn digest_of(&self, path: &Path, first_seq: u64) -> io::Result<Option<Digest>> {
        let mut walk = Walk::open(path, first_seq, &self.shared.keys)?;
        let mut digest = Digest::default();
        if walk.damage().is_some() {
            return Ok(None);
        }
        loop {
            match walk.step()? {
                Found::Record { head, .. } => digest.add(head, walk.payload()),
                Found::Damaged { .. } | Found::Torn { .. } => return Ok(None),
                Found::End => return Ok(Some(digest)),
            }
        }
    }
}

/// Tells whether two files hold the same records.
#[derive(Debug, Default, PartialEq, Eq)]
struct Digest {
    records: u64,
    crc: u32,
}

impl Digest {
    fn add(&mut self, head: RecordHead, payload: &[u8]) {
        let mut crc = crc32fast::Hasher::new_with_initial(self.crc);
        [head.seq, head.user_id, head.timestamp_ms, u64::from(head.len)]
            .iter()
            .for_each(|number| crc.update(&number.to_le_bytes()));
        crc.update(payload);
        self.crc = crc.finalize();
        self.records += 1;
    }
}

/// Writes the sidecar of a sealed segment that was read through.
pub(super) fn index_segment(
    disk: &dyn Disk,
    shared: &Shared,
    path: PathBuf,
    scanned: &super::index::Scanned,
) -> io::Result<Segment> {
    let facts = scanned.sealed_facts();
    write_index(disk, &path, &scanned.index, facts)?;
    shared.counters.index_rebuilds.fetch_add(1, Ordering::Relaxed);
    let shape = Shape::read(&path)?;
    let index = FileIndex::open(&path, facts.first_seq, Some(facts.len), &shared.budget)?;
    Ok(Segment::sealed(path, shape, index))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::fs;

    use super::super::keys::JournalKeys;
    use super::super::record::tests::{NOON, entry};
    use super::super::testing::*;
    use super::super::{ConversationEntry, Filter, Journal, JournalConfig};
    use super::*;

    const RECORDS: u32 = 200;

    fn config(bench: &Bench, level: Option<i32>, keys: JournalKeys) -> JournalConfig {
        JournalConfig { segment_bytes: 16 << 10, compression: level, keys, ..bench.config() }
    }

    fn fill(journal: &Journal, numbers: std::ops::Range<u32>) {
        for number in numbers {
            let models = ["gpt-4o", "claude", "o3"];
            let text = number.to_string();
            journal.emit(&ConversationEntry {
                model: models[number as usize % 3],
                timestamp_ms: NOON + u64::from(number) * 1000,
                ..entry(u64::from(number % 7), &text)
            });
            if number % 10 == 9 {
                journal.flush().unwrap();
            }
        }
        journal.flush().unwrap();
    }

    /// All four ways in which segments are kept.
    fn ways() -> Vec<(Option<i32>, JournalKeys)> {
        let levels = [None, Some(3)];
        levels.into_iter().flat_map(|level| [None, Some(1)].map(|key| (level, keys(key, &[])))).collect()
    }

    #[test]
    fn sealed_segments_are_rewritten_and_read_as_before() {
        for (level, keys) in ways() {
            let bench = Bench::new();
            let journal = bench.start(config(&bench, level, keys.clone()));
            fill(&journal, 0..RECORDS);
            settle(&journal);
            let all = everything(|filter, page, size| journal.search(filter, page, size));
            assert_eq!(all.len() as u32, RECORDS);
            let search = Filter { user_id: Some(3), model: Some("o3".to_owned()), ..Filter::default() };
            let some = journal.search(&search, 1, 5).unwrap();
            let expected: Vec<String> =
                (0..RECORDS).rev().filter(|n| n % 7 == 3 && n % 3 == 2).take(5).map(|n| n.to_string()).collect();
            assert_eq!(
                (contents(&some), some.total),
                (expected, (0..RECORDS).filter(|n| n % 7 == 3 && n % 3 == 2).count() as u64)
            );
            assert_sound_with(&bench, &keys, u64::from(RECORDS));

            let counters = journal.counters();
            let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::SeqCst);
            let sealed = count(&counters.segments) - 1;
            assert_eq!(count(&counters.rewritten), if level.is_some() { sealed } else { 0 });
            if level.is_some() {
                assert!(count(&counters.rewritten_to_bytes) * 3 < count(&counters.rewritten_from_bytes));
            }
            let report = bench.reader_with(&keys).verify().unwrap();
            assert_eq!(report.segments_in_blocks, if level.is_some() { sealed } else { 0 });
            assert_eq!(report.keys[0].id, keys.current_id());
            assert_eq!(everything(|f, p, s| bench.reader_with(&keys).search(f, p, s)), all);
            journal.stop().unwrap();

            let again = bench.start(config(&bench, level, keys.clone()));
            assert_eq!(again.counters().index_rebuilds.load(Ordering::SeqCst), 0);
            assert_eq!(everything(|f, p, s| again.search(f, p, s)), all);
            fill(&again, RECORDS..RECORDS + 1);
            assert_sound_with(&bench, &keys, u64::from(RECORDS) + 1);
            if keys.current_id().is_some() {
                for file in bench.files("seg").iter().chain(&bench.files("idx")) {
                    let bytes = fs::read(file).unwrap();
                    assert!(!bytes.windows(7).any(|window| window == b"johndoe" || window == b"\"gpt-4o"));
                }
            }
        }
    }

    /// Stops the disk at every single thing that is done to it, in every way of keeping segments; starts again on a
    /// sound disk and compares.
    #[test]
    fn a_crash_at_any_step_loses_and_doubles_nothing() {
        for (level, keys) in ways() {
            for (first, part) in [(0, 0), (1, 20), (2, usize::MAX)] {
                for steps in (first..).step_by(3) {
                    if !crash_after(steps, part, level, &keys) {
                        assert!(steps > 30, "the disk was asked for {steps} things only");
                        break;
                    }
                }
            }
        }
    }

    /// True when the disk stopped before everything was done.
    fn crash_after(steps: u32, part: usize, level: Option<i32>, keys: &JournalKeys) -> bool {
        let bench = Bench::new();
        let settings = JournalConfig {
            segment_bytes: 4096,
            retention_bytes: Some(1 << 20),
            ..config(&bench, level, keys.clone())
        };
        let journal = bench.start(settings.clone());
        *bench.faults.lock() = Faults { steps_left: Some(steps), written_before_failing: part, ..Faults::default() };
        let mut acknowledged = 0;
        for number in 0..24 {
            emit_numbered(&journal, 1, number..number + 1);
            if journal.flush().is_err() {
                break;
            }
            acknowledged = number + 1;
        }
        if acknowledged == 24 {
            // The rest is done at leisure: until all is done or the disk stops.
            while bench.faults.lock().steps_left != Some(0)
                && journal.counters().segments_waiting.load(Ordering::SeqCst) > 0
            {
                thread::yield_now();
            }
        }
        journal.stop().ok();
        let written = journal.counters().written.load(Ordering::SeqCst);
        balance(&journal);
        drop(journal);
        let stopped = bench.faults.lock().steps_left == Some(0);
        *bench.faults.lock() = Faults::default();

        let journal = bench.start(settings);
        let found = contents(&journal.page(1, 1, 100).unwrap());
        // What was not acknowledged may have reached the disk whole all the same; then it is there, once.
        assert!(found.len() as u64 >= written && written >= u64::from(acknowledged), "{found:?}");
        let expected: Vec<String> = (0..found.len()).rev().map(|number| number.to_string()).collect();
        assert_eq!(found, expected, "after {steps} steps, {part} bytes of the last write");
        settle(&journal);
        assert_eq!(contents(&journal.page(1, 1, 100).unwrap()), expected);
        assert_sound_with(&bench, keys, found.len() as u64);
        assert_eq!(bench.files("tmp"), Vec::<PathBuf>::new());
        stopped
    }

    #[test]
    fn a_flipped_byte_anywhere_is_found_and_no_record_is_wrong() {
        for (level, keys) in ways() {
            let bench = Bench::new();
            let journal = bench.start(config(&bench, level, keys.clone()));
            fill(&journal, 0..RECORDS);
            settle(&journal);
            let all = everything(|filter, page, size| journal.search(filter, page, size));
            journal.stop().unwrap();
            let files = bench.files("seg");
            assert!(files.len() > 3);
            let sealed = &files[1];
            let newest = files.last().unwrap();
            let sidecar = &sealed.with_extension("idx");
            for file in [sealed, newest, sidecar] {
                let good = fs::read(file).unwrap();
                // Heads, ends, and many places in between; `head` looks at every bit of a head.
                let places = (0..good.len().min(200)).step_by(9).chain((200..good.len()).step_by(211));
                for at in places.chain((good.len() - 130..good.len()).step_by(7)) {
                    let mut bad = good.clone();
                    bad[at] ^= 1 << (at % 8);
                    fs::write(file, &bad).unwrap();
                    let place = format!("byte {at} of {}, {level:?}, {keys:?}", file.display());
                    let report = bench.reader_with(&keys).verify().unwrap();
                    let found = !report.problems.is_empty() || (file == newest && report.torn_bytes > 0);
                    assert!(found, "{place}: not found");
                    assert!(report.records >= u64::from(RECORDS) / 2, "{place}: costs too much");
                    let name = file.with_extension("").file_name().unwrap().to_string_lossy().into_owned();
                    assert!(report.problems.iter().all(|line| line.contains(".seg: ")), "{:?}", report.problems);
                    assert!(report.problems.is_empty() || report.problems[0].contains(&name), "{:?}", report.problems);

                    let reader = bench.reader_with(&keys);
                    let shown: Vec<String> =
                        (1..=2).flat_map(|page| reader.search(&Filter::default(), page, 100).unwrap().items).collect();
                    let wrong = shown.iter().filter(|item| !all.contains(item) && !item.contains("unreadable_record"));
                    assert_eq!(wrong.count(), 0, "{place}");
                }
                fs::write(file, &good).unwrap();
            }
            assert_sound_with(&bench, &keys, u64::from(RECORDS));
        }
    }

    #[test]
    fn a_key_is_changed_and_the_old_one_retired() {
        let bench = Bench::new();
        let start = |keys: &JournalKeys| bench.start(config(&bench, Some(3), keys.clone()));
        let in_use = |keys: &JournalKeys| -> Vec<_> {
            let report = bench.reader_with(keys).verify().unwrap();
            assert_eq!(report.problems, Vec::<String>::new());
            report.keys.iter().map(|used| (used.id, used.role)).collect()
        };
        let (none, first, second) = (keys(None, &[]), keys(Some(1), &[]), keys(Some(2), &[1]));

        let journal = start(&none);
        fill(&journal, 0..50);
        settle(&journal);
        journal.stop().unwrap();
        assert_eq!(in_use(&none), [(None, None)]);

        // Switched on: what was clear before is encrypted at leisure, the newest segment included.
        let journal = start(&first);
        fill(&journal, 50..100);
        settle(&journal);
        journal.stop().unwrap();
        assert_eq!(in_use(&first), [(first.current_id(), Some("journal.encryption_key"))]);
        let all = everything(|f, p, s| bench.reader_with(&first).search(f, p, s));

        // Without the key: refused by name, and the journal stays as it is.
        let files = bench.files("seg");
        for without in [&none, &keys(Some(2), &[])] {
            let error = bench.fail_to_start(config(&bench, Some(3), without.clone())).to_string();
            assert!(error.contains(&first.current_id().unwrap().to_string()), "{error}");
            assert!(error.contains("journal.old_encryption_keys") && error.contains(".seg: "), "{error}");
            let reader = bench.reader_with(without);
            assert!(reader.search(&Filter::default(), 1, 9).is_err());
            assert!(reader.verify().unwrap().problems.iter().all(|line| line.contains("is not configured")));
            assert_eq!(reader.verify().unwrap().keys[0].role, None);
        }
        assert_eq!(bench.files("seg"), files);

        // Changed: the old key is needed until the work is done.
        let journal = start(&second);
        fill(&journal, 100..150);
        settle(&journal);
        journal.stop().unwrap();
        let alone = keys(Some(2), &[]);
        assert_eq!(in_use(&alone), [(second.current_id(), Some("journal.encryption_key"))]);
        let journal = start(&alone);
        let now = everything(|f, p, s| journal.search(f, p, s));
        assert_eq!((now.len(), &now[50..]), (150, all.as_slice()));
        journal.stop().unwrap();

        // Switched off: new segments are clear, and what is encrypted stays so.
        let off = keys(None, &[2]);
        let journal = start(&off);
        fill(&journal, 150..151);
        settle(&journal);
        assert_eq!(in_use(&off), [(None, None), (alone.current_id(), Some("journal.old_encryption_keys"))]);
        assert_eq!(everything(|f, p, s| journal.search(f, p, s)).len(), 151);
        journal.stop().unwrap();
        // The newest segment is clear; those before it still need their key.
        let error = bench.fail_to_start(config(&bench, Some(3), keys(None, &[]))).to_string();
        assert!(error.contains(&alone.current_id().unwrap().to_string()), "{error}");
    }

    #[test]
    fn what_is_encrypted_stays_so_when_it_is_compressed_without_a_current_key() {
        let bench = Bench::new();
        let journal = bench.start(config(&bench, None, keys(Some(1), &[])));
        fill(&journal, 0..100);
        journal.stop().unwrap();
        let off = keys(None, &[1]);
        let journal = bench.start(config(&bench, Some(3), off.clone()));
        settle(&journal);
        journal.stop().unwrap();
        let report = bench.reader_with(&off).verify().unwrap();
        assert_eq!((report.segments_in_blocks, report.records), (report.segments - 1, 100));
        assert_eq!(report.keys.last().unwrap().segments, report.segments - 1);
    }

    #[test]
    fn a_damaged_segment_stays_as_it_is() {
        let bench = Bench::new();
        let journal = bench.start(config(&bench, None, keys(None, &[])));
        fill(&journal, 0..100);
        journal.stop().unwrap();
        let file = bench.files("seg").remove(1);
        let mut bytes = fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&file, &bytes).unwrap();
        let journal = bench.start(config(&bench, Some(3), keys(Some(1), &[])));
        settle(&journal);
        assert_eq!(fs::read(&file).unwrap(), bytes);
        assert_eq!(journal.search(&Filter::default(), 1, 100).unwrap().unreadable, 1);
        let report = bench.reader_with(&keys(Some(1), &[])).verify().unwrap();
        assert_eq!((report.problems.len(), report.records), (2, 99), "{:?}", report.problems);
    }

    #[test]
    fn a_segment_of_a_later_version_is_refused_and_nothing_begun_beside_it() {
        for newest in [false, true] {
            let bench = Bench::new();
            let journal = bench.start(config(&bench, None, keys(None, &[])));
            fill(&journal, 0..100);
            journal.stop().unwrap();
            let mut files = bench.files("seg");
            let file = if newest { files.pop().unwrap() } else { files.remove(0) };
            let mut bytes = fs::read(&file).unwrap();
            bytes[8..12].copy_from_slice(&9_u32.to_le_bytes());
            let crc = crc32fast::hash(&bytes[..28]);
            bytes[28..32].copy_from_slice(&crc.to_le_bytes());
            fs::write(&file, &bytes).unwrap();
            let count = bench.files("seg").len();
            let error = bench.fail_to_start(bench.config()).to_string();
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            assert!(error.contains(&name) && error.contains("version 9") && error.contains("move the file"), "{error}");
            assert_eq!((bench.files("seg").len(), fs::read(&file).unwrap()), (count, bytes));
        }
    }

    #[test]
    fn a_journal_of_the_first_version_is_taken_over_at_leisure() {
        let bench = Bench::new();
        let journal = bench.start(config(&bench, None, keys(None, &[])));
        fill(&journal, 0..RECORDS);
        let all = everything(|f, p, s| journal.search(f, p, s));
        journal.stop().unwrap();
        // As the first version wrote them: a head of 64 bytes is all that a start looks at.
        let sidecars = bench.files("idx");
        for (sidecar, next) in sidecars.iter().zip(&bench.files("seg")[1..]) {
            let seq_of = |path: &Path| path.file_stem().unwrap().to_str().unwrap().parse::<u64>().unwrap();
            let mut head = Vec::from(*b"tgjindx1");
            head.extend_from_slice(&1_u32.to_le_bytes());
            head.extend_from_slice(&[0; 12]);
            let len = fs::metadata(sidecar.with_extension("seg")).unwrap().len();
            for number in [seq_of(sidecar), seq_of(next) - 1, NOON, len] {
                head.extend_from_slice(&number.to_le_bytes());
            }
            head.extend_from_slice(&[0; 4]);
            head.extend_from_slice(&crc32fast::hash(&head).to_le_bytes());
            fs::write(sidecar, head).unwrap();
        }
        assert_eq!(bench.reader().verify().unwrap().problems, Vec::<String>::new());
        let journal = bench.start(config(&bench, Some(3), keys(None, &[])));
        assert_eq!(everything(|f, p, s| journal.search(f, p, s)), all);
        settle(&journal);
        assert_eq!(journal.counters().index_rebuilds.load(Ordering::SeqCst), sidecars.len() as u64);
        assert_eq!(everything(|f, p, s| journal.search(f, p, s)), all);
        assert_sound(&bench, u64::from(RECORDS));
    }

    #[test]
    fn a_segment_deleted_while_it_is_rewritten_stays_deleted() {
        let bench = Bench::new();
        let mut settings = config(&bench, Some(3), keys(None, &[]));
        settings.retention = Some(HOUR);
        settings.segment_age = HOUR;
        let journal = bench.start(settings);
        fill(&journal, 0..5);
        let (now, other) = (Arc::clone(&bench.now), journal.clone());
        let during = Box::new(move || {
            now.fetch_add(3 * 3_600_000, Ordering::SeqCst);
            other.flush().unwrap();
            assert_eq!(other.counters().segments_deleted.load(Ordering::SeqCst), 1);
        });
        bench.faults.lock().before_rewrite = Some(during);
        bench.now.fetch_add(3_600_000 + 1, Ordering::SeqCst);
        settle(&journal);
        assert!(bench.faults.lock().before_rewrite.is_none());
        // Nothing waits from the moment the segment is deleted, but the rewriting of it may still be under way.
        while !journal.handle.shared.upkeep_rests.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        assert_eq!(journal.search(&Filter::default(), 1, 9).unwrap().total, 0);
        assert_eq!((bench.files("seg").len(), bench.files("idx").len(), bench.files("tmp").len()), (1, 0, 0));
        assert_eq!(journal.counters().rewritten.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_segment_deleted_by_hand_is_forgotten() {
        let bench = Bench::new();
        let journal = bench.start(config(&bench, None, keys(None, &[])));
        fill(&journal, 0..RECORDS);
        journal.stop().unwrap();
        let journal = bench.start(config(&bench, None, keys(None, &[])));
        let sidecar = bench.files("idx").remove(0);
        fs::write(&sidecar, "no index").unwrap();
        assert_eq!(journal.page(1, 1, 1).unwrap().total, u64::from(RECORDS.div_ceil(7)));
        let files = bench.files("seg").len() as u64;
        fs::remove_file(sidecar.with_extension("seg")).unwrap();
        settle(&journal);
        let left = journal.search(&Filter::default(), 1, 1).unwrap().total;
        assert!((1..u64::from(RECORDS)).contains(&left));
        assert_eq!(journal.counters().segments.load(Ordering::SeqCst), files - 1);
    }

    #[test]
    fn retention_counts_what_is_on_the_disk_and_deletes_both_files() {
        let bench = Bench::new();
        let mut settings = config(&bench, Some(3), keys(Some(1), &[]));
        settings.retention_bytes = Some(30_000);
        let journal = bench.start(settings);
        let on_disk = || -> u64 {
            let sizes = ["seg", "idx", "tmp"].map(|e| bench.files(e)).concat();
            sizes.iter().map(|file| fs::metadata(file).map_or(0, |data| data.len())).sum()
        };
        let mut kept = 0;
        for round in 0..60 {
            fill(&journal, round * 10..(round + 1) * 10);
            settle(&journal);
            journal.flush().unwrap();
            assert!(on_disk() <= 30_000 + (16 << 10), "{}", on_disk());
            kept = journal.search(&Filter::default(), 1, 1).unwrap().total;
        }
        assert!(journal.counters().segments_deleted.load(Ordering::SeqCst) > 0);
        // Compressed, several times as many fit.
        assert!(kept > 100, "{kept}");
        assert_eq!(bench.files("idx").len() + 1, bench.files("seg").len());
        assert_sound_with(&bench, &keys(Some(1), &[]), kept);
    }
}
