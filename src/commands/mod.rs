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
pub mod progress;
pub mod serve;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::accounts::operator::{self, OperatorFile};
use crate::app::{self, StartError};
use crate::config::{Config, ConfigError};
use crate::store::{Store, StoreError, home};

/// How a command ends when not well.
#[derive(Debug)]
pub enum Failure {
    /// Bad usage or config: exit code 2.
    Usage(String),
    /// Anything else: exit code 1.
    Failed(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(why) | Self::Failed(why) => f.write_str(why),
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

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

fn load_config(file: Option<&Path>) -> Result<Config, Failure> {
    Ok(Config::load(file, std::env::vars())?)
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
    if !home::exists(&config.data_dir) {
        return Err(Failure::Failed(format!("there is no store in data_dir {}", config.data_dir.display())));
    }
    match app::open_store(config) {
        Ok(store) => Ok(Way::Store(store)),
        Err(StartError::Store(StoreError::Busy(_))) => through_server(),
        Err(other) => Err(other.into()),
    }
}
