//! The side port's listener: hyper, with limits that suit a handful of admins and scrapers.
//!
//! Owns how many connections the side port has, and who must leave when there is no room: whoever has kept us waiting longest,
//! be it silent, in the middle of a head or of a body, or not reading its answer. So nobody keeps an administrator out by being
//! slow. Never looks into a request.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tower::ServiceExt;

use super::hosts::KnownHosts;
use crate::clock::Clock;
use crate::domain::addresses::ClientAddress;
use crate::domain::ids::RequestId;
use crate::error::Reject;
use crate::telemetry::machine;
use crate::telemetry::seldom::Seldom;

/// For a whole head, however steadily it comes: at most 64 KiB of it.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long somebody who was asked to leave is waited for, and how often.
const LEAVING: (Duration, usize) = (Duration::from_millis(100), 20);
/// Between a connection that could not be accepted and the next.
const AFTER_FAILURE: Duration = Duration::from_millis(20);

/// In the place of a turn: the connection has a whole request.
const BUSY: u64 = u64::MAX;
/// It has been asked to leave.
const LEAVE: u64 = u64::MAX - 1;

/// Who is let in.
pub struct SideGate {
    clock: Clock,
    hosts: Arc<KnownHosts>,
    most: AtomicUsize,
    guests: Mutex<HashMap<u64, Arc<Guest>>>,
    somebody_left: Notify,
    turns: AtomicU64,
    evicted: AtomicU64,
    refused: AtomicU64,
    accept_troubles: Seldom,
    /// Frees descriptors elsewhere.
    make_room: Box<dyn Fn() + Send + Sync>,
}

/// One connection.
struct Guest {
    /// Where it stands among those that keep us waiting; [`BUSY`], [`LEAVE`].
    turn: AtomicU64,
    /// A request of it is there and its answer has not all been taken.
    is_served: AtomicBool,
    leave: Notify,
}

impl Guest {
    /// All of a request is there. `false`: the connection has been asked to leave before.
    fn has_work(&self) -> bool {
        self.is_served.store(true, Ordering::Release);
        self.turn.swap(BUSY, Ordering::AcqRel) != LEAVE
    }

    /// From now on it keeps us waiting. Who has done so before, or has been asked to leave, stands where it stood.
    fn waits(&self, gate: &SideGate) {
        let _ = self.turn.compare_exchange(BUSY, gate.next_turn(), Ordering::AcqRel, Ordering::Relaxed);
    }

