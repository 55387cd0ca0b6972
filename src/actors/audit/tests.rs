//! The trail as a whole: what it keeps, what it notices, and what it does when the disk fails.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;

use super::*;
use crate::actors::writer::SegmentFile;
use crate::clock::{ManualClock, UnixMillis};
use crate::store::committer::CommitPace;
use crate::store::memory::MemoryStore;
use crate::telemetry::metrics::Metrics;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A directory, a store and a clock that outlive the trails opened on them.
struct Bench {
    dir: tempfile::TempDir,
    store: Arc<MemoryStore>,
    clock: Clock,
    hands: Arc<ManualClock>,
    faults: Arc<Mutex<Faults>>,
}

/// What the disk is to do wrong, until it is told otherwise.
#[derive(Default)]
struct Faults {
    writes: bool,
    syncs: bool,
    cuts: bool,
    /// Bytes of a failing write that reach the disk all the same.
    written: usize,
}

struct FaultyDisk(Arc<Mutex<Faults>>);

struct FaultyFile(File, Arc<Mutex<Faults>>);

impl Disk for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        Ok(Box::new(FaultyFile(File::options().write(true).create_new(true).open(path)?, self.0.clone())))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        Ok(Box::new(FaultyFile(File::options().write(true).open(path)?, self.0.clone())))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        LocalDisk.sync_dir(dir)
    }
}

impl SegmentFile for FaultyFile {
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let faults = self.1.lock();
        let part = if faults.writes { faults.written.min(bytes.len()) } else { bytes.len() };
        SegmentFile::write_all_at(&mut self.0, &bytes[..part], offset)?;
        if faults.writes { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync_data(&mut self) -> io::Result<()> {
        if self.1.lock().syncs { Err(io::Error::other("EIO")) } else { Ok(()) }
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        if self.1.lock().cuts { Err(io::Error::other("EIO")) } else { self.0.set_len(len) }
    }
}

fn key() -> ChainKey {
    ChainKey::new([7; 32])
}

impl Bench {
    fn new() -> Self {
        let (clock, hands) = Clock::manual(UnixMillis::parse_rfc3339("2026-01-15T12:00:00Z").unwrap());
        Self { dir: tempfile::tempdir().unwrap(), store: Arc::default(), clock, hands, faults: Arc::default() }
    }

    fn config(&self) -> AuditConfig {
        AuditConfig { segment_bytes: 4096, ..AuditConfig::new(self.dir.path().join("audit")) }
    }

    fn start_with(&self, config: AuditConfig) -> Audit {
        let pace = CommitPace { gap: Duration::ZERO, row_gap: Duration::ZERO, max_pending: 1000 };
        let committer = Committer::start(self.store.clone(), pace, Arc::new(Metrics::new(0))).unwrap();
        let disk = Box::new(FaultyDisk(self.faults.clone()));
        Audit::start_on(config, self.clock.clone(), key(), committer, disk).unwrap()
    }

    fn start(&self) -> Audit {
        self.start_with(self.config())
    }

    fn recorded(&self) -> Option<Head> {
        recorded_head(&*self.store).unwrap()
    }

    fn verify(&self) -> VerifyReport {
        let known: Vec<Head> = self.recorded().into_iter().collect();
        verify(&self.dir.path().join("audit"), &key(), &known).unwrap()
    }

    fn assert_whole(&self, records: u64) {
        let report = self.verify();
        assert_eq!((report.records, &report.problems), (records, &vec![]), "{report:?}");
        assert_eq!(report.head, self.recorded());
    }

    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let items = fs::read_dir(self.dir.path().join("audit")).unwrap().map(|item| item.unwrap().path());
        items
            .filter(|p| p.extension().is_some_and(|e| e == "seg"))
            .map(|p| (p.clone(), fs::read(&p).unwrap()))
            .collect()
    }

    fn put_back(&self, files: &BTreeMap<PathBuf, Vec<u8>>) {
        let there = fs::read_dir(self.dir.path().join("audit")).unwrap().map(|item| item.unwrap().path());
        for path in there.filter(|p| p.extension().is_some_and(|e| e == "seg") && !files.contains_key(p)) {
            fs::remove_file(path).unwrap();
        }
        for (path, bytes) in files {
            fs::write(path, bytes).unwrap();
        }
    }
}

