//! Taking a backup of a store that may be in use.
//!
//! Owns the order: rows first, to the state after one commit; then the files, as long as they are at that moment. What was
//! said after the rows were copied is in the backup's conversations, what was paid after is not in its rows: as after a
//! crash at that moment, never the other way round. One backup at a time.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::archive::{Manifest, Totals, Writer};
use super::{FOLDERS, MAX_DEPTH, SECRETS};
use crate::clock::{self, Clock};
use crate::store::committer::Committer;
use crate::store::home::FORMAT;
use crate::store::watch::{Copied, Copying};
use crate::store::{StoreError, sync_folder};

/// How often the list of files is made anew when one of them goes while it is made.
const MAX_LISTINGS: usize = 10;
/// Begins the names of the folders in `data_dir/run` that hold on to files.
const LINKS: &str = "backup-";

/// What a backup is taken of.
#[derive(Clone)]
pub struct Source {
    pub data_dir: PathBuf,
    pub committer: Committer,
    pub clock: Clock,
}

/// Why a backup was not made.
#[derive(Debug)]
pub enum Trouble {
    /// Another one is being made.
    Busy,
    Store(StoreError),
    Io(io::Error),
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Busy => f.write_str("another backup is under way"),
            Self::Store(error) => error.fmt(f),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Trouble {}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Source {
    /// Writes a backup to `out`, which may be slow: no caller of the gateway waits for it. Blocks.
    ///
    /// # Errors
    /// [`Trouble`]; what was written until then is no backup.
    pub fn write(&self, out: impl Write, with_secrets: bool) -> Result<Totals, Trouble> {
        let copying = Copying::begin(&self.committer).ok_or(Trouble::Busy)?;
        let manifest = Manifest {
            format: FORMAT,
            written_by: env!("CARGO_PKG_VERSION").into(),
            written_at: self.clock.now().rfc3339(),
            with_secrets,
        };
        let mut writer = Writer::new(out, &manifest)?;
        let paused = copying.run(|copied| match copied {
            Copied::Rows(rows) => writer.rows(&rows).map_err(Trouble::Io),
            Copied::Changes(ops) => writer.changes(&ops).map_err(Trouble::Io),
        })?;
        tracing::info!(commits_waited = ?paused, "the rows are copied");
        // Still the only copier: the folder of links below is this one's.
        let links = Links::make(&self.data_dir, with_secrets)?;
        for file in &links.files {
            let mut open = match File::open(&file.from) {
                // Only where nothing could hold on to it: retention took it, as it would have a moment earlier.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !file.linked => continue,
                opened => opened?,
            };
            writer.file(&file.name, &mut open as &mut dyn Read, file.length)?;
        }
        drop(links);
        drop(copying);
        Ok(writer.finish()?.1)
    }
}

/// A file as it is to be copied.
struct Held {
    /// Relative to the data directory.
    name: String,
    /// Where to read it: a second name that nobody else removes, where the file system gives one.
    from: PathBuf,
    linked: bool,
    length: u64,
}

/// Second names for all files, so that none goes away while others are copied.
struct Links {
    folder: PathBuf,
    files: Vec<Held>,
}

impl Drop for Links {
    fn drop(&mut self) {
        // What stays is removed by the next backup.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Links {
    fn make(data_dir: &Path, with_secrets: bool) -> io::Result<Self> {
        let run = data_dir.join("run");
        fs::create_dir_all(&run)?;
        remove_left_over(&run)?;
        let folder = run.join(format!("{LINKS}{}", clock::random_alphanumerics(12)?));
        fs::create_dir(&folder)?;
        let mut links = Self { folder, files: Vec::new() };
        for _ in 0..MAX_LISTINGS {
            if links.link_all(data_dir, with_secrets)? {
                return Ok(links);
            }
            for file in links.files.drain(..).filter(|file| file.linked) {
                fs::remove_file(file.from)?;
            }
        }
        Err(io::Error::other("the journal's files change too fast to be listed; try again"))
    }

    /// `false` when a file went between being listed and being held: another may have taken its place.
    fn link_all(&mut self, data_dir: &Path, with_secrets: bool) -> io::Result<bool> {
        let secrets = with_secrets.then_some(SECRETS);
        let mut names = Vec::new();
        for folder in FOLDERS.into_iter().chain(secrets) {
            list(data_dir, folder, 1, &mut names)?;
        }
        for name in names {
            let (own, link) = (data_dir.join(&name), self.folder.join(self.files.len().to_string()));
            let linked = match fs::hard_link(&own, &link) {
                Ok(()) => true,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                // A file system that has no second names, or another one than that of `run`.
                Err(_) => false,
            };
            let from = if linked { link } else { own };
            let length = match fs::metadata(&from) {
                Ok(facts) => facts.len(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(error),
            };
            self.files.push(Held { name, from, linked, length });
        }
        Ok(true)
    }
}

fn remove_left_over(run: &Path) -> io::Result<()> {
    for entry in fs::read_dir(run)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(LINKS) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    sync_folder(run)
}

/// The names of all plain files in a folder and those below it; none when it is not there.
fn list(data_dir: &Path, folder: &str, depth: usize, names: &mut Vec<String>) -> io::Result<()> {
    let entries = match fs::read_dir(data_dir.join(folder)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let mut own: Vec<(String, fs::FileType)> = Vec::new();
    for entry in entries {
        let entry = entry?;
        // Nothing of ours has such a name.
        let Ok(name) = entry.file_name().into_string() else { continue };
        own.push((format!("{folder}/{name}"), entry.file_type()?));
    }
    own.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (name, kind) in own {
        if kind.is_dir() && depth < MAX_DEPTH {
            list(data_dir, &name, depth + 1, names)?;
        } else if kind.is_file() {
            names.push(name);
        }
    }
    Ok(())
}
