//! The life of the process, on the real program: starting, reloading, draining, dying and starting again.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tollgate::mock_upstream::MockUpstream;

use crate::fake_upstream::FakeUpstream;
use crate::server_process::{Server, Site};
use crate::support::http::request;
use crate::support::{Conn, chat_body, wait_until};

/// A simulated upstream and what keeps it running.
struct Upstream {
    mock: MockUpstream,
    _runtime: tokio::runtime::Runtime,
}

impl Upstream {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mock = runtime.block_on(MockUpstream::bind("127.0.0.1:0".parse().unwrap())).unwrap();
        mock.record(true);
        Self { mock, _runtime: runtime }
    }

    fn url(&self) -> String {
        format!("http://{}", self.mock.addr())
    }
}

/// A config with this upstream; `more` comes after it.
fn config(endpoint: &str, more: &str) -> String {
    config_with(endpoint, "drain_grace = \"20s\"", "conversations = 1", more)
}

fn config_with(endpoint: &str, listen: &str, cost: &str, more: &str) -> String {
    format!(
        "[listen]\npublic = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\nworkers = 2\n{listen}\n\
         [access]\nblock_after_failures = 0\n[telemetry]\naccess_log = \"off\"\n\
         [[upstreams]]\nname = \"ai\"\nendpoints = [\"{endpoint}\"]\n\
         [[routes]]\npath = \"/v1/*\"\nupstream = \"ai\"\ncost = {{ {cost} }}\n\
         [plans.free.meters]\nconversations = {{ grant = 100000 }}\ncredits = {{ grant = 100000 }}\n{more}\n"
    )
}

const NO_RATE: &str = "[limits]\nper_ip_per_minute = 0\n";

fn chat_request(key: &str, headers: &[(&str, &str)], more: serde_json::Value) -> Vec<u8> {
    let bearer = format!("Bearer {key}");
    let all: Vec<(&str, &str)> =
        std::iter::once(("authorization", bearer.as_str())).chain(headers.iter().copied()).collect();
    request("POST", "/v1/chat/completions", &all, Some(&chat_body(more)))
}

fn balance(server: &Server, user: u64) -> f64 {
    let answer = server.admin_get(&server.admin_token(), &format!("/v1/admin-panel/users/{user}"));
    answer["user"]["meters"]["conversations"]["balance"].as_f64().unwrap()
}

fn is_refused(server: &Server) -> bool {
    matches!(TcpStream::connect(server.public), Err(error) if error.kind() == ErrorKind::ConnectionRefused)
}

#[test]
fn port_0_takes_free_ports_and_says_which() {
    let upstream = Upstream::start();
    let site = Site::new(&config(&upstream.url(), NO_RATE));
    let server = site.serve();
    assert!(server.public.port() != 0 && server.admin.port() != 0 && server.public != server.admin);
    assert_eq!(server.chat(&server.register("alice").key, &[], json!({})).status, 200);
}

#[test]
fn sigterm_lets_running_calls_finish_and_leaves_everything_on_disk() {
    let upstream = Upstream::start();
    let site = Site::new(&config(&upstream.url(), NO_RATE));
    let mut server = site.serve();
    let user = server.register("alice");
    let mut idle = Conn::open(server.public);
    assert_eq!(idle.call("GET", "/nothing", &[], None).status, 404);
    let mut plain = Conn::open(server.public);
    plain.send(chat_request(&user.key, &[("x-mock-delay-ms", "1500")], json!({})));
    let mut stream = Conn::open(server.public);
    let slow = [("x-mock-chunk-delay-ms", "100"), ("x-mock-tokens", "15")];
    stream.send(chat_request(&user.key, &slow, json!({"stream": true})));
    assert_eq!(stream.read_head().unwrap().status, 200);
    wait_until("both are at the upstream", || upstream.mock.stats().open == 2);

    server.signal("TERM");
    wait_until("new connections are refused", || is_refused(&server));
    assert!(idle.is_closed(), "who asks for nothing is not waited for");
    let answer = plain.read_answer();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    let mut events = Vec::new();
    loop {
        let chunk = stream.read_chunk().expect("the stream ends as it should");
        if chunk.is_empty() {
            break;
        }
        events.extend(chunk);
    }
    assert!(events.ends_with(b"data: [DONE]\n\n"));
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());

    let shown = site.command(&["logs", "show", "--user", "alice"]).output().unwrap();
    let lines = String::from_utf8(shown.stdout).unwrap();
    assert_eq!(lines.lines().count(), 2, "{lines} {}", String::from_utf8_lossy(&shown.stderr));
    let verified = site.command(&["logs", "verify"]).output().unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    let again = site.serve();
    assert_eq!(balance(&again, user.id), 99_998.0);
    assert_eq!(again.chat(&user.key, &[], json!({})).status, 200, "the key is still good");
}

