//! State without listeners: what a server and the commands on a stopped one have in common.
//!
//! Owns the order in which the parts are opened and closed, and is the only place that names a storage backend.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::accounts::jwt::TokenMint;
use crate::accounts::seal::Sealer;
use crate::accounts::secrets::{MIN_PEPPER_BYTES, Pepper};
use crate::accounts::{Accounts, AccountsParts, Settings, credits};
use crate::actors::audit::{Audit, AuditConfig, ChainKey, audit_dir};
use crate::actors::user::actor::Surroundings;
use crate::actors::user::ledger::Recovery;
use crate::actors::user::once::{KeptBytes, OnceLimits};
use crate::actors::user::registry::Registry;
use crate::actors::writer::{Disk, Journal, JournalConfig, JournalKeys, LocalDisk, Redaction};
use crate::backup;
use crate::clock::Clock;
use crate::config::{Backend, Compression, Config, Durability, RecoverOpenHolds, Redact, SecretSource, TokenAlgorithm};
use crate::store::committer::{CommitPace, Committer};
use crate::store::folder;
use crate::store::home::{self, Home};
use crate::store::memory::MemoryStore;
use crate::store::readers;
use crate::store::redb::RedbStore;
use crate::store::sled::SledStore;
use crate::store::wal::LoggedStore;
use crate::store::{Store, StoreError, migrate};
use crate::telemetry::metrics::Metrics;

