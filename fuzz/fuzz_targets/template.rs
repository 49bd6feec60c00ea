//! A chat template from a model file, rendered with a conversation that has everything.
#![no_main]

use bitnet_server::{ChatTemplate, TemplateFacts};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

fn conversation() -> Value {
    json!({
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is the weather in Köln?"},
            {"role": "assistant", "content": null, "reasoning_content": "hm", "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\": \"Köln\"}"}}
            ]},
            {"role": "tool", "tool_call_id": "c1", "content": "rain"},
            {"role": "user", "content": [{"type": "text", "text": "Thanks"}]},
        ],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
        "add_generation_prompt": true,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "enable_thinking": false,
    })
}

fuzz_target!(|text: &str| {
    let facts = TemplateFacts {
        architecture: "llama",
        model_template: Some(text),
        has_eot_id: false,
    };
    let template = ChatTemplate::choose(None, facts).expect("a bad template is replaced");
    if let Value::Object(variables) = conversation() {
        let _ = template.render(&variables);
    }
});
