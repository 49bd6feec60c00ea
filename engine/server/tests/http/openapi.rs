//! `/openapi.json` against the server it describes.

use bitnet_server::{ApiKeys, ServerConfig};
use serde_json::{Value, json};

use crate::client::request;
use crate::server::Server;

/// The part of JSON schema that the description uses.
fn fits(value: &Value, schema: &Value, document: &Value) -> Result<(), String> {
    let Value::Object(schema) = schema else {
        return Err(format!("no schema: {schema}"));
    };
    for (key, rule) in schema {
        let fine = match key.as_str() {
            "description" => true,
            "$ref" => {
                let path = rule.as_str().unwrap().trim_start_matches('#');
                return fits(
                    value,
                    document.pointer(path).expect("it is there"),
                    document,
                );
            }
            "type" => match rule {
                Value::Array(types) => types.iter().any(|name| is_of(value, name)),
                name => is_of(value, name),
            },
            "enum" => rule.as_array().unwrap().contains(value),
            "minimum" => value.as_f64().is_none_or(|x| x >= rule.as_f64().unwrap()),
            "maximum" => value.as_f64().is_none_or(|x| x <= rule.as_f64().unwrap()),
            "exclusiveMinimum" => value.as_f64().is_none_or(|x| x > rule.as_f64().unwrap()),
            "required" => rule
                .as_array()
                .unwrap()
                .iter()
                .all(|name| value.is_object() && value.get(name.as_str().unwrap()).is_some()),
            "anyOf" => rule
                .as_array()
                .unwrap()
                .iter()
                .any(|one| fits(value, one, document).is_ok()),
            "allOf" => rule
                .as_array()
                .unwrap()
                .iter()
                .all(|one| fits(value, one, document).is_ok()),
            "items" => {
                for item in value.as_array().into_iter().flatten() {
                    fits(item, rule, document)?;
                }
                true
            }
            "minItems" => value
                .as_array()
                .is_none_or(|items| items.len() as u64 >= rule.as_u64().unwrap()),
            "properties" => {
                for (name, rule) in rule.as_object().unwrap() {
                    if let Some(inner) = value.get(name) {
                        fits(inner, rule, document).map_err(|error| format!("{name}: {error}"))?;
                    }
                }
                true
            }
            other => panic!("unknown keyword {other}"),
        };
        if !fine {
            return Err(format!("{value} against {key}: {rule}"));
        }
    }
    Ok(())
}

fn is_of(value: &Value, name: &Value) -> bool {
    match name.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.as_f64().is_some_and(|x| x.fract() == 0.0),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("unknown type {other}"),
    }
}

