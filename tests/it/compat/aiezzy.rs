//! AIezzy, by its README: its calls, its pages' ways, its administrators' calls.

use serde_json::{Value, json};

use super::transcript::{To, Transcript, fits};
use crate::oauth::{cookie_of, person};
use crate::support::idp::{IdentityProvider, Sent};
use crate::support::smtp::MailServer;
use crate::support::{ADMIN, Answer, Options, PASSWORD, TestApp, http};

/// Chat costs an image, as the page's snippet has it.
const CHAT: &str = "[[routes]]\npath = \"/api/chat\"\nupstream = \"ai\"\ncost = { images = 1 }\n";

fn user() -> Value {
    json!({"id": 1, "username": "", "email": "user@example.com", "is_active": true, "is_admin": false,
        "email_verified": false, "tier": "free", "profile_image": null, "bio": "", "preferences": null,
        "created_at": "", "last_login": null})
}

fn quota() -> Value {
    json!({"tier": "free", "limits": {"images": 20, "videos": 5, "messages": 100},
        "usage": {"image": 5, "video": 1, "message": 23}, "remaining": {"image": 15, "video": 4, "message": 77}})
}

#[test]
fn every_call_of_its_document_is_answered() {
    let mail = MailServer::start();
    let app = TestApp::with(Options { toml: mail.config(), route: CHAT, ..Options::default() });
    let mut t = Transcript::new(&app);
    let body = json!({"email": "user@example.com", "password": "secure_password", "full_name": "John Doe"});
    let registered = t.call(To::Public, "POST /api/v2/register", None, Some(&body));
    fits(
        &registered,
        &json!({"success": true, "user": user(), "session_token": "abc123...",
        "message": "Registration successful"}),
    );
    assert_eq!(registered.json()["message"], "Registration successful");
    let body = json!({"username": "user@example.com", "password": "secure_password"});
    let login = t.call(To::Public, "POST /api/v2/login", None, Some(&body));
    fits(&login, &json!({"success": true, "user": user(), "session_token": "abc123..."}));
    let token = login.json()["session_token"].as_str().unwrap().to_owned();
    let link = mail.letter("user@example.com", "Please confirm your email address").token();
    t.set(&link, "<verification_token>");
    // The path is the document's; the token is not told to the snapshot.
    let verified = http::call(app.public, "GET", &format!("/api/v2/verify-email?token={link}"), &[], None);
    assert_eq!((verified.status, &verified.json()["success"]), (200, &json!(true)), "{}", verified.text());
    let forgot = t.call(To::Public, "POST /api/v2/forgot-password", None, Some(&json!({"email": "user@example.com"})));
    assert_eq!(forgot.status, 200);
    let nobody = t.call(To::Public, "POST /api/v2/forgot-password", None, Some(&json!({"email": "no@example.com"})));
    assert_eq!(nobody.json(), forgot.json(), "nobody learns which addresses have accounts");
    let status = t.call(To::Public, "GET /api/v2/quota/status", Some(&token), None);
    fits(&status, &quota());
    assert_eq!(status.json()["limits"], json!({"images": 20, "videos": 5, "messages": 100}));
    let chat = t.call(To::Public, "POST /api/chat", Some(&token), Some(&json!({"message": "generate image: a cat"})));
    assert_eq!(chat.status, 200, "{}", chat.text());
    let status = t.call(To::Public, "GET /api/v2/quota/status", Some(&token), None);
    assert_eq!((&status.json()["usage"]["image"], &status.json()["remaining"]["image"]), (&json!(1), &json!(19)));
    let reset = mail.letter("user@example.com", "Set a new password").token();
    let body = json!({"token": reset, "password": "new_secure_password"});
    assert_eq!(t.call(To::Public, "POST /api/v2/reset-password", None, Some(&body)).status, 200);
    let over = t.call(To::Public, "GET /api/v2/quota/status", Some(&token), None);
    assert_eq!((over.status, &over.json()["error"]), (401, &over.json()["message"]), "pages show `error` as it is");
    let body = json!({"username": "user@example.com", "password": "new_secure_password"});
    assert_eq!(t.call(To::Public, "POST /api/v2/login", None, Some(&body)).status, 200);
    admin(&mut t);
    insta::assert_snapshot!("aiezzy", t.text());
}

