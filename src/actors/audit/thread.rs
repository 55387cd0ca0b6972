//! The audit trail's thread: takes what waits, has it written and synced, records in the store how far the trail has come,
//! and tells whoever waits.
//!
//! Owns the retries: what the disk refused is kept and tried again, so that an act that has happened gets its record as
//! soon as the disk is well. Until then nothing new that needs a record is let through. Never decides what is recorded,
//! except about the trail itself.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::{io, thread};

use super::chain::Head;
use super::record::{Action, Record};
use super::trail::{Draft, Trail};
use super::{AuditConfig, Reply, Shared, Unwritten};
use crate::clock::Monotonic;
use crate::store::committer::Committer;
use crate::store::{Batch, tables};

/// Records that are written and synced together at most.
const BATCH_RECORDS: usize = 512;
/// How long a record waits that nobody waits for.
const PERIOD: Duration = Duration::from_secs(1);
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_LONGEST: Duration = Duration::from_secs(5);
/// How often a stop tries a disk that fails.
const STOP_TRIES: u32 = 3;
/// How often retention looks.
const HOUSEKEEPING: Duration = Duration::from_secs(60);
/// How often the program's log names the trail's head, for whoever ships logs off the machine: with it, even a trail that
/// was put back whole to an earlier state is noticed.
const CHECKPOINT: Duration = Duration::from_secs(3600);
/// With a retention, a segment ends after this long, so that it can be deleted in time.
const SEGMENT_AGE_MS: u64 = 24 * 3600 * 1000;

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) config: AuditConfig,
    pub(super) trail: Trail,
    pub(super) committer: Committer,
    /// Taken out of the queue and not on disk yet.
    pub(super) pending: Vec<Draft>,
    /// What the store holds.
    pub(super) recorded: Option<Head>,
    pub(super) store_failure_told: bool,
    pub(super) next_housekeeping: Monotonic,
    pub(super) next_checkpoint: Monotonic,
    /// The head that the log has named last.
    pub(super) named: Head,
}

impl Writer {
    pub(super) fn run(mut self) {
        let mut backoff = BACKOFF_FIRST;
        loop {
            // Read before the queue is drained: what was handed over before the stop is then in this round.
            let stopping = self.shared.stopping.load(Ordering::SeqCst);
            let replies = self.take(stopping);
            let mut written = self.round();
            if stopping {
                written = self.try_to_the_end(written);
            }
            self.answer(replies, written.is_ok());
            if stopping {
                return self.name_head();
            }
            match written {
                Ok(()) => {
                    backoff = BACKOFF_FIRST;
                    thread::park_timeout(PERIOD);
                }
                Err(error) => {
                    tracing::error!(%error, "the audit trail cannot be written; acts that need it are refused");
                    thread::park_timeout(backoff);
                    backoff = (backoff * 2).min(BACKOFF_LONGEST);
                }
            }
        }
    }

    /// Empties the queue into `pending`, and adds what is due by itself.
    fn take(&mut self, stopping: bool) -> Vec<(Reply, bool)> {
        let (at, ticks) = (self.shared.clock.now(), self.shared.clock.monotonic());
        let (items, counted) = {
            let mut state = self.shared.state.lock();
            (std::mem::take(&mut state.queue), state.flood.take_counted(ticks, stopping))
        };
        let mut replies = Vec::new();
        for item in items {
            let needs_store = item.draft.is_some();
            self.pending.extend(item.draft);
            replies.extend(item.reply.map(|reply| (reply, needs_store)));
        }
        for record in counted {
            self.add(Draft { at, record });
        }
        if self.committer.has_failed() && !self.store_failure_told {
            self.store_failure_told = true;
            self.add(Draft { at, record: Record::of(Action::StoreFailed) });
        }
        replies
    }

    /// A record that did not come through the queue.
    fn add(&mut self, draft: Draft) {
        self.shared.counters.emitted.fetch_add(1, Ordering::Relaxed);
        self.shared.counters.queued.fetch_add(1, Ordering::Relaxed);
        self.pending.push(draft);
    }

