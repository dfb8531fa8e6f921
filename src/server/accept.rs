//! The accept loop: limits on connections, and an orderly end.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use super::{ServeOptions, router};
use crate::runtime::Runtime;

/// How long to wait before accepting again after the system refused, most
/// likely for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown` resolves, then lets running answers end.
///
/// After the signal nothing new is accepted and idle connections are closed;
/// what still runs after `options.drain_timeout` is cut off, which frees its
/// place in the engine.
///
/// # Errors
///
/// Fails only if the listener's address cannot be read; a connection that
/// fails, or one that cannot be accepted, ends nothing but itself.
pub async fn serve(
    listener: TcpListener,
    runtime: Arc<Runtime>,
    shutdown: impl Future<Output = ()>,
    options: ServeOptions,
) -> io::Result<()> {
    let address = listener.local_addr()?;
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(options.head_timeout);
    let places = Arc::new(Semaphore::new(options.max_connections));
    let drain_timeout = options.drain_timeout;
    let router = router(runtime, options);
    let (stop, stopped) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    tracing::info!(%address, "listening");

    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(ended) = connections.join_next() => report(ended),
            (stream, place) = accept(&listener, &places) => {
                let connection = converse(http.clone(), stream, router.clone(), stopped.clone());
                connections.spawn(async move {
                    connection.await;
                    drop(place);
                });
            }
        }
    }

    drop(listener);
    tracing::info!(connections = connections.len(), "draining");
    // Nobody listens if there is no connection; that is as good.
    _ = stop.send(());
    let drained = async {
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    };
    if tokio::time::timeout(drain_timeout, drained).await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            "cutting off what still runs"
        );
        connections.shutdown().await;
    }
    Ok(())
}

/// Waits for a place, then for a client.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, OwnedSemaphorePermit) {
    let place = places
        .clone()
        .acquire_owned()
        .await
        .expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, place),
            // The client was quicker to leave than we to greet.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection from its first request to its last.
async fn converse(
    http: http1::Builder,
    stream: TcpStream,
    router: Router,
    mut stop: watch::Receiver<()>,
) {
    // Tokens are small and wanted now.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    let service: TowerToHyperService<Router> = TowerToHyperService::new(router);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = stop.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // A client that leaves in the middle is everyday life.
        tracing::debug!(%error, "connection");
    }
}

/// A panic in a response body ends its connection; say so.
fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a connection's task failed");
    }
}
