//! Passwords: the rule they must meet, and their hashes, computed in a pool of fixed size.
//!
//! Owns every argon2id computation. A flood of logins waits in a bounded queue and is refused past it; it never takes more
//! memory than the pool's, and never a worker's time. Never stores anything.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, KeyId, Params, ParamsBuilder, PasswordHash, Version};
use tokio::sync::Semaphore;

use super::secrets::Pepper;
use super::{Accounts, common, legacy};
use crate::clock;
use crate::config::CommonPasswords;
use crate::error::Reject;

/// Longer ones are refused before anything is computed.
pub const MAX_PASSWORD_BYTES: usize = 1024;
pub const MIN_PASSWORD_CHARS: usize = 8;

/// OWASP's first choice for argon2id: 19 MiB, two passes, one lane.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;
/// The dearest argon2id that is taken from elsewhere; it is made anew at the first login.
const MAX_FOREIGN_KIB: u32 = 64 * 1024;
const MAX_FOREIGN_PASSES: u32 = 8;
const SALT_BYTES: usize = 16;
const KEY_ID_BYTES: usize = 4;

/// A password as a client sent it.
pub struct Password(String);

impl Password {
    /// # Errors
    /// [`Reject::Invalid`] when it is longer than [`MAX_PASSWORD_BYTES`].
    pub fn new(text: impl Into<String>) -> Result<Self, Reject> {
        let text = text.into();
        if text.len() > MAX_PASSWORD_BYTES {
            return Err(Reject::Invalid(vec![format!("password: at most {MAX_PASSWORD_BYTES} bytes")]));
        }
        Ok(Self(text))
    }

    /// What is wrong with it as a new password, by the rule of the `/v1` surface.
    pub fn faults(&self) -> Vec<String> {
        self.faults_in(Rule::Composition, "password")
    }

    /// As [`Password::faults`], by another rule and for another field.
    pub fn faults_in(&self, rule: Rule, field: &str) -> Vec<String> {
        let has = |wanted: fn(char) -> bool| self.0.chars().any(wanted);
        let rules = [
            (self.0.chars().count() >= MIN_PASSWORD_CHARS, "at least 8 characters"),
            (rule == Rule::Length || has(|c| c.is_ascii_digit()), "at least 1 number"),
            (rule == Rule::Length || has(char::is_uppercase), "at least 1 uppercase letter"),
            (rule == Rule::Length || has(char::is_lowercase), "at least 1 lowercase letter"),
        ];
        rules.iter().filter(|(met, _)| !met).map(|(_, rule)| format!("{field}: needs {rule}")).collect()
    }

    /// Whether two passwords that one client has sent in one request are the same.
    pub fn is_same(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

/// What a new password must meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Eight characters with a number, an uppercase and a lowercase letter: what the `/v1` surface documents.
    Composition,
    /// Eight characters.
    Length,
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

impl Accounts {
    /// What is wrong with a new password: the rule, and where the config says so, that others use it too or that it holds
    /// one of the account's own `names`.
    pub(super) fn password_faults(&self, password: &Password, rule: Rule, field: &str, names: &[&str]) -> Vec<String> {
        let mut faults = password.faults_in(rule, field);
        if self.settings().accounts.passwords.common == CommonPasswords::Enforce {
            faults.extend(guessable(password, field, names));
        }
        faults
    }

    /// What somebody is told of a new password that is taken all the same.
    pub fn password_warnings(&self, password: &Password, field: &str, names: &[&str]) -> Vec<String> {
        match self.settings().accounts.passwords.common {
            CommonPasswords::Warn => guessable(password, field, names),
            CommonPasswords::Off | CommonPasswords::Enforce => Vec::new(),
        }
    }
}

fn guessable(password: &Password, field: &str, names: &[&str]) -> Vec<String> {
    let found = [
        (common::is_common(&password.0), "many people use it or one like it; choose another"),
        (common::contains_name(&password.0, names), "contains the username or the email; choose another"),
    ];
    found.iter().filter(|(is, _)| *is).map(|(_, what)| format!("{field}: {what}")).collect()
}

/// Computes hashes, a few at once.
pub struct PasswordPool {
    permits: Arc<Semaphore>,
    /// Computing and waiting.
    inside: AtomicUsize,
    max_inside: usize,
    hasher: Arc<Hasher>,
}

/// What came of a verification.
#[derive(Debug)]
pub struct Verdict {
    pub matches: bool,
    /// The password hashed as we do it now, when it matched a hash of another kind.
    pub upgraded: Option<String>,
}

/// A place in the pool or in its queue.
pub struct Place<'a>(&'a PasswordPool);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::Relaxed);
    }
}

