//! The generation routes: read the body, make the prompt, run, answer at once or as a stream.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request, State};
use axum::response::Response;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Map, Value};

use crate::app::App;
use crate::error::ApiError;
use crate::generate::{Run, Step};
use crate::model::Model;
use crate::reply;
use crate::request::{Dialect, Params, expected};
use crate::writer::Writer;
use crate::{chat, prompt, stream};

/// A request body, whatever its content type says, not parsed yet.
pub(crate) struct RawBody(pub(crate) Bytes);

impl FromRequest<Arc<App>> for RawBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let limit = app.config.body_limit_bytes;
        let announced = request
            .headers()
            .get("content-length")
            .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|bytes| bytes > limit as u64) {
            return Err(ApiError::body_too_large(limit));
        }
        let mut body = Limited::new(request.into_body(), limit);
        let mut bytes = Vec::with_capacity(announced.unwrap_or(0).min(1 << 20) as usize);
        loop {
            let frame = tokio::time::timeout(app.config.read_timeout, body.frame());
            match frame.await.map_err(|_| ApiError::body_timeout())? {
                None => return Ok(RawBody(bytes.into())),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        bytes.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) if error.is::<LengthLimitError>() => {
                    return Err(ApiError::body_too_large(limit));
                }
                Some(Err(error)) => {
                    return Err(ApiError::invalid(format!(
                        "the request body broke off: {error}"
                    )));
                }
            }
        }
    }
}

/// Some clients put it before their JSON.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

impl RawBody {
    /// The body as a JSON object.
    pub(crate) fn object(&self) -> Result<Map<String, Value>, ApiError> {
        let text = self.0.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&self.0);
        match serde_json::from_slice(text) {
            Ok(Value::Object(map)) => Ok(map),
            Ok(other) => Err(ApiError::invalid(format!(
                "the request body is no JSON object: {}",
                expected("an object", &other)
            ))),
            Err(error) => Err(ApiError::invalid(format!(
                "the request body is no JSON: {error}"
            ))),
        }
    }
}

/// `POST /completion`, `/completions`
pub(crate) async fn native(
    State(app): State<Arc<App>>,
    body: RawBody,
) -> Result<Response, ApiError> {
    answer(app, body, Dialect::Native).await
}

/// `POST /v1/completions`
pub(crate) async fn text(State(app): State<Arc<App>>, body: RawBody) -> Result<Response, ApiError> {
    answer(app, body, Dialect::Text).await
}

/// `POST /v1/chat/completions`, `/chat/completions`
pub(crate) async fn chat(State(app): State<Arc<App>>, body: RawBody) -> Result<Response, ApiError> {
    answer(app, body, Dialect::Chat).await
}

async fn answer(app: Arc<App>, body: RawBody, dialect: Dialect) -> Result<Response, ApiError> {
    let model = app.ready()?;
    let preparing = (Arc::clone(&app), Arc::clone(&model));
    let (params, prompts, mut writer) = app
        .prepare(move || {
            let (app, model) = preparing;
            let body = body.object()?;
            let params = Arc::new(Params::read(&body, dialect, &app.config, &model)?);
            let prompts = prompts(&body, dialect, &app, &model)?;
            params.check_choices(prompts.len())?;
            let writer = Writer::new(
                dialect,
                Arc::clone(&params),
                Arc::clone(&model),
                &app.config,
                &prompts,
            );
            Ok((params, prompts, writer))
        })
        .await?;
    let mut run = Run::start(app, model, Arc::clone(&params), prompts)?;
    if params.stream {
        return stream::respond(run, writer, &params).await;
    }
    let mut outcomes = Vec::new();
    while let Some(step) = run.next().await? {
        if let Step::End { index, outcome } = step {
            outcomes.push((index, *outcome));
        }
    }
    Ok(reply::ok(&writer.reply(outcomes)))
}

fn prompts(
    body: &Map<String, Value>,
    dialect: Dialect,
    app: &App,
    model: &Model,
) -> Result<Vec<Vec<u32>>, ApiError> {
    if dialect != Dialect::Chat {
        return prompt::read(body.get("prompt"), model);
    }
    let text = chat::prompt(body, &app.config, model)?;
    let tokens = model.tokenizer().encode(&text, true, true);
    Ok(vec![prompt::checked(tokens, model)?])
}

/// `POST /apply-template`: the prompt of a chat request, nothing generated.
pub(crate) async fn apply_template(
    State(app): State<Arc<App>>,
    body: RawBody,
) -> Result<Response, ApiError> {
    let model = app.ready()?;
    let preparing = Arc::clone(&app);
    let text = app
        .prepare(move || chat::prompt(&body.object()?, &preparing.config, &model))
        .await?;
    Ok(reply::ok(&serde_json::json!({ "prompt": text })))
}

/// A body that is a stream of bytes.
pub(crate) fn stream_body<S>(frames: S) -> Body
where
    S: futures_core::Stream<Item = Result<Bytes, std::convert::Infallible>> + Send + 'static,
{
    Body::from_stream(frames)
}
