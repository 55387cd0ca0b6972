//! The spill: where records go while the journal's own disk is behind, the policy
//! [`Overflow::Spill`](crate::config::Overflow).
//!
//! Owns the spill's directory, the file being filled, and the thread that fills it. A spilled record is synced before it
//! counts as spilled; redaction has been over it. The journal's thread takes files back when its disk is well again
//! ([`replay`](super::replay)). What this disk refuses goes back to the journal's queue, so that a broken spill is no
//! worse than none.
//!
//! A spill file is built as a segment is: the same head, and records with a length, a sequence of the spill's own and a
//! checksum. The payload is the record's JSON without what only the journal can give it, its id. Where the journal is
//! encrypted, so is the spill.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::Duration;

use parking_lot::Mutex;

use super::envelope::seal_records;
use super::frame::{self, frames};
use super::head::{Form, Head};
use super::keeping::lock_dir;
use super::keys::Cipher;
use super::queue::Pending;
use super::replay::{Replay, take_over, take_stock};
use super::segment::{Disk, SegmentFile, append_record};
use super::{Clock, JournalConfig, Overflow, Shared};
use crate::failpoint;

#[cfg(test)]
mod tests;

/// So much is written and synced at a time.
const PIECE_BYTES: usize = 1 << 20;
/// A file is closed when it has grown past this, so that it can go back in pieces.
const FILE_BYTES: u64 = 8 << 20;
/// How long a file without a new record is kept open while the journal is well.
const IDLE: Duration = Duration::from_millis(100);
/// Shortest time between two rounds.
const GAP: Duration = Duration::from_millis(20);
/// How often the end tries a disk that fails.
const STOP_TRIES: u32 = 3;
/// How long the thread sleeps at most when there is nothing to do.
const LONG: Duration = Duration::from_secs(3600);
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_LONGEST: Duration = Duration::from_secs(5);

/// A file that takes no more records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SpillFile {
    pub(super) path: PathBuf,
    /// The spill's sequence of its first record.
    pub(super) first: u64,
    /// Bytes that count; what may stand after them was never acknowledged.
    pub(super) len: u64,
    /// Records that are still to go back.
    pub(super) records: u64,
}

/// What callers, the spill's thread and the journal's thread have in common.
#[derive(Default)]
pub(super) struct Spill {
    /// Closed files, oldest first.
    pub(super) files: Mutex<VecDeque<SpillFile>>,
    /// Waiting bytes above which records come here.
    above_bytes: u64,
    /// True while the spill's disk refuses.
    is_broken: AtomicBool,
    /// What the thread has taken out of the queue and not written: it still counts as waiting.
    held_records: AtomicU64,
    held_bytes: AtomicU64,
    is_asleep: AtomicBool,
    stopping: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Spill {
    pub(super) fn new(above_bytes: u64) -> Self {
        Self { above_bytes, ..Self::default() }
    }

    pub(super) fn is_on(&self) -> bool {
        self.thread.get().is_some()
    }

    /// So many records and bytes of those that wait are in the hands of the spill's thread.
    pub(super) fn held(&self) -> (u64, u64) {
        (self.held_records.load(Ordering::SeqCst), self.held_bytes.load(Ordering::SeqCst))
    }

    /// Hears how many bytes wait; wakes the thread, once per sleep, when that is too much.
    pub(super) fn note(&self, waiting_bytes: u64) {
        let is_called = waiting_bytes > self.above_bytes && self.is_on() && !self.is_broken.load(Ordering::Relaxed);
        if is_called && self.is_asleep.load(Ordering::SeqCst) && self.is_asleep.swap(false, Ordering::SeqCst) {
            self.unpark();
        }
    }

    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.unpark();
    }

