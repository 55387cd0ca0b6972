//! Whether the time of a refused login tells what is behind a name: attack 5, measured and not tested, because a machine that
//! is busy with something else would turn it red.
//!
//! Owns the accounts it asks for: one as registration makes it, two with hashes of older systems, one without a password, and
//! names that nobody has. One after the other they are asked for in turns, so that whatever else the machine does hits all.

use std::path::Path;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tollgate::app::Core;
use tollgate::clock::{Clock, UnixMillis};
use tollgate::config::Config;
use tollgate::domain::ids::UserId;
use tollgate::domain::user::User;
use tollgate::store::{Batch, tables};

use crate::figures::{median, percentile};
use crate::lab::{Lab, PASSWORD, Server};
use crate::load::{Connection, request};
use crate::{Choice, Fallible};

const SAMPLES: usize = 500;
/// Answers of the first rounds are not counted: the gateway learns in them which bcrypt there is.
const WARM_UP: usize = 5;
const WRONG: &str = "Wrong-Guess-1";
/// Sixteen times cheaper than what is usual, and so easier to tell from argon2id.
const BCRYPT_COST: u32 = 8;
const OPEN: &str = "[access]\nblock_after_failures = 0\n[accounts]\nmax_failed_logins = 0\n";
const LOCKING: &str = "[access]\nblock_after_failures = 0\n";

pub async fn run(lab: &Lab, choice: &Choice) -> Fallible<()> {
    if choice.nginx_only {
        return Ok(());
    }
    let samples = if choice.quick { SAMPLES / 10 } else { SAMPLES };
    println!("enumeration: refused logins, {samples} of each kind in turns");
    let server = lab.tollgate_with_users("open", OPEN, legacy_users).await?;
    compare(
        &server,
        samples,
        &[
            ("known, argon2id", "bench@example.com"),
            ("unknown", "nobody@example.com"),
            ("known, bcrypt of an older system", "bcrypt@example.com"),
            ("known, salted SHA-256 of an older system", "sha256@example.com"),
            ("known, without a password", "social@example.com"),
        ],
    )
    .await?;
    drop(server);
    let server = lab.tollgate_with_users("locking", LOCKING, legacy_users).await?;
    // The first of them lock; the warm-up has them.
    compare(
        &server,
        samples,
        &[
            ("known, locked", "bench@example.com"),
            ("unknown, locked", "nobody@example.com"),
            ("known, bcrypt, locked", "bcrypt@example.com"),
        ],
    )
    .await
}

async fn compare(server: &Server, samples: usize, kinds: &[(&str, &str)]) -> Fallible<()> {
    let mut connection = Connection::open(server.addr).await?;
    let mut times = vec![Vec::new(); kinds.len()];
    let mut told = vec![String::new(); kinds.len()];
    for round in 0..samples + WARM_UP {
        for turn in 0..kinds.len() {
            // Who comes first in a round changes.
            let at = (round + turn) % kinds.len();
            let body = serde_json::json!({"email": kinds[at].1, "password": WRONG}).to_string();
            let request = request("POST", "/v1/users/login", &[("content-type", "application/json")], &body);
            let began = Instant::now();
            let reply = connection.exchange(&request).await?;
            let took = began.elapsed();
            if round >= WARM_UP {
                let body = String::from_utf8_lossy(connection.body(&reply)).into_owned();
                let message = serde_json::from_str::<serde_json::Value>(&body)?["message"].to_string();
                let said = format!("{} {message}", reply.status);
                if told[at].is_empty() {
                    told[at] = said;
                } else if told[at] != said {
                    return Err(format!("{}: {said} after {}", kinds[at].0, told[at]).into());
                }
                times[at].push(took);
            }
        }
    }
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    let medians: Vec<f64> = times.iter().map(|times| median(times.iter().map(|t| millis(*t)).collect())).collect();
    println!("{:<42} {:>10} {:>10} {:>9}", "login as", "median ms", "p95 ms", "differs");
    for (((name, _), median), times) in kinds.iter().zip(&medians).zip(&mut times) {
        times.sort_unstable();
        let p95 = millis(percentile(times, 0.95));
        println!("{name:<42} {median:>10.3} {p95:>10.3} {:>8.2} %", (median / medians[0] - 1.0) * 100.0);
    }
    let same = told.iter().all(|said| *said == told[0]);
    println!("answers: {}, {}", told[0], if same { "the same to all" } else { "NOT the same to all" });
    Ok(())
}

/// Users as other systems' imports bring them.
fn legacy_users(data_dir: &Path) -> Fallible<()> {
    let config = Config::parse("bench", &format!("data_dir = {data_dir:?}"), std::iter::empty())?;
    let core = Core::open(&config, Clock::system(), 0)?;
    let digest: String = Sha256::digest(format!("salt{PASSWORD}")).iter().map(|byte| format!("{byte:02x}")).collect();
    let hashes = [
        ("bcrypt", Some(bcrypt::hash(PASSWORD, BCRYPT_COST)?)),
        ("sha256", Some(format!("sha256$salt${digest}"))),
        ("social", None),
    ];
    let mut batch = Batch::default();
    for (number, (name, hash)) in (1u64..).zip(hashes) {
        let (id, email) = (UserId(number), format!("{name}@example.com"));
        let fresh = User::new(name.into(), "A User".into(), email.as_str().into(), "free".into(), UnixMillis(0));
        batch
            .put(tables::user(id), tables::encode(&User { id, password_hash: hash, ..fresh })?)
            .put(tables::user_by_name(name), tables::encode(&id)?)
            .put(tables::user_by_email(&email), tables::encode(&id)?);
    }
    batch.put(tables::counter("user"), tables::encode(&3u64)?);
    core.committer.commit_blocking(batch)?;
    core.close();
    Ok(())
}
