//! What a login brings besides the password, judged by a verifier of the operator's.
//!
//! Owns the rule that nobody comes in unjudged: a verifier that says no, says nothing, says it too late or something else
//! lets nobody in. It is asked when the password and the second factor are right and before a one-time code is used up; one
//! login of an account at a time, so that parallel guesses cannot outrun their count, which is apart from the others. What a
//! login brought goes to the verifier and nowhere else: it is not stored, logged, or repeated in an answer, not even in the
//! verifier's own words.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::blocks::Guess;
use super::guesses::Door;
use super::oauth::http::HttpClient;
use super::sessions::{Proven, may_enter};
use super::{Accounts, Forget};
use crate::actors::audit::{Action, Actor, Origin, Record};
use crate::config::{self, SocialLogins, is_factor_name};
use crate::domain::ids::{RequestId, UserId};
use crate::domain::user::User;
use crate::error::Reject;
use crate::store::Batch;
use crate::telemetry::metrics::{Login, LoginChecked};

const MAX_FACTORS: usize = 16;
const PERSONAL_NUMBER: &str = "personal_number";
const PERSONAL_NUMBER_DIGITS: usize = 10;
/// Logins of one account that wait while another one is judged.
const MAX_WAITING: usize = 4;
/// The most of a verifier's answer that is read.
const MAX_ANSWER_BYTES: usize = 16 << 10;
const MAX_REASON_CHARS: usize = 200;

const UNAVAILABLE: Reject = Reject::Overloaded("Logins cannot be checked at the moment; try again");
const BUSY: Reject = Reject::Overloaded("Too many logins are being checked; try again");

/// What a login brings, by name. Never printed.
#[derive(Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Factors(BTreeMap<String, String>);

impl From<BTreeMap<String, String>> for Factors {
    fn from(mut factors: BTreeMap<String, String>) -> Self {
        // A form sends its empty fields along.
        factors.retain(|_, value| !value.trim().is_empty());
        Self(factors)
    }
}

impl fmt::Debug for Factors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Factors(…)")
    }
}

impl Factors {
    /// Our own rules: what must be there, and what it looks like.
    fn judge(&self, rules: &config::LoginCheck) -> Result<(), Reject> {
        if self.0.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > rules.max_bytes {
            return Err(Reject::BodyTooLarge { limit: rules.max_bytes as u64 });
        }
        if self.0.len() > MAX_FACTORS || !self.0.keys().all(|name| is_factor_name(name)) {
            let why = "must be at most 16, with names of 1 to 32 lower-case letters, digits and _";
            return Err(Reject::Invalid(vec![format!("factors: {why}")]));
        }
        let missing = rules.required.iter().filter(|name| !self.0.contains_key(*name));
        let missing: Vec<String> = missing.map(|name| format!("factors.{name}")).collect();
        if !missing.is_empty() {
            return Err(Reject::LoginFactorsMissing(missing));
        }
        let is_number =
            |text: &String| text.len() == PERSONAL_NUMBER_DIGITS && text.bytes().all(|b| b.is_ascii_digit());
        match self.0.get(PERSONAL_NUMBER) {
            Some(text) if !is_number(text) => Err(Reject::Invalid(vec![format!(
                "factors.{PERSONAL_NUMBER}: must be {PERSONAL_NUMBER_DIGITS} digits"
            )])),
            _ => Ok(()),
        }
    }

    /// The verifier's reason, if a client may read it: short, printable, and without what the login brought.
    fn tellable(&self, reason: String) -> Option<String> {
        let steers = |c: char| {
            c.is_control()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
        };
        let fits = (1..=MAX_REASON_CHARS).contains(&reason.chars().count()) && !reason.chars().any(steers);
        // Also in other spacing and case.
        let said = bare(&reason);
        let repeats = self.0.values().any(|value| said.contains(&bare(value)));
        (fits && !repeats).then_some(reason)
    }
}

