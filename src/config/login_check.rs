//! `[accounts.login_check]`: what else a login must bring, and who judges it.
//!
//! Owns the section's keys, defaults and checks.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::masked;
use super::raw::{SecretSource, Span};
use crate::domain::bodies::MAX_LOCAL_BODY;

/// Copies of it are made on the way to the verifier.
const MAX_BYTES: usize = 8 << 20;
/// What a login's body holds besides its factors.
const BODY_BESIDES: usize = 64 << 10;
const MAX_REQUIRED: usize = 8;

/// What becomes of logins at identity providers, which bring no factors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SocialLogins {
    /// They are refused.
    #[default]
    Refuse,
    /// The provider's word is enough.
    Allow,
}

/// A verifier of the operator's, asked at each login with a password.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoginCheck {
    /// Without it, logins are not checked.
    #[serde(serialize_with = "masked::one")]
    pub url: Option<String>,
    /// It is in the operator's own network, perhaps without TLS.
    pub private_network: bool,
    /// Sent as `Authorization: Bearer …`.
    pub secret: Option<SecretSource>,
    /// Of one answer, connecting included.
    pub timeout: Span,
    /// Factors that a login must bring.
    pub required: Vec<String>,
    /// Of all factors of a login together.
    pub max_bytes: usize,
    /// Logins that are checked at once; more get 503.
    pub max_concurrent: usize,
    pub social: SocialLogins,
}

impl Default for LoginCheck {
    fn default() -> Self {
        Self {
            url: None,
            private_network: false,
            secret: None,
            timeout: Span(Duration::from_secs(5)),
            required: Vec::new(),
            max_bytes: 2 << 20,
            max_concurrent: 16,
            social: SocialLogins::default(),
        }
    }
}

impl LoginCheck {
    /// The most bytes of a login's body.
    pub fn longest_body(&self) -> usize {
        // A file in a form is shorter than the factor that it becomes.
        let factors = if self.url.is_some() { self.max_bytes + BODY_BESIDES } else { 0 };
        factors.max(MAX_LOCAL_BODY)
    }
}

/// Whether a factor may be called so.
pub fn is_factor_name(name: &str) -> bool {
    (1..=32).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

fn named(key: &str, why: &str) -> String {
    format!("accounts.login_check.{key}: {why}")
}

pub(super) fn check(section: &LoginCheck) -> Result<(), String> {
    let Some(url) = &section.url else {
        return match section.required.is_empty() {
            true => Ok(()),
            // Whoever wrote it believes that logins are checked.
            false => Err(named("required", "nobody would look at them; set accounts.login_check.url")),
        };
    };
    check_url(url, section.private_network).map_err(|why| named("url", &why))?;
    if let Some(secret) = &section.secret {
        let secret = secret.read().map_err(|why| named("secret", &why))?;
        if secret.is_empty() || !secret.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(named("secret", "must be of letters, digits and signs, without spaces"));
        }
    }
    if !(Duration::from_millis(50)..=Duration::from_secs(30)).contains(&section.timeout.0) {
        return Err(named("timeout", "must be between 50ms and 30s"));
    }
    if let Some(name) = section.required.iter().find(|name| !is_factor_name(name)) {
        return Err(named("required", &format!("\"{name}\" is no name: 1 to 32 lower-case letters, digits and _")));
    }
    if section.required.len() > MAX_REQUIRED {
        return Err(named("required", &format!("more than {MAX_REQUIRED}")));
    }
    if !(1..=MAX_BYTES).contains(&section.max_bytes) {
        return Err(named("max_bytes", &format!("must be between 1 and {MAX_BYTES}")));
    }
    if !(1..=1000).contains(&section.max_concurrent) {
        return Err(named("max_concurrent", "must be between 1 and 1000"));
    }
    Ok(())
}

fn check_url(url: &str, private_network: bool) -> Result<(), String> {
    let example = "write it as https://host/path";
    let uri: http::Uri = url.parse().map_err(|_| format!("is not a URL; {example}"))?;
    let authority = uri.authority().ok_or_else(|| format!("has no host; {example}"))?;
    if authority.as_str().contains('@') {
        return Err("may hold no password; use accounts.login_check.secret".into());
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let here = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    match uri.scheme_str() {
        Some("https") => Ok(()),
        Some("http") if here || private_network => Ok(()),
        Some("http") => {
            Err("must begin with https:// (http:// on this machine, or with private_network = true)".into())
        }
        _ => Err(format!("must begin with https://; {example}")),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn reason(toml: &str) -> Option<String> {
        let text = format!("[accounts.login_check]\n{toml}\n");
        Config::parse("test", &text, std::iter::empty()).err().map(|error| error.reason)
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_key() {
        let on = "url = \"https://verifier.example.com/check\"\n";
        for good in [
            "",
            on,
            "url = \"http://127.0.0.1:8000/\"",
            "url = \"http://[::1]:8000/\"",
            "url = \"http://verifier:8000\"\nprivate_network = true",
        ] {
            assert_eq!(reason(good), None, "{good}");
        }
        for (bad, key) in [
            ("required = [\"photo\"]".to_owned(), "required: nobody would look at them"),
            ("url = \"http://verifier:8000\"".into(), "url: must begin with https://"),
            ("url = \"ftp://verifier\"".into(), "url: must begin with https://"),
            ("url = \"/check\"".into(), "url: has no host"),
            ("url = \"https://u:p@verifier/\"".into(), "url: may hold no password"),
            (format!("{on}secret = {{ env = \"NO_SUCH_VARIABLE_HERE\" }}"), "secret: the environment variable"),
            (format!("{on}secret = \"a b\""), "secret: must be"),
            (format!("{on}timeout = \"31s\""), "timeout: must be"),
            (format!("{on}required = [\"Photo\"]"), "required: \"Photo\" is no name"),
            (format!("{on}max_bytes = 8388609"), "max_bytes: must be"),
            (format!("{on}max_concurrent = 0"), "max_concurrent: must be"),
        ] {
            let reason = reason(&bad).unwrap_or_else(|| panic!("{bad}"));
            assert!(reason.starts_with(&format!("accounts.login_check.{key}")), "{bad}: {reason}");
        }
    }
}
