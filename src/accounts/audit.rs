//! Acts and their records: the one way in which the services write to the audit trail.
//!
//! Owns the order: first whether the trail can be written, then the act, then its record on disk, then the answer. A new act
//! is one call of [`Accounts::audited`]. Never decides whether an act is allowed.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Value, json};

use super::Accounts;
use super::addresses::StoredRule;
use super::staff::StaffIdentity;
use super::users::{MAX_PAGE_SIZE, Page};
use crate::actors::audit::{Action, Actor, Audit, Origin, Outcome, Query, Record, Target};
use crate::domain::session::Staff;
use crate::error::Reject;
use crate::store::tables;

/// What an act changed: a field, and what it was and is. Texts that users write of themselves are named, not repeated.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub field: String,
    pub from: Value,
    pub to: Value,
}

impl Change {
    pub fn new(field: impl Into<String>, from: impl Into<Value>, to: impl Into<Value>) -> Self {
        Self { field: field.into(), from: from.into(), to: to.into() }
    }
}

/// The detail `changes` of a record.
pub fn changes(list: &[Change]) -> Value {
    list.iter().map(|change| (change.field.clone(), json!({"from": change.from, "to": change.to}))).collect()
}

impl From<&StaffIdentity> for Actor {
    fn from(who: &StaffIdentity) -> Self {
        who.id.map_or_else(Self::operator, |id| Self::staff(id.0, &who.username))
    }
}

impl From<&StoredRule> for Target {
    fn from(rule: &StoredRule) -> Self {
        Self::new("ip_rule", Some(rule.id), Some(&rule.network.to_string()))
    }
}

/// A record of what was refused, in the words of the answer.
fn refused(record: Record, reject: &Reject) -> Record {
    let outcome = match reject.status() {
        401 | 403 | 423 => Outcome::Denied,
        _ => Outcome::Failed,
    };
    record.refused(outcome, reject.code())
}

impl Accounts {
    pub fn audit(&self) -> &Audit {
        &self.audit
    }

    /// Does an act and has its record on disk before the act is answered. While the trail cannot be written, nothing is
    /// done. Goes on to the end when the caller is dropped: a client that leaves must not leave an act without its record.
    ///
    /// `record` says who, from where and what; `tell` adds what only the result shows. What a stranger was refused is
    /// counted instead of written each time, and a call of his that made no sense is not recorded.
    ///
    /// # Errors
    /// Those of the act; [`Reject::StoreUnavailable`] when the record could not be written.
    pub async fn audited<T, F>(
        self: &Arc<Self>,
        record: Record,
        act: impl FnOnce(Arc<Self>) -> F,
        tell: impl FnOnce(&T, Record) -> Record + Send + 'static,
    ) -> Result<T, Reject>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Reject>> + Send + 'static,
    {
        self.audit.ready().map_err(|_| Reject::StoreUnavailable)?;
        let (accounts, running) = (self.clone(), act(self.clone()));
        let task = tokio::spawn(async move {
            let done = running.await;
            let record = match &done {
                Ok(value) => tell(value, record),
                Err(reject) if record.is_anonymous() => {
                    accounts.note_refusal(record, reject);
                    return done;
                }
                Err(reject) => refused(record, reject),
            };
            match accounts.audit.write(record).await {
                Ok(()) => done,
                Err(_) => Err(Reject::StoreUnavailable),
            }
        });
        task.await.unwrap_or(Err(Reject::Internal))
    }

    /// Records that a stranger was refused, counted with others of the same kind. Calls that made no sense are left out.
    pub fn note_refusal(&self, record: Record, reject: &Reject) {
        if matches!(reject.status(), 401 | 403 | 409 | 423) {
            self.audit.note_folded(refused(record, reject));
        }
    }

    /// Records that somebody we know was refused.
    pub fn note_denial(&self, record: Record, reject: &Reject) {
        self.audit.note(refused(record, reject));
    }

    /// Records that wrong passwords have locked an account. `known` is its number, when there is such an account.
    pub(super) fn note_lockout(&self, space: &'static str, known: Option<u64>, address: IpAddr) {
        let origin = Origin { address: Some(address), request: None };
        let target = known.map(|id| Target::new(space, Some(id), None));
        self.audit.note_folded(Record::of(Action::AccountLocked).from(origin).on_any(target));
    }

    /// The user behind a name that somebody tries to log in with. A name that nobody has is not recorded: it may be a
    /// password that went into the wrong field.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`].
    pub fn login_target(&self, identifier: &str) -> Result<Option<Target>, Reject> {
        let user = self.live_user(self.find_user(identifier)?)?;
        Ok(user.map(|row| Target::from(&row.value)))
    }

    /// As [`Accounts::login_target`], for staff.
    ///
    /// # Errors
    /// As [`Accounts::login_target`].
    pub fn staff_login_target(&self, username: &str) -> Result<Option<Target>, Reject> {
        let Some(id) = self.find_staff(username)? else { return Ok(None) };
        Ok(self.load::<Staff>(tables::staff(id))?.map(|row| Target::from(&row.value)))
    }

    /// One page of the newest records, newest first, as JSON texts.
    ///
    /// # Errors
    /// [`Reject::Internal`] when the reading broke off.
    pub async fn security_log(&self, query: Query, page: usize, page_size: usize) -> Result<Page<String>, Reject> {
        let page = page.max(1);
        let page_size = page_size.clamp(1, MAX_PAGE_SIZE);
        if self.audit.flush().await.is_err() {
            tracing::warn!("security logs are shown without those that wait for the disk");
        }
        let audit = self.audit.clone();
        let read = move || audit.page(&query, page as u64, page_size);
        let found = tokio::task::spawn_blocking(read).await.map_err(|_| Reject::Internal)?;
        if found.unreadable > 0 {
            tracing::error!(
                records = found.unreadable,
                "records of the audit trail cannot be read; see `audit verify`"
            );
        }
        Ok(Page { items: found.items, page, page_size, total: found.total })
    }
}
