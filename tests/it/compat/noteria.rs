//! Noteria, by its document: codes are given, used up, counted and taken away as files.

use serde_json::{Value, json};

use super::transcript::{To, Transcript, fits};
use crate::support::{ADMIN, Answer, Conn, PASSWORD, TestApp, http};

fn admin(app: &TestApp) -> String {
    let body = json!({"email": ADMIN, "password": PASSWORD});
    let login = http::call(app.admin, "POST", "/noteria/login.php", &[], Some(&body));
    login.json()["session_token"].as_str().unwrap_or_else(|| panic!("{}", login.text())).to_owned()
}

fn codes(app: &TestApp, root: &str, user: u64) -> Vec<String> {
    let path = format!("/noteria/export_user_codes.php?user_id={user}&format=json");
    let all = app.admin_call(root, "GET", &path, None).json();
    all.as_array().unwrap().iter().map(|item| item["code"].as_str().unwrap().to_owned()).collect()
}

fn post_form(app: &TestApp, content_type: &str, body: &str) -> Answer {
    let mut conn = Conn::open(app.public);
    conn.send(format!(
        "POST /noteria/login.php HTTP/1.1\r\nhost: x\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ));
    conn.read_answer()
}

#[test]
fn every_page_of_its_document_is_answered() {
    let app = TestApp::start("");
    let user = app.register("ana");
    let mut t = Transcript::new(&app);
    let root = admin(&app);
    let made = t.call(To::Side, "POST /noteria/generate_user_codes.php?user_id=1&count=1000000", Some(&root), None);
    assert_eq!((made.status, &made.json()["generated"]), (200, &json!(1_000_000)), "{}", made.text());
    // What the document opens by GET is posted here: a page changes nothing by being opened.
    let opened = t.call(To::Side, "GET /noteria/generate_user_codes.php?user_id=1&count=1000000", Some(&root), None);
    assert_eq!((opened.status, opened.header("allow")), (405, Some("POST")));
    let stats = t.call(To::Side, "GET /noteria/admin_unique_codes.php", Some(&root), None);
    fits(&stats, &json!({"users": 1, "total_codes": 1, "available": 1, "used": 0, "percent_used": 0.0}));
    assert_eq!((&stats.json()["total_codes"], &stats.json()["available"]), (&json!(1_000_000), &json!(1_000_000)));
    let act = json!({"action": "generate_all", "count": 5});
    let all = t.call(To::Side, "POST /noteria/admin_unique_codes.php", Some(&root), Some(&act));
    assert_eq!((&all.json()["users"], &all.json()["generated"]), (&json!(1), &json!(5)), "{}", all.text());
    let act = json!({"action": "generate", "user_id": 1, "count": 5});
    assert_eq!(t.call(To::Side, "POST /noteria/admin_unique_codes.php", Some(&root), Some(&act)).status, 200);
    let list = codes(&app, &root, user.id);
    assert_eq!(list.len(), 1_000_010);
    assert!(list.iter().all(|code| code.len() == 16 && code.bytes().all(|b| b"0123456789ABCDEF".contains(&b))));
    let body = json!({"email": user.email, "password": PASSWORD, "unique_code": list[0]});
    let login = t.call(To::Public, "POST /noteria/login.php", None, Some(&body));
    assert_eq!((login.status, &login.json()["codes_left"]), (200, &json!(1_000_009)), "{}", login.text());
    let again = t.call(To::Public, "POST /noteria/login.php", None, Some(&body));
    assert_eq!((again.status, &again.json()["message"]), (401, &json!("Kodi unik nuk është i vlefshëm")));
    assert_eq!(again.json()["error"], again.json()["message"]);
    let without = json!({"email": user.email, "password": PASSWORD});
    assert_eq!(
        t.call(To::Public, "POST /noteria/login.php", None, Some(&without)).error_code(),
        "UNIQUE_CODE_REQUIRED"
    );
    let stats = t.call(To::Side, "GET /noteria/admin_unique_codes.php?user_id=ana", Some(&root), None);
    assert_eq!((&stats.json()["used"], &stats.json()["available"]), (&json!(1), &json!(1_000_009)));
    assert!((stats.json()["percent_used"].as_f64().unwrap() - 0.0001).abs() < 1e-4, "{}", stats.text());
    let csv = app.admin_call(&root, "GET", "/noteria/export_user_codes.php?user_id=1&format=csv", None);
    assert_eq!((csv.header("content-type"), csv.text().lines().count()), (Some("text/csv; charset=utf-8"), 1_000_011));
    insta::assert_snapshot!("noteria", t.text());
}

/// The page's form sends no JSON.
#[test]
fn forms_are_understood_as_the_page_sends_them() {
    let app = TestApp::start("");
    let (user, root) = (app.register("ana"), admin(&app));
    app.admin_call(&root, "POST", "/noteria/generate_user_codes.php?user_id=ana&count=2", None);
    let list = codes(&app, &root, user.id);
    let form = format!("login_method=kod_unik&email=ana%40example.com&password={PASSWORD}&kodi_unik={}", list[0]);
    let in_a_form = post_form(&app, "application/x-www-form-urlencoded", &form);
    assert_eq!(in_a_form.status, 200, "{}", in_a_form.text());
    let part =
        |name: &str, value: &str| format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
    let file = "--b\r\nContent-Disposition: form-data; name=\"foto\"; filename=\"id.jpg\"\r\nContent-Type: \
                image/jpeg\r\n\r\n\u{1}\u{2}\r\n";
    let fields = [part("email", &user.email), part("password", PASSWORD), part("kodi_unik", &list[1])].concat();
    let whole = format!("{fields}{file}--b--\r\n");
    let in_parts = post_form(&app, "multipart/form-data; boundary=b", &whole);
    assert_eq!(in_parts.status, 200, "{}", in_parts.text());
    for (content_type, body) in [
        ("multipart/form-data", whole.as_str()),
        ("multipart/form-data; boundary=b", "--b\r\nnonsense"),
        ("multipart/form-data; boundary=b", ""),
        ("application/json", "{"),
        ("application/json", "[]"),
        ("application/x-www-form-urlencoded", "email"),
    ] {
        let refused = post_form(&app, content_type, body);
        assert!((400..500).contains(&refused.status), "{content_type} {body:?}: {} {}", refused.status, refused.text());
        assert_eq!(refused.json()["error"], refused.json()["message"], "{content_type} {body:?}");
    }
}

#[test]
fn who_is_no_administrator_gives_no_codes() {
    let app = TestApp::start("");
    let root = app.admin_token();
    app.register("ana");
    let staff = json!({"username": "support1", "name": "S", "email": "s@example.com", "password": PASSWORD,
        "staff_level": "advanced"});
    assert_eq!(app.admin_call(&root, "POST", "/v1/support/create", Some(&staff)).status, 200);
    let body = json!({"username": "support1", "password": PASSWORD});
    let login: Value = http::call(app.admin, "POST", "/v1/support/login", &[], Some(&body)).json();
    let support = login["session"]["session_token"].as_str().unwrap();
    for (method, path) in [
        ("POST", "/noteria/generate_user_codes.php?user_id=1&count=1"),
        ("GET", "/noteria/admin_unique_codes.php"),
        ("POST", "/noteria/admin_unique_codes.php"),
        ("GET", "/noteria/export_user_codes.php?user_id=1"),
    ] {
        assert_eq!(app.admin_call(support, method, path, None).status, 403, "{method} {path}");
        assert_eq!(app.admin_call("nobody", method, path, None).status, 401, "{method} {path}");
        assert_eq!(app.call(method, path, support, None).status, 404, "not on the public port: {method} {path}");
    }
}
