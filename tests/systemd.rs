//! Socket activation, readiness, watchdog and the end, as systemd sees them.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::linux::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{LONG, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// systemd loses patience after this; it is told of our health twice as often.
const WATCHDOG: Duration = Duration::from_secs(1);

/// Starts the program with `socket` as descriptor 3, as systemd does.
fn activated(dir: &Path, socket: OwnedFd) -> Command {
    let mut command = Command::new("/bin/sh");
    command
        .args([
            "-c",
            "export LISTEN_PID=$$; exec \"$@\" 3<&0 </dev/null",
            "sh",
        ])
        .arg(env!("CARGO_BIN_EXE_bitnet-launch"))
        .env_clear()
        .current_dir(dir)
        .env("HOME", dir)
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDNAMES", "web")
        .stdin(socket)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What systemd hears.
struct Manager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    /// The next message that holds `wanted`.
    fn hear(&mut self, wanted: &str) -> String {
        let deadline = Instant::now() + LONG;
        loop {
            let mut bytes = [0; 4096];
            if let Ok(n) = self.socket.recv(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..n]).into_owned();
                self.heard.push(text.clone());
                if text.contains(wanted) {
                    return text;
                }
            }
            assert!(Instant::now() < deadline, "no {wanted} in {:?}", self.heard);
        }
    }
}

fn health(port: u16) -> String {
    let mut text = String::new();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
        .write_all(b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .unwrap();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn engine(log: &Path) -> Option<Pid> {
    let text = fs::read_to_string(log).ok()?;
    let (_, rest) = text.rsplit_once("engine process ")?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok().map(Pid::from_raw)
}

#[test]
fn a_life_under_systemd() {
    let dir = tempfile::tempdir().unwrap();
    let notify = dir.path().join("notify");
    let mut manager = Manager {
        socket: UnixDatagram::bind(&notify).unwrap(),
        heard: Vec::new(),
    };
    manager
        .socket
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let fd = OwnedFd::from(listener);
    let inode = fs::File::from(fd.try_clone().unwrap())
        .metadata()
        .unwrap()
        .st_ino();
    // A client that comes before the program is not refused: it waits.
    let early = std::thread::spawn(move || health(port));
    let log = dir.path().join("log");
    let mut server = Killed(
        activated(dir.path(), fd)
            .args(["--host", "192.0.2.1", "--port", "1", "--log-file"])
            .arg(&log)
            .env("NOTIFY_SOCKET", &notify)
            .env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string())
            .spawn()
            .unwrap(),
    );
    let ready = manager.hear("READY=1");
    assert!(
        ready.contains(&format!("STATUS=serving on http://127.0.0.1:{port}")),
        "{ready}"
    );
    assert!(early.join().unwrap().starts_with("HTTP/1.1 "));
    assert!(health(port).starts_with("HTTP/1.1 200"));
    for _ in 0..2 {
        manager.hear("WATCHDOG=1");
    }

    let pid = wait_for("the engine", || engine(&log));
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = open.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    let public = format!("socket:[{inode}]");
    let held: Vec<_> = links.filter(|link| link.as_os_str() == &*public).collect();
    assert!(held.is_empty(), "the engine holds the public socket");
    let variables = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    for name in ["LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_"] {
        assert!(!variables.contains(name), "{variables}");
    }

    kill(pid, Signal::SIGKILL).unwrap();
    manager.hear("STATUS=starting a new engine");
    manager.hear("STATUS=serving on");
    kill(Pid::from_raw(server.0.id() as i32), Signal::SIGTERM).unwrap();
    manager.hear("STOPPING=1");
    let status = wait_for("the end", || server.0.try_wait().unwrap());
    assert!(status.success(), "{status}");
}

#[test]
fn a_descriptor_of_another_kind_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = fs::File::open("/dev/null").unwrap();
    let output = activated(dir.path(), OwnedFd::from(file))
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("cannot use the socket `web`") && said.contains("ListenStream="),
        "{said}"
    );
}
