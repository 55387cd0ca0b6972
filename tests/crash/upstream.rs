//! The upstream that never dies: a small AI service that counts, by call, what it served.
//!
//! Owns the answers' texts, so that the journal's records can be compared with what was really said.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

/// How many calls each call id has made here.
#[derive(Clone, Default)]
pub struct Tally(Arc<Mutex<HashMap<String, u32>>>);

impl Tally {
    pub fn served(&self, call: &str) -> u32 {
        self.0.lock().unwrap().get(call).copied().unwrap_or(0)
    }

    fn count(&self, call: &str) {
        *self.0.lock().unwrap().entry(call.to_owned()).or_default() += 1;
    }

    /// A new data folder begins: what was counted before is nobody's any more.
    pub fn forget(&self) {
        self.0.lock().unwrap().clear();
    }
}

pub struct Upstream {
    pub addr: SocketAddr,
    pub tally: Tally,
}

impl Upstream {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (addr, tally) = (listener.local_addr().unwrap(), Tally::default());
        let shared = tally.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let tally = shared.clone();
                // It ends with its connection, which dies with the gateway.
                std::thread::spawn(move || serve(stream, &tally));
            }
        });
        Self { addr, tally }
    }
}

/// What a call is answered with.
pub fn text_for(call: &str) -> String {
    format!("answer to {call}, {}", "and so on ".repeat(call.len() % 7))
}

fn serve(stream: TcpStream, tally: &Tally) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = BufReader::new(stream.try_clone()?);
    let mut output = stream;
    loop {
        let mut length = 0;
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            return Ok(());
        }
        while line != "\r\n" {
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            line.clear();
            input.read_line(&mut line)?;
        }
        let mut body = vec![0; length];
        input.read_exact(&mut body)?;
        let request: Value = serde_json::from_slice(&body).unwrap_or_default();
        let call = request["messages"][0]["content"].as_str().unwrap_or_default().to_owned();
        tally.count(&call);
        answer(&mut output, &request, &call)?;
    }
}

fn answer(output: &mut TcpStream, request: &Value, call: &str) -> io::Result<()> {
    let number = |name: &str| request[name].as_u64().unwrap_or(0);
    std::thread::park_timeout(Duration::from_millis(number("x_delay_ms")));
    if request["x_fail"] == true {
        return plain(output, "503 Service Unavailable", &json!({"error": {"message": "asked for"}}));
    }
    let tokens = number("x_tokens");
    let usage = json!({"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": 3 + tokens});
    let text = text_for(call);
    if request["stream"] != true {
        let choice = json!({"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"});
        let body = json!({"id": "x", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage});
        return plain(output, "200 OK", &body);
    }
    output.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")?;
    let mut chunk = |data: String| output.write_all(format!("{:x}\r\n{data}\r\n", data.len()).as_bytes());
    for piece in text.split_inclusive(' ') {
        let choice = json!({"index": 0, "delta": {"content": piece}});
        let event = json!({"id": "x", "object": "chat.completion.chunk", "model": "m", "choices": [choice]});
        chunk(format!("data: {event}\n\n"))?;
        std::thread::park_timeout(Duration::from_micros(number("x_pause_us")));
    }
    let last = json!({"id": "x", "object": "chat.completion.chunk", "model": "m", "choices": [], "usage": usage});
    chunk(format!("data: {last}\n\ndata: [DONE]\n\n"))?;
    chunk(String::new())
}

fn plain(output: &mut TcpStream, status: &str, body: &Value) -> io::Result<()> {
    let body = body.to_string();
    let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    output.write_all(format!("{head}{body}").as_bytes())
}
