//! Stamps the program with its commit, build number, compiler and target. Works without git, too.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // A path that is missing would make cargo run this each time.
    for path in [".git/HEAD", ".git/logs/HEAD"] {
        if Path::new(path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    // Where there is no repository, as in a container's build, whoever builds may say it.
    println!("cargo::rerun-if-env-changed=BITNET_COMMIT");
    let said = std::env::var("BITNET_COMMIT").ok();
    let commit = said
        .filter(|commit| !commit.is_empty())
        .or_else(|| first_line("git", &["rev-parse", "--short=8", "HEAD"]));
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let compiler = first_line(&rustc, &["--version"]);
    stamp("COMMIT", &commit.unwrap_or_else(|| "unknown".to_owned()));
    stamp("RUSTC", &compiler.unwrap_or_else(|| "rustc".to_owned()));
    stamp("TARGET", &variable("TARGET"));
    stamp("BUILD_NUMBER", &build_number().to_string());
}

/// 10203 for version 1.2.3.
fn build_number() -> u32 {
    let part = |name: &str| {
        variable(&format!("CARGO_PKG_VERSION_{name}"))
            .parse()
            .unwrap_or(0)
    };
    10_000 * part("MAJOR") + 100 * part("MINOR") + part("PATCH")
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

fn stamp(name: &str, value: &str) {
    println!("cargo::rustc-env=BITNET_{name}={value}");
}

fn first_line(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let line = text.lines().next()?.trim();
    (output.status.success() && !line.is_empty()).then(|| line.to_owned())
}