    fn unpark(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

/// The file being filled.
struct Filling {
    file: Box<dyn SegmentFile>,
    cipher: Option<Cipher>,
    facts: SpillFile,
    /// Bytes past `facts.len` may have been written.
    has_failed_attempt: bool,
}

impl Filling {
    /// Puts these clear records after the acknowledged ones. Gives how many bytes they took.
    fn append(&mut self, records: &[u8]) -> io::Result<u64> {
        let mut encrypted = Vec::new();
        let bytes = match &self.cipher {
            Some(cipher) => {
                seal_records(cipher, records, &mut encrypted)?;
                encrypted.as_slice()
            }
            None => records,
        };
        self.has_failed_attempt = true;
        self.file.write_all_at(bytes, self.facts.len)?;
        self.file.sync_data()?;
        self.has_failed_attempt = false;
        self.facts.len += bytes.len() as u64;
        Ok(bytes.len() as u64)
    }

    /// Takes a failed attempt out of the file, also should the power fail: its records are about to go elsewhere.
    fn cut_back(&mut self) -> io::Result<()> {
        if self.has_failed_attempt {
            self.file.set_len(self.facts.len)?;
            self.file.sync_data()?;
            self.has_failed_attempt = false;
        }
        Ok(())
    }
}

/// A run of frames on its way to the spill, and the same as bytes of the file.
#[derive(Default)]
struct Piece {
    frames: Vec<u8>,
    bytes: Vec<u8>,
    records: u64,
}

/// The thread `tollgate-spill`.
pub(super) struct SpillThread {
    shared: Arc<Shared>,
    disk: Box<dyn Disk>,
    clock: Clock,
    dir: PathBuf,
    max_bytes: u64,
    /// The sequence of the next record.
    next: u64,
    filling: Option<Filling>,
    pending: Pending,
    piece: Piece,
}

impl SpillThread {
    /// Starts the thread; `next` is the sequence after the last that any spill file holds.
    pub(super) fn start(
        shared: Arc<Shared>,
        disk: Box<dyn Disk>,
        clock: Clock,
        (dir, max_bytes): (PathBuf, u64),
        next: u64,
    ) -> io::Result<thread::JoinHandle<()>> {
        let spiller = Self {
            shared: Arc::clone(&shared),
            disk,
            clock,
            dir,
            max_bytes,
            next,
            filling: None,
            pending: Pending::default(),
            piece: Piece::default(),
        };
        let join = thread::Builder::new().name("tollgate-spill".to_owned()).spawn(move || spiller.run())?;
        // There is one start per journal, so nobody was here before.
        shared.spill.thread.set(join.thread().clone()).ok();
        Ok(join)
    }

    fn run(mut self) {
        let mut backoff = BACKOFF_FIRST;
        while !self.shared.spill.stopping.load(Ordering::SeqCst) {
            let result = if self.is_pressed() { self.round() } else { self.settle() };
            self.shared.spill.is_broken.store(result.is_err(), Ordering::SeqCst);
            match result {
                Ok(()) => {
                    backoff = BACKOFF_FIRST;
                    self.sleep();
                }
                Err(_) => {
                    self.shared.counters.spill_errors.fetch_add(1, Ordering::Relaxed);
                    thread::park_timeout(backoff);
                    backoff = (backoff * 2).min(BACKOFF_LONGEST);
                }
            }
        }
        self.end();
    }

    /// Whether too much waits for the journal's disk, not counting what this thread holds.
    fn is_pressed(&self) -> bool {
        let waiting = self.shared.counters.queue_bytes.load(Ordering::Relaxed);
        waiting.saturating_sub(self.shared.spill.held().1) > self.shared.spill.above_bytes
    }

    /// Writes everything that waits in the queue. After a failure nothing is left in this thread's hands but what may stand
    /// in the file all the same.
    fn round(&mut self) -> io::Result<()> {
        self.settle()?;
        self.take();
        while self.next_piece() {
            let result = self.write_piece();
            if result.is_err() {
                // If this fails as well, the next round begins with it.
                self.settle().ok();
            }
            result?;
        }
        Ok(())
    }

    /// Ends what a failed attempt left: out of the file, and then back into the queue.
    fn settle(&mut self) -> io::Result<()> {
        if let Some(filling) = &mut self.filling {
            filling.cut_back()?;
        }
        self.hand_back();
        Ok(())
    }

    fn take(&mut self) {
        self.pending.take(&self.shared.queue);
        let (records, bytes) = self.pending.taken();
        self.shared.spill.held_records.fetch_add(records, Ordering::SeqCst);
        self.shared.spill.held_bytes.fetch_add(bytes, Ordering::SeqCst);
    }

    fn release(&self, records: u64, bytes: u64) {
        self.shared.spill.held_records.fetch_sub(records, Ordering::SeqCst);
        self.shared.spill.held_bytes.fetch_sub(bytes, Ordering::SeqCst);
    }

    /// Encodes the next run of frames. False when nothing is left.
    fn next_piece(&mut self) -> bool {
        let Piece { frames, bytes, records } = &mut self.piece;
        while bytes.len() < PIECE_BYTES {
            let Some(frame) = self.pending.first() else { break };
            let rules = &self.shared.redaction;
            let fits = frame::read(frame).is_some_and(|entry| {
                let head = (self.next + *records, entry.user_id, entry.timestamp_ms);
                append_record(bytes, head, |out| entry.encode_members(rules, out))
            });
            if fits {
                frames.extend_from_slice(frame);
                *records += 1;
            } else {
                let weight = frame.len() as u64;
                self.shared.counters.dropped.fetch_add(1, Ordering::Relaxed);
                self.shared.leave_queue(1, weight);
                self.shared.spill.held_records.fetch_sub(1, Ordering::SeqCst);
                self.shared.spill.held_bytes.fetch_sub(weight, Ordering::SeqCst);
            }
            self.pending.advance();
            self.pending.confirm();
        }
        *records > 0
    }

    fn write_piece(&mut self) -> io::Result<()> {
        let counters = Arc::clone(&self.shared.counters);
        let len = self.piece.bytes.len() as u64;
        if counters.spill_bytes.load(Ordering::Relaxed) + len > self.max_bytes {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the spill files have reached journal.spill_bytes"));
        }
        if self.filling.as_ref().is_some_and(|filling| filling.facts.len + len > FILE_BYTES) {
            self.close_file();
        }
        if self.filling.is_none() {
            self.filling = Some(self.create()?);
        }
        let Some(filling) = &mut self.filling else { return Ok(()) };
        let len = filling.append(&self.piece.bytes)?;
        filling.facts.records += self.piece.records;
        self.next += self.piece.records;
        let (records, weight) = (self.piece.records, self.piece.frames.len() as u64);
        counters.spill_bytes.fetch_add(len, Ordering::Relaxed);
        counters.spilled.fetch_add(records, Ordering::SeqCst);
        self.release(records, weight);
        self.shared.leave_queue(records, weight);
        self.piece.clear();
        Ok(())
    }

    fn create(&self) -> io::Result<Filling> {
        let path = spill_path(&self.dir, self.next);
        let (seal, cipher) = self.shared.keys.for_new_file()?.unzip();
        let head = Head { first_seq: self.next, created_ms: (self.clock)(), form: Form::Records, seal };
        let make = || {
            let mut file = self.disk.create(&path)?;
            file.write_all_at(&head.encode(), 0)?;
            file.sync_data()?;
            failpoint::hit("spill.after_head");
            self.disk.sync_dir(&self.dir)?;
            Ok(file)
        };
        let file = make().inspect_err(|_: &io::Error| {
            // Without its head it holds nothing; the next start removes it if this cannot.
            fs::remove_file(&path).ok();
        })?;
        self.shared.counters.spill_bytes.fetch_add(head.bytes(), Ordering::Relaxed);
        let facts = SpillFile { path, first: self.next, len: head.bytes(), records: 0 };
        Ok(Filling { file, cipher, facts, has_failed_attempt: false })
    }

    /// Lets the journal have the file.
    fn close_file(&mut self) {
        if let Some(filling) = self.filling.take() {
            self.shared.spill.files.lock().push_back(filling.facts);
            self.shared.wake_journal();
        }
    }

    /// Gives what could not be written back to the queue.
    fn hand_back(&mut self) {
        let mut any = false;
        for (_, frame) in frames(&self.piece.frames) {
            self.give(frame);
            any = true;
        }
        self.piece.clear();
        while let Some(frame) = self.pending.first() {
            self.give(frame);
            any = true;
            self.pending.advance();
        }
        self.pending.confirm();
        if any {
            self.shared.wake_journal();
        }
    }

    fn give(&self, frame: &[u8]) {
        let weight = frame.len() as u64;
        if !self.shared.queue.push_bytes(frame) {
            self.shared.give_up(1, weight);
        }
        self.release(1, weight);
    }

    fn sleep(&mut self) {
        // Nobody waits for these records; syncing for each one would only cost.
        thread::park_timeout(GAP);
        let spill = &self.shared.spill;
        spill.is_asleep.store(true, Ordering::SeqCst);
        let has_work = self.is_pressed() && !self.shared.queue.is_empty();
        if !has_work && !spill.stopping.load(Ordering::SeqCst) {
            thread::park_timeout(if self.filling.is_some() { IDLE } else { LONG });
        }
        spill.is_asleep.store(false, Ordering::SeqCst);
        if !self.is_pressed() {
            self.close_file();
        }
    }

    /// The journal has ended before. What it could not write is written here, or given up after a few tries.
    fn end(&mut self) {
        for _ in 0..STOP_TRIES {
            if self.round().is_ok() && self.shared.queue.is_empty() {
                break;
            }
            thread::park_timeout(BACKOFF_FIRST);
        }
        self.give_up();
        self.close_file();
    }

    fn give_up(&mut self) {
        let (records, weight) = self.shared.queue.close();
        self.shared.give_up(records, weight);
        self.hand_back();
    }
}

impl Piece {
    fn clear(&mut self) {
        self.frames.clear();
        self.bytes.clear();
        self.records = 0;
    }
}

impl Drop for SpillThread {
    fn drop(&mut self) {
        // However the thread ended, nothing more may be sent here.
        self.shared.spill.is_broken.store(true, Ordering::SeqCst);
        if thread::panicking() {
            self.hand_back();
        }
    }
}

/// Takes over what earlier runs left, whatever the policy is now, and starts the thread if there is to be one.
pub(super) fn open(
    shared: &Arc<Shared>,
    config: &JournalConfig,
    clock: Clock,
    disk: Box<dyn Disk>,
) -> io::Result<(Replay, Option<thread::JoinHandle<()>>)> {
    let spills = config.overflow == Overflow::Spill;
    if !spills && !config.spill_dir.exists() {
        return Ok((Replay::default(), None));
    }
    let lock = lock_dir(&config.spill_dir, &*disk)?;
    let leftover = take_stock(&config.spill_dir, &config.dir, &config.keys)?;
    failpoint::hit("spill.after_stock");
    disk.sync_dir(&config.spill_dir)?;
    let next = leftover.next;
    let mut replay = take_over(shared, leftover);
    replay.lock = Some(lock);
    let place = (config.spill_dir.clone(), config.spill_bytes);
    let join = if spills { Some(SpillThread::start(Arc::clone(shared), disk, clock, place, next)?) } else { None };
    Ok((replay, join))
}

fn spill_path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}.spill"))
}
