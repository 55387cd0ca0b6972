//! Checking the books: every user, every meter.
//!
//! Owns what "adds up" means for a row on disk, and says who is off and by how much. Reads only; a user who changes while he
//! is looked at is looked at again before anything is said of him.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::ledger::{Account, AccountRow, Meter};
use crate::domain::ids::UserId;
use crate::domain::meters::Micro;
use crate::domain::user::User;
use crate::store::{Order, Row, Store, StoreError, prefix_end, tables};

/// Commits wait for a page under way, so it is a small one.
const PAGE: usize = 200;
/// Problems that are kept to be shown; all are counted.
pub const MAX_SHOWN: usize = 1_000;

/// One thing that is off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    pub user: u64,
    /// Unless his row cannot be read.
    pub username: Option<String>,
    pub meter: Option<String>,
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user {}", self.user)?;
        if let Some(name) = &self.username {
            write!(f, " ({name})")?;
        }
        if let Some(meter) = &self.meter {
            write!(f, ", {meter}")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// What a check has found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub users: u64,
    pub meters: u64,
    pub problems: u64,
    /// The first of them.
    pub shown: Vec<Problem>,
}

impl Report {
    fn add(&mut self, problem: Problem) {
        self.problems += 1;
        if self.shown.len() < MAX_SHOWN {
            self.shown.push(problem);
        }
    }
}

/// What is wrong with a meter's numbers.
fn faults(meter: &Meter) -> Vec<String> {
    let mut faults = Vec::new();
    for (part, amount) in [("balance", meter.balance), ("held", meter.held), ("spent", meter.spent)] {
        if amount < Micro::ZERO {
            faults.push(format!("{part} is {amount}"));
        }
    }
    // Wider than the parts, so that no sum of them overflows.
    let parts = [meter.balance, meter.held, meter.spent].iter().map(|part| i128::from(part.0)).sum::<i128>();
    let off = parts - i128::from(meter.granted.0);
    if off != 0 {
        let by =
            i64::try_from(off.abs()).map_or_else(|_| format!("{} millionths", off.abs()), |by| Micro(by).to_string());
        let way = if off > 0 { "more" } else { "less" };
        faults.push(format!(
            "{by} {way} than was granted: balance {} + held {} + spent {} against {}",
            meter.balance, meter.held, meter.spent, meter.granted
        ));
    }
    faults
}

/// Checks every user's account. `progress` hears now and then how many users are done.
///
/// # Errors
/// The store cannot be read; what is in a row is never an error but a [`Problem`].
pub fn verify(store: &dyn Store, mut progress: impl FnMut(u64)) -> Result<Report, StoreError> {
    let mut report = Report::default();
    let mut users = Walk::new(store, tables::USERS);
    let mut accounts = Walk::new(store, tables::METERS);
    loop {
        // Both run in the order of the ids; whoever is behind goes on.
        let id = match (users.peek()?, accounts.peek()?) {
            (None, None) => break,
            (Some(user), None) => user,
            (None, Some(account)) => account,
            (Some(user), Some(account)) => user.min(account),
        };
        let user = users.take_if(id);
        let account = accounts.take_if(id);
        let mut found = Vec::new();
        let meters = check(id, user.as_deref(), account.as_deref(), &mut found);
        if !found.is_empty() {
            // Pages of one and of the other are not of one moment; one row after the other is.
            let id = UserId(id);
            let account = store.get(&tables::meters(id))?;
            let user = store.get(&tables::user(id))?;
            found.clear();
            check(id.0, user.as_deref(), account.as_deref(), &mut found);
        }
        found.into_iter().for_each(|problem| report.add(problem));
        report.users += 1;
        report.meters += meters;
        if report.users.is_multiple_of(PAGE as u64) {
            progress(report.users);
        }
    }
    progress(report.users);
    Ok(report)
}

fn why(error: &StoreError) -> String {
    match error {
        StoreError::Corrupt(why) => why.clone(),
        other => other.to_string(),
    }
}

/// Checks one user's rows; answers how many meters he has.
fn check(id: u64, user: Option<&[u8]>, account: Option<&[u8]>, found: &mut Vec<Problem>) -> u64 {
    let mut username = None;
    let mut add = |username: &Option<String>, meter: Option<String>, what: String| {
        found.push(Problem { user: id, username: username.clone(), meter, what });
    };
    match user.map(tables::decode::<User>) {
        Some(Ok(user)) => {
            username = Some(user.username.to_string());
            if user.id.0 != id {
                add(&username, None, format!("his row says that he is user {}", user.id));
            }
        }
        Some(Err(error)) => add(&username, None, format!("his row cannot be read: {}", why(&error))),
        None if account.is_some() => add(&username, None, "has an account, but there is no such user".into()),
        None => {}
    }
    let account = match account.map(tables::decode::<AccountRow>) {
        Some(Ok(row)) => Account::from_row(row),
        Some(Err(error)) => {
            add(&username, None, format!("his account cannot be read: {}", why(&error)));
            return 0;
        }
        None => {
            if user.is_some() {
                add(&username, None, "has no account".into());
            }
            return 0;
        }
    };
    let mut meters = 0;
    for (name, meter) in account.meters() {
        meters += 1;
        for fault in faults(meter) {
            add(&username, Some(name.to_string()), fault);
        }
        if account.meters().filter(|(other, _)| *other == name).count() > 1 {
            add(&username, Some(name.to_string()), "is there more than once".into());
        }
    }
    meters
}

/// The rows of a prefix whose keys end in an id, page by page.
struct Walk<'a> {
    store: &'a dyn Store,
    from: Vec<u8>,
    end: Vec<u8>,
    page: std::vec::IntoIter<Row>,
    next: Option<(u64, Vec<u8>)>,
    ended: bool,
}

