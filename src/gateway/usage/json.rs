//! An incremental JSON scanner that never builds a document.
//!
//! Owns: finding where values begin and end in JSON that arrives in arbitrary pieces, decoding the few strings and
//! numbers a [`Sink`] asks for, and skipping everything else at memory speed. It holds one fixed-size state and
//! allocates nothing.
//!
//! Never does: judge what a value means, keep a value, or repair bad input. Once the input cannot be JSON the scanner
//! is broken for good and ignores the rest; it has then told the sink so, once.
//!
//! The path through a document is a *place*: a small value the sink computes once per key (`member`) or element
//! (`element`) from the place of the enclosing container. `Place::default()` means "of no interest": whatever hangs
//! below is skipped without looking at its keys. So matching `usage.prompt_tokens` costs two short comparisons.
//!
//! Where it is lenient: inside skipped values only strings and bracket nesting are checked, and raw control characters
//! in strings are let through. It reads answers of upstreams, whose exact validity is the client's business.

use memchr::memchr2;

/// Containers nested deeper than this below the root are skipped whatever their place.
pub const TRACKED_DEPTH: usize = 8;

/// More open containers than this break the scan. One bit each is all that nesting costs.
pub const MAX_DEPTH: u8 = 128;

/// Keys longer than this, when they arrive in pieces or with escapes, are of no interest. A sink must not name longer
/// ones.
pub const KEY_BYTES: usize = 32;

/// A key in the buffer that did not fit it.
const OVERLONG: u8 = u8::MAX;

/// What an unpaired surrogate becomes: U+FFFD.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// The two kinds of container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    Object,
    Array,
}

/// The three words of JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Literal {
    True,
    False,
    Null,
}

impl Literal {
    fn word(self) -> &'static [u8] {
        match self {
            Self::True => b"true",
            Self::False => b"false",
            Self::Null => b"null",
        }
    }
}

/// Receives what the scanner finds. Called only for places the sink itself named interesting, except `broken`.
pub trait Sink {
    /// Where in the document a value is, as far as the sink cares. The default is "nowhere of interest".
    type Place: Copy + Eq + Default;

    /// The place of the value under `key` in the object at `parent`.
    fn member(&mut self, parent: Self::Place, key: &[u8]) -> Self::Place;

    /// The place of element `index` (from 0, saturating) of the array at `parent`.
    fn element(&mut self, parent: Self::Place, index: u32) -> Self::Place;

    /// A container begins.
    fn open(&mut self, place: Self::Place, container: Container);

    /// The container that was opened at `place` is complete.
    fn close(&mut self, place: Self::Place);

    /// A string begins. `false`: its content is not wanted, and neither piece nor end will be reported.
    fn string(&mut self, place: Self::Place) -> bool;

    /// The next bytes of the string, unescaped. Pieces may split characters, never escapes.
    fn piece(&mut self, place: Self::Place, bytes: &[u8]);

    /// The string is complete.
    fn string_end(&mut self, place: Self::Place);

    /// A complete number.
    fn number(&mut self, place: Self::Place, number: &Number);

    /// `true`, `false` or `null`.
    fn literal(&mut self, place: Self::Place, literal: Literal);

    /// The input stopped being JSON while the value at `place`, or the inside of the container there, was read.
    fn broken(&mut self, place: Self::Place);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A value must come; its place is known.
    Value,
    /// Just after `[`: a value or `]`.
    FirstElement,
    /// Just after `{`: a key or `}`.
    FirstKey,
    /// After a comma in an object: a key.
    Key,
    Colon,
    /// After a value inside a container: a comma or the container's end.
    AfterValue,
    /// Inside a string that is read, and within one of its escapes.
    Text,
    Escape,
    Hex,
    /// Inside a container that is skipped.
    Skip,
    /// Inside a string that is skipped, and just after a backslash in it.
    SkipText,
    SkipEscape,
    Number,
    Literal,
    /// The root value is complete; only white space may follow.
    Closed,
    Broken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Key,
    Value,
}

