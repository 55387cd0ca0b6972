//! Routes with places: never more users inside than there are places, and whoever leaves makes room, however he leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use serde_json::json;

use crate::credits::faults::panics::set_trap;
use crate::fake_upstream::{FakeUpstream, Wire};
use crate::refusals::NOON;
use crate::support::http::{self, Answer, Conn, request};
use crate::support::{Options, TestApp, chat_body, wait_until};

const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// An upstream that keeps its visitors until they are let go.
#[derive(Default)]
struct Hall {
    state: Mutex<Visitors>,
    changed: Condvar,
}

#[derive(Default)]
struct Visitors {
    /// Calls by user.
    inside: BTreeMap<String, usize>,
    /// The most users that were ever inside.
    most: usize,
    free: BTreeSet<String>,
    open: bool,
}

impl Hall {
    fn visit(&self, name: &str) {
        let mut state = self.state.lock().unwrap();
        *state.inside.entry(name.to_owned()).or_default() += 1;
        state.most = state.most.max(state.inside.len());
        let mut state = self.changed.wait_while(state, |state| !state.open && !state.free.contains(name)).unwrap();
        let calls = state.inside.get_mut(name).unwrap();
        *calls -= 1;
        if *calls == 0 {
            state.inside.remove(name);
        }
    }

    fn serve(&self, wire: &mut Wire) {
        while let Some(text) = wire.read_request() {
            let name = text.lines().find_map(|line| line.strip_prefix("x-tollgate-username: ")).unwrap().to_owned();
            self.visit(&name);
            wire.send(ANSWER);
        }
    }

    fn let_go(&self, name: &str) {
        self.state.lock().unwrap().free.insert(name.to_owned());
        self.changed.notify_all();
    }

    fn open(&self) {
        self.state.lock().unwrap().open = true;
        self.changed.notify_all();
    }

    fn inside(&self) -> usize {
        self.state.lock().unwrap().inside.len()
    }
}

/// Opens the hall also when a test fails, so that nobody waits for its end.
struct Venue {
    hall: Arc<Hall>,
    fake: FakeUpstream,
}

impl Venue {
    fn new() -> Self {
        let hall = Arc::new(Hall::default());
        let inner = hall.clone();
        Self { fake: FakeUpstream::start(move |wire| inner.serve(wire)), hall }
    }
}

impl Drop for Venue {
    fn drop(&mut self) {
        self.hall.open();
    }
}

fn routes(settings: &str) -> String {
    format!("[[routes]]\npath = \"/chat\"\nupstream = \"ai\"\ncost = {{ conversations = 1 }}\n{settings}\n")
}

fn start(fake: &FakeUpstream, settings: &str, more: &str) -> TestApp {
    TestApp::with(Options {
        toml: format!("{}{}{more}", fake.config(""), routes(settings)),
        manual_clock: Some(NOON),
        ..Options::default()
    })
}

fn bearer(key: &str) -> String {
    format!("Bearer {key}")
}

fn call_bytes(path: &str, key: &str) -> Vec<u8> {
    request("POST", path, &[("authorization", &bearer(key))], Some(&chat_body(json!({}))))
}

/// Sends a call and does not wait for its answer.
fn begin_at(app: &TestApp, path: &str, key: &str) -> Conn {
    let mut conn = Conn::open(app.public);
    conn.send(call_bytes(path, key));
    conn
}

fn begin(app: &TestApp, key: &str) -> Conn {
    begin_at(app, "/chat", key)
}

fn call(app: &TestApp, key: &str) -> Answer {
    begin(app, key).read_answer()
}

#[track_caller]
fn assert_full(answer: &Answer, of: &str, retry_after: u64) {
    assert_eq!((answer.status, answer.error_code().as_str()), (429, "TOO_MANY_IN_FLIGHT"), "{}", answer.text());
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with(&format!("{of} is full: at most ")), "{message}");
    assert_eq!(answer.header("retry-after"), Some(retry_after.to_string().as_str()));
}

