//! What the conversation journal costs and how fast it answers, over ten million small records by default.
//!
//! `cargo bench --bench journal -- [RECORDS] [DIR]` writes them through the journal itself, waits until every sealed segment
//! is compressed, and then asks for pages of every kind: at once, and again with the files dropped from the page cache by
//! `dd`. Figures are in `benches/README.md`.

#![allow(clippy::expect_used, reason = "a benchmark that cannot be set up should stop")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tollgate::actors::writer::{ConversationEntry, Filter, Journal, JournalConfig, JournalKeys, JournalReader};

const START_MS: u64 = 1_767_225_600_000;
const USERS: u64 = 100_000;
const HEAVY: u64 = 7;
const MODELS: [&str; 6] = ["gpt-4o", "gpt-4o-mini", "claude-sonnet", "o3", "llama-70b", "rare-model"];
const QUEUE_BYTES: u64 = 64 << 20;
const ROUNDS: usize = 40;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let records = args.first().and_then(|n| n.parse().ok()).unwrap_or(10_000_000);
    let temp = tempfile::tempdir_in(args.get(1).map_or_else(std::env::temp_dir, Into::into)).expect("a directory");

    let some = (records / 10).clamp(1, 1_000_000);
    let keys = JournalKeys::new(Some(&"5a".repeat(32)), &[]).expect("a key");
    for (name, compression, keys) in [
        ("clear, not compressed", None, JournalKeys::default()),
        ("clear, zstd 3", Some(3), JournalKeys::default()),
        ("encrypted, not compressed", None, keys.clone()),
        ("encrypted, zstd 3", Some(3), keys.clone()),
    ] {
        let dir = temp.path().join(name.replace([' ', ','], "-"));
        println!("## {name}: {some} records");
        drop(write(&dir, some, compression, keys.clone()));
        ask(&dir, &keys, some, "");
        std::fs::remove_dir_all(&dir).expect("a directory");
    }

    for compression in [None, Some(3)] {
        flushes(&temp.path().join("flushes"), compression);
    }

    let dir = temp.path().join("all");
    println!("## clear, zstd 3: {records} records");
    drop(write(&dir, records, Some(3), JournalKeys::default()));
    ask(&dir, &JournalKeys::default(), records, "");
    drop_caches(&dir);
    ask(&dir, &JournalKeys::default(), records, "cold ");
}

