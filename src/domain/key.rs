//! Credentials of users: API keys and session tokens, as the store keeps them.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::ids::{CredentialId, UserId};
use super::model;
use crate::clock::UnixMillis;

/// How a key that we mint begins. Once minted, one opens as much as the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyLook {
    #[default]
    Canonical,
    Clisonix,
}

impl KeyLook {
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Canonical => "pe-",
            Self::Clisonix => "clx_",
        }
    }
}

/// Characters after the prefix: 32 × 5.95 = 190 bits.
pub const KEY_RANDOM_LEN: usize = 32;

/// An API key's row, found by the MAC of its text; the text itself is not in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ApiKey {
    pub id: CredentialId,
    pub user: UserId,
    pub name: String,
    /// The first characters, to recognise it in a list: `pe-rqrF`.
    pub shown: String,
    pub created_at: UnixMillis,
    #[serde(default)]
    pub expires_at: Option<UnixMillis>,
    #[serde(default)]
    pub limits: KeyLimits,
    /// The key itself, sealed under the vault's key; absent in `hash_only` mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<String>,
    /// The key that takes this one's place; until this one expires, both open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotated_to: Option<CredentialId>,
}

/// What narrows a key below its user's rights. Empty lists narrow nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyLimits {
    #[serde(default)]
    pub scopes: Vec<String>,
    /// Names of models, each exact or ending in `*`.
    #[serde(default)]
    pub models: Vec<String>,
    #[serde(default)]
    pub cidrs: Vec<IpNet>,
    #[serde(default)]
    pub per_minute: Option<u32>,
}

/// Entries of one list of a key's limits, and bytes of one of them.
pub const MAX_LIMIT_ENTRIES: usize = 16;
pub const MAX_LIMIT_BYTES: usize = 64;

impl KeyLimits {
    /// What does not fit: each list has its bound, so that a key's row has one.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut list = |name: &str, entries: &[String], may_end_in_star: bool| {
            let fits = |entry: &String| {
                let stem = if may_end_in_star { entry.strip_suffix('*').unwrap_or(entry) } else { entry };
                (1..=MAX_LIMIT_BYTES).contains(&entry.len()) && stem.bytes().all(|b| b.is_ascii_graphic() && b != b'*')
            };
            if entries.len() > MAX_LIMIT_ENTRIES || !entries.iter().all(fits) {
                let star = if may_end_in_star { ", each may end in *" } else { "" };
                faults.push(format!(
                    "{name}: at most {MAX_LIMIT_ENTRIES} words of at most {MAX_LIMIT_BYTES} visible characters{star}"
                ));
            }
        };
        list("scopes", &self.scopes, false);
        list("models", &self.models, true);
        if self.cidrs.len() > MAX_LIMIT_ENTRIES {
            faults.push(format!("cidrs: at most {MAX_LIMIT_ENTRIES} networks"));
        }
        if self.per_minute == Some(0) {
            faults.push("per_minute: at least 1; leave it out for no limit of its own".into());
        }
        faults
    }

    pub fn allows_model(&self, name: &str) -> bool {
        model::allows(&self.models, name)
    }

    pub fn allows_scope(&self, scope: &str) -> bool {
        self.scopes.is_empty() || self.scopes.iter().any(|s| s == scope)
    }

    pub fn allows_address(&self, address: std::net::IpAddr) -> bool {
        self.cidrs.is_empty() || self.cidrs.iter().any(|net| net.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_lists_narrow_nothing_and_patterns_end_in_a_star() {
        let open = KeyLimits::default();
        assert!(open.allows_model("gpt-4o") && open.allows_scope("chat") && open.allows_address([9, 9, 9, 9].into()));
        let narrow = KeyLimits {
            scopes: vec!["chat".into()],
            models: vec!["gpt-4*".into(), "o1".into()],
            cidrs: vec!["10.0.0.0/8".parse().unwrap()],
            per_minute: None,
        };
        assert!(narrow.allows_model("gpt-4o-mini") && narrow.allows_model("o1") && !narrow.allows_model("o1-mini"));
        assert!(narrow.allows_scope("chat") && !narrow.allows_scope("images"));
        assert!(narrow.allows_address([10, 1, 2, 3].into()) && !narrow.allows_address([11, 0, 0, 1].into()));
    }
}
