//! Spellings of a path: what an upstream may read in one besides what stands there.
//!
//! Owns the spelling by which routes are looked up, and the readings of software that folds more: case, blanks and dots at the
//! end of a name, parameters, escaped slashes, escapes of escapes. Never knows a route.

use std::borrow::Cow;

use smallvec::SmallVec;

use crate::config::PathPattern;
use crate::error::Reject;

/// The path as an upstream may read it: needless escapes resolved and slashes merged, so that no spelling of a path gets
/// by another route's price. A path that climbs (`..`) is refused whatever its spelling.
///
/// # Errors
/// [`Reject::BadRequest`].
pub fn normalize(path: &[u8]) -> Result<Cow<'_, [u8]>, Reject> {
    let mut previous = b' ';
    let plain = path.iter().all(|byte| {
        let suspicious = matches!(byte, b'%' | b'\\') || (previous == b'/' && matches!(byte, b'/' | b'.'));
        previous = *byte;
        !suspicious
    });
    if plain {
        return Ok(Cow::Borrowed(path));
    }
    let malformed = || Reject::BadRequest("The path is malformed".into());
    let mut resolved = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, tail) = match first {
            b'%' => {
                let digits = tail.get(..2).and_then(|d| std::str::from_utf8(d).ok()).ok_or_else(malformed)?;
                let byte = u8::from_str_radix(digits, 16).map_err(|_| malformed())?;
                if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
                    (byte, &tail[2..])
                } else if byte < 0x20 || byte == 0x7f {
                    return Err(malformed());
                } else {
                    // Stays escaped, in one spelling.
                    resolved.extend_from_slice(format!("%{byte:02X}").as_bytes());
                    rest = &tail[2..];
                    continue;
                }
            }
            other => (other, tail),
        };
        if !(byte == b'/' && resolved.last() == Some(&b'/')) {
            resolved.push(byte);
        }
        rest = tail;
    }
    let climbs = |segment: &[u8]| {
        let name = segment.split(|b| *b == b';').next().unwrap_or_default();
        name == b"." || name == b".."
    };
    // An escaped or backward slash separates segments for some upstreams.
    let text = String::from_utf8_lossy(&resolved).replace("%2F", "/").replace("%5C", "/").replace('\\', "/");
    if text.as_bytes().split(|b| *b == b'/').any(climbs) {
        return Err(Reject::BadRequest("The path may not have . or .. in it".into()));
    }
    Ok(Cow::Owned(resolved))
}

/// What a path that can be read in two ways is answered, where it matters.
pub fn two_readings() -> Reject {
    Reject::BadRequest(
        "The path has more than one reading here: write it as the route does, in its letter case, without escaped or backward \
         slashes, without ; and without a slash, dot or blank at the end"
            .into(),
    )
}

/// A path as an upstream may read it that resolves escaped and backward slashes, and cuts off what follows a `;` in each part.
/// `None` when that changes nothing.
pub fn read_loosely(path: &[u8]) -> Option<Vec<u8>> {
    memchr::memchr3(b'%', b'\\', b';', path)?;
    let (mut loose, mut rest, mut is_cut) = (Vec::with_capacity(path.len()), path, false);
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, tail) = match (first, tail.get(..2)) {
            (b'%', Some(b"2F" | b"5C")) => (b'/', &tail[2..]),
            (b'%', Some(b"3B")) => (b';', &tail[2..]),
            (b'\\', _) => (b'/', tail),
            (other, _) => (other, tail),
        };
        rest = tail;
        is_cut = match byte {
            b'/' => false,
            b';' => true,
            _ => is_cut,
        };
        let is_double = byte == b'/' && loose.last() == Some(&b'/');
        if !is_cut && !is_double {
            loose.push(byte);
        }
    }
    (loose != path).then_some(loose)
}

/// A path as [`fold`] leaves it.
pub type Folded = SmallVec<[u8; 128]>;

/// Escapes of escapes are resolved so often.
const MAX_ROUNDS: usize = 4;

