//! Two gateways cannot have one port.

use std::net::SocketAddr;
use std::process::Stdio;

use crate::server_process::{Server, Site};
use crate::support::http::call;
use crate::support::wait_until;

fn config(public: &str, admin: &str) -> String {
    format!("[listen]\npublic = \"{public}\"\nadmin = \"{admin}\"\nworkers = 4\n[store]\nbackend = \"memory\"\n")
}

/// A second gateway with these ports ends at once and says why.
fn fails(public: &str, admin: &str, names: &str, address: SocketAddr) {
    let site = Site::new(&config(public, admin));
    let child = site.command(&["serve"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(names) && said.contains(&address.to_string()) && said.contains("in use"), "{said}");
}

#[test]
fn a_second_gateway_on_a_taken_port_fails_at_once() {
    let first = Site::new(&config("127.0.0.1:0", "127.0.0.1:0")).serve();
    let (public, admin) = (first.public, first.admin);
    fails(&public.to_string(), "127.0.0.1:0", "listen.public", public);
    // Where all addresses would be taken, that one is among them.
    fails(
        &format!("0.0.0.0:{}", public.port()),
        "127.0.0.1:0",
        "listen.public",
        format!("0.0.0.0:{}", public.port()).parse().unwrap(),
    );
    fails("127.0.0.1:0", &admin.to_string(), "listen.admin", admin);
    fails(&admin.to_string(), "127.0.0.1:0", "listen.public", admin);
    for _ in 0..40 {
        assert_eq!(call(first.public, "GET", "/nothing", &[], None).status, 404, "the first one has all connections");
    }
}

#[test]
fn a_port_is_free_for_the_next_as_soon_as_the_last_has_ended() {
    let site = Site::new(&config("127.0.0.1:0", "127.0.0.1:0"));
    let mut server: Server = site.serve();
    let address = server.public;
    for _ in 0..3 {
        // The server closes first, which leaves the port in TIME_WAIT.
        let mut conn = crate::support::Conn::open(address);
        conn.send("GET /nothing HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        assert_eq!(conn.read_answer().status, 404);
        assert!(conn.is_closed());
        server.signal("TERM");
        server.wait();
        site.write_config(&config(&address.to_string(), "127.0.0.1:0"));
        server = site.serve();
        assert_eq!(server.public, address);
        wait_until("it serves", || call(address, "GET", "/nothing", &[], None).status == 404);
    }
}
