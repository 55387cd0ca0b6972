//! The life of one connection: read a call, answer it as steered, read the next.
//!
//! Owns the socket and what was read from it but not yet used. It never decides what an answer says.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use super::answer::{Answer, Request};
use super::frame::Framed;
use super::head::{self, BodyFraming, Head, Parsed};
use super::tally::{Tally, add};

const FIRST_BUFFER: usize = 4 * 1024;
/// A longer head is refused.
const MAX_HEAD: usize = 256 * 1024;
/// Of a longer body only this much is kept; the rest is read and thrown away.
const MAX_BODY: usize = 16 << 20;
/// Read ahead while an answer waits: enough to see that the client left, bounded for one that keeps sending.
const MAX_AHEAD: usize = 1 << 20;
/// A buffer that grew past this is given back after the call.
const KEPT_BUFFER: usize = 256 * 1024;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
const REFUSED: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// Why a connection ends other than by agreement.
enum End {
    /// The client left: its side of the socket closed or failed.
    PeerGone,
    /// The answer was steered to break off.
    Cut,
    Malformed,
}

/// Serves one connection until either side ends it.
pub(super) async fn serve(stream: TcpStream, tally: Arc<Tally>) {
    let _open = tally.connection();
    // Without it events would wait for acknowledgements; a socket that cannot do it still works.
    let _nodelay = stream.set_nodelay(true);
    let mut conn = Conn {
        wire: Wire { stream, inbox: Inbox::default(), budget: u64::MAX, tally: &tally },
        answer: Answer::default(),
        framed: Framed::default(),
    };
    conn.run().await;
}

struct Conn<'t> {
    wire: Wire<'t>,
    answer: Answer,
    framed: Framed,
}

impl Conn<'_> {
    async fn run(&mut self) {
        loop {
            let head = match self.wire.read_head().await {
                Ok(Some(head)) => head,
                Ok(None) | Err(End::PeerGone | End::Cut) => return,
                Err(End::Malformed) => return self.wire.refuse().await,
            };
            match self.call(&head).await {
                Ok(true) => {}
                Ok(false) => return self.wire.close().await,
                Err(End::PeerGone) => return add(&self.wire.tally.aborted, 1),
                Err(End::Cut) => return add(&self.wire.tally.cut, 1),
                Err(End::Malformed) => return self.wire.refuse().await,
            }
        }
    }

    /// Answers one call; `true` when the connection may go on.
    async fn call(&mut self, head: &Head) -> Result<bool, End> {
        let _open = self.wire.tally.call(head, self.wire.inbox.unread());
        self.wire.budget = head.steer.abort_after_bytes.unwrap_or(u64::MAX);
        let keep_alive =
            if head.steer.early { self.answer_early(head).await? } else { self.answer_after_body(head).await? };
        self.give_back_buffers();
        Ok(keep_alive)
    }

    async fn answer_after_body(&mut self, head: &Head) -> Result<bool, End> {
        self.wire.invite_body(head).await?;
        match head.framing {
            BodyFraming::Length(length) if length <= MAX_BODY as u64 => {
                let whole = head.len + length as usize;
                self.wire.read_at_least(whole).await?;
                let (head_bytes, rest) = self.wire.inbox.unread().split_at(head.len);
                let body = rest.get(..length as usize).unwrap_or_default();
                let request = Request { head, head_bytes, body };
                self.answer.compose(&request, self.wire.tally);
                record(self.wire.tally, &request);
                self.wire.inbox.consume(whole);
            }
            framing => {
                let head_bytes = self.wire.take(head.len);
                let body = self.wire.read_body(framing).await?;
                let request = Request { head, head_bytes: &head_bytes, body: &body };
                self.answer.compose(&request, self.wire.tally);
                record(self.wire.tally, &request);
            }
        }
        self.framed.compose(&self.answer, head, head.keep_alive);
        self.send(head).await?;
        Ok(self.framed.keep_alive)
    }

    /// Answers before the body is read, then reads it for the sake of the next call.
    async fn answer_early(&mut self, head: &Head) -> Result<bool, End> {
        let head_bytes = self.wire.take(head.len);
        let request = Request { head, head_bytes: &head_bytes, body: b"" };
        self.answer.compose(&request, self.wire.tally);
        record(self.wire.tally, &request);
        // A client that waits to be invited may or may not send its body now: nobody could tell where the next call
        // begins, so the connection ends here.
        self.framed.compose(&self.answer, head, head.keep_alive && !head.expects_continue);
        self.send(head).await?;
        if self.framed.keep_alive {
            self.wire.read_body(head.framing).await?;
        }
        Ok(self.framed.keep_alive)
    }

    async fn send(&mut self, head: &Head) -> Result<(), End> {
        if head.steer.delay_ms > 0 {
            let arrived = Instant::now();
            self.wire.wait(head.steer.delay_ms).await?;
            self.framed.stamp(arrived.elapsed());
        }
        match head.steer.chunk_delay_ms {
            Some(delay_ms) => self.send_events(delay_ms).await?,
            None => self.wire.write(&self.framed.bytes).await?,
        }
        let mut position = 0;
        while let Some(block) = self.framed.next_filler(position) {
            self.wire.write(&block).await?;
            position += Framed::BLOCK;
        }
        self.wire.write(&self.framed.tail).await
    }

    /// One write per event, with time between them.
    async fn send_events(&mut self, delay_ms: u64) -> Result<(), End> {
        let mut start = 0;
        for end in &self.framed.ends {
            if start > 0 {
                self.wire.wait(delay_ms).await?;
            }
            self.wire.write(self.framed.bytes.get(start..*end).unwrap_or_default()).await?;
            start = *end;
        }
        self.wire.write(self.framed.bytes.get(start..).unwrap_or_default()).await
    }

    /// One large answer must not make every idle connection large.
    fn give_back_buffers(&mut self) {
        for buffer in [&mut self.answer.body, &mut self.framed.bytes] {
            if buffer.capacity() > KEPT_BUFFER {
                *buffer = Vec::new();
            }
        }
        self.wire.inbox.give_back();
    }
}

