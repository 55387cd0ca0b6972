//! The registry: the one place where a user's actor is found, made and sent to sleep.
//!
//! Owns the promise that there is never more than one actor of a user, and never more of them than configured. A load and a
//! change of standing of the same user never cross: both hold the user's shard.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::actor::{Surroundings, UserActor};
use super::ledger::{Account, AccountRow, Recovery};
use super::once;
use crate::actors::audit::{Action, Audit, Record, Target};
use crate::clock::UnixMillis;
use crate::config::Plan;
use crate::domain::ids::UserId;
use crate::domain::meters::{MeterName, Micro};
use crate::domain::user::{Standing, User};
use crate::error::Reject;
use crate::store::{StoreError, tables};

const SHARDS: usize = 64;
/// Rounds of [`once::sweep`] at once, each a batch of the store.
const MAX_KEY_SWEEPS: usize = 20;

/// User ids are small counted numbers; one multiplication spreads them.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte) ^ self.0);
        }
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

type ActorMap = HashMap<UserId, Arc<UserActor>, BuildHasherDefault<IdHasher>>;

pub struct Registry {
    shards: Vec<Mutex<ActorMap>>,
    around: Arc<Surroundings>,
    live: AtomicUsize,
    max_live: usize,
    idle_ms: u64,
    audit: OnceLock<Audit>,
    /// Times at which credentials came to be whose text was made elsewhere.
    arrivals: AtomicU64,
}

