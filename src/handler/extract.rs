//! From a request to what a service wants to know.
//!
//! Owns the reading of credentials, queries and JSON bodies, each with a bound, and the message about each field that does
//! not fit. Unknown fields are ignored, or, where a restriction would vanish by a misspelt one, refused. Never repeats a value
//! in a message: it might be a password.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Multipart, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value};

use crate::accounts::guesses::Shown;
use crate::accounts::own::Proof;
use crate::accounts::passwords::Password;
use crate::actors::audit::Origin;
use crate::clock::UnixMillis;
use crate::domain::addresses::ClientAddress;
use crate::domain::bodies::{LongBody, MAX_LOCAL_BODY, MAX_LONG_BODY};
use crate::domain::cookies::{CookieRule, Provenance};
use crate::domain::ids::RequestId;
use crate::domain::meters::Micro;
use crate::domain::nearest;
use crate::error::{CROSS_SITE, Reject};
use crate::handler::pages;
use crate::handler::render::Refused;

const DEFAULT_PAGE_SIZE: usize = 50;
/// Of a whole body. What comes in by the public listener has been read by then; on the side port, connections are few, and
/// must not be held for nothing.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Far beyond any list, and far from any overflow.
const MAX_PAGE: usize = 1 << 40;

/// A request, read.
pub struct Call {
    pub address: IpAddr,
    /// The request's id, as the answer names it.
    pub request: Option<RequestId>,
    /// Method and path, without the query.
    pub line: String,
    pub user_agent: Option<String>,
    /// What an earlier login has left on the client's device.
    pub device: Option<String>,
    /// A browser asks.
    pub wants_html: bool,
    credential: Result<Option<String>, Reject>,
    headers: HeaderMap,
    method: Method,
    query: HashMap<String, String>,
    path: HashMap<String, String>,
    body: Bytes,
}

impl<S: Send + Sync> FromRequest<S> for Call {
    type Rejection = Refused;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refused> {
        let (mut parts, body) = request.into_parts();
        let path = path_of(&mut parts, state).await;
        let query = Query::try_from_uri(&parts.uri).map(|Query(map)| map);
        let query = query.map_err(|_| Refused(Reject::BadRequest("The query string cannot be read".into())))?;
        let is_long = parts.extensions.get::<LongBody>().is_some();
        let most = if is_long { MAX_LONG_BODY } else { MAX_LOCAL_BODY };
        let body = tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(body, most)).await;
        let body = body.map_err(|_| Refused(Reject::RequestTimeout))?.map_err(|error| Refused(broken_body(error)))?;
        Ok(Self {
            address: parts.extensions.get::<ClientAddress>().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |client| client.0),
            request: parts.extensions.get().copied(),
            line: format!("{} {}", parts.method, parts.uri.path()),
            user_agent: parts.headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).map(str::to_owned),
            wants_html: parts
                .headers
                .get(header::ACCEPT)
                .and_then(|accept| accept.to_str().ok())
                .is_some_and(|accept| accept.contains("text/html")),
            device: crate::handler::device::shown(&parts.headers),
            credential: credential(&parts.headers),
            headers: parts.headers,
            method: parts.method,
            query,
            path,
            body,
        })
    }
}

async fn path_of<S: Send + Sync>(parts: &mut Parts, state: &S) -> HashMap<String, String> {
    Path::from_request_parts(parts, state).await.map(|Path(map)| map).unwrap_or_default()
}

fn broken_body(error: axum::Error) -> Reject {
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    while let Some(error) = cause {
        if error.is::<http_body_util::LengthLimitError>() {
            return Reject::BodyTooLarge { limit: MAX_LOCAL_BODY as u64 };
        }
        cause = error.source();
    }
    Reject::BadRequest("The request body broke off".into())
}

