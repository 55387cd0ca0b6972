//! The writer actor: owns the conversation journal's segment files. Nothing else writes, cuts or deletes them.
//!
//! Callers hand a finished call to [`Journal::emit`] and go on: it never blocks on the disk and never fails. One
//! thread drains the queue on a short period, encodes, writes one batch, syncs once, and only then counts the batch
//! as written and lets readers see it. It is never woken per record.
//!
//! What holds always, once the callers are quiet: `emitted = written + spilled + dropped + queued`. After a failed
//! write or sync the file is cut back to its last acknowledged byte and the same batch is tried again, so that no
//! record is doubled or torn; meanwhile new ones wait, and are dropped (and counted) only past the queue's bound.
//!
//! It never reads a clock of its own and never looks inside a conversation.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

mod index;
mod reader;
mod record;
mod segment;

use index::{FileIndex, MemoryIndex, SegmentFacts, index_path, remove_if_there, scan_segment, write_index};
use reader::{Index, PageQuery, Segment};
use segment::{SEGMENT_HEAD_BYTES, SegmentHead, append_record, list_segments, segment_path};

pub use reader::{JournalReader, MAX_PAGE_BYTES, MAX_PAGE_SIZE, Page, VerifyReport};
pub use record::{ConversationEntry, MAX_JSON_DEPTH, MAX_TEXT_BYTES, rfc3339_seconds};
pub use segment::{Disk, LocalDisk, SegmentFile};

/// The time, in Unix milliseconds.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// A batch ends when its encoded bytes reach this, so that a long queue is written in bounded pieces.
const BATCH_BYTES: usize = 4 << 20;
/// What the batch's buffer keeps between batches.
const IDLE_BUFFER_BYTES: usize = 64 << 10;
/// What a queue shard's buffer keeps between drains, in records.
const IDLE_SHARD_RECORDS: usize = 1024;
/// Offsets in an index are 32 bits wide; a batch over this still fits.
const MAX_SEGMENT_BYTES: u64 = 1 << 30;
const SHARDS: usize = 8;
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_LONGEST: Duration = Duration::from_secs(5);
/// How often a stop tries a disk that fails before it gives the waiting records up.
const STOP_TRIES: u32 = 3;

/// What happens to a new record when the queue is at its bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overflow {
    /// The new record is dropped and counted.
    #[default]
    Drop,
}

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
    /// Bound on the memory of records that wait, in bytes ([`ConversationEntry::weight`]).
    pub queue_bytes: u64,
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
}

impl JournalConfig {
    /// The defaults, in `dir`.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
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
        }
    }
}

/// What the journal counts. `emitted = written + spilled + dropped + queue_records` whenever no `emit` is under way.
///
/// All together in two cache lines: an `emit` changes three of them, and fetching one line from another core is what
/// that costs.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct JournalCounters {
    /// Records handed over.
    pub emitted: AtomicU64,
    /// Gauge: memory of waiting records, in bytes.
    pub queue_bytes: AtomicU64,
    /// Gauge: waiting records.
    pub queue_records: AtomicU64,
    /// Records on disk (and synced, unless `sync` is off).
    pub written: AtomicU64,
    /// Records moved out of memory while the disk was behind. Always 0 with [`Overflow::Drop`].
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
    thread: Option<Thread>,
    join: Mutex<Option<JoinHandle<io::Result<()>>>>,
}

/// What the callers and the journal's thread have in common.
struct Shared {
    dir: PathBuf,
    enabled: bool,
    batch_records: u64,
    queue_bytes: u64,
    counters: Arc<JournalCounters>,
    shards: [Shard; SHARDS],
    catalog: RwLock<Catalog>,
    waiters: Mutex<Waiters>,
    /// True while the thread sleeps and the next full batch may wake it; one wake-up per sleep.
    wakeable: AtomicBool,
    /// True while somebody waits in `waiters`.
    flush_wanted: AtomicBool,
    stopping: AtomicBool,
    /// Records were given up because the journal ended; a flush afterwards must not say that all is well.
    lost_at_end: AtomicBool,
}

