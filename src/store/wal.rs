//! A write-ahead log in front of an embedded backend: what makes a commit durable in one write and one sync.
//!
//! Measured, one commit through sled costs some 200 µs of processor time, most of it waking its seven pool threads, against
//! about half for an append to a preallocated file, all but a little the sync (benches/README.md). So the log is the truth, and the
//! backend a checkpoint of it: a commit is appended, synced, and kept in memory; when a log file is full, its changes move
//! to the backend in the background and the file is used again. Opening replays what the backend may lack; replaying twice
//! does no harm, because changes are replayed in order and each sets a key to a value.
//!
//! Owns the folder of log files. Never interprets rows, and trusts nothing that fails its checksum.

mod recovery;
mod view;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex, RwLock};
use serde::{Deserialize, Serialize};

use super::{Batch, Op, Order, Row, Store, StoreError, check, folder, sync_folder, tables};
use crate::failpoint;
use recovery::{Recovered, recover};
use view::{Frozen, View};

/// While the backend is behind, the present file grows to so many times its size; then commits wait for it.
const MAX_GROWTH: u64 = 8;
const HEADER_BYTES: u64 = 4096;
const MAGIC: &[u8; 8] = b"TGWAL002";
/// As [`MAGIC`], in stores of format 1: without the store's id.
const MAGIC_FORMAT_1: &[u8; 8] = b"TGWAL001";
/// Length, checksum, sequence.
const RECORD_HEADER: usize = 16;
/// Changes handed to the backend in one batch.
const CHECKPOINT_OPS: usize = 10_000;

/// Whose log it is. One store's log is never replayed into another's backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogOwner {
    /// Made at random with the store; never zero.
    pub store: [u8; 16],
    /// Whether files of format 1, which name no store, may be among this one's.
    pub accepts_format_1: bool,
}

/// Where a log is, and what its files are like.
#[derive(Clone, Debug)]
pub struct LogOptions {
    pub folder: PathBuf,
    pub owner: LogOwner,
    /// A file's size as it is made, in bytes; overwriting what exists needs no change of the file system's own books on
    /// each sync, and a full disk is met when a file is made.
    pub file_bytes: u64,
}

/// A backend with a log in front of it.
pub struct LoggedStore {
    shared: Arc<Shared>,
    log: Mutex<Log>,
    checkpointer: Option<JoinHandle<()>>,
    /// What must be let go only after the backend: the lock of the data directory.
    _guard: Option<File>,
}

struct Shared {
    backend: Box<dyn Store>,
    options: LogOptions,
    view: RwLock<View>,
    /// Signalled when `view.frozen` changes.
    changed: Condvar,
    gate: Mutex<()>,
    stop: AtomicBool,
    failed: AtomicBool,
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

/// The backend's own row about the log: changed together with what it speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Checkpoint {
    store: [u8; 16],
    /// The last record that is in the backend.
    applied: u64,
}

fn failed(what: &str, path: &Path, error: &io::Error) -> StoreError {
    StoreError::Failed(format!("{what} {}: {error}", path.display()))
}

/// Whether a folder has a log file that names its store. What cannot be read is left to the opening.
pub fn is_of_present_format(folder: &Path) -> bool {
    let begins_so = |path: PathBuf| {
        let mut magic = [0u8; 8];
        path.extension().is_some_and(|e| e == "wal")
            && File::open(path).is_ok_and(|file| file.read_exact_at(&mut magic, 0).is_ok())
            && magic == *MAGIC
    };
    fs::read_dir(folder).is_ok_and(|entries| entries.flatten().any(|entry| begins_so(entry.path())))
}

/// What an operator is told when there is no room, which is met here and hardly anywhere else.
fn cannot_begin(folder: &Path, error: &io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Failed(format!(
            "the disk is full: no room for a log file in {} ({error}); free some space and start again, nothing is lost",
            folder.display()
        )),
        _ => failed("cannot write in", folder, error),
    }
}