fn record(tally: &Tally, request: &Request<'_>) {
    if tally.is_recording() {
        tally.keep(request.head.to_record(request.head_bytes, request.body));
    }
}

/// The socket, with what was read ahead and what may still be written.
struct Wire<'t> {
    stream: TcpStream,
    inbox: Inbox,
    /// Bytes of this answer that may go out before it is broken off.
    budget: u64,
    tally: &'t Tally,
}

impl Wire<'_> {
    /// The next call's head, still unread in the inbox; `None` when the client is done.
    async fn read_head(&mut self) -> Result<Option<Box<Head>>, End> {
        loop {
            if !self.inbox.unread().is_empty() {
                match head::parse(self.inbox.unread()) {
                    Parsed::Head(head) => return Ok(Some(head)),
                    Parsed::Partial if self.inbox.unread().len() < MAX_HEAD => {}
                    Parsed::Partial | Parsed::Malformed => return Err(End::Malformed),
                }
            }
            if self.fill().await.is_err() {
                return Ok(None);
            }
        }
    }

    /// Tells a client that asked whether to send its body to go on, unless it already did.
    async fn invite_body(&mut self, head: &Head) -> Result<(), End> {
        let has_body = head.framing != BodyFraming::Length(0);
        if head.expects_continue && has_body && self.inbox.unread().len() == head.len {
            self.write_raw(CONTINUE).await?;
        }
        Ok(())
    }

    async fn read_at_least(&mut self, bytes: usize) -> Result<(), End> {
        while self.inbox.unread().len() < bytes {
            self.inbox.expect(bytes);
            self.fill().await?;
        }
        Ok(())
    }

    fn take(&mut self, bytes: usize) -> Vec<u8> {
        let taken = self.inbox.unread().get(..bytes).unwrap_or_default().to_vec();
        self.inbox.consume(bytes);
        taken
    }

    /// A whole body, of which the first part is kept.
    async fn read_body(&mut self, framing: BodyFraming) -> Result<Vec<u8>, End> {
        let mut kept = Vec::new();
        match framing {
            BodyFraming::Length(length) => self.read_part(length, &mut kept).await?,
            BodyFraming::Chunked => self.read_chunks(&mut kept).await?,
        }
        Ok(kept)
    }

    async fn read_part(&mut self, mut length: u64, kept: &mut Vec<u8>) -> Result<(), End> {
        while length > 0 {
            if self.inbox.unread().is_empty() {
                self.fill().await?;
            }
            let unread = self.inbox.unread();
            let here = length.min(unread.len() as u64) as usize;
            let room = MAX_BODY.saturating_sub(kept.len()).min(here);
            kept.extend_from_slice(&unread[..room]);
            self.inbox.consume(here);
            length -= here as u64;
        }
        Ok(())
    }

    async fn read_chunks(&mut self, kept: &mut Vec<u8>) -> Result<(), End> {
        loop {
            let line = self.read_line().await?;
            let size = line.split(|byte| *byte == b';').next().unwrap_or_default();
            match chunk_size(size.trim_ascii_end()).ok_or(End::Malformed)? {
                0 => break,
                length => self.read_part(length, kept).await?,
            }
            if !self.read_line().await?.is_empty() {
                return Err(End::Malformed);
            }
        }
        while !self.read_line().await?.is_empty() {}
        Ok(())
    }

    /// A line without its end. A bare line feed is refused: another server might read it differently.
    async fn read_line(&mut self) -> Result<Vec<u8>, End> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', self.inbox.unread()) {
                let mut line = self.take(end + 1);
                line.pop();
                return if line.pop() == Some(b'\r') { Ok(line) } else { Err(End::Malformed) };
            }
            if self.inbox.unread().len() > MAX_HEAD {
                return Err(End::Malformed);
            }
            self.fill().await?;
        }
    }

    /// Waits, and notices at once when the client leaves meanwhile.
    async fn wait(&mut self, ms: u64) -> Result<(), End> {
        if ms == 0 {
            return Ok(());
        }
        let until = sleep_until(Instant::now() + Duration::from_millis(ms));
        tokio::pin!(until);
        while self.inbox.unread().len() < MAX_AHEAD {
            tokio::select! {
                biased;
                () = &mut until => return Ok(()),
                filled = self.fill() => filled?,
            }
        }
        until.await;
        Ok(())
    }

    /// Reads what there is; an error when the client has gone.
    async fn fill(&mut self) -> Result<(), End> {
        let space = self.inbox.space();
        match self.stream.read(space).await {
            Ok(0) | Err(_) => Err(End::PeerGone),
            Ok(read) => {
                self.inbox.end += read;
                add(&self.tally.bytes_in, read as u64);
                Ok(())
            }
        }
    }

    /// Writes a part of the answer, or as much of it as may still go out.
    async fn write(&mut self, bytes: &[u8]) -> Result<(), End> {
        let allowed = self.budget.min(bytes.len() as u64) as usize;
        let (now, never) = bytes.split_at(allowed);
        self.write_raw(now).await?;
        self.budget -= allowed as u64;
        if never.is_empty() { Ok(()) } else { Err(End::Cut) }
    }

    async fn write_raw(&mut self, bytes: &[u8]) -> Result<(), End> {
        self.stream.write_all(bytes).await.map_err(|_| End::PeerGone)?;
        add(&self.tally.bytes_out, bytes.len() as u64);
        Ok(())
    }

    async fn refuse(&mut self) {
        add(&self.tally.malformed, 1);
        if self.write_raw(REFUSED).await.is_ok() {
            self.close().await;
        }
    }

    /// Ends our side, then reads until the client ends its own: closing over unread bytes would reset the
    /// connection, and the client could lose the answer.
    async fn close(&mut self) {
        if self.stream.shutdown().await.is_err() {
            return;
        }
        let patience = tokio::time::sleep(Duration::from_secs(2));
        tokio::pin!(patience);
        loop {
            self.inbox.clear();
            tokio::select! {
                () = &mut patience => return,
                filled = self.fill() => if filled.is_err() { return },
            }
        }
    }
}

