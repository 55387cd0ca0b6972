//! Mail, against a server that speaks SMTP: what is sent, what its links do, and what happens when it cannot go.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::support::smtp::MailServer;
use crate::support::{Answer, Options, PASSWORD, TestApp, http, wait_until};

const VERIFY: &str = "Please confirm your email address";
const RESET: &str = "Set a new password";

pub fn start(mail: &MailServer, more: &str) -> TestApp {
    TestApp::start(&format!("{}{more}", mail.config()))
}

fn path_of(link: &str) -> &str {
    link.strip_prefix("https://ai.example.com").unwrap_or_else(|| panic!("{link}"))
}

fn public(app: &TestApp, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&Value>) -> Answer {
    http::call(app.public, method, path, headers, body)
}

fn login(app: &TestApp, email: &str, password: &str) -> Answer {
    public(app, "POST", "/v1/users/login", &[], Some(&json!({"email": email, "password": password})))
}

fn session(app: &TestApp, email: &str) -> String {
    let answer = login(app, email, PASSWORD);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["session"]["session_token"].as_str().unwrap().to_owned()
}

#[test]
fn an_address_is_proved_by_its_link_and_not_by_looking_at_it() {
    let mail = MailServer::start();
    let app = start(&mail, "[accounts]\nemail_verification = true\n");
    let user = app.register("alice");
    assert_eq!(app.chat(&user.key, json!({})).status, 403, "not before the address is proved");
    let letter = mail.letter(&user.email, VERIFY);
    assert_eq!(letter.header("from"), "AI <noreply@example.com>");
    assert!(letter.raw.contains("text/plain") && letter.raw.contains("text/html"));
    let link = letter.link();
    // What a mail scanner does: it opens every link.
    let browser = [("accept", "text/html,application/xhtml+xml")];
    assert_eq!(public(&app, "HEAD", path_of(&link), &[], None).status, 200);
    let page = public(&app, "GET", path_of(&link), &browser, None);
    assert_eq!(page.status, 200);
    assert!(page.header("content-security-policy").is_some_and(|policy| policy.contains("default-src 'none'")));
    assert!(page.text().contains("<form method=\"post\"") && page.text().contains(&letter.token()));
    assert_eq!(app.chat(&user.key, json!({})).status, 403);
    // The button.
    let mut conn = crate::support::Conn::open(app.public);
    let form = format!("token={}", letter.token());
    conn.send(format!(
        "POST /v1/users/verify-email HTTP/1.1\r\nhost: x\r\naccept: text/html\r\ncontent-type: \
         application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{form}",
        form.len()
    ));
    let done = conn.read_answer();
    assert!(done.status == 200 && done.text().contains("confirmed"), "{}", done.text());
    assert_eq!(app.chat(&user.key, json!({})).status, 200);
    let again = public(&app, "POST", "/v1/users/verify-email", &[], Some(&json!({"token": letter.token()})));
    assert_eq!(again.status, 400);
    let token = session(&app, &user.email);
    assert_eq!(app.call("POST", "/v1/users/verify-email/resend", &token, None).status, 409);
    assert!(app.metric("tollgate_mail_total{result=\"sent\"}") >= 1.0);
}

#[test]
fn a_program_may_prove_an_address_at_once_and_a_newer_link_replaces_the_older() {
    let mail = MailServer::start();
    let app = start(&mail, "");
    let user = app.register("alice");
    let old = mail.letter(&user.email, VERIFY).token();
    let token = session(&app, &user.email);
    assert_eq!(app.call("POST", "/v1/users/verify-email/resend", &token, None).status, 200);
    wait_until("the second letter", || mail.count(&user.email, VERIFY) == 2);
    let new = mail.letter(&user.email, VERIFY).token();
    let verify = |token: &str| public(&app, "GET", &format!("/v1/users/verify-email?token={token}"), &[], None);
    assert_eq!(verify(&old).status, 400);
    assert_eq!(verify("1-nonsense").status, 400);
    assert_eq!(verify(&new).status, 200);
    let profile = app.call("GET", "/v1/users/profile", &token, None).json();
    assert_eq!(profile["user"]["is_verified"], true, "{profile}");
}

