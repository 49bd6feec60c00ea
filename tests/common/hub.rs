//! A hub for tests: lists repositories, redirects large files to a second server on another port, and does wrong what a
//! test asks it to.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};

pub const COMMIT: &str = "c0ffee0000000000000000000000000000000001";

/// Which of the two servers was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    Hub,
    Cdn,
}

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    pub door: Door,
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
    /// How many of the same door and method came before.
    pub before: usize,
}

impl Request {
    pub fn is_bytes(&self) -> bool {
        self.door == Door::Cdn && self.method == "GET"
    }

    pub fn is_list(&self) -> bool {
        self.path.starts_with("/api/")
    }

    /// First and last byte asked for.
    pub fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self
            .headers
            .get("range")?
            .strip_prefix("bytes=")?
            .split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }
}

/// What goes wrong with one answer.
#[derive(Debug, Clone)]
pub enum Fault {
    Nothing,
    /// Another status, with these headers and this body.
    Status(u16, Vec<(&'static str, String)>, &'static str),
    /// The connection ends after so many bytes of the body.
    CutAfter(usize),
    /// Nothing more comes after so many bytes.
    StallAfter(usize),
    /// A pause before every 64 KiB.
    Slow(Duration),
    /// Ranges are ignored; with a cut after so many bytes, if any.
    NoRanges(Option<usize>),
    /// `Content-Range` names this size.
    ClaimSize(u64),
    /// The bytes are others.
    Corrupt,
}

#[derive(Clone)]
pub struct HubFile {
    pub bytes: Arc<Vec<u8>>,
    /// In the list and in the headers.
    pub sha256: String,
    /// In the list.
    pub listed_size: u64,
    /// In the header `X-Linked-Size`.
    pub linked_size: u64,
    /// Large files lie elsewhere.
    pub large: bool,
}

impl HubFile {
    pub fn large(bytes: Vec<u8>) -> HubFile {
        HubFile {
            sha256: sha256(&bytes),
            listed_size: bytes.len() as u64,
            linked_size: bytes.len() as u64,
            bytes: Arc::new(bytes),
            large: true,
        }
    }

    pub fn small(text: &str) -> HubFile {
        HubFile {
            large: false,
            ..HubFile::large(text.as_bytes().to_vec())
        }
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

/// Bytes that no two places of a file share.
pub fn noise(n: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(n + 8);
    while bytes.len() < n {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(n);
    bytes
}

type Rule = Box<dyn Fn(&Request) -> Fault + Send + Sync>;

struct State {
    /// By repository and path.
    files: Mutex<BTreeMap<(String, String), HubFile>>,
    rule: Mutex<Rule>,
    requests: Mutex<Vec<Request>>,
    sent: AtomicU64,
    cdn: Mutex<String>,
    /// Signature that the second server accepts.
    signature: Mutex<String>,
    over: AtomicBool,
}

/// A running hub; ends when dropped.
pub struct Hub {
    state: Arc<State>,
    pub port: u16,
    pub cdn_port: u16,
    tls: bool,
}

impl Hub {
    pub fn start() -> Hub {
        Hub::start_with(None)
    }

    pub fn start_with(tls: Option<Arc<rustls::ServerConfig>>) -> Hub {
        let state = Arc::new(State {
            files: Mutex::default(),
            rule: Mutex::new(Box::new(|_| Fault::Nothing)),
            requests: Mutex::default(),
            sent: AtomicU64::new(0),
            cdn: Mutex::default(),
            signature: Mutex::new("one".into()),
            over: AtomicBool::new(false),
        });
        let port = listen(&state, Door::Hub, tls.clone());
        let cdn_port = listen(&state, Door::Cdn, tls.clone());
        let scheme = if tls.is_some() { "https" } else { "http" };
        *state.cdn.lock().unwrap() = format!("{scheme}://localhost:{cdn_port}");
        Hub {
            state,
            port,
            cdn_port,
            tls: tls.is_some(),
        }
    }

    pub fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://localhost:{}", self.port)
    }

    pub fn put(&self, repo: &str, path: &str, file: HubFile) {
        let key = (repo.to_owned(), path.to_owned());
        self.state.files.lock().unwrap().insert(key, file);
    }

    /// What goes wrong from now on.
    pub fn rule(&self, rule: impl Fn(&Request) -> Fault + Send + Sync + 'static) {
        *self.state.rule.lock().unwrap() = Box::new(rule);
    }

    /// Only addresses given out from now on work.
    pub fn expire_addresses(&self, signature: &str) {
        *self.state.signature.lock().unwrap() = signature.to_owned();
    }

    /// All requests so far; forgets them.
    pub fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.requests.lock().unwrap())
    }

    /// Bytes of files sent so far; forgets them.
    pub fn take_sent(&self) -> u64 {
        self.state.sent.swap(0, Ordering::Relaxed)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::Relaxed);
        for port in [self.port, self.cdn_port] {
            let _ = TcpStream::connect(("127.0.0.1", port));
        }
    }
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

fn listen(state: &Arc<State>, door: Door, tls: Option<Arc<rustls::ServerConfig>>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let state = Arc::clone(state);
    thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            if state.over.load(Ordering::Relaxed) {
                return;
            }
            let (state, tls) = (Arc::clone(&state), tls.clone());
            thread::spawn(move || {
                let _ = socket.set_nodelay(true);
                match tls {
                    None => serve(&state, door, socket),
                    Some(tls) => {
                        let connection = rustls::ServerConnection::new(tls).unwrap();
                        serve(&state, door, rustls::StreamOwned::new(connection, socket));
                    }
                }
            });
        }
    });
    port
}

