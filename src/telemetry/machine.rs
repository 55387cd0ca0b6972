//! What the machine has left: memory and disk.

use std::fs;
use std::path::Path;

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
    }
}
