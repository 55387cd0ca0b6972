//! A blocking HTTP/1.1 client that tells how far an answer came before the connection broke.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// Longest wait for bytes on a connection that should not be silent.
const PATIENCE: Duration = Duration::from_secs(60);

/// How far an answer came.
#[derive(Debug, Default)]
pub struct Answer {
    /// `None`: the connection ended before a whole head.
    pub status: Option<u16>,
    pub headers: Vec<(String, String)>,
    /// What came of the body.
    pub body: Vec<u8>,
    /// The body came to its end.
    pub complete: bool,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

pub struct Conn {
    stream: TcpStream,
    input: Vec<u8>,
}

impl Conn {
    pub fn open(to: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream, input: Vec::new() })
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut buffer = [0u8; 16 << 10];
        match self.stream.read(&mut buffer)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                self.input.extend_from_slice(&buffer[..n]);
                Ok(())
            }
        }
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(at) = self.input.windows(2).position(|pair| pair == b"\r\n") {
                let line = String::from_utf8_lossy(&self.input[..at]).into_owned();
                self.input.drain(..at + 2);
                return Ok(line);
            }
            self.fill()?;
        }
    }

    fn exactly(&mut self, len: usize) -> io::Result<Vec<u8>> {
        while self.input.len() < len {
            self.fill()?;
        }
        Ok(self.input.drain(..len).collect())
    }

    /// Sends a request and reads its answer as far as it comes. `leave` after the head, without the body.
    pub fn call(&mut self, request: &[u8], leave: bool) -> Answer {
        let mut answer = Answer::default();
        // An error is told by what the answer lacks.
        let _ = self.exchange(request, leave, &mut answer);
        answer
    }

    fn exchange(&mut self, request: &[u8], leave: bool, answer: &mut Answer) -> io::Result<()> {
        self.stream.write_all(request)?;
        let status_line = self.line()?;
        let status = status_line.split(' ').nth(1).and_then(|word| word.parse().ok());
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':') {
                answer.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
        }
        answer.status = status;
        if leave {
            return Ok(());
        }
        if answer.header("transfer-encoding") == Some("chunked") {
            loop {
                let size = usize::from_str_radix(&self.line()?, 16).map_err(|_| io::ErrorKind::InvalidData)?;
                let data = self.exactly(size)?;
                self.line()?;
                if size == 0 {
                    break;
                }
                answer.body.extend_from_slice(&data);
            }
        } else {
            let len = answer.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
            answer.body = self.exactly(len)?;
        }
        answer.complete = true;
        Ok(())
    }
}

/// A request's bytes.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: Option<&Value>) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: gateway.localhost\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    let body = body.map(Value::to_string).unwrap_or_default();
    if !body.is_empty() {
        text.push_str(&format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len()));
    }
    text.push_str("\r\n");
    text.push_str(&body);
    text.into_bytes()
}

/// One request on a connection of its own; an empty answer when there is nobody.
pub fn once(to: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&Value>) -> Answer {
    match Conn::open(to) {
        Ok(mut conn) => conn.call(&request(method, path, headers, body), false),
        Err(_) => Answer::default(),
    }
}
