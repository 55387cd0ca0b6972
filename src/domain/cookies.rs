//! The cookie that carries a session, for pages that send nothing else along.
//!
//! Owns its name, and when it counts: a browser sends a cookie with whatever request any page makes, so where the request
//! comes from must be known too. Never a way in for programs; they say who they are.

use std::borrow::Cow;

/// A browser takes it over TLS alone, for this host alone (RFC 6265bis, 4.1.3.2).
const SECURE: &str = "__Host-tollgate-session";
/// Where users do not come by TLS: on a developer's machine.
const PLAIN: &str = "tollgate-session";
/// How all cookies begin that are ours to set.
const OURS: [&str; 2] = ["__Host-tollgate-", "tollgate-"];

/// Where session cookies count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CookieRule {
    pub name: &'static str,
    /// Scheme, host and port by which users reach this service.
    origin: Option<String>,
}

impl CookieRule {
    /// `base`: where users reach this service, such as `https://ai.example.com`.
    pub fn new(base: Option<&str>) -> Self {
        let origin = base.map(super::pages::origin_of);
        let secure = origin.as_deref().is_some_and(|origin| origin.starts_with("https://"));
        Self { name: if secure { SECURE } else { PLAIN }, origin }
    }

    pub fn is_secure(&self) -> bool {
        self.name == SECURE
    }

    /// The cookie's value in a `Cookie` field; none when it is there twice, for one of them is not ours.
    pub fn find<'a>(&self, line: &'a [u8]) -> Option<&'a [u8]> {
        let mut values = pairs(line).filter(|(name, _)| *name == self.name.as_bytes()).map(|(_, value)| value);
        let first = values.next()?;
        values.next().is_none().then_some(first)
    }

    /// Whether a request was made by a page of ours, or by the person himself.
    pub fn trusts(&self, from: &Provenance<'_>) -> bool {
        match from.fetch_site {
            // What the browser itself says, and no page can change.
            Some(b"same-origin" | b"none") => true,
            // Somebody has followed a link from elsewhere: the page is shown to him, and the other page sees nothing of it.
            Some(_) => from.navigates && matches!(from.method, "GET" | "HEAD"),
            // An older browser: what changes nothing may come from anywhere, what may change something must say from where.
            None if matches!(from.method, "GET" | "HEAD" | "OPTIONS") => true,
            None => from.origin.is_some_and(|origin| self.is_own(origin, from.host)),
        }
    }

    /// Whether a page of another site made a request. Programs, which say nothing of where they are, did not.
    pub fn is_foreign(&self, from: &Provenance<'_>) -> bool {
        match from.fetch_site {
            Some(site) => !matches!(site, b"same-origin" | b"none"),
            None => from.origin.is_some_and(|origin| !self.is_own(origin, from.host)),
        }
    }

    fn is_own(&self, origin: &[u8], host: Option<&[u8]>) -> bool {
        let known = self.origin.as_ref().is_some_and(|own| own.as_bytes().eq_ignore_ascii_case(origin));
        let named = origin.strip_prefix(b"https://").or_else(|| origin.strip_prefix(b"http://"));
        known || (self.origin.is_none() && named.is_some_and(|n| host.is_some_and(|h| n.eq_ignore_ascii_case(h))))
    }
}

/// Where a request comes from, as its fields say.
#[derive(Clone, Copy, Debug)]
pub struct Provenance<'a> {
    pub method: &'a str,
    /// `Sec-Fetch-Site`.
    pub fetch_site: Option<&'a [u8]>,
    /// A page is to be shown in the whole window (`Sec-Fetch-Mode: navigate`, `Sec-Fetch-Dest: document`).
    pub navigates: bool,
    pub origin: Option<&'a [u8]>,
    pub host: Option<&'a [u8]>,
}

fn pairs(line: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    line.split(|b| *b == b';').filter_map(|pair| {
        let pair = pair.trim_ascii();
        let at = pair.iter().position(|b| *b == b'=')?;
        Some((&pair[..at], &pair[at + 1..]))
    })
}

fn is_ours(pair: &[u8]) -> bool {
    OURS.iter().any(|prefix| pair.trim_ascii().starts_with(prefix.as_bytes()))
}

