//! Putting a backup back.
//!
//! Owns the swap: everything is written to and checked in a folder of its own, which then gets the name that makes it the
//! data directory's next content; only after that does the old content move aside. A restore that fails before leaves
//! everything as it was; one that is cut off after is finished by the next start. Never deletes what it replaces.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::archive::{Manifest, Part, Reader, Totals};
use super::{FOLDERS, MAX_DEPTH, SECRETS};
use crate::failpoint;
use crate::store::folder;
use crate::store::home::{self, FORMAT};
use crate::store::{Batch, Op, Store, StoreError, sync_folder, tables};

/// Where a backup is written to while nothing is sure.
const UNFINISHED: &str = "restore.unfinished";
/// What it is called once it is whole and on disk.
const READY: &str = "restore.ready";
const PLAN: &str = "plan.json";
/// Rows in one commit.
const BATCH: usize = 10_000;

/// What becomes of the old content.
#[derive(Debug, Serialize, Deserialize)]
struct Plan {
    /// The folder that it moves to.
    aside: String,
    /// What moves in.
    new: Vec<String>,
}

/// Why a backup was not restored.
#[derive(Debug)]
pub enum Trouble {
    /// There is something in the data directory, and nobody said that it may be moved aside.
    NotEmpty,
    Store(StoreError),
    /// The backup is damaged, or the disk failed.
    Io(io::Error),
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotEmpty => f.write_str("data_dir is not empty; with --force, what is there is moved aside first"),
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

/// What was restored.
#[derive(Debug)]
pub struct Restored {
    pub manifest: Manifest,
    pub totals: Totals,
    /// Where the old content is now.
    pub aside: Option<PathBuf>,
}

/// Restores into a data directory.
pub struct Restore<'a> {
    pub data_dir: &'a Path,
    pub backend: &'a str,
    /// Whether old content may be moved aside.
    pub force: bool,
    /// For the name of the folder that it moves to.
    pub now: &'a str,
}

impl Restore<'_> {
    /// Reads the backup to its end and puts it in the place of what is there. `open` opens a backend in a folder.
    ///
    /// # Errors
    /// [`Trouble`]; the data directory is as it was. [`StoreError::Busy`] while a server runs on it.
    pub fn run(
        &self,
        from: impl Read,
        open: impl FnOnce(&Path) -> Result<Box<dyn Store>, StoreError>,
    ) -> Result<Restored, Trouble> {
        let _lock = home::take(self.data_dir)?;
        finish(self.data_dir)?;
        refuse_mounts(self.data_dir)?;
        let folder = self.data_dir.join(UNFINISHED);
        remove_if_there(&folder)?;
        let written = self.write(&folder, from, open);
        if written.is_err() {
            // It is no use to anybody, and may have filled the disk.
            let _ = remove_if_there(&folder);
        }
        let (manifest, totals) = written?;
        let plan = Plan { aside: self.free_name(), new: names(&folder)? };
        let aside = self.data_dir.join(&plan.aside);
        write_file(&folder.join(PLAN), &serde_json::to_vec_pretty(&plan).map_err(io::Error::from)?)?;
        sync_tree(&folder)?;
        fs::rename(&folder, self.data_dir.join(READY))?;
        failpoint::hit("restore.after_ready");
        sync_folder(self.data_dir)?;
        finish(self.data_dir)?;
        Ok(Restored { manifest, totals, aside: aside.exists().then_some(aside) })
    }

    /// A folder for the old content that is not there yet.
    fn free_name(&self) -> String {
        let name = format!("before-restore-{}", file_name(self.now));
        let others = (2..).map(|n| format!("{name}-{n}"));
        let free = |name: &String| !self.data_dir.join(name).exists();
        std::iter::once(name.clone()).chain(others).find(free).unwrap_or(name)
    }

    fn write(
        &self,
        folder: &Path,
        from: impl Read,
        open: impl FnOnce(&Path) -> Result<Box<dyn Store>, StoreError>,
    ) -> Result<(Manifest, Totals), Trouble> {
        let mut reader = Reader::new(from)?;
        let Some(Part::Manifest(manifest)) = reader.next_part()? else {
            return Err(io::Error::other("the backup does not begin with its manifest").into());
        };
        if manifest.format > FORMAT {
            return Err(StoreError::Refused(format!(
                "the backup is of format {}, written by tollgate {}; this is {}, which knows formats up to {FORMAT}: \
                 restore it with the newer program",
                manifest.format,
                manifest.written_by,
                env!("CARGO_PKG_VERSION")
            ))
            .into());
        }
        // Without secrets of its own it goes with those that are there.
        let replaced = |name: &String| manifest.with_secrets || name != SECRETS;
        if !self.force && content(self.data_dir)?.iter().any(replaced) {
            return Err(Trouble::NotEmpty);
        }
        fs::DirBuilder::new().mode(0o700).create(folder)?;
        let described = home::describe(folder, self.backend, manifest.format)?;
        let store = open(&described)?;
        let mut waiting = Batch::default();
        let mut file: Option<File> = None;
        let mut ended = None;
        while let Some(part) = reader.next_part()? {
            match part {
                Part::Manifest(_) => {}
                Part::Rows(rows) => {
                    let puts = rows.into_iter().map(|(key, value)| Op::Put { key, value });
                    keep(&*store, &mut waiting, puts)?;
                }
                Part::Changes(ops) => keep(&*store, &mut waiting, ops)?,
                Part::File(name) => file = Some(create_file(folder, &name)?),
                Part::Data(bytes) => {
                    if let Some(file) = &mut file {
                        file.write_all(&bytes)?;
                    }
                }
                Part::FileEnd => {
                    if let Some(file) = file.take() {
                        file.sync_all()?;
                    }
                }
                Part::End(totals) => ended = Some(totals),
            }
        }
        store.commit(&waiting)?;
        drop(store);
        let totals = ended.ok_or_else(|| io::Error::other("the backup is cut short"))?;
        Ok((manifest, totals))
    }
}

