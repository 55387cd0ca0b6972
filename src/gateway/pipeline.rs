//! The request path. Every call that reaches an upstream came through here, in this order, and there is no second way.
//!
//! The order is that of growing cost and trust: first what needs only the socket, then the address, then a key, then its
//! user's credits, and last the upstream. Each step refuses on its own terms; a refusal gives back what earlier steps took.
//! Never parses a body itself and never writes money.

use std::future::Future;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::Semaphore;

use super::LocalApi;
use super::authenticate::Authenticator;
use super::authorize::{self, Intake};
use super::body::Served;
use super::buffers::{Budget, Full, Owner, READ_BYTES, Share};
use super::checks;
use super::client_ip::{self, ClientIp};
use super::connections::Connections;
use super::deadline::Deadlines;
use super::forward::{self, Call};
use super::http1::conn::{BodyError, BodyStep, ClientConn};
use super::http1::head::{Framing, Name, RequestHead};
use super::ip_rules;
use super::policy::{Policy, Surface};
use super::rate::{self, RateStates, Taken};
use super::record::Record;
use super::refusal;
use super::replay::{self, Repeated};
use super::spelling::normalize;
use crate::accounts::addresses::AddressBook;
use crate::accounts::blocks::AddressBlocks;
use crate::accounts::checks::Checked;
use crate::actors::user::admission::Admission;
use crate::actors::user::hold::{Hold, Reserved};
use crate::actors::writer::Journal;
use crate::clock::Clock;
use crate::domain::addresses::ClientAddress;
use crate::domain::bodies::{LongBody, MAX_LOCAL_BODY};
use crate::domain::ids::{RequestId, UserId};
use crate::error::{CountsAsRefusal, Reject};
use crate::store::committer::{Committer, Gate};
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::metrics::{Metrics, Outcome, Shard};
use crate::telemetry::seldom::Seldom;

/// Logins with longer bodies than other local calls may have that are received at once.
const MAX_LONG_LOGINS: usize = 16;
/// A refused request's body is received and forgotten up to here, so that its connection can go on.
pub(super) const MAX_DISCARD: usize = 256 << 10;
/// What a call in flight holds in buffers, besides bodies that are kept.
pub(super) const CALL_BYTES: usize = 3 * READ_BYTES;

/// What all workers share.
pub struct Shared {
    pub clock: Clock,
    pub policy: ArcSwap<Policy>,
    pub auth: Authenticator,
    pub users: Arc<crate::actors::user::registry::Registry>,
    pub addresses: Arc<AddressBook>,
    pub blocks: Arc<AddressBlocks>,
    pub rates: Arc<RateStates>,
    /// Of calls that are passed on, or made with a user's key.
    pub budget: Arc<Budget>,
    /// Of all other calls that are answered here, so that neither kind can take the room of the other.
    pub local_budget: Arc<Budget>,
    pub committer: Committer,
    pub journal: Journal,
    pub metrics: Arc<Metrics>,
    pub access_log: AccessLog,
    pub local: Arc<dyn LocalApi>,
    pub long_logins: LongLogins,
    /// Where local calls run.
    pub control: tokio::runtime::Handle,
    pub draining: AtomicBool,
    pub connections: Connections,
    /// Of connections that could not be accepted.
    pub accept_troubles: Seldom,
}

/// Room for long bodies of people whom nobody knows yet. Apart from the bytes of other calls in flight, so that they can take
/// nothing away from these.
pub struct LongLogins(Semaphore);

impl Default for LongLogins {
    fn default() -> Self {
        Self(Semaphore::new(MAX_LONG_LOGINS))
    }
}

impl LongLogins {
    pub fn running(&self) -> usize {
        MAX_LONG_LOGINS.saturating_sub(self.0.available_permits())
    }
}

impl Shared {
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

/// One worker thread's own things.
pub struct Worker {
    pub index: usize,
    pub shared: Arc<Shared>,
    pub shard: Arc<Shard>,
    pub gate: Arc<Gate>,
    pub deadlines: Arc<Deadlines>,
    /// Request ids are a random start and a count.
    pub request_high: u32,
    pub request_low: AtomicU64,
}

impl Worker {
    pub fn next_request_id(&self) -> RequestId {
        RequestId::from_parts(self.request_high, self.request_low.fetch_add(1, Ordering::Relaxed))
    }

