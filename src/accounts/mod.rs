//! Who may call: users, their sessions and keys, staff, and the address rules that staff makes.
//!
//! Owns every rule about identities and the one order in which a change of standing or credentials happens: on disk, then
//! in force in memory, then answered. Never speaks HTTP, never touches a meter but through its user's actor.

pub mod addresses;
pub mod audit;
pub mod blocks;
pub mod books;
pub mod checks;
pub mod codes;
mod common;
pub mod credits;
pub mod deletion;
pub mod devices;
pub mod directory;
mod fields;
pub mod guesses;
pub mod jwt;
pub mod key_use;
pub mod keys;
pub mod legacy;
pub mod login_check;
pub mod mail;
pub mod mfa;
pub mod oauth;
pub mod operator;
pub mod overview;
pub mod own;
pub mod passwords;
mod plans;
pub mod proof;
mod quotas;
pub mod registration;
pub mod roster;
pub mod seal;
pub mod secrets;
pub mod sessions;
pub mod staff;
#[cfg(test)]
pub(crate) mod tests;
pub mod tokens;
pub mod transfer;
pub mod usage;
pub mod users;
pub mod verification;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;

use crate::actors::audit::{Action, Actor, Audit, Record};
use crate::actors::user::registry::Registry;
use crate::actors::writer::Journal;
use crate::clock::Clock;
use crate::config::{self, Access, Config, Plan};
use crate::domain::cookies::CookieRule;
use crate::domain::ids::{SecretMac, UserId};
use crate::domain::meters::MeterName;
use crate::domain::pages::Pages;
use crate::domain::user::User;
use crate::error::Reject;
use crate::store::committer::{Committer, Rider};
use crate::store::{Batch, MAX_VALUE_BYTES, Store, StoreError, tables};
use crate::telemetry::metrics::Metrics;

use addresses::AddressBook;
use blocks::{AddressBlocks, Failures};
use jwt::TokenMint;
use operator::Operator;
use passwords::PasswordPool;
use seal::Sealer;
use secrets::Pepper;

/// The parts of the config that accounts go by; a reload swaps them.
#[derive(Clone, Debug)]
pub struct Settings {
    pub accounts: config::Accounts,
    pub plans: Vec<Plan>,
    pub access: Access,
    pub mail: config::Mail,
    pub oauth: std::collections::BTreeMap<String, config::OauthProvider>,
    pub base_url: Option<String>,
    pub compat: config::Compat,
    /// Where sessions in cookies count.
    pub cookies: Option<CookieRule>,
    /// Whose pages may try passwords and make accounts.
    pub pages: Pages,
    /// The whole config, masked, to be shown.
    pub effective: Arc<serde_json::Value>,
    /// Every meter that a plan gives, or a route or a model costs.
    pub meters: BTreeSet<MeterName>,
}

impl From<&Config> for Settings {
    fn from(config: &Config) -> Self {
        let given = config.plans.iter().flat_map(|plan| plan.meters.iter().map(|meter| meter.name.clone()));
        let routes = config
            .routes
            .iter()
            .flat_map(|route| &route.cost)
            .chain(&config.verify_key_cost)
            .chain(config.forward.iter().flat_map(|rule| &rule.cost));
        let models = config.prices.models.iter().flat_map(|(_, prices)| prices).chain(&config.prices.default);
        Self {
            meters: given.chain(routes.chain(models).map(|(name, _)| name.clone())).collect(),
            accounts: config.accounts.clone(),
            plans: config.plans.clone(),
            access: config.access.clone(),
            mail: config.mail.clone(),
            oauth: config.oauth.clone(),
            base_url: config.public_base_url.clone(),
            compat: config.compat.clone(),
            cookies: config.cookie_rule(),
            pages: Pages::new(config.public_base_url.as_deref(), &config.cors.origins),
            effective: config.effective.clone(),
        }
    }
}

impl Settings {
    pub fn plan(&self, name: &str) -> Option<&Plan> {
        self.plans.iter().find(|plan| &*plan.name == name)
    }

    fn lockout(&self) -> Duration {
        Duration::try_from_secs_f64(self.accounts.lockout_hours * 3600.0).unwrap_or_default()
    }
}

/// What the service is made of.
pub struct AccountsParts {
    pub committer: Committer,
    pub users: Arc<Registry>,
    pub journal: Journal,
    pub audit: Audit,
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
    pub settings: Settings,
    pub pepper: Pepper,
    pub sealer: Sealer,
    pub tokens: TokenMint,
}