/// One part of the queue. Threads keep to one shard each, so they rarely meet at its lock.
#[derive(Default)]
#[repr(align(64))]
struct Shard {
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    entries: Vec<ConversationEntry>,
    /// Set under the lock at the end, so that every record is either drained or counted as dropped.
    closed: bool,
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
        Self::start_on(config, clock, Box::new(LocalDisk))
    }

    /// As [`Journal::start`], on a disk of the caller's choice.
    pub fn start_on(config: JournalConfig, clock: Clock, disk: Box<dyn Disk>) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(&config));
        if !config.enabled {
            shared.close();
            return Ok(Self { handle: Arc::new(Handle { shared, thread: None, join: Mutex::new(None) }) });
        }
        let writer = Writer::open(Arc::clone(&shared), config, clock, disk)?;
        let join = thread::Builder::new().name("tollgate-journal".to_owned()).spawn(move || writer.run())?;
        let thread = Some(join.thread().clone());
        Ok(Self { handle: Arc::new(Handle { shared, thread, join: Mutex::new(Some(join)) }) })
    }

    /// Hands one finished call over. Never waits for the disk and never fails; past the queue's bound the entry is
    /// dropped and counted.
    pub fn emit(&self, entry: ConversationEntry) {
        let shared = &*self.handle.shared;
        if !shared.enabled {
            return;
        }
        let counters = &*shared.counters;
        counters.emitted.fetch_add(1, Ordering::Relaxed);
        let weight = entry.weight() as u64;
        let before = counters.queue_bytes.fetch_add(weight, Ordering::Relaxed);
        if before + weight > shared.queue_bytes {
            counters.queue_bytes.fetch_sub(weight, Ordering::Relaxed);
            counters.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        // Counted before it can be drained, so that the gauge never goes below zero.
        let waiting = counters.queue_records.fetch_add(1, Ordering::SeqCst) + 1;
        if !shared.push(entry) {
            return shared.give_up(1, weight);
        }
        if shared.has_to_wake(waiting, before, weight) {
            self.wake();
        }
    }

    /// Waits until everything emitted before is on disk. Fails when a write fails meanwhile (the records then go on
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
        self.wake();
    }

    /// Writes what waits, ends the thread and waits for its end; seals nothing. Later emits count as dropped. With a
    /// disk that fails, gives up after a few tries: what is left is dropped and counted, and the error returned.
    pub fn stop(&self) -> io::Result<()> {
        self.handle.stop()
    }

    /// One user's conversations, newest first, over all segments; never waits for the disk's writes. `page` counts
    /// from 1, `page_size` is clamped to 1..=200. Shows what is written: call [`Journal::flush`] first to see a call
    /// that has just ended. Reads files: call it where blocking is allowed.
    pub fn page(&self, user_id: u64, page: u64, page_size: usize) -> io::Result<Page> {
        let shared = &self.handle.shared;
        let page = if shared.enabled {
            shared.page(user_id, page, page_size)?
        } else {
            page_of_files(&shared.dir, user_id, page, page_size)?
        };
        shared.counters.read_errors.fetch_add(page.unreadable, Ordering::Relaxed);
        Ok(page)
    }

    /// The counters, for the metrics page.
    #[must_use]
    pub fn counters(&self) -> Arc<JournalCounters> {
        Arc::clone(&self.handle.shared.counters)
    }

    fn wake(&self) {
        if let Some(thread) = &self.handle.thread {
            thread.unpark();
        }
    }
}

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the journal has ended")
}

/// A journal that was never written has no directory; that is no error.
fn page_of_files(dir: &Path, user_id: u64, page: u64, page_size: usize) -> io::Result<Page> {
    match JournalReader::open(dir) {
        Ok(reader) => reader.page(user_id, page, page_size),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Page::default()),
        Err(error) => Err(error),
    }
}

