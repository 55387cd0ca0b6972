//! Attacks by staff: what whoever may reset a password must not come to by it.

use serde_json::{Value, json};

use crate::accounts::mfa;
use crate::oauth::{arrive, depart, person};
use crate::support::idp::IdentityProvider;
use crate::support::smtp::MailServer;
use crate::support::{Answer, Options, PASSWORD, TestApp, TestUser, http, wait_until};

const NOON: &str = "2026-01-15T12:00:00Z";
const THEIRS: &str = "ChosenByStaff1";
const OWN: &str = "ChosenAfter1";

/// A service with one user and staff of each level.
struct Desk {
    app: TestApp,
    root: String,
    user: TestUser,
}

impl Desk {
    fn open(toml: &str) -> Self {
        let options = Options { toml: toml.to_owned(), manual_clock: Some(NOON), ..Options::default() };
        let app = TestApp::with(options);
        let (root, user) = (app.admin_token(), app.register("alice"));
        Self { app, root, user }
    }

    fn hire(&self, level: &str) -> String {
        let name = format!("{level}-{}", fastrand::u32(..));
        let email = format!("{name}@example.com");
        let mut body = json!({"username": name, "name": "Staff", "email": email, "password": PASSWORD});
        let path = if level == "admin" { "/v1/admin-panel/create-admin" } else { "/v1/support/create" };
        body["staff_level"] = level.into();
        assert_eq!(self.app.admin_call(&self.root, "POST", path, Some(&body)).status, 200);
        let login = json!({"username": name, "password": PASSWORD});
        let answer = http::call(self.app.admin, "POST", "/v1/support/login", &[], Some(&login));
        answer.json()["session"]["session_token"].as_str().unwrap().to_owned()
    }

    fn staff(&self, token: &str, method: &str, path: &str, body: Value) -> Answer {
        let path = format!("/v1/support/users/{}{path}", self.user.id);
        self.app.admin_call(token, method, &path, (method != "GET").then_some(&body))
    }

    fn login(&self, email: &str, password: &str, more: Value) -> Answer {
        let mut body = json!({"email": email, "password": password});
        more.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
        http::call(self.app.public, "POST", "/v1/users/login", &[], Some(&body))
    }

    fn session(&self, email: &str, password: &str) -> String {
        let answer = self.login(email, password, json!({}));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["session"]["session_token"].as_str().unwrap().to_owned()
    }

    /// What staff does who wants in: a password of theirs, a login, a password that nobody asks about.
    fn break_in(&self, staff: &str) -> String {
        let reset = self.staff(staff, "POST", "/reset-password", json!({"new_password": THEIRS}));
        assert_eq!(reset.status, 200, "{}", reset.text());
        let token = self.session(&self.user.email, THEIRS);
        let change = json!({"current_password": THEIRS, "new_password": OWN});
        assert_eq!(self.app.call("PUT", "/v1/users/password", &token, Some(&change)).status, 200);
        token
    }

    fn lift(&self, token: &str) -> Answer {
        self.staff(token, "POST", "/lift-proof-wait", json!({"reason": "called back"}))
    }

    /// Every call that shows, makes or rotates a key, or changes how the account is opened.
    fn doors(&self, token: &str) -> Vec<(String, Answer)> {
        let keys = self.app.call("GET", "/v1/users/keys", token, None).json();
        let key = keys["keys"][0]["id"].as_u64().unwrap();
        let password = json!({"password": OWN});
        let doors = [
            ("POST", "/v1/users/api-key/regenerate".to_owned(), None),
            ("POST", "/v1/users/api-key/reveal".to_owned(), Some(password.clone())),
            ("POST", format!("/v1/users/keys/{key}/reveal"), Some(password.clone())),
            ("POST", format!("/v1/users/keys/{key}/rotate"), Some(json!({"grace_seconds": 60}))),
            ("POST", "/v1/users/keys".to_owned(), Some(json!({"name": "mine"}))),
            ("POST", "/v1/users/mfa/setup".to_owned(), Some(password.clone())),
            ("POST", "/v1/users/mfa/enable".to_owned(), Some(json!({"code": "123456"}))),
            ("GET", "/api/users/me/api-key".to_owned(), None),
            ("POST", "/api/v1/auth/regenerate-key".to_owned(), None),
        ];
        let call = |(method, path, body): (&str, String, Option<Value>)| {
            let answer = self.app.call(method, &path, token, body.as_ref());
            (format!("{method} {path}"), answer)
        };
        doors.into_iter().map(call).collect()
    }

