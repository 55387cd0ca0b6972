//! The real program with few descriptors: neither idle nor half-sent requests keep a caller or an administrator out.

use serde_json::json;

use super::crowd;
use crate::server_process::{MockProcess, Server, Site};
use crate::support::http::call;
use crate::support::{Conn, wait_until};

fn site(mock: &MockProcess, limits: &str, more: &str) -> Site {
    Site::new(&format!(
        "[listen]\npublic = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\nworkers = 2\n\
         [telemetry]\naccess_log = \"off\"\n\
         [limits]\nper_ip_per_minute = 0\n{limits}\
         [[upstreams]]\nname = \"ai\"\nendpoints = [\"http://{}\"]\n\
         [[routes]]\npath = \"/v1/*\"\nupstream = \"ai\"\ncost = {{ conversations = 1 }}\n\
         [plans.free.meters]\nconversations = {{ grant = 100000 }}\n{more}",
        mock.addr
    ))
}

/// Everybody gets what they came for, on both ports.
fn all_is_well(server: &Server, key: &str) {
    for _ in 0..20 {
        let answer = server.chat(key, &[], json!({}));
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    for path in ["/health", "/ready", "/metrics"] {
        assert_eq!(call(server.admin, "GET", path, &[], None).status, 200, "{path}");
    }
    server.admin_token();
    let (open, most) = (server.metric("tollgate_connections"), server.metric("tollgate_connections_max"));
    assert!(most > 50.0 && open <= most, "{open} of {most}");
    assert!(server.metric("process_open_fds") < server.metric("process_max_fds"));
    assert_eq!(server.metric("tollgate_accept_errors_total"), 0.0, "there was always a descriptor: {}", server.log());
}

#[test]
fn idle_connections_keep_nobody_out() {
    let mock = MockProcess::start();
    let server = site(&mock, "", "").serve_with_open_files(1024, 1024);
    let log = server.log();
    assert!(log.contains("1024 open files") && log.contains("instead of limits.max_connections = 20000"), "{log}");
    let key = server.register("alice").key;
    // Some have never asked for anything, some have.
    let silent = crowd(server.public, 1100, "");
    all_is_well(&server, &key);
    let ask = |_| {
        let mut conn = Conn::open(server.public);
        assert_eq!(conn.call("GET", "/nothing", &[], None).status, 404);
        conn
    };
    let mut asked: Vec<Conn> = (0..1100).map(ask).collect();
    all_is_well(&server, &key);
    // Who waits longest goes first.
    assert!(asked[0].is_closed());
    let last = asked.last_mut().unwrap();
    assert_eq!(last.call("GET", "/nothing", &[], None).status, 404);
    assert!(server.metric("tollgate_connections_evicted_total") > 1000.0);
    drop((silent, asked));
    wait_until("all are gone", || server.metric("tollgate_connections") == 0.0);
    assert_eq!(server.metric("tollgate_connection_addresses"), 0.0);
}

#[test]
fn half_sent_requests_and_unread_refusals_keep_nobody_out() {
    let mock = MockProcess::start();
    let server = site(&mock, "", "").serve_with_open_files(1024, 1024);
    let key = server.register("alice").key;
    let half = crowd(server.public, 2000, "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-slow: ");
    all_is_well(&server, &key);
    let body =
        "POST /v1/users/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 900\r\n\r\n{";
    let bodies = crowd(server.public, 2000, body);
    all_is_well(&server, &key);
    let refused = crowd(server.public, 2000, "what is this?\r\n\r\n");
    all_is_well(&server, &key);
    let beside = crowd(server.admin, 1000, "POST /v1/admin-panel/login HTTP/1.1\r\nhost: localhost\r\nx-slow: ");
    all_is_well(&server, &key);
    drop((half, bodies, refused, beside));
}

#[test]
fn the_soft_limit_is_raised_to_the_hard_one() {
    let mock = MockProcess::start();
    let server = site(&mock, "max_connections = 300\n", "").serve_with_open_files(200, 1500);
    let log = server.log();
    assert!(log.contains("raised the limit of open files from=200 to=1500"), "{log}");
    assert!(log.contains("enough for limits.max_connections = 300"), "{log}");
    assert_eq!((server.metric("process_max_fds"), server.metric("tollgate_connections_max")), (1500.0, 300.0));
}

#[test]
fn check_config_says_how_many_connections_there_can_be() {
    let mock = MockProcess::start();
    let site = site(&mock, "", "");
    let said = |files: u32| {
        let output = site.command_with_open_files(&["check-config"], files, files).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let few = said(1024);
    assert!(
        few.contains("# By this shell's limit, a server has 1024 open files") && few.contains("ulimit -n"),
        "{few}"
    );
    toml::from_str::<toml::Table>(&few).unwrap();
}

/// Connections to upstreams that are only kept are given up for new ones.
#[test]
fn kept_connections_to_upstreams_stay_within_their_share() {
    const CALLS: usize = 60;
    let mock = MockProcess::start();
    let more: String = ["b", "c", "d"]
        .iter()
        .map(|name| {
            format!(
                "[[upstreams]]\nname = \"{name}\"\nendpoints = [\"http://{}\"]\n[[routes]]\npath = \"/{name}/*\"\nupstream = \"{name}\"\n",
                mock.addr
            )
        })
        .collect();
    let server = site(&mock, "", &more).serve_with_open_files(400, 400);
    let key = server.register("alice").key;
    let most = server.metric("tollgate_upstream_connections_max");
    assert!((70.0..150.0).contains(&most), "{most}");
    let bearer = format!("Bearer {key}");
    for path in ["/b/x", "/c/x", "/d/x", "/b/x"] {
        let call = |_| {
            let mut conn = Conn::open(server.public);
            let headers = [("authorization", bearer.as_str()), ("x-mock-delay-ms", "500")];
            conn.send(crate::support::http::request("GET", path, &headers, None));
            conn
        };
        let calls: Vec<Conn> = (0..CALLS).map(call).collect();
        for mut conn in calls {
            let answer = conn.read_answer();
            assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        }
        let open = server.metric("tollgate_upstream_connections");
        assert!(open <= most, "{open} of {most}");
    }
    all_is_well(&server, &key);
}
