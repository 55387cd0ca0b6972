//! What must hold of a spilled record, whatever the two disks do: it is there, once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use serde_json::Value;

use super::super::frame::Frame;
use super::super::record::tests::entry;
use super::super::testing::*;
use super::super::{Disk, Journal, JournalConfig, JournalKeys, Overflow, Redaction};
use super::{Filling, SpillFile};
use crate::config::{Redact, RedactField};

fn weight() -> u64 {
    Frame::of(&entry(1, "00")).len() as u64
}

/// Spills above three waiting records.
fn config(bench: &Bench) -> JournalConfig {
    let mut config = bench.config();
    config.overflow = Overflow::Spill;
    config.spill_above_bytes = 3 * weight();
    config
}

/// Spills only what cannot be written at the stop.
fn patient(bench: &Bench) -> JournalConfig {
    let config = config(bench);
    JournalConfig { spill_above_bytes: config.queue_bytes, ..config }
}

fn emit(journal: &Journal, numbers: std::ops::Range<u32>) {
    numbers.for_each(|number| journal.emit(&entry(1, &format!("{number:02}"))));
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::SeqCst)
}

fn spilled(journal: &Journal) -> u64 {
    read(&journal.counters().spilled)
}

/// Every record's text, sorted.
fn all(bench: &Bench) -> Vec<String> {
    all_with(bench, &JournalKeys::default())
}

fn all_with(bench: &Bench, keys: &JournalKeys) -> Vec<String> {
    let mut texts = Vec::new();
    let take = |json: &[u8]| {
        let value: Value = serde_json::from_slice(json).unwrap();
        texts.push(value["messages"]["response"]["content"].as_str().unwrap().to_owned());
        Ok(())
    };
    bench.reader_with(keys).for_each(take).unwrap();
    texts.sort();
    texts
}

fn numbered(numbers: std::ops::Range<u32>) -> Vec<String> {
    numbers.map(|number| format!("{number:02}")).collect()
}

/// A disk that hangs with the first record in its hands.
fn hang(bench: &Bench, journal: &Journal) -> mpsc::Receiver<io::Result<()>> {
    bench.faults.lock().hangs = true;
    emit(journal, 0..1);
    let flush = journal.flush_begin();
    wait_until("the disk hangs", || bench.faults.lock().is_hanging);
    flush
}

#[test]
fn a_hanging_disk_holds_up_nobody_and_its_records_come_back() {
    let bench = Bench::new();
    let journal = bench.start(config(&bench));
    let flush = hang(&bench, &journal);
    emit(&journal, 1..40);
    wait_until("most are in the spill", || spilled(&journal) >= 35);
    let (emitted, written, dropped, queued) = balance(&journal);
    assert_eq!((emitted, written, dropped, queued + spilled(&journal)), (40, 0, 0, 40));
    assert!(!bench.spill_files().is_empty() && read(&journal.counters().spill_bytes) > 0);

    bench.faults.lock().hangs = false;
    flush.recv().unwrap().unwrap();
    wait_until("all are in the journal", || balance_written(&journal) + journal.flush().map_or(0, |()| 0) == 40);
    wait_until("the files are gone", || bench.spill_files().is_empty());
    assert_eq!((balance(&journal), spilled(&journal)), ((40, 40, 0, 0), 0));
    assert_eq!(read(&journal.counters().spill_bytes), 0);
    assert_eq!(all(&bench), numbered(0..40));
    assert_sound(&bench, 40);
}

#[test]
fn a_dead_disk_at_the_stop_costs_nothing_and_the_next_start_brings_all_back() {
    let bench = Bench::new();
    for round in 0..3 {
        if round > 0 {
            bench.faults.lock().writes = u32::MAX;
        }
        let journal = bench.start(patient(&bench));
        bench.faults.lock().writes = u32::MAX; // the first start has a segment to make
        emit(&journal, 30 * round..30 * (round + 1));
        assert!(journal.stop().is_err());
        let before = 30 * u64::from(round);
        assert_eq!(balance(&journal), (30 + before, 0, 0, 0));
        assert_eq!(spilled(&journal), 30 + before);
        *bench.faults.lock() = Faults::default();
    }
    // The policy has changed meanwhile; what is there is still taken over.
    let journal = bench.start(bench.config());
    wait_until("all are in the journal", || spilled(&journal) == 0 && bench.spill_files().is_empty());
    assert_eq!(balance(&journal), (90, 90, 0, 0));
    assert_eq!(all(&bench), numbered(0..90));
    drop(journal);
    assert_eq!(balance(&bench.start(bench.config())), (0, 0, 0, 0), "once");
}

