//! Requests that are small as files, but large as texts: their cost, and the delay of other
//! requests.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use incant::server::ServeOptions;
use serde_json::{Value, json};

use crate::server::keys::keys;
use crate::server::support::{
    CHAT, COMPLETIONS, MODEL, Reply, Server, chat_body, completion_body, post, shared, with,
};

/// Almost the maximum size of a body.
#[cfg(target_os = "linux")]
const LARGE: usize = (8 << 20) - 1000;

/// A large body of `start`, repetitions of `unit`, and `end`.
#[cfg(target_os = "linux")]
fn filled(start: &str, unit: &str, end: &str) -> Vec<u8> {
    let units = (LARGE - start.len() - end.len()) / unit.len();
    format!("{start}{}{end}", unit.repeat(units)).into_bytes()
}

/// Sends all of `bodies` at once and returns the answers.
#[cfg(target_os = "linux")]
fn at_once(connect: impl Fn() -> TcpStream, path: &str, bodies: &[Vec<u8>]) -> Vec<Reply> {
    let ask = |body: &Vec<u8>| {
        let mut stream = connect();
        let request = post(path, body, "Connection: close\r\n");
        thread::spawn(move || {
            stream.write_all(&request).expect("it reads");
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).expect("it answers");
            Reply::parse(&bytes)
        })
    };
    let asked: Vec<_> = bodies.iter().map(ask).collect();
    let replies = asked.into_iter();
    replies
        .map(|reply| reply.join().expect("no panic"))
        .collect()
}

