//! Forced tool calls by the demo model, in three protocols: they fit their schema, and a stream says what an answer at once
//! says.

mod common;

use common::Server;
use serde_json::{Value, json};

/// One call of an answer.
#[derive(Debug, Clone, PartialEq)]
struct Call {
    name: String,
    /// JSON text.
    arguments: String,
}

/// An answer: its calls and why it ended.
#[derive(Debug, PartialEq)]
struct Answer {
    calls: Vec<Call>,
    reason: String,
}

/// How a protocol writes requests and answers.
struct Protocol {
    path: &'static str,
    /// Settings of the request: the tools, the name that must be called, if it is a certain one.
    request: fn(Option<&str>) -> Value,
    at_once: fn(&Value) -> Answer,
    from_frames: fn(&[Value]) -> Answer,
    reason: &'static str,
}

const PROTOCOLS: [Protocol; 3] = [
    Protocol {
        path: "/v1/chat/completions",
        request: chat_request,
        at_once: chat_answer,
        from_frames: chat_frames,
        reason: "tool_calls",
    },
    Protocol {
        path: "/v1/responses",
        request: responses_request,
        at_once: responses_answer,
        from_frames: responses_frames,
        reason: "completed",
    },
    Protocol {
        path: "/v1/messages",
        request: messages_request,
        at_once: messages_answer,
        from_frames: messages_frames,
        reason: "tool_use",
    },
];

const QUESTION: &str = "How is the weather in Oslo?";

/// Name, description, parameters; the second has none.
fn tools() -> Vec<(&'static str, &'static str, Option<Value>)> {
    let forecast = json!({
        "type": "object",
        "properties": {
            "city": { "type": "string", "minLength": 2, "maxLength": 12 },
            "days": { "type": "integer", "minimum": 1, "maximum": 7 },
            "unit": { "enum": ["celsius", "fahrenheit"] },
            "hours": { "type": "array", "items": { "type": "integer", "minimum": 0, "maximum": 23 }, "maxItems": 2 },
        },
        "required": ["city", "days", "unit"],
    });
    vec![
        ("forecast", "The weather of the next days", Some(forecast)),
        ("clock", "The time", None),
    ]
}

fn chat_request(name: Option<&str>) -> Value {
    let tool = |(name, description, parameters): (&str, &str, Option<Value>)| {
        let mut function = json!({ "name": name, "description": description });
        if let Some(parameters) = parameters {
            function["parameters"] = parameters;
        }
        json!({ "type": "function", "function": function })
    };
    json!({
        "messages": [{ "role": "user", "content": QUESTION }],
        "tools": tools().into_iter().map(tool).collect::<Value>(),
        "tool_choice": match name {
            Some(name) => json!({ "type": "function", "function": { "name": name } }),
            None => json!("required"),
        },
        "parallel_tool_calls": false,
        "max_tokens": 200,
    })
}

fn responses_request(name: Option<&str>) -> Value {
    let tool = |(name, description, parameters)| json!({ "type": "function", "name": name, "description": description, "parameters": parameters, "strict": true });
    json!({
        "input": [{ "type": "message", "role": "user", "content": [{ "type": "input_text", "text": QUESTION }] }],
        "tools": tools().into_iter().map(tool).collect::<Value>(),
        "tool_choice": match name {
            Some(name) => json!({ "type": "function", "name": name }),
            None => json!("required"),
        },
        "parallel_tool_calls": false,
        "max_output_tokens": 200,
    })
}

fn messages_request(name: Option<&str>) -> Value {
    let tool = |(name, description, parameters): (&str, &str, Option<Value>)| {
        let parameters = parameters.unwrap_or(json!({ "type": "object", "properties": {} }));
        json!({ "name": name, "description": description, "input_schema": parameters })
    };
    let mut choice = match name {
        Some(name) => json!({ "type": "tool", "name": name }),
        None => json!({ "type": "any" }),
    };
    choice["disable_parallel_tool_use"] = json!(true);
    json!({
        "messages": [{ "role": "user", "content": QUESTION }],
        "tools": tools().into_iter().map(tool).collect::<Value>(),
        "tool_choice": choice,
        "max_tokens": 200,
    })
}

fn text(value: &Value) -> String {
    let text = value.as_str();
    text.unwrap_or_else(|| panic!("{value}")).to_owned()
}

fn assert_id(id: &Value, prefix: &str) {
    assert!(
        text(id)
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.len() >= 8),
        "{id}"
    );
}

