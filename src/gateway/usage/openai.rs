//! What an answer in OpenAI's formats says about itself: its usage, its model, its text.
//!
//! Owns: the shape of chat completions, completions, responses, embeddings and images, as one plain document and as
//! one document per event of a stream, and what to believe when fields are missing, repeated or wrong.
//!
//! Never does: decide what is charged, look at requests, or keep more than the text limit, one model name and a few
//! counters. Nothing is allocated until text appears.

use super::Usage;
use super::json::{Container, Literal, Number, Sink, append_bounded};

/// Longest model name that is kept, in bytes; of a longer one its beginning is.
pub const MODEL_BYTES: usize = 128;

/// The longest type name that matters has 38 bytes.
const TYPE_BYTES: usize = 48;

/// The first allocation for text, in bytes: short answers stay within it.
const FIRST_TEXT_BYTES: usize = 256;

/// Whether a document is a whole answer or one event of a stream: the same key can mean different things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Document,
    Event,
}

/// Where in an answer a value is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    #[default]
    Elsewhere,
    Root,
    Model,
    Error,
    Usage,
    InputTokens,
    OutputTokens,
    TotalTokens,
    UsageDetails,
    CachedTokens,
    Choices,
    Choice,
    ChoiceIndex,
    Message,
    /// Text itself, or an array of parts with text.
    Content,
    Part,
    Text,
    /// Generated, but not text of the answer: arguments of calls, refusals, reasoning.
    OtherOutput,
    Calls,
    Call,
    CallFunction,
    /// `output` of a response, or one `item` of it in an event.
    Output,
    Item,
    ItemType,
    Data,
    Datum,
    Image,
    Response,
    EventType,
    EventDelta,
}

/// What the `type` of an event says about its `delta`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EventType {
    Unknown,
    TextDelta,
    OtherDelta,
    Unrelated,
}

/// Whether the text of the choice or item being read belongs to the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Not said yet; text is kept, and taken back should the answer be no.
    Open,
    Keep,
    Drop,
}

/// How much text there was at a certain point, so that what came later can be taken back.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    held: usize,
    seen: u64,
    truncated: bool,
}

/// Collects what one answer says, over all its events.
#[derive(Debug)]
pub struct Answer {
    shape: Shape,
    event_type: EventType,
    verdict: Verdict,
    pending_delta: bool,
    image_counted: bool,
    pub usage_malformed: bool,
    pub tool_calls: bool,
    pub error: bool,
    /// An event said that the answer is complete or given up.
    pub ended: bool,
    pub text_truncated: bool,
    model_known: bool,
    model_length: u8,
    type_length: u8,
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cached_tokens: Option<u64>,
    images: u64,
    choice_position: u32,
    text_limit: usize,
    text: Vec<u8>,
    pub text_seen: u64,
    pub other_seen: u64,
    pub delta_events: u64,
    produced_before_event: u64,
    choice_mark: Mark,
    delta_mark: Mark,
    model: [u8; MODEL_BYTES],
    type_name: [u8; TYPE_BYTES],
}

impl Answer {
    pub fn new(shape: Shape, text_limit: usize) -> Self {
        Self {
            shape,
            event_type: EventType::Unknown,
            verdict: Verdict::Keep,
            pending_delta: false,
            image_counted: false,
            usage_malformed: false,
            tool_calls: false,
            error: false,
            ended: false,
            text_truncated: false,
            model_known: false,
            model_length: 0,
            type_length: 0,
            input_tokens: None,
            output_tokens: None,
            cached_tokens: None,
            images: 0,
            choice_position: 0,
            text_limit,
            text: Vec::new(),
            text_seen: 0,
            other_seen: 0,
            delta_events: 0,
            produced_before_event: 0,
            choice_mark: Mark::default(),
            delta_mark: Mark::default(),
            model: [0; MODEL_BYTES],
            type_name: [0; TYPE_BYTES],
        }
    }

    /// A document of the answer begins.
    pub fn begin_document(&mut self) {
        self.event_type = EventType::Unknown;
        self.verdict = Verdict::Keep;
        self.pending_delta = false;
        self.produced_before_event = self.produced();
    }

