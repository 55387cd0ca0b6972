//! The second factor: time-based codes (RFC 6238: SHA-1, six digits, thirty seconds) and recovery codes.
//!
//! Owns the rows of second factors of users and staff, and the count of wrong codes, which is apart from that of wrong
//! passwords. A step's code and a recovery code are each good for one use, however many try at once: whoever uses one
//! writes the row as it was before. The secret lies sealed, recovery codes as MACs.

use std::net::IpAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use totp_rs::{Algorithm, Builder, Secret, Totp};

use super::blocks::Guess;
use super::guesses::{Door, retire};
use super::mail::{Letter, LetterKind};
use super::proof::refuse_waiting;
use super::seal::Purpose;
use super::secrets::{self, Minted};
use super::{Accounts, Forget, LOGIN_TURNS, Loaded, MAX_TRIES, no_randomness, too_busy};
use crate::clock::{self, UnixMillis};
use crate::domain::ids::SecretMac;
use crate::domain::session::Principal;
use crate::domain::user::User;
use crate::error::Reject;
use crate::store::{Batch, StoreError, tables};
use crate::telemetry::metrics::Login;

const DIGITS: u8 = 6;
const STEP_SECONDS: u64 = 30;
/// Steps before and after the present one whose codes are taken too: clocks differ.
const SKEW: u16 = 1;
/// As RFC 4226 asks for: 160 bits.
const SECRET_BYTES: usize = 20;
const RECOVERY_CODES: usize = 10;
/// 12 × 5.95 bits, in groups of four.
const RECOVERY_LEN: usize = 12;
/// Longest text that is looked at as a code.
const MAX_CODE_BYTES: usize = 64;

/// A second factor's row.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Factor {
    /// Sealed.
    secret: String,
    /// False until its owner has shown a code.
    enabled: bool,
    /// The newest step whose code has been used: it and what comes before it open nothing any more.
    #[serde(default)]
    last_step: u64,
    /// Hex of the MACs of recovery codes that have not been used.
    #[serde(default)]
    recovery: Vec<String>,
    made_at: UnixMillis,
}

/// How it stands with somebody's second factor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FactorStatus {
    pub enabled: bool,
    /// Set up, and no code of it seen yet.
    pub pending: bool,
    pub recovery_codes_left: usize,
}

/// What an authenticator needs, shown once.
pub struct FactorSetup {
    /// Base32, to be typed.
    pub secret: Minted,
    /// `otpauth://totp/…`
    pub uri: Minted,
    /// The same as a picture: `data:image/svg+xml;base64,…`
    pub qr: Minted,
}

fn purpose(whose: Principal) -> Purpose<'static> {
    match whose {
        Principal::User(id) => Purpose { what: "totp of a user", whose: id.0, which: 0 },
        Principal::Staff(id) => Purpose { what: "totp of staff", whose: id.0, which: 0 },
    }
}

/// Which of an authenticator's codes a text is.
enum Step {
    Fresh(u64),
    /// Right, but it or a later one has been used.
    Used,
    None,
}

/// What a code comes to.
enum Shot {
    /// `factor`: as it is afterwards; `recovery`: the recovery code that is used up by it.
    Opens {
        factor: Factor,
        recovery: Option<SecretMac>,
    },
    /// Right, but not any more.
    Used,
    Misses,
}

fn already_on() -> Reject {
    Reject::Conflict("A second factor is on already; switch it off first".into())
}

impl Accounts {
    /// How it stands with the second factor of a user or a member of the staff.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`].
    pub fn factor_status(&self, whose: Principal) -> Result<FactorStatus, Reject> {
        let factor = self.load::<Factor>(tables::factor(whose))?;
        Ok(factor.map_or_else(FactorStatus::default, |row| FactorStatus {
            enabled: row.value.enabled,
            pending: !row.value.enabled,
            recovery_codes_left: row.value.recovery.len(),
        }))
    }

