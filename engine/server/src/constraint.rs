//! What an answer must look like: `grammar`, `json_schema` and `response_format`.

use bitnet_model::grammar::{self, GrammarError};
use bitnet_model::protocol::{Grammar, GrammarText, Triggers};
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::model::Model;
use crate::request::{Fields, expected};
use crate::tools::{ToolUse, tool_grammar};

/// How llama-server marks Lark text among grammars.
const LARK: &str = "%llguidance";
/// Token triggers, and text ones.
const MAX_TRIGGERS: usize = 256;

/// What a request says about the form of its answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Asked {
    /// Not a word: the server's default holds.
    Nothing,
    /// That there is none.
    Free,
    /// This; with the field that says so.
    Bound(&'static str, Grammar),
}

/// Reads the three fields; at most one of them may ask for something.
///
/// # Errors
/// 400 naming the field.
pub(crate) fn read(fields: &Fields<'_>) -> Result<Asked, ApiError> {
    let sources = [
        read_grammar(fields)?,
        read_schema(fields)?,
        read_format(fields)?,
    ];
    let mut bound = sources.iter().filter_map(|asked| match asked {
        Asked::Bound(name, _) => Some(*name),
        _ => None,
    });
    if let (Some(first), Some(second)) = (bound.next(), bound.next()) {
        return Err(ApiError::field(second, format!("excludes `{first}`")));
    }
    let is_free = sources.contains(&Asked::Free);
    let bound = sources
        .into_iter()
        .find(|asked| matches!(asked, Asked::Bound(..)));
    Ok(match bound {
        Some(bound) => bound,
        None if is_free => Asked::Free,
        None => Asked::Nothing,
    })
}

/// Refuses what can't be followed, before anything is queued.
///
/// # Errors
/// 400 naming the field, with the place in the text where there is one.
pub(crate) fn check(name: &str, grammar: &Grammar, model: &Model) -> Result<(), ApiError> {
    grammar::check(grammar, || model.vocabulary()).map_err(|error| match error {
        GrammarError::Vocabulary(_) => ApiError::server(error.to_string()),
        error => ApiError::field(name, error.to_string()),
    })
}

/// The grammar of an answer that may call tools. A schema holds for what is no call; a grammar of the client's own would
/// contradict it.
///
/// # Errors
/// 400 naming the field.
pub(crate) fn with_tools(
    body: &Map<String, Value>,
    tools: &ToolUse,
    model: &Model,
) -> Result<Grammar, ApiError> {
    let schema: Option<Value> = match read(&Fields(body))? {
        Asked::Bound(name, grammar) => match grammar.text {
            GrammarText::JsonSchema(text) => serde_json::from_str(&text).ok(),
            _ => return Err(ApiError::field(name, "excludes `tools`")),
        },
        _ => None,
    };
    let grammar = tool_grammar(tools, schema.as_ref());
    check("tools", &grammar, model)?;
    Ok(grammar)
}

/// GBNF, or Lark behind its mark.
pub(crate) fn text_of(text: &str) -> GrammarText {
    match text.trim_start().starts_with(LARK) {
        true => GrammarText::Lark(text.to_owned()),
        false => GrammarText::Gbnf(text.to_owned()),
    }
}

fn read_grammar(fields: &Fields<'_>) -> Result<Asked, ApiError> {
    let text = match fields.get(&["grammar"]) {
        None => return Ok(Asked::Nothing),
        Some((_, Value::String(text))) if text.trim().is_empty() => return Ok(Asked::Free),
        Some((_, Value::String(text))) => text,
        Some((name, other)) => return Err(ApiError::field(name, expected("a string", other))),
    };
    let grammar = Grammar {
        text: text_of(text),
        triggers: match fields.bool("grammar_lazy")? {
            Some(true) => Some(read_triggers(fields)?),
            _ => None,
        },
    };
    Ok(Asked::Bound("grammar", grammar))
}

