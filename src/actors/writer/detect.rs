//! Finding what a text should not keep: addresses, card numbers, keys and phone numbers, by hand-written scanners.
//!
//! Owns the detectors and nothing else: it says where something stands, never what becomes of it. A detector looks at
//! bytes, so a text need not be UTF-8; what it finds begins and ends at ASCII characters or whole ones, reads each byte
//! a bounded number of times, and allocates nothing. It is deliberately blunt: a number that looks like a card is
//! one.

use std::ops::Range;

use crate::config::TextPattern;

/// Longest local part of an email address, by the standard.
const MAX_LOCAL: usize = 64;
/// Longest domain of an email address, by the standard.
const MAX_DOMAIN: usize = 253;

/// Something found, and what it is taken for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hit {
    pub(super) place: Range<usize>,
    pub(super) pattern: TextPattern,
}

/// All hits of `patterns` in `text`, from left to right, without overlaps; of two that begin at the same byte, the
/// longer.
pub(super) fn hits<'a>(text: &'a [u8], patterns: &'a [TextPattern]) -> impl Iterator<Item = Hit> + 'a {
    let mut at = 0;
    // What each pattern finds next is looked up once and kept until the text has been read past it.
    let mut next: Vec<Option<Hit>> = patterns.iter().map(|pattern| find(*pattern, text, 0)).collect();
    std::iter::from_fn(move || {
        for (hit, pattern) in next.iter_mut().zip(patterns) {
            if hit.as_ref().is_some_and(|hit| hit.place.start < at) {
                *hit = find(*pattern, text, at);
            }
        }
        let first = next.iter().flatten().min_by_key(|hit| (hit.place.start, usize::MAX - hit.place.end))?.clone();
        at = first.place.end;
        Some(first)
    })
}

/// The word that stands in the text instead.
pub(super) fn replacement(pattern: TextPattern) -> &'static [u8] {
    match pattern {
        TextPattern::Email => b"[email]",
        TextPattern::CreditCard => b"[credit_card]",
        TextPattern::ApiKey => b"[api_key]",
        TextPattern::Phone => b"[phone]",
    }
}

fn find(pattern: TextPattern, text: &[u8], from: usize) -> Option<Hit> {
    let place = match pattern {
        TextPattern::Email => find_email(text, from),
        TextPattern::CreditCard => find_card(text, from),
        TextPattern::ApiKey => find_key(text, from),
        TextPattern::Phone => find_phone(text, from),
    }?;
    Some(Hit { place, pattern })
}

fn at(text: &[u8], place: usize) -> u8 {
    text.get(place).copied().unwrap_or(0)
}

fn before(text: &[u8], place: usize) -> u8 {
    place.checked_sub(1).map_or(0, |place| at(text, place))
}

/// How many bytes from `start` on fit, at most `most`.
fn run(text: &[u8], start: usize, most: usize, fits: impl Fn(u8) -> bool) -> usize {
    let rest = text.get(start..).unwrap_or_default();
    rest.iter().take(most).take_while(|byte| fits(**byte)).count()
}

/// `name@host.tld`. Letters of other scripts count as letters.
fn find_email(text: &[u8], from: usize) -> Option<Range<usize>> {
    let is_local = |byte: u8| byte.is_ascii_alphanumeric() || byte >= 0x80 || b"._%+-'".contains(&byte);
    let is_domain = |byte: u8| byte.is_ascii_alphanumeric() || byte >= 0x80 || b".-".contains(&byte);
    let signs = memchr::memchr_iter(b'@', text.get(from..)?).map(|offset| from + offset);
    for sign in signs {
        let head = text.get(from..sign).unwrap_or_default();
        let local = head.iter().rev().take(MAX_LOCAL).take_while(|byte| is_local(**byte)).count();
        let mut start = sign - local;
        // The n of an escaped line break in a text that is itself JSON belongs to the break.
        if start > from && before(text, start) == b'\\' && b"nrtbf".contains(&at(text, start)) {
            start += 1;
        }
        // Not in the middle of a character that the limit cut in two.
        start += run(text, start, 3, |byte| byte & 0xC0 == 0x80);
        start += run(text, start, MAX_LOCAL, |byte| b".-'".contains(&byte));
        let mut end = sign + 1 + run(text, sign + 1, MAX_DOMAIN, is_domain);
        while end > sign + 1 && b".-".contains(&before(text, end)) {
            end -= 1;
        }
        while end < text.len() && at(text, end) & 0xC0 == 0x80 {
            end += 1;
        }
        let domain = text.get(sign + 1..end).unwrap_or_default();
        let top = domain.rsplit(|byte| *byte == b'.').next().unwrap_or_default();
        let is_top = top.len() >= 2 && top.len() < domain.len() && !top.iter().all(u8::is_ascii_digit);
        if start < sign && is_top && !domain.starts_with(b".") {
            return Some(start..end);
        }
    }
    None
}

