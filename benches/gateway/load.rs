//! The load generator: keep-alive connections that send a call as soon as the last one is answered.
//!
//! Owns the client's side of every socket and takes the time on it. It never reads what another process reports, but
//! for `x-mock-took-us`, the time the simulated service itself waited.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use crate::Fallible;
use crate::lab::Server;

pub const CHAT: &str = "/v1/chat/completions";
/// A chat request's size on the wire without its head.
pub const BODY_BYTES: usize = 1024;
const FIRST_BUFFER: usize = 8 * 1024;

/// A request as bytes.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: bench.local\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
        text += &format!("{name}: {value}\r\n");
    }
    (text + "\r\n" + body).into_bytes()
}

/// A chat call to this server, 1 KB of JSON, with more headers if wanted.
pub fn chat_request(server: &Server, stream: bool, more: &[(&str, &str)]) -> Vec<u8> {
    let bearer = if server.api_key.is_empty() { String::new() } else { format!("Bearer {}", server.api_key) };
    let mut headers = vec![("content-type", "application/json"), ("authorization", bearer.as_str())];
    headers.extend(more);
    request("POST", CHAT, &headers, &chat_body(stream))
}

/// A plain chat call with this key.
pub fn chat_request_with(key: &str) -> Vec<u8> {
    let bearer = format!("Bearer {key}");
    request("POST", CHAT, &[("content-type", "application/json"), ("authorization", &bearer)], &chat_body(false))
}

fn chat_body(stream: bool) -> String {
    let open =
        format!(r#"{{"model":"gpt-4o-mini","stream":{stream},"max_tokens":8,"messages":[{{"role":"user","content":""#);
    let close = r#""}]}"#;
    let text: String = "tell me of the sea ".chars().cycle().take(BODY_BYTES - open.len() - close.len()).collect();
    open + &text + close
}

/// A client's keep-alive connection.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    filled: usize,
}

/// What was answered; the bytes stay in the connection until the next call.
pub struct Reply {
    pub status: u16,
    pub body: Range<usize>,
    /// What the simulated service says it took itself.
    pub upstream: Duration,
}

impl Connection {
    pub async fn open(addr: SocketAddr) -> Fallible<Self> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::new(), filled: 0 })
    }

    /// One call whose answer states its length.
    pub async fn exchange(&mut self, request: &[u8]) -> Fallible<Reply> {
        self.send(request).await?;
        let head = self.read_head().await?;
        let length = head.length.ok_or("an answer without content-length")?;
        let body = head.end..head.end + length;
        while self.filled < body.end {
            self.fill().await?;
        }
        Ok(Reply { status: head.status, body, upstream: head.upstream })
    }

    /// One streamed call: the time to its first event, without what the service itself waited.
    pub async fn first_event(&mut self, request: &[u8]) -> Fallible<Duration> {
        let started = Instant::now();
        self.send(request).await?;
        let head = self.read_head().await?;
        self.read_until(b"\n\n").await?;
        let first = started.elapsed();
        if head.status != 200 {
            return Err(format!("status {}", head.status).into());
        }
        self.read_until(b"data: [DONE]\n\n").await?;
        self.read_until(b"\r\n0\r\n\r\n").await?;
        Ok(first.saturating_sub(head.upstream))
    }

    pub fn body(&self, reply: &Reply) -> &[u8] {
        self.buffer.get(reply.body.clone()).unwrap_or_default()
    }

    async fn send(&mut self, request: &[u8]) -> Fallible<()> {
        self.filled = 0;
        Ok(self.stream.write_all(request).await?)
    }

    async fn read_head(&mut self) -> Fallible<Head> {
        loop {
            if let Some(head) = Head::parse(&self.buffer[..self.filled])? {
                return Ok(head);
            }
            self.fill().await?;
        }
    }

    async fn read_until(&mut self, end: &[u8]) -> Fallible<()> {
        while memchr::memmem::find(&self.buffer[..self.filled], end).is_none() {
            self.fill().await?;
        }
        Ok(())
    }

    async fn fill(&mut self) -> Fallible<()> {
        if self.filled == self.buffer.len() {
            self.buffer.resize((self.filled * 2).max(FIRST_BUFFER), 0);
        }
        match self.stream.read(&mut self.buffer[self.filled..]).await? {
            0 => Err("the connection was closed in the middle of an answer".into()),
            read => {
                self.filled += read;
                Ok(())
            }
        }
    }

    /// A thousand idle connections should cost this process little.
    pub fn shrink(&mut self) {
        self.buffer = Vec::new();
        self.filled = 0;
    }
}

struct Head {
    status: u16,
    end: usize,
    length: Option<usize>,
    upstream: Duration,
}

