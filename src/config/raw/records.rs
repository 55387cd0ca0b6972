//! `[ledger]`, `[journal]`, `[audit]`, `[store]`, `[telemetry]`: what is written down, and how.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{SecretSource, Span};
use crate::domain::meters::ResetHour;

/// When an answer may leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// After the debit that pays for it is on disk.
    #[default]
    BeforeResponse,
    /// At once; a crash may forget the debits of the last `ledger.interval`.
    Interval,
}

/// What becomes of the holds that a crash left open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RecoverOpenHolds {
    #[default]
    Charge,
    Refund,
}

/// What a finished call pays that should have reported its usage and did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MissingUsage {
    /// All that was held for it.
    #[default]
    Hold,
    /// What the text that passed by suggests: four bytes a token, or a token an event.
    Estimate,
}

/// What happens when a stream has brought more than was held for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OutgrownHold {
    /// More is held while there are credits; then the stream ends with an error event.
    #[default]
    Extend,
    /// The stream goes on; what exceeds the hold is the operator's loss.
    Finish,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ledger {
    pub durability: Durability,
    pub interval: Span,
    /// Least time between two commits.
    pub min_commit_gap: Span,
    pub recover_open_holds: RecoverOpenHolds,
    pub missing_usage: MissingUsage,
    pub outgrown_hold: OutgrownHold,
    /// How long an `Idempotency-Key` stands for its first call.
    pub idempotency_window: Span,
    /// An answer up to this size is kept for repeats of its call; 0: none is.
    pub idempotency_answer_bytes: usize,
    /// Of all kept answers together.
    pub idempotency_total_bytes: u64,
    /// The UTC hour at which days, weeks and months begin.
    pub reset_hour: ResetHour,
    /// Whether meters are set back by themselves; if not, whoever gets a plan from then on keeps what he has until staff
    /// sets it.
    pub auto_reset: bool,
    /// Writes waiting for the store; more get 503.
    pub max_pending: usize,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            durability: Durability::default(),
            interval: Span::millis(1000),
            min_commit_gap: Span::millis(1),
            recover_open_holds: RecoverOpenHolds::default(),
            missing_usage: MissingUsage::default(),
            outgrown_hold: OutgrownHold::default(),
            idempotency_window: Span::secs(24 * 3600),
            idempotency_answer_bytes: 64 << 10,
            idempotency_total_bytes: 256 << 20,
            reset_hour: ResetHour::default(),
            auto_reset: true,
            max_pending: 100_000,
        }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Journal {
    pub enabled: bool,
    pub batch_size: usize,
    pub flush_interval: Span,
    pub queue_bytes: usize,
    /// Records that may wait; 0: only their bytes count.
    pub queue_records: usize,
    /// What happens to a new record when the queue is full.
    pub overflow: Overflow,
    /// With `overflow = "wait"`: the longest that a call's end waits for room.
    pub max_wait: Span,
    /// Waiting bytes above which the journal writes at once and, with `overflow = "spill"`, new records go to files in
    /// `spill_dir`.
    pub spill_above_bytes: u64,
    /// Without it: `data_dir/journal/spill`.
    pub spill_dir: Option<PathBuf>,
    /// All spill files together; past it, records are dropped.
    pub spill_bytes: u64,
    /// Of the request's messages, and again of the answer's text, per call; what is longer is cut and marked.
    pub max_message_bytes: usize,
    pub segment_bytes: u64,
    pub segment_age: Span,
    pub retention_days: Option<u64>,
    pub retention_bytes: Option<u64>,
    /// Users, by name, whose conversations are not kept.
    pub exclude_users: Vec<String>,
    /// What becomes of segments that are full.
    pub compression: Compression,
    /// zstd's, 1 (fast) to 19 (small).
    pub compression_level: i32,
    /// 32 bytes in hex or base64; without one, conversations lie in the clear.
    pub encryption_key: Option<SecretSource>,
    /// Keys of before, as long as segments under them are there.
    pub old_encryption_keys: Vec<SecretSource>,
    pub redact: Redact,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    #[default]
    Zstd,
    None,
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            enabled: true,
            batch_size: 50,
            flush_interval: Span::secs(1),
            queue_bytes: 64 << 20,
            queue_records: 0,
            overflow: Overflow::default(),
            max_wait: Span::millis(50),
            spill_above_bytes: 32 << 20,
            spill_dir: None,
            spill_bytes: 1 << 30,
            max_message_bytes: 256 << 10,
            segment_bytes: 64 << 20,
            segment_age: Span::secs(24 * 3600),
            retention_days: Some(90),
            retention_bytes: None,
            exclude_users: Vec::new(),
            compression: Compression::default(),
            compression_level: 3,
            encryption_key: None,
            old_encryption_keys: Vec::new(),
            redact: Redact::default(),
        }
    }
}

/// What happens to a new conversation record when too many wait for the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Overflow {
    /// It is dropped and counted.
    #[default]
    Drop,
    /// The call, answered and settled, waits for room for a bounded time; then the record is dropped and counted.
    Wait,
    /// It goes to files on a second path until the disk has recovered.
    Spill,
}

/// What is taken out of conversation records before they reach any disk. A field may stand in one list only.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Redact {
    /// Become null.
    pub drop: Vec<RedactField>,
    /// Become a keyed hash: the same value gives the same hash.
    pub hash: Vec<RedactField>,
    /// Become what tells people apart no more: `j***@example.com`, a network instead of an address.
    pub mask: Vec<RedactField>,
    /// Found in what was said and replaced by a word.
    pub patterns: Vec<TextPattern>,
    /// For `hash`; without it, one is derived from the pepper.
    pub key: Option<SecretSource>,
}

/// A part of a conversation record that can be redacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RedactField {
    Username,
    Email,
    IpAddress,
    RequestId,
    /// All that was asked.
    Request,
    /// All that was answered.
    Response,
}

/// What can be found in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TextPattern {
    Email,
    CreditCard,
    ApiKey,
    Phone,
}

/// The audit trail. It is always on.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    pub segment_bytes: u64,
    /// Without it, the trail is kept for ever.
    pub retention_days: Option<u64>,
    /// Records that nobody waits for, such as failed logins.
    pub queue_records: u64,
}

impl Default for Audit {
    fn default() -> Self {
        Self { segment_bytes: 16 << 20, retention_days: None, queue_records: 4096 }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    #[default]
    Sled,
    Redb,
    /// Nothing survives the process: for tests and trials.
    Memory,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    pub backend: Backend,
    /// Pages the embedded store keeps in memory.
    pub cache_bytes: u64,
    /// A file of the write-ahead log, as it is made; there are two or three of them.
    pub log_file_bytes: u64,
}

impl Default for Store {
    fn default() -> Self {
        Self { backend: Backend::default(), cache_bytes: 16 << 20, log_file_bytes: 16 << 20 }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Off,
    #[default]
    Text,
    Json,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// One line per call on standard output.
    pub access_log: LogFormat,
    /// The share of calls that get a line, 0 to 1; refusals and failures always do.
    pub access_log_sample: f64,
    /// The program's own log on standard error, as for `RUST_LOG`.
    pub log: String,
    pub log_format: LogFormat,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            access_log: LogFormat::Text,
            access_log_sample: 1.0,
            log: "info".to_owned(),
            log_format: LogFormat::Text,
        }
    }
}
