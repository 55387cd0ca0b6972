//! How far a long command has come: one line on a terminal, nothing in a pipe.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Often enough to be seen to move.
const STEP: Duration = Duration::from_millis(200);

/// On standard error, so that what is printed can go elsewhere.
pub struct Progress {
    shown: Option<Instant>,
    seen: bool,
    any: bool,
}

impl Default for Progress {
    fn default() -> Self {
        Self { shown: None, seen: std::io::stderr().is_terminal(), any: false }
    }
}

impl Progress {
    /// Shows `text` if the last one has been there for a moment.
    pub fn show(&mut self, text: impl FnOnce() -> String) {
        if !self.seen || self.shown.is_some_and(|at| at.elapsed() < STEP) {
            return;
        }
        self.shown = Some(Instant::now());
        self.any = true;
        let mut out = std::io::stderr().lock();
        // A terminal that is gone is no reason to stop.
        let _ = write!(out, "\r\x1b[K{}", text());
        let _ = out.flush();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.any {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
    }
}

/// A number of bytes for people.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (n as f64 / 1024.0, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if n < 1024 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_for_people() {
        assert_eq!((bytes(0), bytes(1023), bytes(1536)), ("0 B".into(), "1023 B".into(), "1.5 KiB".into()));
        assert_eq!((bytes(5 << 30), bytes(3 << 50)), ("5.0 GiB".into(), "3072.0 TiB".into()));
    }
}
