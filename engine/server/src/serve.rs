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
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::app::{App, Phase};
use crate::timeout::WriteTimeout;
use crate::{front, routes};

/// After the deadline, streams get this long to write their last frame.
const LAST_WORDS: Duration = Duration::from_millis(400);
/// Pause after `accept` failed, for example without file descriptors left.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// Largest request head, in bytes.
const HEAD_LIMIT_BYTES: usize = 64 << 10;
/// Connections beyond the bound on which probes are still answered.
const SPARE_CONNECTIONS: usize = 32;

/// A listening socket.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(std::net::TcpListener),
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
    {
        let mut drained = pin!(drained(&app));
        loop {
            tokio::select! {
                () = &mut drained => break,
                accepted = listener.accept() => match accepted {
                    Ok(stream) => admit(stream, &app, &router, &mut connections),
                    Err(error) => {
                        tracing::warn!("accept failed: {error}");
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

/// Serves a connection; over the bound for probes only, far over it not at all.
fn admit(stream: Stream, app: &Arc<App>, router: &Router, connections: &mut JoinSet<()>) {
    let bound = app.config.max_connections;
    if connections.len() >= bound + SPARE_CONNECTIONS {
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
        Stream::Unix(stream) => {
            connections.spawn(connection(stream, visit));
        }
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
    let io = TokioIo::new(WriteTimeout::new(stream, config.write_timeout));
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(config.read_timeout)
        .keep_alive(!visit.crowded)
        .max_buf_size(HEAD_LIMIT_BYTES);
    let service = service_fn(move |request| {
        let visit = visit.clone();
        async move { Ok::<_, Infallible>(front::handle(visit, request).await) }
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
    Unix(UnixListener),
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Acceptor {
    fn new(listener: Listener) -> io::Result<Self> {
        Ok(match listener {
            Listener::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                Acceptor::Tcp(TcpListener::from_std(listener)?)
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
            Acceptor::Unix(listener) => Stream::Unix(listener.accept().await?.0),
        })
    }
}
