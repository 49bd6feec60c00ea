//! What an operator does to a running server: reload, drain, let it sleep. Nobody who waits for an answer may notice.

mod common;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Server, demo_model, is_alive, program, run, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

fn story(seed: u64, n: usize) -> Value {
    json!({"prompt": "Once upon a time", "seed": seed, "n_predict": n, "ignore_eos": true})
}

fn streamed(seed: u64, n: usize) -> Value {
    let mut body = story(seed, n);
    body["stream"] = json!(true);
    body
}

/// A server with the demo model in a file and a settings file, both to be changed.
struct Bench {
    server: Server,
    dir: tempfile::TempDir,
}

impl Bench {
    fn start(settings: &str, args: &[&str]) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        fs::copy(demo_model(), dir.path().join("model.gguf")).unwrap();
        write_settings(dir.path(), settings);
        let config = dir.path().join("settings.toml");
        let mut all = vec!["--config", config.to_str().unwrap()];
        all.extend(args);
        let server = Server::ready(&all);
        Bench { server, dir }
    }

    fn set(&self, settings: &str) {
        write_settings(self.dir.path(), settings);
    }

    /// Exit code, standard output and error together.
    fn reload(&self, args: &[&str]) -> (i32, String) {
        let port = self.server.port.to_string();
        let output = program(self.dir.path())
            .args(["reload", "--port", &port])
            .args(args)
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        (output.status.code().unwrap_or(-1), text)
    }

    /// Puts another file in the place of the model's.
    fn put_model(&self, from: &Path) {
        let beside = self.dir.path().join("beside");
        fs::copy(from, &beside).unwrap();
        fs::rename(&beside, self.dir.path().join("model.gguf")).unwrap();
    }
}

/// Written in one step, as by an editor that renames.
fn write_settings(dir: &Path, settings: &str) {
    let model = dir.join("model.gguf").display().to_string();
    let new = dir.join("settings.new");
    fs::write(&new, format!("model = {model:?}\n{settings}\n")).unwrap();
    fs::rename(&new, dir.join("settings.toml")).unwrap();
}

fn synth(path: &Path) {
    let path = path.to_str().unwrap();
    let (code, text) = run(&["synth", "--shape", "tiny", "--seed", "3", "-o", path]);
    assert_eq!(code, 0, "{text}");
}

fn threads(server: &Server) -> Value {
    server.get("/props").json()["threads"].clone()
}

#[test]
fn probes_tell_alive_from_ready() {
    let server = Server::start(&["--parallel", "1"]);
    assert_eq!(server.get("/livez").status, 200);
    let early = server.get("/readyz");
    if early.status != 200 {
        let reason = early.json()["error"]["reason"].clone();
        assert!(
            [json!("loading"), json!("untested")].contains(&reason),
            "{reason}"
        );
    }
    // Nobody asks it anything: the canary's tokens are real ones.
    wait_for("a token", || {
        (server.get("/readyz").status == 200).then_some(())
    });
    assert_eq!(server.get("/livez").json()["status"], "alive");
}

