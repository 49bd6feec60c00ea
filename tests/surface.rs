//! Corners of the API through the real server: how likely a prompt is, files in place of the page, answers as the model wrote
//! them, tokens in grammars, and clients that leave.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;

use bitnet_model::synth::{self, Shape};
use common::{Server, program, wait_for};
use serde_json::{Value, json};
use tempfile::TempDir;

fn server(args: &[&str]) -> Server {
    let args: Vec<&str> = ["--threads", "1"].iter().chain(args).copied().collect();
    Server::ready(&args)
}

fn under_prefix(args: &[&str], prefix: &str) -> Server {
    let mut args = args.to_vec();
    if !prefix.is_empty() {
        args.extend(["--api-prefix", prefix]);
    }
    let server = Server::start(&args);
    wait_for("health", || {
        (server.get(&format!("{prefix}/health")).status == 200).then_some(())
    });
    server
}

/// Status line and headers, in lower case.
fn head(server: &Server, path: &str) -> String {
    let mut client = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    client.write_all(request.as_bytes()).unwrap();
    let mut reply = String::new();
    client.read_to_string(&mut reply).unwrap();
    let (head, _) = reply.split_once("\r\n\r\n").unwrap();
    head.to_lowercase()
}

fn post(server: &Server, path: &str, body: Value) -> Value {
    let reply = server.post(path, &body);
    assert_eq!(reply.status, 200, "{path} {body}: {}", reply.body);
    reply.json()
}

/// The data of a whole stream.
fn frames(server: &Server, path: &str, body: &Value) -> Vec<Value> {
    let text = server.post(path, body).body;
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.filter_map(|data| serde_json::from_str(data).ok())
        .collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    let all = value.as_array().unwrap().iter();
    all.filter_map(Value::as_f64).collect()
}

#[test]
fn an_echoed_prompt_says_how_likely_it_is() {
    let server = server(&["--parallel", "2"]);
    let text = "Once upon a time there was a fox.";
    let tokens = post(&server, "/tokenize", json!({ "content": text }))["tokens"].clone();
    let n = tokens.as_array().unwrap().len();
    let ask = |prompt: &Value, more: Value| {
        let mut body = json!({ "prompt": prompt, "max_tokens": 1, "echo": true, "logprobs": 2, "temperature": 0 });
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        post(&server, "/v1/completions", body)
    };
    let reply = ask(&tokens, json!({}));
    let choice = &reply["choices"][0];
    assert!(choice["text"].as_str().unwrap().starts_with(text));
    let logprobs = &choice["logprobs"];
    for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(logprobs[name].as_array().unwrap().len(), n + 1, "{name}");
    }
    assert_eq!(logprobs["token_logprobs"][0], Value::Null);
    assert_eq!(logprobs["top_logprobs"][0], Value::Null);
    let of_prompt = numbers(&logprobs["token_logprobs"]);
    assert_eq!(of_prompt.len(), n);
    assert!(of_prompt.iter().all(|it| *it <= 0.0));
    // Names, offsets and text agree.
    let names = logprobs["tokens"].as_array().unwrap();
    for (name, offset) in names
        .iter()
        .zip(logprobs["text_offset"].as_array().unwrap())
    {
        let rest = &choice["text"].as_str().unwrap()[offset.as_u64().unwrap() as usize..];
        assert!(rest.starts_with(name.as_str().unwrap()), "{name} {rest}");
    }
    // The same as when the tokens are drawn one by one: `logit_bias` leaves the reported numbers alone.
    for (i, token) in tokens.as_array().unwrap().iter().enumerate().skip(1) {
        let before = &tokens.as_array().unwrap()[..i];
        let drawn = post(
            &server,
            "/completion",
            json!({ "prompt": before, "n_predict": 1, "n_probs": 1, "logit_bias": [[token, 1e6]] }),
        );
        let one = &drawn["completion_probabilities"][0];
        assert_eq!(one["id"], *token);
        let found = one["logprob"].as_f64().unwrap();
        assert!(
            (found - of_prompt[i - 1]).abs() < 1e-6,
            "{found} {}",
            of_prompt[i - 1]
        );
        let top = logprobs["top_logprobs"][i].as_object().unwrap();
        assert!((2..=3).contains(&top.len()), "{top:?}");
        let best = top
            .values()
            .filter_map(Value::as_f64)
            .fold(f64::MIN, f64::max);
        let likeliest = one["top_logprobs"][0]["logprob"].as_f64().unwrap();
        assert!((best - likeliest).abs() < 1e-6);
    }
    // Nothing generated, several prompts, and as a stream.
    let none = ask(&tokens, json!({ "max_tokens": 0 }));
    assert_eq!(
        numbers(&none["choices"][0]["logprobs"]["token_logprobs"])[..],
        of_prompt[..n - 1]
    );
    let two = ask(&json!([tokens, text]), json!({}));
    assert_eq!(
        two["choices"][0]["logprobs"]["token_logprobs"],
        logprobs["token_logprobs"]
    );
    let mut body =
        json!({ "prompt": tokens, "max_tokens": 1, "echo": true, "logprobs": 2, "temperature": 0 });
    body["stream"] = json!(true);
    let frames = frames(&server, "/v1/completions", &body);
    let streamed: Vec<Value> = frames
        .iter()
        .filter_map(|frame| frame["choices"][0]["logprobs"]["token_logprobs"].as_array())
        .flatten()
        .cloned()
        .collect();
    assert_eq!(json!(streamed), logprobs["token_logprobs"]);
}

