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
    /// As it stands: a name, an address, a secret.
    Text,
    /// Whatever it says, this is meant.
    Means(&'static str),
    /// `false` sets 0; `true` leaves the default.
    OffIsZero,
    /// `true` sets this; `false` leaves the default.
    OnIs(&'static str),
    /// `HS256`, or our own.
    Algorithm,
}

/// The variables of the older systems that mean something here, and the keys they set; one may set several. What is empty
/// is not there: their templates are full of such.
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
    ("FIREWALL_ENABLED", "access.block_after_failures", Convert::OffIsZero),
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
    ("AUTO_CREDIT_RESET_ENABLED", "ledger.auto_reset", Convert::Same),
    ("DAILY_USAGE_RESET_HOUR", "ledger.reset_hour", Convert::Same),
    ("SECRET_KEY", "accounts.tokens.hs256_key", Convert::Text),
    ("ALGORITHM", "accounts.tokens.algorithm", Convert::Algorithm),
    ("ACCESS_TOKEN_EXPIRE_MINUTES", "compat.usermgmt_token_minutes", Convert::Same),
    ("ENCRYPTION_KEY", "accounts.keys.vault_key", Convert::Text),
    ("DEBUG", "telemetry.log", Convert::OnIs("debug")),
    ("SMTP_HOST", "mail.host", Convert::Text),
    ("SMTP_HOST", "mail.transport", Convert::Means("smtp")),
    ("SMTP_PORT", "mail.port", Convert::Same),
    ("SMTP_USERNAME", "mail.username", Convert::Text),
    ("SMTP_PASSWORD", "mail.password", Convert::Text),
    ("FROM_EMAIL", "mail.from", Convert::Text),
    ("SENDGRID_API_KEY", "mail.sendgrid_api_key", Convert::Text),
    ("SENDGRID_API_KEY", "mail.transport", Convert::Means("smtp")),
    ("SENDGRID_FROM_EMAIL", "mail.from", Convert::Text),
    ("SENDGRID_FROM_NAME", "mail.from_name", Convert::Text),
    ("GOOGLE_CLIENT_ID", "oauth.google.client_id", Convert::Text),
    ("GOOGLE_CLIENT_SECRET", "oauth.google.client_secret", Convert::Text),
    ("GITHUB_CLIENT_ID", "oauth.github.client_id", Convert::Text),
    ("GITHUB_CLIENT_SECRET", "oauth.github.client_secret", Convert::Text),
];

/// Variables of theirs that have nothing to set here, and why.
const IDLE: &[(&str, &str)] = &[
    ("DATABASE_URL", "users are in data_dir; `tollgate users import` brings those of another database"),
    ("BCRYPT_ROUNDS", "passwords are hashed with argon2id"),
    ("OPENAI_API_KEY", "an upstream's credential is `credential` of its [[upstreams]] entry"),
    ("FAL_KEY", "an upstream's credential is `credential` of its [[upstreams]] entry"),
];

