//! Checks: a program that stands before the gateway, or an app behind another proxy, asks whether a call may go.
//!
//! Owns `/v1/auth/forward`, for nginx `auth_request`, Traefik `forwardAuth` and Envoy `ext_authz` over HTTP, and the judging of
//! callers of `/v1/auth/verify-key`, `/v1/auth/log-message` and `/v1/usage`: the same steps in the same order as for a call that is passed
//! on. Never says more of a user than an upstream is told, and never repeats a header that the client sent.

use std::borrow::Cow;
use std::sync::Arc;

use super::authenticate::Caller;
use super::authorize;
use super::body::Served;
use super::buffers::Full;
use super::client_ip;
use super::cost::Cost;
use super::forward::{self, Waited};
use super::http1::conn::ClientConn;
use super::http1::head::RequestHead;
use super::http1::name::is_same;
use super::pipeline::{CALL_BYTES, MAX_DISCARD, Worker, owners, read_whole_body};
use super::policy::{ANY_METHOD, ForwardRule, Policy, check_method};
use super::rate::{self, Taken};
use super::record::Record;
use super::refusal;
use super::spelling::{fold, normalize, read_loosely, two_readings};
use crate::accounts::checks::Checked;
use crate::actors::user::hold::Hold;
use crate::actors::user::once::Ended;
use crate::config::{Durability, PathPattern};
use crate::domain::price::Usage;
use crate::error::Reject;
use crate::telemetry::metrics::Outcome;

/// Where proxies ask; Envoy appends the path it asks for.
pub const FORWARD: &str = "/v1/auth/forward";

/// Looking at a key needs no body; some clients send one all the same.
const MAX_VERIFY_BODY: usize = 16 << 10;

/// A local call that is made with a user's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// The key is looked at, and pays.
    VerifyKey,
    /// A conversation that was held elsewhere is handed in.
    LogMessage,
    /// Somebody asks what they have left.
    Usage,
}

/// Whether a refusal goes to an nginx, which takes nothing but 401 and 403 from its `auth_request`.
pub fn asks_for_nginx(head: &RequestHead) -> bool {
    let query = head.target().get(head.path().len()..).unwrap_or_default();
    let is_ours = normalize(head.path()).is_ok_and(|path| *path == *FORWARD.as_bytes());
    is_ours && query.strip_prefix(b"?").is_some_and(|q| q.split(|b| *b == b'&').any(|pair| pair == b"mode=nginx"))
}

/// A caller who may, with the hold for what it costs.
struct Admitted {
    caller: Caller,
    hold: Hold,
}

impl Worker {
    /// Everything that is asked of a caller before his call costs anything, and then what it costs.
    fn admit(
        &self,
        head: &RequestHead,
        policy: &Policy,
        terms: Terms<'_>,
        record: &mut Record<'_>,
        taken: &mut Taken,
    ) -> Result<Admitted, Reject> {
        let shared = &*self.shared;
        // No cookies: whoever asks is an app or a proxy, and its pages are not ours.
        let caller = shared.auth.authenticate(head, record.client, record.at, record.started, None, &self.shard)?;
        record.user = Some(caller.standing.id);
        let own_rate = caller.limits().and_then(|limits| limits.per_minute);
        rate::check_caller(&shared.rates, &policy.rates, &caller.mac, own_rate, &caller.actor, record.started, taken)?;
        authorize::check_standing(&caller, record.client, policy, terms.verified, terms.scope)?;
        if terms.key_only && caller.limits().is_none() {
            return Err(Reject::Unauthenticated);
        }
        if shared.committer.has_failed() {
            return Err(Reject::StoreUnavailable);
        }
        if shared.committer.is_overloaded() {
            return Err(Reject::Overloaded("Too many debits wait for the disk"));
        }
        let amounts = terms.cost.amounts(&Usage::default());
        let (actor, meters) = (caller.actor.clone(), terms.cost.meters.clone());
        let hold = Hold::reserve(actor, meters, amounts, policy.limits.in_flight_per_user, record.at, None)?;
        for (label, amount) in terms.cost.labels.iter().zip(hold.amounts()) {
            self.shard.reserved(*label, *amount);
        }
        Ok(Admitted { caller, hold })
    }

    /// Invariant 2 holds here too: who is told that he may has paid, on the disk.
    async fn paid(
        &self,
        client: &mut ClientConn,
        policy: &Policy,
        cost: &Cost,
        hold: &mut Hold,
    ) -> Result<Waited, Reject> {
        let must_wait = policy.durability == Durability::BeforeResponse && !cost.meters.is_empty();
        if must_wait && forward::wait_durable(self, client, hold).await? == Waited::ClientGone {
            // Nobody was told anything.
            hold.refund();
            return Ok(Waited::ClientGone);
        }
        Ok(Waited::Durable)
    }

