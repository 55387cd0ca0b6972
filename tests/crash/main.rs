//! The crash tests: processes that are never killed around a gateway that is.
//!
//! A client that writes down what it meant to do and what it was told, an upstream that counts what it served, and
//! between them the real program, killed at any moment, with the disk full or failing, or with the power gone. After each
//! restart the oracle looks at everything: every acknowledged call debited once, none twice, `granted = balance + held +
//! spent`, every acknowledged conversation record present and equal.
//!
//! Run with `make crash CYCLES=200`, or `cargo test --features failpoints --test crash`.
//!
//! | variable | says | without it |
//! |---|---|---|
//! | `TOLLGATE_CRASH_SEED` | where the random choices begin; the same seed makes the same choices | a random one, printed |
//! | `TOLLGATE_CRASH_CYCLES` | kills per backend; half as many power cuts, and a fortieth of each fault | 200 |
//! | `TOLLGATE_CRASH_BACKENDS` | which backends, with commas between | all |
//! | `TOLLGATE_CRASH_ONLY` | which run: `kills`, `faults`, `power`, `teeth` | all |
//! | `TOLLGATE_CRASH_MAY_SKIP_POWER` | where no disk can be mounted, the power is not cut, and that is no failure | it is one |
//!
//! # Points
//!
//! Where the program can be made to die (`return(kill)`) or the disk to fail (`return(eio)`, `return(enospc)`):
//!
//! | point | is passed |
//! |---|---|
//! | `wal.before_recovery`, `wal.after_recovery` | around the reading of the log at a start |
//! | `wal.after_rename`, `wal.after_rename_sync` | when a spare file has its new name and still its old content |
//! | `wal.before_header_sync`, `wal.before_name_sync`, `wal.after_header_sync` | around the syncs of a new log file |
//! | `wal.after_give_up`, `wal.after_remove` | when a log file became the spare one, or was removed |
//! | `wal.before_write`, `wal.before_sync`, `wal.after_sync` | around the write and the sync of every commit |
//! | `wal.before_rotate`, `wal.after_rotate` | around the change to the next log file |
//! | `wal.before_apply`, `wal.after_apply` | around the move of a log file's changes to the backend |
//! | `sled.before_rename`, `sled.after_rename` | around the moment in which a new database gets its name |
//! | `sled.after_aside` | when a half-written snapshot was moved aside |
//! | `sled.before_open`, `sled.after_open` | around the opening of the backend |
//! | `sled.before_flush`, `sled.before_sync` | in every batch that goes to the backend |
//! | `redb.before_open`, `redb.after_open`, `redb.before_commit`, `redb.after_commit` | the same for the other backend |
//! | `redb.before_rename`, `redb.after_rename` | around the moment in which a new database gets its name |
//! | `commit.before`, `commit.after` | around a commit, on the store thread |
//! | `settle.before`, `settle.after` | around the end of a hold |
//! | `answer.before`, `answer.begun`, `answer.ended` | before the first byte of an answer, after it, after the last |
//! | `journal.before_recovery`, `journal.before_cut` | when the journal is taken over, and before its torn end is cut |
//! | `journal.before_write`, `journal.before_sync`, `journal.after_sync` | around the write and sync of a batch |
//! | `journal.after_create`, `journal.after_leftovers` | when the journal's folder was made, and what was half done removed |
//! | `journal.before_seal`, `journal.before_index_rename`, `journal.after_index_rename`, `journal.after_seal` | while a segment gets its index |
//! | `journal.before_rewrite_rename`, `journal.after_rewrite_rename` | when a sealed segment is replaced by its compressed form |
//! | `journal.before_head`, `journal.after_head` | while a segment is made |
//! | `journal.half_deleted`, `journal.after_delete` | when retention has deleted a segment but not its index, and both |
//! | `spill.after_head`, `spill.after_rename`, `spill.after_remove` | when a spill file was made, renamed to go back, and removed |
//! | `spill.after_stock` | when a start has removed spill files with nothing in them |
//! | `audit.after_create`, `audit.after_head`, `audit.after_remove` | when the trail's folder was made, a segment of it was, or one was removed |
//! | `folder.after_create`, `secrets.after_create`, `folder.after_rename` | when a folder was made, or a small file was replaced as a whole |
//! | `restore.after_ready`, `restore.after_aside`, `restore.after_move`, `restore.after_plan`, `restore.after_end` | between the moves of a restore |
//! | `backup.after_rename`, `export.after_rename`, `output.after_rename`, `mail.after_rename` | when what a command or a letter's file wrote has its name |
//!
//! Where names have changed and their folder is not synced, the power cuts come after one more start on what was left.
//!
//! Switches that leave a safety out, to prove that its loss is noticed: `wal.skip_sync`, `journal.skip_sync`,
//! `answer.too_early`, `idempotency.skip_check`. And one size: `wal.file_bytes`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod client;
mod disk;
mod faults;
mod kills;
mod oracle;
mod points;
mod power;
mod site;
mod teeth;
mod upstream;
mod wire;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use upstream::Upstream;

