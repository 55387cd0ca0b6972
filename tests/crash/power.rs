//! Power cuts: not only the process dies, but what it had not synced is gone too.

use std::path::Path;
use std::time::Duration;

use crate::disk::Disk;
use crate::kills::{Failure, Figures, Life, setting};
use crate::oracle::Verdict;
use crate::points::{self, When, kill_at};
use crate::site::Setting;
use crate::upstream::Upstream;

/// Power cuts on one data folder before a fresh one is begun.
const CUTS_PER_FOLDER: u64 = 20;
/// Longest time under load before a cut.
const BUSY: Duration = Duration::from_millis(250);
/// How soon after a start the early cuts come.
const EARLY: Duration = Duration::from_millis(150);

/// What is left out on purpose; empty: nothing.
pub type Switches<'a> = &'a str;

/// Whether a disk whose power can be cut can be mounted here.
pub fn can_cut(root: &Path) -> bool {
    Disk::mount(&root.join("trial")).is_ok()
}

/// `cuts` power cuts; `None` where such a disk cannot be mounted, with the reason said.
pub fn run(
    backend: &'static str,
    root: &Path,
    upstream: &Upstream,
    seed: u64,
    cuts: u64,
    switches: Switches<'_>,
) -> Result<Option<Figures>, Failure> {
    let folder = root.join(format!("power-{backend}-{seed}-{}", fastrand::u32(..)));
    let disk = match Disk::mount(&folder.join("disk")) {
        Ok(disk) => disk,
        Err(why) => {
            println!("power, {backend}: SKIPPED, no disk of our own can be mounted here: {why}");
            return Ok(None);
        }
    };
    let mut figures = Figures::default();
    while figures.kills < cuts {
        let seed = seed + figures.folders;
        figures.folders += 1;
        disk.wipe();
        let due = cuts.min(figures.kills + CUTS_PER_FOLDER);
        let setting = Setting { journal_may_have_holes: true, ..setting(backend, seed) };
        let mut life = Life::begin(&folder, &folder.join("disk/data"), upstream, setting, seed);
        let fail = |what, kill| Failure { what, seed, folder: folder.clone(), kill };
        while figures.kills < due {
            one_cut(&mut life, &mut figures, &disk, switches).map_err(|what| fail(what, figures.kills))?;
        }
        look(&mut life, &mut figures, switches).map_err(|what| fail(what, figures.kills))?;
    }
    drop(disk);
    let _ = std::fs::remove_dir_all(&folder);
    Ok(Some(figures))
}

fn look(life: &mut Life<'_>, figures: &mut Figures, switches: &str) -> Verdict {
    let Some(mut gateway) = life.start(switches, figures)? else { return Ok(()) };
    life.settle(&gateway, figures)?;
    gateway.process.kill();
    Ok(())
}

/// Under load, in a start, or in the start after a kill that lost nothing: its files are then used though not synced.
fn one_cut(life: &mut Life<'_>, figures: &mut Figures, disk: &Disk, switches: &str) -> Verdict {
    figures.kills += 1;
    let kind = life.random.u8(0..4);
    if kind > 0 {
        figures.at_any_time += 1;
        let Some(mut gateway) = life.start(switches, figures)? else { return Ok(()) };
        life.settle(&gateway, figures)?;
        let time = Duration::from_micros(life.random.u64(0..BUSY.as_micros() as u64));
        life.busy(&mut gateway, false, |gateway, _| {
            std::thread::park_timeout(time);
            gateway.process.kill();
        })?;
    }
    if kind < 2 {
        figures.early += 1;
        let mut points = switches.to_owned();
        if life.random.bool() {
            let opening = points::of(life.site.setting.backend, Some(When::Opening));
            let point = opening[life.random.usize(0..opening.len())];
            let separator = if points.is_empty() { "" } else { ";" };
            points = format!("{points}{separator}{}", kill_at(point.name, life.random.u32(0..point.passages)));
        }
        let mut process = life.site.launch(&points);
        process.ends_within(Duration::from_micros(life.random.u64(0..EARLY.as_micros() as u64)));
        if let Some(status) = process.ended().filter(|status| status.code().is_some()) {
            return Err(format!("the gateway refused to start ({status}):\n{}", process.whole_log()));
        }
        process.kill();
    }
    disk.cut_power(&mut life.random);
    Ok(())
}
