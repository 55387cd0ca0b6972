//! Forwarding: from a paid call to the head of the upstream's answer.
//!
//! Owns the attempts, what is sent upstream, and what of the answer's head reaches the client. Retries only before the first
//! byte of an answer and only what cannot have been carried out, or may be carried out twice. The body is [`super::body`]'s.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use smallvec::SmallVec;

use super::authenticate::{self, Caller};
use super::authorize::{self, Intake};
use super::body::{self, Served};
use super::buffers::{self, READ_BYTES, Share};
use super::client_ip::ClientIp;
use super::cost::Cost;
use super::http1::chunked::{CHUNK_END, LAST_CHUNK, begin_chunk, write_chunk};
use super::http1::conn::{BodyError, BodyStep, ClientConn};
use super::http1::head::{Framing, HeadEnd, HeadError, Name, RequestHead, ResponseHead, Version};
use super::http1::name::is_same;
use super::naming::unescape;
use super::pipeline::Worker;
use super::places::Place;
use super::policy::{Policy, Route};
use super::rate::{self, Standing};
use super::record::Record;
use super::refusal::{connection_field, write_date};
use super::replay::Capture;
use super::upstream::{AtEndpoint, Endpoint, Trouble, UpstreamConn};
use super::usage::Usage;
use crate::actors::user::hold::Hold;
use crate::actors::user::once::{Ended, Passing};
use crate::clock::{Clock, Monotonic};
use crate::config::Durability;
use crate::domain::cookies;
use crate::domain::ids::RequestId;
use crate::domain::meters::Micro;
use crate::domain::user;
use crate::error::Reject;
use crate::failpoint;
use crate::store::committer::GateTicket;
use crate::telemetry::machine;
use crate::telemetry::metrics::Outcome;

/// Most bytes of an upstream's head.
const MAX_ANSWER_HEAD: usize = 64 << 10;
/// Longer bodies are written from where they lie instead of being copied behind the head.
const COPIED_BODY: usize = READ_BYTES / 2;
/// Interim answers (1xx) before the real one; more is an upstream gone wrong. One every ten seconds as a sign of life is not.
const MAX_INTERIM: usize = 64;
/// A space and the three digits of a status.
const STATUS_BYTES: usize = 4;

/// A call that may go.
pub struct Call<'a> {
    pub head: &'a RequestHead,
    pub client: ClientIp,
    pub caller: &'a Caller,
    pub policy: &'a Policy,
    pub route: &'a Arc<Route>,
    /// What it costs: the route's price and its model's.
    pub cost: &'a Arc<Cost>,
    pub intake: Intake,
    pub hold: Hold,
    pub place: Option<Place<'a>>,
    pub rate: Option<Standing>,
    pub share: Share,
    pub request: RequestId,
    pub clock: &'a Clock,
    /// A proxy that we trust has sent it on.
    pub by_proxy: bool,
}

impl Call<'_> {
    /// How much of each text of this call the journal keeps; `None` when it keeps nothing: it is off, or the route's or the
    /// user's calls are left out.
    pub fn journal_bytes(&self) -> Option<usize> {
        let standing = &self.caller.standing;
        let is_kept = self.route.log && standing.log_conversations && !self.policy.excludes(&standing.username);
        self.policy.journal_bytes.filter(|_| is_kept)
    }
}

/// Why an attempt brought no answer.
#[derive(Debug)]
enum Failure {
    ClientGone,
    /// The client's body is too large, malformed, or did not come.
    Refused(Reject),
    /// Nobody was reached: it cannot have been carried out.
    NotReached(Reject, Trouble, Option<String>),
    /// There is no endpoint left to try.
    NoEndpoint,
    /// A kept connection that the upstream has closed meanwhile; nothing was sent.
    Stale,
    /// It was sent and the connection ended without an answer.
    NoAnswer,
    /// An answer nobody could trust.
    BadAnswer(HeadError),
    Timeout,
}

