//! A write-ahead log in front of an embedded backend: what makes a commit durable in one write and one sync.
//!
//! Measured, one commit through sled costs some 200 µs of processor time, most of it waking its seven pool threads, against
//! about half for an append to a preallocated file, all but a little the sync (benches/README.md). So the log is the truth, and the
//! backend a checkpoint of it: a commit is appended, synced, and kept in memory; when a log file is full, its changes move
//! to the backend in the background and the file is used again. Opening replays what the backend may lack; replaying twice
//! does no harm, because changes are replayed in order and each sets a key to a value.
//!
//! Owns the folder of log files. Never interprets rows, and trusts nothing that fails its checksum.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex, RwLock};

use super::{Batch, Op, Order, Row, Store, StoreError, check};

/// A file's size as it is made; overwriting what exists needs no change of the file system's own books on each sync.
const FILE_BYTES: u64 = 16 << 20;
/// While the backend is behind, the present file grows to here; then commits wait for it.
const MAX_FILE_BYTES: u64 = 8 * FILE_BYTES;
const HEADER_BYTES: u64 = 4096;
const MAGIC: &[u8; 8] = b"TGWAL001";
/// Length, checksum, sequence.
const RECORD_HEADER: usize = 16;
/// Changes handed to the backend in one batch.
const CHECKPOINT_OPS: usize = 10_000;

/// Changes that the backend does not have yet; `None` is a deletion.
type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// A backend with a log in front of it.
pub struct LoggedStore {
    shared: Arc<Shared>,
    log: Mutex<Log>,
    checkpointer: Option<JoinHandle<()>>,
}

struct Shared {
    backend: Box<dyn Store>,
    folder: PathBuf,
    view: RwLock<View>,
    /// Signalled when `view.frozen` changes.
    changed: Condvar,
    gate: Mutex<()>,
    stop: AtomicBool,
    failed: AtomicBool,
}

/// What is newer than the backend.
#[derive(Default)]
struct View {
    active: Changes,
    /// On its way to the backend, with the files that may be reused once it is there.
    frozen: Option<(Arc<Changes>, Vec<PathBuf>)>,
}

/// The file being appended to.
struct Log {
    file: File,
    path: PathBuf,
    generation: u64,
    /// Where the next record goes.
    at: u64,
    /// Of the next record.
    sequence: u64,
    buffer: Vec<u8>,
}

fn failed(what: &str, path: &Path, error: &io::Error) -> StoreError {
    StoreError::Failed(format!("{what} {}: {error}", path.display()))
}

impl LoggedStore {
    /// Opens the log in `folder` and brings back what `backend` may lack.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when a record that was acknowledged is missing; [`StoreError::Failed`] for the disk.
    pub fn open(folder: &Path, backend: Box<dyn Store>) -> Result<Self, StoreError> {
        fs::create_dir_all(folder).map_err(|e| failed("cannot create", folder, &e))?;
        let recovered = recover(folder)?;
        let generation = recovered.last_generation + 1;
        let log = Log::begin(folder, generation, recovered.next_sequence)
            .map_err(|e| failed("cannot write in", folder, &e))?;
        let mut view = View::default();
        if !recovered.files.is_empty() {
            view.frozen = Some((Arc::new(recovered.changes), recovered.files));
        }
        let shared = Arc::new(Shared {
            backend,
            folder: folder.to_owned(),
            view: RwLock::new(view),
            changed: Condvar::new(),
            gate: Mutex::default(),
            stop: AtomicBool::new(false),
            failed: AtomicBool::new(false),
        });
        let owner = shared.clone();
        let checkpointer = std::thread::Builder::new()
            .name("tollgate-checkpt".into())
            .spawn(move || owner.checkpoint_forever())
            .map_err(|e| StoreError::Failed(format!("no thread for checkpoints: {e}")))?;
        Ok(Self { shared, log: Mutex::new(log), checkpointer: Some(checkpointer) })
    }