    /// The document is over, complete or not: whatever was still open is decided.
    pub fn end_document(&mut self) {
        self.decide_choice();
        if self.pending_delta {
            self.pending_delta = false;
            match self.event_type {
                EventType::TextDelta => {}
                EventType::OtherDelta => self.take_back_to(self.delta_mark),
                EventType::Unknown | EventType::Unrelated => {
                    let other = self.other_seen;
                    self.take_back_to(self.delta_mark);
                    self.other_seen = other;
                }
            }
        }
        if self.shape == Shape::Event && self.produced() > self.produced_before_event {
            self.delta_events += 1;
        }
    }

    /// Keeps no more text than there is.
    pub fn keep_no_more(&mut self) {
        self.text_limit = self.text.len();
    }

    /// Bytes of text held.
    pub fn held(&self) -> usize {
        self.text.len()
    }

    pub fn usage(&self) -> Option<Usage> {
        let known = self.input_tokens.or(self.output_tokens).or(self.cached_tokens).is_some();
        (known || self.images > 0).then(|| Usage {
            input_tokens: self.input_tokens.unwrap_or(0),
            output_tokens: self.output_tokens.unwrap_or(0),
            cached_tokens: self.cached_tokens.unwrap_or(0),
            images: self.images,
        })
    }

    pub fn model(&self) -> Option<Box<str>> {
        let name = self.model.get(..usize::from(self.model_length)).filter(|_| self.model_known)?;
        let name = String::from_utf8_lossy(cut_to_characters(name));
        let end = name.floor_char_boundary(MODEL_BYTES);
        name.get(..end).filter(|name| !name.is_empty()).map(Box::from)
    }

    /// The text, at most the limit long. Bytes that are not UTF-8 become U+FFFD.
    pub fn take_text(&mut self) -> String {
        let bytes = std::mem::take(&mut self.text);
        let bytes = match String::from_utf8(bytes) {
            Ok(text) => return text,
            Err(error) => error.into_bytes(),
        };
        let mut text = String::from_utf8_lossy(cut_to_characters(&bytes)).into_owned();
        if text.len() > self.text_limit {
            text.truncate(text.floor_char_boundary(self.text_limit));
            self.text_truncated = true;
        }
        text
    }

    fn produced(&self) -> u64 {
        self.text_seen.saturating_add(self.other_seen)
    }

    fn mark(&self) -> Mark {
        Mark { held: self.text.len(), seen: self.text_seen, truncated: self.text_truncated }
    }

    /// Text since the mark was not the answer's; it was generated all the same.
    fn take_back_to(&mut self, mark: Mark) {
        let taken = self.text_seen.saturating_sub(mark.seen);
        self.text.truncate(mark.held);
        self.text_truncated = mark.truncated;
        self.text_seen -= taken;
        self.other_seen = self.other_seen.saturating_add(taken);
    }

    fn begin_choice(&mut self) {
        self.choice_mark = self.mark();
        self.verdict = Verdict::Open;
    }

    fn decide_choice(&mut self) {
        let drop = match self.verdict {
            Verdict::Drop => true,
            Verdict::Keep => false,
            Verdict::Open => self.choice_position > 0,
        };
        if drop {
            self.take_back_to(self.choice_mark);
        }
        self.verdict = Verdict::Keep;
    }

    fn append_text(&mut self, bytes: &[u8]) {
        self.text_seen = self.text_seen.saturating_add(bytes.len() as u64);
        if self.text_truncated {
            return;
        }
        let room = self.text_limit - self.text.len().min(self.text_limit);
        let fitting = bytes.get(..room).unwrap_or(bytes);
        self.text_truncated = fitting.len() < bytes.len();
        let needed = self.text.len() + fitting.len();
        if needed > self.text.capacity() {
            // Doubling, but never past the limit.
            let wanted = (2 * self.text.capacity()).max(FIRST_TEXT_BYTES).min(self.text_limit).max(needed);
            self.text.reserve_exact(wanted - self.text.len());
        }
        self.text.extend_from_slice(fitting);
    }

    fn count_other(&mut self, bytes: &[u8]) {
        self.other_seen = self.other_seen.saturating_add(bytes.len() as u64);
    }

    fn type_name(&self) -> &[u8] {
        self.type_name.get(..usize::from(self.type_length)).unwrap_or_default()
    }

