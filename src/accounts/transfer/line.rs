//! One user as another system writes him: a JSON object a line.
//!
//! Owns the names under which the older systems keep the same thing, so that a dump of their table can be read as it is.
//! Everything that does not fit is said at once, by field. Unknown fields are left out. Never repeats a value.

use serde_json::{Map, Value};

use crate::accounts::fields::username_fault;
use crate::accounts::users::{AdminUpdate, MeterUpdate, ProfileUpdate};
use crate::clock::UnixMillis;
use crate::domain::meters::{MeterName, Micro};
use crate::domain::user::{Profile, Role, Status, UserType, Verification};

/// Longest line that is read, in bytes.
pub const MAX_LINE_BYTES: usize = 64 << 10;
const KEY_BYTES: std::ops::RangeInclusive<usize> = 16..=200;

/// A line, read.
#[derive(Debug)]
pub struct Incoming {
    pub username: String,
    pub email: String,
    /// All that staff could set too; the plan by any of its names.
    pub update: AdminUpdate,
    pub status: Option<Status>,
    pub password_hash: Option<String>,
    pub must_change_password: Option<bool>,
    pub api_key: Option<GivenKey>,
    pub created_at: Option<UnixMillis>,
    pub last_login: Option<UnixMillis>,
    pub meters: Vec<(MeterName, MeterUpdate)>,
    /// What was read and is not taken over.
    pub notes: Vec<&'static str>,
}

/// A key's text, on its way to becoming a MAC.
pub struct GivenKey(pub String);

impl std::fmt::Debug for GivenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GivenKey(…)")
    }
}

/// Takes fields by whichever of their names is there.
struct Reader {
    map: Map<String, Value>,
    faults: Vec<String>,
}

