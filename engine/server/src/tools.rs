//! Function tools of a chat: what the client offers, how the model is told, and how calls stand in the history.
//!
//! A template that knows `tools` and the `<tool_call>` form gets list and history as they are. For any other, the list goes
//! into the system message, and calls and results into the text of messages, all in the same form.

mod grammar;

use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::request::{Fields, expected};
pub(crate) use grammar::tool_grammar;

/// Tools one request may offer.
const MAX_TOOLS: usize = 256;
/// Longest name of a function, in bytes.
const MAX_NAME_BYTES: usize = 256;

/// A function the model may call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tool {
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    /// JSON schema of the arguments; `{}` where the client gave none.
    pub(crate) parameters: Value,
}

/// Whether the model has to call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ToolChoice {
    /// As it likes.
    Auto,
    /// At least one.
    Required,
    /// This one.
    Named(String),
}

/// The tools of a request. There is at least one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ToolUse {
    pub(crate) tools: Vec<Tool>,
    pub(crate) choice: ToolChoice,
    /// More than one call in an answer.
    pub(crate) parallel: bool,
}

impl ToolUse {
    /// Reads `tools`, `tool_choice` and `parallel_tool_calls`; `None` when the model must not call.
    ///
    /// # Errors
    /// 400 for a list or a choice that makes no sense.
    pub(crate) fn read(fields: &Fields<'_>) -> Result<Option<Self>, ApiError> {
        let choice = match fields.get(&["tool_choice"]) {
            None => Some(Choice::of(ToolChoice::Auto)),
            Some((_, value)) => read_choice(value)?,
        };
        let Some(choice) = choice else {
            return Ok(None);
        };
        let listed = fields
            .array("tools")?
            .map(Vec::as_slice)
            .unwrap_or_default();
        if listed.len() > MAX_TOOLS {
            let problem = format!("found {} tools, expected at most {MAX_TOOLS}", listed.len());
            return Err(ApiError::field("tools", problem));
        }
        let mut tools = Vec::new();
        for (i, tool) in listed.iter().enumerate() {
            let tool = read_tool(&format!("tools[{i}]"), tool)?;
            if tools.iter().any(|known: &Tool| known.name == tool.name) {
                let problem = format!("the function `{}` is there twice", tool.name);
                return Err(ApiError::field("tools", problem));
            }
            tools.push(tool);
        }
        if let Some(only) = &choice.only {
            tools.retain(|tool| only.contains(&tool.name));
        }
        if tools.is_empty() {
            return match choice.choice {
                ToolChoice::Auto => Ok(None),
                _ => Err(ApiError::field(
                    "tool_choice",
                    "asks for a call, but `tools` is empty",
                )),
            };
        }
        if let ToolChoice::Named(name) = &choice.choice
            && !tools.iter().any(|tool| tool.name == *name)
        {
            let problem = format!("the function `{name}` is not in `tools`");
            return Err(ApiError::field("tool_choice", problem));
        }
        Ok(Some(ToolUse {
            tools,
            choice: choice.choice,
            parallel: fields.bool("parallel_tool_calls")?.unwrap_or(true),
        }))
    }

    /// The list as OpenAI writes it, for templates that know it.
    pub(crate) fn list(&self) -> Value {
        let entry = |tool: &Tool| json!({ "type": "function", "function": tool.json() });
        self.tools.iter().map(entry).collect()
    }

    /// What the model is told when its template does not know tools.
    pub(crate) fn instructions(&self) -> String {
        let list: Vec<String> = self
            .tools
            .iter()
            .map(|tool| tool.json().to_string())
            .collect();
        let when = match &self.choice {
            ToolChoice::Auto => {
                "Call a function when it helps to answer; else answer in plain text.".to_owned()
            }
            ToolChoice::Required => "Answer with a function call.".to_owned(),
            ToolChoice::Named(name) => format!("Answer with a call of the function {name}."),
        };
        let many = match self.parallel {
            true => "one block for each call",
            false => "one call only",
        };
        format!(
            "You can call functions. These are their names and parameters, one per line:\n<tools>\n{}\n</tools>\n\
{when} A call has exactly this form, {many}:\n<tool_call>\n{{\"name\": \"function name\", \"arguments\": {{\"parameter\": \"value\"}}}}\n\
</tool_call>\nResults come back between <tool_response> and </tool_response>.",
            list.join("\n")
        )
    }
}

