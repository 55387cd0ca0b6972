//! A stop in the middle of calls: those that end in time cost what they cost, those that are cut are settled all the same,
//! and the next start finds it so.

use std::sync::Arc;

use super::{Cost, Form, HELD, NOTHING, ONE, ROUTES, Signal, body, case_of, read_beginning, tokens};
use crate::fake_upstream::{FakeUpstream, Wire};
use crate::server_process::{Server, Site};
use crate::support::http::request;
use crate::support::{Conn, wait_until};

/// Waits, or answers as far as the case goes; goes on when the test says so, if it ever does.
fn script(wire: &mut Wire, go: &Signal) {
    let Some(sent) = wire.read_request() else { return };
    let (case, form) = case_of(&sent);
    if case == "cut" {
        wire.send(form.head());
        wire.send(form.beginning());
        return wire.drain();
    }
    if case == "begun" {
        wire.send(head());
    }
    if case == "wait" {
        return wire.drain();
    }
    go.wait_for(1);
    if case == "waiting" {
        wire.send(head());
    }
    wire.send(ANSWER);
}

const ANSWER: &str = "{\"usage\":{\"completion_tokens\":5}}";

fn head() -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", ANSWER.len())
}

fn site(fake: &FakeUpstream, grace: &str) -> Site {
    Site::new(&format!(
        "{ROUTES}\n[listen]\npublic = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\nworkers = 2\ndrain_grace = \"{grace}\"\n\
         [limits]\nper_ip_per_minute = 0\n[telemetry]\naccess_log = \"off\"\n{}\n\
         [plans.free.meters]\nconversations = {{ grant = 100 }}\ncredits = {{ grant = 100 }}\n",
        fake.config("")
    ))
}

fn call(server: &Server, key: &str, cost: Cost, case: &str, form: Form) -> Conn {
    let bearer = format!("Bearer {key}");
    let mut conn = Conn::open(server.public);
    conn.send(request("POST", &cost.path(case), &[("authorization", &bearer)], Some(&body(form))));
    conn
}

/// Balance, held and spent of both meters, in millionths.
fn books(server: &Server, user: u64) -> [[i64; 3]; 2] {
    let answer = server.admin_get(&server.admin_token(), &format!("/v1/admin-panel/users/{user}"));
    Cost::ALL.map(|cost| {
        let meter = &answer["user"]["meters"][cost.meter()];
        let number = |part: &str| (meter[part].as_f64().unwrap_or_else(|| panic!("{answer}")) * 1e6).round() as i64;
        assert_eq!(number("granted"), number("balance") + number("held") + number("spent"));
        [number("balance"), number("held"), number("spent")]
    })
}

const GRANTED: i64 = 100_000_000;

#[test]
fn calls_that_end_within_the_grace_time_cost_what_they_cost() {
    let go = Signal::default();
    let fake = FakeUpstream::start({
        let go = go.clone();
        move |wire| script(wire, &go)
    });
    let site = site(&fake, "20s");
    let mut server = site.serve();
    let user = server.register("alice");
    let mut conns = Vec::new();
    for cost in Cost::ALL {
        conns.push(call(&server, &user.key, cost, "waiting", Form::Plain));
        conns.push(call(&server, &user.key, cost, "begun", Form::Plain));
    }
    wait_until("all are under way", || fake.requests() == 4);
    assert_eq!(server.metric("tollgate_holds_open"), 4.0);
    server.signal("TERM");
    wait_until("no more are accepted", || std::net::TcpStream::connect(server.public).is_err());
    go.give();
    for conn in &mut conns {
        assert_eq!(conn.read_answer().status, 200);
    }
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    let server = site.serve();
    let metered = 2 * tokens(5).0;
    assert_eq!(
        books(&server, user.id),
        [[GRANTED - 2 * ONE.0, 0, 2 * ONE.0], [GRANTED - metered, 0, metered]],
        "each is paid once"
    );
}

#[test]
fn calls_that_a_stop_cuts_are_free_until_their_answer_began_and_paid_from_then_on() {
    let never = Arc::new(Signal::default());
    let fake = FakeUpstream::start({
        let never = never.clone();
        move |wire| script(wire, &never)
    });
    for (case, form) in [("wait", Form::Plain), ("wait", Form::Sse), ("cut", Form::Plain), ("cut", Form::Sse)] {
        let site = site(&fake, "0s");
        let mut server = site.serve();
        let user = server.register("alice");
        let before = fake.requests();
        let mut conns: Vec<Conn> = Cost::ALL.iter().map(|cost| call(&server, &user.key, *cost, case, form)).collect();
        wait_until("both are under way", || fake.requests() == before + 2);
        if case == "cut" {
            conns.iter_mut().for_each(|conn| read_beginning(conn, form));
        }
        server.signal("TERM");
        assert_eq!(server.wait().code(), Some(0), "{}", server.log());
        for conn in &mut conns {
            assert!(!conn.rest().ends_with(b"0\r\n\r\n"), "{case}: nobody takes this for an end");
        }
        let server = site.serve();
        // Nobody was there any more to reckon what had been produced: all that was held.
        let (fixed, metered) = if case == "cut" { (ONE, HELD) } else { (NOTHING, NOTHING) };
        assert_eq!(
            books(&server, user.id),
            [[GRANTED - fixed.0, 0, fixed.0], [GRANTED - metered.0, 0, metered.0]],
            "{case} {form:?}"
        );
        assert_eq!(server.metric("tollgate_holds_open"), 0.0);
    }
}
