//! A name for every request, and a line in the log once it is over.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use tracing::{Instrument, Span};

use super::App;
use super::answer::Usage;
use super::errors::Refusal;
use super::metrics::Outcome;

/// The header that carries a request's name.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest name taken from a client.
const MAX_ID: usize = 128;

/// What a handler can add to its request's line.
#[derive(Debug, Default)]
pub(crate) struct Trace(Mutex<Noted>);

#[derive(Clone, Debug, Default)]
struct Noted {
    /// The arms that answer.
    arms: Vec<String>,
    answer: Option<Learned>,
}

/// What there is to say of a generated answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Learned {
    pub(crate) outcome: Outcome,
    pub(crate) usage: Usage,
    /// How long it waited for a slot, if it got one.
    pub(crate) queued: Option<Duration>,
    /// How long after the request its first token came, if one did.
    pub(crate) first_token: Option<Duration>,
}

impl Trace {
    /// Names an arm that answers.
    pub(crate) fn note_arm(&self, id: &str) {
        self.noted().arms.push(id.to_owned());
    }

    /// Adds what was learned of the answers of an arm.
    pub(crate) fn note_answer(&self, learned: Learned) {
        let mut noted = self.noted();
        noted.answer = Some(match noted.answer {
            Some(other) => other.and(learned),
            None => learned,
        });
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Learned {
    /// What there is to say of the answers of two arms: they end alike, and the first
    /// of them counts.
    fn and(self, other: Learned) -> Learned {
        let first = |a: Option<Duration>, b: Option<Duration>| a.into_iter().chain(b).min();
        Learned {
            outcome: self.outcome,
            usage: self.usage + other.usage,
            queued: first(self.queued, other.queued),
            first_token: first(self.first_token, other.first_token),
        }
    }
}

/// Logs itself when dropped: at the response's end, or when the client has left.
struct Line {
    /// Carries the request's name.
    span: Span,
    method: Method,
    path: String,
    trace: Arc<Trace>,
    since: Instant,
    status: Option<StatusCode>,
    refusal: Option<Refusal>,
    complete: bool,
}

impl Line {
    fn outcome(&self, answer: Option<Learned>) -> &'static str {
        match answer {
            Some(learned) => learned.outcome.word(),
            None if self.refusal.is_some() => "refused",
            None if self.status.is_some_and(|status| status.is_server_error()) => {
                Outcome::Failed.word()
            }
            None if self.complete => Outcome::Finished.word(),
            None => Outcome::Left.word(),
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let Noted { arms, answer } = self.trace.noted().clone();
        let usage = answer.map(|answer| answer.usage);
        tracing::info!(
            parent: &self.span,
            method = %self.method,
            path = self.path,
            status = self.status.map(|status| status.as_u16()),
            outcome = self.outcome(answer),
            reason = self.refusal.map(|Refusal(reason)| reason),
            ms = millis(self.since.elapsed()),
            arm = (!arms.is_empty()).then(|| arms.join(",")),
            prompt_tokens = usage.map(|usage| usage.prompt_tokens),
            cached_tokens = usage.map(|usage| usage.prompt_tokens_details.cached_tokens),
            completion_tokens = usage.map(|usage| usage.completion_tokens),
            queue_ms = answer.and_then(|answer| answer.queued).map(millis),
            first_token_ms = answer.and_then(|answer| answer.first_token).map(millis),
            "ended"
        );
    }
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

/// The outermost layer: all that is logged on behalf of a request carries its name.
pub(crate) async fn request(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Response {
    let id = request_id(&request);
    // At this level it is there as long as anything is logged at all.
    let span = tracing::error_span!("request", id = %id.to_str().unwrap_or_default());
    let trace = Arc::new(Trace::default());
    let mut line = Line {
        span: span.clone(),
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        trace: trace.clone(),
        since: Instant::now(),
        status: None,
        refusal: None,
        complete: false,
    };
    request.extensions_mut().insert(trace);
    let mut response = next.run(request).instrument(span).await;
    line.status = Some(response.status());
    line.refusal = response.extensions().get().copied();
    if let Some(refusal) = line.refusal {
        app.metrics.refused(refusal);
    }
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
        let this = &mut *self;
        let polled = this
            .line
            .span
            .in_scope(|| Pin::new(&mut this.body).poll_frame(context));
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
