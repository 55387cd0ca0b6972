//! Message heads: the bytes as they came and where the parts are.
//!
//! Owns parsing, framing (RFC 9112 section 6) and which fields `Connection` names. What names mean is in [`super::name`]. Uses httparse to find the parts and
//! refuses what httparse lets pass: bare line feeds, ambiguous lengths, unknown codings.

use std::mem::MaybeUninit;

use memchr::memchr_iter;
use smallvec::SmallVec;

pub use super::name::Name;

/// Header fields in one head; more are refused.
pub const MAX_FIELDS: usize = 100;
/// Names in all `Connection` fields of one head; more are refused, because each is looked for among the fields.
const MAX_CONNECTION_NAMES: usize = 32;

/// A part of a head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    at: u32,
    len: u32,
}

impl Span {
    fn of(part: &[u8], whole: &[u8]) -> Self {
        // Both point into the same buffer, so this is an offset, not a guess.
        let at = (part.as_ptr() as usize).saturating_sub(whole.as_ptr() as usize);
        Self { at: at as u32, len: part.len() as u32 }
    }

    pub fn of_bytes(self, whole: &[u8]) -> &[u8] {
        whole.get(self.at as usize..(self.at + self.len) as usize).unwrap_or_default()
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub name: Name,
    text: Span,
    value: Span,
    /// Named in `Connection`: for this hop alone.
    pub connection_only: bool,
}

type Fields = SmallVec<[Field; 16]>;

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(u64),
    Chunked,
    /// With the connection; only answers may.
    UntilClose,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http10,
    Http11,
}

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadError {
    Malformed(&'static str),
    TooLarge,
    UnsupportedVersion,
    UnsupportedExpectation,
}

/// Looks for the end of a head in bytes that come piece by piece.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadEnd {
    seen: usize,
}

impl HeadEnd {
    /// The head's length with the empty line, when it is complete. `bytes` begins with the head and only ever grows.
    ///
    /// # Errors
    /// A line feed without its carriage return, as soon as it is seen; too many bytes without an end.
    pub fn find(&mut self, bytes: &[u8], max: usize) -> Result<Option<usize>, HeadError> {
        for offset in memchr_iter(b'\n', bytes.get(self.seen..).unwrap_or_default()) {
            let at = self.seen + offset;
            if at == 0 || bytes[at - 1] != b'\r' {
                return Err(HeadError::Malformed("a line ends in a bare line feed"));
            }
            if at >= 3 && bytes[at - 2] == b'\n' {
                return if at < max { Ok(Some(at + 1)) } else { Err(HeadError::TooLarge) };
            }
        }
        self.seen = bytes.len();
        if bytes.len() >= max { Err(HeadError::TooLarge) } else { Ok(None) }
    }
}

/// A request's head.
pub struct RequestHead {
    bytes: Vec<u8>,
    method: Span,
    target: Span,
    path: Span,
    host: Option<Span>,
    pub version: Version,
    fields: Fields,
    pub framing: Framing,
    pub keep_alive: bool,
    pub expects_continue: bool,
    /// Over how many more intermediaries an `OPTIONS` may go; no other method is counted (RFC 9110, 7.6.2).
    pub max_forwards: Option<u64>,
}

