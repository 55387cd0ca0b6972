//! The check of everybody's books, for who asks the running server.

use crate::actors::user::verify::{self, Report};
use crate::error::Reject;

impl super::Accounts {
    /// Checks every user's account as it is on disk. Takes seconds with a million users; nobody else waits for it.
    ///
    /// # Errors
    /// [`Reject::StoreUnavailable`].
    pub async fn verify_ledger(&self) -> Result<Report, Reject> {
        let committer = self.committer.clone();
        let check = move || verify::verify(committer.store(), |_| {});
        let found = tokio::task::spawn_blocking(check).await.map_err(|_| Reject::Internal)?;
        found.map_err(|error| self.failed(&error))
    }
}
