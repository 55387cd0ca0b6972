//! What strangers do over and over: written once, then counted.
//!
//! Anybody can fail to log in as often as he likes, and must not fill the disk with it. Of equal acts (the same act, from
//! the same address, against the same account) the first in a minute is recorded at once; the others are counted, and the
//! minute ends with one record of how many there were. Of more than [`MAX_SUBJECTS`] kinds in a minute, the rest are only
//! counted by act. Owns these counts. Never drops one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use super::record::{Action, Record, Target};
use crate::clock::Monotonic;
use crate::domain::addresses::customer_network;

/// Kinds of acts that are told apart within a minute: with two records each, at most some 250 KB a minute.
const MAX_SUBJECTS: usize = 256;
const WINDOW: Duration = Duration::from_secs(60);

type Subject = (Action, Option<IpAddr>, Option<(&'static str, Option<u64>)>);

#[derive(Default)]
pub(super) struct Flood {
    ends: Option<Monotonic>,
    /// The last record of each kind that was held back, and how many were.
    subjects: HashMap<Subject, (Option<Record>, u64)>,
    others: Vec<(Action, u64)>,
}

impl Flood {
    /// The record, if it is to be written; else it is counted.
    pub(super) fn admit(&mut self, record: Record, now: Monotonic) -> Option<Record> {
        self.ends.get_or_insert(now.plus(WINDOW));
        let subject: Subject =
            (record.action, record.origin.address.map(customer_network), record.target.as_ref().map(Target::key));
        if let Some((held, count)) = self.subjects.get_mut(&subject) {
            *held = Some(record);
            *count += 1;
            return None;
        }
        if self.subjects.len() < MAX_SUBJECTS {
            self.subjects.insert(subject, (None, 0));
            return Some(record);
        }
        match self.others.iter_mut().find(|(action, _)| *action == record.action) {
            Some((_, count)) => *count += 1,
            None => self.others.push((record.action, 1)),
        }
        None
    }

    /// The records of a minute that is over, or of the present one at the end of all.
    pub(super) fn take_counted(&mut self, now: Monotonic, at_once: bool) -> Vec<Record> {
        if !at_once && self.ends.is_none_or(|ends| now < ends) {
            return Vec::new();
        }
        self.ends = None;
        let held = std::mem::take(&mut self.subjects).into_values();
        let held = held.filter_map(|(record, count)| Some(record?.times(count).with("within_seconds", 60)));
        let others = std::mem::take(&mut self.others).into_iter().map(|(action, count)| {
            let record = Record::of(action).by(super::Actor::anonymous()).refused(super::Outcome::Denied, "FLOOD");
            record.times(count).with("within_seconds", 60).with("from", "many addresses")
        });
        held.chain(others).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Actor, Origin, Outcome};
    use super::*;

    fn failure(address: &str, user: u64) -> Record {
        let origin = Origin { address: Some(address.parse().unwrap()), request: None };
        let record = Record::of(Action::LoginFailed).by(Actor::anonymous()).from(origin).on(Target::user_id(user));
        record.refused(Outcome::Denied, "UNAUTHENTICATED")
    }

    fn second(n: u64) -> Monotonic {
        Monotonic(n * 1_000_000_000 + 1)
    }

    #[test]
    fn the_first_is_written_and_the_rest_of_the_minute_counted() {
        let mut flood = Flood::default();
        assert!(flood.admit(failure("192.0.2.1", 1), second(0)).is_some());
        assert!((1..40).all(|n| flood.admit(failure("192.0.2.1", 1), second(n)).is_none()));
        assert!(flood.admit(failure("192.0.2.1", 2), second(40)).is_some(), "another account");
        assert!(flood.admit(failure("192.0.2.2", 1), second(40)).is_some(), "another address");
        assert!(flood.take_counted(second(59), false).is_empty());
        let counted = flood.take_counted(second(60), false);
        assert_eq!(counted.iter().map(|record| record.count).collect::<Vec<_>>(), [39]);
        assert!(flood.admit(failure("192.0.2.1", 1), second(61)).is_some(), "a new minute");
        assert!(flood.take_counted(second(62), true).is_empty());
    }

    #[test]
    fn a_flood_from_everywhere_is_bounded_and_adds_up() {
        let mut flood = Flood::default();
        let addresses = (0..100_000u32).map(|n| std::net::Ipv4Addr::from(n).to_string());
        let written = addresses.filter(|a| flood.admit(failure(a, 1), second(1)).is_some()).count();
        assert_eq!(written, MAX_SUBJECTS);
        let counted = flood.take_counted(second(1), true);
        assert_eq!(counted.iter().map(|record| record.count).sum::<u64>() + written as u64, 100_000);
        assert_eq!(counted.len(), 1);
    }
}
