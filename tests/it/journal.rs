//! The conversation journal behind the gateway: what a slow disk costs the calls, whom it leaves out, what it takes out.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tollgate::actors::writer::{Disk, LocalDisk, SegmentFile};

use crate::support::{Options, TestApp, TestUser, wait_until};

/// A disk whose syncs wait while it is told to hang.
#[derive(Clone, Default)]
struct HangingDisk {
    hangs: Arc<AtomicBool>,
    is_hanging: Arc<AtomicBool>,
}

struct HangingFile {
    file: File,
    disk: HangingDisk,
}

impl Disk for HangingDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        let file = File::options().write(true).create_new(true).open(path)?;
        Ok(Box::new(HangingFile { file, disk: self.clone() }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        let file = File::options().write(true).open(path)?;
        Ok(Box::new(HangingFile { file, disk: self.clone() }))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        LocalDisk.sync_dir(dir)
    }
}

impl SegmentFile for HangingFile {
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        SegmentFile::write_all_at(&mut self.file, bytes, offset)
    }

    fn sync_data(&mut self) -> io::Result<()> {
        while self.disk.hangs.load(Ordering::SeqCst) {
            self.disk.is_hanging.store(true, Ordering::SeqCst);
            std::thread::park_timeout(std::time::Duration::from_millis(1));
        }
        SegmentFile::sync_data(&mut self.file)
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
}

const THREE: &str = "queue_records = 3\n";

/// A gateway whose journal hangs in the sync of a first record.
fn hanging(toml: &str) -> (TestApp, TestUser, HangingDisk) {
    let disk = HangingDisk::default();
    let toml = format!("[journal]\nbatch_size = 1\n{toml}");
    let app = TestApp::with(Options { toml, journal_disk: Some(Box::new(disk.clone())), ..Options::default() });
    let user = app.register("johndoe");
    let token = app.admin_token();
    let plenty = json!({"limits": {"conversation_limit": 1000}});
    app.admin_call(&token, "PUT", &format!("/v1/admin-panel/users/{}", user.id), Some(&plenty));
    disk.hangs.store(true, Ordering::SeqCst);
    assert_eq!(app.chat(&user.key, json!({})).status, 200);
    wait_until("the disk hangs", || disk.is_hanging.load(Ordering::SeqCst));
    (app, user, disk)
}

fn records(app: &TestApp, state: &str) -> f64 {
    app.metric(&format!("tollgate_journal_records_total{{state=\"{state}\"}}"))
}

fn balances(app: &TestApp) -> bool {
    let queued = app.metric("tollgate_journal_queue_records");
    records(app, "emitted") == records(app, "written") + records(app, "spilled") + records(app, "dropped") + queued
}

fn logged(app: &TestApp, user: &TestUser) -> Vec<Value> {
    let path = format!("/v1/admin-panel/message-logs/{}?page_size=200", user.id);
    let answer = app.admin_call(&app.admin_token(), "GET", &path, None);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["items"].as_array().unwrap().clone()
}

#[test]
fn with_drop_a_hanging_disk_costs_records_and_no_call() {
    let (app, user, disk) = hanging(&format!("{THREE}overflow = \"drop\""));
    for _ in 0..20 {
        assert_eq!(app.chat(&user.key, json!({})).status, 200);
    }
    wait_until("all are counted", || records(&app, "emitted") == 21.0);
    assert_eq!((records(&app, "dropped"), app.metric("tollgate_journal_queue_records")), (18.0, 3.0));
    assert!(balances(&app));
    disk.hangs.store(false, Ordering::SeqCst);
    assert_eq!(logged(&app, &user).len(), 3);
    assert!(balances(&app) && records(&app, "written") == 3.0);
}

#[test]
fn with_wait_the_answer_is_out_and_the_call_settled_before_anything_waits() {
    // Longer than the test may take: what has come has not waited.
    let (app, user, disk) = hanging(&format!("{THREE}overflow = \"wait\"\nmax_wait = \"10s\""));
    for _ in 0..2 {
        assert_eq!(app.chat(&user.key, json!({})).status, 200);
    }
    let answers: Vec<_> = (0..5).map(|_| app.chat(&user.key, json!({"stream": true}))).collect();
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.text().ends_with("data: [DONE]\n\n")));
    wait_until("they wait for room", || app.metric("tollgate_journal_waiting_calls") == 5.0);
    assert_eq!(app.metric("tollgate_holds_open"), 0.0);
    // Nobody else is held up by them, on either worker.
    for _ in 0..10 {
        assert_eq!(app.call("GET", "/v1/models", &user.key, None).status, 200);
    }
    disk.hangs.store(false, Ordering::SeqCst);
    wait_until("room was made", || app.metric("tollgate_journal_waiting_calls") == 0.0);
    wait_until("all are written", || records(&app, "written") + records(&app, "dropped") >= 8.0);
    assert_eq!(
        logged(&app, &user).iter().filter(|record| record["route"] == "/v1/*").count() as f64,
        records(&app, "written")
    );
    assert!(balances(&app));
}

