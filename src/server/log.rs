//! A name for every request, and a line in the log once it is over.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderName, HeaderValue, Method};
use http_body::{Body as _, Frame, SizeHint};

/// The header that carries a request's name.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest name taken from a client.
const MAX_ID: usize = 128;

/// What a handler can add to its request's line.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    arm: OnceLock<String>,
}

impl Trace {
    /// Names the arm that answers.
    pub(crate) fn note_arm(&self, id: &str) {
        // Only the first counts; no handler has two.
        _ = self.arm.set(id.to_owned());
    }
}

/// Logs itself when dropped: at the response's end, or when the client has left.
struct Line {
    id: HeaderValue,
    method: Method,
    path: String,
    trace: Arc<Trace>,
    since: Instant,
    status: Option<u16>,
    complete: bool,
}

impl Drop for Line {
    fn drop(&mut self) {
        tracing::info!(
            id = self.id.to_str().unwrap_or_default(),
            method = %self.method,
            path = self.path,
            status = self.status,
            ms = self.since.elapsed().as_millis() as u64,
            arm = self.trace.arm.get(),
            left = !self.complete,
            "request"
        );
    }
}

/// The outermost layer.
pub(crate) async fn request(mut request: Request, next: Next) -> Response {
    let id = request_id(&request);
    let trace = Arc::new(Trace::default());
    let mut line = Line {
        id: id.clone(),
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        trace: trace.clone(),
        since: Instant::now(),
        status: None,
        complete: false,
    };
    request.extensions_mut().insert(trace);
    let mut response = next.run(request).await;
    line.status = Some(response.status().as_u16());
    response.headers_mut().insert(REQUEST_ID, id);
    response.map(|body| Body::new(LoggedBody { body, line }))
}

/// The client's own name for the request if it is a decent one, else a new one.
fn request_id(request: &Request) -> HeaderValue {
    let decent = |id: &&HeaderValue| {
        id.to_str()
            .is_ok_and(|id| !id.is_empty() && id.len() <= MAX_ID)
    };
    let given = request.headers().get(REQUEST_ID).filter(decent).cloned();
    given.unwrap_or_else(|| {
        HeaderValue::try_from(format!("req-{:032x}", rand::random::<u128>()))
            .expect("hexadecimal digits")
    })
}

/// A body that carries its request's line to the end.
struct LoggedBody {
    body: Body,
    line: Line,
}

impl http_body::Body for LoggedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        self.line.complete |= matches!(polled, Poll::Ready(None));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for LoggedBody {
    fn drop(&mut self) {
        self.line.complete |= self.body.is_end_stream();
    }
}