/// Every embedded backend there is.
const BACKENDS: [&str; 2] = ["sled", "redb"];

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(disk::SERVER) {
        return disk::serve(Path::new(&arguments.next().unwrap_or_default()));
    }
    let seed = variable("TOLLGATE_CRASH_SEED").map_or_else(|| fastrand::u64(..1 << 40), |text| text.parse().unwrap());
    let cycles = variable("TOLLGATE_CRASH_CYCLES").map_or(200, |text| text.parse().unwrap());
    let chosen = variable("TOLLGATE_CRASH_BACKENDS");
    let backends: Vec<&'static str> =
        BACKENDS.into_iter().filter(|name| chosen.as_ref().is_none_or(|c| c.split(',').any(|c| c == *name))).collect();
    let only = variable("TOLLGATE_CRASH_ONLY");
    let wanted = |run: &str| only.as_ref().is_none_or(|only| only.split(',').any(|name| name == run));
    points::check();
    disk::check();
    println!("seed {seed}, {cycles} kills a backend, {backends:?}");
    let root = std::env::temp_dir().join(format!("tollgate-crash-{}", std::process::id()));
    let upstream = Upstream::start();
    let mut green = true;
    for backend in backends {
        if wanted("kills") {
            let began = Instant::now();
            match kills::run(backend, &root, &upstream, seed, cycles) {
                Ok(figures) => println!("kills, {backend}: {figures}, {} s", began.elapsed().as_secs()),
                Err(failure) => green &= tell("kills", backend, &failure),
            }
        }
        if wanted("power") {
            let began = Instant::now();
            match power::run(backend, &root, &upstream, seed, cycles / 2, "") {
                Ok(Some(figures)) => println!("power, {backend}: {figures}, {} s", began.elapsed().as_secs()),
                Ok(None) => {}
                Err(failure) => green &= tell("power", backend, &failure),
            }
        }
        if wanted("teeth") {
            let began = Instant::now();
            match teeth::run(backend, &root, &upstream, seed) {
                Ok(said) => println!("teeth, {backend}:\n  {}\n  {} s", said.join("\n  "), began.elapsed().as_secs()),
                Err(failure) => green &= tell("teeth", backend, &failure),
            }
        }
        if wanted("faults") {
            let began = Instant::now();
            match faults::run(backend, &root, &upstream, seed, (cycles / 40).max(4)) {
                Ok(said) => println!("faults, {backend}: {said}, {} s", began.elapsed().as_secs()),
                Err(failure) => green &= tell("faults", backend, &failure),
            }
        }
    }
    if green {
        let _ = std::fs::remove_dir_all(&root);
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Says what broke and how to see it again. False, to be added up.
fn tell(run: &str, backend: &str, failure: &kills::Failure) -> bool {
    println!("{run}, {backend}: FAILED after {} kills: {}", failure.kill, failure.what);
    println!("the folder is kept: {}", failure.folder.display());
    println!(
        "again: TOLLGATE_CRASH_SEED={} TOLLGATE_CRASH_ONLY={run} TOLLGATE_CRASH_BACKENDS={backend} TOLLGATE_CRASH_CYCLES=25 \
         cargo test --features failpoints --test crash",
        failure.seed
    );
    false
}
