//! The composition root: config → store → actors → services → listeners → drain.
//!
//! Owns the order in which things start and stop, and is the only place that names a storage backend. Never holds a rule of
//! its own.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use axum::Router;
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tower::ServiceExt;

use crate::accounts::jwt::TokenMint;
use crate::accounts::passwords::{Password, Rule};
use crate::accounts::seal::Sealer;
use crate::accounts::secrets::{MIN_PEPPER_BYTES, Pepper};
use crate::accounts::usage;
use crate::accounts::{Accounts, AccountsParts, Settings, credits};
use crate::actors::audit::{Action, Actor, Audit, AuditConfig, ChainKey, Outcome, Record, Target, audit_dir};
use crate::actors::scheduler::{Scheduler, TaskState, When};
use crate::actors::user::actor::Surroundings;
use crate::actors::user::ledger::Recovery;
use crate::actors::user::once::{KeptBytes, OnceLimits};
use crate::actors::user::registry::Registry;
use crate::actors::writer::{Disk, Journal, JournalConfig, JournalKeys, LocalDisk, Redaction};
use crate::api;
use crate::backup;
use crate::clock::{Clock, UnixMillis};
use crate::compat;
use crate::config::{Backend, Compression, Config, Durability, RecoverOpenHolds, Redact, SecretSource, TokenAlgorithm};
use crate::domain::ids::StaffId;
use crate::error::Reject;
use crate::gateway::authenticate::Authenticator;
use crate::gateway::buffers::Budget;
use crate::gateway::deadline::Deadlines;
use crate::gateway::pipeline::{LongLogins, Shared, Worker};
use crate::gateway::policy::Policy;
use crate::gateway::rate::RateStates;
use crate::gateway::{LocalApi, accept, upstream};
use crate::store::committer::{CommitPace, Committer};
use crate::store::home::{self, Home};
use crate::store::memory::MemoryStore;
use crate::store::redb::RedbStore;
use crate::store::sled::SledStore;
use crate::store::wal::LoggedStore;
use crate::store::{Store, StoreError, migrate};
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::machine;
use crate::telemetry::metrics::{Exposition, Metrics};

/// How often states that have run out are cleared away.
const SWEEP: Duration = Duration::from_secs(5);
/// How often it is written when keys were used; a crash forgets as much.
const KEY_USES: Duration = Duration::from_secs(20);
const HOUR: Duration = Duration::from_secs(3600);

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

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> StartError {
    let what = what.into();
    move |error| StartError::Io { what, error }
}

/// The first superadmin, made when the store has no staff yet.
pub struct FirstAdmin {
    pub username: String,
    pub password: String,
    pub email: Option<String>,
    /// What the password must meet.
    pub rule: Rule,
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
        Self::on(store, config, clock, workers)
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

/// A running gateway.
pub struct App {
    core: Core,
    shared: Arc<Shared>,
    control: Option<Runtime>,
    workers: Vec<JoinHandle<()>>,
    deadlines: Vec<Arc<Deadlines>>,
    /// `true`: accept no more.
    stop_accepting: watch::Sender<bool>,
    /// `true`: end the workers, whatever still runs.
    end_workers: watch::Sender<bool>,
    end_side_port: watch::Sender<bool>,
    ready: Arc<AtomicBool>,
    public: SocketAddr,
    admin: SocketAddr,
    config: Config,
}

/// The local API on the control runtime, as the gateway sees it.
struct Local(Router);

impl LocalApi for Local {
    fn call(&self, request: http::Request<Bytes>) -> Pin<Box<dyn Future<Output = http::Response<Bytes>> + Send>> {
        let router = self.0.clone();
        Box::pin(async move {
            let request = request.map(axum::body::Body::from);
            let response = match router.oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            };
            let (parts, body) = response.into_parts();
            let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            http::Response::from_parts(parts, body)
        })
    }
}

impl App {
    /// Starts everything and returns when both ports listen.
    ///
    /// # Errors
    /// See [`StartError`]. What was started is stopped again.
    pub fn start(config: Config, clock: Clock, first_admin: Option<FirstAdmin>) -> Result<Self, StartError> {
        let workers = config.worker_count();
        let core = Core::open(&config, clock, workers)?;
        Self::start_on(core, config, first_admin)
    }

