//! A thousand calls at once on a balance of a hundred: exactly a hundred are served, every time.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use super::Bank;
use crate::support::http::{Conn, request};
use crate::support::{Options, PASSWORD, chat_body, http};

const THREADS: usize = 50;
const CALLS: usize = 20;
const BALANCE: u32 = 100;
const ROUNDS: usize = 10;

/// Runs the thousand calls, each thread with one of `credentials` and on one connection. Answers how many were served.
fn stampede(bank: &Bank, credentials: &[String]) -> usize {
    let served = AtomicUsize::new(0);
    let start = std::sync::Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for n in 0..THREADS {
            let (served, start) = (&served, &start);
            let bearer = format!("Bearer {}", credentials[n % credentials.len()]);
            scope.spawn(move || {
                let mut conn = Conn::open(bank.app.public);
                let body = chat_body(json!({}));
                let call = request("POST", "/v1/chat/completions", &[("authorization", &bearer)], Some(&body));
                start.wait();
                for _ in 0..CALLS {
                    conn.send(&call);
                    let answer = conn.read_answer();
                    match answer.status {
                        200 => served.fetch_add(1, Ordering::Relaxed),
                        _ => {
                            assert_eq!((answer.status, answer.error_code().as_str()), (429, "CREDITS_EXHAUSTED"));
                            0
                        }
                    };
                }
            });
        }
    });
    served.into_inner()
}

fn exactly_a_hundred(bank: &Bank, credentials: &[String]) {
    for round in 0..ROUNDS {
        bank.set_conversations(BALANCE);
        let before = bank.app.upstream.stats().total;
        let served = stampede(bank, credentials);
        let reached = bank.app.upstream.stats().total - before;
        assert_eq!((served, reached), (100, 100), "round {round}");
        assert_eq!(bank.conversations(), 0.0);
        bank.settled();
    }
}

fn with_workers(workers: usize) -> Bank {
    Bank::open(Options { workers, toml: "[limits]\nin_flight_per_user = 1000\n".into(), ..Options::default() })
}

#[test]
fn one_worker() {
    let bank = with_workers(1);
    exactly_a_hundred(&bank, std::slice::from_ref(&bank.user.key));
}

#[test]
fn two_workers() {
    let bank = with_workers(2);
    exactly_a_hundred(&bank, std::slice::from_ref(&bank.user.key));
}

#[test]
fn several_credentials_of_one_user() {
    let bank = with_workers(2);
    let mut credentials = vec![bank.user.key.clone()];
    for _ in 0..2 {
        let login = json!({"email": bank.user.email, "password": PASSWORD});
        let answer = http::call(bank.app.public, "POST", "/v1/users/login", &[], Some(&login)).json();
        credentials.push(answer["session"]["session_token"].as_str().unwrap().to_owned());
    }
    exactly_a_hundred(&bank, &credentials);
}

#[test]
fn on_the_embedded_database() {
    let bank = Bank::open(Options {
        backend: "sled",
        toml: "[limits]\nin_flight_per_user = 1000\n".into(),
        ..Options::default()
    });
    bank.set_conversations(BALANCE);
    assert_eq!(stampede(&bank, std::slice::from_ref(&bank.user.key)), 100);
    assert_eq!(bank.app.upstream.stats().total, 100);
    bank.settled();
}

/// Failures give back, so as many calls are served in the end as there were credits, though many more were tried.
#[test]
fn failures_in_between_cost_nothing() {
    let bank = with_workers(2);
    bank.set_conversations(BALANCE);
    let (served, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for n in 0..THREADS {
            let (bank, served, failed) = (&bank, &served, &failed);
            scope.spawn(move || {
                let mut conn = Conn::open(bank.app.public);
                for turn in 0..CALLS {
                    let status = if (n + turn) % 2 == 0 { "503" } else { "200" };
                    conn.send(bank.request(json!({}), &[("x-mock-status", status)]));
                    let answer = conn.read_answer();
                    match answer.status {
                        200 => served.fetch_add(1, Ordering::Relaxed),
                        503 => failed.fetch_add(1, Ordering::Relaxed),
                        _ => {
                            assert_eq!(answer.error_code(), "CREDITS_EXHAUSTED");
                            0
                        }
                    };
                }
            });
        }
    });
    assert_eq!(bank.app.upstream.stats().total, (served.load(Ordering::Relaxed) + failed.into_inner()) as u64);
    assert_eq!(bank.conversations(), f64::from(BALANCE) - served.into_inner() as f64);
    bank.settled();
}
