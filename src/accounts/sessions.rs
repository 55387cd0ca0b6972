//! Sessions of users: login, refresh, logout.
//!
//! Owns the rows of sessions and the count of wrong passwords that locks an account. Tokens are stored as MACs, signed or
//! not ([`super::jwt`]); the row is the truth, so that a logout works at once. A refresh token is good for one use; shown
//! again, it ends its session, because one of the two who have it is a thief. Never opens the side port; staff has
//! [`super::staff`].

use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::MutexGuard;

use super::blocks::{Guess, Port};
use super::codes::{CodeTurn, UsedCode};
use super::devices::DeviceView;
use super::guesses::{Door, Shown, retire};
use super::jwt::{Lineage, TokenUse};
use super::login_check::Factors;
use super::mail::{Letter, LetterKind};
use super::passwords::Password;
use super::registration::Entrance;
use super::secrets::{self, Minted};
use super::{Accounts, Forget, LOGIN_TURNS, Loaded, MAX_TRIES, no_randomness, too_busy};
use crate::clock::UnixMillis;
use crate::domain::ids::{CredentialId, RequestId, SecretMac, UserId};
use crate::domain::key::KeyLook;
use crate::domain::session::{Principal, Session, SessionStyle, Spent};
use crate::domain::user::{Status, User};
use crate::error::Reject;
use crate::store::{Batch, StoreError, tables};
use crate::telemetry::metrics::Login;

/// Sessions a user may have; a further login ends the oldest.
pub const MAX_SESSIONS: usize = 64;
const MAX_AGENT_BYTES: usize = 256;
/// The dearest bcrypt among the users' hashes.
pub(super) const BCRYPT_COUNTER: &str = "bcrypt-cost";
/// Used refresh tokens of one session that are remembered as such; with the lifetimes of the seeds a session uses thirty.
const MAX_SPENT: usize = 40;

/// Who wants in, and from where.
pub struct LoginRequest {
    /// An email or a username.
    pub identifier: String,
    pub password: Password,
    /// Of the second factor, for those who have one.
    pub code: Option<String>,
    /// One of the codes that staff has given him, each of which is good for one login.
    pub unique_code: Option<String>,
    /// What `accounts.login_check` asks for.
    pub factors: Factors,
    pub address: IpAddr,
    /// The id of the call that brings this.
    pub request: Option<RequestId>,
    pub user_agent: Option<String>,
    /// What an earlier login has left on the device.
    pub device: Option<String>,
    pub style: SessionStyle,
}

/// Tokens of a new session, shown once.
#[derive(Debug)]
pub struct SessionView {
    pub id: CredentialId,
    pub principal: Principal,
    pub session_token: Minted,
    pub refresh_token: Option<Minted>,
    pub expires_at: UnixMillis,
    pub refresh_expires_at: Option<UnixMillis>,
    /// For the device to keep, of a user who has logged in and has a password.
    pub device: Option<DeviceView>,
    /// Which of the user's one-time codes opened it.
    pub used_code: Option<UsedCode>,
}

/// A password that was right.
pub(super) struct Proven<'a> {
    /// The hash it matched.
    pub(super) hash: Option<String>,
    /// What is to take the place of a hash of another kind.
    pub(super) upgraded: Option<String>,
    /// Kept while a hash is replaced: a login beside this one would find another hash than the one it has verified.
    pub(super) _turn: Option<MutexGuard<'a, ()>>,
}

