//! The listening socket.

use std::io::{Error, ErrorKind, Result};

use tokio::net::{TcpListener, TcpSocket, lookup_host};

/// The number of connections that the system completes before they are accepted (the listen
/// backlog), as far as its own limit (`somaxconn`) allows. A connection beyond it is dropped, and
/// its client tries again only after a second, health checks included.
const BACKLOG: u32 = 4096;

/// Listens on the first address of `host` that can be bound; port 0 is any free port.
///
/// # Errors
/// The host has no address, or none that can be bound.
pub async fn listen(host: &str, port: u16) -> Result<TcpListener> {
    let mut failed = None;
    for address in lookup_host((host, port)).await? {
        let bound = || {
            let socket = if address.is_ipv4() {
                TcpSocket::new_v4()?
            } else {
                TcpSocket::new_v6()?
            };
            // A restarted server may bind its port while old connections still close.
            #[cfg(unix)]
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            socket.listen(BACKLOG)
        };
        match bound() {
            Ok(listener) => return Ok(listener),
            Err(error) => failed = Some(error),
        }
    }
    let no_address = || Error::new(ErrorKind::InvalidInput, "the host has no address");
    Err(failed.unwrap_or_else(no_address))
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_burst_of_connections_waits_without_being_dropped() {
        let limit = std::fs::read_to_string("/proc/sys/net/core/somaxconn");
        let limit: usize = limit.map_or(128, |limit| limit.trim().parse().expect("a number"));
        let burst = limit.min(600);
        let listener = listen("localhost", 0).await.expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        // Nobody accepts them.
        let mut connected = Vec::new();
        for number in 0..burst {
            // A dropped connection would be tried again only after a second.
            let stream = TcpStream::connect_timeout(&address, Duration::from_millis(900));
            connected.push(stream.unwrap_or_else(|error| panic!("connection {number}: {error}")));
        }
    }

    #[tokio::test]
    async fn a_host_without_a_free_address_is_an_error() {
        let taken = listen("127.0.0.1", 0).await.expect("a free port");
        let port = taken.local_addr().expect("a bound address").port();
        let error = listen("127.0.0.1", port).await.expect_err("it is taken");
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
    }
}