/// The scanner's whole state between two pieces of input.
#[derive(Clone, Debug)]
pub struct Scanner<P> {
    state: State,
    reading: Reading,
    literal: Literal,
    literal_at: u8,
    /// Containers open right now.
    depth: u8,
    /// The depth of the outermost container being skipped; 0 when none is.
    skipping: u8,
    hex_digits: u8,
    key_length: u8,
    hex: u16,
    /// A high surrogate waiting for its other half; 0 when none is.
    high_surrogate: u16,
    /// Place of the value that is being read or comes next.
    place: P,
    /// Places of the open containers, the root at 1.
    places: [P; TRACKED_DEPTH + 1],
    /// Elements begun in the open arrays, the root at 1.
    elements: [u32; TRACKED_DEPTH + 1],
    /// One bit per open container, the innermost lowest: 1 is an object.
    objects: u128,
    number: Number,
    key: [u8; KEY_BYTES],
}

impl<P: Copy + Eq + Default> Scanner<P> {
    /// A scanner before the first byte of a document whose root value is at `root`.
    pub fn new(root: P) -> Self {
        Self {
            state: State::Value,
            reading: Reading::Value,
            literal: Literal::Null,
            literal_at: 0,
            depth: 0,
            skipping: 0,
            hex_digits: 0,
            key_length: 0,
            hex: 0,
            high_surrogate: 0,
            place: root,
            places: [P::default(); TRACKED_DEPTH + 1],
            elements: [0; TRACKED_DEPTH + 1],
            objects: 0,
            number: Number::default(),
            key: [0; KEY_BYTES],
        }
    }

    /// Starts over with a new document; what was left of the last one is forgotten.
    pub fn restart(&mut self, root: P) {
        // Everything else is written before it is read again.
        self.state = State::Value;
        self.place = root;
        self.depth = 0;
        self.skipping = 0;
        self.objects = 0;
        self.high_surrogate = 0;
    }

    /// The root value is complete and nothing but white space followed it.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// The input so far cannot be the beginning of a JSON document.
    pub fn is_broken(&self) -> bool {
        self.state == State::Broken
    }

    /// Takes the next bytes of the document. Pieces may end anywhere.
    pub fn feed<S: Sink<Place = P>>(&mut self, bytes: &[u8], sink: &mut S) {
        let mut rest = bytes;
        while let [byte, tail @ ..] = rest {
            rest = match self.state {
                State::Value => self.value(*byte, rest, tail, sink),
                State::AfterValue => self.after_value(*byte, tail, sink),
                State::FirstKey | State::Key => self.before_key(*byte, tail, sink),
                State::Colon => self.colon(*byte, tail, sink),
                State::FirstElement => self.first_element(*byte, rest, tail, sink),
                State::Text => self.text(rest, sink),
                State::Escape => self.escape(*byte, tail, sink),
                State::Hex => self.hex(*byte, tail, sink),
                State::Skip => self.skip(rest, sink),
                State::SkipText => self.skip_text(rest),
                State::SkipEscape => {
                    self.state = State::SkipText;
                    tail
                }
                State::Number => self.number(rest, sink),
                State::Literal => self.literal(*byte, tail, sink),
                State::Closed if is_space(*byte) => tail,
                State::Closed => self.fail(P::default(), sink),
                State::Broken => return,
            };
        }
    }

    fn value<'b, S: Sink<Place = P>>(&mut self, byte: u8, rest: &'b [u8], tail: &'b [u8], sink: &mut S) -> &'b [u8] {
        match byte {
            b'"' => {
                if self.place == P::default() || !sink.string(self.place) {
                    return self.skip_text(tail);
                }
                self.reading = Reading::Value;
                self.text(tail, sink)
            }
            b'{' => self.open(Container::Object, tail, sink),
            b'[' => self.open(Container::Array, tail, sink),
            b'-' | b'0'..=b'9' => {
                self.number = Number::default();
                self.number(rest, sink)
            }
            b't' => self.begin_literal(Literal::True, rest, sink),
            b'f' => self.begin_literal(Literal::False, rest, sink),
            b'n' => self.begin_literal(Literal::Null, rest, sink),
            _ if is_space(byte) => tail,
            _ => self.fail(self.place, sink),
        }
    }

