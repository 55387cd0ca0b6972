//! The answer's body: to the client as it comes, metered on the way, and settled when it ends, however it ends.
//!
//! Owns the relay and what follows from its end: the amount paid, the journal's record, the counts. Each piece is written as
//! soon as it is read, so an SSE event never waits. Never changes a byte of the payload.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Sleep;

use super::buffers::{self, READ_BYTES};
use super::forward::{AnswerFraming, Call, Exchange, UploadStop, write_answer_head};
use super::http1::chunked::{Decoder, LAST_CHUNK, write_chunk};
use super::http1::conn::{BodyError, ClientConn};
use super::http1::head::{Framing, Name};
use super::pipeline::Worker;
use super::record::Record;
use super::replay::Capture;
use super::upstream::Trouble;
use super::usage::{AnswerFormat, AnswerScan, Observed, Usage};
use crate::actors::user::ledger::Amounts;
use crate::actors::user::once::Ended;
use crate::actors::writer::{ConversationEntry, Parked};
use crate::clock::Monotonic;
use crate::config::{Durability, MissingUsage, OutgrownHold};
use crate::error::Reject;
use crate::failpoint;
use crate::store::committer::GateTicket;
use crate::telemetry::metrics::Outcome;

/// Output tokens that an extended hold has room for beyond what has come: fewer trips to the disk.
const HEADROOM_TOKENS: u64 = 512;

/// How long an answer's head waits for the first of its body. One whose body turns out to be unreadable until then is no answer.
const HEAD_PATIENCE: Duration = Duration::from_secs(1);

/// How the client's connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    KeepAlive,
    /// After the answer, so that the client can read it.
    Close,
    /// At once: the client is gone, or must see that the answer is not whole.
    Abort,
}

/// How the upstream's body is framed, and how far it is read.
enum Incoming {
    Length(u64),
    Chunked(Decoder),
    UntilClose,
    Done,
}

struct Relay<'e> {
    exchange: &'e mut Exchange,
    incoming: Incoming,
    outgoing: AnswerFraming,
    out: Vec<u8>,
    at: usize,
    scan: AnswerScan,
    /// Bytes of the record's text for which there is room.
    text_room: usize,
    /// The answer so far, where it is to be kept.
    capture: Option<Capture>,
    written: u64,
    waits_for_client: bool,
    /// The head may leave: something of the body could be read, or there is none, or that took too long.
    begun: bool,
    /// Until when the head waits, where it does.
    patience: Option<Pin<Box<Sleep>>>,
    /// How much stands before the head of an interim answer that has begun to leave.
    interim: usize,
    /// What came last cannot be read; what came before it still leaves.
    unreadable: bool,
    /// The client's request turned out to be unreadable: its connection cannot go on.
    client_broken: bool,
    /// What is held for the call has to follow what it brings.
    watches_cost: bool,
    /// What waits in `out` may leave once this commit is on disk.
    awaits: Option<GateTicket>,
    /// The call is settled before the last piece leaves: who then repeats it at once finds it ended.
    settles_first: bool,
    /// The client was told a length.
    sized: bool,
    /// The answer is at its end before the upstream is.
    short: bool,
    /// Bytes of the answer that came or went; with those of the request, what the idle limit watches.
    moved: u64,
}

/// How a relay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Complete,
    ClientGone,
    /// The upstream broke off, fell silent, or sent nonsense.
    Cut,
    /// It did so before anything of its body could be read, and the client has seen nothing of the answer.
    NoAnswer,
    /// The credits did not last: the answer ended with an error event.
    Short,
    /// What it cost could not be written down, so nothing more of it leaves (invariant 2).
    Unrecorded,
}