#[test]
fn a_response_includes_logprobs_when_asked() {
    let server = server(&[]);
    let mut body = json!({ "input": "Hi", "max_output_tokens": 3, "temperature": 0,
        "include": ["message.output_text.logprobs"], "top_logprobs": 2 });
    let reply = post(&server, "/v1/responses", body.clone());
    let part = &reply["output"][0]["content"][0];
    let logprobs = part["logprobs"].as_array().unwrap();
    assert_eq!(logprobs.len(), 3);
    let text: String = logprobs
        .iter()
        .filter_map(|it| it["token"].as_str())
        .collect();
    assert_eq!(json!(text), part["text"]);
    assert_eq!(logprobs[0]["top_logprobs"].as_array().unwrap().len(), 2);
    body["stream"] = json!(true);
    let frames = frames(&server, "/v1/responses", &body);
    let deltas = frames
        .iter()
        .filter(|it| it["type"] == "response.output_text.delta");
    let streamed: Vec<&Value> = deltas
        .flat_map(|it| it["logprobs"].as_array().unwrap())
        .collect();
    assert_eq!(json!(streamed), part["logprobs"]);
    let plain = post(
        &server,
        "/v1/responses",
        json!({ "input": "Hi", "max_output_tokens": 3 }),
    );
    assert_eq!(plain["output"][0]["content"][0]["logprobs"], json!([]));
}

#[test]
fn a_folder_takes_the_place_of_the_page() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("index.html", "<!doctype html><p>mine");
    write("app.js", "1");
    write("metrics", "not the metrics");
    std::fs::create_dir(folder.path().join("sub")).unwrap();
    write("sub/index.html", "below");
    let path = folder.path().to_str().unwrap();
    for prefix in ["", "/llm"] {
        let server = under_prefix(&["--path", path, "--api-key", "k"], prefix);
        let get = |path: &str| server.get(&format!("{prefix}{path}"));
        assert_eq!(get("/").body, "<!doctype html><p>mine");
        assert_eq!(get("/app.js").body, "1");
        let head = head(&server, &format!("{prefix}/app.js"));
        assert!(head.contains("content-type: text/javascript"), "{head}");
        assert_eq!(get("/sub/index.html").body, "below");
        // Routes keep their names and their keys, and nothing leads out of the folder.
        for route in [
            "/metrics",
            "/slots",
            "/v1/models",
            "/props",
            "/openapi.json",
        ] {
            assert_eq!(get(route).status, 401, "{route}");
        }
        for missing in [
            "/nothing",
            "/ui/app.js",
            "/../Cargo.toml",
            "/%2e%2e/etc/passwd",
            "/sub/..%2f..%2fetc/passwd",
        ] {
            let reply = get(missing);
            assert!(
                [400, 404].contains(&reply.status),
                "{missing}: {}",
                reply.status
            );
            assert!(!reply.body.contains("root:"));
        }
        assert_eq!(get("/health").status, 200);
    }
}

#[test]
fn everything_stands_under_the_prefix() {
    let server = under_prefix(&[], "/llm");
    for (path, status) in [
        ("/llm/", 200),
        ("/llm", 200),
        ("/llm/ui/app.js", 200),
        ("/llm/openapi.json", 200),
        ("/llm/v1/models", 200),
        ("/llm/api/tags", 200),
        ("/health", 404),
        ("/v1/models", 404),
        ("/openapi.json", 404),
    ] {
        assert_eq!(server.get(path).status, status, "{path}");
    }
    let described = server.get("/llm/openapi.json").json();
    let paths = described["paths"].as_object().unwrap();
    assert!(
        paths.keys().all(|path| path.starts_with("/llm/")),
        "{paths:?}"
    );
    assert!(server.get("/llm/").body.contains("<base href=\"/llm/\""));
}