/// 13 to 19 digits that pass Luhn's check and begin as cards do, at a stretch or in groups with single spaces or
/// hyphens between.
fn find_card(text: &[u8], from: usize) -> Option<Range<usize>> {
    let mut at_byte = from;
    loop {
        let start = at_byte + text.get(at_byte..)?.iter().position(u8::is_ascii_digit)?;
        let group = run(text, start, text.len(), |byte| byte.is_ascii_digit());
        let is_apart = !before(text, start).is_ascii_alphanumeric();
        if let Some(end) = (is_apart && matches!(at(text, start), b'2'..=b'6')).then(|| card_end(text, start)).flatten()
        {
            return Some(start..end);
        }
        at_byte = start + group;
    }
}

/// Whether a JSON number is a card's and nothing else.
pub(super) fn find_in_number(number: &[u8]) -> bool {
    find_card(number, 0) == Some(0..number.len())
}

/// Where the longest card that begins at `start` ends.
fn card_end(text: &[u8], start: usize) -> Option<usize> {
    let (mut digits, mut count, mut place, mut found) = ([0_u8; 19], 0, start, None);
    loop {
        let group = run(text, place, 20, |byte| byte.is_ascii_digit());
        let room = digits.get_mut(count..count + group)?;
        room.copy_from_slice(text.get(place..place + group)?);
        count += group;
        place += group;
        let ends_here = !at(text, place).is_ascii_alphanumeric();
        if (13..=19).contains(&count) && ends_here && passes_luhn(digits.get(..count)?) {
            found = Some(place);
        }
        let goes_on = group >= 3 && b" -".contains(&at(text, place)) && at(text, place + 1).is_ascii_digit();
        if !goes_on || count >= 19 || digits.len() - count < run(text, place + 1, 20, |b| b.is_ascii_digit()) {
            return found;
        }
        place += 1;
    }
}

/// The check digit's rule: every second digit from the right counts double, and the sum ends in 0.
fn passes_luhn(digits: &[u8]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .zip([1, 2].into_iter().cycle())
        .map(|(digit, weight)| {
            let product = u32::from(digit - b'0') * weight;
            product / 10 + product % 10
        })
        .sum();
    sum.is_multiple_of(10)
}

/// How much of a key is looked at before it is taken for one: a text of nothing but beginnings must not take long.
const LOOKED_AT: usize = 64;

/// How a kind of key begins, where in that its first `-`, `_` or `A` stands, the least that follows, and whether the rest may
/// hold hyphens and underscores. A rest that may is a key only with a digit in it: words in kebab case have none.
const KEYS: &[(&[u8], usize, usize, bool)] = &[
    (b"pe-", 2, 32, false),
    (b"clx_", 3, 32, false),
    (b"at_", 2, 43, false),
    (b"rt_", 2, 43, false),
    (b"ts-", 2, 43, false),
    (b"tr-", 2, 43, false),
    (b"op-", 2, 43, false),
    (b"sk-", 2, 16, true),
    (b"sk_live_", 2, 16, false),
    (b"rk_live_", 2, 16, false),
    (b"ghp_", 3, 36, false),
    (b"gho_", 3, 36, false),
    (b"github_pat_", 6, 22, true),
    (b"glpat-", 5, 20, true),
    (b"xoxb-", 4, 20, true),
    (b"xoxp-", 4, 20, true),
    (b"hf_", 2, 30, false),
    (b"AKIA", 0, 16, false),
    (b"AIza", 0, 35, true),
];

/// Our own keys and tokens, and those of well-known services. Every prefix has one of three rare bytes, so a text without
/// them is passed over quickly.
fn find_key(text: &[u8], from: usize) -> Option<Range<usize>> {
    let rest = text.get(from..)?;
    let marks = memchr::memchr3_iter(b'-', b'_', b'A', rest).map(|offset| from + offset);
    marks.filter_map(|mark| key_around(text, from, mark)).next()
}

/// The key whose prefix has its first rare byte at `mark`.
fn key_around(text: &[u8], from: usize, mark: usize) -> Option<Range<usize>> {
    KEYS.iter().find_map(|(prefix, offset, least, is_wide)| {
        let start = mark.checked_sub(*offset)?;
        let begins = start >= from
            && text.get(start..).is_some_and(|here| here.starts_with(prefix))
            && !before(text, start).is_ascii_alphanumeric();
        let end = begins.then(|| key_end(text, start + prefix.len(), *least, *is_wide))??;
        Some(start..end)
    })
}

