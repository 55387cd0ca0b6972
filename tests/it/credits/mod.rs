//! Money: what calls cost, and that nobody ever gets more than he has, whatever races, fails, leaves or lies.

mod calendar;
mod durability;
pub mod faults;
mod metering;
mod models;
mod prices;
mod race;
mod race_with_staff;
mod refunds;
mod repeats;
mod resets;

use serde_json::{Value, json};

use crate::support::http::{Conn, request};
use crate::support::{Options, TestApp, TestUser, chat_body, wait_until};

/// A gateway with one user and an admin.
struct Bank {
    app: TestApp,
    user: TestUser,
    admin: String,
}

impl Bank {
    fn open(options: Options) -> Self {
        let app = TestApp::with(options);
        let user = app.register("alice");
        Self { admin: app.admin_token(), app, user }
    }

    fn set(&self, change: &Value) {
        let path = format!("/v1/admin-panel/users/{}", self.user.id);
        let answer = self.app.admin_call(&self.admin, "PUT", &path, Some(change));
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    fn set_conversations(&self, left: u32) {
        self.set(&json!({"limits": {"conversation_limit": left}}));
    }

    fn set_credits(&self, left: u32) {
        self.set(&json!({"credits": {"main": left}}));
    }

    fn conversations(&self) -> f64 {
        self.app.balance(&self.admin, self.user.id, "conversations")
    }

    fn credits(&self) -> f64 {
        self.app.balance(&self.admin, self.user.id, "credits")
    }

    /// A chat that steers the simulated upstream.
    fn chat(&self, more: Value, steering: &[(&str, &str)]) -> crate::support::Answer {
        let mut conn = Conn::open(self.app.public);
        conn.send(self.request(more, steering));
        conn.read_answer()
    }

    fn request(&self, more: Value, steering: &[(&str, &str)]) -> Vec<u8> {
        let bearer = format!("Bearer {}", self.user.key);
        let headers = [&[("authorization", bearer.as_str())], steering].concat();
        request("POST", "/v1/chat/completions", &headers, Some(&chat_body(more)))
    }

    /// All calls are over and every hold is settled; then the books must balance.
    fn settled(&self) {
        wait_until("all holds are settled", || {
            self.app.metric("tollgate_holds_open") == 0.0 && self.app.metric("tollgate_in_flight") == 0.0
        });
        assert_eq!(self.app.metric("tollgate_panics_total"), 0.0);
        let path = format!("/v1/admin-panel/users/{}", self.user.id);
        let user = self.app.admin_call(&self.admin, "GET", &path, None).json();
        for (name, meter) in user["user"]["meters"].as_object().unwrap() {
            let number = |part: &str| meter[part].as_f64().unwrap();
            let parts = number("balance") + number("held") + number("spent");
            assert!((number("granted") - parts).abs() < 1e-6, "{name}: {meter}");
            assert!(number("balance") >= 0.0 && number("held") == 0.0, "{name}: {meter}");
        }
    }
}
