//! What an operator may ask of a running server: `POST /drain` and `POST /reload`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::Response;
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::app::App;
use crate::backend::BackendState;
use crate::body::RawBody;
use crate::error::ApiError;
use crate::reply;
use crate::request::Fields;
use crate::schema::{self, requests};

/// Who can read the settings anew. The call returns at once.
pub trait Control: Send + Sync + 'static {
    /// Reads settings and model anew and serves them; `gap`: the old engine may end before the new one starts. The answer comes
    /// when the new engine serves, or has been refused: then everything stays as it was, for the reason given.
    fn reload(&self, gap: bool) -> oneshot::Receiver<Result<Reloaded, String>>;
}

/// What a reload did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reloaded {
    /// One line for the operator.
    pub outcome: String,
    /// An engine was put in the place of another.
    pub engine_replaced: bool,
    /// What was said and can't be followed without a restart.
    pub warnings: Vec<String>,
}

/// `POST /drain`: as at SIGTERM no new work is taken, once the notice to balancers is over; but what runs has all the time it
/// needs, and the server stays, to answer 503, until it is stopped.
pub(crate) async fn drain(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    not_from_a_page(&app, &headers)?;
    let notice = app.announce_leaving();
    if notice.is_zero() {
        close(&app);
    } else {
        tracing::info!(
            "draining: balancers are told, requests are taken for another {:.1} s",
            notice.as_secs_f64()
        );
        let app = Arc::clone(&app);
        tokio::spawn(async move {
            sleep(notice).await;
            close(&app);
        });
    }
    let counters = app.backend.counters();
    Ok(reply::ok(&json!({
        "status": "draining",
        "running": app.running(),
        "processing": counters.processing,
        "waiting": counters.deferred,
    })))
}

fn close(app: &App) {
    if app.close() {
        tracing::info!(
            "draining: no new requests are taken; stop the server when it is convenient"
        );
    }
}

/// `POST /reload`
pub(crate) async fn reload(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: RawBody,
) -> Result<Response, ApiError> {
    not_from_a_page(&app, &headers)?;
    let gap = match body.is_empty() {
        true => false,
        false => {
            let body = body.object()?;
            schema::check(&body, requests::RELOAD)?;
            Fields(&body).bool("gap")?.unwrap_or(false)
        }
    };
    if app.state() == BackendState::Draining {
        return Err(BackendState::Draining.into());
    }
    let control = app.control().ok_or_else(ApiError::loading)?;
    match control.reload(gap).await {
        Ok(Ok(done)) => Ok(reply::ok(&json!({
            "status": "ok",
            "outcome": done.outcome,
            "engine_replaced": done.engine_replaced,
            "warnings": done.warnings,
        }))),
        Ok(Err(reason)) => Err(ApiError::conflict(reason)),
        Err(_) => Err(BackendState::Draining.into()),
    }
}

/// Browsers let any page send requests here. Where no key is asked for, at least that is refused.
fn not_from_a_page(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    match app.config.api_keys.0.is_empty() && headers.contains_key(header::ORIGIN) {
        true => Err(ApiError::forbidden(
            "web pages may not do this; set an API key to allow it to those that know it",
        )),
        false => Ok(()),
    }
}
