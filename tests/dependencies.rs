//! Licences, sources and banned crates of what we build from, by the lists in `deny.toml`.
//!
//! cargo-deny reads the same file and knows more, advisories above all; this runs wherever the tests do.
#![allow(missing_docs)]

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;
use toml::Table;

/// Every crate that ends up in a build for Linux on this CPU, those of the build itself included.
fn crates() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--offline", "--format-version", "1"])
        .arg("--filter-platform")
        .arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let mut metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let used: BTreeSet<String> = nodes.iter().map(|node| node["id"].to_string()).collect();
    let packages = metadata["packages"].take();
    let packages = packages.as_array().unwrap().iter();
    packages
        .filter(|package| used.contains(&package["id"].to_string()))
        .cloned()
        .collect()
}

fn strings(list: &toml::Value) -> BTreeSet<String> {
    let items = list.as_array().unwrap().iter();
    items
        .map(|item| item.get("name").unwrap_or(item))
        .map(|item| item.as_str().unwrap().to_owned())
        .collect()
}

/// Whether an SPDX expression can be fulfilled with the allowed licences. `AND` binds closer than `OR`, and `/` is `OR`.
fn fulfils(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace(" WITH ", "\u{1f}");
    let words: Vec<String> = spaced
        .split_ascii_whitespace()
        .map(|word| word.replace('\u{1f}', " WITH "))
        .collect();
    let mut words = words.iter().map(String::as_str).peekable();
    let fulfilled = either(&mut words, allowed);
    fulfilled && words.next().is_none()
}

type Words<'a, I> = std::iter::Peekable<I>;

fn either<'a, I>(words: &mut Words<'a, I>, allowed: &BTreeSet<String>) -> bool
where
    I: Iterator<Item = &'a str>,
{
    let mut result = both(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        result |= both(words, allowed);
    }
    result
}

fn both<'a, I>(words: &mut Words<'a, I>, allowed: &BTreeSet<String>) -> bool
where
    I: Iterator<Item = &'a str>,
{
    let mut result = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        result &= one(words, allowed);
    }
    result
}

fn one<'a, I>(words: &mut Words<'a, I>, allowed: &BTreeSet<String>) -> bool
where
    I: Iterator<Item = &'a str>,
{
    match words.next() {
        Some("(") => {
            let result = either(words, allowed);
            words.next() == Some(")") && result
        }
        Some(licence) => allowed.contains(licence),
        None => false,
    }
}

#[test]
fn everything_we_build_from_is_allowed() {
    let text = include_str!("../deny.toml");
    let rules: Table = text.parse().unwrap();
    let allowed = strings(&rules["licenses"]["allow"]);
    let banned = strings(&rules["bans"]["deny"]);
    let crates = crates();
    assert!(crates.len() > 100, "only {} crates", crates.len());
    for package in &crates {
        let name = package["name"].as_str().unwrap();
        let licence = package["license"].as_str().unwrap_or("no licence");
        assert!(fulfils(licence, &allowed), "{name}: {licence}");
        assert!(!banned.contains(name), "{name} is banned");
        let source = package["source"].as_str().unwrap_or("here");
        let good =
            source == "here" || source == "registry+https://github.com/rust-lang/crates.io-index";
        assert!(good, "{name} comes from {source}");
    }
}

#[test]
fn expressions_are_read() {
    let allowed: BTreeSet<String> = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"]
        .map(str::to_owned)
        .into();
    for (expression, good) in [
        ("MIT", true),
        ("GPL-3.0-only", false),
        ("GPL-3.0-only OR MIT", true),
        ("GPL-3.0-only/MIT", true),
        ("GPL-3.0-only AND MIT", false),
        ("MIT AND ISC", true),
        ("(MIT OR GPL-3.0-only) AND ISC", true),
        ("(MIT OR ISC) AND GPL-3.0-only", false),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("Apache-2.0", false),
        ("", false),
        ("MIT ISC", false),
    ] {
        assert_eq!(fulfils(expression, &allowed), good, "{expression}");
    }
}
