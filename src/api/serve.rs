//! The side port's listener: hyper, with limits that suit a handful of admins and scrapers.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tower::ServiceExt;

use crate::domain::addresses::ClientAddress;

const MAX_CONNECTIONS: usize = 512;
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves `router` until `ended` turns true.
pub async fn serve(listener: TcpListener, router: Router, mut ended: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // Waiting for a place before accepting leaves the rest in the kernel's queue.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            _ = ended.wait_for(|ended| *ended) => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, peer)) = accepted else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let router = router.clone();
        tokio::spawn(async move {
            serve_connection(stream, ClientAddress(peer.ip().to_canonical()), router).await;
            drop(place);
        });
    }
}

async fn serve_connection(stream: TcpStream, client: ClientAddress, router: Router) {
    let _ = stream.set_nodelay(true);
    let service = router.map_request(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(client);
        request
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection of the side port ended early");
    }
}