    fn open<'b, S: Sink<Place = P>>(&mut self, container: Container, tail: &'b [u8], sink: &mut S) -> &'b [u8] {
        if self.depth == MAX_DEPTH {
            return self.fail(self.place, sink);
        }
        self.push(container);
        let depth = usize::from(self.depth);
        if self.place == P::default() || depth > TRACKED_DEPTH {
            self.skipping = self.depth;
            return self.skip(tail, sink);
        }
        sink.open(self.place, container);
        if let Some(place) = self.places.get_mut(depth) {
            *place = self.place;
        }
        if let Some(elements) = self.elements.get_mut(depth) {
            *elements = 0;
        }
        self.state = match container {
            Container::Object => State::FirstKey,
            Container::Array => State::FirstElement,
        };
        tail
    }

    fn close<S: Sink<Place = P>>(&mut self, sink: &mut S) {
        let place = self.parent();
        self.pop();
        sink.close(place);
        self.value_done();
    }

    fn first_element<'b, S: Sink<Place = P>>(
        &mut self,
        byte: u8,
        rest: &'b [u8],
        tail: &'b [u8],
        sink: &mut S,
    ) -> &'b [u8] {
        match byte {
            b']' => {
                self.close(sink);
                tail
            }
            _ if is_space(byte) => tail,
            _ => {
                self.begin_element(sink);
                rest
            }
        }
    }

    fn begin_element<S: Sink<Place = P>>(&mut self, sink: &mut S) {
        let parent = self.parent();
        let mut index = 0;
        if let Some(elements) = self.elements.get_mut(usize::from(self.depth)) {
            index = *elements;
            *elements = elements.saturating_add(1);
        }
        self.place = sink.element(parent, index);
        self.state = State::Value;
    }

    fn before_key<'b, S: Sink<Place = P>>(&mut self, byte: u8, tail: &'b [u8], sink: &mut S) -> &'b [u8] {
        match byte {
            b'"' => self.begin_key(tail, sink),
            b'}' if self.state == State::FirstKey => {
                self.close(sink);
                tail
            }
            _ if is_space(byte) => tail,
            _ => self.fail(self.parent(), sink),
        }
    }

    /// `tail` begins just after the key's opening quote.
    fn begin_key<'b, S: Sink<Place = P>>(&mut self, tail: &'b [u8], sink: &mut S) -> &'b [u8] {
        // Nearly every key is here in one piece and without escapes: it is looked at where it lies.
        let run = plain_run(tail);
        if let (Some(key), [b'"', after @ ..]) = (tail.get(..run), from(tail, run)) {
            self.place = sink.member(self.parent(), key);
            if let [b':', value @ ..] = after {
                self.state = State::Value;
                return value;
            }
            self.state = State::Colon;
            return after;
        }
        self.reading = Reading::Key;
        self.key_length = 0;
        self.text(tail, sink)
    }

    fn colon<'b, S: Sink<Place = P>>(&mut self, byte: u8, tail: &'b [u8], sink: &mut S) -> &'b [u8] {
        match byte {
            b':' => self.state = State::Value,
            _ if is_space(byte) => {}
            _ => return self.fail(self.place, sink),
        }
        tail
    }

    fn after_value<'b, S: Sink<Place = P>>(&mut self, byte: u8, tail: &'b [u8], sink: &mut S) -> &'b [u8] {
        let in_object = self.objects & 1 == 1;
        match byte {
            b',' if in_object => {
                if let [b'"', key @ ..] = tail {
                    return self.begin_key(key, sink);
                }
                self.state = State::Key;
            }
            b',' => self.begin_element(sink),
            b'}' if in_object => self.close(sink),
            b']' if !in_object => self.close(sink),
            _ if is_space(byte) => {}
            _ => return self.fail(self.parent(), sink),
        }
        tail
    }

    /// Reads on in a string whose content is wanted.
    fn text<'b, S: Sink<Place = P>>(&mut self, rest: &'b [u8], sink: &mut S) -> &'b [u8] {
        let run = plain_run(rest);
        if let Some(plain) = rest.get(..run)
            && run > 0
        {
            self.flush_surrogate(sink);
            self.emit(plain, sink);
        }
        match from(rest, run) {
            [] => {
                self.state = State::Text;
                &[]
            }
            [b'"', tail @ ..] => {
                self.end_text(sink);
                tail
            }
            [_, tail @ ..] => {
                self.state = State::Escape;
                tail
            }
        }
    }

    fn end_text<S: Sink<Place = P>>(&mut self, sink: &mut S) {
        self.flush_surrogate(sink);
        match self.reading {
            Reading::Value => {
                sink.string_end(self.place);
                self.value_done();
            }
            Reading::Key => {
                let parent = self.parent();
                self.place = match self.key.get(..usize::from(self.key_length)) {
                    Some(key) => sink.member(parent, key),
                    None => P::default(),
                };
                self.state = State::Colon;
            }
        }
    }

    fn escape<'b, S: Sink<Place = P>>(&mut self, byte: u8, tail: &'b [u8], sink: &mut S) -> &'b [u8] {
        if byte == b'u' {
            self.hex = 0;
            self.hex_digits = 0;
            self.state = State::Hex;
            return tail;
        }
        let Some(plain) = simple_escape(byte) else {
            return self.fail(self.failing_text(), sink);
        };
        self.flush_surrogate(sink);
        self.emit(&[plain], sink);
        self.state = State::Text;
        tail
    }

    fn hex<'b, S: Sink<Place = P>>(&mut self, byte: u8, tail: &'b [u8], sink: &mut S) -> &'b [u8] {
        let Some(digit) = hex_digit(byte) else {
            return self.fail(self.failing_text(), sink);
        };
        self.hex = self.hex << 4 | digit;
        self.hex_digits += 1;
        if self.hex_digits == 4 {
            self.unit(sink);
            self.state = State::Text;
        }
        tail
    }

    /// One UTF-16 unit of an escape is complete.
    fn unit<S: Sink<Place = P>>(&mut self, sink: &mut S) {
        let unit = self.hex;
        match unit {
            0xD800..=0xDBFF => {
                self.flush_surrogate(sink);
                self.high_surrogate = unit;
            }
            0xDC00..=0xDFFF if self.high_surrogate != 0 => {
                let pair = join_surrogates(self.high_surrogate, unit);
                self.high_surrogate = 0;
                self.emit_char(pair, sink);
            }
            _ => {
                self.flush_surrogate(sink);
                self.emit_char(char::from_u32(u32::from(unit)).unwrap_or(REPLACEMENT), sink);
            }
        }
    }

    #[inline]
    fn flush_surrogate<S: Sink<Place = P>>(&mut self, sink: &mut S) {
        if self.high_surrogate != 0 {
            self.high_surrogate = 0;
            self.emit_char(REPLACEMENT, sink);
        }
    }

    fn emit_char<S: Sink<Place = P>>(&mut self, character: char, sink: &mut S) {
        let mut utf8 = [0; 4];
        self.emit(character.encode_utf8(&mut utf8).as_bytes(), sink);
    }

    fn emit<S: Sink<Place = P>>(&mut self, bytes: &[u8], sink: &mut S) {
        match self.reading {
            Reading::Value => sink.piece(self.place, bytes),
            Reading::Key => self.key_length = append_bounded(&mut self.key, self.key_length, bytes),
        }
    }

    /// Goes on to the end of the outermost skipped container, or of the input.
    fn skip<'b, S: Sink<Place = P>>(&mut self, rest: &'b [u8], sink: &mut S) -> &'b [u8] {
        self.state = State::Skip;
        let mut rest = rest;
        loop {
            let [byte, tail @ ..] = from(rest, structural_run(rest)) else {
                return &[];
            };
            rest = tail;
            let matches = match byte {
                b'"' => {
                    rest = self.skip_text(tail);
                    if self.state != State::Skip {
                        return rest;
                    }
                    true
                }
                b'{' | b'[' if self.depth == MAX_DEPTH => false,
                b'{' => {
                    self.push(Container::Object);
                    true
                }
                b'[' => {
                    self.push(Container::Array);
                    true
                }
                _ => {
                    let closes_object = *byte == b'}';
                    let fits = closes_object == (self.objects & 1 == 1);
                    self.pop();
                    if fits && self.depth < self.skipping {
                        self.skipping = 0;
                        self.value_done();
                        return rest;
                    }
                    fits
                }
            };
            if !matches {
                return self.fail(P::default(), sink);
            }
        }
    }

    /// Goes on to the end of a skipped string.
    fn skip_text<'b>(&mut self, rest: &'b [u8]) -> &'b [u8] {
        let mut rest = rest;
        loop {
            match from(rest, plain_run(rest)) {
                [] => {
                    self.state = State::SkipText;
                    return &[];
                }
                [b'"', tail @ ..] => {
                    if self.skipping == 0 {
                        self.value_done();
                    } else {
                        self.state = State::Skip;
                    }
                    return tail;
                }
                [_, _, tail @ ..] => rest = tail,
                [_] => {
                    self.state = State::SkipEscape;
                    return &[];
                }
            }
        }
    }

    fn number<'b, S: Sink<Place = P>>(&mut self, rest: &'b [u8], sink: &mut S) -> &'b [u8] {
        let tail = self.number.read(rest);
        let Some(next) = tail.first() else {
            // More digits may come.
            self.state = State::Number;
            return tail;
        };
        let ends = matches!(next, b',' | b'}' | b']') || is_space(*next);
        if !ends || !self.number.is_whole() {
            return self.fail(self.place, sink);
        }
        if self.place != P::default() {
            sink.number(self.place, &self.number);
        }
        self.value_done();
        tail
    }

    fn begin_literal<'b, S: Sink<Place = P>>(&mut self, literal: Literal, rest: &'b [u8], sink: &mut S) -> &'b [u8] {
        if let Some(tail) = rest.strip_prefix(literal.word()) {
            self.end_literal(literal, sink);
            return tail;
        }
        self.literal = literal;
        self.literal_at = 0;
        self.state = State::Literal;
        rest
    }

    fn literal<'b, S: Sink<Place = P>>(&mut self, byte: u8, tail: &'b [u8], sink: &mut S) -> &'b [u8] {
        let word = self.literal.word();
        if word.get(usize::from(self.literal_at)) != Some(&byte) {
            return self.fail(self.place, sink);
        }
        self.literal_at += 1;
        if usize::from(self.literal_at) == word.len() {
            self.end_literal(self.literal, sink);
        }
        tail
    }

    fn end_literal<S: Sink<Place = P>>(&mut self, literal: Literal, sink: &mut S) {
        if self.place != P::default() {
            sink.literal(self.place, literal);
        }
        self.value_done();
    }

    #[inline]
    fn value_done(&mut self) {
        self.state = if self.depth == 0 { State::Closed } else { State::AfterValue };
    }

    #[inline]
    fn push(&mut self, container: Container) {
        self.objects = self.objects << 1 | u128::from(container == Container::Object);
        self.depth += 1;
    }

    #[inline]
    fn pop(&mut self) {
        self.objects >>= 1;
        self.depth = self.depth.saturating_sub(1);
    }

    /// Place of the innermost open container, which is not a skipped one.
    #[inline]
    fn parent(&self) -> P {
        self.places.get(usize::from(self.depth)).copied().unwrap_or_default()
    }

    fn failing_text(&self) -> P {
        match self.reading {
            Reading::Key => self.parent(),
            Reading::Value => self.place,
        }
    }

    #[cold]
    fn fail<'b, S: Sink<Place = P>>(&mut self, place: P, sink: &mut S) -> &'b [u8] {
        self.state = State::Broken;
        sink.broken(place);
        &[]
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Start,
    Minus,
    Zero,
    Integer,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
}