    /// Makes a secret for an authenticator. It asks for nothing until [`Accounts::enable_factor`]; a further call replaces it.
    ///
    /// # Errors
    /// [`Reject::Conflict`] while one is on; [`Reject::OwnerProofRequired`].
    pub async fn set_up_factor(&self, whose: Principal, name: &str) -> Result<FactorSetup, Reject> {
        self.refuse_waiting_principal(whose)?;
        let mut raw = [0u8; SECRET_BYTES];
        clock::random_bytes(&mut raw).map_err(|error| no_randomness(&error))?;
        let factor = Factor {
            secret: self.sealer.seal(purpose(whose), &raw)?,
            enabled: false,
            last_step: 0,
            recovery: Vec::new(),
            made_at: self.clock.now(),
        };
        let mut batch = Batch::default();
        match self.load::<Factor>(tables::factor(whose))? {
            Some(row) if row.value.enabled => return Err(already_on()),
            Some(row) => batch = row.unchanged(),
            None => {
                batch.require_absent(tables::factor(whose));
            }
        }
        batch.put(tables::factor(whose), super::encode_bounded(&factor)?);
        self.commit_factor(whose, batch).await?;
        let totp = self.totp(&raw, Some(name))?;
        let uri = totp.to_url().map_err(|_| Reject::Internal)?;
        let picture = qrcode::QrCode::new(uri.as_bytes()).map_err(|_| Reject::Internal)?;
        let picture = picture.render::<qrcode::render::svg::Color<'_>>().min_dimensions(240, 240).build();
        Ok(FactorSetup {
            secret: Minted::again(totp.secret().to_base32()),
            uri: Minted::again(uri),
            qr: Minted::again(format!("data:image/svg+xml;base64,{}", STANDARD.encode(picture))),
        })
    }

    /// Switches a second factor on with a code of it, and makes recovery codes, shown here and never again.
    ///
    /// # Errors
    /// [`Reject::NotFound`] when nothing is set up, [`Reject::Conflict`] when it is on already, [`Reject::WrongCode`],
    /// [`Reject::Locked`]; [`Reject::OwnerProofRequired`].
    pub async fn enable_factor(&self, whose: Principal, code: &str, address: IpAddr) -> Result<Vec<Minted>, Reject> {
        self.refuse_waiting_principal(whose)?;
        let door = Door::of(whose, address);
        let (subject, _turn) = self.factor_turn(whose, door).await?;
        for _ in 0..MAX_TRIES {
            let row = self.load::<Factor>(tables::factor(whose))?.ok_or(Reject::NotFound)?;
            if row.value.enabled {
                return Err(already_on());
            }
            let Step::Fresh(step) = self.step_of(whose, &row.value, code)? else {
                return Err(self.wrong_code(subject, door));
            };
            let (codes, macs) = self.mint_recovery_codes(whose)?;
            let factor = Factor { enabled: true, last_step: step, recovery: macs, ..row.value.clone() };
            let mut batch = row.unchanged();
            batch.put(row.key, super::encode_bounded(&factor)?);
            self.flag_user(whose, true, &mut batch)?;
            match self.commit_for_factor(whose, batch).await {
                Ok(()) => return Ok(codes),
                Err(error) => self.judge_conflict(&error)?,
            }
        }
        Err(too_busy())
    }

    /// Switches the second factor off.
    ///
    /// # Errors
    /// [`Reject::NotFound`] when there is none; [`Reject::OwnerProofRequired`].
    pub async fn disable_factor(&self, whose: Principal) -> Result<(), Reject> {
        for _ in 0..MAX_TRIES {
            let row = self.load::<Factor>(tables::factor(whose))?.ok_or(Reject::NotFound)?;
            let mut batch = row.unchanged();
            batch.delete(row.key);
            self.flag_user(whose, false, &mut batch)?;
            match self.commit_for_factor(whose, batch).await {
                Ok(()) => return Ok(()),
                Err(error) => self.judge_conflict(&error)?,
            }
        }
        Err(too_busy())
    }

    /// Makes new recovery codes; the old ones open nothing any more.
    ///
    /// # Errors
    /// [`Reject::NotFound`] when no second factor is on; [`Reject::OwnerProofRequired`].
    pub async fn renew_recovery_codes(&self, whose: Principal) -> Result<Vec<Minted>, Reject> {
        self.refuse_waiting_principal(whose)?;
        for _ in 0..MAX_TRIES {
            let row = self.load::<Factor>(tables::factor(whose))?.filter(|row| row.value.enabled);
            let row = row.ok_or(Reject::NotFound)?;
            let (codes, macs) = self.mint_recovery_codes(whose)?;
            let mut batch = row.unchanged();
            row.value
                .recovery
                .iter()
                .filter_map(|hex| secrets::mac_from_hex(hex))
                .for_each(|mac| retire(&mac, &mut batch));
            batch.put(row.key, super::encode_bounded(&Factor { recovery: macs, ..row.value })?);
            match self.commit_for_factor(whose, batch).await {
                Ok(()) => return Ok(codes),
                Err(error) => self.judge_conflict(&error)?,
            }
        }
        Err(too_busy())
    }

