//! The journal's thread: takes what waits, encodes it into a batch, has it written, and tells the readers, the counters
//! and whoever waits for a flush.
//!
//! Owns the batch and the retries: a batch that the disk refused is kept as it is and tried again, byte for byte. It
//! never decides how segments are kept ([`keeping`](super::keeping) does) and never runs a caller's code except the
//! callbacks of a flush.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use super::head::HEAD_2_BYTES;
use super::index::ModelTags;
use super::keeping::ActiveFile;
use super::query::Index;
use super::queue::{Pending, RecentUse};
use super::redact::Redaction;
use super::replay::{Replay, Spilled};
use super::segment::{Disk, RECORD_HEAD_BYTES, append_record};
use super::{Clock, JournalConfig, Shared, ended, frame};

/// A batch ends when its encoded bytes reach this, so that a long queue is written in bounded pieces.
const BATCH_BYTES: usize = 4 << 20;
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_LONGEST: Duration = Duration::from_secs(5);
/// How often a stop tries a disk that fails before it gives the waiting records up.
const STOP_TRIES: u32 = 3;

/// Encoded records on their way to the disk. Kept as they are until the disk has them: a retry writes the same bytes.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    pub(super) marks: Vec<Mark>,
    /// Bytes that its records take in the queue.
    weight: u64,
    /// How many of its records come back from the spill; the queue knows nothing of them.
    spilled: u64,
    bytes_use: RecentUse,
}

/// Where a record begins in its batch, and what the index has to know of it.
pub(super) struct Mark {
    offset: u64,
    user_id: u64,
    model: u64,
    timestamp_ms: u64,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }

    /// Encodes one frame. False, and nothing changed, when the record is larger than one may be.
    fn push(&mut self, seq: u64, frame: &[u8], rules: &Redaction, tags: &mut ModelTags) -> bool {
        let Some(entry) = frame::read(frame) else {
            return false;
        };
        let offset = self.bytes.len() as u64;
        let (user_id, timestamp_ms) = (entry.user_id, entry.timestamp_ms);
        let fits = append_record(&mut self.bytes, (seq, user_id, timestamp_ms), |out| entry.encode(seq, rules, out));
        if fits {
            self.marks.push(Mark { offset, user_id, model: tags.of(entry.model), timestamp_ms });
            self.weight += frame.len() as u64;
        }
        fits
    }

    /// As [`Batch::push`], for a record that comes back from the spill.
    pub(super) fn push_spilled(&mut self, seq: u64, spilled: &Spilled<'_>, tags: &mut ModelTags) -> bool {
        let offset = self.bytes.len() as u64;
        let (user_id, timestamp_ms) = (spilled.head.user_id, spilled.head.timestamp_ms);
        let fits = append_record(&mut self.bytes, (seq, user_id, timestamp_ms), |out| spilled.encode(seq, out));
        if fits {
            let model = tags.of_json(self.bytes.get(offset as usize + RECORD_HEAD_BYTES..).unwrap_or_default());
            self.marks.push(Mark { offset, user_id, model, timestamp_ms });
            self.spilled += 1;
        }
        fits
    }

    fn clear(&mut self) {
        self.bytes_use.clear(&mut self.bytes);
        self.marks.clear();
        (self.weight, self.spilled) = (0, 0);
    }
}

/// The journal's thread.
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) config: JournalConfig,
    pub(super) clock: Clock,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) active: Option<ActiveFile>,
    /// The sequence of the next record to be encoded.
    pub(super) next_seq: u64,
    /// What was taken out of the queue and is not encoded yet.
    pub(super) pending: Pending,
    pub(super) batch: Batch,
    /// Spilled records on their way back.
    pub(super) replay: Replay,
    pub(super) tags: ModelTags,
    /// Held, not read: while it is locked no other server writes here.
    pub(super) lock: Arc<File>,
}

