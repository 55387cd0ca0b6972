//! Paths: what the public listener serves, and what no trick makes it serve.

use super::{PLENTY, send};
use crate::support::http::call;
use crate::support::{Conn, Options, TestApp};

#[test]
fn no_trick_with_paths_or_hosts_reaches_the_side_port_s_surfaces() {
    let route = "[[routes]]\npath = \"/*\"\nupstream = \"ai\"\n";
    let app = TestApp::with(Options { toml: PLENTY.into(), route, ..Options::default() });
    let key = app.register("alice").key;
    let token = app.admin_token();
    let admin = app.admin;
    let paths = [
        "/v1/admin-panel/users",
        "/v1/admin-panel",
        "/v1/admin-panel/",
        "//v1/admin-panel/users",
        "/v1//admin-panel/users",
        "/V1/ADMIN-PANEL/users",
        "/v1/%61dmin-panel/users",
        "/%76%31/admin-panel/users",
        "/v1/admin%2Dpanel/users",
        "/v1/admin-panel?x=/v1/models",
        "/v1/admin-panel/users?",
        "/v1/support/users",
        "/v1/support",
        "/v1/Support/profile",
    ];
    let hosts = [format!("{admin}"), "localhost:9090".to_owned(), "gateway.test".to_owned()];
    for path in paths {
        for host in &hosts {
            let absolute = format!("http://{admin}{path}");
            for target in [path, &absolute] {
                for credential in [&token, &key] {
                    let mut conn = Conn::open(app.public);
                    conn.send(format!(
                        "GET {target} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {credential}\r\n\
                         x-forwarded-host: {admin}\r\nx-original-url: /v1/admin-panel/users\r\n\r\n"
                    ));
                    let answer = conn.read_answer();
                    assert_eq!(answer.status, 404, "{target}: {}", answer.text());
                }
            }
        }
    }
    for path in [
        "/v1/models/../admin-panel/users",
        "/v1/%2e%2e/v1/admin-panel/users",
        "/v1/x/..%2Fadmin-panel",
        "/./v1/admin-panel",
        "/v1/x/..;/admin-panel/users",
        "/v1/\\..\\admin-panel",
    ] {
        assert_eq!(send(&app, &key, "GET", path, &[], None).status, 400, "{path}");
    }
    assert_eq!(app.upstream.stats().total, 0, "and no upstream saw any of them");
    // Where everything is routed, these are the upstream's and not ours.
    for path in ["/metrics", "/health", "/ready", "/docs", "/openapi.json", "/admin"] {
        assert_eq!(call(app.public, "GET", path, &[], None).status, 401, "{path}");
        let echoed = send(&app, &key, "GET", path, &[], None);
        assert!(echoed.status == 200 && !echoed.text().contains("tollgate_requests_total"), "{path}");
    }
    assert_eq!(app.upstream.stats().total, 6);
}
