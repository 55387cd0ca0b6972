//! The time a proxy adds until the first event of a stream is there.

use std::time::Duration;

use crate::figures::{micros, percentile};
use crate::lab::{Lab, Server};
use crate::load::{self, Connection};
use crate::{Choice, Fallible};

const SAMPLES: usize = 200;
/// Time between events: the first one must leave alone to be measured alone.
const BETWEEN_EVENTS_MS: &str = "2";
/// What the service waits before its first byte. Without any wait, whatever a proxy must do before an answer may
/// leave is in plain sight; a model's own time hides most of it.
const DELAYS_MS: [&str; 2] = ["0", "20"];

pub async fn run(lab: &Lab, choice: &Choice) -> Fallible<()> {
    let proxies = lab.proxies(choice).await?;
    let servers: Vec<_> = [&lab.mock].into_iter().chain(&proxies).collect();
    let samples = if choice.quick { SAMPLES / 6 } else { SAMPLES };
    println!("sse: time to the first event, {samples} streams each, in turns; the upstream's own time is subtracted");
    println!("{:>11} {:<9} {:>8} {:>8}", "upstream ms", "server", "p50 µs", "p99 µs");
    for delay_ms in DELAYS_MS {
        let times = sample(&servers, delay_ms, samples).await?;
        let medians = times.iter().map(|times| micros(percentile(times, 0.50)));
        let medians: Vec<_> = medians.collect();
        for ((server, times), p50) in servers.iter().zip(&times).zip(&medians) {
            println!("{delay_ms:>11} {:<9} {p50:>8.0} {:>8.0}", server.name, micros(percentile(times, 0.99)));
        }
        for (server, p50) in servers.iter().zip(&medians).skip(1) {
            println!("{delay_ms:>11} {} adds {:.0} µs at the median", server.name, p50 - medians[0]);
        }
    }
    Ok(())
}

/// One stream each in turns, so that all meet the same machine; each server's times, sorted.
async fn sample(servers: &[&Server], delay_ms: &str, samples: usize) -> Fallible<Vec<Vec<Duration>>> {
    let steer = [("x-mock-chunk-delay-ms", BETWEEN_EVENTS_MS), ("x-mock-tokens", "2"), ("x-mock-delay-ms", delay_ms)];
    let mut clients = Vec::new();
    for server in servers {
        clients.push((Connection::open(server.addr).await?, load::chat_request(server, true, &steer)));
    }
    let mut times = vec![Vec::new(); servers.len()];
    for _ in 0..samples {
        for ((connection, request), times) in clients.iter_mut().zip(&mut times) {
            times.push(connection.first_event(request).await?);
        }
    }
    for times in &mut times {
        times.sort_unstable();
    }
    Ok(times)
}