/// Sends the answer on and settles the call.
///
/// # Errors
/// [`Reject::UpstreamUnreachable`] when there turned out to be none before anything of it left; the call is free then.
pub async fn relay(
    worker: &Worker,
    client: &mut ClientConn,
    call: &mut Call<'_>,
    mut exchange: Box<Exchange>,
    total_due: Monotonic,
    record: &mut Record<'_>,
) -> Result<Served, Reject> {
    let clock = &worker.shared.clock;
    let config = &call.route.upstream.config;
    // While the client still sends, nobody can tell whether its connection will be in order afterwards.
    let is_sent = exchange.upload.is_whole() || client.body_is_done();
    let mut close = !call.head.keep_alive || worker.shared.is_draining() || !is_sent;
    let mut relay = Relay::begin(client, call, &mut exchange, &mut close);
    let mut armed_for = None;
    let mut end = poll_fn(|cx| {
        let end = relay.poll(worker, client, call, cx);
        if record.first_byte.is_none() && relay.written > 0 {
            record.first_byte = Some(clock.monotonic());
            if relay.patience.is_some() {
                // The wait for the body was the upstream's time.
                record.answered = record.first_byte;
            }
            failpoint::hit("answer.begun");
        }
        if end.is_ready() {
            return end;
        }
        let phase = (relay.waits_for_client, relay.moved + relay.exchange.upload.moved());
        if armed_for != Some(phase) {
            armed_for = Some(phase);
            let limit = if relay.waits_for_client { client.limits.write_timeout } else { config.idle_timeout };
            client.deadline.arm_before(limit, total_due);
        } else if client.deadline.has_expired() {
            return Poll::Ready(if relay.waits_for_client { End::ClientGone } else { End::Cut });
        }
        Poll::Pending
    })
    .await;
    failpoint::hit("answer.ended");
    let now = clock.monotonic();
    record.upstream_ended = Some(now);
    record.bytes_in = client.body_received();
    if end == End::NoAnswer {
        let nothing_said = relay.interim == 0;
        call.hold.refund();
        exchange.at.endpoint.tell(Trouble::Malformed, None, now, &config.name);
        exchange.at.endpoint.failed(now, config);
        record.outcome = Outcome::UpstreamCut;
        // After half of an interim answer, no other can begin.
        return if nothing_said { Err(Reject::UpstreamUnreachable) } else { Ok(Served::Abort) };
    }
    let kept = relay.capture.take().map(Capture::into_bytes);
    let observed = std::mem::replace(&mut relay.scan, AnswerScan::new(AnswerFormat::Opaque, 0)).finish();
    let parked = finish(worker, call, observed, end, kept, record);
    if end == End::Complete && !relay.flush_rest(client, total_due).await {
        (end, record.outcome) = (End::ClientGone, Outcome::ClientGone);
    }
    record.first_byte = record.first_byte.or_else(|| (relay.written > 0).then(|| clock.monotonic()));
    record.bytes_out = relay.written;
    let client_broken = relay.client_broken;
    let told_its_end = relay.outgoing == AnswerFraming::Chunked;
    buffers::give(relay.out);
    let Exchange { at, conn, upload, head } = *exchange;
    let sent_whole = upload.is_whole();
    if end == End::Complete && sent_whole && head.keep_alive {
        at.endpoint.keep(worker.index, conn, now, config);
    } else if end == End::Cut {
        at.endpoint.tell(Trouble::Cut, None, now, &config.name);
        at.endpoint.failed(now, config);
    }
    if let Some(parked) = parked {
        // Everything has left and is settled: this delays the connection's next call at most. Rare, so on the heap.
        Box::pin(parked.wait()).await;
    }
    Ok(match end {
        End::Complete if close || client_broken || !sent_whole && !client.body_is_done() => Served::Close,
        End::Complete => Served::KeepAlive,
        // Its last chunk has left, and nothing was said of the connection's end.
        End::Short if told_its_end && !close => Served::KeepAlive,
        End::Short => Served::Close,
        End::ClientGone | End::Cut | End::NoAnswer | End::Unrecorded => Served::Abort,
    })
}

