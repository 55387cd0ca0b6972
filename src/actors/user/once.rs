//! Idempotency: calls that say `Idempotency-Key` are charged at most once each, whatever is repeated.
//!
//! Owns what is known of a user's keys: which request each stands for, what has been paid under it, and the answer, where it
//! was kept. It lives in the user's actor, so that a key and the debit it pays for change in one turn and reach the disk in
//! one batch. Never charges (the ledger does) and never looks into an answer.
//!
//! A key's life: *open* while its call runs, then *answered* (its answer is given again to whoever repeats the request) or
//! *cut* (something was paid, but the client did not get all of the answer: a repeat is forwarded and pays only what the
//! call costs beyond that). A call that cost nothing, because it failed, leaves no trace.

use std::collections::HashMap;
use std::collections::hash_map::Entry::Vacant;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ledger::{Amounts, Recovery};
use crate::clock::UnixMillis;
use crate::domain::ids::UserId;
use crate::domain::meters::{MeterName, Micro};
use crate::error::{Reject, Repeat};
use crate::store::committer::Committer;
use crate::store::{Batch, Op, Order, Store, StoreError, prefix_end, tables};

/// Longest key a client may send, in bytes.
pub const MAX_KEY_BYTES: usize = 255;
/// Of an answer's chunks in the store: a value's limit less its header.
const CHUNK_BYTES: usize = 4000;
/// Keys that one sweep forgets at most.
const SWEEP_ROWS: usize = 1000;

/// A key and the request it came with, as hashes: neither is kept in clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnceKey {
    hash: [u8; 16],
    request: [u8; 16],
    /// Of the whole body, where `request` is only of its beginning; known once it has passed.
    pub whole: Option<Fingerprint>,
}

/// The first 128 bits of a SHA-256.
pub type Fingerprint = [u8; 16];

impl OnceKey {
    /// `None` for a key that is empty, too long, or not visible ASCII. `request` is all that makes the request this one.
    pub fn new<'a>(key: &[u8], request: impl IntoIterator<Item = &'a [u8]>) -> Option<Self> {
        let fits = (1..=MAX_KEY_BYTES).contains(&key.len()) && key.iter().all(|b| (0x20..0x7f).contains(b));
        fits.then(|| Self { hash: hash([key]), request: hash(request), whole: None })
    }
}

impl OnceKey {
    /// The store's key of its row.
    pub fn row(&self, user: UserId) -> Vec<u8> {
        tables::once(user, &self.hash)
    }
}

/// The first 128 bits of SHA-256 over the parts, each with its length.
fn hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; 16] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    half(hasher)
}

fn half(hasher: Sha256) -> Fingerprint {
    let whole: [u8; 32] = hasher.finalize().into();
    let mut half = [0; 16];
    half.copy_from_slice(&whole[..16]);
    half
}

/// Takes a body's fingerprint while it passes.
#[derive(Default)]
pub struct Passing(Sha256);

