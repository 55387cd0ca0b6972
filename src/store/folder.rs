//! Folders whose names survive a power cut.
//!
//! A file's sync says nothing about the file's name: that is the folder's content, and the folder's name is its parent's.
//! Owns these syncs, and how a file is replaced as a whole; never looks at what a folder holds.
//!
//! Until a folder is synced, a power cut may keep any of the changes to its names, and of a rename the old name, the new one,
//! or both for one file. So nothing is built on a name, its absence or its meaning before that sync, not even on what an
//! earlier process left that was killed: README.md beside this has the whole list.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::sync_folder;
use crate::failpoint;

/// Makes `folder` and what is missing above it. When it returns, the name is on disk, even if it was an earlier process
/// that made it and died before this sync.
///
/// # Errors
/// It cannot be made, or the disk fails.
pub fn create(folder: &Path) -> io::Result<()> {
    let missing = folder.ancestors().take_while(|place| !place.as_os_str().is_empty() && !place.exists()).count();
    fs::create_dir_all(folder)?;
    if missing > 0 {
        failpoint::hit("folder.after_create");
    }
    for made in folder.ancestors().take(missing.max(1)) {
        sync_name(made)?;
    }
    Ok(())
}

/// Returns when the name of a file or folder is on disk.
///
/// # Errors
/// The disk fails.
pub fn sync_name(path: &Path) -> io::Result<()> {
    match path.parent() {
        // In a folder that may not be read, the name was made by somebody else, long ago.
        Some(parent) => sync_folder(parent).or_else(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => Ok(()),
            _ => Err(error),
        }),
        None => Ok(()),
    }
}

/// Begins a file of that name for its owner alone. Should there be one already, it only loses this name: a rename that a
/// power cut kept by half may have left it as a second name of something whole.
///
/// # Errors
/// The disk's.
pub fn create_anew(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

/// Writes a file for its owner alone, all of it or nothing, in place of an older one. Its content and its name are on disk
/// when this returns. `draft` is its name in the same folder until then.
///
/// # Errors
/// The disk's.
pub fn write_whole(path: &Path, draft: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = create_anew(draft)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(draft, path)?;
    failpoint::hit("folder.after_rename");
    path.parent().map_or(Ok(()), sync_folder)
}

/// Whether two names are one file's. What is not there is nobody's.
pub fn is_same_file(a: &Path, b: &Path) -> bool {
    let id = |path: &Path| fs::symlink_metadata(path).ok().map(|facts| (facts.dev(), facts.ino()));
    id(a).is_some_and(|own| id(b) == Some(own))
}

/// Returns when `folder` and everything in it is on disk.
///
/// # Errors
/// The disk fails.
pub fn sync_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { sync_tree(&path)? } else { File::open(&path)?.sync_all()? }
    }
    sync_folder(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_name_that_a_power_cut_left_is_not_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let (path, draft) = (dir.path().join("store.json"), dir.path().join("store.json.new"));
        write_whole(&path, &draft, b"whole").unwrap();
        // Of a rename both names were kept.
        fs::hard_link(&path, &draft).unwrap();
        assert!(is_same_file(&path, &draft));
        let mut half = create_anew(&draft).unwrap();
        half.write_all(b"ha").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole", "and the power goes here");
        assert!(!is_same_file(&path, &draft) && !is_same_file(&draft, &dir.path().join("nothing")));
        write_whole(&path, &draft, b"newer").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"newer");
        assert!(!draft.exists());
    }

    #[test]
    fn missing_parents_are_made_and_what_is_there_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b/c");
        create(&deep).unwrap();
        fs::write(deep.join("file"), b"kept").unwrap();
        create(&deep).unwrap();
        assert_eq!(fs::read(deep.join("file")).unwrap(), b"kept");
        sync_name(Path::new("relative-name")).unwrap();
        assert!(create(&deep.join("file")).is_err());
    }
}
