//! When API keys were last used.
//!
//! Owns one small row for each key that has been used (`ku/`), beside the key's own, which changes under preconditions only;
//! and the uses that wait to be written. A call pays for one load and one comparison; a use that comes a minute after the
//! last one noted goes into a bounded set, which timed work writes. What finds no room is counted and forgotten: the key's
//! next use comes a minute later. Never leaves the row of a key that is gone.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::Accounts;
use crate::clock::UnixMillis;
use crate::domain::ids::{CredentialId, UserId};
use crate::error::Reject;
use crate::store::{Batch, Order, StoreError, prefix_end, tables};

/// How exact the time of a last use is, in milliseconds.
const STEP_MS: u64 = 60_000;
/// Keys whose use waits to be written, at most: some 5 MiB.
const MAX_WAITING: usize = 131_072;
/// Rows of one commit. Each is looked up by the store thread, for which all other commits wait.
const PER_COMMIT: usize = 200;
/// More than a user may have keys.
const MAX_ROWS: usize = 4096;

type Whose = (UserId, CredentialId);

/// The last use of a key that is kept in memory.
#[derive(Debug)]
pub struct UseMark {
    whose: Whose,
    /// Unix milliseconds of the use that was noted last.
    noted: AtomicU64,
}

impl UseMark {
    pub fn new(user: UserId, key: CredentialId) -> Self {
        Self { whose: (user, key), noted: AtomicU64::new(0) }
    }

    /// Takes note of a use, unless one of the last minute has been noted. A clock that went back counts as a later time.
    pub fn touch(&self, now: UnixMillis, uses: &KeyUses) {
        let noted = self.noted.load(Ordering::Relaxed);
        if now.0.wrapping_sub(noted) < STEP_MS {
            return;
        }
        // Of several calls at once, one does it.
        if self.noted.compare_exchange(noted, now.0, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            uses.note(self.whose, now);
        }
    }
}

/// Uses that are not on disk yet, and what became of those before them.
#[derive(Debug, Default)]
pub struct KeyUses {
    waiting: Mutex<HashMap<Whose, UnixMillis>>,
    pub noted: AtomicU64,
    pub written: AtomicU64,
    /// For want of room.
    pub dropped: AtomicU64,
}

impl KeyUses {
    fn note(&self, whose: Whose, at: UnixMillis) {
        self.noted.fetch_add(1, Ordering::Relaxed);
        let mut waiting = self.waiting.lock();
        if waiting.len() < MAX_WAITING || waiting.contains_key(&whose) {
            waiting.insert(whose, at);
        } else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Keys whose use waits to be written.
    pub fn waiting(&self) -> usize {
        self.waiting.lock().len()
    }

    /// By users, so that rows which lie together are written together.
    fn in_order(&self) -> Vec<(Whose, UnixMillis)> {
        let mut uses: Vec<_> = self.waiting.lock().iter().map(|(whose, at)| (*whose, *at)).collect();
        uses.sort_unstable();
        uses
    }

    /// Forgets what has been dealt with; a later use of the same key stays.
    fn done(&self, uses: &[(Whose, UnixMillis)]) {
        let mut waiting = self.waiting.lock();
        for (whose, at) in uses {
            if waiting.get(whose) == Some(at) {
                waiting.remove(whose);
            }
        }
    }
}

impl Accounts {
    /// When a key was last used, to the minute; `None`: never, as far as is known.
    pub(super) fn last_use(&self, user: UserId, key: CredentialId) -> Result<Option<UnixMillis>, Reject> {
        let waiting = self.key_uses.waiting.lock().get(&(user, key)).copied();
        match waiting {
            Some(at) => Ok(Some(at)),
            None => Ok(self.load::<UnixMillis>(tables::key_use(user, key))?.map(|row| row.value)),
        }
    }

    /// As [`Accounts::last_use`], of these keys of a user.
    pub(super) fn last_uses(
        &self,
        user: UserId,
        keys: impl Iterator<Item = CredentialId>,
    ) -> Result<HashMap<CredentialId, UnixMillis>, Reject> {
        let prefix = tables::key_uses_of_user(user);
        let rows = self.store().range(&prefix, &prefix_end(&prefix), MAX_ROWS, Order::Ascending);
        let mut uses = HashMap::new();
        for (key, row) in rows.map_err(|error| self.failed(&error))? {
            let at = tables::decode::<UnixMillis>(&row).map_err(|error| self.failed(&error))?;
            uses.extend(tables::trailing_id(&key).map(|id| (CredentialId(id), at)));
        }
        let waiting = self.key_uses.waiting.lock();
        uses.extend(keys.filter_map(|key| waiting.get(&(user, key)).map(|at| (key, *at))));
        Ok(uses)
    }

