//! Which handler answers which path, and what each takes and gives.

use std::collections::HashSet;
use std::sync::Arc;

use axum::Router;
use axum::handler::Handler;
use axum::routing::{any, get, post};
use serde_json::Value;

use crate::app::App;
use crate::error::ApiError;
use crate::openapi::{self, Described, Failure, Operation, Reply, Request};
use crate::schema::{replies, requests};
use crate::{
    capacity, completion, control, embeddings, front, health, messages, metrics, ollama, page,
    props, proxy, responses, slots, status, tokens,
};

const EVENTS: &str = "text/event-stream";
const LINES: &str = "application/x-ndjson";

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

static HEALTH: Operation = Operation::get(
    "whether requests can be served now",
    Reply::Json(&replies::HEALTH),
);
static LIVE: Operation = Operation::get("the server is there", Reply::Json(&replies::LIVE));
static READY: Operation = Operation::get(
    "requests are taken, and an engine has produced a token",
    Reply::Json(&replies::READY),
);
static DRAIN: Operation = Operation::post(
    "takes no new requests from now on",
    Request::None,
    &replies::DRAIN,
);
static RELOAD: Operation = Operation::post(
    "reads settings and model anew, and serves them without an outage",
    Request::Fields(&[requests::RELOAD]),
    &replies::RELOAD,
);
static METRICS: Operation = Operation::get("counters for Prometheus", Reply::Text("text/plain"));
static STATUS: Operation =
    Operation::get("what the page's panel shows", Reply::Json(&replies::STATUS));
static CAPACITY: Operation = Operation::get(
    "how much more this server can take, for load balancers",
    Reply::Json(&replies::CAPACITY),
);
static SLOTS: Operation = Operation::get("what each slot does", Reply::Json(&replies::SLOTS))
    .query(&[("fail_on_no_slot", &[])]);
static MODELS: Operation = Operation::get("the model, in a list", Reply::Json(&replies::MODELS));
static MODEL: Operation = Operation::get(
    "the model, if this is its name",
    Reply::Json(&replies::MODEL),
);
static PROPS: Operation = Operation::get("settings", Reply::Json(&replies::PROPS));
static SET_PROPS: Operation = Operation::post(
    "changes nothing; needs `--props`",
    Request::None,
    &replies::SUCCESS,
);
static ADAPTERS: Operation = Operation::get("none", Reply::Json(&replies::ADAPTERS));
static SET_ADAPTERS: Operation = Operation::post(
    "an empty list changes nothing",
    Request::Json(&replies::ADAPTERS),
    &replies::SUCCESS,
);
static NATIVE: Operation = Operation::post(
    "continue a text (llama-server)",
    Request::Sampling(&[requests::PROMPT, requests::GENERATION]),
    &replies::NATIVE,
)
.streams(EVENTS);
static TEXT: Operation = Operation::post(
    "continue a text (OpenAI)",
    Request::Sampling(&[requests::PROMPT, requests::GENERATION]),
    &replies::TEXT,
)
.streams(EVENTS);
static CHAT: Operation = Operation::post(
    "answer a conversation (OpenAI)",
    Request::Sampling(&[requests::CHAT, requests::GENERATION]),
    &replies::CHAT,
)
.streams(EVENTS);
static CHAT_TOKENS: Operation = Operation::post(
    "length of a conversation's prompt",
    Request::Fields(&[requests::CHAT]),
    &replies::INPUT_TOKENS,
);
static RESPONSES: Operation = Operation::post(
    "answer a conversation (OpenAI Responses)",
    Request::Sampling(&[requests::GENERATION, requests::RESPONSES]),
    &replies::RESPONSE,
)
.streams(EVENTS);
static RESPONSES_TOKENS: Operation = Operation::post(
    "length of a response's prompt",
    Request::Fields(&[requests::RESPONSES]),
    &replies::INPUT_TOKENS,
);
static MESSAGES: Operation = Operation::post(
    "answer a conversation (Anthropic)",
    Request::Sampling(&[requests::GENERATION, requests::MESSAGES]),
    &replies::MESSAGE,
)
.streams(EVENTS);
static COUNT_TOKENS: Operation = Operation::post(
    "length of a message's prompt",
    Request::Fields(&[requests::MESSAGES]),
    &replies::INPUT_TOKENS,
);
static EMBEDDINGS: Operation = Operation::post(
    "texts to vectors (OpenAI)",
    Request::Fields(&[requests::EMBEDDINGS]),
    &replies::EMBEDDINGS,
);
static EMBEDDING: Operation = Operation::post(
    "texts to vectors (llama-server)",
    Request::Fields(&[requests::EMBEDDINGS]),
    &replies::EMBEDDING,
);
static SLOT: Operation = Operation::post(
    "a slot's cache to a file and back; needs `--slot-save-path`",
    Request::Fields(&[requests::SLOT_FILE]),
    &replies::SLOT_REPORT,
)
.query(&[("action", &["save", "restore", "erase"])]);
static APPLY: Operation = Operation::post(
    "a conversation's prompt",
    Request::Fields(&[requests::CHAT]),
    &replies::RENDERED,
);
static TOKENIZE: Operation = Operation::post(
    "text to tokens",
    Request::Fields(&[requests::TOKENIZE]),
    &replies::TOKENS,
);
static DETOKENIZE: Operation = Operation::post(
    "tokens to text",
    Request::Fields(&[requests::DETOKENIZE]),
    &replies::CONTENT,
);
static TOKENIZER: Operation = Operation::get(
    "the tokenizer's special tokens and the template (vLLM)",
    Reply::Json(&replies::TOKENIZER),
);
static OLLAMA_VERSION: Operation =
    Operation::get("version (Ollama)", Reply::Json(&replies::OLLAMA_VERSION));
