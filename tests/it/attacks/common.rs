//! What these tests have in common: rows that the test can change, logins, and many at once.

use std::sync::Arc;

use serde_json::{Value, json};
use tollgate::domain::ids::UserId;
use tollgate::domain::user::User;
use tollgate::store::memory::MemoryStore;
use tollgate::store::{Batch, Store, tables};

use crate::support::{Answer, Options, TestApp, http};

/// A gateway whose rows the test can change, as somebody could who has the store and not the secrets.
pub fn on_store(toml: &str) -> (TestApp, Arc<MemoryStore>) {
    let store = Arc::new(MemoryStore::default());
    let options = Options {
        toml: toml.to_owned(),
        store: Some(store.clone()),
        manual_clock: Some("2026-01-15T12:00:00Z"),
        ..Options::default()
    };
    (TestApp::with(options), store)
}

pub fn put(store: &MemoryStore, key: Vec<u8>, value: Vec<u8>) {
    let mut batch = Batch::default();
    batch.put(key, value);
    store.commit(&batch).unwrap();
}

pub fn user_row(store: &MemoryStore, id: u64) -> User {
    tables::read(store, &tables::user(UserId(id))).unwrap().unwrap()
}

/// Gives a user a hash as an import would bring it; `None`: no password at all.
pub fn give_hash(store: &MemoryStore, id: u64, hash: Option<&str>) {
    let user = User { password_hash: hash.map(str::to_owned), ..user_row(store, id) };
    put(store, tables::user(UserId(id)), tables::encode(&user).unwrap());
}

pub fn try_login(app: &TestApp, name: &str, password: &str) -> Answer {
    try_login_from(app, name, password, None)
}

pub fn try_login_from(app: &TestApp, name: &str, password: &str, device: Option<&str>) -> Answer {
    let headers: Vec<(&str, &str)> = device.iter().map(|text| ("x-tollgate-device", *text)).collect();
    let body = json!({"email": name, "password": password});
    http::call(app.public, "POST", "/v1/users/login", &headers, Some(&body))
}

pub fn login(app: &TestApp, name: &str, password: &str) -> Value {
    let answer = try_login(app, name, password);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["session"].clone()
}

pub fn token(session: &Value) -> &str {
    session["session_token"].as_str().unwrap()
}

pub fn refresh(app: &TestApp, token: &Value) -> (u16, Value) {
    let answer = app.call("POST", "/v1/users/refresh", "", Some(&json!({"refresh_token": token})));
    (answer.status, answer.json()["session"].clone())
}

pub fn opens(app: &TestApp, token: &str) -> u16 {
    app.call("GET", "/v1/users/profile", token, None).status
}

/// Runs `one` in so many threads that begin together.
pub fn at_once<T: Send>(count: usize, one: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let barrier = std::sync::Barrier::new(count);
    std::thread::scope(|scope| {
        let (one, barrier) = (&one, &barrier);
        let run = |n: usize| {
            scope.spawn(move || {
                barrier.wait();
                one(n)
            })
        };
        let threads: Vec<_> = (0..count).map(run).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
