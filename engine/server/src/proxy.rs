//! Hands requests on to another llama-server, and its answers back as they come.
//!
//! The launcher supervises that server and says where it is by [`Proxy::set_route`]. Everything in front of it is ours: keys, CORS,
//! limits, request numbers, log lines, `/health`, `/status`, `/metrics`. One connection per request, polled by the task that
//! writes to the client: what the client doesn't take is not read, and a client that goes away closes the connection at once.
//!
//! A request whose connection breaks before anything of the answer was passed on is sent once more, to the next engine. A stream
//! that breaks later ends with an error event; any other answer ends short, with its connection.

mod metrics;
mod relay;
mod upstream;

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axum::extract::{FromRequest, Request, State};
use axum::http::Method;
use axum::response::Response;
use bitnet_model::protocol::{SlotAction, SlotFault, SlotReport};
use serde_json::json;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use crate::app::{App, Generation};
use crate::backend::{
    Backend, BackendCounters, BackendState, Condition, Crash, EmbedJob, EnergyMoment, Job,
    JobHandle, Refused, SlotView,
};
use crate::body::RawBody;
use crate::error::ApiError;
use crate::metrics::{End, Finished};
use crate::reply;
pub(crate) use metrics::metrics;
pub use upstream::{Address, Upstream};
use upstream::{Answer, Message, begin};

/// The supervisor hears of an engine's end this much later than its connections, at most.
const NEWS_WAIT: Duration = Duration::from_secs(1);
/// Requests wait for a new engine for this long.
const RESTART_WAIT: Duration = Duration::from_secs(600);
/// Files of a server's page, which browsers ask for without a key.
const PAGE_FILES: &[&str] = &[
    ".html",
    ".js",
    ".css",
    ".ico",
    ".svg",
    ".png",
    ".woff2",
    ".webmanifest",
];

/// Where requests go now.
#[derive(Debug, Clone)]
pub enum Route {
    /// No engine was ready yet.
    Loading,
    /// To this one.
    To(Arc<Upstream>),
    /// An engine is being replaced; requests wait.
    Paused,
    /// This one was ended for want of work; the next request has another one started.
    Asleep(Arc<Upstream>),
    /// There will be none; the reason in one line.
    Failed(String),
}

/// Between clients and an engine that speaks HTTP itself.
#[derive(Debug)]
pub struct Proxy {
    route: watch::Sender<Route>,
    /// Generations at the engine or waiting for one, at most.
    bound: AtomicUsize,
    max_queue: usize,
    seats: AtomicUsize,
    /// Generations that were ever given a seat.
    accepted: AtomicU64,
    waiting: AtomicUsize,
    restarts: AtomicU64,
    retried: AtomicU64,
    broken: AtomicU64,
    waker: Waker,
    last_crash: Mutex<Option<Crash>>,
}

/// Has an engine started.
#[derive(Default)]
struct Waker(OnceLock<Box<dyn Fn() + Send + Sync>>);

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Waker")
    }
}

impl Proxy {
    /// Answers 503 `Loading model` until a route is set. Besides those the engine works on, `max_queue` generations may wait.
    pub fn new(max_queue: usize) -> Arc<Proxy> {
        Arc::new(Proxy {
            route: watch::Sender::new(Route::Loading),
            bound: AtomicUsize::new(usize::MAX),
            max_queue,
            seats: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            restarts: AtomicU64::new(0),
            retried: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            waker: Waker::default(),
            last_crash: Mutex::new(None),
        })
    }

    /// From now on requests go there; those on their way stay where they are.
    pub fn set_route(&self, route: Route) {
        match &route {
            Route::To(upstream) => upstream.set_asleep(false),
            Route::Asleep(upstream) => upstream.set_asleep(true),
            Route::Loading | Route::Paused | Route::Failed(_) => {}
        }
        self.route.send_replace(route);
    }

    /// `wake` is called when there is work and the engine sleeps; it must be quick and must not block.
    pub fn on_wake(&self, wake: impl Fn() + Send + Sync + 'static) {
        let _ = self.waker.0.set(Box::new(wake));
    }

    /// An engine ended without being asked.
    pub fn crashed(&self, crash: Crash) {
        let mut last = self
            .last_crash
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *last = Some(crash);
    }

