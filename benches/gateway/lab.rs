//! The set-up: which core does what, the simulated AI service, nginx and the gateway.
//!
//! Owns the temporary folder, the generated configurations and the running programs. It never measures.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::load::{Connection, request};
use crate::process::{self, Process};
use crate::{Choice, Fallible};

const TOLLGATE: &str = env!("CARGO_BIN_EXE_tollgate");
/// On the same disk as the build, because a temporary folder may be in memory and syncs would then cost nothing.
const SCRATCH: &str = env!("CARGO_TARGET_TMPDIR");
const START_LIMIT: Duration = Duration::from_secs(20);

/// Which core each part runs on; `None` leaves it to the kernel.
#[derive(Debug, Clone, Copy)]
pub struct Cores {
    proxy: Option<usize>,
    mock: Option<usize>,
    load: Option<usize>,
}

impl Cores {
    /// The proxy under test gets a core to itself. Pins this process to the load generator's core.
    pub fn assign() -> Self {
        let nowhere = Self { proxy: None, mock: None, load: None };
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let cores = match count {
            1 => return nowhere,
            2 => Self { proxy: Some(0), mock: Some(1), load: Some(1) },
            _ => Self { proxy: Some(0), mock: Some(1), load: Some(2) },
        };
        match process::pin_self(cores.load.unwrap_or_default()) {
            Ok(()) => cores,
            Err(error) => {
                eprintln!("note: nothing is pinned to a core, taskset does not work here: {error}");
                nowhere
            }
        }
    }

    fn describe(&self) -> String {
        match (self.proxy, self.mock, self.load) {
            (Some(proxy), Some(mock), Some(load)) => {
                format!("proxy on core {proxy}, simulated AI service on core {mock}, load on core {load}")
            }
            _ => "no pinning: proxy, simulated AI service and load share what there is".to_owned(),
        }
    }
}

/// A program that takes calls.
pub struct Server {
    pub name: &'static str,
    pub addr: SocketAddr,
    /// The gateway's side port; `addr` of others.
    pub admin: SocketAddr,
    pub process: Process,
    /// The credential a call needs; empty for none.
    pub api_key: String,
}

pub struct Lab {
    // Before the folder: programs end before their files go.
    pub mock: Server,
    cores: Cores,
    dir: TempDir,
}

impl Lab {
    pub async fn start(cores: Cores) -> Fallible<Self> {
        let dir = tempfile::Builder::new().prefix("gateway-bench-").tempdir_in(SCRATCH)?;
        let addr = free_address()?;
        let listen = addr.to_string();
        let args = ["mock-upstream", "--listen", &listen];
        let process = Process::start("mock", cores.mock, Path::new(TOLLGATE), &args, dir.path())?;
        let mut mock = Server { name: "direct", addr, admin: addr, process, api_key: String::new() };
        wait_for(&mut mock.process, addr, "/__mock/stats").await?;
        Ok(Self { mock, cores, dir })
    }

    pub fn describe(&self) -> String {
        self.cores.describe()
    }

    /// What is compared with each other, each freshly started.
    pub async fn proxies(&self, choice: &Choice) -> Fallible<Vec<Server>> {
        let mut proxies = vec![self.nginx().await?];
        if !choice.nginx_only {
            proxies.push(self.tollgate().await?);
        }
        Ok(proxies)
    }

    /// A fresh nginx that passes everything on.
    pub async fn nginx(&self) -> Fallible<Server> {
        let program = find_nginx()?;
        let dir = self.folder("nginx")?;
        let addr = free_address()?;
        fs::write(dir.join("nginx.conf"), nginx_config(addr, self.mock.addr))?;
        let prefix = dir.to_string_lossy().into_owned();
        let args = ["-p", &prefix, "-c", "nginx.conf", "-e", "stderr"];
        let process = Process::start("nginx", self.cores.proxy, &program, &args, &dir)?;
        let mut server = Server { name: "nginx", addr, admin: addr, process, api_key: String::new() };
        wait_for(&mut server.process, addr, "/__mock/stats").await?;
        Ok(server)
    }

    /// A fresh gateway with one registered user.
    pub async fn tollgate(&self) -> Fallible<Server> {
        self.tollgate_with("tollgate", "").await
    }

    /// The same with `toml` added to its config, under another name.
    pub async fn tollgate_with(&self, name: &'static str, toml: &str) -> Fallible<Server> {
        self.tollgate_with_users(name, toml, |_| Ok(())).await
    }

    /// The same over a `data_dir` that `prepare` has filled.
    pub async fn tollgate_with_users(
        &self,
        name: &'static str,
        toml: &str,
        prepare: impl FnOnce(&Path) -> Fallible<()> + Send,
    ) -> Fallible<Server> {
        let mut server = self.start_tollgate(name, toml, prepare, &[]).await?;
        server.api_key = match register(server.addr).await {
            Ok(key) => key,
            Err(error) => {
                return Err(server.process.failure(&format!("did not register a user: {error}")).into());
            }
        };
        Ok(server)
    }

    /// A session token of a gateway's one user.
    pub async fn session(&self, server: &Server) -> Fallible<String> {
        let login = serde_json::json!({"email": EMAIL, "password": PASSWORD});
        let answer = tell(server.addr, "/v1/users/login", &login).await?;
        let token = answer["session"]["session_token"].as_str();
        Ok(token.ok_or_else(|| answer.to_string())?.to_owned())
    }

    /// A gateway over a `data_dir` that `prepare` has filled.
    pub async fn tollgate_over(&self, prepare: impl FnOnce(&Path) -> Fallible<()> + Send) -> Fallible<Server> {
        self.start_tollgate("tollgate", "", prepare, &[]).await
    }

