//! Brings the bytes of one file into its partial file, hashed as they arrive.
//!
//! The file is cut into chunks. Several connections fetch them, each into a channel of its own; this thread takes the chunks
//! in order, so that the partial file is always the first bytes of the whole and the hash is ready when the last byte is. A
//! server that knows no ranges is read through one connection. Memory: a bounded number of chunks.

use std::collections::VecDeque;
use std::io::Read;
use std::ops::Range;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use ureq::Body;
use ureq::http::Response;

use super::digest::Hasher;
use super::error::PullError;
use super::http;
use super::hub::{Hub, Resolved};
use super::part::Part;
use super::progress::Progress;
use super::retry::{Failure, Retry};
use crate::interrupt::Interrupt;

/// Bytes that one request asks for.
const CHUNK_BYTES: u64 = 8 << 20;
/// Bytes that travel together from a connection to the file.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces of one chunk that may wait; a whole chunk, so that a connection is never held up by an earlier one.
const PIECES: usize = CHUNK_BYTES as usize / PIECE_BYTES + 2;
/// Chunks under way or waiting, for each connection.
const CHUNKS_AHEAD: usize = 2;
/// How often this thread looks whether it should stop.
const TICK: Duration = Duration::from_millis(50);

/// One file to be fetched.
pub(crate) struct Download {
    /// From where.
    pub hub: Hub,
    /// `ORG/REPO`.
    pub repo: String,
    /// The commit.
    pub commit: String,
    /// Path in the repository.
    pub path: String,
    /// Where its bytes are, and how many.
    pub resolved: Resolved,
    /// Connections at once.
    pub connections: usize,
}

/// What the fetching threads share.
struct Shared {
    download: Download,
    url: Mutex<String>,
    progress: Arc<Progress>,
    interrupt: &'static Interrupt,
}

/// What a fetching thread sends.
enum Piece {
    Bytes(Vec<u8>),
    /// The server ignores ranges.
    NoRanges,
    Failed(PullError),
}

/// How to ask.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Ranges,
    Whole,
}

struct Task {
    range: Range<u64>,
    mode: Mode,
    to: SyncSender<Piece>,
}

impl Download {
    /// Fetches what the partial file lacks; the hash of the whole. What is in the partial file already is hashed first.
    ///
    /// # Errors
    /// When the hub, the network or the file system fail, or somebody asked to stop; the partial file keeps what came.
    pub(crate) fn run(
        self,
        part: &mut Part,
        progress: &Arc<Progress>,
        interrupt: &'static Interrupt,
    ) -> Result<String, PullError> {
        let size = self.resolved.size;
        if part.bytes() > size {
            part.clear()?;
        }
        let mut hasher = Hasher::default();
        if part.bytes() > 0 {
            progress.resume(part.bytes());
            part.hash(&mut hasher, &mut |_| !interrupt.asked())?;
        }
        let mut sink = Sink {
            part,
            hasher,
            file: self.path.clone(),
        };
        let shared = Arc::new(Shared {
            url: Mutex::new(self.resolved.url.clone()),
            download: self,
            progress: Arc::clone(progress),
            interrupt,
        });
        let mut mode = Mode::Ranges;
        while sink.part.bytes() < size || interrupt.asked() {
            if interrupt.asked() {
                return Err(sink.stopped());
            }
            match fetch(&shared, mode, &mut sink)? {
                Ended::Complete => {}
                Ended::NoRanges => {
                    progress.note("the server sends whole files only: one connection");
                    mode = Mode::Whole;
                }
            }
        }
        Ok(sink.hasher.finish())
    }
}

/// Where the bytes end up.
struct Sink<'a> {
    part: &'a mut Part,
    hasher: Hasher,
    file: String,
}

impl Sink<'_> {
    fn take(&mut self, bytes: &[u8]) -> Result<(), PullError> {
        self.part.write(bytes)?;
        self.hasher.update(bytes);
        Ok(())
    }

    fn stopped(&self) -> PullError {
        PullError::Stopped {
            file: self.file.clone(),
            kept_bytes: self.part.bytes(),
        }
    }
}

enum Ended {
    Complete,
    NoRanges,
}

