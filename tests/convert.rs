//! `convert` and `inspect` of the real binary: what they print, their exit codes, and that nothing half is left behind.

mod common;

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use common::{demo_model, program, wait_for};

fn checkpoint(name: &str) -> PathBuf {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("engine/model/tests/data/convert");
    data.join(name)
}

fn launch(dir: &Path, args: &[&str]) -> Output {
    program(dir).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.collect()
}

#[test]
fn a_directory_becomes_a_model_that_is_checked_and_inspected() {
    let dir = tempfile::tempdir().unwrap();
    let source = checkpoint("masters");
    let args = ["convert", source.to_str().unwrap(), "-o", "model.gguf"];
    let output = launch(dir.path(), &args);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let said = text(&output.stdout);
    let checksum = |when: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(when));
        line.unwrap().trim().to_owned()
    };
    assert_eq!(checksum("checksum before:"), checksum("checksum after:"));
    assert_eq!(names(dir.path()), ["model.gguf"]);
    let mode = std::os::unix::fs::MetadataExt::mode(
        &std::fs::metadata(dir.path().join("model.gguf")).unwrap(),
    );
    assert_eq!(mode & 0o400, 0o400);
    let check = launch(dir.path(), &["--check", "-m", "model.gguf"]);
    assert_eq!(check.status.code(), Some(0), "{}", text(&check.stderr));

    let output = launch(dir.path(), &["inspect", "model.gguf", "--verify", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let seen: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(seen["model"]["architecture"], "bitnet-b1.58");
    assert_eq!(seen["ternary"]["sampled"], false);
    let weights = seen["verified"]["weights_sha256"].as_str().unwrap();
    assert_eq!(format!("sha256 {weights}"), checksum("checksum after:"));
    assert_eq!(seen["verified"]["faults"], json!([]));
    let report = launch(dir.path(), &["inspect", "model.gguf", "--all"]);
    for part in [
        "sampled",
        "pre-tokenizer llama-bpe",
        "blk.0.attn_q.weight",
        "memory:",
    ] {
        assert!(
            text(&report.stdout).contains(part),
            "{}",
            text(&report.stdout)
        );
    }
}

#[test]
fn another_packing_serves_the_same_text() {
    let dir = tempfile::tempdir().unwrap();
    let demo = demo_model();
    let args = [
        "convert",
        demo.to_str().unwrap(),
        "--outtype",
        "tq2_0",
        "-o",
        "tq2.gguf",
    ];
    let output = launch(dir.path(), &args);
    let path = dir.path().join("tq2.gguf");
    if !output.status.success() {
        // The demo's rows need not be multiples of 256; then that is what is said.
        assert!(text(&output.stderr).contains("TQ2_0 needs rows of a multiple of 256"));
        assert!(names(dir.path()).is_empty());
        let args = ["convert", demo.to_str().unwrap(), "-o", "tq2.gguf"];
        assert!(launch(dir.path(), &args).status.success());
    }
    let body = json!({"prompt": "BitNet is", "n_predict": 12, "temperature": 0});
    let one = common::Server::ready(&["-m", path.to_str().unwrap()]);
    let other = common::Server::ready(&["-m", demo.to_str().unwrap()]);
    assert_eq!(one.complete(&body), other.complete(&body));
}

#[test]
fn a_wrong_source_is_one_error_with_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let empty = tempfile::tempdir().unwrap();
    for (args, wanted) in [
        (
            vec!["convert", empty.path().to_str().unwrap(), "-o", "a.gguf"],
            "a directory without config.json",
        ),
        (
            vec!["convert", "gone", "-o", "a.gguf"],
            "cannot read `gone`",
        ),
        (vec!["inspect", "gone"], "cannot inspect `gone`"),
        (
            vec!["inspect", "gone", "--lookup-tiles", "7"],
            "--lookup-tiles expects ROWSxCOLS=BM/BK",
        ),
    ] {
        let output = launch(dir.path(), &args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(
            text(&output.stderr).contains(wanted),
            "{}",
            text(&output.stderr)
        );
    }
    let usage = launch(
        dir.path(),
        &["convert", "a", "-o", "b", "--outtype", "q4_0"],
    );
    assert_eq!(usage.status.code(), Some(2));
    assert!(names(dir.path()).is_empty());
}

/// A limit on the size of files stands in for a disk that fills up.
#[test]
fn a_full_disk_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("model.gguf"), "old").unwrap();
    let limited = |script: &str| {
        let mut command = Command::new("sh");
        let binary = env!("CARGO_BIN_EXE_bitnet-launch");
        command
            .args(["-c", script, "sh", binary, "convert"])
            .arg(checkpoint("masters"))
            .args(["-o", "model.gguf"])
            .current_dir(dir.path());
        command.output().unwrap()
    };
    let output = limited("ulimit -f 64; exec \"$@\"");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(
        text(&output.stderr).contains("cannot write `model.gguf`: File too large"),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(names(dir.path()), ["model.gguf"]);
    assert_eq!(
        std::fs::read(dir.path().join("model.gguf")).unwrap(),
        b"old"
    );
}

