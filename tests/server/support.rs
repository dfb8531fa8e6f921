//! A server on a free port, and a client that sees the raw bytes.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, LazyLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use incant::engine::EngineOptions;
use incant::runtime::{LoadOptions, Model, Runtime};
use incant::server::{ServeOptions, serve};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::support::{fixtures, subjects};

/// The model of all server tests: a base model without a chat template.
pub(crate) const MODEL: &str = "gemma-3-270m";

pub(crate) const CHAT: &str = "/v1/chat/completions";
pub(crate) const COMPLETIONS: &str = "/v1/completions";

/// Adds the fields of `more` to `base`.
pub(crate) fn with(mut base: Value, more: &Value) -> Value {
    let object = base.as_object_mut().expect("an object");
    object.extend(more.as_object().expect("an object").clone());
    base
}

/// A short chat request with the additional fields `more`.
pub(crate) fn chat_body(more: &Value) -> Value {
    with(
        json!({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}),
        more,
    )
}

/// A short completion request with the additional fields `more`.
pub(crate) fn completion_body(more: &Value) -> Value {
    with(
        json!({"model": MODEL, "prompt": "Hi", "max_tokens": 1}),
        more,
    )
}

/// A completion that would run for minutes, with the additional fields `more`.
pub(crate) fn endless(more: &Value) -> Vec<u8> {
    let lasting = json!({"max_tokens": 4000, "ignore_eos": true});
    let body = with(completion_body(&lasting), more);
    post(COMPLETIONS, body.to_string().as_bytes(), "")
}

/// Waits until a condition holds.
pub(crate) fn eventually(what: &str, holds: impl Fn() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < Duration::from_secs(30), "not so: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether the engine is idle.
pub(crate) fn idle() -> bool {
    let load = runtime().models()[0].engine().load();
    load.running == 0 && load.waiting == 0
}

/// The runtime that all tests share.
pub(crate) fn runtime() -> Arc<Runtime> {
    static RUNTIME: LazyLock<Arc<Runtime>> = LazyLock::new(|| {
        let model = Model::load(MODEL, &crate::support::model(MODEL), &load_options());
        let runtime = Runtime::new();
        runtime.loaded(vec![Arc::new(model.expect("a sound model"))]);
        Arc::new(runtime)
    });
    RUNTIME.clone()
}

/// The options of that runtime: exact, with few slots, nothing saved on disk.
pub(crate) fn load_options() -> LoadOptions {
    LoadOptions {
        kv_memory: None,
        backend: subjects::exact().backend.clone(),
        engine: EngineOptions {
            slots: 8,
            ..EngineOptions::default()
        },
        // Short enough to be exceeded cheaply.
        context: Some(4096),
        ..fixtures::load_options()
    }
}

/// The threads of the servers.
fn threads() -> &'static tokio::runtime::Runtime {
    static THREADS: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("threads")
    });
    &THREADS
}

/// Held shared by requests, and exclusively by tests that compare two answers bit for bit:
/// concurrent requests affect how a prompt is divided into chunks, with AMX that affects its
/// rounding, and a near tie can then fall the other way.
static COMPANY: RwLock<()> = RwLock::new(());

thread_local! {
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// While it is held, only its test sends requests.
pub(crate) struct Alone(
    #[expect(dead_code, reason = "held, not read")] RwLockWriteGuard<'static, ()>,
);

/// Waits until no other test has a request in progress.
pub(crate) fn alone() -> Alone {
    let guard = COMPANY.write().unwrap_or_else(PoisonError::into_inner);
    ALONE.set(true);
    Alone(guard)
}

impl Drop for Alone {
    fn drop(&mut self) {
        ALONE.set(false);
    }
}

/// Locks shared, unless the test is [`alone`].
pub(crate) fn in_company() -> Option<RwLockReadGuard<'static, ()>> {
    (!ALONE.get()).then(|| COMPANY.read().unwrap_or_else(PoisonError::into_inner))
}

/// A running server. It ends with the test program, or by [`Server::stop`].
pub(crate) struct Server {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<std::io::Result<()>>,
}

/// The server that most tests use.
pub(crate) fn shared() -> &'static Server {
    static SERVER: LazyLock<Server> = LazyLock::new(|| Server::start(ServeOptions::default()));
    &SERVER
}

impl Server {
    /// Starts a server of its own, for a test that needs other options.
    pub(crate) fn start(options: ServeOptions) -> Server {
        Server::over(runtime(), options)
    }

