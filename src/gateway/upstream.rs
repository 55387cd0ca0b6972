//! Upstream applications: their endpoints, how well those are, and the connections kept to them.
//!
//! Owns balancing (the less busy of two random endpoints), passive ejection, active health checks, the pools, and what the log
//! is told of failures. A pooled connection belongs to one worker, because its socket is registered with that worker's runtime.
//! Never reads a message.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

use super::buffers::{self, READ_BYTES};
use crate::clock::{Clock, Monotonic};
use crate::config::{EndpointAddress, UpstreamConfig};
use crate::telemetry::seldom::Seldom;

static NEXT_CHECK: AtomicU64 = AtomicU64::new(1);

/// An answer may take minutes to begin: TCP asks whether the other side is still there, and reminds what lies between.
const ASK_AFTER: Duration = Duration::from_secs(60);

/// What went wrong with a call to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Trouble {
    Name,
    Connect,
    ConnectTimeout,
    NoAnswer,
    Malformed,
    Timeout,
    Cut,
}

/// In the order of [`Trouble`].
const TROUBLES: [&str; 7] = [
    "its name cannot be resolved",
    "cannot connect",
    "no connection within connect_timeout",
    "closed the connection without an answer",
    "sent a malformed answer",
    "no answer in time",
    "broke off in its answer, or fell silent",
];

/// Connections to all endpoints, in use and kept.
#[derive(Debug)]
pub struct Sockets {
    open: AtomicUsize,
    /// How many the process's descriptors leave room for.
    room: AtomicUsize,
}

impl Default for Sockets {
    fn default() -> Self {
        Self { open: AtomicUsize::new(0), room: AtomicUsize::new(usize::MAX) }
    }
}

impl Sockets {
    pub fn set_room(&self, room: usize) {
        self.room.store(room, Ordering::Relaxed);
    }

    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    pub fn room(&self) -> usize {
        self.room.load(Ordering::Relaxed)
    }

    /// No further one can be opened unless one that is kept is closed.
    pub fn is_full(&self) -> bool {
        self.open() >= self.room()
    }
}

/// One connection's place among [`Sockets`], given back when dropped.
struct SocketPlace(Arc<Sockets>);

impl SocketPlace {
    fn take(sockets: &Arc<Sockets>) -> Self {
        sockets.open.fetch_add(1, Ordering::Relaxed);
        Self(sockets.clone())
    }
}

