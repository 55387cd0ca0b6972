//! The writer actor: owns the conversation journal's segment and spill files. Nothing else writes, cuts or deletes them.
//!
//! Callers show a finished call to [`Journal::emit`] and go on: its bytes are copied into the queue, which never blocks
//! on the disk, never fails and allocates nothing per record. One thread drains the queue on a short period, encodes and
//! redacts, writes one batch, syncs once, and only then counts the batch as written and lets readers see it. It is never
//! woken per record.
//!
//! What holds always, once the callers are quiet: `emitted = written + spilled + dropped + queued`. After a failed
//! write or sync the file is cut back to its last acknowledged byte and the same batch is tried again, so that no
//! record is doubled or torn; meanwhile new ones wait. Past the queue's bounds the policy decides ([`Overflow`]): they are
//! dropped, or [wait](Parked) with their call for a bounded time, or had been [spilled](spill) to another disk before.
//!
//! It never reads a clock of its own and never looks inside a conversation, but to redact it.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

mod blocks;
mod detect;
mod envelope;
mod frame;
mod head;
mod index;
mod keeping;
mod keys;
mod park;
mod query;
mod queue;
mod reader;
mod record;
mod redact;
mod replay;
pub(in crate::actors) mod segment;
mod sidecar;
mod source;
mod spill;
#[cfg(test)]
mod testing;
mod thread;
mod upkeep;
mod verify;

use frame::Frame;
use query::{PageQuery, Segment};
use queue::Queue;
use sidecar::Budget;
use spill::Spill;
use thread::Writer;
use upkeep::{Upkeep, Wants};

pub use keys::{JournalKeys, KeyId};
pub use park::Parked;
pub use query::{Filter, MAX_PAGE_BYTES, MAX_PAGE_SIZE, Page};
pub use reader::JournalReader;
pub use record::{ConversationEntry, MAX_JSON_DEPTH, MAX_TEXT_BYTES};
pub use redact::Redaction;
pub use segment::{Disk, LocalDisk, SegmentFile};
pub use verify::{KeyUse, VerifyReport};

pub use crate::config::Overflow;

/// The time, in Unix milliseconds.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// How the journal is kept.
#[derive(Debug, Clone)]
pub struct JournalConfig {
    /// Where the segments are; made when missing. One running server per directory.
    pub dir: PathBuf,
    /// False: nothing is written or counted; what is there can still be read.
    pub enabled: bool,
    /// Waiting records that wake the thread before `flush_interval` has passed.
    pub batch_records: u64,
    /// Longest time a record waits for its batch when nothing fails.
    pub flush_interval: Duration,
    /// Shortest time between two batches that `batch_records` asked for. Syncing as often as the disk allows costs
    /// more than it gains: nobody waits for these records.
    pub batch_gap: Duration,
    /// Bound on the records that wait, in bytes: their texts, and about 100 bytes each.
    pub queue_bytes: u64,
    /// Bound on their number; 0: only their bytes count.
    pub queue_records: u64,
    /// A segment is sealed before it grows past this many bytes (clamped to 4 KiB..=1 GiB), give or take one record.
    pub segment_bytes: u64,
    /// A segment with records in it is sealed at this age.
    pub segment_age: Duration,
    /// Whether each batch is synced before it counts as written.
    pub sync: bool,
    /// Sealed segments whose newest record is older than this are deleted.
    pub retention: Option<Duration>,
    /// While all files together are larger than this many bytes, the oldest sealed segment is deleted.
    pub retention_bytes: Option<u64>,
    /// What happens at the queue's bound.
    pub overflow: Overflow,
    /// With [`Overflow::Wait`]: the longest that [`Parked::wait`] takes.
    pub max_wait: Duration,
    /// Waiting bytes above which the thread writes at once and, with [`Overflow::Spill`], records go to `spill_dir`.
    pub spill_above_bytes: u64,
    /// Where spill files are; made when missing, if the policy asks for it. What earlier runs left there goes into the
    /// journal in any case.
    pub spill_dir: PathBuf,
    /// Bound on all spill files together, in bytes.
    pub spill_bytes: u64,
    /// What is taken out of records before they reach a disk.
    pub redaction: Arc<Redaction>,
    /// zstd's level for sealed segments; none leaves them as they are.
    pub compression: Option<i32>,
    /// What segments are encrypted with, new ones and, at leisure, those that are there.
    pub keys: JournalKeys,
}

