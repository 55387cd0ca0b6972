//! Every metric family, declared here and nowhere else.
//!
//! Owns the counters. What workers count on the request path lives in one [`Shard`] per worker, written by its thread alone
//! without locked instructions and summed when scraped; the rest is shared. Labels are numbers into bounded tables, so no
//! call formats or hashes a label. Never counts per user, key or address.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram as ProtoHistogram, LabelPair, Metric, MetricFamily, MetricType,
};
use prometheus::{Encoder, TextEncoder};

use crate::domain::meters::Micro;
use crate::error::{RateScope, Reject};

/// Routes, meters and models that have a label of their own; later ones are counted as `other`.
const MAX_ROUTES: usize = 128;
const MAX_METERS: usize = 32;
const MAX_MODELS: usize = 64;

/// Tokens of one call that are counted at most.
const MAX_TOKENS_A_CALL: u64 = 1 << 32;

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    Ok,
    /// The upstream answered 4xx.
    UpstreamRefused,
    /// The upstream answered 5xx.
    UpstreamFailed,
    /// The upstream broke off in the middle of its answer.
    UpstreamCut,
    ClientGone,
    /// A call of the local API.
    Local,
    /// A repeated call that got the answer of the first.
    Replayed,
    Unauthenticated,
    BadRequest,
    AddressDenied,
    /// Blocked for guessing.
    AddressBlocked,
    Forbidden,
    NotFound,
    RateLimited,
    TooManyInFlight,
    /// All places for users of the route were taken.
    NoPlace,
    CreditsExhausted,
    Repeated,
    BodyTooLarge,
    Overloaded,
    StoreUnavailable,
    UpstreamUnreachable,
    UpstreamTimeout,
    RequestTimeout,
    Internal,
}

const OUTCOMES: [&str; 25] = [
    "ok",
    "upstream_refused",
    "upstream_failed",
    "upstream_cut",
    "client_gone",
    "local",
    "replayed",
    "unauthenticated",
    "bad_request",
    "address_denied",
    "address_blocked",
    "forbidden",
    "not_found",
    "rate_limited",
    "too_many_in_flight",
    "no_place",
    "credits_exhausted",
    "repeated",
    "body_too_large",
    "overloaded",
    "store_unavailable",
    "upstream_unreachable",
    "upstream_timeout",
    "request_timeout",
    "internal",
];

impl Outcome {
    pub fn as_str(self) -> &'static str {
        OUTCOMES[self as usize]
    }
}

impl From<&Reject> for Outcome {
    fn from(reject: &Reject) -> Self {
        match reject {
            Reject::Unauthenticated
            | Reject::SessionNeeded
            | Reject::Replayed { .. }
            | Reject::CodeRequired
            | Reject::WrongCode
            | Reject::UniqueCodeRequired
            | Reject::LoginFactorsMissing(_)
            | Reject::LoginFactorRefused { .. } => Self::Unauthenticated,
            Reject::BadRequest(_)
            | Reject::Invalid(_)
            | Reject::Conflict(_)
            | Reject::HeadTooLarge
            | Reject::ExpectationFailed
            | Reject::UnsupportedMediaType(_)
            | Reject::VersionNotSupported
            | Reject::UnknownHost(_) => Self::BadRequest,
            Reject::AddressDenied => Self::AddressDenied,
            Reject::AddressBlocked { .. } => Self::AddressBlocked,
            Reject::Forbidden(_)
            | Reject::WrongPassword
            | Reject::FactorRequired
            | Reject::PasswordChangeRequired
            | Reject::OwnerProofRequired
            | Reject::Locked { .. } => Self::Forbidden,
            Reject::NotFound | Reject::OnSidePort | Reject::MethodNotAllowed(_) => Self::NotFound,
            Reject::RateLimited { .. } => Self::RateLimited,
            Reject::TooManyInFlight { .. } => Self::TooManyInFlight,
            Reject::NoPlace { .. } => Self::NoPlace,
            Reject::CreditsExhausted(_) | Reject::CreditsRanOut => Self::CreditsExhausted,
            Reject::Repeated(_) => Self::Repeated,
            Reject::BodyTooLarge { .. } => Self::BodyTooLarge,
            Reject::Overloaded(_) => Self::Overloaded,
            Reject::StoreUnavailable => Self::StoreUnavailable,
            Reject::UpstreamUnreachable => Self::UpstreamUnreachable,
            Reject::UpstreamTimeout => Self::UpstreamTimeout,
            Reject::RequestTimeout => Self::RequestTimeout,
            Reject::Internal => Self::Internal,
        }
    }
}