impl PasswordPool {
    /// `pepper` is argon2's secret: without it, hashes from a stolen store cannot even be guessed at.
    pub fn new(concurrency: usize, queue: usize, pepper: &Pepper) -> Self {
        let concurrency = concurrency.max(1);
        Self {
            permits: Arc::new(Semaphore::new(concurrency)),
            inside: AtomicUsize::new(0),
            max_inside: concurrency.saturating_add(queue),
            hasher: Arc::new(Hasher::new(pepper)),
        }
    }

    /// Takes a place, kept until the answer is there.
    ///
    /// # Errors
    /// [`Reject::Overloaded`] when the queue is full.
    pub fn enter(&self) -> Result<Place<'_>, Reject> {
        // Counted at once and given back by the drop, also when there was no room.
        let place = Place(self);
        if self.inside.fetch_add(1, Ordering::Relaxed) >= self.max_inside {
            return Err(Reject::Overloaded("Too many logins at once; try again in a moment"));
        }
        Ok(place)
    }

    /// Hashes and verifications computed or waited for.
    pub fn inside(&self) -> usize {
        self.inside.load(Ordering::Relaxed)
    }

    /// The dearest bcrypt that has been met; 0: none.
    pub(super) fn bcrypt_cost(&self) -> u32 {
        self.hasher.bcrypt_cost.load(Ordering::Relaxed)
    }

    /// From now on a wrong password costs such a bcrypt, whosever it is.
    pub(super) fn expect_bcrypt(&self, cost: u32) {
        self.hasher.bcrypt_cost.fetch_max(cost.min(legacy::MAX_BCRYPT_COST), Ordering::Relaxed);
    }

    /// What speaks against a hash that somebody brings; its parameters are bounded, because each login will cost them.
    pub(super) fn judge_hash(&self, hash: &str) -> Result<(), String> {
        if legacy::is_legacy(hash) {
            let why = format!("bcrypt up to cost {}, or sha256$salt$ and 64 hex digits", legacy::MAX_BCRYPT_COST);
            return if legacy::is_sound(hash) { Ok(()) } else { Err(why) };
        }
        let unreadable = || "must be argon2id in PHC form, bcrypt, or sha256$salt$hex".to_owned();
        let parsed = PasswordHash::new(hash).map_err(|_| unreadable())?;
        let made_with = Params::try_from(&parsed.params).map_err(|_| unreadable())?;
        if !hash.starts_with("$argon2id$") || parsed.hash.is_none() {
            return Err(unreadable());
        }
        if made_with.m_cost() > MAX_FOREIGN_KIB || made_with.t_cost() > MAX_FOREIGN_PASSES {
            return Err(format!("costs more than m={MAX_FOREIGN_KIB},t={MAX_FOREIGN_PASSES}"));
        }
        if !made_with.keyid().is_empty() && made_with.keyid() != self.hasher.key_id {
            return Err("was made with another pepper (accounts.pepper), and opens nothing here".into());
        }
        Ok(())
    }

    /// Hashes computed so far: argon2id, and bcrypt of older systems.
    pub fn computed(&self) -> (u64, u64) {
        (self.hasher.argon2.load(Ordering::Relaxed), self.hasher.bcrypt.load(Ordering::Relaxed))
    }

    /// How long that took, all of them together.
    pub fn time_spent(&self) -> Duration {
        Duration::from_nanos(self.hasher.nanos.load(Ordering::Relaxed))
    }
}

