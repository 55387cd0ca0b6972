//! What every backend must do, as one suite that all of them run.

use super::{Batch, Order, Store, StoreError, prefix_end};

fn put(store: &dyn Store, key: &[u8], value: &[u8]) {
    let mut batch = Batch::default();
    batch.put(key.to_vec(), value.to_vec());
    store.commit(&batch).unwrap();
}

fn keys(store: &dyn Store, from: &[u8], to: &[u8], limit: usize, order: Order) -> Vec<Vec<u8>> {
    store.range(from, to, limit, order).unwrap().into_iter().map(|(k, _)| k).collect()
}

/// Runs the suite on an empty store.
pub fn run(store: &dyn Store) {
    reads_what_was_written(store);
    ranges_are_half_open_and_ordered(store);
    a_batch_is_all_or_nothing(store);
    compare_and_swap_has_one_winner(store);
    the_last_change_of_a_key_wins(store);
    large_values_are_refused_whole(store);
}

fn reads_what_was_written(store: &dyn Store) {
    assert_eq!(store.get(b"t1/none").unwrap(), None);
    put(store, b"t1/a", b"");
    put(store, b"t1/b", &[0, 255, 7]);
    assert_eq!(store.get(b"t1/a").unwrap(), Some(vec![]));
    assert_eq!(store.get(b"t1/b").unwrap(), Some(vec![0, 255, 7]));
    let mut batch = Batch::default();
    batch.delete(b"t1/a".to_vec()).delete(b"t1/never-there".to_vec());
    store.commit(&batch).unwrap();
    assert_eq!(store.get(b"t1/a").unwrap(), None);
}

fn ranges_are_half_open_and_ordered(store: &dyn Store) {
    for key in [&b"t2/c"[..], b"t2/a", b"t2/b", b"t3/a", b"t2/\xff\xff"] {
        put(store, key, b"v");
    }
    let end = prefix_end(b"t2/");
    assert_eq!(keys(store, b"t2/", &end, 10, Order::Ascending), [&b"t2/a"[..], b"t2/b", b"t2/c", b"t2/\xff\xff"]);
    assert_eq!(keys(store, b"t2/", &end, 2, Order::Descending), [&b"t2/\xff\xff"[..], b"t2/c"]);
    assert_eq!(keys(store, b"t2/a", b"t2/c", 10, Order::Ascending), [b"t2/a", b"t2/b"]);
    assert!(keys(store, b"t2/c", b"t2/a", 10, Order::Ascending).is_empty());
    assert!(keys(store, b"t2/a", b"t2/a", 10, Order::Ascending).is_empty());
}

fn a_batch_is_all_or_nothing(store: &dyn Store) {
    put(store, b"t4/taken", b"1");
    let mut batch = Batch::default();
    batch.put(b"t4/new".to_vec(), b"x".to_vec()).delete(b"t4/taken".to_vec()).require_absent(b"t4/taken".to_vec());
    assert_eq!(store.commit(&batch), Err(StoreError::Conflict { key: b"t4/taken".to_vec() }));
    assert_eq!(store.get(b"t4/new").unwrap(), None);
    assert_eq!(store.get(b"t4/taken").unwrap(), Some(b"1".to_vec()));
}

fn compare_and_swap_has_one_winner(store: &dyn Store) {
    put(store, b"t5/n", b"0");
    let swap = |to: &[u8]| {
        let mut batch = Batch::default();
        batch.put(b"t5/n".to_vec(), to.to_vec()).require_equal(b"t5/n".to_vec(), b"0".to_vec());
        store.commit(&batch)
    };
    assert_eq!(swap(b"1"), Ok(()));
    assert!(matches!(swap(b"2"), Err(StoreError::Conflict { .. })));
    assert_eq!(store.get(b"t5/n").unwrap(), Some(b"1".to_vec()));
}

fn the_last_change_of_a_key_wins(store: &dyn Store) {
    let mut batch = Batch::default();
    batch.put(b"t6/k".to_vec(), b"1".to_vec()).delete(b"t6/k".to_vec()).put(b"t6/k".to_vec(), b"2".to_vec());
    store.commit(&batch).unwrap();
    assert_eq!(store.get(b"t6/k").unwrap(), Some(b"2".to_vec()));
}

fn large_values_are_refused_whole(store: &dyn Store) {
    let mut batch = Batch::default();
    batch.put(b"t7/small".to_vec(), b"1".to_vec()).put(b"t7/big".to_vec(), vec![0; super::MAX_VALUE_BYTES + 1]);
    assert!(matches!(store.commit(&batch), Err(StoreError::TooLarge { .. })));
    assert_eq!(store.get(b"t7/small").unwrap(), None);
    put(store, b"t7/fits", &vec![7; super::MAX_VALUE_BYTES]);
    assert_eq!(store.get(b"t7/fits").unwrap().map(|v| v.len()), Some(super::MAX_VALUE_BYTES));
}
