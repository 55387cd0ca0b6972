//! What the simulated service has seen: counters, request ids and, when asked for, whole requests.
//!
//! Owns every number that `GET /__mock/stats` shows. It never looks at a socket, and every collection in it has a bound.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::head::{Endpoint, Head};

/// Request ids remembered.
const MAX_IDS: usize = 100_000;
/// Request ids listed by the stats endpoint, newest first.
const MAX_IDS_SHOWN: usize = 1_000;
/// Paths outside the known endpoints that get a counter of their own; later ones share `OVERFLOW_PATH`.
const MAX_OTHER_PATHS: usize = 1_000;
const OVERFLOW_PATH: &str = "(other)";
const MAX_RECORDED: usize = 256;
const MAX_RECORDED_BODY: usize = 1 << 20;

/// A snapshot of the counters. Reading the stats endpoint is itself not counted as a call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MockStats {
    /// Calls whose head arrived.
    pub total: u64,
    /// The same, by path without its query.
    pub by_path: BTreeMap<String, u64>,
    /// Bytes of requests taken off the sockets.
    pub bytes_in: u64,
    /// Bytes of answers handed to the sockets.
    pub bytes_out: u64,
    /// Connections accepted since the start.
    pub connections: u64,
    /// Connections open now.
    pub connections_open: u64,
    /// Calls whose client left before its whole request was read or the whole answer was written.
    pub aborted: u64,
    /// Calls this service broke off itself, as `x-mock-abort-after-bytes` asked.
    pub cut: u64,
    /// Requests refused because their framing was broken or ambiguous.
    pub malformed: u64,
    /// Calls begun and not yet ended.
    pub open: u64,
}

/// One request as it came over the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedRequest {
    pub method: String,
    pub target: String,
    /// In wire order, names in their original case.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Without its framing; at most the first MiB.
    pub body: Vec<u8>,
}

impl RecordedRequest {
    /// The first header of this name, whatever its case.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_slice())
    }
}

/// The service's shared state; one per listener.
#[derive(Debug, Default)]
pub(super) struct Tally {
    known: [AtomicU64; Endpoint::COUNTED],
    pub(super) bytes_in: AtomicU64,
    pub(super) bytes_out: AtomicU64,
    connections: AtomicU64,
    connections_open: AtomicU64,
    pub(super) aborted: AtomicU64,
    pub(super) cut: AtomicU64,
    pub(super) malformed: AtomicU64,
    open: AtomicU64,
    answers: AtomicU64,
    others: Mutex<HashMap<String, u64>>,
    ids: Mutex<RequestIds>,
    recording: AtomicBool,
    recorded: Mutex<VecDeque<RecordedRequest>>,
}

/// A call or a connection that is open for as long as this value lives.
pub(super) struct Open<'a>(&'a AtomicU64);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Tally {
    pub(super) fn connection(&self) -> Open<'_> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        open(&self.connections_open)
    }

    /// Counts a call by endpoint and request id. Asking for the stats is not a call: it would change what it reads.
    pub(super) fn call(&self, head: &Head, bytes: &[u8]) -> Option<Open<'_>> {
        match self.known.get(head.endpoint as usize) {
            Some(count) => add(count, 1),
            None if head.endpoint == Endpoint::Stats => return None,
            None => self.count_other(&head.path(bytes)),
        }
        if let Some(id) = head.request_id(bytes) {
            self.ids.lock().count(&String::from_utf8_lossy(id));
        }
        Some(open(&self.open))
    }

    fn count_other(&self, path: &str) {
        let mut others = self.others.lock();
        if let Some(count) = others.get_mut(path) {
            *count += 1;
            return;
        }
        let key = if others.len() < MAX_OTHER_PATHS { path } else { OVERFLOW_PATH };
        *others.entry(key.to_owned()).or_insert(0) += 1;
    }

    /// A number no other answer of this service has.
    pub(super) fn next_answer(&self) -> u64 {
        self.answers.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn served(&self, request_id: &str) -> u64 {
        self.ids.lock().counts.get(request_id).copied().unwrap_or(0)
    }

    pub(super) fn record(&self, on: bool) {
        self.recording.store(on, Ordering::Relaxed);
    }

    pub(super) fn is_recording(&self) -> bool {
        self.recording.load(Ordering::Relaxed)
    }

    pub(super) fn keep(&self, mut request: RecordedRequest) {
        request.body.truncate(MAX_RECORDED_BODY);
        let mut recorded = self.recorded.lock();
        if recorded.len() == MAX_RECORDED {
            recorded.pop_front();
        }
        recorded.push_back(request);
    }

    pub(super) fn last_request(&self) -> Option<RecordedRequest> {
        self.recorded.lock().back().cloned()
    }

    pub(super) fn requests(&self) -> Vec<RecordedRequest> {
        self.recorded.lock().iter().cloned().collect()
    }

    pub(super) fn stats(&self) -> MockStats {
        let by_path = self.by_path();
        MockStats {
            total: by_path.values().sum(),
            by_path,
            bytes_in: get(&self.bytes_in),
            bytes_out: get(&self.bytes_out),
            connections: get(&self.connections),
            connections_open: get(&self.connections_open),
            aborted: get(&self.aborted),
            cut: get(&self.cut),
            malformed: get(&self.malformed),
            open: get(&self.open),
        }
    }

    fn by_path(&self) -> BTreeMap<String, u64> {
        let known = self.known.iter().zip(Endpoint::PATHS).map(|(count, path)| (path.to_owned(), get(count)));
        let mut by_path: BTreeMap<_, _> = known.filter(|(_, count)| *count > 0).collect();
        by_path.extend(self.others.lock().iter().map(|(path, count)| (path.clone(), *count)));
        by_path
    }

    /// The stats as the endpoint shows them; with an id asked for, only that id is listed.
    pub(super) fn stats_json(&self, only: Option<&str>) -> Value {
        let stats = self.stats();
        let by_request_id = match only {
            Some(id) => BTreeMap::from([(id.to_owned(), self.served(id))]),
            None => self.ids.lock().newest(MAX_IDS_SHOWN),
        };
        json!({
            "total": stats.total,
            "by_path": stats.by_path,
            "by_request_id": by_request_id,
            "bytes_in": stats.bytes_in,
            "bytes_out": stats.bytes_out,
            "connections": stats.connections,
            "connections_open": stats.connections_open,
            "aborted": stats.aborted,
            "cut": stats.cut,
            "malformed": stats.malformed,
            "open": stats.open,
        })
    }
}

/// Calls per request id; the oldest ids are forgotten past the bound.
#[derive(Debug, Default)]
struct RequestIds {
    counts: HashMap<Arc<str>, u64>,
    order: VecDeque<Arc<str>>,
}

impl RequestIds {
    fn count(&mut self, id: &str) {
        if let Some(count) = self.counts.get_mut(id) {
            *count += 1;
            return;
        }
        if self.order.len() == MAX_IDS
            && let Some(oldest) = self.order.pop_front()
        {
            self.counts.remove(&oldest);
        }
        let id: Arc<str> = Arc::from(id);
        self.order.push_back(Arc::clone(&id));
        self.counts.insert(id, 1);
    }

    fn newest(&self, limit: usize) -> BTreeMap<String, u64> {
        let newest = self.order.iter().rev().take(limit);
        newest.map(|id| (id.to_string(), self.counts.get(id).copied().unwrap_or(0))).collect()
    }
}

fn open(gauge: &AtomicU64) -> Open<'_> {
    add(gauge, 1);
    Open(gauge)
}

pub(super) fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
