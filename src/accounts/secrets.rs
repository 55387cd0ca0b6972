//! Secrets: the pepper under which they are stored, and the minting of new ones.
//!
//! Owns the only ways from a credential's text to what the store may hold ([`Pepper::mac`]) and from the system's random
//! generator to a credential. Never writes a secret anywhere but the pepper's own file, and never prints one.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::clock;
use crate::domain::ids::{CredentialId, SecretMac};
use crate::domain::key::{KEY_RANDOM_LEN, KeyLook};
use crate::failpoint;
use crate::store::folder;

/// The least a pepper must have, in bytes.
pub const MIN_PEPPER_BYTES: usize = 32;
/// Longest text that is looked at as a credential.
pub const MAX_CREDENTIAL_BYTES: usize = 512;

const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
/// Of random session tokens and refresh tokens.
pub(super) const TOKEN_PREFIXES: (&str, &str) = ("ts-", "tr-");
/// 43 × 5.95 bits: as much as SHA-256 keeps.
const TOKEN_RANDOM_LEN: usize = 43;

/// The server-side key under which credentials become MACs. Without it a stolen store opens nothing.
#[derive(Clone)]
pub struct Pepper {
    /// Inner and outer state after the key's block, so that a MAC of a credential costs two compressions.
    keyed: Hmac<Sha256>,
}

impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pepper(…)")
    }
}

impl Pepper {
    /// # Errors
    /// It is shorter than [`MIN_PEPPER_BYTES`].
    pub fn new(key: &[u8]) -> Result<Self, String> {
        if key.len() < MIN_PEPPER_BYTES {
            return Err(format!("accounts.pepper: {} bytes are too few; at least {MIN_PEPPER_BYTES}", key.len()));
        }
        let keyed = Hmac::new_from_slice(key).map_err(|_| "accounts.pepper: cannot be used as a key".to_owned())?;
        Ok(Self { keyed })
    }

    /// Reads the pepper of a data directory, or makes it there on the first start.
    ///
    /// # Errors
    /// The file cannot be read or made, or holds too little: a store whose pepper is lost must not be started with a new
    /// one as if nothing had happened.
    pub fn load_or_create(data_dir: &Path) -> io::Result<Self> {
        let text = load_or_create_key(data_dir, "pepper")?;
        let file = data_dir.join("secrets/pepper");
        Self::new(text.trim_ascii()).map_err(|why| io::Error::other(format!("{}: {why}", file.display())))
    }

    /// The MAC under which a credential is stored and looked up.
    pub fn mac(&self, secret: &[u8]) -> SecretMac {
        let mut mac = self.keyed.clone();
        mac.update(secret);
        SecretMac(mac.finalize().into_bytes().into())
    }

    /// A MAC of something that is no credential, in a space of its own.
    pub fn mac_in(&self, space: &str, text: &[u8]) -> SecretMac {
        let mut mac = self.keyed.clone();
        // No credential begins with a zero byte.
        mac.update(&[0]);
        mac.update(space.as_bytes());
        mac.update(&[0]);
        mac.update(text);
        SecretMac(mac.finalize().into_bytes().into())
    }

    /// A function of its own key, which is made of the pepper.
    pub fn prf_in(&self, space: &str, text: &[u8]) -> Prf {
        let mut mac = self.keyed.clone();
        mac.update(&[0]);
        mac.update(space.as_bytes());
        mac.update(&[0]);
        mac.update(text);
        // A key shorter than the hash's block is padded with zeros (RFC 2104).
        let mut key = [0u8; 64];
        key[..32].copy_from_slice(&mac.finalize().into_bytes());
        Prf(Hmac::new(&key.into()))
    }
}

/// A keyed function for what is computed instead of kept, such as login codes.
#[derive(Clone)]
pub struct Prf(Hmac<Sha256>);

