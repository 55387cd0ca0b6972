//! `serve`, `check-config` and `mock-upstream`.

use std::net::SocketAddr;
use std::path::Path;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::output::say;
use super::{Failure, load_config};
use crate::accounts::passwords::Rule;
use crate::app::{self, App, FirstAdmin};
use crate::clock::Clock;
use crate::config::{self, Config, MailTransport};
use crate::mock_upstream;
use crate::telemetry;

/// Runs the gateway until a signal ends it.
///
/// # Errors
/// It cannot start.
pub fn run(file: Option<&Path>) -> Result<(), Failure> {
    let config = load_config(file)?;
    telemetry::tracing::install(&config.telemetry);
    if config.routes.is_empty() {
        tracing::warn!("no [[routes]]: only the local API answers");
    }
    if config.accounts.email_verification && config.mail.transport == MailTransport::None {
        tracing::warn!(
            "accounts.email_verification without [mail]: nobody is sent a link, so that new accounts wait until staff \
             activates them"
        );
    }
    for (name, why) in config::idle_names(std::env::vars()) {
        tracing::warn!("the environment variable {name} sets nothing here: {why}");
    }
    let mut app = App::start(config, Clock::system(), first_admin())?;
    // Made once: a signal that comes while a reload runs must not be lost.
    let mut signals = app.block_on(async { Signals::new() })??;
    loop {
        match app.block_on(signals.next())? {
            Asked::Reload => match Config::load(file, std::env::vars()) {
                Ok(config) => app.reload(config),
                Err(error) => app.reload_refused(&error.to_string()),
            },
            Asked::Stop => {
                app.stop();
                return Ok(());
            }
        }
    }
}

enum Asked {
    Reload,
    Stop,
}

struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.hangup.recv() => Asked::Reload,
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
        }
    }
}

/// By our own variables, or by those of the user management backend, whose passwords need not be of many kinds of characters.
fn first_admin() -> Option<FirstAdmin> {
    let read = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let named = |username: &str, password: &str, rule: Rule| {
        let (username, password) = (read(username)?, read(password)?);
        Some(FirstAdmin { username, password, email: read("TOLLGATE_ADMIN_EMAIL"), rule })
    };
    let ours = named("TOLLGATE_ADMIN_USERNAME", "TOLLGATE_ADMIN_PASSWORD", Rule::Composition);
    ours.or_else(|| named("ADMIN_USERNAME", "ADMIN_PASSWORD", Rule::Length))
}

/// Validates a config and prints what is in force.
///
/// # Errors
/// The config is refused.
pub fn check_config(file: Option<&Path>) -> Result<(), Failure> {
    let config = load_config(file)?;
    app::journal_keys(&config)?;
    say!("# By this shell's limit, a server has {}.", app::Shares::expected(&config))?;
    say!("{}", config::effective_toml(file, std::env::vars())?.trim_end())
}

/// Runs the simulated AI service.
///
/// # Errors
/// The address is taken.
pub fn mock_upstream(listen: SocketAddr) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(mock_upstream::serve(listen))?)
}
