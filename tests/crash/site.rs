//! A data folder with its config, and the gateway's process on it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::wire;

/// The counter of conversation records on disk.
pub const WRITTEN: &str = "tollgate_journal_records_total{state=\"written\"}";

const ADMIN: &str = "root-admin";
const PASSWORD: &str = "SecurePass123";
/// A start that takes longer has gone wrong, however busy the machine.
const START_PATIENCE: Duration = Duration::from_secs(120);
/// How long a process may take to be gone that has met a point.
const DEATH_PATIENCE: Duration = Duration::from_secs(10);
/// Small log files, so that a short run sees many of them.
const WAL_FILE_BYTES: u64 = 32 << 10;

/// What becomes of holds that a crash left open: `ledger.recover_open_holds`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    Charge,
    Refund,
}

/// What differs between data folders.
#[derive(Clone, Debug)]
pub struct Setting {
    pub backend: &'static str,
    pub recovery: Recovery,
    /// Deletes old conversations beyond so many bytes.
    pub retention_bytes: Option<u64>,
    /// Hardly anything may wait for the journal before it goes to the spill.
    pub spills: bool,
    /// Sectors of a batch that was never synced may arrive in any order: the journal then has holes where nothing was
    /// acknowledged.
    pub journal_may_have_holes: bool,
}

pub struct Site {
    pub setting: Setting,
    /// Where the folder is; kept when a run fails.
    root: PathBuf,
    pub data: PathBuf,
}

/// A user as his client knows him.
#[derive(Clone, Debug)]
pub struct User {
    pub id: u64,
    pub key: String,
}

impl Site {
    /// `data` is where the store will be; it may lie on another file system than the config.
    pub fn new(root: &Path, data: &Path, upstream: SocketAddr, setting: Setting) -> Self {
        std::fs::create_dir_all(root).unwrap();
        let recovery = match setting.recovery {
            Recovery::Charge => "charge",
            Recovery::Refund => "refund",
        };
        // Compressed, so much would never come together here, and what is left would say nothing of what was deleted.
        let retention = setting.retention_bytes.map(|n| format!("retention_bytes = {n}\ncompression = \"none\"\n"));
        let retention = retention.unwrap_or_default();
        let spill = if setting.spills { "overflow = \"spill\"\nspill_above_bytes = 2048\n" } else { "" };
        let text = format!(
            "data_dir = {data:?}\n\
             [listen]\npublic = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\nworkers = 2\ndrain_grace = \"5s\"\n\
             [limits]\nper_ip_per_minute = 0\n\
             [access]\nblock_after_failures = 0\n\
             [plans.free.meters]\n\
             conversations = {{ grant = 1000000, period = \"never\" }}\n\
             credits = {{ grant = 100000000, period = \"never\" }}\n\
             [ledger]\nrecover_open_holds = \"{recovery}\"\n\
             [journal]\nbatch_size = 5\nflush_interval = \"15ms\"\nsegment_bytes = 65536\n{retention}{spill}\
             [store]\nbackend = \"{}\"\ncache_bytes = 8388608\n\
             [telemetry]\naccess_log = \"off\"\n\
             [[upstreams]]\nname = \"ai\"\nendpoints = [\"http://{upstream}\"]\n\
             [[routes]]\npath = \"/v1/*\"\nupstream = \"ai\"\ncost = {{ conversations = 1 }}\n\
             [[routes]]\npath = \"/metered/*\"\nupstream = \"ai\"\ncost = {{ credits = {{ per_output_token = 1 }} }}\n",
            setting.backend,
        );
        std::fs::write(root.join("tollgate.toml"), text).unwrap();
        Self { setting, root: root.to_owned(), data: data.to_owned() }
    }

    /// A file's path next to the config, on a disk that fails nobody.
    pub fn beside(&self, name: &str) -> String {
        self.root.join(name).display().to_string()
    }