    /// Waits until the backend has all but the present file's changes.
    #[cfg(test)]
    fn settle(&self) {
        let mut gate = self.shared.gate.lock();
        while self.shared.view.read().frozen.is_some() {
            self.shared.changed.wait(&mut gate);
        }
    }
}

impl Drop for LoggedStore {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.notify();
        if let Some(thread) = self.checkpointer.take() {
            // A panic there has been told of already; there is nobody left to fail.
            let _ = thread.join();
        }
    }
}

impl Store for LoggedStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.shared.view.read().get(key, &*self.shared.backend)
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize, order: Order) -> Result<Vec<Row>, StoreError> {
        self.shared.view.read().range(from, to, limit, order, &*self.shared.backend)
    }

    fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
        if self.shared.failed.load(Ordering::Acquire) {
            return Err(StoreError::Failed("an earlier write failed".into()));
        }
        // One writer by contract, so nothing can come between the check and the change.
        check(batch, |key| self.get(key))?;
        if batch.ops.is_empty() {
            return Ok(());
        }
        let mut log = self.log.lock();
        if log.at >= FILE_BYTES {
            self.rotate(&mut log).inspect_err(|_| self.shared.failed.store(true, Ordering::Release))?;
        }
        log.append(&batch.ops).map_err(|e| {
            self.shared.failed.store(true, Ordering::Release);
            failed("cannot write", &log.path, &e)
        })?;
        let mut view = self.shared.view.write();
        for op in &batch.ops {
            match op {
                Op::Put { key, value } => view.active.insert(key.clone(), Some(value.clone())),
                Op::Delete { key } => view.active.insert(key.clone(), None),
            };
        }
        Ok(())
    }
}

impl LoggedStore {
    /// Hands the full file's changes to the checkpointer and begins another file, unless the last ones are still under way.
    fn rotate(&self, log: &mut Log) -> Result<(), StoreError> {
        let mut gate = self.shared.gate.lock();
        while self.shared.view.read().frozen.is_some() {
            if self.shared.failed.load(Ordering::Acquire) {
                return Err(StoreError::Failed("the backend takes no more changes".into()));
            }
            if log.at < MAX_FILE_BYTES {
                return Ok(());
            }
            self.shared.changed.wait(&mut gate);
        }
        drop(gate);
        let folder = &self.shared.folder;
        let next =
            Log::begin(folder, log.generation + 1, log.sequence).map_err(|e| failed("cannot write in", folder, &e))?;
        let full = std::mem::replace(log, next);
        let mut view = self.shared.view.write();
        let changes = std::mem::take(&mut view.active);
        view.frozen = Some((Arc::new(changes), vec![full.path]));
        drop(view);
        self.shared.notify();
        Ok(())
    }
}

impl View {
    fn get(&self, key: &[u8], backend: &dyn Store) -> Result<Option<Vec<u8>>, StoreError> {
        let frozen = self.frozen.as_ref().map(|(changes, _)| changes);
        match self.active.get(key).or_else(|| frozen.and_then(|changes| changes.get(key))) {
            Some(value) => Ok(value.clone()),
            None => backend.get(key),
        }
    }

    fn range(
        &self,
        from: &[u8],
        to: &[u8],
        limit: usize,
        order: Order,
        backend: &dyn Store,
    ) -> Result<Vec<Row>, StoreError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        let mut newer: BTreeMap<&[u8], Option<&[u8]>> = BTreeMap::new();
        let frozen = self.frozen.iter().flat_map(|(changes, _)| changes.range::<[u8], _>(bounds));
        for (key, value) in frozen.chain(self.active.range::<[u8], _>(bounds)) {
            newer.insert(key, value.as_deref());
        }
        // Each deletion may take away one of the backend's rows; with so many more, enough are left.
        let deleted = newer.values().filter(|value| value.is_none()).count();
        let rows = backend.range(from, to, limit.saturating_add(deleted), order)?;
        let mut merged: BTreeMap<Vec<u8>, Vec<u8>> =
            rows.into_iter().filter(|(key, _)| !newer.contains_key(key.as_slice())).collect();
        merged.extend(newer.into_iter().filter_map(|(key, value)| Some((key.to_vec(), value?.to_vec()))));
        Ok(match order {
            Order::Ascending => merged.into_iter().take(limit).collect(),
            Order::Descending => merged.into_iter().rev().take(limit).collect(),
        })
    }
}

