//! A million users: what they take on disk and in memory, and how long a start, a check, a backup and a restore are.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tollgate::app;
use tollgate::config::Config;
use tollgate::domain::ids::{CredentialId, SecretMac, UserId};
use tollgate::store::{Batch, tables};

use crate::{BACKENDS, Choice, Fallible};

/// Longest that a server may take to get ready.
const PATIENCE: Duration = Duration::from_secs(120);
const USERS_PER_COMMIT: u64 = 500;

/// The meters of a plan, after `n` calls.
pub fn meters(n: u64) -> Value {
    let meter = |granted: u64, spent: u64, period: &str| {
        let spent = spent.min(granted) * 1_000_000;
        let granted = granted * 1_000_000;
        json!({"b": granted - spent, "h": 0, "s": spent, "g": granted, "r": granted, "p": period, "l": 1_768_435_200})
    };
    json!([["conversations", meter(10, n % 10, "daily")], ["credits", meter(1_000, n % 1_000, "monthly")]])
}

/// What registering a user writes.
fn user(id: u64, random: &mut fastrand::Rng, batch: &mut Batch) -> Fallible<()> {
    let user = UserId(id);
    let (name, email) = (format!("user{id:07}"), format!("user{id:07}@example.com"));
    let hash: String = std::iter::repeat_with(|| random.alphanumeric()).take(64).collect();
    let row = json!({
        "id": id, "username": name, "name": "Somebody Else", "email": email, "user_type": "Personal",
        "about_me": "Writes about ships and the sea", "hobbies": "sailing, reading", "plan": "starter",
        "status": "active", "suspended_reason": null, "email_verified": true,
        "password_hash": format!("$argon2id$v=19$m=19456,t=2,p=1${hash}"), "created_at": 1_768_478_400_000u64,
        "last_login": null
    });
    let mut mac = [0u8; 32];
    random.fill(&mut mac);
    let (mac, key) = (SecretMac(mac), CredentialId(random.u64(..)));
    let key_row = json!({
        "id": key, "user": user, "name": "default", "shown": "pe-rqrF", "created_at": 1_768_478_400_000u64,
        "expires_at": null, "limits": {"scopes": [], "models": [], "cidrs": [], "per_minute": null}
    });
    let number = tables::encode(&user)?;
    batch
        .put(tables::user(user), tables::encode(&row)?)
        .put(tables::user_by_name(&name), number.clone())
        .put(tables::user_by_email(&email), number)
        .put(tables::meters(user), tables::encode(&json!({"meters": meters(id)}))?)
        .put(tables::api_key(&mac), tables::encode(&key_row)?)
        .put(tables::key_of_user(user, key), mac.0.to_vec());
    Ok(())
}

/// A folder with a config, and the program on it.
struct Site {
    folder: PathBuf,
    admin: SocketAddr,
}