    /// The same with a superadmin.
    pub async fn tollgate_with_admin(&self, prepare: impl FnOnce(&Path) -> Fallible<()> + Send) -> Fallible<Server> {
        let admin = [("TOLLGATE_ADMIN_USERNAME", "bench-admin"), ("TOLLGATE_ADMIN_PASSWORD", PASSWORD)];
        self.start_tollgate("tollgate", "", prepare, &admin).await
    }

    async fn start_tollgate(
        &self,
        name: &'static str,
        toml: &str,
        prepare: impl FnOnce(&Path) -> Fallible<()> + Send,
        env: &[(&str, &str)],
    ) -> Fallible<Server> {
        let dir = self.folder("tollgate")?;
        // On a thread of its own, because it may block for long, which this runtime does not allow.
        let data_dir = dir.join("data");
        let prepared =
            std::thread::scope(|scope| scope.spawn(|| prepare(&data_dir).map_err(|error| error.to_string())).join());
        prepared.map_err(|_| "preparing the data panicked")??;
        let (public, admin) = (free_address()?, free_address()?);
        fs::write(dir.join("tollgate.toml"), tollgate_config(public, admin, self.mock.addr) + toml)?;
        let args = ["serve", "--config", "tollgate.toml"];
        let process = Process::start_with("tollgate", self.cores.proxy, Path::new(TOLLGATE), &args, &dir, env)?;
        let mut server = Server { name, addr: public, admin, process, api_key: String::new() };
        wait_for(&mut server.process, admin, "/ready").await?;
        Ok(server)
    }

    /// A folder of its own for each start, so that no start finds another's state.
    fn folder(&self, name: &str) -> Fallible<PathBuf> {
        let folder = tempfile::Builder::new().prefix(name).tempdir_in(self.dir.path())?;
        Ok(folder.keep())
    }
}

/// Asks until the answer is 200, or tells what the program said instead.
async fn wait_for(process: &mut Process, addr: SocketAddr, path: &str) -> Fallible<()> {
    let until = Instant::now() + START_LIMIT;
    let mut last = String::new();
    while Instant::now() < until && !process.has_ended() {
        match ask(addr, &request("GET", path, &[], "")).await {
            Ok((200, _)) => return Ok(()),
            Ok((status, body)) => last = format!("{status} {body}"),
            Err(error) => last = error.to_string(),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(process.failure(&format!("was never ready at {addr}{path} ({last})")).into())
}

pub const PASSWORD: &str = "SecurePass123";
const EMAIL: &str = "bench@example.com";

async fn register(public: SocketAddr) -> Fallible<String> {
    let user = serde_json::json!({
        "username": "bench", "name": "Bench User", "email": EMAIL, "password": PASSWORD, "user_type": "Personal",
    });
    let answer = tell(public, "/v1/users/register", &user).await?;
    let key = answer.get("api_key").and_then(serde_json::Value::as_str);
    Ok(key.ok_or_else(|| answer.to_string())?.to_owned())
}

async fn tell(public: SocketAddr, path: &str, body: &serde_json::Value) -> Fallible<serde_json::Value> {
    let headers = [("content-type", "application/json")];
    let (_, answer) = ask(public, &request("POST", path, &headers, &body.to_string())).await?;
    Ok(serde_json::from_str(&answer)?)
}

/// One call on a connection of its own.
async fn ask(addr: SocketAddr, request: &[u8]) -> Fallible<(u16, String)> {
    let mut connection = Connection::open(addr).await?;
    let reply = tokio::time::timeout(Duration::from_secs(10), connection.exchange(request)).await??;
    Ok((reply.status, String::from_utf8_lossy(connection.body(&reply)).into_owned()))
}

/// Any free port. Another program could take it before ours does; ours then fails to start and says so.
fn free_address() -> Fallible<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn find_nginx() -> Fallible<PathBuf> {
    if let Some(program) = process::find_program("nginx") {
        return Ok(program);
    }
    if process::is_root() {
        eprintln!("note: nginx is missing, installing nginx-light");
        let _status = Command::new("apt-get").args(["install", "-y", "nginx-light"]).status();
    }
    let missing = "nginx is not installed, and the benchmark compares with it: apt-get install nginx-light";
    process::find_program("nginx").ok_or_else(|| missing.into())
}

fn nginx_config(listen: SocketAddr, upstream: SocketAddr) -> String {
    // Otherwise the worker could not open its own folder.
    let user = if process::is_root() { "user root;" } else { "" };
    format!(
        "{user}
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr error;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    tcp_nodelay on;
    keepalive_timeout 3600s;
    keepalive_requests 10000000;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    upstream ai {{
        server {upstream};
        keepalive 128;
        keepalive_requests 1000000;
    }}
    server {{
        listen {listen};
        location / {{
            proxy_pass http://ai;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
        }}
    }}
}}
"
    )
}

fn tollgate_config(public: SocketAddr, admin: SocketAddr, upstream: SocketAddr) -> String {
    format!(
        r#"data_dir = "data"

[listen]
public = "{public}"
admin = "{admin}"
workers = 1

[[upstreams]]
name = "ai"
endpoints = ["http://{upstream}"]
credential = {{ header = "authorization", value = "Bearer sk-bench" }}

[[routes]]
path = "/v1/*"
upstream = "ai"
cost = {{ conversations = 1 }}

[limits]
per_ip_per_minute = 1000000000
in_flight_per_user = 100000

[plans.free.meters.conversations]
grant = 1000000000.0

[telemetry]
access_log = "off"
"#
    )
}
