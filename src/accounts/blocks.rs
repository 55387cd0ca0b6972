//! Who has failed too often: addresses that sent wrong credentials, accounts that were tried with wrong passwords.
//!
//! Owns the counts of failures and the blocks that follow, in memory and bounded; nothing of it survives a restart. Never
//! decides what a failure is. Time is the monotonic clock's, so that a wall clock set back or forth neither lifts a block
//! nor makes it last.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::actors::audit::{self, Action, Audit, Origin, Target};
use crate::clock::{Clock, Monotonic};
use crate::config::{Access, Block};
use crate::domain::addresses::customer_network;
use crate::domain::session::Principal;

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

/// What became of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    Noted,
    /// It was the one too many.
    Blocks,
    /// The subject was blocked already.
    TooLate,
}

#[derive(Clone, Copy)]
struct Record {
    failures: u32,
    /// What failed, a bit each.
    kinds: u8,
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
        self.failed_at(subject, 0, now) == Counted::Blocks
    }

    /// As [`Failures::failed`], with what failed.
    fn failed_at(&self, subject: K, kind: u8, now: Monotonic) -> Counted {
        let limit = self.limit.load(Ordering::Relaxed);
        if limit == 0 {
            return Counted::Noted;
        }
        let ends = now.plus(Duration::from_nanos(self.window_ns.load(Ordering::Relaxed)));
        let mut guard = self.shard(&subject).lock();
        let shard = &mut *guard;
        self.remove_ended(shard, now);
        let known = shard.subjects.get(&subject).copied().filter(|r| now < r.ends);
        let mut record = known.unwrap_or_else(|| {
            self.make_room(shard, &subject);
            shard.ends.push_back((ends, subject));
            Record { failures: 0, kinds: 0, blocked: false, ends }
        });
        if record.blocked {
            return Counted::TooLate;
        }
        record.failures += 1;
        record.kinds |= kind;
        if record.failures >= limit {
            // The block is counted from the failure that brought it.
            record = Record { blocked: true, ends, ..record };
            shard.ends.push_back((ends, subject));
            self.blocked.fetch_add(1, Ordering::Release);
        }
        if shard.subjects.insert(subject, record).is_none() {
            self.tracked.fetch_add(1, Ordering::Release);
        }
        if record.blocked { Counted::Blocks } else { Counted::Noted }
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

    fn record(&self, subject: &K) -> Option<Record> {
        self.shard(subject).lock().subjects.get(subject).copied()
    }

    /// Those that are blocked now.
    fn blocked_ones(&self, now: Monotonic) -> Vec<(K, Record)> {
        if self.blocked() == 0 || self.limit.load(Ordering::Relaxed) == 0 {
            return Vec::new();
        }
        let mut found = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            let blocked = shard.subjects.iter().filter(|(_, record)| record.blocked && now < record.ends);
            found.extend(blocked.map(|(subject, record)| (*subject, *record)));
        }
        found
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

/// Which listener somebody came to. What they do wrong at one does not count at the other: else a stranger on the public one
/// would lock the administrators of the same network out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    Public,
    Side,
}

impl Port {
    pub const ALL: [Self; 2] = [Self::Public, Self::Side];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Side => "side",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|port| port.as_str() == text)
    }
}

impl From<Principal> for Port {
    /// Staff comes to the side port, and nobody else does.
    fn from(whose: Principal) -> Self {
        match whose {
            Principal::User(_) => Self::Public,
            Principal::Staff(_) => Self::Side,
        }
    }
}

/// What was guessed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guess {
    /// A key or a token that nobody has.
    Credential,
    Password,
    /// A one-time code, or one of a second factor.
    Code,
    /// A token of a mailed link.
    Link,
    /// What a login brings besides, which the operator's verifier did not believe.
    Factor,
}

impl Guess {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Credential, "credentials"),
        (Self::Password, "passwords"),
        (Self::Code, "codes"),
        (Self::Link, "mailed links"),
        (Self::Factor, "login factors"),
    ];

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// A blocked address, as administrators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockedAddress {
    /// An IPv6 address stands for its /64.
    pub address: IpAddr,
    pub port: Port,
    pub failures: u32,
    pub guesses: Vec<&'static str>,
    pub ends: Monotonic,
}

/// An address as people read it: the network that counts as one.
pub fn shown(address: IpAddr) -> String {
    match customer_network(address) {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("{v6}/64"),
    }
}

