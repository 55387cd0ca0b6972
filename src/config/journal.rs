//! What the section `[journal]` must fulfil beyond its types.
//!
//! Owns the rules of the conversation journal's settings. Never opens a file; the secret of `journal.redact.key` is read by
//! whoever starts the journal.

use super::raw::{Journal, Redact, RedactField};

/// Longest that the end of a call may be made to wait, in seconds.
const MAX_WAIT_SECONDS: u64 = 10;
const MAX_EXCLUDED_USERS: usize = 10_000;

/// # Errors
/// A sentence that begins with the key it is about.
pub(super) fn check(journal: &Journal) -> Result<(), String> {
    if journal.batch_size == 0 {
        return Err("journal.batch_size: 0 is too small; at least 1".into());
    }
    if journal.max_wait.0.as_secs() > MAX_WAIT_SECONDS {
        return Err(format!(
            "journal.max_wait: more than {MAX_WAIT_SECONDS} seconds would hold up calls; the default is 50ms"
        ));
    }
    if !(1..=19).contains(&journal.compression_level) {
        return Err(format!("journal.compression_level: {} is not between 1 and 19", journal.compression_level));
    }
    if journal.spill_bytes < 1 << 20 {
        return Err(format!("journal.spill_bytes: {} is too small; at least 1048576", journal.spill_bytes));
    }
    if journal.exclude_users.len() > MAX_EXCLUDED_USERS {
        return Err(format!(
            "journal.exclude_users: more than {MAX_EXCLUDED_USERS}; set log_conversations = false on the users instead"
        ));
    }
    check_redaction(&journal.redact)
}

fn check_redaction(redact: &Redact) -> Result<(), String> {
    use RedactField::{Request, RequestId, Response};
    let lists = [("drop", &redact.drop), ("hash", &redact.hash), ("mask", &redact.mask)];
    let mut seen = Vec::new();
    for (list, fields) in lists {
        for field in fields {
            if seen.contains(field) {
                return Err(format!("journal.redact.{list}: {} is listed twice; choose one way", name(*field)));
            }
            seen.push(*field);
        }
    }
    if let Some(text) = redact.hash.iter().chain(&redact.mask).find(|field| matches!(field, Request | Response)) {
        return Err(format!(
            "journal.redact.hash: {} can only be dropped; or name what is to be replaced in it under \
             journal.redact.patterns",
            name(*text)
        ));
    }
    if redact.mask.contains(&RequestId) {
        return Err("journal.redact.mask: request_id has nothing to mask; drop or hash it".into());
    }
    Ok(())
}

/// As the file says it.
fn name(field: RedactField) -> &'static str {
    match field {
        RedactField::Username => "username",
        RedactField::Email => "email",
        RedactField::IpAddress => "ip_address",
        RedactField::RequestId => "request_id",
        RedactField::Request => "request",
        RedactField::Response => "response",
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Overflow, RedactField};

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse("t", text, std::iter::empty()).map_err(|error| error.reason)
    }

    #[test]
    fn policies_and_redaction_are_read() {
        let text =
            "[journal]\noverflow = \"spill\"\n[journal.redact]\ndrop = [\"ip_address\"]\nhash = [\"username\"]\n";
        let journal = parse(text).unwrap().journal;
        assert_eq!(journal.overflow, Overflow::Spill);
        assert_eq!(
            (journal.redact.drop, journal.redact.hash),
            (vec![RedactField::IpAddress], vec![RedactField::Username])
        );
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (text, key) in [
            ("batch_size = 0", "journal.batch_size"),
            ("max_wait = \"1m\"", "journal.max_wait"),
            ("spill_bytes = 5", "journal.spill_bytes"),
            ("[journal.redact]\ndrop = [\"email\"]\nmask = [\"email\"]", "journal.redact.mask: email is listed twice"),
            ("[journal.redact]\nhash = [\"response\"]", "journal.redact.hash: response can only be dropped"),
            ("[journal.redact]\nmask = [\"request_id\"]", "journal.redact.mask: request_id"),
            ("[journal.redact]\npatterns = [\"nonsense\"]", "nonsense"),
            ("overflow = \"explode\"", "explode"),
        ] {
            let reason = parse(&format!("[journal]\n{text}\n")).unwrap_err();
            assert!(reason.contains(key), "{text}: {reason}");
        }
    }
}
