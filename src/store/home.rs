//! A store's place in the data directory: who has it open, which backend it is of, which format, and which log is its own.
//!
//! Owns `data_dir/lock` and `data_dir/store.json`. Both are looked at before anything else of the store is: a store of a
//! newer format, or of another backend than the config names, is refused before a byte of it is interpreted. Never opens a
//! backend.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::wal::{self, LogOptions, LogOwner};
use super::{StoreError, folder, sync_folder};
use crate::clock;

/// The format this program writes. 1 had neither `store.json` nor a store's id in its log.
pub const FORMAT: u32 = 2;

const LOCK: &str = "lock";
const DESCRIPTION: &str = "store.json";
const LOG_FOLDER: &str = "wal";
/// The only backend that stores of format 1 had.
const BACKEND_OF_FORMAT_1: &str = "sled";

/// What `store.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    pub format: u32,
    pub backend: String,
    /// The store's id, 32 hexadecimal digits.
    pub store: String,
    /// The version of the program that wrote this file.
    pub written_by: String,
}

/// A data directory that this process has to itself.
#[derive(Debug)]
pub struct Home {
    data_dir: PathBuf,
    lock: File,
    pub description: Description,
}

impl Home {
    /// Takes the data directory for this process and reads or makes its description.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when another process has it; [`StoreError::Refused`] for a newer format or another backend;
    /// [`StoreError::Corrupt`] when the description is damaged or lost.
    pub fn open(data_dir: &Path, backend: &str) -> Result<Self, StoreError> {
        Self::open_locked(take(data_dir)?, data_dir, backend)
    }

    /// As [`Home::open`], for whoever has taken the directory already.
    ///
    /// # Errors
    /// As [`Home::open`].
    pub fn open_locked(lock: File, data_dir: &Path, backend: &str) -> Result<Self, StoreError> {
        // What an earlier process named or removed here, and died before the sync: all that follows is built on it.
        sync_folder(data_dir).map_err(|e| failed("cannot sync", data_dir, &e))?;
        let description = match read(data_dir)? {
            Some(description) => description,
            None => first_description(data_dir, backend)?,
        };
        check(data_dir, &description, backend)?;
        let home = Self { data_dir: data_dir.to_owned(), lock, description };
        if !data_dir.join(DESCRIPTION).exists() {
            home.write()?;
        }
        Ok(home)
    }

    /// The folder of a backend's files. No two backends share one.
    pub fn backend_folder(&self) -> PathBuf {
        backend_folder(&self.data_dir, &self.description.backend)
    }

    /// The log of this store, in files of so many bytes.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when the description is damaged.
    pub fn log(&self, file_bytes: u64) -> Result<LogOptions, StoreError> {
        let file_bytes = crate::failpoint::number("wal.file_bytes").unwrap_or(file_bytes);
        Ok(LogOptions { folder: self.data_dir.join(LOG_FOLDER), owner: self.log_owner()?, file_bytes })
    }

    fn log_owner(&self) -> Result<LogOwner, StoreError> {
        let store = u128::from_str_radix(&self.description.store, 16)
            .map_err(|_| StoreError::Corrupt(format!("{}: \"store\" is not an id", self.path().display())))?;
        Ok(LogOwner { store: store.to_be_bytes(), accepts_format_1: self.description.format == 1 })
    }

    /// Says from now on that the store is of this format.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    pub fn set_format(&mut self, format: u32) -> Result<(), StoreError> {
        self.description.format = format;
        self.description.written_by = env!("CARGO_PKG_VERSION").into();
        self.write()
    }

    /// A second handle to the lock, for whom the store is handed to: the directory is free when both are gone.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    pub fn guard(&self) -> Result<File, StoreError> {
        self.lock.try_clone().map_err(|e| failed("cannot keep", &self.data_dir.join(LOCK), &e))
    }

    fn path(&self) -> PathBuf {
        self.data_dir.join(DESCRIPTION)
    }

    fn write(&self) -> Result<(), StoreError> {
        write(&self.data_dir, &self.description)
    }
}

fn write(data_dir: &Path, description: &Description) -> Result<(), StoreError> {
    let path = data_dir.join(DESCRIPTION);
    let text = serde_json::to_string_pretty(description).map_err(|e| StoreError::Failed(e.to_string()))?;
    let written = folder::write_whole(&path, &path.with_extension("json.new"), text.as_bytes());
    written.map_err(|e| failed("cannot write", &path, &e))
}

fn failed(what: &str, path: &Path, error: &io::Error) -> StoreError {
    StoreError::Failed(format!("{what} {}: {error}", path.display()))
}

