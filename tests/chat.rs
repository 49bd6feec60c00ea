//! `chat` with the real program: against a real server, against one of its own, and against one that does as a test likes.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use common::{LONG, Server, program, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

fn chat(dir: &Path, args: &[&str]) -> Command {
    let mut command = program(dir);
    command
        .arg("chat")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Exit code, standard output, standard error.
fn talk(dir: &Path, args: &[&str], input: &str) -> (Option<i32>, String, String) {
    let mut child = chat(dir, args).spawn().unwrap();
    // A chat that ends early doesn't read.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

fn home() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn the_history_goes_along() {
    let server = Server::ready(&[]);
    let ask = |messages: Value| -> String {
        let body = json!({"messages": messages, "temperature": 0, "seed": 1, "max_tokens": 30});
        let reply = server.post("/v1/chat/completions", &body).json();
        reply["choices"][0]["message"]["content"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let (first, second) = ("What is BitNet?", "Tell me a story.");
    let mut messages = vec![
        json!({"role": "system", "content": "Be brief."}),
        json!({"role": "user", "content": first}),
    ];
    let one = ask(json!(messages));
    messages.push(json!({"role": "assistant", "content": one}));
    messages.push(json!({"role": "user", "content": second}));
    let two = ask(json!(messages));
    let home = home();
    let url = server.url("/v1/");
    let common = ["--temperature", "0", "--seed", "1", "-n", "30"];
    let args: Vec<&str> = ["--url", &url, "--system", "Be brief."]
        .into_iter()
        .chain(common)
        .collect();
    let input = format!("{first}\n{second}\n/regen\n/save talk.json\n/exit\nnot sent\n");
    let (code, out, log) = talk(home.path(), &args, &input);
    assert_eq!(code, Some(0), "{log}");
    let line = |text: &str| {
        if text.ends_with('\n') {
            text.to_owned()
        } else {
            format!("{text}\n")
        }
    };
    assert_eq!(out, [line(&one), line(&two), line(&two)].concat());
    let saved = fs::read_to_string(home.path().join("talk.json")).unwrap();
    messages.push(json!({"role": "assistant", "content": two}));
    assert_eq!(
        serde_json::from_str::<Value>(&saved).unwrap(),
        json!(messages)
    );
}

#[test]
fn a_chat_brings_its_own_server_and_takes_it_away() {
    let home = home();
    let (code, out, log) = talk(
        home.path(),
        &["-n", "8", "--", "--ctx-size", "512"],
        "Hello!\n",
    );
    assert_eq!(code, Some(0), "{log}");
    assert!(!out.trim().is_empty(), "{log}");
    assert_eq!(processes_in(home.path()), Vec::<i32>::new());
    let mut child = chat(home.path(), &[]).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"Hello!\n").unwrap();
    let mut first = [0];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut first)
        .unwrap();
    assert!(processes_in(home.path()).len() >= 3, "chat, server, engine");
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for("the server's end", || {
        processes_in(home.path()).is_empty().then_some(())
    });
}

/// Processes that work in this directory.
fn processes_in(directory: &Path) -> Vec<i32> {
    let directory = directory.canonicalize().unwrap();
    let pid = |entry: fs::DirEntry| -> Option<i32> {
        let cwd = fs::read_link(entry.path().join("cwd")).ok()?;
        let pid = entry.file_name().to_str()?.parse().ok()?;
        (cwd == directory && common::is_alive(Pid::from_raw(pid))).then_some(pid)
    };
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(pid)
        .collect()
}

#[test]
fn what_its_server_says_at_the_end_is_passed_on() {
    let home = home();
    let (code, out, log) = talk(home.path(), &["-m", "no-such.gguf"], "Hello!\n");
    assert_eq!((code, out.as_str()), (Some(1), ""), "{log}");
    assert!(
        log.starts_with("error: no model at `no-such.gguf`"),
        "{log}"
    );
    let (code, _, log) = talk(home.path(), &["-m", "2b-4t"], "Hello!\n");
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("bitnet-launch pull 2b-4t"), "{log}");
    let (code, _, log) = talk(home.path(), &["--url", "127.0.0.1:9"], "Hello!\n");
    assert_eq!(code, Some(1), "{log}");
    assert!(
        log.contains("no answer from http://127.0.0.1:9/health"),
        "{log}"
    );
}

/// A server whose answers the test writes.
struct Puppet {
    port: u16,
    requests: Receiver<Value>,
}

impl Puppet {
    /// `answer` gets each question's number and the connection, after the head of the request was read.
    fn start(answer: impl Fn(usize, &mut TcpStream) + Send + Sync + 'static) -> Puppet {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (to, requests): (Sender<Value>, _) = channel();
        thread::spawn(move || {
            let mut questions = 0;
            for stream in listener.incoming().map_while(Result::ok) {
                let mut reader = BufReader::new(stream);
                let (path, body) = read_request(&mut reader);
                let mut stream = reader.into_inner();
                if path == "/health" {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
                    continue;
                }
                to.send(serde_json::from_slice(&body).unwrap()).unwrap();
                answer(questions, &mut stream);
                questions += 1;
            }
        });
        Puppet { port, requests }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Role and content of each message of the next question.
    fn question(&self) -> Vec<(String, String)> {
        let body = self.requests.recv_timeout(LONG).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let messages = body["messages"].as_array().unwrap();
        messages
            .iter()
            .map(|m| (text(&m["role"]), text(&m["content"])))
            .collect()
    }
}

fn read_request(reader: &mut impl BufRead) -> (String, Vec<u8>) {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim_end().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse().unwrap();
            }
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    (path, body)
}

const SSE: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";

fn say(stream: &mut TcpStream, text: &str) -> std::io::Result<()> {
    let frame = json!({"choices": [{"delta": {"content": text}}]});
    write!(stream, "data: {frame}\n\n")
}

fn whole(stream: &mut TcpStream, text: &str) {
    stream.write_all(SSE).unwrap();
    say(stream, text).unwrap();
    stream.write_all(b"data: [DONE]\n\n").unwrap();
}

fn send(stdin: &mut ChildStdin, line: &str) {
    writeln!(stdin, "{line}").unwrap();
}

fn own(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let own = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
    pairs.iter().map(own).collect()
}

#[test]
fn ctrl_c_stops_the_answer_and_not_the_chat() {
    let puppet = Puppet::start(|n, stream| {
        if n > 0 {
            return whole(stream, "Back again.");
        }
        stream.write_all(SSE).unwrap();
        say(stream, "for ever").unwrap();
        // Ends when the chat hangs up.
        while say(stream, "").is_ok() {
            thread::sleep(std::time::Duration::from_millis(5));
        }
    });
    let home = home();
    let mut child: Child = chat(home.path(), &["--url", &puppet.url()])
        .spawn()
        .unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    send(&mut stdin, "How long?");
    let mut begun = [0; 8];
    stdout.read_exact(&mut begun).unwrap();
    assert_eq!(&begun, b"for ever");
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    send(&mut stdin, "Still there?");
    assert_eq!(puppet.question(), own(&[("user", "How long?")]));
    let history = [
        ("user", "How long?"),
        ("assistant", "for ever"),
        ("user", "Still there?"),
    ];
    assert_eq!(puppet.question(), own(&history));
    drop(stdin);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "\nBack again.\n");
    assert!(child.wait().unwrap().success());
}

