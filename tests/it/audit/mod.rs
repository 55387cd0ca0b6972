//! The audit trail over sockets and as files: every act leaves its record, nothing secret gets in, and what is done to the
//! files shows.

mod acts;
mod commands;
mod failing;

use serde_json::Value;

use crate::support::{Answer, TestApp};

/// The newest records that match, as the side port shows them.
fn logs(app: &TestApp, token: &str, query: &str) -> Vec<Value> {
    let answer = panel(app, token, "GET", &format!("security-logs?{query}"), None);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["items"].as_array().unwrap().clone()
}

fn panel(app: &TestApp, token: &str, method: &str, path: &str, body: Option<Value>) -> Answer {
    app.admin_call(token, method, &format!("/v1/admin-panel/{path}"), body.as_ref())
}
