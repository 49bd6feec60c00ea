//! The command line of the real binary: what it prints, and its exit codes.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

fn launch(args: &[&str], env: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bitnet-launch"))
        .args(args)
        .env_clear()
        .envs(env.iter().copied())
        .current_dir(std::env::temp_dir())
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn help_teaches() {
    let output = launch(&["--help"], &[]);
    assert_eq!(output.status.code(), Some(0));
    let text = stdout(&output);
    for part in [
        "Examples:",
        "--kernel",
        "BITNET_KERNEL",
        "MODEL_PATH",
        "OMP_NUM_THREADS",
        "default: 8081",
        "Context and memory",
        "doctor",
        "--check",
    ] {
        assert!(text.contains(part), "`{part}` is missing in:\n{text}");
    }
    let version = launch(&["--version"], &[]);
    assert_eq!(
        stdout(&version).trim(),
        concat!("bitnet-launch ", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for (args, env, wanted) in [
        (&["--treads", "4"][..], &[][..], "--treads"),
        (
            &["--threads", "many"],
            &[],
            "flag --threads is `many`, expected",
        ),
        (
            &[],
            &[("PORT", "http")],
            "environment PORT is `http`, expected a port number",
        ),
        (
            &["--check", "--kernel", "i2_s/abacus"],
            &[],
            "available: i2_s/",
        ),
        (
            &["--check", "--cpu-affinity", "60000"],
            &[],
            "CPUs 60000 (flag --cpu-affinity) are not available",
        ),
    ] {
        let output = launch(args, env);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{args:?} {env:?}: {}",
            stderr(&output)
        );
        assert!(
            stderr(&output).contains(wanted),
            "{args:?} {env:?}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn a_bad_model_is_exit_code_1_with_a_hint() {
    let output = launch(&["--check", "-m", "/nowhere/model.gguf"], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("error: no model at `/nowhere/model.gguf`, named by flag --model")
    );
    assert!(stderr(&output).contains("hint: "));
    let foreign = tempfile::NamedTempFile::with_suffix(".gguf").unwrap();
    std::fs::write(
        foreign.path(),
        "this is not a model, whatever its name says",
    )
    .unwrap();
    let output = launch(&["--check", "-m", foreign.path().to_str().unwrap()], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).starts_with("error: cannot load `"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn check_shows_the_plan_with_the_lines_people_grep_for() {
    let output = launch(
        &["--check"],
        &[("OMP_NUM_THREADS", "auto"), ("BITNET_KERNEL", "auto")],
    );
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.contains("\nAuto-selected kernel: i2_s ("), "{text}");
    assert!(text.contains("\nAuto-configured threads: "), "{text}");
    assert!(text.contains("demo model"), "{text}");
    let output = launch(&["serve", "--check", "-t", "1", "--kernel", "i2_s"], &[]);
    let text = stdout(&output);
    assert!(text.contains("\nSelected kernel: i2_s ("), "{text}");
    assert!(
        text.contains("\nSelected threads: 1 (flag --threads)"),
        "{text}"
    );
}

#[test]
fn doctor_reports_in_both_forms() {
    let output = launch(&["doctor", "--json"], &[("HOST", "0.0.0.0")]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert!(report["plan"]["kernel"]["because"].is_string());
    assert!(report["host"]["cpu"]["arch"].is_string());
    let warnings = report["warnings"].to_string();
    assert!(
        warnings.contains("without a key") && warnings.contains("no model is named"),
        "{warnings}"
    );
    let output = launch(&["doctor"], &[]);
    for part in ["Machine", "Limits", "Kernels", "Plan", "To improve"] {
        assert!(stdout(&output).contains(part), "{part}");
    }
    let output = launch(&["doctor", "--json", "--kernel", "i2_s/abacus"], &[]);
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert!(report["error"]["hint"].is_string(), "{report}");
}

#[test]
fn synth_writes_a_model_that_can_be_planned() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tiny.gguf");
    let name = file.to_str().unwrap();
    let output = launch(
        &["synth", "--shape", "tiny", "--seed", "7", "-o", name],
        &[],
    );
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("wrote "), "{}", stderr(&output));
    let output = launch(
        &["--check"],
        &[("MODEL_PATH", directory.path().to_str().unwrap())],
    );
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("tiny.gguf"), "{}", stdout(&output));
    // A device must not become a file.
    let socket = directory.path().join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for path in [&socket, directory.path()] as [&Path; 2] {
        let output = launch(
            &["synth", "--shape", "tiny", "-o", path.to_str().unwrap()],
            &[],
        );
        assert_eq!(output.status.code(), Some(1));
        assert!(
            stderr(&output).contains("is no regular file"),
            "{}",
            stderr(&output)
        );
    }
    drop(listener);
    assert!(!std::fs::symlink_metadata(&socket).unwrap().is_file());
    let nowhere = directory.path().join("nowhere/x.gguf");
    let output = launch(
        &["synth", "--shape", "tiny", "-o", nowhere.to_str().unwrap()],
        &[],
    );
    assert_eq!(stderr(&output).matches("(os error").count(), 1);
    let output = launch(&["synth", "--shape", "huge", "-o", name], &[]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn health_of_nobody_is_exit_code_1() {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let output = launch(
        &["health"],
        &[("HOST", "0.0.0.0"), ("PORT", &port.to_string())],
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains(&format!("no answer from http://127.0.0.1:{port}/health")),
        "{}",
        stderr(&output)
    );
    let output = launch(&["health", "--quiet", "--port", &port.to_string()], &[]);
    assert_eq!(
        (output.status.code(), stderr(&output).as_str()),
        (Some(1), "")
    );
}

#[test]
fn health_of_somebody_follows_the_status() {
    for (answer, code) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"status\":\"ok\"}",
            0,
        ),
        (
            "HTTP/1.1 503 Loading\r\nContent-Length: 7\r\n\r\nLoading",
            1,
        ),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let n = stream.read(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&request[..n]).into_owned()
        });
        let output = launch(&["health", "--port", &port], &[]);
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert!(server.join().unwrap().starts_with("GET /health HTTP/1.1"));
    }
}

#[test]
fn completions_name_the_commands() {
    let output = launch(&["completions", "bash"], &[]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout(&output).contains("doctor"));
}

#[test]
fn manual_pages_are_one_per_command() {
    let dir = tempfile::tempdir().unwrap();
    let output = launch(&["man", dir.path().to_str().unwrap()], &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    for (page, says) in [
        ("bitnet-launch.1", "BitNet"),
        ("bitnet-launch-pull.1", "ORG/REPO"),
    ] {
        let text = std::fs::read_to_string(dir.path().join(page)).unwrap();
        assert!(text.contains(says), "{page}");
    }
    assert!(!dir.path().join("bitnet-launch-engine.1").exists());
}

#[test]
fn a_full_disk_behind_standard_output_is_no_panic() {
    let Ok(full) = std::fs::File::options().write(true).open("/dev/full") else {
        return eprintln!("skipped: no /dev/full here");
    };
    for args in [
        &["completions", "bash"][..],
        &["llama-server", "--help"],
        &["--check"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_bitnet-launch"))
            .args(args)
            .stdout(full.try_clone().unwrap())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(
            stderr(&output).starts_with("error: "),
            "{}",
            stderr(&output)
        );
    }
}

#[test]
fn called_as_llama_server_it_takes_its_flags() {
    let directory = tempfile::tempdir().unwrap();
    let alias = directory.path().join("llama-server");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_bitnet-launch"), &alias).unwrap();
    for (program, first) in [
        (alias.as_path(), None),
        (
            Path::new(env!("CARGO_BIN_EXE_bitnet-launch")),
            Some("llama-server"),
        ),
    ] {
        let run = |args: &[&str]| {
            Command::new(program)
                .args(first)
                .args(args)
                .env_clear()
                .output()
                .unwrap()
        };
        let version = run(&["--version"]);
        assert_eq!(version.status.code(), Some(0));
        assert!(
            stderr(&version).starts_with("version: "),
            "{}",
            stderr(&version)
        );
        assert!(
            stderr(&version).contains("built with "),
            "{}",
            stderr(&version)
        );
        let unknown = run(&["--treads", "4"]);
        assert_eq!(unknown.status.code(), Some(1));
        assert!(
            stderr(&unknown).contains("invalid argument: --treads"),
            "{}",
            stderr(&unknown)
        );
        let help = run(&["--help"]);
        assert_eq!(help.status.code(), Some(0));
        assert!(stdout(&help).contains("--cache-reuse"));
    }
}