    /// Generations that have not ended, and all that were ever accepted.
    pub fn work(&self) -> (usize, u64) {
        let running = self.seats.load(Ordering::Relaxed);
        (running, self.accepted.load(Ordering::Relaxed))
    }

    /// The engine works on this many generations at a time.
    pub fn set_slots(&self, slots: usize) {
        self.bound
            .store(slots.saturating_add(self.max_queue), Ordering::Relaxed);
    }

    /// Another engine process was started after the first.
    pub fn restarted(&self) {
        self.restarts.fetch_add(1, Ordering::Relaxed);
    }

    /// Generations that wait for an engine to come back.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// The engine to send to; waits while one is replaced. Never `not`, unless there is no news of its end.
    async fn upstream(&self, not: Option<&Arc<Upstream>>) -> Result<Arc<Upstream>, ApiError> {
        let other = |route: &Route| match (route, not) {
            (Route::To(now), Some(not)) => !Arc::ptr_eq(now, not),
            _ => true,
        };
        let mut routes = self.route.subscribe();
        if not.is_some() {
            let _ = timeout(NEWS_WAIT, routes.wait_for(other)).await;
        }
        let _waiting = Count::new(&self.waiting);
        let goes_somewhere = |route: &Route| {
            if let (Route::Asleep(_), Some(wake)) = (route, self.waker.0.get()) {
                wake();
            }
            !matches!(route, Route::Paused | Route::Asleep(_))
        };
        let arrived = timeout(RESTART_WAIT, routes.wait_for(goes_somewhere));
        match arrived.await {
            Ok(Ok(route)) => match &*route {
                Route::To(upstream) => Ok(Arc::clone(upstream)),
                Route::Failed(reason) => Err(BackendState::Failed(reason.clone()).into()),
                Route::Loading | Route::Paused | Route::Asleep(_) => Err(ApiError::loading()),
            },
            _ => Err(ApiError::unavailable(
                "the engine did not come back in time",
            )),
        }
    }

    /// This engine ended before it answered a request, which goes to the next one.
    fn missed(&self, upstream: &Upstream, error: &str) {
        if upstream.is_asleep() {
            tracing::debug!("the engine had just gone to sleep; the request wakes another");
            return;
        }
        self.retried.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(
            "the engine ended before it answered ({error}); the request is sent once more"
        );
    }

    /// A place among the generations, or 429.
    fn seat(self: &Arc<Self>) -> Result<Seat, ApiError> {
        let bound = self.bound.load(Ordering::Relaxed);
        let taken = self
            .seats
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                (taken < bound).then_some(taken + 1)
            });
        match taken {
            Ok(_) => {
                self.accepted.fetch_add(1, Ordering::Relaxed);
                Ok(Seat(Arc::clone(self)))
            }
            Err(_) => Err(ApiError::queue_full(self.max_queue)),
        }
    }

    /// What an engine that sleeps said while it was awake, for whoever only looks.
    fn recalled(&self, message: &Message) -> Option<Response> {
        let route = self.route.borrow();
        let Route::Asleep(upstream) = &*route else {
            return None;
        };
        let path = message.uri.path();
        let is_look = message.method == Method::GET;
        let mut answer = upstream.remembered(path).filter(|_| is_look)?;
        if let Some(object) = answer.as_object_mut().filter(|_| path == "/props") {
            object.insert("is_sleeping".to_owned(), json!(true));
        }
        Some(reply::ok(&answer))
    }

    fn in_flight(&self) -> usize {
        match &*self.route.borrow() {
            Route::To(upstream) => upstream.in_flight(),
            _ => 0,
        }
    }
}

struct Seat(Arc<Proxy>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.seats.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts something while it lives.
struct Count<'a>(&'a AtomicUsize);

