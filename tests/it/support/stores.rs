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
    /// Commits that wait to be released.
    waiting: usize,
}

impl SteeredStore {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// From now on no commit returns until [`SteeredStore::release_commits`].
    pub fn hold_commits(&self) {
        self.state.lock().commits_held = true;
    }

    pub fn release_commits(&self) {
        self.state.lock().commits_held = false;
        self.changed.notify_all();
    }

    /// Whether a commit has come and waits.
    pub fn has_commit_waiting(&self) -> bool {
        self.state.lock().waiting > 0
    }

    pub fn fail_commits(&self) {
        self.state.lock().commits_fail = true;
    }

    pub fn fail_reads(&self, fail: bool) {
        self.state.lock().reads_fail = fail;
    }

    fn readable(&self) -> Result<(), StoreError> {
        if self.state.lock().reads_fail { Err(StoreError::Failed("the test broke reading".into())) } else { Ok(()) }
    }
}

impl Store for SteeredStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.readable()?;
        self.rows.get(key)
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
        drop(state);
        self.rows.commit(batch)
    }
}
