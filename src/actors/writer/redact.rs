//! What is taken out of a conversation before it reaches any disk, the spill files' included.
//!
//! Owns the rules, field by field, and the replacing inside texts; finding is [`detect`](super::detect)'s. It runs on the
//! journal's own threads, never on a caller's. Without rules it costs a comparison a field. A text grows by at most a
//! sixth, and JSON stays JSON.

use std::borrow::Cow;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::detect::{Hit, find_in_number, hits, replacement};
use super::record::{push_escaped, push_text};
use crate::config::{Redact, RedactField, TextPattern};

/// Of a hash, so many bytes are kept: enough that two values never share one, short enough to read.
const HASH_BYTES: usize = 16;
const FIELDS: usize = 6;

/// What becomes of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum How {
    #[default]
    Keep,
    Drop,
    Hash,
    Mask,
}

/// The rules, ready for use. The default keeps everything.
#[derive(Clone, Default)]
pub struct Redaction {
    fields: [How; FIELDS],
    patterns: Vec<TextPattern>,
    keyed: Option<Hmac<Sha256>>,
}

impl std::fmt::Debug for Redaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redaction")
            .field("fields", &self.fields)
            .field("patterns", &self.patterns)
            .finish_non_exhaustive()
    }
}

impl Redaction {
    /// The rules of a checked config; hashes are keyed with `key`, of any length.
    #[must_use]
    pub fn new(rules: &Redact, key: &[u8]) -> Self {
        let mut fields = [How::Keep; FIELDS];
        for (list, how) in [(&rules.drop, How::Drop), (&rules.hash, How::Hash), (&rules.mask, How::Mask)] {
            for field in list {
                if let Some(slot) = fields.get_mut(slot(*field)) {
                    *slot = how;
                }
            }
        }
        let mut patterns = rules.patterns.clone();
        patterns.dedup();
        // HMAC takes keys of every length.
        Self { fields, patterns, keyed: Hmac::new_from_slice(key).ok() }
    }

    fn how(&self, field: RedactField) -> How {
        self.fields.get(slot(field)).copied().unwrap_or_default()
    }

    /// Appends `name` and the short text under it, as the rules leave it.
    pub(super) fn push_field(&self, out: &mut Vec<u8>, name: &[u8], field: RedactField, text: &str) {
        match self.how(field) {
            How::Keep => push_text(out, name, text),
            How::Mask => push_text(out, name, &mask(text)),
            How::Hash => self.push_hash(out, name, field, text),
            How::Drop => push_null(out, name),
        }
    }

    /// As [`Redaction::push_field`], for an address.
    pub(super) fn push_address(&self, out: &mut Vec<u8>, name: &[u8], address: IpAddr) {
        match self.how(RedactField::IpAddress) {
            How::Keep => push_shown(out, name, address),
            How::Mask => push_shown(out, name, network(address)),
            How::Hash => self.push_hash(out, name, RedactField::IpAddress, &address.to_string()),
            How::Drop => push_null(out, name),
        }
    }

    /// Names and addresses are the same in any case, so their hashes are.
    fn push_hash(&self, out: &mut Vec<u8>, name: &[u8], field: RedactField, text: &str) {
        let Some(keyed) = &self.keyed else {
            return push_null(out, name);
        };
        let mut mac = keyed.clone();
        mac.update(&[slot(field) as u8]);
        mac.update(text.to_lowercase().as_bytes());
        let hash = mac.finalize().into_bytes();
        out.extend_from_slice(name);
        out.extend_from_slice(b"\"hmac:");
        for byte in hash.iter().take(HASH_BYTES) {
            out.extend_from_slice(&[hex_digit(byte >> 4), hex_digit(byte & 15)]);
        }
        out.push(b'"');
    }