    fn event_type_known(&mut self) {
        let name = self.type_name();
        let mut ended = false;
        let mut error = false;
        let mut images = 0;
        self.event_type = match name {
            b"response.output_text.delta" => EventType::TextDelta,
            b"response.completed" | b"response.incomplete" => {
                ended = true;
                EventType::Unrelated
            }
            b"response.failed" => {
                ended = true;
                error = true;
                EventType::Unrelated
            }
            b"error" => {
                error = true;
                EventType::Unrelated
            }
            b"image_generation.completed" | b"image_edit.completed" => {
                images = 1;
                EventType::Unrelated
            }
            _ if is_other_delta(name) => EventType::OtherDelta,
            _ => EventType::Unrelated,
        };
        self.ended |= ended;
        self.error |= error;
        self.images = self.images.saturating_add(images);
    }

    fn item_type_known(&mut self) {
        let name = self.type_name();
        let is_call = name.ends_with(b"_call");
        let is_reasoning = name == b"reasoning";
        self.tool_calls |= is_call;
        if is_reasoning && self.verdict == Verdict::Open {
            self.verdict = Verdict::Drop;
        }
    }
}

impl Sink for Answer {
    type Place = Place;

    #[inline]
    fn member(&mut self, parent: Place, key: &[u8]) -> Place {
        let document = self.shape == Shape::Document;
        match parent {
            Place::Root => match key {
                b"model" if !self.model_known => Place::Model,
                b"usage" => Place::Usage,
                b"choices" => Place::Choices,
                b"error" => Place::Error,
                b"output" if document => Place::Output,
                b"data" if document => Place::Data,
                b"type" if !document => Place::EventType,
                b"delta" if !document => Place::EventDelta,
                b"response" if !document => Place::Response,
                b"item" if !document => Place::Item,
                _ => Place::Elsewhere,
            },
            Place::Choice => match key {
                b"index" => Place::ChoiceIndex,
                b"text" => Place::Text,
                b"message" if document => Place::Message,
                b"delta" if !document => Place::Message,
                _ => Place::Elsewhere,
            },
            Place::Message => match key {
                b"content" => Place::Content,
                b"tool_calls" => Place::Calls,
                b"function_call" => Place::CallFunction,
                b"refusal" | b"reasoning" | b"reasoning_content" => Place::OtherOutput,
                _ => Place::Elsewhere,
            },
            Place::Part if key == b"text" => Place::Text,
            Place::Part if key == b"refusal" => Place::OtherOutput,
            Place::Call if key == b"function" => Place::CallFunction,
            Place::CallFunction if key == b"arguments" => Place::OtherOutput,
            Place::Usage => match key {
                b"prompt_tokens" | b"input_tokens" => Place::InputTokens,
                b"completion_tokens" | b"output_tokens" => Place::OutputTokens,
                b"total_tokens" => Place::TotalTokens,
                b"prompt_tokens_details" | b"input_tokens_details" => Place::UsageDetails,
                _ => Place::Elsewhere,
            },
            Place::UsageDetails if key == b"cached_tokens" => Place::CachedTokens,
            Place::Response => match key {
                b"model" if !self.model_known => Place::Model,
                b"usage" => Place::Usage,
                b"error" => Place::Error,
                b"output" => Place::Output,
                _ => Place::Elsewhere,
            },
            Place::Item => match key {
                b"type" => Place::ItemType,
                // In a stream the same text has come in deltas before.
                b"content" if document => Place::Content,
                b"arguments" if document => Place::OtherOutput,
                _ => Place::Elsewhere,
            },
            Place::Datum if key == b"b64_json" || key == b"url" => Place::Image,
            _ => Place::Elsewhere,
        }
    }

    #[inline]
    fn element(&mut self, parent: Place, index: u32) -> Place {
        match parent {
            Place::Choices => {
                self.choice_position = index;
                Place::Choice
            }
            Place::Output => {
                self.choice_position = 0;
                Place::Item
            }
            Place::Content => Place::Part,
            Place::Calls => {
                self.tool_calls = true;
                Place::Call
            }
            Place::Data => {
                self.image_counted = false;
                Place::Datum
            }
            _ => Place::Elsewhere,
        }
    }

    fn open(&mut self, place: Place, container: Container) {
        match place {
            Place::Choice | Place::Item => self.begin_choice(),
            Place::CallFunction => self.tool_calls = true,
            Place::Error => self.error = true,
            Place::Usage | Place::UsageDetails if container == Container::Object => {}
            _ => self.usage_malformed |= is_usage(place),
        }
    }

