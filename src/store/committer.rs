//! The store thread: the only writer of the embedded database.
//!
//! Owns group commit: it drains what waits, commits one batch, and publishes one durable epoch number. Users' meters come
//! as *dirty rows*, read at the moment of the commit, so that a thousand turns of one user cost one write; everything else
//! comes as batches with preconditions, and what must be on disk together with a batch rides with it. After a failed write it acknowledges nothing any more (invariant 9). Never decides
//! what to write.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};
use tokio::sync::{Notify, oneshot};

use super::watch::Changed;
use super::{Batch, MAX_VALUE_BYTES, Op, Precondition, Store, StoreError};
use crate::failpoint;
use crate::telemetry::metrics::Metrics;

/// The number of a commit. What was marked in an epoch is on disk once that epoch is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(pub u64);

/// A row whose newest state is to be written at the next commit.
pub trait DirtyRow: Send + Sync {
    /// Appends the row's present state. Changes made after this call must mark the row again.
    fn write_to(&self, ops: &mut Vec<Op>);
}

/// How often to commit.
#[derive(Clone, Copy, Debug)]
pub struct CommitPace {
    /// Least time between two commits.
    pub gap: Duration,
    /// Least time between two commits when only dirty rows wait; the same as `gap` unless the operator allows a window.
    pub row_gap: Duration,
    /// Rows and batches waiting; see [`Committer::is_overloaded`].
    pub max_pending: usize,
}

/// The handle to the store thread.
#[derive(Clone)]
pub struct Committer(Arc<Shared>);

/// Work for the store thread between two commits.
type Visit = Box<dyn FnOnce() + Send>;

struct Shared {
    store: Arc<dyn Store>,
    queue: Mutex<Queue>,
    changed: Changed,
    wake: Condvar,
    progress: Arc<Progress>,
    /// Rows and batches in the queue, to be read without its lock.
    waiting: AtomicUsize,
    gates: RwLock<Vec<Arc<Gate>>>,
    pace: CommitPace,
    metrics: Arc<Metrics>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// How far the disk is. Apart from the rest, so that a gate does not keep the store open.
#[derive(Default)]
struct Progress {
    durable: AtomicU64,
    failed: AtomicBool,
}

impl Progress {
    fn is_durable(&self, epoch: Epoch) -> bool {
        self.durable.load(Ordering::SeqCst) >= epoch.0
    }

    fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }
}

struct Queue {
    /// The epoch that what is pushed now belongs to.
    epoch: u64,
    rows: Vec<Arc<dyn DirtyRow>>,
    batches: Vec<Submitted>,
    visits: Vec<Visit>,
    /// The thread sleeps until it is woken; otherwise it comes by itself when its pace allows.
    idle: bool,
    stop: bool,
}

/// Rows that belong to a batch and are known only when it is committed: meters, which change all the time. The store thread
/// runs it when the batch's preconditions hold; an error refuses the batch.
pub type Rider = Box<dyn FnOnce(&mut Vec<Op>) -> Result<(), StoreError> + Send>;

struct Submitted {
    batch: Batch,
    rider: Option<Rider>,
    reply: Reply,
}

type Reply = oneshot::Sender<Result<(), StoreError>>;
/// What a batch's submitter is told once the group is on disk.
type Verdict = (Reply, Result<(), StoreError>);

/// What is committed together.
struct Group {
    epoch: u64,
    rows: Vec<Arc<dyn DirtyRow>>,
    batches: Vec<Submitted>,
    /// Run when these are on disk.
    visits: Vec<Visit>,
}

