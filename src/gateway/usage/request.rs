//! What a request's body asks for, in one pass over its top-level keys.
//!
//! Owns: the few fields that access rules and costs depend on, read strictly, so that the gateway and the upstream
//! cannot be made to see different requests: a key that matters and appears twice, or in a spelling that only some
//! parsers take for it, is reported as ambiguous.
//!
//! Never does: change the body, or build a document. It allocates only to decode a model name written with escapes.

use std::borrow::Cow;

use super::json::{Number, from, hex_digit, is_space, join_surrogates, plain_run, simple_escape, strict_run};

/// Containers nested deeper than this make a body broken; the body itself is the first.
/// As deep as the journal keeps JSON.
pub const MAX_DEPTH: u32 = crate::actors::writer::MAX_JSON_DEPTH as u32;

/// Keys that matter are shorter than this, so that longer ones need no decoding.
const LONGEST_KEY: usize = 24;
/// Longer ones are no words, and are not told.
const LONGEST_R_TYPE: usize = 32;

/// What a request's body says at its top level. Of a prefix of a body, what was complete in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestFacts<'a> {
    /// The body's first character is `{`.
    pub is_object: bool,
    /// The object is closed and nothing but white space follows.
    pub complete: bool,
    /// No continuation could make this valid JSON. Bytes from 0x80 on are only checked in keys that matter and in
    /// the model's name.
    pub broken: bool,
    pub model: Option<Cow<'a, str>>,
    pub stream: bool,
    /// `stream_options.include_usage` is true.
    pub include_usage: bool,
    /// The key is there, whatever its value.
    pub has_stream_options: bool,
    /// The largest of `max_tokens`, `max_completion_tokens` and `max_output_tokens`, rounded up. Negative ones and
    /// what is not a number count as absent.
    pub max_tokens: Option<u64>,
    /// How many choices are asked for, rounded up; absent as above.
    pub n: Option<u64>,
    /// The raw JSON of `messages`, else of `input`, else of `prompt`.
    pub messages: Option<&'a [u8]>,
    /// A key that matters appears twice, also when spelled with escapes, or in other letter case.
    pub ambiguous: bool,
    /// There is a model, and it is no string.
    pub model_is_odd: bool,
    /// `r_type`, as PromptEnchanter's clients send it. Nothing is decided by it: of several, the last.
    pub r_type: Option<&'a [u8]>,
    /// `research_model` or `research_enabled`, of the same clients.
    pub research: bool,
}

/// Reads a complete body, or as much of one as there is.
pub fn scan_request(body: &[u8]) -> RequestFacts<'_> {
    let mut scan = Scan { cursor: Cursor { rest: body }, facts: RequestFacts::default(), seen: 0, texts: [None; 3] };
    let outcome = scan.document();
    let mut facts = scan.facts;
    facts.messages = scan.texts.iter().copied().flatten().next();
    match outcome {
        Ok(()) => facts.complete = facts.is_object,
        Err(Stop::Exhausted) => {}
        Err(Stop::Broken) => facts.broken = true,
    }
    facts
}

/// Why reading stopped before the end of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// There are no more bytes; with more it may be valid.
    Exhausted,
    Broken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Model,
    Stream,
    StreamOptions,
    IncludeUsage,
    MaxTokens,
    MaxCompletionTokens,
    MaxOutputTokens,
    N,
    Messages,
    Input,
    Prompt,
    RType,
    Research,
}

impl Field {
    /// Only told in the record: whoever reads it otherwise than we do harms nobody.
    fn is_a_remark(self) -> bool {
        matches!(self, Self::RType | Self::Research)
    }
}

/// Which object's keys are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Request,
    StreamOptions,
}

impl Level {
    /// Containers open inside this object, itself included.
    fn depth(self) -> u32 {
        match self {
            Self::Request => 1,
            Self::StreamOptions => 2,
        }
    }