impl<'e> Relay<'e> {
    fn begin(client: &mut ClientConn, call: &mut Call<'_>, exchange: &'e mut Exchange, close: &mut bool) -> Self {
        let Exchange { conn, head, .. } = &mut *exchange;
        let mut out = buffers::take();
        out.extend_from_slice(client.rest_of_continue());
        let mut interim = out.len();
        if client.rest_of_interim(true, &mut out) {
            interim = out.len();
        }
        let (outgoing, capture) = write_answer_head(call, head, &conn.input()[..head.len], close, &mut out);
        let content_type = head.first(Name::ContentType, conn.input());
        let compressed =
            head.first(Name::ContentEncoding, conn.input()).is_some_and(|v| !v.eq_ignore_ascii_case(b"identity"));
        let format = match content_type {
            Some(value) if !compressed => AnswerFormat::of_content_type(value),
            _ => AnswerFormat::Opaque,
        };
        let text_limit = call.journal_bytes().unwrap_or(0);
        conn.consume(head.len);
        let sized = matches!(head.framing, Framing::Length(_));
        let incoming = match head.framing {
            Framing::None => Incoming::Done,
            Framing::Length(n) => Incoming::Length(n),
            Framing::Chunked => Incoming::Chunked(Decoder::default()),
            Framing::UntilClose => Incoming::UntilClose,
        };
        Self {
            exchange,
            incoming,
            outgoing,
            out,
            at: 0,
            scan: AnswerScan::new(format, text_limit),
            text_room: READ_BYTES,
            capture,
            written: 0,
            waits_for_client: false,
            begun: false,
            patience: None,
            interim,
            unreadable: false,
            client_broken: false,
            watches_cost: format == AnswerFormat::Sse
                && call.cost.is_metered
                && call.policy.outgrown_hold == OutgrownHold::Extend,
            awaits: None,
            settles_first: call.hold.keeps_answer().is_some(),
            sized,
            short: false,
            moved: 0,
        }
    }

