//! The engine process of a running server has given up what it doesn't need.
#![allow(missing_docs)]

mod common;

use std::fs;

use common::{Server, demo_model};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// The value of a line of `/proc/PID/status`, of each thread.
fn of_threads(pid: Pid, line: &str) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("status")).ok())
        .filter_map(|status| {
            let (_, rest) = status.split_once(&format!("{line}:"))?;
            Some(rest.lines().next()?.trim().to_owned())
        })
        .collect()
}

fn story() -> Value {
    json!({"prompt": "Once upon a time", "seed": 5, "n_predict": 24})
}

#[test]
fn every_thread_of_the_engine_is_confined_and_says_the_same() {
    let model = demo_model();
    let served = Server::ready(&[
        "--model",
        model.to_str().unwrap(),
        "--weights",
        "huge_pages",
    ]);
    let free = Server::ready(&["--sandbox", "off"]);
    assert_eq!(served.complete(&story()), free.complete(&story()));

    let threads = of_threads(served.engine(), "Seccomp");
    assert!(threads.len() >= 4, "{threads:?}");
    assert!(threads.iter().all(|mode| mode == "2"), "{threads:?}");
    let privileges = of_threads(served.engine(), "NoNewPrivs");
    assert!(privileges.iter().all(|it| it == "1"), "{privileges:?}");
    served.wait_for_log(|line| line.contains("engine process confined").then_some(()));

    assert_eq!(
        of_threads(served.pid(), "Seccomp")[0],
        "0",
        "the server itself"
    );
    assert_eq!(of_threads(free.engine(), "Seccomp")[0], "0");
    free.wait_for_log(|line| line.contains("not confined, as asked for").then_some(()));
}
