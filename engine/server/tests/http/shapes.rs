//! What each route answers when nothing is streamed.

use std::time::{Duration, Instant};

use bitnet_model::protocol::{Finish, SamplerKind};
use bitnet_server::ServerConfig;
use bitnet_server::backend::EnergyMoment;
use serde_json::{Value, json};

use crate::backend::Script;
use crate::client::request;
use crate::server::{SLOT_CONTEXT, SLOTS, Server, published_card};

#[test]
fn health_says_ok_and_more() {
    let server = Server::start();
    for path in ["/health", "/v1/health", "/health/"] {
        let reply = server.get(path);
        assert_eq!(reply.status, 200, "{path}");
        assert_eq!(reply.header("server"), Some("llama.cpp"));
        assert_eq!(
            reply.header("content-type"),
            Some("application/json; charset=utf-8")
        );
        assert!(
            reply
                .header("x-request-id")
                .is_some_and(|id| id.len() == 16)
        );
        let json = reply.json();
        assert_eq!(
            (&json["status"], &json["model"], &json["slots"]),
            (&json!("ok"), &json!("tiny.gguf"), &json!(SLOTS))
        );
    }
    let head = request(server.address, "HEAD", "/health", &[], b"");
    assert_eq!(
        (head.status, head.header("content-length").is_some()),
        (200, true)
    );
    let numbered = request(
        server.address,
        "GET",
        "/health",
        &[("X-Request-Id", "my-7")],
        b"",
    );
    assert_eq!(numbered.header("x-request-id"), Some("my-7"));
}

#[test]
fn native_completion() {
    let server = Server::start();
    server.says("Hi\nthere");
    let reply = server.post(
        "/completion",
        json!({ "prompt": "Say it", "seed": 42, "max_tokens": 50, "return_tokens": true }),
    );
    assert_eq!(reply.status, 200, "{}", reply.text());
    let json = reply.json();
    assert_eq!(json["content"], "Hi\nthere");
    assert!(
        json.get("choices").is_none(),
        "n8n's node would take `choices` before `content`"
    );
    for (key, expected) in [
        ("index", json!(0)),
        ("stop", json!(true)),
        ("stop_type", json!("eos")),
        ("stopped_eos", json!(true)),
        ("stopped_word", json!(false)),
        ("stopped_limit", json!(false)),
        ("stopping_word", json!("")),
        ("has_new_line", json!(true)),
        ("truncated", json!(false)),
        ("model", json!("tiny.gguf")),
        ("id_slot", json!(0)),
        ("tokens_predicted", json!(9)),
    ] {
        assert_eq!(json[key], expected, "{key}");
    }
    assert_eq!(json["tokens"].as_array().unwrap().len(), 9);
    let n_prompt = server.backend.last_job().prompt.len();
    assert_eq!(json["tokens_evaluated"], n_prompt);
    assert_eq!(json["tokens_cached"], n_prompt + 8);
    assert!(json["prompt"].as_str().unwrap().ends_with("Say it"));
    let settings = &json["generation_settings"];
    assert_eq!(
        (
            &settings["seed"],
            &settings["n_predict"],
            &settings["top_k"]
        ),
        (&json!(42), &json!(50), &json!(40))
    );
    assert_eq!(
        settings["samplers"],
        json!([
            "penalties",
            "dry",
            "top_n_sigma",
            "top_k",
            "typ_p",
            "top_p",
            "min_p",
            "xtc",
            "temperature"
        ])
    );
    let timings = &json["timings"];
    assert_eq!(
        (
            &timings["predicted_n"],
            &timings["prompt_n"],
            &timings["cache_n"]
        ),
        (&json!(9), &json!(n_prompt), &json!(0))
    );
    let (ms, rate) = (
        timings["predicted_ms"].as_f64().unwrap(),
        timings["predicted_per_second"].as_f64().unwrap(),
    );
    assert!(
        ms == 0.0 || (rate - 8e3 / ms).abs() < 1e-6 * rate,
        "{timings}"
    );
    // 8 ms for the prompt and half a millisecond for each token, as the backend told.
    assert_eq!(timings["cpu_ms"], 12.5);
    assert_eq!(timings.get("joules"), None, "there is no meter");
}