/// Whether [`fold`] may change a path. Without a branch for each byte, so that it is done many bytes at a time: every call asks.
pub fn may_fold(path: &[u8]) -> bool {
    let folds =
        |byte: u8| byte.is_ascii_uppercase() | (byte == b'%') | (byte == b'\\') | (byte == b';') | (byte >= 0x80);
    let ends = |byte: u8| (byte == b'.') | (byte == b'+') | (byte == b'/');
    let pairs = path.iter().zip(path.get(1..).unwrap_or_default());
    let inside = pairs.fold(0, |any, (byte, next)| {
        any | u8::from(folds(*byte) | (ends(*byte) & (*next == b'/')) | ((*byte == b'/') & (*next == b'+')))
    });
    inside != 0 || path.last().is_some_and(|last| folds(*last) || (path.len() > 1 && ends(*last)))
}

/// A path as software reads it that folds all that any is known to: escapes are resolved to the last, backward slashes are
/// slashes, what follows a `;` is cut off, names have no blanks around them and no dots at their end, letters are small, and
/// nothing is empty. `None`: read so, it climbs.
pub fn fold(path: &[u8]) -> Option<Folded> {
    let mut read = Folded::from_slice(path);
    if memchr::memchr(b'%', path).is_some() {
        resolve(&mut read);
    }
    if !read.is_ascii() {
        read = fold_letters(&read);
    }
    let mut folded = Folded::new();
    for part in read.split(|byte| matches!(byte, b'/' | b'\\')) {
        let name = trim_blanks(part.split(|byte| *byte == b';').next().unwrap_or_default());
        if matches!(name, b"." | b"..") {
            return None;
        }
        let name = trim_end(name);
        if !name.is_empty() {
            folded.push(b'/');
            folded.extend(name.iter().map(u8::to_ascii_lowercase));
        }
    }
    if folded.is_empty() {
        folded.push(b'/');
    }
    Some(folded)
}

/// A pattern of paths, for paths that [`fold`] has read. A prefix stands for itself too, without its slash.
pub enum FoldedPattern {
    Exact(Folded),
    Under(Folded),
}

impl FoldedPattern {
    pub fn of(pattern: &PathPattern) -> Self {
        // A pattern that climbs matches no path anyhow.
        let folded = |path: &str| fold(path.as_bytes()).unwrap_or_else(|| Folded::from_slice(path.as_bytes()));
        match pattern {
            PathPattern::Exact(path) => Self::Exact(folded(path)),
            PathPattern::Prefix(prefix) => Self::Under(folded(prefix)),
        }
    }

    pub fn matches(&self, path: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => exact.as_slice() == path,
            Self::Under(root) => {
                let rest = path.strip_prefix(root.strip_suffix(b"/").unwrap_or(root));
                rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
            }
        }
    }
}

/// Resolves escapes until none is left. A path ends at a byte that ends one for some: NUL, `?` and `#`.
fn resolve(path: &mut Folded) {
    for _ in 0..MAX_ROUNDS {
        let (mut at, mut len) = (0, 0);
        while let Some(&byte) = path.get(at) {
            let escaped = (byte == b'%').then(|| path.get(at + 1..at + 3).and_then(hex)).flatten();
            // Never ahead of what is read.
            if let Some(slot) = path.get_mut(len) {
                *slot = escaped.unwrap_or(byte);
            }
            at += if escaped.is_some() { 3 } else { 1 };
            len += 1;
        }
        let changed = len < path.len();
        path.truncate(len);
        if !changed {
            break;
        }
    }
    let end = path.iter().position(|byte| matches!(byte, 0 | b'?' | b'#'));
    path.truncate(end.unwrap_or(path.len()));
}

fn hex(digits: &[u8]) -> Option<u8> {
    let value = |digit: &u8| char::from(*digit).to_digit(16);
    match digits {
        [high, low] => u8::try_from(value(high)? << 4 | value(low)?).ok(),
        _ => None,
    }
}

