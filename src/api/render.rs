//! From what a service answers to JSON.
//!
//! Owns the shapes of answers and the one body of refusals. Never shows a hash, a MAC or a key but in the answer to the
//! call that made it.

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use crate::accounts::addresses::StoredRule;
use crate::accounts::sessions::SessionView;
use crate::accounts::users::{MeterView, Page, UserDetails};
use crate::clock::{Clock, UnixMillis};
use crate::domain::ids::RequestId;
use crate::domain::meters::{Micro, ResetPeriod};
use crate::domain::session::Staff;
use crate::domain::user::{Status, User};
use crate::error::Reject;

/// What handlers answer.
pub type Answer = Result<Response, Refused>;

/// A refusal on its way to [`refusals`], which knows the request's id and the time.
#[derive(Clone, Debug)]
pub struct Refused(pub Reject);

impl From<Reject> for Refused {
    fn from(reject: Reject) -> Self {
        Self(reject)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Gives every refusal its body, and every answer its request id.
pub async fn refusals(State(clock): State<Clock>, mut request: Request, next: Next) -> Response {
    let known = request.extensions().get::<RequestId>().copied();
    let id = known.unwrap_or_else(|| RequestId::from_parts(fastrand::u32(..), fastrand::u64(..)));
    request.extensions_mut().insert(id);
    let mut response = next.run(request).await;
    if let Some(Refused(reject)) = response.extensions_mut().remove::<Refused>() {
        let headers = reject.headers();
        *response.body_mut() = axum::body::Body::from(reject.body(id, clock.now()));
        response.headers_mut().remove(header::CONTENT_LENGTH);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        for (name, value) in headers {
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(name, value);
            }
        }
    }
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        response.headers_mut().entry("x-request-id").or_insert(value);
    }
    // Answers here speak of accounts, some carry a key: nothing in between may keep them.
    response.headers_mut().entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// A JSON answer.
pub fn ok(body: Value) -> Answer {
    Ok(axum::Json(body).into_response())
}

/// A list as the contract has it.
pub fn list<T>(page: Page<T>, item: impl Fn(&T) -> Value) -> Answer {
    let items: Vec<Value> = page.items.iter().map(item).collect();
    ok(json!({"items": items, "page": page.page, "page_size": page.page_size, "total": page.total}))
}

/// A list whose items are JSON text already.
pub fn raw_list(page: Page<String>) -> Answer {
    let body = format!(
        "{{\"items\":[{}],\"page\":{},\"page_size\":{},\"total\":{}}}",
        page.items.join(","),
        page.page,
        page.page_size,
        page.total
    );
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

fn time(at: Option<UnixMillis>) -> Value {
    at.map(UnixMillis::rfc3339).into()
}

/// The few fields a login answers.
pub fn user_brief(user: &User) -> Value {
    json!({
        "id": user.id,
        "username": &*user.username,
        "name": user.name,
        "email": &*user.email,
        "user_type": user.user_type.as_str(),
        "subscription_plan": &*user.plan,
        "is_verified": user.email_verified,
    })
}

/// A user as lists show him.
pub fn user_full(user: &User) -> Value {
    let mut shown = user_brief(user);
    shown["status"] = user.status.as_str().into();
    shown["is_active"] = (user.status == Status::Active).into();
    shown["suspended_reason"] = user.suspended_reason.clone().into();
    shown["about_me"] = user.about_me.clone().into();
    shown["hobbies"] = user.hobbies.clone().into();
    shown["log_conversations"] = user.log_conversations.into();
    shown["created_at"] = user.created_at.rfc3339().into();
    shown["last_login"] = time(user.last_login);
    shown
}

/// A user with his meters, and the two old views of them.
pub fn user_details(details: &UserDetails) -> Value {
    let mut shown = user_full(&details.user);
    let amounts = |name: &str| {
        let view = details.meters.iter().find(|m| m.name.as_str() == name);
        view.map_or((Micro::ZERO, Micro::ZERO), |m| (m.meter.balance, m.meter.reset))
    };
    let (main, reset) = amounts("credits");
    shown["credits"] = json!({"main": main.to_json(), "reset": reset.to_json()});
    let (left, reset) = amounts("conversations");
    shown["limits"] = json!({"conversation_limit": left.to_json(), "reset": reset.to_json()});
    shown["meters"] = meters(&details.meters);
    shown
}

fn period(period: ResetPeriod) -> &'static str {
    match period {
        ResetPeriod::Never => "never",
        ResetPeriod::Daily => "daily",
        ResetPeriod::Weekly => "weekly",
        ResetPeriod::Monthly => "monthly",
    }
}

pub fn meters(views: &[MeterView]) -> Value {
    let shown = views.iter().map(|view| {
        let meter = &view.meter;
        let numbers = json!({
            "balance": meter.balance.to_json(),
            "held": meter.held.to_json(),
            "spent": meter.spent.to_json(),
            "granted": meter.granted.to_json(),
            "reset": meter.reset.to_json(),
            "period": period(meter.period),
            "resets_at": time(view.resets_at),
        });
        (view.name.as_str().to_owned(), numbers)
    });
    Value::Object(shown.collect::<Map<_, _>>())
}

/// What may still be used, and of how much.
pub fn quotas(views: &[MeterView]) -> Value {
    let shown = views.iter().map(|view| {
        let (left, reset) = (view.meter.balance, view.meter.reset);
        let used = Micro((reset.0.saturating_sub(left.0)).max(0));
        let numbers = json!({
            "limit": reset.to_json(),
            "used": used.to_json(),
            "remaining": left.to_json(),
            "period": period(view.meter.period),
            "resets_at": time(view.resets_at),
        });
        (view.name.as_str().to_owned(), numbers)
    });
    Value::Object(shown.collect::<Map<_, _>>())
}

/// New tokens: shown here and never again.
pub fn session(view: &SessionView) -> Value {
    let mut shown = json!({
        "session_token": view.session_token.expose(),
        "expires_at": view.expires_at.rfc3339(),
    });
    if let Some(refresh) = &view.refresh_token {
        shown["refresh_token"] = refresh.expose().into();
        shown["refresh_expires_at"] = time(view.refresh_expires_at);
    }
    shown
}

pub fn staff(staff: &Staff) -> Value {
    json!({
        "id": staff.id,
        "username": staff.username,
        "name": staff.name,
        "email": staff.email,
        "role": staff.role.as_str(),
        "is_active": staff.active,
        "created_at": staff.created_at.rfc3339(),
        "last_login": time(staff.last_login),
    })
}

pub fn address_rule(rule: &StoredRule) -> Value {
    let network = rule.network;
    let single = network.prefix_len() == network.max_prefix_len();
    json!({
        "id": rule.id,
        "kind": rule.kind.as_str(),
        "network": network.to_string(),
        // The seeds know single addresses; a network is shown as one.
        "ip_address": if single { network.addr().to_string() } else { network.to_string() },
        "description": rule.description,
        "expires_at": time(rule.expires_at),
        "created_by": rule.created_by,
        "created_at": rule.created_at.rfc3339(),
    })
}
