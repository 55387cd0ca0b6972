//! The audit trail: one record per security-relevant act, append-only and chained.
//!
//! Owns the directory `audit`: its files, the chain through them, and the thread that writes them; nothing else does. An
//! act that changes something is written with [`Audit::write`], which returns when the record is synced and the store has
//! recorded the trail's new head. What strangers can cause in floods goes through [`Audit::note_folded`]: counted, bounded,
//! written within a second. While the trail cannot be written, [`Audit::ready`] says no, and who asks refuses the act.
//!
//! What holds always, once the callers are quiet: `emitted = written + dropped + queued`. Never decides what is worth a
//! record, and never holds a secret.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{fmt, io};

use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;

mod chain;
mod flood;
mod record;
mod summary;
#[cfg(test)]
mod tests;
mod thread;
mod trail;
mod verify;

pub use chain::{ChainKey, Head, Link};
pub use record::{Action, Actor, Origin, Outcome, Record, Severity, Target};
pub use summary::{ActionFilter, LogPage, MAX_ENTRIES, Query, UserFilter, find_in_files};
pub use verify::{FilePlace, Problem, VerifyReport, verify};

use crate::actors::writer::{Disk, LocalDisk};
use crate::clock::{Clock, Monotonic};
use crate::store::committer::Committer;
use crate::store::{Store, StoreError, tables};
use flood::Flood;
use summary::Summary;
use thread::Writer;
use trail::{Draft, Findings, Trail};

/// Records that acts wait for, at most; each has a call behind it.
const MAX_WAITING: u64 = 65_536;

/// How the trail is kept.
#[derive(Clone, Debug)]
pub struct AuditConfig {
    /// Where the segments are; made when missing. One process at a time.
    pub dir: PathBuf,
    /// A segment ends before it grows past this many bytes; at least 4 KiB.
    pub segment_bytes: u64,
    /// Segments whose newest record is older than this are deleted, and the trail says so. `None`: never.
    pub retention: Option<Duration>,
    /// Bound on the records that nobody waits for; more are dropped and counted.
    pub queue_records: u64,
}

impl AuditConfig {
    /// The defaults, in `dir`.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), segment_bytes: 16 << 20, retention: None, queue_records: 4096 }
    }
}

/// What the trail counts.
#[derive(Debug, Default)]
pub struct AuditCounters {
    pub emitted: AtomicU64,
    pub written: AtomicU64,
    /// Given up: past the queue's bound, or left when a stop found the disk broken.
    pub dropped: AtomicU64,
    /// Equal acts of strangers that were counted into another record.
    pub folded: AtomicU64,
    /// Gauge: records that wait.
    pub queued: AtomicU64,
    pub write_errors: AtomicU64,
    /// Gauge: segment files.
    pub segments: AtomicU64,
    /// Gauge: the newest record's number.
    pub sequence: AtomicU64,
}

/// The trail cannot be written: the act must not be acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unwritten;

impl fmt::Display for Unwritten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the audit trail cannot be written")
    }
}

impl std::error::Error for Unwritten {}

type Reply = oneshot::Sender<Result<(), Unwritten>>;

/// What waits for the thread: a record, somebody who waits, or both.
struct Item {
    draft: Option<Draft>,
    reply: Option<Reply>,
}

struct State {
    queue: Vec<Item>,
    flood: Flood,
    closed: bool,
}

/// What the callers and the thread have in common.
struct Shared {
    dir: PathBuf,
    clock: Clock,
    queue_records: u64,
    counters: Arc<AuditCounters>,
    state: Mutex<State>,
    summary: RwLock<Summary>,
    head: Mutex<Head>,
    failed: AtomicBool,
    stopping: AtomicBool,
}

/// The trail's handle: cheap to clone. When the last clone goes, the thread ends.
#[derive(Clone)]
pub struct Audit(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    findings: Findings,
    /// Whether a server was running when the last run ended without a word.
    was_cut_off: bool,
    thread: std::thread::Thread,
    join: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Audit").field("dir", &self.0.shared.dir).finish_non_exhaustive()
    }
}

