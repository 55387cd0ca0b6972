//! Time limits of connections without a timer per step.
//!
//! Owns one slot per connection and, per worker, one task that looks at all slots ten times a second. Setting a limit is
//! one look at the clock and one store; an idle connection costs nothing but its slot. A limit strikes up to a [`TICK`]
//! late and never early. Never decides what a limit is or what follows from it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::{Clock, Monotonic};

/// How often limits are looked at.
pub const TICK: Duration = Duration::from_millis(100);

const NEVER: u64 = u64::MAX;

/// The limits of one worker's connections.
pub struct Deadlines {
    clock: Clock,
    /// The time of the last tick.
    coarse: Arc<AtomicU64>,
    slots: Mutex<Vec<Arc<Slot>>>,
}

struct Slot {
    due: AtomicU64,
    expired: AtomicBool,
    /// The connection is gone; the slot may be used no more.
    closed: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

/// One connection's limit. Dropping it frees the slot at the next tick.
pub struct Deadline {
    slot: Arc<Slot>,
    clock: Clock,
    coarse: Arc<AtomicU64>,
}

impl Deadlines {
    pub fn new(clock: Clock) -> Arc<Self> {
        let coarse = Arc::new(AtomicU64::new(clock.monotonic().0));
        Arc::new(Self { clock, coarse, slots: Mutex::default() })
    }

    pub fn open(&self) -> Deadline {
        let slot = Arc::new(Slot {
            due: AtomicU64::new(NEVER),
            expired: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            waker: Mutex::default(),
        });
        self.slots.lock().push(slot.clone());
        Deadline { slot, clock: self.clock.clone(), coarse: self.coarse.clone() }
    }

    /// Looks at all slots until the process ends. Run it on the worker's own runtime.
    pub async fn run(&self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            self.tick();
        }
    }

    /// Wakes every connection, so that it notices that the process is to stop.
    pub fn wake_all(&self) {
        for slot in self.slots.lock().iter() {
            let waker = slot.waker.lock().clone();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    fn tick(&self) {
        let now = self.clock.monotonic().0;
        self.coarse.store(now, Ordering::Relaxed);
        self.slots.lock().retain(|slot| {
            if slot.closed.load(Ordering::Relaxed) {
                return false;
            }
            if slot.due.load(Ordering::Relaxed) <= now && !slot.expired.swap(true, Ordering::Relaxed) {
                let waker = slot.waker.lock().clone();
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            true
        });
    }
}

impl Deadline {
    /// Binds the slot to the task that polls with this context; a connection is one task, so once is enough.
    pub fn bind(&self, context: &Context<'_>) {
        *self.slot.waker.lock() = Some(context.waker().clone());
    }

    /// The time as of the last tick: good enough for what is measured in seconds, and free.
    pub fn coarse_now(&self) -> Monotonic {
        Monotonic(self.coarse.load(Ordering::Relaxed))
    }

    /// Strikes `after` from now.
    pub fn arm(&self, after: Duration) {
        self.set(self.clock.monotonic().plus(after));
    }

    /// Strikes `after` from now, or at `latest` if that is sooner.
    pub fn arm_before(&self, after: Duration, latest: Monotonic) {
        self.set(self.clock.monotonic().plus(after).min(latest));
    }

    /// Strikes `after` from about now. Only for limits that may strike early after the process was held up, as that of an
    /// idle connection may.
    pub fn arm_coarsely(&self, after: Duration) {
        self.set(self.coarse_now().plus(after).plus(TICK));
    }

    fn set(&self, due: Monotonic) {
        self.slot.due.store(due.0, Ordering::Relaxed);
        self.slot.expired.store(false, Ordering::Relaxed);
    }

    pub fn has_expired(&self) -> bool {
        self.slot.expired.load(Ordering::Relaxed)
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.slot.closed.store(true, Ordering::Relaxed);
        *self.slot.waker.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixMillis;

    #[test]
    fn a_limit_expires_when_its_time_has_come_and_not_before() {
        let (clock, hands) = Clock::manual(UnixMillis(0));
        let deadlines = Deadlines::new(clock.clone());
        let deadline = deadlines.open();
        deadline.arm(Duration::from_secs(5));
        hands.advance(Duration::from_millis(4999));
        deadlines.tick();
        assert!(!deadline.has_expired());
        hands.advance(Duration::from_millis(1));
        deadlines.tick();
        assert!(deadline.has_expired());
        // The process was held up for a minute; what begins after that has all of its time.
        hands.advance(Duration::from_secs(60));
        deadline.arm(Duration::from_secs(5));
        deadlines.tick();
        assert!(!deadline.has_expired());
        deadline.arm_before(Duration::from_secs(5), clock.monotonic().plus(Duration::from_secs(1)));
        assert!(!deadline.has_expired());
        hands.advance(Duration::from_secs(1));
        deadlines.tick();
        assert!(deadline.has_expired());
        drop(deadline);
        deadlines.tick();
        assert!(deadlines.slots.lock().is_empty());
    }
}
