//! Address rules: who may come in at all.
//!
//! Owns the order of judgement: a block for failed credentials first, then the rules and the whitelist mode. Never keeps
//! rules itself (that is the accounts' address book, which admins edit).

use super::client_ip::ClientIp;
use crate::accounts::addresses::AddressBook;
use crate::accounts::blocks::AddressBlocks;
use crate::clock::{Monotonic, UnixMillis};
use crate::error::Reject;

/// `now` decides which rules have expired, `ticks` which blocks have.
///
/// # Errors
/// [`Reject::AddressDenied`].
pub fn check(
    book: &AddressBook,
    blocks: &AddressBlocks,
    client: ClientIp,
    now: UnixMillis,
    ticks: Monotonic,
) -> Result<(), Reject> {
    if blocks.is_blocked(client.0, ticks) || !book.admits(client.0, now) {
        return Err(Reject::AddressDenied);
    }
    Ok(())
}