/// Hexadecimal digits only, and few enough not to overflow.
fn chunk_size(digits: &[u8]) -> Option<u64> {
    let plausible = (1..=15).contains(&digits.len()) && digits.iter().all(u8::is_ascii_hexdigit);
    let digits = std::str::from_utf8(digits).ok().filter(|_| plausible)?;
    u64::from_str_radix(digits, 16).ok()
}

/// Bytes read and not yet used.
#[derive(Default)]
struct Inbox {
    data: Vec<u8>,
    start: usize,
    end: usize,
}

impl Inbox {
    fn unread(&self) -> &[u8] {
        &self.data[self.start..self.end]
    }

    fn consume(&mut self, bytes: usize) {
        self.start = (self.start + bytes).min(self.end);
        if self.start == self.end {
            self.clear();
        }
    }

    fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// Room for a call whose size is known, so that a large body does not grow the buffer step by step.
    fn expect(&mut self, bytes: usize) {
        self.compact();
        if self.data.len() < bytes {
            self.data.resize(bytes, 0);
        }
    }

    /// Free room to read into; never empty.
    fn space(&mut self) -> &mut [u8] {
        if self.end == self.data.len() {
            self.compact();
        }
        if self.end == self.data.len() {
            self.data.resize((self.end * 2).max(FIRST_BUFFER), 0);
        }
        &mut self.data[self.end..]
    }

    fn compact(&mut self) {
        if self.start == 0 {
            return;
        }
        self.data.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
    }

    fn give_back(&mut self) {
        if self.data.len() > KEPT_BUFFER && self.start == self.end {
            self.data = Vec::new();
        }
    }
}
