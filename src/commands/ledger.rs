//! `ledger verify`.

use std::path::Path;

use super::output::say;
use super::progress::Progress;
use super::{Failure, Way, client, load_config, way};
use crate::actors::user::verify::{self, Report};

/// Checks the account of every user, on the files of a stopped server or through a running one, and prints what is off.
///
/// # Errors
/// Something is off, or nobody could be asked.
pub fn verify(file: Option<&Path>) -> Result<(), Failure> {
    let config = load_config(file)?;
    let report = match way(&config)? {
        Way::Store(store) => {
            let mut progress = Progress::default();
            let found = verify::verify(&*store, |users| progress.show(|| format!("{users} users")));
            found.map_err(|error| Failure::Failed(error.to_string()))?
        }
        Way::Server(server) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let path = "/v1/admin-panel/ledger/verify";
            let answer = runtime.block_on(client::call(server.admin_addr, "GET", path, Some(&server.token), None))?;
            if answer.status >= 300 {
                return Err(Failure::Failed(answer.message()));
            }
            serde_json::from_slice(&answer.body)
                .map_err(|_| Failure::Failed("the server's answer cannot be read; is it of this version?".into()))?
        }
    };
    print(&report)
}

fn print(report: &Report) -> Result<(), Failure> {
    for problem in &report.shown {
        say!("{problem}")?;
    }
    let hidden = report.problems - report.shown.len() as u64;
    if hidden > 0 {
        say!("… and {hidden} more")?;
    }
    say!("{} users with {} meters", report.users, report.meters)?;
    match report.problems {
        0 => Ok(()),
        n => Err(Failure::Failed(format!("{n} problems"))),
    }
}
