//! Which model a request names, whatever form its body has.
//!
//! Owns the reading of forms, of multipart bodies, of the query, and the look at a body that says it is no JSON and may be
//! taken for it all the same. What two programs could read in two ways is refused, never guessed. Never knows what a model costs.

use std::borrow::Cow;

use smallvec::SmallVec;

use super::http1::head::{Name, RequestHead};
use crate::domain::model;
use crate::error::Reject;

/// The field that names the model, in every form.
const FIELD: &[u8] = b"model";
/// Longest name of a model, in bytes.
pub const MAX_MODEL_BYTES: usize = 256;
/// Longest boundary of a multipart body (RFC 2046, 5.1.1, allows 70).
const MAX_BOUNDARY: usize = 200;
/// Character sets in which ASCII is what it is in UTF-8.
const CHARSETS: [&[u8]; 7] = [b"utf-8", b"utf8", b"us-ascii", b"ascii", b"iso-8859-1", b"latin1", b"windows-1252"];

/// # Errors
/// [`Reject::UnsupportedMediaType`] for a body that must be read and is compressed.
pub fn check_coding(head: &RequestHead) -> Result<(), Reject> {
    let plain = |value: &[u8]| value.is_empty() || value.eq_ignore_ascii_case(b"identity");
    if head.all(Name::ContentEncoding).all(plain) {
        return Ok(());
    }
    Err(Reject::UnsupportedMediaType("This body must be read here: send it without Content-Encoding"))
}

/// Whether a program that does not look at `Content-Type` could take this for JSON. Also in UTF-16 and UTF-32, which some find out
/// by themselves, and which nobody here reads.
pub fn looks_like_json(body: &[u8]) -> bool {
    let narrow = body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body);
    if opens_json(narrow.iter().copied()) {
        return true;
    }
    // Units of so many bytes, of which the one at this place is the character and the others are nothing.
    let wide = |width: usize, place: usize| {
        let character = |unit: &[u8]| {
            let rest_is_nothing = unit.iter().enumerate().all(|(at, byte)| at == place || *byte == 0);
            // What is none ends the search.
            if rest_is_nothing { unit.get(place).copied().unwrap_or_default() } else { b'x' }
        };
        let marked = body.first().is_some_and(|first| matches!(first, 0xFE | 0xFF))
            || (width == 4 && body.starts_with(b"\0\0\xFE\xFF"));
        opens_json(body.chunks_exact(width).skip(usize::from(marked)).map(character))
    };
    wide(2, 0) || wide(2, 1) || wide(4, 0) || wide(4, 3)
}

fn opens_json(mut characters: impl Iterator<Item = u8>) -> bool {
    matches!(characters.find(|byte| !byte.is_ascii_whitespace() && *byte != 0x0b), Some(b'{' | b'['))
}

/// The model that a body without JSON names, by its `Content-Type`.
///
/// # Errors
/// [`Reject::BadRequest`] for what has more than one reading, [`Reject::UnsupportedMediaType`] for an unknown character set.
pub fn in_body<'b>(head: &RequestHead, body: &'b [u8]) -> Result<Option<Cow<'b, str>>, Reject> {
    let Some(media) = head.first_passed_on(Name::ContentType) else { return Ok(None) };
    let essence = media.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    if essence.eq_ignore_ascii_case(b"application/x-www-form-urlencoded") {
        return in_pairs(body).map_err(|why| Reject::BadRequest(format!("The form cannot be read: {why}")));
    }
    if essence.get(..10).is_some_and(|kind| kind.eq_ignore_ascii_case(b"multipart/")) {
        let is_form = essence.eq_ignore_ascii_case(b"multipart/form-data");
        let found = boundary(media).and_then(|boundary| in_parts(&boundary, body, is_form));
        return found.map_err(|why| Reject::BadRequest(format!("The multipart body cannot be read: {why}")));
    }
    Ok(None)
}

/// What a body that names a model may say of itself.
///
/// # Errors
/// As [`in_body`].
pub fn check_media(head: &RequestHead) -> Result<(), Reject> {
    if head.all(Name::ContentType).nth(1).is_some() {
        return Err(Reject::BadRequest("Content-Type is there more than once".into()));
    }
    let Some(media) = head.first_passed_on(Name::ContentType) else { return Ok(()) };
    let parameters = media.iter().position(|byte| *byte == b';').and_then(|at| media.get(at..)).unwrap_or_default();
    let mut known = true;
    let read = each_parameter(parameters, |name, value| {
        known &= !name.eq_ignore_ascii_case(b"charset") || CHARSETS.iter().any(|set| set.eq_ignore_ascii_case(value));
    });
    match (read, known) {
        (Ok(()), true) => Ok(()),
        (Ok(()), false) => Err(Reject::UnsupportedMediaType("This body must be read here: send it in UTF-8")),
        (Err(_), _) => Err(Reject::BadRequest("Content-Type is malformed".into())),
    }
}