fn bare(text: &str) -> String {
    text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// What a verifier is asked.
#[derive(Serialize)]
pub struct Question {
    pub user_id: u64,
    pub username: String,
    pub email: String,
    pub address: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    pub factors: Factors,
}

/// What a verifier says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Allow,
    Refuse { reason: Option<String> },
}

/// Why there is no verdict, for the log: nothing that was sent or answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unanswered(pub String);

type Asking<'a> = Pin<Box<dyn Future<Output = Result<Verdict, Unanswered>> + Send + 'a>>;

/// A verifier. How long it may take is watched by who asks.
pub trait LoginCheck: Send + Sync {
    /// # Errors
    /// Whatever is neither yes nor no: [`Unanswered`].
    fn ask<'a>(&'a self, question: &'a Question) -> Asking<'a>;
}

/// A verifier over HTTP: a `POST` of the question as JSON, and `{"allow": …, "reason": …}` with status 200 for an answer.
struct HttpCheck {
    client: HttpClient,
    url: String,
    /// `Bearer …`
    authorization: Option<String>,
}

#[derive(Deserialize)]
struct HttpAnswer {
    allow: bool,
    #[serde(default)]
    reason: Option<String>,
}

impl HttpCheck {
    fn new(rules: &config::LoginCheck, secret: Option<&str>) -> Result<Self, Unanswered> {
        // Whoever wrote the URL runs the verifier, wherever it is.
        let client = HttpClient::bounded(true, rules.timeout.0, MAX_ANSWER_BYTES);
        Ok(Self {
            client: client.map_err(|error| Unanswered(error.to_string()))?,
            url: rules.url.clone().unwrap_or_default(),
            authorization: secret.map(|secret| format!("Bearer {secret}")),
        })
    }
}

impl LoginCheck for HttpCheck {
    fn ask<'a>(&'a self, question: &'a Question) -> Asking<'a> {
        Box::pin(async move {
            let body = serde_json::to_vec(question).map_err(|_| Unanswered("the question cannot be written".into()))?;
            let mut request = http::Request::post(&self.url).header(http::header::CONTENT_TYPE, "application/json");
            if let Some(authorization) = &self.authorization {
                request = request.header(http::header::AUTHORIZATION, authorization);
            }
            let request = request.body(body).map_err(|_| Unanswered("the request cannot be built".into()))?;
            let answer = self.client.send(request).await.map_err(|error| Unanswered(error.to_string()))?;
            if answer.status() != http::StatusCode::OK {
                return Err(Unanswered(format!("it answers with status {}", answer.status().as_u16())));
            }
            // What serde says of a wrong answer may quote it.
            let HttpAnswer { allow, reason } = serde_json::from_slice(answer.body())
                .map_err(|_| Unanswered("its answer is not {\"allow\": true} or {\"allow\": false}".into()))?;
            Ok(if allow { Verdict::Allow } else { Verdict::Refuse { reason } })
        })
    }
}

/// Stands in for a verifier that cannot be asked at all.
struct Nobody(String);

impl LoginCheck for Nobody {
    fn ask<'a>(&'a self, _: &'a Question) -> Asking<'a> {
        Box::pin(async { Err(Unanswered(self.0.clone())) })
    }
}

/// The verifier in force, and who is asking it.
pub(super) struct Checker {
    rules: config::LoginCheck,
    secret: Option<String>,
    verifier: Arc<dyn LoginCheck>,
    places: Semaphore,
    /// Accounts of which a login is being judged, each with those that wait for their turn.
    turns: Mutex<HashMap<UserId, Turn>>,
}

#[derive(Clone, Default)]
struct Turn {
    gate: Arc<tokio::sync::Mutex<()>>,
    inside: usize,
}

/// A login in the line of its account.
struct InLine<'a> {
    checker: &'a Checker,
    user: UserId,
    gate: Arc<tokio::sync::Mutex<()>>,
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        let mut turns = self.checker.turns.lock();
        if let Some(turn) = turns.get_mut(&self.user) {
            turn.inside -= 1;
            if turn.inside == 0 {
                turns.remove(&self.user);
            }
        }
    }
}

