//! Social login: accounts by the word of an identity provider.
//!
//! Owns whose account a provider's word opens, and the way between. A login begins here with a state that is bound to the
//! browser by a cookie, good once and for ten minutes; it lives in memory only, so strangers write nothing to the disk. A
//! word about an address counts only when the provider has verified it: then it opens the account whose owner has proved the
//! same address, and takes one over whose owner never has, together with nothing that he left in it. Never puts a token into
//! an address: programs get a code that is exchanged once.
//!
//! | `oi/` MAC of provider and subject | whose login it is |
//! | `uo/` user id, provider | his login at this provider |

pub mod http;
pub mod provider;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use serde::{Deserialize, Serialize};

use super::blocks::Guess;
use super::fields::{email_fault, normalized, username_fault};
use super::guesses::Door;
use super::mail::{Letter, LetterKind};
use super::own::Proof;
use super::proof::{answered_from, refuse_waiting};
use super::registration::Entrance;
use super::secrets;
use super::sessions::{SessionView, may_enter};
use super::{Accounts, Forget, MAX_TRIES, no_randomness, too_busy};
use crate::clock::{self, UnixMillis};
use crate::config::OauthProvider;
use crate::domain::ids::{CredentialId, SecretMac, UserId};
use crate::domain::key::KeyLook;
use crate::domain::session::{Principal, SessionStyle};
use crate::domain::user::{Status, User};
use crate::error::Reject;
use crate::store::{Batch, Order, prefix_end, tables};
use provider::{Claims, Failure, Provider, Secrets};

/// How long somebody may take at the provider's.
const FLOW_LASTS: Duration = Duration::from_secs(600);
/// How long a program may take to exchange its code.
const CODE_LASTS: Duration = Duration::from_secs(60);
/// Logins under way, and codes that wait; the oldest are forgotten first.
const MAX_FLOWS: u64 = 50_000;
const RANDOM_LEN: usize = 43;
const MAX_REDIRECT: usize = 1000;

/// A login on its way.
#[derive(Clone)]
struct Flow {
    provider: String,
    secrets: Secrets,
    back_by: CallbackPath,
    /// The MAC of the cookie of the browser that began it.
    browser: SecretMac,
    redirect: Option<String>,
    /// Not a login, but another way in.
    link_to: Option<LinkTo>,
    ends: UnixMillis,
}

/// For whom another way in is added, and the session that asked: when that has ended, whoever asked is not to be let in.
#[derive(Clone, Copy, Debug)]
pub struct LinkTo {
    user: UserId,
    session: CredentialId,
}

/// A login that is through but for its session.
#[derive(Clone)]
struct Admission {
    user: UserId,
    ends: UnixMillis,
}

/// By which of our paths a browser comes back. The provider has to know it beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallbackPath {
    Canonical,
    /// `/api/oauth/callback/…`, as AIezzy's operators have registered it.
    Aiezzy,
}

/// Where a browser is to go, and the cookie that it must bring back.
pub struct Departure {
    pub url: String,
    pub cookie: String,
}

/// What came back with a browser.
#[derive(Default)]
pub struct Arrival {
    pub provider: String,
    pub state: String,
    pub code: Option<String>,
    pub iss: Option<String>,
    /// The provider's own word for why not.
    pub error: Option<String>,
    pub cookie: Option<String>,
    pub address: Option<IpAddr>,
    pub user_agent: Option<String>,
    pub style: SessionStyle,
}

/// How a login at a provider ended.
pub enum Landing {
    Session(Box<(User, SessionView)>),
    /// To be exchanged for a session; `second_factor`: together with a code of it.
    Code {
        code: String,
        user: User,
        redirect: Option<String>,
        second_factor: bool,
    },
    Linked {
        user: User,
        provider: String,
        redirect: Option<String>,
    },
}

/// A login of a user at a provider.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Identity {
    pub user: UserId,
    pub provider: String,
    pub subject: String,
    pub email: Option<String>,
    pub linked_at: UnixMillis,
}

