//! sled 0.34.7, fenced in: what it does not promise is added here.
//!
//! Owns the database's folder. Never used by two processes at once (sled locks its file), and never from anywhere but
//! through [`Store`].

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Batch, Op, Order, Row, Store, StoreError, check, folder, sync_folder};
use crate::failpoint;

/// sled's own name for it.
const FILE: &str = "db";
/// How far apart to look whether sled has closed its file, and how often: for ten seconds where only we can have it, for one
/// where it may be somebody else's.
const CLOSING_PAUSE: Duration = Duration::from_millis(2);
const CLOSING_TRIES: u32 = 5_000;
const OPENING_TRIES: u32 = 500;

pub struct SledStore {
    db: sled::Db,
    /// Our own descriptor of the database's file: sled's `flush` ends in `sync_file_range`, which leaves the data in the
    /// disk's cache. `sync_data` on this one is what makes a commit durable.
    file: File,
}

impl SledStore {
    /// Opens or creates the database in `folder`.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when another process has it; [`StoreError::Failed`] and [`StoreError::Corrupt`] as they say.
    pub fn open(folder: &Path, cache_bytes: u64) -> Result<Self, StoreError> {
        let failed = |what: &str, e: std::io::Error| StoreError::Failed(format!("{what} {}: {e}", folder.display()));
        if !folder.join(FILE).exists() {
            make(folder, cache_bytes)?;
        }
        set_aside_half_written_snapshots(folder).map_err(|e| failed("cannot clean", e))?;
        // A process that was killed may have left what it wrote in the system's memory alone. sled is about to build a
        // snapshot on it, and to sync that.
        let file = File::open(folder.join(FILE)).map_err(|e| failed("cannot open the file in", e))?;
        let sync = || file.sync_all().and_then(|()| sync_folder(folder)).and_then(|()| folder::sync_name(folder));
        sync().map_err(|e| failed("cannot sync", e))?;
        failpoint::hit("sled.before_open");
        // This process may have dropped the same store a moment ago.
        wait_until_closed(&folder.join(FILE), OPENING_TRIES)?;
        let db = open_db(folder, cache_bytes)?;
        failpoint::hit("sled.after_open");
        sync().map_err(|e| failed("cannot sync", e))?;
        Ok(Self { db, file })
    }
}

fn open_db(folder: &Path, cache_bytes: u64) -> Result<sled::Db, StoreError> {
    sled::Config::new()
        .path(folder)
        .cache_capacity(cache_bytes)
        // Every commit is flushed by hand; the timer would only add unasked-for writes.
        .flush_every_ms(None)
        .mode(sled::Mode::HighThroughput)
        .open()
        .map_err(|e| classify(folder, e))
}

/// Makes an empty database next to where it belongs, and moves it there when all of it is on disk: sled syncs hardly any
/// of the files it begins with, and does not open what a power cut leaves of them.
fn make(folder: &Path, cache_bytes: u64) -> Result<(), StoreError> {
    let failed = |what: &str, e: std::io::Error| StoreError::Failed(format!("{what} {}: {e}", folder.display()));
    let draft = folder.with_extension("draft");
    if draft.exists() {
        fs::remove_dir_all(&draft).map_err(|e| failed("cannot clear the draft of", e))?;
    }
    folder::create(&draft).map_err(|e| failed("cannot create the draft of", e))?;
    drop(open_db(&draft, cache_bytes)?);
    wait_until_closed(&draft.join(FILE), CLOSING_TRIES)?;
    folder::sync_tree(&draft).map_err(|e| failed("cannot sync the draft of", e))?;
    failpoint::hit("sled.before_rename");
    // Over an empty folder, if there is one.
    fs::rename(&draft, folder).map_err(|e| failed("cannot name", e))?;
    failpoint::hit("sled.after_rename");
    Ok(())
}

/// sled's own threads close its file some time after its handle is dropped.
fn wait_until_closed(file: &Path, tries: u32) -> Result<(), StoreError> {
    let failed = |e: std::io::Error| StoreError::Failed(format!("cannot open {}: {e}", file.display()));
    let closing = File::open(file).map_err(failed)?;
    for _ in 0..tries {
        if closing.try_lock().is_ok() {
            return Ok(());
        }
        std::thread::sleep(CLOSING_PAUSE);
    }
    Err(StoreError::Busy(file.display().to_string()))
}

/// A crash while opening leaves `snap.*.generating`, which the next open would take for a finished snapshot and then
/// refuse the whole database as corrupt.
fn set_aside_half_written_snapshots(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            let aside: PathBuf = folder.join(format!("aside.{name}"));
            tracing::warn!(file = %path.display(), "moving a half-written snapshot aside");
            fs::rename(&path, &aside)?;
            failpoint::hit("sled.after_aside");
        }
    }
    Ok(())
}

