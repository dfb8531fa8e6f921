//! A fake server with only OpenAI's REST API and scripted answers.

use std::io::{self, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::support::http::next_request;

/// The answer to one chat completion request.
#[derive(Clone, Copy)]
pub(crate) enum Answer {
    /// A status and a body.
    Refusal(&'static str, &'static str),
    /// These pieces of text, then a regular end.
    Text(&'static [&'static str]),
    /// This piece of text, then the connection is closed.
    Torn(&'static str),
}

/// Starts a server that gives these answers in turn and then repeats the last one; returns its
/// URL.
pub(crate) fn server(answers: &'static [Answer]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    let turn = Arc::new(Mutex::new(0));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let turn = Arc::clone(&turn);
            // An error only means that the client has closed the connection.
            thread::spawn(move || _ = answer(&stream, answers, &turn));
        }
    });
    format!("http://{address}")
}

fn answer(mut stream: &TcpStream, answers: &[Answer], turn: &Mutex<usize>) -> io::Result<()> {
    let Some(request) = next_request(&mut BufReader::new(stream))? else {
        return Ok(());
    };
    let reply = match request.path.as_str() {
        "/v1/models" => whole(
            "200 OK",
            r#"{"data": [{"id": "stub-a"}, {"id": "stub-b"}]}"#,
        ),
        "/v1/chat/completions" => {
            let mut turn = turn.lock().expect("no answer panics");
            let answer = answers[(*turn).min(answers.len() - 1)];
            *turn += 1;
            match answer {
                Answer::Refusal(status, body) => whole(status, body),
                Answer::Text(pieces) => stream_of(pieces) + "data: [DONE]\n\n",
                Answer::Torn(piece) => stream_of(&[piece]),
            }
        }
        _ => whole(
            "404 Not Found",
            r#"{"error": {"message": "File Not Found"}}"#,
        ),
    };
    stream.write_all(reply.as_bytes())
}

fn whole(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
}

/// The body ends with the connection.
fn stream_of(pieces: &[&str]) -> String {
    let mut reply =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
            .to_owned();
    for piece in pieces {
        let event = serde_json::json!({"choices": [{"delta": {"content": piece}}]});
        reply += &format!("data: {event}\n\n");
    }
    reply
}