    /// The request as the rules leave it; `None` when nothing of it may be kept. What was JSON still is.
    pub(super) fn request<'a>(&self, request: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        if self.how(RedactField::Request) == How::Drop {
            return None;
        }
        // A request that was cut off is no JSON any more, but its strings are still written as JSON's are.
        let looks_like_json = matches!(request.trim_ascii_start().first(), Some(b'[' | b'{' | b'"'));
        Some(if self.patterns.is_empty() {
            Cow::Borrowed(request)
        } else if looks_like_json {
            replace_in_json(request, &self.patterns)
        } else {
            replace(request, &self.patterns)
        })
    }

    /// The answer's text as the rules leave it; `None` when nothing of it may be kept.
    pub(super) fn response<'a>(&self, response: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        match self.how(RedactField::Response) {
            How::Drop => None,
            _ if self.patterns.is_empty() => Some(Cow::Borrowed(response)),
            _ => Some(replace(response, &self.patterns)),
        }
    }
}

fn slot(field: RedactField) -> usize {
    match field {
        RedactField::Username => 0,
        RedactField::Email => 1,
        RedactField::IpAddress => 2,
        RedactField::RequestId => 3,
        RedactField::Request => 4,
        RedactField::Response => 5,
    }
}

fn hex_digit(half: u8) -> u8 {
    if half < 10 { b'0' + half } else { b'a' + half - 10 }
}

fn push_null(out: &mut Vec<u8>, name: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b"null");
}

fn push_shown(out: &mut Vec<u8>, name: &[u8], address: IpAddr) {
    out.extend_from_slice(name);
    // Writing to memory cannot fail.
    write!(out, "\"{address}\"").ok();
}

/// `j***@example.com` of an email address, `j***` of anything else.
fn mask(text: &str) -> String {
    let (local, host) = text.rfind('@').map_or((text, ""), |sign| text.split_at(sign));
    format!("{}***{host}", local.chars().take(1).collect::<String>())
}

/// The network that an address is masked to: /24, or /48 for IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            Ipv4Addr::new(a, b, c, 0).into()
        }
        // The address behind it is an IPv4 one; /48 would leave nothing of it.
        IpAddr::V6(mapped) if mapped.to_ipv4_mapped().is_some() => {
            mapped.to_ipv4_mapped().map_or(address, |inner| network(inner.into()))
        }
        IpAddr::V6(address) => {
            let [a, b, c, ..] = address.segments();
            Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0).into()
        }
    }
}

/// The text with every hit replaced by its word.
fn replace<'a>(text: &'a [u8], patterns: &[TextPattern]) -> Cow<'a, [u8]> {
    let mut hits = hits(text, patterns).peekable();
    if hits.peek().is_none() {
        return Cow::Borrowed(text);
    }
    let (mut out, mut copied) = (Vec::with_capacity(text.len()), 0);
    for Hit { place, pattern } in hits {
        out.extend_from_slice(text.get(copied..place.start).unwrap_or_default());
        out.extend_from_slice(replacement(pattern));
        copied = place.end;
    }
    out.extend_from_slice(text.get(copied..).unwrap_or_default());
    Cow::Owned(out)
}

