//! Support staff and the roster over sockets: levels down to single fields, and rules that keep somebody in charge.

use std::sync::Barrier;

use serde_json::{Value, json};

use crate::support::{ADMIN, PASSWORD, TestApp, TestUser, http};

struct Desk {
    app: TestApp,
    root: String,
    user: TestUser,
}

impl Desk {
    fn open() -> Self {
        let app = TestApp::start("[access]\nblock_after_failures = 0\n");
        let (root, user) = (app.admin_token(), app.register("alice"));
        Self { app, root, user }
    }

    fn hire(&self, level: &str) -> (u64, String) {
        let name = format!("{level}-{}", fastrand::u32(..));
        let mut body =
            json!({"username": name, "name": "Staff", "email": format!("{name}@example.com"), "password": PASSWORD});
        let path = if level == "admin" { "/v1/admin-panel/create-admin" } else { "/v1/support/create" };
        if level != "admin" {
            body["staff_level"] = level.into();
        }
        let made = self.call(&self.root, "POST", path, body);
        assert_eq!(made.0, 200, "{}", made.1);
        let id = made.1["staff"]["id"].as_u64().or(made.1["admin"]["id"].as_u64()).unwrap();
        (id, self.login(&name).unwrap())
    }

    fn login(&self, name: &str) -> Option<String> {
        let body = json!({"username": name, "password": PASSWORD});
        let answer = http::call(self.app.admin, "POST", "/v1/support/login", &[], Some(&body));
        answer.json()["session"]["session_token"].as_str().map(str::to_owned)
    }

    fn call(&self, token: &str, method: &str, path: &str, body: Value) -> (u16, Value) {
        let body = (method != "GET").then_some(body);
        let answer = self.app.admin_call(token, method, path, body.as_ref());
        (answer.status, answer.json())
    }

    fn put_user(&self, token: &str, body: Value) -> u16 {
        self.call(token, "PUT", &format!("/v1/support/users/{}", self.user.id), body).0
    }
}

#[test]
fn each_level_changes_its_own_fields_and_no_other() {
    let desk = Desk::open();
    let (_, new) = desk.hire("new");
    let (_, support) = desk.hire("support");
    let (_, advanced) = desk.hire("advanced");
    let support_fields = [
        json!({"email": "other@example.org"}),
        json!({"subscription_plan": "premium"}),
        json!({"credits": {"main": 50, "reset": 50}}),
        json!({"limits": {"conversation_limit": 50, "reset": 50}}),
    ];
    let advanced_fields = [
        json!({"name": "Alice B"}),
        json!({"about_me": "x"}),
        json!({"user_type": "Business"}),
        json!({"phone": "+49 30 1234567"}),
        json!({"level": "gold"}),
        json!({"access_rtype": ["bpe"]}),
        json!({"additional_notes": "calls on Mondays"}),
    ];
    let nobodys = [
        json!({"role": "pro"}),
        json!({"status": "banned"}),
        json!({"verification": "fully_verified"}),
        json!({"email_verified": true}),
    ];
    for field in &support_fields {
        assert_eq!((desk.put_user(&new, field.clone()), desk.put_user(&support, field.clone())), (403, 200), "{field}");
    }
    for field in &advanced_fields {
        assert_eq!(
            (desk.put_user(&support, field.clone()), desk.put_user(&advanced, field.clone())),
            (403, 200),
            "{field}"
        );
    }
    for field in &nobodys {
        assert_eq!(desk.put_user(&advanced, field.clone()), 403, "{field}");
    }
    // One field too many refuses the others with it.
    assert_eq!(desk.put_user(&support, json!({"email": "third@example.org", "name": "X Y"})), 403);
    let (_, seen) = desk.call(&advanced, "GET", "/v1/support/users/alice", json!({}));
    assert_eq!((&seen["user"]["email"], &seen["user"]["name"]), (&json!("other@example.org"), &json!("Alice B")));
    assert_eq!(seen["additional_notes"], "calls on Mondays");
    assert_eq!((&seen["user"]["phone"], &seen["user"]["is_verified"]), (&json!("+49 30 1234567"), &json!(false)));
    let (_, seen) = desk.call(&new, "GET", "/v1/support/users/alice", json!({}));
    assert_eq!((&seen["user"]["email"], &seen["user"]["phone"]), (&json!("o***@example.org"), &Value::Null));
    assert!(seen.get("additional_notes").is_none());
    // Support sees neither conversations nor keys; advanced does.
    for path in ["/v1/support/message-logs/1", "/v1/support/users/1/keys"] {
        assert_eq!(
            (desk.call(&support, "GET", path, json!({})).0, desk.call(&advanced, "GET", path, json!({})).0),
            (403, 200)
        );
    }
}

