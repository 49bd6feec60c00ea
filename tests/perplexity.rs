//! `bitnet-launch perplexity` on the demo model and on texts that don't do.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bitnet-launch"))
        .arg("perplexity")
        .args(args)
        .env_clear()
        .output()
        .unwrap()
}

fn demo() -> String {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/bitnet-demo.gguf");
    demo.display().to_string()
}

fn error(args: &[&str]) -> String {
    let output = run(args);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

/// A model that learnt stories finds them less surprising than the same letters in another order, and says so twice alike.
#[test]
fn known_text_surprises_less_than_noise() {
    let directory = tempfile::tempdir().unwrap();
    let (story, noise) = (
        directory.path().join("story"),
        directory.path().join("noise"),
    );
    let sentence =
        "Once upon a time there was a little girl. She was happy and played in the garden. ";
    std::fs::write(&story, sentence.repeat(20)).unwrap();
    let backwards: String = sentence.chars().rev().collect();
    std::fs::write(&noise, backwards.repeat(20)).unwrap();
    let measure = |text: &Path| -> Value {
        let text = text.display().to_string();
        let output = run(&[&demo(), &text, "--ctx", "64", "--chunks", "3", "--json"]);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let (known, unknown) = (measure(&story), measure(&noise));
    assert_eq!(
        (&known["n_chunks"], &known["n_scored"]),
        (&3.into(), &93.into())
    );
    let perplexity = |report: &Value| report["perplexity"].as_f64().unwrap();
    assert!(perplexity(&known) > 1.0 && perplexity(&known) * 3.0 < perplexity(&unknown));
    assert_eq!(perplexity(&known), perplexity(&measure(&story)));
    let line = run(&[
        &demo(),
        &story.display().to_string(),
        "--ctx",
        "64",
        "--chunks",
        "3",
    ]);
    let line = String::from_utf8(line.stdout).unwrap();
    let start = format!("perplexity {:.4} ± ", perplexity(&known));
    assert!(
        line.starts_with(&start) && line.contains("3 chunks of 64"),
        "{line}"
    );
}

#[test]
fn what_cannot_be_measured_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let short = error(&[&demo(), &file("short", b"Once upon a time"), "--ctx", "32"]);
    assert!(
        short.contains("tokens, expected 64 or more (two chunks)"),
        "{short}"
    );
    let binary = error(&[&demo(), &file("binary", b"ab\xff\xfe")]);
    assert!(binary.contains("is not UTF-8 text at byte 2"), "{binary}");
    let missing = error(&[&demo(), "/nowhere/text"]);
    assert!(missing.contains("cannot read `/nowhere/text`"), "{missing}");
    let tiny = error(&[&demo(), &file("short", b"x"), "--ctx", "2"]);
    assert!(tiny.contains("`--ctx` is 2, expected 8 or more"), "{tiny}");
    let no_model = error(&["/nowhere/model.gguf", &file("short", b"x")]);
    assert!(no_model.contains("/nowhere/model.gguf"), "{no_model}");
}
