//! A client's connection: heads and bodies in, answers out.
//!
//! Owns the socket, what was read ahead of its use, and the state of the body being received. An idle connection holds no
//! buffer. Never knows what a request means.

use std::future::poll_fn;
use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

use super::chunked::Decoder;
use super::head::{Framing, HeadEnd, HeadError, RequestHead};
use crate::clock::Monotonic;
use crate::gateway::buffers::{self, READ_BYTES};
use crate::gateway::deadline::Deadline;

/// Bytes of pipelined requests kept while one is served; a client that sends more has to wait. No more than a buffer that was
/// made anyway, so that it costs nobody anything.
const MAX_READ_AHEAD: usize = READ_BYTES;

/// Bytes of interim answers that wait for a client; those that come beyond are left out.
const MAX_INTERIM: usize = 16 << 10;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What carries the bytes. The place where TLS joins.
pub enum Transport {
    Tcp(TcpStream),
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut tokio::io::ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl Transport {
    /// Waits for something to read without holding a buffer for it.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_read_ready(cx),
        }
    }

    /// Ready when the other side has closed, although there may be something to read that nobody wants yet. The runtime tells
    /// of the next arrival only, so from here on [`Transport::read_now`] is to be asked first.
    fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Tcp(stream) => {
                // The first look may find what arrived just now; an end is there at the second one, too.
                for _ in 0..2 {
                    let forget = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
                    let _ = stream.try_io(Interest::READABLE, forget);
                    let _ = ready!(stream.poll_read_ready(cx));
                }
                Poll::Ready(())
            }
        }
    }

    /// Reads past the runtime's knowledge of what there is.
    fn read_now(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => (&*SockRef::from(stream)).read(buffer),
        }
    }
}

/// The time limits of a connection.
#[derive(Clone, Copy, Debug)]
pub struct ConnLimits {
    pub max_head_bytes: usize,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    /// A client that is waited for longer than `body_timeout` in all must have sent so many bytes a second. 0: any number will do.
    pub slowest_body: u64,
    pub idle_timeout: Duration,
    pub write_timeout: Duration,
    pub max_requests: u64,
}

pub struct ClientConn {
    io: Transport,
    /// Bytes read and not used yet, from `at` on.
    input: Vec<u8>,
    at: usize,
    /// There may be something to read that the runtime does not know of any more.
    unread: bool,
    body: Body,
    /// Interim answers of an upstream, from `interim_at` on not sent yet. Nearly always empty.
    interim: Vec<u8>,
    interim_at: usize,
    pub deadline: Deadline,
    pub limits: ConnLimits,
}

/// The request body being received.
struct Body {
    left: BodyLeft,
    received: u64,
    max: u64,
    /// How long the client was waited for, all together.
    waited: Duration,
    /// Since when it is waited for.
    waits_since: Option<Monotonic>,
    /// How much of `100 Continue` is still to be written before the body is asked for.
    continue_left: usize,
}

impl Body {
    fn new(left: BodyLeft, max: u64, continue_left: usize) -> Self {
        Self { left, received: 0, max, waited: Duration::ZERO, waits_since: None, continue_left }
    }
}

#[derive(Clone, Copy, Debug)]
enum BodyLeft {
    None,
    Length(u64),
    Chunked(Decoder),
}

/// What a look for more of the body brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyStep {
    /// Something was appended.
    More,
    End,
}

#[derive(Debug)]
pub enum BodyError {
    /// Over the limit.
    TooLarge,
    Malformed(&'static str),
    /// It comes more slowly than a body may.
    TooSlow,
    /// The client left in the middle.
    Gone,
}

/// What came instead of a head.
#[derive(Debug)]
pub enum NoHead {
    /// The client closed, said nothing for too long between requests, or had to leave for others before it asked.
    Closed,
    /// The head did not arrive in time.
    Slow,
    Refused(HeadError),
}

impl ClientConn {
    pub fn new(io: Transport, deadline: Deadline, limits: ConnLimits) -> Self {
        let body = Body::new(BodyLeft::None, 0, 0);
        let (interim, interim_at) = (Vec::new(), 0);
        Self { io, input: Vec::new(), at: 0, unread: false, body, interim, interim_at, deadline, limits }
    }