impl LoggedStore {
    /// Opens the log and brings back what `backend` may lack. `guard` is held until the backend is closed.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when a record that was acknowledged is missing; [`StoreError::Refused`] when log and backend
    /// are not of one store; [`StoreError::Failed`] for the disk.
    pub fn open(options: LogOptions, backend: Box<dyn Store>, guard: Option<File>) -> Result<Self, StoreError> {
        let (folder, owner) = (options.folder.as_path(), options.owner);
        // What an earlier process renamed or removed, and died before the sync: nothing is built on names that may go again.
        folder::create(folder).and_then(|()| sync_folder(folder)).map_err(|e| failed("cannot create", folder, &e))?;
        let checkpoint = tables::read::<Checkpoint>(&*backend, tables::CHECKPOINT)?;
        failpoint::hit("wal.before_recovery");
        let recovered = recover(folder, &owner, checkpoint.map_or(0, |checkpoint| checkpoint.applied))?;
        failpoint::hit("wal.after_recovery");
        check_together(folder, &owner, checkpoint, &recovered)?;
        recovered.clear(folder)?;
        let log = Log::begin(&options, recovered.last_generation + 1, recovered.next_sequence)
            .map_err(|e| cannot_begin(folder, &e))?;
        if checkpoint.is_none() && owner.accepts_format_1 {
            // Of format 1 only the log knows how far the backend was: up to its first record.
            let applied = recovered.first_sequence.unwrap_or(1) - 1;
            backend.commit(&Checkpoint { store: owner.store, applied }.batch()?)?;
        }
        let mut view = View::default();
        if !recovered.files.is_empty() {
            view.frozen = Some(Frozen {
                changes: Arc::new(recovered.changes),
                files: recovered.files,
                upto: recovered.next_sequence - 1,
            });
        }
        let shared = Arc::new(Shared {
            backend,
            options,
            view: RwLock::new(view),
            changed: Condvar::new(),
            gate: Mutex::default(),
            stop: AtomicBool::new(false),
            failed: AtomicBool::new(false),
        });
        let worker = shared.clone();
        let checkpointer = std::thread::Builder::new()
            .name("tollgate-checkpt".into())
            .spawn(move || worker.checkpoint_forever())
            .map_err(|e| StoreError::Failed(format!("no thread for checkpoints: {e}")))?;
        Ok(Self { shared, log: Mutex::new(log), checkpointer: Some(checkpointer), _guard: guard })
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

    fn has_failed(&self) -> bool {
        self.shared.failed.load(Ordering::Acquire)
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
        // What goes over a file's end needs room that may not be there; a new file asks for it first.
        if log.at > HEADER_BYTES && log.at + record_bytes(&batch.ops) > self.shared.options.file_bytes {
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
            if log.at < MAX_GROWTH.saturating_mul(self.shared.options.file_bytes) {
                return Ok(());
            }
            self.shared.changed.wait(&mut gate);
        }
        drop(gate);
        failpoint::hit("wal.before_rotate");
        let options = &self.shared.options;
        let next =
            Log::begin(options, log.generation + 1, log.sequence).map_err(|e| cannot_begin(&options.folder, &e))?;
        failpoint::hit("wal.after_rotate");
        let full = std::mem::replace(log, next);
        let mut view = self.shared.view.write();
        let changes = Arc::new(std::mem::take(&mut view.active));
        view.frozen = Some(Frozen { changes, files: vec![full.path], upto: full.sequence - 1 });
        drop(view);
        self.shared.notify();
        Ok(())
    }
}

impl Shared {
    fn notify(&self) {
        // Under the gate, so that nobody who has just looked misses it.
        let _gate = self.gate.lock();
        self.changed.notify_all();
    }

    fn checkpoint_forever(&self) {
        while let Some(frozen) = self.next_frozen() {
            // Whatever a backend does, a commit that waits for it must hear of it.
            let done = catch_unwind(AssertUnwindSafe(|| self.checkpoint(&frozen)))
                .unwrap_or_else(|_| Err(StoreError::Failed("the backend panicked".into())));
            if let Err(error) = done {
                tracing::error!(%error, "a checkpoint failed; the log keeps what the backend lacks");
                self.failed.store(true, Ordering::Release);
                self.notify();
                return;
            }
            self.view.write().frozen = None;
            self.notify();
        }
    }