/// The service. Shared by the public API, the side port and, for its lookups, the request path.
pub struct Accounts {
    committer: Committer,
    users: Arc<Registry>,
    journal: Journal,
    audit: Audit,
    metrics: Arc<Metrics>,
    clock: Clock,
    settings: ArcSwap<Settings>,
    pepper: Pepper,
    sealer: Sealer,
    tokens: Arc<TokenMint>,
    passwords: PasswordPool,
    /// What the store says of the cost of bcrypt among its hashes.
    bcrypt_noted: AtomicU32,
    /// Wrong passwords per account, or rather per name that was tried: names that do not exist lock just the same.
    lockouts: Failures<SecretMac>,
    /// Password checks of one name come one after the other, so that parallel guesses cannot outrun the count.
    login_turns: Vec<tokio::sync::Mutex<()>>,
    /// Wrong codes of second factors, apart from passwords: who knows the password must not guess the code instead.
    factor_failures: Failures<SecretMac>,
    factor_turns: Vec<tokio::sync::Mutex<()>>,
    blocks: Arc<AddressBlocks>,
    addresses: Arc<AddressBook>,
    in_force: Arc<InForce>,
    directory: Arc<directory::Directory>,
    operator: ArcSwapOption<Operator>,
    mail: mail::MailState,
    oauth: oauth::OauthState,
    login_checks: login_check::LoginChecks,
    strangers: verification::Strangers,
    overview: overview::Kept,
    key_uses: Arc<key_use::KeyUses>,
}

/// Names whose failures are remembered at once.
const MAX_TRACKED_NAMES: usize = 65_536;
const LOGIN_TURNS: usize = 256;
/// How often a change is tried again when another one came first.
const MAX_TRIES: usize = 64;

impl Accounts {
    /// # Errors
    /// [`StoreError`] when the address rules cannot be read.
    pub fn new(parts: AccountsParts) -> Result<Self, StoreError> {
        let AccountsParts { committer, users, journal, audit, metrics, clock, settings, pepper, sealer, tokens } =
            parts;
        let accounts = &settings.accounts;
        users.audit_to(audit.clone());
        let directory = Arc::new(directory::Directory::default());
        let passwords = PasswordPool::new(accounts.hash_concurrency, accounts.hash_queue, &pepper);
        let bcrypt_cost = tables::read(committer.store(), &tables::counter(sessions::BCRYPT_COUNTER))?.unwrap_or(0);
        passwords.expect_bcrypt(bcrypt_cost);
        Ok(Self {
            passwords,
            bcrypt_noted: AtomicU32::new(bcrypt_cost),
            lockouts: Failures::new(accounts.max_failed_logins, settings.lockout(), MAX_TRACKED_NAMES),
            login_turns: (0..LOGIN_TURNS).map(|_| tokio::sync::Mutex::default()).collect(),
            factor_failures: Failures::new(mfa::FACTOR_FAILURES, mfa::FACTOR_LOCK, MAX_TRACKED_NAMES),
            factor_turns: (0..LOGIN_TURNS).map(|_| tokio::sync::Mutex::default()).collect(),
            blocks: Arc::new(AddressBlocks::new(&settings.access).audited(audit.clone(), clock.clone())),
            addresses: Arc::new(AddressBook::open(committer.clone(), metrics.clone(), &settings.access)?),
            in_force: Arc::new(InForce::new(committer.clone(), users.clone(), directory.clone())),
            directory,
            operator: ArcSwapOption::empty(),
            mail: mail::MailState::new(),
            oauth: oauth::OauthState::new(&settings.oauth, &clock),
            login_checks: login_check::LoginChecks::new(&settings.accounts.login_check),
            strangers: verification::Strangers::new(),
            overview: overview::Kept::default(),
            key_uses: Arc::default(),
            settings: ArcSwap::from_pointee(settings),
            committer,
            users,
            journal,
            audit,
            metrics,
            clock,
            pepper,
            sealer,
            tokens: Arc::new(tokens),
        })
    }

    /// Takes the settings of a reloaded config. The size of the password pool stays as it was at the start.
    pub fn reconfigure(&self, settings: Settings) {
        self.lockouts.reconfigure(settings.accounts.max_failed_logins, settings.lockout(), MAX_TRACKED_NAMES);
        self.blocks.reconfigure(&settings.access);
        self.addresses.reconfigure(&settings.access);
        self.oauth.reconfigure(&settings.oauth, &self.clock);
        self.login_checks.reconfigure(&settings.accounts.login_check);
        self.users.set_plans(&settings.plans);
        self.settings.store(Arc::new(settings));
    }