    #[track_caller]
    fn all_shut(&self, token: &str) {
        for (door, answer) in self.doors(token) {
            let code = answer.error_code();
            assert_eq!((answer.status, code.as_str()), (403, "OWNER_PROOF_REQUIRED"), "{door}: {}", answer.text());
        }
        for path in ["/v1/users/api-key", "/api/v1/auth/api-key", "/v1/users/keys", "/v1/users/profile"] {
            let shown = self.app.call("GET", path, token, None);
            assert!(shown.status == 200 && !shown.text().contains("enc:v1"), "{path}: {}", shown.text());
        }
        assert_eq!(self.app.chat(&self.user.key, json!({})).status, 200, "the owner's key goes on");
    }

    #[track_caller]
    fn open_again(&self, token: &str) {
        let answer = self.app.call("POST", "/v1/users/api-key/regenerate", token, None);
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

#[test]
fn staff_who_reset_a_password_get_no_key_by_it() {
    let desk = Desk::open("");
    for level in ["support", "advanced", "admin"] {
        let staff = desk.hire(level);
        let token = desk.break_in(&staff);
        desk.all_shut(&token);
        // Nor does one who was in before.
        desk.all_shut(&desk.session(&desk.user.email, OWN));
    }
    let seen = desk.app.admin_call(&desk.root, "GET", &format!("/v1/admin-panel/users/{}", desk.user.id), None).json();
    assert_eq!(seen["user"]["proof_wait_since"], NOON, "{seen}");
}

#[test]
fn nobody_lifts_a_wait_that_their_own_change_caused() {
    let desk = Desk::open("");
    let (support, one, other) = (desk.hire("support"), desk.hire("advanced"), desk.hire("advanced"));
    assert_eq!(desk.lift(&other).status, 409, "it waits for nothing");
    let token = desk.break_in(&one);
    assert_eq!(desk.lift(&support).status, 403, "not of this level");
    let own = desk.lift(&one);
    assert_eq!((own.status, own.error_code().as_str()), (403, "FORBIDDEN"), "{}", own.text());
    desk.all_shut(&token);
    assert_eq!(desk.lift(&other).status, 200);
    desk.open_again(&token);
    // Two have changed something: neither may.
    desk.break_in(&one);
    let moved = desk.staff(&other, "PUT", "", json!({"email": "other@example.org"}));
    assert_eq!(moved.status, 200, "{}", moved.text());
    assert_eq!((desk.lift(&one).status, desk.lift(&other).status, desk.lift(&desk.root).status), (403, 403, 200));
    let trail =
        desk.app.admin_call(&desk.root, "GET", "/v1/admin-panel/security-logs?action=user.proof_wait_lifted", None);
    let outcomes: Vec<Value> =
        trail.json()["items"].as_array().unwrap().iter().map(|item| item["result"].clone()).collect();
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == "ok").count(), 2, "{outcomes:?}");
    assert!(trail.text().contains("called back"));
}

#[test]
fn an_address_that_staff_wrote_proves_nothing_and_the_one_before_does() {
    let mail = MailServer::start();
    let desk = Desk::open(&mail.config());
    let verify = |token: &str| {
        let body = json!({"token": token});
        http::call(desk.app.public, "POST", "/v1/users/verify-email", &[], Some(&body))
    };
    assert_eq!(verify(&mail.letter(&desk.user.email, "confirm your email").token()).status, 200);
    let support = desk.hire("support");
    let (evil, old) = ("evil@example.org", desk.user.email.clone());
    assert_eq!(desk.staff(&support, "PUT", "", json!({"email": evil})).status, 200);
    // A new password by mail, to the address that staff wrote.
    let asked = json!({"email": evil});
    http::call(desk.app.public, "POST", "/v1/users/forgot-password", &[], Some(&asked));
    let body = json!({"token": mail.letter(evil, "Set a new password").token(), "password": OWN});
    assert_eq!(http::call(desk.app.public, "POST", "/v1/users/reset-password", &[], Some(&body)).status, 200);
    let token = desk.session(evil, OWN);
    desk.all_shut(&token);
    // The link that is asked for goes to the owner, wherever the account is now.
    assert_eq!(desk.app.call("POST", "/v1/users/verify-email/resend", &token, None).status, 200);
    let letter = mail.letter(&old, "show that the account is yours");
    assert_eq!(mail.count(evil, "show that the account is yours"), 0);
    desk.all_shut(&token);
    assert_eq!(verify(&letter.token()).status, 200);
    assert_eq!(verify(&letter.token()).status, 400, "once");
    desk.open_again(&token);
}

