//! The queue between the callers and the journal's thread: [frames](super::frame) in chunks of memory that go back and
//! forth between the two and are never freed by one for the other while there is work.
//!
//! [`Queue`] is the callers' side: shards, each with its lock. [`Pending`] is the thread's: what it has taken and not
//! yet encoded, in the order of the calls' ends. A caller's part is a copy under its shard's lock, the thread's a swap.
//!
//! It never counts towards the queue's bound, wakes anyone or looks inside a frame beyond its length and time.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::frame::{Frame, frame_at, frames, timestamp_ms};

const SHARDS: usize = 8;
/// A frame that is larger gets a chunk of its own. Small enough that a quiet server's shards hold little, large enough
/// that the allocator is rarely asked.
const CHUNK_BYTES: usize = 128 << 10;
/// Buffers smaller than this are not worth giving back.
const IDLE_BYTES: usize = 64 << 10;

/// The callers' side. Threads keep to one shard each, so they rarely meet at its lock.
#[derive(Default)]
pub(super) struct Queue {
    shards: [Shard; SHARDS],
}

#[derive(Default)]
#[repr(align(64))]
struct Shard {
    arena: Mutex<Arena>,
}

/// One shard's frames. A full chunk stays where it is and another is begun: growing one buffer would copy everything
/// that waits, on the request path, just when most waits.
#[derive(Default)]
struct Arena {
    /// The last one is being filled.
    chunks: Vec<Vec<u8>>,
    /// Empty ones to go on with.
    spare: Vec<Vec<u8>>,
    /// Set under the lock at the end, so that every record is either taken or counted as dropped.
    closed: bool,
}

impl Queue {
    /// False when the queue is closed.
    pub(super) fn push(&self, frame: &Frame<'_>) -> bool {
        self.add(frame.len(), |chunk| frame.append_to(chunk))
    }

    /// As [`Queue::push`], for a frame that is bytes already.
    pub(super) fn push_bytes(&self, frame: &[u8]) -> bool {
        self.add(frame.len(), |chunk| chunk.extend_from_slice(frame))
    }

    fn add(&self, len: usize, append: impl FnOnce(&mut Vec<u8>)) -> bool {
        let Some(shard) = self.shards.get(my_shard()) else {
            return false;
        };
        let mut arena = shard.arena.lock();
        if !arena.closed {
            append(arena.room_for(len));
        }
        !arena.closed
    }

    pub(super) fn is_empty(&self) -> bool {
        self.shards.iter().all(|shard| shard.arena.lock().chunks.is_empty())
    }

    /// Takes no more, and throws away what is left: so many records, of so many bytes.
    pub(super) fn close(&self) -> (u64, u64) {
        let mut left = (0, 0);
        for shard in &self.shards {
            let mut arena = shard.arena.lock();
            arena.closed = true;
            arena.spare = Vec::new();
            let chunks = std::mem::take(&mut arena.chunks);
            drop(arena);
            for chunk in &chunks {
                left.0 += frames(chunk).count() as u64;
                left.1 += chunk.len() as u64;
            }
        }
        left
    }
}

impl Arena {
    /// The chunk to append so many bytes to.
    fn room_for(&mut self, len: usize) -> &mut Vec<u8> {
        let fits = self.chunks.last().is_some_and(|chunk| chunk.capacity() - chunk.len() >= len);
        if !fits {
            let chunk = if len > CHUNK_BYTES {
                Vec::with_capacity(len)
            } else {
                self.spare.pop().unwrap_or_else(|| Vec::with_capacity(CHUNK_BYTES))
            };
            self.chunks.push(chunk);
        }
        let last = self.chunks.len() - 1;
        &mut self.chunks[last]
    }
}

/// The calling thread's shard, given out in turn.
fn my_shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    MINE.try_with(|mine| {
        if mine.get() == usize::MAX {
            mine.set(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
        }
        mine.get()
    })
    .unwrap_or(0)
}

/// The thread's side: what it took, and a cursor into it.
#[derive(Default)]
pub(super) struct Pending {
    chunks: Vec<Chunk>,
    /// The frames in the order in which they are to be written.
    order: Vec<Place>,
    /// The frame whose turn it is.
    next: usize,
    /// Those before have reached their place for good; the ones between may be asked for again.
    confirmed: usize,
    order_use: RecentUse,
    /// Empty chunks that no shard has use for just now.
    spare: Vec<Vec<u8>>,
    chunk_use: RecentUse,
}

struct Chunk {
    bytes: Vec<u8>,
    /// Frames of it that are still pending.
    left: u32,
}

/// Where a frame stands. Sorts by time, and among equals as they came.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    timestamp_ms: u64,
    chunk: u32,
    offset: u32,
}

