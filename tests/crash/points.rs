//! The points at which the gateway is made to die; the table is in the crate's documentation.

use std::path::{Path, PathBuf};

/// When a point is passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// While the process starts.
    Opening,
    /// While it serves.
    Serving,
}

/// A point, and how often it may be passed before the process dies there.
pub struct Point {
    pub name: &'static str,
    pub when: When,
    pub passages: u32,
    /// Empty: on every backend.
    pub backend: &'static str,
}

const fn point(name: &'static str, when: When, passages: u32) -> Point {
    Point { name, when, passages, backend: "" }
}

const fn only(backend: &'static str, name: &'static str, when: When, passages: u32) -> Point {
    Point { name, when, passages, backend }
}

/// See the table in `main.rs`.
pub const POINTS: &[Point] = &[
    point("wal.before_recovery", When::Opening, 1),
    point("wal.after_recovery", When::Opening, 1),
    point("wal.after_rename", When::Opening, 1),
    point("wal.before_header_sync", When::Opening, 2),
    point("wal.after_header_sync", When::Opening, 2),
    point("wal.before_apply", When::Opening, 3),
    point("wal.after_apply", When::Opening, 3),
    point("wal.before_rotate", When::Serving, 2),
    point("wal.after_rotate", When::Serving, 2),
    point("wal.before_write", When::Serving, 120),
    point("wal.before_sync", When::Serving, 120),
    point("wal.after_sync", When::Serving, 120),
    point("commit.before", When::Serving, 120),
    point("commit.after", When::Serving, 120),
    point("settle.before", When::Serving, 120),
    point("settle.after", When::Serving, 120),
    point("answer.before", When::Serving, 120),
    point("answer.begun", When::Serving, 120),
    point("answer.ended", When::Serving, 120),
    point("journal.before_recovery", When::Opening, 1),
    point("journal.before_cut", When::Opening, 1),
    point("journal.before_write", When::Serving, 12),
    point("journal.before_sync", When::Serving, 12),
    point("journal.after_sync", When::Serving, 12),
    point("journal.before_seal", When::Serving, 3),
    point("journal.before_index_rename", When::Serving, 3),
    point("journal.after_seal", When::Serving, 3),
    point("journal.before_rewrite_rename", When::Serving, 2),
    point("journal.after_rewrite_rename", When::Serving, 2),
    point("journal.before_head", When::Serving, 3),
    point("journal.after_head", When::Serving, 3),
    point("journal.half_deleted", When::Serving, 2),
    only("redb", "redb.before_open", When::Opening, 1),
    only("redb", "redb.after_open", When::Opening, 1),
    only("redb", "redb.before_commit", When::Opening, 3),
    only("redb", "redb.after_commit", When::Opening, 3),
    only("redb", "redb.before_rename", When::Opening, 1),
    only("sled", "sled.before_rename", When::Opening, 1),
    only("sled", "sled.before_open", When::Opening, 1),
    only("sled", "sled.after_open", When::Opening, 1),
    only("sled", "sled.before_flush", When::Opening, 3),
    only("sled", "sled.before_sync", When::Opening, 3),
];

/// Names change, and a point that nobody passes any more proves nothing.
pub fn check() {
    let table = include_str!("main.rs");
    let sources = sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")));
    for Point { name, .. } in POINTS {
        assert!(sources.contains(&format!("(\"{name}\")")), "no point in the sources is called {name}");
        assert!(table.contains(&format!("`{name}`")), "the table in main.rs says nothing of {name}");
    }
}

fn sources(folder: &Path) -> String {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: PathBuf| match path.extension().is_some_and(|e| e == "rs") {
        true => std::fs::read_to_string(path).unwrap(),
        false if path.is_dir() => sources(&path),
        false => String::new(),
    };
    entries.map(read).collect()
}

/// The points that a gateway on this backend has; `when`: those alone.
pub fn of(backend: &str, when: Option<When>) -> Vec<&'static Point> {
    let fits = |point: &&Point| point.backend.is_empty() || point.backend == backend;
    POINTS.iter().filter(fits).filter(|point| when.is_none_or(|when| point.when == when)).collect()
}

/// Dies at the passage after `passages`.
pub fn kill_at(name: &str, passages: u32) -> String {
    format!("{name}={passages}*off->return(kill)")
}