fn chat_answer(reply: &Value) -> Answer {
    let choice = &reply["choices"][0];
    let calls = choice["message"]["tool_calls"].as_array();
    let call = |call: &Value| {
        assert_id(&call["id"], "call_");
        assert_eq!(call["type"], "function");
        let function = &call["function"];
        Call {
            name: text(&function["name"]),
            arguments: text(&function["arguments"]),
        }
    };
    Answer {
        calls: calls
            .unwrap_or_else(|| panic!("{reply}"))
            .iter()
            .map(call)
            .collect(),
        reason: text(&choice["finish_reason"]),
    }
}

fn chat_frames(frames: &[Value]) -> Answer {
    let mut answer = Answer {
        calls: Vec::new(),
        reason: String::new(),
    };
    assert_eq!(frames[0]["choices"][0]["delta"]["role"], "assistant");
    for choice in frames.iter().map(|frame| &frame["choices"][0]) {
        assert!(answer.reason.is_empty(), "frames behind the last: {choice}");
        for delta in choice["delta"]["tool_calls"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let piece = text(&delta["function"]["arguments"]);
            if delta["id"].is_null() {
                assert_eq!(delta["index"], answer.calls.len() - 1);
                answer.calls.last_mut().unwrap().arguments += &piece;
            } else {
                assert_id(&delta["id"], "call_");
                assert_eq!(
                    (&delta["index"], piece.as_str()),
                    (&json!(answer.calls.len()), "")
                );
                answer.calls.push(Call {
                    name: text(&delta["function"]["name"]),
                    arguments: piece,
                });
            }
        }
        if !choice["finish_reason"].is_null() {
            answer.reason = text(&choice["finish_reason"]);
        }
    }
    answer
}

fn responses_call(item: &Value) -> Call {
    assert_eq!(item["type"], "function_call", "{item}");
    assert_id(&item["id"], "fc_");
    assert_id(&item["call_id"], "call_");
    Call {
        name: text(&item["name"]),
        arguments: text(&item["arguments"]),
    }
}

fn responses_answer(reply: &Value) -> Answer {
    let output = reply["output"].as_array();
    Answer {
        calls: output.unwrap().iter().map(responses_call).collect(),
        reason: text(&reply["status"]),
    }
}

fn responses_frames(frames: &[Value]) -> Answer {
    let mut calls: Vec<Call> = Vec::new();
    for (frame, number) in frames.iter().zip(0..) {
        assert_eq!(frame["sequence_number"], number, "{frame}");
        match text(&frame["type"]).as_str() {
            "response.output_item.added" => {
                assert_eq!(frame["output_index"], calls.len());
                calls.push(responses_call(&frame["item"]));
            }
            "response.function_call_arguments.delta" => {
                calls.last_mut().unwrap().arguments += &text(&frame["delta"]);
            }
            "response.function_call_arguments.done" => {
                assert_eq!(text(&frame["arguments"]), calls.last().unwrap().arguments);
            }
            "response.output_item.done" => {
                assert_eq!(&responses_call(&frame["item"]), calls.last().unwrap());
            }
            _ => {}
        }
    }
    let last = frames.last().unwrap();
    assert_eq!(last["type"], "response.completed");
    let whole = responses_answer(&last["response"]);
    assert_eq!(whole.calls, calls);
    whole
}

/// The protocol writes arguments as an object: laid out here as a stream writes them.
fn messages_answer(reply: &Value) -> Answer {
    let call = |block: &Value| {
        assert_eq!(block["type"], "tool_use", "{reply}");
        assert_id(&block["id"], "toolu_");
        Call {
            name: text(&block["name"]),
            arguments: block["input"].to_string(),
        }
    };
    Answer {
        calls: reply["content"]
            .as_array()
            .unwrap()
            .iter()
            .map(call)
            .collect(),
        reason: text(&reply["stop_reason"]),
    }
}

