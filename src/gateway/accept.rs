//! Accepting connections and the life of one.
//!
//! Owns the public listeners (one per worker, sharing the port through SO_REUSEPORT), who is let in, and the loop
//! from request to request. This is where TLS and HTTP/2 join: a handshake makes another [`Transport`], and another protocol
//! makes another loop that calls [`Worker::serve`]'s steps. Never looks into a request.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::body::Served;
use super::buffers;
use super::client_ip::{ClientIp, is_trusted};
use super::connections::NoRoom;
use super::http1::conn::{ClientConn, NoHead, Transport};
use super::http1::head::HeadError;
use super::ip_rules;
use super::pipeline::Worker;
use super::refusal;
use crate::domain::addresses::customer_network;
use crate::error::Reject;
use crate::telemetry::machine;
use crate::telemetry::metrics::{NotLetIn, Outcome};

/// What is received and forgotten of a client whose request could not be read, so that it can read why.
const MAX_AFTER_BAD_HEAD: u64 = 1 << 20;

/// A silent client is asked by TCP whether it is still there: answers may take minutes, and machines vanish without a word.
const ASK_AFTER: Duration = Duration::from_secs(60);

/// Between a connection that could not be accepted and the next.
const AFTER_FAILURE: Duration = Duration::from_millis(20);

/// So many listeners on `address`, which share its port among themselves and with nobody else. Port 0: whatever is free.
///
/// # Errors
/// The address is taken or not ours.
pub fn bind(address: SocketAddr, backlog: u32, listeners: usize) -> io::Result<Vec<std::net::TcpListener>> {
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    let open = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        // Accepted sockets inherit it.
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(ASK_AFTER).with_interval(Duration::from_secs(15)))?;
        Ok(socket)
    };
    // Taken for us alone before it is shared: a port that another gateway of the same user shares could be joined unnoticed, and
    // each would get some of the connections.
    let first = open()?;
    first.bind(&address.into())?;
    first.set_reuse_port(true)?;
    first.listen(backlog)?;
    let shared = first.local_addr()?;
    let mut all = vec![first.into()];
    for _ in 1..listeners {
        let next = open()?;
        next.set_reuse_port(true)?;
        next.bind(&shared)?;
        next.listen(backlog)?;
        all.push(next.into());
    }
    Ok(all)
}

/// How often a place is looked for while others are leaving.
const TRIES: usize = 30;

/// Accepts until `stop` turns true. Connections go on in tasks of their own.
pub async fn run(worker: Arc<Worker>, listener: TcpListener, mut stop: watch::Receiver<bool>) {
    loop {
        // Mapped to nothing at once: what `wait_for` returns is a lock that must not outlive this line.
        let stopping = async { stop.wait_for(|stop| *stop).await.map(|_| ()) };
        tokio::select! {
            biased;
            _ = stopping => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => admit(&worker, stream, peer).await,
                Err(error) => {
                    failed(&worker, &error);
                    // Others must close first. Trying at once again would only burn the core.
                    tokio::time::sleep(AFTER_FAILURE).await;
                }
            }
        }
    }
}

fn failed(worker: &Worker, error: &io::Error) {
    let shared = &worker.shared;
    worker.shard.accept_failed();
    if let Some(count) = shared.accept_troubles.count(shared.clock.monotonic()) {
        tracing::warn!(%error, count, "cannot accept connections on listen.public");
    }
    if machine::is_exhausted(error) {
        shared.connections.make_room(None);
        shared.policy.load().close_idle_upstreams();
    }
}