#[test]
fn what_goes_to_the_spill_is_out_of_the_journal_for_good() {
    let bench = Bench::new();
    let journal = bench.start(patient(&bench));
    emit(&journal, 0..2);
    journal.flush().unwrap();
    // Whole in the file, though the disk says otherwise.
    *bench.faults.lock() = Faults { writes: u32::MAX, written_before_failing: usize::MAX, ..Faults::default() };
    emit(&journal, 2..7);
    assert!(journal.stop().is_err());
    assert_eq!(spilled(&journal), 5);
    assert!(!bench.faults.lock().is_cut_in_memory_alone, "a power cut would bring back what is in the spill");
}

#[test]
fn a_death_at_any_byte_of_the_way_back_neither_loses_nor_doubles() {
    die_on_the_way_back(&JournalKeys::default());
}

#[test]
fn nor_does_one_where_everything_is_encrypted() {
    die_on_the_way_back(&keys(Some(1), &[]));
}

fn die_on_the_way_back(under: &JournalKeys) {
    let bench = Bench::new();
    let patient = |bench: &Bench| JournalConfig { keys: under.clone(), ..patient(bench) };
    let journal = bench.start(patient(&bench));
    emit(&journal, 0..2);
    journal.flush().unwrap();
    let head = fs::metadata(&bench.files("seg")[0]).unwrap().len() as usize;
    bench.faults.lock().writes = u32::MAX;
    emit(&journal, 2..7);
    assert!(journal.stop().is_err());
    *bench.faults.lock() = Faults::default();
    drop(journal);
    let [file] = &bench.spill_files()[..] else { panic!("one file") };
    let (file, spill) = (file.clone(), fs::read(file).unwrap());
    let is_clear = spill.windows(7).any(|window| window == b"johndoe");
    assert_eq!(is_clear, under.current_id().is_none());
    if !is_clear {
        let error = bench.fail_to_start(JournalConfig { keys: JournalKeys::default(), ..patient(&bench) });
        assert!(error.to_string().contains("journal.old_encryption_keys"), "{error}");
    }

    let journal = bench.start(patient(&bench));
    wait_until("all are in the journal", || balance_written(&journal) == 5);
    journal.stop().unwrap();
    drop(journal);
    let segment = bench.files("seg").remove(0);
    let whole = fs::read(&segment).unwrap();
    let half_way = file.with_file_name("00000000000000000001-00000000000000000003.replay");

    // A power cut may keep both names of the file: before the first record went back, and after the last.
    for len in [head, whole.len()] {
        fs::write(&segment, &whole[..len]).unwrap();
        fs::write(&half_way, &spill).unwrap();
        fs::hard_link(&half_way, &file).unwrap();
        let journal = bench.start(patient(&bench));
        wait_until("the rest is in the journal", || spilled(&journal) == 0 && bench.spill_files().is_empty());
        journal.stop().unwrap();
        assert_eq!(all_with(&bench, under), numbered(0..7), "both names, {len} of {} bytes", whole.len());
    }

    for len in (head..=whole.len()).step_by(13).chain([whole.len()]) {
        fs::write(&segment, &whole[..len]).unwrap();
        fs::write(&half_way, &spill).unwrap();
        let journal = bench.start(patient(&bench));
        wait_until("the rest is in the journal", || spilled(&journal) == 0 && bench.spill_files().is_empty());
        journal.stop().unwrap();
        assert_eq!(all_with(&bench, under), numbered(0..7), "died with {len} of {} bytes", whole.len());
        assert_sound_with(&bench, under, 7);
    }

    // And one long ago: what has come back is compressed and encrypted anew since.
    let again = keys(Some(2), &[1]);
    let later = JournalConfig { keys: again.clone(), compression: Some(3), ..patient(&bench) };
    let journal = bench.start(later.clone());
    settle(&journal);
    journal.stop().unwrap();
    assert_eq!(bench.reader_with(&again).verify().unwrap().segments_in_blocks, 1);
    fs::write(&half_way, &spill).unwrap();
    let journal = bench.start(later);
    assert_eq!((balance(&journal), spilled(&journal)), ((0, 0, 0, 0), 0));
    assert_eq!(all_with(&bench, &again), numbered(0..7));
    assert_sound_with(&bench, &again, 7);
}

