//! A connection that loses its patience: with a client that takes no bytes, and with one that begins a request and does
//! not get on with it.
//!
//! hyper has a limit for heads of its own, but its time runs from the end of the request before: it bounds how long a
//! connection may be idle. Here the time runs from a head's first byte to the call of its handler.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// How far a connection is: even between requests, odd while one is answered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress(Arc<AtomicU64>);

impl Progress {
    /// A head is complete.
    pub(crate) fn begin(&self) -> Answering {
        self.0.fetch_add(1, Ordering::Relaxed);
        Answering(Arc::clone(&self.0))
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A request that is being answered; dropped when its answer has been written.
#[derive(Debug)]
pub(crate) struct Answering(Arc<AtomicU64>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Answering {
    /// `body`, with the end of which the answer ends.
    pub(crate) fn until_end_of(self, body: Body) -> Body {
        Body::new(Answer {
            body: UnsyncBoxBody::new(body),
            _answering: self,
        })
    }
}

struct Answer {
    body: UnsyncBoxBody<Bytes, axum::Error>,
    _answering: Answering,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What a client gets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// From the first byte of a request's head to its last.
    pub(crate) head: Duration,
    /// To take bytes that are ready for it.
    pub(crate) write: Duration,
}

/// Wraps a connection.
pub(crate) struct Patient<S> {
    inner: S,
    limits: Limits,
    progress: Progress,
    /// Runs while a head comes in: the count it belongs to, and the timer.
    head: Option<(u64, Pin<Box<Sleep>>)>,
    /// Runs while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    pub(crate) fn new(inner: S, limits: Limits, progress: Progress) -> Self {
        Patient {
            inner,
            limits,
            progress,
            head: None,
            stalled: None,
        }
    }

    /// Bytes have come: if they begin a head, its time runs.
    fn came(&mut self) {
        let count = self.progress.count();
        let is_head = count.is_multiple_of(2);
        if is_head && self.head.as_ref().is_none_or(|(of, _)| *of != count) {
            self.head = Some((count, Box::pin(sleep(self.limits.head))));
        }
    }

    /// No bytes have come: whether they are late.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        let count = self.progress.count();
        match &mut self.head {
            Some((of, timer)) if *of == count => timer.as_mut().poll(cx).is_ready(),
            _ => false,
        }
    }

    /// Passes `result` on; a write that has waited for too long becomes an error.
    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.stalled = None;
            return result;
        }
        let limit = self.limits.write;
        let timer = self.stalled.get_or_insert_with(|| Box::pin(sleep(limit)));
        match timer.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => {
                timer.as_mut().reset(Instant::now() + limit);
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let result = Pin::new(&mut this.inner).poll_read(cx, buf);
        match &result {
            Poll::Ready(Ok(())) if buf.filled().len() > before => this.came(),
            Poll::Pending if this.is_late(cx) => {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            _ => {}
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.watch(cx, result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        this.watch(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_flush(cx);
        this.watch(cx, result)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}
