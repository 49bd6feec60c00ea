//! `POST /v1/embeddings` in OpenAI's form, `/embedding` and `/embeddings` in llama-server's, `/api/embed` in Ollama's. They work
//! beside generations, on the same server.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::response::Response;
use bitnet_model::pooling;
use bitnet_model::protocol::{Finish, Pooling};
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::backend::{BackendState, EmbedJob, JobEvent, JobHandle, Refused};
use crate::body::RawBody;
use crate::error::ApiError;
use crate::model::Model;
use crate::prompt;
use crate::reply;
use crate::request::{Fields, expected};
use crate::schema::{self, requests};

/// Texts one request may ask for.
const MAX_INPUTS: usize = 2048;

/// The vectors of one text: one, or with pooling `none` one per token.
type Vectors = Vec<Vec<f32>>;

/// What a client asks for.
struct Asked {
    inputs: Vec<Vec<u32>>,
    pooling: Option<Pooling>,
    /// See [`pooling::normalize`].
    normalize: i32,
    base64: bool,
    form: Form,
}

/// How the answer looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    OpenAi,
    /// llama-server's.
    Native,
    Ollama,
}

/// `POST /v1/embeddings`
pub(crate) async fn openai(
    State(app): State<Arc<App>>,
    body: RawBody,
) -> Result<Response, ApiError> {
    embed(app, body, Form::OpenAi).await
}

/// `POST /embedding`, `/embeddings`
pub(crate) async fn native(
    State(app): State<Arc<App>>,
    body: RawBody,
) -> Result<Response, ApiError> {
    embed(app, body, Form::Native).await
}

/// Embeds what the body asks for.
pub(crate) async fn embed(app: Arc<App>, body: RawBody, form: Form) -> Result<Response, ApiError> {
    let began = Instant::now();
    let model = app.ready()?;
    let preparing = Arc::clone(&model);
    let asked = app
        .prepare(move || Asked::read(&body.object()?, &preparing, form))
        .await?;
    let vectors = run(&app, &model, &asked).await?;
    app.metrics
        .embedded(asked.inputs.iter().map(Vec::len).sum());
    let answer = move || Ok(asked.reply(vectors, &model, began));
    Ok(reply::ok(&app.prepare(answer).await?))
}

impl Asked {
    fn read(body: &Map<String, Value>, model: &Model, form: Form) -> Result<Self, ApiError> {
        schema::check(
            body,
            match form {
                Form::Ollama => requests::OLLAMA_EMBED,
                Form::OpenAi | Form::Native => requests::EMBEDDINGS,
            },
        )?;
        let fields = Fields(body);
        let Some((name, input)) = fields.get(&["input", "content"]) else {
            return Err(ApiError::field("input", "is missing"));
        };
        // The older name asks for the older form.
        let form = match name {
            "content" => Form::Native,
            _ => form,
        };
        let base64 = match fields.get(&["encoding_format"]) {
            None => false,
            Some((_, Value::String(format))) if format == "float" => false,
            Some((_, Value::String(format))) if format == "base64" => true,
            Some((name, _)) => {
                return Err(ApiError::field(name, "expected `float` or `base64`"));
            }
        };
        let pooling = match fields.get(&["pooling"]) {
            None => model.config.pooling,
            Some((_, Value::String(name))) => Some(pooling_named(name)?),
            Some((name, other)) => return Err(ApiError::field(name, expected("a string", other))),
        };
        if pooling == Some(Pooling::None) && form != Form::Native {
            let problem =
                "`none` gives a vector per token, which this form can't hold; use `/embedding`";
            return Err(ApiError::field("pooling", problem));
        }
        let normalize = fields
            .int(&["embd_normalize"], -1, i64::from(i32::MAX))?
            .map_or(model.config.embd_normalize, |kind| kind as i32);
        let cuts = form == Form::Ollama && fields.bool("truncate")?.unwrap_or(true);
        let inputs = prompt::read_texts(name, input, model, cuts)?;
        if inputs.len() > MAX_INPUTS {
            let problem = format!(
                "found {} texts, expected at most {MAX_INPUTS}",
                inputs.len()
            );
            return Err(ApiError::field(name, problem));
        }
        Ok(Asked {
            inputs,
            pooling,
            normalize,
            base64,
            form,
        })
    }

