//! The embedded store: a sorted map of bytes with atomic, durable commits.
//!
//! Owns the trait every backend fulfils, the backends, the codecs of the rows ([`tables`]), the store's place, format and
//! migrations ([`home`], [`migrate`]) and the one thread that writes ([`committer`]). Never holds conversations (those are files) and never decides anything about money.

pub mod committer;
#[cfg(test)]
pub mod conformance;
pub mod folder;
pub mod home;
pub mod memory;
pub mod migrate;
pub mod readers;
pub mod redb;
pub mod sled;
pub mod tables;
pub mod wal;
pub mod watch;

use std::fmt;
use std::fs::File;
use std::path::Path;

/// Longest value a backend must take, in bytes: sled moves larger ones into files that it never syncs.
pub const MAX_VALUE_BYTES: usize = 4096;

/// One change to the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Put { key: Vec<u8>, value: Vec<u8> },
    Delete { key: Vec<u8> },
}

impl Op {
    pub fn key(&self) -> &[u8] {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// What must hold for a batch to be applied at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Precondition {
    Absent {
        key: Vec<u8>,
    },
    /// The value is exactly this one: compare and swap.
    Equals {
        key: Vec<u8>,
        value: Vec<u8>,
    },
}

/// Changes that happen together or not at all.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub preconditions: Vec<Precondition>,
    pub ops: Vec<Op>,
}

impl Batch {
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) -> &mut Self {
        self.ops.push(Op::Put { key, value });
        self
    }

    pub fn delete(&mut self, key: Vec<u8>) -> &mut Self {
        self.ops.push(Op::Delete { key });
        self
    }

    pub fn is_empty(&self) -> bool {
        self.preconditions.is_empty() && self.ops.is_empty()
    }

    pub fn require_absent(&mut self, key: Vec<u8>) -> &mut Self {
        self.preconditions.push(Precondition::Absent { key });
        self
    }

    pub fn require_equal(&mut self, key: Vec<u8>, value: Vec<u8>) -> &mut Self {
        self.preconditions.push(Precondition::Equals { key, value });
        self
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// A precondition did not hold; nothing was changed.
    Conflict { key: Vec<u8> },
    /// A value over [`MAX_VALUE_BYTES`]; nothing was changed.
    TooLarge { bytes: usize },
    /// The disk or the backend failed. What was not acknowledged may or may not be there after a restart.
    Failed(String),
    /// Somebody else has the store open.
    Busy(String),
    /// A row that cannot be read: damaged, or written by a newer version.
    Corrupt(String),
    /// Whole, but not for this program or this config to open: of a newer format, of another backend or another store.
    Refused(String),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conflict { .. } => f.write_str("another change came first"),
            Self::TooLarge { bytes } => write!(f, "a value of {bytes} bytes is over the limit of {MAX_VALUE_BYTES}"),
            Self::Failed(why) => write!(f, "the store failed: {why}"),
            Self::Busy(why) => write!(f, "the store is in use by another process: {why}"),
            Self::Corrupt(why) => write!(f, "the store cannot be read: {why}"),
            Self::Refused(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for StoreError {}

pub type Row = (Vec<u8>, Vec<u8>);

/// A backend. Reads may come from any thread; commits come from the committer's alone.
pub trait Store: Send + Sync + 'static {
    /// # Errors
    /// [`StoreError::Failed`].
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// At most `limit` rows with `from <= key < to`, in order of their keys, or from the last backwards.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    fn range(&self, from: &[u8], to: &[u8], limit: usize, order: Order) -> Result<Vec<Row>, StoreError>;

    /// Applies the batch at once and returns when it is on disk.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] and [`StoreError::TooLarge`] change nothing; after [`StoreError::Failed`] the process must
    /// not acknowledge anything more and recover from disk.
    fn commit(&self, batch: &Batch) -> Result<(), StoreError>;

    /// Whether something failed behind the back of those who commit, so that the next commit will be refused.
    fn has_failed(&self) -> bool {
        false
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Ascending,
    Descending,
}

/// The end of the range of all keys that begin with `prefix`.
pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            break;
        }
    }
    end
}

/// Checks a batch against what `get` shows; shared by the backends.
fn check(batch: &Batch, get: impl Fn(&[u8]) -> Result<Option<Vec<u8>>, StoreError>) -> Result<(), StoreError> {
    for op in &batch.ops {
        if let Op::Put { value, .. } = op
            && value.len() > MAX_VALUE_BYTES
        {
            return Err(StoreError::TooLarge { bytes: value.len() });
        }
    }
    for condition in &batch.preconditions {
        let (key, holds) = match condition {
            Precondition::Absent { key } => (key, get(key)?.is_none()),
            Precondition::Equals { key, value } => (key, get(key)?.as_deref() == Some(value)),
        };
        if !holds {
            return Err(StoreError::Conflict { key: key.clone() });
        }
    }
    Ok(())
}

/// Puts a folder's names on disk: what was made, renamed or removed in it.
///
/// # Errors
/// The disk's.
pub fn sync_folder(folder: &Path) -> std::io::Result<()> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder)?.sync_all()
}
