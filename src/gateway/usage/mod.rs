//! What calls and answers say about themselves, read on the way through.
//!
//! Owns: a look at an answer's bytes as they pass ([`AnswerScan`]), and at a request's body once it is there
//! ([`scan_request`](request::scan_request)). Both work on the raw bytes, in one pass, without a document tree.
//!
//! Never does: change a byte, wait, decide what is charged, or fail: input that makes no sense is reported as such in
//! what was observed.

pub mod json;
pub mod openai;
pub mod request;
pub mod sse;

pub use request::{RequestFacts, scan_request};

pub use crate::domain::price::Usage;

use json::Scanner;
use openai::{Answer, Place, Shape};
use sse::{Events, Splitter};

/// How an answer's body is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerFormat {
    /// One JSON document.
    Json,
    /// A stream of events with one JSON document each.
    Sse,
    /// Not read at all.
    Opaque,
}

impl AnswerFormat {
    /// By the value of a `content-type` header; parameters and case do not matter. What is not known is opaque.
    pub fn of_content_type(value: &[u8]) -> Self {
        let essence = value.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
        if essence.eq_ignore_ascii_case(b"application/json") {
            return Self::Json;
        }
        if essence.eq_ignore_ascii_case(b"text/event-stream") {
            return Self::Sse;
        }
        let suffix = essence.len().checked_sub(5).and_then(|at| essence.get(at..));
        match suffix {
            Some(suffix) if suffix.eq_ignore_ascii_case(b"+json") && essence.contains(&b'/') => Self::Json,
            _ => Self::Opaque,
        }
    }
}

/// Reads along with one answer. A few hundred bytes; allocates only for text.
#[derive(Debug)]
pub struct AnswerScan {
    format: AnswerFormat,
    splitter: Splitter,
    reader: Reader,
}

impl AnswerScan {
    /// A scan before the first byte of a body. At most `text_limit` bytes of text are kept; 0 keeps none and still
    /// counts them.
    pub fn new(format: AnswerFormat, text_limit: usize) -> Self {
        let shape = match format {
            AnswerFormat::Sse => Shape::Event,
            AnswerFormat::Json | AnswerFormat::Opaque => Shape::Document,
        };
        Self {
            format,
            splitter: Splitter::default(),
            reader: Reader {
                scanner: Scanner::new(Place::Root),
                answer: Answer::new(shape, text_limit),
                sentinel: Sentinel::Possible(0),
                done: false,
            },
        }
    }

    /// Takes the next bytes of the body. Pieces may end anywhere; their borders never change what is observed.
    #[inline]
    pub fn feed(&mut self, bytes: &[u8]) {
        match self.format {
            AnswerFormat::Json => self.reader.scanner.feed(bytes, &mut self.reader.answer),
            AnswerFormat::Sse => self.splitter.feed(bytes, &mut self.reader),
            AnswerFormat::Opaque => {}
        }
    }

    /// A guess at the tokens that have come so far, as [`Observed::estimated_output_tokens`].
    pub fn output_tokens_so_far(&self) -> u64 {
        let answer = &self.reader.answer;
        estimate_tokens(answer.delta_events, answer.text_seen, answer.other_seen)
    }

    /// Bytes of text held right now.
    pub fn buffered(&self) -> usize {
        self.reader.answer.held()
    }

    /// Keeps no more text than is held now; the rest is counted.
    pub fn keep_no_more(&mut self) {
        self.reader.answer.keep_no_more();
    }

    /// The body is over, complete or not.
    pub fn finish(mut self) -> Observed {
        match self.format {
            AnswerFormat::Json => {
                self.reader.answer.end_document();
                self.reader.done = self.reader.scanner.is_closed();
            }
            AnswerFormat::Sse => self.splitter.finish(&mut self.reader),
            AnswerFormat::Opaque => {}
        }
        let mut answer = self.reader.answer;
        Observed {
            usage: answer.usage(),
            usage_malformed: answer.usage_malformed,
            model: answer.model(),
            text: answer.take_text(),
            text_truncated: answer.text_truncated,
            text_chars_seen: answer.text_seen,
            other_output_bytes: answer.other_seen,
            delta_events: answer.delta_events,
            done: self.reader.done || answer.ended,
            tool_calls: answer.tool_calls,
            error_event: answer.error,
        }
    }
}

