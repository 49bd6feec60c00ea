//! The page in a real browser: runs `tests/browser/run.sh` on this build. Skipped where there is no browser.

use std::path::Path;
use std::process::Command;

#[test]
fn a_person_uses_the_page() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser/run.sh");
    let output = Command::new("sh")
        .arg(script)
        .env("BITNET_LAUNCH", env!("CARGO_BIN_EXE_bitnet-launch"))
        .env("NO_INSTALL", "1")
        .output()
        .expect("a shell");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
}