impl Place<'_> {
    /// The hash of a new password, in PHC form.
    ///
    /// # Errors
    /// [`Reject::Internal`] without randomness or memory.
    pub async fn hash(&self, password: Password) -> Result<String, Reject> {
        self.compute(move |hasher| hasher.hash(&password)).await
    }

    /// Whether the password is the one of `hash`. Without a hash the answer is no, after the same work.
    ///
    /// # Errors
    /// [`Reject::Internal`] when the hash cannot be read.
    pub async fn verify(&self, password: Password, hash: Option<String>) -> Result<Verdict, Reject> {
        self.compute(move |hasher| hasher.verify(&password, hash.as_deref())).await
    }

    async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Hasher) -> Result<T, Reject> + Send + 'static,
    ) -> Result<T, Reject> {
        let permit = self.0.permits.clone().acquire_owned().await.map_err(|_| Reject::Internal)?;
        let hasher = self.0.hasher.clone();
        // The permit goes with the work: a client that leaves does not make room while its hash is still computed.
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let began = Instant::now();
            let done = work(&hasher);
            hasher.nanos.fetch_add(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
            done
        });
        task.await.unwrap_or(Err(Reject::Internal))
    }
}

/// Computes one hash.
struct Hasher {
    secret: [u8; 32],
    /// Stands in hashes made with the secret, and says with which.
    key_id: [u8; KEY_ID_BYTES],
    argon2: AtomicU64,
    bcrypt: AtomicU64,
    /// Time that it took, whatever else ran on the processor.
    nanos: AtomicU64,
    /// The dearest bcrypt that has been met; 0: none. From then on every wrong password costs one, whosever it is.
    bcrypt_cost: AtomicU32,
}

impl Hasher {
    fn new(pepper: &Pepper) -> Self {
        let [a, b, c, d, ..] = pepper.mac_in("password key id", b"").0;
        Self {
            secret: pepper.mac_in("password secret", b"").0,
            key_id: [a, b, c, d],
            argon2: AtomicU64::new(0),
            bcrypt: AtomicU64::new(0),
            nanos: AtomicU64::new(0),
            bcrypt_cost: AtomicU32::new(0),
        }
    }

    fn hash(&self, password: &Password) -> Result<String, Reject> {
        let mut salt = [0u8; SALT_BYTES];
        clock::random_bytes(&mut salt).map_err(|error| super::no_randomness(&error))?;
        self.hash_with(password, &salt).ok_or(Reject::Internal)
    }

    fn hash_with(&self, password: &Password, salt: &[u8]) -> Option<String> {
        self.argon2.fetch_add(1, Ordering::Relaxed);
        let key_id = KeyId::new(&self.key_id).ok()?;
        let params = ParamsBuilder::new().m_cost(MEMORY_KIB).t_cost(PASSES).p_cost(LANES).keyid(key_id).build().ok()?;
        let argon2 = Argon2::new_with_secret(&self.secret, Algorithm::Argon2id, Version::V0x13, params).ok()?;
        Some(argon2.hash_password_with_salt(password.0.as_bytes(), salt).ok()?.to_string())
    }

    fn verify(&self, password: &Password, hash: Option<&str>) -> Result<Verdict, Reject> {
        let no = Verdict { matches: false, upgraded: None };
        let Some(hash) = hash else {
            self.waste(password, true, true);
            return Ok(no);
        };
        if legacy::is_legacy(hash) {
            let cost = legacy::bcrypt_cost(hash);
            if let Some(cost) = cost {
                self.bcrypt.fetch_add(1, Ordering::Relaxed);
                self.bcrypt_cost.fetch_max(cost, Ordering::Relaxed);
            }
            if legacy::verify(hash, password.0.as_bytes()) == Some(true) {
                return Ok(Verdict { matches: true, upgraded: Some(self.hash(password)?) });
            }
            // As much work as for a hash of ours, so that nobody can tell an account that was taken over.
            self.waste(password, true, cost.is_none());
            return Ok(no);
        }
        let parsed = PasswordHash::new(hash).map_err(|_| Reject::Internal)?;
        let made_with = Params::try_from(&parsed.params).map_err(|_| Reject::Internal)?;
        // Of before, or brought along from elsewhere: made without a secret.
        let foreign = made_with.keyid().is_empty();
        let argon2 = if foreign {
            Argon2::default()
        } else {
            Argon2::new_with_secret(&self.secret, Algorithm::Argon2id, Version::V0x13, made_with)
                .map_err(|_| Reject::Internal)?
        };
        self.argon2.fetch_add(1, Ordering::Relaxed);
        if argon2.verify_password(password.0.as_bytes(), &parsed).is_err() {
            self.waste(password, false, true);
            return Ok(no);
        }
        Ok(Verdict { matches: true, upgraded: if foreign { Some(self.hash(password)?) } else { None } })
    }