impl Writer {
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut backoff = BACKOFF_FIRST;
        loop {
            // Read before the queue is drained: what was emitted before the stop is then in this round.
            let stopping = self.shared.stopping.load(Ordering::SeqCst);
            let result = self.round();
            if stopping {
                return result.map(drop).or_else(|error| self.try_to_the_end(error));
            }
            match result {
                Ok(wrote) => {
                    backoff = BACKOFF_FIRST;
                    if !self.replay_some() {
                        self.sleep(wrote);
                    }
                }
                Err(_) => {
                    self.sleep_after_failure(backoff);
                    backoff = (backoff * 2).min(BACKOFF_LONGEST);
                }
            }
        }
    }

    /// Writes everything that waits. True when there was something.
    fn round(&mut self) -> io::Result<bool> {
        // Waiters are taken before the queue is drained: what they emitted is then in this round.
        let waiters = self.shared.take_waiters();
        let result = self.write_everything();
        match &result {
            Ok(_) => self.keep_house(),
            Err(_) => self.count_error(),
        }
        waiters.into_iter().for_each(|done| done(told(&result)));
        result
    }

    /// Brings one batch back from the spill, when there is one. True when it was written.
    fn replay_some(&mut self) -> bool {
        if !self.batch.is_empty() || !self.replay.has_work(&self.shared) {
            return false;
        }
        let into = (&mut self.batch, &mut self.next_seq, &mut self.tags, batch_limit(&self.config));
        let filled = self.replay.fill(&self.shared, &*self.disk, into);
        let result = filled.and_then(|()| if self.batch.is_empty() { Ok(()) } else { self.commit() });
        if result.is_err() {
            self.count_error(); // what is in the batch is tried again by the next round
        }
        result.is_ok()
    }

    /// What an earlier failure left goes first; the queue gives nothing more before that.
    fn write_everything(&mut self) -> io::Result<bool> {
        let wrote = self.write_pending()?;
        self.pending.take(&self.shared.queue);
        Ok(self.write_pending()? || wrote)
    }

    fn write_pending(&mut self) -> io::Result<bool> {
        let mut wrote = false;
        loop {
            if self.batch.is_empty() {
                self.encode_batch();
            }
            if self.batch.is_empty() {
                self.batch.clear();
                return Ok(wrote);
            }
            self.commit()?;
            wrote = true;
        }
    }

    fn encode_batch(&mut self) {
        let limit = batch_limit(&self.config);
        while self.batch.bytes.len() < limit {
            let Some(frame) = self.pending.first() else {
                return;
            };
            if self.batch.push(self.next_seq, frame, &self.shared.redaction, &mut self.tags) {
                self.next_seq += 1;
                self.pending.advance();
            } else if self.batch.is_empty() {
                self.shared.counters.dropped.fetch_add(1, Ordering::SeqCst);
                self.shared.leave_queue(1, frame.len() as u64);
                self.pending.advance();
                self.pending.confirm();
            } else {
                return; // those before it first
            }
        }
    }

    /// Writes and syncs the batch, then lets readers and counters see it.
    fn commit(&mut self) -> io::Result<()> {
        self.make_room()?;
        let Some(active) = &mut self.active else {
            return Err(ended());
        };
        let (start, extra) = (active.len, active.extra_per_record());
        active.append(&self.batch.bytes, self.config.sync)?;
        crate::failpoint::hit("journal.after_sync");
        self.publish(start, extra);
        Ok(())
    }

    /// The batch lies at `start`, and each of its records takes `extra` bytes more than in the batch.
    fn publish(&mut self, start: u64, extra: u64) {
        let records = self.batch.marks.len() as u64;
        if let Some(segment) = &mut self.shared.catalog.write().active {
            segment.facts.len = start + self.batch.bytes.len() as u64 + records * extra;
            segment.facts.last_seq = self.next_seq - 1;
            for (before, mark) in (0..).zip(&self.batch.marks) {
                if let Index::Memory(index) = &mut segment.index {
                    segment.facts.note_time(mark.timestamp_ms, index.records() == 0);
                    index.push(mark.user_id, mark.model, mark.timestamp_ms, start + mark.offset + before * extra);
                }
            }
        }
        let spilled = self.batch.spilled;
        // Counted in its new place before it leaves the old one: nothing is ever out of sight.
        self.shared.counters.written.fetch_add(records, Ordering::SeqCst);
        self.shared.counters.batches.fetch_add(1, Ordering::Relaxed);
        self.shared.counters.spilled.fetch_sub(spilled, Ordering::SeqCst);
        self.shared.leave_queue(records - spilled, self.batch.weight);
        self.pending.confirm();
        self.batch.clear();
    }

    /// Until the next batch is due. After a batch, a full queue has to wait for `batch_gap`.
    fn sleep(&self, wrote: bool) {
        let mut longest = self.config.flush_interval;
        if wrote && !self.shared.is_urgent() {
            thread::park_timeout(self.config.batch_gap);
            longest = longest.saturating_sub(self.config.batch_gap);
        }
        // Allow the wake-up before looking: a batch that fills in between is then either seen or wakes.
        self.shared.wakeable.store(true, Ordering::SeqCst);
        if !self.shared.is_urgent() && !self.shared.has_full_batch() {
            thread::park_timeout(longest);
        }
        self.shared.wakeable.store(false, Ordering::SeqCst);
    }

    /// A failing disk is not tried faster because more waits, only when somebody asks.
    fn sleep_after_failure(&self, backoff: Duration) {
        if !self.shared.is_called() {
            thread::park_timeout(backoff);
        }
    }

    /// The last tries of a stop.
    fn try_to_the_end(&mut self, mut error: io::Error) -> io::Result<()> {
        for _ in 1..STOP_TRIES {
            thread::park_timeout(BACKOFF_FIRST);
            match self.round() {
                Ok(_) => return Ok(()),
                Err(next) => error = next,
            }
        }
        self.give_up();
        Err(error)
    }

    fn give_up(&mut self) {
        // What may stand in the file for all we know must not be written elsewhere as well.
        let is_cut = self.active.as_mut().is_none_or(|active| active.hand_over().is_ok());
        if self.shared.spill.is_on() && is_cut {
            // The spill's thread ends after this one and takes them from the queue.
            self.pending.rewind();
            while self.pending.first().is_some_and(|frame| self.shared.queue.push_bytes(frame)) {
                self.pending.advance();
            }
            self.pending.confirm();
            self.batch.clear();
        }
        let (records, weight) = self.pending.give_up();
        // Those of the spill are still there, and brought back by the next start.
        let lost = self.batch.marks.len() as u64 - self.batch.spilled;
        self.shared.give_up(records + lost, weight + self.batch.weight);
        self.batch.clear();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // However the thread ended, callers must not wait for it any more. After a panic there is something left, and even
        // if not, a flush must not say that all is well.
        self.shared.lost_at_end.fetch_or(thread::panicking(), Ordering::SeqCst);
        self.give_up();
        self.shared.close();
    }
}

