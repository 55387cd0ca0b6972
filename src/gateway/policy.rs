//! The part of the config that calls are judged by, ready for use: routes, prices, upstreams, limits.
//!
//! Owns the route table and its matching. A reload builds a new policy and swaps it in; calls in flight keep theirs. Never
//! changes once built.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ipnet::IpNet;
use smallvec::SmallVec;

use super::checks::{Check, FORWARD};
use super::cost::{Cost, RouteCosts};
use super::http1::conn::ConnLimits;
use super::places::{PlaceBook, Places};
use super::rate::{Quota, RateQuotas};
use super::upstream::{Endpoint, Upstream};
use crate::config::{Config, Durability, Limits, MissingUsage, OutgrownHold, PathPattern, PriceList, RouteConfig};
use crate::domain::bodies::MAX_LOCAL_BODY;
use crate::domain::cookies::CookieRule;
use crate::domain::dialect::{Claim, Dialect, Dialects, HEALTH, is_under};
use crate::domain::key::matches_pattern;
use crate::domain::user::Role;
use crate::error::Reject;
use crate::telemetry::metrics::{Label, Metrics};

pub struct Policy {
    pub routes: RouteTable,
    pub upstreams: Vec<Arc<Upstream>>,
    pub places: PlaceBook,
    /// The most of the body of a login that brings factors.
    login_body: usize,
    pub limits: Limits,
    pub conn_limits: ConnLimits,
    pub checks: Checks,
    pub rates: RateQuotas,
    pub trusted_proxies: Vec<IpNet>,
    /// Where sessions in cookies count.
    pub cookies: Option<CookieRule>,
    pub email_verification: bool,
    pub durability: Durability,
    pub missing_usage: MissingUsage,
    pub outgrown_hold: OutgrownHold,
    /// `None`: the journal is off.
    pub journal_bytes: Option<usize>,
    /// Whether what PromptEnchanter's requests say of their kind goes into the record.
    pub notes_r_type: bool,
    /// Users whose conversations are not kept, in lower case.
    journal_excludes: HashSet<String>,
    /// The label of calls that reached no route.
    pub no_route: Label,
    pub no_name: Arc<str>,
    pub local_route: Label,
    pub local_name: Arc<str>,
}

/// A route, with what it costs.
pub struct Route {
    pub pattern: Arc<str>,
    pub label: Label,
    pub methods: Vec<String>,
    pub upstream: Arc<Upstream>,
    pub costs: RouteCosts,
    pub scope: Option<String>,
    pub models: Vec<String>,
    pub verified: bool,
    /// Whether guests may, and everybody else.
    pub roles: RoleSet,
    pub log: bool,
    pub include_usage: bool,
    pub compression: bool,
    pub preserve_host: bool,
    pub assumed_output_tokens: u64,
    /// Where users need one.
    pub places: Option<Arc<Places>>,
}

impl Route {
    fn new(
        config: &RouteConfig,
        prices: &PriceList,
        upstream: Arc<Upstream>,
        places: Option<Arc<Places>>,
        metrics: &Metrics,
    ) -> Self {
        Self {
            pattern: config.pattern.clone(),
            label: metrics.route(&config.pattern),
            methods: config.methods.clone(),
            upstream,
            costs: RouteCosts::new(&config.cost, config.prices.then_some(prices), metrics),
            scope: config.scope.clone(),
            models: config.models.clone(),
            verified: config.verified,
            roles: RoleSet::of(&config.roles),
            log: config.log,
            include_usage: config.include_usage,
            compression: config.compression,
            preserve_host: config.preserve_host,
            assumed_output_tokens: config.assumed_output_tokens,
            places,
        }
    }

    pub fn allows_method(&self, method: &str) -> bool {
        self.methods.is_empty() || self.methods.iter().any(|m| m == method)
    }

    pub fn allows_model(&self, model: &str) -> bool {
        self.models.is_empty() || self.models.iter().any(|pattern| matches_pattern(pattern, model))
    }
}

/// Roles, one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleSet(u8);

impl RoleSet {
    pub fn of(roles: &[Role]) -> Self {
        Self(roles.iter().fold(0, |set, role| set | 1 << (*role as u8)))
    }

    pub fn has(self, role: Role) -> bool {
        self.0 & (1 << (role as u8)) != 0
    }
}

/// Routes by path: an exact one first, then the longest prefix. Of routes with the same path, the first whose method fits.
pub struct RouteTable {
    exact: HashMap<String, SmallVec<[Arc<Route>; 1]>>,
    /// Longest first.
    prefixes: Vec<(String, Arc<Route>)>,
    /// Older systems whose paths are answered here.
    dialects: Dialects,
}