/// Addresses (IPv6 by /64) that sent wrong credentials, at each port.
pub struct AddressBlocks {
    public: Failures<IpAddr>,
    side: Failures<IpAddr>,
    /// Whether a blocked address is refused everything on the public listener.
    all: AtomicBool,
    /// Who hears of every address that is blocked, and the clock that says until when.
    heard_by: Option<(Audit, Clock)>,
    told: Mutex<Told>,
}

/// How many blocks the program's log has named in the present minute.
#[derive(Default)]
struct Told {
    ends: Monotonic,
    named: u32,
    unnamed: u32,
}

/// Blocks that the program's log names in a minute; strangers cause them.
const MAX_NAMED: u32 = 60;
const MINUTE: Duration = Duration::from_secs(60);

impl AddressBlocks {
    pub fn new(access: &Access) -> Self {
        let failures = || Failures::new(access.block_after_failures, window(access), access.max_tracked_addresses);
        let new = Self {
            public: failures(),
            side: failures(),
            all: AtomicBool::new(false),
            heard_by: None,
            told: Mutex::default(),
        };
        new.reconfigure(access);
        new
    }

    /// With a trail that hears of every address that is blocked.
    #[must_use]
    pub fn audited(self, audit: Audit, clock: Clock) -> Self {
        Self { heard_by: Some((audit, clock)), ..self }
    }

    pub fn reconfigure(&self, access: &Access) {
        for port in Port::ALL {
            self.at(port).reconfigure(access.block_after_failures, window(access), access.max_tracked_addresses);
        }
        self.all.store(access.block == Block::All, Ordering::Relaxed);
    }

    fn at(&self, port: Port) -> &Failures<IpAddr> {
        match port {
            Port::Public => &self.public,
            Port::Side => &self.side,
        }
    }

    /// Whether anything counts.
    pub fn counts(&self) -> bool {
        self.public.limit.load(Ordering::Relaxed) != 0
    }

    /// How much longer an address may not guess. One load of a counter while nobody is blocked.
    pub fn blocked_for(&self, addr: IpAddr, port: Port, now: Monotonic) -> Option<Duration> {
        let failures = self.at(port);
        if failures.blocked() == 0 { None } else { failures.blocked_for(&customer_network(addr), now) }
    }

    /// How much longer the public listener is shut to an address, good credentials or not.
    pub fn shuts_out(&self, addr: IpAddr, now: Monotonic) -> Option<Duration> {
        if self.all.load(Ordering::Relaxed) { self.blocked_for(addr, Port::Public, now) } else { None }
    }

    /// Counts a wrong credential. Nothing takes it back before its time: people with one account of their own must not buy
    /// guesses at others with it.
    pub fn failed(&self, addr: IpAddr, port: Port, guess: Guess, now: Monotonic) -> Counted {
        let network = customer_network(addr);
        let counted = self.at(port).failed_at(network, guess.bit(), now);
        if counted == Counted::Blocks {
            self.tell(network, port, now);
            if let Some((audit, _)) = &self.heard_by {
                let origin = Origin { address: Some(addr), request: None };
                let target = Target::new("address", None, Some(&network.to_string()));
                let record = audit::Record::of(Action::AddressBlocked).from(origin).on(target);
                audit.note_folded(record.with("port", port.as_str()));
            }
        }
        counted
    }

    /// Names a blocked address in the program's log, as long as it does not fill it.
    fn tell(&self, network: IpAddr, port: Port, now: Monotonic) {
        let mut told = self.told.lock();
        if told.ends <= now {
            tell_unnamed(&mut told);
            told.ends = now.plus(MINUTE);
            told.named = 0;
        }
        if told.named >= MAX_NAMED {
            told.unnamed += 1;
            return;
        }
        told.named += 1;
        drop(told);
        let at = self.at(port);
        let Some(record) = at.record(&network) else { return };
        let ends = self.heard_by.as_ref().map(|(_, clock)| clock.now().plus(record.ends.since(now)).rfc3339());
        tracing::warn!(
            address = shown(network),
            port = port.as_str(),
            failures = record.failures,
            guesses = kinds_of(record.kinds).join(", "),
            until = ends.unwrap_or_default(),
            "an address is blocked for guessing"
        );
    }

    /// The blocked addresses, those whose block ends last first.
    pub fn list(&self, now: Monotonic) -> Vec<BlockedAddress> {
        let one = |port: Port| {
            let blocked = self.at(port).blocked_ones(now).into_iter();
            blocked.map(move |(address, record)| BlockedAddress {
                address,
                port,
                failures: record.failures,
                guesses: kinds_of(record.kinds),
                ends: record.ends,
            })
        };
        let mut all: Vec<_> = Port::ALL.into_iter().flat_map(one).collect();
        all.sort_unstable_by_key(|block| (std::cmp::Reverse(block.ends), block.address, block.port.as_str()));
        all
    }