impl Shared {
    fn notify(&self) {
        // Under the gate, so that nobody who has just looked misses it.
        let _gate = self.gate.lock();
        self.changed.notify_all();
    }

    fn checkpoint_forever(&self) {
        while let Some((changes, files)) = self.next_frozen() {
            if let Err(error) = self.checkpoint(&changes, &files) {
                tracing::error!(%error, "a checkpoint failed; the log keeps what the backend lacks");
                self.failed.store(true, Ordering::Release);
                self.notify();
                return;
            }
            self.view.write().frozen = None;
            self.notify();
        }
    }

    fn next_frozen(&self) -> Option<(Arc<Changes>, Vec<PathBuf>)> {
        let mut gate = self.gate.lock();
        loop {
            if let Some(frozen) = &self.view.read().frozen {
                return Some(frozen.clone());
            }
            if self.stop.load(Ordering::Acquire) {
                return None;
            }
            self.changed.wait(&mut gate);
        }
    }

    /// Moves `changes` to the backend, durably, and only then gives up the files that held them.
    fn checkpoint(&self, changes: &Changes, files: &[PathBuf]) -> Result<(), StoreError> {
        let mut rows = changes.iter().peekable();
        while rows.peek().is_some() {
            let mut batch = Batch::default();
            for (key, value) in rows.by_ref().take(CHECKPOINT_OPS) {
                match value {
                    Some(value) => batch.put(key.clone(), value.clone()),
                    None => batch.delete(key.clone()),
                };
            }
            self.backend.commit(&batch)?;
        }
        for file in files {
            give_up(&self.folder, file).map_err(|e| failed("cannot remove", file, &e))?;
        }
        Ok(())
    }
}

fn spare_path(folder: &Path) -> PathBuf {
    folder.join("spare")
}

/// Keeps one file for the next generation and removes any other.
fn give_up(folder: &Path, file: &Path) -> io::Result<()> {
    let spare = spare_path(folder);
    if spare.exists() { fs::remove_file(file) } else { fs::rename(file, spare) }
}

impl Log {
    /// A file for `generation`, made of the spare one or new, and on disk with its name before its first record.
    fn begin(folder: &Path, generation: u64, sequence: u64) -> io::Result<Self> {
        let path = folder.join(format!("{generation:020}.wal"));
        let spare = spare_path(folder);
        if spare.exists() {
            fs::rename(&spare, &path)?;
        }
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        let length = file.metadata()?.len();
        if length > FILE_BYTES {
            file.set_len(FILE_BYTES)?;
        }
        let zeros = vec![0u8; 1 << 20];
        let mut at = length;
        while at < FILE_BYTES {
            let len = zeros.len().min((FILE_BYTES - at) as usize);
            file.write_all_at(&zeros[..len], at)?;
            at += len as u64;
        }
        let mut header = Vec::with_capacity(28);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&generation.to_le_bytes());
        header.extend_from_slice(&sequence.to_le_bytes());
        header.extend_from_slice(&crc32fast::hash(&header).to_le_bytes());
        file.write_all_at(&header, 0)?;
        file.sync_all()?;
        File::open(folder)?.sync_all()?;
        Ok(Self { file, path, generation, at: HEADER_BYTES, sequence, buffer: Vec::new() })
    }

    fn append(&mut self, ops: &[Op]) -> io::Result<()> {
        self.buffer.clear();
        self.buffer.resize(RECORD_HEADER, 0);
        for op in ops {
            encode(op, &mut self.buffer);
        }
        let length =
            u32::try_from(self.buffer.len() - RECORD_HEADER).map_err(|_| io::Error::other("a batch over 4 GiB"))?;
        let sum = checksum(self.generation, self.sequence, &self.buffer[RECORD_HEADER..]);
        self.buffer[..4].copy_from_slice(&length.to_le_bytes());
        self.buffer[4..8].copy_from_slice(&sum.to_le_bytes());
        self.buffer[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        self.file.write_all_at(&self.buffer, self.at)?;
        self.file.sync_data()?;
        self.at += self.buffer.len() as u64;
        self.sequence += 1;
        self.buffer.shrink_to(1 << 20);
        Ok(())
    }
}

