//! Everything at once, for as long as `TOLLGATE_SOAK_SECONDS` says: what must be flat stays flat, and every credit is accounted for.

use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::server_process::{MockProcess, Server, Site};
use crate::support::http::request;
use crate::support::{Conn, TestUser, chat_body, wait_briefly, wait_until};

const GRANT: f64 = 100_000_000.0;
/// What memory may still grow after the warm-up: allocators and tables settle slowly.
const GROWTH_KIB: u64 = 12 << 10;

/// One thread's way of using the gateway, and what it has seen.
struct Client<'a> {
    server: &'a Server,
    user: &'a TestUser,
    random: fastrand::Rng,
    stop: &'a AtomicBool,
    /// Calls that were answered whole and well.
    whole: &'a AtomicU64,
    /// Calls that must be paid although something went wrong.
    paid_anyway: &'a AtomicU64,
}

impl Client<'_> {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Acquire)
    }

    fn bytes(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> Vec<u8> {
        let bearer = format!("Bearer {}", self.user.key);
        let own = [("authorization", bearer.as_str())];
        let all: Vec<(&str, &str)> = own.into_iter().chain(headers.iter().copied()).collect();
        request("POST", path, &all, Some(body))
    }

    /// Plain and streaming calls on one connection, some of them pipelined.
    fn talks(&mut self) {
        let mut conn = Conn::open(self.server.public);
        while self.goes_on() {
            let calls = self.random.usize(1..4);
            let stream = self.random.bool();
            let one =
                self.bytes("/v1/chat/completions", &[("x-mock-tokens", "9")], &chat_body(json!({"stream": stream})));
            conn.send(one.repeat(calls));
            for _ in 0..calls {
                let answer = conn.read_answer();
                assert_eq!(answer.status, 200, "{}", answer.text());
                assert!(!stream || answer.text().ends_with("data: [DONE]\n\n"));
                self.whole.fetch_add(1, Ordering::AcqRel);
            }
        }
    }

    /// Large bodies up, in chunks or with their length, each on a connection of its own.
    fn uploads(&mut self) {
        while self.goes_on() {
            let mut conn = Conn::open(self.server.public);
            let (pieces, piece) = (self.random.usize(1..30), vec![b'a'; self.random.usize(1..60_000)]);
            let chunked = self.random.bool();
            let framing = if chunked {
                "transfer-encoding: chunked".to_owned()
            } else {
                format!("content-length: {}", pieces * piece.len())
            };
            conn.send(format!(
                "POST /v1/uploads HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nx-mock-body-bytes: 1000\r\n\
                 content-type: application/octet-stream\r\n{framing}\r\n\r\n",
                self.user.key
            ));
            for _ in 0..pieces {
                if chunked {
                    conn.send(format!("{:x}\r\n", piece.len()));
                }
                conn.send(&piece);
                if chunked {
                    conn.send("\r\n");
                }
            }
            if chunked {
                conn.send("0\r\n\r\n");
            }
            assert_eq!(conn.read_answer().body.len(), 1000);
            self.whole.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Takes its time with large answers.
    fn reads_slowly(&mut self) {
        while self.goes_on() {
            let mut conn = Conn::open(self.server.public);
            conn.send(self.bytes(
                "/v1/large",
                &[("x-mock-body-bytes", "3000000"), ("connection", "close")],
                &json!({}),
            ));
            let mut total = 0;
            loop {
                let n = conn.stream.read(&mut [0; 48 << 10]).unwrap();
                if n == 0 {
                    break;
                }
                total += n;
                std::thread::park_timeout(Duration::from_millis(1));
            }
            assert!(total > 3_000_000);
            self.whole.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Has no good key, or no key, or says nothing that could be understood.
    fn intrudes(&mut self) {
        let bad = TestUser { id: 0, username: String::new(), email: String::new(), key: "pe-wrong".into() };
        let stranger = Client { user: &bad, random: fastrand::Rng::new(), ..*self };
        while self.goes_on() {
            let mut conn = Conn::open(self.server.public);
            let payload = match self.random.u8(0..4) {
                0 => stranger.bytes("/v1/chat/completions", &[], &chat_body(json!({}))),
                1 => request("GET", "/v1/models", &[], None),
                2 => b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n".to_vec(),
                _ => b"\x16\x03\x01nonsense\n\n".to_vec(),
            };
            conn.send(payload);
            assert!(matches!(conn.read_answer().status, 400 | 401));
        }
    }

    /// Leaves at any point: in its own request, before the answer, in the middle of it.
    fn leaves(&mut self) {
        while self.goes_on() {
            let mut conn = Conn::open(self.server.public);
            let headers = [("x-mock-delay-ms", "5"), ("x-mock-chunk-delay-ms", "1"), ("x-mock-tokens", "30")];
            let stream = self.random.bool();
            let bytes = self.bytes("/v1/completions", &headers, &chat_body(json!({"prompt": "a", "stream": stream})));
            let sent = if self.random.bool() { bytes.len() } else { self.random.usize(0..bytes.len()) };
            let _ = conn.try_send(&bytes[..sent]);
            if sent == bytes.len() && self.random.bool() && conn.read_head().is_ok_and(|head| head.status == 200) {
                self.paid_anyway.fetch_add(1, Ordering::AcqRel);
            }
        }
    }

    /// Meets an upstream that fails before the answer, or in the middle of it.
    fn suffers(&mut self) {
        while self.goes_on() {
            let mut conn = Conn::open(self.server.public);
            let (headers, status) = match self.random.u8(0..3) {
                0 => (&[("x-mock-status", "503")][..], 503),
                1 => (&[("x-mock-abort-after-bytes", "0")][..], 502),
                _ => (&[("x-mock-body-bytes", "500000"), ("x-mock-abort-after-bytes", "200000")][..], 200),
            };
            conn.send(self.bytes("/v1/failures", headers, &json!({})));
            let head = conn.read_head().unwrap();
            assert_eq!(head.status, status);
            if status == 200 {
                let mut rest = Vec::new();
                let _ = conn.stream.read_to_end(&mut rest);
                assert!(rest.len() < 500_000);
                self.paid_anyway.fetch_add(1, Ordering::AcqRel);
            }
        }
    }
}

fn seconds() -> u64 {
    std::env::var("TOLLGATE_SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5)
}

fn config(mock: &MockProcess, variant: usize) -> String {
    format!(
        "[listen]\npublic = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\nworkers = 2\n\
         [access]\nblock_after_failures = 0\n[telemetry]\naccess_log = \"off\"\n\
         [[upstreams]]\nname = \"ai\"\nendpoints = [\"http://{}\"]\nretries = {}\n\
         [[routes]]\npath = \"/v1/*\"\nupstream = \"ai\"\ncost = {{ conversations = 1 }}\n\
         [plans.free.meters]\nconversations = {{ grant = {GRANT} }}\n[limits]\nper_ip_per_minute = 0\n",
        mock.addr,
        1 + variant % 3
    )
}

/// The conversations meter of a user, whole: what was granted is what is left, what is held and what is spent.
fn spent(server: &Server, user: &TestUser) -> f64 {
    let answer = server.admin_get(&server.admin_token(), &format!("/v1/admin-panel/users/{}", user.id));
    let meter = &answer["user"]["meters"]["conversations"];
    let part = |name: &str| meter[name].as_f64().unwrap_or_else(|| panic!("no {name} in {meter}"));
    assert_eq!(part("granted"), GRANT, "{meter}");
    assert_eq!(part("balance") + part("held") + part("spent"), part("granted"), "{meter}");
    assert_eq!(part("held"), 0.0, "{meter}");
    part("spent")
}

struct Sample {
    rss_kib: u64,
    descriptors: usize,
}

#[test]
fn soak_mixed_load() {
    let length = Duration::from_secs(seconds());
    let mock = MockProcess::start();
    let site = Site::new(&config(&mock, 0));
    let mut server = site.serve();
    let users: Vec<TestUser> = ["steady", "leaver", "sufferer"].into_iter().map(|name| server.register(name)).collect();
    let [steady, leaver, sufferer] = users.as_slice() else { unreachable!() };
    let idle_descriptors = server.descriptors();
    let (stop, whole, left, suffered) =
        (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let mut samples: Vec<Sample> = Vec::new();
    let mut reloads = 0;
    std::thread::scope(|scope| {
        let client = |user, paid_anyway| Client {
            server: &server,
            user,
            random: fastrand::Rng::new(),
            stop: &stop,
            whole: &whole,
            paid_anyway,
        };
        let stopping = StopOnDrop(&stop);
        type Habit<'a> = fn(&mut Client<'a>);
        let habits: [(Habit<'_>, &TestUser, &AtomicU64); 9] = [
            (Client::talks, steady, &left),
            (Client::talks, steady, &left),
            (Client::uploads, steady, &left),
            (Client::reads_slowly, steady, &left),
            (Client::intrudes, steady, &left),
            (Client::leaves, leaver, &left),
            (Client::leaves, leaver, &left),
            (Client::leaves, leaver, &left),
            (Client::suffers, sufferer, &suffered),
        ];
        for (habit, user, paid_anyway) in habits {
            let mut client = client(user, paid_anyway);
            scope.spawn(move || habit(&mut client));
        }
        let began = Instant::now();
        let pause = (length / 50).min(Duration::from_secs(1));
        while began.elapsed() < length {
            std::thread::park_timeout(pause);
            samples.push(Sample { rss_kib: server.rss_kib(), descriptors: server.descriptors() });
            if samples.len().is_multiple_of(10) {
                reloads += 1;
                site.write_config(&config(&mock, reloads));
                server.reload();
            }
        }
        drop(stopping);
    });

    wait_briefly("every hold is settled and nothing is in flight", || {
        server.metric("tollgate_holds_open") == 0.0 && server.metric("tollgate_in_flight") == 0.0
    });
    assert!(server.is_running());
    assert_eq!(server.metric("tollgate_panics_total") + server.metric("tollgate_actor_panics_total"), 0.0);
    assert_eq!(server.metric("tollgate_config_reloads_total{result=\"ok\"}"), reloads as f64);

    let journal = |state: &str| server.metric(&format!("tollgate_journal_records_total{{state=\"{state}\"}}"));
    wait_until("the journal has caught up", || server.metric("tollgate_journal_queue_records") == 0.0);
    assert!(journal("emitted") > 0.0);
    assert_eq!(journal("emitted"), journal("written") + journal("spilled") + journal("dropped"));

    let at = |path: &str| mock.served(path) as f64;
    let (whole, left, suffered) = (whole.into_inner() as f64, left.into_inner() as f64, suffered.into_inner() as f64);
    let steady_spent = spent(&server, steady);
    assert_eq!(steady_spent, whole, "what was answered whole is paid once");
    assert_eq!(steady_spent, at("/v1/chat/completions") + at("/v1/uploads") + at("/v1/large"), "and was served once");
    let sufferer_spent = spent(&server, sufferer);
    assert_eq!(sufferer_spent, suffered, "an answer that had begun is paid, one that failed before is not");
    assert!(at("/v1/failures") > suffered);
    let leaver_spent = spent(&server, leaver);
    let reached = at("/v1/completions");
    assert!(left <= leaver_spent && leaver_spent <= reached, "seen {left}, spent {leaver_spent}, reached {reached}");
    assert_eq!(
        server.metric("tollgate_credits_spent_total{meter=\"conversations\"}"),
        steady_spent + sufferer_spent + leaver_spent
    );

    let quiet = |n: usize| &samples[samples.len() * n / 10..samples.len() * (n + 2) / 10];
    let most = |part: &[Sample]| part.iter().map(|s| s.rss_kib).max().unwrap_or_default();
    let (warm, last) = (most(quiet(4)), most(quiet(8)));
    let most_descriptors = |part: &[Sample]| part.iter().map(|s| s.descriptors).max().unwrap_or_default();
    let requests = whole + reached + at("/v1/failures");
    println!(
        "soak: {} s, {requests} calls upstream ({whole} whole), {reloads} reloads; \
         RSS {warm} → {last} KiB; descriptors {idle_descriptors} idle, {} and {} at most, {} at the end; journal {}",
        length.as_secs(),
        most_descriptors(quiet(4)),
        most_descriptors(quiet(8)),
        server.descriptors(),
        journal("written"),
    );
    assert!(last < warm + GROWTH_KIB, "resident memory went from {warm} to {last} KiB");
    wait_until("the clients' descriptors are given back", || {
        // Connections to the upstream may stay, as many as were used at once.
        server.descriptors() <= idle_descriptors + 2 * 9 + 4
    });
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