#[test]
fn replies_are_as_described() {
    let server = Server::with(ServerConfig {
        slot_save_path: Some("/srv".into()),
        props_endpoint: true,
        chat_template: Some("chatml".into()),
        ..ServerConfig::default()
    });
    server.says("I look. <tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>");
    let document = server.get("/openapi.json").json();
    assert_eq!(document["openapi"], "3.1.0");
    let messages = json!([{ "role": "user", "content": "x" }]);
    let function = json!({ "name": "f", "parameters": {} });
    let tools = json!([{ "type": "function", "function": function }]);
    let bodies = [
        (
            "/completion",
            json!({ "prompt": ["x", [1, 2]], "n_probs": 1 }),
        ),
        (
            "/completions",
            json!({ "prompt": "x", "response_fields": ["content"] }),
        ),
        ("/v1/completions", json!({ "prompt": "x", "logprobs": 1 })),
        (
            "/v1/chat/completions",
            json!({ "messages": messages, "tools": tools, "logprobs": true }),
        ),
        ("/chat/completions", json!({ "messages": messages })),
        (
            "/v1/chat/completions/input_tokens",
            json!({ "messages": messages }),
        ),
        (
            "/chat/completions/input_tokens",
            json!({ "messages": messages }),
        ),
        (
            "/v1/responses",
            json!({ "input": "x", "tools": [function], "max_output_tokens": 9 }),
        ),
        ("/responses", json!({ "input": "x" })),
        ("/v1/responses/input_tokens", json!({ "input": "x" })),
        ("/responses/input_tokens", json!({ "input": "x" })),
        (
            "/v1/messages",
            json!({ "messages": messages, "tools": [{ "name": "f", "input_schema": {} }] }),
        ),
        ("/v1/messages/count_tokens", json!({ "messages": messages })),
        (
            "/v1/embeddings",
            json!({ "input": ["x", "y"], "encoding_format": "base64" }),
        ),
        ("/embedding", json!({ "content": "x", "pooling": "none" })),
        ("/embeddings", json!({ "content": "x" })),
        ("/apply-template", json!({ "messages": messages })),
        ("/tokenize", json!({ "content": "é", "with_pieces": true })),
        ("/detokenize", json!({ "tokens": [1, 2] })),
        (
            "/api/chat",
            json!({ "messages": messages, "stream": false, "tools": tools }),
        ),
        ("/api/generate", json!({ "prompt": "x", "stream": false })),
        ("/api/show", json!({ "model": "tiny" })),
        (
            "/api/embed",
            json!({ "model": "tiny", "input": ["x", "y"] }),
        ),
        ("/props", json!({})),
        ("/lora-adapters", json!([])),
        ("/slots/{id}", json!({ "filename": "a" })),
        ("/infill", json!({})),
        ("/rerank", json!({})),
        ("/reranking", json!({})),
        ("/v1/rerank", json!({})),
        ("/v1/reranking", json!({})),
        ("/v1/audio/transcriptions", json!({})),
    ];
    for (path, operations) in document["paths"].as_object().unwrap() {
        // The one ends the server's work, the other needs a launcher.
        if ["/drain", "/reload"].contains(&path.as_str()) {
            continue;
        }
        for (method, operation) in operations.as_object().unwrap() {
            let target = path
                .replace("{id}", "1?action=save")
                .replace("{name}", "tiny.gguf");
            let reply = match method.as_str() {
                "get" => server.get(&target),
                _ => {
                    let body = bodies.iter().find(|(known, _)| known == path);
                    let (_, body) = body.unwrap_or_else(|| panic!("a body for {path}"));
                    let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
                    if operation.get("requestBody").is_some() {
                        fits(body, schema, &document)
                            .unwrap_or_else(|error| panic!("{path}: {error}"));
                    }
                    server.post(&target, body.clone())
                }
            };
            let described = match reply.status {
                200 => &operation["responses"]["200"],
                501 => &operation["responses"]["5XX"],
                status => panic!("{status} for {method} {path}: {}", reply.text()),
            };
            let kind = reply
                .header("content-type")
                .unwrap()
                .split(';')
                .next()
                .unwrap();
            let schema = &described["content"][kind]["schema"];
            let value = match kind {
                "application/json" => reply.json(),
                _ => Value::from(reply.text()),
            };
            fits(&value, schema, &document)
                .unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        }
    }
}

#[test]
fn what_the_description_forbids_is_refused() {
    let server = Server::start();
    server.says("x");
    let document = server.get("/openapi.json").json();
    let messages = json!([{ "role": "user", "content": "x" }]);
    for (path, wrong) in [
        ("/completion", json!({ "prompt": "x", "stop": [1] })),
        ("/completion", json!({ "prompt": [["x", null]] })),
        ("/completion", json!({ "prompt": "x", "repeat_penalty": 0 })),
        ("/completion", json!({ "prompt": "x", "min_keep": -1 })),
        (
            "/v1/chat/completions",
            json!({ "messages": [{ "role": 1 }] }),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": messages, "tools": 5 }),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": messages, "response_format": "json" }),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": messages, "json_schema": 123 }),
        ),
        ("/v1/responses", json!({ "input": 5 })),
        (
            "/v1/messages",
            json!({ "messages": messages, "max_tokens": -5 }),
        ),
        (
            "/v1/embeddings",
            json!({ "input": "x", "encoding_format": "hex" }),
        ),
        ("/tokenize", json!({ "content": {} })),
        ("/detokenize", json!({ "tokens": [-1] })),
    ] {
        let operation = &document["paths"][path]["post"];
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        assert!(fits(&wrong, schema, &document).is_err(), "{path} {wrong}");
        assert_eq!(
            server.post(path, wrong.clone()).error().0,
            400,
            "{path} {wrong}"
        );
    }
}

#[test]
fn keys_and_prefix_show() {
    let server = Server::with(ServerConfig {
        api_keys: ApiKeys(vec!["k".into()]),
        api_prefix: "/llm".into(),
        ..ServerConfig::default()
    });
    assert_eq!(server.get("/llm/openapi.json").status, 401);
    let key = [("Authorization", "Bearer k")];
    let document = request(server.address, "GET", "/llm/openapi.json", &key, b"").json();
    assert!(document["paths"]["/llm/completion"]["post"].is_object());
    assert!(document["security"].is_array());
}
