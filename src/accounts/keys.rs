//! API keys: the default key of each user, his named keys, and the lookup of any credential by its MAC.
//!
//! Owns the rows of keys. A key's text is shown to the one who makes it; in vault mode it is also kept sealed, under a key
//! that is not in the store, for its owner to see again. It is never kept in the clear.

use std::time::Duration;

use super::blocks::Port;
use super::guesses::{Shown, retire};
use super::jwt::{TokenMint, TokenUse};
use super::mail::{Letter, LetterKind};
use super::proof::{Word, refuse_waiting};
use super::seal::Purpose;
use super::secrets::{self, Minted};
use super::sessions::may_enter;
use super::{Accounts, Forget, Loaded, MAX_TRIES, no_randomness, too_busy};
use crate::clock::UnixMillis;
use crate::config::KeyMode;
use crate::domain::ids::{CredentialId, SecretMac, UserId};
use crate::domain::key::{ApiKey, KeyLimits, KeyLook};
use crate::domain::session::{Principal, Session};
use crate::domain::user::{Status, User};
use crate::error::Reject;
use crate::store::{Batch, Order, Store, StoreError, prefix_end, tables};

/// The key every user has.
pub const DEFAULT_KEY: &str = "default";
/// Characters of a key that lists show.
const SHOWN_LEN: usize = 7;
/// Rows of keys read at once: more than the most that the config allows, and the ones that run out beside them.
const MAX_ROWS: usize = 2048;

/// How long a key that has run out is kept; so long its owner may prolong it.
const DEAD_KEY_STAYS: Duration = Duration::from_secs(30 * 86_400);

/// What a credential opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialKind {
    ApiKey { id: CredentialId, limits: KeyLimits },
    Session { id: CredentialId },
}

/// A credential that is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundCredential {
    pub user: UserId,
    pub kind: CredentialKind,
    /// To be checked again on each use, when the credential is kept in memory.
    pub expires_at: Option<UnixMillis>,
}

/// Finds a user's key or session by the MAC of its text. What is unknown, revoked or expired is equally not there, and
/// so is a token that does not say what its session's row does; a session of the staff never opens the public side.
///
/// # Errors
/// The store cannot be read.
pub fn find_credential(
    store: &dyn Store,
    tokens: &TokenMint,
    secret: &[u8],
    mac: &SecretMac,
    now: UnixMillis,
) -> Result<Option<FoundCredential>, StoreError> {
    // Both are read in any case, so that a miss tells nothing by its time.
    let key = tables::read::<ApiKey>(store, &tables::api_key(mac))?;
    let session = tables::read::<Session>(store, &tables::session(mac))?;
    let found = match (key, session) {
        (Some(key), _) => FoundCredential {
            user: key.user,
            expires_at: key.expires_at,
            kind: CredentialKind::ApiKey { id: key.id, limits: key.limits },
        },
        (None, Some(session)) => {
            let Session { principal: Principal::User(user), id, expires_at, .. } = session else { return Ok(None) };
            if !tokens.agrees(secret, TokenUse::Access, &session) {
                return Ok(None);
            }
            FoundCredential { user, expires_at: Some(expires_at), kind: CredentialKind::Session { id } }
        }
        _ => return Ok(None),
    };
    Ok(Some(found).filter(|f| f.expires_at.is_none_or(|at| now < at)))
}

/// A key as its owner may see it again.
#[derive(Clone, Debug)]
pub struct KeyView {
    pub id: CredentialId,
    pub name: String,
    /// `pe-rqrF…`
    pub masked: String,
    /// `enc:v1:…`, in vault mode.
    pub sealed: Option<String>,
    pub created_at: UnixMillis,
    pub expires_at: Option<UnixMillis>,
    /// To the minute.
    pub last_used: Option<UnixMillis>,
    pub limits: KeyLimits,
    pub rotated_to: Option<CredentialId>,
}

fn purpose(user: UserId, key: CredentialId) -> Purpose<'static> {
    Purpose { what: "api key", whose: user.0, which: key.0 }
}

