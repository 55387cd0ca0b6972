//! A disk that fails, a disk that is full, and a last record that is torn.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::client::Alarm;
use crate::kills::{Failure, Figures, Life, setting};
use crate::oracle::Verdict;
use crate::points::kill_at;
use crate::site::Gateway;
use crate::upstream::Upstream;

/// How soon after the first refused call the gateway must say that it is not ready.
const CLOSES_WITHIN: Duration = Duration::from_secs(5);
/// How long a fault may take to be met.
const FAULT_PATIENCE: Duration = Duration::from_secs(60);
/// How long clients go on knocking at a gateway that has closed.
const KNOCKING: Duration = Duration::from_millis(60);
/// Rounds on one data folder before a fresh one is begun.
const ROUNDS_PER_FOLDER: u64 = 12;
/// The small disk's size, and what is left free on it at first.
const SMALL_DISK_BYTES: u64 = 24 << 20;

/// A point, how often it is passed first, and what the disk says there.
struct StoreFault {
    point: &'static str,
    passages: u32,
    error: &'static str,
    backend: &'static str,
}

const STORE_FAULTS: &[StoreFault] = &[
    StoreFault { point: "wal.before_write", passages: 80, error: "eio", backend: "" },
    StoreFault { point: "wal.before_write", passages: 80, error: "enospc", backend: "" },
    StoreFault { point: "wal.before_sync", passages: 80, error: "eio", backend: "" },
    StoreFault { point: "wal.before_header_sync", passages: 2, error: "eio", backend: "" },
    StoreFault { point: "sled.before_sync", passages: 2, error: "eio", backend: "sled" },
    StoreFault { point: "redb.before_commit", passages: 2, error: "eio", backend: "redb" },
];