fn act(n: u64) -> Record {
    let origin = Origin { address: Some("192.0.2.7".parse().unwrap()), request: None };
    Record::of(Action::UserSuspended)
        .by(Actor::staff(1, "root"))
        .from(origin)
        .on(Target::new("user", Some(n), Some(&format!("user-{n}"))))
        .with("reason", format!("the {n}th"))
}

fn write(audit: &Audit, numbers: std::ops::Range<u64>) {
    for n in numbers {
        audit.write_blocking(act(n)).unwrap();
    }
}

fn ids(page: &LogPage) -> Vec<u64> {
    let id = |text: &String| serde_json::from_str::<Value>(text).unwrap()["id"].as_u64().unwrap();
    page.items.iter().map(id).collect()
}

fn balance(audit: &Audit) -> (u64, u64, u64, u64) {
    let counters = audit.counters();
    let read = |n: &AtomicU64| n.load(Ordering::SeqCst);
    (read(&counters.emitted), read(&counters.written), read(&counters.dropped), read(&counters.queued))
}

#[test]
fn what_is_acknowledged_is_on_disk_known_to_the_store_and_goes_on_after_a_restart() {
    let bench = Bench::new();
    for run in 0..3 {
        let audit = bench.start();
        assert_eq!(audit.head().sequence, run * 30);
        write(&audit, run * 30..run * 30 + 29);
        assert_eq!(bench.recorded().unwrap().sequence, run * 30 + 29, "recorded before it is acknowledged");
        audit.note(act(99));
        audit.stop();
        bench.assert_whole(run * 30 + 30);
        assert_eq!(balance(&audit), (30, 30, 0, 0));
    }
    assert!(bench.files().len() > 3, "several segments");
    let newest = serde_json::from_str::<Value>(&bench.start().page(&Query::default(), 1, 1).items[0]).unwrap();
    assert_eq!(newest["actor"], serde_json::json!({"kind": "staff", "id": 1, "name": "root"}));
    assert_eq!(newest["target"], serde_json::json!({"kind": "user", "id": 99, "name": "user-99"}));
    assert_eq!(
        (&newest["id"], &newest["action"], &newest["severity"], &newest["result"], &newest["ip_address"]),
        (&90.into(), &"user.suspended".into(), &"warning".into(), &"ok".into(), &"192.0.2.7".into())
    );
    assert_eq!(
        (&newest["timestamp"], &newest["details"]["reason"]),
        (&"2026-01-15T12:00:00Z".into(), &"the 99th".into())
    );
}

#[test]
fn opening_and_looking_changes_nothing() {
    let bench = Bench::new();
    let audit = bench.start();
    assert!(bench.files().is_empty(), "not even an empty one");
    write(&audit, 0..3);
    audit.stop();
    let mut files = bench.files();
    files.values_mut().next_back().unwrap().extend_from_slice(b"half a record");
    bench.put_back(&files);
    bench.start().stop();
    assert_eq!(bench.files(), files);
    let report = bench.verify();
    assert_eq!((report.records, report.torn_bytes, report.problems.len()), (3, 13, 0));
}

#[test]
fn the_store_hears_only_of_records_that_a_power_cut_leaves() {
    let bench = Bench::new();
    let audit = bench.start();
    write(&audit, 0..3);
    audit.stop();
    // As after a kill: the records can be read, whether or not the disk ever got them, and the store knows of none.
    let mut batch = crate::store::Batch::default();
    batch.delete(tables::audit_head());
    bench.store.commit(&batch).unwrap();
    bench.faults.lock().syncs = true;
    let pace = CommitPace { gap: Duration::ZERO, row_gap: Duration::ZERO, max_pending: 1000 };
    let committer = Committer::start(bench.store.clone(), pace, Arc::new(Metrics::new(0))).unwrap();
    let disk = Box::new(FaultyDisk(bench.faults.clone()));
    assert!(Audit::start_on(bench.config(), bench.clock.clone(), key(), committer, disk).is_err());
    assert_eq!(bench.recorded(), None);
    bench.faults.lock().syncs = false;
    bench.start().stop();
    assert_eq!(bench.recorded().unwrap().sequence, 3);
}