/// Covers the generation, so that what an earlier use of the file left behind is never taken for a record of this one.
fn checksum(generation: u64, sequence: u64, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&generation.to_le_bytes());
    hasher.update(&sequence.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

fn encode(op: &Op, out: &mut Vec<u8>) {
    let (kind, key, value): (u8, &[u8], &[u8]) = match op {
        Op::Put { key, value } => (1, key, value),
        Op::Delete { key } => (0, key, &[]),
    };
    out.push(kind);
    // Keys and values are a few kilobytes at most; the store's check sees to it.
    out.extend_from_slice(&(key.len() as u32).to_le_bytes());
    out.extend_from_slice(&(value.len() as u32).to_le_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(value);
}

/// Puts a record's changes into `changes`; `None` when it does not read as one.
fn decode(mut payload: &[u8], changes: &mut Changes) -> Option<()> {
    while let Some((&kind, rest)) = payload.split_first() {
        let (key_len, rest) = rest.split_first_chunk::<4>()?;
        let (value_len, rest) = rest.split_first_chunk::<4>()?;
        let (key, rest) = rest.split_at_checked(u32::from_le_bytes(*key_len) as usize)?;
        let (value, rest) = rest.split_at_checked(u32::from_le_bytes(*value_len) as usize)?;
        changes.insert(key.to_vec(), (kind == 1).then(|| value.to_vec()));
        payload = rest;
    }
    Some(())
}

struct Recovered {
    changes: Changes,
    files: Vec<PathBuf>,
    last_generation: u64,
    next_sequence: u64,
}

/// Reads all files in the order of their generations.
fn recover(folder: &Path) -> Result<Recovered, StoreError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| failed("cannot read", folder, &e))? {
        let path = entry.map_err(|e| failed("cannot read", folder, &e))?.path();
        if path.extension().is_some_and(|e| e == "wal") {
            files.push(path);
        }
    }
    files.sort();
    let mut recovered = Recovered { changes: Changes::new(), files: Vec::new(), last_generation: 0, next_sequence: 1 };
    let mut before: Option<PathBuf> = None;
    for path in files {
        let bytes = fs::read(&path).map_err(|e| failed("cannot read", &path, &e))?;
        // A file that is used again has its new name before its new header: until then it holds nothing.
        let named = path.file_stem().and_then(|name| name.to_str()).and_then(|name| name.parse::<u64>().ok());
        let Some((generation, first)) = read_header(&bytes).filter(|(generation, _)| Some(*generation) == named) else {
            // A crash before the header was on disk: nothing was ever acknowledged from this file.
            tracing::warn!(file = %path.display(), "a log file that was never begun is removed");
            fs::remove_file(&path).map_err(|e| failed("cannot remove", &path, &e))?;
            continue;
        };
        if let Some(before) = &before
            && first != recovered.next_sequence
        {
            return Err(StoreError::Corrupt(format!(
                "{}: records {} to {first} are missing from its end; restore a backup",
                before.display(),
                recovered.next_sequence
            )));
        }
        recovered.next_sequence = read_records(&bytes, generation, first, &mut recovered.changes);
        recovered.last_generation = recovered.last_generation.max(generation);
        recovered.files.push(path.clone());
        before = Some(path);
    }
    Ok(recovered)
}