/// Letters beyond ASCII in one case; and what some software takes for an ASCII character: overlong UTF-8, the wide forms, other
/// slashes and dots, other blanks.
fn fold_letters(path: &[u8]) -> Folded {
    let mut short = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, tail) = match rest {
            [lead @ 0xC0..=0xC1, low @ 0x80..=0xBF, tail @ ..] => ((lead & 1) << 6 | low & 0x3F, tail),
            [0xE0, mid @ 0x80..=0x81, low @ 0x80..=0xBF, tail @ ..] => ((mid & 1) << 6 | low & 0x3F, tail),
            [0xF0, 0x80, mid @ 0x80..=0x81, low @ 0x80..=0xBF, tail @ ..] => ((mid & 1) << 6 | low & 0x3F, tail),
            _ => (first, tail),
        };
        short.push(byte);
        rest = tail;
    }
    let mut folded = Folded::new();
    for letter in String::from_utf8_lossy(&short).chars() {
        let plain = match letter {
            '\u{FF01}'..='\u{FF5E}' => char::from_u32(u32::from(letter) - 0xFEE0).unwrap_or(letter),
            '\u{2044}' | '\u{2215}' => '/',
            '\u{2024}' => '.',
            blank if blank.is_whitespace() => ' ',
            other => other,
        };
        for small in plain.to_uppercase().flat_map(char::to_lowercase) {
            folded.extend_from_slice(small.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
    folded
}

fn is_blank(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == b'+'
}

fn trim_blanks(name: &[u8]) -> &[u8] {
    let start = name.iter().position(|byte| !is_blank(*byte)).unwrap_or(name.len());
    let end = name.iter().rposition(|byte| !is_blank(*byte)).map_or(start, |last| last + 1);
    name.get(start..end).unwrap_or_default()
}

fn trim_end(name: &[u8]) -> &[u8] {
    let end = name.iter().rposition(|byte| !is_blank(*byte) && *byte != b'.').map_or(0, |last| last + 1);
    name.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folded(path: &str) -> String {
        let normal = normalize(path.as_bytes()).unwrap_or_else(|e| panic!("{path}: {e:?}"));
        fold(&normal).map_or("climbs".into(), |folded| String::from_utf8_lossy(&folded).into_owned())
    }

    #[test]
    fn every_spelling_folds_to_one() {
        for path in [
            "/v1/secret",
            "/v1/Secret",
            "/V1/SECRET",
            "/v1/secret/",
            "/v1//secret//",
            "/v1/secret.",
            "/v1/secret...",
            "/v1/secret%20",
            "/v1/%20secret",
            "/v1/secret%20.",
            "/v1/secret+",
            "/v1/secret%2509",
            "/v1/secret;x=y",
            "/v1;a/secret",
            "/v1%2Fsecret",
            "/v1%5csecret",
            "/v1\\secret",
            "/v1/secret%2F",
            "/v1/%73ecret",
            "/v1/%2573ecret",
            "/v1/%252573ecret",
            "/v1/secret%3Fx",
            "/v1/secret%23x",
            "/v1/secret%2500.png",
            "/v1/\u{17F}ecret",
            "/v1/%C5%BFecret",
            "/v1/\u{FF33}ecret",
            "/v1%C0%AFsecret",
            "/v1%E0%80%AFsecret",
            "/v1%F0%80%80%AFsecret",
            "/v1%EF%BC%8Fsecret",
            "/v1/secret%C2%A0",
            "/v1/secret%E2%80%A4",
        ] {
            assert_eq!(folded(path), "/v1/secret", "{path}");
            let normal = normalize(path.as_bytes()).unwrap();
            assert!(*normal == *b"/v1/secret" || may_fold(&normal), "{path}");
        }
        for (path, reading) in [
            ("/", "/"),
            ("/v1/..file", "/v1/..file"),
            ("/v1/gpt-4.1:generate", "/v1/gpt-4.1:generate"),
            ("/v1/caf\u{C9}", "/v1/caf\u{E9}"),
            ("/v1/%252e%252e/secret", "climbs"),
            ("/v1/%C0%AE%C0%AE/secret", "climbs"),
            ("/v1/x%20/..%20/secret", "climbs"),
        ] {
            assert_eq!(folded(path), reading, "{path}");
        }
    }

    #[test]
    fn what_is_not_asked_about_does_not_fold() {
        for path in
            ["/", "/v1/chat/completions", "/v1/a.b/c+d/e-f_g~h", "/v1/models/gpt-4.1:x", "/v1/..file/.x", "/v1/x=y&z"]
        {
            assert!(!may_fold(path.as_bytes()), "{path}");
            assert_eq!(folded(path), path);
        }
    }

    proptest::proptest! {
        #[test]
        fn folding_folds_all_there_is(path in "(/[a-zA-Z.+;%\\\\é\u{17F}?#0-9]{0,6}){1,4}") {
            if let Some(once) = fold(path.as_bytes()) {
                proptest::prop_assert!(may_fold(path.as_bytes()) || once.as_slice() == path.as_bytes());
            }
        }
    }
}
