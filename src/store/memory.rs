//! The backend of tests and trials: a sorted map behind a lock. Nothing survives the process.

use std::collections::BTreeMap;
use std::ops::Bound;

use parking_lot::RwLock;

use super::{Batch, Op, Order, Row, Store, StoreError, check};

#[derive(Default)]
pub struct MemoryStore {
    rows: RwLock<BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl Store for MemoryStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.rows.read().get(key).cloned())
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize, order: Order) -> Result<Vec<Row>, StoreError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let rows = self.rows.read();
        let within = rows.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)));
        let copy = |(k, v): (&Vec<u8>, &Vec<u8>)| (k.clone(), v.clone());
        Ok(match order {
            Order::Ascending => within.take(limit).map(copy).collect(),
            Order::Descending => within.rev().take(limit).map(copy).collect(),
        })
    }

    fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
        let mut rows = self.rows.write();
        check(batch, |key| Ok(rows.get(key).cloned()))?;
        for op in &batch.ops {
            match op {
                Op::Put { key, value } => rows.insert(key.clone(), value.clone()),
                Op::Delete { key } => rows.remove(key),
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn conforms() {
        super::super::conformance::run(&super::MemoryStore::default());
    }
}
