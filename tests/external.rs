//! Another llama-server as engine: arguments, streams, crashes, the way out. The engine is a scripted one.

mod common;
#[path = "common/fake_engine.rs"]
mod fake_engine;
#[path = "external/life.rs"]
mod life;

use std::io::Read;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use common::{Server, demo_model, is_alive, program, run, wait_for};
use fake_engine::Fake;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// The engine itself, when a script of [`Fake`] starts this program.
#[test]
fn fake_llama_server() {
    fake_engine::run_if_asked();
}

fn start(fake: &Fake, args: &[&str]) -> Server {
    let (path, model) = (fake.path(), demo_model().display().to_string());
    let mut all = vec!["--engine", &path, "-m", &model, "--threads", "1"];
    all.extend(args);
    Server::start(&all)
}

fn ready(fake: &Fake, args: &[&str]) -> Server {
    let server = start(fake, args);
    server.wait_until_ready();
    server
}

fn with_key(server: &Server, path: &str, key: &str) -> (u16, String) {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .build()
        .into();
    let request = agent
        .get(server.url(path))
        .header("authorization", format!("Bearer {key}"));
    let mut reply = request.call().unwrap();
    let text = reply.body_mut().read_to_string().unwrap();
    (reply.status().as_u16(), text)
}

fn metric(server: &Server, name: &str) -> u64 {
    let text = server.get("/metrics").body;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {text}"))
        .trim()
        .parse()
        .unwrap()
}

