//! The accept loop, with a connection limit and graceful shutdown.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_io_timeout::TimeoutStream;
use tower::ServiceExt;

use super::log::Peer;
use super::overload::{self, ConnectionLimit, Spares};
use super::tls::Tls;
use super::{ServeOptions, router};
use incant_runtime::Runtime;

/// The pause after `accept` failed, most likely because the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The maximum size of a request head in bytes. Answer bytes that a client does not read fill one
/// buffer of this size here and one in the kernel (`SO_SNDBUF`); after that the client counts as
/// slow. By default the kernel would buffer megabytes, which is more than most answers have.
const BUFFER: usize = 64 << 10;

/// Serves until `shutdown` resolves, then shuts down gracefully.
///
/// After the signal no connection is accepted, and idle connections are closed. Requests that still
/// run after `options.drain_timeout` are cut off, which frees their slots in the engine.
///
/// # Errors
///
/// Fails only if the listener's address cannot be read. A connection that fails or cannot be
/// accepted affects no other.
pub async fn serve(
    listener: TcpListener,
    runtime: Arc<Runtime>,
    shutdown: impl Future<Output = ()>,
    options: ServeOptions,
) -> io::Result<()> {
    let address = listener.local_addr()?;
    let drain_timeout = options.drain_timeout;
    let mut listener = Listener::new(listener, runtime, options);
    let (stop, stopped) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    tracing::info!(%address, "listening");

    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(ended) = connections.join_next() => report(ended),
            AcceptedConnection { stream, address, server, permit } = listener.accept() => {
                let is_spare = permit.is_none();
                let connection = server.serve_connection(stream, address, stopped.clone());
                let connection = connections.spawn(async move {
                    connection.await;
                    drop(permit);
                });
                if is_spare {
                    listener.spares.push(connection);
                }
            }
        }
    }

    drop(listener);
    tracing::info!(connections = connections.len(), "draining");
    // Sending fails if no connection is left, which needs no handling.
    _ = stop.send(());
    let drained = async {
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    };
    if timeout(drain_timeout, drained).await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            "cutting off running answers"
        );
        connections.shutdown().await;
    }
    Ok(())
}

/// Accepts connections and holds the permits of the connection limit.
struct Listener {
    listener: TcpListener,
    permits: Arc<Semaphore>,
    server: HttpServer,
    /// Connections over the limit, each of which is kept only for a moment.
    spares: Spares,
    /// Serves the connections over the limit.
    spare_server: HttpServer,
}

/// An accepted connection.
struct AcceptedConnection {
    stream: TcpStream,
    address: SocketAddr,
    server: HttpServer,
    /// Its permit of the connection limit; `None` for a connection over the limit.
    permit: Option<OwnedSemaphorePermit>,
}

impl Listener {
    fn new(listener: TcpListener, runtime: Arc<Runtime>, options: ServeOptions) -> Listener {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(options.client_timeout)
            .max_buf_size(BUFFER);
        let permits = Arc::new(Semaphore::new(options.max_connections));
        let server = HttpServer {
            http,
            client_timeout: options.client_timeout,
            tls: options.tls.clone(),
            router: router(runtime, options),
        };
        let client_timeout = server.client_timeout.min(overload::REQUEST_TIMEOUT);
        let mut spare_server = HttpServer {
            client_timeout,
            router: server.router.clone().layer(Extension(ConnectionLimit)),
            ..server.clone()
        };
        spare_server
            .http
            .header_read_timeout(client_timeout)
            .keep_alive(false);
        Listener {
            listener,
            permits,
            server,
            spares: Spares::default(),
            spare_server,
        }
    }

    /// Waits for the next connection.
    async fn accept(&mut self) -> AcceptedConnection {
        if self.permits.available_permits() == 0 {
            self.spares.free_spare_place().await;
        }
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    let permit = Arc::clone(&self.permits).try_acquire_owned().ok();
                    let server = match permit {
                        Some(_) => &self.server,
                        None => &self.spare_server,
                    };
                    return AcceptedConnection {
                        stream,
                        address,
                        server: server.clone(),
                        permit,
                    };
                }
                // The client disconnected before its connection was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Serves connections: TLS handshake, timeouts and HTTP/1.
#[derive(Clone)]
struct HttpServer {
    http: http1::Builder,
    /// How long a client may take for the TLS handshake, or to read any of the bytes sent to it.
    client_timeout: Duration,
    tls: Option<Arc<Tls>>,
    router: Router,
}

impl HttpServer {
    /// Serves one connection from its first byte to its last.
    async fn serve_connection(
        self,
        stream: TcpStream,
        peer: SocketAddr,
        stop: watch::Receiver<()>,
    ) {
        // Tokens are small and must not wait for more data (Nagle's algorithm).
        let prepared = stream
            .set_nodelay(true)
            .and_then(|()| SockRef::from(&stream).set_send_buffer_size(BUFFER));
        if let Err(error) = prepared {
            tracing::debug!(%error, "socket options");
        }
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(self.client_timeout));
        let stream: Pin<Box<_>> = Box::pin(stream);
        let Some(tls) = self.tls.clone() else {
            return self.answer(stream, peer, stop).await;
        };
        match timeout(self.client_timeout, tls.accept(stream)).await {
            Ok(Ok(stream)) => self.answer(stream, peer, stop).await,
            Ok(Err(error)) => tracing::debug!(%error, "TLS"),
            Err(_) => tracing::debug!("a client took too long for the TLS handshake"),
        }
    }

    /// Serves all requests of one connection.
    async fn answer<S>(self, stream: S, peer: SocketAddr, mut stop: watch::Receiver<()>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = self
            .router
            .map_request(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(Peer(peer));
                request
            });
        let service = TowerToHyperService::new(service);
        let connection = self.http.serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            _ = stop.changed() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            // Clients disconnect midway all the time.
            tracing::debug!(%error, "connection");
        }
    }
}

/// Logs a panic of a connection's task, such as one in a response body. A connection that was
/// aborted to make way for another is not logged.
fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection's task failed");
    }
}