#[test]
fn what_failed_at_the_end_of_a_segment_does_not_stay_in_it() {
    for before in 0..12 {
        let bench = Bench::new();
        let audit = bench.start();
        write(&audit, 0..before);
        // Written whole, but not for all we know; and it cannot be taken out again.
        *bench.faults.lock() = Faults { writes: true, cuts: true, written: usize::MAX, ..Faults::default() };
        assert!(audit.write_blocking(act(before)).is_err());
        (1..4).for_each(|n| audit.note(act(before + n)));
        *bench.faults.lock() = Faults::default();
        audit.stop();
        bench.assert_whole(before + 4);
    }
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_and_the_chain_goes_on() {
    let bench = Bench::new();
    let audit = bench.start();
    write(&audit, 0..2);
    audit.stop();
    let (files, known) = (bench.files(), bench.recorded());
    let (path, whole) = files.iter().next().unwrap();
    // One more record, of which a crash let so many bytes through; the store does not know of it.
    let audit = bench.start();
    write(&audit, 2..3);
    audit.stop();
    let longer = fs::read(path).unwrap();
    let row = tables::encode(&known.unwrap()).unwrap();
    for len in whole.len()..longer.len() {
        fs::write(path, &longer[..len]).unwrap();
        let mut batch = crate::store::Batch::default();
        batch.put(tables::audit_head(), row.clone());
        bench.store.commit(&batch).unwrap();
        assert_eq!(bench.verify().problems, [], "an unfinished record was never acknowledged (cut at {len})");
        let audit = bench.start();
        assert_eq!((audit.head().sequence, audit.gap().is_some()), (2, false));
        write(&audit, 7..9);
        audit.stop();
        bench.assert_whole(4);
    }
}

/// A trail of several segments, as it lies on the disk: the records' places by sequence.
struct Laid {
    bench: Bench,
    files: BTreeMap<PathBuf, Vec<u8>>,
    /// (file, from, to) of record n + 1.
    records: Vec<(PathBuf, usize, usize)>,
}

fn laid(count: u64) -> Laid {
    let bench = Bench::new();
    let audit = bench.start();
    write(&audit, 0..count);
    audit.stop();
    let files = bench.files();
    let mut records = Vec::new();
    for (path, bytes) in &files {
        let mut at = 32;
        while at < bytes.len() {
            let len = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
            records.push((path.clone(), at, at + 32 + len));
            at += 32 + len;
        }
    }
    assert_eq!(records.len() as u64, count);
    Laid { bench, files, records }
}

impl Laid {
    /// The first bad record of a trail with these files.
    fn first_bad(&self, files: &BTreeMap<PathBuf, Vec<u8>>) -> Option<u64> {
        self.bench.put_back(files);
        self.bench.verify().problems.first().map(|problem| problem.sequence)
    }

    /// The record that a byte belongs to; a segment's head to its first.
    fn record_at(&self, path: &Path, byte: usize) -> u64 {
        self.records.iter().position(|(file, _, to)| file == path && byte < *to).unwrap() as u64 + 1
    }

    /// The files with the records of each in another order, or fewer. `order` holds indexes, per file.
    fn with(&self, path: &Path, order: &[usize]) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = self.files.clone();
        let old = &self.files[path];
        let mut new = old[..32].to_vec();
        for n in order {
            let (file, from, to) = &self.records[*n];
            new.extend_from_slice(&self.files[file][*from..*to]);
        }
        files.insert(path.to_owned(), new);
        files
    }

    fn of_file(&self, path: &Path) -> Vec<usize> {
        (0..self.records.len()).filter(|n| self.records[*n].0 == path).collect()
    }
}

#[test]
fn every_flipped_byte_is_found_and_its_record_named() {
    let laid = laid(12);
    assert!(laid.files.len() > 1 && laid.first_bad(&laid.files).is_none());
    for (path, bytes) in &laid.files {
        for at in 0..bytes.len() {
            let mut files = laid.files.clone();
            files.get_mut(path).unwrap()[at] ^= 1 << (at % 8);
            assert_eq!(laid.first_bad(&files), Some(laid.record_at(path, at)), "{} byte {at}", path.display());
        }
    }
}

