//! Lines of the program's log that could come by the thousand.
//!
//! Owns the pace: the first line comes at once, the next ones at most every ten seconds, each with how often it happened since
//! the last. Never writes a line itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Monotonic;

/// Between two lines of one kind.
const PAUSE: Duration = Duration::from_secs(10);

/// One kind of line.
#[derive(Debug, Default)]
pub struct Seldom {
    untold: AtomicU64,
    /// When the next line may come, on the monotonic clock.
    next: AtomicU64,
}

impl Seldom {
    /// Counts one. `Some`: a line is due, about so many.
    pub fn count(&self, now: Monotonic) -> Option<u64> {
        self.untold.fetch_add(1, Ordering::Relaxed);
        self.due(now)
    }

    /// How many were counted and not told, if a line is due. Asked now and then, so that the last ones are told as well.
    pub fn due(&self, now: Monotonic) -> Option<u64> {
        if self.untold.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let next = self.next.load(Ordering::Relaxed);
        let mine = now.0 >= next
            && self.next.compare_exchange(next, now.plus(PAUSE).0, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        mine.then(|| self.untold.swap(0, Ordering::Relaxed)).filter(|untold| *untold > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_comes_at_once_and_the_others_as_a_number() {
        let (line, at) = (Seldom::default(), |ms| Monotonic(0).plus(Duration::from_millis(ms)));
        assert_eq!(line.due(at(1)), None);
        assert_eq!(line.count(at(1)), Some(1));
        for ms in 2..1000 {
            assert_eq!(line.count(at(ms)), None);
        }
        assert_eq!(line.due(at(10_000)), None, "ten seconds from the line, not from the start");
        assert_eq!(line.due(at(10_001)), Some(998), "what nobody follows is told, too");
        assert_eq!(line.due(at(60_000)), None);
        assert_eq!(line.count(at(60_001)), Some(1));
    }
}