impl Queue {
    fn len(&self) -> usize {
        self.rows.len() + self.batches.len() + self.visits.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Committer {
    /// Starts the store thread.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn start(store: Arc<dyn Store>, pace: CommitPace, metrics: Arc<Metrics>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            store,
            queue: Mutex::new(Queue {
                epoch: 1,
                rows: Vec::new(),
                batches: Vec::new(),
                visits: Vec::new(),
                idle: false,
                stop: false,
            }),
            changed: Changed::default(),
            wake: Condvar::new(),
            progress: Arc::default(),
            waiting: AtomicUsize::new(0),
            gates: RwLock::default(),
            pace,
            metrics,
            thread: Mutex::default(),
        });
        let owner = shared.clone();
        let thread = std::thread::Builder::new().name("tollgate-store".into()).spawn(move || {
            // Whoever waits for a commit must hear of it, whatever a backend does.
            if catch_unwind(AssertUnwindSafe(|| owner.run())).is_err() {
                owner.fail(Vec::new(), &StoreError::Failed("the store thread panicked".into()));
            }
        })?;
        *shared.thread.lock() = Some(thread);
        Ok(Self(shared))
    }

    /// The store, for reading.
    pub fn store(&self) -> &dyn Store {
        &*self.0.store
    }

    /// Has `row` written with the next commit, whose epoch is returned. The caller keeps a row from being queued twice.
    pub fn mark(&self, row: Arc<dyn DirtyRow>) -> Epoch {
        let mut queue = self.0.queue.lock();
        queue.rows.push(row);
        self.0.waiting.store(queue.len(), Ordering::Relaxed);
        let epoch = queue.epoch;
        // Taken back by whoever sees it first: of many rows at once, one pays for the wake.
        let wake = std::mem::take(&mut queue.idle);
        drop(queue);
        if wake {
            self.0.wake.notify_one();
        }
        Epoch(epoch)
    }

    /// Commits a batch and returns when it is on disk.
    ///
    /// # Errors
    /// As [`Store::commit`]; a conflict concerns this batch alone.
    pub async fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        self.submit(batch, None).await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Commits a batch and what its rider adds to it, and returns when both are on disk.
    ///
    /// # Errors
    /// As [`Committer::commit`], and the rider's own, which changes nothing.
    pub async fn commit_with(&self, batch: Batch, rider: Rider) -> Result<(), StoreError> {
        self.submit(batch, Some(rider)).await.unwrap_or_else(|_| Err(stopped()))
    }

    /// As [`Committer::commit`], for threads that may block.
    ///
    /// # Errors
    /// As [`Committer::commit`].
    pub fn commit_blocking(&self, batch: Batch) -> Result<(), StoreError> {
        self.submit(batch, None).blocking_recv().unwrap_or_else(|_| Err(stopped()))
    }

    fn submit(&self, batch: Batch, rider: Option<Rider>) -> oneshot::Receiver<Result<(), StoreError>> {
        let (reply, answer) = oneshot::channel();
        let mut queue = self.0.queue.lock();
        if self.has_failed() || queue.stop {
            let _ = reply.send(Err(stopped()));
            return answer;
        }
        queue.batches.push(Submitted { batch, rider, reply });
        self.0.waiting.store(queue.len(), Ordering::Relaxed);
        drop(queue);
        self.0.wake.notify_one();
        answer
    }

    /// Runs `visit` in the store thread between two commits and returns what it returns. Commits wait for it.
    ///
    /// # Errors
    /// [`StoreError::Failed`] when the thread has ended or ends first.
    pub fn between_commits<T: Send + 'static>(
        &self,
        visit: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = std::sync::mpsc::sync_channel(1);
        let mut queue = self.0.queue.lock();
        if self.has_failed() || queue.stop {
            return Err(stopped());
        }
        queue.visits.push(Box::new(move || {
            let _ = reply.send(visit());
        }));
        drop(queue);
        self.0.wake.notify_one();
        answer.recv().map_err(|_| stopped())
    }

    /// Keys that are remembered for a copy under way.
    pub fn keys_watched(&self) -> usize {
        self.0.changed.keys()
    }

    pub(super) fn changed(&self) -> &Changed {
        &self.0.changed
    }

    /// Whether a write or a sync has failed, here or behind the store's back. It stays so until the process starts again
    /// and recovers from disk.
    pub fn has_failed(&self) -> bool {
        self.0.progress.has_failed() || self.0.store.has_failed()
    }

    /// Whether more writes wait than the config allows.
    pub fn is_overloaded(&self) -> bool {
        self.pending() > self.0.pace.max_pending
    }

    pub fn pending(&self) -> usize {
        self.0.waiting.load(Ordering::Relaxed)
    }

    pub fn is_durable(&self, epoch: Epoch) -> bool {
        self.0.progress.is_durable(epoch)
    }

    /// A gate for one worker's runtime; its [`Gate::run`] must be spawned there.
    pub fn gate(&self) -> Arc<Gate> {
        let gate = Arc::new(Gate {
            progress: self.0.progress.clone(),
            waiting: Mutex::default(),
            any: AtomicBool::new(false),
            notify: Notify::new(),
        });
        self.0.gates.write().push(gate.clone());
        gate
    }

    /// Returns when `epoch` is on disk, for threads that may block.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    pub fn wait_blocking(&self, epoch: Epoch) -> Result<(), StoreError> {
        if self.is_durable(epoch) {
            return Ok(());
        }
        // An empty batch is in the present epoch or a later one.
        self.commit_blocking(Batch::default())
    }

    /// Returns when `epoch` is on disk.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    pub async fn wait(&self, epoch: Epoch) -> Result<(), StoreError> {
        if self.is_durable(epoch) {
            return Ok(());
        }
        self.commit(Batch::default()).await
    }

    /// Commits what waits and ends the thread. Later writes are refused.
    pub fn stop(&self) {
        self.0.queue.lock().stop = true;
        self.0.wake.notify_one();
        if let Some(thread) = self.0.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

fn stopped() -> StoreError {
    StoreError::Failed("the store takes no more writes".into())
}

impl Shared {
    fn run(&self) {
        let mut last = None;
        while let Some(Group { epoch, rows, batches, visits }) = self.next_group(last) {
            let began = Instant::now();
            last = Some(began);
            let (group, replies) = self.gather(&rows, batches);
            let size = rows.len() + replies.len();
            failpoint::hit("commit.before");
            // A group of batches that all lost their race has nothing to write.
            let result = if group.ops.is_empty() { Ok(()) } else { self.store.commit(&group) };
            self.metrics.commit(began.elapsed(), size);
            match result {
                Ok(()) => {
                    failpoint::hit("commit.after");
                    self.changed.note(&group.ops);
                    self.progress.durable.store(epoch, Ordering::SeqCst);
                    for (reply, outcome) in replies {
                        let _ = reply.send(outcome);
                    }
                    self.open_gates();
                    visits.into_iter().for_each(|visit| visit());
                }
                Err(error) => return self.fail(replies, &error),
            }
        }
    }

    /// Waits for work and for the pace; `None` at the end.
    fn next_group(&self, last: Option<Instant>) -> Option<Group> {
        let mut queue = self.queue.lock();
        loop {
            if queue.stop && queue.is_empty() {
                return None;
            }
            // The pace first: under load, what comes meanwhile costs its callers no wake and this thread no second one.
            let gap = if queue.batches.is_empty() { self.pace.row_gap } else { self.pace.gap };
            let due = last.map(|at| at + gap).filter(|due| !queue.stop && Instant::now() < *due);
            if let Some(due) = due {
                self.wake.wait_until(&mut queue, due);
                continue;
            }
            if queue.is_empty() {
                queue.idle = true;
                self.wake.wait(&mut queue);
                queue.idle = false;
                continue;
            }
            let epoch = queue.epoch;
            queue.epoch += 1;
            self.waiting.store(0, Ordering::Relaxed);
            let (rows, batches) = (std::mem::take(&mut queue.rows), std::mem::take(&mut queue.batches));
            let visits = std::mem::take(&mut queue.visits);
            return Some(Group { epoch, rows, batches, visits });
        }
    }

    /// One batch out of many. Batches are judged in order, each seeing those before it.
    fn gather(&self, rows: &[Arc<dyn DirtyRow>], batches: Vec<Submitted>) -> (Batch, Vec<Verdict>) {
        let mut group = Batch::default();
        let mut changed: HashMap<Vec<u8>, Option<Vec<u8>>> = HashMap::new();
        let mut replies = Vec::with_capacity(batches.len());
        for Submitted { mut batch, rider, reply } in batches {
            let verdict = self.judge(&batch, &changed).and_then(|()| rider.map_or(Ok(()), |ride| ride(&mut batch.ops)));
            if verdict.is_ok() {
                for op in &batch.ops {
                    let value = match op {
                        Op::Put { value, .. } => Some(value.clone()),
                        Op::Delete { .. } => None,
                    };
                    changed.insert(op.key().to_vec(), value);
                }
                group.ops.extend(batch.ops);
            }
            replies.push((reply, verdict));
        }
        for row in rows {
            row.write_to(&mut group.ops);
        }
        (group, replies)
    }

    fn judge(&self, batch: &Batch, changed: &HashMap<Vec<u8>, Option<Vec<u8>>>) -> Result<(), StoreError> {
        for op in &batch.ops {
            if let Op::Put { value, .. } = op
                && value.len() > MAX_VALUE_BYTES
            {
                return Err(StoreError::TooLarge { bytes: value.len() });
            }
        }
        let now = |key: &Vec<u8>| match changed.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.store.get(key),
        };
        for condition in &batch.preconditions {
            let (key, holds) = match condition {
                Precondition::Absent { key } => (key, now(key)?.is_none()),
                Precondition::Equals { key, value } => (key, now(key)?.as_ref() == Some(value)),
            };
            if !holds {
                return Err(StoreError::Conflict { key: key.clone() });
            }
        }
        Ok(())
    }

    fn fail(&self, replies: Vec<Verdict>, error: &StoreError) {
        tracing::error!(%error, "a commit failed: nothing is acknowledged any more; restart to recover from disk");
        self.metrics.store_error();
        self.progress.failed.store(true, Ordering::SeqCst);
        for (reply, outcome) in replies {
            let _ = reply.send(outcome.and(Err(error.clone())));
        }
        let mut queue = self.queue.lock();
        queue.stop = true;
        for waiting in queue.batches.drain(..) {
            let _ = waiting.reply.send(Err(error.clone()));
        }
        // Who waits for one hears that it is gone.
        queue.visits.clear();
        drop(queue);
        self.open_gates();
    }

    fn open_gates(&self) {
        for gate in self.gates.read().iter() {
            if gate.any.load(Ordering::SeqCst) {
                gate.notify.notify_one();
            }
        }
    }
}

