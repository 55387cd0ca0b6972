//! Disks that fail: nothing is acknowledged that is not on one, everybody is told at once, and what was acknowledged is
//! there when the cause is gone.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use serde_json::json;
use tollgate::store::memory::MemoryStore;
use tollgate::store::wal::{LogOptions, LogOwner, LoggedStore};
use tollgate::store::{Batch, Order, Row, Store, StoreError};

use super::{BACKENDS, Person, site_on};
use crate::accounts::process::Site;
use crate::support::{Answer, Options, TestApp, chat_body, http, wait_briefly};

/// A backend that outlives the store in front of it, and takes changes only until a test breaks it.
#[derive(Default)]
struct Backend {
    rows: MemoryStore,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default, Clone, Copy, PartialEq)]
enum State {
    #[default]
    Sound,
    Held,
    Broken,
}

impl Backend {
    fn set(&self, state: State) {
        *self.state.lock() = state;
        self.changed.notify_all();
    }
}

struct Handle(Arc<Backend>);

impl Store for Handle {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.0.rows.get(key)
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize, order: Order) -> Result<Vec<Row>, StoreError> {
        self.0.rows.range(from, to, limit, order)
    }

    fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
        let mut state = self.0.state.lock();
        while *state == State::Held {
            self.0.changed.wait(&mut state);
        }
        if *state == State::Broken {
            return Err(StoreError::Failed("the test broke the disk".into()));
        }
        drop(state);
        self.0.rows.commit(batch)
    }
}

fn open(folder: &Path, backend: &Arc<Backend>) -> Arc<LoggedStore> {
    let owner = LogOwner { store: [1; 16], accepts_format_1: false };
    let options = LogOptions { folder: folder.to_owned(), owner, file_bytes: 1 << 20 };
    Arc::new(LoggedStore::open(options, Box::new(Handle(backend.clone())), None).unwrap())
}

fn assert_unavailable(answer: &Answer) {
    assert_eq!((answer.status, answer.error_code().as_str()), (503, "STORE_UNAVAILABLE"), "{}", answer.text());
    assert_eq!(answer.header("retry-after"), Some("5"));
}

#[test]
fn a_fault_behind_the_commits_is_seen_without_a_commit() {
    let (logs, backend) = (tempfile::tempdir().unwrap(), Arc::new(Backend::default()));
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let start = || {
        let store: Arc<dyn Store> = open(logs.path(), &backend);
        TestApp::with(Options { store: Some(store), dir: Some(dir.clone()), ..Options::default() })
    };
    let mut app = start();
    let user = app.register("johndoe");
    app.stop();
    drop(app);

    // What the last start left in the log is on its way to the backend, which takes its time.
    backend.set(State::Held);
    let mut app = start();
    assert_eq!(app.chat(&user.key, json!({})).status, 200, "the log is all that a call waits for");
    assert_eq!(http::call(app.admin, "GET", "/ready", &[], None).status, 200);
    backend.set(State::Broken);
    wait_briefly("not ready", || http::call(app.admin, "GET", "/ready", &[], None).status == 503);
    for _ in 0..3 {
        assert_unavailable(&app.chat(&user.key, json!({})));
    }
    assert_eq!(http::call(app.admin, "GET", "/health", &[], None).status, 200, "it lives");
    assert_eq!(app.metric("tollgate_store_failed"), 1.0);
    app.stop();
    drop(app);

    backend.set(State::Sound);
    let app = start();
    let answer = app.chat(&user.key, json!({}));
    assert_eq!(answer.header("x-tollgate-remaining-conversations"), Some("8"), "one before and this one are paid");
}

/// A file system of its own, small enough to fill. `None` where mounting is not allowed.
struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    fn new(megabytes: u32) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={megabytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir.path()).output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self { dir }),
            _ => {
                println!("skipped: a small tmpfs cannot be mounted here; run as root to test a full disk");
                None
            }
        }
    }

    fn fill(&self) {
        let mut filler = File::create(self.dir.path().join("filler")).unwrap();
        for piece in [1 << 20, 4096, 1] {
            while filler.write_all(&vec![1; piece]).is_ok() {}
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.dir.path().join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: whatever a failed test left running must not keep it.
        let _ = Command::new("umount").arg("-l").arg(self.dir.path()).output();
    }
}

