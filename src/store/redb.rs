//! redb 4: one file, a copy-on-write B-tree, one writer. The other embedded backend, beside sled.
//!
//! Owns the database's folder and the one table in it. Never used by two processes at once (redb locks its file), and never
//! from anywhere but through [`Store`].

use std::fs;
use std::io;
use std::path::Path;

use redb::{
    CommitError, Database, DatabaseError, Durability, ReadableDatabase, StorageError, TableDefinition, TableError,
    TransactionError,
};

use super::{Batch, Op, Order, Row, Store, StoreError, check, folder};
use crate::failpoint;

/// One table, because the rows carry their kind in their keys.
const ROWS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("rows");
const FILE: &str = "db.redb";
/// Where a database is made. A crash in the middle leaves a file that redb would refuse for ever; under this name it is
/// simply made again.
const UNFINISHED: &str = "db.redb.new";

pub struct RedbStore {
    db: Database,
}

impl RedbStore {
    /// Opens or creates the database in `folder`, with so many bytes of pages in memory.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when another process has it; [`StoreError::Failed`] and [`StoreError::Corrupt`] as they say.
    pub fn open(folder: &Path, cache_bytes: u64) -> Result<Self, StoreError> {
        let path = folder.join(FILE);
        if path.exists() {
            // Of the rename below, a power cut may have kept both names.
            remove_unfinished(folder)?;
        } else {
            create(folder)?;
        }
        // Every time: whoever made the file may have died before this.
        let synced = super::sync_folder(folder).and_then(|()| folder::sync_name(folder));
        synced.map_err(|e| StoreError::Failed(format!("cannot sync {}: {e}", folder.display())))?;
        let mut builder = Database::builder();
        builder.set_cache_size(usize::try_from(cache_bytes).unwrap_or(usize::MAX));
        builder.set_repair_callback({
            let path = path.clone();
            move |repair| {
                tracing::info!(file = %path.display(), progress = repair.progress(), "checking after a crash");
            }
        });
        failpoint::hit("redb.before_open");
        let db = builder.open(&path).map_err(|e| classify_open(&path, e))?;
        failpoint::hit("redb.after_open");
        Ok(Self { db })
    }
}

/// Makes an empty database and gives it its name only when it is whole and on disk.
fn create(folder: &Path) -> Result<(), StoreError> {
    let failed = |what: &str, e: io::Error| StoreError::Failed(format!("{what} {}: {e}", folder.display()));
    folder::create(folder).map_err(|e| failed("cannot create", e))?;
    remove_unfinished(folder)?;
    let unfinished = folder.join(UNFINISHED);
    let db = Database::create(&unfinished).map_err(|e| classify_open(&unfinished, e))?;
    let change = db.begin_write().map_err(transaction)?;
    change.open_table(ROWS).map_err(table)?;
    change.commit().map_err(commit)?;
    drop(db);
    failpoint::hit("redb.before_rename");
    fs::rename(&unfinished, folder.join(FILE)).map_err(|e| failed("cannot name the file in", e))?;
    failpoint::hit("redb.after_rename");
    Ok(())
}

fn remove_unfinished(folder: &Path) -> Result<(), StoreError> {
    match fs::remove_file(folder.join(UNFINISHED)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::Failed(format!("cannot clean {}: {e}", folder.display())))
        }
        _ => Ok(()),
    }
}

fn classify_open(path: &Path, error: DatabaseError) -> StoreError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::Busy(path.display().to_string()),
        DatabaseError::Storage(error) => match storage(error) {
            StoreError::Failed(why) => StoreError::Failed(format!("{}: {why}", path.display())),
            StoreError::Corrupt(why) => StoreError::Corrupt(format!("{}: {why}", path.display())),
            other => other,
        },
        other => StoreError::Failed(format!("{}: {other}", path.display())),
    }
}

fn storage(error: StorageError) -> StoreError {
    match error {
        StorageError::Corrupted(why) => StoreError::Corrupt(why),
        // Told apart from damage by nothing but the kind: a file of something else, or one cut short.
        StorageError::Io(e) if matches!(e.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) => {
            StoreError::Corrupt(e.to_string())
        }
        other => StoreError::Failed(other.to_string()),
    }
}

fn transaction(error: TransactionError) -> StoreError {
    match error {
        TransactionError::Storage(error) => storage(error),
        other => StoreError::Failed(other.to_string()),
    }
}

fn table(error: TableError) -> StoreError {
    match error {
        TableError::Storage(error) => storage(error),
        // The table was made with the file, so another shape means another program's file.
        other => StoreError::Corrupt(other.to_string()),
    }
}

fn commit(error: CommitError) -> StoreError {
    match error {
        CommitError::Storage(error) => storage(error),
        other => StoreError::Failed(other.to_string()),
    }
}