impl Accounts {
    /// Opens a session with email (or username) and password.
    ///
    /// # Errors
    /// [`Reject::Unauthenticated`], the same for an unknown name and a wrong password; [`Reject::Locked`] after too many of
    /// them; [`Reject::AddressBlocked`] from an address that may not guess; [`Reject::Forbidden`] for an account that may not come in; [`Reject::Overloaded`] in a flood; those of the other
    /// things that a login must bring: [`Reject::CodeRequired`], [`Reject::WrongCode`], [`Reject::UniqueCodeRequired`],
    /// [`Reject::LoginFactorsMissing`], [`Reject::LoginFactorRefused`].
    pub async fn login(&self, request: LoginRequest) -> Result<(User, SessionView), Reject> {
        let LoginRequest {
            identifier,
            password,
            code,
            unique_code,
            factors,
            address,
            request,
            user_agent,
            device,
            style,
        } = request;
        let id = self.find_user(&identifier)?;
        let hash = || Ok(self.live_user(id)?.and_then(|row| row.value.password_hash));
        // Guesses of others shut out no known device of the account; its own are counted apart.
        let known =
            self.live_user(id)?.filter(|row| device.as_deref().is_some_and(|d| self.knows_device(&row.value, d)));
        let door = Door { known_device: known.is_some(), ..Door::public(address) };
        self.refuse_blocked(door)?;
        let checking = self.begin_check(factors)?;
        let subject = match door.known_device {
            true => self.pepper.mac_in("device", device.unwrap_or_default().as_bytes()),
            false => self.login_subject("user", &identifier, id.map(|id| id.0)),
        };
        let mut proven = self.check_password_as(subject, "user", id.map(|id| id.0), door, password, hash).await?;
        let Some(id) = id else { return Err(Reject::Unauthenticated) };
        self.second_factor_at(door, Principal::User(id), code.as_deref()).await?;
        if let Some(checking) = checking {
            proven = self.pass_check(checking, id, proven, unique_code.as_deref(), door, request).await?;
        }
        let code = self.code_turn(id, unique_code.as_deref(), door).await?;
        self.let_in(id, &Entrance { address, user_agent, style }, Some(proven), code).await
    }

    /// The end of every login: opens a session for a user who has shown who he is, by his password or otherwise.
    ///
    /// # Errors
    /// [`Reject::Forbidden`] for an account that may not come in; [`Reject::Unauthenticated`] when it has gone or has another
    /// password by now; those of a one-time code.
    pub(super) async fn let_in(
        &self,
        id: UserId,
        entrance: &Entrance,
        proven: Option<Proven<'_>>,
        code: Option<CodeTurn<'_>>,
    ) -> Result<(User, SessionView), Reject> {
        let Entrance { address, user_agent, style } = entrance;
        for _ in 0..MAX_TRIES {
            let row = self.live_user(Some(id))?.ok_or(Reject::Unauthenticated)?;
            // Changed since it was verified: the old password opens nothing any more.
            if proven.as_ref().is_some_and(|proven| proven.hash != row.value.password_hash) {
                return Err(Reject::Unauthenticated);
            }
            may_enter(&row.value)?;
            // A provider brings no code, and must not be the way around one.
            if code.is_none() && self.wants_code(id)? {
                return Err(Reject::UniqueCodeRequired);
            }
            let (mut user, mut batch) = (row.value.clone(), row.unchanged());
            user.last_login = Some(self.clock.now());
            if let Some(hash) = proven.as_ref().and_then(|proven| proven.upgraded.as_ref()) {
                user.password_hash = Some(hash.clone());
            }
            batch.put(row.key, super::encode_bounded(&user)?);
            self.announce_sign_in(&user, *address, user_agent.as_deref(), &mut batch)?;
            let forget = self.make_room_for_session(id, &mut batch)?;
            let mut view = self.open_session(id, *address, user_agent.as_deref(), *style, &mut batch)?;
            // Looked at anew in every try: another login may have used it in between.
            let used = code.as_ref().map(|turn| self.use_unique_code(id, turn, &mut batch));
            view.used_code = used.transpose()?;
            view.device = self.mint_device(&user)?;
            match self.commit_for_user(id, batch, forget).await {
                Ok(()) => {
                    self.metrics.login(Login::Ok);
                    code.iter().for_each(|turn| self.code_succeeded(turn));
                    return Ok((user, view));
                }
                Err(error) => self.judge_conflict(&error)?,
            }
        }
        Err(too_busy())
    }

