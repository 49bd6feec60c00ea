//! `POST /slots/:id?action=save|restore|erase`: what a slot has read, to a file and back.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::{self, State};
use axum::http::Uri;
use axum::response::Response;
use bitnet_model::protocol::{SlotAction, SlotFault};
use serde_json::{Value, json};

use crate::app::App;
use crate::body::RawBody;
use crate::error::ApiError;
use crate::reply;
use crate::schema::{self, requests};

/// Longest file name most file systems take, in bytes.
const MAX_NAME_BYTES: usize = 255;

/// `POST /slots/:id`
pub(crate) async fn act(
    State(app): State<Arc<App>>,
    extract::Path(id): extract::Path<String>,
    uri: Uri,
    body: RawBody,
) -> Result<Response, ApiError> {
    let Some(folder) = &app.config.slot_save_path else {
        return Err(ApiError::not_supported(
            "This server does not support slots action. Start it with `--slot-save-path`",
        ));
    };
    let model = app.ready()?;
    let slot = id
        .parse::<usize>()
        .ok()
        .filter(|slot| *slot < model.card.slots)
        .ok_or_else(|| ApiError::invalid("Invalid slot ID"))?;
    let query = uri.query().unwrap_or_default();
    let asked = query
        .split('&')
        .find_map(|part| part.strip_prefix("action="));
    let (action, file) = match asked {
        Some("save") => {
            let (path, name) = file(folder, &body)?;
            (SlotAction::Save(path), name)
        }
        Some("restore") => {
            let (path, name) = file(folder, &body)?;
            (SlotAction::Restore(path), name)
        }
        Some("erase") => (SlotAction::Erase, String::new()),
        _ => return Err(ApiError::invalid("Invalid action")),
    };
    let kind = action.clone();
    let report = app
        .backend
        .slot_action(slot, action)?
        .await
        .map_err(|_| ApiError::unavailable("the server is shutting down"))?
        .map_err(|fault| match fault {
            SlotFault::Refused(message) => ApiError::invalid(message),
            SlotFault::Failed(message) => ApiError::server(message),
        })?;
    let n = report.n_tokens;
    Ok(reply::ok(&match kind {
        SlotAction::Save(_) => json!({
            "id_slot": slot, "filename": file, "n_saved": n, "n_written": report.n_bytes,
            "timings": { "save_ms": report.ms },
        }),
        SlotAction::Restore(_) => json!({
            "id_slot": slot, "filename": file, "n_restored": n, "n_read": report.n_bytes,
            "timings": { "restore_ms": report.ms },
        }),
        SlotAction::Erase => json!({ "id_slot": slot, "n_erased": n }),
    }))
}

/// The file in `folder` that the body names.
fn file(folder: &Path, body: &RawBody) -> Result<(PathBuf, String), ApiError> {
    let body = body.object()?;
    schema::check(&body, requests::SLOT_FILE)?;
    match body.get("filename").and_then(Value::as_str) {
        Some(name) if is_plain(name) => Ok((folder.join(name), name.to_owned())),
        _ => Err(ApiError::invalid("Invalid filename")),
    }
}

/// A name without path parts, not hidden, that any file system takes.
fn is_plain(name: &str) -> bool {
    let forbidden = |c: char| c.is_control() || "/\\:*?\"<>|".contains(c);
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && !name.starts_with(['.', ' '])
        && !name.ends_with(['.', ' '])
        && !name.chars().any(forbidden)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_the_folder() {
        for name in ["slot0.bin", "a", "chat 1", "日本.kv"] {
            assert!(is_plain(name), "{name}");
        }
        let long = "x".repeat(256);
        for name in [
            "",
            ".",
            "..",
            "../x",
            "/etc/passwd",
            "a/b",
            "a\\b",
            ".hidden",
            "a\0b",
            "a\nb",
            "x.",
            &long,
        ] {
            assert!(!is_plain(name), "{name:?}");
        }
    }
}