fn users(app: &TestApp, route: &str) -> f64 {
    app.metric(&format!("tollgate_route_users{{route=\"{route}\"}}"))
}

/// A call ends a moment after its answer.
fn all_over(app: &TestApp) {
    wait_until("the calls are over", || app.metric("tollgate_in_flight") == 0.0);
}

fn wait_for_users(app: &TestApp, count: f64) {
    wait_until("so many users have a place", || users(app, "/chat") == count);
}

/// So many users at once, with a key and no password.
fn crowd(app: &TestApp, count: usize) -> Vec<String> {
    let key = |n: usize| format!("pe-{n:032}");
    let line =
        |n: usize| json!({"username": format!("guest{n}"), "email": format!("g{n}@example.com"), "api_key": key(n)});
    let lines: Vec<String> = (0..count).map(|n| line(n).to_string()).collect();
    let token = bearer(&app.admin_token());
    let path = "/v1/admin-panel/users/import";
    let answer = http::call_raw(app.admin, "POST", path, &[("authorization", &token)], lines.join("\n").as_bytes());
    assert_eq!(answer.json()["imported"], count, "{}", answer.text());
    (0..count).map(key).collect()
}

#[test]
fn of_two_hundred_users_at_once_twenty_three_are_inside() {
    let venue = Venue::new();
    // One request a minute on a clock that stands still: who was refused and is served later got his token back.
    let app = start(&venue.fake, "max_users = 23", "[limits]\nper_user_per_minute = 1\n");
    let keys = crowd(&app, 200);
    let (refused, start, hall) = (AtomicUsize::new(0), std::sync::Barrier::new(keys.len()), &venue.hall);
    std::thread::scope(|scope| {
        for key in &keys {
            let (app, refused, start) = (&app, &refused, &start);
            scope.spawn(move || {
                let mut conn = Conn::open(app.public);
                start.wait();
                let mut served = false;
                wait_until("everybody has had a place", || {
                    conn.send(call_bytes("/chat", key));
                    let answer = conn.read_answer();
                    served = answer.status == 200;
                    if !served {
                        assert_full(&answer, "/chat", 1);
                        refused.fetch_add(1, Ordering::AcqRel);
                    }
                    served
                });
            });
        }
        wait_until("all others were refused once at least", || refused.load(Ordering::Acquire) >= 177);
        wait_until("the places are taken", || hall.inside() == 23);
        assert_eq!(users(&app, "/chat"), 23.0);
        hall.open();
    });
    assert_eq!(hall.state.lock().unwrap().most, 23);
    wait_for_users(&app, 0.0);
    wait_until("all is settled", || app.metric("tollgate_holds_open") == 0.0);
    assert_eq!(
        app.metric("tollgate_credits_spent_total{meter=\"conversations\"}"),
        200.0,
        "refused calls cost nothing"
    );
    let counted = app.metric("tollgate_requests_total{route=\"/chat\",outcome=\"no_place\"}");
    assert_eq!(counted, refused.load(Ordering::Acquire) as f64);
}

#[test]
fn who_leaves_makes_room_for_one() {
    let venue = Venue::new();
    let app = start(&venue.fake, "max_users = 2", "");
    let keys = crowd(&app, 4);
    let mut first = [begin(&app, &keys[0]), begin(&app, &keys[0])];
    let _second = begin(&app, &keys[1]);
    wait_until("two users are inside", || venue.hall.inside() == 2 && venue.fake.requests() == 3);
    assert_full(&call(&app, &keys[2]), "/chat", 1);
    venue.hall.let_go("guest0");
    assert!(first.iter_mut().all(|conn| conn.read_answer().status == 200), "one user's calls share his place");
    wait_for_users(&app, 1.0);
    let _third = begin(&app, &keys[2]);
    wait_until("the next one is inside", || venue.fake.requests() == 4);
    assert_full(&call(&app, &keys[3]), "/chat", 1);
}