impl Handle {
    fn stop(&self) -> io::Result<()> {
        let Some(join) = self.join.lock().take() else {
            return Ok(());
        };
        self.shared.stopping.store(true, Ordering::SeqCst);
        join.thread().unpark();
        if join.thread().id() == thread::current().id() {
            return Ok(()); // the last clone went inside a flush callback; the thread ends by itself
        }
        join.join().unwrap_or_else(|_| Err(ended()))
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
            counters: Arc::default(),
            shards: std::array::from_fn(|_| Shard::default()),
            catalog: RwLock::default(),
            waiters: Mutex::default(),
            wakeable: AtomicBool::new(false),
            flush_wanted: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            lost_at_end: AtomicBool::new(false),
        }
    }

    /// False when the journal has ended.
    fn push(&self, entry: ConversationEntry) -> bool {
        let Some(shard) = self.shards.get(my_shard()) else {
            return false;
        };
        let mut queue = shard.queue.lock();
        if !queue.closed {
            queue.entries.push(entry);
        }
        !queue.closed
    }

    /// A full batch wakes a sleeping thread once; a queue that crosses half its bound wakes it whatever it waits for.
    fn has_to_wake(&self, waiting: u64, before: u64, weight: u64) -> bool {
        let half = self.queue_bytes / 2;
        let crossed_half = before < half && before + weight >= half;
        let full_batch = waiting >= self.batch_records
            && self.wakeable.load(Ordering::SeqCst)
            && self.wakeable.swap(false, Ordering::SeqCst);
        crossed_half || full_batch
    }

    /// Whether the thread has to go on at once.
    fn is_urgent(&self) -> bool {
        self.is_called() || self.counters.queue_bytes.load(Ordering::Relaxed) >= self.queue_bytes / 2
    }

    /// Whether somebody waits for the thread.
    fn is_called(&self) -> bool {
        self.stopping.load(Ordering::SeqCst) || self.flush_wanted.load(Ordering::SeqCst)
    }

    fn has_full_batch(&self) -> bool {
        self.counters.queue_records.load(Ordering::SeqCst) >= self.batch_records
    }

    /// Takes records out of the queue that will never be written, since the journal has ended.
    fn give_up(&self, records: u64, weight: u64) {
        self.counters.dropped.fetch_add(records, Ordering::Relaxed);
        self.leave_queue(records, weight);
        self.lost_at_end.fetch_or(records > 0, Ordering::SeqCst);
    }

    fn leave_queue(&self, records: u64, weight: u64) {
        self.counters.queue_records.fetch_sub(records, Ordering::SeqCst);
        self.counters.queue_bytes.fetch_sub(weight, Ordering::Relaxed);
    }

    fn take_waiters(&self) -> Vec<Waiter> {
        let mut waiters = self.waiters.lock();
        self.flush_wanted.store(false, Ordering::SeqCst);
        std::mem::take(&mut waiters.waiting)
    }

    /// Ends the journal for callers, however its thread ended: gives up what still waits in the shards and answers
    /// whoever waits for a flush.
    fn close(&self) {
        for shard in &self.shards {
            let mut queue = shard.queue.lock();
            queue.closed = true;
            let left = std::mem::take(&mut queue.entries);
            drop(queue);
            self.give_up(left.len() as u64, left.iter().map(|entry| entry.weight() as u64).sum());
        }
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

    fn page(&self, user_id: u64, page: u64, page_size: usize) -> io::Result<Page> {
        let mut query = PageQuery::new(user_id, page, page_size);
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
}

/// The calling thread's shard, given out in turn.
fn my_shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    MINE.try_with(|mine| {
        if mine.get() == usize::MAX {
            mine.set(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
        }
        mine.get()
    })
    .unwrap_or(0)
}

/// Encoded records on their way to the disk. Kept as they are until the disk has them: a retry writes the same bytes.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    marks: Vec<Mark>,
    weight: u64,
}

/// Where a record begins in its batch, and what the index has to know of it.
struct Mark {
    offset: u64,
    user_id: u64,
    timestamp_ms: u64,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(IDLE_BUFFER_BYTES);
        self.marks.clear();
        self.weight = 0;
    }
}

/// The file being written. `len` is what is acknowledged; bytes past it are an attempt that failed.
struct ActiveFile {
    file: Box<dyn SegmentFile>,
    created_ms: u64,
    len: u64,
    has_failed_attempt: bool,
}