    /// Writes the uses that wait; says how many keys' they were.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`]; what is not written waits on.
    pub async fn write_key_uses(&self) -> Result<u64, Reject> {
        let mut written = 0;
        for uses in self.key_uses.in_order().chunks(PER_COMMIT) {
            written += loop {
                let batch = self.batch_of_uses(uses)?;
                let rows = batch.ops.len();
                if self.has_written(self.committer.commit(batch).await)? {
                    break self.wrote(uses, rows);
                }
            };
        }
        Ok(written)
    }

    /// As [`Accounts::write_key_uses`], at the end of the process.
    ///
    /// # Errors
    /// As [`Accounts::write_key_uses`].
    pub fn write_key_uses_blocking(&self) -> Result<u64, Reject> {
        let mut written = 0;
        for uses in self.key_uses.in_order().chunks(PER_COMMIT) {
            written += loop {
                let batch = self.batch_of_uses(uses)?;
                let rows = batch.ops.len();
                if self.has_written(self.committer.commit_blocking(batch))? {
                    break self.wrote(uses, rows);
                }
            };
        }
        Ok(written)
    }

    fn wrote(&self, uses: &[(Whose, UnixMillis)], rows: usize) -> u64 {
        self.key_uses.done(uses);
        self.key_uses.written.fetch_add(rows as u64, Ordering::Relaxed);
        rows as u64
    }

    /// Not, and to be tried again without it, when a key went meanwhile.
    fn has_written(&self, done: Result<(), StoreError>) -> Result<bool, Reject> {
        match done {
            Ok(()) => Ok(true),
            Err(StoreError::Conflict { .. }) => Ok(false),
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// Keys that are gone are left out. One that goes until the commit makes it fail, because its pointer goes with it.
    fn batch_of_uses(&self, uses: &[(Whose, UnixMillis)]) -> Result<Batch, Reject> {
        let mut batch = Batch::default();
        let mut add = |(user, key): Whose, at: &UnixMillis| -> Result<(), StoreError> {
            let pointer = tables::key_of_user(user, key);
            if let Some(mac) = self.store().get(&pointer)? {
                batch.require_equal(pointer, mac).put(tables::key_use(user, key), tables::encode(at)?);
            }
            Ok(())
        };
        uses.iter().try_for_each(|(whose, at)| add(*whose, at)).map_err(|error| self.failed(&error))?;
        Ok(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounts::keys::NewKey;
    use crate::accounts::tests::{World, world};

    fn uses(world: &World) -> Vec<(Vec<u8>, Vec<u8>)> {
        let store = world.accounts.store();
        store.range(b"ku/", &prefix_end(b"ku/"), 100, Order::Ascending).unwrap()
    }

    async fn made(world: &World, user: UserId, name: &str) -> CredentialId {
        let new = NewKey { name: name.into(), ..NewKey::default() };
        world.accounts.create_key(user, new).await.unwrap().0.id
    }

    #[test]
    fn a_key_is_noted_once_a_minute() {
        let (uses, mark) = (KeyUses::default(), UseMark::new(UserId(1), CredentialId(7)));
        let start = 1_000_000_000;
        for ms in [0, 1, 30_000, 59_999] {
            mark.touch(UnixMillis(start + ms), &uses);
        }
        assert_eq!((uses.noted.load(Ordering::SeqCst), uses.waiting()), (1, 1));
        mark.touch(UnixMillis(start + 60_000), &uses);
        // A clock that is put back an hour.
        mark.touch(UnixMillis(start - 3_600_000), &uses);
        mark.touch(UnixMillis(start - 3_600_000 + 59_999), &uses);
        assert_eq!((uses.noted.load(Ordering::SeqCst), uses.waiting()), (3, 1));
    }

    #[test]
    fn many_calls_at_once_note_it_once() {
        let (uses, mark) = (KeyUses::default(), UseMark::new(UserId(1), CredentialId(7)));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..1000).for_each(|_| mark.touch(UnixMillis(1_000_000_000), &uses)));
            }
        });
        assert_eq!(uses.noted.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let uses = KeyUses::default();
        for key in 0..MAX_WAITING as u64 {
            uses.note((UserId(key), CredentialId(1)), UnixMillis(5));
        }
        uses.note((UserId(u64::MAX), CredentialId(1)), UnixMillis(6));
        uses.note((UserId(0), CredentialId(1)), UnixMillis(6));
        assert_eq!((uses.waiting(), uses.dropped.load(Ordering::SeqCst)), (MAX_WAITING, 1));
        assert_eq!(
            uses.in_order()[0],
            ((UserId(0), CredentialId(1)), UnixMillis(6)),
            "who has room is brought up to date"
        );
    }