impl KeyView {
    fn of(key: &ApiKey, last_used: Option<UnixMillis>) -> Self {
        Self {
            id: key.id,
            name: key.name.clone(),
            masked: format!("{}…", key.shown),
            sealed: key.sealed.clone(),
            created_at: key.created_at,
            expires_at: key.expires_at,
            last_used,
            limits: key.limits.clone(),
            rotated_to: key.rotated_to,
        }
    }
}

/// What a named key is to be.
#[derive(Clone, Debug, Default)]
pub struct NewKey {
    pub name: String,
    pub limits: KeyLimits,
    pub expires_at: Option<UnixMillis>,
    pub look: KeyLook,
}

/// What is to change of a named key; what is `None` stays.
#[derive(Clone, Debug, Default)]
pub struct KeyUpdate {
    pub name: Option<String>,
    pub scopes: Option<Vec<String>>,
    pub models: Option<Vec<String>>,
    pub cidrs: Option<Vec<ipnet::IpNet>>,
    /// `Some(None)`: no limit of its own any more.
    pub per_minute: Option<Option<u32>>,
    /// `Some(None)`: it does not expire.
    pub expires_at: Option<Option<UnixMillis>>,
}

fn name_fault(name: &str) -> Option<String> {
    if name == DEFAULT_KEY {
        return Some(format!("name: \"{DEFAULT_KEY}\" is the key that every user has"));
    }
    let fits = (1..=64).contains(&name.chars().count()) && super::fields::is_visible(name) && name.trim() == name;
    (!fits).then(|| "name: 1 to 64 characters, without spaces at the ends".into())
}

fn expiry_fault(expires_at: Option<UnixMillis>, now: UnixMillis) -> Option<String> {
    expires_at.is_some_and(|at| at <= now).then(|| "expires_at: must be in the future".into())
}

fn refuse(faults: Vec<String>) -> Result<(), Reject> {
    if faults.is_empty() { Ok(()) } else { Err(Reject::Invalid(faults)) }
}

fn is_over(key: &ApiKey, now: UnixMillis) -> bool {
    key.expires_at.is_some_and(|at| at <= now)
}

/// Removes all rows of a key.
pub(super) fn drop_key(row: &Loaded<ApiKey>, batch: &mut Batch) {
    let (user, id) = (row.value.user, row.value.id);
    batch.delete(row.key.clone()).delete(tables::key_of_user(user, id)).delete(tables::key_use(user, id));
    if let Some(mac) = tables::parse_api_key(&row.key) {
        retire(&mac, batch);
    }
}

/// Removes the rows of keys that have run out.
fn clear_dead_keys(keys: &[Loaded<ApiKey>], now: UnixMillis, batch: &mut Batch) {
    keys.iter().filter(|key| is_over(&key.value, now)).for_each(|dead| drop_key(dead, batch));
}

impl Accounts {
    /// The keys of a user, oldest first, those that have run out included until they are cleared away.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`].
    pub fn keys(&self, user: UserId) -> Result<Vec<KeyView>, Reject> {
        let rows = self.load_keys(user)?;
        let uses = self.last_uses(user, rows.iter().map(|row| row.value.id))?;
        let view = |row: &Loaded<ApiKey>| KeyView::of(&row.value, uses.get(&row.value.id).copied());
        let mut keys: Vec<KeyView> = rows.iter().map(view).collect();
        keys.sort_by_key(|key| (key.created_at, key.id));
        Ok(keys)
    }

    /// The key that every user has.
    ///
    /// # Errors
    /// [`Reject::NotFound`] for an unknown or deleted user.
    pub fn default_key(&self, user: UserId) -> Result<KeyView, Reject> {
        let mut keys = self.keys(user)?.into_iter();
        let mut key = keys.find(|key| key.name == DEFAULT_KEY && key.rotated_to.is_none()).ok_or(Reject::NotFound)?;
        if self.user(user)?.proof_wait.is_some() {
            key.sealed = None;
        }
        Ok(key)
    }

    /// One key of a user.
    ///
    /// # Errors
    /// [`Reject::NotFound`] also for another user's.
    pub fn key(&self, user: UserId, id: CredentialId) -> Result<KeyView, Reject> {
        self.view(&self.load_key(user, id)?.value)
    }

