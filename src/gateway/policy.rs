//! The part of the config that calls are judged by, ready for use: routes, prices, upstreams, limits.
//!
//! Owns the route table and its matching, also of other readings of a path ([`super::spelling`]). A reload builds a new policy
//! and swaps it in; calls in flight keep theirs. Never changes once built.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ipnet::IpNet;
use smallvec::SmallVec;

use super::checks::{Check, FORWARD};
use super::cost::{Cost, RouteCosts};
use super::http1::conn::ConnLimits;
use super::places::{PlaceBook, Places};
use super::rate::{Quota, RateQuotas};
use super::spelling::{FoldedPattern, fold, may_fold, read_loosely, two_readings};
use super::upstream::{Endpoint, Sockets, Upstream};
use crate::config::{
    Config, Durability, ForwardConfig, Limits, MissingUsage, OutgrownHold, PathPattern, PathReading, PriceList,
    RouteConfig,
};
use crate::domain::bodies::MAX_LOCAL_BODY;
use crate::domain::cookies::CookieRule;
use crate::domain::dialect::{Claim, Dialect, Dialects, HEALTH, is_under};
use crate::domain::model::allows;
use crate::domain::user::Role;
use crate::error::Reject;
use crate::telemetry::metrics::{Label, Metrics};

pub struct Policy {
    pub routes: RouteTable,
    pub upstreams: Vec<Arc<Upstream>>,
    /// The connections to all of them.
    pub sockets: Arc<Sockets>,
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
    /// The same for routes that differ in nothing but their paths.
    terms: usize,
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
        terms: usize,
        prices: &PriceList,
        upstream: Arc<Upstream>,
        places: Option<Arc<Places>>,
        metrics: &Metrics,
    ) -> Self {
        Self {
            pattern: config.pattern.clone(),
            terms,
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
        allows(&self.models, model)
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

/// Numbers what routes, or rules, ask for and cost: equal things have equal numbers.
#[derive(Default)]
struct Terms(Vec<String>);

impl Terms {
    fn number(&mut self, terms: String) -> usize {
        self.0.iter().position(|known| *known == terms).unwrap_or_else(|| {
            self.0.push(terms);
            self.0.len() - 1
        })
    }

    /// All that the config says of a route but its path. What is added to a route's config counts here by itself.
    fn of_route(&mut self, config: &RouteConfig) -> usize {
        // Places that no name joins are each route's own.
        let own_places = config.places.as_ref().is_some_and(|places| places.shared.is_none());
        let pattern = if own_places { config.pattern.clone() } else { Arc::default() };
        let path = PathPattern::Exact(String::new());
        self.number(format!("{:?}", RouteConfig { pattern, path, ..config.clone() }))
    }

    fn of_rule(&mut self, config: &ForwardConfig) -> usize {
        self.number(format!("{:?}", ForwardConfig { path: PathPattern::Exact(String::new()), ..config.clone() }))
    }
}

/// Routes by path: an exact one first, then the longest prefix. Of routes with the same path, the first whose method fits.
#[derive(Default)]
struct Paths {
    exact: HashMap<Vec<u8>, SmallVec<[Arc<Route>; 1]>>,
    /// Longest first; each ends in `/`.
    prefixes: Vec<(Vec<u8>, Arc<Route>)>,
    /// Paths are [`fold`]ed, and a prefix also stands for itself without its slash.
    folded: bool,
}

impl Paths {
    fn new(routes: &[(PathPattern, Arc<Route>)], folded: bool) -> Self {
        let mut paths = Self { folded, ..Self::default() };
        for (pattern, route) in routes {
            // A pattern that climbs matches no path anyhow.
            let spelled = |path: &str| match fold(path.as_bytes()) {
                Some(other) if folded => other.to_vec(),
                _ => path.as_bytes().to_vec(),
            };
            match pattern {
                PathPattern::Exact(path) => paths.exact.entry(spelled(path)).or_default().push(route.clone()),
                PathPattern::Prefix(prefix) => {
                    let mut prefix = spelled(prefix);
                    if prefix.last() != Some(&b'/') {
                        prefix.push(b'/');
                    }
                    paths.prefixes.push((prefix, route.clone()));
                }
            }
        }
        // Stable, so that the file's order decides between equals.
        paths.prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        paths
    }

    fn routes_of<'t, 'p>(&'t self, path: &'p [u8]) -> impl Iterator<Item = &'t Arc<Route>> + use<'t, 'p> {
        let begins = move |prefix: &[u8]| path.starts_with(prefix) || (self.folded && is_root(prefix, path));
        let prefixes = self.prefixes.iter().filter(move |(prefix, _)| begins(prefix)).map(|(_, route)| route);
        self.exact.get(path).into_iter().flatten().chain(prefixes)
    }

    /// Whether a path is a prefix but for its slash.
    fn has_root(&self, path: &[u8]) -> bool {
        self.prefixes.iter().any(|(prefix, _)| is_root(prefix, path))
    }
}

fn is_root(prefix: &[u8], path: &[u8]) -> bool {
    prefix.len() == path.len() + 1 && prefix.starts_with(path)
}

/// Methods whose names in other letter case are nobody's (RFC 9110, 9.1; RFC 5789): a server may take them for these.
const STANDARD_METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"];
/// What `Allow` lists where a route is for all methods. `TRACE` is for none: its answer is the request as the upstream got it,
/// our credential in it.
pub const ANY_METHOD: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// Whose call a request is.
pub struct RouteTable {
    plain: Paths,
    /// The same routes, for readings that fold.
    folded: Paths,
    /// No pattern changes when it is folded: then a path that does not fold either has but one reading.
    is_stable: bool,
    /// Methods that routes name.
    named_methods: Vec<String>,
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
    /// Of two that are answered, or refused, here.
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
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
/// What is left and used, for a key too; a route of the operator's that names this very path comes first.
const USAGE: &str = "/v1/usage";
/// The same calls below a dialect's root.
const CHECKED_IN_DIALECT: [(Dialect, &str, Check); 2] =
    [(Dialect::Usermgmt, "/verify-key", Check::VerifyKey), (Dialect::Usermgmt, "/log-message", Check::LogMessage)];
/// Paths of the side port: never served, and never passed on, by the public listener.
const SIDE_ONLY: [&str; 2] = ["/v1/admin-panel", "/v1/support"];
/// Logins that can bring what a verifier wants to see.
const FACTOR_LOGINS: [&str; 2] = ["/v1/users/login", "/noteria/login.php"];

impl RouteTable {
    fn new(routes: &[(PathPattern, Arc<Route>)], dialects: Dialects) -> Self {
        let (plain, folded) = (Paths::new(routes, false), Paths::new(routes, true));
        let same_prefixes = plain.prefixes.iter().zip(&folded.prefixes).all(|(a, b)| a.0 == b.0);
        let is_stable = same_prefixes && plain.exact.keys().all(|path| folded.exact.contains_key(path));
        let mut named_methods: Vec<String> = routes.iter().flat_map(|(_, route)| route.methods.clone()).collect();
        named_methods.sort_unstable();
        named_methods.dedup();
        Self { plain, folded, is_stable, named_methods, dialects }
    }

    /// Whose call it is; `path` as [`super::spelling::normalize`] left it.
    ///
    /// # Errors
    /// [`Reject::BadRequest`] for a path that is one route's as it stands and another's to an upstream that reads more into
    /// it: which of the two would be run, and should be paid, cannot be known here. And for a method that is another's but for
    /// its letter case.
    pub fn find(&self, path: &[u8], method: &str) -> Result<Surface<'_>, Reject> {
        check_method(method, &self.named_methods)?;
        if method == "TRACE" {
            return Ok(Surface::WrongMethod(self.allowed(path)));
        }
        let surface = self.surface(&self.plain, path, method);
        let loose = || read_loosely(path).map(|loose| self.surface(&self.plain, &loose, method));
        let Surface::Proxied(route) = &surface else {
            return if loose().is_some_and(|other| !surface.is_same(&other)) {
                Err(two_readings())
            } else {
                Ok(surface)
            };
        };
        if self.is_stable && !may_fold(path) && !self.plain.has_root(path) {
            return Ok(surface);
        }
        // An operator's own word for this very spelling, or for an upstream that tells spellings apart.
        if route.pattern.as_bytes() == path || route.upstream.config.paths == PathReading::Exact {
            return Ok(surface);
        }
        let same = |other: &Surface<'_>| matches!(other, Surface::Proxied(other) if other.terms == route.terms);
        let differs = loose().is_some_and(|other| !same(&other))
            || fold(path).is_none_or(|folded| !same(&self.surface(&self.folded, &folded, method)));
        if differs { Err(two_readings()) } else { Ok(surface) }
    }

    /// The methods of a path, as `Allow` lists them.
    pub fn allowed(&self, path: &[u8]) -> String {
        match self.surface(&self.plain, path, "TRACE") {
            Surface::WrongMethod(allowed) => allowed,
            _ => ANY_METHOD.to_owned(),
        }
    }

    fn surface<'t>(&'t self, paths: &'t Paths, path: &[u8], method: &str) -> Surface<'t> {
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
        if let Some(claim) = self.claim_in(paths, path) {
            return in_dialect(claim, path, method);
        }
        let asks_for_usage = matches!(method, "GET" | "HEAD") && path.eq_ignore_ascii_case(USAGE.as_bytes());
        if asks_for_usage && !paths.exact.contains_key(path) {
            return Surface::Checked(Check::Usage);
        }
        let mut allowed: Vec<&str> = Vec::new();
        for route in paths.routes_of(path) {
            if route.allows_method(method) {
                return Surface::Proxied(route);
            }
            allowed.extend(route.methods.iter().map(String::as_str).filter(|method| *method != "TRACE"));
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
        self.claim_in(&self.plain, path)
    }

    fn claim_in(&self, paths: &Paths, path: &[u8]) -> Option<Claim> {
        let claim = self.dialects.claim(path)?;
        let as_long = |prefix: &[u8]| prefix.strip_suffix(b"/").unwrap_or(prefix).len() >= claim.root.len();
        let routed = paths.exact.contains_key(path)
            || paths.prefixes.iter().any(|(prefix, _)| as_long(prefix) && path.starts_with(prefix));
        (!routed).then_some(claim)
    }
}

fn in_dialect(claim: Claim, path: &[u8], method: &str) -> Surface<'static> {
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

/// # Errors
/// [`Reject::BadRequest`] for a method that is a standard one, or one of `named`, but for its letter case: what a server takes it
/// for, and so which route should be asked, cannot be known here.
pub fn check_method(method: &str, named: &[String]) -> Result<(), Reject> {
    // Hardly any method has small letters.
    if !method.bytes().any(|byte| byte.is_ascii_lowercase()) {
        return Ok(());
    }
    let mut known = STANDARD_METHODS.into_iter().chain(named.iter().map(String::as_str));
    match known.find(|known| known.eq_ignore_ascii_case(method)) {
        Some(known) => Err(Reject::BadRequest(format!("Methods are written in capitals: {known}"))),
        None => Ok(()),
    }
}

/// Who may GET may HEAD (RFC 9110, 9.3.2): else a HEAD of this path would be some wider route's. Not where another route of the same
/// path is for HEAD; `others` says so of each.
fn with_head(methods: &[String], mut others: impl Iterator<Item = bool>) -> Vec<String> {
    let mut methods = methods.to_vec();
    if methods.iter().any(|method| method == "GET") && !others.any(|is_for_head| is_for_head) {
        methods.push("HEAD".to_owned());
    }
    methods
}

/// Whether methods that are named have HEAD among them.
fn is_for_head(methods: &[String]) -> bool {
    methods.iter().any(|method| method == "HEAD")
}

/// What checks cost, and which requests a proxy may let through.
pub struct Checks {
    pub key_cost: Arc<Cost>,
    pub free: Arc<Cost>,
    /// The first that fits counts: exact paths first, then the longest prefix.
    pub rules: Vec<ForwardRule>,
    /// Methods that rules name.
    pub named_methods: Vec<String>,
    pub forward_label: Label,
    pub forward_name: Arc<str>,
}

pub struct ForwardRule {
    pub path: PathPattern,
    /// For readings that fold.
    pub folded: FoldedPattern,
    /// The same for rules that differ in nothing but their paths.
    pub terms: usize,
    pub hosts: Vec<String>,
    pub methods: Vec<String>,
    pub cost: Arc<Cost>,
    pub scope: Option<String>,
    pub verified: bool,
}

impl Checks {
    fn new(config: &Config, metrics: &Metrics) -> Self {
        let mut terms = Terms::default();
        let mut rules: Vec<ForwardRule> = config
            .forward
            .iter()
            .map(|rule| ForwardRule {
                path: rule.path.clone(),
                folded: FoldedPattern::of(&rule.path),
                terms: terms.of_rule(rule),
                hosts: rule.hosts.clone(),
                methods: with_head(
                    &rule.methods,
                    config
                        .forward
                        .iter()
                        .filter(|other| other.path == rule.path)
                        .map(|other| is_for_head(&other.methods)),
                ),
                cost: Cost::new(rule.cost.iter(), metrics),
                scope: rule.scope.clone(),
                verified: rule.verified,
            })
            .collect();
        let mut named_methods: Vec<String> = rules.iter().flat_map(|rule| rule.methods.clone()).collect();
        named_methods.sort_unstable();
        named_methods.dedup();
        // Stable, so that the file's order decides between equals.
        rules.sort_by_key(|rule| std::cmp::Reverse(rule.path.weight()));
        Self {
            key_cost: Cost::new(config.verify_key_cost.iter(), metrics),
            free: Cost::new([].iter(), metrics),
            rules,
            named_methods,
            forward_label: metrics.route("(forward)"),
            forward_name: Arc::from("(forward)"),
        }
    }
}

impl Policy {
    /// `before`: whose endpoints keep their connections, and whose users their places.
    pub fn new(config: &Config, metrics: &Metrics, workers: usize, before: Option<&Self>) -> Self {
        let known = before.map(Self::endpoints).unwrap_or_default();
        let sockets = before.map(|before| before.sockets.clone()).unwrap_or_default();
        let upstreams: Vec<Arc<Upstream>> =
            config.upstreams.iter().map(|u| Arc::new(Upstream::new(u.clone(), workers, &known, &sockets))).collect();
        let (mut places, mut terms) = (PlaceBook::default(), Terms::default());
        let routes = config.routes.iter().filter_map(|route| {
            let upstream = upstreams.iter().find(|u| u.config.name == route.upstream)?.clone();
            let same_path = config.routes.iter().filter(|other| other.path == route.path);
            let methods = with_head(&route.methods, same_path.map(|other| is_for_head(&other.methods)));
            let route = RouteConfig { methods, ..route.clone() };
            let places = places.places_of(&route, before.map(|before| &before.places));
            let terms = terms.of_route(&route);
            let path = route.path.clone();
            Some((path, Arc::new(Route::new(&route, terms, &config.prices, upstream, places, metrics))))
        });
        let routes = RouteTable::new(&routes.collect::<Vec<_>>(), config.compat.dialects());
        let limits = &config.limits;
        Self {
            routes,
            upstreams,
            sockets,
            places,
            login_body: config.accounts.login_check.longest_body(),
            checks: Checks::new(config, metrics),
            conn_limits: ConnLimits {
                max_head_bytes: limits.max_head_bytes,
                header_timeout: limits.header_timeout.0,
                body_timeout: limits.body_timeout.0,
                slowest_body: limits.slowest_body_bytes_per_second,
                idle_timeout: limits.idle_timeout.0,
                write_timeout: limits.write_timeout.0,
                max_requests: limits.max_requests_per_connection,
            },
            rates: RateQuotas {
                address: Quota::per_minute(limits.per_ip_per_minute),
                key: Quota::per_minute(limits.per_key_per_minute),
                user: Quota::per_minute(limits.per_user_per_minute),
                refusals: Quota::per_minute(limits.refusals()),
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

    /// Closes the connections to upstreams that nobody uses at the moment.
    pub fn close_idle_upstreams(&self) {
        self.upstreams.iter().flat_map(|upstream| &upstream.endpoints).for_each(|endpoint| endpoint.close_idle());
    }

    /// Whether this user's conversations are kept out of the journal. Names are the same in any case.
    pub fn excludes(&self, username: &str) -> bool {
        !self.journal_excludes.is_empty() && self.journal_excludes.contains(&username.to_lowercase())
    }

    /// The most of a local call's body. `path` as [`super::spelling::normalize`] left it.
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
    use crate::gateway::spelling::normalize;

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
            cost = { conversations = 1 }
            [[routes]]
            path = "/v1/models"
            methods = ["GET"]
            upstream = "a"
        "#;
        policy_of(text)
    }

    fn policy_of(text: &str) -> Policy {
        let raw: RawConfig = toml::from_str(text).unwrap();
        Policy::new(&Config::from_raw(raw).unwrap(), &Metrics::new(0), 1, None)
    }

    fn matched(path: &str, method: &str) -> String {
        matched_in(&policy(), path, method)
    }

    fn matched_in(policy: &Policy, path: &str, method: &str) -> String {
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
        assert_eq!(matched("/v1/models", "HEAD"), "/v1/models");
        let one = |methods: &str| {
            policy_of(&format!(
                "[[upstreams]]\nname = \"a\"\nendpoints = [\"http://127.0.0.1:1\"]\n\
                 [[routes]]\npath = \"/v1/models\"\nupstream = \"a\"\nmethods = {methods}\n"
            ))
        };
        assert_eq!(matched_in(&one("[\"GET\"]"), "/v1/models", "POST"), "only GET, HEAD");
        assert_eq!(matched_in(&one("[\"POST\"]"), "/v1/models", "TRACE"), "only POST");
        assert_eq!(matched_in(&one("[]"), "/v1/models", "TRACE"), format!("only {ANY_METHOD}"));
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
        // Or would be, if it folded case, or dots and blanks at the end.
        for path in [
            "/V1/chat",
            "/v1/Models",
            "/v1/models/",
            "/v1/models.",
            "/v1/models%20",
            "/v1/models%2F",
            "/v1",
            "/v1/%2575sers/login",
            "/v1/admin-panel.",
            "/v1/%252e%252e/x",
        ] {
            assert_eq!(matched(path, "GET"), "two things", "{path}");
        }
        // And what is the same route's either way.
        for path in [
            "/v1/models/org%2Fname",
            "/v1/Chat/",
            "/v1/chat.",
            "/v1/a;b=c/d",
            "/v1/%E4%BD%A0",
            "/v1/a%20b",
            "/v1/x%3By",
        ] {
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
        assert_eq!(matched("/v1/usage", "GET"), "checked");
        assert_eq!(matched("/v1/usage", "POST"), "/v1/*", "another call of the upstream's");
    }

    #[test]
    fn a_route_that_names_the_path_of_usage_has_it() {
        let text = "[[upstreams]]\nname = \"a\"\nendpoints = [\"http://127.0.0.1:1\"]\n\
            [[routes]]\npath = \"/v1/usage\"\nupstream = \"a\"\n";
        let config = Config::from_raw(toml::from_str(text).unwrap()).unwrap();
        let policy = Policy::new(&config, &Metrics::new(0), 1, None);
        assert!(matches!(policy.routes.find(b"/v1/usage", "GET"), Ok(Surface::Proxied(_))));
    }
}