/// A batch ends when it has so many bytes.
fn batch_limit(config: &JournalConfig) -> usize {
    BATCH_BYTES.min((config.segment_bytes - HEAD_2_BYTES) as usize)
}

/// An error for each who waits.
fn told(result: &io::Result<bool>) -> io::Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::super::frame::Frame;
    use super::super::record::tests::entry;
    use super::super::testing::*;
    use super::*;

    #[test]
    fn a_full_batch_is_written_without_being_asked() {
        let bench = Bench::new();
        let mut config = bench.config();
        config.batch_records = 10;
        let journal = bench.start(config);
        // Twice a batch: the thread may take some of the first before they are ten, and those it leaves must be ten again.
        emit_numbered(&journal, 1, 0..20);
        while balance_written(&journal) < 10 {
            thread::yield_now();
        }
    }

    #[test]
    fn past_the_bound_records_are_dropped_and_counted() {
        let bench = Bench::new();
        let mut config = bench.config();
        let weight = Frame::of(&entry(1, "x")).len() as u64;
        config.queue_bytes = weight * 10;
        let journal = bench.start(config);
        bench.faults.lock().writes = u32::MAX;
        (0..25).for_each(|_| journal.emit(&entry(1, "x")));
        assert_eq!(balance(&journal), (25, 0, 15, 10));
        assert!(journal.flush().is_err());
        assert_eq!(balance(&journal), (25, 0, 15, 10), "a failed batch still counts against the bound");

        bench.faults.lock().writes = 0;
        journal.flush().unwrap();
        assert_eq!(balance(&journal), (25, 10, 15, 0));
        journal.emit(&entry(1, "y"));
        journal.flush().unwrap();
        assert_eq!(balance(&journal), (26, 11, 15, 0));
        assert_sound(&bench, 11);
    }

    #[test]
    fn a_failed_write_or_sync_is_cut_back_and_tried_again() {
        for part in [0, 1, 31, 32, 33, 500, 100_000] {
            for (writes, syncs, cuts) in [(1, 0, 0), (0, 1, 0), (3, 2, 0), (1, 0, 1), (2, 1, 2)] {
                let bench = Bench::new();
                let journal = bench.journal();
                emit_numbered(&journal, 1, 0..2);
                journal.flush().unwrap();
                *bench.faults.lock() =
                    Faults { writes, syncs, cuts, written_before_failing: part, ..Faults::default() };

                emit_numbered(&journal, 1, 2..4);
                assert!(journal.flush().is_err());
                // The thread may have tried again by itself; what a reader sees is whole either way.
                let seen = journal.page(1, 1, 9).unwrap();
                assert!(matches!((seen.total, seen.unreadable), (2 | 4, 0)), "{seen:?}");
                emit_numbered(&journal, 1, 4..5);
                while journal.flush().is_err() {}

                assert_eq!(contents(&journal.page(1, 1, 9).unwrap()), ["4", "3", "2", "1", "0"]);
                assert_eq!(balance(&journal), (5, 5, 0, 0));
                assert_sound(&bench, 5);
            }
        }
    }

    #[test]
    fn a_stop_with_a_dead_disk_ends_and_counts_what_it_gave_up() {
        let bench = Bench::new();
        let journal = bench.journal();
        bench.faults.lock().writes = u32::MAX;
        emit_numbered(&journal, 1, 0..3);
        assert!(journal.stop().is_err());
        journal.emit(&entry(1, "late"));
        assert_eq!(balance(&journal), (4, 0, 4, 0));
        assert!(journal.flush().is_err());
    }

    #[test]
    fn what_was_counted_as_dropped_is_not_in_the_file() {
        for (writes, syncs) in [(u32::MAX, 0), (0, u32::MAX)] {
            let bench = Bench::new();
            let journal = bench.journal();
            emit_numbered(&journal, 1, 0..2);
            journal.flush().unwrap();
            *bench.faults.lock() = Faults { writes, syncs, written_before_failing: usize::MAX, ..Faults::default() };
            emit_numbered(&journal, 1, 2..5);
            assert!(journal.stop().is_err());
            assert_eq!(balance(&journal), (5, 2, 3, 0));
            assert_sound(&bench, 2);
        }
    }

    #[test]
    fn a_panic_on_the_thread_leaves_nobody_waiting() {
        let bench = Bench::new();
        let journal = bench.journal();
        emit_numbered(&journal, 1, 0..1);
        journal.flush_then(|_| panic!("as a callback must not"));
        while journal.flush().is_ok() {}
        emit_numbered(&journal, 1, 0..1);
        assert!(journal.stop().is_err());
        let (emitted, written, dropped, queued) = balance(&journal);
        assert_eq!((emitted, written + dropped, queued), (2, 2, 0));
    }
}