/// What one answer said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// `None` when the answer gave no number that could be read and held no image.
    pub usage: Option<Usage>,
    /// A number of the usage was there and was none; it counts as absent.
    pub usage_malformed: bool,
    /// The model's first mention, at most 128 bytes of it.
    pub model: Option<Box<str>>,
    /// Text of the answer's first choice, at most the limit. Bytes that are not UTF-8 became U+FFFD.
    pub text: String,
    /// There was more text than the limit let in.
    pub text_truncated: bool,
    /// Bytes of the first choice's text, also those beyond the limit.
    pub text_chars_seen: u64,
    /// Bytes of whatever else was generated: other choices, arguments of calls, refusals, reasoning.
    pub other_output_bytes: u64,
    /// Events of a stream that brought text or anything counted in `other_output_bytes`.
    pub delta_events: u64,
    /// The answer came to its own end: `[DONE]`, the last event of a response, or the plain document's last bracket
    /// with nothing but white space after it.
    pub done: bool,
    /// The model asked for a tool.
    pub tool_calls: bool,
    /// The answer, or an event of it, was an error.
    pub error_event: bool,
}

impl Observed {
    /// A guess at the tokens that were generated, for answers whose usage never came: the number of events, or a token
    /// for every four bytes begun, whichever is more.
    pub fn estimated_output_tokens(&self) -> u64 {
        estimate_tokens(self.delta_events, self.text_chars_seen, self.other_output_bytes)
    }
}

fn estimate_tokens(events: u64, text_bytes: u64, other_bytes: u64) -> u64 {
    events.max(text_bytes.saturating_add(other_bytes).div_ceil(4))
}

/// Whether an event's data is exactly `[DONE]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sentinel {
    /// So many bytes of it were seen, and nothing else.
    Possible(u8),
    Impossible,
}

const SENTINEL: &[u8] = b"[DONE]";

/// Reads the documents of an answer; in a stream there is one per event.
#[derive(Debug)]
struct Reader {
    scanner: Scanner<Place>,
    answer: Answer,
    sentinel: Sentinel,
    done: bool,
}

impl Reader {
    fn watch_for_sentinel(&mut self, seen: u8, bytes: &[u8]) {
        let seen = usize::from(seen);
        let expected = SENTINEL.get(seen..).unwrap_or_default();
        let (head, tail) = bytes.split_at_checked(expected.len()).unwrap_or((bytes, &[]));
        let fits = expected.starts_with(head) && tail.iter().all(|&byte| json::is_space(byte));
        self.sentinel = match u8::try_from(seen + head.len()) {
            Ok(seen) if fits => Sentinel::Possible(seen),
            _ => Sentinel::Impossible,
        };
    }
}

impl Events for Reader {
    fn begin(&mut self) {
        self.scanner.restart(Place::Root);
        self.answer.begin_document();
        self.sentinel = Sentinel::Possible(0);
    }

    fn data(&mut self, bytes: &[u8]) {
        if let Sentinel::Possible(seen) = self.sentinel {
            self.watch_for_sentinel(seen, bytes);
        }
        // `[DONE]` breaks the scanner, which is harmless: the next event starts it anew.
        self.scanner.feed(bytes, &mut self.answer);
    }

    fn named_error(&mut self) {
        self.answer.error = true;
    }

