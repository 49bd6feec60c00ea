//! `GET /health`: whether requests can be served now; `/livez`: whether the server is there at all; `/readyz`: whether it is known to
//! answer. None of them waits for anything.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::json;

use crate::app::App;
use crate::backend::BackendState;
use crate::error::ApiError;
use crate::reply;

/// 200 `{"status":"ok",..}`, or 503 with the reason.
pub(crate) async fn health(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let model = match app.state() {
        BackendState::Ready => app.ready()?,
        state => return Err(state.into()),
    };
    let slots = app.backend.slots();
    let processing = slots.iter().filter(|slot| slot.processing).count();
    Ok(reply::ok(&json!({
        "status": "ok",
        "model": model.id,
        "slots": model.card.slots,
        "slots_idle": slots.len().saturating_sub(processing),
        "slots_processing": processing,
        "version": app.config.version,
    })))
}

/// `GET /livez`: 200 as long as the server answers at all.
pub(crate) async fn live() -> Response {
    reply::ok(&json!({ "status": "alive" }))
}

/// `GET /readyz`: 200 when new requests are taken and an engine has produced a token since the start, else 503 with the
/// reason. An engine that is replaced after a crash, or asleep, doesn't count against it: requests wait for the next one.
pub(crate) async fn ready(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let condition = app.backend.condition();
    let refused = |error: ApiError, reason: &str| error.with("reason", json!(reason));
    match app.state() {
        BackendState::Ready if condition.has_spoken => Ok(reply::ok(&json!({
            "status": "ready",
            "is_sleeping": condition.is_asleep,
        }))),
        BackendState::Ready => {
            let error = ApiError::unavailable("no engine has produced a token yet");
            Err(refused(error, "untested"))
        }
        state => {
            let reason = match &state {
                BackendState::Draining => "draining",
                BackendState::Failed(_) => "failed",
                BackendState::Loading | BackendState::Ready => "loading",
            };
            Err(refused(state.into(), reason))
        }
    }
}