    /// As [`App::start`], on a core that is open already.
    ///
    /// # Errors
    /// As [`App::start`].
    pub fn start_on(core: Core, config: Config, first_admin: Option<FirstAdmin>) -> Result<Self, StartError> {
        let control = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(config.accounts.hash_concurrency + 16)
            .thread_name("tollgate-control")
            .enable_all()
            .build()
            .map_err(io_error("cannot start the control runtime"))?;
        if let Some(gap) = core.audit.gap() {
            tracing::error!(
                "the audit trail's end is not the one that the store knows of; see `tollgate audit verify`"
            );
            audited(&core.audit, gap)?;
        }
        if let Some(admin) = first_admin {
            control.block_on(make_first_admin(&core.accounts, admin))?;
        }
        let workers = config.worker_count();
        let policy = Arc::new(Policy::new(&config, &core.metrics, workers, None));
        // Until the public listeners are there.
        let ready = Arc::new(AtomicBool::new(false));
        let scheduler = timed_work(&core);
        let vitals = vitals(&core, &config, scheduler.states());
        let shared = Arc::new(share(&core, &config, policy.clone(), control.handle().clone(), vitals));
        watch_health(&control, &policy, &core.clock);
        add_probes(&core, &shared);

        let (stop_accepting, stopped) = watch::channel(false);
        let (end_workers, ended) = watch::channel(false);
        let (end_side_port, side_ended) = watch::channel(false);
        add_task_probe(&core, scheduler.states());
        let admin = start_side_port(&control, &core, &config, (ready.clone(), scheduler.states()), side_ended)?;
        core.accounts
            .open_operator(&config.data_dir, admin)
            .map_err(io_error("cannot write the operator's file into data_dir/run"))?;
        let mut app = Self {
            public: config.listen.public,
            core,
            shared,
            control: Some(control),
            workers: Vec::new(),
            deadlines: Vec::new(),
            stop_accepting,
            end_workers,
            end_side_port,
            ready,
            admin,
            config,
        };
        app.start_workers(&stopped, &ended)?;
        app.start_sweeper();
        if let Some(control) = &app.control {
            control.spawn(scheduler.run());
        }
        let started = app.core.audit.started().with("version", env!("CARGO_PKG_VERSION"));
        audited(&app.core.audit, started.with("public", app.public.to_string()).with("admin", app.admin.to_string()))?;
        app.ready.store(true, Ordering::Release);
        tracing::info!(public = %app.public, admin = %app.admin, workers, "listening");
        Ok(app)
    }

    fn start_workers(
        &mut self,
        stopped: &watch::Receiver<bool>,
        ended: &watch::Receiver<bool>,
    ) -> Result<(), StartError> {
        for index in 0..self.config.worker_count() {
            let listener = accept::bind(self.public, self.config.listen.backlog)
                .map_err(io_error(format!("cannot listen on listen.public {}", self.public)))?;
            // Port 0 becomes the first one's choice.
            self.public = listener.local_addr().map_err(io_error("cannot read the public address"))?;
            let deadlines = Deadlines::new(self.core.clock.clone());
            self.deadlines.push(deadlines.clone());
            let mut seed = [0u8; 12];
            crate::clock::random_bytes(&mut seed).map_err(io_error("cannot start a worker"))?;
            let [a, b, c, d, low @ ..] = seed;
            let worker = Arc::new(Worker {
                index,
                shared: self.shared.clone(),
                shard: self.core.metrics.shard(index),
                gate: self.core.committer.gate(),
                deadlines,
                request_high: u32::from_le_bytes([a, b, c, d]),
                request_low: AtomicU64::new(u64::from_le_bytes(low)),
            });
            let (stopped, ended) = (stopped.clone(), ended.clone());
            let thread = std::thread::Builder::new()
                .name(format!("tollgate-worker-{index}"))
                .spawn(move || run_worker(worker, listener, stopped, ended))
                .map_err(io_error("cannot start a worker"))?;
            self.workers.push(thread);
        }
        Ok(())
    }