/// The model that the query names.
///
/// # Errors
/// [`Reject::BadRequest`] for two of them.
pub fn in_query(head: &RequestHead) -> Result<Option<Cow<'_, str>>, Reject> {
    let query = head.target().get(head.path().len() + 1..).unwrap_or_default();
    in_pairs(query).map_err(|why| Reject::BadRequest(format!("The query cannot be read: {why}")))
}

/// # Errors
/// [`Reject::BadRequest`] for what can be no model's name.
pub fn check_name(name: &str) -> Result<(), Reject> {
    if name.len() > MAX_MODEL_BYTES || model::fold(name).chars().any(char::is_control) {
        return Err(Reject::BadRequest(format!(
            "model: a name of at most {MAX_MODEL_BYTES} bytes, without control characters"
        )));
    }
    Ok(())
}

type Found<'b> = Result<Option<Cow<'b, str>>, &'static str>;

const TWICE: &str = "it names the model twice";
const UNCLEAR: &str = "a field's name is model in some spellings only";
const NOT_TEXT: &str = "the model's name is not UTF-8";

fn keep<'b>(found: &mut Option<Cow<'b, str>>, name: Cow<'b, str>) -> Result<(), &'static str> {
    if found.replace(name).is_some() { Err(TWICE) } else { Ok(()) }
}

/// `a=b&model=name`, with escapes.
fn in_pairs(text: &[u8]) -> Found<'_> {
    let mut found = None;
    for pair in text.split(|byte| *byte == b'&') {
        let (name, value) = split_at(pair, b'=');
        let name = unescape(name);
        if *name == *FIELD {
            let value = match unescape(value) {
                Cow::Borrowed(bytes) => std::str::from_utf8(bytes).map(Cow::Borrowed).map_err(|_| NOT_TEXT)?,
                Cow::Owned(bytes) => String::from_utf8(bytes).map(Cow::Owned).map_err(|_| NOT_TEXT)?,
            };
            keep(&mut found, value)?;
        } else if is_like_field(&name) {
            return Err(UNCLEAR);
        }
        // Older programs also take `;` for `&`.
        if pair.split(|byte| *byte == b';').skip(1).any(|part| is_like_field(&unescape(split_at(part, b'=').0))) {
            return Err(UNCLEAR);
        }
    }
    Ok(found)
}

fn split_at(text: &[u8], by: u8) -> (&[u8], &[u8]) {
    match memchr::memchr(by, text) {
        Some(at) => (text.get(..at).unwrap_or_default(), text.get(at + 1..).unwrap_or_default()),
        None => (text, &[]),
    }
}

/// What some program takes for the field.
fn is_like_field(name: &[u8]) -> bool {
    name.trim_ascii().eq_ignore_ascii_case(FIELD)
}

/// A part of a form or query, as it was before it was escaped.
pub fn unescape(text: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr2(b'%', b'+', text).is_none() {
        return Cow::Borrowed(text);
    }
    let (mut plain, mut rest) = (Vec::with_capacity(text.len()), text);
    while let Some((&first, tail)) = rest.split_first() {
        let digit = |at: usize| tail.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        let escaped = digit(0).zip(digit(1)).filter(|_| first == b'%');
        let byte = match escaped {
            Some((high, low)) => u8::try_from(high << 4 | low).unwrap_or(first),
            None if first == b'+' => b' ',
            None => first,
        };
        plain.push(byte);
        rest = if escaped.is_some() { tail.get(2..).unwrap_or_default() } else { tail };
    }
    Cow::Owned(plain)
}