fn key_end(text: &[u8], rest: usize, least: usize, is_wide: bool) -> Option<usize> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || (is_wide && b"-_".contains(&byte));
    let len = run(text, rest, LOOKED_AT, fits);
    let has_digit = || text.get(rest..rest + len).unwrap_or_default().iter().any(u8::is_ascii_digit);
    let is_key = len >= least && (!is_wide || has_digit());
    is_key.then(|| rest + run(text, rest, text.len(), fits))
}

/// `+49 30 1234567`, or ten digits as they are written in North America: `(415) 555-2671`, `415-555-2671`. Digits
/// without a plus sign or such groups are no phone number: too much else is.
fn find_phone(text: &[u8], from: usize) -> Option<Range<usize>> {
    let begins = |byte: &u8| byte.is_ascii_digit() || matches!(byte, b'+' | b'(');
    let mut place = from;
    loop {
        let start = place + text.get(place..)?.iter().position(begins)?;
        let is_apart = !before(text, start).is_ascii_alphanumeric();
        let end = match at(text, start) {
            _ if !is_apart => None,
            b'+' => international_end(text, start),
            _ => american_end(text, start),
        };
        if let Some(end) = end {
            return Some(start..end);
        }
        // The rest of these digits is no beginning.
        place = start + 1 + run(text, start + 1, text.len(), |byte| byte.is_ascii_digit());
    }
}

/// Eight to fifteen digits after the plus sign, with at most two of ` -./()` between any two of them.
fn international_end(text: &[u8], start: usize) -> Option<usize> {
    let (mut digits, mut gap, mut end) = (0, 0, start);
    let rest = text.get(start + 1..)?;
    for (offset, byte) in rest.iter().enumerate() {
        match byte {
            b'0'..=b'9' => {
                (digits, gap) = (digits + 1, 0);
                end = start + 2 + offset;
            }
            b' ' | b'-' | b'.' | b'/' | b'(' | b')' if gap < 2 && (digits > 0 || *byte == b'(') => gap += 1,
            _ => break,
        }
        if digits > 15 {
            return None;
        }
    }
    ((8..=15).contains(&digits) && !at(text, end).is_ascii_alphanumeric()).then_some(end)
}