#[test]
fn an_email_changes_when_the_new_address_answers() {
    let mail = MailServer::start();
    let app = start(&mail, "");
    let user = app.register("alice");
    let token = session(&app, &user.email);
    let change = json!({"new_email": "new@example.com", "password": PASSWORD});
    let asked = app.call("PUT", "/v1/users/email", &token, Some(&change));
    assert_eq!((asked.status, &asked.json()["pending"]), (200, &json!(true)), "{}", asked.text());
    assert_eq!(asked.json()["email"], user.email);
    mail.letter(&user.email, "about to change");
    let link = mail.letter("new@example.com", "confirm your new").link();
    assert_eq!(login(&app, "new@example.com", PASSWORD).status, 401);
    let confirmed = public(&app, "GET", path_of(&link), &[], None);
    assert_eq!(
        (confirmed.status, &confirmed.json()["email"]),
        (200, &json!("new@example.com")),
        "{}",
        confirmed.text()
    );
    assert_eq!(login(&app, "new@example.com", PASSWORD).status, 200);
    assert_eq!(login(&app, &user.email, PASSWORD).status, 401);
    mail.letter(&user.email, "has changed");
    assert_eq!(public(&app, "GET", path_of(&link), &[], None).status, 400);
    // Free again for somebody else.
    assert_eq!(app.register("alice-2").email, "alice-2@example.com");
}

#[test]
fn what_happens_to_an_account_is_told_to_its_owner() {
    let mail = MailServer::start();
    let app = start(&mail, "");
    let user = app.register("alice");
    let proof = json!({"token": mail.letter(&user.email, VERIFY).token()});
    assert_eq!(public(&app, "POST", "/v1/users/verify-email", &[], Some(&proof)).status, 200);
    let token = session(&app, &user.email);
    assert_eq!(app.call("POST", "/v1/users/keys", &token, Some(&json!({"name": "laptop"}))).status, 200);
    assert!(mail.letter(&user.email, "API key was made").text().contains("laptop"));
    assert_eq!(app.call("POST", "/v1/users/api-key/regenerate", &token, None).status, 200);
    mail.letter(&user.email, "was replaced");
    let change = json!({"current_password": PASSWORD, "new_password": "AnotherPass1"});
    assert_eq!(app.call("PUT", "/v1/users/password", &token, Some(&change)).status, 200);
    mail.letter(&user.email, "password has changed");
    for _ in 0..5 {
        login(&app, &user.email, "WrongPass1");
    }
    assert!(mail.letter(&user.email, "locked").text().contains("60 minutes"));
    assert_eq!(mail.count(&user.email, "New sign-in"), 0, "the first sign-in is not news");
}

#[test]
fn trouble_with_mail_is_nobody_s_trouble_but_the_outbox_s() {
    let mail = MailServer::start();
    mail.refuse_with(451);
    let app = TestApp::with(Options {
        toml: mail.config(),
        manual_clock: Some("2026-01-15T12:00:00Z"),
        ..Options::default()
    });
    let hands = app.hands.as_ref().unwrap();
    let user = app.register("alice");
    wait_until("the first try", || app.metric("tollgate_mail_total{result=\"retried\"}") == 1.0);
    assert_eq!(app.metric("tollgate_mail_queue"), 1.0);
    mail.refuse_with(0);
    hands.advance(std::time::Duration::from_secs(31));
    let letter = mail.letter(&user.email, VERIFY);
    wait_until("the outbox is empty", || app.metric("tollgate_mail_queue") == 0.0);
    assert!(letter.header("message-id").ends_with("@example.com>"));
    // For ever: given up at once.
    mail.refuse_with(550);
    app.register("bobby");
    wait_until("it is given up", || app.metric("tollgate_mail_total{result=\"refused\"}") == 1.0);
    // For days: given up in the end.
    mail.refuse_with(421);
    app.register("carol");
    wait_until("a try", || app.metric("tollgate_mail_total{result=\"retried\"}") >= 2.0);
    hands.advance(std::time::Duration::from_secs(3 * 86_400));
    wait_until("it is given up", || app.metric("tollgate_mail_total{result=\"expired\"}") == 1.0);
    assert_eq!(app.metric("tollgate_mail_queue"), 0.0);
    let trail = app.admin_call(&app.admin_token(), "GET", "/v1/admin-panel/security-logs?page_size=200", None).text();
    let given_up = |item: &&Value| item["action"] == "mail.given_up";
    let trail: Value = serde_json::from_str(&trail).unwrap();
    let given_up: Vec<_> = trail["items"].as_array().unwrap().iter().filter(given_up).collect();
    assert!(given_up.len() == 2 && given_up.iter().all(|item| !item.to_string().contains('@')), "{given_up:?}");
}