    /// Serves one request. Never fails: whatever happens becomes an answer, or the end of the connection.
    pub async fn serve(&self, client: &mut ClientConn, head: &RequestHead, peer: SocketAddr) -> Served {
        let policy = self.shared.policy.load_full();
        let now = self.shared.clock.now();
        let address = client_ip::identify(peer, head, &policy.trusted_proxies);
        let request = self.next_request_id();
        let mut record = Record::open(self, head, request, now, peer, address, &policy);
        let mut taken = Taken::default();
        let outcome = {
            let run = pin!(self.run(client, head, &policy, &mut record, &mut taken));
            CatchPanic(run).await.unwrap_or_else(|()| {
                self.shard.panicked();
                Err(Reject::Internal)
            })
        };
        match outcome {
            Ok(served) => served,
            Err(reject) => {
                taken.give_back(&self.shared.rates);
                if record.first_byte.is_some() {
                    // Part of an answer has left: a second one would be taken for its end.
                    record.outcome = Outcome::Internal;
                    return Served::Abort;
                }
                // Not of a user whose credential was good.
                let reject = match reject.counts_as_refusal() && record.user.is_none() {
                    // A bad credential has been found to be one by now.
                    true => self.count_refusal(head, &policy, &record, reject.status() == 401).err().unwrap_or(reject),
                    false => reject,
                };
                Box::pin(self.refuse(client, head, &reject, &mut record)).await
            }
        }
    }

    async fn run(
        &self,
        client: &mut ClientConn,
        head: &RequestHead,
        policy: &Policy,
        record: &mut Record<'_>,
        taken: &mut Taken,
    ) -> Result<Served, Reject> {
        let shared = &*self.shared;
        ip_rules::check(&shared.addresses, &shared.blocks, record.client, record.at, record.started)?;
        // A connection counts for its address; what a trusted proxy brings counts for whom it is for.
        let is_forwarded = record.client.0 != record.peer.ip().to_canonical();
        let forwarded = is_forwarded.then(|| shared.connections.enter_forwarded(&policy.limits, record.client.0));
        let _forwarded = forwarded.transpose()?;
        rate::check_address(&shared.rates, &policy.rates, record.client, record.started, taken)?;
        let path = normalize(head.path())?;
        let route = match policy.routes.find(&path, head.method())? {
            Surface::Proxied(route) => route,
            // On the heap: a proxied call should not carry the room for a local one.
            Surface::Local => return Box::pin(self.local(client, head, &path, policy, record, taken)).await,
            Surface::Checked(check) => {
                return Box::pin(self.checked(client, head, policy, check, record, taken)).await;
            }
            Surface::ForwardCheck => {
                return Box::pin(self.forward_check(client, head, &path, policy, record, taken)).await;
            }
            Surface::NotFound => return Err(Reject::NotFound),
            Surface::OnSidePort => return Err(Reject::OnSidePort),
            Surface::WrongMethod(allowed) => return Err(Reject::MethodNotAllowed(allowed)),
        };
        (record.route, record.route_name) = (route.label, route.pattern.clone());
        let cookies = policy.cookies.as_ref();
        let mut caller =
            shared.auth.authenticate(head, record.client, record.at, record.started, cookies, &self.shard)?;
        record.user = Some(caller.standing.id);
        let own_rate = caller.limits().and_then(|limits| limits.per_minute);
        rate::check_caller(&shared.rates, &policy.rates, &caller.mac, own_rate, &caller.actor, record.started, taken)?;
        authorize::check_caller(&caller, record.client, policy, route)?;
        if head.max_forwards == Some(0) {
            return Box::pin(self.answer_options(client, head, &policy.routes.allowed(&path), record)).await;
        }
        let place = route.places.as_ref().map(|p| p.enter(caller.standing.id, &shared.clock)).transpose()?;
        // Before anything is kept for this call, and before it can owe a debit that could not be written.
        if shared.committer.has_failed() {
            return Err(Reject::StoreUnavailable);
        }
        if shared.committer.is_overloaded() {
            return Err(Reject::Overloaded("Too many debits wait for the disk"));
        }
        let mut share =
            shared.budget.take(CALL_BYTES, owners(caller.standing.id, record.client)).map_err(Full::reject)?;
        self.begin_body(client, head, policy.limits.max_body_bytes, record)?;
        let ahead = authorize::ahead(&caller, route, head);
        let mut intake = Intake::begin(client, head, policy, ahead, &mut share).await?;
        let max_open = policy.limits.in_flight_per_user;
        let mut admission = None;
        if !intake.is_enough(ahead, policy)? {
            // What the call costs at the least is taken before its body is waited for; a repeat may be free.
            let actor = caller.actor.clone();
            let (meters, amounts) = match replay::is_known(head, &actor, record.at)? {
                true => Default::default(),
                false => (route.costs.least().meters.clone(), route.costs.least().amounts.clone()),
            };
            admission = Some(Admission::ask(actor, meters, amounts, max_open, record.at)?);
            share.waits().map_err(Full::reject)?;
            intake.wait(client, policy, ahead, &mut share).await?;
            // Whoever was revoked while their body came does not go either.
            let (now, ticks) = (shared.clock.now(), shared.clock.monotonic());
            caller = shared.auth.authenticate(head, record.client, now, ticks, cookies, &self.shard)?;
            authorize::check_caller(&caller, record.client, policy, route)?;
        }
        authorize::name_model(&caller, route, head, &mut intake)?;
        let (cost, amounts) = authorize::check_body(&caller, route, &intake)?;
        let (actor, meters) = (caller.actor.clone(), cost.meters.clone());
        let reserved = match replay::once_key(head, &intake, policy.limits.max_inspect_bytes)? {
            None => Reserved::Hold(Hold::reserve(actor, meters, amounts, max_open, record.at, admission)?),
            Some(key) => Hold::reserve_once(actor, key, meters, &amounts, max_open, record.at, admission)?,
        };
        let hold = match reserved {
            Reserved::Hold(hold) => hold,
            Reserved::Answered { kept, whole, left } => {
                Box::pin(replay::check_whole(client, policy, &intake, whole)).await?;
                let (user, rate) = (caller.standing.id, taken.tightest);
                let repeated = Repeated { user, kept, cost, left, rate, share };
                return Box::pin(replay::replay(self, client, head, repeated, record)).await;
            }
        };
        for (label, amount) in cost.labels.iter().zip(hold.amounts()) {
            self.shard.reserved(*label, *amount);
        }
        let (client_ip, request, rate) = (record.client, record.request, taken.tightest);
        let mut call = Call {
            head,
            client: client_ip,
            caller: &caller,
            policy,
            route,
            cost,
            intake,
            hold,
            place,
            rate,
            share,
            request,
            clock: &shared.clock,
            by_proxy: client_ip::is_trusted(record.peer.ip(), &policy.trusted_proxies),
        };
        forward::forward(self, client, &mut call, record).await
    }

