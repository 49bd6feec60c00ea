//! Streams: server-sent events or JSON lines, a comment line in long silences, errors where they belong.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use tokio::time::{Instant, timeout, timeout_at};

use crate::completion::stream_body;
use crate::error::ApiError;
use crate::generate::{Run, Step};
use crate::request::Params;
use crate::writer::{AnswerWriter, Frame, Framing};

/// The head of the answer waits this long for the first token, so that an early error can be a plain HTTP error.
const FIRST_TOKEN_WAIT: Duration = Duration::from_secs(5);
const PING: Bytes = Bytes::from_static(b":\n\n");
const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

/// Waits for the first sign of life, then streams.
///
/// # Errors
/// When the generation fails before its first token.
pub(crate) async fn respond(
    mut run: Run,
    writer: Box<dyn AnswerWriter>,
    params: &Arc<Params>,
) -> Result<Response, ApiError> {
    let framing = writer.framing();
    let early = first_steps(&mut run, params).await?;
    let mut response = Response::new(stream_body(frames(run, writer, params.sse_ping, early)));
    let headers = response.headers_mut();
    let content_type = match framing {
        Framing::Events | Framing::EventsThenDone => "text/event-stream",
        Framing::Lines => "application/x-ndjson",
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// The steps up to the first one a client sees.
async fn first_steps(run: &mut Run, params: &Params) -> Result<VecDeque<Step>, ApiError> {
    let patience = Instant::now() + FIRST_TOKEN_WAIT.min(params.sse_ping);
    let mut steps = VecDeque::new();
    while let Ok(step) = timeout_at(patience, run.next()).await {
        let Some(step) = step? else { break };
        let seen = params.return_progress || !matches!(step, Step::Progress { .. });
        steps.push_back(step);
        if seen {
            break;
        }
    }
    Ok(steps)
}

fn frames(
    mut run: Run,
    mut writer: Box<dyn AnswerWriter>,
    ping: Duration,
    mut early: VecDeque<Step>,
) -> impl futures_core::Stream<Item = Result<Bytes, Infallible>> {
    let framing = writer.framing();
    async_stream::stream! {
        loop {
            let step = match early.pop_front() {
                Some(step) => Ok(Some(step)),
                None => match timeout(ping, run.next()).await {
                    Ok(step) => step,
                    Err(_) => {
                        if framing != Framing::Lines {
                            yield Ok(PING);
                        }
                        continue;
                    }
                },
            };
            match step {
                Ok(Some(step)) => {
                    for frame in writer.frames(step) {
                        yield Ok(bytes(&frame, framing));
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    yield Ok(bytes(&writer.error_frame(&error), framing));
                    return;
                }
            }
        }
        for frame in writer.last_frames() {
            yield Ok(bytes(&frame, framing));
        }
        if framing == Framing::EventsThenDone {
            yield Ok(DONE);
        }
    }
}

fn bytes(frame: &Frame, framing: Framing) -> Bytes {
    let data = &frame.data;
    match (framing, frame.event) {
        (Framing::Lines, _) => format!("{data}\n").into(),
        (_, Some(event)) => format!("event: {event}\ndata: {data}\n\n").into(),
        (_, None) => format!("data: {data}\n\n").into(),
    }
}
