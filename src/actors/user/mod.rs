//! A user's actor: the only place where that user's credits change.
//!
//! [`ledger`] is the pure core, [`actor`] runs its turns one at a time, [`hold`] is what a call carries until it is settled,
//! [`registry`] keeps the actors that are in use. Never does input or output in a turn: what must be durable is marked for
//! the store thread.

pub mod actor;
pub mod hold;
pub mod ledger;
pub mod registry;