    fn settle(&self, cost: &Cost, hold: &mut Hold) {
        let paid = hold.settle(&cost.amounts(&Usage::default()), Ended::Whole(None));
        for (label, amount) in cost.labels.iter().zip(&paid) {
            self.shard.spent(*label, *amount);
        }
    }

    /// Answers a proxy that asks whether a request may go on.
    ///
    /// # Errors
    /// As for a call that is passed on; [`Reject::Forbidden`] when headers disagree about which request it is, when no rule
    /// allows it, and when rules must be asked but a stranger describes the request.
    pub(super) async fn forward_check(
        &self,
        client: &mut ClientConn,
        head: &RequestHead,
        path: &[u8],
        policy: &Policy,
        record: &mut Record<'_>,
        taken: &mut Taken,
    ) -> Result<Served, Reject> {
        (record.route, record.route_name) = (policy.checks.forward_label, policy.checks.forward_name.clone());
        let asked = Asked::read(head, path)?;
        let rule = policy.checks.rule_of(&asked, client_ip::is_trusted(record.peer.ip(), &policy.trusted_proxies))?;
        let (cost, scope, verified) = match rule {
            Some(rule) => (&rule.cost, rule.scope.as_deref(), rule.verified),
            None => (&policy.checks.free, None, false),
        };
        let terms = Terms { cost, scope, verified, key_only: false };
        let Admitted { caller, mut hold } = self.admit(head, policy, terms, record, taken)?;
        if self.paid(client, policy, cost, &mut hold).await? == Waited::ClientGone {
            record.outcome = Outcome::ClientGone;
            return Ok(Served::Abort);
        }
        self.settle(cost, &mut hold);
        // An Envoy may send the beginning of the body along.
        client.begin_body(head.framing, head.expects_continue, u64::MAX);
        record.body_begun = true;
        let close = !head.keep_alive
            || self.shared.is_draining()
            || (head.expects_continue && !client.body_is_done())
            || !client.can_skip_body(head.framing, MAX_DISCARD);
        let mut out = client.rest_of_continue().to_vec();
        refusal::begin_empty(200, record.at, &mut out);
        forward::write_call_fields(record.request, taken.tightest, cost, hold.left(), &mut out);
        forward::write_user(&caller.standing, &mut out);
        refusal::connection_field(close, head.version, &mut out);
        out.extend_from_slice(b"\r\n");
        record.status = 200;
        record.outcome = Outcome::Local;
        record.bytes_out = out.len() as u64;
        if client.write_all(&out).await.is_err() {
            record.outcome = Outcome::ClientGone;
            return Ok(Served::Abort);
        }
        record.first_byte = Some(self.shared.clock.monotonic());
        Ok(if close || !client.discard_body(MAX_DISCARD).await { Served::Close } else { Served::KeepAlive })
    }

    /// Judges the caller of a local call that is made with a user's key, and has the local API answer it.
    ///
    /// # Errors
    /// As for a call that is passed on; [`Reject::Unauthenticated`] for a session, which is nobody's to hand to an app.
    pub(super) async fn checked(
        &self,
        client: &mut ClientConn,
        head: &RequestHead,
        policy: &Policy,
        check: Check,
        record: &mut Record<'_>,
        taken: &mut Taken,
    ) -> Result<Served, Reject> {
        (record.route, record.route_name) = (policy.local_route, policy.local_name.clone());
        let cost = match check {
            Check::VerifyKey => &policy.checks.key_cost,
            Check::LogMessage | Check::Usage => &policy.checks.free,
        };
        let terms = Terms { cost, scope: None, verified: false, key_only: check != Check::Usage };
        let Admitted { caller, mut hold } = self.admit(head, policy, terms, record, taken)?;
        // A conversation that is handed in may be as long as a body that is read ahead, and counts as such.
        let longest = match check {
            Check::VerifyKey | Check::Usage => MAX_VERIFY_BODY.min(policy.limits.max_inspect_bytes),
            Check::LogMessage => policy.limits.max_inspect_bytes,
        };
        let mut share =
            self.shared.budget.take(CALL_BYTES, owners(caller.standing.id, record.client)).map_err(Full::reject)?;
        let max = (longest as u64).min(policy.limits.max_body_bytes);
        self.begin_body(client, head, max, record)?;
        let body = read_whole_body(client, max, policy, &mut share, true).await?;
        // Whoever was revoked while the body came does not go either.
        let (now, ticks) = (self.shared.clock.now(), self.shared.clock.monotonic());
        let caller_now = self.shared.auth.authenticate(head, record.client, now, ticks, None, &self.shard)?;
        authorize::check_standing(&caller_now, record.client, policy, false, None)?;
        if self.paid(client, policy, cost, &mut hold).await? == Waited::ClientGone {
            record.outcome = Outcome::ClientGone;
            return Ok(Served::Abort);
        }
        let standing = &caller.standing;
        let is_kept = standing.log_conversations && !policy.excludes(&standing.username);
        let checked = Checked {
            standing: standing.clone(),
            left: hold.meters().iter().cloned().zip(hold.left().iter().copied()).collect(),
            journal_bytes: policy.journal_bytes.filter(|_| is_kept),
        };
        let response = self.ask_local(head, body, Some(checked), record).await?;
        // What failed here was not the caller's doing.
        if response.status().is_server_error() || response.status().is_client_error() {
            hold.refund();
        } else {
            self.settle(cost, &mut hold);
        }
        self.answer_local(client, head, &response, record).await
    }
}