impl JournalConfig {
    /// The defaults, in `dir`.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        Self {
            spill_dir: dir.join("spill"),
            dir,
            enabled: true,
            batch_records: 50,
            flush_interval: Duration::from_secs(1),
            batch_gap: Duration::from_millis(20),
            queue_bytes: 64 << 20,
            segment_bytes: 64 << 20,
            segment_age: Duration::from_secs(24 * 3600),
            sync: true,
            retention: None,
            retention_bytes: None,
            overflow: Overflow::Drop,
            queue_records: 0,
            max_wait: Duration::from_millis(50),
            spill_above_bytes: 32 << 20,
            spill_bytes: 1 << 30,
            redaction: Arc::default(),
            compression: None,
            keys: JournalKeys::default(),
        }
    }
}

/// What the journal counts. `emitted = written + spilled + dropped + queue_records` whenever nothing is on its way between
/// two of them. While something is, it counts in both: read `emitted` first and then along the way of a record
/// (`queue_records`, `spilled`, `written`, `dropped`), and no record is ever missing.
///
/// All together in two cache lines: an `emit` changes three of them, and fetching one line from another core is what
/// that costs.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct JournalCounters {
    /// Records handed over, and those of earlier runs that were found in spill files.
    pub emitted: AtomicU64,
    /// Gauge: bytes of waiting records, as they lie in the queue.
    pub queue_bytes: AtomicU64,
    /// Gauge: waiting records.
    pub queue_records: AtomicU64,
    /// Records on disk (and synced, unless `sync` is off).
    pub written: AtomicU64,
    /// Gauge: records in spill files, synced. When they have come into the journal they count as written instead.
    pub spilled: AtomicU64,
    /// Records given up: past the queue's bound, after the stop, or larger than a record may be.
    pub dropped: AtomicU64,
    /// Writes, syncs, rotations and deletions that failed.
    pub write_errors: AtomicU64,
    /// Batches written.
    pub batches: AtomicU64,
    /// Gauge: segment files.
    pub segments: AtomicU64,
    /// Bytes cut from the newest segment at the start: what a crash left of an unfinished batch.
    pub torn_bytes: AtomicU64,
    /// Stretches in the newest segment, found at the start, that are no records though records follow.
    pub damaged: AtomicU64,
    /// Records that a page could not show.
    pub read_errors: AtomicU64,
    /// Sidecar indexes built anew.
    pub index_rebuilds: AtomicU64,
    /// Segments that retention deleted.
    pub segments_deleted: AtomicU64,
    /// Gauge: bytes of all spill files.
    pub spill_bytes: AtomicU64,
    /// Writes and syncs of spill files that failed, or found no room under the bound.
    pub spill_errors: AtomicU64,
    /// Gauge: calls that wait for room for their record.
    pub parked: AtomicU64,
    /// Gauge: bytes of those records. They are not handed over yet.
    pub parked_bytes: AtomicU64,
    /// Gauge: sealed segments that wait to be indexed, compressed or encrypted.
    pub segments_waiting: AtomicU64,
    /// Sealed segments that were rewritten.
    pub rewritten: AtomicU64,
    /// Bytes of these before.
    pub rewritten_from_bytes: AtomicU64,
    /// Bytes of these after.
    pub rewritten_to_bytes: AtomicU64,
}

/// The journal's handle: cheap to clone, shared by all threads. When the last clone goes, the journal stops.
#[derive(Clone)]
pub struct Journal {
    handle: Arc<Handle>,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("dir", &self.handle.shared.dir).finish_non_exhaustive()
    }
}