    #[tokio::test]
    async fn it_is_shown_at_once_written_in_time_and_goes_with_the_key() {
        let world = world("");
        let user = world.register("anna").await.user.id;
        let (one, other) = (made(&world, user, "one").await, made(&world, user, "other").await);
        let accounts = &world.accounts;
        let shown = |id| accounts.keys(user).unwrap().iter().find(|key| key.id == id).unwrap().last_used;
        assert_eq!(shown(one), None);
        let now = accounts.clock.now();
        for id in [one, other] {
            UseMark::new(user, id).touch(now, &accounts.key_uses);
        }
        assert_eq!((shown(one), accounts.key(user, one).unwrap().last_used), (Some(now), Some(now)));
        assert_eq!(uses(&world), []);
        assert_eq!(accounts.write_key_uses().await, Ok(2));
        assert_eq!((uses(&world).len(), accounts.key_uses.waiting(), shown(one)), (2, 0, Some(now)));
        assert_eq!(accounts.write_key_uses().await, Ok(0));
        // A use that waits when its key goes leaves no row behind.
        UseMark::new(user, one).touch(UnixMillis(now.0 + 1), &accounts.key_uses);
        accounts.revoke_key(user, one).await.unwrap();
        assert_eq!(uses(&world).len(), 1);
        accounts.write_key_uses().await.unwrap();
        assert_eq!((uses(&world).len(), accounts.key_uses.waiting()), (1, 0));
        accounts.delete_user(user, None).await.unwrap();
        assert_eq!(uses(&world), []);
    }

    #[tokio::test]
    async fn a_key_that_goes_while_its_use_is_being_written_leaves_no_row() {
        let world = world("");
        let user = world.register("anna").await.user.id;
        let (one, other) = (made(&world, user, "one").await, made(&world, user, "other").await);
        let accounts = &world.accounts;
        let waiting = [((user, one), UnixMillis(5)), ((user, other), UnixMillis(6))];
        // Both are there when the batch is made; one goes before it is committed.
        let batch = accounts.batch_of_uses(&waiting).unwrap();
        accounts.revoke_key(user, one).await.unwrap();
        assert_eq!(accounts.has_written(accounts.committer.commit(batch).await), Ok(false));
        assert_eq!(uses(&world), []);
        let again = accounts.batch_of_uses(&waiting).unwrap();
        assert_eq!(accounts.has_written(accounts.committer.commit(again).await), Ok(true));
        let rows = uses(&world);
        assert_eq!((rows.len(), tables::trailing_id(&rows[0].0)), (1, Some(other.0)));
    }

    #[tokio::test]
    async fn every_end_of_a_key_ends_its_row() {
        let world = world("");
        let user = world.register("anna").await.user.id;
        let accounts = &world.accounts;
        let used = async || {
            for key in accounts.keys(user).unwrap() {
                UseMark::new(user, key.id).touch(accounts.clock.now(), &accounts.key_uses);
            }
            accounts.write_key_uses().await.unwrap();
            uses(&world).len()
        };
        let named = made(&world, user, "one").await;
        assert_eq!(used().await, 2);
        accounts.regenerate_key(user, crate::accounts::proof::Word::Owner).await.unwrap();
        assert_eq!(uses(&world).len(), 1);
        assert_eq!(used().await, 2);
        let hour = std::time::Duration::from_secs(3600);
        let (next, _) = accounts.rotate_key(user, named, std::time::Duration::ZERO).await.unwrap();
        assert_eq!(uses(&world).len(), 1);
        accounts.rotate_key(user, next.id, hour).await.unwrap();
        assert_eq!(used().await, 3);
        // What has run out is cleared away by the next new key, or in time.
        world.hands.advance(2 * hour);
        let two = made(&world, user, "two").await;
        assert_eq!(uses(&world).len(), 2);
        assert_eq!(used().await, 3);
        accounts.rotate_key(user, two, hour).await.unwrap();
        world.hands.advance(24 * 30 * hour);
        assert_eq!((accounts.purge_keys().await, accounts.keys(user).unwrap().len()), (Ok(0), 4));
        world.hands.advance(hour);
        assert_eq!((accounts.purge_keys().await, accounts.keys(user).unwrap().len()), (Ok(1), 3));
        assert_eq!(uses(&world).len(), 2);
        assert!(accounts.keys(user).unwrap().iter().all(|key| key.expires_at.is_none() && key.id != two));
    }
}