    fn close(&mut self, place: Place) {
        if matches!(place, Place::Choice | Place::Item) {
            self.decide_choice();
        }
    }

    fn string(&mut self, place: Place) -> bool {
        match place {
            Place::Model => {
                self.model_length = 0;
                !self.model_known
            }
            Place::EventType | Place::ItemType => {
                self.type_length = 0;
                true
            }
            Place::EventDelta => match self.event_type {
                EventType::Unknown => {
                    if !self.pending_delta {
                        self.delta_mark = self.mark();
                    }
                    self.pending_delta = true;
                    true
                }
                EventType::TextDelta | EventType::OtherDelta => true,
                EventType::Unrelated => false,
            },
            Place::Content | Place::Text | Place::OtherOutput | Place::Error => true,
            Place::Image => {
                self.images = self.images.saturating_add(u64::from(!self.image_counted));
                self.image_counted = true;
                false
            }
            _ => {
                self.usage_malformed |= is_usage(place);
                false
            }
        }
    }

    fn piece(&mut self, place: Place, bytes: &[u8]) {
        match place {
            Place::Content | Place::Text if self.verdict == Verdict::Drop => self.count_other(bytes),
            Place::Content | Place::Text => self.append_text(bytes),
            Place::EventDelta if self.event_type == EventType::OtherDelta => self.count_other(bytes),
            Place::EventDelta => self.append_text(bytes),
            Place::OtherOutput => self.count_other(bytes),
            Place::Model => {
                let start = usize::from(self.model_length);
                let free = self.model.get_mut(start..).unwrap_or_default();
                for (to, from) in free.iter_mut().zip(bytes) {
                    *to = *from;
                    self.model_length += 1;
                }
            }
            Place::EventType | Place::ItemType => {
                self.type_length = append_bounded(&mut self.type_name, self.type_length, bytes);
            }
            Place::Error => self.error = true,
            _ => {}
        }
    }

    fn string_end(&mut self, place: Place) {
        match place {
            Place::Model => self.model_known = self.model_length > 0,
            Place::EventType => self.event_type_known(),
            Place::ItemType => self.item_type_known(),
            _ => {}
        }
    }

    fn number(&mut self, place: Place, number: &Number) {
        if place == Place::ChoiceIndex {
            if self.verdict == Verdict::Open {
                self.verdict = if number.ceil() == Some(0) { Verdict::Keep } else { Verdict::Drop };
            }
            return;
        }
        let value = number.ceil();
        let field = match place {
            Place::InputTokens => &mut self.input_tokens,
            Place::OutputTokens => &mut self.output_tokens,
            Place::CachedTokens => &mut self.cached_tokens,
            _ => {
                self.usage_malformed |= is_usage(place) && (place != Place::TotalTokens || value.is_none());
                return;
            }
        };
        match value {
            Some(_) => *field = value,
            None => self.usage_malformed = true,
        }
    }

    fn literal(&mut self, place: Place, literal: Literal) {
        let absent = literal == Literal::Null && matches!(place, Place::Usage | Place::UsageDetails);
        self.usage_malformed |= is_usage(place) && !absent;
    }

    fn broken(&mut self, place: Place) {
        self.usage_malformed |= is_usage(place);
    }
}

/// Responses stream more than text as deltas of a string; all of it but audio was generated token by token.
fn is_other_delta(name: &[u8]) -> bool {
    name.starts_with(b"response.") && name.ends_with(b".delta") && !name.windows(5).any(|part| part == b"audio")
}

fn is_usage(place: Place) -> bool {
    matches!(
        place,
        Place::Usage
            | Place::UsageDetails
            | Place::InputTokens
            | Place::OutputTokens
            | Place::TotalTokens
            | Place::CachedTokens
    )
}

/// `bytes` without the beginning of a character at their end that was cut off.
fn cut_to_characters(bytes: &[u8]) -> &[u8] {
    match bytes.utf8_chunks().last() {
        Some(last) if is_cut(last.invalid()) => bytes.get(..bytes.len() - last.invalid().len()).unwrap_or_default(),
        _ => bytes,
    }
}

/// Whether more bytes could make a character of what is not one.
fn is_cut(bytes: &[u8]) -> bool {
    match std::str::from_utf8(bytes) {
        Ok(_) => false,
        Err(error) => error.error_len().is_none(),
    }
}
