//! A mail server for the tests: it takes letters over SMTP, or refuses them as it is told.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use parking_lot::Mutex;

use super::wait_until;

/// A letter as it came.
#[derive(Clone, Debug)]
pub struct Letter {
    pub to: String,
    pub raw: String,
}

impl Letter {
    pub fn header(&self, name: &str) -> String {
        let start = format!("{}:", name.to_lowercase());
        let line = self.raw.lines().take_while(|line| !line.is_empty());
        let found = line.into_iter().find(|line| line.to_lowercase().starts_with(&start));
        found.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    }

    /// Quoted-printable undone, as far as links need it.
    pub fn text(&self) -> String {
        self.raw.replace("=\r\n", "").replace("=3D", "=")
    }

    /// The first link in it.
    pub fn link(&self) -> String {
        let text = self.text();
        let at = text.find("http").unwrap_or_else(|| panic!("no link in {text}"));
        text[at..].split_whitespace().next().unwrap().to_owned()
    }

    /// The token of the first link in it.
    pub fn token(&self) -> String {
        self.link().split_once("token=").unwrap().1.to_owned()
    }
}

#[derive(Default)]
struct State {
    letters: Mutex<Vec<Letter>>,
    logins: Mutex<Vec<String>>,
    /// The answer to every letter; 0: taken.
    refusal: AtomicU16,
}

pub struct MailServer {
    pub addr: SocketAddr,
    state: Arc<State>,
}

impl MailServer {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (addr, state) = (listener.local_addr().unwrap(), Arc::new(State::default()));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || serve(&stream, &shared).ok());
            }
        });
        Self { addr, state }
    }

    /// The config with which the gateway sends its mail here.
    pub fn config(&self) -> String {
        format!(
            "public_base_url = \"https://ai.example.com/\"\n[mail]\ntransport = \"smtp\"\nhost = \"127.0.0.1\"\nport = {}\n\
             tls = \"none\"\nfrom = \"noreply@example.com\"\nfrom_name = \"AI\"\n",
            self.addr.port()
        )
    }

    /// From now on every letter is answered so; 0 takes them.
    pub fn refuse_with(&self, status: u16) {
        self.state.refusal.store(status, Ordering::SeqCst);
    }

    pub fn letters(&self) -> Vec<Letter> {
        self.state.letters.lock().clone()
    }

    /// Of every login, what was sent.
    pub fn logins(&self) -> Vec<String> {
        self.state.logins.lock().clone()
    }

    /// Waits for the newest letter to `to` with this subject.
    pub fn letter(&self, to: &str, subject: &str) -> Letter {
        let newest = || {
            let letters = self.letters();
            letters.into_iter().rev().find(|letter| letter.to == to && letter.header("subject").contains(subject))
        };
        wait_until(&format!("a letter \"{subject}\" to {to}"), || newest().is_some());
        newest().unwrap()
    }

    /// How many letters came to `to` with this subject.
    pub fn count(&self, to: &str, subject: &str) -> usize {
        self.letters().iter().filter(|l| l.to == to && l.header("subject").contains(subject)).count()
    }
}

fn serve(stream: &TcpStream, state: &State) -> std::io::Result<()> {
    let mut input = BufReader::new(stream.try_clone()?);
    let mut output = stream;
    output.write_all(b"220 mail.test ready\r\n")?;
    let mut to = String::new();
    loop {
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let word = line.trim().to_uppercase();
        let answer = if word.starts_with("EHLO") {
            "250-mail.test\r\n250-AUTH PLAIN LOGIN\r\n250 8BITMIME\r\n".to_owned()
        } else if word.starts_with("AUTH") {
            state.logins.lock().push(line.trim().to_owned());
            "235 welcome\r\n".to_owned()
        } else if word.starts_with("RCPT") {
            to = line.split(['<', '>']).nth(1).unwrap_or_default().to_owned();
            "250 ok\r\n".to_owned()
        } else if word.starts_with("DATA") {
            output.write_all(b"354 go on\r\n")?;
            let mut raw = String::new();
            loop {
                let mut line = String::new();
                input.read_line(&mut line)?;
                if line == ".\r\n" {
                    break;
                }
                raw.push_str(line.strip_prefix('.').unwrap_or(&line));
            }
            match state.refusal.load(Ordering::SeqCst) {
                0 => {
                    state.letters.lock().push(Letter { to: to.clone(), raw });
                    "250 taken\r\n".to_owned()
                }
                status => format!("{status} not now\r\n"),
            }
        } else if word.starts_with("QUIT") {
            output.write_all(b"221 bye\r\n")?;
            return Ok(());
        } else {
            "250 ok\r\n".to_owned()
        };
        output.write_all(answer.as_bytes())?;
    }
}