    fn next_frozen(&self) -> Option<Frozen> {
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

    /// Moves changes to the backend, durably, and only then gives up the files that held them.
    fn checkpoint(&self, frozen: &Frozen) -> Result<(), StoreError> {
        failpoint::hit("wal.before_apply");
        let mut rows = frozen.changes.iter().peekable();
        let mut batch = Batch::default();
        while rows.peek().is_some() {
            for (key, value) in rows.by_ref().take(CHECKPOINT_OPS) {
                match value {
                    Some(value) => batch.put(key.clone(), value.clone()),
                    None => batch.delete(key.clone()),
                };
            }
            if rows.peek().is_some() {
                self.backend.commit(&std::mem::take(&mut batch))?;
            }
        }
        let checkpoint = Checkpoint { store: self.options.owner.store, applied: frozen.upto };
        batch.ops.append(&mut checkpoint.batch()?.ops);
        self.backend.commit(&batch)?;
        // The oldest first and each for good before the next: a crash in between must leave no hole.
        for file in &frozen.files {
            failpoint::hit("wal.after_apply");
            give_up(&self.options.folder, file).map_err(|e| failed("cannot remove", file, &e))?;
        }
        Ok(())
    }
}

impl Checkpoint {
    fn batch(self) -> Result<Batch, StoreError> {
        let mut batch = Batch::default();
        batch.put(tables::CHECKPOINT.to_vec(), tables::encode(&self)?);
        Ok(batch)
    }
}

/// Checks that log and backend are of one store and leave no gap between them.
fn check_together(
    folder: &Path,
    owner: &LogOwner,
    checkpoint: Option<Checkpoint>,
    recovered: &Recovered,
) -> Result<(), StoreError> {
    let folder = folder.display();
    let Some(Checkpoint { store, applied }) = checkpoint else {
        return match recovered.first_sequence {
            Some(first) if first > 1 && !owner.accepts_format_1 => Err(StoreError::Corrupt(format!(
                "the backend lacks all that was before record {first} of the log in {folder}; restore a backup"
            ))),
            _ => Ok(()),
        };
    };
    if store != owner.store {
        return Err(StoreError::Refused(format!(
            "the backend's files belong to another store than the log in {folder}; bring back the ones that belong \
             together, or restore a backup"
        )));
    }
    let Some(first) = recovered.first_sequence else {
        return Err(StoreError::Corrupt(format!(
            "there is no log in {folder}, though the backend relies on one; bring it back or restore a backup"
        )));
    };
    if first > applied + 1 {
        return Err(StoreError::Corrupt(format!(
            "records {} to {first} are missing between the backend and the log in {folder}; restore a backup",
            applied + 1
        )));
    }
    if recovered.next_sequence <= applied {
        return Err(StoreError::Corrupt(format!(
            "the log in {folder} ends before record {applied}, which the backend has; it is an older copy: restore a backup"
        )));
    }
    Ok(())
}

/// What a file of that generation begins with; `first` is the sequence of its first record.
fn header(store: [u8; 16], generation: u64, first: u64) -> Vec<u8> {
    let mut header = Vec::with_capacity(44);
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&generation.to_le_bytes());
    header.extend_from_slice(&first.to_le_bytes());
    header.extend_from_slice(&store);
    header.extend_from_slice(&crc32fast::hash(&header).to_le_bytes());
    header
}

fn spare_path(folder: &Path) -> PathBuf {
    folder.join("spare")
}

/// Keeps one file for the next generation and removes any other, for good when it returns.
fn give_up(folder: &Path, file: &Path) -> io::Result<()> {
    let spare = spare_path(folder);
    if spare.exists() {
        fs::remove_file(file)?
    } else {
        fs::rename(file, spare)?
    }
    failpoint::hit("wal.after_give_up");
    sync_folder(folder)
}

impl Log {
    /// A file for `generation`, made of the spare one or new, and on disk with its name before its first record.
    fn begin(options: &LogOptions, generation: u64, sequence: u64) -> io::Result<Self> {
        let folder = options.folder.as_path();
        let path = folder.join(format!("{generation:020}.wal"));
        let spare = spare_path(folder);
        if spare.exists() {
            fs::rename(&spare, &path)?;
            failpoint::hit("wal.after_rename");
            // Before a byte of it changes: should this name be lost and an older one come back, the file has to be what it
            // was under that one.
            sync_folder(folder)?;
            failpoint::hit("wal.after_rename_sync");
            let file = OpenOptions::new().read(true).write(true).open(&path)?;
            return Self::begin_in(file, path, options, generation, sequence);
        }
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        Self::begin_in(file, path.clone(), options, generation, sequence).inspect_err(|_| {
            // Half a file on a full disk only makes it fuller. Should this fail too, the next start does it.
            let _ = fs::remove_file(&path);
        })
    }

    fn begin_in(file: File, path: PathBuf, options: &LogOptions, generation: u64, sequence: u64) -> io::Result<Self> {
        let length = file.metadata()?.len();
        if length > options.file_bytes {
            file.set_len(options.file_bytes)?;
        }
        let zeros = vec![0u8; 1 << 20];
        let mut at = length;
        while at < options.file_bytes {
            let len = zeros.len().min((options.file_bytes - at) as usize);
            file.write_all_at(&zeros[..len], at)?;
            at += len as u64;
        }
        file.write_all_at(&header(options.owner.store, generation, sequence), 0)?;
        failpoint::io("wal.before_header_sync")?;
        file.sync_all()?;
        failpoint::hit("wal.before_name_sync");
        sync_folder(&options.folder)?;
        failpoint::hit("wal.after_header_sync");
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
        failpoint::io("wal.before_write")?;
        self.file.write_all_at(&self.buffer, self.at)?;
        failpoint::io("wal.before_sync")?;
        if !failpoint::is_on("wal.skip_sync") {
            self.file.sync_data()?;
        }
        failpoint::hit("wal.after_sync");
        self.at += self.buffer.len() as u64;
        self.sequence += 1;
        self.buffer.shrink_to(1 << 20);
        Ok(())
    }
}

/// What these changes take in a file.
fn record_bytes(ops: &[Op]) -> u64 {
    let op_bytes = |op: &Op| match op {
        Op::Put { key, value } => 9 + key.len() + value.len(),
        Op::Delete { key } => 9 + key.len(),
    };
    (RECORD_HEADER + ops.iter().map(op_bytes).sum::<usize>()) as u64
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

#[cfg(test)]
mod tests;