#[test]
fn what_the_spill_refuses_goes_back_to_the_journal() {
    for (writes, syncs, cuts) in [(u32::MAX, 0, 0), (0, u32::MAX, 0), (3, 2, 2), (1, 1, 0), (0, 2, 3)] {
        let bench = Bench::new();
        let journal = bench.start(config(&bench));
        *bench.spill_faults.lock() = Faults { writes, syncs, cuts, written_before_failing: 777, ..Faults::default() };
        let flush = hang(&bench, &journal);
        emit(&journal, 1..30);
        wait_until("the spill's disk has refused", || read(&journal.counters().spill_errors) > 0);
        bench.faults.lock().hangs = false;
        flush.recv().unwrap().unwrap();
        let done = || journal.flush().is_ok() && balance_written(&journal) == 30 && spilled(&journal) == 0;
        wait_until("all are in the journal", done);
        assert_eq!(balance(&journal), (30, 30, 0, 0));
        assert_eq!(all(&bench), numbered(0..30), "{writes} {syncs} {cuts}");
    }
}

#[test]
fn what_is_not_synced_does_not_count_and_is_taken_out_again() {
    let bench = Bench::new();
    fs::create_dir_all(bench.spill_dir()).unwrap();
    let path = bench.spill_dir().join("file");
    let disk = FaultyDisk { faults: Arc::clone(&bench.spill_faults) };
    let facts = SpillFile { path: path.clone(), first: 1, len: 0, records: 0 };
    let mut filling = Filling { cipher: None, file: disk.create(&path).unwrap(), facts, has_failed_attempt: false };
    filling.append(b"good").unwrap();
    bench.spill_faults.lock().syncs = 1;
    assert!(filling.append(b"bad").is_err());
    assert_eq!((filling.facts.len, fs::read(&path).unwrap()), (4, b"goodbad".to_vec()));
    filling.cut_back().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"good");
}

#[test]
fn both_bounds_hold() {
    let bench = Bench::new();
    let mut config = config(&bench);
    config.queue_bytes = 10 * weight();
    config.spill_bytes = 4096;
    let journal = bench.start(config);
    let flush = hang(&bench, &journal);
    let mut sent = 1;
    // One after the other, so that the spill has time to take them; it has no more room after a few.
    wait_until("everything is full", || {
        emit(&journal, sent..sent + 1);
        sent += 1;
        read(&journal.counters().dropped) > 3
    });
    let (emitted, written, _, queued) = balance(&journal);
    assert_eq!((emitted, written), (u64::from(sent), 0));
    assert!(queued <= 10 && read(&journal.counters().queue_bytes) <= 10 * weight());
    assert!(read(&journal.counters().spill_bytes) <= 4096 + 32);
    bench.faults.lock().hangs = false;
    flush.recv().unwrap().unwrap();
    wait_until("the rest is written", || journal.flush().is_ok() && spilled(&journal) == 0);
    let (emitted, written, dropped, queued) = balance(&journal);
    assert_eq!((emitted, written + dropped, queued), (u64::from(sent), u64::from(sent), 0));
    assert_sound(&bench, written);
}

#[test]
fn a_damaged_spill_file_costs_what_is_damaged() {
    let bench = Bench::new();
    let journal = bench.start(patient(&bench));
    bench.faults.lock().writes = u32::MAX;
    emit(&journal, 0..6);
    assert!(journal.stop().is_err());
    *bench.faults.lock() = Faults::default();
    drop(journal);
    let file = bench.spill_files().remove(0);
    let mut bytes = fs::read(&file).unwrap();
    bytes[32 + 50] ^= 1; // in the first record
    fs::write(&file, &bytes[..bytes.len() - 5]).unwrap(); // and the last one torn
    let journal = bench.start(patient(&bench));
    wait_until("the rest is in the journal", || spilled(&journal) == 0 && bench.spill_files().is_empty());
    assert_eq!(balance(&journal), (4, 4, 0, 0));
    assert_eq!(all(&bench), numbered(1..5));
}

