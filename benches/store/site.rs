//! The real program on files of its own, and what is read of it from outside.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Fallible;

/// Longest that a server may take to get ready.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a command took.
pub struct Taken {
    pub took: Duration,
    /// The most memory it had, in MiB, as seen every millisecond.
    pub peak: f64,
}

/// A folder with a config, and the program on it.
pub struct Site {
    folder: PathBuf,
    pub public: SocketAddr,
    admin: SocketAddr,
}

impl Site {
    pub fn new(folder: PathBuf, backend: &str) -> Fallible<Self> {
        fs::create_dir_all(&folder)?;
        let free = || TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let (public, admin) = (free()?, free()?);
        let site = Self { folder, public, admin };
        let text = format!(
            "data_dir = {:?}\n[listen]\npublic = \"{public}\"\nadmin = \"{admin}\"\n[store]\nbackend = \"{backend}\"\n\
             [telemetry]\naccess_log = \"off\"\nlog = \"error\"\n",
            site.data()
        );
        fs::write(site.config(), text)?;
        Ok(site)
    }

    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    pub fn config(&self) -> PathBuf {
        self.folder.join("tollgate.toml")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        command.args(words).arg("--config").arg(self.config()).stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// What a command takes.
    pub fn run(&self, words: &[&str]) -> Fallible<Taken> {
        let began = Instant::now();
        let mut child = self.command(words).spawn()?;
        let mut peak = 0.0;
        loop {
            // Read before asking whether it has ended: then there is nothing to read any more.
            peak = status_mib(&child, "VmHWM:").unwrap_or(peak);
            if let Some(status) = child.try_wait()? {
                let took = began.elapsed();
                return if status.success() {
                    Ok(Taken { took, peak })
                } else {
                    Err(format!("{words:?} failed").into())
                };
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Starts the server; says how long it took until it was ready, and how much of that the processor worked: on a busy
    /// machine only the second says much.
    pub fn serve(&self) -> Fallible<(Server, String)> {
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
pub struct Server(Child);

impl Server {
    pub fn resident_mib(&self) -> Fallible<f64> {
        status_mib(&self.0, "VmRSS:")
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
    pub fn stop(mut self) -> Fallible<()> {
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

pub fn bytes_in(folder: &Path) -> Fallible<u64> {
    let mut total = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        total += if entry.file_type()?.is_dir() { bytes_in(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(total)
}

fn status_mib(child: &Child, name: &str) -> Fallible<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or("the kernel does not say")?;
    Ok(line.split_whitespace().next().ok_or("no number")?.parse::<f64>()? / 1024.0)
}

pub fn row(what: &str, value: impl std::fmt::Display) {
    println!("| {what} | {value} |");
    let _ = std::io::stdout().flush();
}

pub fn mib(bytes: u64) -> String {
    format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20))
}

pub fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
