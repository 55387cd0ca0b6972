//! Refusals: what the client may read, apart from what we count.
//!
//! Owns the table of the contract: every refusal's status, `error_code`, headers and body. Never carries a secret or an
//! internal cause; those go to the log where they happen.

use std::time::Duration;

use serde_json::{Value, json};

use crate::clock::UnixMillis;
use crate::domain::dialect::Dialect;
use crate::domain::ids::{RequestId, UserId};
use crate::domain::meters::{MeterName, Micro};

/// What a page elsewhere is told that makes a browser call with our cookie.
pub const CROSS_SITE: &str = "A session cookie counts only for requests from its own site";

/// Why a call was not served. One body serves every client: the seeds' and OpenAI's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reject {
    /// No or malformed credential; an unknown, expired or revoked one. The client cannot tell which.
    Unauthenticated,
    /// The password that a call asks for again is wrong, or missing.
    WrongPassword,
    /// The password was right, and a code of the second factor is needed too.
    CodeRequired,
    /// A code of the second factor that is wrong, too old, or used.
    WrongCode,
    /// The password was right, and one of the codes that the user has been given is needed too.
    UniqueCodeRequired,
    /// A login that does not bring all it must: the fields that are missing.
    LoginFactorsMissing(Vec<String>),
    /// The password was right, and the operator's verifier did not believe the rest. Its reason, if it may be read.
    LoginFactorRefused {
        reason: Option<String>,
    },
    /// Staff that must set up a second factor first.
    FactorRequired,
    /// A password that staff has chosen must be changed first.
    PasswordChangeRequired,
    /// Staff has changed a way into the account, and its owner has not shown yet that it is theirs.
    OwnerProofRequired,
    /// An API key where a session is needed.
    SessionNeeded,
    /// A refresh token that was used before: its session has ended.
    Replayed {
        user: UserId,
    },
    BadRequest(String),
    /// As [`Reject::BadRequest`], with one line per field.
    Invalid(Vec<String>),
    AddressDenied,
    /// Too many wrong credentials came from the address.
    AddressBlocked {
        retry_after: Duration,
    },
    Forbidden(&'static str),
    NotFound,
    /// A call of administrators, on the public listener.
    OnSidePort,
    /// With the methods that are, as `Allow` lists them (RFC 9110, 10.2.1); empty where the router adds that field itself.
    MethodNotAllowed(String),
    Conflict(String),
    RateLimited {
        scope: RateScope,
        retry_after: Duration,
        limit: u32,
    },
    TooManyInFlight {
        limit: u32,
    },
    /// As many users as may be are on this route, or on those of this name.
    NoPlace {
        name: std::sync::Arc<str>,
        limit: u32,
        retry_after: Duration,
    },
    CreditsExhausted(Box<Shortage>),
    /// The credits did not last for the rest of an answer that has begun.
    CreditsRanOut,
    /// The idempotency key of the request was used before, and the call cannot be carried out again.
    Repeated(Repeat),
    BodyTooLarge {
        limit: u64,
    },
    /// A body that must be read here, in a form that nobody reads here.
    UnsupportedMediaType(&'static str),
    Locked {
        retry_after: Duration,
    },
    Overloaded(&'static str),
    StoreUnavailable,
    UpstreamUnreachable,
    UpstreamTimeout,
    /// The request's head is over the limit (RFC 6585).
    HeadTooLarge,
    /// The client took too long to send its request.
    RequestTimeout,
    /// `Expect` with something else than `100-continue` (RFC 9110, 10.1.1).
    ExpectationFailed,
    /// A version we do not speak.
    VersionNotSupported,
    /// The side port was called by a name that nobody has given it (RFC 9110, 15.5.20).
    UnknownHost(String),
    Internal,
}

/// On an answer of the local API: the refusal in it [counts](Reject::counts_as_refusal).
#[derive(Clone, Copy, Debug)]
pub struct CountsAsRefusal;

/// Which meter was short, and when it will have more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    pub meter: MeterName,
    pub left: Micro,
    pub needed: Micro,
    pub reset: Option<Micro>,
    pub resets_at: Option<UnixMillis>,
}

/// Why a repeated call is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// The first one has not ended.
    Running,
    /// The key stands for another request.
    Different,
    /// The first one was answered, and the answer was not kept.
    NotKept,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateScope {
    Address,
    Key,
    User,
    /// What an address was refused for its credential, its path or its method.
    Refusals,
}

impl RateScope {
    pub const ALL: [Self; 4] = [Self::Address, Self::Key, Self::User, Self::Refusals];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Key => "key",
            Self::User => "user",
            Self::Refusals => "refusals",
        }
    }
}

