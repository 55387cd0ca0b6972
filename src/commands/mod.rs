//! What the program's commands do.
//!
//! Owns the dialogue with a person at a terminal: messages, exit codes, and the choice between a stopped server's files and a
//! running server's side port. Never holds a rule that the services do not.

pub mod admin;
pub mod client;
pub mod demo;
pub mod logs;
pub mod serve;

use std::fmt;
use std::path::Path;

use crate::app::StartError;
use crate::config::{Config, ConfigError};

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
