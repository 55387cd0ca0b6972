//! Time limits of connections without a timer per step, and who waits with nothing to do.
//!
//! Owns one slot per connection and, per worker, one task that looks at all slots ten times a second. Setting a limit is
//! one look at the clock and one store; an idle connection costs nothing but its slot. A limit strikes up to a [`TICK`]
//! late and never early. A connection without a whole request can be asked to leave, so that others have room. Never decides
//! what a limit is, when room is needed, or what follows from either.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::{Clock, Monotonic};

/// How often limits are looked at.
pub const TICK: Duration = Duration::from_millis(100);

const NEVER: u64 = u64::MAX;
/// In the place of a time: the connection has been asked to leave.
const LEAVE: u64 = u64::MAX - 1;

/// Of those that wait, this part is asked to leave at once: looking for one takes as long as looking for many.
const PART: usize = 64;

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
    /// Since when it has had no whole request; [`NEVER`] while it has one.
    waits_since: AtomicU64,
    /// As it counts against the limit of one address; `None` for a proxy's, which brings many people's calls.
    address: Option<IpAddr>,
    waker: Mutex<Option<Waker>>,
}

impl Slot {
    fn wake(&self) {
        let waker = self.waker.lock().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Since when it waits, if it does, and is of that address; [`LEAVE`] when it has been asked to go.
    fn waits(&self, of: Option<IpAddr>) -> Option<u64> {
        let since = self.waits_since.load(Ordering::Relaxed);
        let counts = since != NEVER && !self.closed.load(Ordering::Relaxed);
        (counts && (of.is_none() || self.address == of)).then_some(since)
    }
}

/// Asks connections that wait for a request to leave, those first that have waited longest; only those of one address, if it is
/// named. Who has been asked and is still here counts.
pub fn ask_to_leave(workers: &[Arc<Deadlines>], of: Option<IpAddr>) -> Leaving {
    let mut leaving = Leaving::default();
    let mut waiting: Vec<u64> = Vec::new();
    for worker in workers {
        for slot in worker.slots.lock().iter() {
            match slot.waits(of) {
                Some(LEAVE) => leaving.before += 1,
                Some(since) => waiting.push(since),
                None => {}
            }
        }
    }
    let wanted = waiting.len().div_ceil(PART).saturating_sub(leaving.before);
    if wanted == 0 {
        return leaving;
    }
    let newest = *waiting.select_nth_unstable(wanted - 1).1;
    for worker in workers {
        for slot in worker.slots.lock().iter() {
            let may_go = slot.waits(of).filter(|since| *since <= newest && leaving.asked < wanted);
            let Some(since) = may_go else { continue };
            // Fails if a request has come at just this moment.
            if slot.waits_since.compare_exchange(since, LEAVE, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                slot.wake();
                leaving.asked += 1;
            }
        }
    }
    leaving
}

/// Who makes room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaving {
    /// Those that have just been asked.
    pub asked: usize,
    /// Those that were asked before and are still here.
    pub before: usize,
}

impl Leaving {
    pub fn is_nobody(self) -> bool {
        self.asked + self.before == 0
    }
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

    /// `address`: whose the connection is, where that is limited.
    pub fn open(&self, address: Option<IpAddr>) -> Deadline {
        let slot = Arc::new(Slot {
            due: AtomicU64::new(NEVER),
            expired: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            waits_since: AtomicU64::new(NEVER),
            address,
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
            slot.wake();
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
                slot.wake();
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

    /// There is no whole request from now on: the connection may be asked to leave.
    pub fn waits(&self) {
        let now = self.coarse.load(Ordering::Relaxed);
        // Who waits already goes on doing so, and who has been asked stays asked.
        let _ = self.slot.waits_since.compare_exchange(NEVER, now, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// A request is there. `false`: the connection has been asked to leave before, and must.
    pub fn has_work(&self) -> bool {
        self.slot.waits_since.swap(NEVER, Ordering::AcqRel) != LEAVE
    }

    pub fn must_leave(&self) -> bool {
        self.slot.waits_since.load(Ordering::Relaxed) == LEAVE
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
        let deadline = deadlines.open(None);
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

    #[test]
    fn who_has_waited_longest_is_asked_to_leave_and_nobody_who_has_work() {
        let (clock, hands) = Clock::manual(UnixMillis(0));
        let workers = [Deadlines::new(clock.clone()), Deadlines::new(clock)];
        let (one, other) = (Some(IpAddr::from([1, 1, 1, 1])), Some(IpAddr::from([2, 2, 2, 2])));
        let open = |worker: usize, address| {
            let deadline = workers[worker].open(address);
            deadline.waits();
            hands.advance(Duration::from_secs(1));
            workers.iter().for_each(|worker| worker.tick());
            deadline
        };
        let (first, second, third, fourth) = (open(1, one), open(0, other), open(1, one), open(0, None));
        assert!(first.has_work());
        let left = || [&first, &second, &third, &fourth].map(Deadline::must_leave);
        let leaving = |asked, before| Leaving { asked, before };
        assert_eq!((ask_to_leave(&workers, None), left()), (leaving(1, 0), [false, true, false, false]));
        assert_eq!((ask_to_leave(&workers, None), left()), (leaving(0, 1), [false, true, false, false]), "it is going");
        // It waits again, but not as long as the others.
        first.waits();
        assert_eq!((ask_to_leave(&workers, one), left()), (leaving(1, 0), [false, true, true, false]));
        assert!(!third.has_work() && !third.must_leave(), "too late for its request");
        drop(second);
        assert_eq!((ask_to_leave(&workers, None), fourth.must_leave()), (leaving(1, 0), true));
        drop((first, fourth));
        assert!(ask_to_leave(&workers, None).is_nobody());
        let many: Vec<_> = (0..200).map(|_| open(0, one)).collect();
        assert_eq!(ask_to_leave(&workers, one), leaving(4, 0), "a part of many at once");
        assert!(many[..4].iter().all(Deadline::must_leave) && !many[4].must_leave());
        assert_eq!(ask_to_leave(&workers, other), leaving(0, 0));
    }
}
