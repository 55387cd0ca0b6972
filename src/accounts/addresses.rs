//! The address book: the rules of the config and those that admins made, as one set ready for lookups.
//!
//! Owns the rows of admins' rules and the set in force. A rule is on disk before it is in force, and in force before it is
//! answered. Never decides what becomes of an address that has failed too often; that is [`super::blocks`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::MAX_TRIES;
use crate::clock::UnixMillis;
use crate::config::Access;
use crate::domain::addresses::{AddressRule, AddressSet, RuleKind, Verdict};
use crate::error::Reject;
use crate::store::committer::Committer;
use crate::store::{Batch, Order, StoreError, prefix_end, tables};
use crate::telemetry::metrics::Metrics;

/// Rules admins may make.
pub const MAX_RULES: usize = 200_000;
/// Characters of a rule's description.
pub const MAX_DESCRIPTION: usize = 500;
/// Rows read or removed at once.
const CHUNK: usize = 1000;

/// A rule that an admin made, as its row holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredRule {
    pub id: u64,
    pub kind: RuleKind,
    pub network: IpNet,
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default)]
    pub expires_at: Option<UnixMillis>,
    pub created_by: String,
    pub created_at: UnixMillis,
}

/// What an admin says of a new rule.
#[derive(Clone, Debug)]
pub struct NewRule {
    pub kind: RuleKind,
    pub network: IpNet,
    pub description: Option<String>,
    pub expires_at: Option<UnixMillis>,
    pub created_by: String,
}

/// All address rules.
pub struct AddressBook {
    committer: Committer,
    metrics: Arc<Metrics>,
    set: ArcSwap<AddressSet>,
    whitelist: AtomicBool,
    rules: Mutex<Rules>,
}

struct Rules {
    configured: Vec<AddressRule>,
    made: BTreeMap<u64, StoredRule>,
}

impl Rules {
    fn set(&self) -> Arc<AddressSet> {
        let made =
            self.made.values().map(|r| AddressRule { network: r.network, kind: r.kind, expires_at: r.expires_at });
        Arc::new(AddressSet::build(self.configured.iter().copied().chain(made)))
    }
}

fn configured(access: &Access) -> Vec<AddressRule> {
    let rules = |list: &[IpNet], kind| -> Vec<AddressRule> {
        list.iter().map(|network| AddressRule { network: *network, kind, expires_at: None }).collect()
    };
    [rules(&access.allow, RuleKind::Allow), rules(&access.deny, RuleKind::Deny)].concat()
}

impl AddressBook {
    /// Reads the rules that admins made.
    ///
    /// # Errors
    /// The store cannot be read, or holds a rule that cannot be read: coming up without it would open what was closed.
    pub fn open(committer: Committer, metrics: Arc<Metrics>, access: &Access) -> Result<Self, StoreError> {
        let mut made = BTreeMap::new();
        let (mut from, end) = (tables::ADDRESS_RULES.to_vec(), prefix_end(tables::ADDRESS_RULES));
        loop {
            let rows = committer.store().range(&from, &end, CHUNK, Order::Ascending)?;
            let Some((last, _)) = rows.last() else { break };
            from = [last.as_slice(), &[0]].concat();
            for (_, row) in &rows {
                let rule: StoredRule = tables::decode(row)?;
                made.insert(rule.id, rule);
            }
        }
        let rules = Rules { configured: configured(access), made };
        Ok(Self {
            set: ArcSwap::new(rules.set()),
            whitelist: AtomicBool::new(access.whitelist),
            rules: Mutex::new(rules),
            committer,
            metrics,
        })
    }

    /// What the rules say of an address.
    pub fn verdict(&self, addr: IpAddr, now: UnixMillis) -> Verdict {
        self.set.load().verdict(addr, now)
    }

    /// Whether an address may come in as far as the rules go: with the whitelist on, only an allowed one.
    pub fn admits(&self, addr: IpAddr, now: UnixMillis) -> bool {
        match self.verdict(addr, now) {
            Verdict::Allowed => true,
            Verdict::Denied => false,
            Verdict::Unmatched => !self.whitelist.load(Ordering::Relaxed),
        }
    }

    /// Takes the rules of a reloaded config.
    pub fn reconfigure(&self, access: &Access) {
        let mut rules = self.rules.lock();
        rules.configured = configured(access);
        self.set.store(rules.set());
        self.whitelist.store(access.whitelist, Ordering::Relaxed);
    }

