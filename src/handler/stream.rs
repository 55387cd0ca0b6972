//! Large answers: from the thread that makes them to the connection, piece by piece.
//!
//! Owns that way. There is never more in memory than the channel holds, and an answer is given up when its reader leaves or
//! stands still. Never knows what it carries.

use std::io::{self, Write};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use hyper::body::{Body as HttpBody, Frame};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use crate::accounts::ExportTrouble;
use crate::error::Reject;
use crate::handler::render::Answer;

const PIECE: usize = 256 << 10;
/// Pieces that wait for the connection.
const PIECES: usize = 4;
/// How long a reader may stand still.
const PATIENCE: Duration = Duration::from_secs(60);

/// An answer that `write` makes, on a thread of its own. What fails before the first byte is answered with its status;
/// after that the body breaks off, so that nobody takes it for whole. `file`: what browsers are to call it.
pub fn answer(
    content_type: &'static str,
    file: Option<String>,
    write: impl FnOnce(&mut Pipe) -> Result<(), Reject> + Send + 'static,
) -> impl Future<Output = Answer> {
    let (pieces, rest) = mpsc::channel(PIECES);
    let (begun, first) = oneshot::channel();
    let mut out = Pipe { pieces, begun: Some(begun), waiting: BytesMut::new(), runtime: Handle::current() };
    tokio::task::spawn_blocking(move || {
        let done = write(&mut out).and_then(|()| out.finish().map_err(|_| Reject::Internal));
        if let Err(reject) = done {
            out.fail(reject);
        }
    });
    async move {
        match first.await {
            Ok(Ok(())) => {}
            Ok(Err(reject)) => return Err(reject.into()),
            Err(_) => return Err(Reject::Internal.into()),
        }
        let mut response = Response::new(Body::new(Stream(rest)));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        let named = file.and_then(|name| HeaderValue::from_str(&format!("attachment; filename=\"{name}\"")).ok());
        if let Some(named) = named {
            response.headers_mut().insert(header::CONTENT_DISPOSITION, named);
        }
        Ok(response)
    }
}

/// What a client is told of an export that broke off before its first byte.
pub fn refusal(trouble: &ExportTrouble) -> Reject {
    match trouble {
        ExportTrouble::Store(error) => {
            tracing::error!(%error, "an export broke off");
            Reject::StoreUnavailable
        }
        // Nobody reads it any more.
        ExportTrouble::Io(_) => Reject::Internal,
    }
}

/// From the thread that writes to the connection.
pub struct Pipe {
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

    /// The end, of an answer without a byte too.
    fn finish(&mut self) -> io::Result<()> {
        if let Some(begun) = self.begun.take() {
            let _ = begun.send(Ok(()));
        }
        self.flush()
    }

    fn fail(&mut self, reject: Reject) {
        match self.begun.take() {
            Some(begun) => {
                let _ = begun.send(Err(reject));
            }
            // The body breaks off: nobody takes it for whole. If he has left, there is nobody to tell.
            None => {
                let _ = self.send(Err(io::Error::other("the answer was given up")));
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
