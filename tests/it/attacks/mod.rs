//! The attacks that every release must stand: each is tried over real sockets, with its exact outcome.
//! `README.md` here says which test stands for which.

mod codes;
pub mod common;
mod deletion;
mod flood;
mod jwt;
mod links;
mod oauth;
mod passwords;
mod quotas;
mod sessions;
mod staff;
mod table;
