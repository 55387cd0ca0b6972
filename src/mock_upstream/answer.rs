//! What each endpoint says, in the shapes the official OpenAI clients read.
//!
//! Owns the bodies. It never touches a socket and never decides how a body is framed. The same request always gets
//! the same answer, but for the ids: a fixed creation time stands in for the clock.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::Write;

use serde_json::{Value, json};

use super::head::{Endpoint, Head, Usage};
use super::peek;
use super::tally::Tally;

const CREATED: u64 = 1_700_000_000;
const DEFAULT_MODEL: &str = "gpt-4o-mini";
const MODELS: [&str; 4] = [DEFAULT_MODEL, "gpt-4o", "text-embedding-3-small", "gpt-image-1"];

const DEFAULT_TOKENS: u64 = 12;
/// More are not said: a streamed answer is made whole before it is sent.
const MAX_TOKENS: u64 = 100_000;
/// A word of the user's message is repeated up to this many bytes.
const MAX_WORD: usize = 64;
const FILLER_WORDS: [&str; 8] = ["and", "so", "the", "simulated", "service", "answers", "with", "words"];

const DEFAULT_DIMENSIONS: u64 = 8;
const MAX_DIMENSIONS: u64 = 4_096;
const MAX_IMAGES: u64 = 10;
/// A transparent PNG of one pixel.
const PIXEL: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream; charset=utf-8";
const BYTES: &str = "application/octet-stream";

/// The opaque bytes that `x-mock-body-bytes` answers with: a period of 64, so that a reader can check the order.
const FILLER: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The byte at `position` of an answer to `x-mock-body-bytes`.
pub fn filler_byte(position: u64) -> u8 {
    FILLER[(position % 64) as usize]
}

/// An answer before it is framed. One value serves a whole connection, so that its buffers are allocated once.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) content_type: &'static str,
    pub(super) body: Vec<u8>,
    /// Where each event of a stream ends in `body`; empty for a plain answer.
    pub(super) ends: Vec<usize>,
    /// Opaque bytes that follow `body`.
    pub(super) filler: u64,
}

/// A request as far as answers are concerned.
pub(super) struct Request<'a> {
    pub(super) head: &'a Head,
    pub(super) head_bytes: &'a [u8],
    pub(super) body: &'a [u8],
}

impl Answer {
    /// Fills the answer to this request.
    pub(super) fn compose(&mut self, request: &Request<'_>, tally: &Tally) {
        self.reset(request.head.steer.status.unwrap_or(200));
        if let Some(bytes) = request.head.steer.body_bytes {
            self.opaque(bytes);
        } else if self.status >= 400 {
            self.error();
        } else {
            self.endpoint(request, tally);
        }
    }

    fn reset(&mut self, status: u16) {
        self.status = status;
        self.content_type = JSON;
        self.body.clear();
        self.ends.clear();
        self.filler = 0;
    }

    fn endpoint(&mut self, request: &Request<'_>, tally: &Tally) {
        match request.head.endpoint {
            Endpoint::Chat => self.generate(&CHAT, request, tally),
            Endpoint::Completions => self.generate(&COMPLETIONS, request, tally),
            Endpoint::Responses => self.responses(request, tally),
            Endpoint::Embeddings => self.embeddings(request),
            Endpoint::Images => self.images(request, tally),
            Endpoint::Models => self.json(&models()),
            Endpoint::Model => self.json(&model(request)),
            Endpoint::Stats => self.json(&stats(request, tally)),
            Endpoint::Echo => self.json(&echo(request)),
        }
    }

    fn opaque(&mut self, bytes: u64) {
        self.content_type = BYTES;
        self.filler = bytes;
    }

