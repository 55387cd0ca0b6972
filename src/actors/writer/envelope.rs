//! Encrypted records in the segment that is being written: one by one, so that each is whole once it is on the disk.
//!
//! Owns the form of an encrypted payload: a nonce's prefix (16 bytes), the ciphertext, the proof (16 bytes). The record's
//! head stays readable and is bound by the proof; its length and CRC-32 are those of what stands in the file, so whoever
//! looks for torn tails or damage needs no key.
//!
//! The nonce is that prefix and the record's sequence. The prefix is drawn anew for every attempt to write a batch. The
//! sequence alone would not do: after a crash the torn tail is cut and its sequences are given to other conversations, in
//! the same file and thus under the same data key, and whoever had copied the disk in between could lift both.

use std::io;

use super::keys::{Cipher, NONCE_PREFIX_BYTES, Nonce, TAG_BYTES};
use super::segment::{RECORD_HEAD_BYTES, RecordHead, record_crc};
use crate::clock::random_bytes;

/// Bytes that an encrypted record is longer than a clear one.
pub(super) const ENVELOPE_BYTES: u64 = (NONCE_PREFIX_BYTES + TAG_BYTES) as u64;

/// Appends to `out` the encrypted form of a run of clear records.
pub(super) fn seal_records(cipher: &Cipher, records: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    let mut prefix = [0; NONCE_PREFIX_BYTES];
    random_bytes(&mut prefix)?;
    let mut rest = records;
    while rest.len() >= RECORD_HEAD_BYTES {
        let head = RecordHead::decode(rest);
        let Some((record, after)) = rest.split_at_checked(head.size() as usize) else {
            return Err(io::Error::other("a batch ends within a record"));
        };
        seal_record(cipher, prefix, head, record, out)?;
        rest = after;
    }
    Ok(())
}

fn seal_record(
    cipher: &Cipher,
    prefix: [u8; NONCE_PREFIX_BYTES],
    head: RecordHead,
    record: &[u8],
    out: &mut Vec<u8>,
) -> io::Result<()> {
    let start = out.len();
    out.extend_from_slice(&record[..RECORD_HEAD_BYTES]);
    out[start..start + 4].copy_from_slice(&(head.len + ENVELOPE_BYTES as u32).to_le_bytes());
    out.extend_from_slice(&prefix);
    out.extend_from_slice(&record[RECORD_HEAD_BYTES..]);
    let (clear, text) = out[start..].split_at_mut(RECORD_HEAD_BYTES);
    let tag = cipher.seal(Nonce(prefix, head.seq), &clear[..28], &mut text[NONCE_PREFIX_BYTES..])?;
    out.extend_from_slice(&tag);
    let crc = record_crc(&out[start..]);
    out[start + 28..start + RECORD_HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

/// Decrypts what follows an encrypted record's head, and gives the clear record's head. None when the proof fails.
pub(super) fn open_payload(cipher: &Cipher, head: RecordHead, payload: &mut Vec<u8>) -> Option<RecordHead> {
    let (prefix, rest) = payload.split_first_chunk_mut::<NONCE_PREFIX_BYTES>()?;
    let (text, tag) = rest.split_at_mut_checked(rest.len().checked_sub(TAG_BYTES)?)?;
    let mut beside = [0; 28];
    beside[..4].copy_from_slice(&head.len.to_le_bytes());
    beside[4..12].copy_from_slice(&head.seq.to_le_bytes());
    beside[12..20].copy_from_slice(&head.user_id.to_le_bytes());
    beside[20..28].copy_from_slice(&head.timestamp_ms.to_le_bytes());
    if !cipher.open(Nonce(*prefix, head.seq), &beside, text, tag) {
        return None;
    }
    payload.drain(..NONCE_PREFIX_BYTES);
    payload.truncate(payload.len() - TAG_BYTES);
    Some(RecordHead { len: payload.len() as u32, ..head })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::super::keys::JournalKeys;
    use super::super::segment::append_record;
    use super::*;

    fn cipher() -> Cipher {
        JournalKeys::new(Some(&"ab".repeat(32)), &[]).unwrap().for_new_file().unwrap().unwrap().1
    }

    fn clear(texts: &[&str]) -> Vec<u8> {
        let mut out = Vec::new();
        for (seq, text) in (1..).zip(texts) {
            assert!(append_record(&mut out, (seq, 7, 9), |out| out.extend_from_slice(text.as_bytes())));
        }
        out
    }

    #[test]
    fn records_come_back_and_their_heads_are_bound() {
        let (cipher, clear) = (cipher(), clear(&["{\"a\":\"secret\"}", "{}"]));
        let mut sealed = Vec::new();
        seal_records(&cipher, &clear, &mut sealed).unwrap();
        assert_eq!(sealed.len(), clear.len() + 2 * ENVELOPE_BYTES as usize);
        assert!(!sealed.windows(6).any(|window| window == b"secret"));
        let head = RecordHead::decode(&sealed);
        let payload = sealed[RECORD_HEAD_BYTES..head.size() as usize].to_vec();
        let mut open = payload.clone();
        let found = open_payload(&cipher, head, &mut open).unwrap();
        assert_eq!((found.len, found.seq, open.as_slice()), (14, 1, b"{\"a\":\"secret\"}".as_slice()));
        for other in [
            RecordHead { seq: 2, ..head },
            RecordHead { user_id: 8, ..head },
            RecordHead { timestamp_ms: 8, ..head },
            RecordHead { len: 1, ..head },
        ] {
            assert!(open_payload(&cipher, other, &mut payload.clone()).is_none());
        }
        for len in 0..payload.len() {
            assert!(open_payload(&cipher, head, &mut payload[..len].to_vec()).is_none());
        }
    }

    /// What happens when a torn tail was cut and its sequences are written again with other contents.
    #[test]
    fn the_same_sequence_twice_never_has_the_same_nonce() {
        let cipher = cipher();
        let mut seen = std::collections::HashSet::new();
        let mut streams = std::collections::HashSet::new();
        for round in 0..100 {
            let text = format!("{{\"round\":{round:03}}}");
            let mut sealed = Vec::new();
            seal_records(&cipher, &clear(&[&text]), &mut sealed).unwrap();
            let payload = &sealed[RECORD_HEAD_BYTES..];
            assert!(seen.insert(payload[..NONCE_PREFIX_BYTES].to_vec()));
            // With one nonce for all, text and ciphertext would differ by the same stream each time.
            let stream: Vec<u8> = payload[NONCE_PREFIX_BYTES..].iter().zip(text.bytes()).map(|(c, t)| c ^ t).collect();
            assert!(streams.insert(stream));
        }
    }
}