#[test]
fn when_the_grace_time_is_over_what_still_runs_is_cut() {
    let upstream = Upstream::start();
    let site = Site::new(&config_with(&upstream.url(), "drain_grace = \"300ms\"", "conversations = 1", NO_RATE));
    let mut server = site.serve();
    let user = server.register("alice");
    let mut endless = Conn::open(server.public);
    let slow = [("x-mock-chunk-delay-ms", "50"), ("x-mock-tokens", "10000")];
    endless.send(chat_request(&user.key, &slow, json!({"stream": true})));
    assert_eq!(endless.read_head().unwrap().status, 200);
    let mut waiting = Conn::open(server.public);
    waiting.send(chat_request(&user.key, &[("x-mock-delay-ms", "60000")], json!({})));
    wait_until("both are at the upstream", || upstream.mock.stats().open == 2);

    server.signal("TERM");
    let began = Instant::now();
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    // The stream would go on for minutes, and the other call for one.
    assert!(began.elapsed() < Duration::from_secs(50), "it took {:?}", began.elapsed());
    assert!(waiting.is_closed());
    let end = loop {
        match endless.read_chunk() {
            Ok(chunk) if chunk.is_empty() => break Ok(()),
            Ok(_) => {}
            Err(error) => break Err(error),
        }
    };
    assert!(end.is_err(), "cut, and not ended as if whole");
    wait_until("the upstream is let go", || upstream.mock.stats().open == 0);
    let again = site.serve();
    assert_eq!(balance(&again, user.id), 99_999.0, "the stream that had begun is paid, the other is not");
}

/// Runs `clients` threads that call until told to stop; hands back how many calls were answered with 200.
fn under_load(server: &Server, key: &str, clients: usize, meanwhile: impl FnOnce(&AtomicUsize)) -> usize {
    let (stop, good) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for client in 0..clients {
            let (stop, good, public) = (&stop, &good, server.public);
            scope.spawn(move || {
                let mut conn = Conn::open(public);
                while !stop.load(Ordering::Acquire) {
                    let stream = client % 2 == 0;
                    conn.send(chat_request(key, &[], json!({"stream": stream})));
                    let answer = conn.read_answer();
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    assert!(!stream || answer.text().ends_with("data: [DONE]\n\n"));
                    good.fetch_add(1, Ordering::AcqRel);
                }
            });
        }
        let waited = StopOnDrop(&stop);
        meanwhile(&good);
        drop(waited);
    });
    good.into_inner()
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn reloads_under_load_drop_no_request() {
    let upstream = Upstream::start();
    let site = Site::new(&config(&upstream.url(), NO_RATE));
    let server = site.serve();
    let user = server.register("alice");
    let good = under_load(&server, &user.key, 6, |good| {
        for nth in 0..20 {
            let retries = format!("{NO_RATE}max_body_bytes = {}\n", 1_000_000 + nth);
            let bad = nth % 5 == 4;
            site.write_config(&if bad { "nonsense".to_owned() } else { config(&upstream.url(), &retries) });
            let before = good.load(Ordering::Acquire);
            server.reload();
            wait_until("calls go on", || good.load(Ordering::Acquire) >= before + 20);
        }
    });
    assert_eq!(upstream.mock.stats().total, good as u64, "each call once");
    assert_eq!(balance(&server, user.id), 100_000.0 - good as f64);
    assert_eq!(server.metric("tollgate_panics_total"), 0.0);
    assert_eq!(server.metric("tollgate_connections_total"), 6.0 + 1.0, "and no connection was closed for it");
}

#[test]
fn a_bad_file_is_refused_with_the_reason_and_the_old_config_stays() {
    let upstream = Upstream::start();
    let site = Site::new(&config(&upstream.url(), NO_RATE));
    let mut server = site.serve();
    let key = server.register("alice").key;
    for (bad, reason) in [
        ("[limits]\nmax_bodi_bytes = 5\n".to_owned(), "max_body_bytes"),
        ("[[routes]]\npath = \"/v1/*\"\nupstream = \"nowhere\"\n".to_owned(), "nowhere"),
        ("this is no TOML".to_owned(), "tollgate.toml:2"),
        (config(&upstream.url(), "[accounts]\nsession_hours = \"many\"\n"), "expected u64"),
    ] {
        site.write_config(&bad);
        let said = server.log().len();
        server.reload();
        let log = server.log()[said..].to_owned();
        assert!(log.contains(reason), "{reason} is not named in: {log}");
        assert_eq!(server.chat(&key, &[], json!({})).status, 200, "{reason}");
    }
    std::fs::remove_file(site.config_file()).unwrap();
    server.reload();
    assert_eq!(server.chat(&key, &[], json!({})).status, 200, "also without a file");
    assert!(server.is_running());
}

