//! What the server tells about itself: `/props`, `/slots`, `/models`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::Uri;
use axum::response::Response;
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::backend::SlotView;
use crate::body::RawBody;
use crate::error::ApiError;
use crate::model::Model;
use crate::reply::{self, object};
use crate::request::expected;
use crate::template::builtin_names;
use crate::values::sampling_json;

/// `GET /props`
pub(crate) async fn props(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let model = app.ready()?;
    let card = &model.card;
    let config = &app.config;
    Ok(reply::ok(&json!({
        "default_generation_settings": default_settings(&model),
        "total_slots": card.slots,
        "model_alias": model.id,
        "model_path": card.path,
        "model_ftype": model.file_type(),
        "modalities": { "vision": false, "audio": false },
        "endpoint_slots": config.slots_endpoint,
        "endpoint_props": config.props_endpoint,
        "endpoint_metrics": config.metrics_endpoint,
        "ui": config.page,
        "chat_template": model.template.text(),
        "chat_template_source": model.template.source().to_string(),
        "chat_templates_built_in": builtin_names().collect::<Vec<_>>(),
        "chat_template_caps": {
            "supports_system_role": true,
            "supports_tools": model.template.knows_tools(),
            "supports_tool_calls": model.template.knows_tools(),
        },
        "bos_token": model.bos_text,
        "eos_token": model.eos_text,
        "build_info": format!("{}-bitnet-launch-{}", config.build, config.version),
        "is_sleeping": app.backend.condition().is_asleep,
        "cors_proxy_enabled": false,
        "kernel": card.kernel,
        "threads": card.threads,
        "prefill_batch": card.prefill_batch,
    })))
}

/// `POST /props`: nothing can be changed; there for those who switched it on.
pub(crate) async fn set_props(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    match app.config.props_endpoint {
        true => Ok(reply::ok(&json!({ "success": true }))),
        false => Err(ApiError::not_supported(
            "This server does not support changing global properties. Start it with `--props`",
        )),
    }
}

/// `params` as newer servers nest them, and the same keys flat as older ones had them.
fn default_settings(model: &Model) -> Value {
    let config = &model.config;
    let mut params = sampling_json(&config.sampling);
    let max_tokens = config.max_tokens.map_or(-1, i64::from);
    params.extend(object(json!({
        "seed": config.seed.unwrap_or(u32::MAX),
        "n_predict": max_tokens,
        "max_tokens": max_tokens,
        "stop": config.stop,
        "n_keep": config.n_keep,
        "stream": false,
        "cache_prompt": config.cache_prompt,
        "speculative.n_max": model.card.draft_max,
    })));
    let mut settings = Map::new();
    settings.insert("params".into(), Value::Object(params.clone()));
    settings.insert("n_ctx".into(), json!(model.card.slot_context));
    settings.insert("model".into(), json!(model.card.path));
    settings.extend(params);
    Value::Object(settings)
}