    pub(super) fn begin_body(
        &self,
        client: &mut ClientConn,
        head: &RequestHead,
        max: u64,
        record: &mut Record<'_>,
    ) -> Result<(), Reject> {
        if matches!(head.framing, Framing::Length(n) if n > max) {
            return Err(Reject::BodyTooLarge { limit: max });
        }
        client.begin_body(head.framing, head.expects_continue, max);
        record.body_begun = true;
        Ok(())
    }

    /// A call that this process answers itself: its body is read whole and it runs where it can disturb no other call.
    async fn local(
        &self,
        client: &mut ClientConn,
        head: &RequestHead,
        path: &[u8],
        policy: &Policy,
        record: &mut Record<'_>,
        taken: &mut Taken,
    ) -> Result<Served, Reject> {
        (record.route, record.route_name) = (policy.local_route, policy.local_name.clone());
        let network = Owner::Network(rate::address_key(record.client));
        let mut share = self.shared.local_budget.take(CALL_BYTES, [Some(network), None]).map_err(Full::reject)?;
        let max = policy.longest_local_body(path).min(policy.limits.max_body_bytes);
        let usual = MAX_LOCAL_BODY as u64;
        let is_long = max > usual
            && match head.framing {
                Framing::None => false,
                Framing::Length(length) => length > usual,
                Framing::Chunked | Framing::UntilClose => true,
            };
        let long = is_long.then(|| self.shared.long_logins.0.try_acquire()).transpose();
        let _long = long.map_err(|_| Reject::Overloaded("Too many logins with long bodies"))?;
        self.begin_body(client, head, max, record)?;
        // Until it is there, others may need the room more.
        client.deadline.waits();
        let body = read_whole_body(client, max, policy, &mut share, !is_long).await?;
        if !client.deadline.has_work() {
            return Err(Reject::RequestTimeout);
        }
        let response = self.ask_local(head, body, None, record).await?;
        if response.extensions().get::<CountsAsRefusal>().is_some() {
            taken.give_back(&self.shared.rates);
            self.count_refusal(head, policy, record, false)?;
        }
        self.answer_local(client, head, &response, record).await
    }

