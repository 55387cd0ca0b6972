//! A user's whole way with the real program, a mail server and a simulated AI service, each over sockets; and at its end a
//! search for every secret that came to be on it, in all that the program has written or said.

use std::process::Stdio;

use serde_json::{Value, json};
use tollgate::clock::Clock;

use super::mfa;
use super::secrets::{Secrets, files_below};
use crate::server_process::{MockProcess, Server, Site};
use crate::support::smtp::MailServer;
use crate::support::{ADMIN, Answer, PASSWORD, chat_body, http, wait_until};

const EMAIL: &str = "walker@example.com";
const FIRST_PASSWORD: &str = "Walks-Alone-17";
const SECOND_PASSWORD: &str = "Walks-Alone-18";
const THIRD_PASSWORD: &str = "Walks-Alone-19";

/// A client that remembers what must not be seen again, and looks for it in every answer.
struct Walker<'a> {
    server: &'a Server,
    secrets: Secrets,
    /// Answers that were refusals.
    refusals: usize,
}

/// Who calls, and where.
enum As<'a> {
    Nobody,
    User(&'a str),
    Staff(&'a str),
}

impl Walker<'_> {
    fn send(&self, caller: &As<'_>, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let (port, token) = match caller {
            As::Nobody => (self.server.public, None),
            As::User(token) => (self.server.public, Some(token)),
            As::Staff(token) => (self.server.admin, Some(token)),
        };
        let bearer = token.map(|token| format!("Bearer {token}"));
        let headers: Vec<(&str, &str)> = bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
        http::call(port, method, path, &headers, body)
    }

    /// A call whose answer holds nothing that is secret by now.
    fn call(&mut self, caller: As<'_>, method: &str, path: &str, body: Option<Value>) -> Answer {
        let answer = self.send(&caller, method, path, body.as_ref());
        let heads: String = answer.headers.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
        for part in [answer.body.as_slice(), heads.as_bytes()] {
            assert_eq!(self.secrets.found_in(part), [] as [&str; 0], "{method} {path}: {}", answer.text());
        }
        self.refusals += usize::from(answer.status >= 400);
        answer
    }

    /// A call that must go well.
    fn ok(&mut self, caller: As<'_>, method: &str, path: &str, body: Option<Value>) -> Value {
        let answer = self.call(caller, method, path, body);
        assert_eq!(answer.status, 200, "{method} {path}: {}", answer.text());
        answer.json()
    }

    /// A call that is refused so.
    fn refused(&mut self, caller: As<'_>, method: &str, path: &str, body: Option<Value>, status: u16, code: &str) {
        let answer = self.call(caller, method, path, body);
        assert_eq!((answer.status, answer.error_code().as_str()), (status, code), "{method} {path}: {}", answer.text());
    }

    /// The text at a place in an answer, which is a secret from now on.
    fn keep(&mut self, name: &str, answer: &Value, at: &str) -> String {
        let text = answer.pointer(at).and_then(Value::as_str).unwrap_or_else(|| panic!("{name}: {answer}")).to_owned();
        self.secrets.add(name, &text);
        text
    }

    /// The tokens of a session, which are secrets from now on.
    fn keep_session(&mut self, name: &str, answer: &Value) -> (String, String) {
        let access = self.keep(&format!("{name}: session token"), answer, "/session/session_token");
        let refresh = self.keep(&format!("{name}: refresh token"), answer, "/session/refresh_token");
        // Without the parts that say nothing secret, the signature alone must not be there either.
        for (what, token) in [("session", &access), ("refresh", &refresh)] {
            if let Some((_, signature)) = token.rsplit_once('.') {
                self.secrets.add(&format!("{name}: {what} token's signature"), signature);
            }
        }
        (access, refresh)
    }

    fn login(&mut self, name: &str, more: Value) -> (String, String) {
        let mut body = json!({"email": EMAIL, "password": FIRST_PASSWORD});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = self.call(As::Nobody, "POST", "/v1/users/login", Some(body));
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        self.secrets.add(&format!("{name}: device token"), answer.header("x-tollgate-device").unwrap());
        self.keep_session(name, &answer.json())
    }

    fn chat(&mut self, credential: &str) -> Answer {
        self.call(As::User(credential), "POST", "/v1/chat/completions", Some(chat_body(json!({}))))
    }

    /// A letter's token, which is a secret although it was sent.
    fn keep_mailed(&mut self, name: &str, mail: &MailServer, subject: &str) -> String {
        let token = mail.letter(EMAIL, subject).token();
        self.secrets.add(name, &token);
        token
    }
}