    /// Makes a rule; in force when this returns.
    ///
    /// # Errors
    /// [`Reject::Invalid`] for a description or time that does not fit; [`Reject::Conflict`] at the bound.
    pub async fn add(self: &Arc<Self>, rule: NewRule, now: UnixMillis) -> Result<StoredRule, Reject> {
        if rule.description.as_ref().is_some_and(|text| text.chars().count() > MAX_DESCRIPTION) {
            return Err(Reject::Invalid(vec![format!("description: at most {MAX_DESCRIPTION} characters")]));
        }
        if rule.expires_at.is_some_and(|at| at <= now) {
            return Err(Reject::Invalid(vec!["expires_at: lies in the past".into()]));
        }
        if self.rules.lock().made.len() >= MAX_RULES {
            return Err(Reject::Conflict(format!("There are {MAX_RULES} rules already")));
        }
        for _ in 0..MAX_TRIES {
            let mut batch = Batch::default();
            let id =
                super::next_number(self.committer.store(), "address_rule", &mut batch).map_err(|e| self.failed(&e))?;
            let NewRule { kind, network, description, expires_at, created_by } = rule.clone();
            let stored = StoredRule { id, kind, network, description, expires_at, created_by, created_at: now };
            batch.put(tables::address_rule(id), tables::encode(&stored).map_err(|e| self.failed(&e))?);
            match self.commit(batch, vec![id]).await {
                Ok(()) => return Ok(stored),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(self.failed(&error)),
            }
        }
        Err(super::too_busy())
    }

    /// Removes a rule that an admin made; out of force when this returns. `kind` narrows what is found under the id.
    ///
    /// # Errors
    /// [`Reject::NotFound`].
    pub async fn remove(self: &Arc<Self>, id: u64, kind: Option<RuleKind>) -> Result<StoredRule, Reject> {
        let key = tables::address_rule(id);
        let raw = self.committer.store().get(&key).map_err(|e| self.failed(&e))?.ok_or(Reject::NotFound)?;
        let stored: StoredRule = tables::decode(&raw).map_err(|e| self.failed(&e))?;
        if kind.is_some_and(|kind| kind != stored.kind) {
            return Err(Reject::NotFound);
        }
        let mut batch = Batch::default();
        batch.require_equal(key.clone(), raw).delete(key);
        match self.commit(batch, vec![id]).await {
            Ok(()) => Ok(stored),
            // Somebody else has just removed it.
            Err(StoreError::Conflict { .. }) => Err(Reject::NotFound),
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// One page of the rules that admins made, oldest first, and how many there are.
    pub fn list(&self, kind: Option<RuleKind>, page: usize, page_size: usize) -> (Vec<StoredRule>, usize) {
        let rules = self.rules.lock();
        let matching = || rules.made.values().filter(|rule| kind.is_none_or(|kind| rule.kind == kind));
        let skip = page.saturating_sub(1).saturating_mul(page_size);
        (matching().skip(skip).take(page_size).cloned().collect(), matching().count())
    }

    /// Removes rules that have expired. They do not count since then; this only clears them away.
    ///
    /// # Errors
    /// The store failed; the rules stay until the next time.
    pub async fn expire(self: &Arc<Self>, now: UnixMillis) -> Result<usize, StoreError> {
        let expired: Vec<u64> = {
            let rules = self.rules.lock();
            let gone = rules.made.values().filter(|rule| rule.expires_at.is_some_and(|at| at <= now));
            gone.map(|rule| rule.id).collect()
        };
        for chunk in expired.chunks(CHUNK) {
            let mut batch = Batch::default();
            for id in chunk {
                batch.delete(tables::address_rule(*id));
            }
            self.commit(batch, chunk.to_vec()).await?;
        }
        Ok(expired.len())
    }

    /// Commits, then puts the rows of `ids` in force as they are on disk. Not given up when the caller is dropped.
    async fn commit(self: &Arc<Self>, batch: Batch, ids: Vec<u64>) -> Result<(), StoreError> {
        let book = self.clone();
        let task = tokio::spawn(async move {
            book.committer.commit(batch).await?;
            // Building a large set takes some milliseconds, which no worker's thread should lose.
            let applied = tokio::task::spawn_blocking(move || book.apply(&ids));
            applied.await.unwrap_or_else(|_| Err(StoreError::Failed("address rules were not applied".into())))
        });
        task.await.unwrap_or_else(|_| Err(StoreError::Failed("a commit was given up".into())))
    }

    fn apply(&self, ids: &[u64]) -> Result<(), StoreError> {
        let mut rules = self.rules.lock();
        for id in ids {
            // What is on disk now, not what this change made of it: another change may have come after it.
            match tables::read(self.committer.store(), &tables::address_rule(*id))? {
                Some(rule) => rules.made.insert(*id, rule),
                None => rules.made.remove(id),
            };
        }
        self.set.store(rules.set());
        Ok(())
    }

    fn failed(&self, error: &StoreError) -> Reject {
        tracing::error!(%error, "address rules: the store failed");
        self.metrics.store_error();
        Reject::StoreUnavailable
    }
}
