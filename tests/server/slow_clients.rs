//! Slow clients: in sending requests, or in receiving answers.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use incant::server::ServeOptions;
use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::server::support::{
    COMPLETIONS, Reply, Server, alone, completion_body, endless, eventually, idle, post, shared,
};

/// The timeout of the servers here.
const PATIENCE: Duration = Duration::from_millis(500);

/// Far longer than any disconnection takes, even on a busy machine.
const LONG: Duration = Duration::from_secs(20);

fn impatient() -> Server {
    Server::start(ServeOptions {
        client_timeout: PATIENCE,
        ..ServeOptions::default()
    })
}

/// Sends `bytes` one by one, until the other side closes the connection.
fn trickle(stream: &TcpStream, bytes: &[u8]) -> thread::JoinHandle<()> {
    let mut stream = stream.try_clone().unwrap();
    let bytes = bytes.to_vec();
    thread::spawn(move || {
        for byte in bytes {
            thread::sleep(Duration::from_millis(20));
            if stream.write_all(&[byte]).is_err() {
                return;
            }
        }
    })
}

/// Opens a connection with a small receive buffer.
fn narrow(server: &Server) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&server.address().into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

/// Reads until the connection ends in any way.
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    _ = stream.read_to_end(&mut bytes);
    bytes
}

#[test]
fn a_head_that_does_not_come_to_an_end_is_cut_off() {
    let server = impatient();
    let endless = format!("GET /health HTTP/1.1\r\nHost: {}", "t".repeat(3000));
    for head in ["", &endless] {
        let since = Instant::now();
        let mut stream = server.connect();
        let writer = trickle(&stream, head.as_bytes());
        assert!(rest(&mut stream).is_empty());
        assert!((PATIENCE..LONG).contains(&since.elapsed()), "{head:?}");
        writer.join().unwrap();
    }
}

#[test]
fn an_idle_connection_is_closed_after_a_while_and_not_before() {
    let server = impatient();
    let mut stream = server.connect();
    let since = Instant::now();
    for _ in 0..2 {
        stream
            .write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        thread::sleep(PATIENCE / 2);
    }
    let answers = String::from_utf8(rest(&mut stream)).unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2, "{answers}");
    assert!((PATIENCE..LONG).contains(&since.elapsed()));
}

#[test]
fn a_body_that_trickles_in_is_answered_408_and_its_connection_closed() {
    let server = impatient();
    let mut stream = server.connect();
    let body = completion_body(&json!({"prompt": "a".repeat(3000)})).to_string();
    let request = post(COMPLETIONS, body.as_bytes(), "");
    let head = request.len() - body.len();
    stream.write_all(&request[..head]).unwrap();
    let since = Instant::now();
    let writer = trickle(&stream, body.as_bytes());
    let reply = Reply::parse(&rest(&mut stream));
    let message = reply.error(408)["message"].as_str().unwrap().to_owned();
    assert!(message.contains("0.5 s"), "{message}");
    assert!((PATIENCE..LONG).contains(&since.elapsed()));
    writer.join().unwrap();
}

#[test]
fn a_client_that_takes_nothing_of_its_answers_is_cut_off() {
    const REQUESTS: usize = 500;
    let server = impatient();
    let whole = server.get("/openapi.json").body.len() * REQUESTS;
    let mut stream = narrow(&server);
    let request = "GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(REQUESTS);
    let mut sender = stream.try_clone().unwrap();
    // The server reads no further request while an answer is pending, and finally closes the
    // connection.
    let writer = thread::spawn(move || _ = sender.write_all(request.as_bytes()));
    thread::sleep(4 * PATIENCE);
    let got = rest(&mut stream).len();
    assert!(got < whole / 2, "{got} of {whole} bytes");
    writer.join().unwrap();
    // A slow client that keeps receiving gets everything.
    let mut stream = narrow(&server);
    let request = "GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(20);
    stream.write_all(request.as_bytes()).unwrap();
    let (mut got, mut some) = (0, [0; 32 << 10]);
    while let Ok(read @ 1..) = stream.read(&mut some) {
        got += read;
        thread::sleep(PATIENCE / 20);
    }
    assert!(got > whole / REQUESTS * 20, "{got} bytes");
}

#[test]
fn a_stream_that_nobody_reads_gives_its_slots_back() {
    let _alone = alone();
    let server = impatient();
    let stream = narrow(&server);
    // The answer would take minutes, and begins with more text than any buffer holds, in few
    // tokens, because one token stands for many line breaks.
    let prompt = "\n".repeat(30_000);
    let lasting =
        json!({"stream": true, "n": 8, "echo": true, "prompt": prompt, "max_tokens": 3000});
    (&stream).write_all(&endless(&lasting)).unwrap();
    eventually("it runs", || !idle());
    eventually("it runs no more", idle);
}

#[test]
fn a_head_that_is_too_large_is_refused() {
    let many: String = (0..200).map(|n| format!("X-{n}: y\r\n")).collect();
    let large = format!("X: {}\r\n", "y".repeat(500_000));
    for headers in [many, large] {
        let request = format!("GET /health HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
        let mut stream = shared().connect();
        // The request may be refused before it is completely sent.
        _ = stream.write_all(request.as_bytes());
        let answer = String::from_utf8(rest(&mut stream)).unwrap();
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer:?}");
    }
    shared().get("/health").expect(200);
}