fn site(mail: &MailServer, upstream: &MockProcess) -> Site {
    // Far from midnight, wherever the clock stands.
    let reset_hour = (Clock::system().now().seconds() / 3600 + 12) % 24;
    let (base_url, section) = mail.config().split_once('\n').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    Site::new(&format!(
        "{base_url}\n[listen]\npublic = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\nworkers = 2\n\
         [store]\nlog_file_bytes = 1048576\n[telemetry]\naccess_log = \"json\"\nlog = \"trace\"\n\
         [ledger]\nreset_hour = {reset_hour}\n[access]\nblock_after_failures = 0\n[accounts]\nemail_verification = true\n\
         [[upstreams]]\nname = \"ai\"\nendpoints = [\"http://{}\"]\n\
         [[routes]]\npath = \"/v1/*\"\nupstream = \"ai\"\ncost = {{ conversations = 1 }}\n{section}",
        upstream.addr
    ))
}

#[test]
fn from_register_to_delete_and_no_secret_is_left_behind() {
    let (mail, upstream) = (MailServer::start(), MockProcess::start());
    let site = site(&mail, &upstream);
    let output = site.dir.path().join("stdout");
    let mut server = site.serve_to(Stdio::from(std::fs::File::create(&output).unwrap()));
    let mut walker = Walker { server: &server, secrets: Secrets::default(), refusals: 0 };
    for (name, text) in [
        ("password", FIRST_PASSWORD),
        ("second password", SECOND_PASSWORD),
        ("third password", THIRD_PASSWORD),
        ("admin's password", PASSWORD),
    ] {
        walker.secrets.add(name, text);
    }
    let secret_files = site.data_dir().join("secrets");
    for file in files_below(&secret_files, &site.data_dir()) {
        let text = std::fs::read_to_string(&file).unwrap();
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        text.lines().for_each(|line| walker.secrets.add(&format!("data_dir/secrets/{name}"), line));
    }

    // Registers, and proves the address.
    let user = json!({"username": "walker", "name": "A Walker", "email": EMAIL, "password": FIRST_PASSWORD});
    let made = walker.ok(As::Nobody, "POST", "/v1/users/register", Some(user));
    let key = walker.keep("default key", &made, "/api_key");
    let id = made["user_id"].as_u64().unwrap();
    let answer = walker.chat(&key);
    assert_eq!((answer.status, answer.error_code().as_str()), (403, "FORBIDDEN"), "not before the address is proved");
    let token = walker.keep_mailed("mailed token: verify", &mail, "confirm your email");
    let wrong = json!({"token": format!("{token}x")});
    walker.refused(As::Nobody, "POST", "/v1/users/verify-email", Some(wrong), 400, "BAD_REQUEST");
    walker.ok(As::Nobody, "POST", "/v1/users/verify-email", Some(json!({"token": token})));
    assert_eq!(walker.chat(&key).status, 200);

    // Logs in, and switches a second factor on.
    let wrong = json!({"email": EMAIL, "password": format!("{FIRST_PASSWORD}x")});
    walker.refused(As::Nobody, "POST", "/v1/users/login", Some(wrong), 401, "UNAUTHENTICATED");
    let (session, _) = walker.login("first login", json!({}));
    let proof = json!({"password": FIRST_PASSWORD});
    let setup = walker.ok(As::User(&session), "POST", "/v1/users/mfa/setup", Some(proof.clone()));
    let seed = walker.keep("seed", &setup, "/secret");
    walker.secrets.add_bytes("seed's bytes", &mfa::seed_bytes(&seed));
    let now = Clock::system().now().seconds() as u64;
    let (first, second) = (mfa::code_at(&seed, now), mfa::code_at(&seed, now + 30));
    walker.secrets.add_digits("first code", &first);
    walker.secrets.add_digits("second code", &second);
    let enabled = walker.ok(As::User(&session), "POST", "/v1/users/mfa/enable", Some(json!({"code": first})));
    let recovery: Vec<String> = serde_json::from_value(enabled["recovery_codes"].clone()).unwrap();
    recovery.iter().for_each(|code| {
        walker.secrets.add("recovery code", code);
        walker.secrets.add("recovery code without its hyphen", &code.replace('-', ""));
    });
    let plain = json!({"email": EMAIL, "password": FIRST_PASSWORD});
    walker.refused(As::Nobody, "POST", "/v1/users/login", Some(plain), 401, "MFA_REQUIRED");
    let (session, refresh) = walker.login("login with a code", json!({"code": second}));

    // A one-time code that staff gives him.
    let admin = json!({"username": ADMIN, "password": PASSWORD});
    let answer = walker.send(&As::Staff(""), "POST", "/v1/admin-panel/login", Some(&admin));
    let admin = walker.keep("admin's session token", &answer.json(), "/session/session_token");
    let codes = format!("/v1/admin-panel/users/{id}/codes");
    walker.ok(As::Staff(&admin), "POST", &codes, Some(json!({"count": 2})));
    let export = walker.ok(As::Staff(&admin), "GET", &format!("{codes}/export?format=json"), None);
    let unique = walker.keep("one-time code", &export, "/0/code");
    walker.keep("one-time code, unused", &export, "/1/code");
    walker.login("login with a one-time code", json!({"code": recovery[0], "unique_code": unique}));

    // Makes a key, calls with it, and looks at what that cost.
    let new = json!({"name": "laptop", "models": ["gpt-4*"]});
    let made = walker.ok(As::User(&session), "POST", "/v1/users/keys", Some(new));
    let named = walker.keep("named key", &made, "/api_key");
    let named_id = made["key"]["id"].as_u64().unwrap();
    let served = upstream.served("/v1/chat/completions");
    let answer = walker.chat(&named);
    assert_eq!((answer.status, answer.header("x-tollgate-remaining-conversations")), (200, Some("8")));
    assert_eq!(upstream.served("/v1/chat/completions"), served + 1);
    walker.ok(As::User(&session), "GET", "/v1/users/usage", None);
    let usage = walker.ok(As::User(&session), "GET", "/v1/users/usage/history", None);
    let days = usage["days"].as_array().unwrap();
    let spent: f64 = days.iter().filter_map(|day| day["used"]["conversations"].as_f64()).sum();
    assert_eq!(spent, 2.0, "{usage}");
    let quota = walker.ok(As::User(&session), "GET", "/v1/users/quota", None);
    assert_eq!(quota["quota"]["conversations"]["remaining"], json!(8), "{quota}");
    let keys = walker.ok(As::User(&session), "GET", "/v1/users/keys", None);
    let laptop = keys["keys"].as_array().unwrap().iter().find(|key| key["name"] == "laptop").unwrap();
    super::assert_time(&laptop["last_used"]);
    walker.ok(As::User(&session), "GET", "/v1/users/sessions", None);
    walker.ok(As::Staff(&admin), "GET", &format!("/v1/admin-panel/users/{id}"), None);
    let log = walker.ok(As::Staff(&admin), "GET", &format!("/v1/admin-panel/message-logs/{id}"), None);
    assert_eq!(log["total"], json!(2), "{log}");
    walker.ok(As::Staff(&admin), "GET", "/v1/admin-panel/config", None);

    // Sees a key once more, rotates it, and gets another default key.
    let path = format!("/v1/users/keys/{named_id}");
    let reveal = format!("{path}/reveal");
    walker.refused(As::User(&session), "POST", &reveal, Some(proof), 401, "MFA_REQUIRED");
    let proof = json!({"password": FIRST_PASSWORD, "code": recovery[3]});
    let shown = walker.send(&As::User(&session), "POST", &reveal, Some(&proof)).json();
    assert_eq!(shown["api_key"], json!(named));
    let rotated = walker.ok(As::User(&session), "POST", &format!("{path}/rotate"), Some(json!({})));
    let rotated = walker.keep("rotated key", &rotated, "/api_key");
    assert_eq!((walker.chat(&named).status, walker.chat(&rotated).status), (401, 200));
    let again = walker.ok(As::User(&session), "POST", "/v1/users/api-key/regenerate", None);
    let again = walker.keep("regenerated key", &again, "/api_key");
    assert_eq!((walker.chat(&key).status, walker.chat(&again).status), (401, 200));
    mail.letter(EMAIL, "API key was replaced");

    // Renews his session, changes his password, and forgets it.
    let renewed = walker.ok(As::Nobody, "POST", "/v1/users/refresh", Some(json!({"refresh_token": refresh})));
    let (fresh, _) = walker.keep_session("refreshed", &renewed);
    walker.refused(As::User(&session), "GET", "/v1/users/profile", None, 401, "UNAUTHENTICATED");
    let change = json!({"current_password": FIRST_PASSWORD, "new_password": SECOND_PASSWORD, "code": recovery[4]});
    walker.ok(As::User(&fresh), "PUT", "/v1/users/password", Some(change));
    walker.ok(As::Nobody, "POST", "/v1/users/forgot-password", Some(json!({"email": EMAIL})));
    let token = walker.keep_mailed("mailed token: reset", &mail, "Set a new password");
    let reset = json!({"token": token, "password": THIRD_PASSWORD});
    walker.ok(As::Nobody, "POST", "/v1/users/reset-password", Some(reset.clone()));
    walker.refused(As::Nobody, "POST", "/v1/users/reset-password", Some(reset), 400, "BAD_REQUEST");
    walker.refused(As::User(&fresh), "GET", "/v1/users/profile", None, 401, "UNAUTHENTICATED");

    // Logs out, and deletes his account.
    let third = |code: &str| json!({"password": THIRD_PASSWORD, "code": code});
    let (session, _) = walker.login("login with a recovery code", third(&recovery[1]));
    walker.ok(As::User(&session), "POST", "/v1/users/logout", None);
    walker.refused(As::User(&session), "GET", "/v1/users/profile", None, 401, "UNAUTHENTICATED");
    let (session, _) = walker.login("last login", third(&recovery[2]));
    let wrong = json!({"password": SECOND_PASSWORD});
    walker.refused(As::User(&session), "DELETE", "/v1/users/account", Some(wrong), 403, "WRONG_PASSWORD");
    walker.ok(As::User(&session), "DELETE", "/v1/users/account", Some(third(&recovery[5])));
    mail.letter(EMAIL, "account was deleted");
    assert_eq!((walker.chat(&rotated).status, walker.chat(&again).status), (401, 401));
    let last = json!({"email": EMAIL, "password": THIRD_PASSWORD});
    walker.refused(As::Nobody, "POST", "/v1/users/login", Some(last), 401, "UNAUTHENTICATED");
    assert!(walker.refusals >= 12, "{}", walker.refusals);

    // All that was told and written, while it runs and after its end.
    walker.ok(As::Staff(&admin), "GET", "/v1/admin-panel/security-logs?page_size=200", None);
    let metrics = http::call(server.admin, "GET", "/metrics", &[], None);
    let Walker { secrets, .. } = walker;
    assert!(secrets.len() > 50, "{}", secrets.len());
    assert_eq!(secrets.found_in(&metrics.body), [] as [&str; 0]);
    wait_until("no letter waits", || server.metric("tollgate_mail_queue") == 0.0);
    assert_eq!(secrets.found_below(&site.data_dir(), &secret_files), []);
    server.signal("TERM");
    assert!(server.wait().success());
    assert_eq!(secrets.found_below(&site.data_dir(), &secret_files), []);
    let (told, log) = (std::fs::read(&output).unwrap(), server.log());
    assert!(told.windows(21).any(|part| part == b"/v1/chat/completions\"") && log.contains("stopped"), "{log}");
    assert_eq!(secrets.found_in(&told), [] as [&str; 0]);
    assert_eq!(secrets.found_in(log.as_bytes()), [] as [&str; 0]);
    // The search would have found them there: each is planted into a file of the store.
    let victim = files_below(&site.data_dir(), &secret_files).into_iter().find(|file| file.ends_with("db")).unwrap();
    let whole = std::fs::read(&victim).unwrap();
    for (name, form) in secrets.forms() {
        let (before, after) = whole.split_at(whole.len() / 2);
        assert!(
            secrets
                .found_in(&[&before[before.len() - 100..], b" ", form, b" ", &after[..100]].concat())
                .contains(&name)
        );
    }
    std::fs::write(&victim, [whole.as_slice(), b" ", named.as_bytes()].concat()).unwrap();
    assert_eq!(secrets.found_below(&site.data_dir(), &secret_files), [("named key".to_owned(), victim)]);
}