impl Tool {
    fn json(&self) -> Value {
        let mut out = Map::new();
        out.insert("name".into(), json!(self.name));
        if let Some(description) = &self.description {
            out.insert("description".into(), json!(description));
        }
        out.insert("parameters".into(), self.parameters.clone());
        Value::Object(out)
    }
}

struct Choice {
    choice: ToolChoice,
    /// Only these functions of the list.
    only: Option<Vec<String>>,
}

impl Choice {
    fn of(choice: ToolChoice) -> Self {
        Choice { choice, only: None }
    }
}

/// `None` for `none`.
fn read_choice(value: &Value) -> Result<Option<Choice>, ApiError> {
    let bad = |problem: String| Err(ApiError::field("tool_choice", problem));
    let word = |word: &str| match word {
        "none" => Ok(None),
        "auto" => Ok(Some(Choice::of(ToolChoice::Auto))),
        "required" | "any" => Ok(Some(Choice::of(ToolChoice::Required))),
        other => bad(format!(
            "found `{other}`, expected `auto`, `none`, `required` or a function"
        )),
    };
    let map = match value {
        Value::String(text) => return word(text),
        Value::Object(map) => map,
        other => return bad(expected("a string or an object", other)),
    };
    let kind = map
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or("function");
    match kind {
        "function" | "tool" => {
            let name = name_in(map).or_else(|| map.get("function")?.as_object().and_then(name_in));
            match name {
                Some(name) => Ok(Some(Choice::of(ToolChoice::Named(name)))),
                None => bad("an object needs the function's `name`".into()),
            }
        }
        "allowed_tools" => {
            let inner = map
                .get("allowed_tools")
                .and_then(Value::as_object)
                .unwrap_or(map);
            let mode = inner.get("mode").and_then(Value::as_str).unwrap_or("auto");
            let listed = inner.get("tools").and_then(Value::as_array);
            let names = listed.into_iter().flatten().filter_map(|tool| {
                let tool = tool.as_object()?;
                name_in(tool).or_else(|| tool.get("function")?.as_object().and_then(name_in))
            });
            let only = Some(names.collect());
            Ok(word(mode)?.map(|choice| Choice { only, ..choice }))
        }
        "auto" | "none" | "required" | "any" => word(kind),
        other => bad(format!("tools of the type `{other}` are not supported")),
    }
}

fn name_in(map: &Map<String, Value>) -> Option<String> {
    map.get("name")?.as_str().map(str::to_owned)
}

fn read_tool(at: &str, tool: &Value) -> Result<Tool, ApiError> {
    let Value::Object(tool) = tool else {
        return Err(ApiError::field(at, expected("an object", tool)));
    };
    match tool.get("type") {
        None | Some(Value::Null) => {}
        Some(Value::String(kind)) if kind == "function" => {}
        Some(Value::String(kind)) => {
            let problem = format!("tools of the type `{kind}` are not supported");
            return Err(ApiError::field(at, problem));
        }
        Some(other) => {
            return Err(ApiError::field(
                &format!("{at}.type"),
                expected("a string", other),
            ));
        }
    }
    let Some(Value::Object(function)) = tool.get("function") else {
        return Err(ApiError::field(
            at,
            "`function` is missing, an object with a `name`",
        ));
    };
    let fields = Fields(function);
    let name = match fields.get(&["name"]) {
        Some((_, Value::String(name))) if (1..=MAX_NAME_BYTES).contains(&name.len()) => {
            name.clone()
        }
        Some((_, Value::String(name))) => {
            let problem = format!("found {} bytes, expected 1 to {MAX_NAME_BYTES}", name.len());
            return Err(ApiError::field(&format!("{at}.function.name"), problem));
        }
        Some((_, other)) => {
            return Err(ApiError::field(
                &format!("{at}.function.name"),
                expected("a string", other),
            ));
        }
        None => return Err(ApiError::field(at, "`function.name` is missing")),
    };
    let description = match fields.get(&["description"]) {
        None => None,
        Some((_, Value::String(text))) => Some(text.clone()),
        Some((_, other)) => {
            let at = format!("{at}.function.description");
            return Err(ApiError::field(&at, expected("a string", other)));
        }
    };
    let parameters = match fields.get(&["parameters"]) {
        None => json!({ "type": "object", "properties": {} }),
        Some((_, schema @ Value::Object(_))) => schema.clone(),
        Some((_, other)) => {
            let at = format!("{at}.function.parameters");
            return Err(ApiError::field(&at, expected("an object", other)));
        }
    };
    Ok(Tool {
        name,
        description,
        parameters,
    })
}

