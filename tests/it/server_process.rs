//! The real program as a child process: signals, exit codes, files, and what the kernel says of its memory.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use crate::support::{self, ADMIN, PASSWORD, wait_until};

/// A folder with a config, which any number of servers may be started on.
pub struct Site {
    pub dir: tempfile::TempDir,
}

pub struct Server {
    child: Child,
    log: Arc<Mutex<String>>,
    pub public: SocketAddr,
    pub admin: SocketAddr,
}

impl Site {
    /// `toml`: all of the config but ports and folder.
    pub fn new(toml: &str) -> Self {
        let site = Self { dir: tempfile::tempdir().unwrap() };
        site.write_config(toml);
        site
    }

    pub fn config_file(&self) -> PathBuf {
        self.dir.path().join("tollgate.toml")
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// For the next start or reload. Tables of their own come after what is set here.
    pub fn write_config(&self, toml: &str) {
        let text = format!("data_dir = {:?}\n{toml}\n", self.data_dir());
        std::fs::write(self.config_file(), text).unwrap();
    }

    /// A command of the program on this config, with nothing inherited that could change it.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        command.args(words).arg("--config").arg(self.config_file());
        command.env_remove("RUST_LOG");
        command.env("TOLLGATE_ADMIN_USERNAME", ADMIN).env("TOLLGATE_ADMIN_PASSWORD", PASSWORD);
        command
    }

    /// As [`Site::command`], with so many descriptors: those it starts with, and those it may have.
    pub fn command_with_open_files(&self, words: &[&str], soft: u32, hard: u32) -> Command {
        let plain = self.command(words);
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\" \"$@\""));
        command.arg(plain.get_program()).args(plain.get_args());
        for (name, value) in plain.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    pub fn serve(&self) -> Server {
        self.serve_to(Stdio::null())
    }

    pub fn serve_with_open_files(&self, soft: u32, hard: u32) -> Server {
        Self::start(self.command_with_open_files(&["serve"], soft, hard), Stdio::null())
    }

    /// As [`Site::serve`], with the access log going there.
    pub fn serve_to(&self, output: Stdio) -> Server {
        Self::start(self.command(&["serve"]), output)
    }

    /// As [`Site::serve`], by a command of the test's own.
    pub fn serve_as(&self, command: Command) -> Server {
        Self::start(command, Stdio::null())
    }

    fn start(mut command: Command, output: Stdio) -> Server {
        let mut child = command.stdout(output).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (stderr, copy) = (child.stderr.take().unwrap(), log.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = copy.lock().unwrap();
                log.push_str(&without_colours(&line));
                log.push('\n');
            }
        });
        wait_until("the server listens", || {
            let text = log.lock().unwrap().clone();
            assert!(child.try_wait().unwrap().is_none(), "the server ended: {text}");
            text.contains("listening")
        });
        let text = log.lock().unwrap().clone();
        let line = text.lines().find(|line| line.contains("listening")).unwrap();
        let address = |name: &str| {
            let word = line.split_whitespace().find_map(|word| word.strip_prefix(name));
            word.unwrap_or_else(|| panic!("no {name} in {line}")).parse().unwrap()
        };
        Server { public: address("public="), admin: address("admin="), child, log }
    }
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

impl Server {
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status().unwrap();
        assert!(status.success());
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self) -> ExitStatus {
        wait_until("the server ends", || self.child.try_wait().unwrap().is_some());
        self.child.wait().unwrap()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Sends SIGHUP and waits until the server has said what became of it.
    pub fn reload(&self) {
        let said = || {
            let log = self.log();
            log.matches("the config was reloaded").count() + log.matches("the new config was refused").count()
        };
        let before = said();
        self.signal("HUP");
        wait_until("the reload is done", || said() > before);
    }

    fn status_kib(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Resident memory.
    pub fn rss_kib(&self) -> u64 {
        self.status_kib("VmRSS")
    }

    /// The most that was ever resident.
    pub fn peak_kib(&self) -> u64 {
        self.status_kib("VmHWM")
    }

    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(Path::new("/proc").join(self.child.id().to_string()).join("fd")).unwrap().count()
    }

    pub fn register(&self, name: &str) -> support::TestUser {
        let body = serde_json::json!({
            "username": name, "name": "Test User", "email": format!("{name}@example.com"), "password": PASSWORD,
        });
        let answer = support::http::call(self.public, "POST", "/v1/users/register", &[], Some(&body));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let value = answer.json();
        support::TestUser {
            id: value["user_id"].as_u64().unwrap(),
            username: name.to_owned(),
            email: format!("{name}@example.com"),
            key: value["api_key"].as_str().unwrap().to_owned(),
        }
    }

    pub fn chat(&self, key: &str, headers: &[(&str, &str)], more: serde_json::Value) -> support::Answer {
        let bearer = format!("Bearer {key}");
        let all: Vec<(&str, &str)> =
            std::iter::once(("authorization", bearer.as_str())).chain(headers.iter().copied()).collect();
        let body = support::chat_body(more);
        support::http::call(self.public, "POST", "/v1/chat/completions", &all, Some(&body))
    }

    pub fn admin_token(&self) -> String {
        let body = serde_json::json!({"username": ADMIN, "password": PASSWORD});
        let answer = support::http::call(self.admin, "POST", "/v1/admin-panel/login", &[], Some(&body));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["session"]["session_token"].as_str().unwrap().to_owned()
    }

    pub fn admin_get(&self, token: &str, path: &str) -> serde_json::Value {
        let bearer = format!("Bearer {token}");
        let answer = support::http::call(self.admin, "GET", path, &[("authorization", &bearer)], None);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    pub fn metric(&self, sample: &str) -> f64 {
        let metrics = support::http::call(self.admin, "GET", "/metrics", &[], None).text();
        let line = metrics.lines().find(|line| line.strip_prefix(sample).is_some_and(|rest| rest.starts_with(' ')));
        line.and_then(|line| line.rsplit(' ').next()).and_then(|n| n.parse().ok()).unwrap_or(0.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The simulated upstream as a process of its own, so that its memory and its time are not the tests'.
pub struct MockProcess {
    child: Child,
    pub addr: SocketAddr,
}

impl MockProcess {
    pub fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tollgate"))
            .args(["mock-upstream", "--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let addr = line.trim().rsplit('/').next().unwrap().parse().unwrap_or_else(|e| panic!("{e}: {line}"));
        Self { child, addr }
    }

    /// How many calls it has had on this path.
    pub fn served(&self, path: &str) -> u64 {
        let stats = support::http::call(self.addr, "GET", "/__mock/stats", &[], None).json();
        stats["by_path"][path].as_u64().unwrap_or(0)
    }
}

impl Drop for MockProcess {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
