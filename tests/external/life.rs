//! What happens to another engine while it serves: reloads, sleep, standing still, ends; and what it may do.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{Server, end_by, is_alive, wait_for};
use crate::fake_engine::Fake;
use crate::{metric, ready};

/// A settings file, to be changed.
struct Settings(TempDir);

impl Settings {
    /// In one step, as by an editor that renames.
    fn write(&self, text: &str) {
        let new = self.0.path().join("new");
        fs::write(&new, format!("{text}\n")).unwrap();
        fs::rename(new, self.0.path().join("settings.toml")).unwrap();
    }
}

fn with_settings(fake: &Fake, text: &str, args: &[&str]) -> (Server, Settings) {
    let settings = Settings(tempfile::tempdir().unwrap());
    settings.write(text);
    let path = settings.0.path().join("settings.toml");
    let config = ["--config", path.to_str().unwrap()];
    (ready(fake, &[&config, args].concat()), settings)
}

fn pid_of(server: &Server) -> Value {
    let reply = server.post("/completion", &json!({"prompt": "x"}));
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()["pid"].clone()
}

#[test]
fn a_reload_replaces_the_engine_while_answers_are_finished() {
    let fake = Fake::new();
    let (server, settings) = with_settings(&fake, "temp = 0.5", &[]);
    let old = server.engine();
    // Nothing to do.
    let reload = server.post("/reload", &json!({})).json();
    assert_eq!(reload["engine_replaced"], false, "{reload}");
    assert_eq!(server.engine(), old);
    let body = json!({"prompt": "x", "stream": true, "chunks": 60, "pause_ms": 200});
    let mut stream = server.stream("/completion", &body);
    stream.next().unwrap();
    // A settings file that is written is followed by itself.
    settings.write("temp = 0.75");
    server.wait_for_log(|line| line.contains("reload: the new engine serves").then_some(()));
    let facts = server.get("/facts").body;
    assert!(facts.contains("0.75"), "{facts}");
    let new = server.engine();
    assert!(
        new != old && is_alive(old),
        "the old one has an answer to finish"
    );
    assert_eq!(pid_of(&server), new.as_raw());
    assert!(stream.last().unwrap().contains("true"));
    wait_for("the old engine's end", || (!is_alive(old)).then_some(()));
    assert_eq!(server.get("/readyz").status, 200);
    // With a gap requests wait, and none is lost. Another program under the same name is something new, too.
    fake.rebuild();
    let slow = json!({"prompt": "x", "pause_ms": 500});
    thread::scope(|scope| {
        let running = scope.spawn(|| server.post("/completion", &slow).status);
        thread::sleep(Duration::from_millis(100));
        let reload = server.post("/reload", &json!({"gap": true}));
        assert_eq!(reload.status, 200, "{}", reload.body);
        assert_eq!(running.join().unwrap(), 200);
    });
    assert!(!is_alive(new));
    assert_eq!(pid_of(&server), server.engine().as_raw());
}

#[test]
fn a_reload_that_fails_changes_nothing() {
    let fake = Fake::old();
    let (server, settings) = with_settings(&fake, "temp = 0.5", &["--drain-timeout", "1"]);
    let old = server.engine();
    settings.write("temperature-of-water = 1");
    server.wait_for_log(|line| {
        let said = line.contains("not reloaded, all stays as it was");
        (said && line.contains("temperature-of-water")).then_some(())
    });
    fake.set("bad-model", "");
    settings.write("temp = 0.75");
    let reload = server.post("/reload", &json!({}));
    assert_ne!(reload.status, 200);
    assert!(reload.body.contains("the file is bad"), "{}", reload.body);
    assert_eq!(pid_of(&server), old.as_raw());
    // A crash after it starts what was there before.
    fake.unset("bad-model");
    kill(old, Signal::SIGKILL).unwrap();
    assert_eq!(pid_of(&server), server.engine().as_raw());
}

fn state(server: &Server) -> Value {
    server.get("/status").json()
}

#[test]
fn an_engine_without_work_sleeps_and_requests_wake_it() {
    for fake in [Fake::old(), Fake::new()] {
        let mut server = ready(&fake, &["--sleep-idle-seconds", "1"]);
        let first = server.engine();
        let asleep = |server: &Server| {
            wait_for("sleep", || {
                (server.get("/readyz").json()["is_sleeping"] == true).then_some(())
            });
        };
        // Whoever only looks keeps nobody awake, and wakes nobody.
        let looking = Instant::now();
        while looking.elapsed() < Duration::from_secs(1) {
            assert_eq!(server.get("/props").status, 200);
            thread::sleep(Duration::from_millis(5));
        }
        asleep(&server);
        wait_for("the engine's end", || (!is_alive(first)).then_some(()));
        for path in ["/health", "/metrics", "/status", "/slots", "/v1/models"] {
            assert_eq!(server.get(path).status, 200, "{path}");
        }
        let props = server.get("/props").json();
        assert_eq!(
            (&props["path"], &props["is_sleeping"]),
            (&json!("/props"), &json!(true))
        );
        assert_eq!(metric(&server, "bitnet_ready"), 1);
        assert_eq!(server.engines().len(), 1);
        // Several at once wake one engine.
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| pid_of(&server));
            }
        });
        assert_eq!(server.engines().len(), 2);
        assert!(state(&server)["last_crash"].is_null(), "sleep is no crash");
        assert_eq!(metric(&server, "bitnet_engine_restarts_total"), 0);
        // Whoever ends it doesn't have to wake it.
        asleep(&server);
        let engines = server.engines().len();
        server.signal(Signal::SIGTERM);
        assert_eq!(
            (server.wait().code(), server.engines().len()),
            (Some(0), engines)
        );
    }
}

