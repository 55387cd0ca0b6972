//! A store that waits or fails when a test says so.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use tollgate::store::memory::MemoryStore;
use tollgate::store::{Batch, Order, Row, Store, StoreError};

/// A memory store whose disk can be made slow or broken.
#[derive(Default)]
pub struct SteeredStore {
    rows: MemoryStore,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    commits_held: bool,
    commits_fail: bool,
    reads_fail: bool,
    /// This row's reading is to wait, after so many more have passed.
    read_to_hold: Option<(Vec<u8>, usize)>,
    read_is_held: bool,
    /// Commits that wait to be released.
    waiting: usize,
    /// Commits that went through.
    done: usize,
}

impl SteeredStore {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// From now on no commit returns, until what this returns is dropped: also when a test fails in between.
    pub fn hold_commits(self: &Arc<Self>) -> Held {
        self.state.lock().commits_held = true;
        Held(self.clone())
    }

    /// Whether a commit has come and waits.
    pub fn has_commit_waiting(&self) -> bool {
        self.state.lock().waiting > 0
    }

    /// How many commits went through so far.
    pub fn commits(&self) -> usize {
        self.state.lock().done
    }

    pub fn fail_commits(&self) {
        self.state.lock().commits_fail = true;
    }

    pub fn fail_reads(&self, fail: bool) {
        self.state.lock().reads_fail = fail;
    }

    /// Lets `pass` readings of this row through; the one after them has read the row as it then is, and returns it only
    /// when what this returns is dropped.
    pub fn hold_read(self: &Arc<Self>, key: Vec<u8>, pass: usize) -> HeldRead {
        self.state.lock().read_to_hold = Some((key, pass));
        HeldRead(self.clone())
    }

    /// Whether the reading that was to wait waits.
    pub fn has_read_waiting(&self) -> bool {
        self.state.lock().read_is_held
    }

    fn wait_if_held(&self, key: &[u8]) {
        let mut state = self.state.lock();
        if state.read_is_held {
            return;
        }
        let Some((_, left)) = state.read_to_hold.as_mut().filter(|(held, _)| held == key) else { return };
        if *left > 0 {
            *left -= 1;
            return;
        }
        state.read_is_held = true;
        while state.read_to_hold.is_some() {
            self.changed.wait(&mut state);
        }
        state.read_is_held = false;
    }

    fn readable(&self) -> Result<(), StoreError> {
        if self.state.lock().reads_fail { Err(StoreError::Failed("the test broke reading".into())) } else { Ok(()) }
    }
}

/// While it lives, the disk takes its time.
#[must_use]
pub struct Held(Arc<SteeredStore>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.state.lock().commits_held = false;
        self.0.changed.notify_all();
    }
}

/// While it lives, one reading waits.
#[must_use]
pub struct HeldRead(Arc<SteeredStore>);

impl Drop for HeldRead {
    fn drop(&mut self) {
        self.0.state.lock().read_to_hold = None;
        self.0.changed.notify_all();
    }
}

impl Store for SteeredStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.readable()?;
        let row = self.rows.get(key)?;
        self.wait_if_held(key);
        Ok(row)
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize, order: Order) -> Result<Vec<Row>, StoreError> {
        self.readable()?;
        self.rows.range(from, to, limit, order)
    }

    fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        state.waiting += 1;
        while state.commits_held {
            self.changed.wait(&mut state);
        }
        state.waiting -= 1;
        if state.commits_fail {
            return Err(StoreError::Failed("the test broke the disk".into()));
        }
        state.done += 1;
        drop(state);
        self.rows.commit(batch)
    }
}
