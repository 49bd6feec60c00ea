//! Keys and prompts stay where they belong: not in logs at any level, not in what other users see of our processes.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use common::{LONG, program, wait_for};
use serde_json::{Value, json};

const BY_VARIABLE: &str = "key-by-variable-93b1c2";
const BY_FILE: &str = "key-by-file-77d0aa";
const WRONG: &str = "key-of-a-stranger-1f00";
const PROMPT: &str = "Zwischenablage9931";
/// Taken over as the number of the request.
const REQUEST: &str = "trace-42.a:b";

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Answer {
    status: u16,
    request_id: String,
    body: String,
}

fn ask(url: &str, header: (&str, &str), body: &Value) -> Answer {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(LONG))
        .build()
        .into();
    let mut reply = agent
        .post(url)
        .header(header.0, header.1)
        .header("X-Request-Id", REQUEST)
        .send(body.to_string())
        .unwrap();
    Answer {
        status: reply.status().as_u16(),
        request_id: reply.headers()["x-request-id"].to_str().unwrap().to_owned(),
        body: reply.body_mut().read_to_string().unwrap(),
    }
}

#[test]
fn neither_keys_nor_prompts_are_told_to_anybody() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys");
    fs::write(&file, format!("# for the workflow\n{BY_FILE}\n")).unwrap();
    let mut child = program(dir.path())
        .args(["--host", "127.0.0.1", "--port", "0", "--log-level", "trace"])
        .arg("--api-key-file")
        .arg(&file)
        .env("LLAMA_API_KEY", BY_VARIABLE)
        .env("HF_TOKEN", "hf_of_nobody")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = Arc::new(Mutex::new(String::new()));
    let kept = Arc::clone(&log);
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let server = Killed(child);
    thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            *kept.lock().unwrap() += &(line + "\n");
        }
    });
    let after = |text: &str, mark: &str| -> Option<String> {
        let (_, rest) = text.split_once(mark)?;
        Some(rest.split(|c: char| !c.is_ascii_digit()).next()?.to_owned())
    };
    let port = wait_for("the port", || {
        after(&log.lock().unwrap(), "127.0.0.1, port: ")
    });
    let engine = wait_for("the engine", || {
        after(&log.lock().unwrap(), "engine process ")
    });
    wait_for("readiness", || {
        log.lock()
            .unwrap()
            .contains("listening on http")
            .then_some(())
    });

    let url = format!("http://127.0.0.1:{port}");
    let completion = json!({"prompt": PROMPT, "n_predict": 4});
    let bearer = |key: &str| format!("Bearer {key}");
    for (name, value, status) in [
        ("Authorization", &*bearer(BY_VARIABLE), 200),
        ("Authorization", BY_FILE, 200),
        ("X-Api-Key", BY_FILE, 200),
        ("Authorization", &*bearer(WRONG), 401),
        ("X-Api-Key", WRONG, 401),
        ("X-Nothing", "", 401),
    ] {
        let answer = ask(&format!("{url}/completion"), (name, value), &completion);
        assert_eq!(answer.status, status, "{name}: {}", answer.body);
        assert_eq!(answer.request_id, REQUEST);
    }
    let chat = json!({"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4});
    let key = ("X-Api-Key", BY_VARIABLE);
    assert_eq!(
        ask(&format!("{url}/v1/chat/completions"), key, &chat).status,
        200
    );
    let bad = json!({"prompt": PROMPT, "n_predict": "four"});
    assert_eq!(ask(&format!("{url}/completion"), key, &bad).status, 400);
    let query = format!("{url}/completion?api_key={WRONG}");
    assert_eq!(ask(&query, key, &completion).status, 200);

    wait_for("the access log", || {
        (log.lock().unwrap().matches(REQUEST).count() >= 9).then_some(())
    });
    let log = log.lock().unwrap().clone();
    for secret in [BY_VARIABLE, BY_FILE, WRONG, PROMPT, "hf_of_nobody"] {
        let line = log.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "`{secret}` is in the log");
        for pid in [&server.0.id().to_string(), &engine] {
            let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
            assert!(!arguments.contains(secret), "{arguments}");
        }
        let variables = fs::read_to_string(format!("/proc/{engine}/environ")).unwrap();
        assert!(
            !variables.contains(secret),
            "`{secret}` is the engine's, too"
        );
    }
}