    fn names(self) -> &'static [&'static [u8]] {
        match self {
            Self::Request => &[
                b"n",
                b"input",
                b"model",
                b"stream",
                b"prompt",
                b"messages",
                b"max_tokens",
                b"stream_options",
                b"max_output_tokens",
                b"max_completion_tokens",
            ],
            Self::StreamOptions => &[b"include_usage"],
        }
    }

    #[inline]
    fn field(self, name: &[u8]) -> Option<Field> {
        Some(match (self, name) {
            (Self::Request, b"model") => Field::Model,
            (Self::Request, b"stream") => Field::Stream,
            (Self::Request, b"messages") => Field::Messages,
            (Self::Request, b"stream_options") => Field::StreamOptions,
            (Self::Request, b"max_tokens") => Field::MaxTokens,
            (Self::Request, b"max_completion_tokens") => Field::MaxCompletionTokens,
            (Self::Request, b"max_output_tokens") => Field::MaxOutputTokens,
            (Self::Request, b"n") => Field::N,
            (Self::Request, b"input") => Field::Input,
            (Self::Request, b"prompt") => Field::Prompt,
            (Self::Request, b"r_type") => Field::RType,
            (Self::Request, b"research_model" | b"research_enabled") => Field::Research,
            (Self::StreamOptions, b"include_usage") => Field::IncludeUsage,
            _ => return None,
        })
    }
}

/// A string as it stands in the body, without its quotes.
#[derive(Clone, Copy)]
struct RawString<'a> {
    bytes: &'a [u8],
    escaped: bool,
}

struct Scan<'a> {
    cursor: Cursor<'a>,
    facts: RequestFacts<'a>,
    /// One bit per field met so far.
    seen: u16,
    /// `messages`, `input` and `prompt`.
    texts: [Option<&'a [u8]>; 3],
}

impl<'a> Scan<'a> {
    fn document(&mut self) -> Result<(), Stop> {
        self.facts.is_object = self.cursor.peek()? == b'{';
        if self.facts.is_object {
            self.object(Level::Request)?;
        } else {
            self.cursor.skip_value(0)?;
        }
        match self.cursor.peek() {
            Ok(_) => Err(Stop::Broken),
            Err(_) => Ok(()),
        }
    }

    /// The object that begins here.
    fn object(&mut self, level: Level) -> Result<(), Stop> {
        self.cursor.expect(b'{')?;
        if self.cursor.peek()? == b'}' {
            return self.cursor.expect(b'}');
        }
        loop {
            let key = self.cursor.key()?;
            match self.field(key, level)? {
                Some(field) => self.value(field)?,
                None => self.cursor.skip_value(level.depth())?,
            }
            match self.cursor.next()? {
                b',' => {}
                b'}' => return Ok(()),
                _ => return Err(Stop::Broken),
            }
        }
    }

    /// Which field the key is. One that only resembles a field is none, and makes the request ambiguous.
    fn field(&mut self, key: RawString<'a>, level: Level) -> Result<Option<Field>, Stop> {
        let decoded;
        let mut name = key.bytes;
        if key.escaped {
            // Every character may be written in six.
            if name.len() > 6 * LONGEST_KEY {
                return Ok(None);
            }
            decoded = unescape(name)?;
            name = decoded.as_bytes();
        }
        if name.len() > LONGEST_KEY {
            return Ok(None);
        }
        if let Some(field) = level.field(name) {
            if field.is_a_remark() {
                return Ok(Some(field));
            }
            let bit = 1 << (field as u16);
            self.facts.ambiguous |= self.seen & bit != 0;
            self.seen |= bit;
            return Ok(Some(field));
        }
        self.facts.ambiguous |= resembles_any(name, level.names());
        Ok(None)
    }

