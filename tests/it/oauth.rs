//! Login at identity providers, against one that speaks HTTP: first logins, linking, unlinking, redirects, second factors.

use serde_json::{Value, json};

use crate::support::idp::{IdentityProvider, Person, Sent};
use crate::support::{Answer, Options, PASSWORD, TestApp, http};

pub fn person(subject: &str, email: &str, verified: bool) -> Person {
    Person { subject: subject.into(), email: email.into(), verified }
}

/// Goes to the provider: where the browser is sent, and its cookie.
pub fn depart(app: &TestApp, provider: &str, query: &str) -> (Sent, String) {
    let answer = http::call(app.public, "GET", &format!("/v1/oauth/login/{provider}{query}"), &[], None);
    assert_eq!(answer.status, 302, "{}", answer.text());
    (Sent::parse(answer.header("location").unwrap()), cookie_of(&answer))
}

pub fn cookie_of(answer: &Answer) -> String {
    let cookie = answer.header("set-cookie").unwrap();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax"), "{cookie}");
    cookie.split(';').next().unwrap().to_owned()
}

/// Comes back from it.
pub fn arrive(app: &TestApp, provider: &str, query: &str, cookie: &str) -> Answer {
    http::call(app.public, "GET", &format!("/v1/oauth/callback/{provider}?{query}"), &[("cookie", cookie)], None)
}

/// The whole way.
pub fn sign_in(app: &TestApp, idp: &IdentityProvider, provider: &str, who: &Person) -> Answer {
    let (sent, cookie) = depart(app, provider, "");
    let code = idp.consent(&sent, who);
    arrive(app, provider, &format!("state={}&code={code}", sent.get("state")), &cookie)
}

fn token(answer: &Answer) -> String {
    answer.json()["session"]["session_token"].as_str().unwrap_or_else(|| panic!("{}", answer.text())).to_owned()
}

fn profile(app: &TestApp, token: &str) -> Value {
    app.call("GET", "/v1/users/profile", token, None).json()["user"].clone()
}

#[test]
fn a_first_login_makes_an_account_and_a_second_finds_it() {
    let idp = IdentityProvider::start();
    let app = TestApp::start(&idp.config());
    let listed = http::call(app.public, "GET", "/v1/oauth/providers", &[], None).json();
    assert_eq!(
        listed["providers"],
        json!([{"name": "company", "label": "company"}, {"name": "github", "label": "GitHub"}])
    );
    let ann = person("s-1", "ann@example.com", true);
    let first = sign_in(&app, &idp, "company", &ann);
    assert_eq!(first.status, 200, "{}", first.text());
    let me = profile(&app, &token(&first));
    assert_eq!(
        (&me["email"], &me["is_verified"], &me["username"]),
        (&json!("ann@example.com"), &json!(true), &json!("ann"))
    );
    let second = sign_in(&app, &idp, "company", &ann);
    assert_eq!(profile(&app, &token(&second))["id"], me["id"]);
    // The same person at another provider: the address is proved on both sides.
    let third = sign_in(&app, &idp, "github", &person("77", "ann@example.com", true));
    assert_eq!(profile(&app, &token(&third))["id"], me["id"], "{}", third.text());
    let logins = app.call("GET", "/v1/users/oauth", &token(&third), None).json();
    assert_eq!((logins["logins"].as_array().unwrap().len(), &logins["has_password"]), (2, &json!(false)));
    // No password opens it.
    let body = json!({"email": "ann@example.com", "password": PASSWORD});
    assert_eq!(http::call(app.public, "POST", "/v1/users/login", &[], Some(&body)).status, 401);
    // The session opens the AI service.
    assert_eq!(app.chat(&token(&third), json!({})).status, 200);
}

#[test]
fn a_username_that_is_taken_gets_a_tail() {
    let idp = IdentityProvider::start();
    let app = TestApp::start(&idp.config());
    app.register("ann-gh");
    let me = profile(&app, &token(&sign_in(&app, &idp, "github", &person("5", "new@example.com", true))));
    assert!(me["username"].as_str().unwrap().starts_with("ann-gh-"), "{me}");
}