/// As [`replace`], inside the strings and numbers of JSON. Strings are looked at as what they mean, so that `\u0040`
/// hides nothing; those without a hit stay as they were written. A number that is a card becomes a string.
fn replace_in_json<'a>(json: &'a [u8], patterns: &[TextPattern]) -> Cow<'a, [u8]> {
    let looks_for_cards = patterns.contains(&TextPattern::CreditCard);
    let (mut out, mut copied, mut at) = (Vec::new(), 0, 0);
    while let Some(byte) = json.get(at) {
        let start = at;
        match byte {
            b'"' => {
                let end = end_of_string(json, start + 1);
                let raw = json.get(start + 1..end).unwrap_or_default();
                let text = unescaped(raw);
                if let Cow::Owned(replaced) = replace(&text, patterns) {
                    out.extend_from_slice(json.get(copied..=start).unwrap_or_default());
                    push_escaped(&mut out, &replaced);
                    copied = end;
                }
                at = end + 1;
            }
            b'0'..=b'9' => {
                at += json.get(at..).unwrap_or_default().iter().take_while(|byte| is_in_number(**byte)).count();
                let number = json.get(start..at).unwrap_or_default();
                if looks_for_cards && find_in_number(number) {
                    out.extend_from_slice(json.get(copied..start).unwrap_or_default());
                    out.push(b'"');
                    out.extend_from_slice(replacement(TextPattern::CreditCard));
                    out.push(b'"');
                    copied = at;
                }
            }
            // The sign belongs to a number that is no card.
            b'-' => at += 1 + json.get(at + 1..).unwrap_or_default().iter().take_while(|b| is_in_number(**b)).count(),
            _ => at += 1,
        }
    }
    if copied == 0 {
        return Cow::Borrowed(json);
    }
    out.extend_from_slice(json.get(copied..).unwrap_or_default());
    Cow::Owned(out)
}

fn is_in_number(byte: u8) -> bool {
    byte.is_ascii_digit() || b".eE+-".contains(&byte)
}

/// Where the string that begins at `from` has its closing quote, or the text ends.
fn end_of_string(json: &[u8], from: usize) -> usize {
    let mut at = from;
    while let Some(offset) = json.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        at += offset;
        if json.get(at) == Some(&b'"') {
            return at;
        }
        at += 2;
    }
    json.len()
}

/// What a JSON string means. What is no escape stays as it is.
fn unescaped(raw: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(b'\\', raw).is_none() {
        return Cow::Borrowed(raw);
    }
    let (mut out, mut rest) = (Vec::with_capacity(raw.len()), raw);
    while let Some(place) = memchr::memchr(b'\\', rest) {
        let (plain, escape) = rest.split_at(place);
        out.extend_from_slice(plain);
        let used = push_meaning(&mut out, escape);
        rest = escape.get(used..).unwrap_or_default();
    }
    out.extend_from_slice(rest);
    Cow::Owned(out)
}

/// Appends what the escape at the beginning means and says how many bytes it took.
fn push_meaning(out: &mut Vec<u8>, escape: &[u8]) -> usize {
    let byte = match escape.get(1) {
        Some(b'u') => {
            let (meaning, used) = unicode_escape(escape);
            out.extend_from_slice(meaning.encode_utf8(&mut [0; 4]).as_bytes());
            return used;
        }
        Some(b'n') => b'\n',
        Some(b'r') => b'\r',
        Some(b't') => b'\t',
        Some(b'b') => 8,
        Some(b'f') => 12,
        Some(byte @ (b'"' | b'\\' | b'/')) => *byte,
        _ => {
            out.push(b'\\');
            return 1;
        }
    };
    out.push(byte);
    2
}