/// A `Cookie` field as an upstream may see it: without what opens anything here, by its name or because `is_secret` says so of a
/// pair. Empty when nothing is left.
pub fn without_ours(line: &[u8], is_secret: impl Fn(&[u8]) -> bool) -> Cow<'_, [u8]> {
    let stays = |pair: &&[u8]| !is_ours(pair) && !is_secret(pair);
    if line.split(|b| *b == b';').all(|pair| stays(&pair)) {
        return Cow::Borrowed(line);
    }
    let rest: Vec<&[u8]> = line.split(|b| *b == b';').filter(stays).map(<[u8]>::trim_ascii).collect();
    Cow::Owned(rest.join(&b"; "[..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from<'a>(method: &'a str, fetch_site: Option<&'a str>, origin: Option<&'a str>) -> Provenance<'a> {
        let bytes = |text: Option<&'a str>| text.map(str::as_bytes);
        let host = Some(&b"ai.example.com"[..]);
        Provenance { method, fetch_site: bytes(fetch_site), navigates: false, origin: bytes(origin), host }
    }

    #[test]
    fn a_link_from_elsewhere_shows_a_page_and_does_nothing() {
        let rule = CookieRule::new(None);
        let follow = |method| Provenance { navigates: true, ..from(method, Some("cross-site"), None) };
        assert!(rule.trusts(&follow("GET")) && rule.trusts(&follow("HEAD")) && !rule.trusts(&follow("POST")));
    }

    #[test]
    fn a_foreign_page_is_told_from_a_program() {
        let rule = CookieRule::new(None);
        for foreign in [
            from("POST", Some("cross-site"), None),
            from("POST", Some("same-site"), None),
            from("POST", None, Some("https://evil.example")),
            from("POST", None, Some("null")),
        ] {
            assert!(rule.is_foreign(&foreign), "{foreign:?}");
        }
        for own in [
            from("POST", None, None),
            from("POST", Some("same-origin"), None),
            from("POST", Some("none"), None),
            from("POST", None, Some("https://ai.example.com")),
        ] {
            assert!(!rule.is_foreign(&own), "{own:?}");
        }
    }

    #[test]
    fn only_our_own_pages_are_believed() {
        let rule = CookieRule::new(Some("https://AI.example.com/base"));
        assert!(rule.is_secure() && rule.name.starts_with("__Host-"));
        let (same, cross) = (Some("same-origin"), Some("cross-site"));
        for good in [
            from("POST", same, None),
            from("GET", Some("none"), None),
            from("GET", None, None),
            from("POST", None, Some("https://ai.example.com")),
        ] {
            assert!(rule.trusts(&good), "{good:?}");
        }
        for bad in [
            from("POST", cross, Some("https://ai.example.com")),
            from("GET", cross, None),
            from("POST", Some("same-site"), None),
            from("POST", None, None),
            from("POST", None, Some("null")),
            from("POST", None, Some("http://ai.example.com")),
            from("POST", None, Some("https://ai.example.com.evil.example")),
            from("DELETE", None, Some("https://evil.example")),
        ] {
            assert!(!rule.trusts(&bad), "{bad:?}");
        }
        let local = CookieRule::new(None);
        assert!(!local.is_secure() && local.trusts(&from("POST", None, Some("http://ai.example.com"))));
        assert!(!local.trusts(&from("POST", None, Some("http://other"))));
    }

    #[test]
    fn ours_is_found_once_and_kept_from_upstreams() {
        let rule = CookieRule::new(Some("https://a"));
        assert_eq!(rule.find(b"a=b; __Host-tollgate-session=tok=en; c=d"), Some(&b"tok=en"[..]));
        assert_eq!(rule.find(b"__Host-tollgate-session=1; __Host-tollgate-session=2"), None);
        assert_eq!(rule.find(b"x__Host-tollgate-session=1"), None);
        let left = |line| without_ours(line, |pair| pair.ends_with(b"=pe-1")).into_owned();
        assert_eq!(left(b"a=b; __Host-tollgate-session=t;c=d; tollgate-oauth=x"), b"a=b; c=d");
        assert_eq!(left(b"__Host-tollgate-device=t"), b"");
        assert_eq!(left(b"a=b;c = d"), b"a=b;c = d");
        assert_eq!(left(b"a=b; key=pe-1"), b"a=b");
    }
}
