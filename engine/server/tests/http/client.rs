//! A raw HTTP/1.1 client: what is written is what is sent.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("UTF-8")
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The JSON frames of an event stream, `[DONE]` as a string.
    pub(crate) fn frames(&self) -> Vec<Value> {
        let text = self.text();
        let events = text
            .split("\n\n")
            .filter(|event| !event.is_empty() && !event.starts_with(':'));
        events
            .map(|event| {
                let data = event
                    .strip_prefix("data: ")
                    .unwrap_or_else(|| panic!("no data: {event:?}"));
                serde_json::from_str(data).unwrap_or_else(|_| Value::from(data))
            })
            .collect()
    }

    /// The error object, checked for its shape.
    pub(crate) fn error(&self) -> (u16, String, String) {
        let json = self.json();
        let error = &json["error"];
        assert_eq!(error["code"], self.status, "{json}");
        let text = |key: &str| {
            error[key]
                .as_str()
                .unwrap_or_else(|| panic!("{key} in {json}"))
                .to_owned()
        };
        (self.status, text("type"), text("message"))
    }
}

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends `raw` and reads one reply.
pub(crate) fn exchange(address: SocketAddr, raw: &[u8]) -> Reply {
    let mut stream = connect(address);
    stream.write_all(raw).expect("send");
    read_reply(&mut BufReader::new(stream))
}

pub(crate) fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Reply {
    exchange(address, &raw_request(method, path, headers, body))
}

pub(crate) fn raw_request(
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Vec<u8> {
    let mut raw = format!("{method} {path} HTTP/1.1\r\nHost: test\r\n");
    for (name, value) in headers {
        raw += &format!("{name}: {value}\r\n");
    }
    if !headers
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case("content-length"))
    {
        raw += &format!("Content-Length: {}\r\n", body.len());
    }
    raw += "Connection: close\r\n\r\n";
    [raw.as_bytes(), body].concat()
}

pub(crate) fn read_reply(reader: &mut impl BufRead) -> Reply {
    let (status, headers) = read_head(reader);
    let find = |name: &str| {
        headers
            .iter()
            .find(|(known, _): &&(String, String)| known == name)
            .map(|(_, v)| v.clone())
    };
    let mut body = Vec::new();
    if find("transfer-encoding").is_some() {
        while let Some(chunk) = read_chunk(reader) {
            body.extend(chunk);
        }
    } else if let Some(length) = find("content-length") {
        body.resize(length.parse().unwrap(), 0);
        let _ = reader.read_exact(&mut body);
    }
    Reply {
        status,
        headers,
        body,
    }
}

pub(crate) fn read_head(reader: &mut impl BufRead) -> (u16, Vec<(String, String)>) {
    let status = read_line(reader);
    let status = status
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or_else(|| panic!("status line {status:?}"));
    let mut headers = Vec::new();
    loop {
        let line = read_line(reader);
        let Some((name, value)) = line.split_once(": ") else {
            return (status, headers);
        };
        headers.push((name.to_lowercase(), value.to_owned()));
    }
}

/// `None` at the end of the body.
pub(crate) fn read_chunk(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let size = usize::from_str_radix(&read_line(reader), 16)
        .ok()
        .filter(|size| *size > 0)?;
    let mut chunk = vec![0; size + 2];
    reader.read_exact(&mut chunk).ok()?;
    chunk.truncate(size);
    Some(chunk)
}

fn read_line(reader: &mut impl BufRead) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).expect("a line in time");
    line.trim_end().to_owned()
}