/// Takes changes in, committing when there are enough.
fn keep(store: &dyn Store, waiting: &mut Batch, ops: impl IntoIterator<Item = Op>) -> Result<(), StoreError> {
    // A store's rows about itself are its own.
    waiting.ops.extend(ops.into_iter().filter(|op| !op.key().starts_with(tables::OWN)));
    if waiting.ops.len() >= BATCH {
        store.commit(&std::mem::take(waiting))?;
    }
    Ok(())
}

/// Makes a file of the backup, if its name stays within the folders that a backup may hold.
fn create_file(folder: &Path, name: &str) -> io::Result<File> {
    let path = Path::new(name);
    let parts: Vec<Component<'_>> = path.components().collect();
    let plain = parts.iter().all(|part| matches!(part, Component::Normal(_)));
    let first = name.split('/').next().unwrap_or_default();
    let known = FOLDERS.contains(&first) || first == SECRETS;
    if !plain || !known || !(2..=MAX_DEPTH + 1).contains(&parts.len()) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the backup holds a file of no place: {name:?}"),
        ));
    }
    let path = folder.join(path);
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    // Conversations and secrets are nobody else's.
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Puts a folder and all below it on disk, also what a backend wrote beside its database and thinks it can make again.
fn sync_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_folder(folder)
}

fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// What in a data directory is the server's state.
fn content(data_dir: &Path) -> io::Result<Vec<String>> {
    let ours = |name: &String| home::is_part_of_store(name) || FOLDERS.contains(&name.as_str()) || name == SECRETS;
    Ok(names(data_dir)?.into_iter().filter(ours).collect())
}

/// What is a file system of its own cannot be moved aside; better said before than found in the middle.
fn refuse_mounts(data_dir: &Path) -> io::Result<()> {
    let own = fs::metadata(data_dir)?.dev();
    for name in content(data_dir)? {
        let path = data_dir.join(name);
        if fs::symlink_metadata(&path)?.dev() != own {
            return Err(io::Error::other(format!(
                "{} is mounted there and cannot be moved aside; restore into another data_dir, or unmount it first",
                path.display()
            )));
        }
    }
    Ok(())
}

/// `2026-01-15T12:00:00Z` as part of a name.
fn file_name(time: &str) -> String {
    time.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}