#[test]
fn permissions_answers_what_the_calls_do() {
    let desk = Desk::open();
    for (level, count) in [("new", 1), ("support", 6), ("advanced", 11)] {
        let (_, token) = desk.hire(level);
        let (status, body) = desk.call(&token, "GET", "/v1/support/permissions", json!({}));
        assert_eq!((status, &body["staff_level"]), (200, &json!(level)));
        let allowed = body["permissions"].as_array().unwrap().iter().filter(|p| p["allowed"] == true).count();
        assert_eq!(allowed, count, "{body}");
        let (_, own) = desk.call(&token, "GET", "/v1/support/profile", json!({}));
        assert_eq!(own["staff"]["role"], level);
    }
}

#[test]
fn a_password_that_staff_chose_opens_nothing_but_its_change() {
    let desk = Desk::open();
    let (_, support) = desk.hire("support");
    let login = |password: &str| {
        let body = json!({"email": desk.user.email, "password": password});
        let answer = desk.app.call("POST", "/v1/users/login", "", Some(&body));
        answer.json()["session"]["session_token"].as_str().map(str::to_owned)
    };
    let before = login(PASSWORD).unwrap();
    let path = format!("/v1/support/users/{}/reset-password", desk.user.id);
    assert_eq!(desk.call(&support, "POST", &path, json!({"new_password": "weak"})).0, 400);
    assert_eq!(desk.call(&support, "POST", &path, json!({"new_password": "NewSecurePass123"})).0, 200);
    assert_eq!(desk.app.call("GET", "/v1/users/profile", &before, None).status, 401);
    assert!(login(PASSWORD).is_none());
    let token = login("NewSecurePass123").unwrap();
    let refused = desk.app.call("GET", "/v1/users/profile", &token, None);
    assert_eq!((refused.status, refused.json()["error_code"].as_str().unwrap()), (403, "PASSWORD_CHANGE_REQUIRED"));
    assert_eq!(desk.app.chat(&token, json!({})).status, 403);
    assert_eq!(desk.app.chat(&desk.user.key, json!({})).status, 200, "a key is the user's own");
    let body = json!({"current_password": "NewSecurePass123", "new_password": "MyOwnPass456"});
    assert_eq!(desk.app.call("PUT", "/v1/users/password", &token, Some(&body)).status, 200);
    assert_eq!(desk.app.call("GET", "/v1/users/profile", &token, None).status, 200);
    assert_eq!(desk.app.chat(&token, json!({})).status, 200);
}

#[test]
fn nobody_raises_himself_and_a_demotion_holds_at_once() {
    let desk = Desk::open();
    let (admin_id, admin) = desk.hire("admin");
    let (support_id, support) = desk.hire("support");
    let change =
        |token: &str, id: u64, body: Value| desk.call(token, "PUT", &format!("/v1/admin-panel/staff/{id}"), body).0;
    assert_eq!(change(&support, support_id, json!({"role": "admin"})), 403);
    assert_eq!(change(&admin, admin_id, json!({"role": "superadmin"})), 403);
    assert_eq!(change(&admin, support_id, json!({"role": "admin"})), 403, "an admin makes no admins");
    assert_eq!(change(&admin, 1, json!({"name": "X"})), 403, "nor does he touch a superadmin");
    let reset = format!("/v1/admin-panel/staff/{admin_id}/reset-password");
    assert_eq!(desk.call(&support, "POST", &reset, json!({"new_password": PASSWORD})).0, 403);
    let made = desk.call(&admin, "POST", "/v1/admin-panel/create-admin", json!({}));
    assert_eq!(made.0, 403);
    let credits = json!({"credits": {"main": 7}});
    assert_eq!(desk.put_user(&support, credits.clone()), 200);
    assert_eq!(change(&admin, support_id, json!({"role": "new"})), 200);
    assert_eq!(desk.put_user(&support, credits), 403, "with the next call");
    assert_eq!(change(&admin, support_id, json!({"is_active": false})), 200);
    assert_eq!(desk.call(&support, "GET", "/v1/support/users", json!({})).0, 401);
    assert_eq!(change(&admin, support_id, json!({"is_active": true})), 200);
    assert_eq!(desk.call(&support, "GET", "/v1/support/users", json!({})).0, 401, "old sessions stay dead");
    assert_eq!(change(&desk.root, admin_id, json!({"role": "advanced"})), 200);
    assert_eq!(desk.call(&admin, "GET", "/v1/admin-panel/users", json!({})).0, 403);
}

#[test]
fn a_stolen_session_of_staff_does_not_become_his_password() {
    let desk = Desk::open();
    let (id, admin) = desk.hire("admin");
    let path = format!("/v1/admin-panel/staff/{id}/reset-password");
    let reset = |token: &str, body: Value| desk.call(token, "POST", &path, body);
    let (status, answer) = reset(&admin, json!({"new_password": "AnotherPass1"}));
    assert_eq!((status, &answer["errors"]), (400, &json!(["current_password: is required"])));
    let guess = json!({"new_password": "AnotherPass1", "current_password": "WrongPass1"});
    assert_eq!(reset(&admin, guess).1["error_code"], "WRONG_PASSWORD");
    let right = json!({"new_password": "AnotherPass1", "current_password": PASSWORD});
    assert_eq!(reset(&admin, right).0, 200);
    assert_eq!(desk.call(&admin, "GET", "/v1/admin-panel/users", json!({})).0, 401, "his sessions end");
    // For another a superadmin needs none.
    assert_eq!(reset(&desk.root, json!({"new_password": "AnotherPass2"})).0, 200);
}

