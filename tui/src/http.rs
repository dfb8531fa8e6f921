//! The HTTP client. Dropping a request closes its connection, so that the server stops
//! computing an answer that is no longer needed. However much a server sends, no more is read
//! than an answer may have.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use crate::wire::Failure;
use incant_api::sse::{Events, TooLong};

/// Connection timeout.
const CONNECT: Duration = Duration::from_secs(10);

/// Maximum size in bytes of a complete response.
pub const LONGEST_ANSWER: usize = 16 << 20;

/// Maximum size in bytes of a streamed response: each token takes some hundred bytes, and with
/// probabilities some thousand.
pub const LONGEST_STREAM: usize = 64 << 20;

/// Maximum size in bytes of an error response.
const LONGEST_REFUSAL: usize = 64 << 10;

/// A client for one server.
#[derive(Clone)]
pub struct Server {
    base: String,
    key: Option<String>,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Server {
    /// A client for the server at a URL, which may end in `/v1` as many write it.
    pub fn new(url: &str, key: Option<String>) -> Server {
        let base = incant_api::base_url(url);
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT));
        let connector = HttpsConnectorBuilder::new()
            .with_webpki_roots()
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        Server {
            base,
            key,
            client: Client::builder(TokioExecutor::new()).build(connector),
        }
    }

    /// Sends a GET request and returns the JSON response.
    ///
    /// # Errors
    /// The server cannot be reached, returns an error, or sends something else.
    pub async fn get(&self, path: &str) -> Result<Value, Failure> {
        whole(self.send(Method::GET, path, None).await?).await
    }

    /// Sends JSON and returns the JSON response.
    ///
    /// # Errors
    /// As for [`Server::get`].
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        whole(self.send(Method::POST, path, Some(body)).await?).await
    }

    /// Sends JSON and returns a streamed response.
    ///
    /// # Errors
    /// The server cannot be reached, or returns an error.
    pub async fn stream(&self, path: &str, body: &Value) -> Result<Stream, Failure> {
        let answer = self.send(Method::POST, path, Some(body)).await?;
        Ok(Stream {
            body: answer.into_body(),
            read: 0,
            form: Form::Unknown(Vec::new()),
            ready: VecDeque::new(),
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Response<Incoming>, Failure> {
        let url = format!("{}{path}", self.base);
        let mut request = Request::builder().method(method).uri(&url);
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = request
            .body(Full::from(body))
            .map_err(|error| Failure::local(format!("cannot ask {url}: {error}")))?;
        let answer = self.client.request(request).await.map_err(|error| {
            let why = cause(&error);
            Failure::local(format!("cannot reach {}: {why}", self.base))
        })?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status().as_u16();
        let mut body = answer.into_body();
        let mut said = Vec::new();
        while said.len() < LONGEST_REFUSAL
            && let Some(frame) = body.frame().await
        {
            let frame = frame.map_err(|error| broken(&error))?;
            let data = frame.into_data().unwrap_or_default();
            let room = LONGEST_REFUSAL - said.len();
            said.extend_from_slice(&data[..data.len().min(room)]);
        }
        Err(Failure::answered(status, &String::from_utf8_lossy(&said)))
    }
}

/// A streamed response.
pub struct Stream {
    body: Incoming,
    /// Bytes received so far.
    read: usize,
    form: Form,
    /// Received pieces that were not requested yet.
    ready: VecDeque<String>,
}

/// The format of a body, which its first character determines: JSON begins with a brace, and no
/// meaningful line of an event stream does.
enum Form {
    /// Only white space has arrived, and perhaps a part of a byte order mark, which is kept
    /// here.
    Unknown(Vec<u8>),
    /// Server-sent events.
    Events(Events),
    /// A complete answer, from a server that does not stream.
    Whole(Vec<u8>),
    /// Everything has arrived.
    Ended,
}

impl Stream {
    /// The next piece of the answer, which is JSON if the server keeps to the API; `None` once
    /// the server is done.
    ///
    /// # Errors
    /// The server closes the connection early, or sends more than an answer may have.
    pub async fn next(&mut self) -> Result<Option<String>, Failure> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                if piece == "[DONE]" {
                    self.form = Form::Ended;
                    self.ready.clear();
                    return Ok(None);
                }
                return Ok(Some(piece));
            }
            if matches!(self.form, Form::Ended) {
                return Ok(None);
            }
            match self.body.frame().await {
                Some(frame) => {
                    let frame = frame.map_err(|error| broken(&error))?;
                    self.take(&frame.into_data().unwrap_or_default())?;
                }
                None => self.end()?,
            }
        }
    }

    fn take(&mut self, data: &[u8]) -> Result<(), Failure> {
        self.read += data.len();
        match &mut self.form {
            Form::Events(events) => self.ready.extend(heard(events.push(data))?),
            Form::Whole(body) => body.extend_from_slice(data),
            Form::Ended => {}
            Form::Unknown(begin) => {
                begin.extend_from_slice(data);
                let begin = without_mark(std::mem::take(begin));
                self.form = match begin.first() {
                    Some(b'{') => Form::Whole(begin),
                    None => Form::Unknown(begin),
                    Some(&MARK_BEGINS) if begin.len() < 3 => Form::Unknown(begin),
                    Some(_) => {
                        let mut events = Events::default();
                        self.ready.extend(heard(events.push(&begin))?);
                        Form::Events(events)
                    }
                };
            }
        }
        let most = match self.form {
            Form::Events(_) => LONGEST_STREAM,
            _ => LONGEST_ANSWER,
        };
        match self.read > most {
            true => Err(too_long(most)),
            false => Ok(()),
        }
    }

    /// Handles the end of the body.
    fn end(&mut self) -> Result<(), Failure> {
        match std::mem::replace(&mut self.form, Form::Ended) {
            Form::Whole(body) => {
                let body = String::from_utf8_lossy(&body).into_owned();
                self.ready.push_back(body);
                return Ok(());
            }
            Form::Events(mut events) => {
                let last = events.finish().filter(|data| !data.trim().is_empty());
                if let Some(last) = last {
                    self.ready.push_back(last);
                    // The next call will find none.
                    self.form = Form::Events(events);
                    return Ok(());
                }
            }
            Form::Unknown(_) | Form::Ended => {}
        }
        Err(Failure::torn())
    }
}

