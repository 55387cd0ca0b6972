//! Rates: how many requests a minute an address, a key and a user may make, and how many refusals an address may cause.
//!
//! Owns the limits' states and the arithmetic of the generic cell rate algorithm over governor's lock-free state. governor's
//! own limiter cannot give a request back, and we must: a call that another limit refuses takes nothing from this one. Bounded
//! however many addresses come. Never sleeps and never queues.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use governor::nanos::Nanos;
use governor::state::direct::NotKeyed;
use governor::state::{InMemoryState, StateStore};

use super::client_ip::ClientIp;
use crate::actors::user::actor::UserActor;
use crate::clock::Monotonic;
use crate::domain::ids::SecretMac;
use crate::error::{RateScope, Reject};

/// States shared by hash once the table of known addresses is full.
const OVERFLOW_STATES: usize = 4096;

/// So many requests a minute, all of which may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    pub per_minute: u32,
    /// Nanoseconds between two requests at an even pace.
    gap: u64,
}

impl Quota {
    /// `None` for 0: no limit.
    pub fn per_minute(per_minute: u32) -> Option<Self> {
        let gap = 60_000_000_000u64.checked_div(u64::from(per_minute))?;
        Some(Self { per_minute, gap: gap.max(1) })
    }

    fn burst(&self) -> u64 {
        self.gap * u64::from(self.per_minute)
    }
}

/// How a limit stands after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub limit: u32,
    pub remaining: u32,
    /// Until all of the limit is there again.
    pub reset: Duration,
}

/// Takes one request. The state is the moment at which the bucket is full again.
fn take(state: &InMemoryState, quota: Quota, now: Monotonic) -> Result<Standing, Duration> {
    state.measure_and_replace(&NotKeyed::NonKey, |full_at| {
        let full_at = full_at.map_or(now.0, |at| at.as_u64().max(now.0));
        let next = full_at + quota.gap;
        let in_use = next - now.0;
        if in_use > quota.burst() {
            return Err(Duration::from_nanos(in_use - quota.burst()));
        }
        let remaining = ((quota.burst() - in_use) / quota.gap) as u32;
        Ok((Standing { limit: quota.per_minute, remaining, reset: Duration::from_nanos(in_use) }, Nanos::from(next)))
    })
}

/// Undoes one [`take`].
fn give_back(state: &InMemoryState, quota: Quota) {
    let _ = state.measure_and_replace(&NotKeyed::NonKey, |full_at| match full_at {
        Some(at) => Ok(((), Nanos::from(at.as_u64().saturating_sub(quota.gap).max(1)))),
        None => Err(()),
    });
}

fn is_full(state: &InMemoryState, now: Monotonic) -> bool {
    let full_at = state.measure_and_replace(&NotKeyed::NonKey, Err::<((), Nanos), _>);
    full_at.err().flatten().is_none_or(|at| at.as_u64() <= now.0)
}

/// States by address or by key, bounded.
struct States {
    known: DashMap<u128, InMemoryState>,
    len: AtomicUsize,
    max: usize,
    overflow: Box<[InMemoryState]>,
}

impl States {
    fn new(max: usize) -> Self {
        let overflow = (0..OVERFLOW_STATES).map(|_| InMemoryState::default()).collect();
        Self { known: DashMap::new(), len: AtomicUsize::new(0), max, overflow }
    }

    fn with<T>(&self, key: u128, act: impl Fn(&InMemoryState) -> T) -> T {
        if let Some(state) = self.known.get(&key) {
            return act(&state);
        }
        if self.len.load(Ordering::Relaxed) >= self.max {
            // Newcomers share: each gets at most its limit, and a flood of addresses costs no memory.
            let at = (key ^ (key >> 64)) as u64;
            let slot = (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % OVERFLOW_STATES;
            return act(&self.overflow[slot]);
        }
        let state = self.known.entry(key).or_insert_with(|| {
            self.len.fetch_add(1, Ordering::Relaxed);
            InMemoryState::default()
        });
        act(&state)
    }

    /// Forgets states that are as good as new.
    fn sweep(&self, now: Monotonic) {
        self.known.retain(|_, state| {
            let keep = !is_full(state, now);
            if !keep {
                self.len.fetch_sub(1, Ordering::Relaxed);
            }
            keep
        });
        // A flood of addresses leaves a table behind that nobody fills again.
        if self.known.capacity() > 4 * self.known.len() + 4096 {
            self.known.shrink_to_fit();
        }
    }
}

/// The states of all limits; they outlive a reload of the config.
pub struct RateStates {
    addresses: States,
    keys: States,
    refusals: States,
}

impl RateStates {
    pub fn new(max_tracked: usize) -> Arc<Self> {
        let states = || States::new(max_tracked);
        Arc::new(Self { addresses: states(), keys: states(), refusals: states() })
    }

    /// To be called every few seconds.
    pub fn sweep(&self, now: Monotonic) {
        self.addresses.sweep(now);
        self.keys.sweep(now);
        self.refusals.sweep(now);
    }

