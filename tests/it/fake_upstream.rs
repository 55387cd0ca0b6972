//! An upstream that misbehaves as told: each connection runs a script, and what it heard is kept.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::wait_until;

pub struct FakeUpstream {
    pub addr: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    stop: AtomicBool,
    connections: AtomicUsize,
    ended: AtomicUsize,
    heard: Mutex<Vec<Vec<u8>>>,
}

/// One connection, as its script sees it.
pub struct Wire {
    /// Which connection this is, from 0.
    pub number: usize,
    pub stream: TcpStream,
    state: Arc<State>,
}

impl FakeUpstream {
    /// Runs `script` for each connection, on a thread of its own; the connection closes when it returns.
    pub fn start(script: impl Fn(&mut Wire) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let (shared, script) = (state.clone(), Arc::new(script));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.stop.load(Ordering::Acquire) {
                    return;
                }
                let (Ok(stream), state, script) = (stream, shared.clone(), script.clone()) else { continue };
                stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
                stream.set_nodelay(true).unwrap();
                let number = state.connections.fetch_add(1, Ordering::AcqRel);
                state.heard.lock().unwrap().push(Vec::new());
                std::thread::spawn(move || {
                    let mut wire = Wire { number, stream, state };
                    script(&mut wire);
                    wire.state.ended.fetch_add(1, Ordering::AcqRel);
                });
            }
        });
        Self { addr, state }
    }

    /// Answers every request on every connection with these bytes.
    pub fn always(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::start(move |wire| {
            while wire.read_request().is_some() {
                wire.send(&answer);
            }
        })
    }

    /// As [`Self::always`], but closes after each answer.
    pub fn once_each(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::start(move |wire| {
            if wire.read_request().is_some() {
                wire.send(&answer);
            }
        })
    }

    /// Config that makes this the upstream of the usual route, with `more` keys of `[[upstreams]]`.
    pub fn config(&self, more: &str) -> String {
        format!("[[upstreams]]\nname = \"ai\"\nendpoints = [\"http://{}\"]\n{more}\n", self.addr)
    }

    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::Acquire)
    }

    /// What the connection of that number has sent us so far.
    pub fn heard(&self, number: usize) -> String {
        let heard = self.state.heard.lock().unwrap();
        heard.get(number).map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default()
    }

    /// How many requests were heard, on all connections.
    pub fn requests(&self) -> usize {
        let heard = self.state.heard.lock().unwrap();
        heard.iter().map(|bytes| String::from_utf8_lossy(bytes).matches("\r\nx-tollgate-user: ").count()).sum()
    }

    pub fn wait_until_all_ended(&self) {
        wait_until("the upstream's connections have ended", || {
            self.state.ended.load(Ordering::Acquire) == self.connections()
        });
    }
}

impl Drop for FakeUpstream {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Release);
        // Wakes the accepting thread; whether anybody answers does not matter.
        let _ = TcpStream::connect(self.addr);
    }
}

impl Wire {
    /// More of what the gateway sends; empty at the end.
    pub fn read_some(&mut self) -> Vec<u8> {
        let mut buffer = [0u8; 16 << 10];
        let n = self.stream.read(&mut buffer).unwrap_or(0);
        self.state.heard.lock().unwrap()[self.number].extend_from_slice(&buffer[..n]);
        buffer[..n].to_vec()
    }

    /// Reads until `text` has come. `false`: the connection ended before.
    pub fn read_until(&mut self, text: &str) -> bool {
        let mut seen = Vec::new();
        loop {
            let piece = self.read_some();
            if piece.is_empty() {
                return false;
            }
            // Only the end can be new.
            let known = seen.len().saturating_sub(text.len());
            seen.extend_from_slice(&piece);
            if seen[known..].windows(text.len()).any(|window| window == text.as_bytes()) {
                return true;
            }
        }
    }

    /// A request whose body, if any, has a length. `None`: the connection ended.
    pub fn read_request(&mut self) -> Option<String> {
        let mut seen = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&seen).into_owned();
            if let Some(end) = text.find("\r\n\r\n") {
                let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
                let length: usize = length.map_or(0, |n| n.parse().unwrap());
                if text.len() >= end + 4 + length {
                    return Some(text);
                }
            }
            let piece = self.read_some();
            if piece.is_empty() {
                return None;
            }
            seen.extend_from_slice(&piece);
        }
    }

    /// The other side may be gone; then nobody misses these bytes.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref());
    }

    /// Reads until the gateway closes.
    pub fn drain(&mut self) {
        while !self.read_some().is_empty() {}
    }
}
