//! What it costs to know the caller by a session instead of a key, on the same gateway, in turns.

use std::time::Duration;

use crate::cpu;
use crate::figures::median;
use crate::load::Plan;
use crate::{Choice, Fallible, Lab};

const CONNECTIONS: usize = 64;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(3);
const WARM_UP: Duration = Duration::from_secs(1);

pub async fn run(lab: &Lab, choice: &Choice) -> Fallible<()> {
    let plan = Plan {
        connections: CONNECTIONS,
        warm_up: choice.time(WARM_UP),
        measured: choice.time(ROUND),
        pause: Duration::ZERO,
    };
    println!(
        "credentials: {CONNECTIONS} connections in a closed loop with an API key and with a session token, in turns"
    );
    for (form, toml) in [("jwt", ""), ("opaque", "[accounts.tokens]\nsession = \"opaque\"\n")] {
        let mut server = lab.tollgate_with("tollgate", toml).await?;
        let credentials = [("key", server.api_key.clone()), (form, lab.session(&server).await?)];
        cpu::print_titles();
        let mut figures = [Vec::new(), Vec::new()];
        for round in 0..choice.rounds(ROUNDS) {
            for turn in 0..2 {
                // Whichever comes second in a round finds the caches warmer; they take turns in that too.
                let which = (round + turn) % 2;
                (server.name, server.api_key) = credentials[which].clone();
                figures[which].push(cpu::measure(&server, plan).await?);
            }
        }
        let [key, session] = figures.map(median);
        let bytes = credentials[1].1.len();
        println!("median CPU per call: key {key:.2} µs, {form} session ({bytes} bytes) {session:.2} µs");
        println!("session / key: {:.3}", session / key);
    }
    Ok(())
}