    pub fn tracked(&self) -> usize {
        [&self.addresses, &self.keys, &self.refusals].iter().map(|states| states.len.load(Ordering::Relaxed)).sum()
    }
}

/// The limits in force.
#[derive(Clone, Copy, Debug, Default)]
pub struct RateQuotas {
    pub address: Option<Quota>,
    pub key: Option<Quota>,
    pub user: Option<Quota>,
    /// Of an address, for what it was refused.
    pub refusals: Option<Quota>,
}

/// What one request has taken so far, to be given back if it is refused.
#[derive(Default)]
pub struct Taken {
    address: Option<(u128, Quota)>,
    key: Option<(u128, Quota)>,
    user: Option<(Arc<UserActor>, Quota)>,
    /// The limit that is nearest to its end: what the client is told.
    pub tightest: Option<Standing>,
}

impl Taken {
    fn note(&mut self, standing: Standing) {
        if self.tightest.is_none_or(|t| standing.remaining < t.remaining) {
            self.tightest = Some(standing);
        }
    }

    /// A refused call costs nothing: gives back what it took, from the limits that did not refuse it.
    pub fn give_back(&mut self, states: &RateStates) {
        if let Some((key, quota)) = self.address.take() {
            states.addresses.with(key, |state| give_back(state, quota));
        }
        if let Some((key, quota)) = self.key.take() {
            states.keys.with(key, |state| give_back(state, quota));
        }
        if let Some((actor, quota)) = self.user.take() {
            give_back(&actor.rate, quota);
        }
    }
}

/// An IPv6 customer has at least a /64, so that is one address.
pub fn address_key(client: ClientIp) -> u128 {
    match client.0 {
        IpAddr::V4(v4) => u128::from(v4.to_ipv6_mapped()),
        IpAddr::V6(v6) => u128::from(v6) & !u128::from(u64::MAX),
    }
}

fn refuse(scope: RateScope, quota: Quota, retry_after: Duration) -> Reject {
    Reject::RateLimited { scope, retry_after, limit: quota.per_minute }
}

/// Takes one request from the address's limit.
///
/// # Errors
/// [`Reject::RateLimited`].
pub fn check_address(
    states: &RateStates,
    quotas: &RateQuotas,
    client: ClientIp,
    now: Monotonic,
    taken: &mut Taken,
) -> Result<(), Reject> {
    let Some(quota) = quotas.address else { return Ok(()) };
    let key = address_key(client);
    let standing = states.addresses.with(key, |state| take(state, quota, now));
    taken.note(standing.map_err(|wait| refuse(RateScope::Address, quota, wait))?);
    taken.address = Some((key, quota));
    Ok(())
}

/// Takes one refusal from the address's limit of those. Good calls never take from it.
///
/// # Errors
/// [`Reject::RateLimited`].
pub fn check_refusal(states: &RateStates, quotas: &RateQuotas, client: ClientIp, now: Monotonic) -> Result<(), Reject> {
    let Some(quota) = quotas.refusals else { return Ok(()) };
    let taken = states.refusals.with(address_key(client), |state| take(state, quota, now));
    taken.map(|_| ()).map_err(|wait| refuse(RateScope::Refusals, quota, wait))
}

/// Takes one request from the key's and from the user's limit.
///
/// # Errors
/// [`Reject::RateLimited`].
pub fn check_caller(
    states: &RateStates,
    quotas: &RateQuotas,
    mac: &SecretMac,
    own_per_minute: Option<u32>,
    actor: &Arc<UserActor>,
    now: Monotonic,
    taken: &mut Taken,
) -> Result<(), Reject> {
    if let Some(quota) = own_per_minute.and_then(Quota::per_minute).or(quotas.key) {
        let key = mac.0.first_chunk::<16>().map_or(0, |half| u128::from_le_bytes(*half));
        let standing = states.keys.with(key, |state| take(state, quota, now));
        taken.note(standing.map_err(|wait| refuse(RateScope::Key, quota, wait))?);
        taken.key = Some((key, quota));
    }
    if let Some(quota) = quotas.user {
        taken.note(take(&actor.rate, quota, now).map_err(|wait| refuse(RateScope::User, quota, wait))?);
        taken.user = Some((actor.clone(), quota));
    }
    Ok(())
}

/// A time as OpenAI's clients know it from `x-ratelimit-reset-requests`: `1s`, `6m0s`, `250ms`, `1.5s`.
pub fn write_reset(reset: Duration, out: &mut Vec<u8>) {
    // Up to the next millisecond: a client that waits so long finds what it was told.
    let millis = reset.as_nanos().div_ceil(1_000_000) as u64;
    let mut number = itoa::Buffer::new();
    let mut put = |n: u64, out: &mut Vec<u8>| out.extend_from_slice(number.format(n).as_bytes());
    if millis < 1000 {
        put(millis, out);
        out.extend_from_slice(b"ms");
        return;
    }
    let (minutes, rest) = (millis / 60_000, millis % 60_000);
    if minutes > 0 {
        put(minutes, out);
        out.push(b'm');
    }
    put(rest / 1000, out);
    let fraction = rest % 1000;
    if fraction > 0 {
        out.push(b'.');
        for (unit, more) in [(100, 99), (10, 9), (1, 0)] {
            out.push(b'0' + (fraction / unit % 10) as u8);
            // Trailing zeros say nothing.
            if more == 0 || fraction % unit == 0 {
                break;
            }
        }
    }
    out.push(b's');
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn ip(text: &str) -> ClientIp {
        ClientIp(text.parse().unwrap())
    }

    fn quotas(address: u32) -> RateQuotas {
        RateQuotas { address: Quota::per_minute(address), ..RateQuotas::default() }
    }

    fn ask(states: &RateStates, quotas: &RateQuotas, client: &str, at: u64) -> Result<Standing, Reject> {
        let mut taken = Taken::default();
        check_address(states, quotas, ip(client), Monotonic(at), &mut taken)?;
        Ok(taken.tightest.unwrap())
    }

    #[test]
    fn a_minute_holds_what_it_says_and_refills_evenly() {
        let (states, quotas) = (RateStates::new(100), quotas(60));
        for n in 0..60 {
            let standing = ask(&states, &quotas, "1.1.1.1", SECOND).unwrap();
            assert_eq!((standing.remaining, standing.reset), (59 - n, Duration::from_secs(u64::from(n) + 1)));
        }
        let refused = ask(&states, &quotas, "1.1.1.1", SECOND).unwrap_err();
        assert_eq!(refused, refuse(RateScope::Address, quotas.address.unwrap(), Duration::from_secs(1)));
        assert!(ask(&states, &quotas, "2.2.2.2", SECOND).is_ok());
        assert!(ask(&states, &quotas, "1.1.1.1", SECOND * 2 - 1).is_err());
        assert!(ask(&states, &quotas, "1.1.1.1", SECOND * 2).is_ok());
        assert!(ask(&states, &quotas, "1.1.1.1", SECOND * 2).is_err());
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let (states, quotas) = (RateStates::new(100), quotas(1));
        let mut taken = Taken::default();
        check_address(&states, &quotas, ip("1.1.1.1"), Monotonic(SECOND), &mut taken).unwrap();
        assert!(ask(&states, &quotas, "1.1.1.1", SECOND).is_err());
        taken.give_back(&states);
        taken.give_back(&states);
        assert!(ask(&states, &quotas, "1.1.1.1", SECOND).is_ok());
        assert!(ask(&states, &quotas, "1.1.1.1", SECOND).is_err());
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        let (states, quotas) = (RateStates::new(100), quotas(1));
        assert!(ask(&states, &quotas, "2001:db8::1", SECOND).is_ok());
        assert!(ask(&states, &quotas, "2001:db8::2", SECOND).is_err());
        assert!(ask(&states, &quotas, "2001:db8:0:1::1", SECOND).is_ok());
    }

    #[test]
    fn a_flood_of_addresses_is_bounded_and_still_limited() {
        let (states, quotas) = (RateStates::new(10), quotas(1));
        let admitted = (0..50_000u32)
            .filter(|n| ask(&states, &quotas, &std::net::Ipv4Addr::from(*n).to_string(), SECOND).is_ok())
            .count();
        assert!(states.tracked() <= 10 && admitted <= 10 + OVERFLOW_STATES, "{admitted}");
        states.sweep(Monotonic(SECOND));
        assert_eq!(states.tracked(), 10);
        states.sweep(Monotonic(SECOND * 62));
        assert_eq!(states.tracked(), 0);
    }

    #[test]
    fn what_a_flood_of_addresses_took_is_given_back() {
        let (states, quotas) = (RateStates::new(100_000), quotas(1));
        for n in 0..50_000u32 {
            ask(&states, &quotas, &std::net::Ipv4Addr::from(n).to_string(), SECOND).unwrap();
        }
        assert!(states.addresses.known.capacity() >= 50_000);
        states.sweep(Monotonic(SECOND * 62));
        assert!(states.addresses.known.capacity() <= 4096, "{}", states.addresses.known.capacity());
    }

    #[test]
    fn resets_read_as_openai_writes_them() {
        let text = |ms| {
            let mut out = Vec::new();
            write_reset(Duration::from_millis(ms), &mut out);
            String::from_utf8(out).unwrap()
        };
        let cases = [
            (0, "0ms"),
            (20, "20ms"),
            (1000, "1s"),
            (1500, "1.5s"),
            (1050, "1.05s"),
            (8640, "8.64s"),
            (360_000, "6m0s"),
            (61_001, "1m1.001s"),
        ];
        for (ms, expected) in cases {
            assert_eq!(text(ms), expected);
        }
    }
}