/// Why a connection was closed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum NotLetIn {
    /// There are as many as there may be, and all have something to do.
    Full,
    /// As many of this address.
    Address,
    /// Its address is denied, and room for an answer is scarce.
    Denied,
}

const NOT_LET_IN: [&str; 3] = ["full", "address", "denied"];

/// A number into one of the bounded label tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Label(u16);

/// What a look into the credential cache found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CacheResult {
    Hit,
    NegativeHit,
    Miss,
    /// A credential of an older generation: read again.
    Stale,
}

const CACHE_RESULTS: [&str; 4] = ["hit", "negative_hit", "miss", "stale"];

/// Seconds; wide enough for a ledger commit and for an answer that streams for minutes.
const DURATION_BOUNDS: [f64; 18] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0];
/// Seconds; for what the gateway itself adds.
const OVERHEAD_BOUNDS: [f64; 14] =
    [0.000_005, 0.000_01, 0.000_02, 0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 1.0];
const BATCH_BOUNDS: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 1000.0, 10_000.0];

/// A counter that one thread writes: a plain load and store, no locked instruction.
#[derive(Default)]
struct Local(AtomicU64);

impl Local {
    fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).saturating_add(n), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

struct LocalHistogram<const N: usize> {
    bounds: &'static [f64; N],
    buckets: [Local; N],
    above: Local,
    sum_ns: Local,
}

impl<const N: usize> LocalHistogram<N> {
    fn new(bounds: &'static [f64; N]) -> Self {
        Self {
            bounds,
            buckets: std::array::from_fn(|_| Local::default()),
            above: Local::default(),
            sum_ns: Local::default(),
        }
    }

    fn observe(&self, value: f64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        self.buckets.get(at).unwrap_or(&self.above).add(1);
        self.sum_ns.add((value * 1e9) as u64);
    }
}

/// What one worker counts. Methods are to be called from that worker's thread.
pub struct Shard {
    requests: Box<[[Local; OUTCOMES.len()]]>,
    request_duration: LocalHistogram<18>,
    overhead: LocalHistogram<14>,
    upstream_duration: LocalHistogram<18>,
    first_byte: LocalHistogram<18>,
    started: Local,
    ended: Local,
    auth_ok: Local,
    auth_failed: Local,
    cache: [Local; CACHE_RESULTS.len()],
    rate_limited: [Local; RateScope::ALL.len()],
    reserved: [Local; MAX_METERS],
    spent: [Local; MAX_METERS],
    unpaid: [Local; MAX_METERS],
    tokens: Box<[[Local; 3]]>,
    connections_opened: Local,
    connections_closed: Local,
    connections_refused: [Local; NOT_LET_IN.len()],
    accept_errors: Local,
    panics: Local,
    retries: Local,
}

impl Shard {
    fn new() -> Self {
        Self {
            requests: (0..=MAX_ROUTES).map(|_| Default::default()).collect(),
            request_duration: LocalHistogram::new(&DURATION_BOUNDS),
            overhead: LocalHistogram::new(&OVERHEAD_BOUNDS),
            upstream_duration: LocalHistogram::new(&DURATION_BOUNDS),
            first_byte: LocalHistogram::new(&DURATION_BOUNDS),
            started: Local::default(),
            ended: Local::default(),
            auth_ok: Local::default(),
            auth_failed: Local::default(),
            cache: Default::default(),
            rate_limited: Default::default(),
            reserved: Default::default(),
            spent: Default::default(),
            unpaid: Default::default(),
            tokens: (0..=MAX_MODELS).map(|_| Default::default()).collect(),
            connections_opened: Local::default(),
            connections_closed: Local::default(),
            connections_refused: Default::default(),
            accept_errors: Local::default(),
            panics: Local::default(),
            retries: Local::default(),
        }
    }