/// Whose call it is, by its path.
pub enum Surface<'a> {
    Proxied(&'a Arc<Route>),
    Local,
    /// A local call whose caller is judged, and pays, as one whose call is passed on.
    Checked(Check),
    /// A proxy asks about a request of its own.
    ForwardCheck,
    NotFound,
    /// On the side port, and never here.
    OnSidePort,
    /// There are routes, but for these methods only.
    WrongMethod(String),
}

impl Surface<'_> {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Proxied(a), Self::Proxied(b)) => Arc::ptr_eq(a, b),
            (Self::Checked(a), Self::Checked(b)) => a == b,
            (Self::WrongMethod(a), Self::WrongMethod(b)) => a == b,
            (a, b) => std::mem::discriminant(a) == std::mem::discriminant(b),
        }
    }
}

/// Paths that this process answers on the public listener.
const LOCAL: [&str; 4] = ["/v1/users", "/v1/oauth", "/v1/auth", "/.well-known/jwks.json"];
/// Those of them that are made with a user's key.
const CHECKED: [(&str, Check); 2] =
    [("/v1/auth/verify-key", Check::VerifyKey), ("/v1/auth/log-message", Check::LogMessage)];
/// The same calls below a dialect's root.
const CHECKED_IN_DIALECT: [(Dialect, &str, Check); 2] =
    [(Dialect::Usermgmt, "/verify-key", Check::VerifyKey), (Dialect::Usermgmt, "/log-message", Check::LogMessage)];
/// Paths of the side port: never served, and never passed on, by the public listener.
const SIDE_ONLY: [&str; 2] = ["/v1/admin-panel", "/v1/support"];
/// Logins that can bring what a verifier wants to see.
const FACTOR_LOGINS: [&str; 2] = ["/v1/users/login", "/noteria/login.php"];

impl RouteTable {
    fn new(routes: impl IntoIterator<Item = (PathPattern, Arc<Route>)>, dialects: Dialects) -> Self {
        let mut table = Self { exact: HashMap::new(), prefixes: Vec::new(), dialects };
        for (pattern, route) in routes {
            match pattern {
                PathPattern::Exact(path) => table.exact.entry(path).or_default().push(route),
                PathPattern::Prefix(prefix) => table.prefixes.push((prefix, route)),
            }
        }
        // Stable, so that the file's order decides between equals.
        table.prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        table
    }

    /// Whose call it is; `path` as [`normalize`] left it.
    ///
    /// # Errors
    /// [`Reject::BadRequest`] for a path that is one route's as it stands and another's to an upstream that reads more into
    /// it: which of the two would be run, and should be paid, cannot be known here.
    pub fn find(&self, path: &[u8], method: &str) -> Result<Surface<'_>, Reject> {
        let surface = self.surface(path, method);
        match read_loosely(path) {
            Some(loose) if !surface.is_same(&self.surface(&loose, method)) => Err(two_readings()),
            _ => Ok(surface),
        }
    }

    fn surface(&self, path: &[u8], method: &str) -> Surface<'_> {
        if SIDE_ONLY.iter().any(|root| is_under(path, root)) {
            return Surface::OnSidePort;
        }
        if let Some((_, check)) = CHECKED.iter().find(|(known, _)| path.eq_ignore_ascii_case(known.as_bytes())) {
            return if method == "POST" { Surface::Checked(*check) } else { Surface::WrongMethod("POST".into()) };
        }
        if is_under(path, FORWARD) {
            return Surface::ForwardCheck;
        }
        if LOCAL.iter().any(|root| is_under(path, root)) {
            return Surface::Local;
        }
        if let Some(claim) = self.claim(path) {
            return self.in_dialect(claim, path, method);
        }
        let mut allowed: Vec<&str> = Vec::new();
        let exact = std::str::from_utf8(path).ok().and_then(|path| self.exact.get(path)).into_iter().flatten();
        let prefixes = self.prefixes.iter().filter(|(prefix, _)| path.starts_with(prefix.as_bytes())).map(|(_, r)| r);
        for route in exact.chain(prefixes) {
            if route.allows_method(method) {
                return Surface::Proxied(route);
            }
            allowed.extend(route.methods.iter().map(String::as_str));
        }
        if allowed.is_empty() {
            let is_health = self.dialects.has(Dialect::Usermgmt) && path == HEALTH.as_bytes();
            return if is_health { Surface::Local } else { Surface::NotFound };
        }
        allowed.sort_unstable();
        allowed.dedup();
        Surface::WrongMethod(allowed.join(", "))
    }

    /// The dialect that a path belongs to, unless a route of the operator's says as much of the path.
    pub fn claim(&self, path: &[u8]) -> Option<Claim> {
        let claim = self.dialects.claim(path)?;
        let exact = std::str::from_utf8(path).is_ok_and(|path| self.exact.contains_key(path));
        let as_long = |prefix: &str| prefix.trim_end_matches('/').len() >= claim.root.len();
        let routed =
            exact || self.prefixes.iter().any(|(prefix, _)| as_long(prefix) && path.starts_with(prefix.as_bytes()));
        (!routed).then_some(claim)
    }

    fn in_dialect(&self, claim: Claim, path: &[u8], method: &str) -> Surface<'_> {
        if claim.side_only {
            return Surface::OnSidePort;
        }
        let call = path.get(claim.root.len()..).unwrap_or_default();
        let check = CHECKED_IN_DIALECT
            .iter()
            .find(|(dialect, end, _)| *dialect == claim.dialect && call.eq_ignore_ascii_case(end.as_bytes()));
        match check {
            Some((.., check)) if method == "POST" => Surface::Checked(*check),
            Some(_) => Surface::WrongMethod("POST".into()),
            None => Surface::Local,
        }
    }
}