fn serve(state: &State, door: Door, stream: impl Stream) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read(state, door, &mut stream) {
        let fault = (state.rule.lock().unwrap())(&request);
        if answer(state, &request, fault, stream.get_mut()).is_none() {
            return;
        }
    }
}

fn read(state: &State, door: Door, stream: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    if stream.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let mut requests = state.requests.lock().unwrap();
    let same = |other: &&Request| other.door == door && other.method == method;
    let request = Request {
        before: requests.iter().filter(same).count(),
        door,
        method,
        path,
        headers,
    };
    requests.push(request.clone());
    Some(request)
}

/// `None` ends the connection.
fn answer(state: &State, request: &Request, fault: Fault, out: &mut impl Write) -> Option<()> {
    if let Fault::Status(status, headers, body) = &fault {
        let headers: Vec<(&str, String)> = headers.clone();
        return head(out, *status, &headers, body.len()).and_then(|()| {
            let body = if request.method == "HEAD" { "" } else { body };
            out.write_all(body.as_bytes()).ok()
        });
    }
    let path = request.path.split('?').next().unwrap();
    let files = state.files.lock().unwrap().clone();
    if let Some(rest) = path.strip_prefix("/api/models/") {
        let repo = rest.split("/revision/").next().unwrap();
        return list(repo, &files, out);
    }
    let (repo, file) = path.strip_prefix('/')?.split_once("/resolve/")?;
    let file = file.split_once('/')?.1.replace("%20", " ");
    let Some(found) = files.get(&(repo.to_owned(), file)) else {
        let code = ("X-Error-Code", "EntryNotFound".to_owned());
        return head(out, 404, &[code], 0);
    };
    let mut headers = vec![
        ("X-Repo-Commit", COMMIT.to_owned()),
        ("ETag", format!("\"{}\"", found.sha256)),
    ];
    if request.door == Door::Hub && found.large {
        let (cdn, signature) = (state.cdn.lock().unwrap(), state.signature.lock().unwrap());
        headers.push(("Location", format!("{cdn}{path}?signature={signature}")));
        headers.push(("X-Linked-Etag", format!("\"{}\"", found.sha256)));
        headers.push(("X-Linked-Size", found.linked_size.to_string()));
        return head(out, 302, &headers, 0);
    }
    let signature = format!("?signature={}", state.signature.lock().unwrap());
    if request.door == Door::Cdn && !request.path.ends_with(&signature) {
        return head(out, 403, &[], 0);
    }
    if request.method == "HEAD" {
        return head(out, 200, &headers, found.bytes.len());
    }
    bytes(state, request, &fault, headers, &found.bytes, out)
}

fn list(
    repo: &str,
    files: &BTreeMap<(String, String), HubFile>,
    out: &mut impl Write,
) -> Option<()> {
    let of_repo = |((name, path), file): (&(String, String), &HubFile)| {
        let lfs = json!({"sha256": file.sha256, "size": file.listed_size, "pointerSize": 135});
        (name == repo).then(|| match file.large {
            true => {
                json!({"rfilename": path, "size": file.listed_size, "blobId": "0f", "lfs": lfs})
            }
            false => json!({"rfilename": path, "size": file.listed_size, "blobId": file.sha256}),
        })
    };
    let siblings: Vec<_> = files.iter().filter_map(of_repo).collect();
    if siblings.is_empty() {
        let code = ("X-Error-Code", "RepoNotFound".to_owned());
        return head(out, 401, &[code], 0);
    }
    let body = json!({"id": repo, "sha": COMMIT, "siblings": siblings}).to_string();
    head(out, 200, &[], body.len())?;
    out.write_all(body.as_bytes()).ok()
}

fn bytes(
    state: &State,
    request: &Request,
    fault: &Fault,
    mut headers: Vec<(&'static str, String)>,
    all: &[u8],
    out: &mut impl Write,
) -> Option<()> {
    let range = request
        .range()
        .filter(|_| !matches!(fault, Fault::NoRanges(_)));
    let part = match range {
        None => all,
        Some((first, last)) => {
            let size = match fault {
                Fault::ClaimSize(size) => *size,
                _ => all.len() as u64,
            };
            headers.push(("Content-Range", format!("bytes {first}-{last}/{size}")));
            &all[first..=last]
        }
    };
    let end = match fault {
        Fault::CutAfter(n) | Fault::StallAfter(n) | Fault::NoRanges(Some(n)) => {
            (*n).min(part.len())
        }
        _ => part.len(),
    };
    head(
        out,
        if range.is_some() { 206 } else { 200 },
        &headers,
        part.len(),
    )?;
    for piece in part[..end].chunks(64 << 10) {
        if let Fault::Slow(pause) = fault {
            thread::sleep(*pause);
        }
        state.sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
        match fault {
            Fault::Corrupt => {
                let wrong: Vec<u8> = piece.iter().map(|byte| byte ^ 1).collect();
                out.write_all(&wrong).ok()?;
            }
            _ => out.write_all(piece).ok()?,
        }
    }
    out.flush().ok()?;
    if let Fault::StallAfter(_) = fault {
        thread::sleep(Duration::from_secs(20));
    }
    (end == part.len()).then_some(())
}

fn head(
    out: &mut impl Write,
    status: u16,
    headers: &[(&str, String)],
    length: usize,
) -> Option<()> {
    let mut text =
        format!("HTTP/1.1 {status} Word\r\nContent-Length: {length}\r\nAccept-Ranges: bytes\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    out.write_all(text.as_bytes()).ok()?;
    out.flush().ok()
}