    pub fn request_started(&self) {
        self.started.add(1);
    }

    /// `upstream` is the part of `total` spent waiting for the upstream or the client; `None` when none was called.
    pub fn request_ended(&self, route: Label, outcome: Outcome, total: Duration, upstream: Option<Duration>) {
        self.ended.add(1);
        self.requests[usize::from(route.0).min(MAX_ROUTES)][outcome as usize].add(1);
        self.request_duration.observe(total.as_secs_f64());
        if let Some(upstream) = upstream {
            self.upstream_duration.observe(upstream.as_secs_f64());
        }
    }

    pub fn overhead(&self, time: Duration) {
        self.overhead.observe(time.as_secs_f64());
    }

    pub fn first_byte(&self, time: Duration) {
        self.first_byte.observe(time.as_secs_f64());
    }

    pub fn authenticated(&self, ok: bool) {
        if ok { self.auth_ok.add(1) } else { self.auth_failed.add(1) }
    }

    pub fn cache(&self, result: CacheResult) {
        self.cache[result as usize].add(1);
    }

    pub fn rate_limited(&self, scope: RateScope) {
        self.rate_limited[scope as usize].add(1);
    }

    pub fn reserved(&self, meter: Label, amount: Micro) {
        self.reserved[usize::from(meter.0).min(MAX_METERS - 1)].add(amount.0.unsigned_abs());
    }

    /// What a call cost beyond what was held for it.
    pub fn unpaid(&self, meter: Label, amount: Micro) {
        self.unpaid[usize::from(meter.0).min(MAX_METERS - 1)].add(amount.0.unsigned_abs());
    }

    pub fn spent(&self, meter: Label, amount: Micro) {
        self.spent[usize::from(meter.0).min(MAX_METERS - 1)].add(amount.0.unsigned_abs());
    }

    /// What one answer reported, as far as it can be true: one that lies must not spoil the counter for good.
    pub fn tokens(&self, model: Label, input: u64, output: u64, cached: u64) {
        let row = &self.tokens[usize::from(model.0).min(MAX_MODELS)];
        for (counter, reported) in row.iter().zip([input, output, cached]) {
            counter.add(reported.min(MAX_TOKENS_A_CALL));
        }
    }

    pub fn connection_opened(&self) {
        self.connections_opened.add(1);
    }

    pub fn connection_closed(&self) {
        self.connections_closed.add(1);
    }

    pub fn connection_refused(&self, why: NotLetIn) {
        self.connections_refused[why as usize].add(1);
    }

    pub fn accept_failed(&self) {
        self.accept_errors.add(1);
    }

    pub fn panicked(&self) {
        self.panics.add(1);
    }

    pub fn retried(&self) {
        self.retries.add(1);
    }
}

/// Names that have become labels, first come, up to a bound.
struct Labels {
    names: RwLock<HashMap<Box<str>, u16>>,
    bound: usize,
}

impl Labels {
    fn new(bound: usize) -> Self {
        Self { names: RwLock::default(), bound }
    }

    /// The last label, `bound`, stands for all names past the bound.
    fn get(&self, name: &str) -> Label {
        if let Some(at) = self.names.read().get(name) {
            return Label(*at);
        }
        let mut names = self.names.write();
        let next = names.len();
        if next >= self.bound {
            return Label(self.bound as u16);
        }
        Label(*names.entry(name.into()).or_insert(next as u16))
    }

    fn list(&self) -> Vec<(String, usize)> {
        let mut list: Vec<_> = self.names.read().iter().map(|(n, at)| (n.to_string(), usize::from(*at))).collect();
        list.sort_by_key(|(_, at)| *at);
        list.push(("other".to_owned(), self.bound));
        list
    }
}

