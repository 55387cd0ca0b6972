//! What the metrics and the health pages read of the parts that are running.
//!
//! Owns the names of gauges that are looked at when somebody asks. Holds parts weakly where they end before the metrics do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Core;
use super::timed::SWEEP;
use crate::actors::scheduler::TaskState;
use crate::api::serve::SideGate;
use crate::clock::UnixMillis;
use crate::compat;
use crate::config::Config;
use crate::gateway::buffers::Full;
use crate::gateway::pipeline::Shared;
use crate::telemetry::machine;
use crate::telemetry::metrics::Exposition;

pub(super) fn add_probes(core: &Core, shared: &Arc<Shared>) {
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
        let (budget, local) = (&shared.budget, &shared.local_budget);
        out.gauge("tollgate_in_flight_bytes", "Bytes held for calls in flight.", budget.used() as f64);
        out.gauge(
            "tollgate_local_in_flight_bytes",
            "Bytes held for logins and what else is answered here.",
            local.used() as f64,
        );
        out.gauge(
            "tollgate_in_flight_owners",
            "Users and addresses of calls whose bodies are waited for or long.",
            (budget.owners() + local.owners()) as f64,
        );
        let refused = Full::ALL.iter().zip(budget.refused()).zip(local.refused());
        out.counters(
            "tollgate_bytes_refused_total",
            "Calls for whose bytes there was no room: in all, or of their user's or address's share.",
            refused.map(|((full, a), b)| (vec![("share", full.as_str().to_owned())], (a + b) as f64)).collect(),
        );
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

/// Connections of all kinds, and how many there may be.
pub(super) fn add_connection_probe(core: &Core, shared: &Arc<Shared>, side_gate: &Arc<SideGate>) {
    let (weak, side_gate) = (Arc::downgrade(shared), side_gate.clone());
    core.metrics.probe(move |out: &mut Exposition| {
        let Some(shared) = weak.upgrade() else { return };
        let (connections, policy) = (&shared.connections, shared.policy.load());
        out.gauge(
            "tollgate_connections_max",
            "Client connections that there may be: limits.max_connections, or fewer by the process's descriptors.",
            connections.most(&policy.limits) as f64,
        );
        out.gauge(
            "tollgate_connection_addresses",
            "Addresses that have a connection, or a call through a trusted proxy.",
            connections.addresses() as f64,
        );
        out.counter(
            "tollgate_connections_evicted_total",
            "Client connections without a whole request that were closed to make room.",
            connections.asked_to_leave() as f64,
        );
        out.gauge("tollgate_upstream_connections", "Connections to upstreams.", policy.sockets.open() as f64);
        out.gauge(
            "tollgate_upstream_connections_max",
            "Connections to upstreams that there may be, by the process's descriptors.",
            policy.sockets.room() as f64,
        );
        out.gauge("tollgate_admin_connections", "Connections of the side port.", side_gate.open() as f64);
        out.gauge(
            "tollgate_admin_connections_max",
            "Connections of the side port that there may be.",
            side_gate.most() as f64,
        );
        out.counter(
            "tollgate_admin_connections_evicted_total",
            "Connections of the side port without a whole request that were closed to make room.",
            side_gate.evicted() as f64,
        );
        out.counter(
            "tollgate_admin_connections_refused_total",
            "Connections of the side port closed at once: too many.",
            side_gate.refused() as f64,
        );
    });
}

/// How the program and its machine are doing, for the health page of a dialect.
pub(super) fn vitals(core: &Core, config: &Config, tasks: Vec<Arc<TaskState>>) -> compat::Vitals {
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

pub(super) fn add_task_probe(core: &Core, tasks: Vec<Arc<TaskState>>) {
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