#[test]
fn plan_settings_and_keys_reach_the_engine() {
    for fake in [Fake::old(), Fake::new()] {
        let args = [
            "--cpu-affinity",
            "0",
            "--ctx-size",
            "1024",
            "--parallel",
            "2",
            "--temp",
            "0.3",
            "--api-key",
            "top-secret",
            "--engine-arg=--some-flag",
            "--min-p",
            "0.1",
        ];
        let server = ready(&fake, &args);
        assert_eq!(
            server.get("/facts").error(),
            (401, "authentication_error".to_owned())
        );
        let (status, text) = with_key(&server, "/facts", "top-secret");
        assert_eq!(status, 200, "{text}");
        let facts: Value = serde_json::from_str(&text).unwrap();
        let argv: Vec<&str> = facts["args"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let line = argv.join(" ");
        let model = demo_model().display().to_string();
        assert!(
            line.starts_with(&format!("--model {model} --threads 1 --threads-batch 1 --parallel 2 --ctx-size 1024 --cont-batching --metrics")),
            "{line}"
        );
        assert!(line.contains("--temp 0.3 --some-flag"), "{line}");
        assert!(
            !line.contains("secret") && !line.contains("min-p"),
            "{line}"
        );
        let env = &facts["env"];
        let inner = env["LLAMA_API_KEY"].as_str().unwrap();
        assert!(inner != "top-secret" && inner.len() >= 32);
        assert_eq!(env["OMP_NUM_THREADS"], "1");
        assert_eq!(
            (&env["OMP_PLACES"], &env["OMP_PROC_BIND"]),
            (&json!("{0}"), &json!("close"))
        );
        assert_eq!(facts["cpus"], "0");
        let (_, text) = with_key(&server, "/echo?x=1", "top-secret");
        let echo: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(echo["path"], "/echo?x=1");
        assert_eq!(echo["headers"]["authorization"], format!("Bearer {inner}"));
        let log = server.log().join("\n");
        assert!(!log.contains("top-secret") && !log.contains(inner), "{log}");
        assert!(
            log.contains("--min-p has no effect: this engine has no `--min-p`"),
            "{log}"
        );
    }
}

#[test]
fn loading_then_serving_then_metrics() {
    let fake = Fake::new();
    fake.set("load-ms", "700");
    let server = start(&fake, &[]);
    assert_eq!(
        server.get("/health").error(),
        (503, "unavailable_error".to_owned())
    );
    let early = server.post("/completion", &json!({"prompt": "x"}));
    assert_eq!(
        (early.status, early.json()["error"]["message"].as_str()),
        (503, Some("Loading model"))
    );
    server.wait_until_ready();
    assert_eq!(server.get("/").body, "the engine's page");
    assert_eq!(
        server.post("/completion", &json!({"prompt": "x"})).json()["content"],
        "whole"
    );
    assert_eq!(
        server
            .post("/completion", &json!({"prompt": "refuse"}))
            .status,
        400
    );
    let metrics = server.get("/metrics").body;
    assert!(
        metrics.contains("bitnet_ready 1")
            && metrics.contains("bitnet_draining 0")
            && metrics.contains("bitnet_queue_depth 0")
            && metrics.contains("llamacpp:fake_total 7"),
        "{metrics}"
    );
    wait_for("the count", || {
        (metric(&server, "bitnet_generations_total") == 2).then_some(())
    });
    let status = server.get("/status").json();
    assert_eq!(status["state"], "ready");
    assert_eq!(server.post_text("/nowhere", "abc").json()["body"], "abc");
}

#[test]
fn pieces_of_a_stream_arrive_as_they_are_sent() {
    for fake in [Fake::old(), Fake::new()] {
        let server = ready(&fake, &[]);
        let body = json!({"prompt": "x", "stream": true, "chunks": 4, "pause_ms": 250});
        let mut stream = server.stream("/completion", &body);
        for n in 0..4 {
            assert_eq!(stream.next_json().unwrap()["content"], format!("{n} "));
            // Its last piece at the latest was sent by now, and none further ahead than the pauses allow.
            let sent: u64 = fake.note("sent").unwrap().parse().unwrap();
            assert!(sent <= n + 1, "piece {n} arrived after {sent} was sent");
        }
        assert_eq!(stream.next_json().unwrap()["stop"], true);
        assert_eq!(stream.next(), None);
    }
}

#[test]
fn a_slow_client_slows_the_engine_and_a_gone_one_stops_it() {
    let fake = Fake::new();
    let server = ready(&fake, &[]);
    let mut stream = server.stream(
        "/completion",
        &json!({"prompt": "x", "stream": true, "flood_mb": 400}),
    );
    stream.next().unwrap();
    let sent = || {
        fake.note("flooded")
            .map_or(0, |text| text.parse::<u64>().unwrap())
    };
    // Nobody reads: after the buffers on the way are full, nothing moves any more.
    let mut before = u64::MAX;
    let stalled = wait_for("a stall", || {
        thread::sleep(Duration::from_millis(400));
        let now = sent();
        let is_still = now == before;
        before = now;
        is_still.then_some(now)
    });
    assert!(stalled < 32 << 20, "{stalled} bytes are on the way");
    assert!(resident_mb(server.pid()) < 200);
    drop(stream);
    wait_for("the engine to see it", || fake.note("flood-ended"));
}

fn resident_mb(pid: Pid) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

#[test]
fn a_client_that_goes_away_takes_its_request_along() {
    let fake = Fake::old();
    let server = ready(&fake, &[]);
    let mut client = std::net::TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    let body = r#"{"prompt": "wait"}"#;
    let head = format!(
        "POST /completion HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    std::io::Write::write_all(&mut client, head.as_bytes()).unwrap();
    wait_for("the request", || fake.note("waiting"));
    assert_eq!(metric(&server, "bitnet_proxy_in_flight"), 1);
    drop(client);
    wait_for("the end of the request", || fake.note("gone"));
    wait_for("the count", || {
        (metric(&server, "bitnet_generations_cancelled_total") == 1).then_some(())
    });
}

#[test]
fn a_crash_before_the_first_byte_is_a_pause() {
    for fake in [Fake::old(), Fake::new()] {
        for stream in [false, true] {
            let server = ready(&fake, &[]);
            let body = json!({"prompt": "crash once", "stream": stream});
            let reply = server.post("/completion", &body);
            assert_eq!(reply.status, 200, "{}", reply.body);
            assert_eq!(reply.body.contains("whole"), !stream);
            assert_eq!(server.engines().len(), 2);
            assert_eq!(metric(&server, "bitnet_proxy_retried_total"), 1);
            assert_eq!(metric(&server, "bitnet_engine_restarts_total"), 1);
            fake.unset("crashed");
        }
    }
}

#[test]
fn a_request_that_ends_two_engines_fails_alone() {
    let fake = Fake::new();
    let server = ready(&fake, &[]);
    let reply = server.post("/completion", &json!({"prompt": "crash"}));
    assert_eq!(reply.error(), (500, "server_error".to_owned()));
    assert!(reply.body.contains("ended twice"), "{}", reply.body);
    server.wait_until_ready();
    assert_eq!(
        server.post("/completion", &json!({"prompt": "x"})).json()["content"],
        "whole"
    );
}

#[test]
fn requests_wait_while_a_killed_engine_is_replaced() {
    let fake = Fake::new();
    let server = ready(&fake, &[]);
    for _ in 0..3 {
        kill(server.engine(), Signal::SIGKILL).unwrap();
        let reply = server.post("/completion", &json!({"prompt": "x"}));
        assert_eq!(
            (reply.status, reply.body.contains("whole")),
            (200, true),
            "{}",
            reply.body
        );
        assert_eq!(server.get("/health").status, 200);
    }
    assert_eq!(server.engines().len(), 4);
}

#[test]
fn a_stream_that_breaks_off_ends_with_an_error() {
    let fake = Fake::old();
    let server = ready(&fake, &[]);
    let body = json!({"prompt": "x", "stream": true, "chunks": 9, "crash_at": 2});
    let frames: Vec<Value> = server
        .stream("/completion", &body)
        .map(|data| serde_json::from_str(&data).expect("whole events only"))
        .collect();
    assert_eq!(frames.len(), 3, "{frames:?}");
    assert_eq!(frames[1]["content"], "1 ");
    assert_eq!(frames[2]["error"]["type"], "server_error");
    let anthropic = server.post(
        "/v1/messages",
        &json!({"prompt": "x", "stream": true, "crash_at": 1}),
    );
    assert!(
        anthropic
            .body
            .contains("event: error\ndata: {\"type\":\"error\""),
        "{}",
        anthropic.body
    );
    assert_eq!(metric(&server, "bitnet_proxy_broken_total"), 2);
    // Without events there is no error to send: the answer ends short, and everybody can see it.
    server.wait_until_ready();
    let body = r#"{"prompt": "cut"}"#;
    let mut client = std::net::TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    let head = format!(
        "POST /completion HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    std::io::Write::write_all(&mut client, head.as_bytes()).unwrap();
    let mut text = String::new();
    let _ = client.read_to_string(&mut text);
    assert!(
        text.to_lowercase().contains("content-length: 1000") && text.ends_with("{\"content\":"),
        "{text}"
    );
}

#[test]
fn a_crash_loop_is_said_and_stays_up() {
    let fake = Fake::new();
    let server = ready(&fake, &[]);
    fake.set("broken", "");
    kill(server.engine(), Signal::SIGKILL).unwrap();
    let waiting = server.post("/completion", &json!({"prompt": "x"}));
    assert_eq!(waiting.error(), (503, "unavailable_error".to_owned()));
    let health = server.get("/health");
    assert_eq!(health.status, 503);
    assert!(health.body.contains("SIGABRT"), "{}", health.body);
    assert_eq!(server.get("/metrics").status, 200);
}

#[test]
fn an_engine_that_stands_still_is_replaced() {
    let fake = Fake::old();
    let server = ready(&fake, &["--hang-timeout", "2"]);
    let first = server.engine();
    kill(first, Signal::SIGSTOP).unwrap();
    let reply = server.post("/completion", &json!({"prompt": "x"}));
    assert_eq!(
        (reply.status, reply.json()["content"].as_str()),
        (200, Some("whole"))
    );
    assert!(!is_alive(first));
    // One that is only slow is left alone.
    let second = server.engine();
    let slow = server.post("/completion", &json!({"prompt": "x", "pause_ms": 6000}));
    assert_eq!((slow.status, server.engine()), (200, second));
}

#[test]
fn a_model_that_cannot_be_loaded_is_one_error() {
    let fake = Fake::new();
    fake.set("bad-model", "");
    let (path, model) = (fake.path(), demo_model().display().to_string());
    let (code, text) = run(&["--engine", &path, "-m", &model, "--port", "0"]);
    assert_eq!(code, 1, "{text}");
    assert!(
        text.contains("error: exit code 1, it said: error loading model: the file is bad"),
        "{text}"
    );
}

#[test]
fn answers_finish_within_the_drain_timeout() {
    let fake = Fake::new();
    let mut server = ready(&fake, &["--drain-timeout", "20"]);
    let engine = server.engine();
    let body = json!({"prompt": "x", "stream": true, "chunks": 8, "pause_ms": 150});
    let mut stream = server.stream("/completion", &body);
    stream.next().unwrap();
    server.signal(Signal::SIGTERM);
    wait_for("the drain", || {
        (server.get("/health").status == 503).then_some(())
    });
    let refused = server.post("/completion", &json!({"prompt": "x"}));
    assert_eq!(refused.status, 503);
    let rest: Vec<String> = stream.collect();
    assert_eq!(rest.len(), 8);
    assert!(rest[7].contains("true"), "{rest:?}");
    assert_eq!(server.wait().code(), Some(0));
    assert!(!is_alive(engine));
}

#[test]
fn what_takes_too_long_is_cut_off_properly() {
    let fake = Fake::old();
    let mut server = ready(&fake, &["--drain-timeout", "1"]);
    let body = json!({"prompt": "x", "stream": true, "chunks": 500, "pause_ms": 50});
    let mut stream = server.stream("/completion", &body);
    stream.next().unwrap();
    let began = Instant::now();
    server.signal(Signal::SIGTERM);
    let last = stream.last().unwrap();
    assert!(last.contains("shutting down"), "{last}");
    assert_eq!(server.wait().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn the_engine_ends_with_its_server() {
    let fake = Fake::new();
    let mut server = ready(&fake, &[]);
    let engine = server.engine();
    server.signal(Signal::SIGKILL);
    server.wait();
    wait_for("the engine's end", || (!is_alive(engine)).then_some(()));
}

#[test]
fn exec_becomes_the_engine() {
    let fake = Fake::old();
    let dir = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut child = program(dir.path())
        .args(["--engine", &fake.path(), "--exec", "-m"])
        .arg(demo_model())
        .args([
            "--port",
            &port.to_string(),
            "--threads",
            "1",
            "--cpu-affinity",
            "0",
        ])
        .args([
            "--api-key",
            "one,two",
            "--ctx-size",
            "512",
            "--parallel",
            "1",
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let facts: Value = wait_for("the engine", || {
        let mut reply = ureq::get(format!("http://127.0.0.1:{port}/facts"))
            .call()
            .ok()?;
        reply.body_mut().read_json().ok()
    });
    assert_eq!(facts["pid"], child.id());
    assert_eq!(facts["cpus"], "0");
    assert_eq!(facts["env"]["OMP_NUM_THREADS"], "1");
    let args: Vec<&str> = facts["args"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let line = args.join(" ");
    assert!(
        line.contains(&format!(
            "--host 127.0.0.1 --port {port} --api-key-file /proc/self/fd/"
        )),
        "{line}"
    );
    assert!(!facts.to_string().contains("one"), "{facts}");
    let file = args
        .last()
        .unwrap()
        .replace("self", &child.id().to_string());
    assert_eq!(std::fs::read_to_string(file).unwrap(), "one\ntwo");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn what_cannot_work_is_refused_before_the_start() {
    let fake = Fake::new();
    let (path, model) = (fake.path(), demo_model().display().to_string());
    let cases: &[(&[&str], &str)] = &[
        (
            &["--engine", "/no/such/server", "-m", &model],
            "no engine at `/no/such/server` (flag --engine)",
        ),
        (&["--engine", "auto", "-m", &model], "no llama-server found"),
        (
            &["--engine", "/bin/true", "-m", &model],
            "`/bin/true` is no llama-server",
        ),
        (&["--engine", &path], "needs a model file"),
        (
            &["--engine", &path, "-m", &model, "--kernel", "tl2"],
            "kernel `tl2` (flag --kernel) needs another file",
        ),
        (&["--exec", "-m", &model], "needs another engine"),
    ];
    for (args, expected) in cases {
        let (code, text) = run(&[args, &["--port", "0"][..]].concat());
        assert!(
            code != 0 && text.contains(expected) && text.contains("hint: "),
            "{args:?}: {text}"
        );
    }
}

#[test]
fn check_shows_the_command() {
    let fake = Fake::new();
    let dir = tempfile::tempdir().unwrap();
    let output = program(dir.path())
        .args(["--engine", &fake.path(), "--check", "-m"])
        .arg(demo_model())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for wanted in [
        "Engine: ",
        "Threads: ",
        "Slots: ",
        "Memory: ",
        "OMP_NUM_THREADS=",
        "Command: ",
    ] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
}