    /// Lifts the blocks of an address, at one port or at both; answers those that there were. Its count begins anew.
    pub fn lift(&self, addr: IpAddr, port: Option<Port>, now: Monotonic) -> Vec<BlockedAddress> {
        let network = customer_network(addr);
        let fits = |block: &BlockedAddress| block.address == network && port.is_none_or(|port| port == block.port);
        let lifted: Vec<_> = self.list(now).into_iter().filter(fits).collect();
        lifted.iter().for_each(|block| self.at(block.port).forgive(&network));
        lifted
    }

    pub fn sweep(&self, now: Monotonic) {
        Port::ALL.into_iter().for_each(|port| self.at(port).sweep(now));
        let mut told = self.told.lock();
        if told.ends <= now {
            tell_unnamed(&mut told);
        }
    }

    pub fn tracked(&self) -> usize {
        Port::ALL.into_iter().map(|port| self.at(port).tracked()).sum()
    }

    pub fn blocked(&self) -> usize {
        Port::ALL.into_iter().map(|port| self.at(port).blocked()).sum()
    }
}

fn tell_unnamed(told: &mut Told) {
    if told.unnamed > 0 {
        tracing::warn!(addresses = told.unnamed, "more addresses were blocked for guessing within a minute");
        told.unnamed = 0;
    }
}

fn kinds_of(kinds: u8) -> Vec<&'static str> {
    Guess::ALL.into_iter().filter(|(guess, _)| kinds & guess.bit() != 0).map(|(_, name)| name).collect()
}

