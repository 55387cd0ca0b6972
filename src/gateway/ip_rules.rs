//! Address rules: who may come in at all.
//!
//! Owns the order of judgement: the rules and the whitelist mode first, then a block for wrong credentials, where it shuts out
//! good ones too. Never keeps rules itself (that is the accounts' address book, which admins edit).

use super::client_ip::ClientIp;
use crate::accounts::addresses::AddressBook;
use crate::accounts::blocks::AddressBlocks;
use crate::clock::{Monotonic, UnixMillis};
use crate::error::Reject;

/// `now` decides which rules have expired, `ticks` which blocks have.
///
/// # Errors
/// [`Reject::AddressDenied`], [`Reject::AddressBlocked`].
pub fn check(
    book: &AddressBook,
    blocks: &AddressBlocks,
    client: ClientIp,
    now: UnixMillis,
    ticks: Monotonic,
) -> Result<(), Reject> {
    if !book.admits(client.0, now) {
        return Err(Reject::AddressDenied);
    }
    match blocks.shuts_out(client.0, ticks) {
        Some(retry_after) => Err(Reject::AddressBlocked { retry_after }),
        None => Ok(()),
    }
}