type Guard<'a> = redb::AccessGuard<'a, &'static [u8]>;

fn copy(row: Result<(Guard<'_>, Guard<'_>), StorageError>) -> Result<Row, StoreError> {
    row.map(|(key, value)| (key.value().to_vec(), value.value().to_vec())).map_err(storage)
}

impl Store for RedbStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let rows = self.db.begin_read().map_err(transaction)?.open_table(ROWS).map_err(table)?;
        Ok(rows.get(key).map_err(storage)?.map(|value| value.value().to_vec()))
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize, order: Order) -> Result<Vec<Row>, StoreError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let rows = self.db.begin_read().map_err(transaction)?.open_table(ROWS).map_err(table)?;
        let within = rows.range::<&[u8]>(from..to).map_err(storage)?;
        match order {
            Order::Ascending => within.take(limit).map(copy).collect(),
            Order::Descending => within.rev().take(limit).map(copy).collect(),
        }
    }

    fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
        // One writer by contract, so nothing can come between the check and the batch.
        check(batch, |key| self.get(key))?;
        let mut change = self.db.begin_write().map_err(transaction)?;
        change.set_durability(Durability::Immediate).map_err(|e| StoreError::Failed(e.to_string()))?;
        // Else the first open after a crash walks the whole file before it answers anybody.
        change.set_quick_repair(true);
        {
            let mut rows = change.open_table(ROWS).map_err(table)?;
            for op in &batch.ops {
                match op {
                    Op::Put { key, value } => rows.insert(key.as_slice(), value.as_slice()).map_err(storage)?,
                    Op::Delete { key } => rows.remove(key.as_slice()).map_err(storage)?,
                };
            }
        }
        failpoint::io("redb.before_commit").map_err(|e| StoreError::Failed(e.to_string()))?;
        change.commit().map_err(commit)?;
        failpoint::hit("redb.after_commit");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CACHE: u64 = 1 << 20;

    fn one_row() -> Batch {
        let mut batch = Batch::default();
        batch.put(b"a".to_vec(), b"1".to_vec());
        batch
    }

    #[test]
    fn conforms() {
        let dir = tempfile::tempdir().unwrap();
        super::super::conformance::run(&RedbStore::open(dir.path(), CACHE).unwrap());
    }

    #[test]
    fn keeps_what_it_acknowledged() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("store");
        RedbStore::open(&folder, CACHE).unwrap().commit(&one_row()).unwrap();
        assert_eq!(RedbStore::open(&folder, CACHE).unwrap().get(b"a").unwrap(), Some(b"1".to_vec()));
    }

    #[test]
    fn keeps_it_when_the_process_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let copy = tempfile::tempdir().unwrap();
        let store = RedbStore::open(dir.path(), CACHE).unwrap();
        store.commit(&one_row()).unwrap();
        // What a kill leaves is the file as it is now, without the clean end that a drop writes.
        fs::copy(dir.path().join(FILE), copy.path().join(FILE)).unwrap();
        assert_eq!(RedbStore::open(copy.path(), CACHE).unwrap().get(b"a").unwrap(), Some(b"1".to_vec()));
    }

    #[test]
    fn a_second_opener_is_told_it_is_busy() {
        let dir = tempfile::tempdir().unwrap();
        let _first = RedbStore::open(dir.path(), CACHE).unwrap();
        assert!(matches!(RedbStore::open(dir.path(), CACHE), Err(StoreError::Busy(_))));
    }

    #[test]
    fn a_crash_while_it_is_made_does_not_brick_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(UNFINISHED), vec![0u8; 1 << 16]).unwrap();
        RedbStore::open(dir.path(), CACHE).unwrap().commit(&one_row()).unwrap();
        assert!(!dir.path().join(UNFINISHED).exists());
    }

    #[test]
    fn a_second_name_that_a_power_cut_left_goes() {
        let dir = tempfile::tempdir().unwrap();
        RedbStore::open(dir.path(), CACHE).unwrap().commit(&one_row()).unwrap();
        fs::hard_link(dir.path().join(FILE), dir.path().join(UNFINISHED)).unwrap();
        let store = RedbStore::open(dir.path(), CACHE).unwrap();
        assert_eq!(store.get(b"a").unwrap(), Some(b"1".to_vec()));
        assert!(!dir.path().join(UNFINISHED).exists());
    }

    #[test]
    fn a_file_of_something_else_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE);
        fs::write(&file, b"not a database, but somebody's text").unwrap();
        assert!(matches!(RedbStore::open(dir.path(), CACHE), Err(StoreError::Corrupt(_))));
        assert_eq!(fs::read(&file).unwrap(), b"not a database, but somebody's text");
    }
}
