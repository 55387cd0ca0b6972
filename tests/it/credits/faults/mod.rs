//! The fault matrix: whatever breaks, wherever it breaks, the books say exactly what the rule says.
//!
//! After every case: what was charged is the amount in the table, the balance fell by as much and never rose, nothing is
//! held, no hold is open, and the meter adds up.

mod clients;
pub mod panics;
mod reports;
mod shutdown;
mod upstreams;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::Bank;
use crate::fake_upstream::{FakeUpstream, Wire};
use crate::support::http::request;
use crate::support::{Conn, Options, chat_body, wait_until};

/// The prices of the matrix. A metered call with `max_tokens` 100 sets [`HELD`] aside.
const ROUTES: &str = r#"
routes = [
    { path = "/v1/fixed/*", upstream = "ai", cost = { conversations = 1 } },
    { path = "/v1/metered/*", upstream = "ai", cost = { credits = { per_call = 0.5, per_output_token = 0.01 } } },
]
"#;
const HELD: Charge = Charge(1_500_000);
const PER_CALL: Charge = Charge(500_000);

/// Millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Charge(i64);

const NOTHING: Charge = Charge(0);
const ONE: Charge = Charge(1_000_000);

/// The call and so many tokens.
const fn tokens(count: i64) -> Charge {
    Charge(PER_CALL.0 + count * 10_000)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cost {
    Fixed,
    Metered,
}

impl Cost {
    const ALL: [Self; 2] = [Self::Fixed, Self::Metered];

    fn meter(self) -> &'static str {
        if self == Self::Fixed { "conversations" } else { "credits" }
    }

    fn path(self, case: &str) -> String {
        format!("/v1/{}/{case}", if self == Self::Fixed { "fixed" } else { "metered" })
    }

    /// What is charged, when `fixed` and `metered` are what the rule says for each.
    fn of(self, fixed: Charge, metered: Charge) -> Charge {
        if self == Self::Fixed { fixed } else { metered }
    }

    fn held(self) -> Charge {
        self.of(ONE, HELD)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Plain,
    Sse,
}

impl Form {
    const ALL: [Self; 2] = [Self::Plain, Self::Sse];

    fn head(self) -> &'static str {
        match self {
            Self::Plain => "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 10000\r\n\r\n",
            Self::Sse => "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
        }
    }

    /// The beginning of an answer, in which ten tokens have been produced.
    fn beginning(self) -> Vec<u8> {
        match self {
            Self::Plain => {
                let text = "a".repeat(40);
                format!("{{\"choices\":[{{\"index\":0,\"message\":{{\"role\":\"assistant\",\"content\":\"{text}")
                    .into_bytes()
            }
            Self::Sse => (0..10).flat_map(|_| chunk(EVENT)).collect(),
        }
    }
}

/// One token of a stream.
const EVENT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"ab\"}}]}\n\n";

const PRODUCED: Charge = tokens(10);

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Farewell {
    Close,
    Reset,
}

impl Farewell {
    const ALL: [Self; 2] = [Self::Close, Self::Reset];

    fn say(self, stream: &std::net::TcpStream) {
        if self == Self::Reset {
            socket2::SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        }
    }
}

fn chunk(data: &str) -> Vec<u8> {
    format!("{:x}\r\n{data}\r\n", data.len()).into_bytes()
}

/// An upstream's step waits until the test says so.
#[derive(Clone, Default)]
struct Signal(Arc<AtomicUsize>);

impl Signal {
    fn give(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }

    fn wait_for(&self, count: usize) {
        wait_until("the test has come so far", || self.count() >= count);
    }
}

/// A gateway with both prices in front of an upstream that does as a script says.
struct Lab {
    bank: Bank,
    fake: FakeUpstream,
}

/// One meter as the admin sees it, in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Books {
    balance: i64,
    held: i64,
    spent: i64,
    granted: i64,
}

impl Lab {
    fn open(script: impl Fn(&mut Wire) + Send + Sync + 'static) -> Self {
        Self::with("", "", script)
    }

    fn with(toml: &str, upstream: &str, script: impl Fn(&mut Wire) + Send + Sync + 'static) -> Self {
        let fake = FakeUpstream::start(script);
        let toml = format!("{ROUTES}\n{}\n{toml}", fake.config(upstream));
        let bank = Bank::open(Options { toml, ..Options::default() });
        bank.set_conversations(1000);
        bank.set_credits(1000);
        Self { bank, fake }
    }

    fn books(&self, cost: Cost) -> Books {
        let path = format!("/v1/admin-panel/users/{}", self.bank.user.id);
        let user = self.bank.app.admin_call(&self.bank.admin, "GET", &path, None).json();
        let meter = &user["user"]["meters"][cost.meter()];
        let number = |part: &str| (meter[part].as_f64().unwrap_or_else(|| panic!("{user}")) * 1e6).round() as i64;
        Books { balance: number("balance"), held: number("held"), spent: number("spent"), granted: number("granted") }
    }

    /// Runs one case and compares the books before and after.
    fn charges(&self, what: &str, cost: Cost, expected: Charge, case: impl FnOnce(&Self)) {
        let before = self.books(cost);
        assert_eq!(before.held, 0, "{what}: something is held before it begins");
        case(self);
        self.wait_until_over(what);
        let after = self.books(cost);
        let expected = Books { balance: before.balance - expected.0, spent: before.spent + expected.0, ..before };
        assert_eq!(after, expected, "{what}, {cost:?}");
        assert_eq!(after.granted, after.balance + after.held + after.spent, "{what}, {cost:?}");
        assert!(after.balance >= 0, "{what}, {cost:?}");
    }

    fn wait_until_over(&self, what: &str) {
        wait_until(&format!("every hold is settled: {what}"), || {
            let app = &self.bank.app;
            app.metric("tollgate_holds_open") == 0.0 && app.metric("tollgate_in_flight") == 0.0
        });
    }

    /// The bytes of a call; a metered one names its most tokens.
    fn request(&self, method: &str, cost: Cost, case: &str, form: Form) -> Vec<u8> {
        let bearer = format!("Bearer {}", self.bank.user.key);
        let headers = [("authorization", bearer.as_str())];
        request(method, &cost.path(case), &headers, Some(&body(form)))
    }

    fn post(&self, cost: Cost, case: &str, form: Form) -> Conn {
        let mut conn = Conn::open(self.bank.app.public);
        conn.send(self.request("POST", cost, case, form));
        conn
    }
}

fn body(form: Form) -> Value {
    chat_body(json!({"max_tokens": 100, "stream": form == Form::Sse}))
}

/// The last part of the path a request asks for, and the form it wants.
fn case_of(request: &str) -> (String, Form) {
    let path = request.split(' ').nth(1).unwrap_or_default();
    let form = if request.contains("\"stream\":true") { Form::Sse } else { Form::Plain };
    (path.rsplit('/').next().unwrap_or_default().to_owned(), form)
}

/// Reads an answer's head and all of [`Form::beginning`], so that the gateway has surely seen it.
fn read_beginning(conn: &mut Conn, form: Form) {
    assert_eq!(conn.read_head().unwrap().status, 200);
    match form {
        Form::Plain => assert_eq!(conn.exactly(form.beginning().len()).unwrap(), form.beginning()),
        Form::Sse => {
            let mut seen = 0;
            while seen < 10 * EVENT.len() {
                seen += conn.read_chunk().unwrap().len();
            }
        }
    }
}