#[test]
fn joules_of_an_answer_that_was_alone() {
    let server = Server::start();
    server.plays(Script {
        tokens: server.byte_tokens(b"Hello"),
        ..Script::default()
    });
    let at = Instant::now();
    let moment = |seconds, joules, accepted| EnergyMoment {
        at: at + Duration::from_secs(seconds),
        joules,
        idle_w: 5.0,
        open: 0,
        accepted,
    };
    let ask = |moments: [EnergyMoment; 2]| {
        server.backend.meter.lock().unwrap().extend(moments);
        let body = json!({ "messages": [{ "role": "user", "content": "Hi" }] });
        server.post("/v1/chat/completions", body).json()["timings"].clone()
    };
    let alone = ask([moment(0, 100.0, 3), moment(2, 160.0, 4)]);
    assert_eq!(alone["joules"], 50.0, "{alone}");
    let n = alone["prompt_n"].as_f64().unwrap() + 5.0;
    assert_eq!(alone["joules_per_token"], 50.0 / n);
    let among_others = ask([moment(0, 100.0, 3), moment(2, 160.0, 5)]);
    assert_eq!(among_others.get("joules"), None);
    assert!(among_others["cpu_ms"].is_number());
}

#[test]
fn guesses_are_counted() {
    let server = Server::start();
    let ask = || server.post("/completion", json!({ "prompt": "Hi" })).json()["timings"].clone();
    server.plays(Script {
        tokens: server.byte_tokens(b"Hello"),
        ..Script::default()
    });
    let (plain, text) = (ask(), server.get("/metrics").text());
    assert_eq!(
        (plain.get("draft_n"), plain.get("draft_n_accepted")),
        (None, None)
    );
    assert!(text.contains("spec_decode_num_drafts_total 0\n") && !text.contains("per_pos"));
    // Three in the first step, two in the second, where the second guess was wrong.
    server.plays(Script {
        tokens: server.byte_tokens(b"Hello"),
        per_step: 3,
        ..Script::default()
    });
    let timings = ask();
    assert_eq!(timings["draft_n"], 4);
    assert_eq!(timings["draft_n_accepted"], 3);
    let text = server.get("/metrics").text();
    for line in [
        "num_draft_tokens_total 4",
        "num_accepted_tokens_total 3",
        "num_drafts_total 2",
        "num_accepted_tokens_per_pos_total{position=\"0\"} 2",
        "num_accepted_tokens_per_pos_total{position=\"1\"} 1",
    ] {
        assert!(
            text.contains(&format!("\nllamacpp:spec_decode_{line}\n")),
            "{line} in {text}"
        );
    }
    // Guesses that were right make no slot a second one.
    assert!(text.contains("n_busy_slots_per_decode 1\n"), "{text}");
}

#[test]
fn chat_completion() {
    let server = Server::start();
    server.plays(Script {
        tokens: server.byte_tokens(b"Hello"),
        finish: Finish::Limit,
        cached: 3,
        ..Script::default()
    });
    for path in ["/chat/completions", "/v1/chat/completions"] {
        let reply = server.post(path, json!({
            "model": "gpt-4", "messages": [{ "role": "user", "content": "Hi" }], "max_tokens": 9, "stream": false,
        }));
        assert_eq!(reply.status, 200, "{}", reply.text());
        let json = reply.json();
        assert_eq!(json["object"], "chat.completion");
        assert_eq!(json["model"], "tiny.gguf", "the server's own name");
        assert!(json["id"].as_str().unwrap().starts_with("chatcmpl-"));
        assert!(
            json["system_fingerprint"]
                .as_str()
                .unwrap()
                .starts_with('b')
        );
        let choice = &json["choices"][0];
        assert_eq!(
            choice["message"],
            json!({ "role": "assistant", "content": "Hello" })
        );
        assert_eq!(
            (&choice["finish_reason"], &choice["index"]),
            (&json!("length"), &json!(0))
        );
        let n_prompt = server.backend.last_job().prompt.len();
        assert_eq!(
            json["usage"],
            json!({
                "completion_tokens": 5, "prompt_tokens": n_prompt, "total_tokens": n_prompt + 5,
                "prompt_tokens_details": { "cached_tokens": 3 },
            })
        );
        assert_eq!(json["timings"]["prompt_n"], n_prompt - 3);
    }
}

