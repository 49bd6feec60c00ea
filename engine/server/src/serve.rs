//! Accepts connections, bounds them, and ends them politely.
//!
//! While draining, connections are still accepted so that probes read `draining` instead of a refused connection; the
//! loop ends when the last generation has, or at the deadline.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;

use crate::app::{App, Phase};
use crate::error::ApiError;
use crate::timeout::{Limits, Patient, Progress};
use crate::tls::Tls;
use crate::{front, routes};

/// After the deadline, streams get this long to write their last frame.
const LAST_WORDS: Duration = Duration::from_millis(400);
/// Pause after `accept` failed for want of file descriptors or memory.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// How often that is worth a line in the log.
const ACCEPT_COMPLAINT: Duration = Duration::from_secs(10);
/// A TLS handshake must be over within this time.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Largest request head, in bytes.
const HEAD_LIMIT_BYTES: usize = 64 << 10;
/// Connections beyond the bound on which probes are still answered.
const SPARE_CONNECTIONS: usize = 32;
/// Connections beyond these that are told so before they are closed.
const TURNED_AWAY: usize = 32;
/// Time they get to read it.
const TURN_AWAY: Duration = Duration::from_secs(1);

/// A listening socket.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(std::net::TcpListener),
    /// TLS over TCP.
    Tls(std::net::TcpListener, Arc<Tls>),
    /// Unix domain.
    Unix(std::os::unix::net::UnixListener),
}

impl From<std::net::TcpListener> for Listener {
    fn from(listener: std::net::TcpListener) -> Self {
        Listener::Tcp(listener)
    }
}

impl From<std::os::unix::net::UnixListener> for Listener {
    fn from(listener: std::os::unix::net::UnixListener) -> Self {
        Listener::Unix(listener)
    }
}

