//! Overrides from the environment: our own names, and those of the systems we take over.
//!
//! Owns the table of foreign names. Never reads the process's environment itself; the caller passes it in.

use toml::{Table, Value};

const PREFIX: &str = "TOLLGATE__";

/// How a foreign variable's text becomes our value.
#[derive(Clone, Copy, Debug)]
enum Convert {
    Same,
    /// `localhost,10.0.0.1` → a list of networks.
    AddressList,
    Minutes,
    /// `{"main": 5, "reset": 5}`, the first key being the balance's.
    Meter(&'static str),
    /// A number of seconds as a time.
    Seconds,
    /// A number of MiB as bytes.
    Mebibytes,
}

/// The variables of the older systems that mean something here, and the keys they set.
///
/// The same table stands in the README; a test compares them.
const FOREIGN: &[(&str, &str, Convert)] = &[
    ("USER_REGISTRATION_ENABLED", "accounts.registration", Convert::Same),
    ("EMAIL_VERIFICATION_ENABLED", "accounts.email_verification", Convert::Same),
    ("EMAIL_VERIFICATION_REQUIRED", "accounts.email_verification", Convert::Same),
    ("DEFAULT_USER_CREDITS", "plans.free.meters.credits", Convert::Meter("main")),
    ("DEFAULT_USER_LIMITS", "plans.free.meters.conversations", Convert::Meter("conversation_limit")),
    ("QUOTA_FREE_IMAGES", "plans.free.meters.images", Convert::Meter("")),
    ("QUOTA_FREE_VIDEOS", "plans.free.meters.videos", Convert::Meter("")),
    ("QUOTA_FREE_MESSAGES", "plans.free.meters.messages", Convert::Meter("")),
    ("QUOTA_PRO_IMAGES", "plans.professional.meters.images", Convert::Meter("")),
    ("QUOTA_PRO_VIDEOS", "plans.professional.meters.videos", Convert::Meter("")),
    ("QUOTA_PRO_MESSAGES", "plans.professional.meters.messages", Convert::Meter("")),
    ("IP_WHITELIST_ENABLED", "access.whitelist", Convert::Same),
    ("ENABLE_IP_WHITELIST", "access.whitelist", Convert::Same),
    ("WHITELISTED_IPS", "access.allow", Convert::AddressList),
    ("RATE_LIMIT_PER_MINUTE", "limits.per_ip_per_minute", Convert::Same),
    ("MAX_FAILED_LOGIN_ATTEMPTS", "accounts.max_failed_logins", Convert::Same),
    ("ACCOUNT_LOCKOUT_DURATION_HOURS", "accounts.lockout_hours", Convert::Same),
    ("SESSION_DURATION_HOURS", "accounts.session_hours", Convert::Same),
    ("REFRESH_TOKEN_DURATION_DAYS", "accounts.refresh_days", Convert::Same),
    ("ADMIN_SESSION_DURATION_HOURS", "accounts.admin_session_hours", Convert::Same),
    ("SUPPORT_SESSION_DURATION_HOURS", "accounts.support_session_hours", Convert::Same),
    ("MESSAGE_LOGGING_ENABLED", "journal.enabled", Convert::Same),
    ("MESSAGE_BATCH_SIZE", "journal.batch_size", Convert::Same),
    ("MESSAGE_FLUSH_INTERVAL_SECONDS", "journal.flush_interval", Convert::Seconds),
    ("BATCH_LOG_INTERVAL_MINUTES", "journal.flush_interval", Convert::Minutes),
    ("MESSAGE_MAX_QUEUE_SIZE", "journal.queue_records", Convert::Same),
    ("MEMORY_THRESHOLD_MB", "journal.spill_above_bytes", Convert::Mebibytes),
    ("DAILY_USAGE_RESET_HOUR", "ledger.reset_hour", Convert::Same),
];

/// The foreign names and the keys they set, for the documentation's test.
pub fn foreign_names() -> impl Iterator<Item = (&'static str, &'static str)> {
    FOREIGN.iter().map(|(name, key, _)| (*name, *key))
}

/// Puts the overrides into `table`; ours win over foreign ones. Says whether there were any.
///
/// # Errors
/// A value that cannot be understood, with the variable's name.
pub(super) fn apply(table: &mut Table, variables: impl Iterator<Item = (String, String)>) -> Result<bool, String> {
    let mut ours = Vec::new();
    let mut foreign = Vec::new();
    for (name, value) in variables {
        if let Some(path) = name.strip_prefix(PREFIX) {
            let path = path.split("__").map(str::to_ascii_lowercase).collect::<Vec<_>>();
            ours.push((name, path, parse_value(&value)));
        } else if let Some((_, key, convert)) = FOREIGN.iter().find(|(known, ..)| *known == name) {
            let path = key.split('.').map(str::to_owned).collect::<Vec<_>>();
            let parsed = convert_value(*convert, &value).map_err(|why| format!("{name}: {why}"))?;
            foreign.push((name, path, parsed));
        }
    }
    let any = !ours.is_empty() || !foreign.is_empty();
    ours.sort_by(|a, b| a.0.cmp(&b.0));
    let touches_plans = foreign.iter().chain(&ours).any(|(_, path, _)| path.first().is_some_and(|p| p == "plans"));
    if touches_plans {
        // Otherwise one meter from the environment would replace all of a default plan's.
        let plans = Table::try_from(super::raw::default_plans()).map_err(|e| e.to_string())?;
        let described = table.entry("plans").or_insert_with(|| Value::Table(Table::new()));
        for (name, plan) in plans {
            if let Value::Table(described) = described {
                described.entry(name).or_insert(plan);
            }
        }
    }
    for (name, path, value) in foreign.into_iter().chain(ours) {
        set(table, &path, value).map_err(|why| format!("{name}: {why}"))?;
    }
    Ok(any)
}

/// TOML where it is TOML (numbers, booleans, lists, tables), else a string.
fn parse_value(text: &str) -> Value {
    let wrapped: Result<Table, _> = toml::from_str(&format!("v = {text}"));
    wrapped.ok().and_then(|mut t| t.remove("v")).unwrap_or_else(|| Value::String(text.to_owned()))
}

fn convert_value(convert: Convert, text: &str) -> Result<Value, String> {
    match convert {
        Convert::Same => Ok(parse_value(&text.to_ascii_lowercase())),
        Convert::Seconds => whole_number(text).map(Value::Integer),
        Convert::Mebibytes => whole_number(text).map(|m| Value::Integer(m.saturating_mul(1 << 20))),
        Convert::Minutes => whole_number(text).map(|m| Value::Integer(m.saturating_mul(60))),
        Convert::AddressList => text
            .split(',')
            .map(str::trim)
            .filter(|entry| !entry.is_empty())
            .map(|entry| {
                let entry = if entry == "localhost" { "127.0.0.1" } else { entry };
                as_network(entry).map(Value::String)
            })
            .collect::<Result<Vec<_>, _>>()
            .map(Value::Array),
        Convert::Meter(balance_key) => {
            let (grant, reset) = match serde_json::from_str::<serde_json::Value>(text) {
                Ok(serde_json::Value::Number(n)) => (n.as_f64(), n.as_f64()),
                Ok(object) => {
                    (object.get(balance_key).and_then(|v| v.as_f64()), object.get("reset").and_then(|v| v.as_f64()))
                }
                Err(e) => return Err(format!("is not JSON: {e}")),
            };
            let grant = grant.ok_or_else(|| format!("needs a number under \"{balance_key}\""))?;
            let mut meter = Table::new();
            meter.insert("grant".into(), Value::Float(grant));
            meter.insert("reset".into(), Value::Float(reset.unwrap_or(grant)));
            meter.insert("period".into(), Value::String("daily".into()));
            Ok(Value::Table(meter))
        }
    }
}

fn whole_number(text: &str) -> Result<i64, String> {
    text.trim().parse().map_err(|_| format!("\"{text}\" is not a whole number"))
}

/// An address alone stands for the network of just that address.
fn as_network(text: &str) -> Result<String, String> {
    if text.parse::<ipnet::IpNet>().is_ok() {
        return Ok(text.to_owned());
    }
    let address: std::net::IpAddr =
        text.parse().map_err(|_| format!("\"{text}\" is neither an address nor a network"))?;
    Ok(ipnet::IpNet::from(address).to_string())
}

fn set(table: &mut Table, path: &[String], value: Value) -> Result<(), String> {
    let Some((last, parents)) = path.split_last() else { return Err("names no key".into()) };
    let mut at = table;
    let mut rest = parents.iter().peekable();
    while let Some(key) = rest.next() {
        let entry = at.entry(key.clone()).or_insert_with(|| Value::Table(Table::new()));
        at = match entry {
            Value::Table(inner) => inner,
            Value::Array(items) => {
                let index = rest.next().and_then(|i| i.parse::<usize>().ok());
                let item = index.and_then(|i| items.get_mut(i)).and_then(Value::as_table_mut);
                item.ok_or_else(|| {
                    format!(
                        "{key} is a list: go on with the number of an entry, as in {PREFIX}{}__0__…",
                        key.to_uppercase()
                    )
                })?
            }
            _ => return Err(format!("{key} has no keys below it")),
        };
    }
    at.insert(last.clone(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn apply_one(name: &str, value: &str) -> Config {
        Config::parse("t", "", std::iter::once((name.to_owned(), value.to_owned()))).unwrap()
    }

    #[test]
    fn every_foreign_name_sets_its_key() {
        let sample = |convert: Convert, key: &str| match convert {
            Convert::Meter("") => "7",
            Convert::Meter("main") => "{\"main\": 7, \"reset\": 9}",
            Convert::Meter(_) => "{\"conversation_limit\": 7, \"reset\": 9}",
            Convert::AddressList => "127.0.0.1,localhost,10.0.0.0/8",
            Convert::Same if key.ends_with("registration") || key.ends_with("enabled") => "False",
            Convert::Same if key.ends_with("verification") || key.ends_with("whitelist") => "true",
            _ => "7",
        };
        for (name, key, convert) in FOREIGN {
            let mut table = Table::new();
            let pair = ((*name).to_owned(), sample(*convert, key).to_owned());
            assert!(apply(&mut table, std::iter::once(pair.clone())).unwrap(), "{name}");
            Config::parse("t", "", std::iter::once(pair)).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        assert_eq!(apply_one("RATE_LIMIT_PER_MINUTE", "90").limits.per_ip_per_minute, 90);
        assert!(!apply_one("USER_REGISTRATION_ENABLED", "False").accounts.registration);
        assert_eq!(apply_one("MESSAGE_FLUSH_INTERVAL_SECONDS", "600").journal.flush_interval.0.as_secs(), 600);
        assert_eq!(apply_one("BATCH_LOG_INTERVAL_MINUTES", "10").journal.flush_interval.0.as_secs(), 600);
        assert_eq!(apply_one("MESSAGE_BATCH_SIZE", "25").journal.batch_size, 25);
        assert_eq!(apply_one("MESSAGE_MAX_QUEUE_SIZE", "1000").journal.queue_records, 1000);
        assert_eq!(apply_one("MEMORY_THRESHOLD_MB", "512").journal.spill_above_bytes, 512 << 20);
        assert!(!apply_one("MESSAGE_LOGGING_ENABLED", "false").journal.enabled);
        assert_eq!(apply_one("WHITELISTED_IPS", "127.0.0.1,localhost").access.allow.len(), 2);
        let config = apply_one("DEFAULT_USER_LIMITS", "{\"conversation_limit\": 3, \"reset\": 4}");
        let meter = config.plan("free").unwrap().meters.iter().find(|m| m.name.as_str() == "conversations").unwrap();
        assert_eq!((meter.grant.whole_units(), meter.reset.whole_units()), (3, 4));
    }

    #[test]
    fn our_name_wins_over_a_foreign_one() {
        let both = [("TOLLGATE__LIMITS__PER_IP_PER_MINUTE", "5"), ("RATE_LIMIT_PER_MINUTE", "90")];
        let config = Config::parse("t", "", both.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))).unwrap();
        assert_eq!(config.limits.per_ip_per_minute, 5);
    }

    #[test]
    fn a_bad_value_names_the_variable() {
        let pair = ("WHITELISTED_IPS".to_owned(), "somewhere".to_owned());
        assert!(Config::parse("t", "", std::iter::once(pair)).unwrap_err().reason.starts_with("WHITELISTED_IPS"));
    }
}
