//! The side port: nobody keeps an administrator out by being slow, and what ends a connection is said.

use std::net::SocketAddr;

use serde_json::json;

use super::crowd;
use crate::support::http::call;
use crate::support::{Conn, TestApp, wait_until};

const LOGIN: &str = "POST /v1/admin-panel/login HTTP/1.1\r\nhost: localhost\r\n";

fn is_served(app: &TestApp) {
    let token = app.admin_token();
    assert_eq!(app.admin_call(&token, "GET", "/v1/admin-panel/statistics", None).status, 200);
    assert_eq!(call(app.admin, "GET", "/health", &[], None).status, 200);
}

#[test]
fn half_sent_requests_keep_no_administrator_out() {
    let app = TestApp::start("");
    let most = app.metric("tollgate_admin_connections_max") as usize;
    assert_eq!(most, 512);
    let head = format!("{LOGIN}x-slow: ");
    let body = format!("{LOGIN}content-type: application/json\r\ncontent-length: 1000\r\n\r\n{{");
    for sent in ["", &head, &body] {
        let held = crowd(app.admin, most + 20, sent);
        is_served(&app);
        assert!(app.metric("tollgate_admin_connections") <= most as f64);
        drop(held);
    }
    assert!(app.metric("tollgate_admin_connections_evicted_total") > 0.0);
    assert_eq!(app.metric("tollgate_admin_connections_refused_total"), 0.0);
    wait_until("they are gone", || app.metric("tollgate_admin_connections") == 1.0);
}

/// Who reads no answer holds its connection no longer than others want it.
#[test]
fn unread_answers_keep_no_administrator_out() {
    let app = TestApp::start("[limits]\nmax_admin_connections = 16\n");
    let held = crowd(app.admin, 40, &"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(200));
    is_served(&app);
    drop(held);
}

#[test]
fn an_answer_that_ends_the_connection_says_so() {
    let app = TestApp::start("");
    let closes = |request: String, status: u16| {
        let mut conn = Conn::open(app.admin);
        conn.send(request);
        let answer = conn.read_answer();
        assert_eq!((answer.status, answer.header("connection")), (status, Some("close")), "{}", answer.text());
        assert!(conn.is_closed());
    };
    closes("GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".into(), 200);
    closes("POST /nothing HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n".into(), 404);
    closes("POST /v1/admin-panel/login HTTP/1.1\r\nhost: evil.example\r\ncontent-length: 10\r\n\r\n".into(), 421);
    closes("nonsense\r\n\r\n".into(), 400);
    let mut conn = Conn::open(app.admin);
    for path in ["/health", "/nothing", "/v1/admin-panel/users"] {
        let answer = conn.call("GET", path, &[], None);
        assert_eq!(answer.header("connection"), None, "{path}: the connection goes on");
    }
    let login = json!({"username": "root-admin", "password": "wrong"});
    assert_eq!(conn.call("POST", "/v1/admin-panel/login", &[], Some(&login)).header("connection"), None);
    assert_eq!(conn.call("GET", "/health", &[], None).status, 200);
}

/// Full of those who have work, it says so instead of leaving the next one to wait.
#[test]
fn when_all_are_busy_the_next_is_told() {
    let app = TestApp::start("[limits]\nmax_admin_connections = 8\n");
    let token = app.admin_token();
    // Password hashes take a while, and few are computed at once.
    let busy = |to: SocketAddr, nth: usize| {
        let mut conn = Conn::open(to);
        let body = json!({"username": format!("nobody{nth}"), "password": "wrong"});
        conn.send(crate::support::http::request("POST", "/v1/admin-panel/login", &[], Some(&body)));
        conn
    };
    let mut told = 0;
    wait_until("somebody is told", || {
        let all: Vec<Conn> = (0..40).map(|nth| busy(app.admin, nth)).collect();
        for mut conn in all {
            let Ok(answer) = conn.read_answer_to(false) else { continue };
            if answer.error_code() == "OVERLOADED" && answer.text().contains("Too many connections") {
                assert_eq!((answer.status, answer.header("connection")), (503, Some("close")));
                told += 1;
            }
        }
        told > 0
    });
    assert_eq!(app.admin_call(&token, "GET", "/v1/admin-panel/statistics", None).status, 200);
    assert!(app.metric("tollgate_admin_connections_refused_total") >= 1.0);
}
