//! The form of tool calls as a grammar: `<tool_call>\n{"name": …, "arguments": {…}}\n</tool_call>`, one block for each call.
//!
//! Where a call is required the grammar holds from the first token; otherwise the answer is free until it says `<tool_call>`.
//! Each tool's arguments follow its own schema, in a document of its own, so that its `$ref`s mean what they say.

use bitnet_model::grammar::json_rule;
use bitnet_model::protocol::{Grammar, GrammarText, Triggers};
use serde_json::{Map, Value, json};

use super::{Tool, ToolChoice, ToolUse};

/// Calls in one answer, at most: a model that goes on calling would use up all its tokens.
const MAX_CALLS: usize = 16;

/// What opens a call.
const OPENING: &str = "<tool_call>";

/// The grammar of an answer that may or must call. `schema`: what the answer must fit when it does not call.
pub(crate) fn tool_grammar(tools: &ToolUse, schema: Option<&Value>) -> Grammar {
    let callable: Vec<&Tool> = match &tools.choice {
        ToolChoice::Named(name) => tools.tools.iter().filter(|it| it.name == *name).collect(),
        _ => tools.tools.iter().collect(),
    };
    let is_free = tools.choice == ToolChoice::Auto;
    let schema = schema.filter(|_| is_free);
    let calls = match tools.parallel {
        true => format!("call (\"\\n\" call){{0,{}}}", MAX_CALLS - 1),
        false => "call".to_owned(),
    };
    let mut rules = match schema {
        Some(schema) => format!("start: {calls} | text\ntext: {}\n", json_rule(schema)),
        None => format!("start: {calls}\n"),
    };
    let names: Vec<String> = (0..callable.len()).map(|i| format!("call_{i}")).collect();
    rules += &format!("call: {}\n", names.join(" | "));
    for (i, tool) in callable.iter().enumerate() {
        let name = json!(tool.name).to_string();
        let before = json!(format!("{OPENING}\n{{\"name\": {name}, \"arguments\": ")).to_string();
        let after = json!("}\n</tool_call>").to_string();
        rules += &format!("call_{i}: {before} arguments_{i} {after}\n");
        rules += &format!("arguments_{i}: {}\n", json_rule(&arguments(tool)));
    }
    Grammar {
        text: GrammarText::Lark(rules),
        triggers: (is_free && schema.is_none()).then(|| Triggers {
            words: vec![OPENING.to_owned()],
            tokens: Vec::new(),
        }),
    }
}

/// The schema of a tool's arguments: always an object, of the listed properties only where it lists some and does not speak
/// of others.
fn arguments(tool: &Tool) -> Value {
    const PARTS: [&str; 4] = ["$ref", "anyOf", "oneOf", "allOf"];
    const OTHERS: [&str; 3] = [
        "additionalProperties",
        "patternProperties",
        "unevaluatedProperties",
    ];
    let mut schema = tool.parameters.clone();
    match &mut schema {
        Value::Object(map) => {
            let has_any = |keys: &[&str]| keys.iter().any(|key| map.contains_key(*key));
            let is_whole = !has_any(&PARTS);
            let is_closed = is_whole && lists_all(map) && !has_any(&OTHERS);
            if is_whole && !map.contains_key("type") {
                map.insert("type".to_owned(), json!("object"));
            }
            if is_closed {
                map.insert("additionalProperties".to_owned(), json!(false));
            }
            schema
        }
        _ => json!({ "type": "object" }),
    }
}

