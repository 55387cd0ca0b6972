//! kill -9: a third at any time, a third at points in the code, a third within 50 ms of a start.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use crate::client::{Alarm, Target, keep_busy};
use crate::oracle::{Books, Verdict};
use crate::points::{self, When};
use crate::site::{Gateway, Recovery, Setting, Site};
use crate::upstream::Upstream;

/// Kills on one data folder before a fresh one is begun.
const KILLS_PER_FOLDER: u64 = 25;
/// How soon after a start the early kills strike.
const EARLY: Duration = Duration::from_millis(50);
/// Longest time under load before a kill at any time.
const BUSY: Duration = Duration::from_millis(250);
/// How long a point may take to be reached; then the process is killed where it is.
const POINT_PATIENCE: Duration = Duration::from_millis(600);
/// What the folders that delete old conversations keep.
const RETENTION_BYTES: u64 = 128 << 10;

/// What a run did and saw.
#[derive(Debug, Default)]
pub struct Figures {
    pub kills: u64,
    pub early: u64,
    pub at_any_time: u64,
    /// By point.
    pub at_points: BTreeMap<&'static str, u64>,
    /// Points that were set, reached or not.
    pub armed: BTreeSet<&'static str>,
    pub folders: u64,
    pub starts: u64,
    pub longest_start: Duration,
    pub calls: u64,
    pub acknowledged: u64,
    pub in_doubt: u64,
    pub repeated: u64,
    pub records: u64,
    /// Checks that found holes in the journal, where nothing was acknowledged.
    pub holes: u64,
}

impl Figures {
    pub fn count_check(&mut self, checked: crate::oracle::Checked) {
        self.calls += checked.calls;
        self.acknowledged += checked.acknowledged;
        self.in_doubt += checked.in_doubt;
        self.repeated += checked.repeated;
        self.records = self.records.max(checked.records);
        self.holes += u64::from(checked.holes);
    }

    pub fn count_start(&mut self, gateway: &Gateway) {
        self.starts += 1;
        self.longest_start = self.longest_start.max(gateway.start_took);
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at_points: u64 = self.at_points.values().sum();
        write!(
            f,
            "{} kills ({} at any time, {} at {} points, {} within a moment of a start), {} folders, {} starts (longest {} ms), \
             {} calls, {} acknowledged, {} in doubt, {} sent again",
            self.kills,
            self.at_any_time,
            at_points,
            self.at_points.len(),
            self.early,
            self.folders,
            self.starts,
            self.longest_start.as_millis(),
            self.calls,
            self.acknowledged,
            self.in_doubt,
            self.repeated,
        )?;
        if self.holes > 0 {
            write!(f, "; {} checks found holes in the journal, where nothing had been acknowledged", self.holes)?;
        }
        if !self.armed.is_empty() {
            let quiet: Vec<&str> =
                self.armed.iter().filter(|name| !self.at_points.contains_key(*name)).copied().collect();
            write!(f, "; points never reached: {quiet:?}")?;
        }
        Ok(())
    }
}

/// One data folder's life: what the runs share.
pub struct Life<'a> {
    pub site: Site,
    pub upstream: &'a Upstream,
    pub random: fastrand::Rng,
    pub books: Option<Books>,
    seed: u64,
    lives: u64,
}

/// The setting of the folder with this number.
pub fn setting(backend: &'static str, seed: u64) -> Setting {
    Setting {
        backend,
        recovery: if seed.is_multiple_of(2) { Recovery::Charge } else { Recovery::Refund },
        retention_bytes: (seed % 3 == 2).then_some(RETENTION_BYTES),
        spills: seed % 5 == 1,
        journal_may_have_holes: false,
    }
}

impl<'a> Life<'a> {
    pub fn begin(root: &Path, data: &Path, upstream: &'a Upstream, setting: Setting, seed: u64) -> Self {
        upstream.tally.forget();
        let site = Site::new(root, data, upstream.addr, setting);
        Self { site, upstream, random: fastrand::Rng::with_seed(seed), books: None, seed, lives: 0 }
    }

    /// Starts the gateway; `None` when it died at the point that was set.
    ///
    /// # Errors
    /// It refused to start.
    pub fn start(&mut self, points: &str, figures: &mut Figures) -> Verdict<Option<Gateway>> {
        if let Some(books) = &mut self.books {
            books.count_records(&self.site)?;
        }
        match self.site.serve(points) {
            Ok(gateway) => {
                figures.count_start(&gateway);
                Ok(Some(gateway))
            }
            Err(died) if died.by_itself || points.is_empty() => {
                Err(format!("the gateway refused to start:\n{}", died.log))
            }
            Err(_) => Ok(None),
        }
    }

    /// Whether nobody has been registered yet.
    pub fn is_fresh(&self) -> bool {
        self.books.is_none()
    }

    /// Makes the users on a fresh folder, or checks everything on one that has been used; half the time, calls are sent
    /// again before.
    pub fn settle(&mut self, gateway: &Gateway, figures: &mut Figures) -> Verdict {
        match &mut self.books {
            None => self.books = Some(Books::open(gateway)?),
            Some(books) => {
                if self.random.bool() {
                    books.repeat(gateway, &mut self.random)?;
                }
                figures.count_check(books.check(&self.site, gateway, &self.upstream.tally)?);
            }
        }
        Ok(())
    }