impl Passing {
    pub fn take(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub fn fingerprint(self) -> Fingerprint {
        half(self.0)
    }
}

/// How long keys count, and how much of their answers is kept.
#[derive(Clone, Copy, Debug)]
pub struct OnceLimits {
    pub window: Duration,
    /// Of one answer, head and body; a longer one is not kept.
    pub answer_bytes: usize,
    /// Of all kept answers; past it, further ones are not kept.
    pub total_bytes: u64,
}

/// What one call has paid on one meter.
type Paid = Vec<(MeterName, Micro)>;

/// A key's row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct OnceRow {
    /// When the key was first used; it counts from here.
    #[serde(rename = "a")]
    at: UnixMillis,
    #[serde(rename = "f")]
    request: [u8; 16],
    #[serde(rename = "w", default, skip_serializing_if = "Option::is_none")]
    whole: Option<Fingerprint>,
    #[serde(rename = "p", default, skip_serializing_if = "Vec::is_empty")]
    paid: Paid,
    /// What the running call has set aside.
    #[serde(rename = "h", default, skip_serializing_if = "Vec::is_empty")]
    held: Paid,
    #[serde(rename = "s")]
    state: KeyState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum KeyState {
    Open,
    Cut,
    /// The answer is in so many bytes of chunks.
    Kept(u32),
    /// The client had the answer, and nothing of it was kept.
    Unkept,
}

impl OnceRow {
    /// What a crash made of a call that ran.
    fn recover(&mut self, how: Recovery) {
        if self.state == KeyState::Open {
            if how == Recovery::Charge {
                add(&mut self.paid, &self.held);
            }
            self.held.clear();
            self.state = KeyState::Cut;
        }
    }
}

fn read_row(row: Result<Option<Vec<u8>>, StoreError>) -> Result<Option<OnceRow>, Reject> {
    row.and_then(|row| row.map(|row| tables::decode(&row)).transpose()).map_err(|error| {
        tracing::error!(%error, "an idempotency key could not be read");
        Reject::StoreUnavailable
    })
}

fn add(paid: &mut Paid, more: &Paid) {
    for (name, amount) in more {
        match paid.iter_mut().find(|(known, _)| known == name) {
            Some((_, sum)) => *sum = sum.saturating_add(*amount),
            None => paid.push((name.clone(), *amount)),
        }
    }
}

fn named(meters: &[MeterName], amounts: &[Micro]) -> Paid {
    meters.iter().cloned().zip(amounts.iter().copied()).filter(|(_, amount)| amount.0 != 0).collect()
}

/// A kept answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeptAnswer {
    Memory(Arc<[u8]>),
    /// In the store; to be read with [`read_answer`].
    Stored {
        hash: [u8; 16],
        bytes: u32,
    },
}

/// What a key says about the request that brings it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// To be carried out. On each meter of the call, so much has been paid already.
    Go(Amounts),
    /// It has been; here is its answer, and what its whole body was if the key knows only its beginning.
    Answered(KeptAnswer, Option<Fingerprint>),
}

/// How a call with a key ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The client has all of it; the bytes are to be kept, if there are any.
    Whole(Option<Vec<u8>>),
    /// It paid, and did not get all of it.
    Cut,
    /// It paid nothing.
    Free,
}

/// The keys of one user that run, or whose rows are not on disk yet.
#[derive(Debug, Default)]
pub struct OnceBook {
    entries: HashMap<[u8; 16], Entry>,
}

#[derive(Debug)]
struct Entry {
    row: OnceRow,
    /// A call with this key is under way.
    running: bool,
    /// The row is to go.
    removed: bool,
    /// Not written since its last change.
    dirty: bool,
    answer: Option<Arc<[u8]>>,
}

impl OnceBook {
    /// What `key` says about a call on `meters`. `load` reads the key's row.
    ///
    /// # Errors
    /// [`Reject::Repeated`] and [`Reject::StoreUnavailable`].
    pub fn judge(
        &mut self,
        key: &OnceKey,
        meters: &[MeterName],
        now: UnixMillis,
        window: Duration,
        how: Recovery,
        load: impl FnOnce() -> Result<Option<Vec<u8>>, StoreError>,
    ) -> Result<Attempt, Reject> {
        if crate::failpoint::is_on("idempotency.skip_check") {
            return Ok(Attempt::Go(nothing(meters)));
        }
        if let Vacant(place) = self.entries.entry(key.hash)
            && let Some(mut row) = read_row(load())?
        {
            row.recover(how);
            place.insert(Entry { row, running: false, removed: false, dirty: false, answer: None });
        }
        let Some(entry) = self.entries.get(&key.hash) else { return Ok(Attempt::Go(nothing(meters))) };
        let expired = now.0.saturating_sub(entry.row.at.0) >= window.as_millis() as u64;
        if !entry.running && (entry.removed || expired) {
            return Ok(Attempt::Go(nothing(meters)));
        }
        if entry.row.request != key.request {
            return Err(Reject::Repeated(Repeat::Different));
        }
        match entry.row.state {
            _ if entry.running => Err(Reject::Repeated(Repeat::Running)),
            KeyState::Unkept => Err(Reject::Repeated(Repeat::NotKept)),
            KeyState::Kept(bytes) => {
                let kept = match &entry.answer {
                    Some(answer) => KeptAnswer::Memory(answer.clone()),
                    None => KeptAnswer::Stored { hash: key.hash, bytes },
                };
                Ok(Attempt::Answered(kept, entry.row.whole))
            }
            KeyState::Open | KeyState::Cut => {
                let paid = |name| entry.row.paid.iter().find(|(known, _)| known == name).map_or(Micro::ZERO, |p| p.1);
                Ok(Attempt::Go(meters.iter().map(paid).collect()))
            }
        }
    }