/// A JSON number, read digit by digit, kept exactly enough to round it up to a whole count.
#[derive(Clone, Debug, Default)]
pub struct Number {
    part: Part,
    negative: bool,
    exponent_negative: bool,
    /// No further digit fits the mantissa; those that follow only set `remainder` and the scale.
    full: bool,
    /// A digit other than zero was left out of the mantissa.
    remainder: bool,
    mantissa: u64,
    /// The value is mantissa × 10^scale, before the written exponent.
    scale: i32,
    exponent: i32,
}

impl Number {
    /// Takes as much of `bytes` as belongs to the number and gives back the rest.
    pub fn read<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let mut rest = bytes;
        while let [byte, tail @ ..] = rest {
            if !self.take(*byte) {
                return rest;
            }
            rest = tail;
        }
        rest
    }

    /// The characters read so far are a complete JSON number.
    pub fn is_whole(&self) -> bool {
        matches!(self.part, Part::Zero | Part::Integer | Part::Fraction | Part::ExponentDigits)
    }

    #[inline]
    fn take(&mut self, byte: u8) -> bool {
        self.part = match (self.part, byte) {
            (Part::Start | Part::Minus | Part::Integer, b'1'..=b'9') | (Part::Integer, b'0') => {
                self.digit(byte - b'0', 0);
                Part::Integer
            }
            (Part::Start, b'-') => {
                self.negative = true;
                Part::Minus
            }
            (Part::Start | Part::Minus, b'0') => Part::Zero,
            (Part::Zero | Part::Integer, b'.') => Part::Point,
            (Part::Point | Part::Fraction, b'0'..=b'9') => {
                self.digit(byte - b'0', 1);
                Part::Fraction
            }
            (Part::Zero | Part::Integer | Part::Fraction, b'e' | b'E') => Part::Exponent,
            (Part::Exponent, b'+') => Part::ExponentSign,
            (Part::Exponent, b'-') => {
                self.exponent_negative = true;
                Part::ExponentSign
            }
            (Part::Exponent | Part::ExponentSign | Part::ExponentDigits, b'0'..=b'9') => {
                self.exponent = self.exponent.saturating_mul(10).saturating_add(i32::from(byte - b'0'));
                Part::ExponentDigits
            }
            _ => return false,
        };
        true
    }

    /// `decimals` is how many places after the point this digit adds: 0 or 1.
    #[inline]
    fn digit(&mut self, digit: u8, decimals: i32) {
        if !self.full {
            let longer = self.mantissa.checked_mul(10).and_then(|tens| tens.checked_add(u64::from(digit)));
            if let Some(mantissa) = longer {
                self.mantissa = mantissa;
                self.scale = self.scale.saturating_sub(decimals);
                return;
            }
            self.full = true;
        }
        self.remainder |= digit != 0;
        self.scale = self.scale.saturating_add(1 - decimals);
    }

    /// The number rounded up to a whole one: `None` when it is below zero, `u64::MAX` when it is larger than that.
    pub fn ceil(&self) -> Option<u64> {
        if self.mantissa == 0 {
            // A remainder needs a full mantissa first, so this is exactly zero, whatever its sign.
            return Some(0);
        }
        if self.negative {
            return None;
        }
        let exponent = if self.exponent_negative { -self.exponent } else { self.exponent };
        let scale = self.scale.saturating_add(exponent);
        if scale >= 0 {
            if self.full && scale > 0 {
                // Already the first digit that was left out made it too large.
                return Some(u64::MAX);
            }
            let whole = 10_u64.checked_pow(scale.unsigned_abs()).and_then(|power| self.mantissa.checked_mul(power));
            return Some(whole.map_or(u64::MAX, |whole| whole.saturating_add(u64::from(self.remainder))));
        }
        let Some(power) = 10_u64.checked_pow(scale.unsigned_abs()) else {
            return Some(1);
        };
        let whole = (self.mantissa / power).saturating_add(u64::from(self.remainder));
        let rounded = self.mantissa.div_ceil(power);
        Some(rounded.max(whole))
    }
}

