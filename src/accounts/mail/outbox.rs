//! The outbox: letters on disk until they are sent.
//!
//! Owns the rows `ob/` due time, id. The due time is in the key, so that the next letter to send is the first row. A letter
//! that cannot go yet is put back with a later time, and given up after `mail.retry_for`. At least once: a process killed
//! between sending and forgetting sends again, under the same Message-ID.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::transport::{self, Failure, Transport};
use super::{LetterKind, templates};
use crate::accounts::seal::Purpose;
use crate::accounts::{Accounts, Settings};
use crate::actors::audit::{Action, Actor, Record};
use crate::clock::{self, UnixMillis};
use crate::error::Reject;
use crate::store::{Batch, Order, Row, StoreError, tables};

/// The pause after a first failure; it doubles up to the longest.
const PAUSE_FIRST: Duration = Duration::from_secs(30);
const PAUSE_LONGEST: Duration = Duration::from_secs(3600);
/// How often the outbox is looked at without being woken.
const TICK: Duration = Duration::from_secs(1);
/// How often the outbox is looked at before it is counted again.
const TURNS_BETWEEN_COUNTS: u32 = 60;
/// How often a count that letters have overtaken is made again before it waits for its next turn.
const COUNT_TRIES: usize = 8;
/// Letters under way at once.
const AT_ONCE: usize = 4;

/// A letter in the outbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Posted {
    pub to: String,
    pub kind: LetterKind,
    pub facts: BTreeMap<String, String>,
    pub at: UnixMillis,
    pub tries: u32,
}

type LetterId = [u8; 16];

fn purpose(id: &LetterId) -> Purpose<'static> {
    let half = |at: usize| id[at..at + 8].iter().fold(0, |sum: u64, byte| sum << 8 | u64::from(*byte));
    Purpose { what: "letter", whose: half(0), which: half(8) }
}

