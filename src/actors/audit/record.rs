//! One record of the audit trail: who, from where, what, on whom, with what result.
//!
//! Owns the closed list of acts, their stable names and severities, and the JSON form of a record. Bounds and cleans every
//! text that goes in. Never holds a secret: callers put in names, numbers and what changed, not credentials or bodies.

use std::net::IpAddr;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::clock::UnixMillis;
use crate::domain::ids::RequestId;
use crate::domain::session::Staff;
use crate::domain::user::User;

/// Longest text of a record, in bytes; the rest is cut off.
pub const MAX_TEXT_BYTES: usize = 512;
/// Most bytes of a record's details; larger ones are replaced by a note that says so.
pub const MAX_DETAILS_BYTES: usize = 8 << 10;

/// How much a record should worry whoever reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Info,
    Warning,
    Error,
    Critical,
}

impl Severity {
    pub const ALL: [Self; 4] = [Self::Info, Self::Warning, Self::Error, Self::Critical];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|severity| severity.as_str() == text)
    }
}

/// A new act is one line in the list below: a function could not make the type, the names and the severities from one line.
macro_rules! acts {
    ($($(#[$doc:meta])* $act:ident = $name:literal, $severity:ident;)*) => {
        /// What was done. Names are stable: whoever searches the trail may rely on them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Action {
            $($(#[$doc])* $act,)*
        }

        impl Action {
            pub const ALL: &[Self] = &[$(Self::$act),*];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$act => $name,)* }
            }

            /// Of an act that went well; a refused one is at least a warning.
            pub fn severity(self) -> Severity {
                match self { $(Self::$act => Severity::$severity,)* }
            }
        }
    };
}

acts! {
    ServerStarted = "server.started", Info;
    ServerStopped = "server.stopped", Info;
    ConfigReloaded = "config.reloaded", Warning;
    /// The store refuses every write until the next start.
    StoreFailed = "store.failed", Critical;
    /// Credits that a crash left on hold were charged or given back.
    HoldRecovered = "hold.recovered", Warning;
    BackupCreated = "backup.created", Info;
    BackupRestored = "backup.restored", Warning;
    /// Old segments of this trail were deleted by its retention.
    AuditPruned = "audit.pruned", Warning;
    /// The files end before, or differ from, what the store says the trail had reached.
    AuditGap = "audit.gap", Critical;
    UserRegistered = "user.registered", Info;
    UserCreated = "user.created", Info;
    UsersImported = "users.imported", Warning;
    UsersExported = "users.exported", Warning;
    UserUpdated = "user.updated", Info;
    UserActivated = "user.activated", Info;
    UserSuspended = "user.suspended", Warning;
    UserBanned = "user.banned", Warning;
    UserDeleted = "user.deleted", Warning;
    UserRestored = "user.restored", Warning;
    /// Staff has let an account go on that waited for its owner's proof.
    ProofWaitLifted = "user.proof_wait_lifted", Warning;
    ProfileUpdated = "profile.updated", Info;
    PlanChanged = "plan.changed", Info;
    CreditsAdjusted = "credits.adjusted", Info;
    LimitsReset = "limits.reset", Info;
    PasswordChanged = "password.changed", Warning;
    /// A link for a new password was mailed, which takes the place of the one before.
    ResetLinkSent = "password.reset_sent", Info;
    EmailChanged = "email.changed", Warning;
    EmailVerified = "email.verified", Info;
    /// A link for another address, or a new password, was asked for.
    LinkRequested = "link.requested", Info;
    /// A letter that could not be sent.
    MailGivenUp = "mail.given_up", Warning;
    KeyCreated = "key.created", Info;
    KeyUpdated = "key.updated", Info;
    KeyRotated = "key.rotated", Info;
    /// A key's text was shown to its owner once more.
    KeyRevealed = "key.revealed", Warning;
    KeyRegenerated = "key.regenerated", Info;
    KeyRevoked = "key.revoked", Warning;
    LoginSucceeded = "login.succeeded", Info;
    LoginFailed = "login.failed", Warning;
    /// The password was right, and the verifier did not believe the rest.
    LoginCheckRefused = "login.check_refused", Warning;
    /// Too many wrong passwords: the account takes none for a while.
    AccountLocked = "account.locked", Warning;
    SessionRefreshed = "session.refreshed", Info;
    SessionEnded = "session.ended", Info;
    SessionsRevoked = "sessions.revoked", Warning;
    /// A refresh token was used twice: one of the two who have it is a thief, and its session has ended.
    SessionReplayed = "session.replayed", Critical;
    /// A provider has confirmed who it is; a session is yet to be asked for.
    LoginConfirmed = "login.confirmed", Info;
    /// Somebody has set out to a provider, to add a login there to his account.
    LoginLinking = "login.linking", Info;
    LoginLinked = "login.linked", Warning;
    LoginUnlinked = "login.unlinked", Warning;
    /// Login codes that open something once each.
    CodesGenerated = "codes.generated", Warning;
    CodesExported = "codes.exported", Warning;
    CodesRevoked = "codes.revoked", Warning;
    MfaSetUp = "mfa.set_up", Info;
    MfaEnabled = "mfa.enabled", Warning;
    MfaDisabled = "mfa.disabled", Warning;
    RecoveryCodesMade = "mfa.recovery_codes_made", Warning;
    /// Too many wrong credentials from one address: it may not guess for a while.
    AddressBlocked = "address.blocked", Warning;
    AddressUnblocked = "address.unblocked", Warning;
    IpRuleCreated = "ip_rule.created", Warning;
    IpRuleRemoved = "ip_rule.removed", Warning;
    IpRuleExpired = "ip_rule.expired", Info;
    StaffCreated = "staff.created", Warning;
    StaffChanged = "staff.changed", Warning;
    /// A call of the side port that its credential did not allow.
    AccessDenied = "access.denied", Warning;
    /// Somebody read a user's conversations.
    ConversationsRead = "conversations.read", Info;
}