pub(super) struct OauthState {
    providers: arc_swap::ArcSwap<BTreeMap<String, Arc<Provider>>>,
    flows: Cache<SecretMac, Flow>,
    admissions: Cache<SecretMac, Admission>,
    /// Codes that were given lately, used and unused: one of them is no guess.
    made: Cache<SecretMac, ()>,
}

impl OauthState {
    pub(super) fn new(providers: &BTreeMap<String, OauthProvider>, clock: &clock::Clock) -> Self {
        let cache = |lasts| Cache::builder().max_capacity(MAX_FLOWS).time_to_live(lasts).build();
        let state = Self {
            providers: arc_swap::ArcSwap::from_pointee(BTreeMap::new()),
            flows: cache(FLOW_LASTS),
            admissions: Cache::builder().max_capacity(MAX_FLOWS).time_to_live(CODE_LASTS).build(),
            made: Cache::builder().max_capacity(MAX_FLOWS).time_to_live(FLOW_LASTS).build(),
        };
        state.reconfigure(providers, clock);
        state
    }

    pub(super) fn reconfigure(&self, providers: &BTreeMap<String, OauthProvider>, clock: &clock::Clock) {
        let known = self.providers.load();
        let made = providers.iter().filter_map(|(name, config)| {
            // One that has not changed keeps what it has read.
            let same = known.get(name).filter(|provider| provider.config == *config).cloned();
            let provider = match same {
                Some(provider) => provider,
                None => match Provider::new(config.clone(), clock.clone()) {
                    Ok(provider) => Arc::new(provider),
                    Err(error) => {
                        tracing::error!(provider = name, %error, "a login provider cannot be used");
                        return None;
                    }
                },
            };
            Some((name.clone(), provider))
        });
        self.providers.store(Arc::new(made.collect()));
    }
}

fn bad_state() -> Reject {
    Reject::BadRequest("This login is not known here, used or too old; begin again".into())
}

fn random() -> Result<String, Reject> {
    clock::random_alphanumerics(RANDOM_LEN).map_err(|error| no_randomness(&error))
}

/// What a client is told; the rest is in the log.
fn told(provider: &str, failure: Failure) -> Reject {
    match failure {
        Failure::Provider(why) => {
            tracing::warn!(provider, why, "a login provider cannot be asked");
            Reject::UpstreamUnreachable
        }
        Failure::Refused(why) => {
            tracing::warn!(provider, why, "a login at a provider is not believed");
            Reject::BadRequest("The provider did not confirm this login; begin again".into())
        }
    }
}

impl Accounts {
    /// The providers there are: name and label.
    pub fn login_providers(&self) -> Vec<(String, String)> {
        let providers = self.oauth.providers.load();
        providers.iter().map(|(name, provider)| (name.clone(), provider.config.label.clone())).collect()
    }

    fn provider(&self, name: &str) -> Result<Arc<Provider>, Reject> {
        self.oauth.providers.load().get(name).cloned().ok_or_else(|| {
            Reject::BadRequest("There is no such login provider; GET /v1/oauth/providers lists them".into())
        })
    }

    fn callback(&self, provider: &str, back_by: CallbackPath) -> String {
        let settings = self.settings();
        let base = settings.base_url.as_deref().unwrap_or_default().trim_end_matches('/');
        match back_by {
            CallbackPath::Canonical => format!("{base}/v1/oauth/callback/{provider}"),
            CallbackPath::Aiezzy => format!("{base}/api/oauth/callback/{provider}"),
        }
    }

    /// Whether cookies can be marked as for TLS only: whether users reach this service so.
    pub fn is_reached_by_tls(&self) -> bool {
        self.settings().base_url.as_deref().is_some_and(|base| base.starts_with("https://"))
    }

