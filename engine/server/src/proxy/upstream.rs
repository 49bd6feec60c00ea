//! One engine, and a request's way to it: a connection per request, polled by whoever wants the answer.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// A local server that doesn't take a connection for this long won't.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The head of an answer waits this long for its first bytes, so that a crash before them can be hidden.
const FIRST_BYTES_WAIT: Duration = Duration::from_secs(5);
/// Headers about one connection, not about the message.
const HOP_BY_HOP: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// Headers of a request that mean us.
const OURS: &[&str] = &[
    "authorization",
    "content-length",
    "cookie",
    "expect",
    "host",
    "origin",
    "x-api-key",
];

/// Where an engine listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix domain socket.
    Unix(PathBuf),
}

/// One running engine.
#[derive(Debug)]
pub struct Upstream {
    address: Address,
    authorization: Option<HeaderValue>,
    in_flight: AtomicUsize,
    moves: AtomicU64,
    /// It was ended for want of work.
    asleep: AtomicBool,
    /// Answers by path, for the time after its end.
    memory: Mutex<BTreeMap<String, Value>>,
}

impl Upstream {
    /// `key` opens the engine; nobody else knows it.
    pub fn new(address: Address, key: Option<&str>) -> Arc<Upstream> {
        let authorization = key.and_then(|key| {
            let mut value = HeaderValue::from_str(&format!("Bearer {key}")).ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        Arc::new(Upstream {
            address,
            authorization,
            in_flight: AtomicUsize::new(0),
            moves: AtomicU64::new(0),
            asleep: AtomicBool::new(false),
            memory: Mutex::default(),
        })
    }

    /// What it answers to `GET path`, to be said in its place while it sleeps.
    pub fn remember(&self, path: &str, answer: Value) {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.insert(path.to_owned(), answer);
    }

    pub(super) fn remembered(&self, path: &str) -> Option<Value> {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.get(path).cloned()
    }

    pub(super) fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::Relaxed)
    }

    pub(super) fn set_asleep(&self, asleep: bool) {
        self.asleep.store(asleep, Ordering::Relaxed);
    }

    /// Requests it has that have not ended.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Grows with each request sent and each piece of an answer received.
    pub fn moves(&self) -> u64 {
        self.moves.load(Ordering::Relaxed)
    }

    fn moved(&self) {
        self.moves.fetch_add(1, Ordering::Relaxed);
    }

