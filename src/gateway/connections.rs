//! Client connections: how many there may be, how many of one address, and who must leave when there is no room.
//!
//! Owns the count of open connections and that of each address. At a limit those leave that have waited longest without a whole
//! request, so that idle and half-sent connections never keep a caller out. Trusted proxies bring many people's calls, so their
//! connections count for no address; their calls do, one by one, for the address they were forwarded for. Never reads or writes
//! a byte of a connection.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use tokio::sync::Notify;

use super::deadline::{Deadlines, ask_to_leave};
use crate::config::Limits;
use crate::domain::addresses::customer_network;
use crate::error::Reject;

/// How long somebody who leaves is waited for before it is looked again.
const LEAVING: Duration = Duration::from_millis(10);

pub struct Connections {
    open: AtomicUsize,
    /// How many the process's descriptors leave room for.
    room: AtomicUsize,
    /// Connections, and calls that were forwarded, by address. Nobody is in it with 0.
    of_address: DashMap<IpAddr, usize>,
    workers: Vec<Arc<Deadlines>>,
    asked_to_leave: AtomicU64,
    somebody_left: Notify,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoom {
    Anywhere,
    /// For this address.
    Address,
}

impl Connections {
    pub fn new(workers: Vec<Arc<Deadlines>>) -> Self {
        Self {
            open: AtomicUsize::new(0),
            room: AtomicUsize::new(usize::MAX),
            of_address: DashMap::new(),
            workers,
            asked_to_leave: AtomicU64::new(0),
            somebody_left: Notify::new(),
        }
    }

    pub fn set_room(&self, room: usize) {
        self.room.store(room, Ordering::Relaxed);
    }

    pub fn workers(&self) -> &[Arc<Deadlines>] {
        &self.workers
    }

    pub fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Addresses that have a connection or a forwarded call.
    pub fn addresses(&self) -> usize {
        self.of_address.len()
    }

    /// How many were closed before they had asked for anything, or between two requests, to make room.
    pub fn asked_to_leave(&self) -> u64 {
        self.asked_to_leave.load(Ordering::Relaxed)
    }

    /// How many there may be.
    pub fn most(&self, limits: &Limits) -> usize {
        limits.max_connections.min(self.room.load(Ordering::Relaxed))
    }

    /// How many there may be of one address: however few there may be at all, one address has never more than three quarters.
    fn most_of_address(&self, limits: &Limits) -> usize {
        let most = self.most(limits);
        match limits.connections_per_address {
            0 => usize::MAX,
            limit => limit.min(most - most / 4),
        }
    }

    /// Above four fifths of the limit there is no room for answers to those who are refused anyway.
    pub fn is_scarce(&self, limits: &Limits) -> bool {
        self.open().saturating_mul(5) > self.most(limits).saturating_mul(4)
    }

    /// Takes a place, until [`Self::leave`]. `address`: as [`customer_network`] has it; `None` for a trusted proxy.
    ///
    /// # Errors
    /// There is none. [`Self::make_room`] may help.
    pub fn enter(&self, limits: &Limits, address: Option<IpAddr>) -> Result<(), NoRoom> {
        let is_full = self.open.fetch_add(1, Ordering::AcqRel) >= self.most(limits);
        let is_over = address.is_some_and(|of| self.count(of) >= self.most_of_address(limits));
        if is_full || is_over {
            self.uncount(address);
            // Its own idle connections go before those of others.
            return Err(if is_over { NoRoom::Address } else { NoRoom::Anywhere });
        }
        Ok(())
    }

    pub fn leave(&self, address: Option<IpAddr>) {
        self.uncount(address);
        self.somebody_left.notify_waiters();
    }

    fn uncount(&self, address: Option<IpAddr>) {
        self.open.fetch_sub(1, Ordering::AcqRel);
        if let Some(address) = address {
            self.discount(address);
        }
    }

    /// Asks some of those who wait to leave, only those of one address if it is named. Says whether anybody is leaving.
    pub fn make_room(&self, of: Option<IpAddr>) -> bool {
        let leaving = ask_to_leave(&self.workers, of);
        self.asked_to_leave.fetch_add(leaving.asked as u64, Ordering::Relaxed);
        !leaving.is_nobody()
    }

    /// Returns when somebody has left, or after a moment.
    pub async fn somebody_left(&self) {
        let _ = tokio::time::timeout(LEAVING, self.somebody_left.notified()).await;
    }

    /// A place for a call that a trusted proxy has brought, among those of the address it is for.
    ///
    /// # Errors
    /// [`Reject::TooManyInFlight`].
    pub fn enter_forwarded(&self, limits: &Limits, client: IpAddr) -> Result<Forwarded<'_>, Reject> {
        let (address, most) = (customer_network(client), self.most_of_address(limits));
        let before = self.count(address);
        // Dropping the place undoes the count.
        let place = Forwarded { connections: self, address };
        let limit = u32::try_from(most).unwrap_or(u32::MAX);
        if before < most { Ok(place) } else { Err(Reject::TooManyInFlight { limit }) }
    }

