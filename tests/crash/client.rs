//! The clients that never die: what they meant to do, and what they were told, written down as it happens.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use serde_json::{Value, json};

use crate::site::{User, WRITTEN, admin_call, metric};
use crate::upstream::text_for;
use crate::wire::{Answer, Conn, request};

/// What a call costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// One conversation.
    Fixed,
    /// Credits: so many are set aside, so many paid when the call ends well.
    Metered { held: i64, paid: i64 },
}

/// How far the client saw the call come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// No byte of an answer came.
    Unknown,
    /// The answer began: its debit was acknowledged.
    Begun,
    /// The upstream failed, and the client was told so.
    Failed,
}

#[derive(Clone, Debug)]
pub struct Call {
    pub id: String,
    /// Index of the user.
    pub user: usize,
    pub cost: Cost,
    pub fate: Fate,
    /// A later call on the same connection was answered, so this one's settlement is on disk too.
    pub followed: bool,
    /// It has an idempotency key, so it may be sent again.
    pub keyed: bool,
    /// How often it was sent.
    pub attempts: u32,
    /// It was sent again, the answer came whole, and all that follows from it is on disk.
    pub settled: bool,
    pub request: Vec<u8>,
}

/// What staff did to the account that makes no calls.
#[derive(Clone, Copy, Debug, Default)]
pub struct Grants {
    pub acknowledged: i64,
    pub attempted: i64,
}

/// What was seen during one life of the process.
#[derive(Default)]
pub struct Seen {
    pub calls: Vec<Call>,
    /// Conversation records that a page showed, by their ids.
    pub records: BTreeMap<u64, Value>,
    /// The counter of written records, as last read.
    pub written: u64,
    pub grants: Grants,
    /// What must never be answered.
    pub complaints: Vec<String>,
}

/// The habits of the clients, by user: two on one account, one alone, one that pays by use, one that leaves.
pub const CALLERS: [(usize, Habit); 5] =
    [(0, Habit::Talks), (0, Habit::Talks), (1, Habit::Talks), (2, Habit::PaysByUse), (3, Habit::Leaves)];
/// Users that call, and after them the one whose account only staff changes.
pub const USERS: usize = 5;
pub const GRANTED_USER: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    Talks,
    PaysByUse,
    Leaves,
}

/// Everything the clients need to know about the server.
pub struct Target<'a> {
    pub public: SocketAddr,
    pub admin: SocketAddr,
    pub users: &'a [User],
    pub token: &'a str,
    /// Begins every call's id.
    pub prefix: String,
    pub seed: u64,
    /// How the granted account stood before.
    pub grants: Grants,
    /// A fault makes 503 a legitimate answer.
    pub may_refuse: bool,
}

/// What the clients and whoever causes a fault tell each other.
#[derive(Default)]
pub struct Alarm {
    /// Calls that the gateway refused with 503.
    pub refused: AtomicU64,
    /// The gateway has said that it is not ready: from now on no call may be served.
    pub closed: AtomicBool,
    stop: AtomicBool,
}

impl Alarm {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// Keeps the gateway busy until `during` has run, or until it is gone.
pub fn keep_busy<R>(target: &Target<'_>, during: impl FnOnce(&Alarm) -> R) -> (Seen, R) {
    let alarm = &Alarm::default();
    let seen = Mutex::new(Seen { grants: target.grants, ..Seen::default() });
    let result = std::thread::scope(|scope| {
        for (nth, (user, habit)) in CALLERS.iter().enumerate() {
            let (seen, random) = (&seen, fastrand::Rng::with_seed(target.seed.wrapping_mul(31) + nth as u64));
            let caller =
                Caller { target, alarm, seen, random, nth, user: *user, habit: *habit, made: AtomicU32::new(0) };
            scope.spawn(move || caller.run());
        }
        scope.spawn(|| read_logs(target, alarm, &seen));
        scope.spawn(|| grant(target, alarm, &seen));
        let result = during(alarm);
        alarm.stop.store(true, Ordering::Release);
        result
    });
    (seen.into_inner().unwrap(), result)
}

struct Caller<'a> {
    target: &'a Target<'a>,
    alarm: &'a Alarm,
    seen: &'a Mutex<Seen>,
    random: fastrand::Rng,
    nth: usize,
    user: usize,
    habit: Habit,
    made: AtomicU32,
}