/// Sends the call to its upstream and the answer to the client.
///
/// # Errors
/// The refusal to answer with; nothing has been sent to the client then and nothing is charged.
pub async fn forward(
    worker: &Worker,
    client: &mut ClientConn,
    call: &mut Call<'_>,
    record: &mut Record<'_>,
) -> Result<Served, Reject> {
    let upstream = &call.route.upstream;
    let Some(_place) = upstream.enter() else {
        return Err(Reject::Overloaded("Too many calls to the upstream"));
    };
    call.place.iter_mut().for_each(Place::is_used);
    client.give_input_back();
    let now = worker.shared.clock.monotonic();
    record.forwarded = Some(now);
    let total_due = now.plus(upstream.config.total_timeout);
    let exchange = match reach(worker, client, call, total_due).await {
        Ok(exchange) => exchange,
        Err(Failure::ClientGone) => return Ok(client_gone(record)),
        Err(failure) => return Err(failure.reject()),
    };
    let now = worker.shared.clock.monotonic();
    record.answered = Some(now);
    record.status = exchange.head.status;
    if exchange.head.status >= 500 {
        exchange.at.endpoint.failed(now, &call.route.upstream.config);
        call.hold.refund();
    } else {
        exchange.at.endpoint.succeeded();
        let must_wait = call.policy.durability == Durability::BeforeResponse;
        if must_wait && wait_durable(worker, client, &call.hold).await? == Waited::ClientGone {
            // The upstream has answered, so the call is not free; of what is metered nothing was seen but the request.
            let cost = call.cost;
            let seen = Usage { input_tokens: (call.intake.body.len() as u64).div_ceil(4), ..Usage::default() };
            let paid = call.hold.settle(&cost.amounts(&seen), Ended::Cut);
            for (label, amount) in cost.labels.iter().zip(&paid) {
                worker.shard.spent(*label, *amount);
            }
            return Ok(client_gone(record));
        }
        call.hold.answer_begins();
    }
    failpoint::hit("answer.before");
    body::relay(worker, client, call, exchange, total_due, record).await
}

fn client_gone(record: &mut Record<'_>) -> Served {
    record.outcome = Outcome::ClientGone;
    Served::Abort
}

impl Failure {
    /// What the client is told when no further attempt is made.
    fn reject(self) -> Reject {
        match self {
            Self::Refused(reject) | Self::NotReached(reject, ..) => reject,
            Self::NoEndpoint | Self::Stale | Self::NoAnswer | Self::BadAnswer(_) => Reject::UpstreamUnreachable,
            Self::Timeout => Reject::UpstreamTimeout,
            Self::ClientGone => Reject::Internal,
        }
    }

    /// What the log is told of it, if it is the endpoint's.
    fn tell(&self, endpoint: &Endpoint, now: Monotonic, upstream: &str) {
        let (trouble, cause) = match self {
            Self::NotReached(_, trouble, cause) => (*trouble, cause.clone()),
            Self::NoAnswer => (Trouble::NoAnswer, None),
            Self::BadAnswer(error) => (Trouble::Malformed, Some(format!("{error:?}"))),
            Self::Timeout => (Trouble::Timeout, None),
            Self::ClientGone | Self::Refused(_) | Self::NoEndpoint | Self::Stale => return,
        };
        endpoint.tell(trouble, cause.as_deref(), now, upstream);
    }
}

/// One attempt after the other, until an answer begins or no further attempt is safe or left.
async fn reach(
    worker: &Worker,
    client: &mut ClientConn,
    call: &mut Call<'_>,
    total_due: Monotonic,
) -> Result<Box<Exchange>, Failure> {
    let upstream = &call.route.upstream;
    let mut tried: Vec<Arc<Endpoint>> = Vec::new();
    let mut left = upstream.config.retries;
    loop {
        let Some(at) = upstream.choose(client.deadline.coarse_now(), &tried) else {
            return Err(Failure::NoEndpoint);
        };
        let endpoint = at.endpoint.clone();
        let failure = match attempt(worker, client, call, at, total_due).await {
            Ok(exchange) => return Ok(exchange),
            Err(failure) => failure,
        };
        if !matches!(failure, Failure::ClientGone | Failure::Refused(_)) {
            let now = client.deadline.coarse_now();
            failure.tell(&endpoint, now, &upstream.config.name);
            endpoint.failed(now, &upstream.config);
        }
        if left == 0 || !may_repeat(call, &failure) {
            return Err(failure);
        }
        left -= 1;
        worker.shard.retried();
        tried.push(endpoint);
        if tried.len() >= upstream.endpoints.len() {
            // All had their turn: a stale pooled connection is no reason not to ask the same one again.
            tried.clear();
        }
    }
}

/// Whether another attempt can do no harm: nothing was sent, or sending it twice is the same as once.
fn may_repeat(call: &Call<'_>, failure: &Failure) -> bool {
    // What was read from the client and passed on cannot be sent a second time.
    let repeatable = call.intake.complete || call.head.framing == Framing::None;
    match failure {
        // Nothing has gone out, so nothing of the body beyond what is kept has been taken from the client either.
        Failure::NotReached(..) | Failure::Stale => true,
        Failure::NoAnswer => repeatable && call.head.is_replayable(),
        Failure::NoEndpoint | Failure::ClientGone | Failure::Refused(_) | Failure::BadAnswer(_) | Failure::Timeout => {
            false
        }
    }
}