#[test]
fn a_login_is_linked_and_removed_but_never_the_last_way_in() {
    let idp = IdentityProvider::start();
    let app = TestApp::start(&idp.config());
    let user = app.register("alice");
    let body = json!({"email": user.email, "password": PASSWORD});
    let session = token(&http::call(app.public, "POST", "/v1/users/login", &[], Some(&body)));
    let begin = |token: &str, body: Value| app.call("POST", "/v1/users/oauth/link/company", token, Some(&body));
    assert_eq!(begin(&session, json!({})).status, 400, "a token alone links nothing");
    let begun = begin(&session, json!({"password": PASSWORD}));
    assert_eq!(begun.status, 200, "{}", begun.text());
    let (sent, cookie) = (Sent::parse(begun.json()["url"].as_str().unwrap()), cookie_of(&begun));
    // Another address than the account's: whoever is logged in says that both are his.
    let code = idp.consent(&sent, &person("s-9", "private@example.org", false));
    let linked = arrive(&app, "company", &format!("state={}&code={code}", sent.get("state")), &cookie);
    assert_eq!(linked.status, 200, "{}", linked.text());
    let again = sign_in(&app, &idp, "company", &person("s-9", "private@example.org", false));
    assert_eq!(profile(&app, &token(&again))["id"].as_u64(), Some(user.id));
    // It belongs to this account now.
    let other = app.register("bobby");
    let body = json!({"email": other.email, "password": PASSWORD});
    let theirs = token(&http::call(app.public, "POST", "/v1/users/login", &[], Some(&body)));
    let begun = begin(&theirs, json!({"password": PASSWORD}));
    let (sent, cookie) = (Sent::parse(begun.json()["url"].as_str().unwrap()), cookie_of(&begun));
    let code = idp.consent(&sent, &person("s-9", "private@example.org", false));
    assert_eq!(arrive(&app, "company", &format!("state={}&code={code}", sent.get("state")), &cookie).status, 409);

    let proof = json!({"password": PASSWORD});
    let unlink = |provider: &str, body: Option<&Value>| {
        app.call("DELETE", &format!("/v1/users/oauth/{provider}"), &session, body)
    };
    assert_eq!(unlink("github", Some(&proof)).status, 404);
    assert_eq!(unlink("company", None).json()["errors"], json!(["password: is required"]));
    assert_eq!(unlink("company", Some(&json!({"password": "WrongPass123"}))).error_code(), "WRONG_PASSWORD");
    assert_eq!(unlink("company", Some(&proof)).status, 200);
    let social = token(&sign_in(&app, &idp, "company", &person("s-3", "carol@example.com", true)));
    let refused = app.call("DELETE", "/v1/users/oauth/company", &social, None);
    assert_eq!((refused.status, refused.error_code().as_str()), (409, "CONFLICT"));
}