#[test]
fn redaction_comes_before_the_spill() {
    let bench = Bench::new();
    let mut config = patient(&bench);
    let rules = Redact { hash: vec![RedactField::Email], drop: vec![RedactField::Response], ..Redact::default() };
    config.redaction = Arc::new(Redaction::new(&rules, b"key"));
    let journal = bench.start(config.clone());
    bench.faults.lock().writes = u32::MAX;
    (0..9).for_each(|_| journal.emit(&entry(1, "a secret answer")));
    assert!(journal.stop().is_err());
    *bench.faults.lock() = Faults::default();
    let spill = fs::read(bench.spill_files().remove(0)).unwrap();
    let journal = bench.start(config);
    wait_until("all are in the journal", || balance_written(&journal) == 9);
    journal.emit(&entry(1, "a secret answer"));
    journal.stop().unwrap();
    assert_eq!(balance_written(&journal), 10, "one went the straight way");
    let segment = fs::read(bench.files("seg").remove(0)).unwrap();
    for (bytes, place) in [(spill, "spill"), (segment, "segment")] {
        let has = |text: &str| memchr::memmem::find(&bytes, text.as_bytes()).is_some();
        assert!(!has("john@example.com") && !has("a secret answer"), "{place}");
        assert!(has("\"email\":\"hmac:") && has("\"content\":null"), "{place}");
    }
}

/// Read along a record's way, the counters show each one somewhere.
fn is_nothing_missing(counters: &super::super::JournalCounters) -> bool {
    let emitted = read(&counters.emitted);
    let queued = read(&counters.queue_records);
    let spilled = read(&counters.spilled);
    emitted <= queued + spilled + read(&counters.written) + read(&counters.dropped)
}

#[test]
fn a_record_is_counted_in_its_new_place_before_it_leaves_the_old() {
    let bench = Bench::new();
    let journal = bench.journal();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let counters = journal.counters();
            while !is_over.load(Ordering::SeqCst) {
                assert!(is_nothing_missing(&counters));
            }
        });
        for _ in 0..10_000 {
            emit(&journal, 0..1);
            journal.flush().unwrap();
        }
        is_over.store(true, Ordering::SeqCst);
    });
    assert_eq!(balance(&journal), (10_000, 10_000, 0, 0));
}

/// Emitters, an observer, two disks that fail and hang at random, and a restart now and then.
#[test]
fn whatever_the_disks_do_each_record_is_there_once_and_never_out_of_sight() {
    for seed in 0..8 {
        let mut random = fastrand::Rng::with_seed(seed);
        let bench = Bench::new();
        let mut config = config(&bench);
        config.segment_bytes = 16 << 10;
        config.flush_interval = Duration::from_millis(1);
        let mut sent = 0;
        for _ in 0..3 {
            let journal = bench.start(config.clone());
            let is_over = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let counters = journal.counters();
                    while !is_over.load(Ordering::SeqCst) {
                        assert!(is_nothing_missing(&counters));
                    }
                });
                for _ in 0..30 {
                    for faults in [&bench.faults, &bench.spill_faults] {
                        let mut faults = faults.lock();
                        faults.writes = random.u32(0..3);
                        faults.syncs = random.u32(0..3);
                        faults.cuts = random.u32(0..2);
                        faults.written_before_failing = random.usize(0..5000);
                        faults.hangs = random.u32(0..3) == 0;
                    }
                    let more = random.u32(0..20);
                    for number in sent..sent + more {
                        journal.emit(&entry(1, &format!("{number:05}")));
                    }
                    sent += more;
                    std::thread::yield_now();
                }
                for faults in [&bench.faults, &bench.spill_faults] {
                    *faults.lock() = Faults::default();
                }
                is_over.store(true, Ordering::SeqCst);
            });
            journal.stop().unwrap();
            let (emitted, written, dropped, queued) = balance(&journal);
            assert_eq!((emitted, dropped, queued), (written + spilled(&journal), 0, 0), "seed {seed}");
        }
        let journal = bench.start(config);
        wait_until("all are in the journal", || spilled(&journal) == 0 && bench.spill_files().is_empty());
        journal.stop().unwrap();
        let expected: Vec<String> = (0..sent).map(|number| format!("{number:05}")).collect();
        assert_eq!(all(&bench), expected, "seed {seed}");
        assert_sound(&bench, u64::from(sent));
    }
}
