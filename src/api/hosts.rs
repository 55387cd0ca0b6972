//! By which names the side port may be called.
//!
//! Owns the judgement of a request's host. A page elsewhere can have its own name lead to this machine, and then calls the side
//! port from an administrator's browser as if it were its own server (DNS rebinding); the name that it must send gives it away.
//! An address in its place is nobody's to redirect. Never judges who calls.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::clock::Clock;
use crate::error::Reject;
use crate::handler::render::Refused;
use crate::telemetry::seldom::Seldom;

/// What machines ask, by whatever name they know us; it says nothing that a page could use.
const ANY_HOST: [&str; 3] = ["/metrics", "/health", "/ready"];

/// Names of this machine on itself, besides those that end in `.localhost` (RFC 6761, 6.3).
const LOOPBACK: [&str; 4] = ["localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"];

/// What is shown of a name in an answer and in the log.
const MAX_SHOWN: usize = 100;

/// The names that count, besides loopback's.
#[derive(Debug, Default)]
pub struct KnownHosts {
    named: ArcSwap<Vec<String>>,
    refused: Seldom,
}

impl KnownHosts {
    pub fn reconfigure(&self, named: &[String]) {
        let plain = named.iter().map(|name| name.trim_end_matches('.').to_ascii_lowercase());
        self.named.store(Arc::new(plain.collect()));
    }

    /// `host`: with or without a port.
    fn knows(&self, host: &str) -> bool {
        let is_port = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
        if let Some(bracketed) = host.strip_prefix('[') {
            let Some((address, rest)) = bracketed.split_once(']') else { return false };
            let address = address.split('%').next().unwrap_or_default();
            let fits = rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port);
            return fits && address.parse::<Ipv6Addr>().is_ok();
        }
        let name = match host.rsplit_once(':') {
            Some((name, port)) if is_port(port) => name,
            _ => host,
        };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        // None at all is no name; browsers always send one.
        name.is_empty()
            || name.parse::<Ipv4Addr>().is_ok()
            || LOOPBACK.contains(&name.as_str())
            || name.ends_with(".localhost")
            || self.named.load().contains(&name)
    }

    fn judge(&self, uri: &Uri, headers: &HeaderMap, clock: &Clock) -> Result<(), Reject> {
        if ANY_HOST.contains(&uri.path()) {
            return Ok(());
        }
        let mut sent = headers.get_all(header::HOST).iter();
        let (host, more) = (sent.next(), sent.next());
        if more.is_some() {
            return Err(Reject::BadRequest("Host is there more than once".into()));
        }
        // The target's goes before the field's (RFC 9112, 3.2.2).
        let host = match (uri.authority(), host) {
            (Some(authority), _) => authority.as_str(),
            (None, Some(host)) => host.to_str().unwrap_or("?"),
            (None, None) => return Ok(()),
        };
        if self.knows(host) {
            return Ok(());
        }
        let shown: String = host.chars().filter(|c| c.is_ascii_graphic()).take(MAX_SHOWN).collect();
        if let Some(count) = self.refused.count(clock.monotonic()) {
            tracing::warn!(
                host = shown,
                count,
                "the side port was called by a name that it does not know; add it to listen.admin_hosts if it is yours"
            );
        }
        Err(Reject::UnknownHost(shown))
    }
}

/// Refuses requests for names that nobody has given us.
pub async fn check(State((hosts, clock)): State<(Arc<KnownHosts>, Clock)>, request: Request, next: Next) -> Response {
    match hosts.judge(request.uri(), request.headers(), &clock) {
        Ok(()) => next.run(request).await,
        Err(reject) => Refused(reject).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_loopback_s_names_are_known_and_others_by_the_config() {
        let hosts = KnownHosts::default();
        hosts.reconfigure(&["Admin.Example.com".to_owned()]);
        for host in [
            "localhost",
            "LOCALHOST:9090",
            "localhost.",
            "tollgate.localhost:1",
            "127.0.0.1",
            "10.1.2.3:9090",
            "[::1]",
            "[2001:db8::1]:9090",
            "[fe80::1%25eth0]",
            "admin.example.com",
            "ADMIN.example.com.:443",
            "",
            ":9090",
        ] {
            assert!(hosts.knows(host), "{host}");
        }
        for host in [
            "example.com",
            "evil.admin.example.com",
            "admin.example.com.evil",
            "notlocalhost",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.1",
            "0x7f.0.0.1",
            "2130706433",
            "[evil]",
            "[::1].evil.example",
            "me@127.0.0.1",
            "::1",
            "localhost:9090:1",
        ] {
            assert!(!hosts.knows(host), "{host}");
        }
        hosts.reconfigure(&[]);
        assert!(!hosts.knows("admin.example.com"));
    }
}
