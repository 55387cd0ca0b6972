//! Buffers: how many bytes calls in flight may hold, over all workers.
//!
//! Owns the process-wide budget, and each worker's stock of empty buffers. A call takes its share before it allocates and
//! gives it back when it ends, so that overload ends in a 503 and not in the kernel's choice of whom to kill.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What one read takes at most, and what a connection's buffer is made for.
pub const READ_BYTES: usize = 16 << 10;

/// Empty buffers a worker keeps for its next calls: 4 MiB.
const MAX_STOCK: usize = 256;

thread_local! {
    static STOCK: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer for about [`READ_BYTES`].
pub fn take() -> Vec<u8> {
    STOCK.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(READ_BYTES))
}

/// Gives a buffer back. What has grown, or never was one of ours, goes to the allocator.
pub fn give(mut buffer: Vec<u8>) {
    if (READ_BYTES..=2 * READ_BYTES).contains(&buffer.capacity()) {
        buffer.clear();
        STOCK.with_borrow_mut(|stock| {
            if stock.len() < MAX_STOCK {
                stock.push(buffer);
            }
        });
    }
}

/// The budget all calls share.
pub struct Budget {
    used: AtomicUsize,
    limit: AtomicUsize,
}

impl Budget {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), limit: AtomicUsize::new(limit) })
    }

    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// A share of `bytes`, or `None` when that would go over the limit.
    pub fn take(self: &Arc<Self>, bytes: usize) -> Option<Share> {
        let mut share = Share { budget: self.clone(), bytes: 0 };
        share.grow(bytes).then_some(share)
    }
}

/// One call's part of the budget, given back when dropped.
pub struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Share {
    /// Takes `more`; `false`, and nothing taken, when there is no room.
    pub fn grow(&mut self, more: usize) -> bool {
        let before = self.budget.used.fetch_add(more, Ordering::Relaxed);
        if before.saturating_add(more) > self.budget.limit.load(Ordering::Relaxed) {
            self.budget.used.fetch_sub(more, Ordering::Relaxed);
            return false;
        }
        self.bytes += more;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_never_add_up_to_more_than_the_limit() {
        let budget = Budget::new(100);
        let mut first = budget.take(60).unwrap();
        assert!(budget.take(50).is_none());
        assert!(first.grow(40) && !first.grow(1));
        drop(first);
        assert_eq!(budget.used(), 0);
        assert!(budget.take(100).is_some());
    }
}