    /// Work for a wrong password that other accounts would have cost.
    fn waste(&self, password: &Password, argon2: bool, bcrypt: bool) {
        if argon2 {
            std::hint::black_box(self.hash_with(password, &[0; SALT_BYTES]));
        }
        let cost = self.bcrypt_cost.load(Ordering::Relaxed);
        if bcrypt && cost > 0 {
            self.bcrypt.fetch_add(1, Ordering::Relaxed);
            std::hint::black_box(legacy::waste_bcrypt(cost, password.0.as_bytes()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(text: &str) -> Password {
        Password::new(text).unwrap()
    }

    #[tokio::test]
    async fn a_hash_verifies_its_password_alone() {
        let pool = PasswordPool::new(1, 4, &Pepper::new(&[7; 32]).unwrap());
        let place = pool.enter().unwrap();
        let hash = place.hash(password("SecurePass123")).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1,keyid="), "{hash}");
        assert!(place.verify(password("SecurePass123"), Some(hash.clone())).await.unwrap().matches);
        assert!(!place.verify(password("SecurePass124"), Some(hash)).await.unwrap().matches);
        assert!(!place.verify(password("SecurePass123"), None).await.unwrap().matches);
        drop(place);
        assert_eq!(pool.inside(), 0);
    }

    #[tokio::test]
    async fn a_hash_needs_its_pepper_and_one_without_is_made_anew() {
        let pool = |byte: u8| PasswordPool::new(1, 4, &Pepper::new(&[byte; 32]).unwrap());
        let (ours, theirs) = (pool(7), pool(8));
        let hash = ours.enter().unwrap().hash(password("x")).await.unwrap();
        let verify = async |pool: &PasswordPool, hash: &str| {
            pool.enter().unwrap().verify(password("x"), Some(hash.to_owned())).await.unwrap()
        };
        assert!(!verify(&theirs, &hash).await.matches, "a stolen store without its pepper");
        assert_eq!(verify(&ours, &hash).await.upgraded, None);
        let params = Params::new(MEMORY_KIB, PASSES, LANES, None).unwrap();
        let plain = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let of_before = plain.hash_password_with_salt(b"x", &[1; SALT_BYTES]).unwrap().to_string();
        let verdict = verify(&ours, &of_before).await;
        assert!(verdict.matches && verify(&ours, &verdict.upgraded.unwrap()).await.matches);
    }

    #[tokio::test]
    async fn a_wrong_password_costs_the_same_whatever_is_behind_the_name() {
        let pool = PasswordPool::new(1, 4, &Pepper::new(&[7; 32]).unwrap());
        let place = pool.enter().unwrap();
        let ours = place.hash(password("right")).await.unwrap();
        let bcrypted = bcrypt::hash("right", 4).unwrap();
        let sha = format!("sha256$salt${}", "0".repeat(64));
        // Once, so that there is such a hash to the pool's knowledge.
        place.verify(password("wrong"), Some(bcrypted.clone())).await.unwrap();
        let mut costs = Vec::new();
        for hash in [None, Some(ours), Some(bcrypted), Some(sha)] {
            let before = pool.computed();
            assert!(!place.verify(password("wrong"), hash).await.unwrap().matches);
            let after = pool.computed();
            costs.push((after.0 - before.0, after.1 - before.1));
        }
        assert_eq!(costs, [(1, 1); 4]);
    }

    #[test]
    fn past_the_queue_is_refused_at_once() {
        let pool = PasswordPool::new(1, 2, &Pepper::new(&[7; 32]).unwrap());
        let places: Vec<_> = (0..3).map(|_| pool.enter().unwrap()).collect();
        assert!(matches!(pool.enter(), Err(Reject::Overloaded(_))));
        drop(places);
        assert!(pool.enter().is_ok());
    }

    #[test]
    fn the_rule_names_what_is_missing() {
        assert!(password("SecurePass123").faults().is_empty());
        assert_eq!(password("password").faults().len(), 2);
        assert_eq!(password("Aa1").faults(), ["password: needs at least 8 characters"]);
        assert!(Password::new("a".repeat(1025)).is_err());
        assert!(!format!("{:?}", password("SecurePass123")).contains("Secure"));
    }
}