/// One fault on a data folder, and the look after it.
type Round = fn(&mut Life<'_>, &mut Figures) -> Verdict;

/// `rounds` faults of each kind.
pub fn run(backend: &'static str, root: &Path, upstream: &Upstream, seed: u64, rounds: u64) -> Result<String, Failure> {
    let mut said = Vec::new();
    let kinds: [(&str, Round); 3] = [("store", failing_store), ("journal", failing_journal), ("torn", torn_record)];
    for (kind, round) in kinds {
        let mut figures = Figures::default();
        let mut done = 0;
        while done < rounds {
            let seed = seed + figures.folders;
            figures.folders += 1;
            let folder = root.join(format!("faults-{kind}-{backend}-{seed}"));
            let data = folder.join("data");
            let due = rounds.min(done + ROUNDS_PER_FOLDER);
            let mut life = Life::begin(&folder, &data, upstream, setting(backend, seed), seed);
            while done < due {
                round(&mut life, &mut figures).map_err(|what| Failure {
                    what,
                    seed,
                    folder: folder.clone(),
                    kill: done,
                })?;
                done += 1;
            }
            let _ = fs::remove_dir_all(&folder);
        }
        said.push(format!("{done} of {kind}, {} acknowledged calls", figures.acknowledged));
    }
    said.push(full_disk(backend, root, upstream, seed, rounds)?);
    Ok(said.join("; "))
}

/// Starts undisturbed and has everything checked.
fn look(life: &mut Life<'_>, figures: &mut Figures) -> Verdict {
    let Some(mut gateway) = life.start("", figures)? else { return Ok(()) };
    life.settle(&gateway, figures)?;
    gateway.process.terminate();
    Ok(())
}

/// Waits until the gateway meets the fault and closes; clients knock on for a while.
fn must_close(gateway: &Gateway, alarm: &Alarm) -> Verdict {
    let began = Instant::now();
    while alarm.refused.load(Ordering::Acquire) == 0 && !gateway.closes_within(Duration::ZERO) {
        if began.elapsed() > FAULT_PATIENCE {
            return Err(format!("the fault was not met within {FAULT_PATIENCE:?}"));
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
    if !gateway.closes_within(CLOSES_WITHIN) {
        return Err(format!("still ready {CLOSES_WITHIN:?} after a call was refused"));
    }
    alarm.closed.store(true, Ordering::Release);
    std::thread::park_timeout(KNOCKING);
    Ok(())
}

fn end(life: &mut Life<'_>, gateway: &mut Gateway) {
    if life.random.bool() { gateway.process.kill() } else { gateway.process.terminate() }
}

/// One write or sync of the store fails: nothing is acknowledged any more, and the next start finds everything.
fn failing_store(life: &mut Life<'_>, figures: &mut Figures) -> Verdict {
    look(life, figures)?;
    let all: Vec<&StoreFault> =
        STORE_FAULTS.iter().filter(|f| f.backend.is_empty() || f.backend == life.site.setting.backend).collect();
    let StoreFault { point, passages, error, .. } = all[life.random.usize(0..all.len())];
    // The first passages belong to the start.
    let armed = format!("{point}={}*off->1*return({error})", 1 + life.random.u32(0..*passages));
    let mut gateway = match life.start(&armed, figures) {
        Ok(Some(gateway)) => gateway,
        // The fault was met in the start already, which must say so.
        Err(why) if why.contains("os error") => return look(life, figures),
        Ok(None) => return Err(format!("{armed}: the gateway died")),
        Err(why) => return Err(format!("{armed}: {why}")),
    };
    let closed = life.busy(&mut gateway, true, |gateway, alarm| must_close(gateway, alarm))?;
    closed.map_err(|why| format!("{armed}: {why}\n{}", gateway.process.whole_log()))?;
    end(life, &mut gateway);
    look(life, figures)
}

/// Writes and syncs of the journal fail now and then: calls go on, and no acknowledged record is lost.
fn failing_journal(life: &mut Life<'_>, figures: &mut Figures) -> Verdict {
    look(life, figures)?;
    let (writes, syncs) = (life.random.u8(1..40), life.random.u8(1..40));
    let points = format!("journal.before_write={writes}%return(eio);journal.before_sync={syncs}%return(eio)");
    let Some(mut gateway) = life.start(&points, figures)? else { return Ok(()) };
    let time = Duration::from_millis(life.random.u64(100..400));
    life.busy(&mut gateway, false, |gateway, _| {
        std::thread::park_timeout(time);
        gateway.process.kill();
    })?;
    look(life, figures)
}

/// Dies between a write and its sync, and then the disk holds only a part of that write.
fn torn_record(life: &mut Life<'_>, figures: &mut Figures) -> Verdict {
    look(life, figures)?;
    let log = life.random.bool();
    let point =
        if log { kill_at("wal.before_sync", life.random.u32(10..150)) } else { kill_at("journal.before_sync", 3) };
    let Some(mut gateway) = life.start(&point, figures)? else { return look(life, figures) };
    let died = life.busy(&mut gateway, false, |gateway, _| gateway.process.ends_within(FAULT_PATIENCE))?;
    if !died {
        return Err(format!("{point} was not reached within {FAULT_PATIENCE:?}"));
    }
    let (file, record) = if log {
        let file = newest(&life.site.data.join("wal"), "wal");
        let record = last_record(&file, 4096, 16);
        (file, record)
    } else {
        let file = newest(&life.site.data.join("journal"), "seg");
        let record = last_record(&file, 32, 32);
        (file, record)
    };
    let Some((start, end)) = record else { return Err(format!("{}: no record to tear", file.display())) };
    damage(&mut life.random, &file, start, end, log);
    look(life, figures)
}

fn newest(folder: &Path, extension: &str) -> PathBuf {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|e| e == extension)).max().unwrap()
}

/// Where the last record begins and ends. Both kinds of files begin with a head of `file_head` bytes, and each record with
/// its payload's length and a head of `record_head` bytes.
fn last_record(file: &Path, file_head: usize, record_head: usize) -> Option<(u64, u64)> {
    let bytes = fs::read(file).unwrap();
    let (mut at, mut last, mut sequence) = (file_head, None, None);
    while let Some(head) = bytes.get(at..at + record_head) {
        let length = u32::from_le_bytes(head[..4].try_into().unwrap()) as usize;
        let number_at = if record_head == 16 { 8 } else { 4 };
        let number = u64::from_le_bytes(head[number_at..number_at + 8].try_into().unwrap());
        // What follows may be zeros, or what an earlier use of the file left.
        if length == 0 || bytes.len() < at + record_head + length || sequence.is_some_and(|before| number != before + 1)
        {
            break;
        }
        sequence = Some(number);
        last = Some((at as u64, (at + record_head + length) as u64));
        at += record_head + length;
    }
    last
}

/// Leaves only a part of the last record, in one of the ways a disk does.
fn damage(random: &mut fastrand::Rng, file: &Path, start: u64, end: u64, preallocated: bool) {
    let open = OpenOptions::new().read(true).write(true).open(file).unwrap();
    let from = random.u64(start..end);
    let len = (end - from) as usize;
    match random.u8(0..3) {
        0 if !preallocated => open.set_len(from).unwrap(),
        0 => open.set_len(from.max(4096)).unwrap(),
        1 => open.write_all_at(&vec![0; len], from).unwrap(),
        _ => {
            let noise: Vec<u8> = (0..len).map(|_| random.u8(..)).collect();
            open.write_all_at(&noise, from).unwrap();
        }
    }
}

/// A file system of its own, of limited size.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let size = format!("size={SMALL_DISK_BYTES}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).output();
        mounted.is_ok_and(|done| done.status.success()).then(|| Self(at.to_owned()))
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    /// Fills the disk to the last byte.
    fn fill(&self) {
        let mut file = File::create(self.ballast()).unwrap();
        for size in [1 << 20, 4096, 1] {
            while std::io::Write::write_all(&mut file, &vec![1; size]).is_ok() {}
        }
    }

    fn free(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// The disk fills up under load; a start on the full disk may fail but does no harm; with room again, all is there.
fn full_disk(
    backend: &'static str,
    root: &Path,
    upstream: &Upstream,
    seed: u64,
    rounds: u64,
) -> Result<String, Failure> {
    let folder = root.join(format!("faults-full-{backend}-{seed}"));
    let Some(disk) = SmallDisk::mount(&folder.join("disk")) else {
        let what = "no small disk can be mounted here: a tmpfs takes root";
        return match crate::power::may_skip() {
            true => Ok(format!("full disk: SKIPPED, {what}")),
            false => Err(Failure { what: what.into(), seed, folder, kill: 0 }),
        };
    };
    let mut figures = Figures::default();
    let data = folder.join("disk/data");
    let mut life = Life::begin(&folder, &data, upstream, setting(backend, seed), seed);
    for round in 0..rounds {
        if round % ROUNDS_PER_FOLDER == 0 && round > 0 {
            fs::remove_dir_all(&data).unwrap();
            life = Life::begin(&folder, &data, upstream, setting(backend, seed + round), seed + round);
        }
        one_full_disk(&mut life, &mut figures, &disk).map_err(|what| Failure {
            what,
            seed,
            folder: folder.clone(),
            kill: round,
        })?;
    }
    drop(disk);
    let _ = fs::remove_dir_all(&folder);
    Ok(format!("{rounds} of full disk, {} acknowledged calls", figures.acknowledged))
}

fn one_full_disk(life: &mut Life<'_>, figures: &mut Figures, disk: &SmallDisk) -> Verdict {
    look(life, figures)?;
    let Some(mut gateway) = life.start("", figures)? else { return Ok(()) };
    let calm = Duration::from_millis(life.random.u64(0..100));
    let closed = life.busy(&mut gateway, true, |gateway, alarm| {
        std::thread::park_timeout(calm);
        disk.fill();
        must_close(gateway, alarm)
    })?;
    closed.map_err(|why| format!("full disk: {why}\n{}", gateway.process.whole_log()))?;
    end(life, &mut gateway);
    // Whether it starts or not: nothing may be worse afterwards.
    if let Ok(mut gateway) = life.site.serve("") {
        gateway.process.kill();
    }
    disk.free();
    look(life, figures)
}
