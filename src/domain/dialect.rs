//! Dialects: the older systems whose clients go on calling in their own words.
//!
//! Owns which paths are whose, on which port, and which dialects are on. What the calls mean is in [`crate::compat`]; the
//! calls of PromptEnchanter are the canonical API and have no paths of their own.

/// An older system with paths of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dialect {
    Clisonix,
    Aiezzy,
    Usermgmt,
    Noteria,
}

/// A path that belongs to a dialect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    pub dialect: Dialect,
    /// The part of the path by which it was told. A route that says as much of the path, or more, is the operator's word.
    pub root: &'static str,
    /// For administrators: on the side port, and never on the public one.
    pub side_only: bool,
}

/// The health page of [`Dialect::Usermgmt`], on the public port where no route takes its path.
pub const HEALTH: &str = "/health";

impl Dialect {
    pub const ALL: [Self; 4] = [Self::Clisonix, Self::Aiezzy, Self::Usermgmt, Self::Noteria];

    /// As the config has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Clisonix => "clisonix",
            Self::Aiezzy => "aiezzy",
            Self::Usermgmt => "usermgmt",
            Self::Noteria => "noteria",
        }
    }

    /// Where its users call; each stands for itself and all below it.
    pub fn public_roots(self) -> &'static [&'static str] {
        match self {
            Self::Clisonix => &["/api/users"],
            Self::Aiezzy => &["/api/v2", "/api/oauth"],
            Self::Usermgmt => &["/api/v1/auth"],
            Self::Noteria => &["/noteria/login.php"],
        }
    }

    /// Where its administrators call.
    pub fn side_roots(self) -> &'static [&'static str] {
        match self {
            Self::Clisonix => &["/api/admin/users", "/api/admin/stats"],
            Self::Aiezzy => &["/api/admin/users", "/api/admin/dashboard", "/api/admin/usage"],
            Self::Usermgmt => &["/api/v1/admin"],
            Self::Noteria => &[
                "/noteria/generate_user_codes.php",
                "/noteria/admin_unique_codes.php",
                "/noteria/export_user_codes.php",
            ],
        }
    }
}

/// Whether a path is `root` or below it. No spelling in capitals gets by.
pub fn is_under(path: &[u8], root: &str) -> bool {
    path.get(..root.len()).is_some_and(|head| head.eq_ignore_ascii_case(root.as_bytes()))
        && matches!(path.get(root.len()), None | Some(b'/'))
}

/// Those that are on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dialects(u8);

impl Dialects {
    pub fn of(on: impl IntoIterator<Item = Dialect>) -> Self {
        Self(on.into_iter().fold(0, |set, dialect| set | 1 << (dialect as u8)))
    }

    pub fn has(self, dialect: Dialect) -> bool {
        self.0 & (1 << (dialect as u8)) != 0
    }

    /// Whose a path is among those that are on.
    pub fn claim(self, path: &[u8]) -> Option<Claim> {
        // Most calls go elsewhere, and need no more than this look.
        if self.0 == 0 || !matches!(path.get(1), Some(b'a' | b'A' | b'n' | b'N')) {
            return None;
        }
        let on = Dialect::ALL.into_iter().filter(|dialect| self.has(*dialect));
        let mut roots = on.flat_map(|dialect| {
            let public = dialect.public_roots().iter().map(move |root| (dialect, *root, false));
            public.chain(dialect.side_roots().iter().map(move |root| (dialect, *root, true)))
        });
        let (dialect, root, side_only) = roots.find(|(_, root, _)| is_under(path, root))?;
        Some(Claim { dialect, root, side_only })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_claimed_by_whoever_is_on() {
        let all = Dialects::of(Dialect::ALL);
        let claimed = |set: Dialects, path: &str| set.claim(path.as_bytes()).map(|c| (c.dialect.as_str(), c.side_only));
        assert_eq!(claimed(all, "/api/users/me"), Some(("clisonix", false)));
        assert_eq!(claimed(all, "/API/Users"), Some(("clisonix", false)));
        assert_eq!(claimed(all, "/api/users-of-mine"), None);
        assert_eq!(claimed(all, "/api/v1/admin/users"), Some(("usermgmt", true)));
        assert_eq!(claimed(all, "/api/admin/users/7/tier"), Some(("clisonix", true)));
        assert_eq!(claimed(all, "/noteria/login.php"), Some(("noteria", false)));
        for path in ["/api/chat", "/v1/users", "/", "", "/health", "/api"] {
            assert_eq!(claimed(all, path), None, "{path}");
        }
        let one = Dialects::of([Dialect::Aiezzy]);
        assert_eq!(claimed(one, "/api/admin/users/7/tier"), Some(("aiezzy", true)));
        assert_eq!(claimed(one, "/api/users/me"), None);
        assert_eq!(claimed(Dialects::default(), "/api/v2/login"), None);
    }

    #[test]
    fn no_root_lies_below_another_dialect_s_public_one() {
        for own in Dialect::ALL {
            for other in Dialect::ALL.into_iter().filter(|other| *other != own) {
                for root in own.public_roots().iter().chain(own.side_roots()) {
                    assert!(!other.public_roots().iter().any(|foreign| is_under(root.as_bytes(), foreign)), "{root}");
                }
            }
        }
    }
}
