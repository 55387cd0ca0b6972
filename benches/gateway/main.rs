//! The side-by-side benchmark: what a governed call costs, next to what nginx spends passing one on.
//!
//! Owns the whole experiment: it starts the simulated AI service, nginx and the gateway as processes of their own, pins
//! each to a core, drives them from its own load generator and prints what it measured. It never takes a figure from
//! the measured program: CPU time and memory come from the kernel, latency from the client's side of the socket.
//!
//! `cargo bench --bench gateway -- [cpu] [credentials] [latency] [ledger] [sse] [idle] [memory] [enumeration] [accounts] [quick] [nginx-only]`:
//! no section named means all of them; `quick` shortens every round; `nginx-only` measures without the gateway.

mod accounts;
mod cpu;
mod credentials;
mod enumeration;
mod figures;
mod idle;
mod lab;
mod latency;
mod ledger;
mod load;
mod memory;
mod process;
mod sse;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use lab::Lab;

type Fallible<T> = Result<T, Box<dyn Error>>;

const SECTIONS: [&str; 9] =
    ["cpu", "credentials", "latency", "ledger", "sse", "idle", "memory", "enumeration", "accounts"];

/// What the command line selects.
#[derive(Debug)]
struct Choice {
    sections: Vec<&'static str>,
    quick: bool,
    nginx_only: bool,
}

impl Choice {
    fn parse(args: impl Iterator<Item = String>) -> Fallible<Self> {
        let mut choice = Self { sections: Vec::new(), quick: false, nginx_only: false };
        for arg in args {
            match arg.as_str() {
                "quick" => choice.quick = true,
                "nginx-only" => choice.nginx_only = true,
                // Cargo passes `--bench`, and whatever else is meant for its own harness.
                option if option.starts_with("--") => {}
                name => choice.sections.push(section(name)?),
            }
        }
        if choice.sections.is_empty() {
            choice.sections = SECTIONS.to_vec();
        }
        Ok(choice)
    }

    /// The length of a measurement: as given, or short.
    fn time(&self, full: Duration) -> Duration {
        if self.quick { full / 6 } else { full }
    }

    fn rounds(&self, full: usize) -> usize {
        if self.quick { 1 } else { full }
    }
}

fn section(name: &str) -> Fallible<&'static str> {
    let known = SECTIONS.into_iter().find(|known| *known == name);
    known.ok_or_else(|| format!("no section {name:?}; there are {}", SECTIONS.join(", ")).into())
}

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gateway bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Fallible<()> {
    let choice = Choice::parse(std::env::args().skip(1))?;
    // Before the runtime exists, so that everything in this process runs where the load generator belongs.
    let cores = lab::Cores::assign();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Ending early drops the lab, and the lab ends its children.
        tokio::select! {
            done = run(&choice, cores) => done,
            () = interrupted() => Err("interrupted".into()),
        }
    })
}

async fn interrupted() {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

async fn run(choice: &Choice, cores: lab::Cores) -> Fallible<()> {
    let lab = Lab::start(cores).await?;
    println!("{}", lab.describe());
    for section in &choice.sections {
        println!();
        match *section {
            "cpu" => cpu::run(&lab, choice).await?,
            "credentials" => credentials::run(&lab, choice).await?,
            "latency" => latency::run(&lab, choice).await?,
            "ledger" => ledger::run(&lab, choice).await?,
            "sse" => sse::run(&lab, choice).await?,
            "idle" => idle::run(&lab, choice).await?,
            "enumeration" => enumeration::run(&lab, choice).await?,
            "accounts" => accounts::run(&lab, choice).await?,
            _ => memory::run(&lab, choice).await?,
        }
    }
    Ok(())
}