    /// Begins a login at a provider, or, with `link_to`, adds a way in to an account.
    ///
    /// # Errors
    /// [`Reject::BadRequest`] for an unknown provider, [`Reject::Invalid`] for a redirect that is not allowed,
    /// [`Reject::UpstreamUnreachable`]; [`Reject::Forbidden`] where logins are checked by a verifier.
    pub async fn begin_login(
        &self,
        provider: &str,
        redirect: Option<&str>,
        link_to: Option<LinkTo>,
        back_by: CallbackPath,
    ) -> Result<Departure, Reject> {
        let known = self.provider(provider)?;
        if link_to.is_none() {
            self.judge_social_login()?;
        }
        if let Some(target) = redirect
            && !allows_redirect(&self.settings().accounts.redirects, target)
        {
            return Err(Reject::Invalid(vec!["redirect: is not in accounts.redirects".into()]));
        }
        let secrets = Secrets { state: random()?, nonce: random()?, verifier: random()? };
        let cookie = random()?;
        let url =
            known.authorize(&self.callback(provider, back_by), &secrets).await.map_err(|why| told(provider, why))?;
        let state = self.pepper.mac_in("oauth state", secrets.state.as_bytes());
        let flow = Flow {
            provider: provider.to_owned(),
            secrets,
            back_by,
            browser: self.pepper.mac_in("oauth browser", cookie.as_bytes()),
            redirect: redirect.map(str::to_owned),
            link_to,
            ends: self.clock.now().plus(FLOW_LASTS),
        };
        self.oauth.flows.insert(state, flow);
        Ok(Departure { url, cookie })
    }

    /// Takes a browser that comes back from a provider.
    ///
    /// # Errors
    /// [`Reject::BadRequest`] for a state that is unknown, used, too old, another browser's or another provider's, and for a
    /// login that the provider does not confirm; [`Reject::Conflict`] for an address whose account this login does not open;
    /// [`Reject::Forbidden`].
    pub async fn land(&self, arrival: Arrival) -> Result<Landing, Reject> {
        let provider = self.provider(&arrival.provider)?;
        let state = self.pepper.mac_in("oauth state", arrival.state.as_bytes());
        // Out of the memory first: whatever is wrong with it, it is not tried twice.
        let flow = self.oauth.flows.remove(&state).filter(|flow| self.clock.now() < flow.ends).ok_or_else(bad_state)?;
        let browser = arrival.cookie.as_deref().map(|cookie| self.pepper.mac_in("oauth browser", cookie.as_bytes()));
        if browser != Some(flow.browser) || flow.provider != arrival.provider {
            return Err(bad_state());
        }
        if flow.link_to.is_none() {
            self.judge_social_login()?;
        }
        let failed = |why| told(&arrival.provider, why);
        if !provider.accepts_issuer(arrival.iss.as_deref()).await.map_err(failed)? {
            return Err(bad_state());
        }
        let Some(code) = arrival.code.as_deref().filter(|_| arrival.error.is_none()) else {
            return Err(Reject::BadRequest("The provider did not let you in".into()));
        };
        let callback = self.callback(&arrival.provider, flow.back_by);
        let claims = provider.identify(code, &callback, &flow.secrets).await.map_err(failed)?;
        if let Some(link_to) = flow.link_to {
            let user = self.link_identity(link_to, &arrival.provider, &claims).await?;
            return Ok(Landing::Linked { user, provider: arrival.provider, redirect: flow.redirect });
        }
        let user = self.user_of_claims(&provider, &arrival.provider, &claims).await?;
        may_enter(&user)?;
        let second_factor = user.mfa_enabled;
        if second_factor || flow.redirect.is_some() {
            let code = random()?;
            let admission = Admission { user: user.id, ends: self.clock.now().plus(CODE_LASTS) };
            let mac = self.pepper.mac_in("oauth code", code.as_bytes());
            self.oauth.admissions.insert(mac, admission);
            self.oauth.made.insert(mac, ());
            return Ok(Landing::Code { code, user, redirect: flow.redirect, second_factor });
        }
        let address = arrival.address.unwrap_or(IpAddr::from([127, 0, 0, 1]));
        let entrance = Entrance { address, user_agent: arrival.user_agent, style: arrival.style };
        self.let_in(user.id, &entrance, None, None).await.map(|in_| Landing::Session(Box::new(in_)))
    }

