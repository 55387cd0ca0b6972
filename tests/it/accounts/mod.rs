//! Accounts over sockets: what users, admins and operators do, in the shapes that the first systems' users know.

mod admins;
mod codes;
mod commands;
mod directory;
mod exports;
mod files;
mod keys;
mod login_check;
mod logs;
mod matrix;
pub mod mfa;
mod own;
pub mod process;
mod secrets;
mod strict;
mod support;
mod transfer;
mod users;
mod walk;

use serde_json::Value;

/// The members of an object, sorted.
#[track_caller]
fn members(value: &Value) -> Vec<&str> {
    let mut names: Vec<&str> =
        value.as_object().unwrap_or_else(|| panic!("not an object: {value}")).keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

/// `2026-01-15T12:00:00Z`: RFC 3339 in UTC, whole seconds.
#[track_caller]
fn assert_time(value: &Value) {
    let text = value.as_str().unwrap_or_else(|| panic!("not a time: {value}"));
    assert!(text.len() == 20 && text.ends_with('Z'), "{text}");
    assert!(tollgate::clock::UnixMillis::parse_rfc3339(text).is_some(), "{text}");
}
