//! What registration, login and the list of users cost while there are a thousand, a hundred thousand and a million users.
//!
//! Owns the made-up users, whose rows are written straight into the store. The time of password hashes is set aside: the
//! gateway says how much it spent on them, and what is left of a call's time is what the number of users could make longer.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tollgate::app::Core;
use tollgate::clock::{Clock, UnixMillis};
use tollgate::config::Config;
use tollgate::domain::ids::{CredentialId, UserId};
use tollgate::domain::key::{ApiKey, KeyLimits};
use tollgate::domain::user::{Status, User};
use tollgate::store::{Batch, tables};

use crate::figures::{mebibytes, percentile};
use crate::lab::{Lab, PASSWORD, Server};
use crate::load::{Connection, request};
use crate::{Choice, Fallible};

const COUNTS: [u64; 3] = [1_000, 100_000, 1_000_000];
const ACCOUNTS: usize = 100;
const LISTS: usize = 50;
const USERS_A_COMMIT: u64 = 2_000;
const FILL_LIMIT: Duration = Duration::from_secs(120);
const PAGE: u64 = 50;
const FIRST: [&str; 16] = [
    "Anna", "Boris", "Chiara", "Dmitri", "Elena", "Farid", "Greta", "Hassan", "Irina", "Jonas", "Katya", "Liang",
    "Mira", "Noor", "Olga", "Pavel",
];
const LAST: [&str; 16] = [
    "Abel", "Brandt", "Costa", "Dubois", "Ekberg", "Fischer", "Garcia", "Horvat", "Ivanov", "Jensen", "Kowalski",
    "Lopez", "Meyer", "Novak", "Okafor", "Petrov",
];
const HOSTS: [&str; 5] = ["example.com", "mail.example.org", "post.example.net", "inbox.example.com", "example.edu"];
const PLANS: [&str; 4] = ["free", "starter", "standard", "professional"];

/// The columns of the table: a time for each number of users.
type Rows = Vec<(String, Vec<(Duration, Duration)>)>;

pub async fn run(lab: &Lab, choice: &Choice) -> Fallible<()> {
    if choice.nginx_only {
        return Ok(());
    }
    let counts = COUNTS.map(|count| if choice.quick { (count / 10).max(100) } else { count });
    let samples = |full: usize| if choice.quick { full / 5 } else { full };
    println!(
        "accounts: {} registrations, {} logins, {} lists of each kind",
        samples(ACCOUNTS),
        samples(ACCOUNTS),
        samples(LISTS)
    );
    let mut rows = Rows::new();
    for count in counts {
        let server = lab.tollgate_with_admin(|data_dir| populate(data_dir, count)).await?;
        let mut desk = Desk::open(&server).await?;
        desk.wait_until_filled(count).await?;
        desk.people(&server, samples(ACCOUNTS), &mut rows).await?;
        desk.lists(count, samples(LISTS), &mut rows).await?;
    }
    print!("{:<44}", "median / p99 in ms, with so many users:");
    counts.iter().for_each(|count| print!(" {count:>17}"));
    println!();
    for (what, times) in rows {
        print!("{what:<44}");
        for (median, p99) in times {
            print!(" {:>8.2} /{:>7.2}", median.as_secs_f64() * 1e3, p99.as_secs_f64() * 1e3);
        }
        println!();
    }
    Ok(())
}

fn note(rows: &mut Rows, what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let cell = (percentile(&times, 0.50), percentile(&times, 0.99));
    match rows.iter_mut().find(|(name, _)| name == what) {
        Some((_, cells)) => cells.push(cell),
        None => rows.push((what.to_owned(), vec![cell])),
    }
}

/// A connection to the side port, with an admin's session.
struct Desk<'a> {
    server: &'a Server,
    connection: Connection,
    token: String,
}