#[test]
fn the_owner_of_a_verified_address_ends_the_wait_by_a_reset_of_their_own() {
    let mail = MailServer::start();
    let desk = Desk::open(&mail.config());
    let verify = json!({"token": mail.letter(&desk.user.email, "confirm your email").token()});
    assert_eq!(http::call(desk.app.public, "POST", "/v1/users/verify-email", &[], Some(&verify)).status, 200);
    let token = desk.break_in(&desk.hire("support"));
    desk.all_shut(&token);
    let asked = json!({"email": desk.user.email});
    http::call(desk.app.public, "POST", "/v1/users/forgot-password", &[], Some(&asked));
    let body = json!({"token": mail.letter(&desk.user.email, "Set a new password").token(), "password": "BackAgain1"});
    assert_eq!(http::call(desk.app.public, "POST", "/v1/users/reset-password", &[], Some(&body)).status, 200);
    assert_eq!(desk.app.call("GET", "/v1/users/profile", &token, None).status, 401, "whoever broke in is out");
    desk.open_again(&desk.session(&desk.user.email, "BackAgain1"));
}

#[test]
fn staff_s_word_for_an_address_is_no_proof_of_it() {
    let mail = MailServer::start();
    let desk = Desk::open(&mail.config());
    let path = format!("/v1/admin-panel/users/{}/verify", desk.user.id);
    assert_eq!(desk.app.admin_call(&desk.root, "PUT", &path, Some(&json!({}))).status, 200);
    let token = desk.break_in(&desk.hire("support"));
    // Nobody had shown that the address is the user's: no link ends the wait.
    let asked = desk.app.call("POST", "/v1/users/verify-email/resend", &token, None);
    assert_eq!(asked.status, 200, "{}", asked.text());
    wait_until("the second letter", || mail.count(&desk.user.email, "confirm your email") == 2);
    let letter = mail.letter(&desk.user.email, "confirm your email");
    let body = json!({"token": letter.token()});
    assert_eq!(http::call(desk.app.public, "POST", "/v1/users/verify-email", &[], Some(&body)).status, 200);
    desk.all_shut(&token);
    assert_eq!(desk.lift(&desk.hire("advanced")).status, 200);
    desk.open_again(&token);
}

#[test]
fn a_second_factor_that_was_there_before_is_proof_and_stays_out_of_staff_s_reach() {
    let desk = Desk::open("");
    let before = desk.session(&desk.user.email, PASSWORD);
    let secret = mfa::switch_on(&desk.app, &before);
    let support = desk.hire("support");
    assert_eq!(desk.staff(&support, "PUT", "", json!({"email": "moved@example.org"})).status, 200);
    // The session of before is not proof by itself.
    let shut = desk.app.call("POST", "/v1/users/api-key/regenerate", &before, None);
    assert_eq!((shut.status, shut.error_code().as_str()), (403, "OWNER_PROOF_REQUIRED"));
    let code = json!({"code": mfa::code(&secret, 1)});
    let answer = desk.login("moved@example.org", PASSWORD, code);
    assert_eq!(answer.status, 200, "{}", answer.text());
    desk.open_again(answer.json()["session"]["session_token"].as_str().unwrap());
}

#[test]
fn no_login_at_a_provider_is_added_to_an_account_that_waits() {
    let idp = IdentityProvider::start();
    let desk = Desk::open(&format!("{}[accounts]\nredirects = [\"https://app.example.com/*\"]\n", idp.config()));
    idp.at(NOON);
    let support = desk.hire("support");
    let evil = person("s-1", "evil@example.org", true);
    assert_eq!(desk.staff(&support, "PUT", "", json!({"email": evil.email})).status, 200);
    let (sent, cookie) = depart(&desk.app, "company", "");
    let query = format!("state={}&code={}", sent.get("state"), idp.consent(&sent, &evil));
    let taken = arrive(&desk.app, "company", &query, &cookie);
    assert_eq!((taken.status, taken.error_code().as_str()), (403, "OWNER_PROOF_REQUIRED"), "{}", taken.text());
    assert_eq!(desk.app.chat(&desk.user.key, json!({})).status, 200, "nothing of the owner's has gone");
    let token = desk.break_in_as(&support, &evil.email);
    let link = desk.app.call("POST", "/v1/users/oauth/link/company", &token, Some(&json!({"password": OWN})));
    assert_eq!((link.status, link.error_code().as_str()), (403, "OWNER_PROOF_REQUIRED"), "{}", link.text());
}

impl Desk {
    fn break_in_as(&self, staff: &str, email: &str) -> String {
        assert_eq!(self.staff(staff, "POST", "/reset-password", json!({"new_password": THEIRS})).status, 200);
        let token = self.session(email, THEIRS);
        let change = json!({"current_password": THEIRS, "new_password": OWN});
        assert_eq!(self.app.call("PUT", "/v1/users/password", &token, Some(&change)).status, 200);
        token
    }
}

