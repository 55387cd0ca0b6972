//! `/health` of the user management backend.
//!
//! Owns its answer. What it says is read by whoever puts the program together; nothing here knows of stores or threads.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::accounts::Accounts;

/// How the program and its machine are doing.
#[derive(Clone, Copy, Debug, Default)]
pub struct VitalSigns {
    pub store_is_well: bool,
    /// Bytes of the machine.
    pub memory_total: u64,
    pub memory_available: u64,
    /// Bytes of the file system that holds `data_dir`.
    pub disk_total: u64,
    pub disk_free: u64,
    /// Conversations that wait for the disk.
    pub messages_waiting: u64,
    pub scheduler_is_running: bool,
}

pub type Vitals = Arc<dyn Fn() -> VitalSigns + Send + Sync>;

impl VitalSigns {
    /// Where nothing runs: for the descriptions.
    pub fn unknown() -> Vitals {
        Arc::new(Self::default)
    }
}

pub(super) fn paths(vitals: Vitals) -> OpenApiRouter<Arc<Accounts>> {
    OpenApiRouter::new().routes(routes!(health)).layer(Extension(vitals))
}

#[derive(Serialize, ToSchema)]
#[schema(as = usermgmt::Memory)]
struct Memory {
    used_percent: f64,
    used_mb: f64,
    available_mb: f64,
}

#[derive(Serialize, ToSchema)]
#[schema(as = usermgmt::Disk)]
struct Disk {
    used_percent: f64,
    free_gb: f64,
}

#[derive(Serialize, ToSchema)]
#[schema(as = usermgmt::Health)]
struct Health {
    /// `healthy` or `unhealthy`.
    #[schema(example = "healthy")]
    status: &'static str,
    /// UTC, without a zone.
    #[schema(example = "2026-01-15T12:00:00")]
    timestamp: String,
    /// `healthy` or `unhealthy`.
    #[schema(example = "healthy")]
    database: &'static str,
    memory: Memory,
    disk: Disk,
    message_buffer_size: u64,
    scheduler_running: bool,
}

/// To one decimal.
fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn percent(used: u64, total: u64) -> f64 {
    if total == 0 { 0.0 } else { rounded(used as f64 * 100.0 / total as f64) }
}

fn word(is_well: bool) -> &'static str {
    if is_well { "healthy" } else { "unhealthy" }
}

/// How the service and its machine are doing.
#[utoipa::path(get, path = "/health", tag = "usermgmt", security(()),
    responses((status = 200, body = Health), (status = 503, description = "The store has failed.", body = Health)))]
async fn health(State(accounts): State<Arc<Accounts>>, Extension(vitals): Extension<Vitals>) -> Response {
    let signs = vitals();
    let memory_used = signs.memory_total.saturating_sub(signs.memory_available);
    let mb = |bytes: u64| rounded(bytes as f64 / 1_048_576.0);
    let body = Health {
        status: word(signs.store_is_well),
        timestamp: accounts.clock().now().rfc3339().trim_end_matches('Z').to_owned(),
        database: word(signs.store_is_well),
        memory: Memory {
            used_percent: percent(memory_used, signs.memory_total),
            used_mb: mb(memory_used),
            available_mb: mb(signs.memory_available),
        },
        disk: Disk {
            used_percent: percent(signs.disk_total.saturating_sub(signs.disk_free), signs.disk_total),
            free_gb: rounded(signs.disk_free as f64 / 1_073_741_824.0),
        },
        message_buffer_size: signs.messages_waiting,
        scheduler_running: signs.scheduler_is_running,
    };
    let status = if signs.store_is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, axum::Json(body)).into_response()
}
