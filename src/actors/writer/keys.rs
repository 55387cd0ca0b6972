//! The keys under which segments are encrypted, and what is done with them.
//!
//! Owns the reading of keys, the names that tell them apart, the data key of each file, and the two calls that encrypt and
//! decrypt. It never reads the config, never writes a file and never prints a key.
//!
//! A file's data key is `HMAC-SHA-256(key, label ‖ salt)` with a salt of 32 random bytes that stands in the file's head, so
//! no two files share one. The cipher is XChaCha20-Poly1305. Its nonce is 16 bytes of the caller's choice and a number; the
//! callers say why theirs never come twice.

use std::fmt;
use std::io;
use std::sync::Arc;

use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{KeyInit as _, Tag, XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::clock::random_bytes;

/// Bytes of a key.
const KEY_BYTES: usize = 32;
/// Bytes that an encrypted text is longer than its clear one.
pub(super) const TAG_BYTES: usize = 16;
/// The part of a nonce that the caller chooses freely.
pub(super) const NONCE_PREFIX_BYTES: usize = 16;
/// Bytes of a file's salt.
pub(super) const SALT_BYTES: usize = 32;

const ID_LABEL: &[u8] = b"tollgate journal key id 1";
const DATA_LABEL: &[u8] = b"tollgate journal data key 1";
const HOW_TO_MAKE_ONE: &str = "make one with `openssl rand -hex 32`";

/// What names a key without telling anything else of it: the first eight bytes of a MAC under it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct KeyId(pub(super) [u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// One key.
struct Key {
    keyed: Hmac<Sha256>,
    id: KeyId,
}

impl Key {
    fn new(bytes: &[u8; KEY_BYTES]) -> Result<Self, String> {
        let keyed = Hmac::<Sha256>::new_from_slice(bytes).map_err(|_| "cannot be used as a key".to_owned())?;
        let mut id = KeyId::default();
        let mac = keyed.clone().chain_update(ID_LABEL).finalize().into_bytes();
        id.0.copy_from_slice(&mac[..8]);
        Ok(Self { keyed, id })
    }

    /// With a salt of its own.
    fn new_cipher(&self) -> io::Result<(Seal, Cipher)> {
        let mut salt = [0; SALT_BYTES];
        random_bytes(&mut salt)?;
        Ok((Seal { key_id: self.id, salt }, self.cipher(salt)))
    }

    fn cipher(&self, salt: [u8; SALT_BYTES]) -> Cipher {
        let key = self.keyed.clone().chain_update(DATA_LABEL).chain_update(salt).finalize().into_bytes();
        Cipher { aead: XChaCha20Poly1305::new(&key), salt }
    }
}

/// The key for what is written, and all that are needed for what is there. Without any, nothing is encrypted.
#[derive(Clone, Default)]
pub struct JournalKeys {
    current: Option<Arc<Key>>,
    old: Vec<Arc<Key>>,
}

impl fmt::Debug for JournalKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JournalKeys").field("current", &self.current_id()).finish_non_exhaustive()
    }
}

impl JournalKeys {
    /// Takes keys as texts: 32 bytes each, in hex (64 digits) or base64.
    ///
    /// # Errors
    /// A sentence that begins with the config key and never repeats the text.
    pub fn new(current: Option<&str>, old: &[String]) -> Result<Self, String> {
        let parse = |name: &str, text: &str| {
            let bytes = key_bytes(text).ok_or_else(|| {
                format!("{name}: not 32 bytes in hex or base64 (a passphrase is no key); {HOW_TO_MAKE_ONE}")
            })?;
            Key::new(&bytes).map(Arc::new).map_err(|why| format!("{name}: {why}"))
        };
        Ok(Self {
            current: current.map(|text| parse("journal.encryption_key", text)).transpose()?,
            old: old.iter().map(|text| parse("journal.old_encryption_keys", text)).collect::<Result<_, _>>()?,
        })
    }

