//! The real program, as an operator runs it.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use serde_json::Value;

use crate::support::{http, wait_until};

/// A folder with a config, and the program to run on it.
pub struct Site {
    pub dir: tempfile::TempDir,
    pub public: SocketAddr,
    pub admin: SocketAddr,
}

/// A port that no other test is given. It is below those which the kernel gives away by itself, to whoever asks meanwhile.
fn free() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 10_000 + (std::process::id() % 10_000) as u16;
    let ports =
        std::iter::repeat_with(|| SocketAddr::from(([127, 0, 0, 1], first + NEXT.fetch_add(1, Ordering::SeqCst))));
    ports.take(10_000).find(|address| TcpListener::bind(address).is_ok()).unwrap()
}

impl Site {
    /// `upstream` answers the calls.
    pub fn new(upstream: SocketAddr) -> Self {
        let site = Self { dir: tempfile::tempdir().unwrap(), public: free(), admin: free() };
        let (public, admin) = (site.public, site.admin);
        site.write(&format!(
            "data_dir = {:?}\n\
             [listen]\npublic = \"{public}\"\nadmin = \"{admin}\"\nworkers = 1\n\
             [telemetry]\naccess_log = \"off\"\nlog = \"error\"\n\
             [[upstreams]]\nname = \"ai\"\nendpoints = [\"http://{upstream}\"]\n\
             [[routes]]\npath = \"/v1/*\"\nupstream = \"ai\"\ncost = {{ conversations = 1 }}\n",
            site.dir.path().join("data")
        ));
        site
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("tollgate.toml")
    }

    pub fn write(&self, config: &str) {
        std::fs::write(self.config(), config).unwrap();
    }

    /// The program with these words, without anything of ours in its environment.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        command.args(words).arg("--config").arg(self.config()).env_clear().stdin(Stdio::null());
        command
    }

    pub fn run(&self, words: &[&str], env: &[(&str, &str)]) -> Ended {
        Ended::from(self.command(words).envs(env.iter().copied()).output().unwrap())
    }

    /// Starts the server and waits until it is ready.
    pub fn serve(&self, env: &[(&str, &str)]) -> Server {
        let child = self.command(&["serve"]).envs(env.iter().copied()).spawn().unwrap();
        let mut server = Server { child: Some(child) };
        wait_until("the server is ready", || {
            assert!(server.child.as_mut().unwrap().try_wait().unwrap().is_none(), "the server ended");
            std::net::TcpStream::connect(self.admin).is_ok()
                && http::call(self.admin, "GET", "/ready", &[], None).status == 200
        });
        assert!(std::net::TcpStream::connect(self.public).is_ok(), "who is ready listens");
        server
    }
}

/// How a command ended and what it said.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// A running server; killed when dropped.
pub struct Server {
    child: Option<Child>,
}

impl Server {
    /// Asks it to stop, as `systemctl stop` does, and says how it ended.
    pub fn terminate(mut self) -> Option<i32> {
        let mut child = self.child.take().unwrap();
        let done = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
        assert!(done.success());
        child.wait().unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A login on the side port: the role, or the status.
pub fn admin_login(site: &Site, username: &str, password: &str) -> Result<(String, String), u16> {
    let body = serde_json::json!({"username": username, "password": password});
    let answer = http::call(site.admin, "POST", "/v1/admin-panel/login", &[], Some(&body));
    if answer.status != 200 {
        return Err(answer.status);
    }
    let body: Value = answer.json();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    Ok((text(&body["admin"]["role"]), text(&body["session"]["session_token"])))
}
