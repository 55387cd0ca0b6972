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
    let mut disk = match Disk::mount(&folder.join("disk")) {
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
            one_cut(&mut life, &mut figures, &mut disk, switches).map_err(|what| fail(what, figures.kills))?;
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

/// What goes before a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Start,
    LoadAndStart,
    Load,
    /// Two lives under load, the first of which a kill ended that lost nothing: what it left is then used, though nobody
    /// synced it.
    TwoLoads,
}

fn one_cut(life: &mut Life<'_>, figures: &mut Figures, disk: &mut Disk, switches: &str) -> Verdict {
    figures.kills += 1;
    let all = [Before::Start, Before::LoadAndStart, Before::Load, Before::Load, Before::TwoLoads];
    let before = all[life.random.usize(0..all.len())];
    if before == Before::TwoLoads {
        if life.is_fresh() {
            // The first life may end at a point, and what has been registered must not hang on that.
            look(life, figures, switches)?;
        }
        let mut serving = points::of(life.site.setting.backend, Some(When::Serving));
        if life.random.bool() {
            // What is written and not synced is what this is about.
            serving.retain(|point| point.name.ends_with(".before_sync"));
        }
        let point = serving[life.random.usize(0..serving.len())];
        let armed = with(switches, &kill_at(point.name, life.random.u32(0..point.passages)));
        load(life, figures, &armed, BUSY)?;
    }
    match before {
        Before::Start => {}
        Before::TwoLoads => load(life, figures, switches, BUSY / 5)?,
        Before::Load | Before::LoadAndStart => load(life, figures, switches, BUSY)?,
    }
    if matches!(before, Before::Start | Before::LoadAndStart) {
        start_only(life, figures, switches)?;
    } else {
        figures.at_any_time += 1;
    }
    disk.cut_power(&mut life.random);
    Ok(())
}

fn with(switches: &str, point: &str) -> String {
    if switches.is_empty() { point.to_owned() } else { format!("{switches};{point}") }
}

/// Some time under load, up to `longest`, and a kill; or the point that is set comes first.
fn load(life: &mut Life<'_>, figures: &mut Figures, points: &str, longest: Duration) -> Verdict {
    let Some(mut gateway) = life.start(points, figures)? else { return Ok(()) };
    if let Err(what) = life.settle(&gateway, figures) {
        // The check itself may have led it to a point.
        let died = points.contains("kill") && gateway.process.ends_within(Duration::from_millis(200));
        return if died { Ok(()) } else { Err(what) };
    }
    let time = Duration::from_micros(life.random.u64(0..longest.as_micros() as u64));
    life.busy(&mut gateway, false, |gateway, _| {
        gateway.process.ends_within(time);
        gateway.process.kill();
    })
}

/// A start that is killed within a moment, half the time at a point.
fn start_only(life: &mut Life<'_>, figures: &mut Figures, switches: &str) -> Verdict {
    figures.early += 1;
    let mut points = switches.to_owned();
    if life.random.bool() {
        let opening = points::of(life.site.setting.backend, Some(When::Opening));
        let point = opening[life.random.usize(0..opening.len())];
        points = with(switches, &kill_at(point.name, life.random.u32(0..point.passages)));
    }
    let mut process = life.site.launch(&points);
    process.ends_within(Duration::from_micros(life.random.u64(0..EARLY.as_micros() as u64)));
    if let Some(status) = process.ended().filter(|status| status.code().is_some()) {
        return Err(format!("the gateway refused to start ({status}):\n{}", process.whole_log()));
    }
    process.kill();
    Ok(())
}