/// An exchange whose answer has begun. On the heap, because it changes hands.
pub struct Exchange {
    pub at: AtEndpoint,
    pub conn: UpstreamConn,
    pub upload: Upload,
    pub head: ResponseHead,
}

async fn attempt(
    worker: &Worker,
    client: &mut ClientConn,
    call: &mut Call<'_>,
    at: AtEndpoint,
    total_due: Monotonic,
) -> Result<Box<Exchange>, Failure> {
    let config = &call.route.upstream.config;
    let mut conn = match at.endpoint.reuse(worker.index, client.deadline.coarse_now(), config) {
        Some(conn) => conn,
        // Rare, and large: apart from the call's own state.
        None => Box::pin(connect(client, call.policy, &at.endpoint, config.connect_timeout, total_due)).await?,
    };
    let mut upload = Upload::new(call, &at.endpoint);
    // What the client has sent meanwhile could not be taken.
    client.body_was_not_wanted();
    let head = exchange(worker, client, call, &mut conn, &mut upload, total_due).await?;
    Ok(Box::new(Exchange { at, conn, upload, head }))
}

async fn connect(
    client: &mut ClientConn,
    policy: &Policy,
    endpoint: &Endpoint,
    timeout: Duration,
    total_due: Monotonic,
) -> Result<UpstreamConn, Failure> {
    if policy.sockets.is_full() {
        policy.close_idle_upstreams();
    }
    client.deadline.arm_before(timeout, total_due);
    let mut connecting = std::pin::pin!(endpoint.connect());
    poll_fn(|cx| {
        if let Poll::Ready(result) = connecting.as_mut().poll(cx) {
            return Poll::Ready(result.map_err(|(trouble, error)| match machine::is_exhausted(&error) {
                // Not the endpoint's fault.
                true => Failure::Refused(Reject::Overloaded("Too many connections")),
                false => Failure::NotReached(Reject::UpstreamUnreachable, trouble, Some(error.to_string())),
            }));
        }
        if client.deadline.has_expired() {
            return Poll::Ready(Err(Failure::NotReached(Reject::UpstreamTimeout, Trouble::ConnectTimeout, None)));
        }
        client.poll_gone(cx).map(|()| Err(Failure::ClientGone))
    })
    .await
}

/// Sends the request, body included as it comes, until the answer's head is there. Both directions go on at once: an answer
/// may come before the request is sent. Interim answers are passed on while the real one is waited for.
async fn exchange(
    worker: &Worker,
    client: &mut ClientConn,
    call: &mut Call<'_>,
    conn: &mut UpstreamConn,
    upload: &mut Upload,
    total_due: Monotonic,
) -> Result<ResponseHead, Failure> {
    let config = &call.route.upstream.config;
    let head_request = call.head.method() == "HEAD";
    let (mut end, mut interim, mut ticket) = (HeadEnd::default(), 0, GateTicket::default());
    let takes_interim = call.head.version == Version::Http11;
    // While the client sends, each piece renews its time; once all is sent, the upstream's begins.
    let mut armed_for = None;
    poll_fn(|cx| {
        loop {
            match upload.poll(client, conn, call, cx) {
                Poll::Ready(Ok(())) | Poll::Pending => {}
                Poll::Ready(Err(UploadStop::Client(BodyError::Gone))) => return Poll::Ready(Err(Failure::ClientGone)),
                Poll::Ready(Err(UploadStop::Client(error))) => {
                    return Poll::Ready(Err(Failure::Refused(authorize::body_error(&error, call.policy))));
                }
            }
            let phase = (upload.is_done(), upload.waits_for_client, upload.moved);
            if armed_for != Some(phase) {
                armed_for = Some(phase);
                let limit = match phase {
                    (true, ..) => config.first_byte_timeout,
                    (false, true, _) => client.body_time_left(),
                    (false, false, _) => client.limits.body_timeout,
                };
                client.deadline.arm_before(limit, total_due);
            }
            match conn.poll_fill(cx) {
                Poll::Ready(Ok(n)) if n > 0 => {
                    let pass_on = takes_interim.then_some(&mut *client);
                    match read_answer_head(conn, &mut end, &mut interim, head_request, pass_on, config.via) {
                        Ok(Some(head)) => return Poll::Ready(Ok(head)),
                        Ok(None) => continue,
                        Err(error) => return Poll::Ready(Err(Failure::BadAnswer(error))),
                    }
                }
                Poll::Ready(_) => {
                    let nothing_sent = conn.reused && upload.moved == 0;
                    return Poll::Ready(Err(if nothing_sent { Failure::Stale } else { Failure::NoAnswer }));
                }
                Poll::Pending => {}
            }
            if client.has_interim() && poll_interim(worker, client, call, &mut ticket, cx).is_err() {
                return Poll::Ready(Err(Failure::ClientGone));
            }
            if client.deadline.has_expired() {
                return Poll::Ready(Err(match upload.waits_for_client() {
                    true => Failure::Refused(Reject::RequestTimeout),
                    false => Failure::Timeout,
                }));
            }
            if upload.is_done() && client.poll_gone(cx).is_ready() {
                return Poll::Ready(Err(Failure::ClientGone));
            }
            return Poll::Pending;
        }
    })
    .await
}

