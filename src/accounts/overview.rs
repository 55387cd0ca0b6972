//! What all users together are doing now: open sessions, today's spending, who spends most.
//!
//! Owns the reading of it, which looks at every session and every account: in the background, one at a time, and kept for a
//! minute, so that a dashboard that is opened twice reads once. Never changes anything.

use std::sync::Arc;
use std::time::Duration;

use super::Accounts;
use super::usage::{self, ByMeter};
use crate::actors::user::ledger::{Account, AccountRow};
use crate::clock::UnixMillis;
use crate::domain::ids::UserId;
use crate::domain::meters::Micro;
use crate::domain::session::{Principal, Session};
use crate::error::Reject;
use crate::store::{Order, StoreError, prefix_end, tables};

const KEPT_FOR: Duration = Duration::from_secs(60);
/// Users who are named among those who spend most.
const TOP: usize = 10;
/// Rows read at once.
const CHUNK: usize = 500;

/// What was found, and when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overview {
    pub at: UnixMillis,
    /// Of users.
    pub active_sessions: u64,
    /// Spent since the last day was closed.
    pub today: ByMeter,
    /// By what they ever spent of `meters`, most first; those who spent nothing are left out.
    pub top: Vec<(UserId, Micro)>,
}

/// The newest overview. Who asks while it is being read waits for it.
#[derive(Default)]
pub(super) struct Kept(tokio::sync::Mutex<Option<Arc<Overview>>>);

impl Accounts {
    /// At most a minute old. `meters`: by which of them users are ranked; the same at each call.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`].
    pub async fn overview(&self, meters: &'static [&'static str]) -> Result<Arc<Overview>, Reject> {
        let mut kept = self.overview.0.lock().await;
        let now = self.clock.now();
        if let Some(known) = kept.as_ref().filter(|known| now < known.at.plus(KEPT_FOR)) {
            return Ok(known.clone());
        }
        let (committer, users) = (self.committer.clone(), self.users.clone());
        let read = move || {
            let store = committer.store();
            let mut found = Overview { at: now, active_sessions: count_sessions(store, now)?, ..Overview::default() };
            let (mut from, end) = (tables::METERS.to_vec(), prefix_end(tables::METERS));
            loop {
                let rows = store.range(&from, &end, CHUNK, Order::Ascending)?;
                let Some((last, _)) = rows.last() else { return Ok(found) };
                from = [last.as_slice(), &[0]].concat();
                for (key, raw) in rows {
                    let Some(user) = tables::parse_meters(&key) else { continue };
                    let account = match users.live_actor(user) {
                        Some(actor) => actor.account_as_it_is(),
                        None => Account::from_row(tables::decode::<AccountRow>(&raw)?),
                    };
                    let (today, ever) = usage::spent_since(store, user, &account)?;
                    usage::add(&mut found.today, &today);
                    let sum = meters.iter().filter_map(|name| ever.get(*name));
                    rank(&mut found.top, user, sum.fold(Micro::ZERO, |sum, spent| sum.saturating_add(*spent)));
                }
            }
        };
        let found = Arc::new(self.reading(read).await?);
        *kept = Some(found.clone());
        Ok(found)
    }
}

fn rank(top: &mut Vec<(UserId, Micro)>, user: UserId, spent: Micro) {
    let is_low = top.len() == TOP && top.last().is_some_and(|(_, least)| *least >= spent);
    if spent == Micro::ZERO || is_low {
        return;
    }
    let at = top.partition_point(|(_, other)| *other >= spent);
    top.insert(at, (user, spent));
    top.truncate(TOP);
}

fn count_sessions(store: &dyn crate::store::Store, now: UnixMillis) -> Result<u64, StoreError> {
    let (mut from, end, mut open) = (tables::SESSIONS.to_vec(), prefix_end(tables::SESSIONS), 0);
    loop {
        let rows = store.range(&from, &end, CHUNK, Order::Ascending)?;
        let Some((last, _)) = rows.last() else { return Ok(open) };
        from = [last.as_slice(), &[0]].concat();
        for (_, raw) in rows {
            let session: Session = tables::decode(&raw)?;
            let is_open = session.expires_at > now && matches!(session.principal, Principal::User(_));
            open += u64::from(is_open);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ten_who_spent_most_are_named() {
        let mut top = Vec::new();
        for n in 0..50u64 {
            rank(&mut top, UserId(n), Micro(((n * 7) % 50) as i64));
        }
        let amounts: Vec<i64> = top.iter().map(|(_, spent)| spent.0).collect();
        assert_eq!(amounts, (40..50).rev().collect::<Vec<_>>());
        let mut none = Vec::new();
        rank(&mut none, UserId(1), Micro::ZERO);
        assert_eq!(none, []);
    }
}
