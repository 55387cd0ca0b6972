//! What is newer than the backend, and reading both as one map.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::Arc;

use super::super::{Order, Row, Store, StoreError};

/// Changes that the backend does not have yet; `None` is a deletion.
pub(super) type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Fewest rows asked of the backend at once while a range is put together.
const PAGE: usize = 64;

/// What is newer than the backend.
#[derive(Default)]
pub(super) struct View {
    pub(super) active: Changes,
    pub(super) frozen: Option<Frozen>,
}

/// Changes on their way to the backend.
#[derive(Clone)]
pub(super) struct Frozen {
    pub(super) changes: Arc<Changes>,
    /// The log's files that may be used again once the changes are there, oldest first.
    pub(super) files: Vec<PathBuf>,
    /// The last record that is among them.
    pub(super) upto: u64,
}

type Newer<'a> = Box<dyn Iterator<Item = (&'a Vec<u8>, &'a Option<Vec<u8>>)> + 'a>;

impl View {
    pub(super) fn get(&self, key: &[u8], backend: &dyn Store) -> Result<Option<Vec<u8>>, StoreError> {
        let frozen = || self.frozen.as_ref().and_then(|frozen| frozen.changes.get(key));
        match self.active.get(key).or_else(frozen) {
            Some(value) => Ok(value.clone()),
            None => backend.get(key),
        }
    }

    /// Reads no more of either side than the answer needs: whoever pages through the whole store must not pay for all that
    /// is new on every page.
    pub(super) fn range(
        &self,
        from: &[u8],
        to: &[u8],
        limit: usize,
        order: Order,
        backend: &dyn Store,
    ) -> Result<Vec<Row>, StoreError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let mut newer = self.newer(from, to, order).peekable();
        let mut older = Older { backend, from: from.to_vec(), to: to.to_vec(), order, page: Vec::new(), ended: false };
        let comes_first = |a: &[u8], b: &[u8]| match order {
            Order::Ascending => a < b,
            Order::Descending => a > b,
        };
        let mut rows = Vec::new();
        while rows.len() < limit {
            let next_older = older.peek(limit - rows.len())?;
            let Some((key, value)) = newer.peek() else {
                let Some(row) = older.take() else { break };
                rows.push(row);
                continue;
            };
            match next_older {
                Some((older_key, _)) if comes_first(older_key, key) => rows.extend(older.take()),
                same_or_later => {
                    if same_or_later.is_some_and(|(older_key, _)| older_key == *key) {
                        older.take();
                    }
                    rows.extend(value.as_ref().map(|value| (key.to_vec(), value.clone())));
                    newer.next();
                }
            }
        }
        Ok(rows)
    }

    /// The changes in a range, each key once, the newest.
    fn newer<'a>(&'a self, from: &[u8], to: &[u8], order: Order) -> Newer<'a> {
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        let active = self.active.range::<[u8], _>(bounds);
        let Some(frozen) = &self.frozen else {
            return match order {
                Order::Ascending => Box::new(active),
                Order::Descending => Box::new(active.rev()),
            };
        };
        let frozen = frozen.changes.range::<[u8], _>(bounds);
        match order {
            Order::Ascending => Box::new(merge(active, frozen, |a, b| a < b)),
            Order::Descending => Box::new(merge(active.rev(), frozen.rev(), |a, b| a > b)),
        }
    }
}

/// Two sorted runs as one; of equal keys, the first run's.
fn merge<'a>(
    first: impl Iterator<Item = (&'a Vec<u8>, &'a Option<Vec<u8>>)>,
    second: impl Iterator<Item = (&'a Vec<u8>, &'a Option<Vec<u8>>)>,
    comes_first: impl Fn(&Vec<u8>, &Vec<u8>) -> bool,
) -> impl Iterator<Item = (&'a Vec<u8>, &'a Option<Vec<u8>>)> {
    let (mut first, mut second) = (first.peekable(), second.peekable());
    std::iter::from_fn(move || {
        let Some((a, _)) = first.peek() else { return second.next() };
        match second.peek() {
            Some((b, _)) if comes_first(b, a) => second.next(),
            Some((b, _)) if b == a => {
                second.next();
                first.next()
            }
            _ => first.next(),
        }
    })
}

/// The backend's rows of a range, page by page. The first row in order is the last of `page`.
struct Older<'a> {
    backend: &'a dyn Store,
    from: Vec<u8>,
    to: Vec<u8>,
    order: Order,
    page: Vec<Row>,
    ended: bool,
}

impl Older<'_> {
    fn peek(&mut self, wanted: usize) -> Result<Option<&Row>, StoreError> {
        if self.page.is_empty() && !self.ended {
            let asked = wanted.max(PAGE);
            self.page = self.backend.range(&self.from, &self.to, asked, self.order)?;
            self.ended = self.page.len() < asked;
            if let Some((last, _)) = self.page.last() {
                match self.order {
                    // The least key that is greater.
                    Order::Ascending => self.from = [last.as_slice(), &[0]].concat(),
                    Order::Descending => self.to.clone_from(last),
                }
            }
            self.page.reverse();
        }
        Ok(self.page.last())
    }

    fn take(&mut self) -> Option<Row> {
        self.page.pop()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, vec};
    use proptest::option;
    use proptest::prelude::*;

    use super::super::super::Batch;
    use super::super::super::memory::MemoryStore;
    use super::*;

    fn keys() -> impl Strategy<Value = Vec<u8>> {
        vec(0u8..4, 0..4)
    }

    proptest! {
        #[test]
        fn a_range_over_three_layers_is_that_of_one_map(
            old in btree_map(keys(), vec(any::<u8>(), 0..3), 0..200),
            frozen in btree_map(keys(), option::of(vec(any::<u8>(), 0..3)), 0..40),
            active in btree_map(keys(), option::of(vec(any::<u8>(), 0..3)), 0..40),
            from in keys(), to in keys(), limit in 0usize..100, descending in any::<bool>(),
        ) {
            let backend = MemoryStore::default();
            let mut batch = Batch::default();
            for (key, value) in &old {
                batch.put(key.clone(), value.clone());
            }
            backend.commit(&batch).unwrap();
            let mut whole = old;
            for (key, value) in frozen.iter().chain(&active) {
                match value {
                    Some(value) => whole.insert(key.clone(), value.clone()),
                    None => whole.remove(key),
                };
            }
            let view = View {
                active,
                frozen: Some(Frozen { changes: Arc::new(frozen), files: Vec::new(), upto: 0 }),
            };
            let order = if descending { Order::Descending } else { Order::Ascending };
            let mut expected: Vec<Row> = whole.into_iter().filter(|(key, _)| *key >= from && *key < to).collect();
            if descending {
                expected.reverse();
            }
            expected.truncate(limit);
            prop_assert_eq!(view.range(&from, &to, limit, order, &backend).unwrap(), expected);
        }
    }
}
