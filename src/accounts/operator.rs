//! The operator's token: how commands on the same machine act on a running server.
//!
//! Owns a file that only the server's user can read, with the side port's address and a token that is new at every start.
//! Who can read the file could read the whole store as well. Never leaves the machine, never reaches the store.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::secrets::{self, Minted};

/// What the file holds.
#[derive(Serialize, Deserialize)]
pub struct OperatorFile {
    pub admin_addr: SocketAddr,
    pub token: String,
}

impl fmt::Debug for OperatorFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OperatorFile").field("admin_addr", &self.admin_addr).finish_non_exhaustive()
    }
}

/// The running server's side of it. The file goes when this goes.
#[derive(Debug)]
pub struct Operator {
    file: PathBuf,
    token: Minted,
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("run").join("operator.json")
}

impl Operator {
    /// Writes the file.
    ///
    /// # Errors
    /// It cannot be written, or there is no randomness.
    pub fn open(data_dir: &Path, admin_addr: SocketAddr) -> io::Result<Self> {
        let (file, token) = (path(data_dir), secrets::mint_operator_token()?);
        secrets::create_private_dir(&data_dir.join("run"))?;
        let content = OperatorFile { admin_addr, token: token.expose().to_owned() };
        secrets::write_private(&file, &serde_json::to_vec(&content)?)?;
        Ok(Self { file, token })
    }

    /// Whether `token` is the one of the file, in a time that does not depend on where they differ.
    pub fn check(&self, token: &str) -> bool {
        self.token.expose().as_bytes().ct_eq(token.as_bytes()).into()
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        // A file that stays behind opens nothing: its token dies with the process.
        let _ = fs::remove_file(&self.file);
    }
}

/// What a command reads; `None` when no server has left a file.
///
/// # Errors
/// The file is there and cannot be read.
pub fn read(data_dir: &Path) -> io::Result<Option<OperatorFile>> {
    match fs::read(path(data_dir)) {
        Ok(content) => Ok(Some(serde_json::from_slice(&content)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl super::Accounts {
    /// Lets commands on this machine act as superadmin, until [`super::Accounts::close_operator`].
    ///
    /// # Errors
    /// As [`Operator::open`].
    pub fn open_operator(&self, data_dir: &Path, admin_addr: SocketAddr) -> io::Result<()> {
        // An old one first: its end removes the file.
        self.close_operator();
        self.operator.store(Some(std::sync::Arc::new(Operator::open(data_dir, admin_addr)?)));
        Ok(())
    }

    pub fn close_operator(&self) {
        self.operator.store(None);
    }

    pub(super) fn is_operator(&self, token: &str) -> bool {
        self.operator.load().as_ref().is_some_and(|operator| operator.check(token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_holds_the_token_and_goes_with_the_server() {
        let dir = tempfile::tempdir().unwrap();
        let operator = Operator::open(dir.path(), "127.0.0.1:9090".parse().unwrap()).unwrap();
        let found = read(dir.path()).unwrap().unwrap();
        assert!(operator.check(&found.token) && !operator.check("op-") && !operator.check(""));
        assert!(!format!("{operator:?} {found:?}").contains(&found.token));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(path(dir.path())).unwrap().permissions().mode() & 0o777, 0o600);
        }
        drop(operator);
        assert!(read(dir.path()).unwrap().is_none());
    }
}