struct Handle {
    shared: Arc<Shared>,
    join: Mutex<Option<Threads>>,
    spill_join: Mutex<Option<JoinHandle<()>>>,
}

/// The threads that own the segments.
struct Threads {
    writer: JoinHandle<io::Result<()>>,
    upkeep: JoinHandle<()>,
}

/// What the callers and the journal's thread have in common.
struct Shared {
    dir: PathBuf,
    enabled: bool,
    batch_records: u64,
    queue_bytes: u64,
    queue_records: u64,
    /// Waiting bytes from which on the thread goes on at once.
    urgent_bytes: u64,
    /// With [`Overflow::Wait`].
    max_wait: Option<Duration>,
    counters: Arc<JournalCounters>,
    queue: Queue,
    /// Places taken in the queue, where their number is bounded.
    places: AtomicU64,
    spill: Spill,
    redaction: Arc<Redaction>,
    /// Told when records leave the queue and somebody waits for room.
    room: Notify,
    thread: OnceLock<Thread>,
    catalog: RwLock<Catalog>,
    keys: JournalKeys,
    /// How sealed segments are to be.
    wants: Wants,
    /// Held while a sealed segment's files are replaced or deleted.
    files: Mutex<()>,
    /// Memory for what is kept of sidecars.
    budget: Arc<Budget>,
    /// Does the work on sealed segments.
    upkeep: OnceLock<Thread>,
    /// True while it has nothing to do and may be woken.
    upkeep_rests: AtomicBool,
    waiters: Mutex<Waiters>,
    /// True while the thread sleeps and the next full batch may wake it; one wake-up per sleep.
    wakeable: AtomicBool,
    /// True while somebody waits in `waiters`.
    flush_wanted: AtomicBool,
    stopping: AtomicBool,
    /// Records were given up because the journal ended; a flush afterwards must not say that all is well.
    lost_at_end: AtomicBool,
}

/// The segments, oldest first; the one being written is apart. Readers clone the list and let go of the lock.
#[derive(Default)]
struct Catalog {
    sealed: Vec<Arc<Segment>>,
    active: Option<Segment>,
}

type Waiter = Box<dyn FnOnce(io::Result<()>) + Send>;

#[derive(Default)]
struct Waiters {
    waiting: Vec<Waiter>,
    closed: bool,
}

impl Journal {
    /// Opens the journal on the local disk and starts its thread, `tollgate-journal`. A torn tail is cut and counted;
    /// damage in the middle is counted and passed by. Fails when the directory cannot be read or written, or another
    /// server has it.
    pub fn start(config: JournalConfig, clock: Clock) -> io::Result<Self> {
        Self::start_on(config, clock, Box::new(LocalDisk), Box::new(LocalDisk))
    }