    /// A letter to a user who signs in from where none of his open sessions is; not at his first login.
    fn announce_sign_in(
        &self,
        user: &User,
        address: IpAddr,
        agent: Option<&str>,
        batch: &mut Batch,
    ) -> Result<(), Reject> {
        if !self.sends_mail() {
            return Ok(());
        }
        let known = self.load_sessions(user.id)?;
        if known.is_empty() || known.iter().any(|(_, session)| session.value.address == Some(address)) {
            return Ok(());
        }
        let agent: String = agent.unwrap_or_default().chars().filter(|c| !c.is_control()).take(100).collect();
        self.post(user, Letter::new(LetterKind::NewSignIn).with("address", address).with("agent", agent), batch)
    }

    /// Checks a password and keeps the count of wrong ones.
    pub(super) async fn check_password(
        &self,
        space: &'static str,
        identifier: &str,
        known: Option<u64>,
        address: IpAddr,
        password: Password,
        hash: impl FnOnce() -> Result<Option<String>, Reject> + Send,
    ) -> Result<Proven<'_>, Reject> {
        let subject = self.login_subject(space, identifier, known);
        let port = if space == "staff" { Port::Side } else { Port::Public };
        let door = Door { port, ..Door::public(address) };
        self.check_password_as(subject, space, known, door, password, hash).await
    }

    /// Under what wrong passwords are counted: an account under its number, whichever of its names was tried; other names
    /// under themselves.
    fn login_subject(&self, space: &'static str, identifier: &str, known: Option<u64>) -> SecretMac {
        match known {
            Some(id) => self.pepper.mac_in(space, &id.to_be_bytes()),
            // One name in all its spellings and cases, as it is for accounts: else they would tell which of them has one.
            None => self.pepper.mac_in(space, super::fields::normalized(identifier).to_lowercase().as_bytes()),
        }
    }

    async fn check_password_as(
        &self,
        subject: SecretMac,
        space: &'static str,
        known: Option<u64>,
        door: Door,
        password: Password,
        hash: impl FnOnce() -> Result<Option<String>, Reject> + Send,
    ) -> Result<Proven<'_>, Reject> {
        // Before the lock: a blocked address is not told which accounts are locked, nor can it lock one.
        self.refuse_blocked(door)?;
        self.refuse_locked(&subject)?;
        let place = self.passwords.enter()?;
        // One turn for an account, whatever its wrong passwords are counted under.
        let of_account = known.map_or(subject, |id| self.pepper.mac_in(space, &id.to_be_bytes()));
        let turn = self.login_turns[usize::from(of_account.0[0]) % LOGIN_TURNS].lock().await;
        // Guesses that waited here have been overtaken by those before them.
        self.refuse_blocked(door)?;
        self.refuse_locked(&subject)?;
        let hash = hash()?;
        let verdict = place.verify(password, hash.clone()).await?;
        self.remember_bcrypt().await;
        // Of many guesses at once, those beyond the limit are told nothing either.
        self.refuse_blocked(door)?;
        if verdict.matches {
            self.lockouts.succeeded(&subject);
            // The address's failures stay: who has one account of his own must not buy guesses at others with it.
            let turn = verdict.upgraded.is_some().then_some(turn);
            return Ok(Proven { hash, upgraded: verdict.upgraded, _turn: turn });
        }
        self.metrics.login(Login::Failed);
        // Before the account's count: from a blocked address nobody locks accounts.
        self.count_guess(door, Guess::Password)?;
        if self.lockouts.failed(subject, self.clock.monotonic()) {
            self.note_lockout(space, known, door.address);
            if let (Some(id), "user") = (known, space)
                && let Some(user) = self.live_user(Some(UserId(id)))?
            {
                let minutes = self.settings().lockout().as_secs().div_ceil(60);
                let letter = Letter::new(LetterKind::AccountLocked).with("minutes", minutes);
                let letter = letter.with("address", door.address);
                self.post_alone(&user.value, letter).await;
            }
        }
        Err(Reject::Unauthenticated)
    }

    /// Keeps in mind, also for the next start, that the store has hashes of bcrypt: else the first wrong password for one of
    /// them would take longer than others, and tell that it is one.
    pub(super) async fn remember_bcrypt(&self) {
        let cost = self.passwords.bcrypt_cost();
        if self.bcrypt_noted.fetch_max(cost, Ordering::Relaxed) >= cost {
            return;
        }
        let Ok(row) = tables::encode(&cost) else { return };
        let mut batch = Batch::default();
        batch.put(tables::counter(BCRYPT_COUNTER), row);
        if let Err(error) = self.committer.commit(batch).await {
            tracing::warn!(%error, "that there are hashes of bcrypt could not be written down");
        }
    }

    fn refuse_locked(&self, subject: &SecretMac) -> Result<(), Reject> {
        match self.lockouts.blocked_for(subject, self.clock.monotonic()) {
            None => Ok(()),
            Some(retry_after) => {
                self.metrics.login(Login::Locked);
                Err(Reject::Locked { retry_after })
            }
        }
    }

    /// The user of a session token, who must be allowed in.
    ///
    /// # Errors
    /// [`Reject::Unauthenticated`] for a token that opens nothing, [`Reject::Forbidden`] for one of a suspended account.
    pub fn user_of_session(&self, token: Shown<'_>) -> Result<User, Reject> {
        let user = self.user_to_change_password(token)?;
        if user.must_change_password {
            return Err(Reject::PasswordChangeRequired);
        }
        Ok(user)
    }

    /// As [`Accounts::user_of_session`], also for one whose password staff has chosen.
    ///
    /// # Errors
    /// As [`Accounts::user_of_session`].
    pub fn user_to_change_password(&self, token: Shown<'_>) -> Result<User, Reject> {
        let shown = self.session_shown(token, Port::Public);
        let (session, _) = shown.map_err(|reject| told_of_keys(token.text, reject))?;
        let Principal::User(id) = session.value.principal else { return Err(Reject::Unauthenticated) };
        let user = self.live_user(Some(id))?.ok_or(Reject::Unauthenticated)?.value;
        may_enter(&user)?;
        Ok(user)
    }

    /// Ends a session: token and refresh token are dead before this returns. Answers whose it was.
    ///
    /// # Errors
    /// [`Reject::Unauthenticated`] for a token that opens nothing.
    pub async fn logout(&self, token: Shown<'_>) -> Result<UserId, Reject> {
        let (session, mac) = self.session_shown(token, Port::Public)?;
        let Principal::User(id) = session.value.principal else { return Err(Reject::Unauthenticated) };
        let mut batch = Batch::default();
        close_session(&mac, &session, &mut batch);
        match self.commit_for_user(id, batch, Forget::Credentials).await {
            Ok(()) => Ok(id),
            // Refreshed or ended at this moment: this token opens nothing any more either way.
            Err(StoreError::Conflict { .. }) => Err(Reject::Unauthenticated),
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// Exchanges a refresh token for new tokens; the old ones are dead before this returns. The session ends when it would
    /// have ended: refreshing does not prolong it for ever. For a moment (`accounts.refresh_grace`) the used token answers
    /// the same new tokens again, because the first answer may not have arrived; after that it ends the session.
    ///
    /// # Errors
    /// [`Reject::Unauthenticated`] for a token that is unknown or expired; [`Reject::Replayed`] for one that was used, and
    /// the session it belonged to has ended.
    pub async fn refresh(&self, shown: Shown<'_>) -> Result<SessionView, Reject> {
        let refresh_token = shown.text;
        let mac = self.credential_mac(refresh_token)?;
        for _ in 0..MAX_TRIES {
            let now = self.clock.now();
            let Some(pointer) = self.load::<String>(tables::session_by_refresh(&mac))? else {
                return self.refresh_again(&mac, shown).await;
            };
            let session_mac = secrets::mac_from_hex(&pointer.value).ok_or(Reject::Unauthenticated)?;
            // Another refresh may be under way: look again who came first.
            let Some(session) = self.load::<Session>(tables::session(&session_mac))? else { continue };
            let Principal::User(id) = session.value.principal else { return Err(Reject::Unauthenticated) };
            let Some(ends) = session.value.refresh_expires_at.filter(|at| now < *at) else {
                return Err(Reject::Unauthenticated);
            };
            if !self.tokens.agrees(refresh_token.as_bytes(), TokenUse::Refresh, &session.value) {
                return Err(Reject::Unauthenticated);
            }
            let row = self.live_user(Some(id))?.ok_or(Reject::Unauthenticated)?;
            may_enter(&row.value)?;
            let mut batch = row.unchanged();
            batch.require_equal(session.key.clone(), session.raw.clone());
            let mut renewed = Session { refresh_expires_at: Some(ends), ..session.value.clone() };
            self.spend(&mac, &mut renewed, now, &mut batch)?;
            drop_tokens(&session_mac, &session.value, &mut batch);
            let view = self.write_session(renewed, Lineage::After(refresh_token), &mut batch)?;
            match self.commit_for_user(id, batch, Forget::Credentials).await {
                Ok(()) => return Ok(view),
                Err(error) => self.judge_conflict(&error)?,
            }
        }
        Err(too_busy())
    }

    /// Notes that a refresh token has been used, and forgets the oldest of a session that has used many.
    fn spend(&self, mac: &SecretMac, session: &mut Session, now: UnixMillis, batch: &mut Batch) -> Result<(), Reject> {
        let Principal::User(user) = session.principal else { return Err(Reject::Unauthenticated) };
        let spent = Spent { user, session: session.id, at: now };
        batch.put(tables::spent_refresh(mac), tables::encode(&spent).map_err(|error| self.failed(&error))?);
        session.spent.push(secrets::mac_to_hex(mac));
        if session.spent.len() > MAX_SPENT {
            let oldest = session.spent.remove(0);
            if let Some(mac) = secrets::mac_from_hex(&oldest) {
                batch.delete(tables::spent_refresh(&mac));
                retire(&mac, batch);
            }
        }
        session.refreshed_at = Some(now);
        Ok(())
    }

    /// A refresh token that is in force no more: known as used, or not at all.
    async fn refresh_again(&self, mac: &SecretMac, shown: Shown<'_>) -> Result<SessionView, Reject> {
        let refresh_token = shown.text;
        let spent = self.load::<Spent>(tables::spent_refresh(mac))?;
        let spent = spent.ok_or_else(|| self.unknown_credential(shown, Port::Public))?.value;
        let now = self.clock.now();
        if now < spent.at.plus(self.settings().accounts.refresh_grace.0) {
            let pointer = self.load::<String>(tables::session_of_user(spent.user, spent.session))?;
            let mac = pointer.and_then(|row| secrets::mac_from_hex(&row.value)).ok_or(Reject::Unauthenticated)?;
            let session = self.load::<Session>(tables::session(&mac))?.filter(|row| now < row.value.expires_at);
            let session = session.ok_or(Reject::Unauthenticated)?;
            let (session_token, refresh_token) =
                self.tokens.mint(&self.pepper, &session.value, Lineage::After(refresh_token))?;
            // Refreshed once more since: its successors are used up too.
            if self.pepper.mac(session_token.expose().as_bytes()) != mac {
                return Err(Reject::Unauthenticated);
            }
            let user = self.live_user(Some(spent.user))?.ok_or(Reject::Unauthenticated)?;
            may_enter(&user.value)?;
            return Ok(SessionView {
                id: session.value.id,
                principal: session.value.principal,
                session_token,
                refresh_token: Some(refresh_token),
                expires_at: session.value.expires_at,
                refresh_expires_at: session.value.refresh_expires_at,
                device: None,
                used_code: None,
            });
        }
        // Whoever has the newer tokens may be the thief or the robbed: nobody can tell, so both are out.
        match self.revoke_session(spent.user, spent.session).await {
            Ok(()) => {
                if let Some(user) = self.live_user(Some(spent.user))? {
                    self.post_alone(&user.value, Letter::new(LetterKind::SessionReplayed)).await;
                }
                Err(Reject::Replayed { user: spent.user })
            }
            Err(Reject::NotFound) => Err(Reject::Unauthenticated),
            Err(reject) => Err(reject),
        }
    }

    /// The MAC of something that may be a credential.
    pub(super) fn credential_mac(&self, token: &str) -> Result<SecretMac, Reject> {
        if token.is_empty() || token.len() > secrets::MAX_CREDENTIAL_BYTES {
            return Err(Reject::Unauthenticated);
        }
        Ok(self.pepper.mac(token.as_bytes()))
    }

    /// As [`Accounts::session_of_token`]; a token that nobody has counts as a guess.
    pub(super) fn session_shown(&self, token: Shown<'_>, port: Port) -> Result<(Loaded<Session>, SecretMac), Reject> {
        self.session_of_token(token.text).map_err(|reject| match reject {
            Reject::Unauthenticated => self.unknown_credential(token, port),
            other => other,
        })
    }

    /// The row of a session token of a user or of the staff, unless it has expired.
    pub(super) fn session_of_token(&self, token: &str) -> Result<(Loaded<Session>, SecretMac), Reject> {
        let mac = self.credential_mac(token)?;
        let session = self.load::<Session>(tables::session(&mac))?.filter(|s| self.clock.now() < s.value.expires_at);
        let agrees = |row: &Loaded<Session>| self.tokens.agrees(token.as_bytes(), TokenUse::Access, &row.value);
        Ok((session.filter(agrees).ok_or(Reject::Unauthenticated)?, mac))
    }

    /// The row of a user who is not deleted.
    pub(super) fn live_user(&self, id: Option<UserId>) -> Result<Option<Loaded<User>>, Reject> {
        let Some(id) = id else { return Ok(None) };
        Ok(self.load::<User>(tables::user(id))?.filter(|row| row.value.status != Status::Deleted))
    }

    /// The user of an email or username.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`].
    pub fn find_user(&self, identifier: &str) -> Result<Option<UserId>, Reject> {
        let name = super::fields::normalized(identifier);
        let key = if name.contains('@') { tables::user_by_email(&name) } else { tables::user_by_name(&name) };
        Ok(self.load::<UserId>(key)?.map(|row| row.value))
    }

    pub(super) fn open_session(
        &self,
        user: UserId,
        address: IpAddr,
        agent: Option<&str>,
        style: SessionStyle,
        batch: &mut Batch,
    ) -> Result<SessionView, Reject> {
        let settings = self.settings.load();
        let now = self.clock.now();
        let session = Session {
            id: secrets::mint_credential_id().map_err(|error| no_randomness(&error))?,
            principal: Principal::User(user),
            created_at: now,
            expires_at: now,
            refresh_expires_at: Some(now.plus(days(settings.accounts.refresh_days))),
            refresh_mac: None,
            address: Some(address),
            user_agent: agent.map(|text| cut(text, MAX_AGENT_BYTES).to_owned()),
            epoch: 0,
            refreshed_at: None,
            spent: Vec::new(),
            used_at: None,
            style,
        };
        self.write_session(session, Lineage::Fresh, batch)
    }

    /// Gives a user's session new tokens and adds its rows to a batch.
    fn write_session(
        &self,
        mut session: Session,
        lineage: Lineage<'_>,
        batch: &mut Batch,
    ) -> Result<SessionView, Reject> {
        let usual = || hours(self.settings.load().accounts.session_hours);
        let lasts = session.style.lasts.map_or_else(usual, Duration::from_secs);
        session.expires_at = self.clock.now().plus(lasts);
        let (token, refresh) = self.tokens.mint(&self.pepper, &session, lineage)?;
        let mac = self.pepper.mac(token.expose().as_bytes());
        let refresh_mac = self.pepper.mac(refresh.expose().as_bytes());
        session.refresh_mac = Some(secrets::mac_to_hex(&refresh_mac));
        let encoded = (|| Ok((tables::encode(&session)?, tables::encode(&secrets::mac_to_hex(&mac))?)))();
        let (row, pointer) = encoded.map_err(|error: StoreError| self.failed(&error))?;
        batch.put(tables::session(&mac), row).put(tables::session_by_refresh(&refresh_mac), pointer.clone());
        if let Principal::User(user) = session.principal {
            batch.put(tables::session_of_user(user, session.id), pointer);
        }
        Ok(SessionView {
            id: session.id,
            principal: session.principal,
            session_token: token,
            refresh_token: Some(refresh),
            expires_at: session.expires_at,
            refresh_expires_at: session.refresh_expires_at,
            device: None,
            used_code: None,
        })
    }

    /// Ends a user's dead sessions, and his oldest ones when he has too many.
    fn make_room_for_session(&self, user: UserId, batch: &mut Batch) -> Result<Forget, Reject> {
        let now = self.clock.now();
        let mut sessions = self.load_sessions(user)?;
        sessions.sort_by_key(|(_, row)| row.value.created_at);
        let is_dead = |s: &Session| s.expires_at <= now && s.refresh_expires_at.is_none_or(|at| at <= now);
        let (dead, alive): (Vec<_>, Vec<_>) = sessions.into_iter().partition(|(_, row)| is_dead(&row.value));
        let too_many = (alive.len() + 1).saturating_sub(MAX_SESSIONS);
        for (mac, row) in dead.iter().chain(alive.iter().take(too_many)) {
            close_session(mac, row, batch);
        }
        Ok(if too_many > 0 { Forget::Credentials } else { Forget::Nothing })
    }

    pub(super) fn load_sessions(&self, user: UserId) -> Result<Vec<(SecretMac, Loaded<Session>)>, Reject> {
        // Twice as many as there should be: logins at the same moment may go over the bound together.
        let macs = self.credential_macs(&tables::sessions_of_user(user), 2 * MAX_SESSIONS)?;
        let rows =
            macs.into_iter().map(|(_, mac)| Ok(self.load::<Session>(tables::session(&mac))?.map(|row| (mac, row))));
        rows.filter_map(Result::transpose).collect()
    }
}

/// Removes all rows of a session, if it still is as it was read: a refresh in between has given it another row, which would
/// open on with nothing that leads to it.
pub(super) fn close_session(mac: &SecretMac, row: &Loaded<Session>, batch: &mut Batch) {
    batch.require_equal(row.key.clone(), row.raw.clone());
    let session = &row.value;
    drop_tokens(mac, session, batch);
    for spent in session.spent.iter().filter_map(|hex| secrets::mac_from_hex(hex)) {
        batch.delete(tables::spent_refresh(&spent));
        retire(&spent, batch);
    }
    match session.principal {
        Principal::User(user) => batch.delete(tables::session_of_user(user, session.id)),
        Principal::Staff(staff) => batch.delete(tables::session_of_staff(staff, session.id)),
    };
}

/// Removes the rows of a session's present tokens.
fn drop_tokens(mac: &SecretMac, session: &Session, batch: &mut Batch) {
    batch.delete(tables::session(mac));
    retire(mac, batch);
    if let Some(refresh) = session.refresh_mac.as_deref().and_then(secrets::mac_from_hex) {
        batch.delete(tables::session_by_refresh(&refresh));
        retire(&refresh, batch);
    }
}

/// A caller who sends an API key to a page of accounts is told what the page takes. Anything that begins as keys do is told
/// so, whether it opens something or not: that it does is nobody's to learn here.
fn told_of_keys(token: &str, reject: Reject) -> Reject {
    let looks_like_one = [KeyLook::Canonical, KeyLook::Clisonix].iter().any(|look| token.starts_with(look.prefix()));
    if reject == Reject::Unauthenticated && looks_like_one { Reject::SessionNeeded } else { reject }
}

/// Whether the standing of an account lets its owner use his own pages.
pub(super) fn may_enter(user: &User) -> Result<(), Reject> {
    match user.status {
        Status::Active | Status::Pending => Ok(()),
        Status::Suspended => Err(Reject::Forbidden("This account is suspended")),
        Status::Banned => Err(Reject::Forbidden("This account is banned")),
        Status::Deleted => Err(Reject::Unauthenticated),
    }
}

pub(super) fn hours(n: u64) -> Duration {
    Duration::from_secs(n.saturating_mul(3600))
}

fn days(n: u64) -> Duration {
    hours(n.saturating_mul(24))
}

/// The first bytes of a text, at a character's border.
fn cut(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