    fn reply(&self, vectors: Vec<Vectors>, model: &Model, began: Instant) -> Value {
        let n_tokens: usize = self.inputs.iter().map(Vec::len).sum();
        let scaled = |mut vectors: Vectors| {
            for vector in &mut vectors {
                pooling::normalize(vector, self.normalize);
            }
            vectors
        };
        let shown = |vector: &Vec<f32>| match self.base64 {
            true => json!(base64(vector)),
            false => numbers(vector),
        };
        if self.form == Form::Ollama {
            let one = |vectors: Vectors| scaled(vectors).first().map(shown);
            return json!({
                "model": model.id,
                "embeddings": vectors.into_iter().filter_map(one).collect::<Vec<_>>(),
                "total_duration": began.elapsed().as_nanos() as u64,
                "load_duration": 0,
                "prompt_eval_count": n_tokens,
            });
        }
        if self.form == Form::Native {
            let entry = |(index, vectors): (usize, Vectors)| {
                let shown: Vec<Value> = scaled(vectors).iter().map(shown).collect();
                json!({ "index": index, "embedding": shown })
            };
            return vectors.into_iter().enumerate().map(entry).collect();
        }
        let entry = |(index, vectors): (usize, Vectors)| {
            let first = scaled(vectors).into_iter().next().unwrap_or_default();
            let mut entry = reply::object(
                json!({ "embedding": shown(&first), "index": index, "object": "embedding" }),
            );
            if self.base64 {
                entry.insert("encoding_format".into(), json!("base64"));
            }
            Value::Object(entry)
        };
        json!({
            "model": model.id,
            "object": "list",
            "usage": { "prompt_tokens": n_tokens, "total_tokens": n_tokens },
            "data": vectors.into_iter().enumerate().map(entry).collect::<Vec<_>>(),
        })
    }
}

/// A way of pooling by llama-server's name.
fn pooling_named(name: &str) -> Result<Pooling, ApiError> {
    match name {
        "none" => Ok(Pooling::None),
        "mean" => Ok(Pooling::Mean),
        "cls" => Ok(Pooling::Cls),
        "last" => Ok(Pooling::Last),
        other => Err(ApiError::field(
            "pooling",
            format!("found `{other}`, expected `none`, `mean`, `cls` or `last`"),
        )),
    }
}

/// Embeds all texts, as many at a time as there are slots. Dropping it cancels them.
async fn run(app: &Arc<App>, model: &Model, asked: &Asked) -> Result<Vec<Vectors>, ApiError> {
    let _generation = app.begin_generation();
    let mut waiting = asked.inputs.iter();
    let mut next = waiting.next();
    let mut running: VecDeque<JobHandle> = VecDeque::new();
    let mut done = Vec::new();
    loop {
        while let Some(tokens) = next
            && running.len() < model.card.slots.max(1)
        {
            let job = EmbedJob {
                tokens: tokens.clone(),
                pooling: asked.pooling,
                slot: None,
                tenure: model.card.tenure.number(),
            };
            match app.backend.embed(job) {
                Ok(handle) => {
                    running.push_back(handle);
                    next = waiting.next();
                }
                // Room comes when one of ours is done.
                Err(Refused::QueueFull(_)) if !running.is_empty() => break,
                Err(refused) => return Err(refused.into()),
            }
        }
        let Some(mut handle) = running.pop_front() else {
            return Ok(done);
        };
        let phase = app.phase();
        done.push(tokio::select! {
            vectors = vectors_of(&mut handle) => vectors?,
            () = App::until_cut_off(phase) => return Err(BackendState::Draining.into()),
        });
    }
}

/// Waits for the end of one text.
async fn vectors_of(handle: &mut JobHandle) -> Result<Vectors, ApiError> {
    let mut all = Vec::new();
    while let Some(event) = handle.events.recv().await {
        match event {
            JobEvent::PromptProbs { .. } => {}
            JobEvent::Embedding { vectors } => all.extend(vectors),
            JobEvent::Prefill { .. } | JobEvent::Token { .. } => {}
            JobEvent::Done { finish, .. } => match finish {
                Finish::Refused(message) | Finish::Error(message) => {
                    return Err(ApiError::server(message));
                }
                Finish::Cancelled => return Err(ApiError::unavailable("the work was cancelled")),
                Finish::Unserved(why) => return Err(ApiError::unavailable(why)),
                Finish::Eos | Finish::Limit | Finish::ContextFull if all.is_empty() => {
                    return Err(ApiError::server("the engine gave no embedding"));
                }
                Finish::Eos | Finish::Limit | Finish::ContextFull => return Ok(all),
            },
        }
    }
    Err(ApiError::server("the engine gave the embedding up"))
}

/// In as many digits as an f32 needs.
fn numbers(vector: &[f32]) -> Value {
    let short = |x: &f32| x.to_string().parse::<f64>().unwrap_or_default();
    vector.iter().map(|x| json!(short(x))).collect()
}

/// The numbers' bytes, little-endian, in base64 with padding (RFC 4648, section 4).
fn base64(vector: &[f32]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |i: usize| u32::from(group.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            out.push(match i <= group.len() {
                true => char::from(DIGITS[(bits >> (18 - 6 * i) & 63) as usize]),
                false => '=',
            });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_in_base64() {
        for (vector, expected) in [
            (&[][..], ""),
            (&[1.0], "AACAPw=="),
            (&[1.0, -2.5], "AACAPwAAIMA="),
            (&[1.0, -2.5, 0.1], "AACAPwAAIMDNzMw9"),
        ] {
            assert_eq!(base64(vector), expected);
        }
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(numbers(&[0.1, -1e-7, 3.0]).to_string(), "[0.1,-1e-7,3.0]");
    }
}