/// The first byte of a byte order mark.
const MARK_BEGINS: u8 = 0xef;

/// The beginning of a body without leading white space and a complete byte order mark.
fn without_mark(mut begin: Vec<u8>) -> Vec<u8> {
    let text = begin.trim_ascii_start();
    let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
    let rest = text.trim_ascii_start().len();
    begin.drain(..begin.len() - rest);
    begin
}

/// The non-empty events; an empty one only keeps the connection alive.
fn heard(events: Result<Vec<String>, TooLong>) -> Result<impl Iterator<Item = String>, Failure> {
    let events = events.map_err(|error| Failure::local(error.to_string()))?;
    Ok(events.into_iter().filter(|data| !data.trim().is_empty()))
}

async fn whole(answer: Response<Incoming>) -> Result<Value, Failure> {
    let body = Limited::new(answer.into_body(), LONGEST_ANSWER);
    let body = body.collect().await.map_err(|error| {
        match (error.is::<LengthLimitError>(), error.downcast_ref()) {
            (false, Some(error)) => broken(error),
            _ => too_long(LONGEST_ANSWER),
        }
    })?;
    serde_json::from_slice(&body.to_bytes())
        .map_err(|error| Failure::local(format!("the server's answer is not JSON: {error}")))
}

fn too_long(most: usize) -> Failure {
    let most = most >> 20;
    Failure::local(format!(
        "the server sent more than {most} MiB in one answer; the rest was not read"
    ))
}

fn broken(error: &hyper::Error) -> Failure {
    Failure::local(format!("the connection broke: {}", cause(error)))
}