/// The bearer token, or the `X-API-Key`; never two that differ.
fn credential(headers: &HeaderMap) -> Result<Option<String>, Reject> {
    let mut found: Option<&str> = None;
    let bearers = headers.get_all(header::AUTHORIZATION).iter().map(|value| {
        let (scheme, token) = value.to_str().ok()?.trim().split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    let keys = headers.get_all("x-api-key").iter().map(|value| value.to_str().ok().map(str::trim));
    for token in bearers.chain(keys) {
        let token = token.filter(|t| !t.is_empty()).ok_or(Reject::Unauthenticated)?;
        if found.is_some_and(|other| other != token) {
            return Err(Reject::BadRequest("Two different credentials in one request".into()));
        }
        found = Some(token);
    }
    Ok(found.map(str::to_owned))
}

impl Call {
    /// Where the call comes from, for its record in the audit trail.
    pub fn origin(&self) -> Origin {
        Origin { address: Some(self.address), request: self.request }
    }

    /// The credential the call came with.
    ///
    /// # Errors
    /// [`Reject::Unauthenticated`] without one, [`Reject::BadRequest`] with two.
    pub fn token(&self) -> Result<Shown<'_>, Reject> {
        match &self.credential {
            Ok(Some(token)) => Ok(Shown::new(token, self.address)),
            Ok(None) => Err(Reject::Unauthenticated),
            Err(reject) => Err(reject.clone()),
        }
    }

    /// The session that the call came with: as [`Call::token`], or, where cookies count, in one.
    ///
    /// # Errors
    /// As [`Call::token`]; [`Reject::Forbidden`] for a cookie in a request that another site's page has made.
    pub fn session(&self, cookies: Option<&CookieRule>) -> Result<Shown<'_>, Reject> {
        let token = self.token();
        let line = self.headers.get(header::COOKIE).map(|line| line.as_bytes());
        let (Err(Reject::Unauthenticated), Some(rule), Some(line)) = (&token, cookies, line) else {
            return token;
        };
        let named = self.headers.contains_key(header::AUTHORIZATION) || self.headers.contains_key("x-api-key");
        let Some(session) = rule.find(line).filter(|_| !named) else { return Err(Reject::Unauthenticated) };
        if !rule.trusts(&self.provenance()) {
            return Err(Reject::Forbidden(CROSS_SITE));
        }
        let text = std::str::from_utf8(session).map_err(|_| Reject::Unauthenticated)?;
        Ok(Shown { counts: false, ..Shown::new(text, self.address) })
    }

    /// Where the request comes from, as a browser says.
    pub fn provenance(&self) -> Provenance<'_> {
        pages::provenance(&self.method, &self.headers)
    }

    /// A cookie of the request.
    pub fn cookie(&self, wanted: &str) -> Option<&str> {
        let all = self.headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs = all.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='));
        pairs.find(|(name, _)| *name == wanted).map(|(_, value)| value)
    }

    /// A part of the path; empty when the route has no such part.
    pub fn part(&self, name: &str) -> &str {
        self.path.get(name).map_or("", String::as_str)
    }

    /// A number in the path. What is no number is not there.
    ///
    /// # Errors
    /// [`Reject::NotFound`].
    pub fn number(&self, name: &str) -> Result<u64, Reject> {
        self.part(name).parse().map_err(|_| Reject::NotFound)
    }

    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str)
    }

    /// A query parameter that `parse` must understand; `what` says what it must be.
    ///
    /// # Errors
    /// [`Reject::Invalid`].
    pub fn query_parsed<T>(
        &self,
        name: &str,
        what: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, Reject> {
        let Some(text) = self.query(name).filter(|text| !text.is_empty()) else { return Ok(None) };
        parse(text).map(Some).ok_or_else(|| Reject::Invalid(vec![format!("{name}: {what}")]))
    }

    /// # Errors
    /// [`Reject::Invalid`] for what is neither true nor false.
    pub fn query_flag(&self, name: &str) -> Result<Option<bool>, Reject> {
        self.query_parsed(name, "must be true or false", |text| match text {
            "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => None,
        })
    }

    /// The body as it came.
    ///
    /// # Errors
    /// [`Reject::BadRequest`] when it is no text.
    pub fn text(&self) -> Result<&str, Reject> {
        std::str::from_utf8(&self.body).map_err(|_| Reject::BadRequest("The body is not valid UTF-8".into()))
    }

    /// `page` and `page_size`, cut to what makes sense.
    ///
    /// # Errors
    /// [`Reject::Invalid`] for what is no whole number.
    pub fn page(&self) -> Result<(usize, usize), Reject> {
        let read = |name: &str, default: usize, most: usize| match self.query(name) {
            None => Ok(default),
            Some(text) => match i128::from_str(text) {
                Ok(n) => Ok(n.clamp(1, most as i128) as usize),
                Err(_) => Err(Reject::Invalid(vec![format!("{name}: must be a whole number")])),
            },
        };
        let most = crate::accounts::users::MAX_PAGE_SIZE;
        Ok((read("page", 1, MAX_PAGE)?, read("page_size", DEFAULT_PAGE_SIZE, most)?))
    }

    /// A time in the query, in RFC 3339. A `+` that was not escaped has become a space on the way and is one again.
    ///
    /// # Errors
    /// [`Reject::Invalid`] for what is no time.
    pub fn query_time(&self, name: &str) -> Result<Option<UnixMillis>, Reject> {
        let read =
            |text: &str| UnixMillis::parse_rfc3339(text).or_else(|| UnixMillis::parse_rfc3339(&text.replace(' ', "+")));
        let Some(text) = self.query(name) else {
            return Ok(None);
        };
        let wrong = || Reject::Invalid(vec![format!("{name}: must be a time such as 2026-12-31T23:59:59Z")]);
        read(text).map(Some).ok_or_else(wrong)
    }

    /// A text in the query that is neither empty nor longer than `most` bytes.
    ///
    /// # Errors
    /// [`Reject::Invalid`].
    pub fn query_text(&self, name: &str, most: usize) -> Result<Option<&str>, Reject> {
        match self.query(name) {
            Some(text) if text.is_empty() || text.len() > most => {
                Err(Reject::Invalid(vec![format!("{name}: must have 1 to {most} characters")]))
            }
            text => Ok(text),
        }
    }

    /// The body's fields.
    ///
    /// # Errors
    /// [`Reject::BadRequest`] when it is no JSON object.
    pub fn fields(&self) -> Result<Fields, Reject> {
        let value: Value = serde_json::from_slice(&self.body).map_err(|error| {
            Reject::BadRequest(format!("The body is not valid JSON (line {}, column {})", error.line(), error.column()))
        })?;
        match value {
            Value::Object(map) => Ok(Fields::of(map, String::new())),
            _ => Err(Reject::BadRequest("The body must be a JSON object".into())),
        }
    }

    /// `HEAD` reaches the handlers of `GET`.
    pub fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }

    /// As [`Call::optional_fields`], also for what a browser's form sends.
    ///
    /// # Errors
    /// As [`Call::fields`].
    pub fn fields_or_form(&self) -> Result<Fields, Reject> {
        let text = self.body.trim_ascii();
        if text.is_empty() || text.starts_with(b"{") || !text.contains(&b'=') {
            return self.optional_fields();
        }
        let unreadable = || Reject::BadRequest("The form cannot be read".into());
        let uri = [b"/?".as_slice(), text].concat();
        let uri = http::Uri::try_from(uri).map_err(|_| unreadable())?;
        let Query(map) = Query::<HashMap<String, String>>::try_from_uri(&uri).map_err(|_| unreadable())?;
        let map = map.into_iter().map(|(name, value)| (name, Value::String(value))).collect();
        Ok(Fields::of(map, String::new()))
    }

    /// As [`Call::fields_or_form`], also for a form with files in it; a file is a field with its content in base64.
    ///
    /// # Errors
    /// As [`Call::fields`].
    pub async fn form(&self) -> Result<Fields, Reject> {
        let kind = self.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.to_ascii_lowercase().starts_with("multipart/form-data") {
            return self.fields_or_form();
        }
        let unreadable = |_| Reject::BadRequest("The form cannot be read".into());
        let request = Request::builder().header(header::CONTENT_TYPE, kind);
        let mut request = request.body(axum::body::Body::from(self.body.clone())).map_err(|_| Reject::Internal)?;
        // It was received already.
        DefaultBodyLimit::disable().apply(&mut request);
        let mut parts = Multipart::from_request(request, &()).await.map_err(|_| unreadable(()))?;
        let mut map = Map::new();
        while let Some(part) = parts.next_field().await.map_err(|_| unreadable(()))? {
            let (Some(name), is_file) = (part.name().map(str::to_owned), part.file_name().is_some()) else { continue };
            let bytes = part.bytes().await.map_err(|_| unreadable(()))?;
            let text = if is_file { STANDARD.encode(&bytes) } else { String::from_utf8_lossy(&bytes).into_owned() };
            map.insert(name, Value::String(text));
        }
        Ok(Fields::of(map, String::new()))
    }

    /// As [`Call::fields`]; no body at all is an object without fields.
    ///
    /// # Errors
    /// As [`Call::fields`].
    pub fn optional_fields(&self) -> Result<Fields, Reject> {
        if self.body.trim_ascii().is_empty() {
            return Ok(Fields::of(Map::new(), String::new()));
        }
        self.fields()
    }

    /// For a call that takes no fields, and on which one would be a restriction that somebody relies on.
    ///
    /// # Errors
    /// [`Reject::Invalid`] for any field, [`Reject::BadRequest`] for what is no JSON object.
    pub fn refuse_fields(&self) -> Result<(), Reject> {
        self.optional_fields()?.done_strictly()
    }
}