impl RequestHead {
    /// Reads a whole head as [`HeadEnd::find`] cut it off; `bytes` may begin with empty lines.
    ///
    /// # Errors
    /// As [`HeadError`] says; the connection must be closed after the answer.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, HeadError> {
        let mut headers = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut request = httparse::Request::new(&mut []);
        match request.parse_with_uninit_headers(&bytes, &mut headers) {
            Ok(httparse::Status::Complete(used)) if used == bytes.len() => {}
            Ok(_) => return Err(HeadError::Malformed("the head does not end where it seems to")),
            Err(httparse::Error::Version) if !names_a_version(&bytes) => {
                return Err(HeadError::Malformed("the request line is malformed"));
            }
            Err(error) => return Err(head_error(error)),
        }
        let version = match request.version {
            Some(1) => Version::Http11,
            Some(0) => Version::Http10,
            _ => return Err(HeadError::UnsupportedVersion),
        };
        let method = request.method.unwrap_or_default().as_bytes();
        let raw_target = request.path.unwrap_or_default().as_bytes();
        let (authority, target) = origin_form(method, raw_target)?;
        let path_len = memchr::memchr(b'?', target).unwrap_or(target.len());
        let mut fields = read_fields(&bytes, request.headers)?;
        let mut head = Self {
            method: Span::of(method, &bytes),
            target: Span::of(target, &bytes),
            path: Span::of(&target[..path_len], &bytes),
            host: None,
            version,
            framing: Framing::None,
            keep_alive: false,
            expects_continue: false,
            max_forwards: None,
            fields: Fields::new(),
            bytes: Vec::new(),
        };
        head.framing = request_framing(&bytes, &fields, version)?;
        head.keep_alive = read_connection(&bytes, &mut fields, version)?;
        head.expects_continue = read_expectation(&bytes, &fields, version)?;
        if method == b"OPTIONS" {
            head.max_forwards = read_max_forwards(&bytes, &fields)?;
        }
        let host = check_host(&bytes, &fields, version)?;
        // A target that names its host outdoes the field (RFC 9112, 3.2.2).
        head.host = authority.or(host).map(|host| Span::of(host, &bytes));
        head.fields = fields;
        head.bytes = bytes;
        Ok(head)
    }

    pub fn method(&self) -> &str {
        std::str::from_utf8(self.method.of_bytes(&self.bytes)).unwrap_or_default()
    }

    /// Path and query as they came.
    pub fn target(&self) -> &[u8] {
        self.target.of_bytes(&self.bytes)
    }

    /// The path as it came, without the query.
    pub fn path(&self) -> &[u8] {
        self.path.of_bytes(&self.bytes)
    }

    /// Fields with their values, in the order they came.
    pub fn fields(&self) -> impl Iterator<Item = (Field, &[u8], &[u8])> {
        self.fields.iter().map(|f| (*f, f.text.of_bytes(&self.bytes), f.value.of_bytes(&self.bytes)))
    }

    /// The values of all fields of that name.
    pub fn all(&self, name: Name) -> impl Iterator<Item = &[u8]> {
        self.fields.iter().filter(move |f| f.name == name).map(|f| f.value.of_bytes(&self.bytes))
    }

    pub fn first(&self, name: Name) -> Option<&[u8]> {
        self.all(name).next()
    }

    /// As [`Self::first`], of fields that the upstream gets too: what `Connection` names ends here, so what it says of the body
    /// must not be believed either.
    pub fn first_passed_on(&self, name: Name) -> Option<&[u8]> {
        self.fields.iter().find(|f| f.name == name && !f.connection_only).map(|f| f.value.of_bytes(&self.bytes))
    }

    /// The host that the request is for.
    pub fn host(&self) -> Option<&[u8]> {
        self.host.map(|host| host.of_bytes(&self.bytes))
    }

    /// Whether sending it twice does no more than sending it once (RFC 9110, 9.2.2), or the client says so itself.
    pub fn is_replayable(&self) -> bool {
        matches!(self.method(), "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
            || self.first(Name::IdempotencyKey).is_some()
    }

    /// Gives the buffer back for the next head.
    pub fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }
}

/// An answer's head, within the buffer it was read into.
pub struct ResponseHead {
    pub status: u16,
    pub version: Version,
    fields: Fields,
    pub framing: Framing,
    pub keep_alive: bool,
    pub len: usize,
}