#[test]
fn every_removed_record_every_swapped_pair_and_every_cut_is_found_and_named() {
    let laid = laid(14);
    for n in 0..laid.records.len() {
        let path = laid.records[n].0.clone();
        let of_file = laid.of_file(&path);
        let without: Vec<usize> = of_file.iter().copied().filter(|m| *m != n).collect();
        assert_eq!(laid.first_bad(&laid.with(&path, &without)), Some(n as u64 + 1), "removed {n}");
        let cut: Vec<usize> = of_file.iter().copied().filter(|m| *m < n).collect();
        assert_eq!(laid.first_bad(&laid.with(&path, &cut)), Some(n as u64 + 1), "cut before {n}");
        for m in of_file.iter().copied().filter(|m| *m > n) {
            let swapped: Vec<usize> = of_file
                .iter()
                .map(|k| {
                    if *k == n {
                        m
                    } else if *k == m {
                        n
                    } else {
                        *k
                    }
                })
                .collect();
            assert_eq!(laid.first_bad(&laid.with(&path, &swapped)), Some(n as u64 + 1), "swapped {n} and {m}");
        }
    }
    for path in laid.files.keys() {
        let mut files = laid.files.clone();
        files.remove(path);
        assert_eq!(laid.first_bad(&files), Some(laid.of_file(path)[0] as u64 + 1), "without {}", path.display());
    }
    assert_eq!(laid.first_bad(&BTreeMap::new()), Some(1), "everything is gone");
}

/// Gives a record the checksum that its bytes ask for, as somebody would who knows the format.
fn mend_checksum(record: &mut [u8]) {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&record[..28]);
    crc.update(&record[32..]);
    let sum = crc.finalize().to_le_bytes();
    record[28..32].copy_from_slice(&sum);
}

#[test]
fn ten_thousand_random_tamperings_are_all_found() {
    let laid = laid(10);
    let mut random = fastrand::Rng::with_seed(20_260_115);
    let mut kinds = [0u32; 5];
    for round in 0..10_000 {
        let mut files = laid.files.clone();
        let n = random.usize(..laid.records.len());
        let (path, from, to) = laid.records[n].clone();
        let kind = random.usize(..kinds.len());
        kinds[kind] += 1;
        let wanted = match kind {
            // Any byte of any record, with a checksum that fits.
            0 | 1 => {
                let bytes = files.get_mut(&path).unwrap();
                let at = from + if random.bool() { random.usize(4..28) } else { random.usize(32..to - from) };
                bytes[at] ^= random.u8(1..);
                mend_checksum(&mut bytes[from..to]);
                // A changed number shows as the hole where the record stood, any other change as the record's own.
                n as u64 + 1
            }
            // A byte of a segment's head, with a checksum that fits.
            2 => {
                let bytes = files.get_mut(&path).unwrap();
                let at = random.usize(8..28);
                bytes[at] ^= random.u8(1..);
                let sum = crc32fast::hash(&bytes[..28]).to_le_bytes();
                bytes[28..32].copy_from_slice(&sum);
                laid.of_file(&path)[0] as u64 + 1
            }
            // A stretch of records goes; with renumbered ones behind it that would be changed ones.
            3 => {
                let of_file = laid.of_file(&path);
                let last = n + random.usize(..4);
                let kept: Vec<usize> = of_file.into_iter().filter(|m| *m < n || *m > last).collect();
                files = laid.with(&path, &kept);
                n as u64 + 1
            }
            // One record's text under another one's number.
            _ => {
                let of_file: Vec<usize> = laid.of_file(&path).into_iter().filter(|m| *m != n).collect();
                let Some(other) = of_file.get(random.usize(..of_file.len().max(1))) else { continue };
                let (_, other_from, other_to) = laid.records[*other];
                let bytes = files.get_mut(&path).unwrap();
                let mut forged = laid.files[&path][other_from..other_to].to_vec();
                forged[4..12].copy_from_slice(&laid.files[&path][from + 4..from + 12]);
                mend_checksum(&mut forged);
                bytes.splice(from..to, forged);
                n as u64 + 1
            }
        };
        assert_eq!(laid.first_bad(&files), Some(wanted), "round {round}, kind {kind}, record {}", n + 1);
    }
    assert!(kinds.iter().all(|count| *count > 1000), "{kinds:?}");
}