#[test]
fn there_is_always_a_superadmin() {
    let desk = Desk::open();
    let change =
        |token: &str, id: u64, body: Value| desk.call(token, "PUT", &format!("/v1/admin-panel/staff/{id}"), body).0;
    assert_eq!(change(&desk.root, 1, json!({"role": "admin"})), 403, "nobody demotes himself");
    let (second, other) = desk.hire("admin");
    assert_eq!(change(&desk.root, second, json!({"role": "superadmin"})), 200);
    // Two who remove each other at the same moment: one of them stays.
    let barrier = Barrier::new(2);
    let remove = |token: &str, id: u64| {
        barrier.wait();
        change(token, id, json!({"is_active": false}))
    };
    let (a, b) = std::thread::scope(|scope| {
        let a = scope.spawn(|| remove(&desk.root, second));
        let b = scope.spawn(|| remove(&other, 1));
        (a.join().unwrap(), b.join().unwrap())
    });
    assert_eq!([a, b].iter().filter(|status| **status == 200).count(), 1, "{a} {b}");
    let left = if a == 200 { &desk.root } else { &other };
    assert_eq!(desk.call(left, "GET", "/v1/admin-panel/staff", json!({})).0, 200);
    // And the operator's token cannot remove the last one either.
    let file = std::fs::read_to_string(desk.app.dir.path().join("run/operator.json")).unwrap();
    let operator: Value = serde_json::from_str(&file).unwrap();
    let last = if a == 200 { 1 } else { second };
    assert_eq!(change(operator["token"].as_str().unwrap(), last, json!({"is_active": false})), 409);
}

#[test]
fn a_logout_on_the_side_port_ends_that_session() {
    let desk = Desk::open();
    let again = desk.login(ADMIN).unwrap();
    assert_eq!(desk.call(&again, "POST", "/v1/admin-panel/logout", json!({})).0, 200);
    assert_eq!(desk.call(&again, "GET", "/v1/admin-panel/users", json!({})).0, 401);
    assert_eq!(desk.call(&desk.root, "GET", "/v1/admin-panel/users", json!({})).0, 200);
    let (_, support) = desk.hire("support");
    assert_eq!(desk.call(&support, "POST", "/v1/support/logout", json!({})).0, 200);
    assert_eq!(desk.call(&support, "POST", "/v1/support/logout", json!({})).0, 401);
}

#[test]
fn an_address_that_staff_writes_is_not_verified_by_that() {
    let desk = Desk::open();
    let path = format!("/v1/admin-panel/users/{}", desk.user.id);
    assert_eq!(desk.call(&desk.root, "PUT", &path, json!({"email_verified": true})).0, 200);
    let (_, support) = desk.hire("support");
    let is_verified = || desk.call(&desk.root, "GET", &path, json!({})).1["user"]["is_verified"].clone();
    assert_eq!(is_verified(), true);
    // Another spelling is the same address.
    assert_eq!(desk.put_user(&support, json!({"email": "Alice@Example.com"})), 200);
    assert_eq!(is_verified(), true);
    assert_eq!(desk.put_user(&support, json!({"email": "other@example.com"})), 200);
    assert_eq!(is_verified(), false);
    assert_eq!(
        desk.call(&desk.root, "PUT", &path, json!({"email": "third@example.com", "email_verified": true})).0,
        200
    );
    assert_eq!(is_verified(), true);
}

#[test]
fn who_does_not_see_addresses_does_not_find_them_out_by_asking() {
    let desk = Desk::open();
    let ((_, new), (_, support)) = (desk.hire("new"), desk.hire("support"));
    let found = |token: &str, query: &str| {
        let (status, page) = desk.call(token, "GET", &format!("/v1/support/users?{query}"), json!({}));
        assert_eq!(status, 200, "{page}");
        page["total"].as_u64().unwrap()
    };
    for query in ["search=alice@exam", "search=example.com"] {
        assert_eq!((found(&new, query), found(&support, query)), (0, 1), "{query}");
    }
    assert_eq!((found(&new, "search=ALI"), found(&support, "search=ALI")), (1, 1));
    assert_eq!(desk.call(&new, "GET", "/v1/support/users?sort=email", json!({})).0, 403);
    assert_eq!(desk.call(&support, "GET", "/v1/support/users?sort=email", json!({})).0, 200);
    let by_address = format!("/v1/support/users/{}", desk.user.email);
    assert_eq!(
        (desk.call(&new, "GET", &by_address, json!({})).0, desk.call(&support, "GET", &by_address, json!({})).0),
        (404, 200)
    );
}
