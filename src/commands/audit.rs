//! `audit show` and `audit verify`: they read the audit trail's files, whether a server is running or not.

use std::io::Write;
use std::path::Path;

use super::output::say;
use super::{Failure, client, load_config};
use crate::accounts::operator;
use crate::actors::audit::{
    ActionFilter, Head, Query, Severity, UserFilter, audit_dir, find_in_files, recorded_head, verify as verify_files,
};
use crate::app::{Core, StartError, audit_key, load_pepper};
use crate::clock::{Clock, UnixMillis};
use crate::config::Config;
use crate::store::StoreError;

/// What `audit show` is asked for.
#[derive(clap::Args)]
pub struct Wanted {
    /// A user's number, or the name of a user or of staff: who acted or was acted upon.
    #[arg(long)]
    user: Option<String>,
    /// An act such as login.failed, or a kind of acts such as login.
    #[arg(long)]
    action: Option<String>,
    /// info, warning, error or critical.
    #[arg(long)]
    severity: Option<String>,
    /// Not before this time, such as 2026-12-31T00:00:00Z.
    #[arg(long)]
    from: Option<String>,
    /// Before this time.
    #[arg(long)]
    to: Option<String>,
    #[arg(long, default_value_t = 1)]
    page: u64,
    #[arg(long, default_value_t = 50)]
    page_size: usize,
}

impl Wanted {
    fn query(&self) -> Result<Query, Failure> {
        Ok(Query {
            severity: parsed("severity", self.severity.as_deref(), Severity::parse)?,
            action: parsed("action", self.action.as_deref(), ActionFilter::parse)?,
            user: self.user.as_deref().map(UserFilter::parse),
            from: parsed("from", self.from.as_deref(), UnixMillis::parse_rfc3339)?,
            to: parsed("to", self.to.as_deref(), UnixMillis::parse_rfc3339)?,
        })
    }
}

fn parsed<T>(name: &str, text: Option<&str>, parse: impl FnOnce(&str) -> Option<T>) -> Result<Option<T>, Failure> {
    let read = |text| parse(text).ok_or_else(|| Failure::Usage(format!("--{name}: \"{text}\" is none; see --help")));
    text.map(read).transpose()
}

/// Prints one page of the trail, newest first, one JSON object a line.
///
/// # Errors
/// A filter cannot be read, or the trail cannot.
pub fn show(file: Option<&Path>, wanted: &Wanted) -> Result<(), Failure> {
    let query = wanted.query()?;
    let config = load_config(file)?;
    let found = find_in_files(&audit_dir(&config.data_dir), &query, wanted.page, wanted.page_size)?;
    let mut out = super::output::stdout();
    for item in &found.items {
        writeln!(out, "{item}")?;
    }
    if found.unreadable > 0 {
        return Err(Failure::Failed(format!(
            "{} records of this page cannot be read; see `audit verify`",
            found.unreadable
        )));
    }
    Ok(())
}

/// Checks every record, the chain through them, and that both ends are where they should be. `noted` is a head that was
/// written down earlier, as this command prints it.
///
/// # Errors
/// A record was changed, removed or moved; the first one is named.
pub fn verify(file: Option<&Path>, noted: Option<&str>) -> Result<(), Failure> {
    let config = load_config(file)?;
    let noted = parsed("head", noted, Head::parse)?;
    if config.accounts.pepper.is_none() && !config.data_dir.join("secrets").join("pepper").exists() {
        return Err(Failure::Failed(format!(
            "{}: there is no pepper, and without it the chain cannot be checked; is data_dir right?",
            config.data_dir.display()
        )));
    }
    let key = audit_key(&load_pepper(&config)?);
    // First what the store knows: a running server goes on meanwhile, and then the files may only be further.
    let (recorded, core) = recorded(&config)?;
    if recorded.is_none() && noted.is_none() {
        say!("no head is recorded: records missing at the end would not be noticed")?;
    }
    let known: Vec<Head> = recorded.into_iter().chain(noted).collect();
    let report = verify_files(&audit_dir(&config.data_dir), &key, &known);
    if let Some(core) = core {
        core.close();
    }
    let report = report?;
    say!("{} records in {} segments, {} bytes", report.records, report.segments, report.bytes)?;
    if let Some(last) = report.pruned_through {
        say!("records up to {last} were removed by retention, as the trail says")?;
    }
    if report.torn_bytes > 0 {
        say!("{} bytes were never finished and do not count", report.torn_bytes)?;
    }
    if let Some(head) = report.head {
        say!("head {head}")?;
    }
    for problem in &report.problems {
        say!("{problem}")?;
    }
    if report.more {
        say!("… and more")?;
    }
    match report.problems.first() {
        None => Ok(()),
        Some(first) => {
            Err(Failure::Failed(format!("the audit trail is not whole; the first bad record is {}", first.sequence)))
        }
    }
}

/// What the store, or the server that has it open, says the trail has reached. A stopped server's state stays open until
/// the check is done, so that no server starts to write meanwhile.
fn recorded(config: &Config) -> Result<(Option<Head>, Option<Core>), Failure> {
    match Core::open(config, Clock::system(), 0) {
        Ok(core) => {
            let head = recorded_head(core.committer.store()).map_err(|e| Failure::Failed(e.to_string()))?;
            Ok((head, Some(core)))
        }
        // The store's lock, or with the memory backend the journal's: a server is running.
        Err(StartError::Store(StoreError::Busy(_)) | StartError::Io { .. }) => {
            let missing =
                || Failure::Failed("a server is running on this data, but does not say how far the trail is".into());
            let way = operator::read(&config.data_dir)?.ok_or_else(missing)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let path = "/v1/admin-panel/security-logs/head";
            let answer = runtime.block_on(client::call(way.admin_addr, "GET", path, Some(&way.token), None))?.json();
            let head = Head::parse(&format!("{}:{}", answer["sequence"], answer["mac"].as_str().unwrap_or_default()));
            Ok((Some(head.ok_or_else(missing)?), None))
        }
        Err(other) => Err(other.into()),
    }
}
