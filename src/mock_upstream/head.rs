//! A request's head: where it goes, how its body is framed, and how its answer is steered.
//!
//! Owns parsing and the refusal of framing that two servers could read differently. It keeps positions, not copies:
//! every range counts from the first byte of the head. It never reads a body.

use std::borrow::Cow;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::tally::RecordedRequest;

/// More header lines than this are refused.
const MAX_HEADERS: usize = 256;

/// What a path and method ask for. The first ones are counted by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    Chat,
    Completions,
    Responses,
    Embeddings,
    Images,
    Models,
    Model,
    Stats,
    Echo,
}

impl Endpoint {
    pub(super) const COUNTED: usize = 7;
    /// The names under which the first endpoints are counted, in the order of the variants.
    pub(super) const PATHS: [&'static str; Self::COUNTED] = [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/embeddings",
        "/v1/images/generations",
        "/v1/models",
        "/v1/models/{id}",
    ];

    fn of(verb: Verb, path: &[u8]) -> Self {
        match (verb, path) {
            (Verb::Post, b"/v1/chat/completions") => Self::Chat,
            (Verb::Post, b"/v1/completions") => Self::Completions,
            (Verb::Post, b"/v1/responses") => Self::Responses,
            (Verb::Post, b"/v1/embeddings") => Self::Embeddings,
            (Verb::Post, b"/v1/images/generations") => Self::Images,
            (Verb::Get | Verb::Head, b"/v1/models") => Self::Models,
            (Verb::Get | Verb::Head, b"/__mock/stats") => Self::Stats,
            (Verb::Get | Verb::Head, path) if path.starts_with(b"/v1/models/") => Self::Model,
            _ => Self::Echo,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    Head,
    Post,
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyFraming {
    Length(u64),
    Chunked,
}

#[derive(Debug)]
pub(super) struct Head {
    pub(super) len: usize,
    pub(super) verb: Verb,
    pub(super) endpoint: Endpoint,
    pub(super) http11: bool,
    pub(super) keep_alive: bool,
    pub(super) expects_continue: bool,
    pub(super) framing: BodyFraming,
    pub(super) steer: Steering,
    method: Range<usize>,
    target: Range<usize>,
    path: Range<usize>,
    request_id: Option<Range<usize>>,
}

/// What the `x-mock-…` headers ask for.
#[derive(Debug, Default)]
pub(super) struct Steering {
    pub(super) delay_ms: u64,
    /// Present, even as 0: every event gets a write of its own.
    pub(super) chunk_delay_ms: Option<u64>,
    pub(super) tokens: Option<u64>,
    pub(super) status: Option<u16>,
    pub(super) abort_after_bytes: Option<u64>,
    pub(super) usage: Usage,
    pub(super) early: bool,
    pub(super) body_bytes: Option<u64>,
    pub(super) chunked: bool,
    pub(super) trailers: bool,
    pub(super) close: bool,
    pub(super) hop: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Usage {
    #[default]
    Counted,
    Omitted,
    /// Goes out as it came in, however wrong.
    Literal(Vec<u8>),
}

/// What parsing the buffered bytes gave.
#[derive(Debug)]
pub(super) enum Parsed {
    Head(Box<Head>),
    Partial,
    Malformed,
}

pub(super) fn parse(bytes: &[u8]) -> Parsed {
    let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(bytes, &mut headers) {
        Ok(httparse::Status::Complete(len)) => match read(bytes, len, &request) {
            Some(head) => Parsed::Head(Box::new(head)),
            None => Parsed::Malformed,
        },
        Ok(httparse::Status::Partial) => Parsed::Partial,
        Err(_) => Parsed::Malformed,
    }
}

fn read(bytes: &[u8], len: usize, request: &httparse::Request<'_, '_>) -> Option<Head> {
    let method = range_in(bytes, request.method?.as_bytes());
    let target = range_in(bytes, request.path?.as_bytes());
    let path = path_range(bytes, target.clone());
    let verb = verb(&bytes[method.clone()]);
    let http11 = request.version == Some(1);
    let mut fields = Fields::default();
    for header in request.headers.iter() {
        fields.take(bytes, header)?;
    }
    Some(Head {
        len,
        verb,
        endpoint: Endpoint::of(verb, &bytes[path.clone()]),
        http11,
        keep_alive: !fields.close && (http11 || fields.keep_alive),
        expects_continue: fields.expects_continue,
        framing: fields.framing()?,
        steer: fields.steer,
        method,
        target,
        path,
        request_id: fields.request_id,
    })
}

impl Head {
    pub(super) fn path<'a>(&self, bytes: &'a [u8]) -> Cow<'a, str> {
        String::from_utf8_lossy(slice(bytes, &self.path))
    }

    pub(super) fn query<'a>(&self, bytes: &'a [u8]) -> Cow<'a, str> {
        let query = slice(bytes, &(self.path.end..self.target.end));
        String::from_utf8_lossy(query.strip_prefix(b"?").unwrap_or(query))
    }