    /// It has read of its answer.
    fn goes_on(&self) {
        let turn = self.turn.load(Ordering::Acquire);
        if turn < LEAVE && self.is_served.load(Ordering::Acquire) {
            let _ = self.turn.compare_exchange(turn, BUSY, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

/// A connection's place, given back when dropped.
struct Place {
    gate: Arc<SideGate>,
    number: u64,
    guest: Arc<Guest>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gate.guests.lock().remove(&self.number);
        self.gate.somebody_left.notify_one();
    }
}

/// What comes of asking for a place.
enum Entry {
    In(Place),
    /// Somebody is leaving for it.
    Soon,
    Full,
}

impl SideGate {
    pub fn new(clock: Clock, make_room: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            clock,
            hosts: Arc::default(),
            most: AtomicUsize::new(1),
            guests: Mutex::default(),
            somebody_left: Notify::new(),
            turns: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            accept_troubles: Seldom::default(),
            make_room: Box::new(make_room),
        }
    }

    pub fn reconfigure(&self, most: usize, named: &[String]) {
        self.most.store(most, Ordering::Relaxed);
        self.hosts.reconfigure(named);
    }

    pub fn hosts(&self) -> &Arc<KnownHosts> {
        &self.hosts
    }

    pub fn most(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }

    pub fn open(&self) -> usize {
        self.guests.lock().len()
    }

    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn next_turn(&self) -> u64 {
        self.turns.fetch_add(1, Ordering::Relaxed)
    }

    /// A place, for which whoever has kept us waiting longest may have to leave; `None` when all have something to do.
    async fn enter(self: &Arc<Self>) -> Option<Place> {
        for _ in 0..LEAVING.1 {
            match self.try_enter() {
                Entry::In(place) => return Some(place),
                Entry::Full => break,
                // Elapsed or not, it is looked at again.
                Entry::Soon => drop(tokio::time::timeout(LEAVING.0, self.somebody_left.notified()).await),
            }
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        None
    }

    fn try_enter(self: &Arc<Self>) -> Entry {
        let mut guests = self.guests.lock();
        if guests.len() >= self.most() {
            return if self.ask_one_to_leave(&guests) { Entry::Soon } else { Entry::Full };
        }
        let number = self.next_turn();
        let (turn, is_served) = (AtomicU64::new(number), AtomicBool::new(false));
        let guest = Arc::new(Guest { turn, is_served, leave: Notify::new() });
        guests.insert(number, guest.clone());
        Entry::In(Place { gate: self.clone(), number, guest })
    }

    /// Says whether somebody is leaving: who has been asked before, or is now.
    fn ask_one_to_leave(&self, guests: &HashMap<u64, Arc<Guest>>) -> bool {
        let mut first: Option<(u64, &Guest)> = None;
        for guest in guests.values() {
            match guest.turn.load(Ordering::Acquire) {
                LEAVE => return true,
                BUSY => {}
                turn if first.is_none_or(|(earlier, _)| turn < earlier) => first = Some((turn, guest)),
                _ => {}
            }
        }
        let Some((turn, guest)) = first else { return false };
        // Fails if all of its request has come at just this moment; then it is looked again.
        if guest.turn.compare_exchange(turn, LEAVE, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            guest.leave.notify_one();
            self.evicted.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    fn accept_failed(&self, error: &io::Error) {
        if let Some(count) = self.accept_troubles.count(self.clock.monotonic()) {
            tracing::warn!(%error, count, "cannot accept connections on listen.admin");
        }
        if machine::is_exhausted(error) {
            (self.make_room)();
        }
    }

    /// Tells a client that there is no place.
    fn refuse(&self, stream: &TcpStream) {
        let reject = Reject::Overloaded("Too many connections");
        let id = RequestId::from_parts(fastrand::u32(..), fastrand::u64(..));
        let body = reject.body(id, self.clock.now());
        let head = format!(
            "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
             retry-after: 1\r\nx-request-id: {}\r\nconnection: close\r\n\r\n",
            body.len(),
            id.as_str()
        );
        // The socket's buffer is empty, so this takes it all or the client is gone.
        let _ = stream.try_write(&[head.as_bytes(), &body].concat());
    }
}

/// Serves `router` until `ended` turns true.
pub async fn serve(listener: TcpListener, router: Router, gate: Arc<SideGate>, mut ended: watch::Receiver<bool>) {
    loop {
        let accepted = tokio::select! {
            _ = ended.wait_for(|ended| *ended) => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                gate.accept_failed(&error);
                tokio::time::sleep(AFTER_FAILURE).await;
                continue;
            }
        };
        let Some(place) = gate.enter().await else {
            gate.refuse(&stream);
            continue;
        };
        let (router, ended, client) = (router.clone(), ended.clone(), ClientAddress(peer.ip().to_canonical()));
        tokio::spawn(async move { serve_connection(stream, client, router, &place, ended).await });
    }
}

async fn serve_connection(
    stream: TcpStream,
    client: ClientAddress,
    router: Router,
    place: &Place,
    mut ended: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    let (gate, guest) = (place.gate.clone(), place.guest.clone());
    let stream = Watched { stream, gate: gate.clone(), guest: guest.clone() };
    let service = service_fn(move |request: Request<Incoming>| {
        answer(request, client, router.clone(), Served { gate: gate.clone(), guest: guest.clone() })
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(64 << 10)
            .serve_connection(TokioIo::new(stream), service)
    );
    let mut ending = false;
    loop {
        tokio::select! {
            result = connection.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(%error, "a connection of the side port ended early");
                }
                return;
            }
            () = place.guest.leave.notified() => return,
            _ = ended.wait_for(|ended| *ended), if !ending => {
                ending = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// One request and its answer. Until all of the request is there, and after the answer has been taken, its connection waits.
struct Served {
    gate: Arc<SideGate>,
    guest: Arc<Guest>,
}

async fn answer(
    request: Request<Incoming>,
    client: ClientAddress,
    router: Router,
    served: Served,
) -> Result<Response<Leaving>, Infallible> {
    let guest = served.guest.clone();
    let is_whole = request.body().is_end_stream();
    if is_whole && !guest.has_work() {
        // The connection is about to be closed: nothing must begin.
        return pending().await;
    }
    let mut request = request.map(|body| axum::body::Body::new(Arriving { body, is_whole, guest: guest.clone() }));
    request.extensions_mut().insert(client);
    let mut response = match router.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    if !guest.is_served.load(Ordering::Acquire) {
        // Nobody has read the request to its end, so nobody knows where the next one begins (RFC 9112, 9.6).
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response.map(|body| Leaving { body, _served: served }))
}

/// A request's body.
struct Arriving {
    body: Incoming,
    is_whole: bool,
    guest: Arc<Guest>,
}

impl Body for Arriving {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let is_whole = frame.is_none() || self.body.is_end_stream();
        if is_whole && !self.is_whole && !self.guest.has_work() {
            return Poll::Pending;
        }
        self.is_whole |= is_whole;
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body.
struct Leaving {
    body: axum::body::Body,
    _served: Served,
}

impl Body for Leaving {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.guest.is_served.store(false, Ordering::Release);
        self.guest.waits(&self.gate);
    }
}

/// A connection's socket, which notes when the other side reads nothing.
struct Watched {
    stream: TcpStream,
    gate: Arc<SideGate>,
    guest: Arc<Guest>,
}

impl Watched {
    fn note(&self, wrote: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match wrote {
            Poll::Pending => self.guest.waits(&self.gate),
            Poll::Ready(_) => self.guest.goes_on(),
        }
        wrote
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note(wrote)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.note(wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
