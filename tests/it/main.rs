//! The integration tests: one binary, real sockets, the gateway as its users meet it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

mod accounts;
mod credits;
mod openai_client;
mod refusals;
mod revocation;
mod smoke;
mod bad_input;
mod http_semantics;
mod fake_upstream;
mod server_process;
mod passing_time;