#[test]
fn answers_stay_as_the_model_wrote_them_when_asked() {
    let tools = json!([{ "type": "function", "function": { "name": "f", "parameters": { "type": "object", "properties": {} } } }]);
    let body = json!({ "messages": [{ "role": "user", "content": "Hi" }], "tools": tools, "tool_choice": "required",
        "parallel_tool_calls": false, "max_tokens": 90 });
    let parsed = post(&server(&[]), "/v1/chat/completions", body.clone());
    let message = &parsed["choices"][0]["message"];
    assert_eq!(message["tool_calls"][0]["function"]["name"], "f");
    let plain = post(
        &server(&["--skip-chat-parsing"]),
        "/v1/chat/completions",
        body,
    );
    let choice = &plain["choices"][0];
    assert!(choice["message"].get("tool_calls").is_none());
    assert!(
        choice["message"]["content"]
            .as_str()
            .unwrap()
            .starts_with("<tool_call>")
    );
    assert_eq!(choice["finish_reason"], "stop");
}

#[test]
fn grammars_name_tokens_and_samplers_adapt() {
    let server = server(&["--adaptive-target", "0.3", "--samplers", "top_k;adaptive_p"]);
    let token = &post(&server, "/tokenize", json!({ "content": " fox" }))["tokens"];
    let grammar = format!("root ::= \"a\" <[{}]> \"!\"", token[0]);
    let reply = post(
        &server,
        "/completion",
        json!({ "prompt": "x", "grammar": grammar }),
    );
    assert_eq!(
        (&reply["content"], &reply["stop_type"]),
        (&json!("a fox!"), &json!("eos"))
    );
    let settings = &reply["generation_settings"];
    assert_eq!(settings["samplers"], json!(["top_k", "adaptive_p"]));
    assert!((settings["adaptive_target"].as_f64().unwrap() - 0.3).abs() < 1e-6);
    let bad = server.post(
        "/completion",
        &json!({ "prompt": "x", "grammar": "root ::= <nobody>" }),
    );
    assert_eq!(bad.status, 400);
    assert!(bad.body.contains("no token `<nobody>`"), "{}", bad.body);
    // As llama.cpp's tests have it: `items` alone speak of an array.
    let list = post(
        &server,
        "/v1/chat/completions",
        json!({ "messages": [{ "role": "user", "content": "Hi" }], "max_tokens": 200,
            "response_format": { "type": "json_object", "schema": { "items": [{ "type": "integer", "maximum": 99 }] } } }),
    );
    let text = list["choices"][0]["message"]["content"].as_str().unwrap();
    let value: Value = serde_json::from_str(text).unwrap();
    assert!(
        value[0].is_i64() && value.as_array().unwrap().len() == 1,
        "{text}"
    );
    let refused = server.post(
        "/v1/chat/completions",
        &json!({ "messages": [{ "role": "user", "content": "Hi" }],
            "response_format": { "type": "json_object", "schema": { "items": {}, "uniqueItems": true } } }),
    );
    assert_eq!(refused.status, 400);
    assert!(refused.body.contains("uniqueItems"), "{}", refused.body);
}

