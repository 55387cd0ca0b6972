//! What of a URL, and of a message about the config, may be printed.
//!
//! Owns the masking of `user:password@` and of values that stand where they should not. Never changes what is used.

use serde::Serializer;

/// What takes the place of a secret.
const MASK: &str = "********";

/// A URL without the name and password before its host. In what is no URL, all before the last `@` counts as such.
pub fn url(text: &str) -> String {
    let begin = text.find("://").map_or(0, |at| at + 3);
    let rest = &text[begin..];
    let is_url = begin > 0 && text.parse::<http::Uri>().is_ok_and(|url| has_a_port_if_any(&url));
    let end = if is_url { rest.find(['/', '?', '#']).unwrap_or(rest.len()) } else { rest.len() };
    match rest[..end].rfind('@') {
        Some(at) => format!("{}{MASK}{}", &text[..begin], &rest[at..]),
        None => text.to_owned(),
    }
}

/// As [`url`], of what was refused as one: all before the last `@` may be a password that nobody has escaped.
pub fn refused(text: &str) -> String {
    let begin = text.find("://").map_or(0, |at| at + 3);
    match text.rfind('@').filter(|at| *at >= begin) {
        Some(at) => format!("{}{MASK}{}", &text[..begin], &text[at..]),
        None => text.to_owned(),
    }
}

/// Whether the port is one, if there is any. Else a password with a slash may have been cut in two.
pub(super) fn has_a_port_if_any(url: &http::Uri) -> bool {
    let authority = url.authority().map_or("", |authority| authority.as_str());
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    host.rsplit_once(':').is_none_or(|(_, port)| port.ends_with(']') || port.parse::<u16>().is_ok())
}

pub(super) fn one<S: Serializer>(text: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    match text {
        Some(text) => serializer.serialize_some(&url(text)),
        None => serializer.serialize_none(),
    }
}

pub(super) fn several<S: Serializer>(texts: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(texts.iter().map(|text| url(text)))
}

/// serde repeats a text that stands where something else is expected; it may be a secret.
pub(super) fn message(text: &str) -> String {
    const BEFORE: [&str; 2] = ["invalid type: string \"", "invalid value: string \""];
    for before in BEFORE {
        let Some(begin) = text.find(before) else { continue };
        // Whatever the text holds, what was expected comes last.
        let Some(end) = text.rfind("\", expected ").filter(|end| *end >= begin + before.len()) else { continue };
        return format!("{}{}", &text[..begin + before.len() - "string \"".len()], "a text") + &text[end + 1..];
    }
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_and_password_go_and_the_rest_stays() {
        for (text, shown) in [
            ("http://user:pass@127.0.0.1:9100", "http://********@127.0.0.1:9100"),
            ("https://user@host/path?q=a@b", "https://********@host/path?q=a@b"),
            ("https://host/hook/@me", "https://host/hook/@me"),
            ("http://user:p/w@host", "http://********@host"),
            ("user:pass@host:80", "********@host:80"),
            ("ftp://user:p@ss@host", "ftp://********@host"),
            ("http://127.0.0.1:9100", "http://127.0.0.1:9100"),
            ("http://[::1]/@me", "http://[::1]/@me"),
            ("http://[::1]:80/@me", "http://[::1]:80/@me"),
            ("nonsense", "nonsense"),
        ] {
            assert_eq!(url(text), shown, "{text}");
        }
        assert_eq!(refused("http://user:12/34@host"), "http://********@host", "a password that reads as a port");
    }

    #[test]
    fn a_message_repeats_no_text_that_stands_in_a_wrong_place() {
        let said = message("invalid type: string \"sk-\\\", expected x\", expected struct RawCredential");
        assert_eq!(said, "invalid type: a text, expected struct RawCredential");
        assert_eq!(
            message("invalid type: integer `5`, expected a string"),
            "invalid type: integer `5`, expected a string"
        );
    }
}
