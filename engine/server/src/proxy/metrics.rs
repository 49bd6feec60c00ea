//! `GET /metrics` in front of an engine that has its own: ours, then the engine's as they are.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, Uri, header};
use axum::response::Response;
use tokio::time::timeout;

use super::Route;
use super::upstream::{Message, send};
use crate::app::App;
use crate::backend::BackendState;
use crate::error::ApiError;

/// `/metrics` of the engine is left out when it takes longer.
const METRICS_WAIT: Duration = Duration::from_secs(2);
/// Largest `/metrics` of an engine that is passed on.
const METRICS_BYTES: usize = 1 << 20;

/// `GET /metrics`: ours, then the engine's as they are.
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    if !app.config.metrics_endpoint {
        return Err(ApiError::not_supported(
            "This server does not support metrics endpoint. Start it with `--metrics`",
        ));
    }
    let mut text = own_metrics(&app)?;
    if let Ok(Some(theirs)) = timeout(METRICS_WAIT, engine_metrics(&app)).await {
        text.push_str(&theirs);
    }
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; version=0.0.4"),
    );
    Ok(response)
}

fn own_metrics(app: &App) -> Result<String, ApiError> {
    let proxy = app.proxy()?;
    let seen = app.metrics.seen();
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let ready = matches!(&*proxy.route.borrow(), Route::To(_) | Route::Asleep(_));
    let counters = app.backend.counters();
    // It has a queue of its own.
    let queued = counters.processing.saturating_sub(counters.slots);
    let rows: [(&str, &str, &str, u64); 11] = [
        (
            "bitnet_ready",
            "gauge",
            "1 when an engine takes requests, or sleeps until one comes.",
            u64::from(ready && app.state() == BackendState::Ready),
        ),
        (
            "bitnet_draining",
            "gauge",
            "1 when no new work is taken.",
            u64::from(app.state() == BackendState::Draining),
        ),
        (
            "bitnet_queue_depth",
            "gauge",
            "Requests that wait for a slot of the engine, or for the engine.",
            (counters.deferred + queued) as u64,
        ),
        (
            "bitnet_queue_bound",
            "gauge",
            "Requests that may wait before further ones are refused.",
            counters.queue_bound as u64,
        ),
        (
            "bitnet_engine_restarts_total",
            "counter",
            "Engine processes started after the first.",
            load(&proxy.restarts),
        ),
        (
            "bitnet_proxy_in_flight",
            "gauge",
            "Requests at the engine.",
            proxy.in_flight() as u64,
        ),
        (
            "bitnet_proxy_waiting",
            "gauge",
            "Requests that wait for the engine to come back.",
            proxy.waiting() as u64,
        ),
        (
            "bitnet_proxy_retried_total",
            "counter",
            "Requests sent to a second engine because the first one ended.",
            load(&proxy.retried),
        ),
        (
            "bitnet_proxy_broken_total",
            "counter",
            "Answers that broke off because the engine ended.",
            load(&proxy.broken),
        ),
        (
            "bitnet_generations_total",
            "counter",
            "POST requests that ended, however.",
            seen.requests,
        ),
        (
            "bitnet_generations_cancelled_total",
            "counter",
            "Of them, those whose client went away.",
            seen.cancelled,
        ),
    ];
    let mut text = format!(
        "# HELP bitnet_build_info Version; always 1.\n# TYPE bitnet_build_info gauge\nbitnet_build_info{{version=\"{}\",kernel=\"external\"}} 1\n",
        app.config.version
    );
    for (name, kind, help, value) in rows {
        text.push_str(&format!(
            "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n"
        ));
    }
    text.push_str(&app.metrics.durations());
    Ok(text)
}

/// `None` when the engine has none to show now.
async fn engine_metrics(app: &App) -> Option<String> {
    let upstream = match &*app.proxy().ok()?.route.borrow() {
        Route::To(upstream) => Arc::clone(upstream),
        _ => return None,
    };
    let message = Message {
        method: Method::GET,
        uri: Uri::from_static("/metrics"),
        headers: HeaderMap::new(),
        body: Bytes::new(),
    };
    let answer = send(&upstream, &message).await.ok()?;
    if answer.head.status != 200 {
        return None;
    }
    let mut pipe = answer.pipe;
    let mut bytes = Vec::new();
    while let Some(data) = pipe.next().await {
        bytes.extend_from_slice(&data.ok()?);
        if bytes.len() > METRICS_BYTES {
            return None;
        }
    }
    String::from_utf8(bytes).ok()
}
