//! The stores side by side: what a commit costs, what a million users take, how long a start is; what a million one-time
//! codes take.
//!
//! Owns the experiment: rows as the product writes them, through the product's own committer, log and backends, and the real
//! program for everything that a process is asked (start, memory, checks, backups).
//!
//! `cargo bench --bench store -- [commits] [users] [codes] [dir=/path] [count=1000000] [quick]`: no section named means all. The
//! folder is where the disk under test is; it needs some gigabytes per million users.

mod codes;
mod commits;
mod site;
mod users;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

type Fallible<T> = Result<T, Box<dyn Error>>;

const BACKENDS: [&str; 2] = ["sled", "redb"];

/// What the command line asks for.
struct Choice {
    commits: bool,
    users: bool,
    codes: bool,
    quick: bool,
    count: u64,
    dir: PathBuf,
}

impl Choice {
    fn parse(args: impl Iterator<Item = String>) -> Fallible<Self> {
        let mut choice = Self {
            commits: false,
            users: false,
            codes: false,
            quick: false,
            count: 1_000_000,
            dir: std::env::temp_dir(),
        };
        for arg in args {
            match arg.as_str() {
                "commits" => choice.commits = true,
                "users" => choice.users = true,
                "codes" => choice.codes = true,
                "quick" => choice.quick = true,
                // Cargo passes `--bench`, and whatever else is meant for its own harness.
                option if option.starts_with("--") => {}
                other => match other.split_once('=') {
                    Some(("dir", dir)) => choice.dir = dir.into(),
                    Some(("count", count)) => choice.count = count.parse()?,
                    _ => return Err(format!("\"{other}\" is no section; see benches/store/main.rs").into()),
                },
            }
        }
        if !choice.commits && !choice.users && !choice.codes {
            (choice.commits, choice.users, choice.codes) = (true, true, true);
        }
        Ok(choice)
    }

    fn round(&self) -> Duration {
        Duration::from_secs(if self.quick { 1 } else { 5 })
    }
}

fn run() -> Fallible<()> {
    let choice = Choice::parse(std::env::args().skip(1))?;
    if choice.commits {
        commits::run(&choice)?;
    }
    if choice.users {
        users::run(&choice)?;
    }
    if choice.codes {
        codes::run(&choice)?;
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("store benchmark: {error}");
            ExitCode::FAILURE
        }
    }
}