#[test]
fn who_has_not_the_key_cannot_make_a_chain() {
    let laid = laid(5);
    let report = verify(&laid.bench.dir.path().join("audit"), &ChainKey::new([8; 32]), &[]).unwrap();
    assert_eq!(report.problems.first().map(|problem| problem.sequence), Some(1));
    // A trail that somebody made anew under another key, with everything as it was but one word.
    let forger = Bench::new();
    let pace = CommitPace { gap: Duration::ZERO, row_gap: Duration::ZERO, max_pending: 1000 };
    let committer = Committer::start(forger.store.clone(), pace, Arc::new(Metrics::new(0))).unwrap();
    let forged = Audit::start(forger.config(), forger.clock.clone(), ChainKey::new([8; 32]), committer).unwrap();
    write(&forged, 0..5);
    forged.stop();
    let moved = forger
        .files()
        .into_iter()
        .map(|(path, bytes)| (laid.bench.dir.path().join("audit").join(path.file_name().unwrap()), bytes));
    assert_eq!(laid.first_bad(&moved.collect()), Some(1));
}

#[test]
fn a_record_of_another_trail_under_the_same_key_does_not_fit_in() {
    let (one, other) = (laid(6), laid(6));
    assert_eq!(one.files.values().collect::<Vec<_>>(), other.files.values().collect::<Vec<_>>(), "all the same so far");
    let other = Bench::new();
    let audit = other.start();
    write(&audit, 100..106);
    audit.stop();
    let foreign = other.files();
    let bytes = foreign.values().next().unwrap();
    let len = |at: usize| 32 + u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let third = 32 + len(32) + len(32 + len(32));
    let (path, from, to) = one.records[2].clone();
    let mut files = one.files.clone();
    files.get_mut(&path).unwrap().splice(from..to, bytes[third..third + len(third)].iter().copied());
    assert_eq!(one.first_bad(&files), Some(3));
}

#[test]
fn an_end_that_is_gone_is_noticed_at_the_start_and_for_ever_after() {
    let laid = laid(6);
    let path = laid.records[5].0.clone();
    let kept: Vec<usize> = laid.of_file(&path).into_iter().filter(|n| *n < 4).collect();
    let files = laid.with(&path, &kept);
    laid.bench.put_back(&files);
    let audit = laid.bench.start();
    let gap = audit.gap().unwrap();
    assert_eq!((audit.head().sequence, gap.severity()), (6, Severity::Critical));
    audit.write_blocking(gap).unwrap();
    write(&audit, 7..9);
    audit.stop();
    assert!(laid.bench.start().gap().is_none(), "told once");
    let report = laid.bench.verify();
    assert_eq!(report.problems.iter().map(|problem| problem.sequence).collect::<Vec<_>>(), [5], "{report:?}");
    assert_eq!(report.records, 4 + 3);
}

#[test]
fn a_head_noted_elsewhere_shows_a_trail_made_anew() {
    let laid = laid(6);
    let noted = laid.bench.verify().head.unwrap();
    let other = Bench::new();
    let audit = other.start();
    write(&audit, 10..16);
    audit.stop();
    let dir = other.dir.path().join("audit");
    assert_eq!(verify(&dir, &key(), &[]).unwrap().problems, []);
    let report = verify(&dir, &key(), &[noted]).unwrap();
    assert_eq!(report.problems.first().map(|problem| problem.sequence), Some(6));
}

#[test]
fn a_failing_disk_refuses_and_nothing_that_happened_is_lost() {
    for faults in [
        Faults { writes: true, ..Faults::default() },
        Faults { writes: true, written: 100, ..Faults::default() },
        Faults { writes: true, written: usize::MAX, cuts: true, ..Faults::default() },
        Faults { syncs: true, ..Faults::default() },
    ] {
        let bench = Bench::new();
        let audit = bench.start();
        write(&audit, 0..2);
        *bench.faults.lock() = faults;
        assert_eq!(audit.write_blocking(act(2)), Err(Unwritten));
        assert_eq!(audit.ready(), Err(Unwritten));
        assert_eq!(audit.write_blocking(act(3)), Err(Unwritten));
        *bench.faults.lock() = Faults::default();
        audit.flush_blocking().unwrap();
        assert_eq!(audit.ready(), Ok(()));
        write(&audit, 4..5);
        assert_eq!(ids(&audit.page(&Query::default(), 1, 9)), [5, 4, 3, 2, 1]);
        audit.stop();
        bench.assert_whole(5);
        assert_eq!(balance(&audit), (5, 5, 0, 0));
    }
}