impl Reject {
    /// Whether it draws on the address's rate of refusals: what callers without a credential, and callers that look for
    /// paths, are answered again and again. A login that lacks its second part is none.
    pub fn counts_as_refusal(&self) -> bool {
        matches!(
            self,
            Self::Unauthenticated
                | Self::SessionNeeded
                | Self::Replayed { .. }
                | Self::WrongCode
                | Self::LoginFactorRefused { .. }
                | Self::NotFound
                | Self::OnSidePort
                | Self::MethodNotAllowed(_)
        )
    }

    /// Whether a client that sends the call again as it is would only be refused again. Official SDKs repeat 409, 429 and
    /// whatever is 500 or above, unless they are told not to.
    fn is_final(&self) -> bool {
        matches!(
            self,
            Self::CreditsExhausted(_)
                | Self::CreditsRanOut
                | Self::Conflict(_)
                | Self::VersionNotSupported
                | Self::RateLimited { scope: RateScope::Refusals, .. }
        )
    }

    pub fn status(&self) -> u16 {
        match self {
            Self::BadRequest(_) | Self::Invalid(_) => 400,
            Self::Unauthenticated
            | Self::SessionNeeded
            | Self::Replayed { .. }
            | Self::CodeRequired
            | Self::WrongCode
            | Self::UniqueCodeRequired
            | Self::LoginFactorsMissing(_)
            | Self::LoginFactorRefused { .. } => 401,
            Self::WrongPassword | Self::FactorRequired | Self::PasswordChangeRequired | Self::OwnerProofRequired => 403,
            Self::AddressDenied | Self::AddressBlocked { .. } | Self::Forbidden(_) => 403,
            Self::NotFound | Self::OnSidePort => 404,
            Self::MethodNotAllowed(_) => 405,
            Self::RequestTimeout => 408,
            Self::Conflict(_) | Self::Repeated(Repeat::Running) => 409,
            Self::BodyTooLarge { .. } => 413,
            Self::UnsupportedMediaType(_) => 415,
            Self::ExpectationFailed => 417,
            Self::UnknownHost(_) => 421,
            Self::Repeated(Repeat::Different | Repeat::NotKept) => 422,
            Self::Locked { .. } => 423,
            Self::RateLimited { .. }
            | Self::TooManyInFlight { .. }
            | Self::NoPlace { .. }
            | Self::CreditsExhausted(_)
            | Self::CreditsRanOut => 429,
            Self::HeadTooLarge => 431,
            Self::Internal => 500,
            Self::UpstreamUnreachable => 502,
            Self::Overloaded(_) | Self::StoreUnavailable => 503,
            Self::UpstreamTimeout => 504,
            Self::VersionNotSupported => 505,
        }
    }