#[test]
fn with_wait_a_call_waits_no_longer_than_the_bound() {
    let (app, user, disk) = hanging(&format!("{THREE}overflow = \"wait\"\nmax_wait = \"1ms\""));
    for _ in 0..20 {
        assert_eq!(app.chat(&user.key, json!({})).status, 200);
    }
    // The disk hangs all the while: only the bound can have ended their waits.
    wait_until("nobody waits any more", || records(&app, "emitted") == 21.0);
    assert_eq!((records(&app, "dropped"), app.metric("tollgate_journal_waiting_calls")), (18.0, 0.0));
    disk.hangs.store(false, Ordering::SeqCst);
    assert_eq!(logged(&app, &user).len(), 3);
}

#[test]
fn with_spill_nothing_is_lost() {
    let (app, user, disk) = hanging("overflow = \"spill\"\nspill_above_bytes = 1");
    for _ in 0..20 {
        assert_eq!(app.chat(&user.key, json!({})).status, 200);
    }
    wait_until("most are in the spill", || records(&app, "spilled") >= 15.0);
    assert_eq!(records(&app, "written"), 0.0);
    assert!(app.metric("tollgate_journal_spill_bytes") > 0.0);
    disk.hangs.store(false, Ordering::SeqCst);
    wait_until("all are in the journal", || records(&app, "written") == 21.0 && records(&app, "spilled") == 0.0);
    let logged = logged(&app, &user);
    let ids: std::collections::BTreeSet<&str> =
        logged.iter().map(|record| record["request_id"].as_str().unwrap()).collect();
    assert_eq!((logged.len(), ids.len()), (21, 21));
    assert!(balances(&app));
}

#[test]
fn a_user_can_be_left_out_from_the_next_call_on() {
    let app = TestApp::start("");
    let (alice, bob) = (app.register("alice"), app.register("bob"));
    let token = app.admin_token();
    let path = format!("/v1/admin-panel/users/{}", alice.id);
    let mut expected = 0;
    for kept in [true, false, true, false] {
        let change = app.admin_call(&token, "PUT", &path, Some(&json!({"log_conversations": kept})));
        assert_eq!((change.status, &change.json()["user"]["log_conversations"]), (200, &json!(kept)));
        assert_eq!(app.chat(&alice.key, json!({})).status, 200);
        assert_eq!(app.chat(&bob.key, json!({})).status, 200);
        expected += usize::from(kept);
        assert_eq!(logged(&app, &alice).len(), expected);
    }
    assert_eq!(logged(&app, &bob).len(), 4);
    let shown = app.admin_call(&token, "GET", &path, None).json();
    assert_eq!(shown["user"]["log_conversations"], false);
    let bad = app.admin_call(&token, "PUT", &path, Some(&json!({"log_conversations": "no"})));
    assert!(bad.status == 422 || bad.status == 400, "{}", bad.status);
    assert!(bad.text().contains("log_conversations"), "{}", bad.text());
}

#[test]
fn the_config_leaves_users_out_by_name() {
    let mut app = TestApp::start("[journal]\nexclude_users = [\"Alice\"]\n");
    let (alice, bob) = (app.register("alice"), app.register("bob"));
    for user in [&alice, &bob] {
        assert_eq!(app.chat(&user.key, json!({})).status, 200);
    }
    assert_eq!((logged(&app, &alice).len(), logged(&app, &bob).len()), (0, 1));
    app.reload("[journal]\nexclude_users = [\"bob\"]\n");
    for user in [&alice, &bob] {
        assert_eq!(app.chat(&user.key, json!({})).status, 200);
    }
    assert_eq!((logged(&app, &alice).len(), logged(&app, &bob).len()), (1, 1));
}

#[test]
fn redaction_is_seen_by_whoever_reads_the_log() {
    let toml = "[journal.redact]\ndrop = [\"request_id\"]\nhash = [\"username\"]\nmask = [\"email\", \"ip_address\"]\n\
                patterns = [\"email\", \"api_key\"]\n";
    let app = TestApp::start(toml);
    let user = app.register("johndoe");
    let said = format!("I am john@example.com and my key is {}", user.key);
    let messages = json!([{"role": "user", "content": said}]);
    let answer = app.chat(&user.key, json!({"messages": messages}));
    assert!(answer.text().contains("john@example.com"), "the call itself is not touched");
    let records = logged(&app, &user);
    let record = &records[0];
    assert_eq!(record["messages"]["request"][0]["content"], "I am [email] and my key is [api_key]");
    let heard = record["messages"]["response"]["content"].as_str().unwrap();
    assert!(heard.contains("[email]") && !record.to_string().contains("john@"), "{record}");
    assert!(record["username"].as_str().unwrap().starts_with("hmac:"), "{record}");
    assert_eq!((&record["email"], &record["ip_address"]), (&json!("j***@example.com"), &json!("127.0.0.0")));
    assert_eq!(record["request_id"], Value::Null);
    let folder = app.dir.path().join("journal");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = if path.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() };
        assert!(!bytes.windows(16).any(|part| part == b"john@example.com"), "{}", path.display());
    }
}
