//! Copying the store while it goes on changing.
//!
//! Owns the set of keys that commits have changed since a copy began. The copier reads the store page by page, then the
//! changed keys again and again, which get fewer as the rounds get shorter, and the last ones between two commits: then
//! what it has is the state after one commit. Holds keys only, and only while somebody copies.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::committer::Committer;
use super::{Op, Order, Row, Store, StoreError, tables};

/// Most keys that are remembered; about 100 MB. More changes than that in one round, and the copy is given up.
const MAX_KEYS: usize = 1_000_000;
/// Fewer changed keys than this are read between two commits: some milliseconds.
const LAST_ROUND: usize = 1_000;
/// After so many rounds the rest is read between two commits, however many there are.
const MAX_ROUNDS: usize = 30;
/// Rows read at once. Commits wait for a page under way, so it is a fraction of a millisecond of them.
const PAGE: usize = 200;

/// What the store thread tells of its commits.
#[derive(Default)]
pub(super) struct Changed {
    watched: AtomicBool,
    keys: Mutex<Keys>,
}

#[derive(Default)]
struct Keys {
    changed: HashSet<Vec<u8>>,
    too_many: bool,
}

impl Changed {
    /// To be called after each commit, by the thread that commits.
    pub(super) fn note(&self, ops: &[Op]) {
        // A copier that began later than this reads what the commit has written.
        if !self.watched.load(Ordering::SeqCst) {
            return;
        }
        let mut keys = self.keys.lock();
        for op in ops {
            if keys.changed.len() >= MAX_KEYS {
                keys.too_many = true;
                return;
            }
            keys.changed.insert(op.key().to_vec());
        }
    }

    pub(super) fn keys(&self) -> usize {
        self.keys.lock().changed.len()
    }

    fn take(&self) -> Result<HashSet<Vec<u8>>, StoreError> {
        let mut keys = self.keys.lock();
        if keys.too_many {
            return Err(StoreError::Failed(format!(
                "over {MAX_KEYS} rows changed while they were copied; try again later"
            )));
        }
        Ok(std::mem::take(&mut keys.changed))
    }
}

/// A copy under way. There is one at a time.
pub struct Copying<'a> {
    committer: &'a Committer,
}

impl Drop for Copying<'_> {
    fn drop(&mut self) {
        let changed = self.committer.changed();
        *changed.keys.lock() = Keys::default();
        changed.watched.store(false, Ordering::SeqCst);
    }
}

/// What a copier hands on, in this order: whoever applies it in this order has the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Copied {
    /// Rows in the order of their keys.
    Rows(Vec<Row>),
    /// Changes since: newer than the rows.
    Changes(Vec<Op>),
}

impl<'a> Copying<'a> {
    /// `None` while another copy is under way.
    pub fn begin(committer: &'a Committer) -> Option<Self> {
        let free = committer.changed().watched.compare_exchange(false, true, Ordering::SeqCst, Ordering::SeqCst);
        free.ok().map(|_| Self { committer })
    }

    /// Copies everything but the store's own rows. When it returns, what was handed on is the state after one commit.
    /// `emit` may take its time: nobody waits for it. Answers how long commits had to wait.
    ///
    /// # Errors
    /// [`StoreError::Failed`], also when too much changes meanwhile; or what `emit` says.
    pub fn run<E: From<StoreError>>(&self, mut emit: impl FnMut(Copied) -> Result<(), E>) -> Result<Duration, E> {
        let store = self.committer.store();
        let mut from = after(tables::OWN);
        loop {
            let rows = store.range(&from, &[u8::MAX], PAGE, Order::Ascending)?;
            let Some((last, _)) = rows.last() else { break };
            from = next(last);
            emit(Copied::Rows(rows))?;
        }
        for _ in 0..MAX_ROUNDS {
            let keys = self.committer.changed().take()?;
            let few = keys.len() < LAST_ROUND;
            let mut keys = keys.into_iter();
            loop {
                let changes = read_some(store, &mut keys)?;
                if changes.is_empty() {
                    break;
                }
                emit(Copied::Changes(changes))?;
            }
            if few {
                break;
            }
        }
        let committer = self.committer.clone();
        let (last, paused) = self.committer.between_commits(move || {
            let began = Instant::now();
            let mut keys = committer.changed().take()?.into_iter();
            let mut changes = Vec::new();
            loop {
                let some = read_some(committer.store(), &mut keys)?;
                if some.is_empty() {
                    return Ok((changes, began.elapsed()));
                }
                changes.extend(some);
            }
        })??;
        if !last.is_empty() {
            emit(Copied::Changes(last))?;
        }
        Ok(paused)
    }
}

fn read_some(store: &dyn Store, keys: &mut impl Iterator<Item = Vec<u8>>) -> Result<Vec<Op>, StoreError> {
    let read = |key: Vec<u8>| {
        Ok(match store.get(&key)? {
            Some(value) => Op::Put { key, value },
            None => Op::Delete { key },
        })
    };
    keys.filter(|key| !key.starts_with(tables::OWN)).take(PAGE).map(read).collect()
}

