//! What a power cut may leave of the names of a file that is used again.
//!
//! Generation 1 is in the backend, and its file was renamed: from `1.wal` to `spare`, and from `spare` to `3.wal`. Until the
//! folder is synced, any of the three names may be what is left of it, and some or none of them.

use super::*;

/// As a kill leaves it: generation 1 in the backend and its file the spare one, generation 2 in its file alone.
fn killed_with_a_spare(folder: &Path) -> Arc<MemoryStore> {
    let backend = Arc::new(MemoryStore::default());
    let store = LoggedStore::open(options(folder), Box::new(Surviving(backend.clone())), None).unwrap();
    for n in 0..20 {
        put(&store, &format!("k{n}"), b"1");
    }
    store.rotate(&mut store.log.lock()).unwrap();
    store.settle();
    for n in 10..30 {
        put(&store, &format!("k{n}"), b"2");
    }
    std::mem::forget(store);
    assert!(spare_path(folder).exists() && log_file(folder, 2).exists());
    backend
}

/// The sequence that comes after those records.
const NEXT: u64 = 41;

fn log_file(folder: &Path, generation: u64) -> PathBuf {
    folder.join(format!("{generation:020}.wal"))
}

fn holds_everything(store: &LoggedStore) {
    for n in 0..30 {
        let expected: &[u8] = if n < 10 { b"1" } else { b"2" };
        assert_eq!(store.get(format!("k{n}").as_bytes()).unwrap().as_deref(), Some(expected), "k{n}");
    }
}

#[test]
fn whatever_names_a_power_cut_keeps_the_store_starts_and_holds_everything() {
    for begun_again in [false, true] {
        for kept in 0..8 {
            let dir = tempfile::tempdir().unwrap();
            let folder = dir.path();
            let case = format!("begun again: {begun_again}, names kept: {kept:03b}");
            let backend = killed_with_a_spare(folder);
            if begun_again {
                change(&spare_path(folder), 0, &header(OWNER.store, 3, NEXT));
            }
            let file = folder.join("the file");
            fs::rename(spare_path(folder), &file).unwrap();
            let names = [log_file(folder, 1), spare_path(folder), log_file(folder, 3)];
            for (nth, name) in names.iter().enumerate() {
                if kept & (1 << nth) != 0 {
                    fs::hard_link(&file, name).unwrap();
                }
            }
            fs::remove_file(&file).unwrap();
            // Started again and again, and used meanwhile as often as it takes to use every file again.
            for round in 0..4 {
                let store = reopen(folder, OWNER, &backend).unwrap_or_else(|error| panic!("{case}, {round}: {error}"));
                holds_everything(&store);
                store.settle();
                for n in 0..3 {
                    put(&store, "later", format!("{round} {n}").as_bytes());
                    store.rotate(&mut store.log.lock()).unwrap();
                    store.settle();
                }
                put(&store, "later", b"last");
                std::mem::forget(store);
                for file in fs::read_dir(folder).unwrap() {
                    use std::os::unix::fs::MetadataExt;
                    let path = file.unwrap().path();
                    assert_eq!(fs::metadata(&path).unwrap().nlink(), 1, "{case}: {} has two names", path.display());
                }
            }
            assert_eq!(reopen(folder, OWNER, &backend).unwrap().get(b"later").unwrap().unwrap(), b"last", "{case}");
        }
    }
}

/// The case as it was met: both renames were lost, the new header was not.
#[test]
fn an_older_name_over_a_newer_header_is_removed_and_not_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let backend = killed_with_a_spare(dir.path());
    change(&spare_path(dir.path()), 0, &header(OWNER.store, 3, NEXT));
    let file = log_file(dir.path(), 1);
    fs::rename(spare_path(dir.path()), &file).unwrap();
    let removed = File::open(&file).unwrap();
    let store = reopen(dir.path(), OWNER, &backend).unwrap();
    holds_everything(&store);
    // A spare file may be there, but another one: the checkpointer does not wait for this test.
    assert!(!file.exists());
    assert_eq!(std::os::unix::fs::MetadataExt::nlink(&removed.metadata().unwrap()), 0);
    assert!(store.log.lock().generation > 3, "no number is used twice");
}

#[test]
fn a_record_that_is_nowhere_else_is_not_removed_with_its_file() {
    type Damage = fn(&Path);
    let cases: [(&str, Damage); 4] = [
        ("begun again with its records", |folder| {
            change(&log_file(folder, 2), 0, &header(OWNER.store, 3, NEXT));
        }),
        ("called by an older name", |folder| {
            fs::rename(log_file(folder, 2), log_file(folder, 1)).unwrap();
        }),
        ("called by a newer name", |folder| {
            fs::rename(log_file(folder, 2), log_file(folder, 4)).unwrap();
        }),
        ("begun when there was more than there is", |folder| {
            change(&spare_path(folder), 0, &header(OWNER.store, 3, NEXT + 1));
            fs::rename(spare_path(folder), log_file(folder, 1)).unwrap();
        }),
    ];
    for (case, damage) in cases {
        let dir = tempfile::tempdir().unwrap();
        let backend = killed_with_a_spare(dir.path());
        // So that there is a log whatever becomes of the rest.
        fs::copy(spare_path(dir.path()), log_file(dir.path(), 1)).unwrap();
        if case.contains("older") || case.contains("than there is") {
            fs::rename(log_file(dir.path(), 1), dir.path().join("away")).unwrap();
        }
        damage(dir.path());
        let before: Vec<_> = names_and_contents(dir.path());
        let error = error_of(reopen(dir.path(), OWNER, &backend));
        assert!(matches!(error, StoreError::Corrupt(_)), "{case}: {error}");
        assert_eq!(names_and_contents(dir.path()), before, "{case}: the evidence is left alone");
    }
}

fn names_and_contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = paths.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    found.sort();
    found
}

#[test]
fn another_stores_file_is_refused_under_any_name() {
    for name in [1, 4] {
        let dir = tempfile::tempdir().unwrap();
        let backend = killed_with_a_spare(dir.path());
        change(&spare_path(dir.path()), 0, &header(OTHER.store, 3, NEXT));
        let file = log_file(dir.path(), name);
        fs::rename(spare_path(dir.path()), &file).unwrap();
        assert!(matches!(error_of(reopen(dir.path(), OWNER, &backend)), StoreError::Refused(_)));
        assert!(file.exists());
    }
}

#[test]
fn a_spare_file_of_format_1_is_of_use_to_its_store() {
    let dir = tempfile::tempdir().unwrap();
    let backend = killed_with_a_spare(dir.path());
    let mut old = MAGIC_FORMAT_1.to_vec();
    old.extend_from_slice(&1u64.to_le_bytes());
    old.extend_from_slice(&1u64.to_le_bytes());
    old.extend_from_slice(&crc32fast::hash(&old).to_le_bytes());
    change(&spare_path(dir.path()), 0, &old);
    // Renamed, and the power went before it was begun.
    fs::rename(spare_path(dir.path()), log_file(dir.path(), 3)).unwrap();
    holds_everything(&reopen(dir.path(), OWNER, &backend).unwrap());
}
