//! Who has failed too often: addresses that sent wrong credentials, accounts that were tried with wrong passwords.
//!
//! Owns the counts of failures and the blocks that follow, in memory and bounded; nothing of it survives a restart. Never
//! decides what a failure is. Time is the monotonic clock's, so that a wall clock set back or forth neither lifts a block
//! nor makes it last.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::actors::audit::{self, Action, Audit, Origin, Target};
use crate::clock::Monotonic;
use crate::config::Access;
use crate::domain::addresses::customer_network;

const SHARDS: usize = 16;

/// Counts failures per subject; a subject is blocked for a time after enough of them within that time.
pub struct Failures<K> {
    shards: Vec<Mutex<Shard<K>>>,
    hasher: RandomState,
    /// 0: nobody is ever blocked.
    limit: AtomicU32,
    window_ns: AtomicU64,
    max_tracked: AtomicUsize,
    tracked: AtomicUsize,
    /// Subjects that have reached the limit and are not swept yet. While it is 0, nobody need be looked up.
    blocked: AtomicUsize,
}

struct Shard<K> {
    subjects: HashMap<K, Record, RandomState>,
    /// Subjects in the order in which their records end. A subject whose record was prolonged or removed since has an
    /// entry here that no longer fits, which is passed over.
    ends: VecDeque<(Monotonic, K)>,
}

#[derive(Clone, Copy)]
struct Record {
    failures: u32,
    blocked: bool,
    ends: Monotonic,
}

impl<K: Copy + Eq + Hash> Failures<K> {
    pub fn new(limit: u32, window: Duration, max_tracked: usize) -> Self {
        let shard = || Mutex::new(Shard { subjects: HashMap::default(), ends: VecDeque::new() });
        let new = Self {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            hasher: RandomState::new(),
            limit: AtomicU32::new(0),
            window_ns: AtomicU64::new(0),
            max_tracked: AtomicUsize::new(0),
            tracked: AtomicUsize::new(0),
            blocked: AtomicUsize::new(0),
        };
        new.reconfigure(limit, window, max_tracked);
        new
    }

