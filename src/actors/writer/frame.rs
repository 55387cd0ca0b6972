//! One waiting record as bytes: the form in which the queue keeps a conversation until the journal's thread encodes it.
//!
//! Owns that form and nothing else. A frame lives in memory only, is read by the process that wrote it and never
//! reaches the disk, so it has no version and no checksum. Writing one is a handful of copies; what takes time
//! (checking, escaping, formatting) is left to whoever reads it.
//!
//! A frame is a fixed head of [`HEAD_BYTES`], the short texts one after another, the request, the response. Lengths
//! stand in the head; all numbers are little-endian.

use std::net::{IpAddr, Ipv6Addr};

use super::record::{ConversationEntry, MAX_FIELD_BYTES, MAX_TEXT_BYTES};
use super::segment::{u32_at, u64_at};

const HEAD_BYTES: usize = 96;
const TEXTS: usize = 7;

// Where things stand in the head. The frame's own length comes first.
const REQUEST_LEN: usize = 4;
const RESPONSE_LEN: usize = 8;
const STATUS: usize = 12;
const FLAGS: usize = 14;
const TIMESTAMP: usize = 16;
const NUMBERS: usize = 24;
const ADDRESS: usize = 64;
const TEXT_LENS: usize = 80;

const REQUEST_IS_JSON: u8 = 1;
const RESEARCH_ENABLED: u8 = 1 << 1;
const TRUNCATED: u8 = 1 << 2;
const HAS_R_TYPE: u8 = 1 << 3;
const IS_V4: u8 = 1 << 4;

/// An entry ready to be appended: everything is measured and cut, so that the queue's lock is held for copies only.
pub(super) struct Frame<'a> {
    head: [u8; HEAD_BYTES],
    texts: [&'a str; TEXTS],
    request: &'a [u8],
    response: &'a [u8],
    len: usize,
}

impl<'a> Frame<'a> {
    pub(super) fn of(entry: &ConversationEntry<'a>) -> Self {
        let texts = [
            entry.username,
            entry.email,
            entry.model,
            entry.route,
            entry.request_id,
            entry.outcome,
            entry.r_type.unwrap_or_default(),
        ]
        .map(kept_field);
        let (request, response) = (kept_text(entry.request), kept_text(entry.response));
        let len = HEAD_BYTES + texts.iter().map(|text| text.len()).sum::<usize>() + request.len() + response.len();

        let mut head = [0; HEAD_BYTES];
        head[..4].copy_from_slice(&(len as u32).to_le_bytes());
        head[REQUEST_LEN..REQUEST_LEN + 4].copy_from_slice(&(request.len() as u32).to_le_bytes());
        head[RESPONSE_LEN..RESPONSE_LEN + 4].copy_from_slice(&(response.len() as u32).to_le_bytes());
        head[STATUS..STATUS + 2].copy_from_slice(&entry.status.to_le_bytes());
        head[FLAGS] = flag(entry.request_is_json, REQUEST_IS_JSON)
            | flag(entry.research_enabled, RESEARCH_ENABLED)
            | flag(entry.truncated, TRUNCATED)
            | flag(entry.r_type.is_some(), HAS_R_TYPE)
            | flag(entry.ip_address.is_ipv4(), IS_V4);
        head[TIMESTAMP..TIMESTAMP + 8].copy_from_slice(&entry.timestamp_ms.to_le_bytes());
        let numbers =
            [entry.user_id, entry.tokens_used, entry.input_tokens, entry.output_tokens, entry.processing_time_ms];
        for (place, number) in head[NUMBERS..ADDRESS].as_chunks_mut::<8>().0.iter_mut().zip(numbers) {
            *place = number.to_le_bytes();
        }
        let address = match entry.ip_address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        head[ADDRESS..TEXT_LENS].copy_from_slice(&address.octets());
        for (place, text) in head[TEXT_LENS..].as_chunks_mut::<2>().0.iter_mut().zip(texts) {
            *place = (text.len() as u16).to_le_bytes();
        }
        Self { head, texts, request, response, len }
    }

