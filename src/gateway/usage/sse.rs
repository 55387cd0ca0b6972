//! Splits a `text/event-stream` into events as its bytes arrive.
//!
//! Owns: lines (`\n`, `\r\n` or `\r`), fields, comments, the byte order mark, and where an event ends. The bytes of
//! `data` are handed on where they lie; nothing is collected.
//!
//! Never does: look into the data, or hold an event back. A comment, an unknown field and an event without data leave
//! no trace.

use memchr::memchr2;

use super::json::{append_bounded, from};

/// The only field names that matter are `data` and `event`, and the only event name `error`.
const NAME_BYTES: usize = 8;

const BYTE_ORDER_MARK: [u8; 3] = [0xEF, 0xBB, 0xBF];

/// Receives the events of a stream.
pub trait Events {
    /// The first data of a new event follows.
    fn begin(&mut self);

    /// The next bytes of the event's data; lines of one event are joined by `\n`.
    fn data(&mut self, bytes: &[u8]);

    /// The event is called `error`; may come before, between or after its data.
    fn named_error(&mut self);

    /// The event is complete. Only called after `begin`.
    fn end(&mut self);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// So many bytes of the byte order mark were seen, and nothing else.
    StreamStart(u8),
    LineStart,
    Name,
    /// Just after `data:`, where one space may follow.
    DataStart,
    Data,
    /// Just after `event:`, where one space may follow.
    EventStart,
    Event,
    Ignore,
}

/// The splitter's state between two pieces of input.
#[derive(Clone, Debug)]
pub struct Splitter {
    state: State,
    /// The last line ended in `\r`, so that a `\n` right here belongs to it.
    after_return: bool,
    /// The current event has had data.
    has_data: bool,
    word_length: u8,
    word: [u8; NAME_BYTES],
}

impl Default for Splitter {
    fn default() -> Self {
        Self {
            state: State::StreamStart(0),
            after_return: false,
            has_data: false,
            word_length: 0,
            word: [0; NAME_BYTES],
        }
    }
}

impl Splitter {
    /// Takes the next bytes of the stream. Pieces may end anywhere.
    pub fn feed(&mut self, bytes: &[u8], events: &mut impl Events) {
        let mut rest = bytes;
        while let [byte, tail @ ..] = rest {
            if self.after_return {
                self.after_return = false;
                if *byte == b'\n' {
                    rest = tail;
                    continue;
                }
            }
            rest = match self.state {
                State::StreamStart(seen) => self.stream_start(seen, *byte, rest, tail),
                State::LineStart => self.line_start(rest, events),
                State::Name => self.name(*byte, rest, tail, events),
                State::DataStart => {
                    self.begin_data(events);
                    if *byte == b' ' { tail } else { rest }
                }
                State::EventStart => {
                    self.state = State::Event;
                    if *byte == b' ' { tail } else { rest }
                }
                State::Data | State::Event | State::Ignore => self.line(rest, events),
            };
        }
    }

    /// The stream has ended, perhaps in the middle of an event: what came of it counts.
    pub fn finish(&mut self, events: &mut impl Events) {
        self.end_line(events);
        self.end_event(events);
    }

    fn stream_start<'b>(&mut self, seen: u8, byte: u8, rest: &'b [u8], tail: &'b [u8]) -> &'b [u8] {
        if BYTE_ORDER_MARK.get(usize::from(seen)) == Some(&byte) {
            self.state = if usize::from(seen) + 1 == BYTE_ORDER_MARK.len() {
                State::LineStart
            } else {
                State::StreamStart(seen + 1)
            };
            return tail;
        }
        // A mark that is not one is the beginning of a field nobody knows.
        self.state = if seen == 0 { State::LineStart } else { State::Ignore };
        rest
    }

    fn line_start<'b>(&mut self, rest: &'b [u8], events: &mut impl Events) -> &'b [u8] {
        // How nearly every line begins.
        if let Some(tail) = rest.strip_prefix(b"data: ") {
            self.begin_data(events);
            return tail;
        }
        self.word_length = 0;
        match rest {
            [b'\n' | b'\r', ..] => {
                self.end_event(events);
                self.line(rest, events)
            }
            [b':', ..] => {
                self.state = State::Ignore;
                rest
            }
            _ => {
                self.state = State::Name;
                rest
            }
        }
    }

    fn name<'b>(&mut self, byte: u8, rest: &'b [u8], tail: &'b [u8], events: &mut impl Events) -> &'b [u8] {
        match byte {
            b'\n' | b'\r' => self.line(rest, events),
            b':' => {
                self.state = match self.word() {
                    b"data" => State::DataStart,
                    b"event" => State::EventStart,
                    _ => State::Ignore,
                };
                self.word_length = 0;
                tail
            }
            _ => {
                self.word_length = append_bounded(&mut self.word, self.word_length, &[byte]);
                tail
            }
        }
    }

    /// Goes on to the end of the line, or of the input.
    fn line<'b>(&mut self, rest: &'b [u8], events: &mut impl Events) -> &'b [u8] {
        let length = memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
        let content = rest.get(..length).unwrap_or_default();
        match self.state {
            State::Data => events.data(content),
            State::Event => self.word_length = append_bounded(&mut self.word, self.word_length, content),
            _ => {}
        }
        match from(rest, length) {
            [] => &[],
            [end, tail @ ..] => {
                self.end_line(events);
                self.after_return = *end == b'\r';
                tail
            }
        }
    }

    fn end_line(&mut self, events: &mut impl Events) {
        match self.state {
            // A field name without a colon is a field with an empty value.
            State::Name if self.word() == b"data" => self.begin_data(events),
            State::DataStart => self.begin_data(events),
            State::Event if self.word() == b"error" => events.named_error(),
            _ => {}
        }
        self.state = State::LineStart;
    }

    fn begin_data(&mut self, events: &mut impl Events) {
        self.state = State::Data;
        if self.has_data {
            events.data(b"\n");
        } else {
            self.has_data = true;
            events.begin();
        }
    }

    fn end_event(&mut self, events: &mut impl Events) {
        if self.has_data {
            self.has_data = false;
            events.end();
        }
    }

    fn word(&self) -> &[u8] {
        self.word.get(..usize::from(self.word_length)).unwrap_or_default()
    }
}
