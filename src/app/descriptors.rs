//! The process's descriptors: how many it may have, and who gets them.
//!
//! Owns the split between files, the side port, upstreams and clients. With too few for `limits.max_connections`, clients get
//! what the others leave, so that no file and no call of an administrator ever waits for a descriptor.

use std::fmt;

use crate::config::Config;
use crate::telemetry::machine::{self, OpenFiles};

/// Files that are opened later: of the journal, exports, backups, mail, logins at providers.
const LATER_FILES: usize = 96;
/// What is open at a start: the store's files, the journal's, the audit trail's, event loops.
const USUAL_FILES: usize = 48;
/// Descriptors of a worker: its event loop and its listener.
const FILES_PER_WORKER: usize = 4;
/// So many clients may come in all cases.
const FEWEST_CLIENTS: usize = 16;
/// Of all descriptors, the side port has at most this part.
const SIDE_PORT_PART: usize = 8;

/// Who gets how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// How many there are.
    pub limit: usize,
    pub files: usize,
    pub side_port: usize,
    pub upstreams: usize,
    pub clients: usize,
    /// What the config asks for clients.
    wanted: usize,
}

impl Shares {
    /// `open`: descriptors that are not connections.
    pub fn of(limit: usize, open: usize, config: &Config) -> Self {
        let limits = &config.limits;
        let checks = config.accounts.login_check.max_concurrent;
        let probes: usize =
            config.upstreams.iter().filter(|u| u.health_path.is_some()).map(|u| u.endpoints.len()).sum();
        let files = open + LATER_FILES + config.worker_count() * FILES_PER_WORKER + checks + probes;
        let side_port = limits.max_admin_connections.min(limit / SIDE_PORT_PART).max(1);
        let rest = limit.saturating_sub(files + side_port);
        // Every client may have a call, and every call needs a connection to its upstream.
        let calls = config.upstreams.iter().fold(0, |sum: usize, u| sum.saturating_add(u.max_in_flight));
        let upstreams = calls.min(rest / 2);
        let clients = (rest - upstreams).max(FEWEST_CLIENTS);
        Self { limit, files, side_port, upstreams, clients, wanted: limits.max_connections }
    }

    /// As a server with this config would have them, for those who only look.
    pub fn expected(config: &Config) -> Self {
        Self::of(machine::open_files().hard, USUAL_FILES, config)
    }

    /// Whether clients get fewer than the config asks for.
    pub fn are_short(&self) -> bool {
        self.clients < self.wanted
    }
}

impl fmt::Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit, files, side_port, upstreams, clients, wanted } = self;
        write!(f, "{limit} open files: {files} for files, {side_port} for the side port, {upstreams} for upstreams, ")?;
        if self.are_short() {
            write!(
                f,
                "so at most {clients} client connections instead of limits.max_connections = {wanted}; raise `ulimit -n` \
                 (LimitNOFILE= in a systemd unit) for more"
            )
        } else {
            write!(f, "and enough for limits.max_connections = {wanted}")
        }
    }
}

/// Raises the limit as far as the system lets us, and says what there is.
pub(super) fn take(config: &Config) -> Shares {
    let before = machine::raise_open_files().unwrap_or_else(|error| {
        tracing::warn!(%error, "the limit of open files cannot be raised");
        machine::open_files()
    });
    let OpenFiles { soft, .. } = machine::open_files();
    if soft > before.soft {
        tracing::info!(from = before.soft, to = soft, "raised the limit of open files");
    }
    Shares::of(soft, machine::files_open(), config)
}

/// Tells the log.
pub(super) fn tell(shares: &Shares) {
    match shares.are_short() {
        true => tracing::warn!("{shares}"),
        false => tracing::info!("{shares}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(max_in_flight: usize) -> Config {
        let text = format!(
            "[listen]\nworkers = 2\n[[upstreams]]\nname = \"a\"\nendpoints = [\"http://127.0.0.1:1\"]\nmax_in_flight = {max_in_flight}\n"
        );
        Config::parse("test", &text, std::iter::empty()).unwrap()
    }

    #[test]
    fn clients_get_what_the_others_leave() {
        for limit in [256, 1024, 4096, 20_000] {
            let shares = Shares::of(limit, 40, &config(10_000));
            let Shares { files, side_port, upstreams, clients, .. } = shares;
            assert!(files + side_port + upstreams + clients <= limit, "{shares:?}");
            assert!(clients >= upstreams && clients >= 16 && side_port >= limit / 16 || side_port == 512, "{shares:?}");
            assert!(shares.are_short() && shares.to_string().contains("ulimit -n"), "{shares}");
        }
        let small = Shares::of(1024, 40, &config(10_000));
        assert_eq!((small.side_port, small.upstreams, small.clients), (128, 368, 368));
        // An upstream that takes few calls leaves more to clients.
        assert_eq!(Shares::of(1024, 40, &config(10)).clients, 726);
    }

    #[test]
    fn with_enough_the_config_decides() {
        let shares = Shares::of(1 << 20, 40, &config(10_000));
        assert!(!shares.are_short() && shares.to_string().ends_with("limits.max_connections = 20000"), "{shares}");
        assert_eq!((shares.side_port, shares.upstreams), (512, 10_000));
    }

    #[test]
    fn some_clients_come_in_however_few_there_are() {
        assert_eq!(Shares::of(64, 40, &config(10_000)).clients, 16);
    }
}
