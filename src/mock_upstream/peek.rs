//! Reads the few fields of a JSON request that an answer depends on, without building a document.
//!
//! Owns a forgiving scanner: what it cannot make sense of is simply not there. It never decides whether JSON is valid.

use std::borrow::Cow;

use memchr::memchr2;

/// The members of an object, as key and raw value. Anything that is not an object has none.
pub(super) fn fields(object: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut rest = opened(object, b'{');
    std::iter::from_fn(move || {
        let key_at = separated(rest);
        let key_end = string_end(key_at)?;
        let value = key_at[key_end..].trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
        let value_end = value_end(value)?;
        rest = &value[value_end..];
        Some((&key_at[1..key_end - 1], &value[..value_end]))
    })
}

/// The items of an array, raw. Anything that is not an array has none.
pub(super) fn items(array: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = opened(array, b'[');
    std::iter::from_fn(move || {
        let item = separated(rest);
        let end = value_end(item)?;
        rest = &item[end..];
        Some(&item[..end])
    })
}

/// The text of a string value.
pub(super) fn text(value: &[u8]) -> Option<Cow<'_, str>> {
    let inner = value.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if memchr::memchr(b'\\', inner).is_none() {
        return Some(String::from_utf8_lossy(inner));
    }
    serde_json::from_slice(value).ok().map(Cow::Owned)
}

pub(super) fn number(value: &[u8]) -> Option<u64> {
    super::head::decimal(value).filter(|_| !value.is_empty())
}

fn opened(value: &[u8], bracket: u8) -> &[u8] {
    value.trim_ascii_start().strip_prefix(&[bracket]).unwrap_or_default()
}

fn separated(rest: &[u8]) -> &[u8] {
    let rest = rest.trim_ascii_start();
    rest.strip_prefix(b",").unwrap_or(rest).trim_ascii_start()
}

/// Where the value at the start of `bytes` ends.
fn value_end(bytes: &[u8]) -> Option<usize> {
    match bytes.first()? {
        b'"' => string_end(bytes),
        b'{' | b'[' => nested_end(bytes),
        b'}' | b']' | b',' | b':' => None,
        _ => Some(bytes.iter().position(|byte| is_delimiter(*byte)).unwrap_or(bytes.len())),
    }
}

fn is_delimiter(byte: u8) -> bool {
    matches!(byte, b',' | b'}' | b']') || byte.is_ascii_whitespace()
}

fn string_end(bytes: &[u8]) -> Option<usize> {
    bytes.strip_prefix(b"\"")?;
    let mut at = 1;
    loop {
        at += memchr2(b'"', b'\\', bytes.get(at..)?)?;
        if bytes.get(at) == Some(&b'"') {
            return Some(at + 1);
        }
        at += 2;
    }
}

fn nested_end(bytes: &[u8]) -> Option<usize> {
    let mut depth = 0usize;
    let mut at = 0;
    loop {
        match bytes.get(at)? {
            b'"' => at += string_end(&bytes[at..])? - 1,
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 1 => return Some(at + 1),
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        at += 1;
    }
}
