//! `GET /`: one plain page that says what answers here.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use crate::app::App;
use crate::backend::BackendState;
use crate::error::ApiError;

const ROUTES: &[(&str, &str)] = &[
    (
        "POST /v1/chat/completions",
        "answer a conversation (OpenAI)",
    ),
    ("POST /v1/completions", "continue a text (OpenAI)"),
    ("POST /completion", "continue a text (llama-server)"),
    (
        "POST /tokenize, /detokenize, /apply-template",
        "text to tokens and back, messages to a prompt",
    ),
    ("GET /v1/models, /props", "the model and the settings"),
    ("GET /health, /slots, /metrics", "the state"),
];

/// The page, as HTML.
pub(crate) async fn page(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    if !app.config.page {
        return Err(ApiError::not_found());
    }
    let html = [(header::CONTENT_TYPE, "text/html; charset=utf-8")];
    Ok((html, text(&app)).into_response())
}

fn text(app: &App) -> String {
    let state = match app.state() {
        BackendState::Ready => "ready".to_owned(),
        BackendState::Loading => "loading the model".to_owned(),
        BackendState::Draining => "shutting down".to_owned(),
        BackendState::Failed(reason) => format!("the engine can't be started: {reason}"),
    };
    let model = app.model().map_or_else(String::new, |model| {
        let card = &model.card;
        let line = format!(
            "{}, {} slots of {} tokens, kernel {}, {} threads",
            model.id, card.slots, card.slot_context, card.kernel, card.threads
        );
        format!("<p>Model: {}</p>", escape(&line))
    });
    let rows: String = ROUTES
        .iter()
        .map(|(route, what)| {
            format!(
                "<tr><td><code>{}</code></td><td>{}</td></tr>",
                escape(route),
                escape(what)
            )
        })
        .collect();
    let prefix = escape(&app.config.api_prefix);
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>bitnet-launch</title>\
<meta name=\"viewport\" content=\"width=device-width\"><style>body{{font:16px/1.5 system-ui,sans-serif;max-width:44rem;\
margin:2rem auto;padding:0 1rem}}td{{padding:.2rem 1rem .2rem 0;vertical-align:top}}pre{{background:#8881;padding:1rem;\
overflow-x:auto}}</style></head><body><h1>bitnet-launch {version}</h1><p>Serves a BitNet b1.58 model on the CPU. State: \
<strong>{state}</strong>.</p>{model}<table>{rows}</table><pre>curl http://HOST:PORT{prefix}/v1/chat/completions -d \
'{{\"messages\":[{{\"role\":\"user\",\"content\":\"Hello\"}}]}}'</pre></body></html>\n",
        version = escape(&app.config.version),
        state = escape(&state),
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