    fn error(&mut self) {
        let kind = match self.status {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        let message = format!("The simulated service was asked to answer {}", self.status);
        self.json(&json!({"error": {"message": message, "type": kind, "param": null, "code": "mock_error"}}));
    }

    fn json(&mut self, value: &Value) {
        push_json(&mut self.body, value);
    }

    /// Ends an event: a write of its own, when the caller wants time between events.
    fn end_event(&mut self) {
        self.body.extend_from_slice(b"\n\n");
        self.ends.push(self.body.len());
    }
}

// ---- chat and plain completions ------------------------------------------------------------------------------------

/// What differs between the two older text endpoints.
struct Dialect {
    id: &'static str,
    object: &'static str,
    chunk_object: &'static str,
    /// Around the text of a plain answer.
    text: (&'static str, &'static str),
    /// Around a piece of a stream.
    piece: (&'static str, &'static str),
    /// The stream's first choice, when it has one without text.
    opening: Option<&'static str>,
    /// Around the reason in the stream's last choice.
    closing: (&'static str, &'static str),
}

const CHAT: Dialect = Dialect {
    id: "chatcmpl",
    object: "chat.completion",
    chunk_object: "chat.completion.chunk",
    text: (r#"{"index":0,"message":{"role":"assistant","content":""#, r#""},"logprobs":null,"finish_reason":""#),
    piece: (r#"{"index":0,"delta":{"content":""#, r#""},"logprobs":null,"finish_reason":null}"#),
    opening: Some(r#"{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}"#),
    closing: (r#"{"index":0,"delta":{},"logprobs":null,"finish_reason":""#, r#""}"#),
};

const COMPLETIONS: Dialect = Dialect {
    id: "cmpl",
    object: "text_completion",
    chunk_object: "text_completion",
    text: (r#"{"index":0,"text":""#, r#"","logprobs":null,"finish_reason":""#),
    piece: (r#"{"index":0,"text":""#, r#"","logprobs":null,"finish_reason":null}"#),
    opening: None,
    closing: (r#"{"index":0,"text":"","logprobs":null,"finish_reason":""#, r#""}"#),
};

impl Answer {
    fn generate(&mut self, dialect: &Dialect, request: &Request<'_>, tally: &Tally) {
        let prompt = Prompt::read(request.body);
        let said = Said::plan(&prompt, request);
        let id = tally.next_answer();
        if prompt.stream {
            self.generate_stream(dialect, &prompt, &said, id);
        } else {
            self.generate_plain(dialect, &prompt, &said, id);
        }
    }

    fn generate_plain(&mut self, dialect: &Dialect, prompt: &Prompt<'_>, said: &Said<'_>, id: u64) {
        self.begin_object(dialect.id, dialect.object, &prompt.model, id);
        self.push(dialect.text.0);
        for piece in said.pieces(prompt) {
            piece.push(&mut self.body);
        }
        self.push(dialect.text.1);
        self.push(said.finish_reason);
        self.push("\"}]");
        if *said.usage != Usage::Omitted {
            self.push(",\"usage\":");
            said.push_usage(&mut self.body, &COMPLETION_COUNTS);
        }
        self.push("}");
    }

    fn generate_stream(&mut self, dialect: &Dialect, prompt: &Prompt<'_>, said: &Said<'_>, id: u64) {
        self.content_type = EVENTS;
        if let Some(opening) = dialect.opening {
            self.chunk(dialect, prompt, id, |body| body.extend_from_slice(opening.as_bytes()));
        }
        for piece in said.pieces(prompt) {
            self.chunk(dialect, prompt, id, |body| {
                body.extend_from_slice(dialect.piece.0.as_bytes());
                piece.push(body);
                body.extend_from_slice(dialect.piece.1.as_bytes());
            });
        }
        self.chunk(dialect, prompt, id, |body| {
            for part in [dialect.closing.0, said.finish_reason, dialect.closing.1] {
                body.extend_from_slice(part.as_bytes());
            }
        });
        if prompt.include_usage && *said.usage != Usage::Omitted {
            self.usage_chunk(dialect, prompt, said, id);
        }
        self.push("data: [DONE]");
        self.end_event();
    }

    /// One event whose only choice `choice` writes.
    fn chunk(&mut self, dialect: &Dialect, prompt: &Prompt<'_>, id: u64, choice: impl FnOnce(&mut Vec<u8>)) {
        self.push("data: ");
        self.begin_object(dialect.id, dialect.chunk_object, &prompt.model, id);
        choice(&mut self.body);
        self.push(if prompt.include_usage { "],\"usage\":null}" } else { "]}" });
        self.end_event();
    }

    fn usage_chunk(&mut self, dialect: &Dialect, prompt: &Prompt<'_>, said: &Said<'_>, id: u64) {
        self.push("data: ");
        self.begin_object(dialect.id, dialect.chunk_object, &prompt.model, id);
        self.push("],\"usage\":");
        said.push_usage(&mut self.body, &COMPLETION_COUNTS);
        self.push("}");
        self.end_event();
    }

    fn begin_object(&mut self, id_prefix: &str, object: &str, model: &str, id: u64) {
        self.push("{\"id\":\"");
        self.push(id_prefix);
        push_display(&mut self.body, format_args!("-mock{id:012}"));
        self.push("\",\"object\":\"");
        self.push(object);
        self.push("\",\"created\":");
        push_display(&mut self.body, CREATED);
        self.push(",\"model\":\"");
        push_escaped(&mut self.body, model);
        self.push("\",\"choices\":[");
    }

    fn push(&mut self, text: &str) {
        self.body.extend_from_slice(text.as_bytes());
    }
}

/// What a request for text asks, as far as it shows in the answer.
#[derive(Default)]
struct Prompt<'a> {
    model: Cow<'a, str>,
    message: Cow<'a, str>,
    /// Bytes of all that was said to the model; the prompt tokens are guessed from it.
    bytes: usize,
    stream: bool,
    include_usage: bool,
    max_tokens: Option<u64>,
}

impl<'a> Prompt<'a> {
    fn read(body: &'a [u8]) -> Self {
        let mut prompt = Self { model: Cow::Borrowed(DEFAULT_MODEL), ..Self::default() };
        for (key, value) in peek::fields(body) {
            match key {
                b"model" => prompt.model = peek::text(value).unwrap_or(Cow::Borrowed(DEFAULT_MODEL)),
                b"messages" => prompt.read_messages(value),
                b"prompt" | b"input" => prompt.read_input(value),
                b"stream" => prompt.stream = value == b"true",
                b"stream_options" => prompt.include_usage = asks_for_usage(value),
                b"max_tokens" | b"max_completion_tokens" | b"max_output_tokens" => {
                    prompt.max_tokens = peek::number(value);
                }
                _ => {}
            }
        }
        prompt
    }

    fn read_messages(&mut self, messages: &'a [u8]) {
        for message in peek::items(messages) {
            let mut is_user = false;
            let mut content: &[u8] = b"";
            for (key, value) in peek::fields(message) {
                match key {
                    b"role" => is_user = value == b"\"user\"",
                    b"content" => content = value,
                    _ => {}
                }
            }
            self.bytes += content.len();
            if is_user {
                self.message = content_text(content);
            }
        }
    }

    /// A prompt is a text, a list of texts, or (for responses) a list of messages.
    fn read_input(&mut self, input: &'a [u8]) {
        match input.first() {
            Some(b'[') if peek::items(input).any(|item| item.starts_with(b"{")) => self.read_messages(input),
            Some(b'[') => {
                self.bytes += input.len();
                self.message = peek::items(input).filter_map(peek::text).last().unwrap_or_default();
            }
            _ => {
                self.bytes += input.len();
                self.message = peek::text(input).unwrap_or_default();
            }
        }
    }

    fn prompt_tokens(&self) -> u64 {
        (self.bytes as u64 / 4).max(1)
    }
}

fn asks_for_usage(stream_options: &[u8]) -> bool {
    peek::fields(stream_options).any(|(key, value)| key == b"include_usage" && value == b"true")
}

/// A message's content: a text, or parts of which the first text counts.
fn content_text(content: &[u8]) -> Cow<'_, str> {
    if let Some(text) = peek::text(content) {
        return text;
    }
    let mut texts = peek::items(content).flat_map(peek::fields).filter(|(key, _)| *key == b"text");
    texts.find_map(|(_, value)| peek::text(value)).unwrap_or_default()
}

/// The names under which an endpoint counts tokens.
struct CountNames {
    prompt: &'static str,
    completion: &'static str,
}

const COMPLETION_COUNTS: CountNames = CountNames { prompt: "prompt_tokens", completion: "completion_tokens" };
const RESPONSE_COUNTS: CountNames = CountNames { prompt: "input_tokens", completion: "output_tokens" };

/// How much is said, why it ends, and what is reported of it.
struct Said<'a> {
    tokens: u64,
    finish_reason: &'static str,
    prompt_tokens: u64,
    usage: &'a Usage,
}

impl<'a> Said<'a> {
    /// A steered number of tokens wins over the caller's own limit, so that tests can have an answer that is too long.
    fn plan(prompt: &Prompt<'_>, request: &Request<'a>) -> Self {
        let limit = prompt.max_tokens.unwrap_or(u64::MAX);
        let tokens = request.head.steer.tokens.unwrap_or(DEFAULT_TOKENS.min(limit)).min(MAX_TOKENS);
        let cut_off = request.head.steer.tokens.is_none() && limit < DEFAULT_TOKENS;
        Self {
            tokens,
            finish_reason: if cut_off { "length" } else { "stop" },
            prompt_tokens: prompt.prompt_tokens(),
            usage: &request.head.steer.usage,
        }
    }

    /// The words of the answer, one token each.
    fn pieces<'p>(&self, prompt: &'p Prompt<'_>) -> impl Iterator<Item = Piece<'p>> + use<'p> {
        let words = prompt.message.split_whitespace().map(clip);
        let words = ["You", "said:"].into_iter().chain(words).chain(FILLER_WORDS.into_iter().cycle());
        words.take(self.tokens as usize).enumerate().map(|(index, word)| Piece { first: index == 0, word })
    }

    fn text(&self, prompt: &Prompt<'_>) -> String {
        let words: Vec<_> = self.pieces(prompt).map(|piece| piece.word).collect();
        words.join(" ")
    }

    fn push_usage(&self, out: &mut Vec<u8>, names: &CountNames) {
        if let Usage::Literal(literal) = self.usage {
            out.extend_from_slice(literal);
            return;
        }
        let (prompt, completion) = (self.prompt_tokens, self.tokens);
        let (prompt_name, completion_name) = (names.prompt, names.completion);
        let total = prompt + completion;
        push_display(
            out,
            format_args!("{{\"{prompt_name}\":{prompt},\"{completion_name}\":{completion},\"total_tokens\":{total}}}"),
        );
    }
}

struct Piece<'a> {
    first: bool,
    word: &'a str,
}

impl Piece<'_> {
    fn push(&self, out: &mut Vec<u8>) {
        if !self.first {
            out.push(b' ');
        }
        push_escaped(out, self.word);
    }

    fn text(&self) -> String {
        format!("{}{}", if self.first { "" } else { " " }, self.word)
    }
}

fn clip(word: &str) -> &str {
    let end = word.char_indices().map(|(at, _)| at).find(|at| *at >= MAX_WORD);
    end.and_then(|end| word.get(..end)).unwrap_or(word)
}

// ---- responses -----------------------------------------------------------------------------------------------------

impl Answer {
    fn responses(&mut self, request: &Request<'_>, tally: &Tally) {
        let prompt = Prompt::read(request.body);
        let said = Said::plan(&prompt, request);
        let id = tally.next_answer();
        if prompt.stream {
            self.response_stream(&prompt, &said, id);
        } else {
            let response = response(&prompt, id, "completed", vec![output_item(&said.text(&prompt), id)]);
            self.push_with_usage(&response, &said);
        }
    }

    fn response_stream(&mut self, prompt: &Prompt<'_>, said: &Said<'_>, id: u64) {
        self.content_type = EVENTS;
        let text = said.text(prompt);
        let mut number = 0..;
        let started = response(prompt, id, "in_progress", Vec::new());
        let at = json!({"item_id": format!("msg_mock{id:012}"), "output_index": 0, "content_index": 0});
        self.event("response.created", &mut number, &json!({}), json!({"response": started}));
        let opened = json!({"output_index": 0, "item": {"id": at["item_id"], "type": "message",
            "status": "in_progress", "role": "assistant", "content": []}});
        self.event("response.output_item.added", &mut number, &json!({}), opened);
        self.event("response.content_part.added", &mut number, &at, json!({"part": output_text("")}));
        for piece in said.pieces(prompt) {
            self.event("response.output_text.delta", &mut number, &at, json!({"delta": piece.text(), "logprobs": []}));
        }
        self.event("response.output_text.done", &mut number, &at, json!({"text": text, "logprobs": []}));
        self.event("response.content_part.done", &mut number, &at, json!({"part": output_text(&text)}));
        let item = output_item(&text, id);
        let closed = json!({"output_index": 0, "item": item});
        self.event("response.output_item.done", &mut number, &json!({}), closed);
        self.completed_event(&mut number, &response(prompt, id, "completed", vec![item]), said);
    }

    fn event(&mut self, name: &str, number: &mut impl Iterator<Item = u64>, at: &Value, mut data: Value) {
        if let (Some(data), Some(at)) = (data.as_object_mut(), at.as_object()) {
            data.extend(at.clone());
            data.insert("type".to_owned(), json!(name));
            data.insert("sequence_number".to_owned(), json!(number.next()));
        }
        self.begin_event(name);
        self.json(&data);
        self.end_event();
    }

    /// Written by hand, because its usage may be a literal that is not even JSON.
    fn completed_event(&mut self, number: &mut impl Iterator<Item = u64>, response: &Value, said: &Said<'_>) {
        self.begin_event("response.completed");
        self.push("{\"type\":\"response.completed\",\"sequence_number\":");
        push_display(&mut self.body, number.next().unwrap_or(0));
        self.push(",\"response\":");
        self.push_with_usage(response, said);
        self.push("}");
        self.end_event();
    }

    fn begin_event(&mut self, name: &str) {
        for part in ["event: ", name, "\ndata: "] {
            self.push(part);
        }
    }

    fn push_with_usage(&mut self, object: &Value, said: &Said<'_>) {
        self.json(object);
        if *said.usage == Usage::Omitted {
            return;
        }
        self.body.pop();
        self.push(",\"usage\":");
        if let Usage::Literal(literal) = said.usage {
            self.body.extend_from_slice(literal);
        } else {
            self.json(&response_usage(said));
        }
        self.push("}");
    }
}

fn response(prompt: &Prompt<'_>, id: u64, status: &str, output: Vec<Value>) -> Value {
    json!({
        "id": format!("resp_mock{id:012}"), "object": "response", "created_at": CREATED, "status": status,
        "model": prompt.model, "output": output, "error": null, "incomplete_details": null, "instructions": null,
        "metadata": {}, "parallel_tool_calls": true, "temperature": 1.0, "tool_choice": "auto", "tools": [],
        "top_p": 1.0,
    })
}

fn output_item(text: &str, id: u64) -> Value {
    json!({"id": format!("msg_mock{id:012}"), "type": "message", "status": "completed", "role": "assistant",
        "content": [output_text(text)]})
}

fn output_text(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

fn response_usage(said: &Said<'_>) -> Value {
    json!({
        RESPONSE_COUNTS.prompt: said.prompt_tokens, "input_tokens_details": {"cached_tokens": 0},
        RESPONSE_COUNTS.completion: said.tokens, "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": said.prompt_tokens + said.tokens,
    })
}

// ---- embeddings, images, models, echo ------------------------------------------------------------------------------

impl Answer {
    fn embeddings(&mut self, request: &Request<'_>) {
        let prompt = Prompt::read(request.body);
        let asked = Embed::read(request.body);
        let vector = asked.vector();
        let data: Vec<_> = (0..asked.inputs)
            .map(|index| json!({"object": "embedding", "index": index, "embedding": vector}))
            .collect();
        let tokens = prompt.prompt_tokens();
        let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
        self.json(&json!({"object": "list", "data": data, "model": prompt.model}));
        self.add_usage(&request.head.steer.usage, &usage);
    }

    fn images(&mut self, request: &Request<'_>, tally: &Tally) {
        let prompt = Prompt::read(request.body);
        let (mut count, mut inline) = (1, false);
        for (key, value) in peek::fields(request.body) {
            match key {
                b"n" => count = peek::number(value).unwrap_or(1).clamp(1, MAX_IMAGES),
                b"response_format" => inline = value == b"\"b64_json\"",
                _ => {}
            }
        }
        let id = tally.next_answer();
        let data: Vec<_> = (0..count).map(|index| image(id, index, inline)).collect();
        let tokens = prompt.prompt_tokens();
        let usage = json!({"input_tokens": tokens, "output_tokens": count, "total_tokens": tokens + count,
            "input_tokens_details": {"text_tokens": tokens, "image_tokens": 0}});
        self.json(&json!({"created": CREATED, "data": data}));
        self.add_usage(&request.head.steer.usage, &usage);
    }

    /// Puts `usage` into the object just written.
    fn add_usage(&mut self, steered: &Usage, counted: &Value) {
        if *steered == Usage::Omitted {
            return;
        }
        self.body.pop();
        self.push(",\"usage\":");
        match steered {
            Usage::Literal(literal) => self.body.extend_from_slice(literal),
            Usage::Counted | Usage::Omitted => self.json(counted),
        }
        self.push("}");
    }
}

/// What a request for embeddings asks.
struct Embed {
    inputs: usize,
    dimensions: u64,
    base64: bool,
}

impl Embed {
    fn read(body: &[u8]) -> Self {
        let mut asked = Self { inputs: 1, dimensions: DEFAULT_DIMENSIONS, base64: false };
        for (key, value) in peek::fields(body) {
            match key {
                b"input" => asked.inputs = input_count(value),
                b"dimensions" => asked.dimensions = peek::number(value).unwrap_or(DEFAULT_DIMENSIONS),
                b"encoding_format" => asked.base64 = value == b"\"base64\"",
                _ => {}
            }
        }
        asked.dimensions = asked.dimensions.clamp(1, MAX_DIMENSIONS);
        asked
    }

    /// A vector of length one, the same for every input.
    fn vector(&self) -> Value {
        let part = 1.0 / (self.dimensions as f32).sqrt();
        if !self.base64 {
            return (0..self.dimensions).map(|_| part).collect();
        }
        let bytes: Vec<u8> = (0..self.dimensions).flat_map(|_| part.to_le_bytes()).collect();
        Value::String(base64(&bytes))
    }
}

/// A list of texts or of token lists has as many inputs; a text or one list of tokens is a single one.
fn input_count(input: &[u8]) -> usize {
    let count = peek::items(input).filter(|item| matches!(item.first(), Some(b'"' | b'['))).count();
    count.max(1)
}

fn image(id: u64, index: u64, inline: bool) -> Value {
    if inline {
        return json!({"b64_json": PIXEL});
    }
    json!({"url": format!("https://images.invalid/mock{id:012}-{index}.png")})
}

fn models() -> Value {
    json!({"object": "list", "data": MODELS.map(model_object)})
}

fn model(request: &Request<'_>) -> Value {
    let path = request.head.path(request.head_bytes);
    model_object(path.strip_prefix("/v1/models/").unwrap_or_default())
}

fn model_object(id: &str) -> Value {
    json!({"id": id, "object": "model", "created": CREATED, "owned_by": "mock"})
}

fn stats(request: &Request<'_>, tally: &Tally) -> Value {
    let query = request.head.query(request.head_bytes);
    tally.stats_json(query.strip_prefix("request_id="))
}

/// Everything the service can tell of a request it has no endpoint for. Repeated headers become a list.
fn echo(request: &Request<'_>) -> Value {
    let record = request.head.to_record(request.head_bytes, request.body);
    let mut headers = serde_json::Map::new();
    for (name, value) in &record.headers {
        let value = Value::String(String::from_utf8_lossy(value).into_owned());
        match headers.get_mut(&name.to_ascii_lowercase()) {
            Some(Value::Array(values)) => values.push(value),
            Some(first) => *first = json!([first.take(), value]),
            None => {
                headers.insert(name.to_ascii_lowercase(), value);
            }
        }
    }
    json!({
        "method": record.method, "path": record.target, "headers": headers,
        "body": String::from_utf8_lossy(request.body),
    })
}

// ---- writing -------------------------------------------------------------------------------------------------------

/// Writing into a vector cannot fail.
pub(super) fn push_display(out: &mut Vec<u8>, value: impl Display) {
    let _written = write!(out, "{value}");
}

fn push_json(out: &mut Vec<u8>, value: &Value) {
    let _written = serde_json::to_writer(out, value);
}

/// Text inside a JSON string, without its quotes. Most text needs no escaping at all.
fn push_escaped(out: &mut Vec<u8>, text: &str) {
    if !text.bytes().any(|byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
        out.extend_from_slice(text.as_bytes());
        return;
    }
    let quoted = Value::from(text).to_string();
    out.extend_from_slice(&quoted.as_bytes()[1..quoted.len() - 1]);
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = (0..3).fold(0u32, |bits, at| bits << 8 | u32::from(group.get(at).copied().unwrap_or(0)));
        for at in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * at) & 63) as usize];
            text.push(if at <= group.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_pads_as_the_rfc_says() {
        for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
