//! The chain: what ties each record to the one before it, under a key that is not in the files.
//!
//! Each record's JSON ends in two fields: `prev`, the MAC of the record before it (zeros for the first), and `mac`, the
//! HMAC-SHA-256 of this record with its `prev`, over its sequence, user, time and text. Whoever changes, removes, adds or
//! moves a record would have to make these anew, and cannot without the key. Owns both fields and the row that holds how
//! far the trail has come. Never reads or writes a file.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use subtle::ConstantTimeEq;

const PREV: &[u8] = b",\"prev\":\"";
const MAC: &[u8] = b"\",\"mac\":\"";
const END: &[u8] = b"\"}";
const HEX_BYTES: usize = 64;

/// The key under which the chain is made: derived from the server's pepper, so that whoever can write the files but not
/// read the secrets cannot make a chain that verifies.
#[derive(Clone)]
pub struct ChainKey(Hmac<Sha256>);

impl fmt::Debug for ChainKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChainKey(…)")
    }
}

/// A record's MAC: a fingerprint of the trail up to and with it. Not a secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Link([u8; 32]);

impl Link {
    /// What the first record follows.
    pub const GENESIS: Self = Self([0; 32]);

    pub fn parse(hex: &str) -> Option<Self> {
        let mut link = [0u8; 32];
        // Lower case alone: there must be one way to write a link, or a changed letter would go unnoticed.
        if hex.len() != HEX_BYTES || !hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return None;
        }
        for (at, byte) in link.iter_mut().enumerate() {
            *byte = u8::from_str_radix(hex.get(2 * at..2 * at + 2)?, 16).ok()?;
        }
        Some(Self(link))
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({self})")
    }
}

impl Serialize for Link {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Link {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("not a link of the audit trail"))
    }
}

/// How far a trail has come: its newest record's sequence and MAC. 0 and zeros before the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub sequence: u64,
    pub mac: Link,
}

impl Head {
    pub const EMPTY: Self = Self { sequence: 0, mac: Link::GENESIS };

    /// Reads what [`Head`]'s `Display` prints: `17:` and 64 hex digits.
    pub fn parse(text: &str) -> Option<Self> {
        let (sequence, mac) = text.split_once(':')?;
        Some(Self { sequence: sequence.parse().ok()?, mac: Link::parse(mac)? })
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.sequence, self.mac)
    }
}

/// The fields of a record's head that its MAC covers besides the text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub seq: u64,
    pub user: u64,
    pub at_ms: u64,
}

/// The chain's two fields of a record, as they stand in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Links {
    pub prev: Link,
    pub mac: Link,
}

impl ChainKey {
    pub fn new(key: [u8; 32]) -> Self {
        // HMAC fills a shorter key up with zeros to its block of 64 bytes; done here, there is no error to speak of.
        let mut block = [0u8; 64];
        block[..32].copy_from_slice(&key);
        Self(Hmac::new(&block.into()))
    }

    fn mac(&self, place: Place, text: &[u8]) -> Link {
        let mut mac = self.0.clone();
        for number in [place.seq, place.user, place.at_ms] {
            mac.update(&number.to_le_bytes());
        }
        mac.update(text);
        Link(mac.finalize().into_bytes().into())
    }

    /// Ends the record that begins at `start` of `out`, where its JSON stands without the closing brace.
    pub(super) fn seal(&self, place: Place, prev: Link, out: &mut Vec<u8>, start: usize) -> Link {
        out.extend_from_slice(PREV);
        out.extend_from_slice(prev.to_string().as_bytes());
        let mac = self.mac(place, out.get(start..).unwrap_or_default());
        out.extend_from_slice(MAC);
        out.extend_from_slice(mac.to_string().as_bytes());
        out.extend_from_slice(END);
        mac
    }

    /// Whether a record is as it was written.
    pub(super) fn is_whole(&self, place: Place, payload: &[u8], links: Links) -> bool {
        let text = payload.get(..payload.len().saturating_sub(MAC.len() + HEX_BYTES + END.len())).unwrap_or_default();
        self.mac(place, text).0.ct_eq(&links.mac.0).into()
    }
}

/// The chain's fields at the end of a record's JSON.
pub(super) fn links_of(payload: &[u8]) -> Option<Links> {
    let rest = payload.strip_suffix(END)?;
    let (rest, mac) = split_link(rest, MAC)?;
    let (_, prev) = split_link(rest, PREV)?;
    Some(Links { prev, mac })
}

fn split_link<'a>(text: &'a [u8], name: &[u8]) -> Option<(&'a [u8], Link)> {
    let (rest, hex) = text.split_at_checked(text.len().checked_sub(HEX_BYTES)?)?;
    let link = Link::parse(std::str::from_utf8(hex).ok()?)?;
    Some((rest.strip_suffix(name)?, link))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_record_is_whole_under_its_key_and_place_alone() {
        let key = ChainKey::new([7; 32]);
        let place = Place { seq: 3, user: 1, at_ms: 5 };
        let mut out = b"xx{\"id\":3".to_vec();
        let mac = key.seal(place, Link::GENESIS, &mut out, 2);
        let payload = &out[2..];
        let links = links_of(payload).unwrap();
        assert_eq!(links, Links { prev: Link::GENESIS, mac });
        assert!(serde_json::from_slice::<serde_json::Value>(payload).is_ok());
        assert!(key.is_whole(place, payload, links));
        assert!(!ChainKey::new([8; 32]).is_whole(place, payload, links));
        for other in [Place { seq: 4, ..place }, Place { user: 2, ..place }, Place { at_ms: 6, ..place }] {
            assert!(!key.is_whole(other, payload, links));
        }
        for at in 0..payload.len() {
            let mut changed = payload.to_vec();
            changed[at] ^= 0x20;
            assert!(!links_of(&changed).is_some_and(|links| key.is_whole(place, &changed, links)), "byte {at}");
        }
        assert!(!format!("{key:?}").contains('7'));
    }

    #[test]
    fn heads_are_printed_and_read() {
        let head = Head { sequence: 17, mac: Link([0xab; 32]) };
        assert_eq!(Head::parse(&head.to_string()), Some(head));
        assert_eq!((Head::parse("17:ab"), Head::parse(&head.to_string().to_uppercase())), (None, None));
    }
}
