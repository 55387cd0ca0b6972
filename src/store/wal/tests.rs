use super::super::memory::MemoryStore;
use super::super::redb::RedbStore;
use super::super::sled::SledStore;
use super::super::{Order, conformance};
use super::recovery::{read_header, read_records};
use super::view::Changes;
use super::*;

const OWNER: LogOwner = LogOwner { store: [7; 16], accepts_format_1: false };
fn options(folder: &Path) -> LogOptions {
    LogOptions { folder: folder.to_owned(), owner: OWNER, file_bytes: 1 << 20 }
}

const OTHER: LogOwner = LogOwner { store: [8; 16], accepts_format_1: false };

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
    LoggedStore::open(options(folder), Box::new(MemoryStore::default()), None).unwrap()
}

#[test]
fn conforms_over_each_backend() {
    let dir = tempfile::tempdir().unwrap();
    conformance::run(&open(&dir.path().join("a")));
    let sled = SledStore::open(&dir.path().join("sled"), 1 << 20).unwrap();
    conformance::run(&LoggedStore::open(options(&dir.path().join("b")), Box::new(sled), None).unwrap());
    let redb = RedbStore::open(&dir.path().join("redb"), 1 << 20).unwrap();
    conformance::run(&LoggedStore::open(options(&dir.path().join("c")), Box::new(redb), None).unwrap());
}

#[test]
fn conforms_while_everything_is_frozen_or_checkpointed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put(&store, "t4/z", b"old");
    put(&store, "t9/z", b"old");
    store.rotate(&mut store.log.lock()).unwrap();
    store.settle();
    conformance::run(&store);
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
        let store = LoggedStore::open(options(&folder), Box::new(Surviving(backend.clone())), None).unwrap();
        for n in 0..=round {
            assert_eq!(store.get(format!("k{n}").as_bytes()).unwrap().is_some(), n < round, "k{n} in round {round}");
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
        let header = read_header(&torn).unwrap();
        let read = read_records(&torn, header.generation, header.first, 0, &mut changes);
        assert_eq!(read.unreadable, None, "nothing follows it");
        // A record whose missing bytes are zeros anyway is whole.
        let lost = torn != whole;
        assert_eq!((read.next_sequence, changes.len()), if lost { (3, 2) } else { (4, 3) }, "cut at {cut}");
    }
}

#[test]
fn files_are_used_again_and_old_records_are_never_taken_for_new() {
    let dir = tempfile::tempdir().unwrap();
    let sled_dir = dir.path().join("sled");
    let wal = dir.path().join("wal");
    {
        let backend = Box::new(SledStore::open(&sled_dir, 1 << 20).unwrap());
        let store = LoggedStore::open(options(&wal), backend, None).unwrap();
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
    let store = LoggedStore::open(options(&wal), backend, None).unwrap();
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
        Log::begin(&options(dir.path()), 2, sequence).unwrap();
        std::mem::forget(store);
        path
    };
    let mut bytes = fs::read(&first).unwrap();
    bytes[HEADER_BYTES as usize + 20] ^= 1;
    fs::write(&first, bytes).unwrap();
    assert!(matches!(recover(dir.path(), &OWNER, 0), Err(StoreError::Corrupt(_))));
}

/// A backend that survives, and a folder with the log of `n` commits, left as a kill leaves it.
fn killed(folder: &Path, n: usize) -> Arc<MemoryStore> {
    let backend = Arc::new(MemoryStore::default());
    let store = LoggedStore::open(options(folder), Box::new(Surviving(backend.clone())), None).unwrap();
    for k in 0..n {
        put(&store, &format!("k{k}"), b"a value of some length");
    }
    std::mem::forget(store);
    backend
}

fn reopen(folder: &Path, owner: LogOwner, backend: &Arc<MemoryStore>) -> Result<LoggedStore, StoreError> {
    LoggedStore::open(LogOptions { owner, ..options(folder) }, Box::new(Surviving(backend.clone())), None)
}

fn error_of(opened: Result<LoggedStore, StoreError>) -> StoreError {
    opened.err().unwrap()
}

