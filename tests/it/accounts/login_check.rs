//! Logins that a verifier judges: what it is asked, that its no and its silence keep everybody out, and that what a login
//! brought is found nowhere afterwards.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use super::mfa;
use super::process::Site;
use crate::attacks::common::{at_once, give_hash, on_store, user_row};
use crate::fake_upstream::{FakeUpstream, Wire};
use crate::oauth::{arrive, cookie_of, depart, person, sign_in};
use crate::support::idp::{IdentityProvider, Sent};
use crate::support::{Answer, Options, PASSWORD, TestApp, TestUser, http, wait_until};

const NOON: &str = "2026-01-15T12:00:00Z";
const NUMBER: &str = "1234567890";
const PHOTO: &str = "UEhPVE8tT0YtQUxJQ0U=";

/// A verifier over HTTP that says what it is told to, and keeps who asks while it is told to hold.
struct Verifier {
    fake: FakeUpstream,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    now: Mutex<Now>,
    changed: Condvar,
}

#[derive(Default)]
struct Now {
    answer: String,
    holds: bool,
    inside: usize,
    /// Heads and bodies.
    asked: Vec<(String, Value)>,
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn no(reason: &str) -> String {
    ok(&json!({"allow": false, "reason": reason}).to_string())
}

impl Verifier {
    fn start() -> Self {
        let state = Arc::new(State::default());
        let shared = state.clone();
        let verifier = Self { fake: FakeUpstream::start(move |wire| shared.serve(wire)), state };
        verifier.says(ok("{\"allow\": true}"));
        verifier
    }

    fn says(&self, answer: impl Into<String>) {
        self.state.now.lock().unwrap().answer = answer.into();
    }

    fn hold(&self, holds: bool) {
        self.state.now.lock().unwrap().holds = holds;
        self.state.changed.notify_all();
    }

    fn asked(&self) -> usize {
        self.state.now.lock().unwrap().asked.len()
    }

    fn inside(&self) -> usize {
        self.state.now.lock().unwrap().inside
    }

    fn last(&self) -> (String, Value) {
        self.state.now.lock().unwrap().asked.last().cloned().unwrap()
    }