#[test]
fn a_stop_with_a_dead_disk_ends_and_counts() {
    let bench = Bench::new();
    let audit = bench.start();
    write(&audit, 0..1);
    bench.faults.lock().writes = true;
    audit.note(act(1));
    audit.stop();
    audit.note(act(2));
    assert_eq!(audit.write_blocking(act(3)), Err(Unwritten));
    assert_eq!(balance(&audit), (4, 1, 3, 0));
    bench.assert_whole(1);
}

#[test]
fn notes_past_the_bound_are_dropped_and_counted() {
    let bench = Bench::new();
    let audit = bench.start_with(AuditConfig { queue_records: 16, ..bench.config() });
    bench.faults.lock().writes = true;
    assert_eq!(audit.write_blocking(act(0)), Err(Unwritten));
    (1..100).for_each(|n| audit.note(act(n)));
    let (emitted, written, dropped, queued) = balance(&audit);
    assert_eq!((emitted, written, dropped + queued, queued), (100, 0, 100, 16));
    *bench.faults.lock() = Faults::default();
    audit.stop();
    bench.assert_whole(16);
}

#[test]
fn a_flood_of_failed_logins_is_folded_and_adds_up() {
    let bench = Bench::new();
    let audit = bench.start();
    let failed = |n: u64| {
        let origin = Origin { address: Some("192.0.2.7".parse().unwrap()), request: None };
        let record = Record::of(Action::LoginFailed).by(Actor::anonymous()).from(origin).on(Target::user_id(n % 2));
        record.refused(Outcome::Denied, "UNAUTHENTICATED")
    };
    (0..1000).for_each(|n| audit.note_folded(failed(n)));
    audit.flush_blocking().unwrap();
    assert_eq!(ids(&audit.page(&Query::default(), 1, 9)).len(), 2, "the first of each at once");
    bench.hands.advance(Duration::from_secs(60));
    audit.flush_blocking().unwrap();
    let page = audit.page(&Query::default(), 1, 9);
    let counts = page.items.iter().map(|text| serde_json::from_str::<Value>(text).unwrap()["count"].as_u64().unwrap());
    assert_eq!((page.items.len(), counts.sum::<u64>()), (4, 1000));
    assert_eq!(audit.counters().folded.load(Ordering::SeqCst), 998);
    audit.note_folded(failed(1));
    audit.note_folded(failed(1));
    audit.stop();
    bench.assert_whole(6);
}

#[test]
fn pages_are_filtered_newest_first_and_the_files_say_the_same() {
    let bench = Bench::new();
    let audit = bench.start();
    for n in 0..40 {
        bench.hands.advance(Duration::from_secs(1));
        let record = if n % 4 == 0 { Record::of(Action::LoginSucceeded).on(Target::user_id(n)) } else { act(n) };
        audit.write_blocking(record).unwrap();
    }
    let from = UnixMillis::parse_rfc3339("2026-01-15T12:00:11Z").unwrap();
    let to = UnixMillis::parse_rfc3339("2026-01-15T12:00:21Z").unwrap();
    let queries = [
        (Query::default(), 40),
        (Query { severity: Some(Severity::Info), ..Query::default() }, 10),
        (Query { severity: Some(Severity::Critical), ..Query::default() }, 0),
        (Query { action: ActionFilter::parse("user.suspended"), ..Query::default() }, 30),
        (Query { action: ActionFilter::parse("login"), ..Query::default() }, 10),
        (Query { user: Some(UserFilter::parse("7")), ..Query::default() }, 1),
        (Query { user: Some(UserFilter::parse("USER-7")), ..Query::default() }, 1),
        (Query { user: Some(UserFilter::parse("root")), ..Query::default() }, 30),
        (Query { user: Some(UserFilter::parse("1")), ..Query::default() }, 1),
        (Query { from: Some(from), to: Some(to), ..Query::default() }, 10),
    ];
    let dir = bench.dir.path().join("audit");
    let check = |audit: &Audit| {
        for (query, total) in &queries {
            let all = audit.page(query, 1, 200);
            assert_eq!((all.total, all.items.len() as u64, all.unreadable), (*total, *total, 0), "{query:?}");
            assert!(ids(&all).is_sorted_by(|a, b| a > b), "newest first");
            assert_eq!(find_in_files(&dir, query, 1, 200).unwrap().items, all.items, "{query:?}");
            for page in 1..5 {
                let part = audit.page(query, page, 4);
                let skip = (page as usize - 1) * 4;
                assert!(part.items.iter().eq(all.items.iter().skip(skip).take(4)), "{query:?} page {page}");
                assert_eq!(find_in_files(&dir, query, page, 4).unwrap().items, part.items);
            }
        }
    };
    check(&audit);
    audit.stop();
    check(&bench.start());
    assert_eq!(ActionFilter::parse("nonsense"), None);
}

