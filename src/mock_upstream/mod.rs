//! The simulated AI service: stands where a real one would, in demos, tests and benchmarks.
//!
//! Owns its listener, its connections and the tally of what it served. It speaks HTTP/1.1 by hand on a socket
//! (one read and one write for a plain call), so that what a benchmark measures is the gateway and not this.
//! It never shares code with the gateway: a mistake in one must not be hidden by the same mistake in the other.
//! It never checks credentials and never refuses a body for its content; only framing it cannot trust is refused.
//!
//! | part | holds |
//! |---|---|
//! | `tally` | counts, request ids, recorded requests |
//! | `head` | a request's first lines and the `x-mock-…` headers that steer the answer |
//! | `peek` | reading the few JSON fields an answer depends on |
//! | `answer` | what each endpoint says |
//! | `frame` | how an answer is put on the wire: length, chunks, trailers, until close |
//! | `conn` | the life of one connection |

mod answer;
mod conn;
mod frame;
mod head;
mod peek;
mod tally;

#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{AbortHandle, JoinSet};

pub use answer::filler_byte;
use tally::Tally;
pub use tally::{MockStats, RecordedRequest};

/// Connections the kernel may hold for us between two accepts: a benchmark opens thousands at once.
const BACKLOG: u32 = 4096;

/// A running simulated service. Dropping it closes the listener and every connection.
#[derive(Debug)]
pub struct MockUpstream {
    addr: SocketAddr,
    tally: Arc<Tally>,
    accepting: AbortHandle,
}

impl MockUpstream {
    /// Starts serving on the current runtime. Port 0 takes any free port; see [`MockUpstream::addr`].
    pub async fn bind(addr: SocketAddr) -> io::Result<Self> {
        let listener = listen(addr)?;
        let addr = listener.local_addr()?;
        let tally = Arc::new(Tally::default());
        let accepting = tokio::spawn(accept(listener, Arc::clone(&tally))).abort_handle();
        Ok(Self { addr, tally, accepting })
    }

    /// The address it really listens on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What has been served so far.
    pub fn stats(&self) -> MockStats {
        self.tally.stats()
    }

    /// How many calls carried this `x-request-id`, among the last 100,000 ids.
    pub fn served(&self, request_id: &str) -> u64 {
        self.tally.served(request_id)
    }

    /// Switches recording of whole requests on or off; it is off at first, because it costs.
    pub fn record(&self, on: bool) {
        self.tally.record(on);
    }

    /// The newest recorded request.
    pub fn last_request(&self) -> Option<RecordedRequest> {
        self.tally.last_request()
    }

    /// The last 256 recorded requests, oldest first.
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.tally.requests()
    }
}

impl Drop for MockUpstream {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// The `mock-upstream` command: prints its address and serves until Ctrl-C or SIGTERM.
/// A current-thread runtime serves it best: no call then wakes another thread.
pub async fn serve(addr: SocketAddr) -> io::Result<()> {
    let mock = MockUpstream::bind(addr).await?;
    println!("simulated AI service on http://{}", mock.addr());
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminate.recv() => Ok(()),
    }
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// Accepts until aborted. The connections live in this task's set, so that aborting it ends them too.
async fn accept(listener: TcpListener, tally: Arc<Tally>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(conn::serve(stream, Arc::clone(&tally)));
                }
                // Out of descriptors: the next accept would fail at once again, so let some connections end.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}
