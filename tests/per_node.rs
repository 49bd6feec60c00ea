//! `serve --per-node` with the real binary on a machine whose nodes are told by a mounted directory: each CPU is a node of its own.
#![allow(missing_docs)]

mod common;
#[path = "common/fake_engine.rs"]
mod fake_engine;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use common::{Server, demo_model, is_alive, program, wait_for};
use fake_engine::Fake;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

/// In a mount namespace of its own: puts the first argument in the place of the system's nodes, then becomes the rest.
const WITH_NODES: &str = "mount --bind \"$1\" /sys/devices/system/node && shift && exec \"$@\"";

fn inside(dir: &Path) -> Command {
    let mut command = Command::new("unshare");
    let path = std::env::var_os("PATH").unwrap_or_default();
    command
        .env_clear()
        .env("PATH", path)
        .env("HOME", dir)
        .current_dir(dir)
        .args(["-Umr", "sh", "-c", WITH_NODES, "sh"])
        .arg(dir.join("nodes"));
    command
}

/// The first two CPUs we may use, each made a node in `dir`; `None`, with a line, where that can't be had.
fn two_nodes(dir: &Path) -> Option<[usize; 2]> {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let parts = mask.unwrap().trim().split(',').map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        first.parse::<usize>().unwrap()..=last.parse().unwrap()
    });
    let cpus: Vec<usize> = parts.flatten().take(2).collect();
    let [first, second] = cpus[..] else {
        eprintln!("skipped: two NUMA nodes need two CPUs");
        return None;
    };
    for (node, cpu) in [first, second].iter().enumerate() {
        let folder = dir.join(format!("nodes/node{node}"));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("cpulist"), format!("{cpu}\n")).unwrap();
        let memory = format!(
            "Node {node} MemTotal: 4000000 kB\nNode {node} MemFree: 2000000 kB\nNode {node} FilePages: 48000 kB\n"
        );
        fs::write(folder.join("meminfo"), memory).unwrap();
    }
    let tried = inside(dir).arg("true").output();
    if !tried.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no user and mount namespaces here");
        return None;
    }
    Some([first, second])
}

/// A port that is free, and so is the next one.
fn two_ports() -> u16 {
    wait_for("two free ports", || {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        TcpListener::bind(("127.0.0.1", port.checked_add(1)?)).ok()?;
        Some(port)
    })
}

fn launch(args: &[&str]) -> Option<(Server, [usize; 2], u16)> {
    let dir = tempfile::tempdir().unwrap();
    let cpus = two_nodes(dir.path())?;
    let port = two_ports();
    let mut command = inside(dir.path());
    command
        .arg(env!("CARGO_BIN_EXE_bitnet-launch"))
        .args([
            "serve",
            "--per-node",
            "--host",
            "127.0.0.1",
            "--port",
            &port.to_string(),
        ])
        .args(args);
    let mut server = Server::launch(command, dir, |_| {});
    server.port = port;
    Some((server, cpus, port))
}

/// Process ids of the servers started so far, in the order of their starts, of one node.
fn servers(server: &Server, node: usize) -> Vec<Pid> {
    let words = format!("the server of node {node} is process ");
    let pid = |line: &String| {
        line.split_once(&words)?
            .1
            .trim()
            .parse()
            .ok()
            .map(Pid::from_raw)
    };
    server.log().iter().filter_map(pid).collect()
}

fn cpus_of(pid: Pid) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    line.unwrap().trim().to_owned()
}

#[test]
fn each_node_has_a_server_and_a_dead_one_comes_back() {
    let Some((mut server, cpus, port)) = launch(&[]) else {
        return;
    };
    let body = json!({"prompt": "Once upon a time", "n_predict": 8, "seed": 1});
    let mut answers = Vec::new();
    for (node, cpu) in cpus.iter().enumerate() {
        server.port = port + node as u16;
        server.wait_until_ready();
        let pid = servers(&server, node)[0];
        assert_eq!(cpus_of(pid), cpu.to_string());
        let said = format!("node {node} | ");
        server.wait_for_log(|line| {
            (line.starts_with(&said) && line.contains("Auto-configured threads: 1 ")).then_some(())
        });
        answers.push(server.complete(&body));
    }
    assert_eq!(answers[0], answers[1]);
    server.wait_for_log(|line| line.contains(" of 1900 MB available").then_some(()));

    server.signal(Signal::SIGHUP);
    for node in 0..2 {
        let said = format!("node {node} | ");
        server.wait_for_log(|line| {
            (line.starts_with(&said) && line.contains("reload: nothing has changed")).then_some(())
        });
    }

    let dead = servers(&server, 0)[0];
    kill(dead, Signal::SIGKILL).unwrap();
    server.port = port + 1;
    assert_eq!(server.get("/health").status, 200, "the other one goes on");
    wait_for("another server", || servers(&server, 0).get(1).copied());
    server.port = port;
    wait_for("its health", || {
        ureq::get(server.url("/health")).call().ok().map(|_| ())
    });

    let all: Vec<Pid> = (0..2)
        .map(|node| *servers(&server, node).last().unwrap())
        .collect();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
    assert!(all.iter().all(|pid| !is_alive(*pid)));
}

#[test]
fn the_servers_end_with_the_first_process() {
    let Some((mut server, _, port)) = launch(&["--reuse-port"]) else {
        return;
    };
    server.port = port;
    wait_for("two servers", || {
        (!servers(&server, 1).is_empty()).then_some(())
    });
    server.wait_until_ready();
    let all = [servers(&server, 0)[0], servers(&server, 1)[0]];
    server.signal(Signal::SIGKILL);
    server.wait();
    wait_for("their end", || {
        (!all.iter().any(|pid| is_alive(*pid))).then_some(())
    });
}

#[test]
fn what_makes_serving_impossible_ends_all() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = tempfile::tempdir().unwrap();
    if two_nodes(dir.path()).is_none() {
        return;
    }
    let port = taken.local_addr().unwrap().port().to_string();
    let output = inside(dir.path())
        .arg(env!("CARGO_BIN_EXE_bitnet-launch"))
        .args(["--per-node", "--port", &port])
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains(&format!("port {port} is in use")), "{log}");
    assert!(log.contains("before it served"), "{log}");
}

#[test]
fn the_plan_is_told_for_each_node() {
    let dir = tempfile::tempdir().unwrap();
    if two_nodes(dir.path()).is_some() {
        let output = inside(dir.path())
            .arg(env!("CARGO_BIN_EXE_bitnet-launch"))
            .args(["--per-node", "--check"])
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        assert_eq!(told.matches("NUMA node ").count(), 2, "{told}");
        assert_eq!(
            told.matches("Auto-configured threads: 1 ").count(),
            2,
            "{told}"
        );
    }
    let output = program(dir.path())
        .args(["--per-node", "--check"])
        .output()
        .unwrap();
    assert!(output.status.success());
}

/// The engine itself, when a script of [`Fake`] starts this program.
#[test]
fn fake_llama_server() {
    fake_engine::run_if_asked();
}

#[test]
fn the_plan_of_another_engine_is_told_for_each_node() {
    let (dir, fake) = (tempfile::tempdir().unwrap(), Fake::new());
    if two_nodes(dir.path()).is_none() {
        return;
    }
    let output = inside(dir.path())
        .arg(env!("CARGO_BIN_EXE_bitnet-launch"))
        .args(["--per-node", "--check", "--engine", &fake.path(), "-m"])
        .arg(demo_model())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    for line in ["NUMA node ", "\n  Engine: ", "\n  Command: "] {
        assert_eq!(told.matches(line).count(), 2, "{line}: {told}");
    }
}