impl Caller<'_> {
    fn run(mut self) {
        while !self.alarm.stopped() {
            let Ok(conn) = Conn::open(self.target.public) else { return };
            self.use_connection(conn);
        }
    }

    fn use_connection(&mut self, mut conn: Conn) {
        let mut before: Option<usize> = None;
        while !self.alarm.stopped() {
            let mut call = self.next_call();
            let closed = self.alarm.closed.load(Ordering::Acquire);
            let answer = conn.call(&call.request, self.habit == Habit::Leaves);
            let goes_on = self.judge(&mut call, &answer);
            if closed && call.fate == Fate::Begun {
                self.complain(format!("{}: served after the gateway said it was not ready", call.id));
            }
            let mut seen = self.seen.lock().unwrap();
            if call.fate == Fate::Begun
                && let Some(before) = before
            {
                seen.calls[before].followed = true;
            }
            before = Some(seen.calls.len());
            seen.calls.push(call);
            drop(seen);
            if !goes_on {
                return;
            }
        }
    }

    fn next_call(&mut self) -> Call {
        let nth = self.made.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}-{}-{nth}", self.target.prefix, self.nth);
        let paid = self.random.i64(1..500);
        // So far apart that no answer's text outgrows what is held.
        let held = paid + self.random.i64(100..500);
        let keyed = self.random.u8(0..3) > 0;
        let metered = self.habit == Habit::PaysByUse;
        let body = json!({
            "model": "m",
            "messages": [{"role": "user", "content": id}],
            "stream": self.random.bool(),
            "max_tokens": held,
            "x_tokens": paid,
            "x_delay_ms": if self.random.u8(0..4) == 0 { self.random.u64(0..12) } else { 0 },
            "x_pause_us": self.random.u64(0..900),
            "x_fail": self.habit != Habit::Leaves && self.random.u8(0..12) == 0,
        });
        let path = if metered { "/metered/chat/completions" } else { "/v1/chat/completions" };
        let bearer = format!("Bearer {}", self.target.users[self.user].key);
        let headers = [("authorization", bearer.as_str()), ("idempotency-key", id.as_str())];
        let request = request("POST", path, &headers[..1 + usize::from(keyed)], Some(&body));
        let cost = if metered { Cost::Metered { held, paid } } else { Cost::Fixed };
        let (fate, followed, settled) = (Fate::Unknown, false, false);
        Call { id, user: self.user, cost, fate, followed, keyed, attempts: 1, settled, request }
    }

    /// Says whether the connection goes on.
    fn judge(&self, call: &mut Call, answer: &Answer) -> bool {
        match answer.status {
            None => return false,
            Some(200) => call.fate = Fate::Begun,
            Some(503) if answer.text().contains("asked for") => call.fate = Fate::Failed,
            // Cut off in its body: nobody can say whose refusal it was.
            Some(503) if !answer.complete && self.habit != Habit::Leaves => return false,
            Some(503) if self.target.may_refuse => {
                self.alarm.refused.fetch_add(1, Ordering::AcqRel);
                if answer.header("retry-after").is_none() {
                    self.complain(format!("{}: 503 without Retry-After: {}", call.id, answer.text()));
                }
                return false;
            }
            Some(status) => self.complain(format!("{}: answered {status}: {}", call.id, answer.text())),
        }
        if answer.complete && call.fate == Fate::Begun && said(answer) != text_for(&call.id) {
            self.complain(format!("{}: another answer came: {}", call.id, answer.text()));
        }
        answer.complete
    }

    fn complain(&self, what: String) {
        self.seen.lock().unwrap().complaints.push(what);
    }
}