    /// Exchanges the code of a login for its session. The code is good once; a wrong code of the second factor does not burn
    /// it, but counts.
    ///
    /// # Errors
    /// [`Reject::BadRequest`] for a code that is unknown, used or too old; [`Reject::AddressBlocked`]; those of a login.
    pub async fn exchange_login(
        &self,
        code: &str,
        factor: Option<&str>,
        entrance: Entrance,
    ) -> Result<(User, SessionView), Reject> {
        let door = Door::public(entrance.address);
        self.refuse_blocked(door)?;
        self.judge_social_login()?;
        let mac = self.pepper.mac_in("oauth code", code.as_bytes());
        let taken = self.oauth.admissions.remove(&mac).filter(|admission| self.clock.now() < admission.ends);
        let Some(admission) = taken else {
            // Apps send one again, or too late.
            if !self.oauth.made.contains_key(&mac) {
                self.count_guess(door, Guess::Code)?;
            }
            return Err(bad_state());
        };
        if let Err(reject) = self.second_factor(Principal::User(admission.user), factor, entrance.address).await {
            self.oauth.admissions.insert(mac, admission);
            return Err(reject);
        }
        self.let_in(admission.user, &entrance, None, None).await
    }

    fn identity_mac(&self, provider: &str, subject: &str) -> SecretMac {
        self.pepper.mac_in("oauth identity", format!("{provider}\0{subject}").as_bytes())
    }

    async fn user_of_claims(&self, provider: &Provider, name: &str, claims: &Claims) -> Result<User, Reject> {
        let mac = self.identity_mac(name, &claims.subject);
        for _ in 0..MAX_TRIES {
            if let Some(identity) = self.load::<Identity>(tables::identity(&mac))? {
                return Ok(self.live_user(Some(identity.value.user))?.ok_or(Reject::Unauthenticated)?.value);
            }
            let email = claims.email.as_deref().map(normalized).filter(|email| email_fault("email", email).is_none());
            let Some(email) = email else {
                return Err(Reject::Conflict("The provider gives no email address, and an account needs one".into()));
            };
            let done = match self.live_user(self.find_user(&email)?)? {
                // Whoever this is, he has not shown that the address is his.
                Some(_) if !claims.email_verified => {
                    return Err(Reject::Conflict(
                        "An account with this address exists; sign in to it and link this login there".into(),
                    ));
                }
                Some(row) if row.value.email_verified => self.link_verified(row.value.id, name, claims).await,
                Some(row) => self.take_over(row.value.id, name, claims).await,
                None if !provider.config.allow_registration || !self.settings().accounts.registration => {
                    return Err(Reject::Forbidden("Registration is closed"));
                }
                None => self.register_claims(name, &email, claims).await,
            };
            match done {
                // Registered, linked or changed by somebody else at this moment: look again.
                Err(Reject::Conflict(_)) => continue,
                done => return done,
            }
        }
        Err(too_busy())
    }

    fn add_identity(&self, user: &User, provider: &str, claims: &Claims, batch: &mut Batch) -> Result<(), Reject> {
        let mac = self.identity_mac(provider, &claims.subject);
        let identity = Identity {
            user: user.id,
            provider: provider.to_owned(),
            subject: claims.subject.clone(),
            email: claims.email.clone(),
            linked_at: self.clock.now(),
        };
        let (by_mac, by_user) = (tables::identity(&mac), tables::identity_of_user(user.id, provider));
        batch.require_absent(by_mac.clone()).require_absent(by_user.clone());
        let pointer = tables::encode(&secrets::mac_to_hex(&mac)).map_err(|error| self.failed(&error))?;
        batch.put(by_mac, super::encode_bounded(&identity)?).put(by_user, pointer);
        Ok(())
    }