fn window(access: &Access) -> Duration {
    Duration::from_secs(access.block_minutes.saturating_mul(60))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: u64) -> Monotonic {
        Monotonic(minutes * 60_000_000_000 + 1)
    }

    fn blocks(limit: u32, max: usize) -> AddressBlocks {
        let access =
            Access { block_after_failures: limit, block_minutes: 15, max_tracked_addresses: max, ..Access::default() };
        AddressBlocks::new(&access)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn fail(blocks: &AddressBlocks, addr: &str, at: Monotonic) -> bool {
        blocks.failed(ip(addr), Port::Public, Guess::Password, at) == Counted::Blocks
    }

    fn is_blocked(blocks: &AddressBlocks, addr: &str, at: Monotonic) -> bool {
        blocks.blocked_for(ip(addr), Port::Public, at).is_some()
    }

    #[test]
    fn five_failures_within_the_window_block_for_its_length() {
        let blocks = blocks(5, 1000);
        let bad = "192.0.2.1";
        for minute in 0..4 {
            assert!(!fail(&blocks, bad, at(minute)) && !is_blocked(&blocks, bad, at(minute)));
        }
        assert!(fail(&blocks, bad, at(4)));
        assert_eq!(blocks.blocked_for(ip(bad), Port::Public, at(4)), Some(Duration::from_secs(15 * 60)));
        assert!(is_blocked(&blocks, bad, at(18)) && !is_blocked(&blocks, bad, at(19)));
        assert!(!is_blocked(&blocks, "192.0.2.2", at(5)));
        blocks.sweep(at(20));
        assert_eq!((blocks.tracked(), blocks.blocked()), (0, 0));
    }

    #[test]
    fn failures_far_apart_do_not_add_up() {
        let blocks = blocks(2, 1000);
        assert!(!fail(&blocks, "192.0.2.1", at(0)) && !fail(&blocks, "192.0.2.1", at(16)));
        assert!(fail(&blocks, "192.0.2.1", at(17)));
    }

    #[test]
    fn the_ports_count_apart() {
        let blocks = blocks(1, 1000);
        let (addr, now) = (ip("192.0.2.1"), at(0));
        assert_eq!(blocks.failed(addr, Port::Side, Guess::Password, now), Counted::Blocks);
        assert_eq!(blocks.failed(addr, Port::Side, Guess::Password, now), Counted::TooLate);
        assert!(
            blocks.blocked_for(addr, Port::Side, now).is_some()
                && blocks.blocked_for(addr, Port::Public, now).is_none()
        );
        assert_eq!(blocks.failed(addr, Port::Public, Guess::Credential, now), Counted::Blocks);
        assert_eq!((blocks.tracked(), blocks.blocked()), (2, 2));
        assert_eq!(blocks.lift(addr, Some(Port::Side), now).len(), 1);
        assert!(
            blocks.blocked_for(addr, Port::Side, now).is_none()
                && blocks.blocked_for(addr, Port::Public, now).is_some()
        );
    }

    #[test]
    fn blocks_are_listed_with_what_was_guessed_and_lifted() {
        let blocks = blocks(2, 1000);
        for (guess, minute) in [(Guess::Credential, 0), (Guess::Code, 1)] {
            blocks.failed(ip("2001:db8::7"), Port::Public, guess, at(minute));
            fail(&blocks, "192.0.2.1", at(minute + 1));
        }
        fail(&blocks, "192.0.2.9", at(2));
        let listed = blocks.list(at(3));
        let seen: Vec<_> =
            listed.iter().map(|block| (shown(block.address), block.failures, block.guesses.clone())).collect();
        let of_network = ("2001:db8::/64".to_owned(), 2, vec!["credentials", "codes"]);
        assert_eq!(seen, [("192.0.2.1".to_owned(), 2, vec!["passwords"]), of_network]);
        assert_eq!(blocks.list(at(16)).len(), 1, "the other is over");
        assert!(blocks.lift(ip("192.0.2.9"), None, at(3)).is_empty(), "is not blocked");
        assert_eq!(blocks.lift(ip("2001:db8::1"), None, at(3)).len(), 1);
        assert!(!is_blocked(&blocks, "2001:db8::7", at(3)));
        assert!(!fail(&blocks, "2001:db8::7", at(3)), "it counts anew");
        blocks.reconfigure(&Access { block_after_failures: 0, ..Access::default() });
        assert!(blocks.list(at(3)).is_empty());
    }

    #[test]
    fn all_of_a_64_counts_as_one() {
        let blocks = blocks(2, 1000);
        fail(&blocks, "2001:db8::1", at(0));
        assert!(fail(&blocks, "2001:db8::2", at(0)));
        assert!(is_blocked(&blocks, "2001:db8:0:0:ffff::", at(1)) && !is_blocked(&blocks, "2001:db8:0:1::", at(1)));
    }

    #[test]
    fn memory_is_bounded_whatever_comes() {
        let failures = Failures::new(3, Duration::from_secs(900), 160);
        for n in 0..100_000u32 {
            failures.failed(n, at(0));
            if n % 3 == 0 {
                failures.succeeded(&n);
            }
        }
        assert!(failures.tracked() <= 160, "{}", failures.tracked());
        let queued = || -> usize { failures.shards.iter().map(|s| s.lock().ends.len()).sum() };
        assert!(queued() <= 2 * 160 + SHARDS * 65, "{}", queued());
        for _ in 0..10_000 {
            failures.failed(1, at(1));
            failures.succeeded(&1);
        }
        assert!(queued() <= 2 * 160 + SHARDS * 65, "{}", queued());
    }

    #[test]
    fn zero_never_blocks_and_a_reload_applies() {
        let blocks = blocks(0, 100);
        for _ in 0..100 {
            assert!(!fail(&blocks, "192.0.2.1", at(0)));
        }
        blocks.reconfigure(&Access { block_after_failures: 1, ..Access::default() });
        assert!(fail(&blocks, "192.0.2.1", at(0)) && is_blocked(&blocks, "192.0.2.1", at(1)));
    }

    #[test]
    fn only_all_shuts_out_who_is_good() {
        let blocks = blocks(1, 100);
        fail(&blocks, "192.0.2.1", at(0));
        assert!(blocks.shuts_out(ip("192.0.2.1"), at(0)).is_none());
        blocks.reconfigure(&Access { block_after_failures: 1, block: Block::All, ..Access::default() });
        assert!(
            blocks.shuts_out(ip("192.0.2.1"), at(0)).is_some() && blocks.shuts_out(ip("192.0.2.2"), at(0)).is_none()
        );
    }

    #[test]
    fn the_log_names_so_many_a_minute() {
        let blocks = blocks(1, 1000);
        for n in 0..100u32 {
            blocks.failed(IpAddr::V4(n.into()), Port::Public, Guess::Password, at(0));
        }
        let counts = |blocks: &AddressBlocks| {
            let told = blocks.told.lock();
            (told.named, told.unnamed)
        };
        assert_eq!(counts(&blocks), (MAX_NAMED, 40));
        blocks.sweep(at(2));
        assert_eq!(counts(&blocks), (MAX_NAMED, 0));
        fail(&blocks, "192.0.2.1", at(3));
        assert_eq!(counts(&blocks), (1, 0));
    }
}
