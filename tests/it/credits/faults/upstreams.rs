//! Upstreams that break off, at every point of an answer, and what is tried again.

use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use super::{
    Charge, Cost, EVENT, Farewell, Form, Lab, NOTHING, ONE, PER_CALL, PRODUCED, Signal, case_of, chunk, read_beginning,
    tokens,
};
use crate::fake_upstream::{FakeUpstream, Wire};
use crate::support::{Conn, wait_until};

/// How far an answer goes before the connection ends, how it ends, and when the test lets it.
#[derive(Clone)]
struct Plan {
    until: &'static str,
    how: Farewell,
    go: Signal,
}

/// An upstream whose next answer is the plan's.
fn planned() -> (Lab, Arc<Mutex<Plan>>) {
    let plan = Arc::new(Mutex::new(Plan { until: "connect", how: Farewell::Close, go: Signal::default() }));
    let shared = plan.clone();
    let lab = Lab::with("", "eject_after = 0", move |wire| {
        let plan = shared.lock().unwrap().clone();
        answer(wire, &plan);
        plan.how.say(&wire.stream);
    });
    (lab, plan)
}

fn answer(wire: &mut Wire, plan: &Plan) {
    if plan.until == "connect" {
        return;
    }
    let Some(request) = wire.read_request() else { return };
    let (_, form) = case_of(&request);
    match plan.until {
        "request" => return,
        "half a head" => return wire.send(&form.head()[..30]),
        "a failure's head" => wire.send(form.head().replace("200 OK", "503 No")),
        "a failure's body" => {
            wire.send(form.head().replace("200 OK", "500 No"));
            wire.send(form.beginning());
        }
        "a refusal's head" => wire.send(form.head().replace("200 OK", "400 No")),
        "head" => wire.send(form.head()),
        "body" => {
            wire.send(form.head());
            wire.send(form.beginning());
        }
        "half an event" => {
            wire.send(form.head());
            wire.send(form.beginning());
            let half = &EVENT[..EVENT.len() - 8];
            wire.send(if form == Form::Sse { chunk(half) } else { b"aaaa".to_vec() });
        }
        other => panic!("no such case: {other}"),
    }
    // What was sent must have arrived before a reset, which may overtake it.
    plan.go.wait_for(1);
}

#[test]
fn an_answer_that_never_began_costs_nothing() {
    let (lab, plan) = planned();
    for until in ["connect", "request", "half a head"] {
        for how in Farewell::ALL {
            for cost in Cost::ALL {
                *plan.lock().unwrap() = Plan { until, how, go: Signal::default() };
                let (requests, connections) = (lab.fake.requests(), lab.fake.connections());
                let what = format!("{until} {how:?}");
                lab.charges(&what, cost, NOTHING, |lab| {
                    let refused = lab.post(cost, "x", Form::Plain).read_answer();
                    assert_eq!(
                        (refused.status, refused.error_code().as_str()),
                        (502, "UPSTREAM_UNREACHABLE"),
                        "{what}"
                    );
                });
                assert!(lab.fake.requests() <= requests + 1, "{what}: what may have had an effect is not sent twice");
                // A connection that is reset before it is used has carried nothing, so another one may be tried.
                let most = if until == "connect" { 3 } else { 1 };
                assert!((1..=most).contains(&(lab.fake.connections() - connections)), "{what}");
                lab.fake.wait_until_all_ended();
            }
        }
    }
}

/// The client has all of what comes before the end, and sees that it is no end.
fn broken_off(cost: Cost, form: Form, until: &'static str, status: u16, expected: Charge) {
    let (lab, plan) = planned();
    for how in Farewell::ALL {
        let go = Signal::default();
        *plan.lock().unwrap() = Plan { until, how, go: go.clone() };
        let what = format!("{until} {how:?} {form:?}");
        lab.charges(&what, cost, expected, |lab| {
            let mut conn = lab.post(cost, "x", form);
            if matches!(until, "body" | "half an event") {
                read_beginning(&mut conn, form);
            } else {
                assert_eq!(conn.read_head().unwrap().status, status, "{what}");
            }
            if until == "half an event" {
                let rest = if form == Form::Sse { conn.read_chunk().unwrap() } else { conn.exactly(4).unwrap() };
                assert!(!rest.is_empty());
            }
            go.give();
            let rest = conn.rest();
            assert!(!rest.ends_with(b"0\r\n\r\n") && rest.len() < 1000, "{what}: no clean end");
        });
        lab.fake.wait_until_all_ended();
    }
    assert_eq!(lab.fake.requests(), 2, "{until}: each call was sent once");
}

