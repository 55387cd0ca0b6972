//! From an older format to the present one, on opening.
//!
//! Owns the list of steps and their order. A step changes rows page by page; how far it has come is written together with
//! each page, so that a crash in the middle goes on where it was. Never runs on a store of a newer format: that one is not
//! even opened ([`super::home`]).

use serde::{Deserialize, Serialize};

use super::home::{FORMAT, Home};
use super::{Batch, Op, Order, Row, Store, StoreError, prefix_end, tables};

/// Rows that a step sees at once.
const PAGE: usize = 500;

/// The way from one format to the next.
pub struct Step {
    /// The format that the store has after it.
    pub to: u32,
    pub what: &'static str,
    /// Rows whose keys begin so are looked at, in the order of their keys.
    pub prefix: &'static [u8],
    /// The changes that some of these rows need. Run twice on a row, it must come to the same: the second time it sees its own
    /// result.
    pub change: fn(&[Row]) -> Result<Vec<Op>, StoreError>,
}

/// Every step there is.
const STEPS: &[Step] = &[Step {
    to: 2,
    what: "the log names its store, and the backend how much of the log it has; no row changes",
    prefix: tables::OWN,
    change: |_| Ok(Vec::new()),
}];

/// How far a step has come.
#[derive(Serialize, Deserialize)]
struct Progress {
    to: u32,
    /// The last key that is done.
    after: Vec<u8>,
}

/// Brings an open store to the present format.
///
/// # Errors
/// [`StoreError::Corrupt`] when a row is not of its format; the store stays of the old one, and opening tries again.
pub fn run(home: &mut Home, store: &dyn Store) -> Result<(), StoreError> {
    run_steps(home, store, STEPS, FORMAT)
}

fn run_steps(home: &mut Home, store: &dyn Store, steps: &[Step], present: u32) -> Result<(), StoreError> {
    while home.description.format < present {
        let from = home.description.format;
        let step = steps.iter().find(|step| step.to == from + 1).ok_or_else(|| {
            StoreError::Refused(format!("there is no way from format {from} of the store to format {present}"))
        })?;
        tracing::info!(from, to = step.to, what = step.what, "the store is brought to a newer format");
        let rows = run_step(store, step)?;
        home.set_format(step.to)?;
        tracing::info!(format = step.to, rows, "done");
    }
    // Left by a crash right after the format was set.
    if store.get(tables::MIGRATION)?.is_some() {
        let mut batch = Batch::default();
        batch.delete(tables::MIGRATION.to_vec());
        store.commit(&batch)?;
    }
    Ok(())
}

fn run_step(store: &dyn Store, step: &Step) -> Result<u64, StoreError> {
    let end = prefix_end(step.prefix);
    let mut from = match tables::read::<Progress>(store, tables::MIGRATION)? {
        Some(progress) if progress.to == step.to => after(&progress.after),
        _ => step.prefix.to_vec(),
    };
    let mut seen = 0;
    loop {
        let rows = store.range(&from, &end, PAGE, Order::Ascending)?;
        let Some((last, _)) = rows.last() else { return Ok(seen) };
        let mut batch = Batch { ops: (step.change)(&rows)?, ..Batch::default() };
        let progress = Progress { to: step.to, after: last.clone() };
        batch.put(tables::MIGRATION.to_vec(), tables::encode(&progress)?);
        store.commit(&batch)?;
        seen += rows.len() as u64;
        from = after(last);
    }
}

