//! `/v1/admin-panel/backup` and `/v1/admin-panel/ledger/verify`: what the commands of a running server ask.
//!
//! Owns the way of a backup from the thread that takes it to the connection: piece by piece, never more in memory than the
//! channel holds, and given up when the reader leaves or stands still.

use std::io::{self, Write};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use hyper::body::{Body as HttpBody, Frame};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::admin::{SideState, act_of, staff};
use super::extract::Call;
use super::render::Answer;
use crate::actors::audit::Action;
use crate::backup::source::{Source, Trouble};
use crate::domain::session::StaffRole;
use crate::error::Reject;

const PIECE: usize = 256 << 10;
/// Pieces that wait for the connection.
const PIECES: usize = 4;
/// How long a reader may stand still.
const PATIENCE: Duration = Duration::from_secs(60);

/// Every account's arithmetic, and who is off.
#[utoipa::path(get, path = "/v1/admin-panel/ledger/verify", tag = "system", security(("staff" = ["admin"])),
    responses((status = 200, description = "The report of `tollgate ledger verify`.", body = Object)))]
pub async fn verify_ledger(State(side): State<SideState>, call: Call) -> Answer {
    staff(&side, &call, StaffRole::Admin)?;
    let report = side.accounts.verify_ledger().await?;
    Ok(axum::Json(report).into_response())
}

/// The whole state as a stream. Whoever has it has everything, so it is for superadmins.
#[utoipa::path(get, path = "/v1/admin-panel/backup", tag = "system",
    params(("secrets" = Option<bool>, Query, description = "Whether what opens the state is in it; it is unless false.")),
    security(("staff" = ["superadmin"])),
    responses((status = 200, description = "A file for `tollgate restore`.", body = Vec<u8>, content_type = "application/octet-stream")))]
pub async fn backup(State(side): State<SideState>, call: Call) -> Answer {
    let by = staff(&side, &call, StaffRole::Superadmin)?;
    let source = side.backups.clone().ok_or(Reject::NotFound)?;
    let with_secrets = match call.query("secrets") {
        None | Some("true") => true,
        Some("false") => false,
        Some(_) => return Err(Reject::BadRequest("secrets must be \"true\" or \"false\"".into()).into()),
    };
    // Before the first byte: it is the act of taking everything that counts, not whether it was taken to its end.
    let record = act_of(&by, &call, Action::BackupCreated).with("with_secrets", with_secrets);
    side.accounts.audited(record, |_| async { Ok(()) }, |(), record| record).await?;
    tracing::info!(by = %by.username, with_secrets, "a backup begins");
    let (pieces, rest) = mpsc::channel(PIECES);
    let (begun, first) = oneshot::channel();
    let mut out = Pipe { pieces, begun: Some(begun), waiting: BytesMut::new(), runtime: Handle::current() };
    tokio::task::spawn_blocking(move || take(&source, &mut out, with_secrets));
    // What fails before the first byte can still be said with a status.
    match first.await {
        Ok(Ok(())) => {}
        Ok(Err(reject)) => return Err(reject.into()),
        Err(_) => return Err(Reject::Internal.into()),
    }
    let mut response = Response::new(Body::new(Stream(rest)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    Ok(response)
}

fn take(source: &Source, out: &mut Pipe, with_secrets: bool) {
    let taken = source.write(&mut *out, with_secrets).and_then(|totals| Ok((totals, out.flush()?)));
    match taken {
        Ok((totals, ())) => tracing::info!(rows = totals.rows, files = totals.files, "the backup is done"),
        Err(trouble) => {
            tracing::warn!(%trouble, "a backup was given up");
            out.fail(&trouble);
        }
    }
}

/// From the thread that writes to the connection.
struct Pipe {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    /// Told once that there is something to answer with.
    begun: Option<oneshot::Sender<Result<(), Reject>>>,
    waiting: BytesMut,
    runtime: Handle,
}

impl Pipe {
    fn send(&mut self, piece: io::Result<Bytes>) -> io::Result<()> {
        let sent = self.runtime.block_on(tokio::time::timeout(PATIENCE, self.pieces.send(piece)));
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the reader left")),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the reader stands still")),
        }
    }

    fn fail(&mut self, trouble: &Trouble) {
        match self.begun.take() {
            Some(begun) => {
                let reject = match trouble {
                    Trouble::Busy => Reject::Conflict(trouble.to_string()),
                    Trouble::Store(_) => Reject::StoreUnavailable,
                    Trouble::Io(_) => Reject::Internal,
                };
                let _ = begun.send(Err(reject));
            }
            // The body breaks off: nobody takes it for whole. If he has left, there is nobody to tell.
            None => {
                let _ = self.send(Err(io::Error::other("the backup was given up")));
            }
        }
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(begun) = self.begun.take() {
            let _ = begun.send(Ok(()));
        }
        self.waiting.extend_from_slice(bytes);
        if self.waiting.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let piece = self.waiting.split().freeze();
        self.send(Ok(piece))
    }
}

/// The other end of a [`Pipe`].
struct Stream(mpsc::Receiver<io::Result<Bytes>>);

impl HttpBody for Stream {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}
