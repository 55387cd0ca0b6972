//! Sealing: what the store must keep and give back, but not show.
//!
//! Owns the key for that, which is in a file of its own or in the config and never in the store, and the form of a sealed
//! value: `enc:v1:` and base64url of nonce (24 bytes), ciphertext and proof (16 bytes), XChaCha20-Poly1305. A value opens
//! only for the purpose and the owner it was sealed for: copied into another row, it is no value.

use std::fmt;
use std::io;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use sha2::{Digest, Sha256};

use super::secrets;
use crate::clock;
use crate::error::Reject;

const PREFIX: &str = "enc:v1:";
const NONCE_BYTES: usize = 24;
/// The least a key's text must have, in bytes.
pub const MIN_KEY_BYTES: usize = 32;

/// Seals and opens.
#[derive(Clone)]
pub struct Sealer(XChaCha20Poly1305);

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(…)")
    }
}

/// What a value is sealed for.
#[derive(Clone, Copy, Debug)]
pub struct Purpose<'a> {
    /// A word of ours: `api key`, `totp`.
    pub what: &'a str,
    /// Whose it is, and which.
    pub whose: u64,
    pub which: u64,
}

impl Purpose<'_> {
    fn bytes(self) -> Vec<u8> {
        [self.what.as_bytes(), &[0], &self.whose.to_be_bytes(), &self.which.to_be_bytes()].concat()
    }
}

impl Sealer {
    /// # Errors
    /// The key is shorter than [`MIN_KEY_BYTES`].
    pub fn new(key: &[u8]) -> Result<Self, String> {
        if key.len() < MIN_KEY_BYTES {
            return Err(format!("{} bytes are too few; at least {MIN_KEY_BYTES}", key.len()));
        }
        let mut hash = Sha256::new();
        hash.update(b"tollgate seal v1\0");
        hash.update(key);
        Ok(Self(XChaCha20Poly1305::new(&hash.finalize())))
    }

    /// Reads the key of a data directory, or makes it there on the first start.
    ///
    /// # Errors
    /// As [`Pepper::load_or_create`](super::secrets::Pepper::load_or_create).
    pub fn load_or_create(data_dir: &Path) -> io::Result<Self> {
        let text = secrets::load_or_create_key(data_dir, "vault")?;
        Self::new(text.trim_ascii()).map_err(io::Error::other)
    }

    /// # Errors
    /// [`Reject::Internal`] without randomness.
    pub fn seal(&self, purpose: Purpose<'_>, secret: &[u8]) -> Result<String, Reject> {
        let mut nonce = [0u8; NONCE_BYTES];
        clock::random_bytes(&mut nonce).map_err(|error| super::no_randomness(&error))?;
        let aad = purpose.bytes();
        let sealed = self.0.encrypt(&XNonce::from(nonce), Payload { msg: secret, aad: &aad });
        let sealed = sealed.map_err(|_| Reject::Internal)?;
        Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode([nonce.as_slice(), &sealed].concat())))
    }

    /// What was sealed; `None` when it is damaged, or was sealed for something else or under another key.
    pub fn open(&self, purpose: Purpose<'_>, sealed: &str) -> Option<Vec<u8>> {
        let bytes = URL_SAFE_NO_PAD.decode(sealed.strip_prefix(PREFIX)?).ok()?;
        let (nonce, rest) = bytes.split_first_chunk::<NONCE_BYTES>()?;
        let aad = purpose.bytes();
        self.0.decrypt(&XNonce::from(*nonce), Payload { msg: rest, aad: &aad }).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_value_opens_for_its_own_purpose_alone() {
        let sealer = Sealer::new(&[7; 32]).unwrap();
        let mine = Purpose { what: "api key", whose: 1, which: 2 };
        let sealed = sealer.seal(mine, b"pe-secret").unwrap();
        assert!(sealed.starts_with(PREFIX) && !sealed.contains("secret"));
        assert_eq!(sealer.open(mine, &sealed).as_deref(), Some(b"pe-secret".as_slice()));
        assert_ne!(sealed, sealer.seal(mine, b"pe-secret").unwrap(), "a nonce is used once");
        for other in [Purpose { what: "totp", ..mine }, Purpose { whose: 2, ..mine }, Purpose { which: 3, ..mine }] {
            assert_eq!(sealer.open(other, &sealed), None);
        }
        assert_eq!(Sealer::new(&[8; 32]).unwrap().open(mine, &sealed), None);
        let mut damaged = sealed.clone();
        damaged.pop();
        assert_eq!(sealer.open(mine, &damaged), None);
        assert!(Sealer::new(&[7; 31]).is_err());
    }
}
