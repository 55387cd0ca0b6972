//! What the real program holds in memory while it is attacked, and afterwards.

use serde_json::json;

use crate::server_process::{MockProcess, Server, Site};
use crate::support::http::request;
use crate::support::{Conn, chat_body, wait_until};

const MIB: usize = 1 << 20;
/// What the process may have grown by once an attack is over: tables, stacks, code that ran for the first time.
const LEFT_KIB: u64 = 12 << 10;

/// A gateway whose calls may hold so many bytes in all, whoever makes them.
fn site(mock: &MockProcess, in_flight: usize) -> Site {
    Site::new(&format!(
        "[listen]\npublic = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\nworkers = 2\n\
         [store]\nbackend = \"memory\"\n[access]\nblock_after_failures = 0\n[telemetry]\naccess_log = \"off\"\n\
         [limits]\nper_ip_per_minute = 0\nin_flight_per_user = 100000\nmax_inspect_bytes = {}\nin_flight_bytes = {in_flight}\n\
         in_flight_bytes_per_user = {in_flight}\nin_flight_bytes_per_address = {in_flight}\n\
         [[upstreams]]\nname = \"ai\"\nendpoints = [\"http://{}\"]\n\
         [[routes]]\npath = \"/v1/*\"\nupstream = \"ai\"\nmodels = [\"*\"]\n",
        2 * MIB,
        mock.addr
    ))
}

/// The usual work before it is measured: what runs for the first time takes memory that stays.
fn warm_up(server: &Server, key: &str) -> u64 {
    for _ in 0..20 {
        assert_eq!(server.chat(key, &[], json!({})).status, 200);
    }
    server.rss_kib()
}

fn is_given_back(server: &Server, before: u64) {
    let mut last = 0;
    wait_until("the memory is given back", || {
        last = server.rss_kib();
        last < before + LEFT_KIB || {
            std::thread::park_timeout(std::time::Duration::from_millis(100));
            false
        }
    });
    println!("memory: {before} KiB before, {} KiB at most, {last} KiB after", server.peak_kib());
}

fn in_flight(server: &Server) -> f64 {
    server.metric("tollgate_in_flight_bytes")
}

fn a_long_chat(key: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let bearer = format!("Bearer {key}");
    let headers = [&[("authorization", bearer.as_str())], headers].concat();
    let body = chat_body(json!({"messages": [{"role": "user", "content": "a".repeat(MIB)}]}));
    request("POST", "/v1/chat/completions", &headers, Some(&body))
}

#[test]
fn bodies_that_wait_stay_within_their_bound() {
    const BOUND: usize = 64 * MIB;
    // Buffers of connections, and pages that the allocator has only partly in use.
    const SLACK_KIB: u64 = 24 << 10;
    let mock = MockProcess::start();
    let site = site(&mock, BOUND);
    let server = site.serve();
    let user = server.register("alice");
    let before = warm_up(&server, &user.key);
    let bound = before + (BOUND as u64 >> 10) + SLACK_KIB;

    // Bodies of which the last byte never comes.
    let bytes = a_long_chat(&user.key, &[]);
    let mut conns = Vec::new();
    let (mut waiting, mut refused) = (0, 0);
    for _ in 0..100 {
        let mut conn = Conn::open(server.public);
        let _ = conn.try_send(&bytes[..bytes.len() - 1]);
        conn.stream.set_nonblocking(true).unwrap();
        let mut is_refused = false;
        wait_until("the body is waited for, or refused", || {
            is_refused = conn.stream.peek(&mut [0; 1]).is_ok();
            is_refused || server.metric("tollgate_holds_open") as usize > waiting
        });
        (waiting, refused) = if is_refused { (waiting, refused + 1) } else { (waiting + 1, refused) };
        conns.push(conn);
    }
    wait_until("as much is held as may be, and no more", || {
        let held = in_flight(&server);
        assert!(held <= BOUND as f64, "{held}");
        held > (BOUND - 2 * MIB) as f64
    });
    assert!(refused > 20, "{refused} refused");
    let most = server.peak_kib();
    assert!(most < bound, "{most} KiB with {waiting} bodies, {before} before: over {bound}");
    drop(conns);
    wait_until("nothing is in flight", || in_flight(&server) == 0.0);
    is_given_back(&server, before);

    // Whole bodies, whose calls wait for their upstream.
    let bytes = a_long_chat(&user.key, &[("x-mock-delay-ms", "3600000")]);
    let (mut conns, before_them) = (Vec::new(), mock.served("/v1/chat/completions"));
    loop {
        let mut conn = Conn::open(server.public);
        let _ = conn.try_send(&bytes);
        conn.stream.set_nonblocking(true).unwrap();
        let mut is_refused = false;
        wait_until("the upstream has the call, or it is refused", || {
            is_refused = conn.stream.peek(&mut [0; 1]).is_ok();
            is_refused || mock.served("/v1/chat/completions") > before_them + conns.len() as u64
        });
        if is_refused {
            break;
        }
        conns.push(conn);
    }
    assert!(conns.len() > 40, "{} calls", conns.len());
    let most = server.peak_kib();
    assert!(most < bound, "{most} KiB with {} calls, {before} before: over {bound}", conns.len());
    drop(conns);
    wait_until("nothing is in flight", || in_flight(&server) == 0.0);
    is_given_back(&server, before);
}

#[test]
fn heads_that_never_end_leave_nothing_behind() {
    let mock = MockProcess::start();
    let server = site(&mock, 64 * MIB).serve();
    let user = server.register("alice");
    let before = warm_up(&server, &user.key);
    let half = format!("GET /v1/x HTTP/1.1\r\nhost: x\r\nx-filler: {}", "a".repeat(30_000));
    let conns: Vec<Conn> = (0..700)
        .map(|_| {
            let mut conn = Conn::open(server.public);
            conn.send(&half);
            conn
        })
        .collect();
    wait_until("all are in", || server.metric("tollgate_connections") == 700.0);
    drop(conns);
    wait_until("all are gone", || server.metric("tollgate_connections") == 0.0);
    is_given_back(&server, before);
}

#[test]
fn logins_that_fail_leave_nothing_behind() {
    let mock = MockProcess::start();
    let server = site(&mock, 64 * MIB).serve();
    let user = server.register("alice");
    let before = warm_up(&server, &user.key);
    std::thread::scope(|scope| {
        for n in 0..12 {
            let server = &server;
            scope.spawn(move || {
                let body = json!({"email": format!("nobody-{n}@example.com"), "password": "Wrong-Password-1"});
                let mut conn = Conn::open(server.public);
                assert_eq!(conn.call("POST", "/v1/users/login", &[], Some(&body)).status, 401);
            });
        }
    });
    is_given_back(&server, before);
}