fn read_header(bytes: &[u8]) -> Option<(u64, u64)> {
    let header = bytes.first_chunk::<28>()?;
    let word = |at: usize| header[at..].first_chunk::<8>().map(|w| u64::from_le_bytes(*w));
    let sum = header[24..].first_chunk::<4>().map(|w| u32::from_le_bytes(*w))?;
    let valid = header.starts_with(MAGIC) && crc32fast::hash(&header[..24]) == sum;
    if valid { Some((word(8)?, word(16)?)) } else { None }
}

/// Reads records up to the first that is not whole; returns the sequence that would come next.
fn read_records(bytes: &[u8], generation: u64, first: u64, changes: &mut Changes) -> u64 {
    let mut rest = bytes.get(HEADER_BYTES as usize..).unwrap_or_default();
    let mut sequence = first;
    while let Some((length, after)) = rest.split_first_chunk::<4>()
        && let Some((sum, after)) = after.split_first_chunk::<4>()
        && let Some((number, after)) = after.split_first_chunk::<8>()
        && let Some((payload, after)) = after.split_at_checked(u32::from_le_bytes(*length) as usize)
    {
        let whole = u64::from_le_bytes(*number) == sequence
            && checksum(generation, sequence, payload) == u32::from_le_bytes(*sum)
            && decode(payload, changes).is_some();
        if !whole {
            break;
        }
        sequence += 1;
        rest = after;
    }
    sequence
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemoryStore;
    use super::super::redb::RedbStore;
    use super::super::sled::SledStore;
    use super::*;

    fn put(store: &dyn Store, key: &str, value: &[u8]) {
        let mut batch = Batch::default();
        batch.put(key.as_bytes().to_vec(), value.to_vec());
        store.commit(&batch).unwrap();
    }

    /// A backend that outlives the process that used it.
    struct Surviving(Arc<MemoryStore>);

    impl Store for Surviving {
        fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
            self.0.get(key)
        }

        fn range(&self, from: &[u8], to: &[u8], limit: usize, order: Order) -> Result<Vec<Row>, StoreError> {
            self.0.range(from, to, limit, order)
        }

        fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
            self.0.commit(batch)
        }
    }

    fn open(folder: &Path) -> LoggedStore {
        LoggedStore::open(folder, Box::new(MemoryStore::default())).unwrap()
    }

    #[test]
    fn conforms_over_each_backend() {
        let dir = tempfile::tempdir().unwrap();
        super::super::conformance::run(&open(&dir.path().join("a")));
        let sled = SledStore::open(&dir.path().join("sled"), 1 << 20).unwrap();
        super::super::conformance::run(&LoggedStore::open(&dir.path().join("b"), Box::new(sled)).unwrap());
        let redb = RedbStore::open(&dir.path().join("redb"), 1 << 20).unwrap();
        super::super::conformance::run(&LoggedStore::open(&dir.path().join("c"), Box::new(redb)).unwrap());
    }

    #[test]
    fn conforms_while_everything_is_frozen_or_checkpointed() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        put(&store, "t4/z", b"old");
        put(&store, "t9/z", b"old");
        store.rotate(&mut store.log.lock()).unwrap();
        store.settle();
        super::super::conformance::run(&store);
        let mut batch = Batch::default();
        batch.delete(b"t9/z".to_vec()).put(b"t9/y".to_vec(), b"new".to_vec());
        store.commit(&batch).unwrap();
        let rows = store.range(b"t9/", b"t9/zz", 1, Order::Descending).unwrap();
        assert_eq!(rows, [(b"t9/y".to_vec(), b"new".to_vec())]);
    }

    #[test]
    fn what_was_committed_is_there_after_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let backend = Arc::new(MemoryStore::default());
        for round in 0..3 {
            let folder = dir.path().join(round.to_string());
            let store = LoggedStore::open(&folder, Box::new(Surviving(backend.clone()))).unwrap();
            for n in 0..=round {
                assert_eq!(
                    store.get(format!("k{n}").as_bytes()).unwrap().is_some(),
                    n < round,
                    "k{n} in round {round}"
                );
            }
            put(&store, &format!("k{round}"), b"v");
            // What a crash leaves is what is on disk now; the next round goes on from there.
            store.settle();
            let next = dir.path().join((round + 1).to_string());
            fs::create_dir(&next).unwrap();
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                fs::copy(&path, next.join(path.file_name().unwrap())).unwrap();
            }
        }
    }

    #[test]
    fn a_torn_tail_is_cut_at_the_last_whole_record() {
        let dir = tempfile::tempdir().unwrap();
        let (path, ends) = {
            let store = open(dir.path());
            let mut ends = Vec::new();
            for n in 0..3 {
                put(&store, &format!("k{n}"), b"value");
                ends.push(store.log.lock().at as usize);
            }
            let path = store.log.lock().path.clone();
            std::mem::forget(store);
            (path, ends)
        };
        let whole = fs::read(&path).unwrap();
        for cut in ends[1]..ends[2] {
            let mut torn = whole.clone();
            torn[cut..ends[2]].fill(0);
            let mut changes = Changes::new();
            let (generation, first) = read_header(&torn).unwrap();
            let next = read_records(&torn, generation, first, &mut changes);
            // A record whose missing bytes are zeros anyway is whole.
            let lost = torn != whole;
            assert_eq!((next, changes.len()), if lost { (3, 2) } else { (4, 3) }, "cut at {cut}");
        }
    }

    #[test]
    fn files_are_used_again_and_old_records_are_never_taken_for_new() {
        let dir = tempfile::tempdir().unwrap();
        let sled_dir = dir.path().join("sled");
        let wal = dir.path().join("wal");
        {
            let backend = Box::new(SledStore::open(&sled_dir, 1 << 20).unwrap());
            let store = LoggedStore::open(&wal, backend).unwrap();
            for round in 0..5 {
                for n in 0..20 {
                    put(&store, &format!("k{n}"), format!("{round}").as_bytes());
                }
                store.rotate(&mut store.log.lock()).unwrap();
                store.settle();
            }
            put(&store, "k0", b"last");
        }
        assert!(fs::read_dir(&wal).unwrap().count() <= 3);
        let backend = Box::new(SledStore::open(&sled_dir, 1 << 20).unwrap());
        let store = LoggedStore::open(&wal, backend).unwrap();
        assert_eq!(store.get(b"k0").unwrap(), Some(b"last".to_vec()));
        assert_eq!(store.get(b"k19").unwrap(), Some(b"4".to_vec()));
    }

    #[test]
    fn a_crash_while_a_file_is_made_ready_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        put(&store, "a", b"1");
        // The spare file has its new name, but still an old use's header and records, or none at all.
        fs::copy(&store.log.lock().path, dir.path().join(format!("{:020}.wal", 7))).unwrap();
        fs::write(dir.path().join(format!("{:020}.wal", 8)), b"").unwrap();
        std::mem::forget(store);
        assert_eq!(open(dir.path()).get(b"a").unwrap(), Some(b"1".to_vec()));
    }

    #[test]
    fn a_hole_between_two_files_is_not_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let first = {
            let store = open(dir.path());
            put(&store, "a", b"1");
            put(&store, "b", b"2");
            let path = store.log.lock().path.clone();
            // A second file, with the first still unchecked, as a crash right after a rotation leaves them.
            let sequence = store.log.lock().sequence;
            Log::begin(dir.path(), 2, sequence).unwrap();
            std::mem::forget(store);
            path
        };
        let mut bytes = fs::read(&first).unwrap();
        bytes[HEADER_BYTES as usize + 20] ^= 1;
        fs::write(&first, bytes).unwrap();
        assert!(matches!(recover(dir.path()), Err(StoreError::Corrupt(_))));
    }
}
