//! A fake server of the live page with scripted answers.

use std::io::{self, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use incant::analyze::page;
use serde_json::{Value, json};

use crate::support::http::{Request, next_request};

/// The answer to a comparison or a chat.
pub(crate) enum Script {
    /// These events, in pieces of a few bytes.
    Events(Vec<Value>),
    /// These events; then nothing until the page disconnects.
    Unending(Vec<Value>),
    /// These events; then the server disconnects.
    Broken(Vec<Value>),
    /// A status and an error message.
    Refusal(&'static str, &'static str),
}

/// A server that ends with the test binary.
pub(crate) struct Stub {
    pub(crate) url: String,
    state: Arc<State>,
}

struct State {
    key: Option<&'static str>,
    /// The default chat profile of its first model.
    default: Option<&'static str>,
    /// The answers to successive requests; the last one is repeated.
    scripts: Vec<Script>,
    asked: Mutex<Vec<Value>>,
    hung_up: Mutex<bool>,
}

impl Stub {
    /// Starts the server; with a key, requests without it are refused.
    pub(crate) fn start(key: Option<&'static str>, script: Script) -> Stub {
        Stub::serving(Some("urial"), key, script)
    }

    /// Starts a server with another answer each time.
    pub(crate) fn saying(scripts: Vec<Script>) -> Stub {
        Stub::begin(Some("urial"), None, scripts)
    }

    /// Starts a server whose first model chats with this profile by default, or with its own
    /// template.
    pub(crate) fn serving(
        default: Option<&'static str>,
        key: Option<&'static str>,
        script: Script,
    ) -> Stub {
        Stub::begin(default, key, vec![script])
    }

    fn begin(
        default: Option<&'static str>,
        key: Option<&'static str>,
        scripts: Vec<Script>,
    ) -> Stub {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let url = format!("http://{}/", listener.local_addr().expect("it is bound"));
        let state = Arc::new(State {
            key,
            default,
            scripts,
            asked: Mutex::default(),
            hung_up: Mutex::new(false),
        });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                // An error only means that the page has closed the connection.
                thread::spawn(move || _ = state.answer(&stream));
            }
        });
        Stub { url, state }
    }

    /// The comparison and chat requests received.
    pub(crate) fn asked(&self) -> Vec<Value> {
        self.state.asked.lock().expect("no test holds it").clone()
    }

    /// Whether the page has ended an answer that would not have ended by itself.
    pub(crate) fn hung_up(&self) -> bool {
        *self.state.hung_up.lock().expect("no test holds it")
    }
}

impl State {
    fn answer(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let Some(request) = next_request(&mut BufReader::new(stream))? else {
            return Ok(());
        };
        let Request { path, body, .. } = &request;
        let given = request.authorization.as_deref();
        let given = given.and_then(|given| given.strip_prefix("Bearer "));
        let allowed = self.key.is_none() || given == self.key;
        // The page may be reloaded with a query.
        match path.split('?').next().unwrap_or_default() {
            "/" => {
                let policy = format!(
                    "content-security-policy: {}\r\n",
                    page::content_security_policy()
                );
                whole(
                    stream,
                    "200 OK",
                    "text/html; charset=utf-8",
                    &policy,
                    page::live(),
                )
            }
            _ if !allowed => refuse(stream, "401 Unauthorized", "There is no such key."),
            "/v1/models" => whole(
                stream,
                "200 OK",
                "application/json",
                "",
                &models().to_string(),
            ),
            "/v1/profiles" => whole(
                stream,
                "200 OK",
                "application/json",
                "",
                &profiles(self.default).to_string(),
            ),
            "/v1/compare" | "/v1/chat/completions" => {
                let request = serde_json::from_slice(body).expect("JSON");
                let mut asked = self.asked.lock().expect("no test holds it");
                let script = &self.scripts[asked.len().min(self.scripts.len() - 1)];
                asked.push(request);
                drop(asked);
                self.play(script, stream)
            }
            _ => refuse(stream, "404 Not Found", "There is no such page."),
        }
    }

    fn play(&self, script: &Script, mut stream: &TcpStream) -> io::Result<()> {
        let (events, end) = match script {
            Script::Refusal(status, message) => return refuse(stream, status, message),
            Script::Events(events) => (events, "data: [DONE]\r\n\r\n"),
            Script::Unending(events) | Script::Broken(events) => (events, ""),
        };
        let events = events.iter().map(|event| format!("data: {event}\r\n\r\n"));
        let text = events.collect::<String>() + end;
        let said = say(stream, &text);
        if !matches!(script, Script::Unending(_)) {
            return said;
        }
        // Both fail or end when the other side has closed the connection.
        _ = said.and_then(|()| stream.read(&mut [0]));
        *self.hung_up.lock().expect("no test holds it") = true;
        Ok(())
    }
}

/// Sends a stream in pieces that end within events and, if possible, within characters.
fn say(mut stream: &TcpStream, text: &str) -> io::Result<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n")?;
    stream.write_all(b"connection: close\r\n\r\n: a comment\r\n\r\n")?;
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let most = &rest[..rest.len().min(251)];
        let within = most.iter().rposition(|byte| byte & 0xc0 == 0x80);
        let (piece, after) = rest.split_at(within.filter(|&end| end > 0).unwrap_or(most.len()));
        stream.write_all(piece)?;
        thread::sleep(Duration::from_millis(1));
        rest = after;
    }
    Ok(())
}