#[test]
fn a_letter_outlives_the_process_that_posted_it() {
    let mail = MailServer::start();
    mail.refuse_with(451);
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let options = || Options { toml: mail.config(), dir: Some(dir.clone()), backend: "sled", ..Options::default() };
    let mut app = TestApp::with(options());
    let user = app.register("alice");
    wait_until("a try", || app.metric("tollgate_mail_total{result=\"retried\"}") >= 1.0);
    app.stop();
    drop(app);
    mail.refuse_with(0);
    let app = TestApp::with(Options { manual_clock: Some("2036-01-15T12:00:00Z"), ..options() });
    // Ten years later it is late, but a first try is always made.
    wait_until("sent or given up", || {
        app.metric("tollgate_mail_total{result=\"sent\"}") + app.metric("tollgate_mail_total{result=\"expired\"}")
            == 1.0
    });
    assert_eq!(mail.count(&user.email, VERIFY), 1);
    // Nothing of it lies open in the store.
    let token = mail.letter(&user.email, VERIFY).token();
    for entry in walk(dir.path()) {
        let bytes = std::fs::read(&entry).unwrap();
        assert!(!contains(&bytes, token.as_bytes()), "{}", entry.display());
    }
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}

#[test]
fn a_server_that_asks_who_we_are_is_told() {
    let mail = MailServer::start();
    let app = start(&mail, "username = \"gateway\"\npassword = \"smtp-secret\"\n");
    let user = app.register("alice");
    mail.letter(&user.email, VERIFY);
    // base64 of "\0gateway\0smtp-secret" (RFC 4616)
    assert_eq!(mail.logins(), ["AUTH PLAIN AGdhdGV3YXkAc210cC1zZWNyZXQ="]);
}

#[test]
fn nobody_is_drowned_in_letters() {
    let mail = MailServer::start();
    let app = start(&mail, "per_address_per_hour = 3\n");
    let user = app.register("alice");
    for _ in 0..6 {
        let asked = json!({"email": user.email});
        assert_eq!(public(&app, "POST", "/v1/users/forgot-password", &[], Some(&asked)).status, 200);
    }
    // Of the letters that anybody can have sent, with the one of the registration.
    wait_until("the bound is reached", || app.metric("tollgate_mail_total{result=\"limited\"}") == 4.0);
    wait_until("the others went", || app.metric("tollgate_mail_total{result=\"sent\"}") == 3.0);
    // They do not crowd out what its owner is told.
    let change = json!({"current_password": PASSWORD, "new_password": "AnotherPass1"});
    assert_eq!(app.call("PUT", "/v1/users/password", &session(&app, &user.email), Some(&change)).status, 200);
    mail.letter(&user.email, "password has changed");
}

#[test]
fn a_link_that_was_sent_outlives_asking_too_often() {
    let mail = MailServer::start();
    let app = start(&mail, "per_address_per_hour = 3\n");
    let user = app.register("alice");
    let token = session(&app, &user.email);
    let forgot = || public(&app, "POST", "/v1/users/forgot-password", &[], Some(&json!({"email": user.email})));
    assert_eq!(forgot().status, 200);
    let reset = mail.letter(&user.email, RESET).token();
    assert_eq!(app.call("POST", "/v1/users/verify-email/resend", &token, None).status, 200);
    wait_until("all have gone", || app.metric("tollgate_mail_total{result=\"sent\"}") == 3.0);
    let verify = mail.letter(&user.email, VERIFY).token();
    for n in 1..=4 {
        assert_eq!(forgot().status, 200);
        assert_eq!(app.call("POST", "/v1/users/verify-email/resend", &token, None).status, 200);
        wait_until("too many", || app.metric("tollgate_mail_total{result=\"limited\"}") == f64::from(2 * n));
    }
    let verified = public(&app, "POST", "/v1/users/verify-email", &[], Some(&json!({"token": verify})));
    assert_eq!(verified.status, 200, "{}", verified.text());
    let body = json!({"token": reset, "password": "AnotherPass1"});
    let done = public(&app, "POST", "/v1/users/reset-password", &[], Some(&body));
    assert_eq!(done.status, 200, "{}", done.text());
}