    /// Removes what has run out: failures, blocks, address rules. To be called every few seconds.
    pub async fn sweep(&self) {
        let now = self.clock.monotonic();
        self.blocks.sweep(now);
        self.lockouts.sweep(now);
        self.factor_failures.sweep(now);
        match self.addresses.expire(self.clock.now()).await {
            Ok(0) => {}
            Ok(count) => self.audit.note(Record::of(Action::IpRuleExpired).by(Actor::system()).with("rules", count)),
            Err(error) => {
                tracing::warn!(%error, "expired address rules could not be removed; they do not count any more");
            }
        }
    }

    pub fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    pub fn pepper(&self) -> &Pepper {
        &self.pepper
    }

    /// Where passwords are hashed, for its figures.
    pub fn passwords(&self) -> &PasswordPool {
        &self.passwords
    }

    /// What makes and checks the tokens of sessions.
    pub fn tokens(&self) -> &Arc<TokenMint> {
        &self.tokens
    }

    /// When keys were used, as far as it is not on disk yet.
    pub fn key_uses(&self) -> &Arc<key_use::KeyUses> {
        &self.key_uses
    }

    /// Addresses that sent wrong credentials.
    pub fn blocks(&self) -> &Arc<AddressBlocks> {
        &self.blocks
    }

    /// The address rules in force.
    pub fn addresses(&self) -> &Arc<AddressBook> {
        &self.addresses
    }

    fn store(&self) -> &dyn Store {
        self.committer.store()
    }

    /// A row with its bytes, so that a change can require that nobody else has changed it.
    fn load<T: DeserializeOwned>(&self, key: Vec<u8>) -> Result<Option<Loaded<T>>, Reject> {
        let read = || {
            let Some(raw) = self.store().get(&key)? else { return Ok(None) };
            tables::decode(&raw).map(|value| Some((raw, value)))
        };
        let found = read().map_err(|error| self.failed(&error))?;
        Ok(found.map(|(raw, value)| Loaded { key, raw, value }))
    }

    /// What a client is told of a store that failed; the cause goes to the log.
    fn failed(&self, error: &StoreError) -> Reject {
        tracing::error!(%error, "accounts: the store failed");
        self.metrics.store_error();
        Reject::StoreUnavailable
    }

    /// Commits a change of a user's row or credentials and puts it in force. Goes on to the end even when the caller is
    /// dropped in between: a client that leaves must not leave memory behind the disk.
    async fn commit_for_user(&self, user: UserId, batch: Batch, forget: Forget) -> Result<(), StoreError> {
        self.commit_with_meters(user, batch, Box::new(|_| Ok(())), forget).await
    }

    /// As [`Accounts::commit_for_user`], with what `rider` adds to the batch when it is committed.
    async fn commit_with_meters(
        &self,
        user: UserId,
        batch: Batch,
        rider: Rider,
        forget: Forget,
    ) -> Result<(), StoreError> {
        let (committer, in_force) = (self.committer.clone(), self.in_force.clone());
        let task = tokio::spawn(async move {
            committer.commit_with(batch, rider).await?;
            in_force.apply(user, forget)
        });
        let done = task.await.unwrap_or_else(|_| Err(StoreError::Failed("a commit was given up".into())));
        self.mail_posted();
        done
    }

    /// Changes a user's row, trying again when somebody else changed it in between. `edit` may add to the batch what
    /// belongs together with the row.
    async fn change_user(
        &self,
        id: UserId,
        forget: Forget,
        mut edit: impl FnMut(&mut User, &mut Batch) -> Result<(), Reject> + Send,
    ) -> Result<User, Reject> {
        for _ in 0..MAX_TRIES {
            let row = self.load::<User>(tables::user(id))?.ok_or(Reject::NotFound)?;
            let (mut user, mut batch) = (row.value.clone(), row.unchanged());
            edit(&mut user, &mut batch)?;
            batch.put(row.key, encode_bounded(&user)?);
            match self.commit_for_user(id, batch, forget).await {
                Ok(()) => return Ok(user),
                Err(error) => self.judge_conflict(&error)?,
            }
        }
        Err(too_busy())
    }