    /// Asks for the second factor of somebody whose first was right. Who has none passes. A code is used up by it.
    ///
    /// # Errors
    /// [`Reject::CodeRequired`] without a code, [`Reject::WrongCode`], [`Reject::Locked`] after too many of those,
    /// [`Reject::AddressBlocked`].
    pub(super) async fn second_factor(
        &self,
        whose: Principal,
        code: Option<&str>,
        address: IpAddr,
    ) -> Result<(), Reject> {
        self.second_factor_at(Door::of(whose, address), whose, code).await
    }

    /// As [`Accounts::second_factor`], through this door.
    pub(super) async fn second_factor_at(
        &self,
        door: Door,
        whose: Principal,
        code: Option<&str>,
    ) -> Result<(), Reject> {
        if self.load::<Factor>(tables::factor(whose))?.is_none_or(|row| !row.value.enabled) {
            return Ok(());
        }
        let Some(code) = code.map(str::trim).filter(|code| !code.is_empty()) else { return Err(Reject::CodeRequired) };
        let (subject, _turn) = self.factor_turn(whose, door).await?;
        for _ in 0..MAX_TRIES {
            let Some(row) = self.load::<Factor>(tables::factor(whose))?.filter(|row| row.value.enabled) else {
                return Ok(());
            };
            let (factor, recovery) = match self.use_code(whose, &row, code)? {
                Shot::Opens { factor, recovery } => (factor, recovery),
                // One that was right once is no guess: a form is sent twice, two apps use one code.
                Shot::Used => {
                    self.metrics.login(Login::Failed);
                    return Err(Reject::WrongCode);
                }
                Shot::Misses => return Err(self.wrong_code(subject, door)),
            };
            let mut batch = row.unchanged();
            if let Some(mac) = recovery {
                retire(&mac, &mut batch);
                self.tell_of_recovery(whose, &mut batch)?;
            }
            batch.put(row.key, super::encode_bounded(&factor)?);
            self.end_wait_by_factor(whose, &mut batch)?;
            match self.commit_for_factor(whose, batch).await {
                Ok(()) => {
                    self.factor_failures.succeeded(&subject);
                    return Ok(());
                }
                Err(error) => self.judge_conflict(&error)?,
            }
        }
        Err(too_busy())
    }

    /// Asks somebody who is logged in for his second factor, which he must have.
    ///
    /// # Errors
    /// [`Reject::NotFound`] when none is on, and those of a login.
    pub async fn prove_factor(&self, whose: Principal, code: &str, address: IpAddr) -> Result<(), Reject> {
        if !self.factor_status(whose)?.enabled {
            return Err(Reject::NotFound);
        }
        self.second_factor(whose, Some(code), address).await
    }

    /// What a code does to a factor.
    fn use_code(&self, whose: Principal, row: &Loaded<Factor>, code: &str) -> Result<Shot, Reject> {
        match self.step_of(whose, &row.value, code)? {
            Step::Fresh(step) => {
                let factor = Factor { last_step: step, ..row.value.clone() };
                return Ok(Shot::Opens { factor, recovery: None });
            }
            Step::Used => return Ok(Shot::Used),
            Step::None => {}
        }
        let mac = self.recovery_mac(whose, code);
        let hex = secrets::mac_to_hex(&mac);
        let mut factor = row.value.clone();
        let before = factor.recovery.len();
        factor.recovery.retain(|left| *left != hex);
        if factor.recovery.len() < before {
            return Ok(Shot::Opens { factor, recovery: Some(mac) });
        }
        Ok(if self.was_good(&mac)? { Shot::Used } else { Shot::Misses })
    }

