//! The roster: changes of staff by staff.
//!
//! Owns the rules that keep it sound: nobody changes his own role or removes himself, admins manage only those below them,
//! and there is always a superadmin who can log in. Who loses a role has lost it at his next call, because the row is read
//! on each; who gets a new password or is let go loses his sessions.

use super::fields::{same_address, staff_faults};
use super::passwords::{Password, Rule};
use super::staff::StaffIdentity;
use super::users::{MAX_PAGE_SIZE, Page};
use super::{Accounts, MAX_TRIES, too_busy};
use crate::domain::ids::StaffId;
use crate::domain::session::{Principal, Staff, StaffRole};
use crate::error::Reject;
use crate::store::{Batch, Order, StoreError, prefix_end, tables};

/// The most staff there can be.
const MAX_STAFF: usize = 10_000;

/// What is to change of a member of the staff; what is `None` stays.
#[derive(Debug, Default)]
pub struct StaffUpdate {
    pub name: Option<String>,
    pub email: Option<String>,
    pub role: Option<StaffRole>,
    pub active: Option<bool>,
}

impl Accounts {
    pub(super) fn all_staff(&self) -> Result<Vec<Staff>, Reject> {
        let read = || {
            let rows = self.store().range(tables::STAFF, &prefix_end(tables::STAFF), MAX_STAFF, Order::Ascending)?;
            rows.iter().map(|(_, row)| tables::decode::<Staff>(row)).collect::<Result<Vec<_>, StoreError>>()
        };
        read().map_err(|error| self.failed(&error))
    }

    /// One page of the staff, by number.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`].
    pub fn list_staff(&self, page: usize, page_size: usize) -> Result<Page<Staff>, Reject> {
        let (page, page_size) = (page.max(1), page_size.clamp(1, MAX_PAGE_SIZE));
        let all = self.all_staff()?;
        let total = all.len() as u64;
        let items = all.into_iter().skip((page - 1).saturating_mul(page_size)).take(page_size).collect();
        Ok(Page { items, page, page_size, total })
    }

    /// # Errors
    /// [`Reject::NotFound`].
    pub fn staff(&self, id: StaffId) -> Result<Staff, Reject> {
        Ok(self.load::<Staff>(tables::staff(id))?.ok_or(Reject::NotFound)?.value)
    }

    /// Changes a member of the staff.
    ///
    /// # Errors
    /// [`Reject::Forbidden`] for one's own role, for staff that is not below, and for a role that may not be given;
    /// [`Reject::Conflict`] for the last superadmin and for another member's email; [`Reject::Invalid`], [`Reject::NotFound`].
    pub async fn update_staff(&self, by: &StaffIdentity, id: StaffId, update: StaffUpdate) -> Result<Staff, Reject> {
        let faults = staff_faults(update.name.as_deref(), update.email.as_deref());
        if !faults.is_empty() {
            return Err(Reject::Invalid(faults));
        }
        self.change_staff(by, id, |staff, batch| {
            let itself = by.id == Some(id);
            if itself && (update.role.is_some_and(|role| role != staff.role) || update.active == Some(false)) {
                return Err(Reject::Forbidden("Nobody changes his own role"));
            }
            if update.role.is_some_and(|role| !by.role.may_manage(role) && role != staff.role) {
                return Err(Reject::Forbidden("Your role does not allow you to give this role"));
            }
            if let Some(name) = &update.name {
                staff.name.clone_from(name);
            }
            if let Some(email) = update.email.as_ref().filter(|email| !same_address(email, &staff.email)) {
                self.refuse_others_email(Some(id), email, batch)?;
            }
            if let Some(email) = &update.email {
                staff.email.clone_from(email);
            }
            staff.role = update.role.unwrap_or(staff.role);
            if let Some(active) = update.active {
                staff.active = active;
                if !active {
                    staff.session_epoch = staff.session_epoch.wrapping_add(1);
                }
            }
            Ok(())
        })
        .await
    }

    /// Gives a member of the staff a new password and ends his sessions.
    ///
    /// # Errors
    /// As [`Accounts::update_staff`].
    pub async fn reset_staff_password(
        &self,
        by: &StaffIdentity,
        id: StaffId,
        password: Password,
    ) -> Result<Staff, Reject> {
        let (name, email) = self.staff(id).map(|staff| (staff.username, staff.email))?;
        let faults = self.password_faults(&password, Rule::Composition, "new_password", &[&name, &email]);
        if !faults.is_empty() {
            return Err(Reject::Invalid(faults));
        }
        // Before the hash: what is refused anyway should not cost one.
        self.may_touch(by, &self.staff(id)?)?;
        let hash = self.passwords.enter()?.hash(password).await?;
        self.change_staff(by, id, |staff, _| {
            staff.password_hash.clone_from(&hash);
            staff.session_epoch = staff.session_epoch.wrapping_add(1);
            Ok(())
        })
        .await
    }

    fn may_touch(&self, by: &StaffIdentity, staff: &Staff) -> Result<(), Reject> {
        if by.id == Some(staff.id) || by.role.may_manage(staff.role) {
            Ok(())
        } else {
            Err(Reject::Forbidden("Your role does not allow this"))
        }
    }

    async fn change_staff(
        &self,
        by: &StaffIdentity,
        id: StaffId,
        mut edit: impl FnMut(&mut Staff, &mut Batch) -> Result<(), Reject> + Send,
    ) -> Result<Staff, Reject> {
        for _ in 0..MAX_TRIES {
            let row = self.load::<Staff>(tables::staff(id))?.ok_or(Reject::NotFound)?;
            self.may_touch(by, &row.value)?;
            let (mut staff, mut batch) = (row.value.clone(), row.unchanged());
            edit(&mut staff, &mut batch)?;
            let leads = |staff: &Staff| staff.active && staff.role == StaffRole::Superadmin;
            if leads(&row.value) && !leads(&staff) {
                // Two superadmins who remove each other at the same moment change this number both, and one is second.
                self.next_number("superadmins-changed", &mut batch)?;
                let others = self.all_staff()?.iter().filter(|other| other.id != id && leads(other)).count();
                if others == 0 {
                    return Err(Reject::Conflict("This is the last superadmin".into()));
                }
                // Whoever acts must still be what he was when he called.
                if let Some(actor) = by.id {
                    let acting = self.load::<Staff>(tables::staff(actor))?.ok_or(Reject::Unauthenticated)?;
                    if !leads(&acting.value) {
                        return Err(Reject::Forbidden("Your role does not allow this"));
                    }
                    batch.require_equal(acting.key, acting.raw);
                }
            }
            batch.put(row.key, super::encode_bounded(&staff)?);
            match self.committer.commit(batch).await {
                Ok(()) => return Ok(staff),
                Err(error) => self.judge_conflict(&error)?,
            }
        }
        Err(too_busy())
    }

    /// Ends a session of the side port.
    ///
    /// # Errors
    /// [`Reject::Unauthenticated`] for a token that opens nothing.
    pub async fn staff_logout(&self, token: &str) -> Result<(), Reject> {
        for _ in 0..MAX_TRIES {
            let (session, mac) = self.session_of_token(token)?;
            if !matches!(session.value.principal, Principal::Staff(_)) {
                return Err(Reject::Unauthenticated);
            }
            let mut batch = Batch::default();
            super::sessions::close_session(&mac, &session, &mut batch);
            match self.committer.commit(batch).await {
                Ok(()) => return Ok(()),
                // That it is in use may have been noted at this moment; then it is still there, and ends now.
                Err(error) => self.judge_conflict(&error)?,
            }
        }
        Err(too_busy())
    }
}