fn admin(t: &mut Transcript<'_>) {
    let body = json!({"username": ADMIN, "password": PASSWORD});
    let login = t.call(To::Side, "POST /api/v2/login", None, Some(&body));
    let admin = login.json()["session_token"].as_str().unwrap().to_owned();
    let dashboard = t.call(To::Side, "GET /api/admin/dashboard", Some(&admin), None);
    fits(
        &dashboard,
        &json!({"total_users": 1, "new_users_today": 1, "active_sessions": 1, "images_today": 1,
        "videos_today": 0, "recent_users": [user()], "top_users": [user()]}),
    );
    let seen = dashboard.json();
    assert_eq!((&seen["active_sessions"], &seen["images_today"]), (&json!(1), &json!(1)), "{seen}");
    assert_eq!(seen["top_users"][0]["total_usage"], 1);
    let tier = t.call(To::Side, "POST /api/admin/users/1/tier", Some(&admin), Some(&json!({"tier": "pro"})));
    assert_eq!(tier.json()["user"]["tier"], "pro", "{}", tier.text());
    let wrong = t.call(To::Side, "POST /api/admin/users/1/tier", Some(&admin), Some(&json!({"tier": "gold"})));
    assert_eq!((wrong.status, &wrong.json()["errors"]), (400, &json!(["tier: there is no such plan"])));
    let usage = t.call(To::Side, "GET /api/admin/users/1/usage?days=2", Some(&admin), None);
    let document = json!({"period_days": 30, "totals": {"images": 150, "videos": 20, "messages": 500},
        "daily": [{"date": "2025-01-01", "images": 5, "videos": 1, "messages": 20}]});
    fits(&usage, &document);
    assert_eq!((&usage.json()["period_days"], &usage.json()["totals"]["images"]), (&json!(2), &json!(1)));
    assert_eq!(usage.json()["daily"].as_array().unwrap().len(), 2);
    let all = t.call(To::Side, "GET /api/admin/usage?days=2", Some(&admin), None);
    assert_eq!(all.json()["totals"], usage.json()["totals"]);
    let gone = t.call(To::Side, "POST /api/admin/users/1/deactivate", Some(&admin), None);
    assert_eq!(gone.json()["user"]["is_active"], false);
    let body = json!({"username": "user@example.com", "password": "new_secure_password"});
    assert_eq!(t.call(To::Public, "POST /api/v2/login", None, Some(&body)).status, 403);
}

#[test]
fn without_a_limit_a_page_sees_plenty() {
    let app = TestApp::start("");
    let (user, root) = (app.register("ana"), app.admin_token());
    let tier = json!({"tier": "enterprise"});
    let path = format!("/api/admin/users/{}/tier", user.id);
    assert_eq!(app.admin_call(&root, "POST", &path, Some(&tier)).status, 200);
    let body = json!({"username": user.email, "password": PASSWORD});
    let login = http::call(app.public, "POST", "/api/v2/login", &[], Some(&body)).json();
    let status = app.call("GET", "/api/v2/quota/status", login["session_token"].as_str().unwrap(), None).json();
    assert_eq!((&status["tier"], &status["unlimited"]), (&json!("enterprise"), &json!(true)));
    // The snippet warns below five.
    assert_eq!(status["remaining"], json!({"image": 2_147_483_647, "video": 2_147_483_647, "message": 2_147_483_647}));
}

fn fetch(app: &TestApp, method: &str, path: &str, cookie: &str, from: &[(&str, &str)], body: Option<&Value>) -> Answer {
    let headers: Vec<(&str, &str)> = [("cookie", cookie)].into_iter().chain(from.iter().copied()).collect();
    http::call(app.public, method, path, &headers, body)
}

fn logged_in(app: &TestApp, email: &str) -> Answer {
    let body = json!({"username": email, "password": PASSWORD});
    let answer = http::call(app.public, "POST", "/api/v2/login", &[], Some(&body));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer
}

fn session_cookie(answer: &Answer) -> String {
    let cookies = answer.headers.iter().filter(|(name, _)| name == "set-cookie");
    let line = cookies.map(|(_, value)| value).find(|value| value.contains("-session=")).unwrap();
    assert!(line.contains("HttpOnly") && line.contains("SameSite=Lax") && line.contains("Path=/"), "{line}");
    line.split(';').next().unwrap().to_owned()
}

const OWN: &[(&str, &str)] = &[("sec-fetch-site", "same-origin")];