    fn start_sweeper(&self) {
        let Some(control) = &self.control else { return };
        let shared = self.shared.clone();
        let (users, committer) = (self.core.users.clone(), self.core.committer.clone());
        let started = self.core.clock.now();
        control.spawn_blocking(move || {
            if let Err(error) = users.around().kept.count(committer.store(), started) {
                tracing::error!(%error, "the answers kept for repeated calls could not be counted");
            }
        });
        control.spawn(self.core.accounts.clone().run_mailer());
        let directory = self.core.accounts.clone();
        control.spawn_blocking(move || {
            if let Err(error) = directory.fill_directory() {
                tracing::error!(%error, "the users could not be read; their lists come from the store, slower");
            }
        });
        control.spawn(async move {
            let mut ticks = tokio::time::interval(SWEEP);
            // What is only in memory; timed work on what lasts is the scheduler's.
            loop {
                ticks.tick().await;
                shared.users.sweep();
                shared.rates.sweep(shared.clock.monotonic());
            }
        });
    }

    pub fn public_addr(&self) -> SocketAddr {
        self.public
    }

    pub fn admin_addr(&self) -> SocketAddr {
        self.admin
    }

    /// The parts that tests and commands look into.
    pub fn core(&self) -> &Core {
        &self.core
    }

    /// Puts a new config in force for all requests that begin from now on. What belongs to the process's start (ports,
    /// folder, backend, workers) stays as it is, and is said to.
    ///
    /// Refused while the audit trail cannot be written.
    pub fn reload(&mut self, config: Config) {
        let changed = self.config.changed_keys(&config);
        let record = Record::of(Action::ConfigReloaded).by(Actor::operator()).with("changed", changed);
        if let Err(error) = self.core.audit.ready().and_then(|()| self.core.audit.write_blocking(record)) {
            return self.reload_refused(&error.to_string());
        }
        for (key, changed) in [
            ("listen", config.listen.public != self.config.listen.public && self.config.listen.public.port() != 0),
            ("listen.workers", config.listen.workers != self.config.listen.workers),
            ("data_dir", config.data_dir != self.config.data_dir),
            ("store", config.store.backend != self.config.store.backend),
        ] {
            if changed {
                tracing::warn!(key, "this change takes effect at the next start");
            }
        }
        let before = self.shared.policy.load_full();
        let policy = Arc::new(Policy::new(&config, &self.core.metrics, self.workers.len(), Some(&before)));
        if let Some(control) = &self.control {
            watch_health(control, &policy, &self.core.clock);
        }
        self.core.accounts.reconfigure(Settings::from(&config));
        self.shared.budget.set_limit(config.limits.in_flight_bytes);
        self.shared.policy.store(policy);
        self.core.metrics.config_reloaded(true);
        tracing::info!("the config was reloaded");
        self.config = Config { listen: self.config.listen.clone(), data_dir: self.config.data_dir.clone(), ..config };
    }

    /// Says that a reload was refused; the old config stays.
    pub fn reload_refused(&self, reason: &str) {
        self.core.metrics.config_reloaded(false);
        let record = Record::of(Action::ConfigReloaded).by(Actor::operator());
        // The reason quotes the file, which may hold secrets; the log on standard error has it.
        self.core.audit.note(record.refused(Outcome::Failed, "INVALID_CONFIG"));
        tracing::error!(reason, "the new config was refused; the old one stays in force");
    }

    /// Runs `future` on the control runtime.
    ///
    /// # Errors
    /// The app is stopping.
    pub fn block_on<F: Future>(&self, future: F) -> io::Result<F::Output> {
        let control = self.control.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        Ok(control.block_on(future))
    }