    /// Returns when a lost race may be run again.
    fn judge_conflict(&self, error: &StoreError) -> Result<(), Reject> {
        match error {
            StoreError::Conflict { key } if key.starts_with(b"un/") => {
                Err(Reject::Conflict("This username is already taken".into()))
            }
            StoreError::Conflict { key } if key.starts_with(b"ue/") => {
                Err(Reject::Conflict(registration::EMAIL_TAKEN.into()))
            }
            StoreError::Conflict { key } if key.starts_with(b"sn/") => {
                Err(Reject::Conflict("This username is already taken".into()))
            }
            StoreError::Conflict { key } => tokens::lost(key).map_or(Ok(()), Err),
            other => Err(self.failed(other)),
        }
    }

    /// The next number of a sequence; `batch` takes it only if nobody else does.
    fn next_number(&self, counter: &str, batch: &mut Batch) -> Result<u64, Reject> {
        self.take_numbers(counter, 1, batch)
    }

    /// The first of the next `count` numbers of a sequence; `batch` takes them only if nobody else does.
    fn take_numbers(&self, counter: &str, count: u64, batch: &mut Batch) -> Result<u64, Reject> {
        take_numbers(self.store(), counter, count, batch).map_err(|error| self.failed(&error))
    }
}

/// An export that could not go on.
#[derive(Debug)]
pub enum ExportTrouble {
    Store(StoreError),
    Io(std::io::Error),
}

impl From<StoreError> for ExportTrouble {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<std::io::Error> for ExportTrouble {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

/// Whether a change concerns credentials that workers may have in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forget {
    Nothing,
    Credentials,
}

/// A row as it was read.
struct Loaded<T> {
    key: Vec<u8>,
    raw: Vec<u8>,
    value: T,
}

impl<T> Loaded<T> {
    /// A batch that is applied only while the row is still this one.
    fn unchanged(&self) -> Batch {
        let mut batch = Batch::default();
        batch.require_equal(self.key.clone(), self.raw.clone());
        batch
    }
}

fn next_number(store: &dyn Store, counter: &str, batch: &mut Batch) -> Result<u64, StoreError> {
    take_numbers(store, counter, 1, batch)
}

fn take_numbers(store: &dyn Store, counter: &str, count: u64, batch: &mut Batch) -> Result<u64, StoreError> {
    let key = tables::counter(counter);
    let last = store.get(&key)?;
    let before = last.as_ref().map_or(Ok(0), |raw| tables::decode::<u64>(raw))?;
    match last {
        Some(raw) => batch.require_equal(key.clone(), raw),
        None => batch.require_absent(key.clone()),
    };
    batch.put(key, tables::encode(&before.saturating_add(count))?);
    Ok(before + 1)
}

/// A row's bytes, if they are few enough for every backend.
fn encode_bounded<T: serde::Serialize>(row: &T) -> Result<Vec<u8>, Reject> {
    let bytes = tables::encode(row).map_err(|_| Reject::Internal)?;
    if bytes.len() > MAX_VALUE_BYTES {
        return Err(Reject::Invalid(vec![
            "about_me, hobbies, additional_notes, preferences: too long together".into(),
        ]));
    }
    Ok(bytes)
}

fn too_busy() -> Reject {
    Reject::Overloaded("Too many changes at once; try again")
}

fn no_randomness(error: &std::io::Error) -> Reject {
    tracing::error!(%error, "nothing secret can be made");
    Reject::Internal
}

/// Puts a user's row in force for the workers.
///
/// Changes of one user are on disk in some order; here each reads the row anew under a lock, so that whichever comes last
/// puts the newest one in force, not its own.
struct InForce {
    committer: Committer,
    users: Arc<Registry>,
    directory: Arc<directory::Directory>,
    turns: Vec<Mutex<()>>,
}

impl InForce {
    const TURNS: usize = 64;

    fn new(committer: Committer, users: Arc<Registry>, directory: Arc<directory::Directory>) -> Self {
        Self { committer, users, directory, turns: (0..Self::TURNS).map(|_| Mutex::default()).collect() }
    }

    fn apply(&self, id: UserId, forget: Forget) -> Result<(), StoreError> {
        let _turn = self.turns[id.0 as usize % Self::TURNS].lock();
        if forget == Forget::Credentials {
            self.users.forget_credentials(id);
        }
        if let Some(user) = tables::read::<User>(self.committer.store(), &tables::user(id))? {
            self.users.set_standing(&user);
            self.directory.put(&user);
        }
        Ok(())
    }
}
