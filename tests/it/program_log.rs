//! What the program's log says of upstreams that fail: who, why and how often, and no more lines than anybody reads.

use std::net::TcpListener;

use serde_json::json;

use crate::fake_upstream::FakeUpstream;
use crate::server_process::{Server, Site};
use crate::support::wait_until;

const CALLS: usize = 20;

fn serve(endpoint: &str, more: &str) -> Server {
    Site::new(&format!(
        "[listen]\npublic = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\nworkers = 1\n[store]\nbackend = \"memory\"\n\
         [limits]\nper_ip_per_minute = 0\n[telemetry]\naccess_log = \"off\"\n\
         [[upstreams]]\nname = \"ai\"\nendpoints = [\"http://{endpoint}\"]\nretries = 0\n{more}\
         [[routes]]\npath = \"/v1/*\"\nupstream = \"ai\"\n"
    ))
    .serve()
}

/// Many calls fail with this status; the log says so in few lines, of which the first names endpoint and cause.
#[track_caller]
fn assert_told(server: &Server, endpoint: &str, status: u16, cause: &str) {
    let key = server.register("alice").key;
    for _ in 0..CALLS {
        assert_eq!(server.chat(&key, &[], json!({})).status, status);
    }
    wait_until("the log has it", || server.log().contains("an upstream fails"));
    let log = server.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("an upstream fails")).collect();
    let first = lines[0];
    assert!(first.contains(&format!("endpoint={endpoint}")) && first.contains("upstream=\"ai\""), "{first}");
    assert!(first.contains("WARN") && first.contains(cause) && first.contains("count=1"), "{first}");
    assert!(lines.len() <= 3, "{log}");
    assert!(log.matches("ejected").count() <= 10, "{log}");
}

#[test]
fn an_upstream_that_refuses_connections() {
    // A port that was free a moment ago.
    let endpoint = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    assert_told(&serve(&endpoint, ""), &endpoint, 502, "cannot connect: Connection refused");
}

#[test]
fn an_upstream_whose_name_nobody_knows() {
    // Too long for a name, so that no resolver has to be asked.
    let endpoint = format!("{}.invalid:9100", "x".repeat(64));
    assert_told(&serve(&endpoint, ""), &endpoint, 502, "its name cannot be resolved");
}

#[test]
fn an_upstream_that_does_not_answer_in_time() {
    let silent = FakeUpstream::start(|wire| wire.drain());
    let endpoint = silent.addr.to_string();
    assert_told(&serve(&endpoint, "first_byte_timeout = \"1ms\"\n"), &endpoint, 504, "no answer in time");
}

#[test]
fn an_upstream_that_hangs_up() {
    let rude = FakeUpstream::start(|wire| {
        wire.read_request();
    });
    let endpoint = rude.addr.to_string();
    assert_told(&serve(&endpoint, ""), &endpoint, 502, "closed the connection without an answer");
}

#[test]
fn an_upstream_that_talks_nonsense() {
    let mad = FakeUpstream::once_each("SSH-2.0-OpenSSH\r\n\r\n");
    let endpoint = mad.addr.to_string();
    assert_told(&serve(&endpoint, ""), &endpoint, 502, "sent a malformed answer");
}