    fn end(&mut self) {
        self.answer.end_document();
        self.done |= self.sentinel == Sentinel::Possible(SENTINEL.len() as u8);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const LIMIT: usize = 1 << 16;

    fn observe(format: AnswerFormat, pieces: &[&[u8]], limit: usize) -> Observed {
        let mut scan = AnswerScan::new(format, limit);
        for piece in pieces {
            scan.feed(piece);
            assert!(scan.buffered() <= limit);
        }
        scan.finish()
    }

    fn plain(document: &str) -> Observed {
        every_split(AnswerFormat::Json, document.as_bytes())
    }

    fn stream(body: &str) -> Observed {
        every_split(AnswerFormat::Sse, body.as_bytes())
    }

    /// What is observed, which no border between pieces may change.
    fn every_split(format: AnswerFormat, body: &[u8]) -> Observed {
        let whole = observe(format, &[body], LIMIT);
        for at in 0..=body.len() {
            let (head, tail) = body.split_at(at);
            assert_eq!(observe(format, &[head, tail], LIMIT), whole, "split at {at}");
        }
        let bytes: Vec<&[u8]> = body.chunks(1).collect();
        assert_eq!(observe(format, &bytes, LIMIT), whole, "byte by byte");
        whole
    }

    fn tokens(input: u64, output: u64, cached: u64) -> Option<Usage> {
        Some(Usage { input_tokens: input, output_tokens: output, cached_tokens: cached, images: 0 })
    }

    #[test]
    fn formats_by_content_type() {
        for (value, format) in [
            ("application/json", AnswerFormat::Json),
            ("Application/JSON; charset=utf-8", AnswerFormat::Json),
            ("application/problem+json", AnswerFormat::Json),
            ("application/vnd.api+JSON ;v=1", AnswerFormat::Json),
            (" text/event-stream;charset=utf-8", AnswerFormat::Sse),
            ("TEXT/Event-Stream", AnswerFormat::Sse),
            ("text/plain", AnswerFormat::Opaque),
            ("application/jsonl", AnswerFormat::Opaque),
            ("+json", AnswerFormat::Opaque),
            ("", AnswerFormat::Opaque),
        ] {
            assert_eq!(AnswerFormat::of_content_type(value.as_bytes()), format, "{value}");
        }
    }

    #[test]
    fn a_chat_completion() {
        let seen = plain(
            r#"{
              "id": "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT", "object": "chat.completion", "created": 1741569952,
              "model": "gpt-4.1-2025-04-14",
              "choices": [{"index": 0, "message": {"role": "assistant",
                 "content": "Hello!\n\"Wie geht\u2019s\" \ud83d\ude00 — jó?", "refusal": null, "annotations": []},
                 "logprobs": null, "finish_reason": "stop"}],
              "usage": {"prompt_tokens": 19, "completion_tokens": 10, "total_tokens": 29,
                "prompt_tokens_details": {"cached_tokens": 7, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 0, "cached_tokens": 99}},
              "service_tier": "default"
            }
            "#,
        );
        assert_eq!(seen.usage, tokens(19, 10, 7));
        assert_eq!(seen.model.as_deref(), Some("gpt-4.1-2025-04-14"));
        assert_eq!(seen.text, "Hello!\n\"Wie geht’s\" 😀 — jó?");
        assert_eq!(seen.text_chars_seen, seen.text.len() as u64);
        assert!(seen.done && !seen.tool_calls && !seen.error_event && !seen.usage_malformed && !seen.text_truncated);
        assert_eq!(seen.delta_events, 0);
    }

