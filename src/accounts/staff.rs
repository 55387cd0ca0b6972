//! Staff: admins and support, their logins, and what each role may do.
//!
//! Owns the rows of staff and of their sessions. A session is read from the store on every call, so that a demotion holds
//! from the next one on. Never opens the public side; users have [`super::sessions`].

use std::net::IpAddr;
use std::time::Duration;

use super::blocks::Port;
use super::fields::{same_address, staff_faults};
use super::guesses::Shown;
use super::jwt::Lineage;
use super::own::Proof;
use super::passwords::{Password, Rule};
use super::secrets;
use super::sessions::{Proven, SessionView, close_session, hours};
use super::{Accounts, MAX_TRIES, no_randomness, too_busy};
use crate::config::MfaRequired;
use crate::domain::ids::StaffId;
use crate::domain::session::{Principal, Session, SessionStyle, Staff, StaffRole};
use crate::error::Reject;
use crate::store::{Batch, StoreError, tables};
use crate::telemetry::metrics::Login;

/// Sequence of the numbers of staff; while it is not there, there never was any staff.
const COUNTER: &str = "staff";
/// Rows of one member's sessions that are read at once: more than the config allows.
const MAX_STAFF_SESSION_ROWS: usize = 2048;
/// How often in the idle time a session's use is written down at most.
const USE_STEPS: u32 = 12;
/// What the log and the rows call who acts through the operator's file.
const OPERATOR: &str = "operator";

/// A new member of the staff.
#[derive(Debug)]
pub struct NewStaff {
    pub username: String,
    pub name: String,
    pub email: String,
    pub password: Password,
    pub role: StaffRole,
    /// What the password must meet.
    pub rule: Rule,
}

/// Who acts on the side port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaffIdentity {
    /// None for the operator.
    pub id: Option<StaffId>,
    pub username: String,
    pub role: StaffRole,
}

impl Accounts {
    /// Makes the first superadmin, if there has never been any staff. `None`: there has, and nothing was done.
    ///
    /// # Errors
    /// [`Reject::Invalid`] for a name or password that does not fit.
    pub async fn first_superadmin(
        &self,
        username: &str,
        password: Password,
        email: Option<&str>,
        rule: Rule,
    ) -> Result<Option<StaffId>, Reject> {
        if self.has_staff()? {
            return Ok(None);
        }
        let new = NewStaff {
            username: username.to_owned(),
            name: username.to_owned(),
            email: email.unwrap_or_default().to_owned(),
            password,
            role: StaffRole::Superadmin,
            rule,
        };
        match self.insert_staff(new, true).await {
            Ok(staff) => Ok(Some(staff.id)),
            // Somebody else was the first at this moment.
            Err(Reject::Conflict(_)) => Ok(None),
            Err(reject) => Err(reject),
        }
    }

    /// Whether there has ever been any staff.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`].
    pub fn has_staff(&self) -> Result<bool, Reject> {
        Ok(self.load::<u64>(tables::counter(COUNTER))?.is_some())
    }

    /// Makes a member of the staff.
    ///
    /// # Errors
    /// [`Reject::Invalid`]; [`Reject::Conflict`] for a username that is taken.
    pub async fn create_staff(&self, new: NewStaff) -> Result<Staff, Reject> {
        self.insert_staff(new, false).await
    }