impl ResponseHead {
    /// Reads the head at the start of `bytes`, `len` long. `head_request`: the answer to HEAD has no body.
    ///
    /// # Errors
    /// As [`HeadError`] says; such an upstream is not trusted any further.
    pub fn parse(bytes: &[u8], len: usize, head_request: bool) -> Result<Self, HeadError> {
        let bytes = bytes.get(..len).unwrap_or_default();
        if !bytes.starts_with(b"HTTP/1.") {
            return Err(HeadError::Malformed("an answer that is not HTTP/1"));
        }
        let mut headers = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut []);
        let parsed =
            httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, bytes, &mut headers);
        match parsed {
            Ok(httparse::Status::Complete(used)) if used == len => {}
            Ok(_) => return Err(HeadError::Malformed("the head does not end where it seems to")),
            Err(error) => return Err(head_error(error)),
        }
        let version = if response.version == Some(0) { Version::Http10 } else { Version::Http11 };
        let status = response.code.unwrap_or_default();
        if !(100..=999).contains(&status) {
            return Err(HeadError::Malformed("a status that is none"));
        }
        let mut fields = read_fields(bytes, response.headers)?;
        let framing = response_framing(bytes, &fields, status, head_request)?;
        let mut keep_alive = read_connection(bytes, &mut fields, version)? && framing != Framing::UntilClose;
        // Version 1.0 knows no such field: whether the body ends where we think is not certain (RFC 9112, 6.1).
        keep_alive &= version == Version::Http11 || !fields.iter().any(|f| f.name == Name::TransferEncoding);
        Ok(Self { status, version, fields, framing, keep_alive, len })
    }

    pub fn fields<'a>(&'a self, bytes: &'a [u8]) -> impl Iterator<Item = (Field, &'a [u8], &'a [u8])> {
        self.fields.iter().map(move |f| (*f, f.text.of_bytes(bytes), f.value.of_bytes(bytes)))
    }

    pub fn first<'a>(&'a self, name: Name, bytes: &'a [u8]) -> Option<&'a [u8]> {
        self.fields.iter().find(|f| f.name == name).map(|f| f.value.of_bytes(bytes))
    }
}

/// Whether the request line has three parts of which the last is some version of HTTP, so that a version is what is wrong.
fn names_a_version(head: &[u8]) -> bool {
    let line = head.trim_ascii_start().split(|b| *b == b'\r').next().unwrap_or_default();
    let mut parts = line.split(|b| *b == b' ');
    let version = parts.nth(2).and_then(|v| v.strip_prefix(b"HTTP/"));
    parts.next().is_none() && version.is_some_and(|v| v.iter().all(|b| b.is_ascii_digit() || *b == b'.'))
}

fn head_error(error: httparse::Error) -> HeadError {
    match error {
        httparse::Error::TooManyHeaders => HeadError::TooLarge,
        httparse::Error::Version => HeadError::UnsupportedVersion,
        httparse::Error::HeaderName => HeadError::Malformed("a header field's name is malformed"),
        httparse::Error::HeaderValue => HeadError::Malformed("a header field's value is malformed"),
        _ => HeadError::Malformed("the request line is malformed"),
    }
}

/// The target's host, if it names one, and its path and query, from origin form or absolute form (RFC 9112, 3.2).
fn origin_form<'a>(method: &[u8], target: &'a [u8]) -> Result<(Option<&'a [u8]>, &'a [u8]), HeadError> {
    if method == b"CONNECT" {
        return Err(HeadError::Malformed("CONNECT is not supported"));
    }
    if target.iter().any(|b| *b <= b' ' || *b == 0x7f || *b == b'#') {
        return Err(HeadError::Malformed("the request target has characters it may not have"));
    }
    if target.first() == Some(&b'/') || target == b"*" {
        return Ok((None, target));
    }
    let after_scheme = ["http://", "https://"].iter().find_map(|scheme| {
        let head = target.get(..scheme.len())?;
        head.eq_ignore_ascii_case(scheme.as_bytes()).then(|| &target[scheme.len()..])
    });
    let malformed = HeadError::Malformed("the request target is malformed");
    let Some(rest) = after_scheme else { return Err(malformed) };
    // The first of both ends the authority: a query may have slashes, too.
    match memchr::memchr2(b'/', b'?', rest) {
        Some(end) if rest[end] == b'/' && is_host(&rest[..end]) => Ok((Some(&rest[..end]), &rest[end..])),
        _ => Err(malformed),
    }
}

/// `name`, `1.2.3.4`, `[::1]`, each with or without `:port` (RFC 9110, 7.2). Nothing else: an upstream may build links of it.
fn is_host(text: &[u8]) -> bool {
    let digits = |port: &[u8]| port.iter().all(u8::is_ascii_digit);
    if let Some(bracketed) = text.strip_prefix(b"[") {
        let Some(end) = memchr::memchr(b']', bracketed) else { return false };
        let inside = bracketed[..end].iter().all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.'));
        let port = &bracketed[end + 1..];
        return end > 0 && inside && (port.is_empty() || port.strip_prefix(b":").is_some_and(digits));
    }
    let (name, port) = match memchr::memchr(b':', text) {
        Some(colon) => (&text[..colon], &text[colon + 1..]),
        None => (text, &b""[..]),
    };
    let in_name = |b: &u8| {
        b.is_ascii_alphanumeric()
            || matches!(
                b,
                b'-' | b'.' | b'_' | b'~' | b'%' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b';' | b'='
            )
    };
    !name.is_empty() && name.iter().all(in_name) && digits(port)
}