    /// The name of the key that new files get.
    #[must_use]
    pub fn current_id(&self) -> Option<KeyId> {
        self.current.as_ref().map(|key| key.id)
    }

    /// Where the config names this key, if it does.
    pub(super) fn role(&self, id: KeyId) -> Option<&'static str> {
        if self.current_id() == Some(id) {
            return Some("journal.encryption_key");
        }
        self.old.iter().any(|key| key.id == id).then_some("journal.old_encryption_keys")
    }

    /// A cipher for a new file; none when nothing is to be encrypted.
    pub(super) fn for_new_file(&self) -> io::Result<Option<(Seal, Cipher)>> {
        self.current.as_ref().map(|key| key.new_cipher()).transpose()
    }

    /// A cipher for a new file under the key that another had.
    pub(super) fn again_under(&self, id: KeyId) -> io::Result<(Seal, Cipher)> {
        self.find(id)?.new_cipher()
    }

    fn find(&self, id: KeyId) -> io::Result<&Key> {
        let key = self.current.iter().chain(&self.old).find(|key| key.id == id);
        key.map(Arc::as_ref).ok_or_else(|| {
            let text = format!(
                "encrypted with key {id}, which is not configured; give it in journal.encryption_key or \
                 journal.old_encryption_keys"
            );
            io::Error::new(io::ErrorKind::PermissionDenied, text)
        })
    }

    /// The cipher of a file that is there.
    ///
    /// # Errors
    /// [`io::ErrorKind::PermissionDenied`] when its key is not among these; the text names it.
    pub(super) fn of_file(&self, seal: &Seal) -> io::Result<Cipher> {
        self.find(seal.key_id).map(|key| key.cipher(seal.salt))
    }
}

/// Whether reading failed for want of a key.
pub(super) fn is_missing_key(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

/// What a file's head says of its encryption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seal {
    pub key_id: KeyId,
    pub salt: [u8; SALT_BYTES],
}

/// A file's data key, ready for use.
#[derive(Clone)]
pub(super) struct Cipher {
    aead: XChaCha20Poly1305,
    salt: [u8; SALT_BYTES],
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher(…)")
    }
}

impl Cipher {
    /// Encrypts `text` in place and returns what proves it and `beside` unchanged.
    ///
    /// # Errors
    /// A text longer than the cipher takes (256 GiB).
    pub(super) fn seal(&self, nonce: Nonce, beside: &[u8], text: &mut [u8]) -> io::Result<[u8; TAG_BYTES]> {
        let beside = self.with_salt(beside);
        let tag = self.aead.encrypt_inout_detached(&nonce.bytes(), &beside, text.into());
        tag.map(Into::into).map_err(|_| io::Error::other("too long to be encrypted"))
    }

    /// Decrypts `text` in place. False when it, the proof or `beside` is not what was encrypted.
    pub(super) fn open(&self, nonce: Nonce, beside: &[u8], text: &mut [u8], tag: &[u8]) -> bool {
        let Ok(tag) = <[u8; TAG_BYTES]>::try_from(tag) else {
            return false;
        };
        let beside = self.with_salt(beside);
        self.aead.decrypt_inout_detached(&nonce.bytes(), &beside, text.into(), &Tag::from(tag)).is_ok()
    }

    /// The salt is bound by the data key already; here it is once more, in plain sight.
    fn with_salt(&self, beside: &[u8]) -> Vec<u8> {
        [&self.salt, beside].concat()
    }
}

/// A nonce: a prefix and a number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Nonce(pub [u8; NONCE_PREFIX_BYTES], pub u64);

impl Nonce {
    fn bytes(self) -> XNonce {
        let mut bytes = [0; 24];
        bytes[..NONCE_PREFIX_BYTES].copy_from_slice(&self.0);
        bytes[NONCE_PREFIX_BYTES..].copy_from_slice(&self.1.to_le_bytes());
        XNonce::from(bytes)
    }
}

