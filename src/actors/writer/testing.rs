//! What the journal's tests have in common: a journal of their own, a disk that fails on request, and the questions
//! that every test asks in the end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;

use super::record::tests::{NOON, entry};
use super::{Disk, Journal, JournalConfig, JournalReader, LocalDisk, Page, SegmentFile};

pub(super) const HOUR: Duration = Duration::from_secs(3600);

/// A journal in a directory of its own, with a clock that the test moves. Nothing is written unless the test
/// asks for it.
pub(super) struct Bench {
    dir: tempfile::TempDir,
    pub(super) now: Arc<AtomicU64>,
    pub(super) faults: Arc<Mutex<Faults>>,
    pub(super) spill_faults: Arc<Mutex<Faults>>,
}

impl Bench {
    pub(super) fn new() -> Self {
        let now = Arc::new(AtomicU64::new(NOON));
        Self { dir: tempfile::tempdir().unwrap(), now, faults: Arc::default(), spill_faults: Arc::default() }
    }

    pub(super) fn config(&self) -> JournalConfig {
        let mut config = JournalConfig::new(self.dir.path().join("journal"));
        config.flush_interval = HOUR;
        config.batch_records = u64::MAX;
        config.spill_dir = self.spill_dir();
        config
    }

    pub(super) fn start(&self, config: JournalConfig) -> Journal {
        let now = Arc::clone(&self.now);
        let disk = FaultyDisk { faults: Arc::clone(&self.faults) };
        let spill_disk = FaultyDisk { faults: Arc::clone(&self.spill_faults) };
        let clock = Arc::new(move || now.load(Ordering::SeqCst));
        Journal::start_on(config, clock, Box::new(disk), Box::new(spill_disk)).unwrap()
    }

    pub(super) fn journal(&self) -> Journal {
        self.start(self.config())
    }

    pub(super) fn reader(&self) -> JournalReader {
        JournalReader::open(self.dir.path().join("journal")).unwrap()
    }

    pub(super) fn spill_dir(&self) -> PathBuf {
        self.dir.path().join("spill")
    }

    /// Names of the spill's files, sorted.
    pub(super) fn spill_files(&self) -> Vec<PathBuf> {
        let items = fs::read_dir(self.spill_dir()).into_iter().flatten().map(|item| item.unwrap().path());
        let mut paths: Vec<_> = items.filter(|path| path.extension().is_some()).collect();
        paths.sort();
        paths
    }

    pub(super) fn files(&self, extension: &str) -> Vec<PathBuf> {
        let items = fs::read_dir(self.dir.path().join("journal")).unwrap().map(|item| item.unwrap().path());
        let mut paths: Vec<_> = items.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
        paths.sort();
        paths
    }
}

/// Waits until `holds` says so.
pub(super) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(20), "waited in vain: {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// What the disk is to do wrong next.
#[derive(Default)]
pub(super) struct Faults {
    pub(super) writes: u32,
    pub(super) written_before_failing: usize,
    pub(super) syncs: u32,
    pub(super) cuts: u32,
    /// Whether a sync waits until this is taken back.
    pub(super) hangs: bool,
    /// A sync is waiting.
    pub(super) is_hanging: bool,
}

pub(super) struct FaultyDisk {
    pub(super) faults: Arc<Mutex<Faults>>,
}

struct FaultyFile {
    file: File,
    faults: Arc<Mutex<Faults>>,
}

impl Disk for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        let file = File::options().write(true).create_new(true).open(path)?;
        Ok(Box::new(FaultyFile { file, faults: Arc::clone(&self.faults) }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        let file = File::options().write(true).open(path)?;
        Ok(Box::new(FaultyFile { file, faults: Arc::clone(&self.faults) }))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        LocalDisk.sync_dir(dir)
    }
}

fn fails(left: &mut u32) -> bool {
    let failing = *left > 0;
    *left = left.saturating_sub(1);
    failing
}

impl SegmentFile for FaultyFile {
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut faults = self.faults.lock();
        if fails(&mut faults.writes) {
            let part = faults.written_before_failing.min(bytes.len());
            SegmentFile::write_all_at(&mut self.file, &bytes[..part], offset)?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        SegmentFile::write_all_at(&mut self.file, bytes, offset)
    }

    fn sync_data(&mut self) -> io::Result<()> {
        loop {
            let mut faults = self.faults.lock();
            faults.is_hanging = faults.hangs;
            if !faults.hangs {
                break;
            }
            drop(faults);
            std::thread::park_timeout(Duration::from_millis(1));
        }
        if fails(&mut self.faults.lock().syncs) { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        if fails(&mut self.faults.lock().cuts) { Err(io::ErrorKind::Other.into()) } else { self.file.set_len(len) }
    }
}

/// emitted, written, dropped, queued.
pub(super) fn balance(journal: &Journal) -> (u64, u64, u64, u64) {
    let counters = journal.counters();
    let read = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
    let now =
        (read(&counters.emitted), read(&counters.written), read(&counters.dropped), read(&counters.queue_records));
    assert_eq!(now.0, now.1 + now.2 + now.3 + read(&counters.spilled));
    now
}

pub(super) fn contents(page: &Page) -> Vec<String> {
    let content = |item: &String| {
        let value: Value = serde_json::from_str(item).unwrap();
        value["messages"]["response"]["content"].as_str().unwrap().to_owned()
    };
    page.items.iter().map(content).collect()
}

pub(super) fn ids(page: &Page) -> Vec<u64> {
    page.items.iter().map(|item| serde_json::from_str::<Value>(item).unwrap()["id"].as_u64().unwrap()).collect()
}

pub(super) fn emit_numbered(journal: &Journal, user_id: u64, numbers: std::ops::Range<u32>) {
    numbers.for_each(|number| journal.emit(&entry(user_id, &number.to_string())));
}

pub(super) fn assert_sound(bench: &Bench, records: u64) {
    let report = bench.reader().verify().unwrap();
    assert_eq!((report.records, report.torn_bytes, report.problems.as_slice()), (records, 0, [].as_slice()));
}

pub(super) fn balance_written(journal: &Journal) -> u64 {
    journal.counters().written.load(Ordering::SeqCst)
}

pub(super) fn balance_emitted(journal: &Journal) -> u64 {
    journal.counters().emitted.load(Ordering::SeqCst)
}
