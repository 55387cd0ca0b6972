//! What a flood of logins may cost the real process in memory, by the kernel's own count.

use std::sync::Barrier;

use serde_json::json;

use crate::server_process::{MockProcess, Site};
use crate::support::{Answer, http};

const LOGINS: usize = 500;
const HASHES_AT_ONCE: u64 = 2;
/// What argon2id takes for one hash.
const HASH_KIB: u64 = 19 * 1024;
/// For a connection, its request, its place in the queue and its answer; the buffers alone are 16.
const LOGIN_KIB: u64 = 64;

/// Attack 24.
#[test]
fn five_hundred_logins_at_once_stay_within_the_memory_of_two() {
    let upstream = MockProcess::start();
    let site = Site::new(&format!(
        "[listen]\npublic = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\nworkers = 2\nbacklog = 1024\n\
         [limits]\nper_ip_per_minute = 0\n[access]\nblock_after_failures = 0\n[telemetry]\naccess_log = \"off\"\n\
         [accounts]\nmax_failed_logins = 0\nhash_concurrency = {HASHES_AT_ONCE}\nhash_queue = 16\n\
         [[upstreams]]\nname = \"ai\"\nendpoints = [\"http://{}\"]\n[[routes]]\npath = \"/v1/*\"\nupstream = \"ai\"\n",
        upstream.addr
    ));
    let server = site.serve();
    let alice = server.register("alice");
    assert_eq!(server.chat(&alice.key, &[], json!({})).status, 200);
    let before = server.rss_kib();
    let start = Barrier::new(LOGINS);
    let login = |nth: usize| {
        // Every second name is nobody's, which costs the same.
        let name = if nth.is_multiple_of(2) { alice.email.clone() } else { format!("nobody-{nth}@example.com") };
        let body = json!({"email": name, "password": "Wrong-Guess-1"});
        start.wait();
        http::call(server.public, "POST", "/v1/users/login", &[], Some(&body))
    };
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let login = &login;
        let threads: Vec<_> = (0..LOGINS).map(|nth| scope.spawn(move || login(nth))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let (peak, cap) = (server.peak_kib(), before + HASHES_AT_ONCE * HASH_KIB + LOGINS as u64 * LOGIN_KIB);
    assert!(peak <= cap, "{peak} KiB at the most, {before} before; the cap is {cap}");
    let refused: Vec<&Answer> = answers.iter().filter(|answer| answer.status == 503).collect();
    assert!(!refused.is_empty() && answers.iter().all(|answer| matches!(answer.status, 401 | 503)));
    for answer in refused {
        let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!(seconds >= 1 && answer.error_code() == "OVERLOADED", "{}", answer.text());
    }
    assert_eq!(server.chat(&alice.key, &[], json!({})).status, 200);
}