/// How far the trail had come when the store was last told.
///
/// # Errors
/// The row cannot be read.
pub fn recorded_head(store: &dyn Store) -> Result<Option<Head>, StoreError> {
    tables::read(store, &tables::audit_head())
}

impl Audit {
    /// Opens the trail and starts its thread, `tollgate-audit`. Changes no file before the first record.
    ///
    /// # Errors
    /// The directory or the store's row cannot be read, or another process has the trail.
    pub fn start(config: AuditConfig, clock: Clock, key: ChainKey, committer: Committer) -> io::Result<Self> {
        Self::start_on(config, clock, key, committer, Box::new(LocalDisk))
    }

    /// As [`Audit::start`], on a disk of the caller's choice.
    ///
    /// # Errors
    /// As [`Audit::start`].
    pub fn start_on(
        config: AuditConfig,
        clock: Clock,
        key: ChainKey,
        committer: Committer,
        disk: Box<dyn Disk>,
    ) -> io::Result<Self> {
        let recorded = recorded_head(committer.store()).map_err(io::Error::other)?;
        let (trail, summary, findings) = Trail::open(config.dir.clone(), disk, key, config.segment_bytes, recorded)?;
        let runs =
            summary.newest(|entry| matches!(entry.action(), Some(Action::ServerStarted | Action::ServerStopped)));
        let was_cut_off = runs.is_some_and(|entry| entry.action() == Some(Action::ServerStarted));
        let shared = Arc::new(Shared {
            dir: config.dir.clone(),
            clock,
            queue_records: config.queue_records,
            counters: Arc::default(),
            state: Mutex::new(State { queue: Vec::new(), flood: Flood::default(), closed: false }),
            summary: RwLock::new(summary),
            head: Mutex::new(trail.head()),
            failed: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
        });
        shared.note_end(&trail);
        let writer = Writer {
            shared: shared.clone(),
            config,
            trail,
            committer,
            pending: Vec::new(),
            recorded,
            store_failure_told: false,
            next_housekeeping: Monotonic::default(),
            next_checkpoint: Monotonic::default(),
            named: Head::EMPTY,
        };
        let join = std::thread::Builder::new().name("tollgate-audit".into()).spawn(move || writer.run())?;
        let thread = join.thread().clone();
        let join = Mutex::new(Some(join));
        Ok(Self(Arc::new(Handle { shared, findings, was_cut_off, thread, join })))
    }

    /// Whether acts that need a record may be done.
    ///
    /// # Errors
    /// [`Unwritten`] since the last record could not be written.
    pub fn ready(&self) -> Result<(), Unwritten> {
        if self.0.shared.failed.load(Ordering::SeqCst) { Err(Unwritten) } else { Ok(()) }
    }

    /// Writes a record and returns when it is on disk and the store knows of it.
    ///
    /// # Errors
    /// [`Unwritten`]. The record stays and is written as soon as that is possible again.
    pub async fn write(&self, record: Record) -> Result<(), Unwritten> {
        self.submit(Some(record)).await.unwrap_or(Err(Unwritten))
    }

    /// As [`Audit::write`], for threads that may block.
    ///
    /// # Errors
    /// As [`Audit::write`].
    pub fn write_blocking(&self, record: Record) -> Result<(), Unwritten> {
        self.submit(Some(record)).blocking_recv().unwrap_or(Err(Unwritten))
    }

    /// Returns when everything handed over before is on disk.
    ///
    /// # Errors
    /// [`Unwritten`].
    pub async fn flush(&self) -> Result<(), Unwritten> {
        self.submit(None).await.unwrap_or(Err(Unwritten))
    }

    /// As [`Audit::flush`], for threads that may block.
    ///
    /// # Errors
    /// As [`Audit::flush`].
    pub fn flush_blocking(&self) -> Result<(), Unwritten> {
        self.submit(None).blocking_recv().unwrap_or(Err(Unwritten))
    }