/// Checks the calls of an assistant's message, and gives arguments that are JSON text as JSON, as templates want them.
pub(crate) fn read_calls(at: &str, calls: &Value) -> Result<Vec<Value>, ApiError> {
    let Value::Array(calls) = calls else {
        return Err(ApiError::field(
            &format!("{at}.tool_calls"),
            expected("an array", calls),
        ));
    };
    calls
        .iter()
        .enumerate()
        .map(|(i, call)| read_call(&format!("{at}.tool_calls[{i}]"), call))
        .collect()
}

fn read_call(at: &str, call: &Value) -> Result<Value, ApiError> {
    let Some(name) = call["function"]["name"].as_str() else {
        return Err(ApiError::field(at, "needs a `function` with a `name`"));
    };
    let arguments = match &call["function"]["arguments"] {
        Value::Null => json!({}),
        Value::String(text) if text.trim().is_empty() => json!({}),
        Value::String(text) => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
        other => other.clone(),
    };
    Ok(json!({
        "id": call["id"],
        "type": "function",
        "function": { "name": name, "arguments": arguments },
    }))
}

/// Writes calls and results into the text of messages, for templates that know neither. Results in a row become one
/// message of the user, since many templates want the roles to alternate.
pub(crate) fn into_text(messages: Vec<Value>) -> Vec<Value> {
    let mut out: Vec<Value> = Vec::new();
    let mut after_result = false;
    for mut message in messages {
        let content = message["content"].as_str().unwrap_or_default().to_owned();
        let is_result = message["role"] == "tool" || message["role"] == "function";
        if is_result {
            let text = format!("<tool_response>\n{content}\n</tool_response>");
            match out.last_mut().filter(|_| after_result) {
                Some(last) => {
                    let before = last["content"].as_str().unwrap_or_default();
                    last["content"] = json!(format!("{before}\n{text}"));
                }
                None => out.push(json!({ "role": "user", "content": text })),
            }
        } else {
            if let Some(Value::Array(calls)) = message
                .as_object_mut()
                .and_then(|map| map.remove("tool_calls"))
            {
                let mut blocks: Vec<String> = calls.iter().map(block).collect();
                if !content.is_empty() {
                    blocks.insert(0, content);
                }
                message["content"] = json!(blocks.join("\n"));
            }
            out.push(message);
        }
        after_result = is_result;
    }
    out
}

fn block(call: &Value) -> String {
    let function = &call["function"];
    format!(
        "<tool_call>\n{{\"name\": {}, \"arguments\": {}}}\n</tool_call>",
        function["name"], function["arguments"]
    )
}

