//! `bitnet-launch reload`: has a running server read its settings and model anew, and says how it went.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::cli::ReloadArgs;
use crate::settings::Environment;

/// Longest answer read; `/reload` sends far less.
const ANSWER_LIMIT_BYTES: u64 = 256 << 10;

/// Exit code 0 when the server has reloaded or had nothing to do.
///
/// # Errors
/// When nobody answers, or the server says no: with its reason.
pub(crate) fn run(args: &ReloadArgs, env: &Environment) -> anyhow::Result<ExitCode> {
    let quiet = args.server.quiet;
    let url = args.server.route("/reload", env)?;
    match ask(&url, args, env) {
        Ok(answer) => {
            if !quiet {
                for warning in answer["warnings"].as_array().into_iter().flatten() {
                    eprintln!("warning: {}", warning.as_str().unwrap_or_default());
                }
                println!("{}", answer["outcome"].as_str().unwrap_or("reloaded"));
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(_) if quiet => Ok(ExitCode::FAILURE),
        Err(error) => Err(error),
    }
}

fn ask(url: &str, args: &ReloadArgs, env: &Environment) -> anyhow::Result<Value> {
    let timeout = Duration::try_from_secs_f64(args.timeout).context("time-out")?;
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(timeout))
        .http_status_as_error(false)
        .proxy(None)
        .build()
        .into();
    let mut request = agent.post(url);
    if let Some(key) = key(args, env) {
        request = request.header("Authorization", format!("Bearer {key}"));
    }
    let mut response = request
        .send(json!({ "gap": args.gap }).to_string())
        .with_context(|| format!("no answer from {url}"))?;
    let body = response
        .body_mut()
        .with_config()
        .limit(ANSWER_LIMIT_BYTES)
        .read_to_string()
        .with_context(|| format!("no complete answer from {url}"))?;
    let answer: Value = serde_json::from_str(&body).unwrap_or_default();
    let status = response.status().as_u16();
    let reason = answer["error"]["message"].as_str().unwrap_or(body.trim());
    match status {
        200 => Ok(answer),
        409 => bail!("not reloaded, all stays as it was: {reason}"),
        401 => bail!("{url} needs a key: name one with `--api-key` or LLAMA_API_KEY"),
        404 => bail!("{url} answered 404: no bitnet-launch of this version listens there"),
        _ => bail!("{url} answered {status}: {reason}"),
    }
}

/// The first of several.
fn key(args: &ReloadArgs, env: &Environment) -> Option<String> {
    let named = args.api_key.clone();
    let named = named.or_else(|| env.get("LLAMA_API_KEY").cloned())?;
    let first = named
        .split(',')
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned();
    (!first.is_empty()).then_some(first)
}
