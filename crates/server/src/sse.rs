//! Server-sent events (SSE), framed as in OpenAI's API.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_core::Stream;
use http::{HeaderName, HeaderValue, header};
use serde::Serialize;

/// The end of every stream that did not fail.
const DONE: &[u8] = b"data: [DONE]\n\n";

/// Events that are sent together.
#[derive(Debug, Default)]
pub(crate) struct Frames(Vec<u8>);

impl Frames {
    /// Adds `data: {json}` and an empty line. JSON has no raw line breaks, so one line is always
    /// enough.
    pub(crate) fn push(&mut self, data: &impl Serialize) {
        self.0.extend_from_slice(b"data: ");
        serde_json::to_writer(&mut self.0, data)
            .expect("wire types serialize, and a Vec takes everything");
        self.0.extend_from_slice(b"\n\n");
    }

    /// Adds the end marker.
    pub(crate) fn done(&mut self) {
        self.0.extend_from_slice(DONE);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Frames> for Bytes {
    fn from(frames: Frames) -> Bytes {
        frames.0.into()
    }
}

/// Returns a response that sends `frames` as they arrive. Dropping its body drops the stream.
pub(crate) fn response(frames: impl Stream<Item = Frames> + Send + 'static) -> Response {
    use futures_util::StreamExt;
    let bytes = frames.map(|frames| Ok::<Bytes, std::convert::Infallible>(frames.into()));
    let mut response = Response::new(Body::from_stream(bytes));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // A proxy must pass tokens on without buffering.
    headers.insert(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_break_in_a_text_does_not_break_the_frame() {
        let mut frames = Frames::default();
        assert!(frames.is_empty());
        frames.push(&serde_json::json!({"text": "a\n\r\n\u{2028}b"}));
        frames.done();
        let expected = "data: {\"text\":\"a\\n\\r\\n\u{2028}b\"}\n\ndata: [DONE]\n\n";
        assert_eq!(Bytes::from(frames), expected);
    }
}