/// The final head, once it is complete; interim ones are queued for `client`, where they are to be passed on.
fn read_answer_head(
    conn: &mut UpstreamConn,
    end: &mut HeadEnd,
    interim: &mut usize,
    head_request: bool,
    mut client: Option<&mut ClientConn>,
    via: bool,
) -> Result<Option<ResponseHead>, HeadError> {
    while let Some(len) = end.find(conn.input(), MAX_ANSWER_HEAD)? {
        let head = ResponseHead::parse(conn.input(), len, head_request)?;
        if head.status >= 200 {
            return Ok(Some(head));
        }
        *interim += 1;
        // We never ask for an upgrade, so nobody may grant one.
        if head.status == 101 || *interim > MAX_INTERIM {
            return Err(HeadError::Malformed("an interim answer that was not asked for"));
        }
        // `100 Continue` is between the upstream and us: its client has been told to go on, or did not ask (RFC 9110, 10.1.1).
        if let Some(client) = client.as_deref_mut().filter(|_| head.status != 100) {
            client.queue_interim(|out| write_interim(&head, &conn.input()[..len], via, out));
        }
        conn.consume(len);
        *end = HeadEnd::default();
    }
    Ok(None)
}

/// An interim answer as the client gets it (RFC 9110, 15.2). It has no body, whatever it says of one (8.6).
fn write_interim(head: &ResponseHead, bytes: &[u8], via: bool, out: &mut Vec<u8>) {
    let line = bytes.get(..memchr::memchr(b'\r', bytes).unwrap_or(0)).unwrap_or_default();
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(itoa::Buffer::new().format(head.status).as_bytes());
    out.push(b' ');
    out.extend_from_slice(line.get(b"HTTP/1.1 103 ".len()..).unwrap_or_default());
    out.extend_from_slice(b"\r\n");
    for (field, name, value) in head.fields(bytes) {
        let ours = field.connection_only
            || field.name.is_hop_by_hop()
            || matches!(
                field.name,
                Name::ContentLength | Name::XRequestId | Name::XRateLimitRequests | Name::XTollgate
            );
        if !ours {
            write_field(name, value, out);
        }
    }
    if via {
        write_via(head.version, out);
    }
    out.extend_from_slice(b"\r\n");
}