impl Checker {
    fn new(rules: config::LoginCheck, secret: Option<String>, verifier: Arc<dyn LoginCheck>) -> Self {
        let places = Semaphore::new(rules.max_concurrent);
        Self { rules, secret, verifier, places, turns: Mutex::default() }
    }

    /// `None` when so many wait already.
    fn line_up(&self, user: UserId) -> Option<InLine<'_>> {
        let mut turns = self.turns.lock();
        let turn = turns.entry(user).or_default();
        if turn.inside > MAX_WAITING {
            return None;
        }
        turn.inside += 1;
        Some(InLine { checker: self, user, gate: turn.gate.clone() })
    }
}

/// Whether logins are checked, and by whom.
#[derive(Default)]
pub(super) struct LoginChecks(ArcSwapOption<Checker>);

impl LoginChecks {
    pub(super) fn new(rules: &config::LoginCheck) -> Self {
        let checks = Self::default();
        checks.reconfigure(rules);
        checks
    }

    /// Logins that are being judged go on with the verifier they have.
    pub(super) fn reconfigure(&self, rules: &config::LoginCheck) {
        if rules.url.is_none() {
            return self.0.store(None);
        }
        let secret = rules.secret.as_ref().map(config::SecretSource::read).transpose();
        let known = self.0.load_full();
        if known
            .is_some_and(|known| known.rules == *rules && secret.as_ref().is_ok_and(|secret| *secret == known.secret))
        {
            return;
        }
        let made = secret.map_err(Unanswered).and_then(|secret| {
            let verifier = Arc::new(HttpCheck::new(rules, secret.as_deref())?);
            Ok(Checker::new(rules.clone(), secret, verifier))
        });
        let checker = made.unwrap_or_else(|Unanswered(why)| {
            tracing::error!(why, "the verifier of logins cannot be used: no login with a password gets in");
            Checker::new(rules.clone(), None, Arc::new(Nobody(why)))
        });
        self.0.store(Some(Arc::new(checker)));
    }

    /// Asks somebody else under the same rules.
    #[cfg(test)]
    pub(super) fn ask_instead(&self, verifier: Arc<dyn LoginCheck>) {
        let rules = self.0.load_full().unwrap().rules.clone();
        self.0.store(Some(Arc::new(Checker::new(rules, None, verifier))));
    }
}

/// A login that is to be judged once its password has been.
pub(super) struct Checking {
    checker: Arc<Checker>,
    factors: Factors,
}

impl Accounts {
    /// Looks at what a login brings, before its password: nobody need compute a hash for what must be refused anyway.
    /// `None` when logins are not checked.
    ///
    /// # Errors
    /// [`Reject::LoginFactorsMissing`], [`Reject::Invalid`], [`Reject::BodyTooLarge`].
    pub(super) fn begin_check(&self, factors: Factors) -> Result<Option<Checking>, Reject> {
        let Some(checker) = self.login_checks.0.load_full() else { return Ok(None) };
        factors.judge(&checker.rules)?;
        Ok(Some(Checking { checker, factors }))
    }

