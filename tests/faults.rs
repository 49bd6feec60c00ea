//! Engines that are killed, stopped or gone bad while clients wait: nobody may notice more than a pause.

mod common;
#[path = "faults/ends.rs"]
mod ends;
#[path = "faults/files.rs"]
mod files;
#[path = "faults/floods.rs"]
mod floods;
#[path = "faults/kills.rs"]
mod kills;

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::thread;

use common::{Server, demo_model, is_alive, program, run, wait_for};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

/// Long enough to be killed in the middle of.
const N_PREDICT: usize = 800;

/// How often something is done: `variable` if it is set, for a run that takes longer.
fn count(variable: &str, usual: usize) -> usize {
    match std::env::var(variable) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{variable} is no number: {text}")),
        Err(_) => usual,
    }
}

fn story(seed: u64) -> Value {
    json!({"prompt": "Once upon a time", "seed": seed, "n_predict": N_PREDICT, "ignore_eos": true})
}

fn streamed_story(seed: u64) -> Value {
    let mut body = story(seed);
    body["stream"] = json!(true);
    body
}

#[test]
fn a_stream_outlives_its_engine() {
    let server = Server::ready(&["--threads", "1", "--parallel", "1"]);
    let wanted = server.complete(&story(7));
    assert_eq!(wanted.1.len(), N_PREDICT);
    let mut hits = 0;
    for (round, frames) in [1, 20, 1, 5].into_iter().enumerate() {
        let mut stream = server.stream("/completion", &streamed_story(7));
        let first = stream.take_frames(frames);
        server.kill_engine();
        assert_eq!(
            stream.collect_after(first),
            wanted,
            "killed after {frames} frames"
        );
        hits = interrupted(&server);
        if round > 0 && hits > 0 {
            break;
        }
    }
    assert!(hits > 0, "no kill hit a running stream");
    assert_eq!(server.get("/health").status, 200);
    let metrics = server.get("/metrics").body;
    assert!(metrics.contains("restarts"), "{metrics}");
}

#[test]
fn four_clients_outlive_several_engines() {
    let server = Server::ready(&["--threads", "1", "--parallel", "4", "--ctx-size", "4096"]);
    let wanted: Vec<_> = (0..4).map(|seed| server.complete(&story(seed))).collect();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|seed| {
                let server = &server;
                scope.spawn(move || match seed % 2 {
                    0 => server.complete(&story(seed)),
                    _ => server.complete_streamed(&story(seed)),
                })
            })
            .collect();
        // While it computes, while it loads, and again while it computes.
        server.kill_engine();
        server.kill_engine();
        wait_for("work", || is_busy_or_done(&server).then_some(()));
        server.kill_engine();
        for (client, wanted) in clients.into_iter().zip(&wanted) {
            assert_eq!(client.join().unwrap(), *wanted);
        }
    });
    assert_eq!(server.engines().len(), 4);
}

/// Kills that left a request waiting for the next engine.
fn interrupted(server: &Server) -> usize {
    let log = server.log();
    let pauses = log
        .iter()
        .filter(|line| line.contains("starting a new engine in"));
    pauses
        .filter(|line| !line.contains("; 0 accepted requests"))
        .count()
}

/// Some slot generates, or everything is said.
fn is_busy_or_done(server: &Server) -> bool {
    if server.get("/health").json()["slots_processing"] == json!(0) {
        return true;
    }
    let slots = server.get("/slots").json();
    let mut slots = slots.as_array().into_iter().flatten();
    slots.any(|slot| slot["is_processing"] == json!(true))
}

#[test]
fn an_engine_that_stands_still_is_replaced() {
    let server = Server::ready(&["--threads", "1", "--parallel", "1", "--hang-timeout", "4"]);
    let wanted = server.complete(&story(5));
    let mut stream = server.stream("/completion", &streamed_story(5));
    let first = stream.take_frames(1);
    let engine = server.engine();
    kill(engine, Signal::SIGSTOP).unwrap();
    assert_eq!(stream.collect_after(first), wanted);
    wait_for("the stopped engine's end", || {
        (!is_alive(engine)).then_some(())
    });
}

#[test]
fn a_crash_loop_is_reported_and_ends() {
    let mut server = Server::ready(&[]);
    for _ in 0..4 {
        server.kill_engine();
    }
    kill(server.engine(), Signal::SIGKILL).unwrap();
    let reply = wait_for("a clear state", || {
        let reply = server.get("/health");
        (reply.status == 503).then_some(reply)
    });
    assert!(reply.body.contains("SIGKILL"), "{}", reply.body);
    let refused = server.post("/completion", &story(1));
    assert_eq!(refused.error(), (503, "unavailable_error".into()));
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_model_that_vanishes_and_returns() {
    let dir = tempfile::tempdir().unwrap();
    let (path, away) = (dir.path().join("model.gguf"), dir.path().join("away.gguf"));
    fs::copy(demo_model(), &path).unwrap();
    let server = Server::ready(&["--parallel", "1", "-m", path.to_str().unwrap()]);
    let wanted = server.complete(&story(2));
    let mut stream = server.stream("/completion", &streamed_story(2));
    let first = stream.take_frames(1);
    fs::rename(&path, &away).unwrap();
    server.kill_engine();
    server.wait_for_log(|line| {
        (line.contains("ended: ") && line.contains("exit code 1")).then_some(())
    });
    fs::rename(&away, &path).unwrap();
    assert_eq!(stream.collect_after(first), wanted);
}

#[test]
fn the_engine_ends_with_the_server() {
    let mut server = Server::ready(&[]);
    let engine = server.engine();
    assert!(is_alive(engine));
    server.signal(Signal::SIGKILL);
    server.wait();
    wait_for("the engine's end", || (!is_alive(engine)).then_some(()));
}

#[test]
fn the_engine_ends_with_its_control_socket() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut engine = program(dir.path())
        .arg("engine")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    assert!(engine.try_wait().unwrap().is_none());
    drop(ours);
    let status = wait_for("the engine's end", || engine.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}

#[test]
fn the_engine_command_is_not_for_people() {
    let (code, text) = run(&["engine"]);
    assert_eq!(code, 1);
    assert!(
        text.contains("error: ") && text.contains("bitnet-launch"),
        "{text}"
    );
}

/// Every graph keeps the promise: the shapes of the generator, resumed on another engine with other threads busy.
#[test]
fn other_graphs_resume_with_the_same_tokens() {
    for shape in ["tiny", "tiny-silu", "tiny-llama"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        let path = path.to_str().unwrap();
        let (code, text) = run(&["synth", "--shape", shape, "--seed", "3", "-o", path]);
        assert_eq!(code, 0, "{text}");
        let body = json!({"prompt": [1, 2, 3], "seed": 4, "n_predict": 100, "ignore_eos": true});
        let alone = Server::ready(&["-m", path, "--threads", "1", "--parallel", "1"]);
        let wanted = alone.complete(&body);
        assert!(!wanted.1.is_empty());
        let server = Server::ready(&["-m", path, "--threads", "2", "--parallel", "2"]);
        let mut streamed = body.clone();
        streamed["stream"] = json!(true);
        let mut stream = server.stream("/completion", &streamed);
        let first = stream.take_frames(1);
        server.kill_engine();
        assert_eq!(stream.collect_after(first), wanted, "{shape}");
    }
}