static OLLAMA_TAGS: Operation = Operation::get(
    "the model, in a list (Ollama)",
    Reply::Json(&replies::OLLAMA_TAGS),
)
.fails_with(Failure::OllamaError);
static OLLAMA_PS: Operation = Operation::get(
    "the model while it is in memory (Ollama)",
    Reply::Json(&replies::OLLAMA_TAGS),
)
.fails_with(Failure::OllamaError);
static OLLAMA_SHOW: Operation = Operation::post(
    "what is known of the model (Ollama)",
    Request::Fields(&[requests::OLLAMA_SHOW]),
    &replies::OLLAMA_SHOW,
)
.fails_with(Failure::OllamaError);
static OLLAMA_EMBED: Operation = Operation::post(
    "texts to vectors (Ollama)",
    Request::Fields(&[requests::OLLAMA_EMBED]),
    &replies::OLLAMA_EMBED,
)
.fails_with(Failure::OllamaError);
static OLLAMA_CHAT: Operation = Operation::post(
    "answer a conversation (Ollama)",
    Request::Fields(&[requests::OLLAMA_CHAT]),
    &replies::OLLAMA_ANSWER,
)
.streams(LINES)
.fails_with(Failure::OllamaError);
static OLLAMA_GENERATE: Operation = Operation::post(
    "continue a text (Ollama)",
    Request::Fields(&[requests::OLLAMA_GENERATE]),
    &replies::OLLAMA_ANSWER,
)
.streams(LINES)
.fails_with(Failure::OllamaError);
static NOT_HERE: Operation = Operation::get("501, with the reason", Reply::Never);

/// All routes under the configured prefix.
pub(crate) fn router(app: Arc<App>) -> Router {
    if app.is_proxy() {
        return in_front_of_another(app);
    }
    let table = table(&app.config.api_prefix);
    let page_path = if table.prefix.is_empty() {
        "/".to_owned()
    } else {
        table.prefix.clone()
    };
    let router = table.router.route(
        &format!("{}/openapi.json", table.prefix),
        get(openapi::openapi),
    );
    let folder = app.config.static_path.as_ref().filter(|_| app.config.page);
    let router = match (folder, table.prefix.as_str()) {
        (Some(folder), "") => router.fallback_service(page::folder(folder)),
        (Some(folder), prefix) => router
            .nest_service(prefix, page::folder(folder))
            .fallback(front::not_found),
        (None, prefix) => router
            .route(&format!("{prefix}/ui/{{name}}"), get(page::asset))
            .route(&page_path, get(page::page))
            .fallback(front::not_found),
    };
    router
        .method_not_allowed_fallback(front::wrong_method)
        .with_state(app)
}

/// First parts of the routes' paths, behind the configured prefix.
pub(crate) fn first_parts() -> HashSet<String> {
    let first = |path: &str| {
        path.trim_start_matches('/')
            .split('/')
            .next()
            .map(str::to_owned)
    };
    let described = table("").described;
    let mut parts: HashSet<String> = described
        .iter()
        .filter_map(|(_, path, _)| first(path))
        .collect();
    parts.insert("openapi.json".to_owned());
    parts
}

/// State and counters are ours, everything else is the engine's.
fn in_front_of_another(app: Arc<App>) -> Router {
    let path = |route: &str| format!("{}{route}", app.config.api_prefix);
    Router::new()
        .route(&path("/health"), get(proxy::health))
        .route(&path("/v1/health"), get(proxy::health))
        .route(&path("/livez"), get(health::live))
        .route(&path("/readyz"), get(health::ready))
        .route(&path("/drain"), post(control::drain))
        .route(&path("/reload"), post(control::reload))
        .route(&path("/status"), get(status::status))
        .route(&path("/capacity"), get(capacity::capacity))
        .route(&path("/metrics"), get(proxy::metrics))
        .fallback(proxy::forward)
        .with_state(app)
}