impl Reader {
    fn take(&mut self, names: &[&'static str]) -> Option<(&'static str, Value)> {
        let mut found = None;
        for name in names {
            match self.map.remove(*name) {
                None | Some(Value::Null) => {}
                Some(value) => found = found.or(Some((*name, value))),
            }
        }
        found
    }

    fn fault(&mut self, name: &str, what: &str) {
        self.faults.push(format!("{name}: {what}"));
    }

    fn text(&mut self, names: &[&'static str]) -> Option<String> {
        match self.take(names)? {
            (_, Value::String(text)) => Some(text).filter(|text| !text.is_empty()),
            (name, _) => {
                self.fault(name, "must be a string");
                None
            }
        }
    }

    fn required(&mut self, names: &[&'static str]) -> String {
        let before = self.faults.len();
        let text = self.text(names);
        if text.is_none() && self.faults.len() == before {
            self.fault(names[0], "is required");
        }
        text.unwrap_or_default()
    }

    fn parsed<T>(&mut self, names: &[&'static str], what: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let text = self.text(names)?;
        let parsed = parse(&text);
        if parsed.is_none() {
            self.fault(names[0], what);
        }
        parsed
    }

    /// Databases write truth as 0 and 1.
    fn flag(&mut self, names: &[&'static str]) -> Option<bool> {
        match self.take(names)? {
            (_, Value::Bool(flag)) => Some(flag),
            (_, Value::Number(number)) if number.as_u64() == Some(0) => Some(false),
            (_, Value::Number(number)) if number.as_u64() == Some(1) => Some(true),
            (name, _) => {
                self.fault(name, "must be true or false");
                None
            }
        }
    }

    /// An object or a list, or the same as JSON text, as tables keep it.
    fn json(&mut self, names: &[&'static str]) -> Option<(&'static str, Value)> {
        match self.take(names)? {
            (name, Value::String(text)) if text.trim_start().starts_with(['{', '[']) => {
                match serde_json::from_str(&text) {
                    Ok(value) => Some((name, value)),
                    Err(_) => {
                        self.fault(name, "is text that is not valid JSON");
                        None
                    }
                }
            }
            (_, Value::String(text)) if text.is_empty() => None,
            found => Some(found),
        }
    }

    fn time(&mut self, names: &[&'static str]) -> Option<UnixMillis> {
        self.parsed(names, "must be a time such as 2026-01-31T12:00:00Z", |text| {
            // As SQL databases write it, without a zone: UTC.
            let sql = || UnixMillis::parse_rfc3339(&format!("{}Z", text.trim().replacen(' ', "T", 1)));
            UnixMillis::parse_rfc3339(text).or_else(sql)
        })
    }

    fn amount(&mut self, path: &str, value: &Value) -> Option<Micro> {
        let amount = match value.as_u64() {
            Some(whole) => i64::try_from(whole).ok().and_then(Micro::units),
            None => value.as_f64().and_then(Micro::from_decimal),
        };
        if amount.is_none() {
            self.fault(path, "must be a number that is not negative");
        }
        amount
    }

    fn meter(&mut self, name: &str, value: &Value, balance: &str) -> MeterUpdate {
        let Some(object) = value.as_object() else {
            self.fault(name, &format!("must be an object with {balance} and reset"));
            return MeterUpdate::default();
        };
        let mut read = |field: &str| {
            let value = object.get(field).filter(|value| !value.is_null())?;
            self.amount(&format!("{name}.{field}"), value)
        };
        MeterUpdate { balance: read(balance), reset: read("reset") }
    }

    fn profile(&mut self) -> Vec<(&'static str, Option<String>)> {
        if let Some((name, value)) = self.json(&["profile"]) {
            match value {
                Value::Object(fields) => {
                    for (name, value) in fields {
                        self.map.entry(name).or_insert(value);
                    }
                }
                _ => self.fault(name, "must be an object"),
            }
        }
        let mut fields = Vec::new();
        for name in Profile::FIELDS {
            let names = match name {
                "avatar_url" => vec![name, "profile_image"],
                "first_name" => vec![name, "emri"],
                "last_name" => vec![name, "mbiemri"],
                _ => vec![name],
            };
            if let Some(text) = self.text(&names) {
                fields.push((name, Some(text)));
            }
        }
        match self.json(&["preferences"]) {
            Some((_, object @ Value::Object(_))) => fields.push(("preferences", Some(object.to_string()))),
            Some((name, _)) => self.fault(name, "must be an object"),
            None => {}
        }
        fields
    }
}

impl Incoming {
    /// # Errors
    /// What does not fit, a line for each field.
    pub fn read(line: &str) -> Result<Self, Vec<String>> {
        let map = match serde_json::from_str(line) {
            Ok(Value::Object(map)) => map,
            Ok(_) => return Err(vec!["must be a JSON object".into()]),
            Err(error) => return Err(vec![format!("not valid JSON (column {})", error.column())]),
        };
        let mut reader = Reader { map, faults: Vec::new() };
        let mut notes = Vec::new();
        let fields = reader.profile();
        let of = |name: &str| fields.iter().find(|(field, _)| *field == name).and_then(|(_, value)| value.clone());
        let (first, last) = (of("first_name"), of("last_name"));
        let username = reader.text(&["username"]);
        let email = reader.required(&["email"]);
        let username = username.or_else(|| {
            let given = username_of(&email)?;
            notes.push("has no username, and takes the first part of the address for one");
            Some(given)
        });
        if username.is_none() {
            reader.fault("username", "is required");
        }
        let username = username.unwrap_or_default();
        let whole = [first, last].into_iter().flatten().collect::<Vec<_>>().join(" ");
        let name = reader.text(&["name", "full_name"]).or(Some(whole).filter(|name| !name.is_empty()));
        if reader.take(&["password"]).is_some() {
            reader.fault("password", "is not taken in clear; bring password_hash");
        }
        let role = reader.text(&["role"]);
        if matches!(role.as_deref(), Some("admin" | "superadmin")) || reader.flag(&["is_admin"]) == Some(true) {
            notes.push("is an ordinary user here; admins are made with `tollgate create-admin`");
        }
        let role = role.filter(|role| !matches!(role.as_str(), "admin" | "superadmin")).and_then(|role| {
            let parsed = Role::parse(&role);
            if parsed.is_none() {
                reader.fault("role", "must be guest, user or pro");
            }
            parsed
        });
        let active = reader.flag(&["is_active"]);
        let status = reader.parsed(&["status"], "must be pending, active, suspended or banned", |text| {
            let text = if text == "aktiv" { "active" } else { text };
            Status::parse(text).filter(|status| *status != Status::Deleted)
        });
        let status = status.or(active.map(|active| if active { Status::Active } else { Status::Suspended }));
        let verified = reader.flag(&["email_verified", "is_verified"]);
        let levels = "must be unverified, email_verified, fully_verified or professional_verified";
        let verification = reader.parsed(&["verification"], levels, Verification::parse);
        let level_of = |verified| if verified { Verification::EmailVerified } else { Verification::Unverified };
        if reader.flag(&["mfa_enabled"]) == Some(true) {
            notes.push("had a second factor, which cannot be brought along; he has to set one up anew");
        }
        let api_key = reader.text(&["api_key", "key"]).filter(|key| {
            let sealed = is_sealed(key);
            if sealed {
                notes.push("has a key that was sealed there and cannot be read; he gets a new one");
            }
            !sealed
        });
        let fits = |key: &String| KEY_BYTES.contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic());
        if api_key.as_ref().is_some_and(|key| !fits(key)) {
            reader.fault("api_key", "must be 16 to 200 visible ASCII characters, in clear");
        }
        let credits = match reader.json(&["credits"]) {
            Some((name, value)) => Some(reader.meter(name, &value, "main")),
            None => reader
                .take(&["credits_balance"])
                .map(|(name, value)| MeterUpdate { balance: reader.amount(name, &value), reset: None }),
        };
        let conversations = reader.json(&["limits"]).map(|(name, v)| reader.meter(name, &v, "conversation_limit"));
        let access_rtype = reader.json(&["access_rtype"]).and_then(|(name, value)| {
            let list = value.as_array().map(|list| list.iter().map(|item| item.as_str().map(str::to_owned)).collect());
            let list: Option<Vec<String>> = list.flatten();
            if list.is_none() {
                reader.fault(name, "must be a list of strings");
            }
            list
        });
        let meters = reader.meters();
        let incoming = Self {
            username,
            email,
            update: AdminUpdate {
                profile: ProfileUpdate {
                    name,
                    about_me: reader.text(&["about_me", "bio"]),
                    hobbies: reader.text(&["hobbies"]),
                    user_type: reader.parsed(
                        &["user_type", "type"],
                        "must be \"Personal\" or \"Business\"",
                        UserType::parse,
                    ),
                    fields,
                },
                email: None,
                email_verified: None,
                log_conversations: reader.flag(&["log_conversations"]),
                role,
                verification: verification.or(verified.map(level_of)),
                level: reader.text(&["level"]),
                access_rtype,
                additional_notes: reader.text(&["additional_notes"]),
                plan: reader.text(&["plan", "subscription_plan", "tier"]),
                credits,
                conversations,
            },
            status,
            password_hash: reader.text(&["password_hash", "hashed_password"]),
            must_change_password: reader.flag(&["must_change_password"]),
            api_key: api_key.map(GivenKey),
            created_at: reader.time(&["created_at", "time_created"]),
            last_login: reader.time(&["last_login"]),
            meters,
            notes,
        };
        if reader.faults.is_empty() { Ok(incoming) } else { Err(reader.faults) }
    }
}

/// What can be a username of an address: noteria's users have none.
fn username_of(email: &str) -> Option<String> {
    let (local, _) = email.split_once('@')?;
    let fits = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' };
    let name: String = local.chars().map(fits).take(45).collect();
    Some(if username_fault(&name).is_none() { name } else { format!("user-{name}") })
}

/// A token of Fernet (its specification's version byte 0x80, then a time), as the user management backend seals keys.
fn is_sealed(key: &str) -> bool {
    key.starts_with("gAAAAA") && key.len() >= 100
}

impl Reader {
    fn meters(&mut self) -> Vec<(MeterName, MeterUpdate)> {
        let Some((field, value)) = self.json(&["meters"]) else { return Vec::new() };
        let Value::Object(all) = value else {
            self.fault(field, "must be an object");
            return Vec::new();
        };
        let mut meters = Vec::new();
        for (name, value) in all {
            match MeterName::parse(&name) {
                Some(meter) => {
                    let update = self.meter(&format!("meters.{meter}"), &value, "balance");
                    meters.push((meter, update));
                }
                None => self.fault("meters", "has a name that is none of a meter"),
            }
        }
        meters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_each_older_system_are_read() {
        let of_tables = r#"{"id": 7, "username": "johndoe", "name": "John Doe", "email": "john@example.com",
            "password_hash": "$2b$12$x", "about_me": "", "type": "Business", "time_created": "2024-01-15 12:00:00",
            "subscription_plan": "premium", "credits": "{\"main\":5, \"reset\":6}",
            "limits": "{\"conversation_limit\":10, \"reset\":11}", "access_rtype": "[\"bpe\",\"tot\"]",
            "key": "pe-rqrFLve5ZM63ZL1XtREaiLrlrNreu20Y", "is_active": 0}"#;
        let read = Incoming::read(of_tables).unwrap();
        assert_eq!(read.created_at, UnixMillis::parse_rfc3339("2024-01-15T12:00:00Z"));
        assert_eq!((read.status, read.update.profile.user_type), (Some(Status::Suspended), Some(UserType::Business)));
        let credits = read.update.credits.unwrap();
        assert_eq!((credits.balance, credits.reset), (Micro::units(5), Micro::units(6)));
        assert_eq!(read.update.conversations.unwrap().balance, Micro::units(10));
        assert_eq!(read.update.access_rtype.unwrap(), ["bpe", "tot"]);
        assert_eq!(read.api_key.unwrap().0.len(), 35);
        let aiezzy = r#"{"username": "jane", "email": "jane@example.com", "password_hash": "sha256$a$b", "full_name": "Jane",
            "is_admin": true, "email_verified": 1, "tier": "pro", "preferences": {"dark": true}, "bio": "hi"}"#;
        let read = Incoming::read(aiezzy).unwrap();
        assert_eq!((read.notes.len(), read.update.verification), (1, Some(Verification::EmailVerified)));
        assert_eq!((read.update.plan.as_deref(), read.update.profile.about_me.as_deref()), (Some("pro"), Some("hi")));
        let clisonix = r#"{"username": "ana", "email": "ana@example.com", "first_name": "Ana", "last_name": "Hoxha",
            "status": "pending", "verification": "fully_verified", "plan": "starter", "credits_balance": 12.5,
            "api_key": "clx_abc123abc123abc123", "role": "pro", "profile": {"city": "Tirana"}}"#;
        let read = Incoming::read(clisonix).unwrap();
        assert_eq!((read.update.profile.name.as_deref(), read.status), (Some("Ana Hoxha"), Some(Status::Pending)));
        assert_eq!(read.update.credits.unwrap().balance, Some(Micro(12_500_000)));
        assert!(read.update.profile.fields.contains(&("city", Some("Tirana".into()))));
        let sealed = format!("gAAAAAB{}", "x".repeat(93));
        let noteria = format!(
            r#"{{"id": 6, "emri": "Zana", "mbiemri": "Krasniqi", "email": "zana.k@noteria.al", "roli": "perdorues",
            "status": "aktiv", "mfa_enabled": 1, "key": "{sealed}"}}"#
        );
        let read = Incoming::read(&noteria).unwrap();
        assert_eq!((read.username.as_str(), read.status), ("zana-k", Some(Status::Active)));
        assert_eq!(read.update.profile.name.as_deref(), Some("Zana Krasniqi"));
        assert!(read.api_key.is_none() && read.notes.len() == 3, "{:?}", read.notes);
    }

    #[test]
    fn everything_that_does_not_fit_is_said_by_field() {
        let bad = r#"{"email": 7, "password": "secret-1", "role": "king", "is_active": "yes", "limits": [], "api_key": "x y",
            "credits": {"main": -1}, "status": "deleted", "created_at": "yesterday", "meters": {"Bad Name": {}}}"#;
        let faults = Incoming::read(bad).unwrap_err();
        let fields = [
            "username",
            "email",
            "password",
            "role",
            "is_active",
            "limits",
            "api_key",
            "credits.main",
            "status",
            "created_at",
            "meters",
        ];
        for field in fields {
            assert!(faults.iter().any(|fault| fault.starts_with(&format!("{field}:"))), "{field}: {faults:?}");
        }
        assert_eq!(faults.len(), fields.len(), "{faults:?}");
        assert!(!faults.concat().contains("secret-1"));
        assert_eq!(Incoming::read("[]").unwrap_err(), ["must be a JSON object"]);
        assert!(Incoming::read("{").unwrap_err()[0].starts_with("not valid JSON"));
    }
}