/// Three digits, three, four, with a separator between.
fn american_end(text: &[u8], start: usize) -> Option<usize> {
    let is_number = |place: usize, count: usize| run(text, place, count + 1, |byte| byte.is_ascii_digit()) == count;
    let has_bracket = at(text, start) == b'(';
    let area = start + usize::from(has_bracket);
    let mut place = area + 3;
    if !is_number(area, 3) {
        return None;
    }
    if has_bracket {
        if at(text, place) != b')' {
            return None;
        }
        place += 1 + usize::from(b" -".contains(&at(text, place + 1)));
    } else {
        place += usize::from(b" -.".contains(&at(text, place)));
        if place == area + 3 {
            return None;
        }
    }
    let is_separated = is_number(place, 3) && b" -.".contains(&at(text, place + 3)) && is_number(place + 4, 4);
    (is_separated && !at(text, place + 8).is_ascii_alphanumeric()).then_some(place + 8)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use proptest::prelude::*;

    use super::*;

    const ALL: [TextPattern; 4] =
        [TextPattern::Email, TextPattern::CreditCard, TextPattern::ApiKey, TextPattern::Phone];

    fn found(text: &str, patterns: &[TextPattern]) -> Vec<String> {
        hits(text.as_bytes(), patterns).map(|hit| text[hit.place].to_owned()).collect()
    }

    #[test]
    fn emails() {
        for (text, expected) in [
            ("write to john@example.com.", vec!["john@example.com"]),
            ("<a.b+tag@sub.example.co.uk>, x@y", vec!["a.b+tag@sub.example.co.uk"]),
            ("mail:jörg@müller.de;next", vec!["jörg@müller.de"]),
            ("two a@b.io,c@d.io", vec!["a@b.io", "c@d.io"]),
            (r"nested \njohn@example.com\n", vec!["john@example.com"]),
            ("@handle no@tld 1@2.3 a@.com @@x.com a@b..", vec![]),
            ("x@y.com@z.org", vec!["x@y.com"]),
        ] {
            assert_eq!(found(text, &[TextPattern::Email]), expected, "{text}");
        }
        let long = format!("{}é@example.com", "é".repeat(100));
        assert_eq!(found(&long, &[TextPattern::Email]).len(), 1, "cut at a whole character");
    }

    #[test]
    fn cards() {
        for (text, expected) in [
            ("4111111111111111", vec!["4111111111111111"]),
            ("card 4111 1111 1111 1111 12/26", vec!["4111 1111 1111 1111"]),
            ("5500-0000-0000-0004, 340000000000009", vec!["5500-0000-0000-0004", "340000000000009"]),
            ("amex 3782 822463 10005", vec!["3782 822463 10005"]),
            ("4111111111111112 is mistyped, a4111111111111111 and 41111111111111110000 are none", vec![]),
            ("at 1705320000000 ms; 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6", vec![]),
        ] {
            assert_eq!(found(text, &[TextPattern::CreditCard]), expected, "{text}");
        }
    }

    #[test]
    fn keys() {
        let own = format!("pe-{}", "a1B2".repeat(8));
        let session = format!("ts-{}", "x".repeat(43));
        for (text, expected) in [
            (format!("use {own}!"), vec![own.clone()]),
            (format!("{session} {own}x"), vec![session.clone(), format!("{own}x")]),
            ("Bearer sk-proj-abc_DEF-0123456789".into(), vec!["sk-proj-abc_DEF-0123456789".into()]),
            ("AKIAIOSFODNN7EXAMPLE".into(), vec!["AKIAIOSFODNN7EXAMPLE".into()]),
            ("a task-management-system-of-2024, sk-learn-pipelines-are-fine, pe-short".into(), vec![]),
        ] {
            assert_eq!(found(&text, &[TextPattern::ApiKey]), expected, "{text}");
        }
    }

    #[test]
    fn every_kind_of_key_is_found_by_its_mark() {
        for (prefix, offset, least, _) in KEYS {
            assert_eq!(memchr::memchr3(b'-', b'_', b'A', prefix), Some(*offset));
            let key = format!("{}{}", String::from_utf8_lossy(prefix), "9".repeat(*least));
            assert_eq!(found(&format!("({key})"), &[TextPattern::ApiKey]), [key.as_str()]);
            assert_eq!(found(&format!("x{key}"), &[TextPattern::ApiKey]), Vec::<String>::new());
        }
    }

    #[test]
    fn phones() {
        for (text, expected) in [
            ("call +49 (0)30 1234567 now", vec!["+49 (0)30 1234567"]),
            ("+14155552671;+355 69 123 4567", vec!["+14155552671", "+355 69 123 4567"]),
            ("(415) 555-2671 or 415.555.2671", vec!["(415) 555-2671", "415.555.2671"]),
            ("2024-01-15, 1705320000, 1+2345678901, v1.2.3.4, +1 2", vec![]),
        ] {
            assert_eq!(found(text, &[TextPattern::Phone]), expected, "{text}");
        }
    }

    #[test]
    fn what_two_patterns_see_is_taken_once() {
        let text = "john@example.com 4111-1111-1111-1111 +4915112345678 sk-1234567890abcdefgh";
        let kinds: Vec<_> = hits(text.as_bytes(), &ALL).map(|hit| hit.pattern).collect();
        assert_eq!(kinds, [TextPattern::Email, TextPattern::CreditCard, TextPattern::Phone, TextPattern::ApiKey]);
    }

    proptest! {
        #[test]
        fn hits_are_in_order_and_at_whole_characters(text in "[ a-c0-9@.+()\\-né€sk]{0,120}") {
            let mut last = 0;
            for hit in hits(text.as_bytes(), &ALL) {
                prop_assert!(hit.place.start >= last && hit.place.end > hit.place.start);
                prop_assert!(text.get(hit.place.clone()).is_some(), "{hit:?}");
                // At most a sixth longer: the bound that texts are stored under.
                let old = hit.place.len();
                prop_assert!(replacement(hit.pattern).len() <= old + old.div_ceil(6));
                last = hit.place.end;
            }
        }

        #[test]
        fn any_bytes_will_do(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let ends: Vec<_> = hits(&bytes, &ALL).map(|hit| hit.place.end).collect();
            prop_assert!(ends.is_sorted() && ends.iter().all(|end| *end <= bytes.len()));
        }

        #[test]
        fn an_address_is_found_wherever_it_stands(
            before in "[ ,;:<(]{0,3}", local in "[a-z0-9]{1,10}", host in "[a-z]{1,8}", after in "[ ,;:>)]{0,3}"
        ) {
            let text = format!("{before}{local}@{host}.com{after}");
            prop_assert_eq!(found(&text, &[TextPattern::Email]), vec![format!("{local}@{host}.com")]);
        }

        #[test]
        fn a_card_is_found_in_any_grouping(digits in proptest::collection::vec(0_u8..10, 14), separator in "[ -]?") {
            let mut card: Vec<u8> = std::iter::once(4).chain(digits).map(|digit| digit + b'0').collect();
            card.push(b'0');
            let check = (b'0'..=b'9').find(|check| { card[15] = *check; passes_luhn(&card) }).unwrap();
            card[15] = check;
            let groups: Vec<&str> = card.chunks(4).map(|group| std::str::from_utf8(group).unwrap()).collect();
            let text = groups.join(&separator);
            prop_assert_eq!(found(&format!("no {text}."), &[TextPattern::CreditCard]), vec![text]);
        }
    }
}
