//! Passwords: the rule they must meet, and their hashes, computed in a pool of fixed size.
//!
//! Owns every argon2id computation. A flood of logins waits in a bounded queue and is refused past it; it never takes more
//! memory than the pool's, and never a worker's time. Never stores anything.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, PasswordHash, Version};
use tokio::sync::Semaphore;

use super::legacy;
use crate::clock;
use crate::error::Reject;

/// Longer ones are refused before anything is computed.
pub const MAX_PASSWORD_BYTES: usize = 1024;
pub const MIN_PASSWORD_CHARS: usize = 8;

/// OWASP's first choice for argon2id: 19 MiB, two passes, one lane.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;
const SALT_BYTES: usize = 16;

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

/// Computes hashes, a few at once.
pub struct PasswordPool {
    permits: Arc<Semaphore>,
    /// Computing and waiting.
    inside: AtomicUsize,
    max_inside: usize,
}

/// What came of a verification.
#[derive(Debug)]
pub struct Verdict {
    pub matches: bool,
    /// The password hashed as we do it, when it matched an older system's hash.
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
    pub fn new(concurrency: usize, queue: usize) -> Self {
        let concurrency = concurrency.max(1);
        Self {
            permits: Arc::new(Semaphore::new(concurrency)),
            inside: AtomicUsize::new(0),
            max_inside: concurrency.saturating_add(queue),
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
}

impl Place<'_> {
    /// The hash of a new password, in PHC form.
    ///
    /// # Errors
    /// [`Reject::Internal`] without randomness or memory.
    pub async fn hash(&self, password: Password) -> Result<String, Reject> {
        self.compute(move || hash_now(&password)).await
    }

    /// Whether the password is the one of `hash`. Without a hash the answer is no, after the same work.
    ///
    /// # Errors
    /// [`Reject::Internal`] when the hash cannot be read.
    pub async fn verify(&self, password: Password, hash: Option<String>) -> Result<Verdict, Reject> {
        self.compute(move || {
            let Some(hash) = hash else {
                waste(&password);
                return Ok(Verdict { matches: false, upgraded: None });
            };
            match legacy::verify(&hash, password.0.as_bytes()) {
                Some(true) => Ok(Verdict { matches: true, upgraded: Some(hash_now(&password)?) }),
                // As much work as for a hash of ours, so that nobody can tell an account that was taken over.
                Some(false) => {
                    waste(&password);
                    Ok(Verdict { matches: false, upgraded: None })
                }
                None => {
                    let parsed = PasswordHash::new(&hash).map_err(|_| Reject::Internal)?;
                    let matches = Argon2::default().verify_password(password.0.as_bytes(), &parsed).is_ok();
                    Ok(Verdict { matches, upgraded: None })
                }
            }
        })
        .await
    }

    async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Reject> + Send + 'static,
    ) -> Result<T, Reject> {
        let permit = self.0.permits.clone().acquire_owned().await.map_err(|_| Reject::Internal)?;
        // The permit goes with the work: a client that leaves does not make room while its hash is still computed.
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        task.await.unwrap_or(Err(Reject::Internal))
    }
}

fn hash_now(password: &Password) -> Result<String, Reject> {
    let mut salt = [0u8; SALT_BYTES];
    clock::random_bytes(&mut salt).map_err(|error| super::no_randomness(&error))?;
    let hash = argon2().and_then(|a| a.hash_password_with_salt(password.0.as_bytes(), &salt).ok());
    hash.map(|hash| hash.to_string()).ok_or(Reject::Internal)
}

fn waste(password: &Password) {
    let wasted = argon2().and_then(|a| a.hash_password_with_salt(password.0.as_bytes(), &[0; SALT_BYTES]).ok());
    std::hint::black_box(wasted);
}

fn argon2() -> Option<Argon2<'static>> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).ok()?;
    Some(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(text: &str) -> Password {
        Password::new(text).unwrap()
    }

    #[tokio::test]
    async fn a_hash_verifies_its_password_alone() {
        let pool = PasswordPool::new(1, 4);
        let place = pool.enter().unwrap();
        let hash = place.hash(password("SecurePass123")).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert!(place.verify(password("SecurePass123"), Some(hash.clone())).await.unwrap().matches);
        assert!(!place.verify(password("SecurePass124"), Some(hash)).await.unwrap().matches);
        assert!(!place.verify(password("SecurePass123"), None).await.unwrap().matches);
        drop(place);
        assert_eq!(pool.inside(), 0);
    }

    #[test]
    fn past_the_queue_is_refused_at_once() {
        let pool = PasswordPool::new(1, 2);
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