    async fn insert_staff(&self, new: NewStaff, must_be_first: bool) -> Result<Staff, Reject> {
        let NewStaff { username, name, email, password, role, rule } = new;
        let fits = (3..=50).contains(&username.len())
            && username.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
        // The first member of the staff may come without an address.
        let given = (!email.is_empty()).then_some(email.as_str());
        let faults: Vec<String> = (!fits)
            .then(|| "username: 3 to 50 letters, digits, dots, hyphens or underscores".to_owned())
            .into_iter()
            .chain(staff_faults(Some(&name), given))
            .chain(self.password_faults(&password, rule, "password", &[&username, &email]))
            .collect();
        if !faults.is_empty() {
            return Err(Reject::Invalid(faults));
        }
        let password_hash = self.passwords.enter()?.hash(password).await?;
        let created_at = self.clock.now();
        let mut staff = Staff {
            id: StaffId(0),
            username,
            name,
            email,
            role,
            password_hash,
            active: true,
            created_at,
            last_login: None,
            session_epoch: 0,
        };
        for _ in 0..MAX_TRIES {
            let mut batch = Batch::default();
            let by_name = tables::staff_by_name(&staff.username);
            batch.require_absent(by_name.clone());
            self.refuse_others_email(None, &staff.email, &mut batch)?;
            if must_be_first && self.has_staff()? {
                return Err(Reject::Conflict("There is staff already".into()));
            }
            // Requires that the counter is as it was read: of two firsts, one finds itself second and looks again.
            staff.id = StaffId(self.next_number(COUNTER, &mut batch)?);
            if must_be_first && staff.id != StaffId(1) {
                return Err(Reject::Conflict("There is staff already".into()));
            }
            let encoded = (|| Ok((tables::encode(&staff)?, tables::encode(&staff.id)?)))();
            let (row, id) = encoded.map_err(|error: StoreError| self.failed(&error))?;
            batch.put(tables::staff(staff.id), row).put(by_name, id);
            match self.committer.commit(batch).await {
                Ok(()) => {
                    tracing::info!(staff = %staff.id, username = %staff.username, role = staff.role.as_str(), "staff created");
                    return Ok(staff);
                }
                Err(error) => self.judge_conflict(&error)?,
            }
        }
        Err(too_busy())
    }

    /// Refuses an address that another member of the staff has: members log in by theirs. `batch` holds only while nobody
    /// takes an address in between.
    ///
    /// # Errors
    /// [`Reject::Conflict`].
    pub(super) fn refuse_others_email(
        &self,
        own: Option<StaffId>,
        email: &str,
        batch: &mut Batch,
    ) -> Result<(), Reject> {
        if email.is_empty() {
            return Ok(());
        }
        self.next_number("staff-emails-changed", batch)?;
        let is_others = |other: &Staff| Some(other.id) != own && same_address(&other.email, email);
        if self.all_staff()?.iter().any(is_others) {
            return Err(Reject::Conflict("This email is another staff member's".into()));
        }
        Ok(())
    }

    /// Opens a session on the side port.
    ///
    /// # Errors
    /// As [`Accounts::login`].
    pub async fn staff_login(
        &self,
        username: &str,
        password: Password,
        code: Option<&str>,
        address: IpAddr,
    ) -> Result<(Staff, SessionView), Reject> {
        let id = self.find_staff(username)?;
        let read = || match id {
            Some(id) => self.load::<Staff>(tables::staff(id)),
            None => Ok(None),
        };
        let hash = || Ok(read()?.filter(|row| row.value.active).map(|row| row.value.password_hash));
        let Proven { hash: verified, upgraded, _turn } =
            self.check_password("staff", username, id.map(|id| id.0), address, password, hash).await?;
        let whose = Principal::Staff(id.ok_or(Reject::Unauthenticated)?);
        self.second_factor(whose, code, address).await?;
        for _ in 0..MAX_TRIES {
            let row = read()?.ok_or(Reject::Unauthenticated)?;
            if !row.value.active || Some(&row.value.password_hash) != verified.as_ref() {
                return Err(Reject::Unauthenticated);
            }
            let (mut staff, mut batch) = (row.value.clone(), row.unchanged());
            staff.last_login = Some(self.clock.now());
            if let Some(hash) = &upgraded {
                staff.password_hash.clone_from(hash);
            }
            self.make_room_for_staff_session(&staff, &mut batch)?;
            batch.put(row.key, tables::encode(&staff).map_err(|error| self.failed(&error))?);
            let view = self.open_staff_session(&staff, address, &mut batch)?;
            match self.committer.commit(batch).await {
                Ok(()) => {
                    self.metrics.login(Login::Ok);
                    return Ok((staff, view));
                }
                Err(error) => self.judge_conflict(&error)?,
            }
        }
        Err(too_busy())
    }

