//! Attacks on logins at identity providers.

use serde_json::{Value, json};

use crate::oauth::{arrive, depart, person, sign_in};
use crate::support::idp::{Fault, IdentityProvider};
use crate::support::{Answer, PASSWORD, TestApp, http};

fn start(idp: &IdentityProvider) -> TestApp {
    TestApp::start(&format!("{}[accounts]\nredirects = [\"https://app.example.com/*\"]\n", idp.config()))
}

fn refused(answer: &Answer) {
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(answer.json().get("session").is_none(), "{}", answer.text());
}

/// Attack 18: the state.
#[test]
fn a_state_is_good_once_for_the_browser_it_was_made_for() {
    let idp = IdentityProvider::start();
    let app = start(&idp);
    let ann = person("s-1", "ann@example.com", true);
    let (sent, cookie) = depart(&app, "company", "");
    let query = |code: &str| format!("state={}&code={code}", sent.get("state"));
    // Missing, made up.
    refused(&arrive(&app, "company", &format!("code={}", idp.consent(&sent, &ann)), &cookie));
    refused(&arrive(&app, "company", &format!("state=made-up&code={}", idp.consent(&sent, &ann)), &cookie));
    let code = idp.consent(&sent, &ann);
    assert_eq!(arrive(&app, "company", &query(&code), &cookie).status, 200);
    // Used.
    refused(&arrive(&app, "company", &query(&idp.consent(&sent, &ann)), &cookie));
    // Another browser's: without a cookie, with its own, at another provider.
    let other = depart(&app, "company", "").1;
    for cookie in ["", other.as_str(), "tollgate-oauth="] {
        let (sent, _) = depart(&app, "company", "");
        let query = format!("state={}&code={}", sent.get("state"), idp.consent(&sent, &ann));
        refused(&arrive(&app, "company", &query, cookie));
    }
    let (sent, cookie) = depart(&app, "company", "");
    let query = format!("state={}&code={}", sent.get("state"), idp.consent(&sent, &ann));
    refused(&arrive(&app, "github", &query, &cookie));
    // The mix-up: an answer that names another issuer.
    let (sent, cookie) = depart(&app, "company", "");
    let query = format!("state={}&code={}&iss=http%3A%2F%2Fevil.example", sent.get("state"), idp.consent(&sent, &ann));
    refused(&arrive(&app, "company", &query, &cookie));
    let (sent, cookie) = depart(&app, "company", "");
    let iss = format!("http%3A%2F%2F{}", idp.addr.to_string().replace(':', "%3A"));
    let query = format!("state={}&code={}&iss={iss}", sent.get("state"), idp.consent(&sent, &ann));
    assert_eq!(arrive(&app, "company", &query, &cookie).status, 200);
    // Of many who bring the same state at once, one gets in.
    let (sent, cookie) = depart(&app, "company", "");
    let query = format!("state={}&code={}", sent.get("state"), idp.consent(&sent, &ann));
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let trying: Vec<_> = (0..8).map(|_| scope.spawn(|| arrive(&app, "company", &query, &cookie).status)).collect();
        trying.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
}

/// Attack 18: what the provider says is checked.
#[test]
fn a_token_that_is_wrong_in_anything_opens_nothing() {
    let idp = IdentityProvider::start();
    let app = start(&idp);
    let ann = person("s-1", "ann@example.com", true);
    for fault in [
        Fault::WrongNonce,
        Fault::WrongIssuer,
        Fault::WrongAudience,
        Fault::Expired,
        Fault::BadSignature,
        Fault::UnsignedToken,
    ] {
        idp.misbehave(fault);
        let answer = sign_in(&app, &idp, "company", &ann);
        assert_eq!(answer.status, 400, "{fault:?}: {}", answer.text());
    }
    idp.misbehave(Fault::None);
    let (sent, cookie) = depart(&app, "company", "");
    let query = format!("state={}&code={}", sent.get("state"), idp.consent(&sent, &ann));
    idp.forget_codes();
    refused(&arrive(&app, "company", &query, &cookie));
    assert_eq!(sign_in(&app, &idp, "company", &ann).status, 200);
    // Nobody was registered on the way.
    let users = app.admin_call(&app.admin_token(), "GET", "/v1/admin-panel/users", None).json();
    assert_eq!(users["total"], 1, "{users}");
}