fn classify(folder: &Path, error: sled::Error) -> StoreError {
    match error {
        sled::Error::Io(e) if e.to_string().contains("could not acquire lock") => {
            StoreError::Busy(folder.display().to_string())
        }
        sled::Error::Corruption { .. } => StoreError::Corrupt(format!("{}: {error}", folder.display())),
        other => StoreError::Failed(format!("{}: {other}", folder.display())),
    }
}

fn failed(error: sled::Error) -> StoreError {
    StoreError::Failed(error.to_string())
}

impl SledStore {
    /// What a change replaces is freed by the thread that made it, some of it with every 128th call into sled: a batch is
    /// one call, however many changes it holds, so that batch after batch memory would grow by kilobytes a row (a million
    /// users took 16 GB). A call that finds nothing is the cheapest one there is.
    fn free_what_was_replaced(&self, changes: usize) -> Result<(), StoreError> {
        for _ in 0..changes {
            self.db.get([]).map_err(failed)?;
        }
        Ok(())
    }
}

impl Store for SledStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.db.get(key).map(|found| found.map(|v| v.to_vec())).map_err(failed)
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize, order: Order) -> Result<Vec<Row>, StoreError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let within = self.db.range(from..to);
        let copy =
            |row: sled::Result<(sled::IVec, sled::IVec)>| row.map(|(k, v)| (k.to_vec(), v.to_vec())).map_err(failed);
        match order {
            Order::Ascending => within.take(limit).map(copy).collect(),
            Order::Descending => within.rev().take(limit).map(copy).collect(),
        }
    }

    fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
        // One writer by contract, so nothing can come between the check and the batch.
        check(batch, |key| self.get(key))?;
        let mut changes = sled::Batch::default();
        for op in &batch.ops {
            match op {
                Op::Put { key, value } => changes.insert(key.as_slice(), value.as_slice()),
                Op::Delete { key } => changes.remove(key.as_slice()),
            }
        }
        self.db.apply_batch(changes).map_err(failed)?;
        self.free_what_was_replaced(batch.ops.len())?;
        failpoint::hit("sled.before_flush");
        self.db.flush().map_err(failed)?;
        failpoint::io("sled.before_sync")
            .and_then(|()| self.file.sync_data())
            .map_err(|e| StoreError::Failed(format!("sync: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conforms() {
        let dir = tempfile::tempdir().unwrap();
        super::super::conformance::run(&SledStore::open(dir.path(), 1 << 20).unwrap());
    }

    #[test]
    fn keeps_what_it_acknowledged() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("store");
        let mut batch = Batch::default();
        batch.put(b"a".to_vec(), b"1".to_vec());
        SledStore::open(&folder, 1 << 20).unwrap().commit(&batch).unwrap();
        assert_eq!(SledStore::open(&folder, 1 << 20).unwrap().get(b"a").unwrap(), Some(b"1".to_vec()));
    }

    #[test]
    fn a_second_opener_is_told_it_is_busy() {
        let dir = tempfile::tempdir().unwrap();
        let _first = SledStore::open(dir.path(), 1 << 20).unwrap();
        assert!(matches!(SledStore::open(dir.path(), 1 << 20), Err(StoreError::Busy(_))));
    }

    #[test]
    fn a_database_that_a_crash_left_half_made_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, draft) = (dir.path().join("store"), dir.path().join("store.draft"));
        fs::create_dir(&draft).unwrap();
        fs::write(draft.join("conf"), b"half").unwrap();
        let mut batch = Batch::default();
        batch.put(b"a".to_vec(), b"1".to_vec());
        SledStore::open(&folder, 1 << 20).unwrap().commit(&batch).unwrap();
        assert!(!draft.exists());
        assert_eq!(SledStore::open(&folder, 1 << 20).unwrap().get(b"a").unwrap(), Some(b"1".to_vec()));
    }

    #[test]
    fn a_half_written_snapshot_does_not_brick_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let mut batch = Batch::default();
        batch.put(b"a".to_vec(), b"1".to_vec());
        SledStore::open(dir.path(), 1 << 20).unwrap().commit(&batch).unwrap();
        fs::write(dir.path().join("snap.ffffffffffffff.generating"), b"half").unwrap();
        let again = SledStore::open(dir.path(), 1 << 20).unwrap();
        assert_eq!(again.get(b"a").unwrap(), Some(b"1".to_vec()));
    }

    /// Of this process, in bytes.
    fn resident() -> u64 {
        let pages = fs::read_to_string("/proc/self/statm").unwrap();
        pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }

    #[test]
    fn batches_do_not_leave_their_rubbish_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let store = SledStore::open(dir.path(), 64 << 20).unwrap();
        let commit = |round: u32| {
            let mut batch = Batch::default();
            for n in 0..10_000u32 {
                batch.put([round.to_be_bytes(), n.to_be_bytes()].concat(), vec![7; 30]);
            }
            store.commit(&batch).unwrap();
        };
        commit(0);
        let before = resident();
        (1..=20).for_each(commit);
        let grown = resident().saturating_sub(before) >> 20;
        assert!(grown < 300, "{grown} MiB more after 200,000 rows; 100 are usual, and 600 when nothing is freed");
    }
}