/// The fields of a JSON object, taken one by one. What does not fit is collected and told at the end, all at once.
pub struct Fields {
    map: Map<String, Value>,
    path: String,
    faults: Vec<String>,
    /// The names that were asked for, which are the known ones.
    known: Vec<String>,
    /// Fields of objects within that nobody has asked for.
    strangers: Vec<String>,
}

/// Unknown fields that are named at most.
const MAX_STRANGERS: usize = 8;

impl Fields {
    fn of(map: Map<String, Value>, path: String) -> Self {
        Self { map, path, faults: Vec::new(), known: Vec::new(), strangers: Vec::new() }
    }

    /// Notes what does not fit a field.
    pub fn fault(&mut self, name: &str, what: &str) {
        self.faults.push(format!("{}{name}: {what}", self.path));
    }

    /// A field that may be left out or null.
    fn take(&mut self, name: &str) -> Option<Value> {
        self.known.push(name.to_owned());
        self.map.remove(name).filter(|value| !value.is_null())
    }

    pub fn optional_text(&mut self, name: &str) -> Option<String> {
        match self.take(name)? {
            Value::String(text) => Some(text),
            _ => {
                self.fault(name, "must be a string");
                None
            }
        }
    }

    /// A string, or a number as it is written.
    pub fn optional_word(&mut self, name: &str) -> Option<String> {
        match self.map.get(name) {
            Some(Value::Number(number)) => {
                let text = number.to_string();
                self.map.remove(name);
                Some(text)
            }
            _ => self.optional_text(name),
        }
    }

