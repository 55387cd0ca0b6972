//! Authentication: from a credential to a caller.
//!
//! Owns the credential cache. A cached credential counts only as long as its user's generation stands: every change to a
//! user's keys and sessions moves it on after the change is on disk and before the admin's 200, so that no worker admits
//! what was revoked, not even from a lookup that was under way. Never compares secrets in clear; they are found by their MAC.

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;

use super::client_ip::ClientIp;
use super::http1::head::{Name, RequestHead};
use crate::accounts::blocks::{AddressBlocks, Guess, Port};
use crate::accounts::guesses;
use crate::accounts::jwt::TokenMint;
use crate::accounts::key_use::{KeyUses, UseMark};
use crate::accounts::keys::{self, CredentialKind};
use crate::accounts::secrets::Pepper;
use crate::actors::user::actor::UserActor;
use crate::actors::user::registry::Registry;
use crate::clock::{Monotonic, UnixMillis};
use crate::domain::cookies::{CookieRule, Provenance};
use crate::domain::ids::{SecretMac, UserId};
use crate::domain::key::KeyLimits;
use crate::domain::user::Standing;
use crate::error::{CROSS_SITE, Reject};
use crate::store::StoreError;
use crate::telemetry::metrics::{CacheResult, Shard};

/// Longest credential we look at.
const MAX_CREDENTIAL_BYTES: usize = 512;
/// How long an unknown credential is remembered as such, and how many.
const UNKNOWN_TTL: Duration = Duration::from_secs(5);
const MAX_UNKNOWN: u64 = 10_000;

/// MACs are evenly spread already.
#[derive(Default)]
pub struct MacHasher(u64);

impl Hasher for MacHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(word) = bytes.first_chunk::<8>() {
            self.0 ^= u64::from_le_bytes(*word);
        }
    }

    fn write_usize(&mut self, _: usize) {}
}

/// A credential as it was read from the store.
pub struct Credential {
    user: UserId,
    /// The user's generation when it was read.
    generation: u64,
    expires_at: Option<UnixMillis>,
    /// `None` for a session, which has all of its user's rights.
    limits: Option<KeyLimits>,
    /// Of a key.
    used: Option<UseMark>,
}

/// Who calls, and with what.
pub struct Caller {
    pub actor: Arc<UserActor>,
    pub standing: Arc<Standing>,
    pub credential: Arc<Credential>,
    pub mac: SecretMac,
}

impl Caller {
    pub fn limits(&self) -> Option<&KeyLimits> {
        self.credential.limits.as_ref()
    }
}

/// What a credential that opens nothing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Miss {
    /// Nobody has asked yet.
    Unjudged,
    /// Nobody has or had it.
    Guess,
    /// It opened something once, or opens something else.
    Ours,
}

pub struct Authenticator {
    pepper: Pepper,
    tokens: Arc<TokenMint>,
    users: Arc<Registry>,
    blocks: Arc<AddressBlocks>,
    uses: Arc<KeyUses>,
    known: Cache<SecretMac, Arc<Credential>, BuildHasherDefault<MacHasher>>,
    /// With what [`Registry::arrivals`] was before the store was asked: a key that is imported later is good at once.
    unknown: Cache<SecretMac, (Miss, u64), BuildHasherDefault<MacHasher>>,
}

impl Authenticator {
    pub fn new(
        pepper: Pepper,
        tokens: Arc<TokenMint>,
        users: Arc<Registry>,
        blocks: Arc<AddressBlocks>,
        uses: Arc<KeyUses>,
        max_cached: u64,
    ) -> Self {
        Self {
            pepper,
            tokens,
            users,
            blocks,
            uses,
            known: Cache::builder().max_capacity(max_cached).build_with_hasher(BuildHasherDefault::default()),
            unknown: Cache::builder()
                .max_capacity(MAX_UNKNOWN)
                .time_to_live(UNKNOWN_TTL)
                .build_with_hasher(BuildHasherDefault::default()),
        }
    }

    /// # Errors
    /// [`Reject::Unauthenticated`], the same for whatever is wrong with a credential, and from a blocked address
    /// [`Reject::AddressBlocked`] for all of it; [`Reject::BadRequest`] for two of them; [`Reject::StoreUnavailable`] when it
    /// had to be read and could not.
    pub fn authenticate(
        &self,
        head: &RequestHead,
        client: ClientIp,
        now: UnixMillis,
        ticks: Monotonic,
        cookies: Option<&CookieRule>,
        shard: &Shard,
    ) -> Result<Caller, Reject> {
        let Some(secret) = extract(head)? else {
            if let Some(session) = cookies.map(|rule| cookie(head, rule)).transpose()?.flatten() {
                return self.by_cookie(session, now, shard);
            }
            shard.authenticated(false);
            return Err(Reject::Unauthenticated);
        };
        let found = self.find(secret, now, shard)?;
        shard.authenticated(found.is_ok());
        found.map_err(|miss| self.refuse(secret, miss, client, ticks))
    }