/// The innermost cause of an error; the errors around it add no information.
fn cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => cause(source),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::sync::mpsc::{Receiver, channel};
    use std::thread;

    use serde_json::json;

    use super::*;
    use incant_api::sse;

    /// An upper bound of the bytes that the system buffers on a connection between two
    /// programs.
    const UNDERWAY: usize = 32 << 20;

    const EVENTS: &str = "200 OK\r\ncontent-type: text/event-stream";
    const JSON: &str = "200 OK\r\ncontent-type: application/json";

    /// A server that answers one request with a head, a beginning, and then a piece repeated as
    /// long as the client reads, at most `times`; reports how many bytes it could send.
    fn server(head: &str, begin: &str, piece: &str, times: usize) -> (Server, Receiver<usize>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let head = format!("HTTP/1.1 {head}\r\nconnection: close\r\n\r\n{begin}");
        let (piece, (sender, sent)) = (piece.to_owned(), channel());
        thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            _ = client.read(&mut request).unwrap();
            client.write_all(head.as_bytes()).unwrap();
            // Many pieces in one write, as a fast server would.
            let many = (64 << 10) / piece.len().max(1) + 1;
            let pieces = piece.repeat(many.min(times));
            let mut count = 0;
            for _ in 0..times.div_ceil(many) {
                match client.write_all(pieces.as_bytes()) {
                    Ok(()) => count += pieces.len(),
                    Err(_) => break,
                }
            }
            drop(client);
            sender.send(count).unwrap();
        });
        (Server::new(&url, None), sent)
    }

    /// All pieces of a stream, and the failure that ended it.
    async fn streamed(server: &Server) -> (Vec<String>, Option<Failure>) {
        let mut stream = match server.stream("/v1/x", &json!({})).await {
            Ok(stream) => stream,
            Err(failure) => return (Vec::new(), Some(failure)),
        };
        let mut pieces = Vec::new();
        loop {
            match stream.next().await {
                Ok(Some(piece)) => pieces.push(piece),
                Ok(None) => return (pieces, None),
                Err(failure) => return (pieces, Some(failure)),
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_server_without_an_end_is_read_so_far_and_no_further() {
        let event = "data: {}\n\n";
        let tries = [
            (EVENTS, "", "x", sse::LONGEST, "an event of more than 4 MiB"),
            (
                EVENTS,
                "",
                "data: x\n",
                2 * sse::LONGEST,
                "an event of more",
            ),
            (EVENTS, "", event, LONGEST_STREAM, "more than 64 MiB"),
            (
                EVENTS,
                "",
                ": comment\n",
                LONGEST_STREAM,
                "more than 64 MiB",
            ),
            (EVENTS, "", "   ", LONGEST_ANSWER, "more than 16 MiB"),
            (JSON, "{\"a\": \"", "x", LONGEST_ANSWER, "more than 16 MiB"),
        ];
        for (head, begin, piece, most, said) in tries {
            let (server, sent) = server(head, begin, piece, usize::MAX / (1 << 20));
            let (_, failure) = streamed(&server).await;
            let message = failure.expect("it has no end").message;
            assert!(message.contains(said), "{piece:?}: {message}");
            drop(server);
            let sent = sent.recv().unwrap();
            assert!(sent <= most + UNDERWAY, "{piece:?}: {sent} bytes");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_list_or_a_refusal_without_an_end_is_read_so_far_and_no_further() {
        let (endless, sent) = server(JSON, "{\"data\": [", "{},", usize::MAX / (1 << 20));
        let failure = endless.get("/v1/models").await.unwrap_err();
        assert!(failure.message.contains("16 MiB"), "{failure}");
        assert!(sent.recv().unwrap() <= LONGEST_ANSWER + UNDERWAY);

        let (endless, sent) = server("500 Oh", "", "no ", usize::MAX / (1 << 20));
        let failure = endless.get("/v1/models").await.unwrap_err();
        assert_eq!(failure.status, Some(500));
        assert!(failure.message.starts_with("no no "), "{failure}");
        assert!(failure.message.len() < 4096, "{}", failure.message.len());
        assert!(sent.recv().unwrap() <= LONGEST_REFUSAL + UNDERWAY);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_answer_as_a_whole_is_one_piece_whatever_it_calls_itself() {
        for head in [JSON, EVENTS, "200 OK"] {
            let (server, _) = server(head, "\u{feff}\n {\"a\":\n", "1}", 1);
            let (pieces, failure) = streamed(&server).await;
            assert_eq!(failure, None, "{head}");
            assert_eq!(pieces.len(), 1);
            let value: Value = serde_json::from_str(&pieces[0]).unwrap();
            assert_eq!(value, json!({"a": 1}));
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_stream_ends_where_the_server_says_so() {
        let ended = "data: 1\n\ndata:\n\ndata: 2\n\ndata: [DONE]\n\n";
        let (whole, _) = server(EVENTS, ended, "data: 3\n\n", 1);
        let (pieces, failure) = streamed(&whole).await;
        assert_eq!((pieces, failure), (vec!["1".into(), "2".into()], None));

        let (torn, _) = server(EVENTS, "data: 1\n\ndata: 2\n", "data", 1);
        let (pieces, failure) = streamed(&torn).await;
        assert_eq!(pieces, ["1", "2"]);
        assert!(failure.expect("it is torn").message.contains("closed"));
    }
}