impl<'a> Count<'a> {
    fn new(counter: &'a AtomicUsize) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Count(counter)
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Jobs are refused: requests are passed on as they are.
impl Backend for Proxy {
    fn state(&self) -> BackendState {
        match &*self.route.borrow() {
            Route::Loading => BackendState::Loading,
            Route::To(_) | Route::Paused | Route::Asleep(_) => BackendState::Ready,
            Route::Failed(reason) => BackendState::Failed(reason.clone()),
        }
    }

    fn submit(&self, _: Job) -> Result<JobHandle, Refused> {
        Err(Refused::NotReady(self.state()))
    }

    fn embed(&self, _: EmbedJob) -> Result<JobHandle, Refused> {
        Err(Refused::NotReady(self.state()))
    }

    fn slot_action(
        &self,
        _: usize,
        _: SlotAction,
    ) -> Result<oneshot::Receiver<Result<SlotReport, SlotFault>>, Refused> {
        Err(Refused::NotReady(self.state()))
    }

    fn slots(&self) -> Vec<SlotView> {
        Vec::new()
    }

    fn condition(&self) -> Condition {
        let last = self
            .last_crash
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Condition {
            // Engines have to produce a token before requests go to them.
            has_spoken: self.state() == BackendState::Ready,
            is_asleep: matches!(&*self.route.borrow(), Route::Asleep(_)),
            last_crash: last.clone(),
        }
    }

    fn counters(&self) -> BackendCounters {
        BackendCounters {
            processing: self.in_flight(),
            deferred: self.waiting(),
            queue_bound: self.max_queue,
            slots: match self.bound.load(Ordering::Relaxed) {
                usize::MAX => 0,
                bound => bound.saturating_sub(self.max_queue),
            },
            engine_restarts: self.restarts.load(Ordering::Relaxed),
            ..BackendCounters::default()
        }
    }

    fn energy(&self) -> Option<EnergyMoment> {
        None
    }
}

/// Whether a path without a key is a file of the engine's page.
pub(crate) fn is_page_file(method: &Method, path: &str) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
        && PAGE_FILES.iter().any(|ending| path.ends_with(ending))
        && !path.starts_with("/v1/")
}

/// `GET /health`
pub(crate) async fn health(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    match app.state() {
        BackendState::Ready => Ok(reply::ok(&json!({
            "status": "ok",
            "engine": "external",
            "version": app.config.version,
        }))),
        state => Err(state.into()),
    }
}

/// Every other route.
pub(crate) async fn forward(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let proxy = Arc::clone(app.proxy()?);
    let generates = request.method() == Method::POST;
    let seat = match generates {
        true => Some(proxy.seat()?),
        false => None,
    };
    let mut exchange = Exchange {
        app: Arc::clone(&app),
        end: generates.then_some(End::Cancelled),
        _seat: seat,
        _generation: app.begin_generation(),
    };
    let result = exchange.answer(&proxy, request).await;
    match result {
        Ok(Reached::Engine(answer)) => Ok(answer.into_response(exchange)),
        Ok(Reached::Memory(answer)) => {
            exchange.ended(End::Complete);
            Ok(answer)
        }
        Err(error) => {
            exchange.ended(End::Failed);
            Err(error)
        }
    }
}

/// Where a request was answered.
enum Reached {
    Engine(Answer),
    /// In the place of one that sleeps.
    Memory(Response),
}

/// A request from its arrival to the last byte of its answer; counted when dropped.
pub(crate) struct Exchange {
    app: Arc<App>,
    /// `None`: not counted.
    end: Option<End>,
    _seat: Option<Seat>,
    _generation: Generation,
}

impl Exchange {
    fn ended(&mut self, end: End) {
        self.end = self.end.map(|_| end);
    }