    /// With the factors of the notary's office, unless `more` says otherwise.
    fn config(&self, more: &str) -> String {
        let required = if more.contains("required") { "" } else { "required = [\"photo\", \"personal_number\"]\n" };
        format!(
            "[accounts]\nhash_queue = 200\n[accounts.login_check]\nurl = \"http://{}/check\"\nsecret = \"between-us\"\n{required}{more}\n",
            self.fake.addr
        )
    }
}

impl Drop for Verifier {
    fn drop(&mut self) {
        self.hold(false);
    }
}

impl State {
    fn serve(&self, wire: &mut Wire) {
        while let Some(text) = wire.read_request() {
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            let mut now = self.now.lock().unwrap();
            now.asked.push((head.to_owned(), serde_json::from_str(body).unwrap_or_default()));
            now.inside += 1;
            let mut now = self.changed.wait_while(now, |now| now.holds).unwrap();
            now.inside -= 1;
            let answer = now.answer.clone();
            drop(now);
            wire.send(&answer);
            // More was promised than comes.
            if answer.is_empty() || answer.contains("content-length: 999") {
                return;
            }
        }
    }
}

fn start(verifier: &Verifier, more: &str) -> TestApp {
    TestApp::with(Options { toml: verifier.config(more), manual_clock: Some(NOON), ..Options::default() })
}

fn good() -> Value {
    json!({"photo": PHOTO, "personal_number": NUMBER, "role": "notary"})
}

/// A login with the usual password and factors; `more` is merged into the body.
fn enter(app: &TestApp, email: &str, more: Value) -> Answer {
    let mut body = json!({"email": email, "password": PASSWORD, "factors": good()});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    http::call(app.public, "POST", "/v1/users/login", &[], Some(&body))
}

fn said(answer: &Answer) -> (u16, String) {
    (answer.status, answer.error_code())
}

fn refused() -> (u16, String) {
    (401, "FACTOR_REFUSED".into())
}

fn unavailable() -> (u16, String) {
    (503, "OVERLOADED".into())
}

fn checks(app: &TestApp, result: &str) -> f64 {
    app.metric(&format!("tollgate_login_checks_total{{result=\"{result}\"}}"))
}

fn give_codes(app: &TestApp, root: &str, user: &TestUser, count: usize) -> Vec<String> {
    let path = format!("/v1/admin-panel/users/{}/codes", user.id);
    assert_eq!(app.admin_call(root, "POST", &path, Some(&json!({"count": count}))).status, 200);
    let all = app.admin_call(root, "GET", &format!("{path}/export?format=json"), None).json();
    all.as_array().unwrap().iter().map(|item| item["code"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_verifier_is_asked_and_its_yes_lets_in() {
    let verifier = Verifier::start();
    let app = start(&verifier, "");
    let alice = app.register("alice");
    let answer = enter(&app, &alice.email, json!({}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let (head, question) = verifier.last();
    assert!(head.starts_with("POST /check HTTP/1.1\r\n"), "{head}");
    let fields: Vec<String> = head.lines().map(str::to_lowercase).collect();
    for field in ["authorization: bearer between-us", "content-type: application/json"] {
        assert!(fields.iter().any(|line| line == field), "{head}");
    }
    assert_eq!(
        question,
        json!({"user_id": alice.id, "username": "alice", "email": alice.email, "address": "127.0.0.1",
            "request_id": answer.header("x-request-id").unwrap(), "factors": good()})
    );
    assert_eq!((verifier.asked(), checks(&app, "allowed")), (1, 1.0));
    assert!(!app.admin_token().is_empty(), "staff is none of its business");
    assert_eq!(verifier.asked(), 1);
}

#[test]
fn what_is_missing_or_malformed_is_told_and_nobody_is_asked() {
    let verifier = Verifier::start();
    let mut app = start(&verifier, "");
    let alice = app.register("alice");
    for factors in [json!(null), json!({}), json!({"photo": null, "personal_number": " "})] {
        let answer = enter(&app, &alice.email, json!({"factors": factors}));
        assert_eq!(said(&answer), (401, "FACTORS_REQUIRED".into()), "{}", answer.text());
        assert_eq!(answer.json()["message"], "A login here needs factors.photo, factors.personal_number");
        let each = json!(["factors.photo: is required", "factors.personal_number: is required"]);
        assert_eq!(answer.json()["errors"], each);
    }
    let with = |name: &str, value: Value| {
        let mut factors = good();
        factors[name] = value;
        enter(&app, &alice.email, json!({"factors": factors}))
    };
    for bad in ["123456789", "12345678901", "123456789a", "1234567890 ", "١٢٣٤٥٦٧٨٩٠"] {
        let answer = with("personal_number", json!(bad));
        assert_eq!(said(&answer), (400, "BAD_REQUEST".into()));
        assert_eq!(answer.json()["errors"], json!(["factors.personal_number: must be 10 digits"]));
        assert!(!answer.text().contains(bad));
    }
    assert_eq!(with("Photo", json!("x")).status, 400, "not a name");
    assert_eq!(with("role", json!(7)).json()["errors"], json!(["factors: must be an object of strings"]));
    assert_eq!(enter(&app, &alice.email, json!({"factors": "x"})).status, 400);
    assert_eq!((verifier.asked(), checks(&app, "refused")), (0, 0.0));
    app.reload(&verifier.config("max_bytes = 100"));
    assert_eq!(enter(&app, &alice.email, json!({})).status, 200);
    let mut factors = good();
    factors["photo"] = json!("A".repeat(100));
    let answer = enter(&app, &alice.email, json!({"factors": factors}));
    assert_eq!(said(&answer), (413, "BODY_TOO_LARGE".into()), "{}", answer.text());
    assert_eq!(verifier.asked(), 1);
}

#[test]
fn a_no_is_told_counted_and_burns_no_code() {
    let verifier = Verifier::start();
    let app = start(&verifier, "");
    let (alice, root) = (app.register("alice"), app.admin_token());
    let code = give_codes(&app, &root, &alice, 1).remove(0);
    verifier.says(no("The photo is too dark"));
    for _ in 0..4 {
        let answer = enter(&app, &alice.email, json!({"unique_code": code}));
        assert_eq!(said(&answer), refused(), "{}", answer.text());
        assert_eq!(answer.json()["message"], "The login was refused: The photo is too dark");
    }
    verifier.says(ok("{\"allow\": true}"));
    assert_eq!(enter(&app, &alice.email, json!({"unique_code": code})).status, 200, "the code is still good");
    verifier.says(no("no"));
    for _ in 0..5 {
        assert_eq!(said(&enter(&app, &alice.email, json!({}))), refused(), "a yes began the count anew");
    }
    verifier.says(ok("{\"allow\": true}"));
    let asked = verifier.asked();
    let locked = enter(&app, &alice.email, json!({}));
    assert_eq!((said(&locked), locked.header("retry-after")), ((423, "LOCKED".into()), Some("900")));
    assert_eq!(verifier.asked(), asked);
    let bobby = app.register("bobby");
    assert_eq!(enter(&app, &bobby.email, json!({})).status, 200, "others are not locked");
    app.hands.as_ref().unwrap().advance(Duration::from_secs(900));
    assert_eq!(enter(&app, &alice.email, json!({})).status, 200);
    assert_eq!((checks(&app, "refused"), checks(&app, "allowed")), (9.0, 3.0));
    let path = "/v1/admin-panel/security-logs?action=login.check_refused";
    let log = app.admin_call(&root, "GET", path, None).json();
    let newest = &log["items"][0];
    assert_eq!((log["total"].as_u64(), &newest["reason"]), (Some(9), &json!("FACTOR_REFUSED")), "{log}");
    assert_eq!((&newest["target"]["name"], &newest["ip_address"]), (&json!("alice"), &json!("127.0.0.1")), "{log}");
}

#[test]
fn a_reason_is_shown_when_it_is_short_and_plain_and_repeats_nothing() {
    let verifier = Verifier::start();
    let app = start(&verifier, "");
    let clock = app.hands.as_ref().unwrap();
    let alice = app.register("alice");
    let long = "x".repeat(201);
    for hidden in [
        "",
        "two\nlines",
        "\u{1b}[31mred",
        "turned \u{202e}round",
        "1234567890 is not known",
        "123 456 7890 is not known",
        "no NOTARY is called so",
        "the photo UEhPVE8tT0YtQUxJQ0U= is bad",
        long.as_str(),
    ] {
        verifier.says(no(hidden));
        let answer = enter(&app, &alice.email, json!({}));
        assert_eq!(answer.json()["message"], "The login was refused", "{hidden}");
        clock.advance(Duration::from_secs(900));
    }
    verifier.says(ok("{\"allow\": false}"));
    assert_eq!(enter(&app, &alice.email, json!({})).json()["message"], "The login was refused");
    verifier.says(no("Numri personal nuk përputhet"));
    let shown = enter(&app, &alice.email, json!({})).json();
    assert_eq!(shown["message"], "The login was refused: Numri personal nuk përputhet");
}

#[test]
fn a_verifier_that_says_neither_yes_nor_no_lets_nobody_in() {
    let verifier = Verifier::start();
    let elsewhere = Verifier::start();
    let app = start(&verifier, "");
    let (alice, root) = (app.register("alice"), app.admin_token());
    let code = give_codes(&app, &root, &alice, 1).remove(0);
    let redirect = |status: &str| {
        format!("HTTP/1.1 {status}\r\nlocation: http://{}/check\r\ncontent-length: 0\r\n\r\n", elsewhere.fake.addr)
    };
    let yes = "{\"allow\": true}";
    let answers = [
        String::new(),
        "HTTP/1.1 500 No\r\ncontent-length: 15\r\n\r\n{\"allow\": true}".into(),
        "HTTP/1.1 201 Created\r\ncontent-length: 15\r\n\r\n{\"allow\": true}".into(),
        "HTTP/1.1 204 No Content\r\n\r\n".into(),
        "HTTP/1.1 403 No\r\ncontent-length: 16\r\n\r\n{\"allow\": false}".into(),
        redirect("302 Found"),
        redirect("307 Temporary Redirect"),
        ok(""),
        ok("true"),
        ok("{}"),
        ok("[{\"allow\": true}]"),
        ok("{\"allow\": \"true\"}"),
        ok("{\"allow\": 1}"),
        ok("{\"allow\": null}"),
        ok("{\"allow\": false, \"allow\": true}"),
        ok("{\"allow\": true, \"reason\": 1}"),
        ok("{\"allow\": true} {\"allow\": true}"),
        ok(&format!("{yes}{}", " ".repeat(16 << 10))),
        format!("HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n{yes}"),
        "not HTTP\r\n\r\n".into(),
    ];
    for answer in &answers {
        verifier.says(answer.as_str());
        let login = enter(&app, &alice.email, json!({"unique_code": code}));
        assert_eq!(said(&login), unavailable(), "{answer}: {}", login.text());
    }
    assert_eq!(
        (checks(&app, "unavailable"), elsewhere.asked()),
        (answers.len() as f64, 0),
        "redirects are not followed"
    );
    verifier.says(ok(yes));
    let login = enter(&app, &alice.email, json!({"unique_code": code}));
    assert_eq!(login.status, 200, "nothing was burned or counted: {}", login.text());
}

#[test]
fn a_slow_or_missing_verifier_lets_nobody_in() {
    let verifier = Verifier::start();
    let mut app = start(&verifier, "timeout = \"200ms\"");
    let alice = app.register("alice");
    verifier.hold(true);
    assert_eq!(said(&enter(&app, &alice.email, json!({}))), unavailable());
    verifier.hold(false);
    wait_until("it answers again", || enter(&app, &alice.email, json!({})).status == 200);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    app.reload(&verifier.config("").replace(&verifier.fake.addr.to_string(), &nobody.to_string()));
    assert_eq!(said(&enter(&app, &alice.email, json!({}))), unavailable());
    // Without the section logins are what they were, and what they bring is nobody's business.
    app.reload("");
    let asked = verifier.asked();
    assert_eq!(enter(&app, &alice.email, json!({"factors": {"Photo": ""}})).status, 200);
    assert_eq!(verifier.asked(), asked);
    app.reload(&verifier.config(""));
    assert_eq!(said(&enter(&app, &alice.email, json!({"factors": {}}))), (401, "FACTORS_REQUIRED".into()));
}

#[test]
fn too_many_at_once_are_refused() {
    let verifier = Verifier::start();
    let app = start(&verifier, "max_concurrent = 1\ntimeout = \"20s\"");
    let (alice, bobby) = (app.register("alice"), app.register("bobby"));
    verifier.hold(true);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| enter(&app, &alice.email, json!({})).status);
        wait_until("the verifier has the first", || verifier.inside() == 1);
        assert_eq!(app.metric("tollgate_login_checks_running"), 1.0);
        assert_eq!(said(&enter(&app, &bobby.email, json!({}))), unavailable());
        assert_eq!((checks(&app, "busy"), verifier.asked()), (1.0, 1));
        verifier.hold(false);
        assert_eq!(first.join().unwrap(), 200);
    });
    assert_eq!(enter(&app, &bobby.email, json!({})).status, 200);
    assert_eq!(app.metric("tollgate_login_checks_running"), 0.0);
}

#[test]
fn parallel_guesses_cannot_outrun_their_count() {
    let verifier = Verifier::start();
    let app = start(&verifier, "timeout = \"20s\"");
    let alice = app.register("alice");
    verifier.says(no("wrong"));
    verifier.hold(true);
    let guess = |n: usize| {
        let factors = json!({"photo": PHOTO, "personal_number": format!("{n:010}")});
        enter(&app, &alice.email, json!({"factors": factors})).status
    };
    let statuses = std::thread::scope(|scope| {
        let guesses = scope.spawn(|| at_once(40, guess));
        // One is with the verifier, four wait, nobody else may.
        wait_until("the others were refused", || checks(&app, "busy") == 35.0);
        assert_eq!((verifier.inside(), verifier.asked()), (1, 1));
        verifier.hold(false);
        guesses.join().unwrap()
    });
    let of = |status: u16| statuses.iter().filter(|got| **got == status).count();
    assert_eq!((of(401), of(503)), (5, 35), "{statuses:?}");
    assert_eq!((guess(50), verifier.asked()), (423, 5));
}

#[test]
fn of_a_hundred_logins_with_one_code_one_gets_in() {
    let verifier = Verifier::start();
    let app = start(&verifier, "");
    let (alice, root) = (app.register("alice"), app.admin_token());
    let codes = give_codes(&app, &root, &alice, 2);
    let statuses = at_once(100, |_| enter(&app, &alice.email, json!({"unique_code": codes[0]})).status);
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    assert!(statuses.iter().all(|status| matches!(status, 200 | 401 | 503)), "{statuses:?}");
    let stats = app.admin_call(&root, "GET", &format!("/v1/admin-panel/users/{}/codes/stats", alice.id), None).json();
    assert_eq!((&stats["used"], &stats["available"]), (&json!(1), &json!(1)), "{stats}");
    assert_eq!(enter(&app, &alice.email, json!({"unique_code": codes[1]})).status, 200, "the losers lock nobody out");
}

#[test]
fn who_would_not_get_in_anyway_is_not_shown_to_the_verifier() {
    let verifier = Verifier::start();
    let mut app = start(&verifier, "");
    let (alice, bobby, root) = (app.register("alice"), app.register("bobby"), app.admin_token());
    let session = enter(&app, &alice.email, json!({})).json();
    let secret = mfa::switch_on(&app, session["session"]["session_token"].as_str().unwrap());
    give_codes(&app, &root, &bobby, 1);
    assert_eq!(verifier.asked(), 1);
    let code = |status: u16, code: &str| (status, code.to_owned());
    assert_eq!(said(&enter(&app, &bobby.email, json!({"password": "WrongPass999"}))), code(401, "UNAUTHENTICATED"));
    assert_eq!(said(&enter(&app, "nobody@example.com", json!({}))), code(401, "UNAUTHENTICATED"));
    assert_eq!(said(&enter(&app, &alice.email, json!({}))), code(401, "MFA_REQUIRED"));
    assert_eq!(said(&enter(&app, &alice.email, json!({"code": "000000"}))), code(401, "WRONG_CODE"));
    app.reload(&verifier.config("[accounts.codes]\nrequired = true"));
    assert_eq!(said(&enter(&app, &bobby.email, json!({}))), code(401, "UNIQUE_CODE_REQUIRED"));
    let path = format!("/v1/admin-panel/users/{}/suspend", bobby.id);
    assert_eq!(app.admin_call(&root, "POST", &path, Some(&json!({"reason": "x"}))).status, 200);
    app.reload(&verifier.config(""));
    assert_eq!(said(&enter(&app, &bobby.email, json!({}))), code(403, "FORBIDDEN"));
    assert_eq!(verifier.asked(), 1);
    assert_eq!(enter(&app, &alice.email, json!({"code": mfa::code(&secret, 1)})).status, 200);
    assert_eq!(verifier.asked(), 2);
}

#[test]
fn an_old_hash_is_replaced_before_the_verifier_thinks() {
    let verifier = Verifier::start();
    let (app, store) = on_store(&verifier.config("timeout = \"20s\""));
    let alice = app.register("alice");
    give_hash(&store, alice.id, Some(&bcrypt::hash(PASSWORD, 4).unwrap()));
    verifier.hold(true);
    std::thread::scope(|scope| {
        let logins: Vec<_> = (0..2).map(|_| scope.spawn(|| enter(&app, &alice.email, json!({})).status)).collect();
        wait_until("the verifier has one", || verifier.inside() == 1);
        // Else the turn in which it is replaced would be kept, and other accounts share it.
        let hash = || user_row(&store, alice.id).password_hash.unwrap();
        assert!(hash().starts_with("$argon2id$"), "{}", hash());
        verifier.hold(false);
        assert!(logins.into_iter().all(|login| login.join().unwrap() == 200));
    });
    assert_eq!(enter(&app, &alice.email, json!({})).status, 200);
}

/// Its page has the photo as a file.
#[test]
fn what_noteria_s_page_sends_reaches_the_verifier() {
    let verifier = Verifier::start();
    let app = start(&verifier, "required = [\"photo\", \"personal_number\", \"role\"]");
    let (alice, root) = (app.register("alice"), app.admin_token());
    let codes = give_codes(&app, &root, &alice, 1);
    let part =
        |name: &str, value: &str| format!("--b\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
    let fields = |number: &str| {
        let own =
            [("email", alice.email.as_str()), ("password", PASSWORD), ("kodi_unik", &codes[0]), ("roli", "noter")];
        let own: String = own.iter().map(|(name, value)| part(name, value)).collect();
        let file =
            "--b\r\ncontent-disposition: form-data; name=\"foto\"; filename=\"id.jpg\"\r\n\r\nPHOTO-OF-ALICE\r\n";
        format!("{own}{}{file}--b--\r\n", part("numri_personal", number))
    };
    let kind = [("content-type", "multipart/form-data; boundary=b")];
    let post =
        |number: &str| http::call_raw(app.public, "POST", "/noteria/login.php", &kind, fields(number).as_bytes());
    assert_eq!((said(&post("")).1, said(&post("12"))), ("FACTORS_REQUIRED".into(), (400, "BAD_REQUEST".into())));
    let login = post(NUMBER);
    assert_eq!(login.status, 200, "{}", login.text());
    assert_eq!(verifier.last().1["factors"], json!({"photo": PHOTO, "personal_number": NUMBER, "role": "noter"}));
    assert_eq!(verifier.asked(), 1);
}

/// A photo is larger than whatever else is posted here.
#[test]
fn a_login_may_bring_a_photo() {
    let verifier = Verifier::start();
    let app = start(&verifier, "required = [\"photo\"]");
    let (alice, root) = (app.register("alice"), app.admin_token());
    let photo = "A".repeat(1 << 20);
    let login = enter(&app, &alice.email, json!({"factors": {"photo": photo}}));
    assert_eq!(login.status, 200, "{}", login.text());
    assert_eq!(verifier.last().1["factors"]["photo"], json!(photo));

    // As a file, which Noteria's page sends; the form is longer than what axum takes unasked.
    let code = give_codes(&app, &root, &alice, 1).remove(0);
    let mut form = String::new();
    for (name, value) in [("email", alice.email.as_str()), ("password", PASSWORD), ("kodi_unik", &code)] {
        form += &format!("--b\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
    }
    let file = "z".repeat(3 << 20);
    form += "--b\r\ncontent-disposition: form-data; name=\"foto\"; filename=\"id.jpg\"\r\n\r\n";
    let form = format!("{form}{file}\r\n--b--\r\n");
    let kind = [("content-type", "multipart/form-data; boundary=b")];
    let post = || http::call_raw(app.public, "POST", "/noteria/login.php", &kind, form.as_bytes());
    assert_eq!(said(&post()), (413, "BODY_TOO_LARGE".into()), "two MiB are allowed");
    let mut app = app;
    app.reload(&verifier.config("required = [\"photo\"]\nmax_bytes = 5000000"));
    let login = http::call_raw(app.public, "POST", "/noteria/login.php", &kind, form.as_bytes());
    assert_eq!(login.status, 200, "{}", login.text());
    assert_eq!(verifier.last().1["factors"]["photo"].as_str().map(str::len), Some(4 << 20));

    let fields = json!({"username": "bobby", "email": "b@example.com", "password": PASSWORD, "about_me": photo});
    let other = http::call(app.public, "POST", "/v1/users/register", &[], Some(&fields));
    assert_eq!(said(&other), (413, "BODY_TOO_LARGE".into()), "nothing else grows");
    app.reload("");
    let off = enter(&app, &alice.email, json!({"factors": {"photo": photo}}));
    assert_eq!(said(&off), (413, "BODY_TOO_LARGE".into()), "nor logins that nobody checks");
}

/// Nobody knows who sends them: what they take is bounded, and nobody else's.
#[test]
fn long_logins_are_received_sixteen_at_once() {
    let verifier = Verifier::start();
    let app = start(&verifier, "required = [\"photo\"]");
    let alice = app.register("alice");
    let head = "POST /v1/users/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let slow = |length: &str| {
        let mut conn = http::Conn::open(app.public);
        conn.send(format!("{head}{length}\r\n\r\n"));
        conn
    };
    let mut held: Vec<_> = (0..15).map(|_| slow("content-length: 1000000")).collect();
    // Whoever does not say how much will come is taken for one of them.
    held.push(slow("transfer-encoding: chunked"));
    wait_until("all are being received", || app.metric("tollgate_long_logins") == 16.0);
    let long = json!({"factors": {"photo": "A".repeat(300_000)}});
    assert_eq!(said(&enter(&app, &alice.email, long.clone())), unavailable());
    assert_eq!(enter(&app, &alice.email, json!({})).status, 200, "short ones go on");
    assert_eq!(app.chat(&alice.key, json!({})).status, 200, "and so does all else");
    held.pop();
    wait_until("one has gone", || app.metric("tollgate_long_logins") == 15.0);
    assert_eq!(enter(&app, &alice.email, long).status, 200);
}

/// One of the older systems opens a session for who registers.
#[test]
fn whoever_registers_is_not_in_yet() {
    let verifier = Verifier::start();
    let app = start(&verifier, "");
    let body = json!({"email": "ana@example.com", "password": PASSWORD});
    let made = http::call(app.public, "POST", "/api/v2/register", &[], Some(&body));
    assert_eq!((made.status, made.json().get("session_token")), (200, None), "{}", made.text());
    assert!(made.header("set-cookie").is_none_or(|cookie| cookie.contains("Max-Age=0")), "{:?}", made.headers);
    let login = http::call(app.public, "POST", "/api/v2/login", &[], Some(&body));
    assert_eq!(said(&login), (401, "FACTORS_REQUIRED".into()), "{}", login.text());
    assert_eq!(enter(&app, "ana@example.com", json!({})).status, 200);
}

#[test]
fn a_provider_s_word_is_not_enough_unless_the_config_says_so() {
    let (verifier, idp) = (Verifier::start(), IdentityProvider::start());
    let config = |more: &str| format!("{}{}", idp.config(), verifier.config(more));
    let mut app = TestApp::start(&config("social = \"allow\""));
    let ann = person("s-1", "ann@example.com", true);
    let begun = sign_in(&app, &idp, "company", &ann);
    assert_eq!(begun.status, 200, "{}", begun.text());
    // On the way when the config changes: he may not land, and makes no account.
    let (sent, cookie) = depart(&app, "company", "");
    app.reload(&config(""));
    let code = idp.consent(&sent, &person("s-2", "bea@example.com", true));
    let landed = arrive(&app, "company", &format!("state={}&code={code}", sent.get("state")), &cookie);
    assert_eq!(said(&landed), (403, "FORBIDDEN".into()), "{}", landed.text());
    assert!(landed.json()["message"].as_str().unwrap().contains("sign in with your password"));
    let refused = http::call(app.public, "GET", "/v1/oauth/login/company", &[], None);
    assert_eq!(said(&refused), (403, "FORBIDDEN".into()));
    let exchange = http::call(app.public, "POST", "/v1/oauth/exchange", &[], Some(&json!({"code": "x"})));
    assert_eq!(said(&exchange), (403, "FORBIDDEN".into()));
    let root = app.admin_token();
    let users = app.admin_call(&root, "GET", "/v1/admin-panel/users?search=bea", None).json();
    assert_eq!(users["total"], 0, "{users}");
    // Whoever has come in otherwise may still link one.
    let alice = app.register("alice");
    let session = enter(&app, &alice.email, json!({})).json()["session"]["session_token"].as_str().unwrap().to_owned();
    let begun = app.call("POST", "/v1/users/oauth/link/company", &session, Some(&json!({"password": PASSWORD})));
    let (sent, cookie) = (Sent::parse(begun.json()["url"].as_str().unwrap()), cookie_of(&begun));
    let code = idp.consent(&sent, &person("s-3", "alice@example.org", true));
    let linked = arrive(&app, "company", &format!("state={}&code={code}", sent.get("state")), &cookie);
    assert_eq!(linked.status, 200, "{}", linked.text());
    assert_eq!(verifier.asked(), 1);
}

/// All bytes of all files below a folder.
fn bytes_below(folder: &std::path::Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        match entry.path() {
            path if path.is_dir() => all.extend(bytes_below(&path)),
            path => all.extend(std::fs::read(path).unwrap()),
        }
    }
    all
}

#[test]
fn what_a_login_brought_is_found_nowhere() {
    let verifier = Verifier::start();
    let mock = TestApp::start("");
    let site = Site::new(mock.upstream.addr());
    let text = std::fs::read_to_string(site.config()).unwrap();
    let loud = text.replace("access_log = \"off\"\nlog = \"error\"", "access_log = \"json\"\nlog = \"trace\"");
    assert_ne!(loud, text);
    site.write(&format!("{loud}{}timeout = \"300ms\"\n[limits]\nper_ip_per_minute = 0\n", verifier.config("")));
    let log = site.dir.path().join("log");
    let file = || std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
    let mut server = site.command(&["serve"]).stdout(file()).stderr(file()).spawn().unwrap();
    wait_until("the server is ready", || {
        std::net::TcpStream::connect(site.admin).is_ok()
            && http::call(site.admin, "GET", "/ready", &[], None).status == 200
    });
    let post = |path: &str, body: Value| http::call(site.public, "POST", path, &[], Some(&body));
    let new = json!({"username": "alice", "name": "Alice", "email": "alice@example.com", "password": PASSWORD});
    assert_eq!(post("/v1/users/register", new).status, 200);
    let mut answers = String::new();
    let mut login = |factors: Value| {
        let answer =
            post("/v1/users/login", json!({"email": "alice@example.com", "password": PASSWORD, "factors": factors}));
        answers.push_str(&answer.text());
        answer.status
    };
    assert_eq!(login(good()), 200);
    verifier.says(no(&format!("{NUMBER} is not {PHOTO}")));
    assert_eq!(login(good()), 401);
    verifier.says(ok(&format!("{{\"allow\": \"{NUMBER} {PHOTO}\"}}")));
    assert_eq!(login(good()), 503);
    verifier.says(format!("HTTP/1.1 500 {NUMBER}\r\nx-echo: {PHOTO}\r\ncontent-length: 0\r\n\r\n"));
    assert_eq!(login(good()), 503);
    verifier.hold(true);
    assert_eq!(login(good()), 503);
    verifier.hold(false);
    let over = json!({"photo": PHOTO, "personal_number": format!("{NUMBER}1")});
    assert_eq!(login(over), 400);
    assert_eq!(login(json!({"personal_number": NUMBER})), 401);
    let pid = server.id().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(server.wait().unwrap().success());
    let kept = bytes_below(site.dir.path());
    let finds = |text: &str| memchr::memmem::find(&kept, text.as_bytes()).is_some();
    for there in ["alice@example.com", "login.check_refused", "FACTOR_REFUSED", "cannot be asked", "/v1/users/login"] {
        assert!(finds(there), "{there}");
    }
    for secret in [NUMBER, PHOTO, "PHOTO-OF-ALICE", "between-us "] {
        assert!(!finds(secret) && !answers.contains(secret), "{secret}");
    }
}
