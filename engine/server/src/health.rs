//! `GET /health`: whether requests can be served now. Never waits for anything.

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
