//! Clients that leave, at every point of a call.

use super::{Cost, Farewell, Form, Lab, NOTHING, ONE, PER_CALL, PRODUCED, case_of, read_beginning};
use crate::fake_upstream::Wire;
use crate::support::{Conn, wait_until};

/// Answers as far as the case goes and then only listens.
fn script(wire: &mut Wire) {
    while let Some(request) = wire.read_request() {
        let (case, form) = case_of(&request);
        match case.as_str() {
            "head" => wire.send(form.head()),
            "body" => {
                wire.send(form.head());
                wire.send(form.beginning());
            }
            _ => {}
        }
        wire.drain();
    }
}

fn leave(conn: Conn, how: Farewell) {
    how.say(&conn.stream);
    drop(conn);
}

fn every_case(test: impl Fn(Cost, Form, Farewell, &str)) {
    for cost in Cost::ALL {
        for form in Form::ALL {
            for how in Farewell::ALL {
                test(cost, form, how, &format!("{cost:?} {form:?} {how:?}"));
            }
        }
    }
}

#[test]
fn before_its_body_is_complete_a_client_leaves_for_free() {
    let lab = Lab::open(script);
    every_case(|cost, form, how, what| {
        lab.charges(what, cost, NOTHING, |lab| {
            let whole = lab.request("POST", cost, "wait", form);
            let mut conn = Conn::open(lab.bank.app.public);
            let connections = lab.fake.connections();
            conn.send(&whole[..whole.len() - 10]);
            match cost {
                // Its body is passed on as it comes.
                Cost::Fixed => wait_until("the upstream hears of it", || {
                    lab.fake.connections() > connections && !lab.fake.heard(connections).is_empty()
                }),
                // Its body is read before anything is decided.
                Cost::Metered => {
                    wait_until("the gateway reads it", || lab.bank.app.metric("tollgate_in_flight") == 1.0);
                }
            }
            leave(conn, how);
        });
    });
    assert_eq!(lab.fake.connections(), 4, "no metered call went out");
}

#[test]
fn before_an_answer_a_client_leaves_for_free() {
    let lab = Lab::open(script);
    every_case(|cost, form, how, what| {
        lab.charges(what, cost, NOTHING, |lab| {
            let requests = lab.fake.requests();
            let conn = lab.post(cost, "wait", form);
            wait_until("the upstream has the call", || lab.fake.requests() == requests + 1);
            assert_eq!(lab.books(cost).held, cost.held().0, "{what}: it is held while it lasts");
            leave(conn, how);
        });
        lab.fake.wait_until_all_ended();
    });
    assert_eq!(lab.fake.requests(), 8, "each call was sent once");
}

#[test]
fn after_the_head_a_client_pays_for_the_call_and_no_token() {
    let lab = Lab::open(script);
    every_case(|cost, form, how, what| {
        lab.charges(what, cost, cost.of(ONE, PER_CALL), |lab| {
            let mut conn = lab.post(cost, "head", form);
            assert_eq!(conn.read_head().unwrap().status, 200);
            leave(conn, how);
        });
        lab.fake.wait_until_all_ended();
    });
    assert_eq!(lab.fake.requests(), 8);
}

#[test]
fn in_the_middle_a_client_pays_for_what_was_produced_until_then() {
    let lab = Lab::open(script);
    every_case(|cost, form, how, what| {
        lab.charges(what, cost, cost.of(ONE, PRODUCED), |lab| {
            let mut conn = lab.post(cost, "body", form);
            read_beginning(&mut conn, form);
            leave(conn, how);
        });
        lab.fake.wait_until_all_ended();
    });
    assert_eq!(lab.fake.requests(), 8);
}