    fn view(&self, key: &ApiKey) -> Result<KeyView, Reject> {
        Ok(KeyView::of(key, self.last_use(key.user, key.id)?))
    }

    fn load_key(&self, user: UserId, id: CredentialId) -> Result<Loaded<ApiKey>, Reject> {
        let pointer = self.load::<String>(tables::key_of_user(user, id))?.ok_or(Reject::NotFound)?;
        let mac = secrets::mac_from_hex(&pointer.value).ok_or(Reject::NotFound)?;
        self.load::<ApiKey>(tables::api_key(&mac))?.ok_or(Reject::NotFound)
    }

    /// The user whose API key this is, who must be allowed in: for apps that ask whose it is. Pays nothing.
    ///
    /// # Errors
    /// [`Reject::Unauthenticated`] for what opens nothing, which counts against the address; [`Reject::AddressDenied`] from
    /// outside the key's networks; [`Reject::Forbidden`] for a suspended account.
    pub fn user_of_key(&self, key: Shown<'_>) -> Result<User, Reject> {
        let unknown = || self.unknown_credential(key, Port::Public);
        let mac = self.credential_mac(key.text)?;
        let found = find_credential(self.store(), &self.tokens, key.text.as_bytes(), &mac, self.clock.now());
        let found = found.map_err(|error| self.failed(&error))?.ok_or_else(unknown)?;
        let CredentialKind::ApiKey { limits, .. } = found.kind else { return Err(unknown()) };
        if !limits.allows_address(key.from) {
            return Err(Reject::AddressDenied);
        }
        let user = self.live_user(Some(found.user))?.ok_or(Reject::Unauthenticated)?.value;
        may_enter(&user)?;
        // His own pages are open to him, calls are not.
        if user.status == Status::Pending {
            return Err(Reject::Forbidden("This account is not active yet"));
        }
        Ok(user)
    }

    /// The user whose session or API key this is.
    ///
    /// # Errors
    /// Those of [`Accounts::user_of_session`] and [`Accounts::user_of_key`].
    pub fn user_of_either(&self, credential: Shown<'_>) -> Result<User, Reject> {
        // Judged as a guess once, and only if it is neither.
        match self.user_of_session(Shown { counts: false, ..credential }) {
            Err(Reject::Unauthenticated | Reject::SessionNeeded) => self.user_of_key(credential),
            found => found,
        }
    }

    /// Makes a named key. It opens at once on every worker; its text is shown here.
    ///
    /// # Errors
    /// [`Reject::Invalid`]; [`Reject::Conflict`] for a name that is taken or when there are too many;
    /// [`Reject::NotFound`] for an unknown or deleted user.
    pub async fn create_key(&self, user: UserId, new: NewKey) -> Result<(KeyView, Minted), Reject> {
        let now = self.clock.now();
        let faults = [name_fault(&new.name), expiry_fault(new.expires_at, now)];
        refuse(faults.into_iter().flatten().chain(new.limits.faults()).collect())?;
        let most = self.settings().accounts.keys.max_per_user;
        let letter = Letter::new(LetterKind::KeyCreated).with("key", &new.name);
        self.changing_keys(user, Some(Word::Owner), Some(letter), |batch, keys| {
            let alive = || keys.iter().filter(|key| !is_over(&key.value, now));
            if alive().count() >= most {
                return Err(Reject::Conflict(format!("There are {most} keys already; delete one first")));
            }
            if alive().any(|key| key.value.name == new.name && key.value.rotated_to.is_none()) {
                return Err(Reject::Conflict("There is a key of this name already".into()));
            }
            clear_dead_keys(keys, now, batch);
            self.add_key(user, &new, batch)
        })
        .await
    }

