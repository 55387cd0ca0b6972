//! Known devices: proof that somebody has been let in from here before.
//!
//! Owns the text that a login leaves on a device, and its checking. With it the owner of an account may try their password
//! while guesses of others have locked it, or blocked the address; its own wrong tries are counted apart and lock it alone. It
//! opens nothing by itself. It is bound to the user and their password (a new password makes strangers of all devices), and
//! nothing of it is kept here: a MAC over what it says is all there is.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::secrets::Minted;
use super::{Accounts, no_randomness};
use crate::clock::{self, UnixMillis};
use crate::domain::ids::SecretMac;
use crate::domain::user::User;
use crate::error::Reject;

const PREFIX: &str = "td-";
const NONCE_BYTES: usize = 8;
/// Its text; longer ones are not looked at.
pub const TEXT_BYTES: usize = PREFIX.len() + 64;
const DAY_MILLIS: u64 = 86_400_000;

/// What a device is to keep, and for how long.
#[derive(Debug)]
pub struct DeviceView {
    pub token: Minted,
    pub expires_at: UnixMillis,
}

impl Accounts {
    /// Proof for the device of a user who has just been let in; none while devices are not to be known, and none where there
    /// is no password that others could lock.
    pub(super) fn mint_device(&self, user: &User) -> Result<Option<DeviceView>, Reject> {
        let days = self.settings().accounts.known_device_days;
        if days == 0 || user.password_hash.is_none() {
            return Ok(None);
        }
        let expires_at = UnixMillis(self.clock.now().0.saturating_add(days.saturating_mul(DAY_MILLIS)));
        let mut nonce = [0u8; NONCE_BYTES];
        clock::random_bytes(&mut nonce).map_err(|error| no_randomness(&error))?;
        let mac = self.device_mac(user, expires_at, nonce);
        let bytes = [expires_at.0.to_be_bytes().as_slice(), &nonce, &mac.0].concat();
        let token = Minted::again(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)));
        Ok(Some(DeviceView { token, expires_at }))
    }

    /// Whether a text is such proof, for this user as he is now.
    pub(super) fn knows_device(&self, user: &User, text: &str) -> bool {
        let decode = || {
            let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX)?).ok()?;
            let (at, rest) = bytes.split_first_chunk::<8>()?;
            let (nonce, mac) = rest.split_first_chunk::<NONCE_BYTES>()?;
            Some((UnixMillis(u64::from_be_bytes(*at)), *nonce, SecretMac(mac.try_into().ok()?)))
        };
        if text.len() != TEXT_BYTES || self.settings().accounts.known_device_days == 0 {
            return false;
        }
        let Some((expires_at, nonce, mac)) = decode() else { return false };
        // MACs of MACs are compared, so that the time it takes says nothing about the bytes.
        let same = self.pepper.mac(&self.device_mac(user, expires_at, nonce).0) == self.pepper.mac(&mac.0);
        same && self.clock.now() < expires_at
    }

    fn device_mac(&self, user: &User, expires_at: UnixMillis, nonce: [u8; NONCE_BYTES]) -> SecretMac {
        let hash = user.password_hash.as_deref().unwrap_or_default();
        let said = [user.id.0.to_be_bytes().as_slice(), &expires_at.0.to_be_bytes(), &nonce, hash.as_bytes()].concat();
        self.pepper.mac_in("known device", &said)
    }
}
