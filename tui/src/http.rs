//! The server, over HTTP. A request that is dropped closes its connection, so
//! that the server stops computing what nobody waits for.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use crate::sse::Events;
use crate::wire::Failure;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);

/// A server, and how to ask it.
#[derive(Clone)]
pub struct Server {
    base: String,
    key: Option<String>,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Server {
    /// The server at a URL, which may end in `/v1` as many write it.
    pub fn new(url: &str, key: Option<String>) -> Server {
        let base = url.trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base);
        let base = match base.contains("://") {
            true => base.to_owned(),
            false => format!("http://{base}"),
        };
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

    /// Asks for JSON.
    ///
    /// # Errors
    /// If the server cannot be reached, refuses, or answers with something else.
    pub async fn get(&self, path: &str) -> Result<Value, Failure> {
        whole(self.send(Method::GET, path, None).await?).await
    }

    /// Sends JSON and gets JSON.
    ///
    /// # Errors
    /// As for [`Server::get`].
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        whole(self.send(Method::POST, path, Some(body)).await?).await
    }

    /// Sends JSON; `each` gets the data of each event of the answer until the
    /// server is done or `each` has had enough (`false`).
    ///
    /// # Errors
    /// If the server cannot be reached, refuses, or goes away before it is done.
    pub async fn stream(
        &self,
        path: &str,
        body: &Value,
        mut each: impl FnMut(&str) -> bool,
    ) -> Result<(), Failure> {
        let mut body = self.send(Method::POST, path, Some(body)).await?.into_body();
        let mut events = Events::default();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| broken(&error))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            for event in events.push(&data) {
                if event == "[DONE]" || !each(&event) {
                    return Ok(());
                }
            }
        }
        Err(Failure::local(
            "the server closed the connection before its answer was done",
        ))
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
        let body = answer.into_body().collect().await;
        let body = body.map_err(|error| broken(&error))?.to_bytes();
        Err(Failure::answered(status, &String::from_utf8_lossy(&body)))
    }
}

async fn whole(answer: Response<Incoming>) -> Result<Value, Failure> {
    let body = answer.into_body().collect().await;
    let body = body.map_err(|error| broken(&error))?.to_bytes();
    serde_json::from_slice(&body)
        .map_err(|error| Failure::local(format!("the server's answer is not JSON: {error}")))
}

fn broken(error: &hyper::Error) -> Failure {
    Failure::local(format!("the connection broke: {}", cause(error)))
}

/// The innermost reason: what is around it only says that it happened.
fn cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => cause(source),
        None => error.to_string(),
    }
}