async fn admit(worker: &Arc<Worker>, stream: TcpStream, peer: SocketAddr) {
    let shared = &worker.shared;
    let policy = shared.policy.load_full();
    let (limits, client) = (&policy.limits, peer.ip().to_canonical());
    // What a trusted proxy brings is judged call by call, by whom it is for.
    let address = (!is_trusted(client, &policy.trusted_proxies)).then(|| customer_network(client));
    let is_denied = || {
        let (now, ticks) = (shared.clock.now(), shared.clock.monotonic());
        ip_rules::check(&shared.addresses, &shared.blocks, ClientIp(client), now, ticks).is_err()
    };
    if address.is_some() && shared.connections.is_scarce(limits) && is_denied() {
        return worker.shard.connection_refused(NotLetIn::Denied);
    }
    let mut is_last_look = false;
    for _ in 0..TRIES {
        match shared.connections.enter(limits, address) {
            Ok(()) => {
                worker.shard.connection_opened();
                let place = Place { worker: worker.clone(), address };
                tokio::spawn(async move {
                    let _ = stream.set_nodelay(true);
                    serve(&place.worker, stream, peer, address).await;
                });
                return;
            }
            Err(no_room) => {
                let of = if no_room == NoRoom::Address { address } else { None };
                if shared.connections.make_room(of) {
                    // Accepting more meanwhile would only make the crowd larger.
                    shared.connections.somebody_left().await;
                } else if is_last_look {
                    return refuse(worker, &stream, no_room);
                } else {
                    // Somebody may have left between the two looks.
                    is_last_look = true;
                    tokio::task::yield_now().await;
                }
            }
        }
    }
    refuse(worker, &stream, NoRoom::Anywhere);
}

fn refuse(worker: &Worker, stream: &TcpStream, no_room: NoRoom) {
    let (why, counted) = match no_room {
        NoRoom::Anywhere => ("Too many connections", NotLetIn::Full),
        NoRoom::Address => ("Too many connections from this address", NotLetIn::Address),
    };
    worker.shard.connection_refused(counted);
    let now = worker.shared.clock.now();
    let bytes = refusal::encode(&Reject::Overloaded(why), None, worker.next_request_id(), now, true);
    // The socket's buffer is empty, so this takes it all or the client is gone.
    let _ = stream.try_write(&bytes);
}

/// A connection's place, given back when dropped.
struct Place {
    worker: Arc<Worker>,
    address: Option<IpAddr>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.worker.shared.connections.leave(self.address);
        self.worker.shard.connection_closed();
    }
}

/// One connection, request after request.
async fn serve(worker: &Arc<Worker>, stream: TcpStream, peer: SocketAddr, address: Option<IpAddr>) {
    let deadline = worker.deadlines.open(address);
    std::future::poll_fn(|cx| {
        deadline.bind(cx);
        Poll::Ready(())
    })
    .await;
    let (limits, max_body) = {
        let policy = worker.shared.policy.load();
        (policy.conn_limits, policy.limits.max_body_bytes)
    };
    let mut client = ClientConn::new(Transport::Tcp(stream), deadline, limits);
    let mut served = 0;
    loop {
        let mut head = match client.read_head(|| worker.shared.is_draining()).await {
            Ok(head) => head,
            Err(NoHead::Closed) => return,
            Err(NoHead::Slow) => return refuse_head(worker, &mut client, &Reject::RequestTimeout).await,
            Err(NoHead::Refused(error)) => return refuse_head(worker, &mut client, &head_reject(error)).await,
        };
        served += 1;
        // The last one's answer says so (RFC 9112, 9.6).
        head.keep_alive &= served < limits.max_requests;
        // On the heap, so that a connection between requests is small.
        let outcome = Box::pin(worker.serve(&mut client, &head, peer)).await;
        buffers::give(head.into_buffer());
        match outcome {
            Served::KeepAlive => {}
            Served::Close => return client.linger(max_body).await,
            Served::Abort => return,
        }
    }
}

fn head_reject(error: HeadError) -> Reject {
    match error {
        HeadError::Malformed(why) => Reject::BadRequest(format!("The request is malformed: {why}")),
        HeadError::TooLarge => Reject::HeadTooLarge,
        HeadError::UnsupportedVersion => Reject::VersionNotSupported,
        HeadError::UnsupportedExpectation => Reject::ExpectationFailed,
    }
}

/// Answers a request that has no readable head; what follows it on the connection cannot be trusted.
async fn refuse_head(worker: &Arc<Worker>, client: &mut ClientConn, reject: &Reject) {
    let now = worker.shared.clock.now();
    worker.shard.request_started();
    let route = worker.shared.policy.load().no_route;
    worker.shard.request_ended(route, Outcome::from(reject), std::time::Duration::ZERO, None);
    let bytes = refusal::encode(reject, None, worker.next_request_id(), now, true);
    if client.write_all(&bytes).await.is_ok() {
        client.linger(MAX_AFTER_BAD_HEAD).await;
    }
}
