//! One conversation: what a caller hands over, and the JSON that is kept of it.
//!
//! Owns the record's shape and its encoding. It never reads a clock, touches a file or runs on the request path:
//! the caller only lends what it has to a [`ConversationEntry`]; checking, escaping and formatting happen on the
//! journal's thread, into one buffer and without an allocation per record.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::redact::Redaction;
use crate::config::RedactField;

/// Longest request or response text kept, in bytes; what is longer is cut and the record says `truncated`.
pub const MAX_TEXT_BYTES: usize = 4 << 20;

/// Longest short field kept (model, route, names, ids), in bytes. These come from clients too.
pub(super) const MAX_FIELD_BYTES: usize = 1024;

/// Deepest nesting kept as JSON. Readers stop at 128 levels, and the record itself adds two.
pub const MAX_JSON_DEPTH: u8 = 100;

/// What a record's JSON is about to need besides its texts, in bytes; a guess, to make room once.
const USUAL_REST_BYTES: usize = 768;

/// One finished call, as the request path shows it. It owns nothing: what the journal keeps, it copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConversationEntry<'a> {
    /// Whose conversation it is; pages are read by this.
    pub user_id: u64,
    /// The user's name at the time of the call.
    pub username: &'a str,
    /// The user's address at the time of the call.
    pub email: &'a str,
    /// The AI model that was asked.
    pub model: &'a str,
    /// Raw JSON text of the request's messages. Kept as a JSON string when it is cut or does not parse.
    pub request: &'a [u8],
    /// The caller has read `request` strictly and found it to be one JSON value nested at most [`MAX_JSON_DEPTH`] deep;
    /// without that word, it is read again here.
    pub request_is_json: bool,
    /// The answer's text. Invalid UTF-8 is replaced, not refused.
    pub response: &'a [u8],
    /// The seeds' `research_enabled` flag.
    pub research_enabled: bool,
    /// The seeds' `r_type` (`"bpe"`, …).
    pub r_type: Option<&'a str>,
    /// Tokens charged for the call.
    pub tokens_used: u64,
    /// Tokens of the prompt.
    pub input_tokens: u64,
    /// Tokens of the answer.
    pub output_tokens: u64,
    /// From the request's first byte to the answer's last, in milliseconds.
    pub processing_time_ms: u64,
    /// The client's address, after trusted proxies were taken away.
    pub ip_address: IpAddr,
    /// When the call ended, in Unix milliseconds.
    pub timestamp_ms: u64,
    /// The configured route that served the call.
    pub route: &'a str,
    /// The id that the client got in its answer's head.
    pub request_id: &'a str,
    /// The HTTP status that the client got.
    pub status: u16,
    /// True when the request or response text was cut before it came here.
    pub truncated: bool,
    /// How the call ended: `"ok"`, `"client_left"`, …
    pub outcome: &'a str,
}

impl ConversationEntry<'_> {
    /// Appends the record's JSON to `out`: one object on one line, without a NUL byte (recovery relies on that).
    pub(super) fn encode(&self, id: u64, rules: &Redaction, out: &mut Vec<u8>) {
        push_field(out, b"{\"id\":", id);
        out.push(b',');
        self.encode_members(rules, out);
        out.push(b'}');
    }

    /// The record's members but for its id, which only the journal's segments give.
    pub(super) fn encode_members(&self, rules: &Redaction, out: &mut Vec<u8>) {
        let kept_request = KeptText::of(self.request);
        let kept_response = KeptText::of(self.response);
        let mut truncated = self.truncated || kept_request.cut || kept_response.cut;
        let request = rules.request(kept_request.bytes);
        let response = rules.response(kept_response.bytes);
        let room = |text: &Option<Cow<'_, [u8]>>| text.as_ref().map_or(0, |text| text.len() + text.len() / 8);
        out.reserve(room(&request) + room(&response) + USUAL_REST_BYTES);

        push_field(out, b"\"user_id\":", self.user_id);
        rules.push_field(out, b",\"username\":", RedactField::Username, self.username);
        rules.push_field(out, b",\"email\":", RedactField::Email, self.email);
        push_text(out, b",\"model\":", self.model);
        out.extend_from_slice(b",\"messages\":{\"request\":");
        match &request {
            Some(request) => {
                // A word may be a little longer than what it stands for.
                let again = KeptText::of(request);
                truncated |= again.cut;
                let kept = KeptText { cut: kept_request.cut || again.cut, ..again };
                push_request(out, &kept, self.request_is_json);
            }
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b",\"response\":{\"role\":\"assistant\",\"content\":");
        match &response {
            Some(response) => {
                let again = KeptText::of(response);
                truncated |= again.cut;
                push_lossy_string(out, again.bytes);
            }
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b"}},\"research_enabled\":");
        push_bool(out, self.research_enabled);
        match self.r_type {
            Some(kind) => push_text(out, b",\"r_type\":", kind),
            None => out.extend_from_slice(b",\"r_type\":null"),
        }
        push_field(out, b",\"tokens_used\":", self.tokens_used);
        push_field(out, b",\"processing_time_ms\":", self.processing_time_ms);
        rules.push_address(out, b",\"ip_address\":", self.ip_address);
        out.extend_from_slice(b",\"timestamp\":\"");
        push_timestamp(out, self.timestamp_ms);
        out.push(b'"');
        push_field(out, b",\"input_tokens\":", self.input_tokens);
        push_field(out, b",\"output_tokens\":", self.output_tokens);
        push_text(out, b",\"route\":", self.route);
        rules.push_field(out, b",\"request_id\":", RedactField::RequestId, self.request_id);
        push_field(out, b",\"status\":", u64::from(self.status));
        out.extend_from_slice(b",\"truncated\":");
        push_bool(out, truncated);
        push_text(out, b",\"outcome\":", self.outcome);
    }
}