#[test]
fn an_open_link_ends_with_the_session_that_asked_for_it() {
    let idp = IdentityProvider::start();
    let app = TestApp::start(&idp.config());
    let user = app.register("alice");
    let body = json!({"email": user.email, "password": PASSWORD});
    let log_in = || token(&http::call(app.public, "POST", "/v1/users/login", &[], Some(&body)));
    let begin = |session: &str, provider: &str| {
        let path = format!("/v1/users/oauth/link/{provider}");
        let begun = app.call("POST", &path, session, Some(&json!({"password": PASSWORD})));
        assert_eq!(begun.status, 200, "{}", begun.text());
        (Sent::parse(begun.json()["url"].as_str().unwrap()), cookie_of(&begun))
    };
    let land = |provider: &str, (sent, cookie): &(Sent, String), who: &Person| {
        let code = idp.consent(sent, who);
        arrive(&app, provider, &format!("state={}&code={code}", sent.get("state")), cookie)
    };
    let session = log_in();
    let begun = begin(&session, "github");
    assert_eq!(app.call("POST", "/v1/users/logout", &session, None).status, 200);
    assert_eq!(land("github", &begun, &person("7", "other@example.org", true)).status, 400);
    // Refreshed, it is the same session still.
    let opened = http::call(app.public, "POST", "/v1/users/login", &[], Some(&body)).json();
    let begun = begin(opened["session"]["session_token"].as_str().unwrap(), "github");
    let renew = json!({"refresh_token": opened["session"]["refresh_token"]});
    let renewed = http::call(app.public, "POST", "/v1/users/refresh", &[], Some(&renew));
    assert_eq!(renewed.status, 200, "{}", renewed.text());
    assert_eq!(land("github", &begun, &person("8", "other@example.org", true)).status, 200);
    let unlinked = app.call("DELETE", "/v1/users/oauth/github", &log_in(), Some(&json!({"password": PASSWORD})));
    assert_eq!(unlinked.status, 200);
    // Whoever registered with an address that is not his keeps no way in when its owner comes.
    let begun = begin(&log_in(), "github");
    let owner = token(&sign_in(&app, &idp, "company", &person("s-1", &user.email, true)));
    assert_eq!(profile(&app, &owner)["id"].as_u64(), Some(user.id));
    assert_eq!(land("github", &begun, &person("9", "squatter@example.org", true)).status, 400);
    let logins = app.call("GET", "/v1/users/oauth", &owner, None).json();
    assert_eq!(logins["logins"].as_array().unwrap().len(), 1, "{logins}");
}

#[test]
fn a_provider_is_no_way_around_a_one_time_code() {
    let idp = IdentityProvider::start();
    let app = TestApp::start(&format!("{}[accounts.codes]\nrequired = true\n", idp.config()));
    let ann = person("s-1", "ann@example.com", true);
    let id = profile(&app, &token(&sign_in(&app, &idp, "company", &ann)))["id"].as_u64().unwrap();
    let path = format!("/v1/admin-panel/users/{id}/codes");
    assert_eq!(app.admin_call(&app.admin_token(), "POST", &path, Some(&json!({"count": 1}))).status, 200);
    let refused = sign_in(&app, &idp, "company", &ann);
    assert_eq!((refused.status, refused.error_code().as_str()), (401, "UNIQUE_CODE_REQUIRED"), "{}", refused.text());
}