    pub fn text(&mut self, name: &str) -> String {
        if self.map.get(name).is_none_or(Value::is_null) {
            self.fault(name, "is required");
        }
        self.optional_text(name).unwrap_or_default()
    }

    /// The password that an act asks for again, with the session it goes with. Accounts without a password leave it out.
    ///
    /// # Errors
    /// [`Reject::Unauthenticated`] without a session.
    pub fn proof(&mut self, name: &str, call: &Call) -> Result<Proof, Reject> {
        let password = if self.has(name) { Some(self.password(name)?) } else { None };
        Ok(Proof { password, field: name.to_owned(), code: None, token: call.token()?.text.to_owned() })
    }

    /// A password; empty when it is missing, which [`Fields::done`] refuses.
    ///
    /// # Errors
    /// [`Reject::Invalid`] when it is absurdly long.
    pub fn password(&mut self, name: &str) -> Result<Password, Reject> {
        Password::new(self.text(name))
    }

    /// A list of strings.
    pub fn optional_texts(&mut self, name: &str) -> Option<Vec<String>> {
        let texts = match self.take(name)? {
            Value::Array(list) => list
                .into_iter()
                .map(|item| match item {
                    Value::String(text) => Some(text),
                    _ => None,
                })
                .collect(),
            _ => None,
        };
        if texts.is_none() {
            self.fault(name, "must be a list of strings");
        }
        texts
    }

