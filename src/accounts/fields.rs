//! What the fields of a user must look like.
//!
//! Each rule answers with what is wrong, in words for whoever sent it, and never repeats a value.

use unicode_normalization::UnicodeNormalization;

use crate::store::tables;

pub(super) const MAX_EMAIL: usize = 254;
const MAX_TEXT: usize = 1000;
/// Of one field of the profile, in characters; of an address of a picture, in bytes.
const MAX_FIELD: usize = 100;
const MAX_URL: usize = 500;

/// What a name must look like; each returns what is wrong.
pub(super) fn username_fault(text: &str) -> Option<String> {
    let fits =
        (3..=50).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if !fits {
        return Some("username: 3 to 50 letters, digits, hyphens or underscores".into());
    }
    // A path may name a user by number or by name.
    text.bytes().all(|b| b.is_ascii_digit()).then(|| "username: must not be a number".into())
}

/// A name or address as it is kept: compatible spellings of a character (Unicode NFKC) are one.
pub(super) fn normalized(text: &str) -> String {
    text.trim().nfkc().collect()
}

/// Whether a name is what it looks like: without control characters, characters that turn the direction of what follows, and
/// characters of no width. Those that join letters (U+200C, U+200D) count where a letter beyond ASCII is on both sides, because
/// Persian and the scripts of India are written with them.
pub(super) fn is_visible(text: &str) -> bool {
    let joins = |c: Option<&char>| c.is_some_and(|c| !c.is_ascii() && (c.is_alphanumeric() || is_mark(*c)));
    let chars: Vec<char> = text.chars().collect();
    chars.iter().enumerate().all(|(at, c)| match *c {
        '\u{200c}' | '\u{200d}' => at > 0 && joins(chars.get(at - 1)) && joins(chars.get(at + 1)),
        '\u{ad}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{180e}' | '\u{200b}'..='\u{200f}' => false,
        '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}' => false,
        '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}' => false,
        c => !c.is_control(),
    })
}

fn is_mark(c: char) -> bool {
    unicode_normalization::char::is_combining_mark(c)
}

/// A member of the staff's name and address, as [`Accounts`](super::Accounts) keeps them; what is wrong, a line each.
pub(super) fn staff_faults(name: Option<&str>, email: Option<&str>) -> Vec<String> {
    let name_fits = |name: &str| (1..=100).contains(&name.chars().count()) && is_visible(name);
    let email_fits = |email: &str| email.len() <= MAX_EMAIL && email.contains('@') && is_visible(email);
    let faults = [
        name.filter(|name| !name_fits(name)).map(|_| "name: 1 to 100 visible characters".to_owned()),
        email.filter(|email| !email_fits(email)).map(|_| "email: not a valid email address".to_owned()),
    ];
    faults.into_iter().flatten().collect()
}

/// Whether two spellings are of one address: as accounts are found by it.
pub(super) fn same_address(a: &str, b: &str) -> bool {
    tables::user_by_email(&normalized(a)) == tables::user_by_email(&normalized(b))
}

pub(super) fn name_fault(text: &str) -> Option<String> {
    let fits = (2..=100).contains(&text.chars().count()) && is_visible(text);
    (!fits).then(|| "name: 2 to 100 visible characters".into())
}

pub(super) fn text_fault(field: &str, text: &str) -> Option<String> {
    let printable = |c: char| !c.is_control() || matches!(c, '\n' | '\r' | '\t');
    let fits = text.chars().count() <= MAX_TEXT && text.chars().all(printable);
    (!fits).then(|| format!("{field}: at most {MAX_TEXT} printable characters"))
}

pub(super) fn word_fault(field: &str, text: &str) -> Option<String> {
    let fits = (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    (!fits).then(|| format!("{field}: 1 to 32 letters, digits, dots, hyphens or underscores"))
}

pub(super) fn profile_fault(name: &str, value: &str) -> Option<String> {
    match name {
        // Shown by clients, so it must not be script, nor end the attribute it stands in; never fetched by us.
        "avatar_url" => {
            let is_of_urls = |b: u8| b.is_ascii_graphic() && !b"\"'<>\\^`{|}".contains(&b);
            let fits = value.len() <= MAX_URL && value.starts_with("https://") && value.bytes().all(is_of_urls);
            (!fits).then(|| format!("avatar_url: an https:// address of at most {MAX_URL} characters"))
        }
        "preferences" => (value.len() > MAX_TEXT).then(|| format!("preferences: at most {MAX_TEXT} bytes as JSON")),
        _ => {
            let fits = value.chars().count() <= MAX_FIELD && is_visible(value);
            (!fits).then(|| format!("{name}: at most {MAX_FIELD} printable characters"))
        }
    }
}

pub(super) fn email_fault(field: &str, text: &str) -> Option<String> {
    (!is_email(text)).then(|| format!("{field}: not a valid email address"))
}

/// The form that mail servers in use accept: a dot-atom, and a host name with at least two labels.
fn is_email(text: &str) -> bool {
    let Some((local, host)) = text.rsplit_once('@') else { return false };
    let atom = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+/=?^_`{|}~-".contains(&b))
    };
    let label = |part: &str| {
        let inner = part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        (1..=63).contains(&part.len()) && inner && !part.starts_with('-') && !part.ends_with('-')
    };
    text.len() <= MAX_EMAIL
        && local.len() <= 64
        && local.split('.').all(atom)
        && host.contains('.')
        && host.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_judged() {
        for good in ["abc", "john-doe_7", "7up"] {
            assert_eq!(username_fault(good), None, "{good}");
        }
        for bad in ["ab", "12345", "john doe", "jöhn", "a\0bc", &"a".repeat(51)] {
            assert!(username_fault(bad).is_some(), "{bad}");
        }
        for good in ["john@example.com", "a.b+c@sub.example.co"] {
            assert!(is_email(good), "{good}");
        }
        for bad in
            ["john", "@example.com", "a@b", "a..b@example.com", "a b@example.com", "a@-x.com", "a@x..com", "a@x.com\n"]
        {
            assert!(!is_email(bad), "{bad}");
        }
        assert!(!is_email(&format!("a@{}.com", "x".repeat(250))));
    }

    #[test]
    fn a_name_is_what_it_looks_like() {
        for good in ["Ann", "José Ñandú", "李小龍", "علی\u{200c}رضا", "क्\u{200d}ष", "O'Neill-Smith 3rd"]
        {
            assert_eq!(name_fault(good), None, "{good}");
            assert!(staff_faults(Some(good), None).is_empty());
        }
        for bad in [
            "An\u{0}n",
            "An\nn",
            "An\u{1b}[2Jn",
            "An\u{202e}nimda",
            "An\u{2066}n",
            "An\u{200b}n",
            "An\u{200d}n",
            "\u{200d}Ann",
            "An\u{feff}n",
            "An\u{85}n",
            "An\u{2028}n",
            "An\u{e0041}n",
            "\u{3164}\u{3164}",
        ] {
            assert!(name_fault(bad).is_some(), "{bad:?}");
            assert_eq!(staff_faults(Some(bad), None).len(), 1, "{bad:?}");
            assert!(profile_fault("display_name", bad).is_some(), "{bad:?}");
        }
        assert_eq!(staff_faults(None, Some("a\u{202e}@x.com")).len(), 1);
    }
}
