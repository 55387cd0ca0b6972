//! The time a proxy adds to a call whose answer takes 50 ms, as a model's does.

use std::time::Duration;

use crate::cpu::complain;
use crate::figures::{median, micros, percentile};
use crate::lab::{Lab, Server};
use crate::load::{self, Plan};
use crate::{Choice, Fallible};

const UPSTREAM_MS: &str = "50";
const WARM_UP: Duration = Duration::from_millis(500);

/// Clients think up to this long between two calls.
const PAUSE: Duration = Duration::from_millis(20);

/// Connections, rounds, and how long a round is.
const STEPS: [(usize, usize, Duration); 3] =
    [(1, 3, Duration::from_secs(2)), (64, 3, Duration::from_secs(2)), (1000, 2, Duration::from_secs(2))];

pub async fn run(lab: &Lab, choice: &Choice) -> Fallible<()> {
    let proxies = lab.proxies(choice).await?;
    steps(lab, &proxies, choice).await
}

/// The time that each of `proxies` adds, at each number of connections.
pub async fn steps(lab: &Lab, proxies: &[Server], choice: &Choice) -> Fallible<()> {
    println!("latency: an upstream that takes {UPSTREAM_MS} ms; its own time, as it reports it, is subtracted");
    println!("{:>11} {:<9} {:>8} {:>8} {:>7}", "connections", "server", "p50 µs", "p99 µs", "errors");
    for (connections, rounds, measured) in STEPS {
        // The warm-up covers opening the connections too.
        let warm_up = WARM_UP + Duration::from_millis(connections as u64);
        let plan = Plan { connections, warm_up, measured: choice.time(measured), pause: PAUSE };
        step(lab, proxies, plan, choice.rounds(rounds)).await?;
    }
    Ok(())
}

/// All servers in turns, then what each proxy added.
async fn step(lab: &Lab, proxies: &[Server], plan: Plan, rounds: usize) -> Fallible<()> {
    let mut direct = Vec::new();
    let mut through = vec![Vec::new(); proxies.len()];
    for _ in 0..rounds {
        direct.push(measure(&lab.mock, plan).await?);
        for (proxy, medians) in proxies.iter().zip(&mut through) {
            medians.push(measure(proxy, plan).await?);
        }
    }
    let direct = median(direct);
    for (proxy, medians) in proxies.iter().zip(through) {
        let added = median(medians) - direct;
        println!("{:>11} {} adds {added:.0} µs at the median", plan.connections, proxy.name);
    }
    Ok(())
}

/// One round, printed; its median in microseconds.
async fn measure(server: &Server, plan: Plan) -> Fallible<f64> {
    let request = load::chat_request(server, false, &[("x-mock-delay-ms", UPSTREAM_MS)]);
    let run = load::drive(server, request, plan).await?;
    let p50 = micros(percentile(&run.latencies, 0.50));
    let p99 = micros(percentile(&run.latencies, 0.99));
    println!("{:>11} {:<9} {p50:>8.0} {p99:>8.0} {:>7}", plan.connections, server.name, run.errors);
    complain(&run);
    Ok(p50)
}