/// The first key after all that begin with `prefix`.
fn after(prefix: &[u8]) -> Vec<u8> {
    super::prefix_end(prefix)
}

/// The least key that is greater.
fn next(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::super::Batch;
    use super::super::committer::CommitPace;
    use super::super::memory::MemoryStore;
    use super::*;
    use crate::telemetry::metrics::Metrics;

    fn committer() -> Committer {
        let pace = CommitPace { gap: Duration::ZERO, row_gap: Duration::ZERO, max_pending: 1000 };
        Committer::start(Arc::new(MemoryStore::default()), pace, Arc::new(Metrics::new(0))).unwrap()
    }

    fn put(batch: &mut Batch, key: String, value: u64) {
        batch.put(key.into_bytes(), value.to_string().into_bytes());
    }

    fn apply(copy: &mut BTreeMap<Vec<u8>, Vec<u8>>, copied: Copied) {
        match copied {
            Copied::Rows(rows) => copy.extend(rows),
            Copied::Changes(ops) => {
                for op in ops {
                    match op {
                        Op::Put { key, value } => copy.insert(key, value),
                        Op::Delete { key } => copy.remove(&key),
                    };
                }
            }
        }
    }

    /// Every commit moves something from one account to another and makes and removes a row of its own number, so that a
    /// copy that mixes two commits shows.
    #[test]
    fn a_copy_is_the_state_after_one_commit() {
        const ACCOUNTS: u64 = 5_000;
        let committer = committer();
        let mut batch = Batch::default();
        for n in 0..ACCOUNTS {
            put(&mut batch, format!("m/{n:05}"), 100);
        }
        put(&mut batch, "z/commit".into(), 0);
        put(&mut batch, "t/0".into(), 0);
        committer.commit_blocking(batch).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (writer, ended) = (committer.clone(), stop.clone());
        let writing = std::thread::spawn(move || {
            let mut balances = vec![100u64; ACCOUNTS as usize];
            let mut commit = 0u64;
            while !ended.load(Ordering::SeqCst) {
                commit += 1;
                let mut batch = Batch::default();
                for n in 0..20 {
                    let (a, b) = ((commit * 7919 + n * 31) % ACCOUNTS, (commit * 104_729 + n * 17) % ACCOUNTS);
                    if a != b && balances[a as usize] > 0 {
                        balances[a as usize] -= 1;
                        balances[b as usize] += 1;
                        put(&mut batch, format!("m/{a:05}"), balances[a as usize]);
                        put(&mut batch, format!("m/{b:05}"), balances[b as usize]);
                    }
                }
                put(&mut batch, "z/commit".into(), commit);
                put(&mut batch, format!("t/{commit}"), commit);
                batch.delete(format!("t/{}", commit - 1).into_bytes());
                writer.commit_blocking(batch).unwrap();
            }
        });
        for _ in 0..20 {
            let mut copy = BTreeMap::new();
            let copying = Copying::begin(&committer).unwrap();
            assert!(Copying::begin(&committer).is_none(), "one at a time");
            copying
                .run::<StoreError>(|copied| {
                    apply(&mut copy, copied);
                    Ok(())
                })
                .unwrap();
            drop(copying);
            let number = |value: &Vec<u8>| String::from_utf8(value.clone()).unwrap().parse::<u64>().unwrap();
            let total: u64 =
                copy.iter().filter(|(key, _)| key.starts_with(b"m/")).map(|(_, value)| number(value)).sum();
            assert_eq!(total, ACCOUNTS * 100, "money of two commits");
            let commit = number(&copy[&b"z/commit".to_vec()]);
            let own: Vec<u64> = copy.iter().filter(|(key, _)| key.starts_with(b"t/")).map(|(_, v)| number(v)).collect();
            assert_eq!(own, [commit], "the row that this commit made, and none that it removed");
        }
        stop.store(true, Ordering::SeqCst);
        writing.join().unwrap();
    }

    #[test]
    fn the_stores_own_rows_are_not_copied() {
        let committer = committer();
        let mut batch = Batch::default();
        batch.put(tables::CHECKPOINT.to_vec(), b"own".to_vec()).put(b"a".to_vec(), b"1".to_vec());
        committer.commit_blocking(batch.clone()).unwrap();
        let mut copy = BTreeMap::new();
        let copying = Copying::begin(&committer).unwrap();
        committer.commit_blocking(batch).unwrap();
        copying
            .run::<StoreError>(|copied| {
                apply(&mut copy, copied);
                Ok(())
            })
            .unwrap();
        assert_eq!(copy.into_iter().collect::<Vec<_>>(), [(b"a".to_vec(), b"1".to_vec())]);
    }

    #[test]
    fn a_copier_that_leaves_leaves_nothing_behind() {
        let committer = committer();
        let copying = Copying::begin(&committer).unwrap();
        let mut batch = Batch::default();
        batch.put(b"a".to_vec(), b"1".to_vec());
        committer.commit_blocking(batch).unwrap();
        drop(copying);
        assert!(committer.changed().keys.lock().changed.is_empty());
        assert!(Copying::begin(&committer).is_some());
    }
}