#[test]
fn what_a_reload_changes_is_in_force_for_the_next_call() {
    let (first, second) = (Upstream::start(), Upstream::start());
    let site = Site::new(&config(&first.url(), NO_RATE));
    let server = site.serve();
    let user = server.register("alice");
    // On a connection that stays open all the while.
    let mut conn = Conn::open(server.public);
    let mut call = |path: &str| {
        let bearer = format!("Bearer {}", user.key);
        conn.call("POST", path, &[("authorization", &bearer)], Some(&chat_body(json!({}))))
    };
    assert_eq!(call("/v1/x").header("x-tollgate-remaining-conversations"), Some("99999"));

    site.write_config(&config(&second.url(), NO_RATE));
    server.reload();
    assert_eq!(call("/v1/x").status, 200);
    assert_eq!((first.mock.stats().total, second.mock.stats().total), (1, 1), "the upstream");

    site.write_config(&config_with(&second.url(), "", "conversations = 10, credits = 3", NO_RATE));
    server.reload();
    let answer = call("/v1/x");
    assert_eq!(answer.header("x-tollgate-remaining-conversations"), Some("99988"), "the price");
    assert_eq!(answer.header("x-tollgate-remaining-credits"), Some("99997"));

    site.write_config(&config(&second.url(), NO_RATE).replace("/v1/*", "/v2/*"));
    server.reload();
    assert_eq!((call("/v1/x").status, call("/v2/x").status), (404, 200), "the route");

    site.write_config(&config(&second.url(), "[limits]\nper_ip_per_minute = 0\nmax_body_bytes = 10\n"));
    server.reload();
    assert_eq!(call("/v1/x").status, 413, "the limit");

    site.write_config(&config(&second.url(), "[limits]\nper_ip_per_minute = 2\n"));
    server.reload();
    let statuses: Vec<u16> = (0..4).map(|_| server.chat(&user.key, &[], json!({})).status).collect();
    assert_eq!(statuses, [200, 200, 429, 429], "the rate");

    let denied = config(&second.url(), NO_RATE).replace("[access]\n", "[access]\ndeny = [\"127.0.0.0/8\"]\n");
    site.write_config(&denied);
    server.reload();
    assert_eq!(server.chat(&user.key, &[], json!({})).error_code(), "ADDRESS_DENIED", "the rules");
    assert_eq!(server.metric("tollgate_config_reloads_total{result=\"ok\"}"), 6.0);
}

#[test]
fn a_call_in_flight_ends_under_the_config_it_began_with() {
    let upstream = Upstream::start();
    let site = Site::new(&config(&upstream.url(), NO_RATE));
    let server = site.serve();
    let user = server.register("alice");
    let mut stream = Conn::open(server.public);
    let slow = [("x-mock-chunk-delay-ms", "60"), ("x-mock-tokens", "20")];
    stream.send(chat_request(&user.key, &slow, json!({"stream": true})));
    assert_eq!(stream.read_head().unwrap().status, 200);
    // Its route, its upstream and its price are all gone.
    let other = FakeUpstream::always("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    site.write_config(
        &config_with(&format!("http://{}", other.addr), "", "credits = 7", NO_RATE).replace("\"ai\"", "\"other\""),
    );
    server.reload();
    let mut last = Vec::new();
    loop {
        let chunk = stream.read_chunk().expect("the stream goes on to its end");
        if chunk.is_empty() {
            break;
        }
        last = chunk;
    }
    assert_eq!(last, b"data: [DONE]\n\n");
    assert_eq!(balance(&server, user.id), 99_999.0);
    wait_until("its hold is settled", || server.metric("tollgate_holds_open") == 0.0);
}

#[test]
fn after_a_kill_everything_that_was_answered_is_still_there() {
    let upstream = Upstream::start();
    let site = Site::new(&config(&upstream.url(), NO_RATE));
    let mut server = site.serve();
    let user = server.register("alice");
    let mut answered = 0;
    for round in 1..=3 {
        for _ in 0..20 {
            assert_eq!(server.chat(&user.key, &[], json!({})).status, 200);
            answered += 1;
        }
        let mut hanging = Conn::open(server.public);
        hanging.send(chat_request(&user.key, &[("x-mock-delay-ms", "60000")], json!({})));
        wait_until("a call hangs", || upstream.mock.stats().open == 1);
        server.signal("KILL");
        assert!(!server.wait().success());
        wait_until("the upstream has noticed", || upstream.mock.stats().open == 0);
        server = site.serve();
        let left = balance(&server, user.id);
        // The call that hung is charged or given back as the config says, but nothing else may differ.
        let spent = 100_000.0 - left;
        assert!(
            spent >= f64::from(answered) && spent <= f64::from(answered + round),
            "{spent} spent, {answered} answered"
        );
        assert_eq!(server.metric("tollgate_holds_open"), 0.0);
    }
    assert_eq!(server.chat(&user.key, &[], json!({})).status, 200);
}