#[test]
fn draining_stays_and_says_so() {
    let key = ["--api-key", "secret", "--parallel", "1"];
    let server = Server::start(&key);
    wait_for("readiness", || {
        (server.get("/readyz").status == 200).then_some(())
    });
    assert_eq!(
        server.post("/drain", &json!({})).status,
        401,
        "it needs the key"
    );
    assert_eq!(server.get("/readyz").status, 200);
    drop(server);

    let mut server = Server::ready(&["--parallel", "1"]);
    let from_a_page = ureq::post(server.url("/drain"))
        .header("Origin", "https://web.example")
        .send("");
    assert!(matches!(from_a_page, Err(ureq::Error::StatusCode(403))));
    assert_eq!(server.get("/health").status, 200);

    let wanted = server.complete(&story(3, 300));
    let mut stream = server.stream("/completion", &streamed(3, 300));
    let first = stream.take_frames(2);
    let reply = server.post_text("/drain", "").json();
    assert_eq!(reply["running"], json!(1), "{reply}");
    let refused = server.get("/readyz");
    assert_eq!(refused.status, 503);
    assert_eq!(refused.json()["error"]["reason"], "draining");
    assert_eq!(server.get("/health").status, 503);
    assert_eq!(server.post("/completion", &story(1, 4)).status, 503);
    assert_eq!(stream.collect_after(first), wanted, "what runs is finished");
    wait_for("the last answer", || {
        let reply = server.post_text("/drain", "").json();
        (reply["running"] == json!(0)).then_some(())
    });
    assert_eq!(server.get("/livez").status, 200);
    assert!(is_alive(server.pid()));
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn balancers_are_told_before_requests_are_refused() {
    let mut server = Server::ready(&["--drain-notice", "4"]);
    assert_eq!(server.post_text("/drain", "").status, 200);
    let told = server.get("/health");
    assert_eq!(told.status, 503);
    assert_eq!(server.get("/readyz").json()["error"]["reason"], "draining");
    assert_eq!(server.get("/capacity").json()["draining"], json!(true));
    let taken = server.post("/completion", &story(1, 4));
    assert_eq!(taken.status, 200, "{}", taken.body);
    wait_for("the end of the notice", || {
        (server.post("/completion", &story(1, 4)).status == 503).then_some(())
    });
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));

    let mut server = Server::ready(&["--drain-notice", "4"]);
    server.signal(Signal::SIGTERM);
    wait_for("the notice", || {
        (server.get("/health").status == 503).then_some(())
    });
    let taken = server.post("/completion", &story(1, 4));
    assert_eq!(taken.status, 200, "{}", taken.body);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn another_model_in_the_place_of_the_first() {
    let bench = Bench::start("", &["--threads", "1", "--parallel", "2"]);
    let server = &bench.server;
    let wanted = server.complete(&story(7, 600));
    let prompt = json!({"prompt": [1, 2, 3], "seed": 4, "n_predict": 60, "ignore_eos": true});
    let tiny = bench.dir.path().join("tiny.gguf");
    synth(&tiny);
    let other = Server::ready(&["-m", tiny.to_str().unwrap()]).complete(&prompt);

    let mut stream = server.stream("/completion", &streamed(7, 600));
    let first = stream.take_frames(1);
    bench.put_model(&tiny);
    let (code, text) = bench.reload(&[]);
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("serving `") && text.contains("model.gguf"),
        "{text}"
    );
    assert_eq!(server.complete(&prompt), other);
    assert_eq!(
        stream.collect_after(first),
        wanted,
        "begun with the old, ended with the old"
    );
    let engines = server.engines();
    assert_eq!(engines.len(), 2);
    wait_for("the old engine's end", || {
        (!is_alive(engines[0])).then_some(())
    });
    assert!(is_alive(engines[1]));
    // What a crash of the new one leaves is the new model's, too.
    server.kill_engine();
    assert_eq!(server.complete(&prompt), other);
    let (code, text) = bench.reload(&[]);
    assert!(code == 0 && text.contains("nothing has changed"), "{text}");
    assert_eq!(server.engines().len(), 3);
}