fn refuse(stream: &TcpStream, status: &str, message: &str) -> io::Result<()> {
    let error = json!({"error": {"message": message, "type": "invalid_request_error", "param": null, "code": null}});
    whole(stream, status, "application/json", "", &error.to_string())
}

fn whole(
    mut stream: &TcpStream,
    status: &str,
    kind: &str,
    headers: &str,
    body: &str,
) -> io::Result<()> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n{headers}connection: close\r\n\r\n"
    );
    stream.write_all((head + body).as_bytes())
}

/// Two models; the first has profiles and an adapter.
fn models() -> Value {
    let of_first = ["", "@base", "@assistant", "@urial", "+chat", "@base+chat"];
    let model = |root: &str, arm: &str| {
        let (rest, adapter) = arm
            .split_once('+')
            .map_or((arm, None), |(rest, name)| (rest, Some(name)));
        let sampling = match rest {
            "@base" => json!({}),
            _ => json!({"temperature": 0.25, "max_tokens": 512}),
        };
        let mut model = json!({"id": format!("{root}{arm}"), "object": "model", "root": root,
            "profile": rest.strip_prefix('@'), "adapter": adapter, "sampling": sampling});
        if rest == "@assistant" {
            model["guidance"] = json!(0.5);
        }
        model
    };
    let mut data: Vec<Value> = of_first
        .iter()
        .map(|arm| model("gemma-3-270m", arm))
        .collect();
    data.push(model("other", ""));
    json!({"object": "list", "data": data})
}

/// The profiles of both models.
fn profiles(default: Option<&str>) -> Value {
    let profile = |id: &str, variant_of: Option<&str>, language: &str| {
        let models: &[&str] = match default == Some(id) {
            true => &["gemma-3-270m"],
            false => &[],
        };
        json!({"id": id, "object": "profile", "title": format!("The <i>{id}</i>"),
            "description": format!("What {id} does."), "language": language,
            "variant_of": variant_of, "default_for": models})
    };
    let data = [
        profile("assistant", None, "en"),
        profile("urial", None, "en"),
        profile("urial-ja", Some("urial"), "ja"),
    ];
    json!({"object": "list", "data": data, "broken": []})
}

/// The first question of a report as a server would stream it: all arms interleaved, tokens
/// some time after their text.
pub(crate) fn events(report: &Value) -> Vec<Value> {
    let answers = report["prompts"][0]["answers"].as_array().expect("a list");
    let begin = json!({"arms": report["arms"], "settings": report["settings"]});
    let mut events = vec![json!({"begin": begin})];
    for round in 0..40 {
        for answer in answers {
            let text = answer["text"].as_str().expect("a text").chars();
            let text: String = text.skip(10 * round).take(10).collect();
            if !text.is_empty() {
                events.push(about(answer, "delta", json!({"content": text})));
            }
            let tokens = answer["tokens"].as_array().expect("a list").iter();
            let earlier = 3 * round.saturating_sub(2);
            let tokens: Vec<&Value> = tokens.skip(earlier).take(3).collect();
            if round >= 2 && !tokens.is_empty() {
                events.push(about(answer, "tokens", json!({"tokens": tokens})));
            }
        }
    }
    for answer in answers {
        let ended = json!({"finish_reason": answer["finish_reason"], "usage": answer["usage"]});
        events.push(about(answer, "end", ended));
    }
    events.push(json!({"summary": report["summary"]}));
    for event in &mut events {
        event["id"] = json!("cmp-1");
        event["object"] = json!("compare.chunk");
        event["created"] = report["created"].clone();
    }
    events
}

/// An answer as a chat would stream it, a few characters at a time.
pub(crate) fn chat_events(text: &str, finish: &str) -> Vec<Value> {
    let text: Vec<char> = text.chars().collect();
    let pieces = text.chunks(7).map(|piece| {
        let content: String = piece.iter().collect();
        delta(json!({ "content": content }), None)
    });
    let mut events = vec![delta(json!({"role": "assistant", "content": ""}), None)];
    events.extend(pieces);
    events.push(delta(json!({}), Some(finish)));
    events.push(chunk(
        json!([]),
        json!({"prompt_tokens": 812, "completion_tokens": 34, "total_tokens": 846,
            "prompt_tokens_details": {"cached_tokens": 799}}),
    ));
    events
}

fn delta(delta: Value, finish: Option<&str>) -> Value {
    let choice = json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish});
    chunk(json!([choice]), Value::Null)
}

fn chunk(choices: Value, usage: Value) -> Value {
    json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_763_800_000,
        "model": "gemma-3-270m", "profile": "urial", "choices": choices, "usage": usage})
}

fn about(answer: &Value, kind: &str, mut fields: Value) -> Value {
    fields["arm"] = answer["arm"].clone();
    fields["index"] = answer["index"].clone();
    json!({ kind: fields })
}