    /// Accepts no more, lets running calls end within the grace time, writes everything, and returns.
    pub fn stop(mut self) {
        let grace = self.config.listen.drain_grace.0;
        tracing::info!(?grace, "draining");
        self.ready.store(false, Ordering::Release);
        self.shared.draining.store(true, Ordering::Release);
        self.stop_accepting.send_replace(true);
        let began = Instant::now();
        while self.shared.connections.load(Ordering::Acquire) > 0 && began.elapsed() < grace {
            // Again and again: a connection may have become idle since.
            for deadlines in &self.deadlines {
                deadlines.wake_all();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let cut = self.shared.connections.load(Ordering::Acquire);
        if cut > 0 {
            tracing::warn!(connections = cut, "the grace time is over; these are cut");
        }
        self.end_workers.send_replace(true);
        for worker in self.workers.drain(..) {
            if worker.join().is_err() {
                tracing::error!("a worker thread had panicked");
            }
        }
        self.core.accounts.close_operator();
        self.end_side_port.send_replace(true);
        if let Err(error) = self.core.audit.write_blocking(Record::of(Action::ServerStopped).with("calls_cut", cut)) {
            tracing::error!(%error, "the end of this run is not in the audit trail");
        }
        self.core.close();
        self.shared.access_log.stop();
        if let Some(control) = self.control.take() {
            control.shutdown_timeout(Duration::from_secs(2));
        }
        tracing::info!("stopped");
    }
}

fn audited(audit: &Audit, record: Record) -> Result<(), StartError> {
    audit
        .write_blocking(record)
        .map_err(|error| io_error("cannot start without an audit trail")(io::Error::other(error)))
}

async fn make_first_admin(accounts: &Arc<Accounts>, admin: FirstAdmin) -> Result<(), StartError> {
    let refused = |reject: Reject| {
        StartError::Config(format!("TOLLGATE_ADMIN_USERNAME, TOLLGATE_ADMIN_PASSWORD: {}", reject.describe()))
    };
    let password = Password::new(admin.password).map_err(refused)?;
    if accounts.has_staff().map_err(refused)? {
        return Ok(());
    }
    let record = Record::of(Action::StaffCreated).with("role", "superadmin").with("from", "environment");
    let (username, email) = (admin.username.clone(), admin.email);
    let act = move |accounts: Arc<Accounts>| async move {
        accounts.first_superadmin(&username, password, email.as_deref(), admin.rule).await
    };
    let named = admin.username.clone();
    let tell = move |made: &Option<StaffId>, record: Record| {
        record.on(Target::new("staff", made.map(|id| id.0), Some(&named)))
    };
    accounts.audited(record, act, tell).await.map_err(refused)?;
    tracing::info!(username = admin.username, "the first superadmin was made");
    Ok(())
}

fn share(
    core: &Core,
    config: &Config,
    policy: Arc<Policy>,
    control: tokio::runtime::Handle,
    vitals: compat::Vitals,
) -> Shared {
    let auth = Authenticator::new(
        core.pepper.clone(),
        core.accounts.tokens().clone(),
        core.users.clone(),
        core.accounts.blocks().clone(),
        core.accounts.key_uses().clone(),
        config.limits.max_cached_credentials,
    );
    Shared {
        clock: core.clock.clone(),
        policy: ArcSwap::new(policy),
        auth,
        users: core.users.clone(),
        addresses: core.accounts.addresses().clone(),
        blocks: core.accounts.blocks().clone(),
        rates: RateStates::new(config.limits.max_tracked_rates),
        budget: Budget::new(config.limits.in_flight_bytes),
        committer: core.committer.clone(),
        journal: core.journal.clone(),
        metrics: core.metrics.clone(),
        access_log: AccessLog::start(&config.telemetry, io::stdout()),
        local: Arc::new(Local(api::public_router(core.accounts.clone(), compat::public_paths(&core.accounts, vitals)))),
        long_logins: LongLogins::default(),
        control,
        draining: AtomicBool::new(false),
        connections: AtomicUsize::new(0),
    }
}

fn watch_health(control: &Runtime, policy: &Arc<Policy>, clock: &Clock) {
    for upstream in &policy.upstreams {
        // Weak: the check ends with the policy it belongs to.
        control.spawn(upstream::check_health(Arc::downgrade(upstream), clock.clone()));
    }
}

/// A worker's thread, from its first to its last task.
fn run_worker(
    worker: Arc<Worker>,
    listener: std::net::TcpListener,
    stopped: watch::Receiver<bool>,
    mut ended: watch::Receiver<bool>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().event_interval(61).build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "a worker has no runtime; its port stays silent");
            return;
        }
    };
    runtime.block_on(async {
        let listener = match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "a worker cannot use its listener");
                return;
            }
        };
        let (gate, deadlines) = (worker.gate.clone(), worker.deadlines.clone());
        tokio::spawn(async move { gate.run().await });
        tokio::spawn(async move { deadlines.run().await });
        tokio::spawn(prune_pools(worker.clone()));
        tokio::spawn(accept::run(worker, listener, stopped));
        // An error means that the app itself is gone.
        let _ = ended.wait_for(|ended| *ended).await;
    });
    // Dropping the runtime drops the calls that still run; their holds settle as they go.
}

