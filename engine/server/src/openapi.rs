//! `GET /openapi.json`: the routes as OpenAPI 3.1, made of the router's own list and the tables that check requests.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::reply as json_reply;
use crate::sampling::number_schemas;
use crate::schema::{Field, Kind, object_schema, replies};

/// What a route takes and gives.
pub(crate) struct Operation {
    pub(crate) summary: &'static str,
    pub(crate) request: Request,
    pub(crate) reply: Reply,
    /// Parameters behind the question mark, and their values; none: any.
    pub(crate) query: &'static [(&'static str, &'static [&'static str])],
    /// Content type of the answer to `"stream": true`.
    pub(crate) stream: Option<&'static str>,
    pub(crate) error: Failure,
}

/// The form of a route's errors.
#[derive(Clone, Copy)]
pub(crate) enum Failure {
    Error,
    OllamaError,
}

impl Failure {
    fn name(self) -> &'static str {
        match self {
            Failure::Error => "Error",
            Failure::OllamaError => "OllamaError",
        }
    }
}

/// A request's body.
pub(crate) enum Request {
    /// None, or one nobody reads.
    None,
    /// The fields of these tables.
    Fields(&'static [&'static [Field]]),
    /// The same, and the sampling numbers.
    Sampling(&'static [&'static [Field]]),
    Json(&'static Kind),
}

/// A reply's body.
pub(crate) enum Reply {
    Json(&'static Kind),
    /// Of this content type.
    Text(&'static str),
    /// None but errors.
    Never,
}

impl Operation {
    pub(crate) const fn get(summary: &'static str, reply: Reply) -> Self {
        Operation {
            summary,
            request: Request::None,
            reply,
            query: &[],
            stream: None,
            error: Failure::Error,
        }
    }

    pub(crate) const fn post(
        summary: &'static str,
        request: Request,
        reply: &'static Kind,
    ) -> Self {
        Operation {
            request,
            ..Operation::get(summary, Reply::Json(reply))
        }
    }

    pub(crate) const fn streams(self, content_type: &'static str) -> Self {
        Operation {
            stream: Some(content_type),
            ..self
        }
    }

    pub(crate) const fn query(
        self,
        query: &'static [(&'static str, &'static [&'static str])],
    ) -> Self {
        Operation { query, ..self }
    }

    pub(crate) const fn fails_with(self, error: Failure) -> Self {
        Operation { error, ..self }
    }
}

/// A route of the router: `get` or `post`, and its path in axum's notation.
pub(crate) type Described = (&'static str, String, &'static Operation);

/// The description of these routes.
pub(crate) fn document(routes: &[Described], needs_key: bool, version: &str) -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for (method, path, operation) in routes {
        let path = path.replace("{*", "{");
        let entry = paths.entry(path.clone()).or_insert_with(|| json!({}));
        entry[*method] = describe(method, &path, operation);
    }
    let mut out = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "bitnet-launch",
            "version": version,
            "description": "BitNet b1.58 models on CPUs, behind llama-server's, OpenAI's, Anthropic's and Ollama's routes. \
    Bodies are JSON whatever their content type; unknown fields are ignored, `null` is the same as absent.",
        },
        "paths": paths,
        "components": {
            "schemas": {
                "Error": replies::ERROR.json_schema(),
                "OllamaError": replies::OLLAMA_ERROR.json_schema(),
                "Sampling": { "type": "object", "properties": number_schemas() },
            },
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer" },
                "header": { "type": "apiKey", "in": "header", "name": "X-Api-Key" },
            },
        },
    });
    if needs_key {
        out["security"] = json!([{ "bearer": [] }, { "header": [] }]);
    }
    out
}

fn describe(method: &str, path: &str, operation: &Operation) -> Value {
    let name: String = path
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|part| !part.is_empty())
        .fold(method.to_owned(), |name, part| format!("{name}_{part}"));
    let error = operation.error.name();
    let error = json!({
        "description": "see `error.message`",
        "content": { "application/json": { "schema": { "$ref": format!("#/components/schemas/{error}") } } },
    });
    let mut responses = json!({ "4XX": error, "5XX": error });
    if let Some(reply) = reply(operation) {
        responses["200"] = reply;
    }
    let mut out =
        json!({ "operationId": name, "summary": operation.summary, "responses": responses });
    if let Some(schema) = body(&operation.request) {
        out["requestBody"] =
            json!({ "required": true, "content": { "application/json": { "schema": schema } } });
    }
    let parameters = parameters(path, operation);
    if !parameters.is_empty() {
        out["parameters"] = json!(parameters);
    }
    out
}

fn body(request: &Request) -> Option<Value> {
    let joined = |tables: &[&[Field]]| {
        let fields: Vec<Field> = tables
            .iter()
            .flat_map(|table| table.iter().copied())
            .collect();
        object_schema(&fields)
    };
    match request {
        Request::None => None,
        Request::Json(kind) => Some(kind.json_schema()),
        Request::Fields(tables) => Some(joined(tables)),
        Request::Sampling(tables) => {
            Some(json!({ "allOf": [joined(tables), { "$ref": "#/components/schemas/Sampling" }] }))
        }
    }
}

fn reply(operation: &Operation) -> Option<Value> {
    let mut content = match &operation.reply {
        Reply::Json(kind) => json!({ "application/json": { "schema": kind.json_schema() } }),
        Reply::Text(content_type) => json!({ *content_type: { "schema": { "type": "string" } } }),
        Reply::Never => return None,
    };
    if let Some(content_type) = operation.stream {
        content[content_type] = json!({ "schema": { "type": "string" } });
    }
    Some(json!({ "description": "done", "content": content }))
}

fn parameters(path: &str, operation: &Operation) -> Vec<Value> {
    let in_path = path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let in_path = in_path.map(|name| {
        let schema = json!({ "type": "string" });
        json!({ "name": name, "in": "path", "required": true, "schema": schema })
    });
    let in_query = operation.query.iter().map(|(name, words)| {
        let schema = match words.is_empty() {
            true => json!({ "type": "string" }),
            false => json!({ "type": "string", "enum": words }),
        };
        json!({ "name": name, "in": "query", "required": !words.is_empty(), "schema": schema })
    });
    in_path.chain(in_query).collect()
}

/// `GET /openapi.json`
pub(crate) async fn openapi(State(app): State<Arc<App>>) -> Response {
    json_reply::ok(app.openapi.get_or_init(|| crate::routes::description(&app)))
}