    /// Applies to what happens from now on.
    pub fn reconfigure(&self, limit: u32, window: Duration, max_tracked: usize) {
        self.limit.store(limit, Ordering::Relaxed);
        self.window_ns.store(u64::try_from(window.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.max_tracked.store(max_tracked, Ordering::Relaxed);
    }

    fn shard(&self, subject: &K) -> &Mutex<Shard<K>> {
        &self.shards[self.hasher.hash_one(subject) as usize % SHARDS]
    }

    /// How much longer the subject is blocked.
    pub fn blocked_for(&self, subject: &K, now: Monotonic) -> Option<Duration> {
        if self.blocked.load(Ordering::Acquire) == 0 || self.limit.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let shard = self.shard(subject).lock();
        let record = shard.subjects.get(subject).filter(|r| r.blocked && now < r.ends)?;
        Some(record.ends.since(now))
    }

    /// Counts a failure and says whether it was the one too many.
    pub fn failed(&self, subject: K, now: Monotonic) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        if limit == 0 {
            return false;
        }
        let ends = now.plus(Duration::from_nanos(self.window_ns.load(Ordering::Relaxed)));
        let mut guard = self.shard(&subject).lock();
        let shard = &mut *guard;
        self.remove_ended(shard, now);
        let known = shard.subjects.get(&subject).copied().filter(|r| now < r.ends);
        let mut record = known.unwrap_or_else(|| {
            self.make_room(shard, &subject);
            shard.ends.push_back((ends, subject));
            Record { failures: 0, blocked: false, ends }
        });
        if record.blocked {
            return false;
        }
        record.failures += 1;
        if record.failures >= limit {
            // The block is counted from the failure that brought it.
            record = Record { blocked: true, ends, ..record };
            shard.ends.push_back((ends, subject));
            self.blocked.fetch_add(1, Ordering::Release);
        }
        if shard.subjects.insert(subject, record).is_none() {
            self.tracked.fetch_add(1, Ordering::Release);
        }
        record.blocked
    }

    /// Forgets the failures of a subject, unless they have already led to a block.
    pub fn succeeded(&self, subject: &K) {
        if self.tracked.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut guard = self.shard(subject).lock();
        if guard.subjects.get(subject).is_some_and(|r| !r.blocked) {
            self.remove(&mut guard, subject);
        }
        // Entries left behind in the queue must not outgrow the subjects.
        if guard.ends.len() > 2 * guard.subjects.len() + 64 {
            let Shard { subjects, ends } = &mut *guard;
            ends.retain(|(at, subject)| subjects.get(subject).is_some_and(|r| r.ends == *at));
        }
    }

    /// Lifts a block.
    pub fn forgive(&self, subject: &K) {
        self.remove(&mut self.shard(subject).lock(), subject);
    }

    /// Removes records that have ended. To be called every now and then, so that a quiet time brings the counts to 0.
    pub fn sweep(&self, now: Monotonic) {
        for shard in &self.shards {
            self.remove_ended(&mut shard.lock(), now);
        }
    }

    pub fn tracked(&self) -> usize {
        self.tracked.load(Ordering::Relaxed)
    }

    pub fn blocked(&self) -> usize {
        self.blocked.load(Ordering::Relaxed)
    }

    fn remove(&self, shard: &mut Shard<K>, subject: &K) {
        if let Some(record) = shard.subjects.remove(subject) {
            self.tracked.fetch_sub(1, Ordering::Release);
            if record.blocked {
                self.blocked.fetch_sub(1, Ordering::Release);
            }
        }
    }

    fn remove_ended(&self, shard: &mut Shard<K>, now: Monotonic) {
        while let Some((at, subject)) = shard.ends.front().copied().filter(|(at, _)| *at <= now) {
            shard.ends.pop_front();
            if shard.subjects.get(&subject).is_some_and(|r| r.ends == at) {
                self.remove(shard, &subject);
            }
        }
    }

    /// Makes a shard that is full forget its oldest record.
    fn make_room(&self, shard: &mut Shard<K>, newcomer: &K) {
        self.remove(shard, newcomer);
        let room = (self.max_tracked.load(Ordering::Relaxed) / SHARDS).max(1);
        while shard.subjects.len() >= room {
            let Some((at, subject)) = shard.ends.pop_front() else { return };
            if shard.subjects.get(&subject).is_some_and(|r| r.ends == at) {
                self.remove(shard, &subject);
            }
        }
    }
}

/// Addresses (IPv6 by /64) that sent wrong credentials.
pub struct AddressBlocks(Failures<IpAddr>, Option<Audit>);

impl AddressBlocks {
    pub fn new(access: &Access) -> Self {
        Self(Failures::new(access.block_after_failures, window(access), access.max_tracked_addresses), None)
    }

    /// With a trail that hears of every address that is blocked.
    #[must_use]
    pub fn audited(self, audit: Audit) -> Self {
        Self(self.0, Some(audit))
    }

    pub fn reconfigure(&self, access: &Access) {
        self.0.reconfigure(access.block_after_failures, window(access), access.max_tracked_addresses);
    }

    /// One load of a counter while nobody is blocked.
    pub fn is_blocked(&self, addr: IpAddr, now: Monotonic) -> bool {
        self.0.blocked() != 0 && self.0.blocked_for(&customer_network(addr), now).is_some()
    }

    /// Counts a wrong credential and says whether the address is blocked from now on.
    pub fn failed(&self, addr: IpAddr, now: Monotonic) -> bool {
        let blocked = self.0.failed(customer_network(addr), now);
        if let Some(audit) = self.1.as_ref().filter(|_| blocked) {
            let network = customer_network(addr).to_string();
            let origin = Origin { address: Some(addr), request: None };
            let target = Target::new("address", None, Some(&network));
            audit.note_folded(audit::Record::of(Action::AddressBlocked).from(origin).on(target));
        }
        blocked
    }