/// Where one worker's answers wait for the disk. The store thread wakes the worker once per commit; the worker wakes its
/// own calls, which costs no system call.
pub struct Gate {
    progress: Arc<Progress>,
    waiting: Mutex<Vec<(Epoch, Waker)>>,
    any: AtomicBool,
    notify: Notify,
}

/// One call's place at the gate.
#[derive(Default)]
pub struct GateTicket {
    registered: bool,
}

impl Gate {
    /// Releases waiting calls until the process ends. Run it on the worker's own runtime.
    pub async fn run(&self) {
        loop {
            self.notify.notified().await;
            self.release();
        }
    }

    fn release(&self) {
        let failed = self.progress.has_failed();
        let mut waiting = self.waiting.lock();
        let mut at = 0;
        while at < waiting.len() {
            if failed || self.progress.is_durable(waiting[at].0) {
                waiting.swap_remove(at).1.wake();
            } else {
                at += 1;
            }
        }
        self.any.store(!waiting.is_empty(), Ordering::SeqCst);
    }

    /// Ready when `epoch` is on disk.
    pub fn poll_durable(
        &self,
        epoch: Epoch,
        ticket: &mut GateTicket,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), StoreError>> {
        if !self.progress.is_durable(epoch) && !ticket.registered {
            let mut waiting = self.waiting.lock();
            waiting.push((epoch, context.waker().clone()));
            self.any.store(true, Ordering::SeqCst);
            ticket.registered = true;
        }
        // Looked at again after registering: a commit in between has seen the list empty.
        if self.progress.is_durable(epoch) {
            Poll::Ready(Ok(()))
        } else if self.progress.has_failed() {
            Poll::Ready(Err(stopped()))
        } else {
            Poll::Pending
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemoryStore;
    use super::super::{Order, Row};
    use super::*;

    fn pace() -> CommitPace {
        CommitPace { gap: Duration::ZERO, row_gap: Duration::ZERO, max_pending: 1000 }
    }

    fn start(store: Arc<dyn Store>) -> Committer {
        Committer::start(store, pace(), Arc::new(Metrics::new(0))).unwrap()
    }

    fn create(key: &[u8]) -> Batch {
        let mut batch = Batch::default();
        batch.put(key.to_vec(), b"v".to_vec()).require_absent(key.to_vec());
        batch
    }

    #[tokio::test]
    async fn what_rides_with_a_batch_is_in_its_commit_or_nowhere() {
        let store = Arc::new(MemoryStore::default());
        let committer = start(store.clone());
        let ride = |key: &'static [u8]| -> Rider {
            Box::new(move |ops| {
                ops.push(Op::Put { key: key.to_vec(), value: b"rides".to_vec() });
                Ok(())
            })
        };
        committer.commit_with(create(b"a"), ride(b"b")).await.unwrap();
        assert_eq!(store.get(b"b"), Ok(Some(b"rides".to_vec())));
        // The batch lost its race: what rides is not even asked.
        let lost = committer.commit_with(create(b"a"), Box::new(|_| panic!("asked"))).await;
        assert_eq!(lost, Err(StoreError::Conflict { key: b"a".to_vec() }));
        // What rides refuses: neither is there, also not what it had begun to add.
        let refusing: Rider = Box::new(|ops| {
            ops.push(Op::Put { key: b"d".to_vec(), value: Vec::new() });
            Err(StoreError::Refused("no".into()))
        });
        assert_eq!(committer.commit_with(create(b"c"), refusing).await, Err(StoreError::Refused("no".into())));
        assert_eq!((store.get(b"c"), store.get(b"d")), (Ok(None), Ok(None)));
        // Batches after it see what rode.
        committer.commit_with(create(b"e"), ride(b"f")).await.unwrap();
        assert_eq!(committer.commit(create(b"f")).await, Err(StoreError::Conflict { key: b"f".to_vec() }));
        committer.stop();
    }

    #[test]
    fn racing_creations_have_one_winner_even_within_one_group() {
        let committer = start(Arc::new(MemoryStore::default()));
        let answers: Vec<_> = (0..50).map(|_| committer.submit(create(b"one"), None)).collect();
        let won =
            answers.into_iter().filter(|_| true).map(|a| a.blocking_recv().unwrap()).filter(Result::is_ok).count();
        assert_eq!(won, 1);
    }

    struct Counter {
        written: AtomicU64,
    }

    impl DirtyRow for Counter {
        fn write_to(&self, ops: &mut Vec<Op>) {
            let n = self.written.fetch_add(1, Ordering::SeqCst) + 1;
            ops.push(Op::Put { key: b"row".to_vec(), value: n.to_be_bytes().to_vec() });
        }
    }

    #[test]
    fn a_marked_row_is_on_disk_when_its_epoch_is_durable() {
        let committer = start(Arc::new(MemoryStore::default()));
        let row = Arc::new(Counter { written: AtomicU64::new(0) });
        let epoch = committer.mark(row.clone());
        committer.wait_blocking(epoch).unwrap();
        assert!(committer.is_durable(epoch));
        assert_eq!(committer.store().get(b"row").unwrap(), Some(1u64.to_be_bytes().to_vec()));
    }

    struct Broken;

    impl Store for Broken {
        fn get(&self, _: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
            Ok(None)
        }
        fn range(&self, _: &[u8], _: &[u8], _: usize, _: Order) -> Result<Vec<Row>, StoreError> {
            Ok(Vec::new())
        }
        fn commit(&self, _: &Batch) -> Result<(), StoreError> {
            Err(StoreError::Failed("disk on fire".into()))
        }
    }

    #[test]
    fn after_a_failed_commit_nothing_is_acknowledged() {
        let committer = start(Arc::new(Broken));
        assert!(committer.commit_blocking(create(b"a")).is_err());
        assert!(committer.has_failed());
        assert!(committer.commit_blocking(create(b"b")).is_err());
        let gate = committer.gate();
        let mut context = Context::from_waker(Waker::noop());
        let waited = gate.poll_durable(Epoch(9), &mut GateTicket::default(), &mut context);
        assert!(matches!(waited, Poll::Ready(Err(_))));
    }

    struct Panicking;

    impl Store for Panicking {
        fn get(&self, _: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
            Ok(None)
        }
        fn range(&self, _: &[u8], _: &[u8], _: usize, _: Order) -> Result<Vec<Row>, StoreError> {
            Ok(Vec::new())
        }
        fn commit(&self, _: &Batch) -> Result<(), StoreError> {
            panic!("a bug in the backend")
        }
    }

    #[test]
    fn a_backend_that_panics_fails_the_store_and_leaves_nobody_waiting() {
        let committer = start(Arc::new(Panicking));
        assert!(committer.commit_blocking(create(b"a")).is_err());
        // The thread says so after it has let go of the batch.
        while !committer.has_failed() {
            std::thread::yield_now();
        }
        assert!(committer.commit_blocking(create(b"b")).is_err());
        assert!(committer.between_commits(|| ()).is_err());
        committer.stop();
    }

    #[derive(Default)]
    struct FailingBehind(AtomicBool);

    impl Store for FailingBehind {
        fn get(&self, _: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
            Ok(None)
        }
        fn range(&self, _: &[u8], _: &[u8], _: usize, _: Order) -> Result<Vec<Row>, StoreError> {
            Ok(Vec::new())
        }
        fn commit(&self, _: &Batch) -> Result<(), StoreError> {
            Ok(())
        }
        fn has_failed(&self) -> bool {
            self.0.load(Ordering::SeqCst)
        }
    }

    #[test]
    fn a_failure_behind_the_commits_counts_without_another_commit() {
        let store = Arc::new(FailingBehind::default());
        let committer = start(store.clone());
        committer.commit_blocking(create(b"a")).unwrap();
        assert!(!committer.has_failed());
        store.0.store(true, Ordering::SeqCst);
        assert!(committer.has_failed());
        assert!(committer.commit_blocking(create(b"b")).is_err());
    }

    #[test]
    fn a_visit_comes_after_what_was_queued_before_it() {
        let committer = start(Arc::new(MemoryStore::default()));
        for n in 0..100u8 {
            let answer = committer.submit(create(&[n]), None);
            let reader = committer.clone();
            let there = committer.between_commits(move || reader.store().get(&[n]).unwrap().is_some());
            assert!(there.unwrap());
            answer.blocking_recv().unwrap().unwrap();
        }
        committer.stop();
        assert!(committer.between_commits(|| ()).is_err());
    }

    #[test]
    fn stopping_commits_what_waits() {
        let committer = start(Arc::new(MemoryStore::default()));
        let epoch = committer.mark(Arc::new(Counter { written: AtomicU64::new(0) }));
        committer.stop();
        assert!(committer.is_durable(epoch));
        assert!(committer.commit_blocking(create(b"late")).is_err());
    }
}