/// The page's second snippet sends nothing but what the browser adds by itself.
#[test]
fn its_pages_come_in_with_a_cookie() {
    let app = TestApp::with(Options { route: CHAT, ..Options::default() });
    let user = app.register("ana");
    let cookie = session_cookie(&logged_in(&app, &user.email));
    let status = fetch(&app, "GET", "/api/v2/quota/status", &cookie, OWN, None);
    assert_eq!((status.status, &status.json()["remaining"]["image"]), (200, &json!(20)), "{}", status.text());
    let message = json!({"message": "generate image: a cat"});
    let with_others = format!("theme=dark; {cookie}; lang=sq");
    assert_eq!(fetch(&app, "POST", "/api/chat", &with_others, OWN, Some(&message)).status, 200);
    let seen = app.upstream.last_request().unwrap();
    assert_eq!(seen.header("cookie"), Some(&b"theme=dark; lang=sq"[..]), "ours stays here");
    assert_eq!(fetch(&app, "GET", "/api/v2/quota/status", &cookie, OWN, None).json()["remaining"]["image"], 19);
    let out = fetch(&app, "POST", "/api/v2/logout", &cookie, OWN, None);
    assert!(out.status == 200 && out.header("set-cookie").unwrap().contains("Max-Age=0"), "{}", out.text());
    assert_eq!(fetch(&app, "GET", "/api/v2/quota/status", &cookie, OWN, None).status, 401);
    assert_eq!(fetch(&app, "POST", "/api/chat", &cookie, OWN, Some(&message)).status, 401);
}