    /// Bytes of the whole frame; what the queue's bound counts.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn append_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head);
        for text in self.texts {
            out.extend_from_slice(text.as_bytes());
        }
        out.extend_from_slice(self.request);
        out.extend_from_slice(self.response);
    }
}

fn flag(is_set: bool, bit: u8) -> u8 {
    if is_set { bit } else { 0 }
}

/// Short texts come from clients too, and one must not fill the queue with a name.
fn kept_field(text: &str) -> &str {
    if text.len() <= MAX_FIELD_BYTES {
        return text;
    }
    let end = (0..=MAX_FIELD_BYTES).rev().find(|at| text.is_char_boundary(*at));
    end.and_then(|end| text.get(..end)).unwrap_or_default()
}

/// One byte more than a record keeps: by it the record's encoding sees that there was more.
fn kept_text(text: &[u8]) -> &[u8] {
    text.get(..=MAX_TEXT_BYTES).unwrap_or(text)
}

/// The entry of a frame, borrowed from it. `None` for bytes that are no frame.
pub(super) fn read(frame: &[u8]) -> Option<ConversationEntry<'_>> {
    let (head, body) = frame.split_first_chunk::<HEAD_BYTES>()?;
    let text_lens: [usize; TEXTS] = std::array::from_fn(|text| {
        usize::from(u16::from_le_bytes([head[TEXT_LENS + 2 * text], head[TEXT_LENS + 2 * text + 1]]))
    });
    let (texts, rest) = body.split_at_checked(text_lens.iter().sum())?;
    let (request, rest) = rest.split_at_checked(u32_at(head, REQUEST_LEN) as usize)?;
    let response = rest.get(..u32_at(head, RESPONSE_LEN) as usize)?;

    // Checked once for all of them; each is then cut off where its length says.
    let mut texts = std::str::from_utf8(texts).ok()?;
    let mut parts = [""; TEXTS];
    for (part, len) in parts.iter_mut().zip(text_lens) {
        (*part, texts) = texts.split_at_checked(len)?;
    }
    let [username, email, model, route, request_id, outcome, r_type] = parts;
    let has = |bit| head[FLAGS] & bit != 0;
    let number = |place: usize| u64_at(head, NUMBERS + 8 * place);
    Some(ConversationEntry {
        user_id: number(0),
        username,
        email,
        model,
        request,
        request_is_json: has(REQUEST_IS_JSON),
        response,
        research_enabled: has(RESEARCH_ENABLED),
        r_type: has(HAS_R_TYPE).then_some(r_type),
        tokens_used: number(1),
        input_tokens: number(2),
        output_tokens: number(3),
        processing_time_ms: number(4),
        ip_address: address(head, has(IS_V4))?,
        timestamp_ms: timestamp_ms(frame),
        route,
        request_id,
        status: u16::from_le_bytes([head[STATUS], head[STATUS + 1]]),
        truncated: has(TRUNCATED),
        outcome,
    })
}

/// A mapped address and the IPv4 address it maps are told apart: the record shows what the gateway saw.
fn address(head: &[u8; HEAD_BYTES], is_v4: bool) -> Option<IpAddr> {
    let address = Ipv6Addr::from(*head.get(ADDRESS..)?.first_chunk::<16>()?);
    if is_v4 { address.to_ipv4_mapped().map(IpAddr::V4) } else { Some(IpAddr::V6(address)) }
}

/// When the call of this frame ended, without reading the rest of it.
pub(super) fn timestamp_ms(frame: &[u8]) -> u64 {
    u64_at(frame, TIMESTAMP)
}

/// The frame at `offset` of a run of frames; none at its end.
pub(super) fn frame_at(run: &[u8], offset: usize) -> Option<&[u8]> {
    let rest = run.get(offset..)?;
    rest.get(..u32_at(rest, 0) as usize).filter(|frame| frame.len() >= HEAD_BYTES)
}

