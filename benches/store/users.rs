//! A million users: what they take on disk and in memory, and how long a start, a check, a backup and a restore are.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tollgate::app;
use tollgate::config::Config;
use tollgate::domain::ids::{CredentialId, SecretMac, UserId};
use tollgate::store::{Batch, tables};

use crate::site::{Site, bytes_in, mib, row, seconds};
use crate::{BACKENDS, Choice, Fallible};

const USERS_PER_COMMIT: u64 = 500;

/// The meters of a plan, after `n` calls.
pub fn meters(n: u64) -> Value {
    let meter = |granted: u64, spent: u64, period: &str| {
        let spent = spent.min(granted) * 1_000_000;
        let granted = granted * 1_000_000;
        json!({"b": granted - spent, "h": 0, "s": spent, "g": granted, "r": granted, "p": period, "l": 1_768_435_200})
    };
    json!([["conversations", meter(10, n % 10, "daily")], ["credits", meter(1_000, n % 1_000, "monthly")]])
}

/// What registering a user writes.
fn user(id: u64, random: &mut fastrand::Rng, batch: &mut Batch) -> Fallible<()> {
    let user = UserId(id);
    let (name, email) = (format!("user{id:07}"), format!("user{id:07}@example.com"));
    let hash: String = std::iter::repeat_with(|| random.alphanumeric()).take(64).collect();
    let row = json!({
        "id": id, "username": name, "name": "Somebody Else", "email": email, "user_type": "Personal",
        "about_me": "Writes about ships and the sea", "hobbies": "sailing, reading", "plan": "starter",
        "status": "active", "suspended_reason": null, "email_verified": true,
        "password_hash": format!("$argon2id$v=19$m=19456,t=2,p=1${hash}"), "created_at": 1_768_478_400_000u64,
        "last_login": null
    });
    let mut mac = [0u8; 32];
    random.fill(&mut mac);
    let (mac, key) = (SecretMac(mac), CredentialId(random.u64(..)));
    let key_row = json!({
        "id": key, "user": user, "name": "default", "shown": "pe-rqrF", "created_at": 1_768_478_400_000u64,
        "expires_at": null, "limits": {"scopes": [], "models": [], "cidrs": [], "per_minute": null}
    });
    let number = tables::encode(&user)?;
    batch
        .put(tables::user(user), tables::encode(&row)?)
        .put(tables::user_by_name(&name), number.clone())
        .put(tables::user_by_email(&email), number)
        .put(tables::meters(user), tables::encode(&json!({"meters": meters(id)}))?)
        .put(tables::api_key(&mac), tables::encode(&key_row)?)
        .put(tables::key_of_user(user, key), mac.0.to_vec());
    Ok(())
}

pub fn run(choice: &Choice) -> Fallible<()> {
    println!("\n## {} users: account, two meters, one key each\n", choice.count);
    for backend in BACKENDS {
        let folder = tempfile::Builder::new().prefix("tollgate-store-").tempdir_in(&choice.dir)?;
        let site = Site::new(folder.path().join("site"), backend)?;
        println!("### {backend}\n\n| | |\n|---|--:|");
        measure(choice, &site, backend, folder.path())?;
        println!();
    }
    Ok(())
}

fn measure(choice: &Choice, site: &Site, backend: &str, folder: &Path) -> Fallible<()> {
    let took = load(choice, site)?;
    row("written, users a second", format!("{:.0}", choice.count as f64 / took.as_secs_f64()));
    row("on disk, with 32 to 48 MiB of log", mib(bytes_in(&site.data())?));

    let (server, first) = site.serve()?;
    row("start to ready, after loading", first);
    server.stop()?;
    let (server, again) = site.serve()?;
    row("start to ready, after a stop", again);
    row("memory when ready", format!("{:.0} MiB", server.resident_mib()?));
    drop(server);
    let (server, killed) = site.serve()?;
    row("start to ready, after a kill", killed);
    row("ledger verify, server running", seconds(site.run(&["ledger", "verify"])?.took));
    row("memory after reading every row", format!("{:.0} MiB", server.resident_mib()?));
    let file = folder.join("backup");
    let name = file.to_string_lossy();
    row("backup, server running", seconds(site.run(&["backup", &name])?.took));
    row("backup file", mib(File::open(&file)?.metadata()?.len()));
    row("memory after a backup", format!("{:.0} MiB", server.resident_mib()?));
    server.stop()?;
    let other = Site::new(folder.join("other"), backend)?;
    row("restore", seconds(other.run(&["restore", &name])?.took));
    row("on disk after a restore", mib(bytes_in(&other.data())?));
    let (server, restored) = other.serve()?;
    row("start to ready, after a restore", restored);
    server.stop()
}

fn load(choice: &Choice, site: &Site) -> Fallible<Duration> {
    let config = Config::load(Some(&site.config()), std::iter::empty()).map_err(|error| error.to_string())?;
    let store = app::open_store(&config)?;
    let mut random = fastrand::Rng::with_seed(7);
    let began = Instant::now();
    let mut id = 0;
    while id < choice.count {
        let mut batch = Batch::default();
        for _ in 0..USERS_PER_COMMIT.min(choice.count - id) {
            id += 1;
            user(id, &mut random, &mut batch)?;
        }
        batch.put(tables::counter("user"), tables::encode(&id)?);
        store.commit(&batch)?;
    }
    drop(store);
    Ok(began.elapsed())
}