/// Moves the site's data to the small disk.
fn put_on(disk: &SmallDisk, site: &Site) {
    let config = std::fs::read_to_string(site.config()).unwrap();
    let data = format!("data_dir = {:?}\n", disk.dir.path().join("data"));
    let rest: Vec<&str> = config.lines().filter(|line| !line.starts_with("data_dir")).collect();
    let rest = rest.join("\n").replace("[store]", "[store]\nlog_file_bytes = 1048576");
    site.write(&(data + &rest));
}

const GENEROUS: [(&str, &str); 2] =
    [("TOLLGATE__LIMITS__PER_IP_PER_MINUTE", "0"), ("TOLLGATE__PLANS__FREE__METERS__CONVERSATIONS__GRANT", "1000000")];

#[test]
fn a_full_disk_stops_acknowledgement_and_loses_nothing_when_the_log_meets_it() {
    for backend in BACKENDS {
        fill_the_disk_under(backend, false);
    }
}

#[test]
fn a_full_disk_stops_acknowledgement_and_loses_nothing_when_the_backend_meets_it() {
    for backend in BACKENDS {
        fill_the_disk_under(backend, true);
    }
}

/// One round of large commits, which end when the store's disk is full and not when another file's is: calls whose answers
/// the store keeps. How many were answered, and so paid, and whether all were.
fn write_much(person: &Person, site: &Site) -> (u64, bool) {
    let body = chat_body(json!({}));
    for answered in 0..20 {
        let key = format!("{answered}-{:x}", fastrand::u128(..));
        let headers = [("authorization", person.bearer.as_str()), ("idempotency-key", &key), ("x-mock-tokens", "3000")];
        if http::call(site.public, "POST", "/v1/chat/completions", &headers, Some(&body)).status != 200 {
            return (answered, false);
        }
    }
    (20, true)
}

/// `with_spare`: the log has a file in reserve, so that it goes on and the backend is the first to want room.
fn fill_the_disk_under(backend: &str, with_spare: bool) {
    let mock = TestApp::start("");
    let Some(disk) = SmallDisk::new(64) else { return };
    let site = site_on(backend, mock.upstream.addr());
    put_on(&disk, &site);
    let server = site.serve(&GENEROUS);
    let person = Person::new(&site, "johndoe");
    assert_eq!(person.left_after_a_call(&site), 999_999);
    let mut paid = 1;
    while with_spare && !disk.dir.path().join("data/wal/spare").exists() {
        let (answered, all) = write_much(&person, &site);
        assert!(all, "{backend}: refused with room left");
        paid += answered;
    }
    disk.fill();
    let refused = loop {
        let answer = person.says(&site, "one more");
        if answer.status != 200 {
            break answer;
        }
        paid += 1;
        assert!(paid < 3_000, "{backend}: the disk never got full");
        paid += write_much(&person, &site).0;
    };
    assert_unavailable(&refused);
    wait_briefly("not ready", || http::call(site.admin, "GET", "/ready", &[], None).status == 503);
    for _ in 0..5 {
        assert_unavailable(&person.says(&site, "and one more"));
    }
    drop(server);

    let ended = site.run(&["serve"], &[]);
    assert_eq!(ended.code, Some(1), "{backend}: {ended:?}");
    assert!(ended.err.contains("full") || ended.err.contains("No space left"), "{backend}: {}", ended.err);
    disk.free();
    let server = site.serve(&GENEROUS);
    let left = person.left_after_a_call(&site);
    // The call that was refused may or may not have been paid: its answer never left.
    let expected = 1_000_000 - paid - 1;
    assert!(left == expected || left == expected - 1, "{backend}: {left} left after {paid} paid calls");
    assert_eq!(server.terminate(), Some(0));
    for words in [&["ledger", "verify"][..], &["logs", "verify"]] {
        let ended = site.run(words, &[]);
        assert_eq!(ended.code, Some(0), "{backend}, {words:?}: {ended:?}");
    }
}
