//! The documents against the program and the repository: commands are understood, links and named files are there.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::program;

const FOLDERS: &[&str] = &["", "docs", "deploy"];
/// What ends a command inside a line.
const ENDS: &[&str] = &["&&", "||", "|", ";", "&", ">", "<", "2>", ">>", "\\"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The documents, by path and text.
fn documents() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = FOLDERS.iter().map(|name| root().join(name)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() && folder != root() && !folders.contains(&path) {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "md") {
                found.push((path.clone(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(found.len() > 10);
    found
}

/// Lines of code blocks, and what stands between backticks elsewhere.
fn code(text: &str) -> Vec<&str> {
    let mut code = Vec::new();
    let mut is_fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_fenced = !is_fenced;
        } else if is_fenced || line.starts_with("    ") {
            code.push(line.trim());
        } else {
            code.extend(line.split('`').skip(1).step_by(2));
        }
    }
    code
}

/// As a shell takes a line apart, comments left out.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![];
    let (mut word, mut is_open, mut quote) = (String::new(), false, None);
    for letter in line.chars() {
        match (letter, quote) {
            (_, Some(open)) if letter == open => quote = None,
            ('\'' | '"', None) => (quote, is_open) = (Some(letter), true),
            ('#', None) if !is_open => break,
            (' ', None) => {
                if is_open {
                    words.push(std::mem::take(&mut word));
                }
                is_open = false;
            }
            _ => {
                word.push(letter);
                is_open = true;
            }
        }
    }
    if is_open {
        words.push(word);
    }
    words
}

/// The arguments of each `bitnet-launch` in a line.
fn commands(line: &str) -> Vec<Vec<String>> {
    let words = words(line);
    let starts = words.iter().enumerate().filter(|(_, word)| {
        let name = word.rsplit('/').next().unwrap_or_default();
        name == "bitnet-launch"
    });
    starts
        .filter(|(n, _)| {
            // A name among others is no command.
            let before = words[..*n].iter();
            before.clone().all(|word| word.contains('=')) || ENDS.contains(&words[n - 1].as_str())
        })
        .map(|(n, _)| {
            let rest = words[n + 1..].iter();
            rest.take_while(|word| !ENDS.contains(&word.as_str()))
                .map(|word| word.trim_end_matches(';').to_owned())
                .collect()
        })
        .collect()
}

#[test]
fn every_command_is_understood() {
    let dir = tempfile::tempdir().unwrap();
    let mut count = 0;
    for (path, text) in documents() {
        for line in code(&text) {
            for mut args in commands(line) {
                if args.iter().any(|word| word == "→") {
                    continue;
                }
                // `…` stands for more, other words in capitals for values.
                args.retain(|word| word != "…");
                for word in &mut args {
                    match word.as_str() {
                        "N" => *word = "1".to_owned(),
                        "KERNEL" => *word = "auto".to_owned(),
                        _ => {}
                    }
                }
                let output = program(dir.path())
                    .args(&args)
                    .arg("--help")
                    .output()
                    .unwrap();
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(
                    output.status.success(),
                    "{}: `{line}`: {args:?}: {said}",
                    path.display()
                );
                count += 1;
            }
        }
    }
    assert!(count > 60, "{count} commands");
}

#[test]
fn links_lead_somewhere() {
    for (path, text) in documents() {
        for rest in text.split("](").skip(1) {
            let target = rest.split(')').next().unwrap_or_default();
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || target.contains("://") {
                continue;
            }
            let found = path.parent().unwrap().join(file);
            assert!(found.exists(), "{}: `{target}`", path.display());
        }
    }
}

#[test]
fn scripts_that_are_named_are_there() {
    for (path, text) in documents() {
        for line in code(&text) {
            for word in words(line) {
                let word = word.trim_start_matches("./");
                let is_ours = ["tests/", "deploy/", "bench/", "demo/", "fuzz/", ".ci/"]
                    .iter()
                    .any(|folder| word.starts_with(folder));
                if is_ours && !word.contains(['*', '<', '{', '$']) {
                    let name = word.trim_end_matches([',', ';', ')', ':']);
                    assert!(
                        root().join(name).exists(),
                        "{}: `{name}` in `{line}`",
                        path.display()
                    );
                }
            }
        }
    }
}