#[test]
fn openai_text_completion_has_native_keys_too() {
    let server = Server::start();
    server.says("abc");
    let json = server
        .post("/v1/completions", json!({ "prompt": "x", "echo": true }))
        .json();
    assert_eq!(json["object"], "text_completion");
    assert_eq!(
        json["choices"][0],
        json!({ "text": "xabc", "index": 0, "logprobs": null, "finish_reason": "stop" })
    );
    assert_eq!(
        (&json["content"], &json["stop"], &json["tokens_predicted"]),
        (&json!("xabc"), &json!(true), &json!(4))
    );
    assert_eq!(json["usage"]["completion_tokens"], 4);

    let json = server
        .post("/v1/completions", json!({ "prompt": ["a", "b"], "n": 2 }))
        .json();
    let indices: Vec<&Value> = json["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| &choice["index"])
        .collect();
    assert_eq!(indices, [0, 1, 2, 3]);
    assert_eq!(json["usage"]["completion_tokens"], 16);
}

#[test]
fn several_answers() {
    let server = Server::start();
    server.says("yes");
    let json = server
        .post(
            "/completion",
            json!({ "prompt": ["one", [1, 2, 3], ["two", 4]], "seed": 5 }),
        )
        .json();
    let contents: Vec<&Value> = json
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["content"])
        .collect();
    assert_eq!(contents, ["yes", "yes", "yes"]);

    let json = server
        .post("/completion", json!({ "prompt": "one", "n": 2, "seed": 5 }))
        .json();
    assert_eq!(json[0]["generation_settings"]["seed"], 5);
    assert_eq!(json[1]["generation_settings"]["seed"], 6);

    let json = server
        .post("/completion", json!({ "prompt": [1, 2, "mixed", 3] }))
        .json();
    assert_eq!(json["content"], "yes", "one mixed prompt");
}

#[test]
fn fields_reach_the_engine() {
    let server = Server::start();
    server.says("x");
    server.post("/completion", json!({
        "prompt": "p", "n_predict": 3, "temperature": -1, "top_k": 5, "top_p": 2, "min_p": 0.25, "typical_p": null,
        "repeat_last_n": -1, "repeat_penalty": 1.5, "frequency_penalty": 0.5, "presence_penalty": -0.5,
        "seed": 4_294_967_298_u64, "ignore_eos": true, "logit_bias": [[7, -1.5], [8, false], ["bad"], [99999, 1]],
        "samplers": "tkZ", "cache_prompt": false, "id_slot": 1, "n_keep": -1, "min_keep": 2, "unknown": {},
        "n_threads": 4, "n_gpu_layers": 0, "grammar": "", "tools": [], "mirostat": 0, "stop": [],
    }));
    let job = server.backend.last_job();
    let s = &job.sampling;
    assert_eq!(
        (job.max_tokens, job.cache_prompt, job.slot, job.n_keep),
        (Some(3), false, Some(1), job.prompt.len())
    );
    assert_eq!(
        (s.temperature, s.top_k, s.top_p, s.min_p, s.typical_p),
        (0.0, 5, 1.0, 0.25, 1.0)
    );
    assert_eq!(
        (
            s.repeat_last_n,
            s.repeat_penalty,
            s.frequency_penalty,
            s.presence_penalty
        ),
        (u32::MAX, 1.5, 0.5, -0.5)
    );
    assert_eq!((s.seed, s.ignore_eos, s.min_keep), (2, true, 2));
    assert_eq!(s.logit_bias, [(7, -1.5), (8, f32::MIN)]);
    assert_eq!(s.samplers, [SamplerKind::Temperature, SamplerKind::TopK]);

    server.post(
        "/completion",
        json!({ "prompt": "p", "seed": -1, "logit_bias": { "7": 1 }, "n_predict": -1 }),
    );
    let job = server.backend.last_job();
    assert_eq!(
        (job.max_tokens, job.sampling.logit_bias),
        (None, vec![(7, 1.0)])
    );
    assert!(job.cache_prompt);
}