impl Registry {
    pub fn new(around: Arc<Surroundings>, max_live: usize, idle_ms: u64) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        let (live, arrivals) = (AtomicUsize::new(0), AtomicU64::new(0));
        Self { shards, around, live, max_live, idle_ms, audit: OnceLock::new(), arrivals }
    }

    /// From now on, what becomes of holds that a crash left open is written to this trail. The first one given stays.
    pub fn audit_to(&self, audit: Audit) {
        let _ = self.audit.set(audit);
    }

    pub fn around(&self) -> &Arc<Surroundings> {
        &self.around
    }

    fn shard(&self, user: UserId) -> &Mutex<ActorMap> {
        &self.shards[user.0 as usize % SHARDS]
    }

    /// The user's actor, from memory or from the store; `None` when there is no such user.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`], or [`Reject::Overloaded`] when no actor can be sent to sleep to make room.
    pub fn actor(&self, user: UserId) -> Result<Option<Arc<UserActor>>, Reject> {
        let mut shard = self.shard(user).lock();
        if let Some(actor) = shard.get(&user) {
            return Ok(Some(actor.clone()));
        }
        if self.live.load(Ordering::Relaxed) >= self.max_live {
            // The own shard's share of room is enough, and needs no other lock.
            self.sleep_idle(&mut shard, self.around.clock.now(), 0);
            if self.live.load(Ordering::Relaxed) >= self.max_live {
                return Err(Reject::Overloaded("Too many users at once"));
            }
        }
        let loaded = self.load(user).map_err(|error| {
            tracing::error!(%user, %error, "a user could not be loaded");
            self.around.metrics.store_error();
            Reject::StoreUnavailable
        })?;
        let Some(actor) = loaded else { return Ok(None) };
        shard.insert(user, actor.clone());
        self.live.fetch_add(1, Ordering::Relaxed);
        Ok(Some(actor))
    }

    /// The user's actor, if he has one now.
    pub fn live_actor(&self, user: UserId) -> Option<Arc<UserActor>> {
        self.shard(user).lock().get(&user).cloned()
    }

    fn load(&self, id: UserId) -> Result<Option<Arc<UserActor>>, StoreError> {
        let store = self.around.committer.store();
        let Some(user) = tables::read::<User>(store, &tables::user(id))? else { return Ok(None) };
        let row = tables::read::<AccountRow>(store, &tables::meters(id))?;
        let mut account = row.map(Account::from_row).unwrap_or_default();
        if !account.conserves() {
            return Err(StoreError::Corrupt(format!("the account of user {id} does not add up")));
        }
        // A sleeping actor has no holds, so these are a crash's.
        let found = account.recover_holds(self.around.recovery);
        let actor = Arc::new(UserActor::new(Standing::from(&user), account, self.around.clone()));
        actor.give_missing();
        if !found.is_empty() {
            actor.recover_keys()?;
            tracing::warn!(user = %id, holds = ?found, how = ?self.around.recovery, "holds found open were ended");
            self.audit_recovery(&user, &found);
            actor.write_now();
        }
        Ok(Some(actor))
    }

    /// Not waited for: this is the request path. The record is on its way to the disk before the account's row is.
    fn audit_recovery(&self, user: &User, found: &[(MeterName, Micro)]) {
        let Some(audit) = self.audit.get() else { return };
        let amounts: serde_json::Map<_, _> =
            found.iter().map(|(meter, amount)| (meter.to_string(), amount.to_json())).collect();
        let how = match self.around.recovery {
            Recovery::Charge => "charged",
            Recovery::Refund => "refunded",
        };
        audit.note_soon(
            Record::of(Action::HoldRecovered).on(Target::from(user)).with("holds", how).with("amounts", amounts),
        );
    }

    /// Puts what plans give in force: users who are in use get what is new at once, others when they are loaded.
    pub fn set_plans(&self, plans: &[Plan]) {
        if **self.around.plans.load() == *plans {
            return;
        }
        self.around.plans.store(Arc::new(plans.to_vec()));
        // Whoever is loaded from now on goes by the new ones, and whoever was before is in a shard.
        for shard in &self.shards {
            shard.lock().values().for_each(UserActor::give_missing);
        }
    }

    /// Puts a user's new standing in force. The row must be on disk already: a load that runs at this moment has either
    /// read it or is finished and is corrected here.
    pub fn set_standing(&self, user: &User) {
        if let Some(actor) = self.shard(user.id).lock().get(&user.id) {
            actor.set_standing(Standing::from(user));
        }
    }

    /// Notes that there are credentials by now that may have been asked for before, and were unknown then.
    pub fn credentials_came(&self) {
        self.arrivals.fetch_add(1, Ordering::AcqRel);
    }

    /// How often [`Registry::credentials_came`] was said: whoever keeps in mind what is unknown keeps this beside it.
    pub fn arrivals(&self) -> u64 {
        self.arrivals.load(Ordering::Acquire)
    }

    /// Makes every credential of the user be read again. The change must be on disk already.
    pub fn forget_credentials(&self, user: UserId) {
        if let Some(actor) = self.shard(user).lock().get(&user) {
            actor.forget_credentials();
        }
    }

    /// Sends idle actors to sleep and has others write back what waits for an occasion. To be called every few seconds.
    pub fn sweep(&self) {
        let now = self.around.clock.now();
        for shard in &self.shards {
            let mut shard = shard.lock();
            for actor in shard.values() {
                actor.write_back();
            }
            self.sleep_idle(&mut shard, now, self.idle_ms);
        }
    }

    fn sleep_idle(&self, shard: &mut ActorMap, now: UnixMillis, idle_ms: u64) {
        let before = shard.len();
        // An actor that somebody else holds must stay the only one of its user.
        shard.retain(|_, actor| Arc::strong_count(actor) > 1 || !actor.is_idle(now, idle_ms));
        self.live.fetch_sub(before - shard.len(), Ordering::Relaxed);
    }

    /// Forgets idempotency keys whose time has passed. To be called every few seconds; a backlog takes several calls.
    pub async fn forget_old_keys(&self) {
        let around = &self.around;
        for _ in 0..MAX_KEY_SWEEPS {
            match once::sweep(&around.committer, &around.kept, around.clock.now(), around.once.window).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!(%error, "expired idempotency keys could not be removed; they do not count any more");
                    return;
                }
            }
        }
    }

    /// Has everything written that still waits: before the store thread stops.
    pub fn write_back_all(&self) {
        for shard in &self.shards {
            for actor in shard.lock().values() {
                actor.write_back();
            }
        }
    }

    pub fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    pub fn holds_open(&self) -> i64 {
        self.around.holds_open.load(Ordering::Relaxed)
    }
}