/// Strings, or llama-server's objects: `type` 0 a token, 1 a word; patterns are not understood.
fn read_triggers(fields: &Fields<'_>) -> Result<Triggers, ApiError> {
    let name = "grammar_triggers";
    let items = fields.array(name)?.map(Vec::as_slice).unwrap_or_default();
    if items.is_empty() || items.len() > MAX_TRIGGERS {
        let problem = format!("`grammar_lazy` needs 1 to {MAX_TRIGGERS} of them");
        return Err(ApiError::field(name, problem));
    }
    let mut triggers = Triggers::default();
    for item in items {
        let token = item["token"].as_u64().and_then(|id| u32::try_from(id).ok());
        match (item, item["type"].as_u64(), item["value"].as_str(), token) {
            (Value::String(word), ..) => triggers.words.push(word.clone()),
            (_, Some(0), _, Some(token)) => triggers.tokens.push(token),
            (_, Some(1), Some(word), _) => triggers.words.push(word.to_owned()),
            _ => {
                let problem = "expected words, `{\"type\": 1, \"value\": word}` or `{\"type\": 0, \"token\": id}`";
                return Err(ApiError::field(name, problem));
            }
        }
    }
    Ok(triggers)
}

fn read_schema(fields: &Fields<'_>) -> Result<Asked, ApiError> {
    match fields.get(&["json_schema"]) {
        None => Ok(Asked::Nothing),
        Some((_, Value::String(text))) if text.is_empty() => Ok(Asked::Free),
        Some((name, schema)) => bound("json_schema", name, schema),
    }
}

/// OpenAI's: `text`, `json_object` (llama-server: with a `schema`), `json_schema`.
fn read_format(fields: &Fields<'_>) -> Result<Asked, ApiError> {
    let Some(format) = fields.object("response_format")? else {
        return Ok(Asked::Nothing);
    };
    let name = "response_format";
    let of = |value: &Value| bound(name, name, value);
    match format.get("type") {
        None | Some(Value::Null) => Ok(Asked::Nothing),
        Some(Value::String(kind)) => match kind.as_str() {
            "text" => Ok(Asked::Nothing),
            "json_object" => match format.get("schema") {
                None | Some(Value::Null) => of(&json!({ "type": "object" })),
                Some(schema) => of(schema),
            },
            "json_schema" => {
                let nested = format.get("json_schema").and_then(|it| it.get("schema"));
                match nested.or_else(|| format.get("schema")) {
                    Some(schema) => of(schema),
                    None => Err(ApiError::field(name, "`json_schema.schema` is missing")),
                }
            }
            other => {
                let problem =
                    format!("found `{other}`, expected `text`, `json_object` or `json_schema`");
                Err(ApiError::field(name, problem))
            }
        },
        Some(other) => Err(ApiError::field(
            name,
            expected("`type` to be a string", other),
        )),
    }
}

fn bound(name: &'static str, shown: &str, schema: &Value) -> Result<Asked, ApiError> {
    match schema {
        Value::Object(_) | Value::Bool(true) => Ok(Asked::Bound(
            name,
            Grammar {
                text: GrammarText::JsonSchema(schema.to_string()),
                triggers: None,
            },
        )),
        other => Err(ApiError::field(
            shown,
            expected("a schema, an object", other),
        )),
    }
}

/// `grammar` in `generation_settings`: the text, whatever it is written in.
pub(crate) fn shown(grammar: Option<&Grammar>) -> Value {
    match grammar.map(|grammar| &grammar.text) {
        None => json!(""),
        Some(GrammarText::Gbnf(text) | GrammarText::Lark(text) | GrammarText::JsonSchema(text)) => {
            json!(text)
        }
    }
}

/// `grammar_triggers` in `generation_settings`.
pub(crate) fn shown_triggers(grammar: Option<&Grammar>) -> Value {
    let Some(triggers) = grammar.and_then(|grammar| grammar.triggers.as_ref()) else {
        return json!([]);
    };
    let tokens = triggers.tokens.iter();
    let tokens = tokens.map(|token| json!({ "type": 0, "value": "", "token": token }));
    let words = triggers.words.iter();
    let words = words.map(|word| json!({ "type": 1, "value": word }));
    tokens.chain(words).collect()
}