impl ActiveFile {
    /// Puts `bytes` after the acknowledged ones, or leaves nothing of them.
    fn append(&mut self, bytes: &[u8], sync: bool) -> io::Result<()> {
        self.cut_back()?;
        self.has_failed_attempt = true;
        let result = self.file.write_all_at(bytes, self.len).and_then(|()| self.sync(sync));
        if let Err(error) = result {
            // After a failed sync the kernel may call the pages clean though the disk never got them. Cutting them
            // off and writing them anew makes the next sync mean something again.
            self.cut_back().ok();
            return Err(error);
        }
        self.has_failed_attempt = false;
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn sync(&mut self, sync: bool) -> io::Result<()> {
        if sync { self.file.sync_data() } else { Ok(()) }
    }

    fn cut_back(&mut self) -> io::Result<()> {
        if self.has_failed_attempt {
            self.file.set_len(self.len)?;
            self.has_failed_attempt = false;
        }
        Ok(())
    }
}

/// The journal's thread.
struct Writer {
    shared: Arc<Shared>,
    config: JournalConfig,
    clock: Clock,
    disk: Box<dyn Disk>,
    active: Option<ActiveFile>,
    /// The sequence of the next record to be encoded.
    next_seq: u64,
    pending: VecDeque<ConversationEntry>,
    batch: Batch,
    spare: Vec<ConversationEntry>,
    /// Held, not read: while it is locked no other server writes here.
    _lock: File,
}

impl Writer {
    fn open(shared: Arc<Shared>, mut config: JournalConfig, clock: Clock, disk: Box<dyn Disk>) -> io::Result<Self> {
        config.segment_bytes = config.segment_bytes.clamp(4096, MAX_SEGMENT_BYTES);
        let lock = lock_dir(&config.dir, &*disk)?;
        let mut writer = Self {
            shared,
            config,
            clock,
            disk,
            active: None,
            next_seq: 1,
            pending: VecDeque::new(),
            batch: Batch::default(),
            spare: Vec::new(),
            _lock: lock,
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
        remove_leftovers(&self.config.dir)?;
        let mut segments = list_segments(&self.config.dir)?;
        let newest = segments.pop();
        for (first_seq, path) in segments {
            let segment = self.open_sealed(path, first_seq)?;
            self.next_seq = self.next_seq.max(segment.facts.last_seq + 1);
            self.shared.catalog.write().sealed.push(Arc::new(segment));
        }
        if let Some((first_seq, path)) = newest {
            self.open_newest(path, first_seq)?;
        }
        self.count_segments();
        Ok(())
    }

    fn open_sealed(&self, path: PathBuf, first_seq: u64) -> io::Result<Segment> {
        match FileIndex::open(&path, first_seq) {
            Ok(index) => Ok(Segment::sealed(path, index)),
            Err(_) => self.rebuild_index(path, first_seq),
        }
    }

    fn rebuild_index(&self, path: PathBuf, first_seq: u64) -> io::Result<Segment> {
        let scanned = scan_segment(&path, first_seq)?;
        // A sealed segment is never cut, so its index covers the file to its end, torn bytes and all.
        let facts = SegmentFacts { len: scanned.facts.len + scanned.torn_bytes, ..scanned.facts };
        write_index(&*self.disk, &path, &scanned.index, facts)?;
        self.shared.counters.index_rebuilds.fetch_add(1, Ordering::Relaxed);
        let index = FileIndex::open(&path, first_seq)?;
        Ok(Segment::sealed(path, index))
    }

    /// The newest segment may end in an unfinished batch. If it is sound otherwise, writing goes on in it; a damaged
    /// one is sealed as it is, so that nothing new is put at risk and the evidence stays.
    fn open_newest(&mut self, path: PathBuf, first_seq: u64) -> io::Result<()> {
        let file_len = fs::metadata(&path)?.len();
        self.next_seq = self.next_seq.max(first_seq);
        if file_len < SEGMENT_HEAD_BYTES {
            // Its creation was cut off: nothing can be in it.
            self.shared.counters.torn_bytes.fetch_add(file_len, Ordering::Relaxed);
            return remove_if_there(&path);
        }
        let head = File::open(&path).and_then(|file| SegmentHead::read(&file));
        let scanned = scan_segment(&path, first_seq)?;
        self.next_seq = self.next_seq.max(scanned.facts.last_seq + 1);
        self.shared.counters.damaged.fetch_add(scanned.damaged, Ordering::Relaxed);
        match head {
            Ok(head) if scanned.damaged == 0 && head.first_seq == first_seq => self.resume(path, head, scanned),
            _ => {
                self.next_seq = self.next_seq.max(first_seq + 1); // its name is taken
                let segment = self.rebuild_index(path, first_seq)?;
                self.shared.catalog.write().sealed.push(Arc::new(segment));
                Ok(())
            }
        }
    }

    fn resume(&mut self, path: PathBuf, head: SegmentHead, scanned: index::Scanned) -> io::Result<()> {
        let mut file = self.disk.open(&path)?;
        if scanned.torn_bytes > 0 {
            file.set_len(scanned.facts.len)?;
            file.sync_data()?;
            self.shared.counters.torn_bytes.fetch_add(scanned.torn_bytes, Ordering::Relaxed);
        }
        remove_if_there(&index_path(&path))?; // of a sealing that a crash undid
        let len = scanned.facts.len;
        self.active = Some(ActiveFile { file, created_ms: head.created_ms, len, has_failed_attempt: false });
        self.shared.catalog.write().active = Some(Segment::in_memory(path, scanned.facts, scanned.index));
        Ok(())
    }

    fn run(mut self) -> io::Result<()> {
        let mut backoff = BACKOFF_FIRST;
        loop {
            // Read before the queue is drained: what was emitted before the stop is then in this round.
            let stopping = self.shared.stopping.load(Ordering::SeqCst);
            let result = self.round();
            if stopping {
                return result.map(drop).or_else(|error| self.try_to_the_end(error));
            }
            match result {
                Ok(wrote) => {
                    backoff = BACKOFF_FIRST;
                    self.sleep(wrote);
                }
                Err(_) => {
                    self.sleep_after_failure(backoff);
                    backoff = (backoff * 2).min(BACKOFF_LONGEST);
                }
            }
        }
    }

    /// Writes everything that waits. True when there was something.
    fn round(&mut self) -> io::Result<bool> {
        // Waiters are taken before the queue is drained: what they emitted is then in this round.
        let waiters = self.shared.take_waiters();
        self.drain_queue();
        let result = self.write_waiting();
        match &result {
            Ok(_) => self.keep_house(),
            Err(_) => self.count_error(),
        }
        waiters.into_iter().for_each(|done| done(told(&result)));
        result
    }

    fn drain_queue(&mut self) {
        let known = self.pending.len();
        for shard in &self.shared.shards {
            std::mem::swap(&mut shard.queue.lock().entries, &mut self.spare);
            self.pending.extend(self.spare.drain(..));
            self.spare.shrink_to(IDLE_SHARD_RECORDS);
        }
        // The shards were drained one after another; their records were made at the same time.
        if let Some(new) = self.pending.make_contiguous().get_mut(known..) {
            new.sort_by_key(|entry| entry.timestamp_ms);
        }
    }

    fn write_waiting(&mut self) -> io::Result<bool> {
        let mut wrote = false;
        loop {
            if self.batch.is_empty() {
                self.encode_batch();
            }
            if self.batch.is_empty() {
                self.pending.shrink_to(IDLE_SHARD_RECORDS);
                return Ok(wrote);
            }
            self.commit()?;
            wrote = true;
        }
    }

    fn encode_batch(&mut self) {
        let limit = BATCH_BYTES.min((self.config.segment_bytes - SEGMENT_HEAD_BYTES) as usize);
        while self.batch.bytes.len() < limit {
            let Some(entry) = self.pending.pop_front() else {
                return;
            };
            self.encode(&entry);
        }
    }

    fn encode(&mut self, entry: &ConversationEntry) {
        let offset = self.batch.bytes.len() as u64;
        let (seq, weight) = (self.next_seq, entry.weight() as u64);
        let (user_id, timestamp_ms) = (entry.user_id, entry.timestamp_ms);
        if append_record(&mut self.batch.bytes, (seq, user_id, timestamp_ms), |out| entry.encode(seq, out)) {
            self.next_seq += 1;
            self.batch.weight += weight;
            self.batch.marks.push(Mark { offset, user_id, timestamp_ms });
        } else {
            self.shared.leave_queue(1, weight);
            self.shared.counters.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes and syncs the batch, then lets readers and counters see it.
    fn commit(&mut self) -> io::Result<()> {
        self.make_room()?;
        let Some(active) = &mut self.active else {
            return Err(ended());
        };
        let start = active.len;
        active.append(&self.batch.bytes, self.config.sync)?;
        self.publish(start);
        Ok(())
    }

    fn publish(&mut self, start: u64) {
        let records = self.batch.marks.len() as u64;
        if let Some(segment) = &mut self.shared.catalog.write().active {
            segment.facts.len = start + self.batch.bytes.len() as u64;
            segment.facts.last_seq = self.next_seq - 1;
            for mark in &self.batch.marks {
                segment.facts.newest_ms = segment.facts.newest_ms.max(mark.timestamp_ms);
                if let Index::Memory(index) = &mut segment.index {
                    index.push(mark.user_id, start + mark.offset);
                }
            }
        }
        self.shared.counters.written.fetch_add(records, Ordering::Relaxed);
        self.shared.counters.batches.fetch_add(1, Ordering::Relaxed);
        self.shared.leave_queue(records, self.batch.weight);
        self.batch.clear();
    }

    /// A segment to write the batch into, with room for it.
    fn make_room(&mut self) -> io::Result<()> {
        let wanted = self.batch.bytes.len() as u64;
        let is_full =
            |active: &ActiveFile| active.len > SEGMENT_HEAD_BYTES && active.len + wanted > self.config.segment_bytes;
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
            let Some(Segment { path, facts, index: Index::Memory(index), .. }) = &catalog.active else {
                return Ok(());
            };
            write_index(&*self.disk, path, index, *facts)?;
            Segment::sealed(path.clone(), FileIndex::open(path, facts.first_seq)?)
        };
        let mut catalog = self.shared.catalog.write();
        catalog.sealed.push(Arc::new(sealed));
        catalog.active = None;
        drop(catalog);
        self.active = None;
        Ok(())
    }

    fn create_segment(&mut self) -> io::Result<()> {
        // A batch that waits for a retry has its sequences already.
        let first_seq = self.next_seq - self.batch.marks.len() as u64;
        let path = segment_path(&self.config.dir, first_seq);
        let created_ms = (self.clock)();
        let file = self.create_file(&path, SegmentHead { first_seq, created_ms });
        let file = file.inspect_err(|_| {
            // Without its head the file is of no use; the next start removes it if this cannot.
            remove_if_there(&path).ok();
        })?;
        self.active = Some(ActiveFile { file, created_ms, len: SEGMENT_HEAD_BYTES, has_failed_attempt: false });
        let facts = SegmentFacts { first_seq, last_seq: first_seq - 1, newest_ms: 0, len: SEGMENT_HEAD_BYTES };
        self.shared.catalog.write().active = Some(Segment::in_memory(path, facts, MemoryIndex::default()));
        self.count_segments();
        Ok(())
    }

    fn create_file(&self, path: &Path, head: SegmentHead) -> io::Result<Box<dyn SegmentFile>> {
        let mut file = self.disk.create(path)?;
        file.write_all_at(&head.encode(), 0)?;
        file.sync_data()?;
        self.disk.sync_dir(&self.config.dir)?;
        Ok(file)
    }

    /// What is done between batches. Its failures are counted; records do not depend on it.
    fn keep_house(&mut self) {
        if self.active_is_old() {
            let result = self.seal().and_then(|()| self.create_segment());
            self.count_if_failed(&result);
        }
        self.retain();
        self.mend_indexes();
    }

    fn active_is_old(&self) -> bool {
        let Some(active) = &self.active else {
            return false;
        };
        let age_ms = (self.clock)().saturating_sub(active.created_ms);
        active.len > SEGMENT_HEAD_BYTES && u128::from(age_ms) >= self.config.segment_age.as_millis()
    }

    /// Deletes the oldest sealed segments as far as the settings say. The newest file carries the sequence over a
    /// restart, so without an active one nothing is deleted.
    fn retain(&mut self) {
        while let Some(oldest) = self.expired() {
            let result = self.delete(&oldest);
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
        remove_if_there(&segment.path)?;
        remove_if_there(&index_path(&segment.path))?;
        self.disk.sync_dir(&self.config.dir)?;
        self.shared.catalog.write().sealed.retain(|kept| kept.path != segment.path);
        self.shared.counters.segments_deleted.fetch_add(1, Ordering::Relaxed);
        self.count_segments();
        Ok(())
    }

    /// Builds the sidecars anew that a reader found unusable.
    fn mend_indexes(&mut self) {
        let damaged: Vec<Arc<Segment>> = {
            let catalog = self.shared.catalog.read();
            catalog.sealed.iter().filter(|segment| segment.index_damaged.load(Ordering::Relaxed)).cloned().collect()
        };
        for old in damaged {
            match self.rebuild_index(old.path.clone(), old.facts.first_seq) {
                Ok(new) => self.replace_sealed(&old, new),
                Err(_) => self.count_error(),
            }
        }
    }

    fn replace_sealed(&self, old: &Arc<Segment>, new: Segment) {
        let mut catalog = self.shared.catalog.write();
        if let Some(place) = catalog.sealed.iter_mut().find(|segment| Arc::ptr_eq(segment, old)) {
            *place = Arc::new(new);
        }
    }

    fn count_segments(&self) {
        let catalog = self.shared.catalog.read();
        let segments = catalog.sealed.len() as u64 + u64::from(catalog.active.is_some());
        self.shared.counters.segments.store(segments, Ordering::Relaxed);
    }

    fn count_error(&self) {
        self.shared.counters.write_errors.fetch_add(1, Ordering::Relaxed);
    }

    fn count_if_failed(&self, result: &io::Result<()>) {
        if result.is_err() {
            self.count_error();
        }
    }

    /// Until the next batch is due. After a batch, a full queue has to wait for `batch_gap`.
    fn sleep(&self, wrote: bool) {
        let mut longest = self.config.flush_interval;
        if wrote && !self.shared.is_urgent() {
            thread::park_timeout(self.config.batch_gap);
            longest = longest.saturating_sub(self.config.batch_gap);
        }
        // Allow the wake-up before looking: a batch that fills in between is then either seen or wakes.
        self.shared.wakeable.store(true, Ordering::SeqCst);
        if !self.shared.is_urgent() && !self.shared.has_full_batch() {
            thread::park_timeout(longest);
        }
        self.shared.wakeable.store(false, Ordering::SeqCst);
    }

    /// A failing disk is not tried faster because more waits, only when somebody asks.
    fn sleep_after_failure(&self, backoff: Duration) {
        if !self.shared.is_called() {
            thread::park_timeout(backoff);
        }
    }

    /// The last tries of a stop.
    fn try_to_the_end(&mut self, mut error: io::Error) -> io::Result<()> {
        for _ in 1..STOP_TRIES {
            thread::park_timeout(BACKOFF_FIRST);
            match self.round() {
                Ok(_) => return Ok(()),
                Err(next) => error = next,
            }
        }
        self.give_up();
        Err(error)
    }

    fn give_up(&mut self) {
        let pending: u64 = self.pending.iter().map(|entry| entry.weight() as u64).sum();
        self.shared.give_up((self.pending.len() + self.batch.marks.len()) as u64, pending + self.batch.weight);
        self.pending.clear();
        self.batch.clear();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // However the thread ended, callers must not wait for it any more. After a panic there is something left.
        self.give_up();
        self.shared.close();
    }
}

/// An error for each who waits.
fn told(result: &io::Result<bool>) -> io::Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
    }
}

/// Makes the directory and takes it for this process.
fn lock_dir(dir: &Path, disk: &dyn Disk) -> io::Result<File> {
    fs::create_dir_all(dir)?;
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

/// Removes unfinished sidecars, and those whose segment retention deleted before a crash.
fn remove_leftovers(dir: &Path) -> io::Result<()> {
    for item in fs::read_dir(dir)? {
        let path = item?.path();
        let is_leftover = match path.extension().and_then(|extension| extension.to_str()) {
            Some("tmp") => true,
            Some("idx") => !path.with_extension("seg").exists(),
            _ => false,
        };
        if is_leftover {
            remove_if_there(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use serde_json::Value;

    use super::record::tests::{NOON, entry};
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// A journal in a directory of its own, with a clock that the test moves. Nothing is written unless the test
    /// asks for it.
    struct Bench {
        dir: tempfile::TempDir,
        now: Arc<AtomicU64>,
        faults: Arc<Mutex<Faults>>,
    }

    impl Bench {
        fn new() -> Self {
            let now = Arc::new(AtomicU64::new(NOON));
            Self { dir: tempfile::tempdir().unwrap(), now, faults: Arc::default() }
        }

        fn config(&self) -> JournalConfig {
            let mut config = JournalConfig::new(self.dir.path().join("journal"));
            config.flush_interval = HOUR;
            config.batch_records = u64::MAX;
            config
        }

        fn start(&self, config: JournalConfig) -> Journal {
            let now = Arc::clone(&self.now);
            let disk = FaultyDisk { faults: Arc::clone(&self.faults) };
            Journal::start_on(config, Arc::new(move || now.load(Ordering::SeqCst)), Box::new(disk)).unwrap()
        }

        fn journal(&self) -> Journal {
            self.start(self.config())
        }

        fn reader(&self) -> JournalReader {
            JournalReader::open(self.dir.path().join("journal")).unwrap()
        }

        fn files(&self, extension: &str) -> Vec<PathBuf> {
            let items = fs::read_dir(self.dir.path().join("journal")).unwrap().map(|item| item.unwrap().path());
            let mut paths: Vec<_> = items.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
            paths.sort();
            paths
        }
    }

    /// What the disk is to do wrong next.
    #[derive(Default)]
    struct Faults {
        writes: u32,
        written_before_failing: usize,
        syncs: u32,
        cuts: u32,
    }

    struct FaultyDisk {
        faults: Arc<Mutex<Faults>>,
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
            if fails(&mut self.faults.lock().syncs) { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
        }

        fn set_len(&mut self, len: u64) -> io::Result<()> {
            if fails(&mut self.faults.lock().cuts) { Err(io::ErrorKind::Other.into()) } else { self.file.set_len(len) }
        }
    }

    /// emitted, written, dropped, queued.
    fn balance(journal: &Journal) -> (u64, u64, u64, u64) {
        let counters = journal.counters();
        let read = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        let now =
            (read(&counters.emitted), read(&counters.written), read(&counters.dropped), read(&counters.queue_records));
        assert_eq!(now.0, now.1 + now.2 + now.3 + read(&counters.spilled));
        now
    }

    fn contents(page: &Page) -> Vec<String> {
        let content = |item: &String| {
            let value: Value = serde_json::from_str(item).unwrap();
            value["messages"]["response"]["content"].as_str().unwrap().to_owned()
        };
        page.items.iter().map(content).collect()
    }

    fn ids(page: &Page) -> Vec<u64> {
        page.items.iter().map(|item| serde_json::from_str::<Value>(item).unwrap()["id"].as_u64().unwrap()).collect()
    }

    fn emit_numbered(journal: &Journal, user_id: u64, numbers: std::ops::Range<u32>) {
        numbers.for_each(|number| journal.emit(entry(user_id, &number.to_string())));
    }

    fn assert_sound(bench: &Bench, records: u64) {
        let report = bench.reader().verify().unwrap();
        assert_eq!((report.records, report.torn_bytes, report.problems.as_slice()), (records, 0, [].as_slice()));
    }

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
    fn a_full_batch_is_written_without_being_asked() {
        let bench = Bench::new();
        let mut config = bench.config();
        config.batch_records = 10;
        let journal = bench.start(config);
        emit_numbered(&journal, 1, 0..10);
        while balance_written(&journal) < 10 {
            thread::yield_now();
        }
    }

    fn balance_written(journal: &Journal) -> u64 {
        journal.counters().written.load(Ordering::SeqCst)
    }

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
    fn pages_go_over_segments_newest_first() {
        let bench = Bench::new();
        let mut config = bench.config();
        config.segment_bytes = 4096;
        let journal = bench.start(config.clone());
        for number in 0..60_u32 {
            journal.emit(entry(u64::from(number % 2), &number.to_string()));
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
        assert_eq!(journal.counters().index_rebuilds.load(Ordering::SeqCst), 2);
        // The third one's body is first read now: it is scanned for this page and mended by the next round.
        assert_eq!(contents(&journal.page(1, 1, 50).unwrap()).len(), 40);
        journal.flush().unwrap();
        assert_eq!(journal.counters().index_rebuilds.load(Ordering::SeqCst), 3);
        let mended: Vec<_> = files.iter().map(|file| fs::read(file).unwrap()).collect();
        assert_eq!(mended, good);
    }

    #[test]
    fn past_the_bound_records_are_dropped_and_counted() {
        let bench = Bench::new();
        let mut config = bench.config();
        let weight = entry(1, "x").weight() as u64;
        config.queue_bytes = weight * 10;
        let journal = bench.start(config);
        bench.faults.lock().writes = u32::MAX;
        (0..25).for_each(|_| journal.emit(entry(1, "x")));
        assert_eq!(balance(&journal), (25, 0, 15, 10));
        assert!(journal.flush().is_err());
        assert_eq!(balance(&journal), (25, 0, 15, 10), "a failed batch still counts against the bound");

        bench.faults.lock().writes = 0;
        journal.flush().unwrap();
        assert_eq!(balance(&journal), (25, 10, 15, 0));
        journal.emit(entry(1, "y"));
        journal.flush().unwrap();
        assert_eq!(balance(&journal), (26, 11, 15, 0));
        assert_sound(&bench, 11);
    }

    #[test]
    fn a_failed_write_or_sync_is_cut_back_and_tried_again() {
        for part in [0, 1, 31, 32, 33, 500, 100_000] {
            for (writes, syncs, cuts) in [(1, 0, 0), (0, 1, 0), (3, 2, 0), (1, 0, 1), (2, 1, 2)] {
                let bench = Bench::new();
                let journal = bench.journal();
                emit_numbered(&journal, 1, 0..2);
                journal.flush().unwrap();
                *bench.faults.lock() = Faults { writes, syncs, cuts, written_before_failing: part };

                emit_numbered(&journal, 1, 2..4);
                assert!(journal.flush().is_err());
                // The thread may have tried again by itself; what a reader sees is whole either way.
                let seen = journal.page(1, 1, 9).unwrap();
                assert!(matches!((seen.total, seen.unreadable), (2 | 4, 0)), "{seen:?}");
                emit_numbered(&journal, 1, 4..5);
                while journal.flush().is_err() {}

                assert_eq!(contents(&journal.page(1, 1, 9).unwrap()), ["4", "3", "2", "1", "0"]);
                assert_eq!(balance(&journal), (5, 5, 0, 0));
                assert_sound(&bench, 5);
            }
        }
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
    fn a_stop_with_a_dead_disk_ends_and_counts_what_it_gave_up() {
        let bench = Bench::new();
        let journal = bench.journal();
        bench.faults.lock().writes = u32::MAX;
        emit_numbered(&journal, 1, 0..3);
        assert!(journal.stop().is_err());
        journal.emit(entry(1, "late"));
        assert_eq!(balance(&journal), (4, 0, 4, 0));
        assert!(journal.flush().is_err());
    }

    #[test]
    fn what_was_counted_as_dropped_is_not_in_the_file() {
        for (writes, syncs) in [(u32::MAX, 0), (0, u32::MAX)] {
            let bench = Bench::new();
            let journal = bench.journal();
            emit_numbered(&journal, 1, 0..2);
            journal.flush().unwrap();
            *bench.faults.lock() = Faults { writes, syncs, written_before_failing: usize::MAX, cuts: 0 };
            emit_numbered(&journal, 1, 2..5);
            assert!(journal.stop().is_err());
            assert_eq!(balance(&journal), (5, 2, 3, 0));
            assert_sound(&bench, 2);
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
    fn many_emitters_and_readers_balance() {
        let bench = Bench::new();
        let mut config = bench.config();
        config.batch_records = 50;
        config.batch_gap = Duration::from_millis(1);
        config.segment_bytes = 1 << 20;
        config.queue_bytes = 8 << 20;
        let journal = bench.start(config);
        thread::scope(|scope| {
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

    fn balance_emitted(journal: &Journal) -> u64 {
        journal.counters().emitted.load(Ordering::SeqCst)
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

    #[test]
    fn a_disabled_journal_writes_nothing_and_still_reads() {
        let bench = Bench::new();
        let mut config = bench.config();
        config.enabled = false;
        let off = bench.start(config.clone());
        off.emit(entry(1, "x"));
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
        journal.emit(entry(1, "late"));
        assert!(journal.flush().is_err());
        assert_eq!(balance(&journal), (1, 0, 1, 0));
    }

    #[test]
    fn a_panic_on_the_thread_leaves_nobody_waiting() {
        let bench = Bench::new();
        let journal = bench.journal();
        emit_numbered(&journal, 1, 0..1);
        journal.flush_then(|_| panic!("as a callback must not"));
        while journal.flush().is_ok() {}
        emit_numbered(&journal, 1, 0..1);
        assert!(journal.stop().is_err());
        let (emitted, written, dropped, queued) = balance(&journal);
        assert_eq!((emitted, written + dropped, queued), (2, 2, 0));
    }
}