/// Master weights of zeros, as holes in the file: some 400 MB to read, none on the disk.
fn large_checkpoint(dir: &Path) {
    let (embd, ff, layers) = (1024u64, 4096u64, 16);
    let mut header = serde_json::Map::new();
    let mut at = 0;
    let mut add = |name: String, shape: Vec<u64>| {
        let bytes = 2 * shape.iter().product::<u64>();
        let entry = json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, at + bytes]});
        header.insert(name, entry);
        at += bytes;
    };
    add("model.embed_tokens.weight".into(), vec![288, embd]);
    add("model.norm.weight".into(), vec![embd]);
    for layer in 0..layers {
        let mut layer = |name: &str, shape: Vec<u64>| {
            add(format!("model.layers.{layer}.{name}.weight"), shape);
        };
        for name in ["q", "k", "v", "o"] {
            layer(&format!("self_attn.{name}_proj"), vec![embd, embd]);
        }
        layer("mlp.gate_proj", vec![ff, embd]);
        layer("mlp.up_proj", vec![ff, embd]);
        layer("mlp.down_proj", vec![embd, ff]);
        for name in [
            "input_layernorm",
            "post_attention_layernorm",
            "self_attn.attn_sub_norm",
        ] {
            layer(name, vec![embd]);
        }
        layer("mlp.ffn_sub_norm", vec![ff]);
    }
    let text = Value::Object(header).to_string();
    let mut file = std::fs::File::create(dir.join("model.safetensors")).unwrap();
    file.write_all(&(text.len() as u64).to_le_bytes()).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.set_len(8 + text.len() as u64 + at).unwrap();
    // Something that isn't zero, so that a block was really written.
    file.write_all_at(&[0, 0x3f], 8 + text.len() as u64)
        .unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(checkpoint("masters").join(name), dir.join(name)).unwrap();
    }
    let config = std::fs::read(checkpoint("masters").join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["hidden_size"] = json!(embd);
    config["intermediate_size"] = json!(ff);
    config["num_hidden_layers"] = json!(layers);
    config["num_attention_heads"] = json!(8);
    config["num_key_value_heads"] = json!(8);
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

#[test]
fn ctrl_c_leaves_nothing() {
    let source = tempfile::tempdir().unwrap();
    large_checkpoint(source.path());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let dir = tempfile::tempdir().unwrap();
        let mut child = program(dir.path())
            .args([
                "convert",
                source.path().to_str().unwrap(),
                "-o",
                "model.gguf",
            ])
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        wait_for("the temporary file", || {
            let names = names(dir.path());
            names
                .iter()
                .any(|name| name.ends_with(".part"))
                .then_some(())
        });
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        wait_for("the end", || child.try_wait().unwrap());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(
            text(&output.stderr).contains("stopped before the end, nothing was written"),
            "{}",
            text(&output.stderr)
        );
        assert!(names(dir.path()).is_empty());
    }
}

/// clap would read `-np 4` as `-n p`, and `-hf` as `-h`.
#[test]
fn llama_servers_short_flags_are_named() {
    let dir = tempfile::tempdir().unwrap();
    for flag in ["-np", "-hf", "-ngl"] {
        let output = program(dir.path()).args([flag, "4"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(
            text.contains(&format!("{flag} is a flag of llama-server's")),
            "{text}"
        );
        assert!(
            text.contains("hint: call `bitnet-launch llama-server"),
            "{text}"
        );
    }
}

/// Converting and inspecting take any path, serving wants UTF-8 and says so.
#[test]
fn paths_that_are_no_utf_8() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let name = std::ffi::OsStr::from_bytes(b"mod\xffel.gguf");
    std::fs::copy(demo_model(), dir.path().join(name)).unwrap();
    let launch = || program(dir.path());
    let inspected = launch().arg("inspect").arg(name).output().unwrap();
    assert_eq!(inspected.status.code(), Some(0));
    let flag = launch().args(["--check", "-m"]).arg(name).output().unwrap();
    let variable = launch()
        .arg("--check")
        .env("MODEL_PATH", name)
        .output()
        .unwrap();
    for (output, code) in [(flag, 2), (variable, 1)] {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains("UTF-8"), "{text}");
    }
}