impl Drop for SocketPlace {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One address of an upstream.
pub struct Endpoint {
    pub address: EndpointAddress,
    in_flight: AtomicUsize,
    /// Failures since the last success.
    failures: AtomicU32,
    /// Until when, on the monotonic clock, no call goes here unless nobody else is left.
    ejected_until: AtomicU64,
    /// What the active check says; true where there is none.
    checked_healthy: AtomicBool,
    /// The check whose word counts: the present policy's. 0: none.
    checked_by: AtomicU64,
    /// Idle connections, by worker.
    idle: Vec<Mutex<Vec<Idle>>>,
    sockets: Arc<Sockets>,
    /// Lines of the log, by [`Trouble`].
    told: [Seldom; TROUBLES.len()],
}

struct Idle {
    // Before its place, so that it is closed when that is given back.
    stream: TcpStream,
    place: SocketPlace,
    since: Monotonic,
}

/// An upstream application.
pub struct Upstream {
    pub config: UpstreamConfig,
    pub endpoints: Vec<Arc<Endpoint>>,
    in_flight: AtomicUsize,
    /// Tells this policy's health check from an earlier one's that is still running.
    check: u64,
}

/// A call's place among those in flight; given back when dropped.
pub struct InFlight {
    upstream: Arc<Upstream>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.upstream.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An attempt's place at its endpoint.
pub struct AtEndpoint {
    pub endpoint: Arc<Endpoint>,
}

impl Drop for AtEndpoint {
    fn drop(&mut self) {
        self.endpoint.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Upstream {
    /// `known`: endpoints of an earlier config, taken over with their connections and their health.
    pub fn new(config: UpstreamConfig, workers: usize, known: &[Arc<Endpoint>], sockets: &Arc<Sockets>) -> Self {
        let endpoints = config.endpoints.iter().map(|address| {
            let same = known.iter().find(|endpoint| endpoint.address == *address);
            same.cloned().unwrap_or_else(|| Arc::new(Endpoint::new(address.clone(), workers, sockets.clone())))
        });
        let endpoints: Vec<Arc<Endpoint>> = endpoints.collect();
        let check = if config.health_path.is_some() { NEXT_CHECK.fetch_add(1, Ordering::Relaxed) } else { 0 };
        for endpoint in &endpoints {
            endpoint.checked_by.store(check, Ordering::SeqCst);
            if check == 0 {
                endpoint.checked_healthy.store(true, Ordering::SeqCst);
            }
        }
        Self { endpoints, config, in_flight: AtomicUsize::new(0), check }
    }

    /// A place for one more call; `None` when the cap is reached.
    pub fn enter(self: &Arc<Self>) -> Option<InFlight> {
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        let place = InFlight { upstream: self.clone() };
        // Dropping the place undoes the count.
        (before < self.config.max_in_flight).then_some(place)
    }

    /// The endpoint for the next attempt: of two random ones that are well and not in `tried`, the less busy. When none is
    /// well, any that was not tried: a call that may fail is better than one that must.
    pub fn choose(&self, now: Monotonic, tried: &[Arc<Endpoint>]) -> Option<AtEndpoint> {
        let chosen = if let [only] = self.endpoints.as_slice() {
            tried.is_empty().then_some(only)
        } else {
            let open = |e: &&Arc<Endpoint>| !tried.iter().any(|t| Arc::ptr_eq(t, e));
            let well: Vec<&Arc<Endpoint>> = self.endpoints.iter().filter(|e| open(e) && e.is_well(now)).collect();
            if well.is_empty() {
                let left: Vec<&Arc<Endpoint>> = self.endpoints.iter().filter(open).collect();
                less_busy_of_two(&left)
            } else {
                less_busy_of_two(&well)
            }
        };
        chosen.map(|endpoint| {
            endpoint.in_flight.fetch_add(1, Ordering::Relaxed);
            AtEndpoint { endpoint: endpoint.clone() }
        })
    }
}

fn less_busy_of_two<'a>(endpoints: &[&'a Arc<Endpoint>]) -> Option<&'a Arc<Endpoint>> {
    if endpoints.len() < 2 {
        return endpoints.first().copied();
    }
    let first = fastrand::usize(..endpoints.len());
    // A second one that differs from the first.
    let second = (first + fastrand::usize(1..endpoints.len())) % endpoints.len();
    let (a, b) = (endpoints[first], endpoints[second]);
    Some(if b.in_flight() < a.in_flight() { b } else { a })
}

impl Endpoint {
    fn new(address: EndpointAddress, workers: usize, sockets: Arc<Sockets>) -> Self {
        Self {
            address,
            in_flight: AtomicUsize::new(0),
            failures: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
            checked_healthy: AtomicBool::new(true),
            checked_by: AtomicU64::new(0),
            idle: (0..workers).map(|_| Mutex::default()).collect(),
            sockets,
            told: Default::default(),
        }
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub fn is_well(&self, now: Monotonic) -> bool {
        self.checked_healthy.load(Ordering::Relaxed) && self.ejected_until.load(Ordering::Relaxed) <= now.0
    }

    /// A call got an answer that shows the endpoint working.
    pub fn succeeded(&self) {
        // Read first: on the common path nothing is written to a line that all workers share.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// A call could not connect, got no answer, or a 5xx.
    pub fn failed(&self, now: Monotonic, config: &UpstreamConfig) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if config.eject_after > 0 && failures >= config.eject_after {
            self.failures.store(0, Ordering::Relaxed);
            let was_well = self.ejected_until.swap(now.plus(config.eject_time).0, Ordering::Relaxed) <= now.0;
            // The only endpoint is called all the same, and goes on failing.
            if was_well {
                tracing::warn!(endpoint = %self.address.authority, upstream = %config.name, "ejected after {failures} failures in a row");
            }
        }
    }

    /// Tells the log of a failure: the first of a kind at once, others by their number.
    pub fn tell(&self, trouble: Trouble, cause: Option<&str>, now: Monotonic, upstream: &str) {
        if let Some(count) = self.told[trouble as usize].count(now) {
            self.write_line(trouble as usize, cause, count, upstream);
        }
    }

    /// Tells the log of failures that were counted since its last line, once that is long enough ago.
    pub fn tell_rest(&self, now: Monotonic, upstream: &str) {
        for (at, line) in self.told.iter().enumerate() {
            if let Some(count) = line.due(now) {
                self.write_line(at, None, count, upstream);
            }
        }
    }

    fn write_line(&self, at: usize, cause: Option<&str>, count: u64, upstream: &str) {
        let cause = cause.map_or_else(|| TROUBLES[at].to_owned(), |cause| format!("{}: {cause}", TROUBLES[at]));
        tracing::warn!(endpoint = %self.address.authority, upstream, cause, count, "an upstream fails");
    }

    /// An idle connection of this worker that is still open.
    pub fn reuse(&self, worker: usize, now: Monotonic, config: &UpstreamConfig) -> Option<UpstreamConn> {
        let pool = self.idle.get(worker)?;
        loop {
            let idle = pool.lock().pop()?;
            // The runtime has noted if the upstream closed or sent something unasked; then this is no system call wasted.
            let quiet = matches!(idle.stream.try_read(&mut [0u8; 1]), Err(e) if e.kind() == io::ErrorKind::WouldBlock);
            if quiet && now.since(idle.since) < config.pool_idle_timeout {
                let Idle { stream, place, .. } = idle;
                return Some(UpstreamConn { stream, place, input: Vec::new(), at: 0, reused: true });
            }
        }
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// The name is not known, nobody answers, or there is no descriptor.
    pub async fn connect(&self) -> Result<UpstreamConn, (Trouble, io::Error)> {
        let port = self.address.port;
        let place = SocketPlace::take(&self.sockets);
        let opened = match self.address.host.parse::<IpAddr>() {
            Ok(ip) => TcpStream::connect((ip, port)).await,
            Err(_) => {
                let found = tokio::net::lookup_host((&*self.address.host, port)).await;
                let found: Vec<SocketAddr> = found.map_err(|error| (Trouble::Name, error))?.collect();
                TcpStream::connect(found.as_slice()).await
            }
        };
        let prepared = opened.and_then(|stream| {
            stream.set_nodelay(true)?;
            let keepalive = TcpKeepalive::new().with_time(ASK_AFTER).with_interval(Duration::from_secs(15));
            SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
            Ok(stream)
        });
        let stream = prepared.map_err(|error| (Trouble::Connect, error))?;
        Ok(UpstreamConn { stream, place, input: Vec::new(), at: 0, reused: false })
    }

    /// Keeps a connection whose exchange is complete.
    pub fn keep(&self, worker: usize, conn: UpstreamConn, now: Monotonic, config: &UpstreamConfig) {
        // Bytes nobody asked for would be taken for the next call's answer.
        if conn.has_input() {
            return;
        }
        buffers::give(conn.input);
        if let Some(pool) = self.idle.get(worker) {
            let mut pool = pool.lock();
            if pool.len() < config.pool_idle && self.sockets.open() <= self.sockets.room() {
                pool.push(Idle { stream: conn.stream, place: conn.place, since: now });
            }
        }
    }

    /// Closes the connections that are kept, of all workers: their descriptors are needed.
    pub fn close_idle(&self) {
        self.idle.iter().for_each(|pool| pool.lock().clear());
    }

    /// Closes connections of this worker that were idle for too long.
    pub fn prune(&self, worker: usize, now: Monotonic, config: &UpstreamConfig) {
        if let Some(pool) = self.idle.get(worker) {
            pool.lock().retain(|idle| now.since(idle.since) < config.pool_idle_timeout);
        }
    }
}

/// A connection to an endpoint and what was read from it.
pub struct UpstreamConn {
    stream: TcpStream,
    place: SocketPlace,
    input: Vec<u8>,
    at: usize,
    /// It has served a call before, so the upstream may have closed it meanwhile.
    pub reused: bool,
}

impl UpstreamConn {
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    /// As [`UpstreamConn::poll_write`], of several pieces at once.
    pub fn poll_write_vectored(&mut self, cx: &mut Context<'_>, parts: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    /// Reads what there is; 0 at the end.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.input.capacity() == 0 {
            match self.stream.poll_read_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => return Poll::Pending,
            }
            self.input = buffers::take();
        } else if self.at > 0 && self.at == self.input.len() {
            self.input.clear();
            self.at = 0;
        } else if self.input.len() == self.input.capacity() {
            self.input.drain(..self.at);
            self.at = 0;
            self.input.reserve(READ_BYTES);
        }
        poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.input)
    }