/// Attack 23: what other sites' pages make a browser send.
#[test]
fn a_cookie_counts_for_its_own_pages_alone() {
    let app = TestApp::with(Options {
        route: CHAT,
        toml: "public_base_url = \"https://ai.example.com\"\n[cors]\norigins = [\"https://app.example.com\"]\n".into(),
        ..Options::default()
    });
    let user = app.register("ana");
    let cookie = session_cookie(&logged_in(&app, &user.email));
    assert!(cookie.starts_with("__Host-tollgate-session="), "{cookie}");
    let chat = |from: &[(&str, &str)]| fetch(&app, "POST", "/api/chat", &cookie, from, Some(&json!({"message": "x"})));
    for from in [
        &[("sec-fetch-site", "cross-site")][..],
        &[("sec-fetch-site", "same-site")],
        &[("sec-fetch-site", "cross-site"), ("origin", "https://ai.example.com")],
        &[("origin", "https://evil.example")],
        &[("origin", "null")],
        &[],
    ] {
        let refused = chat(from);
        assert_eq!((refused.status, refused.error_code()), (403, "FORBIDDEN".into()), "{from:?}: {}", refused.text());
        assert_eq!(fetch(&app, "POST", "/api/v2/logout", &cookie, from, None).status, 403, "{from:?}");
    }
    assert_eq!(app.upstream.stats().total, 0, "and no upstream saw any of them");
    let cross = [("sec-fetch-site", "cross-site")];
    assert_eq!(fetch(&app, "GET", "/api/v2/quota/status", &cookie, &cross, None).status, 403, "nor is anything told");
    for from in [OWN, &[("origin", "https://ai.example.com")]] {
        assert_eq!(chat(from).status, 200, "{from:?}");
    }
    // A link from elsewhere, or the way back from a provider, shows the page.
    let mut link =
        vec![("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
    assert_eq!(fetch(&app, "GET", "/api/v2/quota/status", &cookie, &link, None).status, 200);
    assert_eq!(fetch(&app, "POST", "/api/chat", &cookie, &link, Some(&json!({}))).status, 403);
    link[2].1 = "iframe";
    assert_eq!(fetch(&app, "GET", "/api/v2/quota/status", &cookie, &link, None).status, 403);
    // Another site's form signs nobody in as somebody else, and makes no account; an allowed one's leaves no cookie.
    let form = json!({"username": user.email, "password": PASSWORD}).to_string();
    let sign_in = |from: &[(&str, &str)]| {
        let headers = [&[("content-type", "text/plain")], from].concat();
        let answer = http::call_raw(app.public, "POST", "/api/v2/login", &headers, form.as_bytes());
        let set = |(name, value): &(String, String)| name == "set-cookie" && value.contains("tollgate-session=");
        (answer.status, answer.headers.iter().any(set))
    };
    for from in [&cross[..], &[("origin", "https://evil.example")], &[("origin", "null")]] {
        assert_eq!(sign_in(from), (403, false), "{from:?}");
    }
    assert_eq!(sign_in(&[("sec-fetch-site", "cross-site"), ("origin", "https://app.example.com")]), (200, false));
    assert_eq!((sign_in(OWN), sign_in(&[])), ((200, true), (200, true)));
    let joins = json!({"email": "mallory@example.com", "password": PASSWORD, "full_name": "Mal Lory"}).to_string();
    let joined = http::call_raw(app.public, "POST", "/api/v2/register", &cross, joins.as_bytes());
    assert_eq!(joined.status, 403, "{}", joined.text());
    // Beside a credential that says who calls, a cookie says nothing.
    let both = [("authorization", "Bearer nonsense"), ("sec-fetch-site", "same-origin")];
    assert_eq!(fetch(&app, "POST", "/api/chat", &cookie, &both, Some(&json!({}))).status, 401);
    // A key is no session, wherever it stands; and two cookies of the name are none.
    let key = format!("__Host-tollgate-session={}", user.key);
    assert_eq!(fetch(&app, "POST", "/api/chat", &key, OWN, Some(&json!({}))).status, 401);
    let twice = format!("{cookie}; __Host-tollgate-session=x");
    assert_eq!(fetch(&app, "POST", "/api/chat", &twice, OWN, Some(&json!({}))).status, 401);
    // The canonical API knows no cookies.
    assert_eq!(fetch(&app, "GET", "/v1/users/profile", &cookie, OWN, None).status, 401);
}

/// A browser sends the cookie it has for as long as it has it: that is no guessing.
#[test]
fn an_old_cookie_blocks_nobody() {
    let app = TestApp::with(Options {
        route: CHAT,
        toml: "[access]\nblock_after_failures = 3\n".into(),
        ..Options::default()
    });
    let user = app.register("ana");
    for _ in 0..10 {
        assert_eq!(fetch(&app, "POST", "/api/chat", "tollgate-session=eyJold", OWN, Some(&json!({}))).status, 401);
    }
    assert_eq!(app.call("POST", "/api/chat", &user.key, Some(&json!({}))).status, 200);
}

#[test]
fn sessions_last_thirty_days() {
    let app = TestApp::with(Options { manual_clock: Some("2026-01-15T12:00:00Z"), ..Options::default() });
    let user = app.register("ana");
    let login = logged_in(&app, &user.email);
    assert!(login.headers.iter().any(|(_, value)| value.contains("Max-Age=2592000")));
    let token = login.json()["session_token"].as_str().unwrap().to_owned();
    let hands = app.hands.as_ref().unwrap();
    hands.advance(std::time::Duration::from_secs(30 * 86_400 - 1));
    assert_eq!(app.call("GET", "/api/v2/quota/status", &token, None).status, 200);
    hands.advance(std::time::Duration::from_secs(1));
    assert_eq!(app.call("GET", "/api/v2/quota/status", &token, None).status, 401);
}

#[test]
fn people_come_in_by_their_provider_and_go_on_to_the_pages() {
    let idp = IdentityProvider::start();
    let app = TestApp::start(&idp.config());
    let come = |accept: &str, who: &str| {
        let away = http::call(app.public, "GET", "/api/oauth/login/github", &[], None);
        assert_eq!(away.status, 302, "{}", away.text());
        let (sent, cookie) = (Sent::parse(away.header("location").unwrap()), cookie_of(&away));
        assert!(sent.get("redirect_uri").ends_with("/api/oauth/callback/github"), "{}", sent.url);
        let code = idp.consent(&sent, &person(who, &format!("{who}@example.com"), true));
        let path = format!("/api/oauth/callback/github?code={code}&state={}", sent.get("state"));
        http::call(app.public, "GET", &path, &[("cookie", &cookie), ("accept", accept)], None)
    };
    let program = come("application/json", "1001");
    fits(&program, &json!({"success": true, "user": user(), "session_token": "abc123..."}));
    let browser = come("text/html,*/*", "1002");
    assert_eq!((browser.status, browser.header("location")), (302, Some("/")), "{}", browser.text());
    let cookie = session_cookie(&browser);
    assert_eq!(fetch(&app, "GET", "/api/v2/quota/status", &cookie, OWN, None).status, 200);
    assert_eq!(http::call(app.public, "GET", "/api/oauth/login/nobody", &[], None).status, 400);
}

#[test]
fn people_without_a_username_get_one() {
    let app = TestApp::start("");
    let register = |email: &str| {
        let body = json!({"email": email, "password": "secure_password"});
        http::call(app.public, "POST", "/api/v2/register", &[], Some(&body))
    };
    assert_eq!(register("john.doe@example.com").json()["user"]["username"], "johndoe");
    let second = register("john.doe@example.org").json()["user"]["username"].as_str().unwrap().to_owned();
    assert!(second.starts_with("johndoe-"), "{second}");
    assert_eq!(register("john.doe@example.com").status, 409);
    let bad = register("nobody");
    assert_eq!((bad.status, &bad.json()["errors"]), (400, &json!(["email: not a valid email address"])));
}
