//! Power cuts: not only the process dies, but what it had not synced is gone too.

use std::path::Path;
use std::time::Duration;

use crate::disk::{Disk, Names};
use crate::kills::{Failure, Figures, Life, setting};
use crate::oracle::Verdict;
use crate::points::{self, Point, When, kill_at};
use crate::site::Setting;
use crate::upstream::Upstream;

/// Power cuts on one data folder before a fresh one is begun.
const CUTS_PER_FOLDER: u64 = 20;
/// A long run says after so many cuts how far it is.
const PROGRESS: u64 = 200;
/// Longest time under load before a cut.
const BUSY: Duration = Duration::from_millis(250);
/// How long a point in a start may take to be reached once the process serves; then it is killed where it is.
const POINT_PATIENCE: Duration = Duration::from_millis(60);
/// How soon after a start the early cuts come.
const EARLY: Duration = Duration::from_millis(150);

/// What is left out on purpose; empty: nothing.
pub type Switches<'a> = &'a str;

/// What switches the power cuts off where no disk can be mounted; without it, that is a failure.
const MAY_SKIP: &str = "TOLLGATE_CRASH_MAY_SKIP_POWER";

/// Whether it is no failure that a disk cannot be mounted.
pub fn may_skip() -> bool {
    crate::variable(MAY_SKIP).is_some()
}

/// Whether a disk whose power can be cut can be mounted here.
pub fn can_cut(root: &Path) -> bool {
    Disk::mount(&root.join("trial")).is_ok()
}

/// `cuts` power cuts; `None` where such a disk cannot be mounted and that was allowed.
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
        Err(why) if may_skip() => {
            println!("power, {backend}: SKIPPED, no disk of our own can be mounted here: {why}");
            return Ok(None);
        }
        Err(why) => {
            let what = format!(
                "no disk of our own can be mounted here: {why}\nIt takes root and /dev/fuse (modprobe fuse; in a container, \
                 --device /dev/fuse --cap-add SYS_ADMIN). To go without power cuts, set {MAY_SKIP}=1."
            );
            return Err(Failure { what, seed, folder, kill: 0 });
        }
    };
    let mut figures = Figures::default();
    while figures.kills < cuts {
        let seed = seed + figures.folders;
        figures.folders += 1;
        disk.wipe(if seed.is_multiple_of(4) { Names::Plain } else { Names::Journaled });
        let due = cuts.min(figures.kills + CUTS_PER_FOLDER);
        let setting = Setting { journal_may_have_holes: true, ..setting(backend, seed) };
        let mut life = Life::begin(&folder, &folder.join("disk/data"), upstream, setting, seed);
        let fail = |what, kill| Failure { what, seed, folder: folder.clone(), kill };
        while figures.kills < due {
            one_cut(&mut life, &mut figures, &mut disk, switches).map_err(|what| fail(what, figures.kills))?;
        }
        look(&mut life, &mut figures, switches).map_err(|what| fail(what, figures.kills))?;
        if figures.kills.is_multiple_of(PROGRESS) {
            println!("power, {backend}: {} of {cuts} cuts, {} calls", figures.kills, figures.calls);
        }
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
    /// A log file's way from one name to the next is cut off twice, and no name is kept that was not synced.
    Renames,
    /// A restore of what is there, and it ends half way or a start after it does.
    Restore,
    /// A life that ended between a change of names and their folder's sync, and another that built on what it found.
    Names,
}

fn one_cut(life: &mut Life<'_>, figures: &mut Figures, disk: &mut Disk, switches: &str) -> Verdict {
    figures.kills += 1;
    use Before::{Load, LoadAndStart, Names, Renames, Restore, Start, TwoLoads};
    let all = [Start, Start, LoadAndStart, LoadAndStart, Load, Load, Load, Load, TwoLoads, TwoLoads, Restore, Renames]
        .into_iter()
        .chain([Names; 6])
        .collect::<Vec<_>>();
    // What makes a folder is over with its first life.
    let before = match life.is_fresh() && life.random.u8(0..4) > 0 {
        true => Names,
        // For certain on every folder.
        false if figures.kills % CUTS_PER_FOLDER == CUTS_PER_FOLDER / 2 => Renames,
        false => all[life.random.usize(0..all.len())],
    };
    // The first life may end at a point, and what has been registered must not hang on that. And what was just restored has no
    // log whose files could be renamed.
    if before == Renames || life.is_fresh() && matches!(before, TwoLoads | Restore) {
        look(life, figures, switches)?;
    }
    if before == TwoLoads {
        let mut serving = points::of(life.site.setting.backend, |point| point.when == When::Serving);
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
        Before::Names => changed_names(life, figures, switches)?,
        Before::Restore => restored(life, figures, switches)?,
        Before::Renames => renamed_twice(life, figures, switches)?,
    }
    if matches!(before, Before::Start | Before::LoadAndStart) {
        start_only(life, figures, switches)?;
    } else if !matches!(before, Names | Restore | Renames) {
        figures.at_any_time += 1;
    }
    match before {
        Renames => disk.lose_names(&mut life.random),
        _ => disk.cut_power(&mut life.random),
    }
    check_log_names(&life.site.data.join("wal"))
}

