//! Guesses: what counts as one, and who may make one.
//!
//! Owns the rule that a blocked address may not guess: it is told nothing about any password, code, link or unknown credential,
//! right or wrong, and costs no hash. Good keys and sessions go on, and so does a known device of the account. Owns the
//! memory of credentials that once opened something: one of those is not a guess. That memory is a row for each
//! of [`tables::RETIRED_SLOTS`] slots, which a newer credential takes over, so it is bounded and needs no sweeping.

use std::net::IpAddr;

use super::Accounts;
use super::blocks::{BlockedAddress, Counted, Guess, Port};
use super::jwt::TokenMint;
use super::users::Page;
use crate::clock::UnixMillis;
use crate::domain::ids::SecretMac;
use crate::domain::session::Principal;
use crate::error::Reject;
use crate::store::{Batch, Store, StoreError, tables};
use crate::telemetry::metrics::Login;

/// Where an attempt comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Door {
    pub(super) address: IpAddr,
    pub(super) port: Port,
    /// The account has been opened from this device before: guesses of others at the same address do not shut it out.
    pub(super) known_device: bool,
}

impl Door {
    pub(super) fn public(address: IpAddr) -> Self {
        Self { address, port: Port::Public, known_device: false }
    }

    pub(super) fn of(whose: Principal, address: IpAddr) -> Self {
        Self { address, port: whose.into(), known_device: false }
    }
}

/// A credential as a call shows it. Never printed.
#[derive(Clone, Copy)]
pub struct Shown<'a> {
    pub text: &'a str,
    pub from: IpAddr,
    /// Not so of a cookie: a browser sends the one it has for as long as it has it.
    pub counts: bool,
}

impl<'a> Shown<'a> {
    pub fn new(text: &'a str, from: IpAddr) -> Self {
        Self { text, from, counts: true }
    }
}

/// Notes in a batch that a credential, or what else was good for opening something, opens nothing any more.
pub(super) fn retire(mac: &SecretMac, batch: &mut Batch) {
    batch.put(tables::retired(mac), tables::encode_bytes(&mac.0));
}

fn is_retired(store: &dyn Store, mac: &SecretMac) -> Result<bool, StoreError> {
    let Some(row) = store.get(&tables::retired(mac))? else { return Ok(false) };
    Ok(tables::decode_bytes(&row)? == mac.0)
}

/// Whether something that opens nothing here has opened something once, or opens something else: then nobody has guessed it.
///
/// # Errors
/// The store cannot be read.
pub fn was_ours(store: &dyn Store, tokens: &TokenMint, secret: &[u8], mac: &SecretMac) -> Result<bool, StoreError> {
    let rows =
        [tables::api_key(mac), tables::session(mac), tables::session_by_refresh(mac), tables::spent_refresh(mac)];
    for row in rows {
        if store.get(&row)?.is_some() {
            return Ok(true);
        }
    }
    Ok(is_retired(store, mac)? || tokens.has_signed(secret))
}

impl Accounts {
    /// Refuses an attempt from an address that may not guess.
    ///
    /// # Errors
    /// [`Reject::AddressBlocked`].
    pub(super) fn refuse_blocked(&self, door: Door) -> Result<(), Reject> {
        match self.blocks.blocked_for(door.address, door.port, self.clock.monotonic()) {
            Some(retry_after) if !door.known_device => {
                self.metrics.login(Login::Blocked);
                Err(Reject::AddressBlocked { retry_after })
            }
            _ => Ok(()),
        }
    }

    /// Counts an attempt that was wrong.
    ///
    /// # Errors
    /// [`Reject::AddressBlocked`] for one that others have overtaken: of many guesses at once, so many are told anything as
    /// one after the other would have been.
    pub(super) fn count_guess(&self, door: Door, guess: Guess) -> Result<(), Reject> {
        match self.blocks.failed(door.address, door.port, guess, self.clock.monotonic()) {
            Counted::TooLate => self.refuse_blocked(door),
            Counted::Noted | Counted::Blocks => Ok(()),
        }
    }

    /// Judges a credential that opens nothing, and says what to answer.
    pub(super) fn unknown_credential(&self, shown: Shown<'_>, port: Port) -> Reject {
        if !shown.counts || !self.blocks.counts() {
            return Reject::Unauthenticated;
        }
        // First, so that a blocked address cannot tell what was ours from what never was.
        if let Some(retry_after) = self.blocks.blocked_for(shown.from, port, self.clock.monotonic()) {
            return Reject::AddressBlocked { retry_after };
        }
        let door = Door { address: shown.from, port, known_device: false };
        let Ok(mac) = self.credential_mac(shown.text) else { return Reject::Unauthenticated };
        match was_ours(self.store(), &self.tokens, shown.text.as_bytes(), &mac) {
            Ok(true) => {}
            Ok(false) => {
                if let Err(blocked) = self.count_guess(door, Guess::Credential) {
                    return blocked;
                }
            }
            Err(error) => return self.failed(&error),
        }
        Reject::Unauthenticated
    }

    /// Whether something that is wrong now was good once; `mac` is what was kept of it.
    pub(super) fn was_good(&self, mac: &SecretMac) -> Result<bool, Reject> {
        is_retired(self.store(), mac).map_err(|error| self.failed(&error))
    }

    /// The addresses that may not guess at present, those whose block ends last first, each with the end of its block.
    pub fn blocked_addresses(&self, page: usize, page_size: usize) -> Page<(BlockedAddress, UnixMillis)> {
        let all = self.blocks.list(self.clock.monotonic());
        let total = all.len() as u64;
        let items = all.into_iter().skip(page.saturating_sub(1).saturating_mul(page_size)).take(page_size);
        Page { items: items.map(|block| self.with_end(block)).collect(), page, page_size, total }
    }

    /// Lifts the blocks of an address at one port, or at both. Answers those that there were.
    ///
    /// # Errors
    /// [`Reject::NotFound`] for an address that is not blocked.
    pub fn lift_blocks(
        &self,
        address: IpAddr,
        port: Option<Port>,
    ) -> Result<Vec<(BlockedAddress, UnixMillis)>, Reject> {
        let lifted = self.blocks.lift(address, port, self.clock.monotonic());
        if lifted.is_empty() {
            return Err(Reject::NotFound);
        }
        Ok(lifted.into_iter().map(|block| self.with_end(block)).collect())
    }

    fn with_end(&self, block: BlockedAddress) -> (BlockedAddress, UnixMillis) {
        let ends = self.clock.now().plus(block.ends.since(self.clock.monotonic()));
        (block, ends)
    }
}
