//! The shortest way through everything: register, call, see the credit go.

use serde_json::json;

use crate::support::TestApp;

#[test]
fn a_registered_user_s_call_reaches_the_upstream_and_costs_one() {
    let app = TestApp::start("");
    let user = app.register("alice");
    let answer = app.chat(&user.key, json!({}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("x-tollgate-remaining-conversations"), Some("9"));
    assert!(answer.header("x-request-id").unwrap().starts_with("req_"));
    assert_eq!(app.upstream.stats().total, 1);
}