/// Fetches the rest of the file. The threads end by themselves when their channels are dropped.
fn fetch(shared: &Arc<Shared>, mode: Mode, sink: &mut Sink<'_>) -> Result<Ended, PullError> {
    let size = shared.download.resolved.size;
    let chunk = match mode {
        Mode::Ranges => CHUNK_BYTES,
        Mode::Whole => size,
    };
    let mut next = sink.part.bytes();
    let left = size - next;
    let connections = shared
        .download
        .connections
        .min(left.div_ceil(chunk).max(1) as usize);
    let tasks = start_threads(shared, connections)?;
    let mut ahead: VecDeque<(Range<u64>, Receiver<Piece>)> = VecDeque::new();
    loop {
        while next < size && ahead.len() < connections * CHUNKS_AHEAD {
            let range = next..size.min(next + chunk);
            next = range.end;
            let (to, from) = sync_channel(PIECES);
            ahead.push_back((range.clone(), from));
            let task = Task { range, mode, to };
            tasks.send(task).expect("threads wait for tasks");
        }
        let Some((range, pieces)) = ahead.pop_front() else {
            return Ok(Ended::Complete);
        };
        if let Ended::NoRanges = take_chunk(shared, &pieces, &range, sink)? {
            return Ok(Ended::NoRanges);
        }
    }
}

fn take_chunk(
    shared: &Shared,
    pieces: &Receiver<Piece>,
    range: &Range<u64>,
    sink: &mut Sink<'_>,
) -> Result<Ended, PullError> {
    while sink.part.bytes() < range.end {
        if shared.interrupt.asked() {
            for piece in pieces.try_iter() {
                if let Piece::Bytes(bytes) = piece {
                    sink.take(&bytes)?;
                }
            }
            return Err(sink.stopped());
        }
        match pieces.recv_timeout(TICK) {
            Ok(Piece::Bytes(bytes)) => {
                sink.take(&bytes)?;
                shared.progress.add(bytes.len() as u64);
            }
            Ok(Piece::NoRanges) => return Ok(Ended::NoRanges),
            Ok(Piece::Failed(PullError::Stopped { .. })) => return Err(sink.stopped()),
            Ok(Piece::Failed(error)) => return Err(error),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => panic!("a fetching thread ended without a word"),
        }
    }
    Ok(Ended::Complete)
}

fn start_threads(shared: &Arc<Shared>, n: usize) -> Result<mpsc::Sender<Task>, PullError> {
    let (send, receive) = mpsc::channel::<Task>();
    let receive = Arc::new(Mutex::new(receive));
    for _ in 0..n {
        let (shared, receive) = (Arc::clone(shared), Arc::clone(&receive));
        let work = move || {
            loop {
                let task = match receive.lock() {
                    Ok(tasks) => tasks.recv(),
                    Err(_) => return,
                };
                let Ok(task) = task else { return };
                fetch_chunk(&shared, &task);
            }
        };
        thread::Builder::new()
            .name("fetch".into())
            .spawn(work)
            .map_err(PullError::Thread)?;
    }
    Ok(send)
}

/// Fetches one chunk, however many tries it takes.
fn fetch_chunk(shared: &Shared, task: &Task) {
    let note = |text: &str| shared.progress.note(text);
    let url = http::without_query(&shared.url());
    let mut retry = Retry::new(&url, shared.download.hub.tries, shared.interrupt, &note);
    let mut at = task.range.start;
    while at < task.range.end {
        let before = at;
        match try_chunk(shared, task, &mut at) {
            Ok(Try::Done) => {}
            Ok(Try::NobodyListens) => return,
            Ok(Try::NoRanges) => {
                let _ = task.to.send(Piece::NoRanges);
                return;
            }
            Err(failure) => {
                if at > before {
                    retry.progressed();
                }
                if let Err(error) = retry.wait(failure) {
                    let _ = task.to.send(Piece::Failed(error));
                    return;
                }
            }
        }
    }
}

enum Try {
    Done,
    NoRanges,
    NobodyListens,
}