#[test]
fn who_had_the_old_password_moves_no_address_any_more() {
    let mail = MailServer::start();
    let app = start(&mail, "");
    let user = app.register("alice");
    let mut password = PASSWORD.to_owned();
    let thief = |password: &str, to: &str| {
        let token = login(&app, &user.email, password).json()["session"]["session_token"].as_str().unwrap().to_owned();
        let change = json!({"new_email": to, "password": password});
        assert_eq!(app.call("PUT", "/v1/users/email", &token, Some(&change)).status, 200);
        (token, mail.letter(to, "confirm your new").link())
    };
    type Renew<'a> = &'a dyn Fn(&str, &str);
    let ways: [(&str, Renew<'_>); 3] = [
        ("evil-1@example.com", &|token, old| {
            let change = json!({"current_password": old, "new_password": "AnotherPass1"});
            assert_eq!(app.call("PUT", "/v1/users/password", token, Some(&change)).status, 200);
        }),
        ("evil-2@example.com", &|_, _| {
            public(&app, "POST", "/v1/users/forgot-password", &[], Some(&json!({"email": user.email})));
            let body = json!({"token": mail.letter(&user.email, RESET).token(), "password": "AnotherPass2"});
            assert_eq!(public(&app, "POST", "/v1/users/reset-password", &[], Some(&body)).status, 200);
        }),
        ("evil-3@example.com", &|_, _| {
            let path = format!("/v1/support/users/{}/reset-password", user.id);
            let body = json!({"new_password": "AnotherPass3"});
            assert_eq!(app.admin_call(&app.admin_token(), "POST", &path, Some(&body)).status, 200);
        }),
    ];
    for (n, (to, renew)) in ways.into_iter().enumerate() {
        let (token, link) = thief(&password, to);
        renew(&token, &password);
        assert_eq!(public(&app, "GET", path_of(&link), &[], None).status, 400, "{to}");
        password = format!("AnotherPass{}", n + 1);
        assert_eq!(login(&app, &user.email, &password).status, 200, "{to}");
    }
}

#[test]
fn who_corrects_his_address_before_he_has_proved_it_gets_in() {
    let mail = MailServer::start();
    let app = start(&mail, "[accounts]\nemail_verification = true\n");
    let user = app.register("alice");
    let change = json!({"new_email": "right@example.com", "password": PASSWORD});
    assert_eq!(app.call("PUT", "/v1/users/email", &session(&app, &user.email), Some(&change)).status, 200);
    let link = mail.letter("right@example.com", "confirm your new").link();
    assert_eq!(app.chat(&user.key, json!({})).status, 403);
    assert_eq!(public(&app, "GET", path_of(&link), &[], None).status, 200);
    assert_eq!(app.chat(&user.key, json!({})).status, 200);
}

#[test]
fn an_owner_who_comes_by_his_mail_is_not_locked_out_by_others() {
    let mail = MailServer::start();
    let app = start(&mail, "[access]\nblock_after_failures = 0\n");
    let user = app.register("alice");
    for _ in 0..5 {
        login(&app, &user.email, "WrongPass1");
    }
    assert_eq!(login(&app, &user.email, PASSWORD).status, 423);
    public(&app, "POST", "/v1/users/forgot-password", &[], Some(&json!({"email": user.email})));
    let body = json!({"token": mail.letter(&user.email, RESET).token(), "password": "AnotherPass1"});
    assert_eq!(public(&app, "POST", "/v1/users/reset-password", &[], Some(&body)).status, 200);
    assert_eq!(login(&app, &user.email, "AnotherPass1").status, 200);
}

#[test]
fn a_relay_that_does_not_know_us_loses_no_letter_and_a_reload_tells_it_who_we_are() {
    let mail = MailServer::start();
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "old-secret").unwrap();
    let toml = format!("{}username = \"gateway\"\npassword = {{ file = {:?} }}\n", mail.config(), secret.path());
    let mut app =
        TestApp::with(Options { toml: toml.clone(), manual_clock: Some("2026-01-15T12:00:00Z"), ..Options::default() });
    mail.refuse_with(535);
    let user = app.register("alice");
    wait_until("a try", || app.metric("tollgate_mail_total{result=\"retried\"}") >= 1.0);
    assert_eq!(app.metric("tollgate_mail_total{result=\"refused\"}"), 0.0);
    std::fs::write(secret.path(), "new-secret").unwrap();
    app.reload(&toml);
    mail.refuse_with(0);
    app.hands.as_ref().unwrap().advance(std::time::Duration::from_secs(31));
    mail.letter(&user.email, VERIFY);
    // base64 of "\0gateway\0new-secret"
    assert_eq!(mail.logins().last().unwrap(), "AUTH PLAIN AGdhdGV3YXkAbmV3LXNlY3JldA==");
}