/// Takes the lock of a data directory, which goes with the file that is returned.
///
/// # Errors
/// [`StoreError::Busy`] when another process has it.
pub fn take(data_dir: &Path) -> Result<File, StoreError> {
    folder::create(data_dir).map_err(|e| failed("cannot create data_dir", data_dir, &e))?;
    let path = data_dir.join(LOCK);
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|e| failed("cannot open", &path, &e))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(StoreError::Busy(data_dir.display().to_string())),
        Err(TryLockError::Error(e)) => Err(failed("cannot lock", &path, &e)),
    }
}

/// Makes the description of a new store of this format in `data_dir`; answers where its backend's files go.
///
/// # Errors
/// [`StoreError::Failed`].
pub fn describe(data_dir: &Path, backend: &str, format: u32) -> Result<PathBuf, StoreError> {
    let mut description = first_description(data_dir, backend)?;
    description.format = format;
    write(data_dir, &description)?;
    Ok(backend_folder(data_dir, backend))
}

/// Whether an entry of a data directory is of the store: its description, its log or a backend's files.
pub fn is_part_of_store(name: &str) -> bool {
    name == DESCRIPTION || name == LOG_FOLDER || name == "store" || name.starts_with("store-")
}

/// Whether there is a store in a data directory, or what is left of one.
pub fn exists(data_dir: &Path) -> bool {
    part_of_store(data_dir).is_ok_and(|part| part.is_some())
}

/// What a data directory's store is; `None` where no program of format 2 or later has been.
///
/// # Errors
/// [`StoreError::Corrupt`] when the file is there and cannot be read.
pub fn read(data_dir: &Path) -> Result<Option<Description>, StoreError> {
    let path = data_dir.join(DESCRIPTION);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed("cannot read", &path, &e)),
    };
    let found = serde_json::from_slice(&text);
    found.map(Some).map_err(|e| StoreError::Corrupt(format!("{}: {e}; restore a backup", path.display())))
}

/// Refuses a data directory that holds somebody's store, for those who would start without opening it.
///
/// # Errors
/// [`StoreError::Refused`].
pub fn refuse_other_backend(data_dir: &Path, backend: &str) -> Result<(), StoreError> {
    let found = match read(data_dir)? {
        Some(description) => description.backend,
        None if is_of_format_1(data_dir) => BACKEND_OF_FORMAT_1.into(),
        None => return Ok(()),
    };
    if found == backend { Ok(()) } else { Err(other_backend(data_dir, &found, backend)) }
}

fn other_backend(data_dir: &Path, found: &str, wanted: &str) -> StoreError {
    StoreError::Refused(format!(
        "store.backend: {} holds a store of \"{found}\", and the config names \"{wanted}\"; set store.backend = \
         \"{found}\", or move over: `tollgate backup FILE` with the old setting, then `tollgate restore FILE` with the \
         new one into an empty data_dir",
        data_dir.display()
    ))
}

fn check(data_dir: &Path, description: &Description, backend: &str) -> Result<(), StoreError> {
    if description.format > FORMAT {
        return Err(StoreError::Refused(format!(
            "the store in {} is of format {}, written by tollgate {}; this is {}, which knows formats up to {FORMAT}: \
             run the newer program, or restore a backup that this one made",
            data_dir.display(),
            description.format,
            description.written_by,
            env!("CARGO_PKG_VERSION")
        )));
    }
    if description.format == 0 {
        return Err(StoreError::Corrupt(format!("{}: format 0", data_dir.join(DESCRIPTION).display())));
    }
    if description.backend != backend {
        return Err(other_backend(data_dir, &description.backend, backend));
    }
    Ok(())
}

fn backend_folder(data_dir: &Path, backend: &str) -> PathBuf {
    // Format 1 had but one backend, in a folder without its name.
    data_dir.join(if backend == BACKEND_OF_FORMAT_1 { "store".to_owned() } else { format!("store-{backend}") })
}

/// Format 1 left no description; a log of the present format tells that one was there and is gone.
fn is_of_format_1(data_dir: &Path) -> bool {
    backend_folder(data_dir, BACKEND_OF_FORMAT_1).exists() && !wal::is_of_present_format(&data_dir.join(LOG_FOLDER))
}