/// The first life dies when a log file has become the spare one, the second on the way from there to its next use.
fn renamed_twice(life: &mut Life<'_>, figures: &mut Figures, switches: &str) -> Verdict {
    const NEXT: [&str; 4] =
        ["wal.after_rename", "wal.after_rename_sync", "wal.before_header_sync", "wal.before_name_sync"];
    for point in ["wal.after_give_up", NEXT[life.random.usize(0..NEXT.len())]] {
        let mut process = life.site.launch(&with(switches, &kill_at(point, 0)));
        if !process.has_ended() || process.ended().is_some_and(|status| status.code().is_some()) {
            return Err(format!("a start did not come to {point}:\n{}", process.whole_log()));
        }
        *figures.at_points.entry(point).or_default() += 1;
    }
    Ok(())
}

/// Dies where names were changed and not synced, once or twice, and has a life after that which builds on what it finds.
fn changed_names(life: &mut Life<'_>, figures: &mut Figures, switches: &str) -> Verdict {
    let fresh = life.is_fresh();
    for _ in 0..life.random.usize(1..3) {
        let all = points::of(life.site.setting.backend, |point| point.names && points::is_passed(point, fresh));
        let point = all[life.random.usize(0..all.len())];
        figures.armed.insert(point.name);
        if die_at(life, figures, switches, point)? {
            *figures.at_points.entry(point.name).or_default() += 1;
        } else {
            figures.at_any_time += 1;
        }
    }
    match life.random.u8(0..4) {
        0 => Ok(()),
        1 => start_only(life, figures, switches),
        2 if !fresh => load(life, figures, switches, BUSY / 5),
        _ => look(life, figures, switches),
    }
}

/// Puts the state back that is there anyhow, so that all that held still has to, whatever of the two is found.
fn restored(life: &mut Life<'_>, figures: &mut Figures, switches: &str) -> Verdict {
    let file = life.site.beside("backup");
    life.site.run(&["backup", &file])?;
    let all = points::of(life.site.setting.backend, |point| point.when == When::Restoring);
    let point = all[life.random.usize(0..all.len())];
    figures.armed.insert(point.name);
    let armed = with(switches, &kill_at(point.name, life.random.u32(0..point.passages)));
    let mut restore = life.site.launch_command(&["restore", &file, "--force"], &armed);
    if !restore.has_ended() || restore.ended().is_some_and(|status| status.code().is_some_and(|code| code != 0)) {
        return Err(format!("a restore failed:\n{}", restore.whole_log()));
    }
    match restore.ended().is_some_and(|status| status.code().is_none()) {
        true => *figures.at_points.entry(point.name).or_default() += 1,
        false => figures.at_any_time += 1,
    }
    if life.random.bool() { start_only(life, figures, switches) } else { Ok(()) }
}

/// Whether it was the point that it died at.
fn die_at(life: &mut Life<'_>, figures: &mut Figures, switches: &str, point: &Point) -> Verdict<bool> {
    let armed = with(switches, &kill_at(point.name, life.random.u32(0..point.passages)));
    let Some(mut gateway) = life.start(&armed, figures)? else { return Ok(true) };
    if point.when != When::Serving {
        let died = gateway.process.ends_within(POINT_PATIENCE);
        gateway.process.kill();
        return Ok(died);
    }
    if let Err(what) = life.settle(&gateway, figures) {
        // The check itself may have led it to the point.
        return if gateway.process.has_died() { Ok(true) } else { Err(what) };
    }
    life.busy(&mut gateway, false, |gateway, _| {
        let died = gateway.process.ends_within(BUSY);
        gateway.process.kill();
        died
    })
}

/// No log file under an older name than its header: a file that is used again has its new name on disk before it changes.
fn check_log_names(folder: &Path) -> Verdict {
    // It may not have come to a log yet.
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.map_err(|e| e.to_string())?.path();
        let name = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<u64>().ok());
        let (Some(name), Ok(bytes)) = (name, std::fs::read(&path)) else { continue };
        let begun_as = bytes.get(8..16).and_then(|word| word.try_into().ok()).map_or(0, u64::from_le_bytes);
        if begun_as > name {
            return Err(format!("{} was begun as {begun_as}", path.display()));
        }
    }
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
        let died = points.contains("kill") && gateway.process.has_died();
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
        let opening = points::of(life.site.setting.backend, |point| point.when == When::Opening);
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
