//! Asks a server for an answer and reads it as it is made.

use std::io::{BufRead, BufReader};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use ureq::Agent;
use ureq::tls::TlsConfig;

use crate::interrupt::Interrupt;
use crate::models::http::root_certificates;

/// A server that takes longer to take the connection isn't there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A server that is silent for longer, while it has something to say, has failed.
const SILENCE: Duration = Duration::from_secs(300);
/// How often this thread looks for Ctrl-C.
const TICK: Duration = Duration::from_millis(20);
/// Events that may wait to be printed.
const EVENTS: usize = 64;
/// Most of an error's text that is read.
const ERROR_BYTES: u64 = 64 << 10;

/// A server that speaks OpenAI's chat API.
pub(super) struct Client {
    agent: Agent,
    base: String,
    key: Option<String>,
}

/// What came of a question.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// All that was printed.
    pub text: String,
    /// Why it ended early, if the server or the connection failed.
    pub failure: Option<String>,
    /// How it ended and how fast it was.
    pub remark: Option<String>,
}

enum Event {
    Text(String),
    /// Nothing to print; finds out whether anybody listens.
    Tick,
    End {
        remark: Option<String>,
    },
    Failed(String),
}

impl Client {
    /// `url`: with or without `http://` and `/v1`.
    pub(super) fn new(url: &str, key: Option<String>) -> Client {
        let url = url.trim().trim_end_matches('/');
        let url = url.strip_suffix("/v1").unwrap_or(url);
        let scheme = if url.contains("://") { "" } else { "http://" };
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .max_idle_connections(0)
            .tls_config(TlsConfig::builder().root_certs(root_certificates()).build())
            .proxy(None)
            .build()
            .new_agent();
        Client {
            agent,
            base: format!("{scheme}{url}"),
            key,
        }
    }

    /// Whether there is somebody who answers.
    ///
    /// # Errors
    /// When not.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let url = format!("{}/health", self.base);
        let mut reply = self
            .agent
            .get(&url)
            .call()
            .with_context(|| format!("no answer from {url}"))?;
        let status = reply.status().as_u16();
        // Servers of others may lack the route.
        if matches!(status, 200 | 404 | 405 | 401) {
            return Ok(());
        }
        let text = reply
            .body_mut()
            .with_config()
            .limit(ERROR_BYTES)
            .read_to_string();
        bail!(
            "{url} answered {status}: {}",
            reason(&text.unwrap_or_default())
        )
    }

    /// Asks; `shown` gets the text as it comes. Ctrl-C ends the answer, which isn't a failure.
    ///
    /// # Errors
    /// When `shown` fails.
    pub(super) fn answer(
        &self,
        body: Value,
        interrupt: &Interrupt,
        mut shown: impl FnMut(&str) -> std::io::Result<()>,
    ) -> anyhow::Result<Answer> {
        let (to, events) = sync_channel(EVENTS);
        let url = format!("{}/v1/chat/completions", self.base);
        let mut request = self
            .agent
            .post(&url)
            .header("Content-Type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let ask = move || {
            let event = match request.send(body.to_string()) {
                Ok(reply) => read(reply, &to),
                Err(error) => Some(Event::Failed(format!("no answer from {url}: {error}"))),
            };
            if let Some(event) = event {
                let _ = to.send(event);
            }
        };
        thread::Builder::new().name("answer".into()).spawn(ask)?;
        let mut answer = Answer::default();
        loop {
            if interrupt.take() {
                answer.remark = Some("stopped".to_owned());
                return Ok(answer);
            }
            match events.recv_timeout(TICK) {
                Ok(Event::Text(text)) => {
                    shown(&text)?;
                    answer.text.push_str(&text);
                }
                Ok(Event::Tick) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Event::End { remark }) => {
                    answer.remark = remark;
                    return Ok(answer);
                }
                Ok(Event::Failed(why)) => {
                    answer.failure = Some(why);
                    return Ok(answer);
                }
                Err(RecvTimeoutError::Disconnected) => {
                    answer.failure = Some("the connection ended early".to_owned());
                    return Ok(answer);
                }
            }
        }
    }
}

/// Reads the stream to its end; `None` once nobody listens any more, which closes the connection and ends the answer.
fn read(mut reply: ureq::http::Response<ureq::Body>, to: &SyncSender<Event>) -> Option<Event> {
    let status = reply.status().as_u16();
    if status != 200 {
        let text = reply
            .body_mut()
            .with_config()
            .limit(ERROR_BYTES)
            .read_to_string();
        let why = reason(&text.unwrap_or_default());
        let hint = match why.contains("context") {
            true => " (/clear forgets the conversation)",
            false => "",
        };
        return Some(Event::Failed(format!(
            "the server answered {status}: {why}{hint}"
        )));
    }
    let mut finish = None;
    let mut speed = None;
    for line in BufReader::new(reply.into_body().into_reader()).lines() {
        let line = match line {
            Ok(line) => line,
            Err(error) => return Some(Event::Failed(format!("the answer broke off: {error}"))),
        };
        let Some(data) = line.strip_prefix("data:") else {
            to.send(Event::Tick).ok()?;
            continue;
        };
        if data.trim() == "[DONE]" {
            let remark = [finish, speed]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join(", ");
            return Some(Event::End {
                remark: Some(remark).filter(|remark| !remark.is_empty()),
            });
        }
        let frame: Value = match serde_json::from_str(data) {
            Ok(frame) => frame,
            Err(error) => {
                return Some(Event::Failed(format!("the answer cannot be read: {error}")));
            }
        };
        if !frame["error"].is_null() {
            return Some(Event::Failed(reason(data)));
        }
        let choice = &frame["choices"][0];
        if choice["finish_reason"] == "length" {
            finish = Some("cut at the limit of tokens".to_owned());
        }
        if let Some(rate) = frame["timings"]["predicted_per_second"].as_f64() {
            let n = frame["timings"]["predicted_n"].as_u64().unwrap_or_default();
            speed = Some(format!("{n} tokens, {rate:.1} per second"));
        }
        let text = choice["delta"]["content"].as_str().unwrap_or_default();
        let event = match text {
            "" => Event::Tick,
            text => Event::Text(text.to_owned()),
        };
        to.send(event).ok()?;
    }
    Some(Event::Failed("the answer broke off".to_owned()))
}

/// `{"error": {"message": …}}`, or the text itself.
fn reason(text: &str) -> String {
    let json: Option<Value> = serde_json::from_str(text).ok();
    let message = json.as_ref().and_then(|json| {
        let error = &json["error"];
        error["message"].as_str().or_else(|| error.as_str())
    });
    message.unwrap_or(text).trim().chars().take(500).collect()
}
