//! What the fields of a user must look like.
//!
//! Each rule answers with what is wrong, in words for whoever sent it, and never repeats a value.

use unicode_normalization::UnicodeNormalization;

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

pub(super) fn name_fault(text: &str) -> Option<String> {
    let fits = (2..=100).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    (!fits).then(|| "name: 2 to 100 characters".into())
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
            let fits = value.chars().count() <= MAX_FIELD && !value.chars().any(char::is_control);
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
}