/// How many bytes come before the next quote or backslash; all of them if there is none.
#[inline]
pub fn plain_run(bytes: &[u8]) -> usize {
    run::<false>(bytes)
}

/// How many bytes come before the next quote, backslash or control character; all of them if there is none.
#[inline]
pub fn strict_run(bytes: &[u8]) -> usize {
    run::<true>(bytes)
}

#[inline]
fn run<const STRICT: bool>(bytes: &[u8]) -> usize {
    // Keys and most values are shorter than what a call into memchr is worth. How far to look was measured: answers
    // hold many identifiers, requests few strings of a middling length.
    let mut at = 0;
    while at < if STRICT { 16 } else { 32 } {
        let rest = from(bytes, at);
        let Some(word) = rest.first_chunk::<8>() else {
            return at + rest.iter().position(|&byte| ends_run::<STRICT>(byte)).unwrap_or(rest.len());
        };
        let word = u64::from_le_bytes(*word);
        let stops = if STRICT {
            // Flipping one bit puts the quote right above the control characters, so that one comparison finds both.
            below_33(word ^ repeat(0x02))
        } else {
            zero_bytes(word ^ repeat(b'"'))
        };
        let hits = stops | zero_bytes(word ^ repeat(b'\\'));
        if hits != 0 {
            return at + (hits.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    at + long_run::<STRICT>(from(bytes, at))
}

#[inline(never)]
fn long_run<const STRICT: bool>(bytes: &[u8]) -> usize {
    let length = memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len());
    let run = bytes.get(..length).unwrap_or_default();
    // Without an early exit this is a vector loop.
    if STRICT && run.iter().fold(u8::MAX, |least, &byte| least.min(byte)) < 0x20 {
        return run.iter().position(|&byte| byte < 0x20).unwrap_or(length);
    }
    length
}

#[inline]
fn ends_run<const STRICT: bool>(byte: u8) -> bool {
    byte == b'"' || byte == b'\\' || (STRICT && byte < 0x20)
}

/// How many bytes come before the next quote or bracket of any kind; all of them if there is none.
#[inline]
fn structural_run(bytes: &[u8]) -> usize {
    // `[` and `{`, and `]` and `}`, differ in one bit only; the inner loop compiles to a few vector instructions, which
    // is what makes an embedding of thirty kilobytes cheap to pass over.
    let mut at = 0;
    for block in bytes.chunks_exact(32) {
        if block.iter().fold(false, |hit, &byte| hit | is_structural(byte)) {
            break;
        }
        at += 32;
    }
    let rest = from(bytes, at);
    at + rest.iter().position(|&byte| is_structural(byte)).unwrap_or(rest.len())
}

#[inline]
fn is_structural(byte: u8) -> bool {
    let folded = byte | 0x20;
    (folded == b'{') | (folded == b'}') | (byte == b'"')
}

/// The lowest set bit marks the first zero byte; bits above it may be wrong.
#[inline]
fn zero_bytes(word: u64) -> u64 {
    word.wrapping_sub(repeat(1)) & !word & repeat(0x80)
}

/// The same for the first byte below 33.
#[inline]
fn below_33(word: u64) -> u64 {
    word.wrapping_sub(repeat(33)) & !word & repeat(0x80)
}

#[inline]
fn repeat(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// White space as JSON means it.
#[inline]
pub fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t')
}

/// What the character after a backslash stands for, `u` excepted.
pub fn simple_escape(byte: u8) -> Option<u8> {
    Some(match byte {
        b'"' | b'\\' | b'/' => byte,
        b'b' => 0x08,
        b'f' => 0x0C,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        _ => return None,
    })
}

/// The value of one hexadecimal digit.
pub fn hex_digit(byte: u8) -> Option<u16> {
    Some(match byte {
        b'0'..=b'9' => u16::from(byte - b'0'),
        b'a'..=b'f' => u16::from(byte - b'a') + 10,
        b'A'..=b'F' => u16::from(byte - b'A') + 10,
        _ => return None,
    })
}

/// The character two surrogates stand for together.
pub fn join_surrogates(high: u16, low: u16) -> char {
    let high = u32::from(high) & 0x3FF;
    let low = u32::from(low) & 0x3FF;
    char::from_u32(0x1_0000 + (high << 10 | low)).unwrap_or(REPLACEMENT)
}

/// Copies `bytes` behind the first `length` of `buffer`; `u8::MAX` instead of a length says that they did not all fit,
/// once and for good.
#[inline]
pub fn append_bounded(buffer: &mut [u8], length: u8, bytes: &[u8]) -> u8 {
    let start = usize::from(length);
    let Some(end) = start.checked_add(bytes.len()).filter(|_| length != OVERLONG) else {
        return OVERLONG;
    };
    match (buffer.get_mut(start..end), u8::try_from(end)) {
        (Some(free), Ok(end)) => {
            free.copy_from_slice(bytes);
            end
        }
        _ => OVERLONG,
    }
}

/// `bytes` from `at` on, empty past the end.
#[inline]
pub fn from(bytes: &[u8], at: usize) -> &[u8] {
    bytes.get(at..).unwrap_or_default()
}