    #[test]
    fn tool_calls_parts_and_refusals() {
        let seen = plain(
            r#"{"choices":[{"index":0,"message":{"role":"assistant","content":[{"type":"text","text":"a"},
            {"type":"image_url","image_url":{"text":"no"}},{"text":"b"}],"refusal":"xyz","tool_calls":[{"id":"c",
            "type":"function","function":{"name":"f","arguments":"{\"a\":1}"}}]}}]}"#,
        );
        assert_eq!((seen.text.as_str(), seen.tool_calls, seen.usage), ("ab", true, None));
        assert_eq!(seen.other_output_bytes, 3 + 7);
        assert_eq!(seen.estimated_output_tokens(), 3);
        assert!(!plain(r#"{"choices":[{"message":{"content":"a","tool_calls":[]}}]}"#).tool_calls);
        assert!(plain(r#"{"choices":[{"message":{"content":null,"function_call":{"name":"f"}}}]}"#).tool_calls);
    }

    #[test]
    fn only_the_first_choice_is_text() {
        for body in [
            r#"{"choices":[{"index":0,"text":"one"},{"index":1,"text":"second"}]}"#,
            r#"{"choices":[{"text":"second","index":1},{"text":"one","index":0}]}"#,
            r#"{"choices":[{"text":"one"},{"text":"second"}]}"#,
            r#"{"choices":[{"message":{"content":"one"},"index":0},{"message":{"content":"second"},"index":7}]}"#,
        ] {
            let seen = plain(body);
            assert_eq!((seen.text.as_str(), seen.text_chars_seen, seen.other_output_bytes), ("one", 3, 6), "{body}");
        }
    }

    #[test]
    fn a_response() {
        let seen = plain(
            r#"{"id":"resp_1","object":"response","status":"completed","error":null,"model":"gpt-4.1",
            "output":[{"id":"rs_1","type":"reasoning","summary":[],"content":[{"type":"reasoning_text","text":"hm"}]},
            {"type":"message","id":"msg_1","role":"assistant","content":[{"type":"output_text","text":"In a","annotations":[]},
            {"type":"output_text","text":" grove"}]},{"type":"function_call","name":"f","arguments":"{}"}],
            "text":{"format":{"type":"text"}},"usage":{"input_tokens":36,"input_tokens_details":{"cached_tokens":3},
            "output_tokens":87,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":123}}"#,
        );
        assert_eq!(seen.usage, tokens(36, 87, 3));
        assert_eq!((seen.text.as_str(), seen.tool_calls, seen.error_event), ("In a grove", true, false));
        assert_eq!(seen.other_output_bytes, 4);
    }

    #[test]
    fn embeddings_and_images() {
        let seen = plain(
            r#"{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.0023,-9.3e-2,[]]}],
            "model":"text-embedding-3-small","usage":{"prompt_tokens":8,"total_tokens":8}}"#,
        );
        assert_eq!((seen.usage, seen.text.as_str()), (tokens(8, 0, 0), ""));
        let seen = plain(
            r#"{"created":1,"data":[{"b64_json":"aGk=","url":"http://x"},{"url":"https:\/\/x\/y"},{"url":null},{}],
            "usage":{"total_tokens":100,"input_tokens":50,"output_tokens":50,"input_tokens_details":{"text_tokens":10}}}"#,
        );
        assert_eq!(seen.usage, Some(Usage { input_tokens: 50, output_tokens: 50, cached_tokens: 0, images: 2 }));
        assert_eq!(plain(r#"{"data":[{"url":"x"}]}"#).usage, Some(Usage { images: 1, ..Usage::default() }));
    }

    const CHAT_STREAM: &str = "\u{feff}: hello\nid: 7\nretry\n\
        data: {\"id\":\"c\",\"model\":\"m-1\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}],\"usage\":null}\n\n\
        data:{\"id\":\"c\",\"model\":\"m-2\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hel\\ud83d\"}}]}\r\n\r\n\
        data: {\"choices\":[{\"index\":0,\ndata: \"delta\":{\"content\":\"lo\"}}],\rdata:\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1}}\r\r\
        data: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"other\"}}]}\n\n\
        data: {\"choices\":[],\"usage\":{\"completion_tokens\":12,\"total_tokens\":21,\"prompt_tokens_details\":null}}\n\n\
        data: [DONE]\n\n";

    #[test]
    fn a_chat_stream() {
        let seen = stream(CHAT_STREAM);
        assert_eq!(seen.text, "Hel\u{fffd}lo");
        assert_eq!(seen.usage, tokens(1, 12, 0));
        assert_eq!(seen.model.as_deref(), Some("m-1"));
        assert_eq!((seen.delta_events, seen.other_output_bytes), (3, 5));
        assert!(seen.done && !seen.error_event && !seen.usage_malformed);
        for cut in 0..CHAT_STREAM.len() {
            let part = CHAT_STREAM.as_bytes().get(..cut).unwrap();
            assert!(observe(AnswerFormat::Sse, &[part], LIMIT).delta_events <= 3);
        }
    }

    #[test]
    fn a_stream_that_ends_early() {
        let seen = stream(
            "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"abc\"}}]}\n\ndata: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"defg",
        );
        assert_eq!((seen.text.as_str(), seen.delta_events, seen.done, seen.usage), ("abcdefg", 2, false, None));
        assert_eq!(seen.estimated_output_tokens(), 2);
        assert!(stream("data: [DONE]").done);
        assert!(stream("data:[DONE]\n").done);
        assert!(!stream("data: [DONE]x\n\n").done);
        assert!(!stream("data: [DON\n\n").done);
        assert!(!stream("event: [DONE]\n\n").done);
    }

    #[test]
    fn a_response_stream() {
        let seen = stream(
            "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"model\":\"gpt-4.1\",\"error\":null,\"usage\":null,\"output\":[]}}\n\n\
             event: response.output_item.added\ndata: {\"type\":\"response.output_item.added\",\"item\":{\"type\":\"function_call\"}}\n\n\
             event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"In\"}\n\n\
             data: {\"delta\":\" a\",\"type\":\"response.output_text.delta\"}\n\n\
             data: {\"delta\":\"{}\",\"type\":\"response.function_call_arguments.delta\"}\n\n\
             data: {\"type\":\"response.reasoning_summary_text.delta\",\"delta\":\"abc\"}\n\n\
             data: {\"delta\":\"QUJD\",\"type\":\"response.audio.delta\"}\n\n\
             data: {\"delta\":\"lost\"}\n\n\
             data: {\"type\":\"response.completed\",\"response\":{\"output\":[{\"type\":\"message\",\"content\":[{\"type\":\"output_text\",\"text\":\"In a\"}]}],\"usage\":{\"input_tokens\":5,\"output_tokens\":6,\"input_tokens_details\":{\"cached_tokens\":4}}}}\n\n",
        );
        assert_eq!((seen.text.as_str(), seen.usage), ("In a", tokens(5, 6, 4)));
        assert_eq!((seen.delta_events, seen.other_output_bytes), (4, 5));
        assert!(seen.done && seen.tool_calls && !seen.error_event);
    }

    #[test]
    fn errors_are_noticed() {
        assert!(stream("data: {\"error\":{\"message\":\"overloaded\"}}\n\n").error_event);
        assert!(stream("data: {\"error\":\"overloaded\"}\n\n").error_event);
        assert!(stream("event: error\ndata: {}\n\n").error_event);
        assert!(stream("data: {\"type\":\"error\",\"code\":\"x\"}\n\n").error_event);
        assert!(
            stream("data: {\"type\":\"response.failed\",\"response\":{\"error\":{\"code\":\"x\"}}}\n\n").error_event
        );
        assert!(plain("{\"error\":{\"message\":\"no\"}}").error_event);
        assert!(!stream("event: errors\ndata: {\"error\":null}\n\ndata: {\"a\":{\"error\":1}}\n\n").error_event);
    }

    #[test]
    fn numbers_of_every_kind() {
        let count =
            |number: &str| plain(&format!("{{\"usage\":{{\"prompt_tokens\":{number},\"completion_tokens\":3}}}}"));
        for (number, value) in [
            ("0", 0),
            ("-0", 0),
            ("-0.0e5", 0),
            ("1.0", 1),
            ("1.2", 2),
            ("0.00001", 1),
            ("1e3", 1000),
            ("1E+3", 1000),
            ("12345e-2", 124),
            ("12300e-2", 123),
            ("1e-999999999999", 1),
            ("1e999999999999", u64::MAX),
            ("0e999999999999", 0),
            ("18446744073709551615", u64::MAX),
            ("18446744073709551614", u64::MAX - 1),
            ("18446744073709551616", u64::MAX),
            ("184467440737095516150000000000e-10", u64::MAX),
            ("99999999999999999999999e-10", 10_000_000_000_000),
            ("10000000000000000000000000001e-21", 10_000_001),
            ("1.00000000000000000000000000000000001", 2),
        ] {
            let seen = count(number);
            assert_eq!(seen.usage, tokens(value, 3, 0), "{number}");
            assert!(!seen.usage_malformed, "{number}");
        }
        for wrong in ["-1", "-0.5", "\"12\"", "null", "true", "false", "{}", "[1]", "{\"prompt_tokens\":4}", "-1e999"] {
            let seen = count(wrong);
            assert_eq!(seen.usage, tokens(0, 3, 0), "{wrong}");
            assert!(seen.usage_malformed, "{wrong}");
        }
        for broken in ["NaN", "Infinity", "-Infinity", "01", "1.", ".5", "1e", "+1", "0x10", "--1", "1.2.3", "nul", ""]
        {
            let seen = count(broken);
            assert!(seen.usage.is_none() && seen.usage_malformed && !seen.done, "{broken}");
        }
    }

    #[test]
    fn usage_of_the_wrong_kind() {
        for wrong in [
            "5",
            "\"x\"",
            "[]",
            "[{\"prompt_tokens\":1}]",
            "true",
            "{\"prompt_tokens_details\":7}",
            "{\"total_tokens\":-1}",
        ] {
            let seen = plain(&format!("{{\"usage\":{wrong}}}"));
            assert!(seen.usage.is_none() && seen.usage_malformed, "{wrong}");
        }
        for absent in ["null", "{}", "{\"total_tokens\":5}", "{\"prompt_tokens_details\":null}"] {
            let seen = plain(&format!("{{\"usage\":{absent}}}"));
            assert!(seen.usage.is_none() && !seen.usage_malformed, "{absent}");
        }
        // A value that is none does not erase one that was there.
        let seen = stream("data: {\"usage\":{\"prompt_tokens\":4}}\n\ndata: {\"usage\":{\"prompt_tokens\":-4}}\n\n");
        assert_eq!((seen.usage, seen.usage_malformed), (tokens(4, 0, 0), true));
    }

    #[test]
    fn keys_and_models_with_escapes() {
        let seen = plain(
            r#"{"mod\u0065l":"gpt\u002d4","us\u0061ge":{"pr\u006fmpt_tokens":2},"\ud800usage":{"prompt_tokens":9}}"#,
        );
        assert_eq!((seen.model.as_deref(), seen.usage), (Some("gpt-4"), tokens(2, 0, 0)));
        let long = "ä".repeat(200);
        let seen = plain(&format!("{{\"model\":\"x{long}\"}}"));
        assert_eq!(seen.model.as_deref().map(str::len), Some(127));
        assert_eq!(plain("{\"model\":\"\"}").model, None);
        assert_eq!(plain("{\"model\":4}").model, None);
        assert_eq!(plain("{\"model\":\"cut").model, None);
    }

    #[test]
    fn text_is_bounded() {
        let body = r#"{"choices":[{"message":{"content":"aä😀\u00e4b"}}]}"#;
        for limit in 0..12 {
            let seen = observe(AnswerFormat::Json, &[body.as_bytes()], limit);
            let full = "aä😀äb";
            assert_eq!(seen.text, full.get(..full.floor_char_boundary(limit)).unwrap());
            assert_eq!(seen.text_truncated, limit < full.len());
            assert_eq!(seen.text_chars_seen, full.len() as u64);
        }
        let seen = observe(AnswerFormat::Json, &[b"{\"choices\":[{\"text\":\"\xff\xff\xff\"}]}"], 4);
        assert_eq!((seen.text.as_str(), seen.text_truncated), ("\u{fffd}", true));
    }

    #[test]
    fn surrogates_that_miss_their_half() {
        for (escaped, text) in [
            (r"\ud800", "\u{fffd}"),
            (r"\udc00", "\u{fffd}"),
            (r"\ud800x", "\u{fffd}x"),
            (r"\ud800\n", "\u{fffd}\n"),
            (r"\ud800\u0041", "\u{fffd}A"),
            (r"\ud800\ud83d\ude00", "\u{fffd}😀"),
            (r"\udc00\ud800", "\u{fffd}\u{fffd}"),
            (r#"\"\\\/\b\f\r\t\u0000"#, "\"\\/\u{8}\u{c}\r\t\0"),
        ] {
            assert_eq!(plain(&format!("{{\"choices\":[{{\"text\":\"{escaped}\"}}]}}")).text, text, "{escaped}");
        }
    }

    #[test]
    fn hostile_documents() {
        for deep in ["[", "{\"a\":", "{\"choices\":[", "{\"usage\":{\"prompt_tokens_details\":"] {
            let body = deep.repeat(100_000);
            assert!(!observe(AnswerFormat::Json, &[body.as_bytes()], LIMIT).done);
        }
        let body = format!("{{\"a\":{}1{},\"usage\":{{\"prompt_tokens\":5}}}}", "[".repeat(127), "]".repeat(127));
        assert_eq!(observe(AnswerFormat::Json, &[body.as_bytes()], LIMIT).usage, tokens(5, 0, 0));
        let body = format!("{{\"a\":{}1{}}}", "[".repeat(128), "]".repeat(128));
        assert!(!observe(AnswerFormat::Json, &[body.as_bytes()], LIMIT).done);
        let body = format!("{{\"usage\":{{\"prompt_tokens\":{}}}}}", "9".repeat(1_000_000));
        assert_eq!(observe(AnswerFormat::Json, &[body.as_bytes()], LIMIT).usage, tokens(u64::MAX, 0, 0));
        for broken in [
            "",
            " ",
            "{",
            "{\"",
            "{\"a",
            "{\"a\"",
            "{\"a\":",
            "{\"a\":1",
            "{\"a\":1,",
            "{\"a\":1,}",
            "{,}",
            "{\"a\" 1}",
            "[1,]",
            "[,1]",
            "{\"choices\":[1,]}",
            "{\"choices\":[1 2]}",
            "{\"choices\":[}",
            "{\"model\":\"\\x\"}",
            "{\"model\":\"\\u12g4\"}",
            "{\"mod\\q\":1}",
            "{}x",
            "{}{}",
            "tru",
            "truf",
            "]",
            "}",
            "{\"a\":[}",
            "{\"a\":{]}",
            "{]",
            "\"\\",
            "{\"usage\"}",
        ] {
            assert!(!plain(broken).done, "{broken}");
            let event = format!("data: {broken}\n\ndata: {{\"usage\":{{\"prompt_tokens\":1}}}}\n\n");
            assert_eq!(stream(&event).usage, tokens(1, 0, 0), "{broken}");
        }
        let nothing = observe(AnswerFormat::Opaque, &[b"{\"model\":\"x\"}"], LIMIT);
        assert_eq!(nothing, Observed::default());
    }

    #[test]
    fn it_is_small() {
        assert!(size_of::<AnswerScan>() <= 600, "{}", size_of::<AnswerScan>());
    }

    /// What a document tree would say, for documents whose usage numbers are whole.
    fn naive(document: &Value) -> (Option<Usage>, String, Option<String>) {
        let usage = &document["usage"];
        let field = |chat: &str, response: &str| usage[chat].as_u64().or_else(|| usage[response].as_u64());
        let input = field("prompt_tokens", "input_tokens");
        let output = field("completion_tokens", "output_tokens");
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64();
        let known = input.or(output).or(cached).is_some();
        let usage = known.then(|| Usage {
            input_tokens: input.unwrap_or(0),
            output_tokens: output.unwrap_or(0),
            cached_tokens: cached.unwrap_or(0),
            images: 0,
        });
        let first = document["choices"].as_array().and_then(|choices| {
            let mut numbered = choices.iter().enumerate();
            numbered.find(|(position, choice)| choice["index"].as_u64().unwrap_or(*position as u64) == 0)
        });
        let content = first.map(|(_, choice)| &choice["message"]["content"]);
        let text = match content {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(parts)) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
            _ => String::new(),
        };
        let model = document["model"].as_str().filter(|model| !model.is_empty()).map(str::to_owned);
        (usage, text, model)
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        let key = prop_oneof![
            any::<String>(),
            Just("usage".to_owned()),
            Just("content".to_owned()),
            Just("text".to_owned()),
            Just("model".to_owned()),
        ];
        leaf.prop_recursive(5, 40, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::hash_map(key.clone(), inner, 0..5)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    fn content() -> impl Strategy<Value = Value> {
        prop_oneof![
            any::<String>().prop_map(Value::from),
            Just(Value::Null),
            prop::collection::vec(any::<String>(), 0..3)
                .prop_map(|parts| parts.into_iter().map(|text| json!({"text": text, "type": "text"})).collect()),
        ]
    }

    prop_compose! {
        fn answer()(
            model in any::<String>(),
            // The first element is the first choice and says so in one of several ways, or not at all.
            indexed in any::<bool>(),
            contents in prop::collection::vec(content(), 0..4),
            noise in prop::collection::vec((any::<String>(), any_json()), 0..4),
            input in any::<Option<u64>>(),
            output in any::<Option<u64>>(),
            cached in any::<Option<u64>>(),
        ) -> Value {
            let mut usage = json!({"total_tokens": 7, "other": {"prompt_tokens": 1}});
            if let Some(input) = input { usage["prompt_tokens"] = json!(input); }
            if let Some(output) = output { usage["output_tokens"] = json!(output); }
            if let Some(cached) = cached { usage["prompt_tokens_details"] = json!({"cached_tokens": cached}); }
            let choices: Vec<Value> = contents.into_iter().enumerate().map(|(index, content)| {
                let mut choice = json!({"message": {"content": content, "role": "assistant"}, "logprobs": {"content": [1]}});
                if indexed { choice["index"] = json!(index); }
                choice
            }).collect();
            let mut document = json!({"usage": usage, "choices": choices});
            if model.len() <= 128 { document["model"] = json!(model); }
            let known = ["usage", "choices", "model", "output", "data", "error"];
            for (key, value) in noise.into_iter().filter(|(key, _)| !known.contains(&key.as_str())) {
                document[key] = value;
            }
            document
        }
    }

    fn pieces<'a>(body: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
        at.sort_unstable();
        at.push(body.len());
        let mut start = 0;
        let cut = |end| {
            let piece = body.get(start..end).unwrap_or_default();
            start = end;
            piece
        };
        at.into_iter().map(cut).collect()
    }

    proptest! {
        #[test]
        fn agrees_with_a_document_tree(
            document in answer(),
            pretty in any::<bool>(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let body = if pretty { serde_json::to_string_pretty(&document) } else { serde_json::to_string(&document) }.unwrap();
            let seen = observe(AnswerFormat::Json, &pieces(body.as_bytes(), &cuts), 1 << 20);
            let (usage, text, model) = naive(&document);
            prop_assert!(seen.done);
            prop_assert_eq!(seen.usage, usage);
            prop_assert_eq!(seen.text, text);
            prop_assert_eq!(seen.model.map(String::from), model);
        }

        #[test]
        fn any_json_is_read_to_its_end(
            document in any_json(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let body = document.to_string();
            let whole = observe(AnswerFormat::Json, &[body.as_bytes()], LIMIT);
            let number = document.is_number();
            prop_assert!(whole.done || number, "{}", body);
            prop_assert_eq!(observe(AnswerFormat::Json, &pieces(body.as_bytes(), &cuts), LIMIT), whole);
        }

        #[test]
        fn damage_never_panics_and_borders_never_matter(
            document in answer(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
            limit in 0_usize..64,
        ) {
            let mut body = format!("event: x\r\ndata: {document}\n\n").into_bytes();
            for (at, byte) in damage {
                let at = at.index(body.len());
                body[at] = byte;
            }
            for format in [AnswerFormat::Sse, AnswerFormat::Json] {
                let body = if format == AnswerFormat::Json { &body[16..] } else { &body[..] };
                let whole = observe(format, &[body], limit);
                prop_assert!(whole.text.len() <= limit);
                prop_assert_eq!(observe(format, &pieces(body, &cuts), limit), whole);
            }
        }

        #[test]
        fn noise_never_panics(body in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(b"{}[]\",:\\u0e.-\n\rdata ".to_vec())], 0..200), limit in 0_usize..8) {
            for format in [AnswerFormat::Sse, AnswerFormat::Json] {
                observe(format, &[&body], limit);
            }
        }
    }
}