/// A long text after its limit was applied.
struct KeptText<'a> {
    bytes: &'a [u8],
    cut: bool,
}

impl<'a> KeptText<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        match bytes.get(..MAX_TEXT_BYTES) {
            Some(kept) if kept.len() < bytes.len() => Self { bytes: kept, cut: true },
            _ => Self { bytes, cut: false },
        }
    }
}

/// The request goes in as the JSON it is; whatever is not whole JSON goes in as a string, so that the record
/// always parses.
fn push_request(out: &mut Vec<u8>, request: &KeptText<'_>, is_json: bool) {
    if request.bytes.is_empty() {
        return out.extend_from_slice(b"null");
    }
    match std::str::from_utf8(request.bytes) {
        Ok(text) if !request.cut && (is_json || is_whole_json(text)) => push_on_one_line(out, text.as_bytes()),
        _ => push_lossy_string(out, request.bytes),
    }
}

/// Copies valid JSON without the line breaks a client may have put between its tokens: exports are JSON Lines.
/// Inside a string a raw line break cannot occur, so dropping them all changes nothing.
fn push_on_one_line(out: &mut Vec<u8>, json: &[u8]) {
    let mut rest = json;
    while let Some(at) = memchr::memchr2(b'\n', b'\r', rest) {
        out.extend_from_slice(&rest[..at]);
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

fn push_field(out: &mut Vec<u8>, name: &[u8], value: u64) {
    out.extend_from_slice(name);
    push_number(out, value);
}

pub(super) fn push_text(out: &mut Vec<u8>, name: &[u8], value: &str) {
    out.extend_from_slice(name);
    out.push(b'"');
    push_escaped(out, value.as_bytes());
    out.push(b'"');
}

fn push_bool(out: &mut Vec<u8>, value: bool) {
    out.extend_from_slice(if value { b"true" } else { b"false" });
}

fn push_number(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// A JSON string; what is not UTF-8 becomes U+FFFD.
fn push_lossy_string(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    if std::str::from_utf8(text).is_ok() {
        push_escaped(out, text);
    } else {
        for chunk in text.utf8_chunks() {
            push_escaped(out, chunk.valid().as_bytes());
            if !chunk.invalid().is_empty() {
                out.extend_from_slice("\u{FFFD}".as_bytes());
            }
        }
    }
    out.push(b'"');
}

/// The inside of a JSON string: stretches that need no escape are copied whole.
pub(super) fn push_escaped(out: &mut Vec<u8>, text: &[u8]) {
    let mut rest = text;
    while let Some((plain, [byte, after @ ..])) = rest.split_at_checked(plain_run(rest)) {
        out.extend_from_slice(plain);
        push_escape(out, *byte);
        rest = after;
    }
    out.extend_from_slice(rest);
}

fn push_escape(out: &mut Vec<u8>, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let short = match byte {
        b'"' | b'\\' => byte,
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        0x08 => b'b',
        0x0c => b'f',
        _ => {
            let digits = [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]];
            return out.extend_from_slice(&[b'\\', b'u', b'0', b'0', digits[0], digits[1]]);
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

/// How many bytes at the beginning go into a JSON string as they are: up to the first control character, quote or
/// backslash. Eight bytes at a time; the first one marked is exact, since a borrow only runs towards later ones.
fn plain_run(text: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let below = |word: u64, limit: u8| word.wrapping_sub(ONES * u64::from(limit)) & !word & HIGH;
    let equal = |word: u64, byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    let (words, tail) = text.as_chunks::<8>();
    for (number, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let marks = below(word, b' ') | equal(word, b'"') | equal(word, b'\\');
        if marks != 0 {
            return number * 8 + marks.trailing_zeros() as usize / 8;
        }
    }
    let needs_escape = |byte: &u8| matches!(byte, ..b' ' | b'"' | b'\\');
    words.len() * 8 + tail.iter().position(needs_escape).unwrap_or(tail.len())
}

/// `2024-01-15T12:00:00Z` from Unix milliseconds; the part below a second is dropped, as the seeds show it.
fn push_timestamp(out: &mut Vec<u8>, unix_ms: u64) {
    let seconds = unix_ms / 1000;
    let (year, month, day) = civil_date(seconds / 86_400);
    // A year has four digits; nonsense is shown in full.
    push_number(out, year / 100);
    push_two_digits(out, year % 100, b'-');
    push_two_digits(out, month, b'-');
    push_two_digits(out, day, b'T');
    push_two_digits(out, seconds / 3600 % 24, b':');
    push_two_digits(out, seconds / 60 % 60, b':');
    push_two_digits(out, seconds % 60, b'Z');
}

fn push_two_digits(out: &mut Vec<u8>, value: u64, then: u8) {
    out.extend_from_slice(&[b'0' + (value / 10 % 10) as u8, b'0' + (value % 10) as u8, then]);
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar. The year is taken to begin in
/// March, so that the leap day is its last day and month lengths follow one formula.
fn civil_date(days_since_1970: u64) -> (u64, u64, u64) {
    const DAYS_FROM_0000_03_01: u64 = 719_468;
    const DAYS_PER_400_YEARS: u64 = 146_097;
    let days = days_since_1970 + DAYS_FROM_0000_03_01;
    let (era, day_of_era) = (days / DAYS_PER_400_YEARS, days % DAYS_PER_400_YEARS);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

/// Whether `text` is one JSON value that a strict reader will take: escapes, numbers and depth are checked, and
/// nothing is built.
fn is_whole_json(text: &str) -> bool {
    let mut json = serde_json::Deserializer::from_str(text);
    Check { depth: 0 }.deserialize(&mut json).is_ok() && json.end().is_ok()
}

/// Walks a JSON value without keeping it. `IgnoredAny` would be shorter, but it lets lone surrogates and any
/// depth pass, and a later reader would then refuse the whole record.
struct Check {
    depth: u8,
}

impl<'de> DeserializeSeed<'de> for Check {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl Check {
    fn deeper<E: serde::de::Error>(&self) -> Result<u8, E> {
        if self.depth < MAX_JSON_DEPTH { Ok(self.depth + 1) } else { Err(E::custom("nested too deeply")) }
    }
}

impl<'de> Visitor<'de> for Check {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let depth = self.deeper::<A::Error>()?;
        while items.next_element_seed(Check { depth })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let depth = self.deeper::<A::Error>()?;
        while entries.next_key_seed(Check { depth })?.is_some() {
            entries.next_value_seed(Check { depth })?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use proptest::prelude::*;
    use serde_json::Value;

    use super::super::frame::{Frame, read};
    use super::*;

    /// 2024-01-15T12:00:00Z, the seeds' example.
    pub(in super::super) const NOON: u64 = 1_705_320_000_000;

    pub(in super::super) fn entry(user_id: u64, text: &str) -> ConversationEntry<'_> {
        ConversationEntry {
            user_id,
            username: "johndoe",
            email: "john@example.com",
            model: "gpt-4o",
            request: br#"[{"role": "user", "content": "Hello"}]"#,
            request_is_json: false,
            response: text.as_bytes(),
            research_enabled: false,
            r_type: Some("bpe"),
            tokens_used: 25,
            input_tokens: 5,
            output_tokens: 20,
            processing_time_ms: 1500,
            ip_address: "192.168.1.100".parse().unwrap(),
            timestamp_ms: NOON,
            route: "chat",
            request_id: "req-1",
            status: 200,
            truncated: false,
            outcome: "ok",
        }
    }

    /// The record's JSON, by the way that every record goes.
    fn encoded(entry: &ConversationEntry<'_>) -> (String, Value) {
        let (mut frame, mut out) = (Vec::new(), Vec::new());
        Frame::of(entry).append_to(&mut frame);
        read(&frame).unwrap().encode(1, &Redaction::default(), &mut out);
        let text = String::from_utf8(out).unwrap();
        let value = serde_json::from_str(&text).unwrap();
        (text, value)
    }

    #[test]
    fn has_the_documented_shape() {
        let (text, value) = encoded(&entry(1, "Hello! How can I help you today?"));
        let seed = r#"{"id":1,"user_id":1,"username":"johndoe","email":"john@example.com","model":"gpt-4o","messages":{"request":[{"role": "user", "content": "Hello"}],"response":{"role":"assistant","content":"Hello! How can I help you today?"}},"research_enabled":false,"r_type":"bpe","tokens_used":25,"processing_time_ms":1500,"ip_address":"192.168.1.100","timestamp":"2024-01-15T12:00:00Z","#;
        assert!(text.starts_with(seed), "{text}");
        assert_eq!((&value["status"], &value["outcome"]), (&200.into(), &"ok".into()));
        assert_eq!((&value["input_tokens"], &value["output_tokens"]), (&5.into(), &20.into()));
    }

    #[test]
    fn whatever_is_not_whole_json_is_kept_as_a_string() {
        let deep = "[".repeat(500) + &"]".repeat(500);
        let broken: [&[u8]; 7] =
            [b"[{\"a\":", b"\"\\ud800\"", b"\xff\xfe", b"[1] 2", b"1e999", b"{\"a\" 1}", deep.as_bytes()];
        for request in broken {
            let mut entry = entry(1, "x");
            entry.request = request;
            let (_, value) = encoded(&entry);
            assert_eq!(value["messages"]["request"], String::from_utf8_lossy(request).as_ref());
        }
    }

    #[test]
    fn a_record_is_one_line_without_nul() {
        let mut entry = entry(1, "two\nlines\0");
        entry.request = b"[\r\n {\"a\": \"b\\nc\"}\n]\n";
        let (text, value) = encoded(&entry);
        assert!(!text.contains(['\n', '\r', '\0']));
        assert_eq!(value["messages"]["request"][0]["a"], "b\nc");
        assert_eq!(value["messages"]["response"]["content"], "two\nlines\0");
    }

    #[test]
    fn texts_and_fields_have_a_limit() {
        let (long, name) = ("x".repeat(MAX_TEXT_BYTES + 1), "é".repeat(2000));
        let entry = ConversationEntry { model: &name, ..entry(1, &long) };
        let (_, value) = encoded(&entry);
        assert_eq!(value["truncated"], true);
        assert_eq!(value["messages"]["response"]["content"].as_str().unwrap().len(), MAX_TEXT_BYTES);
        assert_eq!(value["model"].as_str().unwrap().len(), MAX_FIELD_BYTES);
    }

    #[test]
    fn dates_are_civil() {
        let known = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400_000, "2000-02-29T00:00:00Z"),
            (1_709_251_199_999, "2024-02-29T23:59:59Z"),
            (1_735_689_600_000, "2025-01-01T00:00:00Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00Z"),
        ];
        for (ms, text) in known {
            let mut out = Vec::new();
            push_timestamp(&mut out, ms);
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }

    #[test]
    fn a_request_one_byte_too_long_is_a_string() {
        let whole = format!("[{}]", " ".repeat(MAX_TEXT_BYTES - 2));
        let longer = format!("{whole} ");
        for (request, is_string) in [(&whole, false), (&longer, true)] {
            let (_, value) = encoded(&ConversationEntry { request: request.as_bytes(), ..entry(1, "x") });
            assert_eq!((value["messages"]["request"].is_string(), &value["truncated"]), (is_string, &is_string.into()));
        }
    }

    proptest! {
        #[test]
        fn strings_are_escaped_as_serde_does(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut out = Vec::new();
            push_lossy_string(&mut out, &bytes);
            prop_assert_eq!(out, serde_json::to_vec(&String::from_utf8_lossy(&bytes)).unwrap());
        }

        #[test]
        fn mostly_plain_strings_too(text in "[a-z\"\\\\\n\u{0}-\u{80}é€😀]{0,60}") {
            let mut out = Vec::new();
            push_lossy_string(&mut out, text.as_bytes());
            prop_assert_eq!(out, serde_json::to_vec(&text).unwrap());
        }
    }
}