#[test]
fn an_engine_that_works_does_not_sleep() {
    let fake = Fake::new();
    let server = ready(&fake, &["--sleep-idle-seconds", "1"]);
    let reply = server.post("/completion", &json!({"prompt": "x", "pause_ms": 3000}));
    assert_eq!((reply.status, server.engines().len()), (200, 1));
}

#[test]
fn an_engine_that_spins_is_replaced() {
    let fake = Fake::new();
    let server = ready(&fake, &["--hang-timeout", "2"]);
    let first = server.engine();
    // Its health is answered all the while, and it computes: only that its loop never comes round gives it away.
    let reply = server.post("/completion", &json!({"prompt": "spin once"}));
    assert_eq!(
        (reply.status, reply.json()["content"].as_str()),
        (200, Some("whole"))
    );
    assert!(!is_alive(first));
    let crash = state(&server)["last_crash"].clone();
    let reason = crash["reason"].as_str().unwrap();
    assert!(
        reason.contains("without sending anything or coming round"),
        "{crash}"
    );
}

#[test]
fn an_idle_engine_whose_health_is_silent_is_replaced() {
    let fake = Fake::old();
    let server = ready(&fake, &["--hang-timeout", "2"]);
    let first = server.engine();
    kill(first, Signal::SIGSTOP).unwrap();
    wait_for("another engine", || {
        (server.engines().len() == 2).then_some(())
    });
    assert!(!is_alive(first));
    assert_eq!(pid_of(&server), server.engine().as_raw());
}

#[test]
fn ends_by_signals_come_with_advice() {
    let fake = Fake::new();
    let server = ready(&fake, &[]);
    for (signal, name, advice) in [
        (Signal::SIGILL, "signal SIGILL", "build it on this machine"),
        (
            Signal::SIGSEGV,
            "signal SIGSEGV",
            "fault of that llama-server",
        ),
    ] {
        end_by(server.engine(), signal);
        let crash = wait_for("the crash", || {
            let crash = state(&server)["last_crash"].clone();
            let reason = crash["reason"].as_str()?;
            reason.starts_with(name).then(|| crash.clone())
        });
        assert!(crash["hint"].as_str().unwrap().contains(advice), "{crash}");
        let log = crash["log"].as_array().unwrap();
        assert!(
            log.iter().any(|line| line == "the fake engine serves"),
            "{crash}"
        );
        server.wait_for_log(|line| line.contains(advice).then_some(()));
        assert_eq!(pid_of(&server), server.engine().as_raw());
    }
}

#[test]
fn what_an_engine_started_ends_with_it() {
    let fake = Fake::new();
    let server = ready(&fake, &[]);
    let reply = server
        .post("/completion", &json!({"prompt": "helper"}))
        .json();
    let helper = Pid::from_raw(reply["pid"].as_i64().unwrap() as i32);
    assert!(is_alive(helper));
    kill(server.engine(), Signal::SIGKILL).unwrap();
    wait_for("its end", || (!is_alive(helper)).then_some(()));
}

#[test]
fn engines_are_confined_as_far_as_they_can_be() {
    for (fake, has_unix_socket) in [(Fake::old(), false), (Fake::new(), true)] {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let tried = |server: &Server| {
            let path = folder.path().join("written").display().to_string();
            server.post("/rights", &json!({ "file": path })).json()
        };
        let free = tried(&ready(&fake, &["--sandbox", "off"]));
        for right in [
            "writes",
            "connects",
            "makes_udp_sockets",
            "gains_privileges",
        ] {
            assert_eq!(free[right], true, "{right}: {free}");
        }
        let server = ready(&fake, &[]);
        let rights = tried(&server);
        assert_eq!(rights["gains_privileges"], false);
        assert_eq!(rights["makes_udp_sockets"], !has_unix_socket, "{rights}");
        assert_eq!(rights["writes_temporary_files"], true, "{rights}");
        let is_restricted = !server
            .log()
            .iter()
            .any(|line| line.contains("may write anywhere"));
        if is_restricted {
            assert_eq!(rights["writes"], false, "{rights}");
        } else {
            eprintln!("skipped: files; this kernel has no Landlock");
        }
        if has_unix_socket {
            assert_eq!(rights["connects"], false, "{rights}");
        }
    }
}