fn hex(id: &LetterId) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Accounts {
    pub(super) fn put_letter(&self, posted: &Posted, batch: &mut Batch) -> Result<(), Reject> {
        let mut id = LetterId::default();
        clock::random_bytes(&mut id).map_err(|error| super::super::no_randomness(&error))?;
        let row = self.seal_letter(&id, posted)?;
        batch.put(tables::letter(posted.at, &id), row);
        Ok(())
    }

    fn seal_letter(&self, id: &LetterId, posted: &Posted) -> Result<Vec<u8>, Reject> {
        let text = serde_json::to_vec(posted).map_err(|_| Reject::Internal)?;
        let sealed = self.sealer.seal(purpose(id), &text)?;
        tables::encode(&sealed).map_err(|error| self.failed(&error))
    }

    /// Sends what is in the outbox, for as long as it is polled.
    pub async fn run_mailer(self: Arc<Self>) {
        self.count_letters().await;
        let mut turns = 0u32;
        let mut transport: Option<(Arc<Settings>, Arc<Transport>)> = None;
        loop {
            tokio::select! {
                () = self.mail.wake.notified() => {}
                () = tokio::time::sleep(TICK) => {}
            }
            if !self.sends_mail() {
                continue;
            }
            let settings = self.settings();
            let ready = match &transport {
                Some((known, ready)) if Arc::ptr_eq(known, &settings) => ready.clone(),
                // Made anew with every reload: what a file or a variable holds may have changed, which no comparison shows.
                _ => match Transport::new(&settings.mail) {
                    Ok(made) => transport.insert((settings, Arc::new(made))).1.clone(),
                    Err(why) => {
                        tracing::error!(why, "no mail can be sent");
                        tokio::time::sleep(PAUSE_FIRST).await;
                        continue;
                    }
                },
            };
            while self.send_due(&ready).await {}
            turns = turns.wrapping_add(1);
            if turns.is_multiple_of(TURNS_BETWEEN_COUNTS) {
                self.count_letters().await;
            }
        }
    }

    /// Sends up to [`AT_ONCE`] letters that are due. False when there was none.
    async fn send_due(self: &Arc<Self>, transport: &Arc<Transport>) -> bool {
        let (from, to) = (tables::LETTERS.to_vec(), tables::letters_until(self.clock.now()));
        let committer = self.committer.clone();
        let read = move || committer.store().range(&from, &to, AT_ONCE, Order::Ascending);
        let rows = match self.reading(read).await {
            Ok(rows) if !rows.is_empty() => rows,
            _ => return false,
        };
        let mut under_way = tokio::task::JoinSet::new();
        for row in rows {
            let (accounts, transport) = (self.clone(), transport.clone());
            under_way.spawn(async move { accounts.deliver(&transport, row).await });
        }
        let mut all = true;
        while let Some(done) = under_way.join_next().await {
            all &= matches!(done, Ok(Ok(())));
        }
        // What cannot be taken out of the outbox would be sent again at once.
        all
    }

    async fn deliver(&self, transport: &Transport, (key, row): Row) -> Result<(), StoreError> {
        let config = self.settings().mail.clone();
        let counts = &self.mail.counts;
        let mut batch = Batch::default();
        batch.require_equal(key.clone(), row.clone()).delete(key.clone());
        let opened = tables::parse_letter(&key).and_then(|(_, id)| {
            let sealed: String = tables::decode(&row).ok()?;
            let posted: Posted = serde_json::from_slice(&self.sealer.open(purpose(&id), &sealed)?).ok()?;
            Some((id, posted))
        });
        let Some((id, mut posted)) = opened else {
            tracing::error!("a letter in the outbox cannot be read (was the vault's key changed?); it is dropped");
            return self.take_letter(batch, &counts.refused).await;
        };
        let sent = match self.compose(&config, &id, &posted) {
            Ok((message, letter)) => transport.send(&hex(&id), &message, &letter).await,
            Err(why) => Err(Failure::Never(why)),
        };
        let now = self.clock.now();
        match sent {
            Ok(()) => self.take_letter(batch, &counts.sent).await,
            Err(Failure::Later(why)) if now < posted.at.plus(config.retry_for.0) => {
                tracing::warn!(
                    letter = posted.kind.as_str(),
                    tries = posted.tries + 1,
                    why,
                    "a letter did not go; trying again"
                );
                let pause = PAUSE_FIRST.saturating_mul(1 << posted.tries.min(16)).min(PAUSE_LONGEST);
                posted.tries += 1;
                let Ok(row) = self.seal_letter(&id, &posted) else {
                    return Err(StoreError::Failed("a letter could not be sealed".into()));
                };
                batch.put(tables::letter(now.plus(pause), &id), row);
                self.committer.commit(batch).await?;
                counts.retried.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Err(Failure::Later(why)) => {
                self.give_up(&posted, &why);
                self.take_letter(batch, &counts.expired).await
            }
            Err(Failure::Never(why)) => {
                self.give_up(&posted, &why);
                self.take_letter(batch, &counts.refused).await
            }
        }
    }

    fn compose(
        &self,
        config: &crate::config::Mail,
        id: &LetterId,
        posted: &Posted,
    ) -> Result<(lettre::Message, templates::Rendered), String> {
        let letter = templates::render(posted.kind, &posted.facts, config.templates.as_deref())?;
        Ok((transport::message(config, &posted.to, &hex(id), &letter)?, letter))
    }

    /// Counted last: who reads that a letter has ended finds it gone from the outbox.
    async fn take_letter(&self, batch: Batch, ended: &AtomicU64) -> Result<(), StoreError> {
        self.committer.commit(batch).await?;
        self.mail.waiting.fetch_sub(1, Ordering::Relaxed);
        ended.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Lost, and said so: in the log and in the trail, without the address.
    fn give_up(&self, posted: &Posted, why: &str) {
        let letter = posted.kind.as_str();
        tracing::error!(letter, why, "a letter is given up");
        self.audit.note(Record::of(Action::MailGivenUp).by(Actor::system()).with("letter", letter));
    }

    async fn count_letters(&self) {
        for _ in 0..COUNT_TRIES {
            let known = self.mail.waiting.load(Ordering::Relaxed);
            let committer = self.committer.clone();
            let (from, most) = (tables::LETTERS.to_vec(), self.settings().mail.queue.saturating_add(1));
            let read = move || {
                let end = crate::store::prefix_end(&from);
                Ok(committer.store().range(&from, &end, most, Order::Ascending)?.len())
            };
            let Ok(count) = self.reading(read).await else { return };
            // A letter posted or ended meanwhile may be in the count or not.
            if self.mail.waiting.compare_exchange(known, count as i64, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return;
            }
        }
    }
}