async fn prune_pools(worker: Arc<Worker>) {
    let mut ticks = tokio::time::interval(SWEEP);
    loop {
        ticks.tick().await;
        let now = worker.shared.clock.monotonic();
        for upstream in &worker.shared.policy.load().upstreams {
            for endpoint in &upstream.endpoints {
                endpoint.prune(worker.index, now, &upstream.config);
            }
        }
    }
}

fn start_side_port(
    control: &Runtime,
    core: &Core,
    config: &Config,
    (ready, tasks): (Arc<AtomicBool>, Vec<Arc<TaskState>>),
    ended: watch::Receiver<bool>,
) -> Result<SocketAddr, StartError> {
    let (committer, audit) = (core.committer.clone(), core.audit.clone());
    let readiness: api::Readiness = Arc::new(move || {
        if committer.has_failed() {
            return Err("the store has failed");
        }
        if audit.ready().is_err() {
            return Err("the audit trail cannot be written");
        }
        if ready.load(Ordering::Acquire) { Ok(()) } else { Err("starting or draining") }
    });
    let backups = Arc::new(backup::source::Source {
        data_dir: config.data_dir.clone(),
        committer: core.committer.clone(),
        clock: core.clock.clone(),
    });
    let accounts = core.accounts.clone();
    let dialects = compat::side_paths(&accounts).with_state(accounts.clone());
    let documents = Arc::new(documents());
    let state = api::SideState { accounts, tasks, readiness, backups: Some(backups), documents };
    let router = api::side_router(state, dialects);
    let listener = control
        .block_on(tokio::net::TcpListener::bind(config.listen.admin))
        .map_err(io_error(format!("cannot listen on listen.admin {}", config.listen.admin)))?;
    let address = listener.local_addr().map_err(io_error("cannot read the side port's address"))?;
    control.spawn(api::serve::serve(listener, router, ended));
    Ok(address)
}

