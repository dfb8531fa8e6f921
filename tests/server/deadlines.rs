//! Timeouts of answers: before the first token and after it, streamed and complete, by the
//! server's limit and by the request's own.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use incant::server::ServeOptions;
use serde_json::{Value, json};

use crate::server::support::{
    CHAT, COMPLETIONS, Reply, Server, alone, chat_body, completion_body, endless, eventually, idle,
    runtime, shared, with,
};

/// A timeout in seconds within which no request can be answered.
const TOO_SHORT: f64 = 0.000_001;

fn limited(seconds: f64) -> Server {
    Server::start(ServeOptions {
        request_timeout: Some(Duration::from_secs_f64(seconds)),
        ..ServeOptions::default()
    })
}

/// Returns the message of a request that timed out, as plain JSON.
fn refused(reply: &Reply) -> String {
    let error = reply.error(408);
    assert_eq!(
        (&error["type"], &error["code"], &error["param"]),
        (
            &json!("timeout_error"),
            &json!("request_timeout"),
            &Value::Null
        )
    );
    // Without this header, the official clients would retry the request.
    assert_eq!(reply.header("x-should-retry"), Some("false"));
    error["message"].as_str().unwrap().to_owned()
}

#[test]
fn before_the_first_token_it_is_a_408_whether_streamed_or_not() {
    let server = limited(TOO_SHORT);
    for stream in [false, true] {
        let fields = json!({"stream": stream});
        let own = with(fields.clone(), &json!({"timeout": TOO_SHORT}));
        for (path, fields, own) in [
            (CHAT, chat_body(&fields), chat_body(&own)),
            (COMPLETIONS, completion_body(&fields), completion_body(&own)),
        ] {
            let message = refused(&shared().post(path, &own));
            assert!(
                message.contains("the request's own `timeout` of 0.000001 s"),
                "{message}"
            );
            let message = refused(&server.post(path, &fields));
            assert!(
                message.contains("this server's limit of 0.000001 s"),
                "{message}"
            );
        }
    }
}

#[test]
fn the_shorter_limit_counts_and_a_long_one_changes_nothing() {
    let short = limited(TOO_SHORT);
    let message = refused(&short.post(CHAT, &chat_body(&json!({"timeout": 300}))));
    assert!(message.contains("server's limit"), "{message}");
    let long = limited(300.0);
    let message = refused(&long.post(CHAT, &chat_body(&json!({"timeout": TOO_SHORT}))));
    assert!(message.contains("request's own"), "{message}");
    for timeout in [json!(null), json!(200), json!(200.5)] {
        long.chat(chat_body(&json!({"timeout": timeout})));
    }
}

#[test]
fn time_in_the_queue_counts() {
    let _alone = alone();
    let runtime = runtime();
    let waiting = || runtime.models()[0].engine().load().waiting;
    // Requests left over from another test must not count as load.
    eventually("the engine is idle", idle);
    // A request with several answers would give slots to another request; these are one more
    // request than there are slots.
    let clients: Vec<TcpStream> = (0..9).map(|_| shared().connect()).collect();
    for mut client in &clients {
        client.write_all(&endless(&json!({}))).unwrap();
    }
    eventually("the slots are taken", || waiting() > 0);
    let others = waiting();
    for stream in [false, true] {
        let body = completion_body(&json!({"timeout": 0.2, "stream": stream}));
        refused(&shared().post(COMPLETIONS, &body));
        eventually("its place in the queue is free", || waiting() <= others);
    }
    drop(clients);
    eventually("the engine is idle", idle);
}

#[test]
fn a_stream_ends_with_the_error_and_its_slot_is_free() {
    let _alone = alone();
    let server = limited(4.0);
    let since = Instant::now();
    let mut client = server.connect();
    client
        .write_all(&endless(&json!({"stream": true})))
        .unwrap();
    let mut bytes = Vec::new();
    let mut some = [0; 4096];
    // The connection stays open after the last chunk of the stream.
    while !bytes.ends_with(b"\r\n0\r\n\r\n") {
        let read = client.read(&mut some).unwrap();
        assert!(read > 0, "closed");
        bytes.extend_from_slice(&some[..read]);
    }
    assert!(since.elapsed() >= Duration::from_secs(4), "not before");
    eventually("its slot is free", idle);
    let reply = Reply::parse(&bytes);
    assert_eq!(reply.status, 200);
    let frames: Vec<&str> = reply.text().split_terminator("\n\n").collect();
    let (last, chunks) = frames.split_last().unwrap();
    assert!(!chunks.is_empty(), "the first token was in time");
    for chunk in chunks {
        assert!(
            chunk.starts_with("data: {\"id\":") && chunk.contains("\"finish_reason\":null"),
            "{chunk}"
        );
    }
    let error: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(
        (&error["error"]["type"], &error["error"]["code"]),
        (&json!("timeout_error"), &json!("request_timeout"))
    );
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("server's limit of 4 s"), "{message}");
}

#[test]
fn a_whole_answer_that_takes_too_long_is_a_408_and_its_slot_is_free() {
    let _alone = alone();
    let body = json!({"max_tokens": 4000, "ignore_eos": true, "timeout": 1.5});
    let since = Instant::now();
    let reply = shared().post(COMPLETIONS, &completion_body(&body));
    assert!(since.elapsed() >= Duration::from_millis(1500), "not before");
    let message = refused(&reply);
    assert!(message.contains("`timeout` of 1.5 s"), "{message}");
    eventually("its slot is free", idle);
}
