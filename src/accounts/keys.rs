//! API keys: the default key of each user, and the lookup of any credential by its MAC.
//!
//! Owns the rows of keys. Never keeps a key's text: it is shown once, to the one who made it.

use super::secrets::{self, Minted};
use super::{Accounts, Forget, Loaded, MAX_TRIES, no_randomness, too_busy};
use crate::clock::UnixMillis;
use crate::domain::ids::{CredentialId, SecretMac, UserId};
use crate::domain::key::{ApiKey, KeyLimits};
use crate::domain::session::{Principal, Session};
use crate::domain::user::{Status, User};
use crate::error::Reject;
use crate::store::{Batch, Order, Store, StoreError, prefix_end, tables};

/// The key every user has.
pub const DEFAULT_KEY: &str = "default";
/// Characters of a key that lists show.
const SHOWN_LEN: usize = 7;
/// Keys a user may have.
pub const MAX_KEYS: usize = 100;

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

/// Finds a user's key or session by the MAC of its text. What is unknown, revoked or expired is equally not there; a
/// session of the staff never opens the public side.
///
/// # Errors
/// The store cannot be read.
pub fn find_credential(
    store: &dyn Store,
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
        (None, Some(Session { principal: Principal::User(user), id, expires_at, .. })) => {
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
    pub created_at: UnixMillis,
    pub expires_at: Option<UnixMillis>,
}

impl Accounts {
    /// The keys of a user.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`].
    pub fn keys(&self, user: UserId) -> Result<Vec<KeyView>, Reject> {
        let keys = self.load_keys(user)?.into_iter().map(|row| KeyView {
            id: row.value.id,
            masked: format!("{}…", row.value.shown),
            name: row.value.name,
            created_at: row.value.created_at,
            expires_at: row.value.expires_at,
        });
        Ok(keys.collect())
    }

    /// Replaces a user's default key. The old one is dead before this returns; the new one is shown here and never again.
    ///
    /// # Errors
    /// [`Reject::NotFound`] for an unknown or deleted user.
    pub async fn regenerate_key(&self, user: UserId) -> Result<Minted, Reject> {
        for _ in 0..MAX_TRIES {
            let row = self.load::<User>(tables::user(user))?.filter(|row| row.value.status != Status::Deleted);
            // A deletion that comes in between changes the user's row, and the new key does not come to be.
            let mut batch = row.ok_or(Reject::NotFound)?.unchanged();
            for old in self.load_keys(user)?.into_iter().filter(|key| key.value.name == DEFAULT_KEY) {
                batch.require_equal(old.key.clone(), old.raw);
                batch.delete(old.key).delete(tables::key_of_user(user, old.value.id));
            }
            let minted = self.add_key(user, DEFAULT_KEY, &mut batch)?;
            match self.commit_for_user(user, batch, Forget::Credentials).await {
                Ok(()) => return Ok(minted),
                Err(error) => self.judge_conflict(&error)?,
            }
        }
        Err(too_busy())
    }

    /// Mints a key and adds its rows to a batch.
    pub(super) fn add_key(&self, user: UserId, name: &str, batch: &mut Batch) -> Result<Minted, Reject> {
        let minted = secrets::mint_api_key().map_err(|error| no_randomness(&error))?;
        let key = ApiKey {
            id: secrets::mint_credential_id().map_err(|error| no_randomness(&error))?,
            user,
            name: name.to_owned(),
            shown: minted.expose().chars().take(SHOWN_LEN).collect(),
            created_at: self.clock.now(),
            expires_at: None,
            limits: KeyLimits::default(),
        };
        let mac = self.pepper.mac(minted.expose().as_bytes());
        let encoded = (|| Ok((tables::encode(&key)?, tables::encode(&secrets::mac_to_hex(&mac))?)))();
        let (row, pointer) = encoded.map_err(|error: StoreError| self.failed(&error))?;
        batch.put(tables::api_key(&mac), row).put(tables::key_of_user(user, key.id), pointer);
        Ok(minted)
    }

    pub(super) fn load_keys(&self, user: UserId) -> Result<Vec<Loaded<ApiKey>>, Reject> {
        let macs = self.credential_macs(&tables::keys_of_user(user), MAX_KEYS)?;
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
