//! The access log: one line per call on standard output, as text or JSON.
//!
//! Owns its own small buffer and thread, so that a slow terminal never holds up a call: lines past the bound are dropped
//! and counted. Never prints a credential, a query string or a body.

use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::metrics::Outcome;
use crate::clock::UnixMillis;
use crate::config::{LogFormat, Telemetry};
use crate::domain::ids::{RequestId, UserId};

/// Bytes of lines that may wait for the terminal.
const MAX_WAITING: usize = 4 << 20;

/// One call, as the log tells it.
pub struct AccessLine<'a> {
    pub at: UnixMillis,
    pub request: RequestId,
    pub address: IpAddr,
    pub method: &'a str,
    /// Without the query: it may hold what is nobody's business.
    pub path: &'a str,
    pub route: &'a str,
    pub status: u16,
    pub outcome: Outcome,
    pub user: Option<UserId>,
    pub took: Duration,
    pub upstream: Option<Duration>,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// The handle to the log.
#[derive(Clone)]
pub struct AccessLog(Arc<Shared>);

struct Shared {
    format: LogFormat,
    sample: f64,
    waiting: Mutex<Vec<u8>>,
    dropped: AtomicU64,
    stop: AtomicBool,
}

impl AccessLog {
    /// Starts the thread that writes to `sink`; none when the log is off.
    pub fn start(config: &Telemetry, sink: impl Write + Send + 'static) -> Self {
        let shared = Arc::new(Shared {
            format: config.access_log,
            sample: config.access_log_sample,
            waiting: Mutex::default(),
            dropped: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        if config.access_log != LogFormat::Off {
            let owner = shared.clone();
            let spawned = std::thread::Builder::new().name("tollgate-access".into()).spawn(move || owner.run(sink));
            if let Err(error) = spawned {
                tracing::error!(%error, "no thread for the access log; it stays silent");
            }
        }
        Self(shared)
    }

    /// Whether this call gets a line: all that went wrong, and the configured share of the rest.
    pub fn wants(&self, outcome: Outcome) -> bool {
        match self.0.format {
            LogFormat::Off => false,
            _ if !matches!(outcome, Outcome::Ok | Outcome::Local) => true,
            _ => self.0.sample >= 1.0 || fastrand::f64() < self.0.sample,
        }
    }

    pub fn write(&self, line: &AccessLine<'_>) {
        let mut waiting = self.0.waiting.lock();
        if waiting.len() > MAX_WAITING {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        match self.0.format {
            LogFormat::Off => {}
            LogFormat::Text => write_text(&mut waiting, line),
            LogFormat::Json => write_json(&mut waiting, line),
        }
    }

    /// Lines lost to a slow terminal.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    /// Lets the thread write what waits and end.
    pub fn stop(&self) {
        self.0.stop.store(true, Ordering::Release);
    }
}

impl Shared {
    fn run(&self, mut sink: impl Write) {
        let mut lines = Vec::new();
        loop {
            let last = self.stop.load(Ordering::Acquire);
            std::mem::swap(&mut lines, &mut *self.waiting.lock());
            if !lines.is_empty() {
                // A closed pipe is no reason to stop serving calls.
                let _ = sink.write_all(&lines).and_then(|()| sink.flush());
                lines.clear();
                lines.shrink_to(64 << 10);
            }
            if last {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn millis(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}

fn write_text(out: &mut Vec<u8>, line: &AccessLine<'_>) {
    let user = line.user.map_or_else(|| "-".to_owned(), |u| u.to_string());
    // Writing into memory cannot fail.
    let _ = writeln!(
        out,
        "{} {} {} {} {} {} {} user={} route={} {:.3}ms upstream={:.3}ms in={} out={}",
        line.at.rfc3339(),
        line.request.as_str(),
        line.address,
        line.method.escape_default(),
        line.path.escape_default(),
        line.status,
        line.outcome.as_str(),
        user,
        line.route,
        millis(line.took),
        line.upstream.map_or(0.0, millis),
        line.bytes_in,
        line.bytes_out,
    );
}

fn write_json(out: &mut Vec<u8>, line: &AccessLine<'_>) {
    let value = serde_json::json!({
        "timestamp": line.at.rfc3339(),
        "request_id": line.request.as_str(),
        "address": line.address,
        "method": line.method,
        "path": line.path,
        "route": line.route,
        "status": line.status,
        "outcome": line.outcome.as_str(),
        "user": line.user,
        "duration_ms": millis(line.took),
        "upstream_ms": line.upstream.map(millis),
        "bytes_in": line.bytes_in,
        "bytes_out": line.bytes_out,
    });
    let _ = writeln!(out, "{value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line<'a>(path: &'a str) -> AccessLine<'a> {
        AccessLine {
            at: UnixMillis(1_705_320_000_000),
            request: RequestId::from_parts(1, 2),
            address: [127, 0, 0, 1].into(),
            method: "GET",
            path,
            route: "/v1/*",
            status: 200,
            outcome: Outcome::Ok,
            user: Some(UserId(7)),
            took: Duration::from_micros(1500),
            upstream: None,
            bytes_in: 1,
            bytes_out: 2,
        }
    }

    #[test]
    fn a_path_with_control_characters_stays_on_one_line() {
        let (mut text, mut json) = (Vec::new(), Vec::new());
        write_text(&mut text, &line("/a\r\n\u{1b}[31mfake"));
        write_json(&mut json, &line("/a\r\n\u{1b}[31mfake"));
        for out in [&text, &json] {
            assert_eq!(out.iter().filter(|b| **b == b'\n').count(), 1);
            assert!(!out.contains(&0x1b));
        }
        let value: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(value["duration_ms"], 1.5);
    }

    #[test]
    fn failures_are_always_logged() {
        let config = Telemetry { access_log: LogFormat::Json, access_log_sample: 0.0, ..Telemetry::default() };
        let log = AccessLog::start(&config, std::io::sink());
        assert!(!log.wants(Outcome::Ok) && log.wants(Outcome::UpstreamFailed));
        log.stop();
    }
}