    /// The step that a code belongs to, if it is one of now.
    fn step_of(&self, whose: Principal, factor: &Factor, code: &str) -> Result<Step, Reject> {
        let digits: String = code.chars().filter(|c| !c.is_whitespace()).collect();
        if digits.len() != usize::from(DIGITS) || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Ok(Step::None);
        }
        let Some(secret) = self.sealer.open(purpose(whose), &factor.secret) else {
            tracing::error!("a sealed second factor does not open: is the vault's key another one?");
            return Err(Reject::Internal);
        };
        let now = u64::try_from(self.clock.now().seconds()).unwrap_or(0);
        Ok(match self.totp(&secret, None)?.check(&digits, now) {
            Some(step) if step > factor.last_step => Step::Fresh(step),
            Some(_) => Step::Used,
            None => Step::None,
        })
    }

    fn totp(&self, secret: &[u8], name: Option<&str>) -> Result<Totp, Reject> {
        let settings = self.settings();
        let issuer = settings.accounts.mfa.issuer.clone();
        let builder = Builder::new()
            .with_algorithm(Algorithm::SHA1)
            .with_digits(DIGITS)
            .with_skew(SKEW)
            .with_step_duration(STEP_SECONDS)
            .with_secret(Secret::from(secret.to_vec()))
            .with_account_name(name.unwrap_or("user").replace(':', " "))
            .with_issuer(Some(issuer));
        builder.build().map_err(|error| {
            tracing::error!(%error, "no authenticator can be made");
            Reject::Internal
        })
    }

    fn mint_recovery_codes(&self, whose: Principal) -> Result<(Vec<Minted>, Vec<String>), Reject> {
        let mut codes = Vec::with_capacity(RECOVERY_CODES);
        for _ in 0..RECOVERY_CODES {
            let text = clock::random_alphanumerics(RECOVERY_LEN).map_err(|error| no_randomness(&error))?;
            codes.push(Minted::again(format!("{}-{}-{}", &text[..4], &text[4..8], &text[8..])));
        }
        let macs = codes.iter().map(|code| secrets::mac_to_hex(&self.recovery_mac(whose, code.expose()))).collect();
        Ok((codes, macs))
    }

    fn recovery_mac(&self, whose: Principal, code: &str) -> SecretMac {
        let plain: String = code.chars().filter(char::is_ascii_alphanumeric).take(MAX_CODE_BYTES).collect();
        let bound = [tables::factor(whose), plain.into_bytes()].concat();
        self.pepper.mac_in("recovery code", &bound)
    }

    /// Codes of one person are checked one after the other, so that parallel guesses cannot outrun their count.
    async fn factor_turn(
        &self,
        whose: Principal,
        door: Door,
    ) -> Result<(SecretMac, tokio::sync::MutexGuard<'_, ()>), Reject> {
        let subject = self.pepper.mac_in("second factor", &tables::factor(whose));
        let turn = self.factor_turns[usize::from(subject.0[0]) % LOGIN_TURNS].lock().await;
        self.refuse_blocked(door)?;
        match self.factor_failures.blocked_for(&subject, self.clock.monotonic()) {
            None => Ok((subject, turn)),
            Some(retry_after) => {
                self.metrics.login(Login::Locked);
                Err(Reject::Locked { retry_after })
            }
        }
    }

    fn wrong_code(&self, subject: SecretMac, door: Door) -> Reject {
        self.factor_failures.failed(subject, self.clock.monotonic());
        self.metrics.login(Login::Failed);
        self.count_guess(door, Guess::Code).err().unwrap_or(Reject::WrongCode)
    }

    /// Notes on a user's row whether he has a second factor.
    fn tell_of_recovery(&self, whose: Principal, batch: &mut Batch) -> Result<(), Reject> {
        let Principal::User(id) = whose else { return Ok(()) };
        let Some(user) = self.live_user(Some(id))? else { return Ok(()) };
        self.post(&user.value, Letter::new(LetterKind::RecoveryCodeUsed), batch)
    }

    fn flag_user(&self, whose: Principal, enabled: bool, batch: &mut Batch) -> Result<(), Reject> {
        let Principal::User(id) = whose else { return Ok(()) };
        let row = self.live_user(Some(id))?.ok_or(Reject::NotFound)?;
        // Looked at again here: staff may have changed a way into the account since the call began.
        refuse_waiting(&row.value)?;
        batch.require_equal(row.key.clone(), row.raw.clone());
        let user = User { mfa_enabled: enabled, ..row.value };
        let kind = if enabled { LetterKind::FactorEnabled } else { LetterKind::FactorDisabled };
        self.post(&user, Letter::new(kind), batch)?;
        batch.put(row.key, super::encode_bounded(&user)?);
        Ok(())
    }

    async fn commit_factor(&self, whose: Principal, batch: Batch) -> Result<(), Reject> {
        match self.commit_for_factor(whose, batch).await {
            Ok(()) => Ok(()),
            Err(StoreError::Conflict { .. }) => Err(too_busy()),
            Err(error) => Err(self.failed(&error)),
        }
    }

    async fn commit_for_factor(&self, whose: Principal, batch: Batch) -> Result<(), StoreError> {
        match whose {
            Principal::User(id) => self.commit_for_user(id, batch, Forget::Nothing).await,
            Principal::Staff(_) => self.committer.commit(batch).await,
        }
    }
}

/// How long too many wrong codes lock.
pub(super) const FACTOR_LOCK: Duration = Duration::from_secs(15 * 60);
/// Wrong codes until then.
pub(super) const FACTOR_FAILURES: u32 = 5;