fn only_file(folder: &Path) -> PathBuf {
    let files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

fn change(file: &Path, at: u64, to: &[u8]) {
    OpenOptions::new().write(true).open(file).unwrap().write_all_at(to, at).unwrap();
}

#[test]
fn another_stores_log_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    killed(dir.path(), 3);
    let before = fs::read(only_file(dir.path())).unwrap();
    let fresh = Arc::new(MemoryStore::default());
    assert!(matches!(error_of(reopen(dir.path(), OTHER, &fresh)), StoreError::Refused(_)));
    assert_eq!(fs::read(only_file(dir.path())).unwrap(), before);
    assert_eq!(fresh.get(b"k0").unwrap(), None, "and nothing of it got in");
}

#[test]
fn a_backend_of_another_store_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let backend = killed(&dir.path().join("a"), 3);
    let store = reopen(&dir.path().join("a"), OWNER, &backend).unwrap();
    store.settle();
    drop(store);
    assert!(matches!(error_of(reopen(&dir.path().join("b"), OTHER, &backend)), StoreError::Refused(_)));
}

#[test]
fn a_file_of_format_1_is_read_only_where_it_may_be() {
    let dir = tempfile::tempdir().unwrap();
    killed(dir.path(), 3);
    let file = only_file(dir.path());
    let header = read_header(&fs::read(&file).unwrap()).unwrap();
    let mut old = MAGIC_FORMAT_1.to_vec();
    old.extend_from_slice(&header.generation.to_le_bytes());
    // Format 1 did not say how far the backend was, so its log need not begin at 1.
    old.extend_from_slice(&header.first.to_le_bytes());
    old.extend_from_slice(&crc32fast::hash(&old).to_le_bytes());
    old.resize(HEADER_BYTES as usize, 0);
    change(&file, 0, &old);
    let fresh = Arc::new(MemoryStore::default());
    assert!(matches!(error_of(reopen(dir.path(), OWNER, &fresh)), StoreError::Refused(_)));
    let store = reopen(dir.path(), LogOwner { accepts_format_1: true, ..OWNER }, &fresh).unwrap();
    assert!(store.get(b"k2").unwrap().is_some());
    store.settle();
    drop(store);
    let store = reopen(dir.path(), OWNER, &fresh).unwrap();
    assert!(store.get(b"k2").unwrap().is_some(), "from then on it is one of the present format");
}

#[test]
fn damage_before_the_last_record_is_said_and_not_cut() {
    let dir = tempfile::tempdir().unwrap();
    let backend = killed(dir.path(), 10);
    let file = only_file(dir.path());
    let at = HEADER_BYTES + 5 * (RECORD_HEADER as u64 + 9 + 2 + 22) + 30;
    change(&file, at, b"!");
    let StoreError::Corrupt(why) = error_of(reopen(dir.path(), OWNER, &backend)) else { panic!("opened") };
    assert!(why.contains("record 6") && why.contains("backup"), "{why}");
    let before = HEADER_BYTES + 9 * (RECORD_HEADER as u64 + 9 + 2 + 22);
    change(&file, at, b"a");
    change(&file, before + 30, b"!");
    assert!(reopen(dir.path(), OWNER, &backend).is_ok(), "the last one may have been cut by the crash itself");
}

#[test]
fn a_damaged_header_does_not_throw_away_what_follows_it() {
    let dir = tempfile::tempdir().unwrap();
    let backend = killed(dir.path(), 3);
    let file = only_file(dir.path());
    change(&file, 9, b"x");
    assert!(matches!(error_of(reopen(dir.path(), OWNER, &backend)), StoreError::Corrupt(_)));
    assert!(file.exists());
}

