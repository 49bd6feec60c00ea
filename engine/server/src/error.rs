//! The error object every route answers with: `{"error":{"code":N,"message":"..","type":".."}}`, llama-server's and OpenAI's shape.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use crate::backend::{BackendState, Refused};
use crate::reply::json_response;

/// Seconds a client is asked to wait before it tries again, for 429 and 503.
const RETRY_AFTER_S: &str = "1";

/// An answer that is not a result.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    /// HTTP status, repeated as `code` in the body.
    pub status: StatusCode,
    /// `type` in the body.
    pub kind: &'static str,
    /// One line for the person who wrote the request.
    pub message: String,
    /// Further keys of the error object.
    pub extra: Map<String, Value>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        ApiError {
            status,
            kind,
            message: message.into(),
            extra: Map::new(),
        }
    }

    /// The same with another key in the error object.
    pub(crate) fn with(mut self, key: &str, value: Value) -> Self {
        self.extra.insert(key.to_owned(), value);
        self
    }

    /// 409: what was asked for can't be done as things stand; nothing has changed.
    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict_error", message)
    }

    /// 400: the request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// 400: plain HTTP on a port for HTTPS.
    pub fn tls_only() -> Self {
        Self::invalid("this port speaks TLS only; use https:// in place of http://")
    }

    /// 400 about one field, in llama-server's words.
    pub fn field(name: &str, problem: impl std::fmt::Display) -> Self {
        Self::invalid(format!("Field '{name}': {problem}"))
    }

    /// 400: the field asks for something this server can't do, and ignoring it would change the result.
    pub fn unsupported_field(name: &str, why: &str) -> Self {
        Self::field(name, format!("not supported: {why}"))
    }

    /// 400: the prompt does not fit.
    pub fn exceeds_context(n_prompt_tokens: usize, n_ctx: usize) -> Self {
        let message = format!(
            "request ({n_prompt_tokens} tokens) exceeds the available context size ({n_ctx} tokens), try increasing it"
        );
        let mut error = Self::new(
            StatusCode::BAD_REQUEST,
            "exceed_context_size_error",
            message,
        );
        error
            .extra
            .insert("n_prompt_tokens".into(), json!(n_prompt_tokens));
        error.extra.insert("n_ctx".into(), json!(n_ctx));
        error
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "authentication_error",
            "Invalid API Key",
        )
    }

    /// 403.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", message)
    }

    /// 404 for a path nobody serves.
    pub fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found_error", "File Not Found")
    }

    /// 404 for a model that is not the one served.
    pub fn no_model(name: &str, served: &str) -> Self {
        let message = format!("no model `{name}`, this server has `{served}`");
        Self::new(StatusCode::NOT_FOUND, "not_found_error", message)
    }

    /// 405 for a path that is served for other methods.
    pub fn method_not_allowed(method: &str, path: &str) -> Self {
        let message = format!("`{method}` is not allowed on `{path}`");
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "invalid_request_error",
            message,
        )
    }

    /// 408: the body stopped coming.
    pub fn body_timeout() -> Self {
        let message = "the request body stopped arriving before its end";
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "invalid_request_error",
            message,
        )
    }

    /// 413.
    pub fn body_too_large(limit_bytes: usize) -> Self {
        let message = format!("the request body is larger than {limit_bytes} bytes");
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "invalid_request_error",
            message,
        )
    }

    /// 414.
    pub fn uri_too_long(limit_bytes: usize) -> Self {
        let message = format!("the address is longer than {limit_bytes} bytes");
        Self::new(StatusCode::URI_TOO_LONG, "invalid_request_error", message)
    }

    /// 429: the queue is full.
    pub fn queue_full(bound: usize) -> Self {
        let message = format!("the queue is full ({bound} requests are waiting), try again later");
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
    }

    /// 500.
    pub fn server(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// 501: the route or the feature is not there, or switched off.
    pub fn not_supported(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, "not_supported_error", message)
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable_error",
            message,
        )
    }

    /// 503: no connection more can be served.
    pub fn too_many_connections() -> Self {
        Self::unavailable("too many connections")
    }

    /// 503 while the model loads, in the words every supervisor waits for.
    pub fn loading() -> Self {
        Self::unavailable("Loading model")
    }

    /// The body: `{"error":{..}}`.
    pub fn body(&self) -> Value {
        let mut error = Map::new();
        error.insert("code".into(), json!(self.status.as_u16()));
        error.insert("message".into(), json!(self.message));
        error.insert("type".into(), json!(self.kind));
        error.extend(self.extra.clone());
        json!({ "error": error })
    }
}

impl From<BackendState> for ApiError {
    fn from(state: BackendState) -> Self {
        match state {
            BackendState::Loading | BackendState::Ready => Self::loading(),
            BackendState::Draining => Self::unavailable("draining: the server is shutting down"),
            BackendState::Failed(reason) => {
                Self::unavailable(format!("the engine can't be started: {reason}"))
            }
        }
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NotReady(state) => state.into(),
            Refused::QueueFull(bound) => Self::queue_full(bound),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status, &self.body());
        let retry = [
            StatusCode::TOO_MANY_REQUESTS,
            StatusCode::SERVICE_UNAVAILABLE,
        ];
        if retry.contains(&self.status) {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_S));
        }
        response
    }
}
