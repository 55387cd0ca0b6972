//! Folders whose names survive a power cut.
//!
//! A file's sync says nothing about the file's name: that is the folder's content, and the folder's name is its parent's.
//! Owns these syncs; never looks at what a folder holds.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::sync_folder;

/// Makes `folder` and what is missing above it. When it returns, the name is on disk, even if it was an earlier process
/// that made it and died before this sync.
///
/// # Errors
/// It cannot be made, or the disk fails.
pub fn create(folder: &Path) -> io::Result<()> {
    let missing = folder.ancestors().take_while(|place| !place.as_os_str().is_empty() && !place.exists()).count();
    fs::create_dir_all(folder)?;
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
