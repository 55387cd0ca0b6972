#![doc = include_str!("README.md")]

pub mod accounts;
pub mod actors;
pub mod api;
pub mod app;
pub mod backup;
pub mod clock;
pub mod commands;
pub mod config;
pub mod domain;
pub mod error;
pub mod failpoint;
pub mod gateway;
pub mod mock_upstream;
pub mod store;
pub mod telemetry;