/// The path as an upstream may read it: needless escapes resolved and slashes merged, so that no spelling of a path gets
/// by another route's price. A path that climbs (`..`) is refused whatever its spelling.
///
/// # Errors
/// [`Reject::BadRequest`].
pub fn normalize(path: &[u8]) -> Result<Cow<'_, [u8]>, Reject> {
    let mut previous = b' ';
    let plain = path.iter().all(|byte| {
        let suspicious = matches!(byte, b'%' | b'\\') || (previous == b'/' && matches!(byte, b'/' | b'.'));
        previous = *byte;
        !suspicious
    });
    if plain {
        return Ok(Cow::Borrowed(path));
    }
    let malformed = || Reject::BadRequest("The path is malformed".into());
    let mut resolved = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, tail) = match first {
            b'%' => {
                let digits = tail.get(..2).and_then(|d| std::str::from_utf8(d).ok()).ok_or_else(malformed)?;
                let byte = u8::from_str_radix(digits, 16).map_err(|_| malformed())?;
                if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
                    (byte, &tail[2..])
                } else if byte < 0x20 || byte == 0x7f {
                    return Err(malformed());
                } else {
                    // Stays escaped, in one spelling.
                    resolved.extend_from_slice(format!("%{byte:02X}").as_bytes());
                    rest = &tail[2..];
                    continue;
                }
            }
            other => (other, tail),
        };
        if !(byte == b'/' && resolved.last() == Some(&b'/')) {
            resolved.push(byte);
        }
        rest = tail;
    }
    let climbs = |segment: &[u8]| {
        let name = segment.split(|b| *b == b';').next().unwrap_or_default();
        name == b"." || name == b".."
    };
    // An escaped or backward slash separates segments for some upstreams.
    let text = String::from_utf8_lossy(&resolved).replace("%2F", "/").replace("%5C", "/").replace('\\', "/");
    if text.as_bytes().split(|b| *b == b'/').any(climbs) {
        return Err(Reject::BadRequest("The path may not have . or .. in it".into()));
    }
    Ok(Cow::Owned(resolved))
}

/// What a path that can be read in two ways is answered, where it matters.
pub fn two_readings() -> Reject {
    Reject::BadRequest("The path means two things: send it without escaped or backward slashes, and without ;".into())
}

/// A path as an upstream may read it that resolves escaped and backward slashes, and cuts off what follows a `;` in each part.
/// `None` when that changes nothing.
pub fn read_loosely(path: &[u8]) -> Option<Vec<u8>> {
    memchr::memchr3(b'%', b'\\', b';', path)?;
    let (mut loose, mut rest, mut is_cut) = (Vec::with_capacity(path.len()), path, false);
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, tail) = match (first, tail.get(..2)) {
            (b'%', Some(b"2F" | b"5C")) => (b'/', &tail[2..]),
            (b'%', Some(b"3B")) => (b';', &tail[2..]),
            (b'\\', _) => (b'/', tail),
            (other, _) => (other, tail),
        };
        rest = tail;
        is_cut = match byte {
            b'/' => false,
            b';' => true,
            _ => is_cut,
        };
        let is_double = byte == b'/' && loose.last() == Some(&b'/');
        if !is_cut && !is_double {
            loose.push(byte);
        }
    }
    (loose != path).then_some(loose)
}