    /// The next request's head. `stop`, asked at every wake, ends the wait of a connection on which nothing has come yet.
    ///
    /// # Errors
    /// See [`NoHead`].
    pub async fn read_head(&mut self, stop: impl Fn() -> bool) -> Result<RequestHead, NoHead> {
        let mut end = HeadEnd::default();
        self.deadline.waits();
        self.compact();
        if self.input.is_empty() {
            buffers::give(std::mem::take(&mut self.input));
            self.deadline.arm_coarsely(self.limits.idle_timeout);
            // Until a first byte is there, this is waiting, however long; after it, a head is due.
            let read = poll_fn(|cx| {
                if self.deadline.has_expired() || self.deadline.must_leave() || stop() {
                    return Poll::Ready(Err(NoHead::Closed));
                }
                self.poll_fill(cx).map_err(|_| NoHead::Closed)
            })
            .await?;
            if read == 0 {
                return Err(NoHead::Closed);
            }
        }
        let mut armed = false;
        loop {
            if let Some(len) = end.find(&self.input, self.limits.max_head_bytes).map_err(NoHead::Refused)? {
                if !self.deadline.has_work() {
                    return Err(NoHead::Closed);
                }
                return self.take_head(len).map_err(NoHead::Refused);
            }
            // Most heads come in one piece and need no limit.
            if !armed {
                self.deadline.arm(self.limits.header_timeout);
                armed = true;
            }
            let read = poll_fn(|cx| {
                if self.deadline.has_expired() {
                    return Poll::Ready(Err(NoHead::Slow));
                }
                if self.deadline.must_leave() {
                    return Poll::Ready(Err(NoHead::Closed));
                }
                self.poll_fill(cx).map_err(|_| NoHead::Closed)
            })
            .await?;
            if read == 0 {
                return Err(NoHead::Refused(HeadError::Malformed("the head is cut off")));
            }
        }
    }

    /// The head keeps the buffer it came in; what follows it moves to a new one.
    fn take_head(&mut self, len: usize) -> Result<RequestHead, HeadError> {
        let rest = if self.input.len() > len {
            let mut rest = buffers::take();
            rest.extend_from_slice(&self.input[len..]);
            rest
        } else {
            Vec::new()
        };
        let mut head = std::mem::replace(&mut self.input, rest);
        head.truncate(len);
        RequestHead::parse(head)
    }

    /// Prepares for the body that `framing` announces.
    pub fn begin_body(&mut self, framing: Framing, expects_continue: bool, max: u64) {
        let left = match framing {
            Framing::Length(n) => BodyLeft::Length(n),
            Framing::Chunked => BodyLeft::Chunked(Decoder::default()),
            Framing::None | Framing::UntilClose => BodyLeft::None,
        };
        let continue_left = if expects_continue { CONTINUE.len() } else { 0 };
        self.body = Body::new(left, max, continue_left);
    }