fn remove_if_there(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Whether a restore that was whole was cut off: the state is then not yet where it belongs, and the next start brings it there.
pub fn is_waiting(data_dir: &Path) -> bool {
    data_dir.join(READY).join(PLAN).exists()
}

/// Ends a restore that was whole when it was cut off; does nothing where there is none. For whoever has the directory's lock
/// and has not opened anything in it yet.
///
/// # Errors
/// The disk's.
pub fn finish(data_dir: &Path) -> io::Result<()> {
    let ready = data_dir.join(READY);
    let plan = match fs::read(ready.join(PLAN)) {
        Ok(plan) => plan,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // The plan goes last but for the folder.
            return match fs::remove_dir(&ready) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                removed => removed.and_then(|()| sync_folder(data_dir)),
            };
        }
        Err(error) => return Err(error),
    };
    let plan: Plan = serde_json::from_slice(&plan)?;
    let mut waiting = names(&ready)?;
    for name in waiting.extract_if(.., |name| folder::is_same_file(&ready.join(&*name), &data_dir.join(&*name))) {
        // It is in its place; a power cut kept its old name as well.
        fs::remove_file(ready.join(name))?;
    }
    let aside = data_dir.join(&plan.aside);
    for old in content(data_dir)? {
        // What is of the new content and waits no more is in its place already. Secrets stay unless others come.
        let new = plan.new.contains(&old);
        if (new && !waiting.contains(&old)) || (!new && old == SECRETS) {
            continue;
        }
        fs::create_dir_all(&aside)?;
        fs::rename(data_dir.join(&old), aside.join(&old))?;
        failpoint::hit("restore.after_aside");
    }
    // Each new name before the old one's end, and all old content aside before new content comes: a start tells by the
    // names what is left to do.
    if aside.exists() {
        sync_folder(&aside)?;
    }
    sync_folder(data_dir)?;
    for new in waiting.iter().filter(|name| *name != PLAN) {
        fs::rename(ready.join(new), data_dir.join(new))?;
        failpoint::hit("restore.after_move");
    }
    sync_folder(data_dir)?;
    sync_folder(&ready)?;
    fs::remove_file(ready.join(PLAN))?;
    failpoint::hit("restore.after_plan");
    fs::remove_dir(&ready)?;
    failpoint::hit("restore.after_end");
    // Should it come back, what is made from here on would be moved aside as old.
    sync_folder(data_dir)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::super::archive::Writer;
    use super::*;
    use crate::store::memory::MemoryStore;
    use crate::store::{Order, Row};

    const NOW: &str = "2026-01-15T12:00:00Z";

    fn backup() -> Vec<u8> {
        let manifest =
            Manifest { format: FORMAT, written_by: "0.0.1".into(), written_at: NOW.into(), with_secrets: true };
        let mut writer = Writer::new(Vec::new(), &manifest).unwrap();
        writer.rows(&[(b"a".to_vec(), b"1".to_vec()), (b"b".to_vec(), b"2".to_vec())]).unwrap();
        writer.changes(&[Op::Delete { key: b"a".to_vec() }]).unwrap();
        writer.file("journal/1", &mut &b"said"[..], 4).unwrap();
        writer.file("secrets/pepper", &mut &b"new pepper"[..], 10).unwrap();
        writer.finish().unwrap().0
    }

    /// A backend that is seen from outside, and leaves a file in its folder as a real one would.
    struct Shared(Arc<MemoryStore>);

    impl Store for Shared {
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

    fn restore(data_dir: &Path, force: bool, bytes: &[u8]) -> Result<(Restored, Arc<MemoryStore>), Trouble> {
        let rows = Arc::new(MemoryStore::default());
        let inner = rows.clone();
        let restored = Restore { data_dir, backend: "redb", force, now: NOW }.run(bytes, |folder| {
            fs::create_dir_all(folder).unwrap();
            fs::write(folder.join("db"), b"new").unwrap();
            Ok(Box::new(Shared(inner)))
        })?;
        Ok((restored, rows))
    }

    /// Every file of a folder with its content.
    fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(next).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name = path.strip_prefix(folder).unwrap().display().to_string();
                    found.insert(name, fs::read(path).unwrap());
                }
            }
        }
        found
    }

    /// A data directory with something in it.
    fn used() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in ["store/db", "wal/1.wal", "journal/old", "audit/old", "secrets/pepper", "store.json", "lock"] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"old").unwrap();
        }
        dir
    }

    #[test]
    fn into_an_empty_directory() {
        let dir = tempfile::tempdir().unwrap();
        let (restored, rows) = restore(&dir.path().join("data"), false, &backup()).unwrap();
        assert!(restored.aside.is_none());
        assert_eq!((rows.get(b"a").unwrap(), rows.get(b"b").unwrap()), (None, Some(b"2".to_vec())));
        let found = tree(&dir.path().join("data"));
        let names: Vec<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(names, ["journal/1", "lock", "secrets/pepper", "store-redb/db", "store.json"]);
        assert_eq!(found["journal/1"], b"said");
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(dir.path().join("data/secrets/pepper")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_is_there_is_moved_aside_whole_and_only_if_asked() {
        let dir = used();
        let before = tree(dir.path());
        assert!(matches!(restore(dir.path(), false, &backup()), Err(Trouble::NotEmpty)));
        assert_eq!(tree(dir.path()), before);
        let (restored, _) = restore(dir.path(), true, &backup()).unwrap();
        let aside = restored.aside.unwrap();
        let mut old = tree(&aside);
        old.insert("lock".into(), b"old".to_vec());
        assert_eq!(old, before, "nothing of the old content is lost");
        let now = tree(dir.path());
        assert_eq!(now["secrets/pepper"], b"new pepper");
        let (again, _) = restore(dir.path(), true, &backup()).unwrap();
        assert_ne!(again.aside.unwrap(), aside, "also within one second");
        assert_eq!(tree(&aside).len(), 6);
        assert!(!now.contains_key("audit/old") && !now.contains_key("wal/1.wal") && !now.contains_key("store/db"));
    }

    #[test]
    fn a_backup_that_is_cut_or_damaged_anywhere_changes_nothing() {
        let dir = used();
        let before = tree(dir.path());
        let whole = backup();
        for at in 0..whole.len() {
            assert!(restore(dir.path(), true, &whole[..at]).is_err(), "cut at {at}");
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert!(restore(dir.path(), true, &damaged).is_err(), "byte {at}");
        }
        assert_eq!(tree(dir.path()), before);
    }

    #[test]
    fn a_backup_without_secrets_goes_with_those_that_are_there() {
        let manifest =
            Manifest { format: FORMAT, written_by: "0.0.1".into(), written_at: NOW.into(), with_secrets: false };
        let mut writer = Writer::new(Vec::new(), &manifest).unwrap();
        writer.rows(&[(b"a".to_vec(), b"1".to_vec())]).unwrap();
        let bytes = writer.finish().unwrap().0;
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(SECRETS)).unwrap();
        fs::write(dir.path().join("secrets/pepper"), b"put here by hand").unwrap();
        restore(dir.path(), false, &bytes).unwrap();
        assert_eq!(tree(dir.path())["secrets/pepper"], b"put here by hand");
        let dir = used();
        restore(dir.path(), true, &bytes).unwrap();
        assert_eq!(tree(dir.path())["secrets/pepper"], b"old");
    }

    #[test]
    fn a_file_of_no_place_is_refused() {
        for name in ["../outside", "journal/../../outside", "/etc/passwd", "store.json", "run/operator.json", "journal"]
        {
            let dir = tempfile::tempdir().unwrap();
            assert!(create_file(dir.path(), name).is_err(), "{name}");
        }
    }

    /// A restore that was whole when it was cut off, before it moved anything.
    fn ready(dir: &Path) -> Plan {
        let rows = Arc::new(MemoryStore::default());
        let run = Restore { data_dir: dir, backend: "redb", force: true, now: NOW };
        let folder = dir.join(UNFINISHED);
        run.write(&folder, backup().as_slice(), |folder| {
            fs::create_dir_all(folder).unwrap();
            fs::write(folder.join("db"), b"new").unwrap();
            Ok(Box::new(Shared(rows)))
        })
        .unwrap();
        let plan = Plan { aside: "before-restore-2026-01-15T12-00-00Z".into(), new: names(&folder).unwrap() };
        write_file(&folder.join(PLAN), &serde_json::to_vec(&plan).unwrap()).unwrap();
        fs::rename(&folder, dir.join(READY)).unwrap();
        plan
    }

    #[test]
    fn a_move_of_which_a_power_cut_kept_both_names_is_finished() {
        let dir = used();
        let plan = ready(dir.path());
        let ready = dir.path().join(READY);
        fs::create_dir(dir.path().join(&plan.aside)).unwrap();
        fs::rename(dir.path().join("store.json"), dir.path().join(&plan.aside).join("store.json")).unwrap();
        fs::hard_link(ready.join("store.json"), dir.path().join("store.json")).unwrap();
        let new = fs::read(dir.path().join("store.json")).unwrap();
        finish(dir.path()).unwrap();
        let found = tree(dir.path());
        assert_eq!((&found["store.json"], &found["store-redb/db"]), (&new, &b"new".to_vec()));
        assert_eq!(found[&format!("{}/store.json", plan.aside)], b"old", "what was moved aside stays what it was");
        assert!(!ready.exists());
    }

    #[test]
    fn a_swap_that_is_cut_off_anywhere_is_finished() {
        let prepared = used();
        restore(prepared.path(), true, &backup()).unwrap();
        let expected = tree(prepared.path());
        // Every order in which a crash can have left the moves: so many of the old aside, so many of the new in place.
        for (old_moved, new_moved) in (0..=6).map(|n| (n, 0)).chain((0..=4).map(|n| (6, n))) {
            let dir = used();
            let plan = ready(dir.path());
            let (aside, ready) = (&plan.aside, dir.path().join(READY));
            for old in content(dir.path()).unwrap().into_iter().take(old_moved) {
                fs::create_dir_all(dir.path().join(aside)).unwrap();
                fs::rename(dir.path().join(&old), dir.path().join(aside).join(&old)).unwrap();
            }
            for new in plan.new.iter().take(new_moved) {
                fs::rename(ready.join(new), dir.path().join(new)).unwrap();
            }
            assert!(is_waiting(dir.path()));
            finish(dir.path()).unwrap();
            assert!(!is_waiting(dir.path()));
            let mut found = tree(dir.path());
            // Each has an id of its own.
            assert!(found.remove("store.json").is_some());
            let expected: BTreeMap<_, _> =
                expected.clone().into_iter().filter(|(name, _)| name != "store.json").collect();
            assert_eq!(found, expected, "{old_moved} old and {new_moved} new were moved");
        }
    }
}
