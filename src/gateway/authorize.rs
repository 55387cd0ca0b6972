//! Authorization: whether this caller may make this call, and what it will cost at most.
//!
//! Owns the look at the request's body that the decision needs. Reads ahead only when the decision depends on it; otherwise
//! the body streams. Never touches credits.

use std::future::poll_fn;
use std::ops::Range;
use std::sync::Arc;
use std::task::Poll;

use super::authenticate::Caller;
use super::buffers::{self, Full, READ_BYTES, Share};
use super::client_ip::ClientIp;
use super::cost::Cost;
use super::http1::conn::{BodyError, BodyStep, ClientConn};
use super::http1::head::{Name, RequestHead};
use super::naming::{self, MAX_MODEL_BYTES};
use super::policy::{Policy, Route};
use super::usage::{Usage, scan_request};
use crate::actors::user::ledger::Amounts;
use crate::domain::model;
use crate::domain::user::Status;
use crate::error::Reject;

/// How much of a request's body is waited for before the decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ahead {
    /// What is here already.
    Nothing,
    /// As much as may be read ahead; the rest of a longer one comes later.
    Beginning,
    /// All of it: the decision depends on it.
    Whole,
}

/// What has been read of a request's body, and what it says.
#[derive(Default)]
pub struct Intake {
    pub body: Vec<u8>,
    /// `body` is all of it.
    pub complete: bool,
    /// More came than was kept in `body`.
    pub cut: bool,
    pub is_json: bool,
    pub facts: Facts,
}

/// The parts of a request that matter here.
#[derive(Default)]
pub struct Facts {
    pub model: Option<Box<str>>,
    pub stream: bool,
    pub has_stream_options: bool,
    max_tokens: Option<u64>,
    choices: Option<u64>,
    /// Where in the body the conversation stands.
    pub messages: Option<Range<usize>>,
    /// For the conversation's record, as [`super::usage::RequestFacts`] has them.
    pub r_type: Option<Box<str>>,
    pub research: bool,
    /// There is a model, and it is no string, or too long for a name.
    model_is_odd: bool,
    malformed: bool,
    ambiguous: bool,
    is_object: bool,
}

impl Facts {
    /// The body was whole and strictly JSON.
    pub fn is_sound(&self) -> bool {
        self.is_object && !self.malformed
    }
}

impl Intake {
    /// Takes what has arrived, as far as the decision may need it. Waits for nothing.
    ///
    /// # Errors
    /// [`Reject::BodyTooLarge`] past what may be read ahead, [`Reject::Overloaded`] without room for it,
    /// [`Reject::BadRequest`] for broken framing.
    pub async fn begin(
        client: &mut ClientConn,
        head: &RequestHead,
        policy: &Policy,
        ahead: Ahead,
        share: &mut Share,
    ) -> Result<Self, Reject> {
        let mut intake = Self { is_json: is_json(head), ..Self::default() };
        if client.body_is_done() {
            intake.complete = true;
            return Ok(intake);
        }
        intake.body = buffers::take();
        loop {
            intake.make_room(client, policy, share)?;
            let step = poll_fn(|cx| {
                // Who expects `100 Continue` is not asked for the body yet.
                if client.body_is_untouched() {
                    return Poll::Ready(Ok(None));
                }
                match client.poll_body(cx, &mut intake.body) {
                    Poll::Ready(step) => Poll::Ready(step.map(Some).map_err(|error| body_error(&error, policy))),
                    Poll::Pending => Poll::Ready(Ok(None)),
                }
            })
            .await?;
            let Some(step) = step else { return Ok(intake) };
            intake.came(step, client);
            if intake.is_enough(ahead, policy)? {
                intake.scan_if_whole();
                return Ok(intake);
            }
        }
    }

    /// Waits for the rest of what the decision needs.
    ///
    /// # Errors
    /// As [`Intake::begin`], and [`Reject::RequestTimeout`].
    pub async fn wait(
        &mut self,
        client: &mut ClientConn,
        policy: &Policy,
        ahead: Ahead,
        share: &mut Share,
    ) -> Result<(), Reject> {
        while !self.is_enough(ahead, policy)? {
            self.make_room(client, policy, share)?;
            let step = client.read_body(&mut self.body).await.map_err(|error| body_error(&error, policy))?;
            self.came(step, client);
        }
        self.scan_if_whole();
        Ok(())
    }

    fn came(&mut self, step: BodyStep, client: &ClientConn) {
        self.complete = step == BodyStep::End || client.body_is_done();
    }