    fn value(&mut self, field: Field) -> Result<(), Stop> {
        match field {
            Field::Model => {
                self.facts.model = None;
                self.facts.model_is_odd = self.cursor.peek()? != b'"';
                if self.facts.model_is_odd {
                    return self.cursor.skip_value(1);
                }
                let name = self.cursor.string()?;
                self.facts.model = Some(if name.escaped {
                    Cow::Owned(unescape(name.bytes)?)
                } else {
                    Cow::Borrowed(str_of(name.bytes)?)
                });
                Ok(())
            }
            Field::Stream => {
                self.facts.stream = self.cursor.raw_value(1)? == b"true";
                Ok(())
            }
            Field::StreamOptions => {
                self.facts.has_stream_options = true;
                self.facts.include_usage = false;
                if self.cursor.peek()? == b'{' { self.object(Level::StreamOptions) } else { self.cursor.skip_value(1) }
            }
            Field::IncludeUsage => {
                self.facts.include_usage = self.cursor.raw_value(2)? == b"true";
                Ok(())
            }
            Field::MaxTokens | Field::MaxCompletionTokens | Field::MaxOutputTokens => {
                let limit = self.count()?;
                self.facts.max_tokens = self.facts.max_tokens.max(limit);
                Ok(())
            }
            Field::N => {
                self.facts.n = self.count()?;
                Ok(())
            }
            Field::Messages => self.text(0),
            Field::Input => self.text(1),
            Field::Prompt => self.text(2),
            Field::RType => {
                self.facts.r_type = None;
                if self.cursor.peek()? != b'"' {
                    return self.cursor.skip_value(1);
                }
                let word = self.cursor.string()?;
                self.facts.r_type = Some(word.bytes).filter(|bytes| !word.escaped && bytes.len() <= LONGEST_R_TYPE);
                Ok(())
            }
            Field::Research => {
                self.facts.research = self.cursor.raw_value(1)? == b"true";
                Ok(())
            }
        }
    }

    fn text(&mut self, rank: usize) -> Result<(), Stop> {
        self.cursor.peek()?;
        let raw = self.cursor.raw_value(1)?;
        if let Some(text) = self.texts.get_mut(rank) {
            *text = Some(raw);
        }
        Ok(())
    }

    fn count(&mut self) -> Result<Option<u64>, Stop> {
        if !matches!(self.cursor.peek()?, b'-' | b'0'..=b'9') {
            self.cursor.skip_value(1)?;
            return Ok(None);
        }
        self.cursor.number().map(|number| number.ceil())
    }
}

