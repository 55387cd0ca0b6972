//! CPU time per call, in turns with nginx: the figure the gateway is built around.

use std::time::Duration;

use crate::figures::{median, micros, percentile};
use crate::lab::{Lab, Server};
use crate::load::{self, BODY_BYTES, Plan, Run};
use crate::{Choice, Fallible};

const CONNECTIONS: usize = 64;
const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(3);
const WARM_UP: Duration = Duration::from_secs(1);

pub async fn run(lab: &Lab, choice: &Choice) -> Fallible<()> {
    let rounds = choice.rounds(ROUNDS);
    let plan = Plan {
        connections: CONNECTIONS,
        warm_up: choice.time(WARM_UP),
        measured: choice.time(ROUND),
        pause: Duration::ZERO,
    };
    let proxies = lab.proxies(choice).await?;
    println!(
        "cpu: {CONNECTIONS} connections in a closed loop, {BODY_BYTES} B in, {rounds} rounds of {:?} in turns",
        plan.measured
    );
    print_titles();
    measure(&lab.mock, plan).await?;
    let mut figures = vec![Vec::new(); proxies.len()];
    for _ in 0..rounds {
        for (proxy, figures) in proxies.iter().zip(&mut figures) {
            figures.push(measure(proxy, plan).await?);
        }
    }
    conclude(figures);
    Ok(())
}

pub fn print_titles() {
    println!("{:<10} {:>11} {:>9} {:>8} {:>8} {:>7}", "server", "CPU µs/call", "calls/s", "p50 µs", "p99 µs", "errors");
}

/// One round, printed; its CPU time per call.
pub async fn measure(server: &Server, plan: Plan) -> Fallible<f64> {
    let run = load::drive(server, load::chat_request(server, false, &[]), plan).await?;
    let cpu = run.cpu_micros_per_request();
    println!(
        "{:<10} {cpu:>11.2} {:>9.0} {:>8.0} {:>8.0} {:>7}",
        server.name,
        run.per_second(),
        micros(percentile(&run.latencies, 0.50)),
        micros(percentile(&run.latencies, 0.99)),
        run.errors,
    );
    complain(&run);
    if run.requests() == 0 {
        return Err(format!("{} answered no call", server.name).into());
    }
    Ok(cpu)
}

pub fn complain(run: &Run) {
    if let Some(error) = &run.first_error {
        println!("           first error: {error}");
    }
}

fn conclude(figures: Vec<Vec<f64>>) {
    let medians: Vec<_> = figures.into_iter().map(median).collect();
    match medians.as_slice() {
        [nginx, tollgate] => {
            println!("median CPU per call: nginx {nginx:.2} µs, tollgate {tollgate:.2} µs");
            println!("CPU per governed call / nginx plain: {:.2}", tollgate / nginx);
        }
        [nginx, ..] => println!("median CPU per call: nginx {nginx:.2} µs"),
        [] => {}
    }
}