    /// Changes a named key; the default key has no limits of its own.
    ///
    /// # Errors
    /// As [`Accounts::create_key`].
    pub async fn update_key(&self, user: UserId, id: CredentialId, update: KeyUpdate) -> Result<KeyView, Reject> {
        let now = self.clock.now();
        let faults = [update.name.as_deref().and_then(name_fault), expiry_fault(update.expires_at.flatten(), now)];
        refuse(faults.into_iter().flatten().collect())?;
        self.changing_keys(user, None, None, |batch, keys| {
            let row = keys.iter().find(|key| key.value.id == id).ok_or(Reject::NotFound)?;
            let mut key = row.value.clone();
            if key.name == DEFAULT_KEY {
                return Err(Reject::Conflict("The default key cannot be changed; it can be regenerated".into()));
            }
            if key.rotated_to.is_some() {
                return Err(Reject::Conflict(
                    "This key has been rotated and is on its way out; change its successor".into(),
                ));
            }
            let update = update.clone();
            if let Some(name) = update.name {
                if keys.iter().any(|other| other.value.name == name && other.value.id != id) {
                    return Err(Reject::Conflict("There is a key of this name already".into()));
                }
                key.name = name;
            }
            let limits = &mut key.limits;
            limits.scopes = update.scopes.unwrap_or(std::mem::take(&mut limits.scopes));
            limits.models = update.models.unwrap_or(std::mem::take(&mut limits.models));
            limits.cidrs = update.cidrs.unwrap_or(std::mem::take(&mut limits.cidrs));
            limits.per_minute = update.per_minute.unwrap_or(limits.per_minute);
            key.expires_at = update.expires_at.unwrap_or(key.expires_at);
            refuse(key.limits.faults())?;
            batch.require_equal(row.key.clone(), row.raw.clone());
            batch.put(row.key.clone(), super::encode_bounded(&key)?);
            self.view(&key)
        })
        .await
    }

    /// Removes a named key, which opens nothing any more when this returns. The default key can only be replaced.
    ///
    /// # Errors
    /// [`Reject::NotFound`]; [`Reject::Conflict`] for the default key.
    pub async fn revoke_key(&self, user: UserId, id: CredentialId) -> Result<KeyView, Reject> {
        self.changing_keys(user, None, None, |batch, keys| {
            let row = keys.iter().find(|key| key.value.id == id).ok_or(Reject::NotFound)?;
            if row.value.name == DEFAULT_KEY && row.value.rotated_to.is_none() {
                return Err(Reject::Conflict("The default key cannot be removed; it can be regenerated".into()));
            }
            let view = self.view(&row.value)?;
            batch.require_equal(row.key.clone(), row.raw.clone());
            drop_key(row, batch);
            Ok(view)
        })
        .await
    }

    /// Gives a key a successor of the same name and limits. The old one opens until `grace` is over, at most until it would
    /// have expired; without a grace it opens nothing any more when this returns.
    ///
    /// # Errors
    /// [`Reject::Invalid`] for a longer grace than the config allows; [`Reject::Conflict`] for a key that has a successor;
    /// [`Reject::NotFound`].
    pub async fn rotate_key(
        &self,
        user: UserId,
        id: CredentialId,
        grace: Duration,
    ) -> Result<(KeyView, Minted), Reject> {
        let settings = self.settings();
        let (longest, most) = (settings.accounts.keys.max_grace.0, settings.accounts.keys.max_per_user);
        if grace > longest {
            return Err(Reject::Invalid(vec![format!("grace_seconds: at most {}", longest.as_secs())]));
        }
        let now = self.clock.now();
        let letter = Letter::new(LetterKind::KeyChanged).with("key", id.0);
        self.changing_keys(user, Some(Word::Owner), Some(letter), |batch, keys| {
            let row =
                keys.iter().find(|key| key.value.id == id && !is_over(&key.value, now)).ok_or(Reject::NotFound)?;
            if row.value.rotated_to.is_some() {
                return Err(Reject::Conflict("This key has been rotated already".into()));
            }
            let leaving = keys.iter().filter(|key| key.value.rotated_to.is_some() && !is_over(&key.value, now));
            if !grace.is_zero() && leaving.count() >= most {
                return Err(Reject::Conflict(format!("There are {most} rotated keys still open; remove one first")));
            }
            let old = &row.value;
            let (name, limits) = (old.name.clone(), old.limits.clone());
            let new = NewKey { name, limits, expires_at: old.expires_at, look: KeyLook::Canonical };
            clear_dead_keys(keys, now, batch);
            let made = self.add_key(user, &new, batch)?;
            batch.require_equal(row.key.clone(), row.raw.clone());
            if grace.is_zero() {
                drop_key(row, batch);
            } else {
                let ends = now.plus(grace);
                let ends = old.expires_at.map_or(ends, |at| at.min(ends));
                let leaving =
                    ApiKey { expires_at: Some(ends), rotated_to: Some(made.0.id), sealed: None, ..old.clone() };
                batch.put(row.key.clone(), super::encode_bounded(&leaving)?);
            }
            Ok(made)
        })
        .await
    }