impl Action {
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|action| action.as_str() == text)
    }

    /// What stands before the dot: acts of one kind.
    pub fn family(self) -> &'static str {
        self.as_str().split('.').next().unwrap_or_default()
    }
}

/// Who did it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Actor {
    kind: &'static str,
    id: Option<u64>,
    name: Option<String>,
}

impl Actor {
    /// The program itself.
    pub fn system() -> Self {
        Self { kind: "system", id: None, name: None }
    }

    /// Whoever has a shell on the machine: commands, and the operator's token.
    pub fn operator() -> Self {
        Self { kind: "operator", id: None, name: None }
    }

    /// Somebody without a credential that we know.
    pub fn anonymous() -> Self {
        Self { kind: "anonymous", id: None, name: None }
    }

    pub fn staff(id: u64, username: &str) -> Self {
        Self { kind: "staff", id: Some(id), name: Some(clean(username)) }
    }

    pub fn is_anonymous(&self) -> bool {
        self.kind == "anonymous"
    }
}

impl From<&User> for Actor {
    fn from(user: &User) -> Self {
        Self { kind: "user", id: Some(user.id.0), name: Some(clean(&user.username)) }
    }
}

impl From<&Staff> for Actor {
    fn from(staff: &Staff) -> Self {
        Self::staff(staff.id.0, &staff.username)
    }
}

/// On whom or what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Target {
    kind: &'static str,
    id: Option<u64>,
    name: Option<String>,
}

impl Target {
    /// Anything with a number or a name. `kind` is a word of ours.
    pub fn new(kind: &'static str, id: Option<u64>, name: Option<&str>) -> Self {
        Self { kind, id, name: name.map(clean) }
    }

    /// A user of whom only the number is known.
    pub fn user_id(id: u64) -> Self {
        Self::new("user", Some(id), None)
    }

    pub(super) fn key(&self) -> (&'static str, Option<u64>) {
        (self.kind, self.id)
    }
}