    fn submit(&self, record: Option<Record>) -> oneshot::Receiver<Result<(), Unwritten>> {
        let (reply, answer) = oneshot::channel();
        let shared = &self.0.shared;
        let draft = record.map(|record| Draft { at: shared.clock.now(), record });
        let is_record = draft.is_some();
        shared.push(Item { draft, reply: Some(reply) }, if is_record { MAX_WAITING } else { u64::MAX });
        self.0.thread.unpark();
        answer
    }

    /// Writes a record within a second, without waiting. Dropped and counted past the queue's bound.
    pub fn note(&self, record: Record) {
        let shared = &self.0.shared;
        let draft = Draft { at: shared.clock.now(), record };
        shared.push(Item { draft: Some(draft), reply: None }, shared.queue_records);
    }

    /// As [`Audit::note`], and at once.
    pub fn note_soon(&self, record: Record) {
        self.note(record);
        self.0.thread.unpark();
    }

    /// As [`Audit::note`], for what strangers can do over and over: of equal acts within a minute, the first is written and
    /// the others counted.
    pub fn note_folded(&self, record: Record) {
        let shared = &self.0.shared;
        let admitted = shared.state.lock().flood.admit(record, shared.clock.monotonic());
        match admitted {
            Some(record) => self.note(record),
            None => {
                shared.counters.folded.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// One page of the newest [`MAX_ENTRIES`] records. Reads files: call it where blocking is allowed, after a flush if
    /// what has just happened should be in it. `page` counts from 1.
    pub fn page(&self, query: &Query, page: u64, page_size: usize) -> LogPage {
        let shared = &self.0.shared;
        let (entries, total) = shared.summary.read().find(query, page, page_size);
        summary::load(&shared.dir, &entries, total)
    }

    /// The newest record that is on disk.
    pub fn head(&self) -> Head {
        *self.0.shared.head.lock()
    }

    /// The record of a server's start: how the run before ended.
    pub fn started(&self) -> Record {
        Record::of(Action::ServerStarted).with("after_a_crash", self.0.was_cut_off)
    }

    /// The record of what the start found wrong with the trail's end, if anything.
    pub fn gap(&self) -> Option<Record> {
        let Findings { lost, differs, torn_bytes } = self.0.findings;
        let record = Record::of(Action::AuditGap).with("torn_bytes", torn_bytes);
        match lost {
            Some((first, last)) => Some(record.with("first_missing", first).with("last_missing", last)),
            None => differs.then(|| record.with("differs_at", self.head().sequence)),
        }
    }

    pub fn counters(&self) -> Arc<AuditCounters> {
        self.0.shared.counters.clone()
    }

    /// Writes what waits and ends the thread. Later records are dropped.
    pub fn stop(&self) {
        self.0.stop();
    }
}

impl Handle {
    fn stop(&self) {
        let Some(join) = self.join.lock().take() else { return };
        self.shared.stopping.store(true, Ordering::SeqCst);
        join.thread().unpark();
        if join.join().is_err() {
            tracing::error!("the audit trail's thread had panicked");
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    /// Takes over how far the files have come.
    fn note_end(&self, trail: &Trail) {
        *self.head.lock() = trail.head();
        self.counters.sequence.store(trail.head().sequence, Ordering::Relaxed);
        self.counters.segments.store(trail.segments() as u64, Ordering::Relaxed);
    }

    /// Queues an item, or gives it up when `bound` records wait already. Whoever waits for it then hears of it at once.
    fn push(&self, item: Item, bound: u64) {
        let records = u64::from(item.draft.is_some());
        self.counters.emitted.fetch_add(records, Ordering::Relaxed);
        let mut state = self.state.lock();
        if state.closed || self.counters.queued.load(Ordering::Relaxed) >= bound {
            self.counters.dropped.fetch_add(records, Ordering::Relaxed);
            return;
        }
        self.counters.queued.fetch_add(records, Ordering::Relaxed);
        state.queue.push(item);
    }
}

/// Where a server keeps its trail.
pub fn audit_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("audit")
}