/// One request; `at` moves with the bytes that came.
fn try_chunk(shared: &Shared, task: &Task, at: &mut u64) -> Result<Try, Failure> {
    let size = shared.download.resolved.size;
    let everything = *at == 0 && task.range.end == size;
    let range = match task.mode {
        Mode::Ranges if !everything => Some((*at, task.range.end - 1)),
        _ => None,
    };
    let url = shared.url();
    let mut response = match shared.download.hub.fetch(&url, range) {
        Ok(response) => response,
        Err(Failure::Final(PullError::Refused { status, .. }))
            if matches!(status, 401 | 403 | 404 | 410) && shared.is_elsewhere(&url) =>
        {
            shared.renew(&url)?;
            return Err(Failure::transient(format!(
                "the answer was {status}: the address may have expired, asked for a new one"
            )));
        }
        Err(failure) => return Err(failure),
    };
    let mut skip = 0;
    match (range, response.status().as_u16()) {
        (Some((first, _)), 206) => shared.check_range(&url, &response, first)?,
        (None, 200) => {
            shared.check_length(&url, &response)?;
            skip = *at;
        }
        (Some(_), 200) => return Ok(Try::NoRanges),
        (_, status) => {
            return Err(Failure::Final(PullError::Protocol {
                url: http::without_query(&url),
                found: format!("status {status}"),
                expected: "a file".to_owned(),
            }));
        }
    }
    let mut body = response.body_mut().as_reader();
    while skip > 0 {
        skip -= read(&mut body, skip)?.len() as u64;
    }
    while *at < task.range.end {
        let bytes = read(&mut body, task.range.end - *at)?;
        *at += bytes.len() as u64;
        if task.to.send(Piece::Bytes(bytes)).is_err() {
            return Ok(Try::NobodyListens);
        }
    }
    // Reads the end of the body, so that the connection can be used again.
    let _ = body.read(&mut [0]);
    Ok(Try::Done)
}

/// At least one byte, at most `most` and a piece.
fn read(body: &mut impl Read, most: u64) -> Result<Vec<u8>, Failure> {
    let mut bytes = vec![0; most.min(PIECE_BYTES as u64) as usize];
    let mut filled = 0;
    while filled < bytes.len() {
        match body.read(&mut bytes[filled..]) {
            Ok(0) if filled == 0 => {
                return Err(Failure::transient(
                    "the connection ended in the middle of the file",
                ));
            }
            Ok(0) => break,
            Ok(n) => filled += n,
            // What came is kept; the next read will say it again.
            Err(_) if filled > 0 => break,
            Err(error) => return Err(Failure::transient(http::words(&error))),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

impl Shared {
    fn url(&self) -> String {
        self.url
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clone()
    }

    fn is_elsewhere(&self, url: &str) -> bool {
        url.parse()
            .is_ok_and(|uri| !self.download.hub.client.is_hub(&uri))
    }

    /// Asks the hub where the bytes are now; one thread does it for all.
    fn renew(&self, old: &str) -> Result<(), PullError> {
        let mut url = self
            .url
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if *url != old {
            return Ok(());
        }
        let Download {
            hub,
            repo,
            commit,
            path,
            resolved,
            ..
        } = &self.download;
        let note = |text: &str| self.progress.note(text);
        let found = hub.resolve(repo, commit, path, self.interrupt, &note)?;
        if (&found.etag, found.size) != (&resolved.etag, resolved.size) {
            return Err(PullError::Protocol {
                url: http::without_query(&found.url),
                found: format!("etag {} with {} bytes", found.etag, found.size),
                expected: format!("{} with {} bytes, as before", resolved.etag, resolved.size),
            });
        }
        *url = found.url;
        Ok(())
    }

    /// `Content-Range: bytes 0-9/100`
    fn check_range(&self, url: &str, response: &Response<Body>, first: u64) -> Result<(), Failure> {
        let found = http::text(response.headers(), "content-range").unwrap_or_default();
        let parsed = found
            .strip_prefix("bytes ")
            .and_then(|rest| rest.split_once('/'))
            .and_then(|(range, all)| Some((range.split_once('-')?.0.parse::<u64>().ok()?, all)));
        match parsed {
            Some((start, all)) if start == first => {
                self.check_size(url, all.trim().parse().ok())?;
                Ok(())
            }
            _ => Err(Failure::Final(PullError::Protocol {
                url: http::without_query(url),
                found: format!("the range `{found}`"),
                expected: format!("one that starts at byte {first}"),
            })),
        }
    }

    fn check_length(&self, url: &str, response: &Response<Body>) -> Result<(), Failure> {
        let length = http::text(response.headers(), "content-length");
        Ok(self.check_size(url, length.and_then(|length| length.parse().ok()))?)
    }

    /// An unknown size is no lie.
    fn check_size(&self, url: &str, found: Option<u64>) -> Result<(), PullError> {
        let expected = self.download.resolved.size;
        match found {
            Some(found) if found != expected => Err(PullError::Size {
                file: self.download.path.clone(),
                found,
                found_by: format!("sent by {}", http::without_query(url)),
                expected,
                expected_by: "promised by the hub".to_owned(),
            }),
            _ => Ok(()),
        }
    }
}