/// What a check asks of its caller.
struct Terms<'a> {
    cost: &'a Arc<Cost>,
    scope: Option<&'a str>,
    verified: bool,
    /// A session will not do.
    key_only: bool,
}

/// The request that a proxy asks about, as far as it is described. Different proxies describe it in different headers, and
/// a client can send any of them along: so all that are there must say the same.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Asked<'a> {
    pub method: Option<&'a [u8]>,
    /// As [`normalize`] left it, without the query.
    pub path: Option<Cow<'a, [u8]>>,
    pub host: Option<&'a [u8]>,
}

const DISAGREE: Reject = Reject::Forbidden("The headers disagree about which request this check is for");

impl<'a> Asked<'a> {
    /// `path`: of the check itself, as [`normalize`] left it.
    fn read(head: &'a RequestHead, path: &'a [u8]) -> Result<Self, Reject> {
        let mut asked = Self::default();
        let appended = path.get(FORWARD.len()..).unwrap_or_default();
        if !appended.is_empty() {
            // Envoy sends the request's own head, below a path of ours.
            asked.path = Some(Cow::Borrowed(appended));
            asked.method = Some(head.method().as_bytes());
            asked.host = head.host();
        }
        for (_, name, value) in head.fields() {
            let is = |known: &str| is_same(name, known.as_bytes());
            let value = value.trim_ascii();
            if is("x-original-uri") || is("x-forwarded-uri") {
                asked.set_target(value)?;
            } else if is("x-original-url") || is("x-auth-request-redirect") {
                asked.set_url(value)?;
            } else if is("x-original-method") || is("x-forwarded-method") {
                agree(&mut asked.method, value, |a, b| a == b)?;
            } else if is("x-forwarded-host") || is("x-original-host") {
                agree(&mut asked.host, value, <[u8]>::eq_ignore_ascii_case)?;
            }
        }
        Ok(asked)
    }

    fn set_target(&mut self, target: &'a [u8]) -> Result<(), Reject> {
        let path = target.split(|b| matches!(b, b'?' | b'#')).next().unwrap_or_default();
        if path.first() != Some(&b'/') {
            return Err(Reject::BadRequest("The original URI is not a path".into()));
        }
        let path = normalize(path)?;
        match &self.path {
            Some(known) if **known != *path => Err(DISAGREE),
            _ => {
                self.path = Some(path);
                Ok(())
            }
        }
    }

    /// `https://host/path?query`, or a path alone.
    fn set_url(&mut self, url: &'a [u8]) -> Result<(), Reject> {
        let Some(scheme_end) = url.windows(3).position(|w| w == b"://") else { return self.set_target(url) };
        let rest = &url[scheme_end + 3..];
        let host_end = rest.iter().position(|b| *b == b'/').unwrap_or(rest.len());
        agree(&mut self.host, &rest[..host_end], <[u8]>::eq_ignore_ascii_case)?;
        self.set_target(if host_end == rest.len() { b"/" } else { &rest[host_end..] })
    }
}

fn agree<'a>(known: &mut Option<&'a [u8]>, value: &'a [u8], same: impl Fn(&[u8], &[u8]) -> bool) -> Result<(), Reject> {
    match known {
        Some(known) if !same(known, value) => Err(DISAGREE),
        _ => {
            *known = Some(value);
            Ok(())
        }
    }
}

impl ForwardRule {
    /// Whether it is for such a request, whatever its path.
    fn fits(&self, asked: &Asked<'_>) -> bool {
        let host = || {
            let host = asked.host.unwrap_or_default();
            let name = match host.iter().rposition(|b| *b == b':') {
                Some(at) if host[at + 1..].iter().all(u8::is_ascii_digit) => &host[..at],
                _ => host,
            };
            self.hosts.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(name))
        };
        let method = || asked.method.is_some_and(|m| self.methods.iter().any(|known| known.as_bytes() == m));
        (self.hosts.is_empty() || host()) && (self.methods.is_empty() || method())
    }
}

