//! An engine's answer on its way to the client, as it comes; and what is said when it breaks off.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue, Version, header};
use axum::response::Response;
use serde_json::json;
use tokio::time::sleep;

use super::Exchange;
use super::upstream::{Answer, Pipe, without};
use crate::app::App;
use crate::error::ApiError;
use crate::metrics::End;

/// An unfinished event larger than this is passed on as it comes.
const HELD_BYTES: usize = 1 << 20;

impl Answer {
    /// The answer for the client; `exchange` lives as long as it takes.
    pub(super) fn into_response(self, exchange: Exchange) -> Response {
        let Answer {
            mut head,
            pipe,
            first,
            named_errors,
        } = self;
        without(&mut head.headers, &[]);
        let cors: Vec<HeaderName> = head
            .headers
            .keys()
            .filter(|name| name.as_str().starts_with("access-control-"))
            .cloned()
            .collect();
        for name in cors {
            head.headers.remove(name);
        }
        let is_stream = head
            .headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        if is_stream {
            head.headers.remove(header::CONTENT_LENGTH);
            head.headers
                .insert("x-accel-buffering", HeaderValue::from_static("no"));
        }
        let events = is_stream.then(|| Events {
            named_errors,
            held: Vec::new(),
        });
        let body = Body::from_stream(relay(pipe, first, events, exchange));
        let mut response = Response::from_parts(head, body);
        *response.version_mut() = Version::HTTP_11;
        response
    }
}

fn relay(
    mut pipe: Pipe,
    mut first: Option<Option<Bytes>>,
    mut events: Option<Events>,
    mut exchange: Exchange,
) -> impl futures_core::Stream<Item = Result<Bytes, io::Error>> {
    let phase = exchange.app.phase();
    async_stream::stream! {
        let mut cut_off = std::pin::pin!(App::until_cut_off(phase));
        let reason = loop {
            let next = match first.take() {
                Some(first) => first.map(Ok),
                None => tokio::select! {
                    biased;
                    next = pipe.next() => next,
                    () = &mut cut_off => break "the server is shutting down".to_owned(),
                },
            };
            let data = match next {
                None => {
                    if let Some(rest) = events.as_mut().and_then(Events::rest) {
                        yield Ok(rest);
                    }
                    exchange.ended(End::Complete);
                    return;
                }
                Some(Ok(data)) => data,
                Some(Err(error)) => {
                    let proxy = exchange.app.proxy();
                    let _ = proxy.map(|proxy| proxy.broken.fetch_add(1, Ordering::Relaxed));
                    exchange.ended(End::Failed);
                    break format!("the engine ended in the middle of the answer ({error})");
                }
            };
            match &mut events {
                None => yield Ok(data),
                Some(events) => {
                    if let Some(whole) = events.push(data) {
                        yield Ok(whole);
                    }
                }
            }
        };
        tracing::warn!("{reason}");
        match events {
            Some(events) => yield Ok(events.error(&reason)),
            // Without its end the answer can't be taken for whole.
            None => {
                // What is written already goes out before the connection is closed.
                sleep(Duration::from_millis(1)).await;
                yield Err(io::Error::other(reason));
            }
        }
    }
}

/// Cuts a stream of server-sent events between events, so that one that breaks off can be followed by another.
struct Events {
    named_errors: bool,
    /// The beginning of an event.
    held: Vec<u8>,
}

impl Events {
    /// The whole events there are now.
    fn push(&mut self, data: Bytes) -> Option<Bytes> {
        if self.held.is_empty() && data.ends_with(b"\n\n") {
            return Some(data);
        }
        self.held.extend_from_slice(&data);
        let end = match self.held.len() > HELD_BYTES {
            true => self.held.len(),
            false => end_of_events(&self.held)?,
        };
        let rest = self.held.split_off(end);
        Some(std::mem::replace(&mut self.held, rest).into())
    }

    /// What is left at a proper end.
    fn rest(&mut self) -> Option<Bytes> {
        let rest = std::mem::take(&mut self.held);
        (!rest.is_empty()).then(|| rest.into())
    }

    fn error(&self, reason: &str) -> Bytes {
        let body = ApiError::server(reason).body();
        match self.named_errors {
            true => {
                let body =
                    json!({"type": "error", "error": {"type": "api_error", "message": reason}});
                format!("event: error\ndata: {body}\n\n").into()
            }
            false => format!("data: {body}\n\n").into(),
        }
    }
}

/// Behind the last blank line.
fn end_of_events(bytes: &[u8]) -> Option<usize> {
    let ends = |mark: &[u8]| {
        let at = bytes.windows(mark.len()).rposition(|window| window == mark);
        at.map(|at| at + mark.len())
    };
    ends(b"\n\n").max(ends(b"\r\n\r\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_stay_whole() {
        let mut events = Events {
            named_errors: false,
            held: Vec::new(),
        };
        let mut push = |text: &str| {
            let whole = events.push(Bytes::copy_from_slice(text.as_bytes()));
            whole.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
        };
        assert_eq!(push("data: 1\n\n").as_deref(), Some("data: 1\n\n"));
        assert_eq!(push("data: 2\n"), None);
        assert_eq!(push("\ndata: 3").as_deref(), Some("data: 2\n\n"));
        assert_eq!(push("\r\n\r\n").as_deref(), Some("data: 3\r\n\r\n"));
        assert_eq!(push("data: "), None);
        assert_eq!(events.rest().unwrap().as_ref(), b"data: ");
        assert_eq!(events.rest(), None);
        let large = Bytes::from(vec![b'x'; HELD_BYTES + 1]);
        assert_eq!(events.push(large.clone()), Some(large));
    }
}