impl<'a> Desk<'a> {
    async fn open(server: &'a Server) -> Fallible<Self> {
        let mut desk = Self { server, connection: Connection::open(server.admin).await?, token: String::new() };
        let login = json!({"username": "bench-admin", "password": PASSWORD});
        let (answer, _) = desk.ask("POST", "/v1/admin-panel/login", Some(&login)).await?;
        desk.token = answer["session"]["session_token"].as_str().ok_or_else(|| answer.to_string())?.to_owned();
        Ok(desk)
    }

    async fn ask(&mut self, method: &str, path: &str, body: Option<&Value>) -> Fallible<(Value, Duration)> {
        let bearer = format!("Bearer {}", self.token);
        let headers = [("content-type", "application/json"), ("authorization", bearer.as_str())];
        let request = request(method, path, &headers, &body.map(Value::to_string).unwrap_or_default());
        let began = Instant::now();
        let reply = self.connection.exchange(&request).await?;
        let took = began.elapsed();
        let answer: Value = serde_json::from_slice(self.connection.body(&reply))?;
        if reply.status == 200 { Ok((answer, took)) } else { Err(format!("{path}: {answer}").into()) }
    }

    async fn metric(&mut self, name: &str) -> Fallible<f64> {
        let reply = self.connection.exchange(&request("GET", "/metrics", &[], "")).await?;
        let text = String::from_utf8_lossy(self.connection.body(&reply)).into_owned();
        let line = text.lines().find_map(|line| line.strip_prefix(name).and_then(|rest| rest.strip_prefix(' ')));
        Ok(line.ok_or_else(|| format!("no {name}"))?.parse()?)
    }

    async fn wait_until_filled(&mut self, count: u64) -> Fallible<()> {
        let began = Instant::now();
        let mut took = 0.0;
        while took == 0.0 && began.elapsed() < FILL_LIMIT {
            tokio::time::sleep(Duration::from_millis(20)).await;
            took = self.metric("tollgate_directory_build_seconds").await?;
        }
        let bytes = self.metric("tollgate_directory_bytes").await?;
        println!(
            "{count} users: directory filled in {took:.2} s, {:.1} MiB or {:.0} bytes a user; process {:.0} MiB",
            bytes / f64::from(1 << 20),
            bytes / count as f64,
            mebibytes(self.server.process.resident()?),
        );
        Ok(())
    }

    /// Registers users and logs each of them in, less the time of their hashes.
    async fn people(&mut self, server: &Server, samples: usize, rows: &mut Rows) -> Fallible<()> {
        let mut connection = Connection::open(server.addr).await?;
        for (what, path) in [("register, hash aside", "/v1/users/register"), ("login, hash aside", "/v1/users/login")] {
            let mut times = Vec::new();
            let mut hashed = self.metric("tollgate_password_hash_seconds_total").await?;
            for n in 0..samples {
                let email = format!("newcomer-{n}@example.com");
                let body = json!({
                    "username": format!("newcomer-{n}"), "name": "New Comer", "email": email, "password": PASSWORD,
                });
                let request = request("POST", path, &[("content-type", "application/json")], &body.to_string());
                let began = Instant::now();
                let reply = connection.exchange(&request).await?;
                let took = began.elapsed();
                if reply.status != 200 {
                    return Err(String::from_utf8_lossy(connection.body(&reply)).into_owned().into());
                }
                let since = self.metric("tollgate_password_hash_seconds_total").await?;
                times.push(took.saturating_sub(Duration::from_secs_f64(since - hashed)));
                hashed = since;
            }
            note(rows, what, times);
        }
        Ok(())
    }

