//! What a handler of a POST request holds: the server, the body's fields, the log line.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tracing::Span;

use super::App;
use super::answer::Watch;
use super::client;
use super::deadline::Deadline;
use super::errors::ApiError;
use super::fields::Fields;
use super::log::{Peer, Trace};
use crate::engine::Client;
use crate::printable::excerpt;
use crate::runtime::Arm;

/// Unknown field names remembered, each cut short, so that a hostile client cannot fill the
/// memory with them.
const MAX_WARNED: usize = 1000;

/// One request with a JSON body.
pub(crate) struct Call {
    pub(crate) app: Arc<App>,
    pub(crate) fields: Fields,
    /// Whose it is.
    pub(crate) client: Client,
    trace: Arc<Trace>,
    /// When all of it was here.
    arrived: Instant,
}

impl FromRequest<Arc<App>> for Call {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Call, ApiError> {
        let trace = request
            .extensions()
            .get::<Arc<Trace>>()
            .cloned()
            .unwrap_or_default();
        check_kind(request.headers())?;
        let peer = request.extensions().get::<Peer>().copied();
        let client = client::of(&app.options.keys, request.headers(), peer);
        let body = read(request, app.options.max_body, app.options.client_timeout).await?;
        Ok(Call {
            app: app.clone(),
            fields: Fields::parse(&body)?,
            client,
            trace,
            arrived: Instant::now(),
        })
    }
}

impl Call {
    /// The arm with this id, which the log line then names.
    pub(crate) fn arm(&self, id: &str) -> Result<Arm, ApiError> {
        let arm = self.app.runtime.arm(id)?;
        self.trace.note_arm(arm.id());
        Ok(arm)
    }

    /// The arm with this id, or the only model there is.
    pub(crate) fn arm_or_only(&self, id: Option<&str>) -> Result<Arm, ApiError> {
        let arm = self.app.arm_or_only(id)?;
        self.trace.note_arm(arm.id());
        Ok(arm)
    }

    /// When the answer must be complete, by the server's limit and the request's own.
    pub(crate) fn deadline(&self, timeout: Option<Duration>) -> Deadline {
        Deadline::new(self.arrived, self.app.options.request_timeout, timeout)
    }

    /// Watches the answers of `arm` to prompts of so many tokens, which are queued now.
    pub(crate) fn watch(&self, arm: &str, prompts: Vec<usize>, answers_per_prompt: usize) -> Watch {
        let metrics = self.app.metrics.arm(arm);
        let trace = self.trace.clone();
        Watch::new(metrics, trace, self.arrived, prompts, answers_per_prompt)
    }

    /// Warns of fields that nothing read, or refuses them where the server is strict.
    pub(crate) fn check_unknown(&self) -> Result<(), ApiError> {
        for name in self.fields.unknown() {
            if self.app.options.strict {
                let name = excerpt(name);
                return Err(ApiError::invalid(
                    name.clone(),
                    format!("`{name}` is not a field that incant knows."),
                ));
            }
            let mut warned = self
                .app
                .warned
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            let name = excerpt(name).into_owned();
            if warned.len() < MAX_WARNED && warned.insert(name.clone()) {
                tracing::warn!(
                    field = name,
                    "a request has a field that incant does not know; it is ignored"
                );
            }
        }
        Ok(())
    }
}

/// Refuses a body that is not JSON as it stands. A page cannot send JSON elsewhere unless its
/// browser has asked first.
fn check_kind(headers: &HeaderMap) -> Result<(), ApiError> {
    let mut kinds = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(kind), None) = (kinds.next(), kinds.next()) else {
        return Err(ApiError::NotJson);
    };
    // What parameters say of the charset does not count: JSON is UTF-8.
    let essence = kind.as_bytes().split(|byte| *byte == b';').next();
    let essence = essence.unwrap_or_default().trim_ascii();
    if !essence.eq_ignore_ascii_case(b"application/json") {
        return Err(ApiError::NotJson);
    }
    let codings = headers.get_all(header::CONTENT_ENCODING).iter();
    let mut codings = codings.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let is_none = |coding: &[u8]| {
        let coding = coding.trim_ascii();
        coding.is_empty() || coding.eq_ignore_ascii_case(b"identity")
    };
    match codings.all(is_none) {
        true => Ok(()),
        false => Err(ApiError::Encoded),
    }
}

/// Reads the body within its limits.
async fn read(request: Request, limit: usize, patience: Duration) -> Result<Bytes, ApiError> {
    let announced = request.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(ApiError::BodyTooLarge { limit });
    }
    let mut body = Limited::new(request.into_body(), limit);
    match tokio::time::timeout(patience, (&mut body).collect()).await {
        Err(_) => Err(ApiError::BodyTimeout { limit: patience }),
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::BodyTooLarge { limit }),
        Ok(Err(error)) => Err(ApiError::malformed(format!(
            "The body could not be read: {error}."
        ))),
    }
}

/// Runs what may take long (a large prompt's tokenization) where it holds up no other request.
pub(crate) async fn unhurried<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let request = Span::current();
    match tokio::task::spawn_blocking(move || request.in_scope(work)).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(cancelled) => {
                unreachable!("the runtime cancels blocking work only before it starts: {cancelled}")
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    fn verdict(headers: &[(HeaderName, &'static str)]) -> Result<(), ApiError> {
        let headers = headers.iter().cloned();
        let headers = headers.map(|(name, value)| (name, value.parse().expect("a value")));
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, value);
        }
        check_kind(&map)
    }

    #[test]
    fn a_body_is_json_and_says_so_whatever_its_parameters() {
        let kind = |kind| verdict(&[(header::CONTENT_TYPE, kind)]);
        for json in [
            "application/json",
            "Application/JSON",
            "application/json; charset=utf-8",
            "application/json;charset=\"UTF-8\"",
            " application/json ;",
        ] {
            assert_eq!(kind(json), Ok(()), "{json}");
        }
        for other in [
            "",
            "text/plain",
            "text/plain; application/json",
            "text/plain, application/json",
            "application/json, text/plain",
            "application/jsonp",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=application/json",
            "application/octet-stream",
            "*/*",
        ] {
            assert_eq!(kind(other), Err(ApiError::NotJson), "{other}");
        }
        assert_eq!(verdict(&[]), Err(ApiError::NotJson));
        let json = (header::CONTENT_TYPE, "application/json");
        let text = (header::CONTENT_TYPE, "text/plain");
        assert_eq!(verdict(&[json.clone(), text]), Err(ApiError::NotJson));
    }

    #[test]
    fn a_body_is_sent_as_it_is() {
        let coding = |coding| {
            let json = (header::CONTENT_TYPE, "application/json");
            verdict(&[json, (header::CONTENT_ENCODING, coding)])
        };
        for none in ["identity", "Identity", "", "identity, identity"] {
            assert_eq!(coding(none), Ok(()), "{none}");
        }
        for some in ["gzip", "deflate", "br", "zstd", "identity, gzip", "x"] {
            assert_eq!(coding(some), Err(ApiError::Encoded), "{some}");
        }
    }
}
