//! llama-server's and OpenAI's HTTP API over a [`backend::Backend`]. Async lives here and nowhere else.
//!
//! [`App::new`] with settings and a backend, [`serve`] on a listening socket at once, [`App::set_model`] when the model's
//! header is read and the plan made, [`App::drain`] to end. Until the model is set and the backend ready, every route
//! answers 503 `Loading model`. [`App::in_front_of`] makes one that hands requests on to another server, see [`proxy`].

mod agent;
mod app;
mod auth;
pub mod backend;
mod body;
mod capacity;
mod chat;
mod clock;
mod completion;
mod config;
mod constraint;
mod control;
mod embeddings;
mod error;
mod front;
mod generate;
mod health;
mod messages;
mod metrics;
mod model;
mod ollama;
mod openapi;
mod page;
mod parts;
mod prompt;
mod props;
pub mod proxy;
mod reply;
mod request;
mod responses;
mod routes;
mod sampling;
mod schema;
mod serve;
mod slots;
pub mod status;
mod stop;
mod stream;
mod template;
mod timeout;
mod tls;
mod tokens;
mod tools;
mod trace;
mod values;
mod visited;
mod writer;

pub use agent::serve_agent;
pub use app::App;
pub use config::{ApiKeys, Cors, ServerConfig};
pub use control::{Control, Reloaded};
pub use error::ApiError;
pub use model::{ModelCard, Staged};
pub use serve::{Listener, serve};
pub use template::{ChatTemplate, TemplateError, TemplateFacts, TemplateSource, builtin_names};
pub use tls::{Tls, TlsError};