    /// Whether `key` stands for a call that runs, or ran within its time. `load` reads the key's row.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`].
    pub fn knows(
        &self,
        key: &OnceKey,
        now: UnixMillis,
        window: Duration,
        load: impl FnOnce() -> Result<Option<Vec<u8>>, StoreError>,
    ) -> Result<bool, Reject> {
        let is_young = |row: &OnceRow| now.0.saturating_sub(row.at.0) < window.as_millis() as u64;
        match self.entries.get(&key.hash) {
            Some(entry) => Ok(entry.running || (!entry.removed && is_young(&entry.row))),
            None => read_row(load()).map(|row| row.is_some_and(|row| is_young(&row))),
        }
    }

    /// A call with `key` begins and holds `held`. The row is to be written in the batch of that hold.
    pub fn begin(&mut self, key: &OnceKey, now: UnixMillis, window: Duration, meters: &[MeterName], held: &[Micro]) {
        let held = named(meters, held);
        let known = self
            .entries
            .remove(&key.hash)
            .filter(|entry| !entry.removed && now.0.saturating_sub(entry.row.at.0) < window.as_millis() as u64);
        let row = match known {
            Some(entry) => OnceRow { held, state: KeyState::Open, ..entry.row },
            None => {
                OnceRow { at: now, request: key.request, whole: None, paid: Paid::new(), held, state: KeyState::Open }
            }
        };
        self.entries.insert(key.hash, Entry { row, running: true, removed: false, dirty: true, answer: None });
    }

    /// The running call with `key` holds so much more.
    pub fn hold_more(&mut self, key: &OnceKey, meters: &[MeterName], more: &[Micro]) {
        if let Some(entry) = self.entries.get_mut(&key.hash) {
            add(&mut entry.row.held, &named(meters, more));
            entry.dirty = true;
        }
    }