    /// A key's text, from the vault.
    ///
    /// # Errors
    /// [`Reject::NotFound`], also for a key of which only a MAC is kept; [`Reject::OwnerProofRequired`].
    pub fn reveal_key(&self, user: UserId, id: Option<CredentialId>) -> Result<(KeyView, Minted), Reject> {
        refuse_waiting(&self.user(user)?)?;
        let keys = self.load_keys(user)?;
        let wanted = |key: &ApiKey| match id {
            Some(id) => key.id == id,
            None => key.name == DEFAULT_KEY && key.rotated_to.is_none(),
        };
        let row = keys.iter().find(|row| wanted(&row.value)).ok_or(Reject::NotFound)?;
        let sealed = row.value.sealed.as_deref().ok_or(Reject::NotFound)?;
        let Some(text) = self.sealer.open(purpose(user, row.value.id), sealed) else {
            tracing::error!(%user, key = %row.value.id, "a sealed key does not open: is the vault's key another one?");
            return Err(Reject::Internal);
        };
        let text = String::from_utf8(text).map_err(|_| Reject::Internal)?;
        Ok((self.view(&row.value)?, Minted::again(text)))
    }

    /// Replaces a user's default key. The old one is dead before this returns; the new one is shown here.
    ///
    /// # Errors
    /// [`Reject::NotFound`] for an unknown or deleted user; on the owner's word also [`Reject::OwnerProofRequired`].
    pub async fn regenerate_key(&self, user: UserId, on: Word) -> Result<Minted, Reject> {
        let letter = Letter::new(LetterKind::KeyChanged).with("key", DEFAULT_KEY);
        let made = self.changing_keys(user, Some(on), Some(letter), |batch, keys| {
            for old in keys.iter().filter(|key| key.value.name == DEFAULT_KEY) {
                batch.require_equal(old.key.clone(), old.raw.clone());
                drop_key(old, batch);
            }
            self.add_key(user, &NewKey { name: DEFAULT_KEY.into(), ..NewKey::default() }, batch)
        });
        Ok(made.await?.1)
    }

    /// Runs a change of a live user's keys, again when somebody else changed something in between. A deletion that comes
    /// first changes the user's row, and nothing comes to be. `makes`: on whose word a key comes to be by it; an owner waits
    /// for proof with that.
    async fn changing_keys<T>(
        &self,
        user: UserId,
        makes: Option<Word>,
        letter: Option<Letter>,
        mut change: impl FnMut(&mut Batch, &[Loaded<ApiKey>]) -> Result<T, Reject> + Send,
    ) -> Result<T, Reject> {
        for _ in 0..MAX_TRIES {
            let row = self.load::<User>(tables::user(user))?.filter(|row| row.value.status != Status::Deleted);
            let mut row = row.ok_or(Reject::NotFound)?;
            if makes == Some(Word::Owner) {
                refuse_waiting(&row.value)?;
            }
            // The row is written again, though nothing in it changes but this number: two changes at once must not both
            // count the keys before the other one's.
            let mut batch = row.unchanged();
            row.value.keys_changed = row.value.keys_changed.wrapping_add(1);
            batch.put(row.key.clone(), super::encode_bounded(&row.value)?);
            let done = change(&mut batch, &self.load_keys(user)?)?;
            if let Some(letter) = &letter {
                self.post(&row.value, letter.clone(), &mut batch)?;
            }
            match self.commit_for_user(user, batch, Forget::Credentials).await {
                Ok(()) => return Ok(done),
                Err(error) => self.judge_conflict(&error)?,
            }
        }
        Err(too_busy())
    }