/// A body that is not processed takes no more memory than its bytes, and a text that is too
/// long for a prompt is refused before it is encoded. (A parsed tree of one of these bodies
/// takes up to a gigabyte, and encoding such a text took 75 bytes for each of its bytes.)
#[cfg(target_os = "linux")]
#[test]
fn large_bodies_take_little_more_memory_than_their_bytes() {
    let program = crate::server::program::Program::start(&[], &[]);
    let model = "smollm2-135m-instruct";
    let ask = |path, bodies: &[Vec<u8>]| {
        let connect = || {
            let stream = program.connect();
            let patience = Some(Duration::from_secs(600));
            stream.set_read_timeout(patience).expect("a timeout");
            stream
        };
        at_once(connect, path, bodies)
    };
    let start = format!(r#"{{"model": "{model}", "max_tokens": 1, "prompt": "Hi", "junk": ["#);
    let warm = format!("{start}]}}").into_bytes();
    ask(COMPLETIONS, &[warm])[0].expect(200);
    let before = program.peak_memory();

    let lists = filled(&start, "[],", "0]}");
    let numbers = filled(&start, "0,", "0]}");
    let objects = filled(&start, r#"{"a":{}},"#, "0]}");
    let mut bodies = Vec::new();
    for _ in 0..4 {
        bodies.extend([lists.clone(), numbers.clone(), objects.clone()]);
    }
    for reply in ask(COMPLETIONS, &bodies) {
        reply.expect(200);
    }

    let start = format!(r#"{{"model": "{model}", "messages": [{{"role": "user", "content": ""#);
    let texts = ["word ", "a", "é€ ", "\\n"].map(|unit| filled(&start, unit, r#""}]}"#));
    let prompt = format!(r#"{{"model": "{model}", "prompt": ""#);
    let text = filled(&prompt, "word ", r#""}"#);
    let replies = [ask(CHAT, &texts), ask(COMPLETIONS, &[text])];
    for reply in replies.iter().flatten() {
        let error = reply.error(400);
        assert_eq!(error["code"], "context_length_exceeded", "{error}");
        let message = error["message"].as_str().expect("a message");
        assert!(message.contains("at least"), "{message}");
    }
    let grown = program.peak_memory() - before;
    assert!(grown < 512 << 20, "{} MiB more", grown >> 20);
}

#[test]
fn a_text_that_is_too_long_is_refused_wherever_it_stands() {
    // No token has more than 31 characters, and the context has 4096 tokens.
    let text = "word ".repeat(100_000);
    let messages = json!([{"role": "user", "content": text}]);
    let compared = json!({"arms": [MODEL]});
    for (path, body, param) in [
        (CHAT, chat_body(&json!({"messages": messages})), "messages"),
        (
            COMPLETIONS,
            completion_body(&json!({"prompt": text})),
            "prompt",
        ),
        (
            COMPLETIONS,
            completion_body(&json!({"prompt": ["Hi", text], "add_special_tokens": false})),
            "prompt",
        ),
        (
            "/v1/compare",
            with(compared.clone(), &json!({"messages": messages})),
            "messages",
        ),
        (
            "/v1/compare",
            with(compared, &json!({"prompt": text})),
            "prompt",
        ),
    ] {
        let error = shared().post(path, &body).error(400);
        assert_eq!(
            (&error["code"], &error["param"]),
            (&json!("context_length_exceeded"), &json!(param)),
            "{path}"
        );
        let message = error["message"].as_str().expect("a message");
        let least = message.split_once("at least ").expect("a bound").1;
        let least: usize = least[..least.find(' ').unwrap()].parse().expect("a number");
        assert!((4097..=100_000).contains(&least), "{message}");
    }
    // If only the end of the text counts, its length is no error.
    for (path, body) in [
        (CHAT, chat_body(&json!({"messages": messages}))),
        (COMPLETIONS, completion_body(&json!({"prompt": text}))),
    ] {
        let body = with(body, &json!({"truncate_prompt_tokens": 3}));
        let answer = shared().post(path, &body).expect(200);
        assert_eq!(answer["usage"]["prompt_tokens"], 3, "{path}");
    }
    // Tokenizing alone has no such limit.
    let told = shared().post("/tokenize", &json!({"content": text}));
    assert!(told.expect(200)["count"].as_u64() > Some(99_999));
}

#[test]
fn the_time_for_a_prompt_is_part_of_the_time_for_an_answer() {
    let server = Server::start(ServeOptions {
        request_timeout: Some(Duration::from_micros(1)),
        ..ServeOptions::default()
    });
    let large = "word ".repeat(50_000);
    for content in ["Hi", &*large] {
        let messages = json!([{"role": "user", "content": content}]);
        for (path, body) in [
            ("/tokenize", json!({"content": content})),
            ("/apply-template", json!({"messages": messages})),
            (CHAT, chat_body(&json!({"messages": messages}))),
            (
                "/v1/compare",
                json!({"arms": [MODEL], "messages": messages}),
            ),
        ] {
            let error = server.post(path, &body).error(408);
            assert_eq!(error["code"], "request_timeout", "{path}");
        }
    }
    let own = json!({"prompt": large, "timeout": 0.000_001});
    let error = shared()
        .post(COMPLETIONS, &completion_body(&own))
        .error(408);
    let message = error["message"].as_str().expect("a message");
    assert!(message.contains("the request's own `timeout`"), "{message}");
}

#[test]
fn small_bodies_pass_by_large_ones_that_wait_for_room() {
    const LIMIT: usize = 256 << 10;
    /// Three clients, of which each may use half of the memory for bodies.
    const KEYS: [&str; 3] = ["one", "two", "three"];
    let server = Server::start(ServeOptions {
        max_body: LIMIT,
        keys: keys(&KEYS.join(",")),
        ..ServeOptions::default()
    });
    let body = completion_body(&json!({"junk": "x".repeat(LIMIT - 1000)}));
    let body = body.to_string().into_bytes();
    let request = |body: &[u8], key: &str| {
        let headers = format!("Connection: close\r\nAuthorization: Bearer {key}\r\n");
        post(COMPLETIONS, body, &headers)
    };
    // More than fits into memory for bodies, all of them almost complete.
    let send = |key: &str| {
        let stream = server.connect();
        let mut sending = stream.try_clone().expect("a second handle");
        let mut most = request(&body, key);
        let last = most.pop().expect("it is not empty");
        // Without memory the body is not read.
        let sent = thread::spawn(move || sending.write_all(&most));
        (stream, sent, last)
    };
    let keys = KEYS.iter().cycle().take(12);
    let mut clients: Vec<_> = keys.map(|key| send(key)).collect();
    let small = completion_body(&json!({})).to_string().into_bytes();
    let _: Value = server.send(&request(&small, KEYS[0])).expect(200);
    // Clients that disconnect free memory, and requests that have memory complete.
    for (client, sent, _) in clients.drain(..6) {
        client.shutdown(Shutdown::Both).expect("it is open");
        // Data that was not received by then is lost.
        _ = sent.join().expect("no panic");
    }
    for (mut client, sent, last) in clients {
        sent.join().expect("no panic").expect("the server reads");
        client.write_all(&[last]).expect("the server reads");
        let mut bytes = Vec::new();
        client.read_to_end(&mut bytes).expect("the server answers");
        let answer: Value = Reply::parse(&bytes).expect(200);
        assert_eq!(answer["usage"]["completion_tokens"], 1);
    }
}

#[test]
fn a_text_of_tokens_is_no_longer_than_a_body() {
    let server = Server::start(ServeOptions {
        max_body: 100_000,
        ..ServeOptions::default()
    });
    let longest = shared().ids(&"\n".repeat(31));
    assert_eq!(longest.len(), 1);
    let tokens = |count: usize| json!({"tokens": vec![longest[0]; count]});
    let told = server.post("/detokenize", &tokens(3000)).expect(200);
    assert_eq!(told["content"].as_str().map(str::len), Some(93_000));
    let error = server.post("/detokenize", &tokens(4000)).error(400);
    assert_eq!(error["param"], "tokens");
}