/// Reads JSON strictly from the front of what is left.
struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// The next byte that is not white space, which stays.
    #[inline]
    fn peek(&mut self) -> Result<u8, Stop> {
        loop {
            match self.rest {
                [byte, tail @ ..] if is_space(*byte) => self.rest = tail,
                [byte, ..] => return Ok(*byte),
                [] => return Err(Stop::Exhausted),
            }
        }
    }

    /// The next byte that is not white space.
    #[inline]
    fn next(&mut self) -> Result<u8, Stop> {
        let byte = self.peek()?;
        self.rest = from(self.rest, 1);
        Ok(byte)
    }

    #[inline]
    fn expect(&mut self, byte: u8) -> Result<(), Stop> {
        if self.next()? == byte { Ok(()) } else { Err(Stop::Broken) }
    }

    /// A key and its colon.
    #[inline]
    fn key(&mut self) -> Result<RawString<'a>, Stop> {
        if self.peek()? != b'"' {
            return Err(Stop::Broken);
        }
        let key = self.string()?;
        self.expect(b':')?;
        Ok(key)
    }

    #[inline]
    fn skip_key(&mut self) -> Result<(), Stop> {
        if self.peek()? != b'"' {
            return Err(Stop::Broken);
        }
        self.skip_string()?;
        self.expect(b':')
    }

    /// The string whose opening quote is next.
    #[inline]
    fn string(&mut self) -> Result<RawString<'a>, Stop> {
        let content = from(self.rest, 1);
        let escaped = self.skip_string()?;
        let length = content.len() - self.rest.len() - 1;
        let bytes = content.get(..length).unwrap_or_default();
        Ok(RawString { bytes, escaped })
    }

    /// Passes over the string whose opening quote is next, and says whether there are escapes in it.
    #[inline]
    fn skip_string(&mut self) -> Result<bool, Stop> {
        let content = from(self.rest, 1);
        let rest = from(content, strict_run(content));
        if let [b'"', tail @ ..] = rest {
            self.rest = tail;
            return Ok(false);
        }
        self.skip_escaped(rest)
    }

    /// The rest of a string, from the first character on that is not an ordinary one.
    #[inline(never)]
    fn skip_escaped(&mut self, rest: &'a [u8]) -> Result<bool, Stop> {
        let mut rest = rest;
        loop {
            match rest {
                [] => return Err(Stop::Exhausted),
                [b'"', tail @ ..] => {
                    self.rest = tail;
                    return Ok(true);
                }
                [b'\\', ..] => rest = from(rest, escape_length(rest)?),
                // A control character.
                _ => return Err(Stop::Broken),
            }
            rest = from(rest, strict_run(rest));
        }
    }

    fn number(&mut self) -> Result<Number, Stop> {
        let mut number = Number::default();
        self.rest = number.read(self.rest);
        match self.rest {
            // More digits could follow.
            [] => Err(Stop::Exhausted),
            _ if number.is_whole() => Ok(number),
            _ => Err(Stop::Broken),
        }
    }

    fn literal(&mut self, word: &[u8]) -> Result<(), Stop> {
        if let Some(tail) = self.rest.strip_prefix(word) {
            self.rest = tail;
            return Ok(());
        }
        Err(if word.starts_with(self.rest) { Stop::Exhausted } else { Stop::Broken })
    }

    /// The next value as it stands, without white space around it. `depth` containers are open around it.
    fn raw_value(&mut self, depth: u32) -> Result<&'a [u8], Stop> {
        self.peek()?;
        let start = self.rest;
        self.skip_value(depth)?;
        Ok(start.get(..start.len() - self.rest.len()).unwrap_or_default())
    }

    /// Passes over one value of any kind. `depth` containers are open around it.
    fn skip_value(&mut self, depth: u32) -> Result<(), Stop> {
        // One bit per container opened here, the innermost lowest: 1 is an object.
        let mut objects = 0_u128;
        let mut open = 0;
        loop {
            match self.peek()? {
                b'"' => {
                    self.skip_string()?;
                }
                bracket @ (b'{' | b'[') => {
                    if depth + open >= MAX_DEPTH {
                        return Err(Stop::Broken);
                    }
                    self.rest = from(self.rest, 1);
                    let is_object = bracket == b'{';
                    let empty = self.peek()? == if is_object { b'}' } else { b']' };
                    if empty {
                        self.rest = from(self.rest, 1);
                    } else {
                        open += 1;
                        objects = objects << 1 | u128::from(is_object);
                        if is_object {
                            self.skip_key()?;
                        }
                        continue;
                    }
                }
                b'-' | b'0'..=b'9' => {
                    self.number()?;
                }
                b't' => self.literal(b"true")?,
                b'f' => self.literal(b"false")?,
                b'n' => self.literal(b"null")?,
                _ => return Err(Stop::Broken),
            }
            // A value is complete, and with it perhaps the containers around it.
            loop {
                if open == 0 {
                    return Ok(());
                }
                let in_object = objects & 1 == 1;
                match self.next()? {
                    b',' => {
                        if in_object {
                            self.skip_key()?;
                        }
                        break;
                    }
                    b'}' if in_object => {}
                    b']' if !in_object => {}
                    _ => return Err(Stop::Broken),
                }
                open -= 1;
                objects >>= 1;
            }
        }
    }
}