    fn make_room(&mut self, client: &ClientConn, policy: &Policy, share: &mut Share) -> Result<(), Reject> {
        let length = client.body_length().and_then(|length| usize::try_from(length).ok()).unwrap_or(usize::MAX);
        // One read may bring more than is asked for.
        let most = length.min(policy.limits.max_inspect_bytes.saturating_add(2 * READ_BYTES));
        share.make_room(&mut self.body, client.next_piece(), most).map_err(Full::reject)
    }

    /// Whether the decision can be made.
    ///
    /// # Errors
    /// [`Reject::BodyTooLarge`].
    pub fn is_enough(&self, ahead: Ahead, policy: &Policy) -> Result<bool, Reject> {
        let max = policy.limits.max_inspect_bytes;
        match ahead {
            _ if self.complete => Ok(true),
            Ahead::Nothing => Ok(true),
            Ahead::Beginning => Ok(self.body.len() > max),
            Ahead::Whole if self.body.len() > max => Err(Reject::BodyTooLarge { limit: max as u64 }),
            Ahead::Whole => Ok(false),
        }
    }

    fn scan_if_whole(&mut self) {
        if self.complete && self.is_json {
            self.scan();
        }
    }

    /// Reads the facts out of a complete body.
    pub fn scan(&mut self) {
        let found = scan_request(&self.body);
        let messages = found.messages.map(|part| {
            let at = (part.as_ptr() as usize).saturating_sub(self.body.as_ptr() as usize);
            at..at + part.len()
        });
        self.facts = Facts {
            model_is_odd: found.model_is_odd || found.model.as_deref().is_some_and(|m| m.len() > MAX_MODEL_BYTES),
            model: found.model.as_deref().filter(|m| m.len() <= MAX_MODEL_BYTES).map(Box::from),
            stream: found.stream,
            has_stream_options: found.has_stream_options,
            max_tokens: found.max_tokens,
            choices: found.n,
            messages,
            r_type: found.r_type.and_then(|word| std::str::from_utf8(word).ok()).map(Box::from),
            research: found.research,
            malformed: found.broken || !found.complete,
            ambiguous: found.ambiguous,
            is_object: found.is_object,
        };
    }
}

fn is_json(head: &RequestHead) -> bool {
    head.first_passed_on(Name::ContentType).is_none_or(|value| {
        let essence = value.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
        essence.eq_ignore_ascii_case(b"application/json")
            || essence.get(essence.len().saturating_sub(5)..).is_some_and(|end| end.eq_ignore_ascii_case(b"+json"))
    })
}

pub fn body_error(error: &BodyError, policy: &Policy) -> Reject {
    match error {
        BodyError::TooLarge => Reject::BodyTooLarge { limit: policy.limits.max_body_bytes },
        BodyError::Malformed(why) => Reject::BadRequest((*why).to_owned()),
        BodyError::TooSlow => Reject::RequestTimeout,
        BodyError::Gone => Reject::BadRequest("The request body was cut off".into()),
    }
}

/// Whether the decision needs the body: its model, or how many tokens it may cost.
fn needs_body(caller: &Caller, route: &Route) -> bool {
    route.costs.need_body() || route.include_usage || narrows_models(caller, route)
}

/// Whether the decision needs the model.
fn decides_by_model(caller: &Caller, route: &Route) -> bool {
    route.costs.are_by_model() || narrows_models(caller, route)
}

fn narrows_models(caller: &Caller, route: &Route) -> bool {
    !route.models.is_empty() || caller.limits().is_some_and(|limits| !limits.models.is_empty())
}

/// How much of the body the decision needs.
pub fn ahead(caller: &Caller, route: &Route, head: &RequestHead) -> Ahead {
    if needs_body(caller, route) {
        Ahead::Whole
    } else if head.first(Name::IdempotencyKey).is_some() {
        // The key stands for this request, so it must be known which one this is.
        Ahead::Beginning
    } else {
        Ahead::Nothing
    }
}

/// Judges the caller before a byte of the body is waited for.
///
/// # Errors
/// [`Reject::Forbidden`], [`Reject::AddressDenied`].
pub fn check_caller(caller: &Caller, client: ClientIp, policy: &Policy, route: &Route) -> Result<(), Reject> {
    check_standing(caller, client, policy, route.verified, route.scope.as_deref())?;
    if !route.roles.has(caller.standing.role) {
        return Err(Reject::Forbidden("This account's role does not allow this call"));
    }
    Ok(())
}

