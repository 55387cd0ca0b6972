//! The composition root: config → store → actors → services → listeners → drain.
//!
//! Owns the order in which things start and stop. Never holds a rule of its own.

mod descriptors;
mod probes;
mod state;
mod timed;

pub use descriptors::Shares;
pub use state::{
    Core, StartError, audit_key, committer_for, embedded, journal_dir, journal_keys, load_pepper, open_store,
};

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use axum::Router;
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tower::ServiceExt;

use self::state::io_error;
use self::timed::SWEEP;
use crate::accounts::passwords::{Password, Rule};
use crate::accounts::{Accounts, Settings};
use crate::actors::audit::{Action, Actor, Audit, Outcome, Record, Target};
use crate::actors::scheduler::TaskState;
use crate::api;
use crate::backup;
use crate::clock::Clock;
use crate::compat;
use crate::config::{Config, Listen};
use crate::domain::ids::StaffId;
use crate::error::Reject;
use crate::gateway::authenticate::Authenticator;
use crate::gateway::buffers::{self, Bounds, Budget};
use crate::gateway::connections::Connections;
use crate::gateway::deadline::Deadlines;
use crate::gateway::pipeline::{LongLogins, Shared, Worker};
use crate::gateway::policy::Policy;
use crate::gateway::rate::RateStates;
use crate::gateway::{LocalApi, accept, upstream};
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::machine;
use crate::telemetry::seldom::Seldom;

/// The first superadmin, made when the store has no staff yet.
pub struct FirstAdmin {
    pub username: String,
    pub password: String,
    pub email: Option<String>,
    /// What the password must meet.
    pub rule: Rule,
}

/// A running gateway.
pub struct App {
    core: Core,
    shared: Arc<Shared>,
    control: Option<Runtime>,
    workers: Vec<JoinHandle<()>>,
    /// Descriptors that are not connections, as of the start.
    files: usize,
    side_gate: Arc<api::serve::SideGate>,
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
        let shares = descriptors::take(&config);
        descriptors::tell(&shares);
        let policy = Arc::new(Policy::new(&config, &core.metrics, workers, None));
        // Until the public listeners are there.
        let ready = Arc::new(AtomicBool::new(false));
        let scheduler = timed::work(&core);
        let vitals = probes::vitals(&core, &config, scheduler.states());
        let shared = Arc::new(share(&core, &config, policy.clone(), control.handle().clone(), vitals));
        let side_gate = Arc::new(side_gate(&core.clock, &shared));
        put_in_force(&shares, &config, &shared, &side_gate);
        watch_health(&control, &policy, &core.clock);
        probes::add_probes(&core, &shared);
        probes::add_connection_probe(&core, &shared, &side_gate);