    fn poll(
        &mut self,
        worker: &Worker,
        client: &mut ClientConn,
        call: &mut Call<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<End> {
        loop {
            // What has arrived goes out with the head, or with what else is waiting: one write instead of two.
            let arrived_at = self.out.len();
            if !self.unreadable && self.take_arrived().is_err() {
                if self.written == 0 && !self.has_begun_well() {
                    return Poll::Ready(End::NoAnswer);
                }
                self.unreadable = true;
            }
            if self.scan.buffered() > self.text_room {
                self.make_text_room(call);
            }
            if self.watches_cost && self.out.len() > arrived_at {
                self.cover(worker, call, arrived_at);
            }
            match self.poll_covered(worker, call, cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(())) => return Poll::Ready(End::Unrecorded),
                Poll::Pending => {
                    self.poll_upload(client, call, cx);
                    return client.poll_gone(cx).map(|()| End::ClientGone);
                }
            }
            if self.settles_first && matches!(self.incoming, Incoming::Done) && !self.short {
                return Poll::Ready(End::Complete);
            }
            self.begun |= matches!(self.incoming, Incoming::Done);
            if self.begun {
                match self.poll_flush(client, cx) {
                    Poll::Ready(true) => {}
                    Poll::Ready(false) => return Poll::Ready(End::ClientGone),
                    Poll::Pending => {
                        self.poll_upload(client, call, cx);
                        return Poll::Pending;
                    }
                }
            }
            if self.short {
                return Poll::Ready(End::Short);
            }
            if self.unreadable {
                return Poll::Ready(End::Cut);
            }
            if matches!(self.incoming, Incoming::Done) {
                return Poll::Ready(End::Complete);
            }
            if self.exchange.conn.has_input() {
                // More had arrived than was taken at once.
                continue;
            }
            match self.exchange.conn.poll_fill(cx) {
                Poll::Ready(Ok(n)) if n > 0 => self.moved += n as u64,
                Poll::Ready(Ok(_)) if matches!(self.incoming, Incoming::UntilClose) => {
                    self.incoming = Incoming::Done;
                    self.end_body();
                }
                Poll::Ready(_) => {
                    return Poll::Ready(if self.written == 0 { End::NoAnswer } else { End::Cut });
                }
                Poll::Pending => {
                    if !self.begun && self.poll_patience(cx).is_ready() {
                        self.begun = true;
                        continue;
                    }
                    if self.poll_upload(client, call, cx)
                        || (self.exchange.upload.is_done() && client.poll_gone(cx).is_ready())
                    {
                        return Poll::Ready(End::ClientGone);
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// Takes room for the text that the record keeps; where there is none, it keeps no more.
    fn make_text_room(&mut self, call: &mut Call<'_>) {
        // As a text grows: by doubling.
        let more = self.text_room.max(self.scan.buffered() - self.text_room);
        match call.share.grow(more) {
            Ok(()) => self.text_room += more,
            Err(_) => {
                self.scan.keep_no_more();
                self.text_room = usize::MAX;
            }
        }
    }

    /// Whether what there is of the body is no accident: a whole chunk, or bytes that need no form.
    fn has_begun_well(&self) -> bool {
        match &self.incoming {
            Incoming::Chunked(decoder) => decoder.has_begun_well(),
            Incoming::Length(_) | Incoming::UntilClose | Incoming::Done => true,
        }
    }

    /// Ready when the head has waited long enough.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(HEAD_PATIENCE))).as_mut().poll(cx)
    }

    /// Sees to it that what has come is paid for before it leaves: holds more where it must, or ends the answer. What came
    /// with the last piece begins at `arrived_at`.
    fn cover(&mut self, worker: &Worker, call: &mut Call<'_>, arrived_at: usize) {
        let so_far = Usage {
            input_tokens: (call.intake.body.len() as u64).div_ceil(4),
            output_tokens: self.scan.output_tokens_so_far(),
            ..Usage::default()
        };
        let ahead = Usage { output_tokens: HEADROOM_TOKENS, ..Usage::default() };
        let before = call.hold.epoch();
        if call.hold.cover(&call.cost.amounts(&so_far), &call.cost.amounts(&ahead)) {
            if call.hold.epoch() != before && call.policy.durability == Durability::BeforeResponse {
                self.awaits = Some(GateTicket::default());
            }
            return;
        }
        (self.short, self.watches_cost, self.capture) = (true, false, None);
        self.out.truncate(arrived_at);
        let event = short_event(worker, call);
        match self.outgoing {
            AnswerFraming::Chunked => {
                write_chunk(&event, &mut self.out);
                self.out.extend_from_slice(LAST_CHUNK);
            }
            // A stated length leaves no room for it: the client sees that the answer is not whole.
            AnswerFraming::AsIs if !self.sized => self.out.extend_from_slice(&event),
            AnswerFraming::AsIs | AnswerFraming::None => {}
        }
    }

    /// Ready when the debit for what waits to be written is on disk (invariant 2); `Err` when it never will be.
    fn poll_covered(&mut self, worker: &Worker, call: &Call<'_>, cx: &mut Context<'_>) -> Poll<Result<(), ()>> {
        let Some(ticket) = &mut self.awaits else { return Poll::Ready(Ok(())) };
        let durable = worker.gate.poll_durable(call.hold.epoch(), ticket, cx).map_err(|_| ());
        if durable.is_ready() {
            self.awaits = None;
        }
        durable
    }

    /// Goes on sending the request while the answer comes. Says whether the client is gone.
    fn poll_upload(&mut self, client: &mut ClientConn, call: &mut Call<'_>, cx: &mut Context<'_>) -> bool {
        let Exchange { upload, conn, .. } = &mut *self.exchange;
        if upload.is_done() {
            return false;
        }
        match upload.poll(client, conn, call, cx) {
            Poll::Ready(Err(UploadStop::Client(BodyError::Gone))) => true,
            Poll::Ready(Err(UploadStop::Client(_))) => {
                self.client_broken = true;
                false
            }
            Poll::Ready(Ok(())) | Poll::Pending => false,
        }
    }

    /// Moves what was read from the upstream to what is written to the client. `Err`: it is not HTTP any more.
    fn take_arrived(&mut self) -> Result<(), ()> {
        // However long the head is, the first of the body shows whether it may leave.
        while self.exchange.conn.has_input() && (self.out.len() < 4 * READ_BYTES || !self.begun) {
            let input = self.exchange.conn.input();
            let (used, data, done) = match &mut self.incoming {
                Incoming::Done => return Ok(()),
                Incoming::UntilClose => (input.len(), input, false),
                Incoming::Length(left) => {
                    let len = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                    *left -= len as u64;
                    (len, &input[..len], *left == 0)
                }
                Incoming::Chunked(decoder) => {
                    let step = decoder.read(input).map_err(|_| ())?;
                    (step.used, step.data, step.done)
                }
            };
            self.begun |= !data.is_empty();
            self.scan.feed(data);
            if self.capture.as_mut().is_some_and(|capture| !capture.push(data)) {
                self.capture = None;
            }
            match self.outgoing {
                AnswerFraming::Chunked => write_chunk(data, &mut self.out),
                AnswerFraming::AsIs => self.out.extend_from_slice(data),
                AnswerFraming::None => {}
            }
            self.exchange.conn.consume(used);
            if done {
                self.incoming = Incoming::Done;
                self.end_body();
            }
        }
        Ok(())
    }

    fn end_body(&mut self) {
        if self.outgoing == AnswerFraming::Chunked {
            self.out.extend_from_slice(LAST_CHUNK);
        }
    }

    /// Writes what is left of a whole answer. Says whether the client took it.
    async fn flush_rest(&mut self, client: &mut ClientConn, total_due: Monotonic) -> bool {
        let mut armed_for = None;
        poll_fn(|cx| match self.poll_flush(client, cx) {
            Poll::Pending if armed_for == Some(self.moved) && client.deadline.has_expired() => Poll::Ready(false),
            Poll::Pending => {
                if armed_for != Some(self.moved) {
                    armed_for = Some(self.moved);
                    client.deadline.arm_before(client.limits.write_timeout, total_due);
                }
                Poll::Pending
            }
            ready => ready,
        })
        .await
    }

    /// Ready with whether the client still takes what we write.
    fn poll_flush(&mut self, client: &mut ClientConn, cx: &mut Context<'_>) -> Poll<bool> {
        while self.at < self.out.len() {
            match client.poll_write(cx, &self.out[self.at..]) {
                Poll::Ready(Ok(n)) if n > 0 => {
                    self.at += n;
                    self.written += n as u64;
                    self.moved += n as u64;
                }
                Poll::Ready(_) => return Poll::Ready(false),
                Poll::Pending => {
                    self.waits_for_client = true;
                    return Poll::Pending;
                }
            }
        }
        self.waits_for_client = false;
        self.out.clear();
        self.at = 0;
        Poll::Ready(true)
    }
}

/// The last event of a stream whose credits ran out. Begins with an empty line, in case an event was cut off.
fn short_event(worker: &Worker, call: &Call<'_>) -> Vec<u8> {
    let body = Reject::CreditsRanOut.body(call.request, worker.shared.clock.now());
    [b"\n\nevent: error\ndata: ".as_slice(), &body, b"\n\n"].concat()
}

/// Everything that follows from the end of an answer. Gives back a journal record that may wait for room.
fn finish(
    worker: &Worker,
    call: &mut Call<'_>,
    observed: Observed,
    end: End,
    kept: Option<Vec<u8>>,
    record: &mut Record<'_>,
) -> Option<Parked> {
    record.outcome = match (end, record.status) {
        (End::ClientGone, _) => Outcome::ClientGone,
        (End::Cut | End::NoAnswer, _) => Outcome::UpstreamCut,
        (End::Short, _) => Outcome::CreditsExhausted,
        (End::Unrecorded, _) => Outcome::StoreUnavailable,
        (End::Complete, 500..) => Outcome::UpstreamFailed,
        (End::Complete, 400..) => Outcome::UpstreamRefused,
        (End::Complete, _) => Outcome::Ok,
    };
    let usage = observed.usage.unwrap_or_default();
    let ended = if end == End::Complete { Ended::Whole(kept) } else { Ended::Cut };
    let paid = if call.hold.is_settled() {
        Amounts::new()
    } else {
        settle(worker, call, &observed, end, ended, record.status)
    };
    for (label, amount) in call.cost.labels.iter().zip(&paid) {
        worker.shard.spent(*label, *amount);
    }
    if !call.intake.complete && call.intake.is_json && !call.intake.cut {
        // The body streamed by; its copy can be read only now.
        call.intake.scan();
    }
    let model = call.intake.facts.model.take();
    if observed.usage.is_some() && record.status < 300 {
        let name = model.as_deref().or(observed.model.as_deref()).unwrap_or("unknown");
        let label = worker.shared.metrics.model(name);
        worker.shard.tokens(label, usage.input_tokens, usage.output_tokens, usage.cached_tokens);
    }
    let had_body = call.head.framing != Framing::None;
    let parked = match call.journal_bytes() {
        Some(_) if had_body => journal(worker, call, &observed, usage, model.as_deref(), record),
        _ => None,
    };
    buffers::give(std::mem::take(&mut call.intake.body));
    parked
}

/// Pays what the call cost, by what the upstream said or, where it said nothing, by the stated rule.
fn settle(worker: &Worker, call: &mut Call<'_>, observed: &Observed, end: End, ended: Ended, status: u16) -> Amounts {
    let cost = call.cost;
    if !cost.is_metered {
        return call.hold.settle(&cost.amounts(&Usage::default()), ended);
    }
    let estimated = || Usage {
        input_tokens: (call.intake.body.len() as u64).div_ceil(4),
        output_tokens: observed.estimated_output_tokens(),
        images: observed.usage.map_or(0, |usage| usage.images),
        cached_tokens: 0,
    };
    let usage = match observed.usage {
        Some(usage) if usage.input_tokens | usage.output_tokens | usage.images > 0 => {
            Some(match observed.usage_malformed {
                // A number that was none does not make free what passed.
                true => Usage { output_tokens: usage.output_tokens.max(observed.estimated_output_tokens()), ..usage },
                false => usage,
            })
        }
        // An error costs what a call costs, not what an answer would have.
        _ if status >= 400 => Some(Usage::default()),
        // A client that left, or an upstream that broke off: what had been produced until then.
        _ if end != End::Complete => Some(estimated()),
        // A hold that followed the stream has room for what never came.
        _ if call.policy.missing_usage == MissingUsage::Estimate || call.hold.was_extended() => Some(estimated()),
        _ => None,
    };
    match usage {
        Some(usage) => {
            let amounts = cost.amounts(&usage);
            for (label, amount) in cost.labels.iter().zip(call.hold.beyond(&amounts)) {
                worker.shard.unpaid(*label, amount);
            }
            call.hold.settle(&amounts, ended)
        }
        // All that is held.
        None => call.hold.settle(&[], ended),
    }
}

fn journal(
    worker: &Worker,
    call: &mut Call<'_>,
    observed: &Observed,
    usage: Usage,
    model: Option<&str>,
    record: &Record<'_>,
) -> Option<Parked> {
    let standing = &call.caller.standing;
    let intake = &call.intake;
    let messages = intake.facts.messages.clone();
    let request_is_json = messages.is_some() && intake.facts.is_sound();
    let request = match messages {
        Some(range) => intake.body.get(range).unwrap_or_default(),
        // Audio and the like are not conversations to be read.
        None if !intake.is_json => &[],
        None => &intake.body,
    };
    let said = call.policy.notes_r_type.then_some(&intake.facts);
    let answered_by = model.or(observed.model.as_deref());
    worker.shared.journal.emit_or_wait(&ConversationEntry {
        user_id: standing.id.0,
        username: &standing.username,
        email: &standing.email,
        model: answered_by.unwrap_or("unknown"),
        route: &call.route.pattern,
        request,
        request_is_json,
        response: observed.text.as_bytes(),
        research_enabled: said.is_some_and(|facts| facts.research),
        r_type: said.and_then(|facts| facts.r_type.as_deref()),
        tokens_used: usage.input_tokens.saturating_add(usage.output_tokens),
        input_tokens: usage.input_tokens,
        output_tokens: usage.output_tokens,
        processing_time_ms: record.elapsed().as_millis() as u64,
        ip_address: call.client.0,
        timestamp_ms: record.at.0,
        request_id: call.request.as_str(),
        status: record.status,
        truncated: intake.cut || observed.text_truncated,
        outcome: record.outcome.as_str(),
    })
}