/// The variables that are set and set nothing, each with why: somebody may rely on one.
pub fn idle_names(variables: impl Iterator<Item = (String, String)>) -> Vec<(&'static str, &'static str)> {
    let known =
        |(name, value): (String, String)| IDLE.iter().find(|(idle, _)| *idle == name && !value.is_empty()).copied();
    variables.filter_map(known).collect()
}

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
            continue;
        }
        for (_, key, convert) in FOREIGN.iter().filter(|(known, ..)| *known == name && !value.trim().is_empty()) {
            let path = key.split('.').map(str::to_owned).collect::<Vec<_>>();
            if let Some(parsed) = convert_value(*convert, &value).map_err(|why| format!("{name}: {why}"))? {
                foreign.push((name.clone(), path, parsed));
            }
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

/// None: the variable leaves things as they are.
fn convert_value(convert: Convert, text: &str) -> Result<Option<Value>, String> {
    let flag = || match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        _ => Err(format!("\"{text}\" is neither true nor false")),
    };
    let value = match convert {
        Convert::Text => Ok(Value::String(text.to_owned())),
        Convert::Means(word) => Ok(Value::String(word.to_owned())),
        Convert::OffIsZero => return Ok((!flag()?).then_some(Value::Integer(0))),
        Convert::OnIs(word) => return Ok(flag()?.then(|| Value::String(word.to_owned()))),
        Convert::Algorithm => match text.trim() {
            "HS256" => Ok(Value::String("HS256".to_owned())),
            "EdDSA" => Ok(Value::String("EdDSA".to_owned())),
            other => Err(format!("\"{other}\" is not an algorithm for tokens here; HS256 or EdDSA")),
        },
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
    };
    value.map(Some)
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

    /// What a variable is set to in an operator's file, and what the key it sets holds then. Each row of the table has one.
    const EXAMPLES: &[(&str, &str, &str, &str)] = &[
        ("USER_REGISTRATION_ENABLED", "False", "accounts.registration", "false"),
        ("EMAIL_VERIFICATION_ENABLED", "true", "accounts.email_verification", "true"),
        ("EMAIL_VERIFICATION_REQUIRED", "true", "accounts.email_verification", "true"),
        ("DEFAULT_USER_CREDITS", r#"{"main": 7, "reset": 9}"#, "plans.free.meters.credits.reset", "9.0"),
        (
            "DEFAULT_USER_LIMITS",
            r#"{"conversation_limit": 3, "reset": 4}"#,
            "plans.free.meters.conversations.grant",
            "3.0",
        ),
        ("QUOTA_FREE_IMAGES", "21", "plans.free.meters.images.grant", "21.0"),
        ("QUOTA_FREE_VIDEOS", "6", "plans.free.meters.videos.grant", "6.0"),
        ("QUOTA_FREE_MESSAGES", "101", "plans.free.meters.messages.grant", "101.0"),
        ("QUOTA_PRO_IMAGES", "201", "plans.professional.meters.images.grant", "201.0"),
        ("QUOTA_PRO_VIDEOS", "51", "plans.professional.meters.videos.grant", "51.0"),
        ("QUOTA_PRO_MESSAGES", "1001", "plans.professional.meters.messages.grant", "1001.0"),
        ("IP_WHITELIST_ENABLED", "true", "access.whitelist", "true"),
        ("FIREWALL_ENABLED", "false", "access.block_after_failures", "0"),
        ("ENABLE_IP_WHITELIST", "true", "access.whitelist", "true"),
        ("WHITELISTED_IPS", "localhost,10.0.0.0/8", "access.allow", r#"["127.0.0.1/32","10.0.0.0/8"]"#),
        ("RATE_LIMIT_PER_MINUTE", "100", "limits.per_ip_per_minute", "100"),
        ("MAX_FAILED_LOGIN_ATTEMPTS", "7", "accounts.max_failed_logins", "7"),
        ("ACCOUNT_LOCKOUT_DURATION_HOURS", "2", "accounts.lockout_hours", "2.0"),
        ("SESSION_DURATION_HOURS", "12", "accounts.session_hours", "12"),
        ("REFRESH_TOKEN_DURATION_DAYS", "10", "accounts.refresh_days", "10"),
        ("ADMIN_SESSION_DURATION_HOURS", "8", "accounts.admin_session_hours", "8"),
        ("SUPPORT_SESSION_DURATION_HOURS", "6", "accounts.support_session_hours", "6"),
        ("MESSAGE_LOGGING_ENABLED", "false", "journal.enabled", "false"),
        ("MESSAGE_BATCH_SIZE", "25", "journal.batch_size", "25"),
        ("MESSAGE_FLUSH_INTERVAL_SECONDS", "600", "journal.flush_interval", r#""10m""#),
        ("BATCH_LOG_INTERVAL_MINUTES", "5", "journal.flush_interval", r#""5m""#),
        ("MESSAGE_MAX_QUEUE_SIZE", "1000", "journal.queue_records", "1000"),
        ("MEMORY_THRESHOLD_MB", "16", "journal.spill_above_bytes", "16777216"),
        ("AUTO_CREDIT_RESET_ENABLED", "false", "ledger.auto_reset", "false"),
        ("DAILY_USAGE_RESET_HOUR", "4", "ledger.reset_hour", "4"),
        ("SECRET_KEY", "a-secret-of-32-bytes-at-the-least", "accounts.tokens.hs256_key", r#""********""#),
        ("ALGORITHM", "EdDSA", "accounts.tokens.algorithm", r#""EdDSA""#),
        ("ACCESS_TOKEN_EXPIRE_MINUTES", "45", "compat.usermgmt_token_minutes", "45"),
        ("ENCRYPTION_KEY", "your-encryption-key-here-32-bytes", "accounts.keys.vault_key", r#""********""#),
        ("DEBUG", "true", "telemetry.log", r#""debug""#),
        ("SMTP_HOST", "Smtp.Example.com", "mail.host", r#""Smtp.Example.com""#),
        ("SMTP_HOST", "smtp.example.com", "mail.transport", r#""smtp""#),
        ("SMTP_PORT", "2525", "mail.port", "2525"),
        ("SMTP_USERNAME", "Gateway", "mail.username", r#""Gateway""#),
        ("SMTP_PASSWORD", "app Password", "mail.password", r#""********""#),
        ("FROM_EMAIL", "noreply@example.com", "mail.from", r#""noreply@example.com""#),
        ("SENDGRID_API_KEY", "SG.key", "mail.sendgrid_api_key", r#""********""#),
        ("SENDGRID_API_KEY", "SG.key", "mail.transport", r#""smtp""#),
        ("SENDGRID_FROM_EMAIL", "no@example.com", "mail.from", r#""no@example.com""#),
        ("SENDGRID_FROM_NAME", "AIezzy", "mail.from_name", r#""AIezzy""#),
        ("GOOGLE_CLIENT_ID", "Id.apps", "oauth.google.client_id", r#""Id.apps""#),
        ("GOOGLE_CLIENT_SECRET", "Secret", "oauth.google.client_secret", r#""********""#),
        ("GITHUB_CLIENT_ID", "Iv1.x", "oauth.github.client_id", r#""Iv1.x""#),
        ("GITHUB_CLIENT_SECRET", "Secret", "oauth.github.client_secret", r#""********""#),
    ];

    #[test]
    fn every_foreign_name_sets_its_key() {
        let rows: Vec<(&str, &str)> = EXAMPLES.iter().map(|(name, _, key, _)| (*name, *key)).collect();
        for ((name, key, _), (example, shown)) in FOREIGN.iter().zip(&rows) {
            assert!(name == example && shown.starts_with(key), "{name} sets {key}, and has no example in its place");
        }
        assert_eq!(FOREIGN.len(), rows.len());
        // What one of them needs of others to be a config at all.
        let around = "public_base_url = \"https://ai.example.com\"\n[mail]\nfrom = \"x@example.com\"\n\
            [oauth.google]\nclient_id = \"i\"\nclient_secret = \"s\"\n[oauth.github]\nclient_id = \"i\"\n\
            client_secret = \"s\"\n";
        for (name, value, key, held) in EXAMPLES {
            let pair = ((*name).to_owned(), (*value).to_owned());
            let config = Config::parse("t", around, std::iter::once(pair)).unwrap_or_else(|e| panic!("{name}: {e}"));
            let pointer = format!("/{}", key.replace('.', "/"));
            let found = config.effective.pointer(&pointer).map(ToString::to_string);
            assert_eq!(found.as_deref(), Some(*held), "{name}={value}");
            let secret = held.contains("****").then_some(value);
            assert!(secret.is_none_or(|secret| !config.effective.to_string().contains(*secret)), "{name} is a secret");
        }
    }

    #[test]
    fn what_leaves_things_as_they_are_does() {
        let blocks = |name: &str, value: &str| apply_one(name, value).access.block_after_failures;
        assert_eq!((blocks("FIREWALL_ENABLED", "true"), blocks("FIREWALL_ENABLED", "no")), (5, 0));
        assert_eq!(apply_one("DEBUG", "false").telemetry.log, "info");
        // A template that was copied and not filled in.
        assert_eq!(apply_one("GOOGLE_CLIENT_ID", "").oauth.len(), 0);
        assert!(Config::parse("t", "", std::iter::once(("ALGORITHM".to_owned(), "RS256".to_owned()))).is_err());
        let both = [("ALGORITHM", "HS256"), ("SECRET_KEY", "your-super-secret-key-here-change-this-in-production")];
        let both = both.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let tokens = Config::parse("t", "", both).unwrap().accounts.tokens;
        assert!(tokens.algorithm == crate::config::TokenAlgorithm::HS256 && tokens.hs256_key.is_some());
        let quota = apply_one("AUTO_CREDIT_RESET_ENABLED", "false");
        let meters = quota.plans.iter().flat_map(|plan| &plan.meters);
        assert!(
            meters.clone().count() > 10
                && meters.into_iter().all(|m| m.period == crate::domain::meters::ResetPeriod::Never)
        );
        let set = [("DATABASE_URL", "sqlite:///x.db"), ("BCRYPT_ROUNDS", "12"), ("HOME", "/root"), ("FAL_KEY", "")];
        let idle = idle_names(set.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        assert_eq!(idle.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["DATABASE_URL", "BCRYPT_ROUNDS"]);
    }

    /// The seeds' documents say what holds without any variable; where the contract says nothing else, that holds here.
    #[test]
    fn the_documented_defaults_are_the_defaults() {
        let config = Config::parse("t", "", std::iter::empty()).unwrap();
        let accounts = &config.accounts;
        assert!(accounts.registration && !accounts.email_verification && !config.access.whitelist);
        assert_eq!((accounts.max_failed_logins, accounts.lockout_hours), (5, 1.0));
        assert_eq!((accounts.session_hours, accounts.refresh_days), (24, 30));
        assert_eq!((accounts.admin_session_hours, accounts.support_session_hours), (24, 12));
        assert!(config.journal.enabled && config.ledger.auto_reset);
        assert_eq!((config.journal.batch_size, config.journal.retention_days), (50, Some(90)));
        assert_eq!((config.mail.port, config.limits.per_ip_per_minute), (587, 60));
        assert_eq!((config.compat.usermgmt_token_minutes, config.compat.aiezzy_session_days), (30, 30));
        assert_eq!((config.access.block_after_failures, config.access.block_minutes), (5, 15));
        let meter = |plan: &str, name: &str| {
            let plan = config.plan(plan).unwrap();
            plan.meters.iter().find(|m| m.name.as_str() == name).unwrap().grant.whole_units()
        };
        assert_eq!((meter("free", "credits"), meter("free", "conversations")), (5, 10));
        assert_eq!(["images", "videos", "messages"].map(|name| meter("free", name)), [20, 5, 100]);
        assert_eq!(["images", "videos", "messages"].map(|name| meter("professional", name)), [200, 50, 1000]);
        let hour: u8 = config.ledger.reset_hour.into();
        assert_eq!(hour, 0);
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
