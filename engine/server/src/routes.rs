//! Which handler answers which path.

use std::sync::Arc;

use axum::Router;
use axum::handler::Handler;
use axum::routing::{any, get, post};

use crate::app::App;
use crate::error::ApiError;
use crate::{
    completion, embeddings, front, health, messages, metrics, ollama, page, props, responses,
    slots, status, tokens,
};

/// Routes other llama-servers have and this one answers with 501, and why.
const NOT_SUPPORTED: &[(&[&str], &str)] = &[
    (
        &["/infill"],
        "This server does not support infill: the model's vocabulary has no fill-in-the-middle tokens",
    ),
    (
        &["/rerank", "/reranking", "/v1/rerank", "/v1/reranking"],
        "This server does not support reranking: the model generates text",
    ),
    (
        &["/v1/audio/transcriptions"],
        "This server does not support audio: the model reads text",
    ),
];

/// All routes under the configured prefix.
pub(crate) fn router(app: Arc<App>) -> Router {
    let table = Table {
        prefix: app.config.api_prefix.clone(),
        router: Router::new(),
    };
    let mut table = table
        .get(&["/health", "/v1/health"], health::health)
        .get(&["/metrics"], metrics::metrics)
        .get(&["/status"], status::status)
        .get(&["/ui/{name}"], page::asset)
        .get(&["/slots"], props::slots)
        .get(&["/models", "/v1/models"], props::models)
        .get(&["/models/{*name}", "/v1/models/{*name}"], props::model)
        .get(&["/props"], props::props)
        .post(&["/props"], props::set_props)
        .get(&["/lora-adapters"], props::adapters)
        .post(&["/lora-adapters"], props::set_adapters)
        .post(&["/completion", "/completions"], completion::native)
        .post(&["/v1/completions"], completion::text)
        .post(
            &["/chat/completions", "/v1/chat/completions"],
            completion::chat,
        )
        .post(
            &[
                "/chat/completions/input_tokens",
                "/v1/chat/completions/input_tokens",
            ],
            completion::input_tokens,
        )
        .post(&["/responses", "/v1/responses"], responses::create)
        .post(
            &["/responses/input_tokens", "/v1/responses/input_tokens"],
            responses::input_tokens,
        )
        .post(&["/v1/messages"], messages::create)
        .post(&["/v1/messages/count_tokens"], messages::count_tokens)
        .post(&["/v1/embeddings"], embeddings::openai)
        .post(&["/embedding", "/embeddings"], embeddings::native)
        .post(&["/slots/{id}"], slots::act)
        .get(&["/api/version"], ollama::version)
        .get(&["/api/tags"], ollama::tags)
        .post(&["/api/chat"], ollama::chat)
        .post(&["/api/generate"], ollama::generate)
        .post(&["/apply-template"], completion::apply_template)
        .post(&["/tokenize"], tokens::tokenize)
        .post(&["/detokenize"], tokens::detokenize);
    for (paths, why) in NOT_SUPPORTED {
        table = table.not_supported(paths, why);
    }
    let page_path = if table.prefix.is_empty() {
        "/".to_owned()
    } else {
        table.prefix.clone()
    };
    table
        .router
        .route(&page_path, get(page::page))
        .fallback(front::not_found)
        .method_not_allowed_fallback(front::wrong_method)
        .with_state(app)
}

struct Table {
    prefix: String,
    router: Router<Arc<App>>,
}

impl Table {
    fn get<H, T>(mut self, paths: &[&str], handler: H) -> Self
    where
        H: Handler<T, Arc<App>>,
        T: 'static,
    {
        for path in paths {
            self.router = self
                .router
                .route(&format!("{}{path}", self.prefix), get(handler.clone()));
        }
        self
    }

    fn post<H, T>(mut self, paths: &[&str], handler: H) -> Self
    where
        H: Handler<T, Arc<App>>,
        T: 'static,
    {
        for path in paths {
            self.router = self
                .router
                .route(&format!("{}{path}", self.prefix), post(handler.clone()));
        }
        self
    }

    fn not_supported(mut self, paths: &[&str], why: &'static str) -> Self {
        for path in paths {
            let answer = any(move || async move { ApiError::not_supported(why) });
            self.router = self.router.route(&format!("{}{path}", self.prefix), answer);
        }
        self
    }
}
