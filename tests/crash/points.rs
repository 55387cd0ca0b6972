//! The points at which the gateway is made to die; the table is in the crate's documentation.

use std::path::{Path, PathBuf};

/// When a point is passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// While a fresh folder's first process starts.
    Making,
    /// While the process starts.
    Opening,
    /// While it serves.
    Serving,
    /// While a backup is put back.
    Restoring,
}

/// A point, and how often it may be passed before the process dies there.
pub struct Point {
    pub name: &'static str,
    pub when: When,
    pub passages: u32,
    /// Empty: on every backend.
    pub backend: &'static str,
    /// Names were changed, and their folder is not synced yet.
    pub names: bool,
}

const fn point(name: &'static str, when: When, passages: u32) -> Point {
    Point { name, when, passages, backend: "", names: false }
}

const fn names(name: &'static str, when: When, passages: u32) -> Point {
    Point { names: true, ..point(name, when, passages) }
}

impl Point {
    const fn of(self, backend: &'static str) -> Self {
        Self { backend, ..self }
    }
}

/// See the table in `main.rs`.
pub const POINTS: &[Point] = &[
    point("wal.before_recovery", When::Opening, 1),
    point("wal.after_recovery", When::Opening, 1),
    names("wal.after_rename", When::Opening, 1),
    point("wal.after_rename_sync", When::Opening, 1),
    point("wal.before_header_sync", When::Opening, 2),
    names("wal.before_name_sync", When::Opening, 2),
    point("wal.after_header_sync", When::Opening, 2),
    point("wal.before_apply", When::Opening, 3),
    point("wal.after_apply", When::Opening, 3),
    names("wal.after_give_up", When::Opening, 3),
    names("wal.after_remove", When::Opening, 1),
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
    names("journal.after_create", When::Making, 1),
    names("journal.after_leftovers", When::Opening, 1),
    names("spill.after_stock", When::Opening, 1),
    names("spill.after_head", When::Serving, 3),
    names("spill.after_rename", When::Serving, 3),
    names("spill.after_remove", When::Serving, 3),
    names("restore.after_ready", When::Restoring, 1),
    names("restore.after_aside", When::Restoring, 5),
    names("restore.after_move", When::Restoring, 5),
    names("restore.after_plan", When::Restoring, 1),
    names("restore.after_end", When::Restoring, 1),
    names("audit.after_create", When::Making, 1),
    names("audit.after_head", When::Making, 1),
    names("folder.after_create", When::Making, 3),
    names("secrets.after_create", When::Making, 1),
    names("folder.after_rename", When::Making, 3),
    point("journal.before_write", When::Serving, 12),
    point("journal.before_sync", When::Serving, 12),
    point("journal.after_sync", When::Serving, 12),
    point("journal.before_seal", When::Serving, 3),
    point("journal.before_index_rename", When::Serving, 3),
    names("journal.after_index_rename", When::Serving, 3),
    point("journal.after_seal", When::Serving, 3),
    point("journal.before_rewrite_rename", When::Serving, 2),
    names("journal.after_rewrite_rename", When::Serving, 2),
    names("journal.before_head", When::Serving, 3),
    names("journal.after_head", When::Serving, 3),
    names("journal.half_deleted", When::Serving, 2),
    names("journal.after_delete", When::Serving, 2),
    point("redb.before_open", When::Opening, 1).of("redb"),
    point("redb.after_open", When::Opening, 1).of("redb"),
    point("redb.before_commit", When::Opening, 3).of("redb"),
    point("redb.after_commit", When::Opening, 3).of("redb"),
    point("redb.before_rename", When::Making, 1).of("redb"),
    names("redb.after_rename", When::Making, 1).of("redb"),
    point("sled.before_rename", When::Making, 1).of("sled"),
    names("sled.after_rename", When::Making, 1).of("sled"),
    names("sled.after_aside", When::Opening, 1).of("sled"),
    point("sled.before_open", When::Opening, 1).of("sled"),
    point("sled.after_open", When::Opening, 1).of("sled"),
    point("sled.before_flush", When::Opening, 3).of("sled"),
    point("sled.before_sync", When::Opening, 3).of("sled"),
];

/// Names change, and a point that nobody passes any more proves nothing. Nor does a rename without a point behind it.
pub fn check() {
    let table = include_str!("main.rs");
    let sources = sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")));
    for Point { name, .. } in POINTS {
        assert!(sources.contains(&format!("(\"{name}\")")), "no point in the sources is called {name}");
    }
    for call in ["failpoint::hit(\"", "failpoint::io(\"", "failpoint::is_on(\"", "failpoint::number(\""] {
        for name in sources.split(call).skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(table.contains(&format!("`{name}`")), "the table in main.rs says nothing of {name}");
        }
    }
    for (at, call) in sources.match_indices("rename(") {
        let after = sources.get(at + call.len()..).unwrap_or_default();
        // The disk's own way to rename is where its callers' calls end.
        let is_call = sources[..at].ends_with([':', '.']) && !after.starts_with("from, to)");
        let next: Vec<&str> = after.lines().take(3).collect();
        let has_point = next.iter().any(|line| line.contains("failpoint::hit("));
        assert!(has_point || !is_call, "a rename without a point behind it: {next:#?}");
    }
}

/// Without what is only there in tests.
fn sources(folder: &Path) -> String {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: PathBuf| match path.extension().is_some_and(|e| e == "rs") {
        true if path.ends_with("tests.rs") || path.ends_with("testing.rs") => String::new(),
        true => {
            let text = std::fs::read_to_string(path).unwrap();
            text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned()
        }
        false if path.is_dir() && !path.ends_with("tests") => sources(&path),
        false => String::new(),
    };
    entries.map(read).collect()
}

/// The points that a gateway on this backend has, of those that `wanted` wants.
pub fn of(backend: &str, wanted: impl Fn(&Point) -> bool) -> Vec<&'static Point> {
    let fits = |point: &&Point| point.backend.is_empty() || point.backend == backend;
    POINTS.iter().filter(fits).filter(|point| wanted(point)).collect()
}

/// Whether a gateway passes it: on a fresh folder, or on one that has been used.
pub fn is_passed(point: &Point, fresh: bool) -> bool {
    match point.when {
        When::Making => fresh,
        When::Opening => true,
        When::Serving => !fresh,
        When::Restoring => false,
    }
}

/// Dies at the passage after `passages`.
pub fn kill_at(name: &str, passages: u32) -> String {
    format!("{name}={passages}*off->return(kill)")
}
