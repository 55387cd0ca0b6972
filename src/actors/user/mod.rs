//! A user's actor: the only place where that user's credits change.
//!
//! [`ledger`] is the pure core, [`actor`] runs its turns one at a time, [`admission`] is what a call carries until its body is
//! there and [`hold`] what it carries until it is settled, [`once`] sees to it that a repeated call is charged once, [`registry`] keeps the actors that are in use, [`verify`] checks
//! what is on disk. A turn writes nothing itself: what must be durable is marked for the store thread.

pub mod actor;
pub mod admission;
pub mod hold;
pub mod ledger;
#[cfg(test)]
mod ledger_model;
#[cfg(test)]
mod ledger_run;
pub mod once;
pub mod registry;
#[cfg(test)]
mod tests;
pub mod verify;