fn part_of_store(data_dir: &Path) -> Result<Option<PathBuf>, StoreError> {
    let entries = fs::read_dir(data_dir).map_err(|e| failed("cannot read", data_dir, &e))?;
    for entry in entries {
        let entry = entry.map_err(|e| failed("cannot read", data_dir, &e))?;
        if entry.file_name().to_str().is_some_and(is_part_of_store) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// The description of a store that has none: a new one's, or that of format 1.
fn first_description(data_dir: &Path, backend: &str) -> Result<Description, StoreError> {
    let mut id = [0u8; 16];
    clock::random_bytes(&mut id).map_err(|e| StoreError::Failed(e.to_string()))?;
    // Zero means none.
    let id = u128::from_be_bytes(id).max(1);
    let old = is_of_format_1(data_dir);
    if !old && let Some(part) = part_of_store(data_dir)? {
        return Err(StoreError::Corrupt(format!(
            "{} is missing, though {} is there; bring it back or restore a backup",
            data_dir.join(DESCRIPTION).display(),
            part.display()
        )));
    }
    Ok(Description {
        format: if old { 1 } else { FORMAT },
        backend: if old { BACKEND_OF_FORMAT_1 } else { backend }.to_owned(),
        store: format!("{id:032x}"),
        written_by: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_store_gets_the_present_format_and_keeps_its_id() {
        let dir = tempfile::tempdir().unwrap();
        let first = Home::open(dir.path(), "redb").unwrap();
        assert_eq!((first.description.format, first.description.backend.as_str()), (FORMAT, "redb"));
        assert!(!first.log_owner().unwrap().accepts_format_1);
        let id = first.log_owner().unwrap().store;
        drop(first);
        assert_eq!(Home::open(dir.path(), "redb").unwrap().log_owner().unwrap().store, id);
    }

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = Home::open(dir.path(), "sled").unwrap();
        let guard = first.guard().unwrap();
        assert!(matches!(Home::open(dir.path(), "sled"), Err(StoreError::Busy(_))));
        drop(first);
        assert!(matches!(Home::open(dir.path(), "sled"), Err(StoreError::Busy(_))), "the store is still open");
        drop(guard);
        assert!(Home::open(dir.path(), "sled").is_ok());
    }

    #[test]
    fn another_backends_store_is_refused_with_the_way_over() {
        let dir = tempfile::tempdir().unwrap();
        drop(Home::open(dir.path(), "sled").unwrap());
        let Err(StoreError::Refused(why)) = Home::open(dir.path(), "redb") else { panic!("opened") };
        assert!(why.contains("store.backend") && why.contains("sled") && why.contains("tollgate restore"), "{why}");
        assert!(refuse_other_backend(dir.path(), "memory").is_err());
        assert!(refuse_other_backend(&dir.path().join("empty"), "memory").is_ok());
    }

    #[test]
    fn a_newer_format_is_refused_with_who_wrote_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut home = Home::open(dir.path(), "sled").unwrap();
        home.description.written_by = "9.8.7".into();
        home.description.format = FORMAT + 1;
        home.write().unwrap();
        drop(home);
        let before = fs::read(dir.path().join(DESCRIPTION)).unwrap();
        let Err(StoreError::Refused(why)) = Home::open(dir.path(), "sled") else { panic!("opened") };
        assert!(why.contains("9.8.7") && why.contains(&format!("format {}", FORMAT + 1)), "{why}");
        assert_eq!(fs::read(dir.path().join(DESCRIPTION)).unwrap(), before, "and left alone");
    }

    #[test]
    fn a_store_without_a_description_is_of_format_1() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("store")).unwrap();
        assert!(matches!(Home::open(dir.path(), "redb"), Err(StoreError::Refused(_))), "and sled's");
        let home = Home::open(dir.path(), "sled").unwrap();
        assert_eq!(home.description.format, 1);
        let owner = home.log_owner().unwrap();
        assert!(owner.accepts_format_1);
        drop(home);
        assert_eq!(Home::open(dir.path(), "sled").unwrap().log_owner().unwrap(), owner, "until it is migrated");
    }

    #[test]
    fn a_description_that_is_gone_is_not_made_up() {
        for backend in ["sled", "redb"] {
            let dir = tempfile::tempdir().unwrap();
            let home = Home::open(dir.path(), backend).unwrap();
            fs::create_dir(home.backend_folder()).unwrap();
            fs::create_dir(dir.path().join(LOG_FOLDER)).unwrap();
            fs::write(dir.path().join(LOG_FOLDER).join("00000000000000000001.wal"), b"TGWAL002 and more").unwrap();
            drop(home);
            fs::remove_file(dir.path().join(DESCRIPTION)).unwrap();
            let Err(StoreError::Corrupt(why)) = Home::open(dir.path(), backend) else { panic!("{backend}: opened") };
            assert!(why.contains("store.json is missing"), "{why}");
            assert!(!dir.path().join(DESCRIPTION).exists());
        }
    }

    #[test]
    fn a_damaged_description_is_not_taken_for_none() {
        let dir = tempfile::tempdir().unwrap();
        drop(Home::open(dir.path(), "sled").unwrap());
        fs::write(dir.path().join(DESCRIPTION), b"{").unwrap();
        assert!(matches!(Home::open(dir.path(), "sled"), Err(StoreError::Corrupt(_))));
    }
}