    async fn answer(&self, proxy: &Proxy, request: Request) -> Result<Reached, ApiError> {
        let (head, body) = request.into_parts();
        let copy = Request::from_parts(head.clone(), body);
        let body = RawBody::from_request(copy, &self.app).await?.into_bytes();
        let message = Message::new(head, body, &self.app.config.api_prefix);
        if let Some(answer) = proxy.recalled(&message) {
            return Ok(Reached::Memory(answer));
        }
        let upstream = proxy.upstream(None).await?;
        let error = match begin(&upstream, &message).await {
            Ok(answer) => return Ok(Reached::Engine(answer)),
            Err(error) => error,
        };
        // It went to sleep just now.
        if let Some(answer) = proxy.recalled(&message) {
            return Ok(Reached::Memory(answer));
        }
        proxy.missed(&upstream, &error);
        let next = proxy.upstream(Some(&upstream)).await?;
        let answer = begin(&next, &message).await;
        answer.map(Reached::Engine).map_err(|error| {
            ApiError::server(format!(
                "the engine ended twice while it worked on this request ({error})"
            ))
        })
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if let Some(end) = self.end {
            self.app.metrics.finished(Finished {
                end,
                ..Finished::default()
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Bytes;

    #[test]
    fn only_files_of_a_page_are_open() {
        assert!(is_page_file(&Method::GET, "/bundle.js"));
        assert!(!is_page_file(&Method::POST, "/bundle.js"));
        assert!(!is_page_file(&Method::GET, "/slots"));
        assert!(!is_page_file(&Method::GET, "/v1/models/a.js"));
    }

    #[tokio::test]
    async fn requests_wait_for_the_next_engine_only() {
        let proxy = Proxy::new(1);
        assert_eq!(proxy.upstream(None).await.err(), Some(ApiError::loading()));
        let upstream = |path: &str| Upstream::new(Address::Unix(path.into()), None);
        let (first, second) = (upstream("/a"), upstream("/b"));
        proxy.set_route(Route::To(Arc::clone(&first)));
        assert!(Arc::ptr_eq(&proxy.upstream(None).await.unwrap(), &first));
        proxy.set_route(Route::Paused);
        let waiting = proxy.upstream(Some(&first));
        let switch = async {
            tokio::task::yield_now().await;
            proxy.set_route(Route::To(Arc::clone(&second)));
        };
        let (found, ()) = tokio::join!(waiting, switch);
        assert!(Arc::ptr_eq(&found.unwrap(), &second));
        proxy.set_route(Route::Failed("broken".into()));
        let error = proxy.upstream(Some(&second)).await.err().unwrap();
        assert_eq!(error.status, 503);
        assert!(error.message.contains("broken"));
    }

    #[tokio::test]
    async fn work_wakes_a_sleeping_engine_and_looks_do_not() {
        let proxy = Proxy::new(1);
        let upstream = |path: &str| Upstream::new(Address::Unix(path.into()), None);
        let (first, second) = (upstream("/a"), upstream("/b"));
        first.remember("/props", json!({"n_ctx": 7}));
        let (woken, next) = (Arc::new(AtomicUsize::new(0)), Arc::clone(&second));
        let (seen, weak) = (Arc::clone(&woken), Arc::downgrade(&proxy));
        proxy.on_wake(move || {
            seen.fetch_add(1, Ordering::Relaxed);
            let (proxy, next) = (weak.upgrade().unwrap(), Arc::clone(&next));
            tokio::spawn(async move { proxy.set_route(Route::To(next)) });
        });
        proxy.set_route(Route::Asleep(first));
        assert!(proxy.condition().is_asleep && proxy.state() == BackendState::Ready);
        let get = |uri: &str| {
            let request = Request::builder().uri(uri).body(()).unwrap();
            Message::new(request.into_parts().0, Bytes::new(), "/llm")
        };
        assert!(proxy.recalled(&get("/llm/props")).is_some());
        assert!(proxy.recalled(&get("/slots")).is_none());
        assert_eq!(woken.load(Ordering::Relaxed), 0);
        assert!(Arc::ptr_eq(&proxy.upstream(None).await.unwrap(), &second));
        assert_eq!(woken.load(Ordering::Relaxed), 1);
        assert!(!proxy.condition().is_asleep);
        assert!(proxy.recalled(&get("/props")).is_none());
    }

    #[test]
    fn who_meets_an_engine_that_goes_to_sleep_is_not_retried() {
        let proxy = Proxy::new(1);
        let upstream = Upstream::new(Address::Unix("/a".into()), None);
        let retried = |route: Route| {
            proxy.set_route(route);
            proxy.missed(&upstream, "connection refused");
            proxy.retried.load(Ordering::Relaxed)
        };
        assert_eq!(retried(Route::To(Arc::clone(&upstream))), 1);
        assert_eq!(retried(Route::Asleep(Arc::clone(&upstream))), 1);
        // Others have woken the next one.
        assert_eq!(retried(Route::Paused), 1);
        // It didn't go to sleep after all, and ended later.
        assert_eq!(retried(Route::To(Arc::clone(&upstream))), 2);
    }

    #[test]
    fn seats_are_bounded() {
        let proxy = Proxy::new(1);
        proxy.set_slots(1);
        let seats = (proxy.seat().ok().unwrap(), proxy.seat().ok().unwrap());
        assert_eq!(proxy.seat().err().unwrap().status, 429);
        drop(seats);
        assert!(proxy.seat().is_ok());
    }
}
