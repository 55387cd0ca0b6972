//! What the machine has left: memory, disk, and descriptors for this process.

use std::fs;
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Bytes, all of them and those that nobody uses; zeros where the system does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    pub total: u64,
    pub free: u64,
}

/// The machine's memory, as Linux tells it (proc(5), `/proc/meminfo`).
pub fn memory() -> Room {
    fs::read_to_string("/proc/meminfo").map(|text| memory_of(&text)).unwrap_or_default()
}

fn memory_of(text: &str) -> Room {
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    Room { total: kib("MemTotal") * 1024, free: kib("MemAvailable") * 1024 }
}

/// The file system that holds `folder`.
pub fn disk(folder: &Path) -> Room {
    let Ok(told) = rustix::fs::statvfs(folder) else { return Room::default() };
    Room { total: told.f_blocks.saturating_mul(told.f_frsize), free: told.f_bavail.saturating_mul(told.f_frsize) }
}

/// How many descriptors the process may have (getrlimit(2), `RLIMIT_NOFILE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFiles {
    /// What is in force.
    pub soft: usize,
    /// What the process may raise it to by itself.
    pub hard: usize,
}

pub fn open_files() -> OpenFiles {
    let limit = getrlimit(Resource::Nofile);
    // Without a limit: more than there can be.
    let number = |n: Option<u64>| n.and_then(|n| usize::try_from(n).ok()).unwrap_or(i32::MAX as usize);
    OpenFiles { soft: number(limit.current), hard: number(limit.maximum) }
}

/// Raises the soft limit to the hard one, and says what it was before.
///
/// # Errors
/// The system does not let us; the limit stays.
pub fn raise_open_files() -> io::Result<OpenFiles> {
    let before = open_files();
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    }
    Ok(before)
}

/// Descriptors that the process has open; 0 where the system does not say.
pub fn files_open() -> usize {
    fs::read_dir("/proc/self/fd").map(Iterator::count).unwrap_or(0)
}

/// Whether the call failed because the process or the system has no descriptor or memory to give.
pub fn is_exhausted(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    errno.is_some_and(|errno| [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM].contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_says_what_it_has() {
        let text = "MemTotal:       1000 kB\nMemFree:  10 kB\nMemAvailable:    400 kB\n";
        assert_eq!(memory_of(text), Room { total: 1_024_000, free: 409_600 });
        assert_eq!(memory_of("nonsense"), Room::default());
        let disk = disk(Path::new("."));
        assert!(disk.total > 0 && disk.free <= disk.total);
        assert_eq!(super::disk(Path::new("/nowhere/at/all")), Room::default());
        let files = open_files();
        assert!(files_open() > 2 && files.soft > files_open() && files.hard >= files.soft, "{files:?}");
        assert!(is_exhausted(&io::Error::from(Errno::MFILE)) && !is_exhausted(&io::Error::from(Errno::CONNABORTED)));
    }
}