    /// Takes a refusal from the address's own limit of those. A call with a good credential is never refused by it:
    /// others may have used it up. `is_bad`: the credential is known to be none.
    ///
    /// # Errors
    /// [`Reject::RateLimited`]; [`Reject::AddressBlocked`] for a guess from a blocked address.
    fn count_refusal(
        &self,
        head: &RequestHead,
        policy: &Policy,
        record: &Record<'_>,
        is_bad: bool,
    ) -> Result<(), Reject> {
        let shared = &*self.shared;
        let Err(limited) = rate::check_refusal(&shared.rates, &policy.rates, record.client, record.started) else {
            return Ok(());
        };
        if is_bad {
            return Err(limited);
        }
        let cookies = policy.cookies.as_ref();
        match shared.auth.authenticate(head, record.client, record.at, record.started, cookies, &self.shard) {
            Ok(_) => Ok(()),
            Err(blocked @ Reject::AddressBlocked { .. }) => Err(blocked),
            Err(_) => Err(limited),
        }
    }

    /// `checked`: whose call it is, where that was found out here.
    pub(super) async fn ask_local(
        &self,
        head: &RequestHead,
        body: Bytes,
        checked: Option<Checked>,
        record: &Record<'_>,
    ) -> Result<http::Response<Bytes>, Reject> {
        let is_long = body.len() > MAX_LOCAL_BODY;
        let mut request = local_request(head, body, record)?;
        if is_long {
            request.extensions_mut().insert(LongBody);
        }
        if let Some(checked) = checked {
            request.extensions_mut().insert(checked);
        }
        let running = self.shared.control.spawn(self.shared.local.call(request));
        running.await.map_err(|_| Reject::Internal)
    }

    pub(super) async fn answer_local(
        &self,
        client: &mut ClientConn,
        head: &RequestHead,
        response: &http::Response<Bytes>,
        record: &mut Record<'_>,
    ) -> Result<Served, Reject> {
        record.status = response.status().as_u16();
        record.outcome = Outcome::Local;
        record.bytes_in = client.body_received();
        let close = !head.keep_alive || self.shared.is_draining();
        let bytes = refusal::encode_local(response, head, record.request, record.at, close);
        record.bytes_out = bytes.len() as u64;
        if client.write_all(&bytes).await.is_err() {
            record.outcome = Outcome::ClientGone;
            return Ok(Served::Abort);
        }
        record.first_byte = Some(self.shared.clock.monotonic());
        Ok(if close { Served::Close } else { Served::KeepAlive })
    }

    /// The answer to an `OPTIONS` that goes no further than here.
    async fn answer_options(
        &self,
        client: &mut ClientConn,
        head: &RequestHead,
        allowed: &str,
        record: &mut Record<'_>,
    ) -> Result<Served, Reject> {
        client.begin_body(head.framing, head.expects_continue, u64::MAX);
        record.body_begun = true;
        let close = !head.keep_alive || self.shared.is_draining() || (head.expects_continue && !client.body_is_done());
        let mut out = Vec::new();
        refusal::begin_empty(200, record.at, &mut out);
        forward::write_field(b"allow", allowed.as_bytes(), &mut out);
        forward::write_field(b"x-request-id", record.request.as_str().as_bytes(), &mut out);
        refusal::connection_field(close, head.version, &mut out);
        out.extend_from_slice(b"\r\n");
        (record.status, record.outcome, record.bytes_out) = (200, Outcome::Local, out.len() as u64);
        if client.write_all(&out).await.is_err() {
            record.outcome = Outcome::ClientGone;
            return Ok(Served::Abort);
        }
        record.first_byte = Some(self.shared.clock.monotonic());
        Ok(if close || !client.discard_body(MAX_DISCARD).await { Served::Close } else { Served::KeepAlive })
    }

