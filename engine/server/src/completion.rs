//! The generation routes: read the body, make the prompt, run, answer at once or as a stream.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::body::RawBody;
use crate::chat::Chat;
use crate::constraint;
use crate::error::ApiError;
use crate::generate::{Run, Step};
use crate::model::Model;
use crate::parts::Look;
use crate::request::{Dialect, Params};
use crate::schema::{self, requests};
use crate::writer::{AnswerWriter, Writer};
use crate::{chat, prompt, reply, stream};

/// A request, read: what to run, and who writes the answers.
pub(crate) struct Asked {
    pub(crate) params: Arc<Params>,
    pub(crate) prompts: Vec<Vec<u32>>,
    pub(crate) writer: Box<dyn AnswerWriter>,
}

/// Reads a body in one dialect.
pub(crate) type Reader = fn(&Map<String, Value>, &Arc<Model>) -> Result<Asked, ApiError>;

/// `POST /completion`, `/completions`
pub(crate) async fn native(
    State(app): State<Arc<App>>,
    body: RawBody,
) -> Result<Response, ApiError> {
    answer(app, body, |body, model| {
        read_text(body, Dialect::Native, model)
    })
    .await
}

/// `POST /v1/completions`
pub(crate) async fn text(State(app): State<Arc<App>>, body: RawBody) -> Result<Response, ApiError> {
    answer(app, body, |body, model| {
        read_text(body, Dialect::Text, model)
    })
    .await
}

/// `POST /v1/chat/completions`, `/chat/completions`
pub(crate) async fn chat(State(app): State<Arc<App>>, body: RawBody) -> Result<Response, ApiError> {
    answer(app, body, |body, model| {
        let AskedChat {
            params,
            prompts,
            look,
            ..
        } = read_chat(body, model)?;
        let writer = Writer::new(
            Dialect::Chat,
            Arc::clone(&params),
            Arc::clone(model),
            &model.config,
            &prompts,
            look,
        );
        Ok(Asked {
            params,
            prompts,
            writer: Box::new(writer),
        })
    })
    .await
}

/// Reads, runs, and answers at once or as a stream.
pub(crate) async fn answer(
    app: Arc<App>,
    body: RawBody,
    read: Reader,
) -> Result<Response, ApiError> {
    let model = app.ready()?;
    let preparing = Arc::clone(&model);
    let Asked {
        params,
        prompts,
        mut writer,
    } = app
        .prepare(move || {
            let asked = read(&body.object()?, &preparing)?;
            asked.params.check_choices(asked.prompts.len())?;
            Ok(asked)
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

fn read_text(
    body: &Map<String, Value>,
    dialect: Dialect,
    model: &Arc<Model>,
) -> Result<Asked, ApiError> {
    schema::check(body, requests::PROMPT)?;
    let params = Arc::new(Params::read(body, dialect, &model.config, model)?);
    let prompts = prompt::read(body.get("prompt"), model)?;
    let writer = Writer::new(
        dialect,
        Arc::clone(&params),
        Arc::clone(model),
        &model.config,
        &prompts,
        Look::default(),
    );
    Ok(Asked {
        params,
        prompts,
        writer: Box::new(writer),
    })
}

/// A chat request, ready to run.
pub(crate) struct AskedChat {
    pub(crate) params: Arc<Params>,
    pub(crate) prompts: Vec<Vec<u32>>,
    pub(crate) look: Look,
}

/// Reads a body in the form of `/v1/chat/completions`; the other chat dialects are translated into it.
pub(crate) fn read_chat(body: &Map<String, Value>, model: &Model) -> Result<AskedChat, ApiError> {
    let mut params = Params::read(body, Dialect::Chat, &model.config, model)?;
    let Chat {
        prompt,
        tools,
        look,
    } = chat::read(body, &model.config, model)?;
    if let Some(tools) = &tools {
        params.sampling.grammar = Some(constraint::with_tools(body, tools, model)?);
    }
    let tokens = model.tokenizer().encode(&prompt, true, true);
    Ok(AskedChat {
        params: Arc::new(params),
        prompts: vec![prompt::checked(tokens, model)?],
        look,
    })
}

/// `POST /v1/chat/completions/input_tokens`: the length of a chat's prompt.
pub(crate) async fn input_tokens(
    State(app): State<Arc<App>>,
    body: RawBody,
) -> Result<Response, ApiError> {
    let n = count(app, body, |body| Ok(body.clone())).await?;
    Ok(reply::ok(
        &json!({ "object": "response.input_tokens", "input_tokens": n }),
    ))
}

/// Brings a body into the form of `/v1/chat/completions`.
pub(crate) type Translate = fn(&Map<String, Value>) -> Result<Map<String, Value>, ApiError>;

/// Prompt tokens of a body that `translate` brings into the form of `/v1/chat/completions`.
pub(crate) async fn count(
    app: Arc<App>,
    body: RawBody,
    translate: Translate,
) -> Result<usize, ApiError> {
    let model = app.ready()?;
    app.prepare(move || {
        let body = translate(&body.object()?)?;
        let chat = chat::read(&body, &model.config, &model)?;
        Ok(model.tokenizer().encode(&chat.prompt, true, true).len())
    })
    .await
}

/// `POST /apply-template`: the prompt of a chat request, nothing generated.
pub(crate) async fn apply_template(
    State(app): State<Arc<App>>,
    body: RawBody,
) -> Result<Response, ApiError> {
    let model = app.ready()?;
    let text = app
        .prepare(move || Ok(chat::read(&body.object()?, &model.config, &model)?.prompt))
        .await?;
    Ok(reply::ok(&json!({ "prompt": text })))
}

/// A body that is a stream of bytes.
pub(crate) fn stream_body<S>(frames: S) -> Body
where
    S: futures_core::Stream<Item = Result<Bytes, std::convert::Infallible>> + Send + 'static,
{
    Body::from_stream(frames)
}