#[test]
fn retention_deletes_whole_segments_and_the_trail_says_so() {
    let bench = Bench::new();
    let config = AuditConfig { retention: Some(10 * DAY), ..bench.config() };
    let audit = bench.start_with(config.clone());
    for day in 0..20 {
        write(&audit, day..day + 2);
        bench.hands.advance(DAY);
    }
    audit.flush_blocking().unwrap();
    let report = bench.verify();
    assert_eq!(report.problems, [], "{report:?}");
    let pruned = report.pruned_through.unwrap();
    assert!((10..=24).contains(&pruned), "{pruned}");
    let shown = audit.page(&Query::default(), 1, 200);
    assert_eq!((shown.total, shown.unreadable), (report.records, 0));
    assert!(audit.page(&Query { action: ActionFilter::parse("audit.pruned"), ..Query::default() }, 1, 9).total > 0);
    audit.stop();
    // The first segment that was kept goes by another hand.
    let mut files = bench.files();
    files.pop_first();
    bench.put_back(&files);
    let report = bench.verify();
    assert_eq!(report.problems.first().map(|problem| problem.sequence), Some(pruned + 1), "{report:?}");
}

#[test]
fn a_failed_store_is_recorded_once_and_acts_are_not_acknowledged() {
    /// A store whose disk has failed.
    #[derive(Default)]
    struct Broken(MemoryStore);
    impl Store for Broken {
        fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
            self.0.get(key)
        }
        fn range(
            &self,
            a: &[u8],
            b: &[u8],
            n: usize,
            o: crate::store::Order,
        ) -> Result<Vec<crate::store::Row>, StoreError> {
            self.0.range(a, b, n, o)
        }
        fn commit(&self, _: &crate::store::Batch) -> Result<(), StoreError> {
            Err(StoreError::Failed("EIO".into()))
        }
    }
    let bench = Bench::new();
    let pace = CommitPace { gap: Duration::ZERO, row_gap: Duration::ZERO, max_pending: 1000 };
    let committer = Committer::start(Arc::new(Broken::default()), pace, Arc::new(Metrics::new(0))).unwrap();
    let audit = Audit::start(bench.config(), bench.clock.clone(), key(), committer).unwrap();
    assert_eq!(audit.write_blocking(act(0)), Err(Unwritten), "the store does not know of it");
    assert_eq!(audit.write_blocking(act(1)), Err(Unwritten));
    audit.flush_blocking().unwrap();
    let failed = audit.page(&Query { severity: Some(Severity::Critical), ..Query::default() }, 1, 9);
    assert_eq!(failed.total, 1);
    assert!(failed.items[0].contains("store.failed"));
    audit.stop();
    bench_whole_without_store(&bench, 3);
}

fn bench_whole_without_store(bench: &Bench, records: u64) {
    let report = verify(&bench.dir.path().join("audit"), &key(), &[]).unwrap();
    assert_eq!((report.records, report.problems.len()), (records, 0));
}

#[test]
fn two_do_not_write_one_trail() {
    let bench = Bench::new();
    let _audit = bench.start();
    let pace = CommitPace { gap: Duration::ZERO, row_gap: Duration::ZERO, max_pending: 1000 };
    let committer = Committer::start(bench.store.clone(), pace, Arc::new(Metrics::new(0))).unwrap();
    let second = Audit::start(bench.config(), bench.clock.clone(), key(), committer);
    assert!(second.unwrap_err().to_string().contains("another process writes this audit trail"));
}