    fn refuse_double(&self, user: UserId, provider: &str, claims: &Claims) -> Result<(), Reject> {
        let mac = self.identity_mac(provider, &claims.subject);
        let is_there = |key: Vec<u8>| Ok(self.store().get(&key).map_err(|error| self.failed(&error))?.is_some());
        if is_there(tables::identity(&mac))? {
            return Err(Reject::Conflict("This login belongs to an account already".into()));
        }
        if is_there(tables::identity_of_user(user, provider))? {
            return Err(Reject::Conflict("This account has a login at this provider already; remove it first".into()));
        }
        Ok(())
    }

    async fn link_identity(&self, link_to: LinkTo, provider: &str, claims: &Claims) -> Result<User, Reject> {
        let LinkTo { user, session } = link_to;
        let edit = |row: &mut User, batch: &mut Batch| {
            may_enter(row)?;
            refuse_waiting(row)?;
            let asking = self.load::<String>(tables::session_of_user(user, session))?.ok_or_else(bad_state)?;
            batch.require_equal(asking.key, asking.raw);
            self.refuse_double(user, provider, claims)?;
            self.add_identity(row, provider, claims, batch)?;
            self.post(row, Letter::new(LetterKind::LoginLinked).with("provider", provider), batch)
        };
        self.change_user(user, Forget::Nothing, edit).await
    }

    /// Both sides have proved the address.
    async fn link_verified(&self, user: UserId, provider: &str, claims: &Claims) -> Result<User, Reject> {
        let edit = |row: &mut User, batch: &mut Batch| {
            if row.status == Status::Deleted || !row.email_verified {
                return Err(Reject::Conflict("changed".into()));
            }
            // The provider has had an answer from the address, which may be what the account waits for.
            answered_from(&row.email.clone(), row);
            refuse_waiting(row)?;
            self.refuse_double(user, provider, claims)?;
            self.add_identity(row, provider, claims, batch)?;
            self.post(row, Letter::new(LetterKind::LoginLinked).with("provider", provider), batch)
        };
        self.change_user(user, Forget::Nothing, edit).await
    }

    /// Somebody registered with this address and never proved it; now its owner comes. Nothing that the other left opens the
    /// account any more: password, keys, sessions, second factor and other logins go.
    async fn take_over(&self, id: UserId, provider: &str, claims: &Claims) -> Result<User, Reject> {
        let edit = |user: &mut User, batch: &mut Batch| {
            if user.status == Status::Deleted || user.email_verified {
                return Err(Reject::Conflict("changed".into()));
            }
            // An address that staff wrote is not one that nobody came for: it must not end the owner's second factor.
            refuse_waiting(user)?;
            self.close_credentials(id, batch)?;
            self.make_his_own(user, batch)?;
            user.mfa_enabled = false;
            user.password_hash = None;
            user.must_change_password = false;
            user.prove_email();
            if user.status == Status::Pending {
                user.status = Status::Active;
            }
            for kind in super::tokens::TokenKind::ALL {
                self.drop_link(id, kind, batch)?;
            }
            // After the deletion of his other logins.
            let mac = self.identity_mac(provider, &claims.subject);
            batch.require_absent(tables::identity(&mac));
            self.put_identity(user, provider, claims, batch)?;
            self.post(user, Letter::new(LetterKind::LoginLinked).with("provider", provider), batch)
        };
        let user = self.change_user(id, Forget::Credentials, edit).await?;
        // Opened by the old password between the reading and the commit.
        self.revoke_sessions(id, None).await?;
        Ok(user)
    }

    /// What the maker of an account said of himself goes, and there is a new default key, for the owner of its address, who
    /// has come at last.
    pub(super) fn make_his_own(&self, user: &mut User, batch: &mut Batch) -> Result<(), Reject> {
        user.about_me.clear();
        user.hobbies.clear();
        user.profile = crate::domain::user::Profile::default();
        let default = super::keys::NewKey { name: super::keys::DEFAULT_KEY.into(), ..super::keys::NewKey::default() };
        self.add_key(user.id, &default, batch).map(|_| ())
    }