fn write(dir: &Path, records: u64, compression: Option<i32>, keys: JournalKeys) -> Journal {
    let now = Arc::new(AtomicU64::new(START_MS));
    let clock = Arc::clone(&now);
    let config = JournalConfig { compression, keys, queue_bytes: QUEUE_BYTES, ..JournalConfig::new(dir) };
    let journal = Journal::start(config, Arc::new(move || clock.load(Ordering::Relaxed))).expect("a journal");
    let counters = journal.counters();
    let mut random = fastrand::Rng::with_seed(11);
    let texts: Vec<String> = (0..512).map(|_| words(&mut random)).collect();
    let begin = Instant::now();
    for number in 0..records {
        let timestamp_ms = START_MS + number * 100;
        now.store(timestamp_ms, Ordering::Relaxed);
        emit(&journal, number, timestamp_ms, &texts, &mut random);
        while counters.queue_bytes.load(Ordering::Relaxed) > QUEUE_BYTES / 2 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    journal.flush().expect("a disk");
    let took = begin.elapsed();
    assert_eq!(counters.written.load(Ordering::Relaxed), records);
    println!("written in {:.1} s: {:.0} records/s", took.as_secs_f64(), records as f64 / took.as_secs_f64());
    while counters.segments_waiting.load(Ordering::SeqCst) > 0 {
        std::thread::sleep(Duration::from_millis(20));
    }
    let (from, to) =
        (counters.rewritten_from_bytes.load(Ordering::Relaxed), counters.rewritten_to_bytes.load(Ordering::Relaxed));
    println!(
        "sealed {:.1} s after the last; {:.1} -> {:.1} MB in {} segments; all files {:.1} MB, of these indexes {:.1} MB",
        (begin.elapsed() - took).as_secs_f64(),
        mb(from),
        mb(to),
        counters.segments.load(Ordering::Relaxed),
        mb(bytes(dir, &["seg", "idx"])),
        mb(bytes(dir, &["idx"])),
    );
    journal
}

/// How long a flush takes while segments are sealed all the time, with and without compression beside it.
fn flushes(dir: &Path, compression: Option<i32>) {
    let config = JournalConfig { compression, segment_bytes: 4 << 20, ..JournalConfig::new(dir) };
    let journal = Journal::start(config, Arc::new(|| START_MS)).expect("a journal");
    let mut random = fastrand::Rng::with_seed(12);
    let texts: Vec<String> = (0..512).map(|_| words(&mut random)).collect();
    let mut times: Vec<f64> = (0..4000)
        .map(|round| {
            (0..50).for_each(|n| emit(&journal, round * 50 + n, START_MS + round * 5000, &texts, &mut random));
            let begin = Instant::now();
            journal.flush().expect("a disk");
            begin.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let rewritten = journal.counters().rewritten.load(Ordering::Relaxed);
    println!(
        "flush of 50 records, compression {compression:?}: median {:.2}, p99 {:.2}, longest {:.1} ms; {rewritten} segments \
         rewritten meanwhile",
        times[times.len() / 2],
        times[times.len() * 99 / 100],
        times[times.len() - 1]
    );
    drop(journal);
    std::fs::remove_dir_all(dir).expect("a directory");
}

fn emit(journal: &Journal, number: u64, timestamp_ms: u64, texts: &[String], random: &mut fastrand::Rng) {
    // One call in twenty is the heavy user's.
    let user_id = if random.u8(..) < 13 { HEAVY } else { 1000 + random.u64(..USERS) };
    let model = match random.u32(..1_000_000) {
        0..5 => 5,
        other => other as usize % 5,
    };
    let request = format!(r#"[{{"role":"user","content":"{}"}}]"#, texts[random.usize(..texts.len())]);
    let request_id = format!("req_{:016x}", random.u64(..));
    journal.emit(&ConversationEntry {
        user_id,
        username: "somebody",
        email: "somebody@example.com",
        model: MODELS[model],
        request: request.as_bytes(),
        request_is_json: true,
        response: texts[random.usize(..texts.len())].as_bytes(),
        research_enabled: false,
        r_type: None,
        tokens_used: number % 997,
        input_tokens: number % 499,
        output_tokens: number % 498,
        processing_time_ms: random.u64(100..3000),
        ip_address: [10, 1, random.u8(..), random.u8(..)].into(),
        timestamp_ms,
        route: "/v1/*",
        request_id: &request_id,
        status: 200,
        truncated: false,
        outcome: "ok",
    });
}

fn words(random: &mut fastrand::Rng) -> String {
    const WORDS: [&str; 16] = [
        "the", "model", "answers", "with", "words", "about", "rivers", "and", "stones", "which", "nobody", "asked",
        "before", "today", "or", "later",
    ];
    (0..random.usize(8..24)).map(|_| WORDS[random.usize(..WORDS.len())]).collect::<Vec<_>>().join(" ")
}

/// Times of pages of every kind.
fn ask(dir: &Path, keys: &JournalKeys, records: u64, label: &str) {
    let begin = Instant::now();
    let reader = JournalReader::open_with(dir, keys.clone()).expect("a journal");
    println!("{label}opened in {:.1} ms", begin.elapsed().as_secs_f64() * 1e3);
    let span = records * 100;
    let user = |user_id| Filter::user(user_id);
    let model = |name: &str| Some(name.to_owned());
    type Question<'a> = (&'a str, Box<dyn Fn(u64) -> Filter>, u64, usize);
    let questions: Vec<Question<'_>> = vec![
        ("heavy user, page 1 of 50", Box::new(move |_| user(HEAVY)), 1, 50),
        ("heavy user, page 1,000 of 50", Box::new(move |_| user(HEAVY)), 1000, 50),
        ("a light user, page 1 of 50", Box::new(move |n| user(1000 + n * 997 % USERS)), 1, 50),
        ("a light user, page 1 of 200", Box::new(move |n| user(1000 + n * 991 % USERS)), 1, 200),
        ("a user without records", Box::new(move |n| user(5_000_000 + n)), 1, 50),
        ("heavy user and model, page 1 of 50", Box::new(move |_| Filter { model: model("o3"), ..user(HEAVY) }), 1, 50),
        ("heavy user and model, page 1,000", Box::new(move |_| Filter { model: model("o3"), ..user(HEAVY) }), 1000, 50),
        (
            "light user and model, page 1",
            Box::new(move |n| Filter { model: model("o3"), ..user(1000 + n * 983 % USERS) }),
            1,
            50,
        ),
        ("heavy user in one hour, page 1", Box::new(move |n| within(user(HEAVY), span, n)), 1, 50),
        ("everybody, page 1 of 50", Box::new(|_| Filter::default()), 1, 50),
        ("everybody, page 10,000", Box::new(|_| Filter::default()), 10_000, 50),
        ("everybody in one hour, page 100", Box::new(move |n| within(Filter::default(), span, n)), 100, 50),
        ("a model, page 1 of 50", Box::new(move |_| Filter { model: model("o3"), ..Filter::default() }), 1, 50),
        ("a model, page 1,000", Box::new(move |_| Filter { model: model("o3"), ..Filter::default() }), 1000, 50),
        ("a rare model, page 1", Box::new(move |_| Filter { model: model("rare-model"), ..Filter::default() }), 1, 50),
        ("an unknown model", Box::new(move |_| Filter { model: model("none"), ..Filter::default() }), 1, 50),
    ];
    for (name, filter, page, size) in &questions {
        let mut times = Vec::with_capacity(ROUNDS);
        let (mut items, mut total) = (0, 0);
        for round in 0..ROUNDS {
            let filter = filter(round as u64);
            let begin = Instant::now();
            let found = reader.search(&filter, *page, *size).expect("a page");
            times.push(begin.elapsed().as_secs_f64() * 1e3);
            assert_eq!(found.unreadable, 0);
            (items, total) = (found.items.len(), found.total);
        }
        let first = times[0];
        times.sort_by(f64::total_cmp);
        println!(
            "{label}{name}: {items} of {total}: first {first:.1}, median {:.1}, longest {:.1} ms",
            times[ROUNDS / 2],
            times[ROUNDS - 1]
        );
    }
}

/// Some hour of the whole span.
fn within(filter: Filter, span: u64, round: u64) -> Filter {
    let from = START_MS + span / 64 * (round % 60);
    Filter { from_ms: Some(from), to_ms: Some(from + 3_600_000), ..filter }
}

fn bytes(dir: &Path, endings: &[&str]) -> u64 {
    let items = std::fs::read_dir(dir).expect("a directory").flatten();
    let wanted =
        items.filter(|item| item.path().extension().is_some_and(|e| endings.iter().any(|ending| e == *ending)));
    wanted.filter_map(|item| item.metadata().ok()).map(|data| data.len()).sum()
}

fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Asks the system to forget these files' contents.
fn drop_caches(dir: &Path) {
    for item in std::fs::read_dir(dir).expect("a directory").flatten() {
        let file = format!("if={}", item.path().display());
        let done = std::process::Command::new("dd").args([&file, "iflag=nocache", "count=0", "status=none"]).status();
        assert!(done.is_ok_and(|status| status.success()), "dd cannot drop {file}");
    }
}