#[test]
fn a_place_is_kept_for_its_time_after_the_last_call() {
    let venue = Venue::new();
    venue.hall.open();
    let app = start(&venue.fake, "max_users = 1\nplace_kept = \"2m\"", "");
    let keys = crowd(&app, 2);
    let clock = app.hands.as_ref().unwrap();
    assert_eq!(call(&app, &keys[0]).status, 200);
    all_over(&app);
    clock.advance(Duration::from_secs(60));
    assert_full(&call(&app, &keys[1]), "/chat", 60);
    assert_eq!(call(&app, &keys[0]).status, 200, "he comes back to his own place");
    all_over(&app);
    clock.advance(Duration::from_secs(119));
    assert_full(&call(&app, &keys[1]), "/chat", 1);
    assert_eq!(users(&app, "/chat"), 1.0);
    clock.advance(Duration::from_secs(1));
    assert_eq!(users(&app, "/chat"), 0.0);
    assert_eq!(call(&app, &keys[1]).status, 200);
    all_over(&app);
    assert_full(&call(&app, &keys[0]), "/chat", 120);
}

#[test]
fn a_call_that_is_refused_later_keeps_no_place() {
    let venue = Venue::new();
    venue.hall.open();
    let plan = "[plans.free.meters]\nconversations = { grant = 1, period = \"never\" }\n";
    let app = start(&venue.fake, "max_users = 1\nplace_kept = \"2m\"", plan);
    let keys = crowd(&app, 2);
    assert_eq!(call(&app, &keys[0]).status, 200);
    all_over(&app);
    app.hands.as_ref().unwrap().advance(Duration::from_secs(119));
    assert_eq!(call(&app, &keys[0]).error_code(), "CREDITS_EXHAUSTED");
    all_over(&app);
    app.hands.as_ref().unwrap().advance(Duration::from_secs(1));
    assert_eq!(call(&app, &keys[0]).error_code(), "CREDITS_EXHAUSTED");
    wait_for_users(&app, 0.0);
    assert_eq!(call(&app, &keys[1]).status, 200);
}