#[test]
fn an_import_that_brings_another_password_is_a_change_by_staff() {
    let desk = Desk::open("");
    let hash = bcrypt::hash(OWN, 4).unwrap();
    let line = json!({"username": "alice", "email": desk.user.email, "password_hash": hash}).to_string();
    let bearer = format!("Bearer {}", desk.root);
    let path = "/v1/admin-panel/users/import?update=true";
    let done = http::call_raw(desk.app.admin, "POST", path, &[("authorization", &bearer)], line.as_bytes());
    assert_eq!(done.json()["updated"], 1, "{}", done.text());
    desk.all_shut(&desk.session(&desk.user.email, OWN));
    assert_eq!(desk.lift(&desk.root).status, 403, "whoever imports does not lift it");
    assert_eq!(desk.lift(&desk.hire("advanced")).status, 200);
}

#[test]
fn support_staff_never_see_a_key_and_admins_see_the_one_they_make() {
    let desk = Desk::open("");
    let (advanced, admin) = (desk.hire("advanced"), desk.hire("admin"));
    let made = desk.staff(&advanced, "POST", "/keys/regenerate", json!({}));
    assert_eq!(made.status, 200);
    assert!(!made.text().contains("pe-"), "{}", made.text());
    assert_eq!(desk.app.chat(&desk.user.key, json!({})).status, 401, "the old one is dead");
    // Its owner reads it.
    let token = desk.session(&desk.user.email, PASSWORD);
    let shown = desk.app.call("POST", "/v1/users/api-key/reveal", &token, Some(&json!({"password": PASSWORD}))).json();
    assert_eq!(desk.app.chat(shown["api_key"].as_str().unwrap(), json!({})).status, 200);
    let by_admin = desk.staff(&admin, "POST", "/keys/regenerate", json!({})).json();
    assert_eq!(desk.app.chat(by_admin["api_key"].as_str().unwrap(), json!({})).status, 200);
    for (who, level) in [(&desk.hire("new"), "new"), (&desk.hire("support"), "support")] {
        assert_eq!(desk.staff(who, "POST", "/keys/regenerate", json!({})).status, 403, "{level}");
        assert_eq!(desk.staff(who, "GET", "/keys", json!({})).status, 403, "{level}");
    }
    for path in ["", "/keys"] {
        for who in [&advanced, &admin] {
            let seen = desk.staff(who, "GET", path, json!({})).text();
            assert!(!seen.contains(by_admin["api_key"].as_str().unwrap()) && !seen.contains("enc:v1"), "{seen}");
        }
    }
}

#[test]
fn an_address_of_another_member_of_the_staff_is_not_to_be_had() {
    let desk = Desk::open("");
    let make = |path: &str, name: &str, email: &str| {
        let body =
            json!({"username": name, "name": "Staff", "email": email, "password": PASSWORD, "staff_level": "new"});
        desk.app.admin_call(&desk.root, "POST", path, Some(&body))
    };
    assert_eq!(make("/v1/admin-panel/create-admin", "ann", "ann@example.com").status, 200);
    for (path, email) in [
        ("/v1/admin-panel/create-admin", "Ann@Example.com"),
        ("/v1/support/create", "ann@example.com"),
        ("/v1/support/create", "ａnn@example.com"),
        ("/api/v1/admin/staff", " ANN@example.com"),
    ] {
        let refused = make(path, "bob", email);
        assert_eq!(
            (refused.status, refused.error_code().as_str()),
            (409, "CONFLICT"),
            "{path} {email}: {}",
            refused.text()
        );
    }
    assert_eq!(make("/v1/support/create", "bob", "bob@example.com").status, 200);
    let change = |id: u64, body: Value| {
        desk.app.admin_call(&desk.root, "PUT", &format!("/v1/admin-panel/staff/{id}"), Some(&body)).status
    };
    let (ann, bob) = (2, 3);
    assert_eq!(change(bob, json!({"email": "ANN@example.com"})), 409);
    assert_eq!(change(ann, json!({"email": "ANN@example.com"})), 200, "their own, in another spelling");
    for name in ["An\u{0}n", "An\u{1b}[2Jn", "An\u{202e}n", "An\u{200b}n", ""] {
        assert_eq!(change(bob, json!({"name": name})), 400, "{name:?}");
        let body = json!({"username": "eve", "name": name, "email": "eve@example.com", "password": PASSWORD,
            "staff_level": "new"});
        assert_eq!(desk.app.admin_call(&desk.root, "POST", "/v1/support/create", Some(&body)).status, 400, "{name:?}");
    }
    // Two at once for one address: one has it.
    let made = super::common::at_once(8, |n| make("/v1/support/create", &format!("eve-{n}"), "eve@example.com").status);
    assert_eq!(made.iter().filter(|status| **status == 200).count(), 1, "{made:?}");
    assert!(made.iter().all(|status| matches!(status, 200 | 409 | 503)), "{made:?}");
}
