//! One-time tokens: what a mailed link proves.
//!
//! Owns the rows `ot/` user id, kind: one token of a kind per user, so that a newer one replaces the older. A row holds the
//! MAC, the end, and the address the token was sent to. A token names its user, so that no index is needed; the rest of it
//! is random. Never says which of wrong, used and expired a token is.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::blocks::Guess;
use super::guesses::{Door, retire};
use super::secrets::{self, Minted};
use super::{Accounts, Loaded, no_randomness};
use crate::clock::{self, UnixMillis};
use crate::domain::ids::UserId;
use crate::error::Reject;
use crate::store::{Batch, prefix_end, tables};

/// What a token is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    VerifyEmail,
    ResetPassword,
    ConfirmEmail,
}

impl TokenKind {
    pub const ALL: [Self; 3] = [Self::VerifyEmail, Self::ResetPassword, Self::ConfirmEmail];

    pub fn byte(self) -> u8 {
        match self {
            Self::VerifyEmail => b'v',
            Self::ResetPassword => b'r',
            Self::ConfirmEmail => b'c',
        }
    }
}

/// A token as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OneTime {
    mac: String,
    pub expires_at: UnixMillis,
    /// Where it was sent; it proves nothing about another address.
    pub email: String,
}

const RANDOM_LEN: usize = 43;

fn no_such_token() -> Reject {
    Reject::BadRequest("This link is wrong, expired or used; ask for a new one".into())
}

impl Accounts {
    /// Makes a token that replaces the user's last of its kind.
    ///
    /// # Errors
    /// [`Reject::Internal`] without randomness.
    pub(super) fn mint_one_time(
        &self,
        user: UserId,
        kind: TokenKind,
        lasts: Duration,
        email: &str,
        batch: &mut Batch,
    ) -> Result<Minted, Reject> {
        self.retire_link(user, kind, batch)?;
        let random = clock::random_alphanumerics(RANDOM_LEN).map_err(|error| no_randomness(&error))?;
        let token = format!("{:x}-{random}", user.0);
        let row = OneTime {
            mac: secrets::mac_to_hex(&self.one_time_mac(kind, &token)),
            expires_at: self.clock.now().plus(lasts),
            email: email.to_owned(),
        };
        batch.put(tables::one_time(user, kind.byte()), tables::encode(&row).map_err(|error| self.failed(&error))?);
        Ok(Minted::again(token))
    }

    fn one_time_mac(&self, kind: TokenKind, token: &str) -> crate::domain::ids::SecretMac {
        self.pepper.mac_in("one time", &[&[kind.byte()], token.as_bytes()].concat())
    }

    /// The row of a token that is good now. Who uses it puts [`use_up`] into the batch. One that never was good is a guess.
    ///
    /// # Errors
    /// [`Reject::BadRequest`], the same for whatever is wrong with it; [`Reject::AddressBlocked`].
    pub(super) fn find_one_time(
        &self,
        kind: TokenKind,
        token: &str,
        address: IpAddr,
    ) -> Result<(UserId, Loaded<OneTime>), Reject> {
        let door = Door::public(address);
        self.refuse_blocked(door)?;
        // MACs under the pepper: where they differ tells nobody anything about the token.
        let mac = self.one_time_mac(kind, token);
        if let Some((user, row)) = self.row_of_token(kind, token)?
            && secrets::mac_from_hex(&row.value.mac) == Some(mac)
        {
            return if self.clock.now() < row.value.expires_at { Ok((user, row)) } else { Err(no_such_token()) };
        }
        // People open links twice, and old ones.
        if !token.is_empty() && !self.was_good(&mac)? {
            self.count_guess(door, Guess::Link)?;
        }
        Err(no_such_token())
    }

    fn row_of_token(&self, kind: TokenKind, token: &str) -> Result<Option<(UserId, Loaded<OneTime>)>, Reject> {
        let user = token.split_once('-').and_then(|(user, _)| u64::from_str_radix(user, 16).ok()).map(UserId);
        let Some(user) = user else { return Ok(None) };
        Ok(self.load::<OneTime>(tables::one_time(user, kind.byte()))?.map(|row| (user, row)))
    }

    /// Ends a user's token of a kind, if there is one.
    pub(super) fn drop_link(&self, user: UserId, kind: TokenKind, batch: &mut Batch) -> Result<(), Reject> {
        self.retire_link(user, kind, batch)?;
        batch.delete(tables::one_time(user, kind.byte()));
        Ok(())
    }

    fn retire_link(&self, user: UserId, kind: TokenKind, batch: &mut Batch) -> Result<(), Reject> {
        if let Some(row) = self.load::<OneTime>(tables::one_time(user, kind.byte()))? {
            retire_token(&row.value, batch);
        }
        Ok(())
    }

    /// Ends what was asked for with the password that an account had before: a new password, and another address.
    pub(super) fn forget_links(&self, user: UserId, batch: &mut Batch) -> Result<(), Reject> {
        self.drop_link(user, TokenKind::ResetPassword, batch)?;
        self.drop_link(user, TokenKind::ConfirmEmail, batch)
    }

    /// Removes tokens that nobody used in time; says how many.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`].
    pub async fn purge_one_time(&self) -> Result<u64, Reject> {
        let (mut from, end) = (tables::ONE_TIME.to_vec(), prefix_end(tables::ONE_TIME));
        let mut purged = 0;
        loop {
            let rows = self.next_rows(&mut from, &end).await?;
            if rows.is_empty() {
                return Ok(purged);
            }
            for (key, raw) in rows {
                let row: OneTime = tables::decode(&raw).map_err(|error| self.failed(&error))?;
                if row.expires_at <= self.clock.now() {
                    let mut batch = Batch::default();
                    batch.require_equal(key.clone(), raw).delete(key);
                    retire_token(&row, &mut batch);
                    // Replaced by a newer one at this moment: that one stays.
                    purged += u64::from(self.committer.commit(batch).await.is_ok());
                }
            }
        }
    }
}

/// Takes a token out of the store together with what it was used for: exactly one of two who use it at once succeeds.
pub(super) fn use_up(row: &Loaded<OneTime>, batch: &mut Batch) {
    batch.require_equal(row.key.clone(), row.raw.clone()).delete(row.key.clone());
    retire_token(&row.value, batch);
}

fn retire_token(token: &OneTime, batch: &mut Batch) {
    if let Some(mac) = secrets::mac_from_hex(&token.mac) {
        retire(&mac, batch);
    }
}

/// What a lost race for a token is to its loser.
pub(super) fn lost(key: &[u8]) -> Option<Reject> {
    key.starts_with(tables::ONE_TIME).then(no_such_token)
}