#[test]
fn a_stream_has_its_place_until_its_end() {
    let hall = Arc::new(Hall::default());
    let inner = hall.clone();
    let fake = FakeUpstream::start(move |wire| {
        while wire.read_request().is_some() {
            wire.send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n");
            wire.send("9\r\ndata: a\n\n\r\n");
            inner.visit("stream");
            wire.send("e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
        }
    });
    let app = start(&fake, "max_users = 1", "");
    let keys = crowd(&app, 2);
    let mut stream = begin(&app, &keys[0]);
    assert_eq!(stream.read_head().unwrap().status, 200);
    assert_eq!(stream.read_chunk().unwrap(), b"data: a\n\n");
    assert_full(&call(&app, &keys[1]), "/chat", 1);
    hall.open();
    assert_eq!(stream.read_chunk().unwrap(), b"data: [DONE]\n\n");
    assert!(stream.read_chunk().unwrap().is_empty());
    wait_for_users(&app, 0.0);
    assert_eq!(begin(&app, &keys[1]).read_head().unwrap().status, 200);
}

#[test]
fn a_client_that_goes_away_leaves_his_place() {
    let fake = FakeUpstream::start(|wire| {
        while let Some(text) = wire.read_request() {
            if text.contains("begin") {
                wire.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nthe beginning");
            }
            wire.drain();
        }
    });
    let app = start(&fake, "max_users = 1", "");
    let keys = crowd(&app, 2);
    for (at, key) in keys.iter().cycle().take(4).enumerate() {
        let mut conn = Conn::open(app.public);
        let fields = [("authorization", bearer(key)), ("x-case", if at < 2 { "wait" } else { "begin" }.to_owned())];
        let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
        conn.send(request("POST", "/chat", &fields, Some(&chat_body(json!({})))));
        if at < 2 {
            wait_until("the upstream has the call", || fake.requests() == at + 1);
        } else {
            assert_eq!(conn.read_head().unwrap().status, 200);
        }
        assert_full(&call(&app, &keys[(at + 1) % 2]), "/chat", 1);
        drop(conn);
        wait_for_users(&app, 0.0);
    }
    // One whose body never comes to its end has a place as well, and leaves it too.
    let mut slow = Conn::open(app.public);
    slow.send(format!("POST /chat HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n", keys[0]));
    slow.send("content-type: application/json\r\ncontent-length: 1000\r\n\r\n{\"model\": ");
    wait_for_users(&app, 1.0);
    drop(slow);
    wait_for_users(&app, 0.0);
}

#[test]
fn failures_and_time_limits_and_panics_leave_the_place() {
    let fake = FakeUpstream::start(|wire| {
        while let Some(text) = wire.read_request() {
            match text.lines().find_map(|line| line.strip_prefix("x-case: ")) {
                Some("fail") => wire.send("HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"),
                Some("cut") => return wire.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\ncut"),
                Some("nothing") => return,
                _ => return wire.drain(),
            }
        }
    });
    let limits = "first_byte_timeout = \"300ms\"\neject_after = 1\neject_time = \"1ms\"";
    let app = TestApp::start(&format!("{}{}", fake.config(limits), routes("max_users = 1")));
    let key = crowd(&app, 1).remove(0);
    let case = |case: &str| {
        let mut conn = Conn::open(app.public);
        let fields = [("authorization", bearer(&key)), ("x-case", case.to_owned())];
        let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
        conn.send(request("POST", "/chat", &fields, Some(&chat_body(json!({})))));
        let status = conn.read_head().unwrap().status;
        wait_for_users(&app, 0.0);
        status
    };
    assert_eq!(["fail", "cut", "nothing", "silence"].map(case), [500, 200, 502, 504]);
    set_trap(&fake.addr.to_string());
    assert_eq!(case("fail"), 500);
    assert_eq!(app.metric("tollgate_panics_total"), 1.0);
}

#[test]
fn routes_share_places_by_name_and_others_have_their_own() {
    let venue = Venue::new();
    let route = |path: &str, settings: &str| routes(settings).replace("/chat", path);
    let app = start(
        &venue.fake,
        "max_users = 1\nplaces = \"talk\"",
        &format!("{}{}", route("/ws", "max_users = 1\nplaces = \"talk\""), route("/images", "max_users = 1")),
    );
    let keys = crowd(&app, 2);
    let _chat = begin(&app, &keys[0]);
    let _same_user = begin_at(&app, "/ws", &keys[0]);
    let _images = begin_at(&app, "/images", &keys[1]);
    wait_until("three calls are inside", || venue.fake.requests() == 3);
    assert_full(&begin_at(&app, "/ws", &keys[1]).read_answer(), "talk", 1);
    assert_full(&begin_at(&app, "/images", &keys[0]).read_answer(), "/images", 1);
    assert_eq!((users(&app, "talk"), users(&app, "/images")), (1.0, 1.0));
}

#[test]
fn places_go_on_over_a_reload() {
    let venue = Venue::new();
    let mut app = start(&venue.fake, "max_users = 2", "");
    let keys = crowd(&app, 4);
    let _inside = [begin(&app, &keys[0]), begin(&app, &keys[1])];
    wait_until("two users are inside", || venue.hall.inside() == 2);
    let reload = |app: &mut TestApp, most: usize| {
        app.reload(&format!("{}{}", venue.fake.config(""), routes(&format!("max_users = {most}"))));
    };
    reload(&mut app, 1);
    assert_eq!(users(&app, "/chat"), 2.0, "nobody is thrown out");
    venue.hall.let_go("guest0");
    wait_for_users(&app, 1.0);
    assert_full(&call(&app, &keys[2]), "/chat", 1);
    reload(&mut app, 2);
    let _next = begin(&app, &keys[2]);
    wait_until("there is room for one more", || venue.fake.requests() == 3);
    assert_full(&call(&app, &keys[3]), "/chat", 1);
    app.reload(&format!("{}{}", venue.fake.config(""), routes("")));
    assert!(!app.metrics().contains("tollgate_route_users"), "a route without the setting knows of no places");
    venue.hall.open();
    assert_eq!(call(&app, &keys[3]).status, 200);
}
