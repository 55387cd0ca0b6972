//! `ledger verify`, with the server stopped and running.

use serde_json::json;
use tollgate::domain::ids::UserId;
use tollgate::store::redb::RedbStore;
use tollgate::store::sled::SledStore;
use tollgate::store::{Batch, Store, tables};

use super::{BACKENDS, Person, site_on};
use crate::support::{TestApp, http};

#[test]
fn sound_books_are_found_sound_with_the_server_running_and_stopped() {
    let mock = TestApp::start("");
    for backend in BACKENDS {
        let site = site_on(backend, mock.upstream.addr());
        assert_eq!(site.run(&["ledger", "verify"], &[]).code, Some(1), "there is no store yet");
        assert!(!site.dir.path().join("data/store.json").exists(), "and looking for one makes none");
        let server = site.serve(&[]);
        let people = ["anna", "bert", "carl"].map(|name| Person::new(&site, name));
        for person in &people {
            assert_eq!(person.says(&site, "hello").status, 200);
        }
        let running = site.run(&["ledger", "verify"], &[]);
        assert_eq!((running.code, running.out.as_str()), (Some(0), "3 users with 15 meters\n"), "{}", running.err);
        assert_eq!(running.err, "", "no progress in a pipe");
        assert_eq!(server.terminate(), Some(0));
        let stopped = site.run(&["ledger", "verify"], &[]);
        assert_eq!((stopped.code, stopped.out.as_str()), (Some(0), "3 users with 15 meters\n"), "{}", stopped.err);
    }
}

#[test]
fn whoever_is_off_is_named_and_the_command_fails() {
    let mock = TestApp::start("");
    for backend in BACKENDS {
        let site = site_on(backend, mock.upstream.addr());
        let server = site.serve(&[]);
        let [anna, bert, carl] = ["anna", "bert", "carl"].map(|name| Person::new(&site, name));
        assert_eq!(server.terminate(), Some(0));
        // Behind the gateway's back, as a bug or a hand in the files would.
        let data = site.dir.path().join("data");
        let settled = site.run(&["ledger", "verify"], &[]);
        assert_eq!(settled.code, Some(0), "{}", settled.err);
        let store: Box<dyn Store> = match backend {
            "sled" => Box::new(SledStore::open(&data.join("store"), 1 << 20).unwrap()),
            _ => Box::new(RedbStore::open(&data.join("store-redb"), 1 << 20).unwrap()),
        };
        let mut batch = Batch::default();
        let meter = |b: i64, s: i64, g: i64| json!({"b": b, "h": 0, "s": s, "g": g, "r": 0, "p": "never", "l": 0});
        let richer = json!({"meters": [["credits", meter(7_000_000, 0, 5_000_000)]]});
        batch.put(tables::meters(UserId(bert.id)), tables::encode(&richer).unwrap());
        batch.put(tables::meters(UserId(carl.id)), b"not a row".to_vec());
        store.commit(&batch).unwrap();
        drop(store);
        let expected = [
            format!(
                "user {} (bert), credits: 2 more than was granted: balance 7 + held 0 + spent 0 against 5",
                bert.id
            ),
            format!("user {} (carl): his account cannot be read: row format 110 is not one of this version", carl.id),
            "3 users with 6 meters".into(),
        ];
        let stopped = site.run(&["ledger", "verify"], &[]);
        assert_eq!(stopped.code, Some(1));
        assert_eq!(stopped.out.lines().collect::<Vec<_>>(), expected, "{backend}");
        let _server = site.serve(&[]);
        let running = site.run(&["ledger", "verify"], &[]);
        assert_eq!(running.code, Some(1));
        assert_eq!(running.out.lines().collect::<Vec<_>>(), expected, "{backend}");
        assert_eq!(anna.says(&site, "still here").status, 200);
    }
}

#[test]
fn only_staff_may_ask_a_running_server() {
    let app = TestApp::start("");
    let user = app.register("johndoe");
    let bearer = format!("Bearer {}", user.key);
    for path in ["/v1/admin-panel/ledger/verify", "/v1/admin-panel/backup"] {
        assert_eq!(http::call(app.admin, "GET", path, &[], None).status, 401, "{path}");
        assert_eq!(http::call(app.admin, "GET", path, &[("authorization", &bearer)], None).status, 401, "{path}");
        assert_eq!(http::call(app.public, "GET", path, &[], None).status, 404, "{path} is not on the public port");
    }
    let token = app.admin_token();
    let report = app.admin_call(&token, "GET", "/v1/admin-panel/ledger/verify", None);
    assert_eq!((report.status, report.json()["problems"].as_u64()), (200, Some(0)), "{}", report.text());
}