/// 32 bytes from 64 hex digits or from base64 (either alphabet, with or without padding).
fn key_bytes(text: &str) -> Option<[u8; KEY_BYTES]> {
    let text = text.trim();
    if text.len() == 2 * KEY_BYTES {
        let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect();
        let bytes: Vec<u8> = digits?.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        return bytes.try_into().ok();
    }
    let digits = text.strip_suffix('=').unwrap_or(text);
    if digits.len() != 43 {
        return None;
    }
    let (mut bits, mut held, mut bytes) = (0_u32, 0, Vec::with_capacity(KEY_BYTES));
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    bytes.try_into().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    #[test]
    fn hex_and_base64_name_the_same_key() {
        let base64 = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        let ids: Vec<_> = [HEX, &HEX.to_uppercase(), base64, base64.trim_end_matches('='), &format!(" {HEX}\n")]
            .map(|text| JournalKeys::new(Some(text), &[]).unwrap().current_id().unwrap())
            .to_vec();
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        let slashes = ["//////////////////////////////////////////8=", "__________________________________________8"];
        assert_eq!(slashes.map(|text| key_bytes(text).unwrap()), [[0xFF; 32]; 2]);
    }

    #[test]
    fn a_passphrase_is_refused_and_not_repeated() {
        for text in ["correct horse battery staple", "", "0123", &HEX[..63], &format!("{}g", &HEX[..63]), "ä"] {
            let why = JournalKeys::new(Some(text), &[]).unwrap_err();
            assert!(why.starts_with("journal.encryption_key: ") && why.contains("openssl rand -hex 32"), "{why}");
            assert!(text.len() < 5 || !why.contains(text), "{why}");
            let why = JournalKeys::new(None, &[HEX.to_owned(), text.to_owned()]).unwrap_err();
            assert!(why.starts_with("journal.old_encryption_keys: "), "{why}");
        }
    }

    #[test]
    fn a_missing_key_is_named_and_nothing_prints_one() {
        let keys = JournalKeys::new(Some(HEX), &[]).unwrap();
        let (seal, cipher) = keys.for_new_file().unwrap().unwrap();
        let error = JournalKeys::default().of_file(&seal).unwrap_err();
        assert!(is_missing_key(&error) && error.to_string().contains(&keys.current_id().unwrap().to_string()));
        assert!(error.to_string().contains("journal.old_encryption_keys"));
        let printed = format!("{keys:?} {cipher:?}");
        assert!(!printed.contains("0001020304") && !printed.contains("[0, 1, 2"), "{printed}");
    }

    #[test]
    fn what_was_changed_or_moved_does_not_open() {
        let keys = JournalKeys::new(Some(HEX), &[]).unwrap();
        let (seal, cipher) = keys.for_new_file().unwrap().unwrap();
        let nonce = Nonce([7; 16], 3);
        let mut text = *b"hello";
        let tag = cipher.seal(nonce, b"head", &mut text).unwrap();
        assert_ne!(&text, b"hello");
        let opens = |cipher: &Cipher, nonce, beside: &[u8], text: [u8; 5], tag: &[u8]| {
            let mut text = text;
            cipher.open(nonce, beside, &mut text, tag).then_some(text)
        };
        assert_eq!(opens(&keys.of_file(&seal).unwrap(), nonce, b"head", text, &tag), Some(*b"hello"));
        let other = keys.for_new_file().unwrap().unwrap().1;
        assert_eq!(opens(&other, nonce, b"head", text, &tag), None, "another file");
        assert_eq!(opens(&cipher, Nonce([7; 16], 4), b"head", text, &tag), None, "another place");
        assert_eq!(opens(&cipher, nonce, b"heat", text, &tag), None, "another head");
        assert_eq!(opens(&cipher, nonce, b"head", *b"xxxxx", &tag), None, "another text");
        assert_eq!(opens(&cipher, nonce, b"head", text, &tag[..15]), None, "a part of the proof");
    }
}
