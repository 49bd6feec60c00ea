//! Requests of programs nobody here wrote, as they were captured (`tests/clients/bodies`), against the real binary: each
//! is answered with the status it had, with the keys its client reads.

#[path = "common/mod.rs"]
mod common;

use std::fs;
use std::path::Path;

use common::Server;
use serde_json::Value;

/// One captured request.
struct Captured {
    file: String,
    path: String,
    status: u64,
    body: Value,
}

fn captured() -> Vec<Captured> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/bodies");
    let mut all: Vec<Captured> = fs::read_dir(folder)
        .expect("captured requests")
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let text = fs::read_to_string(&path).expect("readable");
            let one: Value = serde_json::from_str(&text).expect("JSON");
            Captured {
                file: path.file_name().unwrap().to_string_lossy().into_owned(),
                path: one["path"].as_str().expect("a path").to_owned(),
                status: one["status"].as_u64().expect("a status"),
                body: one["body"].clone(),
            }
        })
        .collect();
    all.sort_by(|a, b| a.file.cmp(&b.file));
    all
}

/// What the client of this route reads first.
fn read_first<'a>(path: &str, reply: &'a Value) -> &'a Value {
    match path {
        "/completion" => &reply["content"],
        "/v1/responses" => &reply["output"][0]["type"],
        _ => &reply["choices"][0]["message"],
    }
}

#[test]
fn captured_requests_are_answered_as_they_were() {
    let all = captured();
    assert!(all.len() >= 5, "{} captured requests", all.len());
    let server = Server::ready(&[]);
    for one in all {
        let text = match &one.body {
            Value::String(text) => text.clone(),
            body => body.to_string(),
        };
        let streams = one.body["stream"] == Value::Bool(true);
        let reply = server.post_text(&one.path, &text);
        assert_eq!(
            u64::from(reply.status),
            one.status,
            "{}: {}",
            one.file,
            reply.body
        );
        if one.status != 200 {
            let message = &reply.json()["error"]["message"];
            assert!(message.is_string(), "{}: {}", one.file, reply.body);
        } else if streams {
            assert!(
                reply.body.contains("data: "),
                "{}: {}",
                one.file,
                reply.body
            );
        } else {
            let reply = reply.json();
            let read = read_first(&one.path, &reply);
            assert!(!read.is_null(), "{}: {reply}", one.file);
        }
    }
}
