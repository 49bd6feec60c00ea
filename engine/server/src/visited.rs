//! The body of an answer with what has to happen around it: log lines of its making name the request, and its end is counted.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tracing::Span;

use crate::app::App;
use crate::metrics::Kind;

/// A body that is polled inside `span`, and counted when it ends or its client goes away.
pub(crate) struct Visited {
    pub(crate) inner: Body,
    pub(crate) span: Span,
    pub(crate) app: Arc<App>,
    pub(crate) kind: Kind,
    pub(crate) started: Instant,
}

impl HttpBody for Visited {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let _entered = this.span.enter();
        Pin::new(&mut this.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Visited {
    fn drop(&mut self) {
        self.app.metrics.request(self.kind, self.started.elapsed());
        // What was under way is logged when it is dropped, and that is now.
        let _entered = self.span.enter();
        self.inner = Body::empty();
    }
}