/// All frames of a run with their offsets.
pub(super) fn frames(run: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let at = |offset| frame_at(run, offset).map(|frame| (offset, frame));
    std::iter::successors(at(0), move |(offset, frame)| at(offset + frame.len()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use proptest::prelude::*;

    use super::super::record::tests::entry;
    use super::*;

    #[derive(Debug, Clone)]
    struct Owned {
        texts: Vec<String>,
        r_type: Option<String>,
        numbers: [u64; 6],
        flags: [bool; 3],
        ip_address: IpAddr,
        status: u16,
        request: Vec<u8>,
        response: Vec<u8>,
    }

    impl Owned {
        fn entry(&self) -> ConversationEntry<'_> {
            let [user_id, tokens_used, input_tokens, output_tokens, processing_time_ms, timestamp_ms] = self.numbers;
            let [request_is_json, research_enabled, truncated] = self.flags;
            ConversationEntry {
                user_id,
                username: &self.texts[0],
                email: &self.texts[1],
                model: &self.texts[2],
                request: &self.request,
                request_is_json,
                response: &self.response,
                research_enabled,
                r_type: self.r_type.as_deref(),
                tokens_used,
                input_tokens,
                output_tokens,
                processing_time_ms,
                ip_address: self.ip_address,
                timestamp_ms,
                route: &self.texts[3],
                request_id: &self.texts[4],
                status: self.status,
                truncated,
                outcome: &self.texts[5],
            }
        }
    }

    fn owned() -> impl Strategy<Value = Owned> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..300);
        let texts = proptest::collection::vec("\\PC{0,40}", 6);
        let r_type = proptest::option::of("\\PC{0,9}");
        let fixed = (any::<[u64; 6]>(), any::<[bool; 3]>(), any::<IpAddr>(), any::<u16>());
        (texts, r_type, fixed, bytes(), bytes()).prop_map(
            |(texts, r_type, (numbers, flags, ip_address, status), request, response)| Owned {
                texts,
                r_type,
                numbers,
                flags,
                ip_address,
                status,
                request,
                response,
            },
        )
    }

    proptest! {
        #[test]
        fn every_field_comes_back(all in proptest::collection::vec(owned(), 1..5)) {
            let mut run = Vec::new();
            for one in &all {
                let (frame, before) = (Frame::of(&one.entry()), run.len());
                frame.append_to(&mut run);
                prop_assert_eq!(run.len() - before, frame.len());
            }
            let read_back: Vec<_> = frames(&run).map(|(_, frame)| read(frame).unwrap()).collect();
            prop_assert_eq!(read_back, all.iter().map(Owned::entry).collect::<Vec<_>>());
        }

        #[test]
        fn foreign_bytes_are_no_frame_and_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            read(&bytes);
            prop_assert!(frames(&bytes).count() <= bytes.len() / HEAD_BYTES);
        }
    }

    #[test]
    fn a_frame_cut_anywhere_is_none() {
        let mut bytes = Vec::new();
        Frame::of(&entry(1, "answer")).append_to(&mut bytes);
        for len in 0..bytes.len() {
            assert_eq!((read(&bytes[..len]), frame_at(&bytes[..len], 0)), (None, None), "cut at {len}");
        }
    }

    #[test]
    fn a_mapped_address_stays_one() {
        for text in ["1.2.3.4", "::ffff:1.2.3.4", "::1", "2001:db8::7"] {
            let mut bytes = Vec::new();
            Frame::of(&ConversationEntry { ip_address: text.parse().unwrap(), ..entry(1, "x") }).append_to(&mut bytes);
            assert_eq!(read(&bytes).unwrap().ip_address.to_string(), text);
        }
    }

    #[test]
    fn a_frame_is_bounded_whatever_the_client_sent() {
        let long = "é".repeat(MAX_TEXT_BYTES);
        let odd = format!("x{long}");
        let entry = ConversationEntry { model: &long, email: &odd, request: long.as_bytes(), ..entry(1, &long) };
        let frame = Frame::of(&entry);
        assert!(frame.len() <= HEAD_BYTES + TEXTS * MAX_FIELD_BYTES + 2 * (MAX_TEXT_BYTES + 1));
        let mut bytes = Vec::new();
        frame.append_to(&mut bytes);
        let back = read(&bytes).unwrap();
        assert_eq!((back.model.len(), back.email.len()), (MAX_FIELD_BYTES, MAX_FIELD_BYTES - 1));
    }
}