fn messages_frames(frames: &[Value]) -> Answer {
    let mut answer = Answer {
        calls: Vec::new(),
        reason: String::new(),
    };
    for frame in frames {
        match text(&frame["type"]).as_str() {
            "content_block_start" => {
                let block = &frame["content_block"];
                assert_eq!(block["type"], "tool_use", "{frame}");
                assert_id(&block["id"], "toolu_");
                assert_eq!(frame["index"], answer.calls.len());
                answer.calls.push(Call {
                    name: text(&block["name"]),
                    arguments: String::new(),
                });
            }
            "content_block_delta" => {
                assert_eq!(frame["delta"]["type"], "input_json_delta", "{frame}");
                let call = answer.calls.last_mut().unwrap();
                call.arguments += &text(&frame["delta"]["partial_json"]);
            }
            "message_delta" => answer.reason = text(&frame["delta"]["stop_reason"]),
            _ => {}
        }
    }
    for call in &mut answer.calls {
        let value: Value = serde_json::from_str(&call.arguments).expect("JSON");
        call.arguments = value.to_string();
    }
    answer
}

/// The frames of a stream, whatever its events are called.
fn frames(body: &str) -> Vec<Value> {
    let data = body.lines().filter_map(|line| line.strip_prefix("data: "));
    let json = |data: &str| serde_json::from_str(data).unwrap_or_else(|e| panic!("{e}: {data}"));
    data.filter(|data| *data != "[DONE]").map(json).collect()
}

fn assert_fits(call: &Call) {
    let arguments: Value = serde_json::from_str(&call.arguments)
        .unwrap_or_else(|error| panic!("{error}: {}", call.arguments));
    let map = arguments.as_object().expect("an object");
    if call.name == "clock" {
        assert!(map.is_empty(), "{arguments}");
        return;
    }
    assert_eq!(call.name, "forecast");
    let known = ["city", "days", "unit", "hours"];
    assert!(map.keys().all(|key| known.contains(&key.as_str())));
    let city = text(&map["city"]).chars().count();
    assert!((2..=12).contains(&city), "{arguments}");
    let days = map["days"].as_u64().expect("an integer");
    assert!((1..=7).contains(&days), "{arguments}");
    let unit = text(&map["unit"]);
    assert!(unit == "celsius" || unit == "fahrenheit", "{arguments}");
    for hour in map
        .get("hours")
        .map_or(&vec![], |it| it.as_array().unwrap())
    {
        assert!(hour.as_u64().is_some_and(|hour| hour < 24), "{arguments}");
    }
}

#[test]
fn forced_calls_fit_and_streams_say_the_same() {
    let server = Server::ready(&["--threads", "1", "--parallel", "2"]);
    for protocol in &PROTOCOLS {
        let asked = [None, Some("forecast"), Some("clock")];
        let settings = [
            json!({ "temperature": 0 }),
            json!({ "temperature": 1.1, "seed": 4 }),
        ];
        for (name, setting) in asked
            .iter()
            .flat_map(|it| settings.iter().map(move |s| (it, s)))
        {
            let mut body = (protocol.request)(*name);
            let map = body.as_object_mut().unwrap();
            map.extend(setting.as_object().unwrap().clone());
            let reply = server.post(protocol.path, &body);
            assert_eq!(reply.status, 200, "{body}: {}", reply.body);
            let answer = (protocol.at_once)(&reply.json());
            let at = format!("{} {name:?} {setting}: {answer:?}", protocol.path);
            assert_eq!(answer.reason, protocol.reason, "{at}");
            assert_eq!(answer.calls.len(), 1, "{at}");
            assert_fits(&answer.calls[0]);
            if let Some(name) = name {
                assert_eq!(answer.calls[0].name, *name, "{at}");
            }
            body["stream"] = json!(true);
            let streamed = server.post(protocol.path, &body);
            assert_eq!(streamed.status, 200, "{body}: {}", streamed.body);
            let streamed = (protocol.from_frames)(&frames(&streamed.body));
            assert_eq!(streamed, answer, "{at}");
        }
    }
}

/// Several calls in one answer have numbers of their own in a stream.
#[test]
fn several_calls_stand_beside_each_other() {
    let server = Server::ready(&["--threads", "1", "--parallel", "1"]);
    let mut body = chat_request(Some("clock"));
    body["parallel_tool_calls"] = json!(true);
    body["temperature"] = json!(0);
    // It may not end, so it calls again.
    body["ignore_eos"] = json!(true);
    let reply = server.post("/v1/chat/completions", &body);
    assert_eq!(reply.status, 200, "{}", reply.body);
    let answer = chat_answer(&reply.json());
    assert!(answer.calls.len() > 1, "{answer:?}");
    assert_fits(&answer.calls[0]);
    body["stream"] = json!(true);
    let streamed = server.post("/v1/chat/completions", &body);
    assert_eq!(chat_frames(&frames(&streamed.body)), answer);
}