/// The routes' description, as OpenAPI.
pub(crate) fn description(app: &App) -> Value {
    let table = table(&app.config.api_prefix);
    let needs_key = !app.config.api_keys.0.is_empty();
    openapi::document(&table.described, needs_key, &app.config.version)
}

#[rustfmt::skip]
fn table(prefix: &str) -> Table {
    let mut table = Table { prefix: prefix.to_owned(), router: Router::new(), described: Vec::new() }
        .get(&["/health", "/v1/health"], health::health, &HEALTH)
        .get(&["/livez"], health::live, &LIVE)
        .get(&["/readyz"], health::ready, &READY)
        .post(&["/drain"], control::drain, &DRAIN)
        .post(&["/reload"], control::reload, &RELOAD)
        .get(&["/metrics"], metrics::metrics, &METRICS)
        .get(&["/status"], status::status, &STATUS)
        .get(&["/capacity"], capacity::capacity, &CAPACITY)
        .get(&["/slots"], props::slots, &SLOTS)
        .post(&["/slots/{id}"], slots::act, &SLOT)
        .get(&["/models", "/v1/models"], props::models, &MODELS)
        .get(&["/models/{*name}", "/v1/models/{*name}"], props::model, &MODEL)
        .get(&["/props"], props::props, &PROPS)
        .post(&["/props"], props::set_props, &SET_PROPS)
        .get(&["/lora-adapters"], props::adapters, &ADAPTERS)
        .post(&["/lora-adapters"], props::set_adapters, &SET_ADAPTERS)
        .post(&["/completion", "/completions"], completion::native, &NATIVE)
        .post(&["/v1/completions"], completion::text, &TEXT)
        .post(&["/chat/completions", "/v1/chat/completions"], completion::chat, &CHAT)
        .post(&["/chat/completions/input_tokens", "/v1/chat/completions/input_tokens"], completion::input_tokens, &CHAT_TOKENS)
        .post(&["/responses", "/v1/responses"], responses::create, &RESPONSES)
        .post(&["/responses/input_tokens", "/v1/responses/input_tokens"], responses::input_tokens, &RESPONSES_TOKENS)
        .post(&["/v1/messages"], messages::create, &MESSAGES)
        .post(&["/v1/messages/count_tokens"], messages::count_tokens, &COUNT_TOKENS)
        .post(&["/v1/embeddings"], embeddings::openai, &EMBEDDINGS)
        .post(&["/embedding", "/embeddings"], embeddings::native, &EMBEDDING)
        .post(&["/apply-template"], completion::apply_template, &APPLY)
        .post(&["/tokenize"], tokens::tokenize, &TOKENIZE)
        .post(&["/detokenize"], tokens::detokenize, &DETOKENIZE)
        .get(&["/tokenizer_info"], tokens::info, &TOKENIZER)
        .get(&["/api/version"], ollama::version, &OLLAMA_VERSION)
        .get(&["/api/tags"], ollama::tags, &OLLAMA_TAGS)
        .get(&["/api/ps"], ollama::loaded, &OLLAMA_PS)
        .post(&["/api/show"], ollama::show, &OLLAMA_SHOW)
        .post(&["/api/embed"], ollama::embed, &OLLAMA_EMBED)
        .post(&["/api/chat"], ollama::chat, &OLLAMA_CHAT)
        .post(&["/api/generate"], ollama::generate, &OLLAMA_GENERATE);
    for (paths, why) in NOT_SUPPORTED {
        table = table.not_supported(paths, why);
    }
    table
}

struct Table {
    prefix: String,
    router: Router<Arc<App>>,
    described: Vec<Described>,
}

impl Table {
    fn get<H, T>(mut self, paths: &[&str], handler: H, operation: &'static Operation) -> Self
    where
        H: Handler<T, Arc<App>>,
        T: 'static,
    {
        for path in paths {
            let path = format!("{}{path}", self.prefix);
            self.router = self.router.route(&path, get(handler.clone()));
            self.described.push(("get", path, operation));
        }
        self
    }

    fn post<H, T>(mut self, paths: &[&str], handler: H, operation: &'static Operation) -> Self
    where
        H: Handler<T, Arc<App>>,
        T: 'static,
    {
        for path in paths {
            let path = format!("{}{path}", self.prefix);
            self.router = self.router.route(&path, post(handler.clone()));
            self.described.push(("post", path, operation));
        }
        self
    }

    fn not_supported(mut self, paths: &[&str], why: &'static str) -> Self {
        for path in paths {
            let path = format!("{}{path}", self.prefix);
            let answer = any(move || async move { ApiError::not_supported(why) });
            self.router = self.router.route(&path, answer);
            self.described.push(("post", path, &NOT_HERE));
        }
        self
    }
}
