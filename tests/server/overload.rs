//! Overload: more connections than the connection limit allows.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use incant::server::{SPARE_PLACES, ServeOptions};
use serde_json::json;

use crate::server::support::{
    COMPLETIONS, Server, alone, completion_body, endless, eventually, idle, post,
};

/// A server with a connection limit of one.
fn narrow(client_timeout: Duration) -> Server {
    Server::start(ServeOptions {
        max_connections: 1,
        client_timeout,
        ..ServeOptions::default()
    })
}

/// Opens a connection within the limit.
fn placed(server: &Server) -> TcpStream {
    let mut stream = server.connect();
    stream
        .write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"}") {
        let mut some = [0; 256];
        let read = stream.read(&mut some).unwrap();
        bytes.extend_from_slice(&some[..read]);
    }
    stream
}

#[test]
fn who_finds_no_place_is_told_to_come_back_and_health_is_as_ever() {
    let server = narrow(Duration::from_secs(60));
    let placed = placed(&server);
    for _ in 0..3 {
        assert_eq!(server.get("/health").expect(200), json!({"status": "ok"}));
        let reply = server.get("/v1/models");
        assert_eq!(reply.error(503)["type"], "service_unavailable");
        assert!(reply.header("retry-after").unwrap().parse::<u64>().unwrap() > 0);
    }
    // The client does not request to close the connection, but the server closes it after the
    // answer.
    let mut stream = server.connect();
    let large = completion_body(&json!({"prompt": "a".repeat(4 << 20)})).to_string();
    stream
        .write_all(&post(COMPLETIONS, large.as_bytes(), ""))
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    drop(placed);
    eventually("the place is free", || {
        server.get("/v1/models").status == 200
    });
}

#[test]
fn connections_that_say_nothing_do_not_keep_health_from_others() {
    let _alone = alone();
    let server = narrow(Duration::from_millis(300));
    let mut busy = server.connect();
    busy.write_all(&endless(&json!({}))).unwrap();
    eventually("it has the place", || !idle());
    // Twice the number of spare places.
    let silent: Vec<TcpStream> = (0..2 * SPARE_PLACES).map(|_| server.connect()).collect();
    server.get("/health").expect(200);
    server.get("/v1/models").error(503);
    for mut stream in silent {
        let mut nothing = Vec::new();
        // The connection is closed, without an answer or with a reset.
        _ = stream.read_to_end(&mut nothing);
        assert!(nothing.is_empty());
    }
    drop(busy);
    eventually("the engine is idle", idle);
}

#[test]
fn half_open_connections_do_not_delay_health() {
    /// HAProxy's time limit for a health check: the check interval of `deploy/haproxy.cfg`. Two
    /// consecutive timeouts take a server out.
    const CHECK_TIMEOUT: Duration = Duration::from_secs(1);
    // Both ends of each connection are in this process.
    rlimit::increase_nofile_limit(8192).expect("a limit");
    let server = Server::start(ServeOptions::default());
    let check = || {
        let since = Instant::now();
        server.get("/health").expect(200);
        since.elapsed()
    };
    // Allows for the time that a busy machine takes even without overload.
    let calm = (0..5).map(|_| check()).max().unwrap_or_default();
    let half_open = || {
        let mut stream = server.connect();
        // The server may already have refused the connection, which is fine.
        _ = stream.write_all(b"GET /health HTTP/1.1\r\n");
        stream
    };
    let mut open: Vec<TcpStream> = (0..1400).map(|_| half_open()).collect();
    let mut late = 0;
    for _ in 0..20 {
        // New connections keep arriving.
        open.extend((0..20).map(|_| half_open()));
        let took = check();
        late = if took < CHECK_TIMEOUT + calm {
            0
        } else {
            late + 1
        };
        assert!(late < 2, "{took:?}, {calm:?} without overload");
    }
    server.get("/v1/models").error(503);
}