type Probe = Box<dyn Fn(&mut Exposition) + Send + Sync>;

/// All metrics of the process.
pub struct Metrics {
    shards: Vec<Arc<Shard>>,
    routes: Labels,
    meters: Labels,
    models: Labels,
    commit_seconds: Mutex<(ProtoCounts, ProtoCounts)>,
    store_errors: AtomicU64,
    logins_ok: AtomicU64,
    logins_failed: AtomicU64,
    logins_locked: AtomicU64,
    logins_blocked: AtomicU64,
    login_checks: [AtomicU64; LOGIN_CHECKS.len()],
    config_reloads_ok: AtomicU64,
    config_reloads_refused: AtomicU64,
    actor_panics: AtomicU64,
    /// Gauges that their owners keep.
    probes: Mutex<Vec<Probe>>,
}

/// A histogram that is written rarely enough for a lock.
struct ProtoCounts {
    bounds: &'static [f64],
    counts: Vec<u64>,
    sum: f64,
}

impl ProtoCounts {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    fn observe(&mut self, value: f64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        self.counts[at] += 1;
        self.sum += value;
    }
}

/// How a login ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Login {
    Ok,
    Failed,
    Locked,
    /// From an address that may not guess.
    Blocked,
}

/// What came of asking the verifier of logins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LoginChecked {
    Allowed,
    Refused,
    /// Too late, not reached, or an answer that is none.
    Unavailable,
    /// Too many at once: it was not asked.
    Busy,
}

const LOGIN_CHECKS: [&str; 4] = ["allowed", "refused", "unavailable", "busy"];

impl Metrics {
    pub fn new(workers: usize) -> Self {
        Self {
            shards: (0..workers).map(|_| Arc::new(Shard::new())).collect(),
            routes: Labels::new(MAX_ROUTES),
            // One place less than the table has: the last is `other`.
            meters: Labels::new(MAX_METERS - 1),
            models: Labels::new(MAX_MODELS),
            commit_seconds: Mutex::new((ProtoCounts::new(&DURATION_BOUNDS), ProtoCounts::new(&BATCH_BOUNDS))),
            store_errors: AtomicU64::new(0),
            logins_ok: AtomicU64::new(0),
            logins_failed: AtomicU64::new(0),
            logins_locked: AtomicU64::new(0),
            logins_blocked: AtomicU64::new(0),
            login_checks: Default::default(),
            config_reloads_ok: AtomicU64::new(0),
            config_reloads_refused: AtomicU64::new(0),
            actor_panics: AtomicU64::new(0),
            probes: Mutex::default(),
        }
    }

    /// The shard of worker number `worker`.
    pub fn shard(&self, worker: usize) -> Arc<Shard> {
        self.shards.get(worker).cloned().unwrap_or_else(|| Arc::new(Shard::new()))
    }

    pub fn route(&self, name: &str) -> Label {
        self.routes.get(name)
    }

    pub fn meter(&self, name: &str) -> Label {
        self.meters.get(name)
    }

    pub fn model(&self, name: &str) -> Label {
        self.models.get(name)
    }

    pub fn commit(&self, took: Duration, size: usize) {
        let mut commits = self.commit_seconds.lock();
        commits.0.observe(took.as_secs_f64());
        commits.1.observe(size as f64);
    }

    pub fn store_error(&self) {
        self.store_errors.fetch_add(1, Ordering::Relaxed);
    }

    pub fn login(&self, result: Login) {
        match result {
            Login::Ok => &self.logins_ok,
            Login::Failed => &self.logins_failed,
            Login::Locked => &self.logins_locked,
            Login::Blocked => &self.logins_blocked,
        }
        .fetch_add(1, Ordering::Relaxed);
    }