        let (stop_accepting, stopped) = watch::channel(false);
        let (end_workers, ended) = watch::channel(false);
        let (end_side_port, side_ended) = watch::channel(false);
        probes::add_task_probe(&core, scheduler.states());
        let running = (ready.clone(), scheduler.states());
        let admin = start_side_port(&control, &core, &config, running, side_gate.clone(), side_ended)?;
        core.accounts
            .open_operator(&config.data_dir, admin)
            .map_err(io_error("cannot write the operator's file into data_dir/run"))?;
        let mut app = Self {
            public: config.listen.public,
            core,
            shared,
            control: Some(control),
            workers: Vec::new(),
            files: machine::files_open(),
            side_gate,
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
        let taken = format!(
            "cannot listen on listen.public {}; if the address is in use, another program has it, perhaps another tollgate",
            self.public
        );
        let listeners = accept::bind(self.public, self.config.listen.backlog, self.config.worker_count())
            .map_err(io_error(taken))?;
        for (index, listener) in listeners.into_iter().enumerate() {
            // Port 0 has become one that was free.
            self.public = listener.local_addr().map_err(io_error("cannot read the public address"))?;
            let deadlines = self.shared.connections.workers()[index].clone();
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
                let_memory_go();
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
        self.shared.budget.set_bounds(Bounds::of_calls(&config.limits));
        self.shared.local_budget.set_bounds(Bounds::of_local_calls(&config.limits));
        let shares = Shares::of(machine::open_files().soft, self.files, &config);
        put_in_force(&shares, &config, &self.shared, &self.side_gate);
        self.shared.policy.store(policy);
        self.core.metrics.config_reloaded(true);
        tracing::info!("the config was reloaded");
        let listen = Listen { admin_hosts: config.listen.admin_hosts.clone(), ..self.config.listen.clone() };
        self.config = Config { listen, data_dir: self.config.data_dir.clone(), ..config };
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
        while self.shared.connections.open() > 0 && began.elapsed() < grace {
            // Again and again: a connection may have become idle since.
            for deadlines in self.shared.connections.workers() {
                deadlines.wake_all();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let cut = self.shared.connections.open();
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
    let deadlines = (0..config.worker_count()).map(|_| Deadlines::new(core.clock.clone()));
    Shared {
        clock: core.clock.clone(),
        policy: ArcSwap::new(policy),
        auth,
        users: core.users.clone(),
        addresses: core.accounts.addresses().clone(),
        blocks: core.accounts.blocks().clone(),
        rates: RateStates::new(config.limits.max_tracked_rates),
        budget: Budget::new(Bounds::of_calls(&config.limits)),
        local_budget: Budget::new(Bounds::of_local_calls(&config.limits)),
        committer: core.committer.clone(),
        journal: core.journal.clone(),
        metrics: core.metrics.clone(),
        access_log: AccessLog::start(&config.telemetry, io::stdout()),
        local: Arc::new(Local(api::public_router(core.accounts.clone(), compat::public_paths(&core.accounts, vitals)))),
        long_logins: LongLogins::default(),
        control,
        draining: AtomicBool::new(false),
        connections: Connections::new(deadlines.collect()),
        accept_troubles: Seldom::default(),
    }
}

/// Who may have how many connections, and by which names the side port is called.
fn put_in_force(shares: &Shares, config: &Config, shared: &Shared, side_gate: &api::serve::SideGate) {
    shared.connections.set_room(shares.clients);
    shared.policy.load().sockets.set_room(shares.upstreams);
    side_gate.reconfigure(shares.side_port, &config.listen.admin_hosts);
}

/// The side port's gate, which may close clients' idle connections and those kept to upstreams for a descriptor.
fn side_gate(clock: &Clock, shared: &Arc<Shared>) -> api::serve::SideGate {
    let shared = Arc::downgrade(shared);
    api::serve::SideGate::new(clock.clone(), move || {
        if let Some(shared) = shared.upgrade() {
            shared.connections.make_room(None);
            shared.policy.load().close_idle_upstreams();
        }
    })
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

/// Has the allocator give pages that are free to the system. It does so when a thread that has used it ends, or while memory is
/// asked for; after a flood, when nobody asks for any, it would keep them.
fn let_memory_go() {
    let used = || drop(std::hint::black_box(Box::new(0u64)));
    if let Err(error) = std::thread::Builder::new().name("tollgate-memory".into()).spawn(used) {
        tracing::debug!(%error, "no thread for giving memory back");
    }
}

/// What a worker has kept and does not need is given back now and then.
async fn prune_pools(worker: Arc<Worker>) {
    let mut ticks = tokio::time::interval(SWEEP);
    loop {
        ticks.tick().await;
        buffers::trim();
        let now = worker.shared.clock.monotonic();
        for upstream in &worker.shared.policy.load().upstreams {
            for endpoint in &upstream.endpoints {
                endpoint.prune(worker.index, now, &upstream.config);
                endpoint.tell_rest(now, &upstream.config.name);
            }
        }
    }
}

fn start_side_port(
    control: &Runtime,
    core: &Core,
    config: &Config,
    (ready, tasks): (Arc<AtomicBool>, Vec<Arc<TaskState>>),
    gate: Arc<api::serve::SideGate>,
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
    let router = api::side_router(state, dialects, gate.hosts().clone());
    let listener = control.block_on(tokio::net::TcpListener::bind(config.listen.admin)).map_err(io_error(format!(
        "cannot listen on listen.admin {}; if the address is in use, another program has it, perhaps another tollgate",
        config.listen.admin
    )))?;
    let address = listener.local_addr().map_err(io_error("cannot read the side port's address"))?;
    control.spawn(api::serve::serve(listener, router, gate, ended));
    Ok(address)
}

/// Gauges that are read when somebody asks.
/// What can be called on both ports, with all dialects.
pub fn documents() -> api::Documents {
    let (public, side) = compat::documents();
    api::Documents { public: api::public_document(public), side: api::side_document(side) }
}