    /// The member of the staff with this username, or, where it is one member's alone, this email.
    pub(super) fn find_staff(&self, name: &str) -> Result<Option<StaffId>, Reject> {
        // No username has this sign.
        if !name.contains('@') {
            return Ok(self.load::<StaffId>(tables::staff_by_name(name))?.map(|row| row.value));
        }
        let mut found = self.all_staff()?.into_iter().filter(|staff| same_address(&staff.email, name));
        let first = found.next().map(|staff| staff.id);
        Ok(first.filter(|_| found.next().is_none()))
    }

    fn open_staff_session(&self, staff: &Staff, address: IpAddr, batch: &mut Batch) -> Result<SessionView, Reject> {
        let settings = self.settings();
        let lasts = if staff.role >= StaffRole::Admin {
            settings.accounts.admin_session_hours
        } else {
            settings.accounts.support_session_hours
        };
        let now = self.clock.now();
        let session = Session {
            id: secrets::mint_credential_id().map_err(|error| no_randomness(&error))?,
            principal: Principal::Staff(staff.id),
            created_at: now,
            expires_at: now.plus(hours(lasts)),
            refresh_expires_at: None,
            refresh_mac: None,
            address: Some(address),
            user_agent: None,
            epoch: staff.session_epoch,
            refreshed_at: None,
            spent: Vec::new(),
            used_at: None,
            style: SessionStyle::default(),
        };
        let (token, _) = self.tokens.mint(&self.pepper, &session, Lineage::Fresh)?;
        let mac = self.pepper.mac(token.expose().as_bytes());
        let encoded = (|| Ok((tables::encode(&session)?, tables::encode(&secrets::mac_to_hex(&mac))?)))();
        let (row, pointer) = encoded.map_err(|error: StoreError| self.failed(&error))?;
        batch.put(tables::session(&mac), row).put(tables::session_of_staff(staff.id, session.id), pointer);
        let expires_at = session.expires_at;
        let principal = session.principal;
        Ok(SessionView {
            id: session.id,
            principal,
            session_token: token,
            refresh_token: None,
            expires_at,
            refresh_expires_at: None,
            device: None,
            used_code: None,
        })
    }

    /// Who a token of the side port belongs to, if his role reaches `least`. The operator's token is a superadmin's.
    ///
    /// # Errors
    /// [`Reject::Unauthenticated`] for a token that opens nothing, [`Reject::Forbidden`] for a role below.
    pub fn staff_of_token(&self, token: Shown<'_>, least: StaffRole) -> Result<StaffIdentity, Reject> {
        let (who, setup_only) = self.staff_in_setup(token, least)?;
        if setup_only {
            return Err(Reject::FactorRequired);
        }
        Ok(who)
    }

    /// As [`Accounts::staff_of_token`], also for a session that only sets up a second factor; says whether it is one.
    ///
    /// # Errors
    /// As [`Accounts::staff_of_token`].
    pub fn staff_in_setup(&self, token: Shown<'_>, least: StaffRole) -> Result<(StaffIdentity, bool), Reject> {
        if self.is_operator(token.text) {
            return Ok((StaffIdentity { id: None, username: OPERATOR.into(), role: StaffRole::Superadmin }, false));
        }
        let (session, _) = self.session_shown(token, Port::Side)?;
        self.refuse_idle(&session.value)?;
        let Principal::Staff(id) = session.value.principal else { return Err(Reject::Unauthenticated) };
        let staff =
            self.load::<Staff>(tables::staff(id))?.filter(|row| row.value.active).ok_or(Reject::Unauthenticated)?.value;
        if staff.session_epoch != session.value.epoch {
            return Err(Reject::Unauthenticated);
        }
        if staff.role < least {
            return Err(Reject::Forbidden("Your role does not allow this"));
        }
        self.note_use(session.key, session.raw, &session.value);
        let must_set_up = self.must_set_up_factor(&staff)?;
        let who = StaffIdentity { id: Some(id), username: staff.username, role: staff.role };
        // As things are now: the factor may have been switched off, or the role have become one that needs it.
        Ok((who, must_set_up))
    }

