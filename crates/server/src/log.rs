//! The access log: an id for every request (`x-request-id`), and a log line when it ends.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use tracing::{Instrument, Span};

use super::App;
use super::answer::Usage;
use super::errors::Refusal;
use super::metrics::Outcome;
use super::observed_body::{End, observe};
use incant_gguf::printable::excerpt;

/// The header that carries a request's id.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The maximum length of an id taken from a client.
const MAX_ID: usize = 128;

/// The header in which a proxy names its client.
pub(crate) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The remote address of a request's connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// Details that a handler adds to its request's log line.
#[derive(Debug, Default)]
pub(crate) struct Trace(Mutex<Notes>);

#[derive(Clone, Debug, Default)]
struct Notes {
    arms: Vec<String>,
    answer: Option<AnswerStats>,
}

/// The measurements of generated answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AnswerStats {
    pub(crate) outcome: Outcome,
    pub(crate) usage: Usage,
    /// How long they waited for a slot, if they got one.
    pub(crate) queued: Option<Duration>,
    /// Time to first token after the request's arrival, if there was one.
    pub(crate) first_token: Option<Duration>,
}

impl Trace {
    /// Adds an arm that answers.
    pub(crate) fn note_arm(&self, id: &str) {
        self.notes().arms.push(id.to_owned());
    }

    pub(crate) fn arms(&self) -> Vec<String> {
        self.notes().arms.clone()
    }

    /// Adds the measurements of the answers of an arm.
    pub(crate) fn note_answer(&self, stats: AnswerStats) {
        let mut notes = self.notes();
        notes.answer = Some(match notes.answer {
            Some(other) => other.and(stats),
            None => stats,
        });
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AnswerStats {
    /// Merges the measurements of two arms' answers: the outcome is the same for both, and the
    /// smaller times count.
    fn and(self, other: AnswerStats) -> AnswerStats {
        let first = |a: Option<Duration>, b: Option<Duration>| a.into_iter().chain(b).min();
        AnswerStats {
            outcome: self.outcome,
            usage: self.usage + other.usage,
            queued: first(self.queued, other.queued),
            first_token: first(self.first_token, other.first_token),
        }
    }
}

/// Logs itself when dropped: at the response's end, or when the client has disconnected.
struct Line {
    /// Carries the request's id.
    span: Span,
    method: Method,
    path: String,
    client: Option<SocketAddr>,
    /// The client that a proxy names; anyone can send this header.
    forwarded_for: Option<String>,
    trace: Arc<Trace>,
    since: Instant,
    status: Option<StatusCode>,
    refusal: Option<Refusal>,
    complete: bool,
}

impl Line {
    fn outcome(&self, answer: Option<AnswerStats>) -> &'static str {
        match answer {
            Some(stats) => stats.outcome.word(),
            None if self.refusal.is_some() => "refused",
            None if self.status.is_some_and(|status| status.is_server_error()) => {
                Outcome::Failed.word()
            }
            None if self.complete => Outcome::Finished.word(),
            None => Outcome::Disconnected.word(),
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let Notes { arms, answer } = self.trace.notes().clone();
        let usage = answer.map(|answer| answer.usage);
        tracing::info!(
            parent: &self.span,
            method = %excerpt(self.method.as_str()),
            path = &*excerpt(&self.path),
            client = self.client.map(tracing::field::display),
            forwarded_for = self.forwarded_for,
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

/// The outermost layer: everything logged on behalf of a request carries its id.
pub(crate) async fn request(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Response {
    let id = request_id(&request);
    // At error level the span exists whenever anything is logged at all.
    let span = tracing::error_span!("request", id = %id.to_str().unwrap_or_default());
    let trace = Arc::new(Trace::default());
    let mut line = Line {
        span: span.clone(),
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        client: request.extensions().get().map(|Peer(address)| *address),
        forwarded_for: forwarded_for(&request),
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
    response.map(|body| {
        observe(body, line.span.clone(), move |body, end| {
            // It may still report measurements.
            drop(body);
            let mut line = line;
            line.complete = end == End::Complete;
        })
    })
}

/// Returns the clients that proxies name: the addresses of all such headers.
fn forwarded_for(request: &Request) -> Option<String> {
    let values = request.headers().get_all(FORWARDED_FOR).iter();
    let values: Vec<_> = values
        .map(|value| String::from_utf8_lossy(value.as_bytes()))
        .collect();
    (!values.is_empty()).then(|| excerpt(&values.join(", ")).into_owned())
}

/// Returns the client's own id for the request if it is well-formed, else a new one. The log shows
/// it unescaped, so it has no characters that separate the parts of a line there.
fn request_id(request: &Request) -> HeaderValue {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@~".contains(byte);
    let decent = |id: &&HeaderValue| {
        let id = id.as_bytes();
        (1..=MAX_ID).contains(&id.len()) && id.iter().all(is_plain)
    };
    let given = request.headers().get(REQUEST_ID).filter(decent).cloned();
    given.unwrap_or_else(|| {
        HeaderValue::try_from(format!("req-{:032x}", rand::random::<u128>()))
            .expect("hexadecimal digits")
    })
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn named(id: &[u8]) -> HeaderValue {
        let id = HeaderValue::from_bytes(id).expect("a value");
        let request = Request::builder().header(REQUEST_ID, id);
        request_id(&request.body(Body::empty()).expect("a request"))
    }

    #[test]
    fn a_name_that_could_pass_for_another_part_of_the_line_is_not_taken() {
        for id in [
            "mine-1",
            "req_0A.9",
            "6fbd0c1e-9a4b-4a53-8f2d-0d5a3d1c2b3a",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "a/b:c+d=@~",
            &"x".repeat(MAX_ID),
        ] {
            assert_eq!(named(id.as_bytes()), id);
        }
        for id in [
            &b""[..],
            b"a b",
            b"x}: ended method=POST path=\"/v1/chat/completions\" status=200",
            b"a\tb",
            b"{",
            b"\"",
            b"a,b",
            b"a;b",
            b"\\n",
            b"\xc3\xa9",
            &[b'x'; MAX_ID + 1],
        ] {
            let given = named(id);
            let given = given.to_str().expect("ASCII");
            assert!(given.starts_with("req-") && given.len() == 36, "{given}");
        }
    }

    #[test]
    fn what_proxies_say_of_a_client_is_told_whole_and_in_order() {
        let request = Request::builder()
            .header(FORWARDED_FOR, "10.0.0.1, 10.0.0.2")
            .header(FORWARDED_FOR, "10.0.0.3");
        let request = request.body(Body::empty()).expect("a request");
        let client = forwarded_for(&request);
        assert_eq!(client.as_deref(), Some("10.0.0.1, 10.0.0.2, 10.0.0.3"));
        let none = Request::new(Body::empty());
        assert_eq!(forwarded_for(&none), None);
    }
}