/// The length of the escape at the front of `bytes`, which begins with its backslash.
fn escape_length(bytes: &[u8]) -> Result<usize, Stop> {
    match bytes {
        [_, b'u', digits @ ..] => {
            let digits = digits.get(..4).unwrap_or(digits);
            if digits.iter().any(|&digit| hex_digit(digit).is_none()) {
                return Err(Stop::Broken);
            }
            if digits.len() == 4 { Ok(6) } else { Err(Stop::Exhausted) }
        }
        [_, simple, ..] if simple_escape(*simple).is_some() => Ok(2),
        [_, _, ..] => Err(Stop::Broken),
        _ => Err(Stop::Exhausted),
    }
}

/// Decodes a string whose escapes are known to be well-formed. Unpaired surrogates become U+FFFD.
fn unescape(raw: &[u8]) -> Result<String, Stop> {
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw;
    while !rest.is_empty() {
        let (plain, tail) = rest.split_at_checked(plain_run(rest)).unwrap_or((rest, &[]));
        text.push_str(str_of(plain)?);
        rest = match tail {
            [] => tail,
            [_, b'u', digits @ ..] => {
                let (unit, tail) = utf16_unit(digits);
                let (character, tail) = match (unit, tail) {
                    (0xD800..=0xDBFF, [b'\\', b'u', digits @ ..]) => match utf16_unit(digits) {
                        (low @ 0xDC00..=0xDFFF, tail) => (join_surrogates(unit, low), tail),
                        _ => (char::REPLACEMENT_CHARACTER, tail),
                    },
                    _ => (char::from_u32(u32::from(unit)).unwrap_or(char::REPLACEMENT_CHARACTER), tail),
                };
                text.push(character);
                tail
            }
            [_, simple, tail @ ..] => {
                text.push(char::from(simple_escape(*simple).ok_or(Stop::Broken)?));
                tail
            }
            [_] => return Err(Stop::Broken),
        };
    }
    Ok(text)
}

/// The four hexadecimal digits at the front, and what follows them.
fn utf16_unit(digits: &[u8]) -> (u16, &[u8]) {
    let (four, tail) = digits.split_at_checked(4).unwrap_or((digits, &[]));
    let unit = four.iter().filter_map(|&digit| hex_digit(digit)).fold(0, |unit, digit| unit << 4 | digit);
    (unit, tail)
}

fn str_of(bytes: &[u8]) -> Result<&str, Stop> {
    std::str::from_utf8(bytes).map_err(|_| Stop::Broken)
}