    /// Has somebody whose password is right judged by the verifier.
    ///
    /// # Errors
    /// [`Reject::LoginFactorRefused`]; [`Reject::Locked`] after too many of those; [`Reject::Overloaded`] when there is no
    /// verdict; those of a one-time code that could not be taken anyway.
    pub(super) async fn pass_check<'a>(
        &self,
        Checking { checker, factors }: Checking,
        id: UserId,
        proven: Proven<'a>,
        unique_code: Option<&str>,
        door: Door,
        request: Option<RequestId>,
    ) -> Result<Proven<'a>, Reject> {
        let proven = self.replace_hash(id, proven).await?;
        // Nobody is to be asked in vain: not for who brings a code that is missing, wrong or used.
        if let Some(turn) = self.code_turn(id, unique_code, door).await? {
            self.use_unique_code(id, &turn, &mut Batch::default())?;
        }
        let subject = self.pepper.mac_in("login check of", &id.0.to_be_bytes());
        let busy = |()| {
            self.metrics.login_checked(LoginChecked::Busy);
            BUSY
        };
        let limit = checker.rules.timeout.0;
        let line = checker.line_up(id).ok_or(()).map_err(busy)?;
        let _turn = timeout(limit, line.gate.lock()).await.map_err(|_| busy(()))?;
        self.refuse_blocked(door)?;
        if let Some(retry_after) = self.factor_failures.blocked_for(&subject, self.clock.monotonic()) {
            self.metrics.login(Login::Locked);
            return Err(Reject::Locked { retry_after });
        }
        let _place = checker.places.try_acquire().map_err(|_| busy(()))?;
        let user = self.live_user(Some(id))?.ok_or(Reject::Unauthenticated)?.value;
        may_enter(&user)?;
        let question = Question {
            user_id: id.0,
            username: user.username.to_string(),
            email: user.email.to_string(),
            address: door.address,
            request_id: request.map(|id| id.as_str().to_owned()),
            factors,
        };
        let asked = timeout(limit, checker.verifier.ask(&question)).await;
        match asked.unwrap_or_else(|_| Err(Unanswered("it takes too long".into()))) {
            Ok(Verdict::Allow) => {
                self.metrics.login_checked(LoginChecked::Allowed);
                self.factor_failures.succeeded(&subject);
                Ok(proven)
            }
            Ok(Verdict::Refuse { reason }) => {
                self.metrics.login_checked(LoginChecked::Refused);
                self.metrics.login(Login::Failed);
                self.factor_failures.failed(subject, self.clock.monotonic());
                self.count_guess(door, Guess::Factor)?;
                let reason = reason.and_then(|reason| question.factors.tellable(reason));
                let reject = Reject::LoginFactorRefused { reason };
                let record = Record::of(Action::LoginCheckRefused).by(Actor::anonymous());
                let from = Origin { address: Some(door.address), request };
                self.note_denial(record.from(from).on(&user), &reject);
                Err(reject)
            }
            Err(Unanswered(why)) => {
                tracing::warn!(why, "the verifier of logins cannot be asked");
                self.metrics.login_checked(LoginChecked::Unavailable);
                Err(UNAVAILABLE)
            }
        }
    }

    /// Puts a new hash in the old one's place at once: the turn that a replacement keeps is shared with other accounts, which
    /// are not to wait for a verifier.
    async fn replace_hash<'a>(&self, id: UserId, proven: Proven<'a>) -> Result<Proven<'a>, Reject> {
        let Some(new) = proven.upgraded.clone() else { return Ok(proven) };
        let edit = |user: &mut User, _: &mut Batch| {
            // Changed since it was verified: the old password opens nothing any more.
            if user.password_hash != proven.hash {
                return Err(Reject::Unauthenticated);
            }
            user.password_hash = Some(new.clone());
            Ok(())
        };
        self.change_user(id, Forget::Nothing, edit).await?;
        Ok(Proven { hash: Some(new), upgraded: None, _turn: None })
    }

    /// Whether a provider's word is enough for a login.
    ///
    /// # Errors
    /// [`Reject::Forbidden`] where logins are checked: a provider brings no factors.
    pub(super) fn judge_social_login(&self) -> Result<(), Reject> {
        match &*self.login_checks.0.load() {
            Some(checker) if checker.rules.social == SocialLogins::Refuse => {
                Err(Reject::Forbidden("Logins here need more than a provider can confirm; sign in with your password"))
            }
            _ => Ok(()),
        }
    }

    /// Whether somebody who registers gets a session with it: not where logins are judged.
    pub(super) fn opens_at_registration(&self) -> bool {
        self.login_checks.0.load().is_none()
    }

    /// Logins that are with the verifier.
    pub fn login_checks_running(&self) -> usize {
        let checker = self.login_checks.0.load();
        checker.as_ref().map_or(0, |checker| checker.rules.max_concurrent - checker.places.available_permits())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::passwords::Password;
    use super::super::sessions::LoginRequest;
    use super::super::tests::{HERE, PASSWORD, World, world};
    use super::*;
    use crate::domain::session::SessionStyle;

    /// Says the same to everybody, and counts.
    struct Scripted {
        verdict: Result<Verdict, Unanswered>,
        asked: AtomicUsize,
        inside: AtomicUsize,
        most: AtomicUsize,
    }

    impl LoginCheck for Scripted {
        fn ask<'a>(&'a self, _: &'a Question) -> Asking<'a> {
            Box::pin(async {
                self.asked.fetch_add(1, Ordering::AcqRel);
                let inside = self.inside.fetch_add(1, Ordering::AcqRel) + 1;
                self.most.fetch_max(inside, Ordering::AcqRel);
                for _ in 0..1000 {
                    tokio::task::yield_now().await;
                }
                self.inside.fetch_sub(1, Ordering::AcqRel);
                self.verdict.clone()
            })
        }
    }

    async fn judged_by(verdict: Result<Verdict, Unanswered>) -> (World, Arc<Scripted>) {
        let toml = "[access]\nblock_after_failures = 0\n[accounts.login_check]\nurl = \"http://127.0.0.1:1/\"\n";
        let world = world(toml);
        let zero = AtomicUsize::default;
        let verifier = Arc::new(Scripted { verdict, asked: zero(), inside: zero(), most: zero() });
        world.accounts.login_checks.ask_instead(verifier.clone());
        world.register("johndoe").await;
        (world, verifier)
    }

    async fn login(accounts: Arc<Accounts>) -> Result<(), Reject> {
        let request = LoginRequest {
            identifier: "johndoe".into(),
            password: Password::new(PASSWORD).unwrap(),
            code: None,
            unique_code: None,
            factors: Factors::default(),
            address: HERE,
            request: None,
            user_agent: None,
            device: None,
            style: SessionStyle::default(),
        };
        accounts.login(request).await.map(|_| ())
    }

    #[tokio::test]
    async fn a_verdict_is_the_only_way_in() {
        let (allowing, _) = judged_by(Ok(Verdict::Allow)).await;
        login(allowing.accounts.clone()).await.unwrap();
        let (silent, verifier) = judged_by(Err(Unanswered("x".into()))).await;
        for _ in 0..8 {
            assert_eq!(login(silent.accounts.clone()).await, Err(UNAVAILABLE));
        }
        assert_eq!(verifier.asked.load(Ordering::Acquire), 8, "silence is not counted as a guess");
        let (refusing, verifier) = judged_by(Ok(Verdict::Refuse { reason: None })).await;
        for _ in 0..5 {
            assert_eq!(login(refusing.accounts.clone()).await, Err(Reject::LoginFactorRefused { reason: None }));
        }
        assert!(matches!(login(refusing.accounts.clone()).await, Err(Reject::Locked { .. })));
        assert_eq!(verifier.asked.load(Ordering::Acquire), 5);
    }

    #[tokio::test]
    async fn of_one_account_one_login_at_a_time_is_judged() {
        let (world, verifier) = judged_by(Ok(Verdict::Allow)).await;
        let logins: Vec<_> = (0..5).map(|_| tokio::spawn(login(world.accounts.clone()))).collect();
        for login in logins {
            assert_eq!(login.await.unwrap(), Ok(()));
        }
        assert_eq!(verifier.most.load(Ordering::Acquire), 1);
        let checker = world.accounts.login_checks.0.load_full().unwrap();
        assert!(checker.turns.lock().is_empty(), "nobody is remembered");
        assert_eq!(checker.places.available_permits(), checker.rules.max_concurrent);
    }

    #[test]
    fn nothing_prints_what_a_login_brings() {
        let factors = Factors::from(BTreeMap::from([("photo".to_owned(), "secret".to_owned())]));
        assert_eq!(format!("{factors:?}"), "Factors(…)");
    }
}
