//! The attacks that every release must stand: each is tried over real sockets, with its exact outcome.

mod deletion;
mod links;