    /// Starts a server over `runtime`, which may still be loading.
    pub(crate) fn over(runtime: Arc<Runtime>, options: ServeOptions) -> Server {
        let (stop, stopped) = oneshot::channel();
        let listener = threads()
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let shutdown = async {
            // Dropping the sender keeps the server running until the end of the tests.
            if stopped.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let ended = threads().spawn(serve(listener, runtime, shutdown, options));
        Server {
            address,
            stop,
            ended,
        }
    }

    /// Sends the shutdown signal; the returned handle ends when the server has ended.
    pub(crate) fn stop(self) -> Ended {
        self.stop.send(()).expect("the server waits for the signal");
        Ended(self.ended)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("the server listens");
        // Loading a model and a first prefill are slow when many tests share two cores.
        stream
            .set_read_timeout(Some(Duration::from_secs(300)))
            .expect("a timeout");
        stream
    }

    /// Sends raw bytes and reads to the end of the connection.
    pub(crate) fn send(&self, request: &[u8]) -> Reply {
        let _company = in_company();
        let mut stream = self.connect();
        stream.write_all(request).expect("the server reads");
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("the server answers");
        Reply::parse(&bytes)
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.send(
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                .as_bytes(),
        )
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Reply {
        self.send(&post(
            path,
            body.to_string().as_bytes(),
            "Connection: close\r\n",
        ))
    }

    pub(crate) fn post_bytes(&self, path: &str, body: &[u8]) -> Reply {
        self.send(&post(path, body, "Connection: close\r\n"))
    }

    /// Returns a chat answer, which must succeed.
    pub(crate) fn chat(&self, body: Value) -> Value {
        self.post("/v1/chat/completions", &body).expect(200)
    }

    /// Returns a completion, which must succeed.
    pub(crate) fn complete(&self, body: Value) -> Value {
        self.post("/v1/completions", &body).expect(200)
    }

    /// Returns the token ids of a text, without BOS.
    pub(crate) fn ids(&self, text: &str) -> Vec<u64> {
        let body = json!({"model": MODEL, "prompt": text, "add_special_tokens": false});
        let reply = self.post("/tokenize", &body).expect(200);
        reply["tokens"]
            .as_array()
            .expect("tokens")
            .iter()
            .map(|id| id.as_u64().expect("an id"))
            .collect()
    }
}

/// A server that was told to stop.
pub(crate) struct Ended(JoinHandle<std::io::Result<()>>);

impl Ended {
    /// Waits until the server has ended.
    pub(crate) fn wait(self) {
        threads()
            .block_on(self.0)
            .expect("no panic")
            .expect("no error");
    }
}

/// Returns the bytes of a POST request.
pub(crate) fn post(path: &str, body: &[u8], headers: &str) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}Content-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn parse(bytes: &[u8]) -> Reply {
        let end = bytes
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .expect("a whole head");
        let head = str::from_utf8(&bytes[..end]).expect("an ASCII head");
        let mut lines = head.split("\r\n");
        let status = lines
            .next()
            .and_then(|line| line.split(' ').nth(1)?.parse().ok())
            .expect("a status");
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        let mut reply = Reply {
            status,
            headers,
            body: bytes[end + 4..].to_vec(),
        };
        if reply.header("transfer-encoding") == Some("chunked") {
            reply.body = unchunk(&reply.body);
        }
        reply
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(header, _)| header == name)
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> &str {
        str::from_utf8(&self.body).expect("UTF-8")
    }

    /// Returns the body, which must be JSON with this status.
    pub(crate) fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("application/json"));
        serde_json::from_slice(&self.body).expect("JSON")
    }

    /// Returns the `error` of a failure, which must have OpenAI's format.
    pub(crate) fn error(&self, status: u16) -> Value {
        let body = self.expect(status);
        let keys: Vec<&String> = body["error"]
            .as_object()
            .expect("an error")
            .keys()
            .collect();
        assert_eq!(keys, ["message", "type", "param", "code"]);
        assert_eq!(body.as_object().expect("an object").len(), 1);
        for nullable in ["param", "code"] {
            assert!(body["error"][nullable].is_string() || body["error"][nullable].is_null());
        }
        assert!(
            !body["error"]["message"]
                .as_str()
                .expect("a message")
                .is_empty()
        );
        body["error"].clone()
    }

    /// Returns the events of a stream, whose framing and end must be exactly right.
    pub(crate) fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("text/event-stream"));
        let frames = self
            .text()
            .strip_suffix("data: [DONE]\n\n")
            .expect("the end marker");
        let frames = frames.split_inclusive("\n\n");
        frames
            .map(|frame| {
                let data = frame
                    .strip_prefix("data: ")
                    .and_then(|frame| frame.strip_suffix("\n\n"));
                let data = data.unwrap_or_else(|| panic!("not a frame: {frame:?}"));
                assert!(!data.contains('\n'), "{data:?}");
                serde_json::from_str(data).expect("JSON")
            })
            .collect()
    }
}

fn unchunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = bytes
            .windows(2)
            .position(|window| window == b"\r\n")
            .expect("a chunk's length");
        let length = str::from_utf8(&bytes[..end]).expect("hexadecimal digits");
        let length = usize::from_str_radix(length, 16).expect("hexadecimal digits");
        if length == 0 {
            return body;
        }
        body.extend_from_slice(&bytes[end + 2..end + 2 + length]);
        bytes = &bytes[end + 2 + length + 2..];
    }
}
