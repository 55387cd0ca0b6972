//! The chunked coding (RFC 9112, 7.1), read strictly.
//!
//! Owns taking chunks apart as bytes come in and writing them. Extensions are read over and trailers dropped, both bounded.

/// Bytes of all chunk extensions and trailer fields of one body.
const MAX_EXTRAS: u32 = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the start of a trailer line, or of the empty line that ends the body.
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
    Done,
}

/// Reads one body.
#[derive(Clone, Copy, Debug)]
pub struct Decoder {
    state: State,
    /// Of the present chunk.
    remaining: u64,
    digits: u8,
    extras: u32,
    /// The first chunk has ended as it should.
    begun_well: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkError(pub &'static str);

/// What a look at some bytes brought.
#[derive(Debug, PartialEq, Eq)]
pub struct Decoded<'a> {
    /// Bytes of the input that are dealt with, `data` included.
    pub used: usize,
    /// Payload; the last part of what was used.
    pub data: &'a [u8],
    pub done: bool,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { state: State::Size, remaining: 0, digits: 0, extras: 0, begun_well: false }
    }
}

impl Decoder {
    /// Reads on, up to the end of the next piece of payload, of the body, or of the input.
    ///
    /// # Errors
    /// Anything but the exact syntax.
    pub fn read<'a>(&mut self, input: &'a [u8]) -> Result<Decoded<'a>, ChunkError> {
        let mut at = 0;
        while at < input.len() && self.state != State::Done {
            if self.state == State::Data {
                let len = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(input.len() - at);
                self.remaining -= len as u64;
                if self.remaining == 0 {
                    self.state = State::DataCr;
                }
                return Ok(Decoded { used: at + len, data: &input[at..at + len], done: false });
            }
            self.state = self.framing_byte(input[at])?;
            at += 1;
        }
        Ok(Decoded { used: at, data: &[], done: self.state == State::Done })
    }

    /// Whether a whole chunk could be read.
    pub fn has_begun_well(&self) -> bool {
        self.begun_well
    }

    fn framing_byte(&mut self, byte: u8) -> Result<State, ChunkError> {
        Ok(match (self.state, byte) {
            (State::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = (byte as char).to_digit(16).unwrap_or_default();
                self.digits += 1;
                // Fifteen digits are an exbibyte: nobody means more.
                if self.digits > 15 {
                    return Err(ChunkError("a chunk's size is too large"));
                }
                self.remaining = self.remaining * 16 + u64::from(digit);
                State::Size
            }
            (State::Size, _) if self.digits == 0 => return Err(ChunkError("a chunk has no size")),
            (State::Size | State::Extension, b'\r') => State::SizeLf,
            (State::Size, b';') => State::Extension,
            (State::Extension, 0x20..=0x7e | b'\t') => {
                self.extra()?;
                State::Extension
            }
            (State::SizeLf, b'\n') => {
                self.digits = 0;
                if self.remaining == 0 { State::TrailerStart } else { State::Data }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => {
                self.begun_well = true;
                State::Size
            }
            (State::TrailerStart, b'\r') => State::EndLf,
            (State::TrailerStart | State::Trailer, 0x20..=0x7e | b'\t' | 0x80..) => {
                self.extra()?;
                State::Trailer
            }
            (State::Trailer, b'\r') => State::TrailerLf,
            (State::TrailerLf, b'\n') => State::TrailerStart,
            (State::EndLf, b'\n') => State::Done,
            _ => return Err(ChunkError("the chunked coding is malformed")),
        })
    }

    fn extra(&mut self) -> Result<(), ChunkError> {
        self.extras += 1;
        if self.extras > MAX_EXTRAS { Err(ChunkError("too many chunk extensions or trailer fields")) } else { Ok(()) }
    }
}

/// Appends one chunk. Nothing for no data: an empty chunk would end the body.
pub fn write_chunk(data: &[u8], out: &mut Vec<u8>) {
    if data.is_empty() {
        return;
    }
    begin_chunk(data.len(), out);
    out.extend_from_slice(data);
    out.extend_from_slice(CHUNK_END);
}

/// Appends what stands before a chunk of `len` bytes, which are more than none.
pub fn begin_chunk(len: usize, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let digits = (usize::BITS - len.leading_zeros()).div_ceil(4);
    for place in (0..digits).rev() {
        out.push(HEX[(len >> (place * 4)) & 15]);
    }
    out.extend_from_slice(b"\r\n");
}

/// What stands behind a chunk's bytes.
pub const CHUNK_END: &[u8] = b"\r\n";

/// Ends a body.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

#[cfg(test)]
mod tests {
    use super::*;

    /// Payload, bytes used, and whether the body ended, reading in pieces of `piece` bytes.
    fn decode(input: &[u8], piece: usize) -> Result<(Vec<u8>, usize, bool), ChunkError> {
        let (mut decoder, mut payload, mut used) = (Decoder::default(), Vec::new(), 0);
        for part in input.chunks(piece) {
            let mut rest = part;
            loop {
                let step = decoder.read(rest)?;
                payload.extend_from_slice(step.data);
                used += step.used;
                if step.done {
                    return Ok((payload, used, true));
                }
                rest = &rest[step.used..];
                if rest.is_empty() {
                    break;
                }
            }
        }
        Ok((payload, used, false))
    }

    #[test]
    fn bodies_are_read_in_pieces_of_any_size() {
        let input = b"5;ext=\"v\"\r\nhello\r\nA\r\n, world!!!\r\n0\r\nX-Trailer: 1\r\n\r\nGET /next";
        for piece in 1..input.len() {
            let (payload, used, done) = decode(input, piece).unwrap();
            assert_eq!(payload, b"hello, world!!!");
            assert!(done && &input[used..] == b"GET /next", "piece {piece}");
        }
    }

    #[test]
    fn anything_but_the_syntax_is_refused() {
        for input in [
            &b"\r\n"[..],
            b"g\r\n",
            b"5\nhello\r\n",
            b"5\r\nhello0\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"0x5\r\nhello\r\n",
            b"-1\r\n",
            b" 5\r\nhello\r\n",
            b"5 \r\nhello\r\n",
            b"1111111111111111\r\n",
            b"5;a\nb\r\nhello\r\n",
            b"0\r\n\nGET",
            b"0\r\nX: \0\r\n\r\n",
        ] {
            assert!(decode(input, 1).is_err(), "{:?}", String::from_utf8_lossy(input));
            assert!(decode(input, input.len()).is_err(), "{:?}", String::from_utf8_lossy(input));
        }
        let long = [b"5;".to_vec(), vec![b'a'; 5000], b"\r\nhello\r\n".to_vec()].concat();
        assert!(decode(&long, 100).is_err());
    }

    #[test]
    fn what_is_written_is_read() {
        for len in [1, 15, 16, 255, 256, 4096, 70_000] {
            let data: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let mut out = Vec::new();
            write_chunk(&data, &mut out);
            write_chunk(&[], &mut out);
            out.extend_from_slice(LAST_CHUNK);
            assert_eq!(decode(&out, 1000).unwrap(), (data, out.len(), true));
        }
    }
}
