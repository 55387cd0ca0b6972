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
use super::{Disk, Filter, Journal, JournalConfig, JournalKeys, JournalReader, LocalDisk, Page, SegmentFile};

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
        self.reader_with(&JournalKeys::default())
    }

    pub(super) fn reader_with(&self, keys: &JournalKeys) -> JournalReader {
        JournalReader::open_with(self.dir.path().join("journal"), keys.clone()).unwrap()
    }

    /// As [`Bench::start`], for a start that is to fail.
    pub(super) fn fail_to_start(&self, config: JournalConfig) -> io::Error {
        Journal::start(config, Arc::new(|| NOON)).unwrap_err()
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
        assert!(began.elapsed() < Duration::from_secs(120), "waited in vain: {what}");
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
    /// A file was cut, and not synced since.
    pub(super) is_cut_in_memory_alone: bool,
    /// Whether a sync waits until this is taken back.
    pub(super) hangs: bool,
    /// A sync is waiting.
    pub(super) is_hanging: bool,
    /// So many things are done yet; from then on every one fails, as if the machine had stopped. A write that is the
    /// last one ends after `written_before_failing` bytes.
    pub(super) steps_left: Option<u32>,
    /// Done once, when a sealed segment begins to be rewritten, by the thread that does it.
    pub(super) before_rewrite: Option<Box<dyn FnOnce() + Send>>,
}

impl Faults {
    fn step(&mut self) -> io::Result<()> {
        match &mut self.steps_left {
            Some(0) => Err(io::ErrorKind::NotConnected.into()),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
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
        if path.to_string_lossy().ends_with(".seg.tmp") {
            let before = self.faults.lock().before_rewrite.take();
            before.into_iter().for_each(|then| then());
        }
        self.faults.lock().step()?;
        let file = File::options().write(true).create_new(true).open(path)?;
        Ok(Box::new(FaultyFile { file, faults: Arc::clone(&self.faults) }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        let file = File::options().write(true).open(path)?;
        Ok(Box::new(FaultyFile { file, faults: Arc::clone(&self.faults) }))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.faults.lock().step()?;
        LocalDisk.sync_dir(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.faults.lock().step()?;
        LocalDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.faults.lock().step()?;
        LocalDisk.remove(path)
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
        let is_last = faults.steps_left == Some(1);
        faults.step()?;
        if is_last || fails(&mut faults.writes) {
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
        let mut faults = self.faults.lock();
        faults.step()?;
        if fails(&mut faults.syncs) {
            return Err(io::ErrorKind::Other.into());
        }
        faults.is_cut_in_memory_alone = false;
        Ok(())
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        let mut faults = self.faults.lock();
        faults.step()?;
        if fails(&mut faults.cuts) {
            return Err(io::ErrorKind::Other.into());
        }
        faults.is_cut_in_memory_alone = true;
        self.file.set_len(len)
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

/// Flushes until nothing waits to be done to sealed segments.
pub(super) fn settle(journal: &Journal) {
    loop {
        journal.flush().unwrap();
        if journal.counters().segments_waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        std::thread::yield_now();
    }
}

/// Every record there is, newest first.
pub(super) fn everything(search: impl Fn(&Filter, u64, usize) -> io::Result<Page>) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        let page = search(&Filter::default(), 1 + all.len() as u64 / 100, 100).unwrap();
        assert_eq!(page.unreadable, 0);
        let is_last = page.items.len() < 100;
        all.extend(page.items);
        if is_last {
            assert_eq!(all.len() as u64, page.total);
            return all;
        }
    }
}

/// A key of so many equal bytes, and the keys with it as the current one.
pub(super) fn keys(current: Option<u8>, old: &[u8]) -> JournalKeys {
    let text = |byte: &u8| format!("{byte:02x}").repeat(32);
    let old: Vec<String> = old.iter().map(text).collect();
    JournalKeys::new(current.as_ref().map(text).as_deref(), &old).unwrap()
}

pub(super) fn assert_sound(bench: &Bench, records: u64) {
    assert_sound_with(bench, &JournalKeys::default(), records);
}

pub(super) fn assert_sound_with(bench: &Bench, keys: &JournalKeys, records: u64) {
    let report = bench.reader_with(keys).verify().unwrap();
    assert_eq!((report.records, report.torn_bytes, report.problems.as_slice()), (records, 0, [].as_slice()));
}

pub(super) fn balance_written(journal: &Journal) -> u64 {
    journal.counters().written.load(Ordering::SeqCst)
}

pub(super) fn balance_emitted(journal: &Journal) -> u64 {
    journal.counters().emitted.load(Ordering::SeqCst)
}