/// Parameters as header fields have them: `; name=value; other="a value"`.
fn each_parameter<'v>(text: &'v [u8], mut see: impl FnMut(&'v [u8], &'v [u8])) -> Result<(), &'static str> {
    let malformed = "a header field is malformed";
    let mut rest = text.trim_ascii();
    while let Some(tail) = rest.strip_prefix(b";") {
        rest = tail.trim_ascii_start();
        if rest.is_empty() {
            return Ok(());
        }
        let equals = rest.iter().position(|byte| matches!(byte, b'=' | b';')).ok_or(malformed)?;
        let (name, tail) = rest.split_at(equals);
        let value = tail.strip_prefix(b"=").ok_or(malformed)?;
        if let Some(quoted) = value.strip_prefix(b"\"") {
            let end = memchr::memchr(b'"', quoted).ok_or(malformed)?;
            let inside = quoted.get(..end).unwrap_or_default();
            // Whether the quote ends here is what programs disagree about.
            if inside.last() == Some(&b'\\') {
                return Err(malformed);
            }
            see(name.trim_ascii_end(), inside);
            rest = quoted.get(end + 1..).unwrap_or_default().trim_ascii_start();
        } else {
            let end = memchr::memchr(b';', value).unwrap_or(value.len());
            let (token, tail) = value.split_at(end);
            let token = token.trim_ascii_end();
            if token.iter().any(|byte| matches!(byte, b'"' | b' ' | b'\t')) {
                return Err(malformed);
            }
            see(name.trim_ascii_end(), token);
            rest = tail;
        }
    }
    if rest.is_empty() { Ok(()) } else { Err(malformed) }
}

fn boundary(media: &[u8]) -> Result<Vec<u8>, &'static str> {
    let parameters = media.iter().position(|byte| *byte == b';').and_then(|at| media.get(at..)).unwrap_or_default();
    let mut found: SmallVec<[(&[u8], &[u8]); 2]> = SmallVec::new();
    each_parameter(parameters, |name, value| {
        if name.eq_ignore_ascii_case(b"boundary") || is_extended(name, b"boundary") {
            found.push((name, value));
        }
    })?;
    match found.as_slice() {
        [(name, value)]
            if !name.contains(&b'*') && (1..=MAX_BOUNDARY).contains(&value.len()) && !value.contains(&b'\\') =>
        {
            Ok([&b"--"[..], value].concat())
        }
        _ => Err("its Content-Type has no clear boundary"),
    }
}

/// `name*`, `name*0`: RFC 2231's ways to write a parameter.
fn is_extended(name: &[u8], plain: &[u8]) -> bool {
    name.contains(&b'*') && split_at(name, b'*').0.eq_ignore_ascii_case(plain)
}

/// A multipart body whose parts begin with `delimiter` (RFC 2046, 5.1; RFC 7578). Strict: every program that reads it must find
/// the same parts.
fn in_parts<'b>(delimiter: &[u8], body: &'b [u8], is_form: bool) -> Found<'b> {
    let mut found = None;
    let mut rest = body.strip_prefix(delimiter).ok_or("it does not begin with its boundary")?;
    let between = memchr::memmem::Finder::new(delimiter);
    loop {
        if let Some(end) = rest.strip_prefix(b"--") {
            return if end.trim_ascii().is_empty() { Ok(found) } else { Err("something follows its end") };
        }
        let part = rest.strip_prefix(b"\r\n").ok_or("a boundary is not alone on its line")?;
        // Every boundary counts, as it does for programs that do not look at the line it stands on.
        let end = between.find(part).ok_or("it has no end")?;
        let (part, tail) = part.split_at(end);
        let part = part.strip_suffix(b"\r\n").ok_or("a boundary is not alone on its line")?;
        rest = tail.get(delimiter.len()..).unwrap_or_default();
        let (fields, content) = match part.strip_prefix(b"\r\n") {
            Some(content) => (&b""[..], content),
            None => {
                let end = memchr::memmem::find(part, b"\r\n\r\n").ok_or("a part has no content")?;
                (part.get(..end).unwrap_or_default(), part.get(end + 4..).unwrap_or_default())
            }
        };
        let Part { name, is_file, is_coded } = Part::read(fields)?;
        match name {
            None if is_form => return Err("a part has no name"),
            Some(name) if name == FIELD => {
                if is_file || is_coded {
                    return Err("the model's name must be plain text");
                }
                keep(&mut found, Cow::Borrowed(std::str::from_utf8(content).map_err(|_| NOT_TEXT)?))?;
            }
            Some(name) if is_like_field(name) => return Err(UNCLEAR),
            _ => {}
        }
    }
}

/// What the fields before a part's content say.
#[derive(Default)]
struct Part<'b> {
    name: Option<&'b [u8]>,
    is_file: bool,
    is_coded: bool,
}