    /// The call ends, having paid `paid`. The row is to be written in the batch of that settlement.
    pub fn end(&mut self, key: &OnceKey, meters: &[MeterName], paid: &[Micro], ended: Ended) {
        let Some(entry) = self.entries.get_mut(&key.hash) else { return };
        (entry.running, entry.dirty) = (false, true);
        entry.row.held.clear();
        entry.row.whole = key.whole;
        add(&mut entry.row.paid, &named(meters, paid));
        entry.row.state = match ended {
            Ended::Whole(Some(bytes)) => {
                let kept = KeyState::Kept(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
                entry.answer = Some(Arc::from(bytes));
                kept
            }
            Ended::Whole(None) => KeyState::Unkept,
            Ended::Cut => KeyState::Cut,
            Ended::Free => {
                entry.removed = entry.row.paid.is_empty();
                KeyState::Cut
            }
        };
    }

    /// Appends what changed since the last call.
    ///
    /// # Errors
    /// A row has no JSON form.
    pub fn write_to(&mut self, user: UserId, ops: &mut Vec<Op>) -> Result<(), StoreError> {
        for (hash, entry) in self.entries.iter_mut().filter(|(_, entry)| entry.dirty) {
            entry.dirty = false;
            let (key, expiry) = (tables::once(user, hash), tables::once_expiry(entry.row.at, user, hash));
            if entry.removed {
                ops.extend([Op::Delete { key }, Op::Delete { key: expiry }]);
                continue;
            }
            let answer = entry.answer.as_deref().unwrap_or_default();
            for (at, chunk) in (0..).zip(answer.chunks(CHUNK_BYTES)) {
                let value = tables::encode_bytes(chunk);
                ops.push(Op::Put { key: tables::once_answer(user, hash, at), value });
            }
            ops.push(Op::Put { key, value: tables::encode(&entry.row)? });
            ops.push(Op::Put { key: expiry, value: tables::encode(&(answer.len() as u64))? });
        }
        Ok(())
    }

    /// Lets go of what the disk has: everything that neither runs nor waits to be written.
    pub fn forget_written(&mut self, all_durable: bool) {
        if all_durable {
            self.entries.retain(|_, entry| entry.running || entry.dirty);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes in the keys of calls that a crash ended, so that what became of their holds stands in their rows.
    ///
    /// # Errors
    /// A row cannot be read.
    pub fn recover(&mut self, user: UserId, how: Recovery, store: &dyn Store) -> Result<(), StoreError> {
        let prefix = tables::once_of_user(user);
        let (mut from, end) = (prefix.clone(), prefix_end(&prefix));
        loop {
            let rows = store.range(&from, &end, SWEEP_ROWS, Order::Ascending)?;
            for (key, value) in &rows {
                let mut row: OnceRow = tables::decode(value)?;
                if row.state == KeyState::Open
                    && let Some(hash) = key.last_chunk::<16>()
                {
                    row.recover(how);
                    let entry = Entry { row, running: false, removed: false, dirty: true, answer: None };
                    self.entries.insert(*hash, entry);
                }
            }
            match rows.last() {
                Some((last, _)) if rows.len() == SWEEP_ROWS => from = [last.as_slice(), &[0]].concat(),
                _ => return Ok(()),
            }
        }
    }
}

fn nothing(meters: &[MeterName]) -> Amounts {
    meters.iter().map(|_| Micro::ZERO).collect()
}

/// The bytes of a kept answer; `None` when they have expired meanwhile.
///
/// # Errors
/// As [`Store::get`]; [`StoreError::Corrupt`] for a damaged chunk.
pub fn read_answer(store: &dyn Store, user: UserId, kept: &KeptAnswer) -> Result<Option<Vec<u8>>, StoreError> {
    let (hash, bytes) = match kept {
        KeptAnswer::Memory(answer) => return Ok(Some(answer.to_vec())),
        KeptAnswer::Stored { hash, bytes } => (hash, bytes),
    };
    let mut answer = Vec::new();
    for at in 0..chunks(u64::from(*bytes)) {
        let Some(chunk) = store.get(&tables::once_answer(user, hash, at))? else { return Ok(None) };
        answer.extend_from_slice(tables::decode_bytes(&chunk)?);
    }
    Ok((answer.len() as u64 == u64::from(*bytes)).then_some(answer))
}

/// Bytes of all kept answers, so that they stay within [`OnceLimits::total_bytes`].
#[derive(Debug, Default)]
pub struct KeptBytes(AtomicU64);

impl KeptBytes {
    /// Takes room for `bytes` more; false, and nothing taken, past `total`.
    pub fn take(&self, bytes: u64, total: u64) -> bool {
        let fits = |kept: u64| kept.checked_add(bytes).filter(|sum| *sum <= total);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }

    pub fn give(&self, bytes: u64) {
        let less = |kept: u64| Some(kept.saturating_sub(bytes));
        // Always succeeds: the function always gives a value.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds what the store holds of keys from before `started`: once, after the start.
    ///
    /// # Errors
    /// As [`Store::range`].
    pub fn count(&self, store: &dyn Store, started: UnixMillis) -> Result<(), StoreError> {
        let (mut from, end) = (tables::ONCE_EXPIRIES.to_vec(), tables::once_expiries_until(started));
        loop {
            let rows = store.range(&from, &end, SWEEP_ROWS, Order::Ascending)?;
            for (_, value) in &rows {
                self.0.fetch_add(tables::decode::<u64>(value)?, Ordering::Relaxed);
            }
            match rows.last() {
                Some((last, _)) if rows.len() == SWEEP_ROWS => from = [last.as_slice(), &[0]].concat(),
                _ => return Ok(()),
            }
        }
    }
}

/// Forgets keys whose window has passed, oldest first, a bounded number at a time. Says whether more are due.
///
/// # Errors
/// As [`Committer::commit`].
pub async fn sweep(
    committer: &Committer,
    kept: &KeptBytes,
    now: UnixMillis,
    window: Duration,
) -> Result<bool, StoreError> {
    // The last moment whose keys do not count any more is among them.
    let before = UnixMillis((now.0 + 1).saturating_sub(window.as_millis() as u64));
    let store = committer.store();
    let end = tables::once_expiries_until(before);
    let rows = store.range(tables::ONCE_EXPIRIES, &end, SWEEP_ROWS, Order::Ascending)?;
    let (mut batch, mut freed) = (Batch::default(), 0);
    for (expiry, value) in &rows {
        let Some((at, user, hash)) = tables::parse_once_expiry(expiry) else { continue };
        let (key, bytes) = (tables::once(user, &hash), tables::decode::<u64>(value)?);
        freed += bytes;
        batch.delete(expiry.clone());
        // A key that was used anew has a row of its own time, which stays, with as many chunks as it needs.
        let kept = match store.get(&key)? {
            None => {
                batch.require_absent(key);
                0
            }
            Some(encoded) => {
                let row: OnceRow = tables::decode(&encoded)?;
                batch.require_equal(key.clone(), encoded);
                match row.state {
                    _ if row.at == at => {
                        batch.delete(key);
                        0
                    }
                    KeyState::Kept(bytes) => chunks(u64::from(bytes)),
                    KeyState::Open | KeyState::Cut | KeyState::Unkept => 0,
                }
            }
        };
        for chunk in kept..chunks(bytes) {
            batch.delete(tables::once_answer(user, &hash, chunk));
        }
    }
    if rows.is_empty() {
        return Ok(false);
    }
    match committer.commit(batch).await {
        Ok(()) => kept.give(freed),
        // One of them was used at this very moment; the next sweep sees it as it then is.
        Err(StoreError::Conflict { .. }) => {}
        Err(error) => return Err(error),
    }
    Ok(rows.len() == SWEEP_ROWS)
}

/// How many rows an answer of so many bytes takes.
fn chunks(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(CHUNK_BYTES as u64)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(86_400);

    fn key(text: &str, request: &str) -> OnceKey {
        OnceKey::new(text.as_bytes(), [request.as_bytes()]).unwrap()
    }

    fn meters() -> [MeterName; 2] {
        [MeterName::parse("conversations").unwrap(), MeterName::parse("credits").unwrap()]
    }

    /// What a book says of a key whose row, if any, is `row`.
    fn judge(
        book: &mut OnceBook,
        key: &OnceKey,
        now: u64,
        how: Recovery,
        row: Option<&[u8]>,
    ) -> Result<Attempt, Reject> {
        book.judge(key, &meters(), UnixMillis(now), WINDOW, how, || Ok(row.map(<[u8]>::to_vec)))
    }

    fn row_of(book: &mut OnceBook) -> Option<Vec<u8>> {
        let mut ops = Vec::new();
        book.write_to(UserId(1), &mut ops).unwrap();
        ops.into_iter().find_map(|op| match op {
            Op::Put { key, value } if key.starts_with(b"o/") => Some(value),
            _ => None,
        })
    }

    #[test]
    fn a_key_and_its_request_are_told_apart() {
        let (a, b) = (key("k", "one"), key("k", "two"));
        assert!(a.hash == b.hash && a.request != b.request && a != key("K", "one"));
        // Where one part ends and the next begins matters.
        let split = |parts: [&'static [u8]; 2]| OnceKey::new(b"k", parts).unwrap();
        assert_ne!(split([b"ab", b"c"]), split([b"a", b"bc"]));
    }

    #[test]
    fn what_was_paid_counts_towards_the_repeat() {
        let (mut book, key, now) = (OnceBook::default(), key("k", "r"), UnixMillis(5));
        let nothing = Attempt::Go(Amounts::from_slice(&[Micro(0), Micro(0)]));
        assert_eq!(judge(&mut book, &key, 5, Recovery::Charge, None), Ok(nothing.clone()));
        book.begin(&key, now, WINDOW, &meters(), &[Micro(1), Micro(9)]);
        assert_eq!(judge(&mut book, &key, 5, Recovery::Charge, None), Err(Reject::Repeated(Repeat::Running)));
        book.end(&key, &meters(), &[Micro(1), Micro(4)], Ended::Cut);
        let paid = Attempt::Go(Amounts::from_slice(&[Micro(1), Micro(4)]));
        assert_eq!(judge(&mut book, &key, 6, Recovery::Charge, None), Ok(paid.clone()));
        // A free end of the second attempt takes nothing of the first away.
        book.begin(&key, now, WINDOW, &meters(), &[Micro(0), Micro(5)]);
        book.end(&key, &meters(), &[Micro(0), Micro(0)], Ended::Free);
        assert_eq!(judge(&mut book, &key, 7, Recovery::Charge, None), Ok(paid));
        let other = OnceKey { request: [7; 16], ..key };
        assert_eq!(judge(&mut book, &other, 7, Recovery::Charge, None), Err(Reject::Repeated(Repeat::Different)));
        assert_eq!(judge(&mut book, &key, 5 + 86_400_000, Recovery::Charge, None), Ok(nothing));
    }

    #[test]
    fn a_crash_leaves_what_recovery_makes_of_the_hold() {
        for (how, paid) in [(Recovery::Charge, [Micro(1), Micro(9)]), (Recovery::Refund, [Micro(0), Micro(0)])] {
            let (mut book, key) = (OnceBook::default(), key("k", "r"));
            book.begin(&key, UnixMillis(5), WINDOW, &meters(), &[Micro(1), Micro(5)]);
            book.hold_more(&key, &meters(), &[Micro(0), Micro(4)]);
            let row = row_of(&mut book).unwrap();
            let mut after = OnceBook::default();
            let expected = Attempt::Go(Amounts::from_slice(&paid));
            assert_eq!(judge(&mut after, &key, 6, how, Some(&row)), Ok(expected), "{how:?}");
        }
    }

    #[test]
    fn only_what_the_disk_has_is_forgotten() {
        let (mut book, key) = (OnceBook::default(), key("k", "r"));
        book.begin(&key, UnixMillis(5), WINDOW, &meters(), &[Micro(1), Micro(0)]);
        assert!(row_of(&mut book).is_some());
        book.forget_written(true);
        assert!(!book.is_empty(), "it runs");
        book.end(&key, &meters(), &[Micro(1), Micro(0)], Ended::Whole(Some(b"answer".to_vec())));
        book.forget_written(true);
        assert!(!book.is_empty(), "it is not written");
        assert!(row_of(&mut book).is_some());
        book.forget_written(false);
        let kept = Attempt::Answered(KeptAnswer::Memory(Arc::from(b"answer".as_slice())), None);
        assert_eq!(judge(&mut book, &key, 6, Recovery::Charge, None), Ok(kept), "the commit is under way");
        book.forget_written(true);
        assert!(book.is_empty());
    }

    #[test]
    fn a_free_call_leaves_no_row() {
        let (mut book, key) = (OnceBook::default(), key("k", "r"));
        book.begin(&key, UnixMillis(5), WINDOW, &meters(), &[Micro(1), Micro(0)]);
        book.end(&key, &meters(), &[Micro(0), Micro(0)], Ended::Free);
        let mut ops = Vec::new();
        book.write_to(UserId(1), &mut ops).unwrap();
        assert!(ops.len() == 2 && ops.iter().all(|op| matches!(op, Op::Delete { .. })), "{ops:?}");
    }

    #[test]
    fn answers_share_their_room() {
        let kept = KeptBytes::default();
        assert!(kept.take(6, 10) && !kept.take(5, 10) && kept.take(4, 10));
        kept.give(6);
        assert!(kept.get() == 4 && kept.take(6, 10));
    }
}