impl super::policy::Checks {
    /// The rule for a request; none when there are none at all, and every user may.
    fn rule_of(&self, asked: &Asked<'_>, by_trusted_proxy: bool) -> Result<Option<&ForwardRule>, Reject> {
        if let Some(method) = asked.method.and_then(|method| std::str::from_utf8(method).ok()) {
            check_method(method, &self.named_methods)?;
            if method == "TRACE" {
                return Err(Reject::MethodNotAllowed(ANY_METHOD.into()));
            }
        }
        if self.rules.is_empty() {
            return Ok(None);
        }
        if !by_trusted_proxy {
            return Err(Reject::Forbidden(
                "Only a proxy listed in access.trusted_proxies may ask about other requests",
            ));
        }
        let Some(path) = asked.path.as_deref() else {
            return Err(Reject::Forbidden("The proxy does not say which request it asks about (X-Original-URI)"));
        };
        let find = |matches: &dyn Fn(&ForwardRule) -> bool| self.rules.iter().find(|r| matches(r) && r.fits(asked));
        let rule = find(&|rule| rule.path.matches(path));
        let loose = read_loosely(path).map(|loose| find(&|rule| rule.path.matches(&loose)));
        let differs = match rule {
            None => loose.flatten().is_some(),
            // An operator's own word for this very spelling.
            Some(ForwardRule { path: PathPattern::Exact(exact), .. }) if exact.as_bytes() == path => false,
            Some(rule) => {
                let same = |other: Option<&ForwardRule>| other.is_some_and(|other| other.terms == rule.terms);
                loose.is_some_and(|other| !same(other))
                    || fold(path).is_none_or(|folded| !same(find(&|rule| rule.folded.matches(&folded))))
            }
        };
        if differs {
            return Err(two_readings());
        }
        rule.map(Some).ok_or(Reject::Forbidden("No rule under [[forward]] lets this request through"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str, fields: &str) -> Result<(String, String, String), Reject> {
        let text = format!("{line} HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        let head = RequestHead::parse(text.into_bytes()).unwrap_or_else(|e| panic!("{e:?}"));
        let path = normalize(head.path())?;
        let asked = Asked::read(&head, &path)?;
        let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or(b"-")).into_owned();
        Ok((text(asked.method), text(asked.path.as_deref()), text(asked.host)))
    }

    #[test]
    fn each_proxy_describes_the_request_in_its_own_way() {
        let asked = |method: &str, path: &str, host: &str| Ok((method.into(), path.into(), host.into()));
        let nginx = "X-Original-URI: /app/a?b=c\r\nX-Original-Method: POST\r\n";
        assert_eq!(read("GET /v1/auth/forward", nginx), asked("POST", "/app/a", "-"));
        let traefik = "X-Forwarded-Method: PUT\r\nX-Forwarded-Uri: //app/%61\r\nX-Forwarded-Host: a.example\r\n";
        assert_eq!(read("GET /v1/auth/forward", traefik), asked("PUT", "/app/a", "a.example"));
        assert_eq!(read("DELETE /v1/auth/forward/app/x?y", ""), asked("DELETE", "/app/x", "x"));
        let ingress = "X-Original-URL: https://a.example/app?x=/y\r\n";
        assert_eq!(read("GET /v1/auth/forward", ingress), asked("-", "/app", "a.example"));
        assert_eq!(read("GET /v1/auth/forward", ""), asked("-", "-", "-"));
    }

    #[test]
    fn what_a_client_sends_along_cannot_change_the_question() {
        for (line, fields) in [
            ("GET /v1/auth/forward", "X-Original-URI: /secret\r\nX-Forwarded-Uri: /public\r\n"),
            ("GET /v1/auth/forward", "X-Forwarded-Uri: /secret\r\nX-Forwarded-Uri: /public\r\n"),
            ("GET /v1/auth/forward", "X-Forwarded-Uri: /secret\r\nX_Forwarded_Uri: /public\r\n"),
            ("GET /v1/auth/forward/secret", "X-Forwarded-Uri: /public\r\n"),
            ("GET /v1/auth/forward/secret", "X-Forwarded-Method: HEAD\r\n"),
            ("GET /v1/auth/forward/secret", "X-Forwarded-Host: other\r\n"),
            ("GET /v1/auth/forward", "X-Original-Method: POST\r\nX-Forwarded-Method: GET\r\n"),
            ("GET /v1/auth/forward", "X-Original-URL: http://a/secret\r\nX-Forwarded-Host: b\r\n"),
        ] {
            assert_eq!(read(line, fields), Err(DISAGREE), "{line} {fields}");
        }
        assert!(matches!(read("GET /v1/auth/forward", "X-Original-URI: /a/../b\r\n"), Err(Reject::BadRequest(_))));
        assert!(matches!(read("GET /v1/auth/forward", "X-Original-URI: a\r\n"), Err(Reject::BadRequest(_))));
    }
}
