//! What the program's commands do.
//!
//! Owns the dialogue with a person at a terminal: messages, exit codes, and the choice between a stopped server's files and a
//! running server's side port. Never holds a rule that the services do not.

pub mod admin;
pub mod audit;
pub mod backup;
pub mod client;
pub mod codes;
mod columns;
pub mod demo;
pub mod export;
pub mod ledger;
pub mod logs;
pub mod openapi;
mod output;
pub mod progress;
pub mod serve;
pub mod users;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tokio::runtime::Runtime;

use crate::accounts::operator::{self, OperatorFile};
use crate::accounts::{Accounts, ExportTrouble};
use crate::app::{self, Core, StartError};
use crate::backup::restore;
use crate::clock::Clock;
use crate::config::{Config, ConfigError};
use crate::error::Reject;
use crate::store::{Store, StoreError, home, readers};

/// How a command ends when not well.
#[derive(Debug)]
pub enum Failure {
    /// Bad usage or config: exit code 2.
    Usage(String),
    /// Anything else: exit code 1.
    Failed(String),
    /// Whoever read the output has seen enough, as `head` does: no failure, and nothing to say.
    ReaderLeft,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(why) | Self::Failed(why) => f.write_str(why),
            Self::ReaderLeft => f.write_str("the output is not read any more"),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Config(why) => Self::Usage(why),
            other => Self::Failed(other.to_string()),
        }
    }
}

impl From<ExportTrouble> for Failure {
    fn from(trouble: ExportTrouble) -> Self {
        match trouble {
            ExportTrouble::Store(error) => Self::Failed(error.to_string()),
            ExportTrouble::Io(error) => error.into(),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        if output::is_end_of_reading(&error) { Self::ReaderLeft } else { Self::Failed(error.to_string()) }
    }
}

fn load_config(file: Option<&Path>) -> Result<Config, Failure> {
    let config = Config::load(file, std::env::vars())?;
    if config.data_dir_group.is_some() {
        readers::restrict(true);
    }
    Ok(config)
}

/// How a command reaches the state.
enum Way {
    /// No server has it.
    Store(Arc<dyn Store>),
    Server(OperatorFile),
}

/// The store itself if no server has it open, else the running server's side port.
fn way(config: &Config) -> Result<Way, Failure> {
    let through_server = || {
        operator::read(&config.data_dir)?.map(Way::Server).ok_or_else(|| {
            Failure::Failed("a server is running on this data, but it left no way in; is data_dir the same?".into())
        })
    };
    if app::embedded(config).is_none() {
        return through_server();
    }
    if !home::exists(&config.data_dir) && !restore::is_waiting(&config.data_dir) {
        return Err(Failure::Failed(format!("there is no store in data_dir {}", config.data_dir.display())));
    }
    match app::open_store(config) {
        Ok(store) => Ok(Way::Store(store)),
        Err(StartError::Store(StoreError::Busy(_))) => through_server(),
        Err(other) => Err(other.into()),
    }
}

fn refused(reject: Reject) -> Failure {
    Failure::Failed(reject.describe())
}

/// As [`ask`] about a user, whom the server may not know.
fn ask_about(
    runtime: &Runtime,
    server: &OperatorFile,
    user: &str,
    (method, path, body): (&str, &str, Option<Value>),
) -> Result<Value, Failure> {
    let answer = runtime.block_on(client::call(server.admin_addr, method, path, Some(&server.token), body))?;
    if answer.status == 404 { Err(no_such_user(user)) } else { told(&answer) }
}

fn no_such_user(name: &str) -> Failure {
    Failure::Failed(format!("there is no user \"{name}\""))
}

/// Runs `work` on the accounts of a stopped server, or asks a running one.
fn on_either<T>(
    config: &Config,
    work: impl FnOnce(&Runtime, &Arc<Accounts>) -> Result<T, Failure>,
    ask: impl FnOnce(&Runtime, &OperatorFile) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    match way(config)? {
        Way::Store(store) => {
            let core = Core::on(store, config, Clock::system(), 0)?;
            let done = work(&runtime, &core.accounts);
            core.close();
            done
        }
        Way::Server(server) => ask(&runtime, &server),
    }
}

fn ask(
    runtime: &Runtime,
    server: &OperatorFile,
    method: &str,
    path: &str,
    body: Option<Value>,
) -> Result<Value, Failure> {
    told(&runtime.block_on(client::call(server.admin_addr, method, path, Some(&server.token), body))?)
}

fn told(answer: &client::Answer) -> Result<Value, Failure> {
    if answer.status >= 300 {
        let errors = answer.json()["errors"].as_array().cloned().unwrap_or_default();
        let all: Vec<&str> = errors.iter().filter_map(Value::as_str).collect();
        return Err(Failure::Failed(if all.is_empty() { answer.message() } else { all.join("; ") }));
    }
    Ok(answer.json())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_command_ends_a_restore_that_a_power_cut_left_half_way() {
        let dir = tempfile::tempdir().unwrap();
        let (data, file) = (dir.path().join("data"), dir.path().join("tollgate.toml"));
        fs::write(&file, format!("data_dir = {data:?}\n[store]\nbackend = \"redb\"\n")).unwrap();
        let config = Config::load(Some(&file), std::iter::empty()).unwrap();
        assert!(way(&config).is_err(), "there is nothing yet");
        drop(app::open_store(&config).unwrap());
        // The old content is aside, and nothing of the new has come to its place.
        let ready = data.join("restore.ready");
        fs::create_dir(&ready).unwrap();
        for name in ["store.json", "store-redb", "wal"] {
            fs::rename(data.join(name), ready.join(name)).unwrap();
        }
        let plan = r#"{"aside": "before-restore", "new": ["store.json", "store-redb", "wal"]}"#;
        fs::write(ready.join("plan.json"), plan).unwrap();
        assert!(matches!(way(&config), Ok(Way::Store(_))));
        assert!(data.join("store.json").exists() && !ready.exists());
    }
}