    /// Appends more of the body to `out`, decoded.
    pub fn poll_body(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<Result<BodyStep, BodyError>> {
        let step = self.poll_more_body(cx, out);
        if step.is_pending() {
            if self.body.waits_since.is_none() {
                self.body.waits_since = Some(self.deadline.coarse_now());
            }
        } else if let Some(since) = self.body.waits_since.take() {
            self.body.waited += self.deadline.coarse_now().since(since);
            if !self.body_is_done() && self.body_time_left().is_zero() {
                return Poll::Ready(Err(BodyError::TooSlow));
            }
        }
        step
    }

    /// The next piece of the body, appended to `out`; waited for as long as the client's pace has earned.
    ///
    /// # Errors
    /// See [`BodyError`].
    pub async fn read_body(&mut self, out: &mut Vec<u8>) -> Result<BodyStep, BodyError> {
        let mut armed = false;
        poll_fn(|cx| {
            if (armed && self.deadline.has_expired()) || self.deadline.must_leave() {
                return Poll::Ready(Err(BodyError::TooSlow));
            }
            let step = self.poll_body(cx, out);
            if step.is_pending() && !armed {
                self.deadline.arm(self.body_time_left());
                armed = true;
            }
            step
        })
        .await
    }

    /// Whether something was read that nobody has used yet.
    pub fn has_input(&self) -> bool {
        self.at < self.input.len()
    }

    /// How much longer the client may be waited for: the time between two reads, and no more than its pace so far has earned.
    pub fn body_time_left(&self) -> Duration {
        let patience = self.limits.body_timeout;
        let Some(earned_ms) = (self.body.received * 1000).checked_div(self.limits.slowest_body) else {
            return patience;
        };
        let waiting = self.body.waits_since.map_or(Duration::ZERO, |since| self.deadline.coarse_now().since(since));
        let earned = patience.saturating_add(Duration::from_millis(earned_ms));
        patience.min(earned.saturating_sub(self.body.waited + waiting))
    }

    /// Nobody has asked for the body for a while: that is not the client's time.
    pub fn body_was_not_wanted(&mut self) {
        self.body.waits_since = None;
    }

    /// The most that the next look for more of the body brings.
    pub fn next_piece(&self) -> usize {
        let most = (self.input.len() - self.at).max(self.input.capacity()).max(READ_BYTES);
        match self.body.left {
            BodyLeft::None => 0,
            BodyLeft::Length(left) => most.min(usize::try_from(left).unwrap_or(usize::MAX)),
            BodyLeft::Chunked(_) => most,
        }
    }

    /// How long the whole body is, where its head says so.
    pub fn body_length(&self) -> Option<u64> {
        match self.body.left {
            BodyLeft::None => Some(self.body.received),
            BodyLeft::Length(left) => Some(self.body.received + left),
            BodyLeft::Chunked(_) => None,
        }
    }

    /// Gives the buffer back if there is nothing in it.
    pub fn give_input_back(&mut self) {
        if self.at == self.input.len() {
            self.at = 0;
            buffers::give(std::mem::take(&mut self.input));
        }
    }

    fn poll_more_body(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<Result<BodyStep, BodyError>> {
        loop {
            if let Some(step) = self.take_buffered_body(out)? {
                return Poll::Ready(Ok(step));
            }
            ready!(self.poll_continue(cx)).map_err(|_| BodyError::Gone)?;
            let read = ready!(self.poll_fill(cx)).map_err(|_| BodyError::Gone)?;
            if read == 0 {
                return Poll::Ready(Err(BodyError::Gone));
            }
        }
    }

    /// Asks for the body, where the client waits for that.
    fn poll_continue(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.body.continue_left > 0 && self.interim_at > 0 {
            // One interim answer after the other.
            ready!(self.poll_interim(cx))?;
        }
        while self.body.continue_left > 0 {
            let rest = &CONTINUE[CONTINUE.len() - self.body.continue_left..];
            self.body.continue_left -= ready!(Pin::new(&mut self.io).poll_write(cx, rest))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Takes what `write` writes as an interim answer that is to go to the client, as far as there is room.
    pub fn queue_interim(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.interim.len();
        write(&mut self.interim);
        if self.interim.len() > MAX_INTERIM {
            self.interim.truncate(before);
        }
    }

    pub fn has_interim(&self) -> bool {
        !self.interim.is_empty()
    }

    /// Sends what waits of interim answers.
    pub fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if (1..CONTINUE.len()).contains(&self.body.continue_left) && self.interim_at == 0 {
            ready!(self.poll_continue(cx))?;
        }
        while self.interim_at < self.interim.len() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.interim[self.interim_at..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.interim_at += n,
            }
        }
        self.forget_interim();
        Poll::Ready(Ok(()))
    }

    fn forget_interim(&mut self) {
        (self.interim, self.interim_at) = (Vec::new(), 0);
    }

    /// From what was read already; `None` when more is needed.
    fn take_buffered_body(&mut self, out: &mut Vec<u8>) -> Result<Option<BodyStep>, BodyError> {
        let buffered = self.input.get(self.at..).unwrap_or_default();
        let (used, step) = match &mut self.body.left {
            BodyLeft::None => return Ok(Some(BodyStep::End)),
            BodyLeft::Length(left) => {
                let len = usize::try_from(*left).unwrap_or(usize::MAX).min(buffered.len());
                if len == 0 {
                    return Ok(None);
                }
                out.extend_from_slice(&buffered[..len]);
                self.body.received += len as u64;
                *left -= len as u64;
                if *left == 0 {
                    self.body.left = BodyLeft::None;
                }
                (len, Some(BodyStep::More))
            }
            BodyLeft::Chunked(decoder) => {
                let mut used = 0;
                let before = out.len();
                let mut done = false;
                while used < buffered.len() && !done {
                    let step = decoder.read(&buffered[used..]).map_err(|e| BodyError::Malformed(e.0))?;
                    used += step.used;
                    out.extend_from_slice(step.data);
                    done = step.done;
                }
                self.body.received += (out.len() - before) as u64;
                if self.body.received > self.body.max {
                    return Err(BodyError::TooLarge);
                }
                if done {
                    self.body.left = BodyLeft::None;
                }
                let step = match (out.len() > before, done) {
                    (true, _) => Some(BodyStep::More),
                    (false, true) => Some(BodyStep::End),
                    (false, false) => None,
                };
                (used, step)
            }
        };
        self.at += used;
        if self.at == self.input.len() {
            self.input.clear();
            self.at = 0;
        }
        Ok(step)
    }

    /// Whether all of the request has been received.
    pub fn body_is_done(&self) -> bool {
        matches!(self.body.left, BodyLeft::None)
    }

    /// Whether what is left of a body framed so can be received and forgotten, so that the connection goes on.
    pub fn can_skip_body(&self, framing: Framing, max: usize) -> bool {
        match framing {
            Framing::None => true,
            Framing::Length(n) => n <= max as u64,
            Framing::Chunked | Framing::UntilClose => self.body_is_done(),
        }
    }

    /// Whether nothing of the body has been asked for, so that a client that expects `100 Continue` has not sent it.
    pub fn body_is_untouched(&self) -> bool {
        self.body.continue_left == CONTINUE.len() && self.at == self.input.len()
    }

    /// An answer is about to be written: `100 Continue` is not sent any more, or what is missing of it comes first.
    pub fn rest_of_continue(&mut self) -> &'static [u8] {
        let left = std::mem::take(&mut self.body.continue_left);
        if left == CONTINUE.len() { &[] } else { &CONTINUE[CONTINUE.len() - left..] }
    }

    /// An answer is about to be written, after [`Self::rest_of_continue`]: what waits of interim answers goes before it; of a
    /// refusal (`all` is false), only what is missing of those that have begun to leave. Says whether they had.
    pub fn rest_of_interim(&mut self, all: bool, out: &mut Vec<u8>) -> bool {
        let has_begun = self.interim_at > 0;
        if all || has_begun {
            out.extend_from_slice(&self.interim[self.interim_at..]);
        }
        self.forget_interim();
        has_begun
    }

    pub fn body_received(&self) -> u64 {
        self.body.received
    }

    /// Ready when the client has closed. Meanwhile keeps what it sends ahead, up to a bound.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.input.len() - self.at >= MAX_READ_AHEAD {
                self.unread = true;
                return self.io.poll_closed(cx);
            }
            match ready!(self.poll_fill(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
    }

    /// Reads what there is; 0 at the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.unread {
            match self.fill_now() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.unread = false,
                read => return Poll::Ready(read),
            }
        }
        if self.input.capacity() == 0 {
            // Asked first, so that a connection that only waits has no buffer; and taken back if there was nothing after all.
            ready!(self.io.poll_readable(cx))?;
            self.input = buffers::take();
            let read = poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input);
            if read.is_pending() {
                buffers::give(std::mem::take(&mut self.input));
            }
            return read;
        }
        if self.input.len() == self.input.capacity() {
            self.compact();
            self.input.reserve(READ_BYTES);
        }
        poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input)
    }

    fn fill_now(&mut self) -> io::Result<usize> {
        let mut piece = [0; READ_BYTES];
        let read = self.io.read_now(&mut piece)?;
        self.compact();
        if self.input.capacity() == 0 {
            self.input = buffers::take();
        }
        self.input.extend_from_slice(&piece[..read]);
        Ok(read)
    }

    fn compact(&mut self) {
        if self.at > 0 {
            self.input.drain(..self.at);
            self.at = 0;
        }
    }

    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    /// Writes all of `bytes`, an answer of ours, within the write limit. Who does not read it leaves before others have to.
    ///
    /// # Errors
    /// The client left or did not read in time.
    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut written = 0;
        self.deadline.arm(self.limits.write_timeout);
        poll_fn(|cx| {
            while written < bytes.len() {
                if self.deadline.has_expired() || self.deadline.must_leave() {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                match self.poll_write(cx, &bytes[written..]) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(wrote) => written += wrote?,
                    Poll::Pending => {
                        self.deadline.waits();
                        return Poll::Pending;
                    }
                }
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Receives and forgets the rest of the body, up to `max` bytes, so that the connection can be used again. `false`
    /// when it cannot.
    pub async fn discard_body(&mut self, max: usize) -> bool {
        let mut sink = Vec::new();
        let mut total = 0;
        self.body.continue_left = 0;
        self.deadline.arm(self.limits.body_timeout);
        while !self.body_is_done() {
            let step = poll_fn(|cx| {
                if self.deadline.has_expired() || self.deadline.must_leave() {
                    return Poll::Ready(Err(BodyError::Gone));
                }
                self.poll_body(cx, &mut sink)
            })
            .await;
            total += sink.len();
            sink.clear();
            if step.is_err() || total > max {
                return false;
            }
        }
        true
    }

    /// Closes so that the client can read the answer first: an answer that is followed by a reset may never be seen
    /// (RFC 9112, 9.6). A client that sends on gets the time and the bytes of a whole body for it, and no more.
    /// Whoever needs the room more ends it.
    pub async fn linger(&mut self, max_bytes: u64) {
        const SILENCE: Duration = Duration::from_secs(2);
        self.deadline.waits();
        let shut = poll_fn(|cx| Pin::new(&mut self.io).poll_shutdown(cx)).await;
        if shut.is_err() {
            return;
        }
        let latest = self.deadline.coarse_now().plus(self.limits.body_timeout);
        let mut total = 0;
        while total < max_bytes {
            self.input.clear();
            self.at = 0;
            self.deadline.arm_before(SILENCE, latest);
            let read = poll_fn(|cx| {
                if self.deadline.has_expired() || self.deadline.must_leave() {
                    return Poll::Ready(Ok(0));
                }
                self.poll_fill(cx)
            })
            .await;
            match read {
                Ok(0) | Err(_) => return,
                Ok(n) => total += n as u64,
            }
        }
    }
}