impl Prf {
    /// 64 bits that nobody can foresee without the pepper.
    pub fn bits(&self, round: u8, input: u64) -> u64 {
        let mut mac = self.0.clone();
        mac.update(&[round]);
        mac.update(&input.to_be_bytes());
        let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(mac.finalize().into_bytes());
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}

/// A secret on its way to the one who may see it, once.
pub struct Minted(String);

impl Minted {
    /// A secret that its owner is shown once more.
    pub(super) fn again(text: String) -> Self {
        Self(text)
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Minted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Minted(…)")
    }
}

/// A new API key.
///
/// # Errors
/// The system has no random bytes to give; nothing may be minted then.
pub fn mint_api_key(look: KeyLook) -> io::Result<Minted> {
    mint(look.prefix(), KEY_RANDOM_LEN)
}

/// A new session token and a new refresh token, random both.
///
/// # Errors
/// As [`mint_api_key`].
pub fn mint_tokens(prefixes: (&str, &str)) -> io::Result<(Minted, Minted)> {
    Ok((mint(prefixes.0, TOKEN_RANDOM_LEN)?, mint(prefixes.1, TOKEN_RANDOM_LEN)?))
}

/// A new token without a prefix, for the operator's file.
///
/// # Errors
/// As [`mint_api_key`].
pub fn mint_operator_token() -> io::Result<Minted> {
    mint("op-", TOKEN_RANDOM_LEN)
}

fn mint(prefix: &str, len: usize) -> io::Result<Minted> {
    Ok(Minted(format!("{prefix}{}", clock::random_alphanumerics(len)?)))
}

/// The tokens that follow a refresh token: always the same for the same one, and for nobody to guess without the pepper. So
/// they can be given again without being kept.
pub fn successors_of(pepper: &Pepper, refresh_token: &str, prefixes: (&str, &str)) -> (Minted, Minted) {
    let derive = |prefix: &str, space: &str| {
        let spread = |half: &str| pepper.mac_in(&format!("{space} {half}"), refresh_token.as_bytes()).0;
        let bytes = [spread("a"), spread("b")].concat();
        // The remainder of a byte favours the first eight characters a little: 5.94 bits a character instead of 5.95.
        let text: String =
            bytes.iter().take(TOKEN_RANDOM_LEN).map(|b| char::from(ALPHABET[usize::from(b % 62)])).collect();
        Minted(format!("{prefix}{text}"))
    };
    (derive(prefixes.0, "next session token"), derive(prefixes.1, "next refresh token"))
}

/// A new number for a key or session: random, so that making one needs no counter; exact in JSON.
///
/// # Errors
/// As [`mint_api_key`].
pub fn mint_credential_id() -> io::Result<CredentialId> {
    let mut raw = [0u8; 8];
    clock::random_bytes(&mut raw)?;
    Ok(CredentialId((u64::from_le_bytes(raw) >> 11).max(1)))
}

/// A MAC as rows that point to it hold it.
pub fn mac_to_hex(mac: &SecretMac) -> String {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let digits = mac.0.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(HEX[usize::from(digit)])).collect()
}

/// The reverse of [`mac_to_hex`].
pub fn mac_from_hex(text: &str) -> Option<SecretMac> {
    let mut mac = [0u8; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (at, byte) in mac.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(SecretMac(mac))
}

/// The text of a key file in `data_dir/secrets`, which is made with random text when there is none.
pub(super) fn load_or_create_key(data_dir: &Path, name: &str) -> io::Result<Vec<u8>> {
    let dir = data_dir.join("secrets");
    let file = dir.join(name);
    match fs::read(&file) {
        Ok(text) => {
            // Whoever made it may have died before the names were on disk; without them, no key would be known again.
            folder::sync_name(&file)?;
            folder::sync_name(&dir)?;
            Ok(text)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text = clock::random_alphanumerics(TOKEN_RANDOM_LEN)?;
            create_private_dir(&dir)?;
            failpoint::hit("secrets.after_create");
            write_private(&file, text.as_bytes())?;
            folder::sync_name(&dir)?;
            Ok(text.into_bytes())
        }
        Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", file.display()))),
    }
}

/// Makes a directory that only we may enter, and its parents.
pub(super) fn create_private_dir(dir: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
    }
    #[cfg(not(unix))]
    fs::create_dir_all(dir)
}

/// Writes a file that only we may read, all of it or nothing, and has it on disk when it returns.
pub(super) fn write_private(file: &Path, content: &[u8]) -> io::Result<()> {
    folder::write_whole(file, &file.with_extension(format!("{}.tmp", std::process::id())), content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mac_is_hmac_sha_256() {
        // RFC 4231, test case 6, has a key longer than a block: the precomputed states must agree with it too.
        let pepper = Pepper::new(&[0xaa; 131]).unwrap();
        let mac = pepper.mac(b"Test Using Larger Than Block-Size Key - Hash Key First");
        assert_eq!(mac_to_hex(&mac), "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
        assert_eq!(mac_from_hex(&mac_to_hex(&mac)), Some(mac));
        assert_eq!(mac_from_hex("60"), None);
        assert_ne!(pepper.mac_in("lock", b"x"), pepper.mac(b"x"));
    }

    #[test]
    fn a_pepper_is_made_once_and_kept_private() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pepper::load_or_create(dir.path()).unwrap();
        let again = Pepper::load_or_create(dir.path()).unwrap();
        assert_eq!(first.mac(b"x"), again.mac(b"x"));
        let file = dir.path().join("secrets/pepper");
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.len() >= MIN_PEPPER_BYTES && !format!("{first:?}").contains(&text));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        }
        fs::write(&file, "short").unwrap();
        assert!(Pepper::load_or_create(dir.path()).is_err(), "a damaged pepper is not replaced");
    }

    #[test]
    fn what_is_minted_has_its_form_and_does_not_print() {
        let key = mint_api_key(KeyLook::Canonical).unwrap();
        assert!(key.expose().starts_with("pe-") && key.expose().len() == 35);
        assert!(!format!("{key:?}").contains(key.expose()));
        assert_eq!(mint_tokens(TOKEN_PREFIXES).unwrap().0.expose().len(), 46);
    }
}
