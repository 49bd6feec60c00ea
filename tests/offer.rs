//! Serving a model that isn't here yet: asked on a terminal, or at once where llama-server does.

mod common;
#[path = "common/hub.rs"]
#[allow(dead_code, unreachable_pub, missing_docs)]
mod hub;

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use common::{Server, demo_model, program, wait_for};
use hub::{Fault, Hub, HubFile};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tempfile::TempDir;

const REPO: &str = "some/ternary-gguf";
const FILE: &str = "model-i2_s.gguf";

/// A hub that has the demo model.
fn hub() -> Hub {
    let hub = Hub::start();
    let bytes = std::fs::read(demo_model()).unwrap();
    hub.put(REPO, FILE, HubFile::large(bytes));
    hub
}

fn command(hub: &Hub, home: &TempDir, args: &[&str]) -> Command {
    let mut command = program(home.path());
    command.args(args).env("HF_ENDPOINT", hub.url());
    command
}

/// Gives a command a terminal for its questions; the other end of it.
fn at_a_terminal(command: &mut Command) -> File {
    let pty = openpty(None, None).unwrap();
    let slave = || Stdio::from(pty.slave.try_clone().unwrap());
    command.stdin(slave()).stderr(slave()).stdout(Stdio::null());
    File::from(pty.master)
}

/// Reads until the question stands there.
fn question(terminal: &mut File) -> String {
    let mut seen = Vec::new();
    while !seen.ends_with(b"[Y/n] ") {
        let mut byte = [0];
        let n = terminal.read(&mut byte).unwrap();
        assert_eq!(n, 1, "{}", String::from_utf8_lossy(&seen));
        seen.push(byte[0]);
    }
    String::from_utf8(seen).unwrap()
}

/// All that is written until the other side is closed, which a terminal tells by an error.
fn rest(terminal: &mut File) -> String {
    let mut seen = Vec::new();
    let mut part = [0; 4096];
    while let Ok(n @ 1..) = terminal.read(&mut part) {
        seen.extend_from_slice(&part[..n]);
    }
    String::from_utf8_lossy(&seen).into_owned()
}

/// SIGTERM in the middle of an answer: it is finished, and the program ends with 0.
fn drains(mut server: Server) -> ExitStatus {
    server.wait_until_ready();
    let body =
        json!({"prompt": "Once upon a time", "n_predict": 40, "stream": true, "ignore_eos": true});
    let mut stream = server.stream("/completion", &body);
    let first = stream.take_frames(1);
    server.signal(Signal::SIGTERM);
    let (text, _) = stream.collect_after(first);
    assert!(!text.is_empty());
    server.wait()
}

#[test]
fn an_accepted_offer_is_downloaded_and_served() {
    let (hub, home) = (hub(), tempfile::tempdir().unwrap());
    let mut command = command(&hub, &home, &["-m", REPO, "--port", "0"]);
    let mut terminal = at_a_terminal(&mut command);
    let child = command.spawn().unwrap();
    drop(command);
    let asked = question(&mut terminal);
    let wanted = format!("`{REPO}` is not on this machine. Download {REPO}? [Y/n] ");
    assert!(asked.ends_with(&wanted), "{asked}");
    assert!(hub.take_requests().is_empty(), "before the answer");
    terminal.write_all(b"\n").unwrap();
    let server = Server::of(child, terminal, home);
    assert_eq!(drains(server).code(), Some(0));
}

#[test]
fn a_refused_offer_is_the_error_that_names_the_command() {
    for answer in ["n\n", "no\n", "what\n", "\u{4}"] {
        let (hub, home) = (hub(), tempfile::tempdir().unwrap());
        let mut command = command(&hub, &home, &["-m", REPO]);
        let mut terminal = at_a_terminal(&mut command);
        let mut child = command.spawn().unwrap();
        drop(command);
        question(&mut terminal);
        terminal.write_all(answer.as_bytes()).unwrap();
        let said = rest(&mut terminal);
        let ended = wait_for("the end", || child.try_wait().unwrap());
        assert_eq!(ended.code(), Some(1), "{said}");
        let hint = format!("hint: download it: `bitnet-launch pull {REPO}`");
        assert!(said.contains(&hint), "{said}");
        assert!(hub.take_requests().is_empty());
    }
}

#[test]
fn ctrl_c_while_an_accepted_offer_comes_ends_the_program() {
    let (hub, home) = (hub(), tempfile::tempdir().unwrap());
    hub.rule(|request| match request.is_bytes() {
        true => Fault::Slow(Duration::from_millis(100)),
        false => Fault::Nothing,
    });
    let mut command = command(&hub, &home, &["-m", REPO]);
    let mut terminal = at_a_terminal(&mut command);
    let mut child = command.spawn().unwrap();
    drop(command);
    question(&mut terminal);
    terminal.write_all(b"y\n").unwrap();
    wait_for("the first bytes", || {
        hub.take_requests()
            .iter()
            .any(|request| request.is_bytes())
            .then_some(())
    });
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let said = rest(&mut terminal);
    let ended = wait_for("the end", || child.try_wait().unwrap());
    assert_eq!(ended.code(), Some(130), "{said}");
    assert!(said.contains("stopped"), "{said}");
}

/// `-hf` is a wish to download; `-m` isn't, where nobody can be asked.
#[test]
fn llama_servers_flag_downloads_at_once() {
    let served = |args: &[&str], variable: Option<(&str, &str)>| {
        let (hub, home) = (hub(), tempfile::tempdir().unwrap());
        let all = [&["llama-server", "--port", "0"], args].concat();
        let mut command = command(&hub, &home, &all);
        command.envs(variable);
        let server = Server::launch(command, home, |_| {});
        assert_eq!(drains(server).code(), Some(0), "{args:?}");
        assert!(hub.take_requests().iter().any(|request| request.is_bytes()));
    };
    served(&["-hf", REPO], None);
    served(&["--hf-repo", &format!("{REPO}:I2_S")], None);
    served(&[], Some(("LLAMA_ARG_HF_REPO", REPO)));
    for args in [&["-hf", REPO, "--offline"][..], &["-m", REPO]] {
        let (hub, home) = (hub(), tempfile::tempdir().unwrap());
        let all = [&["llama-server"], args].concat();
        let output = command(&hub, &home, &all).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(said.matches("error: ").count(), 1, "{said}");
        assert!(said.contains(REPO), "{said}");
        assert!(hub.take_requests().is_empty());
    }
}
