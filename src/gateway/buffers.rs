//! Buffers: how many bytes calls in flight may hold, over all workers, and how many of them one user's or one network's.
//!
//! Owns the process-wide budgets, and each worker's stock of empty buffers. A call takes its share before it allocates and
//! gives it back when it ends, so that overload ends in a 503 and not in the kernel's choice of whom to kill. Whose a share is
//! is looked at only when a body has to be waited for or outgrows a buffer: most calls never get there.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::config::Limits;
use crate::domain::ids::UserId;
use crate::error::Reject;

/// What one read takes at most, and what a connection's buffer is made for.
pub const READ_BYTES: usize = 16 << 10;

/// Empty buffers a worker keeps for its next calls: 4 MiB.
const MAX_STOCK: usize = 256;

/// A worker's empty buffers.
struct Stock {
    empty: Vec<Vec<u8>>,
    /// The fewest there were since it was last looked through: so many, the lowest ones, nobody needed.
    spare: usize,
}

thread_local! {
    static STOCK: RefCell<Stock> = const { RefCell::new(Stock { empty: Vec::new(), spare: 0 }) };
}

/// An empty buffer for about [`READ_BYTES`].
pub fn take() -> Vec<u8> {
    STOCK.with_borrow_mut(|stock| {
        let buffer = stock.empty.pop();
        stock.spare = stock.spare.min(stock.empty.len());
        buffer.unwrap_or_else(|| Vec::with_capacity(READ_BYTES))
    })
}

/// Gives those buffers of this worker to the allocator that nobody needed since the last time. What a flood has left is gone
/// so, and what calls use stays.
pub fn trim() {
    STOCK.with_borrow_mut(|stock| {
        stock.empty.drain(..stock.spare.min(stock.empty.len()));
        stock.spare = stock.empty.len();
    });
}

/// Gives a buffer back. What has grown, or never was one of ours, goes to the allocator.
pub fn give(mut buffer: Vec<u8>) {
    if (READ_BYTES..=2 * READ_BYTES).contains(&buffer.capacity()) {
        buffer.clear();
        STOCK.with_borrow_mut(|stock| {
            if stock.empty.len() < MAX_STOCK {
                stock.empty.push(buffer);
            }
        });
    }
}

/// Whose the bytes of a call are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    User(UserId),
    /// An address, of IPv6 a /64, as rates know it.
    Network(u128),
}

/// What all calls together may hold, and what those of one owner.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub all: usize,
    pub user: usize,
    pub network: usize,
}

impl Bounds {
    /// Of calls that are passed on, and of those that are made here with a user's key.
    pub fn of_calls(limits: &Limits) -> Self {
        let all = limits.in_flight_bytes;
        let or = |set: usize, usual: usize| if set == 0 { usual } else { set };
        Self {
            all,
            user: or(limits.in_flight_bytes_per_user, all / 4),
            network: or(limits.in_flight_bytes_per_address, all / 2),
        }
    }

    /// Of logins and whatever else is answered here: strangers make them, so there are no users to tell apart.
    pub fn of_local_calls(limits: &Limits) -> Self {
        let all = limits.local_in_flight_bytes;
        Self { all, user: all, network: all / 4 }
    }
}

/// What has no room for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    All,
    User,
    Network,
}

impl Full {
    pub const ALL: [Self; 3] = [Self::All, Self::User, Self::Network];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::User => "user",
            Self::Network => "address",
        }
    }

    pub fn reject(self) -> Reject {
        Reject::Overloaded(match self {
            Self::All => "Too many bytes in flight",
            Self::User => "Too many bytes of this user's calls in flight",
            Self::Network => "Too many bytes of calls from this address in flight",
        })
    }
}

/// The budget that calls share.
pub struct Budget {
    used: AtomicUsize,
    all: AtomicUsize,
    user: AtomicUsize,
    network: AtomicUsize,
    /// What each owner's calls hold of it, of those whose bodies were waited for or are long.
    owners: Mutex<HashMap<Owner, usize>>,
    refused: [AtomicU64; 3],
}

