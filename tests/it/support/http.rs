//! A plain blocking HTTP/1.1 client that shows exactly what came back, and lets a test send whatever it likes.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use serde_json::Value;

/// An answer as it came.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case, in the order they came.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The body's chunks, when it was chunked.
    pub chunks: Vec<Vec<u8>>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    pub fn error_code(&self) -> String {
        self.json()["error_code"].as_str().unwrap_or_default().to_owned()
    }
}

/// One connection.
pub struct Conn {
    pub stream: TcpStream,
    input: Vec<u8>,
}

impl Conn {
    pub fn open(to: SocketAddr) -> Self {
        Self::over(TcpStream::connect(to).unwrap())
    }

    pub fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(super::PATIENCE)).unwrap();
        Self { stream, input: Vec::new() }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// Sends, though the other side may have closed already.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    pub fn close_write(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut buffer = [0u8; 16 << 10];
        let n = self.stream.read(&mut buffer)?;
        self.input.extend_from_slice(&buffer[..n]);
        Ok(n)
    }

    /// Whether the other side closes without another byte.
    pub fn is_closed(&mut self) -> bool {
        self.input.is_empty() && matches!(self.fill(), Ok(0) | Err(_)) && self.input.is_empty()
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(at) = self.input.windows(2).position(|w| w == b"\r\n") {
                let line = String::from_utf8_lossy(&self.input[..at]).into_owned();
                self.input.drain(..at + 2);
                return Ok(line);
            }
            if self.fill()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// So many bytes of whatever comes.
    pub fn exactly(&mut self, len: usize) -> io::Result<Vec<u8>> {
        while self.input.len() < len {
            if self.fill()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.input.drain(..len).collect())
    }

    /// Status and headers alone; the body is read with what follows.
    pub fn read_head(&mut self) -> io::Result<Answer> {
        let status_line = self.line()?;
        let status = status_line.split(' ').nth(1).and_then(|s| s.parse().ok());
        let status = status.unwrap_or_else(|| panic!("not a status line: {status_line}"));
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(Answer { status, headers, body: Vec::new(), chunks: Vec::new() });
            }
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("not a field: {line}"));
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    /// The next chunk of a chunked body; empty at its end.
    pub fn read_chunk(&mut self) -> io::Result<Vec<u8>> {
        let line = self.line()?;
        let size =
            usize::from_str_radix(line.split(';').next().unwrap(), 16).unwrap_or_else(|_| panic!("chunk size {line}"));
        let data = self.exactly(size)?;
        assert_eq!(self.line()?, "", "a chunk ends in CRLF, and there are no trailers");
        Ok(data)
    }

    /// Whatever comes until the other side closes, cleanly or not.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.fill().is_ok_and(|n| n > 0) {}
        std::mem::take(&mut self.input)
    }

    /// A whole answer. `to_head`: the request was HEAD.
    pub fn read_answer_to(&mut self, to_head: bool) -> io::Result<Answer> {
        let mut answer = self.read_head()?;
        if to_head || answer.status < 200 || answer.status == 204 || answer.status == 304 {
            return Ok(answer);
        }
        if answer.header("transfer-encoding") == Some("chunked") {
            loop {
                let chunk = self.read_chunk()?;
                if chunk.is_empty() {
                    return Ok(answer);
                }
                answer.body.extend_from_slice(&chunk);
                answer.chunks.push(chunk);
            }
        }
        answer.body = match answer.header("content-length") {
            Some(len) => self.exactly(len.parse().unwrap())?,
            None => {
                while self.fill()? > 0 {}
                std::mem::take(&mut self.input)
            }
        };
        Ok(answer)
    }

    pub fn read_answer(&mut self) -> Answer {
        self.read_answer_to(false).unwrap_or_else(|e| panic!("no answer: {e}"))
    }

    /// Sends a request with its length and reads the answer.
    pub fn call(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&Value>) -> Answer {
        self.send(request(method, path, headers, body));
        self.read_answer_to(method == "HEAD").unwrap_or_else(|e| panic!("no answer: {e}"))
    }
}

/// A request's bytes.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: Option<&Value>) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: gateway.localhost\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    let body = body.map(Value::to_string);
    if let Some(body) = &body {
        text.push_str(&format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len()));
    }
    text.push_str("\r\n");
    text.push_str(&body.unwrap_or_default());
    text.into_bytes()
}

/// One request on a connection of its own.
pub fn call(to: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&Value>) -> Answer {
    Conn::open(to).call(method, path, headers, body)
}

/// As [`call`], with a body that need not be JSON.
pub fn call_raw(to: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let fields: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n{fields}content-length: {}\r\n\r\n", body.len());
    let mut conn = Conn::open(to);
    conn.send([head.as_bytes(), body].concat());
    conn.read_answer()
}