    /// Counts one more, and says how many there were before.
    fn count(&self, address: IpAddr) -> usize {
        let mut counted = self.of_address.entry(address).or_insert(0);
        *counted += 1;
        *counted - 1
    }

    fn discount(&self, address: IpAddr) {
        if let Entry::Occupied(mut counted) = self.of_address.entry(address) {
            *counted.get_mut() -= 1;
            if *counted.get() == 0 {
                counted.remove();
            }
        }
    }
}

/// A forwarded call's place, given back when dropped.
pub struct Forwarded<'a> {
    connections: &'a Connections,
    address: IpAddr,
}

impl Drop for Forwarded<'_> {
    fn drop(&mut self) {
        self.connections.discount(self.address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, UnixMillis};
    use crate::gateway::deadline::Deadline;

    fn limits(max_connections: usize, connections_per_address: usize) -> Limits {
        Limits { max_connections, connections_per_address, ..Limits::default() }
    }

    fn address(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, last]))
    }

    fn connections() -> Connections {
        Connections::new(vec![Deadlines::new(Clock::manual(UnixMillis(0)).0)])
    }

    /// A connection that waits for its first request.
    fn idle(connections: &Connections, address: Option<IpAddr>) -> Deadline {
        let deadline = connections.workers()[0].open(address);
        deadline.waits();
        deadline
    }

    #[test]
    fn one_address_has_its_limit_and_leaves_room_for_others() {
        let (all, limits) = (connections(), limits(100, 3));
        for _ in 0..3 {
            assert_eq!(all.enter(&limits, address(1)), Ok(()));
        }
        assert_eq!(all.enter(&limits, address(1)), Err(NoRoom::Address));
        assert_eq!(all.open(), 3, "who was refused does not count");
        assert_eq!(all.enter(&limits, address(2)), Ok(()));
        assert_eq!(all.enter(&limits, None), Ok(()), "a proxy has no limit of its own");
        all.leave(address(1));
        assert_eq!(all.enter(&limits, address(1)), Ok(()));
        for address in [address(1), address(1), address(1), address(2), None] {
            all.leave(address);
        }
        assert_eq!((all.open(), all.addresses()), (0, 0), "nothing is remembered of who has left");
    }

    #[test]
    fn however_few_there_may_be_one_address_never_has_all() {
        let all = connections();
        all.set_room(40);
        let limits = limits(20_000, 10_000);
        assert_eq!((all.most(&limits), all.most_of_address(&limits)), (40, 30));
        let taken = (0..40).filter(|_| all.enter(&limits, address(1)).is_ok()).count();
        assert_eq!((taken, all.is_scarce(&limits)), (30, false));
        let others = (0..40).filter(|n| all.enter(&limits, address(10 + n)).is_ok()).count();
        assert_eq!((others, all.is_scarce(&limits)), (10, true));
        assert_eq!(all.enter(&limits, address(2)), Err(NoRoom::Anywhere));
    }

    #[test]
    fn who_waits_leaves_for_who_comes() {
        let (all, limits) = (connections(), limits(2, 0));
        let waiting = idle(&all, address(1));
        assert_eq!(all.enter(&limits, address(1)), Ok(()));
        assert_eq!(all.enter(&limits, address(1)), Ok(()));
        assert_eq!((all.enter(&limits, address(2)), all.make_room(None)), (Err(NoRoom::Anywhere), true));
        assert!(waiting.must_leave() && all.make_room(None), "it is still here");
        all.leave(address(1));
        drop(waiting);
        assert_eq!(all.enter(&limits, address(2)), Ok(()));
        assert_eq!((all.enter(&limits, address(3)), all.make_room(None)), (Err(NoRoom::Anywhere), false));
        assert_eq!((all.asked_to_leave(), all.open(), all.addresses()), (1, 2, 2));
    }

    #[test]
    fn who_is_over_the_limit_of_an_address_drives_nobody_else_out() {
        let (all, limits) = (connections(), limits(1, 1));
        let (neighbour, own) = (idle(&all, address(2)), idle(&all, address(1)));
        assert_eq!(all.enter(&limits, address(1)), Ok(()));
        assert_eq!(all.enter(&limits, address(1)), Err(NoRoom::Address), "also where all places are taken");
        assert!(all.make_room(address(1)));
        assert!(own.must_leave() && !neighbour.must_leave());
    }

    #[test]
    fn forwarded_calls_count_for_the_address_they_are_for() {
        let (all, limits) = (connections(), limits(100, 2));
        let of = |text: &str| all.enter_forwarded(&limits, text.parse().unwrap());
        let held = [of("2001:db8::1").ok().unwrap(), of("2001:db8::2").ok().unwrap()];
        assert_eq!(of("2001:db8::3").err(), Some(Reject::TooManyInFlight { limit: 2 }), "a /64 is one address");
        assert!(of("2001:db8:0:1::1").is_ok());
        drop(held);
        assert!(of("2001:db8::3").is_ok());
        assert_eq!(all.addresses(), 0);
    }
}