    /// Forgets the failures of an address that showed a right credential.
    pub fn succeeded(&self, addr: IpAddr) {
        if self.0.tracked() != 0 {
            self.0.succeeded(&customer_network(addr));
        }
    }

    pub fn sweep(&self, now: Monotonic) {
        self.0.sweep(now);
    }

    pub fn tracked(&self) -> usize {
        self.0.tracked()
    }

    pub fn blocked(&self) -> usize {
        self.0.blocked()
    }
}

fn window(access: &Access) -> Duration {
    Duration::from_secs(access.block_minutes.saturating_mul(60))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000_000_000;

    fn at(minutes: u64) -> Monotonic {
        Monotonic(minutes * MINUTE + 1)
    }

    fn blocks(limit: u32, max: usize) -> AddressBlocks {
        let access =
            Access { block_after_failures: limit, block_minutes: 15, max_tracked_addresses: max, ..Access::default() };
        AddressBlocks::new(&access)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn five_failures_within_the_window_block_for_its_length() {
        let blocks = blocks(5, 1000);
        let bad = ip("192.0.2.1");
        for minute in 0..4 {
            assert!(!blocks.failed(bad, at(minute)));
            assert!(!blocks.is_blocked(bad, at(minute)));
        }
        assert!(blocks.failed(bad, at(4)));
        assert!(blocks.is_blocked(bad, at(4)) && blocks.is_blocked(bad, at(18)) && !blocks.is_blocked(bad, at(19)));
        assert!(!blocks.is_blocked(ip("192.0.2.2"), at(5)));
        blocks.succeeded(bad);
        assert!(blocks.is_blocked(bad, at(5)), "a block is not talked away");
        blocks.sweep(at(20));
        assert_eq!((blocks.tracked(), blocks.blocked()), (0, 0));
    }

    #[test]
    fn failures_far_apart_or_forgiven_do_not_add_up() {
        let blocks = blocks(2, 1000);
        let addr = ip("192.0.2.1");
        assert!(!blocks.failed(addr, at(0)) && !blocks.failed(addr, at(16)));
        blocks.succeeded(addr);
        assert!(!blocks.failed(addr, at(17)) && blocks.failed(addr, at(18)));
    }

    #[test]
    fn all_of_a_64_counts_as_one() {
        let blocks = blocks(2, 1000);
        blocks.failed(ip("2001:db8::1"), at(0));
        assert!(blocks.failed(ip("2001:db8::2"), at(0)));
        assert!(blocks.is_blocked(ip("2001:db8:0:0:ffff::"), at(1)) && !blocks.is_blocked(ip("2001:db8:0:1::"), at(1)));
    }

    #[test]
    fn memory_is_bounded_whatever_comes() {
        let blocks = blocks(3, 160);
        for n in 0..100_000u32 {
            blocks.failed(IpAddr::V4(n.into()), at(0));
            if n % 3 == 0 {
                blocks.succeeded(IpAddr::V4(n.into()));
            }
        }
        assert!(blocks.tracked() <= 160, "{}", blocks.tracked());
        let queued: usize = blocks.0.shards.iter().map(|s| s.lock().ends.len()).sum();
        assert!(queued <= 2 * 160 + SHARDS * 65, "{queued}");
        for _ in 0..10_000 {
            blocks.failed(ip("192.0.2.1"), at(1));
            blocks.succeeded(ip("192.0.2.1"));
        }
        let queued: usize = blocks.0.shards.iter().map(|s| s.lock().ends.len()).sum();
        assert!(queued <= 2 * 160 + SHARDS * 65, "{queued}");
    }

    #[test]
    fn zero_never_blocks_and_a_reload_applies() {
        let blocks = blocks(0, 100);
        for _ in 0..100 {
            assert!(!blocks.failed(ip("192.0.2.1"), at(0)));
        }
        blocks.reconfigure(&Access { block_after_failures: 1, ..Access::default() });
        assert!(blocks.failed(ip("192.0.2.1"), at(0)) && blocks.is_blocked(ip("192.0.2.1"), at(1)));
    }
}