    /// Removes keys that have been of no use for long; says how many.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`].
    pub async fn purge_keys(&self) -> Result<u64, Reject> {
        let (mut from, end) = (tables::API_KEYS.to_vec(), prefix_end(tables::API_KEYS));
        let mut purged = 0;
        loop {
            let rows = self.next_rows(&mut from, &end).await?;
            if rows.is_empty() {
                return Ok(purged);
            }
            let now = self.clock.now();
            for (key, raw) in rows {
                let value: ApiKey = tables::decode(&raw).map_err(|error| self.failed(&error))?;
                if value.expires_at.is_none_or(|at| now < at.plus(DEAD_KEY_STAYS)) {
                    continue;
                }
                let row = Loaded { key, raw, value };
                let mut batch = row.unchanged();
                drop_key(&row, &mut batch);
                // Prolonged at this moment: it is no more what was read.
                purged += u64::from(self.committer.commit(batch).await.is_ok());
            }
        }
    }

    /// Mints a key and adds its rows to a batch.
    pub(super) fn add_key(&self, user: UserId, new: &NewKey, batch: &mut Batch) -> Result<(KeyView, Minted), Reject> {
        let minted = secrets::mint_api_key(new.look).map_err(|error| no_randomness(&error))?;
        self.insert_key(user, new, minted, batch)
    }

    /// Adds the rows of a key whose text is there already.
    pub(super) fn insert_key(
        &self,
        user: UserId,
        new: &NewKey,
        minted: Minted,
        batch: &mut Batch,
    ) -> Result<(KeyView, Minted), Reject> {
        let id = secrets::mint_credential_id().map_err(|error| no_randomness(&error))?;
        let sealed = match self.settings().accounts.keys.mode {
            KeyMode::Vault => Some(self.sealer.seal(purpose(user, id), minted.expose().as_bytes())?),
            KeyMode::HashOnly => None,
        };
        let key = ApiKey {
            id,
            user,
            name: new.name.clone(),
            shown: minted.expose().chars().take(SHOWN_LEN).collect(),
            created_at: self.clock.now(),
            expires_at: new.expires_at,
            limits: new.limits.clone(),
            sealed,
            rotated_to: None,
        };
        let mac = self.pepper.mac(minted.expose().as_bytes());
        let pointer = tables::encode(&secrets::mac_to_hex(&mac)).map_err(|error| self.failed(&error))?;
        batch.put(tables::api_key(&mac), super::encode_bounded(&key)?).put(tables::key_of_user(user, key.id), pointer);
        Ok((KeyView::of(&key, None), minted))
    }

    pub(super) fn load_keys(&self, user: UserId) -> Result<Vec<Loaded<ApiKey>>, Reject> {
        let macs = self.credential_macs(&tables::keys_of_user(user), MAX_ROWS)?;
        let rows = macs.iter().map(|(_, mac)| self.load::<ApiKey>(tables::api_key(mac)));
        rows.filter_map(Result::transpose).collect()
    }

    /// The rows under `prefix` that point to credentials: their keys and what they point to.
    pub(super) fn credential_macs(&self, prefix: &[u8], limit: usize) -> Result<Vec<(Vec<u8>, SecretMac)>, Reject> {
        let read = || {
            let rows = self.store().range(prefix, &prefix_end(prefix), limit, Order::Ascending)?;
            let mac = |(key, row): (Vec<u8>, Vec<u8>)| {
                let text: String = tables::decode(&row)?;
                let mac = secrets::mac_from_hex(&text)
                    .ok_or_else(|| StoreError::Corrupt("a pointer to a credential".into()))?;
                Ok((key, mac))
            };
            rows.into_iter().map(mac).collect::<Result<Vec<_>, StoreError>>()
        };
        read().map_err(|error| self.failed(&error))
    }
}