/// The server under test guesses at most five tokens ahead.
#[test]
fn guesses_are_limited_by_the_request() {
    let server = Server::start();
    server.says("x");
    for (asked, job, shown) in [
        (json!({}), None, 5),
        (json!({ "speculative.n_max": 0 }), Some(0), 0),
        (json!({ "speculative.n_max": -1 }), Some(0), 0),
        (
            json!({ "speculative.n_max": 3, "speculative.n_min": 2, "speculative.p_min": 0.75 }),
            Some(3),
            3,
        ),
        (json!({ "speculative.n_max": 16 }), Some(16), 5),
    ] {
        let mut body = asked.clone();
        body["prompt"] = json!("p");
        let json = server.post("/completion", body).json();
        assert_eq!(server.backend.last_job().draft_max, job, "{asked}");
        let settings = &json["generation_settings"];
        assert_eq!(settings["speculative.n_max"], shown, "{asked}");
    }
    let defaults = &server.get("/props").json()["default_generation_settings"];
    assert_eq!(defaults["params"]["speculative.n_max"], 5);
    for name in [
        "speculative.n_max",
        "speculative.n_min",
        "speculative.p_min",
    ] {
        let mut body = json!({ "prompt": "p" });
        body[name] = json!("many");
        let reply = server.post("/completion", body);
        assert_eq!(reply.status, 400, "{name}");
        let message = &reply.json()["error"]["message"];
        assert!(message.as_str().unwrap().contains(name), "{message}");
    }
}

#[test]
fn defaults_come_from_the_settings() {
    let config = ServerConfig {
        max_tokens: Some(4),
        max_tokens_cap: Some(6),
        seed: Some(11),
        stop: vec!["!".into()],
        aliases: vec!["zed".into(), "code".into()],
        ..ServerConfig::default()
    };
    let server = Server::with(config);
    server.says("ab!cd");
    let json = server.post("/completion", json!({ "prompt": "p" })).json();
    assert_eq!(
        (&json["content"], &json["stopping_word"], &json["model"]),
        (&json!("ab"), &json!("!"), &json!("code"))
    );
    assert_eq!(server.backend.last_job().max_tokens, Some(4));
    assert_eq!(server.backend.last_job().sampling.seed, 11);
    server.post("/completion", json!({ "prompt": "p", "n_predict": 1000 }));
    assert_eq!(server.backend.last_job().max_tokens, Some(6));
    server.post("/completion", json!({ "prompt": "p", "n_predict": -1 }));
    assert_eq!(server.backend.last_job().max_tokens, Some(6));
}

#[test]
fn stop_words_end_the_answer() {
    let server = Server::start();
    server.says("one STOP two");
    let json = server
        .post(
            "/completion",
            json!({ "prompt": "p", "stop": ["STOP", ""], "n_probs": 1 }),
        )
        .json();
    assert_eq!(
        (&json["content"], &json["stop_type"], &json["stopping_word"]),
        (&json!("one "), &json!("word"), &json!("STOP"))
    );
    assert_eq!(
        json["completion_probabilities"].as_array().unwrap().len(),
        4,
        "none for the stop word"
    );
    let json = server
        .post(
            "/v1/chat/completions",
            json!({ "messages": [{ "role": "user", "content": "x" }], "stop": "STOP" }),
        )
        .json();
    assert_eq!(json["choices"][0]["message"]["content"], "one ");
    assert_eq!(json["choices"][0]["finish_reason"], "stop");
}

#[test]
fn probabilities() {
    let server = Server::start();
    server.says("ab");
    let json = server
        .post("/completion", json!({ "prompt": "p", "n_probs": 2 }))
        .json();
    let first = &json["completion_probabilities"][0];
    assert_eq!(
        (&first["token"], &first["bytes"], &first["logprob"]),
        (&json!("a"), &json!([97]), &json!(-0.5))
    );
    assert_eq!(first["top_logprobs"].as_array().unwrap().len(), 2);

    let json = server
        .post(
            "/completion",
            json!({ "prompt": "p", "n_probs": 1, "post_sampling_probs": true }),
        )
        .json();
    let first = &json["completion_probabilities"][0];
    assert!((first["prob"].as_f64().unwrap() - (-0.5f64).exp()).abs() < 1e-9);
    assert!(first["top_probs"].is_array() && first.get("logprob").is_none());

    let chat = json!({ "messages": [{ "role": "user", "content": "x" }], "logprobs": true, "top_logprobs": 2 });
    let json = server.post("/v1/chat/completions", chat).json();
    assert_eq!(json["choices"][0]["logprobs"]["content"][1]["token"], "b");
}