/// Gauges that are read when somebody asks.
fn add_probes(core: &Core, shared: &Arc<Shared>) {
    let weak = Arc::downgrade(shared);
    let accounts = Arc::downgrade(&core.accounts);
    core.metrics.probe(move |out: &mut Exposition| {
        let Some(shared) = weak.upgrade() else { return };
        out.gauge("tollgate_holds_open", "Holds that are not settled yet.", shared.users.holds_open() as f64);
        out.gauge(
            "tollgate_idempotent_answer_bytes",
            "Bytes of answers kept for repeated calls.",
            shared.users.around().kept.get() as f64,
        );
        out.gauge("tollgate_actors_live", "Users held in memory.", shared.users.live() as f64);
        out.gauge(
            "tollgate_mailbox_depth",
            "Rows and batches that wait for the store thread.",
            shared.committer.pending() as f64,
        );
        out.gauge(
            "tollgate_store_failed",
            "1 when a write or sync failed: nothing is acknowledged until a restart.",
            f64::from(u8::from(shared.committer.has_failed())),
        );
        out.gauge(
            "tollgate_store_copy_keys",
            "Changed rows that a backup under way has still to read.",
            shared.committer.keys_watched() as f64,
        );
        out.gauge("tollgate_in_flight_bytes", "Bytes held for calls in flight.", shared.budget.used() as f64);
        out.gauge(
            "tollgate_rates_tracked",
            "Addresses and keys whose rate is remembered.",
            shared.rates.tracked() as f64,
        );
        out.gauge("tollgate_credentials_cached", "Credentials in memory.", shared.auth.cached() as f64);
        out.counter(
            "tollgate_access_log_dropped_total",
            "Lines of the access log lost to a slow terminal.",
            shared.access_log.dropped() as f64,
        );
        let mut healthy = Vec::new();
        let now = shared.clock.monotonic();
        for upstream in &shared.policy.load().upstreams {
            for endpoint in &upstream.endpoints {
                let labels = vec![
                    ("upstream", upstream.config.name.to_string()),
                    ("endpoint", endpoint.address.authority.to_string()),
                ];
                healthy.push((labels, f64::from(u8::from(endpoint.is_well(now)))));
            }
        }
        out.labelled_gauges("tollgate_upstream_healthy", "Whether calls go to this endpoint.", healthy);
        out.gauge(
            "tollgate_long_logins",
            "Logins with long bodies that are being received or answered.",
            shared.long_logins.running() as f64,
        );
        let placed = shared.policy.load().places.users(now).into_iter();
        out.labelled_gauges(
            "tollgate_route_users",
            "Users who have a place on a route, or on the routes that share places.",
            placed.map(|(name, users)| (vec![("route", name)], users as f64)).collect(),
        );
        if let Some(accounts) = accounts.upgrade() {
            out.gauge(
                "tollgate_addresses_blocked",
                "Addresses blocked for failed credentials.",
                accounts.blocks().blocked() as f64,
            );
            let (argon2id, bcrypt) = accounts.passwords().computed();
            let kind = |name: &str, n: u64| (vec![("kind", name.to_owned())], n as f64);
            out.counters(
                "tollgate_password_hashes_total",
                "Password hashes computed.",
                vec![kind("argon2id", argon2id), kind("bcrypt", bcrypt)],
            );
            out.counter(
                "tollgate_password_hash_seconds_total",
                "Time that computing password hashes took.",
                accounts.passwords().time_spent().as_secs_f64(),
            );
            out.gauge(
                "tollgate_password_hashes_waiting",
                "Password hashes being computed or waited for.",
                accounts.passwords().inside() as f64,
            );
            out.gauge(
                "tollgate_login_checks_running",
                "Logins that are with the operator's verifier.",
                accounts.login_checks_running() as f64,
            );
            out.gauge(
                "tollgate_address_failures_tracked",
                "Addresses whose failures are remembered.",
                accounts.blocks().tracked() as f64,
            );
        }
    });
    let counters = core.journal.counters();
    core.metrics.probe(move |out: &mut Exposition| {
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed) as f64;
        let state = |name: &str, n: &AtomicU64| (vec![("state", name.to_owned())], read(n));
        out.counters(
            "tollgate_journal_records_total",
            "Conversation records.",
            vec![
                state("emitted", &counters.emitted),
                state("written", &counters.written),
                state("spilled", &counters.spilled),
                state("dropped", &counters.dropped),
            ],
        );
        out.gauge(
            "tollgate_journal_queue_bytes",
            "Bytes of records that wait to be written.",
            read(&counters.queue_bytes),
        );
        out.gauge("tollgate_journal_queue_records", "Records that wait to be written.", read(&counters.queue_records));
        out.gauge("tollgate_journal_segments", "Segment files.", read(&counters.segments));
        out.gauge(
            "tollgate_journal_waiting_calls",
            "Calls that wait for room for their record.",
            read(&counters.parked),
        );
        out.gauge("tollgate_journal_spill_bytes", "Bytes of all spill files.", read(&counters.spill_bytes));
        out.counter(
            "tollgate_journal_spill_errors_total",
            "Failed writes and syncs of spill files, and pieces past journal.spill_bytes.",
            read(&counters.spill_errors),
        );
        out.gauge(
            "tollgate_journal_segments_waiting",
            "Sealed segments that wait to be indexed, compressed or encrypted.",
            read(&counters.segments_waiting),
        );
        let side = |name: &str, n: &AtomicU64| (vec![("side", name.to_owned())], read(n));
        out.counters(
            "tollgate_journal_rewritten_bytes_total",
            "Bytes of the sealed segments that were compressed or encrypted.",
            vec![side("before", &counters.rewritten_from_bytes), side("after", &counters.rewritten_to_bytes)],
        );
        out.counter(
            "tollgate_journal_index_rebuilds_total",
            "Indexes of segments that were built anew.",
            read(&counters.index_rebuilds),
        );
        out.counter(
            "tollgate_journal_read_errors_total",
            "Records that a page could not show; `logs verify` tells which.",
            read(&counters.read_errors),
        );
        out.counter(
            "tollgate_journal_write_errors_total",
            "Failed writes and syncs of the journal.",
            read(&counters.write_errors),
        );
    });
    add_audit_probe(core);
    add_accounts_probe(core);
}

