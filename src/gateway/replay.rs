//! Answers that are given again to whoever repeats a call with the same `Idempotency-Key`.
//!
//! Owns the form in which an answer is kept: its status line, the upstream's own header fields, and the body without its
//! framing. What belongs to one call alone (ids, rates, balances, how the connection goes on) is written anew each time.
//! Never decides whether a call is a repeat.

use std::sync::Arc;

use super::authorize::{self, Intake};
use super::body::Served;
use super::buffers::{self, Full, READ_BYTES, Share};
use super::cost::Cost;
use super::forward;
use super::http1::conn::ClientConn;
use super::http1::head::{Name, RequestHead};
use super::pipeline::Worker;
use super::policy::Policy;
use super::rate::Standing;
use super::record::Record;
use super::refusal::connection_field;
use crate::actors::user::actor::UserActor;
use crate::actors::user::ledger::Amounts;
use crate::actors::user::once::{self, Fingerprint, KeptAnswer, OnceKey, Passing};
use crate::clock::UnixMillis;
use crate::domain::ids::UserId;
use crate::error::{Reject, Repeat};
use crate::telemetry::metrics::Outcome;

/// The key of a request that has one. A body that is longer than what is read ahead counts with its beginning and its length.
///
/// # Errors
/// [`Reject::BadRequest`] for a key that no header should carry.
pub fn once_key(head: &RequestHead, intake: &Intake, max_inspect_bytes: usize) -> Result<Option<OnceKey>, Reject> {
    let Some(key) = head.first(Name::IdempotencyKey) else { return Ok(None) };
    // How much more than this has come is chance.
    let body = intake.body.get(..max_inspect_bytes).unwrap_or(&intake.body);
    let declared = head.first(Name::ContentLength).unwrap_or_default();
    let request = [head.method().as_bytes(), head.target(), declared, body];
    OnceKey::new(key, request).map(Some).ok_or_else(bad_key)
}

fn bad_key() -> Reject {
    Reject::BadRequest(format!("Idempotency-Key must have 1 to {} visible characters", once::MAX_KEY_BYTES))
}

/// Whether a call of this user came with the request's key before, so that its answer may be given again for nothing.
///
/// # Errors
/// As [`once_key`] and [`UserActor::knows_key`].
pub fn is_known(head: &RequestHead, actor: &UserActor, now: UnixMillis) -> Result<bool, Reject> {
    let Some(key) = head.first(Name::IdempotencyKey) else { return Ok(false) };
    actor.knows_key(&OnceKey::new(key, []).ok_or_else(bad_key)?, now)
}

/// Receives the rest of a repeat's body, of which nothing is kept, and holds it to `known`: that of the call which was answered.
///
/// # Errors
/// [`Reject::Repeated`] when it is another one, and what is wrong with the body.
pub async fn check_whole(
    client: &mut ClientConn,
    policy: &Policy,
    intake: &Intake,
    known: Option<Fingerprint>,
) -> Result<(), Reject> {
    let Some(known) = known else { return Ok(()) };
    let mut passing = Passing::default();
    passing.take(&intake.body);
    let mut piece = buffers::take();
    while !client.body_is_done() {
        piece.clear();
        client.read_body(&mut piece).await.map_err(|error| authorize::body_error(&error, policy))?;
        passing.take(&piece);
    }
    buffers::give(piece);
    if passing.fingerprint() == known { Ok(()) } else { Err(Reject::Repeated(Repeat::Different)) }
}

/// An answer being kept while it passes.
pub struct Capture {
    bytes: Vec<u8>,
    limit: usize,
}

/// The kept form begins with the length of its head.
const LENGTH_BYTES: usize = 4;

impl Capture {
    /// `head`: status line and fields, each with its line end. `None` when that alone is over the limit.
    pub fn begin(head: &[u8], limit: usize) -> Option<Self> {
        let mut capture = Self { bytes: Vec::new(), limit };
        let length = u32::try_from(head.len()).ok()?;
        (capture.push(&length.to_le_bytes()) && capture.push(head)).then_some(capture)
    }

    /// Takes the next bytes of the body; false past the limit.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        let fits = self.bytes.len() + bytes.len() <= self.limit;
        if fits {
            self.bytes.extend_from_slice(bytes);
        }
        fits
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

fn split(kept: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = kept.split_first_chunk::<LENGTH_BYTES>()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

/// A repeated call and what is needed to answer it.
pub struct Repeated<'a> {
    pub user: UserId,
    pub kept: KeptAnswer,
    pub cost: &'a Arc<Cost>,
    pub left: Amounts,
    pub rate: Option<Standing>,
    pub share: Share,
}

/// Gives the answer of the first call again.
///
/// # Errors
/// [`Reject::Repeated`] when it has expired at this moment, [`Reject::StoreUnavailable`] when it cannot be read.
pub async fn replay(
    worker: &Worker,
    client: &mut ClientConn,
    head: &RequestHead,
    mut repeated: Repeated<'_>,
    record: &mut Record<'_>,
) -> Result<Served, Reject> {
    let shared = &worker.shared;
    if let KeptAnswer::Stored { bytes, .. } = &repeated.kept {
        repeated.share.grow(*bytes as usize).map_err(Full::reject)?;
    }
    let kept = once::read_answer(shared.committer.store(), repeated.user, &repeated.kept).map_err(|error| {
        tracing::error!(user = %repeated.user, %error, "a kept answer cannot be read");
        Reject::StoreUnavailable
    })?;
    let (fields, body) = kept.as_deref().and_then(split).ok_or(Reject::Repeated(Repeat::NotKept))?;
    let close = !head.keep_alive || shared.is_draining() || !client.body_is_done();
    let mut out = Vec::with_capacity(512 + fields.len());
    out.extend_from_slice(client.rest_of_continue());
    out.extend_from_slice(fields);
    out.extend_from_slice(b"idempotent-replayed: true\r\n");
    forward::write_number(b"content-length", body.len() as u64, &mut out);
    forward::write_call_fields(record.request, repeated.rate, repeated.cost, &repeated.left, &mut out);
    connection_field(close, head.version, &mut out);
    out.extend_from_slice(b"\r\n");
    let mut rest = if head.method() == "HEAD" { &[] } else { body };
    if rest.len() <= READ_BYTES {
        out.extend_from_slice(std::mem::take(&mut rest));
    }
    record.status =
        std::str::from_utf8(fields.get(9..12).unwrap_or_default()).ok().and_then(|s| s.parse().ok()).unwrap_or(200);
    record.outcome = Outcome::Replayed;
    record.bytes_in = client.body_received();
    record.bytes_out = (out.len() + rest.len()) as u64;
    // A long body is written from where it lies.
    if client.write_all(&out).await.is_err() || client.write_all(rest).await.is_err() {
        record.outcome = Outcome::ClientGone;
        return Ok(Served::Abort);
    }
    record.first_byte = Some(shared.clock.monotonic());
    Ok(if close { Served::Close } else { Served::KeepAlive })
}