impl Site {
    fn new(folder: PathBuf, backend: &str) -> Fallible<Self> {
        fs::create_dir_all(&folder)?;
        let free = || TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let (public, admin) = (free()?, free()?);
        let site = Self { folder, admin };
        let text = format!(
            "data_dir = {:?}\n[listen]\npublic = \"{public}\"\nadmin = \"{admin}\"\n[store]\nbackend = \"{backend}\"\n\
             [telemetry]\naccess_log = \"off\"\nlog = \"error\"\n",
            site.data()
        );
        fs::write(site.config(), text)?;
        Ok(site)
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn config(&self) -> PathBuf {
        self.folder.join("tollgate.toml")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        command.args(words).arg("--config").arg(self.config()).stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// How long a command takes.
    fn time(&self, words: &[&str]) -> Fallible<Duration> {
        let began = Instant::now();
        let status = self.command(words).status()?;
        if status.success() { Ok(began.elapsed()) } else { Err(format!("{words:?} failed").into()) }
    }

    /// Starts the server; says how long it took until it was ready, and how much of that the processor worked: on a busy
    /// machine only the second says much.
    fn serve(&self) -> Fallible<(Server, String)> {
        let began = Instant::now();
        let mut server = Server(self.command(&["serve"]).spawn()?);
        while !self.is_ready() {
            if let Some(status) = server.0.try_wait()? {
                return Err(format!("the server ended with {status}").into());
            }
            if began.elapsed() > PATIENCE {
                return Err("the server does not get ready".into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let (took, worked) = (began.elapsed().as_secs_f64(), server.processor_seconds()?);
        Ok((server, format!("{took:.2} s ({worked:.2} s of processor)")))
    }

    fn is_ready(&self) -> bool {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(self.admin)?;
            stream.write_all(b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }
}

/// A running server; killed when dropped.
struct Server(Child);

impl Server {
    fn resident_mib(&self) -> Fallible<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        Ok(line.split_whitespace().next().ok_or("no number")?.parse::<f64>()? / 1024.0)
    }

    /// Of all its threads.
    fn processor_seconds(&self) -> Fallible<f64> {
        let mut nanos = 0u64;
        for task in fs::read_dir(format!("/proc/{}/task", self.0.id()))? {
            // A thread that has just ended counts nothing.
            let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            nanos += text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(nanos as f64 / 1e9)
    }

    /// As `systemctl stop` does.
    fn stop(mut self) -> Fallible<()> {
        Command::new("kill").arg(self.0.id().to_string()).status()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn bytes_in(folder: &Path) -> Fallible<u64> {
    let mut total = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        total += if entry.file_type()?.is_dir() { bytes_in(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(total)
}

pub fn run(choice: &Choice) -> Fallible<()> {
    println!("\n## {} users: account, two meters, one key each\n", choice.count);
    for backend in BACKENDS {
        let folder = tempfile::Builder::new().prefix("tollgate-store-").tempdir_in(&choice.dir)?;
        let site = Site::new(folder.path().join("site"), backend)?;
        println!("### {backend}\n\n| | |\n|---|--:|");
        measure(choice, &site, backend, folder.path())?;
        println!();
    }
    Ok(())
}

fn row(what: &str, value: impl std::fmt::Display) {
    println!("| {what} | {value} |");
    let _ = std::io::stdout().flush();
}

fn measure(choice: &Choice, site: &Site, backend: &str, folder: &Path) -> Fallible<()> {
    let took = load(choice, site)?;
    row("written, users a second", format!("{:.0}", choice.count as f64 / took.as_secs_f64()));
    let mib = |bytes: u64| format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20));
    row("on disk, with 32 to 48 MiB of log", mib(bytes_in(&site.data())?));
    let seconds = |time: Duration| format!("{:.2} s", time.as_secs_f64());

    let (server, first) = site.serve()?;
    row("start to ready, after loading", first);
    server.stop()?;
    let (server, again) = site.serve()?;
    row("start to ready, after a stop", again);
    row("memory when ready", format!("{:.0} MiB", server.resident_mib()?));
    drop(server);
    let (server, killed) = site.serve()?;
    row("start to ready, after a kill", killed);
    row("ledger verify, server running", seconds(site.time(&["ledger", "verify"])?));
    row("memory after reading every row", format!("{:.0} MiB", server.resident_mib()?));
    let file = folder.join("backup");
    let name = file.to_string_lossy();
    row("backup, server running", seconds(site.time(&["backup", &name])?));
    row("backup file", mib(File::open(&file)?.metadata()?.len()));
    row("memory after a backup", format!("{:.0} MiB", server.resident_mib()?));
    server.stop()?;
    let other = Site::new(folder.join("other"), backend)?;
    row("restore", seconds(other.time(&["restore", &name])?));
    row("on disk after a restore", mib(bytes_in(&other.data())?));
    let (server, restored) = other.serve()?;
    row("start to ready, after a restore", restored);
    server.stop()
}

fn load(choice: &Choice, site: &Site) -> Fallible<Duration> {
    let config = Config::load(Some(&site.config()), std::iter::empty()).map_err(|error| error.to_string())?;
    let store = app::open_store(&config)?;
    let mut random = fastrand::Rng::with_seed(7);
    let began = Instant::now();
    let mut id = 0;
    while id < choice.count {
        let mut batch = Batch::default();
        for _ in 0..USERS_PER_COMMIT.min(choice.count - id) {
            id += 1;
            user(id, &mut random, &mut batch)?;
        }
        batch.put(tables::counter("user"), tables::encode(&id)?);
        store.commit(&batch)?;
    }
    drop(store);
    Ok(began.elapsed())
}
