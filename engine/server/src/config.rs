//! What the launcher decides about the HTTP side before a model is known. Plain data with llama-server's defaults.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use bitnet_model::protocol::{Pooling, SamplingParams};
use serde_json::{Map, Value};

/// Settings of the HTTP server.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Addresses as people write them, `127.0.0.1:8081`; for the log and the page only.
    pub addresses: Vec<String>,
    /// Version of the program, `0.1.0`.
    pub version: String,
    /// Build name for `/props`, `system_fingerprint` and `/metrics`; starts with `b`.
    pub build: String,
    /// Names the model answers to in `model`; empty: its path's file name.
    pub aliases: Vec<String>,
    /// Words that describe the model, for `/models`.
    pub tags: Vec<String>,
    /// Keys that open the API; empty: no authentication.
    pub api_keys: ApiKeys,
    /// `/models` and `/v1/models` need no key.
    pub public_models: bool,
    /// Most tokens per answer when the request does not say; `None`: until the context is full.
    pub max_tokens: Option<u32>,
    /// Most tokens per answer whatever the request says.
    pub max_tokens_cap: Option<u32>,
    /// Prompt tokens kept when the context is shifted; -1 = all.
    pub n_keep: i64,
    /// Sampling where the request does not say; `seed` is not read, see [`ServerConfig::seed`].
    pub sampling: SamplingParams,
    /// Seed where the request does not say; `None`: a fresh one each time.
    pub seed: Option<u32>,
    /// Stop strings where the request does not say.
    pub stop: Vec<String>,
    /// Reuse cached prefixes where the request does not say.
    pub cache_prompt: bool,
    /// Show the text of control tokens in answers.
    pub special: bool,
    /// A built-in template's name, or Jinja text, in place of the model's.
    pub chat_template: Option<String>,
    /// Variables added to every template.
    pub template_kwargs: Map<String, Value>,
    /// System message for chats that have none (llama-server's `-p`).
    pub system_message: Option<String>,
    /// A last message of the assistant is continued rather than answered.
    pub prefill_assistant: bool,
    /// Thoughts at the front of an answer, between `<think>` and `</think>`, go into `reasoning_content`.
    pub split_reasoning: bool,
    /// An answer's text is its content, thoughts and tool calls included.
    pub skip_chat_parsing: bool,
    /// How embeddings are made of the tokens' vectors where the request does not say; `None`: as the model's file says.
    pub pooling: Option<Pooling>,
    /// How embeddings are scaled where the request does not say, see `bitnet_model::pooling::normalize`.
    pub embd_normalize: i32,
    /// Folder of `/slots/:id?action=save|restore`; `None`: no slots are saved.
    pub slot_save_path: Option<PathBuf>,
    /// Cross-origin rules.
    pub cors: Cors,
    /// Put before every route, for example `/llm`; empty or starting with `/`, not ending with one.
    pub api_prefix: String,
    /// Answer tokens per second of a server that load balancers should give its full weight.
    pub full_speed_tok_s: f64,
    /// Serve `GET /slots`.
    pub slots_endpoint: bool,
    /// Serve `GET /metrics`.
    pub metrics_endpoint: bool,
    /// Serve `POST /props`.
    pub props_endpoint: bool,
    /// Serve the page at `/`.
    pub page: bool,
    /// Folder whose files are served in place of the page.
    pub static_path: Option<PathBuf>,
    /// Larger request bodies answer 413.
    pub body_limit_bytes: usize,
    /// Open connections at a time; a few more are answered, with the state only.
    pub max_connections: usize,
    /// A started request head must be complete within this time; a body must not pause for longer, and has this time
    /// beside that of a slow line.
    pub read_timeout: Duration,
    /// Before requests are refused at the end, balancers are told for this long and requests still taken.
    pub drain_notice: Duration,
    /// A connection without a request is closed after this time.
    pub idle_timeout: Duration,
    /// A client that takes no bytes for this long is gone.
    pub write_timeout: Duration,
    /// Silence in a stream before a comment line is sent; zero: never.
    pub sse_ping: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig {
            addresses: Vec::new(),
            version: env!("CARGO_PKG_VERSION").into(),
            build: concat!("b1-", env!("CARGO_PKG_VERSION")).into(),
            aliases: Vec::new(),
            tags: Vec::new(),
            api_keys: ApiKeys::default(),
            public_models: false,
            max_tokens: None,
            max_tokens_cap: None,
            n_keep: 0,
            sampling: SamplingParams::default(),
            seed: None,
            stop: Vec::new(),
            cache_prompt: true,
            special: false,
            chat_template: None,
            template_kwargs: Map::new(),
            system_message: None,
            prefill_assistant: true,
            split_reasoning: false,
            skip_chat_parsing: false,
            pooling: None,
            embd_normalize: 2,
            slot_save_path: None,
            cors: Cors::default(),
            api_prefix: String::new(),
            full_speed_tok_s: 100.0,
            slots_endpoint: true,
            metrics_endpoint: true,
            props_endpoint: false,
            page: true,
            static_path: None,
            body_limit_bytes: 64 << 20,
            max_connections: 512,
            read_timeout: Duration::from_secs(60),
            drain_notice: Duration::ZERO,
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(600),
            sse_ping: Duration::from_secs(30),
        }
    }
}

/// Secrets; `Debug` shows how many there are and nothing else.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ApiKeys(pub Vec<String>);

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

/// Which browsers' pages may call the API.
#[derive(Debug, Clone, Default)]
pub struct Cors {
    /// Origins that get an answer they can read; empty: any; the word `localhost`: pages of this machine.
    pub origins: Vec<String>,
    /// `Access-Control-Allow-Methods`; `None`: `GET, POST, DELETE, OPTIONS`.
    pub methods: Option<String>,
    /// `Access-Control-Allow-Headers`; `None`: those the browser asks for.
    pub headers: Option<String>,
    /// Leave out `Access-Control-Allow-Credentials`.
    pub no_credentials: bool,
}