#[test]
fn letters_go_into_files_and_take_an_operator_s_words() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("verify_email.txt"), "Willkommen, {{ email }}\n\nBitte hier: {{ link }}\n").unwrap();
    let toml = format!(
        "public_base_url = \"http://localhost:8080\"\n[mail]\ntransport = \"file\"\nfrom = \"a@example.com\"\nfolder = \
         {:?}\ntemplates = {:?}\n",
        dir.path().join("out"),
        dir.path()
    );
    let app = TestApp::start(&toml);
    app.register("alice");
    let out = dir.path().join("out");
    let letters =
        || walk(&out).into_iter().filter(|path| path.extension().is_some_and(|e| e == "eml")).collect::<Vec<_>>();
    wait_until("a file", || out.exists() && !letters().is_empty());
    let text = std::fs::read_to_string(&letters()[0]).unwrap();
    assert!(
        text.contains("Subject: Willkommen, alice@example.com") && text.contains("http://localhost:8080/v1/users/"),
        "{text}"
    );
}

#[test]
fn names_that_are_free_are_said_so_but_not_for_ever() {
    let app = TestApp::start("[accounts]\navailability_per_minute = 4\n");
    app.register("alice");
    let free = |path: &str| public(&app, "GET", &format!("/v1/users/{path}"), &[], None);
    assert_eq!(free("check-email/ALICE@example.com").json()["available"], false);
    assert_eq!(free("check-email/bobby@example.com").json()["available"], true);
    assert_eq!(free("check-username/Alice").json()["available"], false);
    assert_eq!(free("check-username/a").status, 400);
    let refused = free("check-username/bobby");
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("60")));
}

#[test]
fn compatible_spellings_of_a_name_are_one_name() {
    let app = TestApp::start("");
    app.register("alice");
    // Full-width letters, as an input method may give them.
    let wide =
        json!({"username": "ａｌｉｃｅ", "name": "Other One", "email": "other@example.com", "password": PASSWORD});
    assert_eq!(public(&app, "POST", "/v1/users/register", &[], Some(&wide)).status, 409);
    let wide =
        json!({"username": "other", "name": "Other One", "email": "ＡＬＩＣＥ@example.com", "password": PASSWORD});
    assert_eq!(public(&app, "POST", "/v1/users/register", &[], Some(&wide)).status, 409);
    assert_eq!(login(&app, "ａlice@example.com", PASSWORD).status, 200);
}

#[test]
fn a_strict_service_answers_everybody_the_same() {
    let mail = MailServer::start();
    let app = start(&mail, "[accounts]\nstrict = true\n");
    let register = |name: &str, email: &str| {
        let body = json!({"username": name, "name": "Some One", "email": email, "password": PASSWORD});
        public(&app, "POST", "/v1/users/register", &[], Some(&body))
    };
    let fresh = register("alice", "alice@example.com");
    let taken = register("bobby", "alice@example.com");
    assert_eq!((fresh.status, taken.status), (200, 200));
    let shape = |answer: &Answer| answer.json().as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(shape(&fresh), shape(&taken));
    assert!(fresh.json().get("api_key").is_none());
    mail.letter("alice@example.com", "already have an account");
    assert_eq!(login(&app, "bobby", PASSWORD).status, 401);
    assert_eq!(public(&app, "GET", "/v1/users/check-email/alice@example.com", &[], None).status, 403);
    let forgot = |email: &str| public(&app, "POST", "/v1/users/forgot-password", &[], Some(&json!({"email": email})));
    let (known, unknown) = (forgot("alice@example.com"), forgot("nobody@example.com"));
    assert_eq!((known.status, known.json()), (200, unknown.json()));
    mail.letter("alice@example.com", RESET);
    // Nor by moving to an address.
    assert_eq!(register("carol", "carol@example.com").status, 200);
    let token = session(&app, "carol@example.com");
    let told = mail.count("alice@example.com", "already have an account");
    let move_to = |email: &str| {
        let change = json!({"new_email": email, "password": PASSWORD});
        let answer = app.call("PUT", "/v1/users/email", &token, Some(&change));
        (answer.status, answer.text().replace(email, "…"))
    };
    assert_eq!(move_to("alice@example.com"), move_to("nobody@example.com"));
    wait_until("its owner is told", || mail.count("alice@example.com", "already have an account") == told + 1);
    assert_eq!(mail.count("alice@example.com", "confirm your new"), 0);
}