impl Pending {
    /// Takes everything that waits in the queue, if nothing is pending: as long as the disk fails, the shards go on
    /// filling their chunks instead of giving them away half empty.
    pub(super) fn take(&mut self, queue: &Queue) {
        if self.confirmed < self.order.len() {
            return;
        }
        self.chunks.clear();
        self.order_use.clear(&mut self.order);
        (self.next, self.confirmed) = (0, 0);
        for shard in &queue.shards {
            self.take_chunks(&mut shard.arena.lock());
        }
        let kept = self.chunk_use.note(self.chunks.len());
        self.spare.truncate(kept);
        for (number, chunk) in (0..).zip(&mut self.chunks) {
            let before = self.order.len();
            self.order.extend(frames(&chunk.bytes).map(|(offset, frame)| Place {
                timestamp_ms: timestamp_ms(frame),
                chunk: number,
                offset: offset as u32,
            }));
            chunk.left = (self.order.len() - before) as u32;
        }
        // The shards were taken one after another; their records were made at the same time.
        self.order.sort_unstable();
    }

    /// The shard gets as many empty chunks as it has just filled.
    fn take_chunks(&mut self, arena: &mut Arena) {
        let filled = arena.chunks.len();
        self.chunks.extend(arena.chunks.drain(..).map(|bytes| Chunk { bytes, left: 0 }));
        let has = arena.spare.len();
        if has < filled {
            let rest = self.spare.len().saturating_sub(filled - has);
            arena.spare.extend(self.spare.drain(rest..));
        } else {
            self.spare.extend(arena.spare.drain(filled.max(1).min(has)..));
        }
    }

    /// What is pending just after [`Pending::take`]: so many records, of so many bytes.
    pub(super) fn taken(&self) -> (u64, u64) {
        (self.order.len() as u64, self.chunks.iter().map(|chunk| chunk.bytes.len() as u64).sum())
    }

    /// The frame whose turn it is.
    pub(super) fn first(&self) -> Option<&[u8]> {
        let place = self.order.get(self.next)?;
        frame_at(&self.chunks.get(place.chunk as usize)?.bytes, place.offset as usize)
    }

    /// Goes past the first frame.
    pub(super) fn advance(&mut self) {
        self.next = (self.next + 1).min(self.order.len());
    }

    /// What has been gone past is done with. A chunk's memory can be used again after its last frame.
    pub(super) fn confirm(&mut self) {
        for at in self.confirmed..self.next {
            let place = self.order.get(at).and_then(|place| self.chunks.get_mut(place.chunk as usize));
            let Some(chunk) = place else { continue };
            chunk.left = chunk.left.saturating_sub(1);
            if chunk.left == 0 {
                let mut bytes = std::mem::take(&mut chunk.bytes);
                bytes.clear();
                if bytes.capacity() == CHUNK_BYTES {
                    self.spare.push(bytes);
                }
            }
        }
        self.confirmed = self.next;
    }

    /// Goes back to the first frame that is not done with.
    pub(super) fn rewind(&mut self) {
        self.next = self.confirmed;
    }

    /// Throws everything away: so many records, of so many bytes.
    pub(super) fn give_up(&mut self) -> (u64, u64) {
        let mut left = (0, 0);
        while let Some(frame) = self.first() {
            left = (left.0 + 1, left.1 + frame.len() as u64);
            self.advance();
        }
        self.confirm();
        left
    }
}

/// How much of a buffer was used of late: rises at once and sinks slowly. A buffer that is used over and over keeps
/// its memory, and one bad hour's memory is given back.
#[derive(Default)]
pub(super) struct RecentUse {
    most: usize,
}

impl RecentUse {
    /// The most of late, this time included.
    fn note(&mut self, used: usize) -> usize {
        self.most = used.max(self.most - self.most.div_ceil(8));
        self.most
    }