impl<'b> Part<'b> {
    fn read(fields: &'b [u8]) -> Result<Self, &'static str> {
        let mut part = Self::default();
        let malformed = "a part's header is malformed";
        let mut described = false;
        for line in fields.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.first().is_none_or(u8::is_ascii_whitespace) || line.contains(&b'\r') {
                return Err(malformed);
            }
            let (field, value) = split_at(line, b':');
            let is = |known: &[u8]| field.trim_ascii().eq_ignore_ascii_case(known);
            if is(b"content-transfer-encoding") {
                let plain: [&[u8]; 3] = [b"7bit", b"8bit", b"binary"];
                part.is_coded = !plain.iter().any(|coding| value.trim_ascii().eq_ignore_ascii_case(coding));
            } else if is(b"content-disposition") {
                if std::mem::replace(&mut described, true) {
                    return Err(malformed);
                }
                let at = memchr::memchr(b';', value).unwrap_or(value.len());
                let (mut twice, mut unclear) = (false, false);
                each_parameter(value.get(at..).unwrap_or_default(), |name, value| {
                    if name.eq_ignore_ascii_case(b"name") {
                        twice |= part.name.replace(value).is_some();
                        unclear |= value.contains(&b'\\');
                    }
                    unclear |= is_extended(name, b"name");
                    part.is_file |= name.get(..8).is_some_and(|head| head.eq_ignore_ascii_case(b"filename"));
                })?;
                if twice || unclear {
                    return Err(malformed);
                }
            }
        }
        Ok(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(content_type: &str) -> RequestHead {
        let text = format!("POST /v1/x?y HTTP/1.1\r\nHost: x\r\n{content_type}\r\n");
        RequestHead::parse(text.into_bytes()).unwrap_or_else(|e| panic!("{e:?}"))
    }

    fn form(body: &str) -> Result<Option<String>, Reject> {
        let head = head("Content-Type: application/x-www-form-urlencoded\r\n");
        in_body(&head, body.as_bytes()).map(|found| found.map(Cow::into_owned))
    }

    fn multipart(body: &str) -> Result<Option<String>, Reject> {
        let head = head("Content-Type: multipart/form-data; boundary=\"b0\"\r\n");
        let body = body.replace('\n', "\r\n");
        in_body(&head, body.as_bytes()).map(|found| found.map(Cow::into_owned))
    }

    const DISPOSITION: &str = "Content-Disposition: form-data; name=";

    #[test]
    fn forms_name_their_model() {
        assert_eq!(form("a=b&model=gpt-4o&c"), Ok(Some("gpt-4o".into())));
        assert_eq!(form("mod%65l=+gpt%2D4o+"), Ok(Some(" gpt-4o ".into())));
        assert_eq!(form("modelx=1&amodel=2&model2"), Ok(None));
        for body in ["model=a&model=b", "model=a&mod%65l=a", "model=a&Model=b", "+model=a", "a=1;model=b", "model=%FF"]
        {
            assert!(matches!(form(body), Err(Reject::BadRequest(_))), "{body}");
        }
    }

    #[test]
    fn multipart_bodies_name_their_model() {
        let file = "--b0\nContent-Disposition: form-data; name=\"file\"; filename=\"a; name=model.mp3\"\n\
                    Content-Type: audio/mpeg\n\n\u{0}binary\n\n--not the end\n";
        let model = format!("--b0\n{DISPOSITION}\"model\"\n\nwhisper-1\n");
        assert_eq!(multipart(&format!("{file}{model}--b0--\n")), Ok(Some("whisper-1".into())));
        assert_eq!(multipart(&format!("{model}{file}--b0--")), Ok(Some("whisper-1".into())));
        assert_eq!(multipart(&format!("--b0\n{DISPOSITION}model\n\nx\n--b0--")), Ok(Some("x".into())));
        assert_eq!(multipart(&format!("{file}--b0--")), Ok(None));
        for body in [
            format!("{model}{model}--b0--"),
            format!("--b0\n{DISPOSITION}\"Model\"\n\nx\n--b0--"),
            format!("--b0\n{DISPOSITION}\"mod\\el\"\n\nx\n--b0--"),
            format!("--b0\n{DISPOSITION}\"x\"; name=\"model\"\n\nx\n--b0--"),
            format!("--b0\n{DISPOSITION}\"x\"; name*=utf-8''model\n\nx\n--b0--"),
            format!("--b0\n{DISPOSITION}\"x\\\"; name=\"model\"\n\nx\n--b0--"),
            format!("--b0\n{DISPOSITION}\"x\"\n{DISPOSITION}\"model\"\n\nx\n--b0--"),
            format!("--b0\n{DISPOSITION}\"x\"\n y: z\n\nx\n--b0--"),
            format!("--b0\n{DISPOSITION}\"model\"; filename=\"f\"\n\nx\n--b0--"),
            format!("--b0\n{DISPOSITION}\"model\"\nContent-Transfer-Encoding: base64\n\neA==\n--b0--"),
            "--b0\n\nx\n--b0--".to_owned(),
            format!("preamble\n{model}--b0--"),
            format!("{model}--b0--\nepilogue"),
            format!("--b0 \n{DISPOSITION}\"model\"\n\nx\n--b0--"),
            format!("--b0\n{DISPOSITION}\"x\"\n\ny--b0\n{DISPOSITION}\"model\"\n\nx\n--b0--"),
            model.clone(),
            String::new(),
        ] {
            assert!(matches!(multipart(&body), Err(Reject::BadRequest(_))), "{body:?}");
        }
        for content_type in
            ["", "; boundary=b0; boundary=b1", "; boundary=", "; boundary*=utf-8''b0", "; boundary=\"b0"]
        {
            let head = head(&format!("Content-Type: multipart/form-data{content_type}\r\n"));
            assert!(
                in_body(&head, format!("{model}--b0--").replace('\n', "\r\n").as_bytes()).is_err(),
                "{content_type}"
            );
        }
    }

    #[test]
    fn json_is_known_whatever_it_is_called() {
        let wide = |text: &str, mark: bool, big: bool| -> Vec<u8> {
            let text = if mark { format!("\u{FEFF}{text}") } else { text.to_owned() };
            text.encode_utf16().flat_map(|unit| if big { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect()
        };
        let wider = |text: &str, big: bool| -> Vec<u8> {
            text.chars().map(u32::from).flat_map(|c| if big { c.to_be_bytes() } else { c.to_le_bytes() }).collect()
        };
        for text in ["{\"model\":\"x\"}", " \r\n\t{}", "[{}]"] {
            assert!(
                looks_like_json(text.as_bytes()) && looks_like_json(format!("\u{FEFF}{text}").as_bytes()),
                "{text}"
            );
            for (mark, big) in [(false, false), (false, true), (true, false), (true, true)] {
                assert!(looks_like_json(&wide(text, mark, big)), "{text} {mark} {big}");
            }
            for text in [text.to_owned(), format!("\u{FEFF}{text}")] {
                assert!(looks_like_json(&wider(&text, false)) && looks_like_json(&wider(&text, true)), "{text}");
            }
        }
        let others: [&[u8]; 7] =
            [b"", b"model=x", b"--b0\r\n{", b"\0\0\0\x20ftypisom", b"\xFF\xFB\x90{", b"ID3{", b"RIFF"];
        for other in others {
            assert!(!looks_like_json(other), "{other:?}");
        }
    }

    #[test]
    fn what_a_body_says_of_itself_must_be_clear() {
        for good in [
            "",
            "Content-Type: application/json\r\n",
            "Content-Type: application/json; charset=UTF-8\r\n",
            "Content-Type: application/json;charset=\"utf-8\";\r\n",
            "Content-Type: text/plain; charset=utf-16\r\nConnection: content-type\r\n",
        ] {
            assert_eq!(check_media(&head(good)), Ok(()), "{good}");
        }
        for bad in ["utf-16", "\"utf-16\"", "ibm037", "utf-7", ""] {
            let head = head(&format!("Content-Type: application/json; CharSet={bad}\r\n"));
            assert!(matches!(check_media(&head), Err(Reject::UnsupportedMediaType(_))), "{bad}");
        }
        let twice = head("Content-Type: application/json\r\nContent-Type: text/plain\r\n");
        assert!(matches!(check_media(&twice), Err(Reject::BadRequest(_))));
        assert_eq!(check_coding(&head("Content-Encoding: identity\r\n")), Ok(()));
        assert!(matches!(check_coding(&head("Content-Encoding: gzip\r\n")), Err(Reject::UnsupportedMediaType(_))));
        assert!(
            check_name("gpt-4o").is_ok() && check_name("gpt\u{0}").is_err() && check_name(&"x".repeat(257)).is_err()
        );
    }
}
