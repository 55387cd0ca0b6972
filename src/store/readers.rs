//! Who may read what is kept: the user who runs this program, and at most one group.
//!
//! Owns the modes of files and folders. The process's mask sees to all that is made, also by the backends; what an older
//! program, or somebody else, has made is tightened at the start. With a group, folders have the set-group-id bit, so that
//! what is made in them later belongs to it as well. Never follows a link, but one that is a part of `data_dir` itself.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;

/// The running server's own: who reads it acts as a superadmin. It is no part of a backup.
const NOBODY_ELSES: &str = "run";
const SET_GROUP_ID: u32 = 0o2000;

/// What is made from now on can be read by its owner alone, or also by the group it is made with. To be called before there
/// are other threads.
pub fn restrict(group: bool) {
    rustix::process::umask(Mode::from_raw_mode(if group { 0o027 } else { 0o077 }));
}

/// What [`protect`] has changed, and what it could not.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tightened {
    /// Files and folders that others could read or write.
    pub were_open: u64,
    /// The first that could not be changed, and why.
    pub refused: Option<(PathBuf, String)>,
}

/// Gives `folder` and everything in it the modes it should have: 0700 and 0600, or with a group 0750 and 0640 and that group.
/// Bits are only taken away from others; what is not there is nothing to protect.
///
/// # Errors
/// The folder cannot be read.
pub fn protect(folder: &Path, group: Option<u32>) -> io::Result<Tightened> {
    let mut found = Tightened::default();
    let meta = match fs::metadata(folder) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(error),
    };
    if meta.is_dir() {
        set(folder, &meta, group, &mut found);
        walk(folder, group, true, &mut found)?;
    }
    Ok(found)
}

fn walk(folder: &Path, group: Option<u32>, is_top: bool, found: &mut Tightened) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        // A running server's, and gone meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let read = if is_top { fs::metadata(&path) } else { fs::symlink_metadata(&path) };
        // Gone meanwhile, or a link to nowhere.
        let Ok(meta) = read else { continue };
        let group = group.filter(|_| !(is_top && path.ends_with(NOBODY_ELSES)));
        if meta.is_dir() {
            set(&path, &meta, group, found);
            walk(&path, group, false, found)?;
        } else if meta.is_file() {
            set(&path, &meta, group, found);
        }
    }
    Ok(())
}

fn set(path: &Path, meta: &Metadata, group: Option<u32>, found: &mut Tightened) {
    let mode = meta.mode() & 0o7777;
    let wanted = match (meta.is_dir(), group) {
        (true, None) => mode & 0o700,
        (false, None) => mode & 0o700,
        (true, Some(_)) => (mode & 0o700) | SET_GROUP_ID | 0o050,
        (false, Some(_)) => (mode & 0o700) | 0o040,
    };
    let others_gid = group.filter(|gid| *gid != meta.gid());
    if mode == wanted && others_gid.is_none() {
        return;
    }
    // The group first: giving a file to another one takes the set-group-id bit away.
    let given = others_gid.map_or(Ok(()), |gid| chown(path, None, Some(gid)));
    match given.and_then(|()| fs::set_permissions(path, Permissions::from_mode(wanted))) {
        Ok(()) => found.were_open += u64::from(mode & 0o077 & !(if group.is_some() { 0o050 } else { 0 }) != 0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            found.refused.get_or_insert_with(|| (path.to_owned(), error.to_string()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    fn open(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_others_could_read_is_tightened_and_links_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (data, elsewhere) = (dir.path().join("data"), dir.path().join("elsewhere"));
        for folder in ["wal", "run", "journal/spill"] {
            fs::create_dir_all(data.join(folder)).unwrap();
        }
        for file in ["wal/1.wal", "run/operator.json", "journal/spill/1", "store.json"] {
            fs::write(data.join(file), "x").unwrap();
            open(&data.join(file), 0o666);
        }
        for folder in ["", "wal", "journal"] {
            open(&data.join(folder), 0o777);
        }
        fs::write(&elsewhere, "not ours").unwrap();
        open(&elsewhere, 0o644);
        std::os::unix::fs::symlink(&elsewhere, data.join("journal/link")).unwrap();
        let found = protect(&data, None).unwrap();
        assert!(found.refused.is_none() && found.were_open >= 7, "{found:?}");
        for folder in ["", "wal", "run", "journal", "journal/spill"] {
            assert_eq!(mode(&data.join(folder)), 0o700, "{folder}");
        }
        for file in ["wal/1.wal", "run/operator.json", "journal/spill/1", "store.json"] {
            assert_eq!(mode(&data.join(file)), 0o600, "{file}");
        }
        assert_eq!(mode(&elsewhere), 0o644);
        assert_eq!(protect(&data, None).unwrap(), Tightened::default(), "once");
        assert_eq!(protect(&dir.path().join("missing"), None).unwrap(), Tightened::default());

        // One's own group is one that everybody may give files to.
        let own = rustix::process::getegid().as_raw();
        assert!(protect(&data, Some(own)).unwrap().refused.is_none());
        assert_eq!((mode(&data), mode(&data.join("wal"))), (0o2750, 0o2750));
        assert_eq!((mode(&data.join("wal/1.wal")), mode(&data.join("run/operator.json"))), (0o640, 0o600));
        assert_eq!(mode(&data.join("run")), 0o700);
        protect(&data, None).unwrap();
        assert_eq!((mode(&data), mode(&data.join("wal/1.wal"))), (0o700, 0o600), "and back");
    }
}