/// Serves `app` until it is drained ([`App::drain`]); several listeners may serve one app.
///
/// # Errors
/// When the socket can't be handed to the runtime. Errors of single connections end only them.
pub async fn serve(listener: impl Into<Listener>, app: Arc<App>) -> io::Result<()> {
    let listener = Acceptor::new(listener.into())?;
    let router = routes::router(Arc::clone(&app));
    let mut connections = JoinSet::new();
    let mut complained: Option<Instant> = None;
    {
        let mut drained = pin!(drained(&app));
        loop {
            tokio::select! {
                () = &mut drained => break,
                accepted = listener.accept() => match accepted {
                    Ok(stream) => admit(stream, &app, &router, &mut connections),
                    Err(error) if is_of_the_client(&error) => {}
                    Err(error) => {
                        if complained.is_none_or(|at| at.elapsed() >= ACCEPT_COMPLAINT) {
                            complained = Some(Instant::now());
                            tracing::warn!(
                                "no connection can be accepted with {} open: {error}",
                                connections.len()
                            );
                        }
                        sleep(ACCEPT_RETRY).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }
    drop(listener);
    app.cut_off();
    let rest = async { while connections.join_next().await.is_some() {} };
    if timeout(LAST_WORDS, rest).await.is_err() {
        tracing::warn!("{} connections did not end in time", connections.len());
    }
    Ok(())
}

/// Returns when draining has begun and no generation runs, or its deadline has passed.
async fn drained(app: &App) {
    let mut phase = app.phase();
    loop {
        let now = *phase.borrow_and_update();
        match now {
            Phase::Serving => {
                let _ = phase.changed().await;
            }
            Phase::CutOff => return,
            Phase::Draining(deadline) => tokio::select! {
                () = app.idle() => return,
                () = sleep_until(Instant::from_std(deadline)) => return,
                _ = phase.changed() => {}
            },
        }
    }
}

/// The connection was gone before it was accepted; the next one may be well.
fn is_of_the_client(error: &io::Error) -> bool {
    use io::ErrorKind as E;
    matches!(
        error.kind(),
        E::ConnectionAborted | E::ConnectionReset | E::Interrupted
    )
}

/// Serves a connection; over the bound for probes only, far over it with a refusal, or not at all.
fn admit(stream: Stream, app: &Arc<App>, router: &Router, connections: &mut JoinSet<()>) {
    let bound = app.config.max_connections;
    if connections.len() >= bound + SPARE_CONNECTIONS {
        if connections.len() < bound + SPARE_CONNECTIONS + TURNED_AWAY {
            match stream {
                Stream::Tcp(stream) => drop(connections.spawn(turn_away(stream))),
                Stream::Unix(stream) => drop(connections.spawn(turn_away(stream))),
                // The refusal would cost a handshake.
                Stream::Tls(..) => {}
            }
        }
        return;
    }
    let visit = Visit {
        app: Arc::clone(app),
        router: router.clone(),
        crowded: connections.len() >= bound,
    };
    match stream {
        Stream::Tcp(stream) => {
            let _ = stream.set_nodelay(true);
            connections.spawn(connection(stream, visit));
        }
        Stream::Tls(stream, acceptor) => {
            let _ = stream.set_nodelay(true);
            connections.spawn(secured(stream, acceptor, visit));
        }
        Stream::Unix(stream) => {
            connections.spawn(connection(stream, visit));
        }
    }
}

/// Answers 503 to whatever is asked.
async fn turn_away<S: AsyncRead + AsyncWrite + Unpin>(stream: S) {
    let status = "503 Service Unavailable\r\nretry-after: 1";
    let error = ApiError::too_many_connections();
    let _ = timeout(TURN_AWAY, refuse(stream, status, &error)).await;
}

/// Answers whatever is asked with an error. The request is read and dropped: a socket that is closed with bytes unread is
/// reset, and the answer would be lost.
async fn refuse<S>(mut stream: S, status: &str, error: &ApiError) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let body = error.body().to_string();
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json; charset=utf-8\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    let mut rest = [0; 4096];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

/// A connection that begins with a handshake.
async fn secured(stream: TcpStream, acceptor: TlsAcceptor, visit: Visit) {
    let handshake = async {
        let mut first = [0];
        stream.peek(&mut first).await?;
        // A TLS record never begins with a letter: this client speaks plain HTTP, and is told so in the same language.
        if first[0].is_ascii_uppercase() {
            refuse(stream, "400 Bad Request", &ApiError::tls_only()).await?;
            return Ok(None);
        }
        acceptor.accept(stream).await.map(Some)
    };
    let shaken = tokio::select! {
        shaken = timeout(HANDSHAKE_LIMIT, handshake) => shaken,
        () = App::until_cut_off(visit.app.phase()) => return,
    };
    match shaken {
        Ok(Ok(Some(stream))) => connection(stream, visit).await,
        Ok(Ok(None)) => tracing::debug!("a client spoke plain HTTP where TLS is spoken"),
        Ok(Err(error)) => tracing::debug!("no TLS handshake: {error}"),
        Err(_) => tracing::debug!("no TLS handshake in time"),
    }
}

/// What a connection needs to be served.
#[derive(Clone)]
pub(crate) struct Visit {
    pub(crate) app: Arc<App>,
    pub(crate) router: Router,
    /// There are more connections than the bound allows.
    pub(crate) crowded: bool,
}

async fn connection<S>(stream: S, visit: Visit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let config = &visit.app.config;
    let phase = visit.app.phase();
    let progress = Progress::default();
    let limits = Limits {
        head: config.read_timeout,
        write: config.write_timeout,
    };
    let io = TokioIo::new(Patient::new(stream, limits, progress.clone()));
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(config.idle_timeout)
        .keep_alive(!visit.crowded)
        .max_header_size(HEAD_LIMIT_BYTES)
        .max_buf_size(HEAD_LIMIT_BYTES);
    let service = service_fn(move |request| {
        let (visit, answering) = (visit.clone(), progress.begin());
        async move {
            let response = front::handle(visit, request).await;
            Ok::<_, Infallible>(response.map(|body| answering.until_end_of(body)))
        }
    });
    let mut conn = pin!(builder.serve_connection(io, service));
    let result = tokio::select! {
        result = conn.as_mut() => result,
        () = App::until_cut_off(phase) => {
            conn.as_mut().graceful_shutdown();
            conn.as_mut().await
        }
    };
    if let Err(error) = result {
        tracing::debug!("connection ended: {error}");
    }
}

enum Acceptor {
    Tcp(TcpListener),
    Tls(TcpListener, Arc<Tls>),
    Unix(UnixListener),
}

enum Stream {
    Tcp(TcpStream),
    Tls(TcpStream, TlsAcceptor),
    Unix(UnixStream),
}

impl Acceptor {
    fn new(listener: Listener) -> io::Result<Self> {
        Ok(match listener {
            Listener::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                Acceptor::Tcp(TcpListener::from_std(listener)?)
            }
            Listener::Tls(listener, tls) => {
                listener.set_nonblocking(true)?;
                Acceptor::Tls(TcpListener::from_std(listener)?, tls)
            }
            Listener::Unix(listener) => {
                listener.set_nonblocking(true)?;
                Acceptor::Unix(UnixListener::from_std(listener)?)
            }
        })
    }

    async fn accept(&self) -> io::Result<Stream> {
        Ok(match self {
            Acceptor::Tcp(listener) => Stream::Tcp(listener.accept().await?.0),
            Acceptor::Tls(listener, tls) => Stream::Tls(listener.accept().await?.0, tls.acceptor()),
            Acceptor::Unix(listener) => Stream::Unix(listener.accept().await?.0),
        })
    }
}