/// Sends a request and leaves without reading.
fn knock(server: &Server, body: &Value) -> TcpStream {
    let body = body.to_string();
    let mut client = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    let head = format!(
        "POST /completion HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    client
        .write_all(format!("{head}{body}").as_bytes())
        .unwrap();
    client
}

fn counter(server: &Server, name: &str) -> f64 {
    let text = server.get("/metrics").body;
    let line = text
        .lines()
        .find(|line| line.starts_with(&format!("{name} ")));
    line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn llama_servers_flags_about_memory_priority_and_keys_have_effect() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("m.gguf");
    synth::write(&Shape::preset("tiny").unwrap(), 1, &model, &mut |_, _| {}).unwrap();
    let path = model.to_str().unwrap();
    let started = |flags: &[&str]| {
        let home = tempfile::tempdir().unwrap();
        let mut command = program(home.path());
        command.args([
            "llama-server",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "-m",
            path,
        ]);
        command.args(flags);
        let server = Server::launch(command, home, |_| {});
        server.wait_until_ready();
        server
    };
    let engine_file = |server: &Server, name: &str| {
        std::fs::read_to_string(format!("/proc/{}/{name}", server.engine())).unwrap()
    };
    // Behind the name in brackets, the nice value is the 17th field.
    let nice = |server: &Server| -> i32 {
        let stat = engine_file(server, "stat");
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        fields.split(' ').nth(16).unwrap().parse().unwrap()
    };
    let story =
        json!({ "prompt": [7, 8, 9, 7, 8], "n_predict": 8, "temperature": 0, "n_probs": 3 });
    let tokens = |server: &Server| {
        post(server, "/completion", story.clone())["completion_probabilities"].clone()
    };

    let mapped = started(&[]);
    assert!(engine_file(&mapped, "maps").contains("m.gguf"));
    let usual = nice(&mapped);
    let wanted = tokens(&mapped);

    let keys = "general.name=str:renamed,bitnet-b1.58.context_length=int:300";
    let copied = started(&[
        "--no-mmap",
        "--prio",
        "-1",
        "--override-kv",
        keys,
        "-c",
        "0",
    ]);
    assert!(!engine_file(&copied, "maps").contains("m.gguf"));
    // Who is less urgent already may not be allowed to become more so.
    assert!(nice(&copied) == 5 || usual > 5, "{}", nice(&copied));
    assert_eq!(tokens(&copied), wanted, "the same weights");
    let models = copied.get("/models").json();
    assert_eq!(models["models"][0]["description"], "renamed");
    assert_eq!(models["data"][0]["meta"]["n_ctx_train"], 300);

    // Positions half as far apart, and twice the reach.
    let scaled = started(&["--rope-scale", "2", "-c", "1024", "-np", "1"]);
    assert_eq!(
        scaled.get("/props").json()["default_generation_settings"]["n_ctx"],
        1024
    );
    assert_ne!(tokens(&scaled), wanted);
}

/// A model that takes its time: tens of milliseconds for a token with the scalar kernel, more on a busy machine.
fn slow_model(dir: &TempDir) -> String {
    let path = dir.path().join("slow.gguf");
    let shape = Shape {
        n_layer: 8,
        n_embd: 512,
        n_ff: 1408,
        n_head: 8,
        n_head_kv: 4,
        context_length: 2048,
        ..Shape::preset("tiny").unwrap()
    };
    synth::write(&shape, 1, &path, &mut |_, _| {}).unwrap();
    path.to_str().unwrap().to_owned()
}

fn slot(server: &Server) -> Value {
    server.get("/slots").json()[0].clone()
}

fn decoded(slot: &Value) -> u64 {
    slot["next_token"][0]["n_decoded"].as_u64().unwrap()
}

/// The slot as the engine left it.
fn slot_at_rest(server: &Server) -> Value {
    wait_for("the slot to be idle", || {
        let slot = slot(server);
        (slot["is_processing"] == false).then_some(slot)
    })
}

/// Tokens that may be on their way when a client leaves: the one being computed, and those computed while three processes are
/// woken. Seconds would be dozens.
const FEW: u64 = 8;

#[test]
fn clients_that_leave_cost_a_token_and_no_turn() {
    let dir = tempfile::tempdir().unwrap();
    let model = slow_model(&dir);
    let server = server(&[
        "-m",
        &model,
        "--kernel",
        "i2_s/scalar",
        "--parallel",
        "1",
        "--ctx-size",
        "2048",
    ]);
    let endless = json!({ "prompt": "Once", "n_predict": -1, "ignore_eos": true });
    let started = || {
        wait_for("some tokens", || {
            let slot = slot(&server);
            (slot["is_processing"] == true && decoded(&slot) >= 3).then_some(slot)
        })
    };

    let mut streaming = endless.clone();
    streaming["stream"] = json!(true);
    let mut stream = server.stream("/completion", &streaming);
    let read = stream.take_frames(5).len() as u64;
    drop(stream);
    let all = decoded(&slot_at_rest(&server));
    assert!(all <= read + FEW, "{all} tokens, the client read {read}");

    let running = knock(&server, &endless);
    started();
    let queued: Vec<TcpStream> = (0..5).map(|_| knock(&server, &endless)).collect();
    wait_for("five to wait", || {
        (counter(&server, "llamacpp:requests_deferred") == 5.0).then_some(())
    });
    drop(queued);
    wait_for("the queue to be empty", || {
        (counter(&server, "llamacpp:requests_deferred") == 0.0).then_some(())
    });
    let before = slot(&server);
    drop(running);
    let after = slot_at_rest(&server);
    let (before_n, after_n) = (decoded(&before), decoded(&after));
    assert!(
        after_n <= before_n + FEW,
        "{before_n} tokens, then {after_n}"
    );
    assert_eq!(after["id_task"], before["id_task"], "no other ran");

    // Its step goes on to the end, the prompt doesn't.
    let prompt = json!({ "prompt": vec![5; 1900], "n_predict": 1 });
    let running = knock(&server, &prompt);
    wait_for("a part of the prompt", || {
        let slot = slot(&server);
        let n = slot["n_prompt_tokens_processed"].as_u64();
        (slot["id_task"] != before["id_task"] && n.unwrap_or(0) > 0).then_some(())
    });
    drop(running);
    let evaluated = slot_at_rest(&server)["n_prompt_tokens_processed"].as_u64();
    assert!(evaluated.unwrap() < 1000, "{evaluated:?} of 1900 tokens");

    // The slot is free a moment before the request is counted.
    wait_for("eight to be counted", || {
        (counter(&server, "bitnet_generations_cancelled_total") == 8.0).then_some(())
    });
    let served = json!({ "prompt": "x", "n_predict": 2 });
    assert_eq!(post(&server, "/completion", served)["tokens_predicted"], 2);
}