    pub fn login_checked(&self, result: LoginChecked) {
        self.login_checks[result as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn config_reloaded(&self, ok: bool) {
        if ok { &self.config_reloads_ok } else { &self.config_reloads_refused }.fetch_add(1, Ordering::Relaxed);
    }

    pub fn actor_panicked(&self) {
        self.actor_panics.fetch_add(1, Ordering::Relaxed);
    }

    /// Adds a gauge whose owner is asked at each scrape.
    pub fn probe(&self, probe: impl Fn(&mut Exposition) + Send + Sync + 'static) {
        self.probes.lock().push(Box::new(probe));
    }

    /// Calls in flight over all workers.
    pub fn in_flight(&self) -> u64 {
        self.sum(|s| s.started.get()).saturating_sub(self.sum(|s| s.ended.get()))
    }

    fn sum(&self, read: impl Fn(&Shard) -> u64) -> u64 {
        self.shards.iter().fold(0, |sum, shard| sum.saturating_add(read(shard)))
    }

    /// The Prometheus text.
    pub fn render(&self) -> String {
        let mut out = Exposition::default();
        self.request_families(&mut out);
        self.money_families(&mut out);
        self.process_families(&mut out);
        for probe in self.probes.lock().iter() {
            probe(&mut out);
        }
        let mut families = out.families;
        families.extend(prometheus::gather());
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&families, &mut text) {
            tracing::warn!(%error, "metrics could not be encoded");
        }
        String::from_utf8(text).unwrap_or_default()
    }

    fn request_families(&self, out: &mut Exposition) {
        let mut requests = Vec::new();
        for (name, at) in self.routes.list() {
            for (outcome, label) in OUTCOMES.iter().enumerate() {
                let n = self.sum(|s| s.requests[at][outcome].get());
                if n > 0 {
                    requests.push((vec![("route", name.clone()), ("outcome", (*label).to_owned())], n as f64));
                }
            }
        }
        out.counters("tollgate_requests_total", "Requests by route and outcome.", requests);
        out.histogram(
            "tollgate_request_duration_seconds",
            "From a request's head to the end of its answer.",
            self.merged(|s| &s.request_duration),
        );
        out.histogram(
            "tollgate_overhead_seconds",
            "Time spent in the gateway itself, per call to an upstream.",
            self.merged(|s| &s.overhead),
        );
        out.histogram(
            "tollgate_upstream_duration_seconds",
            "From choosing an upstream to the end of its answer.",
            self.merged(|s| &s.upstream_duration),
        );
        out.histogram(
            "tollgate_time_to_first_byte_seconds",
            "From a request's head to the first byte of its answer.",
            self.merged(|s| &s.first_byte),
        );
        out.gauge("tollgate_in_flight", "Requests being served.", self.in_flight() as f64);
        out.counters(
            "tollgate_auth_total",
            "Credentials judged.",
            vec![
                (vec![("result", "ok".to_owned())], self.sum(|s| s.auth_ok.get()) as f64),
                (vec![("result", "failed".to_owned())], self.sum(|s| s.auth_failed.get()) as f64),
            ],
        );
        let cache = CACHE_RESULTS.iter().enumerate();
        out.counters(
            "tollgate_auth_cache_total",
            "Looks into the credential cache.",
            cache
                .map(|(at, label)| (vec![("result", (*label).to_owned())], self.sum(|s| s.cache[at].get()) as f64))
                .collect(),
        );
        let scopes = RateScope::ALL.iter();
        out.counters(
            "tollgate_rate_limited_total",
            "Requests refused for their rate.",
            scopes
                .map(|scope| {
                    (
                        vec![("scope", scope.as_str().to_owned())],
                        self.sum(|s| s.rate_limited[*scope as usize].get()) as f64,
                    )
                })
                .collect(),
        );
        out.gauge(
            "tollgate_connections",
            "Open client connections.",
            self.sum(|s| s.connections_opened.get()).saturating_sub(self.sum(|s| s.connections_closed.get())) as f64,
        );
        out.counter(
            "tollgate_connections_total",
            "Client connections accepted.",
            self.sum(|s| s.connections_opened.get()) as f64,
        );
        let refused = NOT_LET_IN.iter().enumerate();
        out.counters(
            "tollgate_connections_refused_total",
            "Client connections closed at once: too many, too many of one address, or of a denied address when many are open.",
            refused
                .map(|(at, why)| {
                    (vec![("reason", (*why).to_owned())], self.sum(|s| s.connections_refused[at].get()) as f64)
                })
                .collect(),
        );
        out.counter(
            "tollgate_accept_errors_total",
            "Client connections that the system could not hand over.",
            self.sum(|s| s.accept_errors.get()) as f64,
        );
        out.counter(
            "tollgate_upstream_retries_total",
            "Further attempts at an upstream.",
            self.sum(|s| s.retries.get()) as f64,
        );
        out.counter("tollgate_panics_total", "Requests that ended in a panic.", self.sum(|s| s.panics.get()) as f64);
        let mut tokens = Vec::new();
        for (name, at) in self.models.list() {
            for (direction, label) in ["input", "output", "cached"].iter().enumerate() {
                let n = self.sum(|s| s.tokens[at][direction].get());
                if n > 0 {
                    tokens.push((vec![("direction", (*label).to_owned()), ("model", name.clone())], n as f64));
                }
            }
        }
        out.counters("tollgate_tokens_total", "Tokens the upstreams reported.", tokens);
    }

    fn money_families(&self, out: &mut Exposition) {
        let units = |micros: u64| micros as f64 / Micro::UNIT as f64;
        let per_meter = |read: fn(&Shard) -> &[Local; MAX_METERS]| {
            let named = self.meters.list().into_iter();
            named
                .map(|(name, at)| (vec![("meter", name)], units(self.sum(|s| read(s)[at].get()))))
                .filter(|(l, n)| l[0].1 != "other" || *n > 0.0)
                .collect()
        };
        out.counters("tollgate_credits_reserved_total", "Units held for calls, by meter.", per_meter(|s| &s.reserved));
        out.counters(
            "tollgate_credits_unpaid_total",
            "Units that calls cost beyond what was held for them, by meter.",
            per_meter(|s| &s.unpaid),
        );
        out.counters("tollgate_credits_spent_total", "Units charged for calls, by meter.", per_meter(|s| &s.spent));
        let commits = self.commit_seconds.lock();
        out.histogram("tollgate_ledger_commit_seconds", "One group commit, sync included.", Merged::from(&commits.0));
        out.histogram(
            "tollgate_ledger_commit_batch_size",
            "Rows and batches in one group commit.",
            Merged::from(&commits.1),
        );
        drop(commits);
        out.counter(
            "tollgate_store_errors_total",
            "Failed reads and writes of the store.",
            self.store_errors.load(Ordering::Relaxed) as f64,
        );
        out.counter(
            "tollgate_actor_panics_total",
            "Turns of user actors that panicked and were undone.",
            self.actor_panics.load(Ordering::Relaxed) as f64,
        );
    }

    fn process_families(&self, out: &mut Exposition) {
        let result = |name: &str, n: &AtomicU64| (vec![("result", name.to_owned())], n.load(Ordering::Relaxed) as f64);
        out.counters(
            "tollgate_logins_total",
            "Logins of users and staff.",
            vec![
                result("ok", &self.logins_ok),
                result("failed", &self.logins_failed),
                result("locked", &self.logins_locked),
                result("blocked", &self.logins_blocked),
            ],
        );
        let checks = LOGIN_CHECKS.iter().zip(&self.login_checks);
        out.counters(
            "tollgate_login_checks_total",
            "Logins that the operator's verifier was to judge.",
            checks.map(|(name, n)| result(name, n)).collect(),
        );
        out.counters(
            "tollgate_config_reloads_total",
            "Reloads of the config.",
            vec![result("ok", &self.config_reloads_ok), result("refused", &self.config_reloads_refused)],
        );
        out.labelled_gauges(
            "tollgate_build_info",
            "Always 1.",
            vec![(vec![("version", env!("CARGO_PKG_VERSION").to_owned())], 1.0)],
        );
    }

    fn merged<const N: usize>(&self, pick: impl Fn(&Shard) -> &LocalHistogram<N>) -> Merged {
        let mut merged = Merged { bounds: &[], counts: vec![0; N + 1], sum: 0.0 };
        for shard in &self.shards {
            let histogram = pick(shard);
            merged.bounds = histogram.bounds;
            for (total, bucket) in merged.counts.iter_mut().zip(histogram.buckets.iter().chain([&histogram.above])) {
                *total += bucket.get();
            }
            merged.sum += histogram.sum_ns.get() as f64 / 1e9;
        }
        merged
    }
}

struct Merged {
    bounds: &'static [f64],
    counts: Vec<u64>,
    sum: f64,
}

impl From<&ProtoCounts> for Merged {
    fn from(counts: &ProtoCounts) -> Self {
        Self { bounds: counts.bounds, counts: counts.counts.clone(), sum: counts.sum }
    }
}

type Labelled = (Vec<(&'static str, String)>, f64);

/// One scrape under construction.
#[derive(Default)]
pub struct Exposition {
    families: Vec<MetricFamily>,
}

impl Exposition {
    pub fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.labelled_gauges(name, help, vec![(Vec::new(), value)]);
    }

    pub fn counter(&mut self, name: &str, help: &str, value: f64) {
        self.counters(name, help, vec![(Vec::new(), value)]);
    }

    pub fn labelled_gauges(&mut self, name: &str, help: &str, values: Vec<Labelled>) {
        let metrics = values.into_iter().map(|(labels, value)| {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            let mut metric = labelled(labels);
            metric.set_gauge(gauge);
            metric
        });
        self.family(name, help, MetricType::GAUGE, metrics.collect());
    }

    pub fn counters(&mut self, name: &str, help: &str, values: Vec<Labelled>) {
        let metrics = values.into_iter().map(|(labels, value)| {
            let mut counter = Counter::default();
            counter.set_value(value);
            let mut metric = labelled(labels);
            metric.set_counter(counter);
            metric
        });
        self.family(name, help, MetricType::COUNTER, metrics.collect());
    }

    fn histogram(&mut self, name: &str, help: &str, merged: Merged) {
        let mut histogram = ProtoHistogram::default();
        let mut cumulative = 0;
        let mut buckets = Vec::with_capacity(merged.bounds.len());
        for (bound, count) in merged.bounds.iter().zip(&merged.counts) {
            cumulative += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(cumulative);
            buckets.push(bucket);
        }
        histogram.set_bucket(buckets);
        histogram.set_sample_count(merged.counts.iter().sum());
        histogram.set_sample_sum(merged.sum);
        let mut metric = Metric::default();
        metric.set_histogram(histogram);
        self.family(name, help, MetricType::HISTOGRAM, vec![metric]);
    }

    fn family(&mut self, name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) {
        // The encoder refuses a family without samples.
        if metrics.is_empty() {
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        self.families.push(family);
    }
}

fn labelled(labels: Vec<(&'static str, String)>) -> Metric {
    let pairs = labels.into_iter().map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value);
        pair
    });
    let mut metric = Metric::default();
    metric.set_label(pairs.collect());
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_summed_and_labels_bounded() {
        let metrics = Metrics::new(2);
        let route = metrics.route("/v1/*");
        for worker in 0..2 {
            let shard = metrics.shard(worker);
            shard.request_started();
            shard.request_ended(route, Outcome::Ok, Duration::from_millis(3), Some(Duration::from_millis(2)));
        }
        metrics.shard(0).spent(metrics.meter("credits"), Micro(1_500_000));
        let text = metrics.render();
        assert!(text.contains("tollgate_requests_total{route=\"/v1/*\",outcome=\"ok\"} 2"), "{text}");
        assert!(text.contains("tollgate_credits_spent_total{meter=\"credits\"} 1.5"), "{text}");
        assert!(text.contains("tollgate_request_duration_seconds_bucket{le=\"0.005\"} 2"), "{text}");
        assert!(text.contains("tollgate_in_flight 0"), "{text}");
        for n in 0..200 {
            metrics.model(&format!("m{n}"));
        }
        assert_eq!(metrics.model("yet another"), metrics.model("and one more"));
    }
}