/// Judges the caller for anything that asks for an active account, and perhaps for a verified address or a key's scope.
///
/// # Errors
/// [`Reject::Forbidden`], [`Reject::AddressDenied`].
pub fn check_standing(
    caller: &Caller,
    client: ClientIp,
    policy: &Policy,
    verified: bool,
    scope: Option<&str>,
) -> Result<(), Reject> {
    match caller.standing.status {
        Status::Active => {}
        Status::Suspended => return Err(Reject::Forbidden("This account is suspended")),
        Status::Banned => return Err(Reject::Forbidden("This account is banned")),
        Status::Pending => return Err(Reject::Forbidden("This account is not active yet")),
        Status::Deleted => return Err(Reject::Unauthenticated),
    }
    if (policy.email_verification || verified) && !caller.standing.email_verified {
        return Err(Reject::Forbidden("The email address of this account is not verified"));
    }
    let Some(limits) = caller.limits() else {
        // A password that staff knows opens nothing but the page on which it is changed. Keys are the user's own.
        return if caller.standing.must_change_password { Err(Reject::PasswordChangeRequired) } else { Ok(()) };
    };
    if !limits.allows_address(client.0) {
        return Err(Reject::AddressDenied);
    }
    if scope.is_some_and(|scope| !limits.allows_scope(scope)) {
        return Err(Reject::Forbidden("This key's scope does not allow this call"));
    }
    Ok(())
}

/// Finds the model that a request names in something else than plain JSON, where that decides about it.
///
/// # Errors
/// [`Reject::BadRequest`] for a body that names its model in more than one reading, [`Reject::UnsupportedMediaType`] for one that
/// must be read and cannot.
pub fn name_model(caller: &Caller, route: &Route, head: &RequestHead, intake: &mut Intake) -> Result<(), Reject> {
    let decides = route.costs.need_body() || narrows_models(caller, route);
    if intake.body.is_empty() || !(decides || (route.include_usage && intake.is_json)) {
        return Ok(());
    }
    naming::check_coding(head)?;
    if !intake.is_json && naming::looks_like_json(&intake.body) {
        // Some upstreams look at the body alone.
        intake.is_json = true;
        intake.scan();
    }
    if !decides_by_model(caller, route) {
        return Ok(());
    }
    naming::check_media(head)?;
    let facts = &mut intake.facts;
    if facts.model_is_odd {
        return Err(Reject::BadRequest(format!("model: not a string of at most {MAX_MODEL_BYTES} bytes")));
    }
    if !intake.is_json {
        facts.model = naming::in_body(head, &intake.body)?.map(Box::from);
    }
    if let Some(named) = naming::in_query(head)? {
        let same = facts.model.as_deref().is_none_or(|model| model::fold(model) == model::fold(&named));
        if !same {
            return Err(Reject::BadRequest("The query and the body name different models".into()));
        }
        facts.model.get_or_insert_with(|| Box::from(named));
    }
    facts.model.as_deref().map_or(Ok(()), naming::check_name)
}

/// Judges the body, and says what the call costs and how much to hold for it.
///
/// # Errors
/// [`Reject::BadRequest`] for JSON that must be read and cannot, [`Reject::Forbidden`] for a model that is not allowed or
/// has no price.
pub fn check_body<'r>(caller: &Caller, route: &'r Route, intake: &Intake) -> Result<(&'r Arc<Cost>, Amounts), Reject> {
    let facts = &intake.facts;
    if needs_body(caller, route) && intake.is_json && !intake.body.is_empty() {
        if !facts.is_sound() {
            return Err(Reject::BadRequest("The body is not a JSON object".into()));
        }
        if facts.ambiguous {
            return Err(Reject::BadRequest("The body has a field twice".into()));
        }
    }
    if narrows_models(caller, route) {
        let model = facts.model.as_deref();
        let allowed = match model {
            Some(model) => route.allows_model(model) && caller.limits().is_none_or(|l| l.allows_model(model)),
            // A call without a body names no model: a list of models, say.
            None => intake.body.is_empty(),
        };
        if !allowed {
            return Err(Reject::Forbidden("This model is not allowed"));
        }
    }
    let cost = route.costs.of(facts.model.as_deref(), !intake.body.is_empty())?;
    Ok((cost, estimate(cost, route, intake)))
}

/// The most the call is expected to cost: four bytes a token is cheap for English, so two are assumed.
fn estimate(cost: &Cost, route: &Route, intake: &Intake) -> Amounts {
    if !cost.is_metered {
        return cost.amounts(&Usage::default());
    }
    let choices = intake.facts.choices.unwrap_or(1).clamp(1, 128);
    cost.at_most(&Usage {
        input_tokens: (intake.body.len() as u64).div_ceil(2),
        output_tokens: intake.facts.max_tokens.unwrap_or(route.assumed_output_tokens).saturating_mul(choices),
        cached_tokens: 0,
        images: choices,
    })
}
