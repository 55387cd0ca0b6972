//! Dialects are switched on and off, and an operator's own routes go before them.

use serde_json::json;

use crate::support::{Options, TestApp, http};

const EVERYTHING: &str = "[[routes]]\npath = \"/*\"\nupstream = \"ai\"\n";

const PUBLIC: [(&str, &str); 5] = [
    ("clisonix", "/api/users/me"),
    ("aiezzy", "/api/v2/quota/status"),
    ("aiezzy", "/api/oauth/login/nobody"),
    ("usermgmt", "/api/v1/auth/profile"),
    ("noteria", "/noteria/login.php"),
];
const SIDE: [(&str, &str); 6] = [
    ("clisonix", "/api/admin/stats"),
    ("clisonix", "/api/admin/users"),
    ("aiezzy", "/api/admin/dashboard"),
    ("aiezzy", "/api/admin/usage"),
    ("usermgmt", "/api/v1/admin/users"),
    ("noteria", "/noteria/admin_unique_codes.php"),
];

fn is_echoed(app: &TestApp, path: &str, key: &str) -> bool {
    let before = app.upstream.stats().total;
    app.call("GET", path, key, None);
    app.upstream.stats().total > before
}

#[test]
fn what_is_off_is_the_operators_own_again_also_by_a_reload() {
    let mut app = TestApp::with(Options { route: EVERYTHING, ..Options::default() });
    let (user, root) = (app.register("ana"), app.admin_token());
    let check = |app: &TestApp, off: &str| {
        for (dialect, path) in PUBLIC {
            assert_eq!(is_echoed(app, path, &user.key), dialect == off, "{path} with {off} off");
        }
        for (dialect, path) in SIDE {
            // On the public port they are nobody's while the dialect is on; this one is two dialects'.
            let is_free = dialect == off && path != "/api/admin/users";
            assert_eq!(is_echoed(app, path, &user.key), is_free, "{path} with {off} off");
            let document = app.admin_call(&root, "GET", "/openapi.json", None).json();
            let described = document["paths"][path].is_object();
            assert_eq!(described, dialect != off, "{path} in the document with {off} off");
            let status = app.admin_call(&root, "GET", path, None).status;
            assert_eq!(status, if dialect == off { 404 } else { 200 }, "{path} with {off} off");
        }
    };
    check(&app, "none");
    for off in ["clisonix", "aiezzy", "usermgmt", "noteria"] {
        app.reload(&format!("[compat]\n{off} = false\n[[routes]]\npath = \"/*\"\nupstream = \"ai\"\n"));
        check(&app, off);
    }
}

#[test]
fn a_route_that_says_as_much_of_a_path_goes_before() {
    let app = TestApp::with(Options {
        route: "[[routes]]\npath = \"/api/*\"\nupstream = \"ai\"\n[[routes]]\npath = \"/api/v2/*\"\nupstream = \"ai\"\n\
            [[routes]]\npath = \"/api/users/me\"\nupstream = \"ai\"\n",
        ..Options::default()
    });
    let user = app.register("ana");
    for (path, ours) in [
        ("/api/anything", false),
        ("/api/v2/quota/status", false),
        ("/api/users/me", false),
        ("/api/users/me/usage", true),
        ("/api/v1/auth/profile", true),
    ] {
        assert_eq!(is_echoed(&app, path, &user.key), !ours, "{path}");
    }
}

#[test]
fn the_health_page_gives_way_to_any_route() {
    let app = TestApp::start("");
    let health = http::call(app.public, "GET", "/health", &[], None);
    assert_eq!((health.status, &health.json()["status"]), (200, &json!("healthy")));
    assert!(!health.text().contains("tasks"), "the side port's page stays there");
    for path in ["/metrics", "/ready", "/docs", "/openapi.json", "/admin", "/health/x"] {
        assert_eq!(http::call(app.public, "GET", path, &[], None).status, 404, "{path}");
    }
    let routed = TestApp::with(Options { route: EVERYTHING, ..Options::default() });
    assert_eq!(http::call(routed.public, "GET", "/health", &[], None).status, 401, "a route's, for callers it knows");
    let off = TestApp::start("[compat]\nusermgmt = false\n");
    assert_eq!(http::call(off.public, "GET", "/health", &[], None).status, 404);
}

#[test]
fn no_spelling_gets_by_to_an_administrators_path() {
    let app = TestApp::with(Options { route: EVERYTHING, ..Options::default() });
    let (user, root) = (app.register("ana"), app.admin_token());
    for path in [
        "/api/admin/users",
        "/api/v1/admin/users",
        "/API/Admin/Users",
        "//api/admin/users",
        "/api//admin/users",
        "/%61pi/admin/users",
        "/api/v1/%61dmin/users",
        "/api/admin/users/1/tier",
        "/noteria/export_user_codes.php?user_id=1",
        "/Noteria/Export_User_Codes.php",
    ] {
        for token in [&user.key, &root] {
            assert_eq!(app.call("GET", path, token, None).status, 404, "{path}");
        }
    }
    assert_eq!(app.upstream.stats().total, 0);
}

/// What a session was opened by does not matter to what it may.
#[test]
fn the_seeds_environment_makes_the_first_administrator() {
    let site = crate::accounts::process::Site::new(TestApp::start("").upstream.addr());
    let server = site.serve(&[("ADMIN_USERNAME", "admin"), ("ADMIN_PASSWORD", "admin123!")]);
    let body = json!({"username": "admin", "password": "admin123!"});
    let login = http::call(site.admin, "POST", "/api/v1/admin/login", &[], Some(&body));
    assert_eq!(login.status, 200, "{}", login.text());
    let weak = json!({"username": "other", "name": "O", "email": "o@example.com", "password": "admin123!"});
    let token = login.json()["access_token"].as_str().unwrap().to_owned();
    let refused = http::call(
        site.admin,
        "POST",
        "/v1/admin-panel/create-admin",
        &[("authorization", &format!("Bearer {token}"))],
        Some(&weak),
    );
    assert_eq!(refused.status, 400, "the canonical API's rule stays: {}", refused.text());
    assert_eq!(server.terminate(), Some(0));
}
