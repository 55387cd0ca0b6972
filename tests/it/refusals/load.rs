//! 429 and 503 for too much at once, 423 for too many guesses.

use std::time::Duration;

use serde_json::{Value, json};

use super::{CHAT, Desk, OVERLOADED, Row, UNAUTHENTICATED, assert_refused, row};
use crate::support::http::{self, Conn, request};
use crate::support::{Answer, Options, wait_until};

const IN_FLIGHT: Row = row(429, "TOO_MANY_IN_FLIGHT", "rate_limit_error").retry_after(1);
const LOCKED: Row = row(423, "LOCKED", "invalid_request_error").retry_after(3600);

/// A call that stays with the upstream until the connection is dropped.
fn long_call(desk: &Desk) -> Conn {
    let open = desk.app.upstream.stats().open;
    let mut conn = Conn::open(desk.app.public);
    let bearer = format!("Bearer {}", desk.user.key);
    let headers = [("authorization", bearer.as_str()), ("x-mock-delay-ms", "3600000")];
    conn.send(request("POST", CHAT, &headers, Some(&crate::support::chat_body(json!({})))));
    wait_until("the upstream has the call", || desk.app.upstream.stats().open == open + 1);
    conn
}

fn end(desk: &Desk, calls: Vec<Conn>) {
    drop(calls);
    all_over(desk);
}

/// A call ends a moment after its answer.
fn all_over(desk: &Desk) {
    wait_until("the calls are over", || {
        let running = desk.app.metric("tollgate_in_flight") + desk.app.metric("tollgate_holds_open");
        running == 0.0 && desk.app.upstream.stats().open == 0
    });
}

/// As [`Desk::costs_nothing`], with calls in flight that are all let go in the end. A call that its client leaves before
/// the answer is not charged, but it did count as a request.
fn costs_nothing_beside(desk: &Desk, calls: usize, provoke: impl Fn(&Desk) -> Answer) -> Answer {
    let before = desk.conversations();
    let running: Vec<_> = (0..calls).map(|_| long_call(desk)).collect();
    let served = desk.app.upstream.stats().total;
    let answer = provoke(desk);
    provoke(desk);
    assert_eq!(desk.app.upstream.stats().total, served, "the refused call reached the upstream");
    end(desk, running);
    assert_eq!(desk.conversations(), before);
    let good = desk.chat();
    assert_eq!(good.status, 200, "{}", good.text());
    let left: usize = good.header("x-ratelimit-remaining-requests").unwrap().parse().unwrap();
    assert_eq!(left, 30 - calls - 1, "only the calls that ran count");
    all_over(desk);
    answer
}

#[test]
fn too_many_calls_of_one_user_in_flight() {
    let desk = Desk::open("[limits]\nin_flight_per_user = 2\n");
    let session = desk.session();
    desk.refill();
    let answer = costs_nothing_beside(&desk, 2, |desk| desk.chat());
    assert_refused(&answer, &IN_FLIGHT);
    desk.refill();
    let by_session = costs_nothing_beside(&desk, 2, |desk| desk.app.chat(&session, json!({})));
    assert_refused(&by_session, &IN_FLIGHT);
    let running = vec![long_call(&desk), long_call(&desk)];
    let bob = desk.app.register("bob");
    assert_eq!(desk.app.chat(&bob.key, json!({})).status, 200, "others are not held up");
    end(&desk, running);
}

#[test]
fn all_places_of_a_route_are_taken() {
    let desk = Desk::with(Options {
        route: "[[routes]]\npath = \"/v1/*\"\nupstream = \"ai\"\ncost = { conversations = 1 }\nmax_users = 1\n",
        ..Options::default()
    });
    let bob = desk.app.register("bob");
    desk.refill();
    let answer = costs_nothing_beside(&desk, 1, |desk| desk.app.chat(&bob.key, json!({})));
    assert_refused(&answer, &IN_FLIGHT);
    assert_eq!(answer.json()["message"], "/v1/* is full: at most 1 users at once");
    assert_eq!(answer.json()["errors"], json!(["/v1/*: at most 1 users at once; try again in 1 s"]));
    desk.refill();
    // He who was refused has lost nothing by it either.
    let good = desk.app.chat(&bob.key, json!({}));
    let left = |name: &str| good.header(name).unwrap().to_owned();
    assert_eq!(
        (left("x-tollgate-remaining-conversations"), left("x-ratelimit-remaining-requests")),
        ("9".into(), "29".into())
    );
}