    fn put_identity(&self, user: &User, provider: &str, claims: &Claims, batch: &mut Batch) -> Result<(), Reject> {
        let before = batch.preconditions.len();
        self.add_identity(user, provider, claims, batch)?;
        batch.preconditions.truncate(before);
        Ok(())
    }

    async fn register_claims(&self, provider: &str, email: &str, claims: &Claims) -> Result<User, Reject> {
        let settings = self.settings();
        let plan = settings.plan(&settings.accounts.default_plan).ok_or(Reject::Internal)?;
        let (local, _) = email.split_once('@').unwrap_or((email, ""));
        let username = self.free_username(claims.username.as_deref().unwrap_or(local))?;
        let name: String =
            claims.name.clone().unwrap_or_default().chars().filter(|c| !c.is_control()).take(100).collect();
        let name = if name.chars().count() >= 2 { name } else { username.clone() };
        let waits = settings.accounts.email_verification && !claims.email_verified;
        let user = User {
            email_verified: claims.email_verified,
            status: if waits { Status::Pending } else { Status::Active },
            ..User::new(username.into(), name, email.into(), plan.name.clone(), self.clock.now())
        };
        let add = |user: &User, batch: &mut Batch| {
            self.add_identity(user, provider, claims, batch)?;
            if user.email_verified { Ok(()) } else { self.ask_to_verify(user, batch) }
        };
        Ok(self.insert_user(user, &self.fresh_account(plan), KeyLook::Canonical, add).await?.0)
    }

    /// A free username for somebody who has given an email only.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`], [`Reject::Overloaded`].
    pub fn username_like(&self, email: &str) -> Result<String, Reject> {
        self.free_username(email.split('@').next().unwrap_or_default())
    }

    /// A username that is free, as near to the wish as the rules let it be.
    fn free_username(&self, wish: &str) -> Result<String, Reject> {
        let base: String =
            normalized(wish).chars().filter(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).take(40).collect();
        let base = if username_fault(&base).is_none() { base } else { format!("user-{base}") };
        let mut name = base.clone();
        for _ in 0..MAX_TRIES {
            let taken = self.store().get(&tables::user_by_name(&name)).map_err(|error| self.failed(&error))?;
            if taken.is_none() && username_fault(&name).is_none() {
                return Ok(name);
            }
            let more = clock::random_alphanumerics(5).map_err(|error| no_randomness(&error))?;
            name = format!("{base}-{}", more.to_lowercase());
        }
        Err(too_busy())
    }

    /// A user's logins at providers.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`].
    pub fn identities(&self, user: UserId) -> Result<Vec<Identity>, Reject> {
        let from = tables::identities_of_user(user);
        let rows = self.store().range(&from, &prefix_end(&from), 100, Order::Ascending);
        let mut identities = Vec::new();
        for (_, raw) in rows.map_err(|error| self.failed(&error))? {
            let hex: String = tables::decode(&raw).map_err(|error| self.failed(&error))?;
            let Some(mac) = secrets::mac_from_hex(&hex) else { continue };
            identities.extend(self.load::<Identity>(tables::identity(&mac))?.map(|row| row.value));
        }
        Ok(identities)
    }

    /// Puts the end of all of a user's logins at providers into a batch.
    pub(super) fn drop_identities(&self, user: UserId, batch: &mut Batch) -> Result<(), Reject> {
        for identity in self.identities(user)? {
            batch.delete(tables::identity(&self.identity_mac(&identity.provider, &identity.subject)));
            batch.delete(tables::identity_of_user(user, &identity.provider));
        }
        Ok(())
    }

