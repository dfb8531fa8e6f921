//! Bodies that pass through unchanged and report how they ended.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use http_body::{Body as _, Frame, SizeHint};
use tracing::Span;

/// The state in which a body was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It was read to its end.
    Complete,
    /// It failed.
    Failed,
    /// It was not read to its end.
    Unread,
}

/// Returns `body`, which is read within `span`. When it is dropped, `dropped` takes it with its
/// state.
pub(crate) fn observe(
    body: Body,
    span: Span,
    dropped: impl FnOnce(Body, End) + Send + Unpin + 'static,
) -> Body {
    Body::new(ObservedBody {
        body,
        span,
        end: End::Unread,
        dropped: Some(dropped),
    })
}

struct ObservedBody<F: FnOnce(Body, End)> {
    body: Body,
    span: Span,
    end: End,
    /// `None` after it was called.
    dropped: Option<F>,
}

impl<F: FnOnce(Body, End) + Unpin> http_body::Body for ObservedBody<F> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let body = Pin::new(&mut this.body);
        let polled = this.span.in_scope(|| body.poll_frame(context));
        match polled {
            Poll::Ready(None) => this.end = End::Complete,
            Poll::Ready(Some(Err(_))) => this.end = End::Failed,
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<F: FnOnce(Body, End)> Drop for ObservedBody<F> {
    fn drop(&mut self) {
        // A reader that knows the length does not ask for the end.
        if self.body.is_end_stream() {
            self.end = End::Complete;
        }
        if let Some(dropped) = self.dropped.take() {
            dropped(std::mem::take(&mut self.body), self.end);
        }
    }
}