#[test]
fn too_many_bytes_in_flight() {
    // Room for the buffers of 21 calls.
    let desk = Desk::open("[limits]\nin_flight_bytes = 1048576\n");
    assert_refused(&costs_nothing_beside(&desk, 21, |desk| desk.chat()), &OVERLOADED);
}

#[test]
fn a_body_for_which_there_is_no_room() {
    let routes =
        "routes = [{ path = \"/v1/*\", upstream = \"ai\", cost = { conversations = 1 }, models = [\"gpt*\"] }]\n";
    let desk = Desk::open(&format!("{routes}[limits]\nin_flight_bytes = 1048576\nmax_inspect_bytes = 2097152\n"));
    let big = json!({"messages": [{"role": "user", "content": "a".repeat(1_100_000)}]});
    let answer = desk.costs_nothing(|desk| desk.app.chat(&desk.user.key, big.clone()));
    assert_refused(&answer, &OVERLOADED);
    crate::support::wait_until("all is given back", || desk.app.metric("tollgate_in_flight_bytes") == 0.0);
}

#[test]
fn too_many_calls_to_one_upstream() {
    let desk = Desk::with(Options {
        route: "max_in_flight = 1\n[[routes]]\npath = \"/v1/*\"\nupstream = \"ai\"\ncost = { conversations = 1 }\n",
        ..Options::default()
    });
    assert_refused(&costs_nothing_beside(&desk, 1, |desk| desk.chat()), &OVERLOADED);
}

#[test]
fn too_many_connections() {
    let desk = Desk::open("[limits]\nmax_connections = 2\n");
    wait_until("earlier connections are gone", || desk.app.metric("tollgate_connections") == 0.0);
    let running = vec![long_call(&desk), long_call(&desk)];
    let mut third = Conn::open(desk.app.public);
    assert_refused(&third.read_answer(), &OVERLOADED);
    assert!(third.is_closed());
    assert_eq!(desk.app.upstream.stats().open, 2, "those who are in stay in");
    end(&desk, running);
}

fn login(desk: &Desk, identifier: &str, password: &str) -> Answer {
    let body: Value = json!({"email": identifier, "password": password});
    http::call(desk.app.public, "POST", "/v1/users/login", &[], Some(&body))
}

#[test]
fn an_account_that_was_guessed_at_too_often() {
    let desk = Desk::open("");
    let email = desk.user.email.clone();
    let left = desk.conversations();
    for _ in 0..5 {
        assert_refused(&login(&desk, &email, "wrong"), &UNAUTHENTICATED);
    }
    assert_refused(&login(&desk, &email, crate::support::PASSWORD), &LOCKED);
    assert_refused(&login(&desk, "alice", "wrong"), &LOCKED);
    assert_eq!((desk.conversations(), desk.app.upstream.stats().total), (left, 0));
    assert_eq!(desk.chat().status, 200, "what has a key goes on");
    desk.clock().advance(Duration::from_secs(3599));
    assert_refused(&login(&desk, &email, crate::support::PASSWORD), &LOCKED_A_SECOND);
    desk.clock().advance(Duration::from_secs(1));
    assert_eq!(login(&desk, &email, crate::support::PASSWORD).status, 200);
}

const LOCKED_A_SECOND: Row = row(423, "LOCKED", "invalid_request_error").retry_after(1);

#[test]
fn a_name_that_does_not_exist_is_locked_just_the_same() {
    let desk = Desk::open("");
    let nobody = "nobody@example.com";
    for _ in 0..5 {
        assert_refused(&login(&desk, nobody, "wrong"), &UNAUTHENTICATED);
    }
    assert_refused(&login(&desk, nobody, "wrong"), &LOCKED);
}
