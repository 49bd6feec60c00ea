//! Request bodies: read whole, whatever their content type says, within bounds of size, time and memory.
//!
//! A body has to arrive at [`RATE_BYTES_S`] on the average, with the configured read time as grace. Large bodies of all
//! connections together are bounded, too; so is what one turns into when it is parsed.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use serde_json::{Map, Value};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout, timeout_at};

use crate::app::App;
use crate::error::ApiError;
use crate::request::expected;

/// Slowest client that is waited for, beyond the read time; nginx and Apache wait for half of it.
const RATE_BYTES_S: f64 = 1000.0;
/// Bodies up to this size are not counted against the budget: there are no more of them than connections.
const SMALL_BYTES: usize = 64 << 10;
/// JSON values in one body: each takes 32 to 100 bytes in memory, a token of a prompt is one.
const MAX_VALUES: usize = 1 << 20;
/// What an answered request still sends is read and dropped, so that its client comes to read the answer.
const LINGER_BYTES: usize = 256 << 20;
/// For this long.
const LINGER: Duration = Duration::from_secs(5);
/// Some clients put it before their JSON.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// A request body, not parsed yet.
pub(crate) struct RawBody {
    bytes: Bytes,
    /// Its part of the budget.
    _share: Share,
}

impl FromRequest<Arc<App>> for RawBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let announced = announced(request.headers());
        read(request.into_body(), announced, app).await
    }
}

/// `Content-Length`.
fn announced(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get(header::CONTENT_LENGTH)?;
    value.to_str().ok()?.parse().ok()
}

async fn read(body: Body, announced: Option<u64>, app: &App) -> Result<RawBody, ApiError> {
    let limit = app.config.body_limit_bytes;
    if announced.is_some_and(|bytes| bytes > limit as u64) {
        return Err(ApiError::body_too_large(limit));
    }
    let began = Instant::now();
    let mut share = app.bodies.share();
    let mut body = Limited::new(body, limit);
    let mut bytes = Vec::with_capacity(announced.unwrap_or(0).min(SMALL_BYTES as u64) as usize);
    loop {
        let earned = Duration::from_secs_f64(bytes.len() as f64 / RATE_BYTES_S);
        let slowest = timeout_at(began + app.config.read_timeout + earned, body.frame());
        let frame = timeout(app.config.read_timeout, slowest).await;
        match frame.and_then(|frame| frame) {
            Err(_) => return Err(ApiError::body_timeout()),
            Ok(None) => break,
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    share.grow(bytes.len() + data.len())?;
                    bytes.extend_from_slice(&data);
                }
            }
            Ok(Some(Err(error))) if error.is::<LengthLimitError>() => {
                return Err(ApiError::body_too_large(limit));
            }
            Ok(Some(Err(error))) => {
                return Err(ApiError::invalid(format!(
                    "the request body broke off: {error}"
                )));
            }
        }
    }
    Ok(RawBody {
        bytes: bytes.into(),
        _share: share,
    })
}

/// A body that is read to its end and dropped if nobody else does, for a while. A connection that is closed while its
/// client still sends is reset, and the answer is lost with it.
struct ReadOut(Option<Incoming>);

/// A request whose body may be left unread by whoever answers it.
pub(crate) fn may_stay_unread(request: hyper::Request<Incoming>) -> Request {
    let is_empty = request.body().is_end_stream();
    // Who waits to be told to send it sends nothing else.
    if is_empty || request.headers().contains_key(header::EXPECT) {
        return request.map(Body::new);
    }
    request.map(|body| Body::new(ReadOut(Some(body))))
}

impl HttpBody for ReadOut {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.0 else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.0 = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let body = self.0.as_ref();
        body.map_or(SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for ReadOut {
    fn drop(&mut self) {
        let Some(mut body) = self.0.take().filter(|body| !body.is_end_stream()) else {
            return;
        };
        let rest = async move {
            let mut read = 0;
            while let Some(Ok(frame)) = body.frame().await {
                read += frame.data_ref().map_or(0, Bytes::len);
                if read > LINGER_BYTES {
                    return;
                }
            }
        };
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async { timeout(LINGER, rest).await });
        }
    }
}

impl RawBody {
    /// The body as it came.
    pub(crate) fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// Nothing was sent.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The body as JSON.
    pub(crate) fn value(&self) -> Result<Value, ApiError> {
        let text = self
            .bytes
            .strip_prefix(BYTE_ORDER_MARK)
            .unwrap_or(&self.bytes);
        let values = if text.len() > MAX_VALUES {
            count_values(text)
        } else {
            0
        };
        if values > MAX_VALUES {
            return Err(ApiError::invalid(format!(
                "the request body has {values} JSON values, at most {MAX_VALUES} are read"
            )));
        }
        serde_json::from_slice(text)
            .map_err(|error| ApiError::invalid(format!("the request body is no JSON: {error}")))
    }

    /// The body as a JSON object.
    pub(crate) fn object(&self) -> Result<Map<String, Value>, ApiError> {
        match self.value()? {
            Value::Object(map) => Ok(map),
            other => Err(ApiError::invalid(format!(
                "the request body is no JSON object: {}",
                expected("an object", &other)
            ))),
        }
    }
}

/// About how many values a JSON text has: one, and one more for each comma and each bracket that opens.
fn count_values(text: &[u8]) -> usize {
    let (mut values, mut in_string, mut escaped) = (1, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b',' | b'[' | b'{' if !in_string => values += 1,
            _ => {}
        }
    }
    values
}

/// Memory for the large bodies of all connections.
pub(crate) struct BodyBudget(Arc<AtomicUsize>);

impl BodyBudget {
    pub(crate) fn new(bytes: usize) -> Self {
        BodyBudget(Arc::new(AtomicUsize::new(bytes)))
    }

    fn share(&self) -> Share {
        Share {
            left: Arc::clone(&self.0),
            taken: 0,
        }
    }
}

/// What one body takes of the budget; given back when dropped.
struct Share {
    left: Arc<AtomicUsize>,
    taken: usize,
}

impl Share {
    /// Enough for a body of `bytes`.
    fn grow(&mut self, bytes: usize) -> Result<(), ApiError> {
        if bytes <= SMALL_BYTES.max(self.taken) {
            return Ok(());
        }
        let more = bytes - self.taken;
        let subtract = |left: usize| left.checked_sub(more);
        let taken = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, subtract);
        if taken.is_err() {
            return Err(ApiError::unavailable(
                "other large request bodies take up the memory for them; try again",
            ));
        }
        self.taken = bytes;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.left.fetch_add(self.taken, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_outside_of_strings() {
        for (text, values) in [
            ("1", 1),
            ("[1,2,3]", 4),
            (r#"{"a":[{},"x,[y"],"b":"\",\\"}"#, 6),
            (r#"["\"", 1]"#, 3),
        ] {
            assert_eq!(count_values(text.as_bytes()), values, "{text}");
        }
    }

    #[test]
    fn the_budget_is_shared_and_given_back() {
        let budget = BodyBudget::new(300_000);
        let (mut one, mut two) = (budget.share(), budget.share());
        one.grow(1000).unwrap();
        one.grow(200_000).unwrap();
        two.grow(SMALL_BYTES).unwrap();
        assert_eq!(two.grow(150_000).unwrap_err().status.as_u16(), 503);
        two.grow(100_000).unwrap();
        drop(one);
        two.grow(300_000).unwrap();
        drop(two);
        assert_eq!(budget.0.load(Ordering::Relaxed), 300_000);
    }
}