#[test]
fn after_its_head_an_answer_that_breaks_off_costs_the_call() {
    for form in Form::ALL {
        broken_off(Cost::Fixed, form, "head", 200, ONE);
        broken_off(Cost::Metered, form, "head", 200, PER_CALL);
    }
}

#[test]
fn in_the_middle_an_answer_that_breaks_off_costs_what_was_produced() {
    for form in Form::ALL {
        broken_off(Cost::Fixed, form, "body", 200, ONE);
        broken_off(Cost::Metered, form, "body", 200, PRODUCED);
    }
}

#[test]
fn half_an_event_counts_as_far_as_it_came() {
    broken_off(Cost::Fixed, Form::Sse, "half an event", 200, ONE);
    broken_off(Cost::Metered, Form::Sse, "half an event", 200, tokens(11));
    broken_off(Cost::Metered, Form::Plain, "half an event", 200, tokens(11));
}

#[test]
fn a_failure_that_breaks_off_costs_nothing_and_a_refusal_costs_the_call() {
    for cost in Cost::ALL {
        broken_off(cost, Form::Plain, "a failure's head", 503, NOTHING);
        broken_off(cost, Form::Plain, "a failure's body", 500, NOTHING);
        broken_off(cost, Form::Plain, "a refusal's head", 400, cost.of(ONE, PER_CALL));
    }
}

/// Answers whole, with a usage of twenty tokens.
fn good() -> FakeUpstream {
    let answer = "{\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":20}}";
    FakeUpstream::always(format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{answer}",
        answer.len()
    ))
}

fn endpoints(list: &[std::net::SocketAddr]) -> String {
    let quoted: Vec<String> = list.iter().map(|addr| format!("\"http://{addr}\"")).collect();
    format!("[[upstreams]]\nname = \"ai\"\nendpoints = [{}]\nretries = 2\neject_after = 0\n", quoted.join(", "))
}

/// A lab whose upstream has these endpoints; its own takes no part.
fn lab_with(list: &[std::net::SocketAddr]) -> Lab {
    let mut lab = Lab::open(|wire| wire.drain());
    lab.bank.app.reload(&format!("{}\n{}", super::ROUTES, endpoints(list)));
    lab
}

#[test]
fn a_call_that_a_second_endpoint_serves_is_paid_once() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (dies, good) = (FakeUpstream::start(|wire| drop(wire.read_request())), good());
    for (first, method) in [(nobody, "POST"), (nobody, "PUT"), (dies.addr, "PUT")] {
        let lab = lab_with(&[first, good.addr]);
        for cost in Cost::ALL {
            let (served, died) = (good.requests(), dies.requests());
            for _ in 0..10 {
                lab.charges(&format!("{method} {first}"), cost, cost.of(ONE, tokens(20)), |lab| {
                    let mut conn = Conn::open(lab.bank.app.public);
                    conn.send(lab.request(method, cost, "x", Form::Plain));
                    assert_eq!(conn.read_answer().status, 200);
                });
            }
            assert_eq!(good.requests() - served, 10, "each call reached it once");
            assert!(dies.requests() - died <= 10, "each call was tried there at most once");
        }
    }
    assert!(dies.requests() > 0, "of two endpoints, the bad one was asked too");
}

#[test]
fn a_call_that_no_endpoint_serves_is_tried_as_often_as_allowed_and_free() {
    let dies: Vec<FakeUpstream> = (0..2).map(|_| FakeUpstream::start(|wire| drop(wire.read_request()))).collect();
    let lab = lab_with(&[dies[0].addr, dies[1].addr]);
    let tried = || dies.iter().map(FakeUpstream::requests).sum::<usize>();
    for (method, tries) in [("PUT", 3), ("POST", 1)] {
        for cost in Cost::ALL {
            let before = tried();
            lab.charges(method, cost, NOTHING, |lab| {
                let mut conn = Conn::open(lab.bank.app.public);
                conn.send(lab.request(method, cost, "x", Form::Plain));
                assert_eq!(conn.read_answer().status, 502);
            });
            wait_until("the endpoints have heard what was sent", || tried() >= before + tries);
            assert_eq!(tried(), before + tries, "{method}");
        }
    }
}