    async fn connect(&self) -> io::Result<Box<dyn Io>> {
        let connecting = async {
            Ok::<Box<dyn Io>, io::Error>(match &self.address {
                Address::Tcp(address) => {
                    let stream = TcpStream::connect(address).await?;
                    let _ = stream.set_nodelay(true);
                    Box::new(stream)
                }
                Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
            })
        };
        timeout(CONNECT_TIMEOUT, connecting)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// The same for an engine's requests, to be kept in an answer.
struct Flight(Arc<Upstream>);

impl Flight {
    fn begin(upstream: &Arc<Upstream>) -> Flight {
        upstream.in_flight.fetch_add(1, Ordering::Relaxed);
        upstream.moved();
        Flight(Arc::clone(upstream))
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request as the engine gets it; it can be sent again.
pub(super) struct Message {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Message {
    pub(super) fn new(head: Parts, body: Bytes, prefix: &str) -> Message {
        let target = head
            .uri
            .path_and_query()
            .map_or("/", |target| target.as_str());
        let bare = target.strip_prefix(prefix).unwrap_or(target);
        let bare = match bare.starts_with('/') {
            true => bare.to_owned(),
            false => format!("/{bare}"),
        };
        let mut headers = head.headers;
        without(&mut headers, OURS);
        Message {
            method: head.method,
            uri: bare.parse().unwrap_or_default(),
            headers,
            body,
        }
    }

    fn request(&self, upstream: &Upstream) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.version_mut() = Version::HTTP_11;
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        let headers = request.headers_mut();
        headers.extend(self.headers.clone());
        headers.insert(header::HOST, HeaderValue::from_static("localhost"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        if let Some(authorization) = &upstream.authorization {
            headers.insert(header::AUTHORIZATION, authorization.clone());
        }
        request
    }
}

/// Removes what belongs to one connection, what `Connection` names, and `more`.
pub(super) fn without(headers: &mut HeaderMap, more: &[&str]) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in HOP_BY_HOP.iter().chain(more) {
        headers.remove(*name);
    }
    for name in named {
        headers.remove(name);
    }
}

/// The head of an answer, and its body to come.
pub(super) struct Answer {
    pub(super) head: axum::http::response::Parts,
    pub(super) pipe: Pipe,
    /// What of the body came with the head; `None`: nothing yet.
    pub(super) first: Option<Option<Bytes>>,
    /// The errors of this route's streams have a name.
    pub(super) named_errors: bool,
}

/// The body of an answer, and the connection it comes by.
pub(super) struct Pipe {
    /// `None` when it has ended; what it brought is in `body`.
    connection: Option<Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>>,
    body: Incoming,
    flight: Flight,
}

impl Pipe {
    /// The next bytes; `None` at the end.
    pub(super) async fn next(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        loop {
            let mut frame = std::pin::pin!(self.body.frame());
            let next = std::future::poll_fn(|cx| {
                if let Some(connection) = &mut self.connection
                    && connection.as_mut().poll(cx).is_ready()
                {
                    self.connection = None;
                }
                frame.as_mut().poll(cx)
            });
            match next.await? {
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        self.flight.0.moved();
                        return Some(Ok(data));
                    }
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// Sends the request and waits for the head of the answer.
pub(super) async fn send(upstream: &Arc<Upstream>, message: &Message) -> Result<Answer, String> {
    let flight = Flight::begin(upstream);
    let io = upstream
        .connect()
        .await
        .map_err(|error| error.to_string())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(io))
        .await
        .map_err(|error| error.to_string())?;
    let mut connection: Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>> =
        Box::pin(connection);
    let mut sending = std::pin::pin!(sender.send_request(message.request(upstream)));
    let mut ended = false;
    let head = std::future::poll_fn(|cx| {
        if !ended {
            ended = connection.as_mut().poll(cx).is_ready();
        }
        match sending.as_mut().poll(cx) {
            Poll::Pending if ended => Poll::Ready(None),
            other => other.map(Some),
        }
    });
    let response = match head.await {
        Some(Ok(response)) => response,
        Some(Err(error)) => return Err(error.to_string()),
        None => return Err("the connection was closed".to_owned()),
    };
    let (head, body) = response.into_parts();
    Ok(Answer {
        head,
        pipe: Pipe {
            connection: (!ended).then_some(connection),
            body,
            flight,
        },
        first: None,
        named_errors: message.uri.path() == "/v1/messages",
    })
}

/// The same, and the first bytes of the body if they come soon.
pub(super) async fn begin(upstream: &Arc<Upstream>, message: &Message) -> Result<Answer, String> {
    let mut answer = send(upstream, message).await?;
    if let Ok(first) = timeout(FIRST_BYTES_WAIT, answer.pipe.next()).await {
        answer.first = Some(first.transpose().map_err(|error| error.to_string())?);
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_about_a_connection_or_about_us_stays_here() {
        let mut request = Request::builder()
            .uri("/llm/v1/completions?x=1")
            .header("connection", "close, x-mine")
            .header("x-mine", "1")
            .header("authorization", "Bearer theirs")
            .header("x-api-key", "theirs")
            .header("transfer-encoding", "chunked")
            .header("content-type", "application/json")
            .header("x-request-id", "7")
            .body(())
            .unwrap();
        *request.method_mut() = Method::POST;
        let message = Message::new(request.into_parts().0, Bytes::from("{}"), "/llm");
        let address = Address::Unix("/nowhere".into());
        let sent = message.request(&Upstream::new(address.clone(), Some("secret")));
        assert_eq!(sent.uri(), "/v1/completions?x=1");
        let mut names: Vec<&str> = sent.headers().keys().map(|name| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "authorization",
                "connection",
                "content-type",
                "host",
                "x-request-id"
            ]
        );
        assert_eq!(sent.headers()["authorization"], "Bearer secret");
        let without_key = Upstream::new(address, None);
        assert!(
            !message
                .request(&without_key)
                .headers()
                .contains_key("authorization")
        );
        assert!(
            !format!(
                "{:?}",
                Upstream::new(Address::Unix("/x".into()), Some("secret"))
            )
            .contains("secret")
        );
    }
}
