//! `pull`, `models`, `setup_model` and `serve -m NAME` with the real program against a hub of our own that does everything
//! wrong that hubs and networks do.

mod common;
#[path = "common/hub.rs"]
#[allow(dead_code, unreachable_pub, missing_docs)]
mod hub;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{program, wait_for};
use hub::{COMMIT, Door, Fault, Hub, HubFile, noise};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const REPO: &str = "some/ternary-gguf";
const FILE: &str = "model-i2_s.gguf";
/// More than two chunks, and not a round number.
const BYTES: usize = (18 << 20) + 12_345;

/// A hub with one large file, and an empty home.
struct Scene {
    hub: Hub,
    home: TempDir,
    bytes: Vec<u8>,
}

impl Scene {
    fn new() -> Scene {
        Scene::with(BYTES)
    }

    fn with(n: usize) -> Scene {
        let bytes = noise(n, 7);
        let hub = Hub::start();
        hub.put(REPO, FILE, HubFile::large(bytes.clone()));
        hub.put(REPO, "README.md", HubFile::small("A model."));
        Scene {
            hub,
            home: tempfile::tempdir().unwrap(),
            bytes,
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = program(self.home.path());
        command
            .args(args)
            .env("HF_ENDPOINT", self.hub.url())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn pull(&self, args: &[&str]) -> Outcome {
        let args: Vec<&str> = ["pull", REPO].iter().chain(args).copied().collect();
        Outcome::of(self.command(&args).output().unwrap())
    }

    fn repo(&self) -> PathBuf {
        self.home
            .path()
            .join(".cache/huggingface/hub/models--some--ternary-gguf")
    }

    fn file(&self) -> PathBuf {
        self.repo().join("snapshots").join(COMMIT).join(FILE)
    }

    fn part(&self) -> PathBuf {
        let etag = hub::sha256(&self.bytes);
        self.repo().join(format!("blobs/{etag}.incomplete"))
    }

    fn is_whole(&self) -> bool {
        fs::read(self.file()).is_ok_and(|found| found == self.bytes)
    }

    /// The smallest offset that was asked for since the requests were last taken. Bytes sent would be no measure: a
    /// connection that was cut may go on sending for a moment.
    fn resumed_at(&self) -> usize {
        let requests = self.hub.take_requests();
        let bytes = requests.iter().filter(|request| request.is_bytes());
        let first = |request: &hub::Request| request.range().map_or(0, |range| range.0);
        bytes.map(first).min().unwrap()
    }

    /// Every file below the home.
    fn files(&self) -> Vec<String> {
        let mut found = Vec::new();
        collect(self.home.path(), self.home.path(), &mut found);
        found
    }

    /// Kills a pull with this signal once it has written a part.
    fn interrupted(&self, signal: Signal) -> Outcome {
        self.hub.rule(slow);
        let child = self
            .command(&["pull", REPO, "--connections", "1"])
            .spawn()
            .unwrap();
        wait_for("a partial file", || {
            (fs::metadata(self.part()).ok()?.len() > 1 << 20).then_some(())
        });
        end(child, signal)
    }
}

fn slow(request: &hub::Request) -> Fault {
    match request.is_bytes() {
        true => Fault::Slow(Duration::from_millis(15)),
        false => Fault::Nothing,
    }
}

fn end(child: Child, signal: Signal) -> Outcome {
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
    Outcome::of(child.wait_with_output().unwrap())
}

fn collect(directory: &Path, root: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        match entry.file_type().unwrap().is_dir() {
            true => collect(&path, root, found),
            false => found.push(path.strip_prefix(root).unwrap().display().to_string()),
        }
    }
    found.sort();
}

/// How the program ended and what it said.
struct Outcome {
    code: Option<i32>,
    out: String,
    log: String,
}

impl Outcome {
    fn of(output: Output) -> Outcome {
        Outcome {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).trim().to_owned(),
            log: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    #[track_caller]
    fn done(self) -> Outcome {
        assert_eq!(self.code, Some(0), "{}", self.log);
        self
    }

    #[track_caller]
    fn failed(self, code: i32, words: &[&str]) -> Outcome {
        assert_eq!(self.code, Some(code), "{}", self.log);
        assert_eq!(self.out, "", "no path for what is not there");
        assert_eq!(self.log.matches("error: ").count(), 1, "{}", self.log);
        for word in words {
            assert!(self.log.contains(word), "no `{word}` in: {}", self.log);
        }
        self
    }
}

#[test]
fn a_pulled_model_lies_where_every_tool_finds_it() {
    let scene = Scene::new();
    let outcome = scene.pull(&[]).done();
    assert_eq!(Path::new(&outcome.out), scene.file());
    assert!(scene.is_whole());
    assert!(
        outcome.log.contains("sha256 as the hub says"),
        "{}",
        outcome.log
    );
    let blob = fs::read_link(scene.file()).unwrap();
    let etag = hub::sha256(&scene.bytes);
    assert_eq!(blob, Path::new("../../blobs").join(&etag));
    assert_eq!(
        fs::read_to_string(scene.repo().join("refs/main")).unwrap(),
        COMMIT
    );
    assert!(!scene.part().exists());
    let ranges = scene.hub.take_requests();
    assert_eq!(
        ranges.iter().filter(|r| r.is_bytes()).count(),
        3,
        "three chunks"
    );
    scene.hub.take_sent();
    let again = scene.pull(&[]).done();
    assert!(again.log.contains("already here"), "{}", again.log);
    assert_eq!(scene.hub.take_sent(), 0);
    let quiet = scene.pull(&["--quiet"]).done();
    assert_eq!(
        (quiet.out.as_str(), quiet.log.as_str()),
        (outcome.out.as_str(), "")
    );
    let offline = scene
        .command(&["pull", REPO])
        .env("HF_HUB_OFFLINE", "1")
        .output();
    assert_eq!(Outcome::of(offline.unwrap()).done().out, outcome.out);
}

#[test]
fn the_token_stays_with_the_hub() {
    let scene = Scene::new();
    let output = scene
        .command(&["pull", REPO])
        .env("HF_TOKEN", "hf_secret")
        .output();
    Outcome::of(output.unwrap()).done();
    for request in scene.hub.take_requests() {
        let sent = request.headers.get("authorization").map(String::as_str);
        let wanted = (request.door == Door::Hub).then_some("Bearer hf_secret");
        assert_eq!(sent, wanted, "{request:?}");
    }
}

#[test]
fn broken_connections_are_mended() {
    let scene = Scene::new();
    scene
        .hub
        .rule(|request| match request.is_bytes() && request.before < 4 {
            true => Fault::CutAfter(1_000_000),
            false => Fault::Nothing,
        });
    let outcome = scene.pull(&[]).done();
    assert!(scene.is_whole());
    assert!(outcome.log.contains("try 2 of 9"), "{}", outcome.log);
    assert!(
        scene.hub.take_sent() < BYTES as u64 + (1 << 20),
        "nothing comes twice"
    );
}

#[test]
fn a_silent_connection_is_given_up() {
    let scene = Scene::new();
    scene
        .hub
        .rule(|request| match request.is_bytes() && request.before == 1 {
            true => Fault::StallAfter(200_000),
            false => Fault::Nothing,
        });
    let started = Instant::now();
    scene.pull(&["--timeout", "1"]).done();
    assert!(scene.is_whole());
    assert!(started.elapsed() < Duration::from_secs(15));
}

#[test]
fn a_busy_hub_is_given_the_time_it_asks_for() {
    let scene = Scene::with(100_000);
    scene.hub.rule(
        |request| match (request.is_list(), request.is_bytes(), request.before) {
            (true, _, 0) => Fault::Status(429, vec![("Retry-After", "1".into())], ""),
            (_, true, 0) => Fault::Status(503, vec![], "busy"),
            (_, true, 1) => Fault::Status(500, vec![], "oops"),
            _ => Fault::Nothing,
        },
    );
    let started = Instant::now();
    let outcome = scene.pull(&[]).done();
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert!(outcome.log.contains("429"), "{}", outcome.log);
    assert!(scene.is_whole());
    scene
        .hub
        .rule(|_| Fault::Status(429, vec![("Retry-After", "86400".into())], ""));
    scene.pull(&[]).failed(1, &["429", "86400 s"]);
}

#[test]
fn what_never_works_ends_and_leaves_nothing() {
    let scene = Scene::new();
    scene.hub.rule(|request| match request.is_bytes() {
        true => Fault::Status(502, vec![], "bad gateway"),
        false => Fault::Nothing,
    });
    let outcome = scene
        .pull(&["--retries", "1"])
        .failed(1, &["502", "after 2 tries"]);
    assert!(outcome.log.contains("hint: "), "{}", outcome.log);
    assert_eq!(scene.files(), Vec::<String>::new());
    let nobody = scene
        .command(&["pull", REPO, "--retries", "0"])
        .env("HF_ENDPOINT", "http://127.0.0.1:9")
        .output();
    Outcome::of(nobody.unwrap()).failed(1, &["http://127.0.0.1:9/api/models/"]);
}

#[test]
fn a_server_without_ranges_is_read_through() {
    let scene = Scene::new();
    scene.hub.rule(|request| match request.is_bytes() {
        true if request.before < 6 => Fault::NoRanges(Some(5_000_000)),
        true => Fault::NoRanges(None),
        false => Fault::Nothing,
    });
    let outcome = scene.pull(&[]).done();
    assert!(outcome.log.contains("whole files only"), "{}", outcome.log);
    assert!(scene.is_whole());
}

#[test]
fn wrong_bytes_never_get_the_files_name() {
    let scene = Scene::new();
    scene.hub.rule(|request| match request.is_bytes() {
        true => Fault::Corrupt,
        false => Fault::Nothing,
    });
    let good = hub::sha256(&scene.bytes);
    scene.pull(&[]).failed(1, &["sha256", &good, FILE]);
    assert_eq!(scene.files(), Vec::<String>::new());
    fs::write(scene.home.path().join(FILE), "what was here before").unwrap();
    scene.pull(&["--dir", "."]).failed(1, &["sha256", &good]);
    assert_eq!(scene.files(), [FILE]);
    let kept = fs::read_to_string(scene.home.path().join(FILE)).unwrap();
    assert_eq!(kept, "what was here before");
}

#[test]
fn sizes_that_disagree_are_an_error() {
    let scene = Scene::new();
    let file = HubFile::large(scene.bytes.clone());
    let listed = HubFile {
        listed_size: 99,
        ..file.clone()
    };
    scene.hub.put(REPO, FILE, listed);
    let size = BYTES.to_string();
    scene.pull(&[]).failed(1, &[&size, "99", "list"]);
    scene.hub.put(REPO, FILE, file);
    scene.hub.rule(|request| match request.is_bytes() {
        true => Fault::ClaimSize(77),
        false => Fault::Nothing,
    });
    scene.pull(&[]).failed(1, &[&size, "77"]);
    assert_eq!(scene.files(), Vec::<String>::new());
}

#[test]
fn a_file_larger_than_the_disk_is_not_begun() {
    let scene = Scene::with(1000);
    let huge = HubFile {
        listed_size: 1 << 60,
        linked_size: 1 << 60,
        ..HubFile::large(scene.bytes.clone())
    };
    scene.hub.put(REPO, FILE, huge);
    scene
        .pull(&[])
        .failed(1, &["are free", "are needed", "--dir"]);
    assert_eq!(scene.hub.take_sent(), 0);
    assert_eq!(scene.files(), Vec::<String>::new());
}

#[test]
fn a_full_disk_keeps_what_fitted() {
    let scene = Scene::new();
    // A limit on the size of files stands in for the disk: 4096 blocks of 512 or 1024 bytes, by shell.
    let script = "trap '' XFSZ; ulimit -f 4096; exec \"$0\" \"$@\"";
    let mut command = Command::new("/bin/sh");
    command
        .args([
            "-c",
            script,
            env!("CARGO_BIN_EXE_bitnet-launch"),
            "pull",
            REPO,
        ])
        .env_clear()
        .env("HOME", scene.home.path())
        .env("HF_ENDPOINT", scene.hub.url())
        .current_dir(scene.home.path());
    let outcome = Outcome::of(command.output().unwrap());
    outcome.failed(1, &["cannot write", ".incomplete"]);
    assert!(!scene.file().exists());
    let kept = fs::metadata(scene.part()).unwrap().len();
    assert!(kept == 4096 * 512 || kept == 4096 * 1024, "{kept}");
    scene.hub.take_requests();
    scene.pull(&[]).done();
    assert!(scene.is_whole());
    assert_eq!(scene.resumed_at() as u64, kept);
}

#[test]
fn ctrl_c_keeps_what_came_and_the_next_run_goes_on() {
    let scene = Scene::new();
    let outcome = scene
        .interrupted(Signal::SIGINT)
        .failed(130, &["stopped", "are kept", "hint: "]);
    assert!(!outcome.log.contains("panicked"), "{}", outcome.log);
    let kept = fs::read(scene.part()).unwrap();
    assert!(scene.bytes.starts_with(&kept) && !kept.is_empty());
    assert!(!scene.file().exists());
    scene.hub.rule(|_| Fault::Nothing);
    scene.hub.take_requests();
    let outcome = scene.pull(&[]).done();
    assert!(outcome.log.contains("going on after"), "{}", outcome.log);
    assert!(scene.is_whole());
    assert_eq!(scene.resumed_at(), kept.len());
}

#[test]
fn sudden_death_is_survived() {
    let scene = Scene::new();
    let outcome = scene.interrupted(Signal::SIGKILL);
    assert_eq!(outcome.code, None);
    let kept = fs::read(scene.part()).unwrap();
    assert!(scene.bytes.starts_with(&kept));
    scene.hub.rule(|_| Fault::Nothing);
    scene.pull(&[]).done();
    assert!(scene.is_whole());
    assert!(!scene.part().exists());
}

#[test]
fn a_damaged_partial_file_is_noticed() {
    let scene = Scene::new();
    fs::create_dir_all(scene.part().parent().unwrap()).unwrap();
    fs::write(scene.part(), noise(3_000_000, 99)).unwrap();
    let outcome = scene.pull(&[]).done();
    assert!(outcome.log.contains("was damaged"), "{}", outcome.log);
    assert!(scene.is_whole());
}

#[test]
fn partial_files_of_content_that_is_gone_are_removed() {
    let scene = Scene::new();
    let blobs = scene.repo().join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let stale = blobs.join(format!("{}.incomplete", "ab".repeat(32)));
    let pythons = blobs.join(format!("{}.1234.incomplete", "ab".repeat(32)));
    for path in [&stale, &pythons] {
        fs::write(path, "old").unwrap();
    }
    scene.pull(&[]).done();
    assert!(scene.is_whole());
    assert!(!stale.exists());
    assert!(pythons.exists(), "Python's may still be written");
    let other = scene
        .home
        .path()
        .join(format!(".{FILE}.0123456789abcdef.part"));
    fs::write(&other, "old").unwrap();
    scene.pull(&["-o", "."]).done();
    assert!(!other.exists());
    assert_eq!(fs::read(scene.home.path().join(FILE)).unwrap(), scene.bytes);
}

#[test]
fn two_pulls_at_once_take_turns() {
    for target in [&[][..], &["--dir", "."]] {
        let scene = Scene::new();
        scene.hub.rule(|request| match request.is_bytes() {
            true => Fault::Slow(Duration::from_millis(5)),
            false => Fault::Nothing,
        });
        let start = || {
            let args = ["pull", REPO].iter().chain(target).copied();
            scene.command(&args.collect::<Vec<_>>()).spawn().unwrap()
        };
        let pulls = [start(), start(), start()];
        for pull in pulls {
            let outcome = Outcome::of(pull.wait_with_output().unwrap()).done();
            assert_eq!(
                fs::read(scene.home.path().join(outcome.out)).unwrap(),
                scene.bytes
            );
        }
        assert_eq!(scene.hub.take_sent(), BYTES as u64, "downloaded once");
        assert!(!scene.files().iter().any(|file| file.contains(".part")));
    }
}

#[test]
fn an_address_that_expires_is_asked_for_again() {
    let scene = Scene::new();
    scene.hub.rule(slow);
    let child = scene
        .command(&["pull", REPO, "--connections", "1"])
        .spawn()
        .unwrap();
    wait_for("a partial file", || {
        (fs::metadata(scene.part()).ok()?.len() > 1 << 20).then_some(())
    });
    scene.hub.expire_addresses("two");
    scene.hub.rule(|_| Fault::Nothing);
    let outcome = Outcome::of(child.wait_with_output().unwrap()).done();
    assert!(outcome.log.contains("may have expired"), "{}", outcome.log);
    assert!(scene.is_whole());
}

#[test]
fn renamed_and_gated_repositories() {
    let scene = Scene::with(1000);
    scene.hub.rule(
        |request| match request.path.strip_prefix("/api/models/old/name/") {
            Some(rest) => {
                let to = format!("/api/models/{REPO}/{rest}");
                Fault::Status(307, vec![("Location", to)], "")
            }
            None => match request.path.strip_prefix("/old/name/") {
                Some(rest) => Fault::Status(307, vec![("Location", format!("/{REPO}/{rest}"))], ""),
                None => Fault::Nothing,
            },
        },
    );
    let outcome = Outcome::of(scene.command(&["pull", "old/name"]).output().unwrap()).done();
    assert_eq!(fs::read(outcome.out).unwrap(), scene.bytes);
    scene.hub.rule(|_| {
        let said = "Access to this model is restricted.".to_owned();
        let headers = vec![
            ("X-Error-Code", "GatedRepo".into()),
            ("X-Error-Message", said),
        ];
        Fault::Status(403, headers, "")
    });
    scene.pull(&[]).failed(
        1,
        &["403", "Access to this model is restricted", "HF_TOKEN"],
    );
    scene.hub.rule(|_| Fault::Nothing);
    let missing = Outcome::of(scene.command(&["pull", "no/such"]).output().unwrap());
    missing.failed(1, &["401", "check the spelling"]);
}

#[test]
fn the_catalogue_knows_the_official_file() {
    let scene = Scene::with(5000);
    let official = "microsoft/bitnet-b1.58-2B-4T-gguf";
    let known = "4221b252fdd5fd25e15847adfeb5ee88886506ba50b8a34548374492884c2162";
    scene.hub.put(
        official,
        "ggml-model-i2_s.gguf",
        HubFile::large(scene.bytes.clone()),
    );
    for name in [&["pull"][..], &["pull", "2b-4t"], &["setup_model"]] {
        let outcome = Outcome::of(scene.command(name).output().unwrap());
        let found = hub::sha256(&scene.bytes);
        let outcome = outcome.failed(1, &[known, &found]);
        assert!(
            outcome.log.contains("hint: `--trust-hub`"),
            "{}",
            outcome.log
        );
    }
    assert_eq!(scene.hub.take_sent(), 0);
    // The same bytes that it knows, it would take; others only when told to.
    let outcome = scene.command(&["pull", "--trust-hub"]).output().unwrap();
    let outcome = Outcome::of(outcome).done();
    assert!(
        outcome.log.contains("taking the ready file"),
        "{}",
        outcome.log
    );
    assert!(
        outcome.log.contains("bitnet-launch -m 2b-4t"),
        "{}",
        outcome.log
    );
    let models = Outcome::of(scene.command(&["models", "--json"]).output().unwrap()).done();
    let json: serde_json::Value = serde_json::from_str(&models.out).unwrap();
    assert_eq!(json["models"][0]["state"], "here");
    assert_eq!(json["models"][0]["path"].as_str().unwrap(), outcome.out);
    let table = Outcome::of(scene.command(&["models"]).output().unwrap()).done();
    assert!(
        table
            .out
            .lines()
            .any(|l| l.starts_with("2b-4t ") && l.contains(" here "))
    );
}

#[test]
fn a_repository_to_convert_comes_whole() {
    let scene = Scene::with(1000);
    let repo = "tiiuae/Falcon3-1B-Instruct-1.58bit";
    let files = BTreeMap::from([
        ("config.json", HubFile::small("{}")),
        ("tokenizer.json", HubFile::small("{\"a\": 1}")),
        ("model.safetensors", HubFile::large(scene.bytes.clone())),
        ("1_Pooling/config.json", HubFile::small("{\"b\": 2}")),
        ("README.md", HubFile::small("words")),
        ("original/model.safetensors", HubFile::small("not this one")),
    ]);
    for (path, file) in files {
        scene.hub.put(repo, path, file);
    }
    let outcome = Outcome::of(
        scene
            .command(&["pull", "falcon3-1b-instruct"])
            .output()
            .unwrap(),
    );
    let outcome = outcome.done();
    let mut found = Vec::new();
    collect(Path::new(&outcome.out), Path::new(&outcome.out), &mut found);
    let wanted = [
        "1_Pooling/config.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ];
    assert_eq!(found, wanted);
    let pooling = Path::new(&outcome.out).join("1_Pooling/config.json");
    assert_eq!(fs::read_to_string(pooling).unwrap(), "{\"b\": 2}");
    assert!(
        outcome.log.contains("bitnet-launch convert"),
        "{}",
        outcome.log
    );
    let serve = scene
        .command(&["-m", "falcon3-1b-instruct"])
        .output()
        .unwrap();
    Outcome::of(serve).failed(
        1,
        &["safetensors", "hint: convert it: `bitnet-launch convert"],
    );
    let setup = [
        "setup_model",
        "tiiuae/Falcon3-1B-Instruct-1.58bit",
        "models",
        "tl2",
    ];
    let setup = Outcome::of(scene.command(&setup).output().unwrap()).done();
    assert_eq!(setup.out, "models/Falcon3-1B-Instruct-1.58bit");
    assert!(setup.log.contains("--kernel tl2"), "{}", setup.log);
    let placed = scene.home.path().join(setup.out).join("model.safetensors");
    assert_eq!(fs::read(placed).unwrap(), scene.bytes);
}

#[test]
fn a_model_is_served_by_its_name() {
    let scene = Scene::new();
    let demo = fs::read(common::demo_model()).unwrap();
    scene.hub.put(REPO, FILE, HubFile::large(demo));
    let missing = scene.command(&["--check", "-m", REPO]).output().unwrap();
    let hint = format!("hint: download it: `bitnet-launch pull {REPO}`");
    Outcome::of(missing).failed(1, &["not in the cache", &hint]);
    scene.pull(&[]).done();
    let check = Outcome::of(scene.command(&["--check", "-m", REPO]).output().unwrap()).done();
    assert!(
        check.out.contains(&scene.file().display().to_string()),
        "{}",
        check.out
    );
    let path = scene
        .command(&["--check", "-m", "no/such.gguf"])
        .output()
        .unwrap();
    Outcome::of(path).failed(1, &["no model at `no/such.gguf`"]);
}

#[test]
fn verify_finds_damage_and_mends_it() {
    let scene = Scene::with(2_000_000);
    scene.pull(&[]).done();
    let mut damaged = scene.bytes.clone();
    damaged[1_234_567] ^= 0x40;
    fs::write(scene.file(), &damaged).unwrap();
    let believed = scene.pull(&[]).done();
    assert!(believed.log.contains("already here"), "{}", believed.log);
    let offline = scene
        .command(&["pull", REPO, "--verify"])
        .env("HF_HUB_OFFLINE", "1")
        .output();
    Outcome::of(offline.unwrap()).failed(1, &["sha256", &hub::sha256(&scene.bytes)]);
    let verified = scene.pull(&["--verify"]).done();
    assert!(
        verified.log.contains("downloading it again"),
        "{}",
        verified.log
    );
    assert!(scene.is_whole());
    scene.hub.take_sent();
    scene.pull(&["--verify"]).done();
    assert_eq!(scene.hub.take_sent(), 0);
}

#[test]
fn which_file_is_meant() {
    let scene = Scene::with(1000);
    scene
        .hub
        .put(REPO, "model-tq2_0.gguf", HubFile::large(noise(500, 3)));
    assert!(
        scene.pull(&[]).done().out.ends_with(FILE),
        "I2_S of several"
    );
    let pull = |name: &str| Outcome::of(scene.command(&["pull", name]).output().unwrap());
    let tq2 = pull(&format!("{REPO}:TQ2_0")).done();
    assert!(tq2.out.ends_with("model-tq2_0.gguf"));
    pull(&format!("{REPO}:q9")).failed(1, &["no file `q9`", FILE]);
    pull(&format!("{REPO}:model")).failed(1, &["2 GGUF files", "hint: name one"]);
    let page = format!("https://huggingface.co/{REPO}/blob/main/{FILE}");
    assert!(pull(&page).done().out.ends_with(FILE));
    for name in [
        "",
        "model.gguf",
        "../x",
        "a/b/c",
        "a/b:../../x",
        "https://example.com/x",
    ] {
        pull(name).failed(2, &["expected"]);
    }
    scene
        .hub
        .put("empty/repo", "README.md", HubFile::small("nothing"));
    pull("empty/repo").failed(1, &["no GGUF file and no safetensors", "README.md"]);
    scene
        .hub
        .put("evil/repo", "../../x.gguf", HubFile::small("boo"));
    pull("evil/repo").failed(1, &["../../x.gguf", "a path inside the repository"]);
}

#[test]
fn the_environment_is_read_as_python_reads_it() {
    let scene = Scene::with(1000);
    let output = scene
        .command(&["pull", REPO])
        .env("HF_HOME", "elsewhere")
        .output();
    let outcome = Outcome::of(output.unwrap()).done();
    assert!(
        outcome
            .out
            .starts_with("elsewhere/hub/models--some--ternary-gguf/snapshots/")
    );
    let bad = scene
        .command(&["pull", REPO])
        .env("HF_ENDPOINT", "hub")
        .output();
    Outcome::of(bad.unwrap()).failed(2, &["HF_ENDPOINT", "`hub`"]);
    let bad = scene
        .command(&["pull", REPO])
        .env("HF_HUB_DOWNLOAD_TIMEOUT", "-1")
        .output();
    Outcome::of(bad.unwrap()).failed(2, &["HF_HUB_DOWNLOAD_TIMEOUT", "`-1`"]);
    let offline = scene
        .command(&["pull", REPO])
        .env("HF_HUB_OFFLINE", "1")
        .output();
    Outcome::of(offline.unwrap()).failed(1, &["HF_HUB_OFFLINE", REPO]);
}

#[test]
fn a_proxy_is_used_and_its_exceptions_are_kept() {
    let scene = Scene::with(1000);
    let (port, used) = proxy();
    let pull = |exceptions: &str| {
        let output = scene
            .command(&["pull", REPO, "--dir", "."])
            .env("HTTP_PROXY", format!("http://127.0.0.1:{port}"))
            .env("NO_PROXY", exceptions)
            .output();
        Outcome::of(output.unwrap()).done();
    };
    pull("localhost");
    assert_eq!(used.load(Ordering::Relaxed), 0);
    fs::remove_file(scene.home.path().join(FILE)).unwrap();
    pull("other.example");
    assert!(
        used.load(Ordering::Relaxed) >= 2,
        "hub and the bytes' server"
    );
    assert_eq!(fs::read(scene.home.path().join(FILE)).unwrap(), scene.bytes);
}

/// A proxy that knows CONNECT, and how often it was asked.
fn proxy() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let used = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&used);
    thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            count.fetch_add(1, Ordering::Relaxed);
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && client.read(&mut byte).unwrap() == 1 {
                request.push(byte[0]);
            }
            let request = String::from_utf8(request).unwrap();
            let to = request
                .strip_prefix("CONNECT ")
                .unwrap()
                .split(' ')
                .next()
                .unwrap();
            let mut server = TcpStream::connect(to).unwrap();
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            let (mut from_client, mut to_server) =
                (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut from_client, &mut to_server));
            thread::spawn(move || std::io::copy(&mut server, &mut client));
        }
    });
    (port, used)
}

#[test]
fn certificates_of_the_machine_are_trusted_and_no_others() {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key.unwrap())
        .unwrap();
    let scene = Scene {
        hub: Hub::start_with(Some(Arc::new(config))),
        ..Scene::new()
    };
    scene
        .hub
        .put(REPO, FILE, HubFile::large(scene.bytes.clone()));
    scene.pull(&["--retries", "0"]).failed(1, &["certificate"]);
    let pem = scene.home.path().join("ca.pem");
    fs::write(&pem, certified.cert.pem()).unwrap();
    let output = scene
        .command(&["pull", REPO])
        .env("SSL_CERT_FILE", &pem)
        .output();
    Outcome::of(output.unwrap()).done();
    assert!(scene.is_whole());
}
