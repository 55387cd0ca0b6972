//! Pages in browsers: which of them may make calls here.
//!
//! Owns the rule for a request that a page of another origin has made. A page can send JSON as `text/plain` without asking
//! first, with its reader's address and without a word of theirs: so it must neither try passwords nor make accounts. Programs say
//! nothing of where they are, and are no pages.

use super::cookies::Provenance;

/// What a page elsewhere is told.
pub const FOREIGN_PAGE: &str =
    "Pages of other origins may not do this; the operator can list their origin in cors.origins";

/// The pages that may call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pages {
    /// Where users reach this service.
    base: Option<String>,
    /// Other origins that may, in lower case.
    allowed: Vec<String>,
}

impl Pages {
    pub fn new(base: Option<&str>, allowed: &[String]) -> Self {
        Self { base: base.map(origin_of), allowed: allowed.to_vec() }
    }

    /// Whether a page made this request that may not.
    pub fn refuse(&self, from: &Provenance<'_>) -> bool {
        match (from.fetch_site, from.origin) {
            // What the browser itself says, and no page can change.
            (Some(b"same-origin" | b"none"), _) | (None, None) => false,
            (Some(_), None) => true,
            (_, Some(origin)) => !self.knows(origin, from.host),
        }
    }

    fn knows(&self, origin: &[u8], host: Option<&[u8]>) -> bool {
        let named = origin.strip_prefix(b"https://").or_else(|| origin.strip_prefix(b"http://"));
        let own = named.is_some_and(|named| host.is_some_and(|host| named.eq_ignore_ascii_case(host)));
        own || self.base.iter().chain(&self.allowed).any(|known| known.as_bytes().eq_ignore_ascii_case(origin))
    }
}

/// Scheme, host and port of an address, in lower case.
pub fn origin_of(url: &str) -> String {
    let path = url.find("://").map_or(0, |at| at + 3);
    let end = url[path..].find('/').map_or(url.len(), |at| path + at);
    url[..end].to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_elsewhere_is_told_from_ours_from_allowed_ones_and_from_programs() {
        let pages = Pages::new(Some("https://AI.example.com/base"), &["https://app.example.com".into()]);
        let refused = |site: Option<&'static str>, origin: Option<&'static str>| {
            pages.refuse(&Provenance {
                method: "POST",
                fetch_site: site.map(str::as_bytes),
                navigates: false,
                origin: origin.map(str::as_bytes),
                host: Some(b"10.0.0.7:8080"),
            })
        };
        for (site, origin) in [
            (Some("cross-site"), None),
            (Some("same-site"), None),
            (Some("cross-site"), Some("https://evil.example")),
            (Some("cross-site"), Some("null")),
            (None, Some("null")),
            (None, Some("https://evil.example")),
            (None, Some("https://ai.example.com.evil.example")),
            (None, Some("https://ai.example.com:8443")),
            (None, Some("http://app.example.com")),
            (Some("same-site"), Some("https://other.example.com")),
        ] {
            assert!(refused(site, origin), "{site:?} {origin:?}");
        }
        for (site, origin) in [
            (None, None),
            (Some("none"), None),
            (Some("same-origin"), None),
            // A page without a referrer, as the one for a new password may be.
            (Some("same-origin"), Some("null")),
            (None, Some("https://ai.example.com")),
            (None, Some("http://10.0.0.7:8080")),
            (Some("same-site"), Some("https://app.example.com")),
            (Some("cross-site"), Some("https://APP.example.com")),
        ] {
            assert!(!refused(site, origin), "{site:?} {origin:?}");
        }
    }
}