    /// An object of strings, under whatever names. What is null is left out.
    pub fn optional_text_map(&mut self, name: &str) -> Option<BTreeMap<String, String>> {
        let texts = match self.take(name)? {
            Value::Object(map) => map
                .into_iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(key, value)| match value {
                    Value::String(text) => Some((key, text)),
                    _ => None,
                })
                .collect(),
            _ => None,
        };
        if texts.is_none() {
            self.fault(name, "must be an object of strings");
        }
        texts
    }

    /// Notes that a field which others may leave out is needed here.
    pub fn missing(&mut self, name: &str) {
        self.known.push(name.to_owned());
        self.fault(name, "is required");
    }

    /// An object, as JSON text.
    pub fn optional_json(&mut self, name: &str) -> Option<String> {
        match self.take(name)? {
            object @ Value::Object(_) => Some(object.to_string()),
            _ => {
                self.fault(name, "must be an object");
                None
            }
        }
    }

    /// A required list, as JSON text; an empty one when it is wrong.
    pub fn json_list(&mut self, name: &str) -> String {
        match self.take(name) {
            Some(list @ Value::Array(_)) => return list.to_string(),
            Some(_) => self.fault(name, "must be a list"),
            None => self.fault(name, "is required"),
        }
        String::new()
    }

    /// The name of a field that nobody has asked for.
    pub fn any_left(&self) -> Option<String> {
        self.map.keys().next().map(|name| name.chars().filter(|c| !c.is_control()).take(50).collect())
    }

    pub fn has(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(|value| !value.is_null())
    }

    /// Whether the field is there and null: what it names is to be taken away.
    pub fn is_null(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(Value::is_null)
    }

    pub fn optional_flag(&mut self, name: &str) -> Option<bool> {
        match self.take(name)? {
            Value::Bool(flag) => Some(flag),
            _ => {
                self.fault(name, "must be true or false");
                None
            }
        }
    }

    pub fn optional_number(&mut self, name: &str) -> Option<u64> {
        let number = self.take(name)?;
        if number.as_u64().is_none() {
            self.fault(name, "must be a whole number");
        }
        number.as_u64()
    }

    /// An amount on a meter: a number that is not negative.
    pub fn optional_amount(&mut self, name: &str) -> Option<Micro> {
        let amount = self.take(name)?;
        // Whole numbers go by a way that keeps all their digits.
        let micros = match amount.as_u64() {
            Some(whole) => i64::try_from(whole).ok().and_then(Micro::units),
            None => amount.as_f64().and_then(Micro::from_decimal),
        };
        if micros.is_none() {
            self.fault(name, "must be a number between 0 and 9 million million");
        }
        micros
    }

    /// An amount on a meter that must be there and may be negative. What is finer than a millionth is rounded away from 0.
    pub fn signed_amount(&mut self, name: &str) -> Option<Micro> {
        let Some(amount) = self.take(name) else {
            self.fault(name, "is required");
            return None;
        };
        // Whole numbers go by a way that keeps all their digits.
        let micros = match amount.as_i64() {
            Some(whole) => Micro::units(whole),
            None => amount.as_f64().and_then(|number| {
                let size = Micro::from_decimal(number.abs())?;
                Some(if number < 0.0 { Micro(-size.0) } else { size })
            }),
        };
        if micros.is_none() {
            self.fault(name, "must be a number between -9 and 9 million million");
        }
        micros
    }

    pub fn optional_time(&mut self, name: &str) -> Option<UnixMillis> {
        let text = self.optional_text(name)?;
        let time = UnixMillis::parse_rfc3339(&text);
        if time.is_none() {
            self.fault(name, "must be a time such as 2026-12-31T23:59:59Z");
        }
        time
    }

    /// A field that `parse` must understand.
    pub fn optional_parsed<T>(&mut self, name: &str, what: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let text = self.optional_text(name)?;
        let parsed = parse(&text);
        if parsed.is_none() {
            self.fault(name, what);
        }
        parsed
    }

    /// As [`Fields::optional_parsed`], for a field that must be there.
    pub fn parsed<T>(&mut self, name: &str, what: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        if self.map.get(name).is_none_or(Value::is_null) {
            self.missing(name);
            return None;
        }
        self.optional_parsed(name, what, parse)
    }

    /// An object within the object.
    pub fn optional_object<T>(&mut self, name: &str, read: impl FnOnce(&mut Self) -> T) -> Option<T> {
        match self.take(name)? {
            Value::Object(map) => {
                let mut inner = Self::of(map, format!("{}{name}.", self.path));
                let value = read(&mut inner);
                self.faults.append(&mut inner.faults);
                self.strangers.append(&mut inner.unknown_fields());
                Some(value)
            }
            _ => {
                self.fault(name, "must be an object");
                None
            }
        }
    }

    /// Ends the reading; other fields are ignored.
    ///
    /// # Errors
    /// [`Reject::Invalid`] with everything that did not fit.
    pub fn done(self) -> Result<(), Reject> {
        if self.faults.is_empty() { Ok(()) } else { Err(Reject::Invalid(self.faults)) }
    }

    /// As [`Fields::done`], where other fields are refused: a key, a rule or a list of codes without the restriction that
    /// somebody meant to give it is worse than none.
    ///
    /// # Errors
    /// [`Reject::Invalid`], also for each unknown field, with the nearest known one.
    pub fn done_strictly(mut self) -> Result<(), Reject> {
        let mut unknown = self.unknown_fields();
        self.faults.append(&mut unknown);
        self.done()
    }

    /// A line for each field that nobody has asked for.
    fn unknown_fields(&mut self) -> Vec<String> {
        let mut lines = std::mem::take(&mut self.strangers);
        let known: Vec<&str> = self.known.iter().map(String::as_str).collect();
        for name in self.map.keys().take(MAX_STRANGERS.saturating_sub(lines.len())) {
            let shown: String = name.chars().filter(|c| !c.is_control()).take(50).collect();
            let path = &self.path;
            lines.push(match nearest::of(name, known.iter().copied()) {
                Some(known) => format!("{path}{shown}: unknown field; did you mean `{path}{known}`?"),
                None => format!("{path}{shown}: unknown field; this call takes none"),
            });
        }
        lines
    }
}
