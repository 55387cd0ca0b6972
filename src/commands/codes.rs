//! `codes generate`, `codes export`, `codes stats`: on the files of a stopped server, or through a running one.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::output::{Counting, say, to_file};
use super::progress::Progress;
use super::{Failure, ask, ask_about, client, load_config, no_such_user, on_either, refused};
use crate::accounts::Accounts;
use crate::accounts::codes::{CodeStats, CodesFormat, NewCodes};
use crate::accounts::operator::OperatorFile;
use crate::actors::audit::{Action, Actor, Record};
use crate::clock::UnixMillis;
use crate::config::Config;
use crate::domain::ids::UserId;
use crate::domain::user::User;

/// Whose codes.
#[derive(Clone, Copy, Debug)]
pub enum Whose<'a> {
    /// Number, username or email.
    User(&'a str),
    Everybody,
}

/// What `codes generate` is asked for.
pub struct Wanted<'a> {
    pub whose: Whose<'a>,
    pub count: u64,
    pub expires_at: Option<&'a str>,
    pub category: Option<&'a str>,
}

fn user_of(accounts: &Accounts, name: &str) -> Result<User, Failure> {
    let unknown = || no_such_user(name);
    let id = match name.parse() {
        Ok(number) => Some(UserId(number)),
        Err(_) => accounts.find_user(name).map_err(refused)?,
    };
    accounts.user(id.ok_or_else(unknown)?).map_err(|_| unknown())
}

/// The user in a path; whatever else is in a name is escaped.
fn path_of(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~@+".contains(&byte);
    let escaped =
        name.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") });
    format!("/v1/admin-panel/users/{}/codes", escaped.collect::<String>())
}

/// Gives codes to a user, or a list of his own to everybody.
///
/// # Errors
/// There is no such user, he would have too many, or nobody could be asked. Then nobody has got any.
pub fn generate(file: Option<&Path>, wanted: &Wanted<'_>) -> Result<(), Failure> {
    let config = load_config(file)?;
    let Wanted { whose, count, expires_at, category } = *wanted;
    let wrong = || Failure::Usage("--expires-at: must be a time such as 2026-12-31T23:59:59Z".into());
    let ends = expires_at.map(|text| UnixMillis::parse_rfc3339(text).ok_or_else(wrong)).transpose()?;
    let new = NewCodes { count, expires_at: ends, category: category.map(str::to_owned) };
    // One commit, however many: there is nothing to wait for but the disk.
    let mut progress = Progress::default();
    progress.show(|| format!("{count} codes …"));
    let on_files = |runtime: &Runtime, accounts: &Arc<Accounts>| {
        let record = Record::of(Action::CodesGenerated).by(Actor::operator()).with("count", count);
        match whose {
            Whose::User(name) => {
                let user = user_of(accounts, name)?;
                let act = {
                    let new = new.clone();
                    move |accounts: Arc<Accounts>| async move { accounts.generate_codes(user.id, new).await }
                };
                let done = accounts.audited(record.on(&user), act, |list, record| record.with("list", list.id));
                runtime.block_on(done).map_err(refused)?;
                Ok(1)
            }
            Whose::Everybody => {
                let new = new.clone();
                let act = move |accounts: Arc<Accounts>| async move { accounts.generate_codes_for_all(new).await };
                let done = accounts.audited(record, act, |users, record| record.with("users", *users));
                runtime.block_on(done).map_err(refused)
            }
        }
    };
    let through = |runtime: &Runtime, server: &OperatorFile| {
        let body = json!({"count": count, "expires_at": ends.map(UnixMillis::rfc3339), "category": category});
        match whose {
            Whose::User(name) => ask_about(runtime, server, name, ("POST", &path_of(name), Some(body))).map(|_| 1),
            Whose::Everybody => {
                let made = ask(runtime, server, "POST", "/v1/admin-panel/codes", Some(body))?;
                Ok(made["users"].as_u64().unwrap_or(0))
            }
        }
    };
    let users = on_either(&config, on_files, through)?;
    drop(progress);
    match whose {
        Whose::User(name) => say!("{count} codes for {name}; `tollgate codes export {name} csv` shows them")?,
        Whose::Everybody => say!("{count} codes for each of {users} users")?,
    }
    Ok(())
}

/// Writes a user's codes to a file, or to standard output.
///
/// # Errors
/// There is no such user, or the codes cannot be written whole; then there is no file.
pub fn export(file: Option<&Path>, user: &str, format: CodesFormat, to: Option<&Path>) -> Result<(), Failure> {
    let config = load_config(file)?;
    to_file(to, "codes", |out| write(&config, user, format, out))
}

fn write(config: &Config, user: &str, format: CodesFormat, out: &mut Counting<'_>) -> Result<(), Failure> {
    // Two ways, of which one is gone.
    let out = std::cell::RefCell::new(out);
    let on_files = |runtime: &Runtime, accounts: &Arc<Accounts>| {
        let user = user_of(accounts, user)?;
        let record = Record::of(Action::CodesExported).by(Actor::operator()).on(&user);
        runtime.block_on(accounts.audited(record, |_| async { Ok(()) }, |(), record| record)).map_err(refused)?;
        Ok(accounts.write_codes(user.id, format, &mut *out.borrow_mut()).map(drop)?)
    };
    let through = |runtime: &Runtime, server: &OperatorFile| {
        let form = if format == CodesFormat::Csv { "csv" } else { "json" };
        let path = format!("{}/export?format={form}", path_of(user));
        let sink = |piece: &[u8]| out.borrow_mut().write_all(piece);
        let answer = runtime.block_on(client::download(server.admin_addr, &path, &server.token, sink))?;
        match answer.status {
            404 => Err(no_such_user(user)),
            300.. => Err(Failure::Failed(answer.message())),
            _ => Ok(()),
        }
    };
    on_either(config, on_files, through)
}

/// Prints counts of one user's codes, or of all.
///
/// # Errors
/// There is no such user, or nobody could be asked.
pub fn stats(file: Option<&Path>, user: Option<&str>) -> Result<(), Failure> {
    let config = load_config(file)?;
    let on_files = |runtime: &Runtime, accounts: &Arc<Accounts>| match user {
        Some(name) => {
            let stats = accounts.code_stats(user_of(accounts, name)?.id).map_err(refused)?;
            Ok((shown(stats), None))
        }
        None => {
            let all = runtime.block_on(accounts.all_code_stats()).map_err(refused)?;
            Ok((shown(all.codes), Some(all.users)))
        }
    };
    let through = |runtime: &Runtime, server: &OperatorFile| {
        let answer = match user {
            Some(name) => ask_about(runtime, server, name, ("GET", &format!("{}/stats", path_of(name)), None))?,
            None => ask(runtime, server, "GET", "/v1/admin-panel/codes/stats", None)?,
        };
        let users = answer["users"].as_u64();
        Ok((answer, users))
    };
    let (counts, users) = on_either(&config, on_files, through)?;
    if let Some(users) = users {
        say!("users with codes: {users}")?;
    }
    let percent = counts["percent_used"].as_f64().unwrap_or(0.0);
    say!("total: {}\navailable: {}\nused: {}", counts["total"], counts["available"], counts["used"])?;
    say!("expired: {}\npercent used: {percent}", counts["expired"])?;
    Ok(())
}

fn shown(stats: CodeStats) -> Value {
    json!({
        "total": stats.total, "available": stats.available(), "used": stats.used, "expired": stats.expired,
        "percent_used": stats.percent_used(),
    })
}