#[test]
fn who_comes_by_the_mail_of_an_address_that_was_never_proved_shares_the_account_with_nobody() {
    let mail = MailServer::start();
    let app = start(&mail, "");
    // Somebody registers with an address that is not his, and makes himself at home.
    let user = app.register("alice");
    let theirs = session(&app, &user.email);
    assert_eq!(app.chat(&user.key, json!({})).status, 200);
    // Its owner comes.
    public(&app, "POST", "/v1/users/forgot-password", &[], Some(&json!({"email": user.email})));
    let body = json!({"token": mail.letter(&user.email, RESET).token(), "password": "AnotherPass1"});
    assert_eq!(public(&app, "POST", "/v1/users/reset-password", &[], Some(&body)).status, 200);
    assert_eq!((app.chat(&user.key, json!({})).status, app.chat(&theirs, json!({})).status), (401, 401));
    let opened = login(&app, &user.email, "AnotherPass1");
    assert_eq!(opened.status, 200, "{}", opened.text());
    let token = opened.json()["session"]["session_token"].as_str().unwrap().to_owned();
    let fresh = app.call("POST", "/v1/users/api-key/regenerate", &token, None).json();
    let key = fresh["api_key"].as_str().unwrap();
    assert_eq!(app.chat(key, json!({})).status, 200);
    // From now on it is his: what he resets later leaves his keys.
    public(&app, "POST", "/v1/users/forgot-password", &[], Some(&json!({"email": user.email})));
    let trail = "/v1/admin-panel/security-logs?action=password.reset_sent";
    wait_until("both are in the trail", || app.admin_call(&app.admin_token(), "GET", trail, None).json()["total"] == 2);
    wait_until("another link", || mail.count(&user.email, RESET) == 2);
    let body = json!({"token": mail.letter(&user.email, RESET).token(), "password": "AnotherPass2"});
    assert_eq!(public(&app, "POST", "/v1/users/reset-password", &[], Some(&body)).status, 200);
    assert_eq!(app.chat(key, json!({})).status, 200);
}

/// Attackers register with somebody else's address, and have us write to them in words of their own.
#[test]
fn a_name_is_no_letter_to_strangers() {
    let mail = MailServer::start();
    let app = start(&mail, "");
    let victim = "victim@example.com";
    let lure = "You have won visit www.evil.example now";
    let body = json!({"username": "You-have-won", "name": lure, "email": victim, "password": PASSWORD});
    assert_eq!(public(&app, "POST", "/v1/users/register", &[], Some(&body)).status, 200);
    mail.letter(victim, VERIFY);
    let agents = |agent: &str| {
        let body = json!({"email": victim, "password": PASSWORD});
        let from = [("user-agent", agent), ("x-forwarded-for", "10.9.8.7")];
        public(&app, "POST", "/v1/users/login", &from, Some(&body)).json()
    };
    let token = agents("see http://evil.example/")["session"]["session_token"].as_str().unwrap().to_owned();
    let named = json!({"name": "http://evil.example/ you won"});
    assert_eq!(app.call("POST", "/v1/users/keys", &token, Some(&named)).status, 200);
    mail.letter(victim, "API key was made");
    let moved = json!({"new_email": "won@www.evil.example", "password": PASSWORD});
    assert_eq!(app.call("PUT", "/v1/users/email", &token, Some(&moved)).status, 200);
    mail.letter(victim, "about to change");
    mail.letter("won@www.evil.example", "confirm your new");
    public(&app, "POST", "/v1/users/forgot-password", &[], Some(&json!({"email": victim})));
    mail.letter(victim, RESET);
    for _ in 0..5 {
        login(&app, victim, "WrongPass1");
    }
    mail.letter(victim, "locked");
    for letter in mail.letters() {
        // The address itself is the recipient's.
        let text = letter.text().replace(&letter.to, "");
        for lure in ["evil", "won", "visit", "You-have"] {
            assert!(!text.contains(lure) && !letter.header("subject").contains(lure), "{lure}: {}", letter.raw);
        }
        assert!(text.contains("Hello,"), "{text}");
    }
    // Their own letters call people by their name.
    let user = app.register("alice");
    let proof = json!({"token": mail.letter(&user.email, VERIFY).token()});
    assert_eq!(public(&app, "POST", "/v1/users/verify-email", &[], Some(&proof)).status, 200);
    public(&app, "POST", "/v1/users/forgot-password", &[], Some(&json!({"email": user.email})));
    let letter = mail.letter(&user.email, RESET).text();
    assert!(letter.contains("Hello Test User,") && letter.contains("your account alice"), "{letter}");
}
