//! Accepting connections and the life of one.
//!
//! Owns the public listeners (one per worker, sharing the port through SO_REUSEPORT), the cap on connections, and the loop
//! from request to request. This is where TLS and HTTP/2 join: a handshake makes another [`Transport`], and another protocol
//! makes another loop that calls [`Worker::serve`]'s steps. Never looks into a request.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::body::Served;
use super::buffers;
use super::http1::conn::{ClientConn, NoHead, Transport};
use super::http1::head::HeadError;
use super::pipeline::Worker;
use super::refusal;
use crate::error::Reject;
use crate::telemetry::metrics::Outcome;

/// What is received and forgotten of a client whose request could not be read, so that it can read why.
const MAX_AFTER_BAD_HEAD: u64 = 1 << 20;

/// A listener on `address` that shares its port with those of the other workers.
///
/// # Errors
/// The address is taken or not ours.
pub fn bind(address: SocketAddr, backlog: u32) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(socket.into())
}

/// Accepts until `stop` turns true. Connections go on in tasks of their own.
pub async fn run(worker: Arc<Worker>, listener: TcpListener, mut stop: watch::Receiver<bool>) {
    loop {
        // Mapped to nothing at once: what `wait_for` returns is a lock that must not outlive this line.
        let stopping = async { stop.wait_for(|stop| *stop).await.map(|_| ()) };
        tokio::select! {
            biased;
            _ = stopping => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => admit(&worker, stream, peer),
                Err(error) => {
                    // Out of descriptors, mostly: others must close first. Trying at once again would only burn the core.
                    tracing::warn!(%error, "cannot accept");
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
            }
        }
    }
}

fn admit(worker: &Arc<Worker>, stream: TcpStream, peer: SocketAddr) {
    let max = worker.shared.policy.load().limits.max_connections;
    if worker.shared.connections.fetch_add(1, Ordering::Relaxed) >= max {
        worker.shared.connections.fetch_sub(1, Ordering::Relaxed);
        worker.shard.connection_refused();
        let refusal = Reject::Overloaded("Too many connections");
        let id = worker.next_request_id();
        let bytes = refusal::encode(&refusal, None, id, worker.shared.clock.now(), true);
        // The socket's buffer is empty, so this takes it all or the client is gone.
        let _ = stream.try_write(&bytes);
        return;
    }
    worker.shard.connection_opened();
    let worker = worker.clone();
    tokio::spawn(async move {
        let _place = Place(worker.clone());
        let _ = stream.set_nodelay(true);
        serve(&worker, stream, peer).await;
    });
}

/// A connection's place under the cap.
struct Place(Arc<Worker>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.shared.connections.fetch_sub(1, Ordering::Relaxed);
        self.0.shard.connection_closed();
    }
}

/// One connection, request after request.
async fn serve(worker: &Arc<Worker>, stream: TcpStream, peer: SocketAddr) {
    let deadline = worker.deadlines.open();
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
        let head = match client.read_head(|| worker.shared.is_draining()).await {
            Ok(head) => head,
            Err(NoHead::Closed) => return,
            Err(NoHead::Slow) => return refuse_head(worker, &mut client, &Reject::RequestTimeout).await,
            Err(NoHead::Refused(error)) => return refuse_head(worker, &mut client, &head_reject(error)).await,
        };
        served += 1;
        // On the heap, so that a connection between requests is small.
        let outcome = Box::pin(worker.serve(&mut client, &head, peer)).await;
        buffers::give(head.into_buffer());
        match outcome {
            Served::KeepAlive if served < limits.max_requests => {}
            Served::KeepAlive | Served::Close => return client.linger(max_body).await,
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