    /// What is answered to a credential that opens nothing.
    fn refuse(&self, secret: &[u8], miss: Miss, client: ClientIp, ticks: Monotonic) -> Reject {
        if !self.blocks.counts() {
            return Reject::Unauthenticated;
        }
        // First: a blocked address is not told, and does not cost, what a credential is.
        if let Some(retry_after) = self.blocks.blocked_for(client.0, Port::Public, ticks) {
            return Reject::AddressBlocked { retry_after };
        }
        match self.judge(secret, miss) {
            Ok(Miss::Guess) => {
                self.blocks.failed(client.0, Port::Public, Guess::Credential, ticks);
                Reject::Unauthenticated
            }
            Ok(_) => Reject::Unauthenticated,
            Err(reject) => reject,
        }
    }

    fn judge(&self, secret: &[u8], miss: Miss) -> Result<Miss, Reject> {
        if miss != Miss::Unjudged {
            return Ok(miss);
        }
        let (mac, store) = (self.pepper.mac(secret), self.users.around().committer.store());
        let ours = guesses::was_ours(store, &self.tokens, secret, &mac).map_err(|error| self.unreadable(&error))?;
        let miss = if ours { Miss::Ours } else { Miss::Guess };
        // With the count it came with: a key that was imported since must be looked for.
        if let Some((_, at)) = self.unknown.get(&mac) {
            self.unknown.insert(mac, (miss, at));
        }
        Ok(miss)
    }

    fn unreadable(&self, error: &StoreError) -> Reject {
        tracing::error!(%error, "a credential could not be read");
        self.users.around().metrics.store_error();
        Reject::StoreUnavailable
    }

    /// A cookie that opens nothing is no guess: browsers send the one they have for as long as they have it.
    fn by_cookie(&self, session: &[u8], now: UnixMillis, shard: &Shard) -> Result<Caller, Reject> {
        let found = self.find(session, now, shard)?.ok().filter(|caller| caller.limits().is_none());
        shard.authenticated(found.is_some());
        found.ok_or(Reject::Unauthenticated)
    }

    fn find(&self, secret: &[u8], now: UnixMillis, shard: &Shard) -> Result<Result<Caller, Miss>, Reject> {
        let mac = self.pepper.mac(secret);
        if let Some(credential) = self.known.get(&mac) {
            if let Some(actor) = self.users.actor(credential.user)?
                && actor.generation() == credential.generation
            {
                shard.cache(CacheResult::Hit);
                return Ok(self.admit(actor, credential, mac, now));
            }
            shard.cache(CacheResult::Stale);
        } else if let Some((miss, _)) = self.unknown.get(&mac).filter(|(_, at)| *at == self.users.arrivals()) {
            shard.cache(CacheResult::NegativeHit);
            return Ok(Err(miss));
        } else {
            shard.cache(CacheResult::Miss);
        }
        self.read(secret, mac, now)
    }

    fn read(&self, secret: &[u8], mac: SecretMac, now: UnixMillis) -> Result<Result<Caller, Miss>, Reject> {
        let (store, arrivals) = (self.users.around().committer.store(), self.users.arrivals());
        let lookup = || {
            let found = keys::find_credential(store, &self.tokens, secret, &mac, now);
            found.map_err(|error| self.unreadable(&error))
        };
        // The row names the user, whose generation must be read before the row is: so the row is read twice, and only
        // the second reading counts. A revocation after it moves the generation on and makes this entry stale.
        let Some(hint) = lookup()? else { return Ok(Err(self.remember_unknown(mac, arrivals))) };
        let Some(actor) = self.users.actor(hint.user)? else { return Ok(Err(self.remember_unknown(mac, arrivals))) };
        let generation = actor.generation();
        let Some(found) = lookup()?.filter(|found| found.user == hint.user) else {
            return Ok(Err(self.remember_unknown(mac, arrivals)));
        };
        let (limits, used) = match found.kind {
            CredentialKind::ApiKey { id, limits } => (Some(limits), Some(UseMark::new(found.user, id))),
            CredentialKind::Session { .. } => (None, None),
        };
        let expires_at = found.expires_at;
        let credential = Arc::new(Credential { user: found.user, generation, expires_at, limits, used });
        self.known.insert(mac, credential.clone());
        Ok(self.admit(actor, credential, mac, now))
    }

    fn admit(
        &self,
        actor: Arc<UserActor>,
        credential: Arc<Credential>,
        mac: SecretMac,
        now: UnixMillis,
    ) -> Result<Caller, Miss> {
        if credential.expires_at.is_some_and(|at| at <= now) {
            return Err(Miss::Ours);
        }
        if let Some(used) = &credential.used {
            used.touch(now, &self.uses);
        }
        let standing = actor.standing();
        Ok(Caller { actor, standing, credential, mac })
    }

