//! Backup and restore of everything a server keeps: rows, conversations, audit trail, secrets.
//!
//! Owns what belongs to a backup, its file format ([`archive`]), how it is taken from a store in use ([`source`]) and how it
//! is put back ([`restore`]). Never changes what it copies, and never deletes what it replaces.

pub mod archive;
pub mod restore;
pub mod source;

/// Folders of the data directory that a backup holds, besides the store's rows: files to which lines or records are only
/// ever added, and that are found whole by their readers whatever a crash cut off.
pub const FOLDERS: [&str; 2] = ["journal", "audit"];
/// The folder of secrets: without the pepper in it no credential of the rows is of use.
pub const SECRETS: &str = "secrets";
/// How deep folders may lie in each other.
const MAX_DEPTH: usize = 4;
