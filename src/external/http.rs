//! The two questions a supervisor asks an engine: is it well, and does it answer. Blocking, with a deadline.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bitnet_server::proxy::Address;

/// Read of an answer; its status stands at the front.
const ANSWER_BYTES: usize = 1 << 20;
/// Longest a connection to this machine may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Status and body of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

/// `GET path`.
///
/// # Errors
/// When nobody answers in time, or not in HTTP.
pub(super) fn get(
    address: &Address,
    path: &str,
    key: Option<&str>,
    limit: Duration,
) -> io::Result<Answer> {
    let authorization = authorization(key);
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{authorization}\r\n"
    );
    exchange(address, head.as_bytes(), limit)
}

/// `POST path` with a JSON body.
///
/// # Errors
/// As [`get`].
pub(super) fn post(
    address: &Address,
    path: &str,
    key: Option<&str>,
    body: &str,
    limit: Duration,
) -> io::Result<Answer> {
    let authorization = authorization(key);
    let length = body.len();
    let text = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{authorization}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    exchange(address, text.as_bytes(), limit)
}

fn authorization(key: Option<&str>) -> String {
    key.map_or_else(String::new, |key| {
        format!("Authorization: Bearer {key}\r\n")
    })
}

fn exchange(address: &Address, request: &[u8], limit: Duration) -> io::Result<Answer> {
    let deadline = Instant::now() + limit;
    match address {
        Address::Tcp(address) => {
            let mut stream = TcpStream::connect_timeout(address, CONNECT_TIMEOUT.min(limit))?;
            stream.set_write_timeout(Some(limit))?;
            stream.write_all(request)?;
            read(deadline, |left, buffer| {
                stream.set_read_timeout(Some(left))?;
                stream.read(buffer)
            })
        }
        Address::Unix(path) => {
            let mut stream = UnixStream::connect(path)?;
            stream.set_write_timeout(Some(limit))?;
            stream.write_all(request)?;
            read(deadline, |left, buffer| {
                stream.set_read_timeout(Some(left))?;
                stream.read(buffer)
            })
        }
    }
}

/// Reads until the other side closes, or enough is there.
fn read(
    deadline: Instant,
    mut more: impl FnMut(Duration, &mut [u8]) -> io::Result<usize>,
) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while bytes.len() < ANSWER_BYTES && !is_whole(&bytes) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match more(left, &mut buffer) {
            Ok(0) => break,
            Ok(n) => bytes.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    answer(&bytes).ok_or_else(|| io::Error::other("the answer is no HTTP"))
}

/// Head and announced body are there; servers that keep the connection open are not waited for.
fn is_whole(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let Some((head, _)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_length = name.eq_ignore_ascii_case("content-length");
        is_length.then(|| value.trim().parse::<usize>().ok())?
    });
    length.is_some_and(|length| bytes.len() >= head.len() + 4 + length)
}

fn answer(bytes: &[u8]) -> Option<Answer> {
    let text = String::from_utf8_lossy(bytes);
    let rest = text.strip_prefix("HTTP/1.")?;
    let status = rest.get(2..5)?.parse().ok()?;
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Some(Answer {
        status,
        body: body.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread;

    #[test]
    fn answers_in_pieces_and_silence() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for piece in [
                "HTTP/1.1 503 Servi",
                "ce Unavailable\r\ncontent-LENGTH: 4\r\n\r\nab",
                "cd",
            ] {
                stream.write_all(piece.as_bytes()).unwrap();
                stream.flush().unwrap();
                thread::sleep(Duration::from_millis(5));
            }
            // Kept open; nothing comes.
            let silent = listener.accept().unwrap();
            thread::sleep(Duration::from_millis(300));
            drop((stream, silent));
        });
        let address = Address::Unix(path);
        let long = Duration::from_secs(20);
        let found = post(&address, "/completion", Some("k"), "{}", long).unwrap();
        assert_eq!((found.status, found.body.as_str()), (503, "abcd"));
        let error = get(&address, "/health", None, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
        ));
        server.join().unwrap();
        assert!(get(&Address::Unix("/no/such.sock".into()), "/", None, long).is_err());
    }
}