    pub(super) fn request_id<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        self.request_id.as_ref().map(|range| slice(bytes, range))
    }

    /// The whole request as a value of its own. Parses again, because the head keeps no header positions.
    pub(super) fn to_record(&self, bytes: &[u8], body: &[u8]) -> RecordedRequest {
        let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut []);
        // These bytes parsed before; should they not now, the record just has no headers.
        let parsed = request.parse_with_uninit_headers(bytes, &mut headers).is_ok();
        let headers = request.headers.iter().filter(|_| parsed);
        RecordedRequest {
            method: String::from_utf8_lossy(slice(bytes, &self.method)).into_owned(),
            target: String::from_utf8_lossy(slice(bytes, &self.target)).into_owned(),
            headers: headers.map(|header| (header.name.to_owned(), header.value.to_vec())).collect(),
            body: body.to_vec(),
        }
    }
}

/// What is gathered while walking over the header lines.
#[derive(Default)]
struct Fields {
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
    request_id: Option<Range<usize>>,
    steer: Steering,
}

impl Fields {
    /// Looks at one line; `None` refuses the request. Lengths first: nearly every name is told apart by its length.
    fn take(&mut self, bytes: &[u8], header: &httparse::Header<'_>) -> Option<()> {
        let (name, value) = (header.name, header.value);
        match name.len() {
            6 if name.eq_ignore_ascii_case("expect") => {
                self.expects_continue = value.eq_ignore_ascii_case(b"100-continue");
            }
            10 if name.eq_ignore_ascii_case("connection") => self.take_connection(value),
            12 if name.eq_ignore_ascii_case("x-request-id") => self.request_id = Some(range_in(bytes, value)),
            14 if name.eq_ignore_ascii_case("content-length") => self.take_length(value)?,
            17 if name.eq_ignore_ascii_case("transfer-encoding") => self.take_encoding(value)?,
            _ => {}
        }
        if let Some((prefix, rest)) = name.split_at_checked(7)
            && prefix.eq_ignore_ascii_case("x-mock-")
        {
            self.steer.take(rest, value);
        }
        Some(())
    }

    fn take_connection(&mut self, value: &[u8]) {
        for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    /// A second length, even an equal one, is refused: no proxy should pass it on.
    fn take_length(&mut self, value: &[u8]) -> Option<()> {
        let length = decimal(value)?;
        self.length.replace(length).is_none().then_some(())
    }

    fn take_encoding(&mut self, value: &[u8]) -> Option<()> {
        let first = !std::mem::replace(&mut self.chunked, true);
        (first && value.trim_ascii().eq_ignore_ascii_case(b"chunked")).then_some(())
    }

    fn framing(&self) -> Option<BodyFraming> {
        match (self.length, self.chunked) {
            (Some(_), true) => None,
            (None, true) => Some(BodyFraming::Chunked),
            (length, false) => Some(BodyFraming::Length(length.unwrap_or(0))),
        }
    }
}

impl Steering {
    /// Unknown names and unreadable numbers are ignored: steering is for tests, which look at what they get.
    fn take(&mut self, name: &str, value: &[u8]) {
        match name.to_ascii_lowercase().as_str() {
            "delay-ms" => self.delay_ms = decimal(value).unwrap_or(0),
            "chunk-delay-ms" => self.chunk_delay_ms = decimal(value),
            "tokens" => self.tokens = decimal(value),
            "status" => self.status = decimal(value).and_then(final_status),
            "abort-after-bytes" => self.abort_after_bytes = decimal(value),
            "usage" => self.usage = Usage::from_header(value),
            "early" => self.early = is_on(value),
            "body-bytes" => self.body_bytes = decimal(value),
            "chunked" => self.chunked = is_on(value),
            "trailers" => self.trailers = is_on(value),
            "close" => self.close = is_on(value),
            "hop" => self.hop = is_on(value),
            _ => {}
        }
    }
}

impl Usage {
    fn from_header(value: &[u8]) -> Self {
        match value {
            b"none" | b"omit" => Self::Omitted,
            literal => Self::Literal(literal.to_vec()),
        }
    }
}

fn is_on(value: &[u8]) -> bool {
    !matches!(value, b"" | b"0" | b"false")
}

fn final_status(value: u64) -> Option<u16> {
    u16::try_from(value).ok().filter(|status| (200..=599).contains(status))
}

fn verb(method: &[u8]) -> Verb {
    match method {
        b"GET" => Verb::Get,
        b"HEAD" => Verb::Head,
        b"POST" => Verb::Post,
        _ => Verb::Other,
    }
}

/// The path inside a target: without its query and, in absolute form, without scheme and host.
fn path_range(bytes: &[u8], target: Range<usize>) -> Range<usize> {
    let whole = &bytes[target.clone()];
    let start = match memchr::memmem::find(whole, b"://") {
        Some(scheme) if !whole.starts_with(b"/") => {
            let host = scheme + 3;
            memchr::memchr(b'/', &whole[host..]).map_or(whole.len(), |slash| host + slash)
        }
        _ => 0,
    };
    let end = memchr::memchr(b'?', &whole[start..]).map_or(whole.len(), |mark| start + mark);
    target.start + start..target.start + end
}

/// Digits only: signs, blanks and lists are how lengths get smuggled.
pub(super) fn decimal(value: &[u8]) -> Option<u64> {
    let digits = value.iter().all(u8::is_ascii_digit);
    if !digits {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn slice<'a>(bytes: &'a [u8], range: &Range<usize>) -> &'a [u8] {
    bytes.get(range.clone()).unwrap_or_default()
}

/// Where `part`, a slice of `whole`, lies in it.
fn range_in(whole: &[u8], part: &[u8]) -> Range<usize> {
    let start = (part.as_ptr() as usize).saturating_sub(whole.as_ptr() as usize);
    start..start + part.len()
}