/// Whether the properties are listed, the required ones among them.
fn lists_all(schema: &Map<String, Value>) -> bool {
    let Some(Value::Object(listed)) = schema.get("properties") else {
        return false;
    };
    let required = schema.get("required").and_then(Value::as_array);
    let mut names = required.into_iter().flatten().filter_map(Value::as_str);
    names.all(|name| listed.contains_key(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(choice: ToolChoice, parallel: bool) -> ToolUse {
        let tool = |name: &str, parameters: Value| Tool {
            name: name.to_owned(),
            description: None,
            parameters,
        };
        let place = json!({
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "object",
            "properties": { "city": { "$ref": "#/$defs/city" } },
            "required": ["city"],
            "additionalProperties": false,
            "$defs": { "city": { "enum": ["Rome", "Oslo"] } },
        });
        ToolUse {
            tools: vec![tool("weather", place), tool("do \"it\"", json!({}))],
            choice,
            parallel,
        }
    }

    /// Whether an answer may be this text, by single bytes.
    fn accepts(grammar: &Grammar, text: &str) -> bool {
        bitnet_model::grammar::matches(grammar, text)
            .unwrap_or_else(|error| panic!("{error}: {grammar:?}"))
    }

    #[test]
    fn arguments_are_the_listed_ones_with_single_blanks() {
        let of = |parameters: Value| {
            let tool = Tool {
                name: "f".to_owned(),
                description: None,
                parameters,
            };
            let tools = ToolUse {
                tools: vec![tool],
                choice: ToolChoice::Required,
                parallel: false,
            };
            tool_grammar(&tools, None)
        };
        let call = |arguments: &str| {
            format!("<tool_call>\n{{\"name\": \"f\", \"arguments\": {arguments}}}\n</tool_call>")
        };
        let number = json!({ "type": "number" });
        let (none, one) = (json!({}), json!({ "a": number }));
        let open = json!({ "properties": one, "additionalProperties": number });
        for (parameters, arguments, expected) in [
            (json!({ "type": "object", "properties": none }), "{}", true),
            (
                json!({ "type": "object", "properties": none }),
                r#"{"a": 1}"#,
                false,
            ),
            (json!({ "properties": one }), r#"{"a": 1}"#, true),
            (json!({ "properties": one }), r#"{"a":1}"#, true),
            (json!({ "properties": one }), r#"{"b": 1}"#, false),
            (open.clone(), r#"{"a": 1, "b": 1}"#, true),
            (open, "{\"a\": 1,\n\"b\": 1}", false),
            (
                json!({ "properties": one, "required": ["b"] }),
                r#"{"b": 1}"#,
                true,
            ),
            (json!({}), r#"{"any": [1,2]}"#, true),
            (json!({}), r#"{"any":  [1,2]}"#, false),
            (json!({}), " {}", false),
        ] {
            let accepted = accepts(&of(parameters.clone()), &call(arguments));
            assert_eq!(accepted, expected, "{parameters}: {arguments}");
        }
    }

    const ROME: &str =
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>";
    const IT: &str = "<tool_call>\n{\"name\": \"do \\\"it\\\"\", \"arguments\": {}}\n</tool_call>";

    #[test]
    fn a_required_call_is_all_there_is() {
        let grammar = tool_grammar(&tools(ToolChoice::Required, true), None);
        let both = format!("{ROME}\n{IT}");
        for (text, expected) in [
            (ROME, true),
            (IT, true),
            (&both, true),
            ("", false),
            ("Hello", false),
            (&ROME.replace("Rome", "Paris"), false),
            (&ROME.replace("weather", "wether"), false),
            (&ROME[..ROME.len() - 1], false),
            (&format!("{ROME} and"), false),
        ] {
            assert_eq!(accepts(&grammar, text), expected, "{text}");
        }
        let many = |n: usize| vec![IT; n].join("\n");
        assert!(accepts(&grammar, &many(MAX_CALLS)) && !accepts(&grammar, &many(MAX_CALLS + 1)));
        let one = tool_grammar(&tools(ToolChoice::Required, false), None);
        assert!(accepts(&one, ROME) && !accepts(&one, &both));
        let named = tool_grammar(&tools(ToolChoice::Named("weather".to_owned()), true), None);
        assert!(accepts(&named, ROME) && !accepts(&named, IT));
    }

    #[test]
    fn an_automatic_call_may_come_after_any_text() {
        let grammar = tool_grammar(&tools(ToolChoice::Auto, true), None);
        let said = format!("Let me look.\n{ROME}");
        for (text, expected) in [
            ("", true),
            ("Hello <tool", true),
            (ROME, true),
            (&said, true),
            ("so: <tool_call>\nno", false),
            (&format!("{said} and"), false),
        ] {
            assert_eq!(accepts(&grammar, text), expected, "{text}");
        }
        let schema = json!({ "type": "object", "properties": { "a": { "type": "integer" } }, "required": ["a"] });
        let bound = tool_grammar(&tools(ToolChoice::Auto, true), Some(&schema));
        for (text, expected) in [("{\"a\": 5}", true), (ROME, true), ("Hello", false)] {
            assert_eq!(accepts(&bound, text), expected, "{text}");
        }
    }
}