    /// Keeps the gateway busy while `during` runs, and books what the clients saw.
    pub fn busy<R>(
        &mut self,
        gateway: &mut Gateway,
        may_refuse: bool,
        during: impl FnOnce(&mut Gateway, &Alarm) -> R,
    ) -> Verdict<R> {
        let Some(books) = &mut self.books else { return Err("nobody has been registered".into()) };
        self.lives += 1;
        let (users, token) = (books.users.clone(), books.token.clone());
        let target = Target {
            public: gateway.public,
            admin: gateway.admin,
            users: &users,
            token: &token,
            prefix: format!("call-{}-{}", self.seed, self.lives),
            seed: self.random.u64(..),
            grants: books.grants(),
            may_refuse,
        };
        let (seen, result) = keep_busy(&target, |alarm| during(gateway, alarm));
        books.note(seen)?;
        Ok(result)
    }
}

/// One folder after the other until there have been `kills` kills.
pub fn run(backend: &'static str, root: &Path, upstream: &Upstream, seed: u64, kills: u64) -> Result<Figures, Failure> {
    let mut figures = Figures::default();
    while figures.kills < kills {
        let seed = seed + figures.folders;
        figures.folders += 1;
        let folder = root.join(format!("kills-{backend}-{seed}"));
        let due = kills.min(figures.kills + KILLS_PER_FOLDER);
        let mut life = Life::begin(&folder, &folder.join("data"), upstream, setting(backend, seed), seed);
        while figures.kills < due {
            if let Err(what) = one_kill(&mut life, &mut figures) {
                return Err(Failure { what, seed, folder, kill: figures.kills });
            }
        }
        if let Err(what) = last_look(&mut life, &mut figures) {
            return Err(Failure { what, seed, folder, kill: figures.kills });
        }
        let _ = std::fs::remove_dir_all(&folder);
    }
    Ok(figures)
}

/// What broke, and how to see it again.
#[derive(Debug)]
pub struct Failure {
    pub what: String,
    /// Of the folder it broke on.
    pub seed: u64,
    pub folder: std::path::PathBuf,
    pub kill: u64,
}

fn one_kill(life: &mut Life<'_>, figures: &mut Figures) -> Verdict {
    figures.kills += 1;
    match life.random.u8(0..3) {
        0 => {
            figures.early += 1;
            let mut process = life.site.launch("");
            std::thread::park_timeout(Duration::from_micros(life.random.u64(0..EARLY.as_micros() as u64)));
            if let Some(status) = process.ended() {
                return Err(format!("the gateway refused to start ({status}):\n{}", process.whole_log()));
            }
            process.kill();
            Ok(())
        }
        1 => at_a_point(life, figures),
        _ => {
            figures.at_any_time += 1;
            let Some(mut gateway) = life.start("", figures)? else { return Ok(()) };
            life.settle(&gateway, figures)?;
            let time = Duration::from_micros(life.random.u64(0..BUSY.as_micros() as u64));
            life.busy(&mut gateway, false, |gateway, _| {
                std::thread::park_timeout(time);
                gateway.process.kill();
            })
        }
    }
}

fn at_a_point(life: &mut Life<'_>, figures: &mut Figures) -> Verdict {
    let fresh = life.books.is_none();
    let all = points::of(life.site.setting.backend, |point| points::is_passed(point, fresh));
    let point = all[life.random.usize(0..all.len())];
    let armed = points::kill_at(point.name, life.random.u32(0..point.passages));
    figures.armed.insert(point.name);
    let died = |figures: &mut Figures| *figures.at_points.entry(point.name).or_default() += 1;
    let Some(mut gateway) = life.start(&armed, figures)? else {
        died(figures);
        return Ok(());
    };
    if fresh {
        // The users come first, undisturbed.
        gateway.process.kill();
        figures.at_any_time += 1;
        return Ok(());
    }
    if gateway.process.ends_within(match point.when {
        When::Serving => Duration::ZERO,
        _ => Duration::from_millis(20),
    }) {
        died(figures);
        return Ok(());
    }
    if let Err(what) = life.settle(&gateway, figures) {
        // The check itself may have led it to the point.
        if !gateway.process.has_died() {
            return Err(what);
        }
        died(figures);
        return Ok(());
    }
    let by_itself = life.busy(&mut gateway, false, |gateway, _| {
        let by_itself = gateway.process.ends_within(POINT_PATIENCE);
        gateway.process.kill();
        by_itself
    })?;
    if by_itself {
        died(figures);
    } else {
        figures.at_any_time += 1;
    }
    Ok(())
}

/// After the last kill on a folder: the oracle, a stop in good order, and what the program itself says of its files.
fn last_look(life: &mut Life<'_>, figures: &mut Figures) -> Verdict {
    let Some(mut gateway) = life.start("", figures)? else { return Ok(()) };
    life.settle(&gateway, figures)?;
    gateway.process.terminate();
    life.site.run(&["ledger", "verify"])?;
    life.site.run(&["logs", "verify"])?;
    life.site.run(&["audit", "verify"])
}
