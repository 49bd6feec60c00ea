//! Engines killed again and again under four clients.
//!
//! `BITNET_FAULT_KILLS` says how many times; 100 take a quarter of a minute with the release binary.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use super::{count, interrupted};
use crate::common::{LONG, Server, end_by, wait_for};

const KILLS: usize = 25;
const CLIENTS: u64 = 4;
/// Different requests of each client, in turns.
const KINDS: u64 = 3;
const N_PREDICT: usize = 150;

/// Streams and whole answers, texts and chats, sampled and greedy.
fn request(client: u64, kind: u64) -> (&'static str, Value) {
    let seed = 100 * client + kind;
    let common = json!({
        "seed": seed, "n_predict": N_PREDICT, "ignore_eos": true, "return_tokens": true,
        "stream": client % 2 == 1, "temperature": if kind == 2 { 0.0 } else { 0.8 },
    });
    let mut body = common;
    match kind {
        1 => {
            body["messages"] =
                json!([{"role": "user", "content": format!("Tell me story {seed}")}]);
            ("/v1/chat/completions", body)
        }
        _ => {
            body["prompt"] = json!(format!("Once upon a time number {seed}"));
            ("/completion", body)
        }
    }
}

/// The text of an answer; `seen` counts the frames as they come.
fn ask(server: &Server, client: u64, kind: u64, seen: &AtomicUsize) -> String {
    let (path, body) = request(client, kind);
    let text = |value: &Value| {
        let choice = &value["choices"][0];
        let texts = [
            &value["content"],
            &choice["delta"]["content"],
            &choice["message"]["content"],
        ];
        texts
            .iter()
            .find_map(|text| text.as_str())
            .unwrap_or_default()
            .to_owned()
    };
    if body["stream"] == json!(false) {
        let reply = server.post(path, &body);
        assert_eq!(reply.status, 200, "{}", reply.body);
        return text(&reply.json());
    }
    let mut whole = String::new();
    let mut ended = false;
    for data in server.stream(path, &body) {
        seen.fetch_add(1, Ordering::Relaxed);
        if data == "[DONE]" {
            break;
        }
        let frame: Value = serde_json::from_str(&data).unwrap();
        assert!(frame["error"].is_null(), "{frame}");
        whole += &text(&frame);
        ended |= frame["stop"] == json!(true) || !frame["choices"][0]["finish_reason"].is_null();
    }
    assert!(ended, "a stream without its last frame");
    whole
}

fn files_and_threads(server: &Server) -> (usize, usize) {
    let entries = |what: &str| {
        let folder = format!("/proc/{}/{what}", server.pid());
        fs::read_dir(folder).unwrap().count()
    };
    (entries("fd"), entries("task"))
}

#[test]
fn nobody_notices_engines_that_are_killed() {
    let kills = count("BITNET_FAULT_KILLS", KILLS);
    let server = Server::ready(&["--threads", "1", "--parallel", "4", "--ctx-size", "4096"]);
    let nobody = AtomicUsize::new(0);
    let wanted: Vec<Vec<String>> = (0..CLIENTS)
        .map(|client| {
            (0..KINDS)
                .map(|kind| ask(&server, client, kind, &nobody))
                .collect()
        })
        .collect();
    let before = files_and_threads(&server);
    let (seen, over, answered) = (
        AtomicUsize::new(0),
        AtomicBool::new(false),
        AtomicUsize::new(0),
    );
    let began = Instant::now();
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (server, wanted) = (&server, &wanted[client as usize]);
            let (seen, over, answered) = (&seen, &over, &answered);
            scope.spawn(move || {
                let mut turn = client;
                while !over.load(Ordering::Relaxed) {
                    let kind = turn % KINDS;
                    assert_eq!(ask(server, client, kind, seen), wanted[kind as usize]);
                    answered.fetch_add(1, Ordering::Relaxed);
                    turn += 1;
                }
            });
        }
        for n in 0..kills {
            // Each engine gets to say something first, and dies at another place.
            let told = seen.load(Ordering::Relaxed);
            wait_for("a token", || {
                (seen.load(Ordering::Relaxed) > told).then_some(())
            });
            thread::sleep(Duration::from_millis(n as u64 * 7 % 23));
            server.kill_engine();
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(began.elapsed() < LONG);
    assert_eq!(server.engines().len(), kills + 1);
    let answered = answered.load(Ordering::Relaxed);
    assert!(answered >= CLIENTS as usize);
    eprintln!(
        "{kills} kills in {:.1} s: {answered} requests answered, all as undisturbed",
        began.elapsed().as_secs_f64()
    );
    let after = wait_for("the ends of connections and threads", || {
        let now = files_and_threads(&server);
        (now.0 <= before.0 + 2 && now.1 <= before.1 + 2).then_some(now)
    });
    assert!(after.0 > 0);
}

