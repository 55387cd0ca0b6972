//! The integration tests: one binary, real sockets, the gateway as its users meet it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

mod accounts;
mod attacks;
mod audit;
mod bad_input;
mod checks;
mod compat;
mod connections;
mod credits;
mod fake_upstream;
mod first_steps;
mod guesses;
mod http_semantics;
mod journal;
mod layers;
mod lifecycle;
mod mail;
mod memory;
mod oauth;
mod openai_client;
mod openapi;
mod passing_time;
mod places;
mod program_log;
mod python_client;
mod refusals;
mod revocation;
mod server_process;
mod smoke;
mod soak;
mod store;
mod usage;
