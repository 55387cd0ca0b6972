//! What each `ledger.durability` costs: processor time in a closed loop, and time added to a call that takes 50 ms.

use std::time::Duration;

use crate::cpu;
use crate::lab::Server;
use crate::latency;
use crate::load::Plan;
use crate::{Choice, Fallible, Lab};

const CONNECTIONS: usize = 64;
const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(3);
const WARM_UP: Duration = Duration::from_secs(1);

pub async fn run(lab: &Lab, choice: &Choice) -> Fallible<()> {
    let durable = lab.tollgate().await?;
    let interval = lab.tollgate_with("interval", "[ledger]\ndurability = \"interval\"\n").await?;
    let modes = [durable, interval];
    println!("ledger: before_response (tollgate) and interval of one second, in turns");
    let plan = Plan {
        connections: CONNECTIONS,
        warm_up: choice.time(WARM_UP),
        measured: choice.time(ROUND),
        pause: Duration::ZERO,
    };
    closed_loop(&modes, plan, choice.rounds(ROUNDS)).await?;
    latency::steps(lab, &modes, choice).await
}

async fn closed_loop(modes: &[Server], plan: Plan, rounds: usize) -> Fallible<()> {
    cpu::print_titles();
    let mut figures = vec![Vec::new(); modes.len()];
    for _ in 0..rounds {
        for (mode, figures) in modes.iter().zip(&mut figures) {
            figures.push(cpu::measure(mode, plan).await?);
        }
    }
    for (mode, figures) in modes.iter().zip(figures) {
        println!("median CPU per call: {} {:.2} µs", mode.name, crate::figures::median(figures));
    }
    Ok(())
}
