//! The suite's own teeth: with a safety left out on purpose, the oracle must notice.
//!
//! Each bite runs twice: once whole, with whatever makes the moment longer at which the safety matters, and then without
//! the safety. The first must stay green, the second must turn red.

use std::path::Path;
use std::time::Duration;

use crate::kills::{Failure, Figures, Life, setting};
use crate::oracle::Verdict;
use crate::power;
use crate::upstream::Upstream;

/// Kills in which a missing safety must be noticed.
const BITES: u64 = 60;
/// Kills that stay green with the safety in place.
const CONTROLS: u64 = 8;
/// Longest time under load before a kill.
const BUSY: Duration = Duration::from_millis(250);

/// How the process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    Kill,
    PowerCut,
}

struct Tooth {
    name: &'static str,
    /// What makes the dangerous moment longer.
    stretch: String,
    /// What leaves the safety out.
    switch: &'static str,
    death: Death,
}

fn teeth() -> Vec<Tooth> {
    // Apart, because this is no waiting of ours.
    let pause = |point: &str, ms: u32| format!("{point}={}({ms})", "sleep");
    vec![
        Tooth {
            name: "an answer leaves before its debit is on disk",
            stretch: pause("wal.before_write", 20),
            switch: "answer.too_early=return",
            death: Death::Kill,
        },
        Tooth {
            name: "a repeated call is not looked up",
            stretch: String::new(),
            switch: "idempotency.skip_check=return",
            death: Death::Kill,
        },
        Tooth {
            name: "a commit is not synced",
            stretch: String::new(),
            switch: "wal.skip_sync=return",
            death: Death::PowerCut,
        },
        Tooth {
            name: "a batch of conversations is not synced",
            stretch: String::new(),
            switch: "journal.skip_sync=return",
            death: Death::PowerCut,
        },
    ]
}

/// Says for each tooth how soon it bit.
///
/// # Errors
/// A tooth that does not bite, or one that bites though nothing is left out.
pub fn run(backend: &'static str, root: &Path, upstream: &Upstream, seed: u64) -> Result<Vec<String>, Failure> {
    let mut said = Vec::new();
    for tooth in teeth() {
        let whole = bite(&tooth, &tooth.stretch, CONTROLS, backend, root, upstream, seed)?;
        if let Some(Failure { what, seed, folder, kill }) = whole {
            let what = format!("{}: red though nothing was left out: {what}", tooth.name);
            return Err(Failure { what, seed, folder, kill });
        }
        let separator = if tooth.stretch.is_empty() { "" } else { ";" };
        let broken = format!("{}{separator}{}", tooth.stretch, tooth.switch);
        match bite(&tooth, &broken, BITES, backend, root, upstream, seed) {
            Ok(Some(failure)) => {
                let first = failure.what.lines().next().unwrap_or_default();
                let short: String = first.chars().take(160).collect();
                said.push(format!("{}: noticed after {} kills: {short}", tooth.name, failure.kill));
                let _ = std::fs::remove_dir_all(&failure.folder);
            }
            Ok(None) if tooth.death == Death::PowerCut && !power::can_cut(root) => {
                said.push(format!("{}: SKIPPED, the power cannot be cut here", tooth.name));
            }
            Ok(None) => {
                let what = format!("{}: left out, and nobody noticed in {BITES} kills", tooth.name);
                return Err(Failure { what, seed, folder: root.to_owned(), kill: BITES });
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(said)
}

/// The failure that was noticed, if any.
fn bite(
    tooth: &Tooth,
    points: &str,
    kills: u64,
    backend: &'static str,
    root: &Path,
    upstream: &Upstream,
    seed: u64,
) -> Result<Option<Failure>, Failure> {
    if tooth.death == Death::PowerCut {
        return Ok(power::run(backend, root, upstream, seed, kills, points).err());
    }
    let folder = root.join(format!("teeth-{backend}-{seed}"));
    let _ = std::fs::remove_dir_all(&folder);
    let mut life = Life::begin(&folder, &folder.join("data"), upstream, setting(backend, seed), seed);
    let mut figures = Figures::default();
    for kill in 0..kills {
        if let Err(what) = one_kill(&mut life, &mut figures, points) {
            return Ok(Some(Failure { what, seed, folder, kill }));
        }
    }
    let _ = std::fs::remove_dir_all(&folder);
    Ok(None)
}

fn one_kill(life: &mut Life<'_>, figures: &mut Figures, points: &str) -> Verdict {
    let Some(mut gateway) = life.start(points, figures)? else { return Ok(()) };
    life.settle(&gateway, figures)?;
    let time = Duration::from_micros(life.random.u64(0..BUSY.as_micros() as u64));
    life.busy(&mut gateway, false, |gateway, _| {
        std::thread::park_timeout(time);
        gateway.process.kill();
    })
}
