//! `[oauth.NAME]`: identity providers, with what is known of Google and GitHub filled in.

use std::collections::BTreeMap;
use std::fmt;

use super::raw::{OauthKind, RawOauth};

/// A provider that has been checked.
#[derive(Clone, PartialEq, Eq)]
pub struct OauthProvider {
    pub kind: OauthKind,
    pub issuer: String,
    pub client_id: String,
    pub client_secret: String,
    pub scopes: Vec<String>,
    pub label: String,
    pub allow_registration: bool,
    pub private_network: bool,
    pub authorize_url: String,
    pub token_url: String,
    pub api_url: String,
}

impl fmt::Debug for OauthProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OauthProvider").field("kind", &self.kind).field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

pub(super) fn check(raw: BTreeMap<String, RawOauth>) -> Result<BTreeMap<String, OauthProvider>, String> {
    raw.into_iter().map(|(name, raw)| Ok((name.clone(), check_one(&name, raw)?))).collect()
}

fn check_one(name: &str, raw: RawOauth) -> Result<OauthProvider, String> {
    let named = |key: &str, why: &str| format!("oauth.{name}.{key}: {why}");
    let fits = (1..=32).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !fits {
        return Err(format!("oauth.{name}: a provider's name has 1 to 32 lower-case letters, digits or hyphens"));
    }
    let kind = raw.kind.unwrap_or(if name == "github" { OauthKind::Github } else { OauthKind::Oidc });
    let issuer = match (kind, raw.issuer, name) {
        (OauthKind::Github, Some(_), _) => {
            return Err(named("issuer", "GitHub has none; use authorize_url, token_url, api_url"));
        }
        (OauthKind::Github, None, _) => String::new(),
        (OauthKind::Oidc, Some(issuer), _) => issuer,
        (OauthKind::Oidc, None, "google") => "https://accounts.google.com".to_owned(),
        (OauthKind::Oidc, None, _) => return Err(named("issuer", "is needed, such as \"https://login.example.com\"")),
    };
    let github = |given: Option<String>, usual: &str| given.unwrap_or_else(|| usual.to_owned());
    let scopes: &[&str] = match kind {
        OauthKind::Oidc => &["openid", "email", "profile"],
        OauthKind::Github => &["read:user", "user:email"],
    };
    let label = raw.label.unwrap_or_else(|| match name {
        "google" => "Google".to_owned(),
        "github" => "GitHub".to_owned(),
        other => other.to_owned(),
    });
    let secret = raw.client_secret.read().map_err(|why| named("client_secret", &why))?;
    let provider = OauthProvider {
        kind,
        issuer,
        client_id: raw.client_id,
        client_secret: secret,
        scopes: raw.scopes.unwrap_or_else(|| scopes.iter().map(|scope| (*scope).to_owned()).collect()),
        label,
        allow_registration: raw.allow_registration,
        private_network: raw.private_network,
        authorize_url: github(raw.authorize_url, "https://github.com/login/oauth/authorize"),
        token_url: github(raw.token_url, "https://github.com/login/oauth/access_token"),
        api_url: github(raw.api_url, "https://api.github.com"),
    };
    if provider.client_id.is_empty() || provider.client_secret.is_empty() {
        return Err(named("client_id", "and client_secret may not be empty"));
    }
    let urls = [
        ("issuer", &provider.issuer),
        ("authorize_url", &provider.authorize_url),
        ("token_url", &provider.token_url),
        ("api_url", &provider.api_url),
    ];
    for (key, url) in urls.into_iter().filter(|(_, url)| !url.is_empty()) {
        let fits = url.starts_with("https://") || (provider.private_network && url.starts_with("http://"));
        if !fits {
            return Err(named(key, "must begin with https:// (http:// only with private_network = true)"));
        }
    }
    Ok(provider)
}

/// What providers need of the rest of the config.
pub(super) fn check_around(
    providers: &BTreeMap<String, OauthProvider>,
    base_url: Option<&str>,
    redirects: &[String],
) -> Result<(), String> {
    if !providers.is_empty() && base_url.is_none() {
        return Err("public_base_url: is needed with [oauth]: providers send browsers back to it".into());
    }
    for entry in redirects {
        let rest = entry.strip_prefix("https://").or_else(|| {
            let rest = entry.strip_prefix("http://")?;
            (rest.starts_with("localhost") || rest.starts_with("127.0.0.1") || rest.starts_with("[::1]"))
                .then_some(rest)
        });
        let fits = rest.is_some_and(|rest| {
            rest.contains('/') && !rest.starts_with('/') && !rest.trim_end_matches("/*").contains('*')
        });
        if !fits {
            return Err(format!(
                "accounts.redirects: \"{entry}\" must be https://host/path, exact or ending in /* (http:// for this machine only)"
            ));
        }
    }
    Ok(())
}