impl Budget {
    pub fn new(bounds: Bounds) -> Arc<Self> {
        let budget = Self {
            used: AtomicUsize::new(0),
            all: AtomicUsize::new(0),
            user: AtomicUsize::new(0),
            network: AtomicUsize::new(0),
            owners: Mutex::default(),
            refused: Default::default(),
        };
        budget.set_bounds(bounds);
        Arc::new(budget)
    }

    pub fn set_bounds(&self, bounds: Bounds) {
        self.all.store(bounds.all, Ordering::Relaxed);
        self.user.store(bounds.user, Ordering::Relaxed);
        self.network.store(bounds.network, Ordering::Relaxed);
    }

    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Users and networks that are counted right now.
    pub fn owners(&self) -> usize {
        self.owners.lock().len()
    }

    /// Calls refused for each [`Full`].
    pub fn refused(&self) -> [u64; 3] {
        [0, 1, 2].map(|at| self.refused[at].load(Ordering::Relaxed))
    }

    /// A share of `bytes` for a call of these owners.
    ///
    /// # Errors
    /// [`Full::All`].
    pub fn take(self: &Arc<Self>, bytes: usize, owners: [Option<Owner>; 2]) -> Result<Share, Full> {
        let mut share = Share { budget: self.clone(), bytes: 0, owned: 0, owners };
        share.grow_unowned(bytes)?;
        Ok(share)
    }

    fn is_full(&self, what: Full) -> Full {
        self.refused[what as usize].fetch_add(1, Ordering::Relaxed);
        what
    }

    fn own(&self, owners: [Option<Owner>; 2], more: usize) -> Result<(), Full> {
        let mut held = self.owners.lock();
        for owner in owners.into_iter().flatten() {
            let (limit, what) = match owner {
                Owner::User(_) => (&self.user, Full::User),
                Owner::Network(_) => (&self.network, Full::Network),
            };
            let before = held.get(&owner).copied().unwrap_or_default();
            if before.saturating_add(more) > limit.load(Ordering::Relaxed) {
                return Err(self.is_full(what));
            }
        }
        for owner in owners.into_iter().flatten() {
            *held.entry(owner).or_default() += more;
        }
        Ok(())
    }

    fn disown(&self, owners: [Option<Owner>; 2], bytes: usize) {
        let mut held = self.owners.lock();
        for owner in owners.into_iter().flatten() {
            if let Some(left) = held.get_mut(&owner) {
                *left = left.saturating_sub(bytes);
                if *left == 0 {
                    held.remove(&owner);
                }
            }
        }
        if held.is_empty() && held.capacity() > 1024 {
            held.shrink_to_fit();
        }
    }
}

/// One call's part of the budget, given back when dropped.
pub struct Share {
    budget: Arc<Budget>,
    bytes: usize,
    /// What of it counts for its owners.
    owned: usize,
    owners: [Option<Owner>; 2],
}

impl Share {
    /// The call's body has to be waited for: all that it holds counts for its owners.
    ///
    /// # Errors
    /// [`Full`], when that is more than one of them may hold.
    pub fn waits(&mut self) -> Result<(), Full> {
        let more = self.bytes - self.owned;
        if more > 0 {
            self.budget.own(self.owners, more)?;
            self.owned = self.bytes;
        }
        Ok(())
    }

    /// Takes `more`.
    ///
    /// # Errors
    /// [`Full`]; nothing is taken then.
    pub fn grow(&mut self, more: usize) -> Result<(), Full> {
        self.budget.own(self.owners, more)?;
        if let Err(full) = self.grow_unowned(more) {
            self.budget.disown(self.owners, more);
            return Err(full);
        }
        self.owned += more;
        Ok(())
    }

    fn grow_unowned(&mut self, more: usize) -> Result<(), Full> {
        let before = self.budget.used.fetch_add(more, Ordering::Relaxed);
        if before.saturating_add(more) > self.budget.all.load(Ordering::Relaxed) {
            self.budget.used.fetch_sub(more, Ordering::Relaxed);
            return Err(self.budget.is_full(Full::All));
        }
        self.bytes += more;
        Ok(())
    }