#[test]
fn commands_and_their_mistakes() {
    let puppet = Puppet::start(|n, stream| whole(stream, &format!("answer {n}")));
    let home = home();
    let input = "/system Be kind.\none\n/clear\ntwo \\\nlines\n//path\n/save talk.txt\n";
    let (code, out, log) = talk(home.path(), &["--url", &puppet.url()], input);
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(out, "answer 0\nanswer 1\nanswer 2\n");
    let system = ("system", "Be kind.");
    assert_eq!(puppet.question(), own(&[system, ("user", "one")]));
    assert_eq!(puppet.question(), own(&[system, ("user", "two \nlines")]));
    let saved = fs::read_to_string(home.path().join("talk.txt")).unwrap();
    assert!(
        saved.ends_with("user: /path\n\nassistant: answer 2\n"),
        "{saved}"
    );
    for (input, words) in [
        ("/nonsense\n", "expected one of /help"),
        ("/save\n", "expected `/save FILE`"),
        ("/regen\n", "no answer to do again"),
        (
            "hello\n/save no/such/dir/x\n",
            "cannot write `no/such/dir/x`",
        ),
    ] {
        let (code, _, log) = talk(home.path(), &["--url", &puppet.url()], input);
        assert_eq!(code, Some(1), "{input}: {log}");
        assert!(log.contains(words), "{log}");
    }
}

#[test]
fn failures_are_named() {
    for (answer, words) in [
        (
            "HTTP/1.1 400 Bad\r\nContent-Length: 57\r\n\r\n{\"error\":{\"message\":\"the request exceeds the context\"}}   ",
            "400: the request exceeds the context (/clear forgets",
        ),
        (
            "HTTP/1.1 401 No\r\nContent-Length: 7\r\n\r\nbad key",
            "401: bad key",
        ),
        (
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\ndata: {\"error\":{\"message\":\"boom\"}}\n\n",
            "boom",
        ),
        (
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\ndata: {\"choi\n\n",
            "cannot be read",
        ),
        ("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", "broke off"),
        ("", "no answer from"),
    ] {
        let puppet = Puppet::start(move |_, stream| {
            let _ = stream.write_all(answer.as_bytes());
        });
        let home = home();
        let (code, out, log) = talk(home.path(), &["--url", &puppet.url()], "hello\n");
        assert_eq!((code, out.as_str()), (Some(1), ""), "{log}");
        assert!(log.contains(words), "{words}: {log}");
    }
}