/// What checks cost, and which requests a proxy may let through.
pub struct Checks {
    pub key_cost: Arc<Cost>,
    pub free: Arc<Cost>,
    /// The first that fits counts: exact paths first, then the longest prefix.
    pub rules: Vec<ForwardRule>,
    pub forward_label: Label,
    pub forward_name: Arc<str>,
}

pub struct ForwardRule {
    pub path: PathPattern,
    pub hosts: Vec<String>,
    pub methods: Vec<String>,
    pub cost: Arc<Cost>,
    pub scope: Option<String>,
    pub verified: bool,
}

impl Checks {
    fn new(config: &Config, metrics: &Metrics) -> Self {
        let mut rules: Vec<ForwardRule> = config
            .forward
            .iter()
            .map(|rule| ForwardRule {
                path: rule.path.clone(),
                hosts: rule.hosts.clone(),
                methods: rule.methods.clone(),
                cost: Cost::new(rule.cost.iter(), metrics),
                scope: rule.scope.clone(),
                verified: rule.verified,
            })
            .collect();
        // Stable, so that the file's order decides between equals.
        rules.sort_by_key(|rule| std::cmp::Reverse(rule.path.weight()));
        Self {
            key_cost: Cost::new(config.verify_key_cost.iter(), metrics),
            free: Cost::new([].iter(), metrics),
            rules,
            forward_label: metrics.route("(forward)"),
            forward_name: Arc::from("(forward)"),
        }
    }
}

impl Policy {
    /// `before`: whose endpoints keep their connections, and whose users their places.
    pub fn new(config: &Config, metrics: &Metrics, workers: usize, before: Option<&Self>) -> Self {
        let known = before.map(Self::endpoints).unwrap_or_default();
        let upstreams: Vec<Arc<Upstream>> =
            config.upstreams.iter().map(|u| Arc::new(Upstream::new(u.clone(), workers, &known))).collect();
        let mut places = PlaceBook::default();
        let routes = config.routes.iter().filter_map(|route| {
            let upstream = upstreams.iter().find(|u| u.config.name == route.upstream)?;
            let places = places.places_of(route, before.map(|before| &before.places));
            Some((route.path.clone(), Arc::new(Route::new(route, &config.prices, upstream.clone(), places, metrics))))
        });
        let routes = RouteTable::new(routes, config.compat.dialects());
        let limits = &config.limits;
        Self {
            routes,
            upstreams,
            places,
            login_body: config.accounts.login_check.longest_body(),
            checks: Checks::new(config, metrics),
            conn_limits: ConnLimits {
                max_head_bytes: limits.max_head_bytes,
                header_timeout: limits.header_timeout.0,
                body_timeout: limits.body_timeout.0,
                idle_timeout: limits.idle_timeout.0,
                write_timeout: limits.write_timeout.0,
                max_requests: limits.max_requests_per_connection,
            },
            rates: RateQuotas {
                address: Quota::per_minute(limits.per_ip_per_minute),
                key: Quota::per_minute(limits.per_key_per_minute),
                user: Quota::per_minute(limits.per_user_per_minute),
            },
            limits: limits.clone(),
            trusted_proxies: config.access.trusted_proxies.clone(),
            cookies: config.cookie_rule(),
            email_verification: config.accounts.email_verification,
            durability: config.ledger.durability,
            missing_usage: config.ledger.missing_usage,
            outgrown_hold: config.ledger.outgrown_hold,
            journal_bytes: config.journal.enabled.then_some(config.journal.max_message_bytes),
            notes_r_type: config.compat.promptenchanter,
            journal_excludes: config.journal.exclude_users.iter().map(|name| name.to_lowercase()).collect(),
            no_route: metrics.route("(none)"),
            no_name: Arc::from("(none)"),
            local_route: metrics.route("(local)"),
            local_name: Arc::from("(local)"),
        }
    }

    /// Whether this user's conversations are kept out of the journal. Names are the same in any case.
    pub fn excludes(&self, username: &str) -> bool {
        !self.journal_excludes.is_empty() && self.journal_excludes.contains(&username.to_lowercase())
    }

    /// The most of a local call's body. `path` as [`normalize`] left it.
    pub fn longest_local_body(&self, path: &[u8]) -> u64 {
        let brings_factors = FACTOR_LOGINS.iter().any(|login| path.eq_ignore_ascii_case(login.as_bytes()));
        (if brings_factors { self.login_body } else { MAX_LOCAL_BODY }) as u64
    }

    fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        self.upstreams.iter().flat_map(|u| u.endpoints.iter().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RawConfig;

    fn policy() -> Policy {
        let text = r#"
            [[upstreams]]
            name = "a"
            endpoints = ["http://127.0.0.1:1"]
            [[routes]]
            path = "/*"
            upstream = "a"
            [[routes]]
            path = "/v1/*"
            upstream = "a"
            [[routes]]
            path = "/v1/models"
            methods = ["GET"]
            upstream = "a"
        "#;
        let raw: RawConfig = toml::from_str(text).unwrap();
        Policy::new(&Config::from_raw(raw).unwrap(), &Metrics::new(0), 1, None)
    }

    fn matched(path: &str, method: &str) -> String {
        let policy = policy();
        let Ok(path) = normalize(path.as_bytes()) else { return "refused".into() };
        let Ok(surface) = policy.routes.find(&path, method) else { return "two things".into() };
        match surface {
            Surface::Proxied(route) => route.pattern.to_string(),
            Surface::Local => "local".into(),
            Surface::NotFound => "not found".into(),
            Surface::OnSidePort => "on the side port".into(),
            Surface::Checked(_) | Surface::ForwardCheck => "checked".into(),
            Surface::WrongMethod(allowed) => format!("only {allowed}"),
        }
    }

    #[test]
    fn the_most_exact_route_wins() {
        assert_eq!(matched("/v1/models", "GET"), "/v1/models");
        assert_eq!(matched("/v1/models", "POST"), "/v1/*");
        assert_eq!(matched("/v1/chat", "POST"), "/v1/*");
        assert_eq!(matched("/v10/chat", "POST"), "/*");
        let only_get = RouteTable::new(
            policy().routes.exact.into_iter().map(|(path, mut routes)| (PathPattern::Exact(path), routes.remove(0))),
            Dialects::default(),
        );
        assert!(matches!(only_get.surface(b"/v1/models", "POST"), Surface::WrongMethod(allowed) if allowed == "GET"));
    }

    #[test]
    fn no_spelling_of_a_path_gets_by_its_route() {
        for path in ["//v1/chat", "/%761/chat", "/v1//chat", "/v%31/chat"] {
            assert_eq!(matched(path, "POST"), "/v1/*", "{path}");
        }
        for path in [
            "/free/../v1/chat",
            "/free/%2e%2e/v1/chat",
            "/./v1",
            "/free/..;a/v1",
            "/a/%2e%2e%2fv1",
            "/a%5c..%5cv1",
            "/a\\..\\v1",
            "/%zz",
            "/%00",
            "/a/%",
        ] {
            assert_eq!(matched(path, "POST"), "refused", "{path}");
        }
        // What is one route's for one upstream and another's for the next.
        for path in [
            "/v1%2Fmodels",
            "/v1%2fchat",
            "/v1%5Cchat",
            "/v1\\models",
            "/v1/models;x",
            "/v1/models%3Bx",
            "/v1/;a/models",
            "/v1%2Fadmin-panel/users",
            "/v1/admin-panel%2Fusers",
            "/v1/admin-panel;x/users",
            "/v1%2Fusers/login",
        ] {
            assert_eq!(matched(path, "GET"), "two things", "{path}");
        }
        // And what is the same route's either way.
        for path in ["/v1/models/org%2Fname", "/v1/models%2F", "/v1/a;b=c/d", "/v1/%E4%BD%A0", "/v1/a%20b", "/v1/x%3By"]
        {
            assert_eq!(matched(path, "GET"), "/v1/*", "{path}");
        }
        assert_eq!(matched("/v1/..file", "GET"), "/v1/*");
    }

    #[test]
    fn the_side_port_is_out_of_reach() {
        for path in [
            "/v1/admin-panel/users",
            "/v1/admin-panel",
            "//v1/admin-panel/login",
            "/v1/%61dmin-panel/users",
            "/V1/Admin-Panel/users",
            "/v1/support/users",
        ] {
            assert_eq!(matched(path, "GET"), "on the side port", "{path}");
        }
        assert_eq!(matched("/v1/users/login", "POST"), "local");
        assert_eq!(matched("/v1/%75sers/login", "POST"), "local");
        assert_eq!(matched("/v1/users-of-mine", "POST"), "/v1/*");
        assert_eq!(matched("/v1/%61uth/Verify-Key", "POST"), "checked");
        assert_eq!(matched("/v1/auth/verify-key", "GET"), "only POST");
        assert_eq!(matched("/v1/auth/forward", "PATCH"), "checked");
        assert_eq!(matched("/v1/auth/forward/any/path", "GET"), "checked");
        assert_eq!(matched("/v1/auth/forwarded", "GET"), "local");
    }
}
