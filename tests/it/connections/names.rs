//! The side port answers to names that it has been given, and to addresses.

use crate::server_process::Site;
use crate::support::{Answer, Conn, TestApp, wait_until};

fn ask(app: &TestApp, target: &str, fields: &str) -> Answer {
    let mut conn = Conn::open(app.admin);
    conn.send(format!("GET {target} HTTP/1.1\r\n{fields}\r\n"));
    conn.read_answer()
}

#[test]
fn a_name_that_nobody_has_given_it_gets_421_with_the_setting() {
    let mut app = TestApp::start("[listen]\nadmin_hosts = [\"admin.example.com\"]\n");
    let port = app.admin.port();
    let paths =
        ["/v1/admin-panel/users", "/docs", "/openapi.json", "/nothing", "/v1/support/profile", "/api/admin/users"];
    for path in paths {
        for host in
            ["evil.example", "evil.example:9090", "localhost.evil.example", "127.0.0.1.evil.example", "2130706433"]
        {
            let answer = ask(&app, path, &format!("host: {host}\r\n"));
            assert_eq!((answer.status, answer.error_code().as_str()), (421, "MISDIRECTED_REQUEST"), "{host}{path}");
            assert!(answer.text().contains("listen.admin_hosts"), "{}", answer.text());
        }
        for host in ["localhost", "127.0.0.1", "[::1]", "192.0.2.7", "ADMIN.example.com", "me.localhost"] {
            assert_ne!(ask(&app, path, &format!("host: {host}:{port}\r\n")).status, 421, "{host}{path}");
        }
    }
    for path in ["/metrics", "/health", "/ready", "/health?x=1"] {
        assert_eq!(ask(&app, path, "host: tollgate.monitoring.svc\r\n").status, 200, "{path}");
    }
    // The target's name goes before the field's, in both directions.
    assert_eq!(ask(&app, "http://evil.example/docs", "host: localhost\r\n").status, 421);
    assert_ne!(ask(&app, "http://localhost/docs", "host: evil.example\r\n").status, 421);
    assert_eq!(ask(&app, "/docs", "host: localhost\r\nhost: evil.example\r\n").status, 400);
    // A page cannot put it in a header of another name.
    assert_eq!(ask(&app, "/docs", "host: evil.example\r\nx-forwarded-host: localhost\r\n").status, 421);

    app.reload("[listen]\nadmin_hosts = [\"other.example.com\"]\n");
    assert_ne!(ask(&app, "/docs", "host: other.example.com\r\n").status, 421);
    assert_eq!(ask(&app, "/docs", "host: admin.example.com\r\n").status, 421);
    // The public port is anybody's.
    let mut conn = Conn::open(app.public);
    conn.send("GET /nothing HTTP/1.1\r\nhost: evil.example\r\n\r\n");
    assert_eq!(conn.read_answer().status, 404);
}

#[test]
fn the_log_names_the_name_and_the_setting_and_is_not_flooded() {
    let server = Site::new("[listen]\npublic = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n").serve();
    for _ in 0..50 {
        let mut conn = Conn::open(server.admin);
        conn.send("GET /docs HTTP/1.1\r\nhost: evil.example\r\n\r\n");
        assert_eq!(conn.read_answer().status, 421);
    }
    wait_until("the log has it", || server.log().contains("evil.example"));
    let log = server.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("evil.example")).collect();
    assert!(lines[0].contains("WARN") && lines[0].contains("listen.admin_hosts"), "{log}");
    assert!(lines.len() < 5, "{log}");
}

#[test]
fn a_name_with_a_port_or_a_path_is_refused_with_what_to_write() {
    for name in ["admin.example.com:9090", "https://admin.example.com", "admin.example.com/", ""] {
        let text = format!("[listen]\nadmin_hosts = [\"{name}\"]\n");
        let error = tollgate::config::Config::parse("test.toml", &text, std::iter::empty()).unwrap_err();
        assert!(error.line == Some(2) && error.reason.starts_with("listen.admin_hosts: "), "{error}");
        assert!(error.reason.contains("write admin.example.com"), "{error}");
    }
}