/// `\u0040`, or the two halves of a character beyond them. What is no character becomes U+FFFD.
fn unicode_escape(escape: &[u8]) -> (char, usize) {
    let half = |at: usize| -> Option<u16> {
        let digits = escape.get(at..at + 6)?.strip_prefix(b"\\u")?;
        let is_hex = digits.iter().all(u8::is_ascii_hexdigit);
        is_hex.then(|| u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()).flatten()
    };
    let Some(first) = half(0) else {
        return (char::REPLACEMENT_CHARACTER, escape.len().min(2));
    };
    let pair = half(6).and_then(|second| char::decode_utf16([first, second]).next()?.ok());
    match (char::from_u32(u32::from(first)), pair) {
        (Some(one), _) => (one, 6),
        (None, Some(both)) => (both, 12),
        (None, None) => (char::REPLACEMENT_CHARACTER, 6),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use proptest::prelude::*;
    use serde_json::Value;

    use super::super::frame::{Frame, read};
    use super::super::record::tests::entry;
    use super::super::record::{ConversationEntry, MAX_TEXT_BYTES};
    use super::*;

    const ALL: [TextPattern; 4] =
        [TextPattern::Email, TextPattern::CreditCard, TextPattern::ApiKey, TextPattern::Phone];

    fn rules(toml: &str) -> Redaction {
        Redaction::new(&toml::from_str(toml).unwrap(), b"a key of the tests")
    }

    fn record(rules: &Redaction, entry: &ConversationEntry<'_>) -> Value {
        let (mut frame, mut out) = (Vec::new(), Vec::new());
        Frame::of(entry).append_to(&mut frame);
        read(&frame).unwrap().encode(1, rules, &mut out);
        serde_json::from_slice(&out).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&out)))
    }

    #[test]
    fn a_dropped_field_is_null() {
        let all = r#"drop = ["username", "email", "ip_address", "request_id", "request", "response"]"#;
        let record = record(&rules(all), &entry(1, "answer"));
        for pointer in
            ["/username", "/email", "/ip_address", "/request_id", "/messages/request", "/messages/response/content"]
        {
            assert_eq!(record.pointer(pointer), Some(&Value::Null), "{pointer} in {record}");
        }
        assert_eq!((&record["user_id"], &record["model"]), (&1.into(), &"gpt-4o".into()));
        for said in ["johndoe", "john@", "192.168", "req-1", "Hello", "answer"] {
            assert!(!record.to_string().contains(said), "{said}");
        }
    }

    #[test]
    fn a_hash_groups_and_tells_nothing() {
        let rules = rules(r#"hash = ["username", "email", "ip_address", "request_id"]"#);
        let hashes = |entry: &ConversationEntry<'_>| {
            let record = record(&rules, entry);
            ["username", "email", "ip_address", "request_id"].map(|field| record[field].as_str().unwrap().to_owned())
        };
        let one = hashes(&entry(1, "x"));
        assert!(one.iter().all(|hash| hash.len() == 5 + 32 && hash.starts_with("hmac:")), "{one:?}");
        assert_eq!(hashes(&ConversationEntry { username: "JohnDoe", ..entry(2, "y") }), one);
        assert_ne!(hashes(&ConversationEntry { username: "johndof", ..entry(2, "y") })[0], one[0]);
        let same_text = hashes(&ConversationEntry { username: "a", email: "a", ..entry(1, "x") });
        assert_ne!(same_text[0], same_text[1], "each field is hashed for itself");
        let other = Redaction::new(&Redact { hash: vec![RedactField::Username], ..Redact::default() }, b"another key");
        assert_ne!(super::tests::record(&other, &entry(1, "x"))["username"], one[0].as_str(), "the key matters");
    }

    #[test]
    fn a_mask_keeps_the_form() {
        let rules = rules(r#"mask = ["username", "email", "ip_address"]"#);
        for (address, network) in [
            ("192.168.1.100", "192.168.1.0"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1::"),
            ("::ffff:10.1.2.3", "10.1.2.0"),
            ("::1", "::"),
        ] {
            let record = record(&rules, &ConversationEntry { ip_address: address.parse().unwrap(), ..entry(1, "x") });
            assert_eq!(record["ip_address"], network);
            assert_eq!((&record["username"], &record["email"]), (&"j***".into(), &"j***@example.com".into()));
        }
        assert_eq!((mask("é@x"), mask(""), mask("@")), ("é***@x".into(), "***".into(), "***@".into()));
    }

    #[test]
    fn patterns_are_replaced_in_both_texts() {
        let rules = rules(r#"patterns = ["email", "credit_card", "api_key", "phone"]"#);
        let request = br#"[{"role": "user", "content": "I am john@example.com,\n\"card\" 4111 1111 1111 1111"}]"#;
        let entry = ConversationEntry {
            request,
            request_is_json: true,
            ..entry(1, "Call +49 30 1234567, sk-abcdef0123456789!")
        };
        let record = record(&rules, &entry);
        assert_eq!(record["messages"]["request"][0]["content"], "I am [email],\n\"card\" [credit_card]");
        assert_eq!(record["messages"]["response"]["content"], "Call [phone], [api_key]!");
        assert_eq!(record["email"], "john@example.com", "fields have rules of their own");
    }

    #[test]
    fn escapes_and_numbers_hide_nothing() {
        for (json, expected) in [
            (r#"["john\u0040example.com"]"#, r#"["[email]"]"#),
            (r#"["\njohn@example.com\t"]"#, r#"["\n[email]\t"]"#),
            (r#"["\ud83d\ude00 a@b.io"]"#, "[\"😀 [email]\"]"),
            (r#"{"a@b.io": [4111111111111111, 1705320000000]}"#, r#"{"[email]": ["[credit_card]", 1705320000000]}"#),
            (r#"[-4111111111111111, 4111111111111111.5]"#, r#"[-4111111111111111, 4111111111111111.5]"#),
            (r#"["{\"to\": \"a@b.io\"}"]"#, r#"["{\"to\": \"[email]\"}"]"#),
            (r#"[{"content": "cut off at john@exam"#, r#"[{"content": "cut off at john@exam"#),
            (r#"[{"content": "cut off at john@example.com"#, r#"[{"content": "cut off at [email]"#),
            (r#"["untouched \u00e9"]"#, r#"["untouched \u00e9"]"#),
        ] {
            let replaced = replace_in_json(json.as_bytes(), &ALL);
            assert_eq!(String::from_utf8_lossy(&replaced), expected);
        }
    }

    #[test]
    fn a_cut_text_stays_cut_though_redaction_shortens_it() {
        let rules = rules(r#"patterns = ["email"]"#);
        let long = format!("[\"{}@example.com\", \"{}\"]", "x".repeat(60), "y".repeat(MAX_TEXT_BYTES));
        let entry = ConversationEntry { request: long.as_bytes(), request_is_json: true, ..entry(1, "x") };
        let record = record(&rules, &entry);
        assert!(record["truncated"].as_bool().unwrap() && record["messages"]["request"].is_string());
    }

    proptest! {
        #[test]
        fn json_stays_json_and_texts_stay_bounded(
            words in proptest::collection::vec("(a@b\\.io|4111111111111111|\\+4930123456789|[ -~\n\u{0}é😀]{0,12})", 0..20),
            number in any::<f64>(),
        ) {
            let value = serde_json::json!({"messages": words.clone(), "n": number, "joined": words.join(" ")});
            let json = value.to_string();
            let replaced = replace_in_json(json.as_bytes(), &ALL);
            prop_assert!(serde_json::from_slice::<Value>(&replaced).is_ok());
            prop_assert!(replaced.len() <= json.len() + json.len().div_ceil(6));
            prop_assert!(memchr::memmem::find(&replaced, b"a@b.io").is_none());
        }

        #[test]
        fn any_bytes_will_do(bytes in proptest::collection::vec(any::<u8>(), 0..200), prefix in "[\\[{\"]?") {
            let text = [prefix.as_bytes(), &bytes].concat();
            let rules = rules(r#"patterns = ["email", "credit_card", "api_key", "phone"]"#);
            let entry = ConversationEntry { request: &text, response: &text, ..entry(1, "") };
            record(&rules, &entry);
            let replaced = replace(&text, &ALL);
            prop_assert!(replaced.len() <= text.len() + text.len().div_ceil(6));
        }

        #[test]
        fn escapes_mean_what_serde_says(text in "\\PC{0,40}|[\"\\\\\n\t\u{8}/]{0,20}") {
            let json = serde_json::to_vec(&text).unwrap();
            let meaning = unescaped(&json[1..json.len() - 1]).into_owned();
            prop_assert_eq!(meaning, text.into_bytes());
        }
    }
}