    /// As [`Journal::start`], on disks of the caller's choice for the segments and for the spill.
    pub fn start_on(
        config: JournalConfig,
        clock: Clock,
        disk: Box<dyn Disk>,
        spill_disk: Box<dyn Disk>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(&config));
        let handle = |join, spill_join| {
            let (join, spill_join) = (Mutex::new(join), Mutex::new(spill_join));
            Self { handle: Arc::new(Handle { shared: Arc::clone(&shared), join, spill_join }) }
        };
        if !config.enabled {
            shared.close();
            return Ok(handle(None, None));
        }
        let disk: Arc<dyn Disk> = Arc::from(disk);
        let mut writer = Writer::open(Arc::clone(&shared), config.clone(), Arc::clone(&clock), Arc::clone(&disk))?;
        let upkeep = Upkeep { shared: Arc::clone(&shared), disk, _lock: Arc::clone(&writer.lock) };
        let (replay, spill_join) = spill::open(&shared, &config, clock, spill_disk)?;
        writer.replay = replay;
        let spawn = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let threads = spawn("tollgate-journal-seal").spawn(move || upkeep.run()).and_then(|upkeep| {
            shared.upkeep.set(upkeep.thread().clone()).ok();
            let writer = spawn("tollgate-journal").spawn(move || writer.run())?;
            shared.thread.set(writer.thread().clone()).ok();
            Ok(Threads { writer, upkeep })
        });
        let threads = threads.inspect_err(|_| {
            shared.stopping.store(true, Ordering::SeqCst);
            shared.upkeep.get().into_iter().for_each(Thread::unpark);
            shared.spill.stop();
        })?;
        Ok(handle(Some(threads), spill_join))
    }

    /// Hands one finished call over; it is copied. Never waits and never fails; past the queue's bound the entry is
    /// dropped and counted.
    pub fn emit(&self, entry: &ConversationEntry<'_>) {
        let shared = &self.handle.shared;
        if !shared.enabled {
            return;
        }
        let frame = Frame::of(entry);
        if !shared.place(frame.len() as u64, |queue| queue.push(&frame)) {
            shared.refuse();
        }
    }

    /// As [`Journal::emit`], but with [`Overflow::Wait`] an entry without room is given back, to be waited for.
    #[must_use]
    pub fn emit_or_wait(&self, entry: &ConversationEntry<'_>) -> Option<Parked> {
        let shared = &self.handle.shared;
        if !shared.enabled {
            return None;
        }
        let frame = Frame::of(entry);
        if shared.place(frame.len() as u64, |queue| queue.push(&frame)) {
            return None;
        }
        let parked = shared.max_wait.and_then(|longest| Parked::new(shared, &frame, longest));
        if parked.is_none() {
            shared.refuse();
        }
        parked
    }

    /// Waits until everything emitted before is on disk, but for what the spill has in its hands just now. Fails when a write fails meanwhile (the records then go on
    /// waiting and are tried again) or the journal ended with records unwritten.
    pub fn flush(&self) -> io::Result<()> {
        self.flush_begin().recv().unwrap_or_else(|_| Err(ended()))
    }

    /// As [`Journal::flush`], giving up after `limit` with `TimedOut`.
    pub fn flush_within(&self, limit: Duration) -> io::Result<()> {
        match self.flush_begin().recv_timeout(limit) {
            Ok(result) => result,
            Err(mpsc::RecvTimeoutError::Timeout) => Err(io::ErrorKind::TimedOut.into()),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(ended()),
        }
    }

    /// Asks for a flush; the receiver hears of its end.
    #[must_use]
    pub fn flush_begin(&self) -> mpsc::Receiver<io::Result<()>> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.flush_then(move |result| {
            // The caller may have stopped waiting; that is no concern of the journal's.
            sender.send(result).ok();
        });
        receiver
    }

    /// Asks for a flush; `done` is called once at its end, on the journal's thread: it must not block or panic.
    /// Async callers send on a oneshot channel from it.
    pub fn flush_then(&self, done: impl FnOnce(io::Result<()>) + Send + 'static) {
        let shared = &self.handle.shared;
        let mut waiters = shared.waiters.lock();
        if waiters.closed {
            drop(waiters);
            return done(shared.closed_result());
        }
        waiters.waiting.push(Box::new(done));
        shared.flush_wanted.store(true, Ordering::SeqCst);
        drop(waiters);
        shared.wake_journal();
    }

    /// Writes what waits, ends the thread and waits for its end; seals nothing. Later emits count as dropped. With a
    /// disk that fails, gives up after a few tries: what is left is dropped and counted, and the error returned.
    pub fn stop(&self) -> io::Result<()> {
        self.handle.stop()
    }

    /// One user's conversations: [`Journal::search`] with nothing else.
    pub fn page(&self, user_id: u64, page: u64, page_size: usize) -> io::Result<Page> {
        self.search(&Filter::user(user_id), page, page_size)
    }

    /// The conversations that `filter` lets through, newest first, over all segments; never waits for the disk's writes.
    /// `page` counts from 1, `page_size` is clamped to 1..=200. Shows what is written: call [`Journal::flush`] first to
    /// see a call that has just ended. Reads files: call it where blocking is allowed.
    pub fn search(&self, filter: &Filter, page: u64, page_size: usize) -> io::Result<Page> {
        let shared = &self.handle.shared;
        let page = if shared.enabled {
            shared.search(filter, page, page_size)?
        } else {
            search_files(shared, filter, page, page_size)?
        };
        shared.counters.read_errors.fetch_add(page.unreadable, Ordering::Relaxed);
        Ok(page)
    }

    /// The counters, for the metrics page.
    #[must_use]
    pub fn counters(&self) -> Arc<JournalCounters> {
        Arc::clone(&self.handle.shared.counters)
    }
}

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the journal has ended")
}

