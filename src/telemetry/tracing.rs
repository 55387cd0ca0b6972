//! The program's own log on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use crate::config::{LogFormat, Telemetry};

/// Installs the subscriber; `RUST_LOG` wins over the config. Does nothing when one is installed already, as in tests.
pub fn install(config: &Telemetry) {
    let filter = EnvFilter::try_from_default_env().or_else(|_| EnvFilter::try_new(&config.log)).unwrap_or_default();
    // Colours are for people, not for files and collectors.
    let ansi = std::io::stderr().is_terminal();
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).with_ansi(ansi);
    // A second installation is refused by the library, which is just what tests need.
    let _ = match config.log_format {
        LogFormat::Off => return,
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}