    /// Empties the buffer, and gives memory back when it has much more than it needs.
    pub(super) fn clear<T>(&mut self, buffer: &mut Vec<T>) {
        let most = self.note(buffer.len()).max(IDLE_BYTES / size_of::<T>().max(1));
        buffer.clear();
        if buffer.capacity() > 4 * most {
            buffer.shrink_to(most);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::super::frame::read;
    use super::super::record::ConversationEntry;
    use super::super::record::tests::entry;
    use super::*;

    fn push(queue: &Queue, timestamp_ms: u64, text: &str) {
        assert!(queue.push(&Frame::of(&ConversationEntry { timestamp_ms, ..entry(1, text) })));
    }

    fn texts(pending: &mut Pending) -> Vec<String> {
        let mut texts = Vec::new();
        while let Some(frame) = pending.first() {
            texts.push(String::from_utf8(read(frame).unwrap().response.to_vec()).unwrap());
            pending.advance();
            pending.confirm();
        }
        texts
    }

    #[test]
    fn what_is_not_done_with_comes_again() {
        let (queue, mut pending) = (Queue::default(), Pending::default());
        (0..4).for_each(|time| push(&queue, time, &time.to_string()));
        pending.take(&queue);
        assert_eq!((pending.taken().0, queue.is_empty()), (4, true));
        pending.advance();
        pending.confirm();
        (0..3).for_each(|_| pending.advance());
        push(&queue, 9, "9");
        pending.take(&queue);
        pending.rewind();
        assert_eq!(texts(&mut pending), ["1", "2", "3"], "nothing is taken before that");
        pending.take(&queue);
        let bytes = pending.first().unwrap().to_vec();
        assert!(queue.push_bytes(&bytes));
        assert_eq!(texts(&mut pending), ["9"]);
        pending.take(&queue);
        assert_eq!(texts(&mut pending), ["9"]);
    }

    #[test]
    fn frames_come_in_the_order_of_their_times() {
        let (queue, mut pending) = (Queue::default(), Pending::default());
        for (time, text) in [(3, "c"), (1, "a"), (3, "d")] {
            push(&queue, time, text);
        }
        std::thread::scope(|scope| {
            scope.spawn(|| push(&queue, 2, "b"));
        });
        pending.take(&queue);
        assert_eq!(texts(&mut pending), ["a", "b", "c", "d"]);
        pending.take(&queue);
        assert_eq!(texts(&mut pending), Vec::<String>::new());
    }

    #[test]
    fn chunks_are_filled_and_used_again() {
        let (queue, mut pending) = (Queue::default(), Pending::default());
        let text = "x".repeat(10_000);
        let chunks_of = |queue: &Queue| -> Vec<*const u8> {
            let chunks = queue.shards.iter().flat_map(|shard| {
                shard.arena.lock().chunks.iter().map(|chunk| (chunk.as_ptr(), chunk.capacity())).collect::<Vec<_>>()
            });
            chunks
                .map(|(at, capacity)| {
                    assert_eq!(capacity, CHUNK_BYTES);
                    at
                })
                .collect()
        };
        let mut seen = std::collections::HashSet::new();
        for _ in 0..20 {
            (0..50).for_each(|time| push(&queue, time, &text));
            let chunks = chunks_of(&queue);
            assert_eq!(chunks.len(), 5);
            seen.extend(chunks);
            pending.take(&queue);
            assert_eq!(texts(&mut pending).len(), 50);
        }
        assert_eq!(seen.len(), 10, "two sets of chunks, again and again");

        // Quiet times: all but one chunk of the shard are given back.
        for _ in 0..50 {
            pending.take(&queue);
        }
        let held: usize = queue.shards.iter().map(|shard| shard.arena.lock().spare.len()).sum();
        assert_eq!((held, pending.spare.len()), (1, 0));
    }

    #[test]
    fn a_frame_larger_than_a_chunk_has_its_own() {
        let (queue, mut pending) = (Queue::default(), Pending::default());
        let large = "y".repeat(3 * CHUNK_BYTES);
        push(&queue, 1, "a");
        push(&queue, 2, &large);
        push(&queue, 3, "b");
        pending.take(&queue);
        assert_eq!(texts(&mut pending), ["a", &large, "b"]);
        assert!(pending.spare.iter().all(|chunk| chunk.capacity() == CHUNK_BYTES));
    }

    #[test]
    fn what_is_thrown_away_is_counted_to_the_byte() {
        let (queue, mut pending) = (Queue::default(), Pending::default());
        let bytes = Frame::of(&entry(1, "abc")).len() as u64;
        (0..3).for_each(|time| push(&queue, time, "abc"));
        pending.take(&queue);
        (0..4).for_each(|time| push(&queue, time, "abc"));
        assert_eq!(pending.give_up(), (3, 3 * bytes));
        assert_eq!((pending.give_up(), pending.first()), ((0, 0), None));
        assert_eq!(queue.close(), (4, 4 * bytes));
        assert!(!queue.push(&Frame::of(&entry(1, "late"))));
        assert_eq!(queue.close(), (0, 0));
    }

    #[test]
    fn a_buffer_keeps_what_it_needs_of_late() {
        let (mut recent, mut buffer) = (RecentUse::default(), Vec::new());
        buffer.resize(16 << 20, 0_u8);
        recent.clear(&mut buffer);
        buffer.resize(4 << 20, 0);
        recent.clear(&mut buffer);
        assert!(buffer.capacity() >= 16 << 20, "not at once");
        (0..100).for_each(|_| recent.clear(&mut buffer));
        assert!(buffer.capacity() <= 4 * IDLE_BYTES);
    }
}