/// A journal that was never written has no directory; that is no error.
fn search_files(shared: &Shared, filter: &Filter, page: u64, page_size: usize) -> io::Result<Page> {
    match JournalReader::open_with(&shared.dir, shared.keys.clone()) {
        Ok(reader) => reader.search(filter, page, page_size),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Page::default()),
        Err(error) => Err(error),
    }
}

impl Handle {
    fn stop(&self) -> io::Result<()> {
        let Some(Threads { writer, upkeep }) = self.join.lock().take() else {
            return Ok(());
        };
        self.shared.stopping.store(true, Ordering::SeqCst);
        writer.thread().unpark();
        upkeep.thread().unpark();
        if writer.thread().id() == std::thread::current().id() {
            self.shared.spill.stop();
            return Ok(()); // the last clone went inside a flush callback; the threads end by themselves
        }
        let result = writer.join().unwrap_or_else(|_| Err(ended()));
        // It only ever works on what is safe already.
        upkeep.join().ok();
        // After the journal: what that could not write goes to the spill.
        self.shared.spill.stop();
        if let Some(spill) = self.spill_join.lock().take() {
            spill.join().ok(); // its counters say what became of the records
        }
        result
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // Nobody is left to hear of an error; the counters have it.
        self.stop().ok();
    }
}

impl Shared {
    fn new(config: &JournalConfig) -> Self {
        Self {
            dir: config.dir.clone(),
            enabled: config.enabled,
            batch_records: config.batch_records.max(1),
            queue_bytes: config.queue_bytes,
            queue_records: config.queue_records,
            urgent_bytes: config.spill_above_bytes.min(config.queue_bytes / 2),
            max_wait: (config.overflow == Overflow::Wait).then_some(config.max_wait),
            counters: Arc::default(),
            queue: Queue::default(),
            places: AtomicU64::new(0),
            spill: Spill::new(config.spill_above_bytes.min(config.queue_bytes)),
            redaction: Arc::clone(&config.redaction),
            room: Notify::new(),
            thread: OnceLock::new(),
            catalog: RwLock::default(),
            keys: config.keys.clone(),
            wants: Wants { level: config.compression, key_id: config.keys.current_id() },
            files: Mutex::default(),
            budget: Arc::default(),
            upkeep: OnceLock::new(),
            upkeep_rests: AtomicBool::new(false),
            waiters: Mutex::default(),
            wakeable: AtomicBool::new(false),
            flush_wanted: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            lost_at_end: AtomicBool::new(false),
        }
    }

    /// Counts a record in and has `push` put it into the queue. False when there is no room, and nothing has changed.
    fn place(&self, weight: u64, push: impl FnOnce(&Queue) -> bool) -> bool {
        let counters = &*self.counters;
        let before = counters.queue_bytes.fetch_add(weight, Ordering::Relaxed);
        let fits = before + weight <= self.queue_bytes && self.take_place();
        if !fits {
            counters.queue_bytes.fetch_sub(weight, Ordering::Relaxed);
            return false;
        }
        // Counted before it can be drained, so that the gauge never goes below zero, and before it is `emitted`.
        let waiting = counters.queue_records.fetch_add(1, Ordering::SeqCst) + 1;
        counters.emitted.fetch_add(1, Ordering::SeqCst);
        if !push(&self.queue) {
            self.give_up(1, weight);
            return true;
        }
        self.spill.note(before + weight);
        if self.has_to_wake(waiting, before, weight) {
            self.wake_journal();
        }
        true
    }