/// How the program and its machine are doing, for the health page of a dialect.
fn vitals(core: &Core, config: &Config, tasks: Vec<Arc<TaskState>>) -> compat::Vitals {
    let (committer, clock) = (core.committer.clone(), core.clock.clone());
    let (counters, data_dir) = (core.journal.counters(), config.data_dir.clone());
    Arc::new(move || {
        let memory = machine::memory();
        let disk = machine::disk(&data_dir);
        let newest = tasks.iter().map(|task| task.last_success.load(Ordering::Relaxed)).max().unwrap_or(0);
        compat::VitalSigns {
            store_is_well: !committer.has_failed(),
            memory_total: memory.total,
            memory_available: memory.free,
            disk_total: disk.total,
            disk_free: disk.free,
            messages_waiting: counters.queue_records.load(Ordering::Relaxed),
            scheduler_is_running: clock.now() < UnixMillis(newest).plus(12 * SWEEP),
        }
    })
}

/// What can be called on both ports, with all dialects.
pub fn documents() -> api::Documents {
    let (public, side) = compat::documents();
    api::Documents { public: api::public_document(public), side: api::side_document(side) }
}

/// What is done now and then.
fn timed_work(core: &Core) -> Scheduler {
    let counted = |what: &'static str, n: u64| if n == 0 { String::new() } else { format!("{n} {what}") };
    let told = |reject: Reject| format!("{reject:?}");
    let with = |core: &Core| core.accounts.clone();
    let (rules, tokens, deleted, sessions) = (with(core), with(core), with(core), with(core));
    let (usage, keys, key_uses, users) = (with(core), with(core), with(core), core.users.clone());
    Scheduler::new(core.clock.clone())
        .with("address_rules", When::Every(SWEEP), move || {
            let accounts = rules.clone();
            async move {
                accounts.sweep().await;
                Ok(String::new())
            }
        })
        .with("idempotency_keys", When::Every(SWEEP), move || {
            let users = users.clone();
            async move {
                users.forget_old_keys().await;
                Ok(String::new())
            }
        })
        .with("key_uses", When::Every(KEY_USES), move || {
            let accounts = key_uses.clone();
            async move { accounts.write_key_uses().await.map(|_| String::new()).map_err(told) }
        })
        .with("one_time_tokens", When::Every(HOUR), move || {
            let accounts = tokens.clone();
            async move { accounts.purge_one_time().await.map(|n| counted("tokens removed", n)).map_err(told) }
        })
        .with("deleted_users", When::Every(HOUR), move || {
            let accounts = deleted.clone();
            async move { accounts.purge_deleted().await.map(|n| counted("deleted users' data removed", n)).map_err(told) }
        })
        .with("daily_usage", When::Daily { hour: 0 }, move || {
            let accounts = usage.clone();
            async move { accounts.close_day().await.map(|day| day.as_ref().map(usage::told).unwrap_or_default()).map_err(told) }
        })
        .with("api_keys", When::Every(6 * HOUR), move || {
            let accounts = keys.clone();
            async move { accounts.purge_keys().await.map(|n| counted("expired keys removed", n)).map_err(told) }
        })
        .with("sessions", When::Every(6 * HOUR), move || {
            let accounts = sessions.clone();
            async move { accounts.purge_sessions().await.map(|n| counted("expired sessions removed", n)).map_err(told) }
        })
}

