//! Files that fail: a model truncated while it is mapped, disks without room.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::common::{Server, demo_model, is_alive, program};

fn story() -> Value {
    json!({"prompt": "Once upon a time", "seed": 9, "n_predict": 300, "ignore_eos": true})
}

#[test]
fn a_model_that_is_truncated_while_it_is_mapped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    fs::copy(demo_model(), &path).unwrap();
    let name = path.to_str().unwrap();
    let server = Server::ready(&["-m", name, "--weights", "mapped", "--parallel", "1"]);
    let wanted = server.complete(&story());
    let first_engine = server.engine();
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(8192)
        .unwrap();
    std::thread::scope(|scope| {
        let client = scope.spawn(|| server.complete(&story()));
        // The engine's end names the file's, and so do the attempts to load it again.
        server
            .wait_for_log(|line| (line.contains("SIGBUS") && line.contains("ended")).then_some(()));
        server.wait_for_log(|line| {
            (line.contains("can't load") && line.contains("model.gguf")).then_some(())
        });
        server.wait_for_log(|line| {
            (line.contains("hint") && line.contains("replace model files by renaming"))
                .then_some(())
        });
        // Somebody copies the right file back.
        let part = path.with_extension("part");
        fs::copy(demo_model(), &part).unwrap();
        fs::rename(&part, &path).unwrap();
        assert_eq!(client.join().unwrap(), wanted);
    });
    assert!(!is_alive(first_engine) && is_alive(server.pid()));
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(
        server.post("/tokenize", &json!({"content": "Once"})).status,
        200
    );
}

/// The program where `folder` is a file system of 64 KB, and `prepare` has been done in it; `None` where ordinary users
/// can't make one.
fn without_room(dir: &Path, folder: &Path, prepare: &str) -> Option<Command> {
    fs::create_dir_all(folder).unwrap();
    let mount = format!("mount -t tmpfs -o size=64k tmpfs '{}'", folder.display());
    let tried = Command::new("unshare")
        .args(["-Urm", "sh", "-c", &mount])
        .output();
    if !tried.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: `unshare -Urm` can't mount a file system here");
        return None;
    }
    let script = format!(
        "{mount}; cd '{}'; {prepare}; cd /; exec \"$0\" \"$@\"",
        folder.display()
    );
    let mut command = Command::new("unshare");
    command
        .args(["-Urm", "sh", "-c", &script])
        .arg(program(dir).get_program())
        .current_dir(dir)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", dir);
    Some(command)
}

#[test]
fn a_disk_without_room_for_slots() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("slots");
    let Some(mut command) = without_room(dir.path(), &folder, ":") else {
        return;
    };
    command
        .args([
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--threads",
            "1",
            "--parallel",
            "1",
        ])
        .arg("--slot-save-path")
        .arg(&folder);
    let server = Server::launch(command, dir, |_| {});
    server.wait_until_ready();
    let wanted = server.complete(&story());
    let engine = server.engine();
    let save = |name: &str| server.post("/slots/0?action=save", &json!({ "filename": name }));
    for _ in 0..3 {
        let (status, kind) = save("large.slot").error();
        assert_eq!((status, kind.as_str()), (500, "server_error"));
    }
    assert!(
        save("large.slot").body.contains("No space left"),
        "{}",
        save("large.slot").body
    );
    // Nothing was left behind: what fits has room, and nothing goes by the name that failed.
    let small = json!({"prompt": "a", "n_predict": 1, "cache_prompt": false});
    server.complete(&small);
    let saved = save("small.slot");
    assert_eq!(saved.status, 200, "{}", saved.body);
    let inside = format!("/proc/{}/root{}", server.pid(), folder.display());
    let names: Vec<_> = fs::read_dir(inside)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names, ["small.slot"]);
    let restore = |name: &str| server.post("/slots/0?action=restore", &json!({ "filename": name }));
    assert_eq!(restore("small.slot").status, 200);
    assert_eq!(restore("large.slot").status, 400);
    assert_eq!(server.complete(&story()), wanted);
    assert_eq!(server.engine(), engine);
}

#[test]
fn a_disk_without_room_for_a_profile() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let fill = "head -c 1M /dev/zero >full 2>&-";
    let Some(mut command) = without_room(dir.path(), &state, fill) else {
        return;
    };
    let output = command
        .args(["tune", "--budget", "10s"])
        .env("XDG_STATE_HOME", &state)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("No space left"), "{text}");
}