#[test]
fn an_idle_engine_that_stands_still_is_replaced_when_it_is_needed() {
    let server = Server::ready(&["--threads", "1", "--parallel", "1", "--hang-timeout", "3"]);
    let body = json!({"prompt": "Once", "seed": 1, "n_predict": 30});
    let wanted = server.complete(&body);
    kill(server.engine(), Signal::SIGSTOP).unwrap();
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.complete(&body), wanted);
    assert_eq!(server.engines().len(), 2);
}

/// What the last engine that ended by itself is said to have died of.
fn last_crash(server: &Server, name: &str) -> Value {
    wait_for("the crash", || {
        let crash = server.get("/status").json()["last_crash"].clone();
        let is_it = crash["reason"].as_str()?.starts_with(name);
        is_it.then_some(crash)
    })
}

#[test]
fn ends_by_signals_are_classified_with_advice_and_the_answer_goes_on() {
    let kernel = ["--kernel", "i2_s/scalar"];
    let server = Server::ready(&[&["--threads", "1", "--parallel", "1"], &kernel[..]].concat());
    let body =
        json!({"prompt": "Once upon a time", "seed": 3, "n_predict": 300, "ignore_eos": true});
    let wanted = server.complete(&body);
    let mut streamed = body;
    streamed["stream"] = json!(true);
    for (signal, name, advice) in [
        (
            Signal::SIGILL,
            "signal SIGILL",
            "this CPU lacks an instruction of kernel `i2_s/scalar`",
        ),
        (
            Signal::SIGSEGV,
            "signal SIGSEGV",
            "this is a bug in the engine",
        ),
        (
            Signal::SIGBUS,
            "signal SIGBUS",
            "the model file changed while it was mapped",
        ),
        (
            Signal::SIGABRT,
            "signal SIGABRT",
            "this is a bug in the engine",
        ),
    ] {
        let mut stream = server.stream("/completion", &streamed);
        let first = stream.take_frames(2);
        end_by(server.engine(), signal);
        assert_eq!(stream.collect_after(first), wanted, "{name}");
        let crash = last_crash(&server, name);
        assert!(crash["hint"].as_str().unwrap().contains(advice), "{crash}");
        let log = crash["log"].as_array().unwrap();
        let said = log.iter().filter_map(Value::as_str);
        assert!(
            said.into_iter().any(|line| line.contains("confined")),
            "{crash}"
        );
        server.wait_for_log(|line| line.contains(&format!("ended: {name}")).then_some(()));
    }
}

#[test]
fn an_instruction_that_the_cpu_lacks_brings_another_kernel() {
    let server = Server::ready(&["--threads", "1", "--parallel", "1"]);
    let chosen = server.get("/props").json()["kernel"].clone();
    if chosen == "i2_s/scalar" {
        eprintln!("skipped: this CPU has one kernel only");
        return;
    }
    let body = json!({"prompt": "Once upon a time", "seed": 3, "n_predict": 30});
    let wanted = server.complete(&body);
    end_by(server.engine(), Signal::SIGILL);
    assert_eq!(server.complete(&body), wanted);
    let crash = last_crash(&server, "signal SIGILL");
    let hint = crash["hint"].as_str().unwrap();
    let lacking = format!(
        "an instruction of kernel `{}`; trying",
        chosen.as_str().unwrap()
    );
    assert!(hint.contains(&lacking), "{crash}");
}

/// Guesses that were right, from `/metrics`.
fn accepted(server: &Server) -> usize {
    let name = "llamacpp:spec_decode_num_accepted_tokens_total ";
    let metrics = server.get("/metrics").body;
    let value = metrics.lines().find_map(|line| line.strip_prefix(name));
    let value = value.unwrap_or_else(|| panic!("no guesses in {metrics}"));
    value.parse::<f64>().unwrap() as usize
}

/// Some tokens of an answer came several from a step, and the engine dies before it knew whether the next ones were right.
#[test]
fn answers_that_are_guessed_ahead_outlive_their_engine() {
    let plain = ["--threads", "1", "--parallel", "1"];
    let guessing = [&plain[..], &["--spec", "ngram"]].concat();
    let alone = Server::ready(&plain);
    let server = Server::ready(&guessing);
    let refrain = "The cat sat on the mat. The dog ran to the park. ".repeat(4);
    for temperature in [0.0, 0.4] {
        let mut body = json!({
            "prompt": refrain, "seed": 11, "n_predict": 700, "ignore_eos": true, "temperature": temperature,
        });
        let wanted = alone.complete(&body);
        assert_eq!(wanted.1.len(), 700);
        body["stream"] = json!(true);
        let hits_before = interrupted(&server);
        let guessed_before = accepted(&server);
        for frames in [1, 30, 3, 60, 10] {
            let mut stream = server.stream("/completion", &body);
            let first = stream.take_frames(frames);
            server.kill_engine();
            let text = stream.collect_after(first);
            assert_eq!(
                text, wanted,
                "temperature {temperature}, killed after {frames} frames"
            );
        }
        assert!(
            interrupted(&server) > hits_before,
            "no kill hit a running stream"
        );
        assert!(accepted(&server) > guessed_before, "no guess was right");
    }
    assert_eq!(accepted(&alone), 0);
}