fn add_task_probe(core: &Core, tasks: Vec<Arc<TaskState>>) {
    core.metrics.probe(move |out: &mut Exposition| {
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed) as f64;
        let runs = |task: &TaskState| {
            let run = |result: &str, n: &AtomicU64| {
                (vec![("task", task.name.to_owned()), ("result", result.to_owned())], read(n))
            };
            [run("ok", &task.ok), run("failed", &task.failed)]
        };
        out.counters(
            "tollgate_task_runs_total",
            "Runs of timed work.",
            tasks.iter().flat_map(|task| runs(task)).collect(),
        );
        out.labelled_gauges(
            "tollgate_task_last_success_timestamp_seconds",
            "When timed work last went well; 0: not since the start.",
            tasks
                .iter()
                .map(|task| (vec![("task", task.name.to_owned())], read(&task.last_success) / 1000.0))
                .collect(),
        );
    });
}

fn add_accounts_probe(core: &Core) {
    let accounts = Arc::downgrade(&core.accounts);
    core.metrics.probe(move |out: &mut Exposition| {
        let Some(accounts) = accounts.upgrade() else { return };
        let counts = accounts.mail_counts();
        let result = |name: &str, n: &AtomicU64| (vec![("result", name.to_owned())], n.load(Ordering::Relaxed) as f64);
        out.counters(
            "tollgate_mail_total",
            "Letters: put into the outbox, and how they ended.",
            vec![
                result("posted", &counts.posted),
                result("sent", &counts.sent),
                result("retried", &counts.retried),
                result("refused", &counts.refused),
                result("expired", &counts.expired),
                result("overflowed", &counts.overflowed),
                result("limited", &counts.limited),
            ],
        );
        let (users, bytes, took) = accounts.directory().size();
        out.gauge("tollgate_directory_users", "Users in the directory that lists and counts come from.", users as f64);
        out.gauge("tollgate_directory_bytes", "Memory of the directory.", bytes as f64);
        out.gauge(
            "tollgate_directory_build_seconds",
            "How long its reading took at the start; 0: not done.",
            took as f64 / 1000.0,
        );
        let uses = accounts.key_uses();
        out.counters(
            "tollgate_key_uses_total",
            "Times of a key's last use: noted once a minute, and what became of them.",
            vec![result("noted", &uses.noted), result("written", &uses.written), result("dropped", &uses.dropped)],
        );
        out.gauge("tollgate_key_uses_waiting", "Keys whose last use waits to be written.", uses.waiting() as f64);
        out.gauge("tollgate_mail_queue", "Letters that wait to be sent.", accounts.letters_waiting() as f64);
    });
}

fn add_audit_probe(core: &Core) {
    let counters = core.audit.counters();
    core.metrics.probe(move |out: &mut Exposition| {
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed) as f64;
        let state = |name: &str, n: &AtomicU64| (vec![("state", name.to_owned())], read(n));
        out.counters(
            "tollgate_audit_records_total",
            "Records of the audit trail.",
            vec![
                state("emitted", &counters.emitted),
                state("written", &counters.written),
                state("dropped", &counters.dropped),
            ],
        );
        out.counter(
            "tollgate_audit_folded_total",
            "Equal acts of strangers that were counted into another record.",
            read(&counters.folded),
        );
        out.gauge("tollgate_audit_queue_records", "Records that wait to be written.", read(&counters.queued));
        out.gauge("tollgate_audit_segments", "Segment files.", read(&counters.segments));
        out.counter(
            "tollgate_audit_write_errors_total",
            "Failed writes and syncs of the audit trail.",
            read(&counters.write_errors),
        );
        out.gauge("tollgate_audit_sequence", "Number of the newest record on disk.", read(&counters.sequence));
    });
}