impl From<&User> for Target {
    fn from(user: &User) -> Self {
        Self::new("user", Some(user.id.0), Some(&user.username))
    }
}

impl From<&Staff> for Target {
    fn from(staff: &Staff) -> Self {
        Self::new("staff", Some(staff.id.0), Some(&staff.username))
    }
}

/// From where: what a request says of itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Origin {
    pub address: Option<IpAddr>,
    pub request: Option<RequestId>,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Ok,
    /// The actor may not, or did not prove who he is.
    Denied,
    /// He may, but it could not be done.
    Failed,
}

/// One record before it has its place in the trail.
#[derive(Clone, Debug)]
pub struct Record {
    pub(super) action: Action,
    refused_as: Action,
    pub(super) actor: Actor,
    pub(super) origin: Origin,
    pub(super) target: Option<Target>,
    outcome: Outcome,
    reason: Option<String>,
    pub(super) count: u64,
    details: Map<String, Value>,
}

impl Record {
    /// An act of the system's that went well; the other methods say what is different.
    pub fn of(action: Action) -> Self {
        Self {
            action,
            refused_as: action,
            actor: Actor::system(),
            origin: Origin::default(),
            target: None,
            outcome: Outcome::Ok,
            reason: None,
            count: 1,
            details: Map::new(),
        }
    }

    /// The name of the act when it is refused.
    #[must_use]
    pub fn or(self, refused_as: Action) -> Self {
        Self { refused_as, ..self }
    }

    /// It turned out to be another act.
    #[must_use]
    pub fn as_act(self, action: Action) -> Self {
        Self { action, ..self }
    }

    #[must_use]
    pub fn by(self, actor: impl Into<Actor>) -> Self {
        Self { actor: actor.into(), ..self }
    }

    #[must_use]
    pub fn from(self, origin: Origin) -> Self {
        Self { origin, ..self }
    }

    #[must_use]
    pub fn on(self, target: impl Into<Target>) -> Self {
        Self { target: Some(target.into()), ..self }
    }

    /// As [`Record::on`], when there may be nobody.
    #[must_use]
    pub fn on_any(self, target: Option<Target>) -> Self {
        Self { target: target.or(self.target), ..self }
    }

    /// Adds a detail. Texts are cut to [`MAX_TEXT_BYTES`]; null is left out.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        let value = cleaned(value.into());
        if !value.is_null() {
            self.details.insert(name.to_owned(), value);
        }
        self
    }

    /// The act was refused or failed. `reason` is a word of ours, such as an `error_code`.
    #[must_use]
    pub fn refused(self, outcome: Outcome, reason: &str) -> Self {
        Self { action: self.refused_as, outcome, reason: Some(clean(reason)), ..self }
    }

    /// The same, so many times over.
    pub(super) fn times(self, count: u64) -> Self {
        Self { count, ..self }
    }

    pub fn is_anonymous(&self) -> bool {
        self.actor.is_anonymous()
    }

    pub(super) fn severity(&self) -> Severity {
        match self.outcome {
            Outcome::Ok => self.action.severity(),
            Outcome::Denied | Outcome::Failed => self.action.severity().max(Severity::Warning),
        }
    }

    /// The user whom the record is about, or who acted; 0 for none.
    pub(super) fn user(&self) -> u64 {
        let target = self.target.as_ref().filter(|target| target.kind == "user").and_then(|target| target.id);
        target.or(self.actor.id.filter(|_| self.actor.kind == "user")).unwrap_or(0)
    }

    /// The JSON object up to and without its closing brace: the chain's fields follow.
    pub(super) fn encode(&self, seq: u64, at: UnixMillis, out: &mut Vec<u8>) {
        #[derive(Serialize)]
        struct Form<'a> {
            id: u64,
            timestamp: String,
            severity: Severity,
            action: &'a str,
            result: Outcome,
            reason: Option<&'a str>,
            count: u64,
            actor: &'a Actor,
            target: Option<&'a Target>,
            ip_address: Option<IpAddr>,
            request_id: Option<&'a str>,
            details: Value,
        }
        let form = Form {
            id: seq,
            timestamp: at.rfc3339(),
            severity: self.severity(),
            action: self.action.as_str(),
            result: self.outcome,
            reason: self.reason.as_deref(),
            count: self.count,
            actor: &self.actor,
            target: self.target.as_ref(),
            ip_address: self.origin.address,
            request_id: self.origin.request.as_ref().map(RequestId::as_str),
            details: self.bounded_details(),
        };
        let start = out.len();
        // Maps with text keys and plain numbers: there is nothing in it that has no JSON form.
        if serde_json::to_writer(&mut *out, &form).is_err() {
            out.truncate(start);
            out.extend_from_slice(b"{}");
        }
        out.pop();
    }

    fn bounded_details(&self) -> Value {
        let details = Value::Object(self.details.clone());
        let bytes = details.to_string().len();
        if bytes <= MAX_DETAILS_BYTES {
            return details;
        }
        serde_json::json!({"too_long": bytes, "fields": self.details.keys().take(32).collect::<Vec<_>>()})
    }
}

