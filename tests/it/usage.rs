//! Quotas and usage: what is left, what was spent today, this month and on each day, and that all of it adds up.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Options, PASSWORD, TestApp, http, wait_until};

const DAY: Duration = Duration::from_secs(86_400);

fn start() -> TestApp {
    TestApp::with(Options {
        manual_clock: Some("2026-01-30T12:00:00Z"),
        toml: "[accounts]\nsession_hours = 100000\nadmin_session_hours = 100000\n".into(),
        ..Options::default()
    })
}

fn session(app: &TestApp, email: &str) -> String {
    let body = json!({"email": email, "password": PASSWORD});
    let answer = http::call(app.public, "POST", "/v1/users/login", &[], Some(&body));
    answer.json()["session"]["session_token"].as_str().unwrap().to_owned()
}

/// Moves on to the next day, and waits until the one before has been read.
fn next_day(app: &TestApp) {
    let closed = || app.metric("tollgate_task_runs_total{task=\"daily_usage\",result=\"ok\"}");
    let before = closed();
    app.hands.as_ref().unwrap().advance(DAY);
    wait_until("the day is read", || closed() > before);
}

#[test]
fn days_add_up_to_what_the_ledger_says() {
    let app = start();
    let (alice, bobby, root) = (app.register("alice"), app.register("bobby"), app.admin_token());
    let token = session(&app, &alice.email);
    wait_until("the start's reading", || {
        app.metric("tollgate_task_runs_total{task=\"daily_usage\",result=\"ok\"}") >= 1.0
    });
    let spend = |key: &str, calls: usize| {
        for _ in 0..calls {
            assert_eq!(app.chat(key, json!({})).status, 200);
        }
    };
    let usage = || app.call("GET", "/v1/users/usage", &token, None).json();
    spend(&alice.key, 3);
    assert_eq!((&usage()["today"]["conversations"], &usage()["month"]["conversations"]), (&json!(3), &json!(3)));
    assert_eq!(usage()["today"]["images"], json!(0));
    assert_eq!((&usage()["storage_mb"], &usage()["price"]), (&json!(100), &json!("€0")));
    next_day(&app);
    assert_eq!((&usage()["today"]["conversations"], &usage()["month"]["conversations"]), (&json!(0), &json!(3)));
    spend(&alice.key, 2);
    spend(&bobby.key, 4);
    next_day(&app);
    // February.
    spend(&alice.key, 5);
    assert_eq!((&usage()["today"]["conversations"], &usage()["month"]["conversations"]), (&json!(5), &json!(5)));
    next_day(&app);
    next_day(&app);
    let history = app.call("GET", "/v1/users/usage/history", &token, None).json();
    let days: Vec<(&str, f64)> = history["days"]
        .as_array()
        .unwrap()
        .iter()
        .map(|day| (day["date"].as_str().unwrap(), day["used"]["conversations"].as_f64().unwrap()))
        .collect();
    assert_eq!(days, [("2026-02-01", 5.0), ("2026-01-31", 2.0), ("2026-01-30", 3.0)]);
    let seen = app.admin_call(&root, "GET", &format!("/v1/admin-panel/users/{}/usage", alice.id), None).json();
    assert_eq!(seen["total"]["conversations"], json!(10));
    let all = app.admin_call(&root, "GET", "/v1/admin-panel/usage?days=10", None).json();
    let all: Vec<Value> = all["days"].as_array().unwrap().clone();
    let of = |date: &str| all.iter().find(|day| day["date"] == date).unwrap_or_else(|| panic!("{date}: {all:?}"));
    assert_eq!((&of("2026-01-31")["used"]["conversations"], &of("2026-01-31")["active_users"]), (&json!(6), &json!(2)));
    assert_eq!((&of("2026-02-02")["active_users"], &of("2026-02-02")["users"]), (&json!(0), &json!(2)));
    for bad in ["0", "367", "x"] {
        assert_eq!(app.call("GET", &format!("/v1/users/usage/history?days={bad}"), &token, None).status, 400);
    }
    assert_eq!(app.call("GET", "/v1/users/usage/history?days=1", &token, None).json()["days"], json!([]));
}

#[test]
fn a_quota_is_used_up_and_one_without_a_limit_is_not() {
    let app = TestApp::with(Options {
        route: "[[routes]]\npath = \"/v1/*\"\nupstream = \"ai\"\ncost = { images = 4 }\n",
        ..Options::default()
    });
    let (user, root) = (app.register("alice"), app.admin_token());
    let token = session(&app, &user.email);
    let quota = || app.call("GET", "/v1/users/quota", &token, None).json()["quota"]["images"].clone();
    assert_eq!(
        (&quota()["limit"], &quota()["remaining"], &quota()["unlimited"]),
        (&json!(20), &json!(20), &json!(false))
    );
    // Five at most, however many come at once.
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..20).map(|_| scope.spawn(|| app.chat(&user.key, json!({})).status)).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 5, "{statuses:?}");
    assert_eq!((&quota()["used"], &quota()["remaining"]), (&json!(20), &json!(0)));
    let path = format!("/v1/admin-panel/users/{}", user.id);
    let changed = app.admin_call(&root, "PUT", &path, Some(&json!({"subscription_plan": "enterprise"})));
    assert_eq!(changed.status, 200, "{}", changed.text());
    for _ in 0..3 {
        assert_eq!(app.chat(&user.key, json!({})).status, 200);
    }
    let unlimited = quota();
    assert_eq!(
        (&unlimited["unlimited"], &unlimited["remaining"], &unlimited["used"]),
        (&json!(true), &json!(2_147_483_647), &json!(12))
    );
    assert_eq!(app.call("GET", "/v1/users/usage", &token, None).json()["today"]["images"], json!(32));
    // Back.
    let changed = app.admin_call(&root, "PUT", &path, Some(&json!({"subscription_plan": "free"})));
    assert_eq!(changed.status, 200);
    assert_eq!(quota()["unlimited"], json!(false));
    assert_eq!(quota()["remaining"], json!(20), "what had no limit has one at once");
}

#[test]
fn a_meter_without_a_limit_goes_with_the_plan_that_gave_it() {
    let app = TestApp::with(Options {
        toml: "[plans.big.meters]\ntokens = { grant = \"unlimited\", period = \"daily\" }\n".into(),
        route: "[[routes]]\npath = \"/v1/*\"\nupstream = \"ai\"\ncost = { tokens = 1 }\n",
        ..Options::default()
    });
    let (user, root) = (app.register("alice"), app.admin_token());
    let plan = |name: &str| {
        let path = format!("/v1/admin-panel/users/{}/plan", user.id);
        assert_eq!(app.admin_call(&root, "PUT", &path, Some(&json!({"plan": name}))).status, 200);
    };
    assert_eq!(app.chat(&user.key, json!({})).status, 429);
    plan("big");
    assert_eq!(app.chat(&user.key, json!({})).status, 200);
    plan("free");
    assert_eq!(app.chat(&user.key, json!({})).status, 429, "it is not his any more");
}