#[test]
fn a_log_that_is_gone_or_an_older_copy_of_it_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, copy) = (dir.path().join("wal"), dir.path().join("copy"));
    let backend = killed(&wal, 3);
    fs::create_dir(&copy).unwrap();
    let first = only_file(&wal);
    fs::copy(&first, copy.join(first.file_name().unwrap())).unwrap();
    for _ in 0..2 {
        let store = reopen(&wal, OWNER, &backend).unwrap();
        put(&store, "more", b"1");
        store.settle();
    }
    assert!(matches!(error_of(reopen(&copy, OWNER, &backend)), StoreError::Corrupt(_)), "older than the backend");
    let empty = dir.path().join("empty");
    assert!(matches!(error_of(reopen(&empty, OWNER, &backend)), StoreError::Corrupt(_)), "no log at all");
    let fresh = Arc::new(MemoryStore::default());
    assert!(matches!(error_of(reopen(&wal, OWNER, &fresh)), StoreError::Corrupt(_)), "no backend");
    assert!(reopen(&wal, OWNER, &backend).is_ok(), "together they are well");
}

#[test]
fn the_last_record_is_written_again_on_opening() {
    let dir = tempfile::tempdir().unwrap();
    killed(dir.path(), 3);
    let file = only_file(dir.path());
    let (before, long_ago) = (fs::read(&file).unwrap(), std::time::UNIX_EPOCH);
    File::options().write(true).open(&file).unwrap().set_modified(long_ago).unwrap();
    recover(dir.path(), &OWNER, 0).unwrap();
    // A sync that failed had left it in memory alone, where reading finds it and syncing does not.
    assert_ne!(fs::metadata(&file).unwrap().modified().unwrap(), long_ago);
    assert_eq!(fs::read(&file).unwrap(), before);
}

/// A backend that fails in its own way when it is to take changes.
struct Failing(fn());

impl Store for Failing {
    fn get(&self, _: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(None)
    }

    fn range(&self, _: &[u8], _: &[u8], _: usize, _: Order) -> Result<Vec<Row>, StoreError> {
        Ok(Vec::new())
    }

    fn commit(&self, _: &Batch) -> Result<(), StoreError> {
        (self.0)();
        Err(StoreError::Failed("no space left".into()))
    }
}

#[test]
fn a_checkpoint_that_fails_or_panics_fails_the_store_at_once() {
    for how in [(|| {}) as fn(), || panic!("the backend has a bug")] {
        let dir = tempfile::tempdir().unwrap();
        let store = LoggedStore::open(options(dir.path()), Box::new(Failing(how)), None).unwrap();
        put(&store, "k", b"v");
        assert!(!store.has_failed());
        store.rotate(&mut store.log.lock()).unwrap();
        let mut gate = store.shared.gate.lock();
        while !store.has_failed() {
            store.shared.changed.wait(&mut gate);
        }
        drop(gate);
        let mut batch = Batch::default();
        batch.put(b"later".to_vec(), b"v".to_vec());
        assert!(matches!(store.commit(&batch), Err(StoreError::Failed(_))));
        drop(store);
        assert!(open(dir.path()).get(b"k").unwrap().is_some(), "the log still has what the backend did not take");
    }
}

#[test]
fn a_file_that_cannot_be_made_leaves_no_half_behind() {
    let dir = tempfile::tempdir().unwrap();
    // A folder of the name that the file would have.
    fs::create_dir(dir.path().join(format!("{:020}.wal", 1))).unwrap();
    assert!(Log::begin(&options(dir.path()), 1, 1).is_err());
    fs::remove_dir(dir.path().join(format!("{:020}.wal", 1))).unwrap();
    assert!(Log::begin(&options(dir.path()), 1, 1).is_ok());
}

#[test]
fn no_record_goes_over_the_end_of_a_file_while_the_backend_keeps_up() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for n in 0..700 {
        put(&store, &format!("key {n}"), &vec![n as u8; 4096]);
        let log = store.log.lock();
        assert!(log.at <= 1 << 20 && fs::metadata(&log.path).unwrap().len() == 1 << 20, "record {n}");
        drop(log);
        store.settle();
    }
    assert!(store.log.lock().generation >= 3, "it took several files");
    assert_eq!(store.get(b"key 3").unwrap(), Some(vec![3; 4096]));
    assert_eq!(record_bytes(&[Op::Delete { key: vec![1; 5] }]), 30);
}

mod names;