    fn remember_unknown(&self, mac: SecretMac, arrivals: u64) -> Miss {
        self.known.invalidate(&mac);
        self.unknown.insert(mac, (Miss::Unjudged, arrivals));
        Miss::Unjudged
    }

    pub fn cached(&self) -> u64 {
        self.known.entry_count()
    }
}

/// The text by which a caller was known.
pub fn secret<'h>(head: &'h RequestHead, cookies: Option<&CookieRule>) -> Option<&'h [u8]> {
    let sent = extract(head).ok().flatten();
    sent.or_else(|| cookies.and_then(|rule| cookie(head, rule).ok().flatten()))
}

/// The one credential of a request; `None` when there is none that could be one.
fn extract(head: &RequestHead) -> Result<Option<&[u8]>, Reject> {
    let mut authorizations = head.all(Name::Authorization);
    let mut keys = head.all(Name::XApiKey);
    let (authorization, key) = (authorizations.next(), keys.next());
    let bearer = authorization.map(|value| {
        let (scheme, token) = value.split_at_checked(7).unwrap_or_default();
        if scheme.eq_ignore_ascii_case(b"bearer ") { token.trim_ascii() } else { b"" }
    });
    if authorizations.next().is_some() || keys.next().is_some() {
        return Err(Reject::BadRequest("More than one credential in the request".into()));
    }
    let secret = match (bearer, key) {
        (Some(bearer), Some(key)) if bearer != key.trim_ascii() => {
            return Err(Reject::BadRequest("Two different credentials in one request".into()));
        }
        (Some(secret), _) => secret,
        (None, Some(key)) => key.trim_ascii(),
        (None, None) => return Ok(None),
    };
    let plausible =
        !secret.is_empty() && secret.len() <= MAX_CREDENTIAL_BYTES && secret.iter().all(u8::is_ascii_graphic);
    Ok(plausible.then_some(secret))
}

/// The session in a request's cookie, where nothing else says who calls.
fn cookie<'h>(head: &'h RequestHead, rule: &CookieRule) -> Result<Option<&'h [u8]>, Reject> {
    if head.first(Name::Authorization).is_some() || head.first(Name::XApiKey).is_some() {
        return Ok(None);
    }
    let mut lines = head.all(Name::Cookie);
    // HTTP/1.1 has one such field (RFC 6265, 5.4).
    let (Some(line), None) = (lines.next(), lines.next()) else { return Ok(None) };
    let Some(session) = rule.find(line).filter(|s| !s.is_empty() && s.len() <= MAX_CREDENTIAL_BYTES) else {
        return Ok(None);
    };
    let from = Provenance {
        method: head.method(),
        fetch_site: head.first(Name::SecFetchSite),
        navigates: head.first(Name::SecFetchMode) == Some(b"navigate")
            && head.first(Name::SecFetchDest) == Some(b"document"),
        origin: head.first(Name::Origin),
        host: head.host(),
    };
    if rule.trusts(&from) { Ok(Some(session)) } else { Err(Reject::Forbidden(CROSS_SITE)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extracted(fields: &str) -> Result<Option<String>, Reject> {
        let text = format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        let head = RequestHead::parse(text.into_bytes()).unwrap_or_else(|e| panic!("{e:?}"));
        extract(&head).map(|found| found.map(|s| String::from_utf8_lossy(s).into_owned()))
    }

    #[test]
    fn one_credential_in_either_header() {
        assert_eq!(extracted("Authorization: bearer pe-1\r\n"), Ok(Some("pe-1".into())));
        assert_eq!(extracted("X-API-Key: pe-1\r\n"), Ok(Some("pe-1".into())));
        assert_eq!(extracted("X-API-Key: pe-1\r\nAuthorization: Bearer pe-1\r\n"), Ok(Some("pe-1".into())));
        assert_eq!(extracted(""), Ok(None));
        assert_eq!(extracted("Authorization: Basic cGU6MQ==\r\n"), Ok(None));
        assert_eq!(extracted("Authorization: Bearer\r\n"), Ok(None));
        assert_eq!(extracted("Authorization: Bearer a b\r\n"), Ok(None));
        assert_eq!(extracted(&format!("X-Api-Key: {}\r\n", "a".repeat(513))), Ok(None));
    }

    #[test]
    fn two_are_one_too_many() {
        for fields in [
            "X-API-Key: pe-1\r\nAuthorization: Bearer pe-2\r\n",
            "Authorization: Bearer pe-1\r\nAuthorization: Bearer pe-1\r\n",
            "X-API-Key: pe-1\r\nX-API-Key: pe-1\r\n",
            "X-API-Key: pe-1\r\nX_API_Key: pe-2\r\n",
            "X-API-Key: pe-1\r\nAuthorization: Basic pe-1\r\n",
        ] {
            assert!(matches!(extracted(fields), Err(Reject::BadRequest(_))), "{fields}");
        }
    }
}