/// Sends what waits of interim answers, but not before the debit is on disk (invariant 2): they are no part of the answer, and
/// still tell that the call is being worked on. `Err`: the client is gone.
fn poll_interim(
    worker: &Worker,
    client: &mut ClientConn,
    call: &Call<'_>,
    ticket: &mut GateTicket,
    cx: &mut Context<'_>,
) -> Result<(), ()> {
    let must_wait = call.policy.durability == Durability::BeforeResponse;
    if must_wait && !matches!(worker.gate.poll_durable(call.hold.epoch(), ticket, cx), Poll::Ready(Ok(()))) {
        return Ok(());
    }
    match client.poll_interim(cx) {
        Poll::Ready(Err(_)) => Err(()),
        Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waited {
    Durable,
    ClientGone,
}

/// Invariant 2: no byte of an answer leaves before the debit that pays for it is on disk.
pub(super) async fn wait_durable(worker: &Worker, client: &mut ClientConn, hold: &Hold) -> Result<Waited, Reject> {
    let epoch = hold.epoch();
    if worker.shared.committer.is_durable(epoch) || failpoint::is_on("answer.too_early") {
        return Ok(Waited::Durable);
    }
    let mut ticket = GateTicket::default();
    poll_fn(|cx| match worker.gate.poll_durable(epoch, &mut ticket, cx) {
        Poll::Ready(result) => Poll::Ready(result.map(|()| Waited::Durable).map_err(|_| Reject::StoreUnavailable)),
        Poll::Pending => client.poll_gone(cx).map(|()| Ok(Waited::ClientGone)),
    })
    .await
}

/// The request on its way to the upstream.
pub struct Upload {
    out: Vec<u8>,
    /// What is still to be written of what there is, in this order.
    parts: SmallVec<[Part; MAX_PARTS]>,
    chunked: bool,
    /// There is no more than what `parts` tells of.
    body_taken: bool,
    /// The upstream takes no more, or the client sends nonsense: what is left is not sent.
    abandoned: bool,
    waits_for_client: bool,
    /// Bytes written so far.
    moved: u64,
    piece: Vec<u8>,
    /// Of a body of which the idempotency key knows the beginning.
    passing: Option<Passing>,
}

/// Head, body to its opening brace, what is added there, and the rest.
const MAX_PARTS: usize = 4;

/// A piece of what is to be written.
#[derive(Debug)]
enum Part {
    /// Of the upload's own buffer.
    Own(Range<usize>),
    /// Of the call's copy of the body.
    Body(Range<usize>),
}

impl Part {
    fn range(&mut self) -> &mut Range<usize> {
        match self {
            Self::Own(range) | Self::Body(range) => range,
        }
    }

    fn of<'a>(&self, out: &'a [u8], body: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Own(range) => out.get(range.clone()).unwrap_or_default(),
            Self::Body(range) => body.get(range.clone()).unwrap_or_default(),
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        buffers::give(std::mem::take(&mut self.out));
    }
}

/// Why the request cannot be sent any further.
#[derive(Debug)]
pub enum UploadStop {
    Client(BodyError),
}

impl Upload {
    fn new(call: &Call<'_>, endpoint: &Endpoint) -> Self {
        let body_taken = call.intake.complete;
        let chunked = !body_taken && call.head.framing == Framing::Chunked;
        let added = usage_request(call);
        let body = &call.intake.body;
        let body_len = body.len() + added.map_or(0, <[u8]>::len);
        let out = buffers::take();
        let mut upload = Self {
            out,
            parts: SmallVec::new(),
            chunked,
            body_taken,
            abandoned: false,
            waits_for_client: false,
            moved: 0,
            piece: Vec::new(),
            passing: None,
        };
        write_request_head(call, endpoint, body_len, &mut upload.out);
        if chunked && !body.is_empty() {
            begin_chunk(body.len(), &mut upload.out);
            upload.add_body(body, 0..body.len());
            upload.out.extend_from_slice(CHUNK_END);
        } else if let Some(added) = added {
            // Right after the opening brace, which the scan has seen.
            let brace = memchr::memchr(b'{', body).map_or(0, |at| at + 1);
            upload.add_body(body, 0..brace);
            upload.out.extend_from_slice(added);
            upload.add_body(body, brace..body.len());
        } else {
            upload.add_body(body, 0..body.len());
        }
        upload.add_own();
        if call.hold.has_key() && body.len() > call.policy.limits.max_inspect_bytes {
            let mut passing = Passing::default();
            passing.take(body);
            upload.passing = Some(passing);
        }
        upload
    }

    /// The fingerprint of a long body, once all of it has passed.
    fn tell_body(&mut self, call: &mut Call<'_>) {
        if let Some(passing) = self.passing.take_if(|_| self.body_taken) {
            call.hold.body_was(passing.fingerprint());
        }
    }

    /// What was written into `out` since the last part comes next.
    fn add_own(&mut self) {
        let known = self.parts.iter().rev().find_map(|part| match part {
            Part::Own(range) => Some(range.end),
            Part::Body(_) => None,
        });
        let own = known.unwrap_or_default()..self.out.len();
        if !own.is_empty() {
            self.parts.push(Part::Own(own));
        }
    }

    /// A part of the body comes next: a short one is copied, which costs less than another piece to write.
    fn add_body(&mut self, body: &[u8], range: Range<usize>) {
        if range.len() <= COPIED_BODY {
            self.out.extend_from_slice(body.get(range).unwrap_or_default());
        } else {
            self.add_own();
            self.parts.push(Part::Body(range));
        }
    }

    pub fn is_done(&self) -> bool {
        self.abandoned || (self.body_taken && self.parts.is_empty())
    }

    /// All was sent, so the connection can serve another call.
    pub fn is_whole(&self) -> bool {
        !self.abandoned && self.is_done()
    }

    /// Bytes sent so far.
    pub fn moved(&self) -> u64 {
        self.moved
    }

    pub fn waits_for_client(&self) -> bool {
        self.waits_for_client
    }

    /// Sends what there is. Ready when nothing is left to send.
    pub fn poll(
        &mut self,
        client: &mut ClientConn,
        conn: &mut UpstreamConn,
        call: &mut Call<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), UploadStop>> {
        while !self.is_done() {
            while !self.parts.is_empty() {
                self.waits_for_client = false;
                match self.poll_parts(conn, &call.intake.body, cx) {
                    Poll::Ready(Ok(n)) if n > 0 => self.has_written(n),
                    Poll::Ready(_) => {
                        // Its answer may be there all the same: the reading side finds out.
                        self.abandoned = true;
                        return Poll::Ready(Ok(()));
                    }
                    Poll::Pending => return Poll::Pending,
                }
            }
            if self.body_taken {
                self.tell_body(call);
                // An answer may take long; what brought its request is not needed for that.
                buffers::give(std::mem::take(&mut self.out));
                break;
            }
            self.out.clear();
            self.waits_for_client = true;
            match self.poll_piece(client, call, cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    self.abandoned = true;
                    return Poll::Ready(Err(UploadStop::Client(error)));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_parts(&self, conn: &mut UpstreamConn, body: &[u8], cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if let [only] = self.parts.as_slice() {
            return conn.poll_write(cx, only.of(&self.out, body));
        }
        let mut slices = [IoSlice::new(&[]); MAX_PARTS];
        for (slice, part) in slices.iter_mut().zip(&self.parts) {
            *slice = IoSlice::new(part.of(&self.out, body));
        }
        conn.poll_write_vectored(cx, &slices[..self.parts.len().min(MAX_PARTS)])
    }

    fn has_written(&mut self, mut bytes: usize) {
        self.moved += bytes as u64;
        while let Some(part) = self.parts.first_mut() {
            let range = part.range();
            if bytes < range.len() {
                range.start += bytes;
                return;
            }
            bytes -= range.len();
            self.parts.remove(0);
        }
    }

    fn poll_piece(
        &mut self,
        client: &mut ClientConn,
        call: &mut Call<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), BodyError>> {
        self.piece.clear();
        let step = match client.poll_body(cx, &mut self.piece) {
            Poll::Ready(step) => step?,
            Poll::Pending => return Poll::Pending,
        };
        keep_copy(call, &self.piece);
        if let Some(passing) = &mut self.passing {
            passing.take(&self.piece);
        }
        if self.chunked {
            write_chunk(&self.piece, &mut self.out);
        } else {
            self.out.extend_from_slice(&self.piece);
        }
        if step == BodyStep::End || client.body_is_done() {
            self.body_taken = true;
            if self.chunked {
                self.out.extend_from_slice(LAST_CHUNK);
            }
        }
        self.add_own();
        Poll::Ready(Ok(()))
    }
}

/// Keeps a copy for the journal, as far as it goes.
fn keep_copy(call: &mut Call<'_>, piece: &[u8]) {
    if !call.intake.is_json || call.intake.cut {
        return;
    }
    let max = call.journal_bytes().unwrap_or(0);
    if max == 0 {
        return;
    }
    let room = |call: &mut Call<'_>| call.share.make_room(&mut call.intake.body, piece.len(), max).is_ok();
    if call.intake.body.len() + piece.len() <= max && room(call) {
        call.intake.body.extend_from_slice(piece);
    } else {
        call.intake.cut = true;
    }
}

/// What to add to the body so that a stream reports its usage, where the route asks for it and the client did not.
fn usage_request(call: &Call<'_>) -> Option<&'static [u8]> {
    let facts = &call.intake.facts;
    let wanted = call.route.include_usage && call.intake.complete && facts.stream && !facts.has_stream_options;
    wanted.then_some(b"\"stream_options\":{\"include_usage\":true},")
}

pub fn write_field(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

pub fn write_number(name: &[u8], value: u64, out: &mut Vec<u8>) {
    write_field(name, itoa::Buffer::new().format(value).as_bytes(), out);
}

fn write_request_head(call: &Call<'_>, endpoint: &Endpoint, body_len: usize, out: &mut Vec<u8>) {
    let (head, route) = (call.head, call.route);
    let secret = Secret(authenticate::secret(head, call.policy.cookies.as_ref()).unwrap_or_default());
    out.extend_from_slice(head.method().as_bytes());
    out.push(b' ');
    secret.write_target(head, out);
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let client_host = head.host().unwrap_or_default();
    let host = if route.preserve_host && !client_host.is_empty() {
        client_host
    } else {
        endpoint.address.authority.as_bytes()
    };
    write_field(b"host", host, out);
    match head.framing {
        _ if call.intake.complete => {
            if body_len > 0 || matches!(head.method(), "POST" | "PUT" | "PATCH") {
                write_number(b"content-length", body_len as u64, out);
            }
        }
        Framing::Length(n) => write_number(b"content-length", n, out),
        Framing::Chunked => write_field(b"transfer-encoding", b"chunked", out),
        Framing::None | Framing::UntilClose => {}
    }
    let credential = route.upstream.config.credential.as_ref();
    for (field, name, value) in head.fields() {
        let ours = field.connection_only
            || field.name.is_hop_by_hop()
            || matches!(
                field.name,
                Name::Host
                    | Name::ContentLength
                    | Name::Expect
                    | Name::Authorization
                    | Name::Claim
                    | Name::XApiKey
                    | Name::XForwardedFor
                    | Name::XRequestId
                    | Name::XTollgate
            )
            || (is_a_proxy_s(field.name) && !call.by_proxy)
            || (field.name == Name::AcceptEncoding && !route.compression)
            || credential.is_some_and(|(header, _)| is_same(name, header.as_bytes()));
        if ours {
            continue;
        }
        match (field.name, head.max_forwards) {
            (Name::Cookie, _) => {
                let rest = cookies::without_ours(value, |pair| secret.is_in(pair));
                if !rest.is_empty() {
                    write_field(name, &rest, out);
                }
            }
            (Name::MaxForwards, Some(left)) => write_number(name, left.saturating_sub(1), out),
            _ if secret.is_in(value) => {}
            _ => write_field(name, value, out),
        }
    }
    if !route.compression {
        // What is compressed could be neither metered nor logged.
        out.extend_from_slice(b"accept-encoding: identity\r\n");
    }
    if route.upstream.config.via {
        write_via(head.version, out);
    }
    write_identity(call, client_host, out);
    if let Some((header, value)) = credential {
        write_field(header.as_bytes(), value.as_bytes(), out);
    }
    out.extend_from_slice(b"\r\n");
}

/// What a proxy before us says of how it was reached; nobody else is believed.
fn is_a_proxy_s(name: Name) -> bool {
    matches!(name, Name::Forwarded | Name::XForwardedHost | Name::XForwardedPlace | Name::XForwardedProto)
}

/// The message came with this version (RFC 9110, 7.6.3).
fn write_via(version: Version, out: &mut Vec<u8>) {
    out.extend_from_slice(match version {
        Version::Http10 => b"via: 1.0 tollgate\r\n",
        Version::Http11 => b"via: 1.1 tollgate\r\n",
    });
}

/// The text by which the caller was known, empty where there was none. It is for us; no copy of it goes on.
struct Secret<'h>(&'h [u8]);

impl Secret<'_> {
    fn is_in(&self, text: &[u8]) -> bool {
        // Hardly any field is as long as a key.
        !self.0.is_empty() && text.len() >= self.0.len() && memchr::memmem::find(text, self.0).is_some()
    }

    /// The target as it came, without parameters that have the secret in them, escaped or not.
    fn write_target(&self, head: &RequestHead, out: &mut Vec<u8>) {
        let (path, query) = head.target().split_at(head.path().len());
        out.extend_from_slice(path);
        let has_it = |pair: &[u8]| self.is_in(pair) || (pair.contains(&b'%') && self.is_in(&unescape(pair)));
        if query.len() <= self.0.len() || !has_it(query) {
            out.extend_from_slice(query);
            return;
        }
        let mut before = b'?';
        for pair in query.get(1..).unwrap_or_default().split(|byte| *byte == b'&').filter(|pair| !has_it(pair)) {
            out.push(before);
            out.extend_from_slice(pair);
            before = b'&';
        }
    }
}

/// Who calls, in headers an upstream may trust because the client's own were removed.
fn write_identity(call: &Call<'_>, client_host: &[u8], out: &mut Vec<u8>) {
    use std::io::Write;
    let standing = &call.caller.standing;
    write_field(b"x-request-id", call.request.as_str().as_bytes(), out);
    // Writing into memory cannot fail.
    let _ = write!(out, "x-forwarded-for: {}\r\n", call.client.0);
    let told = |name| call.by_proxy && call.head.first_passed_on(name).is_some();
    if !told(Name::XForwardedProto) {
        out.extend_from_slice(b"x-forwarded-proto: http\r\n");
    }
    if !told(Name::XForwardedHost) {
        write_field(b"x-forwarded-host", client_host, out);
    }
    write_user(standing, out);
}

/// Also for a proxy that asks, and hands them on itself.
pub(super) fn write_user(standing: &user::Standing, out: &mut Vec<u8>) {
    write_number(b"x-tollgate-user", standing.id.0, out);
    write_field(b"x-tollgate-username", standing.username.as_bytes(), out);
    write_field(b"x-tollgate-plan", standing.plan.as_bytes(), out);
}

/// Status line and fields of the answer's head that are the upstream's own.
fn write_upstream_part(call: &Call<'_>, head: &ResponseHead, bytes: &[u8], out: &mut Vec<u8>) {
    let line_end = memchr::memchr(b'\r', bytes).unwrap_or(bytes.len());
    out.extend_from_slice(b"HTTP/1.1");
    // Status and reason as the upstream wrote them, after its own version.
    let status = bytes.get(8..line_end).unwrap_or(b" 502 Bad Gateway");
    out.extend_from_slice(status);
    // An empty reason has its space all the same (RFC 9112, 4).
    out.extend_from_slice(if status.len() == STATUS_BYTES { &b" \r\n"[..] } else { b"\r\n" });
    // The length a HEAD or 304 tells of is the upstream's to tell; every other one follows from the framing. A 204 has none
    // (RFC 9110, 8.6).
    let tells_length = head.framing == Framing::None && head.status != 204;
    let mut has_date = false;
    for (field, name, value) in head.fields(bytes) {
        has_date |= field.name == Name::Date && !field.connection_only;
        let ours = field.connection_only
            || field.name.is_hop_by_hop()
            || matches!(field.name, Name::XRequestId | Name::XRateLimitRequests | Name::XTollgate)
            || (field.name == Name::ContentLength && !tells_length);
        if !ours {
            write_field(name, value, out);
        }
    }
    if !has_date {
        write_date(call.clock.now(), out);
    }
    if call.route.upstream.config.via {
        write_via(head.version, out);
    }
}

/// The answer's head as the client gets it. Says how the body is to be framed, and begins to keep the answer where a repeat
/// of the call would need it.
pub fn write_answer_head(
    call: &mut Call<'_>,
    head: &ResponseHead,
    bytes: &[u8],
    close: &mut bool,
    out: &mut Vec<u8>,
) -> (AnswerFraming, Option<Capture>) {
    let begin = out.len();
    write_upstream_part(call, head, bytes, out);
    let limit = call.hold.keeps_answer().filter(|_| head.framing != Framing::None);
    let capture =
        limit.filter(|limit| call.share.grow(*limit).is_ok()).and_then(|limit| Capture::begin(&out[begin..], limit));
    let framing = match (head.framing, call.head.version) {
        (Framing::None, _) => AnswerFraming::None,
        (Framing::Length(n), _) => {
            write_number(b"content-length", n, out);
            AnswerFraming::AsIs
        }
        (Framing::Chunked | Framing::UntilClose, Version::Http11) => {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
            AnswerFraming::Chunked
        }
        (Framing::Chunked | Framing::UntilClose, Version::Http10) => {
            *close = true;
            AnswerFraming::AsIs
        }
    };
    write_call_fields(call.request, call.rate, call.cost, call.hold.left(), out);
    connection_field(*close, call.head.version, out);
    out.extend_from_slice(b"\r\n");
    (framing, capture)
}

/// What the client is told of this call: its id, its rate, the balances left.
pub fn write_call_fields(request: RequestId, rate: Option<Standing>, cost: &Cost, left: &[Micro], out: &mut Vec<u8>) {
    write_field(b"x-request-id", request.as_str().as_bytes(), out);
    if let Some(standing) = rate {
        write_number(b"x-ratelimit-limit-requests", u64::from(standing.limit), out);
        write_number(b"x-ratelimit-remaining-requests", u64::from(standing.remaining), out);
        out.extend_from_slice(b"x-ratelimit-reset-requests: ");
        rate::write_reset(standing.reset, out);
        out.extend_from_slice(b"\r\n");
    }
    for (name, left) in cost.headers.iter().zip(left) {
        out.extend_from_slice(name);
        write_amount(*left, out);
        out.extend_from_slice(b"\r\n");
    }
}

fn write_amount(amount: Micro, out: &mut Vec<u8>) {
    // Nothing but a meter without a limit comes near this.
    let amount = if amount.0 > Micro::UNLIMITED.0 / 2 { Micro::UNLIMITED_SHOWN } else { amount };
    if amount.0 % Micro::UNIT == 0 {
        out.extend_from_slice(itoa::Buffer::new().format(amount.0 / Micro::UNIT).as_bytes());
    } else {
        use std::io::Write;
        let _ = write!(out, "{amount}");
    }
}

/// How the client sees the answer's body end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerFraming {
    None,
    /// By its length, or with the connection.
    AsIs,
    Chunked,
}