/// What came of sending a call again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeated {
    /// The gateway died meanwhile, or the answer did not come whole.
    Broken,
    Answered,
}

/// Sends a call again, as a client does that never heard of it, or not to the end.
///
/// # Errors
/// An answer that a repeated call must not get.
pub fn repeat(conn: &mut Conn, call: &mut Call) -> Result<Repeated, String> {
    call.attempts += 1;
    let answer = conn.call(&call.request, false);
    let complain = |what: &str| Err(format!("{}, sent again: {what}: {answer:?}", call.id));
    match answer.status {
        _ if !answer.complete => {
            if answer.status == Some(200) {
                call.fate = Fate::Begun;
            }
            Ok(Repeated::Broken)
        }
        Some(200) if said(&answer) != text_for(&call.id) => complain("another answer came"),
        Some(200) => {
            call.fate = Fate::Begun;
            Ok(Repeated::Answered)
        }
        Some(503) if answer.text().contains("asked for") && call.fate != Fate::Begun => {
            call.fate = Fate::Failed;
            Ok(Repeated::Answered)
        }
        _ => complain("refused"),
    }
}

/// The text of a whole answer, plain or streamed.
pub fn said(answer: &Answer) -> String {
    if answer.header("content-type").is_some_and(|kind| kind.starts_with("application/json")) {
        return answer.json()["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned();
    }
    let body = answer.text();
    let events = body.lines().filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok());
    events.filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect()
}

/// Reads the conversation log as an admin does; what a page shows is acknowledged.
fn read_logs(target: &Target<'_>, alarm: &Alarm, seen: &Mutex<Seen>) {
    let mut turn = 0;
    while !alarm.stopped() {
        let user = target.users[turn % GRANTED_USER].id;
        turn += 1;
        let path = format!("/v1/admin-panel/message-logs/{user}?page=1&page_size=50");
        let answer = admin_call(target.admin, target.token, "GET", &path, None);
        let written = metric(target.admin, WRITTEN);
        if answer.status.is_none() || written.is_none() {
            return;
        }
        if answer.status == Some(503) && target.may_refuse {
            // Who reads a conversation is written down too.
            return;
        }
        let mut seen = seen.lock().unwrap();
        seen.written = seen.written.max(written.unwrap_or(0.0) as u64);
        if answer.status != Some(200) {
            seen.complaints.push(format!("the log page was answered {:?}: {}", answer.status, answer.text()));
            return;
        }
        for item in answer.json()["items"].as_array().into_iter().flatten() {
            match item["id"].as_u64() {
                Some(id) => drop(seen.records.insert(id, item.clone())),
                None => seen.complaints.push(format!("the log page showed {item}")),
            }
        }
        drop(seen);
        std::thread::park_timeout(std::time::Duration::from_millis(5));
    }
}

/// Sets one account's balances as an admin does, a little higher each time.
fn grant(target: &Target<'_>, alarm: &Alarm, seen: &Mutex<Seen>) {
    let path = format!("/v1/admin-panel/users/{}", target.users[GRANTED_USER].id);
    let mut amount = target.grants.attempted;
    while !alarm.stopped() {
        amount += 1;
        seen.lock().unwrap().grants.attempted = amount;
        let body = json!({
            "credits": {"main": amount, "reset": amount},
            "limits": {"conversation_limit": amount, "reset": amount},
        });
        let answer = admin_call(target.admin, target.token, "PUT", &path, Some(&body));
        match answer.status {
            Some(200) => seen.lock().unwrap().grants.acknowledged = amount,
            None => return,
            Some(503) if target.may_refuse => return,
            Some(status) => {
                let complaint = format!("a grant was answered {status}: {}", answer.text());
                seen.lock().unwrap().complaints.push(complaint);
                return;
            }
        }
        std::thread::park_timeout(std::time::Duration::from_millis(3));
    }
}