    /// Makes room in `body` for `more` bytes, and takes what that adds to it. It doubles, but grows no further than to `most`
    /// without need: what is held is counted, not what has come.
    ///
    /// # Errors
    /// As [`Share::grow`].
    pub fn make_room(&mut self, body: &mut Vec<u8>, more: usize, most: usize) -> Result<(), Full> {
        let (needed, present) = (body.len().saturating_add(more), body.capacity());
        if needed <= present {
            return Ok(());
        }
        let wanted = needed.max(present.saturating_mul(2).min(most));
        self.grow(wanted - present)?;
        body.reserve_exact(wanted - body.len());
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
        if self.owned > 0 {
            self.budget.disown(self.owners, self.owned);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(all: usize, user: usize, network: usize) -> Arc<Budget> {
        Budget::new(Bounds { all, user, network })
    }

    const ANN: Option<Owner> = Some(Owner::User(UserId(1)));
    const BOB: Option<Owner> = Some(Owner::User(UserId(2)));
    const HERE: Option<Owner> = Some(Owner::Network(7));

    #[test]
    fn buffers_that_nobody_needs_are_not_kept() {
        let in_stock = || STOCK.with_borrow(|stock| stock.empty.len());
        (0..10).map(|_| take()).collect::<Vec<_>>().into_iter().for_each(give);
        assert_eq!(in_stock(), 10);
        trim();
        assert_eq!(in_stock(), 10, "all were needed since the stock was empty");
        (0..3).map(|_| take()).collect::<Vec<_>>().into_iter().for_each(give);
        trim();
        assert_eq!(in_stock(), 3);
        trim();
        assert_eq!(in_stock(), 0);
    }

    #[test]
    fn shares_never_add_up_to_more_than_the_limit() {
        let budget = budget(100, 100, 100);
        let mut first = budget.take(60, [ANN, HERE]).unwrap();
        assert_eq!(budget.take(50, [BOB, HERE]).err(), Some(Full::All));
        assert!(first.grow(40).is_ok());
        assert_eq!(first.grow(1), Err(Full::All));
        drop(first);
        assert_eq!((budget.used(), budget.owners()), (0, 0));
        assert!(budget.take(100, [BOB, HERE]).is_ok());
        assert_eq!(budget.refused(), [2, 0, 0]);
    }

    #[test]
    fn an_owner_s_bytes_are_bounded_and_those_of_others_are_not() {
        let budget = budget(1000, 50, 80);
        let mut first = budget.take(20, [ANN, HERE]).unwrap();
        let mut second = budget.take(40, [ANN, HERE]).unwrap();
        assert!(budget.owners() == 0, "nobody waits yet");
        assert_eq!((first.waits(), first.waits(), second.waits()), (Ok(()), Ok(()), Err(Full::User)));
        assert_eq!((first.grow(30), first.grow(1)), (Ok(()), Err(Full::User)));
        let mut third = budget.take(30, [BOB, HERE]).unwrap();
        assert_eq!((third.waits(), third.grow(1)), (Ok(()), Err(Full::Network)));
        let mut elsewhere = budget.take(1, [BOB, Some(Owner::Network(8))]).unwrap();
        assert_eq!(elsewhere.grow(19), Ok(()));
        drop(first);
        assert_eq!(second.waits(), Ok(()));
        drop((second, third, elsewhere));
        assert_eq!((budget.used(), budget.owners(), budget.refused()), (0, 0, [0, 2, 1]));
    }

    #[test]
    fn what_a_body_has_room_for_is_counted() {
        let budget = budget(1 << 20, 1 << 20, 1 << 20);
        let mut share = budget.take(0, [ANN, None]).unwrap();
        let mut body = Vec::with_capacity(READ_BYTES);
        let most = 100_000;
        while body.len() < most {
            let more = 1000.min(most - body.len());
            share.make_room(&mut body, more, most).unwrap();
            body.resize(body.len() + more, 0);
            assert!(
                budget.used() + READ_BYTES >= body.capacity(),
                "{} held, {} counted",
                body.capacity(),
                budget.used()
            );
        }
        assert_eq!(body.capacity(), most);
        assert_eq!(share.make_room(&mut body, 2 << 20, most), Err(Full::User));
        assert_eq!(body.capacity(), most);
    }
}
