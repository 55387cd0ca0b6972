//! Commits through the store thread: how long each caller waits, and how many get through.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tollgate::domain::ids::UserId;
use tollgate::store::committer::{CommitPace, Committer};
use tollgate::store::redb::RedbStore;
use tollgate::store::sled::SledStore;
use tollgate::store::wal::{LogOptions, LogOwner, LoggedStore};
use tollgate::store::{Batch, Order, Row, Store, StoreError, tables};
use tollgate::telemetry::metrics::Metrics;

use crate::{BACKENDS, Choice, Fallible};

const WAITERS: [u64; 3] = [1, 64, 1_000];
const CACHE: u64 = 16 << 20;

/// Counts what reaches the store under test.
struct Counting {
    inner: Box<dyn Store>,
    commits: Arc<AtomicU64>,
}

impl Store for Counting {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.get(key)
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize, order: Order) -> Result<Vec<Row>, StoreError> {
        self.inner.range(from, to, limit, order)
    }

    fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.inner.commit(batch)
    }
}

fn open(backend: &str, logged: bool, folder: &Path) -> Fallible<Box<dyn Store>> {
    let inner: Box<dyn Store> = match backend {
        "sled" => Box::new(SledStore::open(&folder.join("store"), CACHE)?),
        _ => Box::new(RedbStore::open(&folder.join("store"), CACHE)?),
    };
    if !logged {
        return Ok(inner);
    }
    let owner = LogOwner { store: [1; 16], accepts_format_1: false };
    let options = LogOptions { folder: folder.join("wal"), owner, file_bytes: 16 << 20 };
    Ok(Box::new(LoggedStore::open(options, inner, None)?))
}

/// A user's account as his actor writes it.
fn account(id: u64, n: u64) -> Fallible<Batch> {
    let mut batch = Batch::default();
    batch.put(tables::meters(UserId(id)), tables::encode(&json!({"meters": super::users::meters(n)}))?);
    Ok(batch)
}

async fn wait_again_and_again(committer: Committer, id: u64, stop: Arc<AtomicBool>) -> Vec<Duration> {
    let mut waited = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let Ok(batch) = account(id, waited.len() as u64) else { return waited };
        let began = Instant::now();
        if committer.commit(batch).await.is_err() {
            return waited;
        }
        waited.push(began.elapsed());
    }
    waited
}

pub fn run(choice: &Choice) -> Fallible<()> {
    println!("\n## Commits of one account row each; at least 1 ms between two, as by default\n");
    println!("| backend | log | waiters | wait p50 | p99 | commits/s | rows/s |");
    println!("|---|---|--:|--:|--:|--:|--:|");
    for logged in [true, false] {
        for backend in BACKENDS {
            for waiters in WAITERS {
                measure(choice, backend, logged, waiters)?;
            }
        }
    }
    Ok(())
}

fn measure(choice: &Choice, backend: &str, logged: bool, waiters: u64) -> Fallible<()> {
    let folder = tempfile::Builder::new().prefix("tollgate-store-").tempdir_in(&choice.dir)?;
    let commits = Arc::<AtomicU64>::default();
    let store = Counting { inner: open(backend, logged, folder.path())?, commits: commits.clone() };
    let gap = Duration::from_millis(1);
    let pace = CommitPace { gap, row_gap: gap, max_pending: 100_000 };
    let committer = Committer::start(Arc::new(store), pace, Arc::new(Metrics::new(0)))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let stop = Arc::<AtomicBool>::default();
    let began = Instant::now();
    let tasks: Vec<_> =
        (1..=waiters).map(|id| runtime.spawn(wait_again_and_again(committer.clone(), id, stop.clone()))).collect();
    std::thread::sleep(choice.round());
    stop.store(true, Ordering::Relaxed);
    let mut waited = Vec::new();
    for task in tasks {
        waited.extend(runtime.block_on(task)?);
    }
    let seconds = began.elapsed().as_secs_f64();
    committer.stop();
    waited.sort_unstable();
    let at = |share: f64| waited.get(((waited.len() - 1) as f64 * share) as usize).copied().unwrap_or_default();
    if waited.is_empty() {
        return Err(format!("{backend}: nothing was committed").into());
    }
    println!(
        "| {backend} | {} | {waiters} | {:.2} ms | {:.2} ms | {:.0} | {:.0} |",
        if logged { "yes" } else { "no" },
        at(0.5).as_secs_f64() * 1e3,
        at(0.99).as_secs_f64() * 1e3,
        commits.load(Ordering::Relaxed) as f64 / seconds,
        waited.len() as f64 / seconds,
    );
    Ok(())
}