/// The least key that is greater.
fn after(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering as Atomic};

    use super::super::memory::MemoryStore;
    use super::*;

    const OLD: u32 = 1;
    const NEW: u32 = 3;

    /// To format 2, values get a letter in front; to format 3, those rows move to another prefix.
    const TEST_STEPS: &[Step] = &[
        Step {
            to: 2,
            what: "a letter",
            prefix: b"a/",
            change: |rows| {
                let old = rows.iter().filter(|(_, value)| !value.starts_with(b"v"));
                Ok(old.map(|(key, value)| Op::Put { key: key.clone(), value: [&b"v"[..], value].concat() }).collect())
            },
        },
        Step {
            to: 3,
            what: "another prefix",
            prefix: b"a/",
            change: |rows| {
                let moved = |(key, value): &Row| {
                    let new = [&b"b/"[..], &key[2..]].concat();
                    [Op::Delete { key: key.clone() }, Op::Put { key: new, value: value.clone() }]
                };
                Ok(rows.iter().flat_map(moved).collect())
            },
        },
    ];

    /// Commits that work before the power goes.
    struct Dying {
        rows: MemoryStore,
        left: AtomicUsize,
    }

    impl Store for Dying {
        fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
            self.rows.get(key)
        }

        fn range(&self, from: &[u8], to: &[u8], limit: usize, order: Order) -> Result<Vec<Row>, StoreError> {
            self.rows.range(from, to, limit, order)
        }

        fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
            if self.left.fetch_update(Atomic::SeqCst, Atomic::SeqCst, |left| left.checked_sub(1)).is_err() {
                return Err(StoreError::Failed("the power went".into()));
            }
            self.rows.commit(batch)
        }
    }

    #[test]
    fn rows_reach_the_newest_format_whenever_a_crash_comes() {
        const ROWS: usize = 3 * PAGE + 7;
        for commits in 0..12 {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("store")).unwrap();
            let mut home = Home::open(dir.path(), "sled").unwrap();
            assert_eq!(home.description.format, OLD);
            let store = Dying { rows: MemoryStore::default(), left: AtomicUsize::new(0) };
            let mut batch = Batch::default();
            for n in 0..ROWS {
                batch.put(format!("a/{n:05}").into_bytes(), n.to_string().into_bytes());
            }
            batch.put(b"c/other".to_vec(), b"untouched".to_vec());
            store.rows.commit(&batch).unwrap();
            store.left.store(commits, Atomic::SeqCst);
            let first = run_steps(&mut home, &store, TEST_STEPS, NEW);
            assert_eq!(first.is_ok(), commits >= 9, "{commits} commits: {first:?}");
            drop(home);
            store.left.store(usize::MAX, Atomic::SeqCst);
            let mut home = reopened(dir.path());
            run_steps(&mut home, &store, TEST_STEPS, NEW).unwrap();
            assert_eq!(home.description.format, NEW);
            let rows = store.range(b"\0", b"\xff", usize::MAX, Order::Ascending).unwrap();
            assert_eq!(rows.len(), ROWS + 1, "{commits} commits");
            for (n, (key, value)) in rows[..ROWS].iter().enumerate() {
                assert_eq!((key, value), (&format!("b/{n:05}").into_bytes(), &format!("v{n}").into_bytes()));
            }
        }
    }

    /// As [`Home::open`], which knows nothing of the formats that this test makes up.
    fn reopened(dir: &std::path::Path) -> Home {
        let format = super::super::home::read(dir).unwrap().unwrap().format;
        let file = dir.join("store.json");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace(&format!("\"format\": {format}"), "\"format\": 1")).unwrap();
        let mut home = Home::open(dir, "sled").unwrap();
        home.description.format = format;
        home
    }

    #[test]
    fn there_is_a_step_to_every_format() {
        let reached: Vec<u32> = STEPS.iter().map(|step| step.to).collect();
        assert_eq!(reached, (2..=FORMAT).collect::<Vec<_>>());
    }

    #[test]
    fn without_a_step_the_store_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("store")).unwrap();
        let mut home = Home::open(dir.path(), "sled").unwrap();
        let refused = run_steps(&mut home, &MemoryStore::default(), &[], NEW);
        assert!(matches!(refused, Err(StoreError::Refused(_))));
        assert_eq!(home.description.format, OLD);
    }
}