    fn take_place(&self) -> bool {
        if self.queue_records == 0 {
            return true;
        }
        let fits = self.places.fetch_add(1, Ordering::SeqCst) < self.queue_records;
        if !fits {
            self.places.fetch_sub(1, Ordering::SeqCst);
        }
        fits
    }

    /// Counts a record that found no room.
    fn refuse(&self) {
        self.counters.dropped.fetch_add(1, Ordering::SeqCst);
        self.counters.emitted.fetch_add(1, Ordering::SeqCst);
    }

    fn wake_journal(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// A full batch wakes a sleeping thread once; a queue that crosses half a bound wakes it whatever it waits for.
    fn has_to_wake(&self, waiting: u64, before: u64, weight: u64) -> bool {
        let crossed_half = before < self.urgent_bytes && before + weight >= self.urgent_bytes
            || self.queue_records > 0 && waiting == self.queue_records.div_ceil(2);
        let full_batch = waiting >= self.batch_records
            && self.wakeable.load(Ordering::SeqCst)
            && self.wakeable.swap(false, Ordering::SeqCst);
        crossed_half || full_batch
    }

    /// Whether the thread has to go on at once. What the spill has in its hands is no work for it.
    fn is_urgent(&self) -> bool {
        let (held_records, held_bytes) = self.spill.held();
        let bytes = self.counters.queue_bytes.load(Ordering::Relaxed).saturating_sub(held_bytes);
        let records = self.counters.queue_records.load(Ordering::SeqCst).saturating_sub(held_records);
        let is_crowded = self.queue_records > 0 && records >= self.queue_records.div_ceil(2);
        self.is_called() || bytes >= self.urgent_bytes.max(1) || is_crowded
    }

    /// Whether somebody waits for the thread.
    fn is_called(&self) -> bool {
        self.stopping.load(Ordering::SeqCst) || self.flush_wanted.load(Ordering::SeqCst)
    }

    fn has_full_batch(&self) -> bool {
        let waiting = self.counters.queue_records.load(Ordering::SeqCst);
        waiting.saturating_sub(self.spill.held().0) >= self.batch_records
    }

    /// Takes records out of the queue that will never be written, since the journal has ended.
    fn give_up(&self, records: u64, weight: u64) {
        self.counters.dropped.fetch_add(records, Ordering::SeqCst);
        self.leave_queue(records, weight);
        self.lost_at_end.fetch_or(records > 0, Ordering::SeqCst);
    }

    fn leave_queue(&self, records: u64, weight: u64) {
        self.counters.queue_records.fetch_sub(records, Ordering::SeqCst);
        self.counters.queue_bytes.fetch_sub(weight, Ordering::SeqCst);
        if self.queue_records > 0 {
            self.places.fetch_sub(records, Ordering::SeqCst);
        }
        if self.counters.parked.load(Ordering::SeqCst) > 0 {
            self.room.notify_waiters();
        }
    }

    fn take_waiters(&self) -> Vec<Waiter> {
        let mut waiters = self.waiters.lock();
        self.flush_wanted.store(false, Ordering::SeqCst);
        std::mem::take(&mut waiters.waiting)
    }

    /// Ends the journal for callers, however its thread ended: gives up what still waits in the shards and answers
    /// whoever waits for a flush.
    fn close(&self) {
        // With a spill, its thread ends the queue.
        if !self.spill.is_on() {
            let (records, weight) = self.queue.close();
            self.give_up(records, weight);
        }
        self.room.notify_waiters();
        let mut waiters = self.waiters.lock();
        waiters.closed = true;
        let waiting = std::mem::take(&mut waiters.waiting);
        drop(waiters);
        waiting.into_iter().for_each(|done| done(self.closed_result()));
    }

    /// After the end, a flush is good if nothing was given up for want of a disk.
    fn closed_result(&self) -> io::Result<()> {
        if self.lost_at_end.load(Ordering::SeqCst) { Err(ended()) } else { Ok(()) }
    }

    fn search(&self, filter: &Filter, page: u64, page_size: usize) -> io::Result<Page> {
        let mut query = PageQuery::new(filter, page, page_size, &self.keys);
        let catalog = self.catalog.read();
        if let Some(active) = &catalog.active {
            query.visit(active)?; // in memory: short enough for the lock
        }
        let sealed = catalog.sealed.clone();
        drop(catalog);
        for segment in sealed.iter().rev() {
            query.visit(segment)?;
        }
        query.read()
    }

    fn is_in_catalog(&self, segment: &Arc<Segment>) -> bool {
        self.catalog.read().sealed.iter().any(|kept| Arc::ptr_eq(kept, segment))
    }

    fn replace_sealed(&self, old: &Arc<Segment>, new: Segment) {
        let mut catalog = self.catalog.write();
        if let Some(place) = catalog.sealed.iter_mut().find(|segment| Arc::ptr_eq(segment, old)) {
            *place = Arc::new(new);
        }
    }

    /// A segment whose file is gone.
    fn forget_sealed(&self, gone: &Arc<Segment>) {
        self.catalog.write().sealed.retain(|segment| !Arc::ptr_eq(segment, gone));
        self.count_segments();
    }

    fn count_segments(&self) {
        let catalog = self.catalog.read();
        let segments = catalog.sealed.len() as u64 + u64::from(catalog.active.is_some());
        self.counters.segments.store(segments, Ordering::Relaxed);
    }

    fn count_waiting(&self) {
        self.counters.segments_waiting.store(upkeep::waiting(self), Ordering::SeqCst);
    }

    /// Has sealed segments looked after, if one needs it. Never waits.
    fn wake_upkeep(&self) {
        self.count_waiting();
        if self.counters.segments_waiting.load(Ordering::SeqCst) > 0
            && self.upkeep_rests.load(Ordering::SeqCst)
            && let Some(thread) = self.upkeep.get()
        {
            thread.unpark();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::record::tests::entry;
    use super::testing::*;
    use super::*;

    #[test]
    fn what_was_emitted_before_a_flush_is_read_back() {
        let bench = Bench::new();
        let journal = bench.journal();
        emit_numbered(&journal, 1, 0..5);
        emit_numbered(&journal, 2, 10..11);
        journal.flush().unwrap();

        let page = journal.page(1, 1, 3).unwrap();
        assert_eq!((contents(&page), page.total), (vec!["4".into(), "3".into(), "2".into()], 5));
        assert_eq!(contents(&journal.page(1, 2, 3).unwrap()), ["1", "0"]);
        assert_eq!(journal.page(1, 3, 3).unwrap().items, Vec::<String>::new());
        assert_eq!(journal.page(3, 1, 3).unwrap(), Page::default());
        assert_eq!(bench.reader().page(2, 1, 9).unwrap(), journal.page(2, 1, 9).unwrap());
        assert_eq!(balance(&journal), (6, 6, 0, 0));
        assert_eq!(journal.counters().queue_bytes.load(Ordering::SeqCst), 0);
        assert_sound(&bench, 6);
    }

    #[test]
    fn pages_go_over_segments_newest_first() {
        let bench = Bench::new();
        let mut config = bench.config();
        config.segment_bytes = 4096;
        let journal = bench.start(config.clone());
        for number in 0..60_u32 {
            journal.emit(&entry(u64::from(number % 2), &number.to_string()));
            if number % 7 == 0 {
                journal.flush().unwrap();
            }
        }
        journal.flush().unwrap();
        assert!(bench.files("seg").len() > 5);
        assert_eq!(bench.files("idx").len() + 1, bench.files("seg").len());

        let check = |page_of: &dyn Fn(u64) -> Page| {
            let pages: Vec<Page> = (1..=5).map(page_of).collect();
            assert!(pages.iter().all(|page| page.total == 30));
            let all: Vec<String> = pages.iter().flat_map(contents).collect();
            let expected: Vec<String> = (0..60).rev().step_by(2).map(|number| number.to_string()).collect();
            assert_eq!(all, expected);
        };
        check(&|page| journal.page(1, page, 7).unwrap());
        check(&|page| bench.reader().page(1, page, 7).unwrap());
        journal.stop().unwrap();
        let again = bench.start(config);
        check(&|page| again.page(1, page, 7).unwrap());
        assert_eq!(again.counters().index_rebuilds.load(Ordering::SeqCst), 0);
        assert_sound(&bench, 60);
    }

    #[test]
    fn the_bound_is_exact_to_the_byte() {
        let texts = ["", "a", "zwölf", &"x".repeat(300_000), "y"];
        let bytes = |text| Frame::of(&entry(1, text)).len() as u64;
        let all: u64 = texts.iter().map(|text| bytes(text)).sum();
        for (queue_bytes, expected) in [(all, (5, 0, 0, 5)), (all - 1, (5, 0, 1, 4))] {
            let bench = Bench::new();
            let mut config = bench.config();
            config.queue_bytes = queue_bytes;
            let journal = bench.start(config);
            // Also when the disk fails, and some of them have been taken out of the queue.
            bench.faults.lock().writes = u32::MAX;
            texts.iter().for_each(|text| journal.emit(&entry(1, text)));
            assert!(journal.flush().is_err());
            assert_eq!(balance(&journal), expected);
            let held = if expected.2 == 0 { all } else { all - bytes("y") };
            assert_eq!(journal.counters().queue_bytes.load(Ordering::SeqCst), held);

            bench.faults.lock().writes = 0;
            journal.flush().unwrap();
            assert_eq!(journal.counters().queue_bytes.load(Ordering::SeqCst), 0);
            assert_sound(&bench, expected.3);
        }
    }

    #[test]
    fn many_emitters_and_readers_balance() {
        let bench = Bench::new();
        let mut config = bench.config();
        config.batch_records = 50;
        config.batch_gap = Duration::from_millis(1);
        config.segment_bytes = 1 << 20;
        config.queue_bytes = 8 << 20;
        let journal = bench.start(config);
        std::thread::scope(|scope| {
            for user in 0..8 {
                let journal = journal.clone();
                scope.spawn(move || emit_numbered(&journal, user, 0..10_000));
            }
            for user in 0..2 {
                let journal = journal.clone();
                scope.spawn(move || {
                    while balance_emitted(&journal) < 80_000 {
                        let page = journal.page(user, 3, 20).unwrap();
                        assert_eq!(page.unreadable, 0);
                        assert!(ids(&page).is_sorted_by(|newer, older| newer > older));
                    }
                });
            }
        });
        journal.flush().unwrap();
        let (emitted, written, dropped, queued) = balance(&journal);
        assert_eq!((emitted, written + dropped, queued), (80_000, 80_000, 0));
        assert_sound(&bench, written);
        let total: u64 = (0..8).map(|user| journal.page(user, 1, 1).unwrap().total).sum();
        assert_eq!(total, written);
    }

    #[test]
    fn a_disabled_journal_writes_nothing_and_still_reads() {
        let bench = Bench::new();
        let mut config = bench.config();
        config.enabled = false;
        let off = bench.start(config.clone());
        off.emit(&entry(1, "x"));
        off.flush().unwrap();
        assert_eq!((balance(&off), off.page(1, 1, 9).unwrap()), ((0, 0, 0, 0), Page::default()));
        assert!(!config.dir.exists());

        let on = bench.journal();
        emit_numbered(&on, 1, 0..1);
        on.stop().unwrap();
        assert_eq!(off.page(1, 1, 9).unwrap().total, 1);
    }

    #[test]
    fn a_flush_after_the_stop_answers() {
        let bench = Bench::new();
        let journal = bench.journal();
        journal.stop().unwrap();
        journal.flush().unwrap();
        journal.flush_within(HOUR).unwrap();
        journal.emit(&entry(1, "late"));
        assert!(journal.flush().is_err());
        assert_eq!(balance(&journal), (1, 0, 1, 0));
    }
}