impl Head {
    fn parse(bytes: &[u8]) -> Fallible<Option<Self>> {
        let mut headers = [httparse::EMPTY_HEADER; 48];
        let mut response = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(end) = response.parse(bytes)? else {
            return Ok(None);
        };
        let mut head = Self { status: response.code.unwrap_or(0), end, length: None, upstream: Duration::ZERO };
        for header in response.headers.iter() {
            match header.name.len() {
                14 if header.name.eq_ignore_ascii_case("content-length") => {
                    head.length = Some(number(header.value)? as usize);
                }
                14 if header.name.eq_ignore_ascii_case("x-mock-took-us") => {
                    head.upstream = Duration::from_micros(number(header.value)?);
                }
                _ => {}
            }
        }
        Ok(Some(head))
    }
}

fn number(value: &[u8]) -> Fallible<u64> {
    Ok(std::str::from_utf8(value)?.parse()?)
}

/// How to drive a server.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub connections: usize,
    pub warm_up: Duration,
    pub measured: Duration,
    /// The longest a client thinks between two calls; each pause is picked at random. Without any, answers that are
    /// timed by a clock come in bursts, and a burst's queue is measured instead of the server.
    pub pause: Duration,
}

/// What one run of the load generator gave.
#[derive(Debug, Default)]
pub struct Run {
    pub elapsed: Duration,
    /// CPU time of the server's process while the run was measured.
    pub server_cpu_nanos: u64,
    /// Of every call, sorted, without what the simulated service itself waited.
    pub latencies: Vec<Duration>,
    pub errors: u64,
    pub first_error: Option<String>,
    pub answer_bytes: usize,
}

impl Run {
    pub fn requests(&self) -> usize {
        self.latencies.len()
    }

    pub fn per_second(&self) -> f64 {
        self.requests() as f64 / self.elapsed.as_secs_f64()
    }

    pub fn cpu_micros_per_request(&self) -> f64 {
        self.server_cpu_nanos as f64 / 1e3 / self.requests().max(1) as f64
    }

    pub fn note_error(&mut self, error: &dyn std::fmt::Display) {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| error.to_string());
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    WarmUp,
    Measured,
    Over,
}

/// What the connections of one run share; they all live on one thread.
struct Shared {
    addr: SocketAddr,
    request: Vec<u8>,
    phase: Cell<Phase>,
    run: RefCell<Run>,
}

/// Drives `server` with this request in a closed loop and measures the part after the warm-up.
pub async fn drive(server: &Server, request: Vec<u8>, plan: Plan) -> Fallible<Run> {
    let shared = Rc::new(Shared {
        addr: server.addr,
        request,
        phase: Cell::new(Phase::WarmUp),
        run: RefCell::new(Run::default()),
    });
    let connections = LocalSet::new();
    for number in 0..plan.connections {
        connections.spawn_local(keep_calling(Rc::clone(&shared), Pauses::new(plan.pause, number)));
    }
    let measured = connections.run_until(measure(server, &shared, plan)).await;
    shared.phase.set(Phase::Over);
    connections.await;
    let (elapsed, server_cpu_nanos) = measured?;
    let mut run = shared.run.take();
    run.latencies.sort_unstable();
    Ok(Run { elapsed, server_cpu_nanos, ..run })
}

async fn measure(server: &Server, shared: &Shared, plan: Plan) -> Fallible<(Duration, u64)> {
    tokio::time::sleep(plan.warm_up).await;
    shared.phase.set(Phase::Measured);
    let (started, cpu_before) = (Instant::now(), server.process.cpu_nanos()?);
    tokio::time::sleep(plan.measured).await;
    let (elapsed, cpu_after) = (started.elapsed(), server.process.cpu_nanos()?);
    shared.phase.set(Phase::Over);
    Ok((elapsed, cpu_after - cpu_before))
}

/// One connection's life; after an error it opens another.
async fn keep_calling(shared: Rc<Shared>, mut pauses: Pauses) {
    while shared.phase.get() != Phase::Over {
        if let Err(error) = call_until_over(&shared, &mut pauses).await {
            shared.run.borrow_mut().note_error(&error);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn call_until_over(shared: &Shared, pauses: &mut Pauses) -> Fallible<()> {
    let mut connection = Connection::open(shared.addr).await?;
    while shared.phase.get() != Phase::Over {
        pauses.pause().await;
        let started = Instant::now();
        let reply = connection.exchange(&shared.request).await?;
        let latency = started.elapsed().saturating_sub(reply.upstream);
        if reply.status != 200 {
            let body = String::from_utf8_lossy(connection.body(&reply));
            return Err(format!("status {}: {body}", reply.status).into());
        }
        let mut run = shared.run.borrow_mut();
        run.answer_bytes = reply.body.len();
        if shared.phase.get() == Phase::Measured {
            run.latencies.push(latency);
        }
    }
    Ok(())
}

/// A client's pauses: random, but the same in every run.
struct Pauses {
    longest: Duration,
    state: u64,
}

impl Pauses {
    fn new(longest: Duration, number: usize) -> Self {
        // Any odd constant with well mixed bits: neighbours must not start alike.
        Self { longest, state: (number as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) }
    }

    async fn pause(&mut self) {
        if self.longest.is_zero() {
            return;
        }
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let share = (self.state >> 11) as f64 / (1u64 << 53) as f64;
        tokio::time::sleep(self.longest.mul_f64(share)).await;
    }
}
