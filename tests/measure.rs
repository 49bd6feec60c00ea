//! `bench`, `tune` and `doctor --host-root` of the real binary: shapes of their output, files they write, exit codes.

mod common;

use std::path::Path;
use std::process::Output;

use common::program;
use serde_json::Value;

fn launch(dir: &Path, args: &[&str]) -> Output {
    program(dir).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn fixture(name: &str) -> String {
    format!(
        "{}/tests/fixtures/host/{name}.txt",
        env!("CARGO_MANIFEST_DIR")
    )
}

#[test]
fn bench_measures_every_kernel_and_all_agree() {
    let dir = tempfile::tempdir().unwrap();
    let args = [
        "bench",
        "--kernels",
        "auto,all",
        "--threads",
        "1,N",
        "-p",
        "16",
        "-n",
        "6",
        "-d",
        "0,20",
        "--slots",
        "2",
        "--rounds",
        "2",
        "--quick",
        "--json",
        "--svg",
        "plot.svg",
        "-o",
        "results.csv",
    ];
    let output = launch(dir.path(), &args);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["tokens_agree"], true);
    let cells = report["cells"].as_array().unwrap();
    assert!(cells.len() >= 2, "{report:#}");
    for cell in cells {
        let measured = cell["measured"].as_array().unwrap();
        let names: Vec<&str> = measured
            .iter()
            .map(|m| m["name"].as_str().unwrap())
            .collect();
        assert_eq!(
            names,
            ["prefill 16", "decode at 20", "decode at 0", "decode of 2"]
        );
        for m in measured {
            assert!(m["tok_s"]["median"].as_f64().unwrap() > 0.0, "{m}");
            assert_eq!(m["tok_s"]["values"].as_array().unwrap().len(), 2);
            assert!(
                m["cpu_seconds_per_token"]["median"].as_f64().unwrap() >= 0.0,
                "{m}"
            );
        }
        assert_eq!(cell["token_hash"], cells[0]["token_hash"]);
        assert!(cell["peak_memory_mb"]["median"].as_f64().unwrap() > 1.0);
    }
    let energy = &report["energy"];
    assert_ne!(energy["source"].is_null(), energy["unavailable"].is_null());
    let csv = std::fs::read_to_string(dir.path().join("results.csv")).unwrap();
    assert!(
        csv.starts_with("kernel,threads,pinned,measurement,"),
        "{csv}"
    );
    let svg = std::fs::read_to_string(dir.path().join("plot.svg")).unwrap();
    assert!(svg.contains("decode at 20"), "{svg}");
}

#[test]
fn bench_says_what_it_cannot_do() {
    let dir = tempfile::tempdir().unwrap();
    for (args, part) in [
        (&["--threads", "many"][..], "`--threads` is `many`"),
        (&["-p", "99999999", "-d", "99999999"], "expected numbers"),
        (
            &["-p", "500000", "-d", "500000"],
            "within the model's context",
        ),
        (&["--kernels", "abacus"], "flag --kernel is `abacus`"),
        (&["-m", "nowhere.gguf"], "no model at `nowhere.gguf`"),
        (
            &[
                "--svg",
                "no/such/dir/plot.svg",
                "--quick",
                "-p",
                "4",
                "-n",
                "2",
                "--slots",
                "0",
                "--rounds",
                "1",
            ],
            "cannot write",
        ),
    ] {
        let output = launch(dir.path(), &[&["bench"], args].concat());
        let said = text(&output.stderr);
        assert_ne!(output.status.code(), Some(0), "{args:?}");
        assert!(said.contains(part), "{args:?}: {said}");
    }
}

