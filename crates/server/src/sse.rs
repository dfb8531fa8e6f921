//! Responses of server-sent events.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_core::Stream;
use http::{HeaderName, HeaderValue, header};
use incant_api::sse::Frames;

/// Returns a response that sends `frames` as they arrive. Dropping its body drops the stream.
pub(crate) fn response(frames: impl Stream<Item = Frames> + Send + 'static) -> Response {
    use futures_util::StreamExt;
    let bytes =
        frames.map(|frames| Ok::<_, std::convert::Infallible>(Bytes::from(Vec::from(frames))));
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