/// `GET /slots`
pub(crate) async fn slots(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, ApiError> {
    if !app.config.slots_endpoint {
        return Err(ApiError::not_supported(
            "This server does not support slots endpoint. Start it without `--no-slots`",
        ));
    }
    let model = app.ready()?;
    let slots = app.backend.slots();
    let mut asked = uri.query().unwrap_or_default().split('&');
    let must_be_free = asked.any(|part| part.split('=').next() == Some("fail_on_no_slot"));
    if must_be_free && slots.iter().all(|slot| slot.processing) {
        return Err(ApiError::unavailable("no slot available"));
    }
    let shown: Value = slots
        .iter()
        .map(|slot| slot_json(slot, model.card.slot_context, model.card.draft_max > 0))
        .collect();
    Ok(reply::ok(&shown))
}

/// Integer `state` and `id_task` -1 for the older clients, the rest as newer servers have it.
fn slot_json(slot: &SlotView, n_ctx: usize, speculative: bool) -> Value {
    let mut out = object(json!({
        "id": slot.id,
        "id_task": slot.job.map_or(-1, |job| job as i64),
        "n_ctx": n_ctx,
        "speculative": speculative,
        "is_processing": slot.processing,
        "state": slot.state,
    }));
    if let Some(sampling) = &slot.sampling {
        out.extend(object(json!({
            "n_prompt_tokens": slot.prompt_tokens,
            "n_prompt_tokens_processed": slot.prompt_processed,
            "n_prompt_tokens_cache": slot.prompt_cached,
            "params": sampling_json(sampling),
        })));
    }
    let remaining = slot
        .remaining
        .filter(|_| slot.processing)
        .map_or(-1, |n| n as i64);
    out.insert(
        "next_token".into(),
        json!([{
            "has_next_token": slot.processing,
            "has_new_line": false,
            "n_remain": remaining,
            "n_decoded": slot.decoded,
        }]),
    );
    Value::Object(out)
}

/// `GET /lora-adapters`: none.
pub(crate) async fn adapters() -> Response {
    reply::ok(&json!([]))
}

/// `POST /lora-adapters`: an empty list asks for nothing.
pub(crate) async fn set_adapters(body: RawBody) -> Result<Response, ApiError> {
    match body.value()? {
        Value::Array(scales) if scales.is_empty() => Ok(reply::ok(&json!({ "success": true }))),
        Value::Array(_) => Err(ApiError::invalid(
            "no such adapter: there are none, they cannot be applied to ternary weights",
        )),
        other => Err(ApiError::invalid(format!(
            "the request body: {}",
            expected("an array", &other)
        ))),
    }
}

/// `GET /models`, `/v1/models`
pub(crate) async fn models(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let model = app.ready()?;
    Ok(reply::ok(&models_json(&model)))
}

/// `GET /models/NAME`, `/v1/models/NAME`: OpenAI's clients look a model up before they use it.
pub(crate) async fn model(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let model = app.ready()?;
    match name == model.id || model.config.aliases.contains(&name) {
        true => Ok(reply::ok(&models_json(&model)["data"][0])),
        false => Err(ApiError::no_model(&name, &model.id)),
    }
}

fn models_json(model: &Model) -> Value {
    let (card, facts) = (&model.card, &model.card.facts);
    let meta = json!({
        "vocab_type": model.vocab_type(),
        "n_vocab": facts.n_vocab,
        "n_ctx": card.slot_context,
        "n_ctx_train": facts.context_length,
        "n_embd": facts.n_embd,
        "n_params": facts.n_params,
        "size": facts.file_bytes,
        "ftype": model.file_type(),
    });
    let family = facts.architecture.name();
    let entry = json!({
        "id": model.id,
        "aliases": model.config.aliases,
        "tags": model.config.tags,
        "object": "model",
        "created": card.created_unix_s,
        "owned_by": "llamacpp",
        "architecture": { "input_modalities": ["text"], "output_modalities": ["text"] },
        "meta": meta,
    });
    json!({
        "models": [{
            "name": model.id,
            "model": model.id,
            "modified_at": "",
            "size": "",
            "digest": "",
            "type": "model",
            "description": facts.name.as_deref().unwrap_or_default(),
            "tags": model.config.tags,
            "capabilities": ["completion", "embedding", "tools"],
            "parameters": "",
            "details": {
                "parent_model": "",
                "format": "gguf",
                "family": family,
                "families": [family],
                "parameter_size": parameter_size(facts.n_params),
                "quantization_level": model.file_type(),
            },
        }],
        "object": "list",
        "data": [entry],
    })
}

/// `2.4B`
pub(crate) fn parameter_size(n_params: u64) -> String {
    match n_params as f64 {
        n if n >= 1e9 => format!("{:.1}B", n / 1e9),
        n if n >= 1e6 => format!("{:.1}M", n / 1e6),
        n => format!("{:.1}K", n / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parameter_size(2_412_820_480), "2.4B");
        assert_eq!(parameter_size(5_100_000), "5.1M");
    }

    #[test]
    fn idle_slots_have_no_params() {
        let text = slot_json(
            &SlotView {
                id: 1,
                ..SlotView::default()
            },
            64,
            false,
        )
        .to_string();
        assert!(
            text.contains("\"id_task\":-1")
                && text.contains("\"state\":0")
                && text.contains("\"n_remain\":-1")
        );
        assert!(!text.contains("params"));
    }
}