    fn command(&self, words: &[&str], points: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        command.args(words).arg("--config").arg(self.root.join("tollgate.toml"));
        command.env_remove("RUST_LOG");
        command.env("TOLLGATE_ADMIN_USERNAME", ADMIN).env("TOLLGATE_ADMIN_PASSWORD", PASSWORD);
        let size = format!("wal.file_bytes=return({WAL_FILE_BYTES})");
        command.env("FAILPOINTS", if points.is_empty() { size } else { format!("{size};{points}") });
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// Runs one of the program's own checks on the files of a stopped gateway.
    ///
    /// # Errors
    /// What it found.
    pub fn run(&self, words: &[&str]) -> Result<(), String> {
        let done = self.command(words, "").stdout(Stdio::piped()).output().unwrap();
        let said = [done.stdout, done.stderr].concat();
        if done.status.success() { Ok(()) } else { Err(format!("{words:?}: {}", String::from_utf8_lossy(&said))) }
    }

    /// Starts the process and does not wait for anything. `points`: what happens at which point in the code.
    pub fn launch(&self, points: &str) -> Process {
        self.launch_command(&["serve"], points)
    }

    /// As [`Site::launch`], for one of the program's other commands.
    pub fn launch_command(&self, words: &[&str], points: &str) -> Process {
        let mut child = self.command(words, points).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (stderr, copy) = (child.stderr.take().unwrap(), log.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = copy.lock().unwrap();
                log.push_str(&without_colours(&line));
                log.push('\n');
            }
        });
        Process { child, log, began: Instant::now() }
    }

    /// Starts the process and waits until it serves.
    ///
    /// # Errors
    /// It ended instead, or took too long; the text is what it said.
    pub fn serve(&self, points: &str) -> Result<Gateway, Died> {
        let mut process = self.launch(points);
        loop {
            if let Some(line) = process.line_with("listening") {
                let address = |name: &str| line.split_whitespace().find_map(|w| w.strip_prefix(name)?.parse().ok());
                if let (Some(public), Some(admin)) = (address("public="), address("admin=")) {
                    return Ok(Gateway { start_took: process.began.elapsed(), process, public, admin });
                }
            }
            if let Some(status) = process.ended() {
                return Err(Died { log: process.whole_log(), by_itself: status.code().is_some() });
            }
            if process.began.elapsed() > START_PATIENCE {
                let log = process.whole_log();
                return Err(Died { log: format!("{log}\n(the start took too long)"), by_itself: true });
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }
}

/// A start that did not come to its end.
#[derive(Debug)]
pub struct Died {
    pub log: String,
    /// It ended with an exit code: refused to start. Otherwise it was killed, as a point asked.
    pub by_itself: bool,
}

pub struct Process {
    child: Child,
    log: Arc<Mutex<String>>,
    began: Instant,
}

impl Process {
    pub fn kill(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Whether it ends within the time.
    pub fn ends_within(&mut self, limit: Duration) -> bool {
        let due = Instant::now() + limit;
        while self.ended().is_none() {
            if Instant::now() > due {
                return false;
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
        true
    }

    /// Waits for a command that ends by itself; false when it has gone wrong.
    pub fn has_ended(&mut self) -> bool {
        self.ends_within(START_PATIENCE)
    }

    /// Whether it has met a point, as far as a broken connection lets one think so.
    pub fn has_died(&mut self) -> bool {
        self.ends_within(DEATH_PATIENCE)
    }

    pub fn whole_log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    fn line_with(&self, word: &str) -> Option<String> {
        self.log.lock().unwrap().lines().find(|line| line.contains(word)).map(str::to_owned)
    }
}

impl Process {
    /// SIGTERM: it may end in good order.
    pub fn terminate(&mut self) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        if !self.ends_within(START_PATIENCE) {
            self.kill();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether the side port says that the store has failed; `None` when nobody answers. The audit trail may meet a full disk
/// first, and then says so: staff can do nothing any more, but calls are still served.
fn store_has_failed(admin: SocketAddr) -> Option<bool> {
    let answer = wire::once(admin, "GET", "/ready", &[("connection", "close")], None);
    answer.status.map(|status| status != 200 && answer.text().contains("the store has failed"))
}

/// A process that serves.
pub struct Gateway {
    pub process: Process,
    pub public: SocketAddr,
    pub admin: SocketAddr,
    pub start_took: Duration,
}

impl Gateway {
    pub fn register(&self, name: &str) -> User {
        let body = json!({
            "username": name, "name": "Test User", "email": format!("{name}@example.com"), "password": PASSWORD,
        });
        let answer = wire::once(self.public, "POST", "/v1/users/register", &[], Some(&body));
        assert_eq!(answer.status, Some(200), "{}", answer.text());
        let value = answer.json();
        User { id: value["user_id"].as_u64().unwrap(), key: value["api_key"].as_str().unwrap().to_owned() }
    }

    /// An admin's session token.
    pub fn login(&self) -> String {
        let body = json!({"username": ADMIN, "password": PASSWORD});
        let answer = wire::once(self.admin, "POST", "/v1/admin-panel/login", &[], Some(&body));
        assert_eq!(answer.status, Some(200), "{}", answer.text());
        answer.json()["session"]["session_token"].as_str().unwrap().to_owned()
    }

    /// Whether `/ready` says within the time that the store has failed.
    pub fn closes_within(&self, limit: Duration) -> bool {
        let due = Instant::now() + limit;
        while store_has_failed(self.admin) == Some(false) {
            if Instant::now() > due {
                return false;
            }
            std::thread::park_timeout(Duration::from_millis(2));
        }
        true
    }

    pub fn admin(&self, token: &str, method: &str, path: &str, body: Option<&Value>) -> wire::Answer {
        admin_call(self.admin, token, method, path, body)
    }
}

pub fn admin_call(to: SocketAddr, token: &str, method: &str, path: &str, body: Option<&Value>) -> wire::Answer {
    let bearer = format!("Bearer {token}");
    wire::once(to, method, path, &[("authorization", &bearer), ("connection", "close")], body)
}

/// `None` when the process does not answer.
pub fn metric(to: SocketAddr, sample: &str) -> Option<f64> {
    let answer = wire::once(to, "GET", "/metrics", &[("connection", "close")], None);
    if !answer.complete {
        return None;
    }
    let text = answer.text();
    let line = text.lines().find(|line| line.strip_prefix(sample).is_some_and(|rest| rest.starts_with(' ')))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// Without what makes a terminal coloured.
fn without_colours(line: &str) -> String {
    let mut plain = String::new();
    let mut parts = line.split('\u{1b}');
    plain.push_str(parts.next().unwrap_or_default());
    for part in parts {
        plain.push_str(part.split_once('m').map_or("", |(_, rest)| rest));
    }
    plain
}