    pub fn code(&self) -> &'static str {
        match self {
            Self::Unauthenticated | Self::SessionNeeded | Self::Replayed { .. } => "UNAUTHENTICATED",
            Self::WrongPassword => "WRONG_PASSWORD",
            Self::CodeRequired => "MFA_REQUIRED",
            Self::WrongCode => "WRONG_CODE",
            Self::UniqueCodeRequired => "UNIQUE_CODE_REQUIRED",
            Self::LoginFactorsMissing(_) => "FACTORS_REQUIRED",
            Self::LoginFactorRefused { .. } => "FACTOR_REFUSED",
            Self::FactorRequired => "MFA_SETUP_REQUIRED",
            Self::PasswordChangeRequired => "PASSWORD_CHANGE_REQUIRED",
            Self::OwnerProofRequired => "OWNER_PROOF_REQUIRED",
            Self::BadRequest(_) | Self::Invalid(_) => "BAD_REQUEST",
            Self::AddressDenied => "ADDRESS_DENIED",
            Self::AddressBlocked { .. } => "ADDRESS_BLOCKED",
            Self::Forbidden(_) => "FORBIDDEN",
            Self::NotFound | Self::OnSidePort => "NOT_FOUND",
            Self::MethodNotAllowed(_) => "METHOD_NOT_ALLOWED",
            Self::Conflict(_) => "CONFLICT",
            Self::RateLimited { .. } => "RATE_LIMITED",
            Self::TooManyInFlight { .. } | Self::NoPlace { .. } => "TOO_MANY_IN_FLIGHT",
            Self::CreditsExhausted(_) | Self::CreditsRanOut => "CREDITS_EXHAUSTED",
            Self::Repeated(Repeat::Running) => "IDEMPOTENCY_CONFLICT",
            Self::Repeated(Repeat::Different) => "IDEMPOTENCY_MISMATCH",
            Self::Repeated(Repeat::NotKept) => "IDEMPOTENCY_ANSWERED",
            Self::BodyTooLarge { .. } => "BODY_TOO_LARGE",
            Self::UnsupportedMediaType(_) => "UNSUPPORTED_MEDIA_TYPE",
            Self::Locked { .. } => "LOCKED",
            Self::Overloaded(_) => "OVERLOADED",
            Self::StoreUnavailable => "STORE_UNAVAILABLE",
            Self::UpstreamUnreachable => "UPSTREAM_UNREACHABLE",
            Self::UpstreamTimeout => "UPSTREAM_TIMEOUT",
            Self::HeadTooLarge => "HEAD_TOO_LARGE",
            Self::RequestTimeout => "REQUEST_TIMEOUT",
            Self::ExpectationFailed => "EXPECTATION_FAILED",
            Self::VersionNotSupported => "VERSION_NOT_SUPPORTED",
            Self::UnknownHost(_) => "MISDIRECTED_REQUEST",
            Self::Internal => "INTERNAL",
        }
    }

    /// The type the OpenAI clients know.
    fn openai_type(&self) -> &'static str {
        match self.status() {
            401 => "authentication_error",
            403 => "permission_error",
            429 if matches!(self, Self::CreditsExhausted(_) | Self::CreditsRanOut) => "insufficient_quota",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        }
    }

    /// What a client reads.
    pub fn message(&self) -> String {
        match self {
            Self::Unauthenticated | Self::Replayed { .. } => "Invalid or missing credential".into(),
            Self::WrongPassword => "The password is wrong".into(),
            Self::CodeRequired => "A code of the second factor is needed: send it as `code`".into(),
            Self::UniqueCodeRequired => "A one-time code is needed: send it as `unique_code`".into(),
            Self::WrongCode => "The code is wrong, too old, or has been used".into(),
            Self::LoginFactorsMissing(fields) => format!("A login here needs {}", fields.join(", ")),
            Self::LoginFactorRefused { reason: Some(reason) } => format!("The login was refused: {reason}"),
            Self::LoginFactorRefused { reason: None } => "The login was refused".into(),
            Self::FactorRequired => "Your role needs a second factor: set one up first".into(),
            Self::PasswordChangeRequired => "The password was set by staff and must be changed first".into(),
            Self::OwnerProofRequired => {
                "Staff has changed this account's password or email. Show first that it is yours: sign in with a code of \
                 your second factor, or open the link that POST /v1/users/verify-email/resend mails to the address that \
                 was verified before. Without either, ask the staff"
                    .into()
            }
            Self::SessionNeeded => {
                "This call takes a session token (POST /v1/users/login), not an API key".into()
            }
            Self::BadRequest(why) | Self::Conflict(why) => why.clone(),
            Self::Invalid(errors) => errors.first().cloned().unwrap_or_else(|| "Invalid request".into()),
            Self::AddressDenied => "Access from this address is not allowed".into(),
            Self::AddressBlocked { .. } => {
                "This address is blocked for guessing: too many wrong credentials came from it".into()
            }
            Self::Forbidden(why) => (*why).into(),
            Self::NotFound => "Nothing is here".into(),
            Self::OnSidePort => "Nothing is here: administrators and staff call on the side port (listen.admin)".into(),
            Self::MethodNotAllowed(allowed) if allowed.is_empty() => "This method is not allowed here".into(),
            Self::MethodNotAllowed(allowed) => {
                format!("This method is not allowed here; use {}", allowed.replace(", ", " or "))
            }
            Self::RateLimited { scope: RateScope::Refusals, limit, .. } => {
                format!("More than {limit} refused requests a minute from this address")
            }
            Self::RateLimited { limit, .. } => format!("Rate limit of {limit} requests a minute exceeded"),
            Self::TooManyInFlight { limit } => format!("More than {limit} calls in flight"),
            Self::NoPlace { name, limit, .. } => format!("{name} is full: at most {limit} users at once"),
            Self::CreditsExhausted(short) => match short.meter.as_str() {
                "conversations" => "Insufficient conversation credits".into(),
                meter => format!("Insufficient {meter}"),
            },
            Self::CreditsRanOut => "The credits did not last for the rest of this answer".into(),
            Self::Repeated(Repeat::Running) => "A call with this Idempotency-Key is still running".into(),
            Self::Repeated(Repeat::Different) => "This Idempotency-Key was used for a different request".into(),
            Self::Repeated(Repeat::NotKept) => {
                "The call with this Idempotency-Key was answered, and its answer was not kept".into()
            }
            Self::BodyTooLarge { limit } => format!("The request body is over the limit of {limit} bytes"),
            Self::Locked { .. } => "This account is temporarily locked".into(),
            Self::Overloaded(why) | Self::UnsupportedMediaType(why) => (*why).into(),
            Self::StoreUnavailable => "The service cannot record calls at the moment".into(),
            Self::UpstreamUnreachable => "The upstream service cannot be reached".into(),
            Self::UpstreamTimeout => "The upstream service took too long".into(),
            Self::HeadTooLarge => "The request's header fields are too large".into(),
            Self::RequestTimeout => "The request took too long to arrive".into(),
            Self::ExpectationFailed => "Only the expectation 100-continue is supported".into(),
            Self::VersionNotSupported => "This version of HTTP is not supported".into(),
            Self::UnknownHost(host) => format!(
                "The side port is not known by the name \"{host}\": call it by its address, or add the name to listen.admin_hosts"
            ),
            Self::Internal => "Internal error".into(),
        }
    }

    /// All that is wrong, in one line, for a person at a terminal.
    pub fn describe(&self) -> String {
        self.errors().join("; ")
    }

    fn errors(&self) -> Vec<String> {
        match self {
            Self::Invalid(errors) => errors.clone(),
            Self::LoginFactorsMissing(fields) => fields.iter().map(|field| format!("{field}: is required")).collect(),
            Self::CreditsExhausted(short) => {
                vec![format!("{}: {} left, {} needed", short.meter, short.left, short.needed)]
            }
            Self::AddressBlocked { retry_after } => vec![format!(
                "address: blocked for guessing; try again in {} s, or ask an administrator to lift the block",
                whole_seconds(*retry_after)
            )],
            Self::RateLimited { scope: RateScope::Refusals, retry_after, .. } => {
                vec![format!("limit of refusals: try again in {} s", whole_seconds(*retry_after))]
            }
            Self::RateLimited { scope, retry_after, .. } => {
                vec![format!("limit per {}: try again in {} s", scope.as_str(), whole_seconds(*retry_after))]
            }
            Self::NoPlace { name, limit, retry_after } => {
                vec![format!("{name}: at most {limit} users at once; try again in {} s", whole_seconds(*retry_after))]
            }
            other => vec![other.message()],
        }
    }

    fn limits(&self) -> Option<Value> {
        let Self::CreditsExhausted(short) = self else { return None };
        let mut limits = json!({
            "meter": short.meter.as_str(),
            "balance": short.left.to_json(),
            "needed": short.needed.to_json(),
            "reset": short.reset.map(Micro::to_json),
            "resets_at": short.resets_at.map(UnixMillis::rfc3339),
        });
        // The name the oldest clients look for.
        limits["conversation_limit"] = Value::from(short.left.whole_units());
        Some(limits)
    }

    /// Seconds for `Retry-After`, at least 1.
    pub fn retry_after(&self) -> Option<u64> {
        match self {
            Self::RateLimited { retry_after, .. }
            | Self::AddressBlocked { retry_after }
            | Self::NoPlace { retry_after, .. }
            | Self::Locked { retry_after } => Some(whole_seconds(*retry_after)),
            Self::TooManyInFlight { .. } | Self::Overloaded(_) | Self::Repeated(Repeat::Running) => Some(1),
            Self::StoreUnavailable => Some(5),
            Self::CreditsExhausted(_) => None,
            _ => None,
        }
    }

    /// The header fields that belong to this refusal, besides content type and length.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = Vec::new();
        if self.status() == 401 {
            headers.push(("www-authenticate", "Bearer realm=\"tollgate\"".to_owned()));
        }
        if let Self::MethodNotAllowed(allowed) = self
            && !allowed.is_empty()
        {
            headers.push(("allow", allowed.clone()));
        }
        if let Some(seconds) = self.retry_after() {
            headers.push(("retry-after", seconds.to_string()));
        }
        if self.is_final() {
            headers.push(("x-should-retry", "false".to_owned()));
        }
        headers
    }

    /// The one error body.
    pub fn body(&self, request: RequestId, now: UnixMillis) -> Vec<u8> {
        self.body_for(None, request, now)
    }

    /// The one error body, with what a dialect's clients look for besides.
    pub fn body_for(&self, dialect: Option<Dialect>, request: RequestId, now: UnixMillis) -> Vec<u8> {
        let message = match (dialect, self) {
            // The sentence that this system documents, in its users' language.
            (Some(Dialect::Noteria), Self::WrongCode) => "Kodi unik nuk është i vlefshëm".to_owned(),
            _ => self.message(),
        };
        let mut body = json!({
            "success": false,
            "message": message,
            "error_code": self.code(),
            "errors": self.errors(),
            "details": {"request_id": request.as_str(), "timestamp": now.rfc3339()},
            "error": {"message": message, "type": self.openai_type(), "code": self.code(), "param": null},
        });
        if let Some(limits) = self.limits() {
            body["limits"] = limits;
        }
        match dialect {
            None => {}
            // What FastAPI makes of an exception; and who asks whether a credential is good reads `valid`.
            Some(Dialect::Clisonix | Dialect::Usermgmt) => {
                body["detail"] = message.into();
                if self.status() == 401 {
                    body["valid"] = false.into();
                }
            }
            // Pages show this member as it is.
            Some(Dialect::Aiezzy | Dialect::Noteria) => body["error"] = message.into(),
        }
        body.to_string().into_bytes()
    }
}

