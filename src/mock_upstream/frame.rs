//! Puts an answer on the wire: its status line, headers and body framing.
//!
//! Owns the bytes that go out. It never writes them itself and never looks into a body.

use std::time::Duration;

use super::answer::{Answer, filler_byte, push_display};
use super::head::{Head, Verb};

/// Opaque bytes go out in blocks of this size, each a chunk of its own when chunked.
const BLOCK: usize = 64 * 1024;
/// Digits of the time in `x-mock-took-us`, zeros in front: the head's length must not depend on it.
const TOOK_DIGITS: usize = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length,
    Chunked,
    UntilClose,
    /// The head says how long a body would be, and none follows.
    HeadOnly,
}

/// An answer as bytes. Opaque filler is made while it is written, so that a huge answer takes no memory.
#[derive(Debug, Default)]
pub(super) struct Framed {
    pub(super) bytes: Vec<u8>,
    /// Where each event ends in `bytes`; empty for an answer without events.
    pub(super) ends: Vec<usize>,
    /// Opaque bytes after `bytes`.
    pub(super) filler: u64,
    filler_chunked: bool,
    /// After the filler.
    pub(super) tail: Vec<u8>,
    pub(super) keep_alive: bool,
    /// Where the digits of `x-mock-took-us` go, once they are known.
    took_at: Option<usize>,
}

impl Framed {
    /// Frames `answer` for the request it answers. `keep_alive`: whether the connection may go on.
    pub(super) fn compose(&mut self, answer: &Answer, head: &Head, keep_alive: bool) {
        let framing = framing(answer, head);
        self.reset();
        self.keep_alive = keep_alive && framing != Framing::UntilClose;
        self.push_head(answer, head, framing);
        match framing {
            Framing::HeadOnly => {}
            Framing::Length | Framing::UntilClose => self.push_body(answer),
            Framing::Chunked => self.push_chunks(answer, head.steer.trailers),
        }
    }

    /// The next block of filler as bytes to write, framing included; `None` when there is no more.
    pub(super) fn next_filler(&mut self, position: u64) -> Option<Vec<u8>> {
        let length = self.filler.saturating_sub(position).min(BLOCK as u64);
        if length == 0 {
            return None;
        }
        let mut block = Vec::with_capacity(BLOCK + 16);
        if self.filler_chunked {
            push_display(&mut block, format_args!("{length:x}\r\n"));
        }
        block.extend((position..position + length).map(filler_byte));
        if self.filler_chunked {
            block.extend_from_slice(b"\r\n");
        }
        Some(block)
    }

    /// Fills in how long the service itself took, just before the first byte goes out. Timers fire late by up to a
    /// millisecond; a benchmark that subtracts this measures only what lies between.
    pub(super) fn stamp(&mut self, took: Duration) {
        let digits = self.took_at.and_then(|at| self.bytes.get_mut(at..at + TOOK_DIGITS));
        let mut micros = took.as_micros();
        for digit in digits.into_iter().flatten().rev() {
            *digit = b'0' + (micros % 10) as u8;
            micros /= 10;
        }
    }

    pub(super) const BLOCK: u64 = BLOCK as u64;

    fn reset(&mut self) {
        self.bytes.clear();
        self.ends.clear();
        self.tail.clear();
        self.filler = 0;
        self.filler_chunked = false;
        self.took_at = None;
    }

    fn push_head(&mut self, answer: &Answer, head: &Head, framing: Framing) {
        self.push_status(answer.status);
        self.push("content-type: ");
        self.push(answer.content_type);
        match framing {
            Framing::Chunked if head.steer.trailers => {
                self.push("\r\ntransfer-encoding: chunked\r\ntrailer: x-mock-trailer");
            }
            Framing::Chunked => self.push("\r\ntransfer-encoding: chunked"),
            Framing::Length | Framing::HeadOnly if has_length(answer.status) => {
                self.push("\r\ncontent-length: ");
                push_display(&mut self.bytes, answer.body.len() as u64 + answer.filler);
            }
            Framing::Length | Framing::HeadOnly | Framing::UntilClose => {}
        }
        if head.steer.hop {
            self.push("\r\nconnection: x-secret-hop\r\nx-secret-hop: 1\r\nkeep-alive: timeout=5");
        }
        if head.steer.delay_ms > 0 {
            self.push("\r\nx-mock-took-us: ");
            self.took_at = Some(self.bytes.len());
            self.push("0000000000");
        }
        if !self.keep_alive {
            self.push("\r\nconnection: close");
        } else if !head.http11 {
            self.push("\r\nconnection: keep-alive");
        }
        self.push("\r\n\r\n");
    }

    fn push_status(&mut self, status: u16) {
        if status == 200 {
            return self.push("HTTP/1.1 200 OK\r\n");
        }
        push_display(&mut self.bytes, format_args!("HTTP/1.1 {status} {}\r\n", reason(status)));
    }

    fn push_body(&mut self, answer: &Answer) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&answer.body);
        self.ends.extend(answer.ends.iter().map(|end| start + end));
        self.take_filler(answer.filler);
    }

    /// Each event is one chunk; a plain body is one as well.
    fn push_chunks(&mut self, answer: &Answer, trailers: bool) {
        let whole = [answer.body.len()];
        let ends = if answer.ends.is_empty() { &whole } else { answer.ends.as_slice() };
        let mut start = 0;
        for end in ends {
            self.push_chunk(answer.body.get(start..*end).unwrap_or_default());
            if !answer.ends.is_empty() {
                self.ends.push(self.bytes.len());
            }
            start = *end;
        }
        let last: &[u8] = if trailers { b"0\r\nx-mock-trailer: done\r\n\r\n" } else { b"0\r\n\r\n" };
        self.filler_chunked = true;
        self.take_filler(answer.filler);
        if self.filler > 0 {
            self.tail.extend_from_slice(last);
        } else {
            self.bytes.extend_from_slice(last);
        }
        // The end of the body belongs to the last event's write.
        if let Some(end) = self.ends.last_mut() {
            *end = self.bytes.len();
        }
    }

    fn push_chunk(&mut self, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        push_display(&mut self.bytes, format_args!("{:x}\r\n", data.len()));
        self.bytes.extend_from_slice(data);
        self.push("\r\n");
    }

    /// A little filler goes with the head, so that a small answer stays one write.
    fn take_filler(&mut self, filler: u64) {
        if filler > BLOCK as u64 {
            self.filler = filler;
            return;
        }
        if self.filler_chunked && filler > 0 {
            push_display(&mut self.bytes, format_args!("{filler:x}\r\n"));
        }
        self.bytes.extend((0..filler).map(filler_byte));
        if self.filler_chunked && filler > 0 {
            self.push("\r\n");
        }
    }

    fn push(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
    }
}

fn framing(answer: &Answer, head: &Head) -> Framing {
    let steer = &head.steer;
    let wants_chunks = steer.chunked || steer.trailers || !answer.ends.is_empty();
    if head.verb == Verb::Head || !has_body(answer.status) {
        Framing::HeadOnly
    } else if steer.close || (wants_chunks && !head.http11) {
        Framing::UntilClose
    } else if wants_chunks {
        Framing::Chunked
    } else {
        Framing::Length
    }
}

fn has_body(status: u16) -> bool {
    status != 204 && status != 304
}

fn has_length(status: u16) -> bool {
    status != 204
}

fn reason(status: u16) -> &'static str {
    match status {
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Mock",
    }
}
