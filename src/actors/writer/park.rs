//! A record that waits, with its call, for room in the queue: the policy [`Overflow::Wait`](crate::config::Overflow).
//!
//! Owns the waiting and its end. It is asynchronous and bounded: no thread is ever held, and whatever ends the wait (room,
//! time, the journal's end, a dropped future) the record is counted once.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Shared;
use super::frame::Frame;

/// A record for which there was no room. Dropping it drops the record, counted.
#[must_use = "a record that nobody waits for is dropped"]
pub struct Parked {
    shared: Arc<Shared>,
    /// Empty once the record has found its place.
    frame: Vec<u8>,
    longest: Duration,
}

impl std::fmt::Debug for Parked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parked")
            .field("bytes", &self.frame.len())
            .field("longest", &self.longest)
            .finish_non_exhaustive()
    }
}

impl Parked {
    /// `None` when as much waits like this as the queue itself may hold: the record is then to be dropped.
    pub(super) fn new(shared: &Arc<Shared>, frame: &Frame<'_>, longest: Duration) -> Option<Self> {
        let counters = &shared.counters;
        let weight = frame.len() as u64;
        let before = counters.parked_bytes.fetch_add(weight, Ordering::SeqCst);
        if before + weight > shared.queue_bytes {
            counters.parked_bytes.fetch_sub(weight, Ordering::SeqCst);
            return None;
        }
        counters.parked.fetch_add(1, Ordering::SeqCst);
        let mut bytes = Vec::with_capacity(frame.len());
        frame.append_to(&mut bytes);
        Some(Self { shared: Arc::clone(shared), frame: bytes, longest })
    }

    /// Waits for room until the bound of the config has passed. The record is written later, or dropped and counted.
    pub async fn wait(mut self) {
        let longest = self.longest;
        // Out of time or not: dropping counts the record if it has found no place.
        tokio::time::timeout(longest, self.find_room()).await.ok();
    }

    async fn find_room(&mut self) {
        let shared = Arc::clone(&self.shared);
        loop {
            let mut freed = pin!(shared.room.notified());
            // Before looking, so that room made in between is heard of.
            freed.as_mut().enable();
            if self.try_again() {
                return;
            }
            freed.await;
        }
    }

    /// True when the record has found its place.
    fn try_again(&mut self) -> bool {
        let weight = self.frame.len() as u64;
        if self.shared.place(weight, |queue| queue.push_bytes(&self.frame)) {
            self.end_wait();
        }
        self.frame.is_empty()
    }

    fn end_wait(&mut self) {
        let counters = &self.shared.counters;
        counters.parked_bytes.fetch_sub(self.frame.len() as u64, Ordering::SeqCst);
        counters.parked.fetch_sub(1, Ordering::SeqCst);
        self.frame = Vec::new();
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        if !self.frame.is_empty() {
            self.shared.refuse();
            self.end_wait();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::future::Future;
    use std::task::{Context, Poll, Waker};

    use super::super::record::tests::entry;
    use super::super::testing::*;
    use super::super::{Journal, JournalConfig, Overflow};
    use super::*;

    /// Room for ten records, on a disk that fails.
    fn full(bench: &Bench, longest: Duration) -> Journal {
        let mut config: JournalConfig = bench.config();
        config.overflow = Overflow::Wait;
        config.max_wait = longest;
        config.queue_bytes = 10 * Frame::of(&entry(1, "0")).len() as u64;
        let journal = bench.start(config);
        bench.faults.lock().writes = u32::MAX;
        for number in 0..10 {
            assert!(journal.emit_or_wait(&entry(1, &number.to_string())).is_none());
        }
        assert!(journal.flush().is_err());
        journal
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
    }

    #[test]
    fn a_call_waits_for_room_and_its_record_is_written() {
        let bench = Bench::new();
        let journal = full(&bench, HOUR);
        let parked = journal.emit_or_wait(&entry(1, "a")).unwrap();
        assert_eq!(balance(&journal), (10, 0, 0, 10), "not handed over yet");
        bench.faults.lock().writes = 0;
        runtime().block_on(parked.wait());
        journal.flush().unwrap();
        assert_eq!(balance(&journal), (11, 11, 0, 0));
        assert_sound(&bench, 11);
    }

    #[test]
    fn past_the_bound_the_record_is_dropped_and_counted() {
        let bench = Bench::new();
        let journal = full(&bench, Duration::from_millis(1));
        let parked = journal.emit_or_wait(&entry(1, "a")).unwrap();
        runtime().block_on(parked.wait());
        assert_eq!(balance(&journal), (11, 0, 1, 10));
        let parked = journal.emit_or_wait(&entry(1, "b")).unwrap();
        drop(parked);
        assert_eq!(balance(&journal), (12, 0, 2, 10), "the call itself was given up");
        assert_eq!(journal.counters().parked.load(Ordering::SeqCst), 0);
        assert_eq!(journal.counters().parked_bytes.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn what_waits_is_bounded_too() {
        let bench = Bench::new();
        let journal = full(&bench, HOUR);
        let parked: Vec<_> = (0..25).map(|_| journal.emit_or_wait(&entry(1, "a"))).collect();
        assert_eq!(parked.iter().flatten().count(), 10);
        assert_eq!(balance(&journal), (25, 0, 15, 10));
        drop(parked);
        assert_eq!(balance(&journal), (35, 0, 25, 10));
    }

    #[test]
    fn the_end_of_the_journal_ends_the_wait() {
        let bench = Bench::new();
        let journal = full(&bench, HOUR);
        let parked = journal.emit_or_wait(&entry(1, "a")).unwrap();
        let runtime = runtime();
        let _entered = runtime.enter();
        let mut wait = Box::pin(parked.wait());
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(wait.as_mut().poll(&mut context), Poll::Pending);
        assert!(journal.stop().is_err());
        assert_eq!(wait.as_mut().poll(&mut context), Poll::Ready(()));
        assert_eq!(balance(&journal), (11, 0, 11, 0));
    }

    #[test]
    fn an_emit_that_may_not_wait_drops() {
        let bench = Bench::new();
        let journal = full(&bench, HOUR);
        journal.emit(&entry(1, "a"));
        assert_eq!(balance(&journal), (11, 0, 1, 10));
    }
}
