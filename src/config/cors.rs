//! `[cors]`: which pages of other origins may call.
//!
//! Owns the form of an origin. What such a page may do is the business of [`crate::domain::pages`].

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cors {
    /// Such as `https://app.example.com`: scheme, host, and the port if it is not the scheme's own.
    pub origins: Vec<String>,
}

impl Cors {
    /// # Errors
    /// A sentence that begins with the key it is about.
    pub(super) fn checked(mut self) -> Result<Self, String> {
        for origin in &mut self.origins {
            let rest = origin.split_once("://").filter(|(scheme, _)| {
                scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                    && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
            });
            let host = rest.map_or("", |(_, host)| host);
            if host.is_empty() || !host.bytes().all(|b| b.is_ascii_graphic() && !b"/?#@*\\\"'".contains(&b)) {
                return Err(format!(
                    "cors.origins: \"{origin}\" is not an origin; write scheme and host, and the port if it is not the \
                     usual one, such as \"https://app.example.com\""
                ));
            }
            // As browsers write it.
            origin.make_ascii_lowercase();
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_a_scheme_and_a_host() {
        let checked = |origin: &str| Cors { origins: vec![origin.to_owned()] }.checked();
        for good in ["https://App.example.com", "http://127.0.0.1:3000", "http://[::1]:3000", "tauri://localhost"] {
            assert_eq!(checked(good).unwrap().origins, [good.to_ascii_lowercase()]);
        }
        for bad in ["*", "", "app.example.com", "https://", "https://a/", "https://a/b", "https://*.a", "://a", "null"]
        {
            let why = checked(bad).unwrap_err();
            assert!(why.starts_with("cors.origins: ") && why.contains("https://app.example.com"), "{bad}: {why}");
        }
    }
}
