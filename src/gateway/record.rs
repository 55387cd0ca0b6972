//! The record of one request: what is counted and logged when it ends, however it ends.
//!
//! Owns a request's times, its outcome and its line in the access log. Counting happens on drop, so that neither a client
//! that leaves nor a panic goes uncounted. Never knows of money: that is the hold's.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::client_ip::ClientIp;
use super::http1::head::RequestHead;
use super::pipeline::Worker;
use super::policy::Policy;
use crate::clock::{Monotonic, UnixMillis};
use crate::domain::ids::{RequestId, UserId};
use crate::telemetry::access_log::AccessLine;
use crate::telemetry::metrics::{Label, Outcome};

pub struct Record<'a> {
    worker: &'a Worker,
    head: &'a RequestHead,
    pub request: RequestId,
    pub at: UnixMillis,
    pub started: Monotonic,
    /// The socket's other end: the client, or a proxy before it.
    pub peer: SocketAddr,
    pub client: ClientIp,
    pub route: Label,
    pub route_name: Arc<str>,
    pub user: Option<UserId>,
    pub status: u16,
    pub outcome: Outcome,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// The connection knows of this request's body.
    pub body_begun: bool,
    /// When the gateway had done its part and turned to the upstream.
    pub forwarded: Option<Monotonic>,
    /// When the upstream's head was there.
    pub answered: Option<Monotonic>,
    /// When the first bytes had been handed to the client's socket.
    pub first_byte: Option<Monotonic>,
    /// When the upstream's answer had ended.
    pub upstream_ended: Option<Monotonic>,
}

impl<'a> Record<'a> {
    pub fn open(
        worker: &'a Worker,
        head: &'a RequestHead,
        request: RequestId,
        at: UnixMillis,
        peer: SocketAddr,
        client: ClientIp,
        policy: &Policy,
    ) -> Self {
        worker.shard.request_started();
        Self {
            worker,
            head,
            request,
            at,
            started: worker.shared.clock.monotonic(),
            peer,
            client,
            route: policy.no_route,
            route_name: policy.no_name.clone(),
            user: None,
            status: 0,
            // What it stays if the request's future is dropped before it decides: the client left or we stop.
            outcome: Outcome::ClientGone,
            bytes_in: 0,
            bytes_out: 0,
            body_begun: false,
            forwarded: None,
            answered: None,
            first_byte: None,
            upstream_ended: None,
        }
    }

    /// From the request's head to the end of the upstream's answer, or to now.
    pub fn elapsed(&self) -> Duration {
        self.ended().since(self.started)
    }

    fn ended(&self) -> Monotonic {
        // An answer's end is the request's, all but the counting: that saves a look at the clock.
        self.upstream_ended.unwrap_or_else(|| self.worker.shared.clock.monotonic())
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        let ended = self.ended();
        let took = ended.since(self.started);
        let upstream = self.forwarded.map(|at| ended.since(at));
        let shard = &self.worker.shard;
        shard.request_ended(self.route, self.outcome, took, upstream);
        if let Some(first_byte) = self.first_byte {
            shard.first_byte(first_byte.since(self.started));
            if let (Some(forwarded), Some(answered)) = (self.forwarded, self.answered) {
                shard.overhead(forwarded.since(self.started) + first_byte.since(answered));
            }
        }
        let log = &self.worker.shared.access_log;
        if log.wants(self.outcome) {
            log.write(&AccessLine {
                at: self.at,
                request: self.request,
                address: self.client.0,
                method: self.head.method(),
                path: &String::from_utf8_lossy(self.head.path()),
                route: &self.route_name,
                status: self.status,
                outcome: self.outcome,
                user: self.user,
                took,
                upstream,
                bytes_in: self.bytes_in,
                bytes_out: self.bytes_out,
            });
        }
    }
}