    /// Writes everything that waits and looks after old segments.
    fn round(&mut self) -> io::Result<()> {
        let result = self.write_pending();
        self.shared.failed.store(result.is_err(), Ordering::SeqCst);
        if result.is_err() {
            self.shared.counters.write_errors.fetch_add(1, Ordering::Relaxed);
            return result;
        }
        let now = self.shared.clock.monotonic();
        if self.next_housekeeping <= now {
            self.next_housekeeping = now.plus(HOUSEKEEPING);
            if let Err(error) = self.keep_house() {
                self.shared.counters.write_errors.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, "old segments of the audit trail could not be removed; they are tried again");
            }
        }
        self.record_head();
        if self.next_checkpoint <= now && self.named != self.trail.head() {
            self.next_checkpoint = now.plus(CHECKPOINT);
            self.name_head();
        }
        Ok(())
    }

    fn name_head(&mut self) {
        self.named = self.trail.head();
        tracing::info!(head = %self.named, "audit trail");
    }

    fn write_pending(&mut self) -> io::Result<()> {
        while !self.pending.is_empty() {
            let count = self.pending.len().min(BATCH_RECORDS);
            let entries = self.trail.append(&self.pending[..count])?;
            self.pending.drain(..count);
            let mut summary = self.shared.summary.write();
            entries.into_iter().for_each(|entry| summary.push(entry));
            drop(summary);
            self.shared.counters.written.fetch_add(count as u64, Ordering::Relaxed);
            self.shared.counters.queued.fetch_sub(count as u64, Ordering::Relaxed);
        }
        self.shared.note_end(&self.trail);
        Ok(())
    }

    /// Has the store say how far the trail has come, so that a missing end is noticed.
    fn record_head(&mut self) {
        let head = self.trail.head();
        if self.recorded == Some(head) || head == Head::EMPTY || self.committer.has_failed() {
            return;
        }
        let committed = tables::encode(&head).and_then(|row| {
            let mut batch = Batch::default();
            batch.put(tables::audit_head(), row);
            self.committer.commit_blocking(batch)
        });
        match committed {
            Ok(()) => self.recorded = Some(head),
            Err(error) => tracing::warn!(%error, "the store could not record the audit trail's head"),
        }
    }

    /// `needs_store`: whether it also has to be known to the store. A flush is content with the files.
    fn answer(&self, replies: Vec<(Reply, bool)>, written: bool) {
        let recorded = self.recorded == Some(self.trail.head());
        for (reply, needs_store) in replies {
            let good = written && (recorded || !needs_store);
            // Whoever has stopped waiting does not want to know.
            let _ = reply.send(if good { Ok(()) } else { Err(Unwritten) });
        }
    }

    fn keep_house(&mut self) -> io::Result<()> {
        let Some(retention) = self.config.retention else { return Ok(()) };
        let at = self.shared.clock.now();
        self.trail.seal_if_older(at.0.saturating_sub(SEGMENT_AGE_MS))?;
        let limit = at.0.saturating_sub(u64::try_from(retention.as_millis()).unwrap_or(u64::MAX));
        let Some(end) = self.trail.expired(limit)? else { return Ok(()) };
        // The trail says first what will be missing: a gap that it does not speak of was not made by retention.
        let record = Record::of(Action::AuditPruned)
            .with("first", self.trail.first_sequence())
            .with("last", end.sequence)
            .with("mac", end.mac.to_string());
        self.add(Draft { at, record });
        self.write_pending()?;
        self.trail.delete_through(end.sequence)?;
        self.shared.summary.write().forget_through(end.sequence);
        self.shared.note_end(&self.trail);
        Ok(())
    }

    fn try_to_the_end(&mut self, mut result: io::Result<()>) -> io::Result<()> {
        for _ in 1..STOP_TRIES {
            if result.is_ok() {
                break;
            }
            thread::park_timeout(BACKOFF_FIRST);
            result = self.round();
        }
        result
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // However the thread ended: nobody must wait for it, and nothing may pass that needs it.
        let items = {
            let mut state = self.shared.state.lock();
            state.closed = true;
            std::mem::take(&mut state.queue)
        };
        let lost = (self.pending.len() + items.iter().filter(|item| item.draft.is_some()).count()) as u64;
        self.shared.counters.dropped.fetch_add(lost, Ordering::Relaxed);
        self.shared.counters.queued.fetch_sub(lost, Ordering::Relaxed);
        if !self.shared.stopping.load(Ordering::SeqCst) {
            self.shared.failed.store(true, Ordering::SeqCst);
        }
    }
}