    async fn lists(&mut self, count: u64, samples: usize, rows: &mut Rows) -> Fallible<()> {
        let mut random = fastrand::Rng::with_seed(11);
        let path = |query: String| format!("/v1/admin-panel/users?page_size={PAGE}&{query}");
        let last = count.div_ceil(PAGE);
        type Query<'q> = &'q dyn Fn(&mut fastrand::Rng) -> String;
        let kinds: [(&str, Query<'_>); 8] = [
            ("search: one user by part of his name", &|r| format!("search={}", part_of(r.u64(1..=count)))),
            ("search: a part that one in 16 has", &|r| format!("search={}", LAST[r.usize(..16)])),
            ("search: a part that all have, last page", &|_| format!("search=example&page={last}")),
            ("search: what nobody has", &|r| format!("search=zq{}", r.u32(..))),
            ("search and filter, sorted by name", &|r| format!("search={}&plan=free&sort=name", LAST[r.usize(..16)])),
            ("filter, newest first", &|_| "status=active&verified=true&sort=-created_at".into()),
            ("sorted by email, a page in the middle", &|_| format!("sort=email&page={}", (last / 2).max(1))),
            ("by number, last page", &|_| format!("page={last}")),
        ];
        for (what, query) in kinds {
            let mut times = Vec::new();
            for _ in 0..samples {
                let (answer, took) = self.ask("GET", &path(query(&mut random)), None).await?;
                if !answer["total"].is_u64() {
                    return Err(format!("{what}: {answer}").into());
                }
                times.push(took);
            }
            note(rows, what, times);
        }
        Ok(())
    }
}

fn username(number: u64) -> String {
    let pick = |list: &[&str; 16], by: u64| list[(number / by % 16) as usize].to_lowercase();
    format!("{}.{}{number}", pick(&FIRST, 1), pick(&LAST, 16)).replace('.', "-")
}

/// What is in the names of this user alone, or of few.
fn part_of(number: u64) -> String {
    let name = username(number);
    name[name.len().saturating_sub(9)..].to_owned()
}

fn populate(data_dir: &Path, count: u64) -> Fallible<()> {
    let config = Config::parse("bench", &format!("data_dir = {data_dir:?}"), std::iter::empty())?;
    let core = Core::open(&config, Clock::system(), 0)?;
    let mut from = 1;
    while from <= count {
        let to = (from + USERS_A_COMMIT).min(count + 1);
        let mut batch = Batch::default();
        for number in from..to {
            add_user(&core, number, &mut batch)?;
        }
        batch.put(tables::counter("user"), tables::encode(&(to - 1))?);
        core.committer.commit_blocking(batch)?;
        from = to;
    }
    core.close();
    Ok(())
}

fn add_user(core: &Core, number: u64, batch: &mut Batch) -> Fallible<()> {
    let (id, key) = (UserId(number), CredentialId(number));
    let scattered = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let of = |list: &[&'static str], by: u64| list[(scattered / by % list.len() as u64) as usize];
    let (name, email) = (username(number), format!("{}@{}", username(number), of(&HOSTS, 3)));
    let full = format!("{} {}", FIRST[(number % 16) as usize], LAST[(number / 16 % 16) as usize]);
    let user = User {
        id,
        email_verified: !scattered.is_multiple_of(3),
        status: if scattered.is_multiple_of(17) { Status::Suspended } else { Status::Active },
        password_hash: Some("x".repeat(97)),
        last_login: Some(UnixMillis(1_768_478_400_000 + scattered % 10_000_000_000)),
        ..User::new(
            name.as_str().into(),
            full,
            email.as_str().into(),
            of(&PLANS, 5).into(),
            UnixMillis(1_700_000_000_000 + number * 1000),
        )
    };
    let row = ApiKey {
        id: key,
        user: id,
        name: "default".into(),
        shown: "pe-0000".into(),
        created_at: user.created_at,
        expires_at: None,
        limits: KeyLimits::default(),
        sealed: None,
        rotated_to: None,
    };
    let mac = core.pepper.mac(format!("pe-{number:032}").as_bytes());
    let hex: String = mac.0.iter().map(|byte| format!("{byte:02x}")).collect();
    batch
        .put(tables::user(id), tables::encode(&user)?)
        .put(tables::user_by_name(&name), tables::encode(&id)?)
        .put(tables::user_by_email(&email), tables::encode(&id)?)
        .put(tables::api_key(&mac), tables::encode(&row)?)
        .put(tables::key_of_user(id, key), tables::encode(&hex)?);
    Ok(())
}
