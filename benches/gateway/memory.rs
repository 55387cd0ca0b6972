//! Memory with many users: a store that knows a million keys, of which a hundred thousand call.
//!
//! Owns the made-up users: their rows are written straight into the store, because a million registrations would measure the
//! password hash. Keys are found under the pepper the server itself will use.

use std::path::Path;
use std::sync::Arc;

use tollgate::actors::user::ledger::{self, Account, Command, Recovery};
use tollgate::app::Core;
use tollgate::clock::{Clock, UnixMillis};
use tollgate::config::Config;
use tollgate::domain::ids::{CredentialId, UserId};
use tollgate::domain::key::{ApiKey, KeyLimits};
use tollgate::domain::meters::{MeterName, Micro, ResetHour, ResetPeriod};
use tollgate::domain::user::User;
use tollgate::store::{Batch, tables};

use crate::figures::mebibytes;
use crate::lab::{Lab, Server};
use crate::load::{self, Connection};
use crate::{Choice, Fallible};

const KNOWN: u64 = 1_000_000;
const ACTIVE: u64 = 100_000;
const USERS_A_COMMIT: u64 = 2_000;
const CALLERS: u64 = 64;

pub async fn run(lab: &Lab, choice: &Choice) -> Fallible<()> {
    if choice.nginx_only {
        return Ok(());
    }
    let (known, active) = if choice.quick { (KNOWN / 10, ACTIVE / 10) } else { (KNOWN, ACTIVE) };
    println!("memory: {known} known keys, {active} active users");
    let server = lab.tollgate_over(|data_dir| populate(data_dir, known)).await?;
    println!("tollgate  fresh, over a store with {known} users: {:.1} MiB", mebibytes(server.process.resident()?));
    call_all(&server, active).await?;
    println!("tollgate  after a call of each of {active} users: {:.1} MiB", mebibytes(server.process.resident()?));
    Ok(())
}

fn key_of(user: u64) -> String {
    format!("pe-{user:032}")
}

fn populate(data_dir: &Path, known: u64) -> Fallible<()> {
    let text = format!("data_dir = {data_dir:?}");
    let config = Config::parse("bench", &text, std::iter::empty())?;
    let core = Core::open(&config, Clock::system(), 0)?;
    let row = tables::encode(&account()?.to_row())?;
    let mut from = 1;
    while from <= known {
        let to = (from + USERS_A_COMMIT).min(known + 1);
        let mut batch = Batch::default();
        for number in from..to {
            add_user(&core, number, &row, &mut batch)?;
        }
        core.committer.commit_blocking(batch)?;
        from = to;
    }
    core.close();
    Ok(())
}

fn account() -> Fallible<Account> {
    let meter = MeterName::parse("conversations").ok_or("a meter's name")?;
    let amount = Micro::units(1000);
    let set = Command::Set { meter: &meter, balance: amount, reset: amount, period: Some(ResetPeriod::Daily) };
    let mut account = Account::default();
    ledger::step(&mut account, Clock::system().now(), ResetHour::default(), Recovery::Charge, set);
    Ok(account)
}

fn add_user(core: &Core, number: u64, meters: &[u8], batch: &mut Batch) -> Fallible<()> {
    let (id, key_id) = (UserId(number), CredentialId(number));
    let mac = core.pepper.mac(key_of(number).as_bytes());
    let username: Arc<str> = Arc::from(format!("user-number-{number}"));
    let email: Arc<str> = Arc::from(format!("user-number-{number}@example.com"));
    let user = User {
        id,
        email_verified: true,
        password_hash: Some("x".repeat(97)),
        ..User::new(username.clone(), "A User".into(), email.clone(), Arc::from("free"), UnixMillis(0))
    };
    let key = ApiKey {
        id: key_id,
        user: id,
        name: "default".into(),
        shown: "pe-0000".into(),
        created_at: UnixMillis(0),
        expires_at: None,
        limits: KeyLimits::default(),
        sealed: None,
        rotated_to: None,
    };
    batch
        .put(tables::user(id), tables::encode(&user)?)
        .put(tables::user_by_name(&username), tables::encode(&id)?)
        .put(tables::user_by_email(&email), tables::encode(&id)?)
        .put(tables::api_key(&mac), tables::encode(&key)?)
        .put(tables::key_of_user(id, key_id), tables::encode(&"0".repeat(64))?)
        .put(tables::meters(id), meters.to_vec());
    Ok(())
}

/// One call of each, a few callers at a time.
async fn call_all(server: &Server, active: u64) -> Fallible<()> {
    let mut callers = Vec::new();
    for caller in 0..CALLERS {
        let numbers: Vec<u64> = (1..=active).filter(|n| n % CALLERS == caller).collect();
        let addr = server.addr;
        callers.push(tokio::spawn(async move {
            let mut connection = Connection::open(addr).await.map_err(|e| e.to_string())?;
            for number in numbers {
                let request = load::chat_request_with(&key_of(number));
                let reply = connection.exchange(&request).await.map_err(|e| e.to_string())?;
                if reply.status != 200 {
                    return Err(String::from_utf8_lossy(connection.body(&reply)).into_owned());
                }
            }
            Ok(())
        }));
    }
    for caller in callers {
        caller.await??;
    }
    Ok(())
}