#[test]
fn tune_keeps_a_profile_that_the_plan_follows() {
    let dir = tempfile::tempdir().unwrap();
    let output = launch(dir.path(), &["tune", "--budget", "30s"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let said = text(&output.stdout);
    assert!(said.contains("kept in"), "{said}");
    let kept = dir.path().join(".local/state/bitnet-launch/tuned");
    let files: Vec<_> = std::fs::read_dir(&kept).unwrap().flatten().collect();
    assert_eq!(files.len(), 1);
    let profile: Value = serde_json::from_slice(&std::fs::read(files[0].path()).unwrap()).unwrap();
    assert!(profile["ratio"].as_f64().unwrap() <= 1.0);
    let chosen = &profile["setup"];
    let measured = profile["measured"].as_array().unwrap();
    assert!(
        measured.iter().any(|m| m["setup"] == *chosen),
        "{profile:#}"
    );

    let check = text(&launch(dir.path(), &["--check"]).stdout);
    assert!(check.contains("tuned on this machine"), "{check}");
    assert!(check.contains("Tuned profile: "), "{check}");
    let kernel = chosen["kernel"]
        .as_str()
        .unwrap()
        .split('/')
        .next()
        .unwrap();
    assert!(
        check.contains(&format!("Auto-selected kernel: {kernel} (")),
        "{check}"
    );
    // Who says something else is not served by it.
    let other = text(&launch(dir.path(), &["--check", "--kernel", "i2_s/scalar"]).stdout);
    assert!(!other.contains("tuned on this machine"), "{other}");
    assert!(
        other.contains("Selected kernel: i2_s (scalar; flag --kernel)"),
        "{other}"
    );
}

#[test]
fn a_profile_has_to_be_put_somewhere() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let state = dir.path().join("file");
    let output = program(dir.path())
        .args(["tune", "--budget", "30s"])
        .env("XDG_STATE_HOME", &state)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stdout).contains("not kept: cannot write to"),
        "{}",
        text(&output.stdout)
    );
}

#[test]
fn serving_can_tune_first() {
    let server = common::Server::ready(&["--tune"]);
    let log = server.log().join("\n");
    assert!(log.contains("Tuned: "), "{log}");
    assert!(log.contains("Tuned profile: "), "{log}");
    let kept = server.dir.path().join(".local/state/bitnet-launch/tuned");
    assert_eq!(std::fs::read_dir(kept).unwrap().count(), 1);
}

#[test]
fn doctor_looks_at_other_machines() {
    let dir = tempfile::tempdir().unwrap();
    let report = fixture("container-v2");
    let output = launch(dir.path(), &["doctor", "--json", "--host-root", &report]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["host"]["limits"]["quota_cpus"], 1.5);
    assert_eq!(json["plan"]["decode_cpus"]["value"], serde_json::json!([2]));
    let warnings = json["warnings"].to_string();
    assert!(
        warnings.contains("the CPU quota stopped this container"),
        "{warnings}"
    );

    let saved = launch(dir.path(), &["doctor", "--json", "--save-host", "host.txt"]);
    let here: Value = serde_json::from_slice(&saved.stdout).unwrap();
    let replayed = launch(dir.path(), &["doctor", "--json", "--host-root", "host.txt"]);
    let there: Value = serde_json::from_slice(&replayed.stdout).unwrap();
    assert_eq!(here["host"]["topology"], there["host"]["topology"]);
    assert_eq!(here["host"]["limits"], there["host"]["limits"]);
    assert_eq!(here["plan"]["decode_cpus"], there["plan"]["decode_cpus"]);

    let nowhere = launch(dir.path(), &["doctor", "--host-root", "nowhere"]);
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(text(&nowhere.stderr).contains("cannot read the machine at `nowhere`"));
}

#[test]
fn metrics_tell_cpu_time_and_why_there_is_no_energy() {
    let server = common::Server::ready(&[]);
    let body = common::wait_for("usage", || {
        let body = server.get("/metrics").body;
        body.contains("bitnet_engine_cpu_seconds_total")
            .then_some(body)
    });
    assert!(body.contains("bitnet_energy_available{"), "{body}");
    assert_eq!(
        body.contains("bitnet_energy_joules_total"),
        body.contains("bitnet_energy_available{source=")
    );
}