/// Whether a parser that ignores letter case, as Go's does, would take `name` for one of `fields`.
fn resembles_any(name: &[u8], fields: &[&[u8]]) -> bool {
    if name.is_ascii() {
        return fields.iter().any(|field| name.eq_ignore_ascii_case(field));
    }
    let Ok(name) = std::str::from_utf8(name) else {
        return false;
    };
    // Besides the ASCII letters, two characters fold into them: the long s and the sign for kelvin.
    let folded = name.chars().map(|character| match character {
        '\u{17F}' => 's',
        '\u{212A}' => 'k',
        other => other.to_ascii_lowercase(),
    });
    fields.iter().any(|field| folded.clone().eq(field.iter().map(|&byte| char::from(byte))))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn scan(body: &str) -> RequestFacts<'_> {
        scan_request(body.as_bytes())
    }

    #[test]
    fn a_chat_request() {
        let facts = scan(
            r#" {"model": "gpt-4o", "messages": [{"role":"user","content":"model \"x\" ]}"}] , "temperature": -0.7e1,
            "max_tokens": 100, "max_completion_tokens": 256, "n": 2, "stream": true, "tools": [{"model":"no"}],
            "stream_options": {"other": [1], "include_usage": true}, "user": "stream"}
            "#,
        );
        assert!(facts.is_object && facts.complete && !facts.broken && !facts.ambiguous);
        assert_eq!(facts.model, Some(Cow::Borrowed("gpt-4o")));
        assert!(!facts.model_is_odd && facts.stream && facts.include_usage && facts.has_stream_options);
        assert_eq!((facts.max_tokens, facts.n), (Some(256), Some(2)));
        assert_eq!(facts.messages, Some(&br#"[{"role":"user","content":"model \"x\" ]}"}]"#[..]));
    }

    #[test]
    fn the_text_of_other_requests() {
        assert_eq!(scan(r#"{"prompt":"p","input":["i"]}"#).messages, Some(&b"[\"i\"]"[..]));
        assert_eq!(scan(r#"{"prompt": "p" }"#).messages, Some(&b"\"p\""[..]));
        assert_eq!(scan(r#"{"messages": 12 }"#).messages, Some(&b"12"[..]));
        assert_eq!(scan(r#"{"prompt":"p","messages":[{"a":1"#).messages, Some(&b"\"p\""[..]));
    }

    #[test]
    fn keys_that_could_be_read_in_two_ways() {
        for ambiguous in [
            r#"{"model":"a","model":"b"}"#,
            r#"{"model":"a","mod\u0065l":"b"}"#,
            r#"{"\u006D\u006f\u0064\u0065\u006C":"a","model":1}"#,
            r#"{"model":"a","Model":"b"}"#,
            r#"{"STREAM":true}"#,
            r#"{"\u017Ftream":true}"#,
            "{\"max_to\u{212A}ens\":1}",
            r#"{"n":1,"n":1}"#,
            r#"{"messages":[],"messages":[]}"#,
            r#"{"stream_options":{"include_usage":true,"include_usage":false}}"#,
            r#"{"stream_options":{"include_usage":true},"stream_options":{}}"#,
        ] {
            let facts = scan(ambiguous);
            assert!(facts.ambiguous && facts.complete, "{ambiguous}");
        }
        for clear in [
            r#"{"user":"a","user":"b"}"#,
            r#"{"a":{"model":1,"model":2},"model":"x"}"#,
            r#"{"max_tokens":1,"max_output_tokens":2}"#,
            r#"{"prompt":"a","input":"b"}"#,
            r#"{"m\u006fdel":"x"}"#,
            r#"{"stream_options":{"model":1},"model":"x","include_usage":1}"#,
        ] {
            let facts = scan(clear);
            assert!(!facts.ambiguous && facts.complete, "{clear}");
        }
    }

    #[test]
    fn models_of_every_kind() {
        let model = |body| scan(body).model.map(Cow::into_owned);
        assert_eq!(
            model(r#"{"model":"g\u0070t\n\ud83d\ude00\ud800x\udc00"}"#).as_deref(),
            Some("gpt\n😀\u{fffd}x\u{fffd}")
        );
        assert_eq!(model(r#"{"model":"a","model":null}"#), None);
        for wrong in ["null", "1", "[\"a\"]", "{}", "true"] {
            let body = format!("{{\"model\":{wrong}}}");
            let facts = scan(&body);
            assert!(facts.complete && facts.model.is_none() && facts.model_is_odd, "{wrong}");
        }
        assert!(scan_request(b"{\"model\":\"\xff\"}").broken);
    }

    #[test]
    fn numbers_and_flags() {
        assert_eq!(scan(r#"{"max_tokens":1.5,"n":-1}"#).max_tokens, Some(2));
        assert_eq!(scan(r#"{"max_tokens":null,"max_output_tokens":1e99}"#).max_tokens, Some(u64::MAX));
        assert_eq!(scan(r#"{"max_tokens":-3}"#).max_tokens, None);
        assert_eq!(scan(r#"{"n":"3"}"#).n, None);
        assert_eq!(scan(r#"{"n":12"#).n, None);
        assert!(!scan(r#"{"stream":"true"}"#).stream);
        assert!(!scan(r#"{"stream":true,"stream":false}"#).stream);
        let facts = scan(r#"{"stream_options":null}"#);
        assert!(facts.has_stream_options && !facts.include_usage);
    }

    #[test]
    fn what_is_not_a_request() {
        for broken in [
            "x",
            "{]",
            "{,}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{\"a\" \"b\"}",
            "{a:1}",
            "{'a':1}",
            "{\"a\":01}",
            "{\"a\":1.}",
            "{\"a\":-}",
            "{\"a\":+1}",
            "{\"a\":tru1}",
            "{\"a\":[1,]}",
            "{\"a\":[1}",
            "{\"a\":{1:2}}",
            "{\"a\":\"\\x\"}",
            "{\"a\":\"\\u12g4\"}",
            "{\"a\":\"\n\"}",
            "{\"a\":\"0123456789012345678901234567890123456789\u{1}\"}",
            "{}x",
            "{}{}",
            "[1]]",
            "[1 2]",
            "{\"a\":NaN}",
            "{\"model\":\"\t\"}",
            "{\"a\":1 \"b\":2}",
            "\u{feff}{}",
            "// c\n{}",
        ] {
            let facts = scan(broken);
            assert!(facts.broken && !facts.complete, "{broken}");
        }
        for other in ["[1, {\"model\":\"x\"}]", "\"x\"", "null", "", "  ", "12"] {
            let facts = scan(other);
            assert!(!facts.is_object && !facts.complete && !facts.broken && facts.model.is_none(), "{other}");
        }
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(scan(&nested(MAX_DEPTH as usize - 1)).complete);
        assert!(scan(&nested(MAX_DEPTH as usize)).broken);
        assert!(scan(&"[".repeat(100_000)).broken);
        assert!(scan(&"{\"messages\":".repeat(100_000)).broken);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 30, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::hash_map(any::<String>(), inner, 0..5)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn agrees_with_a_document_tree(
            model in any_json(), messages in any_json(), n in any_json(), stream in any_json(),
            limit in any::<u64>(), other in any_json(), pretty in any::<bool>(),
        ) {
            let document = json!({
                "model": model, "messages": messages, "n": n, "stream": stream, "max_tokens": limit, "other": other,
            });
            let body = if pretty { serde_json::to_string_pretty(&document) } else { serde_json::to_string(&document) }.unwrap();
            let facts = scan(&body);
            prop_assert!(facts.complete && !facts.broken && !facts.ambiguous);
            prop_assert_eq!(facts.model.as_deref(), document["model"].as_str());
            prop_assert_eq!(facts.model_is_odd, !document["model"].is_string());
            prop_assert_eq!(facts.stream, document["stream"] == json!(true));
            prop_assert_eq!(facts.max_tokens, Some(limit));
            if let Some(n) = document["n"].as_u64() { prop_assert_eq!(facts.n, Some(n)); }
            let raw: Value = serde_json::from_slice(facts.messages.unwrap()).unwrap();
            prop_assert_eq!(&raw, &serde_json::from_str::<Value>(&document["messages"].to_string()).unwrap());
            for end in 0..body.len() {
                let part = scan_request(&body.as_bytes()[..end]);
                prop_assert!(!part.broken && !part.complete);
            }
        }

        #[test]
        fn is_as_strict_as_a_document_tree(
            document in any_json(), damage in prop::collection::vec((any::<prop::sample::Index>(), 0_u8..0x80), 0..3),
        ) {
            let mut body = json!({"a": document, "model": "é\n"}).to_string().into_bytes();
            for (at, byte) in damage {
                let at = at.index(body.len());
                body[at] = byte;
            }
            let facts = scan_request(&body);
            // A tree also refuses what is not UTF-8, unpaired surrogates and numbers beyond a double.
            if serde_json::from_slice::<serde_json::Map<String, Value>>(&body).is_ok() {
                prop_assert!(facts.complete && !facts.broken);
            } else if let Err(error) = serde_json::from_slice::<Value>(&body) {
                let tolerated = std::str::from_utf8(&body).is_err()
                    || error.to_string().contains("surrogate")
                    || error.to_string().contains("hex escape")
                    || error.to_string().contains("out of range");
                prop_assert!(!facts.complete || tolerated, "{}", error);
            }
        }
    }
}
