//! A fake server of OpenAI's REST API: it streams scripted completions, and records its
//! requests.

use std::io::{self, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::http::next_request;

/// The behaviour of a server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Behaviour {
    /// The delay before the first token.
    pub(crate) delay: Duration,
    /// The maximum number of tokens.
    pub(crate) most: usize,
    /// Whether it reports the number of tokens at the end.
    pub(crate) usage: bool,
    /// Whether it ends with `[DONE]`.
    pub(crate) done: bool,
    /// Whether it closes the connection instead of answering a second request.
    pub(crate) closes: bool,
    /// The number of completions after which it fails.
    pub(crate) fails_after: usize,
}

impl Behaviour {
    pub(crate) const GOOD: Behaviour = Behaviour {
        delay: Duration::ZERO,
        most: usize::MAX,
        usage: true,
        done: true,
        closes: false,
        fails_after: usize::MAX,
    };
}

/// One completion request.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// The name of the server.
    pub(crate) server: &'static str,
    /// The connection that it came over.
    pub(crate) connection: String,
    pub(crate) authorization: Option<String>,
    pub(crate) body: Value,
}

/// The requests to one or more servers, in order.
pub(crate) type Log = Arc<Mutex<Vec<Asked>>>;

/// Starts a server that ends with the test binary; returns its URL.
pub(crate) fn chat_server(name: &'static str, behaviour: Behaviour, log: &Log) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    let log = Arc::clone(log);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let log = Arc::clone(&log);
            // An error only means that the client has closed the connection.
            thread::spawn(move || _ = connection(&stream, name, behaviour, &log));
        }
    });
    format!("http://{address}")
}

fn connection(
    stream: &TcpStream,
    server: &'static str,
    behaviour: Behaviour,
    log: &Log,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let peer = stream.peer_addr()?.to_string();
    let mut reader = BufReader::new(stream);
    let mut completions = 0;
    while let Some(request) = next_request(&mut reader)? {
        if request.path == "/v1/models" {
            let models = json!({"data": [{"id": format!("{server}-model")}, {"id": "other"}]});
            whole(stream, "200 OK", &models)?;
            continue;
        }
        assert_eq!(request.path, "/v1/completions");
        completions += 1;
        if behaviour.closes && completions > 1 {
            return Ok(());
        }
        let body: Value = serde_json::from_slice(&request.body).expect("JSON");
        let before = {
            let mut log = log.lock().expect("no test holds it");
            log.push(Asked {
                server,
                connection: format!("{server} {peer}"),
                authorization: request.authorization,
                body: body.clone(),
            });
            log.len() - 1
        };
        match before < behaviour.fails_after {
            true => stream_tokens(stream, behaviour, &body)?,
            false => {
                let error = json!({"error": {"message": "out of\nmemory", "type": "server_error"}});
                whole(stream, "500 Internal Server Error", &error)?;
            }
        }
    }
    Ok(())
}

fn whole(mut stream: &TcpStream, status: &str, body: &Value) -> io::Result<()> {
    let body = body.to_string();
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all((head + &body).as_bytes())
}

/// Sends two tokens in each event.
fn stream_tokens(mut stream: &TcpStream, behaviour: Behaviour, body: &Value) -> io::Result<()> {
    let asked = body["max_tokens"].as_u64().expect("a number") as usize;
    let tokens = asked.min(behaviour.most);
    let prompt = body["prompt"].as_str().expect("a text");
    stream.write_all(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
    )?;
    let mut send = |event: &str| {
        let event = format!("data: {event}\n\n");
        stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes())
    };
    thread::sleep(behaviour.delay);
    for _ in 0..tokens.div_ceil(2) {
        send(&json!({"choices": [{"index": 0, "text": "a b", "finish_reason": null}], "usage": null}).to_string())?;
        thread::sleep(Duration::from_millis(1));
    }
    send(&json!({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}).to_string())?;
    if behaviour.usage {
        // Differs from a client's estimate.
        let usage = json!({"prompt_tokens": prompt.len() / 5, "completion_tokens": tokens});
        send(&json!({"choices": [], "usage": usage}).to_string())?;
    }
    if behaviour.done {
        send("[DONE]")?;
    }
    stream.write_all(b"0\r\n\r\n")
}
