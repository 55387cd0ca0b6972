//! Numbers and names that stand for something, each its own type.

use std::fmt;

macro_rules! numeric_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

numeric_id!(
    /// A user, counted from 1 and never used again after a deletion.
    UserId
);
numeric_id!(
    /// A member of the staff (admin or support), counted from 1, apart from users.
    StaffId
);
numeric_id!(
    /// An API key or session of any user; tells entries apart, is not a secret.
    CredentialId
);

/// The MAC under which a secret (key or session token) is stored and looked up: HMAC-SHA-256 under the server's pepper.
///
/// It is not itself a credential, but it is not printed either.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SecretMac(pub [u8; 32]);

impl fmt::Debug for SecretMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretMac(…)")
    }
}

/// The id a call carries through every log line, answer and upstream: `req_` and 24 hex digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RequestId([u8; Self::LEN]);

impl RequestId {
    pub const LEN: usize = 28;

    /// Two words make an id; the caller sees to it that they do not repeat.
    pub fn from_parts(high: u32, low: u64) -> Self {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut text = *b"req_000000000000000000000000";
        for (at, shift) in (4..12).zip((0..8).rev()) {
            text[at] = HEX[(high >> (shift * 4)) as usize & 15];
        }
        for (at, shift) in (12..28).zip((0..16).rev()) {
            text[at] = HEX[(low >> (shift * 4)) as usize & 15];
        }
        Self(text)
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("req_")
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_prints_both_words() {
        assert_eq!(RequestId::from_parts(0xdead_beef, 0x0123_4567_89ab_cdef).as_str(), "req_deadbeef0123456789abcdef");
    }
}
