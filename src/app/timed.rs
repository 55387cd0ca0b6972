//! What is done now and then, and how often.

use std::time::Duration;

use crate::accounts::usage;
use crate::actors::scheduler::{Scheduler, When};
use crate::error::Reject;

use super::Core;

/// How often states that have run out are cleared away.
pub(super) const SWEEP: Duration = Duration::from_secs(5);
/// How often it is written when keys were used; a crash forgets as much.
const KEY_USES: Duration = Duration::from_secs(20);
const HOUR: Duration = Duration::from_secs(3600);

/// All of it, to be run by whoever starts the process.
pub(super) fn work(core: &Core) -> Scheduler {
    let counted = |what: &'static str, n: u64| if n == 0 { String::new() } else { format!("{n} {what}") };
    let told = |reject: Reject| format!("{reject:?}");
    let with = |core: &Core| core.accounts.clone();
    let (rules, tokens, deleted, sessions) = (with(core), with(core), with(core), with(core));
    let quotas = with(core);
    let (usage, keys, key_uses, users) = (with(core), with(core), with(core), core.users.clone());
    Scheduler::new(core.clock.clone())
        .with("address_rules", When::Every(SWEEP), move || {
            let accounts = rules.clone();
            async move {
                accounts.sweep().await;
                Ok(String::new())
            }
        })
        .with("idempotency_keys", When::Every(SWEEP), move || {
            let users = users.clone();
            async move {
                users.forget_old_keys().await;
                Ok(String::new())
            }
        })
        .with("key_uses", When::Every(KEY_USES), move || {
            let accounts = key_uses.clone();
            async move { accounts.write_key_uses().await.map(|_| String::new()).map_err(told) }
        })
        .with("one_time_tokens", When::Every(HOUR), move || {
            let accounts = tokens.clone();
            async move { accounts.purge_one_time().await.map(|n| counted("tokens removed", n)).map_err(told) }
        })
        .with("deleted_users", When::Every(HOUR), move || {
            let accounts = deleted.clone();
            async move { accounts.purge_deleted().await.map(|n| counted("deleted users' data removed", n)).map_err(told) }
        })
        .with("address_quotas", When::Every(HOUR), move || {
            let accounts = quotas.clone();
            async move { accounts.purge_quotas().await.map(|n| counted("addresses forgotten", n)).map_err(told) }
        })
        .with("daily_usage", When::Daily { hour: 0 }, move || {
            let accounts = usage.clone();
            async move { accounts.close_day().await.map(|day| day.as_ref().map(usage::told).unwrap_or_default()).map_err(told) }
        })
        .with("api_keys", When::Every(6 * HOUR), move || {
            let accounts = keys.clone();
            async move { accounts.purge_keys().await.map(|n| counted("expired keys removed", n)).map_err(told) }
        })
        .with("sessions", When::Every(6 * HOUR), move || {
            let accounts = sessions.clone();
            async move { accounts.purge_sessions().await.map(|n| counted("expired sessions removed", n)).map_err(told) }
        })
}
