//! `create-admin`.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::output::say;
use super::{Failure, client, load_config};
use crate::accounts::passwords::{Password, Rule};
use crate::accounts::staff::NewStaff;
use crate::accounts::{Accounts, operator};
use crate::actors::audit::{Action, Actor, Record};
use crate::app::{Core, StartError};
use crate::clock::Clock;
use crate::config::Config;
use crate::domain::session::StaffRole;
use crate::error::Reject;
use crate::store::StoreError;

/// Makes an admin: on the files of a stopped server, or through a running one's side port. The first is a superadmin.
///
/// # Errors
/// The password does not fit, the name is taken, or neither way is open.
pub fn create(file: Option<&Path>, username: &str, email: &str) -> Result<(), Failure> {
    let config = load_config(file)?;
    let password = read_password()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let role = match Core::open(&config, Clock::system(), 0) {
        Ok(core) => {
            let made = runtime.block_on(create_on(&core, username, email, password));
            core.close();
            made?
        }
        Err(StartError::Store(StoreError::Busy(_))) => {
            runtime.block_on(create_through(&config, username, email, &password))?
        }
        Err(other) => return Err(other.into()),
    };
    say!("{username} is now {role}")?;
    Ok(())
}

fn read_password() -> Result<String, Failure> {
    if let Ok(password) = std::env::var("TOLLGATE_ADMIN_PASSWORD") {
        return Ok(password);
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Usage(
            "set TOLLGATE_ADMIN_PASSWORD: there is no terminal to ask for the password on".into(),
        ));
    }
    let password = rpassword::prompt_password("Password: ")?;
    if password != rpassword::prompt_password("Again: ")? {
        return Err(Failure::Usage("the two passwords differ".into()));
    }
    Ok(password)
}

async fn create_on(core: &Core, username: &str, email: &str, password: String) -> Result<String, Failure> {
    let refused = |reject: Reject| Failure::Failed(reject.describe());
    let first = !core.accounts.has_staff().map_err(refused)?;
    let role = if first { StaffRole::Superadmin } else { StaffRole::Admin };
    let password = Password::new(password).map_err(refused)?;
    let new = NewStaff {
        username: username.into(),
        name: username.into(),
        email: email.into(),
        password,
        role,
        rule: Rule::Composition,
    };
    let record = Record::of(Action::StaffCreated).by(Actor::operator()).with("role", role.as_str());
    let act = move |accounts: Arc<Accounts>| async move { accounts.create_staff(new).await };
    core.accounts.audited(record, act, |made, record| record.on(made)).await.map_err(refused)?;
    Ok(role.as_str().to_owned())
}

async fn create_through(config: &Config, username: &str, email: &str, password: &str) -> Result<String, Failure> {
    let missing =
        || Failure::Failed("a server is running on this data, but it left no way in; is data_dir the same?".into());
    let way = operator::read(&config.data_dir)?.ok_or_else(missing)?;
    let body = json!({"username": username, "name": username, "email": email, "password": password});
    let answer =
        client::call(way.admin_addr, "POST", "/v1/admin-panel/create-admin", Some(&way.token), Some(body)).await?;
    if answer.status >= 300 {
        return Err(Failure::Failed(answer.message()));
    }
    // The server decides: the first of all is a superadmin.
    let role = answer.json()["admin"]["role"].as_str().map(str::to_owned);
    role.ok_or_else(|| Failure::Failed("the server did not say what it made".into()))
}
