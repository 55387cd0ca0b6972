//! Child processes and what the kernel says of them: starting, pinning, ending, CPU time and memory.
//!
//! Owns every process the benchmark starts and ends it when dropped, however the benchmark ends.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::Fallible;

/// How long a child may take to end when asked, before it is killed.
const PATIENCE: Duration = Duration::from_secs(3);

/// A child process with its output in a file.
pub struct Process {
    name: String,
    child: Child,
    output: PathBuf,
}

impl Process {
    /// Starts `program` on `core`, or anywhere when that is `None`.
    pub fn start(name: &str, core: Option<usize>, program: &Path, args: &[&str], dir: &Path) -> Fallible<Self> {
        Self::start_with(name, core, program, args, dir, &[])
    }

    /// As [`Process::start`], with these variables in its environment.
    pub fn start_with(
        name: &str,
        core: Option<usize>,
        program: &Path,
        args: &[&str],
        dir: &Path,
        env: &[(&str, &str)],
    ) -> Fallible<Self> {
        let output = dir.join(format!("{name}.out"));
        let file = File::create(&output)?;
        let mut command = match core {
            Some(core) => {
                let mut command = Command::new("taskset");
                command.arg("-c").arg(core.to_string()).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.args(args).envs(env.iter().copied()).current_dir(dir).stdin(Stdio::null());
        command.stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().map_err(|error| format!("cannot start {name}: {error}"))?;
        Ok(Self { name: name.to_owned(), child, output })
    }

    /// An error that tells what the child said last.
    pub fn failure(&mut self, what: &str) -> String {
        let state = match self.child.try_wait() {
            Ok(Some(status)) => format!("it ended with {status}"),
            _ => "it still runs".to_owned(),
        };
        let said = fs::read(&self.output).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<_> = said.lines().collect();
        let last = lines[lines.len().saturating_sub(20)..].join("\n    ");
        format!("{} {what}; {state}. Its last words:\n    {last}", self.name)
    }

    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// CPU time of the process, its threads and its children, in nanoseconds.
    pub fn cpu_nanos(&self) -> Fallible<u64> {
        let mut total = 0;
        for pid in self.family() {
            for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                total += on_cpu(&task?.path().join("schedstat"))?;
            }
        }
        Ok(total)
    }

    /// Resident memory of the process and its children, in bytes.
    pub fn resident(&self) -> Fallible<u64> {
        let mut total = 0;
        for pid in self.family() {
            total += status_kib(pid, "VmRSS:").ok_or("no VmRSS in /proc")? * 1024;
        }
        Ok(total)
    }

    /// The process and its direct children: nginx does its work in one.
    fn family(&self) -> Vec<u32> {
        let own = self.child.id();
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let mut family: Vec<_> = pids.filter(|pid| parent(*pid) == Some(own)).collect();
        family.push(own);
        family
    }
}

impl Drop for Process {
    /// Asks first: killed outright, nginx would leave its worker behind.
    fn drop(&mut self) {
        if self.has_ended() {
            return;
        }
        let _asked = Command::new("kill").arg(self.child.id().to_string()).status();
        let until = Instant::now() + PATIENCE;
        while !self.has_ended() && Instant::now() < until {
            sleep(Duration::from_millis(10));
        }
        if !self.has_ended() {
            let _killed = self.child.kill();
            let _reaped = self.child.wait();
        }
    }
}

/// Moves this process, with all threads it has, to one core.
pub fn pin_self(core: usize) -> io::Result<()> {
    let pid = std::process::id().to_string();
    let core = core.to_string();
    let output = Command::new("taskset").args(["-acp", &core, &pid]).stdout(Stdio::null()).output()?;
    if output.status.success() { Ok(()) } else { Err(io::Error::other("taskset failed")) }
}

/// How many files this process may have open.
pub fn open_files_limit() -> usize {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next());
    soft.and_then(|soft| soft.parse().ok()).unwrap_or(1024)
}

pub fn is_root() -> bool {
    status_kib(std::process::id(), "Uid:") == Some(0)
}

/// The full path of a program, if it is installed. Servers live where an ordinary user's PATH may not lead.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    folders.map(|folder| folder.join(name)).find(|program| program.is_file())
}

/// The first field of `schedstat` is nanoseconds on a CPU. A thread that just ended counts nothing.
fn on_cpu(schedstat: &Path) -> Fallible<u64> {
    let Ok(text) = fs::read_to_string(schedstat) else {
        return Ok(0);
    };
    Ok(text.split(' ').next().unwrap_or_default().parse()?)
}

fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name comes in brackets before it and may hold anything.
    status.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// The first number of a line in a process's status.
fn status_kib(pid: u32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}