/// A text without anything that could break a line or steer a terminal, and not too long.
fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(MAX_TEXT_BYTES));
    for c in text.chars() {
        // Line and paragraph separators, and the marks that turn the direction of writing.
        let steers = c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        let c = if steers { ' ' } else { c };
        if out.len() + c.len_utf8() > MAX_TEXT_BYTES {
            out.push('…');
            break;
        }
        out.push(c);
    }
    out
}

fn cleaned(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(clean(&text)),
        Value::Array(items) => Value::Array(items.into_iter().map(cleaned).collect()),
        Value::Object(map) => {
            Value::Object(map.into_iter().map(|(key, value)| (clean(&key), cleaned(value))).collect())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_read_back() {
        let mut names: Vec<&str> = Action::ALL.iter().map(|action| action.as_str()).collect();
        assert!(Action::ALL.iter().all(|action| Action::parse(action.as_str()) == Some(*action)));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Action::ALL.len());
        assert_eq!((Action::parse("login"), Action::LoginFailed.family()), (None, "login"));
        assert!(Severity::ALL.iter().all(|severity| Severity::parse(severity.as_str()) == Some(*severity)));
    }

    #[test]
    fn texts_cannot_break_a_line_or_grow_without_bound() {
        let record = Record::of(Action::UserBanned)
            .by(Actor::staff(1, "root\nforged line"))
            .with("reason", format!("a\r\nb\u{9b}31m\u{2028}c\u{202e}{}", "x".repeat(5000)))
            .with("nothing", Value::Null);
        let mut out = Vec::new();
        record.encode(7, UnixMillis(0), &mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(!text.chars().any(char::is_control) && text.len() < 1000, "{text}");
        assert!(text.contains("root forged line") && !text.contains("nothing"), "{text}");
        let many = (0..500).fold(Record::of(Action::UserBanned), |r, n| r.with(&format!("field{n}"), "y".repeat(100)));
        let mut out = Vec::new();
        many.encode(7, UnixMillis(0), &mut out);
        assert!(out.len() < 2000 && String::from_utf8(out).unwrap().contains("too_long"));
    }

    #[test]
    fn a_refused_act_has_its_own_name_and_is_at_least_a_warning() {
        let record = Record::of(Action::LoginSucceeded).or(Action::LoginFailed);
        assert_eq!((record.action, record.severity()), (Action::LoginSucceeded, Severity::Info));
        let refused = record.refused(Outcome::Denied, "UNAUTHENTICATED");
        assert_eq!((refused.action, refused.severity()), (Action::LoginFailed, Severity::Warning));
        let failed = Record::of(Action::UserUpdated).refused(Outcome::Failed, "NOT_FOUND");
        assert_eq!(failed.severity(), Severity::Warning);
    }
}