impl<'a> Walk<'a> {
    fn new(store: &'a dyn Store, prefix: &[u8]) -> Self {
        let page = Vec::new().into_iter();
        Self { store, from: prefix.to_vec(), end: prefix_end(prefix), page, next: None, ended: false }
    }

    fn peek(&mut self) -> Result<Option<u64>, StoreError> {
        while self.next.is_none() && !self.ended {
            let Some((key, value)) = self.page.next() else {
                let rows = self.store.range(&self.from, &self.end, PAGE, Order::Ascending)?;
                match rows.last() {
                    Some((last, _)) => self.from = [last.as_slice(), &[0]].concat(),
                    None => self.ended = true,
                }
                self.page = rows.into_iter();
                continue;
            };
            self.next = tables::trailing_id(&key).map(|id| (id, value));
        }
        Ok(self.next.as_ref().map(|(id, _)| *id))
    }

    fn take_if(&mut self, id: u64) -> Option<Vec<u8>> {
        self.next.take_if(|(next, _)| *next == id).map(|(_, row)| row)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::store::Batch;
    use crate::store::memory::MemoryStore;

    fn user(id: u64) -> Value {
        json!({
            "id": id, "username": format!("user{id}"), "name": "N", "email": format!("u{id}@example.com"),
            "user_type": "Personal", "about_me": "", "hobbies": "", "plan": "free", "status": "active",
            "suspended_reason": null, "email_verified": false, "password_hash": null, "created_at": 0, "last_login": null
        })
    }

    fn meter(balance: i64, held: i64, spent: i64, granted: i64) -> Value {
        json!({"b": balance, "h": held, "s": spent, "g": granted, "r": 0, "p": "never", "l": 0})
    }

    fn store(users: &[(u64, Value)], accounts: &[(u64, Value)]) -> MemoryStore {
        let store = MemoryStore::default();
        let mut batch = Batch::default();
        for (id, row) in users {
            batch.put(tables::user(UserId(*id)), tables::encode(row).unwrap());
        }
        for (id, row) in accounts {
            batch.put(tables::meters(UserId(*id)), tables::encode(&json!({"meters": row})).unwrap());
        }
        store.commit(&batch).unwrap();
        store
    }

    fn found(store: &MemoryStore) -> (Report, Vec<String>) {
        let report = verify(store, |_| {}).unwrap();
        let lines = report.shown.iter().map(Problem::to_string).collect();
        (report, lines)
    }

    #[test]
    fn sound_books_are_sound() {
        let account = json!([["conversations", meter(7, 1, 2, 10)], ["credits", meter(0, 0, 5_000_000, 5_000_000)]]);
        let users: Vec<(u64, Value)> = (1..=2_500).map(|id| (id, user(id))).collect();
        let accounts: Vec<(u64, Value)> = (1..=2_500).map(|id| (id, account.clone())).collect();
        let (report, lines) = found(&store(&users, &accounts));
        assert!(lines.is_empty(), "{}", lines[0]);
        assert_eq!((report.users, report.meters, report.problems), (2_500, 5_000, 0));
    }

    #[test]
    fn whoever_is_off_is_named_with_meter_and_amount() {
        let sound = json!([["conversations", meter(10, 0, 0, 10)]]);
        let store = store(
            &[(1, user(1)), (2, user(2)), (3, user(3)), (4, user(4)), (5, user(7)), (6, user(6))],
            &[
                (1, json!([["credits", meter(1_500_000, 0, 2_000_000, 3_000_000)]])),
                (2, json!([["conversations", meter(10, 0, 0, 10)], ["credits", meter(-2_000_000, 0, 2_000_000, 0)]])),
                (3, json!([["credits", meter(i64::MAX, i64::MAX, 0, 0)]])),
                (4, json!([["credits", meter(0, 0, 0, 0)], ["credits", meter(0, 0, 0, 0)]])),
                (5, sound.clone()),
                (9, sound),
            ],
        );
        let (report, lines) = found(&store);
        assert_eq!(report.users, 7);
        assert_eq!(
            lines,
            [
                "user 1 (user1), credits: 0.5 more than was granted: balance 1.5 + held 0 + spent 2 against 3",
                "user 2 (user2), credits: balance is -2",
                "user 3 (user3), credits: 18446744073709551614 millionths more than was granted: balance \
                 9223372036854.775807 + held 9223372036854.775807 + spent 0 against 0",
                "user 4 (user4), credits: is there more than once",
                "user 4 (user4), credits: is there more than once",
                "user 5 (user7): his row says that he is user 7",
                "user 6 (user6): has no account",
                "user 9: has an account, but there is no such user",
            ]
        );
    }

    #[test]
    fn a_row_that_cannot_be_read_does_not_end_the_check() {
        let store = store(
            &[(1, user(1)), (2, user(2))],
            &[(1, json!([["credits", meter(1, 0, 0, 1)]])), (2, json!([["credits", meter(2, 0, 0, 1)]]))],
        );
        let mut batch = Batch::default();
        let mut damaged = store.get(&tables::meters(UserId(1))).unwrap().unwrap();
        *damaged.last_mut().unwrap() ^= 1;
        batch.put(tables::meters(UserId(1)), damaged);
        store.commit(&batch).unwrap();
        let (report, lines) = found(&store);
        assert_eq!((report.users, report.problems), (2, 2));
        assert!(lines[0].starts_with("user 1 (user1): his account cannot be read"), "{}", lines[0]);
        assert!(lines[1].starts_with("user 2 (user2), credits: 0.000001 more"), "{}", lines[1]);
    }
}