/// Puts the tools' instructions behind the system message, or in front as one.
pub(crate) fn inject(messages: &mut Vec<Value>, tools: &ToolUse) {
    let text = tools.instructions();
    match messages
        .first_mut()
        .filter(|first| first["role"] == "system")
    {
        Some(system) => {
            let before = system["content"].as_str().unwrap_or_default();
            system["content"] = json!(format!("{before}\n\n{text}"));
        }
        None => messages.insert(0, json!({ "role": "system", "content": text })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> Result<Option<ToolUse>, ApiError> {
        ToolUse::read(&Fields(body.as_object().unwrap()))
    }

    fn tools(names: &[&str]) -> Value {
        names
            .iter()
            .map(
                |name| json!({ "type": "function", "function": { "name": name, "strict": false } }),
            )
            .collect()
    }

    #[test]
    fn choices() {
        let both = tools(&["f", "g"]);
        for (choice, expected) in [
            (json!(null), Some(ToolChoice::Auto)),
            (json!("auto"), Some(ToolChoice::Auto)),
            (json!("none"), None),
            (json!("required"), Some(ToolChoice::Required)),
            (
                json!({"type": "function", "function": {"name": "g"}}),
                Some(ToolChoice::Named("g".into())),
            ),
            (
                json!({"type": "function", "name": "f"}),
                Some(ToolChoice::Named("f".into())),
            ),
        ] {
            let found = read(json!({ "tools": both, "tool_choice": choice })).unwrap();
            assert_eq!(found.map(|tools| tools.choice), expected, "{choice}");
        }
        let allowed = json!({"type": "allowed_tools", "allowed_tools": {
            "mode": "required", "tools": [{"type": "function", "function": {"name": "g"}}]}});
        let found = read(json!({ "tools": both, "tool_choice": allowed }))
            .unwrap()
            .unwrap();
        assert_eq!((found.tools.len(), found.choice), (1, ToolChoice::Required));
        for bad in [
            json!({ "tools": both, "tool_choice": "sometimes" }),
            json!({ "tools": both, "tool_choice": {"type": "function", "function": {"name": "h"}} }),
            json!({ "tools": both, "tool_choice": {"type": "function"} }),
            json!({ "tools": both, "tool_choice": 3 }),
            json!({ "tools": [], "tool_choice": "required" }),
            json!({ "tools": tools(&["f", "f"]) }),
            json!({ "tools": [{ "type": "web_search" }] }),
            json!({ "tools": [{ "type": "function", "function": { "name": "" } }] }),
            json!({ "tools": [{ "type": "function", "function": { "name": "f", "parameters": 1 } }] }),
        ] {
            assert_eq!(read(bad.clone()).unwrap_err().status.as_u16(), 400, "{bad}");
        }
        assert_eq!(read(json!({ "tools": [] })), Ok(None));
    }

    #[test]
    fn history_as_text() {
        let calls = json!([{ "id": "call_1", "type": "function", "function": { "name": "f", "arguments": "{\"a\": 1}" } }]);
        let calls = read_calls("messages[1]", &calls).unwrap();
        assert_eq!(calls[0]["function"]["arguments"], json!({ "a": 1 }));
        let messages = into_text(vec![
            json!({ "role": "user", "content": "go" }),
            json!({ "role": "assistant", "content": "", "tool_calls": calls }),
            json!({ "role": "tool", "content": "one" }),
            json!({ "role": "tool", "content": "two" }),
            json!({ "role": "user", "content": "on" }),
        ]);
        assert_eq!(
            messages[1],
            json!({ "role": "assistant", "content": "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\":1}}\n</tool_call>" })
        );
        assert_eq!(
            messages[2]["content"],
            "<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>"
        );
        assert_eq!((messages.len(), &messages[2]["role"]), (4, &json!("user")));
    }

    #[test]
    fn told_once() {
        let tools = read(json!({ "tools": tools(&["f"]) })).unwrap().unwrap();
        let mut messages = vec![json!({ "role": "system", "content": "Be brief." })];
        inject(&mut messages, &tools);
        let text = messages[0]["content"].as_str().unwrap();
        assert!(
            text.starts_with("Be brief.\n\n") && text.contains("\"name\":\"f\""),
            "{text}"
        );
        let mut messages = vec![json!({ "role": "user", "content": "x" })];
        inject(&mut messages, &tools);
        assert_eq!(
            (messages.len(), &messages[0]["role"]),
            (2, &json!("system"))
        );
    }
}