/// Why the process cannot start.
#[derive(Debug)]
pub enum StartError {
    Io { what: String, error: io::Error },
    Store(StoreError),
    Config(String),
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io { what, error } => write!(f, "{what}: {error}"),
            Self::Store(error) => error.fmt(f),
            Self::Config(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for StartError {}

pub(super) fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> StartError {
    let what = what.into();
    move |error| StartError::Io { what, error }
}

/// State without listeners: what commands on a stopped server need.
pub struct Core {
    pub accounts: Arc<Accounts>,
    pub users: Arc<Registry>,
    pub journal: Journal,
    pub audit: Audit,
    pub committer: Committer,
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
    pub pepper: Pepper,
}

impl Core {
    /// Opens the store and starts what lives on it.
    ///
    /// # Errors
    /// See [`StartError`]; [`StoreError::Busy`] when a server is running on this data.
    pub fn open(config: &Config, clock: Clock, workers: usize) -> Result<Self, StartError> {
        let store = open_store(config)?;
        let core = Self::on(store, config, clock, workers)?;
        if config.data_dir_group.is_some() {
            // What is made for its owner alone, such as the secrets of a first start, is the group's too from here on.
            protect(config)?;
        }
        Ok(core)
    }

    /// As [`Core::open`], on a store that is open already.
    ///
    /// # Errors
    /// As [`Core::open`].
    pub fn on(store: Arc<dyn Store>, config: &Config, clock: Clock, workers: usize) -> Result<Self, StartError> {
        Self::on_disks(store, (Box::new(LocalDisk), Box::new(LocalDisk)), config, clock, workers)
    }

    /// As [`Core::on`], with the conversation journal and its spill on disks of the caller's choice.
    ///
    /// # Errors
    /// As [`Core::open`].
    pub fn on_disks(
        store: Arc<dyn Store>,
        disks: (Box<dyn Disk>, Box<dyn Disk>),
        config: &Config,
        clock: Clock,
        workers: usize,
    ) -> Result<Self, StartError> {
        let metrics = Arc::new(Metrics::new(workers));
        let row_gap = match config.ledger.durability {
            Durability::BeforeResponse => config.ledger.min_commit_gap.0,
            Durability::Interval => config.ledger.interval.0,
        };
        let pace = CommitPace { gap: config.ledger.min_commit_gap.0, row_gap, max_pending: config.ledger.max_pending };
        let committer =
            Committer::start(store, pace, metrics.clone()).map_err(io_error("cannot start the store thread"))?;
        let resets = credits::last_reset_of_all(committer.store()).map_err(StartError::Store)?;
        let around = Arc::new(Surroundings {
            clock: clock.clone(),
            committer: committer.clone(),
            metrics: metrics.clone(),
            reset_hour: config.ledger.reset_hour,
            recovery: match config.ledger.recover_open_holds {
                RecoverOpenHolds::Charge => Recovery::Charge,
                RecoverOpenHolds::Refund => Recovery::Refund,
            },
            once: OnceLimits {
                window: config.ledger.idempotency_window.0,
                answer_bytes: config.ledger.idempotency_answer_bytes,
                total_bytes: config.ledger.idempotency_total_bytes,
            },
            kept: KeptBytes::default(),
            holds_open: AtomicI64::new(0),
            generations: AtomicU64::new(0),
            resets: AtomicU64::new(resets),
            plans: ArcSwap::from_pointee(config.plans.clone()),
        });
        let idle_ms = config.limits.user_idle.0.as_millis() as u64;
        let users = Arc::new(Registry::new(around, config.limits.max_live_users, idle_ms));
        let pepper = load_pepper(config)?;
        let journal = start_journal(config, &clock, &pepper, disks)?;
        let audit = start_audit(config, &clock, &committer, &pepper)?;
        let accounts = Accounts::new(AccountsParts {
            committer: committer.clone(),
            users: users.clone(),
            journal: journal.clone(),
            audit: audit.clone(),
            metrics: metrics.clone(),
            clock: clock.clone(),
            settings: Settings::from(config),
            pepper: pepper.clone(),
            sealer: load_sealer(config)?,
            tokens: load_tokens(config)?,
        })
        .map_err(StartError::Store)?;
        Ok(Self { accounts: Arc::new(accounts), users, journal, audit, committer, metrics, clock, pepper })
    }

    /// Writes everything that waits and ends the threads. The order matters: accounts last, as holds settle into them.
    pub fn close(&self) {
        self.users.write_back_all();
        if let Err(reject) = self.accounts.write_key_uses_blocking() {
            tracing::warn!(?reject, "when keys were last used could not be written");
        }
        if let Err(error) = self.journal.stop() {
            tracing::error!(%error, "the journal could not be written to its end");
        }
        // Before the store: it is told how far the trail has come.
        self.audit.stop();
        self.committer.stop();
    }
}

/// Opens the store that the config names, brought to the present format.
///
/// # Errors
/// [`StoreError::Busy`] when a server is running on this data; [`StartError::Config`] when the store is of another backend
/// or of a newer program.
pub fn open_store(config: &Config) -> Result<Arc<dyn Store>, StartError> {
    let data_dir = &config.data_dir;
    protect(config)?;
    let opened = match embedded(config) {
        Some((name, open)) => open_logged(data_dir, config.store.log_file_bytes, name, open),
        None => {
            home::refuse_other_backend(data_dir, "memory").map(|()| Arc::<MemoryStore>::default() as Arc<dyn Store>)
        }
    };
    opened.map_err(|error| match error {
        StoreError::Refused(why) => StartError::Config(why),
        other => StartError::Store(other),
    })
}

/// Makes what is kept unreadable for others, whoever made it.
fn protect(config: &Config) -> Result<(), StartError> {
    let (data_dir, group) = (&config.data_dir, config.data_dir_group);
    if group.is_some() {
        // Before anything is made in it: what is belongs to the folder's group then.
        folder::create(data_dir).map_err(io_error(format!("cannot create data_dir {}", data_dir.display())))?;
    }
    for kept in std::iter::once(data_dir).chain(&config.journal.spill_dir) {
        let done = readers::protect(kept, group);
        let done = done.map_err(io_error(format!("cannot see who may read {}", kept.display())))?;
        let modes = if group.is_some() { "0750 and 0640, for the group of data_dir_group" } else { "0700 and 0600" };
        if done.were_open > 0 {
            tracing::warn!(
                folder = %kept.display(),
                count = done.were_open,
                "files and folders were open to other users of this machine; they are {modes} now"
            );
        }
        match done.refused {
            Some((path, why)) if group.is_some() => {
                return Err(StartError::Config(format!(
                    "data_dir_group: {} cannot be given to this group: {why}; the user of this process must be its owner \
                     and a member of the group",
                    path.display()
                )));
            }
            Some((path, why)) => {
                tracing::warn!(path = %path.display(), why, "other users of this machine may be able to read what is kept");
            }
            None => {}
        }
    }
    Ok(())
}

/// The store thread of a command: as a server's, without a server.
///
/// # Errors
/// The system has no thread to give.
pub fn committer_for(store: Arc<dyn Store>, config: &Config) -> Result<Committer, StartError> {
    let gap = config.ledger.min_commit_gap.0;
    let pace = CommitPace { gap, row_gap: gap, max_pending: config.ledger.max_pending };
    Committer::start(store, pace, Arc::new(Metrics::new(0))).map_err(io_error("cannot start the store thread"))
}

type OpenBackend = Box<dyn FnOnce(&Path) -> Result<Box<dyn Store>, StoreError>>;

/// The name of the backend that the config names, and how to open one in a folder; `None` for one that keeps nothing.
pub fn embedded(config: &Config) -> Option<(&'static str, OpenBackend)> {
    let cache = config.store.cache_bytes;
    match config.store.backend {
        Backend::Sled => Some(("sled", Box::new(move |folder| Ok(Box::new(SledStore::open(folder, cache)?))))),
        Backend::Redb => Some(("redb", Box::new(move |folder| Ok(Box::new(RedbStore::open(folder, cache)?))))),
        Backend::Memory => None,
    }
}

fn open_logged(
    data_dir: &Path,
    log_file_bytes: u64,
    name: &str,
    open: impl FnOnce(&Path) -> Result<Box<dyn Store>, StoreError>,
) -> Result<Arc<dyn Store>, StoreError> {
    let lock = home::take(data_dir)?;
    backup::restore::finish(data_dir)
        .map_err(|e| StoreError::Failed(format!("a restore that was cut off cannot be finished: {e}")))?;
    let mut home = Home::open_locked(lock, data_dir, name)?;
    let backend = open(&home.backend_folder())?;
    let store = LoggedStore::open(home.log(log_file_bytes)?, backend, Some(home.guard()?))?;
    migrate::run(&mut home, &store)?;
    Ok(Arc::new(store))
}

fn start_journal(
    config: &Config,
    clock: &Clock,
    pepper: &Pepper,
    (disk, spill_disk): (Box<dyn Disk>, Box<dyn Disk>),
) -> Result<Journal, StartError> {
    let settings = &config.journal;
    let defaults = JournalConfig::new(journal_dir(&config.data_dir));
    let journal = JournalConfig {
        enabled: settings.enabled,
        batch_records: settings.batch_size as u64,
        flush_interval: settings.flush_interval.0,
        queue_bytes: settings.queue_bytes as u64,
        segment_bytes: settings.segment_bytes,
        segment_age: settings.segment_age.0,
        retention: settings.retention_days.map(|days| Duration::from_secs(days * 86_400)),
        retention_bytes: settings.retention_bytes,
        overflow: settings.overflow,
        queue_records: settings.queue_records as u64,
        max_wait: settings.max_wait.0,
        spill_above_bytes: settings.spill_above_bytes,
        spill_dir: settings.spill_dir.clone().unwrap_or_else(|| defaults.spill_dir.clone()),
        spill_bytes: settings.spill_bytes,
        redaction: Arc::new(redaction(&settings.redact, pepper)?),
        compression: (settings.compression == Compression::Zstd).then_some(settings.compression_level),
        keys: journal_keys(config)?,
        ..defaults
    };
    let clock = clock.clone();
    Journal::start_on(journal, Arc::new(move || clock.now().0), disk, spill_disk)
        .map_err(io_error("cannot open the conversation journal"))
}

fn redaction(rules: &Redact, pepper: &Pepper) -> Result<Redaction, StartError> {
    let key = match &rules.key {
        Some(source) => {
            let refused = |why: String| StartError::Config(format!("journal.redact.key: {why}"));
            let key = source.read().map_err(refused)?;
            if key.len() < MIN_PEPPER_BYTES {
                return Err(refused(format!("{} bytes are too few; at least {MIN_PEPPER_BYTES}", key.len())));
            }
            key.into_bytes()
        }
        None => pepper.mac_in("journal redaction", b"").0.to_vec(),
    };
    Ok(Redaction::new(rules, &key))
}

fn start_audit(config: &Config, clock: &Clock, committer: &Committer, pepper: &Pepper) -> Result<Audit, StartError> {
    let settings = &config.audit;
    let audit = AuditConfig {
        segment_bytes: settings.segment_bytes,
        retention: settings.retention_days.map(|days| Duration::from_secs(days.saturating_mul(86_400))),
        queue_records: settings.queue_records,
        ..AuditConfig::new(audit_dir(&config.data_dir))
    };
    Audit::start(audit, clock.clone(), audit_key(pepper), committer.clone())
        .map_err(io_error("cannot open the audit trail"))
}

/// The key of the audit trail's chain.
pub fn audit_key(pepper: &Pepper) -> ChainKey {
    ChainKey::new(pepper.mac_in("audit", b"chain").0)
}

/// The keys of the conversation journal, as the config names them.
///
/// # Errors
/// [`StartError::Config`] for one that cannot be read or is no key.
pub fn journal_keys(config: &Config) -> Result<JournalKeys, StartError> {
    let read = |name: &str, source: &SecretSource| {
        source.read().map_err(|why| StartError::Config(format!("journal.{name}: {why}")))
    };
    let settings = &config.journal;
    let current = settings.encryption_key.as_ref().map(|source| read("encryption_key", source)).transpose()?;
    let old: Result<Vec<String>, StartError> =
        settings.old_encryption_keys.iter().map(|source| read("old_encryption_keys", source)).collect();
    JournalKeys::new(current.as_deref(), &old?).map_err(StartError::Config)
}

pub fn journal_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("journal")
}

/// The pepper that a config names, or the data directory's own, which is made when there is none.
///
/// # Errors
/// It cannot be read or made.
pub fn load_pepper(config: &Config) -> Result<Pepper, StartError> {
    match &config.accounts.pepper {
        Some(source) => {
            let key = source.read().map_err(|why| StartError::Config(format!("accounts.pepper: {why}")))?;
            Pepper::new(key.as_bytes()).map_err(|why| StartError::Config(format!("accounts.pepper: {why}")))
        }
        None => Pepper::load_or_create(&config.data_dir).map_err(io_error("cannot load or create the pepper")),
    }
}

/// The key that a config names for what is sealed, or the data directory's own, which is made when there is none.
fn load_sealer(config: &Config) -> Result<Sealer, StartError> {
    let refused = |why: String| StartError::Config(format!("accounts.keys.vault_key: {why}"));
    match &config.accounts.keys.vault_key {
        Some(source) => Sealer::new(source.read().map_err(refused)?.as_bytes()).map_err(refused),
        None => Sealer::load_or_create(&config.data_dir).map_err(io_error("cannot load or create the vault's key")),
    }
}

/// What signs the tokens of sessions: the config's shared secret, or the data directory's own keys, made when there are none.
fn load_tokens(config: &Config) -> Result<TokenMint, StartError> {
    let tokens = &config.accounts.tokens;
    let refused = |why: String| StartError::Config(format!("accounts.tokens.hs256_key: {why}"));
    match (tokens.algorithm, &tokens.hs256_key) {
        (TokenAlgorithm::HS256, Some(source)) => {
            TokenMint::hs256(tokens, source.read().map_err(refused)?.as_bytes()).map_err(refused)
        }
        (TokenAlgorithm::HS256, None) => Err(refused("is missing".into())),
        (TokenAlgorithm::EdDSA, _) => TokenMint::load_or_create(tokens, &config.data_dir)
            .map_err(io_error("cannot load or create the keys that sign session tokens")),
    }
}