#[test]
fn response_fields() {
    let server = Server::start();
    server.says("ab");
    let fields = json!(["content", "generation_settings/n_predict", "no/such"]);
    let reply = server.post(
        "/completion",
        json!({ "prompt": "p", "response_fields": fields, "n_predict": 9 }),
    );
    assert_eq!(reply.text(), r#"{"content":"ab","n_predict":9}"#);
}

#[test]
fn messages_become_a_prompt() {
    let server = Server::with(ServerConfig {
        chat_template: Some("chatml".into()),
        ..ServerConfig::default()
    });
    let prompt = |body: Value| {
        server.post("/apply-template", body).json()["prompt"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let parts = json!([{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }]);
    let body = json!({ "messages": [{ "role": "developer", "content": "S" }, { "role": "user", "content": parts }] });
    let text = prompt(body.clone());
    assert_eq!(
        text,
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na\nb<|im_end|>\n<|im_start|>assistant\n"
    );

    let mut prefilled = body.clone();
    prefilled["messages"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "role": "assistant", "content": "Sure, " }));
    assert_eq!(prompt(prefilled), format!("{text}Sure, "));

    let mut silent = body;
    silent["add_generation_prompt"] = json!(false);
    assert!(prompt(silent).ends_with("b<|im_end|>\n"));
}

#[test]
fn system_message_from_the_settings() {
    let server = Server::with(ServerConfig {
        chat_template: Some("chatml".into()),
        system_message: Some("Be kind.".into()),
        ..ServerConfig::default()
    });
    let prompt = |messages: Value| {
        server
            .post("/apply-template", json!({ "messages": messages }))
            .text()
    };
    assert!(prompt(json!([{ "role": "user", "content": "x" }])).contains("Be kind."));
    assert!(
        !prompt(json!([{ "role": "system", "content": "s" }, { "role": "user", "content": "x" }]))
            .contains("Be kind.")
    );
}

#[test]
fn prompts_begin_with_one_bos() {
    let server = Server::with(ServerConfig {
        chat_template: Some("bitnet".into()),
        ..ServerConfig::default()
    });
    server.says("x");
    let Some(bos) = server
        .tokenizer
        .bos()
        .filter(|_| server.tokenizer.adds_bos())
    else {
        return;
    };
    server.post(
        "/chat/completions",
        json!({ "messages": [{ "role": "user", "content": "x" }] }),
    );
    let prompt = server.backend.last_job().prompt;
    assert_eq!(prompt.iter().filter(|token| **token == bos).count(), 1);
    assert_eq!(prompt[0], bos);
    server.post("/completion", json!({ "prompt": "" }));
    assert_eq!(server.backend.last_job().prompt, [bos]);
}

#[test]
fn the_official_file_gets_the_right_template() {
    let server = Server::loading(ServerConfig::default());
    let card = published_card();
    assert!(
        card.tokenizer
            .chat_template()
            .expect("one")
            .contains("BITNET")
    );
    let eot = card
        .tokenizer
        .token_id("<|eot_id|>")
        .expect("in the vocabulary");
    assert!(card.tokenizer.eog().contains(&eot));
    let bos = card.tokenizer.bos();
    server.app.set_model(card).unwrap();
    let body = json!({ "messages": [
        { "role": "system", "content": "S" }, { "role": "user", "content": " Hi " },
    ] });
    let prompt = server.post("/apply-template", body.clone()).json()["prompt"].clone();
    let prompt = prompt.as_str().unwrap();
    assert!(
        prompt.ends_with("System: S<|eot_id|>User: Hi<|eot_id|>Assistant: "),
        "{prompt}"
    );

    server.plays(Script {
        tokens: vec![eot],
        ..Script::default()
    });
    let json = server.post("/chat/completions", body).json();
    assert_eq!(json["choices"][0]["message"]["content"], "");
    assert_eq!(json["choices"][0]["finish_reason"], "stop");
    let job = server.backend.last_job();
    assert_eq!(
        job.prompt
            .iter()
            .filter(|token| Some(**token) == bos)
            .count(),
        1
    );
    assert_eq!(job.prompt.iter().filter(|token| **token == eot).count(), 2);
}

#[test]
fn tokens_and_back() {
    let server = Server::start();
    let text = "Hällo 日本 🙂\r\n x";
    let tokens = server.post("/tokenize", json!({ "content": text })).json()["tokens"].clone();
    assert!(tokens.as_array().unwrap().len() > 5);
    assert_eq!(
        server
            .post("/detokenize", json!({ "tokens": tokens }))
            .json()["content"],
        text
    );
    assert_eq!(
        server.post("/tokenize", json!({})).text(),
        r#"{"tokens":[]}"#
    );
    assert_eq!(
        server.post("/detokenize", json!({})).text(),
        r#"{"content":"","prompt":""}"#
    );
    // vLLM's words, as lm-eval's remote tokenizer says them.
    let plain = json!({ "prompt": text, "add_special_tokens": false });
    assert_eq!(server.post("/tokenize", plain).json()["tokens"], tokens);
    let with_bos = server
        .post("/tokenize", json!({ "content": text, "add_special": true }))
        .json()["tokens"]
        .clone();
    assert_ne!(with_bos, tokens);
    for body in [
        json!({ "prompt": text }),
        json!({ "content": text, "add_special_tokens": true }),
    ] {
        let found = server.post("/tokenize", body.clone()).json();
        assert_eq!(found["tokens"], with_bos, "{body}");
    }
    let info = server.get("/tokenizer_info").json();
    let eos = info["eos_token"].as_str().expect("a text");
    let special = server.post("/tokenize", json!({ "content": eos })).json();
    assert_eq!(special["tokens"].as_array().unwrap().len(), 1, "{eos}");
    assert!(info["chat_template"].is_string());
    let pieces = server
        .post("/tokenize", json!({ "content": "日", "with_pieces": true }))
        .json();
    assert!(pieces["tokens"][0]["id"].is_u64() && !pieces["tokens"][0]["piece"].is_null());
    let mixed = server
        .post("/tokenize", json!({ "content": ["a", 5, "b"] }))
        .json();
    assert!(mixed["tokens"].as_array().unwrap().contains(&json!(5)));
}

#[test]
fn props_slots_models() {
    let server = Server::with(ServerConfig {
        seed: Some(9),
        ..ServerConfig::default()
    });
    let props = server.get("/props").json();
    assert_eq!(props["total_slots"], SLOTS);
    assert_eq!(props["default_generation_settings"]["n_ctx"], SLOT_CONTEXT);
    assert_eq!(props["default_generation_settings"]["params"]["seed"], 9);
    assert_eq!(props["default_generation_settings"]["top_k"], 40);
    assert!(props["model_path"].as_str().unwrap().contains(".gguf"));
    assert!(
        props["chat_template"].is_string()
            && props["build_info"].as_str().unwrap().starts_with('b')
    );

    let slots = server.get("/slots").text();
    assert!(
        slots.contains(r#""state":0"#)
            && slots.contains(r#""id_task":-1"#)
            && slots.contains(r#""n_decoded":0"#),
        "{slots}"
    );
    assert_eq!(server.get("/slots?fail_on_no_slot=1").status, 200);

    for path in ["/models", "/v1/models"] {
        let models = server.get(path).json();
        let model = &models["data"][0];
        assert_eq!(
            (&models["object"], &model["id"], &model["object"]),
            (&json!("list"), &json!("tiny.gguf"), &json!("model"))
        );
        assert!(model["meta"]["n_params"].as_u64().unwrap() > 0);
        assert_eq!(server.get(&format!("{path}/tiny.gguf")).json(), *model);
        let (status, kind, message) = server.get(&format!("{path}/org/other")).error();
        assert_eq!((status, kind.as_str()), (404, "not_found_error"));
        assert!(message.contains("`org/other`") && message.contains("`tiny.gguf`"));
    }
    let page = server.get("/");
    assert!(page.text().starts_with("<!doctype html>"));
    assert!(page.text().contains("<base href=\"/\">"));
    let script = server.get("/ui/app.js");
    assert_eq!(
        script.header("content-type"),
        Some("text/javascript; charset=utf-8")
    );
    for reply in [page, script] {
        let policy = reply.header("content-security-policy").expect("a policy");
        assert!(policy.starts_with("default-src 'none'; script-src 'self'"));
        assert!(!policy.contains("unsafe"), "{policy}");
    }
    assert_eq!(server.get("/ui/none.js").error().0, 404);
}

#[test]
fn the_status_counts_as_tokens_come() {
    let server = Server::start();
    let before = server.get("/status").json();
    assert_eq!(
        (&before["state"], &before["tokens"]["predicted"]),
        (&json!("ready"), &json!(0))
    );
    assert_eq!(before["slots"].as_array().map(Vec::len), Some(SLOTS));
    assert_eq!(before["model"]["slot_context"], SLOT_CONTEXT);
    assert!(before["report"].is_null() && before["vitals"]["energy_j"].is_null());
    server.plays(Script {
        tokens: server.byte_tokens(b"abcd"),
        cached: 2,
        ..Script::default()
    });
    let timings = server
        .post("/completion", json!({ "prompt": "a prompt" }))
        .json()["timings"]
        .clone();
    let after = server.get("/status").json();
    assert_eq!(after["tokens"]["predicted"], timings["predicted_n"]);
    assert_eq!(after["tokens"]["prompt"], timings["prompt_n"]);
    assert_eq!(after["requests"]["ended"], 1);
    assert!(after["now_ms"].as_u64() >= before["now_ms"].as_u64());
}

#[test]
fn metrics_add_up() {
    let server = Server::start();
    server.plays(Script {
        tokens: server.byte_tokens(b"abcd"),
        cached: 2,
        ..Script::default()
    });
    let (mut prompt_n, mut cache_n) = (0, 0);
    for prompt in ["first prompt", "the second prompt"] {
        let timings = server
            .post("/completion", json!({ "prompt": prompt }))
            .json()["timings"]
            .clone();
        prompt_n += timings["prompt_n"].as_u64().unwrap();
        cache_n += timings["cache_n"].as_u64().unwrap();
    }
    // The reply is out before the backend has put the job away.
    server.until("the jobs are put away", |server| {
        server
            .get("/metrics")
            .text()
            .contains("\nllamacpp:requests_processing 0\n")
    });
    let reply = server.get("/metrics");
    assert_eq!(
        reply.header("content-type"),
        Some("text/plain; version=0.0.4")
    );
    assert!(reply.header("process-start-time-unix").is_some());
    let text = reply.text();
    let value = |name: &str| {
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("{name} ")))
            .unwrap_or_else(|| panic!("{name} in {text}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert_eq!(value("llamacpp:prompt_tokens_total"), prompt_n as f64);
    assert_eq!(value("llamacpp:prompt_tokens_cached_total"), cache_n as f64);
    assert_eq!(value("llamacpp:tokens_predicted_total"), 8.0);
    assert_eq!(value("bitnet_first_token_seconds_count"), 2.0);
    assert_eq!(value("bitnet_token_seconds_count"), 6.0);
    for name in [
        "prompt_seconds_total",
        "tokens_predicted_seconds_total",
        "n_decode_total",
        "n_tokens_max",
        "n_busy_slots_per_decode",
        "prompt_tokens_seconds",
        "predicted_tokens_seconds",
        "kv_cache_usage_ratio",
        "kv_cache_tokens",
        "requests_deferred",
        "spec_decode_num_draft_tokens_total",
        "spec_decode_num_accepted_tokens_total",
        "spec_decode_num_drafts_total",
    ] {
        value(&format!("llamacpp:{name}"));
    }
    assert!(!text.contains("NaN") && !text.contains("inf\n"));
}
