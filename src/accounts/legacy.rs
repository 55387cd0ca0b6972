//! Password hashes that users bring from older systems.
//!
//! Owns their verification: bcrypt (`$2a$`, `$2b$`, `$2x$`, `$2y$`) and SHA-256 over salt and password
//! (`sha256$salt$hex`). A hash of theirs is replaced by one of ours at its owner's first login, and none is ever made here.

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// The most that bcrypt looks at, in bytes; what comes after never counted in the older system.
const BCRYPT_BYTES: usize = 72;
/// The dearest bcrypt that is computed for a login: 2¹⁴ rounds take about a second.
pub const MAX_BCRYPT_COST: u32 = 14;

/// Whether a hash is of a kind that is replaced at the next login.
pub fn is_legacy(hash: &str) -> bool {
    is_bcrypt(hash) || hash.starts_with("sha256$")
}

fn is_bcrypt(hash: &str) -> bool {
    ["$2a$", "$2b$", "$2x$", "$2y$"].iter().any(|prefix| hash.starts_with(prefix))
}

/// The cost of a bcrypt hash that can be verified.
pub fn bcrypt_cost(hash: &str) -> Option<u32> {
    if is_bcrypt(hash) && is_sound(hash) { hash.get(4..6)?.parse().ok() } else { None }
}

/// A hash of a password that nobody has.
fn nobodys(cost: u32) -> String {
    format!("$2b${cost:02}$abcdefghijklmnopqrstuu5s2v8.iXieOjg/.AySBTTZIIVFJeBui")
}

/// Computes a bcrypt for nothing but its time.
pub fn waste_bcrypt(cost: u32, password: &[u8]) -> bool {
    bcrypt::verify(&password[..password.len().min(BCRYPT_BYTES)], &nobodys(cost)).unwrap_or(false)
}

/// Whether a hash that somebody brings can be verified later.
pub fn is_sound(hash: &str) -> bool {
    if is_bcrypt(hash) {
        let cost = hash.get(4..6).and_then(|text| text.parse::<u32>().ok());
        return hash.len() == 60 && cost.is_some_and(|cost| (4..=MAX_BCRYPT_COST).contains(&cost));
    }
    parts(hash).is_some()
}

fn parts(hash: &str) -> Option<(&str, [u8; 32])> {
    let (salt, hex) = hash.strip_prefix("sha256$")?.rsplit_once('$')?;
    let mut digest = [0u8; 32];
    if hex.len() != 64 || !hex.is_ascii() || salt.len() > 256 {
        return None;
    }
    for (at, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some((salt, digest))
}

/// Whether the password is the one of `hash`; `None` when the hash is not of an older system.
pub fn verify(hash: &str, password: &[u8]) -> Option<bool> {
    if is_bcrypt(hash) {
        if !is_sound(hash) {
            return Some(false);
        }
        // Neither did the older system look at more.
        let counted = &password[..password.len().min(BCRYPT_BYTES)];
        return Some(bcrypt::verify(counted, hash).unwrap_or(false));
    }
    if !hash.starts_with("sha256$") {
        return None;
    }
    let Some((salt, digest)) = parts(hash) else { return Some(false) };
    let mut sha = Sha256::new();
    sha.update(salt.as_bytes());
    sha.update(password);
    let before: [u8; 32] = sha.finalize().into();
    let mut sha = Sha256::new();
    sha.update(password);
    sha.update(salt.as_bytes());
    let after: [u8; 32] = sha.finalize().into();
    // Systems differ in which comes first; both are computed and compared in any case.
    Some(bool::from(before.ct_eq(&digest) | after.ct_eq(&digest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_of_older_systems_verify() {
        let bcrypted = bcrypt::hash("password123", 4).unwrap();
        assert_eq!(verify(&bcrypted, b"password123"), Some(true));
        assert_eq!(verify(&bcrypted, b"password124"), Some(false));
        // sha256("salt" + "secure_password"), and the other way round.
        for text in ["saltsecure_password", "secure_passwordsalt"] {
            let digest: [u8; 32] = Sha256::digest(text.as_bytes()).into();
            let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
            let hash = format!("sha256$salt${hex}");
            assert!(is_legacy(&hash) && is_sound(&hash));
            assert_eq!(verify(&hash, b"secure_password"), Some(true));
            assert_eq!(verify(&hash, b"secure_passwore"), Some(false));
        }
        assert_eq!(verify("$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA", b"x"), None);
    }

    #[test]
    fn what_cannot_be_verified_is_not_sound_and_never_matches() {
        for bad in [
            "$2b$12$short",
            "sha256$salt$zz",
            "sha256$nothing",
            "$2b$31$abcdefghijklmnopqrstuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuu",
        ] {
            assert!(!is_sound(bad), "{bad}");
            assert_eq!(verify(bad, b""), Some(false), "{bad}");
        }
    }

    #[test]
    fn bcrypt_looks_at_72_bytes_as_it_did_there() {
        let long = "a".repeat(72);
        let hash = bcrypt::hash(&long, 4).unwrap();
        assert_eq!(verify(&hash, format!("{long}b").as_bytes()), Some(true));
        assert_eq!(verify(&hash, "a".repeat(71).as_bytes()), Some(false));
        assert!(bcrypt::verify("x", &nobodys(4)).is_ok(), "it is computed, not refused for its form");
        assert_eq!((bcrypt_cost(&hash), bcrypt_cost("sha256$a$b")), (Some(4), None));
    }
}