    pub fn input(&self) -> &[u8] {
        self.input.get(self.at..).unwrap_or_default()
    }

    pub fn has_input(&self) -> bool {
        self.at < self.input.len()
    }

    pub fn consume(&mut self, bytes: usize) {
        self.at = (self.at + bytes).min(self.input.len());
    }
}

/// Asks the endpoints of `upstream` for their health path until `upstream` is dropped. Run it on the control runtime.
pub async fn check_health(upstream: std::sync::Weak<Upstream>, clock: Clock) {
    loop {
        let interval = {
            let Some(upstream) = upstream.upgrade() else { return };
            let Some(path) = upstream.config.health_path.clone() else { return };
            for endpoint in &upstream.endpoints {
                let well = ask(endpoint, &path, upstream.config.connect_timeout).await;
                if endpoint.checked_by.load(Ordering::SeqCst) != upstream.check {
                    return;
                }
                let was = endpoint.checked_healthy.swap(well, Ordering::SeqCst);
                if was != well {
                    let at = clock.now().rfc3339();
                    tracing::warn!(endpoint = %endpoint.address.authority, upstream = %upstream.config.name, well, at, "health changed");
                }
            }
            upstream.config.health_interval
        };
        tokio::time::sleep(interval).await;
    }
}

/// One `GET`, well when the status is below 400.
async fn ask(endpoint: &Endpoint, path: &str, timeout: Duration) -> bool {
    let exchange = async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut conn = endpoint.connect().await.map_err(|(_, error)| error)?;
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", endpoint.address.authority);
        conn.stream.write_all(request.as_bytes()).await?;
        let mut status_line = [0u8; 12];
        conn.stream.read_exact(&mut status_line).await?;
        Ok::<_, io::Error>(status_line)
    };
    match tokio::time::timeout(timeout, exchange).await {
        Ok(Ok(line)) => line.starts_with(b"HTTP/1.") && matches!(line[9], b'2' | b'3'),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, RawConfig};

    fn upstream(endpoints: usize) -> Upstream {
        let list: Vec<String> = (0..endpoints).map(|n| format!("\"http://127.0.0.1:{}\"", 9000 + n)).collect();
        let text = format!(
            "[[upstreams]]\nname = \"a\"\nendpoints = [{}]\neject_after = 2\nmax_in_flight = 3",
            list.join(",")
        );
        let raw: RawConfig = toml::from_str(&text).unwrap();
        Upstream::new(Config::from_raw(raw).unwrap().upstreams.remove(0), 1, &[], &Arc::default())
    }

    #[test]
    fn the_less_busy_of_two_is_chosen() {
        let upstream = upstream(2);
        let held: Vec<_> = (0..10).map(|_| upstream.choose(Monotonic(1), &[]).unwrap()).collect();
        let counts: Vec<_> = upstream.endpoints.iter().map(|e| e.in_flight()).collect();
        assert_eq!(counts, [5, 5]);
        drop(held);
        assert!(upstream.endpoints.iter().all(|e| e.in_flight() == 0));
    }

    #[test]
    fn a_failing_endpoint_is_left_out_for_a_while_but_not_when_it_is_the_last() {
        let upstream = upstream(2);
        let bad = upstream.endpoints[0].clone();
        bad.failed(Monotonic(0), &upstream.config);
        bad.succeeded();
        bad.failed(Monotonic(0), &upstream.config);
        assert!(bad.is_well(Monotonic(0)), "a success in between starts the count again");
        bad.failed(Monotonic(0), &upstream.config);
        assert!(!bad.is_well(Monotonic(0)));
        for _ in 0..50 {
            assert!(!Arc::ptr_eq(&upstream.choose(Monotonic(0), &[]).unwrap().endpoint, &bad));
        }
        let others = vec![upstream.endpoints[1].clone()];
        assert!(Arc::ptr_eq(&upstream.choose(Monotonic(0), &others).unwrap().endpoint, &bad));
        assert!(bad.is_well(Monotonic(0).plus(upstream.config.eject_time)));
        assert!(upstream.choose(Monotonic(0), &upstream.endpoints.clone()).is_none());
    }

    #[test]
    fn calls_over_the_cap_get_noplace() {
        let upstream = Arc::new(upstream(1));
        let places: Vec<_> = (0..3).map(|_| upstream.enter().unwrap()).collect();
        assert!(upstream.enter().is_none());
        drop(places);
        assert!(upstream.enter().is_some());
    }
}