fn read_fields(bytes: &[u8], headers: &[httparse::Header<'_>]) -> Result<Fields, HeadError> {
    let mut fields = Fields::with_capacity(headers.len());
    for header in headers {
        if header.name.is_empty() {
            return Err(HeadError::Malformed("a header field has no name"));
        }
        fields.push(Field {
            name: Name::of(header.name.as_bytes()),
            text: Span::of(header.name.as_bytes(), bytes),
            value: Span::of(header.value, bytes),
            connection_only: false,
        });
    }
    Ok(fields)
}

fn values<'a>(bytes: &'a [u8], fields: &'a Fields, name: Name) -> impl Iterator<Item = &'a [u8]> {
    fields.iter().filter(move |f| f.name == name).map(|f| f.value.of_bytes(bytes))
}

fn content_length(bytes: &[u8], fields: &Fields) -> Result<Option<u64>, HeadError> {
    let mut lengths = values(bytes, fields, Name::ContentLength);
    let Some(text) = lengths.next() else { return Ok(None) };
    if lengths.next().is_some() {
        return Err(HeadError::Malformed("Content-Length is there more than once"));
    }
    // Digits only: no sign, no list, no blank, and few enough not to overflow.
    if text.is_empty() || text.len() > 18 || !text.iter().all(u8::is_ascii_digit) {
        return Err(HeadError::Malformed("Content-Length is not a number"));
    }
    Ok(Some(text.iter().fold(0, |n, digit| n * 10 + u64::from(digit - b'0'))))
}

/// Whether the coding is exactly `chunked`; anything else we do not speak.
fn is_chunked(bytes: &[u8], fields: &Fields) -> Result<bool, HeadError> {
    let mut codings = values(bytes, fields, Name::TransferEncoding);
    let Some(coding) = codings.next() else { return Ok(false) };
    if codings.next().is_some() || !coding.eq_ignore_ascii_case(b"chunked") {
        return Err(HeadError::Malformed("Transfer-Encoding must be just: chunked"));
    }
    Ok(true)
}

fn request_framing(bytes: &[u8], fields: &Fields, version: Version) -> Result<Framing, HeadError> {
    let length = content_length(bytes, fields)?;
    if is_chunked(bytes, fields)? {
        if length.is_some() {
            return Err(HeadError::Malformed("Content-Length and Transfer-Encoding exclude each other"));
        }
        if version == Version::Http10 {
            return Err(HeadError::Malformed("HTTP/1.0 knows no Transfer-Encoding"));
        }
        return Ok(Framing::Chunked);
    }
    Ok(match length {
        Some(0) | None => Framing::None,
        Some(n) => Framing::Length(n),
    })
}

fn response_framing(bytes: &[u8], fields: &Fields, status: u16, head_request: bool) -> Result<Framing, HeadError> {
    let length = content_length(bytes, fields)?;
    let chunked = is_chunked(bytes, fields)?;
    if chunked && length.is_some() {
        return Err(HeadError::Malformed("Content-Length and Transfer-Encoding exclude each other"));
    }
    if head_request || status < 200 || status == 204 || status == 304 {
        return Ok(Framing::None);
    }
    Ok(match (chunked, length) {
        (true, _) => Framing::Chunked,
        (false, Some(0)) => Framing::None,
        (false, Some(n)) => Framing::Length(n),
        (false, None) => Framing::UntilClose,
    })
}

/// Reads `Connection`: marks the fields it names and says whether the connection stays.
fn read_connection(bytes: &[u8], fields: &mut Fields, version: Version) -> Result<bool, HeadError> {
    let mut keep_alive = version == Version::Http11;
    if !fields.iter().any(|f| f.name == Name::Connection) {
        return Ok(keep_alive);
    }
    let named: SmallVec<[Span; 8]> = values(bytes, fields, Name::Connection)
        .flat_map(|value| value.split(|b| *b == b','))
        .map(|token| Span::of(token.trim_ascii(), bytes))
        .take(MAX_CONNECTION_NAMES + 1)
        .collect();
    if named.len() > MAX_CONNECTION_NAMES {
        return Err(HeadError::Malformed("Connection names too many fields"));
    }
    for token in named.iter().map(|span| span.of_bytes(bytes)) {
        if token.eq_ignore_ascii_case(b"close") {
            keep_alive = false;
        } else if token.eq_ignore_ascii_case(b"keep-alive") {
            keep_alive = true;
        }
        for field in fields.iter_mut().filter(|f| f.text.of_bytes(bytes).eq_ignore_ascii_case(token)) {
            field.connection_only = true;
        }
    }
    // `close` wins over `keep-alive` in whatever order they come.
    Ok(keep_alive && !named.iter().any(|span| span.of_bytes(bytes).eq_ignore_ascii_case(b"close")))
}

fn read_expectation(bytes: &[u8], fields: &Fields, version: Version) -> Result<bool, HeadError> {
    let mut expects = false;
    for value in values(bytes, fields, Name::Expect) {
        if !value.eq_ignore_ascii_case(b"100-continue") {
            return Err(HeadError::UnsupportedExpectation);
        }
        expects = true;
    }
    // A client of HTTP/1.0 does not wait for what it cannot know (RFC 9110, 10.1.1).
    Ok(expects && version == Version::Http11)
}

fn read_max_forwards(bytes: &[u8], fields: &Fields) -> Result<Option<u64>, HeadError> {
    let mut counts = values(bytes, fields, Name::MaxForwards);
    let Some(text) = counts.next() else { return Ok(None) };
    let count = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    match (count.and_then(|digits| digits.parse().ok()), counts.next()) {
        (Some(count), None) => Ok(Some(count)),
        _ => Err(HeadError::Malformed("Max-Forwards is not a number")),
    }
}

fn check_host<'b>(bytes: &'b [u8], fields: &'b Fields, version: Version) -> Result<Option<&'b [u8]>, HeadError> {
    let mut hosts = values(bytes, fields, Name::Host);
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => Err(HeadError::Malformed("Host is there more than once")),
        (None, None) if version == Version::Http11 => Err(HeadError::Malformed("Host is missing")),
        // It may be empty, where the target has no authority.
        (Some(host), None) if !host.is_empty() && !is_host(host) => Err(HeadError::Malformed("Host is malformed")),
        (host, None) => Ok(host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RequestHead, HeadError> {
        let mut end = HeadEnd::default();
        match end.find(text.as_bytes(), 8192)? {
            Some(len) => RequestHead::parse(text.as_bytes()[..len].to_vec()),
            None => Err(HeadError::Malformed("incomplete")),
        }
    }

    fn get(fields: &str) -> Result<RequestHead, HeadError> {
        parse(&format!("GET /a?b=c HTTP/1.1\r\nHost: x\r\n{fields}\r\n"))
    }

    #[test]
    fn a_plain_head_is_taken_apart() {
        let head = get("Content-Length: 12\r\nX-A: 1\r\nConnection: x-a, keep-alive\r\n").unwrap();
        assert_eq!((head.method(), head.target(), head.path()), ("GET", &b"/a?b=c"[..], &b"/a"[..]));
        assert_eq!(head.framing, Framing::Length(12));
        assert!(head.keep_alive);
        let hop: Vec<_> = head.fields().filter(|(f, ..)| f.connection_only).map(|(_, n, _)| n.to_vec()).collect();
        assert_eq!(hop, [b"X-A".to_vec()]);
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        for fields in [
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length: 1\r\nContent-Length: 1\r\n",
            "Content-Length: 1\r\nContent-Length: 2\r\n",
            "Content-Length: 1, 1\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: 0x1\r\n",
            "Content-Length: \r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding : chunked\r\n",
            "X-A: 1\r\n folded\r\n",
            "X-A: a\0b\r\n",
            "X-A: a\rb\r\n",
            "Host: y\r\n",
            ": empty\r\n",
            "no colon\r\n",
            "X A: 1\r\n",
        ] {
            assert!(matches!(get(fields), Err(HeadError::Malformed(_))), "{fields:?}");
        }
        for text in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\nHost: x\n\n",
            "GET / HTTP/1.1\r\nHost: x\n\r\n",
            "GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET a HTTP/1.1\r\nHost: x\r\n\r\n",
            "CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n",
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
            "GET /\x7f HTTP/1.1\r\nHost: x\r\n\r\n",
        ] {
            assert!(matches!(parse(text), Err(HeadError::Malformed(_))), "{text:?}");
        }
        assert!(matches!(
            parse("GET / HTTP/2.0\r\nHost: x\r\n\r\n"),
            Err(HeadError::UnsupportedVersion | HeadError::Malformed(_))
        ));
        assert!(matches!(get("Expect: 200-ok\r\n"), Err(HeadError::UnsupportedExpectation)));
    }

    #[test]
    fn sizes_are_bounded() {
        let many: String = (0..101).map(|n| format!("x-{n}: 1\r\n")).collect();
        assert!(matches!(get(&many), Err(HeadError::TooLarge)));
        assert!(matches!(HeadEnd::default().find(&[b'a'; 100], 100), Err(HeadError::TooLarge)));
        let long = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", "x".repeat(100));
        assert!(matches!(HeadEnd::default().find(long.as_bytes(), 100), Err(HeadError::TooLarge)));
    }

    #[test]
    fn connection_names_few_fields() {
        let names = |n: usize| (0..n).map(|n| format!("x-{n}")).collect::<Vec<_>>().join(", ");
        let marked = |fields: &str| get(fields).map(|head| head.fields().filter(|(f, ..)| f.connection_only).count());
        assert_eq!(marked(&format!("X-0: a\r\nX-31: b\r\nX-32: c\r\nConnection: {}\r\n", names(32))), Ok(2));
        // However they are spread and written, also where they name nothing.
        for lines in [
            format!("Connection: {}\r\n", names(33)),
            format!("Connection: {}\r\nX-0: a\r\nConnection: {}\r\n", names(17), names(16)),
            format!("Connection: {}\r\n", ",".repeat(32)),
            format!("Connection: close{}\r\n", ", close".repeat(1000)),
        ] {
            assert!(matches!(marked(&lines), Err(HeadError::Malformed(_))), "{}", &lines[..60.min(lines.len())]);
        }
    }

    #[test]
    fn an_end_is_found_at_every_split() {
        let text = b"GET / HTTP/1.1\r\nHost: x\r\n\r\nrest";
        for split in 0..text.len() {
            let mut end = HeadEnd::default();
            let early = end.find(&text[..split], 8192).unwrap();
            assert_eq!(early, (split >= 27).then_some(27), "split {split}");
            if early.is_none() {
                assert_eq!(end.find(text, 8192).unwrap(), Some(27));
            }
        }
    }

    #[test]
    fn absolute_form_and_keep_alive_rules() {
        let head = parse("GET http://other:80/p?q HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert_eq!((head.target(), head.host()), (&b"/p?q"[..], Some(&b"other:80"[..])));
        assert_eq!(get("").unwrap().host(), Some(&b"x"[..]));
        assert_eq!(parse("GET http://other/ HTTP/1.0\r\n\r\n").unwrap().host(), Some(&b"other"[..]));
        assert!(!parse("GET / HTTP/1.0\r\n\r\n").unwrap().keep_alive);
        assert!(parse("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").unwrap().keep_alive);
        assert!(!get("Connection: close\r\nConnection: keep-alive\r\n").unwrap().keep_alive);
    }

    #[test]
    fn answers_are_framed_by_status_and_method() {
        let answer = |text: &str, head| {
            let len = HeadEnd::default().find(text.as_bytes(), 8192).unwrap().unwrap();
            ResponseHead::parse(text.as_bytes(), len, head)
        };
        assert_eq!(answer("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", false).unwrap().framing, Framing::Length(3));
        assert_eq!(answer("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", true).unwrap().framing, Framing::None);
        assert_eq!(answer("HTTP/1.1 204 No\r\n\r\n", false).unwrap().framing, Framing::None);
        let until_close = answer("HTTP/1.1 200 OK\r\n\r\n", false).unwrap();
        assert!(until_close.framing == Framing::UntilClose && !until_close.keep_alive);
        assert!(answer("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", false).is_err());
        let stays = |version: &str| {
            let text = format!("HTTP/{version} 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n");
            let answer = answer(&text, false).unwrap();
            (answer.framing, answer.keep_alive)
        };
        assert_eq!((stays("1.1"), stays("1.0")), ((Framing::Chunked, true), (Framing::Chunked, false)));
    }
}