#[test]
fn the_trail_tells_a_login_from_a_confirmation_and_from_a_link() {
    let idp = IdentityProvider::start();
    let toml = format!("{}[accounts]\nredirects = [\"https://app.example.com/*\"]\n", idp.config());
    let app = TestApp::start(&toml);
    let (sent, cookie) = depart(&app, "company", "?redirect=https%3A%2F%2Fapp.example.com%2Fdone");
    let code = idp.consent(&sent, &person("s-1", "ann@example.com", true));
    let back = arrive(&app, "company", &format!("state={}&code={code}", sent.get("state")), &cookie);
    let to = Sent::parse(back.header("location").unwrap());
    let acts = || {
        let path = "/v1/admin-panel/security-logs?action=login&page_size=100";
        let page = app.admin_call(&app.admin_token(), "GET", path, None).json();
        let acts = page["items"].as_array().unwrap().iter().rev();
        let by_users = acts.filter(|item| item["actor"]["kind"] != "staff");
        by_users.map(|item| item["action"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(acts(), ["login.confirmed"]);
    let code = json!({"code": to.get("code")});
    let session = token(&http::call(app.public, "POST", "/v1/oauth/exchange", &[], Some(&code)));
    assert_eq!(acts(), ["login.confirmed", "login.succeeded"]);
    let begun = app.call("POST", "/v1/users/oauth/link/github", &session, Some(&json!({})));
    let (sent, cookie) = (Sent::parse(begun.json()["url"].as_str().unwrap()), cookie_of(&begun));
    assert_eq!(acts().last().unwrap(), "login.linking");
    let code = idp.consent(&sent, &person("7", "ann@example.org", true));
    arrive(&app, "github", &format!("state={}&code={code}", sent.get("state")), &cookie);
    assert_eq!(acts().last().unwrap(), "login.linked");
}

#[test]
fn a_login_at_a_provider_leaves_a_known_device_as_one_by_password_does() {
    let idp = IdentityProvider::start();
    let toml = format!("{}[accounts]\nredirects = [\"https://app.example.com/*\"]\n", idp.config());
    let app = TestApp::start(&toml);
    let alice = app.register("alice");
    let mine = person("s-9", "private@example.org", false);
    let body = json!({"email": alice.email, "password": PASSWORD});
    let session = token(&http::call(app.public, "POST", "/v1/users/login", &[], Some(&body)));
    let begun = app.call("POST", "/v1/users/oauth/link/company", &session, Some(&json!({"password": PASSWORD})));
    let (sent, cookie) = (Sent::parse(begun.json()["url"].as_str().unwrap()), cookie_of(&begun));
    let code = idp.consent(&sent, &mine);
    arrive(&app, "company", &format!("state={}&code={code}", sent.get("state")), &cookie);

    // Straight from the callback, beside the cookie that it takes back; and by an exchange.
    let straight = sign_in(&app, &idp, "company", &mine);
    let cookies: Vec<&str> =
        straight.headers.iter().filter(|(name, _)| name == "set-cookie").map(|(_, value)| value.as_str()).collect();
    let first = straight.header("x-tollgate-device").unwrap().to_owned();
    assert_eq!(cookies.len(), 2, "{cookies:?}");
    assert!(
        cookies.iter().any(|cookie| cookie.starts_with(&format!("__Host-tollgate-device={first};"))),
        "{cookies:?}"
    );
    assert!(cookies.iter().any(|cookie| cookie.contains("tollgate-oauth=;") && cookie.contains("Max-Age=0")));
    let (sent, cookie) = depart(&app, "company", "?redirect=https%3A%2F%2Fapp.example.com%2Fdone");
    let code = idp.consent(&sent, &mine);
    let back = arrive(&app, "company", &format!("state={}&code={code}", sent.get("state")), &cookie);
    assert_eq!(back.header("x-tollgate-device"), None, "nobody is let in yet");
    let code = Sent::parse(back.header("location").unwrap()).get("code").to_owned();
    let exchanged = http::call(app.public, "POST", "/v1/oauth/exchange", &[], Some(&json!({"code": code})));
    let second = exchanged.header("x-tollgate-device").unwrap().to_owned();

    let login = |password: &str, device: &str| {
        let body = json!({"email": alice.email, "password": password});
        http::call(app.public, "POST", "/v1/users/login", &[("x-tollgate-device", device)], Some(&body)).status
    };
    for _ in 0..5 {
        login("Wrong-Guess-1", "");
    }
    assert_eq!(login(PASSWORD, ""), 423);
    assert_eq!((login(PASSWORD, &first), login(PASSWORD, &second)), (200, 200));
    // Where there is no password, there is none to lock.
    let social = sign_in(&app, &idp, "company", &person("s-1", "ann@example.com", true));
    assert_eq!((social.status, social.header("x-tollgate-device")), (200, None));
}

#[test]
fn a_program_gets_a_code_and_never_a_token_in_an_address() {
    let idp = IdentityProvider::start();
    let toml = format!("{}[accounts]\nredirects = [\"https://app.example.com/*\"]\n", idp.config());
    let app = TestApp::start(&toml);
    let (sent, cookie) = depart(&app, "company", "?redirect=https%3A%2F%2Fapp.example.com%2Fdone%3Fa%3Db");
    let code = idp.consent(&sent, &person("s-1", "ann@example.com", true));
    let back = arrive(&app, "company", &format!("state={}&code={code}", sent.get("state")), &cookie);
    assert_eq!(back.status, 302, "{}", back.text());
    let to = Sent::parse(back.header("location").unwrap());
    assert!(to.url.starts_with("https://app.example.com/done?a=b&code="), "{}", to.url);
    let exchange = |code: &str| http::call(app.public, "POST", "/v1/oauth/exchange", &[], Some(&json!({"code": code})));
    let opened = exchange(to.get("code"));
    assert_eq!(profile(&app, &token(&opened))["email"], "ann@example.com");
    assert_eq!(exchange(to.get("code")).status, 400, "once");
    assert_eq!(exchange("nonsense").status, 400);
}

#[test]
fn a_second_factor_is_asked_for_here_too() {
    let idp = IdentityProvider::start();
    let app =
        TestApp::with(Options { toml: idp.config(), manual_clock: Some("2026-01-15T12:00:00Z"), ..Options::default() });
    idp.at("2026-01-15T12:00:00Z");
    let ann = person("s-1", "ann@example.com", true);
    let session = token(&sign_in(&app, &idp, "company", &ann));
    // An account without a password: its owner is whoever came in moments ago.
    let secret = crate::accounts::mfa::switch_on_with(&app, &session, json!({}));
    let asked = sign_in(&app, &idp, "company", &ann).json();
    assert_eq!((&asked["mfa_required"], asked.get("session")), (&json!(true), None), "{asked}");
    let exchange = |code: &str| {
        let body = json!({"code": asked["exchange_code"], "mfa_code": code});
        http::call(app.public, "POST", "/v1/oauth/exchange", &[], Some(&body))
    };
    assert_eq!(exchange("000000").error_code(), "WRONG_CODE");
    assert_eq!(exchange("").error_code(), "MFA_REQUIRED");
    let code = crate::accounts::mfa::code(&secret, 1);
    app.hands.as_ref().unwrap().advance(std::time::Duration::from_secs(30));
    let opened = exchange(&code);
    assert_eq!(profile(&app, &token(&opened))["email"], "ann@example.com");
    // Ten minutes later a session alone does nothing dangerous.
    app.hands.as_ref().unwrap().advance(std::time::Duration::from_secs(601));
    let gone = app.call("DELETE", "/v1/users/account", &session, Some(&json!({})));
    assert_eq!((gone.status, gone.error_code().as_str()), (403, "FORBIDDEN"), "{}", gone.text());
}

#[test]
fn an_account_without_a_password_gets_one_from_its_owner() {
    let idp = IdentityProvider::start();
    let app = TestApp::start(&idp.config());
    let session = token(&sign_in(&app, &idp, "company", &person("s-1", "ann@example.com", true)));
    let set = app.call("PUT", "/v1/users/password", &session, Some(&json!({"new_password": PASSWORD})));
    assert_eq!(set.status, 200, "{}", set.text());
    let body = json!({"email": "ann@example.com", "password": PASSWORD});
    assert_eq!(http::call(app.public, "POST", "/v1/users/login", &[], Some(&body)).status, 200);
    let again = app.call("PUT", "/v1/users/password", &session, Some(&json!({"new_password": "OtherPass123"})));
    assert_eq!(again.status, 400, "now the old one is asked for");
    let unlinked = app.call("DELETE", "/v1/users/oauth/company", &session, Some(&json!({"password": PASSWORD})));
    assert_eq!(unlinked.status, 200, "{}", unlinked.text());
}

#[test]
fn staff_may_close_an_account_and_no_provider_opens_it() {
    let idp = IdentityProvider::start();
    let app = TestApp::start(&idp.config());
    let ann = person("s-1", "ann@example.com", true);
    let id = profile(&app, &token(&sign_in(&app, &idp, "company", &ann)))["id"].as_u64().unwrap();
    let root = app.admin_token();
    let admin =
        |method: &str, path: &str| app.admin_call(&root, method, &format!("/v1/admin-panel/users/{id}{path}"), None);
    assert_eq!(admin("POST", "/suspend").status, 200);
    assert_eq!(sign_in(&app, &idp, "company", &ann).status, 403);
    assert_eq!(admin("POST", "/activate").status, 200);
    assert_eq!(admin("DELETE", "").status, 200);
    let fresh = sign_in(&app, &idp, "company", &ann);
    assert_ne!(profile(&app, &token(&fresh))["id"].as_u64(), Some(id), "a new account, which inherits nothing");
}
