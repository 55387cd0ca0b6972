//! How we speak to identity providers, and to a verifier of logins: bounded in time and size, following no redirect, and to
//! providers never in our own network unless the operator says so. A verifier is the operator's own, wherever it is.
//!
//! Owns the fence against being sent to inner addresses: names are judged by what they resolve to, at the moment of
//! connecting, so that a name cannot mean one thing when it is looked at and another when it is used.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Of a whole exchange.
const TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The most of an answer that is read.
const MAX_ANSWER_BYTES: usize = 256 << 10;

/// Why a provider could not be asked. For the log; no client reads it.
#[derive(Debug)]
pub struct HttpError(String);

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for HttpError {}

fn told(error: &dyn std::error::Error) -> HttpError {
    // The cause says more than "error sending request".
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    HttpError(text)
}

/// Whether an address belongs to the public network. Also an IPv4 address in an IPv6 dress is judged as what it is.
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            let shared = a == 100 && (64..128).contains(&b);
            let benchmark = a == 198 && (b == 18 || b == 19);
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_broadcast()
                || v4.is_documentation()
                || v4.is_multicast()
                || shared
                || benchmark
                || a == 0
                || a >= 240)
        }
        IpAddr::V6(v6) => {
            let first = v6.segments()[0];
            let unique_local = first & 0xfe00 == 0xfc00;
            let link_local = first & 0xffc0 == 0xfe80;
            // 64:ff9b::/96 and 2002::/16 reach IPv4 addresses through a translator.
            let translated = (first == 0x64 && v6.segments()[1] == 0xff9b) || first == 0x2002;
            !(v6.is_loopback() || v6.is_unspecified() || v6.is_multicast() || unique_local || link_local || translated)
        }
    }
}

struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<SocketAddr> = found.filter(|address| is_public(address.ip())).collect();
            if public.is_empty() {
                return Err(format!("{} has no public address", name.as_str()).into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

/// Speaks to one provider, or one verifier.
#[derive(Clone)]
pub struct HttpClient {
    client: reqwest::Client,
    /// Its addresses may be ours: it runs in the operator's own network, who said so.
    private_network: bool,
    max_answer_bytes: usize,
}

impl HttpClient {
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(private_network: bool) -> Result<Self, HttpError> {
        Self::bounded(private_network, TIMEOUT, MAX_ANSWER_BYTES)
    }

    /// As [`HttpClient::new`], with limits of its own for an exchange and for the answer's body.
    ///
    /// # Errors
    /// As [`HttpClient::new`].
    pub fn bounded(private_network: bool, timeout: Duration, max_answer_bytes: usize) -> Result<Self, HttpError> {
        let mut builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(timeout)
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent("tollgate")
            .no_proxy();
        if !private_network {
            builder = builder.dns_resolver(std::sync::Arc::new(PublicOnly));
        }
        Ok(Self { client: builder.build().map_err(|error| told(&error))?, private_network, max_answer_bytes })
    }

    /// Sends a request and reads the answer.
    ///
    /// # Errors
    /// [`HttpError`]: not reached, too slow, too long, or where nobody should be asked.
    pub async fn send(&self, request: http::Request<Vec<u8>>) -> Result<http::Response<Vec<u8>>, HttpError> {
        let request = reqwest::Request::try_from(request).map_err(|error| told(&error))?;
        self.judge(request.url())?;
        let mut answer = self.client.execute(request).await.map_err(|error| told(&error))?;
        let mut built = http::Response::builder().status(answer.status());
        if let Some(kind) = answer.headers().get(http::header::CONTENT_TYPE) {
            built = built.header(http::header::CONTENT_TYPE, kind);
        }
        let mut body = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(|error| told(&error))? {
            if body.len() + piece.len() > self.max_answer_bytes {
                return Err(HttpError(format!("the answer is longer than {} bytes", self.max_answer_bytes)));
            }
            body.extend_from_slice(&piece);
        }
        built.body(body).map_err(|error| told(&error))
    }

    /// An address in the URL itself is not resolved, so it is judged here.
    fn judge(&self, url: &reqwest::Url) -> Result<(), HttpError> {
        if self.private_network {
            return Ok(());
        }
        if url.scheme() != "https" {
            return Err(HttpError(format!("{url} is not https")));
        }
        let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        match host.parse::<IpAddr>() {
            Ok(address) if !is_public(address) => Err(HttpError(format!("{url} is not in the public network"))),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inner_addresses_are_told_in_every_spelling() {
        for inner in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "255.255.255.255",
            "198.18.0.1",
            "::1",
            "::",
            "fd00::1",
            "fe80::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "ff02::1",
        ] {
            assert!(!is_public(inner.parse().unwrap()), "{inner}");
        }
        for outer in ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "172.32.0.1", "100.128.0.1"] {
            assert!(is_public(outer.parse().unwrap()), "{outer}");
        }
    }

    #[tokio::test]
    async fn nobody_is_asked_who_should_not_be() {
        let client = HttpClient::new(false).unwrap();
        for url in [
            "https://127.0.0.1/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://[::1]/",
            "https://[::ffff:169.254.169.254]/",
            "https://169.254.169.254/latest/meta-data",
            "https://localhost/",
            "http://example.com/",
        ] {
            let request = http::Request::get(url).body(Vec::new()).unwrap();
            let error = client.send(request).await.unwrap_err().to_string();
            let why = ["public network", "no public address", "not https"];
            assert!(why.iter().any(|why| error.contains(why)), "{url}: {error}");
        }
    }
}