/// Attacks 18 and 19: redirects are not followed, answers are bounded, metadata of another issuer is refused.
#[test]
fn a_provider_cannot_send_us_elsewhere() {
    let idp = IdentityProvider::start();
    let app = start(&idp);
    let ann = person("s-1", "ann@example.com", true);
    for fault in [Fault::TokenRedirects, Fault::TokenIsHuge] {
        idp.misbehave(fault);
        let answer = sign_in(&app, &idp, "company", &ann);
        assert!(matches!(answer.status, 400 | 502), "{fault:?}: {}", answer.text());
    }
    assert!(!idp.seen().iter().any(|path| path == "/elsewhere"));
    let foreign = IdentityProvider::start();
    foreign.misbehave(Fault::ForeignMetadata);
    let app = start(&foreign);
    let answer = http::call(app.public, "GET", "/v1/oauth/login/company", &[], None);
    assert_eq!((answer.status, answer.error_code().as_str()), (502, "UPSTREAM_UNREACHABLE"));
    // In the public network only, unless the operator says otherwise.
    let inner = "public_base_url = \"https://ai.example.com\"\n[oauth.company]\nissuer = \"https://127.0.0.1:1\"\nclient_id = \
                 \"a\"\nclient_secret = \"b\"\n";
    let app = TestApp::start(inner);
    assert_eq!(http::call(app.public, "GET", "/v1/oauth/login/company", &[], None).status, 502);
}

/// Attack 18: open redirects.
#[test]
fn a_browser_is_sent_nowhere_else() {
    let idp = IdentityProvider::start();
    let app = start(&idp);
    for target in [
        "https://evil.example/",
        "https://app.example.com.evil.example/",
        "https://app.example.com@evil.example/",
        "//evil.example/",
        "javascript:alert(1)",
        "https://app.example.com%2F..%2F..%2F%0d%0aset-cookie:a=b",
    ] {
        let escaped: String = target.bytes().map(|b| format!("%{b:02X}")).collect();
        let answer = http::call(app.public, "GET", &format!("/v1/oauth/login/company?redirect={escaped}"), &[], None);
        assert_eq!(answer.status, 400, "{target}");
    }
}

fn register(app: &TestApp, name: &str, email: &str) -> (String, String) {
    let body = json!({"username": name, "name": "Mallory", "email": email, "password": PASSWORD});
    let made = http::call(app.public, "POST", "/v1/users/register", &[], Some(&body)).json();
    let login =
        http::call(app.public, "POST", "/v1/users/login", &[], Some(&json!({"email": email, "password": PASSWORD})));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&made["api_key"]), text(&login.json()["session"]["session_token"]))
}

/// Attack 18: somebody registers with a stranger's address and waits for him.
#[test]
fn what_was_laid_before_the_owner_came_opens_nothing_afterwards() {
    let idp = IdentityProvider::start();
    let app = start(&idp);
    let (key, session) = register(&app, "mallory", "victim@example.com");
    let named = app.call("POST", "/v1/users/keys", &session, Some(&json!({"name": "back door"}))).json();
    let named = named["api_key"].as_str().unwrap().to_owned();
    assert_eq!(app.chat(&key, json!({})).status, 200);
    let victim = sign_in(&app, &idp, "company", &person("s-1", "victim@example.com", true));
    assert_eq!(victim.status, 200, "{}", victim.text());
    let password = json!({"email": "victim@example.com", "password": PASSWORD});
    assert_eq!(http::call(app.public, "POST", "/v1/users/login", &[], Some(&password)).status, 401);
    assert_eq!(app.call("GET", "/v1/users/profile", &session, None).status, 401);
    assert_eq!((app.chat(&key, json!({})).status, app.chat(&named, json!({})).status), (401, 401));
    let token = victim.json()["session"]["session_token"].as_str().unwrap().to_owned();
    assert_eq!(app.chat(&token, json!({})).status, 200);
}

/// Attack 18: a provider that has not verified an address says nothing about it.
#[test]
fn an_unverified_address_never_links_and_never_counts_as_verified() {
    let idp = IdentityProvider::start();
    let app = start(&idp);
    register(&app, "alice", "alice@example.com");
    let mallory = sign_in(&app, &idp, "company", &person("s-6", "alice@example.com", false));
    assert_eq!((mallory.status, mallory.error_code().as_str()), (409, "CONFLICT"));
    let fresh = sign_in(&app, &idp, "company", &person("s-7", "free@example.com", false));
    let token = fresh.json()["session"]["session_token"].as_str().unwrap().to_owned();
    let me = app.call("GET", "/v1/users/profile", &token, None).json();
    assert_eq!(me["user"]["is_verified"], false, "{me}");
}