#[test]
fn what_can_not_be_served_changes_nothing() {
    let bench = Bench::start("threads = 1", &["--parallel", "1"]);
    let server = &bench.server;
    let wanted = server.complete(&story(5, 40));
    let refused = |settings: &str, reason: &str| {
        bench.set(settings);
        let (code, text) = bench.reload(&[]);
        assert_eq!(code, 1, "{text}");
        assert!(
            text.contains("not reloaded") && text.contains(reason),
            "`{reason}` is not in: {text}"
        );
        assert_eq!(server.complete(&story(5, 40)), wanted);
    };
    refused("thraeds = 1", "`thraeds` is not a setting");
    refused("threads = 1\nkernel = \"tl9\"", "tl9");
    refused("threads = 1\nchat-template = \"{% if\"", "template");
    refused("threads = 1\ncpu-affinity = \"4000\"", "4000");

    // A file that is no model; one whose header is well and whose weights are missing.
    let junk = bench.dir.path().join("junk");
    fs::write(&junk, [0x42; 5000]).unwrap();
    bench.put_model(&junk);
    refused("threads = 1", "GGUF");
    let whole = fs::read(demo_model()).unwrap();
    fs::write(&junk, &whole[..whole.len() - 4096]).unwrap();
    bench.put_model(&junk);
    refused("threads = 1", "model.gguf");
    // And back to what is well: nothing is left over.
    bench.put_model(&demo_model());
    bench.set("threads = 1");
    let (code, text) = bench.reload(&[]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(server.complete(&story(5, 40)), wanted);
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn a_changed_settings_file_is_followed() {
    let bench = Bench::start("threads = 1\nn-predict = 5", &["--parallel", "1"]);
    let server = &bench.server;
    let n_predict =
        || server.get("/props").json()["default_generation_settings"]["n_predict"].clone();
    assert_eq!(n_predict(), json!(5));
    bench.set("threads = 1\nn-predict = 7\ndrain-timeout = 3");
    wait_for("the new default", || {
        (n_predict() == json!(7)).then_some(())
    });
    let reply = server.post("/completion", &json!({"prompt": "a", "ignore_eos": true}));
    assert_eq!(reply.json()["tokens_predicted"], json!(7));
    server.wait_for_log(|line| line.contains("`drain-timeout` has changed").then_some(()));
    assert_eq!(
        server.engines().len(),
        1,
        "the engine has nothing to do with it"
    );

    bench.set("threads = 1\nn-predict = 11");
    server.signal(Signal::SIGHUP);
    wait_for("the newer default", || {
        (n_predict() == json!(11)).then_some(())
    });
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn reloads_under_load_lose_nothing() {
    let bench = Bench::start("threads = 1", &["--parallel", "2"]);
    let server = &bench.server;
    let wanted: Vec<_> = (0..4)
        .map(|seed| server.complete(&story(seed, 60)))
        .collect();
    let (is_over, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for (seed, wanted) in (0..).zip(&wanted) {
            let (is_over, answers) = (&is_over, &answers);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let found = match answers.fetch_add(1, Ordering::Relaxed) % 2 {
                        0 => server.complete(&story(seed, 60)),
                        _ => server.complete_streamed(&story(seed, 60)),
                    };
                    assert_eq!(found, *wanted, "seed {seed}");
                }
            });
        }
        for (settings, args) in [
            ("threads = 2", &[][..]),
            ("threads = 1", &["--gap"]),
            ("threads = 2\nctx-size = 512", &[]),
            ("threads = 1", &["--gap"]),
        ] {
            bench.set(settings);
            let (code, text) = bench.reload(args);
            assert_eq!(code, 0, "{text}");
            assert!(settings.contains(&format!("threads = {}", threads(server))));
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert!(answers.load(Ordering::Relaxed) >= 8);
    // The watched file may have led to further ones.
    assert!(server.engines().len() >= 5);
    assert!(server.get("/metrics").body.contains("restarts"));
    assert_eq!(server.get("/status").json()["engine_restarts"], json!(0));
}

#[test]
fn nobody_is_there_to_reload() {
    let (code, text) = run(&["reload", "--port", "1", "--timeout", "2"]);
    assert_eq!(code, 1, "{text}");
    assert!(
        text.contains("error: no answer from http://127.0.0.1:1/reload"),
        "{text}"
    );
    let server = Server::ready(&["--api-key", "secret"]);
    let port = server.port.to_string();
    let (code, text) = run(&["reload", "--port", &port]);
    assert!(code == 1 && text.contains("--api-key"), "{text}");
    let (code, text) = run(&["reload", "--port", &port, "--api-key", "secret"]);
    assert_eq!(code, 0, "{text}");
}

#[test]
fn an_idle_engine_sleeps_and_a_request_wakes_it() {
    let server = Server::ready(&["--parallel", "1", "--sleep-idle-seconds", "1"]);
    let wanted = server.complete(&story(5, 40));
    let sleeping = || server.get("/props").json()["is_sleeping"] == json!(true);
    let mut engine = server.engine();
    for round in 1..3 {
        wait_for("sleep", || (sleeping() && !is_alive(engine)).then_some(()));
        // Probes and the page don't wake it.
        for path in [
            "/health",
            "/readyz",
            "/metrics",
            "/v1/models",
            "/status",
            "/slots",
        ] {
            assert_eq!(server.get(path).status, 200, "{path}");
        }
        thread::sleep(Duration::from_millis(300));
        assert_eq!(server.engines().len(), round);
        let began = Instant::now();
        assert_eq!(server.complete(&story(5, 40)), wanted);
        assert!(began.elapsed() < Duration::from_secs(60));
        engine = server.engine();
    }
    assert_eq!(server.get("/status").json()["engine_restarts"], json!(0));
}

#[test]
fn a_crash_loop_can_be_the_end() {
    let mut server = Server::ready(&["--crash-loop", "exit"]);
    let mut killed = Vec::<Pid>::new();
    let status = loop {
        let engine = server.engine();
        if !killed.contains(&engine) {
            let _ = kill(engine, Signal::SIGKILL);
            killed.push(engine);
        }
        thread::sleep(Duration::from_millis(20));
        if !is_alive(server.pid()) {
            break server.wait();
        }
        assert!(killed.len() < 10, "it goes on and on");
    };
    assert_eq!(status.code(), Some(1));
    let log = server.log().join("\n");
    assert!(log.contains("error: the engine ended 5 times"), "{log}");
}
