//! Connections and their ends: keep-alive, clients that disconnect, a full queue, shutdown.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use incant::server::ServeOptions;
use serde_json::json;

use crate::server::support::{
    COMPLETIONS, MODEL, Server, alone, endless, eventually, idle, in_company, post, runtime, shared,
};

#[test]
fn a_connection_serves_more_than_one_request() {
    let mut stream = shared().connect();
    for _ in 0..2 {
        stream
            .write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"{\"status\":\"ok\"}") {
            let mut some = [0; 256];
            let read = stream.read(&mut some).unwrap();
            assert!(
                read > 0,
                "closed after {:?}",
                String::from_utf8_lossy(&bytes)
            );
            bytes.extend_from_slice(&some[..read]);
        }
    }
}

#[test]
fn a_client_that_leaves_frees_its_slot() {
    let _alone = alone();
    let runtime = runtime();
    let load = || runtime.models()[0].engine().load();
    for (field, value) in [
        ("stream", json!(true)),
        ("stream", json!(false)),
        ("n", json!(3)),
    ] {
        eventually("the engine is idle", idle);
        let mut client = shared().connect();
        client.write_all(&endless(&json!({field: value}))).unwrap();
        eventually("it runs", || load().running > 0);
        drop(client);
        eventually("it runs no more", idle);
    }
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let _alone = alone();
    let mut client = shared().connect();
    client.write_all(&endless(&json!({"n": 128}))).unwrap();
    let runtime = runtime();
    eventually("they wait", || {
        runtime.models()[0].engine().load().waiting > 0
    });
    let reply = shared().post(
        COMPLETIONS,
        &json!({"model": MODEL, "prompt": "Hi", "max_tokens": 1, "n": 64, "stream": true}),
    );
    let error = reply.error(429);
    assert_eq!(
        (&error["type"], &error["code"]),
        (&json!("rate_limit_error"), &json!("queue_full"))
    );
    assert!(reply.header("retry-after").unwrap().parse::<u64>().unwrap() > 0);
}

#[test]
fn a_shutdown_lets_answers_end_and_waits_for_nothing_else() {
    let server = Server::start(ServeOptions {
        drain_timeout: Duration::from_secs(120),
        ..ServeOptions::default()
    });
    let address = server.address();
    let mut idle = server.connect();
    let _company = in_company();
    let mut busy = server.connect();
    let body = json!({"model": MODEL, "prompt": "Hi", "max_tokens": 24, "ignore_eos": true, "stream": true});
    busy.write_all(&post(COMPLETIONS, body.to_string().as_bytes(), ""))
        .unwrap();
    let mut first = [0; 16];
    busy.read_exact(&mut first).unwrap();
    let since = Instant::now();
    let ended = server.stop();
    let mut rest = Vec::new();
    busy.read_to_end(&mut rest).unwrap();
    let rest = String::from_utf8_lossy(&rest);
    assert!(
        rest.contains("\"finish_reason\":\"length\"") && rest.contains("data: [DONE]\n\n"),
        "{rest}"
    );
    assert_eq!(
        idle.read(&mut first).unwrap(),
        0,
        "an idle connection is closed"
    );
    ended.wait();
    assert!(
        since.elapsed() < Duration::from_secs(100),
        "the drain's limit was not what ended it"
    );
    assert!(
        std::net::TcpStream::connect(address).is_err(),
        "nobody listens any more"
    );
}

#[test]
fn a_shutdown_cuts_off_what_takes_too_long() {
    let server = Server::start(ServeOptions {
        drain_timeout: Duration::from_millis(50),
        ..ServeOptions::default()
    });
    let _company = in_company();
    let mut busy = server.connect();
    let body = json!({"model": MODEL, "prompt": "Hi", "max_tokens": 3000, "ignore_eos": true, "stream": true});
    busy.write_all(&post(COMPLETIONS, body.to_string().as_bytes(), ""))
        .unwrap();
    let mut first = [0; 16];
    busy.read_exact(&mut first).unwrap();
    let ended = server.stop();
    let mut rest = Vec::new();
    // Cut off in the middle: an end without the last chunk, or a reset.
    _ = busy.read_to_end(&mut rest);
    assert!(!String::from_utf8_lossy(&rest).contains("[DONE]"));
    ended.wait();
}
