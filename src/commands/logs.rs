//! `logs show` and `logs verify`: they read the journal's files, whether a server is running or not.

use std::io::Write;
use std::path::Path;

use super::output::say;
use super::{Failure, client, load_config};
use crate::accounts::operator;
use crate::actors::writer::JournalReader;
use crate::app::{Core, StartError, journal_dir, journal_keys};
use crate::clock::Clock;
use crate::config::Config;
use crate::domain::ids::UserId;
use crate::store::{StoreError, tables};

/// Prints one page of a user's conversations, newest first.
///
/// # Errors
/// There is no such user or the journal cannot be read.
pub fn show(file: Option<&Path>, user: &str, page: u64, page_size: usize) -> Result<(), Failure> {
    let config = load_config(file)?;
    let id = user_id(&config, user)?;
    let found = open(&config)?.page(id, page, page_size)?;
    let mut out = super::output::stdout();
    for item in &found.items {
        writeln!(out, "{item}")?;
    }
    if found.unreadable > 0 {
        return Err(Failure::Failed(format!(
            "{} records of this page cannot be read; see `logs verify`",
            found.unreadable
        )));
    }
    Ok(())
}

/// A user by number or name.
pub(super) fn user_id(config: &Config, user: &str) -> Result<u64, Failure> {
    user.parse::<u64>().map_or_else(|_| find_user(config, user), Ok)
}

pub(super) fn open(config: &Config) -> Result<JournalReader, Failure> {
    let dir = journal_dir(&config.data_dir);
    let keys = journal_keys(config)?;
    JournalReader::open_with(&dir, keys)
        .map_err(|e| Failure::Failed(format!("cannot read the journal in {}: {e}", dir.display())))
}

fn find_user(config: &Config, name: &str) -> Result<u64, Failure> {
    let unknown = || Failure::Failed(format!("there is no user \"{name}\""));
    match Core::open(config, Clock::system(), 0) {
        Ok(core) => {
            let found = tables::read::<UserId>(core.committer.store(), &tables::user_by_name(name));
            core.close();
            found.map_err(|e| Failure::Failed(e.to_string()))?.map(|id| id.0).ok_or_else(unknown)
        }
        // The journal's lock or the store's: a server is running.
        Err(StartError::Store(StoreError::Busy(_)) | StartError::Io { .. }) => {
            let way = operator::read(&config.data_dir)?.ok_or_else(unknown)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let query = format!("/v1/admin-panel/users?search={name}&page_size=200");
            let answer = runtime.block_on(client::call(way.admin_addr, "GET", &query, Some(&way.token), None))?;
            let users = answer.json();
            let mut items = users["items"].as_array().into_iter().flatten();
            let same =
                |user: &&serde_json::Value| user["username"].as_str().is_some_and(|u| u.eq_ignore_ascii_case(name));
            items.find(same).and_then(|user| user["id"].as_u64()).ok_or_else(unknown)
        }
        Err(other) => Err(other.into()),
    }
}

/// Checks every record and prints what was found.
///
/// # Errors
/// A record is damaged.
pub fn verify(file: Option<&Path>) -> Result<(), Failure> {
    let report = open(&load_config(file)?)?.verify()?;
    say!("{} records in {} segments, {} bytes", report.records, report.segments, report.bytes)?;
    if report.torn_bytes > 0 {
        say!("{} bytes at the end were never finished and do not count", report.torn_bytes)?;
    }
    // Nothing to tell while nothing is encrypted.
    for used in report.keys.iter().filter(|_| report.keys.iter().any(|used| used.id.is_some())) {
        match used.id {
            Some(id) => say!("key {id} ({}): {} segments", used.role.unwrap_or("not configured"), used.segments)?,
            None => say!("not encrypted: {} segments", used.segments)?,
        }
    }
    for problem in &report.problems {
        say!("{problem}")?;
    }
    match report.problems.len() {
        0 => Ok(()),
        n => Err(Failure::Failed(format!("{n} problems"))),
    }
}