#[test]
fn a_second_server_on_the_same_data_is_told_why_it_cannot_start() {
    let upstream = Upstream::start();
    let site = Site::new(&config(&upstream.url(), NO_RATE));
    let server = site.serve();
    let key = server.register("alice").key;
    let second = site.command(&["serve"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr).to_lowercase();
    assert!(["running", "in use", "locked", "busy"].iter().any(|word| said.contains(word)), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(server.chat(&key, &[], json!({})).status, 200, "the first one does not mind");
    let file = site.data_dir().join("run").join("operator.json");
    assert!(file.exists(), "nor has it lost its operator's file");
}

#[test]
fn a_port_that_is_taken_is_a_clear_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let upstream = Upstream::start();
    for which in ["public", "admin"] {
        let text = config(&upstream.url(), NO_RATE);
        let site = Site::new(&text.replace(&format!("{which} = \"127.0.0.1:0\""), &format!("{which} = \"{address}\"")));
        let output = site.command(&["serve"]).stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{which}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(&format!("listen.{which}")) && said.contains(&address.to_string()), "{said}");
    }
}

#[test]
fn check_config_names_what_is_wrong_and_exits_with_2() {
    let site = Site::new("[limits]\nmax_bodi_bytes = 5\n");
    let output = site.command(&["check-config"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("max_body_bytes") && said.contains("tollgate.toml"), "{said}");
    site.write_config(&config("http://127.0.0.1:1", NO_RATE));
    let output = site.command(&["check-config"]).output().unwrap();
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("[limits]"));
}

/// Connections that leave at every point of their life: silent, in a head, in a body, before the answer, in the answer.
#[test]
fn thousands_of_connections_that_leave_at_random_leave_nothing_behind() {
    const CONNECTIONS: usize = 2_000;
    const GROWTH_KIB: u64 = 16 << 10;
    let upstream = Upstream::start();
    let site = Site::new(&config(&upstream.url(), NO_RATE));
    let mut server = site.serve();
    let user = server.register("alice");
    let storm = |count: usize| {
        std::thread::scope(|scope| {
            for part in 0..4u64 {
                let (key, public) = (&user.key, server.public);
                scope.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(part);
                    for _ in 0..count / 4 {
                        let mut conn = Conn::open(public);
                        let headers =
                            [("x-mock-delay-ms", "20"), ("x-mock-tokens", "40"), ("x-mock-chunk-delay-ms", "1")];
                        let bytes = chat_request(key, &headers, json!({"stream": random.bool()}));
                        let sent = if random.bool() { bytes.len() } else { random.usize(0..bytes.len()) };
                        let _ = conn.try_send(&bytes[..sent]);
                        if sent == bytes.len() && random.bool() && conn.read_head().is_ok() && random.bool() {
                            // A plain answer is all here already; of a stream, more may come.
                            conn.stream.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
                            let _ = conn.stream.read(&mut [0; 64]);
                        }
                    }
                });
            }
        });
        wait_until("all is settled", || {
            server.metric("tollgate_connections") == 0.0
                && server.metric("tollgate_holds_open") == 0.0
                && server.metric("tollgate_in_flight") == 0.0
                && upstream.mock.stats().open == 0
        });
    };
    storm(CONNECTIONS / 4);
    let (warm, descriptors) = (server.rss_kib(), server.descriptors());
    storm(CONNECTIONS);
    wait_until("the descriptors are given back", || server.descriptors() <= descriptors + 8);
    let after = server.rss_kib();
    assert!(after < warm + GROWTH_KIB, "resident memory went from {warm} to {after} KiB");
    assert_eq!(server.metric("tollgate_panics_total"), 0.0);
    assert!(server.is_running());
    assert_eq!(server.chat(&user.key, &[], json!({})).status, 200);
}

#[test]
fn the_log_names_an_address_that_is_blocked() {
    let upstream = Upstream::start();
    let text = config(&upstream.url(), NO_RATE).replace("block_after_failures = 0", "block_after_failures = 2");
    let site = Site::new(&text);
    let server = site.serve();
    for _ in 0..4 {
        server.chat("pe-00000000000000000000000000000000", &[], json!({}));
    }
    let named = || server.log().lines().filter(|line| line.contains("blocked for guessing")).count();
    wait_until("the block is in the log", || named() > 0);
    let log = server.log();
    let line = log.lines().find(|line| line.contains("blocked for guessing")).unwrap();
    for part in ["127.0.0.1", "public", "credentials", "until"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert_eq!(named(), 1, "once: {log}");
}