    async fn refuse(
        &self,
        client: &mut ClientConn,
        head: &RequestHead,
        reject: &Reject,
        record: &mut Record<'_>,
    ) -> Served {
        record.outcome = Outcome::from(reject);
        record.status = reject.status();
        if let Reject::RateLimited { scope, .. } = reject {
            self.shard.rate_limited(*scope);
        }
        // A refusal may come before the body was thought of.
        if !record.body_begun {
            client.begin_body(head.framing, head.expects_continue, u64::MAX);
        }
        let rest_is_small = client.can_skip_body(head.framing, MAX_DISCARD);
        let broken = matches!(reject, Reject::RequestTimeout | Reject::BodyTooLarge { .. });
        // A client that waits for `100 Continue` may send its body or not; nobody can tell what comes next.
        let uncertain = head.expects_continue && !client.body_is_done();
        let close = !head.keep_alive || !rest_is_small || broken || uncertain || self.shared.is_draining();
        let mut bytes = client.rest_of_continue().to_vec();
        client.rest_of_interim(false, &mut bytes);
        let dialect = || {
            let path = normalize(head.path()).ok()?;
            self.shared.policy.load().routes.claim(&path).map(|claim| claim.dialect)
        };
        if checks::asks_for_nginx(head) {
            bytes.extend(refusal::encode_for_nginx(reject, head, record.request, record.at, close));
        } else if let Some(dialect) = dialect() {
            bytes.extend(refusal::encode_in(dialect, reject, head, record.request, record.at, close));
        } else {
            bytes.extend(refusal::encode(reject, Some(head), record.request, record.at, close));
        }
        record.bytes_out = bytes.len() as u64;
        if client.write_all(&bytes).await.is_err() {
            return Served::Abort;
        }
        if close || !client.discard_body(MAX_DISCARD).await {
            return Served::Close;
        }
        Served::KeepAlive
    }
}

/// Whose the bytes of a call are.
pub(super) fn owners(user: UserId, client: ClientIp) -> [Option<Owner>; 2] {
    [Some(Owner::User(user)), Some(Owner::Network(rate::address_key(client)))]
}

/// `is_counted`: what there is of the body counts in `share`; long logins have a bound of their own.
pub(super) async fn read_whole_body(
    client: &mut ClientConn,
    max: u64,
    policy: &Policy,
    share: &mut Share,
    is_counted: bool,
) -> Result<Bytes, Reject> {
    let most = usize::try_from(client.body_length().unwrap_or(max)).unwrap_or(usize::MAX);
    // So much every call has.
    let mut body = Vec::with_capacity(most.min(READ_BYTES));
    while !client.body_is_done() {
        if is_counted {
            share.make_room(&mut body, client.next_piece(), most).map_err(Full::reject)?;
        }
        if !client.has_input() {
            share.waits().map_err(Full::reject)?;
        }
        let step = client.read_body(&mut body).await.map_err(|error| match error {
            BodyError::TooLarge => Reject::BodyTooLarge { limit: max },
            other => authorize::body_error(&other, policy),
        })?;
        if step == BodyStep::End {
            break;
        }
    }
    Ok(Bytes::from(body))
}

fn local_request(head: &RequestHead, body: Bytes, record: &Record<'_>) -> Result<http::Request<Bytes>, Reject> {
    let malformed = |_| Reject::BadRequest("The request is malformed".into());
    let mut builder = http::Request::builder().method(head.method()).uri(head.target());
    for (field, name, value) in head.fields() {
        // Which host is meant, the target may say otherwise.
        if !field.connection_only && !field.name.is_hop_by_hop() && field.name != Name::Host {
            builder = builder.header(name, value);
        }
    }
    if let Some(host) = head.host() {
        builder = builder.header(http::header::HOST, host);
    }
    let mut request = builder.body(body).map_err(malformed)?;
    request.extensions_mut().insert(record.request);
    request.extensions_mut().insert(ClientAddress(record.client.0));
    Ok(request)
}

/// Turns a panic in one call into an error of that call.
struct CatchPanic<F>(F);

impl<F: Future + Unpin> Future for CatchPanic<F> {
    type Output = Result<F::Output, ()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let inner = &mut self.0;
        match catch_unwind(AssertUnwindSafe(|| Pin::new(inner).poll(cx))) {
            Ok(poll) => poll.map(Ok),
            Err(_) => Poll::Ready(Err(())),
        }
    }
}