    /// A session that nobody has used for `accounts.staff_idle_minutes` is over.
    fn refuse_idle(&self, session: &Session) -> Result<(), Reject> {
        let used = session.used_at.unwrap_or(session.created_at);
        if self.clock.now() < used.plus(self.staff_idle()) { Ok(()) } else { Err(Reject::Unauthenticated) }
    }

    fn staff_idle(&self) -> Duration {
        Duration::from_secs(self.settings().accounts.staff_idle_minutes.saturating_mul(60))
    }

    /// Notes that a session is in use, a twelfth of the idle time late at most: so it may be over that much early, and
    /// never late. Nobody waits for it.
    fn note_use(&self, key: Vec<u8>, raw: Vec<u8>, session: &Session) {
        let now = self.clock.now();
        let used = session.used_at.unwrap_or(session.created_at);
        if now < used.plus(self.staff_idle() / USE_STEPS) {
            return;
        }
        let Ok(row) = tables::encode(&Session { used_at: Some(now), ..session.clone() }) else { return };
        let mut batch = Batch::default();
        // Ended meanwhile, it is not brought back.
        batch.require_equal(key.clone(), raw).put(key, row);
        let committer = self.committer.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { committer.commit(batch).await });
        }
    }

    /// Ends a member's dead sessions, and his oldest ones when he has too many.
    fn make_room_for_staff_session(&self, staff: &Staff, batch: &mut Batch) -> Result<(), Reject> {
        let most = self.settings().accounts.staff_sessions;
        let now = self.clock.now();
        let mut sessions = Vec::new();
        for (key, mac) in self.credential_macs(&tables::sessions_of_staff(staff.id), MAX_STAFF_SESSION_ROWS)? {
            match self.load::<Session>(tables::session(&mac))? {
                Some(row) => sessions.push((mac, row)),
                None => {
                    batch.delete(key);
                }
            }
        }
        sessions.sort_by_key(|(_, row)| row.value.created_at);
        let is_dead =
            |s: &Session| s.expires_at <= now || s.epoch != staff.session_epoch || self.refuse_idle(s).is_err();
        let (dead, alive): (Vec<_>, Vec<_>) = sessions.into_iter().partition(|(_, row)| is_dead(&row.value));
        let too_many = (alive.len() + 1).saturating_sub(most);
        for (mac, row) in dead.iter().chain(alive.iter().take(too_many)) {
            close_session(mac, row, batch);
        }
        Ok(())
    }

    fn must_set_up_factor(&self, staff: &Staff) -> Result<bool, Reject> {
        let concerns = match self.settings().accounts.mfa.required {
            MfaRequired::None => false,
            MfaRequired::Admins => staff.role >= StaffRole::Admin,
            MfaRequired::Staff => true,
        };
        Ok(concerns && !self.factor_status(Principal::Staff(staff.id))?.enabled)
    }

    /// A member of the staff who is about to do what only he may, once more, as [`Accounts::step_up`].
    ///
    /// # Errors
    /// As [`Accounts::step_up`].
    pub async fn step_up_staff(&self, id: StaffId, proof: Proof, address: IpAddr) -> Result<(), Reject> {
        let code = proof.code.clone();
        self.prove_staff_password(id, proof, address).await?;
        self.second_factor(Principal::Staff(id), code.as_deref(), address).await
    }

    /// The password of a member of the staff who is logged in, once more.
    ///
    /// # Errors
    /// As [`Accounts::prove_password`].
    pub async fn prove_staff_password(&self, id: StaffId, proof: Proof, address: IpAddr) -> Result<(), Reject> {
        let Proof { password, field, .. } = proof;
        let password = password.ok_or_else(|| Reject::Invalid(vec![format!("{field}: is required")]))?;
        let row = self.load::<Staff>(tables::staff(id))?.ok_or(Reject::Unauthenticated)?;
        // Read in the account's turn: what was read before it may have been replaced.
        let hash = || Ok(self.load::<Staff>(tables::staff(id))?.map(|row| row.value.password_hash));
        match self.check_password("staff", &row.value.username, Some(id.0), address, password, hash).await {
            Ok(_) => Ok(()),
            Err(Reject::Unauthenticated) => Err(Reject::WrongPassword),
            Err(reject) => Err(reject),
        }
    }
}