fn whole_seconds(time: Duration) -> u64 {
    time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_the_one_of_the_contract() {
        let reject = Reject::CreditsExhausted(Box::new(Shortage {
            meter: MeterName::parse("conversations").unwrap(),
            left: Micro(0),
            needed: Micro(1_000_000),
            reset: Some(Micro(10_000_000)),
            resets_at: UnixMillis::parse_rfc3339("2026-01-16T00:00:00Z"),
        }));
        let now = UnixMillis::parse_rfc3339("2026-01-15T12:00:00Z").unwrap();
        let body: Value = serde_json::from_slice(&reject.body(RequestId::from_parts(1, 2), now)).unwrap();
        assert_eq!(body["message"], "Insufficient conversation credits");
        assert_eq!(body["errors"], json!(["conversations: 0 left, 1 needed"]));
        assert_eq!(body["limits"]["conversation_limit"], 0);
        assert_eq!(body["limits"]["reset"], 10);
        assert_eq!(body["limits"]["resets_at"], "2026-01-16T00:00:00Z");
        assert_eq!(body["error"]["type"], "insufficient_quota");
        assert_eq!(body["details"]["timestamp"], "2026-01-15T12:00:00Z");
        assert_eq!(reject.status(), 429);
        assert_eq!(reject.headers(), [("x-should-retry", "false".to_owned())]);
    }

    #[test]
    fn clients_are_told_what_not_to_repeat() {
        let told = |reject: Reject| reject.headers().contains(&("x-should-retry", "false".to_owned()));
        let limited = |scope| Reject::RateLimited { scope, retry_after: Duration::from_secs(1), limit: 60 };
        for reject in [
            Reject::CreditsRanOut,
            Reject::Conflict("taken".into()),
            Reject::VersionNotSupported,
            limited(RateScope::Refusals),
        ] {
            assert!(told(reject.clone()), "{reject:?}");
        }
        for reject in [
            limited(RateScope::Address),
            limited(RateScope::Key),
            Reject::TooManyInFlight { limit: 1 },
            Reject::Repeated(Repeat::Running),
            Reject::Overloaded("busy"),
            Reject::StoreUnavailable,
            Reject::UpstreamUnreachable,
            Reject::UpstreamTimeout,
        ] {
            assert!(!told(reject.clone()), "{reject:?}");
        }
    }

    #[test]
    fn retry_after_is_rounded_up() {
        let reject = Reject::RateLimited { scope: RateScope::Key, retry_after: Duration::from_millis(1001), limit: 60 };
        assert_eq!(reject.headers(), [("retry-after", "2".to_owned())]);
    }
}