    /// Begins to add a way in to an account; asks for its password.
    ///
    /// # Errors
    /// Those of [`Accounts::step_up`] and [`Accounts::begin_login`].
    pub async fn begin_link(
        &self,
        user: &User,
        provider: &str,
        proof: Proof,
        redirect: Option<&str>,
        address: IpAddr,
    ) -> Result<Departure, Reject> {
        let (session, _) = self.session_of_token(&proof.token)?;
        self.step_up(user.id, proof, address).await?;
        self.refuse_waiting_principal(Principal::User(user.id))?;
        let link_to = LinkTo { user: user.id, session: session.value.id };
        self.begin_login(provider, redirect, Some(link_to), CallbackPath::Canonical).await
    }

    /// Removes a way in; asks for the password, where there is one.
    ///
    /// # Errors
    /// Those of [`Accounts::step_up`]; [`Reject::NotFound`]; [`Reject::Conflict`] for the last one.
    pub async fn unlink(&self, user: UserId, provider: &str, proof: Proof, address: IpAddr) -> Result<User, Reject> {
        self.step_up(user, proof, address).await?;
        let edit = |row: &mut User, batch: &mut Batch| {
            super::users::refuse_deleted(row)?;
            let identities = self.identities(user)?;
            let identity = identities.iter().find(|identity| identity.provider == provider).ok_or(Reject::NotFound)?;
            if row.password_hash.is_none() && identities.len() == 1 {
                return Err(Reject::Conflict("This is the only way into the account; set a password first".into()));
            }
            batch.delete(tables::identity(&self.identity_mac(provider, &identity.subject)));
            batch.delete(tables::identity_of_user(user, provider));
            // Another removal at the same moment must see this one: of two, both would be the last but one.
            row.keys_changed = row.keys_changed.wrapping_add(1);
            self.post(row, Letter::new(LetterKind::LoginUnlinked).with("provider", provider), batch)
        };
        self.change_user(user, Forget::Nothing, edit).await
    }
}

/// Whether a browser may be sent there: the same origin as an entry, and below its path. An entry ends in `/*`, or stands for
/// one address.
fn allows_redirect(allowed: &[String], target: &str) -> bool {
    if target.len() > MAX_REDIRECT || !target.bytes().all(|b| b.is_ascii_graphic()) || target.contains(['\\', '#', '@'])
    {
        return false;
    }
    // What the callback adds must be ours alone: of two, an app might read the other.
    let query = target.split_once('?').map_or("", |(_, query)| query);
    if query.split('&').any(|pair| matches!(pair.split('=').next(), Some("code" | "linked"))) {
        return false;
    }
    let path = target.split('?').next().unwrap_or_default();
    let climbs = path.to_lowercase().replace("%2e", ".").split('/').any(|part| part == "..");
    !climbs
        && allowed.iter().any(|entry| match entry.strip_suffix('*') {
            Some(prefix) => target.starts_with(prefix),
            None => target == entry || (target.starts_with(entry.as_str()) && target[entry.len()..].starts_with('?')),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_is_sent_only_where_it_may_go() {
        let allowed = ["https://app.example.com/*".to_owned(), "http://localhost:3000/done".to_owned()];
        for target in ["https://app.example.com/", "https://app.example.com/a?b=c", "http://localhost:3000/done?x=1"] {
            assert!(allows_redirect(&allowed, target), "{target}");
        }
        for target in [
            "https://app.example.com.evil.example/",
            "https://app.example.com@evil.example/",
            "https://evil.example/https://app.example.com/",
            "//app.example.com/",
            "https://app.example.com/a?code=x",
            "https://app.example.com/a?b=c&linked",
            "http://app.example.com/",
            "https://app.example.com\\@evil.example/",
            "https://app.example.com/%2e%2e/x",
            "javascript:alert(1)",
            "http://localhost:3000/done2",
            "https://app.example.com/\r\nset-cookie: a=b",
            "https://app.example.com",
        ] {
            assert!(!allows_redirect(&allowed, target), "{target}");
        }
    }
}
